//! The nouns of the protocol. One word for one thing; see the table in `message.rs` for the papers' names.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

/// A replica process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodeId(pub u32);

/// A consensus group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GroupId(pub u64);

/// A position in a group's log, from 1. `Slot(0)` is "before the log".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Slot(pub u64);

impl Slot {
    /// The slot after this one.
    #[must_use]
    pub fn next(self) -> Slot {
        Slot(self.0 + 1)
    }
}

/// Nanoseconds on a monotonic clock that counts suspend (CLOCK_BOOTTIME), from an origin of the node's own.
/// `std::time::Instant` stops while a machine sleeps, and would let a lease outlive its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mono(pub u64);

impl Mono {
    /// `self + duration`, at most the end of time.
    #[must_use]
    pub fn after(self, duration: Duration) -> Mono {
        Mono(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// The time from `earlier` to `self`, zero when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Mono) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Numbers a group's durable writes in order, from 1. A message gated on `PersistSeq(0)` waits for nothing.
/// Every durable promise has its own number, so nothing reasons about "the current tail of the log".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PersistSeq(pub u64);

/// Chosen by whoever asks for something, and handed back with the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tag(pub u64);

/// An unbroken stretch of one node's support for another (Cockroach's store liveness). Owned by the node that is
/// supported; a lapse ends it for good, and all that was granted under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch {
    /// Which incarnation of the supported node.
    pub incarnation: u64,
    /// Counts the lapses within that incarnation.
    pub count: u64,
}

/// Names a leadership, as a term does in Raft: owned by the node that runs with it, never reused after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ballot {
    /// Grows with every attempt to lead; etcd clients see it as `raft_term`.
    pub round: u64,
    /// Who leads with it; breaks ties.
    pub node: NodeId,
}

/// How values are proposed. A ballot owns one round of each kind (Lamport, Fast Paxos): `(b, Fast) < (b, Classic)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Kind {
    /// Proposers send to the acceptors directly.
    Fast = 0,
    /// Only the leader proposes.
    #[default]
    Classic = 1,
}

/// What votes are cast at: a round of Fast Paxos, whose number is a ballot and a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct VoteBallot {
    /// Whose round.
    pub ballot: Ballot,
    /// Which of the ballot's two.
    pub kind: Kind,
}

impl VoteBallot {
    /// Where only the leader of `ballot` proposes.
    #[must_use]
    pub fn classic(ballot: Ballot) -> VoteBallot {
        VoteBallot { ballot, kind: Kind::Classic }
    }
}

/// What a slot of the log can hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// Fills a slot that nobody proposed for.
    Noop,
    /// Commands in the order in which they take effect. What they mean is the state machine's business.
    Batch(Arc<[Bytes]>),
}

impl Value {
    /// Bytes of payload, for limits on memory and on what is in flight.
    #[must_use]
    pub fn size(&self) -> usize {
        match self {
            Value::Noop => 16,
            Value::Batch(commands) => commands.iter().map(|command| command.len() + 16).sum(),
        }
    }
}

/// An acceptor's latest vote for a slot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Vote {
    /// What it was cast at.
    pub vote_ballot: VoteBallot,
    /// The value voted for; `None` when the disk lost the payload but the fact of the vote is known. At a classic
    /// ballot the ballot alone identifies the value, since only its leader proposes, and proposes one per slot.
    pub value: Option<Value>,
}
