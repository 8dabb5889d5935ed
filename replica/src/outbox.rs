//! The way out to a socket. A frame leaves at once, written by whoever pushes it, while the socket takes what it is
//! given. Once it does not, frames gather in one buffer, and a task writes them as the socket allows. There is no timer.
//! Large answers do not gather: between two parts of them the small frames leave that have come meanwhile.

use std::io::{Error, ErrorKind, Result as IoResult};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use group_core::{LargeReply, Turns};
use parking_lot::Mutex;
use tls::WriteHalf;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::budget::{Budget, Use};
use crate::parts::begin_part;

/// Buffers larger than this are given back to the allocator after use.
const KEEP_BYTES: usize = 1 << 20;
/// More than this is left to the task: copying it would keep others from the buffer for long.
const DIRECT_BYTES_MAX: usize = 64 << 10;
/// A gateway that takes nothing for so long loses its link while memory is short.
const PROGRESS_WITHIN: Duration = Duration::from_secs(10);

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
    /// What [`Turns::has_room`] said last.
    large_room: AtomicBool,
    /// There is room again.
    drained: Notify,
    /// What waits is taken from it.
    budget: Option<Arc<Budget>>,
}

#[derive(Debug, Default)]
struct State {
    buffer: BytesMut,
    large: Turns,
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
            large_room: AtomicBool::new(true),
            drained: Notify::new(),
            budget: None,
        }
    }

    /// What waits is taken from this budget, and frames are refused while that is used up and there is no room here either:
    /// whoever is sent them does not read.
    pub(crate) fn within(mut self, budget: &Arc<Budget>) -> Self {
        self.budget = Some(Arc::clone(budget));
        self
    }

    /// Whether little enough waits for the socket.
    pub(crate) fn has_room(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) <= self.room
    }

    /// Whether another large answer would be under way at once.
    pub(crate) fn has_room_for_large(&self) -> bool {
        self.large_room.load(Ordering::Acquire)
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
            if self.waiting.load(Ordering::Relaxed) > self.limit || !self.has_room() && self.is_used_up() {
                return Err(NotSent);
            }
            buffer.put_u32(0);
            encode(buffer);
            let Ok(length) = u32::try_from(buffer.len() - start - 4) else {
                buffer.truncate(start);
                return Err(NotSent);
            };
            buffer[start..start + 4].copy_from_slice(&length.to_be_bytes());
            self.waits(buffer.len() - start);
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

    /// A large answer to this request is to be pushed.
    pub(crate) fn announce_large(&self, request: u64) {
        self.change_large(|turns| turns.announce(request));
    }

    /// Sends a large answer that was announced, unless it was cancelled since.
    pub(crate) fn push_large(&self, reply: LargeReply) {
        self.change_large(|turns| turns.push(reply));
    }

    /// Sends no more of the large answer to this request.
    pub(crate) fn cancel_large(&self, request: u64) {
        self.change_large(|turns| turns.cancel(request));
    }

    fn change_large(&self, change: impl FnOnce(&mut Turns)) {
        let mut state = self.state.lock();
        // After the lock was taken: whoever closes it then clears it.
        if self.is_closed() {
            return;
        }
        change(&mut state.large);
        let has_room = state.large.has_room();
        let had_room = self.large_room.swap(has_room, Ordering::AcqRel);
        let wakes = !state.large.is_idle() && state.idle.take().is_some();
        drop(state);
        if has_room && !had_room {
            self.drained.notify_one();
        }
        if wakes {
            self.ready.notify_one();
        }
    }

    fn is_used_up(&self) -> bool {
        self.budget.as_ref().is_some_and(|budget| budget.is_used_up())
    }

    fn is_short(&self) -> bool {
        self.budget.as_ref().is_some_and(|budget| budget.is_short())
    }

    /// So many bytes more wait for the socket.
    fn waits(&self, bytes: usize) {
        self.waiting.fetch_add(bytes, Ordering::Relaxed);
        if let Some(budget) = &self.budget {
            budget.take(Use::Answers, bytes);
        }
    }

    /// The socket has taken so many bytes.
    fn written(&self, bytes: usize) {
        if let Some(budget) = &self.budget {
            budget.give_back(Use::Answers, bytes);
        }
        let before = self.waiting.fetch_sub(bytes, Ordering::Relaxed);
        if before > self.room && before - bytes <= self.room {
            self.drained.notify_one();
        }
    }

    /// The frames that wait.
    #[cfg(test)]
    pub(crate) fn take(&self) -> Vec<BytesMut> {
        let mut waiting = mem::take(&mut self.state.lock().buffer);
        self.written(waiting.len());
        loop {
            let Some(mut reply) = self.state.lock().large.take_next() else { break };
            let pieces = begin_part(&mut reply, &mut waiting);
            waiting.extend(pieces.into_iter().flatten());
            self.change_large(|turns| turns.give_back(reply));
        }
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
        let mut state = self.state.lock();
        state.idle = None;
        state.large = Turns::default();
        drop(state);
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
                // One part each time, however many small ones there are.
                let large = state.large.take_next();
                if writing.is_empty() && large.is_none() {
                    state.idle = Some(Arc::clone(&socket));
                }
                large
            };
            if writing.is_empty() && large.is_none() {
                self.ready.notified().await;
                continue;
            }
            if let Some(mut reply) = large {
                let before = writing.len();
                let pieces = begin_part(&mut reply, &mut writing);
                let bytes = writing.len() - before + pieces.iter().map(Bytes::len).sum::<usize>();
                self.waits(bytes);
                self.write(&socket, &mut writing).await?;
                for piece in pieces {
                    self.write(&socket, piece).await?;
                }
                self.change_large(|turns| turns.give_back(reply));
            } else {
                self.write(&socket, &mut writing).await?;
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
                    () = sleep(PROGRESS_WITHIN) => if self.is_short() {
                        let text = format!("it takes nothing for {PROGRESS_WITHIN:?} while memory is short");
                        return Err(Error::new(ErrorKind::TimedOut, text));
                    }
                },
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.written(self.waiting.load(Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use prometheus::IntCounter;

    use api::gaios::link::{PART_BYTES_MAX, PARTED_REPLIES_MAX, v1 as wire};
    use group_core::{LargeAnswer, LinkId};
    use keyspace::{KeyValue, RangeReply, Reply, Revision};
    use prost::Message as _;

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

    #[test]
    fn who_does_not_read_is_refused_when_the_budget_is_used_up() {
        let budget = Arc::new(Budget::new(100, IntCounter::new("ended", "ended").unwrap()));
        let outbox = |room| Outbox::new(1 << 30, room).within(&budget);
        let (full, other) = (outbox(10), outbox(10));
        full.push(|b| b.put_bytes(7, 86)).unwrap();
        full.push(|b| b.put_bytes(7, 6)).unwrap();
        assert_eq!(budget.taken(Use::Answers), 100);
        assert_eq!(full.push(|_| {}), Err(NotSent));
        other.push(|_| {}).unwrap();
        drop(full);
        assert_eq!(budget.taken(Use::Answers), 4);
        drop(other);
        assert_eq!(budget.taken(Use::Answers), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_ended_while_memory_is_short() {
        for (budget_bytes, is_ended) in [(40 << 20, true), (1 << 30, false)] {
            let budget = Arc::new(Budget::new(budget_bytes, IntCounter::new("ended", "ended").unwrap()));
            let outbox = Outbox::new(1 << 30, 1 << 30).within(&budget);
            let (_near, far) = connected().await;
            // More than sockets hold.
            outbox.push(|b| b.put_bytes(7, 32 << 20)).unwrap();
            let ended = tokio::time::timeout(PROGRESS_WITHIN * 10, outbox.run(far)).await;
            assert_eq!(ended.is_ok(), is_ended, "{ended:?}");
        }
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

    /// An answer with a value of so many bytes.
    fn large(request: u64, value_bytes: usize) -> LargeReply {
        let kv = KeyValue { value: vec![7; value_bytes].into(), ..KeyValue::default() };
        let range = RangeReply { revision: Revision(3), kvs: vec![kv], more: false, count: 1 };
        let gathered = Ok(Reply::Range(range)).into();
        LargeReply::new(LargeAnswer { link: LinkId(1), request, term: 5, gathered }).unwrap()
    }

    fn push_large(outbox: &Outbox, request: u64, value_bytes: usize) {
        outbox.announce_large(request);
        outbox.push_large(large(request, value_bytes));
    }

    /// Whose part comes next; 0 for what is small.
    async fn next(near: &mut TcpStream) -> u64 {
        let length = near.read_u32().await.unwrap() as usize;
        assert!(length < PART_BYTES_MAX + 100, "a part is short");
        let mut frame = vec![0; length];
        near.read_exact(&mut frame).await.unwrap();
        if frame == b"small" { 0 } else { wire::NodeFrame::decode(&frame[..]).unwrap().responses[0].id }
    }

    #[tokio::test]
    async fn a_small_answer_waits_for_no_large_one() {
        let outbox = Outbox::new(1 << 30, 1 << 20);
        let (mut near, far) = connected().await;
        push_large(&outbox, 1, 100 << 20);
        outbox.push(|b| b.extend_from_slice(b"small")).unwrap();
        assert!(outbox.has_room(), "what is large takes no room from what is small");
        let parts = (100 << 20) / PART_BYTES_MAX;
        let read = async {
            assert_eq!(next(&mut near).await, 0);
            for _ in 0..10 {
                assert_eq!(next(&mut near).await, 1);
            }
            outbox.push(|b| b.extend_from_slice(b"small")).unwrap();
            let mut before = 10;
            while next(&mut near).await == 1 {
                before += 1;
            }
            assert!(before < parts / 2, "only what the socket holds leaves before it, not {before} parts");
            for _ in before..=parts {
                assert_eq!(next(&mut near).await, 1);
            }
            outbox.close();
        };
        tokio::join!(outbox.run(far), read).0.unwrap();
    }

    #[tokio::test]
    async fn large_answers_take_turns_and_room_until_they_have_left() {
        let outbox = Outbox::new(1 << 30, 1 << 20);
        let (mut near, far) = connected().await;
        push_large(&outbox, 1, 20 << 20);
        push_large(&outbox, 2, 20 << 20);
        let read = async {
            for _ in 0..10 {
                next(&mut near).await;
            }
            for request in 3..=PARTED_REPLIES_MAX as u64 {
                assert!(outbox.has_room_for_large());
                push_large(&outbox, request, 1 << 20);
            }
            assert!(!outbox.has_room_for_large());
            outbox.cancel_large(2);
            assert!(outbox.has_room_for_large());
            push_large(&outbox, 9, 1 << 20);
            let (mut last, mut cancelled) = (0, 0);
            // All but the first and the one that was given up.
            let mut short = 7 * 5;
            while short > 0 {
                last = next(&mut near).await;
                cancelled += u32::from(last == 2);
                short -= u32::from(last > 2);
            }
            assert!(last > 2 && cancelled < 60, "what waits in the socket still comes: {cancelled}");
            outbox.drained().await;
            let mut rest = 0;
            while !outbox.state.lock().large.is_idle() || rest == 0 {
                assert_eq!(next(&mut near).await, 1, "the longest comes last");
                rest += 1;
            }
            outbox.close();
        };
        tokio::join!(outbox.run(far), read).0.unwrap();
    }

    #[tokio::test]
    async fn small_frames_that_do_not_end_keep_no_large_one_back() {
        // More than a socket takes at once, so that further small ones wait whenever it has taken all there were.
        let outbox = Outbox::new(1 << 30, 32 << 20);
        let (mut near, far) = connected().await;
        push_large(&outbox, 1, 1);
        let push = async {
            while !outbox.is_closed() {
                while outbox.has_room() && outbox.push(|b| b.put_bytes(b's', 50_000)).is_ok() {}
                tokio::task::yield_now().await;
            }
        };
        let read = async {
            let mut small = 0..3000;
            let mut frame = Vec::new();
            while frame.is_empty() || frame.len() == 50_000 {
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
    fn nothing_large_is_kept_for_a_link_that_is_gone() {
        let outbox = Outbox::new(1 << 30, 1 << 20);
        push_large(&outbox, 1, 1 << 20);
        outbox.announce_large(2);
        outbox.close();
        outbox.push_large(large(2, 1 << 20));
        assert!(outbox.state.lock().large.is_idle());
    }

    #[test]
    fn a_peer_that_does_not_read_is_noticed() {
        let outbox = Outbox::new(4, 4);
        outbox.push(|b| b.extend_from_slice(b"12345")).unwrap();
        assert_eq!(outbox.push(|b| b.extend_from_slice(b"6")), Err(NotSent));
    }
}
