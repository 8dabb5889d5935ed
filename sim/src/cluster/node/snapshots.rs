//! The files of snapshots: those the node takes, those it sends, and those it is sent.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use consensus_core::{Config, NodeId, Slot};
use group_core::{Event as GroupEvent, Progress, decode_meta, encode_meta};
use journal::{Identity, SimDisk, Snapshot, SnapshotId, SnapshotReader, SnapshotWriter};
use keyspace::{ClusterVersion, Keyspace, Restore, RestoreError};

use super::{Node, Process};
use crate::cluster::clock::{MILLI, SECOND};
use crate::cluster::coverage::Mark;
use crate::cluster::env::{Env, trace};
use crate::cluster::events::{Event, HandOver, NodeEvent};
use crate::cluster::truth::index;

/// By group: the newest snapshot, the slot it was taken at, and the configuration above it.
pub(super) type Snapshots = BTreeMap<u64, (Slot, Arc<Config>, Keyspace)>;

impl Node {
    /// The newest whole snapshot of each group.
    pub(super) fn load_snapshots(
        &self,
        env: &mut Env,
        known: ClusterVersion,
        identity: Identity,
    ) -> Result<Snapshots, journal::Error> {
        let mut newest = BTreeMap::new();
        for snapshot in Snapshot::list(&self.disk)? {
            let reader = SnapshotReader::open(&self.disk, identity, snapshot)?;
            let mut slices = Vec::new();
            for index in 0..reader.slices() {
                slices.extend(reader.slice(index)?);
            }
            let (Ok(config), Ok(state)) = (decode_meta(reader.meta()), restore(known, slices)) else {
                env.fail("recovery", format!("node {}: {snapshot:?} cannot be decoded", self.index + 1));
                continue;
            };
            let slot = Slot(snapshot.slot);
            let check = env.truths[snapshot.group as usize].check_digest(self.index, slot, state.digest());
            env.note(check);
            newest.insert(snapshot.group, (slot, Arc::new(config), state));
        }
        Ok(newest)
    }
}

impl Process {
    /// Begins the file of a snapshot.
    pub(crate) fn begin_snapshot(
        &mut self,
        node: &Node,
        group: usize,
        slot: Slot,
        config: &Config,
    ) -> Result<SnapshotWriter<SimDisk>, journal::Error> {
        let snapshot = SnapshotId { group: group as u64, slot: slot.0 };
        SnapshotWriter::create(node.disk.clone(), self.identity, snapshot, &encode_meta(config))
    }

    pub(super) fn finish_snapshot(&mut self, node: &mut Node, env: &mut Env, group: usize, slot: Slot) {
        let Some(task) = &mut self.tasks[group] else { return };
        let Some((_, writer)) = task.taking.take_if(|(taken, _)| *taken == slot) else { return };
        let snapshot = SnapshotId { group: group as u64, slot: slot.0 };
        match writer.finish().and_then(|()| Snapshot::remove_older(&node.disk, snapshot)) {
            Ok(()) => {
                env.mark(Mark::SnapshotTaken);
                env.truths[group].snapshot_durable(node.index, slot);
                self.event(node, env, group, GroupEvent::Snapshot(Progress::Finished(slot)));
            }
            Err(error) => {
                trace!(env, "n{} g{group} snapshot at {slot:?}: {error}", node.index + 1);
                self.event(node, env, group, GroupEvent::Snapshot(Progress::Failed(slot)));
            }
        }
    }

    /// Sends the file of a snapshot to a peer; returns the number of the hand-over, or nothing if the disk has lost it.
    pub(crate) fn send_snapshot(
        &mut self,
        node: &Node,
        env: &mut Env,
        group: usize,
        to: NodeId,
        slot: Slot,
    ) -> Option<u64> {
        self.hand_overs += 1;
        let (number, start, from, to) = (self.hand_overs, self.start, node.index, index(to));
        let took = env.rng.around(30 * MILLI);
        let open = env.net.is_open(from, to) && env.net.is_open(to, from);
        let broken = !env.healed && (!open || env.rng.chance(env.profile.quality.loss_ppm));
        let (meta, slices) = self.read_snapshot(node, env, group, slot)?;
        if broken {
            env.mark(Mark::SnapshotBroken);
            let event = NodeEvent::SnapshotSent { group, to, number };
            env.node_at(env.now + took, from, start, event);
        } else {
            let hand_over = HandOver { from, start, number, group, slot, meta, slices };
            let event = Box::new(NodeEvent::SnapshotArrived(Box::new(hand_over)));
            env.after(took, Event::Node { node: to, start: None, event });
            // If nothing is heard, the connection breaks.
            let event = NodeEvent::SnapshotSent { group, to, number };
            env.node_at(env.now + 2 * SECOND, from, start, event);
        }
        Some(number)
    }

    fn read_snapshot(
        &self,
        node: &Node,
        env: &mut Env,
        group: usize,
        slot: Slot,
    ) -> Option<(Bytes, Vec<Bytes>)> {
        let snapshot = SnapshotId { group: group as u64, slot: slot.0 };
        let read = || {
            let reader = SnapshotReader::open(&node.disk, self.identity, snapshot)?;
            let mut slices = Vec::new();
            for index in 0..reader.slices() {
                slices.extend(reader.slice(index)?);
            }
            Ok::<_, journal::Error>((reader.meta().clone(), slices))
        };
        match read() {
            Ok(found) => Some(found),
            Err(error) => {
                trace!(env, "n{} g{group} snapshot {slot:?} cannot be read: {error}", node.index + 1);
                None
            }
        }
    }

    pub(super) fn receive_snapshot(&mut self, node: &mut Node, env: &mut Env, hand_over: HandOver) {
        let HandOver { from, start, number, group, slot, meta, slices } = hand_over;
        let snapshot = SnapshotId { group: group as u64, slot: slot.0 };
        let write = || {
            let mut writer = SnapshotWriter::create(node.disk.clone(), self.identity, snapshot, &meta)?;
            for slice in &slices {
                writer.slice(slice)?;
            }
            writer.finish()?;
            Snapshot::remove_older(&node.disk, snapshot)
        };
        let written: Result<(), journal::Error> = write();
        let config = decode_meta(&meta);
        match (written, config, restore(self.known, slices)) {
            (Ok(()), Ok(config), Ok(state)) => {
                env.truths[group].snapshot_durable(node.index, slot);
                let (config, state) = (Arc::new(config), Box::new(state));
                self.event(node, env, group, GroupEvent::SnapshotReceived { slot, config, state });
            }
            (Err(error), ..) => {
                trace!(env, "n{} g{group} snapshot {slot:?} cannot be kept: {error}", node.index + 1);
            }
            (Ok(()), ..) => {
                env.fail("codec", format!("node {}: a snapshot cannot be decoded", node.index + 1));
            }
        }
        if env.net.is_open(node.index, from) {
            let event = NodeEvent::SnapshotSent { group, to: node.index, number };
            env.node_at(env.now + MILLI, from, start, event);
        }
    }
}

/// The state that these slices hold, as read by one who knows no newer version than that.
fn restore(known: ClusterVersion, slices: Vec<Bytes>) -> Result<Keyspace, RestoreError> {
    let mut restore = Restore::upto(known);
    for slice in slices {
        restore.push(slice)?;
    }
    restore.finish()
}
