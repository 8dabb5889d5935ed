//! Requests of clients, from their bytes to the answer's: decoded as gRPC does, checked at the door, carried through the
//! log's codec and applied to a keyspace. Nothing may panic, two replicas must stay equal, and what a snapshot restores
//! must be equal too.

#![no_main]

use api::etcdserverpb as pb;
use bytes::{Buf, Bytes, BytesMut};
use gateway::door::convert;
use keyspace::{Command, Effects, Keyspace, LeaseId, Op, Options, Query, Restore, Route, SessionId, check};
use libfuzzer_sys::fuzz_target;
use prost::Message as _;

fuzz_target!(|data: &[u8]| {
    let mut data = data;
    let mut replicas = [Keyspace::new(Options::default()), Keyspace::new(Options::default())];
    let mut effects = Effects::new();
    apply(&mut replicas, &mut effects, 1, &Command::OpenSession { nonce: 7 });
    let mut slot = 1;
    while data.len() >= 3 {
        let kind = data.get_u8();
        let length = usize::from(data.get_u16_le()).min(data.len());
        let (request, rest) = data.split_at(length);
        data = rest;
        slot += 1;
        match operation(kind, request) {
            Some(Work::Write(op)) => {
                let command = Command::write(SessionId(1), slot, slot - 1, Route::FIRST, op);
                apply(&mut replicas, &mut effects, slot, &command);
            }
            Some(Work::Read(query)) => {
                let mut encoded = BytesMut::new();
                query.encode(&mut encoded);
                let query = Query::decode(encoded.freeze()).expect("what is encoded decodes");
                assert_eq!(replicas[0].query(&query), replicas[1].query(&query));
            }
            None => {}
        }
    }
    let mut snapshot = replicas[0].snapshot();
    let mut restore = Restore::new();
    while let Some(slice) = snapshot.next_slice(&replicas[0], 1024) {
        restore.push(slice).expect("an undamaged slice");
    }
    let restored = restore.finish().expect("a whole snapshot");
    assert_eq!(restored.digest(), replicas[1].digest());
    restored.check_invariants();
});

enum Work {
    Write(Op),
    Read(Query),
}

/// What the door makes of a request; `None` when it refuses it.
fn operation(kind: u8, request: &[u8]) -> Option<Work> {
    let request = Bytes::copy_from_slice(request);
    match kind % 8 {
        0 => {
            let range = convert::range(pb::RangeRequest::decode(request).ok()?);
            check::range(&range).ok()?;
            Some(Work::Read(Query::Range(range)))
        }
        1 => {
            let put = convert::put(pb::PutRequest::decode(request).ok()?);
            check::put(&put).ok()?;
            Some(Work::Write(Op::Put(put)))
        }
        2 => {
            let delete = convert::delete_range(pb::DeleteRangeRequest::decode(request).ok()?);
            check::delete_range(&delete).ok()?;
            Some(Work::Write(Op::DeleteRange(delete)))
        }
        3 | 4 => {
            let txn = convert::txn(pb::TxnRequest::decode(request).ok()?);
            check::txn(&txn, check::DEFAULT_MAX_TXN_OPS).ok()?;
            if txn.is_read_only() { Some(Work::Read(Query::Txn(txn))) } else { Some(Work::Write(Op::Txn(txn))) }
        }
        5 => {
            let compact = pb::CompactionRequest::decode(request).ok()?;
            Some(Work::Write(Op::Compact { revision: compact.revision }))
        }
        6 => {
            let grant = pb::LeaseGrantRequest::decode(request).ok()?;
            let id = LeaseId(if grant.id == 0 { 1 } else { grant.id });
            Some(Work::Write(Op::LeaseGrant { id, ttl: grant.ttl.clamp(2, keyspace::MAX_LEASE_TTL_S) }))
        }
        _ => {
            let revoke = pb::LeaseRevokeRequest::decode(request).ok()?;
            Some(Work::Write(Op::LeaseRevoke { id: LeaseId(revoke.id) }))
        }
    }
}

fn apply(replicas: &mut [Keyspace; 2], effects: &mut Effects, slot: u64, command: &Command) {
    let mut encoded = BytesMut::new();
    command.encode(&mut encoded);
    let encoded = encoded.freeze();
    for replica in replicas.iter_mut() {
        effects.clear();
        let command = Command::decode(encoded.clone()).expect("what is encoded decodes");
        replica.apply(slot, 0, command, effects);
        for answer in &effects.replies {
            let mut out = BytesMut::new();
            keyspace::encode_outcome(&answer.outcome, &mut out);
            assert_eq!(keyspace::decode_outcome(out.freeze()).as_ref(), Ok(&answer.outcome));
        }
    }
    assert_eq!(replicas[0].digest(), replicas[1].digest());
}
