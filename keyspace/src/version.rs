//! Which commands may lie in a group's log, and what they do.

/// A version of the commands of a group's log, of what they do and of what the state holds. It is that of their encoding. A
/// group's state keeps the one that is in force; it rises by [`crate::Command::RaiseVersion`], when all its replicas know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterVersion(pub u8);

impl ClusterVersion {
    /// With this one a group begins: the oldest that is known. The first had no envelopes, and with the second writes named no
    /// shard.
    pub const FIRST: ClusterVersion = ClusterVersion(3);
    /// Grants of leases have numbers, and what is proposed of leases names these.
    pub const NUMBERED_GRANTS: ClusterVersion = ClusterVersion(4);
    /// What a write may read and answer is bounded, and what is kept of its answer: [`crate::WriteBounds`].
    pub const BOUNDED_WRITES: ClusterVersion = ClusterVersion(5);
    /// Leaders say when their lease clocks begin, and what an earlier clock has found does nothing any more.
    pub const STARTED_CLOCKS: ClusterVersion = ClusterVersion(6);
    /// The newest that this Gaios knows.
    pub const NEWEST: ClusterVersion = ClusterVersion::STARTED_CLOCKS;
}

impl std::fmt::Display for ClusterVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}
