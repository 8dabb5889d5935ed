//! Sequences written by hand: the corners that etcd's own documents do not tell, and every difference that was once found.

use bytes::Bytes;

use crate::step::{
    CompareStep, DeleteStep, LeaseId, LeaseRef, Op, Operand, PutStep, RangeStep, Rev, Step, TxnStep, Value,
    WatchStep,
};

/// A sequence with the name by which it is reported.
pub(crate) struct Named {
    pub(crate) name: &'static str,
    pub(crate) steps: Vec<Step>,
}

fn put(key: &'static [u8], value: &'static [u8]) -> Step {
    Step::Put(PutStep::of(key, value))
}

fn range(key: &'static [u8], end: &'static [u8]) -> Step {
    Step::Range(RangeStep::of(key, end))
}

fn delete(key: &'static [u8], end: &'static [u8]) -> Step {
    Step::Delete(DeleteStep { prev_kv: true, ..DeleteStep::of(key, end) })
}

fn txn(success: Vec<Op>) -> Step {
    Step::Txn(TxnStep { success, ..TxnStep::default() })
}

fn op_put(key: &'static [u8]) -> Op {
    Op::Put(PutStep::of(key, b"v"))
}

fn op_delete(key: &'static [u8], end: &'static [u8]) -> Op {
    Op::Delete(DeleteStep::of(key, end))
}

fn op_txn(success: Vec<Op>, failure: Vec<Op>) -> Op {
    Op::Txn(TxnStep { compares: Vec::new(), success, failure })
}

/// For ends that were never written to; revisions are then the very ones a first client sees.
pub(crate) fn fresh() -> Vec<Step> {
    vec![
        range(b"a", b""),
        range(b"\0", b"\0"),
        Step::Range(RangeStep { revision: Rev::Exactly(1), ..RangeStep::of(b"a", b"") }),
        Step::Range(RangeStep { revision: Rev::Exactly(2), ..RangeStep::of(b"a", b"") }),
        Step::Range(RangeStep { revision: Rev::Exactly(-1), ..RangeStep::of(b"a", b"") }),
        txn(vec![Op::Range(RangeStep { revision: Rev::Exactly(-1), ..RangeStep::of(b"a", b"") })]),
        txn(vec![Op::Range(RangeStep { revision: Rev::Exactly(-2), ..RangeStep::of(b"a", b"") })]),
        delete(b"\0", b"\0"),
        txn(vec![op_delete(b"a", b"")]),
        txn(vec![]),
        Step::Watch(WatchStep::of(b"\0", b"\0", Rev::Exactly(1))),
        Step::Watch(WatchStep::of(b"a", b"", Rev::Exactly(2))),
        Step::Compact { revision: Rev::Exactly(0), physical: false },
        put(b"a", b"1"),
        range(b"a", b""),
        Step::Compact { revision: Rev::Exactly(1), physical: true },
        Step::Compact { revision: Rev::Exactly(1), physical: false },
        Step::MemberList { linearizable: true },
        Step::Status,
        Step::AlarmList,
        Step::Settle,
    ]
}

/// Each begins on an empty store.
#[expect(clippy::too_many_lines, reason = "a list")]
pub(crate) fn all() -> Vec<Named> {
    let named = |name, steps| Named { name, steps };
    let sorted =
        |limit, order, target| Step::Range(RangeStep { limit, order, target, ..RangeStep::of(b"s", b"t") });
    let compare = |key: &'static [u8], target, result, operand| {
        let compares =
            vec![CompareStep { key: Bytes::from_static(key), end: Bytes::new(), result, target, operand }];
        Step::Txn(TxnStep { compares, success: vec![op_put(b"yes")], failure: vec![op_put(b"no")] })
    };
    vec![
        named("empty keys", {
            vec![
                range(b"", b""),
                range(b"", b"z"),
                put(b"", b"v"),
                delete(b"", b""),
                txn(vec![Op::Put(PutStep::of(b"", b""))]),
                txn(vec![Op::Range(RangeStep::of(b"", b""))]),
                txn(vec![op_delete(b"", b"")]),
                txn(vec![Op::Empty]),
                compare(b"", 0, 0, Operand::Version(0)),
            ]
        }),
        named("limit is pushed down before the sort only without an order", {
            let mut steps: Vec<Step> =
                [b"s5", b"s4", b"s3", b"s2", b"s1", b"s0"].iter().map(|key| put(&key[..], b"v")).collect();
            steps.extend([
                sorted(2, 0, 3),
                sorted(2, 1, 3),
                sorted(2, 2, 3),
                sorted(2, 0, 0),
                sorted(2, 2, 0),
                sorted(9, 0, 2),
            ]);
            steps
        }),
        named("an order without meaning leaves keys as they are", {
            let mut steps: Vec<Step> = [b"s2", b"s1", b"s0"].iter().map(|key| put(&key[..], b"v")).collect();
            steps.extend([sorted(2, 99, 3), sorted(0, 99, 0), sorted(0, -1, 2), sorted(1, 3, 4)]);
            steps
        }),
        named("a watch from before everything is created, and compacted", {
            vec![
                put(b"a", b"1"),
                put(b"a", b"2"),
                Step::Compact { revision: Rev::Base(2), physical: false },
                Step::Watch(WatchStep::of(b"a", b"", Rev::Exactly(-1))),
                Step::Settle,
            ]
        }),
        named("filters cut after the count", {
            let filtered = |limit, count_only| {
                let range =
                    RangeStep { limit, count_only, min_mod: Rev::Base(2), ..RangeStep::of(b"\0", b"\0") };
                Step::Range(range)
            };
            vec![
                put(b"a", b"1"),
                put(b"b", b"1"),
                put(b"c", b"1"),
                filtered(1, false),
                filtered(0, false),
                filtered(1, true),
            ]
        }),
        named("versions begin again after a delete", {
            vec![
                put(b"a", b"1"),
                put(b"a", b"2"),
                delete(b"a", b""),
                put(b"a", b"3"),
                range(b"a", b""),
                delete(b"x", b""),
            ]
        }),
        named("ignore_value and ignore_lease", {
            let ignoring = |ignore_value, ignore_lease, value: &'static [u8], lease| {
                Step::Put(PutStep {
                    ignore_value,
                    ignore_lease,
                    lease,
                    prev_kv: true,
                    ..PutStep::of(b"a", value)
                })
            };
            vec![
                ignoring(true, false, b"", LeaseRef::None),
                ignoring(false, true, b"v", LeaseRef::None),
                ignoring(true, false, b"v", LeaseRef::None),
                ignoring(false, true, b"v", LeaseRef::Unknown),
                Step::Grant { number: 0, id: LeaseId::Any, ttl: 1000 },
                Step::Put(PutStep { lease: LeaseRef::Granted(0), ..PutStep::of(b"a", b"first") }),
                ignoring(false, true, b"second", LeaseRef::None),
                ignoring(true, false, b"", LeaseRef::None),
                ignoring(true, true, b"", LeaseRef::None),
                range(b"a", b""),
                txn(vec![
                    op_delete(b"a", b""),
                    Op::Put(PutStep { ignore_value: true, ..PutStep::of(b"a", b"") }),
                ]),
                range(b"a", b""),
            ]
        }),
        named("a value compared with a missing key", {
            (0..4)
                .flat_map(|result| {
                    [
                        compare(b"none", 3, result, Operand::Value(Bytes::new())),
                        compare(b"none", 0, result, Operand::Version(0)),
                        compare(b"none", 2, result, Operand::Unset),
                        compare(b"none", 4, result, Operand::Lease(LeaseRef::None)),
                        compare(b"none", 1, result, Operand::Value(Bytes::from_static(b"x"))),
                    ]
                })
                .collect()
        }),
        named("unknown enum numbers in a comparison", {
            vec![
                put(b"a", b"1"),
                compare(b"a", 9, 0, Operand::Version(1)),
                compare(b"a", 0, 9, Operand::Version(7)),
            ]
        }),
        named("duplicate keys in a transaction", {
            vec![
                txn(vec![op_put(b"a"), op_put(b"a")]),
                txn(vec![op_put(b"b"), op_delete(b"a", b"c")]),
                txn(vec![op_delete(b"a", b"c"), op_put(b"b")]),
                txn(vec![op_put(b"b"), op_delete(b"a", b"\0")]),
                range(b"\0", b"\0"),
                txn(vec![op_delete(b"a", b"\0"), op_put(b"b")]),
                txn(vec![op_delete(b"a", b"c"), op_delete(b"b", b"d")]),
                txn(vec![op_txn(vec![op_put(b"a")], vec![op_put(b"a")])]),
                txn(vec![op_txn(vec![op_put(b"a")], vec![]), op_txn(vec![op_put(b"a")], vec![])]),
                txn(vec![op_txn(vec![op_delete(b"a", b"c")], vec![]), op_txn(vec![op_put(b"b")], vec![])]),
                txn(vec![op_put(b"b"), op_txn(vec![op_delete(b"a", b"c")], vec![])]),
                txn(vec![op_txn(vec![], vec![op_put(b"b")]), op_put(b"b")]),
                range(b"\0", b"\0"),
            ]
        }),
        named("operations are counted by level", {
            let ranges = |count: usize| vec![Op::Range(RangeStep::of(b"a", b"")); count];
            let with_nested = |outer: usize, inner: usize| {
                let mut ops = ranges(outer - 1);
                ops.push(op_txn(ranges(inner), vec![]));
                txn(ops)
            };
            let compares = |count: usize| {
                let one = CompareStep {
                    key: Bytes::from_static(b"a"),
                    end: Bytes::new(),
                    result: 0,
                    target: 0,
                    operand: Operand::Version(0),
                };
                Step::Txn(TxnStep { compares: vec![one; count], ..TxnStep::default() })
            };
            vec![
                txn(ranges(128)),
                txn(ranges(129)),
                compares(128),
                compares(129),
                with_nested(100, 28),
                with_nested(100, 29),
                with_nested(1, 127),
                with_nested(1, 128),
                with_nested(128, 1),
            ]
        }),
        named("comparisons see the state before the transaction", {
            let is_new = |key: &'static [u8]| CompareStep {
                key: Bytes::from_static(key),
                end: Bytes::new(),
                result: 0,
                target: 0,
                operand: Operand::Version(0),
            };
            let inner = TxnStep {
                compares: vec![is_new(b"a")],
                success: vec![op_put(b"b")],
                failure: vec![op_put(b"c")],
            };
            vec![
                txn(vec![op_put(b"a"), Op::Txn(inner), Op::Range(RangeStep::of(b"\0", b"\0"))]),
                range(b"\0", b"\0"),
            ]
        }),
        named("a failed transaction leaves nothing", {
            let bad = [
                Op::Put(PutStep { lease: LeaseRef::Unknown, ..PutStep::of(b"b", b"") }),
                Op::Put(PutStep { ignore_value: true, ..PutStep::of(b"b", b"") }),
                Op::Range(RangeStep { revision: Rev::Now(1), ..RangeStep::of(b"b", b"") }),
                Op::Range(RangeStep { revision: Rev::Now(2), ..RangeStep::of(b"b", b"") }),
                Op::Range(RangeStep { revision: Rev::Base(-1), ..RangeStep::of(b"b", b"") }),
                Op::Range(RangeStep { revision: Rev::Exactly(-1), ..RangeStep::of(b"b", b"") }),
                Op::Range(RangeStep { revision: Rev::Exactly(i64::MIN), ..RangeStep::of(b"b", b"") }),
            ];
            bad.into_iter().flat_map(|op| [txn(vec![op_put(b"a"), op]), range(b"\0", b"\0")]).collect()
        }),
        named("compaction borders", {
            vec![
                put(b"a", b"1"),
                put(b"a", b"2"),
                delete(b"a", b""),
                put(b"b", b"1"),
                Step::Compact { revision: Rev::Now(1), physical: false },
                Step::Compact { revision: Rev::Base(2), physical: true },
                Step::Compact { revision: Rev::Base(2), physical: true },
                Step::Compact { revision: Rev::Base(1), physical: true },
                Step::Range(RangeStep { revision: Rev::Base(1), ..RangeStep::of(b"a", b"") }),
                Step::Range(RangeStep { revision: Rev::Base(2), ..RangeStep::of(b"a", b"") }),
                Step::Range(RangeStep { revision: Rev::Base(3), ..RangeStep::of(b"a", b"") }),
                Step::Compact { revision: Rev::Now(0), physical: false },
                range(b"\0", b"\0"),
            ]
        }),
        named("watches and compaction", {
            vec![
                put(b"a", b"1"),
                put(b"a", b"2"),
                put(b"a", b"3"),
                put(b"a", b"4"),
                Step::Watch(WatchStep { prev_kv: true, ..WatchStep::of(b"a", b"", Rev::Base(1)) }),
                Step::Compact { revision: Rev::Base(3), physical: true },
                Step::Watch(WatchStep { prev_kv: true, ..WatchStep::of(b"a", b"", Rev::Base(2)) }),
                Step::Watch(WatchStep { prev_kv: true, ..WatchStep::of(b"a", b"", Rev::Base(3)) }),
                Step::Watch(WatchStep { prev_kv: true, ..WatchStep::of(b"a", b"", Rev::Base(4)) }),
                put(b"a", b"5"),
                Step::Settle,
            ]
        }),
        named("a compacted start is refused, whatever others still watch", {
            // The same range and options as the watch that the harness itself holds.
            let from_base =
                Step::Watch(WatchStep { prev_kv: true, ..WatchStep::of(b"\0", b"\0", Rev::Base(1)) });
            let compact = Step::Compact { revision: Rev::Base(2), physical: false };
            vec![put(b"a", b"1"), put(b"a", b"2"), put(b"a", b"3"), compact, from_base, Step::Settle]
        }),
        named("the event at the compacted revision has no previous value, whatever others still hold", {
            let from = |start| Step::Watch(WatchStep { prev_kv: true, ..WatchStep::of(b"\0", b"\0", start) });
            let compact = Step::Compact { revision: Rev::Base(2), physical: false };
            let puts = [put(b"a", b"1"), put(b"a", b"2"), put(b"a", b"3")];
            let rest = [compact, from(Rev::Base(2)), from(Rev::Base(3)), Step::Settle];
            puts.into_iter().chain(rest).collect()
        }),
        named("watch ids", {
            let with_id = |id, key: &'static [u8]| {
                Step::Watch(WatchStep { id, ..WatchStep::of(key, b"", Rev::Exactly(0)) })
            };
            vec![
                with_id(1, b"a"),
                with_id(0, b"b"),
                with_id(0, b"c"),
                with_id(1, b"d"),
                with_id(-5, b"e"),
                Step::CancelWatch { stream: 0, nth: 0 },
                with_id(1, b"f"),
                Step::CancelWatch { stream: 0, nth: 99 },
                put(b"a", b"1"),
                put(b"b", b"1"),
                put(b"c", b"1"),
                put(b"f", b"1"),
                Step::Progress { stream: 0 },
            ]
        }),
        named("an id stays taken after a compaction cancelled its watch, until the client cancels it", {
            let with_id = |start| Step::Watch(WatchStep { id: 3, ..WatchStep::of(b"a", b"", start) });
            vec![
                with_id(Rev::Base(-5)),
                Step::Settle,
                with_id(Rev::Exactly(0)),
                Step::CancelWatch { stream: 0, nth: 0 },
                with_id(Rev::Exactly(0)),
                put(b"a", b"1"),
                Step::Settle,
            ]
        }),
        named("watch ranges", {
            let over = |key, end| Step::Watch(WatchStep::of(key, end, Rev::Exactly(0)));
            vec![
                over(b"b", b"a"),
                over(b"b", b"b"),
                over(b"", b""),
                over(b"", b"\0"),
                over(b"", b"b"),
                over(b"a", b"\0"),
                over(b"\0", b"\0"),
                put(b"\0", b"1"),
                put(b"a", b"1"),
                put(b"b", b"1"),
                delete(b"a", b"c"),
                Step::Settle,
            ]
        }),
        named("a revision is told whole", {
            let all = |filters: Vec<i32>| {
                Step::Watch(WatchStep { filters, prev_kv: true, ..WatchStep::of(b"\0", b"\0", Rev::Base(1)) })
            };
            vec![
                txn(vec![op_put(b"c"), op_put(b"a"), op_put(b"b")]),
                txn(vec![op_put(b"b"), op_delete(b"a", b"\0")]),
                txn(vec![op_delete(b"a", b"\0"), op_put(b"a")]),
                all(vec![]),
                all(vec![0]),
                all(vec![1]),
                all(vec![0, 1]),
                txn(vec![op_put(b"z"), op_delete(b"a", b"b"), op_put(b"y")]),
                Step::Settle,
            ]
        }),
        named("a key made anew within a revision was nothing before", {
            let watch =
                Step::Watch(WatchStep { prev_kv: true, ..WatchStep::of(b"\0", b"\0", Rev::Exactly(0)) });
            let again = Step::Watch(WatchStep { prev_kv: true, ..WatchStep::of(b"\0", b"\0", Rev::Base(1)) });
            vec![watch, put(b"b", b"1"), txn(vec![op_delete(b"a", b"\0"), op_put(b"b")]), again, Step::Settle]
        }),
        named("in a transaction a put's key is checked before its lease", {
            let missing = PutStep { ignore_value: true, lease: LeaseRef::Unknown, ..PutStep::of(b"a", b"") };
            vec![Step::Put(missing.clone()), txn(vec![Op::Put(missing)])]
        }),
        named("a future watch and progress", {
            vec![
                Step::Watch(WatchStep::of(b"a", b"", Rev::Now(3))),
                put(b"a", b"1"),
                put(b"a", b"2"),
                put(b"a", b"3"),
                Step::Progress { stream: 0 },
            ]
        }),
        named("large revisions come in fragments", {
            let large = |key: &'static [u8]| {
                Step::Put(PutStep { value: Value::Filler(700_000), ..PutStep::of(key, b"") })
            };
            let watch =
                |fragment| Step::Watch(WatchStep { fragment, ..WatchStep::of(b"\0", b"\0", Rev::Base(1)) });
            vec![
                large(b"a"),
                large(b"b"),
                large(b"c"),
                large(b"d"),
                watch(true),
                watch(false),
                delete(b"\0", b"\0"),
                Step::Settle,
                Step::Progress { stream: 0 },
            ]
        }),
        named("request sizes", {
            let sized = |size| Step::Put(PutStep { value: Value::Filler(size), ..PutStep::of(b"a", b"") });
            vec![
                sized(1_572_000),
                sized(1_572_864),
                sized(1_700_000),
                Step::Range(RangeStep { keys_only: true, ..RangeStep::of(b"a", b"") }),
            ]
        }),
        named("leases: ids and times", {
            let grant = |number, id, ttl| Step::Grant { number, id, ttl };
            vec![
                grant(0, LeaseId::Chosen(77), 1000),
                grant(1, LeaseId::Chosen(77), 1000),
                grant(2, LeaseId::Chosen(-77), 1000),
                grant(3, LeaseId::Any, 9_000_000_000),
                grant(4, LeaseId::Any, 9_000_000_001),
                grant(5, LeaseId::Chosen(77), 9_000_000_001),
                Step::GrantAndRevoke { ttl: 0 },
                Step::GrantAndRevoke { ttl: -1 },
                Step::GrantAndRevoke { ttl: 1 },
                Step::Leases,
                Step::KeepAlive(vec![
                    LeaseRef::Granted(0),
                    LeaseRef::Unknown,
                    LeaseRef::Granted(2),
                    LeaseRef::None,
                ]),
                Step::TimeToLive { lease: LeaseRef::Granted(0), keys: true },
                Step::TimeToLive { lease: LeaseRef::Unknown, keys: true },
                Step::TimeToLive { lease: LeaseRef::None, keys: false },
                Step::Revoke(LeaseRef::Granted(0)),
                Step::Revoke(LeaseRef::Granted(0)),
                Step::Revoke(LeaseRef::None),
                Step::TimeToLive { lease: LeaseRef::Granted(0), keys: true },
            ]
        }),
        named("leases: keys", {
            let under = |key: &'static [u8], lease| Step::Put(PutStep { lease, ..PutStep::of(key, b"v") });
            vec![
                Step::Grant { number: 0, id: LeaseId::Any, ttl: 1000 },
                Step::Grant { number: 1, id: LeaseId::Any, ttl: 1000 },
                under(b"b", LeaseRef::Granted(0)),
                under(b"a", LeaseRef::Granted(0)),
                under(b"c", LeaseRef::Granted(1)),
                under(b"x", LeaseRef::Unknown),
                under(b"b", LeaseRef::Granted(1)),
                under(b"a", LeaseRef::None),
                Step::TimeToLive { lease: LeaseRef::Granted(0), keys: true },
                Step::TimeToLive { lease: LeaseRef::Granted(1), keys: true },
                Step::Watch(WatchStep { prev_kv: true, ..WatchStep::of(b"\0", b"\0", Rev::Exactly(0)) }),
                Step::Revoke(LeaseRef::Granted(0)),
                Step::Revoke(LeaseRef::Granted(1)),
                range(b"\0", b"\0"),
                Step::Expire { key: Bytes::from_static(b"short") },
                range(b"\0", b"\0"),
                Step::Expire { key: Bytes::new() },
                Step::Settle,
            ]
        }),
        named("watch from the future", {
            vec![
                Step::Watch(WatchStep::of(b"\0", b"\0", Rev::Now(3))),
                put(b"a", b"1"),
                put(b"a", b"2"),
                put(b"a", b"3"),
                put(b"a", b"4"),
                Step::Settle,
            ]
        }),
        named("health", {
            vec![
                Step::Health { service: "" },
                Step::Health { service: "etcdserverpb.KV" },
                Step::Health { service: "nobody" },
            ]
        }),
    ]
}
