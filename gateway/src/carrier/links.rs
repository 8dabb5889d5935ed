//! The links to all nodes: a fixed number per address, found by node id once the node has said who it is. Which addresses
//! there are is told by those who follow names ([`super::names`]); one that no name leads to any more is left.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use discovery::Address;
use gateway_core::link::LinkId;
use gateway_core::nearest::{Nodes, Place};
use gateway_core::{Attempted, NodeId};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use crate::domain::{LinkCounts, NodeDistance};
use crate::link::{Identity, Link, LinkEvent, Target};
use crate::status::Reach;

#[derive(Debug)]
pub(crate) struct Links {
    identity: Identity,
    events: mpsc::UnboundedSender<LinkEvent>,
    per_node: usize,
    dialled: Mutex<BTreeMap<SocketAddr, Dialled>>,
    up: ArcSwap<gateway_core::Links<Arc<Link>>>,
    turn: AtomicUsize,
    nodes: Mutex<Nodes>,
}

/// An address that is dialled, and the names that lead there.
#[derive(Debug)]
struct Dialled {
    target: Arc<Target>,
    sources: Vec<Address>,
}

impl Links {
    pub(crate) fn new(
        identity: Identity,
        events: mpsc::UnboundedSender<LinkEvent>,
        per_node: usize,
    ) -> Links {
        Links {
            nodes: Mutex::new(Nodes::new(identity.place.clone())),
            identity,
            events,
            per_node,
            dialled: Mutex::default(),
            up: ArcSwap::default(),
            turn: AtomicUsize::new(0),
        }
    }

    /// `source` leads to these addresses, and to no others any more; `node` lives there, if that is known. Dials what is new,
    /// and lets go of what nobody leads to.
    pub(crate) fn set(&self, source: &Address, found: &[SocketAddr], node: Option<NodeId>) {
        let mut dialled = self.dialled.lock();
        for address in found {
            if let Some(node) = node {
                // First: one that is reached already, perhaps by another address, is not dialled.
                self.identity.ways.learn(&address.to_string(), node);
            }
            let known = dialled.entry(*address).or_insert_with(|| {
                let target = self.identity.ways.target(address.to_string());
                for _ in 0..self.per_node {
                    Link::start(Arc::clone(&target), self.identity.clone(), self.events.clone());
                }
                Dialled { target, sources: Vec::new() }
            });
            if !known.sources.contains(source) {
                known.sources.push(source.clone());
            }
        }
        dialled.retain(|address, known| {
            if !found.contains(address) {
                known.sources.retain(|known| known != source);
            }
            if known.sources.is_empty() {
                self.identity.ways.let_go(&known.target);
            }
            !known.sources.is_empty()
        });
    }

    /// Whether the nodes at all addresses that `source` leads to are reached, there or elsewhere.
    pub(crate) fn are_reached(&self, source: &Address) -> bool {
        let dialled = self.dialled.lock();
        let mut led_to = dialled.values().filter(|known| known.sources.contains(source));
        led_to.all(|known| self.identity.ways.is_reached(&known.target))
    }

    /// Told whenever a link comes up or goes down.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.identity.ways.changes()
    }

    pub(crate) fn handle_up(&self, id: LinkId, node: NodeId, link: &Arc<Link>, place: Place) {
        self.nodes.lock().handle_place(node, place);
        self.up.rcu(|up| {
            let mut up = up.as_ref().clone();
            up.handle_up(id, node, Arc::clone(link));
            up
        });
    }

    pub(crate) fn handle_down(&self, id: LinkId) {
        self.up.rcu(|up| {
            let mut up = up.as_ref().clone();
            up.handle_down(id);
            up
        });
    }

    /// A link to the node that is up. Several share the work in turn.
    pub(crate) fn to(&self, node: NodeId) -> Option<Arc<Link>> {
        let turn = || self.turn.fetch_add(1, Ordering::Relaxed);
        self.up.load().to(node, turn, |link| link.node() == Some(node)).cloned()
    }

    /// How a node is reached.
    pub(crate) fn reach(&self, node: NodeId) -> Reach {
        if self.to(node).is_none() {
            Reach::Unreached
        } else if self.identity.ways.is_direct(node) {
            Reach::Direct
        } else {
            Reach::Relay
        }
    }

    pub(crate) fn count(&self) -> LinkCounts {
        let owed = self.up.load().iter().map(|(_, link)| link.owed()).sum();
        let (direct, relayed) = self.identity.ways.count();
        LinkCounts { direct, relayed, refused: self.identity.refusals.counts(), owed }
    }

    pub(crate) fn handle_round_trip(&self, node: NodeId, sample: Duration) {
        self.nodes.lock().handle_round_trip(node, sample);
    }

    /// What a read came to that any replica may answer: others are asked for a while where the node is not fit.
    pub(crate) fn handle_attempted<T>(&self, node: NodeId, attempted: &Attempted<T>) {
        self.nodes.lock().handle_attempted(Instant::now(), node, attempted);
    }

    /// A link to the nearest of the nodes that can be reached and is fit; to those that are equally near in turn.
    pub(crate) fn to_nearest(&self, nodes: &[NodeId]) -> Option<(NodeId, Arc<Link>)> {
        let now = Instant::now();
        let chosen = self.nodes.lock().chosen(now, nodes);
        if let Some(node) = chosen
            && let Some(link) = self.to(node)
        {
            return Some((node, link));
        }
        let reached: Vec<NodeId> = nodes.iter().copied().filter(|node| self.to(*node).is_some()).collect();
        let node = self.nodes.lock().choose(now, &reached)?;
        self.to(node).map(|link| (node, link))
    }

    /// Where the nodes are that are reached, and the round trips to them.
    pub(crate) fn distances(&self) -> Vec<NodeDistance> {
        let up = self.up.load();
        let nodes = self.nodes.lock();
        let mut distances: Vec<NodeDistance> = Vec::new();
        for (node, _) in up.iter().filter(|(node, link)| link.node() == Some(*node)) {
            if distances.iter().all(|known| known.node != node)
                && let Some((place, round_trip)) = nodes.get(node)
            {
                distances.push(NodeDistance { node, place: place.clone(), round_trip });
            }
        }
        distances
    }
}
