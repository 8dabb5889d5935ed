//! The node's liveness: heartbeats, lapses, and what groups hear of them.

use consensus_core::{Liveness, LivenessEvent, Mono};
use group_core::Event as GroupEvent;

use super::{Node, Process};
use crate::cluster::env::{Env, trace};
use crate::cluster::events::NodeEvent;

impl Process {
    pub(super) fn with_liveness(
        &mut self,
        node: &mut Node,
        env: &mut Env,
        step: impl FnOnce(&mut Liveness, Mono),
    ) {
        step(&mut self.liveness, node.now(env));
        let mut out = std::mem::take(&mut self.liveness_out);
        self.liveness.poll(&mut out);
        for (to, message) in out.sends.drain(..) {
            env.send_liveness(node.index, self.support, to, message);
        }
        for event in out.events.drain(..) {
            self.tell_groups(node, env, event);
        }
        self.liveness_out = out;
        self.wake_liveness(node, env);
    }

    fn tell_groups(&mut self, node: &mut Node, env: &mut Env, event: LivenessEvent) {
        trace!(env, "n{} {event:?}", node.index + 1);
        for group in 0..self.tasks.len() {
            self.event(node, env, group, GroupEvent::Liveness(event));
        }
    }

    pub(crate) fn wake_liveness(&mut self, node: &Node, env: &mut Env) {
        let at = node.clock.when(self.liveness.next_deadline(), env.now);
        if at < self.tick_at {
            self.tick_at = at;
            env.node_at(at, node.index, self.start, NodeEvent::Tick);
        }
    }

    pub(super) fn tick(&mut self, node: &mut Node, env: &mut Env) {
        if self.liveness.next_deadline() > node.now(env) {
            self.wake_liveness(node, env);
            return;
        }
        let stats = self.journal.stats();
        let idle = stats.durable.0 + 1 >= stats.head.0 && stats.staged_bytes == 0;
        let progressed = !self.fenced && (idle || self.syncs > self.syncs_seen);
        self.syncs_seen = self.syncs;
        self.with_liveness(node, env, |liveness, now| {
            if progressed {
                liveness.disk_progress(now);
            }
            liveness.tick(now);
        });
        for (group, floor) in self.journal.pinned() {
            self.event(node, env, group as usize, GroupEvent::SnapshotWanted { floor });
        }
        if self.full {
            env.tell_disk(node.index, true);
        }
    }
}
