//! The node's own facts, in two copies.
//!
//! Two files, `superblock-a` and `superblock-b`, each one block:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | `GAIOSSUP` |
//! | 8 | 4 | crc32c of bytes 12 to 4095 |
//! | 12 | 4 | format version |
//! | 16 | 8 | sequence: grows with every change |
//! | 24 | 8 | cluster |
//! | 32 | 8 | node |
//! | 40 | 8 | salt |
//! | 48 | 8 | incarnation |
//! | 56 | 4 | flags; 1: the journal was made; 2: the node has its place; 4: it returned without its memory; 8: it is an old copy; 16: it may be one |
//! | 60 | 4 | support, in milliseconds; 0: not known |
//! | 64 | 8 | mark |
//! | 72 | 8 | length of the roll |
//! | 80 | 16 each | the roll: node, mark |
//! | 4080 | 16 | where flag 16 is set, who says so: node, number of its process |
//!
//! A change is written to `a` and synced, then to `b` and synced, and has happened when both are. So at any moment one
//! copy is whole, and a single damaged copy never takes back a change that has happened. With both copies damaged the
//! node cannot know what it promised. It has to begin with an empty directory, and the other nodes tell it what it needs.

use std::time::Duration;

use crate::{
    disk::{Disk, DiskFile},
    error::{Error, is_out_of_descriptors},
    identity::Identity,
    segment::{self, Kind},
};

const MAGIC: [u8; 8] = *b"GAIOSSUP";
const VERSION: u32 = 2;
/// It knew neither marks nor places: whoever had a directory took part. The rest of its block was zero.
const FIRST_VERSION: u32 = 1;
const FIRST_VERSION_BYTES: usize = 64;
const BLOCK_BYTES: usize = 4096;
const FLAG_JOURNAL_MADE: u64 = 1;
const FLAG_PLACED: u64 = 2;
const FLAG_RETURNED: u64 = 4;
const FLAG_REVOKED: u64 = 8;
const FLAG_DOUBTED: u64 = 16;
const FLAG_SURVIVOR: u64 = 32;
/// The support lies above the flags.
const SUPPORT_SHIFT: u32 = 32;
const ROLL_AT: usize = 80;
const DOUBT_AT: usize = BLOCK_BYTES - 16;
/// Longest roll that is kept.
const ROLL_MAX: usize = (DOUBT_AT - ROLL_AT) / 16;
/// In the order of writing.
const COPIES: [&str; 2] = ["superblock-a", "superblock-b"];

/// What an operator can do for a node whose directory is of no more use.
pub const EMPTY_IT: &str =
    "empty its data directory: it begins anew with what the other nodes know, once all of them are up";

/// What a node must never forget.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Who it is.
    pub identity: Identity,
    /// Counts starts, from 1; each start is durable before anything leaves the node.
    pub incarnation: u64,
    /// The journal has been made: a start that finds none has lost it.
    pub journal_made: bool,
    /// A random number drawn when the directory was made, by which other nodes tell it from a later one.
    pub mark: u64,
    /// The node has taken its place in the cluster.
    pub placed: bool,
    /// It did so without its memory, and groups without a record in the journal have lost what they had.
    pub returned: bool,
    /// Others have heard of a later incarnation of this node than any in this directory: it has forgotten what it did since.
    pub revoked: bool,
    /// Another node says so, and it is not known yet whether that is true: the node, and the number of its process.
    pub doubt: Option<(u64, u64)>,
    /// The operator has declared that what this directory holds is what there is, and its groups have not come to use that
    /// yet.
    pub survivor: bool,
    /// The longest support that this incarnation gives, or one before it gave that may not be over; zero where that is not
    /// known.
    pub support: Duration,
    /// Nodes that had no place either when this one took its own, and the marks of their directories. Whoever is not
    /// among the first 250 is taken for one that returns, which is safe.
    pub roll: Vec<(u64, u64)>,
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
    /// [`Error::Corrupt`] when no copy is whole, or none is there beside a journal: the directory must be emptied.
    /// [`Error::Version`], [`Error::Io`].
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

    /// Writes the first facts of a new node (incarnation 0, no journal, no place).
    ///
    /// # Errors
    /// [`Error::Corrupt`] when there are some already; [`Error::Io`], [`Error::Full`].
    pub fn create(disk: D, identity: Identity, mark: u64) -> Result<Superblock<D>, Error> {
        let names = disk.list().map_err(|e| Error::io("list", "the data directory", e))?;
        if let Some(copy) = COPIES.iter().find(|copy| names.iter().any(|name| name == *copy)) {
            let what = "the node has been set up before".to_owned();
            return Err(Error::Corrupt { file: (*copy).to_owned(), offset: 0, what });
        }
        let facts = Facts { identity, mark, ..Facts::default() };
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

    /// Counts a start, durably, of an incarnation that gives support for so long, and returns the new incarnation.
    ///
    /// # Errors
    /// [`Error::Io`]: the start must not go on.
    pub fn begin_incarnation(&mut self, support: Duration) -> Result<u64, Error> {
        self.facts.incarnation += 1;
        self.facts.support = self.facts.support.max(as_kept(support));
        self.store()?;
        Ok(self.facts.incarnation)
    }

    /// Notes, durably, that support of incarnations before is over, and this incarnation gives it for so long.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn lower_support(&mut self, support: Duration) -> Result<(), Error> {
        self.facts.support = as_kept(support);
        self.store()
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

    /// Notes, durably, that the node has taken its place, with this roll. One that returns without its memory begins an
    /// incarnation under the number given.
    ///
    /// # Errors
    /// [`Error::Io`]: the node must not take part.
    pub fn take_place(&mut self, mut roll: Vec<(u64, u64)>, returned_as: Option<u64>) -> Result<(), Error> {
        roll.truncate(ROLL_MAX);
        self.facts.roll = roll;
        self.facts.placed = true;
        self.facts.returned = returned_as.is_some();
        self.facts.incarnation = self.facts.incarnation.max(returned_as.unwrap_or_default());
        self.store()
    }

    /// Notes, durably, that what a returned node has lost stands in the journal of every group.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn settle(&mut self) -> Result<(), Error> {
        self.facts.returned = false;
        self.store()
    }

    /// Notes, durably, who says that the directory is an old copy, or that nobody does.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn doubt(&mut self, by: Option<(u64, u64)>) -> Result<(), Error> {
        self.facts.doubt = by;
        self.store()
    }

    /// Notes, durably, that the directory is an old copy and may not be used any more.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn revoke(&mut self) -> Result<(), Error> {
        self.facts.revoked = true;
        self.store()
    }

    /// Notes, durably, whether what this directory holds is declared to be what there is.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn declare_survivor(&mut self, survivor: bool) -> Result<(), Error> {
        self.facts.survivor = survivor;
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
    let what = format!("{what}: the node cannot know what it promised; {EMPTY_IT}");
    Error::Corrupt { file: COPIES[0].to_owned(), offset: 0, what }
}

/// `None` when the copy is missing, unreadable or damaged.
fn read_copy<D: Disk>(disk: &D, copy: &str) -> Result<Option<(u64, Facts)>, Error> {
    let file = match disk.open(copy) {
        Ok(file) => file,
        // It is not to blame.
        Err(e) if is_out_of_descriptors(&e) => return Err(Error::io("open", copy, e)),
        Err(_) => return Ok(None),
    };
    let mut block = [0; BLOCK_BYTES];
    match file.read_at(&mut block, 0) {
        Ok(BLOCK_BYTES) => decode(&block, copy),
        Ok(_) | Err(_) => Ok(None),
    }
}

/// In milliseconds: rounded up, 49 days at most.
fn millis(support: Duration) -> u32 {
    u32::try_from(support.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX)
}

fn as_kept(support: Duration) -> Duration {
    Duration::from_millis(millis(support).into())
}

fn encode(sequence: u64, facts: &Facts) -> Vec<u8> {
    let Facts {
        identity,
        incarnation,
        journal_made,
        mark,
        placed,
        returned,
        revoked,
        doubt,
        survivor,
        support,
        roll,
    } = facts;
    let flag = |set: bool, flag: u64| if set { flag } else { 0 };
    let flags = flag(*journal_made, FLAG_JOURNAL_MADE)
        | flag(*placed, FLAG_PLACED)
        | flag(*returned, FLAG_RETURNED)
        | flag(*revoked, FLAG_REVOKED)
        | flag(doubt.is_some(), FLAG_DOUBTED)
        | flag(*survivor, FLAG_SURVIVOR)
        | u64::from(millis(*support)) << SUPPORT_SHIFT;
    let Identity { cluster, node, salt } = *identity;
    let mut out = Vec::with_capacity(BLOCK_BYTES);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&VERSION.to_le_bytes());
    for field in [sequence, cluster, node, salt, *incarnation, flags, *mark, roll.len() as u64] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    for field in roll.iter().flat_map(|(node, mark)| [node, mark]) {
        out.extend_from_slice(&field.to_le_bytes());
    }
    out.resize(DOUBT_AT, 0);
    let (node, process) = doubt.unwrap_or_default();
    out.extend_from_slice(&node.to_le_bytes());
    out.extend_from_slice(&process.to_le_bytes());
    let crc = crc32c::crc32c(&out[12..]);
    out[8..12].copy_from_slice(&crc.to_le_bytes());
    out
}

fn decode(block: &[u8; BLOCK_BYTES], copy: &str) -> Result<Option<(u64, Facts)>, Error> {
    let u32_at = |at: usize| block[at..at + 4].iter().rev().fold(0, |n, byte| n << 8 | u32::from(*byte));
    let u64_at = |at: usize| block[at..at + 8].iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
    if block[..8] != MAGIC {
        return Ok(None);
    }
    let found = u32_at(12);
    let checked = if found == FIRST_VERSION { FIRST_VERSION_BYTES } else { BLOCK_BYTES };
    if u32_at(8) != crc32c::crc32c(&block[12..checked]) {
        return Ok(None);
    }
    if found != VERSION && found != FIRST_VERSION {
        return Err(Error::Version { file: copy.to_owned(), offset: 12, found, supported: VERSION });
    }
    let flags = u64_at(56);
    let mut facts = Facts {
        identity: Identity { cluster: u64_at(24), node: u64_at(32), salt: u64_at(40) },
        incarnation: u64_at(48),
        journal_made: flags & FLAG_JOURNAL_MADE != 0,
        placed: true,
        ..Facts::default()
    };
    if found == VERSION {
        let roll = usize::try_from(u64_at(72)).unwrap_or(ROLL_MAX).min(ROLL_MAX);
        facts.mark = u64_at(64);
        facts.placed = flags & FLAG_PLACED != 0;
        facts.returned = flags & FLAG_RETURNED != 0;
        facts.revoked = flags & FLAG_REVOKED != 0;
        facts.doubt = (flags & FLAG_DOUBTED != 0).then(|| (u64_at(DOUBT_AT), u64_at(DOUBT_AT + 8)));
        facts.survivor = flags & FLAG_SURVIVOR != 0;
        facts.support = Duration::from_millis(flags >> SUPPORT_SHIFT);
        facts.roll = (0..roll).map(|n| (u64_at(ROLL_AT + 16 * n), u64_at(ROLL_AT + 16 * n + 8))).collect();
    }
    Ok(Some((u64_at(16), facts)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_a_directory_of_the_first_version_has_a_place() {
        let facts = Facts { incarnation: 3, journal_made: true, ..Facts::default() };
        // What is behind its checksum counts for nothing.
        let mut block: [u8; BLOCK_BYTES] =
            encode(9, &Facts { mark: 5, roll: vec![(1, 2)], ..facts.clone() }).try_into().unwrap();
        block[12..16].copy_from_slice(&1_u32.to_le_bytes());
        let crc = crc32c::crc32c(&block[12..64]);
        block[8..12].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode(&block, "a").unwrap(), Some((9, Facts { placed: true, ..facts })));
    }

    #[test]
    fn a_roll_fills_the_block_and_no_more() {
        let roll: Vec<(u64, u64)> = (0..ROLL_MAX as u64).map(|node| (node, !node)).collect();
        let support = Duration::from_millis(u32::MAX.into());
        let facts = Facts { placed: true, doubt: Some((2, !2)), support, roll, ..Facts::default() };
        let block: [u8; BLOCK_BYTES] = encode(1, &facts).try_into().unwrap();
        assert_eq!(decode(&block, "a").unwrap(), Some((1, facts)));
    }
}
