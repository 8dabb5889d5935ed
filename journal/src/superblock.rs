//! The node's own facts, in two copies.
//!
//! Two files, `superblock-a` and `superblock-b`, each one block:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | `GAIOSSUP` |
//! | 8 | 4 | crc32c of bytes 12 to 63 |
//! | 12 | 4 | format version |
//! | 16 | 8 | sequence: grows with every change |
//! | 24 | 8 | cluster |
//! | 32 | 8 | node |
//! | 40 | 8 | salt |
//! | 48 | 8 | incarnation |
//! | 56 | 8 | flags; bit 0: the journal was made |
//!
//! A change is written to `a` and synced, then to `b` and synced, and has happened when both are. So at any moment one
//! copy is whole, and a single damaged copy never takes back a change that has happened. With both copies damaged the
//! node cannot know what it promised, and must be replaced under a new id.

use crate::{
    disk::{Disk, DiskFile},
    error::Error,
    journal::Identity,
    segment::{self, Kind},
};

const MAGIC: [u8; 8] = *b"GAIOSSUP";
const VERSION: u32 = 1;
const USED_BYTES: usize = 64;
const BLOCK_BYTES: usize = 4096;
const FLAG_JOURNAL_MADE: u64 = 1;
/// In the order of writing.
const COPIES: [&str; 2] = ["superblock-a", "superblock-b"];

/// What a node must never forget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Who it is.
    pub identity: Identity,
    /// Counts starts, from 1; each start is durable before anything leaves the node.
    pub incarnation: u64,
    /// The journal has been made: a start that finds none has lost it.
    pub journal_made: bool,
}

/// The node's facts on disk.
#[derive(Debug)]
pub struct Superblock<D: Disk> {
    disk: D,
    sequence: u64,
    facts: Facts,
    damaged: Option<&'static str>,
}

impl<D: Disk> Superblock<D> {
    /// Reads the facts; `None` when the directory has never had any. A copy that is damaged, missing or older is
    /// written anew from the good one.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when no copy is whole, or none is there beside a journal: the node must be replaced under a
    /// new id. [`Error::Version`], [`Error::Io`].
    pub fn open(disk: D) -> Result<Option<Superblock<D>>, Error> {
        let names = disk.list().map_err(|e| Error::io("list", "the data directory", e))?;
        if COPIES.iter().all(|copy| !names.iter().any(|name| name == copy)) {
            return match names.iter().find(|name| matches!(segment::classify(name), Kind::Segment(_))) {
                None => Ok(None),
                Some(segment) => Err(corrupt(&format!("both copies are gone, and there is {segment}"))),
            };
        }
        let mut found: Option<(u64, Facts)> = None;
        let mut damaged = None;
        let mut stale = false;
        for copy in COPIES {
            match read_copy(&disk, copy)? {
                Some((sequence, facts)) => match found {
                    Some((newest, _)) if newest == sequence => {}
                    Some((newest, _)) if newest > sequence => stale = true,
                    Some(_) | None => {
                        stale |= found.is_some();
                        found = Some((sequence, facts));
                    }
                },
                None => damaged = Some(copy),
            }
        }
        let Some((sequence, facts)) = found else { return Err(corrupt("no copy is whole")) };
        let mut superblock = Superblock { disk, sequence, facts, damaged };
        if damaged.is_some() || stale {
            superblock.store()?;
        }
        Ok(Some(superblock))
    }

    /// Writes the first facts of a new node (incarnation 0, no journal).
    ///
    /// # Errors
    /// [`Error::Corrupt`] when there are some already; [`Error::Io`], [`Error::Full`].
    pub fn create(disk: D, identity: Identity) -> Result<Superblock<D>, Error> {
        let names = disk.list().map_err(|e| Error::io("list", "the data directory", e))?;
        if let Some(copy) = COPIES.iter().find(|copy| names.iter().any(|name| name == *copy)) {
            let what = "the node has been set up before".to_owned();
            return Err(Error::Corrupt { file: (*copy).to_owned(), offset: 0, what });
        }
        let facts = Facts { identity, ..Facts::default() };
        let mut superblock = Superblock { disk, sequence: 0, facts, damaged: None };
        superblock.store()?;
        Ok(superblock)
    }

    /// The facts as they are on disk.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The copy that was found damaged or missing when opened, and written anew: worth a word to the operator.
    #[must_use]
    pub fn repaired(&self) -> Option<&'static str> {
        self.damaged
    }

    /// Counts a start, durably, and returns the new incarnation.
    ///
    /// # Errors
    /// [`Error::Io`]: the start must not go on.
    pub fn begin_incarnation(&mut self) -> Result<u64, Error> {
        self.facts.incarnation += 1;
        self.store()?;
        Ok(self.facts.incarnation)
    }

    /// Notes, durably, that the journal exists. Does nothing when it is noted.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn journal_made(&mut self) -> Result<(), Error> {
        if self.facts.journal_made {
            return Ok(());
        }
        self.facts.journal_made = true;
        self.store()
    }

    fn store(&mut self) -> Result<(), Error> {
        self.sequence += 1;
        let block = encode(self.sequence, &self.facts);
        for copy in COPIES {
            let exists = self.disk.open(copy);
            match exists {
                Ok(mut file) => {
                    file.write_at(&block, 0)
                        .map_err(|e| segment::write_error("write", copy, BLOCK_BYTES as u64, e))?;
                    file.sync_data().map_err(|e| Error::io("sync", copy, e))?;
                }
                // A new copy gets its name when it is whole: a crash leaves it absent, never empty.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => self.create_copy(copy, &block)?,
                Err(e) => return Err(Error::io("open", copy, e)),
            }
        }
        Ok(())
    }

    fn create_copy(&self, copy: &str, block: &[u8]) -> Result<(), Error> {
        let making = format!("making-{copy}");
        match self.disk.remove(&making) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("remove", &making, e)),
        }
        let mut file = self.disk.create(&making).map_err(|e| Error::io("create", &making, e))?;
        file.write_at(block, 0).map_err(|e| segment::write_error("write", &making, BLOCK_BYTES as u64, e))?;
        file.sync_data().map_err(|e| Error::io("sync", &making, e))?;
        self.disk.rename(&making, copy).map_err(|e| Error::io("rename", &making, e))?;
        self.disk.sync_dir().map_err(|e| Error::io("sync the directory of", copy, e))
    }
}

fn corrupt(what: &str) -> Error {
    let what = format!("{what}: the node cannot know what it promised, replace it under a new id");
    Error::Corrupt { file: COPIES[0].to_owned(), offset: 0, what }
}

/// `None` when the copy is missing, unreadable or damaged.
fn read_copy<D: Disk>(disk: &D, copy: &str) -> Result<Option<(u64, Facts)>, Error> {
    let Ok(file) = disk.open(copy) else { return Ok(None) };
    let mut block = [0; USED_BYTES];
    match file.read_at(&mut block, 0) {
        Ok(USED_BYTES) => decode(&block, copy),
        Ok(_) | Err(_) => Ok(None),
    }
}

fn encode(sequence: u64, facts: &Facts) -> Vec<u8> {
    let Facts { identity: Identity { cluster, node, salt }, incarnation, journal_made } = *facts;
    let flags = if journal_made { FLAG_JOURNAL_MADE } else { 0 };
    let mut out = Vec::with_capacity(BLOCK_BYTES);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&VERSION.to_le_bytes());
    for field in [sequence, cluster, node, salt, incarnation, flags] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    let crc = crc32c::crc32c(&out[12..USED_BYTES]);
    out[8..12].copy_from_slice(&crc.to_le_bytes());
    out.resize(BLOCK_BYTES, 0);
    out
}

fn decode(block: &[u8; USED_BYTES], copy: &str) -> Result<Option<(u64, Facts)>, Error> {
    let u32_at = |at: usize| block[at..at + 4].iter().rev().fold(0, |n, byte| n << 8 | u32::from(*byte));
    let u64_at = |at: usize| block[at..at + 8].iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
    if block[..8] != MAGIC || u32_at(8) != crc32c::crc32c(&block[12..]) {
        return Ok(None);
    }
    let found = u32_at(12);
    if found != VERSION {
        return Err(Error::Version { file: copy.to_owned(), offset: 12, found, supported: VERSION });
    }
    let identity = Identity { cluster: u64_at(24), node: u64_at(32), salt: u64_at(40) };
    let journal_made = u64_at(56) & FLAG_JOURNAL_MADE != 0;
    Ok(Some((u64_at(16), Facts { identity, incarnation: u64_at(48), journal_made })))
}
