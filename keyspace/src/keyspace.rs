//! The state machine: routes commands and queries to its parts.

use bytes::Bytes;

use crate::{
    Alarm, AlarmKind, Command, Compacted, Error, HashKvReply, HistoryPage, KeyRange, KeyValue, LastWrite,
    LeaseEffect, LeaseId, LeaseState, LeaseTimeToLiveReply, Limits, Op, Outcome, Proposal, Query, Reply,
    Resolved, Revision, RevisionEvents, SessionId, SessionLookup, Snapshot, StatusReply,
    digest::Hasher,
    envelope::{Allotment, RevisionPassed},
    feed,
    lease::Leases,
    mvcc::{Mvcc, Writer},
    quota::{self, Alarms},
    session::Sessions,
    txn::{self, Plan},
};

/// How a keyspace begins. Every replica of a group must begin with the same options; later changes go through the log
/// ([`Command::SetLimits`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The limits.
    pub limits: Limits,
}

/// How many records each command sweeps. A command writes about one record, so that garbage is gone after half as
/// many commands as made it, at a cost of 1 to 2 µs each.
const SWEEP_PER_COMMAND: usize = 2;

/// The replicated state machine of one group.
#[derive(Debug)]
pub struct Keyspace {
    pub(crate) mvcc: Mvcc,
    pub(crate) leases: Leases,
    pub(crate) sessions: Sessions,
    pub(crate) alarms: Alarms,
    pub(crate) limits: Limits,
    /// See [`Keyspace::leader_regions`].
    pub(crate) leader_regions: Option<Vec<Bytes>>,
    pub(crate) applied: u64,
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
}

impl Effects {
    /// No effects.
    pub fn new() -> Effects {
        Effects::default()
    }

    /// Takes everything out, keeping the memory.
    pub fn clear(&mut self) {
        let Effects { replies, revisions, leases, compacted, alarms_changed } = self;
        replies.clear();
        revisions.clear();
        leases.clear();
        *compacted = None;
        *alarms_changed = false;
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
    /// An empty keyspace at revision 1.
    pub fn new(options: Options) -> Keyspace {
        Keyspace {
            mvcc: Mvcc::new(),
            leases: Leases::default(),
            sessions: Sessions::default(),
            alarms: Alarms::default(),
            limits: options.limits,
            leader_regions: None,
            applied: 0,
        }
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
        let Proposal { envelope, command } = proposal.into();
        let (session, seq) = if let Command::Write { session, seq, .. } = &command {
            (*session, *seq)
        } else {
            (SessionId::NONE, 0)
        };
        let (outcome, repeated) = match Allotment::new(envelope.revisions, self.last_write().revision()) {
            Ok(mut allotment) => self.carry_out(command, &mut allotment, effects),
            Err(RevisionPassed) => (Err(Error::RevisionPassed), false),
        };
        effects.replies.push(Answer { slot, index_in_batch, session, seq, repeated, outcome });
        self.sweep(SWEEP_PER_COMMAND);
    }

    /// Notes that a slot without commands was applied.
    pub fn skip(&mut self, slot: u64) {
        assert!(slot >= self.applied, "slots are applied in order: {slot} after {}", self.applied);
        self.applied = slot;
    }

    /// Frees memory of what compactions have dropped, looking at up to `max_records`. Returns whether there may be
    /// more to do. Nothing that can be seen changes, so each replica may call it when it likes; commands also do a
    /// little of it each.
    pub fn sweep(&mut self, max_records: usize) -> bool {
        self.mvcc.sweep(max_records)
    }

    /// The revision of the last write.
    pub fn last_write(&self) -> LastWrite {
        self.mvcc.last_write()
    }

    /// The revision up to which nothing more will appear: what queries and watches see, and what answers show that are not
    /// those of a write.
    pub fn resolved(&self) -> Resolved {
        Resolved::by_own_log(self.last_write())
    }

    /// The lowest revision that can be read; [`Revision::NEVER_COMPACTED`] before the first compaction.
    pub fn compact_revision(&self) -> Revision {
        self.mvcc.compact_revision()
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

    /// Answers a query at what is resolved, or at the older revision that it asks for.
    pub fn query(&self, query: &Query) -> Outcome {
        let revision = self.resolved().revision();
        match query {
            Query::Range(request) => txn::range(&self.mvcc, revision, request).map(Reply::Range),
            Query::Txn(request) => {
                let plan = Plan::new(&self.mvcc, revision, request);
                plan.check(&self.mvcc, revision, &self.leases)?;
                plan.read(&self.mvcc, revision).map(Reply::Txn)
            }
            Query::LeaseTimeToLive { id, keys } => {
                let state = self.leases.state(*id);
                Ok(Reply::LeaseTimeToLive(LeaseTimeToLiveReply {
                    revision,
                    id: *id,
                    ttl: state.map_or(-1, |lease| lease.remaining_s),
                    granted_ttl: state.map_or(0, |lease| lease.granted_ttl_s),
                    keys: if *keys { self.leases.keys(*id).cloned().collect() } else { Vec::new() },
                }))
            }
            Query::Leases => {
                Ok(Reply::Leases { revision, leases: self.leases.iter().map(|lease| lease.id).collect() })
            }
            Query::HashKv { revision } => self.hash_kv(Revision(*revision)).map(Reply::HashKv),
            Query::Status => Ok(Reply::Status(self.status())),
            Query::Alarms => Ok(Reply::Alarms { revision, alarms: self.alarms.iter().collect() }),
        }
    }

    /// What is known of a numbered write. A leader may answer a retry from it without proposing anything.
    pub fn has_result(&self, session: SessionId, seq: u64) -> SessionLookup<'_> {
        self.sessions.lookup(session, seq)
    }

    /// The leases with their times, for a new leader's lease clock.
    pub fn leases(&self) -> impl Iterator<Item = LeaseState> {
        self.leases.iter()
    }

    /// One lease with its times.
    pub fn lease(&self, id: LeaseId) -> Option<LeaseState> {
        self.leases.state(id)
    }

    /// The watch feed: the events in `range` of revisions from `from` on up to what is resolved, whole revisions only. Ends after
    /// `max_revisions`, or once `max_bytes` are reached (but never before the first revision found), or when it has
    /// looked at enough for one call; [`HistoryPage::next`] tells where to go on.
    pub fn history(
        &self,
        range: &KeyRange,
        from: Revision,
        max_bytes: usize,
        max_revisions: usize,
    ) -> Result<HistoryPage, Compacted> {
        feed::history(&self.mvcc, self.resolved(), range, from, max_bytes, max_revisions)
    }

    /// A key as of the revision before `mod_revision`, for events that were taken without it. None if it did not
    /// exist, or if that revision is compacted.
    pub fn prev_kv(&self, key: &[u8], mod_revision: Revision) -> Option<KeyValue> {
        self.mvcc.value_before(key, mod_revision).cloned()
    }

    /// A hash over the whole state, but for the slot. Equal on all replicas that applied the same slots, whether they
    /// applied all of them or began with a snapshot.
    pub fn digest(&self) -> u64 {
        let mut hasher = Hasher::new(8)
            .u64(self.mvcc.digest())
            .u64(self.leases.digest())
            .u64(self.sessions.digest())
            .u64(self.alarms.digest())
            .u64(self.limits.quota_bytes)
            .u64(u64::from(self.limits.max_sessions));
        // While nobody has said, the digest is that of a version which does not know of it.
        for region in self.leader_regions.iter().flatten() {
            hasher = hasher.bytes(region);
        }
        hasher.finish()
    }

    /// A hash over the history up to a revision, what is resolved for 0 and below; equal on replicas with the same
    /// compact revision.
    pub fn hash_kv(&self, revision: Revision) -> Result<HashKvReply, Error> {
        let resolved = self.resolved();
        let hash_revision = if revision.0 <= 0 { resolved.revision() } else { revision };
        if hash_revision < self.compact_revision() {
            return Err(Error::Compacted);
        }
        if !resolved.covers(hash_revision) {
            return Err(Error::FutureRevision);
        }
        let hash = self.mvcc.hash_upto(hash_revision);
        Ok(HashKvReply {
            revision: resolved.revision(),
            hash: (hash ^ hash >> 32) as u32,
            compact_revision: self.compact_revision(),
            hash_revision,
        })
    }

    /// The logical size of the data, which the quota limits: what every kept version and every lease costs.
    pub fn size_bytes(&self) -> u64 {
        self.mvcc.size_bytes() + self.leases.size_bytes()
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
            keys: self.mvcc.keys(),
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
        self.mvcc.check_invariants();
        assert!(self.resolved().covers(self.compact_revision()), "the compact revision is no future one");
        self.sessions.check_invariants();
        let attached = self.mvcc.live().filter(|kv| !kv.lease.is_none());
        self.leases.check_invariants(attached.map(|kv| (kv.key.clone(), kv.lease)));
    }

    /// Carries out a command. Returns the answer, and whether the command was a write that had been carried out before.
    fn carry_out(
        &mut self,
        command: Command,
        allotment: &mut Allotment,
        effects: &mut Effects,
    ) -> (Outcome, bool) {
        let outcome = match command {
            Command::Write { session, seq, ack_upto, op } => {
                self.sessions.acknowledge(session, ack_upto);
                match self.sessions.lookup(session, seq) {
                    SessionLookup::New => {
                        let outcome = self.perform(&op, allotment, effects);
                        self.sessions.store(session, seq, outcome.clone());
                        outcome
                    }
                    SessionLookup::Applied(outcome) => return (outcome.clone(), true),
                    SessionLookup::Expired => Err(Error::SessionExpired),
                    SessionLookup::Forgotten => Err(Error::ResultForgotten),
                    SessionLookup::BeyondWindow => Err(Error::SessionWindowExceeded),
                }
            }
            Command::OpenSession { nonce } => {
                let session = self.sessions.open(nonce, self.limits.max_sessions);
                Ok(Reply::SessionOpened { revision: allotment.before(), session })
            }
            Command::CloseSession(session) => {
                self.sessions.close(session);
                Ok(Reply::Done { revision: allotment.before() })
            }
            Command::ExpireLeases(leases) => {
                for id in leases {
                    // A lease may have been revoked since the leader's clock saw it expire. One that is left for want of
                    // a revision is proposed again.
                    let _gone = self.revoke_lease(id, allotment, effects);
                }
                Ok(Reply::Done { revision: allotment.before() })
            }
            Command::CheckpointLeases(leases) => {
                for (id, remaining_s) in leases {
                    if self.leases.checkpoint(id, remaining_s) {
                        effects.leases.push(LeaseEffect::Checkpointed { id, remaining_s });
                    }
                }
                Ok(Reply::Done { revision: allotment.before() })
            }
            Command::SetLimits(limits) => {
                self.limits = limits;
                self.sessions.evict_to(u64::from(limits.max_sessions.max(1)));
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
        };
        (outcome, false)
    }

    /// Carries out a client's write.
    fn perform(&mut self, op: &Op, allotment: &mut Allotment, effects: &mut Effects) -> Outcome {
        self.admit(op, effects)?;
        let before = allotment.before();
        match op {
            Op::Put(put) => {
                txn::check_put(&self.mvcc, &self.leases, put)?;
                let reply = self.write(allotment, effects, |writer, leases| txn::put(writer, leases, put))?;
                Ok(Reply::Put(reply))
            }
            Op::DeleteRange(delete) => {
                let reply = self
                    .write(allotment, effects, |writer, leases| txn::delete_range(writer, leases, delete))?;
                Ok(Reply::DeleteRange(reply))
            }
            Op::Txn(request) => {
                let plan = Plan::new(&self.mvcc, before, request);
                plan.check(&self.mvcc, before, &self.leases)?;
                let reply = self.write(allotment, effects, |writer, leases| plan.execute(writer, leases))?;
                Ok(Reply::Txn(reply))
            }
            Op::Compact { revision } => {
                let at = Revision(*revision);
                if at <= self.compact_revision() {
                    return Err(Error::Compacted);
                }
                let resolved = self.resolved();
                if !resolved.covers(at) {
                    return Err(Error::FutureRevision);
                }
                self.mvcc.compact(at, resolved);
                effects.compacted = Some(at);
                Ok(Reply::Compacted { revision: before })
            }
            Op::LeaseGrant { id, ttl } => {
                self.leases.grant(*id, *ttl)?;
                effects.leases.push(LeaseEffect::Granted { id: *id, ttl_s: *ttl });
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

    /// Deletes a lease and, under one revision, its keys.
    fn revoke_lease(&mut self, id: LeaseId, allotment: &mut Allotment, effects: &mut Effects) -> Outcome {
        if self.leases.keys(id).next().is_some() && allotment.peek().is_none() {
            return Err(Error::RevisionPassed);
        }
        let keys = self.leases.remove(id)?;
        let revision = if keys.is_empty() {
            allotment.before()
        } else {
            self.write(allotment, effects, |writer, _leases| {
                for key in &keys {
                    let old = writer.delete(key);
                    debug_assert!(old.is_some_and(|old| old.lease == id), "the keys of a lease exist");
                }
                writer.revision()
            })?
        };
        effects.leases.push(LeaseEffect::Revoked { id });
        Ok(Reply::LeaseRevoked { revision })
    }

    /// Makes changes under one revision: the next one that the command may make. It is used up only if something changed.
    fn write<T>(
        &mut self,
        allotment: &mut Allotment,
        effects: &mut Effects,
        change: impl FnOnce(&mut Writer<'_>, &mut Leases) -> T,
    ) -> Result<T, Error> {
        let revision = allotment.peek().ok_or(Error::RevisionPassed)?;
        let mut writer = self.mvcc.write(revision);
        let result = change(&mut writer, &mut self.leases);
        if let Some((revision, events)) = writer.finish() {
            allotment.take();
            effects.revisions.push(RevisionEvents { revision, events: events.into() });
        }
        Ok(result)
    }
}
