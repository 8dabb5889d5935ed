//! What nodes say to each other. Each frame is a 4-byte big-endian length and a body; the first body on a connection
//! is a [`PeerHello`], in both directions. A zero byte opens it, which no protobuf message can start with: that is how
//! a node tells its peers from gateways on one port.
//!
//! | first byte of later frames | then | meaning |
//! | --- | --- | --- |
//! | 1 | a `LivenessMessage` | of the node pair, for all groups |
//! | 2 | group (u64), a `Message` | of one group's replicas |
//! | 3 | slot (u64), configuration's length (u32) and bytes | a snapshot begins |
//! | 4 | a slice | of the snapshot |
//! | 5 | | the snapshot is complete |
//! | 6 | | the snapshot is installed and durable: the receiver's only answer |
//! | 7 | group (u64), slot (u64) | on a link: send me a snapshot at this slot or later, mine is lost |
//!
//! | 8 | 1 or 0 | on a link: my disk is full, or has room again |
//! | 9 | group (u64), slot (u64) | on a link: what is the digest of your state at this slot? |
//! | 10 | group (u64), slot (u64), digest (u64) | on a link: the answer |
//! | 11 | group (u64) | on a link: which cluster version is the newest that you know? |
//! | 12 | group (u64), version (u8) | on a link: the answer |
//!
//! A peer ends the connection at a frame that it does not know. So a hello says how far its speaker knows them, and frames
//! above that are not sent. The oldest nodes know seven and do not say so.
//!
//! It says, too, for how long its speaker gives support for leases, which the other one counts by. With one that does not say
//! so no support is exchanged.
//!
//! Integers are little-endian. Numbers are never reused.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use consensus_core::{Config, GroupId, LivenessMessage, Message, NodeId, NodeStatus, Slot};
use keyspace::ClusterVersion;
use thiserror::Error;

/// The largest frame either side accepts: an entry of the engine's batch limit, or one request above it, and headers.
pub(crate) const FRAME_BYTES_MAX: usize = 64 << 20;

/// The largest hello.
pub(crate) const HELLO_BYTES_MAX: usize = 1024;

const MAGIC: &[u8; 11] = b"\0gaios-peer";
const VERSION: u8 = 2;
const HELLO_BYTES: usize = 1 + 8 * 8 + 2 * 4 + 3;

/// No configuration allows for more than half of it.
const SUPPORT_MAX: Duration = Duration::from_secs(60);

const LIVENESS: u8 = 1;
const GROUP: u8 = 2;
const SNAPSHOT_BEGIN: u8 = 3;
const SNAPSHOT_SLICE: u8 = 4;
const SNAPSHOT_END: u8 = 5;
const SNAPSHOT_INSTALLED: u8 = 6;
const SNAPSHOT_REQUEST: u8 = 7;
const DISK: u8 = 8;
const DIGEST_ASKED: u8 = 9;
const DIGEST: u8 = 10;
const VERSION_ASKED: u8 = 11;
const CLUSTER_VERSION: u8 = 12;
/// The last kind of frame that this version knows.
const FRAMES_KNOWN: u8 = CLUSTER_VERSION;
/// And the last one that those know who do not say.
const FRAMES_OF_OLD: u8 = SNAPSHOT_REQUEST;

/// What a connection between nodes is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The persistent link of a pair of nodes.
    Link,
    /// One snapshot of one group, on a connection of its own so that it delays nobody's heartbeats.
    Snapshot(GroupId),
    /// A newcomer asks who it is, or a node what is heard of it; the answer to the hello is all it wants.
    Ask,
    /// Asks whether `nonce_heard` is the number of the process that is reached: somebody has called in its name. A node
    /// that is older does not know the question and ends the connection; it cannot call a newer one before it is updated.
    Confirm,
}

/// Who speaks, and to whom he believes to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PeerHello {
    pub(crate) purpose: Purpose,
    pub(crate) cluster: u64,
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
    /// The speaker's incarnation, and a random number of its process: two processes in one incarnation are one too many.
    pub(crate) incarnation: u64,
    pub(crate) nonce: u64,
    /// The random number of the one spoken to, as far as it is known; 0 for not.
    pub(crate) nonce_heard: u64,
    /// The speaker is linked with another process of the one spoken to.
    pub(crate) taken: bool,
    /// What the speaker is, and what it knows of the one spoken to.
    pub(crate) status: NodeStatus,
    /// Digest of the groups in the speaker's configuration and their first voters.
    pub(crate) groups: u64,
    /// Which frames the speaker knows.
    pub(crate) knows: Frames,
    /// How long a heartbeat to the speaker is worth as support for leases. The oldest nodes do not say so.
    pub(crate) support: Option<Duration>,
}

/// Up to which kind somebody knows the frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frames(u8);

impl Frames {
    /// Those of this version.
    pub(crate) const ALL: Frames = Frames(FRAMES_KNOWN);

    pub(crate) fn with_disk_and_digests(self) -> bool {
        self.0 >= DIGEST
    }

    pub(crate) fn with_versions(self) -> bool {
        self.0 >= CLUSTER_VERSION
    }
}

/// A frame after the hello.
#[derive(Debug)]
pub(crate) enum PeerFrame {
    Liveness(LivenessMessage),
    Group(GroupId, Message),
    SnapshotBegin { slot: Slot, config: Config },
    SnapshotSlice(Bytes),
    SnapshotEnd,
    SnapshotInstalled,
    SnapshotRequest(GroupId, Slot),
    Disk(Room),
    DigestAsked(GroupId, Slot),
    Digest(GroupId, Slot, u64),
    VersionAsked(GroupId),
    Version(GroupId, ClusterVersion),
}

/// What a disk has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    Some,
    None,
}

/// The other side does not speak this protocol.
#[derive(Debug, Error)]
pub(crate) enum WireError {
    #[error("the first frame is not a node's hello")]
    NotAPeer,
    #[error("it speaks version {0} of the peer protocol, this node speaks {VERSION}")]
    Version(u8),
    #[error("a frame is cut short")]
    Short,
    #[error("unknown frame kind {0}")]
    Kind(u8),
    #[error("a message cannot be decoded: {0}")]
    Message(String),
}

pub(crate) fn is_peer_hello(frame: &[u8]) -> bool {
    frame.first() == Some(&0)
}

impl PeerHello {
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        out.put_slice(MAGIC);
        out.put_u8(VERSION);
        let (purpose, group) = match self.purpose {
            Purpose::Link => (0, GroupId(0)),
            Purpose::Snapshot(group) => (1, group),
            Purpose::Ask => (2, GroupId(0)),
            Purpose::Confirm => (3, GroupId(0)),
        };
        out.put_u8(purpose);
        out.put_u64_le(group.0);
        out.put_u64_le(self.cluster);
        out.put_u32_le(self.from.0);
        out.put_u32_le(self.to.0);
        out.put_u64_le(self.incarnation);
        out.put_u64_le(self.nonce);
        out.put_u64_le(self.nonce_heard);
        out.put_u8(u8::from(self.taken));
        let (status, mark, heard) = match self.status {
            NodeStatus::Newcomer { mark } => (0, Some(mark), 0),
            NodeStatus::Placed { known_as, incarnation_heard } => (1, known_as, incarnation_heard),
        };
        out.put_u8(status);
        out.put_u8(u8::from(mark.is_some()));
        out.put_u64_le(mark.unwrap_or_default());
        out.put_u64_le(heard);
        out.put_u64_le(self.groups);
        out.put_u8(self.knows.0);
        let nanos = self.support.map_or(0, |support| u64::try_from(support.as_nanos()).unwrap_or(u64::MAX));
        out.put_u64_le(nanos);
    }

    pub(crate) fn decode(mut frame: &[u8]) -> Result<PeerHello, WireError> {
        if !frame.starts_with(MAGIC) || frame.len() < MAGIC.len() + 1 {
            return Err(WireError::NotAPeer);
        }
        frame.advance(MAGIC.len());
        let version = frame.get_u8();
        if version != VERSION {
            return Err(WireError::Version(version));
        }
        if frame.len() < HELLO_BYTES {
            return Err(WireError::Short);
        }
        let purpose = frame.get_u8();
        let group = GroupId(frame.get_u64_le());
        let purpose = match purpose {
            0 => Purpose::Link,
            1 => Purpose::Snapshot(group),
            2 => Purpose::Ask,
            3 => Purpose::Confirm,
            other => return Err(WireError::Kind(other)),
        };
        let cluster = frame.get_u64_le();
        let from = NodeId(frame.get_u32_le());
        let to = NodeId(frame.get_u32_le());
        let (incarnation, nonce, nonce_heard) = (frame.get_u64_le(), frame.get_u64_le(), frame.get_u64_le());
        let taken = frame.get_u8() != 0;
        let (status, has_mark, mark, incarnation_heard) =
            (frame.get_u8(), frame.get_u8(), frame.get_u64_le(), frame.get_u64_le());
        let status = match (status, has_mark) {
            (0, 1) => NodeStatus::Newcomer { mark },
            (1, 0) => NodeStatus::Placed { known_as: None, incarnation_heard },
            (1, 1) => NodeStatus::Placed { known_as: Some(mark), incarnation_heard },
            (other, _) => return Err(WireError::Kind(other)),
        };
        let groups = frame.get_u64_le();
        let knows = Frames(frame.try_get_u8().unwrap_or(FRAMES_OF_OLD));
        let support = Duration::from_nanos(frame.try_get_u64_le().unwrap_or(0));
        if support > SUPPORT_MAX {
            return Err(WireError::Message(format!("a support of {support:?}")));
        }
        Ok(PeerHello {
            purpose,
            cluster,
            from,
            to,
            incarnation,
            nonce,
            nonce_heard,
            taken,
            status,
            groups,
            knows,
            support: Some(support).filter(|support| !support.is_zero()),
        })
    }
}

pub(crate) fn encode_liveness(message: &LivenessMessage, out: &mut BytesMut) {
    out.put_u8(LIVENESS);
    message.encode(out);
}

pub(crate) fn encode_group(group: GroupId, message: &Message, out: &mut BytesMut) {
    out.put_u8(GROUP);
    out.put_u64_le(group.0);
    message.encode(out);
}

pub(crate) fn encode_snapshot_begin(slot: Slot, config: &Config, out: &mut BytesMut) {
    out.put_u8(SNAPSHOT_BEGIN);
    out.put_u64_le(slot.0);
    config.encode(out);
}

pub(crate) fn encode_snapshot_slice(slice: &[u8], out: &mut BytesMut) {
    out.put_u8(SNAPSHOT_SLICE);
    out.put_slice(slice);
}

pub(crate) fn encode_snapshot_end(out: &mut BytesMut) {
    out.put_u8(SNAPSHOT_END);
}

pub(crate) fn encode_snapshot_installed(out: &mut BytesMut) {
    out.put_u8(SNAPSHOT_INSTALLED);
}

pub(crate) fn encode_snapshot_request(group: GroupId, at_least: Slot, out: &mut BytesMut) {
    out.put_u8(SNAPSHOT_REQUEST);
    out.put_u64_le(group.0);
    out.put_u64_le(at_least.0);
}

pub(crate) fn encode_disk(room: Room, out: &mut BytesMut) {
    out.put_u8(DISK);
    out.put_u8(u8::from(room == Room::None));
}

pub(crate) fn encode_digest_asked(group: GroupId, slot: Slot, out: &mut BytesMut) {
    out.put_u8(DIGEST_ASKED);
    out.put_u64_le(group.0);
    out.put_u64_le(slot.0);
}

pub(crate) fn encode_digest(group: GroupId, slot: Slot, digest: u64, out: &mut BytesMut) {
    out.put_u8(DIGEST);
    out.put_u64_le(group.0);
    out.put_u64_le(slot.0);
    out.put_u64_le(digest);
}

pub(crate) fn encode_version_asked(group: GroupId, out: &mut BytesMut) {
    out.put_u8(VERSION_ASKED);
    out.put_u64_le(group.0);
}

pub(crate) fn encode_version(group: GroupId, newest: ClusterVersion, out: &mut BytesMut) {
    out.put_u8(CLUSTER_VERSION);
    out.put_u64_le(group.0);
    out.put_u8(newest.0);
}

impl PeerFrame {
    pub(crate) fn decode(mut frame: Bytes) -> Result<PeerFrame, WireError> {
        if frame.is_empty() {
            return Err(WireError::Short);
        }
        let message = |error: consensus_core::DecodeError| WireError::Message(error.to_string());
        match frame.get_u8() {
            LIVENESS => Ok(PeerFrame::Liveness(LivenessMessage::decode(&mut frame).map_err(message)?)),
            GROUP => {
                let group = frame.try_get_u64_le().map_err(|_| WireError::Short)?;
                Ok(PeerFrame::Group(GroupId(group), Message::decode(&mut frame).map_err(message)?))
            }
            SNAPSHOT_BEGIN => {
                let slot = frame.try_get_u64_le().map_err(|_| WireError::Short)?;
                Ok(PeerFrame::SnapshotBegin {
                    slot: Slot(slot),
                    config: Config::decode(&mut frame).map_err(message)?,
                })
            }
            SNAPSHOT_SLICE => Ok(PeerFrame::SnapshotSlice(frame)),
            SNAPSHOT_END => Ok(PeerFrame::SnapshotEnd),
            SNAPSHOT_INSTALLED => Ok(PeerFrame::SnapshotInstalled),
            SNAPSHOT_REQUEST => {
                let group = frame.try_get_u64_le().map_err(|_| WireError::Short)?;
                let at_least = frame.try_get_u64_le().map_err(|_| WireError::Short)?;
                Ok(PeerFrame::SnapshotRequest(GroupId(group), Slot(at_least)))
            }
            DISK => match frame.try_get_u8().map_err(|_| WireError::Short)? {
                0 => Ok(PeerFrame::Disk(Room::Some)),
                1 => Ok(PeerFrame::Disk(Room::None)),
                other => Err(WireError::Kind(other)),
            },
            DIGEST_ASKED => {
                let group = frame.try_get_u64_le().map_err(|_| WireError::Short)?;
                let slot = frame.try_get_u64_le().map_err(|_| WireError::Short)?;
                Ok(PeerFrame::DigestAsked(GroupId(group), Slot(slot)))
            }
            DIGEST => {
                let group = frame.try_get_u64_le().map_err(|_| WireError::Short)?;
                let slot = frame.try_get_u64_le().map_err(|_| WireError::Short)?;
                let digest = frame.try_get_u64_le().map_err(|_| WireError::Short)?;
                Ok(PeerFrame::Digest(GroupId(group), Slot(slot), digest))
            }
            VERSION_ASKED => {
                let group = frame.try_get_u64_le().map_err(|_| WireError::Short)?;
                Ok(PeerFrame::VersionAsked(GroupId(group)))
            }
            CLUSTER_VERSION => {
                let group = frame.try_get_u64_le().map_err(|_| WireError::Short)?;
                let newest = frame.try_get_u8().map_err(|_| WireError::Short)?;
                Ok(PeerFrame::Version(GroupId(group), ClusterVersion(newest)))
            }
            other => Err(WireError::Kind(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_about_versions_survive_the_trip_and_go_only_to_those_who_know_them() {
        let group = GroupId(7);
        let mut asked = BytesMut::new();
        encode_version_asked(group, &mut asked);
        assert!(matches!(PeerFrame::decode(asked.freeze()), Ok(PeerFrame::VersionAsked(of)) if of == group));
        let mut told = BytesMut::new();
        encode_version(group, ClusterVersion(9), &mut told);
        let told = told.freeze();
        let frame = PeerFrame::decode(told.clone());
        assert!(matches!(frame, Ok(PeerFrame::Version(of, ClusterVersion(9))) if of == group), "{frame:?}");
        assert!(PeerFrame::decode(told.slice(..told.len() - 1)).is_err());
        assert!(Frames::ALL.with_versions() && !Frames(DIGEST).with_versions());
    }

    #[test]
    fn a_hello_survives_the_trip_and_is_no_protobuf() {
        let purposes = [Purpose::Link, Purpose::Snapshot(GroupId(7)), Purpose::Ask, Purpose::Confirm];
        let statuses = [
            NodeStatus::Newcomer { mark: 3 },
            NodeStatus::Placed { known_as: Some(5), incarnation_heard: 2 },
            NodeStatus::Placed { known_as: None, incarnation_heard: 2 },
            NodeStatus::Placed { known_as: None, incarnation_heard: 0 },
        ];
        for (purpose, status) in purposes.into_iter().zip(statuses) {
            let (from, to) = (NodeId(1), NodeId(3));
            let rest = (5, 6, status == NodeStatus::Newcomer { mark: 3 });
            let (nonce, nonce_heard, taken) = rest;
            let hello = PeerHello {
                purpose,
                cluster: 9,
                from,
                to,
                incarnation: 4,
                nonce,
                nonce_heard,
                taken,
                status,
                groups: 8,
                knows: Frames::ALL,
                support: Some(Duration::from_millis(350)),
            };
            let mut bytes = BytesMut::new();
            hello.encode(&mut bytes);
            assert!(is_peer_hello(&bytes));
            assert_eq!(PeerHello::decode(&bytes).unwrap(), hello);
            // Versions before said less at its end.
            let before = PeerHello { support: None, ..hello };
            let oldest = bytes.len() - 9;
            assert_eq!(PeerHello::decode(&bytes[..=oldest]).unwrap(), before);
            let of_old = PeerHello { knows: Frames(FRAMES_OF_OLD), ..before };
            assert_eq!(PeerHello::decode(&bytes[..oldest]).unwrap(), of_old);
            let silent = PeerHello { support: Some(SUPPORT_MAX * 2), ..hello };
            let mut forged = BytesMut::new();
            silent.encode(&mut forged);
            PeerHello::decode(&forged).unwrap_err();
            for cut in 0..oldest {
                PeerHello::decode(&bytes[..cut]).unwrap_err();
            }
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for bytes in [&b""[..], &[0], &[9, 1, 2], &[GROUP, 1], &[SNAPSHOT_BEGIN, 1, 2, 3]] {
            PeerFrame::decode(Bytes::copy_from_slice(bytes)).unwrap_err();
        }
    }
}
