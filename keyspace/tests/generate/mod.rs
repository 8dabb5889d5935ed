//! Random requests over few keys, so that they meet.

#![allow(dead_code, reason = "each test target uses a part")]

use bytes::Bytes;
use keyspace::*;
use proptest::{collection::vec, option, prelude::*, sample::select};

pub(crate) fn key() -> impl Strategy<Value = Bytes> {
    select(vec!["\0", "a", "a\0", "aa", "b", "c", "d", "e", "\u{7f}"]).prop_map(Bytes::from_static_str)
}

trait FromStaticStr {
    fn from_static_str(text: &'static str) -> Bytes;
}

impl FromStaticStr for Bytes {
    fn from_static_str(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }
}

pub(crate) fn value() -> impl Strategy<Value = Bytes> {
    select(vec!["", "1", "2", "a longer value than sixteen bytes"]).prop_map(Bytes::from_static_str)
}

pub(crate) fn range() -> impl Strategy<Value = KeyRange> {
    prop_oneof![
        4 => key().prop_map(KeyRange::single),
        1 => key().prop_map(KeyRange::from),
        3 => (key(), key()).prop_map(|(a, b)| KeyRange::between(a, b)),
        1 => key().prop_map(KeyRange::prefix),
        1 => Just(KeyRange::all()),
    ]
}

pub(crate) fn lease() -> impl Strategy<Value = LeaseId> {
    prop_oneof![3 => Just(LeaseId::NONE), 3 => select(vec![LeaseId(-7), LeaseId(1), LeaseId(2), LeaseId(3)])]
}

pub(crate) fn revision() -> impl Strategy<Value = i64> {
    prop_oneof![4 => Just(0), 1 => -2_i64..0, 4 => 1_i64..30]
}

pub(crate) fn range_request() -> impl Strategy<Value = RangeRequest> {
    let sort = (
        select(vec![SortOrder::None, SortOrder::Ascend, SortOrder::Descend]),
        select(vec![
            SortTarget::Key,
            SortTarget::Version,
            SortTarget::Create,
            SortTarget::Mod,
            SortTarget::Value,
        ]),
    );
    let bound = || prop_oneof![4 => Just(0_i64), 1 => 1_i64..20];
    (
        range(),
        revision(),
        prop_oneof![2 => Just(0_i64), 1 => Just(-1), 2 => 1_i64..5, 1 => Just(i64::MAX)],
        sort,
        any::<[bool; 3]>(),
        prop_oneof![3 => Just([0; 4]).boxed(), 1 => [bound(), bound(), bound(), bound()].boxed()],
    )
        .prop_map(|(range, revision, limit, (sort_order, sort_target), flags, bounds)| RangeRequest {
            revision,
            limit,
            sort_order,
            sort_target,
            serializable: flags[0],
            keys_only: flags[1],
            count_only: flags[2] && limit == 0,
            min_mod_revision: bounds[0],
            max_mod_revision: bounds[1],
            min_create_revision: bounds[2],
            max_create_revision: bounds[3],
            ..RangeRequest::new(range)
        })
}

pub(crate) fn put() -> impl Strategy<Value = Put> {
    (key(), value(), lease(), any::<bool>(), 0..8).prop_map(|(key, value, lease, prev_kv, ignore)| {
        let (ignore_value, ignore_lease) = (ignore == 0, ignore == 1);
        Put {
            key,
            value: if ignore_value { Bytes::new() } else { value },
            lease: if ignore_lease { LeaseId::NONE } else { lease },
            prev_kv,
            ignore_value,
            ignore_lease,
        }
    })
}

pub(crate) fn delete_range() -> impl Strategy<Value = DeleteRange> {
    (range(), any::<bool>()).prop_map(|(range, prev_kv)| DeleteRange { range, prev_kv })
}

pub(crate) fn compare() -> impl Strategy<Value = Compare> {
    let result = select(vec![
        CompareResult::Equal,
        CompareResult::Greater,
        CompareResult::Less,
        CompareResult::NotEqual,
        CompareResult::Unknown,
    ]);
    let target = prop_oneof![
        (0_i64..3).prop_map(CompareTarget::Version),
        (0_i64..12).prop_map(CompareTarget::Create),
        (0_i64..12).prop_map(CompareTarget::Mod),
        value().prop_map(CompareTarget::Value),
        lease().prop_map(CompareTarget::Lease),
        Just(CompareTarget::Unknown),
    ];
    (range(), result, target).prop_map(|(range, result, target)| Compare { range, result, target })
}

pub(crate) fn txn() -> impl Strategy<Value = Txn> {
    let op = prop_oneof![
        2 => range_request().prop_map(TxnOp::Range),
        3 => put().prop_map(TxnOp::Put),
        2 => delete_range().prop_map(TxnOp::DeleteRange),
    ];
    op.prop_recursive(3, 12, 3, |op| {
        (vec(compare(), 0..2), vec(op.clone(), 0..3), vec(op, 0..3))
            .prop_map(|(compare, success, failure)| TxnOp::Txn(Txn { compare, success, failure }))
    })
    .prop_flat_map(|op| {
        (vec(compare(), 0..3), Just(op), option::of(put()), option::of(put())).prop_map(
            |(compare, op, first, other)| Txn {
                compare,
                success: first.map(TxnOp::Put).into_iter().chain([op]).collect(),
                failure: other.map(TxnOp::Put).into_iter().collect(),
            },
        )
    })
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    let id = || select(vec![LeaseId(-7), LeaseId(1), LeaseId(2), LeaseId(3)]);
    prop_oneof![
        8 => put().prop_map(Op::Put),
        4 => delete_range().prop_map(Op::DeleteRange),
        6 => txn().prop_map(Op::Txn),
        3 => (-2_i64..40).prop_map(|revision| Op::Compact { revision }),
        3 => (id(), 1_i64..100).prop_map(|(id, ttl)| Op::LeaseGrant { id, ttl }),
        1 => id().prop_map(|id| Op::LeaseRevoke { id }),
    ]
}

pub(crate) fn clock() -> impl Strategy<Value = ClockStart> {
    prop_oneof![Just(0), any::<u64>()].prop_map(ClockStart)
}

/// With and without a number.
pub(crate) fn grant() -> impl Strategy<Value = LeaseGrant> {
    let serial = prop_oneof![Just(0), any::<u64>()];
    (any::<i64>(), serial)
        .prop_map(|(id, serial)| LeaseGrant { id: LeaseId(id), serial: LeaseSerial(serial) })
}

/// Any command at all, for codecs.
pub(crate) fn command() -> impl Strategy<Value = Command> {
    let alarm = || (any::<u64>(), select(vec![AlarmKind::NoSpace, AlarmKind::Corrupt]));
    let op = prop_oneof![
        6 => op(),
        1 => alarm().prop_map(|(member, alarm)| Op::AlarmActivate { member, alarm }),
        1 => alarm().prop_map(|(member, alarm)| Op::AlarmDeactivate { member, alarm }),
        1 => Just(Op::Txn(Txn { success: vec![TxnOp::Empty], ..Txn::default() })),
    ];
    prop_oneof![
        any::<u128>().prop_map(|nonce| Command::OpenSession { nonce }),
        any::<u64>().prop_map(|id| Command::CloseSession(SessionId(id))),
        (any::<u64>(), any::<u64>(), any::<u64>(), route(), op).prop_map(
            |(session, seq, ack_upto, route, op)| {
                Command::write(SessionId(session), seq, ack_upto, route, op)
            }
        ),
        (clock(), vec(grant(), 0..4)).prop_map(|(term, leases)| Command::ExpireLeases(term, leases)),
        (clock(), vec((grant(), any::<i64>()), 0..4))
            .prop_map(|(term, leases)| Command::CheckpointLeases(term, leases)),
        any::<(u64, u64)>().prop_map(|(round, node)| Command::StartClock(ClockOwner { round, node })),
        (any::<u64>(), any::<u32>()).prop_map(|(quota_bytes, max_sessions)| {
            Command::SetLimits(Limits { quota_bytes, max_sessions })
        }),
        vec(vec(any::<u8>(), 0..4).prop_map(Bytes::from), 0..3).prop_map(Command::SetLeaderRegions),
        alarm().prop_map(|(member, kind)| Command::RaiseAlarm(Alarm { member, kind })),
        Just(Command::RaiseVersion(ClusterVersion::NEWEST)),
    ]
}

pub(crate) fn envelope() -> impl Strategy<Value = Envelope> {
    let range =
        (2_i64..1 << 53, 1_u32..).prop_map(|(first, count)| RevisionRange { first: Revision(first), count });
    let revisions = prop_oneof![Just(Revisions::Next), range.prop_map(Revisions::Given)];
    let proposed_ms = option::of(any::<u64>());
    (revisions, proposed_ms).prop_map(|(revisions, proposed_ms)| Envelope { revisions, proposed_ms })
}

fn route() -> impl Strategy<Value = Route> {
    let whole = (any::<u64>(), any::<u64>());
    whole.prop_map(|(shard, epoch)| Route { shard: ShardId(shard), epoch: Epoch(epoch) })
}
