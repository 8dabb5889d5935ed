//! Who writes, where to, and what keys hang on.

use shard_map::{Epoch, ShardId};

/// A gateway's identity towards a group. Given in the order of the log, from 1, and never twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

impl SessionId {
    /// Stands in [`crate::Answer`] for commands that belong to no session.
    pub const NONE: SessionId = SessionId(0);
}

/// Where a command was sent by its gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The shard that holds its keys.
    pub shard: ShardId,
    /// The epoch of the map that says so.
    pub epoch: Epoch,
}

impl Route {
    /// To the shard that a domain begins with.
    pub const FIRST: Route = Route { shard: ShardId(1), epoch: Epoch(1) };
}

/// A lease's id, chosen by the client or by the proposer. May be negative; 0 means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

impl LeaseId {
    /// No lease.
    pub const NONE: LeaseId = LeaseId(0);

    /// Whether this names no lease.
    pub fn is_none(self) -> bool {
        self == LeaseId::NONE
    }
}

/// Tells the grants of one lease id apart, which may be granted again once it has ended. Given in the order of the log, from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseSerial(pub u64);

impl LeaseSerial {
    /// That of every grant from before they were numbered.
    pub const NONE: LeaseSerial = LeaseSerial(0);
}

/// One grant of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeaseGrant {
    /// The lease.
    pub id: LeaseId,
    /// Which of its grants.
    pub serial: LeaseSerial,
}

/// A leader's lease clock: the slot in which it began ([`crate::Command::StartClock`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClockStart(pub u64);

impl ClockStart {
    /// None has begun: leaders do not say so before [`crate::ClusterVersion::STARTED_CLOCKS`].
    pub const NONE: ClockStart = ClockStart(0);
}

/// Whose lease clock it is: the leader's ballot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClockOwner {
    /// Its round.
    pub round: u64,
    /// The leader.
    pub node: u64,
}

impl std::fmt::Display for LeaseId {
    /// As etcd's tools print it: 16 hexadecimal digits at least.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
