//! When a leader gives its place to another of its own will: the node stops, or its disk is full.

use std::time::Duration;

use consensus_core::{Input, Mono, NodeId, Role, Status};

use crate::env::Env;
use crate::out::Notice;
use crate::replica::Replica;

/// How long a stopping leader waits until its successor leads: some ten times as long as that takes with slow disks. Then
/// the others elect one of their own accord, and need not wait for this node's lease.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a leader whose disk is full, and whose predecessor's was too, or who found no successor, waits until it tries
/// (again); doubles up to the second time. While all disks are full the group needs a leader that stays: leases begin anew
/// under each.
const RELIEF_PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));

impl Replica {
    /// When the node wants to stop: a leader hands over first, so that nobody waits for an election. The node has given its
    /// leases back before ([`consensus_core::Liveness::retire`]), so nobody waits for those either.
    pub(crate) fn stop_in_order(&mut self, env: &Env<'_>) {
        if self.stopping.is_some() {
            return;
        }
        let now = env.now;
        let led = self.engine.status().role == Role::Leader;
        let until = if led { now.after(HANDOVER_TIMEOUT) } else { now };
        self.stopping = Some(Stopping { led, until });
        self.hand_over_to_another(env);
    }

    /// While the node wants to stop: to whoever needs least to lead. What is asked meanwhile waits in the engine, and goes to
    /// the successor.
    pub(crate) fn hand_over_to_another(&mut self, env: &Env<'_>) {
        let now = env.now;
        let Some(stopping) = &mut self.stopping else { return };
        // One that began before the wish to stop is as good.
        if self.engine.status().successor.is_some() {
            return;
        }
        let successor = self.engine.successor(now, env.liveness);
        match successor {
            Some(to) if now < stopping.until => {
                assert_ne!(to, self.settings.node, "it is another one that takes over");
                self.out.notices.push(Notice::HandingOver { to });
                self.step_engine(env, Input::Transfer { to });
            }
            // Nobody could lead: there is nothing to wait for.
            Some(_) | None => stopping.until = now,
        }
    }

    /// A leader whose disk is full can accept no write, but another may: followers need not all have room.
    pub(crate) fn seek_relief(&mut self, env: &Env<'_>) {
        let now = env.now;
        if !env.disk.full {
            self.relief = None;
            return;
        }
        if !self.leading || self.stopping.is_some() || self.relief.is_some_and(|relief| now < relief.at) {
            return;
        }
        let last = self.relief.map_or(self.settings.node, |relief| relief.asked);
        let config = self.engine.status().config;
        let others = config.voters.iter().filter(|voter| *voter != self.settings.node);
        let able = |voter: &NodeId| env.liveness.is_up(now, *voter) && !self.is_disk_full(env, *voter);
        let others: Vec<_> = others.filter(able).collect();
        let Some(to) = next_after(last, &others) else { return };
        assert_ne!(to, self.settings.node, "it is another one that has room");
        self.out.notices.push(Notice::HandingOverFull { to });
        self.relief = Some(Relief::next(self.relief, to, now));
        self.step_engine(env, Input::Transfer { to });
    }

    /// Whether a replica that was told to stop has nothing left to wait for.
    #[must_use]
    pub fn is_done(&self, now: Mono) -> bool {
        match self.stopping {
            None => false,
            Some(stopping) => stopping.is_over(&self.engine.status(), now),
        }
    }
}

/// A group on a node that wants to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stopping {
    /// This replica led when the wish came.
    pub(crate) led: bool,
    /// It waits no longer.
    pub(crate) until: Mono,
}

impl Stopping {
    /// One that led stays until another does: its vote may be needed for that, and gateways ask it who it is.
    fn is_over(&self, status: &Status, now: Mono) -> bool {
        let replaced = status.role != Role::Leader && status.leader.is_some();
        !self.led || replaced || now >= self.until
    }
}

/// A leader whose disk is full looks for one that has room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Relief {
    /// Who was asked last to take over.
    pub(crate) asked: NodeId,
    /// When the next one may be asked.
    pub(crate) at: Mono,
    pause: Duration,
}

impl Relief {
    pub(crate) fn next(before: Option<Relief>, asked: NodeId, now: Mono) -> Relief {
        let (first, max) = RELIEF_PAUSE;
        let pause = before.map_or(first, |before| (before.pause * 2).min(max));
        assert!((first..=max).contains(&pause), "pauses are bounded");
        Relief { asked, at: now.after(pause), pause }
    }
}

/// The next one in turn: of disks that are not full when they say so, nothing is known.
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
