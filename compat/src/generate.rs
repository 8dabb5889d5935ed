//! Sequences of steps from a seed: few keys, so that they meet; every option; and some of everything that is invalid.

use bytes::Bytes;

use crate::rng::Rng;
use crate::side::STREAMS;
use crate::step::{
    CompareStep, DeleteStep, LeaseId, LeaseRef, Op, Operand, PutStep, RangeStep, Rev, Step, TxnStep, Value,
    WatchStep,
};

/// Keys that are prefixes of each other, neighbours, and the extremes.
const KEYS: &[&[u8]] =
    &[b"a", b"aa", b"ab", b"b", b"b\0", b"c", b"d/1", b"d/2", b"d/3", b"\0", b"\xff", b"zz", b"\xfe\xff"];

const VALUES: &[&[u8]] =
    &[b"", b"1", b"2", b"value", b"\0\xff", b"a longer value, to tell it from the others"];

/// What the generator remembers of the sequence so far.
struct Sequence {
    rng: Rng,
    grants: usize,
    /// Watches opened per stream.
    watches: [usize; STREAMS],
}

/// The sequence of case `case` in the run `seed`.
pub(crate) fn sequence(seed: u64, case: u64, length: usize) -> Vec<Step> {
    let mut sequence = Sequence { rng: Rng::new(seed, case), grants: 0, watches: [0; STREAMS] };
    let mut steps: Vec<Step> = (1..length).map(|_| sequence.step()).collect();
    steps.push(Step::Settle);
    steps
}

impl Sequence {
    fn step(&mut self) -> Step {
        let weights = [
            200, // put
            150, // range
            60,  // delete
            160, // txn
            25,  // compact
            40,  // grant
            8,   // grant and revoke
            14,  // revoke
            14,  // keep-alive
            20,  // time to live
            10,  // leases
            1,   // expiry: takes seconds
            70,  // watch
            14,  // cancel
            14,  // progress
            20,  // settle
            3,   // member list
            3,   // status
            2,   // alarms
            3,   // health
        ];
        match self.rng.weighted(&weights) {
            0 => Step::Put(self.put()),
            1 => Step::Range(self.range()),
            2 => Step::Delete(self.delete()),
            3 => Step::Txn(self.txn_step()),
            4 => Step::Compact { revision: self.compact_revision(), physical: self.rng.percent(30) },
            5 => self.grant(),
            6 => Step::GrantAndRevoke { ttl: self.rng.pick(&[0, -1, 1, 2, i64::MIN]) },
            7 => Step::Revoke(self.lease(10)),
            8 => Step::KeepAlive((0..self.rng.below(4)).map(|_| self.lease(20)).collect()),
            9 => Step::TimeToLive { lease: self.lease(15), keys: self.rng.percent(70) },
            10 => Step::Leases,
            // Most sequences should not wait for seconds.
            11 if self.rng.percent(15) => Step::Expire { key: self.key() },
            11 => Step::Settle,
            12 => Step::Watch(self.watch()),
            13 => {
                let stream = self.rng.below(STREAMS);
                Step::CancelWatch { stream, nth: self.rng.below(self.watches[stream] + 1) }
            }
            14 => Step::Progress { stream: self.rng.below(STREAMS) },
            15 => Step::Settle,
            16 => Step::MemberList { linearizable: self.rng.percent(50) },
            17 => Step::Status,
            18 => Step::AlarmList,
            _ => Step::Health { service: self.rng.pick(&["", "", "nobody"]) },
        }
    }

    fn key(&mut self) -> Bytes {
        if self.rng.percent(2) {
            return Bytes::new();
        }
        // The first few keys come up most.
        let narrow = self.rng.percent(60);
        Bytes::from_static(if narrow { self.rng.pick(&KEYS[..5]) } else { self.rng.pick(KEYS) })
    }

    /// A key, and an end of a range.
    fn interval(&mut self) -> (Bytes, Bytes) {
        let fixed =
            |key: &'static [u8], end: &'static [u8]| (Bytes::from_static(key), Bytes::from_static(end));
        match self.rng.weighted(&[40, 10, 12, 10, 20, 4, 4]) {
            0 => (self.key(), Bytes::new()),
            1 => fixed(b"d/", b"d0"),
            2 => (self.key(), Bytes::from_static(b"\0")),
            3 => fixed(b"\0", b"\0"),
            4 => (self.key(), self.key()),
            5 => (Bytes::new(), self.key()),
            _ => fixed(b"a", b"b"),
        }
    }

    fn revision(&mut self) -> Rev {
        match self.rng.weighted(&[70, 12, 4, 4, 4, 3, 1, 1]) {
            0 => Rev::Exactly(0),
            1 => Rev::Now(-self.rng.between(1, 8)),
            2 => Rev::Now(0),
            3 => Rev::Now(self.rng.between(1, 3)),
            4 => Rev::Base(self.rng.between(-2, 4)),
            5 => Rev::Exactly(self.rng.pick(&[-1, -2, 1, i64::MIN])),
            6 => Rev::Exactly(i64::MAX),
            _ => Rev::Exactly(1),
        }
    }

    fn compact_revision(&mut self) -> Rev {
        match self.rng.weighted(&[50, 15, 10, 10, 10, 5]) {
            0 => Rev::Now(-self.rng.between(1, 10)),
            1 => Rev::Now(0),
            2 => Rev::Now(self.rng.between(1, 5)),
            3 => Rev::Base(self.rng.between(-2, 3)),
            4 => Rev::Exactly(self.rng.pick(&[0, 1, -1])),
            _ => Rev::Exactly(self.rng.pick(&[i64::MAX, i64::MIN])),
        }
    }

    /// A bound on revisions: mostly off.
    fn bound(&mut self) -> Rev {
        if self.rng.percent(88) { Rev::Exactly(0) } else { Rev::Base(self.rng.between(-1, 25)) }
    }

    fn lease(&mut self, unknown_percent: usize) -> LeaseRef {
        if self.rng.percent(unknown_percent) {
            return self.rng.pick(&[LeaseRef::Unknown, LeaseRef::None]);
        }
        LeaseRef::Granted(self.rng.below(self.grants.max(1)))
    }

    fn range(&mut self) -> RangeStep {
        let (key, end) = self.interval();
        RangeStep {
            key,
            end,
            limit: match self.rng.weighted(&[60, 30, 5, 5]) {
                0 => 0,
                1 => self.rng.between(1, 4),
                2 => -1,
                _ => 100,
            },
            revision: self.revision(),
            order: self.rng.pick(&[0, 0, 0, 1, 2]),
            target: self.rng.pick(&[0, 0, 0, 1, 2, 3, 4]),
            serializable: self.rng.percent(20),
            keys_only: self.rng.percent(12),
            count_only: self.rng.percent(10),
            min_mod: self.bound(),
            max_mod: self.bound(),
            min_create: self.bound(),
            max_create: self.bound(),
        }
    }

    fn put(&mut self) -> PutStep {
        let value = match self.rng.weighted(&[91, 8, 1]) {
            0 => Value::Bytes(Bytes::from_static(self.rng.pick(VALUES))),
            1 => Value::Filler(usize::try_from(self.rng.between(50, 600)).expect("positive")),
            // Just above and just below the largest request.
            _ => Value::Filler(self.rng.pick(&[1_600_000, 1_572_000])),
        };
        let ignore_value = self.rng.percent(6);
        let ignore_lease = self.rng.percent(6);
        PutStep {
            key: self.key(),
            // Mostly what ignore_value asks for: none.
            value: if ignore_value && self.rng.percent(80) { Value::Bytes(Bytes::new()) } else { value },
            lease: if self.rng.percent(25) && !(ignore_lease && self.rng.percent(80)) {
                self.lease(8)
            } else {
                LeaseRef::None
            },
            prev_kv: self.rng.percent(40),
            ignore_value,
            ignore_lease,
        }
    }

    fn delete(&mut self) -> DeleteStep {
        let (key, end) = self.interval();
        DeleteStep { key, end, prev_kv: self.rng.percent(50) }
    }

    fn txn_step(&mut self) -> TxnStep {
        if self.rng.percent(2) {
            return self.crowded_txn();
        }
        let mut txn = self.txn(0);
        if deletes_to_the_end(&txn) {
            keep_nothing(&mut txn);
        }
        txn
    }

    fn txn(&mut self, depth: usize) -> TxnStep {
        TxnStep {
            compares: (0..self.rng.weighted(&[25, 45, 20, 10])).map(|_| self.compare()).collect(),
            success: self.branch(depth),
            failure: self.branch(depth),
        }
    }

    fn branch(&mut self, depth: usize) -> Vec<Op> {
        (0..self.rng.weighted(&[15, 35, 30, 15, 5])).map(|_| self.op(depth)).collect()
    }

    fn op(&mut self, depth: usize) -> Op {
        // Deeper transactions would mostly be refused for putting a key twice.
        let nested = if depth < 3 { 14 } else { 0 };
        match self.rng.weighted(&[40, 26, 18, nested, 1]) {
            0 => {
                let mut put = self.put();
                // Distinct keys, mostly, or nearly every transaction would be refused as putting a key twice.
                if self.rng.percent(70) {
                    put.key = Bytes::from(format!("t{}", self.rng.below(40)));
                }
                Op::Put(put)
            }
            1 => Op::Range(self.range()),
            2 => Op::Delete(self.delete()),
            3 => Op::Txn(self.txn(depth + 1)),
            _ => Op::Empty,
        }
    }

    /// About as many operations as are allowed: 128, of which a nested transaction gets what its parent leaves.
    fn crowded_txn(&mut self) -> TxnStep {
        let puts = |from: usize, count: usize| -> Vec<Op> {
            (from..from + count)
                .map(|index| {
                    Op::Put(PutStep { key: Bytes::from(format!("many{index:03}")), ..PutStep::of(b"", b"") })
                })
                .collect()
        };
        let total = usize::try_from(self.rng.between(126, 130)).expect("positive");
        let nested = self.rng.below(40);
        let mut success = puts(0, total - nested);
        if nested > 0 {
            let inner = TxnStep { success: puts(500, nested), ..TxnStep::default() };
            success[0] = Op::Txn(inner);
        }
        TxnStep { success, ..TxnStep::default() }
    }

    fn compare(&mut self) -> CompareStep {
        let (key, end) = if self.rng.percent(70) { (self.key(), Bytes::new()) } else { self.interval() };
        let target = if self.rng.percent(1) { 9 } else { i32::try_from(self.rng.below(5)).expect("small") };
        // Sometimes the operand of another target.
        let kind =
            if self.rng.percent(4) { i32::try_from(self.rng.below(6)).expect("small") } else { target };
        let operand = match kind {
            0 => Operand::Version(self.rng.between(0, 3)),
            1 => Operand::Create(self.compared_revision()),
            2 => Operand::Mod(self.compared_revision()),
            3 => Operand::Value(Bytes::from_static(self.rng.pick(VALUES))),
            4 => Operand::Lease(self.lease(40)),
            _ => Operand::Unset,
        };
        // Ids chosen by the servers have no order that both ends share.
        let is_lease = matches!(operand, Operand::Lease(_));
        let result = if is_lease {
            self.rng.pick(&[0, 3])
        } else if self.rng.percent(1) {
            9
        } else {
            i32::try_from(self.rng.below(4)).expect("small")
        };
        CompareStep { key, end, result, target, operand }
    }

    fn compared_revision(&mut self) -> Rev {
        match self.rng.below(3) {
            0 => Rev::Exactly(0),
            1 => Rev::Now(-self.rng.between(0, 6)),
            _ => Rev::Base(self.rng.between(0, 20)),
        }
    }

    fn grant(&mut self) -> Step {
        let number = self.grants;
        self.grants += 1;
        let id = match self.rng.weighted(&[50, 45, 5]) {
            0 => LeaseId::Any,
            1 => LeaseId::Chosen(0x5EA5_0000 + self.rng.between(0, 5)),
            _ => LeaseId::Chosen(-self.rng.between(1, 3)),
        };
        let ttl = match self.rng.weighted(&[90, 3, 7]) {
            0 => self.rng.between(600, 5000),
            1 => 9_000_000_000,
            _ => self.rng.pick(&[9_000_000_001, i64::MAX]),
        };
        Step::Grant { number, id, ttl }
    }

    fn watch(&mut self) -> WatchStep {
        let stream = self.rng.below(STREAMS);
        self.watches[stream] += 1;
        let (key, end) = self.interval();
        WatchStep {
            stream,
            key,
            end,
            start: match self.rng.weighted(&[50, 22, 10, 10, 4, 4]) {
                0 => Rev::Exactly(0),
                1 => Rev::Now(-self.rng.between(0, 8)),
                2 => Rev::Now(self.rng.between(1, 4)),
                3 => Rev::Base(self.rng.between(-1, 6)),
                4 => Rev::Exactly(1),
                _ => Rev::Now(1000),
            },
            id: if self.rng.percent(80) { 0 } else { self.rng.between(1, 4) },
            filters: match self.rng.weighted(&[76, 10, 10, 4]) {
                0 => vec![],
                1 => vec![0],
                2 => vec![1],
                _ => vec![0, 1],
            },
            prev_kv: self.rng.percent(40),
            fragment: self.rng.percent(20),
            progress_notify: self.rng.percent(20),
        }
    }
}

fn deletes_to_the_end(txn: &TxnStep) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match op {
        Op::Delete(delete) => delete.end[..] == b"\0"[..],
        Op::Txn(txn) => deletes_to_the_end(txn),
        Op::Range(_) | Op::Put(_) | Op::Empty => false,
    })
}

/// Allowed: what would crash etcd.
fn keep_nothing(txn: &mut TxnStep) {
    for op in txn.success.iter_mut().chain(&mut txn.failure) {
        match op {
            Op::Put(put) => (put.ignore_value, put.ignore_lease) = (false, false),
            Op::Txn(txn) => keep_nothing(txn),
            Op::Range(_) | Op::Delete(_) | Op::Empty => {}
        }
    }
}
