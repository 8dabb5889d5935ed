//! What the nodes say of themselves, asked of all at once.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use gateway_core::NodeId;
use gateway_core::link::OF_THE_NODE;
use tokio::time::{Instant, timeout};

use super::{Shared, asks};
use crate::link::attempt;
use crate::status::{NodeSaid, NodeStatus};

/// A node that has not answered for this long is told of without.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

impl Shared {
    /// All nodes of the shard map, and which of them hold replicas of which group.
    pub(super) async fn nodes(&self) -> (Vec<NodeStatus>, BTreeMap<u64, Vec<u32>>) {
        let Some(topology) = self.topology.load_full() else { return Default::default() };
        let nodes = join_all(topology.nodes().map(|(node, address)| self.node(node, address)));
        let replicas = topology.groups().map(|group| {
            let nodes = topology.replicas(group).into_iter().map(|node| node.0);
            (group.0, nodes.collect())
        });
        (nodes.await, replicas.collect())
    }

    async fn node(&self, id: NodeId, address: &str) -> NodeStatus {
        let asked = Instant::now();
        let said = timeout(ANSWER_WITHIN, self.ask_node(id)).await.ok().flatten();
        NodeStatus {
            id: id.0,
            address: Some(address.to_owned()),
            reach: Some(self.links.reach(id)),
            answer_seconds: said.is_some().then(|| asked.elapsed().as_secs_f64()),
            said,
        }
    }

    async fn ask_node(&self, id: NodeId) -> Option<NodeSaid> {
        let link = self.links.to(id)?;
        // A node of an older version refuses the question.
        attempt(&link, OF_THE_NODE, &mut asks::NodeStatus, None).await.answer()
    }
}
