//! Keys with their values, and what happens to them.

use std::sync::Arc;

use bytes::Bytes;

use crate::{LeaseId, Revision};

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventKind {
    /// It was written.
    Put,
    /// It was deleted.
    Delete,
}

/// A key with its value, as of some revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// Its value.
    pub value: Bytes,
    /// The revision that made the key exist.
    pub create_revision: Revision,
    /// The revision of the last write.
    pub mod_revision: Revision,
    /// How many writes the key saw since it was created: 1 for the first.
    pub version: i64,
    /// The lease it is attached to, or none.
    pub lease: LeaseId,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The key after the change. Of a deletion only the key and `mod_revision` are set.
    pub kv: KeyValue,
    /// The key as of the revision before. None if it did not exist then, or if that revision is compacted, or with an
    /// event that made the key exist, even where the same revision had deleted it. Otherwise both events of a key that
    /// changes twice in one revision carry what was there before the revision, as in etcd.
    pub prev_kv: Option<KeyValue>,
}

impl Event {
    /// Whether the event made the key exist.
    pub fn is_create(&self) -> bool {
        self.kind == EventKind::Put && self.kv.create_revision == self.kv.mod_revision
    }

    /// The event as somebody sees it who asked for what was there before, or did not.
    #[must_use]
    pub fn view(&self, prev_kv: bool) -> Event {
        let prev_kv = if prev_kv { self.prev_kv.clone() } else { None };
        Event { kind: self.kind, kv: self.kv.clone(), prev_kv }
    }

    /// About what the event takes on the wire.
    pub fn size_bytes(&self) -> usize {
        let kv_bytes = |kv: &KeyValue| kv.key.len() + kv.value.len() + 32;
        8 + kv_bytes(&self.kv) + self.prev_kv.as_ref().map_or(0, kv_bytes)
    }
}

/// All events of one revision, in the order they happened. Never torn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevisionEvents {
    /// The revision.
    pub revision: Revision,
    /// Its events; those in the range asked for, and never none.
    pub events: Arc<[Event]>,
}
