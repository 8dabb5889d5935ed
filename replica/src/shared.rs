//! What the tasks of a node share: its parts, and what concerns several of them.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backoff::Backoff;
use bytes::Bytes;
use consensus_core::{GroupId, NodeId, NodeStatus, Timing};
use discovery::Discovery;
use journal::{Identity, RealDisk, Writer};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::budget::Budget;
use crate::clock;
use crate::distrust::Distrusts;
use crate::door::Door;
use crate::gateways::Gateways;
use crate::gauges::Gauges;
use crate::groups::Groups;
use crate::liveness::NodeLiveness;
use crate::metrics::Metrics;
use crate::peer::{Peer, Peers};
use crate::rates::Rates;
use crate::seat::Seat;
use crate::suspicion::Accuser;

/// What all tasks of a node share.
pub(crate) struct Shared {
    pub(crate) id: NodeId,
    /// What operators call it.
    pub(crate) name: String,
    pub(crate) started: Instant,
    pub(crate) cluster: u64,
    pub(crate) timing: Timing,
    pub(crate) identity: Identity,
    pub(crate) seat: Arc<Seat>,
    pub(crate) disk: RealDisk,
    pub(crate) journal: Writer<RealDisk>,
    pub(crate) liveness: NodeLiveness,
    pub(crate) peers: Arc<Peers>,
    pub(crate) shard_map: Bytes,
    pub(crate) region: String,
    pub(crate) zone: String,
    pub(crate) discovery: Discovery,
    pub(crate) metrics: Metrics,
    pub(crate) gateways: Gateways,
    pub(crate) gauges: Gauges,
    pub(crate) rates: Mutex<Rates<4>>,
    pub(crate) data_dir: PathBuf,
    /// The node wishes to stop: groups hand over.
    pub(crate) stopping: CancellationToken,
    /// The groups have stopped: connections end.
    pub(crate) stopped: CancellationToken,
    pub(crate) groups: Arc<Groups>,
    /// A random number of this process; not 0.
    pub(crate) nonce: u64,
    pub(crate) door: Arc<Door>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) tls: Option<Arc<tls::Mutual>>,
    pub(crate) distrusts: Distrusts,
    /// Groups for which this node stands in for others still, see [`consensus_core::Durable::survive`].
    pub(crate) surviving: Mutex<BTreeSet<GroupId>>,
    /// Of all groups of the cluster and their first voters, as configured.
    pub(crate) groups_digest: u64,
    pub(crate) random: RandomState,
}

impl Shared {
    /// A peer, and no stranger in its name, has heard a later incarnation of this node, or another process of it.
    pub(crate) fn accused(&self, accuser: Accuser) {
        // The task that waits for it asks the others.
        let _ = self.seat.step_aside(accuser);
    }

    /// Others have heard of a later incarnation of this node: what it did since is not in its directory. It takes no part any
    /// more, with anybody, and cannot be started with this directory again.
    pub(crate) fn revoke(&self) {
        if self.seat.revoke() {
            error!(
                node = self.id.0,
                incarnation = self.liveness.incarnation(),
                "this data directory is an old copy, or this node runs twice: a later incarnation of it has been heard. {}",
                journal::EMPTY_IT
            );
            // Connections end before the groups do, so that nothing more is said.
            self.stopped.cancel();
            self.stopping.cancel();
        }
    }

    /// What this node says of itself to `other`.
    pub(crate) fn node_status(&self, other: NodeId) -> NodeStatus {
        self.seat.node_status(other, self.liveness.incarnation_heard(other))
    }

    /// A group does not need this node to stand in for others any more.
    pub(crate) fn group_survived(&self, id: GroupId) {
        let mut surviving = self.surviving.lock();
        if surviving.remove(&id) && surviving.is_empty() {
            self.seat.survived();
        }
    }

    /// Tells of a peer that supports others for another time than this node, or does not say for how long. That is safe, see
    /// [`consensus_core::Liveness`]; it is no state to stay in.
    pub(crate) fn compare_support(&self, peer: &Peer, support: Option<Duration>) {
        let own = self.timing.support;
        self.metrics.support_differs(peer.id, support != Some(own));
        if !peer.support_news(own, support) {
            return;
        }
        match support {
            Some(theirs) => warn!(
                peer = peer.id.0,
                ?own,
                ?theirs,
                "a peer has another `timing.support`: leases last as long as who gives them has it; make it the same on all nodes"
            ),
            None => warn!(
                peer = peer.id.0,
                "a peer does not say its `timing.support`, as versions before this one: the two give each other no leases until it is updated"
            ),
        }
    }

    /// A number for back-off, so that nodes do not dial in step.
    pub(crate) fn random_u32(&self) -> u32 {
        let mut hasher = self.random.build_hasher();
        hasher.write_u64(clock::now().0);
        (hasher.finish() >> 32) as u32
    }

    /// A pause of at most so long, so that nodes do not ask in step.
    pub(crate) fn up_to(&self, most: Duration) -> Duration {
        Backoff::new(most, most).next(self.random_u32())
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("id", &self.id).field("cluster", &self.cluster).finish_non_exhaustive()
    }
}
