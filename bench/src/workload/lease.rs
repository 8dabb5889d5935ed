//! Leases.

use std::sync::Arc;

use api::etcdserverpb as pb;
use pb::lease_client::LeaseClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::closed_loop::{self, Caller};
use super::connect;
use crate::connection::Connection;
use crate::recorder::{Recorder, Window};
use crate::{BenchError, Plan, Target};

/// Seconds; longer than any measurement, so that no lease ends in the middle of one.
const TTL: i64 = 7200;

struct Granter {
    client: LeaseClient<Connection>,
}

impl Caller for Granter {
    async fn call(&mut self) -> Result<(), Status> {
        let id = grant(&mut self.client).await?;
        self.client.lease_revoke(pb::LeaseRevokeRequest { id }).await.map(drop)
    }
}

async fn grant(client: &mut LeaseClient<Connection>) -> Result<i64, Status> {
    let granted = client.lease_grant(pb::LeaseGrantRequest { ttl: TTL, id: 0 }).await?.into_inner();
    if granted.error.is_empty() { Ok(granted.id) } else { Err(Status::internal(granted.error)) }
}

pub(super) async fn grants(
    plan: &Plan,
    target: &Target,
    recorder: &Arc<Recorder>,
) -> Result<(Window, usize), BenchError> {
    let connections = connect(target, plan.connections).await?;
    let caller =
        |index: usize| Granter { client: LeaseClient::new(connections[index % connections.len()].clone()) };
    closed_loop::run(plan, target, recorder, (0..plan.callers).map(caller).collect()).await
}

struct Keeper {
    id: i64,
    requests: mpsc::Sender<pb::LeaseKeepAliveRequest>,
    responses: Streaming<pb::LeaseKeepAliveResponse>,
}

impl Caller for Keeper {
    async fn call(&mut self) -> Result<(), Status> {
        let request = pb::LeaseKeepAliveRequest { id: self.id };
        self.requests.send(request).await.map_err(|_| Status::unavailable("the keep-alive stream ended"))?;
        match self.responses.message().await? {
            Some(response) if response.id == self.id && response.ttl > 0 => Ok(()),
            Some(response) => {
                Err(Status::not_found(format!("lease {} has TTL {}", response.id, response.ttl)))
            }
            None => Err(Status::unavailable("the keep-alive stream ended")),
        }
    }
}

pub(super) async fn keep_alives(
    plan: &Plan,
    target: &Target,
    recorder: &Arc<Recorder>,
) -> Result<(Window, usize), BenchError> {
    let connections = connect(target, plan.connections).await?;
    let mut callers = Vec::with_capacity(plan.callers);
    let mut ids = Vec::with_capacity(plan.callers);
    for connection in connections.iter().cycle().take(plan.callers) {
        let mut client = LeaseClient::new(connection.clone());
        let id = grant(&mut client).await.map_err(BenchError::prepare("grant a lease"))?;
        let (requests, receiver) = mpsc::channel(1);
        // A server may hold the response headers back until it has something to answer.
        let first = requests.send(pb::LeaseKeepAliveRequest { id });
        first.await.map_err(|_| BenchError::Server("the keep-alive stream was not opened".to_owned()))?;
        let responses = client.lease_keep_alive(ReceiverStream::new(receiver)).await;
        let mut responses = responses.map_err(BenchError::prepare("open a keep-alive stream"))?.into_inner();
        responses.message().await.map_err(BenchError::prepare("renew a lease"))?;
        ids.push(id);
        callers.push(Keeper { id, requests, responses });
    }
    let result = closed_loop::run(plan, target, recorder, callers).await;
    // The next measurement shall not find them.
    for (connection, id) in connections.iter().cycle().zip(ids) {
        let revoked = LeaseClient::new(connection.clone()).lease_revoke(pb::LeaseRevokeRequest { id }).await;
        revoked.map_err(BenchError::prepare("revoke a lease"))?;
    }
    result
}
