//! What goes into the model and what comes out: plain structs with the names of etcd's protocol
//! (`api/etcdserverpb/rpc.proto`, `api/mvccpb/kv.proto`), so that any crate can convert its own types to them.

use serde::{Deserialize, Serialize};
use std::fmt;

use super::text;

/// Whether a field can be left out of the JSON form.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A set of keys in etcd's notation.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct KeyRange {
    /// The first key.
    #[serde(with = "text")]
    pub key: Vec<u8>,
    /// Empty: `key` alone. One zero byte: every key from `key` on. Otherwise the first key after the range; a range
    /// whose end is not above its start is legal and holds nothing.
    #[serde(with = "text", skip_serializing_if = "is_default")]
    pub range_end: Vec<u8>,
}

impl KeyRange {
    /// `key` alone.
    pub fn single(key: impl Into<Vec<u8>>) -> KeyRange {
        KeyRange { key: key.into(), range_end: Vec::new() }
    }

    /// `[key, range_end)`.
    pub fn between(key: impl Into<Vec<u8>>, range_end: impl Into<Vec<u8>>) -> KeyRange {
        KeyRange { key: key.into(), range_end: range_end.into() }
    }

    /// Every key from `key` on.
    pub fn from_key(key: impl Into<Vec<u8>>) -> KeyRange {
        KeyRange { key: key.into(), range_end: vec![0] }
    }

    /// Every key.
    pub fn all() -> KeyRange {
        KeyRange { key: vec![0], range_end: vec![0] }
    }

    /// Whether `key` is in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        match self.range_end.as_slice() {
            [] => key == self.key,
            [0] => key >= self.key.as_slice(),
            end => key >= self.key.as_slice() && key < end,
        }
    }
}

impl fmt::Display for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.range_end.as_slice() {
            [] => write!(f, "{}", text::escape(&self.key)),
            [0] => write!(f, "[{}, …)", text::escape(&self.key)),
            end => write!(f, "[{}, {})", text::escape(&self.key), text::escape(end)),
        }
    }
}

/// One version of a key. All zero but the key stands for "no such key" in comparisons.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct KeyValue {
    /// The key.
    #[serde(with = "text")]
    pub key: Vec<u8>,
    /// Revision of the put that created the key, or created it again after a delete.
    #[serde(skip_serializing_if = "is_default")]
    pub create_revision: i64,
    /// Revision of this version.
    pub mod_revision: i64,
    /// Puts since creation; the first is 1.
    #[serde(skip_serializing_if = "is_default")]
    pub version: i64,
    /// The value.
    #[serde(with = "text", skip_serializing_if = "is_default")]
    pub value: Vec<u8>,
    /// The lease the key hangs on; 0 is none.
    #[serde(skip_serializing_if = "is_default")]
    pub lease: i64,
}

/// What an event did to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum EventKind {
    /// The key got a new version.
    Put,
    /// The key was removed. Its `kv` carries the key and the revision only.
    Delete,
}

/// One change of one key, as watchers see it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Event {
    /// Put or delete.
    pub kind: EventKind,
    /// The new version, or the tombstone.
    pub kv: KeyValue,
    /// The version at the revision before this one; none for a put that creates the key. That it is the version at
    /// `mod_revision - 1`, and not the one an earlier operation of the same transaction left, is etcd's definition
    /// (`server/etcdserver/api/v3rpc/watch.go`, sendLoop).
    #[serde(default, skip_serializing_if = "is_default")]
    pub prev_kv: Option<KeyValue>,
}

impl Event {
    /// The revision of the event.
    pub fn revision(&self) -> i64 {
        self.kv.mod_revision
    }
}

/// Everything that one revision changed, in the order the operations of its transaction ran.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Commit {
    /// The revision.
    pub revision: i64,
    /// Never empty in the model's log.
    pub events: Vec<Event>,
}

/// Order of a range's answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SortOrder {
    /// Not asked for. With a target other than the key the answer is sorted ascending all the same.
    #[default]
    None,
    /// Lowest first.
    Ascend,
    /// Highest first.
    Descend,
    /// A number the protocol does not define.
    Unrecognised,
}

/// What a range's answer is sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SortTarget {
    /// The key.
    #[default]
    Key,
    /// The version counter.
    Version,
    /// The create revision.
    Create,
    /// The mod revision.
    Mod,
    /// The value.
    Value,
    /// A number the protocol does not define.
    Unrecognised,
}

/// Reads keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct RangeRequest {
    /// Which keys.
    pub range: KeyRange,
    /// Most keys to return; 0 and below: all.
    #[serde(skip_serializing_if = "is_default")]
    pub limit: i64,
    /// Revision to read at; 0 and below: the latest.
    #[serde(skip_serializing_if = "is_default")]
    pub revision: i64,
    /// Order of the answer.
    #[serde(skip_serializing_if = "is_default")]
    pub sort_order: SortOrder,
    /// What the answer is ordered by.
    #[serde(skip_serializing_if = "is_default")]
    pub sort_target: SortTarget,
    /// May be answered by any replica from what it has applied, however old.
    #[serde(skip_serializing_if = "is_default")]
    pub serializable: bool,
    /// Leave the values out.
    #[serde(skip_serializing_if = "is_default")]
    pub keys_only: bool,
    /// Leave the keys out too.
    #[serde(skip_serializing_if = "is_default")]
    pub count_only: bool,
    /// Lowest mod revision returned; 0: no bound.
    #[serde(skip_serializing_if = "is_default")]
    pub min_mod_revision: i64,
    /// Highest mod revision returned; 0: no bound.
    #[serde(skip_serializing_if = "is_default")]
    pub max_mod_revision: i64,
    /// Lowest create revision returned; 0: no bound.
    #[serde(skip_serializing_if = "is_default")]
    pub min_create_revision: i64,
    /// Highest create revision returned; 0: no bound.
    #[serde(skip_serializing_if = "is_default")]
    pub max_create_revision: i64,
}

/// Writes one key.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct PutRequest {
    /// The key.
    #[serde(with = "text")]
    pub key: Vec<u8>,
    /// The value.
    #[serde(with = "text", skip_serializing_if = "is_default")]
    pub value: Vec<u8>,
    /// The lease to hang the key on; 0: none, and off its former lease.
    #[serde(skip_serializing_if = "is_default")]
    pub lease: i64,
    /// Return the version before.
    #[serde(skip_serializing_if = "is_default")]
    pub prev_kv: bool,
    /// Keep the value; the key must exist.
    #[serde(skip_serializing_if = "is_default")]
    pub ignore_value: bool,
    /// Keep the lease; the key must exist.
    #[serde(skip_serializing_if = "is_default")]
    pub ignore_lease: bool,
}

/// Removes keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct DeleteRangeRequest {
    /// Which keys.
    pub range: KeyRange,
    /// Return the versions removed.
    #[serde(skip_serializing_if = "is_default")]
    pub prev_kv: bool,
}

/// How a compare relates the stored thing (left) to the given one (right).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum CompareResult {
    /// `=`
    #[default]
    Equal,
    /// `>`
    Greater,
    /// `<`
    Less,
    /// `!=`
    NotEqual,
    /// A number the protocol does not define; such a compare holds, unless it is of the value of a missing key.
    Unrecognised,
}

/// What a compare looks at, with the value given. A request whose union is unset, or of another type than its target,
/// compares with 0 or the empty value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum CompareTarget {
    /// The version counter.
    Version(i64),
    /// The create revision.
    Create(i64),
    /// The mod revision.
    Mod(i64),
    /// The value. Never holds for a missing key, not even as `NotEqual`.
    Value(#[serde(with = "text")] Vec<u8>),
    /// The lease.
    Lease(i64),
    /// A number the protocol does not define; everything is equal in it.
    Unrecognised,
}

/// One condition of a transaction. It must hold for every key of the range; an empty range is judged as one key with
/// all fields zero.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Compare {
    /// Which keys.
    pub range: KeyRange,
    /// What to look at, and what to compare it with.
    pub target: CompareTarget,
    /// The relation.
    pub result: CompareResult,
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RequestOp {
    /// A read.
    Range(RangeRequest),
    /// A write.
    Put(PutRequest),
    /// A delete.
    DeleteRange(DeleteRangeRequest),
    /// A transaction inside.
    Txn(TxnRequest),
    /// The union is unset: refused with "key not found".
    Empty,
}

/// Conditions, and what to do if they all hold or not. All of it is one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct TxnRequest {
    /// All must hold for `success`.
    #[serde(skip_serializing_if = "is_default")]
    pub compare: Vec<Compare>,
    /// Run if all compares hold.
    #[serde(skip_serializing_if = "is_default")]
    pub success: Vec<RequestOp>,
    /// Run otherwise.
    #[serde(skip_serializing_if = "is_default")]
    pub failure: Vec<RequestOp>,
}

/// Forgets history below a revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct CompactRequest {
    /// The lowest revision that stays readable.
    pub revision: i64,
}

/// Makes a lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct LeaseGrantRequest {
    /// 0: the server picks one.
    pub id: i64,
    /// Seconds.
    pub ttl: i64,
}

/// Ends a lease and deletes its keys, all in one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct LeaseRevokeRequest {
    /// Which.
    pub id: i64,
}

/// Renews a lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct LeaseKeepAliveRequest {
    /// Which.
    pub id: i64,
}

/// Asks how long a lease has to live.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct LeaseTimeToLiveRequest {
    /// Which.
    pub id: i64,
    /// Return its keys too.
    #[serde(skip_serializing_if = "is_default")]
    pub keys: bool,
}

/// A request of the KV and Lease services.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Request {
    /// `KV.Range`
    Range(RangeRequest),
    /// `KV.Put`
    Put(PutRequest),
    /// `KV.DeleteRange`
    DeleteRange(DeleteRangeRequest),
    /// `KV.Txn`
    Txn(TxnRequest),
    /// `KV.Compact`
    Compact(CompactRequest),
    /// `Lease.LeaseGrant`
    LeaseGrant(LeaseGrantRequest),
    /// `Lease.LeaseRevoke`
    LeaseRevoke(LeaseRevokeRequest),
    /// One message of `Lease.LeaseKeepAlive`
    LeaseKeepAlive(LeaseKeepAliveRequest),
    /// `Lease.LeaseTimeToLive`
    LeaseTimeToLive(LeaseTimeToLiveRequest),
    /// `Lease.LeaseLeases`
    Leases,
}

impl Request {
    /// Whether any replica may answer from what it has applied, however old: a serializable range, or a transaction
    /// of nothing else. A transaction with no operations at all is one, too (`txn/txn.go`, IsTxnSerializable).
    pub fn is_serializable(&self) -> bool {
        let stale = |op: &RequestOp| matches!(op, RequestOp::Range(range) if range.serializable);
        match self {
            Request::Range(range) => range.serializable,
            Request::Txn(txn) => txn.success.iter().chain(&txn.failure).all(stale),
            Request::Put(_)
            | Request::DeleteRange(_)
            | Request::Compact(_)
            | Request::LeaseGrant(_)
            | Request::LeaseRevoke(_)
            | Request::LeaseKeepAlive(_)
            | Request::LeaseTimeToLive(_)
            | Request::Leases => false,
        }
    }
}

/// Answer to a range.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct RangeResponse {
    /// `header.revision`: the current revision, also when an older one was read.
    pub revision: i64,
    /// The keys.
    #[serde(skip_serializing_if = "is_default")]
    pub kvs: Vec<KeyValue>,
    /// Whether the limit left keys out.
    #[serde(skip_serializing_if = "is_default")]
    pub more: bool,
    /// Keys in the range at the revision read, before limit and filters.
    pub count: i64,
}

/// Answer to a put.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct PutResponse {
    /// `header.revision`: the revision of the put.
    pub revision: i64,
    /// The version before, if asked for and there was one.
    #[serde(skip_serializing_if = "is_default")]
    pub prev_kv: Option<KeyValue>,
}

/// Answer to a delete.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct DeleteRangeResponse {
    /// `header.revision`: the revision of the delete, or the current one if it matched nothing.
    pub revision: i64,
    /// Keys removed.
    pub deleted: i64,
    /// Their last versions, if asked for.
    #[serde(skip_serializing_if = "is_default")]
    pub prev_kvs: Vec<KeyValue>,
}

/// Answer to one operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ResponseOp {
    /// Of a range.
    Range(RangeResponse),
    /// Of a put.
    Put(PutResponse),
    /// Of a delete.
    DeleteRange(DeleteRangeResponse),
    /// Of a transaction inside; its `revision` is 0, since etcd leaves that header empty.
    Txn(TxnResponse),
}

/// Answer to a transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct TxnResponse {
    /// `header.revision`: the revision of the transaction, or the current one if it changed nothing.
    pub revision: i64,
    /// Whether all compares held.
    pub succeeded: bool,
    /// One per operation of the branch taken.
    #[serde(skip_serializing_if = "is_default")]
    pub responses: Vec<ResponseOp>,
}

/// Answer to a compaction.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct CompactResponse {
    /// `header.revision`: the current revision.
    pub revision: i64,
}

/// Answer to a grant.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct LeaseGrantResponse {
    /// `header.revision`: the current revision; a grant takes none.
    pub revision: i64,
    /// The lease.
    pub id: i64,
    /// Seconds, raised to the server's minimum.
    pub ttl: i64,
}

/// Answer to a revoke.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct LeaseRevokeResponse {
    /// `header.revision`: the revision of the deletes, or the current one if no key hung on the lease.
    pub revision: i64,
}

/// Answer to a keepalive.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct LeaseKeepAliveResponse {
    /// `header.revision`: the current revision.
    pub revision: i64,
    /// The lease.
    pub id: i64,
    /// Seconds; 0: there is no such lease.
    pub ttl: i64,
}

/// Answer to a time-to-live.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct LeaseTimeToLiveResponse {
    /// `header.revision`: the current revision.
    pub revision: i64,
    /// The lease.
    pub id: i64,
    /// Seconds left; -1: there is no such lease. The model has no clock and answers the granted time.
    pub ttl: i64,
    /// Seconds granted.
    pub granted_ttl: i64,
    /// The keys that hang on it, sorted.
    #[serde(with = "text::list", skip_serializing_if = "is_default")]
    pub keys: Vec<Vec<u8>>,
}

/// Answer to a list of leases.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct LeasesResponse {
    /// `header.revision`: the current revision.
    pub revision: i64,
    /// Sorted by id (a server sorts by expiry, which the model does not know).
    pub ids: Vec<i64>,
}

/// The answer to a [`Request`], variant for variant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Response {
    /// To a range.
    Range(RangeResponse),
    /// To a put.
    Put(PutResponse),
    /// To a delete.
    DeleteRange(DeleteRangeResponse),
    /// To a transaction.
    Txn(TxnResponse),
    /// To a compaction.
    Compact(CompactResponse),
    /// To a grant.
    LeaseGrant(LeaseGrantResponse),
    /// To a revoke.
    LeaseRevoke(LeaseRevokeResponse),
    /// To a keepalive.
    LeaseKeepAlive(LeaseKeepAliveResponse),
    /// To a time-to-live.
    LeaseTimeToLive(LeaseTimeToLiveResponse),
    /// To a list of leases.
    Leases(LeasesResponse),
}

impl Response {
    /// `header.revision` of the answer.
    pub fn revision(&self) -> i64 {
        match self {
            Response::Range(response) => response.revision,
            Response::Put(response) => response.revision,
            Response::DeleteRange(response) => response.revision,
            Response::Txn(response) => response.revision,
            Response::Compact(response) => response.revision,
            Response::LeaseGrant(response) => response.revision,
            Response::LeaseRevoke(response) => response.revision,
            Response::LeaseKeepAlive(response) => response.revision,
            Response::LeaseTimeToLive(response) => response.revision,
            Response::Leases(response) => response.revision,
        }
    }
}

/// gRPC status codes that the model's errors carry, with their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    /// 3
    InvalidArgument = 3,
    /// 5
    NotFound = 5,
    /// 9
    FailedPrecondition = 9,
    /// 11
    OutOfRange = 11,
}

/// A definite refusal by the state machine: the request had no effect. Errors of the machinery around it (no leader,
/// timeouts, overload) are not here: the model has no such states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Error {
    /// A key is empty.
    EmptyKey,
    /// `ignore_value` or `ignore_lease` on a missing key; also an unset operation in a transaction.
    KeyNotFound,
    /// `ignore_value` with a value.
    ValueProvided,
    /// `ignore_lease` with a lease.
    LeaseProvided,
    /// A transaction is too long or too deep.
    TooManyOps,
    /// A transaction writes a key twice.
    DuplicateKey,
    /// An unknown sort order or target.
    InvalidSortOption,
    /// The revision is no longer there.
    Compacted,
    /// The revision is not there yet.
    FutureRevision,
    /// The lease is too long.
    LeaseTtlTooLarge,
    /// There is no such lease.
    LeaseNotFound,
    /// There is such a lease.
    LeaseExists,
}

impl Error {
    /// Every variant.
    pub const ALL: [Error; 12] = [
        Error::EmptyKey,
        Error::KeyNotFound,
        Error::ValueProvided,
        Error::LeaseProvided,
        Error::TooManyOps,
        Error::DuplicateKey,
        Error::InvalidSortOption,
        Error::Compacted,
        Error::FutureRevision,
        Error::LeaseTtlTooLarge,
        Error::LeaseNotFound,
        Error::LeaseExists,
    ];

    /// The gRPC code, as in etcd `api/v3rpc/rpctypes/error.go`.
    pub fn code(self) -> Code {
        match self {
            Error::EmptyKey
            | Error::KeyNotFound
            | Error::ValueProvided
            | Error::LeaseProvided
            | Error::TooManyOps
            | Error::DuplicateKey
            | Error::InvalidSortOption => Code::InvalidArgument,
            Error::Compacted | Error::FutureRevision | Error::LeaseTtlTooLarge => Code::OutOfRange,
            Error::LeaseNotFound => Code::NotFound,
            Error::LeaseExists => Code::FailedPrecondition,
        }
    }

    /// The message, byte for byte: Go clients recognise errors by it.
    pub fn text(self) -> &'static str {
        match self {
            Error::EmptyKey => "etcdserver: key is not provided",
            Error::KeyNotFound => "etcdserver: key not found",
            Error::ValueProvided => "etcdserver: value is provided",
            Error::LeaseProvided => "etcdserver: lease is provided",
            Error::TooManyOps => "etcdserver: too many operations in txn request",
            Error::DuplicateKey => "etcdserver: duplicate key given in txn request",
            Error::InvalidSortOption => "etcdserver: invalid sort option",
            Error::Compacted => "etcdserver: mvcc: required revision has been compacted",
            Error::FutureRevision => "etcdserver: mvcc: required revision is a future revision",
            Error::LeaseTtlTooLarge => "etcdserver: too large lease TTL",
            Error::LeaseNotFound => "etcdserver: requested lease not found",
            Error::LeaseExists => "etcdserver: lease already exists",
        }
    }

    /// The error of a gRPC status, if it is one of the model's. Anything else a server may say (no leader, request
    /// timed out, …) leaves the outcome of a write unknown or proves that it was never proposed; the caller knows.
    pub fn from_status(code: i32, message: &str) -> Option<Error> {
        Error::ALL.into_iter().find(|error| error.code() as i32 == code && error.text() == message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for Error {}

/// What a server answers: a response, or a refusal.
pub type Answer = Result<Response, Error>;

/// Opens a watch.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct WatchRequest {
    /// Which keys. An empty key is read as one zero byte.
    pub range: KeyRange,
    /// First revision wanted; 0: the one after the current.
    #[serde(skip_serializing_if = "is_default")]
    pub start_revision: i64,
    /// Leave puts out.
    #[serde(skip_serializing_if = "is_default")]
    pub no_put: bool,
    /// Leave deletes out.
    #[serde(skip_serializing_if = "is_default")]
    pub no_delete: bool,
    /// Send the version before, too.
    #[serde(skip_serializing_if = "is_default")]
    pub prev_kv: bool,
}

impl WatchRequest {
    /// The keys watched, with the empty key translated.
    pub fn watched(&self) -> KeyRange {
        let mut range = self.range.clone();
        if range.key.is_empty() {
            range.key = vec![0];
        }
        range
    }

    /// The part of `event` that this watch is sent; none if it is filtered.
    pub fn filter(&self, event: &Event) -> Option<Event> {
        let wanted = match event.kind {
            EventKind::Put => !self.no_put,
            EventKind::Delete => !self.no_delete,
        };
        if !wanted || !self.watched().contains(&event.kv.key) {
            return None;
        }
        let mut event = event.clone();
        if !self.prev_kv {
            event.prev_kv = None;
        }
        Some(event)
    }
}

/// What happens to a watch when it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchStart {
    /// Created; the first event will have this revision or a later one.
    From(i64),
    /// Created, and then cancelled with this compact revision and no reason.
    Compacted {
        /// The compact revision.
        compact_revision: i64,
    },
    /// Refused (created and cancelled in one message) with this reason.
    Refused {
        /// `cancel_reason`.
        reason: &'static str,
    },
}
