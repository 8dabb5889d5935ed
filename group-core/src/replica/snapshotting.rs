//! When a replica takes a snapshot, and how far it is: slices are cut from the state between turns, and written elsewhere,
//! so that neither the group nor its clients wait for the disk.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use consensus_core::{Config, DecodeError, Input, NodeId, Slot};
use journal::Lsn;

use crate::env::Env;
use crate::event::Progress;
use crate::out::{Notice, ToSnapshots};
use crate::replica::Replica;

/// Slices that may wait for the disk.
const SLICES_WAITING: usize = 3;

#[derive(Debug)]
pub(crate) struct Snapshotting {
    /// The newest snapshot on disk.
    newest: Option<Slot>,
    /// Bytes logged since the last snapshot was begun.
    logged: usize,
    /// Asked for by the journal, or for a peer.
    wanted: bool,
    taking: Option<Taking>,
    /// Peers that need a snapshot we do not have yet.
    waiting: BTreeSet<NodeId>,
    /// Peers that are being sent one.
    sending: BTreeSet<NodeId>,
}

#[derive(Debug)]
struct Taking {
    slot: Slot,
    snapshot: keyspace::Snapshot,
    /// Slices handed over and not yet written.
    waiting: usize,
    /// Everything is handed over.
    ended: bool,
}

impl Snapshotting {
    pub(crate) fn new(newest: Option<Slot>) -> Self {
        Snapshotting {
            newest,
            logged: 0,
            wanted: false,
            taking: None,
            waiting: BTreeSet::new(),
            sending: BTreeSet::new(),
        }
    }

    pub(crate) fn logged(&mut self, bytes: usize) {
        self.logged += bytes;
    }

    pub(crate) fn want(&mut self) {
        self.wanted = true;
    }

    /// The state is a peer's snapshot of `slot`, which is on disk. Returns whether one of its own was under way.
    pub(crate) fn replaced(&mut self, slot: Slot) -> bool {
        assert!(self.newest < Some(slot), "a snapshot that is taken over is newer than what was here");
        self.newest = Some(slot);
        self.logged = 0;
        self.taking.take().is_some()
    }

    /// The file of the snapshot at `slot` is damaged or gone: another is taken in its place.
    pub(crate) fn lost(&mut self, slot: Slot) {
        if self.newest == Some(slot) {
            self.newest = None;
            self.wanted = true;
        }
    }

    pub(crate) fn sent(&mut self, to: NodeId) {
        self.sending.remove(&to);
    }

    pub(crate) fn newest(&self) -> Option<Slot> {
        self.newest
    }

    /// Whether a snapshot is under way.
    pub(crate) fn is_taking(&self) -> bool {
        self.taking.is_some()
    }

    /// Whether a slice could be cut now.
    pub(crate) fn wants_slice(&self) -> bool {
        self.taking.as_ref().is_some_and(|taking| !taking.ended && taking.waiting < SLICES_WAITING)
    }

    /// A snapshot is due when the log written since the last one outweighs the state, so that writing is amplified at
    /// most about twice; for small states, when it outweighs `least_bytes`.
    fn is_due(&self, state_bytes: u64, least_bytes: u64) -> bool {
        self.taking.is_none() && (self.wanted || self.logged as u64 > state_bytes.max(least_bytes))
    }

    /// The one under way, if it is of this slot.
    fn taking_at(&mut self, slot: Slot) -> Option<&mut Taking> {
        self.taking.as_mut().filter(|taking| taking.slot == slot)
    }
}

impl Replica {
    /// Begins a snapshot when one is due, and cuts the next slice of one that is under way.
    pub(crate) fn continue_snapshot(&mut self) {
        if self.is_snapshot_due() && !self.backlog.is_inside_entry() {
            self.begin_snapshot();
        }
        if !self.snapshotting.wants_slice() {
            return;
        }
        let Some(taking) = &mut self.snapshotting.taking else { return };
        assert!(taking.slot <= self.applied, "a state is not ahead of what is applied");
        match taking.snapshot.next_slice(&self.state, self.settings.snapshot_slice_bytes) {
            Some(slice) => {
                taking.waiting += 1;
                assert!(taking.waiting <= SLICES_WAITING, "slices are cut as they are written");
                self.out.snapshots.push(ToSnapshots::Slice(slice));
            }
            None => {
                taking.ended = true;
                self.out.snapshots.push(ToSnapshots::Finish);
            }
        }
    }

    pub(crate) fn is_snapshot_due(&self) -> bool {
        self.snapshotting.is_due(self.state.size_bytes(), self.settings.snapshot_least_bytes)
            && Some(self.applied) > self.snapshotting.newest
            && self.applied > Slot(0)
    }

    fn begin_snapshot(&mut self) {
        let slot = self.applied;
        assert!(!self.snapshotting.is_taking(), "one is taken at a time");
        assert!(self.snapshotting.newest < Some(slot), "a snapshot is taken to have a newer one");
        assert_eq!(self.state.applied(), slot.0, "what it holds is the state at its slot");
        self.out.notices.push(Notice::SnapshotBegun { slot });
        self.out.snapshots.push(ToSnapshots::Begin { slot, config: Arc::clone(self.engine.config()) });
        self.snapshotting.logged = 0;
        self.snapshotting.wanted = false;
        let snapshot = self.state.snapshot();
        self.snapshotting.taking = Some(Taking { slot, snapshot, waiting: 0, ended: false });
    }

    pub(crate) fn on_snapshot_progress(&mut self, env: &Env<'_>, progress: Progress) {
        match progress {
            Progress::Room(slot) => {
                if let Some(taking) = self.snapshotting.taking_at(slot) {
                    assert!(taking.waiting > 0, "a slice is written that was not handed over");
                    taking.waiting -= 1;
                }
            }
            // The next attempt comes when more is logged.
            Progress::Failed(slot) => {
                if self.snapshotting.taking_at(slot).is_some() {
                    self.snapshotting.taking = None;
                }
            }
            Progress::Finished(slot) => {
                // A peer's may have come meanwhile, and is newer.
                let Some(taking) = self.snapshotting.taking_at(slot) else { return };
                assert!(taking.ended && taking.waiting == 0, "a file ends with its last slice");
                self.counters.snapshots_taken += 1;
                self.out.notices.push(Notice::SnapshotDurable { slot });
                self.snapshotting.taking = None;
                assert!(self.snapshotting.newest < Some(slot), "a snapshot is taken to have a newer one");
                self.snapshotting.newest = Some(slot);
                self.step_engine(env, Input::SnapshotDurable { slot });
                for to in std::mem::take(&mut self.snapshotting.waiting) {
                    self.send_snapshot(to, slot);
                }
            }
        }
    }

    /// The journal keeps old segments because of this group. It says so again until they are gone.
    pub(crate) fn on_snapshot_wanted(&mut self, env: &Env<'_>, floor: Lsn) {
        let newest = self.snapshotting.newest.unwrap_or_default();
        if newest < self.applied {
            self.snapshotting.want();
        } else if self.positions.is_base_at(floor) {
            // Nothing was applied since, so the snapshot is as good as a new one. Only its record lies too far back.
            self.step_engine(env, Input::SnapshotDurable { slot: newest });
        }
    }

    /// Sends a peer the newest snapshot, or takes one first when none reaches `at_least`.
    pub(crate) fn send_snapshot(&mut self, to: NodeId, at_least: Slot) {
        assert!(self.snapshotting.newest <= Some(self.applied), "no snapshot of what was not applied");
        match self.snapshotting.newest {
            Some(slot) if slot >= at_least => {
                if self.snapshotting.sending.insert(to) {
                    self.out.snapshots.push(ToSnapshots::Send { to, slot });
                }
            }
            Some(_) | None => {
                self.snapshotting.waiting.insert(to);
                self.snapshotting.want();
            }
        }
    }
}

/// What a snapshot file says beside the state: the configuration that governs the slots above it.
#[must_use]
pub fn encode_meta(config: &Config) -> Bytes {
    let mut meta = BytesMut::new();
    config.encode(&mut meta);
    meta.freeze()
}

/// Reads back what [`encode_meta`] wrote.
///
/// # Errors
/// It is something else.
pub fn decode_meta(meta: &Bytes) -> Result<Config, DecodeError> {
    Config::decode(&mut meta.clone())
}
