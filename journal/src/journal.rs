//! The log itself: staging, batches, segments, floors.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io::IoSlice,
};

use bytes::Bytes;

use crate::{
    LABEL_BYTES_MAX, PAYLOAD_BYTES_MAX,
    disk::{Disk, DiskFile},
    error::Error,
    format::{
        self, ALIGN, DESCRIPTOR_FIXED_BYTES, Descriptor, ENTRY_FIXED_BYTES, Entry, FLAG_RESTART, FLAG_SEAL,
        HEADER_BYTES, SECTOR,
    },
    lsn::Lsn,
    options::{BATCH_BYTES_MAX, Options, SEGMENT_BYTES_MAX},
    recovery::{self, Recovered, Report},
    segment::{self, Kind, Making, Ready, Segment, segment_name, spare_name},
    superblock,
};

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

/// Payloads up to this length are copied when staged; longer ones are kept by reference. Around here one copy costs as
/// much as one more piece in the vectored write.
const COPY_BYTES_MAX: usize = 4 << 10;
/// Kept free at the end of a segment for two batches without records: the seal, which must never fail for want of room,
/// and one that tells which segments may be freed, when the disk is full and nothing else can be written.
const RESERVED: u64 = 2 * ALIGN;
/// Segments at the end of the log whose files may hold bytes that were written and never synced: the one with the last
/// batch, the next one, and one more for good measure.
const UNSYNCED_SEGMENTS_MAX: usize = 3;

// The longest segment must hold the longest record, alone in its batch.
const _: () = assert!(PAYLOAD_BYTES_MAX as u64 + BATCH_BYTES_MAX + 16 * ALIGN < SEGMENT_BYTES_MAX);

/// A node's log. One owner; see [`crate::Writer`] for the thread around it.
#[derive(Debug)]
pub struct Journal<D: Disk> {
    disk: D,
    options: Options,
    seed: u32,
    /// Segments that take no more, oldest first.
    segments: VecDeque<Segment>,
    active: Option<Active<D::File>>,
    /// Segments for later, in the order of their ids.
    ready: VecDeque<Ready<D::File>>,
    making: Option<Making<D::File>>,
    spares: Vec<String>,
    next_segment: u64,
    next_batch: u64,
    previous_crc: u32,
    life: u64,
    /// Nothing was written since open.
    restarted: bool,
    staged: Staged,
    /// The next position to be given out.
    head: Lsn,
    /// Positions below are written.
    written_end: Lsn,
    /// Positions below are durable.
    durable_end: Lsn,
    unsynced: Option<Unsynced>,
    /// Segments below are recycled: a durable batch says that they are not needed.
    durable_oldest_segment: u64,
    floors: Floors,
    batches: u64,
    full: bool,
    fenced: bool,
    /// Scratch for the descriptor being written.
    descriptor: Vec<u8>,
}

#[derive(Debug)]
struct Active<F> {
    id: u64,
    bytes: u64,
    file: F,
    /// Where the next batch goes.
    at: u64,
    first: Lsn,
}

/// A batch that is written and not yet durable.
#[derive(Clone, Copy, Debug)]
struct Unsynced {
    oldest_segment: u64,
}

impl<D: Disk> Journal<D> {
    /// Reads all segments, judges damage, and hands every surviving record in Lsn order to `visit`; then the journal
    /// is ready to append. Every group seen has its floor at its first record.
    ///
    /// # Errors
    /// Only what makes a start unsafe: [`Error::Corrupt`], [`Error::Version`], [`Error::Foreign`], [`Error::Io`], and
    /// [`Error::Full`] when the very first segment finds no room. Everything else is in the report.
    pub fn open(
        disk: D,
        options: Options,
        visit: &mut dyn FnMut(Recovered),
    ) -> Result<(Journal<D>, Report), Error> {
        let options = options.normalised();
        let files = Files::list(&disk)?;
        must_exist(&options, &files)?;
        for name in &files.making {
            disk.remove(name).map_err(|e| Error::io("remove", name, e))?;
        }
        // A process that was killed leaves names and bytes which only the cache holds. Everything this start reads and
        // builds upon must be durable first; and after a failed sync the cache shows what the disk does not have.
        disk.sync_dir().map_err(|e| Error::io("sync", "the data directory", e))?;
        for id in files.segments.iter().rev().take(UNSYNCED_SEGMENTS_MAX) {
            let name = segment_name(*id);
            let mut file = disk.open(&name).map_err(|e| Error::io("open", &name, e))?;
            file.sync_data().map_err(|e| Error::io("sync", &name, e))?;
            file.drop_cache().map_err(|e| Error::io("drop the cache of", &name, e))?;
        }

        let outcome = recovery::recover(&disk, &options, &files.segments, visit)?;

        if let Some((id, offsets)) = &outcome.wrecks {
            wipe(&disk, *id, offsets)?;
        }
        let seed = format::seed(&options.identity);
        let mut segments = VecDeque::from(outcome.segments);
        let mut ready = VecDeque::new();
        for id in outcome.ready {
            let name = segment_name(id);
            let mut file = disk.open(&name).map_err(|e| Error::io("open", &name, e))?;
            let bytes = file.len().map_err(|e| Error::io("measure", &name, e))?;
            segment::write_header(&mut file, &name, id, bytes, options.identity)?;
            ready.push_back(Ready { id, bytes, file });
        }
        let active = match outcome.tail {
            Some(at) => match segments.pop_back() {
                Some(Segment { id, bytes, first, .. }) => {
                    let name = segment_name(id);
                    let file = disk.open(&name).map_err(|e| Error::io("open", &name, e))?;
                    Some(Active { id, bytes, file, at, first })
                }
                None => None,
            },
            None => None,
        };
        let oldest_kept =
            segments.front().map(|segment| segment.id).or(active.as_ref().map(|active| active.id));
        let mut journal = Journal {
            seed,
            active,
            ready,
            making: None,
            spares: Vec::new(),
            next_segment: outcome.next_segment,
            next_batch: outcome.next_batch,
            previous_crc: outcome.previous_crc,
            life: outcome.life,
            restarted: true,
            staged: Staged::default(),
            head: outcome.next_lsn,
            written_end: outcome.next_lsn,
            durable_end: outcome.next_lsn,
            unsynced: None,
            durable_oldest_segment: oldest_kept.unwrap_or(0),
            floors: Floors::recovered(&outcome.groups),
            batches: 0,
            full: false,
            fenced: false,
            descriptor: Vec::new(),
            segments,
            disk,
            options,
        };
        journal.keep_spares(&files.spares)?;
        for id in outcome.stale {
            journal.recycle(&segment_name(id), id)?;
        }
        if journal.segments.is_empty() && journal.active.is_none() && journal.ready.is_empty() {
            journal.make_ready()?;
        }
        Ok((journal, outcome.report))
    }

    /// Judges a journal without changing anything on the disk, and hands every surviving record in Lsn order to `visit`.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub fn read(disk: &D, options: Options, visit: &mut dyn FnMut(Recovered)) -> Result<Report, Error> {
        let options = options.normalised();
        let files = Files::list(disk)?;
        must_exist(&options, &files)?;
        Ok(recovery::recover(disk, &options, &files.segments, visit)?.report)
    }

    /// Stages one record; `payload` is given in pieces and copied at most once. Nothing reaches the disk before
    /// [`Journal::flush`].
    ///
    /// # Errors
    /// [`Error::TooLarge`] (nothing staged), [`Error::Fenced`].
    pub fn append(&mut self, group: u64, label: &[u8], payload: &[Bytes]) -> Result<Lsn, Error> {
        if self.fenced {
            return Err(Error::Fenced);
        }
        check_sizes(label, payload)?;
        let lsn = self.head;
        self.staged.push(group, label, payload);
        self.head = Lsn(lsn.0 + 1);
        self.floors.appended(group, lsn);
        Ok(lsn)
    }

    /// Writes one batch of what is staged (everything, up to [`Options::batch_bytes_max`]) and returns the highest
    /// Lsn written. A batch written before and not yet synced is synced first: no batch is ever written after an
    /// unsynced one, which is what lets recovery tell a torn tail from damage. Call again while
    /// [`Journal::has_staged`].
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::NoDescriptors`]: nothing was written, everything stays staged, and a later flush may
    /// succeed. Any other: the journal is fenced.
    pub fn flush(&mut self) -> Result<Lsn, Error> {
        self.guarded(|journal| {
            if journal.unsynced.is_some() {
                journal.sync_active()?;
            }
            if journal.has_staged() {
                journal.write_staged()?;
            }
            Ok(last_below(journal.written_end))
        })
    }

    /// Makes the written batch durable; returns the Lsn up to which everything is.
    ///
    /// # Errors
    /// A failed sync fences the journal for good.
    pub fn sync(&mut self) -> Result<Lsn, Error> {
        self.guarded(|journal| {
            if journal.unsynced.is_some() {
                journal.sync_active()?;
            }
            Ok(last_below(journal.durable_end))
        })
    }

    /// Whether records are staged that no flush has written.
    #[must_use]
    pub fn has_staged(&self) -> bool {
        !self.staged.records.is_empty()
    }

    /// One bounded piece of background work: a segment recycled, or a step in making the next one ahead of need.
    /// Returns whether more is left. Never needed for correctness; it keeps the work out of [`Journal::flush`], and
    /// finds a full disk while the active segment still has room.
    ///
    /// # Errors
    /// [`Error::Full`] when the next segment has no room, [`Error::NoDescriptors`] when no file can be opened: appends go on
    /// while the active one has room. Any other: the journal is fenced.
    pub fn maintain(&mut self) -> Result<bool, Error> {
        self.guarded(|journal| {
            if journal.recycle_oldest()? {
                return Ok(true);
            }
            if journal.ready.is_empty() {
                return Ok(!journal.make_step()?);
            }
            Ok(false)
        })
    }

    /// The lowest Lsn that `group` still needs. Floors only rise. Segments below every floor are recycled, once a
    /// later batch is durable.
    pub fn set_floor(&mut self, group: u64, lsn: Lsn) {
        self.floors.raise(group, lsn);
    }

    /// The group needs nothing any more.
    pub fn remove_group(&mut self, group: u64) {
        self.floors.remove(group);
    }

    /// The groups that hold the oldest segments back, lowest floor first: those whose floor lies in the oldest fifth
    /// of the segments. Empty while the log has fewer than five.
    #[must_use]
    pub fn pinned(&self) -> Vec<(u64, Lsn)> {
        let fifth = (self.segments.len() + 1) / 5;
        match fifth.checked_sub(1).and_then(|last| self.segments.get(last)) {
            Some(segment) => self.floors.below(segment.end),
            None => Vec::new(),
        }
    }

    /// The next position to be given out.
    #[must_use]
    pub fn head(&self) -> Lsn {
        self.head
    }

    /// Every record up to this position is written, and durable after the next [`Journal::sync`].
    #[must_use]
    pub fn written(&self) -> Lsn {
        last_below(self.written_end)
    }

    /// Every record up to this position is durable.
    #[must_use]
    pub fn durable(&self) -> Lsn {
        last_below(self.durable_end)
    }

    /// Payload bytes staged and not yet flushed.
    #[must_use]
    pub fn staged_bytes(&self) -> u64 {
        self.staged.bytes
    }

    /// Sizes and positions.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let sealed: u64 = self.segments.iter().map(|segment| segment.bytes).sum();
        let active = self.active.as_ref().map_or(0, |active| active.bytes);
        let ready: u64 = self.ready.iter().map(|ready| ready.bytes).sum();
        let oldest = self.segments.front().map(|segment| segment.first);
        Stats {
            segments: self.segments.len() as u64 + u64::from(self.active.is_some()),
            disk_bytes: sealed + active + ready + self.spares.len() as u64 * self.options.segment_bytes,
            spares: self.spares.len() as u64,
            oldest: oldest.or(self.active.as_ref().map(|active| active.first)).unwrap_or(self.head),
            head: self.head,
            durable: last_below(self.durable_end),
            staged_bytes: self.staged.bytes,
            batches: self.batches,
            full: self.full,
        }
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

    /// Whether a write or sync failed: nothing more will become durable.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        self.fenced
    }

    /// Runs an operation on the disk. A full disk is remembered and may be tried again, and so may a file that could not be
    /// opened for want of a descriptor; any other failure leaves unknown bytes behind, so it is the last.
    fn guarded<T>(&mut self, operation: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        if self.fenced {
            return Err(Error::Fenced);
        }
        let result = operation(self);
        match &result {
            Ok(_) | Err(Error::NoDescriptors { .. }) => {}
            Err(Error::Full { .. }) => self.full = true,
            Err(_) => self.fenced = true,
        }
        result
    }

    fn sync_active(&mut self) -> Result<(), Error> {
        let Some(active) = &mut self.active else { return Ok(()) };
        active.file.sync_data().map_err(|e| Error::io("sync", &segment_name(active.id), e))?;
        if let Some(unsynced) = self.unsynced.take() {
            self.durable_oldest_segment = unsynced.oldest_segment;
        }
        self.durable_end = self.written_end;
        Ok(())
    }

    fn write_staged(&mut self) -> Result<(), Error> {
        let count = self.staged.count_for_batch(self.options.batch_bytes_max);
        let (descriptor_bytes, data_bytes) = self.staged.batch_bytes(count);
        let (_, batch_bytes) = format::layout(0, descriptor_bytes, data_bytes)
            .expect("a batch is bounded by the longest payload and the longest batch");
        let fits =
            self.active.as_ref().is_some_and(|active| active.at + batch_bytes + RESERVED <= active.bytes);
        if !fits {
            self.roll(HEADER_BYTES + batch_bytes + RESERVED)?;
        }
        self.write_batch(count, 0)
    }

    /// Goes on in a new segment of at least `bytes`. The old one's seal is durable before the new one's first batch is
    /// written, as every batch is before its successor.
    fn roll(&mut self, bytes: u64) -> Result<(), Error> {
        if self.ready.is_empty() {
            match self.make_ready() {
                Err(Error::Full { .. }) if self.free_what_is_not_needed()? => self.make_ready()?,
                result => result?,
            }
        }
        if let Some(ready) = self.ready.front_mut()
            && ready.bytes < bytes
        {
            segment::grow(ready, bytes, self.options.identity)?;
        }
        if self.active.is_some() {
            self.write_batch(0, FLAG_SEAL)?;
            self.sync_active()?;
        }
        if let Some(Active { id, bytes, first, .. }) = self.active.take() {
            self.segments.push_back(Segment { id, bytes, first, end: self.written_end });
        }
        self.active = self.ready.pop_front().map(|Ready { id, bytes, file }| Active {
            id,
            bytes,
            file,
            at: HEADER_BYTES,
            first: self.written_end,
        });
        Ok(())
    }

    fn make_ready(&mut self) -> Result<(), Error> {
        while !self.make_step()? {}
        Ok(())
    }

    /// On a full disk, and with the active segment full: the floors may have risen since the last batch, but it takes a
    /// durable batch to say so before a segment may go. Returns whether there was one to free.
    fn free_what_is_not_needed(&mut self) -> Result<bool, Error> {
        let room = self.active.as_ref().is_some_and(|active| active.at + RESERVED <= active.bytes);
        let least_floor = self.floors.least().unwrap_or(self.head);
        let freeable = self.segments.front().is_some_and(|segment| segment.end <= least_floor);
        if !room || !freeable {
            return Ok(false);
        }
        self.write_batch(0, 0)?;
        self.sync_active()?;
        while self.recycle_oldest()? {}
        Ok(true)
    }

    /// Recycles the oldest segment if a durable batch says that it is not needed; returns whether.
    fn recycle_oldest(&mut self) -> Result<bool, Error> {
        let Some(id) = self.segments.front().map(|segment| segment.id) else { return Ok(false) };
        if id >= self.durable_oldest_segment {
            return Ok(false);
        }
        self.recycle(&segment_name(id), id)?;
        self.segments.pop_front();
        Ok(true)
    }

    /// Writes the first `count` staged records as one batch at the end of the active segment, which has room.
    fn write_batch(&mut self, count: usize, flags: u32) -> Result<(), Error> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let least_floor = self.floors.least().unwrap_or(self.head);
        let oldest = self.segments.iter().find(|segment| segment.end > least_floor);
        let (_, data_bytes) = self.staged.batch_bytes(count);
        let mut descriptor = Descriptor {
            segment: active.id,
            offset: active.at,
            batch: self.next_batch,
            first: self.written_end,
            life: self.life,
            oldest_segment: oldest.map_or(active.id, |segment| segment.id),
            oldest: oldest.map_or(active.first, |segment| segment.first),
            data_bytes,
            count: u32::try_from(count).expect("a batch is bounded in bytes, each record takes some"),
            previous_crc: self.previous_crc,
            flags: if self.restarted { flags | FLAG_RESTART } else { flags },
            ..Descriptor::default()
        };
        Descriptor::begin(&mut self.descriptor);
        for record in self.staged.records.iter().take(count) {
            format::push_entry(&mut self.descriptor, record.entry());
        }
        descriptor.seal(&mut self.descriptor, self.seed);

        let end_of_data = descriptor.data_offset() + data_bytes;
        let end_of_copy = descriptor.copy_offset() + u64::from(descriptor.descriptor_bytes);
        let end = descriptor.end_offset();
        debug_assert!(descriptor.copy_offset() - end_of_data < SECTOR && end - end_of_copy < ALIGN);
        let mut pieces = vec![IoSlice::new(&self.descriptor)];
        self.staged.push_pieces(count, &mut pieces);
        pieces.push(IoSlice::new(segment::zeros((descriptor.copy_offset() - end_of_data) as usize)));
        pieces.push(IoSlice::new(&self.descriptor));
        pieces.push(IoSlice::new(segment::zeros((end - end_of_copy) as usize)));
        active
            .file
            .write_vectored_at(&pieces, active.at)
            .map_err(|e| segment::write_error("write", &segment_name(active.id), end - active.at, e))?;

        active.at = end;
        self.staged.remove(count);
        self.next_batch += 1;
        self.previous_crc = descriptor.crc;
        self.restarted = false;
        self.written_end = descriptor.end_lsn();
        self.unsynced = Some(Unsynced { oldest_segment: descriptor.oldest_segment });
        self.batches += 1;
        self.full &= self.ready.is_empty();
        Ok(())
    }

    /// One step towards a ready segment; returns whether one is ready.
    fn make_step(&mut self) -> Result<bool, Error> {
        let (id, bytes, identity) = (self.next_segment, self.options.segment_bytes, self.options.identity);
        if self.making.is_none() {
            if let Some(spare) = self.spares.last() {
                let ready = segment::adopt_spare(&self.disk, spare, id, bytes, identity)?;
                self.spares.pop();
                self.add_ready(ready);
                return Ok(true);
            }
            self.making = Some(Making::begin(&self.disk, id, bytes)?);
        }
        let Some(mut making) = self.making.take() else { return Ok(false) };
        match making.step() {
            Ok(true) => {
                let ready = making.finish(&self.disk, identity)?;
                self.add_ready(ready);
                Ok(true)
            }
            Ok(false) => {
                self.making = Some(making);
                Ok(false)
            }
            Err(full @ Error::Full { .. }) => {
                making.abandon(&self.disk)?;
                Err(full)
            }
            Err(e) => Err(e),
        }
    }

    fn add_ready(&mut self, ready: Ready<D::File>) {
        self.next_segment = self.next_segment.max(ready.id + 1);
        self.ready.push_back(ready);
        self.full = false;
    }

    /// Keeps the file of a segment that nobody needs for later use, or removes it. A crash may undo it: the segment is
    /// below the oldest that a durable batch names, so the next start recycles it again, and never misses it. The
    /// directory is synced when a segment gets its name, before anything is written to it.
    fn recycle(&mut self, name: &str, id: u64) -> Result<(), Error> {
        let len =
            self.disk.open(name).and_then(|file| file.len()).map_err(|e| Error::io("measure", name, e))?;
        if len == self.options.segment_bytes && self.spares.len() < self.options.spare_segments_max {
            let spare = spare_name(id);
            self.disk.rename(name, &spare).map_err(|e| Error::io("rename", name, e))?;
            self.spares.push(spare);
        } else {
            self.disk.remove(name).map_err(|e| Error::io("remove", name, e))?;
        }
        Ok(())
    }

    /// Takes over the spares of an earlier life; those of another size or too many are removed.
    fn keep_spares(&mut self, names: &[String]) -> Result<(), Error> {
        for name in names {
            let file = self.disk.open(name).map_err(|e| Error::io("open", name, e))?;
            let len = file.len().map_err(|e| Error::io("measure", name, e))?;
            if len == self.options.segment_bytes && self.spares.len() < self.options.spare_segments_max {
                self.spares.push(name.clone());
            } else {
                self.disk.remove(name).map_err(|e| Error::io("remove", name, e))?;
            }
        }
        Ok(())
    }
}

/// The journal's files in the data directory.
#[derive(Default)]
struct Files {
    /// Ids, ascending.
    segments: Vec<u64>,
    spares: Vec<String>,
    making: Vec<String>,
}

impl Files {
    fn list<D: Disk>(disk: &D) -> Result<Files, Error> {
        let mut files = Files::default();
        for name in disk.list().map_err(|e| Error::io("list", "the data directory", e))? {
            match segment::classify(&name) {
                Kind::Segment(id) => files.segments.push(id),
                Kind::Spare => files.spares.push(name),
                Kind::Making => files.making.push(name),
                Kind::NotOurs => {}
            }
        }
        files.segments.sort_unstable();
        files.spares.sort_unstable();
        Ok(files)
    }
}

/// A directory without segments is that of a new journal only if nothing says that there was one. Ids would be given out
/// again, and the old bytes in a spare would pass for the new segment's.
fn must_exist(options: &Options, files: &Files) -> Result<(), Error> {
    let made_before = options.must_exist || !files.spares.is_empty();
    if !made_before || !files.segments.is_empty() {
        return Ok(());
    }
    Err(Error::Corrupt {
        file: segment_name(1),
        offset: 0,
        what: format!(
            "the journal was made before, and none of its segments is left; {}",
            superblock::EMPTY_IT
        ),
    })
}

/// Clears the wrecks of a discarded batch's descriptors.
fn wipe<D: Disk>(disk: &D, id: u64, offsets: &[u64]) -> Result<(), Error> {
    let name = segment_name(id);
    let mut file = disk.open(&name).map_err(|e| Error::io("open", &name, e))?;
    let len = file.len().map_err(|e| Error::io("measure", &name, e))?;
    for &offset in offsets {
        let sector = segment::zeros(len.saturating_sub(offset).min(SECTOR) as usize);
        file.write_at(sector, offset).map_err(|e| Error::io("repair", &name, e))?;
    }
    file.sync_data().map_err(|e| Error::io("sync", &name, e))
}

/// Checks a record against the bounds of the format; returns its payload's length.
pub(crate) fn check_sizes(label: &[u8], payload: &[Bytes]) -> Result<u64, Error> {
    if label.len() > LABEL_BYTES_MAX {
        let (len, max) = (label.len() as u64, LABEL_BYTES_MAX as u64);
        return Err(Error::TooLarge { what: "a label", len, max });
    }
    let len: u64 = payload.iter().map(|piece| piece.len() as u64).sum();
    let max = PAYLOAD_BYTES_MAX as u64;
    if len > max { Err(Error::TooLarge { what: "a payload", len, max }) } else { Ok(len) }
}

/// The position before `end`.
fn last_below(end: Lsn) -> Lsn {
    Lsn(end.0.saturating_sub(1))
}

/// Records given and not yet written.
#[derive(Debug, Default)]
struct Staged {
    records: VecDeque<StagedRecord>,
    /// Short payloads, one after the other.
    copied: Vec<u8>,
    /// Payload bytes of all records.
    bytes: u64,
}

#[derive(Debug)]
struct StagedRecord {
    group: u64,
    payload_len: u32,
    payload_crc: u32,
    label: [u8; LABEL_BYTES_MAX],
    label_len: u8,
    /// `None`: the payload is the next in `copied`.
    kept: Option<Vec<Bytes>>,
}

impl StagedRecord {
    fn entry(&self) -> Entry<'_> {
        let Self { group, payload_len, payload_crc, label, label_len, .. } = self;
        Entry {
            group: *group,
            payload_len: *payload_len,
            payload_crc: *payload_crc,
            label: &label[..usize::from(*label_len)],
        }
    }

    fn table_bytes(&self) -> u64 {
        (ENTRY_FIXED_BYTES + usize::from(self.label_len)) as u64
    }

    fn copied_bytes(&self) -> usize {
        if self.kept.is_none() { self.payload_len as usize } else { 0 }
    }
}

impl Staged {
    /// Sizes have been checked.
    fn push(&mut self, group: u64, label: &[u8], payload: &[Bytes]) {
        let len: usize = payload.iter().map(Bytes::len).sum();
        let payload_crc = payload.iter().fold(0, |crc, piece| crc32c::crc32c_append(crc, piece));
        let mut fixed = [0; LABEL_BYTES_MAX];
        fixed[..label.len()].copy_from_slice(label);
        let kept = if len <= COPY_BYTES_MAX {
            for piece in payload {
                self.copied.extend_from_slice(piece);
            }
            None
        } else {
            Some(payload.to_vec())
        };
        self.bytes += len as u64;
        self.records.push_back(StagedRecord {
            group,
            payload_len: u32::try_from(len).expect("payloads are bounded far below 4 GiB"),
            payload_crc,
            label: fixed,
            label_len: u8::try_from(label.len()).expect("labels are bounded at 64 bytes"),
            kept,
        });
    }

    /// How many records the next batch takes: at least one, then as many as stay within `bytes_max`.
    fn count_for_batch(&self, bytes_max: u64) -> usize {
        let mut bytes = 0;
        let fitting = self.records.iter().take_while(|record| {
            bytes += record.table_bytes() + u64::from(record.payload_len);
            bytes <= bytes_max
        });
        fitting.count().max(1).min(self.records.len())
    }

    /// Bytes of the descriptor and of the payloads of the first `count` records.
    fn batch_bytes(&self, count: usize) -> (u64, u64) {
        let mut sizes = (DESCRIPTOR_FIXED_BYTES as u64, 0);
        for record in self.records.iter().take(count) {
            sizes.0 += record.table_bytes();
            sizes.1 += u64::from(record.payload_len);
        }
        sizes
    }

    /// The payloads of the first `count` records, neighbouring short ones as one piece.
    fn push_pieces<'a>(&'a self, count: usize, pieces: &mut Vec<IoSlice<'a>>) {
        let (mut start, mut end) = (0, 0);
        for record in self.records.iter().take(count) {
            end += record.copied_bytes();
            if let Some(kept) = &record.kept {
                if start < end {
                    pieces.push(IoSlice::new(&self.copied[start..end]));
                }
                start = end;
                pieces.extend(kept.iter().filter(|piece| !piece.is_empty()).map(|piece| IoSlice::new(piece)));
            }
        }
        if start < end {
            pieces.push(IoSlice::new(&self.copied[start..end]));
        }
    }

    fn remove(&mut self, count: usize) {
        let mut copied = 0;
        for record in self.records.drain(..count) {
            copied += record.copied_bytes();
            self.bytes -= u64::from(record.payload_len);
        }
        self.copied.drain(..copied);
        // A burst must not be paid for ever in memory.
        self.copied.shrink_to(BATCH_BYTES_MAX as usize);
    }
}

/// What each group still needs.
#[derive(Debug, Default)]
struct Floors {
    groups: BTreeMap<u64, GroupFloor>,
    /// The same floors by position, for the least one.
    by_lsn: BTreeSet<(Lsn, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct GroupFloor {
    floor: Lsn,
    last: Lsn,
}

impl Floors {
    fn recovered(groups: &BTreeMap<u64, (Lsn, Lsn)>) -> Floors {
        Floors {
            groups: groups
                .iter()
                .map(|(group, (floor, last))| (*group, GroupFloor { floor: *floor, last: *last }))
                .collect(),
            by_lsn: groups.iter().map(|(group, (floor, _))| (*floor, *group)).collect(),
        }
    }

    /// A group without a floor has no live record; its next one is the first it needs.
    fn appended(&mut self, group: u64, lsn: Lsn) {
        let floor = self.groups.entry(group).or_insert_with(|| {
            self.by_lsn.insert((lsn, group));
            GroupFloor { floor: lsn, last: lsn }
        });
        floor.last = lsn;
    }

    fn raise(&mut self, group: u64, lsn: Lsn) {
        let Some(entry) = self.groups.get_mut(&group) else { return };
        if lsn <= entry.floor {
            return;
        }
        if lsn > entry.last {
            // It needs none of its records: an idle group holds nothing back.
            self.remove(group);
            return;
        }
        self.by_lsn.remove(&(entry.floor, group));
        entry.floor = lsn;
        self.by_lsn.insert((lsn, group));
    }

    fn remove(&mut self, group: u64) {
        if let Some(entry) = self.groups.remove(&group) {
            self.by_lsn.remove(&(entry.floor, group));
        }
    }

    fn least(&self) -> Option<Lsn> {
        self.by_lsn.first().map(|(lsn, _)| *lsn)
    }

    fn below(&self, end: Lsn) -> Vec<(u64, Lsn)> {
        self.by_lsn.iter().take_while(|(lsn, _)| *lsn < end).map(|(lsn, group)| (*group, *lsn)).collect()
    }
}
