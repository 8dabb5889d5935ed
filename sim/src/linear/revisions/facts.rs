//! What a history says before anything is replayed: the part each operation plays, the bounds that real time sets on
//! revisions, and what is known of each revision's changes.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{Options, Violation, ViolationKind};
use crate::linear::history::{End, EtcdHistory, EtcdOperation};
use crate::model::{
    CompareTarget, Error, Event, EventKind, KeyValue, REVISION_MAX, RangeRequest, Request, RequestOp,
    Response, ResponseOp, TxnRequest, TxnResponse, text,
};

/// The operation behind each revision; the server's own revokes have none.
pub(super) type Authors = BTreeMap<i64, Option<usize>>;

/// The part an operation plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Acknowledged, and changed something at this revision.
    Write(i64),
    /// Answered from the state of this revision. A revoke is one, too, until the replay finds that it deleted keys.
    Observer {
        /// `header.revision`
        revision: i64,
        /// Whether it must be up to date.
        linearizable: bool,
    },
    /// Refused.
    Refused(Error),
    /// A write with an unknown outcome.
    Suspect,
    /// Says nothing that is checked.
    Ignored,
}

/// A sign that a revision changed a key: an event, or a version that somebody read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Trace {
    pub(super) kind: EventKind,
    #[serde(serialize_with = "text::serialize")]
    pub(super) key: Vec<u8>,
    /// None if only the key was read.
    #[serde(skip)]
    pub(super) value: Option<Vec<u8>>,
}

/// A compaction that was asked for and not refused.
struct Compaction {
    revision: i64,
    call: u64,
}

/// Calls `visit` with every revision that the request speaks of.
fn visit_mentioned(request: &Request, visit: &mut impl FnMut(i64)) {
    fn of_range(range: &RangeRequest, visit: &mut impl FnMut(i64)) {
        visit(range.revision);
        for (lowest, highest) in [
            (range.min_mod_revision, range.max_mod_revision),
            (range.min_create_revision, range.max_create_revision),
        ] {
            visit(lowest);
            visit(highest);
        }
    }
    fn of_txn(txn: &TxnRequest, visit: &mut impl FnMut(i64)) {
        for compare in &txn.compare {
            match &compare.target {
                CompareTarget::Create(revision) | CompareTarget::Mod(revision) => visit(*revision),
                CompareTarget::Version(_)
                | CompareTarget::Value(_)
                | CompareTarget::Lease(_)
                | CompareTarget::Unrecognised => {}
            }
        }
        for op in txn.success.iter().chain(&txn.failure) {
            match op {
                RequestOp::Range(range) => of_range(range, visit),
                RequestOp::Txn(txn) => of_txn(txn, visit),
                RequestOp::Put(_) | RequestOp::DeleteRange(_) | RequestOp::Empty => {}
            }
        }
    }
    match request {
        Request::Range(range) => of_range(range, visit),
        Request::Txn(txn) => of_txn(txn, visit),
        Request::Put(_)
        | Request::DeleteRange(_)
        | Request::Compact(_)
        | Request::LeaseGrant(_)
        | Request::LeaseRevoke(_)
        | Request::LeaseKeepAlive(_)
        | Request::LeaseTimeToLive(_)
        | Request::Leases => {}
    }
}

/// The first moments in the lives of leases, by id.
#[derive(Default)]
struct Leases {
    /// Calls of grants that were not refused.
    first_grant: BTreeMap<i64, u64>,
    /// Returns of acknowledged grants.
    first_return: BTreeMap<i64, u64>,
    /// Calls of revokes.
    first_revoke: BTreeMap<i64, u64>,
}

impl Leases {
    fn of(operations: &[EtcdOperation]) -> Leases {
        let mut leases = Leases::default();
        let note = |moments: &mut BTreeMap<i64, u64>, id: i64, moment: u64| {
            let first = moments.entry(id).or_insert(moment);
            *first = moment.min(*first);
        };
        for operation in operations {
            if let Some(id) = granted_lease(operation) {
                note(&mut leases.first_grant, id, operation.call);
                if let Some(at) = operation.returned_at() {
                    note(&mut leases.first_return, id, at);
                }
            }
            if let Request::LeaseRevoke(revoke) = &operation.input {
                note(&mut leases.first_revoke, revoke.id, operation.call);
            }
        }
        leases
    }
}

/// The highest revisions among the operations that have returned, and whose they are.
#[derive(Clone, Copy, Default)]
struct Floor {
    write: Option<(i64, usize)>,
    any: Option<(i64, usize)>,
    compacted: Option<(i64, usize)>,
}

/// Everything the replay needs to know.
pub(super) struct Facts<'a> {
    pub(super) operations: &'a [EtcdOperation],
    pub(super) roles: Vec<Role>,
    /// For each operation, the highest revision returned before it was called: a write has a higher one.
    pub(super) floors: Vec<i64>,
    /// For each refused operation, the last revision it can have seen: that before the first write called after it.
    pub(super) ceilings: Vec<i64>,
    /// Acknowledged writes by revision.
    pub(super) writes: BTreeMap<i64, usize>,
    /// Observers by revision.
    pub(super) observers: BTreeMap<i64, Vec<usize>>,
    /// What is known of the changes of revisions that nobody acknowledged.
    pub(super) traces: BTreeMap<i64, BTreeSet<Trace>>,
    /// Revisions up to the last one known that requests speak of: what a request means depends on which side of them a
    /// write is.
    pub(super) mentioned: BTreeSet<i64>,
    compactions: Vec<Compaction>,
    start_compacted: i64,
    /// The highest revision in a watch's header.
    watched: Option<i64>,
}

impl<'a> Facts<'a> {
    /// Reads the history and judges everything that needs no model.
    pub(super) fn of(history: &'a EtcdHistory, options: &Options) -> (Facts<'a>, Vec<Violation>) {
        let operations = history.operations.as_slice();
        let mut violations = Vec::new();
        for (index, stream) in history.watches.iter().enumerate() {
            let revisions = stream.responses.iter().flat_map(|response| {
                let events = response.message.events();
                let previous = events.iter().filter_map(|event| Some(event.prev_kv.as_ref()?.mod_revision));
                events
                    .iter()
                    .map(Event::revision)
                    .chain(previous)
                    .chain([response.revision])
                    .collect::<Vec<i64>>()
            });
            if let Some(number) = revisions.into_iter().find(|&number| !is_revision(number)) {
                let detail = format!("{number} cannot be a revision");
                violations.push(Violation::of_watch(ViolationKind::MalformedHistory, 0, index, detail));
            }
        }
        let mut roles = Vec::with_capacity(operations.len());
        for (index, operation) in operations.iter().enumerate() {
            let role = role(operation).unwrap_or_else(|detail| {
                violations.push(Violation::new(ViolationKind::MalformedHistory, 0, &[index], detail));
                Role::Ignored
            });
            roles.push(role);
        }
        let mut facts = Facts {
            operations,
            roles,
            floors: vec![options.start.revision(); operations.len()],
            ceilings: vec![i64::MAX; operations.len()],
            writes: BTreeMap::new(),
            observers: BTreeMap::new(),
            traces: BTreeMap::new(),
            mentioned: BTreeSet::new(),
            compactions: compactions(operations),
            start_compacted: options.start.compacted(),
            watched: history
                .watches
                .iter()
                .flat_map(|stream| &stream.responses)
                .map(|response| response.revision)
                .max(),
        };
        facts.sort_by_revision(options, &mut violations);
        facts.sweep(options, &mut violations);
        facts.check_versions(&mut violations);
        facts.check_refusals(options, &mut violations);
        facts.collect_traces(history, options);
        facts.collect_mentioned(options);
        (facts, violations)
    }

    /// The last revision anybody knows of.
    pub(super) fn last_revision(&self) -> Option<i64> {
        let lasts = [
            self.writes.keys().next_back(),
            self.observers.keys().next_back(),
            self.traces.keys().next_back(),
            self.watched.as_ref(),
        ];
        lasts.into_iter().flatten().copied().max()
    }

    /// Whether the previous version of a change at `revision` may be missing because a compaction took it.
    pub(super) fn may_have_lost_previous(&self, revision: i64) -> bool {
        self.compactions.iter().any(|compaction| compaction.revision >= revision)
    }

    /// Whether a compaction to exactly `revision` was asked for before `at`.
    pub(super) fn compaction_called(&self, revision: i64, at: u64) -> bool {
        let called = |compaction: &Compaction| compaction.revision == revision && compaction.call <= at;
        self.start_compacted == revision || self.compactions.iter().any(called)
    }

    fn sort_by_revision(&mut self, options: &Options, violations: &mut Vec<Violation>) {
        for (index, &role) in self.roles.iter().enumerate() {
            match role {
                Role::Write(revision) => {
                    if let Some(other) = self.writes.insert(revision, index) {
                        let detail = "two writes were acknowledged with the same revision";
                        let pair = [other, index];
                        violations.push(Violation::new(
                            ViolationKind::DuplicateRevision,
                            revision,
                            &pair,
                            detail,
                        ));
                    } else if revision <= options.start.revision() {
                        let detail = "a write was acknowledged with a revision from before the history";
                        violations.push(Violation::new(
                            ViolationKind::WriteOrder,
                            revision,
                            &[index],
                            detail,
                        ));
                    }
                }
                // What a replica said that had not even caught up with the start cannot be judged.
                Role::Observer { revision, linearizable } if revision < options.start.revision() => {
                    if linearizable {
                        let detail = "a read is older than the history";
                        violations.push(Violation::new(ViolationKind::StaleRead, revision, &[index], detail));
                    }
                }
                Role::Observer { revision, .. } => self.observers.entry(revision).or_default().push(index),
                Role::Refused(_) | Role::Suspect | Role::Ignored => {}
            }
        }
    }

    /// Goes through calls and returns in the order of time, and compares each call with what had returned before.
    fn sweep(&mut self, options: &Options, violations: &mut Vec<Violation>) {
        let mut moments: Vec<(u64, bool, usize)> = Vec::with_capacity(self.operations.len() * 2);
        for (index, operation) in self.operations.iter().enumerate() {
            // Calls before returns: at equal times the operations are concurrent.
            moments.push((operation.call, false, index));
            moments.extend(operation.returned_at().map(|at| (at, true, index)));
        }
        moments.sort_unstable();
        let mut floor = Floor::default();
        for &(_, is_return, index) in &moments {
            if is_return {
                self.raise(&mut floor, index);
            } else {
                let highest = floor.any.map_or(0, |(revision, _)| revision);
                self.floors[index] = highest.max(options.start.revision());
                violations.extend(self.against(&floor, index));
            }
        }
        // Backwards: the first revision of all writes called later.
        let mut first = i64::MAX;
        for &(_, is_return, index) in moments.iter().rev() {
            match (self.roles[index], is_return) {
                (Role::Write(revision), false) => first = first.min(revision),
                (Role::Refused(_), true) => self.ceilings[index] = first.saturating_sub(1),
                (Role::Write(_) | Role::Observer { .. } | Role::Suspect | Role::Ignored, _) => {}
                (Role::Refused(_), false) => {}
            }
        }
    }

    fn raise(&self, floor: &mut Floor, index: usize) {
        let raise = |slot: &mut Option<(i64, usize)>, revision: i64| {
            if slot.is_none_or(|(highest, _)| highest < revision) {
                *slot = Some((revision, index));
            }
        };
        match self.roles[index] {
            Role::Write(revision) => {
                raise(&mut floor.write, revision);
                raise(&mut floor.any, revision);
            }
            Role::Observer { revision, .. } => {
                raise(&mut floor.any, revision);
                if let Request::Compact(request) = &self.operations[index].input {
                    raise(&mut floor.compacted, request.revision);
                }
            }
            Role::Refused(_) | Role::Suspect | Role::Ignored => {}
        }
    }

    /// What is wrong with an operation that was called when `floor` had returned.
    fn against(&self, floor: &Floor, index: usize) -> Vec<Violation> {
        let above =
            |slot: Option<(i64, usize)>, revision: i64| slot.filter(|&(highest, _)| highest > revision);
        let mut violations = Vec::new();
        let mut add = |kind, revision, other, detail: &str| {
            violations.push(Violation::new(kind, revision, &[other, index], detail));
        };
        match self.roles[index] {
            Role::Write(revision) => {
                // An equal write is a duplicate, which is reported as such.
                if let Some((_, other)) = above(floor.write, revision) {
                    let detail = "a write has a lower revision than one that returned before it was called";
                    add(ViolationKind::WriteOrder, revision, other, detail);
                } else if let Some((_, other)) =
                    above(floor.any, revision - 1).filter(|_| floor.write != floor.any)
                {
                    let detail = "an answer knows a revision whose write was called only afterwards";
                    add(ViolationKind::FutureRead, revision, other, detail);
                }
            }
            Role::Observer { revision, linearizable: true } => {
                if let Some((_, other)) = above(floor.write, revision) {
                    let detail = "an answer misses a write that was acknowledged before it was asked for";
                    add(ViolationKind::StaleRead, revision, other, detail);
                } else if let Some((_, other)) = above(floor.any, revision) {
                    let detail = "an answer is older than one that returned before it was asked for";
                    add(ViolationKind::ReadWentBack, revision, other, detail);
                }
            }
            Role::Observer { linearizable: false, .. } | Role::Refused(_) | Role::Suspect | Role::Ignored => {
            }
        }
        violations.extend(self.compaction_violation(floor, index));
        violations
    }

    /// An acknowledged compaction is above all acknowledged before it, and below nothing it can have seen; a read of an
    /// old revision is not below any of them.
    fn compaction_violation(&self, floor: &Floor, index: usize) -> Option<Violation> {
        let operation = self.operations.get(index)?;
        let response = operation.output()?.as_ref().ok()?;
        let violation = |kind, other: &[usize], detail| {
            let operations: Vec<usize> = other.iter().copied().chain([index]).collect();
            Some(Violation::new(kind, response.revision(), &operations, detail))
        };
        if let Request::Compact(request) = &operation.input {
            if request.revision > response.revision() {
                return violation(ViolationKind::WrongAnswer, &[], "a future revision was compacted");
            }
            let (_, other) = floor.compacted.filter(|&(compacted, _)| request.revision <= compacted)?;
            return violation(
                ViolationKind::Compaction,
                &[other],
                "a compacted revision was compacted again",
            );
        }
        if operation.input.is_serializable() {
            return None;
        }
        let oldest = oldest_read(&operation.input, response)?;
        let (_, other) = floor.compacted.filter(|&(compacted, _)| oldest < compacted)?;
        violation(ViolationKind::Compaction, &[other], "a compacted revision was read")
    }

    /// No answer may show a version above its own header.
    fn check_versions(&self, violations: &mut Vec<Violation>) {
        for (index, operation) in self.operations.iter().enumerate() {
            let Some(Ok(response)) = operation.output() else { continue };
            let header = response.revision();
            let mut highest = header;
            visit_versions(&operation.input, response, &mut |kv, _| highest = highest.max(kv.mod_revision));
            if highest > header {
                let detail = format!("an answer of revision {header} shows a key of revision {highest}");
                violations.push(Violation::new(ViolationKind::FutureRead, highest, &[index], detail));
            }
        }
    }

    /// Refusals that no state can justify. Those that depend on the keys are left to the replay.
    fn check_refusals(&self, options: &Options, violations: &mut Vec<Violation>) {
        let leases = Leases::of(self.operations);
        for (index, operation) in self.operations.iter().enumerate() {
            let (Role::Refused(error), Some(at)) = (self.roles[index], operation.returned_at()) else {
                continue;
            };
            let in_any_state = options.start.check_form(&operation.input);
            let justified = match error {
                _ if in_any_state.is_err() => in_any_state == Err(error),
                Error::EmptyKey
                | Error::ValueProvided
                | Error::LeaseProvided
                | Error::TooManyOps
                | Error::DuplicateKey
                | Error::InvalidSortOption => false,
                Error::Compacted => self.may_be_compacted(&operation.input, at, options),
                Error::LeaseNotFound => self.may_lack_lease(operation, at, &leases, options),
                Error::LeaseExists => may_have_lease(&operation.input, at, &leases, options),
                Error::KeyNotFound | Error::FutureRevision | Error::LeaseTtlTooLarge => true,
            };
            if !justified {
                let detail = format!("refused with {error:?} ({error}), which cannot be");
                violations.push(Violation::new(ViolationKind::WrongError, 0, &[index], detail));
            }
        }
    }

    fn may_be_compacted(&self, request: &Request, at: u64, options: &Options) -> bool {
        let called = self.compactions.iter().filter(|compaction| compaction.call <= at);
        let compacted =
            called.map(|compaction| compaction.revision).fold(options.start.compacted(), i64::max);
        match request {
            Request::Range(range) => range.revision > 0 && range.revision < compacted,
            Request::Txn(txn) => {
                let mut found = false;
                visit_ranges(txn, &mut |range| found |= range.revision != 0 && range.revision < compacted);
                found
            }
            Request::Compact(request) => request.revision <= compacted,
            Request::Put(_)
            | Request::DeleteRange(_)
            | Request::LeaseGrant(_)
            | Request::LeaseRevoke(_)
            | Request::LeaseKeepAlive(_)
            | Request::LeaseTimeToLive(_)
            | Request::Leases => false,
        }
    }

    /// With leases that may run out at any time, a lease may always be missing.
    fn may_lack_lease(&self, refused: &EtcdOperation, at: u64, leases: &Leases, options: &Options) -> bool {
        let certain = |id: &i64| {
            let granted = leases.first_return.get(id).is_some_and(|&granted| granted < refused.call);
            let revoke_called = leases.first_revoke.get(id).is_some_and(|&call| call <= at);
            (granted || options.start.has_lease(*id)) && !revoke_called && !options.leases_expire
        };
        let mentioned = mentioned_leases(&refused.input);
        !mentioned.is_empty() && !mentioned.iter().all(certain)
    }

    fn collect_mentioned(&mut self, options: &Options) {
        let (first, last) = (options.start.revision(), self.last_revision().unwrap_or(0));
        let mut mentioned = BTreeSet::new();
        for operation in self.operations {
            visit_mentioned(&operation.input, &mut |revision| {
                if first < revision && revision <= last {
                    mentioned.insert(revision);
                }
            });
        }
        self.mentioned = mentioned;
    }

    fn collect_traces(&mut self, history: &EtcdHistory, options: &Options) {
        let mut traces: BTreeMap<i64, BTreeSet<Trace>> = BTreeMap::new();
        let mut add = |revision: i64, kind: EventKind, kv: &KeyValue, has_value: bool| {
            if revision > options.start.revision() && !self.writes.contains_key(&revision) {
                let trace = Trace { kind, key: kv.key.clone(), value: has_value.then(|| kv.value.clone()) };
                traces.entry(revision).or_default().insert(trace);
            }
        };
        let mut add_version = |kv: &KeyValue, has_value: bool| {
            add(kv.mod_revision, EventKind::Put, kv, has_value);
            // It also tells of the put that created the key, but not what that wrote.
            if kv.create_revision < kv.mod_revision {
                add(kv.create_revision, EventKind::Put, kv, false);
            }
        };
        for operation in self.operations {
            let Some(Ok(response)) = operation.output() else { continue };
            visit_versions(&operation.input, response, &mut add_version);
        }
        let responses = history.watches.iter().flat_map(|stream| &stream.responses);
        for event in responses.flat_map(|response| response.message.events()) {
            match event.kind {
                EventKind::Put => add_version(&event.kv, true),
                EventKind::Delete => {}
            }
            if let Some(kv) = &event.prev_kv {
                add_version(kv, true);
            }
        }
        let responses = history.watches.iter().flat_map(|stream| &stream.responses);
        for event in responses.flat_map(|response| response.message.events()) {
            if event.kind == EventKind::Delete {
                add(event.revision(), EventKind::Delete, &event.kv, true);
            }
        }
        self.traces = traces;
    }
}

fn may_have_lease(request: &Request, at: u64, leases: &Leases, options: &Options) -> bool {
    let Request::LeaseGrant(grant) = request else { return false };
    let granted = leases.first_grant.get(&grant.id).is_some_and(|&call| call <= at);
    granted || options.start.has_lease(grant.id)
}

/// The part the operation plays, or what is wrong with its record.
fn role(operation: &EtcdOperation) -> Result<Role, String> {
    let End::Returned { at, output } = &operation.end else {
        return Ok(match &operation.input {
            Request::Put(_) | Request::DeleteRange(_) | Request::LeaseGrant(_) | Request::LeaseRevoke(_) => {
                Role::Suspect
            }
            Request::Txn(txn) if may_write(txn) => Role::Suspect,
            Request::Txn(_)
            | Request::Range(_)
            | Request::Compact(_)
            | Request::LeaseKeepAlive(_)
            | Request::LeaseTimeToLive(_)
            | Request::Leases => Role::Ignored,
        });
    };
    if *at < operation.call {
        return Err("the operation returned before it was called".to_owned());
    }
    let response = match output {
        Ok(response) => response,
        Err(error) => return Ok(Role::Refused(*error)),
    };
    let revision = response.revision();
    let mut possible = is_revision(revision);
    visit_versions(&operation.input, response, &mut |kv, _| possible &= is_revision(kv.mod_revision));
    if !possible {
        return Err("the answer holds a number that cannot be a revision".to_owned());
    }
    let observer = Role::Observer { revision, linearizable: !operation.input.is_serializable() };
    match (&operation.input, response) {
        (Request::Put(_), Response::Put(_)) => Ok(Role::Write(revision)),
        (Request::DeleteRange(_), Response::DeleteRange(response)) if response.deleted > 0 => {
            Ok(Role::Write(revision))
        }
        (Request::Txn(_), Response::Txn(response)) if wrote(response) => Ok(Role::Write(revision)),
        (Request::Range(_), Response::Range(_))
        | (Request::DeleteRange(_), Response::DeleteRange(_))
        | (Request::Txn(_), Response::Txn(_))
        | (Request::Compact(_), Response::Compact(_))
        | (Request::LeaseGrant(_), Response::LeaseGrant(_))
        | (Request::LeaseRevoke(_), Response::LeaseRevoke(_)) => Ok(observer),
        (Request::LeaseKeepAlive(_), Response::LeaseKeepAlive(_))
        | (Request::LeaseTimeToLive(_), Response::LeaseTimeToLive(_))
        | (Request::Leases, Response::Leases(_)) => Ok(Role::Ignored),
        (_, _) => Err("the answer is of another type than the request".to_owned()),
    }
}

/// Whether the number can be a revision; 0 stands for none.
pub(super) fn is_revision(number: i64) -> bool {
    (0..=REVISION_MAX).contains(&number)
}

fn compactions(operations: &[EtcdOperation]) -> Vec<Compaction> {
    let compaction = |operation: &EtcdOperation| {
        let Request::Compact(request) = &operation.input else { return None };
        let refused = matches!(operation.output(), Some(Err(_)));
        (!refused).then_some(Compaction { revision: request.revision, call: operation.call })
    };
    operations.iter().filter_map(compaction).collect()
}

/// Whether any branch of the transaction holds a write.
fn may_write(txn: &TxnRequest) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match op {
        RequestOp::Put(_) | RequestOp::DeleteRange(_) => true,
        RequestOp::Txn(txn) => may_write(txn),
        RequestOp::Range(_) | RequestOp::Empty => false,
    })
}

/// Whether the answer says that something was written.
fn wrote(txn: &TxnResponse) -> bool {
    txn.responses.iter().any(|response| match response {
        ResponseOp::Put(_) => true,
        ResponseOp::DeleteRange(response) => response.deleted > 0,
        ResponseOp::Txn(txn) => wrote(txn),
        ResponseOp::Range(_) => false,
    })
}

/// The lease that a grant made, or asked for if it was not answered. None if the operation is no grant, was refused, or
/// nobody knows the id.
pub(super) fn granted_lease(operation: &EtcdOperation) -> Option<i64> {
    let Request::LeaseGrant(request) = &operation.input else { return None };
    match operation.output() {
        Some(Ok(Response::LeaseGrant(response))) => Some(response.id),
        Some(Ok(_) | Err(_)) => None,
        None => Some(request.id).filter(|&id| id != 0),
    }
}

/// The leases that a request needs.
pub(super) fn mentioned_leases(request: &Request) -> Vec<i64> {
    fn of_txn(txn: &TxnRequest, leases: &mut Vec<i64>) {
        for op in txn.success.iter().chain(&txn.failure) {
            match op {
                RequestOp::Put(put) => leases.extend((put.lease != 0).then_some(put.lease)),
                RequestOp::Txn(txn) => of_txn(txn, leases),
                RequestOp::Range(_) | RequestOp::DeleteRange(_) | RequestOp::Empty => {}
            }
        }
    }
    let mut leases = Vec::new();
    match request {
        Request::Put(put) => leases.extend((put.lease != 0).then_some(put.lease)),
        Request::LeaseRevoke(revoke) => leases.push(revoke.id),
        Request::Txn(txn) => of_txn(txn, &mut leases),
        Request::Range(_)
        | Request::DeleteRange(_)
        | Request::Compact(_)
        | Request::LeaseGrant(_)
        | Request::LeaseKeepAlive(_)
        | Request::LeaseTimeToLive(_)
        | Request::Leases => {}
    }
    leases
}

/// Calls `visit` with every range of the transaction.
fn visit_ranges(txn: &TxnRequest, visit: &mut impl FnMut(&RangeRequest)) {
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            RequestOp::Range(range) => visit(range),
            RequestOp::Txn(txn) => visit_ranges(txn, visit),
            RequestOp::Put(_) | RequestOp::DeleteRange(_) | RequestOp::Empty => {}
        }
    }
}

/// The lowest old revision that was read to give this answer.
fn oldest_read(request: &Request, response: &Response) -> Option<i64> {
    fn of_txn(txn: &TxnRequest, response: &TxnResponse) -> Option<i64> {
        let ops = if response.succeeded { &txn.success } else { &txn.failure };
        let of_op = |(op, response): (&RequestOp, &ResponseOp)| match (op, response) {
            (RequestOp::Range(range), _) => Some(range.revision).filter(|&revision| revision > 0),
            (RequestOp::Txn(txn), ResponseOp::Txn(response)) => of_txn(txn, response),
            (_, _) => None,
        };
        ops.iter().zip(&response.responses).filter_map(of_op).min()
    }
    match (request, response) {
        (Request::Range(range), _) => Some(range.revision).filter(|&revision| revision > 0),
        (Request::Txn(txn), Response::Txn(response)) => of_txn(txn, response),
        (_, _) => None,
    }
}

/// Calls `visit` with every version that an answer shows, and whether its value is there.
pub(super) fn visit_versions(
    request: &Request,
    response: &Response,
    visit: &mut impl FnMut(&KeyValue, bool),
) {
    fn of_txn(txn: &TxnRequest, response: &TxnResponse, visit: &mut impl FnMut(&KeyValue, bool)) {
        let ops = if response.succeeded { &txn.success } else { &txn.failure };
        for (op, response) in ops.iter().zip(&response.responses) {
            match (op, response) {
                (RequestOp::Range(range), ResponseOp::Range(response)) => {
                    response.kvs.iter().for_each(|kv| visit(kv, !range.keys_only));
                }
                (_, ResponseOp::Put(response)) => response.prev_kv.iter().for_each(|kv| visit(kv, true)),
                (_, ResponseOp::DeleteRange(response)) => {
                    response.prev_kvs.iter().for_each(|kv| visit(kv, true))
                }
                (RequestOp::Txn(txn), ResponseOp::Txn(response)) => of_txn(txn, response, visit),
                (_, ResponseOp::Range(_) | ResponseOp::Txn(_)) => {}
            }
        }
    }
    match (request, response) {
        (Request::Range(range), Response::Range(response)) => {
            response.kvs.iter().for_each(|kv| visit(kv, !range.keys_only));
        }
        (_, Response::Put(response)) => response.prev_kv.iter().for_each(|kv| visit(kv, true)),
        (_, Response::DeleteRange(response)) => response.prev_kvs.iter().for_each(|kv| visit(kv, true)),
        (Request::Txn(txn), Response::Txn(response)) => of_txn(txn, response, visit),
        (_, _) => {}
    }
}
