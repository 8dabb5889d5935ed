//! What an attacker has: a server, a cluster filled for it, and the moment at which its attack begins.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use api::etcdserverpb as pb;
use bench::{Connection, Endpoint, ProcessSample};
use bytes::Bytes;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::watch_client::WatchClient;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::Problem;

/// How long the small client is watched before an attack, to know what is normal.
const NORMAL_FOR: Duration = Duration::from_millis(500);
/// Most bytes and operations in one transaction that fills the cluster.
const FILL_BYTES: usize = 1 << 20;
const FILL_OPS: usize = 100;
const FILL_PARALLEL: usize = 8;
/// A server may shed what fills it; then it is tried again, so many times.
const FILL_ATTEMPTS: usize = 100;
/// Nobody's key.
const SETTLING: &str = "settling";
/// So many puts in a row, each within that time, are as quick as usual.
const SETTLED_PUTS: usize = 25;
const SETTLED_PUT: Duration = Duration::from_millis(20);
/// After so long the attack begins all the same.
const SETTLED_WITHIN: Duration = Duration::from_secs(10);

/// Keys that a case puts before its attack.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fill {
    /// Of all keys; ends with a slash.
    pub(crate) prefix: &'static str,
    pub(crate) keys: usize,
    pub(crate) value_bytes: usize,
    /// 0 for none.
    pub(crate) lease: i64,
}

impl Fill {
    pub(crate) fn key(&self, index: usize) -> Bytes {
        format!("{}{index:06}", self.prefix).into()
    }
}

/// When the parts of a case began.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Begun {
    pub(crate) normal: Instant,
    pub(crate) attack: Instant,
}

/// See the head of the file.
pub(crate) struct Stage {
    pub(crate) endpoint: Endpoint,
    /// Where nodes take links; none where the server is an etcd.
    pub(crate) nodes: Vec<SocketAddr>,
    pub(crate) pids: Vec<u32>,
    scale: f64,
    begun: Mutex<Option<Begun>>,
    written_bytes: AtomicU64,
}

impl Stage {
    pub(crate) fn new(endpoint: Endpoint, nodes: Vec<SocketAddr>, pids: Vec<u32>, scale: f64) -> Stage {
        let (begun, written_bytes) = (Mutex::new(None), AtomicU64::new(0));
        Stage { endpoint, nodes, pids, scale, begun, written_bytes }
    }

    /// Tells that everything is prepared; returns when the attack is to begin.
    pub(crate) async fn begin(&self) {
        let normal = Instant::now();
        tokio::time::sleep(NORMAL_FOR).await;
        let begun = Begun { normal, attack: Instant::now() };
        *self.begun.lock().unwrap_or_else(PoisonError::into_inner) = Some(begun);
    }

    pub(crate) fn begun(&self) -> Option<Begun> {
        *self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells that the attack made the server keep so many bytes more.
    pub(crate) fn wrote(&self, bytes: usize) {
        self.written_bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(crate) fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Relaxed)
    }

    /// `count` at the size that was asked for.
    pub(crate) fn sized(&self, count: usize) -> usize {
        ((count as f64 * self.scale) as usize).max(1)
    }

    /// Resident memory of each process.
    pub(crate) fn rss_bytes(&self) -> Result<Vec<u64>, Problem> {
        let samples = ProcessSample::read_all(&self.pids).map_err(|error| error.to_string())?;
        Ok(samples.iter().map(|sample| sample.rss_bytes).collect())
    }

    async fn connect(&self) -> Result<Connection, Problem> {
        Connection::open(&self.endpoint).await.map_err(|error| format!("connect: {error}"))
    }

    /// A client on a connection of its own, that takes answers of any size.
    pub(crate) async fn kv(&self) -> Result<KvClient<Connection>, Problem> {
        Ok(KvClient::new(self.connect().await?).max_decoding_message_size(usize::MAX))
    }

    pub(crate) async fn leases(&self) -> Result<LeaseClient<Connection>, Problem> {
        Ok(LeaseClient::new(self.connect().await?))
    }

    pub(crate) async fn watches(&self) -> Result<WatchClient<Connection>, Problem> {
        Ok(WatchClient::new(self.connect().await?).max_decoding_message_size(usize::MAX))
    }

    /// Puts keys, some in one transaction where they are small.
    pub(crate) async fn fill(&self, fill: Fill) -> Result<(), Problem> {
        let in_one = (FILL_BYTES / fill.value_bytes.max(1)).clamp(1, FILL_OPS);
        let value = Bytes::from(vec![b'v'; fill.value_bytes]);
        let mut tasks = JoinSet::new();
        for part in 0..FILL_PARALLEL {
            let (mut client, value) = (self.kv().await?, value.clone());
            tasks.spawn(async move {
                for first in (0..fill.keys).step_by(in_one).skip(part).step_by(FILL_PARALLEL) {
                    let keys = (first..fill.keys.min(first + in_one)).map(|index| fill.key(index));
                    put_all(&mut client, keys.collect(), &value, fill.lease).await?;
                }
                Ok(())
            });
        }
        while let Some(filled) = tasks.join_next().await {
            let filled: Result<(), Status> = filled.map_err(|error| format!("fill: {error}"))?;
            filled.map_err(|status| format!("fill: {status}"))?;
        }
        self.settle().await
    }

    /// Waits until the disks have what was filled in, and writes are as quick as usual again, for as long as that may take.
    async fn settle(&self) -> Result<(), Problem> {
        let mut client = self.kv().await?;
        let (until, mut quick) = (Instant::now() + SETTLED_WITHIN, 0);
        while quick < SETTLED_PUTS && Instant::now() < until {
            let begun = Instant::now();
            put_all(&mut client, vec![SETTLING.into()], &Bytes::new(), 0)
                .await
                .map_err(|status| format!("fill: {status}"))?;
            quick = if begun.elapsed() < SETTLED_PUT { quick + 1 } else { 0 };
            tokio::time::sleep(SETTLED_PUT).await;
        }
        Ok(())
    }
}

async fn put_all(
    client: &mut KvClient<Connection>,
    keys: Vec<Bytes>,
    value: &Bytes,
    lease: i64,
) -> Result<(), Status> {
    let put = |key| pb::PutRequest { key, value: value.clone(), lease, ..Default::default() };
    let puts = keys.into_iter().map(|key| pb::request_op::Request::RequestPut(put(key)));
    let success: Vec<_> = puts.map(|put| pb::RequestOp { request: Some(put) }).collect();
    let txn = pb::TxnRequest { success, ..Default::default() };
    let mut attempt = 1;
    loop {
        match client.txn(txn.clone()).await {
            Ok(_) => return Ok(()),
            Err(status) if attempt == FILL_ATTEMPTS => return Err(status),
            Err(status) if matches!(status.code(), Code::ResourceExhausted | Code::Unavailable) => {
                attempt += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(status) => return Err(status),
        }
    }
}

/// Runs `count` tasks until the time is over; what they do ends with them.
pub(crate) async fn for_a_while<F>(time: Duration, tasks: impl IntoIterator<Item = F>) -> Result<(), Problem>
where
    F: Future<Output = Result<(), Problem>> + Send + 'static,
{
    let mut running: JoinSet<_> = tasks.into_iter().collect();
    let all = async {
        while let Some(ended) = running.join_next().await {
            ended.map_err(|error| error.to_string())??;
        }
        Ok(())
    };
    tokio::time::timeout(time, all).await.unwrap_or(Ok(()))
}
