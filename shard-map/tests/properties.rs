//! Whatever is done to a map, it covers all keys, in order, and its epoch rises.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use proptest::{collection::vec, prelude::*};
use shard_map::*;

#[derive(Clone, Debug)]
enum Change {
    Split(Bytes),
    Merge(Bytes),
    Move(Bytes, GroupId),
    WithoutGroup(GroupId),
}

fn key() -> impl Strategy<Value = Bytes> {
    vec(b'a'..b'd', 0..3).prop_map(Bytes::from)
}

fn change() -> impl Strategy<Value = Change> {
    let group = || (0_u64..4).prop_map(GroupId);
    prop_oneof![
        3 => key().prop_map(Change::Split),
        2 => key().prop_map(Change::Merge),
        2 => (key(), group()).prop_map(|(key, group)| Change::Move(key, group)),
        1 => group().prop_map(Change::WithoutGroup),
    ]
}

fn apply(map: &ShardMap, change: &Change) -> Result<ShardMap, Invalid> {
    match change {
        Change::Split(at) => map.split(at),
        Change::Merge(at) => map.merge(at),
        Change::Move(at, to) => map.move_shard(at, *to),
        Change::WithoutGroup(group) => map.without_group(*group),
    }
}

fn nodes() -> BTreeMap<NodeId, String> {
    (1..=3).map(|id| (NodeId(id), format!("127.0.0.1:{}", 7000 + id))).collect()
}

/// Groups 0 to 2; group 0 owns everything.
fn begin() -> ShardMap {
    let voter = |id| (NodeId(id), Role::Voter);
    ShardMap::single_group(GroupId(0), nodes())
        .and_then(|map| map.with_group(GroupId(1), Group { replicas: [voter(1), voter(2)].into() }))
        .and_then(|map| {
            let learner = (NodeId(3), Role::Learner);
            map.with_group(GroupId(2), Group { replicas: [voter(1), learner].into() })
        })
        .expect("the map is valid")
}

fn encoded(map: &ShardMap) -> Bytes {
    let mut bytes = BytesMut::new();
    map.encode(&mut bytes);
    bytes.freeze()
}

/// The owner of a key, by looking at every shard.
fn owner(map: &ShardMap, key: &[u8]) -> GroupId {
    let holds = |place: &usize| {
        let span = map.span(*place).expect("the place is in the map");
        span.start <= key && span.end.is_none_or(|end| key < end)
    };
    let places: Vec<usize> = (0..map.shards().len()).filter(holds).collect();
    assert_eq!(places.len(), 1, "exactly one shard holds {key:?}");
    map.shards()[places[0]].group
}

proptest! {
    #[test]
    fn a_map_covers_all_keys_in_order_and_its_epoch_rises(
        changes in vec(change(), 0..30),
        keys in vec(key(), 10),
        ranges in vec((key(), prop::option::of(key())), 10),
    ) {
        let mut map = begin();
        let mut made: BTreeSet<ShardId> = map.shards().iter().map(|shard| shard.id).collect();
        for change in changes {
            let Ok(next) = apply(&map, &change) else { continue };
            next.validate().unwrap();
            for shard in next.shards().iter().filter(|shard| !map.shards().iter().any(|old| old.id == shard.id)) {
                prop_assert!(made.insert(shard.id), "{shard:?} has the id of one that is gone");
            }
            prop_assert_eq!(next.epoch(), Epoch(map.epoch().0 + 1));
            // Only a move changes an owner, and only of its shard.
            for key in &keys {
                let (before, after) = (owner(&map, key), owner(&next, key));
                match &change {
                    Change::Move(at, to) if map.shard_of(key).start == *at => prop_assert_eq!(after, *to),
                    Change::Move(..) | Change::Split(_) | Change::Merge(_) | Change::WithoutGroup(_) => {
                        prop_assert_eq!(after, before);
                    }
                }
            }
            map = next;
        }
        for key in &keys {
            prop_assert_eq!(map.shard_of(key).group, owner(&map, key));
        }
        for (start, end) in &ranges {
            let found = map.shards_of(start, end.as_deref());
            let expected: Vec<Shard> = (0..map.shards().len())
                .filter(|place| {
                    let span = map.span(*place).unwrap();
                    let below = end.as_ref().is_none_or(|end| span.start < end.as_ref() && start < end);
                    below && span.end.is_none_or(|end| start.as_ref() < end)
                })
                .map(|place| map.shards()[place].clone())
                .collect();
            prop_assert_eq!(found, &expected[..]);
        }
        let bytes = encoded(&map);
        prop_assert_eq!(ShardMap::decode(bytes.clone()), Ok(map));
        for len in 0..bytes.len() {
            prop_assert!(ShardMap::decode(bytes.slice(..len)).is_err());
        }
    }

    #[test]
    fn a_split_is_undone_by_a_merge(at in key()) {
        let map = begin();
        prop_assume!(!at.is_empty());
        let merged = map.split(&at).and_then(|map| map.merge(&at)).unwrap();
        prop_assert_eq!(merged.shards(), map.shards());
        prop_assert_eq!(merged.epoch(), Epoch(map.epoch().0 + 2));
    }

    #[test]
    fn garbage_never_panics_and_never_makes_an_invalid_map(mut bytes in vec(any::<u8>(), 0..100), place in 0_usize..60, bit in 0..8) {
        if let Ok(map) = ShardMap::decode(bytes.clone().into()) {
            map.validate().unwrap();
        }
        bytes = encoded(&begin()).to_vec();
        let place = place % bytes.len();
        bytes[place] ^= 1_u8 << bit;
        if let Ok(map) = ShardMap::decode(bytes.into()) {
            map.validate().unwrap();
        }
    }
}

#[test]
fn what_makes_no_map_is_refused() {
    let map = begin();
    let at = |key: &'static str| Bytes::from_static(key.as_bytes());
    assert_eq!(map.split(&at("")), Err(Invalid::ShardAt(at(""))));
    assert_eq!(map.merge(&at("")), Err(Invalid::NoShardAt(at(""))));
    assert_eq!(map.merge(&at("m")), Err(Invalid::NoShardAt(at("m"))));
    assert_eq!(map.move_shard(&at("m"), GroupId(1)), Err(Invalid::NoShardAt(at("m"))));
    assert_eq!(map.move_shard(&at(""), GroupId(9)), Err(Invalid::UnknownGroup(GroupId(9))));
    assert_eq!(map.without_group(GroupId(0)), Err(Invalid::InUse));
    assert_eq!(map.without_group(GroupId(9)), Err(Invalid::UnknownGroup(GroupId(9))));
    assert_eq!(map.without_node(NodeId(1)), Err(Invalid::InUse));
    assert_eq!(map.with_node(NodeId(4), String::new()), Err(Invalid::NoAddress(NodeId(4))));
    assert_eq!(map.with_group(GroupId(4), Group::default()), Err(Invalid::NoVoter(GroupId(4))));
    let elsewhere = Group { replicas: [(NodeId(9), Role::Voter)].into() };
    assert_eq!(map.with_group(GroupId(4), elsewhere), Err(Invalid::UnknownNode(NodeId(9))));
    let moved = map.split(&at("m")).and_then(|map| map.move_shard(&at("m"), GroupId(1))).unwrap();
    assert_eq!(moved.merge(&at("m")), Err(Invalid::DifferentOwners(GroupId(0), GroupId(1))));
    assert_eq!(moved.owners_of(b"a", None), [GroupId(0), GroupId(1)].into());
    assert_eq!(moved.owners_of(b"a", Some(b"m")), [GroupId(0)].into());
    let shards = |starts: &[&'static str]| {
        let shard = |(id, start): (u64, &&'static str)| Shard {
            id: ShardId(id),
            start: at(start),
            group: GroupId(0),
        };
        (1..).zip(starts).map(shard).collect::<Vec<_>>()
    };
    let new = |starts| ShardMap::new(Epoch(1), shards(starts), map.groups().clone(), nodes());
    assert_eq!(new(&[]), Err(Invalid::Uncovered));
    assert_eq!(new(&["a"]), Err(Invalid::Uncovered));
    assert_eq!(new(&["", "b", "a"]), Err(Invalid::Unordered(at("a"))));
    assert_eq!(new(&["", "b", "b"]), Err(Invalid::Unordered(at("b"))));
    let twice =
        [("", 7), ("m", 7)].map(|(start, id)| Shard { id: ShardId(id), start: at(start), group: GroupId(0) });
    let twice = ShardMap::new(Epoch(1), twice.to_vec(), map.groups().clone(), nodes());
    assert_eq!(twice, Err(Invalid::ShardId(ShardId(7))));
    let last = ShardMap::new(Epoch(u64::MAX), shards(&[""]), map.groups().clone(), nodes()).unwrap();
    assert_eq!(last.split(&at("m")), Err(Invalid::EpochExhausted));
}
