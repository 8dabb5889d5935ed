//! The shard map: which group owns which keys, and where its replicas are.
//!
//! A map is a value. It is never changed in place: [`ShardMap::split`], [`ShardMap::merge`], [`ShardMap::move_shard`]
//! and the rest return a new map with a higher epoch, so that of two maps the newer one is known by its epoch alone.
//! Every map that exists is valid: there is no way to build one that [`ShardMap::new`] or [`ShardMap::decode`] has not
//! checked.
//!
//! What it is not: it moves no data and talks to nobody.

mod codec;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use bytes::Bytes;

pub use codec::DecodeError;

/// A version of the map. Every change raises it by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// A node: a replica process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

/// A consensus group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u64);

/// A shard, by a number that no other shard of the domain has had or will have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u64);

/// A contiguous range of keys, and the group that owns it. It ends where the next shard of the map begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Which one. It keeps its id when it is moved, and when keys are cut off it or joined to it.
    pub id: ShardId,
    /// The first key. That of the first shard is empty.
    pub start: Bytes,
    /// The owner.
    pub group: GroupId,
}

/// What a replica does in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Votes and holds the data.
    Voter,
    /// Holds the data and does not vote.
    Learner,
    /// Votes and holds no data.
    Witness,
}

/// A consensus group's members.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// The nodes and what each does; at least one voter.
    pub replicas: BTreeMap<NodeId, Role>,
}

/// Who owns which keys. The shards cover all keys, without gaps and without overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardMap {
    epoch: Epoch,
    /// Sorted by start.
    shards: Vec<Shard>,
    /// The highest id that a shard has had.
    last_shard: ShardId,
    groups: BTreeMap<GroupId, Group>,
    /// Host and port of each node's link.
    nodes: BTreeMap<NodeId, String>,
}

/// Some keys. The end is exclusive; none means that there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeySpan<'a> {
    /// The first key.
    pub start: &'a [u8],
    /// The first key after it.
    pub end: Option<&'a [u8]>,
}

/// Why a map is not valid, or a change of it not possible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// There is no shard, or the first one does not begin at the empty key.
    Uncovered,
    /// A shard does not begin after the one before it.
    Unordered(Bytes),
    /// A shard's group is not in the map.
    UnknownGroup(GroupId),
    /// A group's replica is on a node that is not in the map.
    UnknownNode(NodeId),
    /// A group has no voter.
    NoVoter(GroupId),
    /// A node has no address.
    NoAddress(NodeId),
    /// No shard begins at this key.
    NoShardAt(Bytes),
    /// A shard begins at this key already.
    ShardAt(Bytes),
    /// Two shards have this id, or it is above the highest one given.
    ShardId(ShardId),
    /// Two shards to be merged belong to different groups.
    DifferentOwners(GroupId, GroupId),
    /// A group to be removed still owns a shard, or a node a replica.
    InUse,
    /// The epoch cannot be raised, or there is no id for another shard.
    EpochExhausted,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Invalid::Uncovered => f.write_str("the shards do not begin at the lowest key"),
            Invalid::Unordered(start) => write!(f, "the shard at {start:?} is not after the one before it"),
            Invalid::UnknownGroup(group) => write!(f, "group {} is not in the map", group.0),
            Invalid::UnknownNode(node) => write!(f, "node {} is not in the map", node.0),
            Invalid::NoVoter(group) => write!(f, "group {} has no voter", group.0),
            Invalid::NoAddress(node) => write!(f, "node {} has no address", node.0),
            Invalid::NoShardAt(key) => write!(f, "no shard begins at {key:?}"),
            Invalid::ShardAt(key) => write!(f, "a shard begins at {key:?} already"),
            Invalid::ShardId(id) => write!(f, "shard {} stands twice, or was never made", id.0),
            Invalid::DifferentOwners(a, b) => write!(f, "the shards belong to groups {} and {}", a.0, b.0),
            Invalid::InUse => f.write_str("it is still in use"),
            Invalid::EpochExhausted => f.write_str("the epoch cannot be raised, or no shard be added"),
        }
    }
}

impl std::error::Error for Invalid {}

impl ShardMap {
    /// A map of these parts, whose shards are the first ones. An error if it breaks a rule, as with every change below.
    pub fn new(
        epoch: Epoch,
        shards: Vec<Shard>,
        groups: BTreeMap<GroupId, Group>,
        nodes: BTreeMap<NodeId, String>,
    ) -> Result<ShardMap, Invalid> {
        let last_shard = shards.iter().map(|shard| shard.id).max().unwrap_or_default();
        let map = ShardMap { epoch, shards, last_shard, groups, nodes };
        map.validate()?;
        Ok(map)
    }

    /// The map of a domain that one group of voters carries, at epoch 1. An error without nodes.
    pub fn single_group(group: GroupId, nodes: BTreeMap<NodeId, String>) -> Result<ShardMap, Invalid> {
        let replicas = nodes.keys().map(|node| (*node, Role::Voter)).collect();
        let shards = vec![Shard { id: ShardId(1), start: Bytes::new(), group }];
        ShardMap::new(Epoch(1), shards, BTreeMap::from([(group, Group { replicas })]), nodes)
    }

    /// Checks what holds of every map. The error names the first rule that is broken.
    pub fn validate(&self) -> Result<(), Invalid> {
        if !self.shards.first().is_some_and(|shard| shard.start.is_empty()) {
            return Err(Invalid::Uncovered);
        }
        if let Some(pair) = self.shards.windows(2).find(|pair| pair[0].start >= pair[1].start) {
            return Err(Invalid::Unordered(pair[1].start.clone()));
        }
        let mut ids = BTreeSet::new();
        let is_wrong = |shard: &&Shard| !ids.insert(shard.id) || shard.id > self.last_shard;
        if let Some(shard) = self.shards.iter().find(is_wrong) {
            return Err(Invalid::ShardId(shard.id));
        }
        if let Some(shard) = self.shards.iter().find(|shard| !self.groups.contains_key(&shard.group)) {
            return Err(Invalid::UnknownGroup(shard.group));
        }
        for (id, group) in &self.groups {
            if let Some(node) = group.replicas.keys().find(|node| !self.nodes.contains_key(node)) {
                return Err(Invalid::UnknownNode(*node));
            }
            if !group.replicas.values().any(|role| *role == Role::Voter) {
                return Err(Invalid::NoVoter(*id));
            }
        }
        if let Some((node, _)) = self.nodes.iter().find(|(_, address)| address.is_empty()) {
            return Err(Invalid::NoAddress(*node));
        }
        Ok(())
    }

    /// The map's version.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The shards, in the order of keys.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// The groups.
    pub fn groups(&self) -> &BTreeMap<GroupId, Group> {
        &self.groups
    }

    /// The nodes and the addresses of their links.
    pub fn nodes(&self) -> &BTreeMap<NodeId, String> {
        &self.nodes
    }

    /// A group's members.
    pub fn group(&self, group: GroupId) -> Option<&Group> {
        self.groups.get(&group)
    }

    /// The address of a node's link.
    pub fn address(&self, node: NodeId) -> Option<&str> {
        self.nodes.get(&node).map(String::as_str)
    }

    /// The shard that holds a key.
    pub fn shard_of(&self, key: &[u8]) -> &Shard {
        &self.shards[self.place_of(key)]
    }

    /// The shards that hold a key of the range `[start, end)`, in the order of keys; without an end, from `start` on. An
    /// empty range has none.
    pub fn shards_of(&self, start: &[u8], end: Option<&[u8]>) -> &[Shard] {
        if end.is_some_and(|end| end <= start) {
            return &[];
        }
        let first = self.place_of(start);
        let last = match end {
            Some(end) => self.shards.partition_point(|shard| shard.start.as_ref() < end),
            None => self.shards.len(),
        };
        assert!(first < last, "every key is of some shard");
        &self.shards[first..last]
    }

    /// The keys of the shard at a place of [`ShardMap::shards`].
    pub fn span(&self, place: usize) -> Option<KeySpan<'_>> {
        let shard = self.shards.get(place)?;
        Some(KeySpan { start: &shard.start, end: self.shards.get(place + 1).map(|next| next.start.as_ref()) })
    }

    /// Cuts the shard that holds `at` in two; the upper one begins at `at`, and has the same owner and an id of its own.
    pub fn split(&self, at: &Bytes) -> Result<ShardMap, Invalid> {
        let place = self.place_of(at);
        let group = self.shards[place].group;
        if self.shards[place].start == *at {
            return Err(Invalid::ShardAt(at.clone()));
        }
        let map = self.changed(|map| {
            let id = ShardId(map.last_shard.0.checked_add(1).ok_or(Invalid::EpochExhausted)?);
            map.last_shard = id;
            map.shards.insert(place + 1, Shard { id, start: at.clone(), group });
            Ok(())
        })?;
        assert!(self.shards.iter().all(|shard| shard.id != map.last_shard), "the new shard is none that was");
        assert_eq!(map.shard_of(at).id, map.last_shard, "what lies above is the new shard's");
        assert_eq!(map.shards[place], self.shards[place], "what lies below stays where it was");
        let (upper, whole) = (map.span(place + 1), self.span(place));
        assert_eq!(
            upper.map(|span| span.end),
            whole.map(|span| span.end),
            "and both together hold what the one held"
        );
        Ok(map)
    }

    /// Joins the shard that begins at `at` to the one below it, whose id stays. Both must have one owner: move first.
    pub fn merge(&self, at: &Bytes) -> Result<ShardMap, Invalid> {
        let place = self.place_at(at)?;
        let Some(below) = place.checked_sub(1) else { return Err(Invalid::NoShardAt(at.clone())) };
        let (lower, upper) = (self.shards[below].group, self.shards[place].group);
        if lower != upper {
            return Err(Invalid::DifferentOwners(lower, upper));
        }
        let map = self.changed(|map| {
            map.shards.remove(place);
            Ok(())
        })?;
        assert_eq!(map.shards[below], self.shards[below], "the shard below goes on");
        let (whole, upper) = (map.span(below), self.span(place));
        assert_eq!(whole.map(|span| span.end), upper.map(|span| span.end), "and holds what both held");
        Ok(map)
    }

    /// Gives the shard that begins at `at` to another group. An error if no shard begins there, or there is no such group.
    pub fn move_shard(&self, at: &Bytes, to: GroupId) -> Result<ShardMap, Invalid> {
        let place = self.place_at(at)?;
        self.changed(|map| {
            map.shards[place].group = to;
            Ok(())
        })
    }

    /// Adds a group, or changes its members. An error if it has no voter, or a node that is not in the map.
    pub fn with_group(&self, id: GroupId, group: Group) -> Result<ShardMap, Invalid> {
        self.changed(|map| {
            map.groups.insert(id, group);
            Ok(())
        })
    }

    /// Adds a node, or changes its address. An error without an address.
    pub fn with_node(&self, id: NodeId, address: String) -> Result<ShardMap, Invalid> {
        self.changed(|map| {
            map.nodes.insert(id, address);
            Ok(())
        })
    }

    /// Removes a group that owns nothing; an error if it does, or is not there.
    pub fn without_group(&self, id: GroupId) -> Result<ShardMap, Invalid> {
        if self.shards.iter().any(|shard| shard.group == id) {
            return Err(Invalid::InUse);
        }
        self.changed(|map| map.groups.remove(&id).map(drop).ok_or(Invalid::UnknownGroup(id)))
    }

    /// Removes a node without replicas; an error if it has some, or is not there.
    pub fn without_node(&self, id: NodeId) -> Result<ShardMap, Invalid> {
        if self.groups.values().any(|group| group.replicas.contains_key(&id)) {
            return Err(Invalid::InUse);
        }
        self.changed(|map| map.nodes.remove(&id).map(drop).ok_or(Invalid::UnknownNode(id)))
    }

    /// The groups that own a shard of the range `[start, end)`, each once.
    pub fn owners_of(&self, start: &[u8], end: Option<&[u8]>) -> BTreeSet<GroupId> {
        self.shards_of(start, end).iter().map(|shard| shard.group).collect()
    }

    /// A changed copy with the next epoch.
    fn changed(
        &self,
        change: impl FnOnce(&mut ShardMap) -> Result<(), Invalid>,
    ) -> Result<ShardMap, Invalid> {
        let mut map = self.clone();
        map.epoch = Epoch(self.epoch.0.checked_add(1).ok_or(Invalid::EpochExhausted)?);
        change(&mut map)?;
        map.validate()?;
        assert!(map.epoch > self.epoch, "of two maps the newer one is known by its epoch");
        assert!(map.last_shard >= self.last_shard, "the id of a shard is never given again");
        Ok(map)
    }

    fn place_of(&self, key: &[u8]) -> usize {
        let after = self.shards.partition_point(|shard| shard.start.as_ref() <= key);
        let place = after.checked_sub(1).expect("the first shard begins at the lowest key");
        debug_assert!(
            self.shards.get(after).is_none_or(|next| key < next.start.as_ref()),
            "and each ends at the next"
        );
        place
    }

    fn place_at(&self, start: &Bytes) -> Result<usize, Invalid> {
        let place = self.place_of(start);
        if self.shards[place].start == *start { Ok(place) } else { Err(Invalid::NoShardAt(start.clone())) }
    }
}
