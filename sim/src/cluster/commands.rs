//! What simulated clients write: values that tell whose they are.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use consensus_core::Value;
use keyspace::{
    Command, Compare, CompareResult, CompareTarget, DeleteRange, KeyRange, LeaseId, Op, Put, Query,
    RangeRequest, Route, SessionId, Txn, TxnOp,
};

use super::rng::digest;

/// Keys of each group, in each family.
pub(crate) const KEYS: u8 = 4;

/// One attempt in so many is routed by an old map.
const STALE_EVERY: u32 = 16;

/// What a group's keys are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// Linearizable registers of clients of nodes.
    Register,
    /// Everything else that these write.
    Other,
    /// Linearizable registers of callers.
    CallersRegister,
    /// Everything else that callers write.
    CallersOther,
}

impl Family {
    pub(crate) const ALL: [Family; 4] =
        [Family::Register, Family::Other, Family::CallersRegister, Family::CallersOther];

    fn letter(self) -> u8 {
        match self {
            Family::Register => b'k',
            Family::Other => b'x',
            Family::CallersRegister => b'r',
            Family::CallersOther => b'g',
        }
    }

    /// The family of a key, and its number there.
    fn of(key: &[u8]) -> Option<(Family, u8)> {
        let &[_, letter, number] = key else { return None };
        Family::ALL.into_iter().find(|family| family.letter() == letter).map(|family| (family, number))
    }

    /// All keys of the family that are those of the group at this place of its domain.
    pub(crate) fn keys(self, place: u8) -> KeyRange {
        KeyRange::prefix(Bytes::copy_from_slice(&[place, self.letter()]))
    }
}

/// A key of the group at this place of its domain.
pub(crate) fn key(place: u8, family: Family, number: u8) -> Bytes {
    Bytes::copy_from_slice(&[place, family.letter(), number % KEYS])
}

/// The same, as a range.
pub(crate) fn single(place: u8, family: Family, number: u8) -> KeyRange {
    KeyRange::single(key(place, family, number))
}

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

    /// What it writes, to the group at this place of its domain.
    pub(crate) fn op(&self, place: u8, padding: usize) -> Op {
        let mut value = BytesMut::with_capacity(12 + padding);
        value.put_u32(self.client);
        value.put_u32(self.seq);
        value.put_u32(self.attempt);
        // Not zeros: a sector lost to zeros must not look the same.
        value.put_bytes((self.seq as u8) | 1, padding);
        Op::Put(Put { prev_kv: true, ..Put::new(key(place, Family::Register, self.key), value.freeze()) })
    }

    /// Some clients go by an old map, at first: by which one.
    pub(crate) fn old_map(&self) -> Option<u32> {
        (self.client + self.seq + self.attempt).is_multiple_of(STALE_EVERY).then_some(self.seq)
    }

    /// The write that a command of the log is, if a client has written it.
    pub(crate) fn of(command: &Command) -> Option<Write> {
        let Command::Write { op: Op::Put(put), .. } = command else { return None };
        let mut value = put.value.clone();
        let Some((Family::Register, key)) = Family::of(&put.key) else { return None };
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
    /// What `client` changes, in the group at this place of its domain.
    pub(crate) fn op(self, place: u8, client: u32, seq: u32) -> Op {
        let value = Bytes::copy_from_slice(&(u64::from(client) << 32 | u64::from(seq)).to_be_bytes());
        let put =
            |number| Put { prev_kv: true, ..Put::new(key(place, Family::Other, number), value.clone()) };
        match self {
            Change::Put { key: number, leased: false } => Op::Put(put(number)),
            Change::Put { key: number, leased: true } => {
                Op::Put(Put { lease: lease_of(client), ..put(number) })
            }
            Change::Delete { key: number } => {
                Op::DeleteRange(DeleteRange { range: single(place, Family::Other, number), prev_kv: true })
            }
            Change::Move { key: number } => {
                let range = single(place, Family::Other, number);
                let (result, target) = (CompareResult::Greater, CompareTarget::Version(0));
                Op::Txn(Txn {
                    compare: vec![Compare { range: range.clone(), result, target }],
                    success: vec![
                        TxnOp::DeleteRange(DeleteRange { range, prev_kv: true }),
                        TxnOp::Put(put(number + 1)),
                    ],
                    failure: vec![TxnOp::Put(put(number))],
                })
            }
            Change::Grant { ttl } => Op::LeaseGrant { id: lease_of(client), ttl },
            Change::Revoke => Op::LeaseRevoke { id: lease_of(client) },
            Change::Compact { revision } => Op::Compact { revision },
        }
    }
}

/// Each client has one.
pub(crate) fn lease_of(client: u32) -> LeaseId {
    LeaseId(i64::from(client))
}

/// A client's command under its session. It has given up what it asked before, or has its answer.
pub(crate) fn command(session: SessionId, seq: u32, route: Route, op: Op) -> Bytes {
    let seq = u64::from(seq);
    encode(&Command::write(session, seq, seq - 1, route, op))
}

/// Whether all keys of a range, and there are some, have been written again since their creation.
pub(crate) fn is_rewritten(range: KeyRange) -> Compare {
    Compare { range, result: CompareResult::Greater, target: CompareTarget::Version(1) }
}

/// What a read of a range asks.
pub(crate) fn query(range: KeyRange) -> Bytes {
    let mut encoded = BytesMut::new();
    Query::Range(RangeRequest::new(range)).encode(&mut encoded);
    encoded.freeze()
}

/// [`Write::value`] of what a key holds.
pub(crate) fn value_of(value: &Bytes) -> u64 {
    value.clone().try_get_u64().unwrap_or_default()
}

fn encode(command: &Command) -> Bytes {
    let mut encoded = BytesMut::new();
    command.encode(&mut encoded);
    encoded.freeze()
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
