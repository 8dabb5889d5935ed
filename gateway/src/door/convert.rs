//! Between etcd's messages and the types of the state machine. Past this file nobody knows protobuf.

use api::etcdserverpb as pb;
use api::etcdserverpb::{compare, request_op, response_op};
use api::mvccpb;
use keyspace::MAX_TXN_DEPTH;
use keyspace::{
    Compare, CompareResult, CompareTarget, DeleteRange, DeleteRangeReply, Event, EventKind, KeyRange,
    KeyValue, LeaseId, Put, PutReply, RangeReply, RangeRequest, SortOrder, SortTarget, Txn, TxnOp,
    TxnOpReply, TxnReply,
};
use prost::{DecodeError, Message};

pub fn range(request: pb::RangeRequest) -> RangeRequest {
    // etcd up to 3.5 leaves the answer as it is, in the order of keys, when the order has a number without meaning; later
    // ones refuse that.
    let (sort_order, sort_target) = match SortOrder::from_wire(request.sort_order) {
        SortOrder::Invalid => (SortOrder::Ascend, SortTarget::Key),
        order @ (SortOrder::None | SortOrder::Ascend | SortOrder::Descend) => {
            (order, SortTarget::from_wire(request.sort_target))
        }
    };
    RangeRequest {
        range: KeyRange::from_wire(request.key, request.range_end),
        revision: request.revision,
        limit: request.limit,
        sort_order,
        sort_target,
        serializable: request.serializable,
        keys_only: request.keys_only,
        count_only: request.count_only,
        min_mod_revision: request.min_mod_revision,
        max_mod_revision: request.max_mod_revision,
        min_create_revision: request.min_create_revision,
        max_create_revision: request.max_create_revision,
    }
}

pub fn put(request: pb::PutRequest) -> Put {
    Put {
        key: request.key,
        value: request.value,
        lease: LeaseId(request.lease),
        prev_kv: request.prev_kv,
        ignore_value: request.ignore_value,
        ignore_lease: request.ignore_lease,
    }
}

pub fn delete_range(request: pb::DeleteRangeRequest) -> DeleteRange {
    DeleteRange { range: KeyRange::from_wire(request.key, request.range_end), prev_kv: request.prev_kv }
}

/// A transaction with those nested in it, which are still bytes. One that is nested too deep is left empty: at that place
/// [`keyspace::check::txn`] says so, if nothing before it is wrong.
pub fn txn(request: pb::TxnRequest) -> Result<Txn, DecodeError> {
    nested_txn(request, MAX_TXN_DEPTH)
}

fn nested_txn(request: pb::TxnRequest, depth: usize) -> Result<Txn, DecodeError> {
    let ops = |ops: Vec<pb::RequestOp>| -> Result<Vec<TxnOp>, DecodeError> {
        ops.into_iter().map(|op| txn_op(op, depth)).collect()
    };
    Ok(Txn {
        compare: request.compare.into_iter().map(compare).collect(),
        success: ops(request.success)?,
        failure: ops(request.failure)?,
    })
}

/// `depth` bounds the recursion: a level takes less than a kilobyte of stack.
fn txn_op(op: pb::RequestOp, depth: usize) -> Result<TxnOp, DecodeError> {
    Ok(match op.request {
        Some(request_op::Request::RequestRange(request)) => TxnOp::Range(range(request)),
        Some(request_op::Request::RequestPut(request)) => TxnOp::Put(put(request)),
        Some(request_op::Request::RequestDeleteRange(request)) => TxnOp::DeleteRange(delete_range(request)),
        Some(request_op::Request::RequestTxn(request)) => TxnOp::Txn(match depth.checked_sub(1) {
            Some(depth) => nested_txn(pb::TxnRequest::decode(request)?, depth)?,
            None => Txn::default(),
        }),
        None => TxnOp::Empty,
    })
}

/// A field of another target than the one named counts as unset, and unset as zero, as in etcd.
fn compare(compare: pb::Compare) -> Compare {
    use compare::TargetUnion as Union;
    let given = compare.target_union;
    let target = match compare::CompareTarget::try_from(compare.target) {
        Ok(compare::CompareTarget::Version) => CompareTarget::Version(match given {
            Some(Union::Version(version)) => version,
            Some(_) | None => 0,
        }),
        Ok(compare::CompareTarget::Create) => CompareTarget::Create(match given {
            Some(Union::CreateRevision(revision)) => revision,
            Some(_) | None => 0,
        }),
        Ok(compare::CompareTarget::Mod) => CompareTarget::Mod(match given {
            Some(Union::ModRevision(revision)) => revision,
            Some(_) | None => 0,
        }),
        Ok(compare::CompareTarget::Value) => CompareTarget::Value(match given {
            Some(Union::Value(value)) => value,
            Some(_) | None => bytes::Bytes::new(),
        }),
        Ok(compare::CompareTarget::Lease) => CompareTarget::Lease(LeaseId(match given {
            Some(Union::Lease(lease)) => lease,
            Some(_) | None => 0,
        })),
        Err(_) => CompareTarget::Unknown,
    };
    Compare {
        range: KeyRange::from_wire(compare.key, compare.range_end),
        result: CompareResult::from_wire(compare.result),
        target,
    }
}

pub(crate) fn key_value(kv: KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key,
        create_revision: kv.create_revision.0,
        mod_revision: kv.mod_revision.0,
        version: kv.version,
        value: kv.value,
        lease: kv.lease.0,
    }
}

/// How many bytes keys with their values take in a message.
pub(crate) fn key_values_len(kvs: &[KeyValue]) -> usize {
    let len = |kv: &KeyValue| {
        let len = key_value(kv.clone()).encoded_len();
        // Before each stands a byte, and its length.
        1 + prost::length_delimiter_len(len) + len
    };
    kvs.iter().map(len).sum()
}

pub(crate) fn range_reply(reply: RangeReply, header: Option<pb::ResponseHeader>) -> pb::RangeResponse {
    pb::RangeResponse {
        header,
        kvs: reply.kvs.into_iter().map(key_value).collect(),
        more: reply.more,
        count: reply.count,
    }
}

pub(crate) fn put_reply(reply: PutReply, header: Option<pb::ResponseHeader>) -> pb::PutResponse {
    pb::PutResponse { header, prev_kv: reply.prev_kv.map(key_value) }
}

pub(crate) fn delete_range_reply(
    reply: DeleteRangeReply,
    header: Option<pb::ResponseHeader>,
) -> pb::DeleteRangeResponse {
    pb::DeleteRangeResponse {
        header,
        deleted: reply.deleted,
        prev_kvs: reply.prev_kvs.into_iter().map(key_value).collect(),
    }
}

pub(crate) fn txn_reply(reply: TxnReply, header: Option<pb::ResponseHeader>) -> pb::TxnResponse {
    pb::TxnResponse {
        header,
        succeeded: reply.succeeded,
        responses: reply.responses.into_iter().map(txn_op_reply).collect(),
    }
}

/// Answers inside a transaction have a header that tells the revision alone.
fn txn_op_reply(reply: TxnOpReply) -> pb::ResponseOp {
    let inner = |revision: keyspace::Revision| {
        Some(pb::ResponseHeader { revision: revision.0, ..Default::default() })
    };
    let response = match reply {
        TxnOpReply::Range(reply) => {
            let header = inner(reply.revision);
            response_op::Response::ResponseRange(range_reply(reply, header))
        }
        TxnOpReply::Put(reply) => {
            let header = inner(reply.revision);
            response_op::Response::ResponsePut(put_reply(reply, header))
        }
        TxnOpReply::DeleteRange(reply) => {
            let header = inner(reply.revision);
            response_op::Response::ResponseDeleteRange(delete_range_reply(reply, header))
        }
        TxnOpReply::Txn(reply) => {
            let header = inner(reply.revision);
            response_op::Response::ResponseTxn(txn_reply(reply, header))
        }
    };
    pb::ResponseOp { response: Some(response) }
}

pub(crate) fn event(event: &Event) -> mvccpb::Event {
    let kind = match event.kind {
        EventKind::Put => mvccpb::event::EventType::Put,
        EventKind::Delete => mvccpb::event::EventType::Delete,
    };
    mvccpb::Event {
        r#type: kind.into(),
        kv: Some(key_value(event.kv.clone())),
        prev_kv: event.prev_kv.clone().map(key_value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comparison_with_the_wrong_field_compares_with_zero() {
        let request = pb::Compare {
            target: compare::CompareTarget::Mod.into(),
            key: "k".into(),
            target_union: Some(compare::TargetUnion::Version(7)),
            ..Default::default()
        };
        assert_eq!(compare(request).target, CompareTarget::Mod(0));
    }

    #[test]
    fn an_operation_left_unset_stays_visible_to_the_checks() {
        let request = pb::TxnRequest { success: vec![pb::RequestOp { request: None }], ..Default::default() };
        assert_eq!(keyspace::check::txn(&txn(request).unwrap(), 128), Err(keyspace::Error::KeyNotFound));
    }
}
