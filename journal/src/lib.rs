//! A node's write-ahead log, shared by all its consensus groups.
mod format;
mod segment;

pub mod disk;
pub mod error;
pub mod journal;
pub mod recovery;
pub mod sim;
pub mod snapshot;
pub mod superblock;
pub mod writer;

pub use disk::{Disk, DiskFile, RealDisk};
pub use error::Error;
pub use journal::{Identity, Journal, Lsn, Options, Stats};
pub use recovery::{Cause, Damage, DamageKind, LostRecord, Recovered, Report, TornTail};
pub use sim::SimDisk;
pub use snapshot::{Snapshot, SnapshotId, SnapshotReader, SnapshotWriter};
pub use superblock::{Facts, Superblock};
pub use writer::{Batch, Event, Record, Ticket, Writer, WriterStats};

/// Longest label of a record, in bytes.
pub const LABEL_BYTES_MAX: usize = 64;
/// Longest payload of a record, in bytes: 64 MiB.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 20;
