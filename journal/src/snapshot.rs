//! Snapshot files beside the log.
//!
//! A snapshot is written under a temporary name, slice by slice, each slice with its checksum; then a trailer with the
//! number of slices, their bytes and a digest; then it is synced and gets its name. A file with the name of a snapshot is
//! therefore whole, or damaged since; either is known before a byte of it is handed out.
//!
//! `snapshot-<group>-<slot>` (16 hex digits each), little-endian:
//!
//! | bytes | field |
//! |---|---|
//! | 8 | `GAIOSSNP` |
//! | 4 | crc32c of the rest of the header and the meta bytes |
//! | 4 | format version |
//! | 8, 8 | cluster, node |
//! | 8, 8 | group, slot |
//! | 4 | length of the meta bytes |
//! | 4 | zero |
//! | n | meta bytes |
//! | per slice: 4, 4, n | its length, crc32c of index (8 bytes), length (4 bytes) and data; data |
//! | 4, 4 | `0xffff_ffff`, crc32c of the rest of the trailer |
//! | 8, 8, 4, 4 | number of slices, their bytes together, crc32c over the slices' checksums, zero |

use std::io::{self, IoSlice};

use bytes::Bytes;

use crate::{
    disk::{Disk, DiskFile},
    error::Error,
    identity::Identity,
    segment::{is_full, write_error},
};

/// Longest meta part of a snapshot, in bytes: 1 MiB.
pub const META_BYTES_MAX: usize = 1 << 20;
/// Longest slice of a snapshot, in bytes: 16 MiB.
pub const SLICE_BYTES_MAX: usize = 16 << 20;

const MAGIC: [u8; 8] = *b"GAIOSSNP";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 56;
const SLICE_HEADER_BYTES: usize = 8;
const TRAILER_BYTES: usize = 32;
/// Stands where a slice's length would.
const TRAILER_MARK: u32 = u32::MAX;
/// Synced every so often, so that the end does not flood the disk while the journal waits for it.
const SYNC_EVERY_BYTES: u64 = 4 << 20;
const PREFIX: &str = "snapshot-";
const MAKING_PREFIX: &str = "making-snapshot-";
/// Unfinished files of one id, those included that interrupted writers left.
const UNFINISHED_MAX: u32 = 100;

const _: () = assert!(SLICE_BYTES_MAX < TRAILER_MARK as usize);

/// Which snapshot: one group's state after applying everything up to `slot`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SnapshotId {
    /// The group.
    pub group: u64,
    /// The last slot it covers.
    pub slot: u64,
}

impl SnapshotId {
    fn suffix(self) -> String {
        format!("{:016x}-{:016x}", self.group, self.slot)
    }

    /// The name of its file in the data directory.
    #[must_use]
    pub fn file_name(self) -> String {
        format!("{PREFIX}{}", self.suffix())
    }

    fn parse(name: &str) -> Option<SnapshotId> {
        let (group, slot) = name.strip_prefix(PREFIX)?.split_once('-')?;
        let id = SnapshotId {
            group: u64::from_str_radix(group, 16).ok()?,
            slot: u64::from_str_radix(slot, 16).ok()?,
        };
        (id.file_name() == name).then_some(id)
    }
}

/// Lists and removes snapshot files.
#[derive(Debug)]
pub struct Snapshot;

impl Snapshot {
    /// All finished snapshots, ascending by group and slot. Says nothing about their health.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn list<D: Disk>(disk: &D) -> Result<Vec<SnapshotId>, Error> {
        let names = disk.list().map_err(|e| Error::io("list", "the data directory", e))?;
        let mut ids: Vec<SnapshotId> = names.iter().filter_map(|name| SnapshotId::parse(name)).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// Removes what interrupted writers left. Only at start, before there is a writer.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove_unfinished<D: Disk>(disk: &D) -> Result<(), Error> {
        for name in disk.list().map_err(|e| Error::io("list", "the data directory", e))? {
            if name.starts_with(MAKING_PREFIX) {
                disk.remove(&name).map_err(|e| Error::io("remove", &name, e))?;
            }
        }
        Ok(())
    }

    /// Removes one snapshot.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove<D: Disk>(disk: &D, id: SnapshotId) -> Result<(), Error> {
        let name = id.file_name();
        disk.remove(&name).map_err(|e| Error::io("remove", &name, e))?;
        disk.sync_dir().map_err(|e| Error::io("sync the directory of", &name, e))
    }

    /// Removes the group's snapshots below `keep`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove_older<D: Disk>(disk: &D, keep: SnapshotId) -> Result<(), Error> {
        for id in Snapshot::list(disk)? {
            if id.group == keep.group && id.slot < keep.slot {
                Snapshot::remove(disk, id)?;
            }
        }
        Ok(())
    }
}

/// Writes one snapshot, slice by slice, under a temporary name until [`SnapshotWriter::finish`]. Dropped before that,
/// it removes what it wrote.
#[derive(Debug)]
pub struct SnapshotWriter<D: Disk> {
    disk: D,
    id: SnapshotId,
    making: String,
    file: D::File,
    at: u64,
    synced: u64,
    slices: u64,
    total_bytes: u64,
    digest: u32,
    finished: bool,
}

impl<D: Disk> SnapshotWriter<D> {
    /// Begins a snapshot with the caller's `meta` bytes (at most 1 MiB). Several writers of one id do not disturb each
    /// other: each has a file of its own, and the last one that finishes stays.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Full`], [`Error::TooLarge`].
    pub fn create(
        disk: D,
        identity: Identity,
        id: SnapshotId,
        meta: &[u8],
    ) -> Result<SnapshotWriter<D>, Error> {
        check_len("a snapshot's meta part", meta.len(), META_BYTES_MAX)?;
        let (making, file) = create_unfinished(&disk, id)?;
        let mut writer = SnapshotWriter {
            disk,
            id,
            making,
            file,
            at: 0,
            synced: 0,
            slices: 0,
            total_bytes: 0,
            digest: 0,
            finished: false,
        };
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend_from_slice(&MAGIC);
        header.extend_from_slice(&[0; 4]);
        header.extend_from_slice(&VERSION.to_le_bytes());
        for field in [identity.cluster, identity.node, id.group, id.slot] {
            header.extend_from_slice(&field.to_le_bytes());
        }
        header.extend_from_slice(&(meta.len() as u32).to_le_bytes());
        header.resize(HEADER_BYTES, 0);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&header[12..]), meta);
        header[8..12].copy_from_slice(&crc.to_le_bytes());
        writer.write(&[&header, meta])?;
        Ok(writer)
    }

    /// Appends one slice (at most 16 MiB).
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Full`], [`Error::TooLarge`].
    pub fn slice(&mut self, slice: &[u8]) -> Result<(), Error> {
        check_len("a snapshot's slice", slice.len(), SLICE_BYTES_MAX)?;
        let crc = slice_crc(self.slices, slice);
        self.write(&[&(slice.len() as u32).to_le_bytes(), &crc.to_le_bytes(), slice])?;
        self.slices += 1;
        self.total_bytes += slice.len() as u64;
        self.digest = crc32c::crc32c_append(self.digest, &crc.to_le_bytes());
        if self.at - self.synced >= SYNC_EVERY_BYTES {
            self.sync()?;
        }
        Ok(())
    }

    /// Writes the trailer, syncs, and gives the file its name, replacing one that has it. Durable when this returns.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Full`].
    pub fn finish(mut self) -> Result<(), Error> {
        let trailer = encode_trailer(self.slices, self.total_bytes, self.digest);
        self.write(&[&trailer])?;
        self.sync()?;
        let name = self.id.file_name();
        self.disk.rename(&self.making, &name).map_err(|e| Error::io("rename", &self.making, e))?;
        self.finished = true;
        self.disk.sync_dir().map_err(|e| Error::io("sync the directory of", &name, e))
    }

    fn write(&mut self, pieces: &[&[u8]]) -> Result<(), Error> {
        let len: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        let pieces: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        self.file.write_vectored_at(&pieces, self.at).map_err(|e| {
            if is_full(&e) {
                let available_bytes = self.disk.available_bytes().unwrap_or(0);
                Error::Full { file: self.making.clone(), needed_bytes: len, available_bytes }
            } else {
                Error::io("write", &self.making, e)
            }
        })?;
        self.at += len;
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Error> {
        self.file.sync_data().map_err(|e| Error::io("sync", &self.making, e))?;
        self.synced = self.at;
        Ok(())
    }
}

/// A new file under the first temporary name that is free.
fn create_unfinished<D: Disk>(disk: &D, id: SnapshotId) -> Result<(String, D::File), Error> {
    let mut number = 0;
    loop {
        let making = format!("{MAKING_PREFIX}{}-{number}", id.suffix());
        match disk.create(&making) {
            Ok(file) => return Ok((making, file)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && number < UNFINISHED_MAX => number += 1,
            Err(e) => return Err(write_error("create", &making, HEADER_BYTES as u64, e)),
        }
    }
}

impl<D: Disk> Drop for SnapshotWriter<D> {
    fn drop(&mut self) {
        if !self.finished {
            // What stays is removed at the next start.
            drop(self.disk.remove(&self.making));
        }
    }
}

/// Reads one snapshot. The whole file is verified when it is opened, before a byte of it is handed out.
#[derive(Debug)]
pub struct SnapshotReader<D: Disk> {
    name: String,
    file: D::File,
    meta: Bytes,
    /// Where each slice's data begins in the file, and its length.
    slices: Vec<(u64, u32)>,
    total_bytes: u64,
}

impl<D: Disk> SnapshotReader<D> {
    /// Opens and verifies.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Version`], [`Error::Foreign`], [`Error::Io`].
    pub fn open(disk: &D, identity: Identity, id: SnapshotId) -> Result<SnapshotReader<D>, Error> {
        let name = id.file_name();
        let file = disk.open(&name).map_err(|e| Error::io("open", &name, e))?;
        let len = file.len().map_err(|e| Error::io("measure", &name, e))?;
        let mut reader =
            SnapshotReader { name, file, meta: Bytes::new(), slices: Vec::new(), total_bytes: 0 };
        let mut at = reader.verify_header(identity, id, len)?;
        let mut buffer = Vec::new();
        let mut digest = 0;
        loop {
            let mut head = [0; SLICE_HEADER_BYTES];
            reader.read_exact(&mut head, at)?;
            let (slice_len, crc) = (u32_at(&head, 0), u32_at(&head, 4));
            if slice_len == TRAILER_MARK {
                let mut trailer = [0; TRAILER_BYTES];
                reader.read_exact(&mut trailer, at)?;
                if trailer != encode_trailer(reader.slices.len() as u64, reader.total_bytes, digest) {
                    return Err(reader.corrupt(at, "the trailer does not match the slices"));
                }
                if at + TRAILER_BYTES as u64 != len {
                    return Err(
                        reader.corrupt(at + TRAILER_BYTES as u64, "there are bytes after the trailer")
                    );
                }
                return Ok(reader);
            }
            let data_at = at + SLICE_HEADER_BYTES as u64;
            // Bounded by the file before anything is allocated.
            if slice_len as usize > SLICE_BYTES_MAX || data_at + u64::from(slice_len) > len {
                return Err(reader.corrupt(at, "a slice's length is damaged"));
            }
            buffer.resize(slice_len as usize, 0);
            reader.read_exact(&mut buffer, data_at)?;
            if crc != slice_crc(reader.slices.len() as u64, &buffer) {
                return Err(reader.corrupt(at, "a slice is damaged"));
            }
            digest = crc32c::crc32c_append(digest, &crc.to_le_bytes());
            reader.slices.push((data_at, slice_len));
            reader.total_bytes += u64::from(slice_len);
            at = data_at + u64::from(slice_len);
        }
    }

    /// The caller's bytes given to [`SnapshotWriter::create`].
    #[must_use]
    pub fn meta(&self) -> &Bytes {
        &self.meta
    }

    /// Number of slices.
    #[must_use]
    pub fn slices(&self) -> u64 {
        self.slices.len() as u64
    }

    /// Bytes of all slices together.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// The slice of that index (from 0), read and verified again; `None` past the end.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Io`].
    pub fn slice(&self, index: u64) -> Result<Option<Bytes>, Error> {
        let Some((at, len)) = usize::try_from(index).ok().and_then(|index| self.slices.get(index)) else {
            return Ok(None);
        };
        let head_at = at - SLICE_HEADER_BYTES as u64;
        let mut head = [0; SLICE_HEADER_BYTES];
        self.read_exact(&mut head, head_at)?;
        let mut slice = vec![0; *len as usize];
        self.read_exact(&mut slice, *at)?;
        if u32_at(&head, 0) != *len || u32_at(&head, 4) != slice_crc(index, &slice) {
            return Err(self.corrupt(head_at, "a slice was damaged after it had been verified"));
        }
        Ok(Some(Bytes::from(slice)))
    }

    fn verify_header(&mut self, identity: Identity, id: SnapshotId, len: u64) -> Result<u64, Error> {
        let mut header = [0; HEADER_BYTES];
        self.read_exact(&mut header, 0)?;
        if header[..8] != MAGIC {
            return Err(self.corrupt(0, "this is not a snapshot, or its first bytes are damaged"));
        }
        let meta_len = u32_at(&header, 48) as usize;
        let meta_end = (HEADER_BYTES + meta_len.min(META_BYTES_MAX)) as u64;
        if meta_len > META_BYTES_MAX || meta_end > len {
            return Err(self.corrupt(48, "the length of the meta part is damaged"));
        }
        let mut meta = vec![0; meta_len];
        self.read_exact(&mut meta, HEADER_BYTES as u64)?;
        if u32_at(&header, 8) != crc32c::crc32c_append(crc32c::crc32c(&header[12..]), &meta) {
            return Err(self.corrupt(8, "the header or the meta part is damaged"));
        }
        let found = u32_at(&header, 12);
        if found != VERSION {
            return Err(Error::Version { file: self.name.clone(), offset: 12, found, supported: VERSION });
        }
        let owner = Identity { cluster: u64_at(&header, 16), node: u64_at(&header, 24), salt: identity.salt };
        if owner != identity {
            return Err(Error::Foreign {
                file: self.name.clone(),
                offset: 16,
                found: owner,
                expected: identity,
            });
        }
        let held = SnapshotId { group: u64_at(&header, 32), slot: u64_at(&header, 40) };
        if held != id {
            return Err(self.corrupt(32, &format!("the file holds {}", held.file_name())));
        }
        self.meta = Bytes::from(meta);
        Ok(meta_end)
    }

    fn read_exact(&self, buf: &mut [u8], at: u64) -> Result<(), Error> {
        let n = self.file.read_at(buf, at).map_err(|e| Error::io("read", &self.name, e))?;
        if n < buf.len() { Err(self.corrupt(at + n as u64, "the file ends too early")) } else { Ok(()) }
    }

    fn corrupt(&self, offset: u64, what: &str) -> Error {
        Error::Corrupt { file: self.name.clone(), offset, what: what.to_owned() }
    }
}

fn check_len(what: &'static str, len: usize, max: usize) -> Result<(), Error> {
    if len > max {
        return Err(Error::TooLarge { what, len: len as u64, max: max as u64 });
    }
    Ok(())
}

/// The index is part of it, so that slices cannot trade places.
fn slice_crc(index: u64, slice: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&index.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &(slice.len() as u32).to_le_bytes());
    crc32c::crc32c_append(crc, slice)
}

fn encode_trailer(slices: u64, total_bytes: u64, digest: u32) -> [u8; TRAILER_BYTES] {
    let mut out = [0; TRAILER_BYTES];
    out[..4].copy_from_slice(&TRAILER_MARK.to_le_bytes());
    out[8..16].copy_from_slice(&slices.to_le_bytes());
    out[16..24].copy_from_slice(&total_bytes.to_le_bytes());
    out[24..28].copy_from_slice(&digest.to_le_bytes());
    let crc = crc32c::crc32c(&out[8..]);
    out[4..8].copy_from_slice(&crc.to_le_bytes());
    out
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |n, byte| n << 8 | u32::from(*byte))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte))
}
