//! The way out to a socket. A frame leaves at once, written by whoever pushes it, while the socket takes what it is
//! given. Once it does not, frames gather in one buffer, and a task writes them as the socket allows. There is no timer.
//! Large frames are not copied there: each waits as it is, behind the small ones that came before the task took it up.

use std::collections::VecDeque;
use std::io::{Error, ErrorKind, Result as IoResult};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use tls::WriteHalf;
use tokio::sync::Notify;

/// Buffers larger than this are given back to the allocator after use.
const KEEP_BYTES: usize = 1 << 20;
/// More than this is left to the task: copying it would keep others from the buffer for long.
const DIRECT_BYTES_MAX: usize = 64 << 10;

#[derive(Debug)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    ready: Notify,
    closed: AtomicBool,
    /// Bytes that may wait for the socket.
    limit: usize,
    /// Bytes that no socket has taken yet.
    waiting: AtomicUsize,
    /// Up to so many of them there is room for more.
    room: usize,
    /// There is room again.
    drained: Notify,
}

#[derive(Debug, Default)]
struct State {
    buffer: BytesMut,
    large: VecDeque<Bytes>,
    /// The socket, while it has taken all there was.
    idle: Option<Arc<WriteHalf>>,
}

/// The frame was not taken: the peer is gone, or does not read what it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotSent;

impl Outbox {
    /// Refuses frames while more than `limit` bytes wait; `room` is a hint for those who can wait with theirs.
    pub(crate) fn new(limit: usize, room: usize) -> Self {
        Outbox {
            state: Mutex::default(),
            ready: Notify::new(),
            closed: AtomicBool::new(false),
            limit,
            waiting: AtomicUsize::new(0),
            room,
            drained: Notify::new(),
        }
    }

    /// Whether little enough waits for the socket.
    pub(crate) fn has_room(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) <= self.room
    }

    /// Makes [`Outbox::drained`] return.
    pub(crate) fn tell_drained(&self) {
        self.drained.notify_one();
    }

    /// Returns after there is room again.
    pub(crate) async fn drained(&self) {
        self.drained.notified().await;
    }

    /// Sends one frame: a 4-byte big-endian length and what `encode` writes.
    pub(crate) fn push(&self, encode: impl FnOnce(&mut BytesMut)) -> Result<(), NotSent> {
        if self.is_closed() {
            return Err(NotSent);
        }
        {
            let mut state = self.state.lock();
            let State { buffer, idle, .. } = &mut *state;
            let start = buffer.len();
            if self.waiting.load(Ordering::Relaxed) > self.limit {
                return Err(NotSent);
            }
            buffer.put_u32(0);
            encode(buffer);
            let Ok(length) = u32::try_from(buffer.len() - start - 4) else {
                buffer.truncate(start);
                return Err(NotSent);
            };
            buffer[start..start + 4].copy_from_slice(&length.to_be_bytes());
            self.waiting.fetch_add(buffer.len() - start, Ordering::Relaxed);
            if let Some(socket) = idle
                && buffer.len() <= DIRECT_BYTES_MAX
                && let Ok(written) = socket.try_write(buffer)
            {
                buffer.advance(written);
                self.written(written);
                if buffer.is_empty() {
                    return Ok(());
                }
            }
            // The task goes on, or meets the socket's error; while there is no idle socket, it is at work.
            if idle.take().is_none() {
                return Ok(());
            }
        }
        self.ready.notify_one();
        Ok(())
    }

    /// Sends one large frame, which begins with its length.
    pub(crate) fn push_large(&self, frame: Bytes) -> Result<(), NotSent> {
        if self.is_closed() || self.waiting.load(Ordering::Relaxed) > self.limit {
            return Err(NotSent);
        }
        self.waiting.fetch_add(frame.len(), Ordering::Relaxed);
        {
            let mut state = self.state.lock();
            state.large.push_back(frame);
            if state.idle.take().is_none() {
                return Ok(());
            }
        }
        self.ready.notify_one();
        Ok(())
    }

    /// The socket has taken so many bytes.
    fn written(&self, bytes: usize) {
        let before = self.waiting.fetch_sub(bytes, Ordering::Relaxed);
        if before > self.room && before - bytes <= self.room {
            self.drained.notify_one();
        }
    }

    /// The frames that wait.
    #[cfg(test)]
    pub(crate) fn take(&self) -> Vec<BytesMut> {
        let mut state = self.state.lock();
        let mut waiting = mem::take(&mut state.buffer);
        for large in mem::take(&mut state.large) {
            waiting.extend_from_slice(&large);
        }
        self.written(waiting.len());
        let mut frames = Vec::new();
        while waiting.has_remaining() {
            let length = waiting.get_u32() as usize;
            frames.push(waiting.split_to(length));
        }
        frames
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Makes [`Outbox::run`] return, and later pushes fail. What waits is dropped, and the socket with it.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.state.lock().idle = None;
        self.ready.notify_one();
    }

    /// Writes what pushes leave until the outbox is closed or the socket breaks. To be closed afterwards.
    pub(crate) async fn run(&self, socket: WriteHalf) -> IoResult<()> {
        let socket = Arc::new(socket);
        let mut writing = BytesMut::new();
        loop {
            let large = {
                let mut state = self.state.lock();
                if self.is_closed() {
                    return Ok(());
                }
                mem::swap(&mut state.buffer, &mut writing);
                // One each time, however many small ones there are.
                let large = state.large.pop_front();
                if writing.is_empty() && large.is_none() {
                    state.idle = Some(Arc::clone(&socket));
                }
                large
            };
            if writing.is_empty() && large.is_none() {
                self.ready.notified().await;
                continue;
            }
            self.write(&socket, &mut writing).await?;
            if let Some(frame) = large {
                self.write(&socket, frame).await?;
            }
            if writing.capacity() > KEEP_BYTES {
                writing = BytesMut::new();
            }
        }
    }

    /// Writes everything, unless the outbox is closed before.
    async fn write(&self, socket: &WriteHalf, mut bytes: impl Buf) -> IoResult<()> {
        while bytes.has_remaining() && !self.is_closed() {
            match socket.try_write(bytes.chunk()) {
                Ok(0) => return Err(Error::from(ErrorKind::WriteZero)),
                Ok(written) => {
                    bytes.advance(written);
                    self.written(written);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => tokio::select! {
                    writable = socket.writable() => writable?,
                    // Perhaps the outbox was closed.
                    () = self.ready.notified() => {}
                },
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};

    async fn connected() -> (TcpStream, WriteHalf) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near, tls::Stream::from(listener.accept().await.unwrap().0).into_split().1)
    }

    #[tokio::test]
    async fn frames_arrive_in_order_with_their_lengths() {
        let outbox = Outbox::new(100, 100);
        outbox.push(|b| b.extend_from_slice(b"one")).unwrap();
        outbox.push(|b| b.extend_from_slice(b"three")).unwrap();
        let (mut near, far) = connected().await;
        let read = async {
            let mut bytes = [0; 16];
            near.read_exact(&mut bytes).await.unwrap();
            // The socket is idle now.
            outbox.push(|b| b.extend_from_slice(b"direct")).unwrap();
            let mut direct = [0; 10];
            near.read_exact(&mut direct).await.unwrap();
            assert_eq!(&direct, b"\0\0\0\x06direct");
            outbox.close();
            bytes
        };
        let (written, bytes) = tokio::join!(outbox.run(far), read);
        written.unwrap();
        assert_eq!(&bytes, b"\0\0\0\x03one\0\0\0\x05three");
        assert_eq!(outbox.push(|_| {}), Err(NotSent));
        assert_eq!(near.read(&mut [0]).await.unwrap(), 0, "the connection ends with the outbox");
    }

    #[tokio::test]
    async fn nothing_is_lost_or_torn_when_the_socket_is_slow() {
        let outbox = Outbox::new(1 << 30, 1 << 30);
        let (near, far) = connected().await;
        let mut near = tokio::io::BufReader::new(near);
        let push = async {
            for number in 0..2000_u32 {
                let size = if number.is_multiple_of(7) { 100_000 } else { 100 };
                outbox
                    .push(|buffer| {
                        buffer.put_u32(number);
                        buffer.put_bytes(number as u8, size);
                    })
                    .unwrap();
                if number.is_multiple_of(50) {
                    tokio::task::yield_now().await;
                }
            }
        };
        let read = async {
            for number in 0..2000_u32 {
                let length = near.read_u32().await.unwrap() as usize;
                assert_eq!(near.read_u32().await.unwrap(), number);
                let mut bytes = vec![0; length - 4];
                near.read_exact(&mut bytes).await.unwrap();
                assert!(bytes.iter().all(|byte| *byte == number as u8));
            }
            outbox.close();
        };
        let (written, (), ()) = tokio::join!(outbox.run(far), push, read);
        written.unwrap();
    }

    #[tokio::test]
    async fn large_frames_take_up_room_until_they_have_left() {
        let outbox = Outbox::new(1 << 30, 1000);
        let (mut near, far) = connected().await;
        for number in 0..3_u8 {
            let mut frame = BytesMut::new();
            frame.put_u32(5_000_000);
            frame.put_bytes(number, 5_000_000);
            outbox.push_large(frame.freeze()).unwrap();
        }
        outbox.push(|b| b.extend_from_slice(b"small")).unwrap();
        assert!(!outbox.has_room());
        let read = async {
            let mut numbers = Vec::new();
            for _ in 0..4 {
                let length = near.read_u32().await.unwrap() as usize;
                let mut bytes = vec![0; length];
                near.read_exact(&mut bytes).await.unwrap();
                assert!(length == 5 || bytes.iter().all(|byte| *byte == bytes[0]), "torn");
                numbers.push(bytes[0]);
            }
            outbox.drained().await;
            assert!(outbox.has_room());
            outbox.close();
            numbers
        };
        let (written, numbers) = tokio::join!(outbox.run(far), read);
        written.unwrap();
        assert_eq!(numbers, [b's', 0, 1, 2], "small frames go first");
    }

    #[tokio::test]
    async fn small_frames_that_do_not_end_keep_no_large_one_back() {
        // More than a socket takes at once, so that further small ones wait whenever it has taken all there were.
        let outbox = Outbox::new(1 << 30, 32 << 20);
        let (mut near, far) = connected().await;
        outbox.push_large(Bytes::from_static(b"\0\0\0\x01L")).unwrap();
        let push = async {
            while !outbox.is_closed() {
                while outbox.has_room() && outbox.push(|b| b.put_bytes(b's', 50_000)).is_ok() {}
                tokio::task::yield_now().await;
            }
        };
        let read = async {
            let mut small = 0..3000;
            let mut frame = Vec::new();
            while frame != b"L" {
                assert!(small.next().is_some(), "the large one waits for ever");
                frame.resize(near.read_u32().await.unwrap() as usize, 0);
                near.read_exact(&mut frame).await.unwrap();
            }
            outbox.close();
        };
        let ((), written, ()) = tokio::join!(push, outbox.run(far), read);
        written.unwrap();
    }

    #[test]
    fn a_peer_that_does_not_read_is_noticed() {
        let outbox = Outbox::new(4, 4);
        outbox.push(|b| b.extend_from_slice(b"12345")).unwrap();
        assert_eq!(outbox.push(|b| b.extend_from_slice(b"6")), Err(NotSent));
    }
}
