//! Membership and quorum sizes as a value, and the predicates over them.

use std::fmt;

use smallvec::SmallVec;

use crate::NodeId;

/// A sorted set of nodes. Sets of up to eight live inside the value, without an allocation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodeSet(SmallVec<[NodeId; 8]>);

impl NodeSet {
    /// The empty set.
    #[must_use]
    pub fn new() -> NodeSet {
        NodeSet::default()
    }

    /// Adds `node`; false when it was there.
    pub fn insert(&mut self, node: NodeId) -> bool {
        match self.0.binary_search(&node) {
            Ok(_) => false,
            Err(index) => {
                self.0.insert(index, node);
                debug_assert!(
                    self.0.is_sorted_by(|one, next| one < next),
                    "sets are sorted, without doubles"
                );
                true
            }
        }
    }

    /// Adds a node above all others.
    pub(crate) fn push_last(&mut self, node: NodeId) {
        debug_assert!(self.0.last().is_none_or(|last| *last < node), "sets are sorted");
        self.0.push(node);
    }

    /// Takes `node` out; false when it was not there.
    pub fn remove(&mut self, node: NodeId) -> bool {
        match self.0.binary_search(&node) {
            Ok(index) => {
                self.0.remove(index);
                true
            }
            Err(_) => false,
        }
    }

    /// Whether `node` is in the set.
    #[must_use]
    pub fn contains(&self, node: NodeId) -> bool {
        self.0.contains(&node)
    }

    /// How many nodes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes every node out.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The nodes in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.0.iter().copied()
    }

    /// Whether every node of this set is in `other`.
    #[must_use]
    pub fn is_subset(&self, other: &NodeSet) -> bool {
        self.iter().all(|node| other.contains(node))
    }

    /// How many nodes are in both.
    #[must_use]
    pub fn count_in(&self, other: &NodeSet) -> usize {
        self.iter().filter(|node| other.contains(*node)).count()
    }
}

impl FromIterator<NodeId> for NodeSet {
    fn from_iter<I: IntoIterator<Item = NodeId>>(nodes: I) -> NodeSet {
        let mut nodes: SmallVec<[NodeId; 8]> = nodes.into_iter().collect();
        nodes.sort_unstable();
        nodes.dedup();
        NodeSet(nodes)
    }
}

impl fmt::Display for NodeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (index, node) in self.iter().enumerate() {
            write!(f, "{}{}", if index > 0 { "," } else { "" }, node.0)?;
        }
        f.write_str("}")
    }
}

/// Who votes, and how many of them make a quorum: what a group begins with, and stays with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// Which configuration of the group it is; who votes by an older one is not elected.
    pub epoch: u64,
    /// Who has a replica of the log, and a vote.
    pub voters: NodeSet,
    /// Promises that phase 1 needs.
    pub q1: u8,
    /// Votes that choose a value at a classic ballot.
    pub q2: u8,
    /// Votes that choose a value at a fast ballot; `None` forbids fast rounds.
    pub qf: Option<u8>,
    /// Who may hold a read lease. The leader's lease is a quorum lease held by the leader.
    pub lease_eligible: NodeSet,
}

/// Why a configuration cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// There is no voter.
    NoVoters,
    /// More voters than [`Config::VOTERS_MAX`].
    TooManyVoters,
    /// A quorum of nobody, or of more nodes than vote.
    QuorumSize,
    /// `q1 + q2 > n` does not hold: a new leader could miss a chosen value.
    ClassicQuorumsDisjoint,
    /// `q1 + 2 qf > 2 n` does not hold: two fast values could both look chosen (Lamport, Fast Paxos §2.2).
    FastQuorumsDisjoint,
    /// `qf < q2`.
    FastQuorumBelowClassic,
    /// A node that may hold leases has no vote.
    HolderNotVoter(NodeId),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::NoVoters => f.write_str("a group needs at least one voter"),
            ConfigError::TooManyVoters => write!(f, "a group has at most {} voters", Config::VOTERS_MAX),
            ConfigError::QuorumSize => f.write_str("a quorum has at least one node and at most all voters"),
            ConfigError::ClassicQuorumsDisjoint => f.write_str("q1 + q2 must exceed the number of voters"),
            ConfigError::FastQuorumsDisjoint => {
                f.write_str("q1 + 2 x qf must exceed twice the number of voters")
            }
            ConfigError::FastQuorumBelowClassic => f.write_str("qf must not be below q2"),
            ConfigError::HolderNotVoter(node) => {
                write!(f, "node {} may hold leases but does not vote", node.0)
            }
        }
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Latency and the work of a leader grow with voters while failures survived do so by halves; no deployment
    /// has a use for more.
    pub const VOTERS_MAX: usize = 15;

    /// Majorities for phase 1, what remains for phase 2, no fast rounds, every voter may lead under a lease.
    #[must_use]
    pub fn majority(voters: impl IntoIterator<Item = NodeId>) -> Config {
        let voters: NodeSet = voters.into_iter().collect();
        let majority = u8::try_from(voters.len() / 2 + 1).unwrap_or(u8::MAX);
        Config { epoch: 1, lease_eligible: voters.clone(), voters, q1: majority, q2: majority, qf: None }
    }

    /// The same members with other quorum sizes.
    #[must_use]
    pub fn with_quorums(mut self, q1: u8, q2: u8, qf: Option<u8>) -> Config {
        self.q1 = q1;
        self.q2 = q2;
        self.qf = qf;
        self
    }

    /// Whether the sizes make every quorum meet the quorums it must meet. The error names the first rule that is broken.
    pub fn check(&self) -> Result<(), ConfigError> {
        let n = self.voters.len();
        let (q1, q2) = (usize::from(self.q1), usize::from(self.q2));
        if n == 0 {
            return Err(ConfigError::NoVoters);
        }
        if n > Self::VOTERS_MAX {
            return Err(ConfigError::TooManyVoters);
        }
        if !(1..=n).contains(&q1) || !(1..=n).contains(&q2) {
            return Err(ConfigError::QuorumSize);
        }
        if q1 + q2 <= n {
            return Err(ConfigError::ClassicQuorumsDisjoint);
        }
        if let Some(qf) = self.qf.map(usize::from) {
            if qf > n {
                return Err(ConfigError::QuorumSize);
            }
            if qf < q2 {
                return Err(ConfigError::FastQuorumBelowClassic);
            }
            if q1 + 2 * qf <= 2 * n {
                return Err(ConfigError::FastQuorumsDisjoint);
            }
        }
        if let Some(node) = self.lease_eligible.iter().find(|node| !self.voters.contains(*node)) {
            return Err(ConfigError::HolderNotVoter(node));
        }
        Ok(())
    }

    /// Whether the voters among `nodes` can complete phase 1.
    #[must_use]
    pub fn is_q1(&self, nodes: &NodeSet) -> bool {
        nodes.count_in(&self.voters) >= usize::from(self.q1)
    }

    /// Whether the voters among `nodes` can choose a value at a classic ballot.
    #[must_use]
    pub fn is_q2(&self, nodes: &NodeSet) -> bool {
        nodes.count_in(&self.voters) >= usize::from(self.q2)
    }

    /// Whether the voters among `nodes` can choose a value at a fast ballot.
    #[must_use]
    pub fn is_qf(&self, nodes: &NodeSet) -> bool {
        self.qf.is_some_and(|qf| nodes.count_in(&self.voters) >= usize::from(qf))
    }

    /// Whether every phase 1 needs one of `nodes`: no leader can have come to power without asking them.
    #[must_use]
    pub fn blocks_q1(&self, nodes: &NodeSet) -> bool {
        assert!(usize::from(self.q1) <= self.voters.len(), "a configuration in use is checked");
        nodes.count_in(&self.voters) + usize::from(self.q1) > self.voters.len()
    }

    /// How many voters must have granted a lease, so that every set that can choose a value holds one of them.
    #[must_use]
    pub fn grants_needed(&self) -> usize {
        let smallest = usize::from(self.qf.unwrap_or(self.q2).min(self.q2));
        assert!((1..=self.voters.len()).contains(&smallest), "a configuration in use is checked");
        self.voters.len() + 1 - smallest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(mask: u32) -> NodeSet {
        (0..32).filter(|bit| mask >> bit & 1 == 1).map(NodeId).collect()
    }

    /// All sets of exactly `size` of `n` nodes, as bits.
    fn sets(n: u32, size: u8) -> Vec<u32> {
        (0..1u32 << n).filter(|mask| mask.count_ones() == u32::from(size)).collect()
    }

    /// Every quorum size is accepted exactly when all quorums meet that must meet, by looking at all of them.
    #[test]
    fn sizes_are_checked_as_if_every_quorum_were_looked_at() {
        for n in 1..=6u32 {
            for q1 in 1..=n as u8 {
                for q2 in 1..=n as u8 {
                    for qf in std::iter::once(None).chain((1..=n as u8).map(Some)) {
                        let config = Config::majority((0..n).map(NodeId)).with_quorums(q1, q2, qf);
                        let classic = sets(n, q1).iter().all(|a| sets(n, q2).iter().all(|b| a & b != 0));
                        let fast = qf.is_none_or(|qf| {
                            let quorums = sets(n, qf);
                            let pairs = quorums.iter().flat_map(|b| quorums.iter().map(move |c| b & c));
                            let meets: Vec<u32> = pairs.collect();
                            qf >= q2 && sets(n, q1).iter().all(|a| meets.iter().all(|both| a & both != 0))
                        });
                        assert_eq!(
                            config.check().is_ok(),
                            classic && fast,
                            "n={n} q1={q1} q2={q2} qf={qf:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn predicates_agree_with_looking_at_every_quorum() {
        for n in 1..=9u32 {
            let default = Config::majority((0..n).map(NodeId));
            let flexible = default.clone().with_quorums(n as u8, 1, None);
            let fast = default.clone().with_quorums(default.q1, default.q2, Some((n - n / 4) as u8));
            for config in [default, flexible, fast] {
                if config.check().is_err() {
                    continue;
                }
                let writes: Vec<u32> =
                    [Some(config.q2), config.qf].into_iter().flatten().flat_map(|q| sets(n, q)).collect();
                let (q1, q2) = (sets(n, config.q1), sets(n, config.q2));
                for mask in 0..1u32 << n {
                    let nodes = set(mask);
                    assert_eq!(config.is_q1(&nodes), q1.iter().any(|quorum| quorum & mask == *quorum));
                    assert_eq!(config.is_q2(&nodes), q2.iter().any(|quorum| quorum & mask == *quorum));
                    assert_eq!(config.blocks_q1(&nodes), q1.iter().all(|quorum| quorum & mask != 0));
                    let grants = mask.count_ones() as usize >= config.grants_needed();
                    assert!(
                        !grants || writes.iter().all(|quorum| quorum & mask != 0),
                        "leases meet every write"
                    );
                }
                let too_few = sets(n, config.grants_needed() as u8 - 1);
                assert!(
                    too_few.iter().any(|mask| writes.iter().any(|quorum| quorum & mask == 0)),
                    "and none is asked in vain"
                );
            }
        }
    }

    #[test]
    fn members_are_checked() {
        let good = Config::majority([NodeId(1), NodeId(2), NodeId(3)]);
        assert_eq!(good.check(), Ok(()));
        assert_eq!(Config::majority([]).check(), Err(ConfigError::NoVoters));
        assert_eq!(Config::majority((0..16).map(NodeId)).check(), Err(ConfigError::TooManyVoters));
        let lease_eligible = [NodeId(4)].into_iter().collect();
        assert_eq!(Config { lease_eligible, ..good }.check(), Err(ConfigError::HolderNotVoter(NodeId(4))));
    }

    #[test]
    fn a_set_is_sorted_and_has_no_doubles() {
        let mut set: NodeSet = [3, 1, 2, 3, 9, 7, 8, 5, 4, 6].into_iter().map(NodeId).collect();
        assert_eq!(set.len(), 9);
        assert!(set.iter().is_sorted());
        assert!(
            !set.insert(NodeId(5))
                && set.insert(NodeId(0))
                && set.remove(NodeId(9))
                && !set.remove(NodeId(9))
        );
        assert_eq!(set.to_string(), "{0,1,2,3,4,5,6,7,8}");
        let some: NodeSet = [NodeId(1), NodeId(8)].into_iter().collect();
        assert!(some.is_subset(&set) && !set.is_subset(&some));
        assert_eq!(set.count_in(&some), 2);
    }
}
