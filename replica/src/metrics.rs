//! What a node counts. The binary exports the registry.

use std::time::Duration;

use consensus_core::{GroupId, NodeId, Role, Slot, Status};
use group_core::Counters;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use crate::admission::Counts;
use crate::budget::Budget;
use crate::refusal::Refusal;

/// Cheap to clone: all clones count together.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    registry: Registry,
    fsync_seconds: Histogram,
    write_seconds: Histogram,
    pub(crate) apply_seconds: Histogram,
    round_trip_seconds: HistogramVec,
    journal_records: IntCounter,
    journal_bytes: IntCounter,
    is_leader: IntGaugeVec,
    has_leader: IntGaugeVec,
    applied_slot: IntGaugeVec,
    commit_slot: IntGaugeVec,
    healing: IntGaugeVec,
    watches: IntGaugeVec,
    differing: IntGaugeVec,
    counters: GroupCounterVecs,
    /// Of all groups.
    pub(crate) commands: IntCounter,
    pub(crate) queries: IntCounter,
    pub(crate) relayed_links: IntGauge,
    /// 1 where other machines reach the port, and nothing proves who they are.
    pub(crate) insecure: IntGauge,
    links_ended: IntCounter,
    connections: IntGaugeVec,
    refused: IntCounterVec,
    answers_refused: IntCounterVec,
    support_differs: IntGaugeVec,
    pub(crate) distrusted: IntCounterVec,
}

impl Metrics {
    pub(crate) fn new(node: NodeId, name: &str, region: &str, zone: &str) -> Metrics {
        let registry = Registry::new();
        let info = Opts::new("gaios_replica_info", "Which node this is")
            .const_label("node", node.0.to_string())
            .const_label("name", name)
            .const_label("region", region)
            .const_label("zone", zone);
        let info = IntGauge::with_opts(info).expect("the name is well formed");
        registry.register(Box::new(info.clone())).expect("each name is registered once");
        info.set(1);
        Metrics {
            // etcd's name, so that its dashboards find it.
            fsync_seconds: histogram(
                &registry,
                "etcd_disk_wal_fsync_duration_seconds",
                "Time of one fdatasync of the journal",
            ),
            write_seconds: histogram(
                &registry,
                "gaios_journal_write_duration_seconds",
                "Time to hand one batch of the journal to the operating system",
            ),
            // etcd's name: what its members commit to their backend is applied to memory here.
            apply_seconds: histogram(
                &registry,
                "etcd_disk_backend_commit_duration_seconds",
                "Time to apply what one turn of a group has committed; the state is in memory",
            ),
            round_trip_seconds: by_peer(
                &registry,
                "etcd_network_peer_round_trip_time_seconds",
                "Time from a heartbeat to its answer",
            ),
            counters: GroupCounterVecs::new(&registry),
            commands: counter(
                &registry,
                "gaios_replica_commands_applied_total",
                "Commands applied, of all groups",
            ),
            queries: counter(&registry, "gaios_replica_queries_total", "Queries answered, of all groups"),
            journal_records: counter(&registry, "gaios_journal_records_total", "Records made durable"),
            journal_bytes: counter(
                &registry,
                "gaios_journal_payload_bytes_total",
                "Payload bytes made durable",
            ),
            is_leader: by_group(&registry, "gaios_group_is_leader", "1 where this node leads the group"),
            has_leader: by_group(
                &registry,
                "gaios_group_has_leader",
                "1 where this node knows the group's leader",
            ),
            applied_slot: by_group(&registry, "gaios_group_applied_slot", "The last slot applied"),
            commit_slot: by_group(
                &registry,
                "gaios_group_commit_slot",
                "The last slot known to be committed",
            ),
            healing: by_group(
                &registry,
                "gaios_group_healing",
                "1 where this node may have forgotten votes and has not made up for them yet",
            ),
            watches: by_group(&registry, "gaios_group_watches", "Watches that gateways hold here"),
            differing: by_group(
                &registry,
                "gaios_group_differing_replicas",
                "Replicas that hold something else than the others, as this node found while it led",
            ),
            relayed_links: gauge(
                &registry,
                "gaios_replica_relayed_links",
                "Connections of gateways that this node, as a relay, passes on to another",
            ),
            insecure: gauge(
                &registry,
                "gaios_replica_insecure",
                "1 where other machines can reach this node's port, and nothing proves who they are",
            ),
            links_ended: counter(
                &registry,
                "gaios_replica_links_ended_total",
                "Links of gateways that were ended in the middle of a frame, since frames under way held too much memory",
            ),
            connections: connections(&registry),
            refused: refused(&registry),
            answers_refused: answers_refused(&registry),
            support_differs: support_differs(&registry),
            distrusted: distrusted(&registry),
            registry,
        }
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// A budget of so many bytes.
    pub(crate) fn budget(&self, bytes_max: usize) -> Budget {
        Budget::new(bytes_max, self.links_ended.clone())
    }

    pub(crate) fn connections(&self, counts: Counts) {
        let Counts { unproven, gateways, peers, leaving } = counts;
        let kinds = [("unproven", unproven), ("gateway", gateways), ("peer", peers), ("leaving", leaving)];
        for (kind, count) in kinds {
            self.connections.with_label_values(&[kind]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// A connection was turned away, for a reason of [`Refusal::LABELS`].
    pub(crate) fn refused(&self, reason: &str) {
        self.refused.with_label_values(&[reason]).inc();
    }

    /// What answers at a peer's address has shown no certificate of that peer; a reason of [`Refusal::LABELS`].
    pub(crate) fn answer_refused(&self, reason: &str) {
        self.answers_refused.with_label_values(&[reason]).inc();
    }

    pub(crate) fn support_differs(&self, peer: NodeId, differs: bool) {
        self.support_differs.with_label_values(&[&peer.0.to_string()]).set(i64::from(differs));
    }

    pub(crate) fn journal_synced(&self, records: u64, bytes: u64, write: Duration, sync: Duration) {
        self.journal_records.inc_by(records);
        self.journal_bytes.inc_by(bytes);
        self.write_seconds.observe(write.as_secs_f64());
        self.fsync_seconds.observe(sync.as_secs_f64());
    }

    /// A peer has answered a heartbeat.
    pub(crate) fn round_trip(&self, peer: NodeId, took: Duration) {
        self.round_trip_seconds.with_label_values(&[&peer.0.to_string()]).observe(took.as_secs_f64());
    }

    pub(crate) fn of_group(&self, group: GroupId) -> GroupMetrics {
        let label = group.0.to_string();
        GroupMetrics {
            is_leader: self.is_leader.with_label_values(&[&label]),
            has_leader: self.has_leader.with_label_values(&[&label]),
            applied_slot: self.applied_slot.with_label_values(&[&label]),
            commit_slot: self.commit_slot.with_label_values(&[&label]),
            healing: self.healing.with_label_values(&[&label]),
            watches: self.watches.with_label_values(&[&label]),
            differing: self.differing.with_label_values(&[&label]),
            counters: self.counters.of(&label),
            apply_seconds: self.apply_seconds.clone(),
            all_commands: self.commands.clone(),
            all_queries: self.queries.clone(),
        }
    }
}

/// One group's gauges, looked up once.
#[derive(Debug)]
pub(crate) struct GroupMetrics {
    is_leader: prometheus::IntGauge,
    has_leader: prometheus::IntGauge,
    applied_slot: prometheus::IntGauge,
    commit_slot: prometheus::IntGauge,
    healing: prometheus::IntGauge,
    watches: prometheus::IntGauge,
    counters: GroupCounters,
    apply_seconds: Histogram,
    all_commands: IntCounter,
    all_queries: IntCounter,
    differing: prometheus::IntGauge,
}

impl GroupMetrics {
    /// Something was applied.
    pub(crate) fn applied(&self, took: Duration) {
        self.apply_seconds.observe(took.as_secs_f64());
    }

    /// Adds what has happened since `before`.
    pub(crate) fn count(&self, now: &Counters, before: &Counters) {
        if now == before {
            return;
        }
        let own = &self.counters;
        let commands = now.commands - before.commands;
        let queries = now.queries - before.queries;
        own.commands_applied.inc_by(commands);
        self.all_commands.inc_by(commands);
        own.queries.inc_by(queries);
        self.all_queries.inc_by(queries);
        own.cancelled.inc_by(now.cancelled - before.cancelled);
        own.expired.inc_by(now.expired - before.expired);
        own.rejected.inc_by(now.rejected - before.rejected);
        own.leader_changes.inc_by(now.leader_changes - before.leader_changes);
        own.leases_expired.inc_by(now.leases_expired - before.leases_expired);
        own.snapshots_taken.inc_by(now.snapshots_taken - before.snapshots_taken);
        own.snapshots_sent.inc_by(now.snapshots_sent - before.snapshots_sent);
    }

    pub(crate) fn publish(&mut self, status: &Status, applied: Slot, watches: usize, differing: usize) {
        self.is_leader.set(i64::from(status.role == Role::Leader));
        self.has_leader.set(i64::from(status.leader.is_some()));
        self.applied_slot.set(i64::try_from(applied.0).unwrap_or(i64::MAX));
        self.commit_slot.set(i64::try_from(status.commit.0).unwrap_or(i64::MAX));
        self.watches.set(i64::try_from(watches).unwrap_or(i64::MAX));
        self.differing.set(i64::try_from(differing).unwrap_or(i64::MAX));
        let healing = status.promise_lost || status.faulty_from.is_some();
        self.healing.set(i64::from(healing));
    }
}

/// Counters of every group.
#[derive(Debug, Clone)]
struct GroupCounterVecs {
    commands_applied: IntCounterVec,
    queries: IntCounterVec,
    dropped: IntCounterVec,
    rejected: IntCounterVec,
    leader_changes: IntCounterVec,
    leases_expired: IntCounterVec,
    snapshots_taken: IntCounterVec,
    snapshots_sent: IntCounterVec,
}

/// One group's counters, looked up once.
#[derive(Debug)]
struct GroupCounters {
    commands_applied: IntCounter,
    queries: IntCounter,
    cancelled: IntCounter,
    expired: IntCounter,
    rejected: IntCounter,
    leader_changes: IntCounter,
    leases_expired: IntCounter,
    snapshots_taken: IntCounter,
    snapshots_sent: IntCounter,
}

impl GroupCounterVecs {
    fn new(registry: &Registry) -> Self {
        let by_group = |name: &str, help: &str| {
            let counter = IntCounterVec::new(Opts::new(name, help), &["group"]).expect("a constant name");
            registry.register(Box::new(counter.clone())).expect("registered once per registry");
            counter
        };
        GroupCounterVecs {
            commands_applied: by_group("gaios_group_commands_applied_total", "Commands applied"),
            queries: by_group("gaios_group_queries_total", "Queries answered"),
            dropped: dropped(registry),
            rejected: by_group(
                "gaios_group_proposals_rejected_total",
                "Commands that certainly did not enter the log: not led here, or too many",
            ),
            leader_changes: by_group(
                "gaios_group_leader_changes_total",
                "Leaders that came up, as seen here",
            ),
            leases_expired: by_group(
                "gaios_group_leases_expired_total",
                "Leases that this node, as leader, had removed",
            ),
            snapshots_taken: by_group("gaios_group_snapshots_taken_total", "Snapshots made durable here"),
            snapshots_sent: by_group(
                "gaios_group_snapshots_sent_total",
                "Snapshots sent to peers, however it went",
            ),
        }
    }

    fn of(&self, label: &str) -> GroupCounters {
        GroupCounters {
            commands_applied: self.commands_applied.with_label_values(&[label]),
            queries: self.queries.with_label_values(&[label]),
            cancelled: self.dropped.with_label_values(&[label, "cancelled"]),
            expired: self.dropped.with_label_values(&[label, "expired"]),
            rejected: self.rejected.with_label_values(&[label]),
            leader_changes: self.leader_changes.with_label_values(&[label]),
            leases_expired: self.leases_expired.with_label_values(&[label]),
            snapshots_taken: self.snapshots_taken.with_label_values(&[label]),
            snapshots_sent: self.snapshots_sent.with_label_values(&[label]),
        }
    }
}

/// 32 µs to 1 s: a fast disk's sync lies below etcd's first bucket of 1 ms.
fn buckets() -> Vec<f64> {
    prometheus::exponential_buckets(0.000_032, 2.0, 16).expect("constants in range")
}

fn by_peer(registry: &Registry, name: &str, help: &str) -> HistogramVec {
    // etcd's label.
    let opts = HistogramOpts::new(name, help).buckets(buckets());
    let histogram = HistogramVec::new(opts, &["To"]).expect("a constant name");
    registry.register(Box::new(histogram.clone())).expect("registered once per registry");
    histogram
}

fn histogram(registry: &Registry, name: &str, help: &str) -> Histogram {
    let histogram =
        Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets())).expect("a constant name");
    registry.register(Box::new(histogram.clone())).expect("registered once per registry");
    histogram
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    let counter = IntCounter::new(name, help).expect("a constant name");
    registry.register(Box::new(counter.clone())).expect("registered once per registry");
    counter
}

fn distrusted(registry: &Registry) -> IntCounterVec {
    let opts = Opts::new(
        "gaios_replica_distrusted_messages_total",
        "Messages of other nodes that no healthy node of this version sends, by what is wrong with them",
    );
    let distrusted = IntCounterVec::new(opts, &["reason"]).expect("a constant name");
    registry.register(Box::new(distrusted.clone())).expect("registered once per registry");
    distrusted
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    let gauge = IntGauge::new(name, help).expect("a constant name");
    registry.register(Box::new(gauge.clone())).expect("registered once per registry");
    gauge
}

fn connections(registry: &Registry) -> IntGaugeVec {
    let options = Opts::new(
        "gaios_replica_connections",
        "Connections to this node's port: of gateways, of peers, of who has not proved yet who it is, and of who was told to go",
    );
    let gauge = IntGaugeVec::new(options, &["kind"]).expect("a constant name");
    registry.register(Box::new(gauge.clone())).expect("registered once per registry");
    gauge
}

fn refused(registry: &Registry) -> IntCounterVec {
    let options = Opts::new(
        "gaios_replica_connections_refused_total",
        "Connections to this node's port that were turned away",
    );
    let counter = IntCounterVec::new(options, &["reason"]).expect("a constant name");
    registry.register(Box::new(counter.clone())).expect("registered once per registry");
    for reason in Refusal::LABELS {
        counter.with_label_values(&[reason]);
    }
    counter
}

fn dropped(registry: &Registry) -> IntCounterVec {
    let options = Opts::new(
        "gaios_group_requests_dropped_total",
        "Requests that were not begun, since nobody waited for them any more: their gateway took them back (`cancelled`), or the \
         time that it gave them had passed (`expired`)",
    );
    let counter = IntCounterVec::new(options, &["group", "reason"]).expect("a constant name");
    registry.register(Box::new(counter.clone())).expect("registered once per registry");
    counter
}

fn answers_refused(registry: &Registry) -> IntCounterVec {
    let options = Opts::new(
        "gaios_replica_answers_refused_total",
        "Calls of peers by this node that ended since what answers has not shown the peer's certificate",
    );
    let counter = IntCounterVec::new(options, &["reason"]).expect("a constant name");
    registry.register(Box::new(counter.clone())).expect("registered once per registry");
    counter
}

fn support_differs(registry: &Registry) -> IntGaugeVec {
    let options = Opts::new(
        "gaios_replica_peer_support_differs",
        "1 where a peer has another `timing.support` than this node, or does not say it",
    );
    let gauge = IntGaugeVec::new(options, &["peer"]).expect("a constant name");
    registry.register(Box::new(gauge.clone())).expect("registered once per registry");
    gauge
}

fn by_group(registry: &Registry, name: &str, help: &str) -> IntGaugeVec {
    let gauge = IntGaugeVec::new(Opts::new(name, help), &["group"]).expect("a constant name");
    registry.register(Box::new(gauge.clone())).expect("registered once per registry");
    gauge
}
