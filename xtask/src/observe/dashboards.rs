//! Grafana's dashboards, as a table of panels. `cargo xtask docs` writes them to `helm/gaios/dashboards/`; `observe` asks a
//! real Prometheus every query in them.

use serde_json::{Value, json};

/// A dashboard, and the file it is written to.
pub(super) struct Dashboard {
    /// Its file without `.json`, and its address in Grafana.
    pub(super) name: &'static str,
    title: &'static str,
    about: &'static str,
    /// What the reader chooses at the top: a label's values among the series of a metric.
    choices: &'static [Choice],
    rows: &'static [Row],
}

struct Choice {
    name: &'static str,
    label: &'static str,
    of: &'static str,
}

struct Row {
    title: &'static str,
    panels: &'static [Panel],
}

struct Panel {
    title: &'static str,
    about: &'static str,
    unit: Unit,
    kind: Kind,
    /// Query and legend.
    queries: &'static [(&'static str, &'static str)],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Curves over time.
    Lines,
    /// The newest value.
    Number,
}

#[derive(Clone, Copy)]
enum Unit {
    Count,
    PerSecond,
    Seconds,
    Bytes,
    BytesPerSecond,
    Share,
    Slots,
}

impl Unit {
    /// In Grafana's words.
    fn name(self) -> &'static str {
        match self {
            Unit::Count | Unit::Slots => "short",
            Unit::PerSecond => "ops",
            Unit::Seconds => "s",
            Unit::Bytes => "bytes",
            Unit::BytesPerSecond => "Bps",
            Unit::Share => "percentunit",
        }
    }
}

const GATEWAY: Choice = Choice { name: "gateway", label: "instance", of: "gaios_gateway_info" };
const NODE: Choice = Choice { name: "node", label: "instance", of: "gaios_replica_info" };
const GROUP: Choice = Choice { name: "group", label: "group", of: "gaios_group_is_leader" };

const fn lines(
    title: &'static str,
    unit: Unit,
    about: &'static str,
    queries: &'static [(&'static str, &'static str)],
) -> Panel {
    Panel { title, about, unit, kind: Kind::Lines, queries }
}

const fn number(
    title: &'static str,
    unit: Unit,
    about: &'static str,
    queries: &'static [(&'static str, &'static str)],
) -> Panel {
    Panel { title, about, unit, kind: Kind::Number, queries }
}

pub(super) const DASHBOARDS: &[Dashboard] = &[
    Dashboard {
        name: "gaios-overview",
        title: "Gaios / Overview",
        about: "Is it well, and do clients get what they ask for. The other dashboards tell why not.",
        choices: &[],
        rows: &[
            Row {
                title: "State",
                panels: &[
                    number(
                        "Gateways",
                        Unit::Count,
                        "Gateways that are scraped.",
                        &[("count(gaios_gateway_info)", "")],
                    ),
                    number(
                        "Nodes ready",
                        Unit::Count,
                        "Nodes that take part in full.",
                        &[("sum(gaios_replica_ready)", "")],
                    ),
                    number(
                        "Groups led",
                        Unit::Count,
                        "Groups one of whose nodes leads.",
                        &[("sum(max by (group) (gaios_group_is_leader))", "")],
                    ),
                    number(
                        "Connections",
                        Unit::Count,
                        "Connections of clients to all gateways.",
                        &[("sum(gaios_gateway_connections)", "")],
                    ),
                    number(
                        "Keys",
                        Unit::Count,
                        "Live keys.",
                        &[("sum(max by (group) (gaios_group_keys))", "")],
                    ),
                    number(
                        "Alarms",
                        Unit::Count,
                        "etcd's alarms that are raised: NOSPACE, CORRUPT.",
                        &[("sum(max by (group, alarm) (gaios_group_alarm))", "")],
                    ),
                ],
            },
            Row {
                title: "Clients",
                panels: &[
                    lines(
                        "Requests",
                        Unit::PerSecond,
                        "Requests that were answered, by method.",
                        &[(
                            "sum by (grpc_method) (rate(grpc_server_handled_total{grpc_type=\"unary\"}[$__rate_interval])) > 0",
                            "{{grpc_method}}",
                        )],
                    ),
                    lines(
                        "Errors",
                        Unit::Share,
                        "Share of the answers that say the service failed, not the client.",
                        &[(
                            "sum(rate(grpc_server_handled_total{grpc_code=~\"Unavailable|DeadlineExceeded|Internal|Unknown|DataLoss\"}[$__rate_interval])) / sum(rate(grpc_server_handled_total[$__rate_interval]))",
                            "errors",
                        )],
                    ),
                    lines(
                        "Time of a request",
                        Unit::Seconds,
                        "At the gateway, from its head to its answer.",
                        &[
                            (
                                "histogram_quantile(0.5, sum by (le) (rate(grpc_server_handling_seconds_bucket{grpc_type=\"unary\"}[$__rate_interval])))",
                                "half",
                            ),
                            (
                                "histogram_quantile(0.99, sum by (le) (rate(grpc_server_handling_seconds_bucket{grpc_type=\"unary\"}[$__rate_interval])))",
                                "99 of 100",
                            ),
                        ],
                    ),
                    lines(
                        "Watches",
                        Unit::PerSecond,
                        "Events sent to watchers.",
                        &[("sum(rate(etcd_debugging_mvcc_events_total[$__rate_interval]))", "events")],
                    ),
                ],
            },
            Row {
                title: "Consensus and disks",
                panels: &[
                    lines(
                        "Leader changes",
                        Unit::Count,
                        "In five minutes, as the gateway that saw most of them.",
                        &[("max(increase(etcd_server_leader_changes_seen_total[5m]))", "changes")],
                    ),
                    lines(
                        "Replicas behind",
                        Unit::Slots,
                        "Entries that are committed and not applied there.",
                        &[(
                            "max by (group) (gaios_group_commit_slot) - on (group) group_right () gaios_group_applied_slot",
                            "{{instance}} group {{group}}",
                        )],
                    ),
                    lines(
                        "Time of a sync",
                        Unit::Seconds,
                        "One fdatasync of the journal, 99 of 100.",
                        &[(
                            "histogram_quantile(0.99, sum by (instance, le) (rate(etcd_disk_wal_fsync_duration_seconds_bucket[$__rate_interval])))",
                            "{{instance}}",
                        )],
                    ),
                    lines(
                        "Room for data",
                        Unit::Share,
                        "Of the quota, per group.",
                        &[(
                            "max by (group) (gaios_group_size_bytes / gaios_group_quota_bytes)",
                            "group {{group}}",
                        )],
                    ),
                ],
            },
        ],
    },
    Dashboard {
        name: "gaios-gateway",
        title: "Gaios / Gateway",
        about: "One gateway or several: connections, where the time of requests goes, links, watches.",
        choices: &[GATEWAY],
        rows: &[
            Row {
                title: "Clients",
                panels: &[
                    lines(
                        "Connections",
                        Unit::Count,
                        "Open ones.",
                        &[("gaios_gateway_connections{instance=~\"$gateway\"}", "{{instance}}")],
                    ),
                    lines(
                        "New connections",
                        Unit::PerSecond,
                        "Accepted ones.",
                        &[(
                            "rate(gaios_gateway_connections_accepted_total{instance=~\"$gateway\"}[$__rate_interval])",
                            "{{instance}}",
                        )],
                    ),
                    lines(
                        "Requests",
                        Unit::PerSecond,
                        "By method; those that began.",
                        &[(
                            "sum by (grpc_method) (rate(grpc_server_started_total{instance=~\"$gateway\"}[$__rate_interval])) > 0",
                            "{{grpc_method}}",
                        )],
                    ),
                    lines(
                        "Codes",
                        Unit::PerSecond,
                        "Answers by code.",
                        &[(
                            "sum by (grpc_code) (rate(grpc_server_handled_total{instance=~\"$gateway\"}[$__rate_interval])) > 0",
                            "{{grpc_code}}",
                        )],
                    ),
                    lines(
                        "Bytes",
                        Unit::BytesPerSecond,
                        "From and to clients.",
                        &[
                            (
                                "sum(rate(etcd_network_client_grpc_received_bytes_total{instance=~\"$gateway\"}[$__rate_interval]))",
                                "received",
                            ),
                            (
                                "sum(rate(etcd_network_client_grpc_sent_bytes_total{instance=~\"$gateway\"}[$__rate_interval]))",
                                "sent",
                            ),
                        ],
                    ),
                    lines(
                        "Time of a request by method",
                        Unit::Seconds,
                        "99 of 100.",
                        &[(
                            "histogram_quantile(0.99, sum by (grpc_method, le) (rate(grpc_server_handling_seconds_bucket{instance=~\"$gateway\"}[$__rate_interval])))",
                            "{{grpc_method}}",
                        )],
                    ),
                ],
            },
            Row {
                title: "Where the time goes",
                panels: &[
                    lines(
                        "Stages",
                        Unit::Seconds,
                        "Of unary requests, on average: waiting for a leader, a session or a node with room; at a node and on the way; in the gateway.",
                        &[(
                            "sum by (stage) (rate(gaios_gateway_stage_seconds_sum{instance=~\"$gateway\"}[$__rate_interval])) / ignoring (stage) group_left () sum(rate(grpc_server_handling_seconds_count{instance=~\"$gateway\",grpc_type=\"unary\"}[$__rate_interval]))",
                            "{{stage}}",
                        )],
                    ),
                    lines(
                        "Attempts that led nowhere",
                        Unit::PerSecond,
                        "Why a request had to be sent again.",
                        &[(
                            "sum by (cause) (rate(gaios_gateway_retries_total{instance=~\"$gateway\"}[$__rate_interval]))",
                            "{{cause}}",
                        )],
                    ),
                    lines(
                        "Slow requests",
                        Unit::PerSecond,
                        "Those above `slow_request_threshold`; the log says which.",
                        &[(
                            "rate(gaios_gateway_slow_requests_total{instance=~\"$gateway\"}[$__rate_interval])",
                            "{{instance}}",
                        )],
                    ),
                    lines(
                        "Under way",
                        Unit::Count,
                        "Requests that wait for an answer of a node.",
                        &[("gaios_gateway_requests_under_way{instance=~\"$gateway\"}", "{{instance}}")],
                    ),
                ],
            },
            Row {
                title: "Links",
                panels: &[
                    lines(
                        "Links",
                        Unit::Count,
                        "Connections to nodes, direct and by a relay.",
                        &[
                            ("gaios_gateway_links{instance=~\"$gateway\"}", "{{instance}} direct"),
                            (
                                "gaios_gateway_relayed_links{instance=~\"$gateway\"}",
                                "{{instance}} by a relay",
                            ),
                        ],
                    ),
                    lines(
                        "Links lost",
                        Unit::PerSecond,
                        "Connections that ended, for whatever reason.",
                        &[(
                            "rate(gaios_gateway_link_losses_total{instance=~\"$gateway\"}[$__rate_interval])",
                            "{{instance}}",
                        )],
                    ),
                    lines(
                        "Requests in a frame",
                        Unit::Count,
                        "How many share a frame, on average: the more load, the more.",
                        &[(
                            "rate(gaios_gateway_frame_requests_sum{instance=~\"$gateway\"}[$__rate_interval]) / rate(gaios_gateway_frame_requests_count{instance=~\"$gateway\"}[$__rate_interval])",
                            "{{instance}}",
                        )],
                    ),
                    lines(
                        "Wait for the link",
                        Unit::Seconds,
                        "Of the oldest request of a frame, until the link takes it; 99 of 100.",
                        &[(
                            "histogram_quantile(0.99, sum by (instance, le) (rate(gaios_gateway_frame_wait_seconds_bucket{instance=~\"$gateway\"}[$__rate_interval])))",
                            "{{instance}}",
                        )],
                    ),
                ],
            },
            Row {
                title: "Watches, and the process",
                panels: &[
                    lines(
                        "Watchers",
                        Unit::Count,
                        "Of clients, and the streams they share.",
                        &[
                            (
                                "etcd_debugging_mvcc_watcher_total{instance=~\"$gateway\"}",
                                "{{instance}} watchers",
                            ),
                            (
                                "etcd_debugging_mvcc_watch_stream_total{instance=~\"$gateway\"}",
                                "{{instance}} streams",
                            ),
                        ],
                    ),
                    lines(
                        "Feeds",
                        Unit::Count,
                        "What carries the watches; those from history are of watchers that fell behind or began in the past.",
                        &[
                            ("gaios_gateway_watch_upstreams{instance=~\"$gateway\"}", "{{instance}} all"),
                            (
                                "gaios_gateway_watch_histories{instance=~\"$gateway\"}",
                                "{{instance}} from history",
                            ),
                        ],
                    ),
                    lines(
                        "CPU",
                        Unit::Count,
                        "Cores in use.",
                        &[(
                            "rate(process_cpu_seconds_total{instance=~\"$gateway\"}[$__rate_interval]) and on (instance) gaios_gateway_info",
                            "{{instance}}",
                        )],
                    ),
                    lines(
                        "Memory",
                        Unit::Bytes,
                        "Resident.",
                        &[(
                            "process_resident_memory_bytes{instance=~\"$gateway\"} and on (instance) gaios_gateway_info",
                            "{{instance}}",
                        )],
                    ),
                ],
            },
        ],
    },
    Dashboard {
        name: "gaios-node",
        title: "Gaios / Node",
        about: "One node or several: journal, disk, links, process.",
        choices: &[NODE],
        rows: &[
            Row {
                title: "State",
                panels: &[
                    lines(
                        "Ready",
                        Unit::Count,
                        "1 where the node takes part in full.",
                        &[("gaios_replica_ready{instance=~\"$node\"}", "{{instance}}")],
                    ),
                    lines(
                        "Peers linked",
                        Unit::Count,
                        "Other nodes with a connection.",
                        &[(
                            "sum by (instance) (gaios_replica_peer_linked{instance=~\"$node\"})",
                            "{{instance}}",
                        )],
                    ),
                    lines(
                        "Gateways linked",
                        Unit::Count,
                        "Gateways by name, not their connections.",
                        &[("gaios_replica_gateways_linked{instance=~\"$node\"}", "{{instance}}")],
                    ),
                    lines(
                        "Groups led",
                        Unit::Count,
                        "Groups that this node leads.",
                        &[("sum by (instance) (gaios_group_is_leader{instance=~\"$node\"})", "{{instance}}")],
                    ),
                ],
            },
            Row {
                title: "Journal",
                panels: &[
                    lines(
                        "Time of a sync",
                        Unit::Seconds,
                        "One fdatasync.",
                        &[
                            (
                                "histogram_quantile(0.5, sum by (instance, le) (rate(etcd_disk_wal_fsync_duration_seconds_bucket{instance=~\"$node\"}[$__rate_interval])))",
                                "{{instance}} half",
                            ),
                            (
                                "histogram_quantile(0.99, sum by (instance, le) (rate(etcd_disk_wal_fsync_duration_seconds_bucket{instance=~\"$node\"}[$__rate_interval])))",
                                "{{instance}} 99 of 100",
                            ),
                        ],
                    ),
                    lines(
                        "Syncs",
                        Unit::PerSecond,
                        "All groups share them.",
                        &[(
                            "rate(etcd_disk_wal_fsync_duration_seconds_count{instance=~\"$node\"}[$__rate_interval])",
                            "{{instance}}",
                        )],
                    ),
                    lines(
                        "Records in a sync",
                        Unit::Count,
                        "On average: the more load, the more.",
                        &[(
                            "rate(gaios_journal_records_total{instance=~\"$node\"}[$__rate_interval]) / rate(etcd_disk_wal_fsync_duration_seconds_count{instance=~\"$node\"}[$__rate_interval])",
                            "{{instance}}",
                        )],
                    ),
                    lines(
                        "Time of a write",
                        Unit::Seconds,
                        "Handing a batch to the operating system, 99 of 100.",
                        &[(
                            "histogram_quantile(0.99, sum by (instance, le) (rate(gaios_journal_write_duration_seconds_bucket{instance=~\"$node\"}[$__rate_interval])))",
                            "{{instance}}",
                        )],
                    ),
                    lines(
                        "Bytes made durable",
                        Unit::BytesPerSecond,
                        "Without what the journal adds.",
                        &[(
                            "rate(gaios_journal_payload_bytes_total{instance=~\"$node\"}[$__rate_interval])",
                            "{{instance}}",
                        )],
                    ),
                    lines(
                        "Size",
                        Unit::Bytes,
                        "Of the journal's files, and what the disk has left.",
                        &[
                            ("gaios_journal_disk_bytes{instance=~\"$node\"}", "{{instance}} journal"),
                            ("gaios_replica_disk_free_bytes{instance=~\"$node\"}", "{{instance}} free"),
                        ],
                    ),
                ],
            },
            Row {
                title: "Process",
                panels: &[
                    lines(
                        "CPU",
                        Unit::Count,
                        "Cores in use.",
                        &[(
                            "rate(process_cpu_seconds_total{instance=~\"$node\"}[$__rate_interval]) and on (instance) gaios_replica_info",
                            "{{instance}}",
                        )],
                    ),
                    lines(
                        "Memory",
                        Unit::Bytes,
                        "Resident.",
                        &[(
                            "process_resident_memory_bytes{instance=~\"$node\"} and on (instance) gaios_replica_info",
                            "{{instance}}",
                        )],
                    ),
                    lines(
                        "Descriptors",
                        Unit::Share,
                        "Of those that the process may open.",
                        &[(
                            "process_open_fds{instance=~\"$node\"} / process_max_fds{instance=~\"$node\"} and on (instance) gaios_replica_info",
                            "{{instance}}",
                        )],
                    ),
                ],
            },
        ],
    },
    Dashboard {
        name: "gaios-group",
        title: "Gaios / Group",
        about: "One group or several: who leads, how far its replicas are, what it holds.",
        choices: &[GROUP],
        rows: &[
            Row {
                title: "Consensus",
                panels: &[
                    lines(
                        "Leader",
                        Unit::Count,
                        "1 where the node leads.",
                        &[("gaios_group_is_leader{group=~\"$group\"}", "{{instance}} group {{group}}")],
                    ),
                    lines(
                        "Leader changes",
                        Unit::PerSecond,
                        "As each node saw them.",
                        &[(
                            "rate(gaios_group_leader_changes_total{group=~\"$group\"}[$__rate_interval])",
                            "{{instance}} group {{group}}",
                        )],
                    ),
                    lines(
                        "Behind",
                        Unit::Slots,
                        "Entries that are committed somewhere and not applied here.",
                        &[(
                            "max by (group) (gaios_group_commit_slot{group=~\"$group\"}) - on (group) group_right () gaios_group_applied_slot{group=~\"$group\"}",
                            "{{instance}} group {{group}}",
                        )],
                    ),
                    lines(
                        "Entries",
                        Unit::PerSecond,
                        "Committed, as the leader knows.",
                        &[(
                            "max by (group) (rate(gaios_group_commit_slot{group=~\"$group\"}[$__rate_interval]))",
                            "group {{group}}",
                        )],
                    ),
                    lines(
                        "Waiting in the engine",
                        Unit::Count,
                        "At the leader: commands without a slot, and slots without a quorum.",
                        &[
                            (
                                "sum by (group) (gaios_group_commands_queued{group=~\"$group\"})",
                                "group {{group}} commands",
                            ),
                            (
                                "sum by (group) (gaios_group_slots_under_way{group=~\"$group\"})",
                                "group {{group}} slots",
                            ),
                        ],
                    ),
                    lines(
                        "Refused proposals",
                        Unit::PerSecond,
                        "Not led here, or too many.",
                        &[(
                            "sum by (group) (rate(gaios_group_proposals_rejected_total{group=~\"$group\"}[$__rate_interval]))",
                            "group {{group}}",
                        )],
                    ),
                ],
            },
            Row {
                title: "State machine",
                panels: &[
                    lines(
                        "Commands",
                        Unit::PerSecond,
                        "Applied at each replica.",
                        &[(
                            "rate(gaios_group_commands_applied_total{group=~\"$group\"}[$__rate_interval])",
                            "{{instance}} group {{group}}",
                        )],
                    ),
                    lines(
                        "Queries",
                        Unit::PerSecond,
                        "Answered by each replica.",
                        &[(
                            "rate(gaios_group_queries_total{group=~\"$group\"}[$__rate_interval])",
                            "{{instance}} group {{group}}",
                        )],
                    ),
                    lines(
                        "Time to apply",
                        Unit::Seconds,
                        "What one turn of a group commits; 99 of 100.",
                        &[(
                            "histogram_quantile(0.99, sum by (instance, le) (rate(etcd_disk_backend_commit_duration_seconds_bucket[$__rate_interval])))",
                            "{{instance}}",
                        )],
                    ),
                    lines(
                        "Size",
                        Unit::Bytes,
                        "Keys, values and their history, and the quota.",
                        &[
                            ("max by (group) (gaios_group_size_bytes{group=~\"$group\"})", "group {{group}}"),
                            (
                                "max by (group) (gaios_group_quota_bytes{group=~\"$group\"})",
                                "group {{group}} quota",
                            ),
                        ],
                    ),
                    lines(
                        "Keys and leases",
                        Unit::Count,
                        "That live.",
                        &[
                            ("max by (group) (gaios_group_keys{group=~\"$group\"})", "group {{group}} keys"),
                            (
                                "max by (group) (gaios_group_leases{group=~\"$group\"})",
                                "group {{group}} leases",
                            ),
                        ],
                    ),
                    lines(
                        "Watches",
                        Unit::Count,
                        "That gateways hold at each replica.",
                        &[("gaios_group_watches{group=~\"$group\"}", "{{instance}} group {{group}}")],
                    ),
                    lines(
                        "Snapshots",
                        Unit::Count,
                        "Taken in an hour, and sent to replicas that could not follow.",
                        &[
                            (
                                "sum by (group) (increase(gaios_group_snapshots_taken_total{group=~\"$group\"}[1h]))",
                                "group {{group}} taken",
                            ),
                            (
                                "sum by (group) (increase(gaios_group_snapshots_sent_total{group=~\"$group\"}[1h]))",
                                "group {{group}} sent",
                            ),
                        ],
                    ),
                ],
            },
        ],
    },
];

impl Dashboard {
    /// Every query, with its panel.
    pub(super) fn queries(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let panels = self.rows.iter().flat_map(|row| row.panels);
        panels.flat_map(|panel| panel.queries.iter().map(|(query, _)| (panel.title, *query)))
    }

    /// A query as Grafana would send it with everything chosen.
    pub(super) fn resolved(&self, query: &str, rate_interval: &str) -> String {
        let resolved = query.replace("$__rate_interval", rate_interval);
        self.choices.iter().fold(resolved, |query, choice| query.replace(&format!("${}", choice.name), ".*"))
    }

    /// In Grafana's form.
    pub(super) fn json(&self) -> String {
        let mut panels = Vec::new();
        let mut y = 0;
        for row in self.rows {
            panels.push(json!({
                "id": panels.len() + 1, "type": "row", "title": row.title, "panels": [],
                "gridPos": { "x": 0, "y": y, "w": WIDTH, "h": 1 },
            }));
            y += 1;
            let mut x = 0;
            let mut height = 0;
            for panel in row.panels {
                let (w, h) = panel.size();
                if x + w > WIDTH {
                    (x, y) = (0, y + height);
                }
                height = h;
                panels.push(panel.json(panels.len() + 1, x, y));
                x += w;
            }
            y += height;
        }
        let dashboard = json!({
            "uid": self.name,
            "title": self.title,
            "description": self.about,
            "tags": ["gaios"],
            "schemaVersion": 36,
            "editable": true,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": { "from": "now-1h", "to": "now" },
            "templating": { "list": self.variables() },
            "links": [{
                "type": "dashboards", "title": "Gaios", "tags": ["gaios"], "asDropdown": true,
                "includeVars": false, "keepTime": true,
            }],
            "panels": PANELS,
        });
        // Keys in the order of the alphabet, so the file is the same each time; and a line for each panel.
        let lines: Vec<_> = panels.iter().map(|panel| format!("    {panel}")).collect();
        format!("{dashboard:#}\n")
            .replace(&format!("\"{PANELS}\""), &format!("[\n{}\n  ]", lines.join(",\n")))
    }

    fn variables(&self) -> Vec<Value> {
        let source =
            json!({ "name": "datasource", "label": "Source", "type": "datasource", "query": "prometheus" });
        let chosen = self.choices.iter().map(|choice| {
            json!({
                "name": choice.name, "label": choice.name, "type": "query", "datasource": SOURCE_OF,
                "query": format!("label_values({}, {})", choice.of, choice.label),
                "refresh": 2, "multi": true, "includeAll": true, "allValue": ".*",
                "current": { "text": "All", "value": "$__all" }, "sort": 1,
            })
        });
        std::iter::once(source).chain(chosen).collect()
    }
}

/// Stands where the panels go.
const PANELS: &str = "PANELS";
/// Columns of Grafana's grid.
const WIDTH: u32 = 24;
const SOURCE_OF: &str = "${datasource}";

impl Panel {
    fn size(&self) -> (u32, u32) {
        match self.kind {
            Kind::Lines => (12, 8),
            Kind::Number => (4, 4),
        }
    }

    fn json(&self, id: usize, x: u32, y: u32) -> Value {
        let (w, h) = self.size();
        let targets = ('A'..='Z').zip(self.queries).map(|(name, (query, legend))| {
            json!({
                "refId": name.to_string(), "expr": query, "legendFormat": legend,
                "instant": self.kind == Kind::Number, "range": self.kind == Kind::Lines,
            })
        });
        let (kind, options, custom) = match self.kind {
            Kind::Lines => (
                "timeseries",
                json!({ "tooltip": { "mode": "multi", "sort": "desc" }, "legend": { "displayMode": "list", "placement": "bottom" } }),
                json!({ "lineWidth": 1, "fillOpacity": 8, "showPoints": "never" }),
            ),
            Kind::Number => (
                "stat",
                json!({ "reduceOptions": { "calcs": ["lastNotNull"] }, "graphMode": "none" }),
                json!({}),
            ),
        };
        json!({
            "id": id, "type": kind, "title": self.title, "description": self.about,
            "datasource": { "type": "prometheus", "uid": SOURCE_OF },
            "gridPos": { "x": x, "y": y, "w": w, "h": h },
            "fieldConfig": { "defaults": { "unit": self.unit.name(), "min": 0, "custom": custom }, "overrides": [] },
            "options": options,
            "targets": targets.collect::<Vec<_>>(),
        })
    }
}
