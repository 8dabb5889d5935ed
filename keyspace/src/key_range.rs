//! Key ranges with etcd's conventions, parsed once at the edge.

use std::ops::Bound;

use bytes::Bytes;

/// A set of keys: one key, an interval, or everything from a key on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyRange {
    /// The first key of the range.
    pub key: Bytes,
    /// Where the range ends.
    pub end: RangeEnd,
}

/// The end of a [`KeyRange`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RangeEnd {
    /// The range is exactly its key (`range_end` empty).
    Single,
    /// Every key at or above the range's key (`range_end` is one zero byte).
    From,
    /// Up to this key, exclusive. At or below the range's key the range is empty, which is no error.
    At(Bytes),
}

/// Lower and upper bound.
pub(crate) type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

impl KeyRange {
    /// One key.
    pub fn single(key: impl Into<Bytes>) -> KeyRange {
        KeyRange { key: key.into(), end: RangeEnd::Single }
    }

    /// `key` and everything above it.
    pub fn from(key: impl Into<Bytes>) -> KeyRange {
        KeyRange { key: key.into(), end: RangeEnd::From }
    }

    /// The keys in `[key, end)`.
    pub fn between(key: impl Into<Bytes>, end: impl Into<Bytes>) -> KeyRange {
        KeyRange { key: key.into(), end: RangeEnd::At(end.into()) }
    }

    /// The whole keyspace.
    pub fn all() -> KeyRange {
        KeyRange::from(Bytes::from_static(b"\0"))
    }

    /// The keys that begin with `prefix`: the end is the prefix with its last byte that is not 0xff raised by one,
    /// as etcd's clients compute it.
    pub fn prefix(prefix: impl Into<Bytes>) -> KeyRange {
        let prefix = prefix.into();
        let mut end = prefix.to_vec();
        while let Some(last) = end.pop() {
            if last < 0xff {
                end.push(last + 1);
                debug_assert!(end.as_slice() > prefix.as_ref(), "a prefix begins its own range");
                return KeyRange { key: prefix, end: RangeEnd::At(end.into()) };
            }
        }
        if prefix.is_empty() { KeyRange::all() } else { KeyRange::from(prefix) }
    }

    /// Reads etcd's pair of fields: an empty `range_end` means one key, a single zero byte means "from key".
    pub fn from_wire(key: Bytes, range_end: Bytes) -> KeyRange {
        let end = match range_end.as_ref() {
            b"" => RangeEnd::Single,
            b"\0" => RangeEnd::From,
            _ => RangeEnd::At(range_end),
        };
        KeyRange { key, end }
    }

    /// As [`KeyRange::from_wire`], for a watch: there an empty key means the lowest key.
    pub fn from_watch_wire(key: Bytes, range_end: Bytes) -> KeyRange {
        let key = if key.is_empty() { Bytes::from_static(b"\0") } else { key };
        KeyRange::from_wire(key, range_end)
    }

    /// The `range_end` field that [`KeyRange::from_wire`] reads back to this range.
    pub fn wire_end(&self) -> Bytes {
        match &self.end {
            RangeEnd::Single => Bytes::new(),
            RangeEnd::From => Bytes::from_static(b"\0"),
            RangeEnd::At(end) => end.clone(),
        }
    }

    /// The same range in bytes of its own, which keep no message alive that it came in.
    #[must_use]
    pub fn own(&self) -> KeyRange {
        let end = match &self.end {
            RangeEnd::At(end) => RangeEnd::At(Bytes::copy_from_slice(end)),
            RangeEnd::Single | RangeEnd::From => self.end.clone(),
        };
        KeyRange { key: Bytes::copy_from_slice(&self.key), end }
    }

    /// Whether no key can be in the range.
    pub fn is_empty(&self) -> bool {
        match &self.end {
            RangeEnd::Single | RangeEnd::From => false,
            RangeEnd::At(end) => *end <= self.key,
        }
    }

    /// Whether the range can hold one key only.
    pub fn is_single(&self) -> bool {
        match &self.end {
            RangeEnd::Single => true,
            RangeEnd::From | RangeEnd::At(_) => false,
        }
    }

    /// What of it lies behind `key`, which is in the range.
    pub fn behind(&self, key: &[u8]) -> KeyRange {
        let next: Bytes = [key, b"\0"].concat().into();
        let end = match &self.end {
            // Nothing.
            RangeEnd::Single => RangeEnd::At(next.clone()),
            RangeEnd::From | RangeEnd::At(_) => self.end.clone(),
        };
        KeyRange { key: next, end }
    }

    /// Whether `key` is in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            RangeEnd::Single => key == self.key,
            RangeEnd::From => key >= self.key.as_ref(),
            RangeEnd::At(end) => key >= self.key.as_ref() && key < end.as_ref(),
        }
    }

    /// Bounds for an ordered map. `None` when the range is empty, for which such maps panic.
    pub(crate) fn bounds(&self) -> Option<Bounds<'_>> {
        let from = Bound::Included(self.key.as_ref());
        match &self.end {
            RangeEnd::Single => Some((from, Bound::Included(self.key.as_ref()))),
            RangeEnd::From => Some((from, Bound::Unbounded)),
            RangeEnd::At(end) if *end <= self.key => None,
            RangeEnd::At(end) => Some((from, Bound::Excluded(end.as_ref()))),
        }
    }
}
