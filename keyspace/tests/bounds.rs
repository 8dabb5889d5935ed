//! What a write may read and answer is bounded, and it is refused before it writes anything.

mod common;

use bytes::Bytes;
use common::*;
use keyspace::*;

const MIB: usize = 1 << 20;

fn key(number: usize) -> String {
    format!("k{number:04}")
}

/// Keys with values that share their memory, if they are long.
fn fill(etcd: &mut Etcd, keys: usize, value_bytes: usize) {
    let value = Bytes::from(vec![b'v'; value_bytes]);
    for first in (0..keys).step_by(100) {
        let put = |number| TxnOp::Put(Put::new(key(number), value.clone()));
        let puts = (first..keys.min(first + 100)).map(put).collect();
        etcd.write(Op::Txn(then(puts))).expect("they are written");
    }
}

fn filled(keys: usize, value_bytes: usize) -> Etcd {
    let mut etcd = Etcd::with(Limits { quota_bytes: u64::MAX, ..Limits::default() });
    fill(&mut etcd, keys, value_bytes);
    etcd
}

fn all() -> RangeRequest {
    RangeRequest::new(KeyRange::all())
}

fn delete_all(prev_kv: bool) -> DeleteRange {
    DeleteRange { range: KeyRange::all(), prev_kv }
}

/// So many transactions with so many of these in each, beside a put.
fn nested(count: usize, op: &TxnOp) -> Txn {
    let inner = then((0..count).map(|_| op.clone()).collect());
    let mut ops = vec![put_op("written", "1")];
    ops.extend((0..count).map(|_| TxnOp::Txn(inner.clone())));
    then(ops)
}

/// It is refused so, also when it comes again, and nothing else happens.
fn check_refused(etcd: &mut Etcd, op: Op, error: Error) {
    let (revision, size) = (etcd.revision(), etcd.state.size_bytes());
    let hash = etcd.state.hash_kv(Revision(0));
    assert_eq!(etcd.write(op.clone()), Err(error));
    assert!(etcd.effects.revisions.is_empty() && etcd.get("written").is_none());
    assert_eq!((etcd.revision(), etcd.state.size_bytes()), (revision, size));
    assert_eq!(etcd.state.hash_kv(Revision(0)), hash);
    let again = Command::write(etcd.session, etcd.seq, etcd.seq - 1, Route::FIRST, op);
    assert_eq!(etcd.apply(again), Err(error));
    assert!(etcd.effects.replies[0].repeated);
}

#[test]
fn a_write_whose_answer_would_be_too_large_is_refused_before_it_writes() {
    let mut etcd = filled(10, MIB);
    let sorted =
        RangeRequest { limit: 9, sort_target: SortTarget::Mod, sort_order: SortOrder::Descend, ..all() };
    for range in [all(), sorted, RangeRequest { revision: 2, ..all() }, RangeRequest::new(one(&key(3)))] {
        check_refused(&mut etcd, Op::Txn(nested(23, &TxnOp::Range(range))), Error::AnswerTooLarge);
    }
    // What the transaction itself has written counts, too.
    let put = TxnOp::Put(Put { prev_kv: true, ..Put::new("big", vec![b'b'; MIB]) });
    let get = TxnOp::Range(RangeRequest::new(one("big")));
    let txn = then([vec![put], vec![get; 512]].concat());
    check_refused(&mut etcd, Op::Txn(txn), Error::AnswerTooLarge);
    for fits in [
        RangeRequest { keys_only: true, ..all() },
        RangeRequest { count_only: true, ..all() },
        RangeRequest { limit: 1, ..all() },
    ] {
        assert!(etcd.write(Op::Txn(nested(20, &TxnOp::Range(fits)))).is_ok());
    }
    let forty = (0..40).map(|_| TxnOp::Range(all())).collect();
    assert!(etcd.write(Op::Txn(then(forty))).is_ok(), "400 MiB");
}

#[test]
fn what_a_deletion_tells_is_bounded_and_what_it_deletes_is_not() {
    let mut etcd = filled(513, MIB);
    check_refused(&mut etcd, Op::DeleteRange(delete_all(true)), Error::AnswerTooLarge);
    let txn = then(vec![put_op("written", "1"), TxnOp::DeleteRange(delete_all(true))]);
    check_refused(&mut etcd, Op::Txn(txn), Error::AnswerTooLarge);
    assert!(etcd.write(Op::DeleteRange(delete_all(false))).is_ok());
    assert_eq!(etcd.state.status().keys, 0);
}

#[test]
fn a_deletion_of_very_many_keys_is_one_write() {
    let mut etcd = Etcd::new();
    for first in (0..200_000).step_by(20_000) {
        let puts = (first..first + 20_000).map(|number| put_op(&format!("k{number:06}"), "v"));
        etcd.state.apply(etcd.slot + 1, 0, batch(&mut etcd.seq, etcd.session, puts), &mut etcd.effects);
        etcd.slot += 1;
    }
    assert_eq!(etcd.state.status().keys, 200_000);
    etcd.seq += 1;
    let delete = Op::DeleteRange(delete_all(false));
    let write = Command::write(etcd.session, etcd.seq, etcd.seq - 1, Route::FIRST, delete);
    etcd.effects.clear();
    etcd.state.apply(etcd.slot + 1, 0, write, &mut etcd.effects);
    let Ok(Reply::DeleteRange(reply)) = &etcd.effects.replies[0].outcome else { panic!("it is refused") };
    assert_eq!(reply.deleted, 200_000);
}

fn batch(seq: &mut u64, session: SessionId, puts: impl Iterator<Item = TxnOp>) -> Command {
    *seq += 1;
    Command::write(session, *seq, *seq - 1, Route::FIRST, Op::Txn(then(puts.collect())))
}

#[test]
fn a_transaction_that_looks_at_too_many_keys_is_refused_before_it_writes() {
    let mut etcd = filled(2000, 1);
    let sorted = RangeRequest { sort_target: SortTarget::Version, limit: 1, ..all() };
    let ops = [
        TxnOp::Range(sorted),
        TxnOp::Range(RangeRequest { count_only: true, ..all() }),
        TxnOp::Range(RangeRequest { limit: 1, ..all() }),
        TxnOp::DeleteRange(delete_all(false)),
        TxnOp::DeleteRange(DeleteRange { range: between("k", "k0000\0"), prev_kv: true }),
    ];
    for op in &ops[..4] {
        check_refused(&mut etcd, Op::Txn(nested(12, op)), Error::TooManyOps);
    }
    let compare = compare(KeyRange::all(), CompareResult::Greater, CompareTarget::Version(0));
    let compares = Txn { compare: vec![compare; 300], ..then(vec![put_op("written", "1")]) };
    check_refused(&mut etcd, Op::Txn(compares.clone()), Error::TooManyOps);
    check_refused(&mut etcd, Op::Txn(nested(1, &TxnOp::Txn(compares))), Error::TooManyOps);
    // Each range comes by what the transaction itself has written.
    let puts: Vec<_> = (0..2000).map(|number| put_op(&format!("written{number}"), "1")).collect();
    let txn = then([puts, vec![ops[4].clone(); 300]].concat());
    check_refused(&mut etcd, Op::Txn(txn), Error::TooManyOps);
    assert!(etcd.write(Op::Txn(then(vec![ops[0].clone(), ops[3].clone(), put_op("written", "1")]))).is_ok());
}

/// What is counted how is the same in every build, or replicas of two builds would decide differently.
#[test]
fn what_a_transaction_spends_is_what_it_always_was() {
    let sorted = |sort_target| TxnOp::Range(RangeRequest { sort_target, ..all() });
    let compare = |target| {
        let compare = compare(KeyRange::all(), CompareResult::Greater, target);
        Txn { compare: vec![compare], ..then(vec![put_op("b", "")]) }
    };
    let long = Bytes::from(vec![b'a'; 2048]);
    for (txn, visits) in [
        (then(vec![range_op(KeyRange::all())]), 40),
        (then(vec![range_op(one("k0001"))]), 1),
        (then(vec![TxnOp::Range(RangeRequest { count_only: true, ..all() })]), 20),
        (then(vec![TxnOp::Range(RangeRequest { limit: 3, ..all() })]), 26),
        (then(vec![put_op("a", ""), TxnOp::Range(RangeRequest { limit: 3, ..all() })]), 29),
        (then(vec![sorted(SortTarget::Mod)]), 120),
        (then(vec![sorted(SortTarget::Value)]), 280),
        (then(vec![delete_op(KeyRange::all()), delete_op(KeyRange::all())]), 20),
        (then(vec![put_op("a", ""), delete_op(KeyRange::all()), delete_op(KeyRange::all())]), 21),
        (compare(CompareTarget::Version(0)), 10),
        (compare(CompareTarget::Value(long)), 30),
    ] {
        for (bound, is_enough) in [(visits - 1, false), (visits, true)] {
            // A bound of nothing is one of one key.
            if bound == 0 {
                continue;
            }
            let mut etcd = filled(10, 2048);
            etcd.state.set_write_bounds(WriteBounds { visits: bound, ..WriteBounds::default() });
            let outcome = etcd.write(Op::Txn(txn.clone()));
            assert_eq!(outcome.is_ok(), is_enough, "{txn:?} with {bound} visits: {outcome:?}");
        }
    }
}

/// The same of bytes. A key and its value are 2060 here, each operation and the whole 64.
#[test]
fn what_an_answer_takes_is_what_it_always_was() {
    let all_before = TxnOp::Range(RangeRequest { revision: 2, ..all() });
    let put_back = Put { prev_kv: true, ignore_value: true, ..put("k0001", "") };
    for (ops, bytes) in [
        (vec![range_op(KeyRange::all())], 128 + 20_600),
        (vec![range_op(one("k0001")), all_before], 192 + 22_660),
        (vec![TxnOp::Range(RangeRequest { limit: 2, ..all() })], 128 + 4120),
        (vec![TxnOp::Range(RangeRequest { keys_only: true, ..all() })], 128 + 120),
        (vec![put_op("a", "12345"), range_op(KeyRange::all())], 192 + 20_600 + 70),
        (vec![TxnOp::Put(put_back)], 128 + 2060),
        (vec![delete_op(one("k0001")), TxnOp::DeleteRange(delete_all(true))], 192 + 20_600),
    ] {
        for (answer_bytes, is_enough) in [(bytes - 1, false), (bytes, true)] {
            let mut etcd = filled(10, 2048);
            etcd.state.set_write_bounds(WriteBounds { answer_bytes, ..WriteBounds::default() });
            let outcome = etcd.write(Op::Txn(then(ops.clone())));
            assert_eq!(outcome.is_ok(), is_enough, "{ops:?} with {answer_bytes} bytes: {outcome:?}");
        }
    }
}

#[test]
fn what_is_kept_for_retries_is_bounded() {
    let mut etcd = Etcd::new();
    etcd.state.set_write_bounds(WriteBounds { kept_bytes: 30_000, ..WriteBounds::default() });
    etcd.put("a", &"x".repeat(10_000));
    etcd.seq += 1;
    let low = etcd.seq;
    let write = |seq: u64, low: u64, op: Op| Command::write(etcd.session, seq, low, Route::FIRST, op);
    let put_back = Op::Put(Put { prev_kv: true, ignore_value: true, ..Put::new("a", "") });
    let with_previous: Vec<_> = (1..=4).map(|number| write(low + number, low, put_back.clone())).collect();
    let small = write(low + 5, low, Op::Put(Put { prev_kv: true, ..put("b", "1") }));
    let answers: Vec<_> = with_previous.iter().map(|put| etcd.apply(put.clone())).collect();
    let Ok(Reply::Put(last)) = &answers[3] else { panic!("{answers:?}") };
    assert_eq!(last.prev_kv.as_ref().map(|kv| kv.value.len()), Some(10_000), "who waits is answered");
    etcd.apply(small.clone()).expect("it is granted");
    let revision = etcd.revision();
    let mut copy = etcd.restored();
    for (again, first) in with_previous.iter().zip(&answers) {
        let known = if again == &with_previous[2] || again == &with_previous[3] {
            Err(Error::ResultForgotten)
        } else {
            first.clone()
        };
        assert_eq!(etcd.apply(again.clone()), known);
        let mut effects = Effects::new();
        copy.apply(etcd.slot, 0, again.clone(), &mut effects);
        assert_eq!(effects.replies[0].outcome, known, "after a snapshot, too");
    }
    assert!(etcd.apply(small.clone()).is_ok(), "what is small is kept");
    assert_eq!(etcd.revision(), revision, "nothing is carried out twice");
    copy.apply(etcd.slot, 0, small, &mut Effects::new());
    // What is settled makes room.
    for (state, slot) in [(&mut etcd.state, etcd.slot + 1), (&mut copy, etcd.slot + 1)] {
        let mut effects = Effects::new();
        let next = Command::write(etcd.session, low + 6, low + 5, Route::FIRST, put_back.clone());
        for command in [next.clone(), next] {
            state.apply(slot, 0, command, &mut effects);
            assert!(effects.replies.iter().all(|answer| answer.outcome.is_ok()));
        }
        state.check_invariants();
    }
    assert_eq!(copy.digest(), etcd.state.digest());
}

#[test]
fn before_all_replicas_know_the_bounds_nothing_is_refused_by_them() {
    let options =
        || Options { limits: Limits { quota_bytes: u64::MAX, ..Limits::default() }, ..Options::default() };
    let bounds = WriteBounds { answer_bytes: 100_000, visits: 300, kept_bytes: 50_000 };
    let mut etcd = Etcd {
        state: Keyspace::new(options()),
        session: SessionId::NONE,
        slot: 0,
        seq: 0,
        effects: Effects::new(),
    };
    etcd.state.set_write_bounds(bounds);
    etcd.session = etcd.open(1);
    fill(&mut etcd, 10, 20_000);
    let wide = nested(8, &TxnOp::Range(all()));
    let deletes = nested(5, &delete_op(KeyRange::all()));
    let read_all = Op::Txn(then(vec![range_op(KeyRange::all())]));
    let kept = |etcd: &mut Etcd, op: &Op| {
        let first = etcd.write(op.clone());
        let again = Command::write(etcd.session, etcd.seq, etcd.seq - 1, Route::FIRST, op.clone());
        assert_eq!(etcd.apply(again), first);
        first
    };
    for known in [ClusterVersion::FIRST, ClusterVersion::NUMBERED_GRANTS] {
        if known > ClusterVersion::FIRST {
            etcd.apply(Command::RaiseVersion(known)).expect("it rises");
        }
        assert!(kept(&mut etcd, &Op::Txn(wide.clone())).is_ok(), "{known}");
        assert!(kept(&mut etcd, &read_all).is_ok(), "{known}");
        assert!(kept(&mut etcd, &Op::Txn(deletes.clone())).is_ok(), "{known}");
        fill(&mut etcd, 10, 20_000);
    }
    assert!(kept(&mut etcd, &read_all).is_ok());
    // One that begins with a snapshot, which holds more of a session than will be kept, goes on as the others do.
    let mut copy = etcd.restored();
    copy.set_write_bounds(bounds);
    let mut effects = Effects::new();
    for (op, error) in [(read_all, Error::AnswerTooLarge), (Op::Txn(deletes), Error::TooManyOps)] {
        for command in [
            Command::RaiseVersion(ClusterVersion::BOUNDED_WRITES),
            Command::write(etcd.session, etcd.seq + 1, etcd.seq - 1, Route::FIRST, op),
        ] {
            effects.clear();
            copy.apply(etcd.slot + 1, 0, command.clone(), &mut effects);
            let outcome = etcd.apply(command);
            assert_eq!(effects.replies[0].outcome, outcome);
            copy.check_invariants();
            assert_eq!(copy.digest(), etcd.state.digest());
        }
        etcd.seq += 1;
        assert_eq!(effects.replies[0].outcome, Err(error));
    }
}

#[test]
fn no_answer_is_larger_than_was_foreseen() {
    // The state machine compares the two itself.
    let mut etcd = filled(20, 3);
    let mut random = 7_u64;
    let mut below = |bound: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % bound
    };
    for _ in 0..2000 {
        let revision = etcd.revision();
        let ops = (0..1 + below(6)).map(|_| {
            let (first, end) = (key(below(24) as usize), key(below(24) as usize));
            let range = match below(4) {
                0 => one(&first),
                1 => KeyRange::from(first.clone()),
                _ => between(&first, &end),
            };
            match below(4) {
                0 => TxnOp::DeleteRange(DeleteRange { range, prev_kv: true }),
                1 => {
                    let value = vec![b'w'; below(300) as usize];
                    TxnOp::Put(Put { prev_kv: true, ..Put::new(first, value) })
                }
                _ => TxnOp::Range(RangeRequest {
                    limit: below(5) as i64,
                    revision: if below(4) == 0 { revision } else { 0 },
                    keys_only: below(8) == 0,
                    sort_order: [SortOrder::None, SortOrder::Ascend, SortOrder::Descend][below(3) as usize],
                    sort_target: [SortTarget::Key, SortTarget::Mod, SortTarget::Value][below(3) as usize],
                    min_mod_revision: [0, 0, revision - below(9) as i64][below(3) as usize],
                    ..RangeRequest::new(range)
                }),
            }
        });
        let txn = then(ops.collect());
        etcd.write(Op::Txn(txn)).expect("it is small");
    }
}
