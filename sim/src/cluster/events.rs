//! What may happen, to whom: the simulation is one heap of these, in true time.

use std::time::Duration;

use api::gaios::link::v1 as wire;
use api::gaios::link::v1::response::Kind;
use bytes::Bytes;
use consensus_core::{LivenessMessage, Message, NodeId, Slot};
use gateway_core::watch::{Create, Frame};
use gateway_core::{Failure, Flow, Kept};
use group_core::{Progress, ToPeer};
use keyspace::{Op, Query, SessionId};

use super::clock::Time;
use super::commands::{Change, Write, Written};

/// Something that will happen.
#[derive(Debug)]
pub(crate) enum Event {
    /// To the process on a node; for one start of it, or whichever is there.
    Node { node: usize, start: Option<u64>, event: Box<NodeEvent> },
    /// The node's process starts.
    Start { node: usize },
    /// The process of this start, without a place, asks the others who it is.
    Ask { node: usize, start: u64 },
    /// The process ends: killed, or with its machine.
    Stop { node: usize, start: u64, power: bool },
    /// A client hears from a node.
    Answer { client: usize, operation: u64, attempt: u32, node: usize, answer: Answer },
    /// A client does the next thing.
    Client { client: usize, operation: u64, attempt: u32, timer: Timer },
    /// A watcher opens its watch, or looks after it.
    Watcher { watcher: usize, attempt: u32 },
    /// A watcher is told something.
    WatchTold { watcher: usize, attempt: u32, kind: Box<Kind> },
    /// A gateway's process starts.
    GatewayStart { gateway: usize },
    /// To the process of a gateway, in this incarnation.
    Gateway { gateway: usize, incarnation: u64, event: Box<GatewayEvent> },
    /// A client speaks to whatever process is there.
    ToGateway { gateway: usize, event: Box<GatewayEvent> },
    /// A client of gateways does the next thing.
    Caller { caller: usize },
    /// It is answered; or its gateway is gone. `numbers`: what a write was sent under.
    CallAnswered {
        caller: usize,
        operation: u64,
        result: Option<Result<Granted, Failure>>,
        numbers: Vec<SentUnder>,
    },
    /// A listener opens its stream, or looks after it.
    Listener { listener: usize, connection: u64 },
    /// Its stream is told something.
    StreamTold { stream: usize, connection: u64, told: Told },
    /// Trouble with a gateway.
    GatewayFault,
    /// Trouble.
    Fault,
    /// The end of a partition.
    EndPartition(u64),
    /// The disk has room again.
    EndFull { node: usize },
    /// All trouble ends.
    Heal,
    /// Is everything as it should be after all trouble has ended?
    Settled,
}

/// What happens to a process.
#[derive(Debug)]
pub(crate) enum NodeEvent {
    Message {
        from: usize,
        incarnation: u64,
        group: usize,
        message: Message,
    },
    Liveness {
        from: usize,
        /// How long the sender supports others, as it says when the two meet.
        support: Duration,
        message: LivenessMessage,
    },
    Request(Request),
    /// A gateway dials.
    Dialled(u64),
    /// A gateway's requests.
    GatewayFrame {
        connection: u64,
        frame: wire::GatewayFrame,
    },
    /// A gateway's connection is closed.
    GatewayGone(u64),
    /// A gateway's connection takes another part of an answer.
    NextPart(u64),
    /// It hears of a domain's shard map.
    Map {
        domain: usize,
        map: usize,
    },
    /// Of a watcher.
    Watch {
        watcher: usize,
        attempt: u32,
        group: usize,
        call: WatchCall,
    },
    /// A peer's port refuses connections.
    Disconnected(usize),
    /// Heartbeats, lapses.
    Tick,
    /// A group's timer.
    Timer(usize),
    /// A group takes up what has come in.
    Turn(usize),
    /// The sync is over.
    Synced,
    /// The disk may have room again.
    RetryFlush,
    /// The journal is fenced: the groups hear of it.
    Fenced,
    /// How far the own snapshot is.
    Snapshot {
        group: usize,
        progress: Progress,
    },
    /// A peer says whether its disk is full.
    PeerDisk {
        from: usize,
        full: bool,
    },
    /// A peer's replica says something that is no message of its engine.
    FromPeer {
        from: usize,
        group: usize,
        what: ToPeer,
    },
    /// An own snapshot's last bytes are written.
    SnapshotWritten {
        group: usize,
        slot: Slot,
    },
    /// A peer's snapshot has come in.
    SnapshotArrived(Box<HandOver>),
    /// The end of a hand-over.
    SnapshotSent {
        group: usize,
        to: usize,
        number: u64,
    },
    Transfer {
        group: usize,
        to: NodeId,
    },
    /// It is about to stop.
    Retire,
    SnapshotWanted(usize),
    Pause(Time),
    Resume,
    /// The group stops for so long at its next input.
    Stall {
        group: usize,
        before_step: bool,
        time: Time,
    },
    /// Power goes out during the next sync.
    CutAtFlush,
    /// The next sync takes so long.
    StallDisk(Time),
}

/// A snapshot on its way to a peer.
#[derive(Debug)]
pub(crate) struct HandOver {
    pub(crate) from: usize,
    /// Which start of the sender's process.
    pub(crate) start: u64,
    /// Numbers the hand-overs of that process.
    pub(crate) number: u64,
    pub(crate) group: usize,
    pub(crate) slot: Slot,
    pub(crate) meta: Bytes,
    pub(crate) slices: Vec<Bytes>,
}

/// What a watcher wants of a node.
#[derive(Clone, Debug)]
pub(crate) enum WatchCall {
    /// With another one beside it on the same link, of a key that nobody writes.
    Open {
        watch: Box<wire::WatchOpen>,
        quiet: Box<wire::WatchOpen>,
    },
    Credit(u64),
    /// How far the watch has come.
    Sync,
    /// Its link is gone.
    Gone,
}

/// Why a client is woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// To ask, or to begin the next operation.
    Ask,
    /// The attempt has taken too long.
    Patience,
}

/// What a client asks a node for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) client: u32,
    pub(crate) operation: u64,
    pub(crate) attempt: u32,
    pub(crate) group: usize,
    pub(crate) action: Action,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Action {
    /// A session, by a number of the client's own.
    Open(u64),
    Write(SessionId, Write),
    Read(u8),
    /// Everything else; by the client's own number of it.
    Change(SessionId, u32, Change),
    /// Keys that are no registers: those of one of the group's shards, or all.
    Scan {
        serializable: bool,
        part: u8,
    },
    KeepAlive,
}

/// What a node says.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer {
    Opened(SessionId),
    Written(Written),
    Value {
        value: u64,
        /// Served under the leader lease.
        leased: bool,
    },
    /// As it should be: what was answered is checked where it comes from.
    Done,
    /// Not done, nor will it be under this number.
    Misrouted,
    /// Not done; somebody else may lead.
    Refused(Option<usize>),
    /// Perhaps done.
    Unknown,
}

/// What happens to a gateway's process.
#[derive(Debug)]
pub(crate) enum GatewayEvent {
    /// A node's machine has accepted the connection.
    Connected(u64),
    /// The node has welcomed us; its shard maps, by domain.
    Welcomed {
        connection: u64,
        maps: Vec<Bytes>,
    },
    /// There is no connection to be had.
    Refused(u64),
    Frame {
        connection: u64,
        responses: Vec<wire::Response>,
    },
    /// The connection is gone.
    Down(u64),
    /// The link takes what has gathered.
    Flush(u64),
    /// Some time has come.
    Wake,
    /// It is time to look at the health of links.
    Health,
    Call(Call),
    /// A client waits no more for the answer to its request.
    GiveUp {
        caller: usize,
        operation: u64,
    },
    Stream(ToStream),
}

/// What a client asks of a gateway's domain.
#[derive(Clone, Debug)]
pub(crate) enum What {
    Write(Op),
    /// At the leader, or at any replica that has come to a revision.
    Read {
        query: Query,
        serializable: Option<i64>,
    },
    KeepAlive(i64),
}

/// A client's request.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) caller: usize,
    pub(crate) operation: u64,
    /// Whose keys it concerns.
    pub(crate) group: usize,
    pub(crate) what: What,
    /// Whose it is, and how urgent.
    pub(crate) flow: Flow,
    /// Until it is given up.
    pub(crate) timeout: Time,
}

/// A number that a write was sent under, of a session in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SentUnder {
    pub(crate) group: usize,
    pub(crate) session: SessionId,
    pub(crate) seq: u64,
}

/// What a client is granted.
#[derive(Debug)]
pub(crate) enum Granted {
    Answer(gateway_core::Answer),
    Kept(Kept),
}

/// What a client's stream tells its gateway.
#[derive(Debug)]
pub(crate) struct ToStream {
    pub(crate) stream: usize,
    /// Numbers the streams that a client opens.
    pub(crate) connection: u64,
    pub(crate) what: ToWatchers,
}

#[derive(Debug)]
pub(crate) enum ToWatchers {
    /// Opens the stream, for watches of a group.
    Open {
        group: usize,
    },
    Create(Box<Create>),
    Cancel(i64),
    /// How far have you told me everything?
    Progress,
    /// The client has read so many responses.
    Read(usize),
    /// The client goes away.
    Close,
}

/// What a client's stream is told.
#[derive(Debug)]
pub(crate) enum Told {
    Frame(Box<Frame>),
    /// The gateway is gone.
    Broken,
}
