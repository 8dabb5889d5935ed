//! Callers that put keys all the time and try again, as real clients do, while a cluster is changed under them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use api::etcdserverpb::kv_client::KvClient;
use api::etcdserverpb::{PutRequest, RangeRequest};
use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::Problem;

/// After which a request counts as failed, however often it was tried.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(10);
/// For one try; a gateway answers within it, if only that it cannot.
const TRY_FOR: Duration = Duration::from_secs(8);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(10);

/// Where clients may connect: what a Service knows of its ready pods.
#[derive(Clone, Default)]
pub(crate) struct Endpoints(Arc<Mutex<Vec<SocketAddr>>>);

impl Endpoints {
    pub(crate) fn set(&self, all: Vec<SocketAddr>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = all;
    }

    fn pick(&self, turn: usize) -> Option<SocketAddr> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(turn % all.len().max(1)).copied()
    }
}

/// What they saw.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) done: u64,
    pub(crate) tried_again: u64,
    pub(crate) failed: Vec<String>,
    /// The longest that a request took, with all its tries.
    pub(crate) longest: Duration,
    /// The longest time in which no request of any caller was answered.
    pub(crate) gap: Duration,
    last: Option<Instant>,
}

impl Seen {
    fn answered(&mut self, begun: Instant) {
        let now = Instant::now();
        self.done += 1;
        self.longest = self.longest.max(now - begun);
        self.gap = self.gap.max(now - self.last.unwrap_or(begun));
        self.last = Some(now);
    }
}

/// Callers under way.
pub(crate) struct Callers {
    tasks: JoinSet<Result<(), Problem>>,
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
}

impl Callers {
    pub(crate) fn start(count: usize, endpoints: &Endpoints) -> Callers {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Seen::default())));
        let mut tasks = JoinSet::new();
        for number in 0..count {
            let caller = Caller {
                number,
                turn: number,
                endpoints: endpoints.clone(),
                client: None,
                seen: Arc::clone(&seen),
            };
            tasks.spawn(caller.run(Arc::clone(&stop)));
        }
        Callers { tasks, stop, seen }
    }

    /// What was seen so far.
    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends them. Each reads what it wrote last: nothing that was answered may be lost.
    pub(crate) async fn finish(mut self) -> Result<Seen, Problem> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.map_err(|error| format!("a caller: {error}"))??;
        }
        Ok(self.seen())
    }
}

struct Caller {
    number: usize,
    /// Which endpoint is next.
    turn: usize,
    endpoints: Endpoints,
    client: Option<KvClient<Channel>>,
    seen: Arc<Mutex<Seen>>,
}

impl Caller {
    async fn run(mut self, stop: Arc<AtomicBool>) -> Result<(), Problem> {
        let key = Bytes::from(format!("caller/{}", self.number));
        let mut value: u64 = 0;
        while !stop.load(Ordering::Relaxed) {
            value += 1;
            let put =
                PutRequest { key: key.clone(), value: value.to_string().into(), ..PutRequest::default() };
            self.ask(move |mut client| {
                let put = put.clone();
                async move { client.put(put).await.map(|_| ()) }
            })
            .await;
        }
        let wanted = value.to_string();
        let range = RangeRequest { key, ..RangeRequest::default() };
        let read = self
            .ask(move |mut client| {
                let range = range.clone();
                async move { client.range(range).await.map(|answer| answer.into_inner().kvs) }
            })
            .await;
        match read {
            // A put that failed may have been the last.
            None => Ok(()),
            Some(kvs) if kvs.first().is_some_and(|kv| kv.value == wanted.as_bytes()) => Ok(()),
            Some(kvs) => Err(format!("caller {}: wrote {value} last, and reads {kvs:?}", self.number)),
        }
    }

    /// Asks until there is an answer, at one gateway after the other, and notes how it went.
    async fn ask<T, F: Future<Output = Result<T, Status>>>(
        &mut self,
        request: impl Fn(KvClient<Channel>) -> F,
    ) -> Option<T> {
        let begun = Instant::now();
        loop {
            let problem = match self.client().await {
                Err(problem) => problem,
                Ok(client) => match timeout(TRY_FOR, request(client)).await {
                    Ok(Ok(answer)) => {
                        self.note(|seen| seen.answered(begun));
                        return Some(answer);
                    }
                    Ok(Err(status)) => status.to_string(),
                    Err(_) => format!("no answer within {TRY_FOR:?}"),
                },
            };
            self.client = None;
            self.turn += 1;
            if begun.elapsed() > GIVEN_UP_AFTER {
                let number = self.number;
                self.note(|seen| seen.failed.push(format!("caller {number}: {problem}")));
                return None;
            }
            self.note(|seen| seen.tried_again += 1);
            sleep(PAUSE).await;
        }
    }

    async fn client(&mut self) -> Result<KvClient<Channel>, Problem> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let address = self.endpoints.pick(self.turn).ok_or("no gateway is ready")?;
        let endpoint =
            Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
        let channel = endpoint.connect_timeout(Duration::from_secs(2)).tcp_nodelay(true).connect().await;
        let client = KvClient::new(channel.map_err(|error| format!("{address}: {error}"))?);
        self.client = Some(client.clone());
        Ok(client)
    }

    fn note(&self, what: impl FnOnce(&mut Seen)) {
        what(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
