//! Histories known to be right, and histories known to be wrong in one way each, which must be called by its name.

mod story;

use sim::linear::history::{End, EtcdHistory, EtcdRecorder, Operation, WatchMessage, WatchResponse};
use sim::linear::revisions::{Line, Options, Verdict, ViolationKind, check};
use sim::model::*;
use story::*;

// Right.

#[test]
fn an_empty_history_is_right() {
    Story::default().expect_right();
}

#[test]
fn one_client_after_another() {
    let mut story = Story::default();
    story.run(put("a", "1"));
    story.run(put("b", "2"));
    story.run(get("a"));
    story.run(put_if("a", 2, "3"));
    story.run(put_if("a", 2, "4"));
    story.run(delete("b"));
    story.run(delete("b"));
    story.run(list());
    story.watch_all();
    story.expect_right();
    let Verdict::Consistent(summary) = story.verdict() else { unreachable!() };
    assert_eq!((summary.writes, summary.reads, summary.watch_events, summary.revision), (4, 4, 4, 5));
}

#[test]
fn concurrent_writes_may_take_their_revisions_in_either_order() {
    let mut story = Story::default();
    let first = story.run(put("a", "1"));
    let second = story.run(put("a", "2"));
    story.history.operations[first].call = 5;
    story.history.operations[second].call = 5;
    story.history.operations.swap(first, second);
    story.run(get("a"));
    story.expect_right();
}

#[test]
fn an_unknown_write_may_never_happen() {
    let mut story = Story::default();
    story.lose(put("a", "1"));
    story.run(get("a"));
    story.run(put("a", "2"));
    story.watch_all();
    story.expect_right();
}

#[test]
fn an_unknown_write_may_happen_long_after() {
    let mut story = Story::default();
    story.lose(put("a", "late"));
    story.run(put("a", "1"));
    story.run(get("a"));
    story.by_server(put("a", "late"));
    story.run(get("a"));
    story.expect_right();
    story.watch_all();
    story.expect_right();
    let Verdict::Consistent(summary) = story.verdict() else { unreachable!() };
    assert_eq!(summary.unknown_applied, 1);
}

#[test]
fn unknown_deletes_without_a_watch_are_found_by_trying() {
    let mut story = Story::default();
    for key in ["a", "b", "c", "d"] {
        story.run(put(key, key));
    }
    for key in ["a", "b", "c"] {
        story.lose(delete(key));
    }
    // Two revisions go by unseen; only the list at the end says which keys went.
    story.by_server(delete("c"));
    story.by_server(delete("b"));
    story.run(put("e", "e"));
    story.run(list());
    story.expect_right();
}

#[test]
fn an_unknown_transaction_is_recognised_by_one_of_its_values() {
    let mut story = Story::default();
    story.run(put("x", "0"));
    story.run_unseen(txn(vec![put_op("a", "1"), put_op("b", "2"), delete_op(KeyRange::single("x"))]));
    story.run(get("b"));
    story.run(list());
    story.expect_right();
}

#[test]
fn a_lease_may_run_out() {
    let mut story = Story::default();
    story.run(grant(7));
    story.run(put_on_lease("a", "1", 7));
    story.run(put_on_lease("b", "2", 7));
    story.run(put("c", "3"));
    story.by_server(revoke(7));
    story.run(list());
    story.run(put_on_lease("d", "4", 7));
    story.watch_all();
    story.expect_right();
    let Verdict::Consistent(summary) = story.verdict() else { unreachable!() };
    assert_eq!(summary.leases_expired, 1);
    // The same without a watch.
    story.history.watches.clear();
    story.expect_right();
}

#[test]
fn a_lease_may_be_granted_and_revoked_unseen() {
    let mut story = Story::default();
    story.run_unseen(grant(7));
    story.run(put_on_lease("a", "1", 7));
    story.run_unseen(revoke(7));
    story.run(list());
    story.run(grant(7));
    story.run(revoke(7));
    story.run(grant(7));
    story.run(grant(7));
    story.expect_right();
}

#[test]
fn compaction_hides_the_past_and_nothing_else() {
    let mut story = Story::default();
    for value in ["1", "2", "3", "4"] {
        story.run(put("a", value));
    }
    let old = |revision| Request::Range(RangeRequest { revision, ..list_request() });
    story.run(old(3));
    story.run(compact(4));
    for revision in [3, 4, 5, 99] {
        story.run(old(revision));
    }
    story.run(compact(4));
    story.run(compact(99));
    story.watch(WatchRequest {
        range: KeyRange::all(),
        start_revision: 4,
        prev_kv: true,
        ..Default::default()
    });
    // The first event's previous version was compacted.
    story.events(0, 1)[0].prev_kv = None;
    story.expect_right();
}

#[test]
fn refusals_that_depend_on_the_state_of_the_moment() {
    let mut story = Story::default();
    let keep_value = Request::Put(PutRequest { ignore_value: true, ..put_request("a", "") });
    story.run(keep_value.clone());
    story.run(put("a", "1"));
    story.run(keep_value.clone());
    story.run(delete("a"));
    story.run(keep_value);
    story.run(put_on_lease("a", "2", 99));
    story.run(revoke(99));
    story.run(put("", "x"));
    story.run(txn(vec![put_op("k", "1"), put_op("k", "2")]));
    story.run(txn(vec![RequestOp::Empty]));
    story.expect_right();
}

#[test]
fn a_serializable_read_may_be_old() {
    let mut story = Story::default();
    story.run(put("a", "1"));
    let stale = Request::Range(RangeRequest { serializable: true, ..list_request() });
    let answer = story.model.clone().apply(&stale);
    story.run(put("a", "2"));
    story.say(stale, answer);
    story.expect_right();
}

#[test]
fn a_watch_may_be_filtered_split_resumed_and_told_of_progress() {
    let mut story = Story::default();
    for (key, value) in [("a", "1"), ("b", "2"), ("a", "3")] {
        story.run(put(key, value));
    }
    story.run(txn(vec![put_op("a", "4"), put_op("b", "5"), delete_op(KeyRange::single("x"))]));
    story.run(delete("a"));
    let all = KeyRange::all();
    story.watch(WatchRequest { range: all.clone(), no_put: true, prev_kv: true, ..Default::default() });
    story.watch(WatchRequest { range: KeyRange::single("b"), no_delete: true, ..Default::default() });
    story.watch(WatchRequest { range: KeyRange::default(), ..Default::default() });
    story.watch(WatchRequest { range: all.clone(), start_revision: 4, prev_kv: true, ..Default::default() });
    let split = story.watch(WatchRequest { range: all, ..Default::default() });
    // The transaction comes in two pieces.
    let last = story.events(split, 4).split_off(1);
    let WatchResponse { at, revision, .. } = story.messages(split)[4];
    if let WatchMessage::Events { fragment, .. } = &mut story.messages(split)[4].message {
        *fragment = true;
    }
    let rest = WatchMessage::Events { events: last, fragment: false };
    story.messages(split).insert(5, WatchResponse { at, revision, message: rest });
    // Progress in the middle and at the end.
    story.messages(split).insert(3, WatchResponse { at: 0, revision: 3, message: WatchMessage::Progress });
    story.messages(split).push(WatchResponse { at: 0, revision: 6, message: WatchMessage::Progress });
    story.expect_right();
    // The stream may break off in the middle of the split message.
    story.messages(split).truncate(6);
    story.expect_right();
}

#[test]
fn a_sparse_line_may_skip_revisions() {
    let mut story = Story::default();
    story.run(put("a", "1"));
    story.model.skip_to(9);
    story.run(put("b", "2"));
    story.lose(delete("a"));
    story.model.skip_to(1_000_000_000);
    story.run(get("b"));
    story.watch_all();
    story.expect_wrong(ViolationKind::UnexplainedRevision);
    let options = Options { line: Line::Sparse, ..Default::default() };
    assert!(matches!(check(&story.history, &options), Verdict::Consistent(_)));
    // An unknown write may be in a gap.
    story.by_server(delete("a"));
    story.run(list());
    let verdict = check(&story.history, &options);
    assert!(matches!(verdict, Verdict::Consistent(summary) if summary.unknown_applied == 1), "{verdict:?}");
}

#[test]
fn a_history_may_begin_in_the_middle() {
    let mut story = Story::default();
    story.run(put("a", "1"));
    let start = story.model.clone();
    story.history = EtcdHistory::default();
    story.run(put("a", "2"));
    story.run(list());
    let options = Options { start, ..Default::default() };
    assert!(matches!(check(&story.history, &options), Verdict::Consistent(_)));
    assert!(matches!(story.verdict(), Verdict::Violated(_)));
}

#[test]
fn histories_survive_the_disk() {
    let mut story = Story::default();
    story.run(put("a\0\\\u{e9}", "1"));
    story.run(put_if("a", 2, "3"));
    story.run(grant(3));
    story.run(Request::LeaseTimeToLive(LeaseTimeToLiveRequest { id: 3, keys: true }));
    story.run(put("", "1"));
    story.lose(delete("b"));
    story.run(list());
    story.watch(WatchRequest { range: KeyRange::all(), prev_kv: true, ..Default::default() });
    let text = story.history.to_json_lines();
    assert_eq!(EtcdHistory::from_json_lines(&text).unwrap(), story.history);
    let broken = text.replace("\"Watch\"", "\"Witch\"");
    assert_eq!(EtcdHistory::from_json_lines(&broken).unwrap_err().line, text.lines().count());
}

#[test]
fn what_etcd_did_is_right() {
    let text = include_str!("transcripts/etcd-3.5.1-concurrent.jsonl");
    let history = EtcdHistory::from_json_lines(text).unwrap();
    let options = Options::default();
    let Verdict::Consistent(summary) = check(&history, &options) else {
        panic!("{:#?}", check(&history, &options))
    };
    assert!(summary.unknown_applied > 0 && summary.leases_expired > 0, "{summary:?}");
    assert!(summary.writes > 50 && summary.watch_events > 200, "{summary:?}");
    // Without the watches it takes some trying.
    let without = EtcdHistory { watches: Vec::new(), ..history };
    let verdict = check(&without, &options);
    assert!(matches!(verdict, Verdict::Consistent(_)), "{verdict:#?}");
}

#[test]
fn many_tasks_can_record() {
    let recorder = EtcdRecorder::default();
    let model = std::sync::Mutex::new(Model::default());
    std::thread::scope(|scope| {
        for client in 0..4 {
            let (recorder, model) = (&recorder, &model);
            scope.spawn(move || {
                for number in 0..50 {
                    let request =
                        if number % 3 == 0 { list() } else { put("k", &format!("{client}-{number}")) };
                    let id = recorder.call(client, request.clone());
                    let answer = model.lock().unwrap().apply(&request);
                    match number {
                        10 => {}
                        20 => recorder.refused(recorder.call(client, put("k", "refused"))),
                        _ => recorder.returned(id, answer),
                    }
                }
            });
        }
    });
    let watch =
        recorder.watch(9, WatchRequest { range: KeyRange::all(), start_revision: 2, ..Default::default() });
    let model = model.into_inner().unwrap();
    recorder.watched(watch, model.revision(), WatchMessage::Created);
    for commit in model.commits() {
        let mut events = commit.events.clone();
        events.iter_mut().for_each(|event| event.prev_kv = None);
        recorder.watched(watch, model.revision(), WatchMessage::Events { events, fragment: false });
    }
    let history = recorder.into_history();
    let verdict = check(&history, &Options::default());
    assert!(matches!(verdict, Verdict::Consistent(_)), "{verdict:?}");
}

// Wrong.

#[test]
fn lost_write() {
    let mut story = Story::default();
    story.run(put("a", "1"));
    story.run(put("a", "2"));
    let read = story.run(get("a"));
    // The header includes the second write, the key does not show it.
    story.range(read).kvs[0] = story.model.get(b"a", 2).cloned().unwrap();
    story.expect_wrong(ViolationKind::LostWrite);
}

#[test]
fn lost_delete() {
    let mut story = Story::default();
    story.run(put("a", "1"));
    story.run(delete("a"));
    let read = story.run(get("a"));
    let kv = story.model.get(b"a", 2).cloned().unwrap();
    *story.range(read) = RangeResponse { revision: 3, kvs: vec![kv], more: false, count: 1 };
    story.expect_wrong(ViolationKind::LostWrite);
}

#[test]
fn lost_write_shown_by_a_previous_version() {
    let mut story = Story::default();
    story.run(put("a", "1"));
    story.run(put("a", "2"));
    let last = story.run(Request::Put(PutRequest { prev_kv: true, ..put_request("a", "3") }));
    let old = story.model.get(b"a", 2).cloned();
    if let Response::Put(response) = story.response(last) {
        response.prev_kv = old;
    }
    story.expect_wrong(ViolationKind::LostWrite);
}

#[test]
fn stale_read() {
    let mut story = Story::default();
    story.run(put("a", "1"));
    let old = story.model.clone().apply(&get("a"));
    story.run(put("a", "2"));
    story.say(get("a"), old);
    story.expect_wrong(ViolationKind::StaleRead);
}

#[test]
fn stale_empty_delete() {
    // A delete that matched nothing is a read that goes through the log: it is no older than what was acknowledged.
    let mut story = Story::default();
    let old = story.model.clone().apply(&delete("a"));
    story.run(put("a", "1"));
    story.say(delete("a"), old);
    story.expect_wrong(ViolationKind::StaleRead);
}

#[test]
fn read_going_back_in_time() {
    let mut story = Story::default();
    story.run(put("a", "1"));
    let old = story.model.clone().apply(&get("a"));
    // The second put is in flight all the time: both reads could be right, but not in this order.
    let write = story.run(put("a", "2"));
    story.run(get("a"));
    story.say(get("a"), old);
    let end = story.tick();
    if let End::Returned { at, .. } = &mut story.history.operations[write].end {
        *at = end;
    }
    story.expect_wrong(ViolationKind::ReadWentBack);
}

#[test]
fn future_read() {
    let mut story = Story::default();
    story.run(put("a", "1"));
    let mut ahead = story.model.clone();
    ahead.apply(&put("a", "2")).unwrap();
    story.say(get("a"), ahead.apply(&get("a")));
    story.run(put("a", "2"));
    story.expect_wrong(ViolationKind::FutureRead);
}

#[test]
fn future_read_of_an_unknown_write() {
    let mut story = Story::default();
    let mut ahead = story.model.clone();
    ahead.apply(&put("a", "1")).unwrap();
    story.say(get("a"), ahead.apply(&get("a")));
    story.run_unseen(put("a", "1"));
    story.expect_wrong(ViolationKind::FutureRead);
}

#[test]
fn version_above_its_header() {
    let mut story = Story::default();
    story.run(put("a", "1"));
    story.run(put("a", "2"));
    let read = story.run(get("a"));
    story.range(read).revision = 2;
    story.expect_wrong(ViolationKind::StaleRead);
    story.history.operations[read].call = 0;
    story.expect_wrong(ViolationKind::FutureRead);
}

#[test]
fn torn_revision_in_a_read() {
    let mut story = Story::default();
    story.run(txn(vec![put_op("a", "1"), put_op("b", "1")]));
    story.run(txn(vec![put_op("a", "2"), put_op("b", "2")]));
    let read = story.run(list());
    let old = story.model.get(b"b", 2).cloned().unwrap();
    story.range(read).kvs[1] = old;
    story.expect_wrong(ViolationKind::TornRevision);
}

#[test]
fn torn_delete_in_a_read() {
    let mut story = Story::default();
    story.run(put("b", "1"));
    story.run(txn(vec![put_op("a", "2"), delete_op(KeyRange::single("b"))]));
    let read = story.run(list());
    let old = story.model.get(b"b", 2).cloned().unwrap();
    story.range(read).kvs.push(old);
    story.range(read).count = 2;
    story.expect_wrong(ViolationKind::TornRevision);
}

#[test]
fn phantom_value() {
    let mut story = Story::default();
    story.run(put("a", "1"));
    let read = story.run(get("a"));
    story.range(read).kvs[0].value = b"never written".to_vec();
    story.expect_wrong(ViolationKind::PhantomValue);
}

#[test]
fn wrong_count() {
    let mut story = Story::default();
    story.run(put("a", "1"));
    let read = story.run(list());
    story.range(read).count = 2;
    story.expect_wrong(ViolationKind::WrongAnswer);
}

#[test]
fn duplicate_revision() {
    let mut story = Story::default();
    let fork = story.model.clone();
    story.run(put("a", "1"));
    // Another leader gave the same number to another client.
    let mut other = fork;
    let answer = other.apply(&put("b", "2"));
    story.say(put("b", "2"), answer);
    story.expect_wrong(ViolationKind::DuplicateRevision);
}

#[test]
fn split_brain_acknowledges_twice() {
    // Two leaders each see the key missing and create it. They do not even agree on a number.
    let mut story = Story::default();
    story.run(put_if("lock", 0, "first"));
    let mut other = Model::default();
    other.skip_to(2);
    let answer = other.apply(&put_if("lock", 0, "second"));
    story.say(put_if("lock", 0, "second"), answer);
    story.expect_wrong(ViolationKind::FalseCompare);
}

#[test]
fn compare_and_swap_fails_although_it_had_to_succeed() {
    let mut story = Story::default();
    story.run(put("a", "1"));
    let mut other = story.model.clone();
    other.apply(&put("a", "elsewhere")).unwrap();
    let Ok(Response::Txn(mut answer)) = other.apply(&put_if("a", 2, "2")) else { unreachable!() };
    answer.revision = 2;
    let ResponseOp::Range(read) = &mut answer.responses[0] else { unreachable!() };
    read.revision = 2;
    read.kvs[0] = story.model.get(b"a", 2).cloned().unwrap();
    story.say(put_if("a", 2, "2"), Ok(Response::Txn(answer)));
    story.expect_wrong(ViolationKind::FalseCompare);
}

#[test]
fn compare_and_swap_succeeds_twice() {
    let mut story = Story::default();
    story.run(put("a", "1"));
    let again = story.run(put_if("a", 2, "2"));
    let mut answer = story.response(again).clone();
    // The same swap by another client, a revision later.
    if let Response::Txn(txn) = &mut answer {
        txn.revision = 4;
        txn.responses[0] = ResponseOp::Put(PutResponse { revision: 4, prev_kv: None });
    }
    story.say(put_if("a", 2, "3"), Ok(answer));
    story.expect_wrong(ViolationKind::FalseCompare);
}

#[test]
fn writes_out_of_order() {
    let mut story = Story::default();
    let first = story.run(put("a", "1"));
    let second = story.run(put("b", "2"));
    let (first, second) = (story.response(first).clone(), story.response(second).clone());
    *story.response(0) = second;
    *story.response(1) = first;
    story.expect_wrong(ViolationKind::WriteOrder);
}

#[test]
fn retried_write_applied_twice_seen_by_a_watch() {
    let mut story = Story::default();
    story.run(put("a", "1"));
    story.by_server(put("a", "1"));
    story.run(put("b", "2"));
    story.watch_all();
    story.expect_wrong(ViolationKind::AppliedTwice);
}

#[test]
fn retried_write_applied_twice_seen_by_a_read() {
    let mut story = Story::default();
    story.run(put("a", "1"));
    story.by_server(put("a", "1"));
    story.run(get("a"));
    story.expect_wrong(ViolationKind::AppliedTwice);
}

#[test]
fn retried_write_applied_twice_and_acknowledged_the_second_time() {
    let mut story = Story::default();
    story.by_server(put("a", "1"));
    story.run(put("a", "1"));
    story.run(get("a"));
    // The version read says that another put, at revision 2, created the key.
    story.expect_wrong(ViolationKind::AppliedTwice);
    story.watch_all();
    story.expect_wrong(ViolationKind::AppliedTwice);
    // Without either, the only sign is that revision 2 has no author.
    story.history.watches.clear();
    story.history.operations.truncate(1);
    story.expect_wrong(ViolationKind::UnexplainedRevision);
}

#[test]
fn unknown_write_surfaces_twice() {
    let mut story = Story::default();
    story.run_unseen(put("a", "1"));
    story.run(put("a", "2"));
    story.by_server(put("a", "1"));
    story.run(get("a"));
    story.watch_all();
    story.expect_wrong(ViolationKind::AppliedTwice);
}

#[test]
fn delete_applied_twice() {
    let mut story = Story::default();
    story.run(put("a", "1"));
    story.run(delete("a"));
    story.run(put("a", "2"));
    story.by_server(delete("a"));
    story.watch_all();
    story.expect_wrong(ViolationKind::AppliedTwice);
}

#[test]
fn unknown_write_before_its_call() {
    let mut story = Story::default();
    story.by_server(put("a", "1"));
    story.run(put("b", "2"));
    story.lose(put("a", "1"));
    story.watch_all();
    story.expect_wrong(ViolationKind::FutureRead);
}

#[test]
fn write_by_nobody() {
    let mut story = Story::default();
    story.by_server(put("a", "who?"));
    story.watch_all();
    story.expect_wrong(ViolationKind::PhantomWrite);
}

#[test]
fn revision_by_nobody() {
    let mut story = Story::default();
    story.run(put("a", "1"));
    story.by_server(put("z", "unseen"));
    story.run(get("a"));
    story.expect_wrong(ViolationKind::UnexplainedRevision);
}

#[test]
fn lease_ends_without_its_keys() {
    let mut story = Story::default();
    story.run(grant(7));
    story.run(put_on_lease("a", "1", 7));
    let late = story.run(revoke(7));
    if let Response::LeaseRevoke(response) = story.response(late) {
        response.revision = 2;
    }
    story.expect_wrong(ViolationKind::WrongAnswer);
}

#[test]
fn lease_ends_with_half_of_its_keys() {
    let mut story = Story::default();
    story.run(grant(7));
    story.run(put_on_lease("a", "1", 7));
    story.run(put_on_lease("b", "2", 7));
    story.by_server(delete("a"));
    story.watch_all();
    story.expect_wrong(ViolationKind::PhantomWrite);
}

#[test]
fn put_on_a_lease_that_never_was() {
    let mut story = Story::default();
    story.by_server(grant(7));
    story.run(put_on_lease("a", "1", 7));
    story.expect_wrong(ViolationKind::WrongAnswer);
}

#[test]
fn refusals_without_reason() {
    let mut story = Story::default();
    story.run(put("a", "1"));
    for (request, error) in [
        (put("a", "2"), Error::EmptyKey),
        (list(), Error::Compacted),
        (list(), Error::FutureRevision),
        (Request::Put(PutRequest { ignore_value: true, ..put_request("a", "") }), Error::KeyNotFound),
        (grant(9), Error::LeaseExists),
        (put("a", "2"), Error::LeaseNotFound),
    ] {
        let history = story.history.clone();
        story.say(request, Err(error));
        story.expect_wrong(ViolationKind::WrongError);
        story.history = history;
    }
}

#[test]
fn a_lease_that_cannot_have_run_out_is_not_found() {
    let mut story = Story::default();
    story.run(grant(7));
    story.say(put_on_lease("a", "1", 7), Err(Error::LeaseNotFound));
    story.expect_right();
    let verdict = check(&story.history, &Options { leases_expire: false, ..Default::default() });
    assert!(
        matches!(verdict, Verdict::Violated(violations) if violations[0].kind == ViolationKind::WrongError)
    );
}

#[test]
fn compaction_is_forgotten() {
    let mut story = Story::default();
    for value in ["1", "2", "3"] {
        story.run(put("a", value));
    }
    let before = story.model.clone();
    story.run(compact(4));
    let right = story.history.clone();
    let old = Request::Range(RangeRequest { revision: 3, ..list_request() });
    story.say(old.clone(), before.clone().apply(&old));
    story.expect_wrong(ViolationKind::Compaction);
    story.history = right;
    story.say(compact(3), before.clone().apply(&compact(3)));
    story.expect_wrong(ViolationKind::Compaction);
}

#[test]
fn record_makes_no_sense() {
    let mut story = Story::default();
    story.say(put("a", "1"), Ok(Response::Compact(CompactResponse { revision: 2 })));
    story.expect_wrong(ViolationKind::MalformedHistory);
    let mut story = Story::default();
    let write = story.run(put("a", "1"));
    story.history.operations[write].call = 1000;
    story.expect_wrong(ViolationKind::MalformedHistory);
}

/// Three puts and a transaction of two, seen by one watch: messages 1 to 4.
fn watched() -> Story {
    let mut story = Story::default();
    for value in ["1", "2", "3"] {
        story.run(put("a", value));
    }
    story.run(txn(vec![put_op("a", "4"), put_op("b", "4")]));
    story.watch_all();
    story.expect_right();
    story
}

#[test]
fn watch_events_reordered() {
    let mut story = watched();
    story.messages(0).swap(2, 3);
    story.expect_wrong(ViolationKind::WatchOrder);
}

#[test]
fn watch_events_reordered_within_a_revision() {
    let mut story = watched();
    story.events(0, 4).swap(0, 1);
    story.expect_wrong(ViolationKind::WatchOrder);
}

#[test]
fn watch_misses_a_revision() {
    let mut story = watched();
    story.messages(0).remove(2);
    story.expect_wrong(ViolationKind::WatchGap);
}

#[test]
fn watch_misses_the_end_that_progress_promised() {
    let mut story = watched();
    story.messages(0)[4] = WatchResponse { at: 0, revision: 5, message: WatchMessage::Progress };
    story.expect_wrong(ViolationKind::WatchGap);
}

#[test]
fn progress_is_below_what_another_watch_of_the_stream_was_told() {
    let mut story = watched();
    let first = story.watch_all();
    let second = story.watch_all();
    for watch in [first, second] {
        story.history.watches[watch].shared = 7;
    }
    let told = story.messages(first).last().unwrap().revision;
    let at = story.tick();
    story.messages(second).push(WatchResponse { at, revision: told, message: WatchMessage::Progress });
    story.expect_right();
    // Of the second watch alone it would be right.
    story.messages(second).truncate(2);
    let below = WatchResponse { at, revision: told - 1, message: WatchMessage::Progress };
    story.messages(second).push(below);
    story.expect_wrong(ViolationKind::WatchHeader);
}

#[test]
fn watch_misses_the_revision_after_its_creation() {
    let mut story = watched();
    story.messages(0).remove(1);
    story.expect_wrong(ViolationKind::WatchGap);
}

#[test]
fn watch_repeats_a_revision() {
    let mut story = watched();
    let again = story.messages(0)[2].clone();
    story.messages(0).insert(3, again.clone());
    story.expect_wrong(ViolationKind::WatchDuplicate);
    let mut story = watched();
    story.messages(0).push(WatchResponse { revision: 5, ..again });
    story.expect_wrong(ViolationKind::WatchDuplicate);
}

#[test]
fn watch_repeats_an_event_within_a_message() {
    let mut story = watched();
    let again = story.events(0, 1)[0].clone();
    story.events(0, 1).push(again);
    story.expect_wrong(ViolationKind::WatchDuplicate);
}

#[test]
fn watch_tears_a_revision() {
    let mut story = watched();
    story.events(0, 4).pop();
    story.expect_wrong(ViolationKind::WatchTorn);
}

#[test]
fn watch_delivers_a_revision_in_two_messages() {
    let mut story = watched();
    let last = story.events(0, 4).split_off(1);
    let message = WatchMessage::Events { events: last, fragment: false };
    let WatchResponse { at, revision, .. } = story.messages(0)[4];
    story.messages(0).push(WatchResponse { at, revision, message });
    story.expect_wrong(ViolationKind::WatchTorn);
}

#[test]
fn watch_begins_too_early() {
    let mut story = watched();
    story.history.watches[0].request.start_revision = 3;
    story.expect_wrong(ViolationKind::WatchBeforeStart);
}

#[test]
fn watch_invents_an_event() {
    let mut story = watched();
    story.events(0, 2)[0].kv.value = b"other".to_vec();
    story.expect_wrong(ViolationKind::WatchPhantom);
}

#[test]
fn watch_shows_the_wrong_previous_version() {
    let mut story = watched();
    story.watch(WatchRequest { range: KeyRange::all(), prev_kv: true, ..Default::default() });
    let old = story.events(1, 2)[0].prev_kv.clone();
    story.events(1, 3)[0].prev_kv = old;
    story.expect_wrong(ViolationKind::WatchPhantom);
}

#[test]
fn watch_shows_a_key_it_does_not_watch() {
    let mut story = watched();
    story.history.watches[0].request.range = KeyRange::single("b");
    story.expect_wrong(ViolationKind::WatchPhantom);
}

#[test]
fn watch_header_is_older_than_its_events() {
    let mut story = watched();
    story.messages(0)[3].revision = 3;
    story.expect_wrong(ViolationKind::WatchHeader);
}

#[test]
fn watch_progress_overtakes_events() {
    let mut story = watched();
    story.messages(0).insert(2, WatchResponse { at: 0, revision: 4, message: WatchMessage::Progress });
    story.expect_wrong(ViolationKind::WatchProgress);
}

#[test]
fn watch_event_arrives_before_its_write() {
    let mut story = watched();
    story.messages(0)[4].at = 1;
    story.expect_wrong(ViolationKind::WatchFuture);
}

#[test]
fn watch_is_cancelled_for_no_compaction() {
    let mut story = watched();
    let cancel = |compact_revision| WatchResponse {
        at: 135,
        revision: 0,
        message: WatchMessage::Cancelled { compact_revision, reason: String::new() },
    };
    story.messages(0).truncate(2);
    story.messages(0).push(cancel(4));
    story.expect_wrong(ViolationKind::WatchCancel);
    story.run(compact(4));
    story.expect_wrong(ViolationKind::WatchCancel);
    story.history.operations.last_mut().unwrap().call = 90;
    story.expect_right();
    story.messages(0)[2] = cancel(2);
    story.expect_wrong(ViolationKind::WatchCancel);
}

// Bounds.

#[test]
fn a_check_out_of_budget_says_so() {
    let story = watched();
    for options in
        [Options { steps_max: 2, ..Default::default() }, Options { size_max: 2, ..Default::default() }]
    {
        assert!(matches!(check(&story.history, &options), Verdict::Undecided { .. }));
    }
}

#[test]
fn many_choices_and_no_explanation_end_in_time() {
    // Forty unknown deletes, twenty unseen revisions, and a read that nothing explains.
    let mut story = Story::default();
    for number in 0..40 {
        story.run(put(&format!("k{number}"), "1"));
    }
    for number in 0..40 {
        story.lose(delete(&format!("k{number}")));
    }
    story.model.skip_to(61);
    story.run(put("x", "1"));
    let read = story.run(list());
    story.range(read).count = 1000;
    let options = Options { steps_max: 20_000, ..Default::default() };
    assert!(matches!(check(&story.history, &options), Verdict::Undecided { .. }));
}

#[test]
fn absurd_revisions_end_in_time() {
    let mut story = Story::default();
    let read = story.run(list());
    story.range(read).revision = REVISION_MAX;
    story.expect_wrong(ViolationKind::UnexplainedRevision);
    let sparse = check(&story.history, &Options { line: Line::Sparse, ..Default::default() });
    assert!(matches!(sparse, Verdict::Consistent(_)), "{sparse:?}");
    for revision in [i64::MIN, -1, REVISION_MAX + 1, i64::MAX] {
        let answer = |revision| Ok(Response::Put(PutResponse { revision, prev_kv: None }));
        let mut story = Story::default();
        story.say(put("a", "1"), answer(revision));
        story.expect_wrong(ViolationKind::MalformedHistory);
        let mut story = watched();
        story.events(0, 2)[0].kv.mod_revision = revision;
        story.expect_wrong(ViolationKind::MalformedHistory);
        let mut story = watched();
        story.messages(0)[0].revision = revision;
        story.expect_wrong(ViolationKind::MalformedHistory);
    }
    let mut story = Story::default();
    let end = End::Returned { at: u64::MAX, output: story.model.apply(&put("a", "2")) };
    story.history.operations.push(Operation { client: 0, call: u64::MAX, input: put("a", "2"), end });
    story.expect_right();
}
