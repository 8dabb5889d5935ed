//! Linearizable reads without a log entry: under the lease, or by a read-index round (Ongaro §6.4).
//!
//! A round asks the voters whether they have promised anybody else. Once so many said no that every phase 1 would
//! have needed one of them, no other leader had come to power when the round began, and the commit index of that
//! moment is not behind anything that was acknowledged before. Reads that come while a round is on its way wait for
//! the next: its beginning must not lie before theirs.

use super::{Engine, State};
use crate::message::{ReadIndex, ReadIndexReply};
use crate::mutant::mutant;
use crate::{Liveness, Mono, NodeId, NodeSet, ReadMode, ReadOutcome, Slot, Tag};

/// Reads that may wait, beyond which they are sent elsewhere.
const WAITING_MAX: usize = 1 << 16;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Reads {
    /// For the next round.
    waiting: Vec<Tag>,
    /// Numbers the rounds.
    round: u64,
    current: Option<Round>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Round {
    tags: Vec<Tag>,
    point: Slot,
    confirmed: NodeSet,
    retry_at: Mono,
}

impl Reads {
    pub(super) fn deadline(&self) -> Option<Mono> {
        self.current.as_ref().map(|round| round.retry_at)
    }

    /// Every read that has not ended.
    pub(super) fn tags(self) -> impl Iterator<Item = Tag> {
        self.current.into_iter().flat_map(|round| round.tags).chain(self.waiting)
    }
}

impl Engine {
    pub(super) fn read(&mut self, now: Mono, liveness: &Liveness, tag: Tag, mode: ReadMode) {
        if mode == ReadMode::Lease
            && let Some(slot) = self.lease_read(now, liveness)
        {
            self.outbox.read(tag, ReadOutcome::At(slot));
            return;
        }
        match &mut self.state {
            State::Leader(leader) if leader.reads.waiting.len() < WAITING_MAX => {
                leader.reads.waiting.push(tag)
            }
            State::Leader(_) => self.outbox.read(tag, ReadOutcome::Lost),
            State::Follower(_) | State::PreCandidate(_) | State::Candidate(_) => {
                let hint = if self.fenced { None } else { self.leader_hint() };
                self.outbox.read(tag, ReadOutcome::NotLeader { hint });
            }
        }
    }

    /// Starts a round for all reads that wait, unless one is on its way.
    pub(super) fn start_read_round(&mut self) {
        let State::Leader(leader) = &mut self.state else { return };
        let ready = leader.ready || mutant!(self.options, ReadBeforeReady);
        let reads = &mut leader.reads;
        if !ready || reads.current.is_some() || reads.waiting.is_empty() {
            return;
        }
        let known = self.log.commit >= leader.first_own || mutant!(self.options, ReadBeforeReady);
        assert!(known, "I11: a read point is not behind what was committed before this leadership");
        reads.round += 1;
        reads.current = Some(Round {
            tags: std::mem::take(&mut reads.waiting),
            point: self.log.commit,
            confirmed: [self.options.node].into_iter().collect(),
            retry_at: self.clock,
        });
        if !self.finish_read_round() {
            self.on_read_timeout(self.clock);
        }
    }

    /// Asks those who have not confirmed the round.
    pub(super) fn on_read_timeout(&mut self, now: Mono) {
        let State::Leader(leader) = &mut self.state else { return };
        let number = leader.reads.round;
        let Some(round) = leader.reads.current.as_mut().filter(|round| now >= round.retry_at) else { return };
        round.retry_at = now.after(self.options.timing.retransmit);
        for node in self.config.voters.iter().filter(|node| !round.confirmed.contains(*node)) {
            self.outbox.send_now(node, ReadIndex { ballot: leader.ballot, round: number });
        }
    }

    pub(super) fn handle_read_index(&mut self, from: NodeId, message: &ReadIndex) {
        if message.ballot.node != from || self.promise_lost() {
            return;
        }
        if message.ballot < self.acceptor.promised() {
            self.nack(from, message.ballot);
        } else {
            self.outbox.send_now(from, ReadIndexReply { ballot: message.ballot, round: message.round });
        }
    }

    pub(super) fn handle_read_index_reply(&mut self, from: NodeId, message: &ReadIndexReply) {
        let State::Leader(leader) = &mut self.state else { return };
        if leader.ballot == message.ballot
            && leader.reads.round == message.round
            && let Some(round) = &mut leader.reads.current
        {
            round.confirmed.insert(from);
            self.finish_read_round();
        }
    }

    /// Ends the round if it is confirmed.
    fn finish_read_round(&mut self) -> bool {
        let State::Leader(leader) = &mut self.state else { return false };
        let config = &self.config;
        let confirmed =
            |round: &Round| config.blocks_q1(&round.confirmed) || mutant!(self.options, ReadIndexUnconfirmed);
        let Some(round) = leader.reads.current.take_if(|round| confirmed(round)) else { return false };
        assert!(round.point <= self.log.commit, "I10: commits are not taken back");
        for tag in round.tags {
            self.outbox.read(tag, ReadOutcome::At(round.point));
        }
        true
    }
}
