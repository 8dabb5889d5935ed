//! The log itself: staging, batches, segments, floors.

use std::fmt;

use bytes::Bytes;

use crate::{Disk, Error, Recovered, Report};

/// Position of a record: dense, from 1, growing for ever, across segments and restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Whose journal this is. Written into every segment and mixed into every checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: u64,
    /// The node.
    pub node: u64,
    /// A random number drawn once when the node's superblock is made, and told to nobody: it keeps bytes chosen by
    /// a client from ever passing as a batch when recovery searches damaged ground.
    pub salt: u64,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} of cluster {:016x}", self.node, self.cluster)
    }
}

/// How a journal is laid out and kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whose journal this is.
    pub identity: Identity,
    /// Size of a segment file in bytes. Default: 64 MiB. Minimum: 16 KiB. A record that fits no segment gets a longer one.
    pub segment_bytes: u64,
    /// A batch takes no further record once it has this many payload bytes. Default: 1 MiB.
    pub batch_bytes_max: u64,
    /// Recycled segments kept for use; further ones are removed. Default: 4.
    pub spare_segments_max: usize,
    /// The journal was made before (the superblock says so): finding none is an error, not a fresh start.
    pub must_exist: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            identity: Identity::default(),
            segment_bytes: 64 << 20,
            batch_bytes_max: 1 << 20,
            spare_segments_max: 4,
            must_exist: false,
        }
    }
}

/// Sizes and positions, for metrics and decisions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Segments that hold live records, the active one included.
    pub segments: u64,
    /// Bytes of all segment files, spares and the prepared one included.
    pub disk_bytes: u64,
    /// Recycled segments waiting for use.
    pub spares: u64,
    /// The lowest Lsn still in the log.
    pub oldest: Lsn,
    /// The next Lsn to be given out.
    pub head: Lsn,
    /// Every record up to this one is durable.
    pub durable: Lsn,
    /// Payload bytes staged and not yet flushed.
    pub staged_bytes: u64,
    /// Batches written since open.
    pub batches: u64,
    /// Space for the next segment could not be had: refuse what can be refused.
    pub full: bool,
}

/// A node's log. One owner; see [`crate::Writer`] for the thread around it.
#[derive(Debug)]
pub struct Journal<D: Disk> {
    disk: D,
    options: Options,
}

impl<D: Disk> Journal<D> {
    /// Reads all segments, judges damage, and hands every surviving record in Lsn order to `visit`; then the journal
    /// is ready to append.
    ///
    /// # Errors
    /// Only what makes a start unsafe: [`Error::Corrupt`], [`Error::Version`], [`Error::Foreign`], [`Error::Io`],
    /// [`Error::Full`]. Everything else is in the report.
    pub fn open(
        disk: D,
        options: Options,
        visit: &mut dyn FnMut(Recovered),
    ) -> Result<(Journal<D>, Report), Error> {
        let _ = visit;
        Ok((Journal { disk, options }, Report::default()))
    }

    /// Stages one record; `payload` is given in pieces and copied at most once. Nothing reaches the disk before
    /// [`Journal::flush`].
    ///
    /// # Errors
    /// [`Error::TooLarge`] (nothing staged), [`Error::Fenced`].
    pub fn append(&mut self, group: u64, label: &[u8], payload: &[Bytes]) -> Result<Lsn, Error> {
        let _ = (group, label, payload);
        Err(Error::Fenced)
    }

    /// Writes one batch of what is staged (everything, up to [`Options::batch_bytes_max`]) and returns the highest
    /// Lsn written. A batch written before and not yet synced is synced first: no batch is ever written after an
    /// unsynced one, which is what lets recovery tell a torn tail from damage. Call again while
    /// [`Journal::has_staged`].
    ///
    /// # Errors
    /// [`Error::Full`]: nothing was written, everything stays staged. Any other: the journal is fenced.
    pub fn flush(&mut self) -> Result<Lsn, Error> {
        Err(Error::Fenced)
    }

    /// Makes the written batch durable; returns the Lsn up to which everything is.
    ///
    /// # Errors
    /// A failed sync fences the journal for good.
    pub fn sync(&mut self) -> Result<Lsn, Error> {
        Err(Error::Fenced)
    }

    /// Whether records are staged that no flush has written.
    #[must_use]
    pub fn has_staged(&self) -> bool {
        false
    }

    /// One bounded piece of background work: a recycled segment, or a step in the preparation of the next one.
    /// Returns whether more is left. Never needed for correctness; it keeps the work out of `flush`.
    ///
    /// # Errors
    /// [`Error::Full`] when the next segment has no room (appends go on while the active one has).
    pub fn maintain(&mut self) -> Result<bool, Error> {
        Ok(false)
    }

    /// The lowest Lsn that `group` still needs. Floors only rise. Segments below every floor are recycled.
    pub fn set_floor(&mut self, group: u64, lsn: Lsn) {
        let _ = (group, lsn);
    }

    /// The group needs nothing any more.
    pub fn remove_group(&mut self, group: u64) {
        let _ = group;
    }

    /// The groups that hold the oldest segments back, lowest floor first: those whose floor lies in the oldest fifth
    /// of the log. Empty while the log has fewer than five segments.
    #[must_use]
    pub fn pinned(&self) -> Vec<(u64, Lsn)> {
        Vec::new()
    }

    /// Sizes and positions.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats::default()
    }

    /// The options it was opened with.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The disk it lies on.
    #[must_use]
    pub fn disk(&self) -> &D {
        &self.disk
    }
}
