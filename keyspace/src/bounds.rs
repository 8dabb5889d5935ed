//! How much one write may read and answer, and how much is kept of answers. A write is carried out at once, by every replica, so
//! one that would pass a bound is refused before it writes anything: nothing has to be taken back.
//!
//! What the answer holds is not known before the write is made. What it can hold at most is, from the state as it was: what a
//! range finds there, and what the transaction itself writes before it.

use std::collections::BTreeMap;

use crate::{
    ANSWER_BYTES_MAX, ClusterVersion, DeleteRange, Error, KeyRange, Put, RangeRequest, Revision,
    codec::key_value_len,
    mvcc::Mvcc,
    ranges::{OP_BYTES, Visits, foresee_range},
    txn::{Plan, PlannedOp},
};

/// Bounds that every replica must apply alike: they are part of what [`ClusterVersion::BOUNDED_WRITES`] means, and so is what is
/// counted how. Only simulations and tests have others than the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteBounds {
    /// Bytes of a write's answer, encoded.
    pub answer_bytes: usize,
    /// Keys that a transaction which writes may look at, each once to find out what it would answer and once to answer it; what
    /// is copied or sorted counts more.
    pub visits: usize,
    /// Bytes of answers that are kept for a session in each shard, for retries.
    pub kept_bytes: usize,
}

impl WriteBounds {
    /// What there is no bound of.
    pub(crate) const NONE: WriteBounds =
        WriteBounds { answer_bytes: usize::MAX, visits: usize::MAX, kept_bytes: usize::MAX };

    /// Those in force at this version.
    pub(crate) fn at(self, version: ClusterVersion) -> WriteBounds {
        if version >= ClusterVersion::BOUNDED_WRITES { self } else { WriteBounds::NONE }
    }
}

impl Default for WriteBounds {
    /// Visits, during which the group does nothing else: a quarter of a million keys can be counted, and the first of
    /// them be read. Kept: as much as several hundred writes with a previous value of the size that etcd is made for.
    fn default() -> WriteBounds {
        WriteBounds { answer_bytes: ANSWER_BYTES_MAX, visits: 1 << 19, kept_bytes: 64 << 20 }
    }
}

/// Refuses a deletion whose answer would be too large. It may look at any number of keys: what it finds it deletes.
pub(crate) fn check_delete_range(
    mvcc: &Mvcc,
    current: Revision,
    delete: &DeleteRange,
    bounds: WriteBounds,
) -> Result<(), Error> {
    if !delete.prev_kv || delete.range.is_single() || bounds == WriteBounds::NONE {
        return Ok(());
    }
    let mut answer = Answer { bytes: OP_BYTES, bytes_max: bounds.answer_bytes };
    let request = all_of(&delete.range);
    let found = foresee_range(mvcc, current, &request, None, answer.left(), &mut Visits::unlimited())?;
    answer.add(found.bytes)
}

/// Refuses a transaction whose answer could be too large, or that looks at more keys than `visits` has left, on the state before
/// its first write. Returns how many bytes the answer has at most, encoded.
pub(crate) fn check_txn(
    plan: &Plan<'_>,
    mvcc: &Mvcc,
    current: Revision,
    bounds: WriteBounds,
    visits: &mut Visits,
) -> Result<usize, Error> {
    if !plan.tells() || bounds == WriteBounds::NONE {
        return Ok(usize::MAX);
    }
    let answer = Answer { bytes: OP_BYTES, bytes_max: bounds.answer_bytes };
    let mut course = Course {
        mvcc,
        current,
        visits,
        answer,
        puts: BTreeMap::new(),
        put_bytes: 0,
        deleted: Some(0),
        is_range_deleted: false,
    };
    course.add_plan(plan)?;
    assert!(course.answer.bytes <= bounds.answer_bytes, "what passes the bound is refused");
    assert!(
        course.put_bytes >= course.puts.values().sum::<usize>(),
        "each key is counted as often as it is written"
    );
    Ok(course.answer.bytes)
}

/// What an answer holds at most so far.
#[derive(Debug)]
struct Answer {
    bytes: usize,
    bytes_max: usize,
}

impl Answer {
    fn left(&self) -> usize {
        debug_assert!(self.bytes <= self.bytes_max, "who has passed the bound does not go on");
        self.bytes_max.saturating_sub(self.bytes)
    }

    fn add(&mut self, bytes: usize) -> Result<(), Error> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.bytes_max { Err(Error::AnswerTooLarge) } else { Ok(()) }
    }
}

/// The course of a transaction as it is foreseen, operation by operation.
struct Course<'a> {
    mvcc: &'a Mvcc,
    current: Revision,
    visits: &'a mut Visits,
    answer: Answer,
    /// Keys written so far, with the most that they take in an answer, and what they all take.
    puts: BTreeMap<&'a [u8], usize>,
    put_bytes: usize,
    /// Keys deleted so far at most; none if any number of them may be.
    deleted: Option<usize>,
    is_range_deleted: bool,
}

impl<'a> Course<'a> {
    fn add_plan(&mut self, plan: &Plan<'a>) -> Result<(), Error> {
        for op in plan.ops() {
            self.answer.add(OP_BYTES)?;
            match op {
                PlannedOp::Range(request) => self.add_range(request)?,
                PlannedOp::Put(put) => self.add_put(put)?,
                PlannedOp::DeleteRange(delete) => self.add_delete(delete)?,
                PlannedOp::Txn(plan) => self.add_plan(plan)?,
            }
        }
        Ok(())
    }

    fn visit(&mut self, keys: usize) -> Result<(), Error> {
        self.visits.spend(keys)
    }

    /// What an answer can hold of a key, as it was or as the transaction has written it.
    fn bytes_of(&self, key: &[u8]) -> usize {
        let before = self.mvcc.latest(key).map_or(0, key_value_len);
        before.max(self.puts.get(key).copied().unwrap_or(0))
    }

    fn add_range(&mut self, request: &RangeRequest) -> Result<(), Error> {
        let is_old = request.revision > 0;
        if request.range.is_single() {
            self.visit(1)?;
            let at_old = || self.mvcc.value_at(&request.range.key, Revision(request.revision));
            let bytes = match (request.count_only, is_old) {
                (true, _) => 0,
                (false, true) => at_old().map_or(0, key_value_len),
                (false, false) => self.bytes_of(&request.range.key),
            };
            return self.answer.add(bytes);
        }
        let (at, changed) = if is_old {
            (Revision(request.revision), Some(0))
        } else {
            // It comes by the keys that were written, too.
            self.visit(self.puts.len())?;
            (self.current, self.deleted.map(|deleted| deleted + self.puts.len()))
        };
        let found = foresee_range(self.mvcc, at, request, changed, self.answer.left(), self.visits)?;
        let (put_bytes, largest_put) = if is_old || request.count_only {
            (0, 0)
        } else {
            (self.put_bytes, self.puts.values().copied().max().unwrap_or(0))
        };
        let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0);
        let most = limit.map_or(usize::MAX, |limit| limit.saturating_mul(found.largest.max(largest_put)));
        self.answer.add((found.bytes + put_bytes).min(most))
    }

    fn add_put(&mut self, put: &'a Put) -> Result<(), Error> {
        let before = if put.prev_kv || put.ignore_value { self.bytes_of(&put.key) } else { 0 };
        if put.prev_kv {
            self.answer.add(before)?;
        }
        let kept = if put.ignore_value { before } else { 0 };
        let bytes = put.key.len() + put.value.len() + kept + OP_BYTES;
        let most = self.puts.entry(put.key.as_ref()).or_default();
        *most = bytes.max(*most);
        self.put_bytes = self.put_bytes.saturating_add(bytes);
        Ok(())
    }

    fn add_delete(&mut self, delete: &DeleteRange) -> Result<(), Error> {
        if delete.range.is_single() {
            self.deleted = self.deleted.map(|deleted| deleted + 1);
            let bytes = if delete.prev_kv { self.bytes_of(&delete.range.key) } else { 0 };
            return self.answer.add(bytes);
        }
        self.deleted = None;
        // What the first one finds it deletes; those that follow may come by the same keys again, to no end.
        let is_first = !std::mem::replace(&mut self.is_range_deleted, true);
        if is_first && !delete.prev_kv {
            return Ok(());
        }
        let mut free = Visits::unlimited();
        let visits = if is_first { &mut free } else { &mut *self.visits };
        visits.spend(self.puts.len())?;
        let request = RangeRequest { count_only: !delete.prev_kv, ..all_of(&delete.range) };
        let found = foresee_range(self.mvcc, self.current, &request, None, self.answer.left(), visits)?;
        self.answer.add(found.bytes)?;
        self.answer.add(if delete.prev_kv { self.put_bytes } else { 0 })
    }
}

fn all_of(range: &KeyRange) -> RangeRequest {
    RangeRequest::new(range.clone())
}
