//! What one attempt of a request at one replica came to. Whoever reads frames says it; everybody else decides by it.

use keyspace::Error;

use crate::route::NodeId;

/// What an attempt came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attempted<T> {
    /// The link broke, or was given up, before an answer came: it may have been applied.
    Lost,
    /// It was not handed to a link: certainly not applied.
    Unsent(Unsent),
    /// The replica did not carry it out.
    Refused(Refused),
    /// The state machine refused it: the same on every replica.
    Denied(Error),
    /// What came cannot be an answer to what was asked.
    Protocol(&'static str),
    /// The answer.
    Answer(T),
}

/// Why a request was not handed to a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsent {
    /// The connection is down.
    Down,
    /// Too much waits there.
    Full,
}

/// A replica's refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The reason.
    pub why: Why,
    /// The round that the replica is in.
    pub term: u64,
    /// Who leads, as far as the replica knows.
    pub leader: Option<NodeId>,
}

/// Why a replica refuses; `Refused.Why` of the link protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It does not lead; certainly not applied.
    NotLeader,
    /// Its node has no replica of the group; certainly not applied.
    NoGroup,
    /// Too much waits there; certainly not applied.
    Overloaded,
    /// It lost its leadership meanwhile: it may have been applied.
    OutcomeUnknown,
    /// The node's disk is full or fenced; certainly not applied.
    NoDisk,
    /// It could not be read; certainly not applied.
    Malformed,
    /// The node is stopping; certainly not applied.
    Stopping,
    /// The answer is larger than a frame may be.
    AnswerTooLarge,
    /// The gateway's own: it has no memory for the answer. A write was applied.
    NoRoom,
    /// The group's shards do not hold what was asked for, or not since the map by which it was sent; certainly not applied.
    WrongShard,
    /// A reason that this version does not know.
    Unknown,
}

impl<T> Attempted<T> {
    /// The same, of another answer.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Attempted<U> {
        match self {
            Attempted::Answer(answer) => Attempted::Answer(change(answer)),
            Attempted::Lost => Attempted::Lost,
            Attempted::Unsent(unsent) => Attempted::Unsent(unsent),
            Attempted::Refused(refused) => Attempted::Refused(refused),
            Attempted::Denied(error) => Attempted::Denied(error),
            Attempted::Protocol(text) => Attempted::Protocol(text),
        }
    }

    /// The answer, where nothing else matters.
    pub fn answer(self) -> Option<T> {
        if let Attempted::Answer(answer) = self { Some(answer) } else { None }
    }

    /// Whether it was said by the replica: it lives.
    pub fn is_of_replica(&self) -> bool {
        match self {
            Attempted::Lost | Attempted::Unsent(_) => false,
            Attempted::Refused(_) | Attempted::Denied(_) | Attempted::Protocol(_) | Attempted::Answer(_) => {
                true
            }
        }
    }

    /// Whether it says something about who leads, or about the session.
    pub fn teaches(&self) -> bool {
        match self {
            Attempted::Refused(_) | Attempted::Denied(Error::SessionExpired) => true,
            Attempted::Lost
            | Attempted::Unsent(_)
            | Attempted::Denied(_)
            | Attempted::Protocol(_)
            | Attempted::Answer(_) => false,
        }
    }
}
