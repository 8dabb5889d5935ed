//! Answers and events.

use super::{
    DecodeError, MAX_TXN_DEPTH, Reader, Writer,
    request::{alarm_tag, read_alarm},
    wire::{Length, Sink, malformed},
};
use crate::{
    Alarm, DeleteRangeReply, Error, Event, EventKind, HashKvReply, KeyValue, LeaseId, LeaseTimeToLiveReply,
    MeasuredReply, Outcome, PutReply, RangeReply, Reply, Revision, RevisionEvents, SessionId, StatusReply,
    TxnOpReply, TxnReply,
};

type Decoded<T> = Result<T, DecodeError>;

/// A key and its value take six bytes at least.
const KEY_VALUE_LEN_MIN: usize = 6;

pub(crate) fn write_key_value<S: Sink>(writer: &mut Writer<'_, S>, kv: &KeyValue) {
    let KeyValue { key, value, create_revision, mod_revision, version, lease } = kv;
    writer.shared(key);
    writer.shared(value);
    writer.i64(create_revision.0);
    writer.i64(mod_revision.0);
    writer.i64(*version);
    writer.i64(lease.0);
}

/// How many bytes [`write_key_value`] writes.
pub(crate) fn key_value_len(kv: &KeyValue) -> usize {
    let mut length = Length::default();
    write_key_value(&mut Writer::within(&mut length), kv);
    length.0
}

pub(crate) fn read_key_value(reader: &mut Reader) -> Decoded<KeyValue> {
    Ok(KeyValue {
        key: reader.bytes()?,
        value: reader.bytes()?,
        create_revision: read_revision(reader)?,
        mod_revision: read_revision(reader)?,
        version: reader.i64()?,
        lease: LeaseId(reader.i64()?),
    })
}

fn read_revision(reader: &mut Reader) -> Decoded<Revision> {
    reader.i64().map(Revision)
}

fn write_prev_kv<S: Sink>(writer: &mut Writer<'_, S>, prev_kv: Option<&KeyValue>) {
    writer.flags([prev_kv.is_some()]);
    if let Some(kv) = prev_kv {
        write_key_value(writer, kv);
    }
}

fn read_prev_kv(reader: &mut Reader) -> Decoded<Option<KeyValue>> {
    let [is_there] = reader.flags()?;
    if is_there { read_key_value(reader).map(Some) } else { Ok(None) }
}

const OUTCOME_REFUSED: u8 = 0;

/// The number of an answer's kind. Also goes into digests, so numbers are never used twice.
pub(crate) fn reply_tag(reply: &Reply) -> u8 {
    match reply {
        Reply::Range(_) => 1,
        Reply::Put(_) => 2,
        Reply::DeleteRange(_) => 3,
        Reply::Txn(_) => 4,
        Reply::Compacted { .. } => 5,
        Reply::LeaseGranted { .. } => 6,
        Reply::LeaseRevoked { .. } => 7,
        Reply::LeaseTimeToLive(_) => 8,
        Reply::Leases { .. } => 9,
        Reply::HashKv(_) => 10,
        Reply::Status(_) => 11,
        Reply::Alarms { .. } => 12,
        Reply::SessionOpened { .. } => 13,
        Reply::Done { .. } => 14,
        Reply::Measured(_) => 15,
    }
}

pub(crate) fn write_outcome<S: Sink>(writer: &mut Writer<'_, S>, outcome: &Outcome) {
    let reply = match outcome {
        Ok(reply) => reply,
        Err(error) => {
            writer.u8(OUTCOME_REFUSED);
            return writer.u8(error_tag(*error));
        }
    };
    writer.u8(reply_tag(reply));
    match reply {
        Reply::Range(reply) => write_range_reply(writer, reply),
        Reply::Put(reply) => write_put_reply(writer, reply),
        Reply::DeleteRange(reply) => write_delete_range_reply(writer, reply),
        Reply::Txn(reply) => write_txn_reply(writer, reply),
        Reply::Compacted { revision } | Reply::LeaseRevoked { revision } | Reply::Done { revision } => {
            writer.i64(revision.0);
        }
        Reply::LeaseGranted { revision, id, ttl } => {
            writer.i64(revision.0);
            writer.i64(id.0);
            writer.i64(*ttl);
        }
        Reply::LeaseTimeToLive(LeaseTimeToLiveReply { revision, id, ttl, granted_ttl, keys }) => {
            writer.i64(revision.0);
            writer.i64(id.0);
            writer.i64(*ttl);
            writer.i64(*granted_ttl);
            writer.list(keys, |writer, key| writer.bytes(key));
        }
        Reply::Measured(MeasuredReply { revision, shown, bytes, more, count }) => {
            writer.i64(revision.0);
            writer.u64(*shown);
            writer.u64(*bytes);
            writer.flags([*more]);
            writer.i64(*count);
        }
        Reply::Leases { revision, leases } => {
            writer.i64(revision.0);
            writer.list(leases, |writer, lease| writer.i64(lease.0));
        }
        Reply::HashKv(HashKvReply { revision, hash, compact_revision, hash_revision }) => {
            writer.i64(revision.0);
            writer.u64(u64::from(*hash));
            writer.i64(compact_revision.0);
            writer.i64(hash_revision.0);
        }
        Reply::Status(status) => {
            let StatusReply {
                revision,
                compact_revision,
                applied,
                size_bytes,
                size_in_use_bytes,
                quota_bytes,
                keys,
                leases,
                sessions,
            } = status;
            writer.i64(revision.0);
            writer.i64(compact_revision.0);
            for number in [applied, size_bytes, size_in_use_bytes, quota_bytes, keys, leases, sessions] {
                writer.u64(*number);
            }
        }
        Reply::Alarms { revision, alarms } => {
            writer.i64(revision.0);
            writer.list(alarms, |writer, alarm| {
                writer.u64(alarm.member);
                writer.u8(alarm_tag(alarm.kind));
            });
        }
        Reply::SessionOpened { revision, session } => {
            writer.i64(revision.0);
            writer.u64(session.0);
        }
    }
}

pub(crate) fn read_outcome(reader: &mut Reader) -> Decoded<Outcome> {
    Ok(Ok(match reader.u8()? {
        OUTCOME_REFUSED => return Ok(Err(read_error(reader)?)),
        1 => Reply::Range(read_range_reply(reader)?),
        2 => Reply::Put(read_put_reply(reader)?),
        3 => Reply::DeleteRange(read_delete_range_reply(reader)?),
        4 => Reply::Txn(read_txn_reply(reader, MAX_TXN_DEPTH)?),
        5 => Reply::Compacted { revision: read_revision(reader)? },
        6 => Reply::LeaseGranted {
            revision: read_revision(reader)?,
            id: LeaseId(reader.i64()?),
            ttl: reader.i64()?,
        },
        7 => Reply::LeaseRevoked { revision: read_revision(reader)? },
        8 => Reply::LeaseTimeToLive(LeaseTimeToLiveReply {
            revision: read_revision(reader)?,
            id: LeaseId(reader.i64()?),
            ttl: reader.i64()?,
            granted_ttl: reader.i64()?,
            keys: reader.list(1, Reader::bytes)?,
        }),
        9 => Reply::Leases {
            revision: read_revision(reader)?,
            leases: reader.list(1, |reader| Ok(LeaseId(reader.i64()?)))?,
        },
        10 => Reply::HashKv(HashKvReply {
            revision: read_revision(reader)?,
            hash: u32::try_from(reader.u64()?).or(malformed("a hash is too long"))?,
            compact_revision: read_revision(reader)?,
            hash_revision: read_revision(reader)?,
        }),
        11 => Reply::Status(StatusReply {
            revision: read_revision(reader)?,
            compact_revision: read_revision(reader)?,
            applied: reader.u64()?,
            size_bytes: reader.u64()?,
            size_in_use_bytes: reader.u64()?,
            quota_bytes: reader.u64()?,
            keys: reader.u64()?,
            leases: reader.u64()?,
            sessions: reader.u64()?,
        }),
        12 => Reply::Alarms {
            revision: read_revision(reader)?,
            alarms: reader
                .list(2, |reader| Ok(Alarm { member: reader.u64()?, kind: read_alarm(reader)? }))?,
        },
        13 => Reply::SessionOpened { revision: read_revision(reader)?, session: SessionId(reader.u64()?) },
        14 => Reply::Done { revision: read_revision(reader)? },
        15 => Reply::Measured(MeasuredReply {
            revision: read_revision(reader)?,
            shown: reader.u64()?,
            bytes: reader.u64()?,
            more: {
                let [more] = reader.flags()?;
                more
            },
            count: reader.i64()?,
        }),
        _ => return malformed("unknown answer"),
    }))
}

/// The number of an error. Also goes into digests, so numbers are never used twice.
pub(crate) fn error_tag(error: Error) -> u8 {
    match error {
        Error::EmptyKey => 1,
        Error::KeyNotFound => 2,
        Error::ValueProvided => 3,
        Error::LeaseProvided => 4,
        Error::TooManyOps => 5,
        Error::DuplicateKey => 6,
        Error::InvalidSortOption => 7,
        Error::Compacted => 8,
        Error::FutureRevision => 9,
        Error::NoSpace => 10,
        Error::LeaseNotFound => 11,
        Error::LeaseExists => 12,
        Error::LeaseTtlTooLarge => 13,
        Error::Corrupt => 14,
        Error::NotReadOnly => 15,
        Error::SessionExpired => 16,
        Error::ResultForgotten => 17,
        Error::SessionWindowExceeded => 18,
        Error::RevisionPassed => 19,
        Error::WrongShard => 20,
        Error::AnswerTooLarge => 21,
    }
}

fn read_error(reader: &mut Reader) -> Decoded<Error> {
    Ok(match reader.u8()? {
        1 => Error::EmptyKey,
        2 => Error::KeyNotFound,
        3 => Error::ValueProvided,
        4 => Error::LeaseProvided,
        5 => Error::TooManyOps,
        6 => Error::DuplicateKey,
        7 => Error::InvalidSortOption,
        8 => Error::Compacted,
        9 => Error::FutureRevision,
        10 => Error::NoSpace,
        11 => Error::LeaseNotFound,
        12 => Error::LeaseExists,
        13 => Error::LeaseTtlTooLarge,
        14 => Error::Corrupt,
        15 => Error::NotReadOnly,
        16 => Error::SessionExpired,
        17 => Error::ResultForgotten,
        18 => Error::SessionWindowExceeded,
        19 => Error::RevisionPassed,
        20 => Error::WrongShard,
        21 => Error::AnswerTooLarge,
        _ => return malformed("unknown error"),
    })
}

fn write_range_reply<S: Sink>(writer: &mut Writer<'_, S>, reply: &RangeReply) {
    write_range_head(writer, reply, reply.kvs.len());
    write_key_values(writer, &reply.kvs);
}

/// All of a range's answer but its keys, so many, which follow.
pub(super) fn write_range_head<S: Sink>(writer: &mut Writer<'_, S>, reply: &RangeReply, keys: usize) {
    let RangeReply { revision, kvs: _, more, count } = reply;
    writer.i64(revision.0);
    writer.flags([*more]);
    writer.i64(*count);
    writer.u64(keys as u64);
}

fn write_key_values<S: Sink>(writer: &mut Writer<'_, S>, kvs: &[KeyValue]) {
    for kv in kvs {
        write_key_value(writer, kv);
    }
}

fn read_range_reply(reader: &mut Reader) -> Decoded<RangeReply> {
    let revision = read_revision(reader)?;
    let [more] = reader.flags()?;
    let count = reader.i64()?;
    Ok(RangeReply { revision, more, count, kvs: reader.list(KEY_VALUE_LEN_MIN, read_key_value)? })
}

pub(super) fn write_put_reply<S: Sink>(writer: &mut Writer<'_, S>, reply: &PutReply) {
    writer.i64(reply.revision.0);
    write_prev_kv(writer, reply.prev_kv.as_ref());
}

fn read_put_reply(reader: &mut Reader) -> Decoded<PutReply> {
    Ok(PutReply { revision: read_revision(reader)?, prev_kv: read_prev_kv(reader)? })
}

fn write_delete_range_reply<S: Sink>(writer: &mut Writer<'_, S>, reply: &DeleteRangeReply) {
    write_delete_range_head(writer, reply);
    write_key_values(writer, &reply.prev_kvs);
}

/// All but the keys that follow.
pub(super) fn write_delete_range_head<S: Sink>(writer: &mut Writer<'_, S>, reply: &DeleteRangeReply) {
    let DeleteRangeReply { revision, deleted, prev_kvs } = reply;
    writer.i64(revision.0);
    writer.i64(*deleted);
    writer.u64(prev_kvs.len() as u64);
}

fn read_delete_range_reply(reader: &mut Reader) -> Decoded<DeleteRangeReply> {
    Ok(DeleteRangeReply {
        revision: read_revision(reader)?,
        deleted: reader.i64()?,
        prev_kvs: reader.list(KEY_VALUE_LEN_MIN, read_key_value)?,
    })
}

fn write_txn_reply<S: Sink>(writer: &mut Writer<'_, S>, reply: &TxnReply) {
    write_txn_head(writer, reply, reply.responses.len());
    for response in &reply.responses {
        writer.u8(txn_op_tag(response));
        match response {
            TxnOpReply::Range(reply) => write_range_reply(writer, reply),
            TxnOpReply::Put(reply) => write_put_reply(writer, reply),
            TxnOpReply::DeleteRange(reply) => write_delete_range_reply(writer, reply),
            TxnOpReply::Txn(reply) => write_txn_reply(writer, reply),
        }
    }
}

/// All of a transaction's answer but the responses, so many, which follow, each with its tag before it.
pub(super) fn write_txn_head<S: Sink>(writer: &mut Writer<'_, S>, reply: &TxnReply, responses: usize) {
    let TxnReply { revision, succeeded, responses: _ } = reply;
    writer.i64(revision.0);
    writer.flags([*succeeded]);
    writer.u64(responses as u64);
}

pub(super) fn txn_op_tag(reply: &TxnOpReply) -> u8 {
    match reply {
        TxnOpReply::Range(_) => 1,
        TxnOpReply::Put(_) => 2,
        TxnOpReply::DeleteRange(_) => 3,
        TxnOpReply::Txn(_) => 4,
    }
}

fn read_txn_reply(reader: &mut Reader, depth: usize) -> Decoded<TxnReply> {
    let Some(depth) = depth.checked_sub(1) else { return malformed("transactions are nested too deep") };
    let revision = read_revision(reader)?;
    let [succeeded] = reader.flags()?;
    let responses = reader.list(2, |reader| {
        Ok(match reader.u8()? {
            1 => TxnOpReply::Range(read_range_reply(reader)?),
            2 => TxnOpReply::Put(read_put_reply(reader)?),
            3 => TxnOpReply::DeleteRange(read_delete_range_reply(reader)?),
            4 => TxnOpReply::Txn(read_txn_reply(reader, depth)?),
            _ => return malformed("unknown answer in a transaction"),
        })
    })?;
    Ok(TxnReply { revision, succeeded, responses })
}

pub(super) fn write_revision_events(writer: &mut Writer<'_>, revision: &RevisionEvents) {
    writer.i64(revision.revision.0);
    writer.list(&revision.events, |writer, event| {
        writer.flags([event.kind == EventKind::Delete]);
        write_key_value(writer, &event.kv);
        write_prev_kv(writer, event.prev_kv.as_ref());
    });
}

pub(super) fn read_revision_events(reader: &mut Reader) -> Decoded<RevisionEvents> {
    let revision = read_revision(reader)?;
    let events = reader.list(KEY_VALUE_LEN_MIN + 2, |reader| {
        let [is_delete] = reader.flags()?;
        let kind = if is_delete { EventKind::Delete } else { EventKind::Put };
        Ok(Event { kind, kv: read_key_value(reader)?, prev_kv: read_prev_kv(reader)? })
    })?;
    Ok(RevisionEvents { revision, events: events.into() })
}
