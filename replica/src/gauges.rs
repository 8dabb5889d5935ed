//! What is measured only when somebody looks: it costs nothing in between. It comes from what the tasks leave behind, as
//! [`crate::status`] does.

use std::path::Path;

use api::gaios::link::v1 as wire;
use journal::WriterStats;
use prometheus::{IntGauge, IntGaugeVec, Opts, Registry};

use crate::budget::{Budget, Use};

/// Set at each look at the metrics.
#[derive(Debug)]
pub(crate) struct Gauges {
    ready: IntGauge,
    peer_linked: IntGaugeVec,
    gateways_linked: IntGauge,
    disk_bytes: IntGauge,
    disk_free_bytes: IntGauge,
    journal_disk_bytes: IntGauge,
    journal_segments: IntGauge,
    journal_full: IntGauge,
    journal_waiting: IntGauge,
    memory_budget: IntGauge,
    memory_taken: IntGaugeVec,
    alarm: IntGaugeVec,
    /// A gauge of each group, and where its value stands in what is told of the group.
    groups: Vec<(IntGaugeVec, Value)>,
}

/// Where a gauge's value stands in what is told of a group.
type Value = fn(&wire::ReplicaStatus) -> u64;

/// Name, help and value of a gauge of every group.
type GroupGauge = (&'static str, &'static str, Value);

const GROUP_GAUGES: &[GroupGauge] = &[
    ("gaios_group_keys", "Live keys", |told| told.keys),
    ("gaios_group_leases", "Leases that live", |told| told.leases),
    ("gaios_group_sessions", "Sessions of gateways", |told| told.sessions),
    ("gaios_group_size_bytes", "Keys, values and their history", |told| told.size_bytes),
    ("gaios_group_quota_bytes", "The bound on gaios_group_size_bytes", |told| told.quota_bytes),
    ("gaios_group_revision", "The newest revision here", |told| told.revision.max(0) as u64),
    ("gaios_group_commands_queued", "Commands that wait for a slot, at the leader", |told| {
        told.commands_queued
    }),
    ("gaios_group_slots_under_way", "Slots proposed and not committed, at the leader", |told| {
        told.slots_under_way
    }),
    ("gaios_group_fenced", "1 where the disk has failed: the node must be restarted", |told| {
        u64::from(told.fenced)
    }),
];

impl Gauges {
    pub(crate) fn new(registry: &Registry) -> Gauges {
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help).expect("a constant name");
            registry.register(Box::new(gauge.clone())).expect("registered once per registry");
            gauge
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let gauges = IntGaugeVec::new(Opts::new(name, help), labels).expect("a constant name");
            registry.register(Box::new(gauges.clone())).expect("registered once per registry");
            gauges
        };
        Gauges {
            ready: gauge("gaios_replica_ready", "1 while the node takes part in full, as /readyz says"),
            peer_linked: gauges(
                "gaios_replica_peer_linked",
                "1 while there is a connection with the peer",
                &["peer"],
            ),
            gateways_linked: gauge(
                "gaios_replica_gateways_linked",
                "Gateways, by name, with a link to this node",
            ),
            disk_bytes: gauge("gaios_replica_disk_bytes", "Size of the file system of the data directory"),
            disk_free_bytes: gauge(
                "gaios_replica_disk_free_bytes",
                "What this process may still use of the file system of the data directory",
            ),
            journal_disk_bytes: gauge("gaios_journal_disk_bytes", "All files of the journal"),
            journal_segments: gauge("gaios_journal_segments", "Segments that hold live records"),
            journal_full: gauge("gaios_journal_full", "1 while there is no room for the next segment"),
            journal_waiting: gauge(
                "gaios_journal_batches_waiting",
                "Batches handed in that are not durable yet",
            ),
            memory_budget: gauge(
                "gaios_replica_memory_budget_bytes",
                "What gateways can make this node hold beside the state, `memory_budget`",
            ),
            memory_taken: gauges(
                "gaios_replica_memory_taken_bytes",
                "How much of the budget is taken: by frames of more than 64 KiB that are under way to this node, by requests and \
                 messages of peers that wait for their group, and by answers and events that wait for the socket of a gateway",
                &["use"],
            ),
            alarm: gauges("gaios_group_alarm", "1 while etcd's alarm is raised", &["group", "alarm"]),
            groups: GROUP_GAUGES
                .iter()
                .map(|(name, help, value)| (gauges(name, help, &["group"]), *value))
                .collect(),
        }
    }

    /// Takes in what is told now.
    pub(crate) fn set(
        &self,
        told: &wire::NodeStatus,
        journal: &WriterStats,
        budget: &Budget,
        data_dir: &Path,
    ) {
        self.memory_budget.set(signed(budget.bytes_max() as u64));
        for what in Use::ALL {
            self.memory_taken.with_label_values(&[what.label()]).set(signed(budget.taken(what) as u64));
        }
        self.ready.set(i64::from(told.not_ready.is_empty()));
        for peer in &told.peers {
            self.peer_linked.with_label_values(&[&peer.node.to_string()]).set(i64::from(peer.linked));
        }
        self.gateways_linked.set(signed(told.gateways.len() as u64));
        if let Ok(space) = rustix::fs::statvfs(data_dir) {
            self.disk_bytes.set(signed(space.f_blocks.saturating_mul(space.f_frsize)));
            self.disk_free_bytes.set(signed(space.f_bavail.saturating_mul(space.f_frsize)));
        }
        self.journal_disk_bytes.set(signed(journal.journal.disk_bytes));
        self.journal_segments.set(signed(journal.journal.segments));
        self.journal_full.set(i64::from(journal.journal.full));
        self.journal_waiting.set(signed(journal.outstanding));
        for group in &told.replicas {
            let id = group.group.to_string();
            for (alarm, raised) in [("NOSPACE", group.no_space_alarm), ("CORRUPT", group.corrupt_alarm)] {
                self.alarm.with_label_values(&[id.as_str(), alarm]).set(i64::from(raised));
            }
            for (gauge, value) in &self.groups {
                gauge.with_label_values(&[&id]).set(signed(value(group)));
            }
        }
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
