//! Writing and transactions over the keys and the leases, in etcd's order (server/etcdserver/txn).

use crate::{
    DeleteRange, DeleteRangeReply, Error, Put, PutReply, RangeRequest, Revision, Txn, TxnOp, TxnOpReply,
    TxnReply,
    lease::Leases,
    mvcc::{Mvcc, Writer, own},
    ranges::{Visits, check_range_in_txn, holds_at_once, range_at_once},
    shard::Attachments,
};

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

pub(crate) enum PlannedOp<'a> {
    Range(&'a RangeRequest),
    Put(&'a Put),
    DeleteRange(&'a DeleteRange),
    Txn(Plan<'a>),
}

impl<'a> Plan<'a> {
    /// Decides the comparisons, on the state at `current`. An error if they look at more keys than `visits` has left.
    pub(crate) fn new(
        mvcc: &Mvcc,
        current: Revision,
        txn: &'a Txn,
        visits: &mut Visits,
    ) -> Result<Plan<'a>, Error> {
        let mut succeeded = true;
        for compare in &txn.compare {
            succeeded = holds_at_once(mvcc, current, compare, visits)?;
            if !succeeded {
                break;
            }
        }
        let branch = if succeeded { &txn.success } else { &txn.failure };
        let mut ops = Vec::with_capacity(branch.len());
        for op in branch {
            ops.push(match op {
                TxnOp::Range(range) => PlannedOp::Range(range),
                TxnOp::Put(put) => PlannedOp::Put(put),
                TxnOp::DeleteRange(delete) => PlannedOp::DeleteRange(delete),
                TxnOp::Txn(txn) => PlannedOp::Txn(Plan::new(mvcc, current, txn, visits)?),
                // Refused at the door.
                TxnOp::Empty => continue,
            });
        }
        assert!(ops.len() <= branch.len(), "nothing is done that was not asked for");
        Ok(Plan { succeeded, ops })
    }

    /// Of the path taken, in their order.
    pub(crate) fn ops(&self) -> &[PlannedOp<'a>] {
        &self.ops
    }

    /// Whether its answer holds keys, or it comes by more of them than it names.
    pub(crate) fn tells(&self) -> bool {
        self.ops.iter().any(|op| match op {
            PlannedOp::Range(_) | PlannedOp::DeleteRange(_) => true,
            PlannedOp::Put(put) => put.prev_kv,
            PlannedOp::Txn(plan) => plan.tells(),
        })
    }

    /// Checks the operations of the path taken, in their order, on the state before the first write. Once this agrees,
    /// nothing can fail.
    pub(crate) fn check(&self, mvcc: &Mvcc, current: Revision, leases: &Leases) -> Result<(), Error> {
        for op in &self.ops {
            match op {
                PlannedOp::Range(range) => check_range_in_txn(mvcc, current, range.revision)?,
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
                    let reply = range_at_once(writer.mvcc(), writer.revision(), request);
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
}
