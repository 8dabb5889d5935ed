//! What data costs, and the alarms.

use std::collections::BTreeSet;

use crate::{
    Op, Txn, TxnOp,
    digest::{Hasher, SetHash},
    session::DEFAULT_MAX_SESSIONS,
};

/// etcd's default quota: 2 GiB (server/storage/quota.go).
pub const DEFAULT_QUOTA_BYTES: u64 = 2 * 1024 * 1024 * 1024;

/// What a version of a key costs beside its key and value. etcd's figure for a put; it is also near what a key with
/// one version takes here, with its places in the index and in the revision log.
pub const PUT_OVERHEAD_BYTES: u64 = 256;

/// What a lease costs; etcd's figure.
pub const LEASE_COST_BYTES: u64 = 64;

/// Limits that every replica must apply alike, so they are part of the replicated state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The size of the data above which writes are refused and the NOSPACE alarm is raised.
    pub quota_bytes: u64,
    /// How many sessions stay open; opening one more closes the one that wrote longest ago, by the order of the log.
    pub max_sessions: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { quota_bytes: DEFAULT_QUOTA_BYTES, max_sessions: DEFAULT_MAX_SESSIONS }
    }
}

/// What an alarm is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AlarmKind {
    /// The quota is used up: puts, transactions with puts and lease grants are refused.
    NoSpace,
    /// Replicas differ: every write but an alarm's is refused.
    Corrupt,
}

/// An alarm that is raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alarm {
    /// The member that it is about. 0 for an alarm that the state machine raised itself: the quota is that of the
    /// group and no member's fault. The gateway shows its own member id for 0.
    pub member: u64,
    /// What it is about.
    pub kind: AlarmKind,
}

/// The alarms that are raised.
#[derive(Clone, Debug, Default)]
pub(crate) struct Alarms {
    raised: BTreeSet<Alarm>,
}

impl Alarms {
    pub(crate) fn raise(&mut self, alarm: Alarm) {
        self.raised.insert(alarm);
    }

    /// Returns whether the alarm was raised.
    pub(crate) fn clear(&mut self, alarm: Alarm) -> bool {
        self.raised.remove(&alarm)
    }

    pub(crate) fn is_raised(&self, kind: AlarmKind) -> bool {
        self.raised.iter().any(|alarm| alarm.kind == kind)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Alarm> {
        self.raised.iter().copied()
    }

    pub(crate) fn digest(&self) -> u64 {
        let mut set = SetHash::default();
        for alarm in self.iter() {
            let kind = match alarm.kind {
                AlarmKind::NoSpace => 1,
                AlarmKind::Corrupt => 2,
            };
            set.add(Hasher::new(2).u64(alarm.member).u64(kind).finish());
        }
        set.value()
    }
}

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
