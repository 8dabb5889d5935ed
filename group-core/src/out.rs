//! What a replica wants done.

use std::sync::Arc;

use api::gaios::link::v1 as wire;
use bytes::Bytes;
use consensus_core::{Ballot, Config, NodeId, NodeSet, PersistSeq, Record, Role, Send, Slot, Suspicion};
use journal::Lsn;
use keyspace::{ClusterVersion, Gathered};

use crate::env::LinkId;

/// What a step wants done. Whoever carries it out empties it.
#[derive(Debug, Default)]
pub struct Out {
    /// Messages to peers. One with a gate waits until that record is durable; those without should leave before the records
    /// are handed on.
    pub sends: Vec<Send>,
    /// For the journal, as one batch, under the number of the last one. When it takes none: [`crate::Event::PersistFailed`].
    pub records: Vec<(PersistSeq, Record)>,
    /// The replica has something to do as soon as this record is durable. Of others it may hear with the next event.
    pub await_durable: Option<PersistSeq>,
    /// The journal need not keep for this group what lies before.
    pub floor: Option<Lsn>,
    /// What is no message of the engine's.
    pub to_peers: Vec<(NodeId, ToPeer)>,
    /// For gateways, each a frame of answers.
    pub answers: Vec<Answer>,
    /// Answers that take long to encode and to send ([`crate::Turns`]): not on this task.
    pub large: Vec<LargeAnswer>,
    /// In this order.
    pub snapshots: Vec<ToSnapshots>,
    /// For the log, and for the node.
    pub notices: Vec<Notice>,
}

impl Out {
    /// Whether there is something for gateways.
    #[must_use]
    pub fn has_answers(&self) -> bool {
        !self.answers.is_empty() || !self.large.is_empty()
    }

    /// Moves everything to `other`, behind what it holds.
    pub(crate) fn move_to(&mut self, other: &mut Out) {
        let Out { sends, records, await_durable, floor, to_peers, answers, large, snapshots, notices } = self;
        other.sends.append(sends);
        other.records.append(records);
        other.await_durable = await_durable.take().or(other.await_durable);
        other.floor = floor.take().or(other.floor);
        other.to_peers.append(to_peers);
        other.answers.append(answers);
        other.large.append(large);
        other.snapshots.append(snapshots);
        other.notices.append(notices);
    }
}

/// One frame to a gateway.
#[derive(Debug, PartialEq)]
pub struct Answer {
    /// Whose.
    pub link: LinkId,
    /// In this order.
    pub responses: Vec<wire::Response>,
}

/// An answer that is sent in parts. Until it is handed to the link, there is no room for another
/// ([`crate::Links::has_room_for_large`]).
#[derive(Debug)]
pub struct LargeAnswer {
    /// Whose.
    pub link: LinkId,
    /// The request's number.
    pub request: u64,
    /// etcd's raft_term.
    pub term: u64,
    /// What to put together and encode. Keys and values are shared, not copied.
    pub gathered: Gathered,
}

/// To another node, beside the engine's messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToPeer {
    /// What is your digest at this slot?
    DigestAsked(Slot),
    /// It is this.
    Digest(Slot, u64),
    /// Send me a snapshot at this slot or later.
    SnapshotRequest(Slot),
    /// Which cluster version is the newest that you know?
    VersionAsked,
    /// It is this.
    Version(ClusterVersion),
}

/// What is to be done with snapshots. One is written at a time; a new one begun, or a peer's received, ends the one before.
#[derive(Debug)]
pub enum ToSnapshots {
    /// Begin the file of this one.
    Begin {
        /// The last slot applied to the state.
        slot: Slot,
        /// What governs the slots above it.
        config: Arc<Config>,
    },
    /// The next slice. Each is answered by [`crate::Progress::Room`].
    Slice(Bytes),
    /// That was all: make it durable.
    Finish,
    /// It is of no use any more.
    Abandon,
    /// Hand the snapshot taken at `slot` over to `to`, and tell when that has ended.
    Send {
        /// A peer.
        to: NodeId,
        /// Which snapshot.
        slot: Slot,
    },
}

/// Something that operators are told; the node acts on a few.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are named after what they are")]
pub enum Notice {
    /// Another role, ballot or leader.
    Role { role: Role, ballot: Ballot, leader: Option<NodeId> },
    /// The node stops, and its leader gives way.
    HandingOver { to: NodeId },
    /// The leader's disk is full; another's may not be.
    HandingOverFull { to: NodeId },
    /// There is a voter in a better region.
    HandingOverPlace { to: NodeId },
    /// An operator wants it.
    HandingOverAsked { to: NodeId },
    /// Leadership was not handed over.
    TransferAborted { to: NodeId },
    /// Writes are refused, since so many disks are full that nothing can be made durable.
    DisksFull { nodes: NodeSet },
    /// Writes are taken again.
    DisksHaveRoom,
    /// This node holds something else than the others.
    Differs { node: NodeId },
    /// So many leases have come to their end.
    LeasesExpired { count: usize },
    /// A peer's snapshot has replaced the state.
    SnapshotInstalled { slot: Slot },
    /// A snapshot is being taken.
    SnapshotBegun { slot: Slot },
    /// It is durable.
    SnapshotDurable { slot: Slot },
    /// The journal has failed: the replica takes no part until the node is restarted.
    Fenced,
    /// A damaged entry was repaired from a peer.
    PayloadRepaired { slot: Slot },
    /// Everything the disk may have forgotten is made up for.
    Healed,
    /// These have all lost their disks.
    TooManyForgot { nodes: NodeSet },
    /// No leader can come to power, since these have lost what they voted for.
    Blocked { nodes: NodeSet },
    /// What this node holds is what there is.
    Survived,
    /// A peer says what no healthy one says.
    Suspicious { from: NodeId, suspicion: Suspicion },
    /// The disk says that a round was promised which no election explains.
    PromiseDoubtful,
    /// All replicas of the group know this cluster version, and it is in force from now on.
    VersionRaised { version: ClusterVersion },
    /// The snapshot that the journal builds on is missing or damaged: the replica waits for a peer's, of this slot or later.
    NoState { at_least: Slot },
}

/// What has happened to a replica since it began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Commands applied.
    pub commands: u64,
    /// Queries answered.
    pub queries: u64,
    /// Requests that their gateway took back before they were answered.
    pub cancelled: u64,
    /// Requests that were dropped since nobody waited for them any more, by what their gateway had said.
    pub expired: u64,
    /// Commands that certainly did not enter the log.
    pub rejected: u64,
    /// Leaders that came up, as seen here.
    pub leader_changes: u64,
    /// Leases that this replica, as leader, had removed.
    pub leases_expired: u64,
    /// Snapshots made durable.
    pub snapshots_taken: u64,
    /// Snapshots sent to peers, however that went.
    pub snapshots_sent: u64,
}
