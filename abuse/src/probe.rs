//! The small well-behaved client: a put and a get every 20 ms, and a lease kept alive, on a connection of its own. When a
//! request is due does not depend on when others are answered, so that a server that stands still is seen by all of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use api::etcdserverpb as pb;
use bench::{Connection, Endpoint};
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};

use crate::Problem;

/// Between two puts, and two gets.
const PERIOD: Duration = Duration::from_millis(20);
/// Between two keep-alives.
const KEEP_ALIVE_PERIOD: Duration = Duration::from_millis(100);
/// Of a request, and of an attempt to connect.
const DEADLINE: Duration = Duration::from_secs(2);
/// Long enough for a lease to outlive every attack.
const LEASE_TTL_S: i64 = 120;
const KEY: &[u8] = b"well-behaved";

/// What became of one request.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    /// When it was to be sent.
    pub(crate) due: Instant,
    /// From then to its end.
    pub(crate) took: Duration,
    /// Why it failed.
    pub(crate) failed: Option<String>,
    /// Round of the leadership that the newest answer told of; 0 before the first.
    pub(crate) term: u64,
}

/// What the client and those who look at it share.
struct Seen {
    samples: Mutex<Vec<Sample>>,
    /// When the requests under way were to be sent, by their number.
    under_way: Mutex<BTreeMap<u64, Instant>>,
    /// As in [`Sample`].
    term: AtomicU64,
    /// Of the newest put that was acknowledged.
    acknowledged: AtomicI64,
    requests: AtomicU64,
    stop: AtomicBool,
    broken: AtomicBool,
}

/// The client, under way on a thread of its own.
pub(crate) struct Probe {
    seen: Arc<Seen>,
    thread: Option<JoinHandle<Result<(), Problem>>>,
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.seen.stop.store(true, Relaxed);
    }
}

impl Probe {
    pub(crate) fn start(endpoint: Endpoint) -> Result<Probe, Problem> {
        let seen = Arc::new(Seen {
            samples: Mutex::new(Vec::new()),
            under_way: Mutex::default(),
            term: AtomicU64::new(0),
            acknowledged: AtomicI64::new(0),
            requests: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            broken: AtomicBool::new(false),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| format!("start the small client: {error}"))?;
        let its = Arc::clone(&seen);
        let thread = std::thread::spawn(move || runtime.block_on(behave(&endpoint, &its)));
        Ok(Probe { seen, thread: Some(thread) })
    }

    /// What has ended so far.
    pub(crate) fn samples(&self) -> Vec<Sample> {
        self.seen.samples.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// When the oldest request under way was to be sent.
    pub(crate) fn waits_since(&self) -> Option<Instant> {
        let under_way = self.seen.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.values().min().copied()
    }

    /// Lets requests under way end, and gives everything.
    pub(crate) fn finish(mut self) -> Result<Vec<Sample>, Problem> {
        self.seen.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| "the small client panicked".to_owned())??;
        }
        Ok(self.samples())
    }
}

impl Seen {
    /// Makes a request that was to be sent when it is `due`, and notes how it went.
    async fn note(&self, due: Instant, asking: impl Future<Output = Result<(), Status>>) {
        let number = self.requests.fetch_add(1, Relaxed);
        let under_way = || self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way().insert(number, due);
        let outcome = in_time(due, asking).await;
        under_way().remove(&number);
        let failed = outcome.err().map(|status| {
            if matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal) {
                self.broken.store(true, Relaxed);
            }
            format!("{:?}: {}", status.code(), status.message())
        });
        let sample = Sample { due, took: due.elapsed(), failed, term: self.term.load(Relaxed) };
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }
}

async fn behave(endpoint: &Endpoint, seen: &Arc<Seen>) -> Result<(), Problem> {
    let open = || async {
        let opened = timeout(DEADLINE, Connection::open(endpoint)).await;
        opened.map_err(|_| format!("no connection within {DEADLINE:?}"))?.map_err(|error| error.to_string())
    };
    let mut connection = open().await?;
    let lease = tokio::spawn(keep_alive(endpoint.clone(), Arc::clone(seen)));
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut requests = tokio::task::JoinSet::new();
    while !seen.stopped() {
        let due = ticks.tick().await.into_std();
        while requests.try_join_next().is_some() {}
        if seen.broken.swap(false, Relaxed)
            && let Ok(opened) = open().await
        {
            connection = opened;
        }
        let client = KvClient::new(connection.clone());
        let (its, other) = (Arc::clone(seen), client.clone());
        requests.spawn(async move { its.note(due, put(other, &its)).await });
        let its = Arc::clone(seen);
        requests.spawn(async move { its.note(due, get(client, &its)).await });
    }
    requests.join_all().await;
    lease.await.map_err(|error| format!("keep a lease alive: {error}"))
}

async fn in_time<T>(due: Instant, asking: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    tokio::select! {
        biased;
        answer = asking => answer,
        () = sleep_until((due + DEADLINE).into()) => Err(Status::deadline_exceeded("no answer in time")),
    }
}

fn bounded<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

async fn put(mut client: KvClient<Connection>, seen: &Seen) -> Result<(), Status> {
    let put = pb::PutRequest { key: KEY.into(), value: "v".into(), ..Default::default() };
    let header = client.put(bounded(put)).await?.into_inner().header.unwrap_or_default();
    seen.term.fetch_max(header.raft_term, Relaxed);
    seen.acknowledged.fetch_max(header.revision, Relaxed);
    Ok(())
}

async fn get(mut client: KvClient<Connection>, seen: &Seen) -> Result<(), Status> {
    let acknowledged = seen.acknowledged.load(Relaxed);
    let range = pb::RangeRequest { key: KEY.into(), ..Default::default() };
    let response = client.range(bounded(range)).await?.into_inner();
    seen.term.fetch_max(response.header.unwrap_or_default().raft_term, Relaxed);
    match response.kvs.first().map_or(0, |kv| kv.mod_revision) {
        revision if revision >= acknowledged => Ok(()),
        revision => {
            Err(Status::data_loss(format!("read revision {revision}, {acknowledged} was acknowledged")))
        }
    }
}

/// As clients do it: over a stream, the next one when the last is answered.
async fn keep_alive(endpoint: Endpoint, seen: Arc<Seen>) {
    let mut stream = None;
    let mut ticks = interval(KEEP_ALIVE_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !seen.stopped() {
        let due = ticks.tick().await.into_std();
        let renew = async {
            let mut kept = match stream.take() {
                Some(kept) => kept,
                None => Kept::open(&endpoint).await?,
            };
            kept.renew().await?;
            stream = Some(kept);
            Ok(())
        };
        seen.note(due, renew).await;
    }
}

struct Kept {
    lease: i64,
    requests: mpsc::Sender<pb::LeaseKeepAliveRequest>,
    answers: Streaming<pb::LeaseKeepAliveResponse>,
}

impl Kept {
    async fn open(endpoint: &Endpoint) -> Result<Kept, Status> {
        let connection = Connection::open(endpoint).await;
        let connection = connection.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut client = LeaseClient::new(connection);
        let grant = pb::LeaseGrantRequest { ttl: LEASE_TTL_S, ..Default::default() };
        let lease = client.lease_grant(bounded(grant)).await?.into_inner().id;
        let (requests, receiver) = mpsc::channel(1);
        // etcd opens its half with its first answer.
        let first = pb::LeaseKeepAliveRequest { id: lease };
        requests.send(first).await.map_err(|_| ended())?;
        let mut answers = client.lease_keep_alive(ReceiverStream::new(receiver)).await?.into_inner();
        answers.message().await?.ok_or_else(ended)?;
        Ok(Kept { lease, requests, answers })
    }

    async fn renew(&mut self) -> Result<(), Status> {
        let request = pb::LeaseKeepAliveRequest { id: self.lease };
        self.requests.send(request).await.map_err(|_| ended())?;
        match self.answers.message().await?.ok_or_else(ended)?.ttl {
            0 => Err(Status::not_found("the lease has ended")),
            _ => Ok(()),
        }
    }
}

fn ended() -> Status {
    Status::unavailable("the stream of keep-alives ended")
}
