//! What `/debug/status` answers, on a gateway's admin port of the whole cluster as the gateway sees it, on a node's of the
//! node. `gaios ctl status` and the status page show it.
//!
//! What is not known is absent, and never zero.

use std::collections::BTreeMap;
use std::time::SystemTime;

use api::gaios::link::v1 as wire;
use api::gaios::link::v1::certificate_status::Kind as ToldKind;
use api::gaios::link::v1::replica_status::Role as ToldRole;
use serde::{Deserialize, Serialize};

/// The answer of any admin port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "snake_case")]
pub enum Status {
    /// A gateway's.
    Cluster(ClusterStatus),
    /// A node's.
    Node(NodeStatus),
}

/// A cluster, as one gateway sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// The id that clients see, in hexadecimal. Absent before the first node has answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// The gateway that was asked.
    pub seen_by: String,
    /// When it had the answers, by its clock, in milliseconds since 1970. Who computes rates goes by this.
    pub at_unix_ms: u64,
    /// What needs a look, the worst first. Empty: nothing is wrong that a gateway can see.
    pub findings: Vec<Finding>,
    /// By name.
    pub gateways: Vec<GatewayStatus>,
    /// By id.
    pub nodes: Vec<NodeStatus>,
    /// By id.
    pub groups: Vec<GroupStatus>,
}

/// Something that needs a look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// One sentence.
    pub text: String,
}

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Clients are refused, or will be.
    Critical,
    /// Clients are served, with less in reserve.
    Warning,
}

/// A gateway. Others than the one that was asked are as they told nodes of themselves, up to some seconds ago.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GatewayStatus {
    /// Unique in its region.
    pub name: String,
    /// Where it stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The zone of the region.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Of the program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Since it started, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uptime_seconds: Option<f64>,
    /// Connections of clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
    /// Watches of clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watchers: Option<u64>,
    /// Nodes that say they are linked with it.
    pub linked_nodes: Vec<u32>,
    /// For clients, and of its links.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<CertificateStatus>,
    /// Over the last ten seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rates: Option<GatewayRates>,
}

impl GatewayStatus {
    /// What others are told.
    pub(crate) fn figures(&self) -> Option<wire::GatewayFigures> {
        Some(wire::GatewayFigures {
            version: self.version.clone()?,
            uptime_ms: (self.uptime_seconds? * 1000.0) as u64,
            connections: self.connections?,
            watchers: self.watchers?,
            rates: self.rates.map(|rates| wire::GatewayRates {
                requests: rates.requests_per_second,
                events: rates.events_per_second,
                received_bytes: rates.received_bytes_per_second,
                sent_bytes: rates.sent_bytes_per_second,
            }),
        })
    }

    /// Takes in what a node was told.
    fn take(&mut self, figures: &GatewayFigures) {
        self.version = Some(figures.version.clone());
        self.uptime_seconds = Some(figures.uptime_seconds);
        self.connections = Some(figures.connections);
        self.watchers = Some(figures.watchers);
        self.rates = figures.rates;
    }
}

/// What a gateway says of itself to nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GatewayFigures {
    /// Of the program.
    pub version: String,
    /// Since it started, in seconds.
    pub uptime_seconds: f64,
    /// Connections of clients.
    pub connections: u64,
    /// Watches of clients.
    pub watchers: u64,
    /// Over ten seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rates: Option<GatewayRates>,
}

impl From<wire::GatewayFigures> for GatewayFigures {
    fn from(told: wire::GatewayFigures) -> GatewayFigures {
        GatewayFigures {
            version: told.version,
            uptime_seconds: told.uptime_ms as f64 / 1000.0,
            connections: told.connections,
            watchers: told.watchers,
            rates: told.rates.map(|rates| GatewayRates {
                requests_per_second: rates.requests,
                events_per_second: rates.events,
                received_bytes_per_second: rates.received_bytes,
                sent_bytes_per_second: rates.sent_bytes,
            }),
        }
    }
}

/// What a gateway does.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GatewayRates {
    /// Requests that began.
    pub requests_per_second: f64,
    /// Events sent to watchers.
    pub events_per_second: f64,
    /// From clients.
    pub received_bytes_per_second: f64,
    /// To clients.
    pub sent_bytes_per_second: f64,
}

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeRates {
    /// Commands applied, of all groups.
    pub commands_per_second: f64,
    /// Queries answered, of all groups.
    pub queries_per_second: f64,
    /// Syncs of the journal.
    pub syncs_per_second: f64,
    /// Payload made durable by the journal.
    pub journal_bytes_per_second: f64,
}

/// How a gateway reaches a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// By a connection of its own.
    Direct,
    /// By a relay: another node passes the connection on.
    Relay,
    /// Not at all.
    Unreached,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its id.
    pub id: u32,
    /// Where gateways reach it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// How the gateway that was asked reaches it; absent in a node's own answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reach: Option<Reach>,
    /// How long it took to answer the gateway's question, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer_seconds: Option<f64>,
    /// What it said of itself; absent if it did not answer in time, or is too old for the question.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub said: Option<NodeSaid>,
}

/// What a node says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeSaid {
    /// What operators call it.
    pub name: String,
    /// Of the program.
    pub version: String,
    /// Since its process started, in seconds.
    pub uptime_seconds: f64,
    /// Where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The zone of the region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Why it does not take part in full; absent if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_ready: Option<String>,
    /// A replica for each group that has one there.
    pub replicas: Vec<ReplicaStatus>,
    /// The other nodes.
    pub peers: Vec<PeerStatus>,
    /// The gateways that are linked with it.
    pub gateways: Vec<LinkedGateway>,
    /// Of its links.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<CertificateStatus>,
    /// Its write-ahead log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub journal: Option<JournalStatus>,
    /// Over the last ten seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rates: Option<NodeRates>,
}

/// A certificate of a process: one that it shows, or the last CA that it trusts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// Whom it is for.
    pub door: CertificateDoor,
    /// What it is.
    pub kind: CertificateKind,
    /// Whom it names; absent of a CA.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// In seconds since 1970.
    pub expires_unix: u64,
    /// Whole days until then; below 0 once it has expired.
    pub days_left: i64,
    /// What is wrong with the files that lie there, while the process goes on with those before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// Whom a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CertificateDoor {
    /// Clients.
    Client,
    /// Gateways and nodes.
    Link,
}

/// What a certificate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CertificateKind {
    /// The process shows it; or it links that one with its CA, and expires earlier.
    Own,
    /// The CA that expires last of those whose certificates are taken.
    Ca,
}

impl CertificateDoor {
    /// As in JSON, and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            CertificateDoor::Client => "client",
            CertificateDoor::Link => "link",
        }
    }
}

impl CertificateKind {
    /// As in JSON, and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            CertificateKind::Own => "own",
            CertificateKind::Ca => "ca",
        }
    }
}

impl CertificateStatus {
    /// Those of a door of this process.
    pub fn of(door: CertificateDoor, status: &tls::Status, now: SystemTime) -> Vec<CertificateStatus> {
        let unix =
            |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let refused = status.refused.as_ref().map(ToString::to_string);
        let of = |kind, holder, expires| {
            CertificateStatus::new(door, kind, holder, unix(expires), refused.clone(), unix(now))
        };
        let own = of(CertificateKind::Own, Some(status.holder.clone()), status.certificate_expires);
        let authority = status.authorities_expire.map(|expires| of(CertificateKind::Ca, None, expires));
        std::iter::once(own).chain(authority).collect()
    }

    fn new(
        door: CertificateDoor,
        kind: CertificateKind,
        holder: Option<String>,
        expires_unix: u64,
        refused: Option<String>,
        now_unix: u64,
    ) -> CertificateStatus {
        let seconds = i128::from(expires_unix) - i128::from(now_unix);
        let days_left = i64::try_from(seconds.div_euclid(86_400)).unwrap_or(i64::MAX);
        CertificateStatus { door, kind, holder, expires_unix, days_left, refused }
    }

    fn of_link(told: wire::CertificateStatus, now_unix: u64) -> Option<CertificateStatus> {
        let kind = match told.kind() {
            ToldKind::Unspecified => return None,
            ToldKind::Own => CertificateKind::Own,
            ToldKind::Authority => CertificateKind::Ca,
        };
        let wire::CertificateStatus { holder, expires_unix, refused, .. } = told;
        let link = CertificateDoor::Link;
        Some(CertificateStatus::new(
            link,
            kind,
            told_text(holder),
            expires_unix,
            told_text(refused),
            now_unix,
        ))
    }

    /// What needs a look, of the certificate of `whose`.
    fn finding(&self, whose: &str) -> Option<Finding> {
        let door = self.door.name();
        let lasts = format!("{whose}: a certificate of the door `{door}` {}", self.left());
        let (severity, text) = if self.days_left < DAYS_LEFT_CRITICAL {
            (Severity::Critical, lasts)
        } else if let (Some(refused), CertificateKind::Own) = (&self.refused, self.kind) {
            let text =
                format!("{whose} refuses the certificates of the door `{door}` that lie there: {refused}");
            (Severity::Warning, text)
        } else if self.days_left < DAYS_LEFT_WARNING {
            (Severity::Warning, lasts)
        } else {
            return None;
        };
        Some(Finding { severity, text })
    }

    fn left(&self) -> String {
        match self.days_left {
            ..0 => "has expired".to_owned(),
            0 => "expires today".to_owned(),
            1 => "expires in a day".to_owned(),
            days => format!("expires in {days} days"),
        }
    }
}

/// As the alerts have it, in days.
const DAYS_LEFT_CRITICAL: i64 = 3;
const DAYS_LEFT_WARNING: i64 = 14;

/// What was said, if anything was.
pub(crate) fn told(text: &str) -> Option<String> {
    told_text(text.to_owned())
}

fn told_text(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

/// A replica, as its node tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// Its group.
    pub group: u64,
    /// What it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Who leads, as far as it knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader: Option<u32>,
    /// Round of the leadership in force: etcd's term.
    pub term: u64,
    /// The last slot that it knows to be committed.
    pub commit_slot: u64,
    /// The last slot that it has applied.
    pub applied_slot: u64,
    /// The newest revision there.
    pub revision: i64,
    /// The oldest revision that can be read; absent before the first compaction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compact_revision: Option<i64>,
    /// Keys and values held, and their history.
    pub size_bytes: u64,
    /// The bound on `size_bytes`.
    pub quota_bytes: u64,
    /// Live keys.
    pub keys: u64,
    /// Leases.
    pub leases: u64,
    /// Sessions of gateways.
    pub sessions: u64,
    /// Watches that gateways hold there.
    pub watches: u64,
    /// Alarms raised.
    pub alarms: Vec<Alarm>,
    /// It may have forgotten votes, and has not made up for them yet.
    pub healing: bool,
    /// Its disk has failed: it takes no part until its node is restarted.
    pub fenced: bool,
    /// At the leader: commands that wait for a slot.
    pub commands_queued: u64,
    /// At the leader: slots proposed and not committed.
    pub slots_under_way: u64,
    /// Which commands may lie in the group's log: it rises when all its replicas know the next one.
    pub cluster_version: u32,
}

/// What a replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It proposes.
    Leader,
    /// It votes.
    Follower,
    /// It tries to lead.
    Candidate,
}

impl Role {
    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Role::Leader => "leader",
            Role::Follower => "follower",
            Role::Candidate => "candidate",
        }
    }
}

/// etcd's alarms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Alarm {
    /// The quota or a disk is full: writes are refused.
    #[serde(rename = "NOSPACE")]
    NoSpace,
    /// Replicas differ.
    Corrupt,
}

impl Alarm {
    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Alarm::NoSpace => "NOSPACE",
            Alarm::Corrupt => "CORRUPT",
        }
    }
}

/// Another node, as a node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its id.
    pub node: u32,
    /// Where it is dialled.
    pub address: String,
    /// Whether there is a connection.
    pub linked: bool,
}

/// A gateway, as a node sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinkedGateway {
    /// Its name.
    pub name: String,
    /// Its connections.
    pub links: u32,
    /// Where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The zone of the region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// As it said last.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub figures: Option<GatewayFigures>,
}

/// A node's write-ahead log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalStatus {
    /// All its files.
    pub disk_bytes: u64,
    /// Its segments.
    pub segments: u64,
    /// There was no room for the next segment: writes are refused.
    pub full: bool,
}

/// A group, put together from what its replicas say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// Its id.
    pub id: u64,
    /// The node that leads, as the newest round has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader: Option<u32>,
    /// Round of the leadership in force: etcd's term.
    pub term: u64,
    /// The last slot that any of its replicas knows to be committed.
    pub commit_slot: u64,
    /// The newest revision at any of its replicas.
    pub revision: i64,
    /// By node.
    pub replicas: Vec<Member>,
}

/// A replica, as a part of its group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its node.
    pub node: u32,
    /// What it is; absent where the node did not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Slots that the group has committed, and it does not know of. What is under way is among them, so a few are
    /// nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit_behind: Option<u64>,
    /// Slots that the group has committed, and it has not applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub applied_behind: Option<u64>,
}

/// Slots that a replica may be behind before a word is said: some seconds of heavy writing.
const BEHIND_MAX: u64 = 50_000;

impl ClusterStatus {
    /// Puts together what is known. `replicas` says which nodes hold replicas of which groups, as the shard map has it.
    pub fn new(
        cluster_id: u64,
        own: GatewayStatus,
        at: SystemTime,
        nodes: Vec<NodeStatus>,
        replicas: &BTreeMap<u64, Vec<u32>>,
    ) -> ClusterStatus {
        let seen_by = own.name.clone();
        let groups: Vec<_> = replicas.iter().map(|(group, on)| group_status(*group, on, &nodes)).collect();
        let mut findings = findings(&nodes, &groups);
        let of_own = own.certificates.iter().filter_map(|one| one.finding(&format!("gateway {}", own.name)));
        findings.extend(of_own);
        findings.sort_by_key(|finding| finding.severity);
        ClusterStatus {
            cluster_id: (cluster_id != 0).then(|| format!("{cluster_id:x}")),
            seen_by,
            at_unix_ms: at
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)),
            findings,
            gateways: gateways(own, &nodes),
            nodes,
            groups,
        }
    }
}

/// The gateway itself, and those that nodes tell of.
fn gateways(own: GatewayStatus, nodes: &[NodeStatus]) -> Vec<GatewayStatus> {
    let own_name = own.name.clone();
    let mut by_name = BTreeMap::from([(own.name.clone(), own)]);
    for node in nodes {
        for gateway in node.said.iter().flat_map(|said| &said.gateways) {
            let known = by_name.entry(gateway.name.clone());
            let known = known.or_insert_with(|| GatewayStatus {
                name: gateway.name.clone(),
                region: gateway.region.clone(),
                zone: gateway.zone.clone(),
                ..GatewayStatus::default()
            });
            known.linked_nodes.push(node.id);
            if let Some(figures) = gateway.figures.as_ref().filter(|_| gateway.name != own_name) {
                known.take(figures);
            }
        }
    }
    by_name.into_values().collect()
}

fn group_status(id: u64, on: &[u32], nodes: &[NodeStatus]) -> GroupStatus {
    let told = |node: u32| {
        let node = nodes.iter().find(|known| known.id == node)?;
        node.said.as_ref()?.replicas.iter().find(|replica| replica.group == id)
    };
    let known: Vec<_> = on.iter().filter_map(|node| told(*node)).collect();
    let term = known.iter().map(|replica| replica.term).max().unwrap_or(0);
    let commit_slot = known.iter().map(|replica| replica.commit_slot).max().unwrap_or(0);
    let members = on.iter().map(|node| match told(*node) {
        Some(replica) => Member {
            node: *node,
            role: replica.role,
            commit_behind: Some(commit_slot.saturating_sub(replica.commit_slot)),
            applied_behind: Some(commit_slot.saturating_sub(replica.applied_slot)),
        },
        None => Member { node: *node, ..Member::default() },
    });
    GroupStatus {
        id,
        leader: known.iter().filter(|replica| replica.term == term).find_map(|replica| replica.leader),
        term,
        commit_slot,
        revision: known.iter().map(|replica| replica.revision).max().unwrap_or(0),
        replicas: members.collect(),
    }
}

fn findings(nodes: &[NodeStatus], groups: &[GroupStatus]) -> Vec<Finding> {
    let mut found = Vec::new();
    for node in nodes {
        let certificates = node.said.iter().flat_map(|said| &said.certificates);
        found.extend(certificates.filter_map(|one| one.finding(&format!("node {}", node.id))));
    }
    let mut say = |severity, text: String| found.push(Finding { severity, text });
    for node in nodes {
        let id = node.id;
        match (&node.said, node.reach) {
            (_, Some(Reach::Unreached)) => {
                say(Severity::Warning, format!("node {id} is not reached"));
            }
            (None, _) => say(Severity::Warning, format!("node {id} does not say how it is")),
            (Some(said), reach) => {
                if let Some(why) = &said.not_ready {
                    say(Severity::Warning, format!("node {id} is not ready: {why}"));
                }
                if reach == Some(Reach::Relay) {
                    say(Severity::Warning, format!("node {id} is reached by a relay only"));
                }
                for peer in said.peers.iter().filter(|peer| !peer.linked) {
                    say(Severity::Warning, format!("node {id} has no link with node {}", peer.node));
                }
            }
        }
        for replica in node.said.iter().flat_map(|said| &said.replicas) {
            let group = replica.group;
            if replica.fenced {
                say(Severity::Warning, format!("the disk of node {id} has failed: restart the node"));
            }
            // All replicas know of an alarm; the leader's word is enough.
            if replica.role == Some(Role::Leader) {
                for alarm in &replica.alarms {
                    let alarm = alarm.name();
                    say(Severity::Critical, format!("the alarm {alarm} is raised in group {group}"));
                }
            }
        }
    }
    for group in groups {
        let id = group.id;
        if group.leader.is_none() {
            say(Severity::Critical, format!("group {id} has no leader"));
        }
        for replica in &group.replicas {
            if let Some(behind) = replica.applied_behind.filter(|behind| *behind > BEHIND_MAX) {
                let node = replica.node;
                say(
                    Severity::Warning,
                    format!("node {node} is {behind} entries behind the others in group {id}"),
                );
            }
        }
    }
    found
}

impl From<wire::NodeStatus> for NodeSaid {
    fn from(told: wire::NodeStatus) -> NodeSaid {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now_unix = now.unwrap_or_default().as_secs();
        NodeSaid {
            name: told.name,
            version: told.version,
            uptime_seconds: told.uptime_ms as f64 / 1000.0,
            region: told_text(told.region),
            zone: told_text(told.zone),
            certificates: told
                .certificates
                .into_iter()
                .filter_map(|one| CertificateStatus::of_link(one, now_unix))
                .collect(),
            not_ready: told_text(told.not_ready),
            replicas: told.replicas.into_iter().map(ReplicaStatus::from).collect(),
            peers: told
                .peers
                .into_iter()
                .map(|peer| PeerStatus { node: peer.node, address: peer.address, linked: peer.linked })
                .collect(),
            gateways: told
                .gateways
                .into_iter()
                .map(|gateway| LinkedGateway {
                    name: gateway.name,
                    links: gateway.links,
                    region: told_text(gateway.region),
                    zone: told_text(gateway.zone),
                    figures: gateway.figures.map(GatewayFigures::from),
                })
                .collect(),
            journal: told.journal.map(|journal| JournalStatus {
                disk_bytes: journal.disk_bytes,
                segments: journal.segments,
                full: journal.full,
            }),
            rates: told.rates.map(|rates| NodeRates {
                commands_per_second: rates.commands,
                queries_per_second: rates.queries,
                syncs_per_second: rates.syncs,
                journal_bytes_per_second: rates.bytes,
            }),
        }
    }
}

impl From<wire::NodeStatus> for NodeStatus {
    fn from(told: wire::NodeStatus) -> NodeStatus {
        NodeStatus { id: told.node, said: Some(NodeSaid::from(told)), ..NodeStatus::default() }
    }
}

impl From<wire::ReplicaStatus> for ReplicaStatus {
    fn from(told: wire::ReplicaStatus) -> ReplicaStatus {
        let alarms = [(told.no_space_alarm, Alarm::NoSpace), (told.corrupt_alarm, Alarm::Corrupt)];
        ReplicaStatus {
            group: told.group,
            role: match told.role() {
                ToldRole::Unspecified => None,
                ToldRole::Leader => Some(Role::Leader),
                ToldRole::Follower => Some(Role::Follower),
                ToldRole::Candidate => Some(Role::Candidate),
            },
            leader: Some(told.leader).filter(|leader| *leader != 0),
            term: told.term,
            commit_slot: told.commit_slot,
            applied_slot: told.applied_slot,
            revision: told.revision,
            compact_revision: Some(told.compact_revision).filter(|revision| *revision >= 0),
            size_bytes: told.size_bytes,
            quota_bytes: told.quota_bytes,
            keys: told.keys,
            leases: told.leases,
            sessions: told.sessions,
            watches: told.watches,
            alarms: alarms.iter().filter(|(raised, _)| *raised).map(|(_, alarm)| *alarm).collect(),
            healing: told.healing,
            fenced: told.fenced,
            commands_queued: told.commands_queued,
            slots_under_way: told.slots_under_way,
            cluster_version: told.cluster_version,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u32, leader: u32, term: u64, applied: u64) -> NodeStatus {
        let role = if id == leader { ToldRole::Leader } else { ToldRole::Follower };
        let replica = wire::ReplicaStatus {
            group: 1,
            role: role.into(),
            leader,
            term,
            commit_slot: applied,
            applied_slot: applied,
            ..wire::ReplicaStatus::default()
        };
        let far = wire::LinkedGateway {
            name: "far".to_owned(),
            links: 1,
            region: "eu".to_owned(),
            figures: Some(wire::GatewayFigures { connections: 7, ..Default::default() }),
            ..Default::default()
        };
        let gateways = vec![far];
        let told = wire::NodeStatus { node: id, replicas: vec![replica], gateways, ..Default::default() };
        NodeStatus { reach: Some(Reach::Direct), ..NodeStatus::from(told) }
    }

    fn cluster(nodes: Vec<NodeStatus>) -> ClusterStatus {
        let own = GatewayStatus { name: "near".to_owned(), ..GatewayStatus::default() };
        ClusterStatus::new(0xca5e, own, SystemTime::UNIX_EPOCH, nodes, &BTreeMap::from([(1, vec![1, 2, 3])]))
    }

    fn texts(status: &ClusterStatus) -> Vec<&str> {
        status.findings.iter().map(|finding| finding.text.as_str()).collect()
    }

    #[test]
    fn a_group_is_what_its_replicas_say_in_the_newest_round() {
        let status = cluster(vec![node(1, 1, 4, 100), node(2, 2, 5, 130), node(3, 2, 5, 120)]);
        let group = &status.groups[0];
        assert_eq!((group.leader, group.term, group.commit_slot), (Some(2), 5, 130));
        let behind: Vec<_> = group.replicas.iter().map(|replica| replica.applied_behind).collect();
        assert_eq!(behind, [Some(30), Some(0), Some(10)]);
        assert!(status.findings.is_empty());
        let names: Vec<_> = status.gateways.iter().map(|gateway| gateway.name.as_str()).collect();
        assert_eq!(names, ["far", "near"]);
        assert_eq!(status.gateways[0].linked_nodes, [1, 2, 3]);
        let far = &status.gateways[0];
        assert_eq!((far.region.as_deref(), &far.zone, far.connections), (Some("eu"), &None, Some(7)));
        assert_eq!(status.gateways[1].connections, None, "what it knows of itself is its own");
    }

    #[test]
    fn what_is_wrong_is_said_the_worst_first() {
        let mut lost = node(1, 0, 5, 10);
        lost.said.as_mut().unwrap().not_ready = Some("stopping".to_owned());
        let unreached = NodeStatus { id: 2, reach: Some(Reach::Unreached), ..NodeStatus::default() };
        let status = cluster(vec![lost, unreached, node(3, 0, 5, 100_000)]);
        assert_eq!(
            texts(&status),
            [
                "group 1 has no leader",
                "node 1 is not ready: stopping",
                "node 2 is not reached",
                "node 1 is 99990 entries behind the others in group 1",
            ]
        );
        assert_eq!(status.groups[0].replicas[1], Member { node: 2, ..Member::default() });
    }

    #[test]
    fn certificates_that_need_a_look_are_among_the_findings() {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let of = |days: u64, refused: &str| wire::CertificateStatus {
            kind: ToldKind::Own.into(),
            holder: "gaios://harbour/node/1".to_owned(),
            // An hour for the test.
            expires_unix: now + days * 86_400 + 3600,
            refused: refused.to_owned(),
        };
        let with = |id, certificate| {
            let NodeStatus { said, .. } = node(id, 1, 5, 10);
            let of_links = CertificateStatus::of_link(certificate, now);
            let said = said.map(|said| NodeSaid { certificates: of_links.into_iter().collect(), ..said });
            NodeStatus { id, said, reach: Some(Reach::Direct), ..NodeStatus::default() }
        };
        let expired = wire::CertificateStatus { expires_unix: now - 1, ..of(0, "") };
        let nodes = vec![with(1, of(14, "")), with(2, of(13, "")), with(3, expired)];
        assert_eq!(
            texts(&cluster(nodes)),
            [
                "node 3: a certificate of the door `link` has expired",
                "node 2: a certificate of the door `link` expires in 13 days",
            ]
        );
        let nodes = vec![
            with(1, of(90, "n.key has no key")),
            with(2, of(2, "n.key has no key")),
            with(3, of(90, "")),
        ];
        let status = cluster(nodes);
        assert_eq!(
            texts(&status),
            [
                "node 2: a certificate of the door `link` expires in 2 days",
                "node 1 refuses the certificates of the door `link` that lie there: n.key has no key",
            ]
        );
        let json = serde_json::to_value(&status.nodes[0]).unwrap();
        let certificate = &json["certificates"][0];
        assert_eq!((&certificate["door"], &certificate["kind"]), (&"link".into(), &"own".into()));
        assert_eq!(
            (&certificate["holder"], &certificate["days_left"]),
            (&"gaios://harbour/node/1".into(), &90.into())
        );
    }

    #[test]
    fn what_is_not_known_is_absent_and_comes_back_as_it_went() {
        let unreached = NodeStatus { id: 2, reach: Some(Reach::Unreached), ..NodeStatus::default() };
        let status = Status::Cluster(cluster(vec![node(1, 1, 5, 10), unreached]));
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["of"], "cluster");
        assert_eq!(json["nodes"][1], serde_json::json!({ "id": 2, "reach": "unreached" }));
        assert_eq!(json["nodes"][0]["replicas"][0]["role"], "leader");
        assert_eq!(serde_json::from_value::<Status>(json).unwrap(), status);
    }
}
