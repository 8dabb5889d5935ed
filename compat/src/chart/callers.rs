//! Callers that put keys all the time and try again, as real clients do, while a cluster is changed under them.

use std::collections::BTreeSet;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use api::etcdserverpb::cluster_client::ClusterClient;
use api::etcdserverpb::kv_client::KvClient;
use api::etcdserverpb::{MemberListRequest, PutRequest, RangeRequest};
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use tls::{Client, ClientOptions, Stream};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};

use super::service::Endpoints;
use crate::Problem;

/// After which a request counts as failed, however often it was tried.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(10);
/// For one try; a gateway answers within it, if only that it cannot.
const TRY_FOR: Duration = Duration::from_secs(8);
/// For a connection, with its handshake.
const CONNECT_FOR: Duration = Duration::from_secs(2);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(10);

/// The name that the certificates of gateways say, and what clients trust: both may change while clients are under way.
#[derive(Clone, Default)]
pub(crate) struct Door(Arc<Mutex<Option<(String, Client)>>>);

impl Door {
    /// From here on, clients trust the CAs in this folder, and show the certificate there, if there is one. Connections that
    /// are there stay.
    pub(crate) fn load(&self, name: &str, folder: &Path) -> Result<(), Problem> {
        let own = (folder.join("client.crt"), folder.join("client.key"));
        let own = own.0.exists().then_some(own);
        let options = ClientOptions { own, ..ClientOptions::new(folder.join("ca.crt")) };
        let client = Client::load(&options).map_err(|flaws| flaws.to_string())?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((name.to_owned(), client));
        Ok(())
    }

    pub(crate) async fn connect(&self, address: &str) -> std::io::Result<Stream> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (name, client) = known.ok_or_else(|| std::io::Error::other("no CA is known yet"))?;
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        client.connect(&name, socket).await.map_err(std::io::Error::other)
    }

    /// The names of the gateways that the one at `address` tells of.
    pub(crate) async fn members(&self, address: &str) -> Result<BTreeSet<String>, Problem> {
        let channel = self.channel(address).await?;
        let told = ClusterClient::new(channel).member_list(MemberListRequest::default()).await;
        let members = told.map_err(|status| status.to_string())?.into_inner().members;
        Ok(members.into_iter().map(|member| member.name).collect())
    }

    async fn channel(&self, address: &str) -> Result<Channel, Problem> {
        // The channel leaves TLS to the door.
        let endpoint =
            Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
        let connecting = timeout(CONNECT_FOR, endpoint.connect_with_connector(self.clone())).await;
        let connected = connecting.map_err(|_| format!("{address}: no connection within {CONNECT_FOR:?}"))?;
        connected.map_err(|error| format!("{address}: {error:?}"))
    }
}

/// How a channel connects.
impl tower_service::Service<Uri> for Door {
    type Response = TokioIo<Stream>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let door = self.clone();
        Box::pin(async move {
            let address = uri.authority().map(ToString::to_string).unwrap_or_default();
            Ok(TokioIo::new(door.connect(&address).await?))
        })
    }
}

/// What is done to the cluster meanwhile, in words.
#[derive(Clone, Default)]
pub(crate) struct Stage(Arc<Mutex<String>>);

impl Stage {
    pub(crate) fn set(&self, words: impl Into<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = words.into();
    }

    fn words(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What they saw.
#[derive(Default)]
struct Record {
    stage: Stage,
    /// In all turns that are over.
    before: Seen,
    /// In the one that goes on.
    now: Seen,
    last: Option<Instant>,
}

/// What they saw for a while.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) done: u64,
    pub(crate) tried_again: u64,
    pub(crate) failed: Vec<String>,
    /// The longest that a request took, with all its tries.
    pub(crate) longest: Duration,
    /// The longest time in which no request of any caller was answered.
    pub(crate) gap: Duration,
    /// What was done when it ended.
    pub(crate) gap_at: String,
}

impl Record {
    fn answered(&mut self, begun: Instant) {
        let now = Instant::now();
        self.now.done += 1;
        self.now.longest = self.now.longest.max(now - begun);
        let gap = now - self.last.unwrap_or(begun);
        if gap > self.now.gap {
            (self.now.gap, self.now.gap_at) = (gap, self.stage.words());
        }
        self.last = Some(now);
    }

    fn turn(&mut self) -> Seen {
        let over = std::mem::take(&mut self.now);
        self.before.done += over.done;
        self.before.tried_again += over.tried_again;
        self.before.failed.extend(over.failed.iter().cloned());
        self.before.longest = self.before.longest.max(over.longest);
        if over.gap > self.before.gap {
            (self.before.gap, self.before.gap_at) = (over.gap, over.gap_at.clone());
        }
        over
    }
}

/// What clients know of a cluster, and what they are told of what is done to it.
#[derive(Clone, Default)]
pub(crate) struct Clients {
    /// The gateways of all regions that are ready.
    pub(crate) endpoints: Endpoints,
    pub(crate) door: Door,
    pub(crate) stage: Stage,
}

/// Callers under way.
pub(crate) struct Callers {
    tasks: JoinSet<Result<(), Problem>>,
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Record>>,
}

impl Callers {
    pub(crate) fn start(count: usize, clients: &Clients) -> Callers {
        let record = Record { stage: clients.stage.clone(), ..Record::default() };
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(record)));
        let mut tasks = JoinSet::new();
        for number in 0..count {
            let caller = Caller {
                number,
                turn: number,
                clients: clients.clone(),
                client: None,
                seen: Arc::clone(&seen),
            };
            tasks.spawn(caller.run(Arc::clone(&stop)));
        }
        Callers { tasks, stop, seen }
    }

    /// What was seen since the last turn.
    pub(crate) fn turn(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).turn()
    }

    /// Ends them. Each reads what it wrote last: nothing that was answered may be lost.
    pub(crate) async fn finish(mut self) -> Result<Seen, Problem> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.map_err(|error| format!("a caller: {error}"))??;
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.turn();
        Ok(std::mem::take(&mut seen.before))
    }
}

struct Caller {
    number: usize,
    /// Which endpoint is next.
    turn: usize,
    clients: Clients,
    client: Option<KvClient<Channel>>,
    seen: Arc<Mutex<Record>>,
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
                self.note(|seen| seen.now.failed.push(format!("caller {number}: {problem}")));
                return None;
            }
            self.note(|seen| seen.now.tried_again += 1);
            sleep(PAUSE).await;
        }
    }

    async fn client(&mut self) -> Result<KvClient<Channel>, Problem> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let address = self.clients.endpoints.pick(self.turn).ok_or("no gateway is ready")?;
        let client = KvClient::new(self.clients.door.channel(&address.to_string()).await?);
        self.client = Some(client.clone());
        Ok(client)
    }

    fn note(&self, what: impl FnOnce(&mut Record)) {
        what(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
