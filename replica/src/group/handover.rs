//! When a leader gives its place to another of its own will: the node stops, or its disk is full.

use std::time::Duration;

use consensus_core::{Input, Mono, NodeId, Role};
use tracing::info;

use super::Group;
use crate::clock;

/// How long a stopping leader waits for its successor.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a leader whose disk is full, and whose predecessor's was too, or who found no successor, waits until it tries
/// (again); doubles up to the second time. While all disks are full the group needs a leader that stays: leases begin anew
/// under each.
const RELIEF_PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));

impl Group {
    /// When the node wants to stop: a leader hands over first, so that nobody waits for an election.
    pub(super) fn stop_in_order(&mut self, now: Mono) {
        if self.stopping.is_some() || !self.shared.stopping.is_cancelled() {
            return;
        }
        let status = self.engine.status();
        let successor = {
            let liveness = self.shared.liveness.read();
            let voters = status.config.voters.iter().filter(|voter| *voter != self.shared.id);
            voters.into_iter().find(|voter| liveness.is_up(now, *voter))
        };
        match successor {
            Some(to) if status.role == Role::Leader => {
                self.stopping = Some(now.after(HANDOVER_TIMEOUT));
                self.step(Input::Transfer { to });
            }
            Some(_) | None => self.stopping = Some(now),
        }
    }

    /// A leader whose disk is full can accept no write, but another may: followers need not all have room.
    pub(super) fn seek_relief(&mut self, now: Mono) {
        if !self.shared.journal.is_full() {
            self.relief = None;
            return;
        }
        if !self.leading || self.stopping.is_some() || self.relief.is_some_and(|relief| now < relief.at) {
            return;
        }
        let last = self.relief.map_or(self.shared.id, |relief| relief.asked);
        let config = self.engine.status().config;
        let others = {
            let liveness = self.shared.liveness.read();
            let others = config.voters.iter().filter(|voter| *voter != self.shared.id);
            others.filter(|voter| liveness.is_up(now, *voter)).collect::<Vec<_>>()
        };
        let Some(to) = next_after(last, &others) else { return };
        info!(group = self.handle.id.0, to = to.0, "the disk is full: handing leadership over");
        self.relief = Some(Relief::next(self.relief, to, now));
        self.step(Input::Transfer { to });
    }

    pub(super) fn is_done(&self) -> bool {
        match self.stopping {
            None => false,
            Some(deadline) => self.engine.status().role != Role::Leader || clock::now() >= deadline,
        }
    }
}

/// A leader whose disk is full looks for one that has room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Relief {
    /// Who was asked last to take over.
    pub(super) asked: NodeId,
    /// When the next one may be asked.
    pub(super) at: Mono,
    pause: Duration,
}

impl Relief {
    pub(super) fn next(before: Option<Relief>, asked: NodeId, now: Mono) -> Relief {
        let (first, max) = RELIEF_PAUSE;
        let pause = before.map_or(first, |before| (before.pause * 2).min(max));
        Relief { asked, at: now.after(pause), pause }
    }
}

/// The next one in turn: nothing is known of their disks.
fn next_after(last: NodeId, others: &[NodeId]) -> Option<NodeId> {
    others.iter().find(|voter| **voter > last).or(others.first()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_without_room_asks_the_others_in_turn() {
        let others = [NodeId(1), NodeId(4), NodeId(6)];
        assert_eq!(next_after(NodeId(3), &others), Some(NodeId(4)));
        assert_eq!(next_after(NodeId(4), &others), Some(NodeId(6)));
        assert_eq!(next_after(NodeId(6), &others), Some(NodeId(1)));
        assert_eq!(next_after(NodeId(3), &[]), None);
        // Ever more rarely: perhaps nobody has room.
        let first = Relief::next(None, NodeId(4), Mono(7));
        assert_eq!((first.asked, first.at), (NodeId(4), Mono(7).after(RELIEF_PAUSE.0)));
        let later = (0..20).fold(first, |before, _| Relief::next(Some(before), NodeId(6), Mono(9)));
        assert_eq!(later.at, Mono(9).after(RELIEF_PAUSE.1));
    }
}
