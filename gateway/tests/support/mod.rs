//! Nodes for tests: the other side of the link protocol, in this process, over one `keyspace::Keyspace`.
//!
//! All nodes of a cluster share the state, as if replication were perfect and instant; who leads is what the test says.
//! So a test can lose links, move the leadership, leave outcomes open and repeat answers, and the state stays the one
//! truth to compare with.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::gaios::link::v1 as wire;
use api::gaios::link::v1::refused::Why;
use api::gaios::link::v1::{request, response};
use bytes::{BufMut, Bytes, BytesMut};
use gateway::Place;
use gateway::{Gateway, GatewayOptions};
use keyspace::{
    Command, Effects, FeedPlace, KeyRange, Keyspace, NoHistory, Op, Outcome, PageLimits, Query, Reply,
    Revision, RevisionEvents,
};
use parking_lot::Mutex;
use prost::Message as _;
use shard_map::{GroupId, NodeId, ShardMap};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt as _;
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

pub(crate) const CLUSTER: u64 = 0xca5e;
pub(crate) const GROUP: u64 = 1;

/// Some nodes and what they share.
pub(crate) struct TestCluster {
    core: Arc<Mutex<Core>>,
    /// What nodes do wrong.
    pub(crate) faults: Arc<Mutex<Faults>>,
    pub(crate) nodes: Vec<TestNode>,
}

/// What nodes do wrong, until told otherwise.
#[derive(Default)]
pub(crate) struct Faults {
    /// So many writes are applied, and their outcome not told.
    pub(crate) outcome_unknown: u32,
    /// So many writes are applied, and the link cut before the answer.
    pub(crate) cut_after_apply: u32,
    /// Every answer is sent twice.
    pub(crate) duplicate: bool,
    /// These nodes take requests and stay silent.
    pub(crate) silent: Vec<u32>,
    /// These nodes are cut off from the others: watches there hear of nothing new.
    pub(crate) cut_off: Vec<u32>,
    /// They do not run: nothing is passed on to them.
    stopped: Vec<u32>,
    /// Gateways reach these nodes by a relay only. Cut their links, too.
    pub(crate) parted: Vec<u32>,
    /// Direct links to these nodes carry nothing but the welcome.
    pub(crate) muted: Vec<u32>,
    /// Each write takes so long, one after the other.
    pub(crate) slow: Option<Duration>,
    /// So many writes are refused as too many.
    pub(crate) overloaded: u32,
    /// Reads are not answered, and wait until they are taken back.
    pub(crate) reads_held: bool,
    /// Leaders name nobody when they refuse.
    pub(crate) no_hints: bool,
    /// This node names only itself as the group's replica.
    pub(crate) alone: Option<u32>,
    /// Nodes give addresses of nobody in their shard maps.
    pub(crate) hidden: bool,
    /// Where nodes stand.
    pub(crate) places: BTreeMap<u32, Place>,
}

struct Core {
    keyspace: Keyspace,
    slot: u64,
    term: u64,
    leader: u32,
    watches: BTreeMap<(u64, u64), Watch>,
    /// Reads that are not answered.
    held: BTreeSet<(u64, u64)>,
    next_link: u64,
    /// Requests and links seen, by kind.
    seen: BTreeMap<String, u64>,
    changed: watch::Sender<u64>,
}

struct Watch {
    out: Outbox,
    range: KeyRange,
    prev_kv: bool,
    next: FeedPlace,
    credit: i64,
    syncs: Vec<u64>,
    node: u32,
    /// The gateway was told that it is in step.
    told_in_step: bool,
}

type Outbox = mpsc::UnboundedSender<wire::Response>;

pub(crate) struct TestNode {
    pub(crate) id: u32,
    pub(crate) address: SocketAddr,
    running: Option<CancellationToken>,
    cut: watch::Sender<u64>,
}

impl TestCluster {
    /// `count` nodes; the first leads.
    pub(crate) async fn start(count: u32) -> TestCluster {
        let core = Arc::new(Mutex::new(Core {
            keyspace: Keyspace::new(keyspace::Options::default()),
            slot: 0,
            term: 2,
            leader: 1,
            watches: BTreeMap::new(),
            held: BTreeSet::new(),
            next_link: 1,
            seen: BTreeMap::new(),
            changed: watch::Sender::new(0),
        }));
        let faults = Arc::new(Mutex::new(Faults::default()));
        let mut cluster = TestCluster { core, faults, nodes: Vec::new() };
        let mut listeners = Vec::new();
        for id in 1..=count {
            // Connections of tests begin at 127.0.0.1: none takes the port of a node that is stopped for a while.
            let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            cluster.nodes.push(TestNode { id, address, running: None, cut: watch::Sender::new(0) });
            listeners.push(listener);
        }
        for (index, listener) in listeners.into_iter().enumerate() {
            cluster.serve(index, listener);
        }
        cluster
    }

    fn shard_map(&self) -> Bytes {
        shard_map(self.nodes.iter().map(|node| (node.id, node.address.to_string())))
    }

    fn serve(&mut self, index: usize, listener: TcpListener) {
        let shard_map = self.shard_map();
        let node = &mut self.nodes[index];
        self.faults.lock().stopped.retain(|stopped| *stopped != node.id);
        let running = node.running.get_or_insert_default().clone();
        let serving = Serving {
            node: node.id,
            shard_map,
            core: Arc::clone(&self.core),
            faults: Arc::clone(&self.faults),
        };
        let cut = node.cut.subscribe();
        tokio::spawn(async move {
            loop {
                let stream = tokio::select! {
                    () = running.cancelled() => return,
                    accepted = listener.accept() => accepted.unwrap().0,
                };
                let serving = serving.clone();
                let (running, mut cut) = (running.clone(), cut.clone());
                cut.mark_unchanged();
                tokio::spawn(async move {
                    tokio::select! {
                        () = running.cancelled() => {}
                        _ = cut.changed() => {}
                        () = serving.link(stream) => {}
                    }
                });
            }
        });
    }

    /// Ends a node and its links.
    pub(crate) fn stop(&mut self, id: u32) {
        if let Some(running) = self.nodes[id as usize - 1].running.take() {
            running.cancel();
        }
        self.faults.lock().stopped.push(id);
    }

    /// Starts a stopped node at its old address.
    pub(crate) async fn restart(&mut self, id: u32) {
        let index = id as usize - 1;
        let address = self.nodes[index].address;
        let listener = loop {
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        self.serve(index, listener);
    }

    /// A node that runs is reached at another IP address, too, and the same port; one that is stopped starts there.
    pub(crate) async fn serve_at(&mut self, id: u32, ip: std::net::IpAddr) {
        let index = id as usize - 1;
        let address = SocketAddr::new(ip, self.nodes[index].address.port());
        self.serve(index, TcpListener::bind(address).await.unwrap());
    }

    /// Breaks the links to a node; it goes on running.
    pub(crate) fn cut_links(&self, id: u32) {
        self.nodes[id as usize - 1].cut.send_modify(|cuts| *cuts += 1);
    }

    /// Moves the leadership, in a new round. 0: nobody leads.
    pub(crate) fn elect(&self, leader: u32) {
        let hint = if self.faults.lock().no_hints { 0 } else { leader };
        let mut core = self.core.lock();
        core.term += 1;
        core.leader = leader;
        let not_leading = wire::NotLeading { group: GROUP, leader: hint };
        core.tell_links(|watch| watch.node != leader, &response::Kind::NotLeading(not_leading));
    }

    /// Applies a command as the leader's shell would.
    pub(crate) fn apply(&self, command: Command) -> Outcome {
        self.core.lock().apply(command)
    }

    /// Forgets all sessions, as if they had been evicted.
    pub(crate) fn close_sessions(&self) {
        let mut core = self.core.lock();
        for session in 1..100 {
            let _ = core.apply(Command::CloseSession(keyspace::SessionId(session)));
        }
    }

    pub(crate) fn revision(&self) -> i64 {
        self.core.lock().keyspace.resolved().revision().0
    }

    /// How many requests of a kind, or links, all nodes have seen.
    pub(crate) fn seen(&self, kind: &str) -> u64 {
        self.core.lock().seen.get(kind).copied().unwrap_or(0)
    }

    /// How many reads the nodes hold.
    pub(crate) fn held(&self) -> usize {
        self.core.lock().held.len()
    }

    /// How many watches the nodes hold.
    pub(crate) fn watches(&self) -> usize {
        self.core.lock().watches.len()
    }

    /// Waits until `holds`; looked at whenever a node has done something.
    pub(crate) async fn wait_until(&self, holds: impl Fn(&TestCluster) -> bool) {
        let mut changed = self.core.lock().changed.subscribe();
        while !holds(self) {
            tokio::time::timeout(Duration::from_secs(20), changed.changed()).await.unwrap().unwrap();
        }
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.address.to_string()).collect()
    }

    /// Options of a gateway before these nodes.
    pub(crate) fn gateway_options(&self) -> GatewayOptions {
        GatewayOptions::new("test", "127.0.0.1:0".parse().unwrap(), self.addresses())
    }

    /// A gateway before these nodes, ready to serve.
    pub(crate) async fn gateway(&self) -> Gateway {
        self.gateway_with(|_| {}).await
    }

    pub(crate) async fn gateway_with(&self, change: impl FnOnce(&mut GatewayOptions)) -> Gateway {
        let mut options = self.gateway_options();
        change(&mut options);
        let gateway = Gateway::start(options).await.unwrap();
        assert!(gateway.ready(Duration::from_secs(20)).await, "the gateway finds a leader");
        gateway
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(running) = node.running.take() {
                running.cancel();
            }
        }
    }
}

/// A client's connection.
pub(crate) async fn connect(gateway: &Gateway) -> Channel {
    Channel::from_shared(format!("http://{}", gateway.address())).unwrap().connect().await.unwrap()
}

/// One HTTP/1.1 request; the status line's code, and the body.
pub(crate) async fn http(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let code = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    (code, body.to_owned())
}

impl Core {
    fn saw(&mut self, what: &str) {
        *self.seen.entry(what.to_owned()).or_default() += 1;
        self.changed.send_modify(|changes| *changes += 1);
    }

    fn apply(&mut self, command: Command) -> Outcome {
        self.slot += 1;
        let mut effects = Effects::new();
        self.keyspace.apply(self.slot, 0, command, &mut effects);
        let ids: Vec<_> = self.watches.keys().copied().collect();
        for id in ids {
            self.pump(id);
        }
        let revision = self.keyspace.resolved().revision().0;
        let watermark = wire::WatchWatermark { group: GROUP, revision };
        self.tell_links(|watch| watch.told_in_step, &response::Kind::WatchWatermark(watermark));
        effects.replies.remove(0).outcome
    }

    /// Tells something unasked to each link with such a watch.
    fn tell_links(&self, which: impl Fn(&Watch) -> bool, kind: &response::Kind) {
        let mut told = None;
        for ((link, _), watch) in self.watches.iter().filter(|(_, watch)| which(watch)) {
            if told.replace(*link) != Some(*link) {
                self.respond(&watch.out, 0, kind.clone());
            }
        }
    }

    fn respond(&self, out: &Outbox, id: u64, kind: response::Kind) {
        let _ = out.send(wire::Response { id, term: self.term, kind: Some(kind) });
    }

    /// Sends a watch what it may be sent.
    fn pump(&mut self, id: (u64, u64)) {
        let Some(watch) = self.watches.get_mut(&id) else { return };
        let revision = self.keyspace.resolved().revision();
        while watch.credit > 0 && watch.next.revision <= revision {
            let limits = PageLimits { bytes: watch.credit as usize, events: 1000, looked_at: usize::MAX };
            let page = match self.keyspace.history(&watch.range, watch.prev_kv, watch.next, limits) {
                Ok(page) => page,
                Err(NoHistory::WrongShard) => return,
                Err(NoHistory::Compacted(compacted)) => {
                    let kind = response::Kind::WatchCanceled(wire::WatchCanceled {
                        compact_revision: compacted.0,
                        refused: None,
                    });
                    let out = watch.out.clone();
                    self.watches.remove(&id);
                    self.respond(&out, id.1, kind);
                    return;
                }
            };
            watch.next = page.next;
            if page.revisions.is_empty() {
                continue;
            }
            let mut revisions = BytesMut::new();
            RevisionEvents::encode_all(&page.revisions, &mut revisions);
            watch.credit -= revisions.len() as i64;
            let events = wire::WatchEvents {
                revisions: revisions.freeze(),
                upto: page.next.revision.0 - 1,
                revision: revision.0,
                incomplete: page.incomplete().map_or(0, |revision| revision.0),
            };
            watch.told_in_step = events.upto >= events.revision;
            let kind = Some(response::Kind::WatchEvents(events));
            let _ = watch.out.send(wire::Response { id: id.1, term: self.term, kind });
        }
        let is_in_step = watch.next.revision > revision;
        if watch.told_in_step != is_in_step {
            watch.told_in_step = is_in_step;
            let events = wire::WatchEvents {
                revisions: Bytes::new(),
                upto: watch.next.revision.0 - 1,
                revision: revision.0,
                incomplete: 0,
            };
            let kind = Some(response::Kind::WatchEvents(events));
            let _ = watch.out.send(wire::Response { id: id.1, term: self.term, kind });
        }
        if is_in_step {
            for sync in std::mem::take(&mut watch.syncs) {
                let compact_revision = self.keyspace.compact_revision().0;
                let synced = wire::WatchSynced { revision: revision.0, compact_revision };
                let kind = Some(response::Kind::WatchSynced(synced));
                let _ = watch.out.send(wire::Response { id: sync, term: self.term, kind });
            }
        }
    }
}

/// All of them vote.
fn shard_map(nodes: impl IntoIterator<Item = (u32, String)>) -> Bytes {
    let nodes = nodes.into_iter().map(|(node, address)| (NodeId(node), address));
    let map = ShardMap::single_group(GroupId(GROUP), nodes.collect()).unwrap();
    let mut encoded = BytesMut::new();
    map.encode(&mut encoded);
    encoded.freeze()
}

#[derive(Clone)]
struct Serving {
    node: u32,
    shard_map: Bytes,
    core: Arc<Mutex<Core>>,
    faults: Arc<Mutex<Faults>>,
}

/// The link must be cut.
struct Cut;

/// Counts the links of a way to a node, and those that are over.
struct SeenLink {
    core: Arc<Mutex<Core>>,
    over: String,
}

impl SeenLink {
    fn new(core: &Arc<Mutex<Core>>, way: &str, node: u32) -> SeenLink {
        core.lock().saw(&format!("{way} {node}"));
        SeenLink { core: Arc::clone(core), over: format!("{way} {node} over") }
    }
}

impl Drop for SeenLink {
    fn drop(&mut self) {
        self.core.lock().saw(&self.over);
    }
}

impl Serving {
    async fn link(mut self, stream: TcpStream) {
        stream.set_nodelay(true).unwrap();
        let (read, mut write) = stream.into_split();
        let codec = LengthDelimitedCodec::builder().max_frame_length(64 << 20).new_codec();
        let mut frames = FramedRead::new(read, codec);
        let Some(Ok(hello)) = frames.next().await else { return };
        let hello = wire::Hello::decode(hello.freeze()).unwrap();
        // Whom the connection is passed on to serves it.
        let is_relay = ![0, self.node].contains(&hello.to);
        if is_relay {
            if self.faults.lock().stopped.contains(&hello.to) {
                return;
            }
            self.node = hello.to;
        } else if self.faults.lock().parted.contains(&self.node) {
            return;
        }
        let _seen = SeenLink::new(&self.core, if is_relay { "relay" } else { "direct" }, self.node);
        let refused = hello.cluster_id != 0 && hello.cluster_id != CLUSTER;
        let (shard_map, place) = {
            let faults = self.faults.lock();
            let nowhere = |node| (node, format!("127.0.0.1:{node}"));
            let shard_map = if faults.alone == Some(self.node) {
                shard_map([nowhere(self.node)])
            } else if faults.hidden {
                shard_map([1, 2, 3].map(nowhere))
            } else {
                self.shard_map.clone()
            };
            (shard_map, faults.places.get(&self.node).cloned().unwrap_or_default())
        };
        let welcome = wire::Welcome {
            version: api::gaios::link::VERSION,
            cluster_id: CLUSTER,
            node_id: self.node,
            refused: if refused { "a stranger".to_owned() } else { String::new() },
            shard_map,
            region: place.region,
            zone: place.zone,
        };
        if write.write_all(&framed(&welcome)).await.is_err() || refused {
            return;
        }
        if !is_relay && self.faults.lock().muted.contains(&self.node) {
            while frames.next().await.is_some() {}
            return;
        }
        let (out, mut responses) = mpsc::unbounded_channel();
        let link = {
            let mut core = self.core.lock();
            core.next_link += 1;
            core.next_link
        };
        let _goodbye = Goodbye { core: Arc::clone(&self.core), link };
        let (faults, node) = (Arc::clone(&self.faults), self.node);
        let writing = async move {
            let mut batch = Vec::new();
            while responses.recv_many(&mut batch, 1000).await > 0 {
                let (duplicate, silent) = {
                    let faults = faults.lock();
                    if faults.cut_off.contains(&node) {
                        batch.retain(|response: &wire::Response| {
                            let kind = &response.kind;
                            !matches!(
                                kind,
                                Some(response::Kind::WatchEvents(_) | response::Kind::WatchWatermark(_))
                            )
                        });
                    }
                    (faults.duplicate, faults.silent.contains(&node))
                };
                if silent {
                    batch.clear();
                    continue;
                }
                let responses = std::mem::take(&mut batch);
                let frame = wire::NodeFrame { responses };
                if write.write_all(&framed(&frame)).await.is_err() {
                    return;
                }
                // A copy of an answer; watch frames are never repeated by a node.
                let answers = frame.responses.iter().filter(|response| {
                    matches!(response.kind, Some(response::Kind::Reply(_) | response::Kind::Refused(_)))
                });
                let copy = wire::NodeFrame { responses: answers.cloned().collect() };
                if duplicate && write.write_all(&framed(&copy)).await.is_err() {
                    return;
                }
            }
        };
        let reading = async move {
            while let Some(Ok(frame)) = frames.next().await {
                let frame = wire::GatewayFrame::decode(frame.freeze()).unwrap();
                for group in frame.groups {
                    for request in group.requests {
                        if self.faults.lock().silent.contains(&self.node) {
                            continue;
                        }
                        let slow = self.faults.lock().slow;
                        if let (Some(slow), Some(request::Kind::Write(_))) = (slow, &request.kind) {
                            tokio::time::sleep(slow).await;
                        }
                        if self.request(link, group.group, request, &out).is_err() {
                            return;
                        }
                    }
                }
                self.core.lock().changed.send_modify(|changes| *changes += 1);
            }
        };
        tokio::select! {
            () = writing => {}
            () = reading => {}
        }
    }

    fn request(&self, link: u64, group: u64, request: wire::Request, out: &Outbox) -> Result<(), Cut> {
        let mut core = self.core.lock();
        let id = request.id;
        let refuse = |core: &Core, why: Why| {
            let leader = if self.faults.lock().no_hints { 0 } else { core.leader };
            core.respond(
                out,
                id,
                response::Kind::Refused(wire::Refused { why: why.into(), leader, ..Default::default() }),
            );
        };
        let leads = core.leader == self.node;
        let kind = request.kind.expect("gateways set a kind");
        *core.seen.entry(name(&kind).to_owned()).or_default() += 1;
        if let request::Kind::Ping(_) = kind {
            core.respond(out, id, response::Kind::Pong(wire::Pong {}));
            return Ok(());
        }
        if group != GROUP && !matches!(kind, request::Kind::NodeStatus(_)) {
            refuse(&core, Why::NoGroup);
            return Ok(());
        }
        match kind {
            request::Kind::Write(_)
            | request::Kind::OpenSession(_)
            | request::Kind::KeepAlive(_)
            | request::Kind::WatchSync(_)
                if !leads =>
            {
                refuse(&core, Why::NotLeader);
            }
            request::Kind::WatchOpen(open) if !leads && open.linearizable => refuse(&core, Why::NotLeader),
            request::Kind::Read(read) if !leads && !read.serializable => refuse(&core, Why::NotLeader),
            request::Kind::Write(write) => {
                let mut faults = self.faults.lock();
                if faults.overloaded > 0 {
                    faults.overloaded -= 1;
                    drop(faults);
                    refuse(&core, Why::Overloaded);
                    return Ok(());
                }
                let command = Command::decode(write.command).unwrap();
                assert!(
                    matches!(&command, Command::Write { session, seq, .. }
                        if session.0 == write.session && *seq == write.seq),
                    "the numbers outside are those inside"
                );
                let outcome = core.apply(command);
                if faults.cut_after_apply > 0 {
                    faults.cut_after_apply -= 1;
                    return Err(Cut);
                }
                if faults.outcome_unknown > 0 {
                    faults.outcome_unknown -= 1;
                    drop(faults);
                    refuse(&core, Why::OutcomeUnknown);
                    return Ok(());
                }
                core.respond(out, id, response::Kind::Reply(encoded(&outcome)));
            }
            request::Kind::Read(_) if self.faults.lock().reads_held => {
                core.held.insert((link, id));
            }
            request::Kind::Cancel(_) => {
                core.held.remove(&(link, id));
            }
            request::Kind::Read(read) => {
                core.saw(&format!("read {}", self.node));
                let query = Query::decode(read.query).unwrap();
                let outcome = core.keyspace.query(&query);
                core.respond(out, id, response::Kind::Reply(encoded(&outcome)));
            }
            request::Kind::OpenSession(open) => {
                let nonce = u128::from_le_bytes(open.nonce.as_ref().try_into().expect("16 bytes"));
                let Ok(Reply::SessionOpened { session, .. }) = core.apply(Command::OpenSession { nonce })
                else {
                    panic!("a session opens")
                };
                let opened = wire::SessionOpened { session: session.0 };
                core.respond(out, id, response::Kind::SessionOpened(opened));
            }
            request::Kind::KeepAlive(keep) => {
                let ttl =
                    |id: &i64| core.keyspace.lease(keyspace::LeaseId(*id)).map_or(0, |l| l.granted_ttl_s);
                let leases = keep
                    .leases
                    .iter()
                    .map(|id| wire::KeptLease { id: *id, ttl: ttl(id), undecided: false })
                    .collect();
                let kept = wire::KeptAlive { leases, revision: core.keyspace.resolved().revision().0 };
                core.respond(out, id, response::Kind::KeptAlive(kept));
            }
            // As a node does that is older than the question.
            request::Kind::NodeStatus(_) | request::Kind::LeaderControl(_) | request::Kind::Ping(_) => {
                refuse(&core, Why::Malformed);
            }
            request::Kind::Status(_) => {
                let status = core.keyspace.status();
                let reply = wire::StatusReply {
                    leader: core.leader,
                    commit_slot: core.slot,
                    applied_slot: core.slot,
                    revision: status.revision.0,
                    compact_revision: status.compact_revision.0,
                    size_bytes: status.size_bytes,
                    size_in_use_bytes: status.size_in_use_bytes,
                    quota_bytes: status.quota_bytes,
                    no_space_alarm: core.keyspace.has_alarm(keyspace::AlarmKind::NoSpace),
                    corrupt_alarm: core.keyspace.has_alarm(keyspace::AlarmKind::Corrupt),
                };
                core.respond(out, id, response::Kind::Status(reply));
            }
            request::Kind::WatchOpen(open) => {
                let revision = core.keyspace.resolved().revision().0;
                let next = if open.start_revision <= 0 { revision + 1 } else { open.start_revision };
                let opened = wire::WatchOpened {
                    revision,
                    start_revision: next,
                    compact_revision: core.keyspace.compact_revision().0,
                };
                core.respond(out, id, response::Kind::WatchOpened(opened));
                let watch = Watch {
                    out: out.clone(),
                    range: KeyRange::from_watch_wire(open.key, open.range_end),
                    prev_kv: open.prev_kv,
                    next: Revision(next).into(),
                    credit: open.credit as i64,
                    syncs: Vec::new(),
                    node: self.node,
                    told_in_step: next > revision,
                };
                core.watches.insert((link, id), watch);
                core.pump((link, id));
                if !leads {
                    let leader = if self.faults.lock().no_hints { 0 } else { core.leader };
                    let not_leading = wire::NotLeading { group: GROUP, leader };
                    core.respond(out, 0, response::Kind::NotLeading(not_leading));
                }
            }
            request::Kind::WatchCredit(credit) => {
                if let Some(watch) = core.watches.get_mut(&(link, id)) {
                    watch.credit += credit.bytes as i64;
                }
                core.pump((link, id));
            }
            request::Kind::WatchSync(wire::WatchSync { watch: 0 }) => {
                let (revision, compact_revision) =
                    (core.keyspace.resolved().revision().0, core.keyspace.compact_revision().0);
                let synced = wire::WatchSynced { revision, compact_revision };
                core.respond(out, id, response::Kind::WatchSynced(synced));
            }
            request::Kind::WatchSync(sync) => match core.watches.get_mut(&(link, sync.watch)) {
                Some(watch) => {
                    watch.syncs.push(id);
                    core.pump((link, sync.watch));
                }
                None => refuse(&core, Why::Malformed),
            },
            request::Kind::WatchClose(_) => {
                core.watches.remove(&(link, id));
            }
            request::Kind::Gateways(_) => {
                core.respond(out, id, response::Kind::Gateways(wire::GatewayList::default()));
            }
        }
        Ok(())
    }
}

struct Goodbye {
    core: Arc<Mutex<Core>>,
    link: u64,
}

impl Drop for Goodbye {
    fn drop(&mut self) {
        let mut core = self.core.lock();
        core.watches.retain(|(link, _), _| *link != self.link);
        core.held.retain(|(link, _)| *link != self.link);
        core.changed.send_modify(|changes| *changes += 1);
    }
}

fn name(kind: &request::Kind) -> &'static str {
    match kind {
        request::Kind::Write(_) => "write",
        request::Kind::Read(_) => "read",
        request::Kind::OpenSession(_) => "open_session",
        request::Kind::KeepAlive(_) => "keep_alive",
        request::Kind::Status(_) => "status",
        request::Kind::WatchOpen(_) => "watch_open",
        request::Kind::WatchCredit(_) => "watch_credit",
        request::Kind::WatchSync(_) => "watch_sync",
        request::Kind::WatchClose(_) => "watch_close",
        request::Kind::NodeStatus(_) => "node_status",
        request::Kind::Gateways(_) => "gateways",
        request::Kind::LeaderControl(_) => "leader_control",
        request::Kind::Ping(_) => "ping",
        request::Kind::Cancel(_) => "cancel",
    }
}

fn encoded(outcome: &Outcome) -> Bytes {
    let mut out = BytesMut::new();
    keyspace::encode_outcome(outcome, &mut out);
    out.freeze()
}

fn framed(message: &impl prost::Message) -> BytesMut {
    let mut out = BytesMut::new();
    out.put_u32(message.encoded_len() as u32);
    message.encode(&mut out).unwrap();
    out
}

/// A put past all gateways.
pub(crate) fn put_op(key: &str, value: &str) -> Op {
    Op::Put(keyspace::Put::new(key.to_owned(), value.to_owned()))
}
