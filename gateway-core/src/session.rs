//! The numbers under which a gateway's writes to one group are applied once.
//!
//! Each write takes the next number of the session and keeps it through every retry. A number is *done* when its
//! caller was answered or gave up. `ack_upto` is the number below which all are done: the group may forget their
//! results, and never applies them later.

use std::collections::VecDeque;

use keyspace::{SESSION_WINDOW, SessionId};

use crate::mutant::mutant;

/// The session of this gateway in one group.
#[derive(Debug, Default)]
pub struct Session {
    open: Option<Open>,
    /// How many sessions were opened: tells numbers of an old session from those of the open one.
    generation: u64,
}

#[derive(Debug)]
struct Open {
    id: SessionId,
    /// Numbers up to this one are done.
    ack_upto: u64,
    /// For the numbers above: whether each is done. The first one is not, so `ack_upto` is as high as can be.
    window: VecDeque<bool>,
}

/// A write's place in a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number {
    /// The session.
    pub session: SessionId,
    /// The number in it, from 1.
    pub seq: u64,
    generation: u64,
}

/// Why there is no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoNumber {
    /// No session is open.
    Closed,
    /// Too many numbers are not done.
    Full,
}

impl Session {
    /// The open session.
    pub fn id(&self) -> Option<SessionId> {
        self.open.as_ref().map(|open| open.id)
    }

    /// The group opened a session. The same id again changes nothing.
    pub fn handle_opened(&mut self, id: SessionId) {
        if self.id() != Some(id) {
            self.generation += 1;
            self.open = Some(Open { id, ack_upto: 0, window: VecDeque::new() });
        }
    }

    /// The group says that session `id` does not exist. Returns whether that was the open one.
    pub fn handle_expired(&mut self, id: SessionId) -> bool {
        let was_open = self.id() == Some(id);
        if was_open {
            self.open = None;
        }
        was_open
    }

    /// Whether a number can be had.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Whether a number can be had later, but not now.
    pub fn is_full(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.window.len() as u64 >= SESSION_WINDOW)
    }

    /// Takes the next number. An error while no session is open, or while too many numbers are under way.
    pub fn take(&mut self) -> Result<Number, NoNumber> {
        if self.is_full() {
            return Err(NoNumber::Full);
        }
        let open = self.open.as_mut().ok_or(NoNumber::Closed)?;
        open.window.push_back(false);
        let mut seq = open.ack_upto + open.window.len() as u64;
        if mutant!(NumberGivenTwice) && open.window.len() == 2 {
            seq -= 1;
        }
        assert!(seq > open.ack_upto || mutant!(NumberGivenTwice), "a number that is handed out is not done");
        assert!(open.window.len() as u64 <= SESSION_WINDOW, "the replicas keep the results of no more");
        Ok(Number { session: open.id, seq, generation: self.generation })
    }

    /// Whether `number` is of the open session.
    pub fn is_current(&self, number: Number) -> bool {
        self.open.is_some() && self.generation == number.generation
    }

    /// All numbers of `number`'s session up to this one are done, as far as is known.
    pub fn ack_upto(&self, number: Number) -> u64 {
        self.open.as_ref().filter(|_| self.is_current(number)).map_or(0, |open| open.ack_upto)
    }

    /// The caller of `number` was answered or gave up. Once per number. Returns how many numbers can be had that could
    /// not before.
    pub fn done(&mut self, number: Number) -> u64 {
        if !self.is_current(number) {
            return 0;
        }
        let Some(open) = self.open.as_mut() else { return 0 };
        assert_eq!(open.id, number.session, "a number of this generation is of this session");
        let before = open.ack_upto;
        debug_assert!(number.seq > open.ack_upto, "a number is done once");
        let index = (number.seq - open.ack_upto - 1) as usize;
        if let Some(done) = open.window.get_mut(index) {
            *done = true;
        }
        while open.window.front() == Some(&true) {
            open.window.pop_front();
            open.ack_upto += 1;
        }
        assert!(open.window.front() != Some(&true), "what is acknowledged leaves the window");
        open.ack_upto - before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> Session {
        let mut session = Session::default();
        assert_eq!(session.take(), Err(NoNumber::Closed));
        session.handle_opened(SessionId(7));
        session
    }

    #[test]
    fn the_low_mark_follows_the_lowest_number_that_is_not_done() {
        let mut session = open();
        let numbers: Vec<_> = (0..4).map(|_| session.take().unwrap()).collect();
        assert_eq!(numbers.iter().map(|number| number.seq).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(session.done(numbers[1]), 0);
        assert_eq!(session.done(numbers[3]), 0);
        assert_eq!(session.done(numbers[0]), 2);
        assert_eq!(session.ack_upto(numbers[2]), 2);
        assert_eq!(session.done(numbers[2]), 2);
        let next = session.take().unwrap();
        assert_eq!((next.seq, session.ack_upto(next)), (5, 4));
    }

    #[test]
    fn numbers_of_a_lost_session_do_not_touch_the_next_one() {
        let mut session = open();
        let old = session.take().unwrap();
        assert!(!session.handle_expired(SessionId(6)), "another session");
        assert!(session.handle_expired(SessionId(7)));
        assert!(!session.is_open());
        session.handle_opened(SessionId(9));
        let new = session.take().unwrap();
        assert!(!session.is_current(old));
        assert_eq!(session.done(old), 0);
        assert_eq!(session.ack_upto(old), 0);
        assert_eq!(session.ack_upto(new), 0);
        assert_eq!(session.done(new), 1);
    }

    #[test]
    fn opening_the_same_session_again_keeps_its_numbers() {
        let mut session = open();
        let number = session.take().unwrap();
        session.handle_opened(SessionId(7));
        assert!(session.is_current(number));
        assert_eq!(session.done(number), 1);
    }

    #[test]
    fn the_window_is_bounded() {
        let mut session = open();
        let first = session.take().unwrap();
        for _ in 1..SESSION_WINDOW {
            session.take().unwrap();
        }
        assert_eq!(session.take(), Err(NoNumber::Full));
        session.done(first);
        assert_eq!(session.take().unwrap().seq, SESSION_WINDOW + 1);
    }
}
