//! How a node whose data directory is new finds its place in the cluster.
//!
//! An empty directory is either the beginning of a cluster, or a node that has lost all it ever promised and voted for,
//! and looks the same. A node of the second kind that took itself for the first would say "no vote" where it had voted,
//! and a quorum with it could choose again what was chosen already. So a newcomer takes no part before **every** other
//! node has answered it. A quorum would not do: the one node that still holds what this one voted for may be the one
//! that is missing.
//!
//! Each directory has a *mark*, drawn at random when it is made. A newcomer that takes its place keeps the marks of the
//! other newcomers it has met, its *roll*. So a node with a place can tell whether the directory that asks is the one it
//! met then, which had never voted and, without a place, still has not.
//!
//! | what the others say | what the newcomer is |
//! | --- | --- |
//! | nobody has a place yet | a founder, like all of them |
//! | all who have one have this mark on their roll, and never heard this node | a founder: others were quicker |
//! | one who has a place knows another mark or none, or has heard this node | one who returns without its memory, or comes late |
//!
//! Why this is enough: whatever this node voted for in a former directory, another node voted for as well, and had its
//! place by then; a mark on its roll is older than its place, and this directory is younger. An answer stays good while the
//! newcomer waits: who answered without a place had not voted, and what it votes for later this node has no part in
//! before it has its own place. Unless its volume was not mounted, or a second process had its name: whoever drives this
//! asks all once more at the end.
//!
//! Who returns starts as one that may have forgotten everything ([`crate::Durable::lost_all`]): it neither votes nor
//! promises until it has learned what the others promised, and declares its votes forgotten until they are made up for.

use std::collections::BTreeMap;

#[cfg(feature = "mutants")]
use crate::Mutant;
use crate::NodeId;
use crate::mutant::mutant;

/// What a node says of itself to a newcomer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NodeStatus {
    /// It has no place itself.
    Newcomer {
        /// The mark of its directory.
        mark: u64,
    },
    /// It has taken its place, durably.
    Placed {
        /// The newcomer's mark, if it is on the roll.
        known_as: Option<u64>,
        /// The newest incarnation of the newcomer that it has heard of ([`crate::Liveness::incarnation_of`]).
        incarnation_heard: u64,
    },
}

/// The place that a newcomer takes. It must be durable before the node says or does anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// Nothing was ever asked of this node: its groups begin as they are configured.
    Founder,
    /// Everything may have been asked of this node, and is forgotten.
    Returned {
        /// This incarnation must have this number.
        incarnation: u64,
    },
}

/// More starts of a node than can have passed without one of the others hearing of the last.
const INCARNATIONS_UNHEARD_MAX: u64 = 1000;

/// Larger numbers are not believed: there must be room for all incarnations to come, and for the rounds that each takes. What
/// a clock says is believed less than what others have heard, which must be exceeded.
const CALENDAR_MAX: u64 = 1 << 40;
const HEARD_MAX: u64 = 1 << 41;
/// No node is in a later incarnation: all incarnations that are taken up by the rule above, and 2^41 starts after the last of
/// them.
pub(crate) const INCARNATION_MAX: u64 = 1 << 42;

const _: () = assert!(
    HEARD_MAX + INCARNATIONS_UNHEARD_MAX < INCARNATION_MAX && CALENDAR_MAX < INCARNATION_MAX,
    "whoever returns has incarnations left"
);

/// A node without a place.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Newcomer {
    mark: u64,
    /// Of every other node of the cluster.
    answers: BTreeMap<NodeId, Option<NodeStatus>>,
    /// Breaks one rule, for tests of the tests.
    #[cfg(feature = "mutants")]
    pub mutant: Option<Mutant>,
}

impl Newcomer {
    /// A newcomer whose directory has this mark; `others` are all other nodes of the cluster, whatever groups they have.
    #[must_use]
    pub fn new(mark: u64, others: impl IntoIterator<Item = NodeId>) -> Newcomer {
        Newcomer {
            mark,
            answers: others.into_iter().map(|other| (other, None)).collect(),
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }

    /// The mark of its directory.
    #[must_use]
    pub fn mark(&self) -> u64 {
        self.mark
    }

    /// `from` has said what it is.
    pub fn answered(&mut self, from: NodeId, status: NodeStatus) {
        if let Some(answer) = self.answers.get_mut(&from) {
            *answer = Some(status);
        }
    }

    /// Who has not answered.
    pub fn missing(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.answers.iter().filter(|(_, answer)| answer.is_none()).map(|(node, _)| *node)
    }

    /// The place to take; `None` while an answer is missing. The time, in any unit that starts of a node do not outrun,
    /// numbers the incarnation of one who returns: it may have returned before, with nobody left who has heard of it. Should
    /// the clock have gone back since, the others' word still keeps what they remember apart.
    #[must_use]
    pub fn place(&self, calendar: u64) -> Option<Place> {
        let missing = self.missing().count();
        if missing > 0 && !(mutant!(self, NewcomerAsksQuorum) && missing <= self.answers.len() / 2) {
            return None;
        }
        let mut founder = true;
        let mut heard = 0;
        for status in self.answers.values().flatten() {
            match *status {
                NodeStatus::Newcomer { .. } => {}
                NodeStatus::Placed { known_as, incarnation_heard } => {
                    // A founder has not said a word before. One that has is an old copy of its directory.
                    founder &= known_as == Some(self.mark) && incarnation_heard == 0;
                    heard = heard.max(incarnation_heard.min(HEARD_MAX));
                }
            }
        }
        if founder || mutant!(self, NewcomerAlwaysFounds) {
            return Some(Place::Founder);
        }
        let incarnation = (heard + INCARNATIONS_UNHEARD_MAX).max(calendar.min(CALENDAR_MAX));
        assert!(incarnation > heard, "no incarnation that anybody has heard of comes back");
        Some(Place::Returned { incarnation })
    }

    /// The marks of the other newcomers that it has met. Durable with its place.
    pub fn roll(&self) -> impl Iterator<Item = (NodeId, u64)> + '_ {
        self.answers.iter().filter_map(|(node, answer)| match answer {
            Some(NodeStatus::Newcomer { mark }) => Some((*node, *mark)),
            Some(NodeStatus::Placed { .. }) | None => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];
    const TODAY: u64 = 5000;
    const FOUNDER: Option<Place> = Some(Place::Founder);
    const RETURNED: Option<Place> = Some(Place::Returned { incarnation: TODAY });

    /// The directories of a cluster.
    struct Scene(BTreeMap<NodeId, Directory>);

    struct Directory {
        newcomer: Newcomer,
        roll: Option<BTreeMap<NodeId, u64>>,
    }

    impl Scene {
        fn new() -> Scene {
            let mut scene = Scene(BTreeMap::new());
            for (mark, node) in (100..).zip(NODES) {
                scene.begin(node, mark);
            }
            scene
        }

        /// The node starts with an empty directory.
        fn begin(&mut self, node: NodeId, mark: u64) {
            let others = NODES.into_iter().filter(|other| *other != node);
            self.0.insert(node, Directory { newcomer: Newcomer::new(mark, others), roll: None });
        }

        fn asks(&mut self, node: NodeId, other: NodeId, incarnation_heard: u64) {
            let Directory { newcomer, roll } = &self.0[&other];
            let status = match roll {
                None => NodeStatus::Newcomer { mark: newcomer.mark() },
                Some(roll) => NodeStatus::Placed { known_as: roll.get(&node).copied(), incarnation_heard },
            };
            self.0.get_mut(&node).unwrap().newcomer.answered(other, status);
        }

        fn asks_all(&mut self, node: NodeId) {
            for other in NODES.into_iter().filter(|other| *other != node) {
                self.asks(node, other, 0);
            }
        }

        /// The place that the answers give it, which it takes.
        fn place(&mut self, node: NodeId) -> Option<Place> {
            let Directory { newcomer, roll } = self.0.get_mut(&node).unwrap();
            let place = newcomer.place(TODAY);
            if place.is_some() {
                *roll = Some(newcomer.roll().collect());
            }
            place
        }
    }

    #[test]
    fn all_new_nodes_found_one_cluster_whoever_is_first() {
        let mut scene = Scene::new();
        let [one, two, three] = NODES;
        scene.asks(one, two, 0);
        assert_eq!(scene.place(one), None, "one has not answered");
        assert_eq!(scene.0[&one].newcomer.missing().collect::<Vec<_>>(), [three]);
        scene.asks_all(three);
        assert_eq!(scene.place(three), FOUNDER);
        // Asked one before the other had its place, and one after.
        scene.asks(one, three, 0);
        assert_eq!(scene.place(one), FOUNDER);
        scene.asks_all(two);
        assert_eq!(scene.place(two), FOUNDER);
    }

    #[test]
    fn an_emptied_node_founds_nothing() {
        let mut scene = Scene::new();
        let [one, two, three] = NODES;
        for node in NODES {
            scene.asks_all(node);
            assert_eq!(scene.place(node), FOUNDER);
        }
        scene.begin(two, 999);
        scene.asks(two, three, 7);
        assert_eq!(scene.place(two), None, "one with a place has answered, and yet it waits for all");
        scene.asks(two, one, 4900);
        assert_eq!(scene.place(two), Some(Place::Returned { incarnation: 5900 }));
    }

    #[test]
    fn one_that_was_emptied_while_others_found_returns_and_they_are_founders() {
        let mut scene = Scene::new();
        let [one, two, three] = NODES;
        scene.asks_all(one);
        scene.asks(three, one, 0);
        assert_eq!(scene.place(one), FOUNDER);
        scene.begin(two, 999);
        scene.asks(three, two, 0);
        assert_eq!(scene.place(three), FOUNDER, "it was met before it was a founder");
        scene.asks_all(two);
        assert_eq!(scene.place(two), RETURNED, "though the third knows its mark");
    }

    #[test]
    fn one_that_was_heard_is_no_founder_even_with_its_old_mark() {
        let mut scene = Scene::new();
        let [one, two, three] = NODES;
        scene.asks_all(one);
        assert_eq!(scene.place(one), FOUNDER);
        scene.asks(two, three, 0);
        scene.asks(two, one, 1);
        assert_eq!(scene.place(two), RETURNED);
    }

    #[test]
    fn one_that_nobody_knew_when_they_founded_comes_late() {
        let mut newcomer = Newcomer::new(1, [NodeId(9)]);
        newcomer.answered(NodeId(8), NodeStatus::Newcomer { mark: 5 });
        assert_eq!(newcomer.place(TODAY), None, "strangers do not count");
        newcomer.answered(NodeId(9), NodeStatus::Placed { known_as: None, incarnation_heard: 0 });
        assert_eq!(newcomer.place(TODAY), RETURNED);
    }

    #[test]
    fn a_node_without_others_founds_at_once() {
        assert_eq!(Newcomer::new(1, []).place(TODAY), FOUNDER);
    }
}
