//! The front doors: everything a client can see. gRPC and HTTP on one port.
//!
//! A door validates, calls the [`Domain`], translates the error and fills the header. It holds no state of the
//! domain's: what two doors answer can only differ by what they were told.

mod admin;
mod caller;
mod cluster;
#[doc(hidden)]
pub mod convert;
pub(crate) mod errors;
mod front;
mod handshake;
mod health;
mod http;
mod kv;
mod large;
mod lease;
mod left;
mod maintenance;
mod measured;
mod members;
mod outlet;
mod serve;
mod sizes;
mod stagger;
mod told;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use api::etcdserverpb as pb;
use keyspace::Revision;
use parking_lot::Mutex;
use replica::rates::Rates;
use tokio::sync::watch as news;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::admission::Admission;
use crate::context::{Priority, RequestContext};
use crate::domain::{Domain, KnownGateways};
use crate::metrics::Metrics;
use crate::watch::Hub;
use errors::{NO_LEADER, status, to_status};
use gateway_core::Failure;

pub(crate) use admin::StatusTold;
pub(crate) use caller::Caller;
pub(crate) use front::Front;
pub(crate) use members::Members;
pub(crate) use serve::{Server, serve};
pub(crate) use stagger::{Place, Stagger};
pub(crate) use told::SlowLog;
pub use told::{ACCESS_TARGET, AccessLog};

/// A member of the cluster as clients see it: a gateway of their region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Not 0. [`member_id`] makes one.
    pub id: u64,
    /// Unique in the region.
    pub name: String,
    /// Addresses that clients can dial, `http://host:port`.
    pub client_urls: Vec<String>,
    /// For completeness; clients do not dial them.
    pub peer_urls: Vec<String>,
}

/// A member's id from where it stands and its name, equal on all gateways: the 64-bit FNV-1a hash of `region/name`, or of the
/// name alone where there is no region.
pub fn member_id(region: &str, name: &str) -> u64 {
    let prefix = if region.is_empty() { [region, ""] } else { [region, "/"] };
    let bytes = prefix.into_iter().chain([name]).flat_map(str::bytes);
    config::fnv1a(bytes).max(1)
}

/// Limits and times of the doors, all etcd's by default.
#[derive(Clone, Debug)]
pub struct DoorOptions {
    /// The largest request, in bytes (`--max-request-bytes`).
    pub request_bytes_max: usize,
    /// The most operations in a transaction (`--max-txn-ops`).
    pub txn_ops_max: usize,
    /// The shortest time to live of a lease, in seconds: etcd's is three halves of an election timeout, rounded up.
    pub lease_ttl_min_s: i64,
    /// Time between progress notifications of a watch (`--watch-progress-notify-interval`).
    pub progress_interval: Duration,
    /// Concurrent requests on one connection (`--max-concurrent-streams`, of which etcd has 2^32).
    pub concurrent_streams_max: u32,
    /// A stream that asked for a leader ends after this long without one: three election timeouts.
    pub leaderless_max: Duration,
    /// Clients are spoken to by TLS, and by nothing else. The door follows its files.
    pub tls: Option<Arc<tls::Server>>,
    /// A unary request that takes longer is told of in the log.
    pub slow_request: Duration,
    /// Which requests have a line in the access log.
    pub access_log: AccessLog,
    /// Requests of clients that may be under way, waiting for a leader or for anything else.
    pub requests_max: usize,
    /// Connections of clients; half of them from one address.
    pub connections_max: usize,
    /// Bytes that clients can make the gateway hold.
    pub memory_max: usize,
}

impl Default for DoorOptions {
    fn default() -> DoorOptions {
        DoorOptions {
            request_bytes_max: 3 << 19,
            txn_ops_max: keyspace::check::DEFAULT_MAX_TXN_OPS,
            lease_ttl_min_s: 2,
            progress_interval: Duration::from_secs(600),
            concurrent_streams_max: 8192,
            leaderless_max: Duration::from_secs(3),
            tls: None,
            slow_request: Duration::from_millis(500),
            access_log: AccessLog::Off,
            requests_max: 16_384,
            connections_max: 65_536,
            memory_max: 1 << 30,
        }
    }
}

impl DoorOptions {
    /// The largest gRPC message accepted: etcd allows 512 KiB on top of the largest request.
    pub(crate) fn message_bytes_max(&self) -> usize {
        self.request_bytes_max.saturating_add(512 << 10)
    }
}

/// What all doors share.
pub(crate) struct Door<D> {
    pub(crate) domain: Arc<D>,
    pub(crate) options: DoorOptions,
    /// [`DoorOptions::txn_ops_max`], which may change.
    pub(crate) txn_ops_max: Arc<AtomicUsize>,
    pub(crate) member_id: u64,
    pub(crate) members: Members,
    pub(crate) hub: Arc<Hub<D>>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) metrics: Metrics,
    /// The gateway's.
    pub(crate) name: String,
    /// Where it is.
    pub(crate) place: gateway_core::nearest::Place,
    pub(crate) started: Instant,
    pub(crate) status_told: StatusTold,
    /// Requests, events, bytes from and to clients.
    pub(crate) rates: Mutex<Rates<4>>,
    pub(crate) slow_log: SlowLog,
    /// Whether a leader is known.
    pub(crate) leader_known: news::Receiver<bool>,
    /// True after `leaderless_max` without a leader.
    pub(crate) leaderless: news::Receiver<bool>,
    /// Cancelled when the gateway begins to drain: not ready any more.
    pub(crate) draining: CancellationToken,
    /// When streams must end.
    pub(crate) ending: Stagger,
    /// The newest revision and term that any answer told.
    pub(crate) seen_revision: AtomicI64,
    pub(crate) seen_term: AtomicU64,
}

impl<D: Domain> Door<D> {
    pub(crate) fn header(&self, revision: Revision, term: u64) -> Option<pb::ResponseHeader> {
        // Relaxed: a hint for answers that no read stands behind. The load spares the line a write by every answer. Most
        // answers have a caller: see there.
        if self.seen_revision.load(Ordering::Relaxed) < revision.0 {
            self.seen_revision.fetch_max(revision.0, Ordering::Relaxed);
            self.seen_term.fetch_max(term, Ordering::Relaxed);
        }
        Some(pb::ResponseHeader {
            cluster_id: self.domain.cluster_id(),
            member_id: self.member_id,
            revision: revision.0,
            raft_term: term,
        })
    }

    /// Of a request that the gateway makes itself, for what it tells over HTTP and for its own use.
    pub(crate) fn context(&self) -> RequestContext {
        RequestContext::own(self.domain.request_timeout(), Priority::Small)
    }

    /// The newest revision and term that any answer told.
    fn seen(&self) -> (Revision, u64) {
        (Revision(self.seen_revision.load(Ordering::Relaxed)), self.seen_term.load(Ordering::Relaxed))
    }

    /// For a request that asks for a leader: waits for one, for as long as streams that are open may go on without. Before
    /// the first one it waits as long as its client does.
    ///
    /// # Errors
    /// There has been none for too long.
    pub(crate) async fn await_leader(&self) -> Result<(), Status> {
        if *self.leader_known.borrow() {
            return Ok(());
        }
        let (mut known, mut leaderless) = (self.leader_known.clone(), self.leaderless.clone());
        tokio::select! {
            biased;
            Ok(_) = known.wait_for(|known| *known) => Ok(()),
            Ok(_) = leaderless.wait_for(|leaderless| *leaderless) => Err(status(NO_LEADER)),
            () = self.ending.begun() => Err(to_status(Failure::Stopping)),
        }
    }

    /// The member that is shown as the leader.
    async fn leader_member(&self, context: &RequestContext) -> Result<u64, Failure> {
        let known = if self.members.are_configured() {
            KnownGateways::default()
        } else {
            self.domain.gateways(context).await?
        };
        Ok(self.members.leader(&known.gateways))
    }
}

/// Whether the caller will not wait for a leader.
pub(crate) fn requires_leader(metadata: &MetadataMap) -> bool {
    metadata.get("hasleader").is_some_and(|value| value.as_encoded_bytes() == b"true")
}

/// When a long stream must end before its client ends it.
pub(crate) struct StreamEnd {
    leaderless: Option<news::Receiver<bool>>,
    ending: Stagger,
    place: Place,
}

impl StreamEnd {
    pub(crate) fn new<D>(door: &Door<D>, metadata: &MetadataMap) -> StreamEnd {
        let leaderless = requires_leader(metadata).then(|| door.leaderless.clone());
        StreamEnd { leaderless, ending: door.ending.clone(), place: Place::draw() }
    }

    /// Waits for the end. Safe to drop and call again.
    pub(crate) async fn ended(&mut self) -> Status {
        let leaderless = async {
            match &mut self.leaderless {
                Some(leaderless) => {
                    if leaderless.wait_for(|leaderless| *leaderless).await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = leaderless => status(NO_LEADER),
            () = self.ending.turn(self.place) => to_status(Failure::Stopping),
        }
    }
}

fn unsupported(method: &str) -> Status {
    Status::unimplemented(format!("gaios: {method} is not supported by this version"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn member_ids_are_those_of_fnv() {
        // From the reference vectors of FNV-1a.
        assert_eq!(member_id("", "a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(member_id("", "foobar"), 0x8594_4171_f739_67e8);
        assert_ne!(member_id("foo", "bar"), member_id("", "foobar"));
    }
}
