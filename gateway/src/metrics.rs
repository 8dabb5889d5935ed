//! What a gateway counts. Names are etcd's where they mean the same, `gaios_` otherwise.

mod certificates;
mod dns;
mod handshakes;
mod histogram;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Encoder as _, GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};
use tonic::Code;

use crate::admission::{Budget, Refusals, UnderWay, Use};
use crate::domain::{DomainStatus, LinkCounts, NodeDistance};
use crate::journey::Journey;
use crate::methods::{Flow, METHODS};
use crate::versions::{ADVERTISED_CLUSTER_VERSION, ADVERTISED_VERSION};
use gateway_core::admission::Limits;
use gateway_core::nearest::Place;

pub use certificates::CertificateMetrics;
pub(crate) use certificates::catch_up;
pub use dns::DnsMetrics;
use handshakes::TlsMetrics;
pub(crate) use histogram::{Family, Histogram, Unit};

/// Codes by number, as grpc-go's metrics name them.
pub(crate) const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// Different values of `client-api-version` that are counted apart; a client chooses its own text.
const CLIENT_VERSIONS_MAX: usize = 64;

/// All of them.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    methods: Vec<MethodMetrics>,
    client_requests: IntCounterVec,
    client_versions: parking_lot::Mutex<Vec<String>>,
    pub(crate) has_leader: IntGauge,
    pub(crate) health_success: IntCounter,
    pub(crate) health_failures: IntCounter,
    pub(crate) connections: IntGauge,
    pub(crate) connections_accepted: IntCounter,
    pub(crate) slow_requests: IntCounter,
    stages: Stages,
    requests_under_way: IntGauge,
    proposals_pending: IntGauge,
    proposals_failed: IntCounter,
    pub(crate) received_bytes: IntCounter,
    pub(crate) sent_bytes: IntCounter,
    leader_changes: IntCounter,
    /// The round last seen.
    term: AtomicU64,
    pub(crate) watchers: IntGauge,
    pub(crate) watch_streams: IntGauge,
    pub(crate) upstreams: IntGauge,
    pub(crate) histories: IntGauge,
    direct_links: IntGauge,
    relayed_links: IntGauge,
    links_refused: IntCounterVec,
    round_trips: GaugeVec,
    pub(crate) events: IntCounter,
    applied: IntGauge,
    committed: IntGauge,
    quota: IntGauge,
    size: IntGauge,
    size_in_use: IntGauge,
    revision: IntGauge,
    compact_revision: IntGauge,
    /// By kind.
    requests_admitted: IntGaugeVec,
    requests_limit: IntGaugeVec,
    requests_refused: IntCounterVec,
    connections_refused: IntCounter,
    connections_stuck: IntCounter,
    memory_budget: IntGauge,
    /// By use.
    memory_taken: IntGaugeVec,
    /// Where clients are spoken to by TLS.
    tls: Option<TlsMetrics>,
}

/// Counters of one gRPC method.
#[derive(Debug)]
pub(crate) struct MethodMetrics {
    pub(crate) started: IntCounter,
    handled: Vec<IntCounter>,
    /// Of unary methods.
    took: Histogram,
    /// Whether it may change something.
    writes: bool,
}

/// Where the time of unary requests went.
#[derive(Debug)]
struct Stages {
    waited: Histogram,
    at_nodes: Histogram,
    gateway: Histogram,
}

/// Methods whose failures etcd counts as failed proposals.
const WRITES: &[&str] = &["Put", "DeleteRange", "Txn", "Compact", "LeaseGrant", "LeaseRevoke", "Alarm"];

impl MethodMetrics {
    pub(crate) fn handled(&self, code: Code) {
        if let Some(counter) = usize::try_from(i32::from(code)).ok().and_then(|code| self.handled.get(code)) {
            counter.inc();
        }
    }
}

impl Metrics {
    pub(crate) fn new(member_id: u64, name: &str, place: &Place) -> Metrics {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help).expect("the name is well formed");
            registry.register(Box::new(counter.clone())).expect("each name is registered once");
            counter
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help).expect("the name is well formed");
            registry.register(Box::new(gauge.clone())).expect("each name is registered once");
            gauge
        };
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters =
                IntCounterVec::new(Opts::new(name, help), labels).expect("the name is well formed");
            registry.register(Box::new(counters.clone())).expect("each name is registered once");
            counters
        };
        let started = counters(
            "grpc_server_started_total",
            "Total number of RPCs started on the server.",
            &["grpc_type", "grpc_service", "grpc_method"],
        );
        let handled = counters(
            "grpc_server_handled_total",
            "Total number of RPCs completed on the server, regardless of success or failure.",
            &["grpc_type", "grpc_service", "grpc_method", "grpc_code"],
        );
        let methods = METHODS.iter().map(|(service, method, flow)| MethodMetrics {
            started: started.with_label_values(&[flow.label(), service, method]),
            handled: CODES
                .iter()
                .map(|code| handled.with_label_values(&[flow.label(), service, method, code]))
                .collect(),
            took: Histogram::new(Unit::Seconds),
            writes: WRITES.contains(method),
        });
        let methods: Vec<MethodMetrics> = methods.collect();
        let unary = METHODS.iter().zip(&methods).filter(|((_, _, flow), _)| *flow == Flow::Unary);
        let took = unary.map(|((service, method, flow), metrics)| {
            let labels = [("grpc_type", flow.label()), ("grpc_service", service), ("grpc_method", method)];
            (labels.to_vec(), metrics.took.clone())
        });
        let took = Family::new(
            "grpc_server_handling_seconds",
            "Time of a unary RPC, from its head to the head of its answer.",
            took.collect(),
        );
        registry.register(Box::new(took)).expect("each name is registered once");
        let stages = Stages {
            waited: Histogram::new(Unit::Seconds),
            at_nodes: Histogram::new(Unit::Seconds),
            gateway: Histogram::new(Unit::Seconds),
        };
        let family = Family::new(
            "gaios_gateway_stage_seconds",
            "Where the time of a unary RPC went: `wait` for a leader, a session or a node with room; `node`, and the way to \
             it and back; `gateway`, the rest. A stage that was not gone through is not counted.",
            [("wait", &stages.waited), ("node", &stages.at_nodes), ("gateway", &stages.gateway)]
                .map(|(stage, histogram)| (vec![("stage", stage)], histogram.clone()))
                .to_vec(),
        );
        registry.register(Box::new(family)).expect("each name is registered once");
        let facts = |metric: &str, help: &str, labels: &[(&str, &str)]| {
            let opts = labels
                .iter()
                .fold(Opts::new(metric, help), |opts, (label, value)| opts.const_label(*label, *value));
            let gauge = IntGauge::with_opts(opts).expect("the name is well formed");
            registry.register(Box::new(gauge.clone())).expect("each name is registered once");
            gauge.set(1);
        };
        let gauges = |metric: &str, help: &str, labels: &[&str]| {
            let gauges = IntGaugeVec::new(Opts::new(metric, help), labels).expect("the name is well formed");
            registry.register(Box::new(gauges.clone())).expect("each name is registered once");
            gauges
        };
        facts(
            "etcd_server_version",
            "Which version is running. 1 for 'server_version' label with current version.",
            &[("server_version", ADVERTISED_VERSION)],
        );
        facts(
            "etcd_server_id",
            "Server or member ID in hexadecimal format. 1 for 'server_id' label with current ID.",
            &[("server_id", &format!("{member_id:x}"))],
        );
        facts(
            "etcd_cluster_version",
            "Which version is running. 1 for 'cluster_version' label with current cluster version.",
            &[("cluster_version", ADVERTISED_CLUSTER_VERSION)],
        );
        facts("gaios_build_info", "The version of gaios.", &[("version", env!("CARGO_PKG_VERSION"))]);
        facts(
            "gaios_gateway_info",
            "Which gateway this is, and where it stands.",
            &[("name", name), ("region", &place.region), ("zone", &place.zone)],
        );
        #[cfg(target_os = "linux")]
        registry
            .register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
            .expect("each name is registered once");
        Metrics {
            methods,
            client_requests: counters(
                "etcd_server_client_requests_total",
                "The total number of client requests per client version.",
                &["type", "client_api_version"],
            ),
            client_versions: parking_lot::Mutex::default(),
            has_leader: gauge(
                "etcd_server_has_leader",
                "Whether or not a leader exists. 1 is existence, 0 is not.",
            ),
            health_success: counter(
                "etcd_server_health_success",
                "The total number of successful health checks",
            ),
            health_failures: counter(
                "etcd_server_health_failures",
                "The total number of failed health checks",
            ),
            stages,
            connections_accepted: counter(
                "gaios_gateway_connections_accepted_total",
                "Connections of clients that were accepted.",
            ),
            slow_requests: counter(
                "gaios_gateway_slow_requests_total",
                "Unary requests that took longer than `slow_request_threshold`.",
            ),
            requests_under_way: gauge(
                "gaios_gateway_requests_under_way",
                "Requests that wait for the answer of a node.",
            ),
            proposals_pending: gauge(
                "etcd_server_proposals_pending",
                "The current number of requests that wait for the answer of a node.",
            ),
            proposals_failed: counter(
                "etcd_server_proposals_failed_total",
                "The total number of writes that failed, but for the client's own fault.",
            ),
            connections: gauge("gaios_gateway_connections", "Connections of clients."),
            received_bytes: counter(
                "etcd_network_client_grpc_received_bytes_total",
                "The total number of bytes received from clients.",
            ),
            sent_bytes: counter(
                "etcd_network_client_grpc_sent_bytes_total",
                "The total number of bytes sent to clients.",
            ),
            leader_changes: counter(
                "etcd_server_leader_changes_seen_total",
                "The number of leader changes seen.",
            ),
            term: AtomicU64::new(0),
            watchers: gauge("etcd_debugging_mvcc_watcher_total", "Total number of watchers."),
            watch_streams: gauge("etcd_debugging_mvcc_watch_stream_total", "Total number of watch streams."),
            upstreams: gauge("gaios_gateway_watch_upstreams", "Feeds that carry the watches of clients."),
            histories: gauge(
                "gaios_gateway_watch_histories",
                "Feeds that read history, for watches that began in the past or fell behind.",
            ),
            direct_links: gauge("gaios_gateway_links", "Connections to nodes, without those by a relay."),
            relayed_links: gauge(
                "gaios_gateway_relayed_links",
                "Connections to nodes by a relay: another node passes them on, since these are not reached otherwise.",
            ),
            links_refused: counters(
                "gaios_gateway_links_refused_total",
                "Attempts to link with a node where what answers is not the node, or does not want this gateway.",
                &["reason"],
            ),
            round_trips: {
                let name = "gaios_gateway_node_round_trip_seconds";
                let help = "Smoothed round trip to each node that is reached.";
                let gauges = GaugeVec::new(Opts::new(name, help), &["node", "region"]);
                let gauges = gauges.expect("the name is well formed");
                registry.register(Box::new(gauges.clone())).expect("each name is registered once");
                gauges
            },
            events: counter(
                "etcd_debugging_mvcc_events_total",
                "Total number of events sent by this gateway.",
            ),
            applied: gauge(
                "etcd_server_proposals_applied_total",
                "The total number of consensus proposals applied.",
            ),
            committed: gauge(
                "etcd_server_proposals_committed_total",
                "The total number of consensus proposals committed.",
            ),
            quota: gauge("etcd_server_quota_backend_bytes", "Current backend storage quota size in bytes."),
            size: gauge(
                "etcd_mvcc_db_total_size_in_bytes",
                "Total size of the underlying database physically allocated in bytes.",
            ),
            size_in_use: gauge(
                "etcd_mvcc_db_total_size_in_use_in_bytes",
                "Total size of the underlying database logically in use in bytes.",
            ),
            revision: gauge("etcd_debugging_mvcc_current_revision", "The current revision of store."),
            compact_revision: gauge(
                "etcd_debugging_mvcc_compact_revision",
                "The revision of the last compaction in store.",
            ),
            requests_admitted: gauges(
                "gaios_gateway_requests_admitted",
                "Requests of clients that were let in and are not answered: small reads and writes, and those that may be \
                 of many keys.",
                &["kind"],
            ),
            requests_limit: gauges(
                "gaios_gateway_requests_limit",
                "How many requests of a kind are let in, while they wait for each other too long; 0 while there is no such \
                 limit.",
                &["kind"],
            ),
            requests_refused: {
                let refused = counters(
                    "gaios_gateway_requests_refused_total",
                    "Requests that were refused with `too many requests` before their work began: for \
                     `gaios_gateway_requests_limit` (`queue`), for `limits.max_requests_in_flight` (`full`), or for \
                     `limits.memory_budget` (`memory`).",
                    &["reason"],
                );
                for reason in ["queue", "full", "memory"] {
                    refused.with_label_values(&[reason]);
                }
                refused
            },
            connections_refused: counter(
                "gaios_gateway_connections_refused_total",
                "Connections that were ended at once for `limits.max_connections`.",
            ),
            connections_stuck: counter(
                "gaios_gateway_connections_stuck_total",
                "Connections that were ended since their clients took nothing of the answers that waited for them.",
            ),
            memory_budget: gauge(
                "gaios_gateway_memory_budget_bytes",
                "What clients can make this gateway hold, `limits.memory_budget`.",
            ),
            memory_taken: gauges(
                "gaios_gateway_memory_taken_bytes",
                "How much of the budget is taken: by open streams, by messages of clients until they are answered, and by \
                 answers until the client has taken them.",
                &["use"],
            ),
            tls: None,
            registry,
        }
    }

    /// Counts what happens at a port that speaks TLS.
    pub(crate) fn count_handshakes(&mut self, server: Arc<tls::Server>) {
        self.tls = Some(TlsMetrics::new(&self.registry, server));
    }

    /// Adds what others count.
    pub(crate) fn register(&self, collectors: Vec<Box<dyn Collector>>) {
        for collector in collectors {
            self.registry.register(collector).expect("each name is registered once");
        }
    }

    /// A unary request has taken so long.
    pub(crate) fn took(&self, method: usize, code: Code, took: Duration, journey: &Journey) {
        let metrics = &self.methods[method];
        metrics.took.observe_time(took);
        let our_fault =
            [Code::Unavailable, Code::DeadlineExceeded, Code::Internal, Code::Unknown, Code::DataLoss];
        if metrics.writes && our_fault.contains(&code) {
            self.proposals_failed.inc();
        }
        if journey.attempts > 0 {
            self.stages.at_nodes.observe_time(journey.at_nodes);
        }
        if !journey.waited.is_zero() {
            self.stages.waited.observe_time(journey.waited);
        }
        self.stages
            .gateway
            .observe_time(took.saturating_sub(journey.at_nodes).saturating_sub(journey.waited));
    }

    /// Requests, events, bytes from and to clients.
    pub(crate) fn totals(&self) -> [u64; 4] {
        let requests = self.methods.iter().map(|method| method.started.get()).sum();
        [requests, self.events.get(), self.received_bytes.get(), self.sent_bytes.get()]
    }

    pub(crate) fn method(&self, method: usize) -> &MethodMetrics {
        &self.methods[method]
    }

    pub(crate) fn client_request(&self, flow: Flow, version: &str) {
        let kind = match flow {
            Flow::Unary => "unary",
            Flow::ServerStream | Flow::BidiStream => "stream",
        };
        let mut versions = self.client_versions.lock();
        let known = versions.iter().any(|known| known == version);
        if !known && versions.len() < CLIENT_VERSIONS_MAX {
            versions.push(version.to_owned());
        }
        let version =
            if known || versions.last().is_some_and(|last| last == version) { version } else { "other" };
        self.client_requests.with_label_values(&[kind, version]).inc();
    }

    /// Takes in what is known of the domain.
    pub(crate) fn set_status(&self, status: &DomainStatus) {
        if self.term.fetch_max(status.term, Ordering::Relaxed) < status.term {
            self.leader_changes.inc();
        }
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.applied.set(signed(status.applied_slot));
        self.committed.set(signed(status.commit_slot));
        self.quota.set(signed(status.quota_bytes));
        self.size.set(signed(status.size_bytes));
        self.size_in_use.set(signed(status.size_in_use_bytes));
        self.revision.set(status.revision.0);
        self.compact_revision.set(status.compact_revision.0);
    }

    /// What admission counts.
    pub(crate) fn refusals(&self) -> Refusals {
        let counter = |reason| self.requests_refused.with_label_values(&[reason]);
        Refusals {
            queue: counter("queue"),
            full: counter("full"),
            memory: counter("memory"),
            connections: self.connections_refused.clone(),
            stuck: self.connections_stuck.clone(),
        }
    }

    /// Takes in what is under way, and how much may be.
    pub(crate) fn set_admission(&self, under_way: UnderWay, limits: Limits, budget: &Budget) {
        self.memory_budget.set(budget.most() as i64);
        let uses = [("streams", Use::Streams), ("messages", Use::Messages), ("answers", Use::Answers)];
        for (name, what) in uses {
            self.memory_taken.with_label_values(&[name]).set(budget.taken(what) as i64);
        }
        let [reads, writes] = limits.small;
        let kinds = [
            ("read", under_way.reads, reads),
            ("write", under_way.writes, writes),
            ("large", under_way.large, limits.large),
        ];
        for (kind, under_way, limit) in kinds {
            self.requests_admitted.with_label_values(&[kind]).set(under_way as i64);
            self.requests_limit.with_label_values(&[kind]).set(limit.unwrap_or(0) as i64);
        }
    }

    /// Takes in how nodes are reached.
    pub(crate) fn set_links(&self, links: LinkCounts) {
        self.direct_links.set(links.direct as i64);
        self.relayed_links.set(links.relayed as i64);
        self.requests_under_way.set(links.owed as i64);
        self.proposals_pending.set(links.owed as i64);
        for (reason, count) in links.refused {
            let counted = self.links_refused.with_label_values(&[reason]);
            counted.inc_by(count.saturating_sub(counted.get()));
        }
    }

    /// Takes in how far nodes are.
    pub(crate) fn set_distances(&self, nodes: &[NodeDistance]) {
        self.round_trips.reset();
        for node in nodes {
            if let Some(round_trip) = node.round_trip {
                let labels = [&node.node.0.to_string(), &node.place.region];
                self.round_trips.with_label_values(&labels).set(round_trip.as_secs_f64());
            }
        }
    }

    /// In Prometheus' text format.
    pub(crate) fn text(&self) -> String {
        if let Some(tls) = &self.tls {
            tls.refresh();
        }
        let mut out = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            tracing::warn!(%error, "cannot write metrics");
        }
        String::from_utf8(out).unwrap_or_default()
    }
}
