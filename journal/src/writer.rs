//! The thread that owns a journal: one write and one sync for everything handed in meanwhile.
//!
//! There is no timer and no spinning: a hand-in wakes the thread, which takes all there is. While it writes and syncs,
//! further hand-ins pile up; they are the next batch. Low load therefore pays one sync, high load shares it.
//!
//! A full disk is not a failure of what was handed in: it stays staged in order, the thread tries again whenever
//! something is handed in, and [`RETRY_FULL`] apart. [`Writer::is_full`] turns true earlier, when the *next* segment finds
//! no room: there is still the rest of the active segment for what cannot be refused. Neither is a file that cannot be opened
//! because descriptors have run out: it is tried again in the same way, and nothing is refused.

use std::{
    fmt, mem,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    disk::Disk,
    error::Error,
    journal::{Journal, Stats, check_sizes},
    lsn::Lsn,
};

/// Payload bytes handed in and not yet durable beyond which [`Writer::is_crowded`]: 64 MiB.
pub const BACKLOG_BYTES_CROWDED: u64 = 64 << 20;
/// How often a full disk is looked at again when nothing is handed in, or a file tried again for which there was no
/// descriptor.
pub const RETRY_FULL: Duration = Duration::from_millis(100);

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
    /// The batch is durable. In the order of hand-in.
    Completed {
        /// The batch's group.
        group: u64,
        /// The batch's ticket.
        ticket: Ticket,
        /// The Lsn of the batch's last record (of the last one handed in before, when it had none).
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
    /// A file could not be opened because descriptors have run out (true), or could be again (false). What was handed in
    /// waits, and nothing is lost.
    DescriptorsShort(bool),
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
    /// Batches of the log made durable, up to this moment.
    pub syncs: u64,
    /// Hand-ins that are not durable, at this moment. While there are some and `syncs` stands still, the disk hangs.
    pub outstanding: u64,
    /// Records appended.
    pub records: u64,
    /// Payload bytes appended.
    pub bytes: u64,
    /// A write or sync failed.
    pub fenced: bool,
}

/// Handle of the writer's thread. Dropping it finishes what was handed in and joins.
pub struct Writer<D: Disk> {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<Journal<D>, Error>>>,
}

impl<D: Disk> fmt::Debug for Writer<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("shared", &self.shared).finish_non_exhaustive()
    }
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
        let shared = Arc::new(Shared::default());
        lock(&shared.stats).journal = journal.stats();
        let worker = Worker {
            shared: Arc::clone(&shared),
            journal,
            on_event,
            waiting: Vec::new(),
            told_full: false,
            told_short: false,
            records: 0,
            bytes: 0,
        };
        let thread = thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || worker.run())
            .map_err(|e| Error::io("start the thread of", "the journal", e))?;
        Ok(Writer { shared, thread: Some(thread) })
    }

    /// Hands in a batch; returns at once. However much waits, it is taken: who has the records holds their memory
    /// either way, and would have to stop for good without them. It is for the caller to see [`Writer::is_crowded`], and
    /// to let no more records come into being.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Fenced`]: nothing was taken.
    pub fn append(&self, batch: Batch) -> Result<(), Error> {
        let mut bytes = 0;
        for record in &batch.records {
            bytes += check_sizes(&record.label, &record.payload)?;
        }
        if self.shared.fenced.load(Ordering::Acquire) {
            return Err(Error::Fenced);
        }
        let mut queue = lock(&self.shared.queue);
        queue.outstanding += 1;
        queue.backlog_bytes += bytes;
        if queue.backlog_bytes > BACKLOG_BYTES_CROWDED {
            self.shared.crowded.store(true, Ordering::Relaxed);
        }
        queue.work.push(Work::Append(batch));
        self.shared.wake(queue);
        Ok(())
    }

    /// See [`Journal::set_floor`].
    pub fn set_floor(&self, group: u64, lsn: Lsn) {
        let mut queue = lock(&self.shared.queue);
        queue.work.push(Work::SetFloor(group, lsn));
        self.shared.wake(queue);
    }

    /// See [`Journal::remove_group`].
    pub fn remove_group(&self, group: u64) {
        let mut queue = lock(&self.shared.queue);
        queue.work.push(Work::RemoveGroup(group));
        self.shared.wake(queue);
    }

    /// Counters; as of the last batch, where nothing else is said.
    #[must_use]
    pub fn stats(&self) -> WriterStats {
        let mut stats = lock(&self.shared.stats).clone();
        {
            let queue = lock(&self.shared.queue);
            stats.syncs = queue.syncs;
            stats.outstanding = queue.outstanding;
        }
        stats.fenced = self.shared.fenced.load(Ordering::Acquire);
        stats
    }

    /// Whether the disk is full, or too full for the next segment: refuse what can be refused.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.shared.full.load(Ordering::Acquire)
    }

    /// Whether the disk is far behind what is handed in.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.shared.crowded.load(Ordering::Relaxed)
    }

    /// Finishes what was handed in, ends the thread, and returns the journal.
    ///
    /// # Errors
    /// [`Error::Fenced`], [`Error::Full`], [`Error::NoDescriptors`] when what was handed in could not be written.
    pub fn close(mut self) -> Result<Journal<D>, Error> {
        self.shared.close();
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            // The callback panicked on the thread.
            Some(Err(_)) => Err(Error::Fenced),
            None => Err(Error::Closed),
        }
    }
}

impl<D: Disk> Drop for Writer<D> {
    fn drop(&mut self) {
        self.shared.close();
        if let Some(thread) = self.thread.take() {
            // Its result has been told through the callback.
            drop(thread.join());
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    woken: Condvar,
    full: AtomicBool,
    /// A copy of what the queue's backlog says, to be read without the lock.
    crowded: AtomicBool,
    fenced: AtomicBool,
    stats: Mutex<WriterStats>,
}

#[derive(Debug, Default)]
struct Queue {
    work: Vec<Work>,
    /// Payload bytes handed in and not yet durable.
    backlog_bytes: u64,
    /// Batches handed in and not yet durable.
    outstanding: u64,
    /// Syncs so far.
    syncs: u64,
    /// The thread waits: a hand-in must wake it.
    asleep: bool,
    closing: bool,
}

#[derive(Debug)]
enum Work {
    Append(Batch),
    SetFloor(u64, Lsn),
    RemoveGroup(u64),
}

impl Shared {
    fn wake(&self, mut queue: MutexGuard<'_, Queue>) {
        let asleep = mem::replace(&mut queue.asleep, false);
        drop(queue);
        // A busy thread looks at the queue before it sleeps: the system call is needed only when it does.
        if asleep {
            self.woken.notify_one();
        }
    }

    fn close(&self) {
        let mut queue = lock(&self.queue);
        queue.closing = true;
        self.wake(queue);
    }
}

/// A panic while a lock was held leaves plain counters and a list behind, all of them still true.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Worker<D: Disk, F> {
    shared: Arc<Shared>,
    journal: Journal<D>,
    on_event: F,
    /// Handed in and not yet durable, in order.
    waiting: Vec<Waiting>,
    told_full: bool,
    told_short: bool,
    records: u64,
    bytes: u64,
}

struct Waiting {
    group: u64,
    ticket: Ticket,
    lsn: Lsn,
    bytes: u64,
}

/// Marks the writer as fenced however its thread ends, so that nobody hands in to nobody.
struct FenceOnExit(Arc<Shared>);

impl Drop for FenceOnExit {
    fn drop(&mut self) {
        self.0.fenced.store(true, Ordering::Release);
    }
}

/// What the thread found to do.
enum Next {
    Work,
    Nothing,
    Close,
}

impl<D: Disk, F: FnMut(Event)> Worker<D, F> {
    fn run(mut self) -> Result<Journal<D>, Error> {
        let _fence = FenceOnExit(Arc::clone(&self.shared));
        let result = self.work();
        match result {
            Ok(()) => Ok(self.journal),
            Err(error) if error.is_retryable() => Err(error),
            Err(error) => {
                self.shared.fenced.store(true, Ordering::Release);
                (self.on_event)(Event::Fenced(error));
                Err(Error::Fenced)
            }
        }
    }

    fn work(&mut self) -> Result<(), Error> {
        let mut work = Vec::new();
        let mut more_to_maintain = true;
        loop {
            let next = self.next(&mut work, more_to_maintain);
            for item in work.drain(..) {
                self.take(item)?;
            }
            let written = self.write();
            let blocked = match written {
                Ok(()) => None,
                Err(error) if error.is_retryable() => Some(error),
                Err(error) => return Err(error),
            };
            let mut short = matches!(blocked, Some(Error::NoDescriptors { .. }));
            if let Next::Close = next {
                return blocked.map_or(Ok(()), Err);
            }
            more_to_maintain = match self.journal.maintain() {
                Ok(more) => more,
                Err(error) if error.is_retryable() => {
                    short |= matches!(error, Error::NoDescriptors { .. });
                    false
                }
                Err(error) => return Err(error),
            };
            self.tell_state();
            if self.told_short != short {
                self.told_short = short;
                (self.on_event)(Event::DescriptorsShort(short));
            }
        }
    }

    /// Waits for work, unless there is some, or other things to do meanwhile.
    fn next(&mut self, work: &mut Vec<Work>, more_to_maintain: bool) -> Next {
        let mut queue = lock(&self.shared.queue);
        loop {
            if !queue.work.is_empty() {
                mem::swap(&mut queue.work, work);
                return Next::Work;
            }
            if queue.closing {
                return Next::Close;
            }
            if more_to_maintain {
                return Next::Nothing;
            }
            queue.asleep = true;
            if self.told_full || self.told_short {
                let (guard, timeout) =
                    self.shared.woken.wait_timeout(queue, RETRY_FULL).unwrap_or_else(PoisonError::into_inner);
                queue = guard;
                if timeout.timed_out() {
                    queue.asleep = false;
                    if queue.work.is_empty() && !queue.closing {
                        return Next::Nothing;
                    }
                }
            } else {
                queue = self.shared.woken.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn take(&mut self, work: Work) -> Result<(), Error> {
        match work {
            Work::Append(batch) => {
                let mut bytes = 0;
                for record in &batch.records {
                    self.journal.append(batch.group, &record.label, &record.payload)?;
                    bytes += record.payload.iter().map(|piece| piece.len() as u64).sum::<u64>();
                    self.records += 1;
                }
                self.bytes += bytes;
                let lsn = Lsn(self.journal.head().0.saturating_sub(1));
                self.waiting.push(Waiting { group: batch.group, ticket: batch.ticket, lsn, bytes });
            }
            Work::SetFloor(group, lsn) => self.journal.set_floor(group, lsn),
            Work::RemoveGroup(group) => self.journal.remove_group(group),
        }
        Ok(())
    }

    /// Makes everything staged durable, and completes it.
    fn write(&mut self) -> Result<(), Error> {
        while self.journal.has_staged() {
            let before = (self.journal.durable(), self.journal.staged_bytes());
            let started = Instant::now();
            self.journal.flush()?;
            let written = Instant::now();
            let durable = self.journal.sync()?;
            let synced = Instant::now();
            lock(&self.shared.queue).syncs += 1;
            (self.on_event)(Event::Synced {
                records: durable.0.saturating_sub(before.0.0),
                bytes: before.1 - self.journal.staged_bytes(),
                write: written - started,
                sync: synced - written,
            });
            self.complete(durable);
        }
        self.complete(self.journal.durable());
        Ok(())
    }

    fn complete(&mut self, durable: Lsn) {
        let count = self.waiting.iter().take_while(|waiting| waiting.lsn <= durable).count();
        if count == 0 {
            return;
        }
        {
            let mut queue = lock(&self.shared.queue);
            queue.outstanding -= count as u64;
            queue.backlog_bytes -= self.waiting.iter().take(count).map(|waiting| waiting.bytes).sum::<u64>();
            if queue.backlog_bytes <= BACKLOG_BYTES_CROWDED {
                self.shared.crowded.store(false, Ordering::Relaxed);
            }
        }
        for Waiting { group, ticket, lsn, .. } in self.waiting.drain(..count) {
            (self.on_event)(Event::Completed { group, ticket, lsn });
        }
    }

    fn tell_state(&mut self) {
        let journal = self.journal.stats();
        if journal.full != self.told_full {
            self.told_full = journal.full;
            self.shared.full.store(journal.full, Ordering::Release);
            (self.on_event)(Event::Full(journal.full));
        }
        let mut stats = lock(&self.shared.stats);
        // The floors behind `pinned` change often; the answer is needed only as often as segments come and go.
        if stats.journal.segments != journal.segments || stats.journal.oldest != journal.oldest {
            stats.pinned = self.journal.pinned();
        }
        stats.journal = journal;
        stats.records = self.records;
        stats.bytes = self.bytes;
    }
}
