//! The lease table: which leases exist, and their times. The keys attached to them are known to their shards.
//!
//! There is no clock here. The leader's shell counts down from [`LeaseState::remaining_s`] and proposes expiry; it
//! also proposes checkpoints, so that a new leader starts from what was left and not from the full time.

use std::collections::BTreeMap;

use crate::{
    Error, LeaseId,
    digest::{Hasher, SetHash},
    quota::LEASE_COST_BYTES,
};

/// The longest time to live of a lease, in seconds (etcd server/lease/lessor.go, `MaxLeaseTTL`).
pub const MAX_LEASE_TTL_S: i64 = 9_000_000_000;

/// What a new leader needs to start its lease clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseState {
    /// The lease.
    pub id: LeaseId,
    /// Seconds granted; a keepalive starts them again.
    pub granted_ttl_s: i64,
    /// Seconds left at the last checkpoint, or the granted seconds if there was none since the last keepalive.
    pub remaining_s: i64,
}

/// What a command did to a lease; the shell's lease clock follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseEffect {
    /// The lease exists from here on.
    Granted {
        /// Which.
        id: LeaseId,
        /// Seconds to live.
        ttl_s: i64,
    },
    /// The lease and its keys are gone.
    Revoked {
        /// Which.
        id: LeaseId,
    },
    /// The lease's remaining time was recorded.
    Checkpointed {
        /// Which.
        id: LeaseId,
        /// Seconds left; 0 means the full time again.
        remaining_s: i64,
    },
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    granted_ttl_s: i64,
    /// 0 when no checkpoint says otherwise.
    checkpoint_s: i64,
}

/// All leases.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    leases: BTreeMap<LeaseId, Lease>,
    hash: SetHash,
}

impl Leases {
    pub(crate) fn grant(&mut self, id: LeaseId, ttl_s: i64) -> Result<(), Error> {
        // In etcd's order (lessor.Grant).
        if id.is_none() {
            return Err(Error::LeaseNotFound);
        }
        if ttl_s > MAX_LEASE_TTL_S {
            return Err(Error::LeaseTtlTooLarge);
        }
        if self.leases.contains_key(&id) {
            return Err(Error::LeaseExists);
        }
        self.insert(id, ttl_s, 0);
        Ok(())
    }

    /// Puts a lease in place; also used by a restore.
    pub(crate) fn insert(&mut self, id: LeaseId, granted_ttl_s: i64, checkpoint_s: i64) {
        let old = self.leases.insert(id, Lease { granted_ttl_s, checkpoint_s });
        debug_assert!(old.is_none(), "lease {id} is inserted twice");
        self.hash.add(hash(id, granted_ttl_s, checkpoint_s));
    }

    /// Takes a lease out.
    pub(crate) fn remove(&mut self, id: LeaseId) -> Result<(), Error> {
        let lease = self.leases.remove(&id).ok_or(Error::LeaseNotFound)?;
        self.hash.remove(hash(id, lease.granted_ttl_s, lease.checkpoint_s));
        Ok(())
    }

    /// Records the remaining seconds. Returns whether the lease exists.
    pub(crate) fn checkpoint(&mut self, id: LeaseId, remaining_s: i64) -> bool {
        let Some(lease) = self.leases.get_mut(&id) else { return false };
        self.hash.remove(hash(id, lease.granted_ttl_s, lease.checkpoint_s));
        lease.checkpoint_s = remaining_s.max(0);
        self.hash.add(hash(id, lease.granted_ttl_s, lease.checkpoint_s));
        true
    }

    pub(crate) fn contains(&self, id: LeaseId) -> bool {
        self.leases.contains_key(&id)
    }

    pub(crate) fn state(&self, id: LeaseId) -> Option<LeaseState> {
        self.leases.get(&id).map(|lease| lease.state(id))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = LeaseState> {
        self.leases.iter().map(|(id, lease)| lease.state(*id))
    }

    /// Id, granted seconds and checkpoint of each lease.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (LeaseId, i64, i64)> {
        self.leases.iter().map(|(id, lease)| (*id, lease.granted_ttl_s, lease.checkpoint_s))
    }

    pub(crate) fn len(&self) -> usize {
        self.leases.len()
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.leases.len() as u64 * LEASE_COST_BYTES
    }

    pub(crate) fn digest(&self) -> u64 {
        self.hash.value()
    }

    /// Checks that the hash is that of the table.
    pub(crate) fn check_invariants(&self) {
        let mut hash_of_table = SetHash::default();
        for (id, granted_ttl_s, checkpoint_s) in self.rows() {
            hash_of_table.add(hash(id, granted_ttl_s, checkpoint_s));
        }
        assert_eq!(hash_of_table.value(), self.hash.value(), "the lease hash is that of the table");
    }
}

impl Lease {
    fn state(&self, id: LeaseId) -> LeaseState {
        let remaining_s = if self.checkpoint_s > 0 { self.checkpoint_s } else { self.granted_ttl_s };
        LeaseState { id, granted_ttl_s: self.granted_ttl_s, remaining_s }
    }
}

fn hash(id: LeaseId, granted_ttl_s: i64, checkpoint_s: i64) -> u64 {
    Hasher::new(1).i64(id.0).i64(granted_ttl_s).i64(checkpoint_s).finish()
}
