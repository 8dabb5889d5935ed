//! Every field there is. Add one here, give it to the code that uses it, then run `cargo xtask docs`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::number::fnv1a;
use crate::problem::Problem;
use crate::table::{Fields, Read as _, section};
use crate::value::{
    AccessLog, ClientAuth, ClientUrl, LogFormat, LogLevel, Name, NodeAddress, Role, Size, TlsVersion,
};

section! {
    /// A node: it hosts replicas of groups, and keeps their journal and snapshots.
    pub struct Replica, checked by check_replica {
        /// What the process is; `replica` in this file.
        role: Role = required;
        /// Id of this node, one of `cluster.nodes`. It is written into the data directory: a node never changes its id.
        node: u32 = required ["1" to "65535"];
        /// Name for logs and metrics; without it, `node-` and the id.
        name: Name = optional;
        /// Region it stands in; without it, that of this node in `cluster.nodes`. Gateways read at the nearest node.
        region: Name = optional;
        /// Zone of the region; without it, that of this node in `cluster.nodes`.
        zone: Name = optional;
        /// Folder for the journal and the snapshots. One process at a time may use it.
        data_dir: PathBuf = required;
        /// Where gateways and other nodes connect. They find it by this node's address in `cluster.nodes`. An address that
        /// other machines can reach needs `link_tls`, or `insecure`.
        listen: SocketAddr = default("127.0.0.1:2380");
        /// Lets `listen` be an address that other machines can reach although there is no `link_tls`. Whoever reaches it can then
        /// read and change everything, and take part as a node: say `true` only where the network keeps all others out.
        insecure: bool = default("false");
        /// Where metrics, health and the status page are served.
        admin_listen: SocketAddr = default("127.0.0.1:2381");
        /// The cluster this node belongs to.
        cluster: Cluster = required;
        /// Certificates for gateways and other nodes; without it, whoever reaches `listen` is believed who they say they are.
        /// `{node}` in its paths stands for this node's id.
        link_tls: LinkTls = optional;
        /// The DNS server that resolves names of nodes; without it, those of the system's configuration.
        dns_server: SocketAddr = optional;
        /// Failure detection and leader leases; the same on all nodes.
        timing: Timing = default("{}");
        /// The write-ahead log.
        journal: Journal = default("{}");
        /// Images of the state, which let the journal be cut.
        snapshot: Snapshot = default("{}");
        /// Keys and values a group may hold before writes are refused with etcd's `database space exceeded`.
        quota_bytes: Size = default("2GiB") ["1MiB" to "1TiB"];
        /// Memory that gateways can make this node hold beside its state: frames of more than 64 KiB that are on their way to it,
        /// requests that wait for their group, answers and events that wait for gateways to read them. Beyond it, what gateways
        /// ask is refused, so that clients get etcd's `too many requests`, and gateways that do not read lose their link.
        /// Without it, an eighth of the memory that the container or the machine has. The state has `quota_bytes`.
        memory_budget: Size = optional ["64MiB" to "1TiB"];
        /// Threads that do the work, beside the journal's; without it, half as many as there are cores for this process. More
        /// wake each other for little: half of the work is the kernel's.
        threads: u32 = optional ["1" to "1024"];
        /// What is logged, to standard error.
        log: Log = default("{}");
    }
}

section! {
    /// A gateway: the stateless proxy that clients talk to.
    pub struct Gateway, checked by check_gateway {
        /// What the process is; `gateway` in this file.
        role: Role = required;
        /// Name of this gateway, unique in its region.
        name: Name = required;
        /// Region it stands in. `MemberList` answers a client with the gateways of this one's region first, and reads that may be
        /// old are made at the nearest node.
        region: Name = optional;
        /// Zone of the region.
        zone: Name = optional;
        /// The front door: gRPC and HTTP on one port.
        listen: SocketAddr = default("0.0.0.0:2379");
        /// Where metrics, health and the status page are served.
        admin_listen: SocketAddr = default("127.0.0.1:2378");
        /// How clients reach `listen`; told to them by `MemberList`.
        advertise_client_urls: Vec<ClientUrl> = required;
        /// What `MemberList` answers with, always; without it, the gateways that are there, those of the region first.
        members: Vec<Member> = optional;
        /// What is told to other gateways of this one: how much it can carry, in whatever measure is the same for all of them.
        capacity: u32 = default("1") ["1" to "1000000"];
        /// The cluster behind this gateway.
        cluster: Cluster = required;
        /// Certificates for clients; without it, `listen` speaks plain text, and with it, nothing but TLS.
        client_tls: ClientTls = optional;
        /// Certificates for nodes; without it, links are plain text.
        link_tls: LinkTls = optional;
        /// The DNS server that resolves names of nodes; without it, those of the system's configuration.
        dns_server: SocketAddr = optional;
        /// Connections kept open to each node, however many clients there are.
        links_per_node: u32 = default("1") ["1" to "64"];
        /// Threads that do the work; without it, half as many as there are cores for this process. Set it to all cores where
        /// the gateway has them for itself and needs them: it then serves more, at a higher price for each request.
        threads: u32 = optional ["1" to "1024"];
        /// Bounds on what clients may ask.
        limits: Limits = default("{}");
        /// How often a watch that asked for progress notices gets one while nothing happens.
        watch_progress_notify_interval: Duration = default("10m") ["100ms" to "24h"];
        /// Time that requests in flight have to finish after a signal to stop.
        drain_grace_period: Duration = default("10s") ["0s" to "10m"];
        /// A request that takes longer is told of in the log, with where its time went; at most five a second. Requests to
        /// another continent take some hundred milliseconds, so this is above etcd's 100 ms.
        slow_request_threshold: Duration = default("500ms") ["1ms" to "1h"];
        /// Which requests have a line of their own in the log: method, client, code, bytes and time.
        access_log: AccessLog = default("off");
        /// What is logged, to standard error.
        log: Log = default("{}");
    }
}

section! {
    /// The description of a cluster that its replicas and gateways share.
    pub struct Cluster, checked by check_cluster {
        /// Name of the cluster. The id that clients see is a hash of it, so it never changes.
        name: Name = required;
        /// The nodes, the same on all of them. A gateway may leave them out if it has `seeds`.
        nodes: Vec<Node> = default("[]");
        /// For gateways: where nodes are found, any of them, by names with many addresses perhaps. From one node that answers, a
        /// gateway learns of all the others. Nodes do not use it.
        seeds: Vec<NodeAddress> = default("[]");
        /// The groups; without it, one group with the id 1 and all nodes as voters.
        groups: Vec<Group> = optional;
    }
}

section! {
    /// A node as others see it.
    pub struct Node {
        /// Id, unique in the cluster and never given to another node.
        id: u32 = required ["1" to "65535"];
        /// Where it is reached. Names are resolved anew when their time to live is over, and when nobody is reached; all their
        /// addresses are tried.
        address: NodeAddress = required;
        /// Region it stands in.
        region: Name = optional;
        /// Zone of the region.
        zone: Name = optional;
    }
}

section! {
    /// A consensus group.
    pub struct Group, checked by check_group {
        /// Id, unique in the cluster.
        id: u64 = required ["1" to "18446744073709551615"];
        /// Ids of the nodes that vote in it: an odd number is best.
        voters: Vec<u32> = required;
        /// Regions where the group is to be led, the best first, by the `region` of `cluster.nodes`: a leader elsewhere hands
        /// over to a voter there that has been up for 20 s. Without it, any voter leads. What `gaios ctl leader prefer` sets
        /// stands above it.
        leader_regions: Vec<Name> = optional;
    }
}

section! {
    /// Certificates for clients. Changes of the files are taken over within seconds, or on SIGHUP.
    pub struct ClientTls, checked by check_client_tls {
        /// The certificate of this gateway, valid for the names in `advertise_client_urls`, then those that link it with its CA.
        cert_file: PathBuf = required;
        /// The key of the certificate.
        key_file: PathBuf = required;
        /// CAs that sign the certificates of clients.
        client_ca_file: PathBuf = optional;
        /// Whether clients show a certificate. One that is shown must be good, also where it is optional.
        client_auth: ClientAuth = default("off");
        /// Keys of session tickets, the same at all gateways of a region, so that clients resume their sessions at any of them:
        /// 64 hexadecimal digits a line, newest first. `gaios ctl certs tickets` makes and rotates it. Without it, each gateway
        /// makes its own.
        ticket_keys_file: PathBuf = optional;
        /// The oldest version of TLS that clients may speak.
        min_version: TlsVersion = default("1.2");
    }
}

section! {
    /// Certificates for links. Both sides show one, which says who its holder is in a URI of its subject alternative names:
    /// `gaios://CLUSTER/node/ID` or `gaios://CLUSTER/gateway/NAME`. Changes of the files are taken over within seconds, or on
    /// SIGHUP.
    pub struct LinkTls {
        /// The certificate of this process, then those that link it with its CA.
        cert_file: PathBuf = required;
        /// The key of the certificate.
        key_file: PathBuf = required;
        /// CAs of the cluster.
        ca_file: PathBuf = required;
    }
}

section! {
    /// Failure detection and leader leases.
    pub struct Timing, checked by check_timing {
        /// Time between two heartbeats of a pair of nodes.
        heartbeat: Duration = default("100ms") ["10ms" to "5s"];
        /// How long a heartbeat lets its sender's leader leases last. After the crash of a leader, the first commit of the next
        /// one waits for what is left of that, which is between `support` less a heartbeat and `support`; after an orderly stop
        /// it waits for nothing. While a heartbeat and its answer take longer than `support` less a heartbeat, 1 % and 5 ms
        /// (240 ms with the defaults), a leader has no lease, and its reads ask the others first. At least three heartbeats.
        /// Nodes say it to each other, and a lease lasts as long as who gives it says; so it may be changed on one node after
        /// the other. A node that is started with a shorter one does not shorten what it gave before, and is ready when that is
        /// over.
        support: Duration = default("350ms") ["50ms" to "30s"];
        /// Silence after which a leader is given up; each candidate adds up to as much again, by chance. At least three
        /// heartbeats.
        election: Duration = default("500ms") ["50ms" to "50s"];
    }
}

section! {
    /// The write-ahead log that all groups of a node share.
    pub struct Journal {
        /// Size of a segment file, which is allocated in full when it is made.
        segment_bytes: Size = default("64MiB") ["1MiB" to "1GiB"];
    }
}

section! {
    /// Images of the state, which let the journal be cut.
    pub struct Snapshot {
        /// Least journal written by a group since its last snapshot before the next one is due. Above that, one is due when
        /// the journal outweighs the snapshot.
        min_journal_bytes: Size = default("64MiB") ["1MiB" to "64GiB"];
        /// Size of the pieces in which a snapshot is written, and sent to a node that fell behind.
        chunk_bytes: Size = default("1MiB") ["64KiB" to "16MiB"];
    }
}

section! {
    /// Bounds on what clients may ask.
    pub struct Limits {
        /// Largest request; a larger one is refused with etcd's `request is too large`.
        max_request_bytes: Size = default("1.5MiB") ["1KiB" to "16MiB"];
        /// Most operations in a transaction, as etcd counts them.
        max_txn_ops: u32 = default("128") ["1" to "65536"];
        /// Most requests in work or waiting at a time, whatever for; beyond it, etcd's `too many requests`. Half of it is kept for
        /// clients that have less than their share, and for leases. Less is let in while requests wait for each other too long.
        max_requests_in_flight: u32 = default("16384") ["1" to "1048576"];
        /// Most connections of clients at a time; half of them from one address. Others are closed at once.
        max_connections: u32 = default("65536") ["16" to "1048576"];
        /// Most requests and streams at a time on one connection; clients wait with others. etcd has no such limit by default.
        max_streams_per_connection: u32 = default("8192") ["16" to "1048576"];
        /// Memory that clients can make this gateway hold: open streams, messages of 16 KiB and more until they are answered,
        /// and such answers until they have been taken. Beyond it, etcd's `too many requests`; clients that take nothing of
        /// what waits for them are sent away. Without it, half of the memory that the container or the machine has.
        memory_budget: Size = optional ["16MiB" to "1TiB"];
        /// Time after which a request is answered with etcd's `request timed out`.
        request_timeout: Duration = default("7s") ["100ms" to "5m"];
    }
}

section! {
    /// A gateway as `MemberList` shows it.
    pub struct Member {
        /// Its name.
        name: Name = required;
        /// Where clients reach it.
        client_urls: Vec<ClientUrl> = required;
    }
}

section! {
    /// The log of the process.
    pub struct Log {
        /// The least important messages to log.
        level: LogLevel = default("info");
        /// What a line looks like.
        format: LogFormat = default("text");
    }
}

impl Replica {
    /// With this node's id in the paths that ask for it.
    pub(crate) fn with_own_paths(mut self) -> Self {
        let id = self.node.to_string();
        if let Some(LinkTls { cert_file, key_file, ca_file }) = &mut self.link_tls {
            for path in [cert_file, key_file, ca_file] {
                // What was read from a text is one.
                if let Some(text) = path.to_str() {
                    *path = PathBuf::from(text.replace("{node}", &id));
                }
            }
        }
        self
    }

    /// The name, or what stands in for it.
    #[must_use]
    pub fn display_name(&self) -> String {
        self.name.as_ref().map_or_else(|| format!("node-{}", self.node), Name::to_string)
    }

    /// Whether other machines can reach its port in the clear.
    #[must_use]
    pub fn is_exposed(&self) -> bool {
        self.link_tls.is_none() && !self.listen.ip().to_canonical().is_loopback()
    }

    /// The names of the fields in which this configuration differs from `other`, such as `log.level`.
    #[must_use]
    pub fn changed_from(&self, other: &Self) -> Vec<String> {
        let mut changed = Vec::new();
        self.compare(other, "", &mut changed);
        changed
    }

    /// Where others reach this node.
    #[must_use]
    pub fn address(&self) -> &NodeAddress {
        &self.listed().address
    }

    /// The region it stands in, wherever that is written.
    #[must_use]
    pub fn region(&self) -> Option<&Name> {
        self.region.as_ref().or(self.listed().region.as_ref())
    }

    /// The zone it stands in, wherever that is written.
    #[must_use]
    pub fn zone(&self) -> Option<&Name> {
        self.zone.as_ref().or(self.listed().zone.as_ref())
    }

    fn listed(&self) -> &Node {
        let listed = self.cluster.nodes.iter().find(|node| node.id == self.node);
        listed.expect("a checked replica's node is one of the cluster's")
    }
}

impl Gateway {
    /// The names of the fields in which this configuration differs from `other`, such as `log.level`.
    #[must_use]
    pub fn changed_from(&self, other: &Self) -> Vec<String> {
        let mut changed = Vec::new();
        self.compare(other, "", &mut changed);
        changed
    }
}

impl Cluster {
    /// The cluster id that clients see: FNV-1a (64 bits) of the name, and 1 in the one case that this is 0, which the wire
    /// uses for "unknown".
    #[must_use]
    pub fn id(&self) -> u64 {
        fnv1a(self.name.as_str().bytes()).max(1)
    }

    /// What is allowed and not wise.
    #[must_use]
    pub fn advice(&self) -> Vec<String> {
        let groups = self.groups_or_default();
        // Without nodes, nothing is known of their votes.
        let known = groups.iter().filter(|group| !group.voters.is_empty());
        let even = known.filter(|group| group.voters.len().is_multiple_of(2));
        even.map(|group| {
            let voters = group.voters.len();
            format!(
                "group {} has {voters} voters: with {} it would survive as many failures, and write faster",
                group.id,
                voters - 1
            )
        })
        .collect()
    }

    /// The groups, or the one there is when none are written. Never empty.
    #[must_use]
    pub fn groups_or_default(&self) -> Vec<Group> {
        let single = || {
            vec![Group {
                id: 1,
                voters: self.nodes.iter().map(|node| node.id).collect(),
                leader_regions: None,
            }]
        };
        self.groups.clone().unwrap_or_else(single)
    }
}

fn check_replica(replica: &Replica, fields: &Fields<'_>, problems: &mut Vec<Problem>) -> Option<()> {
    let before = problems.len();
    check_role(replica.role, Role::Replica, fields, problems);
    check_doors(replica.listen, replica.admin_listen, fields, problems);
    match replica.cluster.nodes.iter().find(|node| node.id == replica.node) {
        Some(listed) => {
            for (name, own, listed) in
                [("region", &replica.region, &listed.region), ("zone", &replica.zone, &listed.zone)]
            {
                if let (Some(own), Some(listed)) = (own, listed)
                    && own != listed
                {
                    let message = format!("is `{own}`, but cluster.nodes says `{listed}` of this node");
                    fields.note(name, message, problems);
                }
            }
        }
        None if replica.cluster.nodes.is_empty() => {
            fields.note("cluster", "has no nodes, of which this is one", problems);
        }
        None => {
            let known = list(replica.cluster.nodes.iter().map(|node| node.id));
            let message = format!("{} is not one of cluster.nodes, which are {known}", replica.node);
            fields.note("node", message, problems);
        }
    }
    if replica.insecure && replica.link_tls.is_some() {
        fields.note("insecure", "is true, and there is `link_tls`: take one of the two out", problems);
    }
    if replica.is_exposed() && !replica.insecure {
        fields.note(
            "listen",
            format!(
                "is {}, which other machines can reach, and without `link_tls` whoever does can read and change everything: \
                 give it certificates, listen on a loopback address, or say `insecure: true`",
                replica.listen
            ),
            problems,
        );
    }
    (problems.len() == before).then_some(())
}

fn check_gateway(gateway: &Gateway, fields: &Fields<'_>, problems: &mut Vec<Problem>) -> Option<()> {
    let before = problems.len();
    check_role(gateway.role, Role::Gateway, fields, problems);
    check_doors(gateway.listen, gateway.admin_listen, fields, problems);
    if gateway.advertise_client_urls.is_empty() {
        fields.note("advertise_client_urls", "needs at least one URL", problems);
    }
    let tls = gateway.client_tls.is_some();
    let members_urls = gateway.members.iter().flatten().flat_map(|member| &member.client_urls);
    check_schemes("advertise_client_urls", gateway.advertise_client_urls.iter(), tls, fields, problems);
    check_schemes("members", members_urls, tls, fields, problems);
    if gateway.advertise_client_urls.len() > MAX_CLIENT_URLS {
        fields.note("advertise_client_urls", format!("has more than {MAX_CLIENT_URLS} URLs"), problems);
    }
    if let Some(members) = &gateway.members {
        if let Some(name) = repeated(members.iter().map(|member| member.name.as_str())) {
            fields.note("members", format!("names `{name}` twice"), problems);
        }
        if !members.iter().any(|member| member.name == gateway.name) {
            fields.note("members", format!("does not name this gateway, `{}`", gateway.name), problems);
        }
    }
    (problems.len() == before).then_some(())
}

/// Clients would speak TLS to a port that does not, or the other way.
fn check_schemes<'a>(
    field: &str,
    mut urls: impl Iterator<Item = &'a ClientUrl>,
    tls: bool,
    fields: &Fields<'_>,
    problems: &mut Vec<Problem>,
) {
    if let Some(url) = urls.find(|url| url.is_https() != tls) {
        let message = if tls {
            format!("has {url}, but with `client_tls` clients are served over https:// only")
        } else {
            format!("has {url}, but without `client_tls` clients are served over http:// only")
        };
        fields.note(field, message, problems);
    }
}

fn check_client_tls(tls: &ClientTls, fields: &Fields<'_>, problems: &mut Vec<Problem>) -> Option<()> {
    let before = problems.len();
    match (tls.client_auth, &tls.client_ca_file) {
        (ClientAuth::Off, Some(_)) => {
            let message =
                "is of no use while `client_auth` is off: say optional or required, or leave it out";
            fields.note("client_ca_file", message, problems);
        }
        (ClientAuth::Optional | ClientAuth::Required, None) => {
            let message = format!(
                "is {}, but no `client_ca_file` says whose certificates are good",
                tls.client_auth.as_str()
            );
            fields.note("client_auth", message, problems);
        }
        (ClientAuth::Off, None) | (ClientAuth::Optional | ClientAuth::Required, Some(_)) => {}
    }
    (problems.len() == before).then_some(())
}

fn check_role(written: Role, right: Role, fields: &Fields<'_>, problems: &mut Vec<Problem>) {
    if written != right {
        let message = format!("is `{}`, but this process is a {}", written.as_str(), right.as_str());
        fields.note("role", message, problems);
    }
}

/// A port that the kernel chooses, 0, is never one that is taken.
fn check_doors(
    listen: SocketAddr,
    admin_listen: SocketAddr,
    fields: &Fields<'_>,
    problems: &mut Vec<Problem>,
) {
    let same_port = listen.port() == admin_listen.port() && listen.port() != 0;
    // `::` stands for all addresses, of both families; 0.0.0.0 for those of IPv4.
    let within =
        |ip: IpAddr, all: IpAddr| ip == all || all.is_unspecified() && (all.is_ipv6() || ip.is_ipv4());
    let (ip, admin_ip) = (listen.ip().to_canonical(), admin_listen.ip().to_canonical());
    if same_port && (within(ip, admin_ip) || within(admin_ip, ip)) {
        let message = format!("is {admin_listen}, which `listen`, {listen}, takes already");
        fields.note("admin_listen", message, problems);
    }
}

fn check_cluster(cluster: &Cluster, fields: &Fields<'_>, problems: &mut Vec<Problem>) -> Option<()> {
    let before = problems.len();
    let nodes = &cluster.nodes;
    if nodes.is_empty() && cluster.seeds.is_empty() {
        fields.note("nodes", "needs at least one node, or `seeds` to find them by", problems);
    }
    if let Some(seed) = repeated(cluster.seeds.iter()) {
        fields.note("seeds", format!("has {seed} twice"), problems);
    }
    if let Some(id) = repeated(nodes.iter().map(|node| node.id)) {
        fields.note("nodes", format!("has the id {id} twice"), problems);
    }
    if let Some(address) = repeated(nodes.iter().map(|node| &node.address)) {
        fields.note("nodes", format!("has the address {address} twice"), problems);
    }
    if let Some(groups) = &cluster.groups {
        if groups.is_empty() {
            fields.note(
                "groups",
                "needs at least one group; without the field there is one with all nodes",
                problems,
            );
        }
        if let Some(id) = repeated(groups.iter().map(|group| group.id)) {
            fields.note("groups", format!("has the id {id} twice"), problems);
        }
        for group in groups.iter().filter(|_| !nodes.is_empty()) {
            for voter in group.voters.iter().filter(|voter| !nodes.iter().any(|node| node.id == **voter)) {
                let message = format!("group {} has the voter {voter}, which is not one of nodes", group.id);
                fields.note("groups", message, problems);
            }
        }
    }
    (problems.len() == before).then_some(())
}

fn check_group(group: &Group, fields: &Fields<'_>, problems: &mut Vec<Problem>) -> Option<()> {
    let before = problems.len();
    if !(1..=MAX_VOTERS).contains(&group.voters.len()) {
        fields.note("voters", format!("must be 1 to {MAX_VOTERS} nodes"), problems);
    }
    if let Some(id) = repeated(group.voters.iter()) {
        fields.note("voters", format!("has the node {id} twice"), problems);
    }
    (problems.len() == before).then_some(())
}

/// A gateway tells them in its first words to a node, which are limited.
const MAX_CLIENT_URLS: usize = 8;

/// More voters make every write slower and no cluster safer; etcd's advice is 7 at most.
const MAX_VOTERS: usize = 9;

fn check_timing(timing: &Timing, fields: &Fields<'_>, problems: &mut Vec<Problem>) -> Option<()> {
    let before = problems.len();
    // Two heartbeats in a row may get lost before a lease lapses or an election begins.
    let least = timing.heartbeat * 3;
    for (name, value) in [("support", timing.support), ("election", timing.election)] {
        if value < least {
            let message =
                format!("is {value:?}, but must be at least {least:?}, three times timing.heartbeat");
            fields.note(name, message, problems);
        }
    }
    (problems.len() == before).then_some(())
}

/// The first value that comes a second time.
fn repeated<T: Ord>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut seen = std::collections::BTreeSet::new();
    for value in values {
        if seen.contains(&value) {
            return Some(value);
        }
        seen.insert(value);
    }
    None
}

fn list(values: impl Iterator<Item = u32>) -> String {
    values.map(|value| value.to_string()).collect::<Vec<_>>().join(", ")
}
