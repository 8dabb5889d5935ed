//! Puts, gets and transactions.

use std::sync::Arc;

use api::etcdserverpb as pb;
use bytes::Bytes;
use pb::kv_client::KvClient;
use tokio::task::JoinSet;
use tonic::Status;

use super::closed_loop::{self, Caller};
use super::{Random, connect, keys, value};
use crate::connection::Connection;
use crate::endpoint::Endpoint;
use crate::recorder::{Recorder, Window};
use crate::{BenchError, Plan, Target, Workload};

struct Putter {
    client: KvClient<Connection>,
    keys: Arc<[Bytes]>,
    value: Bytes,
    random: Random,
}

impl Caller for Putter {
    async fn call(&mut self) -> Result<(), Status> {
        let key = self.random.pick(&self.keys).clone();
        self.client.put(put_request(key, self.value.clone())).await.map(drop)
    }
}

pub(super) fn put_request(key: Bytes, value: Bytes) -> pb::PutRequest {
    pb::PutRequest { key, value, ..Default::default() }
}

pub(super) async fn puts(
    plan: &Plan,
    target: &Target,
    recorder: &Arc<Recorder>,
) -> Result<(Window, usize), BenchError> {
    let (keys, value) = (keys(plan.keys), value(plan.value_size));
    let connections = connect(target, plan.connections).await?;
    let caller = |index: usize| Putter {
        client: KvClient::new(connections[index % connections.len()].clone()),
        keys: Arc::clone(&keys),
        value: value.clone(),
        random: Random::new(index),
    };
    closed_loop::run(plan, target, recorder, (0..plan.callers).map(caller).collect()).await
}

struct Getter {
    client: KvClient<Connection>,
    keys: Arc<[Bytes]>,
    serializable: bool,
    random: Random,
}

impl Caller for Getter {
    async fn call(&mut self) -> Result<(), Status> {
        let key = self.random.pick(&self.keys).clone();
        let request = pb::RangeRequest { key, serializable: self.serializable, ..Default::default() };
        let found = self.client.range(request).await?.into_inner().kvs.len();
        // A serializable read may run behind, but not behind what was there before the warm-up.
        if found == 1 { Ok(()) } else { Err(Status::not_found(format!("a get found {found} keys"))) }
    }
}

pub(super) async fn gets(
    plan: &Plan,
    target: &Target,
    recorder: &Arc<Recorder>,
) -> Result<(Window, usize), BenchError> {
    let keys = keys(plan.keys);
    let connections = connect(target, plan.connections).await?;
    fill(plan, &connections, &keys).await?;
    let caller = |index: usize| Getter {
        client: KvClient::new(connections[index % connections.len()].clone()),
        keys: Arc::clone(&keys),
        serializable: plan.workload == Workload::SerializableGet,
        random: Random::new(index),
    };
    closed_loop::run(plan, target, recorder, (0..plan.callers).map(caller).collect()).await
}

/// Puts every key once.
async fn fill(plan: &Plan, connections: &[Connection], keys: &Arc<[Bytes]>) -> Result<(), BenchError> {
    const PARALLEL: usize = 64;
    let mut tasks: JoinSet<Result<(), Status>> = JoinSet::new();
    for part in 0..PARALLEL.min(keys.len()) {
        let mut client = KvClient::new(connections[part % connections.len()].clone());
        let (keys, value) = (Arc::clone(keys), value(plan.value_size));
        tasks.spawn(async move {
            for key in keys.iter().skip(part).step_by(PARALLEL) {
                client.put(put_request(key.clone(), value.clone())).await?;
            }
            Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        let done = done.map_err(|error| BenchError::Server(format!("fill the key space: {error}")))?;
        done.map_err(BenchError::prepare("fill the key space"))?;
    }
    Ok(())
}

/// The way a controller updates an object.
struct Comparer {
    client: KvClient<Connection>,
    key: Bytes,
    value: Bytes,
    /// The mod_revision last seen; 0 is that of a key that does not exist.
    mod_revision: i64,
    recorder: Arc<Recorder>,
}

impl Caller for Comparer {
    async fn call(&mut self) -> Result<(), Status> {
        let compare = pb::Compare {
            result: pb::compare::CompareResult::Equal.into(),
            target: pb::compare::CompareTarget::Mod.into(),
            key: self.key.clone(),
            target_union: Some(pb::compare::TargetUnion::ModRevision(self.mod_revision)),
            range_end: Bytes::new(),
        };
        let put = pb::request_op::Request::RequestPut(put_request(self.key.clone(), self.value.clone()));
        let range = pb::RangeRequest { key: self.key.clone(), ..Default::default() };
        let range = pb::request_op::Request::RequestRange(range);
        let request = pb::TxnRequest {
            compare: vec![compare],
            success: vec![pb::RequestOp { request: Some(put) }],
            failure: vec![pb::RequestOp { request: Some(range) }],
        };
        let response = self.client.txn(request).await?.into_inner();
        if response.succeeded {
            let header =
                response.header.ok_or_else(|| Status::internal("a transaction came back without header"))?;
            self.mod_revision = header.revision;
        } else {
            self.recorder.conflicted();
            self.mod_revision = current_mod_revision(response)?;
        }
        Ok(())
    }
}

/// Reads it from the else branch.
fn current_mod_revision(response: pb::TxnResponse) -> Result<i64, Status> {
    use pb::response_op::Response;
    match response.responses.into_iter().next().and_then(|op| op.response) {
        Some(Response::ResponseRange(range)) => Ok(range.kvs.first().map_or(0, |kv| kv.mod_revision)),
        Some(Response::ResponsePut(_) | Response::ResponseDeleteRange(_) | Response::ResponseTxn(_))
        | None => Err(Status::internal("a transaction came back without the range of its else branch")),
    }
}

pub(super) async fn compare_and_puts(
    plan: &Plan,
    target: &Target,
    recorder: &Arc<Recorder>,
) -> Result<(Window, usize), BenchError> {
    let (keys, value) = (keys(plan.keys), value(plan.value_size));
    let connections = connect(target, plan.connections).await?;
    let caller = |index: usize| Comparer {
        client: KvClient::new(connections[index % connections.len()].clone()),
        key: keys[index % keys.len()].clone(),
        value: value.clone(),
        mod_revision: 0,
        recorder: Arc::clone(recorder),
    };
    closed_loop::run(plan, target, recorder, (0..plan.callers).map(caller).collect()).await
}

/// A client that lives for one request.
struct Visitor {
    endpoint: Endpoint,
    keys: Arc<[Bytes]>,
    value: Bytes,
    random: Random,
}

impl Caller for Visitor {
    async fn call(&mut self) -> Result<(), Status> {
        let connection = Connection::open(&self.endpoint).await;
        let connection = connection.map_err(|error| Status::unavailable(error.to_string()))?;
        let key = self.random.pick(&self.keys).clone();
        // Dropping the last clone closes it.
        KvClient::new(connection).put(put_request(key, self.value.clone())).await.map(drop)
    }
}

pub(super) async fn connect_put_closes(
    plan: &Plan,
    target: &Target,
    recorder: &Arc<Recorder>,
) -> Result<(Window, usize), BenchError> {
    let (keys, value) = (keys(plan.keys), value(plan.value_size));
    let caller = |index: usize| {
        // Each has sessions of its own, as clients on different machines do: a ticket is good for one connection, and a
        // TLS client keeps no more than eight for a server.
        let mut endpoints = Endpoint::all_of(target)?;
        Ok(Visitor {
            endpoint: endpoints.swap_remove(index % endpoints.len()),
            keys: Arc::clone(&keys),
            value: value.clone(),
            random: Random::new(index),
        })
    };
    let callers = (0..plan.callers).map(caller).collect::<Result<_, BenchError>>()?;
    closed_loop::run(plan, target, recorder, callers).await
}
