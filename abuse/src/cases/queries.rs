//! Small requests that are much work, or would have large answers.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::etcdserverpb as pb;
use pb::range_request::{SortOrder, SortTarget};
use pb::request_op::Request;
use prost::Message as _;

use super::{HOSTILE, Outcome, megabytes, small};
use crate::raw::list;
use crate::stage::{Stage, for_a_while};

const ATTACK_FOR: Duration = Duration::from_secs(3);

/// All keys must be looked at for the one that is wanted.
fn sorted() -> pb::RangeRequest {
    pb::RangeRequest {
        limit: 1,
        sort_order: SortOrder::Descend.into(),
        sort_target: SortTarget::Value.into(),
        ..list(HOSTILE)
    }
}

fn repeated(request: Request, count: usize) -> pb::TxnRequest {
    let op = pb::RequestOp { request: Some(request) };
    pb::TxnRequest { success: vec![op; count], ..Default::default() }
}

pub(super) async fn sorted_txns(stage: Arc<Stage>) -> Outcome {
    stage.fill(small(50_000)).await?;
    ask_again_and_again(&stage, 12, repeated(Request::RequestRange(sorted()), 128)).await
}

pub(super) async fn count_txns(stage: Arc<Stage>) -> Outcome {
    stage.fill(small(50_000)).await?;
    let count = pb::RangeRequest { count_only: true, ..list(HOSTILE) };
    ask_again_and_again(&stage, 12, repeated(Request::RequestRange(count), 128)).await
}

pub(super) async fn sorted_ranges(stage: Arc<Stage>) -> Outcome {
    stage.fill(small(200_000)).await?;
    ask_again_and_again(&stage, 4, repeated(Request::RequestRange(sorted()), 1)).await
}

/// Whether a transaction enters the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
}

pub(super) async fn wide_txns(stage: Arc<Stage>, kind: Kind) -> Outcome {
    stage.fill(megabytes(10)).await?;
    let inner = repeated(Request::RequestRange(list(HOSTILE)), 64);
    let mut outer = repeated(Request::RequestTxn(inner.encode_to_vec().into()), 64);
    if kind == Kind::Write {
        // As many operations as before: no more are let in.
        outer.success.pop();
        let put = pb::PutRequest { key: "hostile-put".into(), ..Default::default() };
        outer.success.push(pb::RequestOp { request: Some(Request::RequestPut(put)) });
    }
    ask_again_and_again(&stage, 4, outer).await
}

async fn ask_again_and_again(stage: &Stage, callers: usize, txn: pb::TxnRequest) -> Outcome {
    let (answered, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let why = Arc::new(Mutex::new(String::new()));
    let mut asking = Vec::new();
    for _ in 0..stage.sized(callers) {
        let (mut client, txn) = (stage.kv().await?, txn.clone());
        let (answered, refused, why) = (Arc::clone(&answered), Arc::clone(&refused), Arc::clone(&why));
        asking.push(async move {
            loop {
                match client.txn(txn.clone()).await {
                    Ok(_) => drop(answered.fetch_add(1, Relaxed)),
                    Err(status) => {
                        refused.fetch_add(1, Relaxed);
                        status.message().clone_into(&mut why.lock().unwrap_or_else(PoisonError::into_inner));
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                }
            }
        });
    }
    stage.begin().await;
    for_a_while(ATTACK_FOR, asking).await?;
    let why = why.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(format!(
        "{} answered, {} refused, the last with {why:?}",
        answered.load(Relaxed),
        refused.load(Relaxed)
    ))
}
