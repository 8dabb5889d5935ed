//! The state machine: routes commands and queries to its parts.

mod query;
mod snapshot;

use bytes::Bytes;

use crate::{
    Alarm, AlarmKind, Broken, ClockStart, ClusterVersion, Command, Error, Event, FeedPlace, HashKvReply,
    HistoryPage, KeyRange, KeyValue, LastWrite, LeaseEffect, LeaseId, LeaseSerial, LeaseState, Limits,
    NoHistory, Op, Outcome, PageLimits, Proposal, Reply, Resolved, Revision, RevisionEvents, Route,
    SESSION_WINDOW, SessionId, SessionLookup, ShardId, ShardSpan, StatusReply, Txn, WriteBounds,
    alarm::Alarms,
    bounds, codec,
    digest::Hasher,
    envelope::{Allotment, RevisionPassed},
    feed,
    lease::Leases,
    mutant::mutant,
    mvcc::Writer,
    quota,
    ranges::Visits,
    results::Results,
    session::{NotAdmitted, Sessions},
    shard::{Attachments, Shard, Shards},
    txn::{self, Plan},
};

pub use self::query::{LEASES_MAX, Step, SuspendedQuery};
pub use self::snapshot::{Restore, RestoreError, Snapshot};

/// How a group's state begins. Every replica of a group must begin with the same options; later changes go through the log
/// ([`Command::SetLimits`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The limits.
    pub limits: Limits,
    /// Its shards. No two may have a key or an id in common.
    pub shards: Vec<ShardSpan>,
}

impl Default for Options {
    /// One shard with all keys.
    fn default() -> Options {
        Options { limits: Limits::default(), shards: vec![ShardSpan::whole()] }
    }
}

/// How many records each command sweeps. A command writes about one record, so that garbage is gone after half as
/// many commands as made it, at a cost of 1 to 2 µs each.
const SWEEP_PER_COMMAND: usize = 2;

/// The replicated state machine of one group.
#[derive(Debug)]
pub struct Keyspace {
    pub(crate) version: ClusterVersion,
    pub(crate) shards: Shards,
    /// The newest revision that was made in any of the shards.
    pub(crate) newest: LastWrite,
    pub(crate) leases: Leases,
    pub(crate) sessions: Sessions,
    /// Of writes that concern the group as a whole.
    pub(crate) results: Results,
    pub(crate) alarms: Alarms,
    pub(crate) limits: Limits,
    /// See [`Keyspace::leader_regions`].
    pub(crate) leader_regions: Option<Vec<Bytes>>,
    pub(crate) applied: u64,
    pub(crate) write_bounds: WriteBounds,
    pub(crate) broken: Broken,
}

/// Where a write is carried out.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// It concerns the group as a whole.
    Group,
    /// In one of its shards.
    Shard(usize),
}

/// What applying commands had for consequences. The caller empties it and passes it in again.
#[derive(Clone, Debug, Default)]
pub struct Effects {
    /// One answer for each command, in the order applied.
    pub replies: Vec<Answer>,
    /// The revisions made, each whole, ascending.
    pub revisions: Vec<RevisionEvents>,
    /// What happened to leases.
    pub leases: Vec<LeaseEffect>,
    /// The new compact revision, if there was a compaction.
    pub compacted: Option<Revision>,
    /// Whether alarms were raised or taken back.
    pub alarms_changed: bool,
    /// The version that came in force.
    pub version_raised: Option<ClusterVersion>,
    /// Keys that transactions have looked at, about, whatever came of them.
    pub visits: usize,
}

impl Effects {
    /// No effects.
    pub fn new() -> Effects {
        Effects::default()
    }

    /// Takes everything out, keeping the memory.
    pub fn clear(&mut self) {
        let Effects { replies, revisions, leases, compacted, alarms_changed, version_raised, visits } = self;
        replies.clear();
        revisions.clear();
        leases.clear();
        *compacted = None;
        *alarms_changed = false;
        *version_raised = None;
        *visits = 0;
    }
}

/// The answer to one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The slot of the command's batch.
    pub slot: u64,
    /// The command's place in its batch.
    pub index_in_batch: u32,
    /// The session of a [`Command::Write`]; [`SessionId::NONE`] for other commands.
    pub session: SessionId,
    /// The number of a [`Command::Write`]; 0 for other commands.
    pub seq: u64,
    /// Whether the write was applied before and this is the result stored then.
    pub repeated: bool,
    /// The answer.
    pub outcome: Outcome,
}

impl Keyspace {
    /// Empty shards, at revision 1.
    ///
    /// # Panics
    /// If two of them have a key or an id in common.
    pub fn new(options: Options) -> Keyspace {
        let shards = options.shards.into_iter().map(Shard::new).collect();
        Keyspace {
            version: ClusterVersion::FIRST,
            shards: Shards::new(shards).expect("no two shards have a key in common"),
            newest: LastWrite::NONE,
            leases: Leases::default(),
            sessions: Sessions::default(),
            results: Results::default(),
            alarms: Alarms::default(),
            limits: options.limits,
            leader_regions: None,
            applied: 0,
            write_bounds: WriteBounds::default(),
            broken: Broken::default(),
        }
    }

    /// Breaks a rule, for tests of the tests.
    pub fn set_broken(&mut self, broken: Broken) {
        self.broken = broken;
    }

    /// Goes by other bounds of writes than those of the version, for simulations, whose states are small. All replicas must.
    pub fn set_write_bounds(&mut self, bounds: WriteBounds) {
        self.write_bounds = bounds;
    }

    /// Applies one command of the log. Commands come in the order of the log: slots ascend, and so do the places in a
    /// batch. Adds exactly one answer to `effects`.
    pub fn apply(
        &mut self,
        slot: u64,
        index_in_batch: u32,
        proposal: impl Into<Proposal>,
        effects: &mut Effects,
    ) {
        assert!(slot >= self.applied, "slots are applied in order: {slot} after {}", self.applied);
        self.applied = slot;
        let before = self.newest;
        let Proposal { envelope, command } = proposal.into();
        let (session, seq) = if let Command::Write { session, seq, .. } = &command {
            (*session, *seq)
        } else {
            (SessionId::NONE, 0)
        };
        let allotment = Allotment::new(envelope.revisions, self.newest.revision(), self.broken);
        let (outcome, repeated) = match allotment {
            Ok(mut allotment) => self.carry_out(command, &mut allotment, effects),
            Err(RevisionPassed) => (Err(Error::RevisionPassed), false),
        };
        assert!(self.newest >= before, "revisions ascend");
        let told = effects.revisions.last().map(|events| events.revision);
        assert!(told <= Some(self.newest.revision()), "what is told has happened");
        debug_assert!(
            self.shards.iter().all(|shard| shard.mvcc.last_write() <= self.newest),
            "no shard is ahead of the group"
        );
        effects.replies.push(Answer { slot, index_in_batch, session, seq, repeated, outcome });
        self.sweep(SWEEP_PER_COMMAND);
    }

    /// Notes that a slot without commands was applied.
    pub fn skip(&mut self, slot: u64) {
        assert!(slot >= self.applied, "slots are applied in order: {slot} after {}", self.applied);
        self.applied = slot;
    }

    /// Frees memory of what compactions have dropped, looking at up to `max_records` of each shard. Returns whether there may be
    /// more to do. Nothing that can be seen changes, so each replica may call it when it likes; commands also do a
    /// little of it each.
    pub fn sweep(&mut self, max_records: usize) -> bool {
        let mut has_more = false;
        for shard in self.shards.iter_mut() {
            has_more |= shard.mvcc.sweep(max_records);
        }
        has_more
    }

    /// Whether a snapshot or a query holds garbage back from being swept.
    pub fn is_held_back(&self) -> bool {
        self.shards.iter().any(|shard| shard.mvcc.is_held_back())
    }

    /// The shards that are here, in the order of keys.
    pub fn shards(&self) -> impl Iterator<Item = &ShardSpan> {
        self.shards.iter().map(|shard| &shard.span)
    }

    /// Whether one of the shards has all keys of a range.
    pub fn holds(&self, range: &KeyRange) -> bool {
        self.shards.covering(range).is_ok()
    }

    /// The revision of the last write to a shard that is here.
    pub fn last_write(&self, shard: ShardId) -> Option<LastWrite> {
        self.shards.get(shard).map(|shard| shard.mvcc.last_write())
    }

    /// The revision up to which nothing more will appear, in whichever shard: what queries and watches see, and what answers
    /// show that are not those of a write.
    pub fn resolved(&self) -> Resolved {
        if mutant!(self.broken, ReadAboveResolved) {
            return Resolved::by_own_log(LastWrite::at(self.newest.revision().next()));
        }
        if mutant!(self.broken, ResolvedByShard)
            && let Some(shard) = self.shards.iter().next()
        {
            return Resolved::by_own_log(shard.mvcc.last_write());
        }
        Resolved::by_own_log(self.newest)
    }

    /// The lowest revision that can be read; [`Revision::NEVER_COMPACTED`] before the first compaction.
    pub fn compact_revision(&self) -> Revision {
        let of_shards = self.shards.iter().map(|shard| shard.mvcc.compact_revision());
        of_shards.max().unwrap_or(Revision::NEVER_COMPACTED)
    }

    /// The lease clock that has begun last.
    pub fn clock(&self) -> ClockStart {
        self.leases.clock()
    }

    /// The version in force: commands of a newer one may not be proposed.
    pub fn version(&self) -> ClusterVersion {
        self.version
    }

    /// The last slot applied; 0 before the first.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// The limits in force.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Where the operator wants the group to be led, the best region first; `Some` and empty for anywhere, and `None` if
    /// nobody has said. The state keeps it for those who lead, and makes nothing of it.
    pub fn leader_regions(&self) -> Option<&[Bytes]> {
        self.leader_regions.as_deref()
    }

    /// Whether an alarm of this kind is raised.
    pub fn has_alarm(&self, kind: AlarmKind) -> bool {
        self.alarms.is_raised(kind)
    }

    /// The alarms that are raised.
    pub fn alarms(&self) -> impl Iterator<Item = Alarm> {
        self.alarms.iter()
    }

    /// What is known of a numbered write that is routed so. A leader may answer a retry from it without proposing anything.
    pub fn has_result(&self, session: SessionId, seq: u64, route: Option<Route>) -> SessionLookup<'_> {
        if let Err(why) = self.sessions.low_for(session, seq) {
            return why.into();
        }
        let of_shard = route.and_then(|route| self.shards.get(route.shard));
        let result = of_shard.and_then(|shard| shard.results.get(session, seq));
        let result = result.or_else(|| self.results.get(session, seq));
        result.map_or(SessionLookup::New, SessionLookup::Applied)
    }

    /// The leases with their times, for a new leader's lease clock.
    pub fn leases(&self) -> impl Iterator<Item = LeaseState> {
        self.leases.iter()
    }

    /// One lease with its times.
    pub fn lease(&self, id: LeaseId) -> Option<LeaseState> {
        self.leases.state(id)
    }

    /// The watch feed: the events in `range` from `from` on, up to what is resolved, within limits. A revision may be cut
    /// anywhere: [`HistoryPage::next`] tells where to go on.
    ///
    /// # Errors
    /// If `from` is compacted, or no shard here holds the range.
    pub fn history(
        &self,
        range: &KeyRange,
        prev_kv: bool,
        from: FeedPlace,
        limits: PageLimits,
    ) -> Result<HistoryPage, NoHistory> {
        let shard = self.shards.covering(range).map_err(|_| NoHistory::WrongShard)?;
        feed::history(&shard.mvcc, self.resolved(), range, prev_kv, from, limits)
    }

    /// A key as of the revision before `mod_revision`, for events that were taken without it. None if it did not
    /// exist, or if that revision is compacted.
    pub fn prev_kv(&self, key: &[u8], mod_revision: Revision) -> Option<KeyValue> {
        self.shards.holding(key)?.mvcc.value_before(key, mod_revision).cloned()
    }

    /// A hash over the whole state, but for the slot. Equal on all replicas that applied the same slots, whether they
    /// applied all of them or began with a snapshot.
    pub fn digest(&self) -> u64 {
        let mut hasher = Hasher::new(8)
            .i64(self.newest.revision().0)
            .u64(self.leases.digest())
            .u64(self.sessions.digest())
            .u64(self.results.digest())
            .u64(self.alarms.digest())
            .u64(self.limits.quota_bytes)
            .u64(u64::from(self.limits.max_sessions));
        for shard in self.shards.iter() {
            hasher = hasher.u64(shard.digest());
        }
        // While nobody has said, the digest is that of a version which does not know of it.
        for region in self.leader_regions.iter().flatten() {
            hasher = hasher.bytes(region);
        }
        // Nor while the first one is in force.
        if self.version > ClusterVersion::FIRST {
            hasher = hasher.u64(u64::from(self.version.0));
        }
        hasher.finish()
    }

    /// A hash over the history up to a revision, what is resolved for 0 and below; equal on replicas with the same
    /// compact revision. An error for a revision that is compacted or in the future.
    pub fn hash_kv(&self, revision: Revision) -> Result<HashKvReply, Error> {
        let resolved = self.resolved();
        let hash_revision = if revision.0 <= 0 { resolved.revision() } else { revision };
        if hash_revision < self.compact_revision() {
            return Err(Error::Compacted);
        }
        if !resolved.covers(hash_revision) {
            return Err(Error::FutureRevision);
        }
        // A sum, so that it is the same however the keys are cut into shards.
        let of_shards = self.shards.iter().map(|shard| shard.mvcc.hash_upto(hash_revision));
        let hash = of_shards.fold(0, u64::wrapping_add);
        Ok(HashKvReply {
            revision: resolved.revision(),
            hash: (hash ^ hash >> 32) as u32,
            compact_revision: self.compact_revision(),
            hash_revision,
        })
    }

    /// The logical size of the data, which the quota limits: what every kept version and every lease costs.
    pub fn size_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.mvcc.size_bytes()).sum::<u64>() + self.leases.size_bytes()
    }

    /// Sizes and positions.
    pub fn status(&self) -> StatusReply {
        StatusReply {
            revision: self.resolved().revision(),
            compact_revision: self.compact_revision(),
            applied: self.applied,
            size_bytes: self.size_bytes(),
            size_in_use_bytes: self.size_bytes(),
            quota_bytes: self.limits.quota_bytes,
            keys: self.shards.iter().map(|shard| shard.mvcc.keys()).sum(),
            leases: self.leases.len() as u64,
            sessions: self.sessions.len() as u64,
        }
    }

    /// Begins a snapshot of the state as it is; between slots, since it stands for whole ones. The state goes on being written while slices are taken; until the
    /// snapshot is dropped, garbage that it may need is not swept.
    pub fn snapshot(&mut self) -> Snapshot {
        Snapshot::begin(self)
    }

    /// Checks what must hold of any state. Walks over everything; for tests.
    pub fn check_invariants(&self) {
        assert!(self.resolved().covers(self.compact_revision()), "the compact revision is no future one");
        self.sessions.check_invariants();
        self.leases.check_invariants();
        assert!(
            self.version >= ClusterVersion::NUMBERED_GRANTS || self.leases.last_serial() == LeaseSerial::NONE,
            "no grant is numbered before all know numbers"
        );
        assert!(
            self.version >= ClusterVersion::STARTED_CLOCKS || self.leases.clock() == ClockStart::NONE,
            "no clock begins before all know of clocks"
        );
        self.results.check_invariants(|session| self.sessions.low(session).is_some());
        for shard in self.shards.iter() {
            shard.mvcc.check_invariants();
            assert!(shard.mvcc.last_write() <= self.newest, "no shard is ahead of the group");
            assert_eq!(
                shard.mvcc.compact_revision(),
                self.compact_revision(),
                "shards are compacted together"
            );
            shard.results.check_invariants(|session| self.sessions.low(session).is_some());
            for kv in shard.mvcc.live() {
                assert!(shard.span.covers(&KeyRange::single(kv.key.clone())), "{:?} is elsewhere", kv.key);
                assert!(kv.lease.is_none() || self.leases.contains(kv.lease), "lease {} is gone", kv.lease);
            }
            let attached = shard.mvcc.live().filter(|kv| !kv.lease.is_none());
            shard.attachments.check_invariants(attached.map(|kv| (kv.key.clone(), kv.lease)));
        }
    }

    /// Carries out a command. Returns the answer, and whether the command was a write that had been carried out before.
    fn carry_out(
        &mut self,
        command: Command,
        allotment: &mut Allotment,
        effects: &mut Effects,
    ) -> (Outcome, bool) {
        let outcome = match command {
            Command::Write { session, seq, ack_upto, route, op } => {
                let low = match self.sessions.admit(session, seq, ack_upto) {
                    Ok(low) => low,
                    Err(NotAdmitted::Forgotten) if mutant!(self.broken, AcknowledgedElsewhereApplied) => {
                        seq - 1
                    }
                    Err(why) => return (Err(why.into()), false),
                };
                return self.carry_out_write((session, low, seq), route, &op, allotment, effects);
            }
            Command::OpenSession { nonce } => {
                let mut closed = Vec::new();
                let session = self.sessions.open(nonce, self.limits.max_sessions, &mut closed);
                self.forget_results(&closed);
                Ok(Reply::SessionOpened { revision: allotment.before(), session })
            }
            Command::CloseSession(session) => {
                self.sessions.close(session);
                self.forget_results(&[session]);
                Ok(Reply::Done { revision: allotment.before() })
            }
            Command::ExpireLeases(by, _) | Command::CheckpointLeases(by, _)
                if by != self.leases.clock() && !mutant!(self.broken, EarlierClockCounts) =>
            {
                Ok(Reply::Done { revision: allotment.before() })
            }
            Command::ExpireLeases(_, leases) => {
                for grant in leases {
                    // It may have been revoked since the leader's clock saw it expire, and its id granted again.
                    if self.leases.lives(grant) || mutant!(self.broken, LaterGrantExpired) {
                        // One that is left for want of a revision is proposed again.
                        let _gone = self.revoke_lease(grant.id, allotment, effects);
                    }
                }
                Ok(Reply::Done { revision: allotment.before() })
            }
            Command::StartClock(owner) => {
                let clock = ClockStart(self.applied);
                self.leases.start_clock(clock);
                effects.leases.push(LeaseEffect::ClockStarted { owner, clock });
                Ok(Reply::Done { revision: allotment.before() })
            }
            Command::CheckpointLeases(_, leases) => {
                for (grant, remaining_s) in leases {
                    if self.leases.checkpoint(grant, remaining_s) {
                        effects.leases.push(LeaseEffect::Checkpointed { id: grant.id, remaining_s });
                    }
                }
                Ok(Reply::Done { revision: allotment.before() })
            }
            Command::SetLimits(limits) => {
                self.limits = limits;
                let mut closed = Vec::new();
                self.sessions.evict_to(u64::from(limits.max_sessions.max(1)), &mut closed);
                self.forget_results(&closed);
                Ok(Reply::Done { revision: allotment.before() })
            }
            Command::SetLeaderRegions(regions) => {
                self.leader_regions = Some(regions);
                Ok(Reply::Done { revision: allotment.before() })
            }
            Command::RaiseAlarm(alarm) => {
                self.alarms.raise(alarm);
                effects.alarms_changed = true;
                Ok(Reply::Done { revision: allotment.before() })
            }
            Command::RaiseVersion(version) => {
                if version > self.version {
                    self.version = version;
                    effects.version_raised = Some(version);
                }
                Ok(Reply::Done { revision: allotment.before() })
            }
        };
        (outcome, false)
    }

    /// Carries out a write of a session in which everything up to `low` is settled, unless it was carried out before.
    fn carry_out_write(
        &mut self,
        (session, low, seq): (SessionId, u64, u64),
        route: Option<Route>,
        op: &Op,
        allotment: &mut Allotment,
        effects: &mut Effects,
    ) -> (Outcome, bool) {
        assert!(seq > low, "a number that is settled was not admitted");
        let place = match self.place_for(route, op) {
            Ok(place) => place,
            Err(error) => return self.turn_away(session, low, seq, error),
        };
        if let Some(outcome) = self.known_result(place, session, low, seq) {
            return (outcome.clone(), true);
        }
        let outcome = self.perform(op, place, allotment, effects);
        let is_broken = mutant!(self.broken, ResultUnderNextNumber) && seq - low < SESSION_WINDOW;
        let number = if is_broken { seq + 1 } else { seq };
        let kept_bytes = self.bounds().kept_bytes;
        self.results(place).store(session, low, number, &outcome, kept_bytes);
        (outcome, false)
    }

    /// Where a write belongs that was routed so; an error if that is not here.
    fn place_for(&self, route: Option<Route>, op: &Op) -> Result<Place, Error> {
        match route {
            None if op.has_keys() => Err(Error::WrongShard),
            None => Ok(Place::Group),
            Some(route) => self.shards.place_for(route, op, self.broken).map(Place::Shard),
        }
    }

    /// What was answered to a write that comes again to its place. One that was turned away is not carried out later: whoever
    /// was told so has sent it elsewhere.
    fn known_result(&mut self, place: Place, session: SessionId, low: u64, seq: u64) -> Option<&Outcome> {
        let turned_away = self.results.settle(session, low, seq);
        match place {
            Place::Shard(place) if turned_away.is_none() => {
                self.shards.at_mut(place).results.settle(session, low, seq)
            }
            Place::Shard(_) | Place::Group => turned_away,
        }
    }

    /// Turns a write away that has no place here, for good; unless it was carried out before, wherever its keys are by now.
    fn turn_away(&mut self, session: SessionId, low: u64, seq: u64, error: Error) -> (Outcome, bool) {
        let carried_out = self.shards.iter().find_map(|shard| shard.results.get(session, seq)).cloned();
        if let Some(outcome) = carried_out.or_else(|| self.results.settle(session, low, seq).cloned()) {
            return (outcome, true);
        }
        if !mutant!(self.broken, WrongShardForgotten) {
            self.results.store(session, low, seq, &Err(error), usize::MAX);
        }
        (Err(error), false)
    }

    /// The results of writes that are carried out there.
    fn results(&mut self, place: Place) -> &mut Results {
        match place {
            Place::Group => &mut self.results,
            Place::Shard(_) if mutant!(self.broken, ResultInFirstShard) => &mut self.shards.at_mut(0).results,
            Place::Shard(place) => &mut self.shards.at_mut(place).results,
        }
    }

    /// Forgets the results of sessions that are closed.
    fn forget_results(&mut self, closed: &[SessionId]) {
        for session in closed {
            assert!(self.sessions.low(*session).is_none(), "results stay as long as their session");
            self.results.forget(*session);
            if mutant!(self.broken, ResultsOutliveSession) {
                continue;
            }
            for shard in self.shards.iter_mut() {
                shard.results.forget(*session);
            }
        }
    }

    /// The keys that hang on a lease, in order.
    pub(crate) fn attached(&self, lease: LeaseId) -> impl Iterator<Item = &Bytes> {
        self.shards.iter().flat_map(move |shard| shard.attachments.keys(lease))
    }

    /// The bounds of writes that are in force.
    fn bounds(&self) -> WriteBounds {
        if mutant!(self.broken, WritesUnbounded) {
            return WriteBounds::NONE;
        }
        let version =
            if mutant!(self.broken, BoundsBeforeVersion) { ClusterVersion::NEWEST } else { self.version };
        self.write_bounds.at(version)
    }

    /// Carries out a client's write.
    fn perform(
        &mut self,
        op: &Op,
        place: Place,
        allotment: &mut Allotment,
        effects: &mut Effects,
    ) -> Outcome {
        self.admit(op, effects)?;
        match place {
            Place::Shard(place) => self.perform_in_shard(op, place, allotment, effects),
            Place::Group => self.perform_in_group(op, allotment, effects),
        }
    }

    fn perform_in_shard(
        &mut self,
        op: &Op,
        place: usize,
        allotment: &mut Allotment,
        effects: &mut Effects,
    ) -> Outcome {
        let bounds = self.bounds();
        let mvcc = &self.shards.at(place).mvcc;
        match op {
            Op::Put(put) => {
                txn::check_put(mvcc, &self.leases, put)?;
                let change =
                    |writer: &mut Writer<'_>, attached: &mut Attachments| txn::put(writer, attached, put);
                self.write(place, allotment, effects, change).map(Reply::Put)
            }
            Op::DeleteRange(delete) => {
                bounds::check_delete_range(mvcc, allotment.before(), delete, bounds)?;
                let change = |writer: &mut Writer<'_>, attached: &mut Attachments| {
                    txn::delete_range(writer, attached, delete)
                };
                self.write(place, allotment, effects, change).map(Reply::DeleteRange)
            }
            Op::Txn(request) => {
                let mut visits = Visits::new(bounds.visits, mvcc.compact_revision(), self.broken);
                let outcome = self.perform_txn(request, place, &mut visits, allotment, effects);
                effects.visits = effects.visits.saturating_add(visits.spent());
                outcome
            }
            Op::Compact { .. }
            | Op::LeaseGrant { .. }
            | Op::LeaseRevoke { .. }
            | Op::AlarmActivate { .. }
            | Op::AlarmDeactivate { .. } => Err(Error::WrongShard),
        }
    }

    fn perform_txn(
        &mut self,
        request: &Txn,
        place: usize,
        visits: &mut Visits,
        allotment: &mut Allotment,
        effects: &mut Effects,
    ) -> Outcome {
        let (before, bounds) = (allotment.before(), self.bounds());
        let mvcc = &self.shards.at(place).mvcc;
        let plan = Plan::new(mvcc, before, request, visits)?;
        plan.check(mvcc, before, &self.leases)?;
        let bytes_max = bounds::check_txn(&plan, mvcc, before, bounds, visits)?;
        let change = |writer: &mut Writer<'_>, attached: &mut Attachments| plan.execute(writer, attached);
        let outcome = self.write(place, allotment, effects, change).map(Reply::Txn);
        debug_assert!(codec::outcome_len(&outcome) <= bytes_max, "no answer is larger than was foreseen");
        outcome
    }

    fn perform_in_group(&mut self, op: &Op, allotment: &mut Allotment, effects: &mut Effects) -> Outcome {
        let before = allotment.before();
        match op {
            Op::Put(_) | Op::DeleteRange(_) | Op::Txn(_) => Err(Error::WrongShard),
            Op::Compact { revision } => {
                let at = Revision(*revision);
                if at <= self.compact_revision() {
                    return Err(Error::Compacted);
                }
                let resolved = self.resolved();
                if !resolved.covers(at) {
                    return Err(Error::FutureRevision);
                }
                for shard in self.shards.iter_mut() {
                    shard.mvcc.compact(at, resolved);
                }
                debug_assert!(
                    self.shards.iter().all(|shard| shard.mvcc.compact_revision() == at),
                    "shards are compacted together"
                );
                effects.compacted = Some(at);
                Ok(Reply::Compacted { revision: before })
            }
            Op::LeaseGrant { id, ttl } => {
                let grant = self.leases.grant(self.version, *id, *ttl)?;
                effects.leases.push(LeaseEffect::Granted { grant, ttl_s: *ttl });
                Ok(Reply::LeaseGranted { revision: before, id: *id, ttl: *ttl })
            }
            Op::LeaseRevoke { id } => self.revoke_lease(*id, allotment, effects),
            Op::AlarmActivate { member, alarm } => {
                let alarm = Alarm { member: *member, kind: *alarm };
                self.alarms.raise(alarm);
                effects.alarms_changed = true;
                Ok(Reply::Alarms { revision: before, alarms: vec![alarm] })
            }
            Op::AlarmDeactivate { member, alarm } => {
                let alarm = Alarm { member: *member, kind: *alarm };
                let was_raised = self.alarms.clear(alarm);
                effects.alarms_changed |= was_raised;
                let alarms = if was_raised { vec![alarm] } else { Vec::new() };
                Ok(Reply::Alarms { revision: before, alarms })
            }
        }
    }

    /// Refuses what an alarm or the quota forbids, before anything else is looked at (etcd server/etcdserver/apply).
    ///
    /// etcd asks the quota at the door and again at apply, where it writes and then answers with the error all the same,
    /// since its members' sizes differ. Here all replicas have the same size, so that nothing is written.
    fn admit(&mut self, op: &Op, effects: &mut Effects) -> Result<(), Error> {
        if self.alarms.is_raised(AlarmKind::Corrupt) {
            match op {
                Op::AlarmActivate { .. } | Op::AlarmDeactivate { .. } => {}
                Op::Put(_)
                | Op::DeleteRange(_)
                | Op::Txn(_)
                | Op::Compact { .. }
                | Op::LeaseGrant { .. }
                | Op::LeaseRevoke { .. } => return Err(Error::Corrupt),
            }
        }
        let cost_bytes = quota::cost_bytes(op);
        if cost_bytes == 0 {
            return Ok(());
        }
        if self.alarms.is_raised(AlarmKind::NoSpace) {
            return Err(Error::NoSpace);
        }
        if self.size_bytes() + cost_bytes >= self.limits.quota_bytes {
            self.alarms.raise(Alarm { member: 0, kind: AlarmKind::NoSpace });
            effects.alarms_changed = true;
            return Err(Error::NoSpace);
        }
        Ok(())
    }

    /// Deletes a lease and, under one revision, its keys, in whichever shards they are.
    fn revoke_lease(&mut self, id: LeaseId, allotment: &mut Allotment, effects: &mut Effects) -> Outcome {
        let attached = self.shards.iter().any(|shard| shard.attachments.has(id));
        let Some(revision) = allotment.peek().or_else(|| (!attached).then(|| allotment.before())) else {
            return Err(Error::RevisionPassed);
        };
        self.leases.remove(id)?;
        effects.leases.push(LeaseEffect::Revoked { id });
        if !attached {
            return Ok(Reply::LeaseRevoked { revision: allotment.before() });
        }
        let mut events = Vec::new();
        for shard in self.shards.iter_mut() {
            let keys = shard.attachments.remove(id);
            if keys.is_empty() {
                continue;
            }
            let mut writer = shard.mvcc.write(revision);
            for key in &keys {
                let old = writer.delete(key);
                debug_assert!(old.is_some_and(|old| old.lease == id), "the keys of a lease exist");
            }
            events.extend(writer.finish().into_iter().flat_map(|(_, events)| events));
            if mutant!(self.broken, LeaseEndsInOneShard) {
                break;
            }
        }
        self.made(revision, events, allotment, effects);
        debug_assert!(
            self.attached(id).next().is_none() || mutant!(self.broken, LeaseEndsInOneShard),
            "no key outlives its lease"
        );
        Ok(Reply::LeaseRevoked { revision })
    }

    /// Makes changes in a shard under one revision: the next one that the command may make. It is used up only if something
    /// changed.
    fn write<T>(
        &mut self,
        place: usize,
        allotment: &mut Allotment,
        effects: &mut Effects,
        change: impl FnOnce(&mut Writer<'_>, &mut Attachments) -> T,
    ) -> Result<T, Error> {
        let revision = allotment.peek().ok_or(Error::RevisionPassed)?;
        let shard = self.shards.at_mut(place);
        let mut writer = shard.mvcc.write(revision);
        let result = change(&mut writer, &mut shard.attachments);
        if let Some((revision, events)) = writer.finish() {
            self.made(revision, events, allotment, effects);
        }
        Ok(result)
    }

    /// A revision was made.
    fn made(
        &mut self,
        revision: Revision,
        events: Vec<Event>,
        allotment: &mut Allotment,
        effects: &mut Effects,
    ) {
        assert!(revision > self.newest.revision(), "revisions ascend");
        assert!(!events.is_empty(), "a revision has a change");
        let last = effects.revisions.last().map(|events| events.revision);
        assert!(last < Some(revision), "and they are told in order");
        allotment.take();
        self.newest = LastWrite::at(revision);
        effects.revisions.push(RevisionEvents { revision, events: events.into() });
    }
}
