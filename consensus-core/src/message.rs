//! Every message of the protocol. The table is the index; a message's doc says who sends it to whom, and when.
//!
//! | message | from → to | meaning | in the papers |
//! | --- | --- | --- | --- |
//! | [`PreVote`] | would-be leader → voters | "would you follow me?" Changes nothing | Ongaro §9.6 PreVote |
//! | [`PreVoteReply`] | voter → would-be leader | yes, or no with the reason | – |
//! | [`Prepare`] | candidate → voters | asks for a promise, for all slots at once | Paxos 1a |
//! | [`Promise`] | voter → candidate | promised, and what was voted for before | Paxos 1b |
//! | [`Nack`] | voter → candidate or leader | promised to somebody else already | – |
//! | [`Accept`] | leader → members | vote for these values; those up to `commit` are facts | Paxos 2a |
//! | [`Accepted`] | member → leader | voted up to here, and who holds a lease from me | Paxos 2b |
//! | [`Commit`] | leader → members | committed up to here | Paxos "learn" |
//! | [`Fortify`] | leader → voters | count my lease in this group under this epoch of support | quorum leases: promise |
//! | [`Fortified`] | voter → leader | done; the floor for reads under it | quorum leases: promise reply |
//! | [`ReadIndex`] | leader → voters | "do I still lead?" for a batch of reads | Ongaro §6.4 |
//! | [`ReadIndexReply`] | voter → leader | yes | – |
//! | [`Fetch`] | member that lacks committed values → member | asks for them | – |
//! | [`Chosen`] | member → who fetched | committed values | Paxos "learn" |
//! | [`Handoff`] | leader → its successor | run for leader now | Ongaro §3.10 TimeoutNow |
//! | [`Resigned`] | former leader → members | nobody leads at this ballot | – |
//! | [`Recall`] | member with a damaged disk → members | "what have you promised, and how far did you propose?" | – |
//! | [`Recalled`] | member → member with a damaged disk | the answer | – |
//! | [`Vouched`] | survivor → member with a damaged disk | "never mind how many have forgotten: the operator has decided" | – |
//! | [`Heartbeat`] | node → node | "I live, I hear these nodes; support me" | store liveness |
//! | [`HeartbeatAck`] | node → node | heard; supported, or need another epoch | store liveness |
//!
//! Numbers on the wire are never reused. 32 to 47 are kept for fast rounds (`OpenFast`, `FastPropose`, `FastVote`,
//! `FastReject`, `FastNudge`), 48 to 55 for quorum reads.

use smallvec::SmallVec;

use crate::{Ballot, Epoch, Mono, NodeId, NodeSet, Slot, Value, Vote};

/// Values by slot, ascending. One fits without an allocation.
pub type Entries = SmallVec<[(Slot, Value); 1]>;

/// A message of one group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each variant is documented on its struct")]
pub enum Message {
    PreVote(PreVote),
    PreVoteReply(PreVoteReply),
    Prepare(Prepare),
    Promise(Promise),
    Nack(Nack),
    Accept(Accept),
    Accepted(Accepted),
    Commit(Commit),
    Fortify(Fortify),
    Fortified(Fortified),
    ReadIndex(ReadIndex),
    ReadIndexReply(ReadIndexReply),
    Fetch(Fetch),
    Chosen(Chosen),
    Handoff(Handoff),
    Resigned(Resigned),
    Recall(Recall),
    Recalled(Recalled),
    Vouched(Vouched),
}

/// Would-be leader → voters, before it disturbs anybody with a higher ballot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PreVote {
    /// The ballot it would run with.
    pub ballot: Ballot,
    /// How far it knows the log to be committed.
    pub commit: Slot,
    /// The epoch of the configuration it runs under.
    pub config_epoch: u64,
}

/// Voter → would-be leader: the answer to [`PreVote`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PreVoteReply {
    /// Echoed.
    pub ballot: Ballot,
    /// No live leader that reaches a quorum is known here, and the asker is not far behind.
    pub granted: bool,
    /// The highest promise given here.
    pub promised: Ballot,
    /// How far the voter knows the log to be committed.
    pub commit: Slot,
    /// Whom the voter follows.
    pub leader: Option<Ballot>,
}

/// Candidate → voters: phase 1a, for every slot from `from` on. Leaves after its own promise is durable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Prepare {
    /// The ballot it runs with.
    pub ballot: Ballot,
    /// The first slot it does not know to be committed.
    pub from: Slot,
    /// The epoch of the configuration it runs under.
    pub config_epoch: u64,
}

/// Voter → candidate: phase 1b. Leaves after the promise is durable. Large ones travel in parts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Promise {
    /// Echoed.
    pub ballot: Ballot,
    /// Votes for slots from the candidate's `from` on, ascending. Those at slots up to `commit` are committed
    /// values, and are left out when they are many.
    pub votes: Vec<(Slot, Vote)>,
    /// Every slot up to here is committed.
    pub commit: Slot,
    /// The highest slot with a vote or a committed value.
    pub max_voted: Slot,
    /// Votes from here on may have been forgotten: this voter does not count for phase 1 of those slots.
    pub faulty_from: Option<Slot>,
    /// Which part this is, from 0.
    pub part: u32,
    /// How many parts there are, at least 1.
    pub parts: u32,
}

/// Voter → candidate or leader: it promised a higher ballot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Nack {
    /// The ballot refused.
    pub ballot: Ballot,
    /// The highest promise given here.
    pub promised: Ballot,
    /// The epoch of the configuration known here.
    pub config_epoch: u64,
    /// Whom the voter follows.
    pub leader: Option<Ballot>,
}

/// Leader → members: phase 2a. Waits for nothing, the leader's own disk included. Without entries it asks for a
/// fresh [`Accepted`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Accept {
    /// The leader's.
    pub ballot: Ballot,
    /// Every slot up to here is committed. Entries at such slots are committed values, not proposals.
    pub commit: Slot,
    /// What to vote for, ascending by slot.
    pub entries: Entries,
}

/// Member → leader: phase 2b, cumulative. Leaves after all votes it speaks of are durable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Accepted {
    /// Echoed.
    pub ballot: Ballot,
    /// Every slot up to here is known to be committed, or has a vote at exactly this ballot.
    pub upto: Slot,
    /// Every slot up to here is known to be committed.
    pub commit: Slot,
    /// The highest slot with a vote at any ballot.
    pub max_voted: Slot,
    /// Who held a lease from this member when the last of these votes was staged.
    pub grants: NodeSet,
}

/// Leader → members, when it has nothing else to tell the commit index with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Commit {
    /// The leader's.
    pub ballot: Ballot,
    /// Every slot up to here is committed.
    pub commit: Slot,
}

/// Leader → voters, once per epoch of support: name me in your votes while you support me.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fortify {
    /// The leader's; `None` from a holder that does not lead.
    pub ballot: Option<Ballot>,
    /// The epoch of the configuration the lease is for.
    pub config_epoch: u64,
    /// The stretch of support the lease lives under.
    pub epoch: Epoch,
}

/// Voter → lease holder: the answer to [`Fortify`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fortified {
    /// Echoed.
    pub ballot: Option<Ballot>,
    /// Echoed.
    pub config_epoch: u64,
    /// Echoed.
    pub epoch: Epoch,
    /// The floor: a read under this lease must see every slot up to here.
    pub max_voted: Slot,
}

/// Leader → voters: a round of read-index, for all reads that wait.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReadIndex {
    /// The leader's.
    pub ballot: Ballot,
    /// Numbers the rounds at this ballot.
    pub round: u64,
}

/// Voter → leader: at the time of [`ReadIndex`] it had promised nobody else.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReadIndexReply {
    /// Echoed.
    pub ballot: Ballot,
    /// Echoed.
    pub round: u64,
}

/// Member → member: send me the committed values of these slots.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fetch {
    /// The first slot wanted.
    pub from: Slot,
    /// The last slot wanted.
    pub upto: Slot,
}

/// Member → member: committed values, the answer to [`Fetch`]. True whatever the ballot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Chosen {
    /// Every slot up to here is committed.
    pub commit: Slot,
    /// As many of the values asked for as fit, ascending by slot.
    pub entries: Entries,
}

/// Leader → the member it hands leadership to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Handoff {
    /// The ballot whose leadership ends.
    pub ballot: Ballot,
}

/// Former leader → members: it stepped down on its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Resigned {
    /// The ballot whose leadership ended.
    pub ballot: Ballot,
}

/// Member whose disk may have forgotten a vote or a promise → members. See [`crate::Durable::lost`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Recall {
    /// The asker's incarnation, so that an answer from before its restart is known as such.
    pub incarnation: u64,
    /// Counts its questions: answers to older ones count no more.
    pub question: u64,
}

/// Member → who asked [`Recall`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Recalled {
    /// Echoed.
    pub incarnation: u64,
    /// Echoed.
    pub question: u64,
    /// The highest promise given here; `None` from one that may have forgotten it, too.
    pub promised: Option<Ballot>,
    /// When the answerer leads at `promised`: the last slot it has proposed at.
    pub proposed: Option<Slot>,
}

/// Survivor → who asked [`Recall`], after its answer: the operator has declared that what the survivor holds is what there
/// is, see [`crate::Durable::survive`]. A peer that does not know this message ends the link; it needs an update first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Vouched {
    /// Echoed.
    pub incarnation: u64,
}

/// A message between two nodes, for all their groups.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each variant is documented on its struct")]
pub enum LivenessMessage {
    Heartbeat(Heartbeat),
    HeartbeatAck(HeartbeatAck),
}

/// Node → node, every `Timing::heartbeat`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Heartbeat {
    /// The sender's incarnation and the stretch of support it asks for.
    pub epoch: Epoch,
    /// The sender's clock when it sent this; echoed, and read by the sender alone.
    pub sent_at: Mono,
    /// The incarnation of the receiver that the sender knows of; 0 for none.
    pub receiver_incarnation: u64,
    /// False while the sender's disk makes no progress: it may not hold leases nor lead.
    pub wants_support: bool,
    /// Nodes that answered a heartbeat of the sender lately, ascending.
    pub hears: Vec<NodeId>,
}

/// Node → node, at once for each [`Heartbeat`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeartbeatAck {
    /// Echoed.
    pub sent_at: Mono,
    /// The incarnation of the node that answers.
    pub incarnation: u64,
    /// The epoch that was asked for.
    pub epoch: Epoch,
    /// Supported under `epoch` from the receipt on, for `Timing::support` by the answerer's clock.
    pub granted: bool,
    /// The lowest epoch that can be supported.
    pub required: Epoch,
}

/// Slots from here on come from no healthy peer: at a million a second they take 146,000 years.
const SLOT_MAX: u64 = 1 << 62;
/// Nor do rounds. Which of those below are believed depends on what is known, see `engine/bounds.rs`.
pub(crate) const ROUND_MAX: u64 = 1 << 62;

const _: () =
    assert!(SLOT_MAX <= u64::MAX / 2 && ROUND_MAX <= u64::MAX / 2, "sums of two of them are numbers");

impl Message {
    /// Whether the numbers are such that arithmetic on them is safe. What they claim is for the engine to judge.
    pub(crate) fn is_plausible(&self) -> bool {
        let slot = |slot: Slot| slot.0 < SLOT_MAX;
        let ballot = |ballot: Ballot| ballot.round < ROUND_MAX;
        let entries = |entries: &Entries| entries.iter().all(|(at, _)| at.0 > 0 && slot(*at));
        match self {
            Message::PreVote(m) => ballot(m.ballot) && slot(m.commit),
            Message::PreVoteReply(m) => {
                ballot(m.ballot) && ballot(m.promised) && slot(m.commit) && m.leader.is_none_or(ballot)
            }
            Message::Prepare(m) => ballot(m.ballot) && m.from.0 > 0 && slot(m.from),
            Message::Promise(m) => {
                ballot(m.ballot)
                    && slot(m.commit)
                    && slot(m.max_voted)
                    && m.votes
                        .iter()
                        .all(|(at, vote)| at.0 > 0 && slot(*at) && ballot(vote.vote_ballot.ballot))
            }
            Message::Nack(m) => ballot(m.ballot) && ballot(m.promised) && m.leader.is_none_or(ballot),
            Message::Accept(m) => ballot(m.ballot) && slot(m.commit) && entries(&m.entries),
            Message::Accepted(m) => ballot(m.ballot) && slot(m.upto) && slot(m.commit) && slot(m.max_voted),
            Message::Commit(m) => ballot(m.ballot) && slot(m.commit),
            Message::Fortify(m) => m.ballot.is_none_or(ballot),
            Message::Fortified(m) => m.ballot.is_none_or(ballot) && slot(m.max_voted),
            Message::ReadIndex(m) => ballot(m.ballot),
            Message::ReadIndexReply(m) => ballot(m.ballot),
            Message::Fetch(m) => m.from.0 > 0 && slot(m.from) && slot(m.upto),
            Message::Chosen(m) => slot(m.commit) && entries(&m.entries),
            Message::Handoff(m) => ballot(m.ballot),
            Message::Resigned(m) => ballot(m.ballot),
            Message::Recall(_) | Message::Vouched(_) => true,
            Message::Recalled(m) => m.promised.is_none_or(ballot) && m.proposed.is_none_or(slot),
        }
    }

    /// The highest round that the message speaks of as its own, or as promised.
    pub(crate) fn highest_round(&self) -> Option<u64> {
        let (ballot, others) = match self {
            Message::PreVote(m) => (Some(m.ballot), [None; 2]),
            Message::PreVoteReply(m) => (Some(m.ballot), [Some(m.promised), m.leader]),
            Message::Prepare(m) => (Some(m.ballot), [None; 2]),
            Message::Promise(m) => (Some(m.ballot), [None; 2]),
            Message::Nack(m) => (Some(m.ballot), [Some(m.promised), m.leader]),
            Message::Accept(m) => (Some(m.ballot), [None; 2]),
            Message::Accepted(m) => (Some(m.ballot), [None; 2]),
            Message::Commit(m) => (Some(m.ballot), [None; 2]),
            Message::Fortify(m) => (m.ballot, [None; 2]),
            Message::Fortified(m) => (m.ballot, [None; 2]),
            Message::ReadIndex(m) => (Some(m.ballot), [None; 2]),
            Message::ReadIndexReply(m) => (Some(m.ballot), [None; 2]),
            Message::Fetch(_) | Message::Chosen(_) | Message::Recall(_) | Message::Vouched(_) => {
                (None, [None; 2])
            }
            Message::Handoff(m) => (Some(m.ballot), [None; 2]),
            Message::Resigned(m) => (Some(m.ballot), [None; 2]),
            Message::Recalled(m) => (m.promised, [None; 2]),
        };
        ballot.into_iter().chain(others.into_iter().flatten()).map(|ballot| ballot.round).max()
    }
}
