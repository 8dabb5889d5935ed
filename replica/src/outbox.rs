//! The way out to a socket: frames are encoded straight into one buffer, which the writer task swaps out whole. A frame
//! leaves at once when the socket is idle, and together with others while it is busy; there is no timer.

use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{BufMut, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

/// Buffers larger than this are given back to the allocator after use.
const KEEP_BYTES: usize = 1 << 20;

#[derive(Debug)]
pub(crate) struct Outbox {
    buffer: Mutex<BytesMut>,
    ready: Notify,
    closed: AtomicBool,
    /// Bytes that may wait for the socket.
    limit: usize,
}

/// The frame was not taken: the peer is gone, or does not read what it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotSent;

impl Outbox {
    pub(crate) fn new(limit: usize) -> Self {
        Outbox {
            buffer: Mutex::new(BytesMut::new()),
            ready: Notify::new(),
            closed: AtomicBool::new(false),
            limit,
        }
    }

    /// Appends one frame: a 4-byte big-endian length and what `encode` writes.
    pub(crate) fn push(&self, encode: impl FnOnce(&mut BytesMut)) -> Result<(), NotSent> {
        if self.is_closed() {
            return Err(NotSent);
        }
        {
            let mut buffer = self.buffer.lock();
            let start = buffer.len();
            if start > self.limit {
                return Err(NotSent);
            }
            buffer.put_u32(0);
            encode(&mut buffer);
            let length = u32::try_from(buffer.len() - start - 4).expect("a frame is bounded far below 4 GiB");
            buffer[start..start + 4].copy_from_slice(&length.to_be_bytes());
        }
        self.ready.notify_one();
        Ok(())
    }

    /// The frames that wait.
    #[cfg(test)]
    pub(crate) fn take(&self) -> Vec<BytesMut> {
        use bytes::Buf;
        let mut waiting = mem::take(&mut *self.buffer.lock());
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

    /// Makes [`Outbox::run`] return, and later pushes fail. What waits is dropped.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.ready.notify_one();
    }

    /// Writes what is pushed until the outbox is closed or the socket breaks.
    pub(crate) async fn run(&self, mut socket: impl AsyncWrite + Unpin) -> std::io::Result<()> {
        let mut writing = BytesMut::new();
        loop {
            if self.is_closed() {
                return Ok(());
            }
            mem::swap(&mut *self.buffer.lock(), &mut writing);
            if writing.is_empty() {
                self.ready.notified().await;
                continue;
            }
            socket.write_all(&writing).await?;
            writing.clear();
            if writing.capacity() > KEEP_BYTES {
                writing = BytesMut::new();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn frames_arrive_in_order_with_their_lengths() {
        let outbox = Outbox::new(100);
        outbox.push(|b| b.extend_from_slice(b"one")).unwrap();
        outbox.push(|b| b.extend_from_slice(b"three")).unwrap();
        let (mut near, far) = tokio::io::duplex(64);
        let read = async {
            let mut bytes = [0; 16];
            near.read_exact(&mut bytes).await.unwrap();
            outbox.close();
            bytes
        };
        let (written, bytes) = tokio::join!(outbox.run(far), read);
        written.unwrap();
        assert_eq!(&bytes, b"\0\0\0\x03one\0\0\0\x05three");
        assert_eq!(outbox.push(|_| {}), Err(NotSent));
    }

    #[test]
    fn a_peer_that_does_not_read_is_noticed() {
        let outbox = Outbox::new(4);
        outbox.push(|b| b.extend_from_slice(b"12345")).unwrap();
        assert_eq!(outbox.push(|b| b.extend_from_slice(b"6")), Err(NotSent));
    }
}
