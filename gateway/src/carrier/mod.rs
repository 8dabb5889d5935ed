//! A domain carried by our groups: requests find the group's leader over the links, writes go under session numbers,
//! feeds move from replica to replica.
//!
//! What to do is decided in [`gateway_core`]; this folder waits for answers and carries out what it says. A request is
//! driven by its caller's own future: no task is spawned for it.

mod asks;
mod feed;
mod group;
mod links;
mod metrics;
mod names;
mod nodes;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::{Bytes, BytesMut};
use discovery::Discovery;
use gateway_core::asks::Write;
use gateway_core::nearest::Place;
use gateway_core::{
    Concern, Failure, FeedId, FeedSpec, GroupId, NodeId, Pause, Request, Topology, Unbelieved,
};
use keyspace::{LeaseId, Op, Query, Route};
use prometheus::core::Collector;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::context::{Priority, RequestContext};
use crate::domain::{
    Answer, Consistency, Domain, DomainStatus, Feed, FeedReader, Kept, KnownGateways, LinkCounts,
    NodeDistance,
};
use crate::feed_event::FeedEvent;
use crate::journey;
use crate::leading::{Leading, Wanted};
use crate::link::{Figures, Identity, LinkEvent};
use crate::metrics::{CertificateMetrics, DnsMetrics};
use crate::random::random_u32;
use crate::status::{GatewayStatus, NodeStatus};

use feed::{LinkFeed, carry_feeds};
use group::Group;
use links::Links;
use metrics::CarrierMetrics;
use names::Names;

/// Bytes of requests that may wait for nodes to be less busy.
const EASING_BYTES_MAX: usize = 256 << 20;

/// How a carrier reaches its nodes.
#[derive(Clone, Debug)]
pub struct CarrierOptions {
    /// The gateway's name, for the nodes' logs.
    pub name: String,
    /// Where it stands.
    pub place: Place,
    /// How clients reach it, for other gateways to tell.
    pub client_urls: Vec<String>,
    /// How much it can carry, for other gateways to tell.
    pub capacity: u32,
    /// Addresses of nodes, as [`discovery::Address`] has them. More are learned from the shard map.
    pub nodes: Vec<String>,
    /// Resolves names; `None`: the system's.
    pub dns_server: Option<SocketAddr>,
    /// Refuse nodes of another cluster. `None`: the first node's cluster it is.
    pub cluster_id: Option<u64>,
    /// The certificates of links; without them, links are plain.
    pub link_tls: Option<Arc<tls::Mutual>>,
    /// Connections per node.
    pub links_per_node: usize,
    /// Until a request is given up. etcd's is 5 s and two election timeouts.
    pub request_timeout: Duration,
    /// Requests of one group that may wait for a leader.
    pub waiting_max: usize,
}

/// What may change of [`CarrierOptions`] while the carrier runs; the fields are as there.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "documented at `CarrierOptions`")]
pub struct CarrierLimits {
    pub request_timeout: Duration,
    pub waiting_max: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Carrier {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    limits: ArcSwap<CarrierLimits>,
    links: Links,
    discovery: Discovery,
    names: Names,
    metrics: CarrierMetrics,
    link_tls: Option<Arc<tls::Mutual>>,
    /// What the gateway does, for nodes to tell.
    figures: Figures,
    topology: ArcSwapOption<Topology>,
    /// The groups that carry the domain. One that is known is kept for good.
    groups: ArcSwap<Vec<Arc<Group>>>,
    /// Requests that wait for the first shard map.
    waiting: AtomicUsize,
    /// Bytes of requests that wait for a node to be less busy.
    easing: AtomicUsize,
    cluster: Arc<AtomicU64>,
    leader_known: watch::Sender<bool>,
    /// Bumped with each topology.
    topology_news: watch::Sender<u64>,
    feeds: mpsc::UnboundedSender<FeedEvent>,
    /// How many feeds were ever opened: the next one's id.
    next_feed: AtomicU64,
    stop: CancellationToken,
}

impl Carrier {
    /// Dials the nodes. Must be called within a runtime.
    pub fn start(options: CarrierOptions) -> Carrier {
        let stop = CancellationToken::new();
        let cluster = Arc::new(AtomicU64::new(options.cluster_id.unwrap_or(0)));
        let metrics = CarrierMetrics::default();
        let figures = Figures::default();
        let (feeds, feed_events) = mpsc::unbounded_channel();
        let identity = Identity {
            metrics: metrics.links.clone(),
            name: options.name.clone(),
            place: options.place.clone(),
            client_urls: options.client_urls.clone(),
            capacity: options.capacity,
            cluster: Arc::clone(&cluster),
            stop: stop.clone(),
            ways: Arc::default(),
            tls: options.link_tls.clone(),
            refusals: Arc::default(),
            figures: Arc::clone(&figures),
            connections: Arc::default(),
            feeds: feeds.clone(),
        };
        let (sender, events) = mpsc::unbounded_channel();
        let links = Links::new(identity, sender, options.links_per_node.max(1));
        let CarrierOptions { nodes, dns_server, request_timeout, waiting_max, link_tls, .. } = options;
        let limits = CarrierLimits { request_timeout, waiting_max };
        let shared = Arc::new(Shared {
            limits: ArcSwap::from_pointee(limits),
            discovery: Discovery::new(dns_server),
            links,
            names: Names::default(),
            metrics,
            link_tls,
            figures,
            topology: ArcSwapOption::empty(),
            groups: ArcSwap::default(),
            waiting: AtomicUsize::new(0),
            easing: AtomicUsize::new(0),
            cluster,
            leader_known: watch::Sender::new(false),
            topology_news: watch::Sender::new(0),
            feeds,
            next_feed: AtomicU64::new(0),
            stop,
        });
        for address in &nodes {
            shared.follow_configured(address);
        }
        tokio::spawn(Arc::clone(&shared).follow(events));
        tokio::spawn(carry_feeds(Arc::clone(&shared), feed_events));
        Carrier { shared }
    }

    /// For requests from here on.
    pub fn set_limits(&self, limits: CarrierLimits) {
        self.shared.limits.store(Arc::new(limits));
    }

    /// Ends all links. Requests under way fail.
    pub fn stop(&self) {
        self.shared.stop.cancel();
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    /// Follows what the links report.
    async fn follow(self: Arc<Self>, mut events: mpsc::UnboundedReceiver<LinkEvent>) {
        loop {
            let event = tokio::select! {
                () = self.stop.cancelled() => return,
                event = events.recv() => event,
            };
            match event {
                Some(LinkEvent::Up { id, link, node, cluster, shard_map, place }) => {
                    // Without a configured cluster, the first node's is the one.
                    let known =
                        self.cluster.compare_exchange(0, cluster, Ordering::AcqRel, Ordering::Acquire);
                    if known.is_err_and(|known| known != cluster) {
                        warn!(node = node.0, cluster, "a node of another cluster");
                        continue;
                    }
                    let newer = match self.newer(shard_map) {
                        Ok(newer) => newer,
                        Err(error) => {
                            let address = link.address();
                            let hint = "if it is the right one, restart this gateway";
                            error!(node = node.0, address, %error, "this node is not used; {hint}");
                            continue;
                        }
                    };
                    // First, so that the map's address for it is not dialled as well.
                    self.links.handle_up(id, node, &link, place);
                    if let Some(topology) = newer {
                        self.learn(topology);
                    }
                    self.each_group(Group::announce);
                }
                Some(LinkEvent::Down { id }) => {
                    self.links.handle_down(id);
                    self.each_group(Group::announce);
                }
                Some(LinkEvent::RoundTrip { node, sample }) => self.links.handle_round_trip(node, sample),
                Some(LinkEvent::ShardMap(map)) => match self.newer(map) {
                    Ok(Some(topology)) => self.learn(topology),
                    Ok(None) => {}
                    Err(error) => warn!(%error, "a shard map is not used"),
                },
                None => return,
            }
        }
    }

    /// Tells whether every group that carries the domain is led.
    fn tell_leader_known(&self) {
        self.leader_known.send_if_modified(|was| {
            let groups = self.groups.load();
            let known = !groups.is_empty() && groups.iter().all(|group| group.is_led());
            std::mem::replace(was, known) != known
        });
    }

    fn each_group(&self, act: impl Fn(&Group)) {
        for group in self.groups.load().iter() {
            act(group);
        }
    }

    /// Reads a shard map; `None` if it is no newer than the known one.
    fn newer(&self, encoded: Bytes) -> Result<Option<Topology>, Unbelieved> {
        Topology::newer(encoded, self.topology.load().as_deref())
    }

    /// Takes in a newer shard map.
    fn learn(self: &Arc<Self>, topology: Topology) {
        info!(epoch = topology.epoch(), "new shard map");
        self.follow_map(topology.nodes());
        let mut groups = self.groups.load().as_ref().clone();
        for id in topology.groups() {
            if groups.iter().all(|group| group.id() != id) {
                let group = Arc::new(Group::new(id, &self.metrics, self.feeds.clone()));
                let (shared, kept) = (Arc::clone(self), Arc::clone(&group));
                tokio::spawn(async move { kept.run(&shared).await });
                groups.push(group);
            }
        }
        // Only this task changes the two; a reader that sees the new topology finds its groups.
        self.groups.store(Arc::new(groups));
        self.topology.store(Some(Arc::new(topology)));
        self.topology_news.send_modify(|news| *news += 1);
        let _ = self.feeds.send(FeedEvent::Map);
    }

    /// Where a request goes, and the group there; what it concerns is only asked for if there are several shards. None before
    /// the first node has answered.
    fn route_now(&self, concern: impl FnOnce() -> Concern) -> Option<Result<(Arc<Group>, Route), Failure>> {
        let topology = self.topology.load();
        let routed = match topology.as_ref()?.route_of(concern) {
            Ok(routed) => routed,
            Err(failure) => return Some(Err(failure)),
        };
        let group = self.group_by_id(routed.group);
        let group = group.ok_or(Failure::Internal("gaios: a shard without a group"));
        Some(group.map(|group| (group, routed.route)))
    }

    fn group_by_id(&self, id: GroupId) -> Option<Arc<Group>> {
        self.groups.load().iter().find(|group| group.id() == id).cloned()
    }

    /// The group of `route`.
    async fn group(
        &self,
        context: &RequestContext,
        concern: impl Fn() -> Concern,
    ) -> Result<Arc<Group>, Failure> {
        self.route(context, concern).await.map(|(group, _)| group)
    }

    /// As `route_now`, but waits for the first node. Bounded in number here.
    async fn route(
        &self,
        context: &RequestContext,
        concern: impl Fn() -> Concern,
    ) -> Result<(Arc<Group>, Route), Failure> {
        if let Some(routed) = self.route_now(&concern) {
            return routed;
        }
        let _counted = Counted::new(&self.waiting, 1, self.waiting_max())?;
        let _stage = journey::waiting();
        let mut news = self.topology_news.subscribe();
        loop {
            if let Some(routed) = self.route_now(&concern) {
                return routed;
            }
            match timeout_at(context.deadline.at().into(), news.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Failure::Stopping),
                Err(_) => return Err(context.deadline.passed(&Request::inquiry())),
            }
        }
    }

    /// Pauses until then, before a request of so many bytes goes out again.
    ///
    /// # Errors
    /// Too much waits for nodes to be less busy.
    async fn pause(&self, until: std::time::Instant, pause: Pause, bytes: usize) -> Result<(), Failure> {
        let _easing = match pause {
            Pause::Moment => None,
            Pause::Ease { bounded, most: _ } => {
                let bytes_max = if bounded { EASING_BYTES_MAX } else { usize::MAX };
                Some(Counted::new(&self.easing, bytes, bytes_max)?)
            }
        };
        let _stage = match pause {
            Pause::Moment => journey::waiting(),
            Pause::Ease { .. } => journey::queued(),
        };
        tokio::time::sleep_until(until.into()).await;
        Ok(())
    }

    /// Pauses before a request is routed again: by then there may be a newer map.
    async fn pause_for_map(&self) {
        let _stage = journey::waiting();
        tokio::time::sleep(Pause::Moment.length(random_u32())).await;
    }

    fn replicas(&self, group: &Group) -> Vec<NodeId> {
        self.topology.load().as_ref().map_or_else(Vec::new, |topology| topology.replicas(group.id()))
    }

    /// Of a request of the gateway's own.
    fn context(&self, priority: Priority) -> RequestContext {
        RequestContext::own(self.request_timeout(), priority)
    }

    fn request_timeout(&self) -> Duration {
        self.limits.load().request_timeout
    }

    fn waiting_max(&self) -> usize {
        self.limits.load().waiting_max
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// A part of a bounded number.
struct Counted<'a>(&'a AtomicUsize, usize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize, part: usize, max: usize) -> Result<Counted<'a>, Failure> {
        let before = count.fetch_add(part, Ordering::Relaxed);
        let counted = Counted(count, part);
        if before.saturating_add(part) > max { Err(Failure::Overloaded) } else { Ok(counted) }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

impl Domain for Carrier {
    async fn write(&self, context: &RequestContext, op: Op) -> Result<Answer, Failure> {
        let mut write = Write::new(op, Route::FIRST);
        loop {
            let (group, route) = self.shared.route(context, || write.concern()).await?;
            write.set_route(route);
            match group.write(&self.shared, context, &mut write).await {
                // Nothing was applied.
                Err(Failure::WrongShard) => self.shared.pause_for_map().await,
                answered => return answered,
            }
        }
    }

    async fn read(
        &self,
        context: &RequestContext,
        query: Query,
        consistency: Consistency,
    ) -> Result<Answer, Failure> {
        let mut encoded = BytesMut::new();
        query.encode(&mut encoded);
        let encoded = encoded.freeze();
        loop {
            let group = self.shared.group(context, || Concern::of_query(&query)).await?;
            match group.read(&self.shared, context, encoded.clone(), consistency).await {
                Err(Failure::WrongShard) => self.shared.pause_for_map().await,
                answered => return answered,
            }
        }
    }

    async fn keep_alive(&self, context: &RequestContext, lease: LeaseId) -> Result<Kept, Failure> {
        let group = self.shared.group(context, || Concern::Domain).await?;
        group.keep_alive(context, lease).await
    }

    async fn status(&self, context: &RequestContext) -> Result<DomainStatus, Failure> {
        let group = self.shared.group(context, || Concern::Domain).await?;
        group.status(&self.shared, context).await
    }

    async fn gateways(&self, context: &RequestContext) -> Result<KnownGateways, Failure> {
        let group = self.shared.group(context, || Concern::Domain).await?;
        group.gateways(&self.shared, context).await
    }

    fn feed(&self, spec: FeedSpec, reader: Arc<dyn FeedReader>) -> Box<dyn Feed> {
        let id = FeedId(self.shared.next_feed.fetch_add(1, Ordering::Relaxed));
        Box::new(LinkFeed::open(id, spec, reader, self.shared.feeds.clone()))
    }

    async fn nodes(&self) -> (Vec<NodeStatus>, BTreeMap<u64, Vec<u32>>) {
        self.shared.nodes().await
    }

    fn tell(&self, own: &GatewayStatus) {
        self.shared.figures.store(own.figures().map(Arc::new));
    }

    fn link_certificates(&self) -> Option<tls::Status> {
        self.shared.link_tls.as_ref().map(|tls| tls.status())
    }

    fn distances(&self) -> Vec<NodeDistance> {
        self.shared.links.distances()
    }

    async fn lead(&self, context: &RequestContext, wanted: Wanted) -> Option<Result<Leading, Failure>> {
        let group = self.shared.group_by_id(GroupId(wanted.group))?;
        Some(group.lead(&self.shared, context, wanted.want).await)
    }

    fn request_timeout(&self) -> Duration {
        self.shared.request_timeout()
    }

    fn collectors(&self) -> Vec<Box<dyn Collector>> {
        let mut collectors = self.shared.metrics.collectors();
        collectors.push(Box::new(DnsMetrics::new(self.shared.discovery.clone())));
        if let Some(tls) = self.shared.link_tls.clone() {
            collectors.push(Box::new(CertificateMetrics::new("link", move || tls.status())));
        }
        collectors
    }

    fn links(&self) -> LinkCounts {
        self.shared.links.count()
    }

    fn cluster_id(&self) -> u64 {
        self.shared.cluster.load(Ordering::Relaxed)
    }

    fn leader_known(&self) -> watch::Receiver<bool> {
        self.shared.leader_known.subscribe()
    }
}
