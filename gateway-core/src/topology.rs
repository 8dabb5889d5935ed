//! What the gateway needs of the shard map: which group owns a range, on which nodes it has replicas, and where those
//! are.

use std::fmt;

use bytes::Bytes;
use keyspace::{KeyRange, RangeEnd, Route};
use shard_map::{DecodeError, GroupId, Role, Shard, ShardMap};

use crate::concern::Concern;
use crate::failure::Failure;
use crate::mutant::mutant;
use crate::route::NodeId;

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routed {
    /// The group that owns the shard.
    pub group: GroupId,
    /// The shard, and by which map.
    pub route: Route,
}

/// A shard map, read. Never changed: a newer one takes its place.
#[derive(Debug)]
pub struct Topology {
    map: ShardMap,
    /// The group that owns every key, if there is one.
    only_group: Option<GroupId>,
}

/// Why a shard map is not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unbelieved {
    /// The bytes are no shard map.
    Unreadable(DecodeError),
    /// It cannot be true beside the known one: whoever sent it may carry other groups than it says, or with other voters.
    Contradicts,
}

impl fmt::Display for Unbelieved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unbelieved::Unreadable(error) => write!(f, "its shard map cannot be read: {error}"),
            Unbelieved::Contradicts => f.write_str(
                "its configuration names other groups, or other nodes for them, than that of the first node which \
                 answered: make `cluster` the same on all nodes",
            ),
        }
    }
}

impl Topology {
    /// Reads a shard map that a node sent; `None` if it is no newer than the known one.
    ///
    /// # Errors
    /// It is not believed.
    pub fn newer(encoded: Bytes, known: Option<&Topology>) -> Result<Option<Topology>, Unbelieved> {
        let topology = Topology::new(ShardMap::decode(encoded).map_err(Unbelieved::Unreadable)?);
        match known {
            Some(known) if known.contradicts(&topology) => Err(Unbelieved::Contradicts),
            Some(known) if known.epoch() >= topology.epoch() && !mutant!(OldMapBelieved) => Ok(None),
            Some(_) if mutant!(NewerMapIgnored) => Ok(None),
            Some(_) | None => {
                let is_newer = known.is_none_or(|known| known.epoch() < topology.epoch());
                assert!(is_newer || mutant!(OldMapBelieved), "a map is taken for a newer one alone");
                Ok(Some(topology))
            }
        }
    }

    fn new(map: ShardMap) -> Topology {
        let mut groups = map.shards().iter().map(|shard| shard.group);
        let only_group = groups.next().filter(|first| groups.all(|group| group == *first));
        let groups = map.groups();
        debug_assert!(only_group.is_none_or(|only| groups.contains_key(&only)), "a shard is of some group");
        Topology { map, only_group }
    }

    /// Which one it is; the higher the newer.
    pub fn epoch(&self) -> u64 {
        self.map.epoch().0
    }

    /// Whether both cannot be true at the same epoch. Addresses are not compared: they change one node after the other.
    fn contradicts(&self, other: &Topology) -> bool {
        self.epoch() == other.epoch()
            && (self.map.shards() != other.map.shards() || self.map.groups() != other.map.groups())
    }

    /// The groups that own shards.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> {
        self.map.shards().iter().map(|shard| shard.group)
    }

    /// Every node and the address of its link.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &str)> {
        self.map.nodes().iter().map(|(node, address)| (*node, address.as_str()))
    }

    /// The nodes with a replica of the group that holds data.
    pub fn replicas(&self, group: GroupId) -> Vec<NodeId> {
        let Some(group) = self.map.group(group) else { return Vec::new() };
        let holders = group.replicas.iter().filter(|(_, role)| match role {
            Role::Voter | Role::Learner => true,
            Role::Witness => false,
        });
        let replicas: Vec<NodeId> = holders.map(|(node, _)| *node).collect();
        debug_assert!(replicas.is_sorted_by(|one, next| one < next), "a node has one replica of a group");
        replicas
    }

    /// The group that a request goes to; what it concerns is only asked for if there are several shards.
    ///
    /// # Errors
    /// It concerns several.
    pub fn group_of(&self, concern: impl FnOnce() -> Concern) -> Result<GroupId, Failure> {
        self.route_of(concern).map(|routed| routed.group)
    }

    /// Where a request goes: to the shard that has all keys which it concerns.
    ///
    /// # Errors
    /// They are in several shards; or it concerns the domain, which several groups carry.
    pub fn route_of(&self, concern: impl FnOnce() -> Concern) -> Result<Routed, Failure> {
        if let [only] = self.map.shards() {
            return Ok(self.routed(only));
        }
        match concern() {
            Concern::Keys(ranges) => self.route_of_keys(&ranges),
            Concern::Domain if self.only_group.is_some() => self.route_of_keys(&[]),
            Concern::Domain => Err(Failure::SpansShards),
        }
    }

    /// Of no keys, any shard does.
    fn route_of_keys(&self, ranges: &[KeyRange]) -> Result<Routed, Failure> {
        let mut holder = None;
        for range in ranges {
            let shards = match &range.end {
                RangeEnd::Single => std::slice::from_ref(self.map.shard_of(&range.key)),
                RangeEnd::From => self.map.shards_of(&range.key, None),
                RangeEnd::At(end) => self.map.shards_of(&range.key, Some(end)),
            };
            for shard in shards {
                if holder.get_or_insert(shard).id != shard.id {
                    return Err(Failure::SpansShards);
                }
            }
        }
        Ok(self.routed(holder.unwrap_or_else(|| self.map.shard_of(b""))))
    }

    fn routed(&self, shard: &Shard) -> Routed {
        debug_assert!(
            self.map.shards().iter().any(|known| known.id == shard.id),
            "a route is of the map that is known"
        );
        Routed { group: shard.group, route: Route { shard: shard.id, epoch: self.map.epoch() } }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::BytesMut;
    use shard_map::{Epoch, Group, ShardId};

    use super::*;

    fn topology() -> Topology {
        let nodes = BTreeMap::from([(NodeId(1), "a:1".to_owned())]);
        let group = Group { replicas: BTreeMap::from([(NodeId(1), Role::Voter)]) };
        let groups = BTreeMap::from([(GroupId(5), group.clone()), (GroupId(6), group)]);
        let shard = |id, start: &'static str, group| Shard {
            id: ShardId(id),
            start: start.into(),
            group: GroupId(group),
        };
        let shards = vec![shard(1, "", 5), shard(2, "m", 6), shard(3, "t", 6)];
        Topology::new(ShardMap::new(Epoch(3), shards, groups, nodes).unwrap())
    }

    #[test]
    fn a_range_belongs_to_the_group_of_its_shard() {
        let topology = topology();
        let all_of = |ranges: &[KeyRange]| {
            let routed = topology.route_of(|| Concern::Keys(ranges.to_vec()))?;
            assert_eq!(routed.route.epoch, Epoch(3));
            Ok((routed.group.0, routed.route.shard.0))
        };
        let of = |range: KeyRange| all_of(&[range]);
        assert_eq!(of(KeyRange::single("a")), Ok((5, 1)));
        assert_eq!(of(KeyRange::single("n")), Ok((6, 2)));
        assert_eq!(of(KeyRange::between("a", "m")), Ok((5, 1)));
        assert_eq!(of(KeyRange::from("u")), Ok((6, 3)));
        assert_eq!(of(KeyRange::from("a")), Err(Failure::SpansShards));
        assert_eq!(of(KeyRange::from("n")), Err(Failure::SpansShards), "though one group has both");
        assert_eq!(of(KeyRange::between("z", "a")), Ok((5, 1)), "an empty range is anybody's");
        assert_eq!(all_of(&[]), Ok((5, 1)));
        let (low, high) = (KeyRange::single("a"), KeyRange::single("z"));
        assert_eq!(all_of(&[low, high]), Err(Failure::SpansShards));
        assert_eq!(topology.group_of(|| Concern::Domain), Err(Failure::SpansShards));
    }

    #[test]
    fn one_group_is_concerned_by_everything() {
        let nodes = BTreeMap::from([(NodeId(1), "a:1".to_owned())]);
        let topology = Topology::new(ShardMap::single_group(GroupId(5), nodes).unwrap());
        let unasked = || -> Concern { panic!("there is one group") };
        assert_eq!(topology.group_of(unasked), Ok(GroupId(5)));
    }

    #[test]
    fn a_map_is_believed_if_it_is_newer_and_contradicts_nothing() {
        let encoded = |map: &ShardMap| {
            let mut encoded = BytesMut::new();
            map.encode(&mut encoded);
            encoded.freeze()
        };
        let nodes = |node| BTreeMap::from([(NodeId(node), "a:1".to_owned())]);
        let map = ShardMap::single_group(GroupId(5), nodes(1)).unwrap();
        let split = map.split(&"m".into()).unwrap();
        let epoch = |map: &ShardMap, known: Option<&Topology>| {
            Topology::newer(encoded(map), known).map(|newer| newer.map(|topology| topology.epoch()))
        };
        let (known, later) = (Topology::new(map.clone()), Topology::new(split.clone()));
        assert_eq!(epoch(&map, None), Ok(Some(known.epoch())));
        assert_eq!(epoch(&map, Some(&known)), Ok(None));
        assert_eq!(epoch(&split, Some(&known)), Ok(Some(known.epoch() + 1)));
        assert_eq!(epoch(&map, Some(&later)), Ok(None), "an old one comes late");
        let other = ShardMap::single_group(GroupId(5), nodes(2)).unwrap();
        assert_eq!(epoch(&other, Some(&known)), Err(Unbelieved::Contradicts));
        let cut = Topology::newer(encoded(&map).slice(1..), Some(&known));
        assert!(matches!(cut, Err(Unbelieved::Unreadable(_))));
    }

    #[test]
    fn maps_of_one_epoch_may_differ_in_addresses_only() {
        let change = |epoch, node, address: &str| {
            let nodes = BTreeMap::from([(NodeId(node), address.to_owned())]);
            let map = ShardMap::single_group(GroupId(5), nodes).unwrap();
            let (shards, groups, nodes) = (map.shards().to_vec(), map.groups().clone(), map.nodes().clone());
            Topology::new(ShardMap::new(Epoch(epoch), shards, groups, nodes).unwrap())
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
        assert_eq!(topology().replicas(GroupId(5)), [NodeId(1)]);
        assert!(topology().replicas(GroupId(7)).is_empty());
    }
}
