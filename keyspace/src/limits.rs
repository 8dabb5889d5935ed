//! Limits.

/// etcd's default quota: 2 GiB (server/storage/quota.go).
pub const DEFAULT_QUOTA_BYTES: u64 = 2 * 1024 * 1024 * 1024;

/// How many sessions stay open by default.
pub const DEFAULT_MAX_SESSIONS: u32 = 100_000;

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
