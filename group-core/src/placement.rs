//! Where a group is led: the operator names regions, the best first, and a leader elsewhere hands over when it can.
//!
//! Moving a leader costs its clients a pause, so it is done rarely and only to who will stay: to a voter in a better region
//! that has been able to lead for [`STEADY`] without a break, and, after an attempt that came to nothing, after pauses that
//! double. Moves go to better regions only, so they end; a region that comes and goes costs one move each time it has been
//! back for that long.

use std::collections::BTreeMap;
use std::time::Duration;

use consensus_core::{Mono, NodeId};

/// So long a voter must have been able to lead.
const STEADY: Duration = Duration::from_secs(20);
/// How often a leader that is not where it should be looks round.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// The pause after an attempt that came to nothing; doubles up to the second time.
const PAUSE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));
/// A voter that lacks more entries than this cannot take over without a pause.
const BEHIND_MAX: u64 = 100;

/// Another voter, as its leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Voter {
    pub(crate) node: NodeId,
    /// How far its region stands from the first in the operator's order; those that are not named are all last.
    pub(crate) rank: usize,
    /// It lives, and its disk works.
    pub(crate) able: bool,
    /// Entries that it has not acknowledged.
    pub(crate) behind: u64,
}

/// How far `region` stands from the first of `order`.
pub(crate) fn rank(order: &[impl AsRef<[u8]>], region: Option<&str>) -> usize {
    let place = region.and_then(|region| order.iter().position(|named| named.as_ref() == region.as_bytes()));
    place.unwrap_or(order.len())
}

/// A leader's thoughts of its place; begins anew with each leadership.
#[derive(Debug, Default)]
pub(crate) struct Placement {
    /// Since when those who could take over could.
    steady_since: BTreeMap<NodeId, Mono>,
    look_at: Option<Mono>,
    not_before: Option<Mono>,
    pause: Option<Duration>,
}

impl Placement {
    /// Whether it is time to look round.
    pub(crate) fn is_due(&self, now: Mono) -> bool {
        self.look_at.is_none_or(|at| now >= at)
    }

    /// When to look round next. Only asked while the leader is not in the best region that any voter is in.
    pub(crate) fn deadline(&self) -> Option<Mono> {
        self.look_at
    }

    /// Looks round later.
    pub(crate) fn put_off(&mut self, now: Mono) {
        self.look_at = Some(now.after(LOOK_EVERY));
    }

    /// To whom this leader, which is of rank `own`, hands over now, if to anybody.
    pub(crate) fn look(&mut self, now: Mono, own: usize, others: &[Voter]) -> Option<NodeId> {
        self.put_off(now);
        let better = |voter: &&Voter| voter.rank < own && voter.able && voter.behind <= BEHIND_MAX;
        let able: Vec<&Voter> = others.iter().filter(better).collect();
        self.steady_since.retain(|node, _| able.iter().any(|voter| voter.node == *node));
        for voter in &able {
            self.steady_since.entry(voter.node).or_insert(now);
        }
        if self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        let steady = |voter: &&&Voter| now.since(self.steady_since[&voter.node]) >= STEADY;
        let to = able.iter().filter(steady).min_by_key(|voter| (voter.rank, voter.behind, voter.node))?.node;
        let pause = self.pause.map_or(PAUSE.0, |pause| (pause * 2).min(PAUSE.1));
        assert!((PAUSE.0..=PAUSE.1).contains(&pause), "pauses are bounded");
        self.pause = Some(pause);
        self.not_before = Some(now.after(pause));
        Some(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voter(node: u32, rank: usize) -> Voter {
        Voter { node: NodeId(node), rank, able: true, behind: 0 }
    }

    fn at(seconds: u64) -> Mono {
        Mono(0).after(Duration::from_secs(seconds))
    }

    /// Looks round every two seconds from `from` until it would hand over, or `until`.
    fn first(
        placement: &mut Placement,
        from: u64,
        until: u64,
        own: usize,
        others: &[Voter],
    ) -> Option<(u64, u32)> {
        (from..until)
            .step_by(2)
            .find_map(|second| placement.look(at(second), own, others).map(|to| (second, to.0)))
    }

    #[test]
    fn regions_are_ranked_in_the_operators_order() {
        let order = ["eu", "us"];
        assert_eq!(rank(&order, Some("eu")), 0);
        assert_eq!(rank(&order, Some("us")), 1);
        assert_eq!((rank(&order, Some("asia")), rank(&order, None)), (2, 2));
        assert_eq!(rank(&[""; 0], Some("eu")), 0, "without an order all are equal");
    }

    #[test]
    fn a_leader_elsewhere_hands_over_to_the_best_who_has_been_steady() {
        let mut placement = Placement::default();
        let others = [voter(2, 1), voter(3, 0)];
        assert_eq!(first(&mut placement, 0, 100, 2, &others), Some((20, 3)));
        assert_eq!(placement.deadline(), Some(at(22)));
        assert!(!placement.is_due(at(21)) && placement.is_due(at(22)));
    }

    #[test]
    fn nobody_who_is_no_better_or_not_able_or_behind_is_handed_anything() {
        let others =
            [voter(2, 1), Voter { able: false, ..voter(3, 0) }, Voter { behind: 101, ..voter(4, 0) }];
        assert_eq!(first(&mut Placement::default(), 0, 1000, 1, &others), None);
        assert_eq!(first(&mut Placement::default(), 0, 1000, 2, &others), Some((20, 2)));
    }

    #[test]
    fn who_comes_and_goes_begins_anew() {
        let mut placement = Placement::default();
        let (up, down) = ([voter(2, 0)], [Voter { able: false, ..voter(2, 0) }]);
        for second in (0..400).step_by(2) {
            let others = if second % 20 < 18 { &up } else { &down };
            assert_eq!(placement.look(at(second), 1, others), None);
        }
        assert_eq!(first(&mut placement, 400, 500, 1, &up), Some((420, 2)));
    }

    #[test]
    fn after_attempts_that_came_to_nothing_it_waits_ever_longer() {
        let mut placement = Placement::default();
        let others = [voter(2, 0)];
        let mut gaps = Vec::new();
        let (mut last, _) = first(&mut placement, 0, 100, 1, &others).unwrap();
        for _ in 0..7 {
            let (next, _) = first(&mut placement, last + 2, last + 2000, 1, &others).unwrap();
            gaps.push(next - last);
            last = next;
        }
        assert_eq!(gaps, [30, 60, 120, 240, 480, 600, 600]);
    }
}
