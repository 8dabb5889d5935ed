//! What a restart finds, and how damage is judged.

use bytes::Bytes;

use crate::Lsn;

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
        /// The first position after the gap, when a later batch tells.
        end: Option<Lsn>,
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
    /// Bytes read.
    pub bytes_read: u64,
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
    /// The last batch before a crash: perhaps never acknowledged, perhaps damaged later.
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
        /// The first position after it, when a later batch tells.
        end: Option<Lsn>,
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
    /// The segment's file is gone.
    SegmentMissing {
        /// The first position lost.
        first: Lsn,
        /// The first position after it, when a later batch tells.
        end: Option<Lsn>,
        /// As in [`DamageKind::DescriptorLost`].
        groups: Vec<(u64, Lsn)>,
    },
    /// The segment's file is shorter than it was made.
    SegmentCut {
        /// Length it was made with, in bytes.
        made_bytes: u64,
    },
    /// The disk refused to read this range; it is judged as if it held zeros.
    Unreadable,
}
