//! Groups whose snapshot is lost: they wait for a peer's.

use group_core::{Event as GroupEvent, Out};

use super::recovery::begin_task;
use super::task::Input;
use super::{Node, Process};
use crate::cluster::clock::MICRO;
use crate::cluster::coverage::Mark;
use crate::cluster::env::Env;
use crate::cluster::env::connections::connection_of;
use crate::cluster::events::NodeEvent;

impl Process {
    /// Something comes in for a group that waits for a peer's snapshot.
    pub(super) fn input_without_state(&mut self, node: &mut Node, env: &mut Env, group: usize, input: Input) {
        let Some(waiting) = self.stateless.remove(&group) else { return };
        let event = match input {
            Input::Event(event) => event,
            Input::Gateway { link, requests } => GroupEvent::Requests { link, requests },
            // Clients of nodes ask elsewhere after a while.
            Input::Request(_) | Input::Watch { .. } | Input::SnapshotSent { .. } | Input::Transfer { .. } => {
                self.stateless.insert(group, waiting);
                return;
            }
        };
        let mut out = Out::default();
        match waiting.step(node.now(env), event, &mut out) {
            Ok(replica) => {
                env.mark(Mark::BegunWithAPeersSnapshot);
                self.tasks[group] = Some(begin_task(env, node.index, group, replica));
                self.turn(node, env, group);
            }
            Err(waiting) => drop(self.stateless.insert(group, waiting)),
        }
        self.carry_out_without_state(node, env, group, out);
    }

    /// A group that waits for a peer's snapshot asks for it.
    pub(super) fn tick_without_state(&mut self, node: &Node, env: &mut Env, group: usize) {
        let Some(waiting) = self.stateless.get_mut(&group) else { return };
        let mut out = Out::default();
        waiting.tick(node.now(env), &mut out);
        let at = node.clock.when(waiting.deadline(), env.now).max(env.now + MICRO);
        env.node_at(at, node.index, self.start, NodeEvent::Timer(group));
        self.carry_out_without_state(node, env, group, out);
    }

    fn carry_out_without_state(&self, node: &Node, env: &mut Env, group: usize, out: Out) {
        for (to, what) in out.to_peers {
            env.tell_peer(node.index, group, to, what);
        }
        for answer in out.answers {
            if let Some(connection) = connection_of(answer.link) {
                env.send_to_gateway(connection, answer.responses);
            }
        }
    }
}
