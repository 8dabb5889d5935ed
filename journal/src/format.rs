//! Bytes on disk: the segment header and the batch descriptor, encoded and decoded. The layout is described in the
//! head of the crate.

use crate::{LABEL_BYTES_MAX, PAYLOAD_BYTES_MAX, identity::Identity, lsn::Lsn};

/// Version of the format that this program reads and writes.
pub(crate) const VERSION: u32 = 1;
/// Batches begin at multiples of this: two batches never share a page, so writing one never touches synced bytes of
/// another, and a page that is not cached need not be read before it is written.
pub(crate) const ALIGN: u64 = 4096;
/// The second copy of a descriptor begins at a multiple of this, so that no single lost sector takes both.
pub(crate) const SECTOR: u64 = 512;
/// Bytes of a segment before its first batch.
pub(crate) const HEADER_BYTES: u64 = ALIGN;
/// Bytes of a descriptor before its record table.
pub(crate) const DESCRIPTOR_FIXED_BYTES: usize = 96;
/// Bytes of an entry of the record table before its label.
pub(crate) const ENTRY_FIXED_BYTES: usize = 17;

const SEGMENT_MAGIC: [u8; 8] = *b"GAIOSSEG";
const BATCH_MAGIC: [u8; 8] = *b"GAIOSBAT";
const SEGMENT_HEADER_USED: usize = 64;

// One sector must hold the fixed part of a descriptor, or a torn write could mix two.
const _: () = assert!(DESCRIPTOR_FIXED_BYTES as u64 <= SECTOR);
const _: () = assert!(SEGMENT_HEADER_USED as u64 <= SECTOR);
const _: () = assert!(LABEL_BYTES_MAX <= u8::MAX as usize && PAYLOAD_BYTES_MAX <= u32::MAX as usize);

/// Batch numbers, positions and lives stay below this: 146,000 years at a million a second.
const NUMBER_MAX: u64 = 1 << 62;

/// The batch is the last of its segment; the log goes on in the segment with the next id.
pub(crate) const FLAG_SEAL: u32 = 1;
/// The batch is the first after a start: the one before it was the tail which that start judged.
pub(crate) const FLAG_RESTART: u32 = 2;

/// The smallest multiple of `to` that is at least `n`; `None` past the end of `u64`.
pub(crate) fn round_up(n: u64, to: u64) -> Option<u64> {
    n.checked_next_multiple_of(to)
}

/// Start value of the checksums of an owner's descriptors.
pub(crate) fn seed(identity: &Identity) -> u32 {
    let mut bytes = [0; 24];
    bytes[..8].copy_from_slice(&identity.cluster.to_le_bytes());
    bytes[8..16].copy_from_slice(&identity.node.to_le_bytes());
    bytes[16..].copy_from_slice(&identity.salt.to_le_bytes());
    crc32c::crc32c(&bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// First block of a segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) segment: u64,
    /// Length the file was made with, in bytes.
    pub(crate) made_bytes: u64,
    pub(crate) identity: Identity,
}

/// What the first block of a file turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderVerdict {
    Good(SegmentHeader),
    /// A whole header of a version we do not read.
    Version(u32),
    /// A whole header of another owner. Its salt is not in the file.
    Foreign(SegmentHeader),
    Damaged,
}

impl SegmentHeader {
    /// The header block, [`HEADER_BYTES`] long.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES as usize);
        out.extend_from_slice(&SEGMENT_MAGIC);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.segment.to_le_bytes());
        out.extend_from_slice(&self.identity.cluster.to_le_bytes());
        out.extend_from_slice(&self.identity.node.to_le_bytes());
        out.extend_from_slice(&self.made_bytes.to_le_bytes());
        out.extend_from_slice(&seed(&self.identity).to_le_bytes());
        out.resize(SEGMENT_HEADER_USED, 0);
        let crc = crc32c::crc32c(&out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out.resize(HEADER_BYTES as usize, 0);
        out
    }

    pub(crate) fn decode(block: &[u8], expected: &Identity) -> HeaderVerdict {
        Self::parse(block, expected).unwrap_or(HeaderVerdict::Damaged)
    }

    fn parse(block: &[u8], expected: &Identity) -> Option<HeaderVerdict> {
        let used = block.get(..SEGMENT_HEADER_USED)?;
        if used[..8] != SEGMENT_MAGIC || u32_at(used, 8)? != crc32c::crc32c(&used[12..]) {
            return None;
        }
        let version = u32_at(used, 12)?;
        if version != VERSION {
            return Some(HeaderVerdict::Version(version));
        }
        let (cluster, node) = (u64_at(used, 24)?, u64_at(used, 32)?);
        let header = SegmentHeader {
            segment: u64_at(used, 16)?,
            made_bytes: u64_at(used, 40)?,
            identity: Identity { cluster, node, salt: expected.salt },
        };
        if header.identity != *expected || u32_at(used, 48)? != seed(expected) {
            return Some(HeaderVerdict::Foreign(header));
        }
        Some(HeaderVerdict::Good(header))
    }
}

/// One entry of a descriptor's record table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    pub(crate) group: u64,
    pub(crate) payload_len: u32,
    pub(crate) payload_crc: u32,
    pub(crate) label: &'a [u8],
}

/// A descriptor's fixed part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Descriptor {
    /// Id of the segment the batch was written to.
    pub(crate) segment: u64,
    /// Where the batch begins in the file: the first copy of the descriptor.
    pub(crate) offset: u64,
    /// Number of the batch: dense, from 1.
    pub(crate) batch: u64,
    /// Position of its first record.
    pub(crate) first: Lsn,
    /// Counts the starts that wrote something.
    pub(crate) life: u64,
    /// The oldest segment still needed when the batch was written: earlier ones may be gone, later ones may not.
    pub(crate) oldest_segment: u64,
    /// First position in that segment.
    pub(crate) oldest: Lsn,
    /// Bytes of all payloads.
    pub(crate) data_bytes: u64,
    /// Number of records.
    pub(crate) count: u32,
    /// Checksum of the previous batch's descriptor.
    pub(crate) previous_crc: u32,
    pub(crate) flags: u32,
    /// Length of the descriptor with its record table. Set by decoding and by [`Descriptor::seal`].
    pub(crate) descriptor_bytes: u32,
    /// Checksum. Set by decoding and by [`Descriptor::seal`].
    pub(crate) crc: u32,
}

impl Descriptor {
    /// Position after its last record.
    pub(crate) fn end_lsn(&self) -> Lsn {
        Lsn(self.first.0.saturating_add(u64::from(self.count)))
    }

    /// Where its payloads begin in the file.
    pub(crate) fn data_offset(&self) -> u64 {
        self.offset + u64::from(self.descriptor_bytes)
    }

    /// Where the second copy of the descriptor begins in the file.
    pub(crate) fn copy_offset(&self) -> u64 {
        layout(self.offset, u64::from(self.descriptor_bytes), self.data_bytes)
            .map_or(u64::MAX, |(copy, _)| copy)
    }

    /// Where the batch ends in the file.
    pub(crate) fn end_offset(&self) -> u64 {
        layout(self.offset, u64::from(self.descriptor_bytes), self.data_bytes)
            .map_or(u64::MAX, |(_, end)| end)
    }

    /// Begins an encoding: the record table follows by [`push_entry`], then [`Descriptor::seal`].
    pub(crate) fn begin(out: &mut Vec<u8>) {
        out.clear();
        out.resize(DESCRIPTOR_FIXED_BYTES, 0);
    }

    /// Fills in the fixed part in front of the record table in `out`, and the checksum.
    pub(crate) fn seal(&mut self, out: &mut [u8], seed: u32) {
        self.descriptor_bytes =
            u32::try_from(out.len()).expect("a batch's record table is bounded far below 4 GiB");
        out[..8].copy_from_slice(&BATCH_MAGIC);
        out[12..16].copy_from_slice(&self.descriptor_bytes.to_le_bytes());
        out[16..24].copy_from_slice(&self.segment.to_le_bytes());
        out[24..32].copy_from_slice(&self.offset.to_le_bytes());
        out[32..40].copy_from_slice(&self.batch.to_le_bytes());
        out[40..48].copy_from_slice(&self.first.0.to_le_bytes());
        out[48..56].copy_from_slice(&self.life.to_le_bytes());
        out[56..64].copy_from_slice(&self.oldest_segment.to_le_bytes());
        out[64..72].copy_from_slice(&self.oldest.0.to_le_bytes());
        out[72..80].copy_from_slice(&self.data_bytes.to_le_bytes());
        out[80..84].copy_from_slice(&self.count.to_le_bytes());
        out[84..88].copy_from_slice(&self.previous_crc.to_le_bytes());
        out[88..92].copy_from_slice(&self.flags.to_le_bytes());
        out[92..96].copy_from_slice(&VERSION.to_le_bytes());
        self.crc = crc32c::crc32c_append(seed, &out[12..]);
        out[8..12].copy_from_slice(&self.crc.to_le_bytes());
    }

    /// Reads the descriptor at the beginning of `bytes`, with its record table. `None` unless it is whole, of this
    /// owner, of this segment, and consistent in itself.
    pub(crate) fn decode(bytes: &[u8], segment: u64, seed: u32) -> Option<(Descriptor, Table<'_>)> {
        if bytes.get(..8)? != BATCH_MAGIC || u64_at(bytes, 16)? != segment {
            return None;
        }
        let descriptor_bytes = u32_at(bytes, 12)?;
        let whole = bytes.get(..descriptor_bytes as usize)?;
        let table = whole.get(DESCRIPTOR_FIXED_BYTES..)?;
        let crc = u32_at(whole, 8)?;
        if crc != crc32c::crc32c_append(seed, &whole[12..]) || u32_at(whole, 92)? != VERSION {
            return None;
        }
        let descriptor = Descriptor {
            segment,
            offset: u64_at(whole, 24)?,
            batch: u64_at(whole, 32)?,
            first: Lsn(u64_at(whole, 40)?),
            life: u64_at(whole, 48)?,
            oldest_segment: u64_at(whole, 56)?,
            oldest: Lsn(u64_at(whole, 64)?),
            data_bytes: u64_at(whole, 72)?,
            count: u32_at(whole, 80)?,
            previous_crc: u32_at(whole, 84)?,
            flags: u32_at(whole, 88)?,
            descriptor_bytes,
            crc,
        };
        let table = Table { rest: table };
        // The checksum vouches for all of this; it is checked so that later arithmetic cannot overflow even if not.
        layout(descriptor.offset, u64::from(descriptor_bytes), descriptor.data_bytes)?;
        if [descriptor.batch, descriptor.first.0, descriptor.life]
            .into_iter()
            .any(|number| number > NUMBER_MAX)
        {
            return None;
        }
        let aligned = descriptor.offset.is_multiple_of(ALIGN) && descriptor.offset >= HEADER_BYTES;
        let ordered = descriptor.oldest_segment <= segment && descriptor.oldest <= descriptor.first;
        (aligned && ordered && table.fits(&descriptor)).then_some((descriptor, table))
    }

    /// Whether `bytes` look like a descriptor of this segment, whole or not.
    pub(crate) fn looks_begun(bytes: &[u8], segment: u64) -> bool {
        bytes.get(..8) == Some(&BATCH_MAGIC) && u64_at(bytes, 16) == Some(segment)
    }
}

/// Offsets of the second descriptor copy and of the end of a batch.
pub(crate) fn layout(offset: u64, descriptor_bytes: u64, data_bytes: u64) -> Option<(u64, u64)> {
    let copy = round_up(offset.checked_add(descriptor_bytes)?.checked_add(data_bytes)?, SECTOR)?;
    let end = round_up(copy.checked_add(descriptor_bytes)?, ALIGN)?;
    Some((copy, end))
}

/// Appends one entry to a descriptor begun by [`Descriptor::begin`].
pub(crate) fn push_entry(out: &mut Vec<u8>, entry: Entry<'_>) {
    out.extend_from_slice(&entry.group.to_le_bytes());
    out.extend_from_slice(&entry.payload_len.to_le_bytes());
    out.extend_from_slice(&entry.payload_crc.to_le_bytes());
    out.push(u8::try_from(entry.label.len()).expect("labels are bounded when staged"));
    out.extend_from_slice(entry.label);
}

/// A descriptor's record table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table<'a> {
    rest: &'a [u8],
}

impl Table<'_> {
    /// Whether the entries are as many as the descriptor says, fill the table, and their payloads the data.
    fn fits(self, descriptor: &Descriptor) -> bool {
        let (mut table_bytes, mut data_bytes, mut count) = (0, 0, 0);
        for entry in self {
            table_bytes += ENTRY_FIXED_BYTES + entry.label.len();
            data_bytes += u64::from(entry.payload_len);
            count += 1;
        }
        table_bytes == self.rest.len() && data_bytes == descriptor.data_bytes && count == descriptor.count
    }
}

impl<'a> Iterator for Table<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        let label_len = usize::from(*self.rest.get(16)?);
        let entry = Entry {
            group: u64_at(self.rest, 0)?,
            payload_len: u32_at(self.rest, 8)?,
            payload_crc: u32_at(self.rest, 12)?,
            label: self.rest.get(ENTRY_FIXED_BYTES..ENTRY_FIXED_BYTES + label_len)?,
        };
        if label_len > LABEL_BYTES_MAX {
            return None;
        }
        self.rest = &self.rest[ENTRY_FIXED_BYTES + label_len..];
        Some(entry)
    }
}
