//! The model against etcd: answers recorded from a real server, and each quirk by itself.

#![allow(clippy::unwrap_used, reason = "tests, which fail loudly")]

mod story;

use sim::linear::history::EtcdHistory;
use sim::linear::revisions::{Options, Verdict, check};
use sim::model::*;
use story::*;

/// Runs `requests` on a fresh model and returns the last answer.
fn last(model: &mut Model, requests: Vec<Request>) -> Answer {
    let mut answer = Err(Error::EmptyKey);
    for request in requests {
        answer = model.apply(&request);
    }
    answer
}

fn range(model: &mut Model, request: RangeRequest) -> RangeResponse {
    match model.apply(&Request::Range(request)) {
        Ok(Response::Range(response)) => response,
        other => panic!("{other:?}"),
    }
}

fn keys(response: &RangeResponse) -> String {
    response.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect::<Vec<_>>().join(" ")
}

fn txn_answer(answer: Answer) -> TxnResponse {
    match answer {
        Ok(Response::Txn(response)) => response,
        other => panic!("{other:?}"),
    }
}

/// Keys `a` to `d` with values `4` to `1`, at revisions 2 to 5.
fn four_keys() -> Model {
    let mut model = Model::default();
    for (key, value) in [("a", "4"), ("b", "3"), ("c", "2"), ("d", "1")] {
        model.apply(&put(key, value)).unwrap();
    }
    model
}

/// Answers of etcd 3.5.1 to random requests, one after the other: ranges with every option, transactions three deep,
/// compactions, leases, and all the refusals among them.
#[test]
fn the_model_answers_as_etcd_did() {
    let history = EtcdHistory::from_json_lines(include_str!("transcripts/etcd-3.5.1.jsonl")).unwrap();
    assert_eq!(history.operations.len(), 600);
    let mut model = Model::new(Rules { txn_checks: TxnChecks::PutsFirst, ..Default::default() });
    let start = model.clone();
    for (index, operation) in history.operations.iter().enumerate() {
        let seen = operation.output().unwrap();
        let expected = model.apply_like(&operation.input, seen);
        assert_eq!(expected, *seen, "operation {index}: {:?}", operation.input);
    }
    let verdict = check(&history, &Options { start, leases_expire: false, ..Default::default() });
    assert!(matches!(verdict, Verdict::Consistent(_)), "{verdict:#?}");
}

#[test]
fn errors_have_their_codes_and_texts() {
    assert_eq!(
        Error::from_status(11, "etcdserver: mvcc: required revision has been compacted"),
        Some(Error::Compacted)
    );
    assert_eq!(Error::from_status(5, "etcdserver: requested lease not found"), Some(Error::LeaseNotFound));
    assert_eq!(Error::from_status(9, "etcdserver: lease already exists"), Some(Error::LeaseExists));
    assert_eq!(Error::from_status(3, "etcdserver: key is not provided"), Some(Error::EmptyKey));
    assert_eq!(Error::from_status(2, "etcdserver: key is not provided"), None);
    assert_eq!(Error::from_status(14, "etcdserver: no leader"), None);
    for error in Error::ALL {
        assert_eq!(Error::from_status(error.code() as i32, error.text()), Some(error));
    }
}

#[test]
fn a_fresh_store_is_at_revision_one() {
    let mut model = Model::default();
    assert_eq!((model.revision(), model.compacted()), (1, -1));
    assert_eq!(range(&mut model, list_request()), RangeResponse { revision: 1, ..Default::default() });
    assert_eq!(
        model.apply(&delete("a")),
        Ok(Response::DeleteRange(DeleteRangeResponse { revision: 1, ..Default::default() }))
    );
    assert_eq!(model.apply(&compact(-1)), Err(Error::Compacted));
    assert!(model.apply(&compact(0)).is_ok());
    assert!(model.apply(&compact(1)).is_ok());
    assert_eq!(model.apply(&compact(2)), Err(Error::FutureRevision));
}

#[test]
fn ranges_of_keys() {
    let mut model = four_keys();
    let mut check = |range_asked: KeyRange, expected: &str| {
        let response = range(&mut model, RangeRequest { range: range_asked, ..Default::default() });
        assert_eq!(keys(&response), expected);
    };
    check(KeyRange::single("b"), "b");
    check(KeyRange::between("b", "d"), "b c");
    check(KeyRange::from_key("c"), "c d");
    check(KeyRange::all(), "a b c d");
    check(KeyRange::between("c", "c"), "");
    check(KeyRange::between("d", "a"), "");
}

#[test]
fn limits_counts_and_orders() {
    let mut model = four_keys();
    let mut check = |request: RangeRequest, expected: &str, more: bool| {
        let response = range(&mut model, RangeRequest { range: KeyRange::all(), ..request });
        assert_eq!((keys(&response).as_str(), response.more, response.count), (expected, more, 4));
    };
    let plain = RangeRequest::default;
    check(RangeRequest { limit: 3, ..plain() }, "a b c", true);
    check(RangeRequest { limit: 4, ..plain() }, "a b c d", false);
    check(RangeRequest { limit: -1, ..plain() }, "a b c d", false);
    let by_value = || RangeRequest { sort_target: SortTarget::Value, ..plain() };
    check(by_value(), "d c b a", false);
    check(RangeRequest { sort_order: SortOrder::Descend, ..by_value() }, "a b c d", false);
    check(RangeRequest { limit: 2, sort_order: SortOrder::Ascend, ..by_value() }, "d c", true);
    // Without an order the limit comes first: of a, b, c (one more than asked for) the lowest two values.
    check(RangeRequest { limit: 2, ..by_value() }, "c b", true);
    // A bound on revisions lifts that; and bounds do not change the count.
    check(RangeRequest { limit: 2, min_mod_revision: 3, ..by_value() }, "d c", true);
    check(RangeRequest { max_create_revision: 3, ..plain() }, "a b", false);
    check(RangeRequest { count_only: true, limit: 1, ..plain() }, "", false);
    let without = |keep: bool| {
        let mut model = Model::new(Rules { keys_only_with_lease: keep, ..Default::default() });
        model.apply(&grant(1)).unwrap();
        model.apply(&put_on_lease("a", "x", 1)).unwrap();
        let kv = range(&mut model, RangeRequest { keys_only: true, ..list_request() }).kvs[0].clone();
        (kv.value.len(), kv.lease)
    };
    assert_eq!((without(true), without(false)), ((0, 1), (0, 0)));
    assert_eq!(
        model.apply(&Request::Range(RangeRequest { sort_order: SortOrder::Unrecognised, ..list_request() })),
        Err(Error::InvalidSortOption)
    );
}

#[test]
fn equal_elements_may_come_in_any_order() {
    let mut model = four_keys();
    let request = RangeRequest {
        sort_target: SortTarget::Version,
        sort_order: SortOrder::Ascend,
        limit: 2,
        ..list_request()
    };
    let expected = range(&mut model, request.clone());
    assert_eq!(keys(&expected), "a b");
    let request = Request::Range(request);
    let kv = |key: &str| model.get(key.as_bytes(), 5).cloned().unwrap();
    let right = |model: &mut Model, kvs: Vec<KeyValue>| {
        let seen = Ok(Response::Range(RangeResponse { kvs, ..expected.clone() }));
        model.apply_like(&request, &seen) == seen
    };
    let (a, c, d) = (kv("a"), kv("c"), kv("d"));
    assert!(right(&mut model, vec![d.clone(), c.clone()]));
    assert!(!right(&mut model, vec![d.clone(), d.clone()]));
    assert!(!right(&mut model, vec![d.clone()]));
    assert!(!right(&mut model, vec![d, KeyValue { value: b"no".to_vec(), ..c.clone() }]));
    model.apply(&put("a", "again")).unwrap();
    assert!(!right(&mut model, vec![a, c]));
}

#[test]
fn old_revisions_and_compaction() {
    let mut model = four_keys();
    let at = |revision| Request::Range(RangeRequest { revision, ..list_request() });
    let Ok(Response::Range(old)) = model.apply(&at(3)) else { unreachable!() };
    assert_eq!((keys(&old).as_str(), old.revision, old.count), ("a b", 5, 2));
    assert_eq!(model.apply(&at(6)), Err(Error::FutureRevision));
    assert!(model.apply(&at(-7)).is_ok());
    model.apply(&compact(4)).unwrap();
    assert_eq!(model.apply(&at(3)), Err(Error::Compacted));
    assert!(model.apply(&at(4)).is_ok());
    // In a transaction only 0 means the latest.
    let in_txn = |revision| txn(vec![RequestOp::Range(RangeRequest { revision, ..list_request() })]);
    assert!(model.apply(&in_txn(0)).is_ok());
    assert_eq!(model.apply(&in_txn(-1)), Err(Error::Compacted));
    let mut fresh = Model::default();
    assert!(fresh.apply(&in_txn(-1)).is_ok());
    assert_eq!(fresh.apply(&in_txn(-2)), Err(Error::Compacted));
}

#[test]
fn puts_keep_versions_and_leases() {
    let mut model = Model::default();
    let keep = |ignore_value, ignore_lease, value: &str, lease| {
        Request::Put(PutRequest {
            ignore_value,
            ignore_lease,
            lease,
            prev_kv: true,
            ..put_request("a", value)
        })
    };
    assert_eq!(model.apply(&keep(true, false, "", 0)), Err(Error::KeyNotFound));
    assert_eq!(model.apply(&keep(false, true, "x", 0)), Err(Error::KeyNotFound));
    assert_eq!(model.apply(&keep(true, false, "x", 0)), Err(Error::ValueProvided));
    assert_eq!(model.apply(&keep(false, true, "x", 5)), Err(Error::LeaseProvided));
    assert_eq!(model.apply(&keep(false, false, "x", 5)), Err(Error::LeaseNotFound));
    model.apply(&grant(5)).unwrap();
    model.apply(&keep(false, false, "x", 5)).unwrap();
    model.apply(&keep(false, true, "y", 0)).unwrap();
    let kv = model.get(b"a", 3).unwrap();
    assert_eq!((kv.create_revision, kv.version, kv.lease, kv.value.as_slice()), (2, 2, 5, b"y".as_slice()));
    model.apply(&keep(true, false, "", 0)).unwrap();
    let kv = model.get(b"a", 4).unwrap();
    assert_eq!((kv.version, kv.lease, kv.value.as_slice()), (3, 0, b"y".as_slice()));
    assert!(model.lease_keys(5).is_empty());
    // A key that comes back starts over.
    last(&mut model, vec![delete("a"), put("a", "z")]).unwrap();
    let kv = model.get(b"a", 6).unwrap();
    assert_eq!((kv.create_revision, kv.version), (6, 1));
}

#[test]
fn compares() {
    let mut model = four_keys();
    let mut holds = |range: KeyRange, target: CompareTarget, result: CompareResult| {
        let compare = vec![Compare { range, target, result }];
        txn_answer(model.apply(&Request::Txn(TxnRequest { compare, ..Default::default() }))).succeeded
    };
    use CompareResult::{Equal, Greater, Less, NotEqual, Unrecognised};
    use CompareTarget::{Create, Lease, Mod, Value, Version};
    let value = |text: &str| Value(text.into());
    let a = || KeyRange::single("a");
    let missing = || KeyRange::single("x");
    assert!(holds(a(), value("4"), Equal) && !holds(a(), value("4"), NotEqual));
    assert!(holds(a(), Mod(1), Greater) && holds(a(), Create(3), Less) && holds(a(), Lease(0), Equal));
    // A missing key is all zero, but has no value to compare.
    for target in [Version(0), Create(0), Mod(0), Lease(0)] {
        assert!(holds(missing(), target, Equal));
    }
    for result in [Equal, Greater, Less, NotEqual, Unrecognised] {
        assert!(!holds(missing(), value(""), result));
    }
    // Every key of a range must agree.
    assert!(holds(KeyRange::all(), Version(1), Equal));
    assert!(!holds(KeyRange::all(), value("4"), Equal));
    assert!(holds(KeyRange::from_key("x"), Version(0), Equal));
    assert!(holds(a(), Version(99), Unrecognised));
    assert!(holds(a(), CompareTarget::Unrecognised, Equal) && !holds(a(), CompareTarget::Unrecognised, Less));
}

#[test]
fn transactions_are_one_revision() {
    let mut model = four_keys();
    let read = |range| RequestOp::Range(RangeRequest { range, ..Default::default() });
    let answer = txn_answer(model.apply(&txn(vec![
        read(KeyRange::single("a")),
        put_op("a", "new"),
        read(KeyRange::single("a")),
        delete_op(KeyRange::between("b", "d")),
        RequestOp::Txn(TxnRequest {
            // Judged by the state before the transaction.
            compare: vec![compare_mod("a", 2), compare_mod("b", 3)],
            success: vec![put_op("e", "5"), read(KeyRange::all())],
            ..Default::default()
        }),
    ])));
    assert_eq!((answer.revision, answer.succeeded), (6, true));
    let revisions: Vec<i64> = answer
        .responses
        .iter()
        .map(|response| match response {
            ResponseOp::Range(response) => response.revision,
            ResponseOp::Put(response) => response.revision,
            ResponseOp::DeleteRange(response) => response.revision,
            ResponseOp::Txn(response) => response.revision,
        })
        .collect();
    // Reads carry the revision of what they see; inner transactions have an empty header.
    assert_eq!(revisions, [5, 6, 6, 6, 0]);
    let ResponseOp::Txn(inner) = &answer.responses[4] else { unreachable!() };
    let ResponseOp::Range(listed) = &inner.responses[1] else { unreachable!() };
    assert_eq!(keys(listed), "a d e");
    let kinds: Vec<EventKind> = model.commit(6).unwrap().events.iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [EventKind::Put, EventKind::Delete, EventKind::Delete, EventKind::Put]);
    // Nothing changed, no revision.
    let answer = txn_answer(model.apply(&txn(vec![delete_op(KeyRange::single("b"))])));
    assert_eq!((answer.revision, model.revision()), (6, 6));
    // One refusal refuses all.
    let refused =
        txn(vec![put_op("a", "x"), RequestOp::Put(PutRequest { lease: 9, ..put_request("b", "x") })]);
    assert_eq!((model.apply(&refused), model.revision()), (Err(Error::LeaseNotFound), 6));
    // An unset operation is a missing key.
    assert_eq!(model.apply(&txn(vec![RequestOp::Empty])), Err(Error::KeyNotFound));
}

#[test]
fn transactions_write_a_key_once() {
    let mut model = Model::default();
    let inner = |success: Vec<RequestOp>, failure: Vec<RequestOp>| {
        RequestOp::Txn(TxnRequest { success, failure, ..Default::default() })
    };
    let a = || put_op("a", "1");
    let delete_a = || delete_op(KeyRange::between("a", "c"));
    let refused = |ops: Vec<RequestOp>| match model.clone().apply(&txn(ops)) {
        Err(Error::DuplicateKey) => true,
        Ok(_) => false,
        Err(other) => panic!("{other:?}"),
    };
    assert!(refused(vec![a(), a()]));
    assert!(refused(vec![a(), delete_a()]));
    assert!(refused(vec![a(), inner(vec![a()], vec![])]));
    assert!(refused(vec![inner(vec![a()], vec![]), inner(vec![], vec![a()])]));
    assert!(refused(vec![inner(vec![delete_a()], vec![]), inner(vec![a()], vec![])]));
    assert!(refused(vec![delete_a(), inner(vec![a()], vec![])]));
    assert!(!refused(vec![inner(vec![a()], vec![a()])]));
    assert!(!refused(vec![inner(vec![a()], vec![]), inner(vec![delete_a()], vec![])]));
    assert!(!refused(vec![delete_a(), delete_a()]));
    assert!(!refused(vec![a(), RequestOp::Range(list_request())]));
    // An open end is not seen, so a key may be put and deleted in one revision, in the order of the operations.
    let answer = txn_answer(model.apply(&txn(vec![
        delete_op(KeyRange::from_key("a")),
        a(),
        delete_op(KeyRange::from_key("a")),
    ])));
    assert_eq!(answer.revision, 2);
    assert_eq!(model.commit(2).unwrap().events.len(), 2);
    assert_eq!(model.get(b"a", 2), None);
}

#[test]
fn transactions_are_bounded() {
    let mut model = Model::new(Rules { txn_ops_max: 3, ..Default::default() });
    let puts = |count: usize| (0..count).map(|number| put_op(&format!("k{number}"), "")).collect::<Vec<_>>();
    let nested = |count| vec![RequestOp::Txn(TxnRequest { success: puts(count), ..Default::default() })];
    assert!(model.apply(&txn(puts(3))).is_ok());
    assert_eq!(model.apply(&txn(puts(4))), Err(Error::TooManyOps));
    // The outer level has used one.
    assert!(model.apply(&txn(nested(2))).is_ok());
    assert_eq!(model.apply(&txn(nested(3))), Err(Error::TooManyOps));
}

#[test]
fn leases() {
    let mut model = Model::default();
    let grant_for = |id, ttl| Request::LeaseGrant(LeaseGrantRequest { id, ttl });
    let granted = |id, ttl| Ok(Response::LeaseGrant(LeaseGrantResponse { revision: 1, id, ttl }));
    assert_eq!(model.apply(&grant_for(7, -5)), granted(7, 2));
    assert_eq!(model.apply(&grant_for(7, 100)), Err(Error::LeaseExists));
    assert_eq!(model.apply(&grant_for(7, LEASE_TTL_MAX + 1)), Err(Error::LeaseTtlTooLarge));
    assert_eq!(model.apply(&grant_for(-3, LEASE_TTL_MAX)), granted(-3, LEASE_TTL_MAX));
    assert_eq!(model.apply(&grant_for(0, 10)), granted(1, 10));
    assert_eq!(model.apply_like(&grant_for(0, 10), &granted(99, 10)), granted(99, 10));
    assert_eq!(model.apply_like(&grant_for(0, 10), &granted(99, 10)), granted(2, 10));
    for (key, lease) in [("b", 7), ("a", 7), ("c", 1)] {
        model.apply(&put_on_lease(key, "", lease)).unwrap();
    }
    let ask = |id| Request::LeaseTimeToLive(LeaseTimeToLiveRequest { id, keys: true });
    let Ok(Response::LeaseTimeToLive(answer)) = model.apply(&ask(7)) else { unreachable!() };
    assert_eq!((answer.granted_ttl, answer.keys), (2, vec![b"a".to_vec(), b"b".to_vec()]));
    let Ok(Response::LeaseTimeToLive(answer)) = model.apply(&ask(8)) else { unreachable!() };
    assert_eq!((answer.ttl, answer.granted_ttl), (-1, 0));
    let keep = |id| Request::LeaseKeepAlive(LeaseKeepAliveRequest { id });
    let Ok(Response::LeaseKeepAlive(answer)) = model.apply(&keep(8)) else { unreachable!() };
    assert_eq!(answer.ttl, 0);
    assert_eq!(model.apply(&revoke(8)), Err(Error::LeaseNotFound));
    assert_eq!(model.apply(&revoke(7)), Ok(Response::LeaseRevoke(LeaseRevokeResponse { revision: 5 })));
    let deleted: Vec<&[u8]> =
        model.commit(5).unwrap().events.iter().map(|event| event.kv.key.as_slice()).collect();
    assert_eq!(deleted, [b"a", b"b"]);
    // No keys, no revision.
    assert_eq!(model.apply(&revoke(-3)), Ok(Response::LeaseRevoke(LeaseRevokeResponse { revision: 5 })));
    let Ok(Response::Leases(answer)) = model.apply(&Request::Leases) else { unreachable!() };
    assert_eq!(answer.ids, [1, 2, 99]);
}

#[test]
fn watches_begin_where_they_may() {
    let mut model = four_keys();
    let watch =
        |range: KeyRange, start_revision| WatchRequest { range, start_revision, ..Default::default() };
    model.apply(&compact(3)).unwrap();
    assert_eq!(model.watch(&watch(KeyRange::all(), 0)), WatchStart::From(6));
    assert_eq!(model.watch(&watch(KeyRange::all(), 99)), WatchStart::From(99));
    assert_eq!(model.watch(&watch(KeyRange::all(), 3)), WatchStart::From(3));
    assert_eq!(model.watch(&watch(KeyRange::all(), 2)), WatchStart::Compacted { compact_revision: 3 });
    let refused = |request| matches!(model.watch(&request), WatchStart::Refused { .. });
    assert!(refused(watch(KeyRange::all(), -1)));
    assert!(refused(watch(KeyRange::between("b", "a"), 0)));
    assert!(!refused(watch(KeyRange::default(), 0)));
}

#[test]
fn events_carry_previous_versions() {
    let mut model = Model::default();
    last(&mut model, vec![put("a", "1"), put("a", "2"), delete("a"), put("a", "3")]).unwrap();
    // A put deleted within its own transaction: both events look back to the state before it.
    model.apply(&txn(vec![put_op("a", "4"), delete_op(KeyRange::from_key("a"))])).unwrap();
    let events = model.events(1, &KeyRange::single("a"));
    let previous: Vec<Vec<Option<i64>>> = events
        .iter()
        .map(|commit| commit.events.iter().map(|event| Some(event.prev_kv.as_ref()?.mod_revision)).collect())
        .collect();
    assert_eq!(previous, [vec![None], vec![Some(2)], vec![Some(3)], vec![None], vec![Some(5), Some(5)]]);
    assert!(model.events(7, &KeyRange::all()).is_empty());
    assert!(model.events(1, &KeyRange::single("b")).is_empty());
    let tombstone = &events[2].events[0].kv;
    assert_eq!(*tombstone, KeyValue { key: b"a".to_vec(), mod_revision: 4, ..Default::default() });
}

#[test]
fn the_past_can_be_come_back_to() {
    let mut model = four_keys();
    let before = model.clone();
    let checkpoint = model.checkpoint();
    last(&mut model, vec![grant(1), put_on_lease("a", "x", 1), put("new", ""), delete("b"), compact(4)])
        .unwrap();
    model.apply(&txn(vec![put_op("z", ""), delete_op(KeyRange::from_key("y"))])).unwrap();
    assert_ne!(model, before);
    assert_eq!(model.as_of(5), {
        let mut at = before.clone();
        at.apply(&grant(1)).unwrap();
        at
    });
    model.rewind(&checkpoint);
    assert_eq!(model, before);
}
