//! The service KV. Each handler has four steps: validate, call, translate the error, fill the header.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use api::etcdserverpb as pb;
use keyspace::{
    ListRequest, Op, PageRequest, Query, RangeEnd, RangeReply, RangeRequest, Reply, Revision, SortOrder,
    SortTarget, Txn, TxnOp, check,
};
use tokio_stream::Stream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::errors::to_status;
use super::large::{self, Page, Reading, held_bytes};
use super::{Caller, Door, convert};
use crate::admission::{COUNTED_FROM, Taken, Use};
use crate::context::{Priority, RequestContext};
use crate::domain::{Answer, Consistency, Domain};
use crate::journey;
use gateway_core::Failure;
use gateway_core::admission::Lane;
use gateway_core::range_pages::RangePages;
use gateway_core::range_stream::{RangeStream, StreamEnd};

/// What etcd's raft request adds to a client's message at most: an id, a tag and lengths.
const RAFT_REQUEST_OVERHEAD_BYTES: usize = 18;

/// An answer with longer entries, in bytes, is read page by page.
const WHOLE_BYTES_MAX: u64 = 1 << 20;
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
        self: &Arc<Self>,
        metadata: &MetadataMap,
        request: RangeRequest,
    ) -> Result<Response<pb::RangeResponse>, Failure> {
        let context = self.admit(metadata, Lane::Read, priority_of(&request))?;
        let serializable = request.serializable;
        let consistency = self.consistency(serializable, Revision(request.revision));
        let list = list(&request);
        let query = list.clone().map_or(Query::Range(request), Query::List);
        let Answer { reply, term } = self.domain.read(&context, query, consistency).await?;
        let is_small = !reply.holds_more_than(COUNTED_FROM);
        match (reply, list) {
            (Reply::Range(reply), _) => {
                let header = self.header(reply.revision, term);
                if is_small {
                    return Ok(Response::new(convert::range_reply(reply, header)));
                }
                let mut taken = journey::take_answer()
                    .or_else(|| Taken::take(self.client(), Use::Answers, COUNTED_FROM))
                    .ok_or(Failure::Overloaded)?;
                taken.settle(held_bytes(&reply.kvs));
                Ok(large::whole(header, reply, taken))
            }
            (Reply::Measured(measured), Some(list)) => {
                let header = self.header(measured.revision, term);
                let left = RangePages::new(list, &measured);
                // However few its keys are.
                let context = RequestContext { priority: Priority::Large, ..context };
                let pages = Pages { caller: Arc::clone(self), context, serializable, left };
                Ok(large::paged(header, &measured, pages.read()))
            }
            _ => Err(MISMATCH),
        }
    }

    /// Reads a page for a request that goes on for long.
    async fn page(
        &self,
        context: &RequestContext,
        page: PageRequest,
        serializable: bool,
        is_pinned: bool,
    ) -> Result<(RangeReply, u64), Failure> {
        // One that was let in is not refused half-way.
        let permit = self.client().admit(None, Lane::Read, Priority::Large);
        let _permit = if is_pinned { permit.ok() } else { Some(permit?) };
        let context = self.context_in(context);
        let mut consistency = self.consistency(serializable, Revision(page.revision));
        let limit = page.limit;
        let query = Query::Page(page);
        let mut answered = self.domain.read(&context, query.clone(), consistency).await;
        // The replica that answered the last time may be gone, and the nearest one now too far behind.
        if serializable
            && is_pinned
            && matches!(answered, Err(Failure::Refused(keyspace::Error::FutureRevision)))
        {
            consistency = Consistency::Linearizable;
            answered = self.domain.read(&context, query, consistency).await;
        }
        let Answer { reply: Reply::Range(page), term } = answered? else { return Err(MISMATCH) };
        if page.kvs.len() as u64 > limit {
            return Err(MISMATCH);
        }
        Ok((page, term))
    }
}

/// What is left of an answer that was measured.
struct Pages<D> {
    caller: Arc<Caller<D>>,
    /// The request's.
    context: RequestContext,
    serializable: bool,
    left: RangePages,
}

impl<D: Domain> Pages<D> {
    /// Reads a page, when there is room for it.
    fn read(mut self) -> Reading {
        Box::pin(async move {
            let Some(page) = self.left.page() else { return Ok(None) };
            let wanted = page.bytes.min(self.left.wire_bytes()) as usize;
            let mut taken = Taken::take_in_time(self.caller.client(), Use::Answers, wanted).await?;
            let (page, _) = self.caller.page(&self.context, page, self.serializable, true).await?;
            taken.settle(held_bytes(&page.kvs));
            self.left.handle(&page.kvs).map_err(|_| MISMATCH)?;
            Ok(Some(Page { kvs: page.kvs, taken, rest: self.read() }))
        })
    }
}

/// As a range is asked for whose answer may be long; none for other ones, which cannot be read page by page.
fn list(request: &RangeRequest) -> Option<ListRequest> {
    let is_by_key = request.sort_target == SortTarget::Key && request.sort_order != SortOrder::Descend;
    let can_be_paged = is_by_key && !request.count_only && !has_revision_filters(request);
    // A few keys may have long values.
    (can_be_paged && request.range.end != RangeEnd::Single).then(|| ListRequest {
        range: request.range.clone(),
        revision: request.revision,
        limit: u64::try_from(request.limit).unwrap_or(0),
        keys_only: request.keys_only,
        bytes: WHOLE_BYTES_MAX,
    })
}

fn has_revision_filters(request: &RangeRequest) -> bool {
    let filters = [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ];
    filters.iter().any(|filter| *filter != 0)
}

/// What is left of a stream.
struct Chunks<D> {
    caller: Arc<Caller<D>>,
    /// The stream's.
    context: RequestContext,
    serializable: bool,
    stream: RangeStream,
    /// Of the message that was made last.
    taken: Option<Taken>,
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
        // The message before has been taken, or is counted on its way.
        drop(self.taken.take());
        let bytes = self.caller.options.request_bytes_max;
        let mut taken = Taken::take_in_time(self.caller.client(), Use::Answers, bytes).await?;
        let (asked, is_pinned) = (self.stream.page(), self.stream.is_pinned());
        let (page, term) = self.caller.page(&self.context, asked, self.serializable, is_pinned).await?;
        taken.settle(held_bytes(&page.kvs));
        self.taken = Some(taken);
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
        if has_revision_filters(&request) {
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
            taken: None,
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
