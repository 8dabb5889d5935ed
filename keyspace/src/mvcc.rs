//! Keys with their history: an index by key and a log by revision over the same records.
//!
//! Every write appends one [`Record`] to its key's versions and to the revision log. A read at a revision takes the
//! newest version at or below it. The watch feed reads the log.
//!
//! **Compaction has two halves.** Logically it happens at once: [`Mvcc::compact`] moves the compact revision, and with
//! it the size and the digest, which the log's running sums give without a walk ([`Sums`]). Physically
//! [`Mvcc::sweep`] takes the garbage away later, in steps, as each replica finds time; a snapshot being taken holds
//! it back ([`Pin`]), and so does, up to a point, a query that is answered in steps. So what is still lying around is never
//! visible: whoever walks over versions asks [`Mvcc::kept`] or [`Mvcc::is_kept`], or at which revision it began.
//!
//! Which versions are kept is etcd's rule (3.6, server/storage/mvcc/key_index.go): of the versions at or below the
//! compact revision the newest one, unless it is a tombstone below the compact revision.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::{Arc, Weak},
};

use bytes::Bytes;

use crate::{
    Event, EventKind, KeyRange, KeyValue, LastWrite, LeaseId, Resolved, Revision, digest::Hasher, quota,
};

/// One version of a key; or its tombstone, of which only the key and the revision are set.
#[derive(Debug)]
pub(crate) struct Record {
    kv: KeyValue,
    /// The place among the changes of the revision.
    sub: u32,
    kind: EventKind,
    hash: u64,
}

impl Record {
    pub(crate) fn new(kv: KeyValue, sub: u32, kind: EventKind) -> Record {
        let hash = Hasher::new(6)
            .bytes(&kv.key)
            .bytes(&kv.value)
            .i64(kv.create_revision.0)
            .i64(kv.mod_revision.0)
            .i64(kv.version)
            .i64(kv.lease.0)
            .u64(u64::from(sub) << 1 | u64::from(kind == EventKind::Delete))
            .finish();
        Record { kv, sub, kind, hash }
    }

    pub(crate) fn key(&self) -> &Bytes {
        &self.kv.key
    }

    pub(crate) fn kv(&self) -> &KeyValue {
        &self.kv
    }

    pub(crate) fn kind(&self) -> EventKind {
        self.kind
    }

    pub(crate) fn revision(&self) -> Revision {
        self.kv.mod_revision
    }

    pub(crate) fn position(&self) -> (Revision, u32) {
        (self.kv.mod_revision, self.sub)
    }

    pub(crate) fn event(&self, prev_kv: Option<&KeyValue>) -> Event {
        let event = Event { kind: self.kind, kv: self.kv.clone(), prev_kv: None };
        if event.is_create() { event } else { Event { prev_kv: prev_kv.cloned(), ..event } }
    }

    fn value(&self) -> Option<&KeyValue> {
        (self.kind == EventKind::Put).then_some(&self.kv)
    }

    fn cost_bytes(&self) -> u64 {
        quota::record_cost_bytes(self.kv.key.len(), self.kv.value.len())
    }

    fn weight(&self) -> Weight {
        Weight { bytes: self.cost_bytes(), hash: self.hash, records: 1 }
    }
}

/// A key of the index. Short ones lie in the tree's nodes, so that a search need not look elsewhere for each key that it
/// compares with: with hundreds of thousands of keys that is most of its time.
#[derive(Debug)]
enum IndexKey {
    Inline { len: u8, bytes: [u8; INLINE_KEY_LEN] },
    Shared(Bytes),
}

/// With tag and length, 56 bytes. Most keys of a Kubernetes cluster fit.
const INLINE_KEY_LEN: usize = 54;

const _: () = assert!(size_of::<IndexKey>() == 56, "no padding");
const _: () = assert!(INLINE_KEY_LEN <= u8::MAX as usize, "a byte holds the length");

impl IndexKey {
    fn new(key: &Bytes) -> IndexKey {
        match u8::try_from(key.len()) {
            Ok(len) if key.len() <= INLINE_KEY_LEN => {
                let mut bytes = [0; INLINE_KEY_LEN];
                bytes[..key.len()].copy_from_slice(key);
                IndexKey::Inline { len, bytes }
            }
            Ok(_) | Err(_) => IndexKey::Shared(key.clone()),
        }
    }

    fn as_slice(&self) -> &[u8] {
        match self {
            IndexKey::Inline { len, bytes } => &bytes[..usize::from(*len)],
            IndexKey::Shared(key) => key,
        }
    }
}

impl Borrow<[u8]> for IndexKey {
    fn borrow(&self) -> &[u8] {
        self.as_slice()
    }
}

impl Ord for IndexKey {
    fn cmp(&self, other: &IndexKey) -> std::cmp::Ordering {
        self.as_slice().cmp(other.as_slice())
    }
}

impl PartialOrd for IndexKey {
    fn partial_cmp(&self, other: &IndexKey) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Eq for IndexKey {}

impl PartialEq for IndexKey {
    fn eq(&self, other: &IndexKey) -> bool {
        self.as_slice() == other.as_slice()
    }
}

/// The versions of one key, oldest first.
#[derive(Debug)]
struct Versions {
    /// What the newest one is. Most reads want it, and a count needs to look no further.
    newest: Newest,
    list: VersionList,
}

/// Most keys have one version, which then needs no list.
#[derive(Debug)]
enum VersionList {
    One(Arc<Record>),
    Many(VecDeque<Arc<Record>>),
}

/// The revision and the kind of a record in one word: negative for a tombstone.
#[derive(Clone, Copy, Debug)]
struct Newest(i64);

impl Newest {
    fn new(record: &Record) -> Newest {
        match record.kind {
            EventKind::Put => Newest(record.revision().0),
            EventKind::Delete => Newest(-record.revision().0),
        }
    }

    fn revision(self) -> Revision {
        Revision(self.0.abs())
    }

    fn is_live(self) -> bool {
        self.0 > 0
    }
}

impl Versions {
    fn new(record: Arc<Record>) -> Versions {
        Versions { newest: Newest::new(&record), list: VersionList::One(record) }
    }

    fn push(&mut self, record: Arc<Record>) {
        assert!(self.newest.revision() <= record.revision(), "versions ascend");
        debug_assert_eq!(self.last().key(), record.key(), "all versions are of one key");
        self.newest = Newest::new(&record);
        match &mut self.list {
            VersionList::One(first) => {
                let mut list = VecDeque::with_capacity(4);
                list.push_back(Arc::clone(first));
                list.push_back(record);
                self.list = VersionList::Many(list);
            }
            VersionList::Many(list) => list.push_back(record),
        }
    }

    fn len(&self) -> usize {
        match &self.list {
            VersionList::One(_) => 1,
            VersionList::Many(list) => list.len(),
        }
    }

    fn get(&self, index: usize) -> Option<&Arc<Record>> {
        match &self.list {
            VersionList::One(record) => (index == 0).then_some(record),
            VersionList::Many(list) => list.get(index),
        }
    }

    fn last(&self) -> &Arc<Record> {
        match &self.list {
            VersionList::One(record) => record,
            VersionList::Many(list) => list.back().expect("a key has a version"),
        }
    }

    /// How many versions are at or below `revision`.
    fn count_upto(&self, revision: Revision) -> usize {
        if self.newest.revision() <= revision {
            return self.len();
        }
        match &self.list {
            VersionList::One(_) => 0,
            VersionList::Many(list) => list.partition_point(|record| record.revision() <= revision),
        }
    }

    /// What holds the key's value as of `revision`; none before its creation and after its deletion.
    fn record_at(&self, revision: Revision) -> Option<&Arc<Record>> {
        if self.newest.revision() <= revision {
            return if self.newest.is_live() { Some(self.last()) } else { None };
        }
        self.count_upto(revision)
            .checked_sub(1)
            .and_then(|index| self.get(index))
            .filter(|record| record.kind == EventKind::Put)
    }

    /// The key's value as of `revision`.
    fn value_at(&self, revision: Revision) -> Option<&KeyValue> {
        self.record_at(revision).map(|record| &record.kv)
    }

    /// Whether the key exists as of `revision`.
    fn is_live_at(&self, revision: Revision) -> bool {
        if self.newest.revision() <= revision {
            self.newest.is_live()
        } else {
            self.value_at(revision).is_some()
        }
    }

    /// The key's value as of the revision before `revision`, which is not compacted.
    fn value_before(&self, revision: Revision) -> Option<&KeyValue> {
        self.value_at(revision.previous())
    }

    /// The first of the versions that a compaction at `compact` keeps; all after it are kept too.
    fn first_kept(&self, compact: Revision) -> usize {
        let Some(newest) = self.count_upto(compact).checked_sub(1) else { return 0 };
        let record = self.get(newest).expect("the index is below the count");
        let dropped = record.kind == EventKind::Delete && record.revision() < compact;
        newest + usize::from(dropped)
    }

    /// Drops the oldest versions. Returns whether none is left.
    fn drop_first(&mut self, count: usize) -> bool {
        assert!(count <= self.len(), "no more is dropped than there is");
        match &mut self.list {
            VersionList::One(_) => count > 0,
            VersionList::Many(list) => {
                list.drain(..count.min(list.len()));
                if list.capacity() > 64 && list.len() < list.capacity() / 4 {
                    list.shrink_to(list.len() * 2);
                }
                if list.len() == 1
                    && let Some(record) = list.pop_front()
                {
                    self.list = VersionList::One(record);
                    return false;
                }
                list.is_empty()
            }
        }
    }
}

/// The size and the hash of a set of records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Weight {
    bytes: u64,
    hash: u64,
    records: u64,
}

impl Weight {
    fn plus(self, other: Weight) -> Weight {
        Weight {
            bytes: self.bytes.wrapping_add(other.bytes),
            hash: self.hash.wrapping_add(other.hash),
            records: self.records.wrapping_add(other.records),
        }
    }

    fn minus(self, other: Weight) -> Weight {
        Weight {
            bytes: self.bytes.wrapping_sub(other.bytes),
            hash: self.hash.wrapping_sub(other.hash),
            records: self.records.wrapping_sub(other.records),
        }
    }
}

/// Running sums over the log, as of one of its entries. Only differences of two have a meaning.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    /// Records written.
    written: u64,
    /// Versions that a newer one replaced, by the revision of the newer one: garbage once that is compacted.
    superseded: Weight,
    /// Tombstones that are the last change of their key in their revision: garbage once a later revision is
    /// compacted.
    tombstones: Weight,
}

#[derive(Debug)]
struct LogEntry {
    record: Arc<Record>,
    /// Including this entry.
    sums: Sums,
}

/// The records by revision, from the compact revision on. In chunks, since one long buffer would stop the world
/// whenever it grows.
#[derive(Debug, Default)]
struct Log {
    chunks: VecDeque<VecDeque<LogEntry>>,
    /// The sums up to the entries that were taken away at the front.
    base: Sums,
}

const CHUNK_LEN: usize = 1024;

/// Behind all changes of a revision.
const ALL_SWEPT: u32 = u32::MAX;

impl Log {
    fn push(&mut self, entry: LogEntry) {
        let last = self.last().map(|last| last.record.position());
        assert!(last < Some(entry.record.position()), "the log ascends");
        match self.chunks.back_mut() {
            Some(chunk) if chunk.len() < CHUNK_LEN => chunk.push_back(entry),
            Some(_) | None => {
                // A short log should be small, a long one need not grow piece by piece.
                let capacity = if self.chunks.is_empty() { 16 } else { CHUNK_LEN };
                let mut chunk = VecDeque::with_capacity(capacity);
                chunk.push_back(entry);
                self.chunks.push_back(chunk);
            }
        }
    }

    fn last(&self) -> Option<&LogEntry> {
        self.chunks.back().and_then(VecDeque::back)
    }

    fn sums(&self) -> Sums {
        self.last().map_or(self.base, |entry| entry.sums)
    }

    /// The sums over everything at or below `revision`.
    fn sums_upto(&self, revision: Revision) -> Sums {
        let chunk = self.chunks.partition_point(|chunk| first_revision(chunk) <= revision);
        let Some(chunk) = chunk.checked_sub(1).and_then(|chunk| self.chunks.get(chunk)) else {
            return self.base;
        };
        let entry = chunk.partition_point(|entry| entry.record.revision() <= revision);
        entry.checked_sub(1).and_then(|entry| chunk.get(entry)).map_or(self.base, |entry| entry.sums)
    }

    /// The records from a position on.
    fn from(&self, position: (Revision, u32)) -> impl Iterator<Item = &Record> {
        let is_before = |entry: &LogEntry| entry.record.position() < position;
        // It may be in the chunk before the first one that begins at or behind it.
        let begins_before = |chunk: &VecDeque<LogEntry>| chunk.front().is_some_and(is_before);
        let chunk = self.chunks.partition_point(begins_before).saturating_sub(1);
        let skip = self.chunks.get(chunk).map_or(0, |chunk| chunk.partition_point(is_before));
        self.chunks.range(chunk.min(self.chunks.len())..).flatten().skip(skip).map(|entry| &*entry.record)
    }

    fn pop_below(&mut self, revision: Revision) -> Option<Arc<Record>> {
        let chunk = self.chunks.front_mut()?;
        if first_revision(chunk) >= revision {
            return None;
        }
        let entry = chunk.pop_front()?;
        assert!(entry.record.revision() < revision, "what can still be read stays");
        if chunk.is_empty() {
            self.chunks.pop_front();
        }
        self.base = entry.sums;
        Some(entry.record)
    }

    fn iter(&self) -> impl Iterator<Item = &LogEntry> {
        self.chunks.iter().flatten()
    }
}

fn first_revision(chunk: &VecDeque<LogEntry>) -> Revision {
    chunk.front().expect("a chunk has an entry").record.revision()
}

/// Held by whoever walks over the state as of an older compaction; until it is dropped nothing is swept that was kept
/// then.
#[derive(Debug)]
pub(crate) struct Pin {
    compact_revision: Revision,
    /// Its holder can begin again: it is let go when it holds back too much.
    yields: bool,
}

/// Garbage that pins which yield may hold back, in bytes.
const HELD_BACK_BYTES_MAX: u64 = 64 << 20;

/// A key of the index as a walk comes to it; it may not have existed at the walk's revision.
#[derive(Clone, Copy)]
pub(crate) struct Visited<'a> {
    versions: &'a Versions,
    revision: Revision,
}

impl<'a> Visited<'a> {
    pub(crate) fn key(&self) -> &'a Bytes {
        self.versions.last().key()
    }

    /// Whether a version of the key is kept, after a compaction at `compact`. Of what is not, it depends on the replica whether
    /// it has been swept by now.
    pub(crate) fn is_kept(&self, compact: Revision) -> bool {
        let newest = self.versions.newest;
        newest.is_live() || newest.revision() >= compact
    }

    /// Whether the key existed.
    pub(crate) fn is_live(&self) -> bool {
        self.versions.is_live_at(self.revision)
    }

    /// What held its value.
    pub(crate) fn record(&self) -> Option<&'a Arc<Record>> {
        self.versions.record_at(self.revision)
    }
}

/// What the keyspace holds in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    /// Of all kept records.
    kept: Weight,
    /// How many keys exist at the latest revision.
    live_keys: u64,
}

/// The keys and their history.
#[derive(Debug)]
pub(crate) struct Mvcc {
    index: BTreeMap<IndexKey, Versions>,
    log: Log,
    last_write: LastWrite,
    compact_revision: Revision,
    totals: Totals,
    pins: Vec<Weak<Pin>>,
    /// The revision that was swept up to, and the place among its changes from which on it was not yet.
    swept: (Revision, u32),
}

impl Mvcc {
    pub(crate) fn new() -> Mvcc {
        Mvcc {
            index: BTreeMap::new(),
            log: Log::default(),
            last_write: LastWrite::NONE,
            compact_revision: Revision::NEVER_COMPACTED,
            totals: Totals::default(),
            pins: Vec::new(),
            swept: (Revision::NEVER_COMPACTED, ALL_SWEPT),
        }
    }

    /// A keyspace from its kept records, in any order. Refuses records that cannot be all that was kept.
    pub(crate) fn restore(
        mut records: Vec<Arc<Record>>,
        last_write: LastWrite,
        compact_revision: Revision,
    ) -> Result<Mvcc, &'static str> {
        let mut mvcc = Mvcc { last_write, compact_revision, ..Mvcc::new() };
        // By position, as they were written.
        records.sort_by_cached_key(|record| record.position());
        if records.windows(2).any(|pair| pair[0].position() == pair[1].position()) {
            return Err("two records at one position");
        }
        let known = Revision::FIRST..=last_write.revision();
        if records.iter().any(|record| !known.contains(&record.revision())) {
            return Err("a record at no revision of the keyspace");
        }
        for record in records {
            mvcc.append(record);
        }
        // What lies below the compact revision is in no log; this also shows records that should not be there.
        if mvcc.index.values().any(|versions| versions.first_kept(compact_revision) != 0) {
            return Err("a record that compaction drops");
        }
        mvcc.sweep(usize::MAX);
        assert!(mvcc.totals.live_keys <= mvcc.totals.kept.records, "a key that exists has a record");
        Ok(mvcc)
    }

    pub(crate) fn last_write(&self) -> LastWrite {
        self.last_write
    }

    pub(crate) fn compact_revision(&self) -> Revision {
        self.compact_revision
    }

    pub(crate) fn keys(&self) -> u64 {
        self.totals.live_keys
    }

    /// The cost of all kept records.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.totals.kept.bytes
    }

    /// The hash of all kept records.
    pub(crate) fn digest(&self) -> u64 {
        let (last_write, compact_revision) = (self.last_write.revision(), self.compact_revision);
        Hasher::new(7).u64(self.totals.kept.hash).i64(last_write.0).i64(compact_revision.0).finish()
    }

    /// The hash of the kept records at or below `revision`, which is neither compacted nor in the future.
    pub(crate) fn hash_upto(&self, revision: Revision) -> u64 {
        assert!(revision >= self.compact_revision, "what compaction dropped is in no sum");
        let later = self.log.sums().written.wrapping_sub(self.log.sums_upto(revision).written);
        self.totals.kept.hash.wrapping_sub(later)
    }

    /// The latest value of a key.
    pub(crate) fn latest(&self, key: &[u8]) -> Option<&KeyValue> {
        self.index.get(key).and_then(|versions| versions.last().value())
    }

    /// The value of a key as of `revision`, which is not compacted.
    pub(crate) fn value_at(&self, key: &[u8], revision: Revision) -> Option<&KeyValue> {
        self.index.get(key).and_then(|versions| versions.value_at(revision))
    }

    /// The value of a key as of the revision before `revision`, or none if that is compacted.
    pub(crate) fn value_before(&self, key: &[u8], revision: Revision) -> Option<&KeyValue> {
        let before = revision.previous();
        if before < self.compact_revision { None } else { self.value_at(key, before) }
    }

    /// The keys of a range with their values as of `revision`, in order.
    pub(crate) fn range(&self, range: &KeyRange, revision: Revision) -> impl Iterator<Item = &KeyValue> {
        assert!(revision >= self.compact_revision, "what is compacted cannot be read");
        // A single key needs no walk from a lower bound to an upper one.
        let (single, walk) = if range.is_single() {
            (self.value_at(&range.key, revision), None)
        } else {
            (None, Some(self.walk(range, None, revision)))
        };
        let walk = walk.into_iter().flatten().filter_map(|visited| visited.record());
        single.into_iter().chain(walk.map(|record| record.kv()))
    }

    /// How many keys a range holds as of `revision`.
    pub(crate) fn count(&self, range: &KeyRange, revision: Revision) -> usize {
        assert!(revision >= self.compact_revision, "what is compacted cannot be counted");
        self.walk(range, None, revision).filter(Visited::is_live).count()
    }

    /// Every key of a range that the index has, as of `revision`, in order; those behind `after`, if it is given. The caller
    /// knows that the revision can be read, or holds a pin of a time when it could.
    pub(crate) fn walk<'a>(
        &'a self,
        range: &KeyRange,
        after: Option<&Bytes>,
        revision: Revision,
    ) -> impl Iterator<Item = Visited<'a>> + use<'a> {
        let bounds = range.bounds().map(|(first, end)| {
            let first = after.map_or(first, |after| Bound::Excluded(after.as_ref()));
            self.index.range::<[u8], _>((first, end))
        });
        bounds.into_iter().flatten().map(move |(_, versions)| Visited { versions, revision })
    }

    /// The records from a position on.
    pub(crate) fn log_from(&self, position: (Revision, u32)) -> impl Iterator<Item = &Record> {
        self.log.from(position)
    }

    /// The records of one key from `revision` on.
    pub(crate) fn key_log(&self, key: &[u8], revision: Revision) -> impl Iterator<Item = &Record> {
        let before = revision.previous();
        self.index.get(key).into_iter().flat_map(move |versions| {
            (versions.count_upto(before)..versions.len())
                .filter_map(|index| versions.get(index))
                .map(Arc::as_ref)
        })
    }

    /// Whether compaction has kept a record of the log.
    pub(crate) fn is_kept(&self, record: &Record) -> bool {
        if record.revision() > self.compact_revision {
            return true;
        }
        let kept = self.index.get(record.key().as_ref()).and_then(|versions| {
            let first = versions.first_kept(self.compact_revision);
            versions.get(first)
        });
        kept.is_some_and(|kept| kept.position() == record.position())
    }

    /// The records kept as of a revision and a compaction, by key from `(key, position)` on, exclusive.
    pub(crate) fn kept(
        &self,
        after: Option<&(Bytes, Revision, u32)>,
        revision: Revision,
        compact_revision: Revision,
    ) -> impl Iterator<Item = &Record> {
        assert!(compact_revision <= self.compact_revision, "compaction goes forward");
        let from = after.map_or(Bound::Unbounded, |(key, ..)| Bound::Included(key.as_ref()));
        let after = after.map(|(key, revision, sub)| (key.clone(), (*revision, *sub)));
        self.index.range::<[u8], _>((from, Bound::Unbounded)).flat_map(move |(key, versions)| {
            let mut first = versions.first_kept(compact_revision);
            let end = versions.count_upto(revision);
            if let Some((after_key, position)) = &after
                && after_key == key.as_slice()
            {
                while first < end && versions.get(first).is_some_and(|record| record.position() <= *position)
                {
                    first += 1;
                }
            }
            (first..end).filter_map(|index| versions.get(index)).map(Arc::as_ref)
        })
    }

    /// The keys that exist, with their leases.
    pub(crate) fn live(&self) -> impl Iterator<Item = &KeyValue> {
        self.index.values().filter_map(|versions| versions.last().value())
    }

    /// Begins a set of changes under one revision. What has been begun shows to reads at `revision`; the last write
    /// follows with [`Writer::finish`].
    ///
    /// The revision must be above the last write, by however much.
    pub(crate) fn write(&mut self, revision: Revision) -> Writer<'_> {
        assert!(revision > self.last_write.revision(), "revisions ascend");
        Writer { mvcc: self, revision, events: Vec::new() }
    }

    /// Forgets what no read at or above `revision` needs. It must lie above the compact revision, and be resolved.
    pub(crate) fn compact(&mut self, revision: Revision, resolved: Resolved) {
        assert!(revision > self.compact_revision && resolved.covers(revision), "compaction goes forward");
        let freed = self.garbage(revision).minus(self.garbage(self.compact_revision));
        assert!(freed.records <= self.totals.kept.records, "only what is kept can be dropped");
        assert!(freed.bytes <= self.totals.kept.bytes, "and its bytes with it");
        let left = self.totals.kept.records - freed.records;
        assert!(left >= self.totals.live_keys, "the newest version of a key that exists is kept");
        self.totals.kept = self.totals.kept.minus(freed);
        self.compact_revision = revision;
    }

    /// Garbage once `compact` is compacted: newer versions up to it, tombstones below it. Both sums are of positions in the
    /// log, which still has everything from the compact revision on; only differences have a meaning.
    fn garbage(&self, compact: Revision) -> Weight {
        let below = compact.previous();
        self.log.sums_upto(compact).superseded.plus(self.log.sums_upto(below).tombstones)
    }

    /// Takes garbage away, looking at up to `max` records. Returns whether there is more to do. Changes nothing that
    /// can be seen.
    pub(crate) fn sweep(&mut self, max: usize) -> bool {
        let mut upto = self.compact_revision;
        if !self.pins.is_empty() {
            let mut pins = std::mem::take(&mut self.pins);
            pins.retain(|pin| match pin.upgrade() {
                Some(pin) if pin.yields && self.held_back_bytes(&pin) > HELD_BACK_BYTES_MAX => false,
                Some(pin) => {
                    upto = upto.min(pin.compact_revision);
                    true
                }
                None => false,
            });
            self.pins = pins;
        }
        for _ in 0..max {
            if let Some(record) = self.log.pop_below(upto) {
                drop_older(&mut self.index, &record, record.kind == EventKind::Delete);
                continue;
            }
            // The changes of the revision itself can still be read, and stay in the log; what they replaced cannot.
            if self.swept.0 != upto {
                self.swept = (upto, 0);
            }
            let next = if self.swept.1 == ALL_SWEPT { None } else { self.log.from(self.swept).next() };
            let Some(record) = next.filter(|record| record.revision() == upto) else {
                self.swept.1 = ALL_SWEPT;
                return false;
            };
            drop_older(&mut self.index, record, false);
            self.swept.1 = record.sub + 1;
        }
        true
    }

    pub(crate) fn is_pinned_by(&self, pin: &Arc<Pin>) -> bool {
        self.pins.iter().any(|held| std::ptr::eq(held.as_ptr(), Arc::as_ptr(pin)))
    }

    /// Keeps everything that is kept at present from being swept until the pin is dropped.
    pub(crate) fn pin(&mut self) -> Arc<Pin> {
        self.add_pin(false)
    }

    /// As [`Mvcc::pin`], for a holder that begins again when it finds itself not pinned any more: that happens when too much
    /// is held back.
    pub(crate) fn pin_yielding(&mut self) -> Arc<Pin> {
        let last = self.pins.last().and_then(Weak::upgrade);
        match last.filter(|last| last.yields && last.compact_revision == self.compact_revision) {
            // However many wait, there are few pins to look at.
            Some(last) => last,
            None => self.add_pin(true),
        }
    }

    fn add_pin(&mut self, yields: bool) -> Arc<Pin> {
        let newest = self.pins.iter().filter_map(Weak::upgrade).map(|pin| pin.compact_revision).max();
        assert!(newest <= Some(self.compact_revision), "compaction goes forward");
        let pin = Arc::new(Pin { compact_revision: self.compact_revision, yields });
        self.pins.push(Arc::downgrade(&pin));
        pin
    }

    fn held_back_bytes(&self, pin: &Pin) -> u64 {
        assert!(pin.compact_revision <= self.compact_revision, "compaction goes forward");
        self.garbage(self.compact_revision).minus(self.garbage(pin.compact_revision)).bytes
    }

    /// Whether there is garbage that may not be swept yet.
    pub(crate) fn is_held_back(&self) -> bool {
        let pins = self.pins.iter().filter_map(Weak::upgrade);
        pins.into_iter().any(|pin| pin.compact_revision < self.compact_revision)
    }

    /// Adds a record at the end of its key's versions and of the log.
    fn append(&mut self, record: Arc<Record>) {
        match self.index.get_mut(record.key().as_ref()) {
            Some(versions) => {
                account(&mut self.log, &mut self.totals, Some(versions.last()), &record);
                versions.push(record);
            }
            None => {
                account(&mut self.log, &mut self.totals, None, &record);
                self.index.insert(IndexKey::new(record.key()), Versions::new(record));
            }
        }
    }

    pub(crate) fn check_invariants(&self) {
        let mut totals = Totals::default();
        let mut versions_from_compact = 0;
        for (key, versions) in &self.index {
            assert!(versions.len() > 0, "a key has a version");
            assert_eq!(versions.newest.0, Newest::new(versions.last()).0, "the newest is the last");
            let is_list = matches!(versions.list, VersionList::Many(_));
            assert_eq!(is_list, versions.len() > 1, "one version needs no list");
            let first_kept = versions.first_kept(self.compact_revision);
            let mut before: Option<&Record> = None;
            for index in 0..versions.len() {
                let record = versions.get(index).expect("the index is below the length");
                assert_eq!(record.key(), key.as_slice(), "the record is its key's");
                assert!(
                    record.revision() <= self.last_write.revision(),
                    "no record is ahead of the last write"
                );
                if let Some(before) = before {
                    assert!(before.position() < record.position(), "versions ascend");
                    if let (Some(old), Some(new)) = (before.value(), record.value()) {
                        assert_eq!(old.version + 1, new.version, "versions count by one");
                        assert_eq!(old.create_revision, new.create_revision, "one creation");
                    }
                }
                if index >= first_kept {
                    totals.kept = totals.kept.plus(record.weight());
                }
                versions_from_compact += usize::from(record.revision() >= self.compact_revision);
                before = Some(record);
            }
            totals.live_keys += u64::from(versions.last().value().is_some());
        }
        assert_eq!(totals, self.totals, "the totals are those of the records");
        let mut position = None;
        let mut logged_from_compact = 0;
        for entry in self.log.iter() {
            assert!(position < Some(entry.record.position()), "the log ascends");
            position = Some(entry.record.position());
            logged_from_compact += usize::from(entry.record.revision() >= self.compact_revision);
        }
        let sizes = || self.log.chunks.iter().map(VecDeque::len);
        assert!(sizes().all(|len| (1..=CHUNK_LEN).contains(&len)), "a chunk has entries, and not too many");
        // Sub-revisions that lost their place at the compact revision may be in the log and not in the index, so the
        // log can only be longer.
        assert!(logged_from_compact >= versions_from_compact, "the log has every version from compaction on");
    }
}

/// The changes of one revision while they are made.
pub(crate) struct Writer<'a> {
    mvcc: &'a mut Mvcc,
    revision: Revision,
    events: Vec<Event>,
}

impl Writer<'_> {
    /// What the writer's own reads see.
    pub(crate) fn mvcc(&self) -> &Mvcc {
        self.mvcc
    }

    /// The revision that a read at this point sees: that of the changes once there is one, and the one before till then.
    pub(crate) fn revision(&self) -> Revision {
        if self.events.is_empty() { self.revision.previous() } else { self.revision }
    }

    /// Writes a key. Returns the key as it is stored, and the lease it was attached to before.
    pub(crate) fn put(&mut self, key: &Bytes, value: Bytes, lease: LeaseId) -> (Bytes, LeaseId) {
        let (revision, sub) = (self.revision, self.sub());
        let mvcc = &mut *self.mvcc;
        let mut kv = KeyValue {
            key: Bytes::new(),
            value,
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            lease,
        };
        let Some(versions) = mvcc.index.get_mut(key.as_ref()) else {
            kv.key = own(key);
            let record = Arc::new(Record::new(kv, sub, EventKind::Put));
            account(&mut mvcc.log, &mut mvcc.totals, None, &record);
            self.events.push(record.event(None));
            let key = record.key().clone();
            mvcc.index.insert(IndexKey::new(&key), Versions::new(record));
            return (key, LeaseId::NONE);
        };
        // All versions of a key share the bytes of the key.
        let last = versions.last();
        kv.key = last.key().clone();
        let mut old_lease = LeaseId::NONE;
        if let Some(old) = last.value() {
            kv.create_revision = old.create_revision;
            kv.version = old.version + 1;
            old_lease = old.lease;
        }
        let record = Arc::new(Record::new(kv, sub, EventKind::Put));
        account(&mut mvcc.log, &mut mvcc.totals, Some(last), &record);
        self.events.push(record.event(versions.value_before(revision)));
        let key = record.key().clone();
        versions.push(record);
        assert!(versions.newest.is_live(), "what was put is read from now on");
        (key, old_lease)
    }

    /// Deletes a key. Returns what it held, or none if it does not exist.
    pub(crate) fn delete(&mut self, key: &Bytes) -> Option<KeyValue> {
        let (revision, sub) = (self.revision, self.sub());
        let mvcc = &mut *self.mvcc;
        let versions = mvcc.index.get_mut(key.as_ref())?;
        let last = versions.last();
        let old = last.value()?.clone();
        let kv = KeyValue { key: old.key.clone(), mod_revision: revision, ..KeyValue::default() };
        let record = Arc::new(Record::new(kv, sub, EventKind::Delete));
        account(&mut mvcc.log, &mut mvcc.totals, Some(last), &record);
        self.events.push(record.event(versions.value_before(revision)));
        versions.push(record);
        assert!(!versions.newest.is_live(), "what is deleted is not read any more");
        Some(old)
    }

    /// Makes the changes current. Returns their events; none if nothing was changed, and then nothing happened.
    pub(crate) fn finish(self) -> Option<(Revision, Vec<Event>)> {
        if self.events.is_empty() {
            return None;
        }
        let own = |event: &Event| event.kv.mod_revision == self.revision;
        debug_assert!(self.events.iter().all(own), "the changes of one revision are under its number");
        self.mvcc.last_write = LastWrite::at(self.revision);
        Some((self.revision, self.events))
    }

    fn sub(&self) -> u32 {
        u32::try_from(self.events.len()).expect("a request has fewer changes than memory has bytes")
    }
}

/// Enters a record that comes after `last` among its key's versions into the log and the totals.
fn account(log: &mut Log, totals: &mut Totals, last: Option<&Record>, record: &Arc<Record>) {
    let mut sums = log.sums();
    let weight = record.weight();
    sums.written = sums.written.wrapping_add(record.hash);
    totals.kept = totals.kept.plus(weight);
    match record.kind {
        EventKind::Put => totals.live_keys += 1,
        EventKind::Delete => sums.tombstones = sums.tombstones.plus(weight),
    }
    if let Some(last) = last {
        debug_assert!(last.position() < record.position(), "versions ascend");
        let old = last.weight();
        match last.kind {
            EventKind::Put => {
                assert!(totals.live_keys > 0, "a key that exists is counted");
                totals.live_keys -= 1;
                sums.superseded = sums.superseded.plus(old);
            }
            // A tombstone goes away when its own revision is passed, which is no later than when a newer version is
            // compacted; only in its own revision does the newer version take it away.
            EventKind::Delete if last.revision() == record.revision() => {
                sums.tombstones = sums.tombstones.minus(old);
                sums.superseded = sums.superseded.plus(old);
            }
            EventKind::Delete => {}
        }
    }
    log.push(LogEntry { record: Arc::clone(record), sums });
}

/// Drops the versions of a record's key that are older than it, and with `itself` the record, which is a tombstone then.
fn drop_older(index: &mut BTreeMap<IndexKey, Versions>, record: &Record, itself: bool) {
    let Some(versions) = index.get_mut(record.key().as_ref()) else { return };
    // They stand in front, so a search through all versions, each elsewhere in memory, would only cost time.
    let goes = |version: &Arc<Record>| {
        version.position() < record.position() || itself && version.position() == record.position()
    };
    let mut dropped = 0;
    while versions.get(dropped).is_some_and(goes) {
        dropped += 1;
    }
    if versions.drop_first(dropped) {
        assert!(itself, "a key goes with its tombstone, or stays");
        index.remove(record.key().as_ref());
    }
}

/// Bytes of their own, so that a small value does not keep the whole batch in memory that it arrived in.
///
/// From 64 KiB on a value is most of its batch, and copying it would cost microseconds; such a value keeps its batch.
pub(crate) fn own(bytes: &Bytes) -> Bytes {
    const SHARED_FROM: usize = 64 * 1024;
    if bytes.len() >= SHARED_FROM { bytes.clone() } else { Bytes::copy_from_slice(bytes) }
}
