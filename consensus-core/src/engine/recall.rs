//! What a damaged disk may have forgotten, and how that is made up for (protocol-aware recovery, after Alagappan et
//! al., FAST 2018).
//!
//! **A forgotten promise.** To vote at b after promising b' > b would break the candidate at b'. That candidate made
//! its own promise durable before it asked, so its node knows b' today. This node therefore acts as no acceptor at all
//! until every other member has told what it has promised; the highest of these is not below anything forgotten, but
//! for candidacies of its own that nobody heard of. It promises more than any of them, so that none is used twice.
//! Some of the others may have forgotten theirs as well, as long as all who have are no phase-1 quorum: then whoever came
//! to lead with a forgotten promise asked one that knows of it, and whoever did not can do no more, since its own node has
//! forgotten that it ran. What the others know must be told after that: each one more that has forgotten begins the
//! question anew.
//!
//! **Forgotten votes.** Until they are made up for, promises declare them, and the candidate does not count this node
//! in phase 1 for any slot from there on. "No vote" would be a lie that could cost a chosen value.
//! They are made up for once this node, having promised b, has heard from the leader at b, *after its own restart*, how
//! far it has proposed (N), and holds the committed value or a vote at b for every slot up to N:
//! - a forgotten vote at b was at a slot up to N, and is there again;
//! - a forgotten vote below b matters only where something was chosen below b. Phase 1 of b found all of that, and it
//!   lies at or below N, where this node now holds what b made of it;
//! - no vote above b can have been forgotten, since b is promised.
//!
//! So from here on its answers are as good as if nothing had been lost.

use std::collections::BTreeMap;

use super::{Engine, State};
use crate::message::{Recall as RecallMessage, Recalled, Vouched};
use crate::mutant::mutant;
use crate::{Ballot, Event, Liveness, Mono, NodeId, NodeSet, Record, Slot};

/// More candidacies of this node in one incarnation than can be forgotten without anybody else having heard of the last: each
/// took a round of pre-votes and tens of milliseconds. Taken once for each incarnation, since what a former incarnation
/// promised after it had forgotten something, and then forgot again, nobody need have heard of either.
pub(super) const FORGOTTEN_ROUNDS_MAX: u64 = 1 << 10;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Recall {
    /// Votes from here on may have been forgotten.
    pub(super) faulty_from: Slot,
    /// A promise may have been forgotten.
    pub(super) promise_lost: bool,
    /// What every other member has promised, if it knows; kept while `promise_lost`.
    answers: BTreeMap<NodeId, Option<Ballot>>,
    /// A survivor has vouched for all, or this node is one.
    pub(super) vouched: bool,
    /// It was told that too many have forgotten what they promised.
    told_too_many: bool,
    /// The leader at this ballot has proposed up to this slot.
    proposed: Option<(Ballot, Slot)>,
    ask_at: Mono,
    /// The incarnation that asks, once known, and which of its questions this is.
    incarnation: u64,
    question: u64,
}

impl Recall {
    pub(super) fn new(faulty_from: Slot, promise_lost: bool, vouched: bool, now: Mono) -> Recall {
        Recall {
            faulty_from,
            promise_lost,
            answers: BTreeMap::new(),
            vouched,
            told_too_many: false,
            proposed: None,
            ask_at: now,
            incarnation: 0,
            question: 0,
        }
    }

    pub(super) fn deadline(&self) -> Mono {
        self.ask_at
    }

    /// Who has forgotten what it promised, `own` included, once it was told that these are too many.
    pub(super) fn stuck(&self, own: NodeId) -> Option<NodeSet> {
        let stuck = self.promise_lost && self.told_too_many && !self.vouched;
        stuck.then(|| self.forgetful(own))
    }

    fn forgetful(&self, own: NodeId) -> NodeSet {
        let others = self.answers.iter().filter(|(_, answer)| answer.is_none()).map(|(node, _)| *node);
        others.chain([own]).collect()
    }
}

impl Engine {
    pub(super) fn on_recall_timeout(&mut self, now: Mono, liveness: &Liveness) {
        let Some(recall) = self.recall.as_mut().filter(|recall| now >= recall.ask_at) else { return };
        recall.incarnation = liveness.incarnation();
        recall.ask_at = now.after(self.options.timing.retransmit * 2);
        let leader = self.acceptor.promised().node;
        let ask = RecallMessage { incarnation: recall.incarnation, question: recall.question };
        for node in self.config.voters.iter().filter(|node| *node != self.options.node) {
            let wanted = if recall.promise_lost {
                // Once too many have forgotten, everybody is asked: one may have come to vouch.
                recall.told_too_many || recall.answers.get(&node).is_none_or(Option::is_none)
            } else {
                node == leader
            };
            if wanted && liveness.is_up(now, node) {
                self.outbox.send_now(node, ask.clone());
            }
        }
        self.restore_when_all_answered();
    }

    pub(super) fn handle_recall(&mut self, from: NodeId, message: &RecallMessage) {
        let RecallMessage { incarnation, question } = *message;
        if self.promise_lost() {
            self.outbox.send_now(from, Recalled { incarnation, question, promised: None, proposed: None });
            return;
        }
        let promised = self.acceptor.promised();
        let proposed = match &self.state {
            State::Leader(leader) if leader.ballot == promised => Some(Slot(leader.next.0 - 1)),
            State::Leader(_) | State::Follower(_) | State::PreCandidate(_) | State::Candidate(_) => None,
        };
        self.outbox.send_now(from, Recalled { incarnation, question, promised: Some(promised), proposed });
        if self.survivor {
            self.outbox.send_now(from, Vouched { incarnation });
        }
    }

    pub(super) fn handle_vouched(&mut self, from: NodeId, message: &Vouched) {
        let known = |recall: &&mut Recall| {
            recall.incarnation == message.incarnation
                && recall.answers.get(&from).is_some_and(Option::is_some)
        };
        if let Some(recall) = self.recall.as_mut().filter(known) {
            recall.vouched = true;
            self.restore_when_all_answered();
            self.try_heal();
        }
    }

    pub(super) fn handle_recalled(&mut self, from: NodeId, message: &Recalled) {
        let current = |recall: &&mut Recall| {
            (recall.incarnation, recall.question) == (message.incarnation, message.question)
        };
        let Some(recall) = self.recall.as_mut().filter(current) else { return };
        if recall.promise_lost {
            let before = recall.answers.insert(from, message.promised);
            if message.promised.is_none() && before != Some(None) {
                recall.answers.retain(|_, answer| answer.is_none());
                recall.question += 1;
                recall.ask_at = self.clock;
            }
        }
        if let Some(promised) = message.promised.filter(|promised| promised.node == from)
            && let Some(proposed) = message.proposed
            && recall.proposed.is_none_or(|(ballot, _)| promised > ballot)
        {
            recall.proposed = Some((promised, proposed));
        }
        self.restore_when_all_answered();
        self.try_heal();
    }

    /// Restores the promise once every other member has answered, and enough of them know what they promised.
    fn restore_when_all_answered(&mut self) {
        let Some(recall) = self.recall.as_mut().filter(|recall| recall.promise_lost) else { return };
        let config = &self.config;
        let own = self.options.node;
        if config.voters.iter().all(|node| node == own || recall.answers.contains_key(&node)) {
            let forgetful = recall.forgetful(own);
            if forgetful.len() > 1 && config.is_q1(&forgetful) && !recall.vouched {
                if !std::mem::replace(&mut recall.told_too_many, true) {
                    self.outbox.event(Event::TooManyForgot { nodes: forgetful });
                }
                return;
            }
            let answered = recall.answers.values().flatten().copied().max().unwrap_or_default();
            recall.promise_lost = false;
            // What this node promised to its own candidacies nobody else may know, and none may be used again.
            let forgotten = FORGOTTEN_ROUNDS_MAX.saturating_mul(recall.incarnation.max(1));
            let round = answered.round.saturating_add(forgotten);
            let restored = Ballot { round, node: self.options.node };
            assert!(restored > answered, "I1: above all that anybody has promised");
            self.restore_promise(restored);
            self.outbox.record(Record::Healed { promised: self.acceptor.promised(), relied_upto: None });
        }
    }

    /// This node leads at a new ballot: it has proposed up to here itself.
    pub(super) fn recalled_by_leading(&mut self, ballot: Ballot, recovered: Slot) {
        assert_eq!(ballot, self.acceptor.promised(), "I1: who leads has promised nothing higher");
        if let Some(recall) = &mut self.recall {
            recall.proposed = Some((ballot, recovered));
        }
    }

    /// Forgets the damage once what is held makes up for it.
    pub(super) fn try_heal(&mut self) {
        let Some(recall) = &self.recall else { return };
        let promised = self.acceptor.promised();
        let target = match recall.proposed {
            _ if mutant!(self.options, HealedTooSoon) => Some(self.log.commit),
            Some((ballot, upto)) if ballot == promised => Some(upto),
            Some(_) | None => None,
        };
        let Some(upto) = target.filter(|upto| self.acceptor.upto >= *upto) else { return };
        assert!(
            upto <= self.log.last(),
            "I18: a committed value or a vote stands for each that was forgotten"
        );
        if !recall.promise_lost && self.outbox.is_durable(self.acceptor.upto_staged) {
            self.recall = None;
            self.relied_upto = self.relied_upto.max(upto);
            self.outbox.record(Record::Healed { promised, relied_upto: Some(self.relied_upto) });
            self.outbox.event(Event::Healed);
        }
    }
}
