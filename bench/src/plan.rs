//! What to measure, checked.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// What the callers do over and over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Put a random key.
    Put,
    /// Read a random key, linearizable.
    Get,
    /// Read a random key, serializable.
    SerializableGet,
    /// A transaction: if a key's mod_revision is the one last seen, put it, otherwise read it. Each caller has a key
    /// of its own as long as there are enough; fewer keys than callers means contention.
    CompareAndPut,
    /// Open a connection, put a random key, close the connection.
    ConnectPutClose,
    /// One writer, many watchers of one key; an operation is one event at one watcher. The next put follows when every
    /// watcher has the event of the last; latency counts from the start of the put.
    Watch,
    /// Watch keys that nobody puts, each watch another key; an operation is one watch that was kept for one second.
    IdleWatches,
    /// Grant a lease and revoke it: two requests, one operation.
    Lease,
    /// Renew a lease over a stream; each caller has a lease and a stream of its own.
    LeaseKeepAlive,
    /// Open connections, read once through each, and let them be: what an idle connection costs in memory. A tenth
    /// more are opened before the window. Once through; no time limit.
    IdleConnections,
}

impl fmt::Display for Workload {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Workload::Put => "put",
            Workload::Get => "get",
            Workload::SerializableGet => "serializable-get",
            Workload::CompareAndPut => "compare-and-put",
            Workload::ConnectPutClose => "connect-put-close",
            Workload::Watch => "watch",
            Workload::IdleWatches => "idle-watches",
            Workload::Lease => "lease",
            Workload::LeaseKeepAlive => "lease-keep-alive",
            Workload::IdleConnections => "idle-connections",
        })
    }
}

/// When the measured window ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// After this time.
    Time(Duration),
    /// After this many operations.
    Operations(u64),
}

/// One measurement. Invariants are those of [`RunFlags::plan`](crate::RunFlags::plan): every number is at least 1
/// (`value_size` may be 0), and `connections` is at most the number of callers or of watchers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What the callers do.
    pub workload: Workload,
    /// Requests in flight at any moment.
    pub callers: usize,
    /// HTTP/2 connections the callers or watchers share evenly; spread over the endpoints.
    pub connections: usize,
    /// Bytes of every value.
    pub value_size: usize,
    /// Different keys in use.
    pub keys: usize,
    /// How many watches, for [`Workload::Watch`] and [`Workload::IdleWatches`].
    pub watchers: usize,
    /// How many of them share a stream.
    pub watches_per_stream: usize,
    /// Load without measuring, to fill caches and open connections.
    pub warmup: Duration,
    /// End of the measured window.
    pub limit: Limit,
    /// What has not happened after this time never will: the last answer after the window, the last event of a put,
    /// any operation at all in a window that ends after a number of them.
    pub patience: Duration,
}

/// The patience of the command line: well above etcd's own request timeout of about 7 s.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// The server to measure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Name in the report.
    pub label: String,
    /// URLs; connection `i` goes to endpoint `i` modulo their number.
    pub endpoints: Vec<String>,
    /// Processes whose CPU time and memory are counted; none means neither is reported.
    pub pids: Vec<u32>,
    /// How endpoints that begin with `https` are spoken to.
    pub tls: Option<tls::ClientOptions>,
}
