//! Reading, writing and transactions over the keys and the leases, in etcd's order (server/etcdserver/txn).

use bytes::Bytes;

use crate::{
    Compare, CompareResult, CompareTarget, DeleteRange, DeleteRangeReply, Error, KeyValue, PageRequest, Put,
    PutReply, RangeReply, RangeRequest, Revision, SortOrder, SortTarget, Txn, TxnOp, TxnOpReply, TxnReply,
    lease::Leases,
    mvcc::{Mvcc, Writer, own},
    shard::Attachments,
};

/// Reads a range. `current` is the latest revision that the reader sees: what is resolved; within a transaction that has
/// written, that of the transaction, and before, the one before it.
pub(crate) fn range(mvcc: &Mvcc, current: Revision, request: &RangeRequest) -> Result<RangeReply, Error> {
    let at = revision_of(mvcc, current, request.revision)?;
    if request.count_only {
        let count = mvcc.count(&request.range, at) as i64;
        return Ok(RangeReply { revision: current, kvs: Vec::new(), more: false, count });
    }
    let limit = usize::try_from(request.limit).unwrap_or(0);
    // The limit is applied before the sort when no order is given, whatever the target (etcd's `IsDefaultOrdering`).
    let in_key_order = match (request.sort_order, request.sort_target) {
        (SortOrder::None | SortOrder::Invalid, _) | (SortOrder::Ascend, SortTarget::Key) => true,
        (SortOrder::Ascend | SortOrder::Descend, _) => false,
    };
    let fetch = if limit == 0 || !in_key_order || has_revision_filters(request) {
        usize::MAX
    } else {
        limit.saturating_add(1)
    };
    let mut count = 0_usize;
    let mut kvs = Vec::new();
    for kv in mvcc.range(&request.range, at) {
        count += 1;
        if passes_revision_filters(request, kv) {
            kvs.push(kv);
        }
        if count == fetch {
            // The rest is counted only, which is much quicker.
            count += mvcc.count(&request.range.behind(&kv.key), at);
            break;
        }
    }
    debug_assert!(
        kvs.iter().is_sorted_by(|one, next| one.key < next.key),
        "the index is in the order of keys"
    );
    debug_assert!(kvs.iter().all(|kv| kv.mod_revision <= at), "nothing from after the revision is read");
    sort(&mut kvs, request);
    let more = limit > 0 && kvs.len() > limit;
    if more {
        kvs.truncate(limit);
    }
    assert!(count >= kvs.len(), "what is returned is counted");
    let kvs = kvs
        .into_iter()
        .map(|kv| {
            if request.keys_only {
                KeyValue { key: kv.key.clone(), value: Bytes::new(), ..*kv }
            } else {
                kv.clone()
            }
        })
        .collect();
    Ok(RangeReply { revision: current, kvs, more, count: count as i64 })
}

/// Reads a page, as [`range`] reads a range.
pub(crate) fn page(mvcc: &Mvcc, current: Revision, request: &PageRequest) -> Result<RangeReply, Error> {
    let at = revision_of(mvcc, current, request.revision)?;
    let PageRequest { range, limit, bytes, keys_only, counts_rest, .. } = request;
    let mut kvs: Vec<KeyValue> = Vec::new();
    let (mut taken_bytes, mut more) = (0, false);
    for kv in mvcc.range(range, at) {
        if !kvs.is_empty() && (kvs.len() as u64 >= *limit || taken_bytes > *bytes) {
            more = true;
            break;
        }
        let value = if *keys_only { Bytes::new() } else { kv.value.clone() };
        taken_bytes += (kv.key.len() + value.len()) as u64;
        kvs.push(KeyValue { key: kv.key.clone(), value, ..*kv });
    }
    assert!(!more || !kvs.is_empty(), "a page that is not the last one has a key");
    debug_assert!(kvs.iter().all(|kv| kv.mod_revision <= at), "nothing from after the revision is read");
    let mut count = kvs.len();
    if let Some(last) = kvs.last().filter(|_| more && *counts_rest) {
        count += mvcc.count(&range.behind(&last.key), at);
    }
    Ok(RangeReply { revision: current, kvs, more, count: count as i64 })
}

/// The revision at which a range is read.
fn revision_of(mvcc: &Mvcc, current: Revision, asked: i64) -> Result<Revision, Error> {
    let at = if asked <= 0 { current } else { Revision(asked) };
    if at > current {
        Err(Error::FutureRevision)
    } else if at < mvcc.compact_revision() {
        Err(Error::Compacted)
    } else {
        Ok(at)
    }
}

fn has_revision_filters(request: &RangeRequest) -> bool {
    request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0
}

fn passes_revision_filters(request: &RangeRequest, kv: &KeyValue) -> bool {
    let within = |revision: Revision, min: i64, max: i64| {
        (min == 0 || revision.0 >= min) && (max == 0 || revision.0 <= max)
    };
    within(kv.mod_revision, request.min_mod_revision, request.max_mod_revision)
        && within(kv.create_revision, request.min_create_revision, request.max_create_revision)
}

fn sort(kvs: &mut [&KeyValue], request: &RangeRequest) {
    match request.sort_target {
        // They come in the order of keys.
        SortTarget::Key | SortTarget::Invalid => {}
        SortTarget::Version => kvs.sort_by_key(|kv| kv.version),
        SortTarget::Create => kvs.sort_by_key(|kv| kv.create_revision),
        SortTarget::Mod => kvs.sort_by_key(|kv| kv.mod_revision),
        SortTarget::Value => kvs.sort_by(|a, b| a.value.cmp(&b.value)),
    }
    match request.sort_order {
        SortOrder::Descend => kvs.reverse(),
        SortOrder::None | SortOrder::Ascend | SortOrder::Invalid => {}
    }
}

/// What a put needs besides an agreeing quota, checked before anything is written.
pub(crate) fn check_put(mvcc: &Mvcc, leases: &Leases, put: &Put) -> Result<(), Error> {
    check_lease(leases, put)?;
    check_kept_key(mvcc, put)
}

/// The same for a put inside a transaction, of which etcd looks at the key first.
fn check_put_in_txn(mvcc: &Mvcc, leases: &Leases, put: &Put) -> Result<(), Error> {
    check_kept_key(mvcc, put)?;
    check_lease(leases, put)
}

fn check_lease(leases: &Leases, put: &Put) -> Result<(), Error> {
    if put.lease.is_none() || leases.contains(put.lease) { Ok(()) } else { Err(Error::LeaseNotFound) }
}

/// A put that keeps something needs a key to keep it of.
fn check_kept_key(mvcc: &Mvcc, put: &Put) -> Result<(), Error> {
    let keeps = put.ignore_value || put.ignore_lease;
    if keeps && mvcc.latest(&put.key).is_none() { Err(Error::KeyNotFound) } else { Ok(()) }
}

/// Writes a key for which [`check_put`] agreed.
pub(crate) fn put(writer: &mut Writer<'_>, attachments: &mut Attachments, put: &Put) -> PutReply {
    let prev_kv = if put.ignore_value || put.ignore_lease || put.prev_kv {
        writer.mvcc().latest(&put.key).cloned()
    } else {
        None
    };
    // The check was on the state before the transaction. An earlier deletion up to "\0" may have taken the key since
    // (the door lets that pass, as etcd's does); etcd crashes there, here nothing is what is kept.
    let value = if put.ignore_value {
        prev_kv.as_ref().map(|kv| kv.value.clone()).unwrap_or_default()
    } else {
        own(&put.value)
    };
    let lease =
        if put.ignore_lease { prev_kv.as_ref().map(|kv| kv.lease).unwrap_or_default() } else { put.lease };
    let (key, old_lease) = writer.put(&put.key, value, lease);
    debug_assert!(
        writer.mvcc().latest(&key).is_some_and(|kv| kv.mod_revision == writer.revision()),
        "a later operation of the transaction sees what was put"
    );
    attachments.move_key(&key, old_lease, lease);
    PutReply { revision: writer.revision(), prev_kv: prev_kv.filter(|_| put.prev_kv) }
}

/// Deletes a range. Changes nothing if it holds no keys.
pub(crate) fn delete_range(
    writer: &mut Writer<'_>,
    attachments: &mut Attachments,
    delete: &DeleteRange,
) -> DeleteRangeReply {
    let keys: Vec<_> =
        writer.mvcc().range(&delete.range, writer.revision()).map(|kv| kv.key.clone()).collect();
    let mut prev_kvs = Vec::new();
    for key in &keys {
        let old = writer.delete(key).expect("the key was just found");
        attachments.move_key(key, old.lease, crate::LeaseId::NONE);
        if delete.prev_kv {
            prev_kvs.push(old);
        }
    }
    debug_assert_eq!(
        writer.mvcc().count(&delete.range, writer.revision()),
        0,
        "nothing of the range is left"
    );
    assert!(!delete.prev_kv || prev_kvs.len() == keys.len(), "what is deleted is told");
    DeleteRangeReply { revision: writer.revision(), deleted: keys.len() as i64, prev_kvs }
}

/// A transaction with its comparisons decided, nested ones included. All of them look at the state before the first
/// write, so this comes before everything else.
pub(crate) struct Plan<'a> {
    succeeded: bool,
    ops: Vec<PlannedOp<'a>>,
}

enum PlannedOp<'a> {
    Range(&'a RangeRequest),
    Put(&'a Put),
    DeleteRange(&'a DeleteRange),
    Txn(Plan<'a>),
}

impl<'a> Plan<'a> {
    /// Decides the comparisons, on the state at `current`.
    pub(crate) fn new(mvcc: &Mvcc, current: Revision, txn: &'a Txn) -> Plan<'a> {
        let succeeded = txn.compare.iter().all(|compare| holds(mvcc, current, compare));
        let branch = if succeeded { &txn.success } else { &txn.failure };
        let ops = branch
            .iter()
            .filter_map(|op| match op {
                TxnOp::Range(range) => Some(PlannedOp::Range(range)),
                TxnOp::Put(put) => Some(PlannedOp::Put(put)),
                TxnOp::DeleteRange(delete) => Some(PlannedOp::DeleteRange(delete)),
                TxnOp::Txn(txn) => Some(PlannedOp::Txn(Plan::new(mvcc, current, txn))),
                // Refused at the door.
                TxnOp::Empty => None,
            })
            .collect();
        Plan { succeeded, ops }
    }

    /// Checks the operations of the path taken, in their order, on the state before the first write. Once this agrees,
    /// nothing can fail.
    pub(crate) fn check(&self, mvcc: &Mvcc, current: Revision, leases: &Leases) -> Result<(), Error> {
        for op in &self.ops {
            match op {
                PlannedOp::Range(range) => check_range_revision(mvcc, current, range.revision)?,
                PlannedOp::Put(put) => check_put_in_txn(mvcc, leases, put)?,
                PlannedOp::DeleteRange(_) => {}
                PlannedOp::Txn(plan) => plan.check(mvcc, current, leases)?,
            }
        }
        Ok(())
    }

    /// Carries the operations out, in their order. Each sees what those before it wrote.
    pub(crate) fn execute(&self, writer: &mut Writer<'_>, attachments: &mut Attachments) -> TxnReply {
        let responses = self
            .ops
            .iter()
            .map(|op| match op {
                PlannedOp::Range(request) => {
                    let reply = range(writer.mvcc(), writer.revision(), request);
                    TxnOpReply::Range(
                        reply.expect("the revision was checked, and nothing is compacted meanwhile"),
                    )
                }
                PlannedOp::Put(request) => TxnOpReply::Put(put(writer, attachments, request)),
                PlannedOp::DeleteRange(request) => {
                    TxnOpReply::DeleteRange(delete_range(writer, attachments, request))
                }
                PlannedOp::Txn(plan) => {
                    // etcd leaves the header of a nested transaction without a revision.
                    let reply = plan.execute(writer, attachments);
                    TxnOpReply::Txn(TxnReply { revision: Revision(0), ..reply })
                }
            })
            .collect();
        let reply = TxnReply { revision: writer.revision(), succeeded: self.succeeded, responses };
        assert_eq!(reply.responses.len(), self.ops.len(), "every operation of the branch has its answer");
        reply
    }

    /// Carries out a transaction that only reads, on the state at `current`.
    pub(crate) fn read(&self, mvcc: &Mvcc, current: Revision) -> Result<TxnReply, Error> {
        let responses = self
            .ops
            .iter()
            .map(|op| match op {
                PlannedOp::Range(request) => Ok(TxnOpReply::Range(range(mvcc, current, request)?)),
                PlannedOp::Put(_) | PlannedOp::DeleteRange(_) | PlannedOp::Txn(_) => Err(Error::NotReadOnly),
            })
            .collect::<Result<_, _>>()?;
        Ok(TxnReply { revision: current, succeeded: self.succeeded, responses })
    }
}

/// Unlike in a plain range, a revision below zero is not the latest one here but an old one.
fn check_range_revision(mvcc: &Mvcc, current: Revision, revision: i64) -> Result<(), Error> {
    if revision == 0 {
        Ok(())
    } else if revision > current.0 {
        Err(Error::FutureRevision)
    } else if revision < mvcc.compact_revision().0 {
        Err(Error::Compacted)
    } else {
        Ok(())
    }
}

fn holds(mvcc: &Mvcc, current: Revision, compare: &Compare) -> bool {
    let mut keys = mvcc.range(&compare.range, current).peekable();
    if keys.peek().is_none() {
        return match compare.target {
            // A missing key has no value to compare with, not even a different one.
            CompareTarget::Value(_) => false,
            CompareTarget::Version(_)
            | CompareTarget::Create(_)
            | CompareTarget::Mod(_)
            | CompareTarget::Lease(_)
            | CompareTarget::Unknown => holds_for(compare, &KeyValue::default()),
        };
    }
    keys.all(|kv| holds_for(compare, kv))
}

fn holds_for(compare: &Compare, kv: &KeyValue) -> bool {
    let ordering = match &compare.target {
        CompareTarget::Version(version) => kv.version.cmp(version),
        CompareTarget::Create(revision) => kv.create_revision.0.cmp(revision),
        CompareTarget::Mod(revision) => kv.mod_revision.0.cmp(revision),
        CompareTarget::Value(value) => kv.value.cmp(value),
        CompareTarget::Lease(lease) => kv.lease.cmp(lease),
        CompareTarget::Unknown => std::cmp::Ordering::Equal,
    };
    match compare.result {
        CompareResult::Equal => ordering.is_eq(),
        CompareResult::Greater => ordering.is_gt(),
        CompareResult::Less => ordering.is_lt(),
        CompareResult::NotEqual => ordering.is_ne(),
        CompareResult::Unknown => true,
    }
}
