//! Connections that do nothing.

use std::sync::Arc;
use std::time::Instant;

use api::etcdserverpb as pb;
use pb::kv_client::KvClient;
use tokio::task::JoinSet;
use tonic::Status;

use crate::connection::Connection;
use crate::endpoint::Endpoint;
use crate::recorder::{Opening, Recorder, Window};
use crate::{BenchError, Plan, Target};

pub(super) async fn run(
    plan: &Plan,
    target: &Target,
    recorder: &Arc<Recorder>,
) -> Result<(Window, usize), BenchError> {
    let endpoints = Endpoint::all_of(target)?;
    // The first connections make a server take memory which the later ones share; they are opened before the window.
    let mut open = visit_all(&endpoints, plan.connections.div_ceil(10), plan.callers, recorder).await?;
    recorder.start();
    let opening = Opening::now(&target.pids)?;
    open.append(&mut visit_all(&endpoints, plan.connections, plan.callers, recorder).await?);
    // Read with every connection still open.
    let window = opening.close()?;
    if open.is_empty() {
        return Err(BenchError::Server("no connection could be opened".to_owned()));
    }
    Ok((window, 0))
}

/// Opens `count` connections, never more than `at_once` at a time.
async fn visit_all(
    endpoints: &[Endpoint],
    count: usize,
    at_once: usize,
    recorder: &Arc<Recorder>,
) -> Result<Vec<Connection>, BenchError> {
    let mut open = Vec::with_capacity(count);
    let mut tasks = JoinSet::new();
    for index in 0..count {
        if tasks.len() == at_once {
            open.extend(finished(&mut tasks).await?);
        }
        tasks.spawn(visit(endpoints[index % endpoints.len()].clone(), Arc::clone(recorder)));
    }
    while !tasks.is_empty() {
        open.extend(finished(&mut tasks).await?);
    }
    Ok(open)
}

async fn finished(tasks: &mut JoinSet<Option<Connection>>) -> Result<Option<Connection>, BenchError> {
    match tasks.join_next().await {
        Some(joined) => joined.map_err(|error| BenchError::Server(format!("open a connection: {error}"))),
        None => Ok(None),
    }
}

async fn visit(endpoint: Endpoint, recorder: Arc<Recorder>) -> Option<Connection> {
    let started = Instant::now();
    let opened = Connection::open(&endpoint).await.map_err(|error| Status::unavailable(error.to_string()));
    let read = async {
        let connection = opened?;
        let request = pb::RangeRequest { key: "gaios-bench".into(), ..Default::default() };
        KvClient::new(connection.clone()).range(request).await?;
        Ok(connection)
    };
    match read.await {
        Ok(connection) => {
            recorder.completed(started.elapsed());
            Some(connection)
        }
        Err(status) => {
            recorder.failed(&status);
            None
        }
    }
}
