//! What a replica sees of the world.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use consensus_core::{GroupId, Liveness, Mono, NodeId, NodeSet, Timing};
use keyspace::{ClusterVersion, Limits, ShardSpan, WriteBounds};

use crate::mutant::Broken;

/// What does not change while the node runs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The group.
    pub group: GroupId,
    /// The node that the replica is on.
    pub node: NodeId,
    /// The voters, as configured and for good.
    pub voters: NodeSet,
    /// Times of the consensus protocol.
    pub timing: Timing,
    /// What this node would set as leader.
    pub limits: Limits,
    /// The shards that the group begins with: the same on all its nodes.
    pub shards: Vec<ShardSpan>,
    /// The node's shard map, encoded.
    pub shard_map: Bytes,
    /// A snapshot is not due before this many bytes were logged since the last one.
    pub snapshot_least_bytes: u64,
    /// Size of the slices that a snapshot is cut in.
    pub snapshot_slice_bytes: usize,
    /// Keys and values of an answer, in bytes, from which it is sent in parts.
    pub large_answer_bytes: usize,
    /// Bytes of events after which a message for a watch ends, be it inside a revision.
    pub watch_part_bytes: usize,
    /// The region that each node stands in, as far as it is known.
    pub regions: BTreeMap<NodeId, String>,
    /// The newest cluster version that this node knows.
    pub known: ClusterVersion,
    /// The regions where the group is to be led, the best first, until an operator says otherwise.
    pub leader_regions: Vec<Bytes>,
    /// Bounds of what a write reads and answers. The default, but in simulations, where all replicas have the same.
    pub write_bounds: WriteBounds,
    /// How queries share the group's task with everything else.
    pub queries: QueryShare,
    /// How much of a turn the application of commands gets.
    pub apply: ApplyShare,
    /// For tests of the tests.
    pub broken: Broken,
    /// The same, of the state.
    pub broken_state: keyspace::Broken,
}

/// How much of a group's task queries get.
#[derive(Debug, Clone, Copy)]
pub struct QueryShare {
    /// Keys that a query visits in one step; between two steps the turn looks at the clock.
    pub step_keys: usize,
    /// Steps are done for this long before the group turns to other work, and one step at least.
    pub turn: Duration,
}

impl Default for QueryShare {
    /// A step of some hundred microseconds, when each key is elsewhere in memory.
    fn default() -> QueryShare {
        QueryShare { step_keys: 2048, turn: Duration::from_millis(2) }
    }
}

/// How much is applied in one turn of a group's task, before it looks at consensus again.
#[derive(Debug, Clone, Copy)]
pub struct ApplyShare {
    /// What the commands of a turn cost; the last one may go beyond, since that is not known before. Costs are counted in keys
    /// visited, about: what else is done is as many as take the same time.
    pub turn_cost: usize,
}

impl Default for ApplyShare {
    /// Two milliseconds at most: seven hundred small puts, or sixteen thousand keys that transactions read.
    fn default() -> ApplyShare {
        ApplyShare { turn_cost: 16_384 }
    }
}

/// The world at one moment.
///
/// `now` must have been read after the events that are stepped with it had come in: a read under the leader lease takes
/// effect at that moment, which has to lie between its question and its answer. And the liveness must be looked at after the
/// clock: support that lapsed by `now` must not have been prolonged since, or a vote would leave out a holder who counts on it.
/// [`look`] does both in that order.
#[derive(Clone, Copy)]
pub struct Env<'a> {
    /// The node's clock.
    pub now: Mono,
    /// Who lives, and whom this node may count on; as of `now` or later, and no older than the events.
    pub liveness: &'a Liveness,
    /// The node's own disk.
    pub disk: Disk,
    /// The gateways' links.
    pub links: &'a dyn Links,
}

impl fmt::Debug for Env<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Env").field("now", &self.now).field("disk", &self.disk).finish_non_exhaustive()
    }
}

/// Looks at the clock and at the liveness, in the order that [`Env`] wants.
pub fn look<L>(clock: impl FnOnce() -> Mono, liveness: impl FnOnce() -> L) -> (Mono, L) {
    let now = clock();
    (now, liveness())
}

/// How the journal does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Disk {
    /// There is no room: nothing can be made durable.
    pub full: bool,
    /// So much waits for the disk that nothing more should be handed in.
    pub crowded: bool,
}

/// A gateway's link, by a number that no other link of the process has had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// What is known of the gateways' links.
pub trait Links {
    /// Whether the gateway takes what it is sent, so that another query whose answer is small should be answered now. A replica
    /// that was told no hears [`crate::Event::LinkDrained`] when that has changed.
    fn has_room(&self, link: LinkId) -> bool;

    /// The same of a query whose answer may be large. Without room for small ones there is none for large ones.
    fn has_room_for_large(&self, link: LinkId) -> bool;
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use consensus_core::{LivenessMessage, LivenessOutput};

    use super::*;

    const HOLDER: NodeId = NodeId(1);
    const GRANTOR: NodeId = NodeId(2);

    /// A node that supports another.
    struct Node {
        now: Mono,
        liveness: Liveness,
        /// What asks for that.
        heartbeat: LivenessMessage,
        has_paused: bool,
    }

    impl Node {
        fn new() -> Node {
            let (mut now, timing) = (Mono(1_000_000_000_000), Timing::default());
            let mut liveness = Liveness::new(GRANTOR, [HOLDER], 1, timing, now);
            let mut holder = Liveness::new(HOLDER, [GRANTOR], 1, timing, now);
            let mut out = LivenessOutput::default();
            // They have to hear of each other first.
            for _ in 0..10 {
                now = now.max(holder.next_deadline());
                holder.disk_progress(now);
                holder.tick(now);
                holder.poll(&mut out);
                let heartbeat = out.sends.pop().expect("it is due").1;
                liveness.receive(now, HOLDER, Some(timing.support), heartbeat.clone());
                if liveness.supports(now, HOLDER).is_some() {
                    return Node { now, liveness, heartbeat, has_paused: false };
                }
                liveness.poll(&mut out);
                for (_, answer) in out.sends.drain(..).filter(|(to, _)| *to == HOLDER) {
                    holder.receive(now, GRANTOR, Some(timing.support), answer);
                }
            }
            panic!("it is not supported");
        }

        fn supports(&self) -> bool {
            self.liveness.supports(self.now, HOLDER).is_some()
        }

        /// The thread that looks loses its core after its first look: support is prolonged just before it would lapse, and
        /// then the time comes at which it would have.
        fn pause(&mut self) {
            if std::mem::replace(&mut self.has_paused, true) {
                return;
            }
            while self.liveness.supports(self.now.after(Duration::from_millis(1)), HOLDER).is_some() {
                self.now = self.now.after(Duration::from_millis(1));
            }
            let support = Some(Timing::default().support);
            self.liveness.receive(self.now, HOLDER, support, self.heartbeat.clone());
            self.now = self.now.after(Duration::from_millis(2));
        }
    }

    #[test]
    fn whoever_is_supported_all_along_is_seen_to_be() {
        let node = RefCell::new(Node::new());
        let seen = |seen: &RefCell<Node>| {
            let mut node = seen.borrow_mut();
            let before = (node.now, node.liveness.clone());
            node.pause();
            before
        };
        let (now, liveness) = look(|| seen(&node).0, || seen(&node).1);
        assert!(node.borrow().supports(), "support never lapsed");
        assert!(liveness.supports(now, HOLDER).is_some(), "and a vote that is cast now names its holder");
    }
}
