//! A client of etcd's gRPC services that speaks the types of the model. It balances over the gateways, as clients do.
//! `None` stands for every error: none of the requests made here can be refused, so what an error leaves is an unknown
//! outcome.

use api::etcdserverpb as pb;
use api::etcdserverpb::kv_client::KvClient;
use api::etcdserverpb::watch_client::WatchClient;
use api::mvccpb;
use sim::linear::history::WatchMessage;
use sim::model;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

#[derive(Clone)]
pub(crate) struct Client {
    kv: KvClient<Channel>,
    watch: WatchClient<Channel>,
}

/// Some watches on one stream.
pub(crate) struct Watch {
    requests: mpsc::Sender<pb::WatchRequest>,
    messages: Streaming<pb::WatchResponse>,
}

impl Client {
    pub(crate) async fn connect(endpoints: &[String]) -> Option<Client> {
        let endpoints = endpoints.iter().map(|endpoint| Endpoint::from_shared(endpoint.clone()).unwrap());
        let channel = Channel::balance_list(endpoints);
        // As Go's clients, which take 2 GiB.
        let kv = KvClient::new(channel.clone()).max_decoding_message_size(i32::MAX as usize);
        Some(Client { kv, watch: WatchClient::new(channel) })
    }

    pub(crate) async fn put(&mut self, request: model::PutRequest) -> Option<model::PutResponse> {
        let answer = self.kv.put(put(request)).await.ok()?.into_inner();
        Some(model::PutResponse { revision: answer.header?.revision, prev_kv: None })
    }

    pub(crate) async fn range(&mut self, request: model::RangeRequest) -> Option<model::RangeResponse> {
        range_response(self.kv.range(range(request)).await.ok()?.into_inner())
    }

    pub(crate) async fn delete(
        &mut self,
        request: model::DeleteRangeRequest,
    ) -> Option<model::DeleteRangeResponse> {
        let request = pb::DeleteRangeRequest {
            key: request.range.key.into(),
            range_end: request.range.range_end.into(),
            prev_kv: request.prev_kv,
        };
        let answer = self.kv.delete_range(request).await.ok()?.into_inner();
        Some(model::DeleteRangeResponse {
            revision: answer.header?.revision,
            deleted: answer.deleted,
            prev_kvs: answer.prev_kvs.into_iter().map(key_value).collect(),
        })
    }

    /// A transaction of comparisons by mod revision, puts and ranges.
    pub(crate) async fn txn(&mut self, request: model::TxnRequest) -> Option<model::TxnResponse> {
        let request = pb::TxnRequest {
            compare: request.compare.into_iter().map(compare).collect(),
            success: request.success.into_iter().map(request_op).collect(),
            failure: request.failure.into_iter().map(request_op).collect(),
        };
        let answer = self.kv.txn(request).await.ok()?.into_inner();
        Some(model::TxnResponse {
            revision: answer.header?.revision,
            succeeded: answer.succeeded,
            responses: answer.responses.into_iter().map(response_op).collect::<Option<_>>()?,
        })
    }

    /// Opens watches on one stream. The server numbers them as they are here.
    pub(crate) async fn watch(&mut self, watches: &[model::WatchRequest]) -> Option<Watch> {
        let (requests, stream) = mpsc::channel(watches.len());
        for watch in watches.iter().cloned() {
            let create = pb::WatchCreateRequest {
                key: watch.range.key.into(),
                range_end: watch.range.range_end.into(),
                start_revision: watch.start_revision,
                prev_kv: watch.prev_kv,
                ..Default::default()
            };
            let create = pb::watch_request::RequestUnion::CreateRequest(create);
            requests.send(pb::WatchRequest { request_union: Some(create) }).await.ok()?;
        }
        let messages = self.watch.watch(ReceiverStream::new(stream)).await.ok()?.into_inner();
        Some(Watch { requests, messages })
    }
}

impl Watch {
    /// Asks how far the stream is.
    pub(crate) async fn request_progress(&mut self) -> Option<()> {
        let progress = pb::watch_request::RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
        self.requests.send(pb::WatchRequest { request_union: Some(progress) }).await.ok()
    }

    /// The next response: the number of its watch, its header's revision and what it says. `None` at the end of the
    /// stream.
    pub(crate) async fn next(&mut self) -> Option<(i64, i64, Vec<WatchMessage>)> {
        let response = self.messages.message().await.ok()??;
        let mut messages = Vec::new();
        if !response.created && !response.canceled && response.events.is_empty() {
            messages.push(WatchMessage::Progress);
        }
        if response.created {
            messages.push(WatchMessage::Created);
        }
        if !response.events.is_empty() {
            let events = response.events.into_iter().map(event).collect::<Option<_>>()?;
            messages.push(WatchMessage::Events { events, fragment: response.fragment });
        }
        if response.canceled {
            let compact_revision = response.compact_revision;
            messages.push(WatchMessage::Cancelled { compact_revision, reason: response.cancel_reason });
        }
        Some((response.watch_id, response.header?.revision, messages))
    }
}

fn range(request: model::RangeRequest) -> pb::RangeRequest {
    pb::RangeRequest {
        key: request.range.key.into(),
        range_end: request.range.range_end.into(),
        limit: request.limit,
        serializable: request.serializable,
        ..Default::default()
    }
}

fn put(request: model::PutRequest) -> pb::PutRequest {
    pb::PutRequest { key: request.key.into(), value: request.value.into(), ..Default::default() }
}

fn compare(compare: model::Compare) -> pb::Compare {
    let model::CompareTarget::Mod(revision) = compare.target else { panic!("not used here") };
    assert_eq!(compare.result, model::CompareResult::Equal, "not used here");
    pb::Compare {
        result: pb::compare::CompareResult::Equal.into(),
        target: pb::compare::CompareTarget::Mod.into(),
        key: compare.range.key.into(),
        target_union: Some(pb::compare::TargetUnion::ModRevision(revision)),
        ..Default::default()
    }
}

fn request_op(op: model::RequestOp) -> pb::RequestOp {
    let request = match op {
        model::RequestOp::Put(request) => pb::request_op::Request::RequestPut(put(request)),
        model::RequestOp::Range(request) => pb::request_op::Request::RequestRange(range(request)),
        model::RequestOp::DeleteRange(_) | model::RequestOp::Txn(_) | model::RequestOp::Empty => {
            panic!("not used here")
        }
    };
    pb::RequestOp { request: Some(request) }
}

fn response_op(op: pb::ResponseOp) -> Option<model::ResponseOp> {
    match op.response? {
        pb::response_op::Response::ResponsePut(put) => {
            Some(model::ResponseOp::Put(model::PutResponse { revision: put.header?.revision, prev_kv: None }))
        }
        pb::response_op::Response::ResponseRange(range) => {
            Some(model::ResponseOp::Range(range_response(range)?))
        }
        pb::response_op::Response::ResponseDeleteRange(_) | pb::response_op::Response::ResponseTxn(_) => None,
    }
}

fn range_response(answer: pb::RangeResponse) -> Option<model::RangeResponse> {
    Some(model::RangeResponse {
        revision: answer.header?.revision,
        kvs: answer.kvs.into_iter().map(key_value).collect(),
        more: answer.more,
        count: answer.count,
    })
}

fn key_value(kv: mvccpb::KeyValue) -> model::KeyValue {
    model::KeyValue {
        key: kv.key.into(),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: kv.value.into(),
        lease: kv.lease,
    }
}

fn event(event: mvccpb::Event) -> Option<model::Event> {
    Some(model::Event {
        kind: match event.r#type() {
            mvccpb::event::EventType::Put => model::EventKind::Put,
            mvccpb::event::EventType::Delete => model::EventKind::Delete,
        },
        kv: key_value(event.kv?),
        prev_kv: event.prev_kv.map(key_value),
    })
}
