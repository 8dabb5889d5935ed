//! Whether a node is well.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use crate::clock;
use crate::shared::Shared;

/// So long after its start, a node that all others have not linked with is not ready. One that is down is not waited for
/// longer.
const PEERS_PATIENCE: Duration = Duration::from_secs(5);

/// A node's view of itself, for its admin port.
#[derive(Debug, Clone)]
pub struct Health {
    shared: Arc<Shared>,
}

impl Health {
    pub(crate) fn of(shared: Arc<Shared>) -> Health {
        Health { shared }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The registry of the node's metrics, as of now.
    #[must_use]
    pub fn metrics(&self) -> &prometheus::Registry {
        let shared = &self.shared;
        shared.gauges.set(&self.status(), &shared.journal.stats(), &shared.budget, &shared.data_dir);
        shared.metrics.registry()
    }

    /// Whether the node takes part in full, and its groups have caught up. Whoever stops nodes one after the other waits for
    /// this.
    ///
    /// # Errors
    /// What is missing.
    pub fn check(&self) -> Result<(), Cow<'static, str>> {
        let shared = &self.shared;
        if shared.seat.is_revoked() {
            return Err("the data directory is an old copy, or this node runs twice: see the log".into());
        }
        if shared.stopping.is_cancelled() {
            return Err("stopping".into());
        }
        if shared.seat.is_aside() {
            return Err("another node says that the data directory is an old copy, or that this node runs twice: it takes no \
                        part until that is known, see the log"
                .into());
        }
        if !shared.seat.is_taken() {
            return Err(
                "the data directory is new, and not every other node has answered this one yet".into()
            );
        }
        for group in shared.groups.all().values() {
            if let Some(unready) = group.unready() {
                return Err(format!("group {} {unready}", group.id.0).into());
            }
        }
        // Until then a commit that counts its vote needs everybody's.
        if shared.liveness.read().quarantined(clock::now()) {
            return Err("leases that this node may have granted before its restart are not over".into());
        }
        if shared.journal.is_full() {
            return Err("the disk is full".into());
        }
        // Whoever has not found it yet, at another address perhaps, cannot count on it when it is to lead.
        let missing = shared.peers.values().find(|peer| !peer.is_linked());
        if let Some(peer) = missing.filter(|_| shared.started.elapsed() < PEERS_PATIENCE) {
            return Err(format!("node {} is not linked with this one yet", peer.id.0).into());
        }
        Ok(())
    }
}
