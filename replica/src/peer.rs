//! The persistent link of a pair of nodes: one TCP connection for all their groups, dialled by the node with the higher
//! id, and redialled with full-jitter back-off. What cannot be sent is dropped: the engine repeats what matters.

use std::io;
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use backoff::Backoff;
use bytes::{Bytes, BytesMut};
use consensus_core::{GroupId, LivenessMessage, Message, NodeId, NodeStatus, Slot, Timing};
use discovery::Discovery;
use futures::StreamExt;
use group_core::Event;
use parking_lot::Mutex;
use thiserror::Error;
use tls::Stream;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::hello;
use crate::node::Shared;
use crate::outbox::Outbox;
use crate::patience::Patient;
use crate::wire::{self, Frames, PeerFrame, Purpose, Room};

/// Bytes that may wait for one peer. Beyond, messages are dropped, and repeated by the engine when it matters.
const OUTBOX_BYTES: usize = 32 << 20;

/// For connecting and for the first frame of the other side.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);

/// A link on which nothing is heard for this many times [`Timing::election`] is given up, though never sooner than after
/// [`SILENCE_MIN`]. Heartbeats flow all the time, so silence is a fault; and after a fault a new connection carries at
/// once, while the old one waits for its next retransmission, as long again as the fault has lasted.
const SILENCE_ELECTIONS: u32 = 4;
const SILENCE_MIN: Duration = Duration::from_secs(2);

const BACKOFF_FIRST: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// A link that lives so long is a good one. A peer that does not know this node ends it at once.
const SETTLED_AFTER: Duration = Duration::from_secs(1);

/// A peer's process, by its hello.
#[derive(Debug, Clone, Copy)]
struct Linked {
    incarnation: u64,
    nonce: u64,
    support: Option<Duration>,
}

/// Another node, as seen from here.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) id: NodeId,
    /// As configured; a name is resolved when it is dialled.
    pub(crate) address: String,
    /// The connection's way out; `None` while there is none.
    outbox: Mutex<Option<Arc<Outbox>>>,
    /// The process that a link was made with last.
    linked_with: Mutex<Option<Linked>>,
    /// Held while it is asked whether a caller is its process.
    pub(crate) call_back: tokio::sync::Mutex<()>,
    /// Which frames it knows, by its last hello.
    knows: Mutex<Option<Frames>>,
    /// What was told of how long it supports others, if that is another time than this node's.
    told_support: Mutex<Option<Option<Duration>>>,
}

impl Peer {
    pub(crate) fn new(id: NodeId, address: String) -> Self {
        Peer {
            id,
            address,
            outbox: Mutex::new(None),
            linked_with: Mutex::new(None),
            call_back: tokio::sync::Mutex::default(),
            knows: Mutex::new(None),
            told_support: Mutex::new(None),
        }
    }

    pub(crate) fn is_linked(&self) -> bool {
        self.outbox.lock().is_some()
    }

    pub(crate) fn life_linked_with(&self) -> u64 {
        self.linked_with.lock().map_or(0, |linked| linked.incarnation)
    }

    /// A link is made with this incarnation and process of it, which supports others for so long.
    pub(crate) fn linked_with(&self, incarnation: u64, nonce: u64, support: Option<Duration>) {
        *self.linked_with.lock() = Some(Linked { incarnation, nonce, support });
    }

    pub(crate) fn was_linked_with(&self, incarnation: u64, process: u64) -> bool {
        self.linked_with
            .lock()
            .is_some_and(|linked| (linked.incarnation, linked.nonce) == (incarnation, process))
    }

    /// The process in this incarnation that a link was made with; 0 for none.
    pub(crate) fn process_in(&self, incarnation: u64) -> u64 {
        self.linked_with
            .lock()
            .filter(|linked| linked.incarnation == incarnation)
            .map_or(0, |linked| linked.nonce)
    }

    pub(crate) fn send_liveness(&self, message: &LivenessMessage) {
        self.send(|out| wire::encode_liveness(message, out));
    }

    pub(crate) fn send_group(&self, group: GroupId, message: &Message) {
        self.send(|out| wire::encode_group(group, message, out));
    }

    pub(crate) fn send_snapshot_request(&self, group: GroupId, at_least: Slot) {
        self.send(|out| wire::encode_snapshot_request(group, at_least, out));
    }

    /// It has said which frames it knows.
    pub(crate) fn knows(&self, frames: Frames) {
        *self.knows.lock() = Some(frames);
    }

    /// For frames that a peer of an older version does not know.
    fn knows_disk_and_digests(&self) -> bool {
        self.knows.lock().is_some_and(Frames::with_disk_and_digests)
    }

    pub(crate) fn send_disk(&self, room: Room) {
        if self.knows_disk_and_digests() {
            self.send(|out| wire::encode_disk(room, out));
        }
    }

    pub(crate) fn send_digest_asked(&self, group: GroupId, slot: Slot) {
        if self.knows_disk_and_digests() {
            self.send(|out| wire::encode_digest_asked(group, slot, out));
        }
    }

    pub(crate) fn send_digest(&self, group: GroupId, slot: Slot, digest: u64) {
        if self.knows_disk_and_digests() {
            self.send(|out| wire::encode_digest(group, slot, digest, out));
        }
    }

    /// What there is to tell of how long it supports others, if that is not told yet.
    pub(crate) fn support_news(&self, own: Duration, support: Option<Duration>) -> bool {
        let differs = Some(support).filter(|support| *support != Some(own));
        mem::replace(&mut *self.told_support.lock(), differs) != differs && differs.is_some()
    }

    fn send(&self, encode: impl FnOnce(&mut BytesMut)) {
        let outbox = self.outbox.lock().clone();
        if let Some(outbox) = outbox
            && outbox.push(encode).is_err()
        {
            debug!(peer = self.id.0, "dropped a message: the link is full or closing");
        }
    }

    /// Makes `outbox` the way to this peer; an older connection ends.
    fn attach(&self, outbox: &Arc<Outbox>) {
        if let Some(old) = self.outbox.lock().replace(Arc::clone(outbox)) {
            old.close();
        }
    }

    fn detach(&self, outbox: &Arc<Outbox>) {
        outbox.close();
        let mut current = self.outbox.lock();
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, outbox)) {
            *current = None;
        }
    }
}

/// Why an attempt to link made no link.
#[derive(Debug, Error)]
pub(crate) enum NoLink {
    #[error("cannot reach it: {0}")]
    Unreachable(io::Error),
    /// Reached, and what is there does not want us, or we do not want it.
    #[error("{0}")]
    Refused(String),
    /// Ended before it had proved good: whoever does not know us does that, and whoever was about to stop.
    #[error("{0}")]
    Brief(String),
    /// It has no place in the cluster yet, and may be waiting for this very node.
    #[error("it has no place in the cluster yet")]
    Newcomer,
}

impl NoLink {
    /// The error may vary while a peer cannot be reached; a refusal is told by its reason.
    fn is_same(&self, other: &NoLink) -> bool {
        match (self, other) {
            (NoLink::Unreachable(_), NoLink::Unreachable(_)) | (NoLink::Newcomer, NoLink::Newcomer) => true,
            (NoLink::Refused(one), NoLink::Refused(other)) => one == other,
            (NoLink::Brief(one), NoLink::Brief(other)) => one == other,
            (NoLink::Unreachable(_) | NoLink::Refused(_) | NoLink::Brief(_) | NoLink::Newcomer, _) => false,
        }
    }
}

/// What the dialler knows from its attempts since the last good link.
pub(crate) struct Redial {
    backoff: Backoff,
    /// What was told of the outage.
    told: Option<NoLink>,
    /// A link was brief.
    brief_before: bool,
}

impl Redial {
    pub(crate) fn new() -> Redial {
        Redial { backoff: Backoff::new(BACKOFF_FIRST, BACKOFF_MAX), told: None, brief_before: false }
    }

    /// A link has proved good. Returns whether this ends an outage that was told.
    fn settled(&mut self) -> bool {
        self.backoff.reset();
        self.brief_before = false;
        self.told.take().is_some()
    }

    /// Whether `why` is to be told; then it counts as told.
    fn is_news(&mut self, why: NoLink) -> bool {
        // One is what an ordinary restart of the peer looks like.
        if matches!(why, NoLink::Brief(_)) && !mem::replace(&mut self.brief_before, true) {
            return false;
        }
        let news = !self.told.as_ref().is_some_and(|told| told.is_same(&why));
        self.told = Some(why);
        news
    }

    /// Once per outage, and again when its reason changes.
    pub(crate) fn tell(&mut self, peer: &Peer, why: NoLink) {
        let (what, error) = match &why {
            NoLink::Unreachable(error) => (
                "cannot reach a peer: if it is up, check the addresses in the configuration",
                error.to_string(),
            ),
            NoLink::Refused(reason) | NoLink::Brief(reason) => {
                ("no link with what answers at a peer's address", reason.clone())
            }
            NoLink::Newcomer => {
                debug!(peer = peer.id.0, address = peer.address, "the peer has no place in the cluster yet");
                return;
            }
        };
        if self.is_news(why) {
            warn!(peer = peer.id.0, address = peer.address, error, "{what}");
        } else {
            debug!(peer = peer.id.0, address = peer.address, error, "{what}");
        }
    }

    /// The pause before the next attempt, by a random number.
    pub(crate) fn next_pause(&mut self, random: u32) -> Duration {
        self.backoff.next(random)
    }
}

/// Keeps the link to a peer that this node dials, until the node stops.
pub(crate) async fn dial(shared: Arc<Shared>, peer: Arc<Peer>) {
    let mut redial = Redial::new();
    while !shared.stopped.is_cancelled() {
        let link = async {
            shared.seat.back().await;
            dial_once(&shared, &peer, &mut redial).await
        };
        let linked = tokio::select! {
            () = shared.stopped.cancelled() => return,
            linked = link => linked,
        };
        if shared.stopped.is_cancelled() {
            return;
        }
        if let Err(why) = linked {
            // A newcomer's former process is as gone as one whose port refuses.
            let gone = match &why {
                NoLink::Unreachable(error) => error.kind() == io::ErrorKind::ConnectionRefused,
                NoLink::Newcomer => true,
                NoLink::Refused(_) | NoLink::Brief(_) => false,
            };
            if gone {
                shared.peer_process_gone(peer.id);
            }
            redial.tell(&peer, why);
        }
        let pause = redial.next_pause(shared.random_u32());
        tokio::select! {
            () = shared.stopped.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Links, and serves the link until it ends; an error if there was none, or none that lasted.
async fn dial_once(shared: &Arc<Shared>, peer: &Arc<Peer>, redial: &mut Redial) -> Result<(), NoLink> {
    let (stream, answer) = hello::call(shared, peer, Purpose::Link).await?;
    if matches!(answer.status, NodeStatus::Newcomer { .. }) {
        return Err(NoLink::Newcomer);
    }
    peer.linked_with(answer.incarnation, answer.nonce, answer.support);
    peer.knows(answer.knows);
    shared.compare_support(peer, answer.support);
    // In an outage, links that come and go would fill the log.
    if redial.told.is_none() {
        info!(peer = peer.id.0, "link up");
    }
    let kept = CancellationToken::new();
    let mut link = pin!(run(shared, peer, stream, &kept));
    tokio::select! {
        reason = link.as_mut() => {
            return Err(NoLink::Brief(format!(
                "links end at once ({reason}): check that this node is in the peer's configuration"
            )));
        }
        () = tokio::time::sleep(SETTLED_AFTER) => {}
    }
    if redial.settled() {
        info!(peer = peer.id.0, address = peer.address, "linked again");
    }
    let reason = link.await;
    info!(peer = peer.id.0, reason, "link down");
    Ok(())
}

/// A newcomer asks who it is.
pub(crate) async fn ask_once(shared: &Shared, peer: &Peer) -> Result<NodeStatus, NoLink> {
    let (_, answer) = hello::call(shared, peer, Purpose::Ask).await?;
    if answer.taken {
        let taken =
            "it is linked with another process of this node: stop that one, or give this one another id";
        return Err(NoLink::Refused(taken.to_owned()));
    }
    Ok(answer.status)
}

pub(crate) async fn connect(discovery: &Discovery, address: &str) -> io::Result<TcpStream> {
    let stream = timeout(HANDSHAKE_TIMEOUT, discovery.connect(address)).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Serves a peer's connection after its hello, until it is dismissed at the latest.
pub(crate) async fn serve(
    shared: &Arc<Shared>,
    peer: Arc<Peer>,
    purpose: Purpose,
    stream: Stream,
    dismissed: &CancellationToken,
) {
    match purpose {
        Purpose::Ask | Purpose::Confirm => {}
        Purpose::Link => {
            info!(peer = peer.id.0, "link up");
            let reason = run(shared, &peer, stream, dismissed).await;
            info!(peer = peer.id.0, reason, "link down");
            // The dialler is the one who knows at once whether the other process is gone; here a probe has to tell.
            if !shared.stopped.is_cancelled()
                && let Err(error) = connect(&shared.discovery, &peer.address).await
                && error.kind() == io::ErrorKind::ConnectionRefused
            {
                shared.peer_process_gone(peer.id);
            }
        }
        Purpose::Snapshot(group) => tokio::select! {
            () = crate::snapshot::receive(Arc::clone(shared), group, peer, stream) => {}
            () = dismissed.cancelled() => {}
        },
    }
}

/// Serves an established link until either side ends it; returns why it ended.
async fn run(
    shared: &Arc<Shared>,
    peer: &Arc<Peer>,
    stream: Stream,
    dismissed: &CancellationToken,
) -> String {
    let linked = *peer.linked_with.lock();
    let (incarnation, support) = linked.map_or((0, None), |linked| (linked.incarnation, linked.support));
    let (read, write) = stream.into_split();
    let read = Patient::new(read, silence(&shared.timing));
    let outbox = Arc::new(Outbox::new(OUTBOX_BYTES, OUTBOX_BYTES));
    peer.attach(&outbox);
    let reason = tokio::select! {
        result = outbox.run(write) => match result {
            Ok(()) => "replaced".to_owned(),
            Err(error) => error.to_string(),
        },
        result = read_frames(shared, peer.id, incarnation, support, read) => match result {
            Ok(()) => "closed by the peer".to_owned(),
            Err(error) => error.to_string(),
        },
        () = dismissed.cancelled() => "there are too many connections of this peer".to_owned(),
        _ = shared.seat.stepped_aside() => "this node has stepped aside".to_owned(),
        () = shared.stopped.cancelled() => "stopping".to_owned(),
    };
    peer.detach(&outbox);
    reason
}

fn silence(timing: &Timing) -> Duration {
    (timing.election * SILENCE_ELECTIONS).max(timing.heartbeat * SILENCE_ELECTIONS).max(SILENCE_MIN)
}

async fn read_frames(
    shared: &Arc<Shared>,
    from: NodeId,
    incarnation: u64,
    support: Option<Duration>,
    read: impl AsyncRead + Unpin,
) -> io::Result<()> {
    let mut frames = FramedRead::with_capacity(read, codec(), 64 << 10);
    while let Some(frame) = frames.next().await {
        let frame = frame?.freeze();
        let size = frame.len();
        match PeerFrame::decode(frame).map_err(io::Error::other)? {
            PeerFrame::Liveness(message) => {
                if !shared.on_liveness(from, incarnation, support, message) {
                    return Err(io::Error::other("a heartbeat of another incarnation than linked"));
                }
            }
            PeerFrame::Group(group, message) => shared.on_group_message(from, group, message, size),
            PeerFrame::SnapshotRequest(group, at_least) => {
                if let Some(group) = shared.group(group) {
                    group.tell(Event::SnapshotRequested { by: from, at_least });
                }
            }
            PeerFrame::Disk(room) => {
                let full = match room {
                    Room::None => true,
                    Room::Some => false,
                };
                // One that is lost is said again, or holds for `timing.election` at most.
                for group in shared.groups() {
                    group.tell_if_room(Event::PeerDisk { node: from, full }, size);
                }
            }
            PeerFrame::DigestAsked(group, slot) => {
                if let Some(group) = shared.group(group) {
                    group.tell_if_room(Event::DigestAsked { by: from, slot }, size);
                }
            }
            PeerFrame::Digest(group, slot, digest) => {
                if let Some(group) = shared.group(group) {
                    group.tell_if_room(Event::DigestTold { by: from, slot, digest }, size);
                }
            }
            PeerFrame::SnapshotBegin { .. }
            | PeerFrame::SnapshotSlice(_)
            | PeerFrame::SnapshotEnd
            | PeerFrame::SnapshotInstalled => {
                return Err(io::Error::other("a snapshot's frame on a link"));
            }
        }
    }
    Ok(())
}

pub(crate) fn codec() -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().max_frame_length(wire::FRAME_BYTES_MAX).new_codec()
}

pub(crate) async fn write_frame(stream: &mut (impl AsyncWrite + Unpin), body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    let mut frame = Vec::with_capacity(body.len() + 4);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(body);
    stream.write_all(&frame).await
}

/// Reads one frame and not a byte more, for handshakes.
pub(crate) async fn read_frame(stream: &mut (impl AsyncRead + Unpin), max: usize) -> io::Result<Bytes> {
    use tokio::io::AsyncReadExt;
    let length = stream.read_u32().await? as usize;
    if length > max {
        // The beginning of a TLS record: a handshake, or an alert.
        let what = if matches!(length >> 16, 0x1603 | 0x1503) {
            "it speaks TLS, and this node has no `link_tls`".to_owned()
        } else {
            format!("a first frame of {length} bytes: not our protocol")
        };
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(body.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hello::write_hello;
    use crate::node::Node;
    use crate::testing::{CLUSTER, PATIENCE, options, take_place};
    use crate::wire::PeerHello;
    use tokio::net::TcpListener;

    /// The other end of a link: takes the hello, and answers it.
    async fn answer(listener: &TcpListener, answer: impl FnOnce(PeerHello) -> PeerHello) -> TcpStream {
        let (mut stream, _) = listener.accept().await.unwrap();
        let hello = PeerHello::decode(&read_frame(&mut stream, 1024).await.unwrap()).unwrap();
        let answer = PeerHello { from: hello.to, to: hello.from, ..answer(hello) };
        write_hello(&mut stream, &answer).await.unwrap();
        stream
    }

    /// Says no more after its hello.
    async fn answer_and_fall_silent(listener: &TcpListener) -> TcpStream {
        answer(listener, |hello| {
            assert_eq!((hello.cluster, hello.from, hello.to), (CLUSTER, NodeId(2), NodeId(1)));
            let status = NodeStatus::Placed { known_as: None, incarnation_heard: 0 };
            PeerHello { incarnation: 1, nonce: 1, status, ..hello }
        })
        .await
    }

    #[tokio::test]
    async fn a_link_to_a_silent_peer_is_cut_and_dialled_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let dir = tempfile::tempdir().unwrap();
        take_place(NodeId(2), dir.path());
        let node = Node::start(options(NodeId(2), &[(NodeId(1), address)], dir.path())).await.unwrap();
        let silent = answer_and_fall_silent(&listener).await;
        let again = timeout(PATIENCE, answer_and_fall_silent(&listener)).await.expect("it dials again");
        drop((silent, again));
        node.stop().await;
    }

    #[tokio::test]
    async fn a_peer_that_hangs_up_at_once_has_refused_and_is_not_dialled_faster_for_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let dir = tempfile::tempdir().unwrap();
        take_place(NodeId(1), dir.path());
        let node =
            Node::start(options(NodeId(1), &[(NodeId(2), address.clone())], dir.path())).await.unwrap();
        let shared = Arc::clone(&node.shared);
        // The node with the higher id dials; this one does so here only.
        let peer = Arc::new(Peer::new(NodeId(2), address));
        let hang_up = async || drop(answer(&listener, |hello| hello).await);
        let mut redial = Redial::new();
        for attempt in 0..3 {
            let (ended, ()) = tokio::join!(dial_once(&shared, &peer, &mut redial), hang_up());
            let why = ended.unwrap_err();
            assert!(
                matches!(&why, NoLink::Brief(reason) if reason.contains("closed by the peer")),
                "{why:?}"
            );
            assert_eq!(redial.is_news(why), attempt == 1, "told once, if it was not the only one");
            assert_eq!(redial.next_pause(u32::MAX), BACKOFF_FIRST * 2_u32.pow(attempt));
        }
        node.stop().await;
    }

    #[tokio::test]
    async fn no_link_is_made_with_an_old_copy_of_a_node() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let dir = tempfile::tempdir().unwrap();
        take_place(NodeId(1), dir.path());
        let node =
            Node::start(options(NodeId(1), &[(NodeId(2), address.clone())], dir.path())).await.unwrap();
        let shared = Arc::clone(&node.shared);
        let peer = Arc::new(Peer::new(NodeId(2), address));
        let answer = async |incarnation, nonce, incarnation_heard, nonce_heard| {
            let status = NodeStatus::Placed { known_as: None, incarnation_heard };
            let as_it_is = |hello| PeerHello { incarnation, nonce, nonce_heard, status, ..hello };
            drop(answer(&listener, as_it_is).await);
        };
        let mut redial = Redial::new();
        let old = |why: &NoLink, who: &str| match why {
            NoLink::Refused(reason) => reason.contains("old copy") && reason.contains(who),
            NoLink::Unreachable(_) | NoLink::Brief(_) | NoLink::Newcomer => false,
        };
        let heartbeat = LivenessMessage::Heartbeat(consensus_core::message::Heartbeat {
            epoch: consensus_core::Epoch { incarnation: 6, count: 1 },
            sent_at: consensus_core::Mono(0),
            receiver_incarnation: 1,
            wants_support: true,
            hears: Vec::new(),
        });
        shared.on_liveness(NodeId(2), 6, None, heartbeat);
        let (ended, ()) = tokio::join!(dial_once(&shared, &peer, &mut redial), answer(5, 7, 1, 0));
        let why = ended.unwrap_err();
        assert!(old(&why, "node 2 is in incarnation 5, and another process in incarnation 6"), "{why:?}");

        // In the same incarnation, but another process.
        let known = shared.peers.get(&NodeId(2)).unwrap();
        known.linked_with(6, 7, None);
        let (ended, ()) = tokio::join!(dial_once(&shared, &peer, &mut redial), answer(6, 8, 1, 0));
        let why = ended.unwrap_err();
        assert!(old(&why, "node 2 is in incarnation 6, and another process in incarnation 6"), "{why:?}");
        assert!(!shared.seat.is_revoked());

        // An incarnation that has linked, and has not been heard yet, may not be given out again.
        known.linked_with(9, 7, None);
        let heard = NodeStatus::Placed { known_as: None, incarnation_heard: 9 };
        assert_eq!(shared.node_status(NodeId(2)), heard);
        known.linked_with(6, 7, None);

        // It is this node which is in incarnation 1 twice.
        let (ended, ()) = tokio::join!(dial_once(&shared, &peer, &mut redial), answer(6, 7, 1, 8));
        let why = ended.unwrap_err();
        assert!(old(&why, "this node"), "{why:?}");
        assert!(node.health().check().unwrap_err().contains("takes no part"));
        assert!(!shared.seat.is_revoked(), "on one word");
        node.stop().await;
    }

    #[test]
    fn an_outage_is_told_once_and_again_when_its_reason_changes() {
        let unreachable = |kind: io::ErrorKind| NoLink::Unreachable(kind.into());
        let refused = |reason: &str| NoLink::Refused(reason.to_owned());
        let brief = || NoLink::Brief("closed by the peer".to_owned());
        let mut redial = Redial::new();
        assert!(!redial.settled(), "the first link ends no outage");
        let attempts = [
            (unreachable(io::ErrorKind::ConnectionRefused), true),
            (unreachable(io::ErrorKind::ConnectionRefused), false),
            (unreachable(io::ErrorKind::TimedOut), false),
            (refused("another cluster"), true),
            (refused("another cluster"), false),
            (refused("another node"), true),
            (unreachable(io::ErrorKind::TimedOut), true),
            // As when the peer stops and starts.
            (brief(), false),
            (unreachable(io::ErrorKind::TimedOut), false),
            (brief(), true),
            (brief(), false),
        ];
        for (why, news) in attempts {
            let shown = format!("{why:?}");
            assert_eq!(redial.is_news(why), news, "{shown}");
            redial.next_pause(u32::MAX);
        }
        assert_eq!(redial.next_pause(u32::MAX), BACKOFF_MAX);
        assert!(redial.settled());
        assert!(!redial.settled());
        assert!(!redial.is_news(brief()), "the peer may be stopping");
        assert!(!redial.settled(), "nothing was told");
        assert_eq!(redial.next_pause(u32::MAX), BACKOFF_FIRST);
        assert!(redial.is_news(unreachable(io::ErrorKind::TimedOut)), "the next outage is told again");
    }

    #[test]
    fn silence_is_judged_by_the_clusters_own_times() {
        let default = Timing::default();
        assert_eq!(silence(&default), SILENCE_MIN);
        let far = Timing { election: Duration::from_secs(3), ..default };
        assert_eq!(silence(&far), Duration::from_secs(12));
    }
}
