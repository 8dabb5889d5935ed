//! A bound on the silence of a socket. Without one, a peer that lost power, was cut off or stands still keeps a
//! connection, and whoever waits on it, for as long as the operating system tries: minutes, or for ever when nothing
//! is under way.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// A stream that fails when one operation makes no progress for `limit`. Bytes are progress, not frames: a long frame
/// on a slow line is not silence.
#[derive(Debug)]
pub(crate) struct Patient<S> {
    stream: S,
    reading: Patience,
    writing: Patience,
}

#[derive(Debug)]
struct Patience {
    limit: Duration,
    /// Since when an operation waits without progress.
    since: Option<Instant>,
    /// Looks after the operation under way, or was set for one before.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    pub(crate) fn new(stream: S, limit: Duration) -> Self {
        let patience = || Patience { limit, since: None, timer: None };
        Patient { stream, reading: patience(), writing: patience() }
    }

    /// What is read next may take this long to begin.
    pub(crate) fn expect_within(&mut self, limit: Duration) {
        self.reading = Patience { limit, since: None, timer: None };
    }
}

impl Patience {
    /// Looks after an operation, given what it came to.
    fn judge<T>(&mut self, context: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.since = None;
            return polled;
        }
        let limit = self.limit;
        let end = *self.since.get_or_insert_with(Instant::now) + limit;
        loop {
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(end)));
            let due = timer.deadline();
            ready!(timer.as_mut().poll(context));
            // Set for an earlier operation. Setting it anew for each would cost more than waking up now and then.
            if due < end {
                timer.as_mut().reset(end);
                continue;
            }
            // This process stood still itself, and has not listened: what the other side said may still be on its way.
            if due.elapsed() > limit / 2 {
                timer.as_mut().reset(Instant::now() + limit);
                continue;
            }
            let text = format!("nothing came or went for {limit:?}");
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, text)));
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.reading.judge(context, polled)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.writing.judge(context, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        self.writing.judge(context, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::{advance, sleep};

    const LIMIT: Duration = Duration::from_secs(2);

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_read_and_a_write_after_its_limit() {
        let (near, _far) = duplex(4);
        let mut near = Patient::new(near, LIMIT);
        let begun = Instant::now();
        assert_eq!(near.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(near.write_all(b"12345").await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let took = begun.elapsed();
        assert!(took >= LIMIT * 2 && took < LIMIT * 2 + Duration::from_millis(10), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_stream_is_not_silent() {
        let (near, mut far) = duplex(1);
        let mut near = Patient::new(near, LIMIT);
        let slowly = async {
            for byte in 0..20 {
                sleep(LIMIT * 3 / 4).await;
                far.write_u8(byte).await.unwrap();
            }
        };
        let mut bytes = [0; 20];
        let (read, ()) = tokio::join!(near.read_exact(&mut bytes), slowly);
        read.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_of_this_process_is_not_the_others_silence() {
        let (near, mut far) = duplex(1);
        let mut near = Patient::new(near, LIMIT);
        let mut read = by_hand(near.read_u8());
        assert!(read.poll_once().await.is_none());
        // Time leaps, as it does over a SIGSTOP.
        advance(LIMIT * 10).await;
        assert!(read.poll_once().await.is_none());
        far.write_u8(7).await.unwrap();
        assert_eq!(read.poll_once().await.unwrap().unwrap(), 7);
    }

    /// Polls a future by hand.
    fn by_hand<F: Future>(future: F) -> ByHand<F> {
        ByHand(Box::pin(future))
    }

    struct ByHand<F>(Pin<Box<F>>);

    impl<F: Future> ByHand<F> {
        async fn poll_once(&mut self) -> Option<F::Output> {
            std::future::poll_fn(|context| match self.0.as_mut().poll(context) {
                Poll::Ready(output) => Poll::Ready(Some(output)),
                Poll::Pending => Poll::Ready(None),
            })
            .await
        }
    }
}
