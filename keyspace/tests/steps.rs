//! Queries that are answered in steps: they stay at their revision, whatever happens meanwhile, and end when their answer
//! would be too large.

mod common;

use common::*;
use keyspace::*;

/// A source of numbers that a seed determines.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// Steps to the end, with `meanwhile` between them. Returns the answer and the number of steps.
fn in_steps(
    etcd: &mut Etcd,
    query: &Query,
    step_keys: usize,
    mut meanwhile: impl FnMut(&mut Etcd),
) -> (Outcome, usize) {
    let mut steps = 1;
    let mut step = etcd.state.begin(query, &mut Budget::of_keys(step_keys));
    loop {
        match step {
            Step::Done(gathered) => return (gathered.finish(), steps),
            Step::Suspended(suspended) => {
                meanwhile(etcd);
                steps += 1;
                step = etcd.state.go_on(suspended, &mut Budget::of_keys(step_keys));
            }
        }
    }
}

fn key(number: u64) -> String {
    format!("k{number:02}")
}

fn change(etcd: &mut Etcd, numbers: &mut Numbers) {
    let one_key = key(numbers.below(40));
    match numbers.below(10) {
        0..=4 => {
            let lease = LeaseId(numbers.below(3) as i64);
            let value = format!("{}", numbers.below(5));
            etcd.put_with(Put { lease, ..put(&one_key, &value) }).expect("the leases live");
        }
        5..=6 => {
            etcd.delete(one(&one_key));
        }
        7 => {
            etcd.delete(between(&one_key, &key(numbers.below(40))));
        }
        8 => {
            let _too_old = etcd.compact(etcd.revision() - numbers.below(4) as i64);
        }
        _ => {
            etcd.state.sweep(100);
        }
    }
}

fn any_range(etcd: &Etcd, numbers: &mut Numbers) -> RangeRequest {
    let revision = match numbers.below(3) {
        0 => etcd.revision() - numbers.below(6) as i64,
        _ => 0,
    };
    let low = |numbers: &mut Numbers| match numbers.below(3) {
        0 => numbers.below(60) as i64,
        _ => 0,
    };
    RangeRequest {
        revision,
        limit: numbers.below(12) as i64 - 1,
        sort_order: numbers.pick(&[SortOrder::None, SortOrder::Ascend, SortOrder::Descend]),
        sort_target: numbers.pick(&[
            SortTarget::Key,
            SortTarget::Version,
            SortTarget::Create,
            SortTarget::Mod,
            SortTarget::Value,
        ]),
        keys_only: numbers.below(4) == 0,
        count_only: numbers.below(6) == 0,
        min_mod_revision: low(numbers),
        max_create_revision: low(numbers),
        ..RangeRequest::new(match numbers.below(4) {
            0 => one(&key(numbers.below(40))),
            1 => between(&key(numbers.below(40)), &key(numbers.below(40))),
            _ => KeyRange::all(),
        })
    }
}

fn any_query(etcd: &Etcd, numbers: &mut Numbers) -> Query {
    match numbers.below(5) {
        0 => Query::Range(any_range(etcd, numbers)),
        4 => {
            let RangeRequest { range, revision, keys_only, .. } = any_range(etcd, numbers);
            let (limit, bytes) = (numbers.below(30), numbers.below(600));
            Query::List(ListRequest { range, revision, limit, keys_only, bytes })
        }
        1 => {
            let RangeRequest { range, revision, keys_only, .. } = any_range(etcd, numbers);
            let (limit, bytes) = (numbers.below(30), numbers.below(60));
            Query::Page(PageRequest {
                range,
                revision,
                limit,
                bytes,
                keys_only,
                counts_rest: numbers.below(2) == 0,
            })
        }
        2 => {
            let comparisons = numbers.below(3);
            let compare = (0..comparisons).map(|_| {
                let target = match numbers.below(3) {
                    0 => CompareTarget::Version(1),
                    1 => CompareTarget::Value("2".into()),
                    _ => CompareTarget::Lease(LeaseId(1)),
                };
                let result =
                    numbers.pick(&[CompareResult::Less, CompareResult::Greater, CompareResult::NotEqual]);
                compare(any_range(etcd, numbers).range, result, target)
            });
            let compare = compare.collect();
            let mut branch = || (0..3).map(|_| TxnOp::Range(any_range(etcd, numbers))).collect();
            Query::Txn(Txn { compare, success: branch(), failure: branch() })
        }
        _ => Query::LeaseTimeToLive { id: LeaseId(numbers.below(2) as i64 + 1), keys: true },
    }
}

#[test]
fn whatever_happens_meanwhile_a_query_is_answered_as_when_it_began() {
    let mut longest = 0;
    for seed in 0..60 {
        let mut numbers = Numbers(seed);
        let mut etcd = Etcd::new();
        for lease in 1..=2 {
            etcd.grant(lease, 100).unwrap();
        }
        for _ in 0..80 {
            change(&mut etcd, &mut numbers);
        }
        for _ in 0..30 {
            let query = any_query(&etcd, &mut numbers);
            let expected = etcd.state.query(&query);
            let step_keys = numbers.below(5) as usize;
            let (found, steps) = in_steps(&mut etcd, &query, step_keys, |etcd| change(etcd, &mut numbers));
            assert_eq!(found, expected, "seed {seed}: {query:?}");
            longest = longest.max(steps);
        }
    }
    assert!(longest > 50, "{longest} steps");
}

#[test]
fn a_query_visits_no_more_keys_in_a_step_than_it_may() {
    let mut etcd = Etcd::new();
    for number in 0..20 {
        etcd.put(&key(number), "1");
    }
    for number in 0..20 {
        etcd.delete(one(&key(number)));
    }
    // Also of those that do not exist any more.
    for request in [
        RangeRequest::new(KeyRange::all()),
        RangeRequest { count_only: true, ..RangeRequest::new(KeyRange::all()) },
        RangeRequest { revision: 21, limit: 3, ..RangeRequest::new(KeyRange::all()) },
    ] {
        let (_, steps) = in_steps(&mut etcd, &Query::Range(request), 4, |_| {});
        assert_eq!(steps, 5);
    }
    let compare = compare(KeyRange::all(), CompareResult::Greater, CompareTarget::Version(0));
    let (_, steps) =
        in_steps(&mut etcd, &Query::Txn(Txn { compare: vec![compare], ..Txn::default() }), 4, |_| {});
    assert_eq!(steps, 5);
}

#[test]
fn a_query_begins_again_in_a_state_that_it_did_not_begin_with() {
    let mut etcd = Etcd::new();
    for number in 0..4 {
        etcd.put(&key(number), "1");
    }
    let replace = |etcd: &mut Etcd| {
        etcd.put(&key(0), "2");
        etcd.state = etcd.restored();
    };
    let mut restores = 0;
    let query = Query::Range(RangeRequest::new(KeyRange::all()));
    let (found, _) = in_steps(&mut etcd, &query, 1, |etcd| {
        restores += 1;
        if restores <= 2 {
            replace(etcd);
        }
    });
    assert_eq!(found, etcd.state.query(&query), "all of it is of the new state");
    // What it wanted may be gone there.
    let old = Query::Range(RangeRequest { revision: 3, ..RangeRequest::new(KeyRange::all()) });
    let (found, _) = in_steps(&mut etcd, &old, 1, |etcd| {
        let _too_old = etcd.compact(5);
        replace(etcd);
    });
    assert_eq!(found, Err(Error::Compacted));
}

#[test]
fn a_query_that_holds_back_too_much_garbage_begins_again() {
    let mut etcd = Etcd::new();
    for number in 0..4 {
        etcd.put(&key(number), "1");
    }
    let value = "v".repeat(1 << 20);
    let mut written = 0;
    let query = Query::Range(RangeRequest::new(KeyRange::all()));
    let (found, _) = in_steps(&mut etcd, &query, 1, |etcd| {
        while written < 70 {
            written += 1;
            etcd.put(&key(9), &value);
            let revision = etcd.revision();
            etcd.compact(revision).unwrap();
        }
        assert!(!etcd.state.is_held_back(), "64 MiB is too much");
    });
    let Ok(Reply::Range(found)) = found else { panic!("{found:?}") };
    assert_eq!((found.kvs.len(), found.revision.0), (5, etcd.revision()));
}

#[test]
fn garbage_is_swept_when_the_last_query_that_may_need_it_is_through() {
    let mut etcd = Etcd::new();
    for number in 0..4 {
        etcd.put(&key(number), "1");
        etcd.put(&key(number), "2");
    }
    let query = Query::Range(RangeRequest::new(KeyRange::all()));
    let mut held_back = false;
    let (found, _) = in_steps(&mut etcd, &query, 1, |etcd| {
        let _again = etcd.compact(9);
        held_back |= etcd.state.is_held_back();
    });
    assert!(found.is_ok() && held_back && !etcd.state.is_held_back());
}

/// Keys with large values that share their memory.
fn filled(keys: u64, value_bytes: usize) -> Etcd {
    let mut etcd = Etcd::with(Limits { quota_bytes: u64::MAX, ..Limits::default() });
    let value = bytes::Bytes::from(vec![0; value_bytes]);
    for number in 0..keys {
        etcd.put_with(Put::new(key(number), value.clone())).expect("the put is granted");
    }
    etcd
}

#[test]
fn an_answer_that_is_too_large_ends_while_it_is_gathered() {
    // 10 MiB of data, and 600 MiB of answers; values of this size are shared.
    let mut etcd = filled(10, 1 << 20);
    let all = || TxnOp::Range(RangeRequest::new(KeyRange::all()));
    let txn = |ranges: usize| Query::Txn(then((0..ranges).map(|_| all()).collect()));
    let (found, steps) = in_steps(&mut etcd, &txn(60), 1, |_| {});
    assert_eq!(found, Err(Error::AnswerTooLarge));
    assert!(steps < 520, "it ends when it passes the limit, and not after {steps} steps");
    let (found, _) = in_steps(&mut etcd, &txn(51), 1, |_| {});
    let Ok(Reply::Txn(found)) = found else { panic!("{found:?}") };
    assert_eq!(found.responses.len(), 51);
    // What operations take beside keys and values counts: the link counts it, too.
    let one_more = TxnOp::Range(RangeRequest { limit: 1, ..RangeRequest::new(KeyRange::all()) });
    let mut ranges: Vec<_> = (0..51).map(|_| all()).chain([one_more]).collect();
    ranges.resize(40_000, range_op(one("none")));
    let (found, _) = in_steps(&mut etcd, &Query::Txn(then(ranges)), 1000, |_| {});
    assert_eq!(found, Err(Error::AnswerTooLarge));
    // What a limit cuts off does not count, nor do values that are not asked for.
    let last = RangeRequest {
        limit: 1,
        sort_order: SortOrder::Descend,
        sort_target: SortTarget::Value,
        ..RangeRequest::new(KeyRange::all())
    };
    for fits in [last, RangeRequest { keys_only: true, ..RangeRequest::new(KeyRange::all()) }] {
        let ranges = (0..60).map(|_| TxnOp::Range(fits.clone())).collect();
        assert!(in_steps(&mut etcd, &Query::Txn(then(ranges)), 1, |_| {}).0.is_ok());
    }
}

#[test]
fn what_a_limit_cuts_off_is_not_kept_whatever_it_is_sorted_by() {
    const STEP_KEYS: usize = 1000;
    for value_bytes in [5, 3000, 300_000] {
        let mut etcd = Etcd::new();
        let mut values = Vec::new();
        for number in 0..if value_bytes > 10_000 { 40 } else { 3000 } {
            // The least byte at the end: all of a value is compared.
            let mut value = vec![b'v'; value_bytes];
            value.extend_from_slice(format!("{:04}", (number * 7919) % 3001).as_bytes());
            etcd.put_with(Put { value: value.clone().into(), ..put(&key(number), "") }).expect("no lease");
            values.push(value);
        }
        values.sort();
        for (limit, order) in [(1, SortOrder::Descend), (7, SortOrder::Ascend), (900, SortOrder::Descend)] {
            let request = RangeRequest {
                limit,
                sort_order: order,
                sort_target: SortTarget::Value,
                ..RangeRequest::new(KeyRange::all())
            };
            let (outcome, steps) = in_steps(&mut etcd, &Query::Range(request.clone()), STEP_KEYS, |_| {});
            let Ok(Reply::Range(reply)) = outcome else { panic!("a range is answered") };
            let mut want = values.clone();
            if order == SortOrder::Descend {
                want.reverse();
            }
            want.truncate(limit as usize);
            let got: Vec<_> = reply.kvs.iter().map(|kv| kv.value.to_vec()).collect();
            assert!(got == want && reply.count == values.len() as i64, "{value_bytes} {limit}");
            if (value_bytes, limit) == (3000, 1) {
                assert!(steps > 4 * values.len() / STEP_KEYS, "comparing long values costs: {steps}");
            }
            if value_bytes == 5 && limit < 100 {
                let Step::Done(mut gathered) =
                    etcd.state.begin(&Query::Range(request), &mut Budget::of_keys(1 << 20))
                else {
                    panic!("the budget is large")
                };
                assert!(gathered.ready().is_some(), "what is left is little");
            }
        }
    }
}

#[test]
fn what_is_encoded_in_pieces_is_the_answer() {
    let mut etcd = filled(6000, 40);
    let sorted = |limit, sort_target, sort_order, keys_only| RangeRequest {
        limit,
        sort_target,
        sort_order,
        keys_only,
        ..RangeRequest::new(KeyRange::all())
    };
    let ranges = [
        RangeRequest::new(KeyRange::all()),
        sorted(0, SortTarget::Value, SortOrder::Descend, true),
        sorted(5000, SortTarget::Mod, SortOrder::Descend, false),
        sorted(3, SortTarget::Mod, SortOrder::Ascend, false),
        RangeRequest::new(one(&key(7))),
        RangeRequest { count_only: true, ..RangeRequest::new(KeyRange::all()) },
    ];
    let txn = Txn { success: ranges.iter().cloned().map(TxnOp::Range).collect(), ..Txn::default() };
    let queries = ranges.into_iter().map(Query::Range).chain([Query::Txn(txn), Query::Status]);
    for query in queries {
        let mut gathered = || loop {
            if let Step::Done(gathered) = etcd.state.begin(&query, &mut Budget::of_keys(1 << 30)) {
                return gathered;
            }
        };
        let mut whole = bytes::BytesMut::new();
        encode_outcome(&gathered().finish(), &mut whole);
        let (length, mut pieces) = gathered().into_pieces();
        assert_eq!(length, whole.len(), "{query:?}");
        let together: Vec<u8> =
            std::iter::from_fn(|| Some(pieces.take(1000)).filter(|taken| !taken.is_empty()))
                .flatten()
                .flatten()
                .collect();
        assert!(together == whole, "{query:?}");
    }
}

#[test]
fn leases_are_listed_in_steps() {
    let mut etcd = Etcd::new();
    for id in 1..=20 {
        etcd.grant(id, 60).expect("it is granted");
    }
    let mut granted = 20;
    let (found, steps) = in_steps(&mut etcd, &Query::Leases, 3, |etcd| {
        etcd.revoke(granted).expect("it lives");
        granted -= 1;
    });
    let Ok(Reply::Leases { leases, .. }) = found else { panic!("{found:?}") };
    let listed: Vec<_> = leases.iter().map(|id| id.0).collect();
    assert_eq!(listed, (1..=granted).collect::<Vec<_>>());
    assert!((5..=7).contains(&steps), "{steps} steps");
    let (none, steps) = in_steps(&mut Etcd::new(), &Query::Leases, 3, |_| {});
    assert_eq!((none.map(|reply| reply.revision()), steps), (Ok(Revision(1)), 1));
}
