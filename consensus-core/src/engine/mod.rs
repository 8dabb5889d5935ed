//! The consensus engine of one group. This file routes; the work is done by the parts:
//!
//! ```text
//!                      step(now, liveness, input)
//!                                  │
//!  election ── pre-vote, phase 1 ──┼── acceptor ── promises, votes, C3, grants ──┐
//!  leader ──── pipeline, commit ───┤                                             ▼
//!    progress  per member          ├── catchup ─── fetched values, snapshots    log
//!    lease     fortify, C2         └── recall ──── what a damaged disk forgot    │
//!    reads     lease, read-index                                                 ▼
//!                                                    outbox ── gates ── poll(&mut out)
//! ```

mod acceptor;
mod bounds;
mod catchup;
mod election;
mod leader;
mod lease;
mod log;
mod outbox;
mod progress;
mod reads;
mod recall;
mod rng;
mod select;

use std::cmp::Reverse;
use std::sync::Arc;

use crate::api::{Event, FollowerStatus, Input, Output, Rejection, Role, Status};
use crate::message::Resigned;
use crate::mutant::mutant;
use crate::record::ROUND_DOUBTFUL;
use crate::{Ballot, Config, Durable, Liveness, Message, Mono, NodeId, NodeSet, Options, Record, Slot, Tag};
use acceptor::Acceptor;
use bounds::Claims;
use catchup::Catchup;
use election::{Candidate, Follower, PreCandidate};
use leader::{Leader, PeerChange};
use log::Log;
use outbox::Outbox;
use recall::Recall;
use rng::Rng;

/// What this replica is doing, with what only makes sense while it does it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State {
    Follower(Follower),
    PreCandidate(PreCandidate),
    Candidate(Candidate),
    Leader(Box<Leader>),
}

/// One replica of one group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Engine {
    options: Options,
    /// The time of the last step. Sets timers in `poll`, which has no time of its own.
    clock: Mono,
    rng: Rng,
    fenced: bool,
    outbox: Outbox,
    log: Log,
    config: Arc<Config>,
    acceptor: Acceptor,
    /// The highest round that anybody is known to have promised. A hint, so not durable.
    round_seen: u64,
    /// Rounds that were not believed.
    claims: Claims,
    /// It was told that the own promise is beyond belief.
    promise_doubted: bool,
    catchup: Catchup,
    /// What a damaged disk may have forgotten, until that is made up for.
    recall: Option<Recall>,
    /// The operator has declared that what this node holds is what there is, see [`Durable::survive`].
    survivor: bool,
    /// Nobody can lead: who has forgotten what it voted for, as the last phase 1 here told.
    blocked: Option<NodeSet>,
    /// Committed values up to here stand in for votes that were forgotten, see [`Record::Healed`].
    relied_upto: Slot,
    state: State,
    /// What the last [`Event::RoleChanged`] said.
    reported: (Role, Ballot, Option<NodeId>),
}

impl Engine {
    /// After the journal is replayed into `durable`, or with [`Durable::bootstrap`] for a new group. Nothing is sent or
    /// committed before the first [`Engine::poll`].
    ///
    /// # Panics
    /// When `durable` has no configuration, or one in which this node does not vote.
    #[must_use]
    pub fn new(options: Options, durable: Durable, now: Mono) -> Engine {
        let config = durable.config.clone().expect("the shell starts no group without a configuration");
        assert!(config.voters.contains(options.node), "the shell starts the groups in which this node votes");
        assert_eq!(config.check(), Ok(()), "I5: quorums that must meet do");
        let (mut log, lost) = Log::recover(&durable);
        let mut outbox = Outbox::default();

        let mut faulty_from = durable.faulty_from;
        if let Some(slot) = lost {
            faulty_from = Some(faulty_from.map_or(slot, |from| from.min(slot)));
        }
        if durable.newborn {
            outbox.record(Record::Base {
                slot: log.base,
                promised: Ballot::default(),
                faulty_from: None,
                promise_lost: false,
                config: config.clone(),
            });
        } else if let Some(from) = faulty_from.filter(|_| durable.damage_found || lost.is_some()) {
            outbox.record(Record::Faulty { from, promise_lost: durable.promise_lost });
            log.distrust(from);
        }
        if durable.survivor {
            outbox.record(Record::Survived { promised: durable.promised });
        }
        // The journal may drop a damaged record for good once it has reported it.
        for (slot, vote_ballot) in log.lost_payloads() {
            assert!(slot > log.commit, "I10: a committed slot has its value");
            outbox.record(Record::Vote { slot, vote_ballot, commit: log.commit, value: None });
        }
        let promise_doubted = durable.promised.round >= ROUND_DOUBTFUL;
        if promise_doubted {
            outbox.event(Event::PromiseDoubtful);
        }
        let recall = faulty_from.map(|from| Recall::new(from, durable.promise_lost, durable.survivor, now));
        let mut rng = Rng::new(options.seed ^ (u64::from(options.node.0) << 32) ^ options.group.0);
        let acceptor = Acceptor::new(durable.promised, &log, &config, &options);
        let follower = Follower::at_start(&options, &config, &mut rng, now);
        let reported = (Role::Follower, acceptor.promised(), None);
        Engine {
            clock: now,
            fenced: false,
            catchup: Catchup::default(),
            state: State::Follower(follower),
            options,
            rng,
            outbox,
            log,
            config,
            acceptor,
            round_seen: 0,
            claims: Claims::default(),
            promise_doubted,
            relied_upto: durable.relied_upto,
            survivor: durable.survivor,
            blocked: None,
            recall,
            reported,
        }
    }

    /// Takes one input at `now`, which was sampled after the input was taken up. Never blocks.
    pub fn step(&mut self, now: Mono, liveness: &Liveness, input: Input) {
        self.clock = self.clock.max(now);
        let now = self.clock;
        match input {
            Input::Propose { tag, command } => self.propose(tag, command),
            Input::Read { tag, mode } => self.read(now, liveness, tag, mode),
            Input::PersistFailed => self.fence(),
            _ if self.fenced => {}
            Input::Message { from, message } => {
                if from != self.options.node && self.believes(from, &message) && message.is_plausible() {
                    self.handle_message(now, liveness, from, message);
                }
            }
            Input::Persisted(seq) => {
                self.outbox.persisted(seq);
                self.handle_own_promise(now, liveness);
                self.update_commit(now, liveness);
                self.try_heal();
            }
            Input::PeerUp(node) => self.handle_peer(now, liveness, node, PeerChange::Up),
            Input::PeerDown(node) => self.handle_peer(now, liveness, node, PeerChange::Down),
            Input::PeerChanged(node) => self.handle_peer(now, liveness, node, PeerChange::Other),
            Input::SnapshotDurable { slot } => self.handle_snapshot_durable(slot),
            Input::SnapshotInstalled { slot, config } => {
                self.handle_snapshot_installed(now, liveness, slot, config)
            }
            Input::SnapshotEnded { to } => self.handle_snapshot_ended(now, to),
            Input::Transfer { to } => self.handle_transfer(now, liveness, to),
            Input::Timeout => self.handle_timeout(now, liveness),
        }
    }

    /// Moves everything pending into `out`, which the caller has cleared. Cuts the batch: everything proposed since
    /// the last call travels together.
    pub fn poll(&mut self, out: &mut Output) {
        debug_assert!(
            out.records.is_empty() && out.sends.is_empty(),
            "the caller has carried out the last one"
        );
        if !self.fenced {
            self.lead();
            self.acknowledge();
        }
        while let Some(committed) = self.log.deliver_next() {
            out.committed.push(committed);
        }
        self.report_role();
        self.outbox.drain(out);
    }

    /// When to step [`Input::Timeout`]; `None` while the group is idle.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Mono> {
        if self.fenced {
            return None;
        }
        let state = match &self.state {
            State::Follower(follower) => follower.deadline(),
            State::PreCandidate(candidate) => candidate.deadline(),
            State::Candidate(candidate) => candidate.deadline(),
            State::Leader(leader) => leader.deadline(),
        };
        let recall = self.recall.as_ref().map(Recall::deadline);
        [state, self.catchup.deadline(), recall].into_iter().flatten().min()
    }

    /// Whether [`Input::Persisted`] may lead to something: a leader counts its own votes, a candidate its own promise, and
    /// a replica whose disk forgot something waits to be whole again. For others it may wait for the next input.
    #[must_use]
    pub fn awaits_persisted(&self) -> bool {
        !matches!(self.state, State::Follower(_)) || self.recall.is_some()
    }

    /// The hot path for reads: the read point, if this node leads under a valid leader lease at `now`, which was
    /// sampled after the read was taken up. Serve the read once everything up to the slot is applied.
    #[must_use]
    pub fn lease_read(&self, now: Mono, liveness: &Liveness) -> Option<Slot> {
        match &self.state {
            State::Leader(leader) if !self.fenced => {
                leader.lease_read(&self.options, &self.config, self.log.commit, now, liveness)
            }
            State::Leader(_) | State::Follower(_) | State::PreCandidate(_) | State::Candidate(_) => None,
        }
    }

    /// The configuration of the group; what a snapshot has to carry.
    #[must_use]
    pub fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// The view from outside.
    #[must_use]
    pub fn status(&self) -> Status {
        let (role, ballot, leader) = self.role();
        let leading = match &self.state {
            State::Leader(leader) => Some(leader),
            State::Follower(_) | State::PreCandidate(_) | State::Candidate(_) => None,
        };
        Status {
            role,
            leader,
            ballot,
            promised: self.acceptor.promised(),
            ready: leading.is_some_and(|leader| leader.ready),
            successor: leading.and_then(|leader| leader.successor()),
            commit: self.log.commit,
            known_commit: self.log.known_commit.max(self.log.commit),
            first_kept: self.log.first(),
            max_voted: self.log.max_voted,
            config: self.config.clone(),
            faulty_from: self.recall.as_ref().map(|recall| recall.faulty_from),
            promise_lost: self.promise_lost(),
            blocked: self.blocked.clone().or_else(|| self.recall.as_ref()?.stuck(self.options.node)),
            lost_payloads: self.log.lost_payloads().count() as u64,
            fenced: self.fenced,
            queued: leading.map_or(0, |leader| leader.queue.len()),
            inflight: leading.map_or(0, |leader| leader.inflight_slots(self.log.commit)),
        }
    }

    /// What this node, while it leads, knows of the other voters.
    pub fn followers(&self) -> impl Iterator<Item = FollowerStatus> + '_ {
        let leader = match &self.state {
            State::Leader(leader) => Some(leader),
            State::Follower(_) | State::PreCandidate(_) | State::Candidate(_) => None,
        };
        let peers = leader.into_iter().flat_map(|leader| leader.peers.iter());
        peers.map(|peer| FollowerStatus { node: peer.node, up: peer.up, matched: peer.matched })
    }

    /// Who would lead in place of this node with the least ado: of the other voters that live and are fit to lead, the one
    /// that lacks least. `None` also while this node does not lead.
    #[must_use]
    pub fn successor(&self, now: Mono, liveness: &Liveness) -> Option<NodeId> {
        let able = |peer: &FollowerStatus| {
            peer.up
                && liveness.is_up(now, peer.node)
                && liveness.is_fit(peer.node)
                && liveness.reaches(now, peer.node)
        };
        let nearest = self.followers().filter(able).max_by_key(|peer| (peer.matched, Reverse(peer.node)));
        nearest.map(|peer| peer.node)
    }

    /// Panics with the name of the invariant that does not hold. For tests and simulations, after every step.
    pub fn check_invariants(&self) {
        self.log.check_invariants();
        self.outbox.check_invariants();
        self.acceptor.check_invariants(&self.log, &self.config);
        match &self.state {
            State::Leader(leader) => leader.check_invariants(&self.log, &self.config, &self.acceptor),
            State::Candidate(candidate) => {
                assert_eq!(candidate.ballot, self.acceptor.promised(), "I1: a candidate promised to itself");
                assert!(!self.promise_lost(), "I18: who has forgotten a promise does not run");
                assert!(!self.fenced, "who cannot write does not run");
            }
            State::Follower(_) | State::PreCandidate(_) => {}
        }
    }

    fn handle_message(&mut self, now: Mono, liveness: &Liveness, from: NodeId, message: Message) {
        match message {
            Message::PreVote(message) => self.handle_pre_vote(now, liveness, from, &message),
            Message::PreVoteReply(message) => self.handle_pre_vote_reply(now, liveness, from, &message),
            Message::Prepare(message) => self.handle_prepare(now, from, &message),
            Message::Promise(message) => self.handle_promise(now, liveness, from, message),
            Message::Nack(message) => self.handle_nack(now, &message),
            Message::Accept(message) => self.handle_accept(now, liveness, from, message),
            Message::Accepted(message) => self.handle_accepted(now, liveness, from, message),
            Message::Commit(message) => self.handle_commit(now, liveness, from, &message),
            Message::Fortify(message) => self.handle_fortify(now, liveness, from, &message),
            Message::Fortified(message) => self.handle_fortified(now, from, &message),
            Message::ReadIndex(message) => self.handle_read_index(from, &message),
            Message::ReadIndexReply(message) => self.handle_read_index_reply(from, &message),
            Message::Fetch(message) => self.handle_fetch(from, &message),
            Message::Chosen(message) => self.handle_chosen(now, liveness, from, message),
            Message::Handoff(message) => self.handle_handoff(now, liveness, from, &message),
            Message::Resigned(message) => self.handle_resigned(now, from, &message),
            Message::Recall(message) => self.handle_recall(from, &message),
            Message::Recalled(message) => self.handle_recalled(from, &message),
            Message::Vouched(message) => self.handle_vouched(from, &message),
        }
    }

    fn handle_timeout(&mut self, now: Mono, liveness: &Liveness) {
        match &self.state {
            State::Follower(_) | State::PreCandidate(_) | State::Candidate(_) => {
                self.on_election_timeout(now, liveness);
            }
            State::Leader(_) => self.on_leader_timeout(now, liveness),
        }
        self.on_fetch_timeout(now, liveness);
        self.on_recall_timeout(now, liveness);
    }

    /// A node of the group came, went, or changed what groups judge by.
    fn handle_peer(&mut self, now: Mono, liveness: &Liveness, node: NodeId, change: PeerChange) {
        match &self.state {
            State::Leader(_) => self.handle_peer_as_leader(now, liveness, node, change),
            State::Follower(_) | State::PreCandidate(_) | State::Candidate(_) => {
                match change {
                    PeerChange::Up => self.unblock(now),
                    PeerChange::Down | PeerChange::Other => {}
                }
                self.watch_leader(now, liveness)
            }
        }
    }

    fn propose(&mut self, tag: Tag, command: bytes::Bytes) {
        let rejection = match &mut self.state {
            _ if self.fenced => Rejection::Fenced,
            State::Leader(leader) => match leader.enqueue(&self.options, tag, command) {
                Ok(()) => return,
                Err(rejection) => rejection,
            },
            State::Follower(_) | State::PreCandidate(_) | State::Candidate(_) => {
                Rejection::NotLeader { hint: self.leader_hint() }
            }
        };
        self.outbox.reject(tag, rejection);
    }

    /// The disk failed. What it holds is unknown, so nothing that depends on it may be said any more.
    fn fence(&mut self) {
        if self.fenced {
            return;
        }
        self.fenced = true;
        let led = match &self.state {
            State::Leader(leader) => Some(leader.ballot),
            State::Follower(_) | State::PreCandidate(_) | State::Candidate(_) => None,
        };
        self.become_follower(None);
        self.outbox.fence();
        self.outbox.event(Event::Fenced);
        // That it does not lead any more depends on no disk.
        for node in self.config.voters.iter().filter(|node| led.is_some() && *node != self.options.node) {
            self.outbox.send_now(node, Resigned { ballot: led.unwrap_or_default() });
        }
    }

    /// The node that leads, as far as is known.
    fn leader_hint(&self) -> Option<NodeId> {
        self.role().2
    }

    fn role(&self) -> (Role, Ballot, Option<NodeId>) {
        let seen = self.acceptor.promised();
        match &self.state {
            State::Leader(leader) => (Role::Leader, leader.ballot, Some(leader.ballot.node)),
            State::Candidate(_) | State::PreCandidate(_) => (Role::Candidate, seen, None),
            State::Follower(follower) => {
                let following = follower.following.map(|following| following.ballot);
                (
                    Role::Follower,
                    following.map_or(seen, |ballot| ballot.max(seen)),
                    following.map(|ballot| ballot.node),
                )
            }
        }
    }

    fn report_role(&mut self) {
        let role = self.role();
        if role != self.reported {
            self.reported = role;
            let (role, ballot, leader) = role;
            self.outbox.event(Event::RoleChanged { role, ballot, leader });
        }
    }

    /// Whether this node may have forgotten a promise, and so must not act as an acceptor.
    fn promise_lost(&self) -> bool {
        !mutant!(self.options, PromiseLostVotes)
            && self.recall.as_ref().is_some_and(|recall| recall.promise_lost)
    }

    fn faulty_from(&self) -> Option<Slot> {
        self.recall.as_ref().map(|recall| recall.faulty_from)
    }
}
