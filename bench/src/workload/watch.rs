//! One writer, many watchers of one key.
//!
//! Rounds: a put, then its event at every watcher, then the next put. So no watcher falls behind, and what a server
//! does for slow watchers has no part in the result.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use api::etcdserverpb as pb;
use bytes::Bytes;
use pb::kv_client::KvClient;
use pb::watch_client::WatchClient;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::kv::put_request;
use super::{connect, value};
use crate::connection::Connection;
use crate::recorder::{Recorder, Window};
use crate::{BenchError, Plan, Target};

/// An open stream. The transport resets the stream, and then closes the connection, only when both halves are gone; so
/// the requests must be ours to end.
struct WatchStream {
    _requests: mpsc::Sender<pb::WatchRequest>,
    responses: Streaming<pb::WatchResponse>,
}

/// What the writer and the watchers share.
struct Round {
    recorder: Arc<Recorder>,
    clock: Instant,
    /// When the put of this round was sent, in nanoseconds of `clock`.
    put_sent_ns: AtomicU64,
    /// Events of all rounds so far.
    delivered: AtomicU64,
    /// Value of `delivered` that ends the round.
    delivered_wanted: AtomicU64,
    complete: Notify,
}

pub(super) async fn run(
    plan: &Plan,
    target: &Target,
    recorder: &Arc<Recorder>,
) -> Result<(Window, usize), BenchError> {
    let key = Bytes::from_static(b"gaios-bench/watched");
    let round = Arc::new(Round {
        recorder: Arc::clone(recorder),
        clock: Instant::now(),
        put_sent_ns: AtomicU64::new(0),
        delivered: AtomicU64::new(0),
        delivered_wanted: AtomicU64::new(u64::MAX),
        complete: Notify::new(),
    });
    let connections = connect(target, plan.connections).await?;
    let mut watchers = JoinSet::new();
    for stream in open_streams(plan, &connections, |_| key.clone()).await? {
        watchers.spawn(watch(stream, Arc::clone(&round)));
    }
    let writer_connection = connect(target, 1).await?.remove(0);
    let write = write(plan, KvClient::new(writer_connection), key, &round);
    let measure = async {
        let window = recorder.window(plan, &target.pids).await;
        // Lets the writer see that it is over.
        round.complete.notify_one();
        window
    };
    let failed = async {
        match watchers.join_next().await {
            Some(Ok(error)) => error,
            Some(Err(error)) => BenchError::Server(format!("a watcher: {error}")),
            None => BenchError::Server("there is no watcher".to_owned()),
        }
    };
    tokio::select! {
        both = async { tokio::try_join!(measure, write) } => Ok((both?.0, 0)),
        error = failed => Err(error),
    }
}

/// Watches on which nothing happens.
pub(super) async fn idle(
    plan: &Plan,
    target: &Target,
    recorder: &Arc<Recorder>,
) -> Result<(Window, usize), BenchError> {
    let keys = super::keys(plan.watchers);
    let connections = connect(target, plan.connections).await?;
    let streams = open_streams(plan, &connections, |watch| keys[watch].clone()).await?;
    let count = async {
        let mut seconds = tokio::time::interval(Duration::from_secs(1));
        loop {
            seconds.tick().await;
            (0..plan.watchers).for_each(|_| recorder.completed(Duration::ZERO));
        }
    };
    let window = tokio::select! {
        window = recorder.window(plan, &target.pids) => window?,
        () = count => unreachable!("it counts on"),
    };
    drop(streams);
    Ok((window, 0))
}

/// Opens the watches, each of the key that belongs to its number.
async fn open_streams(
    plan: &Plan,
    connections: &[Connection],
    key: impl Fn(usize) -> Bytes,
) -> Result<Vec<WatchStream>, BenchError> {
    let mut opening = JoinSet::new();
    let streams = plan.watchers.div_ceil(plan.watches_per_stream);
    for index in 0..streams {
        let first = index * plan.watches_per_stream;
        let watches = first..(first + plan.watches_per_stream).min(plan.watchers);
        let keys = watches.map(&key).collect();
        opening.spawn(open_stream(connections[index % connections.len()].clone(), keys));
    }
    let mut opened = Vec::with_capacity(streams);
    while let Some(joined) = opening.join_next().await {
        opened.push(joined.map_err(|error| BenchError::Server(format!("open a watch: {error}")))??);
    }
    Ok(opened)
}

/// Opens a stream with some watches and waits until the server has made them all.
async fn open_stream(connection: Connection, keys: Vec<Bytes>) -> Result<WatchStream, BenchError> {
    let watches = keys.len();
    let (requests, receiver) = mpsc::channel(watches);
    for key in keys {
        let create = pb::WatchCreateRequest { key, ..Default::default() };
        let create = pb::watch_request::RequestUnion::CreateRequest(create);
        // There is room for all of them, so this waits for nobody.
        let sent = requests.send(pb::WatchRequest { request_union: Some(create) }).await;
        sent.map_err(|_| BenchError::Server("a watch stream was not opened".to_owned()))?;
    }
    let responses = WatchClient::new(connection).watch(ReceiverStream::new(receiver)).await;
    let mut responses = responses.map_err(BenchError::prepare("open a watch"))?.into_inner();
    let mut created = 0;
    while created < watches {
        match responses.message().await.map_err(BenchError::prepare("create a watch"))? {
            Some(response) if response.canceled => {
                return Err(BenchError::Server(format!("a watch was refused: {}", response.cancel_reason)));
            }
            Some(response) => created += usize::from(response.created),
            None => return Err(BenchError::Server("a watch stream ended at once".to_owned())),
        }
    }
    Ok(WatchStream { _requests: requests, responses })
}

/// Counts events until the stream ends, which it should not.
async fn watch(mut stream: WatchStream, round: Arc<Round>) -> BenchError {
    loop {
        match stream.responses.message().await {
            Ok(Some(response)) if response.canceled => {
                return BenchError::Server(format!("a watch was cancelled: {}", response.cancel_reason));
            }
            Ok(Some(response)) => round.deliver(response.events.len() as u64),
            Ok(None) => return BenchError::Server("a watch stream ended".to_owned()),
            Err(status) => return BenchError::Server(format!("a watch stream broke: {status}")),
        }
    }
}

impl Round {
    fn now_ns(&self) -> u64 {
        self.clock.elapsed().as_nanos() as u64
    }

    fn deliver(&self, events: u64) {
        let latency = Duration::from_nanos(self.now_ns().saturating_sub(self.put_sent_ns.load(Relaxed)));
        for _ in 0..events {
            self.recorder.completed(latency);
        }
        let delivered = self.delivered.fetch_add(events, Relaxed) + events;
        if delivered >= self.delivered_wanted.load(Relaxed) {
            self.complete.notify_one();
        }
    }
}

/// Puts the key round after round; a server that loses an event fails the measurement.
async fn write(
    plan: &Plan,
    mut client: KvClient<Connection>,
    key: Bytes,
    round: &Round,
) -> Result<(), BenchError> {
    let (value, watchers) = (value(plan.value_size), plan.watchers as u64);
    let mut wanted = 0;
    while round.recorder.is_running() {
        wanted += watchers;
        round.delivered_wanted.store(wanted, Relaxed);
        round.put_sent_ns.store(round.now_ns(), Relaxed);
        let request = put_request(key.clone(), value.clone());
        let put_and_delivered = async {
            client.put(request).await.map_err(BenchError::prepare("put the watched key"))?;
            while round.delivered.load(Relaxed) < wanted && round.recorder.is_running() {
                round.complete.notified().await;
            }
            Ok(())
        };
        match tokio::time::timeout(plan.patience, put_and_delivered).await {
            Ok(done) => done?,
            Err(_) => {
                let missing = wanted - round.delivered.load(Relaxed).min(wanted);
                let what = format!("{missing} of {watchers} events are missing after {:?}", plan.patience);
                return Err(BenchError::Server(what));
            }
        }
    }
    Ok(())
}
