//! One group's replica on this node: a task that owns the group's consensus engine and its state machine. It waits for
//! one of the [`GroupEvent`]s, steps the engine, and carries out what comes of it. Nothing else touches either.

mod clients;
mod digests;
mod handle;
mod handover;
mod leading;
mod log_positions;
mod placement;
mod queries;
mod readiness;
mod recent;
mod replies;
mod requests;
mod seekers;
mod snapshotting;
#[cfg(test)]
mod tests;
mod timer;
mod told;
mod watches;

use std::sync::Arc;
use std::time::Duration;

use api::gaios::link::v1 as wire;
use api::gaios::link::v1::refused::Why;
use api::gaios::link::v1::response::Kind;
use bytes::{Bytes, BytesMut};
use consensus_core::{
    Config, Durable, Engine, Event, Input, Message, Mono, NodeId, NodeSet, Options, Output, PersistSeq,
    ReadOutcome, Record, Rejection, Role, Slot, Tag, Value,
};
use journal::{Lsn, Ticket};
use keyspace::{Alarm, AlarmKind, Command, Effects, Keyspace, LeaseEffect, Reply, RevisionEvents};
use tracing::{debug, error, info};

pub(crate) use self::handle::{GroupEvent, GroupHandle};
pub(crate) use self::log_positions::LogPositions;
pub(crate) use self::snapshotting::{decode_meta, encode_meta, load};

use self::clients::{Clients, PendingRead, Reading, Subject, Waiter};
use self::digests::Digests;
use self::handover::{Relief, Stopping};
use self::leading::Move;
use self::placement::Placement;
use self::queries::Queries;
use self::readiness::Readiness;
use self::replies::Replies;
use self::seekers::Seekers;
use self::snapshotting::Snapshotting;
use self::timer::Timer;
use self::watches::Watches;
use crate::clock;
use crate::entries;
use crate::lease_clock::LeaseClock;
use crate::metrics::GroupMetrics;
use crate::node::Shared;

/// Leases removed or checkpointed in one proposal.
const LEASES_PER_PROPOSAL: usize = 1000;
/// After this long the group makes proposals about leases again that the engine had no room for.
const PROPOSE_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// Records of garbage freed before the group turns to other work.
const SWEEP_PER_TURN: usize = 256;
/// How often a replica without a state asks its peers for one.
const SNAPSHOT_REQUEST_EVERY: Duration = Duration::from_secs(1);

/// What recovery found of a group.
pub(crate) struct GroupStart {
    pub(crate) options: Options,
    /// What the journal held, [`Durable::snapshot`] included.
    pub(crate) durable: Durable,
    /// The newest snapshot on disk and the slot it was taken at.
    pub(crate) snapshot: Option<(Slot, Keyspace)>,
    /// Where the journal holds the group's records.
    pub(crate) positions: LogPositions,
}

/// Runs a group until the node stops. A group whose snapshot is lost first gets one from a peer.
pub(crate) async fn run(shared: Arc<Shared>, handle: Arc<GroupHandle>, mut start: GroupStart) {
    let base = start.durable.base();
    if start.snapshot.as_ref().map_or(Slot(0), |(slot, _)| *slot) < base {
        error!(
            group = handle.id.0,
            slot = base.0,
            "the snapshot that the journal builds on is missing or damaged: waiting for a peer's"
        );
        let Some((slot, config, state)) = obtain_snapshot(&shared, &handle, base).await else { return };
        start.durable.snapshot(slot, config);
        start.snapshot = Some((slot, state));
    }
    Group::new(shared, handle, start).run().await;
}

/// Asks the peers until one has sent a snapshot at `at_least` or later. `None` when the node stops first.
async fn obtain_snapshot(
    shared: &Shared,
    handle: &GroupHandle,
    at_least: Slot,
) -> Option<(Slot, Arc<Config>, Keyspace)> {
    let mut again = tokio::time::interval(SNAPSHOT_REQUEST_EVERY);
    let mut events = Vec::new();
    loop {
        tokio::select! {
            () = shared.stopping.cancelled() => return None,
            _ = again.tick() => {
                for peer in shared.peers.values() {
                    peer.send_snapshot_request(handle.id, at_least);
                }
            }
            () = handle.inbox.wait() => {}
        }
        handle.inbox.take(&mut events);
        for event in events.drain(..) {
            // Until it has its state, a replica answers nobody: to peers it is down, gateways ask elsewhere.
            match event {
                GroupEvent::SnapshotReceived { slot, config, state } if slot >= at_least => {
                    return Some((slot, config, *state));
                }
                GroupEvent::Requests { link, requests } => {
                    let refusals = requests
                        .iter()
                        .map(|request| crate::link::refusal(request.id, 0, Why::NoGroup, None));
                    link.send(refusals.collect());
                }
                GroupEvent::SnapshotReceived { .. }
                | GroupEvent::Peer { .. }
                | GroupEvent::LinkClosed(_)
                | GroupEvent::LinkDrained
                | GroupEvent::Persisted { .. }
                | GroupEvent::PersistFailed
                | GroupEvent::Liveness(_)
                | GroupEvent::SnapshotProgress(_)
                | GroupEvent::SnapshotRequested { .. }
                | GroupEvent::SnapshotLost { .. }
                | GroupEvent::SnapshotSent { .. }
                | GroupEvent::DigestAsked { .. }
                | GroupEvent::DigestTold { .. }
                | GroupEvent::SnapshotWanted { .. } => {}
            }
        }
    }
}

pub(crate) struct Group {
    shared: Arc<Shared>,
    handle: Arc<GroupHandle>,
    engine: Engine,
    state: Keyspace,
    applied: Slot,
    clients: Clients,
    /// Linearizable reads of this turn that need a read point from the engine.
    asking: Vec<PendingRead>,
    queries: Queries,
    watches: Watches,
    leases: LeaseClock,
    /// Keep-alives that wait for the log: some of their leases have ended and are not removed yet, or are given less
    /// time there than the answer would say.
    parked: Vec<(Waiter, Vec<i64>)>,
    /// When to make proposals about leases again that were refused.
    propose_again_at: Option<Mono>,
    /// This replica leads, as the engine said last; what it gets may be queued.
    elected: bool,
    /// This replica leads and may serve.
    leading: bool,
    /// A compaction left garbage in memory that is not freed yet.
    sweeping: bool,
    positions: LogPositions,
    snapshotting: Snapshotting,
    digests: Digests,
    replies: Replies,
    seekers: Seekers,
    readiness: Readiness,
    out: Output,
    effects: Effects,
    label: Vec<u8>,
    metrics: GroupMetrics,
    /// The node wants to stop.
    stopping: Option<Stopping>,
    /// For a leader whose disk is full.
    relief: Option<Relief>,
    /// For a leader that is not where the operator wants it.
    placement: Option<Placement>,
    /// An operator waits for another leader.
    moving: Option<Move>,
    /// Whose disks are full, while this leader can make nothing durable for that.
    disks_full: NodeSet,
    timer: Timer,
}

impl Group {
    fn new(shared: Arc<Shared>, handle: Arc<GroupHandle>, start: GroupStart) -> Group {
        let metrics = shared.metrics.of_group(handle.id);
        let engine = Engine::new(start.options, start.durable, clock::now());
        let newest = start.snapshot.as_ref().map(|(slot, _)| *slot);
        let (applied, state) =
            start.snapshot.unwrap_or_else(|| (Slot(0), Keyspace::new(keyspace::Options::default())));
        let watches = Watches::new(state.revision());
        Group {
            snapshotting: Snapshotting::new(newest),
            shared,
            handle,
            engine,
            state,
            applied,
            clients: Clients::default(),
            asking: Vec::new(),
            queries: Queries::default(),
            watches,
            leases: LeaseClock::default(),
            parked: Vec::new(),
            propose_again_at: None,
            elected: false,
            leading: false,
            sweeping: false,
            positions: start.positions,
            digests: Digests::default(),
            replies: Replies::default(),
            seekers: Seekers::default(),
            readiness: Readiness::default(),
            out: Output::default(),
            effects: Effects::default(),
            label: Vec::new(),
            metrics,
            stopping: None,
            relief: None,
            placement: None,
            moving: None,
            disks_full: NodeSet::new(),
            timer: Timer::default(),
        }
    }

    /// Runs until the node stops.
    async fn run(mut self) {
        let mut events = Vec::new();
        // The engine may have something to say before anything happens: entries to apply, a deadline.
        self.turn(&mut events);
        loop {
            if self.has_work() {
                tokio::task::yield_now().await;
            } else {
                self.wait().await;
            }
            self.handle.inbox.take(&mut events);
            self.turn(&mut events);
            if self.is_done() {
                info!(group = self.handle.id.0, "stopped");
                return;
            }
        }
    }

    /// Waits for an event, the nearest deadline, or the node's wish to stop. May return before.
    async fn wait(&mut self) {
        let deadline = self.deadline();
        let stop = async {
            match self.stopping {
                None => self.shared.stopping.cancelled().await,
                Some(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.handle.inbox.wait() => {}
            () = self.timer.wait(deadline) => {}
            () = stop => {}
        }
    }

    fn deadline(&self) -> Option<Mono> {
        let (leases, digests) =
            if self.leading { (self.leases.next_deadline(), self.digests.deadline()) } else { (None, None) };
        let stopping = self.stopping.map(|stopping| stopping.until);
        let placement = self.placement.as_ref().and_then(Placement::deadline);
        let waiting = [self.queries.deadline(), self.seekers.deadline(), placement];
        let own = [self.engine.next_deadline(), leases, digests, self.propose_again_at, stopping];
        own.into_iter().chain(waiting).flatten().min()
    }

    /// Work that goes on without any event.
    fn has_work(&self) -> bool {
        let asks = !self.asking.is_empty();
        asks || self.queries.has_next()
            || self.watches.has_work()
            || self.snapshotting.wants_slice()
            || self.may_sweep()
    }

    /// A snapshot under way may need what would be freed.
    fn may_sweep(&self) -> bool {
        self.sweeping && !self.snapshotting.is_taking()
    }

    /// One turn: everything that came in, then what follows from it.
    fn turn(&mut self, events: &mut Vec<GroupEvent>) {
        for event in events.drain(..) {
            self.on_event(event);
        }
        self.ask_for_read_point();
        let now = clock::now();
        if self.engine.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.step(Input::Timeout);
        }
        self.stop_in_order(now);
        self.seek_relief(now);
        self.seek_better_place(now);
        self.watch_disks(now);
        self.carry_out();
        self.propose_due_leases();
        self.compare_digests(now);
        self.carry_out();
        self.answer_seekers();
        self.answer_queries();
        self.watches.serve_behind(&self.state, &mut self.replies);
        self.continue_snapshot();
        if self.may_sweep() {
            self.sweeping = self.state.sweep(SWEEP_PER_TURN);
        }
        self.replies.flush();
        self.publish();
    }

    fn step(&mut self, input: Input) {
        // Sampled after the input was taken up, as the lease rules demand.
        let now = clock::now();
        let liveness = self.shared.liveness.read();
        self.engine.step(now, &liveness, input);
    }

    fn on_event(&mut self, event: GroupEvent) {
        match event {
            GroupEvent::Peer { from, message } => self.on_message(from, message),
            GroupEvent::Requests { link, requests } => {
                for request in requests {
                    self.on_request(&link, request);
                }
            }
            GroupEvent::LinkClosed(link) => {
                self.clients.link_closed(link);
                self.asking.retain(|read| read.waiter.link.id != link);
                self.queries.close_link(link);
                self.seekers.close_link(link);
                self.moving = self.moving.take().filter(|moving| !moving.is_of(link));
                self.watches.close_link(link);
                self.parked.retain(|(waiter, _)| waiter.link.id != link);
            }
            // The turn goes on with what waited for it.
            GroupEvent::LinkDrained => {}
            GroupEvent::Persisted { upto, lsn } => self.on_persisted(upto, lsn),
            GroupEvent::PersistFailed => self.step(Input::PersistFailed),
            GroupEvent::Liveness(event) => self.step(Input::from(event)),
            GroupEvent::SnapshotProgress(progress) => self.on_snapshot_progress(progress),
            GroupEvent::SnapshotReceived { slot, config, state } => {
                self.on_snapshot_received(slot, config, *state);
            }
            GroupEvent::SnapshotRequested { by, at_least } => self.send_snapshot(by, at_least),
            GroupEvent::SnapshotLost { slot } => self.snapshotting.lost(slot),
            // Also when it arrived: the log may have moved on meanwhile, or the peer had no use for it.
            GroupEvent::SnapshotSent { to } => {
                self.metrics.counters.snapshots_sent.inc();
                self.snapshotting.sent(to);
                self.step(Input::SnapshotEnded { to });
            }
            GroupEvent::SnapshotWanted { floor } => self.on_snapshot_wanted(floor),
            GroupEvent::DigestAsked { by, slot } => {
                if let Some(digest) = self.digests.asked(by, slot) {
                    self.tell_digest(by, slot, digest);
                }
            }
            GroupEvent::DigestTold { by, slot, digest } => self.on_digest(by, slot, digest),
        }
    }

    fn on_message(&mut self, from: NodeId, message: Message) {
        // These bring records for the journal, and come again.
        let brings_records = matches!(message, Message::Accept(_) | Message::Chosen(_));
        if !(brings_records && self.shared.journal.is_crowded()) {
            self.step(Input::Message { from, message });
        }
    }

    fn on_persisted(&mut self, upto: PersistSeq, lsn: Lsn) {
        self.step(Input::Persisted(upto));
        if let Some(floor) = self.positions.persisted(Ticket(upto.0), lsn) {
            self.shared.journal.set_floor(self.handle.id.0, floor);
        }
    }

    /// Does what the engine wants done, until it wants nothing more.
    fn carry_out(&mut self) {
        loop {
            let mut out = std::mem::take(&mut self.out);
            out.clear();
            self.engine.poll(&mut out);
            if out.is_empty() {
                self.out = out;
                return;
            }
            // What waits for no record leaves before the journal's thread is woken, which may take this core: the way
            // over the other replicas' disks is the longer one.
            out.sends.retain(|send| !self.handle.send_ungated(&self.shared.peers, send));
            self.persist(&mut out.records);
            for send in out.sends.drain(..) {
                self.handle.send_gated(&self.shared.peers, send);
            }
            self.apply(&mut out.committed);
            // Rejections before the change of role that caused them: these have certainly not entered the log.
            for (tag, rejection) in out.rejected.drain(..) {
                self.on_rejected(tag, rejection);
            }
            for (tag, outcome) in out.reads.drain(..) {
                self.on_read_point(tag, outcome);
            }
            for event in out.events.drain(..) {
                self.on_engine_event(event);
            }
            self.out = out;
        }
    }

    fn persist(&mut self, records: &mut Vec<(PersistSeq, Record)>) {
        let Some((last, _)) = records.last() else { return };
        // Before the journal has them. What comes to wait for records later on has some of its own. With a base, the
        // journal may let go of older records.
        let has_base = records.iter().any(|(_, record)| matches!(record, Record::Base { .. }));
        if has_base || self.engine.awaits_persisted() {
            self.handle.await_durable(*last);
        }
        let ticket = Ticket(last.0);
        let mut batch = Vec::with_capacity(records.len());
        for (_, record) in records.drain(..) {
            self.label.clear();
            record.label(&mut self.label);
            let mut payload = BytesMut::with_capacity(record.payload_len());
            record.payload(|piece| payload.extend_from_slice(piece));
            self.snapshotting.logged(payload.len() + self.label.len());
            self.positions.appended(ticket, &record);
            let label = Bytes::copy_from_slice(&self.label);
            batch.push(journal::Record { label, payload: vec![payload.freeze()] });
        }
        let batch = journal::Batch { group: self.handle.id.0, ticket, records: batch };
        if let Err(error) = self.shared.journal.append(batch) {
            error!(group = self.handle.id.0, %error, "the journal takes nothing: this node leaves the group until it is restarted");
            self.step(Input::PersistFailed);
        }
    }

    fn apply(&mut self, committed: &mut Vec<(Slot, Value)>) {
        if committed.is_empty() {
            return;
        }
        let begun = clock::now();
        let mut effects = std::mem::take(&mut self.effects);
        effects.clear();
        let mut subjects = Vec::new();
        for (slot, value) in committed.drain(..) {
            if slot <= self.applied {
                // In the snapshot already.
                continue;
            }
            assert_eq!(slot, self.applied.next(), "the engine commits in slot order without gaps");
            match value {
                Value::Noop => self.state.skip(slot.0),
                Value::Batch(commands) => {
                    for (index, command) in commands.iter().enumerate() {
                        let command = entries::read(command.clone());
                        subjects.push(subject(&command));
                        let index = u32::try_from(index).expect("an entry holds fewer than 2^32 commands");
                        self.state.apply(slot.0, index, command, &mut effects);
                    }
                }
            }
            self.applied = slot;
            if let Some((by, slot, digest)) = self.digests.applied(slot, self.state.digest()) {
                self.tell_digest(by, slot, digest);
            }
        }
        self.metrics.applied(subjects.len() as u64, clock::now().since(begun));
        self.on_effects(&effects, &subjects);
        self.effects = effects;
        for read in self.clients.readable(self.applied) {
            self.serve(read);
        }
    }

    fn on_effects(&mut self, effects: &Effects, subjects: &[Subject]) {
        // The state machine answers each command, in the order applied.
        assert_eq!(effects.replies.len(), subjects.len());
        for (answer, subject) in effects.replies.iter().zip(subjects) {
            for waiter in self.clients.applied(*subject) {
                match &answer.outcome {
                    Ok(Reply::SessionOpened { session, .. }) => {
                        let opened = wire::SessionOpened { session: session.0 };
                        self.replies.add(&waiter.link, waiter.request, Kind::SessionOpened(opened));
                    }
                    _ if *subject == Subject::LeaderRegions => self.tell_leading(&waiter, String::new()),
                    outcome => self.answer(&waiter.link, waiter.request, outcome),
                }
            }
        }
        if subjects.contains(&Subject::LeaderRegions) {
            self.reconsider_place();
        }
        self.sweeping |= effects.compacted.is_some();
        self.on_lease_effects(&effects.leases);
        self.on_revisions(&effects.revisions);
    }

    fn on_lease_effects(&mut self, effects: &[LeaseEffect]) {
        if !self.leading {
            return;
        }
        let now = clock::now();
        let mut awaited = false;
        for effect in effects {
            match *effect {
                LeaseEffect::Granted { id, ttl_s } => self.leases.granted(now, id, ttl_s),
                LeaseEffect::Revoked { id } => {
                    self.leases.revoked(id);
                    awaited = true;
                }
                LeaseEffect::Checkpointed { id, remaining_s } => {
                    self.leases.checkpointed(id, remaining_s);
                    awaited |= remaining_s == 0;
                }
            }
        }
        if awaited {
            self.look_at_parked();
        }
    }

    fn look_at_parked(&mut self) {
        for (waiter, leases) in std::mem::take(&mut self.parked) {
            self.on_read(&waiter.link, waiter.request, Reading::KeepAlive(leases));
        }
    }

    fn on_revisions(&mut self, revisions: &[RevisionEvents]) {
        if !revisions.is_empty() {
            self.watches.on_revisions(revisions, &self.state, &mut self.replies);
        }
    }

    fn on_rejected(&mut self, tag: Tag, rejection: Rejection) {
        self.metrics.counters.rejected.inc();
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
                    self.replies.refuse(&waiter.link, waiter.request, why);
                }
            }
            None if self.leading => {
                let again = || clock::now().after(PROPOSE_AGAIN_AFTER);
                self.propose_again_at.get_or_insert_with(again);
            }
            None => {}
        }
    }

    fn on_read_point(&mut self, tag: Tag, outcome: ReadOutcome) {
        let reads = self.clients.point_found(tag);
        match outcome {
            ReadOutcome::At(point) if point <= self.applied => {
                for read in reads {
                    self.serve(read);
                }
            }
            ReadOutcome::At(point) => self.clients.wait_for_apply(point, reads),
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
            self.replies.refuse(&read.waiter.link, read.waiter.request, Why::NotLeader);
        }
    }

    fn on_engine_event(&mut self, event: Event) {
        match event {
            Event::RoleChanged { role, lead, leader } => {
                info!(
                    group = self.handle.id.0,
                    ?role,
                    round = lead.round,
                    leader = leader.map(|l| l.0),
                    "role"
                );
                if leader.is_some() && leader != self.replies.leader {
                    self.metrics.counters.leader_changes.inc();
                }
                self.replies.term = lead.round;
                self.replies.leader = leader;
                self.elected = role == Role::Leader;
                if let Some(leader) = leader.filter(|leader| *leader != self.shared.id) {
                    self.end_move(leader);
                }
                if role != Role::Leader {
                    self.leading = false;
                    self.placement = None;
                    self.leases.stop();
                    self.propose_again_at = None;
                    self.clients.leadership_lost(&mut self.replies);
                    for (waiter, _) in std::mem::take(&mut self.parked) {
                        self.replies.refuse(&waiter.link, waiter.request, Why::NotLeader);
                    }
                }
            }
            Event::LeadershipReady => {
                self.leading = true;
                if self.shared.journal.is_full() {
                    let asked = self.relief.map_or(self.shared.id, |relief| relief.asked);
                    self.relief = Some(Relief::next(self.relief, asked, clock::now()));
                }
                let grace = self.shared.timing.election;
                let leases =
                    self.state.leases().map(|lease| (lease.id, lease.granted_ttl_s, lease.remaining_s));
                self.leases.start(clock::now(), grace, leases);
                self.reconsider_place();
                // The limits must be the same on all replicas, so it is the leader's configuration that counts.
                if self.state.limits() != self.shared.limits {
                    self.propose_internal(&Command::SetLimits(self.shared.limits));
                }
            }
            Event::SnapshotNeeded { to, at_least } => self.send_snapshot(to, at_least),
            Event::Fenced => {
                error!(
                    group = self.handle.id.0,
                    "fenced: this replica takes no part until the node is restarted"
                );
            }
            Event::PayloadRepaired { slot } => {
                info!(group = self.handle.id.0, slot = slot.0, "a damaged entry was repaired from a peer");
            }
            Event::Healed => {
                info!(group = self.handle.id.0, "everything the disk may have forgotten is made up for")
            }
            Event::TooManyForgot { nodes } => {
                error!(
                    group = self.handle.id.0,
                    %nodes,
                    "these nodes have all lost their disks or directories: what the group had acknowledged may be lost. If \
                     one of them still has its directory, put it back; if not, choose the node that holds most with `gaios ctl \
                     recover`; if there is nothing to keep, empty the directories of all nodes"
                );
            }
            Event::Blocked { nodes } => {
                error!(
                    group = self.handle.id.0,
                    %nodes,
                    "no leader can come to power: all voters have answered, and these nodes have lost what they voted for, so \
                     that nobody knows what was acknowledged. If one of them still has its directory, put it back; if not, \
                     choose the node that holds most with `gaios ctl recover`"
                );
            }
            Event::Survived => {
                info!(
                    group = self.handle.id.0,
                    "what this node holds is what there is: the group has a leader"
                );
                self.shared.group_survived(self.handle.id);
            }
            Event::Suspicious { from, suspicion } => {
                let detail = format_args!("{suspicion:?}");
                self.shared.distrust(from, Some(self.handle.id), suspicion.into(), &detail);
            }
            Event::PromiseDoubtful => {
                error!(
                    group = self.handle.id.0,
                    "this node's disk says that it has promised a round which no election explains, so it cannot follow any \
                     leader: {}. If all nodes say so, choose one of them with `gaios ctl recover` first",
                    journal::EMPTY_IT
                );
            }
            Event::TransferAborted { to } => {
                info!(group = self.handle.id.0, to = to.0, "leadership was not handed over");
                self.end_move(self.shared.id);
                self.hand_over_to_another();
            }
        }
    }

    fn tell_digest(&self, to: NodeId, slot: Slot, digest: u64) {
        if let Some(peer) = self.shared.peers.get(&to) {
            peer.send_digest(self.handle.id, slot, digest);
        }
    }

    /// A leader asks the others for their digests, if there is something new to compare.
    fn compare_digests(&mut self, now: Mono) {
        if !self.leading {
            return;
        }
        let Some((slot, differing)) = self.digests.ask(now, self.shared.id, &self.handle.voters) else {
            return;
        };
        self.on_differing(&differing);
        for peer in self.shared.peers.values().filter(|peer| self.handle.voters.contains(peer.id)) {
            peer.send_digest_asked(self.handle.id, slot);
        }
    }

    fn on_digest(&mut self, by: NodeId, slot: Slot, digest: u64) {
        if self.leading {
            let differing = self.digests.told(self.shared.id, by, slot, digest, &self.handle.voters);
            self.on_differing(&differing);
        }
    }

    /// These replicas hold something else than the others.
    fn on_differing(&mut self, nodes: &NodeSet) {
        for node in nodes.iter() {
            let alarm = Alarm { member: u64::from(node.0), kind: AlarmKind::Corrupt };
            error!(
                group = self.handle.id.0,
                node = node.0,
                "this node holds something else than the others, though it has applied the same: writes are refused. Stop it, \
                 and {}; then take back the alarm (`etcdctl alarm disarm`)",
                journal::EMPTY_IT
            );
            if self.state.alarms().all(|raised| raised != alarm) {
                self.propose_internal(&Command::RaiseAlarm(alarm));
            }
        }
    }

    fn propose_due_leases(&mut self) {
        if !self.leading {
            return;
        }
        let now = clock::now();
        if self.propose_again_at.is_some_and(|at| at <= now) {
            self.propose_again_at = None;
            self.leases.propose_again(now);
            self.look_at_parked();
        }
        let due = self.leases.take_due(now, LEASES_PER_PROPOSAL);
        if !due.expired.is_empty() {
            debug!(group = self.handle.id.0, leases = due.expired.len(), "leases expired");
            self.metrics.counters.leases_expired.inc_by(due.expired.len() as u64);
            self.propose_internal(&Command::ExpireLeases(due.expired));
        }
        if !due.checkpoints.is_empty() {
            self.propose_internal(&Command::CheckpointLeases(due.checkpoints));
        }
    }

    fn on_snapshot_received(&mut self, slot: Slot, config: Arc<Config>, state: Keyspace) {
        if slot > self.applied {
            info!(group = self.handle.id.0, slot = slot.0, "took over a peer's snapshot");
            self.watches.on_state_replaced(self.state.revision(), state.revision());
            self.state = state;
            self.applied = slot;
            self.snapshotting.replaced(slot);
            self.digests.replaced();
            self.step(Input::SnapshotInstalled { slot, config });
            for read in self.clients.readable(self.applied) {
                self.serve(read);
            }
        }
    }

    fn publish(&mut self) {
        let engine = self.engine.status();
        self.handle.set_unready(self.readiness.judge(&engine, self.applied));
        let differing = self.digests.differing();
        self.metrics.publish(&engine, self.applied, self.watches.len(), differing);
        *self.handle.told.lock() = Some(self.told(&engine));
    }
}

/// What a command of the log is about, for whoever waits for it.
fn subject(command: &Command) -> Subject {
    match command {
        Command::Write { session, seq, .. } => Subject::Write(*session, *seq),
        Command::OpenSession { nonce } => Subject::OpenSession(*nonce),
        Command::SetLeaderRegions(_) => Subject::LeaderRegions,
        Command::CloseSession(_)
        | Command::ExpireLeases(_)
        | Command::CheckpointLeases(_)
        | Command::SetLimits(_)
        | Command::RaiseAlarm(_) => Subject::Internal,
    }
}

fn encode(command: &Command) -> Bytes {
    let mut bytes = BytesMut::new();
    command.encode(&mut bytes);
    bytes.freeze()
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group")
            .field("id", &self.handle.id)
            .field("applied", &self.applied)
            .finish_non_exhaustive()
    }
}
