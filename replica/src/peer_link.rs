//! A link of a pair of nodes while it is up: what comes in goes to the liveness and to the groups.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use consensus_core::{GroupId, LivenessMessage, Message, NodeId, Timing};
use group_core::{Event, entries};
use keyspace::ClusterVersion;
use tls::Stream;
use tokio::io::AsyncRead;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::budget::Whose;
use crate::clock;
use crate::distrust::Distrust;
use crate::frames::connect;
use crate::outbox::Outbox;
use crate::patience::Patient;
use crate::peer::Peer;
use crate::reader::FrameReader;
use crate::shared::Shared;
use crate::snapshot;
use crate::wire::{FRAME_BYTES_MAX, PeerFrame, Purpose, Room};

/// Bytes that may wait for one peer. Beyond, messages are dropped, and repeated by the engine when it matters.
const OUTBOX_BYTES: usize = 32 << 20;

/// A link on which nothing is heard for this many times [`Timing::election`] is given up, though never sooner than after
/// [`SILENCE_MIN`]. Heartbeats flow all the time, so silence is a fault; and after a fault a new connection carries at
/// once, while the old one waits for its next retransmission, as long again as the fault has lasted.
const SILENCE_ELECTIONS: u32 = 4;
const SILENCE_MIN: Duration = Duration::from_secs(2);

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
                shared.liveness.peer_process_gone(peer.id);
            }
        }
        Purpose::Snapshot(group) => tokio::select! {
            () = snapshot::receive(Arc::clone(shared), group, peer, stream) => {}
            () = dismissed.cancelled() => {}
        },
    }
}

/// Serves an established link until either side ends it; returns why it ended.
pub(crate) async fn run(
    shared: &Arc<Shared>,
    peer: &Arc<Peer>,
    stream: Stream,
    dismissed: &CancellationToken,
) -> String {
    let (incarnation, support) = peer.incarnation_and_support();
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
    let mut frames = FrameReader::new(read, FRAME_BYTES_MAX, Whose::Peer, &shared.budget);
    while let Some(frame) = frames.next().await? {
        let size = frame.len();
        match PeerFrame::decode(frame).map_err(io::Error::other)? {
            PeerFrame::Liveness(message) => {
                if !take_heartbeat(shared, from, incarnation, support, message) {
                    return Err(io::Error::other("a heartbeat of another incarnation than linked"));
                }
            }
            PeerFrame::Group(group, message) => take_message(shared, from, group, message, size),
            PeerFrame::SnapshotRequest(group, at_least) => {
                if let Some(group) = shared.groups.get(group) {
                    group.tell(Event::SnapshotRequested { by: from, at_least });
                }
            }
            PeerFrame::Disk(room) => {
                let full = match room {
                    Room::None => true,
                    Room::Some => false,
                };
                // One that is lost is said again, or holds for `timing.election` at most.
                for group in shared.groups.all().values() {
                    group.tell_if_room(Event::PeerDisk { node: from, full }, size);
                }
            }
            PeerFrame::DigestAsked(group, slot) => {
                if let Some(group) = shared.groups.get(group) {
                    group.tell_if_room(Event::DigestAsked { by: from, slot }, size);
                }
            }
            PeerFrame::Digest(group, slot, digest) => {
                if let Some(group) = shared.groups.get(group) {
                    group.tell_if_room(Event::DigestTold { by: from, slot, digest }, size);
                }
            }
            PeerFrame::VersionAsked(group) => {
                if let Some(group) = shared.groups.get(group) {
                    group.tell_if_room(Event::VersionAsked { by: from }, size);
                }
            }
            PeerFrame::Version(group, newest) => {
                if let Some(group) = shared.groups.get(group) {
                    group.tell_if_room(Event::VersionTold { by: from, newest }, size);
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

fn take_message(shared: &Shared, from: NodeId, group: GroupId, message: Message, bytes: usize) {
    if let Err(unreadable) = entries::check_message(ClusterVersion::NEWEST, &message) {
        shared.distrusts.report(from, Some(group), Distrust::Entry, &unreadable);
        return;
    }
    if let Some(group) = shared.groups.get(group) {
        // A message dropped here is one lost on the way: the engine repeats what matters.
        group.tell_if_room(Event::Peer { from, message }, bytes);
    }
}

/// A heartbeat or an answer to one, on a link that was made with this incarnation of its node, which supports others for
/// so long; false if it is of another.
pub(crate) fn take_heartbeat(
    shared: &Shared,
    from: NodeId,
    incarnation: u64,
    support: Option<Duration>,
    message: LivenessMessage,
) -> bool {
    let spoken = match &message {
        LivenessMessage::Heartbeat(heartbeat) => heartbeat.epoch.incarnation,
        LivenessMessage::HeartbeatAck(ack) => ack.incarnation,
    };
    if spoken != incarnation {
        shared.distrusts.report(
            from,
            None,
            Distrust::Incarnation,
            &format_args!("incarnation {spoken}, linked in incarnation {incarnation}"),
        );
        return false;
    }
    if let LivenessMessage::HeartbeatAck(ack) = &message {
        shared.metrics.round_trip(from, clock::now().since(ack.sent_at));
    }
    shared.liveness.step(|liveness, now| liveness.receive(now, from, support, message));
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_judged_by_the_clusters_own_times() {
        let default = Timing::default();
        assert_eq!(silence(&default), SILENCE_MIN);
        let far = Timing { election: Duration::from_secs(3), ..default };
        assert_eq!(silence(&far), Duration::from_secs(12));
    }
}
