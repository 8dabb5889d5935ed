//! Who leads: following, pre-vote, phase 1.
//!
//! ```text
//!              leader silent, or without a quorum            q1 would follow
//!   Follower ───────────────────────────────▶ PreCandidate ─────────────────▶ Candidate
//!      ▲  ▲                                        │                              │ q1 promised
//!      │  └── denied, no answer: back off ─────────┴───────── nacked ─────────────┤
//!      └── a leader speaks at a ballot not below the promise ── Leader ◀──────────┘
//! ```
//!
//! A follower has no timer while its leader's node lives, is still in the incarnation in which it came to lead, has a
//! working disk, and says that it reaches enough voters to commit. All that is in [`Liveness`]; the group sends nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use super::log::ACCEPT_WINDOW;
use super::outbox::Staged;
use super::rng::Rng;
use super::select::{Selection, may_be_chosen, select};
use super::{Engine, State};
use crate::message::{Handoff, Nack, PreVote, PreVoteReply, Prepare, Promise, ROUND_MAX, Resigned};
use crate::mutant::mutant;
use crate::{
    Ballot, Config, Event, Kind, Liveness, Mono, NodeId, NodeSet, Options, Slot, Value, Vote, VoteBallot,
};

/// A voter denies a candidate that is further behind than this, in slots: catching up would cost more time than waiting
/// for another.
const CATCHUP_SLOTS_MAX: u64 = 1_000;
/// A promise in more parts than this is nonsense: a part is 1 MiB.
const PROMISE_PARTS_MAX: u32 = 1_024;

/// Whom a follower follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Following {
    pub(super) ballot: Ballot,
    /// The incarnation of the leader's node in which it leads; 0 while no heartbeat has told.
    incarnation: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Follower {
    pub(super) following: Option<Following>,
    /// When to run for leader; `None` while the leader is alive.
    election_at: Option<Mono>,
    /// Elections in a row that came to nothing here.
    attempts: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct PreCandidate {
    ballot: Ballot,
    granted: NodeSet,
    give_up_at: Mono,
    attempts: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Candidate {
    pub(super) ballot: Ballot,
    /// The first slot that phase 1 asks for.
    from: Slot,
    own_promise: Staged,
    promises: BTreeMap<NodeId, PromiseParts>,
    retry_at: Mono,
    give_up_at: Mono,
    attempts: u32,
}

/// A promise as far as it has arrived.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PromiseParts {
    /// All but the votes.
    head: Promise,
    arrived: Vec<bool>,
    votes: BTreeMap<Slot, Vote>,
}

impl PromiseParts {
    fn new(promise: &Promise) -> PromiseParts {
        assert!(promise.part < promise.parts, "a promise that says otherwise is not sane");
        let head = Promise { votes: Vec::new(), part: 0, ..promise.clone() };
        PromiseParts { head, arrived: vec![false; promise.parts as usize], votes: BTreeMap::new() }
    }

    /// Parts of one promise agree in everything else. Those of a later answer may be cut elsewhere and cannot be
    /// mixed in.
    fn fits(&self, promise: &Promise) -> bool {
        self.head.commit == promise.commit
            && self.head.max_voted == promise.max_voted
            && self.head.faulty_from == promise.faulty_from
            && self.head.parts == promise.parts
    }

    fn add(&mut self, promise: Promise) {
        assert!(self.fits(&promise), "parts of different answers are not mixed");
        if let Some(arrived) = self.arrived.get_mut(promise.part as usize) {
            *arrived = true;
            self.votes.extend(promise.votes);
        }
    }

    fn is_complete(&self) -> bool {
        self.arrived.iter().all(|arrived| *arrived)
    }
}

/// What phase 1 found: the work of a new leader.
pub(super) struct Recovery {
    /// Committed values above the own commit index, as far as they were told.
    pub(super) facts: BTreeMap<Slot, Value>,
    /// Every slot up to here is committed; known by whom.
    pub(super) commit: Slot,
    pub(super) source: NodeId,
    /// What has to be proposed for the slots above `commit`, in order.
    pub(super) proposals: Vec<(Slot, Value)>,
    /// How far each promise knew the log to be committed.
    pub(super) commits: BTreeMap<NodeId, Slot>,
}

impl Following {
    /// Follows `ballot` in the present incarnation of its node.
    fn new(ballot: Ballot, liveness: &Liveness) -> Following {
        Following { ballot, incarnation: liveness.incarnation_of(ballot.node) }
    }
}

impl Follower {
    /// A node that has just started knows no leader, and gives one the time to show itself.
    pub(super) fn at_start(options: &Options, config: &Config, rng: &mut Rng, now: Mono) -> Follower {
        let election = options.timing.election;
        let delay =
            if config.voters.len() == 1 { Duration::ZERO } else { rng.between(election / 5, election) };
        Follower { following: None, election_at: Some(now.after(delay)), attempts: 0 }
    }

    pub(super) fn deadline(&self) -> Option<Mono> {
        self.election_at
    }

    /// Whether the leader at `ballot` is the one it follows.
    pub(super) fn follows(&self, ballot: Ballot) -> bool {
        self.following.is_some_and(|following| following.ballot == ballot)
    }
}

impl PreCandidate {
    pub(super) fn deadline(&self) -> Option<Mono> {
        Some(self.give_up_at)
    }
}

impl Candidate {
    pub(super) fn deadline(&self) -> Option<Mono> {
        Some(self.retry_at.min(self.give_up_at))
    }
}

impl Engine {
    /// A leader speaks at `ballot`, which is not below the promise.
    pub(super) fn follow(&mut self, now: Mono, liveness: &Liveness, ballot: Ballot) {
        assert!(ballot >= self.acceptor.promised(), "I1: a leader below the promise is not followed");
        match &mut self.state {
            State::Follower(follower) if follower.follows(ballot) => {}
            State::Follower(_) | State::PreCandidate(_) | State::Candidate(_) | State::Leader(_) => {
                self.become_follower(Some(Following::new(ballot, liveness)));
                self.end_survival();
            }
        }
        self.watch_leader(now, liveness);
    }

    /// Leaves whatever this node was. What it was asked and cannot do any more is answered.
    pub(super) fn become_follower(&mut self, following: Option<Following>) {
        let own = self.options.node;
        assert!(following.is_none_or(|following| following.ballot.node != own), "nobody follows itself");
        let attempts = if following.is_some() { 0 } else { self.attempts() };
        let state = State::Follower(Follower { following, election_at: None, attempts });
        let old = std::mem::replace(&mut self.state, state);
        match old {
            State::Leader(leader) => self.retire(*leader, following.map(|following| following.ballot.node)),
            State::Follower(_) | State::PreCandidate(_) | State::Candidate(_) => {}
        }
    }

    fn attempts(&self) -> u32 {
        match &self.state {
            State::Follower(follower) => follower.attempts,
            State::PreCandidate(candidate) => candidate.attempts,
            State::Candidate(candidate) => candidate.attempts,
            State::Leader(_) => 0,
        }
    }

    /// Starts or stops the election timer, by what is known of the leader.
    pub(super) fn watch_leader(&mut self, now: Mono, liveness: &Liveness) {
        if let State::Follower(Follower { following: Some(following), .. }) = &mut self.state
            && following.incarnation == 0
        {
            following.incarnation = liveness.incarnation_of(following.ballot.node);
        }
        let alive = self.leader_alive(now, liveness);
        match &mut self.state {
            State::Follower(follower) if alive => follower.election_at = None,
            State::Follower(follower) if follower.election_at.is_none() => self.await_election(now),
            State::Follower(_) | State::PreCandidate(_) | State::Candidate(_) | State::Leader(_) => {}
        }
    }

    /// Whether the known leader can lead, as far as this node can tell.
    fn leader_alive(&self, now: Mono, liveness: &Liveness) -> bool {
        match &self.state {
            State::Leader(_) => {
                let config = &self.config;
                self.reaches(now, liveness, |reached| config.is_q2(reached))
            }
            State::Follower(Follower { following: Some(following), .. }) => {
                following.ballot >= self.acceptor.promised() && self.can_lead(now, liveness, following)
            }
            State::Follower(_) | State::PreCandidate(_) | State::Candidate(_) => false,
        }
    }

    /// Whether the node lives, in the same incarnation, with a working disk, and reaches enough voters to commit.
    fn can_lead(&self, now: Mono, liveness: &Liveness, following: &Following) -> bool {
        let leader = following.ballot.node;
        let mut reached: NodeSet = liveness.hears(leader).iter().copied().collect();
        reached.insert(leader);
        liveness.is_up(now, leader)
            && [0, liveness.incarnation_of(leader)].contains(&following.incarnation)
            && liveness.is_fit(leader)
            && self.config.is_q2(&reached)
    }

    /// Whether the voters that answer this node make a quorum.
    pub(super) fn reaches(&self, now: Mono, liveness: &Liveness, quorum: impl Fn(&NodeSet) -> bool) -> bool {
        let config = &self.config;
        quorum(&config.voters.iter().filter(|node| liveness.reaches(now, *node)).collect())
    }

    /// Arms the election timer: short and random at first, and after each failure longer and more random, so that of
    /// several candidates one gets a round trip to itself.
    pub(super) fn await_election(&mut self, now: Mono) {
        let election = self.options.timing.election;
        let State::Follower(follower) = &mut self.state else { return };
        let (low, high) = match follower.attempts {
            _ if self.blocked.is_some() => (election * 10, election * 40),
            0 => (election / 50, election / 2),
            // Full jitter below T_el * 1.5^attempts, at most 8 T_el.
            attempts => {
                let factor = 1.5f64.powi(i32::try_from(attempts.min(6)).unwrap_or(6)).min(8.0);
                (election / 10, election.mul_f64(factor))
            }
        };
        follower.election_at = Some(now.after(self.rng.between(low, high)));
    }

    /// Gives up running, and tries again after a while.
    fn back_off(&mut self, now: Mono) {
        self.become_follower(None);
        if let State::Follower(follower) = &mut self.state {
            follower.attempts = follower.attempts.saturating_add(1);
        }
        self.await_election(now);
    }

    pub(super) fn on_election_timeout(&mut self, now: Mono, liveness: &Liveness) {
        match &self.state {
            State::Follower(follower) => {
                if follower.election_at.is_none_or(|at| now < at) {
                } else if self.leader_alive(now, liveness) {
                    self.watch_leader(now, liveness);
                } else {
                    self.run(now, liveness);
                }
            }
            State::PreCandidate(candidate) => {
                if now >= candidate.give_up_at {
                    self.back_off(now);
                }
            }
            State::Candidate(candidate) => {
                if now >= candidate.give_up_at {
                    self.back_off(now);
                } else if now >= candidate.retry_at {
                    self.send_prepare(now);
                }
            }
            State::Leader(_) => {}
        }
    }

    /// Whether every voter has promised and phase 1 has come to nothing all the same: the next attempt would go the same
    /// way. There is one now and then, since what is lost may turn up again.
    fn note_blocked(&mut self) -> bool {
        let State::Candidate(candidate) = &self.state else { return false };
        let voters = &self.config.voters;
        let complete = |node| candidate.promises.get(&node).filter(|parts| parts.is_complete());
        if !voters.iter().all(|node| complete(node).is_some()) {
            return false;
        }
        let faulty = |node: &NodeId| complete(*node).is_some_and(|parts| parts.head.faulty_from.is_some());
        let nodes: NodeSet = voters.iter().filter(faulty).collect();
        if self.blocked.as_ref() != Some(&nodes) {
            self.outbox.event(Event::Blocked { nodes: nodes.clone() });
            self.blocked = Some(nodes);
        }
        true
    }

    /// Whoever came or went may make a difference.
    pub(super) fn unblock(&mut self, now: Mono) {
        if self.blocked.take().is_some()
            && let State::Follower(follower) = &mut self.state
        {
            follower.attempts = 0;
            self.await_election(now);
        }
    }

    /// Others lead, or this node does: there is nobody to stand in for.
    pub(super) fn end_survival(&mut self) {
        self.blocked = None;
        if self.survivor
            && let Some(recall) = &mut self.recall
        {
            recall.vouched = false;
        }
        if std::mem::take(&mut self.survivor) {
            self.outbox.event(Event::Survived);
        }
    }

    /// Asks whether it would be followed, if it is fit to lead at all.
    fn run(&mut self, now: Mono, liveness: &Liveness) {
        let config = self.config.clone();
        let fit = !self.promise_lost()
            && liveness.is_fit(self.options.node)
            && self.reaches(now, liveness, |reached| config.is_q1(reached));
        if !fit {
            // Not a failed attempt: nobody was asked, so there is nobody to keep out of the way of.
            self.become_follower(None);
            if let State::Follower(follower) = &mut self.state {
                let election = self.options.timing.election;
                follower.election_at = Some(now.after(self.rng.between(election / 4, election / 2)));
            }
            return;
        }
        let attempts = self.attempts();
        let ballot = self.next_ballot();
        let granted: NodeSet = [self.options.node].into_iter().collect();
        self.become_follower(None);
        if config.is_q1(&granted) {
            self.start_candidate(now, attempts);
            return;
        }
        let give_up_at = now.after(self.options.timing.election);
        self.state = State::PreCandidate(PreCandidate { ballot, granted, give_up_at, attempts });
        let ask = PreVote { ballot, commit: self.log.commit, config_epoch: config.epoch };
        for node in config.voters.iter().filter(|node| *node != self.options.node) {
            self.outbox.send_now(node, ask.clone());
        }
    }

    pub(super) fn handle_pre_vote(
        &mut self,
        now: Mono,
        liveness: &Liveness,
        from: NodeId,
        message: &PreVote,
    ) {
        if message.ballot.node != from || self.promise_lost() {
            return;
        }
        // A leader that runs for leader does not lead any more.
        if let State::Follower(Follower { following: Some(following), .. }) = &self.state
            && following.ballot.node == from
            && following.ballot < message.ballot
        {
            self.become_follower(None);
            self.await_election(now);
        }
        // A member that looks for a leader has not heard of this one.
        if let State::Leader(leader) = &mut self.state
            && let Some(peer) = leader.peer(from)
            && peer.is_given_up()
        {
            peer.on_up();
        }
        let behind = message.commit.0 + CATCHUP_SLOTS_MAX < self.log.commit.0;
        let granted = message.ballot > self.acceptor.promised()
            && message.config_epoch >= self.config.epoch
            && !behind
            && !self.leader_alive(now, liveness);
        let leader = match &self.state {
            State::Leader(leader) => Some(leader.ballot),
            State::Follower(follower) if !granted => follower.following.map(|following| following.ballot),
            State::Follower(_) | State::PreCandidate(_) | State::Candidate(_) => None,
        };
        let reply = PreVoteReply {
            ballot: message.ballot,
            granted,
            promised: self.acceptor.promised(),
            commit: self.log.commit,
            leader,
        };
        self.outbox.send_now(from, reply);
    }

    pub(super) fn handle_pre_vote_reply(
        &mut self,
        now: Mono,
        liveness: &Liveness,
        from: NodeId,
        message: &PreVoteReply,
    ) {
        let promised = self.acceptor.promised();
        let State::PreCandidate(candidate) = &mut self.state else { return };
        let ballot = candidate.ballot;
        if ballot != message.ballot {
            return;
        }
        if message.granted {
            candidate.granted.insert(from);
            let attempts = candidate.attempts;
            if self.config.is_q1(&candidate.granted) {
                self.start_candidate(now, attempts);
            }
            return;
        }
        let leader = message.leader.filter(|ballot| *ballot >= promised && ballot.node != self.options.node);
        if let Some(following) = leader.map(|ballot| Following::new(ballot, liveness))
            && self.can_lead(now, liveness, &following)
        {
            self.become_follower(Some(following));
        } else if message.promised >= ballot {
            // Not a refusal: the next attempt goes above it.
            self.become_follower(None);
            self.await_election(now);
        }
        self.note_round(message.promised);
        self.note_commit(now, liveness, from, message.commit);
    }

    /// Somebody has promised `ballot`, so the next attempt has to go above it.
    fn note_round(&mut self, ballot: Ballot) {
        assert!(ballot.round < ROUND_MAX, "there is a round above every one that is believed");
        self.round_seen = self.round_seen.max(ballot.round);
    }

    /// A ballot above every one this node knows of.
    fn next_ballot(&self) -> Ballot {
        Ballot { round: self.acceptor.promised().round.max(self.round_seen) + 1, node: self.options.node }
    }

    /// Phase 1, for all slots at once.
    fn start_candidate(&mut self, now: Mono, attempts: u32) {
        let ballot = self.next_ballot();
        self.become_follower(None);
        let mut own_promise = self.promise(ballot);
        if mutant!(self.options, BallotReused) {
            own_promise = Staged::RECOVERED;
        }
        let give_up_at = now.after(self.options.timing.election);
        self.state = State::Candidate(Candidate {
            ballot,
            from: self.log.commit.next(),
            own_promise,
            promises: BTreeMap::new(),
            retry_at: now,
            give_up_at,
            attempts,
        });
        self.send_prepare(now);
    }

    fn send_prepare(&mut self, now: Mono) {
        let State::Candidate(candidate) = &mut self.state else { return };
        assert_eq!(candidate.ballot, self.acceptor.promised(), "I1: a candidate has promised to itself");
        candidate.retry_at = now.after(self.options.timing.retransmit);
        let config = &self.config;
        let from =
            if mutant!(self.options, PhaseOneFromTooHigh) { candidate.from.next() } else { candidate.from };
        let prepare = Prepare { ballot: candidate.ballot, from, config_epoch: config.epoch };
        for node in config.voters.iter().filter(|node| *node != self.options.node) {
            if !candidate.promises.get(&node).is_some_and(PromiseParts::is_complete) {
                self.outbox.send_after(candidate.own_promise, node, prepare.clone());
            }
        }
    }

    /// The own promise counts once it is durable.
    pub(super) fn handle_own_promise(&mut self, now: Mono, liveness: &Liveness) {
        let State::Candidate(candidate) = &self.state else { return };
        if candidate.promises.contains_key(&self.options.node)
            || !self.outbox.is_durable(candidate.own_promise)
        {
            return;
        }
        let from = candidate.from;
        for promise in self.promise_parts(from) {
            self.add_promise(self.options.node, promise);
        }
        self.try_to_lead(now, liveness);
    }

    pub(super) fn handle_promise(&mut self, now: Mono, liveness: &Liveness, from: NodeId, message: Promise) {
        let window = message.commit.0 + ACCEPT_WINDOW;
        let sane = (1..=PROMISE_PARTS_MAX).contains(&message.parts)
            && message.part < message.parts
            && message.votes.iter().all(|(slot, vote)| {
                // Fast rounds are never opened.
                slot.0 <= window
                    && vote.vote_ballot.ballot <= message.ballot
                    // Who asks has proposed nothing yet at its new ballot.
                    && (*slot <= message.commit
                        || vote.vote_ballot.kind == Kind::Classic && vote.vote_ballot.ballot < message.ballot)
            });
        let State::Candidate(candidate) = &self.state else { return };
        if sane && candidate.ballot == message.ballot {
            self.add_promise(from, message);
            self.try_to_lead(now, liveness);
        }
    }

    fn add_promise(&mut self, from: NodeId, message: Promise) {
        let State::Candidate(candidate) = &mut self.state else { return };
        assert_eq!(message.ballot, candidate.ballot, "I7: a promise counts for the ballot it was given to");
        match candidate.promises.get_mut(&from) {
            Some(parts) if parts.is_complete() => {}
            Some(parts) if parts.fits(&message) => parts.add(message),
            Some(_) | None => {
                let mut parts = PromiseParts::new(&message);
                parts.add(message);
                candidate.promises.insert(from, parts);
            }
        }
    }

    fn try_to_lead(&mut self, now: Mono, liveness: &Liveness) {
        if let Some(recovery) = self.recover() {
            self.become_leader(now, liveness, recovery);
        } else if self.note_blocked() {
            self.back_off(now);
        }
    }

    /// What follows from the promises, once they suffice: q1 voters, none of which may have forgotten a vote, and for
    /// every value that must be proposed again somebody who still has it.
    fn recover(&self) -> Option<Recovery> {
        let State::Candidate(candidate) = &self.state else { return None };
        let config = &self.config;
        let complete = || candidate.promises.iter().filter(|(_, parts)| parts.is_complete());
        let answered: NodeSet = complete().map(|(node, _)| *node).collect();
        let whole = complete().filter(|(_, parts)| parts.head.faulty_from.is_none());
        let counted: NodeSet = match self.survivor {
            true if !config.voters.is_subset(&answered) => return None,
            true => answered,
            false => whole.map(|(node, _)| *node).collect(),
        };
        let enough = if mutant!(self.options, PhaseOneQuorumShort) {
            counted.count_in(&config.voters) + 1 >= usize::from(config.q1)
        } else {
            config.is_q1(&counted)
        };
        if !enough {
            return None;
        }
        let counted: NodeSet = counted.iter().filter(|node| config.voters.contains(*node)).collect();

        let (commit, source) = complete().map(|(node, parts)| (parts.head.commit, *node)).max()?;
        let mut facts = BTreeMap::new();
        for (_, parts) in complete() {
            let committed = parts.votes.range(..=parts.head.commit);
            facts.extend(committed.filter_map(|(slot, vote)| Some((*slot, vote.value.clone()?))));
        }
        let last =
            complete().filter_map(|(_, parts)| parts.votes.last_key_value()).map(|(slot, _)| *slot).max();
        let mut proposals = Vec::new();
        for slot in (commit.0 + 1..=last.unwrap_or(commit).0).map(Slot) {
            proposals.push((slot, self.recover_slot(candidate, config, &counted, slot)?));
        }
        let whole = commit.0 + proposals.len() as u64 == last.unwrap_or(commit).max(commit).0;
        assert!(whole, "I4: every slot that somebody voted at is recovered");
        let commits = complete().map(|(node, parts)| (*node, parts.head.commit)).collect();
        Some(Recovery { facts, commit, source, proposals, commits })
    }

    /// The value to propose for one slot; `None` when it is forced and nobody heard so far still has it.
    fn recover_slot(
        &self,
        candidate: &Candidate,
        config: &Config,
        counted: &NodeSet,
        slot: Slot,
    ) -> Option<Value> {
        let vote_of = |node: NodeId| candidate.promises.get(&node)?.votes.get(&slot);
        let all_counted = counted;
        let mut counted = counted.clone();
        loop {
            // At a classic ballot the ballot identifies the value.
            let id_of = |node| vote_of(node).map(|vote| (vote.vote_ballot, ()));
            let votes: Vec<_> = counted.iter().map(|node| (node, id_of(node))).collect();
            let mut selection = select(&votes, config);
            if mutant!(self.options, SelectLowest) {
                let lowest = votes.iter().filter_map(|(_, vote)| *vote).min();
                selection =
                    lowest.map_or(Selection::Free, |(vote_ballot, id)| Selection::Forced(vote_ballot, id));
            }
            let vote_ballot = match selection {
                _ if mutant!(self.options, SelectFree) => return Some(Value::Noop),
                Selection::Free => return Some(Value::Noop),
                Selection::Forced(vote_ballot, ()) => vote_ballot,
            };
            if let Some(value) = self.value_voted(candidate, slot, vote_ballot) {
                return Some(value);
            }
            // The forced value is lost with all who tell of it. Perhaps too few voted for any to be chosen.
            let without_vote = all_counted.iter().filter(|node| vote_of(*node).is_none()).collect();
            if !may_be_chosen(&without_vote, config) {
                return Some(Value::Noop);
            }
            // Any other q1 is as good as this one: if the value
            // was chosen, somebody there voted for it too, and no quorum of the others is without it.
            let before = counted.len();
            counted = counted
                .iter()
                .filter(|node| vote_of(*node).is_none_or(|vote| vote.vote_ballot != vote_ballot))
                .collect();
            assert!(counted.len() < before, "a forced value was voted for by somebody who counts");
            if !config.is_q1(&counted) {
                return self.survivor.then_some(Value::Noop);
            }
        }
    }

    /// The value that a vote at `vote_ballot` forces, from whoever still has one: that of the highest vote at it or above,
    /// also one of a node that may have forgotten others. If a value was chosen at `vote_ballot` or below, whoever proposed
    /// above it had to propose the same (Paxos Made Simple, §2.2, P2c); and nothing was chosen above it, since a phase-1
    /// quorum that forgot nothing tells of no vote there.
    fn value_voted(&self, candidate: &Candidate, slot: Slot, vote_ballot: VoteBallot) -> Option<Value> {
        candidate
            .promises
            .values()
            .filter(|parts| parts.is_complete())
            .filter_map(|parts| parts.votes.get(&slot))
            .filter(|vote| {
                vote.vote_ballot == vote_ballot
                    || vote.vote_ballot > vote_ballot && !mutant!(self.options, SelectLowest)
            })
            .filter(|vote| vote.value.is_some())
            .max_by_key(|vote| vote.vote_ballot)
            .and_then(|vote| vote.value.clone())
    }

    pub(super) fn handle_nack(&mut self, now: Mono, message: &Nack) {
        if message.promised <= self.acceptor.promised() && message.config_epoch <= self.config.epoch {
            return;
        }
        match &self.state {
            State::Candidate(candidate) if candidate.ballot == message.ballot => {
                self.note_round(message.promised);
                self.back_off(now);
            }
            State::Leader(leader) if leader.ballot == message.ballot => {
                self.note_round(message.promised);
                self.resign(now);
            }
            State::Leader(_) | State::Candidate(_) | State::PreCandidate(_) | State::Follower(_) => {}
        }
    }

    /// Stops leading of its own accord, and says so: nobody would notice otherwise while this node lives.
    pub(super) fn resign(&mut self, now: Mono) {
        let State::Leader(leader) = &self.state else { return };
        let ballot = leader.ballot;
        for node in self.config.voters.iter().filter(|node| *node != self.options.node) {
            self.outbox.send_now(node, Resigned { ballot });
        }
        self.back_off(now);
    }

    pub(super) fn handle_resigned(&mut self, now: Mono, from: NodeId, message: &Resigned) {
        match &self.state {
            State::Follower(follower) if message.ballot.node == from && follower.follows(message.ballot) => {
                self.become_follower(None);
                self.await_election(now);
            }
            State::Follower(_) | State::PreCandidate(_) | State::Candidate(_) | State::Leader(_) => {}
        }
    }

    /// The leader wants this node to lead: no pre-vote, since the others still hear the leader.
    pub(super) fn handle_handoff(&mut self, now: Mono, liveness: &Liveness, from: NodeId, message: &Handoff) {
        let current = message.ballot.node == from && message.ballot == self.acceptor.promised();
        if current && !self.promise_lost() && liveness.is_fit(self.options.node) {
            self.start_candidate(now, 0);
        }
    }
}
