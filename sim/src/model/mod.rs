//! The specification: what a client of etcd can observe of keys, leases and watches.
//!
//! A [`Model`] is a value. [`Model::apply`] takes one request after the other, in the order of the log, and answers as
//! etcd does, errors included. It is written to be read beside etcd's sources (`server/etcdserver/txn`,
//! `server/storage/mvcc`, `server/etcdserver/api/v3rpc/key.go`) and shares no code with the state machine it is the
//! yardstick for. Simplicity comes before speed:
//!
//! - every version of every key is kept for ever, compacted or not, and compaction is only a number that requests are
//!   checked against;
//! - which keys hang on a lease is found by looking at all keys;
//! - the log holds each revision's events complete with their previous versions, so a watch is a filter over it.
//!
//! What is not here: time (leases end by [`Request::LeaseRevoke`] only, whoever sends it), authentication, quotas,
//! members.

pub(crate) mod text;
mod types;
mod validate;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use types::*;

/// The longest lease, in seconds (`server/lease/lessor.go`, MaxLeaseTTL).
pub const LEASE_TTL_MAX: i64 = 9_000_000_000;

/// The highest revision that can be: etcd's are 64-bit, counted from 1, so nobody gets near it. It leaves room to add to
/// a revision without care.
pub const REVISION_MAX: i64 = 1 << 62;

/// Settings of a server that show in its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rules {
    /// Most compares or operations of a transaction, nested ones included (`--max-txn-ops`).
    pub txn_ops_max: usize,
    /// Seconds to which shorter leases are raised: ⌈3 × election ticks / 2 × heartbeat interval⌉, 2 s by default.
    pub lease_ttl_min: i64,
    /// Whether a `keys_only` answer still carries the lease: up to etcd 3.6 it does, from 3.7 on it does not (unless
    /// sorted by value), since it is served from the index.
    pub keys_only_with_lease: bool,
    /// Which of several errors in a transaction is reported.
    pub txn_checks: TxnChecks,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            txn_ops_max: 128,
            lease_ttl_min: 2,
            keys_only_with_lease: true,
            txn_checks: TxnChecks::InOrder,
        }
    }
}

/// The order in which the operations of a transaction are checked before any of them runs. It shows only if several are
/// at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TxnChecks {
    /// As they stand (etcd's main branch, `txn/txn.go`, checkTxn).
    InOrder,
    /// All puts, then all ranges; and of a put first its key, then its lease (etcd 3.5, `apply.go`, checkRequestPut).
    PutsFirst,
}

/// One version of a key in the model's store: what a put left, or nothing for a delete.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    revision: i64,
    kv: Option<KeyValue>,
}

/// The state of an etcd cluster, as far as clients can see it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Model {
    rules: Rules,
    /// The current revision. Invariant: no version and no commit has a higher one, except inside a [`Writer`].
    revision: i64,
    /// The compact revision; it is still readable, lower ones are not.
    compacted: i64,
    /// Id → seconds granted.
    leases: Arc<BTreeMap<i64, i64>>,
    /// What each revision changed, ascending.
    log: Vec<Commit>,
    /// Every version of every key, ascending by revision. One revision may hold two versions of a key: a transaction
    /// may delete it by an open-ended range and put it, in either order. The last one counts.
    keys: BTreeMap<Vec<u8>, Vec<Version>>,
}

impl Default for Model {
    fn default() -> Model {
        Model::new(Rules::default())
    }
}

impl Model {
    /// A fresh cluster: revision 1, nothing compacted (-1).
    pub fn new(rules: Rules) -> Model {
        Model {
            rules,
            revision: 1,
            compacted: -1,
            leases: Arc::default(),
            log: Vec::new(),
            keys: BTreeMap::new(),
        }
    }

    /// The current revision.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The compact revision; -1 if there was no compaction.
    pub fn compacted(&self) -> i64 {
        self.compacted
    }

    /// The settings.
    pub fn rules(&self) -> Rules {
        self.rules
    }

    /// Every revision that changed something, ascending, compacted ones included.
    pub fn commits(&self) -> &[Commit] {
        &self.log
    }

    /// What the revision changed; none if it changed nothing, or is not there yet.
    pub fn commit(&self, revision: i64) -> Option<&Commit> {
        let index = self.log.binary_search_by_key(&revision, |commit| commit.revision).ok()?;
        self.log.get(index)
    }

    /// Applies one request, as the next entry of the log. A read is a request like any other, and leaves the state as
    /// it is; so does a refused one.
    pub fn apply(&mut self, request: &Request) -> Answer {
        self.apply_with(request, None)
    }

    /// As [`Model::apply`], and where etcd leaves the answer open, it is the one seen, if that is allowed. So an answer
    /// is right if and only if it is equal to the one returned here. Open are: the order of equal elements in a sorted
    /// range (and which of them a limit cuts off), the id of a lease granted without one, the order of leases, and the
    /// time that a lease has left.
    pub fn apply_like(&mut self, request: &Request, seen: &Answer) -> Answer {
        self.apply_with(request, seen.as_ref().ok())
    }

    fn apply_with(&mut self, request: &Request, seen: Option<&Response>) -> Answer {
        validate::request(request, self.rules)?;
        match request {
            Request::Range(request) => {
                let revision = self.read_revision(request)?;
                let seen = if let Some(Response::Range(seen)) = seen { Some(seen) } else { None };
                Ok(Response::Range(self.range_at(request, revision, self.revision, seen)))
            }
            Request::Put(request) => {
                self.check_put(request)?;
                let mut writer = Writer::new(self);
                let mut response = writer.put(request);
                response.revision = writer.finish();
                Ok(Response::Put(response))
            }
            Request::DeleteRange(request) => {
                let mut writer = Writer::new(self);
                let mut response = writer.delete_range(request);
                response.revision = writer.finish();
                Ok(Response::DeleteRange(response))
            }
            Request::Txn(request) => {
                let branch = self.choose(request);
                self.check_branch(&branch, self.rules.txn_checks)?;
                let mut writer = Writer::new(self);
                let seen = if let Some(Response::Txn(seen)) = seen { Some(seen) } else { None };
                let mut response = writer.run(&branch, seen);
                response.revision = writer.finish();
                Ok(Response::Txn(response))
            }
            Request::Compact(request) => {
                self.check_compact(request)?;
                self.compacted = request.revision;
                Ok(Response::Compact(CompactResponse { revision: self.revision }))
            }
            Request::LeaseGrant(request) => {
                self.check_grant(request)?;
                let picked = if let Some(Response::LeaseGrant(seen)) = seen { seen.id } else { 0 };
                let id = if request.id == 0 { self.unused_lease(picked) } else { request.id };
                let ttl = request.ttl.max(self.rules.lease_ttl_min);
                Arc::make_mut(&mut self.leases).insert(id, ttl);
                Ok(Response::LeaseGrant(LeaseGrantResponse { revision: self.revision, id, ttl }))
            }
            Request::LeaseRevoke(request) => {
                self.check_lease(request.id)?;
                let keys = self.lease_keys(request.id);
                Arc::make_mut(&mut self.leases).remove(&request.id);
                let mut writer = Writer::new(self);
                for key in keys {
                    writer.delete(key);
                }
                Ok(Response::LeaseRevoke(LeaseRevokeResponse { revision: writer.finish() }))
            }
            Request::LeaseKeepAlive(request) => {
                let ttl = self.leases.get(&request.id).copied().unwrap_or(0);
                let revision = self.revision;
                Ok(Response::LeaseKeepAlive(LeaseKeepAliveResponse { revision, id: request.id, ttl }))
            }
            Request::LeaseTimeToLive(request) => {
                let seen = if let Some(Response::LeaseTimeToLive(seen)) = seen { Some(seen) } else { None };
                Ok(Response::LeaseTimeToLive(self.time_to_live(request, seen)))
            }
            Request::Leases => {
                let mut ids: Vec<i64> = self.leases().collect();
                if let Some(Response::Leases(seen)) = seen {
                    let mut sorted = seen.ids.clone();
                    sorted.sort_unstable();
                    if sorted == ids {
                        ids.clone_from(&seen.ids);
                    }
                }
                Ok(Response::Leases(LeasesResponse { revision: self.revision, ids }))
            }
        }
    }

    /// The error that the request would get in this state. All checks come before any effect, so this is all there
    /// is to a request's failing.
    pub fn check(&self, request: &Request) -> Result<(), Error> {
        self.check_in(request, self.rules.txn_checks)
    }

    /// Whether any release of etcd would refuse the request in this state for this reason.
    pub fn may_refuse(&self, request: &Request, error: Error) -> bool {
        [TxnChecks::InOrder, TxnChecks::PutsFirst]
            .into_iter()
            .any(|order| self.check_in(request, order) == Err(error))
    }

    fn check_in(&self, request: &Request, order: TxnChecks) -> Result<(), Error> {
        validate::request(request, self.rules)?;
        match request {
            Request::Range(request) => self.read_revision(request).map(|_| ()),
            Request::Put(request) => self.check_put(request),
            Request::Txn(request) => self.check_branch(&self.choose(request), order),
            Request::Compact(request) => self.check_compact(request),
            Request::LeaseGrant(request) => self.check_grant(request),
            Request::LeaseRevoke(request) => self.check_lease(request.id),
            Request::DeleteRange(_)
            | Request::LeaseKeepAlive(_)
            | Request::LeaseTimeToLive(_)
            | Request::Leases => Ok(()),
        }
    }

    /// The error that the request gets in any state: etcd refuses it before it is proposed.
    pub fn check_form(&self, request: &Request) -> Result<(), Error> {
        validate::request(request, self.rules)
    }

    /// Reads keys.
    pub fn read(&self, request: &RangeRequest) -> Result<RangeResponse, Error> {
        let revision = self.read_revision(request)?;
        Ok(self.range_at(request, revision, self.revision, None))
    }

    /// The state as it was at `revision`, for a replica that has applied no more than that. Its leases and its
    /// compaction are not known, so it has today's leases and nothing compacted.
    pub fn as_of(&self, revision: i64) -> Model {
        let mut past = self.clone();
        let commits = self.log.partition_point(|commit| commit.revision <= revision);
        past.rewind(&Checkpoint { revision, compacted: -1, leases: Arc::clone(&self.leases), commits });
        past
    }

    /// How the server meets a watch.
    pub fn watch(&self, request: &WatchRequest) -> WatchStart {
        let range = request.watched();
        if request.start_revision < 0 {
            return WatchStart::Refused { reason: Error::Compacted.text() };
        }
        let open = range.range_end.is_empty() || range.range_end == [0];
        if !open && range.key >= range.range_end {
            return WatchStart::Refused { reason: "mvcc: watcher range is empty" };
        }
        let start = if request.start_revision == 0 { self.revision + 1 } else { request.start_revision };
        if start < self.compacted {
            return WatchStart::Compacted { compact_revision: self.compacted };
        }
        WatchStart::From(start)
    }

    /// What happened to the keys of `range` from `from_revision` on, revision by revision. Revisions that touched none
    /// of them are left out. Compaction hides nothing here, since a watch may have read the events before it: whether a
    /// watch may begin at `from_revision` is for [`Model::watch`] to say.
    pub fn events(&self, from_revision: i64, range: &KeyRange) -> Vec<Commit> {
        let first = self.log.partition_point(|commit| commit.revision < from_revision);
        let within = |commit: &Commit| {
            let events: Vec<Event> =
                commit.events.iter().filter(|event| range.contains(&event.kv.key)).cloned().collect();
            (!events.is_empty()).then_some(Commit { revision: commit.revision, events })
        };
        self.log.iter().skip(first).filter_map(within).collect()
    }

    /// The key's version at `revision`.
    pub fn get(&self, key: &[u8], revision: i64) -> Option<&KeyValue> {
        at(self.keys.get(key)?, revision)
    }

    /// The revision at which the key changed next after `revision`.
    pub fn next_change(&self, key: &[u8], revision: i64) -> Option<i64> {
        let versions = self.keys.get(key)?;
        let after = versions.partition_point(|version| version.revision <= revision);
        versions.get(after).map(|version| version.revision)
    }

    /// Whether there is such a lease.
    pub fn has_lease(&self, id: i64) -> bool {
        self.leases.contains_key(&id)
    }

    /// Every lease.
    pub fn leases(&self) -> impl Iterator<Item = i64> {
        self.leases.keys().copied()
    }

    /// The keys that hang on the lease, sorted.
    pub fn lease_keys(&self, id: i64) -> Vec<Vec<u8>> {
        let on_lease = |kv: &&KeyValue| kv.lease == id;
        let all = KeyRange::all();
        self.live(&all, self.revision).filter(on_lease).map(|kv| kv.key.clone()).collect()
    }

    /// Leases that keys hang on.
    pub fn leases_with_keys(&self) -> Vec<i64> {
        let all = KeyRange::all();
        let mut ids: Vec<i64> = self.live(&all, self.revision).map(|kv| kv.lease).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.retain(|&id| id != 0);
        ids
    }

    /// Raises the current revision without a change: in a domain carried by several groups a revision may be handed
    /// out and never used. A revision that is not above the current one changes nothing; one
    /// above [`REVISION_MAX`] counts as that.
    pub fn skip_to(&mut self, revision: i64) {
        self.revision = self.revision.max(revision.min(REVISION_MAX));
    }

    /// The same state with nothing compacted, for checkers that judge compaction by themselves.
    pub(crate) fn without_compaction(mut self) -> Model {
        self.compacted = -1;
        self
    }

    /// A mark to come back to with [`Model::rewind`].
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            revision: self.revision,
            compacted: self.compacted,
            leases: Arc::clone(&self.leases),
            commits: self.log.len(),
        }
    }

    /// Undoes everything since the checkpoint, which must be one of this model's past.
    pub fn rewind(&mut self, checkpoint: &Checkpoint) {
        for commit in self.log.drain(checkpoint.commits.min(self.log.len())..).rev() {
            for event in commit.events.iter().rev() {
                // Each event pushed one version.
                if let Some(versions) = self.keys.get_mut(&event.kv.key) {
                    versions.pop();
                    if versions.is_empty() {
                        self.keys.remove(&event.kv.key);
                    }
                }
            }
        }
        self.revision = checkpoint.revision;
        self.compacted = checkpoint.compacted;
        self.leases = Arc::clone(&checkpoint.leases);
    }

    /// The keys of `range` alive at `revision`, ascending.
    fn live<'a>(&'a self, range: &'a KeyRange, revision: i64) -> impl Iterator<Item = &'a KeyValue> {
        let from = (Bound::Included(range.key.as_slice()), Bound::Unbounded);
        self.keys
            .range::<[u8], _>(from)
            .take_while(|(key, _)| range.contains(key))
            .filter_map(move |(_, versions)| at(versions, revision))
    }

    /// The revision to read at; etcd `kvstore_txn.go`, rangeKeys.
    fn read_revision(&self, request: &RangeRequest) -> Result<i64, Error> {
        if request.revision > self.revision {
            return Err(Error::FutureRevision);
        }
        let revision = if request.revision <= 0 { self.revision } else { request.revision };
        if revision < self.compacted {
            return Err(Error::Compacted);
        }
        Ok(revision)
    }

    /// Reads at `revision`; `header` goes into the answer. etcd `txn/range.go`.
    fn range_at(
        &self,
        request: &RangeRequest,
        revision: i64,
        header: i64,
        seen: Option<&RangeResponse>,
    ) -> RangeResponse {
        let found: Vec<&KeyValue> = self.live(&request.range, revision).collect();
        let count = i64::try_from(found.len()).unwrap_or(i64::MAX);
        if request.count_only {
            return RangeResponse { revision: header, kvs: Vec::new(), more: false, count };
        }
        let mut kvs = found;
        let limit = usize::try_from(request.limit).unwrap_or(0);
        let bounds = [
            request.min_mod_revision,
            request.max_mod_revision,
            request.min_create_revision,
            request.max_create_revision,
        ];
        // The quirk: without an order, and with no bounds, etcd fetches the first `limit + 1` keys and only then sorts
        // them by a target other than the key.
        if limit > 0 && request.sort_order == SortOrder::None && bounds == [0; 4] {
            kvs.truncate(limit.saturating_add(1));
        }
        kvs.retain(|kv| {
            let above = |value: i64, bound: i64| bound == 0 || value >= bound;
            let below = |value: i64, bound: i64| bound == 0 || value <= bound;
            above(kv.mod_revision, request.min_mod_revision)
                && below(kv.mod_revision, request.max_mod_revision)
                && above(kv.create_revision, request.min_create_revision)
                && below(kv.create_revision, request.max_create_revision)
        });
        sort(&mut kvs, request);
        let more = limit > 0 && kvs.len() > limit;
        let returned = if more { limit } else { kvs.len() };
        let from_index = !self.rules.keys_only_with_lease && request.sort_target != SortTarget::Value;
        let shown = |kv: &KeyValue| {
            let mut kv = kv.clone();
            if request.keys_only {
                kv.value.clear();
                if from_index {
                    kv.lease = 0;
                }
            }
            kv
        };
        if let Some(seen) = seen.filter(|seen| seen.kvs.len() == returned)
            && is_other_order(&seen.kvs, &kvs, request.sort_target, shown)
        {
            return RangeResponse { revision: header, kvs: seen.kvs.clone(), more, count };
        }
        RangeResponse {
            revision: header,
            kvs: kvs.into_iter().take(returned).map(shown).collect(),
            more,
            count,
        }
    }

    fn check_put(&self, request: &PutRequest) -> Result<(), Error> {
        if request.lease != 0 {
            self.check_lease(request.lease)?;
        }
        self.check_put_key(request)
    }

    fn check_put_key(&self, request: &PutRequest) -> Result<(), Error> {
        let needs_previous = request.ignore_value || request.ignore_lease;
        if needs_previous && self.get(&request.key, self.revision).is_none() {
            return Err(Error::KeyNotFound);
        }
        Ok(())
    }

    fn check_compact(&self, request: &CompactRequest) -> Result<(), Error> {
        if request.revision <= self.compacted {
            return Err(Error::Compacted);
        }
        if request.revision > self.revision {
            return Err(Error::FutureRevision);
        }
        Ok(())
    }

    fn check_grant(&self, request: &LeaseGrantRequest) -> Result<(), Error> {
        if request.ttl > LEASE_TTL_MAX {
            return Err(Error::LeaseTtlTooLarge);
        }
        if self.leases.contains_key(&request.id) {
            return Err(Error::LeaseExists);
        }
        Ok(())
    }

    fn check_lease(&self, id: i64) -> Result<(), Error> {
        if self.leases.contains_key(&id) { Ok(()) } else { Err(Error::LeaseNotFound) }
    }

    /// A server picks at random; the model takes the one seen, or the lowest positive id that is free.
    fn unused_lease(&self, seen: i64) -> i64 {
        let free = |id: &i64| *id > 0 && !self.leases.contains_key(id);
        Some(seen).filter(free).or_else(|| (1..=i64::MAX).find(free)).unwrap_or(i64::MAX)
    }

    fn time_to_live(
        &self,
        request: &LeaseTimeToLiveRequest,
        seen: Option<&LeaseTimeToLiveResponse>,
    ) -> LeaseTimeToLiveResponse {
        let revision = self.revision;
        let Some(&granted_ttl) = self.leases.get(&request.id) else {
            return LeaseTimeToLiveResponse { revision, id: request.id, ttl: -1, ..Default::default() };
        };
        // A lease that has run out and is not revoked yet has no time left, or less than none.
        let ttl = seen.map_or(granted_ttl, |seen| seen.ttl.min(granted_ttl));
        let mut keys = if request.keys { self.lease_keys(request.id) } else { Vec::new() };
        if let Some(seen) = seen {
            let mut sorted = seen.keys.clone();
            sorted.sort();
            if sorted == keys {
                keys.clone_from(&seen.keys);
            }
        }
        LeaseTimeToLiveResponse { revision, id: request.id, ttl, granted_ttl, keys }
    }

    /// Evaluates all compares, nested ones included, on the state before the transaction.
    fn choose<'a>(&self, request: &'a TxnRequest) -> Branch<'a> {
        let succeeded = request.compare.iter().all(|compare| self.holds(compare));
        let ops = if succeeded { &request.success } else { &request.failure };
        let choose = |op: &'a RequestOp| match op {
            RequestOp::Range(request) => BranchOp::Range(request),
            RequestOp::Put(request) => BranchOp::Put(request),
            RequestOp::DeleteRange(request) => BranchOp::DeleteRange(request),
            RequestOp::Txn(request) => BranchOp::Txn(self.choose(request)),
            RequestOp::Empty => BranchOp::Empty,
        };
        Branch { succeeded, ops: ops.iter().map(choose).collect() }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let mut found = self.live(&compare.range, self.revision).peekable();
        if found.peek().is_none() {
            return match compare.target {
                // etcd cannot tell "missing" from "empty" in a value, so this compare holds for neither.
                CompareTarget::Value(_) => false,
                CompareTarget::Version(_)
                | CompareTarget::Create(_)
                | CompareTarget::Mod(_)
                | CompareTarget::Lease(_)
                | CompareTarget::Unrecognised => compare_one(compare, &KeyValue::default()),
            };
        }
        found.all(|kv| compare_one(compare, kv))
    }

    /// What etcd checks on the chosen path before anything is written.
    fn check_branch(&self, branch: &Branch<'_>, order: TxnChecks) -> Result<(), Error> {
        match order {
            TxnChecks::InOrder => self.check_ops(branch, &|op| match op {
                BranchOp::Range(request) => self.check_txn_range(request),
                BranchOp::Put(request) => self.check_put(request),
                BranchOp::DeleteRange(_) | BranchOp::Txn(_) | BranchOp::Empty => Ok(()),
            }),
            TxnChecks::PutsFirst => {
                self.check_ops(branch, &|op| match op {
                    BranchOp::Put(request) => {
                        self.check_put_key(request).and_then(|()| self.check_put(request))
                    }
                    BranchOp::Range(_) | BranchOp::DeleteRange(_) | BranchOp::Txn(_) | BranchOp::Empty => {
                        Ok(())
                    }
                })?;
                self.check_ops(branch, &|op| match op {
                    BranchOp::Range(request) => self.check_txn_range(request),
                    BranchOp::Put(_) | BranchOp::DeleteRange(_) | BranchOp::Txn(_) | BranchOp::Empty => {
                        Ok(())
                    }
                })
            }
        }
    }

    /// Checks every operation that will run, inner transactions where they stand.
    fn check_ops(
        &self,
        branch: &Branch<'_>,
        check: &dyn Fn(&BranchOp<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        branch.ops.iter().try_for_each(|op| match op {
            BranchOp::Txn(branch) => self.check_ops(branch, check),
            BranchOp::Range(_) | BranchOp::Put(_) | BranchOp::DeleteRange(_) | BranchOp::Empty => check(op),
        })
    }

    /// Not the plain range's rule: only 0 means "latest" here.
    fn check_txn_range(&self, request: &RangeRequest) -> Result<(), Error> {
        if request.revision > self.revision {
            return Err(Error::FutureRevision);
        }
        if request.revision != 0 && request.revision < self.compacted {
            return Err(Error::Compacted);
        }
        Ok(())
    }
}

/// A point in a model's past; see [`Model::checkpoint`].
#[derive(Clone, Debug)]
pub struct Checkpoint {
    revision: i64,
    compacted: i64,
    leases: Arc<BTreeMap<i64, i64>>,
    commits: usize,
}

impl Checkpoint {
    /// How many revisions had changed something by then.
    pub fn commits(&self) -> usize {
        self.commits
    }
}

/// A transaction after its compares: the operations that will run.
struct Branch<'a> {
    succeeded: bool,
    ops: Vec<BranchOp<'a>>,
}

enum BranchOp<'a> {
    Range(&'a RangeRequest),
    Put(&'a PutRequest),
    DeleteRange(&'a DeleteRangeRequest),
    Txn(Branch<'a>),
    Empty,
}

/// Writes one revision. Reads through it see what it has written.
struct Writer<'a> {
    model: &'a mut Model,
    /// The revision being written: one above the model's.
    next: i64,
    events: Vec<Event>,
}

impl<'a> Writer<'a> {
    fn new(model: &'a mut Model) -> Writer<'a> {
        let next = model.revision + 1;
        Writer { model, next, events: Vec::new() }
    }

    /// The revision that an answer in the middle of the transaction carries.
    fn current(&self) -> i64 {
        if self.events.is_empty() { self.model.revision } else { self.next }
    }

    fn run(&mut self, branch: &Branch<'_>, seen: Option<&TxnResponse>) -> TxnResponse {
        let mut responses = Vec::with_capacity(branch.ops.len());
        for (index, op) in branch.ops.iter().enumerate() {
            let seen = seen.and_then(|seen| seen.responses.get(index));
            responses.push(match op {
                BranchOp::Range(request) => {
                    let seen = if let Some(ResponseOp::Range(seen)) = seen { Some(seen) } else { None };
                    ResponseOp::Range(self.range(request, seen))
                }
                BranchOp::Put(request) => ResponseOp::Put(self.put(request)),
                BranchOp::DeleteRange(request) => ResponseOp::DeleteRange(self.delete_range(request)),
                BranchOp::Txn(branch) => {
                    let seen = if let Some(ResponseOp::Txn(seen)) = seen { Some(seen) } else { None };
                    ResponseOp::Txn(self.run(branch, seen))
                }
                // The form check refuses it.
                BranchOp::Empty => continue,
            });
        }
        // The caller fills the revision of the outermost answer; inner ones keep 0, as in etcd.
        TxnResponse { revision: 0, succeeded: branch.succeeded, responses }
    }

    fn range(&self, request: &RangeRequest, seen: Option<&RangeResponse>) -> RangeResponse {
        let header = self.current();
        let revision = if request.revision <= 0 { header } else { request.revision };
        self.model.range_at(request, revision, header, seen)
    }

    fn put(&mut self, request: &PutRequest) -> PutResponse {
        let previous = self.model.get(&request.key, self.next).cloned();
        // The check was on the state before the transaction, and a delete with an open end may have taken the key since.
        // etcd crashes there (3.5.1: "unexpected error during txn"); here nothing is what is kept.
        let kept = previous.clone().unwrap_or_default();
        let kv = KeyValue {
            key: request.key.clone(),
            create_revision: previous.as_ref().map_or(self.next, |kv| kv.create_revision),
            mod_revision: self.next,
            version: kept.version + 1,
            value: if request.ignore_value { kept.value } else { request.value.clone() },
            lease: if request.ignore_lease { kept.lease } else { request.lease },
        };
        let created = kv.create_revision == self.next;
        self.push(EventKind::Put, kv.clone(), Some(kv), created);
        PutResponse { revision: self.next, prev_kv: previous.filter(|_| request.prev_kv) }
    }

    fn delete_range(&mut self, request: &DeleteRangeRequest) -> DeleteRangeResponse {
        let found: Vec<KeyValue> = self.model.live(&request.range, self.next).cloned().collect();
        for kv in &found {
            self.delete(kv.key.clone());
        }
        let deleted = i64::try_from(found.len()).unwrap_or(i64::MAX);
        let prev_kvs = if request.prev_kv { found } else { Vec::new() };
        DeleteRangeResponse { revision: self.current(), deleted, prev_kvs }
    }

    fn delete(&mut self, key: Vec<u8>) {
        let tombstone = KeyValue { key, mod_revision: self.next, ..Default::default() };
        self.push(EventKind::Delete, tombstone, None, false);
    }

    fn push(&mut self, kind: EventKind, kv: KeyValue, version: Option<KeyValue>, created: bool) {
        let before = self.model.get(&kv.key, self.model.revision).cloned();
        let prev_kv = before.filter(|_| !created);
        let versions = self.model.keys.entry(kv.key.clone()).or_default();
        versions.push(Version { revision: self.next, kv: version });
        self.events.push(Event { kind, kv, prev_kv });
    }

    /// Ends the revision, if anything was written, and returns the current one.
    fn finish(self) -> i64 {
        if !self.events.is_empty() {
            self.model.revision = self.next;
            self.model.log.push(Commit { revision: self.next, events: self.events });
        }
        self.model.revision
    }
}

/// The last of `versions` not above `revision`, unless it is a delete.
fn at(versions: &[Version], revision: i64) -> Option<&KeyValue> {
    let after = versions.partition_point(|version| version.revision <= revision);
    versions.get(after.checked_sub(1)?)?.kv.as_ref()
}

/// Sorts an answer. etcd's sort is not stable, so equal elements may come in any order there; here they come by key.
fn sort(kvs: &mut [&KeyValue], request: &RangeRequest) {
    let order = |a: &KeyValue, b: &KeyValue| {
        let by_target = compare_by(request.sort_target, a, b);
        match request.sort_order {
            SortOrder::None | SortOrder::Ascend | SortOrder::Unrecognised => by_target,
            SortOrder::Descend => by_target.reverse(),
        }
    };
    kvs.sort_by(|a, b| order(a, b).then_with(|| a.key.cmp(&b.key)));
}

/// Whether `seen` is a beginning of `all` in an order that differs from it in nothing but the places of equal elements.
fn is_other_order(
    seen: &[KeyValue],
    all: &[&KeyValue],
    target: SortTarget,
    shown: impl Fn(&KeyValue) -> KeyValue,
) -> bool {
    let mut left: BTreeMap<&[u8], &KeyValue> = all.iter().map(|kv| (kv.key.as_slice(), *kv)).collect();
    seen.iter().zip(all).all(|(kv, in_place)| {
        let Some(stored) = left.remove(kv.key.as_slice()) else { return false };
        *kv == shown(stored) && compare_by(target, stored, in_place).is_eq()
    })
}

/// Compares by what a range is sorted by.
fn compare_by(target: SortTarget, a: &KeyValue, b: &KeyValue) -> std::cmp::Ordering {
    match target {
        SortTarget::Key => a.key.cmp(&b.key),
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::Create => a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value.cmp(&b.value),
        // The form check refuses it.
        SortTarget::Unrecognised => std::cmp::Ordering::Equal,
    }
}

/// Whether the compare holds for one version.
fn compare_one(compare: &Compare, kv: &KeyValue) -> bool {
    let ordering = match &compare.target {
        CompareTarget::Version(version) => kv.version.cmp(version),
        CompareTarget::Create(revision) => kv.create_revision.cmp(revision),
        CompareTarget::Mod(revision) => kv.mod_revision.cmp(revision),
        CompareTarget::Value(value) => kv.value.cmp(value),
        CompareTarget::Lease(lease) => kv.lease.cmp(lease),
        CompareTarget::Unrecognised => std::cmp::Ordering::Equal,
    };
    match compare.result {
        CompareResult::Equal => ordering.is_eq(),
        CompareResult::Greater => ordering.is_gt(),
        CompareResult::Less => ordering.is_lt(),
        CompareResult::NotEqual => ordering.is_ne(),
        CompareResult::Unrecognised => true,
    }
}
