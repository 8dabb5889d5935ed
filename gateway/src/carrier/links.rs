//! The links to all nodes: a fixed number per address, found by node id once the node has said who it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::domain::LinkCounts;
use crate::link::{Identity, Link, LinkEvent};
use crate::router::NodeId;
use crate::status::Reach;

#[derive(Debug)]
pub(crate) struct Links {
    identity: Identity,
    events: mpsc::UnboundedSender<LinkEvent>,
    per_node: usize,
    dialled: Mutex<Vec<Arc<Link>>>,
    /// The links that are up, by node.
    up: ArcSwap<Vec<(NodeId, Arc<Link>)>>,
    turn: AtomicUsize,
}

impl Links {
    pub(crate) fn new(
        identity: Identity,
        events: mpsc::UnboundedSender<LinkEvent>,
        per_node: usize,
    ) -> Links {
        Links {
            identity,
            events,
            per_node,
            dialled: Mutex::default(),
            up: ArcSwap::default(),
            turn: AtomicUsize::new(0),
        }
    }

    /// Starts the links to an address, unless there are some.
    pub(crate) fn dial(&self, address: &str) {
        let mut dialled = self.dialled.lock();
        if dialled.iter().any(|link| link.address() == address) {
            return;
        }
        for _ in 0..self.per_node {
            dialled.push(Link::start(address.to_owned(), self.identity.clone(), self.events.clone()));
        }
    }

    /// Starts the links to a node of the shard map, unless it is reached already, perhaps by another address.
    pub(crate) fn dial_node(&self, node: NodeId, address: &str) {
        self.identity.detours.learn(address, node);
        if self.up.load().iter().all(|(up, _)| *up != node) {
            self.dial(address);
        }
    }

    pub(crate) fn handle_up(&self, node: NodeId, link: &Arc<Link>) {
        self.up.rcu(|up| {
            let mut up: Vec<_> = up.iter().filter(|(_, known)| !Arc::ptr_eq(known, link)).cloned().collect();
            up.push((node, Arc::clone(link)));
            up
        });
    }

    pub(crate) fn handle_down(&self) {
        self.up.rcu(|up| up.iter().filter(|(_, link)| link.node().is_some()).cloned().collect::<Vec<_>>());
    }

    /// A link to the node that is up. Several share the work in turn.
    pub(crate) fn to(&self, node: NodeId) -> Option<Arc<Link>> {
        let up = self.up.load();
        let mut links = up.iter().filter(|(up, link)| *up == node && link.node() == Some(node));
        if self.per_node == 1 {
            return links.next().map(|(_, link)| Arc::clone(link));
        }
        let links: Vec<_> = links.collect();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % links.len().max(1);
        links.get(turn).map(|(_, link)| Arc::clone(link))
    }

    /// How a node is reached.
    pub(crate) fn reach(&self, node: NodeId) -> Reach {
        if self.to(node).is_none() {
            Reach::Unreached
        } else if self.identity.detours.is_straight(node) {
            Reach::Straight
        } else {
            Reach::Detour
        }
    }

    pub(crate) fn count(&self) -> LinkCounts {
        LinkCounts { refused: self.identity.refusals.counts(), ..self.identity.detours.count() }
    }

    /// A link to any of the nodes, in turn.
    pub(crate) fn to_any(&self, nodes: &[NodeId]) -> Option<(NodeId, Arc<Link>)> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        (0..nodes.len()).find_map(|step| {
            let node = nodes[(turn + step) % nodes.len()];
            self.to(node).map(|link| (node, link))
        })
    }
}
