//! Keeps a group usable: waits for what [`LeaderTracker`] waits for, and carries out what it says.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use gateway_core::asks;
use gateway_core::{LeaderTracker, NodeId, Quiet, Reach, Replicas, TrackerStep};
use tokio::time::sleep_until;
use tracing::{debug, info};

use super::{Group, Shared, now};
use crate::link::{Link, attempt};
use crate::random::{random, random_u32};

/// Runs until it is dropped.
pub(super) async fn track_leader(shared: &Shared, group: &Group) {
    let nonce = Bytes::copy_from_slice(&random::<16>());
    let links = Links { shared, group };
    let mut tracker = LeaderTracker::default();
    let mut probes = FuturesUnordered::new();
    let mut openings = FuturesUnordered::new();
    loop {
        let step = tracker.poll(now(), &group.state(), &links, random_u32);
        group.set_led(group.leader_link(shared).is_some());
        shared.tell_leader_known();
        match step {
            TrackerStep::Probe { nodes, least_term } => {
                probes.clear();
                probes.extend(nodes.into_iter().map(|(node, link)| async move {
                    let mut ask = asks::WhoLeads { least_term };
                    (node, attempt(&link, group.id(), &mut ask, None).await)
                }));
            }
            TrackerStep::OpenSession { node, link } => {
                let nonce = nonce.clone();
                openings.clear();
                openings.push(async move {
                    (node, attempt(&link, group.id(), &mut asks::OpenSession { nonce }, None).await)
                });
            }
            TrackerStep::Abandon { node, link } => {
                info!(group = group.id().0, silent = node.0, "another leader took over");
                if let Some(link) = link {
                    link.abandon(group.id());
                }
            }
            TrackerStep::Announce => group.announce(),
            TrackerStep::Await { until } => tokio::select! {
                Some((node, probed)) = probes.next() => {
                    let state = &mut group.state();
                    if tracker.handle_probed(state, node, probed) {
                        debug!(group = group.id().0, leader = ?state.route.leader(), "leader found");
                    }
                }
                Some((node, opened)) = openings.next() => {
                    let learned = group.learn(node, &opened);
                    tracker.handle_opened(now(), &mut group.state(), opened, learned, random_u32);
                }
                () = group.work.notified() => {}
                () = sleep_until(until.into()) => {}
            },
        }
    }
}

/// The links to a group's replicas.
struct Links<'a> {
    shared: &'a Shared,
    group: &'a Group,
}

impl Reach for Links<'_> {
    type Link = Arc<Link>;

    fn to(&self, node: NodeId) -> Option<Arc<Link>> {
        self.shared.links.to(node)
    }

    fn nearest(&self) -> Option<(NodeId, Arc<Link>)> {
        self.shared.links.to_nearest(&self.all())
    }
}

impl Replicas for Links<'_> {
    fn all(&self) -> Vec<NodeId> {
        self.shared.replicas(self.group)
    }

    fn quiet(&self, link: &Arc<Link>) -> Quiet {
        link.quiet()
    }
}
