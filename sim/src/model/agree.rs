//! When an answer is as good as the model's.

use super::{
    Answer, KeyValue, LeaseTimeToLiveResponse, RangeRequest, RangeResponse, Request, RequestOp, Response,
    ResponseOp, SortTarget, TxnRequest, TxnResponse, compare_by,
};

/// Whether `answer` is one that etcd may give where the model says `expected`. The two must be equal but for what etcd
/// leaves open: the order of equal elements in a sorted range (and, where the limit cuts through them, which of them
/// are returned: those are compared by what they are sorted by only), the id picked for a lease without one, the order
/// of leases, and the time a lease has left.
pub fn agrees(request: &Request, expected: &Answer, answer: &Answer) -> bool {
    let (expected, answer) = match (expected, answer) {
        (Ok(expected), Ok(answer)) => (expected, answer),
        (Err(expected), Err(answer)) => return expected == answer,
        (Ok(_), Err(_)) | (Err(_), Ok(_)) => return false,
    };
    match (request, expected, answer) {
        (Request::Range(request), Response::Range(expected), Response::Range(answer)) => {
            range_agrees(request, expected, answer)
        }
        (Request::Txn(request), Response::Txn(expected), Response::Txn(answer)) => {
            txn_agrees(request, expected, answer)
        }
        (Request::LeaseGrant(request), Response::LeaseGrant(expected), Response::LeaseGrant(answer)) => {
            let id_agrees = if request.id == 0 { answer.id > 0 } else { answer.id == expected.id };
            id_agrees && answer.ttl == expected.ttl && answer.revision == expected.revision
        }
        (
            Request::LeaseTimeToLive(_),
            Response::LeaseTimeToLive(expected),
            Response::LeaseTimeToLive(answer),
        ) => time_to_live_agrees(expected, answer),
        (Request::Leases, Response::Leases(expected), Response::Leases(answer)) => {
            let mut ids = answer.ids.clone();
            ids.sort_unstable();
            ids == expected.ids && answer.revision == expected.revision
        }
        (_, expected, answer) => expected == answer,
    }
}

fn range_agrees(request: &RangeRequest, expected: &RangeResponse, answer: &RangeResponse) -> bool {
    if expected == answer {
        return true;
    }
    if request.sort_target == SortTarget::Key {
        return false;
    }
    let same_frame = expected.revision == answer.revision
        && expected.count == answer.count
        && expected.more == answer.more
        && expected.kvs.len() == answer.kvs.len();
    // Values are sorted by before `keys_only` drops them: nothing is left to hold the order against.
    let blind = request.keys_only && request.sort_target == SortTarget::Value;
    let same = |a: &KeyValue, b: &KeyValue| blind || compare_by(request.sort_target, a, b).is_eq();
    let Some(last) = expected.kvs.last() else { return same_frame };
    // Elements that equal the last one may have been exchanged for some that the limit cut off.
    let cut = |kv: &KeyValue| expected.more && same(kv, last);
    let key_order = |kvs: &[KeyValue]| {
        let mut kept: Vec<KeyValue> = kvs.iter().filter(|kv| !cut(kv)).cloned().collect();
        kept.sort();
        kept
    };
    let mut keys: Vec<&[u8]> = answer.kvs.iter().map(|kv| kv.key.as_slice()).collect();
    keys.sort_unstable();
    keys.dedup();
    same_frame
        && keys.len() == answer.kvs.len()
        && answer.kvs.iter().all(|kv| request.range.contains(&kv.key))
        && expected.kvs.iter().zip(&answer.kvs).all(|(a, b)| same(a, b))
        && key_order(&expected.kvs) == key_order(&answer.kvs)
}

fn txn_agrees(request: &TxnRequest, expected: &TxnResponse, answer: &TxnResponse) -> bool {
    let same_frame = expected.revision == answer.revision
        && expected.succeeded == answer.succeeded
        && expected.responses.len() == answer.responses.len();
    let ops = if expected.succeeded { &request.success } else { &request.failure };
    let op_agrees = |op: &RequestOp, expected: &ResponseOp, answer: &ResponseOp| match (op, expected, answer)
    {
        (RequestOp::Range(request), ResponseOp::Range(expected), ResponseOp::Range(answer)) => {
            range_agrees(request, expected, answer)
        }
        (RequestOp::Txn(request), ResponseOp::Txn(expected), ResponseOp::Txn(answer)) => {
            txn_agrees(request, expected, answer)
        }
        (_, expected, answer) => expected == answer,
    };
    let answers = expected.responses.iter().zip(&answer.responses);
    same_frame && ops.iter().zip(answers).all(|(op, (expected, answer))| op_agrees(op, expected, answer))
}

fn time_to_live_agrees(expected: &LeaseTimeToLiveResponse, answer: &LeaseTimeToLiveResponse) -> bool {
    let mut keys = answer.keys.clone();
    keys.sort();
    let time_agrees = if expected.ttl < 0 { answer.ttl == expected.ttl } else { answer.ttl <= expected.ttl };
    time_agrees
        && answer.revision == expected.revision
        && answer.id == expected.id
        && answer.granted_ttl == expected.granted_ttl
        && keys == expected.keys
}
