//! The acceptor: promises, votes, and whom it has promised to name as lease holders.

use std::collections::BTreeMap;

use super::log::{Entry, Log};
use super::outbox::Staged;
use super::{Engine, State};
use crate::message::{Accept, Accepted, Commit, Nack, Prepare, Promise};
use crate::mutant::mutant;
use crate::{
    Ballot, Config, Epoch, Event, Liveness, Mono, NodeId, NodeSet, Options, Record, Slot, Suspicion, Value,
    Vote, VoteBallot,
};

/// Committed values travel inside a promise up to this size; beyond, the candidate fetches them.
const PROMISED_FACTS_BYTES_MAX: usize = 256 << 10;
/// A promise is split into parts of about this size.
const PROMISE_PART_BYTES: usize = 1 << 20;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Acceptor {
    promised: Ballot,
    /// Every slot up to here is committed or has a vote at exactly `promised`, with its value.
    pub(super) upto: Slot,
    /// Makes all of that durable.
    pub(super) upto_staged: Staged,
    /// The leader waits for an answer.
    acknowledge: bool,
    /// Who holds leases from this node; sampled when the last vote was staged. After a start, whoever might.
    granted: NodeSet,
    /// Whom this node fortified, and under which epoch of its support for them. Forgotten by a restart, which
    /// quarantine makes up for.
    grants: BTreeMap<NodeId, Epoch>,
}

impl Acceptor {
    pub(super) fn new(promised: Ballot, log: &Log, config: &Config, options: &Options) -> Acceptor {
        let mut acceptor = Acceptor {
            promised,
            upto: log.commit,
            upto_staged: Staged::RECOVERED,
            acknowledge: false,
            granted: config.lease_eligible.clone(),
            grants: BTreeMap::new(),
        };
        // The leader may still be there and wait for what this node had voted for.
        acceptor.advance(log, options);
        acceptor
    }

    pub(super) fn promised(&self) -> Ballot {
        self.promised
    }

    /// From now on `holder` is named in every vote, while this node supports it under `epoch`.
    pub(super) fn grant(&mut self, holder: NodeId, epoch: Epoch) {
        let before = self.grants.insert(holder, epoch);
        assert!(
            before.is_none_or(|before| before <= epoch),
            "an epoch of support that is over does not return"
        );
    }

    /// Who held a lease from this node when the last vote was staged.
    pub(super) fn granted(&self) -> &NodeSet {
        &self.granted
    }

    /// Moves `upto` as far as the log allows.
    fn advance(&mut self, log: &Log, options: &Options) {
        self.upto = self.upto.max(log.commit);
        let vote_ballot = VoteBallot::classic(self.promised);
        let any_ballot = mutant!(options, OldBallotCounted);
        if mutant!(options, UptoSkipsHoles) {
            self.upto = self.upto.max(log.last());
        }
        while let Some(entry) = log.get(self.upto.next())
            && entry.value.is_some()
            && (entry.vote_ballot == vote_ballot || (any_ballot && entry.is_vote()))
        {
            self.upto = self.upto.next();
            self.upto_staged = self.upto_staged.max(entry.staged);
        }
        assert!(self.upto <= log.last(), "what is acknowledged has an entry, or is in the snapshot");
    }

    pub(super) fn check_invariants(&self, log: &Log, config: &Config) {
        assert!(self.upto >= log.commit, "upto covers what is committed");
        assert!(self.granted.is_subset(&config.voters), "leases are granted to voters alone");
        for slot in (log.commit.0 + 1..=log.last().0).map(Slot) {
            let vote_ballot = log.get(slot).map_or(VoteBallot::default(), |entry| entry.vote_ballot);
            assert!(vote_ballot.ballot <= self.promised, "I1: a vote promises its ballot");
        }
    }
}

impl Engine {
    /// Phase 1a. Stickiness is the business of pre-vote; here only safety counts.
    pub(super) fn handle_prepare(&mut self, now: Mono, from: NodeId, message: &Prepare) {
        if message.ballot.node != from || self.promise_lost() {
            return;
        }
        if message.ballot < self.acceptor.promised || message.config_epoch < self.config.epoch {
            self.doubt_promise(message.ballot);
            self.nack(from, message.ballot);
            return;
        }
        if message.ballot > self.acceptor.promised {
            self.become_follower(None);
            self.promise(message.ballot);
            // Somebody else runs if this candidate does not get there.
            self.await_election(now);
        }
        assert_eq!(self.acceptor.promised, message.ballot, "P1: what is promised is what was asked for");
        assert!(!matches!(self.state, State::Leader(_)), "I1: nobody leads below what it has promised");
        self.send_promise(from, message.from);
    }

    /// Raises the promise. The caller has made sure that this node leads nothing lower any more.
    pub(super) fn promise(&mut self, ballot: Ballot) -> Staged {
        assert!(ballot > self.acceptor.promised, "I1: promises only grow");
        assert!(!matches!(self.state, State::Leader(_)), "I1: who leads promises to nobody else");
        assert!(!self.promise_lost(), "I18: who has forgotten a promise gives none");
        let staged = self.outbox.record(Record::Promised { ballot });
        self.enter_ballot(ballot);
        staged
    }

    fn enter_ballot(&mut self, ballot: Ballot) {
        let lower = ballot < self.acceptor.promised;
        assert!(!lower || mutant!(self.options, PromiseUnchecked), "I1: promises only grow");
        self.acceptor.promised = ballot;
        self.acceptor.acknowledge = false;
        self.acceptor.upto = self.log.commit;
        self.acceptor.upto_staged = self.outbox.last();
        self.acceptor.advance(&self.log, &self.options);
    }

    fn send_promise(&mut self, to: NodeId, from: Slot) {
        // The promise, and every vote that is reported, is durable once the newest write is.
        let staged = self.outbox.last();
        for promise in self.promise_parts(from) {
            if mutant!(self.options, PromiseUngated) {
                self.outbox.send_after(Staged::RECOVERED, to, promise);
            } else {
                self.outbox.send_after(staged, to, promise);
            }
        }
    }

    /// What phase 1 has to know of this acceptor, for the slots from `from` on.
    pub(super) fn promise_parts(&self, from: Slot) -> Vec<Promise> {
        let commit = self.log.commit;
        let head = Promise {
            ballot: self.acceptor.promised,
            votes: Vec::new(),
            commit,
            max_voted: self.log.max_voted,
            faulty_from: self.faulty_from().filter(|_| !mutant!(self.options, FaultyAsNoVote)),
            part: 0,
            parts: 1,
        };
        let facts = from.max(self.log.first()).0..=commit.0;
        let facts_bytes: usize = facts.filter_map(|slot| self.log.get(Slot(slot))).map(Entry::size).sum();
        let start = if from < self.log.first() || facts_bytes > PROMISED_FACTS_BYTES_MAX {
            from.max(commit.next())
        } else {
            from
        };
        let mut parts = vec![head.clone()];
        let mut bytes = 0;
        for slot in (start.0..=self.log.last().0).map(Slot) {
            let Some(entry) = self.log.get(slot).filter(|entry| entry.is_vote() || slot <= commit) else {
                continue;
            };
            if entry.value.is_none() && mutant!(self.options, LostPayloadAsNoVote) {
                continue;
            }
            bytes += entry.size();
            if bytes > PROMISE_PART_BYTES {
                bytes = entry.size();
                parts.push(head.clone());
            }
            let promised = entry.vote_ballot.ballot <= self.acceptor.promised;
            debug_assert!(promised || slot <= commit, "I1: a vote promises its ballot");
            let vote = Vote { vote_ballot: entry.vote_ballot, value: entry.value.clone() };
            parts.last_mut().expect("starts with one part").votes.push((slot, vote));
        }
        let count = u32::try_from(parts.len()).expect("at most one part per slot of the window");
        for (part, promise) in (0..).zip(&mut parts) {
            promise.part = part;
            promise.parts = count;
        }
        parts
    }

    /// Phase 2a.
    pub(super) fn handle_accept(&mut self, now: Mono, liveness: &Liveness, from: NodeId, message: Accept) {
        let Accept { ballot, commit, entries } = message;
        if entries.iter().any(|(slot, value)| self.contradicts(*slot, value, ballot)) {
            self.outbox.event(Event::Suspicious { from, suspicion: Suspicion::Contradiction });
            return;
        }
        if !self.follow_message(now, liveness, from, ballot) {
            return;
        }
        let votes = !self.promise_lost();
        for (slot, value) in entries {
            if slot <= commit {
                self.learn(slot, value, ballot);
            } else if votes && self.log.in_window(slot) {
                self.vote(slot, value, ballot);
            }
        }
        self.learn_commit(now, liveness, from, ballot, commit);
        self.sample_grants(now, liveness);
        self.acceptor.acknowledge = true;
        self.try_heal();
    }

    /// Whether this node has voted for another value at this very ballot, whose leader proposes one value for a slot.
    fn contradicts(&self, slot: Slot, value: &Value, ballot: Ballot) -> bool {
        let held = self
            .log
            .get(slot)
            .filter(|entry| slot > self.log.commit && entry.vote_ballot == VoteBallot::classic(ballot));
        held.and_then(|entry| entry.value.as_ref()).is_some_and(|held| held != value)
    }

    /// The leader had nothing else to carry the commit index.
    pub(super) fn handle_commit(&mut self, now: Mono, liveness: &Liveness, from: NodeId, message: &Commit) {
        if self.follow_message(now, liveness, from, message.ballot) {
            self.learn_commit(now, liveness, from, message.ballot, message.commit);
            self.try_heal();
        }
    }

    /// Whether a message of the leader at `ballot` counts here. Makes this node its follower.
    fn follow_message(&mut self, now: Mono, liveness: &Liveness, from: NodeId, ballot: Ballot) -> bool {
        if ballot.node != from {
            return false;
        }
        if ballot < self.acceptor.promised && !mutant!(self.options, PromiseUnchecked) {
            self.doubt_promise(ballot);
            self.nack(from, ballot);
            return false;
        }
        if ballot < self.acceptor.promised {
            self.enter_ballot(ballot);
        }
        self.follow(now, liveness, ballot);
        if ballot > self.acceptor.promised {
            if self.promise_lost() {
                // It may count committed values for this leader, but votes for nobody.
                self.enter_ballot(ballot);
            } else {
                self.promise(ballot);
            }
        }
        assert_eq!(
            self.acceptor.promised, ballot,
            "I2: who follows has promised, so it votes at no lower ballot"
        );
        true
    }

    /// Votes at `ballot`, which is promised, unless it has done so already.
    pub(super) fn vote(&mut self, slot: Slot, value: Value, ballot: Ballot) {
        assert_eq!(ballot, self.acceptor.promised, "I2: votes are cast at the promised ballot alone");
        assert!(slot > self.log.commit, "I10: what is committed is not voted on again");
        assert!(!self.promise_lost(), "I18: who has forgotten a promise has no vote");
        let vote_ballot = VoteBallot::classic(ballot);
        let repaired = match self.log.get(slot) {
            Some(entry) if entry.vote_ballot == vote_ballot && entry.value.is_some() => {
                assert!(entry.value.as_ref() == Some(&value), "I3: one value per slot at a classic ballot");
                return;
            }
            Some(entry) => {
                assert!(
                    entry.vote_ballot <= vote_ballot || mutant!(self.options, PromiseUnchecked),
                    "I2: the ballot of a slot's vote only grows"
                );
                entry.is_vote() && entry.value.is_none()
            }
            None => false,
        };
        let commit = self.log.commit;
        // Slots without an entry are the rule; for others, values of different lengths are told apart at once.
        let held = self.log.get(slot).filter(|entry| entry.trusted && entry.is_vote());
        let staged = self.outbox.record(match held.and_then(|entry| entry.value.as_ref()) {
            Some(held) if *held == value => Record::Revote { slot, vote_ballot, commit },
            Some(_) | None => Record::Vote { slot, vote_ballot, commit, value: Some(value.clone()) },
        });
        let trusted = slot > self.log.known_commit;
        self.log.put(slot, Entry::new(vote_ballot, value, staged, trusted));
        self.acceptor.advance(&self.log, &self.options);
        if repaired {
            self.outbox.event(Event::PayloadRepaired { slot });
        }
    }

    /// Takes up a committed value, if it is the next one. `ballot` is that of the leader who says so, if that matters:
    /// an own vote at it needs no second copy on disk.
    pub(super) fn learn(&mut self, slot: Slot, value: Value, ballot: Ballot) {
        assert!(slot > Slot(0), "slots count from 1: messages that say otherwise are not plausible");
        self.commit_own_votes(Slot(slot.0 - 1), ballot);
        if slot != self.log.commit.next() {
            return;
        }
        // A vote for the same value says the same on disk, whatever its ballot.
        let (known, repaired) = match self.log.get(slot) {
            Some(entry) => (entry.value.as_ref() == Some(&value), entry.is_vote() && entry.value.is_none()),
            None => (false, false),
        };
        // Somebody else has committed another value than this leader proposed, or one that only this leader could: it is
        // deposed, and followers must not take their votes for it as committed (C3).
        let deposed = match &self.state {
            State::Leader(leader) => self.leads_at(slot) && (!known || slot >= leader.first_own),
            State::Follower(_) | State::PreCandidate(_) | State::Candidate(_) => false,
        };
        if deposed {
            self.resign(self.clock);
        }
        if !known {
            self.record_chosen(slot, value);
        }
        self.commit_next();
        if repaired {
            self.outbox.event(Event::PayloadRepaired { slot });
        }
    }

    /// The leader at `ballot` says that every slot up to `commit` is committed.
    fn learn_commit(&mut self, now: Mono, liveness: &Liveness, from: NodeId, ballot: Ballot, commit: Slot) {
        self.commit_own_votes(commit, ballot);
        self.note_commit(now, liveness, from, commit);
    }

    /// C3: the own vote is for the committed value only if it was cast at exactly the ballot of the leader who says
    /// that the slot is committed.
    fn commit_own_votes(&mut self, upto: Slot, ballot: Ballot) {
        let vote_ballot = VoteBallot::classic(ballot);
        while self.log.commit < upto
            && let Some(entry) = self.log.get(self.log.commit.next())
            && entry.value.is_some()
            && (entry.vote_ballot == vote_ballot || mutant!(self.options, CommitOldBallot))
        {
            self.commit_next();
        }
    }

    fn record_chosen(&mut self, slot: Slot, value: Value) {
        assert!(slot <= self.log.commit.next(), "I10: committed values are written in order");
        let vote_ballot = self.log.get(slot).map_or(VoteBallot::default(), |entry| entry.vote_ballot);
        let staged = self.outbox.record(Record::Chosen { slot, commit: slot, value: value.clone() });
        self.log.put(slot, Entry::new(vote_ballot, value, staged, true));
    }

    /// Moves the commit index over one slot whose value is here.
    pub(super) fn commit_next(&mut self) {
        let unwritten = self.log.commit_next();
        let slot = self.log.commit;
        if unwritten && let Some(value) = self.log.value(slot).cloned() {
            self.record_chosen(slot, value);
        }
        let entry = self.log.get(slot).expect("committed slots above the snapshot are kept");
        assert!(entry.trusted, "after a crash, too, the journal tells the value of a committed slot");
        if self.acceptor.upto < slot {
            self.acceptor.upto_staged = self.acceptor.upto_staged.max(entry.staged);
            self.acceptor.upto = slot;
        }
        self.acceptor.advance(&self.log, &self.options);
    }

    /// Who holds a lease from this node now. Everybody who might, after a restart, until what was granted before it
    /// has lapsed.
    pub(super) fn sample_grants(&mut self, now: Mono, liveness: &Liveness) {
        let config = &self.config;
        if liveness.quarantined(now) && !mutant!(self.options, QuarantineSkipped) {
            self.acceptor.granted.clone_from(&config.lease_eligible);
            return;
        }
        self.acceptor.granted.clear();
        for (&holder, &epoch) in &self.acceptor.grants {
            if liveness.supports(now, holder) == Some(epoch) {
                self.acceptor.granted.push_last(holder);
            }
        }
    }

    /// A snapshot beyond the commit index came, and its record is staged.
    pub(super) fn installed(&mut self) {
        if self.acceptor.upto < self.log.commit {
            self.acceptor.upto = self.log.commit;
            self.acceptor.upto_staged = self.outbox.last();
        }
        self.acceptor.advance(&self.log, &self.options);
    }

    /// Answers the leader, once for all it has sent since the last poll.
    pub(super) fn acknowledge(&mut self) {
        if !std::mem::take(&mut self.acceptor.acknowledge) {
            return;
        }
        let ballot = self.acceptor.promised;
        assert_ne!(ballot.node, self.options.node, "a leader counts its own vote when it is durable");
        assert!(self.acceptor.upto >= self.log.commit, "what is committed is acknowledged");
        assert!(self.log.max_voted >= self.acceptor.upto, "I19: the floor of leases covers every vote");
        let accepted = Accepted {
            ballot,
            upto: self.acceptor.upto,
            commit: self.log.commit,
            max_voted: self.log.max_voted,
            grants: self.acceptor.granted.clone(),
        };
        let staged = if mutant!(self.options, AcceptedUngated) {
            Staged::RECOVERED
        } else {
            self.acceptor.upto_staged
        };
        self.outbox.send_after(staged, ballot.node, accepted);
    }

    /// Something changed that the leader wants to know of, other than by its own message.
    pub(super) fn acknowledge_unasked(&mut self) {
        match &self.state {
            State::Follower(follower) if follower.follows(self.acceptor.promised) => {
                self.acceptor.acknowledge = true;
            }
            State::Follower(_) | State::PreCandidate(_) | State::Candidate(_) | State::Leader(_) => {}
        }
    }

    pub(super) fn nack(&mut self, to: NodeId, ballot: Ballot) {
        let leader = match &self.state {
            State::Leader(leader) => Some(leader.ballot),
            State::Follower(follower) => follower.following.map(|following| following.ballot),
            State::PreCandidate(_) | State::Candidate(_) => None,
        };
        let config_epoch = self.config.epoch;
        self.outbox.send_now(to, Nack { ballot, promised: self.acceptor.promised, config_epoch, leader });
    }

    /// Replaces the promise by one that is certain, see [`super::recall`].
    pub(super) fn restore_promise(&mut self, ballot: Ballot) {
        assert!(!self.promise_lost(), "the promise is certain from here on");
        self.enter_ballot(self.acceptor.promised.max(ballot));
    }
}
