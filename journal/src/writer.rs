//! The thread that owns a journal: one write and one sync for everything handed in meanwhile.

use bytes::Bytes;
use std::time::Duration;

use crate::{Disk, Error, Journal, Lsn, Stats};

/// The caller's own number for a hand-in; returned when it is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// One record to append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// At most [`crate::LABEL_BYTES_MAX`] bytes.
    pub label: Bytes,
    /// The payload in pieces, at most [`crate::PAYLOAD_BYTES_MAX`] bytes together.
    pub payload: Vec<Bytes>,
}

/// Records of one group, appended in order and completed together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The group.
    pub group: u64,
    /// Returned in [`Event::Completed`].
    pub ticket: Ticket,
    /// The records, in order; may be empty (completes after everything handed in before).
    pub records: Vec<Record>,
}

/// What the writer's thread tells, through the callback given to [`Writer::spawn`].
#[derive(Debug)]
pub enum Event {
    /// The batch is durable. Per group in the order of hand-in.
    Completed {
        /// The batch's group.
        group: u64,
        /// The batch's ticket.
        ticket: Ticket,
        /// The Lsn of the batch's last record (of the last one before it when it had none).
        lsn: Lsn,
    },
    /// One write and one sync are done.
    Synced {
        /// Records made durable.
        records: u64,
        /// Payload bytes made durable.
        bytes: u64,
        /// Time for the write.
        write: Duration,
        /// Time for the sync.
        sync: Duration,
    },
    /// The disk became full (true), or has room again (false). While full, hand-ins wait and nothing is lost.
    Full(bool),
    /// A write or sync failed: nothing more will complete. The node must restart.
    Fenced(Error),
}

/// Counters of a writer, since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriterStats {
    /// The journal's own.
    pub journal: Stats,
    /// Groups asked to snapshot, as [`Journal::pinned`].
    pub pinned: Vec<(u64, Lsn)>,
    /// Syncs.
    pub syncs: u64,
    /// Records appended.
    pub records: u64,
    /// Payload bytes appended.
    pub bytes: u64,
    /// A write or sync failed.
    pub fenced: bool,
}

/// Handle of the writer's thread. Dropping it finishes what was handed in and joins.
#[derive(Debug)]
pub struct Writer<D: Disk> {
    journal: Option<Journal<D>>,
}

impl<D> Writer<D>
where
    D: Disk + Send + 'static,
    D::File: Send,
{
    /// Starts the thread. `on_event` runs on it and must not block.
    ///
    /// # Errors
    /// [`Error::Io`] when the system gives no thread.
    pub fn spawn(
        journal: Journal<D>,
        on_event: impl FnMut(Event) + Send + 'static,
    ) -> Result<Writer<D>, Error> {
        let _ = on_event;
        Ok(Writer { journal: Some(journal) })
    }

    /// Hands in a batch; returns at once.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Fenced`]: nothing was taken.
    pub fn append(&self, batch: Batch) -> Result<(), Error> {
        let _ = batch;
        Err(Error::Closed)
    }

    /// See [`Journal::set_floor`].
    pub fn set_floor(&self, group: u64, lsn: Lsn) {
        let _ = (group, lsn);
    }

    /// See [`Journal::remove_group`].
    pub fn remove_group(&self, group: u64) {
        let _ = group;
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> WriterStats {
        WriterStats::default()
    }

    /// Whether the disk is full: refuse what can be refused.
    #[must_use]
    pub fn is_full(&self) -> bool {
        false
    }

    /// Finishes what was handed in, ends the thread, and returns the journal.
    ///
    /// # Errors
    /// [`Error::Fenced`], [`Error::Full`] when what was handed in could not be written.
    pub fn close(mut self) -> Result<Journal<D>, Error> {
        self.journal.take().ok_or(Error::Closed)
    }
}
