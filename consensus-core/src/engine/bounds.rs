//! How far a peer's word is believed. A round far above every one that is known would be durable with the first promise,
//! and leave no room for elections above it.
//!
//! **Rounds.** An election takes one round above what its candidate knows. A node that returns without its memory takes
//! `FORGOTTEN_ROUNDS_MAX` for each of its incarnations at once, and numbers its incarnations by the clock (about 2^31 of
//! them), so that 2^41 rounds is what an honest node goes ahead in one step, and 2^52 what it could at most
//! ([`INCARNATION_MAX`]). A message that goes further is refused.
//!
//! Who missed many such steps would refuse honest peers as well. So what refused messages claim is remembered, and a round
//! that two members have claimed is believed: one of them is not enough. A node that looks for a leader hears all others'
//! claims, since they answer its pre-votes. In a group of two nobody can second a claim; there 4096 returns must not be
//! missed.
//!
//! Below [`ROUND_NEAR_END`] somebody who forges messages again and again makes the rounds grow by the larger step. From
//! there on by the smaller one, which a returning node still fits in: half a million forgeries, each made durable, and
//! then [`crate::Durable::survive`] is the way out.
//!
//! **Slots.** How far a member may be behind has no bound. Nothing durable follows from a claimed commit index, only that
//! values are asked for; a claim that nobody can back with values lapses, see [`super::catchup`].

use std::collections::BTreeMap;

use super::Engine;
use super::recall::FORGOTTEN_ROUNDS_MAX;
use crate::message::ROUND_MAX;
use crate::newcomer::INCARNATION_MAX;
use crate::{Ballot, Event, Message, NodeId, Suspicion};

/// How far above the known rounds a message may go.
const ROUND_STEP_MAX: u64 = 1 << 53;
/// The same from [`ROUND_NEAR_END`] on.
const ROUND_STEP_NEAR_END: u64 = 1 << 42;
const ROUND_NEAR_END: u64 = 1 << 61;

const _: () = assert!(
    ROUND_STEP_MAX > FORGOTTEN_ROUNDS_MAX * INCARNATION_MAX,
    "whoever returns without its memory is believed"
);
const _: () =
    assert!(ROUND_NEAR_END + ROUND_STEP_MAX < ROUND_MAX, "there is room for elections after the last step");

/// The highest round that each member has claimed and was not believed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Claims(BTreeMap<NodeId, u64>);

impl Claims {
    /// `from` claims `round`. Returns a round that two have claimed, if there is one.
    fn add(&mut self, from: NodeId, round: u64) -> Option<u64> {
        let claim = self.0.entry(from).or_default();
        *claim = round.max(*claim);
        let mut claims: Vec<u64> = self.0.values().copied().collect();
        claims.sort_unstable();
        claims.iter().rev().nth(1).copied()
    }
}

/// The highest round that is believed of somebody who knows of `known`.
fn bound(known: u64) -> u64 {
    let step = if known < ROUND_NEAR_END { ROUND_STEP_MAX } else { ROUND_STEP_NEAR_END };
    known.saturating_add(step).min(ROUND_MAX - 1)
}

impl Engine {
    /// Whether what `from` says of rounds is believed.
    pub(super) fn believes(&mut self, from: NodeId, message: &Message) -> bool {
        let Some(round) = message.highest_round() else { return true };
        if round <= bound(self.round_known()) {
            return true;
        }
        if self.config.voters.contains(from)
            && round < ROUND_MAX
            && let Some(seconded) = self.claims.add(from, round)
        {
            self.round_seen = self.round_seen.max(seconded);
        }
        assert!(self.round_seen < ROUND_MAX, "there is a round above every one that is believed");
        assert!(
            self.claims.0.len() <= self.config.voters.len(),
            "one claim for each voter, and none for others"
        );
        let believed = round <= bound(self.round_known());
        if !believed {
            self.outbox.event(Event::Suspicious { from, suspicion: Suspicion::Round });
        }
        believed
    }

    fn round_known(&self) -> u64 {
        self.acceptor.promised().round.max(self.round_seen)
    }

    /// A leader speaks at a ballot that is lower than the promise by more than any election explains. It is this node
    /// that was lied to, before such promises were refused.
    pub(super) fn doubt_promise(&mut self, ballot: Ballot) {
        if self.acceptor.promised().round > bound(ballot.round) && !self.promise_doubted {
            self.promise_doubted = true;
            self.outbox.event(Event::PromiseDoubtful);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_believed_when_two_have_claimed_it() {
        let mut claims = Claims::default();
        let (one, two) = (NodeId(1), NodeId(2));
        assert_eq!(claims.add(one, 1 << 60), None);
        assert_eq!(claims.add(one, 1 << 61), None, "the same one, again");
        assert_eq!(claims.add(two, 1 << 55), Some(1 << 55));
        assert_eq!(claims.add(two, (1 << 61) + 1), Some(1 << 61));
    }

    #[test]
    fn whoever_forges_again_and_again_gets_slower_before_the_end() {
        let mut known = 0;
        let mut forged = 0;
        while known < ROUND_NEAR_END {
            known = bound(known);
            forged += 1;
        }
        assert_eq!(forged, 256);
        assert!((ROUND_MAX - known) / (bound(known) - known) > 500_000);
        assert!(
            bound(known) - known > FORGOTTEN_ROUNDS_MAX << 31,
            "whoever returns by today's clock is believed"
        );
        assert_eq!(bound(ROUND_MAX - 1), ROUND_MAX - 1);
    }
}
