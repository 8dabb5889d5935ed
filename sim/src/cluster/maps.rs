//! Shard maps, as each node knows them: every group is a domain of its own, whose map changes now and then. Nodes hear of
//! that one after the other.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use consensus_core::Config;
use shard_map::{GroupId, NodeId, ShardMap};

use super::rng::Rng;

/// Maps of a group, at most.
const MAPS_MAX: usize = 12;

/// See the module.
#[derive(Debug)]
pub(crate) struct Maps {
    /// By group, the oldest first.
    all: Vec<Vec<ShardMap>>,
    /// By node and group: which of them it knows.
    known: Vec<Vec<usize>>,
}

impl Maps {
    pub(crate) fn new(nodes: usize, groups: &[Config]) -> Maps {
        let all = (0..).zip(groups).map(|(group, config)| {
            let members: BTreeMap<NodeId, String> =
                config.voters.iter().map(|node| (NodeId(node.0), address(node.0))).collect();
            let map = ShardMap::single_group(GroupId(group), members).expect("a group has members");
            vec![map]
        });
        Maps { all: all.collect(), known: vec![vec![0; groups.len()]; nodes] }
    }

    /// As a node knows them, encoded, by group.
    pub(crate) fn known_to(&self, node: usize) -> Vec<Bytes> {
        let known = &self.known[node];
        self.all.iter().zip(known).map(|(maps, known)| encoded(&maps[*known])).collect()
    }

    /// A group's map changes: the address of a node is written anew. Returns which one is the newest.
    pub(crate) fn change(&mut self, group: usize, rng: &mut Rng) -> Option<usize> {
        let maps = &mut self.all[group];
        let newest = maps.last().filter(|_| maps.len() < MAPS_MAX)?;
        let nodes: Vec<NodeId> = newest.nodes().keys().copied().collect();
        let node = rng.pick(&nodes);
        let same = newest.address(node)?.to_owned();
        maps.push(newest.with_node(node, same).ok()?);
        Some(maps.len() - 1)
    }

    /// A node hears of a group's map. Returns it, if that is news.
    pub(crate) fn learn(&mut self, node: usize, group: usize, map: usize) -> Option<Bytes> {
        let known = &mut self.known[node][group];
        if map <= *known {
            return None;
        }
        *known = map;
        Some(encoded(&self.all[group][map]))
    }
}

/// Where a node's link is.
pub(crate) fn address(node: u32) -> String {
    format!("n{node}")
}

fn encoded(map: &ShardMap) -> Bytes {
    let mut encoded = BytesMut::new();
    map.encode(&mut encoded);
    encoded.freeze()
}
