//! A node's write-ahead log, shared by all its consensus groups, and the files beside it.
//!
//! The engine of a group decides what must be durable before a message leaves; this crate makes it durable, for all groups
//! with one write and one `fdatasync`, and after a restart tells what is there, and exactly what is not.
//! It is **not** a store: it knows neither slots nor ballots, has no index, and is read only when the node starts. What it
//! knows of a record is its group, its position ([`Lsn`]), a label of at most 64 bytes (in which the engine puts slot, ballot
//! and value id), and its payload.
//!
//! | file | what is in it |
//! |---|---|
//! | [`journal`] | the log: staging, batches, floors, recycling |
//! | [`writer`] | the thread that owns it: group commit |
//! | [`recovery`] | what a restart finds, and the verdicts |
//! | `format`, `segment` | bytes; segment files |
//! | [`superblock`], [`snapshot`] | the node's own facts; snapshot files beside the log |
//! | [`disk`], [`sim`] | the disk as all of these see it; the real one and the simulated one |
//!
//! # Files
//!
//! The log is a row of segment files, `segment-<id>` with the id in 16 hex digits, made in full length ahead of need (space
//! reserved, zeros written, header durable, only then named) and recycled when no group needs a record in them. Ids are never
//! given out twice. All numbers are little-endian.
//!
//! ## Segment header: the first 4096 bytes
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | `GAIOSSEG` |
//! | 8 | 4 | crc32c of bytes 12 to 63 |
//! | 12 | 4 | format version |
//! | 16 | 8 | segment id |
//! | 24 | 8 | cluster |
//! | 32 | 8 | node |
//! | 40 | 8 | length the file was made with |
//! | 48 | 4 | owner: crc32c of cluster, node and salt (8 bytes each) |
//! | 52 | 12 | zero |
//!
//! Magic, checksum and version stay in place in every later version. A damaged header costs nothing: batches identify
//! themselves.
//!
//! ## Batch
//!
//! A batch begins at a multiple of 4096, so writing it never touches a page that holds synced bytes of another:
//!
//! ```text
//! descriptor | payloads, one after the other | to the next 512 | the same descriptor again | to the next 4096
//! ```
//!
//! The two descriptors never share a sector with each other. One of them is enough.
//!
//! | offset | bytes | field of a descriptor |
//! |---|---|---|
//! | 0 | 8 | `GAIOSBAT` |
//! | 8 | 4 | crc32c of the rest of the descriptor, begun with the owner's number |
//! | 12 | 4 | length of the descriptor |
//! | 16 | 8 | segment id: bytes of a recycled segment never validate |
//! | 24 | 8 | where the batch begins in the file |
//! | 32 | 8 | batch number: dense, from 1 |
//! | 40 | 8 | position of the first record |
//! | 48 | 8 | life: counts the starts that wrote something |
//! | 56 | 8 | the oldest segment still needed: earlier files may be gone, later ones may not |
//! | 64 | 8 | the first position in that segment |
//! | 72 | 8 | bytes of all payloads |
//! | 80 | 4 | number of records |
//! | 84 | 4 | checksum of the previous batch's descriptor: the chain |
//! | 88 | 4 | flags: 1 seal (the log goes on in the next segment), 2 first batch after a start |
//! | 92 | 4 | format version |
//! | 96 | | per record: group (8), payload length (4), crc32c of the payload (4), label length (1), label |
//!
//! # The order of writes, and why verdicts are possible
//!
//! 1. No batch is written before the one before it is synced. So a batch that validates proves that all before it had
//!    been synced, and may have been acknowledged; only the very last one may be torn.
//! 2. A segment ends with a *seal*, a batch without records, which is synced before the next segment's first batch is
//!    written; the next segment's file was durable before the seal. So a log whose last file is missing does not look
//!    complete.
//! 3. A segment is recycled after a batch that names a younger one as the oldest needed is durable. So a file missing at the
//!    beginning is told from one that was recycled.
//!
//! | payload | descriptor | later valid batch | verdict | what a restart delivers |
//! |---|---|---|---|---|
//! | good | one copy or both | any | accepted | [`Recovered::Record`] |
//! | bad | one copy or both | no | suspect: perhaps torn, perhaps acknowledged | [`Recovered::PayloadLost`], [`Cause::Suspect`] |
//! | bad | one copy or both | yes | corruption of acknowledged data | [`Recovered::PayloadLost`], [`Cause::Corrupt`] |
//! | any | none | no | torn, never acknowledged: discarded | nothing; [`Report::torn_tail`] if there is a trace |
//! | any | none | yes | corruption of acknowledged data | [`Recovered::Gap`], [`DamageKind::DescriptorLost`] |
//!
//! Verdicts fall record by record within a batch. A missing file is a gap, and so is the end of the log when its file is
//! missing or cut; positions then leap ahead ([`recovery::LEAP`]), so none is given out twice. Every verdict stays the same
//! over any number of restarts, until the segment is recycled. Files that contradict each other in a way no crash and no
//! damaged sector explains (exchanged, copied from elsewhere, of another node or version) are refused, with file and offset.
//!
//! # What is never done
//!
//! - A sync is never tried again after it failed: the journal is fenced, and the process must read back what the disk holds
//!   (past the system's cache).
//! - Acknowledged records are never cut off, skipped or made up in silence.
//! - A record is never delivered with other bytes, another group or another position than it was appended with.
//! - Nothing is allocated on the word of a length that was read, beyond the file's own size.
//! - A batch is never written in part because the disk is full: its segment's space is there before, and a batch that fails
//!   for want of space does not count.
//! - Damaged segments are never rewritten or removed before every group's floor has passed them.
//!
//! # What cannot be known
//!
//! When *both* descriptors of the last batch are destroyed after it was acknowledged (two sectors, or the end of a log in
//! several places), it looks like one that was torn by a crash. When the whole directory is replaced by an older copy of
//! itself, it looks like a log that ends earlier. The superblock's incarnation and the node's peers are the defence there.

mod format;
mod segment;

pub mod disk;
pub mod error;
mod identity;
mod journal;
mod lsn;
mod options;
pub mod recovery;
pub mod sim;
pub mod snapshot;
pub mod superblock;
pub mod writer;

pub use disk::{Disk, DiskFile, RealDisk};
pub use error::Error;
pub use identity::Identity;
pub use journal::{Journal, Stats};
pub use lsn::Lsn;
pub use options::Options;
pub use recovery::{Cause, Damage, DamageKind, LostRecord, Recovered, Report, TornTail};
pub use sim::SimDisk;
pub use snapshot::{Snapshot, SnapshotId, SnapshotReader, SnapshotWriter};
pub use superblock::{EMPTY_IT, Facts, Superblock};
pub use writer::{BACKLOG_BYTES_CROWDED, Batch, Event, Record, Ticket, Writer, WriterStats};

/// Longest label of a record, in bytes.
pub const LABEL_BYTES_MAX: usize = 64;
/// Longest payload of a record, in bytes: 64 MiB.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 20;
