//! Segment files: their names, and how the next one is made.
//!
//! | name | what it is |
//! |---|---|
//! | `segment-<id>` | part of the log; its header was durable before it got this name |
//! | `spare-<id>` | a recycled segment, kept for its allocated blocks; its bytes are never read |
//! | `making-segment-<id>` | a new file being filled with zeros; removed at start |

use std::io;

use crate::{
    disk::{Disk, DiskFile},
    error::Error,
    format::{HEADER_BYTES, SegmentHeader},
    identity::Identity,
    lsn::Lsn,
};

const SEGMENT_PREFIX: &str = "segment-";
const SPARE_PREFIX: &str = "spare-";
const MAKING_PREFIX: &str = "making-segment-";

/// Ids stay below this, so that counting them cannot overflow: 2^48 segments of 64 MiB are 16 zebibytes.
const SEGMENT_ID_MAX: u64 = 1 << 48;

/// Zeros written to a new segment in one step: some 1 ms of a disk's time, so that a batch waits no longer than that.
const ZERO_STEP_BYTES: u64 = 1 << 20;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Zero bytes for padding.
pub(crate) fn zeros(len: usize) -> &'static [u8] {
    &ZEROS[..len]
}

pub(crate) fn segment_name(id: u64) -> String {
    format!("{SEGMENT_PREFIX}{id:016x}")
}

pub(crate) fn spare_name(id: u64) -> String {
    format!("{SPARE_PREFIX}{id:016x}")
}

/// What a file in the data directory is to the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Segment(u64),
    Spare,
    Making,
    NotOurs,
}

pub(crate) fn classify(name: &str) -> Kind {
    if name.starts_with(MAKING_PREFIX) {
        Kind::Making
    } else if name.starts_with(SPARE_PREFIX) {
        Kind::Spare
    } else if let Some(id) = name.strip_prefix(SEGMENT_PREFIX) {
        match u64::from_str_radix(id, 16) {
            // Only the exact spelling: no sign, no upper case, no missing zeros. Id 0 is never given out.
            Ok(id) if (1..=SEGMENT_ID_MAX).contains(&id) && segment_name(id) == name => Kind::Segment(id),
            Ok(_) | Err(_) => Kind::NotOurs,
        }
    } else {
        Kind::NotOurs
    }
}

/// A segment that holds live records and takes no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) id: u64,
    pub(crate) bytes: u64,
    /// Position of its first record, and the one after its last.
    pub(crate) first: Lsn,
    pub(crate) end: Lsn,
}

/// A segment ready for its first batch.
#[derive(Debug)]
pub(crate) struct Ready<F> {
    pub(crate) id: u64,
    pub(crate) bytes: u64,
    pub(crate) file: F,
}

/// A new segment on its way.
#[derive(Debug)]
pub(crate) struct Making<F> {
    id: u64,
    name: String,
    file: F,
    bytes: u64,
    zeroed: u64,
}

impl<F: DiskFile> Making<F> {
    /// Makes the file and reserves all of its space, so that a full disk shows here and not in the middle of a batch.
    pub(crate) fn begin<D: Disk<File = F>>(disk: &D, id: u64, bytes: u64) -> Result<Making<F>, Error> {
        let name = format!("{MAKING_PREFIX}{id:016x}");
        let full = || Error::Full {
            file: segment_name(id),
            needed_bytes: bytes,
            available_bytes: disk.available_bytes().unwrap_or(0),
        };
        // Asking first leaves a full disk alone; an answer we cannot get is left to the allocation.
        if disk.available_bytes().is_ok_and(|available| available < bytes) {
            return Err(full());
        }
        let created = match disk.create(&name) {
            // Left by an attempt that found the disk full.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                disk.remove(&name).and_then(|()| disk.create(&name))
            }
            created => created,
        };
        let mut file = match created {
            Ok(file) => file,
            Err(e) if is_full(&e) => return Err(full()),
            Err(e) => return Err(Error::io("create", &name, e)),
        };
        match file.allocate(bytes) {
            Ok(()) => Ok(Making { id, name, file, bytes, zeroed: 0 }),
            Err(e) => {
                drop(file);
                let removed = disk.remove(&name);
                if is_full(&e) {
                    removed.map_err(|e| Error::io("remove", &name, e))?;
                    return Err(full());
                }
                Err(Error::io("allocate", &name, e))
            }
        }
    }

    /// Gives the space back.
    pub(crate) fn abandon<D: Disk<File = F>>(self, disk: &D) -> Result<(), Error> {
        drop(self.file);
        disk.remove(&self.name).map_err(|e| Error::io("remove", &self.name, e))
    }

    /// Writes the next stretch of zeros; returns whether all is zeroed. Zeros matter: the first write to a block that
    /// was only allocated costs the file system a journal entry, which the batch's sync would wait for.
    pub(crate) fn step(&mut self) -> Result<bool, Error> {
        let end = self.bytes.min(self.zeroed + ZERO_STEP_BYTES);
        zero_fill(&mut self.file, &self.name, self.zeroed, end)?;
        self.file.sync_data().map_err(|e| Error::io("sync", &self.name, e))?;
        self.zeroed = end;
        Ok(self.zeroed == self.bytes)
    }

    /// Gives the zeroed file its header and its name.
    pub(crate) fn finish<D: Disk<File = F>>(
        mut self,
        disk: &D,
        identity: Identity,
    ) -> Result<Ready<F>, Error> {
        write_header(&mut self.file, &self.name, self.id, self.bytes, identity)?;
        give_name(disk, &self.name, self.id)?;
        Ok(Ready { id: self.id, bytes: self.bytes, file: self.file })
    }
}

/// Turns a spare into the segment `id`. Its old bytes stay: they carry their old segment's id and validate nowhere.
pub(crate) fn adopt_spare<D: Disk>(
    disk: &D,
    spare: &str,
    id: u64,
    bytes: u64,
    identity: Identity,
) -> Result<Ready<D::File>, Error> {
    let mut file = disk.open(spare).map_err(|e| Error::io("open", spare, e))?;
    write_header(&mut file, spare, id, bytes, identity)?;
    give_name(disk, spare, id)?;
    Ok(Ready { id, bytes, file })
}

/// Makes a ready segment longer, for a record that fits no usual one.
pub(crate) fn grow<F: DiskFile>(ready: &mut Ready<F>, bytes: u64, identity: Identity) -> Result<(), Error> {
    let name = segment_name(ready.id);
    ready.file.allocate(bytes).map_err(|e| {
        if is_full(&e) {
            Error::Full { file: name.clone(), needed_bytes: bytes - ready.bytes, available_bytes: 0 }
        } else {
            Error::io("allocate", &name, e)
        }
    })?;
    write_header(&mut ready.file, &name, ready.id, bytes, identity)?;
    ready.bytes = bytes;
    Ok(())
}

/// Writes a header in place; used only where the segment holds no batch.
pub(crate) fn write_header<F: DiskFile>(
    file: &mut F,
    name: &str,
    id: u64,
    bytes: u64,
    identity: Identity,
) -> Result<(), Error> {
    let header = SegmentHeader { segment: id, made_bytes: bytes, identity }.encode();
    file.write_at(&header, 0).map_err(|e| write_error("write the header of", name, HEADER_BYTES, e))?;
    file.sync_data().map_err(|e| Error::io("sync", name, e))
}

fn give_name<D: Disk>(disk: &D, from: &str, id: u64) -> Result<(), Error> {
    disk.rename(from, &segment_name(id)).map_err(|e| Error::io("rename", from, e))?;
    disk.sync_dir().map_err(|e| Error::io("sync the directory of", from, e))
}

fn zero_fill<F: DiskFile>(file: &mut F, name: &str, mut from: u64, to: u64) -> Result<(), Error> {
    while from < to {
        let len = (to - from).min(ZEROS.len() as u64);
        file.write_at(zeros(len as usize), from).map_err(|e| write_error("fill", name, to - from, e))?;
        from += len;
    }
    Ok(())
}

/// An error of a write: a full disk apart from the others. Copy-on-write file systems may find no room for blocks
/// that had been allocated.
pub(crate) fn write_error(action: &'static str, name: &str, needed_bytes: u64, e: io::Error) -> Error {
    if is_full(&e) {
        Error::Full { file: name.to_owned(), needed_bytes, available_bytes: 0 }
    } else {
        Error::io(action, name, e)
    }
}

/// Quotas count as a full disk.
pub(crate) fn is_full(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}
