//! The one place on which the safety of a new leader rests: which value may be proposed for a slot, given what a
//! phase-1 quorum has voted for.
//!
//! Lamport, Fast Paxos §3.3: among the votes of the quorum Q take those at the highest ballot k. At a classic ballot
//! they are all for one value, which is forced. At a fast ballot a value v is forced when O4(v) holds: some fast
//! quorum may have voted for v unanimously, as far as Q can tell. That is the case iff the voters for v together with
//! everybody outside Q contain a fast quorum. This form holds for all quorum systems, not only for counted ones.

use crate::{Config, Kind, NodeId, NodeSet, VoteBallot};

/// What may be proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Selection<I> {
    /// Nothing can have been chosen at a lower ballot: any value.
    Free,
    /// This value may have been chosen, so no other.
    Forced(VoteBallot, I),
}

/// Decides for one slot. `votes` holds one item for each member of the quorum, which must satisfy q1; `None` is a
/// certain "no vote". `I` identifies values: equal at a fast ballot exactly when the values are.
///
/// # Panics
/// When the votes contradict the protocol: two values at one classic ballot, or two forced values.
pub(super) fn select<I: Copy + PartialEq>(
    votes: &[(NodeId, Option<(VoteBallot, I)>)],
    config: &Config,
) -> Selection<I> {
    let Some(highest) = votes.iter().filter_map(|(_, vote)| vote.map(|(vote_ballot, _)| vote_ballot)).max()
    else {
        return Selection::Free;
    };
    debug_assert!(
        (1..votes.len()).all(|index| votes[..index].iter().all(|(node, _)| *node != votes[index].0)),
        "a voter counts once"
    );
    let mut at_highest = votes.iter().filter_map(|&(node, vote)| {
        vote.filter(|(vote_ballot, _)| *vote_ballot == highest).map(|(_, id)| (node, id))
    });
    match highest.kind {
        Kind::Classic => {
            let (_, id) = at_highest.next().expect("the highest ballot is the ballot of a vote");
            assert!(at_highest.all(|(_, other)| other == id), "I3: one value per slot at a classic ballot");
            Selection::Forced(highest, id)
        }
        Kind::Fast => {
            let outside = config.voters.iter().filter(|voter| votes.iter().all(|(node, _)| node != voter));
            let outside: NodeSet = outside.collect();
            assert!(outside.len() + votes.len() >= config.voters.len(), "who is not heard of may have voted");
            let at_highest: Vec<(NodeId, I)> = at_highest.collect();
            let mut forced: Option<I> = None;
            for &(_, id) in &at_highest {
                let voters = at_highest.iter().filter(|(_, other)| *other == id).map(|(node, _)| *node);
                if config.is_qf(&voters.chain(outside.iter()).collect()) {
                    assert!(forced.is_none_or(|known| known == id), "I6: at most one value satisfies O4");
                    forced = Some(id);
                }
            }
            forced.map_or(Selection::Free, |id| Selection::Forced(highest, id))
        }
    }
}

/// Whether anything can have been chosen for a slot in which these voters have certainly cast no vote. They have
/// promised the ballot that asks, so they never will below it; and whatever was chosen, at a classic or at a fast ballot,
/// was voted for by every member of some q2 or qf.
pub(super) fn may_be_chosen(without_vote: &NodeSet, config: &Config) -> bool {
    let others: NodeSet = config.voters.iter().filter(|voter| !without_vote.contains(*voter)).collect();
    config.is_q2(&others) || config.is_qf(&others)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Ballot;

    /// What a phase-1 quorum answered, with small numbers for values.
    type Votes = Vec<(NodeId, Option<(VoteBallot, u8)>)>;

    /// I17: the definition, over all fast quorums R: the value is forced when every member of R that Q has heard of
    /// voted for it at the highest ballot.
    fn by_definition(votes: &[(NodeId, Option<(VoteBallot, u8)>)], config: &Config) -> Vec<u8> {
        let Some(highest) =
            votes.iter().filter_map(|(_, vote)| vote.map(|(vote_ballot, _)| vote_ballot)).max()
        else {
            return Vec::new();
        };
        let at_highest = |vote: Option<(VoteBallot, u8)>| {
            vote.filter(|(vote_ballot, _)| *vote_ballot == highest).map(|(_, id)| id)
        };
        if highest.kind == Kind::Classic {
            return votes.iter().filter_map(|(_, vote)| at_highest(*vote)).take(1).collect();
        }
        let n = config.voters.len();
        let mut forced: Vec<u8> = votes.iter().filter_map(|(_, vote)| at_highest(*vote)).collect();
        forced.sort_unstable();
        forced.dedup();
        forced.retain(|id| {
            (0..1u32 << n).any(|quorum| {
                let members: Vec<NodeId> =
                    (0..n as u32).filter(|bit| quorum >> bit & 1 == 1).map(NodeId).collect();
                let heard = votes.iter().filter(|(node, _)| members.contains(node));
                config.qf.is_some_and(|qf| members.len() >= usize::from(qf))
                    && heard.clone().all(|(_, vote)| at_highest(*vote) == Some(*id))
            })
        });
        forced
    }

    fn configs() -> impl Strategy<Value = Config> {
        prop::sample::select(vec![
            (3, 2, 2, 3),
            (4, 3, 3, 3),
            (4, 3, 2, 3),
            (5, 3, 3, 4),
            (5, 4, 2, 4),
            (5, 5, 1, 3),
            (6, 4, 3, 5),
            (7, 4, 4, 6),
            (7, 5, 3, 5),
        ])
        .prop_map(|(n, q1, q2, qf)| Config::majority((0..n).map(NodeId)).with_quorums(q1, q2, Some(qf)))
    }

    fn case() -> impl Strategy<Value = (Config, Votes)> {
        configs().prop_flat_map(|config| {
            let n = config.voters.len();
            let q1 = usize::from(config.q1);
            let vote = prop::option::weighted(0.8, (1u64..4, any::<bool>(), 0u8..3));
            let votes = prop::collection::vec(vote, n);
            let heard = prop::sample::subsequence((0..n).collect::<Vec<_>>(), q1..=n);
            (Just(config), votes, heard).prop_map(|(config, votes, heard)| {
                let votes = heard.into_iter().map(|node| {
                    let vote = votes[node].map(|(round, fast, id)| {
                        let kind = if fast { Kind::Fast } else { Kind::Classic };
                        // One value per classic ballot.
                        let id = if fast { id } else { round as u8 };
                        (VoteBallot { ballot: Ballot { round, node: NodeId(0) }, kind }, id)
                    });
                    (NodeId(node as u32), vote)
                });
                let votes = votes.collect();
                (config, votes)
            })
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn is_what_the_definition_says((config, votes) in case()) {
            prop_assert_eq!(config.check(), Ok(()));
            let forced = by_definition(&votes, &config);
            prop_assert!(forced.len() <= 1, "I6");
            let selected = match select(&votes, &config) {
                Selection::Free => None,
                Selection::Forced(_, id) => Some(id),
            };
            prop_assert_eq!(selected, forced.first().copied());
        }
    }

    proptest! {
        /// By definition: some quorum, of either kind, has no member among those that did not vote.
        #[test]
        fn without_a_quorum_of_votes_nothing_is_chosen(config in configs(), without in any::<u8>()) {
            let members = |set: u32| (0..8).filter(move |bit| set >> bit & 1 == 1).map(NodeId);
            let without: NodeSet = members(u32::from(without)).collect();
            let chosen = (0..1u32 << config.voters.len()).any(|quorum| {
                let size = members(quorum).count();
                let is_quorum = size >= usize::from(config.q2)
                    || config.qf.is_some_and(|qf| size >= usize::from(qf));
                is_quorum && members(quorum).all(|member| !without.contains(member))
            });
            prop_assert_eq!(may_be_chosen(&without, &config), chosen);
        }
    }

    #[test]
    fn the_highest_ballot_alone_counts() {
        let config = Config::majority((0..3).map(NodeId));
        let vote = |round, id| Some((VoteBallot::classic(Ballot { round, node: NodeId(0) }), id));
        assert_eq!(select::<u8>(&[(NodeId(0), None), (NodeId(1), None)], &config), Selection::Free);
        let votes = [(NodeId(0), vote(2, 7u8)), (NodeId(1), vote(5, 8)), (NodeId(2), vote(5, 8))];
        assert!(
            matches!(select(&votes, &config), Selection::Forced(vote_ballot, 8) if vote_ballot.ballot.round == 5)
        );
    }

    #[test]
    #[should_panic(expected = "I3")]
    fn two_values_at_one_classic_ballot_are_an_error() {
        let config = Config::majority((0..3).map(NodeId));
        let vote = |id| Some((VoteBallot::classic(Ballot { round: 1, node: NodeId(0) }), id));
        select(&[(NodeId(0), vote(1)), (NodeId(1), vote(2))], &config);
    }
}
