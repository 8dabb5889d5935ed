//! The one place on which the safety of a new leader rests: which value may be proposed for a slot, given what a
//! phase-1 quorum has voted for.
//!
//! Lamport, Fast Paxos §3.3: among the votes of the quorum Q take those at the highest ballot k. At a classic ballot
//! they are all for one value, which is forced. At a fast ballot a value v is forced when O4(v) holds: some fast
//! quorum may have voted for v unanimously, as far as Q can tell. That is the case iff the voters for v together with
//! everybody outside Q contain a fast quorum. This form holds for all quorum systems, not only for counted ones.

use crate::{Ballot, Config, Kind, NodeId, NodeSet};

/// What may be proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Selection<I> {
    /// Nothing can have been chosen at a lower ballot: any value.
    Free,
    /// This value may have been chosen, so no other.
    Forced(Ballot, I),
}

/// Decides for one slot. `votes` holds one item for each member of the quorum, which must satisfy q1; `None` is a
/// certain "no vote". `I` identifies values: equal at a fast ballot exactly when the values are.
///
/// # Panics
/// When the votes contradict the protocol: two values at one classic ballot, or two forced values.
pub(super) fn select<I: Copy + PartialEq>(
    votes: &[(NodeId, Option<(Ballot, I)>)],
    config: &Config,
) -> Selection<I> {
    let Some(highest) = votes.iter().filter_map(|(_, vote)| vote.map(|(ballot, _)| ballot)).max() else {
        return Selection::Free;
    };
    let mut at_highest = votes
        .iter()
        .filter_map(|&(node, vote)| vote.filter(|(ballot, _)| *ballot == highest).map(|(_, id)| (node, id)));
    match highest.kind {
        Kind::Classic => {
            let (_, id) = at_highest.next().expect("the highest ballot is the ballot of a vote");
            assert!(at_highest.all(|(_, other)| other == id), "I3: one value per slot at a classic ballot");
            Selection::Forced(highest, id)
        }
        Kind::Fast => {
            let outside = config.voters.iter().filter(|voter| votes.iter().all(|(node, _)| node != voter));
            let outside: NodeSet = outside.collect();
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
