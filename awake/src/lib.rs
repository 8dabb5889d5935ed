//! Cores that stay awake while there is work.
//!
//! A request passes half a dozen processes and disks, and each may find its core asleep: waking one up takes a microsecond on one
//! machine and 50 on another, as deep as its cores sleep and whether they belong to a hypervisor. Linux lets a process say how long
//! that may take at most (PM QoS, `Documentation/power/pm_qos_interface.rst` in the kernel's source): a number of microseconds
//! written to `/dev/cpu_dma_latency` holds for all cores of the machine until another is written, or the file is closed; of several
//! processes the least counts. The kernel goes by what its idle driver says of each state, which need not be what a hypervisor
//! makes of it; with 0, idle cores poll, where that is a state there is.
//!
//! Awake cores take power, and on shared hosts time from others. So the wish is held while there is work and for [`LINGER`]
//! after it, and only by who was told to.
//!
//! What it is not: it does not set priorities, place threads on cores, or spin.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

/// Where the wish is written, as four bytes in the machine's own order.
pub const DEVICE: &str = "/dev/cpu_dma_latency";

/// The wish outlives the last work by one to two of these. A client that sends one request after the other is quicker.
const LINGER: Duration = Duration::from_millis(20);

/// No wish, in microseconds: the kernel's `PM_QOS_CPU_LATENCY_DEFAULT_VALUE`.
const ANY: i32 = 2_000_000_000;

/// Told of work by whoever has some. Clones share the wish; it ends with the last of them.
#[derive(Clone, Debug)]
pub struct Awake(Option<Arc<Keeper>>);

impl Awake {
    /// Cores sleep as they like.
    #[must_use]
    pub fn never() -> Awake {
        Awake(None)
    }

    /// While there is work, no core shall take longer than `latency_max` to wake up, in whole microseconds.
    ///
    /// # Errors
    /// The kernel has no such device, the process may not write to it, or there is no thread to be had.
    pub fn while_working(latency_max: Duration) -> io::Result<Awake> {
        Awake::by(OpenOptions::new().write(true).open(DEVICE)?, latency_max)
    }

    fn by(device: impl Write + Send + 'static, latency_max: Duration) -> io::Result<Awake> {
        let latency_max = i32::try_from(latency_max.as_micros()).unwrap_or(ANY).min(ANY);
        let news = Arc::new(News::default());
        let heard = Arc::clone(&news);
        let keeping = thread::Builder::new()
            .name("awake".to_owned())
            .spawn(move || keep(device, latency_max, &heard))?;
        Ok(Awake(Some(Arc::new(Keeper { news, keeping: keeping.thread().clone() }))))
    }

    /// There is work. Costs next to nothing when it is said again and again.
    pub fn work(&self) {
        if let Some(keeper) = &self.0
            && !keeper.news.work.load(Ordering::Relaxed)
        {
            keeper.news.work.store(true, Ordering::Release);
            keeper.keeping.unpark();
        }
    }
}

/// Ends the thread when nobody can tell it anything any more.
#[derive(Debug)]
struct Keeper {
    news: Arc<News>,
    keeping: Thread,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.news.end.store(true, Ordering::Release);
        self.keeping.unpark();
    }
}

/// What the thread is told.
#[derive(Debug, Default)]
struct News {
    /// There was work since the thread last looked.
    work: AtomicBool,
    end: AtomicBool,
}

/// Writes the wish when work begins and takes it back when it has ended. When a write fails there are no more wishes: closing the
/// device takes back what was wished, and a hint that is lost costs some speed only.
fn keep(mut device: impl Write, latency_max: i32, news: &News) {
    let mut wish = |latency: i32| device.write_all(&latency.to_ne_bytes()).is_ok();
    loop {
        while !news.work.swap(false, Ordering::Acquire) {
            if news.end.load(Ordering::Acquire) {
                return;
            }
            thread::park();
        }
        if !wish(latency_max) {
            return;
        }
        loop {
            // Not parked: that would be woken by the next work, to do nothing.
            thread::sleep(LINGER);
            if !news.work.swap(false, Ordering::Acquire) {
                break;
            }
        }
        if !wish(ANY) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn device() -> (UnixStream, UnixStream) {
        let (written, device) = UnixStream::pair().expect("two sockets");
        device.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        (written, device)
    }

    fn next(device: &mut UnixStream) -> i32 {
        let mut bytes = [0; 4];
        device.read_exact(&mut bytes).expect("a wish");
        i32::from_ne_bytes(bytes)
    }

    #[test]
    fn the_wish_is_held_while_there_is_work_and_taken_back_after_it() {
        let (written, mut device) = device();
        let awake = Awake::by(written, Duration::from_micros(3)).expect("a thread");
        for told in [awake.clone(), awake.clone()] {
            told.work();
            assert_eq!(next(&mut device), 3);
            assert_eq!(next(&mut device), ANY);
        }
        awake.work();
        assert_eq!(next(&mut device), 3, "it began before the last clone was gone");
        drop(awake);
        let mut rest = Vec::new();
        device.read_to_end(&mut rest).expect("the device is closed");
        assert_eq!(rest, ANY.to_ne_bytes());
    }

    #[test]
    fn without_work_nothing_is_wished() {
        let (written, mut device) = device();
        drop(Awake::by(written, Duration::ZERO).expect("a thread"));
        let mut wished = Vec::new();
        device.read_to_end(&mut wished).expect("the device is closed");
        assert_eq!(wished, [0_u8; 0]);
        Awake::never().work();
    }

    #[test]
    fn a_wish_too_long_for_the_kernel_is_none() {
        let (written, mut device) = device();
        let awake = Awake::by(written, Duration::MAX).expect("a thread");
        awake.work();
        assert_eq!(next(&mut device), ANY);
    }
}
