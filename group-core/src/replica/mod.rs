//! The replica itself: it takes up events, steps the engine, applies what is committed, and gathers what is to be done.

mod handover;
mod leading;
mod requests;
mod snapshotting;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use api::gaios::link::v1 as wire;
use api::gaios::link::v1::refused::Why;
use api::gaios::link::v1::response::Kind;
use bytes::{Bytes, BytesMut};
use consensus_core::{
    Config, Durable, Engine, Event as EngineEvent, Input, LivenessEvent, Message, Mono, NodeId, NodeSet,
    Options, Output, PersistSeq, ReadOutcome, Record, Rejection, Role, Slot, Status, Tag, Value,
};
use journal::{Lsn, Ticket};
use keyspace::{
    Alarm, AlarmKind, ClockOwner, ClockStart, ClusterVersion, Command, Effects, Keyspace, LeaseEffect, Reply,
    RevisionEvents,
};

use crate::backlog::{Backlog, Piece, Spent};
use crate::clients::{Clients, PendingRead, Reading, Subject, Terms, Waiter};
use crate::digests::Digests;
use crate::entries;
use crate::env::{Env, LinkId, Links, Settings};
use crate::event::Event;
use crate::lease_clock::LeaseClock;
use crate::log_positions::LogPositions;
use crate::mutant::mutant;
use crate::out::{Counters, Notice, Out, ToPeer, ToSnapshots};
use crate::placement::Placement;
use crate::queries::Queries;
use crate::readiness::{Readiness, Unready};
use crate::replies::Replies;
use crate::seekers::Seekers;
use crate::slices::Slices;
use crate::versions::Versions;
use crate::watches::Watches;

pub use self::snapshotting::{decode_meta, encode_meta};

use self::handover::{Relief, Stopping};
use self::leading::Move;
use self::snapshotting::Snapshotting;

/// Leases removed or checkpointed in one proposal.
const LEASES_PER_PROPOSAL: usize = 1000;
/// After this long the group makes proposals about leases again that the engine had no room for.
pub(crate) const PROPOSE_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// Records of garbage freed before the group turns to other work.
const SWEEP_PER_TURN: usize = 256;
/// What applying costs beside the keys that transactions visit, in such visits: a command, each of its changes, each lease that it
/// is about, and so many bytes of it.
const COMMAND_COST: usize = 16;
const CHANGE_COST: usize = 8;
const LEASE_COST: usize = 4;
const BYTES_PER_COST: usize = 256;
/// What a record takes in the journal beside its payload, about, in bytes.
const RECORD_BYTES: usize = 64;

/// What recovery found of a group.
#[derive(Debug)]
pub struct Start {
    /// The engine's.
    pub options: Options,
    /// What the journal held, [`Durable::snapshot`] included.
    pub durable: Durable,
    /// The newest snapshot on disk and the slot it was taken at.
    pub snapshot: Option<(Slot, Keyspace)>,
    /// Where the journal holds the group's records.
    pub positions: LogPositions,
}

impl Start {
    /// The slot of the snapshot that the journal builds on, if there is no such snapshot: the replica can only begin with
    /// a peer's.
    #[must_use]
    pub fn lacks_state(&self) -> Option<Slot> {
        let base = self.durable.base();
        let newest = self.snapshot.as_ref().map_or(Slot(0), |(slot, _)| *slot);
        (newest < base).then_some(base)
    }
}

/// One group's replica on one node. See the crate.
pub struct Replica {
    pub(crate) settings: Settings,
    pub(crate) engine: Engine,
    pub(crate) state: Keyspace,
    /// Every slot up to here is applied; of the next one, its first commands may be.
    pub(crate) applied: Slot,
    pub(crate) backlog: Backlog,
    /// What was applied in this turn.
    spent: Spent,
    pub(crate) clients: Clients,
    pub(crate) queries: Queries,
    pub(crate) slices: Slices,
    pub(crate) watches: Watches,
    pub(crate) leases: LeaseClock,
    /// The lease clock of this leader has begun in the log.
    started: Option<ClockStart>,
    /// Keep-alives that wait for the log: leases of theirs have ended and are not removed yet, or are given less time there than
    /// the answer would say.
    pub(crate) parked: BTreeMap<Waiter, (Terms, wire::KeepAlive)>,
    /// When to make proposals about leases again that were refused.
    propose_again_at: Option<Mono>,
    /// This replica leads, as the engine said last; what it gets may be queued.
    pub(crate) elected: bool,
    /// This replica leads and may serve.
    pub(crate) leading: bool,
    /// The engine says that it may serve, once this slot is applied: it knows of all that was committed before.
    leads_from: Option<Slot>,
    /// A compaction left garbage in memory that is not freed yet.
    sweeping: bool,
    pub(crate) positions: LogPositions,
    pub(crate) snapshotting: Snapshotting,
    digests: Digests,
    pub(crate) versions: Versions,
    pub(crate) replies: Replies,
    pub(crate) seekers: Seekers,
    readiness: Readiness,
    engine_out: Output,
    /// `engine_out` holds what is to be applied with the next poll.
    follows: bool,
    effects: Effects,
    pub(crate) counters: Counters,
    /// The node wants to stop.
    pub(crate) stopping: Option<Stopping>,
    /// For a leader whose disk is full.
    pub(crate) relief: Option<Relief>,
    /// For a leader that is not where the operator wants it.
    pub(crate) placement: Option<Placement>,
    /// An operator waits for another leader.
    pub(crate) moving: Option<Move>,
    /// When peers said last that their disks are full.
    pub(crate) full_at: BTreeMap<NodeId, Mono>,
    /// Whose disks are full, while this leader can make nothing durable for that.
    pub(crate) disks_full: NodeSet,
    /// What is to be done, until it is handed out.
    pub(crate) out: Out,
}

impl Replica {
    /// Begins with what was recovered.
    ///
    /// # Panics
    /// If it lacks the state ([`Start::lacks_state`]): see [`crate::Stateless`].
    #[must_use]
    pub fn new(settings: Settings, start: Start, now: Mono) -> Replica {
        assert_eq!(start.lacks_state(), None, "a replica begins with the state that its journal builds on");
        let engine = Engine::new(start.options, start.durable, now);
        let newest = start.snapshot.as_ref().map(|(slot, _)| *slot);
        let (applied, mut state) = start.snapshot.unwrap_or_else(|| {
            let options =
                keyspace::Options { shards: settings.shards.clone(), ..keyspace::Options::default() };
            (Slot(0), Keyspace::new(options))
        });
        state.set_write_bounds(settings.write_bounds);
        state.set_broken(settings.broken_state);
        let replies = Replies::new(settings.shard_map.clone());
        let watches =
            Watches::new(settings.group, state.resolved(), settings.watch_part_bytes, settings.broken);
        Replica {
            settings,
            engine,
            state,
            applied,
            backlog: Backlog::default(),
            spent: Spent::default(),
            clients: Clients::default(),
            queries: Queries::default(),
            slices: Slices::default(),
            watches,
            leases: LeaseClock::default(),
            started: None,
            parked: BTreeMap::new(),
            propose_again_at: None,
            elected: false,
            leading: false,
            leads_from: None,
            sweeping: false,
            positions: start.positions,
            snapshotting: Snapshotting::new(newest),
            digests: Digests::default(),
            versions: Versions::default(),
            replies,
            seekers: Seekers::default(),
            readiness: Readiness::default(),
            engine_out: Output::default(),
            follows: false,
            effects: Effects::default(),
            counters: Counters::default(),
            stopping: None,
            relief: None,
            placement: None,
            moving: None,
            full_at: BTreeMap::new(),
            disks_full: NodeSet::new(),
            out: Out::default(),
        }
    }

    /// Takes up an event.
    pub fn step(&mut self, env: &Env<'_>, event: Event) {
        match event {
            Event::Peer { from, message } => self.on_message(env, from, message),
            Event::Requests { link, requests } => {
                for request in requests {
                    self.on_request(env, link, request);
                }
            }
            Event::LinkClosed(link) => self.on_link_closed(link),
            // The turn goes on with what waited for it.
            Event::LinkDrained => {}
            Event::Persisted { upto, lsn } => self.on_persisted(env, upto, lsn),
            Event::PersistFailed => self.step_engine(env, Input::PersistFailed),
            Event::Liveness(event) => {
                match event {
                    LivenessEvent::PeerUp(_) => self.versions.up(env.now),
                    LivenessEvent::PeerDown(node) => self.versions.down(node),
                    LivenessEvent::PeerChanged(_) => {}
                }
                self.step_engine(env, Input::from(event));
            }
            Event::PeerDisk { node, full: true } => {
                self.full_at.insert(node, env.now);
            }
            Event::PeerDisk { node, full: false } => {
                self.full_at.remove(&node);
            }
            Event::Snapshot(progress) => self.on_snapshot_progress(env, progress),
            Event::SnapshotReceived { slot, config, state } => {
                self.on_snapshot_received(env, slot, config, *state);
            }
            Event::SnapshotRequested { by, at_least } => self.send_snapshot(by, at_least),
            Event::SnapshotLost { slot } => self.snapshotting.lost(slot),
            // Also when it arrived: the log may have moved on meanwhile, or the peer had no use for it.
            Event::SnapshotSent { to } => {
                self.counters.snapshots_sent += 1;
                self.snapshotting.sent(to);
                self.step_engine(env, Input::SnapshotEnded { to });
            }
            Event::SnapshotWanted { floor } => self.on_snapshot_wanted(env, floor),
            Event::DigestAsked { by, slot } => {
                if let Some(digest) = self.digests.asked(by, slot) {
                    self.out.to_peers.push((by, ToPeer::Digest(slot, digest)));
                }
            }
            Event::DigestTold { by, slot, digest } => self.on_digest(env, by, slot, digest),
            Event::VersionAsked { by } => self.out.to_peers.push((by, ToPeer::Version(self.settings.known))),
            Event::VersionTold { by, newest } => self.versions.told(by, newest),
            Event::Stop => self.stop_in_order(env),
        }
    }

    /// Does what is due, and asks the engine what the events of this turn have left to ask.
    pub fn tick(&mut self, env: &Env<'_>) {
        self.spent = Spent::default();
        self.ask_for_read_point(env);
        if self.engine.next_deadline().is_some_and(|deadline| deadline <= env.now) {
            self.step_engine(env, Input::Timeout);
        }
        self.seek_relief(env);
        self.seek_better_place(env);
        self.watch_disks(env);
        self.propose_due_leases(env);
        self.compare_digests(env);
        self.raise_version(env);
        self.admit_caught_up(env);
    }

    /// Moves to `out` what is to be done; false once there is nothing left that follows from the events. What a step
    /// commits is applied with the next call, so that its messages and records are under way by then; what goes beyond the
    /// share of a turn, in the next turns.
    pub fn poll(&mut self, env: &Env<'_>, out: &mut Out) -> bool {
        let more = if std::mem::take(&mut self.follows) {
            self.follow(env);
            true
        } else {
            self.engine.poll(&mut self.engine_out);
            self.follows = !self.engine_out.is_empty() || self.may_apply();
            self.persist_and_send();
            self.follows
        };
        self.hand_out(out);
        more
    }

    /// Ends a turn: gateways are answered, and work that can be cut in pieces goes on by one.
    pub fn finish(&mut self, env: &Env<'_>, out: &mut Out) {
        self.answer_seekers(env);
        self.watches.serve_behind(&self.state, env.links, &mut self.replies);
        self.watches.tell_links(env.now, self.elected, &self.state, &mut self.replies);
        self.continue_snapshot();
        if self.may_sweep() {
            self.sweeping = self.state.sweep(SWEEP_PER_TURN);
        }
        self.replies.take_all(&mut self.out.answers);
        self.check();
        self.hand_out(out);
    }

    /// What holds between turns.
    fn check(&self) {
        assert!(!self.leading || self.elected, "who serves has been elected");
        assert!(self.leading || self.placement.is_none(), "only who leads thinks of its place");
        assert!(self.leading || self.parked.is_empty(), "only who leads has a lease's end to wait for");
        assert!(self.leading || self.propose_again_at.is_none(), "only who leads proposes of its own accord");
        assert!(!self.follows, "a turn ends when nothing follows from its events");
        let begun = u64::from(self.backlog.is_inside_entry());
        assert_eq!(self.applied.0 + begun, self.state.applied(), "the state is that of the last slot");
        assert!(
            self.spent.is_within(self.settings.apply.turn_cost),
            "at most one command goes beyond the share"
        );
        assert!(self.backlog.is_empty() || self.spent.is_over(), "only what the share has no room for waits");
        assert!(
            self.leads_from.is_none_or(|slot| slot > self.applied),
            "who leads with a slot does when it is applied"
        );
        assert!(self.state.version() <= self.settings.known, "nothing is in force that is not known here");
        assert!(self.snapshotting.newest() <= Some(self.applied), "no snapshot of what was not applied");
    }

    /// When there is something to do although nothing happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Mono> {
        let digests = self.digests.deadline().filter(|_| self.leading);
        let leases = self.leases.next_deadline().filter(|_| self.leading && self.clock().is_some());
        let versions = self.may_raise_version().then(|| self.versions.deadline());
        let stopping = self.stopping.map(|stopping| stopping.until);
        let placement = self.placement.as_ref().and_then(Placement::deadline);
        let watermark = self.watches.watermark_due(&self.state);
        let waiting = [self.queries.deadline(), self.seekers.deadline(), placement, watermark];
        let own = [self.engine.next_deadline(), leases, digests, versions, self.propose_again_at, stopping];
        own.into_iter().chain(waiting).flatten().min()
    }

    /// Whether there is work that goes on without any event.
    #[must_use]
    pub fn has_work(&self, links: &dyn Links) -> bool {
        self.clients.asks()
            || !self.backlog.is_empty()
            || self.queries.has_next(links)
            || self.slices.has_ready()
            || self.watches.has_work(links)
            || self.snapshotting.wants_slice()
            || self.may_sweep()
    }

    /// Why the replica is not to be relied on, if it is not; `engine` is its engine's status.
    pub fn unready(&mut self, engine: &Status) -> Option<Unready> {
        self.readiness.judge(engine, self.applied)
    }

    /// The engine, to look at.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The state, to look at.
    #[must_use]
    pub fn state(&self) -> &Keyspace {
        &self.state
    }

    /// The last slot applied.
    #[must_use]
    pub fn applied(&self) -> Slot {
        self.applied
    }

    /// The last slot that is here to be applied, or is applied: between turns, the engine's commit index.
    #[must_use]
    pub fn taken_up(&self) -> Slot {
        self.backlog.last().unwrap_or(self.applied)
    }

    /// What the engine has committed and the next [`Replica::poll`] takes up.
    #[must_use]
    pub fn committed(&self) -> &[(Slot, Value)] {
        if self.follows { &self.engine_out.committed } else { &[] }
    }

    /// The newest snapshot on disk.
    #[must_use]
    pub fn newest_snapshot(&self) -> Option<Slot> {
        self.snapshotting.newest()
    }

    /// Watches that gateways hold here.
    #[must_use]
    pub fn watches(&self) -> usize {
        self.watches.len()
    }

    /// Replicas that were found to differ from the others.
    #[must_use]
    pub fn differing(&self) -> usize {
        self.digests.differing()
    }

    /// Whether some request of a gateway waits that it could still take back.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        let waits_for_log = self.clients.has_reads() || !self.parked.is_empty();
        let waits = !self.queries.is_empty() || self.slices.has_waiting() || !self.seekers.is_empty();
        waits_for_log || waits
    }

    /// What has happened so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// A snapshot or a query under way may need what would be freed.
    fn may_sweep(&self) -> bool {
        self.sweeping && !self.state.is_held_back()
    }

    pub(crate) fn hand_out(&mut self, out: &mut Out) {
        self.replies.take_full(&mut self.out.answers);
        self.out.move_to(out);
    }

    pub(crate) fn step_engine(&mut self, env: &Env<'_>, input: Input) {
        self.engine.step(env.now, env.liveness, input);
    }

    fn on_link_closed(&mut self, link: LinkId) {
        self.clients.link_closed(link);
        self.queries.close_link(link);
        self.slices.close_link(link);
        self.seekers.close_link(link);
        self.moving = self.moving.take().filter(|moving| !moving.is_of(link));
        self.watches.close_link(link);
        self.parked.retain(|waiter, _| waiter.link != link);
    }

    fn on_message(&mut self, env: &Env<'_>, from: NodeId, message: Message) {
        // These bring records for the journal, and come again.
        let brings_records = matches!(message, Message::Accept(_) | Message::Chosen(_));
        if !(brings_records && env.disk.crowded) {
            self.step_engine(env, Input::Message { from, message });
        }
    }

    fn on_persisted(&mut self, env: &Env<'_>, upto: PersistSeq, lsn: Lsn) {
        self.step_engine(env, Input::Persisted(upto));
        if let Some(floor) = self.positions.persisted(Ticket(upto.0), lsn) {
            self.out.floor = Some(if mutant!(self.settings.broken, FloorAtEnd) { lsn } else { floor });
        }
    }

    /// What the engine wants sent and made durable.
    fn persist_and_send(&mut self) {
        let Output { records, sends, .. } = &mut self.engine_out;
        if let Some((last, _)) = records.last() {
            // Before the journal has them. What comes to wait for records later on has some of its own. With a base, the
            // journal may let go of older records.
            let has_base = records.iter().any(|(_, record)| matches!(record, Record::Base { .. }));
            if has_base || self.engine.awaits_persisted() {
                self.out.await_durable = Some(*last);
            }
            let ticket = Ticket(last.0);
            for (_, record) in records.iter() {
                self.snapshotting.logged(record.payload_len() + RECORD_BYTES);
                self.positions.appended(ticket, record);
            }
        }
        self.out.records.append(records);
        self.out.sends.append(sends);
    }

    /// What follows from what the engine has committed, refused and found out.
    fn follow(&mut self, env: &Env<'_>) {
        let mut output = std::mem::take(&mut self.engine_out);
        for (slot, value) in output.committed.drain(..) {
            // What is below came in a snapshot.
            if slot > self.applied {
                assert_eq!(slot, self.taken_up().next(), "the engine commits in slot order without gaps");
                self.backlog.push(slot, value);
            }
        }
        self.apply(env);
        // Rejections before the change of role that caused them: these have certainly not entered the log.
        for (tag, rejection) in output.rejected.drain(..) {
            self.on_rejected(env, tag, rejection);
        }
        for (tag, outcome) in output.reads.drain(..) {
            self.on_read_point(env, tag, outcome);
        }
        for event in output.events.drain(..) {
            self.on_engine_event(env, event);
        }
        self.engine_out = output;
    }

    /// Whether there is something to apply, and room for it in this turn.
    fn may_apply(&self) -> bool {
        !self.backlog.is_empty() && !self.spent.is_over()
    }

    /// Applies what waits, up to the share of the turn.
    fn apply(&mut self, env: &Env<'_>) {
        if !self.may_apply() {
            return;
        }
        let mut effects = std::mem::take(&mut self.effects);
        effects.clear();
        let mut subjects = Vec::new();
        while self.may_apply()
            && let Some(piece) = self.backlog.take_next()
        {
            self.apply_piece(piece, &mut effects, &mut subjects);
        }
        self.counters.commands += subjects.len() as u64;
        self.on_effects(env, &effects, &subjects);
        self.effects = effects;
        if self.leads_from.is_some_and(|slot| slot <= self.applied) {
            self.leads_from = None;
            self.on_leading(env);
        }
        for read in self.clients.readable(self.applied) {
            self.serve(env, read);
        }
        self.admit_caught_up(env);
    }

    fn apply_piece(&mut self, piece: Piece, effects: &mut Effects, subjects: &mut Vec<Subject>) {
        let Piece { slot, command, is_last } = piece;
        assert_eq!(slot, self.applied.next(), "slots are applied in order without gaps");
        let (visits, leases) = (effects.visits, effects.leases.len());
        let (mut bytes, mut changes) = (0, 0);
        match command {
            None => self.state.skip(slot.0),
            Some((1, _)) if mutant!(self.settings.broken, CommandSkipped) => {}
            Some((index, command)) => {
                bytes = command.len();
                let proposal = entries::read(command);
                subjects.push(subject(&proposal.command));
                let revisions = effects.revisions.len();
                self.state.apply(slot.0, index, proposal, effects);
                let made = &effects.revisions[revisions..];
                changes = made.iter().map(|revision| revision.events.len()).sum();
            }
        }
        let (visits, leases) = (effects.visits - visits, effects.leases.len() - leases);
        let cost =
            COMMAND_COST + visits + changes * CHANGE_COST + leases * LEASE_COST + bytes / BYTES_PER_COST;
        self.spent.add(cost, self.settings.apply.turn_cost);
        if is_last {
            self.applied = slot;
            if let Some((by, slot, digest)) = self.digests.applied(slot, self.state.digest()) {
                self.out.to_peers.push((by, ToPeer::Digest(slot, digest)));
            }
            // It begins at the end of a turn, and stands for whole slots: turns might all end inside of one.
            if self.is_snapshot_due() {
                self.spent.end();
            }
        }
    }

    fn on_effects(&mut self, env: &Env<'_>, effects: &Effects, subjects: &[Subject]) {
        // The state machine answers each command, in the order applied.
        assert_eq!(effects.replies.len(), subjects.len());
        let last = subjects.len().saturating_sub(1);
        for (index, subject) in subjects.iter().enumerate() {
            let swapped = mutant!(self.settings.broken, AnswersSwapped);
            let answer = &effects.replies[if swapped { last - index } else { index }];
            for waiter in self.clients.applied(*subject) {
                match &answer.outcome {
                    Ok(Reply::SessionOpened { session, .. }) => {
                        let opened = wire::SessionOpened { session: session.0 };
                        self.replies.add(waiter.link, waiter.request, Kind::SessionOpened(opened));
                    }
                    _ if *subject == Subject::LeaderRegions => self.tell_leading(env, waiter, String::new()),
                    outcome => self.answer(env, waiter.link, waiter.request, outcome),
                }
            }
        }
        if subjects.contains(&Subject::LeaderRegions) {
            self.reconsider_place();
        }
        self.sweeping |= effects.compacted.is_some();
        if let Some(version) = effects.version_raised {
            self.out.notices.push(Notice::VersionRaised { version });
            self.start_clock(env);
        }
        self.on_lease_effects(env, &effects.leases);
        self.on_revisions(env, &effects.revisions);
    }

    fn on_lease_effects(&mut self, env: &Env<'_>, effects: &[LeaseEffect]) {
        if !self.leading {
            return;
        }
        let now = env.now;
        let mut awaited = false;
        for effect in effects {
            match *effect {
                LeaseEffect::Granted { grant, ttl_s } => {
                    let halved = mutant!(self.settings.broken, LeaseHalved);
                    self.leases.granted(now, grant, if halved { ttl_s / 2 } else { ttl_s });
                }
                LeaseEffect::Revoked { id } => {
                    self.leases.revoked(id);
                    awaited = true;
                }
                LeaseEffect::Checkpointed { id, remaining_s } => {
                    self.leases.checkpointed(id, remaining_s);
                    awaited |= remaining_s == 0;
                }
                LeaseEffect::ClockStarted { owner, clock } => {
                    // That of an earlier leader may be chosen late, and then this one's has to begin once more.
                    self.started = (owner == self.clock_owner()).then_some(clock);
                    self.start_clock(env);
                    awaited = true;
                }
            }
        }
        if awaited {
            self.look_at_parked(env);
        }
    }

    fn look_at_parked(&mut self, env: &Env<'_>) {
        for (waiter, (terms, asked)) in std::mem::take(&mut self.parked) {
            self.on_read(env, PendingRead { waiter, terms, reading: Reading::KeepAlive(asked) });
        }
    }

    fn on_revisions(&mut self, env: &Env<'_>, revisions: &[RevisionEvents]) {
        if !revisions.is_empty() {
            self.watches.on_revisions(revisions, &self.state, env.links, &mut self.replies);
        }
    }

    pub(crate) fn on_rejected(&mut self, env: &Env<'_>, tag: Tag, rejection: Rejection) {
        self.counters.rejected += 1;
        let why = match rejection {
            Rejection::NotLeader { hint } => {
                self.replies.leader = hint;
                Why::NotLeader
            }
            Rejection::Overloaded => Why::Overloaded,
            // It leads nothing until it is restarted. Others lead, and a gateway must look for them.
            Rejection::Fenced => {
                self.replies.leader = None;
                Why::NotLeader
            }
        };
        match self.clients.rejected(tag) {
            Some(waiters) => {
                for waiter in waiters {
                    self.replies.refuse(waiter.link, waiter.request, why);
                }
            }
            None if self.leading => {
                let again = || env.now.after(PROPOSE_AGAIN_AFTER);
                self.propose_again_at.get_or_insert_with(again);
            }
            None => {}
        }
    }

    fn on_read_point(&mut self, env: &Env<'_>, tag: Tag, outcome: ReadOutcome) {
        let reads = self.clients.point_found(tag);
        match outcome {
            ReadOutcome::At(point) if point <= self.applied => {
                for read in reads {
                    self.serve(env, read);
                }
            }
            ReadOutcome::At(point) => {
                for read in reads {
                    self.clients.wait_for_apply(point, read);
                }
            }
            ReadOutcome::NotLeader { hint } => {
                self.replies.leader = hint;
                self.refuse_reads(reads);
            }
            ReadOutcome::Lost => self.refuse_reads(reads),
        }
    }

    /// A read may always be asked again elsewhere.
    fn refuse_reads(&mut self, reads: Vec<PendingRead>) {
        for read in reads {
            self.replies.refuse(read.waiter.link, read.waiter.request, Why::NotLeader);
        }
    }

    fn on_engine_event(&mut self, env: &Env<'_>, event: EngineEvent) {
        let notice = match event {
            EngineEvent::RoleChanged { role, ballot, leader } => {
                self.on_role(env, role, ballot.round, leader);
                Notice::Role { role, ballot, leader }
            }
            EngineEvent::LeadershipReady => {
                // The state that leases and limits are taken from is that of everything committed before.
                self.leads_from = self.backlog.last();
                if self.leads_from.is_none() {
                    self.on_leading(env);
                }
                return;
            }
            EngineEvent::SnapshotNeeded { to, at_least } => return self.send_snapshot(to, at_least),
            EngineEvent::Fenced => Notice::Fenced,
            EngineEvent::PayloadRepaired { slot } => Notice::PayloadRepaired { slot },
            EngineEvent::Healed => Notice::Healed,
            EngineEvent::TooManyForgot { nodes } => Notice::TooManyForgot { nodes },
            EngineEvent::Blocked { nodes } => Notice::Blocked { nodes },
            EngineEvent::Survived => Notice::Survived,
            EngineEvent::Suspicious { from, suspicion } => Notice::Suspicious { from, suspicion },
            EngineEvent::PromiseDoubtful => Notice::PromiseDoubtful,
            EngineEvent::TransferAborted { to } => {
                self.end_move(env, self.settings.node);
                self.hand_over_to_another(env);
                Notice::TransferAborted { to }
            }
        };
        self.out.notices.push(notice);
    }

    fn on_role(&mut self, env: &Env<'_>, role: Role, round: u64, leader: Option<NodeId>) {
        if leader.is_some() && leader != self.replies.leader {
            self.counters.leader_changes += 1;
        }
        self.replies.term = round;
        self.replies.leader = leader;
        self.elected = role == Role::Leader;
        if let Some(leader) = leader.filter(|leader| *leader != self.settings.node) {
            self.end_move(env, leader);
        }
        if role != Role::Leader {
            self.watches.on_unled();
            self.leading = false;
            self.leads_from = None;
            self.placement = None;
            self.leases.stop();
            self.propose_again_at = None;
            let why = if mutant!(self.settings.broken, UnknownAsRefused) {
                Why::NotLeader
            } else {
                Why::OutcomeUnknown
            };
            self.clients.leadership_lost(why, &mut self.replies);
            for waiter in std::mem::take(&mut self.parked).into_keys() {
                self.replies.refuse(waiter.link, waiter.request, Why::NotLeader);
            }
        }
    }

    pub(crate) fn on_leading(&mut self, env: &Env<'_>) {
        assert!(self.elected, "who serves has been elected");
        self.leading = true;
        if env.disk.full {
            let asked = self.relief.map_or(self.settings.node, |relief| relief.asked);
            self.relief = Some(Relief::next(self.relief, asked, env.now));
        }
        if !mutant!(self.settings.broken, LeasesNotStarted) {
            let grace = self.settings.timing.election;
            self.leases.start(env.now, grace, self.state.leases());
        }
        self.started = None;
        self.start_clock(env);
        self.versions.begin(env.now);
        self.reconsider_place();
        // The limits must be the same on all replicas, so it is the leader's configuration that counts.
        if self.state.limits() != self.settings.limits {
            self.propose_internal(env, &Command::SetLimits(self.settings.limits));
        }
    }

    /// A leader asks the others for their digests, if there is something new to compare.
    fn compare_digests(&mut self, env: &Env<'_>) {
        if !self.leading {
            return;
        }
        let Some((slot, differing)) = self.digests.ask(env.now, self.settings.node, &self.settings.voters)
        else {
            return;
        };
        self.on_differing(env, &differing);
        for peer in self.settings.voters.iter().filter(|voter| *voter != self.settings.node) {
            self.out.to_peers.push((peer, ToPeer::DigestAsked(slot)));
        }
    }

    /// There is a newer version than the one in force, and this replica may say so.
    fn may_raise_version(&self) -> bool {
        self.leading && self.state.version() < self.settings.known
    }

    /// A leader asks the others what they know, and has the version rise as far as all do.
    fn raise_version(&mut self, env: &Env<'_>) {
        if !self.may_raise_version() {
            return;
        }
        let Settings { node: me, known, .. } = self.settings;
        if self.versions.take_due(env.now) {
            for peer in self.settings.voters.iter().filter(|voter| *voter != me) {
                self.out.to_peers.push((peer, ToPeer::VersionAsked));
            }
        }
        let by_all = if mutant!(self.settings.broken, VersionRaisedAlone) {
            Some(known)
        } else {
            self.versions.known_by_all(me, known, &self.settings.voters)
        };
        let Some(version) = by_all.filter(|version| *version > self.state.version()) else { return };
        if self.versions.propose(version) {
            self.propose_internal(env, &Command::RaiseVersion(version));
        }
    }

    fn on_digest(&mut self, env: &Env<'_>, by: NodeId, slot: Slot, digest: u64) {
        if self.leading {
            let differing = self.digests.told(self.settings.node, by, slot, digest, &self.settings.voters);
            self.on_differing(env, &differing);
        }
    }

    /// These replicas hold something else than the others.
    fn on_differing(&mut self, env: &Env<'_>, nodes: &NodeSet) {
        for node in nodes.iter() {
            let alarm = Alarm { member: u64::from(node.0), kind: AlarmKind::Corrupt };
            self.out.notices.push(Notice::Differs { node });
            if self.state.alarms().all(|raised| raised != alarm) {
                self.propose_internal(env, &Command::RaiseAlarm(alarm));
            }
        }
    }

    /// Has the lease clock of this leader count, where the cluster version knows of that.
    fn start_clock(&mut self, env: &Env<'_>) {
        if self.leading && self.clock().is_none() {
            self.propose_internal(env, &Command::StartClock(self.clock_owner()));
        }
    }

    /// By which clock this leader ends and renews leases; none before all that earlier leaders have found of them is done, or
    /// never will be.
    pub(crate) fn clock(&self) -> Option<ClockStart> {
        if self.state.version() < ClusterVersion::STARTED_CLOCKS {
            Some(ClockStart::NONE)
        } else {
            self.started
        }
    }

    fn clock_owner(&self) -> ClockOwner {
        ClockOwner { round: self.replies.term, node: u64::from(self.settings.node.0) }
    }

    fn propose_due_leases(&mut self, env: &Env<'_>) {
        if !self.leading {
            return;
        }
        let now = env.now;
        if self.propose_again_at.is_some_and(|at| at <= now) {
            self.propose_again_at = None;
            self.leases.propose_again(now);
            self.start_clock(env);
            self.look_at_parked(env);
        }
        let Some(clock) = self.clock() else { return };
        let due = self.leases.take_due(now, LEASES_PER_PROPOSAL);
        if !due.expired.is_empty() {
            let count = due.expired.len();
            self.counters.leases_expired += count as u64;
            self.out.notices.push(Notice::LeasesExpired { count });
            self.propose_internal(env, &Command::ExpireLeases(clock, due.expired));
        }
        if !due.checkpoints.is_empty() {
            self.propose_internal(env, &Command::CheckpointLeases(clock, due.checkpoints));
        }
    }

    fn on_snapshot_received(&mut self, env: &Env<'_>, slot: Slot, config: Arc<Config>, state: Keyspace) {
        // What is committed is here, and only waits to be applied: a leader that jumped over it would miss what it does to leases
        // and whom it answers.
        if slot <= self.taken_up().max(self.engine.status().commit) {
            return;
        }
        self.backlog.clear();
        self.out.notices.push(Notice::SnapshotInstalled { slot });
        if !mutant!(self.settings.broken, WatchOverSnapshot) {
            self.watches.on_state_replaced(self.state.resolved(), state.resolved(), &mut self.replies);
        }
        self.state = state;
        self.state.set_write_bounds(self.settings.write_bounds);
        self.state.set_broken(self.settings.broken_state);
        self.applied = slot;
        if self.snapshotting.replaced(slot) {
            self.out.snapshots.push(ToSnapshots::Abandon);
        }
        self.digests.replaced();
        self.step_engine(env, Input::SnapshotInstalled { slot, config });
        for read in self.clients.readable(self.applied) {
            self.serve(env, read);
        }
    }
}

/// What a command of the log is about, for whoever waits for it.
fn subject(command: &Command) -> Subject {
    match command {
        Command::Write { session, seq, .. } => Subject::Write(*session, *seq),
        Command::OpenSession { nonce } => Subject::OpenSession(*nonce),
        Command::SetLeaderRegions(_) => Subject::LeaderRegions,
        Command::CloseSession(_)
        | Command::ExpireLeases(..)
        | Command::CheckpointLeases(..)
        | Command::StartClock(_)
        | Command::SetLimits(_)
        | Command::RaiseAlarm(_)
        | Command::RaiseVersion(_) => Subject::Internal,
    }
}

pub(crate) fn encode(command: &Command) -> Bytes {
    let mut bytes = BytesMut::new();
    command.encode(&mut bytes);
    bytes.freeze()
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica")
            .field("group", &self.settings.group)
            .field("node", &self.settings.node)
            .field("applied", &self.applied)
            .finish_non_exhaustive()
    }
}
