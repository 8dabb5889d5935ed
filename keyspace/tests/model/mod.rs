//! etcd's data model once more, as plainly as can be: a list of everything that ever happened, searched from end to
//! end. It shares the request and answer types with the crate and nothing else.

#![allow(dead_code, reason = "each test target uses a part")]

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use keyspace::*;

#[derive(Clone, Debug)]
pub(crate) struct Happened {
    pub(crate) revision: i64,
    pub(crate) kind: EventKind,
    pub(crate) kv: KeyValue,
}

#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) history: Vec<Happened>,
    pub(crate) revision: i64,
    pub(crate) compacted: i64,
    pub(crate) leases: BTreeMap<i64, i64>,
}

impl Model {
    pub(crate) fn new() -> Model {
        Model { history: Vec::new(), revision: 1, compacted: -1, leases: BTreeMap::new() }
    }

    /// The keys of a range as of a revision.
    pub(crate) fn read(&self, range: &KeyRange, at: i64) -> Vec<KeyValue> {
        let mut found = BTreeMap::new();
        for event in &self.history {
            if event.revision <= at && range.contains(&event.kv.key) {
                match event.kind {
                    EventKind::Put => found.insert(event.kv.key.clone(), event.kv.clone()),
                    EventKind::Delete => found.remove(&event.kv.key),
                };
            }
        }
        found.into_values().collect()
    }

    fn get(&self, key: &Bytes) -> Option<KeyValue> {
        self.read(&KeyRange::single(key.clone()), i64::MAX).pop()
    }

    pub(crate) fn perform(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Put(put) => {
                self.check_put(put)?;
                let prev_kv = self.put(put, self.revision + 1);
                self.revision += 1;
                Ok(Reply::Put(PutReply { revision: Revision(self.revision), prev_kv }))
            }
            Op::DeleteRange(delete) => {
                let prev_kvs = self.delete(&delete.range, self.revision + 1);
                self.revision += i64::from(!prev_kvs.is_empty());
                Ok(Reply::DeleteRange(DeleteRangeReply {
                    revision: Revision(self.revision),
                    deleted: prev_kvs.len() as i64,
                    prev_kvs: if delete.prev_kv { prev_kvs } else { Vec::new() },
                }))
            }
            Op::Txn(txn) => {
                let before = self.clone();
                before.check_txn(txn)?;
                let reply = self.txn(txn, &before);
                let changed = self.history.len() > before.history.len();
                self.revision += i64::from(changed);
                Ok(Reply::Txn(TxnReply { revision: Revision(self.revision), ..reply }))
            }
            Op::Compact { revision } => {
                if *revision <= self.compacted {
                    return Err(Error::Compacted);
                }
                if *revision > self.revision {
                    return Err(Error::FutureRevision);
                }
                self.compact(*revision);
                Ok(Reply::Compacted { revision: Revision(self.revision) })
            }
            Op::LeaseGrant { id, ttl } => {
                if *ttl > 9_000_000_000 {
                    return Err(Error::LeaseTtlTooLarge);
                }
                if self.leases.contains_key(&id.0) {
                    return Err(Error::LeaseExists);
                }
                self.leases.insert(id.0, *ttl);
                Ok(Reply::LeaseGranted { revision: Revision(self.revision), id: *id, ttl: *ttl })
            }
            Op::LeaseRevoke { id } => {
                self.leases.remove(&id.0).ok_or(Error::LeaseNotFound)?;
                let keys = self.read(&KeyRange::all(), i64::MAX).into_iter().filter(|kv| kv.lease == *id);
                let keys: Vec<_> = keys.collect();
                for kv in &keys {
                    self.delete(&KeyRange::single(kv.key.clone()), self.revision + 1);
                }
                self.revision += i64::from(!keys.is_empty());
                Ok(Reply::LeaseRevoked { revision: Revision(self.revision) })
            }
            Op::AlarmActivate { .. } | Op::AlarmDeactivate { .. } => unreachable!("the model has no alarms"),
        }
    }

    fn check_put(&self, put: &Put) -> Result<(), Error> {
        if put.lease.0 != 0 && !self.leases.contains_key(&put.lease.0) {
            return Err(Error::LeaseNotFound);
        }
        if (put.ignore_lease || put.ignore_value) && self.get(&put.key).is_none() {
            return Err(Error::KeyNotFound);
        }
        Ok(())
    }

    fn put(&mut self, put: &Put, revision: i64) -> Option<KeyValue> {
        let old = self.get(&put.key);
        let (mut value, mut lease) = (put.value.clone(), put.lease);
        if put.ignore_value {
            value = old.as_ref().map(|old| old.value.clone()).unwrap_or_default();
        }
        if put.ignore_lease {
            lease = old.as_ref().map(|old| old.lease).unwrap_or_default();
        }
        let kv = KeyValue {
            key: put.key.clone(),
            value,
            create_revision: old.as_ref().map_or(Revision(revision), |old| old.create_revision),
            mod_revision: Revision(revision),
            version: old.as_ref().map_or(0, |old| old.version) + 1,
            lease,
        };
        self.history.push(Happened { revision, kind: EventKind::Put, kv });
        if put.prev_kv { old } else { None }
    }

    fn delete(&mut self, range: &KeyRange, revision: i64) -> Vec<KeyValue> {
        let found = self.read(range, i64::MAX);
        for old in &found {
            let kv =
                KeyValue { key: old.key.clone(), mod_revision: Revision(revision), ..KeyValue::default() };
            self.history.push(Happened { revision, kind: EventKind::Delete, kv });
        }
        found
    }

    pub(crate) fn branch<'a>(&self, txn: &'a Txn) -> (bool, &'a [TxnOp]) {
        let holds = txn.compare.iter().all(|compare| self.holds(compare));
        (holds, if holds { &txn.success } else { &txn.failure })
    }

    fn holds(&self, compare: &Compare) -> bool {
        let mut found = self.read(&compare.range, i64::MAX);
        if found.is_empty() {
            if matches!(compare.target, CompareTarget::Value(_)) {
                return false;
            }
            found.push(KeyValue::default());
        }
        found.iter().all(|kv| {
            let difference = match &compare.target {
                CompareTarget::Version(x) => kv.version as i128 - *x as i128,
                CompareTarget::Create(x) => kv.create_revision.0 as i128 - *x as i128,
                CompareTarget::Mod(x) => kv.mod_revision.0 as i128 - *x as i128,
                CompareTarget::Lease(x) => kv.lease.0 as i128 - x.0 as i128,
                CompareTarget::Value(x) => kv.value.cmp(x) as i128,
                CompareTarget::Unknown => 0,
            };
            match compare.result {
                CompareResult::Equal => difference == 0,
                CompareResult::NotEqual => difference != 0,
                CompareResult::Greater => difference > 0,
                CompareResult::Less => difference < 0,
                CompareResult::Unknown => true,
            }
        })
    }

    pub(crate) fn check_txn(&self, txn: &Txn) -> Result<(), Error> {
        for op in self.branch(txn).1 {
            match op {
                TxnOp::Range(range) if range.revision > self.revision => return Err(Error::FutureRevision),
                TxnOp::Range(range) if range.revision != 0 && range.revision < self.compacted => {
                    return Err(Error::Compacted);
                }
                TxnOp::Range(_) | TxnOp::DeleteRange(_) => {}
                // Here the key comes before the lease.
                TxnOp::Put(put) if (put.ignore_lease || put.ignore_value) && self.get(&put.key).is_none() => {
                    return Err(Error::KeyNotFound);
                }
                TxnOp::Put(put) => self.check_put(put)?,
                TxnOp::Txn(txn) => self.check_txn(txn)?,
                TxnOp::Empty => unreachable!("refused at the door"),
            }
        }
        Ok(())
    }

    fn txn(&mut self, txn: &Txn, before: &Model) -> TxnReply {
        let (succeeded, ops) = before.branch(txn);
        let next = before.revision + 1;
        let mut responses = Vec::new();
        for op in ops {
            let seen = |model: &Model| {
                if model.history.len() > before.history.len() { next } else { before.revision }
            };
            responses.push(match op {
                TxnOp::Range(request) => {
                    TxnOpReply::Range(self.range(request, seen(self)).expect("it was checked"))
                }
                TxnOp::Put(put) => {
                    let prev_kv = self.put(put, next);
                    TxnOpReply::Put(PutReply { revision: Revision(next), prev_kv })
                }
                TxnOp::DeleteRange(delete) => {
                    let prev_kvs = self.delete(&delete.range, next);
                    TxnOpReply::DeleteRange(DeleteRangeReply {
                        revision: Revision(seen(self)),
                        deleted: prev_kvs.len() as i64,
                        prev_kvs: if delete.prev_kv { prev_kvs } else { Vec::new() },
                    })
                }
                TxnOp::Txn(txn) => TxnOpReply::Txn(self.txn(txn, before)),
                TxnOp::Empty => unreachable!("refused at the door"),
            });
        }
        TxnReply { revision: Revision(0), succeeded, responses }
    }

    pub(crate) fn range(&self, request: &RangeRequest, current: i64) -> Result<RangeReply, Error> {
        if request.revision > current {
            return Err(Error::FutureRevision);
        }
        let at = if request.revision <= 0 { current } else { request.revision };
        if at < self.compacted {
            return Err(Error::Compacted);
        }
        let mut kvs = self.read(&request.range, at);
        let count = kvs.len() as i64;
        let mut reply = RangeReply { revision: Revision(current), kvs: Vec::new(), more: false, count };
        if request.count_only {
            return Ok(reply);
        }
        let filtered = [
            request.min_mod_revision,
            request.max_mod_revision,
            request.min_create_revision,
            request.max_create_revision,
        ] != [0; 4];
        let limit = request.limit.max(0) as usize;
        let plain = request.sort_order == SortOrder::None
            || request.sort_order == SortOrder::Ascend && request.sort_target == SortTarget::Key;
        if plain && !filtered && limit > 0 {
            kvs.truncate(limit + 1);
        }
        let upto = |max: i64| if max == 0 { i64::MAX } else { max };
        kvs.retain(|kv| {
            kv.mod_revision.0 >= request.min_mod_revision
                && kv.mod_revision.0 <= upto(request.max_mod_revision)
                && kv.create_revision.0 >= request.min_create_revision
                && kv.create_revision.0 <= upto(request.max_create_revision)
        });
        match request.sort_target {
            SortTarget::Key | SortTarget::Invalid => {}
            SortTarget::Version => kvs.sort_by_key(|kv| kv.version),
            SortTarget::Create => kvs.sort_by_key(|kv| kv.create_revision),
            SortTarget::Mod => kvs.sort_by_key(|kv| kv.mod_revision),
            SortTarget::Value => kvs.sort_by_key(|kv| kv.value.clone()),
        }
        if request.sort_order == SortOrder::Descend {
            kvs.reverse();
        }
        if limit > 0 && kvs.len() > limit {
            kvs.truncate(limit);
            reply.more = true;
        }
        if request.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        reply.kvs = kvs;
        Ok(reply)
    }

    fn compact(&mut self, at: i64) {
        self.compacted = at;
        let newest = |of: &Happened, history: &[Happened]| {
            let same = history.iter().filter(|event| event.kv.key == of.kv.key && event.revision <= at);
            same.last().is_some_and(|last| std::ptr::eq(last, of))
        };
        let kept: Vec<_> = self
            .history
            .iter()
            .filter(|event| {
                event.revision > at
                    || newest(event, &self.history) && (event.kind == EventKind::Put || event.revision == at)
            })
            .cloned()
            .collect();
        self.history = kept;
    }

    /// What a watch of a range sees from a revision on.
    pub(crate) fn feed(&self, range: &KeyRange, from: i64) -> Option<Vec<(i64, Vec<Event>)>> {
        if from < self.compacted {
            return None;
        }
        let mut feed = Vec::<(i64, Vec<Event>)>::new();
        for event in &self.history {
            if event.revision < from || !range.contains(&event.kv.key) {
                continue;
            }
            let before = event.revision - 1;
            let made = event.kind == EventKind::Put && event.kv.create_revision == event.kv.mod_revision;
            let prev_kv = if before < self.compacted || made {
                None
            } else {
                self.read(&KeyRange::single(event.kv.key.clone()), before).pop()
            };
            let change = Event { kind: event.kind, kv: event.kv.clone(), prev_kv };
            match feed.last_mut() {
                Some((revision, events)) if *revision == event.revision => events.push(change),
                Some(_) | None => feed.push((event.revision, vec![change])),
            }
        }
        Some(feed)
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        let records = self.history.iter().map(|event| 256 + event.kv.key.len() + event.kv.value.len());
        records.sum::<usize>() as u64 + 64 * self.leases.len() as u64
    }

    pub(crate) fn lease_keys(&self, id: i64) -> Vec<Bytes> {
        let live = self.read(&KeyRange::all(), i64::MAX);
        live.into_iter().filter(|kv| kv.lease.0 == id).map(|kv| kv.key).collect()
    }
}

/// etcd's rule about writing a key twice, by lists. None if it is broken, else what the branch puts and deletes.
#[allow(clippy::type_complexity, reason = "two lists")]
pub(crate) fn writes(ops: &[TxnOp]) -> Option<(BTreeSet<Bytes>, Vec<(Bytes, Bytes)>)> {
    let mut deletes = Vec::new();
    for op in ops {
        if let TxnOp::DeleteRange(delete) = op {
            let key = delete.range.key.clone();
            let end = match &delete.range.end {
                RangeEnd::Single => [&key[..], b"\0"].concat().into(),
                RangeEnd::From => Bytes::from_static(b"\0"),
                RangeEnd::At(end) => end.clone(),
            };
            deletes.push((key, end));
        }
    }
    let hit = |deletes: &[(Bytes, Bytes)], key: &Bytes| deletes.iter().any(|(a, b)| a <= key && key < b);
    let mut puts = BTreeSet::new();
    for op in ops {
        if let TxnOp::Txn(txn) = op {
            let (puts_then, deletes_then) = writes(&txn.success)?;
            let (puts_else, deletes_else) = writes(&txn.failure)?;
            let both: BTreeSet<Bytes> = puts_then.union(&puts_else).cloned().collect();
            if both.iter().any(|key| puts.contains(key) || hit(&deletes, key)) {
                return None;
            }
            puts.extend(both);
            deletes.extend(deletes_then);
            deletes.extend(deletes_else);
        }
    }
    for op in ops {
        if let TxnOp::Put(put) = op
            && (hit(&deletes, &put.key) || !puts.insert(put.key.clone()))
        {
            return None;
        }
    }
    Some((puts, deletes))
}
