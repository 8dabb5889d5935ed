//! The ways to nodes that all links share: [`gateway_core::Ways`] behind a lock, with news of changes.

use std::sync::Arc;

use gateway_core::{NodeId, Way, Ways};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What a link dials, for as long as somebody wants it.
#[derive(Debug)]
pub(crate) struct Target {
    pub(super) dialled: gateway_core::Target,
    /// No name leads there any more. A link that is up stays as long as its node is reached nowhere else.
    pub(super) unwanted: CancellationToken,
}

impl Target {
    pub(crate) fn address(&self) -> &str {
        &self.dialled.address
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct SharedWays {
    ways: Mutex<Ways>,
    /// Told whenever a link comes up or goes down.
    changes: watch::Sender<()>,
}

impl SharedWays {
    pub(super) fn lock(&self) -> MutexGuard<'_, Ways> {
        self.ways.lock()
    }

    /// Something to dial.
    pub(crate) fn target(&self, address: impl Into<String>) -> Arc<Target> {
        let dialled = self.lock().target(address);
        Arc::new(Target { dialled, unwanted: CancellationToken::new() })
    }

    pub(crate) fn learn(&self, address: &str, node: NodeId) {
        self.lock().learn(address, node);
    }

    /// No name leads to the target any more.
    pub(crate) fn let_go(&self, target: &Target) {
        // First, so that a link that comes up meanwhile is not taken for a wanted one.
        target.unwanted.cancel();
        self.lock().handle_unwanted(&target.dialled);
    }

    /// A link is up. Returns whether it is of use.
    pub(super) fn handle_up(&self, target: &Target, node: NodeId, way: Way) -> bool {
        let mut ways = self.lock();
        let is_wanted = !target.unwanted.is_cancelled();
        let is_of_use = ways.handle_up(&target.dialled, node, way, is_wanted);
        drop(ways);
        if is_of_use {
            self.changes.send_replace(());
        }
        is_of_use
    }

    pub(super) fn handle_down(&self, target: &Target, node: NodeId, way: Way) {
        self.lock().handle_down(&target.dialled, node, way);
        self.changes.send_replace(());
    }

    /// Told whenever a link comes up or goes down.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Whether a direct link to the target is up, or its node is reached directly by another address.
    pub(crate) fn is_reached(&self, target: &Target) -> bool {
        self.lock().is_reached(&target.dialled)
    }

    /// Whether a node is reached directly, by whatever address.
    pub(crate) fn is_direct(&self, node: NodeId) -> bool {
        self.lock().is_direct(node)
    }

    /// Links that are up, direct and by a relay.
    pub(crate) fn count(&self) -> (usize, usize) {
        self.lock().count()
    }
}
