//! Answers of any size, and memory that comes back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::etcdserverpb as pb;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tonic::Code;

use super::{HOSTILE, Outcome, megabytes};
use crate::Problem;
use crate::raw::{end_of, list};
use crate::stage::Stage;

/// As Kubernetes fills its caches.
pub(super) async fn range_stream(stage: Arc<Stage>) -> Outcome {
    let fill = megabytes(stage.sized(560));
    stage.fill(fill).await?;
    let mut clients = Vec::new();
    for _ in 0..2 {
        clients.push(stage.kv().await?);
    }
    stage.begin().await;
    let begun = Instant::now();
    let mut streams: JoinSet<Result<_, Problem>> = JoinSet::new();
    for mut client in clients {
        streams.spawn(async move {
            let (mut keys, mut chunks) = (0, 0);
            let mut stream = match client.range_stream(list(HOSTILE)).await {
                Ok(stream) => stream.into_inner(),
                // Clients then ask for pages.
                Err(status) if status.code() == Code::Unimplemented => return Ok(None),
                Err(status) => return Err(format!("RangeStream: {status}")),
            };
            while let Some(chunk) =
                stream.message().await.map_err(|status| format!("RangeStream: {status}"))?
            {
                keys += chunk.range_response.map_or(0, |response| response.kvs.len());
                chunks += 1;
            }
            if keys == fill.keys { Ok(Some(chunks)) } else { Err(format!("RangeStream: {keys} keys")) }
        });
    }
    let mut told = String::from("RangeStream is not there");
    while let Some(ended) = streams.join_next().await {
        if let Some(chunks) = ended.map_err(|error| error.to_string())?? {
            told = format!("{chunks} chunks in {:.1} s", begun.elapsed().as_secs_f64());
        }
    }
    Ok(told)
}

/// What is left of a flood, and of what was deleted, when both are over.
pub(super) async fn memory_returns(stage: Arc<Stage>) -> Outcome {
    const KEPT_MIB: u64 = 200;
    const GIVEN_BACK_WITHIN: Duration = Duration::from_secs(10);
    let before = stage.rss_bytes()?;
    stage.fill(megabytes(stage.sized(300))).await?;
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(stage.kv().await?);
    }
    stage.begin().await;
    let listing: JoinSet<_> = clients
        .into_iter()
        .map(|mut client| async move { client.range(list(HOSTILE)).await.is_ok() })
        .collect();
    let listed = listing.join_all().await.into_iter().filter(|listed| *listed).count();
    let mut client = stage.kv().await?;
    let delete =
        pb::DeleteRangeRequest { key: HOSTILE.into(), range_end: end_of(HOSTILE), ..Default::default() };
    let deleted = client.delete_range(delete).await.map_err(|status| format!("delete: {status}"))?;
    let revision = deleted.into_inner().header.unwrap_or_default().revision;
    let compact = pb::CompactionRequest { revision, physical: true };
    client.compact(compact).await.map_err(|status| format!("compact: {status}"))?;
    let compacted = Instant::now();
    loop {
        let now = stage.rss_bytes()?;
        let kept: Vec<u64> =
            now.iter().zip(&before).map(|(now, before)| now.saturating_sub(*before) >> 20).collect();
        let told = format!("{listed} lists; kept, process by process: {kept:?} MiB");
        if kept.iter().all(|kept| *kept <= KEPT_MIB) {
            return Ok(format!("{told}, {:.1} s after the compaction", compacted.elapsed().as_secs_f64()));
        }
        if compacted.elapsed() > GIVEN_BACK_WITHIN {
            return Err(told);
        }
        sleep(Duration::from_millis(200)).await;
    }
}
