//! What a sequence is made of. A step names revisions and leases so that they mean the same at both ends, whatever numbers
//! the two ends use for them.

use std::fmt;

use bytes::Bytes;

/// A revision in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rev {
    /// This very number.
    Exactly(i64),
    /// The end's revision when the sequence began, plus this.
    Base(i64),
    /// The end's newest revision, plus this.
    Now(i64),
}

/// A lease in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeaseRef {
    /// 0.
    None,
    /// The lease of the grant with this number; an unknown id if that was refused or left out.
    Granted(usize),
    /// An id nobody has.
    Unknown,
}

/// The id asked for in a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeaseId {
    /// The server chooses.
    Any,
    /// One of a few, so that they collide; may be negative.
    Chosen(i64),
}

/// A value to put.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Bytes(Bytes),
    /// So many bytes of `x`.
    Filler(usize),
}

impl Value {
    pub(crate) fn to_bytes(&self) -> Bytes {
        match self {
            Self::Bytes(bytes) => bytes.clone(),
            Self::Filler(length) => Bytes::from(vec![b'x'; *length]),
        }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => bytes.fmt(f),
            Self::Filler(length) => write!(f, "x*{length}"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RangeStep {
    pub(crate) key: Bytes,
    pub(crate) end: Bytes,
    pub(crate) limit: i64,
    pub(crate) revision: Rev,
    /// Wire numbers, so that ones without a meaning can be sent.
    pub(crate) order: i32,
    pub(crate) target: i32,
    pub(crate) serializable: bool,
    pub(crate) keys_only: bool,
    pub(crate) count_only: bool,
    pub(crate) min_mod: Rev,
    pub(crate) max_mod: Rev,
    pub(crate) min_create: Rev,
    pub(crate) max_create: Rev,
}

impl RangeStep {
    /// The newest state of `key`, or of what lies before `end`.
    pub(crate) fn of(key: &'static [u8], end: &'static [u8]) -> Self {
        Self {
            key: Bytes::from_static(key),
            end: Bytes::from_static(end),
            limit: 0,
            revision: Rev::Exactly(0),
            order: 0,
            target: 0,
            serializable: false,
            keys_only: false,
            count_only: false,
            min_mod: Rev::Exactly(0),
            max_mod: Rev::Exactly(0),
            min_create: Rev::Exactly(0),
            max_create: Rev::Exactly(0),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PutStep {
    pub(crate) key: Bytes,
    pub(crate) value: Value,
    pub(crate) lease: LeaseRef,
    pub(crate) prev_kv: bool,
    pub(crate) ignore_value: bool,
    pub(crate) ignore_lease: bool,
}

impl PutStep {
    pub(crate) fn of(key: &'static [u8], value: &'static [u8]) -> Self {
        Self {
            key: Bytes::from_static(key),
            value: Value::Bytes(Bytes::from_static(value)),
            lease: LeaseRef::None,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeleteStep {
    pub(crate) key: Bytes,
    pub(crate) end: Bytes,
    pub(crate) prev_kv: bool,
}

impl DeleteStep {
    pub(crate) fn of(key: &'static [u8], end: &'static [u8]) -> Self {
        Self { key: Bytes::from_static(key), end: Bytes::from_static(end), prev_kv: false }
    }
}

/// The right side of a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operand {
    Unset,
    Version(i64),
    Create(Rev),
    Mod(Rev),
    Value(Bytes),
    Lease(LeaseRef),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CompareStep {
    pub(crate) key: Bytes,
    pub(crate) end: Bytes,
    /// Wire numbers.
    pub(crate) result: i32,
    pub(crate) target: i32,
    pub(crate) operand: Operand,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Range(RangeStep),
    Put(PutStep),
    Delete(DeleteStep),
    Txn(TxnStep),
    /// An operation that says nothing.
    Empty,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TxnStep {
    pub(crate) compares: Vec<CompareStep>,
    pub(crate) success: Vec<Op>,
    pub(crate) failure: Vec<Op>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WatchStep {
    /// Which of the sequence's streams.
    pub(crate) stream: usize,
    pub(crate) key: Bytes,
    pub(crate) end: Bytes,
    pub(crate) start: Rev,
    /// 0 lets the server choose.
    pub(crate) id: i64,
    /// Wire numbers.
    pub(crate) filters: Vec<i32>,
    pub(crate) prev_kv: bool,
    pub(crate) fragment: bool,
    pub(crate) progress_notify: bool,
}

impl WatchStep {
    pub(crate) fn of(key: &'static [u8], end: &'static [u8], start: Rev) -> Self {
        Self {
            stream: 0,
            key: Bytes::from_static(key),
            end: Bytes::from_static(end),
            start,
            id: 0,
            filters: Vec::new(),
            prev_kv: false,
            fragment: false,
            progress_notify: false,
        }
    }
}

/// One thing to do at both ends. Services to come add their variants here, an arm in `side.rs`, and a weight in
/// `generate.rs`; what the wire is (gRPC, JSON) is `call.rs`'s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Range(RangeStep),
    Put(PutStep),
    Delete(DeleteStep),
    Txn(TxnStep),
    Compact {
        revision: Rev,
        physical: bool,
    },
    /// `number` is how later steps name the lease.
    Grant {
        number: usize,
        id: LeaseId,
        ttl: i64,
    },
    /// A time to live so short that the lease is revoked at once, before it can expire.
    GrantAndRevoke {
        ttl: i64,
    },
    Revoke(LeaseRef),
    KeepAlive(Vec<LeaseRef>),
    TimeToLive {
        lease: LeaseRef,
        keys: bool,
    },
    Leases,
    /// Grants the shortest lease, puts `key` under it, and waits until it is gone.
    Expire {
        key: Bytes,
    },
    Watch(WatchStep),
    /// Cancels the watch that was opened as number `nth` on the stream.
    CancelWatch {
        stream: usize,
        nth: usize,
    },
    Progress {
        stream: usize,
    },
    /// Waits until every watch has told everything, then compares it.
    Settle,
    MemberList {
        linearizable: bool,
    },
    Status,
    AlarmList,
    Health {
        service: &'static str,
    },
}

impl Step {
    /// For the table of what a run covered.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Range(_) => "range",
            Self::Put(_) => "put",
            Self::Delete(_) => "delete",
            Self::Txn(_) => "txn",
            Self::Compact { .. } => "compact",
            Self::Grant { .. } | Self::GrantAndRevoke { .. } => "lease grant",
            Self::Revoke(_) => "lease revoke",
            Self::KeepAlive(_) => "lease keep-alive",
            Self::TimeToLive { .. } => "lease time-to-live",
            Self::Leases => "lease list",
            Self::Expire { .. } => "lease expiry",
            Self::Watch(_) => "watch create",
            Self::CancelWatch { .. } => "watch cancel",
            Self::Progress { .. } => "watch progress",
            Self::Settle => "watch events",
            Self::MemberList { .. } => "member list",
            Self::Status => "status",
            Self::AlarmList => "alarm list",
            Self::Health { .. } => "health",
        }
    }
}
