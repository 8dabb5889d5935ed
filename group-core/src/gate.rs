//! Where messages wait for the records that they speak of (persist before send).

use std::collections::VecDeque;

use consensus_core::{PersistSeq, Send};

/// See the module. Whoever hears of durable records opens it, and sends what comes out, before the replica hears of them.
#[derive(Debug, Default)]
pub struct Gate {
    /// Records up to this number are durable.
    durable: PersistSeq,
    /// In the order of their records.
    held: VecDeque<Send>,
    /// The replica has something to do once this one is durable.
    awaited: PersistSeq,
}

impl Gate {
    /// Records up to this number are durable.
    #[must_use]
    pub fn durable(&self) -> PersistSeq {
        self.durable
    }

    /// Gives the message back if it may leave now.
    #[must_use]
    pub fn pass(&mut self, send: Send) -> Option<Send> {
        if send.gate <= self.durable {
            return Some(send);
        }
        self.held.push_back(send);
        None
    }

    /// The replica wants to hear at once when this record is durable; see [`crate::Out::await_durable`].
    pub fn await_durable(&mut self, seq: PersistSeq) {
        assert!(seq >= self.awaited, "records are numbered in their order");
        self.awaited = seq;
    }

    /// Records up to `upto` are durable: hands over what waited for them. Returns whether the replica has to hear of it now.
    pub fn open(&mut self, upto: PersistSeq, mut send: impl FnMut(Send)) -> bool {
        assert!(upto >= self.durable, "what is durable stays so: {upto:?} after {:?}", self.durable);
        let awaited = self.durable < self.awaited;
        self.durable = upto;
        while let Some(held) = self.held.pop_front_if(|held| held.gate <= upto) {
            send(held);
        }
        awaited
    }
}

#[cfg(test)]
mod tests {
    use consensus_core::message::Commit;
    use consensus_core::{Ballot, Message, NodeId, Slot};

    use super::*;

    fn send(to: u32, gate: u64) -> Send {
        let commit = Commit { ballot: Ballot::default(), commit: Slot(0) };
        Send { to: NodeId(to), gate: PersistSeq(gate), message: Message::Commit(commit) }
    }

    #[test]
    fn a_message_waits_for_its_record() {
        let mut gate = Gate::default();
        assert!(gate.pass(send(1, 0)).is_some());
        assert!(gate.pass(send(2, 3)).is_none() && gate.pass(send(3, 5)).is_none());
        let mut sent = Vec::new();
        gate.open(PersistSeq(4), |send| sent.push(send.to.0));
        assert_eq!(sent, [2]);
        assert!(gate.pass(send(4, 4)).is_some());
        gate.open(PersistSeq(5), |send| sent.push(send.to.0));
        assert_eq!(sent, [2, 3]);
    }

    #[test]
    fn a_replica_hears_at_once_only_of_what_it_waits_for() {
        let mut gate = Gate::default();
        assert!(!gate.open(PersistSeq(1), drop));
        gate.await_durable(PersistSeq(3));
        assert!(gate.open(PersistSeq(3), drop));
        assert!(!gate.open(PersistSeq(4), drop));
    }
}
