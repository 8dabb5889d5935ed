//! Leases that end while others are kept alive.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use api::etcdserverpb as pb;
use bench::Connection;
use pb::lease_client::LeaseClient;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Outcome, small};
use crate::Problem;
use crate::stage::{Fill, Stage, for_a_while};

const LEASES: usize = 10;
const PREFIXES: [&str; LEASES] = ["a0/", "a1/", "a2/", "a3/", "a4/", "a5/", "a6/", "a7/", "a8/", "a9/"];
/// More than what etcd has at least.
const TTL_S: u64 = 3;

/// The leases run out, and from that moment on they are asked for.
pub(super) async fn ending(stage: Arc<Stage>) -> Outcome {
    let mut leases = stage.leases().await?;
    let mut keepers = JoinSet::new();
    for (id, prefix) in (1..).zip(PREFIXES) {
        let grant = pb::LeaseGrantRequest { ttl: TTL_S as i64, id };
        leases.lease_grant(grant).await.map_err(|status| format!("grant: {status}"))?;
        keepers.spawn(keep(stage.leases().await?, id, Duration::from_millis(500), Arc::default()));
        stage.fill(Fill { prefix, lease: id, ..small(stage.sized(20_000)) }).await?;
    }
    let answers = Arc::new(AtomicUsize::new(0));
    let mut streams = Vec::new();
    for id in (1..=LEASES as i64).cycle().take(100) {
        streams.push(keep(stage.leases().await?, id, Duration::from_millis(20), Arc::clone(&answers)));
    }
    stage.begin().await;
    keepers.shutdown().await;
    sleep(Duration::from_secs(TTL_S)).await;
    for_a_while(Duration::from_secs(3), streams).await?;
    Ok(format!("{} keep-alives answered", answers.load(Relaxed)))
}

/// Keeps a lease alive for ever; a server may refuse, and is asked again.
async fn keep(
    mut client: LeaseClient<Connection>,
    id: i64,
    period: Duration,
    answers: Arc<AtomicUsize>,
) -> Result<(), Problem> {
    let request = pb::LeaseKeepAliveRequest { id };
    loop {
        let _: Result<(), Status> = async {
            let (requests, receiver) = mpsc::channel(1);
            // The stream's end shows in its answers.
            let _ = requests.send(request).await;
            let mut stream = client.lease_keep_alive(ReceiverStream::new(receiver)).await?.into_inner();
            while stream.message().await?.is_some() {
                answers.fetch_add(1, Relaxed);
                sleep(period).await;
                let _ = requests.send(request).await;
            }
            Ok(())
        }
        .await;
        sleep(period).await;
    }
}
