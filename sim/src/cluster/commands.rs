//! What simulated clients write: values that tell whose they are.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use consensus_core::Value;
use keyspace::{
    Command, Compare, CompareResult, CompareTarget, DeleteRange, Epoch, KeyRange, LeaseId, Op, Put, Query,
    RangeRequest, Route, SessionId, Txn, TxnOp,
};

use super::rng::digest;

/// Keys of each group.
pub(crate) const KEYS: u8 = 4;

/// One attempt in so many is routed by a map that is older than the shard.
const STALE_EVERY: u32 = 16;

/// One attempt to write a key. The attempts of one write share `client` and `seq`, and differ in `attempt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Write {
    pub(crate) client: u32,
    pub(crate) seq: u32,
    pub(crate) attempt: u32,
    pub(crate) key: u8,
}

impl Write {
    /// The value it writes: no other write writes the same.
    pub(crate) fn value(&self) -> u64 {
        u64::from(self.client) << 32 | u64::from(self.seq)
    }

    /// The command under the client's session.
    pub(crate) fn command(&self, session: SessionId, padding: usize) -> Bytes {
        let mut value = BytesMut::with_capacity(12 + padding);
        value.put_u32(self.client);
        value.put_u32(self.seq);
        value.put_u32(self.attempt);
        // Not zeros: a sector lost to zeros must not look the same.
        value.put_bytes((self.seq as u8) | 1, padding);
        let put = Put { prev_kv: true, ..Put::new(key(self.key), value.freeze()) };
        let seq = u64::from(self.seq);
        // The client has given up what it asked before, or has its answer.
        // Some clients go by an old map, at first.
        let stale = (self.client + self.seq + self.attempt).is_multiple_of(STALE_EVERY);
        let route = if stale { Route { epoch: Epoch(0), ..Route::FIRST } } else { Route::FIRST };
        encode(&Command::write(session, seq, seq - 1, route, Op::Put(put)))
    }

    /// The write that a command of the log is, if a client has written it.
    pub(crate) fn of(command: &Command) -> Option<Write> {
        let Command::Write { op: Op::Put(put), .. } = command else { return None };
        let mut value = put.value.clone();
        let &[key] = put.key.as_ref() else { return None };
        (value.len() >= 12).then(|| Write {
            client: value.get_u32(),
            seq: value.get_u32(),
            attempt: value.get_u32(),
            key,
        })
    }
}

/// What clients change beside their registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Put {
        key: u8,
        /// Attached to the client's lease.
        leased: bool,
    },
    Delete {
        key: u8,
    },
    /// Deletes a key and writes the next one, if it exists; writes it otherwise.
    Move {
        key: u8,
    },
    Grant {
        ttl: i64,
    },
    Revoke,
    Compact {
        revision: i64,
    },
}

impl Change {
    /// The command under the session of `client`.
    pub(crate) fn command(self, session: SessionId, client: u32, seq: u32) -> Bytes {
        let value = Bytes::copy_from_slice(&(u64::from(client) << 32 | u64::from(seq)).to_be_bytes());
        let put = |key| Put { prev_kv: true, ..Put::new(other_key(key), value.clone()) };
        let op = match self {
            Change::Put { key, leased: false } => Op::Put(put(key)),
            Change::Put { key, leased: true } => Op::Put(Put { lease: lease_of(client), ..put(key) }),
            Change::Delete { key } => {
                Op::DeleteRange(DeleteRange { range: KeyRange::single(other_key(key)), prev_kv: true })
            }
            Change::Move { key } => {
                let range = KeyRange::single(other_key(key));
                let (result, target) = (CompareResult::Greater, CompareTarget::Version(0));
                Op::Txn(Txn {
                    compare: vec![Compare { range: range.clone(), result, target }],
                    success: vec![
                        TxnOp::DeleteRange(DeleteRange { range, prev_kv: true }),
                        TxnOp::Put(put(key + 1)),
                    ],
                    failure: vec![TxnOp::Put(put(key))],
                })
            }
            Change::Grant { ttl } => Op::LeaseGrant { id: lease_of(client), ttl },
            Change::Revoke => Op::LeaseRevoke { id: lease_of(client) },
            Change::Compact { revision } => Op::Compact { revision },
        };
        let seq = u64::from(seq);
        encode(&Command::write(session, seq, seq - 1, Route::FIRST, op))
    }
}

/// Each client has one.
pub(crate) fn lease_of(client: u32) -> LeaseId {
    LeaseId(i64::from(client))
}

/// Keys that are no registers.
pub(crate) fn other_keys() -> KeyRange {
    KeyRange::prefix(&b"x"[..])
}

fn other_key(number: u8) -> Bytes {
    Bytes::copy_from_slice(&[b'x', number % KEYS])
}

/// What a read of a range asks.
pub(crate) fn query(range: KeyRange) -> Bytes {
    let mut encoded = BytesMut::new();
    Query::Range(RangeRequest::new(range)).encode(&mut encoded);
    encoded.freeze()
}

/// The range of one register.
pub(crate) fn register(number: u8) -> KeyRange {
    KeyRange::single(key(number))
}

/// [`Write::value`] of what a key holds.
pub(crate) fn value_of(value: &Bytes) -> u64 {
    value.clone().try_get_u64().unwrap_or_default()
}

pub(crate) fn encode(command: &Command) -> Bytes {
    let mut encoded = BytesMut::new();
    command.encode(&mut encoded);
    encoded.freeze()
}

fn key(number: u8) -> Bytes {
    Bytes::copy_from_slice(&[number % KEYS])
}

/// The answer to a write: the revision it has, and what the key held before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) revision: i64,
    pub(crate) before: u64,
}

/// Stands for a value where only equality matters.
pub(crate) fn value_digest(value: &Value) -> u64 {
    match value {
        Value::Noop => 1,
        Value::Batch(commands) => commands.iter().fold(2, |state, command| digest(state, command)),
    }
}
