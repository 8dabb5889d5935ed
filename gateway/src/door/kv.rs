//! The service KV. Each handler has four steps: validate, call, translate the error, fill the header.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use api::etcdserverpb as pb;
use keyspace::{
    Op, Query, RangeEnd, RangeReply, RangeRequest, Reply, Revision, SortOrder, SortTarget, Txn, TxnOp, check,
};
use tokio_stream::Stream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::errors::to_status;
use super::large::{LARGE_BYTES, LargeRange};
use super::{Caller, Door, convert};
use crate::context::{Priority, RequestContext};
use crate::domain::{Answer, Consistency, Domain};
use gateway_core::Failure;
use gateway_core::admission::Lane;
use gateway_core::range_stream::{RangeStream, StreamEnd};

/// What etcd's raft request adds to a client's message at most: an id, a tag and lengths.
const RAFT_REQUEST_OVERHEAD_BYTES: usize = 18;

/// As many keys are few.
const SMALL_MAX: i64 = 100;

pub(super) struct Kv<D>(pub(super) Arc<Caller<D>>);

/// An answer of another kind than the question's.
pub(super) const MISMATCH: Failure = Failure::Internal("gaios: an answer to another question");

impl<D: Domain> Door<D> {
    /// Refuses what etcd would not put through its log.
    pub(super) fn check_size(&self, request: &impl prost::Message) -> Result<(), Failure> {
        if request.encoded_len() + RAFT_REQUEST_OVERHEAD_BYTES > self.options.request_bytes_max {
            return Err(Failure::TooLarge);
        }
        Ok(())
    }
}

impl<D: Domain> Caller<D> {
    async fn range(
        &self,
        metadata: &MetadataMap,
        request: RangeRequest,
    ) -> Result<Response<pb::RangeResponse>, Failure> {
        let context = self.admit(metadata, Lane::Read, priority_of(&request))?;
        let consistency = self.consistency(request.serializable, Revision(request.revision));
        let answer = self.domain.read(&context, Query::Range(request), consistency).await?;
        let is_large = answer.reply.holds_more_than(LARGE_BYTES);
        let Reply::Range(reply) = answer.reply else { return Err(MISMATCH) };
        let header = self.header(reply.revision, answer.term);
        if !is_large {
            return Ok(Response::new(convert::range_reply(reply, header)));
        }
        let mut response = Response::new(pb::RangeResponse::default());
        response.extensions_mut().insert(LargeRange { header, reply });
        Ok(response)
    }
}

/// What is left of a stream.
struct Chunks<D> {
    caller: Arc<Caller<D>>,
    /// The stream's.
    context: RequestContext,
    serializable: bool,
    stream: RangeStream,
}

impl<D: Domain> Chunks<D> {
    fn messages(self) -> impl Stream<Item = Result<pb::RangeStreamResponse, Status>> + Send {
        futures::stream::try_unfold(Some(self), |left| async move {
            let Some(mut chunks) = left else { return Ok(None) };
            let (message, is_last) = chunks.next().await.map_err(to_status)?;
            Ok(Some((message, if is_last { None } else { Some(chunks) })))
        })
    }

    /// The next message, and whether it is the last one.
    async fn next(&mut self) -> Result<(pb::RangeStreamResponse, bool), Failure> {
        // One that was let in is not refused half-way.
        let permit = self.caller.client().admit(None, Lane::Read, Priority::Large);
        let _permit = if self.stream.is_pinned() { permit.ok() } else { Some(permit?) };
        let page = self.stream.page();
        let revision = Revision(page.revision);
        let context = self.caller.context_in(&self.context);
        let mut consistency = self.caller.consistency(self.serializable, revision);
        let limit = page.limit;
        let query = Query::Page(page);
        let mut answered = self.caller.domain.read(&context, query.clone(), consistency).await;
        // The replica that answered the last time may be gone, and the nearest one now too far behind.
        if self.serializable
            && self.stream.is_pinned()
            && matches!(answered, Err(Failure::Refused(keyspace::Error::FutureRevision)))
        {
            consistency = Consistency::Linearizable;
            answered = self.caller.domain.read(&context, query, consistency).await;
        }
        let Answer { reply: Reply::Range(page), term } = answered? else { return Err(MISMATCH) };
        if page.kvs.len() as u64 > limit {
            return Err(MISMATCH);
        }
        let end = self.stream.handle(&page, convert::key_values_len(&page.kvs));
        let (header, more, count) = match end {
            Some(StreamEnd { revision, more, count }) => (self.caller.header(revision, term), more, count),
            None => (None, false, 0),
        };
        let response = convert::range_reply(RangeReply { more, count, ..page }, header);
        Ok((pb::RangeStreamResponse { range_response: Some(response) }, end.is_some()))
    }
}

/// One that may be of many keys is large, however few there turn out to be.
fn priority_of(range: &RangeRequest) -> Priority {
    let is_few =
        range.range.end == RangeEnd::Single || range.count_only || (1..=SMALL_MAX).contains(&range.limit);
    if is_few { Priority::Small } else { Priority::Large }
}

/// The newest revision that a transaction's ranges ask for; 0 if they ask for none.
fn newest_revision(txn: &Txn) -> Revision {
    let of = |op: &TxnOp| match op {
        TxnOp::Range(range) => Revision(range.revision),
        TxnOp::Txn(txn) => newest_revision(txn),
        TxnOp::Put(_) | TxnOp::DeleteRange(_) | TxnOp::Empty => Revision(0),
    };
    txn.success.iter().chain(&txn.failure).map(of).max().unwrap_or_default()
}

#[tonic::async_trait]
impl<D: Domain> pb::kv_server::Kv for Kv<D> {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let request = convert::range(request);
        check::range(&request).map_err(to_status)?;
        self.0.range(&metadata, request).await.map_err(to_status)
    }

    type RangeStreamStream = Pin<Box<dyn Stream<Item = Result<pb::RangeStreamResponse, Status>> + Send>>;

    /// In chunks, of which one is read when the client has taken the one before.
    async fn range_stream(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let (metadata, _, request) = request.into_parts();
        let request = convert::range(request);
        check::range(&request).map_err(to_status)?;
        let is_by_key = match request.sort_order {
            SortOrder::None => true,
            SortOrder::Ascend => request.sort_target == SortTarget::Key,
            SortOrder::Descend | SortOrder::Invalid => false,
        };
        if !is_by_key {
            return Err(Status::unimplemented("RangeStream does not support custom sort orders"));
        }
        let filters = [
            request.min_mod_revision,
            request.max_mod_revision,
            request.min_create_revision,
            request.max_create_revision,
        ];
        if filters.iter().any(|filter| *filter != 0) {
            return Err(Status::unimplemented("RangeStream does not support revision filters"));
        }
        if request.count_only {
            let counted = self.0.range(&metadata, request).await.map_err(to_status)?;
            let range_response = Some(counted.into_inner());
            let only = tokio_stream::once(Ok(pb::RangeStreamResponse { range_response }));
            return Ok(Response::new(Box::pin(only)));
        }
        let chunks = Chunks {
            caller: Arc::clone(&self.0),
            context: self.0.context(&metadata, Priority::Large),
            serializable: request.serializable,
            stream: RangeStream::new(request, self.0.options.request_bytes_max),
        };
        Ok(Response::new(Box::pin(chunks.messages())))
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        let context = self.0.admit(request.metadata(), Lane::Write, Priority::Small).map_err(to_status)?;
        let request = request.into_inner();
        let size = self.0.check_size(&request);
        let put = convert::put(request);
        check::put(&put).map_err(to_status)?;
        size.map_err(to_status)?;
        let answer = self.0.domain.write(&context, Op::Put(put)).await.map_err(to_status)?;
        let Reply::Put(reply) = answer.reply else { return Err(to_status(MISMATCH)) };
        let header = self.0.header(reply.revision, answer.term);
        Ok(Response::new(convert::put_reply(reply, header)))
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let size = self.0.check_size(&request);
        let delete = convert::delete_range(request);
        check::delete_range(&delete).map_err(to_status)?;
        size.map_err(to_status)?;
        let is_one = delete.range.end == RangeEnd::Single;
        let priority = if is_one { Priority::Small } else { Priority::Large };
        let context = self.0.admit(&metadata, Lane::Write, priority).map_err(to_status)?;
        let answer = self.0.domain.write(&context, Op::DeleteRange(delete)).await.map_err(to_status)?;
        let Reply::DeleteRange(reply) = answer.reply else { return Err(to_status(MISMATCH)) };
        let header = self.0.header(reply.revision, answer.term);
        Ok(Response::new(convert::delete_range_reply(reply, header)))
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let size = self.0.check_size(&request);
        // As grpc-go says it where etcd cannot read a request.
        let unreadable = |error| Status::internal(format!("grpc: error unmarshalling request: {error}"));
        let txn = convert::txn(request).map_err(unreadable)?;
        check::txn(&txn, self.0.txn_ops_max.load(Ordering::Relaxed)).map_err(to_status)?;
        let lane = if txn.is_read_only() { Lane::Read } else { Lane::Write };
        let context = self.0.admit(&metadata, lane, Priority::Small).map_err(to_status)?;
        let answer = if txn.is_read_only() {
            let consistency = self.0.consistency(txn.is_serializable(), newest_revision(&txn));
            self.0.domain.read(&context, Query::Txn(txn), consistency).await.map_err(to_status)?
        } else {
            size.map_err(to_status)?;
            self.0.domain.write(&context, Op::Txn(txn)).await.map_err(to_status)?
        };
        let Reply::Txn(reply) = answer.reply else { return Err(to_status(MISMATCH)) };
        let header = self.0.header(reply.revision, answer.term);
        Ok(Response::new(convert::txn_reply(reply, header)))
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        // A compaction is complete when it is answered, so `physical` has nothing to wait for.
        let context = self.0.admit(request.metadata(), Lane::Write, Priority::Small).map_err(to_status)?;
        let revision = request.into_inner().revision;
        let answer = self.0.domain.write(&context, Op::Compact { revision }).await.map_err(to_status)?;
        let Reply::Compacted { revision } = answer.reply else { return Err(to_status(MISMATCH)) };
        let header = self.0.header(revision, answer.term);
        Ok(Response::new(pb::CompactionResponse { header }))
    }
}
