//! When the group's cluster version may rise: once every replica of the group has said that it knows the next one. A leader asks
//! them, when one comes up and from time to time, while there is one that it knows itself.
//!
//! What a replica has said holds until its node is down: it may come back as an older one. A leader that follows asks anew.

use std::collections::BTreeMap;
use std::time::Duration;

use consensus_core::{Mono, NodeId, NodeSet};
use keyspace::ClusterVersion;

/// How often a leader asks, and proposes again.
const ASK_EVERY: Duration = Duration::from_secs(3);

#[derive(Debug, Default)]
pub(crate) struct Versions {
    /// The newest that each of the others knows, as it said since it was down last.
    told: BTreeMap<NodeId, ClusterVersion>,
    ask_at: Mono,
    /// What was proposed since it was asked last.
    proposed: Option<ClusterVersion>,
}

impl Versions {
    /// This replica begins to lead.
    pub(crate) fn begin(&mut self, now: Mono) {
        *self = Versions { ask_at: now, ..Versions::default() };
    }

    /// When to ask.
    pub(crate) fn deadline(&self) -> Mono {
        self.ask_at
    }

    /// Whether it is time to ask.
    pub(crate) fn take_due(&mut self, now: Mono) -> bool {
        let is_due = self.ask_at <= now;
        if is_due {
            self.ask_at = now.after(ASK_EVERY);
            self.proposed = None;
        }
        is_due
    }

    pub(crate) fn told(&mut self, by: NodeId, newest: ClusterVersion) {
        self.told.insert(by, newest);
    }

    /// A node came up, perhaps as a newer one.
    pub(crate) fn up(&mut self, now: Mono) {
        self.ask_at = self.ask_at.min(now);
    }

    pub(crate) fn down(&mut self, node: NodeId) {
        self.told.remove(&node);
    }

    /// The newest version that all of the group know, among them this node, `me`, which knows `own`. None while one of them has
    /// not said.
    pub(crate) fn known_by_all(
        &self,
        me: NodeId,
        own: ClusterVersion,
        replicas: &NodeSet,
    ) -> Option<ClusterVersion> {
        let known = |node: NodeId| if node == me { Some(own) } else { self.told.get(&node).copied() };
        replicas.iter().map(known).try_fold(own, |least, known| Some(least.min(known?)))
    }

    /// Whether to propose this one now.
    pub(crate) fn propose(&mut self, version: ClusterVersion) -> bool {
        self.proposed.replace(version) != Some(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: ClusterVersion = ClusterVersion::FIRST;
    const NEW: ClusterVersion = ClusterVersion::NUMBERED_GRANTS;
    const ME: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const C: NodeId = NodeId(3);

    fn known_by_all(versions: &Versions) -> Option<ClusterVersion> {
        versions.known_by_all(ME, NEW, &[ME, B, C].into_iter().collect())
    }

    #[test]
    fn all_must_have_said_it_since_they_came_up() {
        let mut versions = Versions::default();
        versions.begin(Mono(0));
        versions.told(B, NEW);
        assert_eq!(known_by_all(&versions), None);
        versions.told(C, OLD);
        assert_eq!(known_by_all(&versions), Some(OLD));
        versions.down(C);
        assert_eq!(known_by_all(&versions), None, "nobody knows what it comes back as");
        versions.told(C, ClusterVersion(9));
        assert_eq!(known_by_all(&versions), Some(NEW), "no newer one than this node knows");
        versions.begin(Mono(5));
        assert_eq!(known_by_all(&versions), None);
        assert_eq!(versions.known_by_all(ME, NEW, &[ME].into_iter().collect()), Some(NEW));
    }

    #[test]
    fn what_was_proposed_is_proposed_again_with_the_next_question() {
        let mut versions = Versions::default();
        versions.begin(Mono(7));
        assert!(versions.take_due(Mono(7)) && !versions.take_due(Mono(8)));
        assert!(versions.propose(NEW) && !versions.propose(NEW));
        assert!(versions.take_due(versions.deadline()) && versions.propose(NEW));
    }
}
