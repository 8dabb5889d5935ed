//! Whether the replicas of a group hold the same. The state machine keeps a digest of itself at no cost worth speaking of;
//! the leader asks for it at a slot that it has just applied, and compares.
//!
//! A follower applies a slot after the leader, so mostly the question comes first and waits for the slot. One that lags far
//! behind answers when it gets there, and is not asked again before.
//!
//! While nothing is applied, nothing is asked.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use consensus_core::{Mono, NodeId, NodeSet, Slot};

/// How often a leader compares, while there is something new to compare.
const EVERY: Duration = Duration::from_secs(1);
/// How many slots are remembered: a follower is rarely ahead of the question, and then by few.
const REMEMBERED: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct Digests {
    /// Of the last slots that were applied, ascending.
    recent: VecDeque<(Slot, u64)>,
    /// A question about a slot that is not applied yet.
    asked: Option<(NodeId, Slot)>,
    /// The leader's question under way, or the last one.
    round: Option<Round>,
    /// When the next may be asked.
    next_at: Mono,
    /// Replicas that were found to differ and have not been found to agree since.
    differing: NodeSet,
}

#[derive(Debug)]
struct Round {
    slot: Slot,
    digests: BTreeMap<NodeId, u64>,
}

impl Digests {
    /// Everything up to `slot` is applied. Returns the answer to a question that waited for it.
    pub(crate) fn applied(&mut self, slot: Slot, digest: u64) -> Option<(NodeId, Slot, u64)> {
        assert!(self.recent.back().is_none_or(|(last, _)| *last < slot), "slots are applied in order");
        if self.recent.len() == REMEMBERED {
            self.recent.pop_front();
        }
        self.recent.push_back((slot, digest));
        assert!(self.recent.len() <= REMEMBERED, "what is remembered is bounded");
        let (from, asked) = self.asked.take_if(|(_, asked)| *asked <= slot)?;
        // A snapshot may have taken this replica over it.
        (asked == slot).then_some((from, slot, digest))
    }

    /// The state was replaced: what is remembered is of another one.
    pub(crate) fn replaced(&mut self) {
        self.recent.clear();
        self.round = None;
    }

    /// `from` asks for the digest at `slot`. Returns it, or keeps the question until the slot is applied.
    pub(crate) fn asked(&mut self, from: NodeId, slot: Slot) -> Option<u64> {
        match self.recent.back() {
            Some((last, _)) if slot <= *last => {
                let index = self.recent.binary_search_by_key(&slot, |(slot, _)| *slot).ok()?;
                self.recent.get(index).map(|(_, digest)| *digest)
            }
            Some(_) | None => {
                // A leader that is no more does not wait for its answer.
                if self.asked.is_none_or(|(asker, asked)| asker != from || slot < asked) {
                    self.asked = Some((from, slot));
                }
                None
            }
        }
    }

    /// When a leader has something to ask.
    pub(crate) fn deadline(&self) -> Option<Mono> {
        self.news().map(|_| self.next_at)
    }

    /// The slot that the leader `me` asks all others about now, if it is time. Returns replicas that turn out to differ,
    /// should those who could tell more not have answered the last question.
    pub(crate) fn ask(&mut self, now: Mono, me: NodeId, voters: &NodeSet) -> Option<(Slot, NodeSet)> {
        let (slot, digest) = self.news().filter(|_| now >= self.next_at)?;
        let late = self.judge(me, voters, Awaited::Nobody);
        self.next_at = now.after(EVERY);
        assert!(self.round.as_ref().is_none_or(|round| round.slot < slot), "the same is not asked again");
        self.round = Some(Round { slot, digests: [(me, digest)].into_iter().collect() });
        Some((slot, late))
    }

    /// `from` tells its digest at `slot`. Returns replicas that turn out to differ.
    pub(crate) fn told(
        &mut self,
        me: NodeId,
        from: NodeId,
        slot: Slot,
        digest: u64,
        voters: &NodeSet,
    ) -> NodeSet {
        match &mut self.round {
            Some(round) if round.slot == slot && voters.contains(from) => {
                round.digests.insert(from, digest);
                let awaited =
                    if round.digests.len() < voters.len() { Awaited::Others } else { Awaited::Nobody };
                self.judge(me, voters, awaited)
            }
            Some(_) | None => NodeSet::new(),
        }
    }

    /// How many replicas differ, as far as this leader has found.
    pub(crate) fn differing(&self) -> usize {
        self.differing.len()
    }

    fn news(&self) -> Option<(Slot, u64)> {
        let last = self.recent.back().copied()?;
        let asked = self.round.as_ref().is_some_and(|round| round.slot >= last.0);
        (!asked).then_some(last)
    }

    /// Who differs from the majority of `voters`; or, if there is none and nobody's answer is awaited, from the leader.
    fn judge(&mut self, me: NodeId, voters: &NodeSet, awaited: Awaited) -> NodeSet {
        let mut news = NodeSet::new();
        let Some(round) = &self.round else { return news };
        assert!(round.digests.len() <= voters.len(), "only voters are asked");
        let count = |digest: u64| round.digests.values().filter(|other| **other == digest).count();
        let majority = round.digests.values().copied().find(|digest| count(*digest) * 2 > voters.len());
        let own = round.digests.get(&me).copied().filter(|_| awaited == Awaited::Nobody);
        let Some(right) = majority.or(own) else { return news };
        for (node, digest) in &round.digests {
            if *digest == right {
                self.differing.remove(*node);
            } else if self.differing.insert(*node) {
                news.insert(*node);
            }
        }
        news
    }
}

/// Who has not answered and still may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awaited {
    Others,
    Nobody,
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: NodeId = NodeId(1);
    const TWO: NodeId = NodeId(2);
    const THREE: NodeId = NodeId(3);

    fn set(nodes: &[NodeId]) -> NodeSet {
        nodes.iter().copied().collect()
    }

    /// The leader 1 of these voters, which asks about slot 5.
    fn asking() -> Digests {
        let mut digests = Digests::default();
        assert_eq!(digests.deadline(), None, "nothing is applied");
        assert_eq!(digests.applied(Slot(5), 50), None);
        assert_eq!(digests.ask(Mono(0), ONE, &set(&[ONE, TWO, THREE])), Some((Slot(5), NodeSet::new())));
        assert_eq!(digests.deadline(), None, "nothing new");
        digests
    }

    #[test]
    fn the_odd_one_of_three_is_named_once_also_if_it_leads() {
        let voters = set(&[ONE, TWO, THREE]);
        let mut digests = asking();
        assert_eq!(digests.told(ONE, TWO, Slot(5), 51, &voters), set(&[]), "who is right is not known");
        assert_eq!(digests.told(ONE, THREE, Slot(5), 50, &voters), set(&[TWO]));
        assert_eq!(digests.told(ONE, THREE, Slot(5), 50, &voters), set(&[]), "it was said");
        assert_eq!(digests.differing(), 1);
        let mut digests = asking();
        digests.told(ONE, TWO, Slot(5), 51, &voters);
        assert_eq!(digests.told(ONE, THREE, Slot(5), 51, &voters), set(&[ONE]));
        // It agrees again, and differs once more.
        digests.applied(Slot(6), 60);
        digests.ask(Mono(u64::MAX), ONE, &set(&[ONE, TWO, THREE]));
        digests.told(ONE, TWO, Slot(6), 60, &voters);
        assert_eq!((digests.told(ONE, THREE, Slot(6), 61, &voters), digests.differing()), (set(&[THREE]), 1));
    }

    #[test]
    fn of_two_the_follower_is_named_and_with_one_down_the_one_that_differs_from_the_leader() {
        let mut digests = asking();
        assert_eq!(digests.told(ONE, TWO, Slot(5), 51, &set(&[ONE, TWO])), set(&[TWO]));
        let mut digests = asking();
        assert_eq!(digests.told(ONE, TWO, Slot(5), 51, &set(&[ONE, TWO, THREE])), set(&[]));
        digests.applied(Slot(6), 60);
        assert_eq!(digests.ask(Mono(1), ONE, &set(&[ONE, TWO, THREE])), None, "not so soon");
        assert_eq!(digests.ask(Mono(u64::MAX), ONE, &set(&[ONE, TWO, THREE])), Some((Slot(6), set(&[TWO]))));
    }

    #[test]
    fn answers_that_nobody_asked_for_count_for_nothing() {
        let voters = set(&[ONE, TWO, THREE]);
        let mut digests = asking();
        assert_eq!(digests.told(ONE, TWO, Slot(4), 51, &voters), set(&[]));
        assert_eq!(digests.told(ONE, NodeId(9), Slot(5), 51, &voters), set(&[]));
        assert_eq!(digests.told(ONE, THREE, Slot(5), 50, &voters), set(&[]));
        assert_eq!(digests.differing(), 0);
    }

    #[test]
    fn a_follower_answers_at_once_or_when_it_gets_there() {
        let mut digests = Digests::default();
        assert_eq!(digests.asked(ONE, Slot(2)), None);
        assert_eq!(digests.asked(ONE, Slot(9)), None, "the first is kept");
        assert_eq!(digests.applied(Slot(1), 10), None);
        assert_eq!(digests.applied(Slot(2), 20), Some((ONE, Slot(2), 20)));
        assert_eq!(digests.asked(ONE, Slot(1)), Some(10));
        // By way of a snapshot past the slot.
        assert_eq!(digests.asked(ONE, Slot(7)), None);
        digests.replaced();
        assert_eq!(digests.applied(Slot(8), 80), None);
        for slot in 9..200 {
            digests.applied(Slot(slot), slot);
        }
        assert_eq!((digests.asked(ONE, Slot(8)), digests.asked(ONE, Slot(199))), (None, Some(199)));
        assert_eq!(digests.asked(ONE, Slot(u64::MAX)), None);
        assert_eq!(digests.asked(TWO, Slot(200)), None, "another leader's question replaces it");
        assert_eq!(digests.applied(Slot(200), 7), Some((TWO, Slot(200), 7)));
    }
}
