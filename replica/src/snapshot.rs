//! Snapshots on their way to a replica that fell behind: on a connection of their own, slice by slice, as fast as the
//! receiver takes them. The receiver verifies and keeps a file before it takes the state over. Both sides end it when
//! the other makes no progress: while a hand-over is under way, no other to the same peer is begun.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use consensus_core::{Config, GroupId, NodeId, NodeSet, Slot};
use group_core::{Event, decode_meta, encode_meta};
use journal::{RealDisk, SnapshotId, SnapshotReader, SnapshotWriter};
use keyspace::{Keyspace, Restore};
use socket2::{SockRef, TcpKeepalive};
use tls::Stream;
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::{info, warn};

use crate::budget::Whose;
use crate::frames::{self, write_frame};
use crate::groups::GroupHandle;
use crate::hello;
use crate::patience::Patient;
use crate::peer::Peer;
use crate::reader::FrameReader;
use crate::shared::Shared;
use crate::wire::{self, PeerFrame, Purpose};

type Failure = Box<dyn StdError + Send + Sync>;

/// How long the other side may neither take nor give a byte in the middle of a hand-over. Its disk may be slow.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the receiver may take to make a received snapshot its own, and for each so many bytes a second more.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(60);
const INSTALL_BYTES_PER_SECOND: u64 = 4 << 20;
/// Nothing flows while the receiver installs. That its machine is gone, or was started again, is found out by asking.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 4;

/// Sends the snapshot `id` to `to`, and tells the group when that is over.
pub(crate) async fn send(shared: Arc<Shared>, group: Arc<GroupHandle>, to: NodeId, id: SnapshotId) {
    let result = tokio::select! {
        result = try_send(&shared, to, id) => result,
        () = shared.stopped.cancelled() => return,
    };
    match result {
        Ok(bytes) => info!(group = id.group, slot = id.slot, to = to.0, bytes, "snapshot sent"),
        Err(error) => {
            warn!(group = id.group, slot = id.slot, to = to.0, %error, "snapshot not sent");
            if error.downcast_ref::<journal::Error>().is_some_and(|error| !error.is_retryable()) {
                group.tell(Event::SnapshotLost { slot: Slot(id.slot) });
            }
        }
    }
    group.tell(Event::SnapshotSent { to });
}

async fn try_send(shared: &Shared, to: NodeId, id: SnapshotId) -> Result<u64, Failure> {
    let peer = shared.peers.get(&to).ok_or("the peer is not configured")?;
    // It is verified first, which takes a while when it is large; the receiver would take that for silence.
    let disk = shared.disk.clone();
    let identity = shared.identity;
    let reader = tokio::task::spawn_blocking(move || SnapshotReader::open(&disk, identity, id)).await??;
    let (stream, _) = hello::call(shared, peer, Purpose::Snapshot(GroupId(id.group))).await?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_AFTER)
        .with_interval(KEEPALIVE_AFTER)
        .with_retries(KEEPALIVE_RETRIES);
    SockRef::from(stream.socket()).set_tcp_keepalive(&keepalive)?;
    hand_over(Arc::new(reader), id, stream).await
}

/// Sends everything, and waits until it is installed.
async fn hand_over(
    reader: Arc<SnapshotReader<RealDisk>>,
    id: SnapshotId,
    stream: impl AsyncRead + AsyncWrite + Unpin,
) -> Result<u64, Failure> {
    let mut stream = Patient::new(stream, PROGRESS_TIMEOUT);
    let mut body = BytesMut::new();
    wire::encode_snapshot_begin(Slot(id.slot), &decode_meta(reader.meta())?, &mut body);
    write_frame(&mut stream, &body).await?;
    for index in 0..reader.slices() {
        let read = Arc::clone(&reader);
        let slice = tokio::task::spawn_blocking(move || read.slice(index)).await??;
        body.clear();
        wire::encode_snapshot_slice(&slice.ok_or("the snapshot's file ends early")?, &mut body);
        write_frame(&mut stream, &body).await?;
    }
    body.clear();
    wire::encode_snapshot_end(&mut body);
    write_frame(&mut stream, &body).await?;
    let size = Duration::from_secs(reader.total_bytes() / INSTALL_BYTES_PER_SECOND);
    stream.expect_within(INSTALL_TIMEOUT + size);
    let answer = frames::read_frame(&mut stream, 1024).await?;
    if let PeerFrame::SnapshotInstalled = PeerFrame::decode(answer)? {
        Ok(reader.total_bytes())
    } else {
        Err("the answer is not that the snapshot is installed".into())
    }
}

/// Takes a snapshot from a peer, keeps it, and hands it to the group.
pub(crate) async fn receive(shared: Arc<Shared>, group: GroupId, peer: Arc<Peer>, mut stream: Stream) {
    let Some(handle) = shared.groups.get(group) else {
        warn!(group = group.0, peer = peer.id.0, "refused a snapshot of a group that is not here");
        return;
    };
    let received = tokio::select! {
        received = try_receive(&shared, &handle, &mut stream) => received,
        () = shared.stopped.cancelled() => return,
    };
    match received {
        Ok((slot, config, state)) => {
            info!(group = group.0, slot = slot.0, from = peer.id.0, "snapshot received");
            handle.tell(Event::SnapshotReceived { slot, config: Arc::new(config), state: Box::new(state) });
            let mut body = BytesMut::new();
            wire::encode_snapshot_installed(&mut body);
            // When the answer gets lost, the sender sees from the group's messages that it has arrived.
            let _ = write_frame(&mut stream, &body).await;
        }
        Err(error) => warn!(group = group.0, from = peer.id.0, %error, "snapshot not received"),
    }
}

async fn try_receive(
    shared: &Arc<Shared>,
    group: &GroupHandle,
    stream: impl AsyncRead + Unpin,
) -> Result<(Slot, Config, Keyspace), Failure> {
    let stream = Patient::new(stream, PROGRESS_TIMEOUT);
    let mut frames = FrameReader::new(stream, wire::FRAME_BYTES_MAX, Whose::Peer, &shared.budget);
    let first = frames.next().await?.ok_or("nothing arrived")?;
    let PeerFrame::SnapshotBegin { slot, config } = PeerFrame::decode(first)? else {
        return Err("it does not begin with a snapshot's first frame".into());
    };
    same_config(&config, &group.voters)?;
    let id = SnapshotId { group: group.id.0, slot: slot.0 };
    let meta = encode_meta(&config);
    let disk = shared.disk.clone();
    let identity = shared.identity;
    // One slice at a time goes to a blocking thread, and comes back with the two halves it was fed to.
    let mut writer =
        tokio::task::spawn_blocking(move || SnapshotWriter::create(disk, identity, id, &meta)).await??;
    let mut restore = Restore::new();
    while let Some(frame) = frames.next().await? {
        match PeerFrame::decode(frame)? {
            PeerFrame::SnapshotSlice(slice) => {
                (writer, restore) = tokio::task::spawn_blocking(move || {
                    writer.slice(&slice)?;
                    restore.push(slice)?;
                    Ok::<_, Failure>((writer, restore))
                })
                .await??;
            }
            PeerFrame::SnapshotEnd => {
                let disk = shared.disk.clone();
                let state = tokio::task::spawn_blocking(move || {
                    // The file counts only once the state is known to be whole.
                    let state = restore.finish()?;
                    if state.applied() != id.slot {
                        return Err("its state is of another slot".into());
                    }
                    writer.finish()?;
                    journal::Snapshot::remove_older(&disk, id)?;
                    Ok::<_, Failure>(state)
                })
                .await??;
                return Ok((slot, config, state));
            }
            PeerFrame::Liveness(_)
            | PeerFrame::Group(..)
            | PeerFrame::SnapshotBegin { .. }
            | PeerFrame::SnapshotRequest(..)
            | PeerFrame::Disk(_)
            | PeerFrame::DigestAsked(..)
            | PeerFrame::Digest(..)
            | PeerFrame::VersionAsked(..)
            | PeerFrame::Version(..)
            | PeerFrame::SnapshotInstalled => return Err("a frame that has no place in a snapshot".into()),
        }
    }
    Err("the connection ended in the middle".into())
}

/// A replica takes over the configuration of the snapshot, quorums and all. While nothing changes it, it is that which the
/// group began with.
fn same_config(config: &Config, voters: &NodeSet) -> Result<(), Failure> {
    if config.voters != *voters {
        return Err("it is of a group with other voters".into());
    }
    if *config != Config::majority(voters.iter()) {
        return Err("it is of a group with the same voters and other quorums".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use journal::Identity;
    use tokio::io::{AsyncReadExt, duplex};
    use tokio::time::Instant;

    const ID: SnapshotId = SnapshotId { group: 1, slot: 9 };

    fn written(dir: &std::path::Path) -> Arc<SnapshotReader<RealDisk>> {
        let disk = RealDisk::open(dir).unwrap();
        let meta = encode_meta(&Config::majority([NodeId(1), NodeId(2)]));
        let mut writer = SnapshotWriter::create(disk.clone(), Identity::default(), ID, &meta).unwrap();
        writer.slice(&[7; 1000]).unwrap();
        writer.finish().unwrap();
        Arc::new(SnapshotReader::open(&disk, Identity::default(), ID).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_never_says_that_it_has_installed_holds_nothing_up() {
        let dir = tempfile::tempdir().unwrap();
        let (near, mut far) = duplex(64);
        let begun = Instant::now();
        // It takes everything, and then its machine is gone.
        let take = async {
            let mut taken = vec![0; 1000];
            far.read_exact(&mut taken).await.unwrap();
            std::future::pending::<()>().await;
        };
        let sent = tokio::select! {
            sent = hand_over(written(dir.path()), ID, near) => sent,
            () = take => unreachable!(),
        };
        let error = sent.unwrap_err();
        assert!(error.to_string().contains("nothing came or went"), "{error}");
        assert!(begun.elapsed() < INSTALL_TIMEOUT + PROGRESS_TIMEOUT);
    }

    #[test]
    fn a_snapshot_of_another_configuration_is_refused() {
        let ours = Config::majority([1, 2, 3].map(NodeId));
        same_config(&ours, &ours.voters).unwrap();
        let others = [
            Config::majority([1, 2].map(NodeId)),
            Config { epoch: 2, ..ours.clone() },
            Config { q1: 1, ..ours.clone() },
            Config { q2: 1, ..ours.clone() },
            Config { qf: Some(3), ..ours.clone() },
            Config { lease_eligible: [NodeId(1)].into_iter().collect(), ..ours.clone() },
        ];
        for config in others {
            same_config(&config, &ours.voters).unwrap_err();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_stops_taking_holds_nothing_up() {
        let dir = tempfile::tempdir().unwrap();
        let (near, _far) = duplex(64);
        assert!(hand_over(written(dir.path()), ID, near).await.is_err());
    }
}
