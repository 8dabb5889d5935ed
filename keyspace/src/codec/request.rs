//! Commands and queries.

use shard_map::{Epoch, ShardId};

use super::{MAX_TXN_DEPTH, Reader, VERSION, Writer, wire::malformed};
use crate::{
    Alarm, AlarmKind, ClockOwner, ClockStart, ClusterVersion, Command, Compare, CompareResult, CompareTarget,
    DeleteRange, Envelope, KeyRange, LeaseGrant, LeaseId, LeaseSerial, Limits, ListRequest, Op, PageRequest,
    Proposal, Put, Query, RangeEnd, RangeRequest, Revision, RevisionRange, Revisions, Route, SessionId,
    SortOrder, SortTarget, Txn, TxnOp, codec::DecodeError,
};

type Decoded<T> = Result<T, DecodeError>;

pub(super) fn write_proposal(
    writer: &mut Writer<'_>,
    version: ClusterVersion,
    envelope: &Envelope,
    command: &Command,
) {
    let Envelope { revisions, proposed_ms } = envelope;
    let given = match revisions {
        Revisions::Next => None,
        Revisions::Given(range) => Some(range),
    };
    writer.flags([given.is_some(), proposed_ms.is_some()]);
    if let Some(RevisionRange { first, count }) = given {
        writer.i64(first.0);
        writer.u64(u64::from(*count));
    }
    if let Some(proposed_ms) = proposed_ms {
        writer.u64(*proposed_ms);
    }
    write_command(writer, version, command);
}

pub(super) fn read_proposal(reader: &mut Reader, version: ClusterVersion) -> Decoded<Proposal> {
    let [is_given, is_timed] = reader.flags()?;
    let revisions = if is_given { Revisions::Given(read_revision_range(reader)?) } else { Revisions::Next };
    let proposed_ms = if is_timed { Some(reader.u64()?) } else { None };
    Ok(Proposal { envelope: Envelope { revisions, proposed_ms }, command: read_command(reader, version)? })
}

fn read_revision_range(reader: &mut Reader) -> Decoded<RevisionRange> {
    let first = Revision(reader.i64()?);
    let count = u32::try_from(reader.u64()?).or(malformed("too many revisions"))?;
    let last = i64::from(count).checked_sub(1).and_then(|more| first.0.checked_add(more));
    if count == 0 || first <= Revision::FIRST || last.is_none() {
        return malformed("revisions that cannot be given");
    }
    Ok(RevisionRange { first, count })
}

const COMMAND_OPEN_SESSION: u8 = 1;
const COMMAND_CLOSE_SESSION: u8 = 2;
const COMMAND_WRITE: u8 = 3;
const COMMAND_EXPIRE_LEASES: u8 = 4;
const COMMAND_CHECKPOINT_LEASES: u8 = 5;
const COMMAND_SET_LIMITS: u8 = 6;
const COMMAND_SET_LEADER_REGIONS: u8 = 7;
const COMMAND_RAISE_ALARM: u8 = 8;
/// Says nothing more than its version does.
const COMMAND_RAISE_VERSION: u8 = 9;
const COMMAND_START_CLOCK: u8 = 10;

fn write_command(writer: &mut Writer<'_>, version: ClusterVersion, command: &Command) {
    match command {
        Command::OpenSession { nonce } => {
            writer.u8(COMMAND_OPEN_SESSION);
            writer.u128(*nonce);
        }
        Command::CloseSession(session) => {
            writer.u8(COMMAND_CLOSE_SESSION);
            writer.u64(session.0);
        }
        Command::Write { session, seq, ack_upto, route, op } => {
            writer.u8(COMMAND_WRITE);
            writer.u64(session.0);
            writer.u64(*seq);
            writer.u64(*ack_upto);
            writer.flags([route.is_some()]);
            if let Some(Route { shard, epoch }) = route {
                writer.u64(shard.0);
                writer.u64(epoch.0);
            }
            // An operation has its own version, and can be read by itself.
            writer.u8(VERSION);
            write_op(writer, op);
        }
        Command::ExpireLeases(by, leases) => {
            writer.u8(COMMAND_EXPIRE_LEASES);
            write_clock(writer, version, *by);
            writer.list(leases, |writer, grant| write_grant(writer, version, *grant));
        }
        Command::CheckpointLeases(by, leases) => {
            writer.u8(COMMAND_CHECKPOINT_LEASES);
            write_clock(writer, version, *by);
            writer.list(leases, |writer, (grant, remaining_s)| {
                write_grant(writer, version, *grant);
                writer.i64(*remaining_s);
            });
        }
        Command::SetLimits(limits) => {
            writer.u8(COMMAND_SET_LIMITS);
            writer.u64(limits.quota_bytes);
            writer.u64(u64::from(limits.max_sessions));
        }
        Command::SetLeaderRegions(regions) => {
            writer.u8(COMMAND_SET_LEADER_REGIONS);
            writer.list(regions, |writer, region| writer.bytes(region));
        }
        Command::RaiseAlarm(alarm) => {
            writer.u8(COMMAND_RAISE_ALARM);
            writer.u64(alarm.member);
            writer.u8(alarm_tag(alarm.kind));
        }
        Command::RaiseVersion(_) => writer.u8(COMMAND_RAISE_VERSION),
        Command::StartClock(ClockOwner { round, node }) => {
            writer.u8(COMMAND_START_CLOCK);
            writer.u64(*round);
            writer.u64(*node);
        }
    }
}

fn read_command(reader: &mut Reader, version: ClusterVersion) -> Decoded<Command> {
    Ok(match reader.u8()? {
        COMMAND_OPEN_SESSION => Command::OpenSession { nonce: reader.u128()? },
        COMMAND_CLOSE_SESSION => Command::CloseSession(SessionId(reader.u64()?)),
        COMMAND_WRITE => {
            let (session, seq, ack_upto) = (SessionId(reader.u64()?), reader.u64()?, reader.u64()?);
            let [is_routed] = reader.flags()?;
            let route = if is_routed {
                Some(Route { shard: ShardId(reader.u64()?), epoch: Epoch(reader.u64()?) })
            } else {
                None
            };
            reader.version(VERSION)?;
            let op = read_op(reader)?;
            if route.is_some() != op.has_keys() {
                return malformed("a write that names no shard, or needs none");
            }
            Command::Write { session, seq, ack_upto, route, op }
        }
        COMMAND_EXPIRE_LEASES => Command::ExpireLeases(
            read_clock(reader, version)?,
            reader.list(1, |reader| read_grant(reader, version))?,
        ),
        COMMAND_CHECKPOINT_LEASES => Command::CheckpointLeases(
            read_clock(reader, version)?,
            reader.list(2, |reader| Ok((read_grant(reader, version)?, reader.i64()?)))?,
        ),
        COMMAND_SET_LIMITS => Command::SetLimits(Limits {
            quota_bytes: reader.u64()?,
            max_sessions: u32::try_from(reader.u64()?).or(malformed("too many sessions"))?,
        }),
        COMMAND_SET_LEADER_REGIONS => Command::SetLeaderRegions(reader.list(1, |reader| reader.bytes())?),
        COMMAND_RAISE_ALARM => {
            Command::RaiseAlarm(Alarm { member: reader.u64()?, kind: read_alarm(reader)? })
        }
        COMMAND_RAISE_VERSION if version > ClusterVersion::FIRST => Command::RaiseVersion(version),
        COMMAND_START_CLOCK if version >= ClusterVersion::STARTED_CLOCKS => {
            Command::StartClock(ClockOwner { round: reader.u64()?, node: reader.u64()? })
        }
        _ => return malformed("unknown command"),
    })
}

fn write_clock(writer: &mut Writer<'_>, version: ClusterVersion, by: ClockStart) {
    if version >= ClusterVersion::STARTED_CLOCKS {
        writer.u64(by.0);
    }
}

fn read_clock(reader: &mut Reader, version: ClusterVersion) -> Decoded<ClockStart> {
    let is_named = version >= ClusterVersion::STARTED_CLOCKS;
    Ok(if is_named { ClockStart(reader.u64()?) } else { ClockStart::NONE })
}

fn write_grant(writer: &mut Writer<'_>, version: ClusterVersion, grant: LeaseGrant) {
    writer.i64(grant.id.0);
    if version >= ClusterVersion::NUMBERED_GRANTS {
        writer.u64(grant.serial.0);
    }
}

fn read_grant(reader: &mut Reader, version: ClusterVersion) -> Decoded<LeaseGrant> {
    let id = LeaseId(reader.i64()?);
    let serial = if version >= ClusterVersion::NUMBERED_GRANTS {
        LeaseSerial(reader.u64()?)
    } else {
        LeaseSerial::NONE
    };
    Ok(LeaseGrant { id, serial })
}

const OP_PUT: u8 = 1;
const OP_DELETE_RANGE: u8 = 2;
const OP_TXN: u8 = 3;
const OP_COMPACT: u8 = 4;
const OP_LEASE_GRANT: u8 = 5;
const OP_LEASE_REVOKE: u8 = 6;
const OP_ALARM_ACTIVATE: u8 = 7;
const OP_ALARM_DEACTIVATE: u8 = 8;

pub(super) fn write_op(writer: &mut Writer<'_>, op: &Op) {
    match op {
        Op::Put(put) => {
            writer.u8(OP_PUT);
            write_put(writer, put);
        }
        Op::DeleteRange(delete) => {
            writer.u8(OP_DELETE_RANGE);
            write_delete_range(writer, delete);
        }
        Op::Txn(txn) => {
            writer.u8(OP_TXN);
            write_txn(writer, txn);
        }
        Op::Compact { revision } => {
            writer.u8(OP_COMPACT);
            writer.i64(*revision);
        }
        Op::LeaseGrant { id, ttl } => {
            writer.u8(OP_LEASE_GRANT);
            writer.i64(id.0);
            writer.i64(*ttl);
        }
        Op::LeaseRevoke { id } => {
            writer.u8(OP_LEASE_REVOKE);
            writer.i64(id.0);
        }
        Op::AlarmActivate { member, alarm } => {
            writer.u8(OP_ALARM_ACTIVATE);
            writer.u64(*member);
            writer.u8(alarm_tag(*alarm));
        }
        Op::AlarmDeactivate { member, alarm } => {
            writer.u8(OP_ALARM_DEACTIVATE);
            writer.u64(*member);
            writer.u8(alarm_tag(*alarm));
        }
    }
}

pub(super) fn read_op(reader: &mut Reader) -> Decoded<Op> {
    Ok(match reader.u8()? {
        OP_PUT => Op::Put(read_put(reader)?),
        OP_DELETE_RANGE => Op::DeleteRange(read_delete_range(reader)?),
        OP_TXN => Op::Txn(read_txn(reader, MAX_TXN_DEPTH)?),
        OP_COMPACT => Op::Compact { revision: reader.i64()? },
        OP_LEASE_GRANT => Op::LeaseGrant { id: LeaseId(reader.i64()?), ttl: reader.i64()? },
        OP_LEASE_REVOKE => Op::LeaseRevoke { id: LeaseId(reader.i64()?) },
        OP_ALARM_ACTIVATE => Op::AlarmActivate { member: reader.u64()?, alarm: read_alarm(reader)? },
        OP_ALARM_DEACTIVATE => Op::AlarmDeactivate { member: reader.u64()?, alarm: read_alarm(reader)? },
        _ => return malformed("unknown operation"),
    })
}

pub(super) fn alarm_tag(alarm: AlarmKind) -> u8 {
    match alarm {
        AlarmKind::NoSpace => 1,
        AlarmKind::Corrupt => 2,
    }
}

pub(super) fn read_alarm(reader: &mut Reader) -> Decoded<AlarmKind> {
    match reader.u8()? {
        1 => Ok(AlarmKind::NoSpace),
        2 => Ok(AlarmKind::Corrupt),
        _ => malformed("unknown alarm"),
    }
}

const QUERY_RANGE: u8 = 1;
const QUERY_TXN: u8 = 2;
const QUERY_LEASE_TIME_TO_LIVE: u8 = 3;
const QUERY_LEASES: u8 = 4;
const QUERY_HASH_KV: u8 = 5;
const QUERY_STATUS: u8 = 6;
const QUERY_ALARMS: u8 = 7;
const QUERY_PAGE: u8 = 8;
const QUERY_LIST: u8 = 9;

pub(super) fn write_query(writer: &mut Writer<'_>, query: &Query) {
    match query {
        Query::Range(range) => {
            writer.u8(QUERY_RANGE);
            write_range(writer, range);
        }
        Query::Page(page) => {
            writer.u8(QUERY_PAGE);
            write_page(writer, page);
        }
        Query::List(list) => {
            writer.u8(QUERY_LIST);
            write_list(writer, list);
        }
        Query::Txn(txn) => {
            writer.u8(QUERY_TXN);
            write_txn(writer, txn);
        }
        Query::LeaseTimeToLive { id, keys } => {
            writer.u8(QUERY_LEASE_TIME_TO_LIVE);
            writer.i64(id.0);
            writer.flags([*keys]);
        }
        Query::Leases => writer.u8(QUERY_LEASES),
        Query::HashKv { revision } => {
            writer.u8(QUERY_HASH_KV);
            writer.i64(*revision);
        }
        Query::Status => writer.u8(QUERY_STATUS),
        Query::Alarms => writer.u8(QUERY_ALARMS),
    }
}

pub(super) fn read_query(reader: &mut Reader) -> Decoded<Query> {
    Ok(match reader.u8()? {
        QUERY_RANGE => Query::Range(read_range(reader)?),
        QUERY_PAGE => Query::Page(read_page(reader)?),
        QUERY_LIST => Query::List(read_list(reader)?),
        QUERY_TXN => {
            let txn = read_txn(reader, MAX_TXN_DEPTH)?;
            if !txn.is_read_only() {
                return malformed("a query that writes");
            }
            Query::Txn(txn)
        }
        QUERY_LEASE_TIME_TO_LIVE => {
            let id = LeaseId(reader.i64()?);
            let [keys] = reader.flags()?;
            Query::LeaseTimeToLive { id, keys }
        }
        QUERY_LEASES => Query::Leases,
        QUERY_HASH_KV => Query::HashKv { revision: reader.i64()? },
        QUERY_STATUS => Query::Status,
        QUERY_ALARMS => Query::Alarms,
        _ => return malformed("unknown query"),
    })
}

const END_SINGLE: u8 = 0;
const END_FROM: u8 = 1;
const END_AT: u8 = 2;

pub(super) fn write_key_range(writer: &mut Writer<'_>, range: &KeyRange) {
    writer.bytes(&range.key);
    match &range.end {
        RangeEnd::Single => writer.u8(END_SINGLE),
        RangeEnd::From => writer.u8(END_FROM),
        RangeEnd::At(end) => {
            writer.u8(END_AT);
            writer.bytes(end);
        }
    }
}

pub(super) fn read_key_range(reader: &mut Reader) -> Decoded<KeyRange> {
    let key = reader.bytes()?;
    let end = match reader.u8()? {
        END_SINGLE => RangeEnd::Single,
        END_FROM => RangeEnd::From,
        END_AT => RangeEnd::At(reader.bytes()?),
        _ => return malformed("unknown kind of range"),
    };
    Ok(KeyRange { key, end })
}

fn write_put(writer: &mut Writer<'_>, put: &Put) {
    let Put { key, value, lease, prev_kv, ignore_value, ignore_lease } = put;
    writer.flags([*prev_kv, *ignore_value, *ignore_lease]);
    writer.i64(lease.0);
    writer.bytes(key);
    writer.bytes(value);
}

fn read_put(reader: &mut Reader) -> Decoded<Put> {
    let [prev_kv, ignore_value, ignore_lease] = reader.flags()?;
    let lease = LeaseId(reader.i64()?);
    Ok(Put { key: reader.bytes()?, value: reader.bytes()?, lease, prev_kv, ignore_value, ignore_lease })
}

fn write_delete_range(writer: &mut Writer<'_>, delete: &DeleteRange) {
    writer.flags([delete.prev_kv]);
    write_key_range(writer, &delete.range);
}

fn read_delete_range(reader: &mut Reader) -> Decoded<DeleteRange> {
    let [prev_kv] = reader.flags()?;
    Ok(DeleteRange { range: read_key_range(reader)?, prev_kv })
}

fn write_range(writer: &mut Writer<'_>, request: &RangeRequest) {
    let RangeRequest {
        range,
        revision,
        limit,
        sort_order,
        sort_target,
        serializable,
        keys_only,
        count_only,
        min_mod_revision,
        max_mod_revision,
        min_create_revision,
        max_create_revision,
    } = request;
    let bounds = [*min_mod_revision, *max_mod_revision, *min_create_revision, *max_create_revision];
    let is_sorted = (*sort_order, *sort_target) != (SortOrder::None, SortTarget::Key);
    let is_bounded = bounds != [0; 4];
    writer.flags([*serializable, *keys_only, *count_only, is_sorted, is_bounded]);
    write_key_range(writer, range);
    writer.i64(*revision);
    writer.i64(*limit);
    if is_sorted {
        writer.u8(match sort_order {
            SortOrder::None => 0,
            SortOrder::Ascend => 1,
            SortOrder::Descend => 2,
            SortOrder::Invalid => 3,
        });
        writer.u8(match sort_target {
            SortTarget::Key => 0,
            SortTarget::Version => 1,
            SortTarget::Create => 2,
            SortTarget::Mod => 3,
            SortTarget::Value => 4,
            SortTarget::Invalid => 5,
        });
    }
    if is_bounded {
        for bound in bounds {
            writer.i64(bound);
        }
    }
}

fn read_range(reader: &mut Reader) -> Decoded<RangeRequest> {
    let [serializable, keys_only, count_only, is_sorted, is_bounded] = reader.flags()?;
    let mut request =
        RangeRequest { serializable, keys_only, count_only, ..RangeRequest::new(read_key_range(reader)?) };
    request.revision = reader.i64()?;
    request.limit = reader.i64()?;
    if is_sorted {
        request.sort_order = SortOrder::from_wire(i32::from(reader.u8()?));
        request.sort_target = SortTarget::from_wire(i32::from(reader.u8()?));
    }
    if is_bounded {
        request.min_mod_revision = reader.i64()?;
        request.max_mod_revision = reader.i64()?;
        request.min_create_revision = reader.i64()?;
        request.max_create_revision = reader.i64()?;
    }
    Ok(request)
}

fn write_page(writer: &mut Writer<'_>, request: &PageRequest) {
    let PageRequest { range, revision, limit, bytes, keys_only, counts_rest } = request;
    writer.flags([*keys_only, *counts_rest]);
    write_key_range(writer, range);
    writer.i64(*revision);
    writer.u64(*limit);
    writer.u64(*bytes);
}

fn read_page(reader: &mut Reader) -> Decoded<PageRequest> {
    let [keys_only, counts_rest] = reader.flags()?;
    Ok(PageRequest {
        range: read_key_range(reader)?,
        revision: reader.i64()?,
        limit: reader.u64()?,
        bytes: reader.u64()?,
        keys_only,
        counts_rest,
    })
}

fn write_list(writer: &mut Writer<'_>, request: &ListRequest) {
    let ListRequest { range, revision, limit, keys_only, bytes } = request;
    writer.flags([*keys_only]);
    write_key_range(writer, range);
    writer.i64(*revision);
    writer.u64(*limit);
    writer.u64(*bytes);
}

fn read_list(reader: &mut Reader) -> Decoded<ListRequest> {
    let [keys_only] = reader.flags()?;
    Ok(ListRequest {
        range: read_key_range(reader)?,
        revision: reader.i64()?,
        limit: reader.u64()?,
        keys_only,
        bytes: reader.u64()?,
    })
}

fn write_txn(writer: &mut Writer<'_>, txn: &Txn) {
    writer.list(&txn.compare, write_compare);
    writer.list(&txn.success, write_txn_op);
    writer.list(&txn.failure, write_txn_op);
}

fn read_txn(reader: &mut Reader, depth: usize) -> Decoded<Txn> {
    let Some(depth) = depth.checked_sub(1) else { return malformed("transactions are nested too deep") };
    Ok(Txn {
        compare: reader.txn_list(read_compare)?,
        success: reader.txn_list(|reader| read_txn_op(reader, depth))?,
        failure: reader.txn_list(|reader| read_txn_op(reader, depth))?,
    })
}

const TXN_OP_EMPTY: u8 = 0;
const TXN_OP_RANGE: u8 = 1;
const TXN_OP_PUT: u8 = 2;
const TXN_OP_DELETE_RANGE: u8 = 3;
const TXN_OP_TXN: u8 = 4;

fn write_txn_op(writer: &mut Writer<'_>, op: &TxnOp) {
    match op {
        TxnOp::Empty => writer.u8(TXN_OP_EMPTY),
        TxnOp::Range(range) => {
            writer.u8(TXN_OP_RANGE);
            write_range(writer, range);
        }
        TxnOp::Put(put) => {
            writer.u8(TXN_OP_PUT);
            write_put(writer, put);
        }
        TxnOp::DeleteRange(delete) => {
            writer.u8(TXN_OP_DELETE_RANGE);
            write_delete_range(writer, delete);
        }
        TxnOp::Txn(txn) => {
            writer.u8(TXN_OP_TXN);
            write_txn(writer, txn);
        }
    }
}

fn read_txn_op(reader: &mut Reader, depth: usize) -> Decoded<TxnOp> {
    Ok(match reader.u8()? {
        TXN_OP_EMPTY => TxnOp::Empty,
        TXN_OP_RANGE => TxnOp::Range(read_range(reader)?),
        TXN_OP_PUT => TxnOp::Put(read_put(reader)?),
        TXN_OP_DELETE_RANGE => TxnOp::DeleteRange(read_delete_range(reader)?),
        TXN_OP_TXN => TxnOp::Txn(read_txn(reader, depth)?),
        _ => return malformed("unknown operation in a transaction"),
    })
}

const TARGET_VERSION: u8 = 0;
const TARGET_CREATE: u8 = 1;
const TARGET_MOD: u8 = 2;
const TARGET_VALUE: u8 = 3;
const TARGET_LEASE: u8 = 4;
const TARGET_UNKNOWN: u8 = 5;

fn write_compare(writer: &mut Writer<'_>, compare: &Compare) {
    write_key_range(writer, &compare.range);
    writer.u8(match compare.result {
        CompareResult::Equal => 0,
        CompareResult::Greater => 1,
        CompareResult::Less => 2,
        CompareResult::NotEqual => 3,
        CompareResult::Unknown => 4,
    });
    let (tag, number) = match &compare.target {
        CompareTarget::Version(version) => (TARGET_VERSION, *version),
        CompareTarget::Create(revision) => (TARGET_CREATE, *revision),
        CompareTarget::Mod(revision) => (TARGET_MOD, *revision),
        CompareTarget::Lease(lease) => (TARGET_LEASE, lease.0),
        CompareTarget::Unknown => return writer.u8(TARGET_UNKNOWN),
        CompareTarget::Value(value) => {
            writer.u8(TARGET_VALUE);
            return writer.bytes(value);
        }
    };
    writer.u8(tag);
    writer.i64(number);
}

fn read_compare(reader: &mut Reader) -> Decoded<Compare> {
    let range = read_key_range(reader)?;
    let result = CompareResult::from_wire(i32::from(reader.u8()?));
    let target = match reader.u8()? {
        TARGET_VERSION => CompareTarget::Version(reader.i64()?),
        TARGET_CREATE => CompareTarget::Create(reader.i64()?),
        TARGET_MOD => CompareTarget::Mod(reader.i64()?),
        TARGET_VALUE => CompareTarget::Value(reader.bytes()?),
        TARGET_LEASE => CompareTarget::Lease(LeaseId(reader.i64()?)),
        TARGET_UNKNOWN => CompareTarget::Unknown,
        _ => return malformed("unknown target of a comparison"),
    };
    Ok(Compare { range, result, target })
}
