//! What a restart finds, and how damage is judged.
//!
//! The log is read twice at most: once from its end, to learn which segments it must have (every batch names the
//! oldest one that was still needed), and once from its beginning, batch by batch. Where a batch should be and its
//! descriptor does not validate, the search goes on in steps of a sector: for the batch's own second descriptor, or
//! for a later batch. Nothing on the disk is changed here.

use std::{collections::BTreeMap, fmt, mem, ops::RangeInclusive};

use bytes::Bytes;

use crate::{
    disk::{Disk, DiskFile},
    error::Error,
    format::{
        self, Descriptor, FLAG_RESTART, FLAG_SEAL, HEADER_BYTES, HeaderVerdict, SECTOR, SegmentHeader, Table,
    },
    lsn::Lsn,
    options::{Options, SEGMENT_BYTES_MAX},
    segment::{Segment, segment_name},
};

/// When the end of the log is gone, positions and batch numbers leap by this: none that may have been given out is
/// given out again, and the leap itself keeps the loss visible to every later restart.
pub const LEAP: u64 = 1 << 32;

/// What a restart hands to its visitor, in Lsn order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recovered {
    /// A record, byte for byte as appended.
    Record {
        /// The group it was appended for.
        group: u64,
        /// Its position.
        lsn: Lsn,
        /// Its label.
        label: Bytes,
        /// Its payload.
        payload: Bytes,
    },
    /// The record was appended, its label is known, its payload is gone.
    PayloadLost {
        /// The group it was appended for.
        group: u64,
        /// Its position.
        lsn: Lsn,
        /// Its label.
        label: Bytes,
    },
    /// Records that were acknowledged, or may have been, are gone with their labels: any group may have had some
    /// here, after the records it was handed so far.
    Gap {
        /// The first position lost.
        first: Lsn,
        /// The first position after the gap. When the end of the log is lost, a bound that it cannot have reached.
        end: Lsn,
    },
}

/// What a restart found besides the records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The last batch was cut off by a crash before it was acknowledged, and is discarded.
    pub torn_tail: Option<TornTail>,
    /// Damage that no crash explains, and payloads lost.
    pub damage: Vec<Damage>,
    /// Records delivered whole.
    pub records: u64,
    /// Batches found.
    pub batches: u64,
    /// Segments read.
    pub segments: u64,
    /// Bytes read.
    pub bytes_read: u64,
}

impl Report {
    /// Whether anything that had been acknowledged, or may have been, is lost.
    #[must_use]
    pub fn lost_anything(&self) -> bool {
        self.damage.iter().any(|damage| match &damage.kind {
            DamageKind::PayloadLost { .. } => true,
            DamageKind::DescriptorLost { first, end, .. } | DamageKind::SegmentMissing { first, end, .. } => {
                first < end
            }
            DamageKind::DescriptorRepaired { .. }
            | DamageKind::HeaderDamaged
            | DamageKind::SegmentCut { .. }
            | DamageKind::Unreadable => false,
        })
    }
}

/// Where an unacknowledged batch was cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The file, by its name in the data directory.
    pub file: String,
    /// Where the discarded batch began.
    pub offset: u64,
}

/// One damaged place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file, by its name in the data directory.
    pub file: String,
    /// The segment.
    pub segment: u64,
    /// Where the damage begins in the file.
    pub offset: u64,
    /// How far it reaches, in bytes.
    pub len: u64,
    /// What it is.
    pub kind: DamageKind,
}

/// A record whose payload is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostRecord {
    /// The group.
    pub group: u64,
    /// The position.
    pub lsn: Lsn,
    /// The label.
    pub label: Bytes,
}

/// Whether lost payloads were acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The last batch before a restart: perhaps never acknowledged, perhaps damaged later.
    Suspect,
    /// A later batch proves that this one had been synced.
    Corrupt,
}

/// What a damaged place means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DamageKind {
    /// Payloads are lost; groups, positions and labels are known.
    PayloadLost {
        /// Whether they had been acknowledged.
        cause: Cause,
        /// The records.
        records: Vec<LostRecord>,
    },
    /// Records are lost with their labels.
    DescriptorLost {
        /// The first position lost.
        first: Lsn,
        /// The first position after it; equal to `first` when the batches lost held no records.
        end: Lsn,
        /// The groups seen before, each with its last good position. A group not named may have had records here too.
        groups: Vec<(u64, Lsn)>,
    },
    /// One of the two copies of a descriptor is damaged; the other served. Nothing is lost.
    DescriptorRepaired {
        /// The batch's number.
        batch: u64,
    },
    /// The segment's header is damaged; its batches identify themselves. Nothing is lost by this alone.
    HeaderDamaged,
    /// The segment's file is gone, and those of the following ids up to `last_segment`.
    SegmentMissing {
        /// The last of the run of missing segments.
        last_segment: u64,
        /// The first position lost.
        first: Lsn,
        /// The first position after it.
        end: Lsn,
        /// As in [`DamageKind::DescriptorLost`].
        groups: Vec<(u64, Lsn)>,
    },
    /// The segment's file is shorter than it was made. What that cost is reported apart.
    SegmentCut {
        /// Length it was made with, in bytes.
        made_bytes: u64,
    },
    /// The disk refused to read this range; it is judged as if it held zeros.
    Unreadable,
}

impl fmt::Display for TornTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} at offset {}: the last batch was cut off by a crash before it was acknowledged; it is discarded",
            self.file, self.offset
        )
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at offset {}, {} bytes: ", self.file, self.offset, self.len)?;
        match &self.kind {
            DamageKind::PayloadLost { cause, records } => {
                let when = match cause {
                    Cause::Suspect => {
                        "in the last batch before a restart, which may never have been acknowledged"
                    }
                    Cause::Corrupt => "in a batch that had been acknowledged",
                };
                let (first, last) = (records.first(), records.last());
                let lsn = |record: Option<&LostRecord>| record.map_or(0, |record| record.lsn.0);
                write!(
                    f,
                    "the payloads of {} records are damaged (positions {} to {}), {when}; their labels are known",
                    records.len(),
                    lsn(first),
                    lsn(last)
                )
            }
            DamageKind::DescriptorLost { first, end, groups } => {
                if !is_leap(*first, *end) {
                    write!(f, "batches that had been acknowledged are unreadable; ")?;
                }
                write_lost(f, *first, *end, groups)
            }
            DamageKind::DescriptorRepaired { batch } => {
                write!(
                    f,
                    "one of two descriptors of batch {batch} is damaged; the other served, nothing is lost"
                )
            }
            DamageKind::HeaderDamaged => {
                write!(
                    f,
                    "the segment's header is damaged; batches are read without it, and those that cannot be are told apart"
                )
            }
            DamageKind::SegmentMissing { last_segment, first, end, groups } => {
                if *last_segment == self.segment {
                    write!(f, "the file is missing; ")?;
                } else {
                    write!(f, "all files from this one to {} are missing; ", segment_name(*last_segment))?;
                }
                write_lost(f, *first, *end, groups)
            }
            DamageKind::SegmentCut { made_bytes } => {
                write!(f, "the file is shorter than the {made_bytes} bytes it was made with")
            }
            DamageKind::Unreadable => write!(f, "the disk cannot read this range"),
        }
    }
}

/// Whether the positions between were skipped because the end of the log is lost, now or at an earlier restart. No run of
/// segments has room for so many records.
fn is_leap(first: Lsn, end: Lsn) -> bool {
    end.0.saturating_sub(first.0) >= LEAP
}

fn write_lost(f: &mut fmt::Formatter<'_>, first: Lsn, end: Lsn, groups: &[(u64, Lsn)]) -> fmt::Result {
    if first == end {
        return write!(f, "they held no records");
    }
    if is_leap(first, end) {
        write!(
            f,
            "the end of the log was here: records from position {first} on may be lost, nobody can say how many; \
             new ones begin at {end}, which none had reached; "
        )?;
    } else {
        write!(f, "records from position {first} up to {end} are lost; ")?;
    }
    write!(f, "{} groups had records before, and any group may have lost some here", groups.len())
}

/// What the journal goes on from.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) report: Report,
    /// Segments from the oldest needed on, up to the one with the last batch.
    pub(crate) segments: Vec<Segment>,
    /// Where the next batch goes in the last of `segments`; `None` when it takes no more.
    pub(crate) tail: Option<u64>,
    /// Segments without a batch after the one with the last batch, ascending; they may be written.
    pub(crate) ready: Vec<u64>,
    /// Wrecks of descriptors after the last batch: segment and offsets. Left alone, they would look like a torn tail
    /// for ever.
    pub(crate) wrecks: Option<(u64, Vec<u64>)>,
    /// Segments below the oldest needed.
    pub(crate) stale: Vec<u64>,
    /// Ids from here on were never given out.
    pub(crate) next_segment: u64,
    pub(crate) next_batch: u64,
    pub(crate) next_lsn: Lsn,
    pub(crate) previous_crc: u32,
    pub(crate) life: u64,
    /// Every group seen, with its first and last record.
    pub(crate) groups: BTreeMap<u64, (Lsn, Lsn)>,
}

/// Reads the segments `ids` (ascending) and hands every surviving record to `visit`.
pub(crate) fn recover<D: Disk>(
    disk: &D,
    options: &Options,
    ids: &[u64],
    visit: &mut dyn FnMut(Recovered),
) -> Result<Outcome, Error> {
    let mut reader = Reader { disk, report: Report::default(), buffer: Vec::new(), held: None };
    let mut walk = Walk::new(options, visit);
    let (newest, empty) = find_newest(&mut reader, &walk, ids)?;
    let (oldest_segment, newest_segment) = match newest {
        Some(descriptor) => {
            walk.expected = Expected { batch: None, lsn: descriptor.oldest, previous_crc: None, life: 0 };
            (descriptor.oldest_segment, descriptor.segment)
        }
        None => {
            check_unused(ids, &empty)?;
            (1, 0)
        }
    };
    let (segments, end) =
        read_segments(&mut reader, &mut walk, options, ids, oldest_segment..=newest_segment)?;
    for empty in &empty {
        walk.damage.extend_from_slice(&empty.damage);
    }
    let Ending { wrecks, missing } = judge_end(&mut reader, &mut walk, end, newest_segment, &empty);
    let next_segment = ids.last().copied().max(missing).map_or(1, |last| last + 1);
    walk.settle_last(None);

    let tail = match end {
        SegmentEnd::Open { tail } => Some(tail),
        SegmentEnd::Sealed | SegmentEnd::Cut { .. } => None,
    };
    let mut report = reader.report;
    report.damage.append(&mut walk.damage);
    report.batches = walk.batches;
    report.records = walk.records;
    Ok(Outcome {
        report,
        segments,
        tail,
        ready: empty.iter().rev().filter(|empty| empty.cut.is_none()).map(|empty| empty.id).collect(),
        wrecks,
        stale: ids.iter().copied().filter(|id| *id < oldest_segment).collect(),
        next_segment,
        next_batch: walk.expected.batch.unwrap_or(1),
        next_lsn: walk.expected.lsn,
        previous_crc: walk.expected.previous_crc.unwrap_or(0),
        life: walk.expected.life + 1,
        groups: walk.groups,
    })
}

/// Whether a journal without a batch is one that was never used.
fn check_unused(ids: &[u64], empty: &[Empty]) -> Result<(), Error> {
    // A journal that never got further than its first segments, which no crash can make shorter or take away.
    let is_new = matches!(ids, [] | [1] | [1, 2]);
    let cut = empty.iter().find_map(|empty| Some((empty.id, empty.cut?)));
    let (Some(first), false) = (ids.first(), is_new && cut.is_none()) else { return Ok(()) };
    let what = cut.map_or(String::new(), |(_, made_bytes)| {
        format!("the file is shorter than the {made_bytes} bytes it was made with, ")
    });
    Err(Error::Corrupt {
        file: segment_name(cut.map_or(*first, |(id, _)| id)),
        offset: 0,
        what: format!(
            "{what}not one batch can be read in the {} segments of the journal; {}",
            ids.len(),
            crate::superblock::EMPTY_IT
        ),
    })
}

/// Reads the segments from the oldest that is wanted to that of the last batch, and tells how that one ends.
fn read_segments<D: Disk>(
    reader: &mut Reader<'_, D>,
    walk: &mut Walk<'_>,
    options: &Options,
    ids: &[u64],
    wanted: RangeInclusive<u64>,
) -> Result<(Vec<Segment>, SegmentEnd), Error> {
    let mut segments: Vec<Segment> = Vec::new();
    let mut end = SegmentEnd::Sealed;
    let mut next_id = *wanted.start();
    for &id in ids.iter().filter(|id| wanted.contains(id)) {
        if let (Some(before), SegmentEnd::Open { tail } | SegmentEnd::Cut { tail, .. }) =
            (segments.last(), end)
        {
            walk.suspect(before.id, tail, before.bytes.saturating_sub(tail), Suspicion::Lost);
        }
        if next_id < id {
            walk.suspect(next_id, 0, 0, Suspicion::Missing { last_segment: id - 1 });
        }
        next_id = id + 1;
        reader.read(id)?;
        let header = check_header(options, id, &reader.buffer, &mut walk.damage)?;
        walk.segment_first = None;
        end = walk.segment(id, &reader.buffer, header)?;
        let (bytes, end_lsn) = (reader.buffer.len() as u64, walk.expected.lsn);
        segments.push(Segment { id, bytes, first: walk.segment_first.unwrap_or(end_lsn), end: end_lsn });
    }
    Ok((segments, end))
}

/// What lies behind the last batch.
struct Ending {
    /// A segment, and where in it batches begin that do not validate.
    wrecks: Option<(u64, Vec<u64>)>,
    /// The segment that should be there.
    missing: Option<u64>,
}

/// Judges what follows the last batch, in `newest_segment`, which the reader holds.
fn judge_end<D: Disk>(
    reader: &mut Reader<'_, D>,
    walk: &mut Walk<'_>,
    end: SegmentEnd,
    newest_segment: u64,
    empty: &[Empty],
) -> Ending {
    let mut ending = Ending { wrecks: None, missing: None };
    let successor = newest_segment + 1;
    match end {
        SegmentEnd::Open { tail } => {
            let found = find_wrecks(&reader.buffer, tail, newest_segment);
            if !found.is_empty() {
                reader.report.torn_tail = Some(TornTail { file: segment_name(newest_segment), offset: tail });
                ending.wrecks = Some((newest_segment, found));
            }
        }
        SegmentEnd::Cut { tail, made_bytes } => {
            walk.suspect(newest_segment, tail, made_bytes.saturating_sub(tail), Suspicion::Lost);
            walk.leap();
        }
        // The successor of a sealed segment was durable before the seal was written (and the first segment before the
        // journal was first used): it must be there, whole, even if no batch is in it.
        SegmentEnd::Sealed => match empty.iter().find(|empty| empty.id == successor) {
            Some(Empty { cut: Some(made_bytes), .. }) => {
                walk.suspect(successor, 0, *made_bytes, Suspicion::Lost);
                walk.leap();
            }
            Some(Empty { id, wrecks: found, .. }) => {
                if !found.is_empty() {
                    reader.report.torn_tail =
                        Some(TornTail { file: segment_name(*id), offset: HEADER_BYTES });
                    ending.wrecks = Some((*id, found.clone()));
                }
            }
            // The first start of all.
            None if newest_segment == 0 && empty.is_empty() => {}
            None => {
                walk.suspect(successor, 0, 0, Suspicion::Missing { last_segment: successor });
                walk.leap();
                ending.missing = Some(successor);
            }
        },
    }
    ending
}

/// A segment in which no batch validates, after the one with the last batch.
struct Empty {
    id: u64,
    /// Length it was made with, when it is shorter now.
    cut: Option<u64>,
    wrecks: Vec<u64>,
    damage: Vec<Damage>,
}

/// Looks backwards for the last batch.
fn find_newest<D: Disk>(
    reader: &mut Reader<'_, D>,
    walk: &Walk<'_>,
    ids: &[u64],
) -> Result<(Option<Descriptor>, Vec<Empty>), Error> {
    let mut empty = Vec::new();
    for &id in ids.iter().rev() {
        reader.read(id)?;
        let newest = sectors(&reader.buffer, HEADER_BYTES)
            .filter_map(|at| Descriptor::decode(&reader.buffer[at..], id, walk.seed))
            .map(|(descriptor, _)| descriptor)
            .max_by_key(|descriptor| descriptor.batch);
        if newest.is_some() {
            reader.held = Some((id, mem::take(&mut reader.buffer)));
            return Ok((newest, empty));
        }
        let mut damage = Vec::new();
        let cut = check_header(walk.options, id, &reader.buffer, &mut damage)?;
        empty.push(Empty { id, cut, wrecks: find_wrecks(&reader.buffer, HEADER_BYTES, id), damage });
    }
    Ok((None, empty))
}

/// Judges a segment's header; returns the length the file was made with when it is shorter now.
fn check_header(
    options: &Options,
    id: u64,
    bytes: &[u8],
    damage: &mut Vec<Damage>,
) -> Result<Option<u64>, Error> {
    let (file, offset) = (segment_name(id), 0);
    let made_bytes = match SegmentHeader::decode(bytes, &options.identity) {
        HeaderVerdict::Good(header) if header.segment == id => header.made_bytes,
        HeaderVerdict::Good(header) => {
            let what = format!(
                "the file holds segment {}: put it back under its name, {}",
                header.segment,
                segment_name(header.segment)
            );
            return Err(Error::Corrupt { file, offset, what });
        }
        HeaderVerdict::Version(found) => {
            return Err(Error::Version { file, offset, found, supported: format::VERSION });
        }
        HeaderVerdict::Foreign(header) => {
            return Err(Error::Foreign { file, offset, found: header.identity, expected: options.identity });
        }
        HeaderVerdict::Damaged => {
            let kind = DamageKind::HeaderDamaged;
            damage.push(Damage { file: file.clone(), segment: id, offset, len: HEADER_BYTES, kind });
            // Without a header the usual length is the best guess.
            options.segment_bytes
        }
    };
    let len = bytes.len() as u64;
    if len >= made_bytes {
        return Ok(None);
    }
    let kind = DamageKind::SegmentCut { made_bytes };
    damage.push(Damage { file, segment: id, offset: len, len: made_bytes - len, kind });
    Ok(Some(made_bytes))
}

/// The sector boundaries from `from` to the end.
fn sectors(bytes: &[u8], from: u64) -> impl Iterator<Item = usize> {
    (from as usize..bytes.len()).step_by(SECTOR as usize)
}

/// Sectors that begin like a descriptor of this segment.
fn find_wrecks(bytes: &[u8], from: u64, segment: u64) -> Vec<u64> {
    sectors(bytes, from)
        .filter(|at| Descriptor::looks_begun(&bytes[*at..], segment))
        .map(|at| at as u64)
        .collect()
}

/// Reads whole segments into one buffer.
struct Reader<'a, D> {
    disk: &'a D,
    report: Report,
    buffer: Vec<u8>,
    /// The segment read last by the backward search.
    held: Option<(u64, Vec<u8>)>,
}

/// Bytes asked of the disk in one read.
const READ_BYTES: usize = 4 << 20;

impl<D: Disk> Reader<'_, D> {
    fn read(&mut self, id: u64) -> Result<(), Error> {
        if let Some((_, held)) = self.held.take_if(|(held, _)| *held == id) {
            self.buffer = held;
            return Ok(());
        }
        let name = segment_name(id);
        let file = self.disk.open(&name).map_err(|e| Error::io("open", &name, e))?;
        let len = file.len().map_err(|e| Error::io("measure", &name, e))?;
        if len > SEGMENT_BYTES_MAX {
            let what = format!("the file has {len} bytes, no segment has more than {SEGMENT_BYTES_MAX}");
            return Err(Error::Corrupt { file: name, offset: SEGMENT_BYTES_MAX, what });
        }
        self.buffer.resize(len as usize, 0);
        let mut unreadable: Vec<(u64, u64)> = Vec::new();
        let mut at = 0;
        while at < self.buffer.len() {
            let end = self.buffer.len().min(at + READ_BYTES);
            read_or_zero(&file, &mut self.buffer[at..end], at as u64, &mut unreadable);
            at = end;
        }
        self.report.segments += 1;
        self.report.bytes_read += len;
        self.report.damage.extend(unreadable.into_iter().map(|(offset, len)| Damage {
            file: name.clone(),
            segment: id,
            offset,
            len,
            kind: DamageKind::Unreadable,
        }));
        Ok(())
    }
}

/// Reads what can be read, and puts zeros for the sectors that cannot.
fn read_or_zero<F: DiskFile>(file: &F, buf: &mut [u8], offset: u64, unreadable: &mut Vec<(u64, u64)>) {
    match file.read_at(buf, offset) {
        // A file that shrank meanwhile reads as zeros.
        Ok(n) => buf[n..].fill(0),
        Err(_) if buf.len() > SECTOR as usize => {
            // Halves find the bad sectors of a large read in few steps.
            let middle = (buf.len() / 2).next_multiple_of(SECTOR as usize);
            let (left, right) = buf.split_at_mut(middle);
            read_or_zero(file, left, offset, unreadable);
            read_or_zero(file, right, offset + middle as u64, unreadable);
        }
        Err(_) => {
            buf.fill(0);
            match unreadable.last_mut() {
                Some((start, len)) if *start + *len == offset => *len += buf.len() as u64,
                Some(_) | None => unreadable.push((offset, buf.len() as u64)),
            }
        }
    }
}

/// What the next batch must be.
#[derive(Clone, Copy, Debug)]
struct Expected {
    /// Not known before the first batch.
    batch: Option<u64>,
    lsn: Lsn,
    /// Not known before the first batch, and after a gap.
    previous_crc: Option<u32>,
    /// No batch of an earlier life follows one of a later.
    life: u64,
}

/// Where batches may have been lost; the next batch tells whether they were.
struct Suspect {
    segment: u64,
    offset: u64,
    len: u64,
    suspicion: Suspicion,
}

enum Suspicion {
    Lost,
    Missing { last_segment: u64 },
}

/// Damage in the last batch read; the next batch tells what it means.
struct Unjudged {
    descriptor: Descriptor,
    copy_damaged: bool,
    lost: Vec<LostRecord>,
}

#[derive(Clone, Copy)]
enum SegmentEnd {
    /// It says itself that the log goes on in the next.
    Sealed,
    Open {
        tail: u64,
    },
    /// The file is shorter than it was made, and no seal was found.
    Cut {
        tail: u64,
        made_bytes: u64,
    },
}

struct Walk<'a> {
    options: &'a Options,
    seed: u32,
    expected: Expected,
    suspects: Vec<Suspect>,
    unjudged: Option<Unjudged>,
    /// First position found in the segment being read.
    segment_first: Option<Lsn>,
    groups: BTreeMap<u64, (Lsn, Lsn)>,
    damage: Vec<Damage>,
    batches: u64,
    records: u64,
    visit: &'a mut dyn FnMut(Recovered),
}

impl<'a> Walk<'a> {
    fn new(options: &'a Options, visit: &'a mut dyn FnMut(Recovered)) -> Walk<'a> {
        Walk {
            options,
            seed: format::seed(&options.identity),
            expected: Expected { batch: Some(1), lsn: Lsn(1), previous_crc: Some(0), life: 0 },
            suspects: Vec::new(),
            unjudged: None,
            segment_first: None,
            groups: BTreeMap::new(),
            damage: Vec::new(),
            batches: 0,
            records: 0,
            visit,
        }
    }

    fn suspect(&mut self, segment: u64, offset: u64, len: u64, suspicion: Suspicion) {
        self.suspects.push(Suspect { segment, offset, len, suspicion });
    }

    /// Follows the batches of one segment.
    fn segment(&mut self, id: u64, bytes: &[u8], cut: Option<u64>) -> Result<SegmentEnd, Error> {
        let mut at = HEADER_BYTES;
        while let Some((descriptor, table, found_at)) = self.next_batch(id, bytes, at) {
            if descriptor.offset > at {
                self.suspect(id, at, descriptor.offset - at, Suspicion::Lost);
            }
            self.judge_order(&descriptor)?;
            self.deliver(descriptor, table, found_at, bytes);
            at = descriptor.end_offset();
            if descriptor.flags & FLAG_SEAL != 0 {
                return Ok(SegmentEnd::Sealed);
            }
        }
        Ok(match cut {
            Some(made_bytes) => SegmentEnd::Cut { tail: at, made_bytes },
            None => SegmentEnd::Open { tail: at },
        })
    }

    /// The first descriptor at or after `at` that belongs to a batch at or after `at`, and where it was found.
    fn next_batch<'b>(&self, id: u64, bytes: &'b [u8], at: u64) -> Option<(Descriptor, Table<'b>, u64)> {
        sectors(bytes, at).find_map(|found_at| {
            let (descriptor, table) = Descriptor::decode(&bytes[found_at..], id, self.seed)?;
            let found_at = found_at as u64;
            let in_place = descriptor.offset == found_at || descriptor.copy_offset() == found_at;
            (descriptor.offset >= at && in_place).then_some((descriptor, table, found_at))
        })
    }

    /// Checks that the batch follows the one before; reports what is missing between them.
    fn judge_order(&mut self, descriptor: &Descriptor) -> Result<(), Error> {
        let expected = self.expected;
        let refuse = |what: String| {
            Err(Error::Corrupt { file: segment_name(descriptor.segment), offset: descriptor.offset, what })
        };
        if descriptor.life < expected.life {
            return refuse(format!(
                "batch {} was written before a restart that an earlier batch came after: files of different times are mixed",
                descriptor.batch
            ));
        }
        if expected.batch.is_some_and(|batch| descriptor.batch < batch) || descriptor.first < expected.lsn {
            return refuse(format!(
                "batch {} with position {} stands where position {} is due: files of different times are mixed",
                descriptor.batch, descriptor.first, expected.lsn
            ));
        }
        let follows = match expected.batch {
            Some(batch) => descriptor.batch == batch,
            None => self.suspects.is_empty() && descriptor.first == expected.lsn,
        };
        if follows {
            let chained = expected.previous_crc.is_none_or(|crc| crc == descriptor.previous_crc);
            if !chained || descriptor.first != expected.lsn {
                return refuse(format!(
                    "batch {} was not written after the batch before it here: files of different times are mixed",
                    descriptor.batch
                ));
            }
            // Ids may be skipped; batch numbers are not: nothing is missing.
            self.suspects.clear();
        }
        self.settle_last(Some((descriptor, follows)));
        if !follows {
            if self.suspects.is_empty() {
                self.suspect(descriptor.segment, descriptor.offset, 0, Suspicion::Lost);
            }
            self.report_gap(descriptor.first);
        }
        Ok(())
    }

    /// Everything from the expected position up to `end` is lost, at the places suspected.
    fn report_gap(&mut self, end: Lsn) {
        let first = self.expected.lsn;
        let groups: Vec<(u64, Lsn)> = self.groups.iter().map(|(group, (_, last))| (*group, *last)).collect();
        for Suspect { segment, offset, len, suspicion } in mem::take(&mut self.suspects) {
            let groups = groups.clone();
            let kind = match suspicion {
                Suspicion::Lost => DamageKind::DescriptorLost { first, end, groups },
                Suspicion::Missing { last_segment } => {
                    DamageKind::SegmentMissing { last_segment, first, end, groups }
                }
            };
            self.damage.push(Damage { file: segment_name(segment), segment, offset, len, kind });
        }
        if first < end {
            (self.visit)(Recovered::Gap { first, end });
        }
    }

    /// The end of the log is lost.
    fn leap(&mut self) {
        let end = Lsn(self.expected.lsn.0.saturating_add(LEAP));
        self.report_gap(end);
        self.expected.lsn = end;
        self.expected.batch = self.expected.batch.map(|batch| batch.saturating_add(LEAP));
    }

    fn deliver(&mut self, descriptor: Descriptor, table: Table<'_>, found_at: u64, bytes: &[u8]) {
        let whole = |at: u64| {
            let start = usize::try_from(at).ok()?;
            bytes.get(start..start.checked_add(descriptor.descriptor_bytes as usize)?)
        };
        let copy_damaged = found_at != descriptor.offset
            || whole(descriptor.offset).is_none()
            || whole(descriptor.offset) != whole(descriptor.copy_offset());
        let mut unjudged = Unjudged { descriptor, copy_damaged, lost: Vec::new() };
        let mut start = descriptor.data_offset();
        for (entry, lsn) in table.zip(descriptor.first.0..) {
            let lsn = Lsn(lsn);
            let end = start + u64::from(entry.payload_len);
            let payload = bytes.get(start as usize..end as usize);
            start = end;
            let label = Bytes::copy_from_slice(entry.label);
            let group = entry.group;
            self.groups.entry(group).and_modify(|(_, last)| *last = lsn).or_insert((lsn, lsn));
            match payload.filter(|payload| crc32c::crc32c(payload) == entry.payload_crc) {
                Some(payload) => {
                    self.records += 1;
                    let payload = Bytes::copy_from_slice(payload);
                    (self.visit)(Recovered::Record { group, lsn, label, payload });
                }
                None => {
                    unjudged.lost.push(LostRecord { group, lsn, label: label.clone() });
                    (self.visit)(Recovered::PayloadLost { group, lsn, label });
                }
            }
        }
        self.batches += 1;
        self.segment_first.get_or_insert(descriptor.first);
        self.unjudged = Some(unjudged);
        self.expected = Expected {
            batch: Some(descriptor.batch.saturating_add(1)),
            lsn: descriptor.end_lsn(),
            previous_crc: Some(descriptor.crc),
            life: descriptor.life,
        };
    }

    /// Says what the damage in the last batch means, given the next batch (and whether it follows directly).
    fn settle_last(&mut self, next: Option<(&Descriptor, bool)>) {
        let Some(Unjudged { descriptor, copy_damaged, lost }) = self.unjudged.take() else { return };
        let was_tail = match next {
            None => true,
            Some((next, follows)) => follows && next.flags & FLAG_RESTART != 0,
        };
        let (file, segment) = (segment_name(descriptor.segment), descriptor.segment);
        if !lost.is_empty() {
            let cause = if was_tail { Cause::Suspect } else { Cause::Corrupt };
            self.damage.push(Damage {
                file: file.clone(),
                segment,
                offset: descriptor.data_offset(),
                len: descriptor.data_bytes,
                kind: DamageKind::PayloadLost { cause, records: lost },
            });
        }
        // A crash may well have kept only one descriptor of the last batch.
        if copy_damaged && !was_tail {
            self.damage.push(Damage {
                file,
                segment,
                offset: descriptor.offset,
                len: u64::from(descriptor.descriptor_bytes),
                kind: DamageKind::DescriptorRepaired { batch: descriptor.batch },
            });
        }
    }
}
