//! The file of a snapshot, read back at the start.

use std::sync::Arc;

use consensus_core::Config;
use group_core::decode_meta;
use journal::{Identity, RealDisk, SnapshotId};

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
