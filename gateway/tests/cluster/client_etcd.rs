//! As `client.rs`, over the `etcd-client` crate. Compiled by the package `compat/cluster` only.

use etcd_client::{
    Client as Etcd, Compare, CompareOp, DeleteOptions, EventType, GetOptions, KeyValue, Txn, TxnOp,
    TxnOpResponse, WatchOptions, WatchStream,
};
use sim::linear::history::WatchMessage;
use sim::model;

#[derive(Clone)]
pub(crate) struct Client(Etcd);

pub(crate) struct Watch(WatchStream);

impl Client {
    pub(crate) async fn connect(endpoints: &[String]) -> Option<Client> {
        Etcd::connect(endpoints, None).await.ok().map(Client)
    }

    pub(crate) async fn put(&mut self, request: model::PutRequest) -> Option<model::PutResponse> {
        let answer = self.0.put(request.key, request.value, None).await.ok()?;
        Some(model::PutResponse { revision: answer.header()?.revision(), prev_kv: None })
    }

    pub(crate) async fn range(&mut self, request: model::RangeRequest) -> Option<model::RangeResponse> {
        let options = match request.range.range_end.is_empty() {
            true => GetOptions::new(),
            false => GetOptions::new().with_range(request.range.range_end),
        };
        range_response(&self.0.get(request.range.key, Some(options)).await.ok()?)
    }

    pub(crate) async fn delete(
        &mut self,
        request: model::DeleteRangeRequest,
    ) -> Option<model::DeleteRangeResponse> {
        assert!(request.range.range_end.is_empty() && !request.prev_kv, "not used here");
        let answer = self.0.delete(request.range.key, Some(DeleteOptions::new())).await.ok()?;
        Some(model::DeleteRangeResponse {
            revision: answer.header()?.revision(),
            deleted: answer.deleted(),
            prev_kvs: Vec::new(),
        })
    }

    /// A transaction of comparisons by mod revision, puts and ranges of one key.
    pub(crate) async fn txn(&mut self, request: model::TxnRequest) -> Option<model::TxnResponse> {
        let compares: Vec<_> = request.compare.into_iter().map(compare).collect();
        let success: Vec<_> = request.success.into_iter().map(op).collect();
        let failure: Vec<_> = request.failure.into_iter().map(op).collect();
        let answer = self.0.txn(Txn::new().when(compares).and_then(success).or_else(failure)).await.ok()?;
        Some(model::TxnResponse {
            revision: answer.header()?.revision(),
            succeeded: answer.succeeded(),
            responses: answer.op_responses().iter().map(op_response).collect::<Option<_>>()?,
        })
    }

    /// Opens watches on one stream. The server numbers them as they are here.
    pub(crate) async fn watch(&mut self, watches: &[model::WatchRequest]) -> Option<Watch> {
        let mut stream: Option<WatchStream> = None;
        for watch in watches.iter().cloned() {
            let options = WatchOptions::new()
                .with_range(watch.range.range_end)
                .with_start_revision(watch.start_revision);
            match &mut stream {
                Some(stream) => stream.watch(watch.range.key, Some(options)).await.ok()?,
                None => stream = Some(self.0.watch(watch.range.key, Some(options)).await.ok()?),
            }
        }
        stream.map(Watch)
    }
}

impl Watch {
    /// Asks how far the stream is.
    pub(crate) async fn request_progress(&mut self) -> Option<()> {
        self.0.request_progress().await.ok()
    }

    /// The next response: the number of its watch, its header's revision and what it says. `None` at the end of the
    /// stream.
    pub(crate) async fn next(&mut self) -> Option<(i64, i64, Vec<WatchMessage>)> {
        let response = self.0.message().await.ok()??;
        let mut messages = Vec::new();
        if !response.created() && !response.canceled() && response.events().is_empty() {
            messages.push(WatchMessage::Progress);
        }
        if response.created() {
            messages.push(WatchMessage::Created);
        }
        if !response.events().is_empty() {
            let events = response.events().iter().map(event).collect::<Option<_>>()?;
            messages.push(WatchMessage::Events { events, fragment: false });
        }
        if response.canceled() {
            messages.push(WatchMessage::Cancelled {
                compact_revision: response.compact_revision(),
                reason: response.cancel_reason().to_owned(),
            });
        }
        Some((response.watch_id(), response.header()?.revision(), messages))
    }
}

fn compare(compare: model::Compare) -> Compare {
    let model::CompareTarget::Mod(revision) = compare.target else { panic!("not used here") };
    assert_eq!(compare.result, model::CompareResult::Equal, "not used here");
    Compare::mod_revision(compare.range.key, CompareOp::Equal, revision)
}

fn op(op: model::RequestOp) -> TxnOp {
    match op {
        model::RequestOp::Put(put) => TxnOp::put(put.key, put.value, None),
        model::RequestOp::Range(range) => TxnOp::get(range.range.key, None),
        model::RequestOp::DeleteRange(_) | model::RequestOp::Txn(_) | model::RequestOp::Empty => {
            panic!("not used here")
        }
    }
}

fn op_response(op: &TxnOpResponse) -> Option<model::ResponseOp> {
    match op {
        TxnOpResponse::Put(put) => Some(model::ResponseOp::Put(model::PutResponse {
            revision: put.header()?.revision(),
            prev_kv: None,
        })),
        TxnOpResponse::Get(range) => Some(model::ResponseOp::Range(range_response(range)?)),
        TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
    }
}

fn range_response(answer: &etcd_client::GetResponse) -> Option<model::RangeResponse> {
    Some(model::RangeResponse {
        revision: answer.header()?.revision(),
        kvs: answer.kvs().iter().map(key_value).collect(),
        more: answer.more(),
        count: answer.count(),
    })
}

fn key_value(kv: &KeyValue) -> model::KeyValue {
    model::KeyValue {
        key: kv.key().to_vec(),
        create_revision: kv.create_revision(),
        mod_revision: kv.mod_revision(),
        version: kv.version(),
        value: kv.value().to_vec(),
        lease: kv.lease(),
    }
}

fn event(event: &etcd_client::Event) -> Option<model::Event> {
    Some(model::Event {
        kind: match event.event_type() {
            EventType::Put => model::EventKind::Put,
            EventType::Delete => model::EventKind::Delete,
        },
        kv: key_value(event.kv()?),
        prev_kv: event.prev_kv().map(key_value),
    })
}
