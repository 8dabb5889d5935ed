//! Shards: the unit of state. Each has its keys with their history, the results of writes to it, and which of its keys
//! hang on which lease, so that moving a shard is moving that. What concerns all shards alike is the group's.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use shard_map::{Epoch, ShardId};

use crate::{
    DeleteRange, Error, KeyRange, LeaseId, Op, Put, RangeEnd, Route, Txn, TxnOp,
    digest::Hasher,
    mutant::{Broken, mutant},
    mvcc::Mvcc,
    results::Results,
};

/// Which keys a shard has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardSpan {
    /// The shard.
    pub id: ShardId,
    /// The epoch of the map since which it has these keys and is where it is. Commands that were routed by an older one may
    /// mean other keys.
    pub since: Epoch,
    /// Its first key.
    pub start: Bytes,
    /// The first key after it; none if there is none.
    pub end: Option<Bytes>,
}

impl ShardSpan {
    /// The shard that a domain begins with, which has all keys.
    pub fn whole() -> ShardSpan {
        let Route { shard, epoch } = Route::FIRST;
        ShardSpan { id: shard, since: epoch, start: Bytes::new(), end: None }
    }

    fn is_whole(&self) -> bool {
        self.start.is_empty() && self.end.is_none()
    }

    fn holds(&self, key: &[u8]) -> bool {
        self.start.as_ref() <= key && self.end.as_ref().is_none_or(|end| key < end.as_ref())
    }

    /// Whether every key of a range is one of the shard's.
    pub(crate) fn covers(&self, range: &KeyRange) -> bool {
        let reaches_end = match (&range.end, &self.end) {
            (_, None) | (RangeEnd::Single, Some(_)) => true,
            (RangeEnd::From, Some(_)) => false,
            (RangeEnd::At(end), Some(own)) => end <= own,
        };
        range.is_empty() || self.holds(&range.key) && reaches_end
    }

    fn covers_op(&self, op: &Op) -> bool {
        self.is_whole()
            || match op {
                Op::Put(put) => self.holds(&put.key),
                Op::DeleteRange(delete) => self.covers(&delete.range),
                Op::Txn(txn) => self.covers_txn(txn),
                Op::Compact { .. }
                | Op::LeaseGrant { .. }
                | Op::LeaseRevoke { .. }
                | Op::AlarmActivate { .. }
                | Op::AlarmDeactivate { .. } => true,
            }
    }

    /// Whether every key of a transaction, of both branches, is one of the shard's.
    pub(crate) fn covers_txn(&self, txn: &Txn) -> bool {
        self.is_whole()
            || txn.compare.iter().all(|compare| self.covers(&compare.range))
                && txn.success.iter().chain(&txn.failure).all(|op| match op {
                    TxnOp::Range(request) => self.covers(&request.range),
                    TxnOp::Put(Put { key, .. }) => self.holds(key),
                    TxnOp::DeleteRange(DeleteRange { range, .. }) => self.covers(range),
                    TxnOp::Txn(txn) => self.covers_txn(txn),
                    TxnOp::Empty => true,
                })
    }
}

/// A shard that is here.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) span: ShardSpan,
    pub(crate) mvcc: Mvcc,
    pub(crate) results: Results,
    pub(crate) attachments: Attachments,
}

impl Shard {
    pub(crate) fn new(span: ShardSpan) -> Shard {
        Shard { span, mvcc: Mvcc::new(), results: Results::default(), attachments: Attachments::default() }
    }

    pub(crate) fn digest(&self) -> u64 {
        let ShardSpan { id, since, start, end } = &self.span;
        let hasher = Hasher::new(9).u64(id.0).u64(since.0).bytes(start).u64(u64::from(end.is_some()));
        let hasher = end.iter().fold(hasher, |hasher, end| hasher.bytes(end));
        hasher.u64(self.mvcc.digest()).u64(self.results.digest()).finish()
    }
}

/// The keys of a shard that hang on leases.
#[derive(Debug, Default)]
pub(crate) struct Attachments {
    keys: BTreeMap<LeaseId, BTreeSet<Bytes>>,
}

impl Attachments {
    /// Moves a key from its old lease to its new one; either may be none.
    pub(crate) fn move_key(&mut self, key: &Bytes, old: LeaseId, new: LeaseId) {
        if old == new {
            return;
        }
        if let Some(keys) = self.keys.get_mut(&old) {
            assert!(keys.remove(key), "a key with a lease is attached to it");
            if keys.is_empty() {
                self.keys.remove(&old);
            }
        }
        if !new.is_none() {
            let is_new = self.keys.entry(new).or_default().insert(key.clone());
            assert!(is_new, "a key has one lease");
        }
    }

    pub(crate) fn has(&self, lease: LeaseId) -> bool {
        self.keys.contains_key(&lease)
    }

    pub(crate) fn keys(&self, lease: LeaseId) -> impl Iterator<Item = &Bytes> {
        self.keys.get(&lease).into_iter().flatten()
    }

    /// Takes a lease out and returns its keys, in order.
    pub(crate) fn remove(&mut self, lease: LeaseId) -> BTreeSet<Bytes> {
        self.keys.remove(&lease).unwrap_or_default()
    }

    /// Checks that `attached`, the keys with leases, are those recorded here.
    pub(crate) fn check_invariants(&self, attached: impl Iterator<Item = (Bytes, LeaseId)>) {
        let mut expected = BTreeMap::<LeaseId, BTreeSet<Bytes>>::new();
        for (key, lease) in attached {
            expected.entry(lease).or_default().insert(key);
        }
        assert_eq!(expected, self.keys, "the keys with leases are those attached to them");
    }
}

/// The shards of a group: in the order of keys, and found by id.
#[derive(Debug)]
pub(crate) struct Shards {
    list: Vec<Shard>,
    /// The place of each in the list, by id.
    places: Vec<(ShardId, usize)>,
}

impl Shards {
    /// These shards, if no key and no id is in two of them.
    pub(crate) fn new(mut list: Vec<Shard>) -> Option<Shards> {
        list.sort_by(|a, b| a.span.start.cmp(&b.span.start));
        let apart = |pair: &[Shard]| pair[0].span.end.as_ref().is_some_and(|end| *end <= pair[1].span.start);
        let mut places: Vec<_> = list.iter().map(|shard| shard.span.id).zip(0..).collect();
        places.sort_unstable();
        let fit = list.windows(2).all(apart) && places.windows(2).all(|pair| pair[0].0 < pair[1].0);
        fit.then_some(Shards { list, places })
    }

    /// In the order of keys.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Shard> {
        self.list.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Shard> {
        self.list.iter_mut()
    }

    /// The one at a place that [`Shards::place_for`] gave.
    pub(crate) fn at(&self, place: usize) -> &Shard {
        &self.list[place]
    }

    pub(crate) fn at_mut(&mut self, place: usize) -> &mut Shard {
        &mut self.list[place]
    }

    pub(crate) fn get(&self, id: ShardId) -> Option<&Shard> {
        self.place_of(id).map(|place| &self.list[place])
    }

    /// Where a write belongs that was routed so.
    pub(crate) fn place_for(&self, route: Route, op: &Op, broken: Broken) -> Result<usize, Error> {
        let place = self.place_of(route.shard).ok_or(Error::WrongShard)?;
        let span = &self.list[place].span;
        let is_current = route.epoch >= span.since || mutant!(broken, StaleEpochApplied);
        let is_held = span.covers_op(op) || mutant!(broken, ForeignKeysApplied);
        if is_current && is_held { Ok(place) } else { Err(Error::WrongShard) }
    }

    /// The shard with every key of a range. Of an empty range, the first one.
    pub(crate) fn covering(&self, range: &KeyRange) -> Result<&Shard, Error> {
        if let [only] = self.list.as_slice()
            && only.span.is_whole()
        {
            return Ok(only);
        }
        let shard = if range.is_empty() { self.list.first() } else { self.holding(&range.key) };
        shard.filter(|shard| shard.span.covers(range)).ok_or(Error::WrongShard)
    }

    /// The shard with every key of a transaction. Of one without keys, the first one.
    pub(crate) fn covering_txn(&self, txn: &Txn) -> Result<&Shard, Error> {
        let shard = match self.list.as_slice() {
            [only] => Some(only),
            several => several.iter().find(|shard| shard.span.covers_txn(txn)),
        };
        shard.filter(|shard| shard.span.covers_txn(txn)).ok_or(Error::WrongShard)
    }

    /// The shard with a key.
    pub(crate) fn holding(&self, key: &[u8]) -> Option<&Shard> {
        let after = self.list.partition_point(|shard| shard.span.start.as_ref() <= key);
        let shard = self.list.get(after.checked_sub(1)?)?;
        shard.span.holds(key).then_some(shard)
    }

    fn place_of(&self, id: ShardId) -> Option<usize> {
        let index = self.places.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        let place = self.places[index].1;
        assert_eq!(self.list[place].span.id, id, "the places are those of the list");
        Some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(id: u64, start: &'static str, end: Option<&'static str>) -> ShardSpan {
        ShardSpan { id: ShardId(id), since: Epoch(3), start: start.into(), end: end.map(Bytes::from) }
    }

    fn shards(spans: Vec<ShardSpan>) -> Option<Shards> {
        Shards::new(spans.into_iter().map(Shard::new).collect())
    }

    #[test]
    fn shards_lie_apart_and_are_found_by_id_and_by_key() {
        assert!(shards(vec![span(1, "", Some("m")), span(1, "m", None)]).is_none());
        assert!(shards(vec![span(1, "", Some("n")), span(2, "m", None)]).is_none());
        assert!(shards(vec![span(1, "", None), span(2, "m", None)]).is_none());
        let shards =
            shards(vec![span(2, "x", None), span(9, "", Some("c")), span(4, "m", Some("x"))]).unwrap();
        let order: Vec<u64> = shards.iter().map(|shard| shard.span.id.0).collect();
        assert_eq!(order, [9, 4, 2]);
        for id in order {
            assert_eq!(shards.get(ShardId(id)).unwrap().span.id, ShardId(id));
        }
        assert!(shards.get(ShardId(1)).is_none());
        let holding = |key: &str| shards.holding(key.as_bytes()).map(|shard| shard.span.id.0);
        assert_eq!(
            ["", "b", "c", "l", "m", "w", "x", "z"].map(holding).map(Option::unwrap_or_default),
            [9, 9, 0, 0, 4, 4, 2, 2]
        );
    }

    #[test]
    fn a_shard_covers_what_lies_between_its_ends() {
        let shard = span(4, "m", Some("x"));
        for range in [KeyRange::single("m"), KeyRange::between("m", "x"), KeyRange::between("z", "a")] {
            assert!(shard.covers(&range), "{range:?}");
        }
        let outside = [
            KeyRange::single("x"),
            KeyRange::between("l", "n"),
            KeyRange::between("m", "x\0"),
            KeyRange::from("n"),
        ];
        for range in outside {
            assert!(!shard.covers(&range), "{range:?}");
        }
        assert!(span(2, "x", None).covers(&KeyRange::from("y")));
        let txn = |key: &'static str| Txn { failure: vec![TxnOp::Put(Put::new(key, ""))], ..Txn::default() };
        let nested = |txn: Txn| Txn { success: vec![TxnOp::Txn(txn)], ..Txn::default() };
        assert!(shard.covers_txn(&nested(txn("n"))) && !shard.covers_txn(&nested(txn("a"))));
    }
}
