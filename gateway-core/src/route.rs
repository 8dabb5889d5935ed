//! Who leads a group, as far as a gateway can know: a pure table of guesses, mended by answers.
//!
//! A guess is a node and the round of its leadership. Guesses come from the leader's own answers, from refusals that
//! name another, and from what other replicas say when asked. The one rule: news of an older round never replaces a
//! newer one, and a node's own word that it does not lead outweighs what others say of the same round.

pub use shard_map::NodeId;

/// What is known of the leadership of one group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    leader: Option<Leader>,
    /// The leadership that its own node denied last.
    denied: Option<Leader>,
}

/// A guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Which node.
    pub node: NodeId,
    /// In which round.
    pub term: u64,
}

impl Route {
    /// The node to try.
    pub fn leader(&self) -> Option<Leader> {
        self.leader
    }

    /// The lowest round whose leader would be news, for whoever looks for one because this guess is of no use.
    pub fn least_term(&self) -> u64 {
        match (self.leader, self.denied) {
            (Some(unreachable), _) => unreachable.term.saturating_add(1),
            (None, Some(denied)) => denied.term,
            (None, None) => 0,
        }
    }

    /// `node` answered, at `term`, a request that only a leader answers. Returns whether the guess changed.
    pub fn handle_led(&mut self, node: NodeId, term: u64) -> bool {
        if self.leader.is_some_and(|known| known.term > term) {
            return false;
        }
        self.adopt(Leader { node, term })
    }

    /// `node`, in round `term`, refused to lead, and named `hint`, if anybody. Returns whether the guess changed.
    pub fn handle_denied(&mut self, node: NodeId, term: u64, hint: Option<NodeId>) -> bool {
        let before = self.leader;
        self.denied = Some(Leader { node, term });
        // Whatever round it is in: one that has lost its disk has forgotten how far it was. Should it be late news of a time
        // before it led, asking again costs little.
        if self.leader.is_some_and(|known| known.node == node) {
            self.leader = None;
        }
        if let Some(hint) = hint.filter(|hint| *hint != node) {
            self.handle_said(term, hint);
        }
        assert!(
            self.leader.is_none_or(|known| known.node != node),
            "who says that it does not lead is believed"
        );
        self.leader != before
    }

    /// `node` has no replica of the group, or is stopping. Returns whether the guess changed.
    pub fn handle_gone(&mut self, node: NodeId) -> bool {
        let was = self.leader.is_some_and(|known| known.node == node);
        if was {
            self.denied = self.leader.take();
        }
        assert!(self.leader.is_none_or(|known| known.node != node), "who is gone does not lead");
        was
    }

    /// A replica in round `term` says that `leader` leads it. Returns whether the guess changed.
    pub fn handle_said(&mut self, term: u64, leader: NodeId) -> bool {
        if self.leader.is_some_and(|known| known.term > term) {
            return false;
        }
        if self.denied.is_some_and(|denied| denied.node == leader && denied.term >= term) {
            return false;
        }
        self.adopt(Leader { node: leader, term })
    }

    fn adopt(&mut self, leader: Leader) -> bool {
        assert!(
            self.leader.is_none_or(|known| known.term <= leader.term),
            "who led before is not gone back to"
        );
        let changed = self.leader.map(|known| known.node) != Some(leader.node);
        self.leader = Some(leader);
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_round_wins_and_an_older_one_is_ignored() {
        let mut route = Route::default();
        assert!(route.handle_said(3, NodeId(1)));
        assert!(!route.handle_said(2, NodeId(2)), "an older round");
        assert!(route.handle_said(4, NodeId(2)));
        assert!(!route.handle_led(NodeId(1), 3), "a late answer of the old leader");
        assert_eq!(route.leader(), Some(Leader { node: NodeId(2), term: 4 }));
    }

    #[test]
    fn a_node_that_denies_is_not_believed_in_by_others_of_the_same_round() {
        let mut route = Route::default();
        route.handle_led(NodeId(1), 3);
        assert!(route.handle_denied(NodeId(1), 4, None));
        assert_eq!(route.leader(), None);
        assert!(!route.handle_said(4, NodeId(1)), "a replica that has not heard yet");
        assert!(route.handle_said(5, NodeId(1)), "elected again");
    }

    #[test]
    fn a_leader_that_has_forgotten_its_rounds_is_not_believed_in_any_more() {
        let mut route = Route::default();
        route.handle_led(NodeId(1), 7);
        assert!(route.handle_denied(NodeId(1), 2, None));
        assert_eq!(route.leader(), None);
        assert!(route.handle_said(8, NodeId(3)));
    }

    #[test]
    fn a_hint_redirects() {
        let mut route = Route::default();
        route.handle_led(NodeId(1), 3);
        assert!(route.handle_denied(NodeId(1), 4, Some(NodeId(3))));
        assert_eq!(route.leader(), Some(Leader { node: NodeId(3), term: 4 }));
    }

    #[test]
    fn a_denial_by_another_does_not_shake_a_newer_guess() {
        let mut route = Route::default();
        route.handle_led(NodeId(2), 5);
        assert!(!route.handle_denied(NodeId(1), 4, Some(NodeId(3))));
        assert_eq!(route.leader(), Some(Leader { node: NodeId(2), term: 5 }));
    }
}
