//! What can happen to a replica.

use std::sync::Arc;

use api::gaios::link::v1 as wire;
use consensus_core::{Config, LivenessEvent, Message, NodeId, PersistSeq, Slot};
use journal::Lsn;
use keyspace::{ClusterVersion, Keyspace};

use crate::env::LinkId;

/// Everything that can happen to a replica.
#[derive(Debug)]
pub enum Event {
    /// A peer's replica sent a message, whose entries were read ([`crate::entries::check_message`]).
    Peer {
        /// Whose.
        from: NodeId,
        /// What it says.
        message: Message,
    },
    /// A gateway sent requests.
    Requests {
        /// Where answers go.
        link: LinkId,
        /// In the order in which they came.
        requests: Vec<wire::Request>,
    },
    /// A gateway's link is gone, and its watches with it.
    LinkClosed(LinkId),
    /// A link has room for answers again.
    LinkDrained,
    /// Records up to this number are durable.
    Persisted {
        /// The last of its batch.
        upto: PersistSeq,
        /// Where that one lies.
        lsn: Lsn,
    },
    /// The journal takes nothing any more.
    PersistFailed,
    /// A peer lives, or not any more.
    Liveness(LivenessEvent),
    /// A peer says whether its disk is full. One that is says so again with every heartbeat.
    PeerDisk {
        /// Whose.
        node: NodeId,
        /// It has no room.
        full: bool,
    },
    /// How far the snapshot that is being taken has come.
    Snapshot(Progress),
    /// A peer's snapshot is durable here; the state it holds replaces ours.
    SnapshotReceived {
        /// The last slot applied to it.
        slot: Slot,
        /// What governs the slots above it.
        config: Arc<Config>,
        /// What it holds.
        state: Box<Keyspace>,
    },
    /// A peer has lost its own snapshot and cannot start without one.
    SnapshotRequested {
        /// Who.
        by: NodeId,
        /// It needs one at this slot or later.
        at_least: Slot,
    },
    /// The own snapshot of this slot cannot be read any more.
    SnapshotLost {
        /// The slot it was taken at.
        slot: Slot,
    },
    /// The hand-over of a snapshot is over, however it went.
    SnapshotSent {
        /// To whom.
        to: NodeId,
    },
    /// The journal wants the group to let go of old segments, which it keeps by its floor.
    SnapshotWanted {
        /// Its floor, as the journal sees it.
        floor: Lsn,
    },
    /// A peer that leads asks for the digest of the state at a slot.
    DigestAsked {
        /// Who.
        by: NodeId,
        /// Of the state with all slots up to this one.
        slot: Slot,
    },
    /// A peer tells its digest.
    DigestTold {
        /// Who.
        by: NodeId,
        /// Of the state with all slots up to this one.
        slot: Slot,
        /// The digest.
        digest: u64,
    },
    /// A peer that leads asks which cluster version is the newest that this node knows.
    VersionAsked {
        /// Who.
        by: NodeId,
    },
    /// A peer tells the newest that it knows.
    VersionTold {
        /// Who.
        by: NodeId,
        /// It knows this one and all before.
        newest: ClusterVersion,
    },
    /// The node wants to stop.
    Stop,
}

/// What becomes of a snapshot that is written: see [`crate::ToSnapshots`]. All about the one begun at this slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// A slice was written: there is room for another.
    Room(Slot),
    /// The file is durable under its name.
    Finished(Slot),
    /// It could not be written.
    Failed(Slot),
}
