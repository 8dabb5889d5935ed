//! What the shell tells an engine, and what an engine tells the shell.

use std::sync::Arc;

use bytes::Bytes;

use crate::{Ballot, Config, Message, NodeId, NodeSet, PersistSeq, Record, Slot, Tag, Value};

/// How a read may be confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReadMode {
    /// Under the leader lease, or by a round of [`ReadMode::Index`] while it is not valid.
    Lease,
    /// By asking a quorum whether this node still leads.
    Index,
}

/// What the shell tells the engine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// A message of this group from a peer.
    Message {
        /// Who sent it.
        from: NodeId,
        /// What it says.
        message: Message,
    },
    /// A command for the log. The answer is its appearance in [`Output::committed`], or [`Output::rejected`].
    Propose {
        /// Comes back if the command is rejected.
        tag: Tag,
        /// What it means is the state machine's business.
        command: Bytes,
    },
    /// A linearizable read. The answer is in [`Output::reads`].
    Read {
        /// Comes back with the answer.
        tag: Tag,
        /// How it may be confirmed.
        mode: ReadMode,
    },
    /// All records up to this one are durable.
    Persisted(PersistSeq),
    /// A write or sync of the journal failed. What the disk holds is unknown from here on, so this node neither votes,
    /// leads nor acknowledges again until it restarts.
    PersistFailed,
    /// See [`crate::LivenessEvent`].
    PeerUp(NodeId),
    /// See [`crate::LivenessEvent`].
    PeerDown(NodeId),
    /// See [`crate::LivenessEvent`].
    PeerChanged(NodeId),
    /// The own snapshot of the state up to `slot` is durable: the log below may go, but for what laggards may need. Said
    /// again of the newest, it has the base recorded again, so that the journal before that may go.
    SnapshotDurable {
        /// The last slot in the snapshot.
        slot: Slot,
    },
    /// A peer's snapshot is durable and loaded here.
    SnapshotInstalled {
        /// The last slot in the snapshot.
        slot: Slot,
        /// The configuration of the group.
        config: Arc<Config>,
    },
    /// The hand-over that [`Event::SnapshotNeeded`] asked for broke, or is over: if the peer still lags, because the log
    /// moved on meanwhile or it had no use for what it was sent, it is asked for again.
    SnapshotEnded {
        /// To whom.
        to: NodeId,
    },
    /// Hand leadership over. Ends in [`Event::RoleChanged`] or [`Event::TransferAborted`].
    Transfer {
        /// To whom.
        to: NodeId,
    },
    /// `now` has reached [`crate::Engine::next_deadline`].
    Timeout,
}

/// A message and what it has to wait for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Send {
    /// Must be durable before the message leaves; 0 means at once. See the table at [`Record`].
    pub gate: PersistSeq,
    /// To whom.
    pub to: NodeId,
    /// What.
    pub message: Message,
}

/// The end of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReadOutcome {
    /// Serve it once everything up to this slot is applied.
    At(Slot),
    /// This node does not lead.
    NotLeader {
        /// Who does, as far as is known here.
        hint: Option<NodeId>,
    },
    /// Leadership was lost before the read was confirmed. It may be tried elsewhere.
    Lost,
}

/// Why a command has certainly not entered the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// This node does not lead.
    NotLeader {
        /// Who does, as far as is known here.
        hint: Option<NodeId>,
    },
    /// [`crate::Options::queue_bytes_max`] is reached.
    Overloaded,
    /// The disk of this node failed.
    Fenced,
}

/// What a leader knows of another voter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FollowerStatus {
    /// Which one.
    pub node: NodeId,
    /// It is heard.
    pub up: bool,
    /// It has acknowledged every slot up to here.
    pub matched: Slot,
}

/// What happened, for the shell's information or action.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The role, the ballot it belongs to, or the known leader changed.
    RoleChanged {
        /// What this node is.
        role: Role,
        /// The highest ballot known here.
        ballot: Ballot,
        /// Who leads, as far as is known.
        leader: Option<NodeId>,
    },
    /// This node leads and its first entry is committed: it knows everything that was committed before it.
    LeadershipReady,
    /// `to` needs slots that are no longer kept. The shell sends it a snapshot at `at_least` or later.
    SnapshotNeeded {
        /// Who lags.
        to: NodeId,
        /// The lowest slot that is of use.
        at_least: Slot,
    },
    /// The leadership transfer did not come about; this node goes on leading.
    TransferAborted {
        /// To whom it should have gone.
        to: NodeId,
    },
    /// The disk failed, see [`Input::PersistFailed`].
    Fenced,
    /// A value that the disk had lost is back.
    PayloadRepaired {
        /// Where.
        slot: Slot,
    },
    /// Everything the disk may have forgotten is made up for.
    Healed,
    /// A peer said what no healthy one would. It was not believed.
    Suspicious {
        /// Who.
        from: NodeId,
        /// What.
        suspicion: Suspicion,
    },
    /// What this node has promised is further above what others lead at than any election explains: it takes no part.
    PromiseDoubtful,
    /// No leader can come to power, see [`Status::blocked`].
    Blocked {
        /// Who has forgotten what it voted for; or a value that must be proposed again is lost wherever it was voted for, if
        /// there is nobody.
        nodes: NodeSet,
    },
    /// This node need not stand in for others any more, see [`crate::Durable::survive`].
    Survived,
    /// This node waits until it knows what it promised, and cannot: all of these have forgotten what they did.
    TooManyForgot {
        /// This node included.
        nodes: NodeSet,
    },
}

/// What is wrong with what a peer said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Suspicion {
    /// A round far above all that are known.
    Round,
    /// Another value for a slot than its leader proposed before at the same ballot.
    Contradiction,
    /// A commit index that nobody could back with values.
    Commit,
}

/// What a node is to its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Votes.
    Follower,
    /// Votes and tries to lead.
    Candidate,
    /// Votes and proposes.
    Leader,
}

/// What the shell must do: send what waits for nothing, and append `records` to the journal, in either order; then apply,
/// and answer. Sends with a gate go once the gate is durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// To append to the journal in this order.
    pub records: Vec<(PersistSeq, Record)>,
    /// To send.
    pub sends: Vec<Send>,
    /// To apply: in slot order, without gaps.
    pub committed: Vec<(Slot, Value)>,
    /// Reads that have ended.
    pub reads: Vec<(Tag, ReadOutcome)>,
    /// Commands that have certainly not entered the log.
    pub rejected: Vec<(Tag, Rejection)>,
    /// The rest.
    pub events: Vec<Event>,
}

impl Output {
    /// Empties every list and keeps its memory.
    pub fn clear(&mut self) {
        self.records.clear();
        self.sends.clear();
        self.committed.clear();
        self.reads.clear();
        self.rejected.clear();
        self.events.clear();
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
            && self.sends.is_empty()
            && self.committed.is_empty()
            && self.reads.is_empty()
            && self.rejected.is_empty()
            && self.events.is_empty()
    }
}

/// A view from outside, for metrics, status pages and tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// What this node is.
    pub role: Role,
    /// Who leads, as far as is known here.
    pub leader: Option<NodeId>,
    /// The highest ballot known here. Its round is what etcd calls the term.
    pub ballot: Ballot,
    /// The highest promise given.
    pub promised: Ballot,
    /// Whether this node leads and knows everything committed before it.
    pub ready: bool,
    /// To whom this node, which leads, is handing its leadership.
    pub successor: Option<NodeId>,
    /// Every slot up to here is committed.
    pub commit: Slot,
    /// Every slot up to here is committed, as far as anybody has told: those above `commit` are still on their way.
    pub known_commit: Slot,
    /// The first slot still in memory.
    pub first_kept: Slot,
    /// The highest slot with a vote or committed value.
    pub max_voted: Slot,
    /// The configuration in force.
    pub config: Arc<Config>,
    /// Votes from here on may have been forgotten.
    pub faulty_from: Option<Slot>,
    /// A promise may have been forgotten; the node does not vote.
    pub promise_lost: bool,
    /// No leader can come to power: these have forgotten what they voted for, and no quorum is left without them.
    pub blocked: Option<NodeSet>,
    /// Slots above the snapshot whose value the disk has lost.
    pub lost_payloads: u64,
    /// The disk failed.
    pub fenced: bool,
    /// Commands that wait for room in the pipeline.
    pub queued: usize,
    /// Slots proposed and not committed.
    pub inflight: u64,
}
