//! The one table from what went wrong to etcd's codes and exact texts.
//!
//! Clients convert errors by their text (etcd `api/v3rpc/rpctypes/error.go`), so each is etcd's to the letter. Whether
//! the caller may try again is a property of the failure, decided here once.

use tonic::{Code, Status};

/// Why a request was not granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The state machine refused: the same on every replica.
    Refused(keyspace::Error),
    /// The request is larger than the limit.
    TooLarge,
    /// The answer is larger than can be sent.
    AnswerTooLarge,
    /// The deadline passed; no reason is known.
    TimedOut,
    /// The deadline passed after a leader was lost or could not be found.
    TimedOutLeaderFailed,
    /// The deadline passed after a link was lost.
    TimedOutConnectionLost,
    /// Too much is waiting.
    Overloaded,
    /// There is no leader, and the caller asked not to wait for one.
    NoLeader,
    /// The nodes' disks are full or fenced.
    NoDisk,
    /// The gateway is stopping.
    Stopping,
    /// The request touches keys of several shards, which this version does not carry out.
    SpansShards,
    /// Ours.
    Internal(&'static str),
}

/// Who should do what about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryClass {
    /// The caller's fault, or a plain fact: the same request will fail again.
    Never,
    /// Nothing was applied: any request may be sent again, to another gateway at best.
    Safe,
    /// It may have been applied: only a read may be sent again.
    OutcomeUnknown,
}

impl Failure {
    /// Whether the request may be sent again.
    pub fn retry_class(&self) -> RetryClass {
        match self {
            Failure::Refused(_)
            | Failure::TooLarge
            | Failure::AnswerTooLarge
            | Failure::SpansShards
            | Failure::Internal(_) => RetryClass::Never,
            Failure::Overloaded | Failure::NoLeader | Failure::NoDisk | Failure::Stopping => RetryClass::Safe,
            Failure::TimedOut | Failure::TimedOutLeaderFailed | Failure::TimedOutConnectionLost => {
                RetryClass::OutcomeUnknown
            }
        }
    }
}

impl From<keyspace::Error> for Failure {
    fn from(error: keyspace::Error) -> Failure {
        Failure::Refused(error)
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Status {
        let (code, text) = code_and_text(&failure);
        Status::new(code, text)
    }
}

/// `etcdserver: no leader`, also as the end of streams that asked for a leader.
pub const NO_LEADER: (Code, &str) = (Code::Unavailable, "etcdserver: no leader");
/// Metadata `client-api-version` that is no text.
pub const INVALID_CLIENT_API_VERSION: (Code, &str) =
    (Code::InvalidArgument, "etcdserver: invalid client api version");
/// A watch stream that the server ends.
pub const WATCH_CANCELED: (Code, &str) = (Code::Cancelled, "etcdserver: watch canceled");

/// The table.
pub fn code_and_text(failure: &Failure) -> (Code, &'static str) {
    match failure {
        Failure::Refused(error) => refusal(*error),
        Failure::TooLarge => (Code::InvalidArgument, "etcdserver: request is too large"),
        // As grpc-go says it of an answer beyond its own limit, but for the numbers.
        Failure::AnswerTooLarge => (Code::ResourceExhausted, "grpc: trying to send message larger than max"),
        Failure::TimedOut => (Code::Unavailable, "etcdserver: request timed out"),
        Failure::TimedOutLeaderFailed => {
            (Code::Unavailable, "etcdserver: request timed out, possibly due to previous leader failure")
        }
        Failure::TimedOutConnectionLost => {
            (Code::Unavailable, "etcdserver: request timed out, possibly due to connection lost")
        }
        // etcd maps this error to a client-side value, which reaches the wire as Unknown; its text is what clients read.
        Failure::Overloaded => (Code::Unknown, "etcdserver: too many requests"),
        Failure::NoLeader => NO_LEADER,
        // etcd's nodes stop on a full disk; the nearest it can say is what its quota says.
        Failure::NoDisk => (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
        Failure::Stopping => (Code::Unavailable, "etcdserver: server stopped"),
        Failure::SpansShards => {
            (Code::Unimplemented, "gaios: a request over several shards is not supported by this version")
        }
        Failure::Internal(text) => (Code::Unknown, text),
    }
}

fn refusal(error: keyspace::Error) -> (Code, &'static str) {
    use keyspace::Error;
    match error {
        Error::EmptyKey => (Code::InvalidArgument, "etcdserver: key is not provided"),
        Error::KeyNotFound => (Code::InvalidArgument, "etcdserver: key not found"),
        Error::ValueProvided => (Code::InvalidArgument, "etcdserver: value is provided"),
        Error::LeaseProvided => (Code::InvalidArgument, "etcdserver: lease is provided"),
        Error::TooManyOps => (Code::InvalidArgument, "etcdserver: too many operations in txn request"),
        Error::DuplicateKey => (Code::InvalidArgument, "etcdserver: duplicate key given in txn request"),
        Error::InvalidSortOption => (Code::InvalidArgument, "etcdserver: invalid sort option"),
        Error::Compacted => (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted"),
        Error::FutureRevision => {
            (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision")
        }
        Error::NoSpace => (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
        Error::LeaseNotFound => (Code::NotFound, "etcdserver: requested lease not found"),
        Error::LeaseExists => (Code::FailedPrecondition, "etcdserver: lease already exists"),
        Error::LeaseTtlTooLarge => (Code::OutOfRange, "etcdserver: too large lease TTL"),
        Error::Corrupt => (Code::DataLoss, "etcdserver: corrupt cluster"),
        Error::NotReadOnly => (Code::Unknown, "gaios: a transaction that writes was sent as a query"),
        // The three about sessions never reach a client: the carrier turns them into a retry or a timeout.
        Error::SessionExpired | Error::ResultForgotten | Error::SessionWindowExceeded => {
            (Code::Unavailable, "etcdserver: request timed out")
        }
    }
}

/// A status from a row of the table.
pub fn status((code, text): (Code, &'static str)) -> Status {
    Status::new(code, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(failure: Failure, code: Code, text: &str) {
        let status = Status::from(failure);
        assert_eq!((status.code(), status.message()), (code, text));
    }

    #[test]
    fn texts_are_etcds() {
        check(
            Failure::Refused(keyspace::Error::Compacted),
            Code::OutOfRange,
            "etcdserver: mvcc: required revision has been compacted",
        );
        check(
            Failure::Refused(keyspace::Error::LeaseNotFound),
            Code::NotFound,
            "etcdserver: requested lease not found",
        );
        check(Failure::Overloaded, Code::Unknown, "etcdserver: too many requests");
        check(Failure::TooLarge, Code::InvalidArgument, "etcdserver: request is too large");
        check(Failure::TimedOut, Code::Unavailable, "etcdserver: request timed out");
    }

    #[test]
    fn what_clients_retry_blindly_was_not_applied() {
        // clientv3 sends a write again only when it is provably unsent; a proxy of ours may when the class says so.
        assert_eq!(Failure::TimedOut.retry_class(), RetryClass::OutcomeUnknown);
        assert_eq!(Failure::Overloaded.retry_class(), RetryClass::Safe);
        assert_eq!(Failure::Refused(keyspace::Error::NoSpace).retry_class(), RetryClass::Never);
    }
}
