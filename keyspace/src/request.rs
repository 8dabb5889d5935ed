//! What goes through the log ([`Command`]) and what is read beside it ([`Query`]).

use bytes::Bytes;

use crate::{
    Alarm, AlarmKind, ClockOwner, ClockStart, ClusterVersion, KeyRange, LeaseGrant, LeaseId, LeaseSerial,
    Limits, Route, SessionId,
};

/// One command of the log. A log entry holds a batch of them; each is applied by [`crate::Keyspace::apply`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Opens a session for the gateway that drew `nonce`. Opening again under the same nonce answers the same
    /// session, so a retry is safe.
    OpenSession {
        /// Drawn at random by the gateway, once per session.
        nonce: u128,
    },
    /// Forgets a session and its results.
    CloseSession(SessionId),
    /// A client's write, under its session's number.
    Write {
        /// Whose write it is.
        session: SessionId,
        /// The write's number in its session, from 1. Numbers may arrive out of order within
        /// [`crate::SESSION_WINDOW`].
        seq: u64,
        /// Results of numbers at or below this may be forgotten: their callers were answered, or gave up for good.
        /// A number at or below it is never applied later.
        ack_upto: u64,
        /// Where its gateway has sent it; none for what concerns the group as a whole ([`Op::has_keys`]).
        route: Option<Route>,
        /// What to do.
        op: Op,
    },
    /// Revokes leases whose time ran out, by the leader's lease clock. Each lease with keys takes one revision; grants
    /// that are over are passed over, also if the id was granted again. Nothing is done if another clock has begun since
    /// ([`Command::StartClock`]): by that one, they may have been renewed.
    ExpireLeases(ClockStart, Vec<LeaseGrant>),
    /// Records the remaining seconds of leases, so that a new leader does not start them at their full time. 0 takes
    /// the record away: the lease has its full time again. Grants that are over are passed over, and nothing is done by an
    /// earlier clock, as above.
    CheckpointLeases(ClockStart, Vec<(LeaseGrant, i64)>),
    /// A leader's lease clock begins, and the one before counts no more. A leader renews nothing before its own is applied: an
    /// entry of an earlier leader that nobody has chosen yet may still be chosen, at a slot that this one has not got to, when
    /// the earlier one is elected again and takes up its own votes (Paxos Made Simple, §3).
    StartClock(ClockOwner),
    /// Sets the limits that all replicas must apply alike.
    SetLimits(Limits),
    /// Sets where the operator wants the group to be led, [`crate::Keyspace::leader_regions`].
    SetLeaderRegions(Vec<Bytes>),
    /// Raises an alarm that the group itself has found reason for.
    RaiseAlarm(Alarm),
    /// From here on commands of this version may come, and do what they do there. It never falls. To be proposed only when all
    /// replicas of the group know it: this command itself is of that version.
    RaiseVersion(ClusterVersion),
}

impl Command {
    /// A client's write, sent by `route` if it concerns a shard.
    pub fn write(session: SessionId, seq: u64, ack_upto: u64, route: Route, op: Op) -> Command {
        Command::Write { session, seq, ack_upto, route: op.has_keys().then_some(route), op }
    }

    /// The oldest cluster version that has it.
    pub fn version(&self) -> ClusterVersion {
        let is_numbered = |grant: &LeaseGrant| grant.serial != LeaseSerial::NONE;
        let names_grants = match self {
            Command::RaiseVersion(version) => return *version,
            Command::StartClock(_) => return ClusterVersion::STARTED_CLOCKS,
            Command::ExpireLeases(by, _) | Command::CheckpointLeases(by, _) if *by != ClockStart::NONE => {
                return ClusterVersion::STARTED_CLOCKS;
            }
            Command::ExpireLeases(_, leases) => leases.iter().any(is_numbered),
            Command::CheckpointLeases(_, leases) => leases.iter().any(|(grant, _)| is_numbered(grant)),
            Command::OpenSession { .. }
            | Command::CloseSession(_)
            | Command::Write { .. }
            | Command::SetLimits(_)
            | Command::SetLeaderRegions(_)
            | Command::RaiseAlarm(_) => false,
        };
        if names_grants { ClusterVersion::NUMBERED_GRANTS } else { ClusterVersion::FIRST }
    }
}

/// A client's write. Requests must have passed [`crate::check`] before they are proposed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes one key.
    Put(Put),
    /// Deletes the keys of a range.
    DeleteRange(DeleteRange),
    /// Compares and writes atomically.
    Txn(Txn),
    /// Forgets history below a revision.
    Compact {
        /// The lowest revision that stays readable.
        revision: i64,
    },
    /// Creates a lease.
    LeaseGrant {
        /// The lease's id. The proposer has replaced 0 by a random positive one.
        id: LeaseId,
        /// Seconds to live. The proposer has raised it to the shortest time allowed.
        ttl: i64,
    },
    /// Deletes a lease and its keys.
    LeaseRevoke {
        /// Which lease.
        id: LeaseId,
    },
    /// Raises an alarm.
    AlarmActivate {
        /// The member the alarm is about.
        member: u64,
        /// Which alarm.
        alarm: AlarmKind,
    },
    /// Takes an alarm back.
    AlarmDeactivate {
        /// The member the alarm is about.
        member: u64,
        /// Which alarm.
        alarm: AlarmKind,
    },
}

impl Op {
    /// Whether it concerns the keys of a shard, and not the group as a whole.
    pub fn has_keys(&self) -> bool {
        match self {
            Op::Put(_) | Op::DeleteRange(_) | Op::Txn(_) => true,
            Op::Compact { .. }
            | Op::LeaseGrant { .. }
            | Op::LeaseRevoke { .. }
            | Op::AlarmActivate { .. }
            | Op::AlarmDeactivate { .. } => false,
        }
    }
}

/// A request that changes nothing and needs no log entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// Reads a range.
    Range(RangeRequest),
    /// Reads a page of a range.
    Page(PageRequest),
    /// Reads a range, or measures it.
    List(ListRequest),
    /// A transaction for which [`Txn::is_read_only`] holds.
    Txn(Txn),
    /// What is known of a lease. The remaining time is as of the last checkpoint; the shell knows better.
    LeaseTimeToLive {
        /// Which lease.
        id: LeaseId,
        /// Whether to list its keys.
        keys: bool,
    },
    /// Every lease's id.
    Leases,
    /// A hash over the history up to a revision; 0 for the current one.
    HashKv {
        /// The revision, or 0.
        revision: i64,
    },
    /// Sizes and positions.
    Status,
    /// The alarms raised.
    Alarms,
}

/// Reads keys. The defaults read the latest values without a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeRequest {
    /// Which keys.
    pub range: KeyRange,
    /// The revision to read at; 0 or below for the latest.
    pub revision: i64,
    /// At most this many keys; 0 or below for all.
    pub limit: i64,
    /// The direction of the sort.
    pub sort_order: SortOrder,
    /// What to sort by.
    pub sort_target: SortTarget,
    /// Whether any replica may answer, perhaps with old data. Of no meaning inside this crate.
    pub serializable: bool,
    /// Whether to leave values out.
    pub keys_only: bool,
    /// Whether to answer the count alone.
    pub count_only: bool,
    /// Inclusive lower bound on the modification revision; 0 for none.
    pub min_mod_revision: i64,
    /// Inclusive upper bound on the modification revision; 0 for none.
    pub max_mod_revision: i64,
    /// Inclusive lower bound on the creation revision; 0 for none.
    pub min_create_revision: i64,
    /// Inclusive upper bound on the creation revision; 0 for none.
    pub max_create_revision: i64,
}

impl RangeRequest {
    /// A plain read of `range`.
    pub fn new(range: KeyRange) -> RangeRequest {
        RangeRequest {
            range,
            revision: 0,
            limit: 0,
            sort_order: SortOrder::None,
            sort_target: SortTarget::Key,
            serializable: false,
            keys_only: false,
            count_only: false,
            min_mod_revision: 0,
            max_mod_revision: 0,
            min_create_revision: 0,
            max_create_revision: 0,
        }
    }
}

/// Reads the first keys of a range, in their order: for who reads the rest with further ones, at the same revision. No client
/// asks for it, and no log holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Which keys.
    pub range: KeyRange,
    /// The revision to read at; 0 or below for the latest.
    pub revision: i64,
    /// At most this many keys, and one at least.
    pub limit: u64,
    /// Keys and values, in bytes: the page ends with the one that makes it longer.
    pub bytes: u64,
    /// Whether to leave values out.
    pub keys_only: bool,
    /// Whether the keys behind the page are counted as well. Every page would count those of all further ones.
    pub counts_rest: bool,
}

/// Reads a range in the order of its keys, unless the answer is longer than it may be: then it is measured
/// ([`crate::Reply::Measured`]), for who reads it page by page at the same revision. No client asks for it, and no log holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListRequest {
    /// Which keys.
    pub range: KeyRange,
    /// The revision to read at; 0 or below for the latest.
    pub revision: i64,
    /// At most this many keys; 0 for all.
    pub limit: u64,
    /// Whether to leave values out.
    pub keys_only: bool,
    /// How long the entries may be, in bytes, as [`crate::wire_len`] measures them.
    pub bytes: u64,
}

/// The direction of a sort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SortOrder {
    /// None asked for; targets other than the key are still sorted ascending.
    None,
    /// Lowest first.
    Ascend,
    /// Highest first.
    Descend,
    /// A number without meaning; [`crate::check::range`] refuses it.
    Invalid,
}

/// What a sort compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SortTarget {
    /// The key.
    Key,
    /// How often the key was written since its creation.
    Version,
    /// The creation revision.
    Create,
    /// The modification revision.
    Mod,
    /// The value.
    Value,
    /// A number without meaning; [`crate::check::range`] refuses it.
    Invalid,
}

impl SortOrder {
    /// From etcd's enum number.
    pub fn from_wire(number: i32) -> SortOrder {
        match number {
            0 => SortOrder::None,
            1 => SortOrder::Ascend,
            2 => SortOrder::Descend,
            _ => SortOrder::Invalid,
        }
    }
}

impl SortTarget {
    /// From etcd's enum number.
    pub fn from_wire(number: i32) -> SortTarget {
        match number {
            0 => SortTarget::Key,
            1 => SortTarget::Version,
            2 => SortTarget::Create,
            3 => SortTarget::Mod,
            4 => SortTarget::Value,
            _ => SortTarget::Invalid,
        }
    }
}

/// Writes one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// The key; not empty.
    pub key: Bytes,
    /// Its new value.
    pub value: Bytes,
    /// The lease to attach to; [`LeaseId::NONE`] for none.
    pub lease: LeaseId,
    /// Whether to answer with what was there before.
    pub prev_kv: bool,
    /// Whether to keep the value that is there.
    pub ignore_value: bool,
    /// Whether to keep the lease that is there.
    pub ignore_lease: bool,
}

impl Put {
    /// A put without options.
    pub fn new(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Put {
        Put {
            key: key.into(),
            value: value.into(),
            lease: LeaseId::NONE,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        }
    }
}

/// Deletes the keys of a range, all under one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteRange {
    /// Which keys.
    pub range: KeyRange,
    /// Whether to answer with what was there before.
    pub prev_kv: bool,
}

/// If all comparisons hold, the operations of `success`, else those of `failure`; all under one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold; none at all holds.
    pub compare: Vec<Compare>,
    /// The branch taken when they hold.
    pub success: Vec<TxnOp>,
    /// The branch taken when one does not.
    pub failure: Vec<TxnOp>,
}

impl Txn {
    /// Whether the transaction can be answered without the log: all top-level operations of both branches are
    /// ranges. A nested transaction makes it a write, whatever is in it, as in etcd.
    pub fn is_read_only(&self) -> bool {
        self.success.iter().chain(&self.failure).all(|op| match op {
            TxnOp::Range(_) => true,
            TxnOp::Put(_) | TxnOp::DeleteRange(_) | TxnOp::Txn(_) | TxnOp::Empty => false,
        })
    }

    /// Whether every top-level range allows old data; then so does the transaction.
    pub fn is_serializable(&self) -> bool {
        self.success.iter().chain(&self.failure).all(|op| match op {
            TxnOp::Range(range) => range.serializable,
            TxnOp::Put(_) | TxnOp::DeleteRange(_) | TxnOp::Txn(_) | TxnOp::Empty => false,
        })
    }
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnOp {
    /// Reads, and sees what earlier operations of the transaction wrote.
    Range(RangeRequest),
    /// Writes one key.
    Put(Put),
    /// Deletes a range.
    DeleteRange(DeleteRange),
    /// A transaction inside; its comparisons are evaluated with the outer ones, before any write.
    Txn(Txn),
    /// An operation left unset on the wire. [`crate::check::txn`] refuses it, in its turn.
    Empty,
}

/// One comparison. Every key of the range must satisfy it; a range without keys is compared as one missing key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// Which keys.
    pub range: KeyRange,
    /// How the key's field must stand to the given one.
    pub result: CompareResult,
    /// The field and what it is compared with.
    pub target: CompareTarget,
}

impl Compare {
    /// Of the value that is compared with, if it is one.
    pub(crate) fn value_len(&self) -> usize {
        match &self.target {
            CompareTarget::Value(value) => value.len(),
            CompareTarget::Version(_)
            | CompareTarget::Create(_)
            | CompareTarget::Mod(_)
            | CompareTarget::Lease(_)
            | CompareTarget::Unknown => 0,
        }
    }
}

/// How a key's field must stand to the given one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CompareResult {
    /// The same.
    Equal,
    /// The key's is greater.
    Greater,
    /// The key's is less.
    Less,
    /// Not the same.
    NotEqual,
    /// A number without meaning: always holds, as in etcd (where the key exists or the target is not the value).
    Unknown,
}

impl CompareResult {
    /// From etcd's enum number.
    pub fn from_wire(number: i32) -> CompareResult {
        match number {
            0 => CompareResult::Equal,
            1 => CompareResult::Greater,
            2 => CompareResult::Less,
            3 => CompareResult::NotEqual,
            _ => CompareResult::Unknown,
        }
    }
}

/// The field of a comparison and its right-hand side. On the wire the two are apart; where they do not match, or none
/// was given, etcd compares with zero or the empty value, and so must the caller fill it in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompareTarget {
    /// How often the key was written since its creation.
    Version(i64),
    /// The creation revision.
    Create(i64),
    /// The modification revision.
    Mod(i64),
    /// The value. On a missing key every comparison with it fails, also `NotEqual`.
    Value(Bytes),
    /// The lease.
    Lease(LeaseId),
    /// A number without meaning: compares as two equal things.
    Unknown,
}
