//! `gaios ctl status`: the cluster as a gateway sees it, or a node as it sees itself.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::time::Duration;

use gateway::status::{
    CertificateStatus, ClusterStatus, NodeSaid, NodeStatus, Reach, ReplicaStatus, Severity, Status,
};

use super::Failure;
use super::client::Admin;
use super::output::{Format, Table, print};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Show it again and again, with so many seconds in between.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = clap::value_parser!(u64).range(1..=3600))]
    watch: Option<u64>,
}

/// Moves to the top left and clears what is there.
const CLEAR: &str = "\x1b[H\x1b[2J\x1b[3J";

pub(crate) async fn run(args: &Args, admin: &Admin, format: Format) -> Result<(), Failure> {
    let Some(seconds) = args.watch else {
        return print(format, &ask(admin).await?, table);
    };
    let clears = format == Format::Table && std::io::stdout().is_terminal();
    loop {
        match ask(admin).await {
            Ok(status) if clears => print(format, &status, |status| CLEAR.to_owned() + &table(status))?,
            Ok(status) => print(format, &status, table)?,
            // It may be back in a moment.
            Err(error) => eprintln!("gaios: {error}"),
        }
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
}

async fn ask(admin: &Admin) -> Result<Status, Failure> {
    admin.get("/debug/status").await
}

fn table(status: &Status) -> String {
    match status {
        Status::Cluster(cluster) => cluster_table(cluster),
        Status::Node(node) => node_table(node),
    }
}

fn cluster_table(cluster: &ClusterStatus) -> String {
    let mut text = String::new();
    let id = cluster.cluster_id.as_deref().unwrap_or("not known yet");
    let _ = writeln!(text, "cluster {id}, seen by {}\n", cluster.seen_by);
    if cluster.findings.is_empty() {
        text.push_str("Nothing is wrong.\n");
    }
    for finding in &cluster.findings {
        let severity = match finding.severity {
            Severity::Critical => "CRITICAL",
            Severity::Warning => "warning",
        };
        let _ = writeln!(text, "{severity}: {}", finding.text);
    }

    let mut gateways = Table::new(&[
        "GATEWAY",
        "PLACE",
        "VERSION",
        "UPTIME",
        "CONNECTIONS",
        "WATCHERS",
        "REQUESTS/S",
        "NODES",
    ]);
    for gateway in &cluster.gateways {
        gateways.row(vec![
            gateway.name.clone(),
            place(gateway.region.as_deref(), gateway.zone.as_deref()),
            gateway.version.clone().unwrap_or_default(),
            gateway.uptime_seconds.map(duration).unwrap_or_default(),
            number(gateway.connections),
            number(gateway.watchers),
            gateway.rates.map(|rates| format!("{:.1}", rates.requests_per_second)).unwrap_or_default(),
            joined(&gateway.linked_nodes),
        ]);
    }

    let mut nodes = Table::new(&[
        "NODE", "NAME", "PLACE", "ADDRESS", "REACHED", "ANSWER", "VERSION", "UPTIME", "JOURNAL", "READY",
    ]);
    for node in &cluster.nodes {
        nodes.row(node_row(node));
    }

    let mut groups =
        Table::new(&["GROUP", "LEADER", "TERM", "REVISION", "COMMIT", "REPLICA", "ROLE", "BEHIND"]);
    for group in &cluster.groups {
        let mut first = vec![
            group.id.to_string(),
            group.leader.map(|leader| leader.to_string()).unwrap_or("none".to_owned()),
            group.term.to_string(),
            group.revision.to_string(),
            group.commit_slot.to_string(),
        ];
        for replica in &group.replicas {
            let mut row = std::mem::replace(&mut first, vec![" ".to_owned(); 5]);
            row.push(replica.node.to_string());
            row.push(replica.role.map(|role| role.name().to_owned()).unwrap_or_default());
            row.push(number(replica.applied_behind));
            groups.row(row);
        }
    }
    let _ = write!(text, "\n{gateways}\n{nodes}\n{groups}");
    let of_gateways = cluster.gateways.iter().flat_map(|gateway| {
        gateway.certificates.iter().map(|certificate| (format!("gateway {}", gateway.name), certificate))
    });
    text += &certificates(of_gateways.chain(cluster.nodes.iter().flat_map(of_node)));
    text
}

fn of_node(node: &NodeStatus) -> impl Iterator<Item = (String, &CertificateStatus)> {
    let certificates = node.said.iter().flat_map(|said| &said.certificates);
    certificates.map(|certificate| (format!("node {}", node.id), certificate))
}

/// A table, unless there are none.
fn certificates<'a>(list: impl Iterator<Item = (String, &'a CertificateStatus)>) -> String {
    let mut table = Table::new(&["CERTIFICATE OF", "DOOR", "KIND", "NAMES", "DAYS LEFT", "REFUSED"]);
    let mut list = list.peekable();
    if list.peek().is_none() {
        return String::new();
    }
    for (whose, certificate) in list {
        table.row(vec![
            whose,
            certificate.door.name().to_owned(),
            certificate.kind.name().to_owned(),
            certificate.holder.clone().unwrap_or_default(),
            if certificate.days_left < 0 { "expired".to_owned() } else { certificate.days_left.to_string() },
            certificate.refused.clone().unwrap_or_default(),
        ]);
    }
    format!("\n{table}")
}

/// `eu-west/a`, as far as it was said.
fn place(region: Option<&str>, zone: Option<&str>) -> String {
    region.into_iter().chain(zone).collect::<Vec<_>>().join("/")
}

fn node_row(node: &NodeStatus) -> Vec<String> {
    let said = node.said.as_ref();
    let of = |tell: fn(&NodeSaid) -> String| said.map(tell).unwrap_or_default();
    vec![
        node.id.to_string(),
        of(|said| said.name.clone()),
        of(|said| place(said.region.as_deref(), said.zone.as_deref())),
        node.address.clone().unwrap_or_default(),
        match node.reach {
            Some(Reach::Direct) => "yes".to_owned(),
            Some(Reach::Relay) => "by a relay".to_owned(),
            Some(Reach::Unreached) => "no".to_owned(),
            None => String::new(),
        },
        node.answer_seconds.map(|seconds| format!("{:.1} ms", seconds * 1e3)).unwrap_or_default(),
        of(|said| said.version.clone()),
        of(|said| duration(said.uptime_seconds)),
        of(|said| said.journal.as_ref().map(|journal| bytes(journal.disk_bytes)).unwrap_or_default()),
        of(|said| said.not_ready.clone().unwrap_or("yes".to_owned())),
    ]
}

fn node_table(node: &NodeStatus) -> String {
    let mut nodes = Table::new(&["NODE", "NAME", "PLACE", "VERSION", "UPTIME", "JOURNAL", "READY"]);
    let mut row = node_row(node);
    row.drain(3..6);
    nodes.row(row);
    let mut replicas = Table::new(&[
        "GROUP", "ROLE", "LEADER", "TERM", "REVISION", "COMMIT", "APPLIED", "KEYS", "SIZE", "QUOTA",
        "LEASES", "WATCHES", "ALARMS",
    ]);
    let mut peers = Table::new(&["PEER", "ADDRESS", "LINKED"]);
    if let Some(said) = &node.said {
        said.replicas.iter().for_each(|replica| replicas.row(replica_row(replica)));
        for peer in &said.peers {
            let linked = if peer.linked { "yes" } else { "no" };
            peers.row(vec![peer.node.to_string(), peer.address.clone(), linked.to_owned()]);
        }
    }
    format!("{nodes}\n{replicas}\n{peers}{}", certificates(of_node(node)))
}

fn replica_row(replica: &ReplicaStatus) -> Vec<String> {
    vec![
        replica.group.to_string(),
        replica.role.map(|role| role.name().to_owned()).unwrap_or_default(),
        replica.leader.map(|leader| leader.to_string()).unwrap_or("none".to_owned()),
        replica.term.to_string(),
        replica.revision.to_string(),
        replica.commit_slot.to_string(),
        replica.applied_slot.to_string(),
        replica.keys.to_string(),
        bytes(replica.size_bytes),
        bytes(replica.quota_bytes),
        replica.leases.to_string(),
        replica.watches.to_string(),
        replica.alarms.iter().map(|alarm| alarm.name()).collect::<Vec<_>>().join(" "),
    ]
}

fn number(number: Option<u64>) -> String {
    number.map(|number| number.to_string()).unwrap_or_default()
}

fn joined(numbers: &[u32]) -> String {
    numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// `4m05s`: the two largest units.
fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    match (seconds / 86_400, seconds / 3600, seconds / 60) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m{:02}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h{:02}m", minutes % 60),
        (days, hours, _) => format!("{days}d{:02}h", hours % 24),
    }
}

/// `64.0 MiB`.
fn bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use gateway::status::{CertificateDoor, CertificateKind, GatewayStatus, Member, Role};

    use super::*;

    #[test]
    fn units_are_those_that_one_reads() {
        let shown = [5.4, 65.0, 3700.0, 90_000.0].map(duration);
        assert_eq!(shown, ["5s", "1m05s", "1h01m", "1d01h"]);
        assert_eq!([0, 1023, 1 << 26, u64::MAX].map(bytes), ["0 B", "1023 B", "64.0 MiB", "16777216.0 TiB"]);
    }

    #[test]
    fn a_cluster_is_three_tables_and_one_of_certificates() {
        let replica = |node, role| Member {
            node,
            role,
            commit_behind: role.map(|_| 0),
            applied_behind: role.map(|_| 0),
        };
        let said = NodeSaid {
            name: "one".to_owned(),
            version: "0.1.0".to_owned(),
            uptime_seconds: 61.0,
            region: Some("eu".to_owned()),
            zone: Some("a".to_owned()),
            certificates: vec![CertificateStatus {
                door: CertificateDoor::Link,
                kind: CertificateKind::Own,
                holder: Some("gaios://harbour/node/1".to_owned()),
                expires_unix: 0,
                days_left: 90,
                refused: None,
            }],
            ..NodeSaid::default()
        };
        let mut cluster = ClusterStatus::new(
            10,
            GatewayStatus { name: "g".to_owned(), connections: Some(3), ..GatewayStatus::default() },
            std::time::SystemTime::UNIX_EPOCH,
            vec![NodeStatus { id: 1, reach: Some(Reach::Direct), said: Some(said), ..NodeStatus::default() }],
            &std::collections::BTreeMap::from([(1, vec![1, 2])]),
        );
        cluster.groups[0].replicas = vec![replica(1, Some(Role::Leader)), replica(2, None)];
        let text = cluster_table(&cluster);
        let lines: Vec<_> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(lines[0], "cluster a, seen by g");
        assert_eq!(lines[2], "CRITICAL: group 1 has no leader");
        assert_eq!(lines[5], "g - - - 3 - - -");
        assert_eq!(lines[8], "1 one eu/a - yes - 0.1.0 1m01s - yes");
        assert_eq!(lines[11..13], ["1 none 0 0 0 1 leader 0".to_owned(), "2 - -".to_owned()]);
        assert_eq!(lines[15..], ["node 1 link own gaios://harbour/node/1 90 -".to_owned()]);
    }
}
