//! Checks of a request before it goes anywhere, in etcd's order (server/etcdserver/api/v3rpc/key.go). The gateway calls
//! these at the door; past it, requests are trusted.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use crate::{
    DeleteRange, Error, MAX_LEASE_TTL_S, MAX_TXN_DEPTH, Op, Put, RangeEnd, RangeRequest, SortOrder,
    SortTarget, Txn, TxnOp,
};

/// etcd's default for [`txn`]'s `max_ops`.
pub const DEFAULT_MAX_TXN_OPS: usize = 128;

/// Checks a range: an error without a key, or for an order that does not exist.
pub fn range(request: &RangeRequest) -> Result<(), Error> {
    if request.range.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    if request.sort_order == SortOrder::Invalid || request.sort_target == SortTarget::Invalid {
        return Err(Error::InvalidSortOption);
    }
    Ok(())
}

/// Checks a put: an error without a key, or for a value or lease beside the wish to keep it.
pub fn put(request: &Put) -> Result<(), Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(Error::ValueProvided);
    }
    if request.ignore_lease && !request.lease.is_none() {
        return Err(Error::LeaseProvided);
    }
    Ok(())
}

/// Checks a deletion: an error without a key.
pub fn delete_range(request: &DeleteRange) -> Result<(), Error> {
    if request.range.key.is_empty() { Err(Error::EmptyKey) } else { Ok(()) }
}

/// Checks a lease's time to live, in seconds: an error above [`MAX_LEASE_TTL_S`]. etcd does so when it applies the grant;
/// the answer is the same.
pub fn lease_ttl(ttl_s: i64) -> Result<(), Error> {
    if ttl_s > MAX_LEASE_TTL_S { Err(Error::LeaseTtlTooLarge) } else { Ok(()) }
}

/// Checks a transaction: first every operation, then that no key is written twice. The error is of the first that fails.
///
/// `max_ops` bounds the longest of comparisons, success branch and failure branch; what a level uses up is missing
/// in the transactions nested in it.
pub fn txn(request: &Txn, max_ops: usize) -> Result<(), Error> {
    txn_ops(request, max_ops, MAX_TXN_DEPTH)?;
    writes(&request.success)?;
    writes(&request.failure)?;
    Ok(())
}

/// Checks a client's write of any kind; the errors are those of the checks above.
pub fn op(op: &Op, max_txn_ops: usize) -> Result<(), Error> {
    match op {
        Op::Put(request) => put(request),
        Op::DeleteRange(request) => delete_range(request),
        Op::Txn(request) => txn(request, max_txn_ops),
        Op::LeaseGrant { ttl, .. } => lease_ttl(*ttl),
        Op::Compact { .. }
        | Op::LeaseRevoke { .. }
        | Op::AlarmActivate { .. }
        | Op::AlarmDeactivate { .. } => Ok(()),
    }
}

fn txn_ops(request: &Txn, max_ops: usize, max_depth: usize) -> Result<(), Error> {
    let ops = request.compare.len().max(request.success.len()).max(request.failure.len());
    let Some(rest) = max_ops.checked_sub(ops) else { return Err(Error::TooManyOps) };
    let Some(depth) = max_depth.checked_sub(1) else { return Err(Error::TooManyOps) };
    if request.compare.iter().any(|compare| compare.range.key.is_empty()) {
        return Err(Error::EmptyKey);
    }
    for op in request.success.iter().chain(&request.failure) {
        match op {
            TxnOp::Range(request) => range(request)?,
            TxnOp::Put(request) => put(request)?,
            TxnOp::DeleteRange(request) => delete_range(request)?,
            TxnOp::Txn(request) => txn_ops(request, rest, depth)?,
            TxnOp::Empty => return Err(Error::KeyNotFound),
        }
    }
    Ok(())
}

/// What a branch may write.
struct Writes<'a> {
    puts: BTreeSet<&'a [u8]>,
    deletes: Intervals<'a>,
}

/// Checks one branch: no key is put twice, or put and deleted, on this level and the levels below together. The two
/// branches of one nested transaction may put the same key, since only one of them is taken.
fn writes(ops: &[TxnOp]) -> Result<Writes<'_>, Error> {
    let mut all = Writes { puts: BTreeSet::new(), deletes: Intervals::default() };
    for op in ops {
        if let TxnOp::DeleteRange(delete) = op {
            all.deletes.insert_range(&delete.range.key, &delete.range.end);
        }
    }
    for op in ops {
        if let TxnOp::Txn(txn) = op {
            let success = writes(&txn.success)?;
            let failure = writes(&txn.failure)?;
            for key in &success.puts {
                all.put(key)?;
            }
            for key in &failure.puts {
                if success.puts.contains(key) {
                    continue;
                }
                all.put(key)?;
            }
            // Only from here on: a nested transaction's deletions conflict with later siblings, not with itself.
            all.deletes.extend(success.deletes);
            all.deletes.extend(failure.deletes);
        }
    }
    for op in ops {
        if let TxnOp::Put(put) = op {
            all.put(&put.key)?;
        }
    }
    Ok(all)
}

impl<'a> Writes<'a> {
    fn put(&mut self, key: &'a [u8]) -> Result<(), Error> {
        if self.deletes.contains(key) || !self.puts.insert(key) { Err(Error::DuplicateKey) } else { Ok(()) }
    }
}

/// Intervals of keys, merged where they touch: start to end, exclusive.
#[derive(Default)]
struct Intervals<'a>(BTreeMap<&'a [u8], IntervalEnd<'a>>);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct IntervalEnd<'a> {
    key: &'a [u8],
    /// For the interval of one key, which ends right after it.
    inclusive: bool,
}

impl<'a> Intervals<'a> {
    fn insert_range(&mut self, key: &'a [u8], end: &'a RangeEnd) {
        match end {
            RangeEnd::Single => self.insert(key, IntervalEnd { key, inclusive: true }),
            // etcd does not translate "\0" here; as an ordinary end it is below every key, so the interval is empty.
            RangeEnd::From => {}
            RangeEnd::At(end) if end.as_ref() <= key => {}
            RangeEnd::At(end) => self.insert(key, IntervalEnd { key: end, inclusive: false }),
        }
    }

    fn insert(&mut self, mut start: &'a [u8], mut end: IntervalEnd<'a>) {
        while let Some((other_start, other_end)) =
            self.0.range::<[u8], _>((Bound::Unbounded, at_most(end))).next_back()
        {
            let (other_start, other_end) = (*other_start, *other_end);
            if other_end.key < start {
                break;
            }
            self.0.remove(other_start);
            start = start.min(other_start);
            end = end.max(other_end);
        }
        self.0.insert(start, end);
    }

    fn extend(&mut self, other: Intervals<'a>) {
        for (start, end) in other.0 {
            self.insert(start, end);
        }
    }

    fn contains(&self, key: &[u8]) -> bool {
        let before = self.0.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back();
        before.is_some_and(|(_, end)| key < end.key || end.inclusive && key == end.key)
    }
}

fn at_most(end: IntervalEnd<'_>) -> Bound<&[u8]> {
    Bound::Included(end.key)
}
