//! A write under a number is applied once and answered the same, in whatever order and however often it arrives.

mod common;

use common::*;
use keyspace::*;

fn write(session: SessionId, seq: u64, ack_upto: u64, op: Op) -> Command {
    Command::write(session, seq, ack_upto, Route::FIRST, op)
}

fn put_of(key: &str, value: &str) -> Op {
    Op::Put(put(key, value))
}

#[test]
fn a_retried_write_is_applied_once_and_answered_the_same() {
    let mut etcd = Etcd::new();
    let session = etcd.session;
    let command = write(session, 1, 0, Op::Put(Put { prev_kv: true, ..put("a", "1") }));
    let first = etcd.apply(command.clone());
    assert!(!etcd.effects.replies[0].repeated);
    assert_eq!(etcd.apply(write(session, 2, 0, put_of("a", "2"))).unwrap().revision(), Revision(3));
    let again = etcd.apply(command.clone());
    assert_eq!(again, first);
    let answer = &etcd.effects.replies[0];
    assert_eq!((answer.session, answer.seq, answer.repeated), (session, 1, true));
    assert!(etcd.effects.revisions.is_empty());
    assert_eq!(etcd.revision(), 3);
    assert_eq!(etcd.state.has_result(session, 1, Some(Route::FIRST)), SessionLookup::Applied(&first));
    // After a snapshot too.
    let slot = etcd.slot;
    let mut restored = etcd.restored();
    let mut effects = Effects::new();
    restored.apply(slot + 1, 0, command, &mut effects);
    assert_eq!(effects.replies[0].outcome, first);
}

#[test]
fn refusals_are_remembered_like_answers() {
    let mut etcd = Etcd::new();
    let command = write(etcd.session, 1, 0, Op::LeaseRevoke { id: LeaseId(1) });
    assert_eq!(etcd.apply(command.clone()), Err(Error::LeaseNotFound));
    etcd.apply(write(etcd.session, 2, 0, Op::LeaseGrant { id: LeaseId(1), ttl: 60 })).unwrap();
    assert_eq!(etcd.apply(command), Err(Error::LeaseNotFound), "although it would be found by now");
    assert!(etcd.state.lease(LeaseId(1)).is_some());
}

#[test]
fn numbers_may_arrive_in_any_order() {
    let mut etcd = Etcd::new();
    let session = etcd.session;
    for (seq, revision) in [(3, 2), (1, 3), (5, 4), (2, 5), (4, 6)] {
        assert_eq!(etcd.state.has_result(session, seq, Some(Route::FIRST)), SessionLookup::New);
        let outcome = etcd.apply(write(session, seq, 0, put_of("a", &seq.to_string())));
        assert_eq!(outcome.unwrap().revision(), Revision(revision));
    }
    for (seq, revision) in [(1, 3), (2, 5), (3, 2), (4, 6), (5, 4)] {
        let outcome = etcd.apply(write(session, seq, 0, put_of("a", "again")));
        assert_eq!(outcome.unwrap().revision(), Revision(revision));
    }
    assert_eq!(etcd.revision(), 6);
}

#[test]
fn acknowledged_numbers_are_forgotten_and_never_applied() {
    let mut etcd = Etcd::new();
    let session = etcd.session;
    etcd.apply(write(session, 1, 0, put_of("a", "1"))).unwrap();
    etcd.apply(write(session, 3, 0, put_of("a", "3"))).unwrap();
    etcd.apply(write(session, 4, 3, put_of("a", "4"))).unwrap();
    // 2 was given up before it arrived; now it is too late for it.
    for seq in [0, 1, 2, 3] {
        assert_eq!(
            etcd.state.has_result(session, seq, Some(Route::FIRST)),
            SessionLookup::Forgotten,
            "{seq}"
        );
        assert_eq!(etcd.apply(write(session, seq, 0, put_of("a", "late"))), Err(Error::ResultForgotten));
    }
    assert_eq!(etcd.revision(), 4);
    // An acknowledgement may be older than one that came before it.
    etcd.apply(write(session, 5, 1, put_of("a", "5"))).unwrap();
    assert_eq!(etcd.state.has_result(session, 3, Some(Route::FIRST)), SessionLookup::Forgotten);
    assert!(matches!(etcd.state.has_result(session, 4, Some(Route::FIRST)), SessionLookup::Applied(_)));
    // A write that acknowledges itself is not applied.
    assert_eq!(etcd.apply(write(session, 7, 7, put_of("a", "7"))), Err(Error::ResultForgotten));
    // Far ahead of everything stored.
    etcd.apply(write(session, 1_000_001, 1_000_000, put_of("a", "far"))).unwrap();
    assert_eq!(etcd.state.has_result(session, 1_000_000, Some(Route::FIRST)), SessionLookup::Forgotten);
    let top = write(session, u64::MAX, u64::MAX - 1, put_of("a", "top"));
    etcd.apply(top.clone()).unwrap();
    let revision = etcd.revision();
    etcd.apply(top).unwrap();
    assert_eq!(etcd.revision(), revision);
    assert_eq!(etcd.restored().digest(), etcd.state.digest());
}

#[test]
fn the_window_ends_1024_above_the_low_mark() {
    let mut etcd = Etcd::new();
    let session = etcd.session;
    let beyond = write(session, SESSION_WINDOW + 1, 0, put_of("a", "beyond"));
    assert_eq!(etcd.apply(beyond), Err(Error::SessionWindowExceeded));
    assert_eq!(
        etcd.state.has_result(session, SESSION_WINDOW + 1, Some(Route::FIRST)),
        SessionLookup::BeyondWindow
    );
    etcd.apply(write(session, SESSION_WINDOW, 0, put_of("a", "last"))).unwrap();
    // Once one is acknowledged, there is room for one more; it was not applied before.
    etcd.apply(write(session, SESSION_WINDOW + 1, 1, put_of("a", "next"))).unwrap();
    assert_eq!(etcd.revision(), 3);
    // All of the window at once.
    for seq in 2..SESSION_WINDOW {
        etcd.apply(write(session, seq, 0, put_of("a", "fill"))).unwrap();
    }
    assert_eq!(etcd.restored().digest(), etcd.state.digest());
}

#[test]
fn sessions_do_not_share_numbers() {
    let mut etcd = Etcd::new();
    let other = etcd.open(2);
    assert_ne!(other, etcd.session);
    etcd.apply(write(etcd.session, 1, 0, put_of("a", "1"))).unwrap();
    assert_eq!(etcd.state.has_result(other, 1, Some(Route::FIRST)), SessionLookup::New);
    etcd.apply(write(other, 1, 0, put_of("a", "2"))).unwrap();
    assert_eq!(etcd.revision(), 3);
}

#[test]
fn opening_again_under_a_nonce_finds_the_session() {
    let mut etcd = Etcd::new();
    assert_eq!(etcd.open(1), etcd.session);
    etcd.apply(Command::CloseSession(etcd.session)).unwrap();
    let anew = etcd.open(1);
    assert!(anew > etcd.session, "ids are never given twice");
    assert_eq!(etcd.apply(write(etcd.session, 1, 0, put_of("a", "1"))), Err(Error::SessionExpired));
    assert_eq!(etcd.revision(), 1);
    // Closing what is closed is no error.
    assert!(etcd.apply(Command::CloseSession(etcd.session)).is_ok());
}

#[test]
fn unknown_sessions_are_expired() {
    let mut etcd = Etcd::new();
    for session in [SessionId::NONE, SessionId(99)] {
        assert_eq!(etcd.apply(write(session, 1, 0, put_of("a", "1"))), Err(Error::SessionExpired));
        assert_eq!(etcd.state.has_result(session, 1, Some(Route::FIRST)), SessionLookup::Expired);
    }
}

#[test]
fn the_session_that_wrote_longest_ago_is_evicted() {
    let mut etcd = Etcd::with(Limits { max_sessions: 3, ..Limits::default() });
    let [a, b, c] = [etcd.session, etcd.open(2), etcd.open(3)];
    etcd.apply(write(a, 1, 0, put_of("a", "1"))).unwrap();
    let d = etcd.open(4);
    assert_eq!(etcd.state.has_result(b, 1, Some(Route::FIRST)), SessionLookup::Expired);
    // To open again is to use it.
    assert_eq!(etcd.open(3), c);
    etcd.apply(write(d, 1, 0, put_of("a", "1"))).unwrap();
    let e = etcd.open(5);
    assert_eq!(etcd.state.has_result(a, 1, Some(Route::FIRST)), SessionLookup::Expired);
    for session in [c, d, e] {
        assert_ne!(etcd.state.has_result(session, 9, Some(Route::FIRST)), SessionLookup::Expired);
    }
    // A restored replica evicts the same one.
    let slot = etcd.slot + 1;
    let mut restored = etcd.restored();
    etcd.open(6);
    restored.apply(slot, 0, Command::OpenSession { nonce: 6 }, &mut Effects::new());
    assert_eq!(restored.digest(), etcd.state.digest());
    assert_eq!(restored.has_result(c, 1, Some(Route::FIRST)), SessionLookup::Expired);
    // Lower limits evict at once; a limit of none still leaves one.
    etcd.apply(Command::SetLimits(Limits { max_sessions: 0, ..Limits::default() })).unwrap();
    assert_eq!(etcd.state.status().sessions, 1);
    let last = etcd.open(7);
    assert_eq!(
        (etcd.state.status().sessions, etcd.state.has_result(last, 1, Some(Route::FIRST))),
        (1, SessionLookup::New)
    );
}

#[test]
fn a_batch_has_one_slot_and_answers_in_order() {
    let mut etcd = Etcd::new();
    let mut effects = Effects::new();
    for index in 0..3 {
        let command = write(etcd.session, u64::from(index) + 1, 0, put_of("a", &index.to_string()));
        etcd.state.apply(50, index, command, &mut effects);
    }
    let places: Vec<_> = effects.replies.iter().map(|answer| (answer.slot, answer.index_in_batch)).collect();
    assert_eq!(places, [(50, 0), (50, 1), (50, 2)]);
    assert_eq!(effects.revisions.len(), 3);
    etcd.state.skip(51);
    assert_eq!(etcd.state.applied(), 51);
}
