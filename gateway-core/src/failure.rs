//! Why a request was not granted, for whoever tells the client.

use bytes::Bytes;

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
    /// The client's own deadline passed, and nothing was written.
    DeadlineExceeded,
    /// Too much is waiting.
    Overloaded,
    /// There is no leader, and the caller asked not to wait for one.
    NoLeader,
    /// The nodes' disks are full or fenced.
    NoDisk,
    /// The gateway is stopping.
    Stopping,
    /// The shard was not where the map said; certainly not applied. Whoever routes the request has to do so again.
    WrongShard,
    /// The request touches keys of several shards, which this version does not carry out.
    SpansShards,
    /// Ours.
    Internal(&'static str),
    /// An etcd that carries the domain said so. The client is told the same, unchanged.
    Upstream {
        /// The code of gRPC.
        code: i32,
        /// The text.
        message: String,
        /// `grpc-status-details-bin`, decoded.
        details: Bytes,
    },
}

impl From<keyspace::Error> for Failure {
    fn from(error: keyspace::Error) -> Failure {
        Failure::Refused(error)
    }
}
