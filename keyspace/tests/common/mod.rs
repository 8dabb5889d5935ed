//! A keyspace with one session, and short ways to say what etcd's clients say.

#![allow(dead_code, reason = "each test target uses a part")]

use bytes::Bytes;
use keyspace::*;

/// One replica, and the gateway that writes to it.
pub(crate) struct Etcd {
    pub(crate) state: Keyspace,
    pub(crate) session: SessionId,
    pub(crate) slot: u64,
    pub(crate) seq: u64,
    /// Of the last command.
    pub(crate) effects: Effects,
}

impl Etcd {
    pub(crate) fn new() -> Etcd {
        Etcd::with(Limits::default())
    }

    pub(crate) fn with(limits: Limits) -> Etcd {
        Etcd::begin(Options { limits, ..Options::default() })
    }

    pub(crate) fn begin(options: Options) -> Etcd {
        let state = Keyspace::new(options);
        let mut etcd = Etcd { state, session: SessionId::NONE, slot: 0, seq: 0, effects: Effects::new() };
        etcd.apply(Command::RaiseVersion(ClusterVersion::NEWEST)).expect("a version rises");
        etcd.session = etcd.open(1);
        etcd
    }

    pub(crate) fn open(&mut self, nonce: u128) -> SessionId {
        match self.apply(Command::OpenSession { nonce }) {
            Ok(Reply::SessionOpened { session, .. }) => session,
            other => panic!("a session opens, but: {other:?}"),
        }
    }

    pub(crate) fn apply(&mut self, command: impl Into<Proposal>) -> Outcome {
        self.slot += 1;
        self.effects.clear();
        self.state.apply(self.slot, 0, command, &mut self.effects);
        self.state.check_invariants();
        assert_eq!(self.effects.replies.len(), 1, "one answer");
        self.effects.replies[0].outcome.clone()
    }

    pub(crate) fn write(&mut self, op: Op) -> Outcome {
        self.seq += 1;
        self.apply(Command::write(self.session, self.seq, self.seq - 1, Route::FIRST, op))
    }

    pub(crate) fn put(&mut self, key: &str, value: &str) -> PutReply {
        self.put_with(put(key, value)).expect("the put is granted")
    }

    pub(crate) fn put_with(&mut self, put: Put) -> Result<PutReply, Error> {
        let Reply::Put(reply) = self.write(Op::Put(put))? else { panic!("not a put's answer") };
        Ok(reply)
    }

    pub(crate) fn delete(&mut self, range: KeyRange) -> DeleteRangeReply {
        match self.write(Op::DeleteRange(DeleteRange { range, prev_kv: true })) {
            Ok(Reply::DeleteRange(reply)) => reply,
            other => panic!("not a deletion's answer: {other:?}"),
        }
    }

    pub(crate) fn txn(&mut self, txn: Txn) -> Result<TxnReply, Error> {
        check::txn(&txn, check::DEFAULT_MAX_TXN_OPS)?;
        let Reply::Txn(reply) = self.write(Op::Txn(txn))? else { panic!("not a transaction's answer") };
        Ok(reply)
    }

    /// Whether a transaction with these comparisons takes the success branch.
    pub(crate) fn holds(&mut self, compare: Vec<Compare>) -> bool {
        match self.state.query(&Query::Txn(Txn { compare, ..Txn::default() })) {
            Ok(Reply::Txn(reply)) => reply.succeeded,
            other => panic!("not a transaction's answer: {other:?}"),
        }
    }

    pub(crate) fn grant(&mut self, id: i64, ttl: i64) -> Outcome {
        self.write(Op::LeaseGrant { id: LeaseId(id), ttl })
    }

    /// The grant of a lease that lives.
    pub(crate) fn lease(&self, id: i64) -> LeaseGrant {
        self.state.lease(LeaseId(id)).expect("the lease lives").grant
    }

    pub(crate) fn revoke(&mut self, id: i64) -> Outcome {
        self.write(Op::LeaseRevoke { id: LeaseId(id) })
    }

    pub(crate) fn compact(&mut self, revision: i64) -> Outcome {
        self.write(Op::Compact { revision })
    }

    pub(crate) fn range(&self, request: RangeRequest) -> Result<RangeReply, Error> {
        check::range(&request)?;
        let Reply::Range(reply) = self.state.query(&Query::Range(request))? else {
            panic!("not a range's answer")
        };
        Ok(reply)
    }

    pub(crate) fn get(&self, key: &str) -> Option<KeyValue> {
        self.range(RangeRequest::new(one(key))).expect("the latest revision is readable").kvs.pop()
    }

    pub(crate) fn get_at(&self, key: &str, revision: i64) -> Result<Option<KeyValue>, Error> {
        Ok(self.range(RangeRequest { revision, ..RangeRequest::new(one(key)) })?.kvs.pop())
    }

    /// What a watch of a range sees from a revision on, in short: "revision:PUT key=value", events of one revision
    /// joined by " ".
    pub(crate) fn watch(&self, range: KeyRange, from: i64) -> Result<Vec<String>, NoHistory> {
        let page = self.state.history(&range, true, Revision(from).into(), PageLimits::NONE)?;
        assert!(page.next.revision > self.state.resolved().revision(), "one page is enough");
        Ok(page.revisions.iter().map(show).collect())
    }

    pub(crate) fn revision(&self) -> i64 {
        self.state.resolved().revision().0
    }

    /// The state after a snapshot and a restore.
    pub(crate) fn restored(&mut self) -> Keyspace {
        let mut snapshot = self.state.snapshot();
        let mut restore = Restore::new();
        while let Some(slice) = snapshot.next_slice(&self.state, 64) {
            restore.push(slice).expect("the slice is the snapshot's");
        }
        restore.finish().expect("the snapshot is whole")
    }
}

pub(crate) fn show(revision: &RevisionEvents) -> String {
    let events = revision.events.iter().map(|event| {
        assert_eq!(event.kv.mod_revision, revision.revision, "an event is of its revision");
        let prev = event.prev_kv.as_ref().map_or(String::new(), |kv| format!(" (was {})", text(&kv.value)));
        match event.kind {
            EventKind::Put => format!("PUT {}={}{prev}", text(&event.kv.key), text(&event.kv.value)),
            EventKind::Delete => format!("DELETE {}{prev}", text(&event.kv.key)),
        }
    });
    format!("{}: {}", revision.revision, events.collect::<Vec<_>>().join(", "))
}

pub(crate) fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) fn one(key: &str) -> KeyRange {
    KeyRange::single(key.to_owned())
}

pub(crate) fn between(key: &str, end: &str) -> KeyRange {
    KeyRange::from_wire(key.to_owned().into(), end.to_owned().into())
}

pub(crate) fn put(key: &str, value: &str) -> Put {
    Put::new(key.to_owned(), value.to_owned())
}

pub(crate) fn put_op(key: &str, value: &str) -> TxnOp {
    TxnOp::Put(put(key, value))
}

pub(crate) fn delete_op(range: KeyRange) -> TxnOp {
    TxnOp::DeleteRange(DeleteRange { range, prev_kv: false })
}

pub(crate) fn range_op(range: KeyRange) -> TxnOp {
    TxnOp::Range(RangeRequest::new(range))
}

/// A transaction that carries these operations out.
pub(crate) fn then(success: Vec<TxnOp>) -> Txn {
    Txn { success, ..Txn::default() }
}

pub(crate) fn compare(range: KeyRange, result: CompareResult, target: CompareTarget) -> Compare {
    Compare { range, result, target }
}

pub(crate) fn keys(kvs: &[KeyValue]) -> Vec<String> {
    kvs.iter().map(|kv| text(&kv.key)).collect()
}
