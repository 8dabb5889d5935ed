//! How a node's process starts, and how one with an empty directory comes to its place in the cluster.

use consensus_core::{Newcomer, NodeId, NodeStatus, Place};
use journal::{Identity, SimDisk, Superblock};

use super::Node;
use crate::cluster::clock::{MICRO, MILLI};
use crate::cluster::coverage::Mark;
use crate::cluster::env::{After, Env, trace};
use crate::cluster::events::Event;
use crate::cluster::truth::id;

/// The cluster that all nodes belong to.
const CLUSTER: u64 = 0x0067_a105;

impl Node {
    /// Whether it ever took part.
    pub(crate) fn has_had_a_place(&self) -> bool {
        !self.incarnations.is_empty()
    }

    /// The process starts: recovery through the real code.
    pub(crate) fn start(&mut self, env: &mut Env) {
        if self.process.is_some() || self.newcomer.is_some() || self.lost {
            return;
        }
        self.starts += 1;
        for _ in 0..std::mem::take(&mut self.damage_due) {
            self.damage(env);
        }
        if std::mem::take(&mut self.snapshots_lost_due) {
            self.lose_snapshots(env);
        }
        let superblock = match self.open_superblock(env) {
            Ok(superblock) => superblock,
            Err(error) => return self.cannot_start(env, &error),
        };
        if superblock.facts().placed {
            return self.begin(env, superblock);
        }
        let others = (0..env.profile.nodes).filter(|other| *other != self.index).map(id);
        #[cfg_attr(not(feature = "mutants"), expect(unused_mut, reason = "a mutant is set here"))]
        let mut newcomer = Newcomer::new(superblock.facts().mark, others);
        #[cfg(feature = "mutants")]
        {
            newcomer.mutant = crate::cluster::Mutant::of_engine(env.mutant);
        }
        self.newcomer = Some((newcomer, superblock));
        env.after(0, Event::Ask { node: self.index, start: self.starts });
    }

    fn open_superblock(&mut self, env: &mut Env) -> Result<Superblock<SimDisk>, journal::Error> {
        let mut superblock = match Superblock::open(self.disk.clone())? {
            Some(superblock) => superblock,
            None => {
                let salt = env.seed_for(self.index, 0xffff, 0);
                let identity = Identity { cluster: CLUSTER, node: u64::from(id(self.index).0), salt };
                let mark = env.seed_for(self.index, 0xfffe, self.emptied);
                Superblock::create(self.disk.clone(), identity, mark)?
            }
        };
        self.former_support = superblock.facts().support;
        superblock.begin_incarnation(env.support_of(self.index, self.starts))?;
        Ok(superblock)
    }

    /// What it says to a newcomer; `None` while it says nothing.
    pub(crate) fn node_status(&self, asking: NodeId) -> Option<NodeStatus> {
        if let Some((newcomer, _)) = &self.newcomer {
            return Some(NodeStatus::Newcomer { mark: newcomer.mark() });
        }
        let process = self.process.as_ref().filter(|process| !process.paused)?;
        let known = process.roll.iter().find(|(node, _)| *node == u64::from(asking.0));
        Some(NodeStatus::Placed {
            known_as: known.map(|(_, mark)| *mark),
            incarnation_heard: process.liveness.incarnation_of(asking),
        })
    }

    /// The newcomer has some answers. Returns whether it has a place now.
    pub(crate) fn try_take_place(&mut self, env: &mut Env) -> bool {
        // Here nodes start again within milliseconds.
        let calendar = 1_000_000 + env.now / (10 * MICRO);
        let Some(place) = self.newcomer.as_ref().and_then(|(newcomer, _)| newcomer.place(calendar)) else {
            return false;
        };
        let Some((newcomer, mut superblock)) = self.newcomer.take() else { return false };
        trace!(env, "n{} takes its place: {place:?}", self.index + 1);
        let roll = newcomer.roll().map(|(node, mark)| (u64::from(node.0), mark)).collect();
        let returned_as = match place {
            Place::Founder => {
                env.mark(Mark::Founded);
                None
            }
            Place::Returned { incarnation } => {
                env.mark(Mark::Returned);
                Some(incarnation)
            }
        };
        match superblock.take_place(roll, returned_as) {
            Ok(()) => self.begin(env, superblock),
            Err(error) => self.cannot_start(env, &error),
        }
        true
    }

    fn begin(&mut self, env: &mut Env, superblock: Superblock<SimDisk>) {
        match self.recover(env, superblock) {
            Ok(process) => {
                self.process = Some(Box::new(process));
                env.running |= 1 << self.index;
                for peer in 0..env.profile.nodes {
                    env.after.push(After::Support { holder: peer, grantor: self.index });
                }
                self.with_process(env, |process, node, env| {
                    process.wake_liveness(node, env);
                    for group in 0..process.tasks.len() {
                        process.turn(node, env, group);
                        process.tick_without_state(node, env, group);
                    }
                });
            }
            Err(error) => self.cannot_start(env, &error),
        }
    }

    fn cannot_start(&mut self, env: &mut Env, error: &journal::Error) {
        if matches!(error, journal::Error::Full { .. }) {
            let node = self.index;
            env.after(200 * MILLI, Event::Start { node });
        } else if self.damaged {
            trace!(env, "n{} cannot start: {error}", self.index + 1);
            self.lost = true;
        } else {
            env.fail("recovery", format!("node {} cannot start: {error}", self.index + 1));
        }
    }
}
