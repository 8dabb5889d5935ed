//! What becomes of a node of which others say that its data directory is an old copy, or that it runs twice: that they have
//! heard a later incarnation of it, or another process in the same incarnation. What it promised and voted for there is not in
//! its directory, so it must take no part. But one word may be wrong, or a lie.
//!
//! | who says so | what the node does |
//! | --- | --- |
//! | nobody whom it knows to be the peer it says it is | nothing |
//! | one peer | it steps aside: it ends all its links and makes none, as if the network had cut it off; and asks all others |
//! | two peers at least, and a majority of the others | it is revoked, for good |
//! | nobody any more, of all others, and the one who had said so denies it | it comes back |
//!
//! Stepping aside is a network partition which the node makes itself, and no partition can harm the consensus. That it has
//! stepped aside, and on whose word, is durable, so that a restart does not let it take part in between. The accuser's denial
//! counts only from the process that had accused: what it had heard is forgotten when it restarts, and is no less true.

use std::collections::BTreeMap;

use consensus_core::NodeId;

/// Who has said so: a process of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Accuser {
    pub(crate) node: NodeId,
    pub(crate) process: u64,
}

impl Accuser {
    /// As the superblock keeps it.
    pub(crate) fn to_fact(self) -> (u64, u64) {
        (u64::from(self.node.0), self.process)
    }

    pub(crate) fn from_fact((node, process): (u64, u64)) -> Option<Accuser> {
        Some(Accuser { node: NodeId(u32::try_from(node).ok()?), process })
    }
}

/// What a peer answers, asked at its own address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The process that answers.
    pub(crate) process: u64,
    /// It has heard a later incarnation of this node, or another process in this one.
    pub(crate) confirms: bool,
}

/// What the answers come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Ask on.
    Open,
    /// There is nothing in it.
    Unfounded,
    /// It is so.
    Proven,
}

/// The answers of all other nodes, once it has been said.
#[derive(Debug, Clone)]
pub(crate) struct Suspicion {
    accuser: Accuser,
    answers: BTreeMap<NodeId, Option<Answer>>,
}

impl Suspicion {
    /// `others` are all other nodes of the cluster.
    pub(crate) fn new(accuser: Accuser, others: impl IntoIterator<Item = NodeId>) -> Suspicion {
        Suspicion { accuser, answers: others.into_iter().map(|other| (other, None)).collect() }
    }

    /// `from` was asked, and has answered, or not. The newest answer counts.
    pub(crate) fn answered(&mut self, from: NodeId, answer: Option<Answer>) {
        if let Some(known) = self.answers.get_mut(&from) {
            *known = answer;
        }
    }

    /// Who says so.
    pub(crate) fn confirming(&self) -> impl Iterator<Item = NodeId> + '_ {
        let confirms = |answer: &Option<Answer>| answer.is_some_and(|answer| answer.confirms);
        self.answers.iter().filter(move |(_, answer)| confirms(answer)).map(|(node, _)| *node)
    }

    pub(crate) fn verdict(&self) -> Verdict {
        let confirming = self.confirming().count();
        // Of two nodes one is a majority of the others, and still one word.
        if confirming >= 2.max(self.answers.len() / 2 + 1) {
            return Verdict::Proven;
        }
        let denies = |node: &NodeId, answer: &Option<Answer>| {
            answer.is_some_and(|answer| {
                !answer.confirms && (*node != self.accuser.node || answer.process == self.accuser.process)
            })
        };
        if self.answers.iter().all(|(node, answer)| denies(node, answer)) {
            return Verdict::Unfounded;
        }
        Verdict::Open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCUSER: Accuser = Accuser { node: NodeId(2), process: 20 };

    fn verdict(others: u32, answers: &[(u32, u64, bool)]) -> Verdict {
        let mut suspicion = Suspicion::new(ACCUSER, (2..2 + others).map(NodeId));
        for (from, process, confirms) in answers {
            suspicion.answered(NodeId(*from), Some(Answer { process: *process, confirms: *confirms }));
        }
        suspicion.verdict()
    }

    #[test]
    fn one_word_is_never_a_proof() {
        for others in 1..=6 {
            assert_eq!(verdict(others, &[(2, 20, true)]), Verdict::Open, "of {others}");
        }
    }

    #[test]
    fn a_majority_of_the_others_is_one() {
        assert_eq!(verdict(2, &[(2, 20, true), (3, 30, true)]), Verdict::Proven);
        assert_eq!(verdict(2, &[(2, 20, true), (3, 30, false)]), Verdict::Open);
        assert_eq!(verdict(4, &[(2, 20, true), (3, 30, true)]), Verdict::Open);
        assert_eq!(verdict(4, &[(2, 20, true), (3, 30, true), (5, 50, true)]), Verdict::Proven);
        assert_eq!(verdict(2, &[(2, 20, true), (9, 90, true)]), Verdict::Open, "a stranger");
    }

    #[test]
    fn it_is_unfounded_when_all_deny_it_and_the_accuser_is_the_same_process() {
        assert_eq!(verdict(2, &[(2, 20, false)]), Verdict::Open, "one has not answered");
        assert_eq!(verdict(2, &[(2, 20, false), (3, 30, false)]), Verdict::Unfounded);
        assert_eq!(verdict(1, &[(2, 20, false)]), Verdict::Unfounded);
        assert_eq!(verdict(2, &[(2, 21, false), (3, 30, false)]), Verdict::Open, "it has forgotten");
    }

    #[test]
    fn the_newest_answer_counts() {
        let mut suspicion = Suspicion::new(ACCUSER, [NodeId(2), NodeId(3)]);
        suspicion.answered(NodeId(3), Some(Answer { process: 30, confirms: true }));
        suspicion.answered(NodeId(3), None);
        suspicion.answered(NodeId(2), Some(Answer { process: 20, confirms: false }));
        assert_eq!(suspicion.verdict(), Verdict::Open);
        suspicion.answered(NodeId(3), Some(Answer { process: 31, confirms: false }));
        assert_eq!(suspicion.verdict(), Verdict::Unfounded);
    }
}
