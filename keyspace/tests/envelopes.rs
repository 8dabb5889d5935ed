//! What a command of the log comes in: revisions that are given from outside, and versions that are not known.

mod common;

use bytes::{Bytes, BytesMut};
use common::{Etcd, put_op, then};
use keyspace::*;

impl Etcd {
    /// A write that may make `count` revisions from `first` on.
    fn write_given(&mut self, first: i64, count: u32, op: Op) -> Outcome {
        self.seq += 1;
        self.repeat_given(first, count, op)
    }

    /// The same under the number of the last write.
    fn repeat_given(&mut self, first: i64, count: u32, op: Op) -> Outcome {
        let Etcd { session, seq, .. } = *self;
        self.apply(given(first, count, Command::write(session, seq, seq - 1, Route::FIRST, op)))
    }
}

fn given(first: i64, count: u32, command: Command) -> Proposal {
    let revisions = Revisions::Given(RevisionRange { first: Revision(first), count });
    Proposal { envelope: Envelope { revisions, ..Envelope::default() }, command }
}

fn put(key: &'static str) -> Op {
    Op::Put(Put::new(key, "v"))
}

fn revision_of(outcome: Outcome) -> i64 {
    outcome.expect("it is granted").revision().0
}

fn last_write(etcd: &Etcd) -> i64 {
    etcd.state.last_write(Route::FIRST.shard).expect("the shard is here").revision().0
}

#[test]
fn a_write_has_the_revision_that_it_was_given_and_the_next_one_goes_on_from_there() {
    let mut etcd = Etcd::new();
    assert_eq!(revision_of(etcd.write_given(10, 1, put("a"))), 10);
    assert_eq!(etcd.get("a").unwrap().mod_revision, Revision(10));
    assert_eq!((last_write(&etcd), etcd.revision()), (10, 10));
    assert_eq!(etcd.put("a", "next").revision, Revision(11));
    assert_eq!(revision_of(etcd.write_given(20, 5, put("b"))), 20);
    assert_eq!(etcd.watch(KeyRange::all(), 1).unwrap().len(), 3, "gaps are no events");
    assert_eq!(etcd.get_at("a", 15).unwrap().unwrap().mod_revision, Revision(11), "a gap can be read at");
}

#[test]
fn a_transaction_that_is_given_a_revision_sees_what_is_before_it() {
    let mut etcd = Etcd::new();
    etcd.put("a", "1");
    let read = |revision| TxnOp::Range(RangeRequest { revision, ..RangeRequest::new(KeyRange::single("a")) });
    // Others may have written elsewhere up to 9, and the client knows.
    let txn = Op::Txn(then(vec![read(9), put_op("b", "1")]));
    assert_eq!(revision_of(etcd.write_given(10, 1, txn)), 10);
    let ahead = Op::Txn(then(vec![read(20)]));
    assert_eq!(etcd.write_given(20, 1, ahead), Err(Error::FutureRevision));
    let nothing = Op::DeleteRange(DeleteRange { range: KeyRange::single("none"), prev_kv: false });
    assert_eq!(revision_of(etcd.write_given(30, 1, nothing)), 29, "it makes no revision");
    assert_eq!(last_write(&etcd), 10);
}

#[test]
fn revisions_that_others_have_passed_are_refused_and_the_write_may_come_again() {
    let mut etcd = Etcd::new();
    etcd.write_given(10, 1, put("a")).unwrap();
    for first in [2, 9, 10] {
        let digest = etcd.state.digest();
        assert_eq!(etcd.repeat_given(first, 9, put("b")), Err(Error::RevisionPassed), "{first}");
        assert_eq!(etcd.state.digest(), digest, "nothing happened");
        etcd.seq += 1;
        assert_eq!(etcd.repeat_given(first, 9, put("b")), Err(Error::RevisionPassed), "{first}");
        assert_eq!(etcd.state.digest(), digest, "nothing happened");
    }
    assert_eq!(revision_of(etcd.repeat_given(11, 1, put("b"))), 11, "nothing was stored under its number");
    assert_eq!(revision_of(etcd.repeat_given(12, 1, put("b"))), 11, "and now the result is");
}

#[test]
fn leases_for_which_there_is_no_revision_wait() {
    let mut etcd = Etcd::new();
    for id in 1..=3 {
        etcd.grant(id, 10).unwrap();
    }
    for (key, lease) in [("a", 1), ("b", 2)] {
        etcd.put_with(Put { lease: LeaseId(lease), ..Put::new(key, "") }).unwrap();
    }
    let expire = Command::ExpireLeases(ClockStart::NONE, [1, 2, 3].map(|id| etcd.lease(id)).to_vec());
    etcd.apply(given(10, 1, expire.clone())).unwrap();
    let left: Vec<i64> = etcd.state.leases().map(|lease| lease.grant.id.0).collect();
    assert_eq!((left, last_write(&etcd)), (vec![2], 10), "the third had no key");
    etcd.apply(given(11, 3, expire)).unwrap();
    assert_eq!((etcd.state.leases().count(), etcd.get("b")), (0, None));
}

#[test]
fn encodings_of_another_version_are_refused_in_words() {
    let mut encoded = BytesMut::new();
    Command::CloseSession(SessionId(1)).encode(&mut encoded);
    let in_version = |version: u8| {
        let mut other = encoded.to_vec();
        other[0] = version;
        Proposal::decode(Bytes::from(other)).map(drop)
    };
    assert_eq!(in_version(3), Ok(()));
    for newer in 4..=6 {
        assert!(matches!(in_version(newer), Err(DecodeError::Malformed(_))), "an older one says it as well");
    }
    for version in (0..=u8::MAX).filter(|version| !(3..=6).contains(version)) {
        let error = in_version(version).unwrap_err();
        assert_eq!(error, DecodeError::UnknownVersion { found: version, known: 6 });
        let words = format!("an encoding of version {version}, and this Gaios reads version 6");
        assert_eq!(error.to_string(), words);
    }
}

#[test]
fn what_an_older_version_can_say_is_written_as_it_wrote_it() {
    let grant = |serial| LeaseGrant { id: LeaseId(7), serial: LeaseSerial(serial) };
    let written = |command: Command| {
        let mut encoded = BytesMut::new();
        command.encode(&mut encoded);
        assert_eq!(Command::decode(encoded.clone().freeze()), Ok(command));
        encoded.to_vec()
    };
    assert_eq!(written(Command::RaiseVersion(ClusterVersion(4))), [4, 0, 9]);
    assert_eq!(written(Command::RaiseVersion(ClusterVersion(5))), [5, 0, 9]);
    assert!(Command::decode(Bytes::from_static(&[3, 0, 9])).is_err(), "it has no such command");
    assert_eq!(written(Command::ExpireLeases(ClockStart::NONE, vec![grant(0)])), [3, 0, 4, 1, 14]);
    assert_eq!(
        written(Command::CheckpointLeases(ClockStart::NONE, vec![(grant(0), 5)])),
        [3, 0, 5, 1, 14, 10]
    );
    assert_eq!(
        written(Command::ExpireLeases(ClockStart::NONE, vec![grant(0), grant(9)])),
        [4, 0, 4, 2, 14, 0, 14, 9]
    );
    assert_eq!(
        written(Command::CheckpointLeases(ClockStart::NONE, vec![(grant(9), 5)])),
        [4, 0, 5, 1, 14, 9, 10]
    );
    assert_eq!(written(Command::StartClock(ClockOwner { round: 2, node: 3 })), [6, 0, 10, 2, 3]);
    let by = ClockStart(5);
    assert_eq!(written(Command::ExpireLeases(by, vec![grant(9)])), [6, 0, 4, 5, 1, 14, 9]);
    assert_eq!(written(Command::CheckpointLeases(by, vec![(grant(9), 5)])), [6, 0, 5, 5, 1, 14, 9, 10]);
}

#[test]
fn nobody_outside_decides_what_is_in_an_envelope() {
    let close = Command::CloseSession(SessionId(1));
    let timed = Envelope { proposed_ms: Some(1), ..Envelope::default() };
    for proposal in [given(5, 1, close.clone()), Proposal { envelope: timed, command: close }] {
        let mut encoded = BytesMut::new();
        proposal.encode(&mut encoded);
        let encoded = encoded.freeze();
        assert!(Command::decode(encoded.clone()).is_err());
        assert_eq!(Proposal::decode(encoded), Ok(proposal));
    }
}

#[test]
fn revisions_that_cannot_be_given_are_malformed() {
    for (first, count) in [(5, 0), (1, 1), (-1, 1), (i64::MAX, 2)] {
        let mut encoded = BytesMut::new();
        given(first, count, Command::CloseSession(SessionId(1))).encode(&mut encoded);
        assert!(Proposal::decode(encoded.freeze()).is_err(), "{first} {count}");
    }
}

#[test]
fn while_an_older_version_is_in_force_all_is_as_it_was_there() {
    let mut state = Keyspace::new(Options::default());
    let mut effects = Effects::new();
    let mut apply = |state: &mut Keyspace, slot: u64, command: Command| {
        effects.clear();
        state.apply(slot, 0, command, &mut effects);
        state.check_invariants();
        effects.clone()
    };
    let session = SessionId(1);
    let grant = |seq: u64, id: i64| {
        Command::write(session, seq, seq - 1, Route::FIRST, Op::LeaseGrant { id: LeaseId(id), ttl: 60 })
    };
    let slices = |state: &mut Keyspace| {
        let mut snapshot = state.snapshot();
        let slice = snapshot.next_slice(state, usize::MAX).unwrap();
        assert_eq!(snapshot.next_slice(state, usize::MAX), None);
        slice
    };
    let restored = |known: ClusterVersion, slice: Bytes| {
        let mut restore = Restore::upto(known);
        restore.push(slice).and_then(|()| restore.finish())
    };
    apply(&mut state, 1, Command::OpenSession { nonce: 1 });
    apply(&mut state, 2, grant(1, 7));
    assert_eq!((state.version(), serial_of(&state, 7)), (ClusterVersion::FIRST, LeaseSerial::NONE));
    let before = slices(&mut state);
    let copy = restored(ClusterVersion::FIRST, before).unwrap();
    assert_eq!((copy.digest(), copy.version()), (state.digest(), ClusterVersion::FIRST));

    let raised = apply(&mut state, 3, Command::RaiseVersion(ClusterVersion::NEWEST));
    assert_eq!(raised.version_raised, Some(ClusterVersion::NEWEST));
    for lower in [ClusterVersion::NEWEST, ClusterVersion::FIRST] {
        assert_eq!(apply(&mut state, 4, Command::RaiseVersion(lower)).version_raised, None);
    }
    assert_eq!(state.version(), ClusterVersion::NEWEST, "it never falls");
    apply(&mut state, 5, grant(2, 8));
    assert_eq!((serial_of(&state, 7), serial_of(&state, 8)), (LeaseSerial::NONE, LeaseSerial(1)));
    let after = slices(&mut state);
    let copy = restored(ClusterVersion::NEWEST, after.clone()).unwrap();
    assert_eq!((copy.digest(), copy.version()), (state.digest(), ClusterVersion::NEWEST));
    let error = restored(ClusterVersion::FIRST, after).unwrap_err();
    assert_eq!(error.to_string(), "an encoding of version 3, and this Gaios reads version 2");
    // What was granted before ends as it did.
    let old = LeaseGrant { id: LeaseId(7), serial: LeaseSerial::NONE };
    let expired = apply(&mut state, 6, Command::ExpireLeases(ClockStart::NONE, vec![old]));
    assert_eq!(expired.leases, [LeaseEffect::Revoked { id: LeaseId(7) }]);
}

fn serial_of(state: &Keyspace, lease: i64) -> LeaseSerial {
    state.lease(LeaseId(lease)).expect("the lease lives").grant.serial
}
