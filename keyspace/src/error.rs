//! Why a request was refused.

/// An answer that refuses a request. Each variant is one etcd error, except the last seven, of which six concern
/// gateways only. The gateway's table gives the code and the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Error {
    /// `key is not provided`.
    EmptyKey,
    /// `key not found`: `ignore_value` or `ignore_lease` on a key that does not exist; also an empty operation in a
    /// transaction.
    KeyNotFound,
    /// `value is provided`: a value beside `ignore_value`.
    ValueProvided,
    /// `lease is provided`: a lease beside `ignore_lease`.
    LeaseProvided,
    /// `too many operations in txn request`.
    TooManyOps,
    /// `duplicate key given in txn request`.
    DuplicateKey,
    /// `invalid sort option`.
    InvalidSortOption,
    /// `mvcc: required revision has been compacted`.
    Compacted,
    /// `mvcc: required revision is a future revision`.
    FutureRevision,
    /// `mvcc: database space exceeded`.
    NoSpace,
    /// `requested lease not found`.
    LeaseNotFound,
    /// `lease already exists`.
    LeaseExists,
    /// `too large lease TTL`.
    LeaseTtlTooLarge,
    /// `corrupt cluster`.
    Corrupt,
    /// A query that would change something; it belongs into the log.
    NotReadOnly,
    /// The session is not open: it was closed, evicted, or never opened. Whether a write under it was applied is
    /// unknown.
    SessionExpired,
    /// The sequence number is acknowledged already (at or below the session's `ack_upto`). Its result is forgotten;
    /// the write was not applied by this entry.
    ResultForgotten,
    /// The sequence number is further than [`crate::SESSION_WINDOW`] above the session's low mark. Nothing was applied;
    /// the gateway may send it again once older writes are acknowledged.
    SessionWindowExceeded,
    /// The revisions that were given to the command are passed by others that came first. Nothing was applied, and nothing
    /// is kept of it: the same write may come again with newer ones.
    RevisionPassed,
    /// The shard that holds the keys is not here, or is not what the sender's map says. Nothing was applied, nor will it be
    /// under this number: the same write may be sent elsewhere, or here under another one.
    WrongShard,
    /// The answer would be larger than any that is given ([`crate::ANSWER_BYTES_MAX`]). etcd makes it all the same, and its
    /// gRPC library refuses to send it.
    AnswerTooLarge,
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Error::EmptyKey => "key is not provided",
            Error::KeyNotFound => "key not found",
            Error::ValueProvided => "value is provided",
            Error::LeaseProvided => "lease is provided",
            Error::TooManyOps => "too many operations in txn request",
            Error::DuplicateKey => "duplicate key given in txn request",
            Error::InvalidSortOption => "invalid sort option",
            Error::Compacted => "required revision has been compacted",
            Error::FutureRevision => "required revision is a future revision",
            Error::NoSpace => "database space exceeded",
            Error::LeaseNotFound => "requested lease not found",
            Error::LeaseExists => "lease already exists",
            Error::LeaseTtlTooLarge => "too large lease TTL",
            Error::Corrupt => "corrupt cluster",
            Error::NotReadOnly => "a query may not write",
            Error::SessionExpired => "session expired",
            Error::ResultForgotten => "result already acknowledged",
            Error::SessionWindowExceeded => "sequence number beyond the session window",
            Error::RevisionPassed => "revision passed by others",
            Error::WrongShard => "the keys are in no shard of this group",
            Error::AnswerTooLarge => "the answer is too large",
        })
    }
}

impl std::error::Error for Error {}
