//! What waits to be polled, and the rule "persist before send" as types.
//!
//! A [`Staged`] token exists only for a record that was put into the outbox. Messages that claim something durable
//! are [`Gated`], and can only be sent with a token; all others are [`Free`]. A message is one or the other, so a new
//! message has to be put into one list of this file before it can be sent at all.

use std::collections::BTreeSet;

use crate::message::{
    Accept, Accepted, Chosen, Commit, Fetch, Fortified, Fortify, Handoff, Nack, PreVote, PreVoteReply,
    Prepare, Promise, ReadIndex, ReadIndexReply, Recall, Recalled, Resigned, Vouched,
};
use crate::{Event, Message, NodeId, Output, PersistSeq, ReadOutcome, Record, Rejection, Send, Tag};

/// Stands for a record that is on its way to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Staged(PersistSeq);

impl Staged {
    /// For what recovery read back from the disk.
    pub(super) const RECOVERED: Staged = Staged(PersistSeq(0));
}

/// A message that claims something durable.
pub(super) trait Gated: Into<Message> {}
/// A message that claims nothing about the disk.
pub(super) trait Free: Into<Message> {}

macro_rules! messages {
    ($class:ident: $($name:ident)*) => {$(
        impl From<$name> for Message {
            fn from(message: $name) -> Message {
                Message::$name(message)
            }
        }
        impl $class for $name {}
    )*};
}

messages! { Gated: Prepare Promise Accepted }
messages! { Free: PreVote PreVoteReply Nack Accept Commit Fortify Fortified ReadIndex ReadIndexReply
Fetch Chosen Handoff Resigned Recall Recalled Vouched }

/// Everything [`crate::Engine::poll`] will hand out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Outbox {
    last: PersistSeq,
    durable: PersistSeq,
    records: Vec<(PersistSeq, Record)>,
    sends: Vec<Send>,
    reads: Vec<(Tag, ReadOutcome)>,
    rejected: Vec<(Tag, Rejection)>,
    events: Vec<Event>,
}

impl Outbox {
    /// Stages a write.
    pub(super) fn record(&mut self, record: Record) -> Staged {
        self.last = PersistSeq(self.last.0 + 1);
        self.records.push((self.last, record));
        Staged(self.last)
    }

    /// The newest write: what waits for it waits for everything staged so far.
    pub(super) fn last(&self) -> Staged {
        Staged(self.last)
    }

    /// The journal says that everything up to `seq` is on disk.
    pub(super) fn persisted(&mut self, seq: PersistSeq) {
        assert!(seq <= self.last, "I9: durable only what was staged");
        self.durable = self.durable.max(seq);
    }

    /// Whether this write is on disk.
    pub(super) fn is_durable(&self, staged: Staged) -> bool {
        staged.0 <= self.durable
    }

    /// Sends once `staged` is durable.
    pub(super) fn send_after(&mut self, staged: Staged, to: NodeId, message: impl Gated) {
        assert!(staged.0 <= self.last, "I9: a gate is a record of this life");
        // What is durable already waits for nothing.
        let gate = if self.is_durable(staged) { PersistSeq(0) } else { staged.0 };
        self.sends.push(Send { gate, to, message: message.into() });
    }

    /// Sends at once.
    pub(super) fn send_now(&mut self, to: NodeId, message: impl Free) {
        self.sends.push(Send { gate: PersistSeq(0), to, message: message.into() });
    }

    pub(super) fn read(&mut self, tag: Tag, outcome: ReadOutcome) {
        self.reads.push((tag, outcome));
    }

    pub(super) fn reject(&mut self, tag: Tag, rejection: Rejection) {
        self.rejected.push((tag, rejection));
    }

    pub(super) fn event(&mut self, event: Event) {
        self.events.push(event);
    }

    /// The disk failed: nothing more is written or said to anybody.
    pub(super) fn fence(&mut self) {
        self.records.clear();
        self.sends.clear();
    }

    pub(super) fn drain(&mut self, out: &mut Output) {
        let order = self.records.iter().is_sorted_by(|(one, _), (next, _)| one < next);
        debug_assert!(order, "records are written in the order in which they were staged");
        out.records.append(&mut self.records);
        out.sends.append(&mut self.sends);
        out.reads.append(&mut self.reads);
        out.rejected.append(&mut self.rejected);
        out.events.append(&mut self.events);
    }

    /// Whether every pending send waits for a write that exists.
    pub(super) fn check_invariants(&self) {
        let staged: BTreeSet<PersistSeq> = self.records.iter().map(|(seq, _)| *seq).collect();
        assert!(staged.len() == self.records.len(), "one number per record");
        assert!(self.durable <= self.last, "I9: durable only what was staged");
        assert!(self.sends.iter().all(|send| send.gate <= self.last), "I9: gates are records");
    }
}
