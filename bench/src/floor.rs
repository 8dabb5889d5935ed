//! What no system of this shape can be faster than on this machine: a chain of client, gateway, leader and followers
//! that does nothing but pass bytes on and make them durable. No protocol, no parsing, no runtime: threads, blocking
//! sockets on loopback, and whole pages past the kernel's cache.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;

use crate::Histogram;

/// Requests measured, unless the machine is too slow for so many.
const ROUNDS: u32 = 2000;
const WARMUP: u32 = 200;
const TIME_MAX: Duration = Duration::from_secs(5);
/// A request with a value of 256 bytes, and what it takes to tell where it belongs.
const REQUEST_BYTES: usize = 320;
const ANSWER_BYTES: usize = 32;
const PAGE_BYTES: usize = 4096;
/// Written beforehand, so that the file system has nothing to allocate.
const FILE_PAGES: usize = 1024;

/// Latency of one durable write at a time: client, gateway, leader; two of three copies on disk; and back.
pub(crate) fn floor(data_dir: &Path) -> io::Result<Histogram> {
    let dir = tempfile::TempDir::with_prefix_in("gaios-bench-floor-", data_dir)?;
    let (client, gateway_in) = connected()?;
    let (gateway_out, leader_in) = connected()?;
    let mut threads = Vec::new();
    let mut voters = Vec::new();
    for name in ["a", "b"] {
        let (near, far) = connected()?;
        threads.push(follow(far, Copy::new(&dir.path().join(name))?));
        voters.push(Voter::Follower(near));
    }
    let (near, far) = UnixStream::pair()?;
    threads.push(follow(far, Copy::new(&dir.path().join("leader"))?));
    voters.push(Voter::Own(near));
    threads.push(thread::spawn(move || lead(leader_in, voters)));
    threads.push(thread::spawn(move || pass_on(gateway_in, gateway_out)));

    let histogram = Histogram::default();
    let measured = ask(client, &histogram);
    // Each thread ends when its input does. If one ended before, its error says more than the client's.
    let ends = threads.into_iter().map(|thread| thread.join().unwrap_or(Ok(())));
    let causes: Vec<io::Error> = ends.filter_map(Result::err).filter(|error| !is_hang_up(error)).collect();
    match causes.into_iter().next() {
        Some(cause) => Err(cause),
        None => measured.map(|()| histogram),
    }
}

/// The client: one request at a time.
fn ask(mut gateway: TcpStream, histogram: &Histogram) -> io::Result<()> {
    let (mut request, mut answer) = ([1; REQUEST_BYTES], [0; ANSWER_BYTES]);
    let began = Instant::now();
    for round in (0..WARMUP + ROUNDS).take_while(|_| began.elapsed() < TIME_MAX) {
        request[..4].copy_from_slice(&round.to_le_bytes());
        let started = Instant::now();
        gateway.write_all(&request)?;
        gateway.read_exact(&mut answer)?;
        // On a machine that is too slow for the warm-up there is nothing to warm.
        if round >= WARMUP || began.elapsed() >= TIME_MAX / 2 {
            histogram.record(started.elapsed());
        }
    }
    Ok(())
}

/// What a socket says when the other side is gone.
fn is_hang_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    [BrokenPipe, ConnectionReset, UnexpectedEof].contains(&error.kind())
}

fn connected() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    Ok((near, far))
}

/// One of the three copies.
struct Copy {
    file: File,
    /// Holds one page at an address that direct writes accept.
    buffer: Vec<u8>,
    next: usize,
}

impl Copy {
    fn new(path: &Path) -> io::Result<Copy> {
        let cached = File::create_new(path)?;
        cached.write_all_at(&vec![0; FILE_PAGES * PAGE_BYTES], 0)?;
        cached.sync_all()?;
        let direct = i32::try_from(OFlags::DIRECT.bits()).map_err(io::Error::other)?;
        // Not every file system knows a way past the cache.
        let file = File::options().write(true).custom_flags(direct).open(path).unwrap_or(cached);
        Ok(Copy { file, buffer: vec![1; 2 * PAGE_BYTES], next: 0 })
    }

    fn persist(&mut self, request: &[u8]) -> io::Result<()> {
        let start = self.buffer.as_ptr().align_offset(PAGE_BYTES);
        let page = &mut self.buffer[start..start + PAGE_BYTES];
        page[..request.len()].copy_from_slice(request);
        self.file.write_all_at(page, (self.next * PAGE_BYTES) as u64)?;
        self.next = (self.next + 1) % FILE_PAGES;
        self.file.sync_data()
    }
}

/// Makes every request durable, then acknowledges it.
fn follow(mut leader: impl Read + Write + Send + 'static, mut copy: Copy) -> JoinHandle<io::Result<()>> {
    thread::spawn(move || {
        let (mut request, mut answer) = ([0; REQUEST_BYTES], [0; ANSWER_BYTES]);
        loop {
            leader.read_exact(&mut request)?;
            copy.persist(&request)?;
            answer[..4].copy_from_slice(&request[..4]);
            leader.write_all(&answer)?;
        }
    })
}

/// Whom the leader hears votes from: the followers, and its own disk.
enum Voter {
    Follower(TcpStream),
    Own(UnixStream),
}

impl Voter {
    fn poll_fd(&self) -> PollFd<'_> {
        match self {
            Voter::Follower(stream) => PollFd::new(stream, PollFlags::IN),
            Voter::Own(stream) => PollFd::new(stream, PollFlags::IN),
        }
    }

    fn send(&mut self, request: &[u8]) -> io::Result<()> {
        match self {
            Voter::Follower(stream) => stream.write_all(request),
            Voter::Own(stream) => stream.write_all(request),
        }
    }

    fn receive(&mut self, answer: &mut [u8]) -> io::Result<()> {
        match self {
            Voter::Follower(stream) => stream.read_exact(answer),
            Voter::Own(stream) => stream.read_exact(answer),
        }
    }
}

/// Answers when two of three have a request.
fn lead(mut gateway: TcpStream, mut voters: Vec<Voter>) -> io::Result<()> {
    let (mut request, mut answer) = ([0; REQUEST_BYTES], [0; ANSWER_BYTES]);
    loop {
        gateway.read_exact(&mut request)?;
        for voter in &mut voters {
            voter.send(&request)?;
        }
        let mut votes = 0;
        while votes < 2 {
            let mut polled: Vec<PollFd<'_>> = voters.iter().map(Voter::poll_fd).collect();
            poll(&mut polled, None)?;
            let heard: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
            for (voter, _) in voters.iter_mut().zip(heard).filter(|(_, heard)| *heard) {
                voter.receive(&mut answer)?;
                // The third vote on an earlier request comes late.
                votes += usize::from(answer[..4] == request[..4]);
            }
        }
        gateway.write_all(&answer)?;
    }
}

fn pass_on(mut client: TcpStream, mut leader: TcpStream) -> io::Result<()> {
    let (mut request, mut answer) = ([0; REQUEST_BYTES], [0; ANSWER_BYTES]);
    loop {
        client.read_exact(&mut request)?;
        leader.write_all(&request)?;
        leader.read_exact(&mut answer)?;
        client.write_all(&answer)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_is_answered_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let histogram = floor(dir.path()).unwrap();
        assert!((1..=u64::from(ROUNDS + WARMUP)).contains(&histogram.count()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
