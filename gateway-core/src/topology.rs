//! What the gateway needs of the shard map: which group owns a range, on which nodes it has replicas, and where those
//! are.

use bytes::Bytes;
use keyspace::{KeyRange, RangeEnd};
use shard_map::{DecodeError, GroupId, Role, ShardMap};

use crate::failure::Failure;
use crate::leader_tracker::NodeId;

/// A shard map, read. Never changed: a newer one takes its place.
#[derive(Debug)]
pub struct Topology(ShardMap);

impl Topology {
    /// Reads one.
    ///
    /// # Errors
    /// The bytes are no shard map.
    pub fn decode(encoded: Bytes) -> Result<Topology, DecodeError> {
        ShardMap::decode(encoded).map(Topology)
    }

    /// Which one it is; the higher the newer.
    pub fn epoch(&self) -> u64 {
        self.0.epoch().0
    }

    /// Whether both cannot be true at the same epoch. Addresses are not compared: they change one node after the other.
    pub fn contradicts(&self, other: &Topology) -> bool {
        self.epoch() == other.epoch()
            && (self.0.shards() != other.0.shards() || self.0.groups() != other.0.groups())
    }

    /// The groups that own shards.
    pub fn groups(&self) -> impl Iterator<Item = u64> {
        self.0.shards().iter().map(|shard| shard.group.0)
    }

    /// Every node and the address of its link.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &str)> {
        self.0.nodes().iter().filter_map(|(node, address)| Some((link_id(*node)?, address.as_str())))
    }

    /// The nodes with a replica of the group that holds data.
    pub fn replicas(&self, group: u64) -> Vec<NodeId> {
        let Some(group) = self.0.group(GroupId(group)) else { return Vec::new() };
        let holders = group.replicas.iter().filter(|(_, role)| match role {
            Role::Voter | Role::Learner => true,
            Role::Witness => false,
        });
        holders.filter_map(|(node, _)| link_id(*node)).collect()
    }

    /// The group that owns every key, if there is one.
    pub fn only_group(&self) -> Option<u64> {
        let mut groups = self.groups();
        let first = groups.next()?;
        groups.all(|group| group == first).then_some(first)
    }

    /// The group that owns all of `ranges`; of none, the one of the lowest keys, which answers for the domain.
    ///
    /// # Errors
    /// They belong to several.
    pub fn group_of(&self, ranges: &[KeyRange]) -> Result<u64, Failure> {
        let mut owner = None;
        for range in ranges {
            let shards = match &range.end {
                RangeEnd::Single => std::slice::from_ref(self.0.shard_of(&range.key)),
                RangeEnd::From => self.0.shards_of(&range.key, None),
                RangeEnd::At(end) => self.0.shards_of(&range.key, Some(end)),
            };
            for shard in shards {
                if *owner.get_or_insert(shard.group.0) != shard.group.0 {
                    return Err(Failure::SpansShards);
                }
            }
        }
        Ok(owner.unwrap_or(self.0.shards()[0].group.0))
    }
}

/// A node's id as the link has it. The map allows larger ones; no node can have them.
fn link_id(node: shard_map::NodeId) -> Option<NodeId> {
    NodeId::try_from(node.0).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use shard_map::{Epoch, Group, Shard};

    use super::*;

    fn topology() -> Topology {
        let nodes = BTreeMap::from([(shard_map::NodeId(1), "a:1".to_owned())]);
        let group = Group { replicas: BTreeMap::from([(shard_map::NodeId(1), Role::Voter)]) };
        let groups = BTreeMap::from([(GroupId(5), group.clone()), (GroupId(6), group)]);
        let shard = |start: &'static str, group| Shard { start: start.into(), group: GroupId(group) };
        let shards = vec![shard("", 5), shard("m", 6)];
        Topology(ShardMap::new(Epoch(3), shards, groups, nodes).unwrap())
    }

    #[test]
    fn a_range_belongs_to_the_group_of_its_shard() {
        let topology = topology();
        let of = |range: KeyRange| topology.group_of(&[range]);
        assert_eq!(of(KeyRange::single("a")), Ok(5));
        assert_eq!(of(KeyRange::single("z")), Ok(6));
        assert_eq!(of(KeyRange::between("a", "m")), Ok(5));
        assert_eq!(of(KeyRange::from("n")), Ok(6));
        assert_eq!(of(KeyRange::from("a")), Err(Failure::SpansShards));
        assert_eq!(of(KeyRange::between("z", "a")), Ok(5), "an empty range is anybody's");
        assert_eq!(topology.group_of(&[]), Ok(5));
        assert_eq!(topology.only_group(), None);
        let (low, high) = (KeyRange::single("a"), KeyRange::single("z"));
        assert_eq!(topology.group_of(&[low, high]), Err(Failure::SpansShards));
    }

    #[test]
    fn maps_of_one_epoch_may_differ_in_addresses_only() {
        let change = |epoch, node, address: &str| {
            let nodes = BTreeMap::from([(shard_map::NodeId(node), address.to_owned())]);
            let map = ShardMap::single_group(GroupId(5), nodes).unwrap();
            let (shards, groups, nodes) = (map.shards().to_vec(), map.groups().clone(), map.nodes().clone());
            Topology(ShardMap::new(Epoch(epoch), shards, groups, nodes).unwrap())
        };
        let map = change(1, 1, "a:1");
        assert!(!map.contradicts(&change(1, 1, "b:2")));
        assert!(map.contradicts(&change(1, 2, "a:1")));
        assert!(!map.contradicts(&change(2, 2, "a:1")), "a later one may say anything");
        assert!(!change(3, 1, "a:1").contradicts(&change(3, 1, "a:1")));
        assert!(change(3, 1, "a:1").contradicts(&topology()), "other shards");
    }

    #[test]
    fn replicas_are_those_with_data() {
        assert_eq!(topology().replicas(5), [1]);
        assert!(topology().replicas(7).is_empty());
    }
}
