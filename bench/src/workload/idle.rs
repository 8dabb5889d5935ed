//! Connections that do nothing.

use std::sync::Arc;
use std::time::Instant;

use api::etcdserverpb as pb;
use pb::kv_client::KvClient;
use tokio::task::JoinSet;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::endpoint;
use crate::recorder::{Opening, Recorder, Window};
use crate::{BenchError, Plan, Target};

pub(super) async fn run(
    plan: &Plan,
    target: &Target,
    recorder: &Arc<Recorder>,
) -> Result<(Window, usize), BenchError> {
    let endpoints = target.endpoints.iter().map(|url| endpoint(url)).collect::<Result<Vec<_>, _>>()?;
    recorder.start();
    let opening = Opening::now(&target.pids)?;
    let mut open = Vec::with_capacity(plan.connections);
    let mut tasks = JoinSet::new();
    for index in 0..plan.connections {
        if tasks.len() == plan.callers {
            open.extend(finished(&mut tasks).await?);
        }
        tasks.spawn(visit(endpoints[index % endpoints.len()].clone(), Arc::clone(recorder)));
    }
    while !tasks.is_empty() {
        open.extend(finished(&mut tasks).await?);
    }
    // Read with every connection still open.
    let window = opening.close()?;
    if open.is_empty() {
        return Err(BenchError::Server("no connection could be opened".to_owned()));
    }
    Ok((window, 0))
}

async fn finished(tasks: &mut JoinSet<Option<Channel>>) -> Result<Option<Channel>, BenchError> {
    match tasks.join_next().await {
        Some(joined) => joined.map_err(|error| BenchError::Server(format!("open a connection: {error}"))),
        None => Ok(None),
    }
}

async fn visit(endpoint: Endpoint, recorder: Arc<Recorder>) -> Option<Channel> {
    let started = Instant::now();
    let connected = endpoint.connect().await.map_err(|error| Status::unavailable(error.to_string()));
    let read = async {
        let channel = connected?;
        let request = pb::RangeRequest { key: "gaios-bench".into(), ..Default::default() };
        KvClient::new(channel.clone()).range(request).await?;
        Ok(channel)
    };
    match read.await {
        Ok(channel) => {
            recorder.completed(started.elapsed());
            Some(channel)
        }
        Err(status) => {
            recorder.failed(&status);
            None
        }
    }
}
