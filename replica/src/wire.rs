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
//! Integers are little-endian. Numbers are never reused.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use consensus_core::{Config, GroupId, LivenessMessage, Message, NodeId, Slot};
use thiserror::Error;

/// The largest frame either side accepts: an entry of the engine's batch limit, or one request above it, and headers.
pub(crate) const FRAME_BYTES_MAX: usize = 64 << 20;

const MAGIC: &[u8; 11] = b"\0gaios-peer";
const VERSION: u8 = 1;

const LIVENESS: u8 = 1;
const GROUP: u8 = 2;
const SNAPSHOT_BEGIN: u8 = 3;
const SNAPSHOT_SLICE: u8 = 4;
const SNAPSHOT_END: u8 = 5;
const SNAPSHOT_INSTALLED: u8 = 6;
const SNAPSHOT_REQUEST: u8 = 7;

/// What a connection between nodes is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The persistent link of a pair of nodes.
    Link,
    /// One snapshot of one group, on a connection of its own so that it delays nobody's heartbeats.
    Snapshot(GroupId),
}

/// Who speaks, and to whom he believes to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PeerHello {
    pub(crate) purpose: Purpose,
    pub(crate) cluster: u64,
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
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
        };
        out.put_u8(purpose);
        out.put_u64_le(group.0);
        out.put_u64_le(self.cluster);
        out.put_u32_le(self.from.0);
        out.put_u32_le(self.to.0);
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
        if frame.len() < 25 {
            return Err(WireError::Short);
        }
        let purpose = frame.get_u8();
        let group = GroupId(frame.get_u64_le());
        Ok(PeerHello {
            purpose: match purpose {
                0 => Purpose::Link,
                1 => Purpose::Snapshot(group),
                other => return Err(WireError::Kind(other)),
            },
            cluster: frame.get_u64_le(),
            from: NodeId(frame.get_u32_le()),
            to: NodeId(frame.get_u32_le()),
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
            other => Err(WireError::Kind(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_survives_the_trip_and_is_no_protobuf() {
        for purpose in [Purpose::Link, Purpose::Snapshot(GroupId(7))] {
            let hello = PeerHello { purpose, cluster: 9, from: NodeId(1), to: NodeId(3) };
            let mut bytes = BytesMut::new();
            hello.encode(&mut bytes);
            assert!(is_peer_hello(&bytes));
            assert_eq!(PeerHello::decode(&bytes).unwrap(), hello);
            for cut in 0..bytes.len() {
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
