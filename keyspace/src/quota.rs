//! What data costs.

use crate::{Op, Txn, TxnOp};

/// What a version of a key costs beside its key and value. etcd's figure for a put; it is also near what a key with
/// one version takes here, with its places in the index and in the revision log.
pub const PUT_OVERHEAD_BYTES: u64 = 256;

/// What a lease costs; etcd's figure.
pub const LEASE_COST_BYTES: u64 = 64;

/// The space that a write is charged before it is carried out; 0 if it needs none, and then the quota is not asked.
pub(crate) fn cost_bytes(op: &Op) -> u64 {
    match op {
        Op::Put(put) => record_cost_bytes(put.key.len(), put.value.len()),
        Op::Txn(txn) => txn_cost_bytes(txn),
        Op::LeaseGrant { .. } => LEASE_COST_BYTES,
        Op::DeleteRange(_)
        | Op::Compact { .. }
        | Op::LeaseRevoke { .. }
        | Op::AlarmActivate { .. }
        | Op::AlarmDeactivate { .. } => 0,
    }
}

/// What one version of a key costs for as long as it is kept.
pub(crate) fn record_cost_bytes(key_len: usize, value_len: usize) -> u64 {
    PUT_OVERHEAD_BYTES + key_len as u64 + value_len as u64
}

/// Both branches count in full with everything nested in them; the dearer one is charged (etcd `costTxn`).
fn txn_cost_bytes(txn: &Txn) -> u64 {
    let branch = |ops: &[TxnOp]| -> u64 {
        ops.iter()
            .map(|op| match op {
                TxnOp::Put(put) => record_cost_bytes(put.key.len(), put.value.len()),
                TxnOp::Txn(txn) => txn_cost_bytes(txn),
                TxnOp::Range(_) | TxnOp::DeleteRange(_) | TxnOp::Empty => 0,
            })
            .sum()
    };
    branch(&txn.success).max(branch(&txn.failure))
}
