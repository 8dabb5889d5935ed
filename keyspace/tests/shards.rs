//! A group with several shards: each has its keys and what hangs on them, and a client sees one keyspace.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod common;

use bytes::Bytes;
use common::{Etcd, between, keys, one, put_op, then};
use keyspace::*;

/// Keys up to "m", from there to "t", and from "x" on: those in between are elsewhere.
const LOW: Route = Route { shard: ShardId(4), epoch: Epoch(3) };
const MIDDLE: Route = Route { shard: ShardId(7), epoch: Epoch(3) };
const HIGH: Route = Route { shard: ShardId(2), epoch: Epoch(3) };

fn three_shards() -> Etcd {
    let span = |route: Route, start: &'static str, end: Option<&'static str>| ShardSpan {
        id: route.shard,
        since: route.epoch,
        start: start.into(),
        end: end.map(Bytes::from),
    };
    let shards = vec![span(HIGH, "x", None), span(LOW, "", Some("m")), span(MIDDLE, "m", Some("t"))];
    Etcd::begin(Options { shards, ..Options::default() })
}

impl Etcd {
    fn write_to(&mut self, route: Route, op: Op) -> Outcome {
        self.seq += 1;
        self.repeat_to(route, op)
    }

    /// The same under the number of the last write.
    fn repeat_to(&mut self, route: Route, op: Op) -> Outcome {
        self.apply(Command::write(self.session, self.seq, self.seq - 1, route, op))
    }

    fn put_to(&mut self, route: Route, key: &'static str) -> i64 {
        self.write_to(route, put(key)).expect("it is granted").revision().0
    }

    fn last_write(&self, route: Route) -> i64 {
        self.state.last_write(route.shard).expect("the shard is here").revision().0
    }
}

fn put(key: &'static str) -> Op {
    Op::Put(Put::new(key, "v"))
}

fn leased(key: &'static str, lease: i64) -> Op {
    Op::Put(Put { lease: LeaseId(lease), ..Put::new(key, "v") })
}

/// Each broken rule is noticed by one of the stories.
#[cfg(feature = "mutants")]
#[test]
fn mutants_are_caught() {
    let stories: [fn(Broken); 12] = [
        revisions_are_the_groups,
        what_is_not_here_is_refused,
        numbers_are_the_sessions,
        results_end_with_their_session,
        a_lease_ends_at_once,
        reads_stay_within_a_shard,
        given_revisions_are_taken,
        a_snapshot_has_all_of_it,
        a_query_stays_at_its_revision,
        writes_are_bounded,
        an_older_version_knows_no_bounds,
        garbage_counts_nothing,
    ];
    for mutant in Mutant::ALL {
        let is_noticed =
            |story: &fn(Broken)| std::panic::catch_unwind(|| story(Broken { mutant: Some(mutant) })).is_err();
        assert!(stories.iter().any(is_noticed), "{mutant:?} is not caught");
    }
}

fn broken(broken: Broken) -> Etcd {
    let mut etcd = three_shards();
    etcd.state.set_broken(broken);
    etcd
}

fn revisions_are_the_groups(rules: Broken) {
    let mut etcd = broken(rules);
    assert_eq!([etcd.put_to(LOW, "a"), etcd.put_to(HIGH, "x"), etcd.put_to(HIGH, "y")], [2, 3, 4]);
    assert_eq!([LOW, MIDDLE, HIGH].map(|route| etcd.last_write(route)), [2, 1, 4]);
    // A quiet shard is resolved as far as the others.
    let quiet = etcd.range(RangeRequest::new(one("a"))).unwrap();
    assert_eq!((quiet.revision, quiet.kvs[0].mod_revision), (Revision(4), Revision(2)));
    assert!(etcd.get_at("a", 4).unwrap().is_some());
    assert_eq!(etcd.get_at("a", 5), Err(Error::FutureRevision));
    let page = etcd.state.history(&one("a"), true, Revision(1).into(), PageLimits::NONE).unwrap();
    assert_eq!((page.revisions.len(), page.next), (1, Revision(5).into()));
    assert_eq!(etcd.put_to(MIDDLE, "n"), 5);
    assert_eq!(etcd.state.status().revision, Revision(5));
    // A transaction sees what is before it, also where that was elsewhere.
    let read = TxnOp::Range(RangeRequest { revision: 5, ..RangeRequest::new(one("a")) });
    let txn = etcd.write_to(LOW, Op::Txn(then(vec![read, put_op("b", "")]))).unwrap();
    assert_eq!(txn.revision(), Revision(6));
    etcd.compact(6).unwrap();
    assert_eq!((etcd.get_at("a", 5), etcd.get_at("y", 5)), (Err(Error::Compacted), Err(Error::Compacted)));
    assert!(etcd.get_at("a", 6).unwrap().is_some());
    assert_eq!(etcd.state.status().keys, 5);
}

#[test]
fn revisions_in_several_shards_are_those_of_the_group() {
    revisions_are_the_groups(Broken::default());
}

fn a_query_stays_at_its_revision(rules: Broken) {
    let mut etcd = broken(rules);
    assert_eq!(["a", "b", "c"].map(|key| etcd.put_to(LOW, key)), [2, 3, 4]);
    let query = Query::Range(RangeRequest::new(between("a", "d")));
    let mut step = etcd.state.begin(&query, &mut Budget::of_keys(1));
    let gathered = loop {
        match step {
            Step::Done(gathered) => break gathered,
            Step::Suspended(suspended) => {
                etcd.put_to(LOW, "c");
                step = etcd.state.go_on(suspended, &mut Budget::of_keys(1));
            }
        }
    };
    let Ok(Reply::Range(reply)) = gathered.finish() else { panic!("a range is answered as one") };
    let revisions: Vec<_> = reply.kvs.iter().map(|kv| kv.mod_revision.0).collect();
    assert_eq!((reply.revision, revisions), (Revision(4), vec![2, 3, 4]));
}

#[test]
fn a_query_that_is_suspended_stays_at_its_revision() {
    a_query_stays_at_its_revision(Broken::default());
}

fn what_is_not_here_is_refused(rules: Broken) {
    let mut etcd = broken(rules);
    let unknown = Route { shard: ShardId(1), ..LOW };
    let stale = Route { epoch: Epoch(2), ..LOW };
    let spanning = Op::DeleteRange(DeleteRange { range: between("a", "n"), prev_kv: false });
    let nested = Op::Txn(then(vec![TxnOp::Txn(then(vec![put_op("a", ""), put_op("n", "")]))]));
    let misrouted = [
        (unknown, put("a")),
        (stale, put("a")),
        (LOW, put("n")),
        (MIDDLE, put("u")),
        (LOW, spanning),
        (LOW, nested),
        (LOW, Op::DeleteRange(DeleteRange { range: KeyRange::all(), prev_kv: false })),
    ];
    for (route, op) in misrouted {
        assert_eq!(etcd.write_to(route, op.clone()), Err(Error::WrongShard), "{route:?} {op:?}");
        assert!(etcd.effects.revisions.is_empty());
        // Who was told so has gone elsewhere: what comes late of it is not carried out.
        assert_eq!(etcd.repeat_to(LOW, put("a")), Err(Error::WrongShard), "{route:?} {op:?}");
        let known = etcd.state.has_result(etcd.session, etcd.seq, Some(LOW));
        assert_eq!(known, SessionLookup::Applied(&Err(Error::WrongShard)));
    }
    assert_eq!((etcd.revision(), etcd.get("a")), (1, None));
    // A newer map does no harm.
    let newer = Route { epoch: Epoch(9), ..LOW };
    assert_eq!(etcd.write_to(newer, put("a")).unwrap().revision(), Revision(2));
    // What was carried out was, whichever way it comes again.
    for route in [LOW, stale, unknown, MIDDLE] {
        assert_eq!(etcd.repeat_to(route, put("a")).unwrap().revision(), Revision(2), "{route:?}");
    }
    assert_eq!(etcd.revision(), 2);
}

#[test]
fn a_command_for_a_shard_that_is_not_here_does_nothing() {
    what_is_not_here_is_refused(Broken::default());
}

fn numbers_are_the_sessions(rules: Broken) {
    let mut etcd = broken(rules);
    let session = etcd.session;
    let mut write =
        |seq, ack_upto, route, key| etcd.apply(Command::write(session, seq, ack_upto, route, put(key)));
    let first = write(1, 0, LOW, "a");
    let second = write(2, 0, HIGH, "x");
    assert_eq!((write(1, 0, LOW, "a"), write(2, 0, HIGH, "x")), (first, second));
    // What is settled is settled for all shards: 3 was given up, and comes late.
    write(4, 3, HIGH, "y").unwrap();
    assert_eq!(write(3, 0, LOW, "late"), Err(Error::ResultForgotten));
    assert_eq!(write(1, 0, LOW, "a"), Err(Error::ResultForgotten));
    assert_eq!(write(3 + SESSION_WINDOW + 1, 3, LOW, "far"), Err(Error::SessionWindowExceeded));
    write(3 + SESSION_WINDOW, 3, LOW, "b").unwrap();
    assert_eq!((etcd.get("late"), etcd.revision()), (None, 5));
    let known = |seq, route| etcd.state.has_result(session, seq, Some(route));
    assert!(matches!(known(4, HIGH), SessionLookup::Applied(Ok(_))));
    assert_eq!((known(4, LOW), known(1, LOW)), (SessionLookup::New, SessionLookup::Forgotten));
}

#[test]
fn numbers_of_a_session_hold_in_all_shards() {
    numbers_are_the_sessions(Broken::default());
}

fn results_end_with_their_session(rules: Broken) {
    let mut etcd = broken(rules);
    etcd.put_to(LOW, "a");
    etcd.put_to(HIGH, "x");
    etcd.grant(5, 10).unwrap();
    let (session, seq) = (etcd.session, etcd.seq);
    etcd.apply(Command::CloseSession(session)).unwrap();
    assert_eq!(etcd.state.has_result(session, seq, None), SessionLookup::Expired);
    // One that is opened in its place evicts it, too.
    etcd.session = etcd.open(2);
    etcd.seq = 0;
    etcd.put_to(MIDDLE, "n");
    etcd.apply(Command::SetLimits(Limits { max_sessions: 1, ..Limits::default() })).unwrap();
    etcd.open(3);
    assert_eq!(etcd.state.status().sessions, 1);
}

#[test]
fn results_are_forgotten_in_all_shards() {
    results_end_with_their_session(Broken::default());
}

fn a_lease_ends_at_once(rules: Broken) {
    let mut etcd = broken(rules);
    for id in 1..=2 {
        etcd.grant(id, 10).unwrap();
    }
    for (route, key) in [(LOW, "a"), (LOW, "b"), (MIDDLE, "n"), (HIGH, "x")] {
        etcd.write_to(route, leased(key, 1)).unwrap();
    }
    etcd.write_to(HIGH, leased("y", 2)).unwrap();
    // A key may change its lease, or lose it.
    etcd.write_to(LOW, put("b")).unwrap();
    let Ok(Reply::LeaseTimeToLive(told)) =
        etcd.state.query(&Query::LeaseTimeToLive { id: LeaseId(1), keys: true })
    else {
        panic!("another answer")
    };
    assert_eq!(told.keys, ["a", "n", "x"]);
    let (before, first) = (etcd.revision(), etcd.lease(1));
    assert_eq!(etcd.revoke(1).unwrap().revision(), Revision(before + 1));
    assert_eq!(etcd.effects.revisions.len(), 1, "one revision");
    let deleted: Vec<_> = etcd.effects.revisions[0].events.iter().map(|event| event.kv.key.clone()).collect();
    assert_eq!(deleted, ["a", "n", "x"]);
    assert_eq!(
        ["a", "b", "n", "x", "y"].map(|key| etcd.get(key).is_some()),
        [false, true, false, false, true]
    );
    // What its leader has seen end is not the next one with its id.
    etcd.grant(1, 10).unwrap();
    etcd.write_to(MIDDLE, leased("n", 1)).unwrap();
    let expired = etcd.apply(Command::ExpireLeases(ClockStart::NONE, vec![first, etcd.lease(2)])).unwrap();
    assert_eq!((expired.revision(), etcd.get("y")), (Revision(before + 3), None));
    assert!(etcd.get("n").is_some());
    // Nor does anything what an earlier clock has found, once another has begun.
    etcd.apply(Command::StartClock(ClockOwner { round: 1, node: 1 })).unwrap();
    etcd.apply(Command::ExpireLeases(ClockStart::NONE, vec![etcd.lease(1)])).unwrap();
    assert!(etcd.get("n").is_some());
}

#[test]
fn a_lease_takes_its_keys_along_in_all_shards_under_one_revision() {
    a_lease_ends_at_once(Broken::default());
}

fn reads_stay_within_a_shard(rules: Broken) {
    let mut etcd = broken(rules);
    for (route, key) in [(LOW, "a"), (LOW, "b"), (MIDDLE, "n"), (HIGH, "x")] {
        etcd.put_to(route, key);
    }
    let read = |range| etcd.range(RangeRequest::new(range)).map(|reply| keys(&reply.kvs));
    assert_eq!(read(between("a", "m")), Ok(vec!["a".to_owned(), "b".to_owned()]));
    assert_eq!(read(KeyRange::from("x")), Ok(vec!["x".to_owned()]));
    for elsewhere in [KeyRange::all(), between("a", "n"), one("u"), between("t", "x"), between("n", "z")] {
        assert_eq!(read(elsewhere.clone()), Err(Error::WrongShard), "{elsewhere:?}");
        let history = etcd.state.history(&elsewhere, true, Revision(1).into(), PageLimits::NONE);
        assert_eq!(history, Err(NoHistory::WrongShard), "{elsewhere:?}");
    }
    assert_eq!(read(between("b", "a")), Ok(vec![]), "an empty range is anybody's");
    let txn =
        |ranges: [KeyRange; 2]| Query::Txn(then(ranges.map(RangeRequest::new).map(TxnOp::Range).to_vec()));
    assert!(etcd.state.query(&txn([one("n"), one("o")])).is_ok());
    assert_eq!(etcd.state.query(&txn([one("a"), one("n")])), Err(Error::WrongShard));
    assert!(etcd.state.query(&Query::Txn(Txn::default())).is_ok());
    assert_eq!(etcd.watch(between("a", "m"), 1).unwrap().len(), 2);
    assert_eq!(etcd.state.prev_kv(b"a", Revision(9)).unwrap().key, "a");
    assert_eq!(etcd.state.prev_kv(b"u", Revision(9)), None);
}

#[test]
fn reads_and_watches_are_answered_by_the_shard_that_holds_all_they_ask_for() {
    reads_stay_within_a_shard(Broken::default());
}

fn given_revisions_are_taken(rules: Broken) {
    let mut etcd = broken(rules);
    let given = |first, command| {
        let revisions = Revisions::Given(RevisionRange { first: Revision(first), count: 1 });
        Proposal { envelope: Envelope { revisions, ..Envelope::default() }, command }
    };
    let session = etcd.session;
    let put = |seq, route, key| Command::write(session, seq, seq - 1, route, put(key));
    assert_eq!(etcd.apply(given(10, put(1, LOW, "a"))).unwrap().revision(), Revision(10));
    for first in [9, 10] {
        let passed = etcd.apply(given(first, put(2, HIGH, "x")));
        assert_eq!(passed, Err(Error::RevisionPassed), "also where nothing was written so far");
    }
    assert_eq!(etcd.apply(given(11, put(2, HIGH, "x"))).unwrap().revision(), Revision(11));
}

#[test]
fn revisions_that_are_given_ascend_over_all_shards() {
    given_revisions_are_taken(Broken::default());
}

fn a_snapshot_has_all_of_it(rules: Broken) {
    let mut etcd = broken(rules);
    etcd.grant(1, 10).unwrap();
    for (route, key) in [(LOW, "a"), (MIDDLE, "n"), (HIGH, "x"), (HIGH, "y"), (HIGH, "z")] {
        etcd.write_to(route, leased(key, 1)).unwrap();
    }
    etcd.compact(4).unwrap();
    let other = etcd.open(2);
    etcd.apply(Command::write(other, 1, 0, MIDDLE, put("o"))).unwrap();
    let mut restored = etcd.restored();
    restored.check_invariants();
    assert_eq!(restored.digest(), etcd.state.digest());
    assert!(restored.shards().eq(etcd.state.shards()));
    assert_eq!(restored.resolved(), etcd.state.resolved());
    let hash = |state: &Keyspace| state.hash_kv(Revision(6)).unwrap();
    assert_eq!(hash(&restored), hash(&etcd.state));
    // Retries find what their first attempt did, also of what concerns the group.
    let known = |route| restored.has_result(etcd.session, etcd.seq, route);
    assert!(matches!(known(None), SessionLookup::Applied(Ok(Reply::Compacted { .. }))));
    assert!(matches!(restored.has_result(other, 1, Some(MIDDLE)), SessionLookup::Applied(Ok(Reply::Put(_)))));
    let mut effects = Effects::new();
    restored.apply(
        etcd.slot + 1,
        0,
        Command::ExpireLeases(ClockStart::NONE, vec![etcd.lease(1)]),
        &mut effects,
    );
    assert_eq!(effects.revisions[0].events.len(), 5);
}

#[test]
fn a_snapshot_restores_every_shard() {
    a_snapshot_has_all_of_it(Broken::default());
}

#[test]
fn the_hash_of_history_does_not_depend_on_the_shards() {
    let mut whole = Etcd::new();
    let mut cut = three_shards();
    for (route, key) in [(LOW, "a"), (HIGH, "x"), (LOW, "a"), (MIDDLE, "n")] {
        cut.put_to(route, key);
        whole.write(put(key)).unwrap();
    }
    for revision in 2..=5 {
        let hash = |etcd: &Etcd| etcd.state.hash_kv(Revision(revision)).unwrap();
        assert_eq!(hash(&whole), hash(&cut), "{revision}");
    }
}

fn writes_are_bounded(rules: Broken) {
    let mut etcd = broken(rules);
    for (route, keys) in [(LOW, ["a", "b"]), (HIGH, ["x", "y"])] {
        for key in keys {
            etcd.put_to(route, key);
        }
        let range = KeyRange::between(keys[0], if route == LOW { "c" } else { "z" });
        let read = TxnOp::Range(RangeRequest::new(range.clone()));
        let digest = etcd.state.hash_kv(Revision(0));
        etcd.state.set_write_bounds(WriteBounds { visits: 3, ..WriteBounds::default() });
        let refused = etcd.write_to(route, Op::Txn(then(vec![put_op(keys[0], ""), read])));
        assert_eq!(refused, Err(Error::TooManyOps));
        let delete = Op::DeleteRange(DeleteRange { range, prev_kv: true });
        etcd.state.set_write_bounds(WriteBounds { answer_bytes: 70, ..WriteBounds::default() });
        assert_eq!(etcd.write_to(route, delete), Err(Error::AnswerTooLarge));
        assert_eq!(etcd.state.hash_kv(Revision(0)), digest);
    }
}

#[test]
fn writes_are_bounded_in_every_shard() {
    writes_are_bounded(Broken::default());
}

fn an_older_version_knows_no_bounds(rules: Broken) {
    let mut state = Keyspace::new(Options::default());
    state.set_broken(rules);
    state.set_write_bounds(WriteBounds { answer_bytes: 100, visits: 3, kept_bytes: 0 });
    let mut effects = Effects::new();
    let read = TxnOp::Range(RangeRequest::new(KeyRange::all()));
    for command in [
        Command::OpenSession { nonce: 1 },
        Command::write(SessionId(1), 1, 0, Route::FIRST, put("a")),
        Command::write(SessionId(1), 2, 0, Route::FIRST, put("b")),
        Command::write(SessionId(1), 3, 0, Route::FIRST, Op::Txn(then(vec![put_op("c", ""), read]))),
    ] {
        state.apply(1, 0, command, &mut effects);
    }
    assert!(effects.replies.iter().all(|answer| answer.outcome.is_ok()), "{:?}", effects.replies);
}

#[test]
fn writes_are_not_bounded_before_all_know_the_bounds() {
    an_older_version_knows_no_bounds(Broken::default());
}

fn garbage_counts_nothing(rules: Broken) {
    let mut etcd = broken(rules);
    for key in ["a", "b", "c", "d", "e", "f"] {
        etcd.put_to(LOW, key);
    }
    // What a snapshot that is being taken needs is not swept.
    let held_back = etcd.state.snapshot();
    etcd.write_to(LOW, Op::DeleteRange(DeleteRange { range: between("b", "f"), prev_kv: false })).unwrap();
    etcd.put_to(LOW, "a");
    etcd.compact(etcd.revision()).unwrap();
    let mut copy = etcd.restored();
    copy.set_broken(rules);
    let count = TxnOp::Range(RangeRequest { count_only: true, ..RangeRequest::new(between("a", "m")) });
    let count = Op::Txn(then(vec![count.clone(), put_op("a", ""), count]));
    for (visits, expected) in [(8, Err(Error::TooManyOps)), (9, Ok(()))] {
        let bounds = WriteBounds { visits, ..WriteBounds::default() };
        etcd.state.set_write_bounds(bounds);
        copy.set_write_bounds(bounds);
        let outcome = etcd.write_to(LOW, count.clone());
        assert_eq!(outcome.clone().map(|_| ()), expected);
        let mut effects = Effects::new();
        let write = Command::write(etcd.session, etcd.seq, etcd.seq - 1, LOW, count.clone());
        copy.apply(etcd.slot, 0, write, &mut effects);
        assert_eq!(effects.replies[0].outcome, outcome, "a replica that has swept decides as others do");
        assert_eq!(copy.digest(), etcd.state.digest());
    }
    drop(held_back);
}

#[test]
fn what_a_write_looks_at_does_not_depend_on_what_is_swept() {
    garbage_counts_nothing(Broken::default());
}
