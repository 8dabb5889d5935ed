//! The node's liveness, which its heartbeats step and its groups look at.

use std::sync::Arc;

use consensus_core::{Liveness, LivenessOutput, Mono, NodeId};
use group_core::Event;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use crate::clock;
use crate::disk_watch::DiskNews;
use crate::groups::Groups;
use crate::peer::Peers;

/// Stepped under a lock; what comes of it goes to the peers and the groups.
pub(crate) struct NodeLiveness {
    /// Replaced as a whole, so that a group can look at it for a turn and holds up nobody.
    liveness: RwLock<Arc<Liveness>>,
    /// Reused by whoever steps it.
    out: Mutex<LivenessOutput>,
    peers: Arc<Peers>,
    groups: Arc<Groups>,
}

impl NodeLiveness {
    pub(crate) fn new(liveness: Liveness, peers: Arc<Peers>, groups: Arc<Groups>) -> NodeLiveness {
        NodeLiveness {
            liveness: RwLock::new(Arc::new(liveness)),
            out: Mutex::new(LivenessOutput::default()),
            peers,
            groups,
        }
    }

    /// Held for a moment only: whoever steps it waits.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Arc<Liveness>> {
        self.liveness.read()
    }

    /// That of another incarnation, before it has said anything.
    pub(crate) fn replace(&self, liveness: Liveness) {
        *self.liveness.write() = Arc::new(liveness);
    }

    /// The incarnation that this node is in.
    pub(crate) fn incarnation(&self) -> u64 {
        self.read().incarnation()
    }

    /// The newest incarnation of `peer` that was heard, or that a link was made with; 0 for none.
    pub(crate) fn incarnation_heard(&self, peer: NodeId) -> u64 {
        let linked = self.peers.get(&peer).map_or(0, |peer| peer.incarnation_linked_with());
        self.read().incarnation_of(peer).max(linked)
    }

    /// A peer has lost its memory, by its own word: what it supported is not counted on.
    pub(crate) fn begins_anew(&self, peer: NodeId) {
        self.step(|liveness, _| liveness.begins_anew(peer));
    }

    /// The peer's process is gone for certain: its port refuses connections. Its leases still run their time; only
    /// the election may begin at once.
    pub(crate) fn peer_process_gone(&self, peer: NodeId) {
        self.step(|liveness, _| liveness.disconnected(peer));
    }

    /// It is due.
    pub(crate) fn tick(&self, disk: DiskNews) {
        self.step(|liveness, now| {
            match disk {
                DiskNews::Progress => liveness.disk_progress(now),
                DiskNews::Nothing => {}
                // Said again with every heartbeat: what the groups tell their peers once may get lost.
                DiskNews::Failed => liveness.disk_failed(now),
            }
            liveness.tick(now);
        });
    }

    pub(crate) fn step(&self, step: impl FnOnce(&mut Liveness, Mono)) {
        let mut out = self.out.lock();
        {
            let mut liveness = self.liveness.write();
            // Sampled under the lock: time must not run backwards for the liveness.
            let liveness = Arc::make_mut(&mut liveness);
            step(liveness, clock::now());
            liveness.poll(&mut out);
        }
        for (to, message) in out.sends.drain(..) {
            if let Some(peer) = self.peers.get(&to) {
                peer.send_liveness(&message);
            }
        }
        for event in out.events.drain(..) {
            for group in self.groups.all().values() {
                group.tell(Event::Liveness(event));
            }
        }
    }
}
