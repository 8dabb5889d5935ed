//! When a group takes a snapshot, and how far it is: slices are cut from the state between turns, and written by a
//! thread of their own, so that neither the group nor its clients wait for the disk.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use bytes::{Bytes, BytesMut};
use consensus_core::{Config, Input, NodeId, Slot};
use journal::{Identity, Lsn, RealDisk, SnapshotId, SnapshotWriter};
use tracing::{debug, info, warn};

use super::{Group, GroupEvent, GroupHandle};
use crate::abort_on_panic;
use crate::node::Shared;

/// Slices that may wait for the disk.
const SLICES_WAITING: usize = 2;

/// What the writing thread tells.
#[derive(Debug)]
pub(crate) enum Progress {
    /// A slice was written: there is room for another.
    Room,
    /// The file is durable under its name.
    Finished(Slot),
    /// It could not be written; the next attempt comes when more is logged.
    Failed,
}

#[derive(Debug)]
pub(super) struct Snapshotting {
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
    snapshot: keyspace::Snapshot,
    /// A piece that the thread had no room for.
    piece: Option<Piece>,
    /// `None` once everything is handed over.
    pieces: Option<SyncSender<Piece>>,
    room: bool,
}

/// What goes to the writing thread. Without the end the file is abandoned.
#[derive(Debug)]
enum Piece {
    Slice(Bytes),
    End,
}

impl Snapshotting {
    pub(super) fn new(newest: Option<Slot>) -> Self {
        Snapshotting {
            newest,
            logged: 0,
            wanted: false,
            taking: None,
            waiting: BTreeSet::new(),
            sending: BTreeSet::new(),
        }
    }

    pub(super) fn logged(&mut self, bytes: usize) {
        self.logged += bytes;
    }

    pub(super) fn want(&mut self) {
        self.wanted = true;
    }

    /// The state is a peer's snapshot of `slot`, which is on disk.
    pub(super) fn replaced(&mut self, slot: Slot) {
        self.newest = Some(slot);
        self.taking = None;
        self.logged = 0;
    }

    /// The file of the snapshot at `slot` is damaged or gone: another is taken in its place.
    pub(super) fn lost(&mut self, slot: Slot) {
        if self.newest == Some(slot) {
            self.newest = None;
            self.wanted = true;
        }
    }

    pub(super) fn sent(&mut self, to: NodeId) {
        self.sending.remove(&to);
    }

    #[cfg(test)]
    pub(super) fn newest(&self) -> Option<Slot> {
        self.newest
    }

    /// Whether a snapshot is under way.
    pub(super) fn is_taking(&self) -> bool {
        self.taking.is_some()
    }

    /// Whether a slice could be cut now.
    pub(super) fn wants_slice(&self) -> bool {
        self.taking.as_ref().is_some_and(|taking| taking.room && taking.pieces.is_some())
    }

    /// A snapshot is due when the log written since the last one outweighs the state, so that writing is amplified at
    /// most about twice; for small states, when it outweighs `least_bytes`.
    fn is_due(&self, state_bytes: u64, least_bytes: u64) -> bool {
        self.taking.is_none() && (self.wanted || self.logged as u64 > state_bytes.max(least_bytes))
    }
}

impl Group {
    /// Begins a snapshot when one is due, and cuts the next slice of one that is under way.
    pub(super) fn continue_snapshot(&mut self) {
        let size = self.state.size_bytes();
        if self.snapshotting.is_due(size, self.shared.snapshot_least_bytes)
            && Some(self.applied) > self.snapshotting.newest
            && self.applied > Slot(0)
        {
            self.begin_snapshot();
        }
        let Some(taking) = &mut self.snapshotting.taking else { return };
        let Some(pieces) = &taking.pieces else { return };
        if !taking.room {
            return;
        }
        let piece = taking.piece.take().unwrap_or_else(|| {
            taking
                .snapshot
                .next_slice(&self.state, self.shared.snapshot_slice_bytes)
                .map_or(Piece::End, Piece::Slice)
        });
        let is_end = matches!(piece, Piece::End);
        match pieces.try_send(piece) {
            Ok(()) if is_end => taking.pieces = None,
            Ok(()) => {}
            Err(TrySendError::Full(piece)) => {
                taking.piece = Some(piece);
                taking.room = false;
            }
            // The thread has failed and said so.
            Err(TrySendError::Disconnected(_)) => taking.pieces = None,
        }
    }

    fn begin_snapshot(&mut self) {
        let slot = self.applied;
        let id = SnapshotId { group: self.handle.id.0, slot: slot.0 };
        debug!(group = id.group, slot = id.slot, "snapshot begun");
        let (sender, receiver) = sync_channel::<Piece>(SLICES_WAITING);
        let shared = Arc::clone(&self.shared);
        let handle = Arc::clone(&self.handle);
        let meta = encode_meta(self.engine.config());
        tokio::task::spawn_blocking(move || {
            let _abort = abort_on_panic::Thread("the writing of a snapshot");
            let progress = match write(&shared, &handle, id, &meta, &receiver) {
                Ok(true) => Progress::Finished(slot),
                Ok(false) => return,
                Err(error) => {
                    warn!(group = id.group, slot = id.slot, %error, "snapshot failed");
                    Progress::Failed
                }
            };
            handle.inbox.push_always(GroupEvent::SnapshotProgress(progress));
        });
        self.snapshotting.logged = 0;
        self.snapshotting.wanted = false;
        self.snapshotting.taking =
            Some(Taking { snapshot: self.state.snapshot(), piece: None, pieces: Some(sender), room: true });
    }

    pub(super) fn on_snapshot_progress(&mut self, progress: Progress) {
        match progress {
            Progress::Room => {
                if let Some(taking) = &mut self.snapshotting.taking {
                    taking.room = true;
                }
            }
            Progress::Failed => {
                self.snapshotting.taking = None;
            }
            Progress::Finished(slot) => {
                info!(group = self.handle.id.0, slot = slot.0, "snapshot durable");
                self.metrics.counters.snapshots_taken.inc();
                self.snapshotting.taking = None;
                self.snapshotting.newest = Some(slot);
                self.step(Input::SnapshotDurable { slot });
                for to in std::mem::take(&mut self.snapshotting.waiting) {
                    self.send_snapshot(to, slot);
                }
            }
        }
    }

    /// The journal keeps old segments because of this group. It says so again until they are gone.
    pub(super) fn on_snapshot_wanted(&mut self, floor: Lsn) {
        let newest = self.snapshotting.newest.unwrap_or_default();
        if newest < self.applied {
            self.snapshotting.want();
        } else if self.positions.is_base_at(floor) {
            // Nothing was applied since, so the snapshot is as good as a new one. Only its record lies too far back.
            self.step(Input::SnapshotDurable { slot: newest });
        }
    }

    /// Sends a peer the newest snapshot, or takes one first when none reaches `at_least`.
    pub(super) fn send_snapshot(&mut self, to: NodeId, at_least: Slot) {
        match self.snapshotting.newest {
            Some(slot) if slot >= at_least => {
                if self.snapshotting.sending.insert(to) {
                    let id = SnapshotId { group: self.handle.id.0, slot: slot.0 };
                    let send =
                        crate::snapshot::send(Arc::clone(&self.shared), Arc::clone(&self.handle), to, id);
                    // The group waits for its end.
                    tokio::spawn(abort_on_panic::task("the sending of a snapshot", send));
                }
            }
            Some(_) | None => {
                self.snapshotting.waiting.insert(to);
                self.snapshotting.want();
            }
        }
    }
}

/// The writing thread: true when the file is durable, false when the group gave it up.
fn write(
    shared: &Shared,
    handle: &GroupHandle,
    id: SnapshotId,
    meta: &[u8],
    pieces: &Receiver<Piece>,
) -> Result<bool, journal::Error> {
    let mut writer = SnapshotWriter::create(shared.disk.clone(), shared.identity, id, meta)?;
    while let Ok(piece) = pieces.recv() {
        match piece {
            Piece::Slice(slice) => {
                writer.slice(&slice)?;
                handle.inbox.push_always(GroupEvent::SnapshotProgress(Progress::Room));
            }
            Piece::End => {
                writer.finish()?;
                journal::Snapshot::remove_older(&shared.disk, id)?;
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// What a snapshot file says beside the state: the configuration that governs the slots above it.
pub(crate) fn encode_meta(config: &Config) -> Bytes {
    let mut meta = BytesMut::new();
    config.encode(&mut meta);
    meta.freeze()
}

/// Reads back what [`encode_meta`] wrote.
pub(crate) fn decode_meta(meta: &Bytes) -> Result<Config, consensus_core::DecodeError> {
    Config::decode(&mut meta.clone())
}

/// A snapshot in the data directory, read back.
pub(crate) fn load(
    disk: &RealDisk,
    identity: Identity,
    id: SnapshotId,
) -> Result<(Arc<Config>, keyspace::Keyspace), Box<dyn std::error::Error + Send + Sync>> {
    let reader = journal::SnapshotReader::open(disk, identity, id)?;
    let config = decode_meta(reader.meta())?;
    let mut restore = keyspace::Restore::new();
    for index in 0..reader.slices() {
        if let Some(slice) = reader.slice(index)? {
            restore.push(slice)?;
        }
    }
    let state = restore.finish()?;
    if state.applied() != id.slot {
        return Err("its state is of another slot".into());
    }
    Ok((Arc::new(config), state))
}
