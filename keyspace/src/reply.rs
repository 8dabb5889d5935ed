//! What the state machine answers.

use bytes::Bytes;

use crate::{Alarm, Error, KeyValue, LeaseId, Revision, SessionId};

/// The answer to a command or a query.
pub type Outcome = Result<Reply, Error>;

/// A granted request. Each carries the revision for the response header ([`Reply::revision`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// To [`crate::Query::Range`].
    Range(RangeReply),
    /// To [`crate::Op::Put`].
    Put(PutReply),
    /// To [`crate::Op::DeleteRange`].
    DeleteRange(DeleteRangeReply),
    /// To [`crate::Op::Txn`] and [`crate::Query::Txn`].
    Txn(TxnReply),
    /// To [`crate::Op::Compact`].
    Compacted {
        /// The current revision.
        revision: Revision,
    },
    /// To [`crate::Op::LeaseGrant`].
    LeaseGranted {
        /// The current revision.
        revision: Revision,
        /// The new lease.
        id: LeaseId,
        /// Its time to live in seconds.
        ttl: i64,
    },
    /// To [`crate::Op::LeaseRevoke`].
    LeaseRevoked {
        /// The revision that deleted the lease's keys, or the current one if it had none.
        revision: Revision,
    },
    /// To [`crate::Query::LeaseTimeToLive`].
    LeaseTimeToLive(LeaseTimeToLiveReply),
    /// To [`crate::Query::Leases`].
    Leases {
        /// The current revision.
        revision: Revision,
        /// Every lease, in the order of ids.
        leases: Vec<LeaseId>,
    },
    /// To [`crate::Query::HashKv`].
    HashKv(HashKvReply),
    /// To [`crate::Query::Status`].
    Status(StatusReply),
    /// To [`crate::Query::Alarms`]: all. To [`crate::Op::AlarmActivate`] and [`crate::Op::AlarmDeactivate`]: the one
    /// that the request was about, or none if there was nothing to take back.
    Alarms {
        /// The current revision.
        revision: Revision,
        /// The alarms.
        alarms: Vec<Alarm>,
    },
    /// To [`crate::Command::OpenSession`].
    SessionOpened {
        /// The current revision.
        revision: Revision,
        /// The session's id, never given twice.
        session: SessionId,
    },
    /// To [`crate::Query::List`], if it is too long.
    Measured(MeasuredReply),
    /// To commands that have nothing to tell.
    Done {
        /// The current revision.
        revision: Revision,
    },
}

impl Reply {
    /// The revision for the response header.
    pub fn revision(&self) -> Revision {
        match self {
            Reply::Range(reply) => reply.revision,
            Reply::Measured(reply) => reply.revision,
            Reply::Put(reply) => reply.revision,
            Reply::DeleteRange(reply) => reply.revision,
            Reply::Txn(reply) => reply.revision,
            Reply::LeaseTimeToLive(reply) => reply.revision,
            Reply::HashKv(reply) => reply.revision,
            Reply::Status(reply) => reply.revision,
            Reply::Compacted { revision }
            | Reply::LeaseGranted { revision, .. }
            | Reply::LeaseRevoked { revision }
            | Reply::Leases { revision, .. }
            | Reply::Alarms { revision, .. }
            | Reply::SessionOpened { revision, .. }
            | Reply::Done { revision } => *revision,
        }
    }

    /// What it holds besides a few numbers, in memory, in bytes; the same whatever the machine.
    pub(crate) fn held_bytes(&self) -> usize {
        match self {
            Reply::Range(reply) => held_by(&reply.kvs),
            Reply::Put(reply) => held_by(&reply.prev_kv),
            Reply::DeleteRange(reply) => held_by(&reply.prev_kvs),
            Reply::Txn(reply) => held_by_txn(reply),
            Reply::LeaseTimeToLive(reply) => reply.keys.iter().map(|key| ENTRY_BYTES + key.len()).sum(),
            Reply::Leases { leases, .. } => leases.len() * LEASE_BYTES_MAX,
            Reply::HashKv(_)
            | Reply::Measured(_)
            | Reply::Status(_)
            | Reply::Compacted { .. }
            | Reply::LeaseGranted { .. }
            | Reply::LeaseRevoked { .. }
            | Reply::Alarms { .. }
            | Reply::SessionOpened { .. }
            | Reply::Done { .. } => 0,
        }
    }

    /// Whether it may take more than `bytes` when it is encoded, apart from what each operation of a transaction takes besides
    /// keys and values. Looks no further than it must.
    pub fn holds_more_than(&self, bytes: usize) -> bool {
        let mut left = Some(bytes);
        match self {
            Reply::Range(reply) => take_all(&mut left, &reply.kvs),
            Reply::Put(reply) => take_all(&mut left, &reply.prev_kv),
            Reply::DeleteRange(reply) => take_all(&mut left, &reply.prev_kvs),
            Reply::Txn(reply) => take_txn(&mut left, reply),
            Reply::LeaseTimeToLive(reply) => {
                let lengths = reply.keys.iter().map(|key| key.len() + size_of::<u32>()).sum();
                left = left.and_then(|left| left.checked_sub(lengths));
            }
            Reply::Leases { leases, .. } => {
                left = left.and_then(|left| left.checked_sub(leases.len() * LEASE_BYTES_MAX));
            }
            Reply::HashKv(_)
            | Reply::Measured(_)
            | Reply::Status(_)
            | Reply::Compacted { .. }
            | Reply::LeaseGranted { .. }
            | Reply::LeaseRevoked { .. }
            | Reply::Alarms { .. }
            | Reply::SessionOpened { .. }
            | Reply::Done { .. } => {}
        }
        left.is_none()
    }
}

/// What a key with its value, or an operation's answer, takes in memory beside what it holds.
const ENTRY_BYTES: usize = 96;
/// A lease's number, encoded.
const LEASE_BYTES_MAX: usize = 10;
/// What is encoded with a key and its value, at most: two lengths, and four numbers.
const NUMBERS_BYTES_MAX: usize = 48;

/// Takes what keys and values hold off the bytes that are left, until none are.
fn take_all<'a>(left: &mut Option<usize>, kvs: impl IntoIterator<Item = &'a KeyValue>) {
    for kv in kvs {
        *left = left.and_then(|left| left.checked_sub(kv.key.len() + kv.value.len() + NUMBERS_BYTES_MAX));
        if left.is_none() {
            return;
        }
    }
}

fn held_by<'a>(kvs: impl IntoIterator<Item = &'a KeyValue>) -> usize {
    kvs.into_iter().map(|kv| ENTRY_BYTES + kv.key.len() + kv.value.len()).sum()
}

fn held_by_txn(reply: &TxnReply) -> usize {
    let of_response = |response: &TxnOpReply| match response {
        TxnOpReply::Range(reply) => held_by(&reply.kvs),
        TxnOpReply::Put(reply) => held_by(&reply.prev_kv),
        TxnOpReply::DeleteRange(reply) => held_by(&reply.prev_kvs),
        TxnOpReply::Txn(reply) => held_by_txn(reply),
    };
    reply.responses.iter().map(|response| ENTRY_BYTES + of_response(response)).sum()
}

fn take_txn(left: &mut Option<usize>, reply: &TxnReply) {
    for response in &reply.responses {
        match response {
            TxnOpReply::Range(reply) => take_all(left, &reply.kvs),
            TxnOpReply::Put(reply) => take_all(left, &reply.prev_kv),
            TxnOpReply::DeleteRange(reply) => take_all(left, &reply.prev_kvs),
            TxnOpReply::Txn(reply) => take_txn(left, reply),
        }
    }
}

/// Keys read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeReply {
    /// The current revision, also when an older one was read.
    pub revision: Revision,
    /// The keys found.
    pub kvs: Vec<KeyValue>,
    /// Whether the limit cut keys off.
    pub more: bool,
    /// How many keys the range holds, before limit and revision filters.
    pub count: i64,
}

/// What [`RangeReply`] would tell, and how long it would be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeasuredReply {
    /// The current revision, also when an older one was read.
    pub revision: Revision,
    /// How many keys it would show.
    pub shown: u64,
    /// How long these are, in bytes, as [`wire_len`] measures them.
    pub bytes: u64,
    /// Whether the limit cuts keys off.
    pub more: bool,
    /// How many keys the range holds, before the limit.
    pub count: i64,
}

/// How many bytes an entry takes in etcd's answer to a range, with its tag and length, or what is left of it without
/// its value. Whoever passes on a long answer in pieces has to state its length ahead.
pub fn wire_len(kv: &KeyValue, keys_only: bool) -> usize {
    let bytes = |bytes: &Bytes| match bytes.len() {
        0 => 0,
        length => 1 + varint_len(length as u64) + length,
    };
    let number = |number: i64| match number {
        0 => 0,
        number => 1 + varint_len(number.cast_unsigned()),
    };
    let value = if keys_only { 0 } else { bytes(&kv.value) };
    let numbers = [kv.create_revision.0, kv.mod_revision.0, kv.version, kv.lease.0];
    let length = bytes(&kv.key) + value + numbers.into_iter().map(number).sum::<usize>();
    1 + varint_len(length as u64) + length
}

/// Seven bits to a byte, and one byte at least.
fn varint_len(number: u64) -> usize {
    (u64::BITS - (number | 1).leading_zeros()).div_ceil(7) as usize
}

/// A key written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutReply {
    /// The put's revision.
    pub revision: Revision,
    /// What was there before, if asked for.
    pub prev_kv: Option<KeyValue>,
}

/// Keys deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteRangeReply {
    /// The deletion's revision, or the current one if nothing was deleted.
    pub revision: Revision,
    /// How many keys were deleted.
    pub deleted: i64,
    /// What they held, if asked for.
    pub prev_kvs: Vec<KeyValue>,
}

/// A transaction carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnReply {
    /// The transaction's revision, or the current one if it changed nothing. For a nested transaction, the revision
    /// as of its end.
    pub revision: Revision,
    /// Whether the comparisons held.
    pub succeeded: bool,
    /// One answer per operation of the branch taken.
    pub responses: Vec<TxnOpReply>,
}

/// The answer to one operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnOpReply {
    /// To a range.
    Range(RangeReply),
    /// To a put.
    Put(PutReply),
    /// To a deletion.
    DeleteRange(DeleteRangeReply),
    /// To a nested transaction.
    Txn(TxnReply),
}

/// What is known of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseTimeToLiveReply {
    /// The current revision.
    pub revision: Revision,
    /// The lease.
    pub id: LeaseId,
    /// Seconds left as of the last checkpoint, or the granted time if there was none; −1 if there is no such lease.
    pub ttl: i64,
    /// Seconds granted; 0 if there is no such lease.
    pub granted_ttl: i64,
    /// The keys attached, sorted, if asked for.
    pub keys: Vec<Bytes>,
}

/// A hash over history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashKvReply {
    /// The current revision.
    pub revision: Revision,
    /// Equal on all replicas at equal `hash_revision` and `compact_revision`.
    pub hash: u32,
    /// The compact revision.
    pub compact_revision: Revision,
    /// The revision up to which was hashed.
    pub hash_revision: Revision,
}

/// Sizes and positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusReply {
    /// The current revision.
    pub revision: Revision,
    /// The compact revision; −1 before the first compaction.
    pub compact_revision: Revision,
    /// The last slot applied.
    pub applied: u64,
    /// Bytes held, by the logical size of the data.
    pub size_bytes: u64,
    /// What etcd's database holds without its free pages, history included. Nothing here is free: equal to `size_bytes`.
    pub size_in_use_bytes: u64,
    /// The quota; `size_bytes` may not grow beyond it.
    pub quota_bytes: u64,
    /// How many keys exist.
    pub keys: u64,
    /// How many leases exist.
    pub leases: u64,
    /// How many sessions are open.
    pub sessions: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(values: &[usize]) -> RangeReply {
        let kv = |length: &usize| KeyValue { value: vec![0; *length].into(), ..KeyValue::default() };
        RangeReply { revision: Revision(1), kvs: values.iter().map(kv).collect(), more: false, count: 0 }
    }

    #[test]
    fn a_reply_knows_whether_it_is_large() {
        let two = 2 * NUMBERS_BYTES_MAX;
        assert!(Reply::Range(range(&[40, 61])).holds_more_than(two + 100));
        assert!(!Reply::Range(range(&[40, 60])).holds_more_than(two + 100));
        let nested = TxnReply {
            revision: Revision(1),
            succeeded: true,
            responses: vec![TxnOpReply::Range(range(&[60]))],
        };
        let responses = vec![TxnOpReply::Txn(nested), TxnOpReply::Range(range(&[41]))];
        let txn = Reply::Txn(TxnReply { revision: Revision(1), succeeded: true, responses });
        assert!(txn.holds_more_than(two + 100));
        assert!(!txn.holds_more_than(two + 101));
    }

    #[test]
    fn what_is_not_large_is_short_however_many_keys_it_has() {
        let longest = KeyValue {
            key: Bytes::from_static(b"k"),
            create_revision: Revision(i64::MAX),
            mod_revision: Revision(i64::MAX),
            version: i64::MAX,
            lease: crate::LeaseId(i64::MIN),
            ..KeyValue::default()
        };
        for length in [0, 100, 1 << 20] {
            let kv = KeyValue { value: vec![0; length].into(), ..longest.clone() };
            let reply = RangeReply { revision: Revision(1), kvs: vec![kv; 5], more: false, count: 0 };
            let reply = Reply::Range(reply);
            let encoded = crate::outcome_len(&Ok(reply.clone()));
            assert!(reply.holds_more_than(encoded - 16), "{length}");
        }
        let leases = Reply::Leases { revision: Revision(1), leases: vec![crate::LeaseId(i64::MIN); 5] };
        let encoded = crate::outcome_len(&Ok(leases.clone()));
        assert!(leases.holds_more_than(encoded - 16));
    }
}
