//! The state machine against the model, on random requests.

mod generate;
mod model;

use bytes::{Bytes, BytesMut};
use keyspace::*;
use model::Model;
use proptest::{collection::vec, prelude::*};

/// A replica with one session that writes.
struct Replica {
    state: Keyspace,
    slot: u64,
    seq: u64,
    session: SessionId,
}

impl Replica {
    fn new() -> Replica {
        let mut replica =
            Replica { state: Keyspace::new(Options::default()), slot: 0, seq: 0, session: SessionId::NONE };
        let effects = replica.apply(Command::OpenSession { nonce: 9 });
        let Ok(Reply::SessionOpened { session, .. }) = effects.replies[0].outcome else {
            panic!("not opened")
        };
        replica.session = session;
        replica
    }

    fn apply(&mut self, command: Command) -> Effects {
        self.slot += 1;
        let mut effects = Effects::new();
        self.state.apply(self.slot, 0, command, &mut effects);
        effects
    }

    /// Most compactions drawn would be of the past or of the future; half of them get a revision near the present.
    fn aim(&self, op: Op) -> Op {
        if let Op::Compact { revision } = op
            && revision >= 20
        {
            return Op::Compact { revision: self.state.resolved().revision().0 - revision % 5 };
        }
        op
    }

    fn write(&mut self, op: Op) -> Effects {
        self.seq += 1;
        self.apply(Command::write(self.session, self.seq, self.seq - 1, Route::FIRST, op))
    }
}

fn restore(state: &mut Keyspace, slice_len: usize) -> Keyspace {
    let mut snapshot = state.snapshot();
    let mut restore = Restore::new();
    while let Some(slice) = snapshot.next_slice(state, slice_len) {
        restore.push(slice).expect("the slice is the snapshot's");
    }
    restore.finish().expect("the snapshot is whole")
}

/// The feed, read in pages that end within these limits, wherever that is.
fn whole_feed(state: &Keyspace, range: &KeyRange, from: i64, limits: PageLimits) -> Vec<(i64, Vec<Event>)> {
    let mut feed = Vec::<(i64, Vec<Event>)>::new();
    let mut next = FeedPlace::from(Revision(from));
    while next.revision <= state.resolved().revision() {
        let page = state.history(range, true, next, limits).expect("nothing below is asked for");
        assert!(page.next > next, "a page goes forward");
        assert!(page.looked_at <= limits.looked_at.max(1));
        let (mut events, mut bytes) = (0, 0);
        for revision in &page.revisions {
            assert!(revision.revision >= next.revision && revision.revision <= page.next.revision);
            assert!(!revision.events.is_empty());
            events += revision.events.len();
            bytes += revision.events.iter().map(Event::size_bytes).sum::<usize>();
            let number = revision.revision.0;
            match feed.last_mut().filter(|(last, _)| *last == number) {
                Some((_, before)) => {
                    assert!(next.is_inside() && revision.revision == next.revision, "torn nowhere else");
                    before.extend_from_slice(&revision.events);
                }
                None => feed.push((number, revision.events.to_vec())),
            }
        }
        assert!(
            events <= limits.events.max(1) && (bytes <= limits.bytes || events == 1),
            "within its limits"
        );
        next = page.next;
    }
    feed
}

/// Whether the door lets a request pass, by the model.
fn passes_the_door(op: &Op) -> bool {
    match op {
        Op::Txn(txn) => model::writes(&txn.success).is_some() && model::writes(&txn.failure).is_some(),
        Op::Put(_)
        | Op::DeleteRange(_)
        | Op::Compact { .. }
        | Op::LeaseGrant { .. }
        | Op::LeaseRevoke { .. }
        | Op::AlarmActivate { .. }
        | Op::AlarmDeactivate { .. } => true,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn answers_reads_and_feeds_are_the_models(
        ops in vec(generate::op(), 1..60),
        reads in vec(generate::range_request(), 8),
        watched in vec(generate::range(), 3),
        limits in (0_usize..400, 0_usize..4, 0_usize..9),
    ) {
        let limits = PageLimits { bytes: limits.0, events: limits.1, looked_at: limits.2 };
        let mut replica = Replica::new();
        let mut model = Model::new();
        let mut live = Vec::<(i64, Vec<Event>)>::new();
        for op in ops {
            let op = replica.aim(op);
            let passes = passes_the_door(&op);
            prop_assert_eq!(check::op(&op, 128), if passes { Ok(()) } else { Err(Error::DuplicateKey) });
            if !passes {
                continue;
            }
            let before = model.history.len();
            let was_compaction = matches!(op, Op::Compact { .. });
            let expected = model.perform(&op);
            let effects = replica.write(op);
            prop_assert_eq!(&effects.replies[0].outcome, &expected);
            replica.state.check_invariants();

            // What watchers are told at once is what history tells them later.
            if !was_compaction {
                let changed = model.history.len() > before;
                prop_assert_eq!(effects.revisions.len(), usize::from(changed));
                for revision in &effects.revisions {
                    prop_assert_eq!(revision.revision, replica.state.resolved().revision());
                    live.push((revision.revision.0, revision.events.to_vec()));
                }
            }
        }
        let state = &replica.state;
        prop_assert_eq!(state.resolved().revision().0, model.revision);
        prop_assert_eq!(state.compact_revision().0, model.compacted);
        prop_assert_eq!(state.size_bytes(), model.size_bytes());
        prop_assert_eq!(state.status().size_in_use_bytes, model.size_bytes());
        for read in reads {
            let reply = state.query(&Query::Range(read.clone()));
            prop_assert_eq!(reply, model.range(&read, model.revision).map(Reply::Range));
        }
        for range in watched {
            for from in -1..=model.revision + 2 {
                match model.feed(&range, from) {
                    Some(feed) => prop_assert_eq!(whole_feed(state, &range, from, limits), feed),
                    None => prop_assert_eq!(
                        state.history(&range, true, Revision(from).into(), limits),
                        Err(NoHistory::Compacted(Revision(model.compacted)))
                    ),
                }
            }
        }
        // Above the compact revision, live events are those of the feed, but for values that compaction took.
        let after = model.compacted + 2;
        let feed: Vec<_> = whole_feed(state, &KeyRange::all(), after.max(1), limits);
        let live: Vec<_> = live.into_iter().filter(|(revision, _)| *revision >= after).collect();
        prop_assert_eq!(feed, live);
        for id in [-7, 1, 2, 3] {
            let Ok(Reply::LeaseTimeToLive(reply)) =
                state.query(&Query::LeaseTimeToLive { id: LeaseId(id), keys: true }) else { panic!("no answer") };
            prop_assert_eq!(reply.granted_ttl, model.leases.get(&id).copied().unwrap_or(0));
            prop_assert_eq!(reply.ttl, model.leases.get(&id).copied().unwrap_or(-1));
            prop_assert_eq!(reply.keys, model.lease_keys(id));
        }
    }

    #[test]
    fn replicas_agree_however_they_got_there(
        ops in vec(generate::op(), 1..60),
        sweeps in vec(0_usize..50, 40),
        restore_at in 0_usize..40,
        slice_len in 1_usize..400,
    ) {
        let mut one = Replica::new();
        let mut other = Replica::new();
        for (step, op) in ops.into_iter().filter(passes_the_door).enumerate() {
            let op = one.aim(op);
            let effects = one.write(op.clone());
            let same = other.write(op);
            prop_assert_eq!(&effects.replies, &same.replies);
            prop_assert_eq!(&effects.revisions, &same.revisions);
            // Sweeping when it likes, and beginning anew from a snapshot, changes nothing that can be seen.
            other.state.sweep(sweeps[step % sweeps.len()]);
            if step == restore_at {
                other.state = restore(&mut other.state, slice_len);
                other.state.check_invariants();
            }
            prop_assert_eq!(one.state.digest(), other.state.digest());
            prop_assert_eq!(one.state.size_bytes(), other.state.size_bytes());
            let (oldest, newest) = (one.state.compact_revision().0.max(1), one.state.resolved().revision().0);
            for revision in oldest..=newest {
                prop_assert_eq!(one.state.hash_kv(Revision(revision)), other.state.hash_kv(Revision(revision)));
            }
        }
        prop_assert_eq!(one.state.status(), other.state.status());
    }

    #[test]
    fn a_snapshot_is_of_its_slot_however_the_state_moves_on(
        before in vec(generate::op(), 1..50),
        during in vec(generate::op(), 1..60),
        slice_len in 1_usize..300,
        writes_per_slice in 0_usize..4,
    ) {
        let mut replica = Replica::new();
        for op in before.into_iter().filter(passes_the_door) {
            replica.write(replica.aim(op));
        }
        let mut still = restore(&mut replica.state, 1 << 20);
        let (slot, digest) = (replica.state.applied(), replica.state.digest());
        let mut during = during.into_iter().filter(passes_the_door);
        let mut snapshot = replica.state.snapshot();
        prop_assert_eq!((snapshot.slot(), snapshot.digest()), (slot, digest));
        let mut restore = Restore::new();
        while let Some(slice) = snapshot.next_slice(&replica.state, slice_len) {
            restore.push(slice).unwrap();
            for op in during.by_ref().take(writes_per_slice) {
                replica.write(replica.aim(op));
                replica.state.sweep(100);
            }
        }
        drop(snapshot);
        let mut restored = restore.finish().unwrap();
        restored.check_invariants();
        prop_assert_eq!(restored.applied(), slot);
        prop_assert_eq!(restored.digest(), digest);
        prop_assert_eq!(restored.status(), still.status());
        // The two go on alike, feeds and stored results included.
        let from = restored.compact_revision().0.max(0);
        prop_assert_eq!(
            whole_feed(&restored, &KeyRange::all(), from, PageLimits::NONE),
            whole_feed(&still, &KeyRange::all(), from, PageLimits { events: 3, ..PageLimits::NONE })
        );
        let revision = restored.resolved().revision().0;
        for state in [&mut restored, &mut still] {
            let mut effects = Effects::new();
            let op = Op::Compact { revision };
            let session = replica.session;
            let seq = replica.seq + 100;
            state.apply(slot + 1, 0, Command::write(session, seq, 0, Route::FIRST, op), &mut effects);
        }
        prop_assert_eq!(restored.digest(), still.digest());
        restored.check_invariants();
        replica.state.sweep(usize::MAX);
        replica.state.check_invariants();
    }

    #[test]
    fn transactions_pass_the_door_by_etcds_rule(txn in generate::txn()) {
        let passes = model::writes(&txn.success).is_some() && model::writes(&txn.failure).is_some();
        prop_assert_eq!(check::txn(&txn, 128), if passes { Ok(()) } else { Err(Error::DuplicateKey) });
    }

    #[test]
    fn commands_survive_the_codec(command in generate::command(), envelope in generate::envelope()) {
        let mut bytes = BytesMut::new();
        command.encode(&mut bytes);
        prop_assert_eq!(Command::decode(bytes.freeze()), Ok(command.clone()));
        let proposal = Proposal { envelope, command };
        let mut bytes = BytesMut::new();
        proposal.encode(&mut bytes);
        let bytes = bytes.freeze();
        prop_assert_eq!(Proposal::decode(bytes.clone()), Ok(proposal.clone()));
        // No prefix is taken for the whole, and nothing may follow.
        for len in 0..bytes.len() {
            prop_assert!(Proposal::decode(bytes.slice(..len)).is_err());
        }
        prop_assert!(Proposal::decode([&bytes[..], b"\0"].concat().into()).is_err());
        if let Command::Write { op, .. } = proposal.command {
            let mut encoded_op = BytesMut::new();
            op.encode(&mut encoded_op);
            prop_assert_eq!(Op::decode(encoded_op.freeze()), Ok(op));
        }
    }

    #[test]
    fn queries_survive_the_codec(request in generate::range_request(), revision in any::<i64>(), keys in any::<bool>()) {
        let txn = Txn { success: vec![TxnOp::Range(request.clone())], ..Txn::default() };
        let id = LeaseId(revision);
        let RangeRequest { range, limit, keys_only, .. } = request.clone();
        let (limit, bytes) = (limit.cast_unsigned(), revision.cast_unsigned());
        let list = ListRequest { range: range.clone(), revision, limit, keys_only, bytes };
        for query in [
            Query::List(list),
            Query::Page(PageRequest { range, revision, limit, bytes, keys_only, counts_rest: keys }),
            Query::Range(request),
            Query::Txn(txn),
            Query::LeaseTimeToLive { id, keys },
            Query::Leases,
            Query::HashKv { revision },
            Query::Status,
            Query::Alarms,
        ] {
            let mut bytes = BytesMut::new();
            query.encode(&mut bytes);
            prop_assert_eq!(Query::decode(bytes.freeze()), Ok(query));
        }
    }

    #[test]
    fn answers_and_events_survive_the_codec(ops in vec(generate::op(), 1..30), reads in vec(generate::range_request(), 3)) {
        let mut replica = Replica::new();
        let mut outcomes = Vec::new();
        let mut revisions = Vec::new();
        for op in ops.into_iter().filter(passes_the_door) {
            let effects = replica.write(op);
            outcomes.push(effects.replies[0].outcome.clone());
            revisions.extend(effects.revisions.iter().cloned());
            for revision in effects.revisions {
                let mut bytes = BytesMut::new();
                revision.encode(&mut bytes);
                prop_assert_eq!(RevisionEvents::decode(bytes.freeze()), Ok(revision));
            }
        }
        let mut bytes = BytesMut::new();
        RevisionEvents::encode_all(&revisions, &mut bytes);
        prop_assert_eq!(RevisionEvents::decode_all(bytes.freeze()), Ok(revisions));
        let state = &replica.state;
        outcomes.extend(reads.into_iter().map(|read| state.query(&Query::Range(read))));
        outcomes.extend(
            [Query::Leases, Query::Status, Query::Alarms, Query::HashKv { revision: 0 }]
                .iter()
                .map(|query| state.query(query)),
        );
        let range = KeyRange::all();
        let list = ListRequest { range, revision: 0, limit: 1, keys_only: false, bytes: 0 };
        outcomes.push(state.query(&Query::List(list)));
        for id in [-7, 1, 2, 3].map(LeaseId) {
            outcomes.push(state.query(&Query::LeaseTimeToLive { id, keys: true }));
        }
        for outcome in outcomes {
            let mut bytes = BytesMut::new();
            encode_outcome(&outcome, &mut bytes);
            let bytes = bytes.freeze();
            prop_assert_eq!(decode_outcome(bytes.clone()), Ok(outcome));
            for len in 0..bytes.len() {
                prop_assert!(decode_outcome(bytes.slice(..len)).is_err());
            }
        }
    }

    #[test]
    fn garbage_never_panics(mut bytes in vec(any::<u8>(), 0..200), versioned in any::<bool>()) {
        if versioned && let Some(first) = bytes.first_mut() {
            *first = 1;
        }
        let bytes = Bytes::from(bytes);
        let _read = Proposal::decode(bytes.clone());
        let _read = Op::decode(bytes.clone());
        let _read = Query::decode(bytes.clone());
        let _read = decode_outcome(bytes.clone());
        let _read = RevisionEvents::decode(bytes.clone());
        let _read = RevisionEvents::decode_all(bytes.clone());
        let mut restore = Restore::new();
        let _read = restore.push(bytes).and_then(|()| restore.finish().map(drop));
    }

    #[test]
    fn damaged_snapshots_are_refused(
        ops in vec(generate::op(), 5..30),
        place in any::<prop::sample::Index>(),
        bit in 0..8,
    ) {
        let mut replica = Replica::new();
        for op in ops.into_iter().filter(passes_the_door) {
            replica.write(op);
        }
        let digest = replica.state.digest();
        let mut snapshot = replica.state.snapshot();
        let slice = snapshot.next_slice(&replica.state, usize::MAX).unwrap();
        prop_assert!(snapshot.next_slice(&replica.state, usize::MAX).is_none());
        let mut damaged = slice.to_vec();
        damaged[place.index(slice.len())] ^= 1_u8 << bit;
        let mut restore = Restore::new();
        // The slot is in no digest, and what a stored result says is in it by kind and revision alone; that and
        // whether slices arrive unharmed is the business of whoever carries them.
        if let Ok(restored) = restore.push(damaged.into()).and_then(|()| restore.finish()) {
            prop_assert_eq!(restored.digest(), digest);
            restored.check_invariants();
        }
    }
}
