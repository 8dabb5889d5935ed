//! The files of a group's snapshots: written by a thread of their own, sent by a task.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use bytes::Bytes;
use consensus_core::{Config, Slot};
use group_core::{Event, Progress, ToSnapshots, encode_meta};
use journal::{SnapshotId, SnapshotWriter};
use tracing::warn;

use crate::abort_on_panic;
use crate::groups::GroupHandle;
use crate::shared::Shared;
use crate::snapshot;

/// A snapshot that is being written. Dropped, it is abandoned.
pub(super) struct Writing(Sender<Piece>);

/// What goes to the writing thread. The replica bounds how many wait. Without the end the file is abandoned.
enum Piece {
    Slice(Bytes),
    End,
}

/// Does what the replica wants done with snapshots.
pub(super) fn carry_out(
    shared: &Arc<Shared>,
    handle: &Arc<GroupHandle>,
    writing: &mut Option<Writing>,
    step: ToSnapshots,
) {
    let id = |slot: Slot| SnapshotId { group: handle.id.0, slot: slot.0 };
    match step {
        ToSnapshots::Begin { slot, config } => *writing = Some(begin(shared, handle, id(slot), &config)),
        // The thread may have failed, and has said so.
        ToSnapshots::Slice(slice) => {
            if let Some(Writing(pieces)) = writing {
                let _ = pieces.send(Piece::Slice(slice));
            }
        }
        ToSnapshots::Finish => {
            if let Some(Writing(pieces)) = writing.take() {
                let _ = pieces.send(Piece::End);
            }
        }
        ToSnapshots::Abandon => *writing = None,
        ToSnapshots::Send { to, slot } => {
            let send = snapshot::send(Arc::clone(shared), Arc::clone(handle), to, id(slot));
            // The group waits for its end.
            tokio::spawn(abort_on_panic::task("the sending of a snapshot", send));
        }
    }
}

fn begin(shared: &Arc<Shared>, handle: &Arc<GroupHandle>, id: SnapshotId, config: &Config) -> Writing {
    let (sender, receiver) = channel();
    let (shared, handle, meta) = (Arc::clone(shared), Arc::clone(handle), encode_meta(config));
    tokio::task::spawn_blocking(move || {
        let _abort = abort_on_panic::Thread("the writing of a snapshot");
        let slot = Slot(id.slot);
        let progress = match write(&shared, &handle, id, &meta, &receiver) {
            Ok(true) => Progress::Finished(slot),
            Ok(false) => return,
            Err(error) => {
                warn!(group = id.group, slot = id.slot, %error, "snapshot failed");
                Progress::Failed(slot)
            }
        };
        handle.tell(Event::Snapshot(progress));
    });
    Writing(sender)
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
                handle.tell(Event::Snapshot(Progress::Room(Slot(id.slot))));
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
