//! The one table from what went wrong to etcd's codes and exact texts.
//!
//! Clients convert errors by their text (etcd `api/v3rpc/rpctypes/error.go`), so each is etcd's to the letter.

use gateway_core::Failure;
use tonic::{Code, Status};

/// What the client is told of a failure.
pub(super) fn to_status(failure: impl Into<Failure>) -> Status {
    let failure = failure.into();
    if let Failure::Upstream { code, message, details } = &failure {
        return Status::with_details(Code::from(*code), message, details.clone());
    }
    status(code_and_text(&failure))
}

/// `etcdserver: no leader`, also as the end of streams that asked for a leader.
pub(super) const NO_LEADER: (Code, &str) = (Code::Unavailable, "etcdserver: no leader");
/// Metadata `client-api-version` that is no text.
pub(super) const INVALID_CLIENT_API_VERSION: (Code, &str) =
    (Code::InvalidArgument, "etcdserver: invalid client api version");
/// The table.
pub(crate) fn code_and_text(failure: &Failure) -> (Code, &str) {
    match failure {
        Failure::Refused(error) => refusal(*error),
        Failure::TooLarge => (Code::InvalidArgument, "etcdserver: request is too large"),
        // As grpc-go says it of an answer beyond its own limit, but for the numbers.
        Failure::AnswerTooLarge => refusal(keyspace::Error::AnswerTooLarge),
        Failure::TimedOut => (Code::Unavailable, "etcdserver: request timed out"),
        Failure::TimedOutLeaderFailed => {
            (Code::Unavailable, "etcdserver: request timed out, possibly due to previous leader failure")
        }
        Failure::TimedOutConnectionLost => {
            (Code::Unavailable, "etcdserver: request timed out, possibly due to connection lost")
        }
        Failure::DeadlineExceeded => (Code::DeadlineExceeded, "context deadline exceeded"),
        // etcd maps this error to a client-side value, which reaches the wire as Unknown; its text is what clients read.
        Failure::Overloaded => (Code::Unknown, "etcdserver: too many requests"),
        Failure::NoLeader => NO_LEADER,
        // etcd's nodes stop on a full disk; the nearest it can say is what its quota says.
        Failure::NoDisk => (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
        Failure::Stopping => (Code::Unavailable, "etcdserver: server stopped"),
        // The carrier routes the request again until its time is over.
        Failure::WrongShard => (Code::Unavailable, "etcdserver: request timed out"),
        Failure::SpansShards => {
            (Code::Unimplemented, "gaios: a request over several shards is not supported by this version")
        }
        Failure::Internal(text) => (Code::Unknown, text),
        Failure::Upstream { code, message, details: _ } => (Code::from(*code), message),
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
        // What the gRPC library of etcd says.
        Error::AnswerTooLarge => (Code::ResourceExhausted, "grpc: trying to send message larger than max"),
        // Those that concern gateways never reach a client: the carrier turns them into a retry or a timeout.
        Error::SessionExpired
        | Error::ResultForgotten
        | Error::SessionWindowExceeded
        | Error::RevisionPassed
        | Error::WrongShard => (Code::Unavailable, "etcdserver: request timed out"),
    }
}

/// A status from a row of the table.
pub(super) fn status((code, text): (Code, &str)) -> Status {
    Status::new(code, text)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn check(failure: Failure, code: Code, text: &str) {
        let status = to_status(failure);
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
        check(Failure::DeadlineExceeded, Code::DeadlineExceeded, "context deadline exceeded");
    }

    #[test]
    fn what_an_etcd_says_is_passed_on_unchanged() {
        let details = Bytes::from_static(b"\x08\x05\x00\xff");
        for code in 1..=16 {
            let message = format!("etcdserver: text {code}");
            let failure = Failure::Upstream { code, message: message.clone(), details: details.clone() };
            let status = to_status(failure);
            assert_eq!((i32::from(status.code()), status.message()), (code, message.as_str()));
            assert_eq!(status.details(), details);
        }
    }
}
