//! Many watches, large revisions, and watches that are not read.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use api::etcdserverpb as pb;
use bytes::{Bytes, BytesMut};
use pb::watch_request::RequestUnion;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;

use super::{HOSTILE, Outcome, megabytes, small};
use crate::Problem;
use crate::raw::{Counter, Raw, WATCH, end_of, next, put_framed};
use crate::stage::{Fill, Stage, for_a_while};

const WATCHES: usize = 50_000;
/// For what a server owes to somebody.
const SERVED_WITHIN: Duration = Duration::from_secs(20);

fn create(create: pb::WatchCreateRequest) -> pb::WatchRequest {
    pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

/// 868 KiB of them, behind an answer that is owed to all watches.
pub(super) async fn cancels(stage: Arc<Stage>) -> Outcome {
    let ask = RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
    let cancel = |watch_id| RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id });
    let cancels = (0..74_000).map(|index| cancel(1 << 30 | index));
    many_watches(&stage, [ask].into_iter().chain(cancels)).await
}

pub(super) async fn progress(stage: Arc<Stage>) -> Outcome {
    let asks = (0..500).map(|_| RequestUnion::ProgressRequest(pb::WatchProgressRequest {}));
    many_watches(&stage, asks).await
}

/// Creates watches of a key each on one stream, and then sends `more`.
async fn many_watches(stage: &Stage, more: impl Iterator<Item = RequestUnion>) -> Outcome {
    let watches = stage.sized(WATCHES);
    let mut creates = BytesMut::new();
    for index in 0..watches {
        let key = small(0).key(index);
        put_framed(&mut creates, &create(pb::WatchCreateRequest { key, ..Default::default() }));
    }
    let mut rest = BytesMut::new();
    more.for_each(|request| put_framed(&mut rest, &pb::WatchRequest { request_union: Some(request) }));
    let raw = Raw::open(&stage.endpoint).await?;
    stage.begin().await;
    let begun = Instant::now();
    let (answer, mut stream) = raw.begin(WATCH).await?;
    stream.send_data(creates.freeze(), false).map_err(|error| error.to_string())?;
    let created = async {
        let mut body = answer.await?.into_body();
        let mut counter = Counter::default();
        while counter.messages < watches {
            let Some(data) = next(&mut body).await? else { break };
            counter.add(data);
        }
        Ok::<_, h2::Error>((body, counter.messages))
    };
    let created = timeout(SERVED_WITHIN, created).await;
    let created = created.map_err(|_| format!("{watches} watches were not created in {SERVED_WITHIN:?}"))?;
    let (mut body, created) = created.map_err(|error| error.to_string())?;
    if created < watches {
        return Ok(format!("sent away after {created} watches"));
    }
    let took = begun.elapsed();
    // Sent away, if this fails.
    let _ = stream.send_data(rest.freeze(), false);
    let mut answers = Counter::default();
    let read = async {
        while let Ok(Some(data)) = next(&mut body).await {
            answers.add(data);
        }
    };
    let _ = timeout(Duration::from_secs(3), read).await;
    Ok(format!(
        "{watches} watches created in {:.1} s, {} answers to the rest",
        took.as_secs_f64(),
        answers.messages
    ))
}

/// A watch with previous values, on a connection of its own.
struct Watcher {
    _requests: mpsc::Sender<pb::WatchRequest>,
    responses: tonic::Streaming<pb::WatchResponse>,
}

impl Watcher {
    async fn open(stage: &Stage, key: Bytes, range_end: Bytes) -> Result<Watcher, Problem> {
        let (requests, receiver) = mpsc::channel(1);
        let request = create(pb::WatchCreateRequest { key, range_end, prev_kv: true, ..Default::default() });
        requests.send(request).await.map_err(|error| error.to_string())?;
        let opened = stage.watches().await?.watch(ReceiverStream::new(receiver)).await;
        let mut responses = opened.map_err(|status| format!("watch: {status}"))?.into_inner();
        let created = responses.message().await.map_err(|status| format!("watch: {status}"))?;
        match created {
            Some(response) if response.created && !response.canceled => {
                Ok(Watcher { _requests: requests, responses })
            }
            other => Err(format!("watch: {other:?}")),
        }
    }

    async fn events(mut self, wanted: usize) -> Result<(), Problem> {
        let mut seen = 0;
        while seen < wanted {
            match self.responses.message().await {
                Ok(Some(response)) if response.canceled => {
                    return Err(format!("a watch was cancelled: {}", response.cancel_reason));
                }
                Ok(Some(response)) => seen += response.events.len(),
                Ok(None) => return Err("a watch ended".to_owned()),
                Err(status) => return Err(format!("a watch: {status}")),
            }
        }
        Ok(())
    }
}

/// Lets something happen under watches, all of which must see `events`.
async fn all_served(
    watchers: Vec<Watcher>,
    events: usize,
    happens: impl Future<Output = Result<(), Problem>>,
) -> Outcome {
    let count = watchers.len();
    let begun = Instant::now();
    let mut served = 0;
    let mut watching: JoinSet<_> = watchers.into_iter().map(|watcher| watcher.events(events)).collect();
    let mut first_problem = happens.await.err();
    let all = async {
        while let Some(ended) = watching.join_next().await {
            match ended.map_err(|error| error.to_string()).and_then(|ended| ended) {
                Ok(()) => served += 1,
                Err(problem) => drop(first_problem.get_or_insert(problem)),
            }
        }
    };
    let _ = timeout(SERVED_WITHIN, all).await;
    let took = begun.elapsed().as_secs_f64();
    match first_problem {
        None if served == count => Ok(format!("{count} watches served in {took:.1} s")),
        problem => {
            let why = problem.map_or(String::new(), |problem| format!(": {problem}"));
            Err(format!("{served} of {count} watches served in {took:.1} s{why}"))
        }
    }
}

async fn delete_all(stage: &Stage) -> Result<(), Problem> {
    let delete =
        pb::DeleteRangeRequest { key: HOSTILE.into(), range_end: end_of(HOSTILE), ..Default::default() };
    let deleted = stage.kv().await?.delete_range(delete).await;
    deleted.map(drop).map_err(|status| format!("delete: {status}"))
}

pub(super) async fn wide_delete(stage: Arc<Stage>) -> Outcome {
    let fill = megabytes(stage.sized(560));
    stage.fill(fill).await?;
    let watcher = Watcher::open(&stage, HOSTILE.into(), end_of(HOSTILE)).await?;
    stage.begin().await;
    all_served(vec![watcher], fill.keys, delete_all(&stage)).await
}

pub(super) async fn overlapping(stage: Arc<Stage>) -> Outcome {
    let fill = megabytes(stage.sized(30));
    stage.fill(fill).await?;
    let watchers = different_ranges(&stage).await?;
    stage.begin().await;
    all_served(watchers, fill.keys, delete_all(&stage)).await
}

pub(super) async fn lease_end(stage: Arc<Stage>) -> Outcome {
    const LEASE: i64 = 4711;
    let mut leases = stage.leases().await?;
    let grant = pb::LeaseGrantRequest { ttl: 600, id: LEASE };
    leases.lease_grant(grant).await.map_err(|status| format!("grant: {status}"))?;
    let fill = Fill { lease: LEASE, ..small(stage.sized(200_000)) };
    stage.fill(fill).await?;
    let watchers = different_ranges(&stage).await?;
    stage.begin().await;
    let ends = async {
        let revoked = leases.lease_revoke(pb::LeaseRevokeRequest { id: LEASE }).await;
        revoked.map(drop).map_err(|status| format!("revoke: {status}"))
    };
    all_served(watchers, fill.keys, ends).await
}

/// Twenty, each of all keys and some more.
async fn different_ranges(stage: &Stage) -> Result<Vec<Watcher>, Problem> {
    let mut watchers = Vec::new();
    for index in 0..20 {
        let end = format!("hostile0{index:02}");
        watchers.push(Watcher::open(stage, HOSTILE.into(), end.into()).await?);
    }
    Ok(watchers)
}

/// Streams whose answers stay on the way, while what they watch is put.
pub(super) async fn unread(stage: Arc<Stage>) -> Outcome {
    const VALUE_BYTES: usize = 20_000;
    let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
    let put = Arc::new(AtomicUsize::new(0));
    let mut putters = Vec::new();
    for index in 0..8 {
        let (mut client, value, put) = (stage.kv().await?, value.clone(), Arc::clone(&put));
        putters.push(async move {
            loop {
                let request =
                    pb::PutRequest { key: small(0).key(index), value: value.clone(), ..Default::default() };
                put.fetch_add(usize::from(client.put(request).await.is_ok()), Relaxed);
                sleep(Duration::from_millis(8)).await;
            }
        });
    }
    let mut request = BytesMut::new();
    let watched =
        pb::WatchCreateRequest { key: HOSTILE.into(), range_end: end_of(HOSTILE), ..Default::default() };
    put_framed(&mut request, &create(watched));
    let request = request.freeze();
    stage.begin().await;
    let mut streams = Vec::new();
    for _ in 0..stage.sized(200) {
        // A server may turn them away.
        let Ok(raw) = Raw::open(&stage.endpoint).await else { continue };
        let Ok((answer, mut stream)) = raw.begin(WATCH).await else { continue };
        if stream.send_data(request.clone(), false).is_ok() {
            streams.push((raw, answer, stream));
        }
    }
    for_a_while(Duration::from_secs(3), putters).await?;
    let put = put.load(Relaxed);
    stage.wrote(put * VALUE_BYTES);
    Ok(format!("{} watches not read, {put} puts", streams.len()))
}
