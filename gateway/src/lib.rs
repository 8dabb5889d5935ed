//! The gateway: the stateless process that clients talk to.
//!
//! Doors ([`door`]) speak etcd's protocols with clients and the narrow interface [`domain`] with whatever carries the
//! keyspace; [`carrier`] carries it by our groups, over a few persistent links. Nothing here knows the disk or the
//! messages of consensus, and nothing survives a restart.
//!
//! What is decided about requests to nodes is decided in [`gateway_core`], which is pure; what a client is told of a failure,
//! in `door/errors.rs`.

pub mod admin;
mod admission;
pub mod carrier;
pub mod context;
pub mod domain;
pub mod door;
mod feed_event;
mod journey;
pub mod leading;
mod link;
mod methods;
mod metrics;
mod random;
pub mod status;
pub mod versions;
mod watch;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

pub use gateway_core::nearest::Place;
use parking_lot::Mutex;
use replica::rates::{Rates, SAMPLE_EVERY};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::watch as news;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::info;

use admission::{Admission, Most};
use carrier::{Carrier, CarrierLimits, CarrierOptions};
use domain::Domain;
use door::{
    Door, DoorOptions, Front, Member, Members, Server, SlowLog, Stagger, StatusTold, member_id, serve,
};
use metrics::Metrics;
pub use metrics::{CertificateMetrics, DnsMetrics};
use watch::Hub;

/// A gateway that drains sends its clients away over this share of the grace period, and ends their streams over as much
/// after that: half of it is left for what is under way. No longer than the other time: that many clients come to the other
/// gateways one by one.
const SEND_AWAY: (u32, Duration) = (4, Duration::from_secs(2));

/// A client's connection waits here until it is accepted.
const BACKLOG: i32 = 4096;

/// How a gateway is run.
#[derive(Clone, Debug)]
pub struct GatewayOptions {
    /// Unique in the region.
    pub name: String,
    /// Where it stands.
    pub place: Place,
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where operators' tools connect; the same HTTP endpoints, no gRPC.
    pub admin_listen: Option<SocketAddr>,
    /// Addresses of nodes, as [`discovery::Address`] has them; more are learned from the shard map.
    pub nodes: Vec<String>,
    /// Resolves the names among them; `None`: as the system does.
    pub dns_server: Option<SocketAddr>,
    /// How clients reach this gateway, for all gateways to tell. Empty: at its listen address.
    pub client_urls: Vec<String>,
    /// How much this gateway can carry, for all gateways to tell.
    pub capacity: u32,
    /// Refuse nodes of another cluster. `None`: the first node's cluster it is.
    pub cluster_id: Option<u64>,
    /// What `MemberList` answers with, this gateway included. Empty: the gateways that are there.
    pub members: Vec<Member>,
    /// The certificates of links; without them, links are plain.
    pub link_tls: Option<Arc<tls::Mutual>>,
    /// Connections per node.
    pub links_per_node: usize,
    /// Until a request is given up. etcd's is 5 s and two election timeouts.
    pub request_timeout: Duration,
    /// How long [`Gateway::shutdown`] lets requests finish.
    pub drain: Duration,
    /// Limits and times of the doors.
    pub door: DoorOptions,
}

impl GatewayOptions {
    /// etcd's defaults.
    pub fn new(name: impl Into<String>, listen: SocketAddr, nodes: Vec<String>) -> GatewayOptions {
        GatewayOptions {
            name: name.into(),
            place: Place::default(),
            listen,
            admin_listen: None,
            nodes,
            dns_server: None,
            client_urls: Vec::new(),
            capacity: 1,
            cluster_id: None,
            members: Vec::new(),
            link_tls: None,
            links_per_node: 1,
            request_timeout: Duration::from_secs(7),
            drain: Duration::from_secs(10),
            door: DoorOptions::default(),
        }
    }
}

/// What may change of [`GatewayOptions`] while the gateway runs; the fields are as there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "documented at `GatewayOptions` and `DoorOptions`")]
pub struct Limits {
    pub request_timeout: Duration,
    pub requests_max: usize,
    pub txn_ops_max: usize,
    pub drain: Duration,
}

/// A port cannot be opened.
#[derive(Debug, Error)]
#[error("cannot listen on {address}: {source}")]
pub struct ListenError {
    /// Which one.
    pub address: SocketAddr,
    /// What the system says.
    pub source: io::Error,
}

/// A gateway that runs.
pub struct Gateway {
    carrier: Arc<Carrier>,
    serving: Serving,
    drain: Mutex<Duration>,
}

impl Gateway {
    /// Opens the ports and dials the nodes. Does not wait for the nodes: `/readyz` tells. Must be called within a
    /// runtime.
    ///
    /// # Errors
    /// A port cannot be opened.
    pub async fn start(options: GatewayOptions) -> Result<Gateway, ListenError> {
        let listener = listen(options.listen)?;
        let admin = options.admin_listen.map(listen).transpose()?;
        let client_urls = if options.client_urls.is_empty() {
            let own =
                listener.local_addr().map_err(|source| ListenError { address: options.listen, source })?;
            let scheme = if options.door.tls.is_some() { "https" } else { "http" };
            vec![format!("{scheme}://{own}")]
        } else {
            options.client_urls
        };
        let carrier = Arc::new(Carrier::start(CarrierOptions {
            name: options.name.clone(),
            place: options.place.clone(),
            client_urls: client_urls.clone(),
            capacity: options.capacity,
            nodes: options.nodes,
            dns_server: options.dns_server,
            cluster_id: options.cluster_id,
            link_tls: options.link_tls,
            links_per_node: options.links_per_node,
            request_timeout: options.request_timeout,
            waiting_max: options.door.requests_max,
        }));
        let (name, place, drain) = (options.name.clone(), options.place.clone(), Mutex::new(options.drain));
        let serving = Serving::start(
            Arc::clone(&carrier),
            listener,
            admin,
            options.name,
            &options.place,
            client_urls,
            options.members,
            options.door,
        )
        .map_err(|source| ListenError { address: options.listen, source })?;
        info!(name, region = place.region, zone = place.zone, client = %serving.client.address, "gateway serves");
        Ok(Gateway { carrier, serving, drain })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.serving.client.address
    }

    /// Where operators' tools connect.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.serving.admin.as_ref().map(|admin| admin.address)
    }

    /// Reads the files of certificates now. What becomes of that is told in the log.
    pub fn reload_certificates(&self) {
        if let Some(tls) = &self.serving.tls {
            // Logged there.
            let _ = tls.reload();
        }
    }

    /// Waits until requests can be served, as `/readyz` would tell. Returns whether that came true in time.
    pub async fn ready(&self, within: Duration) -> bool {
        let mut known = self.carrier.leader_known();
        let waited = timeout(within, known.wait_for(|known| *known)).await;
        matches!(waited, Ok(Ok(_)))
    }

    /// For requests from here on.
    pub fn set_limits(&self, limits: Limits) {
        let Limits { request_timeout, requests_max, txn_ops_max, drain } = limits;
        self.carrier.set_limits(CarrierLimits { request_timeout, waiting_max: requests_max });
        self.serving.admission.set_requests_max(requests_max);
        self.serving.txn_ops_max.store(txn_ops_max, Ordering::Relaxed);
        *self.drain.lock() = drain;
    }

    /// Stops in order: not ready, no new connections, clients told to go elsewhere, requests finished, within the
    /// grace period.
    pub async fn shutdown(self) {
        let grace = *self.drain.lock();
        self.serving.shutdown(grace).await;
        self.carrier.stop();
    }
}

/// The ports over any domain: what a gateway is beside its carrier.
pub struct Serving {
    tls: Option<Arc<tls::Server>>,
    client: Server,
    admin: Option<Server>,
    txn_ops_max: Arc<AtomicUsize>,
    admission: Arc<Admission>,
    draining: CancellationToken,
    ending: Stagger,
}

impl Serving {
    /// Serves `domain` on `listener`, as the gateway of that name.
    ///
    /// # Errors
    /// The listener has no address.
    #[expect(clippy::too_many_arguments, reason = "each is one thing, and there is one caller")]
    pub fn start<D: Domain>(
        domain: Arc<D>,
        listener: TcpListener,
        admin: Option<TcpListener>,
        name: String,
        place: &Place,
        client_urls: Vec<String>,
        members: Vec<Member>,
        options: DoorOptions,
    ) -> io::Result<Serving> {
        let id = members
            .iter()
            .find(|member| member.name == name)
            .map_or(member_id(&place.region, &name), |own| own.id);
        let mut metrics = Metrics::new(id, &name, place);
        let tls = options.tls.clone();
        if let Some(tls) = &tls {
            metrics.count_handshakes(Arc::clone(tls));
        }
        metrics.register(domain.collectors());
        let own_name = name.clone();
        let members = if members.is_empty() {
            let own = Member { id, name, peer_urls: client_urls.clone(), client_urls };
            Members::Living { own, region: place.region.clone() }
        } else {
            Members::Configured(members)
        };
        let leader_known = domain.leader_known();
        let (leaderless_sender, leaderless) = news::channel(false);
        let txn_ops_max = Arc::new(AtomicUsize::new(options.txn_ops_max));
        let draining = CancellationToken::new();
        let ending = Stagger::default();
        let watching =
            watch_leader(leader_known.clone(), options.leaderless_max, leaderless_sender, ending.clone());
        tokio::spawn(watching);
        if let Some(tls) = tls.clone() {
            let ending = ending.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = tls.follow() => {}
                    () = ending.begun() => {}
                }
            });
        }
        let most = Most {
            requests: options.requests_max,
            connections: options.connections_max,
            memory: options.memory_max,
        };
        let admission = Admission::new(most, metrics.refusals());
        let door = Arc::new(Door {
            hub: Hub::new(Arc::clone(&domain), metrics.upstreams.clone(), metrics.histories.clone()),
            domain,
            admission: Arc::clone(&admission),
            options,
            txn_ops_max: Arc::clone(&txn_ops_max),
            member_id: id,
            members,
            metrics,
            name: own_name,
            place: place.clone(),
            started: Instant::now(),
            status_told: StatusTold::default(),
            rates: Mutex::new(Rates::new()),
            slow_log: SlowLog::default(),
            seen_revision: AtomicI64::new(0),
            seen_term: AtomicU64::new(0),
            leader_known,
            leaderless,
            draining: draining.clone(),
            ending: ending.clone(),
        });
        tokio::spawn(prime(Arc::clone(&door)));
        tokio::spawn(keep_rates(Arc::clone(&door)));
        let front = Front::new(Arc::clone(&door));
        let client = serve(listener, front.clone(), Arc::clone(&door), tls.clone())?;
        let admin = admin.map(|admin| serve(admin, front.admin(), door, None)).transpose()?;
        Ok(Serving { tls, client, admin, txn_ops_max, admission, draining, ending })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.client.address
    }

    /// As [`Gateway::shutdown`].
    pub async fn shutdown(self, grace: Duration) {
        info!("draining");
        let begun = Instant::now();
        let deadline = begun + grace;
        let spread = (grace / SEND_AWAY.0).min(SEND_AWAY.1);
        self.draining.cancel();
        self.client.drain(spread);
        // Watches have no end of their own: they are ended, and their clients resume them elsewhere. Not before all
        // connections have been told to go, or they would come back by the same one.
        tokio::select! {
            () = sleep_until(begun + spread) => {}
            () = self.client.drained() => {}
        }
        self.ending.begin(spread);
        let finished = timeout_at(deadline, self.client.drained()).await.is_ok();
        self.client.close();
        if let Some(admin) = &self.admin {
            admin.close();
        }
        info!(finished, "drained");
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.draining.cancel();
        self.ending.begin(Duration::ZERO);
        self.client.close();
        if let Some(admin) = &self.admin {
            admin.close();
        }
    }
}

/// Learns the store's revision once, for answers that no read stands behind.
async fn prime<D: Domain>(door: Arc<Door<D>>) {
    let learned = async {
        let mut known = door.leader_known.clone();
        if known.wait_for(|known| *known).await.is_ok()
            && let Ok(status) = door.domain.status(&door.context()).await
        {
            let _ = door.header(status.revision, status.term);
            door.metrics.set_status(&status);
        }
    };
    tokio::select! {
        () = learned => {}
        () = door.ending.begun() => {}
    }
}

/// Looks at the counters once a second, and has the nodes know of them; and at clients that take no answers.
async fn keep_rates<D: Domain>(door: Arc<Door<D>>) {
    let mut ticks = tokio::time::interval(SAMPLE_EVERY);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = door.draining.cancelled() => return,
        }
        door.rates.lock().sample(door.started.elapsed(), door.metrics.totals());
        door.admission.dismiss_stuck();
        door.domain.tell(&door.own_status());
    }
}

/// Tells the streams that asked for a leader when there was none for too long.
async fn watch_leader(
    mut known: news::Receiver<bool>,
    leaderless_max: Duration,
    leaderless: news::Sender<bool>,
    ending: Stagger,
) {
    let watching = async {
        // Before the first leader nobody is told that there is none: etcd's member does not answer either before it is ready.
        if known.wait_for(|known| *known).await.is_err() {
            return;
        }
        loop {
            if known.wait_for(|known| !known).await.is_err() {
                return;
            }
            if timeout(leaderless_max, known.wait_for(|known| *known)).await.is_err() {
                leaderless.send_replace(true);
                if known.wait_for(|known| *known).await.is_err() {
                    return;
                }
            }
            leaderless.send_replace(false);
        }
    };
    tokio::select! {
        () = watching => {}
        () = ending.begun() => {}
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    listen_on(address).map_err(|source| ListenError { address, source })
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::STREAM,
        Some(socket2::Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}
