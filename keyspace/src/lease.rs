//! The lease table: which leases exist, and their times. The keys attached to them are known to their shards.
//!
//! There is no clock here. The leader's shell counts down from [`LeaseState::remaining_s`] and proposes expiry; it
//! also proposes checkpoints, so that a new leader starts from what was left and not from the full time.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::{
    ClockOwner, ClockStart, ClusterVersion, Error, LeaseGrant, LeaseId, LeaseSerial,
    digest::{Hasher, SetHash},
    quota::LEASE_COST_BYTES,
};

/// The longest time to live of a lease, in seconds (etcd server/lease/lessor.go, `MaxLeaseTTL`).
pub const MAX_LEASE_TTL_S: i64 = 9_000_000_000;

/// What a new leader needs to start its lease clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseState {
    /// The lease.
    pub grant: LeaseGrant,
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
        grant: LeaseGrant,
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
    /// A leader's clock has begun.
    ClockStarted {
        /// Whose.
        owner: ClockOwner,
        /// When.
        clock: ClockStart,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) serial: LeaseSerial,
    pub(crate) granted_ttl_s: i64,
    /// 0 when no checkpoint says otherwise.
    pub(crate) checkpoint_s: i64,
}

/// All leases.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    leases: BTreeMap<LeaseId, Lease>,
    last_serial: LeaseSerial,
    clock: ClockStart,
    hash: SetHash,
}

impl Leases {
    /// Adds a lease, and numbers the grant if that is done at this version.
    pub(crate) fn grant(
        &mut self,
        version: ClusterVersion,
        id: LeaseId,
        ttl_s: i64,
    ) -> Result<LeaseGrant, Error> {
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
        let is_numbered = version >= ClusterVersion::NUMBERED_GRANTS;
        self.last_serial.0 += u64::from(is_numbered);
        let serial = if is_numbered { self.last_serial } else { LeaseSerial::NONE };
        self.insert(id, Lease { serial, granted_ttl_s: ttl_s, checkpoint_s: 0 });
        Ok(LeaseGrant { id, serial })
    }

    /// Puts a lease in place; also used by a restore.
    pub(crate) fn insert(&mut self, id: LeaseId, lease: Lease) {
        debug_assert!(lease.serial <= self.last_serial, "a serial is counted when it is given");
        let old = self.leases.insert(id, lease);
        debug_assert!(old.is_none(), "lease {id} is inserted twice");
        self.hash.add(hash(id, lease));
    }

    /// Takes a lease out.
    pub(crate) fn remove(&mut self, id: LeaseId) -> Result<(), Error> {
        let lease = self.leases.remove(&id).ok_or(Error::LeaseNotFound)?;
        self.hash.remove(hash(id, lease));
        Ok(())
    }

    /// Records the remaining seconds. Returns whether the grant lives.
    pub(crate) fn checkpoint(&mut self, grant: LeaseGrant, remaining_s: i64) -> bool {
        let living = self.leases.get_mut(&grant.id).filter(|lease| lease.serial == grant.serial);
        let Some(lease) = living else { return false };
        self.hash.remove(hash(grant.id, *lease));
        lease.checkpoint_s = remaining_s.max(0);
        self.hash.add(hash(grant.id, *lease));
        true
    }

    pub(crate) fn contains(&self, id: LeaseId) -> bool {
        self.leases.contains_key(&id)
    }

    /// Whether a grant lives, and not only another one of its id.
    pub(crate) fn lives(&self, grant: LeaseGrant) -> bool {
        self.leases.get(&grant.id).is_some_and(|lease| lease.serial == grant.serial)
    }

    /// That of the last grant.
    pub(crate) fn last_serial(&self) -> LeaseSerial {
        self.last_serial
    }

    /// For a restore.
    pub(crate) fn set_last_serial(&mut self, last: LeaseSerial) {
        self.last_serial = last;
    }

    /// The clock that has begun last.
    pub(crate) fn clock(&self) -> ClockStart {
        self.clock
    }

    pub(crate) fn start_clock(&mut self, clock: ClockStart) {
        debug_assert!(clock >= self.clock, "slots ascend");
        self.clock = clock;
    }

    /// For a restore.
    pub(crate) fn set_clock(&mut self, clock: ClockStart) {
        self.clock = clock;
    }

    pub(crate) fn state(&self, id: LeaseId) -> Option<LeaseState> {
        self.leases.get(&id).map(|lease| lease.state(id))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = LeaseState> {
        self.leases.iter().map(|(id, lease)| lease.state(*id))
    }

    /// Those behind this one, or all, in the order of ids.
    pub(crate) fn after(&self, id: Option<LeaseId>) -> impl Iterator<Item = LeaseId> {
        let from = id.map_or(Bound::Unbounded, Bound::Excluded);
        self.leases.range((from, Bound::Unbounded)).map(|(id, _)| *id)
    }

    pub(crate) fn rows(&self) -> impl Iterator<Item = (LeaseId, Lease)> {
        self.leases.iter().map(|(id, lease)| (*id, *lease))
    }

    pub(crate) fn len(&self) -> usize {
        self.leases.len()
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.leases.len() as u64 * LEASE_COST_BYTES
    }

    /// While no grant was numbered, that of a version which does not number them; and while no clock has begun, that of one
    /// which does not know of any.
    pub(crate) fn digest(&self) -> u64 {
        let digest = match self.last_serial {
            LeaseSerial::NONE => self.hash.value(),
            LeaseSerial(last) => Hasher::new(9).u64(self.hash.value()).u64(last).finish(),
        };
        match self.clock {
            ClockStart::NONE => digest,
            ClockStart(slot) => Hasher::new(10).u64(digest).u64(slot).finish(),
        }
    }

    /// Checks that the hash is that of the table, and that no two grants have a number in common.
    pub(crate) fn check_invariants(&self) {
        let mut hash_of_table = SetHash::default();
        for (id, lease) in self.rows() {
            hash_of_table.add(hash(id, lease));
            assert!(!id.is_none() && lease.granted_ttl_s <= MAX_LEASE_TTL_S, "no other lease is granted");
            assert!(lease.checkpoint_s >= 0, "0 stands for a lease without a checkpoint");
        }
        assert_eq!(hash_of_table.value(), self.hash.value(), "the lease hash is that of the table");
        assert!(are_serials_good(self.last_serial, self.rows()), "each grant has a number of its own");
    }
}

impl Lease {
    fn state(&self, id: LeaseId) -> LeaseState {
        let remaining_s = if self.checkpoint_s > 0 { self.checkpoint_s } else { self.granted_ttl_s };
        let grant = LeaseGrant { id, serial: self.serial };
        LeaseState { grant, granted_ttl_s: self.granted_ttl_s, remaining_s }
    }
}

/// Whether no two leases have a serial in common, and none has one that was not given.
pub(crate) fn are_serials_good(last: LeaseSerial, rows: impl Iterator<Item = (LeaseId, Lease)>) -> bool {
    let serials = rows.map(|(_, lease)| lease.serial).filter(|serial| *serial != LeaseSerial::NONE);
    let mut seen = BTreeSet::new();
    serials.into_iter().all(|serial| serial <= last && seen.insert(serial))
}

/// Of a grant without a number, that of a version which does not number them.
fn hash(id: LeaseId, lease: Lease) -> u64 {
    let Lease { serial, granted_ttl_s, checkpoint_s } = lease;
    let hasher = Hasher::new(1).i64(id.0).i64(granted_ttl_s).i64(checkpoint_s);
    if serial == LeaseSerial::NONE { hasher.finish() } else { hasher.u64(serial.0).finish() }
}
