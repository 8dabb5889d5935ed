//! Another node, as seen from here. A pair of nodes has one TCP connection for all their groups, dialled by the node with the
//! higher id, and redialled with full-jitter back-off. What cannot be sent is dropped: the engine repeats what matters.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use consensus_core::{GroupId, LivenessMessage, Message, NodeId, Slot};
use keyspace::ClusterVersion;
use parking_lot::Mutex;
use tracing::debug;

use crate::outbox::Outbox;
use crate::wire::{self, Frames, Room};

/// The other nodes of the cluster.
pub(crate) type Peers = BTreeMap<NodeId, Arc<Peer>>;

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

    pub(crate) fn incarnation_linked_with(&self) -> u64 {
        self.linked_with.lock().map_or(0, |linked| linked.incarnation)
    }

    /// A link is made with this incarnation and process of it, which supports others for so long.
    pub(crate) fn linked_with(&self, incarnation: u64, nonce: u64, support: Option<Duration>) {
        *self.linked_with.lock() = Some(Linked { incarnation, nonce, support });
    }

    /// Of the process that a link was made with last; 0 and none if there was none.
    pub(crate) fn incarnation_and_support(&self) -> (u64, Option<Duration>) {
        self.linked_with.lock().map_or((0, None), |linked| (linked.incarnation, linked.support))
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

    /// A peer that does not know the question knows none but the first.
    fn knows_versions(&self) -> bool {
        self.knows.lock().is_some_and(Frames::with_versions)
    }

    pub(crate) fn send_version_asked(&self, group: GroupId) {
        if self.knows_versions() {
            self.send(|out| wire::encode_version_asked(group, out));
        }
    }

    pub(crate) fn send_version(&self, group: GroupId, newest: ClusterVersion) {
        if self.knows_versions() {
            self.send(|out| wire::encode_version(group, newest, out));
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
    pub(crate) fn attach(&self, outbox: &Arc<Outbox>) {
        if let Some(old) = self.outbox.lock().replace(Arc::clone(outbox)) {
            old.close();
        }
    }

    pub(crate) fn detach(&self, outbox: &Arc<Outbox>) {
        outbox.close();
        let mut current = self.outbox.lock();
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, outbox)) {
            *current = None;
        }
    }
}
