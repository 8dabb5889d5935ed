//! Shard maps. A domain is carried by one group or by a few, each with some shards of it. How they came to be cut and to lie
//! where they are is a history of maps, of which nodes and gateways hear one after the other; the groups hold their shards as
//! the last of it says, for no command changes that while they run. Later maps differ in the addresses of nodes.

use std::collections::BTreeMap;
use std::fmt;

use bytes::{Bytes, BytesMut};
use consensus_core::Config;
use gateway_core::{Concern, Topology};
use keyspace::{Epoch, KeyRange, Op, RangeEnd, Route, ShardId, ShardSpan};
use shard_map::{Group, GroupId, KeySpan, NodeId, Role, Shard, ShardMap};

use super::commands::{Family, key};
use super::rng::Rng;

/// Maps of a domain that differ in addresses only, at most.
const LATER_MAPS_MAX: usize = 12;

/// See the module.
#[derive(Debug)]
pub(crate) struct Maps {
    domains: Vec<Domain>,
    /// By group: its domain, and its place among that domain's groups.
    places: Vec<(usize, u8)>,
    /// By node and domain: which map it knows.
    known: Vec<Vec<usize>>,
}

#[derive(Debug)]
struct Domain {
    /// The oldest first.
    maps: Vec<ShardMap>,
    /// From this one on the shards are as the groups hold them.
    settled: usize,
    /// The maps up to that one, as gateways read them.
    topologies: Vec<Topology>,
    /// The shards of its groups.
    spans: BTreeMap<GroupId, Vec<ShardSpan>>,
}

impl Maps {
    pub(crate) fn draw(rng: &mut Rng, nodes: usize, groups: &[Config]) -> Maps {
        let (mut domains, mut places) = (Vec::new(), Vec::new());
        while places.len() < groups.len() {
            let first = places.len();
            let most = if rng.flip() { 1 } else { rng.pick(&[2, 2, 3]) };
            let last = groups.len().min(first + most);
            places.extend((0..).take(last - first).map(|place| (domains.len(), place)));
            domains.push(Domain::draw(rng, first, &groups[first..last]));
        }
        let of_node = |_| {
            let known = |domain: &Domain| match rng.below(3) {
                0 => domain.settled,
                _ => rng.index(domain.settled + 1),
            };
            domains.iter().map(known).collect()
        };
        let known = (0..nodes).map(of_node).collect();
        Maps { domains, places, known }
    }

    /// How many domains there are.
    pub(crate) fn domains(&self) -> usize {
        self.domains.len()
    }

    /// The domain that a group carries.
    pub(crate) fn domain_of(&self, group: usize) -> usize {
        self.places[group].0
    }

    /// The groups that carry a domain.
    pub(crate) fn groups_of(&self, domain: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.places.len()).filter(move |group| self.domain_of(*group) == domain)
    }

    /// The place of a group among those of its domain: its keys begin with that.
    pub(crate) fn place_of(&self, group: usize) -> u8 {
        self.places[group].1
    }

    /// The shards that a group begins with.
    pub(crate) fn spans(&self, group: usize) -> &[ShardSpan] {
        &self.domains[self.domain_of(group)].spans[&GroupId(group as u64)]
    }

    /// The parts of a range that lie in different shards of a group, in the order of keys.
    pub(crate) fn parts(&self, group: usize, range: &KeyRange) -> Vec<KeyRange> {
        self.spans(group).iter().filter_map(|span| part(span, range)).collect()
    }

    /// In how many shards of its domain a range lies.
    pub(crate) fn shards_of(&self, group: usize, range: &KeyRange) -> usize {
        let spans = self.domains[self.domain_of(group)].spans.values().flatten();
        spans.filter(|span| part(span, range).is_some()).count()
    }

    /// One of the parts; the whole range, which is refused if it has several, by a number that none of them has.
    pub(crate) fn part_or_whole(&self, group: usize, range: KeyRange, number: u8) -> KeyRange {
        self.parts(group, &range).into_iter().nth(number.into()).unwrap_or(range)
    }

    /// Where a client sends a write; one that goes by an old map, where that says, and where there is none, by one that is
    /// older than any. What concerns several shards goes to the first of them.
    pub(crate) fn route(&self, group: usize, op: &Op, old: Option<u32>) -> Route {
        let domain = &self.domains[self.domain_of(group)];
        let map = old.map_or(domain.settled, |number| number as usize % (domain.settled + 1));
        let topology = &domain.topologies[map];
        let routed = topology.route_of(|| Concern::of_op(op)).or_else(|_| {
            topology.route_of(|| match Concern::of_op(op) {
                Concern::Keys(ranges) => {
                    let first = ranges.into_iter().map(|range| range.key).min().unwrap_or_default();
                    Concern::Keys(vec![KeyRange::single(first)])
                }
                Concern::Domain => Concern::Keys(Vec::new()),
            })
        });
        let route = routed.map_or(Route::FIRST, |routed| routed.route);
        if old.is_some() && map == domain.settled { Route { epoch: Epoch(0), ..route } } else { route }
    }

    /// As a node knows it, encoded.
    pub(crate) fn known_to(&self, node: usize, domain: usize) -> Bytes {
        encoded(&self.domains[domain].maps[self.known[node][domain]])
    }

    /// The newest map of a domain.
    pub(crate) fn newest(&self, domain: usize) -> usize {
        self.domains[domain].maps.len() - 1
    }

    /// A domain's map changes: the address of a node is written anew. Returns which one is the newest.
    pub(crate) fn change(&mut self, domain: usize, rng: &mut Rng) -> Option<usize> {
        let Domain { maps, settled, .. } = &mut self.domains[domain];
        let newest = maps.last().filter(|_| maps.len() <= *settled + LATER_MAPS_MAX)?;
        let nodes: Vec<NodeId> = newest.nodes().keys().copied().collect();
        let node = rng.pick(&nodes);
        let same = newest.address(node)?.to_owned();
        maps.push(newest.with_node(node, same).ok()?);
        Some(maps.len() - 1)
    }

    /// A node hears of a domain's map. Returns it, if that is news.
    pub(crate) fn learn(&mut self, node: usize, domain: usize, map: usize) -> Option<Bytes> {
        let known = &mut self.known[node][domain];
        if map <= *known {
            return None;
        }
        *known = map;
        Some(encoded(&self.domains[domain].maps[map]))
    }

    /// The domain whose map this is.
    pub(crate) fn domain_of_map(&self, map: &Bytes) -> Option<usize> {
        let map = ShardMap::decode(map.clone()).ok()?;
        let group = map.groups().keys().next()?;
        usize::try_from(group.0).ok().map(|group| self.domain_of(group))
    }
}

impl Domain {
    /// The keys are cut, and each shard comes to whom its keys name, not by the shortest way.
    fn draw(rng: &mut Rng, first: usize, configs: &[Config]) -> Domain {
        let owner = |place: usize| GroupId((first + place) as u64);
        let mut groups = BTreeMap::new();
        let mut nodes = BTreeMap::new();
        for (place, config) in configs.iter().enumerate() {
            let voters: Vec<u32> = config.voters.iter().map(|node| node.0).collect();
            let replicas = voters.iter().map(|node| (NodeId(*node), Role::Voter)).collect();
            groups.insert(owner(place), Group { replicas });
            nodes.extend(voters.into_iter().map(|node| (NodeId(node), address(node))));
        }
        // Each has some keys, not its own if there are several: a domain never seems to be carried by one of them.
        let shift = rng.index(configs.len());
        let shard = |place: usize| Shard {
            id: ShardId(place as u64 + 1),
            start: if place == 0 { Bytes::new() } else { Bytes::copy_from_slice(&[place as u8]) },
            group: owner((place + shift) % configs.len()),
        };
        let shards = (0..configs.len()).map(shard).collect();
        let begun = ShardMap::new(Epoch(1), shards, groups, nodes).expect("a group has members");
        let mut history = History(vec![begun]);

        let mut cuts = Vec::new();
        for place in 0..configs.len() {
            cuts.extend((0..rng.pick(&[0, 0, 1, 2, 3])).map(|_| draw_cut(rng, place)));
        }
        while !cuts.is_empty() {
            let cut = cuts.swap_remove(rng.index(cuts.len()));
            history.change(|map| map.split(&cut).ok());
            if rng.below(4) == 0 {
                // For a while, there is one more.
                let place = rng.index(configs.len());
                let cut = draw_cut(rng, place);
                if history.change(|map| map.split(&cut).ok()) {
                    history.change(|map| map.merge(&cut).ok());
                }
            }
            if configs.len() > 1 && rng.flip() {
                let to = owner(rng.index(configs.len()));
                history.change(|map| {
                    let shard = &map.shards()[rng.index(map.shards().len())];
                    let moved = map.move_shard(&shard.start, to).ok()?;
                    (shard.group != to && moved.owners_of(b"", None).len() > 1).then_some(moved)
                });
            }
        }
        history.change(|map| {
            let home = |shard: &Shard| owner(shard.start.first().map_or(0, |place| usize::from(*place)));
            let at_home = |shard: &Shard| Shard { group: home(shard), ..shard.clone() };
            let shards: Vec<Shard> = map.shards().iter().map(at_home).collect();
            let epoch = Epoch(map.epoch().0 + 1);
            let settled = ShardMap::new(epoch, shards, map.groups().clone(), map.nodes().clone());
            let settled = settled.expect("a shard can be moved to a group of the map");
            (settled.shards() != map.shards()).then_some(settled)
        });
        let maps = history.0;
        let read = |map| Topology::newer(encoded(map), None).ok().flatten().expect("a map can be read");
        let topologies = maps.iter().map(read).collect();
        let spans = (0..configs.len()).map(|place| (owner(place), spans(&maps, owner(place)))).collect();
        Domain { settled: maps.len() - 1, topologies, spans, maps }
    }
}

/// The shards of a group by the last of these maps.
fn spans(maps: &[ShardMap], group: GroupId) -> Vec<ShardSpan> {
    let last = maps.last().expect("there is one");
    let own = last.shards().iter().enumerate().filter(|(_, shard)| shard.group == group);
    let span = |(place, shard): (usize, &Shard)| {
        let same = |map: &&ShardMap| keys_of(map, shard.id) == keys_of(last, shard.id);
        let since = maps.iter().rev().take_while(same).last().map_or(Epoch::default(), ShardMap::epoch);
        let end = last.span(place).and_then(|span| span.end).map(Bytes::copy_from_slice);
        ShardSpan { id: shard.id, since, start: shard.start.clone(), end }
    };
    own.map(span).collect()
}

/// The maps of a domain, the oldest first.
struct History(Vec<ShardMap>);

impl History {
    fn last(&self) -> &ShardMap {
        self.0.last().expect("it begins with one")
    }

    /// Returns whether there was a change to make.
    fn change(&mut self, change: impl FnOnce(&ShardMap) -> Option<ShardMap>) -> bool {
        let changed = change(self.last());
        let has_changed = changed.is_some();
        self.0.extend(changed);
        has_changed
    }
}

/// Some key of a group but the first one of a family; or where a family begins.
fn draw_cut(rng: &mut Rng, place: usize) -> Bytes {
    let cut = key(place as u8, rng.pick(&Family::ALL), rng.range(1, 3) as u8);
    if rng.below(4) == 0 { cut.slice(..2) } else { cut }
}

/// Who has which keys as the shard of this id.
fn keys_of(map: &ShardMap, id: ShardId) -> Option<(GroupId, KeySpan<'_>)> {
    let place = map.shards().iter().position(|shard| shard.id == id)?;
    Some((map.shards()[place].group, map.span(place)?))
}

/// What of a range lies in a shard.
pub(crate) fn part(span: &ShardSpan, range: &KeyRange) -> Option<KeyRange> {
    let holds = |key: &Bytes| span.start <= *key && span.end.as_ref().is_none_or(|end| key < end);
    let first = range.key.clone().max(span.start.clone());
    let end = match (&range.end, &span.end) {
        (RangeEnd::Single, _) => return holds(&range.key).then(|| range.clone()),
        (RangeEnd::From, None) => return Some(KeyRange::from(first)),
        (RangeEnd::From, Some(end)) => end.clone(),
        (RangeEnd::At(end), None) => end.clone(),
        (RangeEnd::At(end), Some(own)) => end.min(own).clone(),
    };
    (first < end).then(|| KeyRange::between(first, end))
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

impl fmt::Display for Maps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, domain) in self.domains.iter().enumerate() {
            let settled = &domain.maps[domain.settled];
            write!(f, "\n  domain {number}, after {} changes:", domain.settled)?;
            for shard in settled.shards() {
                write!(f, " {} from {:?} at group {},", shard.id.0, shard.start, shard.group.0)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use consensus_core::NodeId;

    use super::*;

    fn drawn(seed: u64, groups: usize) -> Maps {
        let config = Config::majority([NodeId(1), NodeId(2), NodeId(3)]);
        Maps::draw(&mut Rng::new(seed), 3, &vec![config; groups])
    }

    #[test]
    fn every_key_of_a_group_is_in_one_of_its_shards() {
        for seed in 0..200 {
            let maps = drawn(seed, 4);
            for group in 0..4 {
                let place = maps.place_of(group);
                for family in Family::ALL {
                    for number in 0..4 {
                        let range = KeyRange::single(key(place, family, number));
                        assert_eq!(maps.parts(group, &range), std::slice::from_ref(&range), "seed {seed}");
                        assert_eq!(maps.shards_of(group, &range), 1);
                    }
                }
                let all = maps.parts(group, &KeyRange::all());
                assert_eq!(all.len(), maps.spans(group).len());
            }
        }
    }

    #[test]
    fn a_shard_is_where_it_is_since_its_keys_or_its_group_changed_last() {
        let mut since_first = 0;
        for seed in 0..200 {
            let maps = drawn(seed, 3);
            for domain in &maps.domains {
                for (group, span) in
                    domain.spans.iter().flat_map(|(group, of)| of.iter().map(move |span| (*group, span)))
                {
                    let was = |epoch: Epoch| {
                        let map = domain.maps.iter().find(|map| map.epoch() == epoch);
                        map.and_then(|map| keys_of(map, span.id))
                    };
                    let is = Some((group, KeySpan { start: &span.start, end: span.end.as_deref() }));
                    assert_eq!(was(span.since), is, "seed {seed}");
                    assert_ne!(was(Epoch(span.since.0 - 1)), is, "seed {seed}");
                    since_first += u32::from(span.since == Epoch(1));
                }
            }
        }
        assert!(since_first > 0, "some are as at first");
    }

    #[test]
    fn an_old_map_leads_elsewhere() {
        let mut astray = 0;
        for seed in 0..50 {
            let maps = drawn(seed, 2);
            for group in 0..2 {
                let op = Op::Put(keyspace::Put::new(key(maps.place_of(group), Family::Register, 2), ""));
                let routed = |old| {
                    let Route { shard, epoch } = maps.route(group, &op, old);
                    let span = maps.spans(group).iter().find(|span| span.id == shard);
                    span.is_some_and(|span| {
                        span.since <= epoch
                            && part(span, &KeyRange::single(key(maps.place_of(group), Family::Register, 2)))
                                .is_some()
                    })
                };
                assert!(routed(None), "seed {seed}");
                astray += (0..20).filter(|old| !routed(Some(*old))).count();
            }
        }
        assert!(astray > 100, "{astray}");
    }
}
