//! etcd's behaviour, point by point, the odd points above all. The sections are those of etcd's API; the behaviour is
//! 3.6's, and where 3.5.1 or 3.7 differ, the test says so.

mod common;

use CompareResult::{Equal, Greater, Less, NotEqual, Unknown};
use common::*;
use keyspace::*;

// Range.

#[test]
fn range_without_a_key_is_refused_before_its_sort_is_looked_at() {
    let etcd = Etcd::new();
    let request = RangeRequest { sort_order: SortOrder::Invalid, ..RangeRequest::new(one("")) };
    assert_eq!(etcd.range(request), Err(Error::EmptyKey));
    let request = RangeRequest { sort_order: SortOrder::from_wire(3), ..RangeRequest::new(one("a")) };
    assert_eq!(etcd.range(request), Err(Error::InvalidSortOption));
    let request = RangeRequest { sort_target: SortTarget::from_wire(-1), ..RangeRequest::new(one("a")) };
    assert_eq!(etcd.range(request), Err(Error::InvalidSortOption));
}

#[test]
fn range_ends_are_read_as_etcd_does() {
    let mut etcd = Etcd::new();
    for key in ["\0", "a", "ab", "b"] {
        etcd.put(key, "1");
    }
    let found = |key: &str, end: &str| {
        let reply = etcd.range(RangeRequest::new(between(key, end))).unwrap();
        assert_eq!(reply.count as usize, reply.kvs.len());
        keys(&reply.kvs)
    };
    assert_eq!(found("a", ""), ["a"]);
    assert_eq!(found("a", "\0"), ["a", "ab", "b"]);
    assert_eq!(found("\0", "\0"), ["\0", "a", "ab", "b"]);
    assert_eq!(found("a", "b"), ["a", "ab"]);
    // At or below the key: nothing, and no error.
    assert_eq!(found("b", "a"), [""; 0]);
    assert_eq!(found("b", "b"), [""; 0]);
    // Two zero bytes are an ordinary end.
    assert_eq!(found("\0", "\0\0"), ["\0"]);
    assert_eq!(KeyRange::prefix("a"), between("a", "b"));
    assert_eq!(KeyRange::prefix(&b"a\xff"[..]), KeyRange::between(&b"a\xff"[..], "b"));
    assert_eq!(KeyRange::prefix(&b"\xff"[..]), KeyRange::from(&b"\xff"[..]));
    assert_eq!(KeyRange::prefix(""), KeyRange::all());
}

#[test]
fn limit_cuts_off_and_tells_and_count_is_of_the_whole() {
    let mut etcd = Etcd::new();
    for key in ["a", "b", "c"] {
        etcd.put(key, "1");
    }
    let limited = |limit| {
        let reply = etcd.range(RangeRequest { limit, ..RangeRequest::new(KeyRange::all()) }).unwrap();
        (reply.kvs.len(), reply.more, reply.count)
    };
    assert_eq!(limited(0), (3, false, 3));
    assert_eq!(limited(1), (1, true, 3));
    assert_eq!(limited(2), (2, true, 3));
    assert_eq!(limited(3), (3, false, 3));
    assert_eq!(limited(-1), (3, false, 3));
    assert_eq!(limited(i64::MAX), (3, false, 3));
}

#[test]
fn a_page_ends_at_its_limit_or_where_it_is_long_enough() {
    let mut etcd = Etcd::new();
    for key in ["a", "b", "c", "d"] {
        etcd.put(key, "nine more");
    }
    let page = |page: PageRequest| match etcd.state.query(&Query::Page(page)) {
        Ok(Reply::Range(reply)) => Ok((keys(&reply.kvs).concat(), reply.more, reply.count)),
        other => Err(other),
    };
    let plain = PageRequest {
        range: KeyRange::all(),
        revision: 0,
        limit: 9,
        bytes: 1000,
        keys_only: false,
        counts_rest: false,
    };
    assert_eq!(page(plain.clone()), Ok(("abcd".into(), false, 4)));
    assert_eq!(page(PageRequest { limit: 4, ..plain.clone() }), Ok(("abcd".into(), false, 4)));
    assert_eq!(page(PageRequest { limit: 3, ..plain.clone() }), Ok(("abc".into(), true, 3)));
    assert_eq!(
        page(PageRequest { limit: 3, counts_rest: true, ..plain.clone() }),
        Ok(("abc".into(), true, 4))
    );
    assert_eq!(page(PageRequest { limit: 0, ..plain.clone() }), Ok(("a".into(), true, 1)), "one at least");
    // Ten bytes each; without values one.
    for (bytes, found) in [(0, "a"), (9, "a"), (10, "ab"), (19, "ab"), (20, "abc")] {
        assert_eq!(
            page(PageRequest { bytes, ..plain.clone() }),
            Ok((found.into(), true, found.len() as i64))
        );
    }
    assert_eq!(page(PageRequest { bytes: 30, ..plain.clone() }), Ok(("abcd".into(), false, 4)));
    assert_eq!(page(PageRequest { bytes: 2, keys_only: true, ..plain.clone() }), Ok(("abc".into(), true, 3)));
    assert_eq!(page(PageRequest { revision: 3, ..plain.clone() }), Ok(("ab".into(), false, 2)));
    assert_eq!(page(PageRequest { revision: 9, ..plain.clone() }), Err(Err(Error::FutureRevision)));
    assert_eq!(page(PageRequest { range: between("x", "y"), ..plain }), Ok(("".into(), false, 0)));
}

#[test]
fn a_list_that_is_too_long_is_measured() {
    let mut etcd = Etcd::new();
    for key in ["a", "b", "c", "d"] {
        etcd.put(key, "nine more");
    }
    etcd.delete(one("b"));
    let list = |revision, limit, keys_only, bytes| {
        etcd.state.query(&Query::List(ListRequest {
            range: KeyRange::all(),
            revision,
            limit,
            keys_only,
            bytes,
        }))
    };
    for (revision, limit, keys_only) in
        [(0, 0, false), (0, 2, false), (0, 3, true), (5, 3, false), (0, 9, true)]
    {
        let request =
            RangeRequest { revision, limit: limit as i64, keys_only, ..RangeRequest::new(KeyRange::all()) };
        let whole = etcd.range(request).unwrap();
        // With their tags and lengths, entries of 22 bytes, or 11 without the value.
        let bytes = whole.kvs.len() as u64 * if keys_only { 11 } else { 22 };
        assert_eq!(whole.kvs.iter().map(|kv| wire_len(kv, keys_only) as u64).sum::<u64>(), bytes);
        assert_eq!(list(revision, limit, keys_only, bytes), Ok(Reply::Range(whole.clone())));
        let RangeReply { revision: at, kvs, more, count } = whole;
        let measured = MeasuredReply { revision: at, shown: kvs.len() as u64, bytes, more, count };
        assert_eq!(list(revision, limit, keys_only, bytes - 1), Ok(Reply::Measured(measured)));
        assert_eq!(list(revision, limit, keys_only, 0), Ok(Reply::Measured(measured)));
    }
    assert_eq!(list(9, 0, false, 100), Err(Error::FutureRevision));
}

#[test]
fn sort_by_a_target_without_an_order_takes_the_limit_first() {
    let mut etcd = Etcd::new();
    for key in ["s5", "s4", "s3", "s2", "s1", "s0"] {
        etcd.put(key, "1");
    }
    let sorted = |sort_order| {
        let request = RangeRequest {
            limit: 2,
            sort_order,
            sort_target: SortTarget::Mod,
            ..RangeRequest::new(KeyRange::prefix("s"))
        };
        let reply = etcd.range(request).unwrap();
        assert!(reply.more);
        assert_eq!(reply.count, 6);
        keys(&reply.kvs)
    };
    // The first three keys are fetched, sorted by revision, and cut to two.
    assert_eq!(sorted(SortOrder::None), ["s2", "s1"]);
    assert_eq!(sorted(SortOrder::Ascend), ["s5", "s4"]);
    assert_eq!(sorted(SortOrder::Descend), ["s0", "s1"]);
}

#[test]
fn sort_knows_every_target() {
    let mut etcd = Etcd::new();
    etcd.put("a", "3");
    etcd.put("b", "1");
    etcd.put("b", "1");
    etcd.put("b", "1");
    etcd.put("c", "2");
    etcd.put("a", "3");
    let sorted = |sort_target, sort_order| {
        keys(
            &etcd
                .range(RangeRequest { sort_order, sort_target, ..RangeRequest::new(KeyRange::all()) })
                .unwrap()
                .kvs,
        )
    };
    assert_eq!(sorted(SortTarget::Key, SortOrder::Descend), ["c", "b", "a"]);
    assert_eq!(sorted(SortTarget::Version, SortOrder::Ascend), ["c", "a", "b"]);
    assert_eq!(sorted(SortTarget::Create, SortOrder::Descend), ["c", "b", "a"]);
    assert_eq!(sorted(SortTarget::Mod, SortOrder::Ascend), ["b", "c", "a"]);
    assert_eq!(sorted(SortTarget::Value, SortOrder::Ascend), ["b", "c", "a"]);
    // With a target and no order, ascending.
    assert_eq!(sorted(SortTarget::Value, SortOrder::None), ["b", "c", "a"]);
}

#[test]
fn revision_filters_are_inclusive_take_the_limit_after_and_leave_the_count() {
    let mut etcd = Etcd::new();
    for key in ["a", "b", "c", "d"] {
        etcd.put(key, "1");
    }
    etcd.put("a", "2");
    let filtered = |request: RangeRequest| {
        let reply = etcd.range(request).unwrap();
        assert_eq!(reply.count, 4);
        (keys(&reply.kvs).join(""), reply.more)
    };
    let all = RangeRequest::new(KeyRange::all());
    assert_eq!(filtered(RangeRequest { min_mod_revision: 4, ..all.clone() }), ("acd".into(), false));
    assert_eq!(filtered(RangeRequest { max_mod_revision: 4, ..all.clone() }), ("bc".into(), false));
    assert_eq!(filtered(RangeRequest { min_create_revision: 3, ..all.clone() }), ("bcd".into(), false));
    assert_eq!(filtered(RangeRequest { max_create_revision: 3, ..all.clone() }), ("ab".into(), false));
    assert_eq!(filtered(RangeRequest { min_mod_revision: 4, limit: 2, ..all.clone() }), ("ac".into(), true));
}

#[test]
fn keys_only_leaves_the_value_out_and_keeps_the_lease() {
    // 3.7 answers from its index and then tells no lease.
    let mut etcd = Etcd::new();
    etcd.grant(7, 60).unwrap();
    etcd.put_with(Put { lease: LeaseId(7), ..put("a", "value") }).unwrap();
    let kv =
        etcd.range(RangeRequest { keys_only: true, ..RangeRequest::new(one("a")) }).unwrap().kvs.remove(0);
    assert_eq!((kv.value.len(), kv.lease, kv.version), (0, LeaseId(7), 1));
    // Sorting by value still looks at values.
    etcd.put("b", "a");
    let request = RangeRequest {
        keys_only: true,
        sort_target: SortTarget::Value,
        sort_order: SortOrder::Ascend,
        ..RangeRequest::new(KeyRange::all())
    };
    assert_eq!(keys(&etcd.range(request).unwrap().kvs), ["b", "a"]);
}

#[test]
fn count_only_counts_and_never_has_more() {
    let mut etcd = Etcd::new();
    etcd.put("a", "1");
    etcd.put("b", "1");
    let request = RangeRequest { count_only: true, limit: 1, ..RangeRequest::new(KeyRange::all()) };
    let reply = etcd.range(request).unwrap();
    assert_eq!(reply, RangeReply { revision: Revision(3), kvs: Vec::new(), more: false, count: 2 });
}

#[test]
fn a_range_of_an_old_revision_has_the_current_one_in_its_header() {
    let mut etcd = Etcd::new();
    etcd.put("a", "1");
    etcd.put("a", "2");
    let reply = etcd.range(RangeRequest { revision: 2, ..RangeRequest::new(one("a")) }).unwrap();
    assert_eq!((reply.revision, text(&reply.kvs[0].value)), (Revision(3), "1".to_owned()));
    assert_eq!(etcd.get_at("a", 4), Err(Error::FutureRevision));
    assert_eq!(etcd.get_at("a", -5).unwrap().unwrap().mod_revision, Revision(3));
    assert_eq!(etcd.get_at("a", 1), Ok(None));
}

#[test]
fn the_compact_revision_is_readable_and_nothing_below_it() {
    let mut etcd = Etcd::new();
    etcd.put("a", "1");
    etcd.put("a", "2");
    etcd.put("a", "3");
    etcd.compact(3).unwrap();
    assert_eq!(etcd.get_at("a", 2), Err(Error::Compacted));
    assert_eq!(text(&etcd.get_at("a", 3).unwrap().unwrap().value), "2");
    // Below zero still means the latest.
    assert_eq!(text(&etcd.get_at("a", -1).unwrap().unwrap().value), "3");
}

// Put and DeleteRange.

#[test]
fn put_is_checked_in_etcds_order() {
    let both = Put { lease: LeaseId(1), ignore_value: true, ignore_lease: true, ..put("", "v") };
    assert_eq!(check::put(&both), Err(Error::EmptyKey));
    let both = Put { key: "a".into(), ..both };
    assert_eq!(check::put(&both), Err(Error::ValueProvided));
    let both = Put { value: "".into(), ..both };
    assert_eq!(check::put(&both), Err(Error::LeaseProvided));
    assert_eq!(check::put(&Put { lease: LeaseId::NONE, ..both }), Ok(()));
    assert_eq!(check::delete_range(&DeleteRange { range: one(""), prev_kv: false }), Err(Error::EmptyKey));

    // At apply, the lease comes before the key.
    let mut etcd = Etcd::new();
    let missing = Put { lease: LeaseId(9), ignore_value: true, ..put("a", "") };
    assert_eq!(etcd.put_with(missing.clone()), Err(Error::LeaseNotFound));
    // In a transaction it is the other way round.
    assert_eq!(etcd.txn(then(vec![TxnOp::Put(missing.clone())])), Err(Error::KeyNotFound));
    etcd.grant(9, 60).unwrap();
    assert_eq!(etcd.put_with(missing), Err(Error::KeyNotFound));
    assert_eq!(etcd.put_with(Put { ignore_lease: true, ..put("a", "1") }), Err(Error::KeyNotFound));
    assert_eq!(etcd.revision(), 1);
}

#[test]
fn every_put_takes_one_revision_even_with_the_same_value() {
    let mut etcd = Etcd::new();
    assert_eq!(etcd.put("a", "1").revision, Revision(2));
    assert_eq!(etcd.put("a", "1").revision, Revision(3));
    let kv = etcd.get("a").unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (Revision(2), Revision(3), 2));
}

#[test]
fn versions_begin_again_after_a_deletion() {
    let mut etcd = Etcd::new();
    etcd.put("a", "1");
    etcd.put("a", "2");
    etcd.delete(one("a"));
    etcd.put("a", "3");
    let kv = etcd.get("a").unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (Revision(5), Revision(5), 1));
}

#[test]
fn ignore_value_and_ignore_lease_keep_what_is_there() {
    let mut etcd = Etcd::new();
    etcd.grant(1, 60).unwrap();
    etcd.grant(2, 60).unwrap();
    etcd.put_with(Put { lease: LeaseId(1), ..put("a", "1") }).unwrap();
    etcd.put_with(Put { lease: LeaseId(2), ignore_value: true, ..put("a", "") }).unwrap();
    let kv = etcd.get("a").unwrap();
    assert_eq!((text(&kv.value), kv.lease), ("1".to_owned(), LeaseId(2)));
    let reply = etcd.put_with(Put { ignore_lease: true, prev_kv: true, ..put("a", "2") }).unwrap();
    assert_eq!(reply.prev_kv, Some(kv));
    let kv = etcd.get("a").unwrap();
    assert_eq!((text(&kv.value), kv.lease, kv.version), ("2".to_owned(), LeaseId(2), 3));
}

#[test]
fn prev_kv_is_told_only_when_asked_for() {
    let mut etcd = Etcd::new();
    let asked = Put { prev_kv: true, ..put("a", "1") };
    assert_eq!(etcd.put_with(asked.clone()).unwrap().prev_kv, None);
    assert_eq!(etcd.put("a", "2").prev_kv, None);
    assert_eq!(text(&etcd.put_with(asked).unwrap().prev_kv.unwrap().value), "2");
    let silent = etcd.write(Op::DeleteRange(DeleteRange { range: one("a"), prev_kv: false }));
    let Ok(Reply::DeleteRange(reply)) = silent else { panic!("not a deletion") };
    assert_eq!((reply.deleted, reply.prev_kvs.len()), (1, 0));
}

#[test]
fn a_deletion_of_nothing_takes_no_revision() {
    let mut etcd = Etcd::new();
    etcd.put("a", "1");
    let reply = etcd.delete(between("b", "z"));
    assert_eq!(reply, DeleteRangeReply { revision: Revision(2), deleted: 0, prev_kvs: Vec::new() });
    assert!(etcd.effects.revisions.is_empty());
    let reply = etcd.delete(between("b", "a"));
    assert_eq!((reply.deleted, etcd.revision()), (0, 2));
}

#[test]
fn a_deletion_of_many_keys_takes_one_revision() {
    let mut etcd = Etcd::new();
    for key in ["c", "a", "b"] {
        etcd.put(key, key);
    }
    let reply = etcd.delete(KeyRange::all());
    assert_eq!((reply.revision, reply.deleted), (Revision(5), 3));
    assert_eq!(keys(&reply.prev_kvs), ["a", "b", "c"]);
    assert_eq!(
        etcd.watch(KeyRange::all(), 5).unwrap(),
        ["5: DELETE a (was a), DELETE b (was b), DELETE c (was c)"]
    );
    // A deletion's event has the key and the revision, and nothing else.
    let kv = &etcd.effects.revisions[0].events[0].kv;
    assert_eq!(*kv, KeyValue { key: "a".into(), mod_revision: Revision(5), ..KeyValue::default() });
}

// Txn: at the door.

#[test]
fn txn_operations_are_counted_by_the_longest_list() {
    let three = vec![range_op(one("a")); 3];
    let compares = vec![compare(one("a"), Equal, CompareTarget::Mod(0)); 4];
    let txn = Txn { compare: compares, success: three.clone(), failure: three };
    assert_eq!(check::txn(&txn, 4), Ok(()));
    assert_eq!(check::txn(&txn, 3), Err(Error::TooManyOps));
}

#[test]
fn nested_txns_have_the_budget_that_their_parent_leaves() {
    let inner = |ops| TxnOp::Txn(then(vec![range_op(one("a")); ops]));
    assert_eq!(check::txn(&then(vec![inner(127)]), 128), Ok(()));
    assert_eq!(check::txn(&then(vec![inner(128)]), 128), Err(Error::TooManyOps));
    // Siblings do not share it.
    assert_eq!(check::txn(&then(vec![inner(126), inner(126)]), 128), Ok(()));
    assert_eq!(check::txn(&then(vec![inner(126), inner(127)]), 128), Err(Error::TooManyOps));
}

#[test]
fn txn_nesting_is_bounded_whatever_the_budget() {
    let mut txn = then(vec![]);
    for _ in 1..MAX_TXN_DEPTH {
        txn = then(vec![TxnOp::Txn(txn)]);
    }
    assert_eq!(check::txn(&txn, usize::MAX), Ok(()));
    let mut bytes = bytes::BytesMut::new();
    Op::Txn(txn.clone()).encode(&mut bytes);
    assert_eq!(Op::decode(bytes.freeze()), Ok(Op::Txn(txn.clone())));
    let mut etcd = Etcd::new();
    assert!(etcd.write(Op::Txn(txn.clone())).is_ok());

    let txn = then(vec![TxnOp::Txn(txn)]);
    assert_eq!(check::txn(&txn, usize::MAX), Err(Error::TooManyOps));
    let mut bytes = bytes::BytesMut::new();
    Op::Txn(txn).encode(&mut bytes);
    assert!(Op::decode(bytes.freeze()).is_err());
}

#[test]
fn txn_checks_come_in_etcds_order() {
    let empty_key = compare(one(""), Equal, CompareTarget::Mod(0));
    let bad_put = TxnOp::Put(Put { ignore_value: true, ..put("a", "v") });
    let twice = vec![put_op("a", "1"), put_op("a", "2")];
    // The number, then the comparisons, then success before failure, then keys written twice.
    let txn = Txn {
        compare: vec![empty_key.clone(); 2],
        success: vec![bad_put.clone()],
        failure: vec![TxnOp::Empty],
    };
    assert_eq!(check::txn(&txn, 1), Err(Error::TooManyOps));
    assert_eq!(check::txn(&txn, 2), Err(Error::EmptyKey));
    let txn = Txn { compare: vec![], ..txn };
    assert_eq!(check::txn(&txn, 2), Err(Error::ValueProvided));
    let txn = Txn { success: twice.clone(), ..txn };
    assert_eq!(check::txn(&txn, 2), Err(Error::KeyNotFound));
    let txn = Txn { failure: vec![range_op(one(""))], ..txn };
    assert_eq!(check::txn(&txn, 2), Err(Error::EmptyKey));
    assert_eq!(check::txn(&Txn { failure: vec![], ..txn }, 2), Err(Error::DuplicateKey));
    assert_eq!(check::txn(&Txn { failure: twice, ..Txn::default() }, 2), Err(Error::DuplicateKey));
}

#[test]
fn an_empty_operation_is_a_key_not_found() {
    assert_eq!(check::txn(&then(vec![TxnOp::Empty]), 128), Err(Error::KeyNotFound));
    let nested = TxnOp::Txn(Txn { failure: vec![TxnOp::Empty], ..Txn::default() });
    assert_eq!(check::txn(&then(vec![nested]), 128), Err(Error::KeyNotFound));
}

#[test]
fn a_key_may_be_written_once() {
    let nested =
        |success: Vec<TxnOp>, failure: Vec<TxnOp>| TxnOp::Txn(Txn { success, failure, ..Txn::default() });
    let a = || put_op("a", "1");
    let b = || put_op("b", "1");
    let accepted = |ops: Vec<TxnOp>| {
        let verdict = check::txn(&then(ops.clone()), 128);
        assert_eq!(check::txn(&Txn { failure: ops, ..Txn::default() }, 128), verdict, "both branches alike");
        match verdict {
            Ok(()) => true,
            Err(Error::DuplicateKey) => false,
            Err(other) => panic!("{other}"),
        }
    };
    assert!(!accepted(vec![a(), a()]));
    assert!(accepted(vec![a(), b()]));
    assert!(!accepted(vec![a(), delete_op(one("a"))]));
    assert!(!accepted(vec![delete_op(one("a")), a()]));
    assert!(!accepted(vec![b(), delete_op(between("a", "c"))]));
    assert!(accepted(vec![b(), delete_op(between("a", "b"))]));
    assert!(accepted(vec![b(), delete_op(between("c", "a"))]), "an empty interval");
    // Deletions may overlap each other; reads overlap anything.
    assert!(accepted(vec![delete_op(one("a")), delete_op(one("a")), delete_op(between("a", "z"))]));
    assert!(accepted(vec![a(), range_op(one("a")), range_op(KeyRange::all())]));
    // The branches of one nested transaction exclude each other; siblings do not.
    assert!(accepted(vec![nested(vec![a()], vec![a()])]));
    assert!(!accepted(vec![nested(vec![a()], vec![]), nested(vec![], vec![a()])]));
    assert!(!accepted(vec![a(), nested(vec![], vec![a()])]));
    assert!(!accepted(vec![nested(vec![nested(vec![a()], vec![])], vec![]), a()]));
    // This level's deletions against nested puts, and nested deletions against this level's puts.
    assert!(!accepted(vec![nested(vec![a()], vec![]), delete_op(one("a"))]));
    assert!(!accepted(vec![a(), nested(vec![delete_op(one("a"))], vec![])]));
    // A later sibling's puts meet an earlier one's deletions, but not the other way round.
    assert!(!accepted(vec![nested(vec![delete_op(one("a"))], vec![]), nested(vec![a()], vec![])]));
    assert!(accepted(vec![nested(vec![a()], vec![]), nested(vec![delete_op(one("a"))], vec![])]));
    assert!(accepted(vec![nested(vec![a()], vec![delete_op(one("a"))])]));
}

#[test]
fn a_deletion_up_to_zero_escapes_the_rule() {
    // So the same key has two events in one revision, in the order of the operations.
    let mut etcd = Etcd::new();
    etcd.put("b", "old");
    let reply = etcd.txn(then(vec![put_op("b", "new"), delete_op(between("a", "\0"))])).unwrap();
    assert_eq!(reply.revision, Revision(3));
    assert_eq!(etcd.get("b"), None);
    // Both tell what was there before the revision.
    assert_eq!(etcd.watch(one("b"), 3).unwrap(), ["3: PUT b=new (was old), DELETE b (was old)"]);
    assert_eq!(show(&etcd.effects.revisions[0]), "3: PUT b=new (was old), DELETE b (was old)");

    etcd.txn(then(vec![put_op("b", "newer"), delete_op(between("a", "\0"))])).unwrap();
    assert_eq!(etcd.watch(one("b"), 4).unwrap(), ["4: PUT b=newer, DELETE b"]);
    etcd.put("b", "last");
    etcd.txn(then(vec![delete_op(between("a", "\0")), put_op("b", "new")])).unwrap();
    let kv = etcd.get("b").unwrap();
    assert_eq!((kv.create_revision, kv.version), (Revision(6), 1), "created anew within the revision");
    assert_eq!(
        etcd.watch(one("b"), 6).unwrap(),
        ["6: DELETE b (was last), PUT b=new"],
        "a new key was nothing before"
    );
    assert_eq!(show(&etcd.effects.revisions[0]), "6: DELETE b (was last), PUT b=new");
    // The refused twin.
    let refused = then(vec![put_op("b", "new"), delete_op(between("a", "c"))]);
    assert_eq!(etcd.txn(refused), Err(Error::DuplicateKey));

    // Compaction at the revision keeps the last of a key's events.
    etcd.compact(6).unwrap();
    etcd.state.sweep(usize::MAX);
    assert_eq!(etcd.watch(one("b"), 6).unwrap(), ["6: PUT b=new"]);
    assert_eq!(etcd.watch(KeyRange::all(), 6).unwrap(), ["6: PUT b=new"]);
    assert_eq!(etcd.restored().digest(), etcd.state.digest());
}

#[test]
fn ignore_value_after_a_deletion_up_to_zero_finds_nothing_to_keep() {
    // etcd's member crashes here.
    let mut etcd = Etcd::new();
    etcd.grant(1, 60).unwrap();
    etcd.put_with(Put { lease: LeaseId(1), ..put("b", "old") }).unwrap();
    let keep = TxnOp::Put(Put { ignore_value: true, ignore_lease: true, prev_kv: true, ..put("b", "") });
    let reply = etcd.txn(then(vec![delete_op(between("a", "\0")), keep])).unwrap();
    let kv = etcd.get("b").unwrap();
    assert_eq!((kv.value.len(), kv.lease, kv.version), (0, LeaseId::NONE, 1));
    let TxnOpReply::Put(put_reply) = &reply.responses[1] else { panic!("not a put") };
    assert_eq!(put_reply.prev_kv, None);
}

// Txn: evaluation.

#[test]
fn no_comparisons_hold() {
    let mut etcd = Etcd::new();
    assert!(etcd.holds(vec![]));
    assert!(etcd.txn(Txn { failure: vec![put_op("a", "1")], ..Txn::default() }).unwrap().succeeded);
}

#[test]
fn comparisons_know_every_target_and_result() {
    let mut etcd = Etcd::new();
    etcd.grant(5, 60).unwrap();
    etcd.put("a", "x");
    etcd.put_with(Put { lease: LeaseId(5), ..put("a", "m") }).unwrap();
    // Created at 2, modified at 3, version 2.
    type Target = fn(i64) -> CompareTarget;
    let fields: [(Target, i64); 4] = [
        (CompareTarget::Version, 2),
        (CompareTarget::Create, 2),
        (CompareTarget::Mod, 3),
        (|id| CompareTarget::Lease(LeaseId(id)), 5),
    ];
    for (target, actual) in fields {
        for (result, given, expected) in [
            (Equal, actual, true),
            (Equal, actual + 1, false),
            (NotEqual, actual, false),
            (NotEqual, actual + 1, true),
            (Greater, actual, false),
            (Greater, actual - 1, true),
            (Less, actual, false),
            (Less, actual + 1, true),
        ] {
            assert_eq!(
                etcd.holds(vec![compare(one("a"), result, target(given))]),
                expected,
                "{result:?} {given}"
            );
        }
    }
    for (result, given, expected) in [
        (Equal, "m", true),
        (NotEqual, "m", false),
        (Greater, "a", true),
        (Less, "z", true),
        (Less, "a", false),
    ] {
        let value = CompareTarget::Value(given.into());
        assert_eq!(etcd.holds(vec![compare(one("a"), result, value)]), expected, "{result:?} {given}");
    }
}

#[test]
fn a_missing_key_compares_as_zero() {
    let mut etcd = Etcd::new();
    for target in [
        CompareTarget::Version(0),
        CompareTarget::Create(0),
        CompareTarget::Mod(0),
        CompareTarget::Lease(LeaseId::NONE),
    ] {
        assert!(etcd.holds(vec![compare(one("a"), Equal, target.clone())]));
        assert!(!etcd.holds(vec![compare(one("a"), Greater, target.clone())]));
        // A range without keys as well.
        assert!(etcd.holds(vec![compare(KeyRange::all(), Equal, target)]));
    }
    assert!(etcd.holds(vec![compare(one("a"), Less, CompareTarget::Mod(1))]));
}

#[test]
fn a_missing_key_fails_every_comparison_with_a_value() {
    let mut etcd = Etcd::new();
    for result in [Equal, NotEqual, Greater, Less, Unknown] {
        for value in ["", "x"] {
            let target = CompareTarget::Value(value.into());
            assert!(!etcd.holds(vec![compare(one("a"), result, target.clone())]), "{result:?}");
            assert!(!etcd.holds(vec![compare(KeyRange::all(), result, target)]), "{result:?}");
        }
    }
}

#[test]
fn an_unknown_result_holds_and_an_unknown_target_is_equal() {
    let mut etcd = Etcd::new();
    etcd.put("a", "1");
    assert_eq!(CompareResult::from_wire(4), Unknown);
    assert!(etcd.holds(vec![compare(one("a"), Unknown, CompareTarget::Mod(99))]));
    assert!(etcd.holds(vec![compare(one("a"), Equal, CompareTarget::Unknown)]));
    assert!(!etcd.holds(vec![compare(one("a"), Greater, CompareTarget::Unknown)]));
    assert!(etcd.holds(vec![compare(one("missing"), Equal, CompareTarget::Unknown)]));
}

#[test]
fn every_key_of_a_compared_range_must_agree() {
    let mut etcd = Etcd::new();
    etcd.put("a", "1");
    etcd.put("b", "1");
    etcd.put("b", "2");
    let versions = |result, version| vec![compare(KeyRange::all(), result, CompareTarget::Version(version))];
    assert!(!etcd.holds(versions(Equal, 1)));
    assert!(etcd.holds(versions(Less, 3)));
    assert!(etcd.holds(versions(Greater, 0)));
    // And every comparison.
    let both = [versions(Less, 3), versions(Equal, 1)].concat();
    assert!(!etcd.holds(both));
}

#[test]
fn all_comparisons_see_the_state_before_the_first_write() {
    let mut etcd = Etcd::new();
    let missing = |key| compare(one(key), Equal, CompareTarget::Mod(0));
    let inner = Txn { compare: vec![missing("a")], success: vec![put_op("b", "created")], failure: vec![] };
    let reply = etcd.txn(then(vec![put_op("a", "1"), TxnOp::Txn(inner)])).unwrap();
    let TxnOpReply::Txn(inner) = &reply.responses[1] else { panic!("not a transaction") };
    assert!(inner.succeeded, "although the key was put before");
    assert_eq!(etcd.watch(KeyRange::all(), 2).unwrap(), ["2: PUT a=1, PUT b=created"]);
}

#[test]
fn a_range_in_a_txn_sees_what_was_written_before_it() {
    let mut etcd = Etcd::new();
    etcd.put("a", "old");
    let at = |revision| TxnOp::Range(RangeRequest { revision, ..RangeRequest::new(one("a")) });
    let reply =
        etcd.txn(then(vec![at(0), put_op("a", "new"), at(0), at(2), delete_op(one("z")), at(-1)])).unwrap();
    let found: Vec<_> = reply
        .responses
        .iter()
        .map(|response| match response {
            TxnOpReply::Range(range) => format!("{}@{}", text(&range.kvs[0].value), range.revision),
            TxnOpReply::Put(put) => format!("put@{}", put.revision),
            TxnOpReply::DeleteRange(delete) => format!("delete@{}", delete.revision),
            TxnOpReply::Txn(_) => panic!("none is nested"),
        })
        .collect();
    // A deletion of nothing has the transaction's revision once something was written.
    assert_eq!(found, ["old@2", "put@3", "new@3", "old@3", "delete@3", "new@3"]);
    assert_eq!(reply.revision, Revision(3));
}

#[test]
fn a_txn_takes_one_revision_and_a_nested_header_has_none() {
    let mut etcd = Etcd::new();
    let inner = then(vec![put_op("b", "1"), delete_op(one("c"))]);
    let reply = etcd.txn(then(vec![put_op("a", "1"), TxnOp::Txn(inner), put_op("d", "1")])).unwrap();
    assert_eq!(reply.revision, Revision(2));
    let TxnOpReply::Txn(inner) = &reply.responses[1] else { panic!("not a transaction") };
    assert_eq!(inner.revision, Revision(0));
    let TxnOpReply::DeleteRange(delete) = &inner.responses[1] else { panic!("not a deletion") };
    assert_eq!((delete.revision, delete.deleted), (Revision(2), 0));
    assert_eq!(etcd.watch(KeyRange::all(), 2).unwrap(), ["2: PUT a=1, PUT b=1, PUT d=1"]);
}

#[test]
fn a_txn_that_changes_nothing_takes_no_revision() {
    let mut etcd = Etcd::new();
    etcd.put("a", "1");
    for txn in [then(vec![]), then(vec![delete_op(one("z"))]), then(vec![TxnOp::Txn(then(vec![]))])] {
        assert_eq!(etcd.txn(txn).unwrap().revision, Revision(2));
        assert!(etcd.effects.revisions.is_empty());
    }
}

#[test]
fn only_the_path_taken_is_checked_and_nothing_is_written_if_it_fails() {
    let mut etcd = Etcd::new();
    etcd.put("a", "1");
    let future = TxnOp::Range(RangeRequest { revision: 99, ..RangeRequest::new(one("a")) });
    let no_lease = TxnOp::Put(Put { lease: LeaseId(404), ..put("c", "1") });
    let no_key = TxnOp::Put(Put { ignore_value: true, ..put("d", "") });
    let failing =
        [(future, Error::FutureRevision), (no_lease, Error::LeaseNotFound), (no_key, Error::KeyNotFound)];
    for (op, error) in failing {
        for op in [op.clone(), TxnOp::Txn(then(vec![op]))] {
            assert_eq!(etcd.txn(then(vec![put_op("b", "1"), op.clone()])), Err(error));
            assert_eq!((etcd.get("b"), etcd.revision()), (None, 2));
            assert!(etcd.txn(Txn { failure: vec![op], ..Txn::default() }).is_ok(), "the other path");
        }
    }
    // Even a key that the transaction itself creates does not exist in time.
    let reads_own = TxnOp::Range(RangeRequest { revision: 3, ..RangeRequest::new(one("b")) });
    assert_eq!(etcd.txn(then(vec![put_op("b", "1"), reads_own])), Err(Error::FutureRevision));
}

#[test]
fn negative_revisions_in_a_txn_are_compacted_ones() {
    let mut etcd = Etcd::new();
    etcd.put("a", "1");
    let at = |revision| then(vec![TxnOp::Range(RangeRequest { revision, ..RangeRequest::new(one("a")) })]);
    // -1 is the compact revision of a fresh store.
    assert!(etcd.txn(at(-1)).is_ok());
    assert_eq!(etcd.txn(at(-2)), Err(Error::Compacted));
    etcd.compact(2).unwrap();
    assert_eq!(etcd.txn(at(-1)), Err(Error::Compacted));
    assert_eq!(etcd.txn(at(1)), Err(Error::Compacted));
    assert!(etcd.txn(at(0)).is_ok());
    assert!(etcd.txn(at(2)).is_ok());
    // Without the log the same, and a plain range takes them for the latest.
    assert_eq!(etcd.state.query(&Query::Txn(at(-1))), Err(Error::Compacted));
    assert!(etcd.get_at("a", -1).unwrap().is_some());
}

#[test]
fn a_nested_txn_makes_a_txn_a_write() {
    let read = then(vec![range_op(one("a"))]);
    assert!(read.is_read_only() && Txn::default().is_read_only());
    let nested = then(vec![TxnOp::Txn(read.clone())]);
    assert!(!nested.is_read_only());
    assert!(!Txn { failure: vec![put_op("a", "1")], ..Txn::default() }.is_read_only());
    let etcd = Etcd::new();
    assert_eq!(etcd.state.query(&Query::Txn(nested)), Err(Error::NotReadOnly));
    // Serializable only if every range of both branches is.
    let serializable = TxnOp::Range(RangeRequest { serializable: true, ..RangeRequest::new(one("a")) });
    assert!(then(vec![serializable.clone()]).is_serializable());
    assert!(!Txn { success: vec![serializable], failure: read.success, ..Txn::default() }.is_serializable());
}

#[test]
fn ops_of_a_txn_read_without_the_log_as_with_it() {
    let mut etcd = Etcd::new();
    etcd.put("a", "1");
    let txn = Txn {
        compare: vec![compare(one("a"), Equal, CompareTarget::Version(1))],
        success: vec![range_op(one("a"))],
        failure: vec![range_op(one("b"))],
    };
    assert_eq!(etcd.state.query(&Query::Txn(txn.clone())), etcd.txn(txn).map(Reply::Txn));
}

// Compact.

#[test]
fn compaction_goes_forward_and_not_beyond_the_present() {
    let mut etcd = Etcd::new();
    assert_eq!((etcd.revision(), etcd.state.compact_revision()), (1, Revision(-1)));
    assert_eq!(etcd.compact(-1), Err(Error::Compacted));
    assert_eq!(etcd.compact(2), Err(Error::FutureRevision));
    assert_eq!(etcd.compact(0), Ok(Reply::Compacted { revision: Revision(1) }));
    assert_eq!(etcd.effects.compacted, Some(Revision(0)));
    etcd.put("a", "1");
    assert_eq!(
        etcd.compact(2),
        Ok(Reply::Compacted { revision: Revision(2) }),
        "the current one, and no bump"
    );
    assert_eq!(etcd.compact(2), Err(Error::Compacted));
    assert_eq!(etcd.effects.compacted, None);
    assert_eq!(etcd.compact(1), Err(Error::Compacted));
}

#[test]
fn compaction_keeps_the_newest_version_and_the_tombstone_at_its_revision() {
    // 3.5.1 drops the tombstone at the compact revision too; 3.5.16 and 3.6 keep it.
    let story = |compact_at: i64| {
        let mut etcd = Etcd::new();
        etcd.put("a", "1"); // 2
        etcd.put("a", "2"); // 3
        etcd.delete(one("a")); // 4
        etcd.put("b", "1"); // 5
        etcd.put("a", "3"); // 6
        etcd.compact(compact_at).unwrap();
        while etcd.state.sweep(1) {
            etcd.state.check_invariants();
        }
        let left = etcd.watch(KeyRange::all(), compact_at).unwrap();
        let size = etcd.state.size_bytes();
        assert_eq!(etcd.restored().size_bytes(), size);
        (left, (size / PUT_OVERHEAD_BYTES) as usize)
    };
    assert_eq!(
        story(2),
        (
            vec![
                "2: PUT a=1".into(),
                "3: PUT a=2 (was 1)".into(),
                "4: DELETE a (was 2)".into(),
                "5: PUT b=1".into(),
                "6: PUT a=3".into()
            ],
            5
        )
    );
    assert_eq!(story(3).1, 4);
    assert_eq!(story(4), (vec!["4: DELETE a".into(), "5: PUT b=1".into(), "6: PUT a=3".into()], 3));
    assert_eq!(story(5), (vec!["5: PUT b=1".into(), "6: PUT a=3".into()], 2));
    assert_eq!(story(6).1, 2);
}

#[test]
fn a_key_deleted_before_the_compact_revision_leaves_nothing() {
    let mut etcd = Etcd::new();
    etcd.put("a", "1");
    etcd.delete(one("a"));
    etcd.put("b", "1");
    etcd.compact(4).unwrap();
    assert_eq!(etcd.state.size_bytes(), PUT_OVERHEAD_BYTES + 2);
    while etcd.state.sweep(1) {}
    etcd.state.check_invariants();
    assert_eq!(etcd.state.status().keys, 1);
}

/// Nobody compacts again for the sake of what was deleted: a client deletes, and compacts at the revision of that.
#[test]
fn what_was_replaced_at_the_compact_revision_itself_is_freed() {
    const LARGE: usize = 1 << 20;
    let mut etcd = Etcd::new();
    let mut values = Vec::new();
    for key in ["a", "b", "c"] {
        etcd.put_with(Put { value: vec![b'v'; LARGE].into(), ..put(key, "") }).unwrap();
        values.push(etcd.get(key).unwrap().value);
    }
    etcd.txn(then(vec![put_op("a", "1"), delete_op(one("b")), put_op("d", "1"), delete_op(one("c"))]))
        .unwrap();
    etcd.effects.clear();
    etcd.compact(5).unwrap();
    etcd.effects.clear();
    while etcd.state.sweep(1) {
        etcd.state.check_invariants();
    }
    for value in values {
        assert!(value.is_unique(), "nobody else holds it");
    }
    assert_eq!(etcd.get_at("a", 5).unwrap().unwrap().value, "1");
    let left = etcd.watch(KeyRange::all(), 5).unwrap();
    assert_eq!(left, ["5: PUT a=1, DELETE b, PUT d=1, DELETE c"]);
    assert_eq!(etcd.restored().digest(), etcd.state.digest());
    etcd.put("a", "2");
    etcd.compact(6).unwrap();
    while etcd.state.sweep(1) {}
    etcd.state.check_invariants();
    assert_eq!(etcd.state.status().keys, 2);
}

#[test]
fn a_second_compaction_frees_what_the_first_one_left() {
    let mut etcd = Etcd::new();
    etcd.put("a", "1");
    etcd.delete(one("a"));
    etcd.put("b", "1");
    etcd.compact(4).unwrap();
    while etcd.state.sweep(1) {}
    etcd.put("b", "2");
    etcd.compact(5).unwrap();
    assert_eq!(etcd.state.size_bytes(), PUT_OVERHEAD_BYTES + 2);
}

// Watch feed.

#[test]
fn a_watch_begins_at_any_revision_that_is_not_compacted() {
    let mut etcd = Etcd::new();
    etcd.put("a", "1"); // 2
    etcd.put("b", "1"); // 3
    etcd.put("a", "2"); // 4
    assert_eq!(etcd.watch(one("a"), 1).unwrap(), ["2: PUT a=1", "4: PUT a=2 (was 1)"]);
    assert_eq!(etcd.watch(one("a"), 3).unwrap(), ["4: PUT a=2 (was 1)"]);
    etcd.compact(3).unwrap();
    assert_eq!(etcd.watch(one("a"), 2), Err(NoHistory::Compacted(Revision(3))));
    assert_eq!(etcd.watch(one("a"), -1), Err(NoHistory::Compacted(Revision(3))));
    // At the compact revision it may; what was before that is gone.
    assert_eq!(etcd.watch(KeyRange::all(), 3).unwrap(), ["3: PUT b=1", "4: PUT a=2 (was 1)"]);
    etcd.compact(4).unwrap();
    assert_eq!(etcd.watch(one("a"), 4).unwrap(), ["4: PUT a=2"], "the revision before is compacted");
    assert_eq!(etcd.state.prev_kv(b"a", Revision(4)), None);
}

#[test]
fn a_watch_of_the_future_waits() {
    let mut etcd = Etcd::new();
    etcd.put("a", "1");
    for future in [10, 3] {
        let future = FeedPlace::from(Revision(future));
        let page = etcd.state.history(&one("a"), true, future, PageLimits::NONE).unwrap();
        assert_eq!(page, HistoryPage { revisions: Vec::new(), next: future, looked_at: 0 });
    }
}

#[test]
fn a_watch_with_an_empty_key_begins_at_the_lowest() {
    assert_eq!(KeyRange::from_watch_wire("".into(), "".into()), one("\0"));
    assert_eq!(KeyRange::from_watch_wire("".into(), "\0".into()), KeyRange::all());
    assert!(KeyRange::from_watch_wire("b".into(), "a".into()).is_empty());
    assert!(KeyRange::from_watch_wire("b".into(), "b".into()).is_empty());
}

#[test]
fn events_tell_creations_from_changes() {
    let mut etcd = Etcd::new();
    etcd.put("a", "1");
    assert!(etcd.effects.revisions[0].events[0].is_create());
    etcd.put("a", "2");
    assert!(!etcd.effects.revisions[0].events[0].is_create());
    etcd.delete(one("a"));
    assert!(!etcd.effects.revisions[0].events[0].is_create());
}

// Leases.

#[test]
fn a_grant_is_checked_in_etcds_order_and_takes_no_revision() {
    let mut etcd = Etcd::new();
    assert_eq!(etcd.grant(0, MAX_LEASE_TTL_S + 1), Err(Error::LeaseNotFound));
    let granted = Reply::LeaseGranted { revision: Revision(1), id: LeaseId(1), ttl: MAX_LEASE_TTL_S };
    assert_eq!(etcd.grant(1, MAX_LEASE_TTL_S), Ok(granted));
    let grant = etcd.lease(1);
    assert_eq!(etcd.effects.leases, [LeaseEffect::Granted { grant, ttl_s: MAX_LEASE_TTL_S }]);
    assert_eq!(etcd.grant(1, MAX_LEASE_TTL_S + 1), Err(Error::LeaseTtlTooLarge));
    assert_eq!(check::lease_ttl(MAX_LEASE_TTL_S + 1), Err(Error::LeaseTtlTooLarge));
    assert_eq!(etcd.grant(1, 60), Err(Error::LeaseExists));
    assert!(etcd.grant(-5, 60).is_ok(), "ids may be negative");
    assert_eq!(etcd.revision(), 1);
    assert_eq!(
        etcd.state.query(&Query::Leases),
        Ok(Reply::Leases { revision: Revision(1), leases: vec![LeaseId(-5), LeaseId(1)] })
    );
}

#[test]
fn a_revocation_deletes_its_keys_in_one_revision_and_in_order() {
    let mut etcd = Etcd::new();
    etcd.grant(1, 60).unwrap();
    for key in ["c", "a", "b"] {
        etcd.put_with(Put { lease: LeaseId(1), ..put(key, "1") }).unwrap();
    }
    assert_eq!(etcd.revoke(1), Ok(Reply::LeaseRevoked { revision: Revision(5) }));
    assert_eq!(show(&etcd.effects.revisions[0]), "5: DELETE a (was 1), DELETE b (was 1), DELETE c (was 1)");
    assert_eq!(etcd.effects.leases, [LeaseEffect::Revoked { id: LeaseId(1) }]);
    assert_eq!(etcd.revoke(1), Err(Error::LeaseNotFound));
    // Without keys, no revision.
    etcd.grant(1, 60).unwrap();
    assert_eq!(etcd.revoke(1), Ok(Reply::LeaseRevoked { revision: Revision(5) }));
    assert!(etcd.effects.revisions.is_empty());
}

#[test]
fn a_put_moves_its_key_from_lease_to_lease() {
    let mut etcd = Etcd::new();
    etcd.grant(1, 60).unwrap();
    etcd.grant(2, 60).unwrap();
    let attached =
        |etcd: &Etcd, id| match etcd.state.query(&Query::LeaseTimeToLive { id: LeaseId(id), keys: true }) {
            Ok(Reply::LeaseTimeToLive(reply)) => reply.keys,
            other => panic!("not an answer about a lease: {other:?}"),
        };
    etcd.put_with(Put { lease: LeaseId(1), ..put("a", "1") }).unwrap();
    assert_eq!(attached(&etcd, 1), ["a"]);
    etcd.put_with(Put { lease: LeaseId(2), ..put("a", "1") }).unwrap();
    assert_eq!((attached(&etcd, 1).len(), attached(&etcd, 2).len()), (0, 1));
    etcd.put("a", "1");
    assert_eq!(attached(&etcd, 2).len(), 0, "a put without a lease detaches");
    etcd.put_with(Put { lease: LeaseId(1), ..put("a", "1") }).unwrap();
    etcd.delete(one("a"));
    assert_eq!(attached(&etcd, 1).len(), 0);
    etcd.put("a", "1");
    etcd.revoke(1).unwrap();
    assert!(etcd.get("a").is_some(), "created anew without a lease");
}

#[test]
fn time_to_live_of_an_unknown_lease_is_minus_one_and_no_error() {
    let mut etcd = Etcd::new();
    etcd.grant(1, 60).unwrap();
    let ask = |id| etcd.state.query(&Query::LeaseTimeToLive { id: LeaseId(id), keys: false });
    let reply = |id, ttl, granted_ttl| {
        let (revision, id, keys) = (Revision(1), LeaseId(id), Vec::new());
        Ok(Reply::LeaseTimeToLive(LeaseTimeToLiveReply { revision, id, ttl, granted_ttl, keys }))
    };
    assert_eq!(ask(1), reply(1, 60, 60));
    assert_eq!(ask(2), reply(2, -1, 0));
}

#[test]
fn checkpoints_carry_the_remaining_time_through_snapshots() {
    let mut etcd = Etcd::new();
    etcd.grant(1, 60).unwrap();
    etcd.grant(2, 60).unwrap();
    let unknown = LeaseGrant { id: LeaseId(9), serial: LeaseSerial(1) };
    etcd.apply(Command::CheckpointLeases(ClockStart::NONE, vec![(etcd.lease(1), 25), (unknown, 1)])).unwrap();
    let checkpointed = LeaseEffect::Checkpointed { id: LeaseId(1), remaining_s: 25 };
    assert_eq!(etcd.effects.leases, [checkpointed], "unknown leases are passed over");
    let left = |state: &Keyspace| {
        state.leases().map(|lease| (lease.grant.id.0, lease.remaining_s)).collect::<Vec<_>>()
    };
    assert_eq!(left(&etcd.state), [(1, 25), (2, 60)]);
    assert_eq!(left(&etcd.restored()), [(1, 25), (2, 60)]);
    assert_eq!(etcd.restored().digest(), etcd.state.digest());
    // A keepalive takes the checkpoint back.
    etcd.apply(Command::CheckpointLeases(ClockStart::NONE, vec![(etcd.lease(1), 0)])).unwrap();
    assert_eq!(left(&etcd.state), [(1, 60), (2, 60)]);
}

#[test]
fn each_expired_lease_takes_a_revision_of_its_own() {
    let mut etcd = Etcd::new();
    for id in 1..=3 {
        etcd.grant(id, 60).unwrap();
    }
    etcd.put_with(Put { lease: LeaseId(1), ..put("a", "1") }).unwrap();
    etcd.put_with(Put { lease: LeaseId(3), ..put("b", "1") }).unwrap();
    let unknown = LeaseGrant { id: LeaseId(77), serial: LeaseSerial(1) };
    let [first, second, third] = [1, 2, 3].map(|id| etcd.lease(id));
    let expired = vec![third, second, unknown, first, third];
    assert_eq!(
        etcd.apply(Command::ExpireLeases(ClockStart::NONE, expired)),
        Ok(Reply::Done { revision: Revision(5) })
    );
    let shown: Vec<_> = etcd.effects.revisions.iter().map(show).collect();
    assert_eq!(shown, ["4: DELETE b (was 1)", "5: DELETE a (was 1)"]);
    let revoked = [3, 2, 1].map(|id| LeaseEffect::Revoked { id: LeaseId(id) });
    assert_eq!(etcd.effects.leases, revoked);
}

#[test]
fn what_was_proposed_of_a_grant_is_not_done_to_the_next_one_of_its_id() {
    let mut etcd = Etcd::new();
    etcd.grant(1, 60).unwrap();
    let old = etcd.lease(1);
    etcd.revoke(1).unwrap();
    etcd.grant(1, 60).unwrap();
    etcd.put_with(Put { lease: LeaseId(1), ..put("a", "1") }).unwrap();
    let new = etcd.lease(1);
    assert_eq!((old.id, old.serial, new.serial), (new.id, LeaseSerial(1), LeaseSerial(2)));
    for command in [
        Command::CheckpointLeases(ClockStart::NONE, vec![(old, 5)]),
        Command::ExpireLeases(ClockStart::NONE, vec![old]),
    ] {
        etcd.apply(command).unwrap();
        assert_eq!(etcd.effects.leases, []);
    }
    assert_eq!(etcd.state.lease(LeaseId(1)).map(|lease| lease.remaining_s), Some(60));
    assert!(etcd.get("a").is_some());
    // Numbers go on behind a snapshot.
    let mut restored = etcd.restored();
    let mut effects = Effects::new();
    restored.apply(etcd.slot + 1, 0, Command::ExpireLeases(ClockStart::NONE, vec![old, new]), &mut effects);
    assert_eq!(effects.leases, [LeaseEffect::Revoked { id: LeaseId(1) }]);
    restored.check_invariants();
    assert_eq!(
        etcd.apply(Command::ExpireLeases(ClockStart::NONE, vec![new])),
        Ok(Reply::Done { revision: Revision(3) })
    );
    assert_eq!(restored.digest(), etcd.state.digest());
    etcd.grant(1, 60).unwrap();
    assert_eq!(etcd.lease(1).serial, LeaseSerial(3));
}

#[test]
fn what_an_earlier_lease_clock_found_does_nothing_once_another_has_begun() {
    let mut etcd = Etcd::new();
    etcd.grant(1, 60).unwrap();
    let grant = etcd.lease(1);
    let owner = ClockOwner { round: 13, node: 3 };
    let [earlier, later] = [(); 2].map(|()| {
        etcd.apply(Command::StartClock(owner)).unwrap();
        let clock = ClockStart(etcd.slot);
        assert_eq!(etcd.effects.leases, [LeaseEffect::ClockStarted { owner, clock }]);
        clock
    });
    let found =
        |by| [Command::CheckpointLeases(by, vec![(grant, 5)]), Command::ExpireLeases(by, vec![grant])];
    for command in found(earlier).into_iter().chain(found(ClockStart::NONE)) {
        etcd.apply(command).unwrap();
        assert_eq!(etcd.effects.leases, []);
    }
    assert_eq!(etcd.state.lease(LeaseId(1)).map(|lease| lease.remaining_s), Some(60));
    // Behind a snapshot it is the same.
    let mut restored = etcd.restored();
    assert_eq!((restored.clock(), restored.digest()), (later, etcd.state.digest()));
    let mut effects = Effects::new();
    for (index, command) in (0..).zip(found(earlier).into_iter().chain(found(later))) {
        restored.apply(etcd.slot + 1, index, command, &mut effects);
    }
    let left = LeaseEffect::Checkpointed { id: LeaseId(1), remaining_s: 5 };
    assert_eq!(effects.leases, [left, LeaseEffect::Revoked { id: LeaseId(1) }]);
}

// Quota and alarms.

#[test]
fn the_quota_charges_256_bytes_beside_key_and_value_and_64_for_a_lease() {
    let quota_bytes = 2 * (256 + 2) + 64 + 1;
    let mut etcd = Etcd::with(Limits { quota_bytes, ..Limits::default() });
    etcd.grant(1, 60).unwrap();
    etcd.put("a", "1");
    assert_eq!(etcd.state.size_bytes(), 256 + 2 + 64);
    // As etcd, the quota must stay above, not at, the size.
    etcd.put("b", "1");
    assert_eq!(etcd.put_with(put("c", "1")), Err(Error::NoSpace));
    assert!(etcd.effects.alarms_changed);
    assert!(etcd.state.has_alarm(AlarmKind::NoSpace));
    assert_eq!(etcd.get("c"), None);
}

#[test]
fn no_space_refuses_what_takes_space_and_nothing_else() {
    let mut etcd = Etcd::with(Limits { quota_bytes: 1000, ..Limits::default() });
    etcd.put("a", "1");
    etcd.put("a", "1");
    etcd.put("a", "1");
    // Above the quota, before anything else is looked at.
    assert_eq!(etcd.put_with(Put { lease: LeaseId(404), ..put("a", "1") }), Err(Error::NoSpace));
    assert_eq!(etcd.grant(1, 60), Err(Error::NoSpace), "the alarm refuses what would still fit");
    let with_put = then(vec![TxnOp::Txn(Txn { failure: vec![put_op("a", "1")], ..Txn::default() })]);
    assert_eq!(etcd.txn(with_put), Err(Error::NoSpace), "also when the put would not be carried out");
    assert!(etcd.txn(then(vec![range_op(one("a")), delete_op(one("z"))])).is_ok());
    assert!(etcd.get("a").is_some());
    assert!(etcd.compact(4).is_ok());
    assert_eq!(etcd.state.size_bytes(), 258);
    assert_eq!(etcd.put_with(put("a", "1")), Err(Error::NoSpace), "until the alarm is taken back");
    let alarm = Alarm { member: 0, kind: AlarmKind::NoSpace };
    let listed = Reply::Alarms { revision: Revision(4), alarms: vec![alarm] };
    assert_eq!(etcd.state.query(&Query::Alarms), Ok(listed.clone()));
    let disarm = Op::AlarmDeactivate { member: 0, alarm: AlarmKind::NoSpace };
    assert_eq!(etcd.write(disarm.clone()), Ok(listed));
    let none = Reply::Alarms { revision: Revision(4), alarms: Vec::new() };
    assert_eq!(etcd.write(disarm), Ok(none), "twice is no error and finds nothing");
    etcd.put("a", "1");
}

#[test]
fn a_txn_is_charged_for_its_dearer_branch() {
    let mut etcd = Etcd::with(Limits { quota_bytes: 1000, ..Limits::default() });
    let two = vec![put_op("a", "1"), put_op("b", "1")];
    let three = vec![put_op("a", "1"), put_op("b", "1"), put_op("c", "1")];
    assert!(etcd.txn(Txn { success: two, ..Txn::default() }).is_ok());
    etcd.delete(KeyRange::all());
    etcd.compact(3).unwrap();
    etcd.put("x", "1");
    etcd.compact(4).unwrap();
    assert_eq!(etcd.state.size_bytes(), 258);
    assert_eq!(etcd.txn(Txn { failure: three, ..Txn::default() }), Err(Error::NoSpace));
}

#[test]
fn a_corrupt_cluster_refuses_every_write_but_alarms() {
    let mut etcd = Etcd::new();
    etcd.put("a", "1");
    let raise = Op::AlarmActivate { member: 7, alarm: AlarmKind::Corrupt };
    let alarm = Alarm { member: 7, kind: AlarmKind::Corrupt };
    let raised = Reply::Alarms { revision: Revision(2), alarms: vec![alarm] };
    assert_eq!(etcd.write(raise.clone()), Ok(raised.clone()));
    assert_eq!(etcd.write(raise), Ok(raised), "twice is no error");
    for op in [
        Op::Put(put("a", "1")),
        Op::DeleteRange(DeleteRange { range: one("a"), prev_kv: false }),
        Op::Txn(then(vec![])),
        Op::Compact { revision: 2 },
        Op::LeaseGrant { id: LeaseId(1), ttl: 60 },
        Op::LeaseRevoke { id: LeaseId(1) },
    ] {
        assert_eq!(etcd.write(op), Err(Error::Corrupt));
    }
    // Reads do not go through the applier, in etcd neither.
    assert!(etcd.get("a").is_some());
    etcd.write(Op::AlarmDeactivate { member: 7, alarm: AlarmKind::Corrupt }).unwrap();
    etcd.put("a", "2");
}

#[test]
fn limits_go_through_the_log() {
    let mut etcd = Etcd::new();
    let limits = Limits { quota_bytes: 300, max_sessions: 5 };
    let digest = etcd.state.digest();
    etcd.apply(Command::SetLimits(limits)).unwrap();
    assert_eq!(etcd.state.limits(), limits);
    assert_ne!(etcd.state.digest(), digest);
    assert_eq!(etcd.restored().limits(), limits);
    etcd.put("a", "1");
    assert_eq!(etcd.put_with(put("b", "1")), Err(Error::NoSpace));
}

// HashKV.

#[test]
fn hash_kv_is_of_the_history_up_to_its_revision() {
    let mut etcd = Etcd::new();
    etcd.put("a", "1");
    etcd.put("b", "1");
    let at_3 = etcd.state.hash_kv(Revision(3)).unwrap();
    assert_eq!(etcd.state.hash_kv(Revision(0)).unwrap(), at_3);
    etcd.put("a", "2");
    let again = etcd.state.hash_kv(Revision(3)).unwrap();
    assert_eq!((again.hash, again.hash_revision), (at_3.hash, Revision(3)));
    assert_eq!(again.revision, Revision(4));
    assert_ne!(etcd.state.hash_kv(Revision(4)).unwrap().hash, at_3.hash);
    assert_eq!(etcd.state.hash_kv(Revision(5)), Err(Error::FutureRevision));
    etcd.compact(4).unwrap();
    assert_eq!(etcd.state.hash_kv(Revision(3)), Err(Error::Compacted));
    let hash = etcd.state.hash_kv(Revision(4)).unwrap();
    assert_eq!(hash.compact_revision, Revision(4));
    assert_eq!(etcd.restored().hash_kv(Revision(4)), Ok(hash));
}
