//! Large answers on their way over one link: in parts that are made when they are to leave, and in turns, so that a short one
//! does not wait for the whole of a long one, and what is small for no more than a part.

use std::collections::VecDeque;

use api::gaios::link::{PARTED_BYTES_MAX, PARTED_REPLIES_MAX, REPLY_BYTES_MAX};
use bytes::Bytes;
use keyspace::Pieces;

use crate::out::LargeAnswer;

const _: () = assert!(keyspace::ANSWER_BYTES_MAX < REPLY_BYTES_MAX, "what the state answers can be sent");

/// An answer of which parts are left.
#[derive(Debug)]
pub struct LargeReply {
    request: u64,
    term: u64,
    /// Of the whole.
    bytes: usize,
    left: usize,
    pieces: Pieces,
}

/// A part of an answer, as `wire::ReplyPart` in a `wire::Response` says it.
#[derive(Debug, PartialEq, Eq)]
pub struct Part {
    /// The request's number.
    pub request: u64,
    /// etcd's raft_term.
    pub term: u64,
    /// Of the whole answer, with its first part; 0 with the others.
    pub reply_bytes: u64,
    /// What it holds, one after the other.
    pub pieces: Vec<Bytes>,
}

impl LargeReply {
    /// Puts an answer together and measures it, which takes as long as it is; none if it is longer than one may be.
    #[must_use]
    pub fn new(answer: LargeAnswer) -> Option<LargeReply> {
        let LargeAnswer { request, term, gathered, .. } = answer;
        let (bytes, pieces) = gathered.into_pieces();
        if bytes > REPLY_BYTES_MAX {
            return None;
        }
        Some(LargeReply { request, term, bytes, left: bytes, pieces })
    }

    /// The next part, of so many bytes at most; there is one left.
    ///
    /// # Panics
    /// There is none left.
    pub fn next_part(&mut self, bytes_max: usize) -> Part {
        assert!(self.left > 0, "an answer without parts is not under way");
        let pieces = self.pieces.take(bytes_max);
        let reply_bytes = if self.left == self.bytes { self.bytes as u64 } else { 0 };
        let taken = pieces.iter().map(Bytes::len).sum::<usize>();
        self.left = self.left.checked_sub(taken).expect("the parts are as long as the whole");
        Part { request: self.request, term: self.term, reply_bytes, pieces }
    }
}

/// Whose turn it is. As many are under way as a gateway gathers at once; the others wait until one has left.
#[derive(Debug, Default)]
pub struct Turns {
    /// To come: the requests that they answer.
    announced: Vec<u64>,
    /// Under way, in the order of their turns.
    turns: VecDeque<LargeReply>,
    /// The one whose part is being written, and how long it is, while it is wanted.
    current: Option<(u64, usize)>,
    waiting: VecDeque<LargeReply>,
}

impl Turns {
    /// An answer to this request is to come.
    pub fn announce(&mut self, request: u64) {
        self.announced.push(request);
    }

    /// It has come, unless it was cancelled.
    pub fn push(&mut self, reply: LargeReply) {
        if take_where(&mut self.announced, |request| *request == reply.request) {
            self.waiting.push_back(reply);
            self.begin_waiting();
        }
    }

    /// The next one is to send a part. To be given back.
    pub fn take_next(&mut self) -> Option<LargeReply> {
        debug_assert!(self.current.is_none(), "one part is written at a time");
        let next = self.turns.pop_front()?;
        self.current = Some((next.request, next.bytes));
        Some(next)
    }

    /// It has sent a part.
    pub fn give_back(&mut self, reply: LargeReply) {
        let is_wanted = self.current.take().is_some();
        if is_wanted && reply.left > 0 {
            self.turns.push_back(reply);
        }
        self.begin_waiting();
    }

    /// Nobody waits for it any more.
    pub fn cancel(&mut self, request: u64) {
        self.announced.retain(|announced| *announced != request);
        self.turns.retain(|reply| reply.request != request);
        self.waiting.retain(|reply| reply.request != request);
        // The gateway takes what is being written, and drops it.
        if self.current.is_some_and(|(current, _)| current == request) {
            self.current = None;
        }
        self.begin_waiting();
    }

    /// Whether another one would be under way at once.
    #[must_use]
    pub fn has_room(&self) -> bool {
        let (count, bytes) = self.under_way();
        self.waiting.is_empty()
            && count + self.announced.len() < PARTED_REPLIES_MAX
            && bytes < PARTED_BYTES_MAX
    }

    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.turns.is_empty()
    }

    fn begin_waiting(&mut self) {
        while let Some(first) = self.waiting.front() {
            let (count, _) = self.under_way();
            if count >= PARTED_REPLIES_MAX || self.shared_bytes_with(first.bytes) > PARTED_BYTES_MAX {
                return;
            }
            self.turns.extend(self.waiting.pop_front());
        }
    }

    /// How many are under way, and the bytes of all of them but the longest.
    fn under_way(&self) -> (usize, usize) {
        (self.lengths().count(), self.shared_bytes_with(0))
    }

    /// The bytes of all of them but the longest, with one more that has so many.
    fn shared_bytes_with(&self, more: usize) -> usize {
        let lengths = || self.lengths().chain([more]);
        lengths().sum::<usize>() - lengths().max().unwrap_or(0)
    }

    fn lengths(&self) -> impl Iterator<Item = usize> {
        self.turns.iter().map(|reply| reply.bytes).chain(self.current.map(|(_, bytes)| bytes))
    }
}

/// Takes out the first for which that holds; false if there is none.
fn take_where(list: &mut Vec<u64>, is_it: impl Fn(&u64) -> bool) -> bool {
    let found = list.iter().position(is_it);
    if let Some(found) = found {
        list.swap_remove(found);
    }
    found.is_some()
}

#[cfg(test)]
mod tests {
    use keyspace::{KeyValue, RangeReply, Reply, Revision};

    use super::*;
    use crate::env::LinkId;

    const PART_BYTES: usize = 1000;

    fn large(request: u64, value_bytes: usize) -> LargeReply {
        let kv = KeyValue { value: vec![7; value_bytes].into(), ..KeyValue::default() };
        let range = RangeReply { revision: Revision(3), kvs: vec![kv], more: false, count: 1 };
        let gathered = Ok(Reply::Range(range)).into();
        LargeReply::new(LargeAnswer { link: LinkId(1), request, term: 5, gathered }).unwrap()
    }

    #[test]
    fn the_parts_make_up_the_answer_and_the_first_says_how_long_it_is() {
        let mut reply = large(9, 2 * PART_BYTES);
        let bytes = reply.bytes as u64;
        let mut parts = Vec::new();
        while reply.left > 0 {
            let Part { request, term, reply_bytes, pieces } = reply.next_part(PART_BYTES);
            assert_eq!((request, term), (9, 5));
            parts.push((reply_bytes, pieces.concat().len()));
        }
        let rest = bytes as usize - 2 * PART_BYTES;
        assert_eq!(parts, [(bytes, PART_BYTES), (0, PART_BYTES), (0, rest)]);
    }

    fn pushed(turns: &mut Turns, request: u64, value_bytes: usize) {
        turns.announce(request);
        turns.push(large(request, value_bytes));
    }

    /// The request whose part is next.
    fn step(turns: &mut Turns) -> Option<u64> {
        let mut reply = turns.take_next()?;
        let part = reply.next_part(PART_BYTES);
        turns.give_back(reply);
        Some(part.request)
    }

    #[test]
    fn they_take_turns_and_one_that_is_cancelled_stops_between_parts() {
        let mut turns = Turns::default();
        for request in [1, 2, 3] {
            pushed(&mut turns, request, 2 * PART_BYTES);
        }
        turns.cancel(2);
        assert_eq!([(); 3].map(|()| step(&mut turns)), [Some(1), Some(3), Some(1)]);
        let current = turns.take_next().unwrap();
        turns.cancel(3);
        turns.give_back(current);
        assert_eq!([(); 2].map(|()| step(&mut turns)), [Some(1), None]);
        turns.announce(4);
        turns.cancel(4);
        turns.push(large(4, 1));
        assert!(turns.is_idle() && turns.has_room());
    }

    #[test]
    fn those_under_way_are_bounded_in_number_and_in_bytes() {
        let mut turns = Turns::default();
        for request in 1..=20 {
            assert_eq!(turns.has_room(), request <= PARTED_REPLIES_MAX as u64);
            pushed(&mut turns, request, 10);
        }
        assert_eq!((turns.turns.len(), turns.waiting.len()), (PARTED_REPLIES_MAX, 12));
        let all: Vec<_> = std::iter::from_fn(|| step(&mut turns)).collect();
        assert_eq!(all, (1..=20).collect::<Vec<_>>());

        let half = PARTED_BYTES_MAX / 2 + 1;
        for (request, under_way) in [(1, 1), (2, 2), (3, 2)] {
            pushed(&mut turns, request, half);
            assert_eq!(turns.turns.len(), under_way);
        }
        assert!(!turns.has_room());
        turns.cancel(1);
        assert_eq!((turns.turns.len(), turns.waiting.len()), (2, 0));
        for request in 4..=PARTED_REPLIES_MAX as u64 + 1 {
            turns.announce(request);
        }
        assert!(!turns.has_room(), "those that are announced count");
    }
}
