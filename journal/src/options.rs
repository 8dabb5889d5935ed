//! How a journal is laid out.

use crate::format::ALIGN;
use crate::identity::Identity;

/// No segment file is longer, in bytes: 1 GiB. A longer file is not read at all.
pub(crate) const SEGMENT_BYTES_MAX: u64 = 1 << 30;
pub(crate) const BATCH_BYTES_MAX: u64 = 16 << 20;
const SEGMENT_BYTES_MIN: u64 = 16 << 10;

/// How a journal is laid out and kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whose journal this is.
    pub identity: Identity,
    /// Size of a segment file in bytes, rounded up to 4 KiB. Default: 64 MiB. Range: 16 KiB to 1 GiB. A record that
    /// fits no segment gets a longer one.
    pub segment_bytes: u64,
    /// A batch takes a further record only while it stays within this many bytes. Default: 1 MiB. Maximum: 16 MiB.
    pub batch_bytes_max: u64,
    /// Recycled segments kept for use; further ones are removed. Default: 4.
    pub spare_segments_max: usize,
    /// The journal was made before (the superblock says so): finding none is an error, not a fresh start.
    pub must_exist: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            identity: Identity::default(),
            segment_bytes: 64 << 20,
            batch_bytes_max: 1 << 20,
            spare_segments_max: 4,
            must_exist: false,
        }
    }
}

impl Options {
    /// Within their ranges.
    pub(crate) fn normalised(mut self) -> Options {
        let bytes = self.segment_bytes.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
        self.segment_bytes = bytes.next_multiple_of(ALIGN);
        self.batch_bytes_max = self.batch_bytes_max.min(BATCH_BYTES_MAX);
        self
    }
}
