//! Walking over ranges, in steps, and what is made of what was found.
//!
//! What a walk gathers is not an answer yet: many entries have to be sorted, cut and copied out. That needs no state and is done
//! by [`Gathered::finish`], wherever there is time.

use std::cmp::Ordering;
use std::sync::Arc;

use bytes::Bytes;

use crate::{
    Broken, Compare, CompareResult, CompareTarget, Error, KeyValue, LeaseId, ListRequest, MeasuredReply,
    Outcome, PageRequest, Pieces, RangeReply, RangeRequest, Reply, Revision, SortOrder, SortTarget,
    TxnOpReply, TxnReply, codec,
    codec::LateRange,
    mutant::mutant,
    mvcc::{Mvcc, Record, Visited},
    wire_len,
};

/// The largest answer that is given, encoded, in bytes. The links take 512 MiB, with what surrounds the
/// entries.
pub const ANSWER_BYTES_MAX: usize = (512 << 20) - 1024;

/// What an answer takes beside keys and values, for each operation.
pub(crate) const OP_BYTES: usize = 64;

/// The longest message that gRPC's libraries send (`math.MaxInt32`), less what surrounds the entries.
const WIRE_BYTES_MAX: u64 = (i32::MAX as u64) - 1024;

/// Keys and values of an answer, in bytes, from which it takes long to copy them out.
const LARGE_BYTES: usize = 256 << 10;
/// Entries of a range from which copying them out takes long.
const LARGE_ENTRIES: usize = 4096;
/// Entries of a range from which sorting them takes long.
const LARGE_SORT: usize = 1024;
/// Bytes of a value that are compared in the time that a visit to a key takes.
const COMPARED_PER_VISIT: usize = 1024;

/// What it costs to look at a key of a range and to come by it once more, in visits.
const LOOK_VISITS: usize = 2;
/// What it costs to copy an entry out.
const COPY_VISITS: usize = 2;
/// What it costs to sort it among others.
const SORT_VISITS: usize = 8;
/// Bytes of a value by which it is sorted that cost a visit more: it is compared with many others.
const SORTED_PER_VISIT: usize = 128;
/// The largest limit for which entries that others have cut off are dropped while more come.
const PRUNED_LIMIT_MAX: usize = 8 << 10;
/// Bytes of values that have come since entries were dropped last, after which some are dropped again.
const PRUNED_EVERY: usize = 256 << 10;
/// Bytes of values that are compared at once for it. When those that stay are longer, it takes less memory than time to keep all.
const PRUNED_BYTES_MAX: usize = 1 << 20;

/// What a step of a query may do, in keys visited; a few keys more are visited than it says, and one at least.
#[derive(Debug)]
pub struct Budget {
    left: usize,
}

impl Budget {
    /// So many keys.
    pub fn of_keys(keys: usize) -> Budget {
        Budget { left: keys.max(1) }
    }

    /// As many as there are.
    pub(crate) fn unlimited() -> Budget {
        Budget { left: usize::MAX }
    }

    pub(crate) fn is_spent(&self) -> bool {
        self.left == 0
    }

    pub(crate) fn spend(&mut self, keys: usize) {
        self.left = self.left.saturating_sub(keys);
    }
}

/// What a query has found, before it is an answer.
#[derive(Debug)]
pub struct Gathered(Found);

#[derive(Debug)]
enum Found {
    Ready(Outcome),
    Ranges {
        revision: Revision,
        /// Of a transaction: which branch was taken.
        succeeded: Option<bool>,
        parts: Vec<Part>,
        /// Of what is in the answer for certain.
        bytes: usize,
    },
    /// Each with its place among them.
    Leases {
        revision: Revision,
        leases: Vec<(u64, LeaseId)>,
    },
}

impl From<Outcome> for Gathered {
    fn from(outcome: Outcome) -> Gathered {
        Gathered(Found::Ready(outcome))
    }
}

impl Gathered {
    /// A list of leases, to be put in the order of the numbers beside them.
    pub fn leases(revision: Revision, leases: Vec<(u64, LeaseId)>) -> Gathered {
        let is_long = leases.len() > LARGE_SORT;
        let gathered = Gathered(Found::Leases { revision, leases });
        if is_long { gathered } else { Gathered::from(gathered.finish()) }
    }

    /// The answer, if there is nothing left to do for it.
    pub fn ready(&mut self) -> Option<&mut Outcome> {
        match &mut self.0 {
            Found::Ready(outcome) => Some(outcome),
            Found::Ranges { .. } | Found::Leases { .. } => None,
        }
    }

    /// Whether it takes long to make an answer of it, or the answer holds more than so many bytes of keys and values.
    pub fn is_large(&self, bytes: usize) -> bool {
        match &self.0 {
            Found::Ready(outcome) => outcome.as_ref().is_ok_and(|reply| reply.holds_more_than(bytes)),
            Found::Ranges { .. } | Found::Leases { .. } => true,
        }
    }

    /// The answer. May take its time.
    pub fn finish(self) -> Outcome {
        let (revision, succeeded, parts, mut bytes) = match self.0 {
            Found::Ready(outcome) => return outcome,
            Found::Leases { revision, mut leases } => {
                leases.sort_unstable();
                debug_assert!(leases.windows(2).all(|pair| pair[0].1 != pair[1].1), "a lease is listed once");
                let leases = leases.into_iter().map(|(_, id)| id).collect();
                return Ok(Reply::Leases { revision, leases });
            }
            Found::Ranges { revision, succeeded, parts, bytes } => (revision, succeeded, parts, bytes),
        };
        assert!(succeeded.is_some() || parts.len() == 1, "a range has one answer");
        let mut replies = Vec::with_capacity(parts.len());
        for part in parts {
            replies.push(part.finish(&mut bytes, ANSWER_BYTES_MAX)?);
        }
        Ok(reply_of(revision, succeeded, replies))
    }

    /// The answer's encoding, as [`codec::encode_outcome`] makes it, and how long it is. May take its time, though entries are
    /// copied out only when their piece is taken.
    pub fn into_pieces(self) -> (usize, Pieces) {
        let (revision, succeeded, parts, mut bytes) = match self.0 {
            Found::Ranges { revision, succeeded, parts, bytes } => (revision, succeeded, parts, bytes),
            found @ (Found::Ready(_) | Found::Leases { .. }) => {
                let outcome = Gathered(found).finish();
                return (codec::outcome_len(&outcome), Pieces::new(outcome));
            }
        };
        assert!(succeeded.is_some() || parts.len() == 1, "a range has one answer");
        let ranges =
            parts.into_iter().map(|part| Ok(part.arrange(&mut bytes, ANSWER_BYTES_MAX)?.into_late()));
        match ranges.collect::<Result<Vec<_>, Error>>() {
            Ok(ranges) => Pieces::of_ranges(revision, succeeded, ranges),
            Err(error) => {
                let outcome = Err(error);
                (codec::outcome_len(&outcome), Pieces::new(outcome))
            }
        }
    }
}

fn reply_of(revision: Revision, succeeded: Option<bool>, mut replies: Vec<RangeReply>) -> Reply {
    match succeeded {
        Some(succeeded) => {
            let responses = replies.into_iter().map(TxnOpReply::Range).collect();
            Reply::Txn(TxnReply { revision, succeeded, responses })
        }
        None => Reply::Range(replies.pop().expect("a range has one answer")),
    }
}

/// What a range, whole or of a transaction, has found.
#[derive(Debug)]
pub(crate) enum Part {
    Ready(RangeReply),
    /// Many entries.
    Large(Shape, Vec<Arc<Record>>),
}

impl Part {
    /// Counts what was not certain to be in the answer before.
    fn finish(self, bytes: &mut usize, bytes_max: usize) -> Result<RangeReply, Error> {
        Ok(match self.arrange(bytes, bytes_max)? {
            ArrangedRange::Ready(reply) => reply,
            ArrangedRange::Records(shape, records) => shape.reply(records.iter().map(Arc::as_ref)),
        })
    }

    fn arrange(self, bytes: &mut usize, bytes_max: usize) -> Result<ArrangedRange, Error> {
        match self {
            Part::Ready(reply) => Ok(ArrangedRange::Ready(reply)),
            Part::Large(shape, mut records) => {
                shape.arrange(&mut records, Arc::as_ref, bytes, bytes_max)?;
                Ok(ArrangedRange::Records(shape, records))
            }
        }
    }
}

/// The entries of a range's answer, in order and no more than it has, and not copied out yet if they are many.
#[derive(Debug)]
enum ArrangedRange {
    Ready(RangeReply),
    Records(Shape, Vec<Arc<Record>>),
}

impl ArrangedRange {
    fn into_late(self) -> LateRange {
        match self {
            ArrangedRange::Ready(mut reply) => {
                let kvs = std::mem::take(&mut reply.kvs);
                let (count, bytes) = (kvs.len(), kvs.iter().map(codec::key_value_len).sum());
                LateRange::new(reply, kvs.into_iter(), count, bytes)
            }
            ArrangedRange::Records(shape, records) => {
                let bytes =
                    records.iter().map(|record| codec::key_value_len(&shape.entry(record.kv()))).sum();
                let count = records.len();
                let entries = records.into_iter().map(move |record| shape.entry(record.kv()));
                LateRange::new(shape.head(), entries, count, bytes)
            }
        }
    }
}

/// What a range's answer is made of, besides the entries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// The current revision.
    revision: Revision,
    /// None for all.
    limit: Option<usize>,
    sort_order: SortOrder,
    sort_target: SortTarget,
    keys_only: bool,
    count: usize,
    more: bool,
}

impl Shape {
    fn of(request: &RangeRequest, revision: Revision) -> Shape {
        Shape {
            revision,
            limit: usize::try_from(request.limit).ok().filter(|limit| *limit > 0),
            sort_order: request.sort_order,
            sort_target: request.sort_target,
            keys_only: request.keys_only,
            count: 0,
            more: false,
        }
    }

    /// How many entries are taken in the order of keys. Where no order is given and nothing filtered, one more than the limit
    /// is sorted by the target, and cut then (etcd's `IsDefaultOrdering`).
    fn first(&self, has_filters: bool) -> usize {
        let Some(limit) = self.limit else { return usize::MAX };
        match self.sort_order {
            _ if self.is_by_key() => limit,
            SortOrder::None | SortOrder::Invalid if !has_filters => limit.saturating_add(1),
            SortOrder::None | SortOrder::Invalid | SortOrder::Ascend | SortOrder::Descend => usize::MAX,
        }
    }

    /// Whether an entry that was taken may yet be cut off.
    fn cuts_later(&self) -> bool {
        self.limit.is_some() && !self.is_by_key()
    }

    fn is_by_key(&self) -> bool {
        let by_key = matches!(self.sort_target, SortTarget::Key | SortTarget::Invalid);
        by_key && self.sort_order != SortOrder::Descend
    }

    /// The order of the answer. No two entries are equal, since no two have the same key.
    fn compare(&self, one: &Record, other: &Record) -> Ordering {
        let (a, b) = (one.kv(), other.kv());
        let by_target = match self.sort_target {
            SortTarget::Key | SortTarget::Invalid => Ordering::Equal,
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(&b.value),
        };
        let ascending = by_target.then_with(|| a.key.cmp(&b.key));
        match self.sort_order {
            SortOrder::Descend => ascending.reverse(),
            SortOrder::None | SortOrder::Ascend | SortOrder::Invalid => ascending,
        }
    }

    /// How many entries are worth keeping while others come.
    fn best(&self) -> Option<usize> {
        self.limit.filter(|limit| self.cuts_later() && *limit <= PRUNED_LIMIT_MAX)
    }

    /// Drops entries that others have cut off, if `best` are worth keeping. Returns the bytes of values that were compared for it, and
    /// nothing if there are too many to compare.
    fn prune<R>(&self, best: usize, entries: &mut Vec<R>, record: impl Fn(&R) -> &Record) -> Option<usize> {
        assert!(best > 0, "a limit leaves something");
        if entries.len() <= best {
            return Some(0);
        }
        let bytes = entries.iter().map(|entry| self.compared_bytes(record(entry))).sum::<usize>();
        if bytes > PRUNED_BYTES_MAX {
            return None;
        }
        entries.select_nth_unstable_by(best, |a, b| self.compare(record(a), record(b)));
        entries.truncate(best);
        assert_eq!(entries.len(), best, "as many are kept as are worth it");
        Some(bytes)
    }

    /// What of a record is compared that may be long.
    fn compared_bytes(&self, record: &Record) -> usize {
        if self.sort_target == SortTarget::Value { record.kv().value.len() } else { 0 }
    }

    fn entry_len(&self, kv: &KeyValue) -> usize {
        codec::key_value_len(kv) - if self.keys_only { kv.value.len() } else { 0 }
    }

    fn entry(&self, kv: &KeyValue) -> KeyValue {
        if self.keys_only { KeyValue { key: kv.key.clone(), value: Bytes::new(), ..*kv } } else { kv.clone() }
    }

    /// Puts entries in the order of the answer, and cuts off what the limit does. Counts what was not certain to be in it before.
    fn arrange<R>(
        &self,
        entries: &mut Vec<R>,
        record: impl Fn(&R) -> &Record,
        bytes: &mut usize,
        bytes_max: usize,
    ) -> Result<(), Error> {
        if !self.is_by_key() {
            entries.sort_unstable_by(|a, b| self.compare(record(a), record(b)));
        }
        debug_assert!(
            entries.windows(2).all(|pair| self.compare(record(&pair[0]), record(&pair[1])).is_lt()),
            "the answer is in the order that was asked for"
        );
        if let Some(limit) = self.limit {
            entries.truncate(limit);
        }
        if self.cuts_later() {
            *bytes += entries.iter().map(|entry| self.entry_len(record(entry).kv())).sum::<usize>();
            if *bytes > bytes_max {
                return Err(Error::AnswerTooLarge);
            }
        }
        let Shape { count, more, .. } = *self;
        assert!(count >= entries.len(), "what is returned is counted");
        assert!(!more || self.limit.is_none_or(|limit| limit == entries.len()), "a limit leaves so many");
        Ok(())
    }

    /// The answer, of entries that are arranged.
    fn reply<'a>(&self, entries: impl Iterator<Item = &'a Record>) -> RangeReply {
        RangeReply { kvs: entries.map(|record| self.entry(record.kv())).collect(), ..self.head() }
    }

    /// The answer without its entries.
    fn head(&self) -> RangeReply {
        let Shape { revision, count, more, .. } = *self;
        RangeReply { revision, kvs: Vec::new(), more, count: count as i64 }
    }
}

/// What a query sees.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    /// The latest revision.
    pub(crate) current: Revision,
    /// The oldest one.
    pub(crate) compact: Revision,
}

impl View {
    /// The revision at which a plain range reads.
    pub(crate) fn range(&self, revision: i64) -> Result<Revision, Error> {
        if revision > self.current.0 {
            Err(Error::FutureRevision)
        } else if revision <= 0 {
            Ok(self.current)
        } else if revision < self.compact.0 {
            Err(Error::Compacted)
        } else {
            Ok(Revision(revision))
        }
    }

    /// Whether a range of a transaction can be read. There, unlike in a plain range, a revision below zero is not the latest
    /// one but an old one.
    pub(crate) fn check_in_txn(&self, revision: i64) -> Result<(), Error> {
        if revision == 0 {
            Ok(())
        } else if revision > self.current.0 {
            Err(Error::FutureRevision)
        } else if revision < self.compact.0 {
            Err(Error::Compacted)
        } else {
            Ok(())
        }
    }
}

/// As [`View::check_in_txn`], in a state whose latest revision is `current`.
pub(crate) fn check_range_in_txn(mvcc: &Mvcc, current: Revision, revision: i64) -> Result<(), Error> {
    View { current, compact: mvcc.compact_revision() }.check_in_txn(revision)
}

/// Reads a range at once. `current` is the latest revision that the reader sees: what is resolved; within a transaction that
/// has written, that of the transaction, and before, the one before it.
pub(crate) fn range_at_once(
    mvcc: &Mvcc,
    current: Revision,
    request: &RangeRequest,
) -> Result<RangeReply, Error> {
    let at = View { current, compact: mvcc.compact_revision() }.range(request.revision)?;
    if request.range.is_single() {
        return Ok(get(mvcc, current, at, request));
    }
    let (mut walk, mut size) = (Walk::default(), Size::unlimited());
    let part = walk.go_on(mvcc, current, at, request, &mut size, &mut Budget::unlimited())?;
    part.expect("there is nothing to wait for").finish(&mut size.bytes, size.bytes_max)
}

/// Reads a single key, which needs no walk.
pub(crate) fn get(mvcc: &Mvcc, current: Revision, at: Revision, request: &RangeRequest) -> RangeReply {
    let found = mvcc.value_at(&request.range.key, at);
    let shown = found.filter(|kv| !request.count_only && passes_revision_filters(request, kv));
    let shape = Shape::of(request, current);
    RangeReply {
        revision: current,
        kvs: shown.map(|kv| shape.entry(kv)).into_iter().collect(),
        more: false,
        count: i64::from(found.is_some()),
    }
}

/// Decides a comparison at once, unless it costs more visits than are left.
pub(crate) fn holds_at_once(
    mvcc: &Mvcc,
    current: Revision,
    compare: &Compare,
    visits: &mut Visits,
) -> Result<bool, Error> {
    let bytes = compare.value_len();
    let cost = |kv: &KeyValue| bytes.min(kv.value.len()) / COMPARED_PER_VISIT;
    if compare.range.is_single() {
        let found = mvcc.value_at(&compare.range.key, current);
        visits.spend(1 + found.map_or(0, cost))?;
        return Ok(found.map_or_else(|| holds_for_missing(compare), |kv| holds_for(compare, kv)));
    }
    let mut is_missing = true;
    for visited in mvcc.walk(&compare.range, None, current) {
        visits.come_by(visited, 1)?;
        let Some(record) = visited.record() else { continue };
        visits.spend(cost(record.kv()))?;
        if !holds_for(compare, record.kv()) {
            return Ok(false);
        }
        is_missing = false;
    }
    Ok(!is_missing || holds_for_missing(compare))
}

/// What a write may still look at. Unlike a [`Budget`] it is the same on every replica: nothing counts that one of them may have
/// swept already.
#[derive(Debug)]
pub(crate) struct Visits {
    allowed: usize,
    left: usize,
    compact: Revision,
    broken: Broken,
}

impl Visits {
    pub(crate) fn new(visits: usize, compact: Revision, broken: Broken) -> Visits {
        Visits { allowed: visits, left: visits, compact, broken }
    }

    /// As many as there are.
    pub(crate) fn unlimited() -> Visits {
        Visits::new(usize::MAX, Revision::NEVER_COMPACTED, Broken::default())
    }

    pub(crate) fn spent(&self) -> usize {
        self.allowed - self.left
    }

    pub(crate) fn spend(&mut self, visits: usize) -> Result<(), Error> {
        self.left = self.left.checked_sub(visits).ok_or(Error::TooManyOps)?;
        Ok(())
    }

    fn come_by(&mut self, visited: Visited<'_>, visits: usize) -> Result<(), Error> {
        let counts = visited.is_kept(self.compact) || mutant!(self.broken, GarbageCounted);
        self.spend(if counts { visits } else { 0 })
    }
}

/// What entries take in an answer, encoded.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Entries {
    /// All of them.
    pub(crate) bytes: usize,
    /// The longest one.
    pub(crate) largest: usize,
}

/// The entries among which are those that a range answers, without what is written meanwhile: if it is read at `at`; or later, when
/// up to `changed` of its keys may have been written or deleted (none: any number of them). An error if they pass `bytes_max` and
/// all are answered, or if this look and the reading cost more visits than are left.
pub(crate) fn foresee_range(
    mvcc: &Mvcc,
    at: Revision,
    request: &RangeRequest,
    changed: Option<usize>,
    bytes_max: usize,
    visits: &mut Visits,
) -> Result<Entries, Error> {
    let shape = Shape::of(request, at);
    // What changed may make room for others.
    let first = match (shape.is_by_key(), shape.limit, changed) {
        (true, Some(limit), Some(changed)) => limit.saturating_add(changed),
        (true, None, _) | (true, _, None) | (false, ..) => usize::MAX,
    };
    let mut entries = Entries::default();
    let mut count = 0_usize;
    for visited in mvcc.walk(&request.range, None, at) {
        visits.come_by(visited, LOOK_VISITS)?;
        if request.count_only || count == first {
            continue;
        }
        let Some(record) = visited.record().filter(|record| passes_revision_filters(request, record.kv()))
        else {
            continue;
        };
        count += 1;
        visits.spend(if shape.is_by_key() { COPY_VISITS } else { COPY_VISITS + SORT_VISITS })?;
        if shape.sort_target == SortTarget::Value {
            visits.spend(record.kv().value.len() / SORTED_PER_VISIT)?;
        }
        debug_assert!(record.revision() <= at, "nothing from after the revision is read");
        let len = shape.entry_len(record.kv());
        entries = Entries { bytes: entries.bytes + len, largest: entries.largest.max(len) };
        if shape.limit.is_none() && entries.bytes > bytes_max {
            return Err(Error::AnswerTooLarge);
        }
    }
    assert!(entries.largest <= entries.bytes, "the longest entry is one of them");
    Ok(entries)
}

/// The answer's size, while it is gathered.
#[derive(Debug)]
pub(crate) struct Size {
    /// Of the entries that are in it for certain, encoded.
    pub(crate) bytes: usize,
    /// Of what remembers the entries that may be cut off.
    held: usize,
    bytes_max: usize,
}

impl Size {
    pub(crate) fn new() -> Size {
        Size { bytes: 0, held: 0, bytes_max: ANSWER_BYTES_MAX }
    }

    fn unlimited() -> Size {
        Size { bytes: 0, held: 0, bytes_max: usize::MAX }
    }

    pub(crate) fn add(&mut self, bytes: usize) -> Result<(), Error> {
        self.bytes += bytes;
        self.check()
    }

    fn hold(&mut self, bytes: usize) -> Result<(), Error> {
        self.held += bytes;
        self.check()
    }

    fn check(&self) -> Result<(), Error> {
        if self.bytes.max(self.held) > self.bytes_max { Err(Error::AnswerTooLarge) } else { Ok(()) }
    }
}

/// Where a walk over a range is, and what it has found so far.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    /// Behind this key, or before all.
    pub(crate) after: Option<Bytes>,
    /// Keys found.
    count: usize,
    /// Those of them that pass the filters.
    passed: usize,
    /// What is kept of them.
    records: Vec<Arc<Record>>,
    /// The keys and values of these.
    bytes: usize,
    /// The entries of an answer, as [`wire_len`] measures them.
    wire_bytes: u64,
    /// Of a page: it has ended, and others follow.
    is_cut: bool,
    /// Nothing that was found is dropped: it takes too long to find out what others have cut off.
    keeps_all: bool,
}

/// What a list has found.
#[derive(Debug)]
pub(crate) enum Listed {
    Whole(Part),
    Measured(MeasuredReply),
}

impl Walk {
    /// Goes on. None when the budget is spent before the end.
    pub(crate) fn go_on(
        &mut self,
        mvcc: &Mvcc,
        current: Revision,
        at: Revision,
        request: &RangeRequest,
        size: &mut Size,
        budget: &mut Budget,
    ) -> Result<Option<Part>, Error> {
        let shape = Shape::of(request, current);
        let has_filters = has_revision_filters(request);
        let first = shape.first(has_filters);
        let best = shape.best().filter(|_| first == usize::MAX);
        // Bytes to compare of what has come since something was dropped.
        let mut unpruned = 0;
        // Of this step, not shared before it is known that there is another one.
        let mut found: Vec<&Arc<Record>> = Vec::new();
        let mut last = None;
        let mut is_through = true;
        for visited in mvcc.walk(&request.range, self.after.as_ref(), at) {
            if budget.is_spent() {
                is_through = false;
                break;
            }
            budget.spend(1);
            // The rest is counted only, which is much quicker.
            let is_full = first < usize::MAX && !has_filters && shape.limit < Some(self.count);
            last = Some(visited);
            if request.count_only || is_full {
                self.count += usize::from(visited.is_live());
                continue;
            }
            let Some(record) = visited.record() else { continue };
            debug_assert!(record.revision() <= at, "nothing from after the revision is read");
            self.count += 1;
            if !passes_revision_filters(request, record.kv()) {
                continue;
            }
            self.passed += 1;
            if self.passed > first {
                continue;
            }
            found.push(record);
            if let Some(best) = best.filter(|_| !self.keeps_all) {
                budget.spend(1);
                unpruned += shape.compared_bytes(record);
                if found.len() > 2 * best + 64 || unpruned > PRUNED_EVERY {
                    unpruned = 0;
                    let compared = shape.prune(best, &mut found, |record| record);
                    self.note_pruned(compared, &found, size, budget)?;
                }
                continue;
            }
            self.bytes += record.kv().key.len() + record.kv().value.len();
            if shape.cuts_later() {
                size.hold(size_of::<Arc<Record>>())?;
            } else {
                size.add(shape.entry_len(record.kv()))?;
            }
        }
        if !is_through {
            self.stop_behind(last);
            self.records.extend(found.into_iter().cloned());
            if let Some(best) = best.filter(|_| !self.keeps_all) {
                let compared = shape.prune(best, &mut self.records, |record| record);
                self.note_pruned(compared, &[], size, budget)?;
            }
            return Ok(None);
        }
        assert!(self.passed <= self.count, "what passes the filters exists");
        let walk = std::mem::take(self);
        let more = !request.count_only && shape.limit.is_some_and(|limit| walk.passed > limit);
        let shape = Shape { count: walk.count, more, ..shape };
        walk.end(shape, found, size, budget).map(Some)
    }

    /// What was compared to drop entries; nothing when that is given up. Then all that is kept counts, `found` of this step
    /// included.
    fn note_pruned(
        &mut self,
        compared: Option<usize>,
        found: &[&Arc<Record>],
        size: &mut Size,
        budget: &mut Budget,
    ) -> Result<(), Error> {
        if let Some(bytes) = compared {
            budget.spend(bytes / SORTED_PER_VISIT);
            return Ok(());
        }
        assert!(!self.keeps_all, "it is given up once");
        self.keeps_all = true;
        let kept = self.records.iter().chain(found.iter().copied());
        let (bytes, count) = kept.fold((0, 0), |(bytes, count), record| {
            (bytes + record.kv().key.len() + record.kv().value.len(), count + 1)
        });
        self.bytes += bytes;
        size.hold(count * size_of::<Arc<Record>>())
    }

    /// The same for a page.
    pub(crate) fn go_on_page(
        &mut self,
        mvcc: &Mvcc,
        current: Revision,
        at: Revision,
        request: &PageRequest,
        size: &mut Size,
        budget: &mut Budget,
    ) -> Result<Option<Part>, Error> {
        let all = RangeRequest { keys_only: request.keys_only, ..RangeRequest::new(request.range.clone()) };
        let shape = Shape::of(&all, current);
        let mut found: Vec<&Arc<Record>> = Vec::new();
        let mut last = None;
        for visited in mvcc.walk(&request.range, self.after.as_ref(), at) {
            if budget.is_spent() {
                self.stop_behind(last);
                self.records.extend(found.into_iter().cloned());
                return Ok(None);
            }
            budget.spend(1);
            last = Some(visited);
            if self.is_cut {
                self.count += usize::from(visited.is_live());
                continue;
            }
            let Some(record) = visited.record() else { continue };
            debug_assert!(record.revision() <= at, "nothing from after the revision is read");
            let is_full = self.passed as u64 >= request.limit || self.bytes as u64 > request.bytes;
            if is_full && self.passed > 0 {
                self.is_cut = true;
                if !request.counts_rest {
                    break;
                }
                self.count += 1;
                continue;
            }
            self.count += 1;
            self.passed += 1;
            let kv = record.kv();
            self.bytes += kv.key.len() + if request.keys_only { 0 } else { kv.value.len() };
            size.add(shape.entry_len(kv))?;
            found.push(record);
        }
        let walk = std::mem::take(self);
        assert!(!walk.is_cut || walk.passed > 0, "a page that is not the last one has a key");
        let shape = Shape { count: walk.count, more: walk.is_cut, ..shape };
        walk.end(shape, found, size, budget).map(Some)
    }

    /// The same for a list, whose entries are kept only while they are short enough.
    pub(crate) fn go_on_list(
        &mut self,
        mvcc: &Mvcc,
        current: Revision,
        at: Revision,
        request: &ListRequest,
        size: &mut Size,
        budget: &mut Budget,
    ) -> Result<Option<Listed>, Error> {
        let all = RangeRequest { keys_only: request.keys_only, ..RangeRequest::new(request.range.clone()) };
        let shape = Shape::of(&all, current);
        let first = if request.limit == 0 { u64::MAX } else { request.limit };
        let mut found: Vec<&Arc<Record>> = Vec::new();
        let mut last = None;
        for visited in mvcc.walk(&request.range, self.after.as_ref(), at) {
            if budget.is_spent() {
                self.stop_behind(last);
                self.records.extend(found.into_iter().cloned());
                return Ok(None);
            }
            budget.spend(1);
            last = Some(visited);
            // The rest is counted only.
            if self.passed as u64 == first {
                self.count += usize::from(visited.is_live());
                continue;
            }
            let Some(record) = visited.record() else { continue };
            debug_assert!(record.revision() <= at, "nothing from after the revision is read");
            self.count += 1;
            self.passed += 1;
            let kv = record.kv();
            self.wire_bytes += wire_len(kv, request.keys_only) as u64;
            if self.wire_bytes > WIRE_BYTES_MAX {
                return Err(Error::AnswerTooLarge);
            }
            if self.wire_bytes > request.bytes {
                found.clear();
                self.records = Vec::new();
                continue;
            }
            self.bytes += kv.key.len() + kv.value.len();
            size.add(shape.entry_len(kv))?;
            found.push(record);
        }
        let walk = std::mem::take(self);
        assert!(walk.passed <= walk.count, "what is shown is counted");
        let more = walk.passed < walk.count;
        if walk.wire_bytes > request.bytes {
            let (shown, bytes) = (walk.passed as u64, walk.wire_bytes);
            let measured = MeasuredReply { revision: current, shown, bytes, more, count: walk.count as i64 };
            return Ok(Some(Listed::Measured(measured)));
        }
        let shape = Shape { count: walk.count, more, ..shape };
        walk.end(shape, found, size, budget).map(|part| Some(Listed::Whole(part)))
    }

    pub(crate) fn stop_behind(&mut self, last: Option<Visited<'_>>) {
        if let Some(last) = last {
            assert!(self.after.as_ref() < Some(last.key()), "a walk goes forward");
            self.after = Some(last.key().clone());
        }
    }

    fn end(
        mut self,
        shape: Shape,
        found: Vec<&Arc<Record>>,
        size: &mut Size,
        budget: &mut Budget,
    ) -> Result<Part, Error> {
        let entries = self.records.len() + found.len();
        let is_pruned = shape.best().is_some() && !self.keeps_all;
        let compared = || {
            let all = self.records.iter().chain(found.iter().copied());
            all.map(|record| shape.compared_bytes(record)).sum::<usize>()
        };
        let is_long_sort = !shape.is_by_key()
            && (entries > LARGE_SORT && !is_pruned || entries <= LARGE_ENTRIES && compared() > LARGE_BYTES);
        if is_long_sort || entries > LARGE_ENTRIES || self.bytes > LARGE_BYTES {
            self.records.extend(found.into_iter().cloned());
            return Ok(Part::Large(shape, self.records));
        }
        budget.spend(entries / 2);
        let mut found: Vec<&Record> = found.into_iter().map(Arc::as_ref).collect();
        found.splice(..0, self.records.iter().map(Arc::as_ref));
        shape.arrange(&mut found, |record| record, &mut size.bytes, size.bytes_max)?;
        Ok(Part::Ready(shape.reply(found.into_iter())))
    }

    /// Goes on with a comparison. None when the budget is spent before it is decided.
    pub(crate) fn compare(
        &mut self,
        mvcc: &Mvcc,
        current: Revision,
        compare: &Compare,
        budget: &mut Budget,
    ) -> Option<bool> {
        assert!(self.records.is_empty(), "a comparison gathers nothing");
        let bytes_compared = compare.value_len();
        if compare.range.is_single() {
            budget.spend(1 + bytes_compared / COMPARED_PER_VISIT);
            let found = mvcc.value_at(&compare.range.key, current);
            return Some(found.map_or_else(|| holds_for_missing(compare), |kv| holds_for(compare, kv)));
        }
        let mut last = None;
        for visited in mvcc.walk(&compare.range, self.after.as_ref(), current) {
            if budget.is_spent() {
                self.stop_behind(last);
                return None;
            }
            budget.spend(1);
            last = Some(visited);
            let Some(record) = visited.record() else { continue };
            self.count += 1;
            budget.spend(bytes_compared.min(record.kv().value.len()) / COMPARED_PER_VISIT);
            if !holds_for(compare, record.kv()) {
                *self = Walk::default();
                return Some(false);
            }
        }
        let found = std::mem::take(self).count;
        Some(found > 0 || holds_for_missing(compare))
    }
}

fn has_revision_filters(request: &RangeRequest) -> bool {
    request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0
}

fn passes_revision_filters(request: &RangeRequest, kv: &KeyValue) -> bool {
    let within = |revision: Revision, min: i64, max: i64| {
        (min == 0 || revision.0 >= min) && (max == 0 || revision.0 <= max)
    };
    within(kv.mod_revision, request.min_mod_revision, request.max_mod_revision)
        && within(kv.create_revision, request.min_create_revision, request.max_create_revision)
}

fn holds_for_missing(compare: &Compare) -> bool {
    match compare.target {
        // A missing key has no value to compare with, not even a different one.
        CompareTarget::Value(_) => false,
        CompareTarget::Version(_)
        | CompareTarget::Create(_)
        | CompareTarget::Mod(_)
        | CompareTarget::Lease(_)
        | CompareTarget::Unknown => holds_for(compare, &KeyValue::default()),
    }
}

fn holds_for(compare: &Compare, kv: &KeyValue) -> bool {
    let ordering = match &compare.target {
        CompareTarget::Version(version) => kv.version.cmp(version),
        CompareTarget::Create(revision) => kv.create_revision.0.cmp(revision),
        CompareTarget::Mod(revision) => kv.mod_revision.0.cmp(revision),
        CompareTarget::Value(value) => kv.value.cmp(value),
        CompareTarget::Lease(lease) => kv.lease.cmp(lease),
        CompareTarget::Unknown => Ordering::Equal,
    };
    match compare.result {
        CompareResult::Equal => ordering.is_eq(),
        CompareResult::Greater => ordering.is_gt(),
        CompareResult::Less => ordering.is_lt(),
        CompareResult::NotEqual => ordering.is_ne(),
        CompareResult::Unknown => true,
    }
}

/// What was found, as an answer if that is little work.
pub(crate) fn gathered(
    revision: Revision,
    succeeded: Option<bool>,
    parts: Vec<Part>,
    bytes: usize,
) -> Gathered {
    let is_ready = bytes <= LARGE_BYTES && parts.iter().all(|part| matches!(part, Part::Ready(_)));
    let found = Gathered(Found::Ranges { revision, succeeded, parts, bytes });
    if is_ready { Gathered::from(found.finish()) } else { found }
}
