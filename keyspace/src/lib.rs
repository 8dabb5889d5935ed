//! The replicated state machine: etcd's data model, pure and deterministic.
//!
//! [`Keyspace::apply`] takes the commands of the log in slot order and changes the state; [`Keyspace::begin`]
//! and [`Keyspace::go_on`] read it. Every replica that applied the same slots holds the same state and gives the same answers and the
//! same [`Keyspace::digest`]. Time, randomness and revisions of other groups arrive inside commands.
//!
//! A group's state is that of its shards, each with its keys and what hangs on them, and what concerns them all: leases,
//! sessions, limits and alarms (docs/decisions/0020-the-shard-is-the-unit-of-state.md).
//!
//! What it is not: it knows no consensus, no network, no clock and no protobuf. The lease clock belongs to the
//! shell, which proposes [`Command::StartClock`], [`Command::ExpireLeases`] and [`Command::CheckpointLeases`].
//!
//! The behaviour is etcd 3.6's. The quirks that are kept on purpose have tests named after them in `tests/`.

mod alarm;
mod bounds;
pub mod check;
mod codec;
mod digest;
mod envelope;
mod error;
mod event;
mod feed;
mod ids;
mod key_range;
mod keyspace;
mod lease;
mod limits;
mod mutant;
mod mvcc;
mod quota;
mod ranges;
mod reply;
mod request;
mod results;
mod revision;
mod session;
mod shard;
mod txn;
mod version;
mod watchers;

pub use alarm::{Alarm, AlarmKind};
pub use bounds::WriteBounds;
pub use codec::{
    DecodeError, MAX_TXN_DEPTH, MAX_TXN_ITEMS, Pieces, decode_outcome, encode_outcome, outcome_len,
};
pub use envelope::{Envelope, Proposal, RevisionRange, Revisions};
pub use error::Error;
pub use event::{Event, EventKind, KeyValue, RevisionEvents};
pub use feed::{FeedPlace, HistoryPage, NoHistory, PageLimits};
pub use ids::{ClockOwner, ClockStart, LeaseGrant, LeaseId, LeaseSerial, Route, SessionId};
pub use key_range::{KeyRange, RangeEnd};
pub use keyspace::{
    Answer, Effects, Keyspace, LEASES_MAX, Options, Restore, RestoreError, Snapshot, Step, SuspendedQuery,
};
pub use lease::{LeaseEffect, LeaseState, MAX_LEASE_TTL_S};
pub use limits::{DEFAULT_MAX_SESSIONS, DEFAULT_QUOTA_BYTES, Limits};
pub use mutant::Broken;
#[cfg(feature = "mutants")]
pub use mutant::Mutant;
pub use quota::{LEASE_COST_BYTES, PUT_OVERHEAD_BYTES};
pub use ranges::{ANSWER_BYTES_MAX, Budget, Gathered};
pub use reply::{
    DeleteRangeReply, HashKvReply, LeaseTimeToLiveReply, MeasuredReply, Outcome, PutReply, RangeReply, Reply,
    StatusReply, TxnOpReply, TxnReply, wire_len,
};
pub use request::{
    Command, Compare, CompareResult, CompareTarget, DeleteRange, ListRequest, Op, PageRequest, Put, Query,
    RangeRequest, SortOrder, SortTarget, Txn, TxnOp,
};
pub use revision::{LastWrite, Resolved, Revision};
pub use session::{SESSION_WINDOW, SessionLookup};
pub use shard::ShardSpan;
pub use shard_map::{Epoch, ShardId};
pub use version::ClusterVersion;
pub use watchers::WatcherIndex;
