//! Which node to ask where several would do: the nearest one that is fit. Pure.
//!
//! One in the same zone comes first, then those of the same region, then the others; among equals the one with the shortest
//! round trip. Round trips that differ by little are equal, and such nodes share the work: each has its turn of a millisecond, so
//! that what comes together goes together, and its answers come so. A node that failed, or was behind what a client had seen, is left
//! alone for a while, unless there is no other.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::attempt::Attempted;
use crate::route::NodeId;

/// The first rest of a node that failed, and the longest: it doubles with each failure after a rest.
const REST_MIN: Duration = Duration::from_secs(1);
const REST_MAX: Duration = Duration::from_secs(30);
/// Round trips are equal up to this much, or to a quarter of the shorter one.
const EQUAL: Duration = Duration::from_millis(1);
/// For so long a node is chosen again among its equals. With a frame to each of them for what fits into one, a read costs a third more.
const TURN: Duration = Duration::from_millis(1);

/// A region, and a zone of it. Empty where that was not said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The region.
    pub region: String,
    /// The zone.
    pub zone: String,
}

/// How near a place is by its name; the smaller the nearer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Distance {
    SameZone,
    SameRegion,
    Elsewhere,
}

impl Place {
    fn distance(&self, other: &Place) -> Distance {
        if self.region.is_empty() || self.region != other.region {
            Distance::Elsewhere
        } else if self.zone.is_empty() || self.zone != other.zone {
            Distance::SameRegion
        } else {
            Distance::SameZone
        }
    }
}

/// A smoothed round trip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundTrip(Option<Duration>);

impl RoundTrip {
    /// Takes in a measurement. A shorter one counts at once, for nothing is faster than the way allows; of a longer one an
    /// eighth, since it may have waited somewhere.
    pub fn handle_sample(&mut self, sample: Duration) {
        self.0 = Some(match self.0 {
            Some(known) if known < sample => (known * 7 + sample) / 8,
            Some(_) | None => sample,
        });
        assert!(self.0 <= Some(sample), "one slow answer does not make a node look slower than it was");
    }

    /// None before the first measurement.
    pub fn get(self) -> Option<Duration> {
        self.0
    }
}

/// What is known of all nodes.
#[derive(Clone, Debug, Default)]
pub struct Nodes {
    own: Place,
    nodes: BTreeMap<NodeId, Known>,
    /// Counts the turns.
    turn: usize,
    /// Whose turn it is, and until when.
    chosen: Option<(NodeId, Instant)>,
}

#[derive(Clone, Debug, Default)]
struct Known {
    place: Place,
    round_trip: RoundTrip,
    /// Until when it is left alone.
    rests_until: Option<Instant>,
    /// The next rest.
    rest: Duration,
}

impl Nodes {
    /// As seen from `own`.
    pub fn new(own: Place) -> Nodes {
        Nodes { own, ..Nodes::default() }
    }

    /// A node said where it stands.
    pub fn handle_place(&mut self, node: NodeId, place: Place) {
        self.nodes.entry(node).or_default().place = place;
    }

    /// A round trip to the node took so long. Returns the smoothed one.
    pub fn handle_round_trip(&mut self, node: NodeId, sample: Duration) -> Duration {
        let known = self.nodes.entry(node).or_default();
        known.round_trip.handle_sample(sample);
        known.round_trip.get().unwrap_or(sample)
    }

    /// The node did not answer what others would have.
    fn handle_failed(&mut self, now: Instant, node: NodeId) {
        let known = self.nodes.entry(node).or_default();
        if known.rests_until.is_some_and(|until| now < until) {
            // One of many that were under way.
            return;
        }
        known.rest = (known.rest * 2).clamp(REST_MIN, REST_MAX);
        known.rests_until = Some(now + known.rest);
        assert!((REST_MIN..=REST_MAX).contains(&known.rest), "a node that failed is asked again in the end");
    }

    /// The node answered.
    fn handle_answered(&mut self, node: NodeId) {
        if let Some(known) = self.nodes.get_mut(&node)
            && known.rests_until.is_some()
        {
            known.rests_until = None;
            known.rest = Duration::ZERO;
        }
    }

    /// What a read came to that any replica may answer: whether the node is fit.
    pub fn handle_attempted<T>(&mut self, now: Instant, node: NodeId, attempted: &Attempted<T>) {
        match attempted {
            Attempted::Answer(_) => self.handle_answered(node),
            Attempted::Denied(_) => {}
            // It is gone, or silent, or behind what the client has seen.
            Attempted::Lost | Attempted::Unsent(_) | Attempted::Refused(_) | Attempted::Protocol(_) => {
                self.handle_failed(now, node);
            }
        }
    }

    /// The node whose turn it is, if it is one of `candidates` and has not failed since.
    pub fn chosen(&self, now: Instant, candidates: &[NodeId]) -> Option<NodeId> {
        let (node, until) = self.chosen?;
        let rests = self.nodes.get(&node).is_some_and(|known| known.rests_until.is_some());
        (now < until && !rests && candidates.contains(&node)).then_some(node)
    }

    /// The nearest of `candidates`, all of which can be asked; those that are equally near in turn.
    pub fn choose(&mut self, now: Instant, candidates: &[NodeId]) -> Option<NodeId> {
        if let Some(chosen) = self.chosen(now, candidates) {
            return Some(chosen);
        }
        let rank = |node: NodeId| {
            let Some(known) = self.nodes.get(&node) else {
                return (false, Distance::Elsewhere, Duration::MAX);
            };
            let rests = known.rests_until.is_some_and(|until| now < until);
            let round_trip = known.round_trip.get().unwrap_or(Duration::MAX);
            (rests, self.own.distance(&known.place), round_trip)
        };
        let best = candidates.iter().map(|node| rank(*node)).min()?;
        let enough = best.2.saturating_add(EQUAL.max(best.2 / 4));
        let equals = candidates.iter().copied().filter(|node| {
            let (rests, distance, round_trip) = rank(*node);
            (rests, distance) == (best.0, best.1) && round_trip <= enough
        });
        let equals: Vec<NodeId> = equals.collect();
        assert!(!equals.is_empty(), "the best is as good as itself");
        self.turn = self.turn.wrapping_add(1);
        let node = equals.get(self.turn % equals.len().max(1)).copied()?;
        self.chosen = Some((node, now + TURN));
        Some(node)
    }

    /// Where a node stands and how far it is, for whoever shows it.
    pub fn get(&self, node: NodeId) -> Option<(&Place, Option<Duration>)> {
        self.nodes.get(&node).map(|known| (&known.place, known.round_trip.get()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::any_instant;

    fn place(region: &str, zone: &str) -> Place {
        Place { region: region.to_owned(), zone: zone.to_owned() }
    }

    /// The nodes that are chosen, each once, were it nobody's turn.
    fn chosen(nodes: &mut Nodes, now: Instant, candidates: &[u32]) -> Vec<u32> {
        let candidates: Vec<_> = candidates.iter().copied().map(NodeId).collect();
        let mut choose = || {
            nodes.chosen = None;
            nodes.choose(now, &candidates)
        };
        let mut chosen: Vec<_> = (0..100).filter_map(|_| choose()).map(|node| node.0).collect();
        chosen.sort_unstable();
        chosen.dedup();
        chosen
    }

    fn milliseconds(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn the_zone_comes_before_the_region_and_that_before_the_round_trip() {
        let now = any_instant();
        let mut nodes = Nodes::new(place("a", "1"));
        let places = [place("a", "1"), place("a", "2"), place("a", ""), place("b", "1"), place("", "")];
        for (node, place) in (1..).zip(places) {
            nodes.handle_place(NodeId(node), place);
            // The nearer by name, the farther by time.
            nodes.handle_round_trip(NodeId(node), milliseconds(600 - u64::from(node) * 100));
        }
        assert_eq!(chosen(&mut nodes, now, &[5, 4, 3, 2, 1]), [1]);
        assert_eq!(
            chosen(&mut nodes, now, &[5, 4, 3, 2]),
            [3],
            "a region's zones that are not one's own are alike"
        );
        assert_eq!(chosen(&mut nodes, now, &[5, 4]), [5], "no region is none that one shares");
        assert!(chosen(&mut nodes, now, &[]).is_empty());
        let mut nowhere = Nodes::new(Place::default());
        nowhere.handle_place(NodeId(1), place("", ""));
        nowhere.handle_round_trip(NodeId(1), milliseconds(9));
        nowhere.handle_round_trip(NodeId(2), milliseconds(2));
        assert_eq!(chosen(&mut nowhere, now, &[1, 2]), [2]);
    }

    #[test]
    fn nodes_that_are_equally_far_share_the_work() {
        let now = any_instant();
        let mut nodes = Nodes::new(Place::default());
        assert_eq!(chosen(&mut nodes, now, &[1, 2, 3]), [1, 2, 3], "nothing is known of them");
        nodes.handle_round_trip(NodeId(1), milliseconds(100));
        assert_eq!(
            chosen(&mut nodes, now, &[1, 2, 3]),
            [1],
            "one that was measured is better than one that was not"
        );
        nodes.handle_round_trip(NodeId(2), milliseconds(120));
        nodes.handle_round_trip(NodeId(3), milliseconds(130));
        assert_eq!(chosen(&mut nodes, now, &[1, 2, 3]), [1, 2]);
        let mut near = Nodes::new(Place::default());
        near.handle_round_trip(NodeId(1), Duration::from_micros(50));
        near.handle_round_trip(NodeId(2), Duration::from_micros(900));
        assert_eq!(chosen(&mut near, now, &[1, 2]), [1, 2], "less than a millisecond is noise");
    }

    #[test]
    fn what_comes_together_goes_to_one_node() {
        let mut now = any_instant();
        let mut nodes = Nodes::new(Place::default());
        let all = [NodeId(1), NodeId(2), NodeId(3)];
        let mut turns = Vec::new();
        for _ in 0..6 {
            let turn: Vec<_> = (0..10).filter_map(|n| nodes.choose(now + TURN * n / 10, &all)).collect();
            assert!(turn.iter().all(|node| *node == turn[0]), "{turn:?}");
            turns.push(turn[0].0);
            now += TURN;
        }
        assert_eq!(turns, [2, 3, 1, 2, 3, 1]);
        let first = nodes.choose(now, &all).unwrap();
        nodes.handle_failed(now, first);
        let second = nodes.choose(now, &all).unwrap();
        assert_ne!(second, first, "a turn ends with a failure");
        let others: Vec<_> = all.into_iter().filter(|node| *node != second).collect();
        assert_ne!(nodes.choose(now, &others), Some(second), "or where it cannot be asked");
    }

    #[test]
    fn a_node_that_fails_rests_ever_longer_until_it_answers() {
        let start = any_instant();
        let mut nodes = Nodes::new(Place::default());
        nodes.handle_round_trip(NodeId(1), milliseconds(1));
        nodes.handle_round_trip(NodeId(2), milliseconds(100));
        assert_eq!(chosen(&mut nodes, start, &[1, 2]), [1]);
        let mut now = start;
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            nodes.handle_failed(now, NodeId(1));
            nodes.handle_failed(now, NodeId(1));
            assert_eq!(chosen(&mut nodes, now, &[1, 2]), [2]);
            assert_eq!(chosen(&mut nodes, now, &[1]), [1], "there is no other");
            now += Duration::from_secs(seconds);
            assert_eq!(chosen(&mut nodes, now - milliseconds(1), &[1, 2]), [2]);
            assert_eq!(chosen(&mut nodes, now, &[1, 2]), [1], "after {seconds} s");
        }
        nodes.handle_answered(NodeId(1));
        nodes.handle_failed(now, NodeId(1));
        assert_eq!(chosen(&mut nodes, now + REST_MIN, &[1, 2]), [1], "as if it had never failed");
        nodes.handle_failed(now + REST_MIN, NodeId(2));
        nodes.handle_failed(now + REST_MIN, NodeId(1));
        assert_eq!(chosen(&mut nodes, now + REST_MIN, &[1, 2]), [1], "both rest");
    }

    #[test]
    fn a_round_trip_is_smoothed() {
        let mut round_trip = RoundTrip::default();
        assert_eq!(round_trip.get(), None);
        round_trip.handle_sample(milliseconds(80));
        assert_eq!(round_trip.get(), Some(milliseconds(80)));
        round_trip.handle_sample(milliseconds(160));
        assert_eq!(round_trip.get(), Some(milliseconds(90)));
        round_trip.handle_sample(milliseconds(20));
        assert_eq!(round_trip.get(), Some(milliseconds(20)));
        for _ in 0..60 {
            round_trip.handle_sample(milliseconds(80));
        }
        let settled = round_trip.get().unwrap();
        assert!(settled > milliseconds(79) && settled <= milliseconds(80), "{settled:?}");
    }
}
