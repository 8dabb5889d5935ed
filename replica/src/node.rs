//! A node: one data directory, one journal, one port, one link per peer, and the groups that live here.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backoff::Backoff;
use bytes::Bytes;
use consensus_core::{
    Config, Durable, GroupId, Liveness, LivenessMessage, LivenessOutput, Message, Mono, NodeId, NodeSet,
    NodeStatus, Options, PersistSeq, Record, Slot, Timing,
};
use discovery::Discovery;
use group_core::{Event, LogPositions, Start, entries};
use journal::Recovered as Found;
use journal::{Identity, Journal, RealDisk, Superblock, Writer};
use keyspace::Limits;
use parking_lot::{Mutex, RwLock};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::abort_on_panic;
use crate::admission;
use crate::aside;
use crate::clock;
use crate::disk_watch::{DiskNews, DiskWatch};
use crate::distrust::{Distrust, Distrusts};
use crate::door::{self, Door};
use crate::gateways::Gateways;
use crate::gauges::Gauges;
use crate::group::{self, GroupHandle};
use crate::metrics::Metrics;
use crate::newcomer::{Seat, digest, settle, take_place};
use crate::peer::{self, Peer};
use crate::rates::{Rates, SAMPLE_EVERY};
use crate::suspicion::Accuser;
use crate::wire::Room;

/// How long a node waits for its data directory: the process that was killed before may still be ending, and whoever
/// restarts processes does so at once.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two looks at a directory that is in use.
const LOCK_PAUSE: Duration = Duration::from_millis(50);
/// So long after its start, a node that all others have not linked with is not ready. One that is down is not waited for
/// longer.
const PEERS_PATIENCE: Duration = Duration::from_secs(5);

/// What a node is started with.
#[derive(Debug)]
pub struct NodeOptions {
    /// This node.
    pub id: NodeId,
    /// What operators call it, in logs and metrics.
    pub name: String,
    /// The cluster, the same number on all its nodes; not 0.
    pub cluster: u64,
    /// Every node of the cluster and the address its peers reach it at, this node included.
    pub nodes: Vec<(NodeId, String)>,
    /// The groups of the cluster, with their first voters. Those that this node is one of have a replica here.
    pub groups: Vec<(GroupId, Vec<NodeId>)>,
    /// The region that each node stands in, as far as it is known.
    pub regions: BTreeMap<NodeId, String>,
    /// The regions where groups are to be led, the best first, until an operator says otherwise.
    pub leader_regions: BTreeMap<GroupId, Vec<String>>,
    /// Where peers and gateways connect to.
    pub listener: std::net::TcpListener,
    /// Where the node keeps everything. Used by one process at a time.
    pub data_dir: PathBuf,
    /// Times of the consensus protocol.
    pub timing: Timing,
    /// Size of a journal segment in bytes.
    pub journal_segment_bytes: u64,
    /// A snapshot is not due before this many bytes were logged since the last one.
    pub snapshot_least_bytes: u64,
    /// Size of the slices that a snapshot is cut, written and sent in.
    pub snapshot_slice_bytes: usize,
    /// Bound on the logical size of a group's data; 0 is not unlimited but nothing.
    pub quota_bytes: u64,
    /// The shard map that gateways are given.
    pub shard_map: Bytes,
    /// The region this node stands in; empty if that was not said.
    pub region: String,
    /// The zone of the region; empty if that was not said.
    pub zone: String,
    /// Resolves the addresses of peers.
    pub discovery: Discovery,
    /// Files and connections that the process may have open for this node at a time.
    pub descriptors: usize,
    /// The certificates of links; without them, whoever reaches the port is believed what it says.
    pub tls: Option<Arc<tls::Mutual>>,
    /// Other machines can reach the listener, and nothing proves who they are: the node says so.
    pub insecure: bool,
}

/// Why a node could not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The journal, a snapshot or the data directory.
    #[error("{0}")]
    Journal(#[from] journal::Error),
    /// The port or a thread.
    #[error("{action}: {source}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The configuration contradicts itself or the data directory.
    #[error("{0}")]
    Config(String),
    /// A record that this version cannot read.
    #[error("the journal holds a record that this version cannot read ({0}): {WAY_OUT}", WAY_OUT = way_out())]
    Record(consensus_core::DecodeError),
    /// An entry of a group that this version cannot apply.
    #[error(
        "the journal holds an entry of group {group} that this version cannot read ({why}): {WAY_OUT}",
        WAY_OUT = way_out()
    )]
    Entry {
        /// Of which group.
        group: u64,
        /// Where, and what is wrong with it.
        why: String,
    },
}

/// For who cannot start with what the journal holds.
fn way_out() -> String {
    format!(
        "if a newer version wrote it, start that one again; if not, {}. Where no other node has what is needed, see `gaios \
         ctl recover`",
        journal::EMPTY_IT
    )
}

/// The other nodes of the cluster.
pub(crate) type Peers = BTreeMap<NodeId, Arc<Peer>>;

/// What all tasks of a node share.
pub(crate) struct Shared {
    pub(crate) id: NodeId,
    /// What operators call it.
    pub(crate) name: String,
    pub(crate) started: Instant,
    pub(crate) cluster: u64,
    pub(crate) timing: Timing,
    pub(crate) identity: Identity,
    pub(crate) seat: Seat,
    pub(crate) disk: RealDisk,
    pub(crate) journal: Writer<RealDisk>,
    /// Replaced as a whole, so that a group can look at it for a turn and holds up nobody.
    pub(crate) liveness: RwLock<Arc<Liveness>>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) shard_map: Bytes,
    pub(crate) region: String,
    pub(crate) zone: String,
    pub(crate) discovery: Discovery,
    pub(crate) regions: BTreeMap<NodeId, String>,
    pub(crate) leader_regions: BTreeMap<GroupId, Vec<Bytes>>,
    pub(crate) snapshot_least_bytes: u64,
    pub(crate) snapshot_slice_bytes: usize,
    /// What this node would set as leader.
    pub(crate) limits: Limits,
    pub(crate) metrics: Metrics,
    pub(crate) gateways: Gateways,
    gauges: Gauges,
    pub(crate) rates: Mutex<Rates<4>>,
    data_dir: PathBuf,
    /// The node wishes to stop: groups hand over.
    pub(crate) stopping: CancellationToken,
    /// The groups have stopped: connections end.
    pub(crate) stopped: CancellationToken,
    groups: Arc<BTreeMap<GroupId, Arc<GroupHandle>>>,
    /// A random number of this process; not 0.
    pub(crate) nonce: u64,
    pub(crate) door: Arc<Door>,
    pub(crate) tls: Option<Arc<tls::Mutual>>,
    pub(crate) distrusts: Distrusts,
    /// Groups for which this node stands in for others still, see [`Durable::survive`].
    surviving: Mutex<BTreeSet<GroupId>>,
    /// Of all groups of the cluster and their first voters, as configured.
    pub(crate) groups_digest: u64,
    /// Reused by whoever steps the liveness.
    liveness_out: Mutex<LivenessOutput>,
    random: RandomState,
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    pub(crate) shared: Arc<Shared>,
    address: SocketAddr,
    groups: TaskTracker,
    others: TaskTracker,
    accepting: JoinHandle<()>,
}

impl Node {
    /// Recovers what the data directory holds and begins to take part. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// See [`StartError`]; nothing has been sent to anybody then.
    pub async fn start(options: NodeOptions) -> Result<Node, StartError> {
        let listener = listen(&options)?;
        let address = listener
            .local_addr()
            .map_err(|source| StartError::Io { action: "read the listening address", source })?;
        let name = options.name.clone();
        if options.insecure {
            warn!(
                node = options.id.0,
                %address,
                "this node is insecure: whoever reaches its port can read and change everything, and take part as a node"
            );
        }
        let recovered = tokio::task::spawn_blocking(move || recover(options))
            .await
            .map_err(|error| StartError::Io { action: "recover", source: io::Error::other(error) })??;
        let shared = Arc::clone(&recovered.shared);
        let groups = TaskTracker::new();
        let others = TaskTracker::new();
        let open = door::open(Arc::clone(&shared), listener, others.clone());
        let accepting = tokio::spawn(abort_on_panic::task("the listener", open));
        if shared.seat.is_taken() {
            take_part(&shared, recovered.starts, &groups, &others);
            if shared.seat.is_unsettled() {
                others.spawn(settle(Arc::clone(&shared)));
            }
        } else {
            let newcomer = come_new(recovered, groups.clone(), others.clone());
            groups.spawn(abort_on_panic::task("the newcomer", newcomer));
        }
        groups.close();
        info!(node = shared.id.0, name, %address, groups = shared.groups.len(), "node up");
        Ok(Node { shared, address, groups, others, accepting })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the node tells about itself while it runs.
    #[must_use]
    pub fn health(&self) -> Health {
        Health { shared: Arc::clone(&self.shared) }
    }

    /// Stops in order: leases are given back, leaders hand over, the journal finishes, connections end.
    pub async fn stop(self) {
        // Before the groups hear of it, so that it is said before any of them hands over.
        self.shared.with_liveness(|liveness, now| liveness.retire(now));
        self.shared.stopping.cancel();
        self.groups.wait().await;
        self.shared.stopped.cancel();
        self.accepting.abort();
        // The port is free once the task is gone.
        let _ = self.accepting.await;
        self.others.close();
        self.others.wait().await;
        info!(node = self.shared.id.0, "node stopped");
    }
}

/// A node's view of itself, for its admin port.
#[derive(Debug, Clone)]
pub struct Health {
    pub(crate) shared: Arc<Shared>,
}

impl Health {
    /// The registry of the node's metrics, as of now.
    #[must_use]
    pub fn metrics(&self) -> &prometheus::Registry {
        let shared = &self.shared;
        shared.gauges.set(&self.status(), &shared.journal.stats(), &shared.data_dir);
        shared.metrics.registry()
    }

    /// Whether the node takes part in full, and its groups have caught up. Whoever stops nodes one after the other waits for
    /// this.
    ///
    /// # Errors
    /// What is missing.
    pub fn check(&self) -> Result<(), Cow<'static, str>> {
        let shared = &self.shared;
        if shared.seat.is_revoked() {
            return Err("the data directory is an old copy, or this node runs twice: see the log".into());
        }
        if shared.stopping.is_cancelled() {
            return Err("stopping".into());
        }
        if shared.seat.is_aside() {
            return Err("another node says that the data directory is an old copy, or that this node runs twice: it takes no \
                        part until that is known, see the log"
                .into());
        }
        if !shared.seat.is_taken() {
            return Err(
                "the data directory is new, and not every other node has answered this one yet".into()
            );
        }
        for group in shared.groups() {
            if let Some(unready) = group.unready() {
                return Err(format!("group {} {unready}", group.id.0).into());
            }
        }
        // Until then a commit that counts its vote needs everybody's.
        if shared.liveness.read().quarantined(clock::now()) {
            return Err("leases that this node may have granted before its restart are not over".into());
        }
        if shared.journal.is_full() {
            return Err("the disk is full".into());
        }
        // Whoever has not found it yet, at another address perhaps, cannot count on it when it is to lead.
        let missing = shared.peers.values().find(|peer| !peer.is_linked());
        if let Some(peer) = missing.filter(|_| shared.started.elapsed() < PEERS_PATIENCE) {
            return Err(format!("node {} is not linked with this one yet", peer.id.0).into());
        }
        Ok(())
    }
}

/// A newcomer takes its place, and then takes part.
async fn come_new(recovered: Recovered, groups: TaskTracker, others: TaskTracker) {
    let Recovered { shared, mut starts } = recovered;
    let Some(taken) = take_place(&shared).await else { return };
    if let Some(incarnation) = taken.returned_as {
        let peers = shared.peers.keys().copied();
        let liveness = Liveness::new(shared.id, peers, incarnation, shared.timing, clock::now());
        *shared.liveness.write() = Arc::new(liveness);
        for (_, start) in &mut starts {
            start.durable.lost_all();
        }
        others.spawn(settle(Arc::clone(&shared)));
    }
    shared.seat.take(taken.roll);
    take_part(&shared, starts, &groups, &others);
}

fn take_part(shared: &Arc<Shared>, starts: Starts, groups: &TaskTracker, others: &TaskTracker) {
    for (handle, start) in starts {
        groups.spawn(abort_on_panic::task("a group", group::run(Arc::clone(shared), handle, start)));
    }
    others.spawn(abort_on_panic::task("the heartbeats", keep_liveness(Arc::clone(shared))));
    others.spawn(abort_on_panic::task("doubts of this node", aside::keep(Arc::clone(shared))));
    others.spawn(keep_rates(Arc::clone(shared)));
    others.spawn(forget_support(Arc::clone(shared)));
    for peer in shared.peers.values().filter(|peer| peer.id < shared.id) {
        let dial = peer::dial(Arc::clone(shared), Arc::clone(peer));
        others.spawn(abort_on_panic::task("the link to a peer", dial));
    }
}

impl Shared {
    /// The incarnation that this node is in.
    pub(crate) fn incarnation(&self) -> u64 {
        self.liveness.read().incarnation()
    }

    /// The newest incarnation of `peer` that was heard, or that a link was made with; 0 for none.
    pub(crate) fn incarnation_heard(&self, peer: NodeId) -> u64 {
        let linked = self.peers.get(&peer).map_or(0, |peer| peer.life_linked_with());
        self.liveness.read().incarnation_of(peer).max(linked)
    }

    /// A peer, and no stranger in its name, has heard a later incarnation of this node, or another process of it.
    pub(crate) fn accused(&self, accuser: Accuser) {
        // The task that waits for it asks the others.
        let _ = self.seat.step_aside(accuser);
    }

    /// Others have heard of a later incarnation of this node: what it did since is not in its directory. It takes no part any
    /// more, with anybody, and cannot be started with this directory again.
    pub(crate) fn revoke(&self) {
        if self.seat.revoke() {
            error!(
                node = self.id.0,
                incarnation = self.incarnation(),
                "this data directory is an old copy, or this node runs twice: a later incarnation of it has been heard. {}",
                journal::EMPTY_IT
            );
            // Connections end before the groups do, so that nothing more is said.
            self.stopped.cancel();
            self.stopping.cancel();
        }
    }

    /// What this node says of itself to `other`.
    pub(crate) fn node_status(&self, other: NodeId) -> NodeStatus {
        self.seat.node_status(other, self.incarnation_heard(other))
    }

    /// A group does not need this node to stand in for others any more.
    pub(crate) fn group_survived(&self, id: GroupId) {
        let mut surviving = self.surviving.lock();
        if surviving.remove(&id) && surviving.is_empty() {
            self.seat.survived();
        }
    }

    pub(crate) fn group(&self, id: GroupId) -> Option<&Arc<GroupHandle>> {
        self.groups.get(&id)
    }

    pub(crate) fn groups(&self) -> impl Iterator<Item = &Arc<GroupHandle>> {
        self.groups.values()
    }

    pub(crate) fn on_group_message(&self, from: NodeId, group: GroupId, message: Message, bytes: usize) {
        if let Err(unreadable) = entries::check_message(&message) {
            self.distrust(from, Some(group), Distrust::Entry, &unreadable);
            return;
        }
        if let Some(group) = self.group(group) {
            // A message dropped here is one lost on the way: the engine repeats what matters.
            group.tell_if_room(Event::Peer { from, message }, bytes);
        }
    }

    /// A heartbeat or an answer to one, on a link that was made with this incarnation of its node, which supports others for
    /// so long; false if it is of another.
    pub(crate) fn on_liveness(
        &self,
        from: NodeId,
        incarnation: u64,
        support: Option<Duration>,
        message: LivenessMessage,
    ) -> bool {
        let spoken = match &message {
            LivenessMessage::Heartbeat(heartbeat) => heartbeat.epoch.incarnation,
            LivenessMessage::HeartbeatAck(ack) => ack.incarnation,
        };
        if spoken != incarnation {
            self.distrust(
                from,
                None,
                Distrust::Incarnation,
                &format_args!("incarnation {spoken}, linked in incarnation {incarnation}"),
            );
            return false;
        }
        if let LivenessMessage::HeartbeatAck(ack) = &message {
            self.metrics.round_trip(from, clock::now().since(ack.sent_at));
        }
        self.with_liveness(|liveness, now| liveness.receive(now, from, support, message));
        true
    }

    /// Tells of a peer that supports others for another time than this node, or does not say for how long. That is safe, see
    /// [`Liveness`]; it is no state to stay in.
    pub(crate) fn compare_support(&self, peer: &Peer, support: Option<Duration>) {
        let own = self.timing.support;
        self.metrics.support_differs(peer.id, support != Some(own));
        if !peer.support_news(own, support) {
            return;
        }
        match support {
            Some(theirs) => warn!(
                peer = peer.id.0,
                ?own,
                ?theirs,
                "a peer has another `timing.support`: leases last as long as who gives them has it; make it the same on all nodes"
            ),
            None => warn!(
                peer = peer.id.0,
                "a peer does not say its `timing.support`, as versions before this one: the two give each other no leases until it is updated"
            ),
        }
    }

    /// A peer has lost its memory, by its own word: what it supported is not counted on.
    pub(crate) fn begins_anew(&self, peer: NodeId) {
        self.with_liveness(|liveness, _| liveness.begins_anew(peer));
    }

    /// The peer's process is gone for certain: its port refuses connections. Its leases still run their time; only
    /// the election may begin at once.
    pub(crate) fn peer_process_gone(&self, peer: NodeId) {
        self.with_liveness(|liveness, _| liveness.disconnected(peer));
    }

    /// The liveness is due.
    pub(crate) fn tick(&self, disk: DiskNews) {
        self.with_liveness(|liveness, now| {
            match disk {
                DiskNews::Progress => liveness.disk_progress(now),
                DiskNews::Nothing => {}
                // Said again with every heartbeat: what the groups tell their peers once may get lost.
                DiskNews::Failed => liveness.disk_failed(now),
            }
            liveness.tick(now);
        });
    }

    /// A number for back-off, so that nodes do not dial in step.
    pub(crate) fn random_u32(&self) -> u32 {
        let mut hasher = self.random.build_hasher();
        hasher.write_u64(clock::now().0);
        (hasher.finish() >> 32) as u32
    }

    /// A pause of at most so long, so that nodes do not ask in step.
    pub(crate) fn up_to(&self, most: Duration) -> Duration {
        Backoff::new(most, most).next(self.random_u32())
    }

    fn with_liveness(&self, step: impl FnOnce(&mut Liveness, Mono)) {
        let mut out = self.liveness_out.lock();
        {
            let mut liveness = self.liveness.write();
            // Sampled under the lock: time must not run backwards for the liveness.
            let liveness = Arc::make_mut(&mut liveness);
            step(liveness, clock::now());
            liveness.poll(&mut out);
        }
        for (to, message) in out.sends.drain(..) {
            if let Some(peer) = self.peers.get(&to) {
                peer.send_liveness(&message);
            }
        }
        for event in out.events.drain(..) {
            for group in self.groups.values() {
                group.tell(Event::Liveness(event));
            }
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("id", &self.id).field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

fn listen(options: &NodeOptions) -> Result<TcpListener, StartError> {
    let io = |source| StartError::Io { action: "listen", source };
    let listener = options.listener.try_clone().map_err(io)?;
    listener.set_nonblocking(true).map_err(io)?;
    TcpListener::from_std(listener).map_err(io)
}

/// What starts, each with its handle.
type Starts = Vec<(Arc<GroupHandle>, Start)>;

/// What was found in the data directory, and what was made of it.
pub(crate) struct Recovered {
    pub(crate) shared: Arc<Shared>,
    pub(crate) starts: Starts,
}

/// Reads the data directory. Blocking.
pub(crate) fn recover(options: NodeOptions) -> Result<Recovered, StartError> {
    let random = RandomState::new();
    let disk = open_disk(&options.data_dir)?;
    if let Some(first) = disk.exposed().first() {
        warn!(
            count = disk.exposed().len(),
            first, "others than this process could read the data; they no longer can"
        );
    }
    // A process that was killed while it took or received a snapshot left a part of it, which may be large.
    journal::Snapshot::remove_unfinished(&disk)?;
    let mut superblock = open_superblock(&disk, &options, &random)?;
    if superblock.facts().revoked {
        return Err(StartError::Config(format!(
            "the data directory {} is an old copy of this node's, or the node ran twice: others have heard a later incarnation of it; {}",
            options.data_dir.display(),
            journal::EMPTY_IT
        )));
    }
    let former_support = superblock.facts().support;
    let incarnation = superblock.begin_incarnation(options.timing.support)?;
    let identity = superblock.facts().identity;

    let mut recovering: BTreeMap<GroupId, Recovering> = BTreeMap::new();
    for (id, voters) in options.groups.iter().filter(|(_, voters)| voters.contains(&options.id)) {
        let config = Config::majority(voters.iter().copied());
        config.check().map_err(|error| {
            StartError::Config(format!("group {}: its voters make no configuration: {error}", id.0))
        })?;
        recovering.insert(
            *id,
            Recovering {
                durable: Durable::bootstrap(config),
                positions: LogPositions::default(),
                highest: Slot(0),
            },
        );
    }
    let mut unreadable = None;
    let mut strangers = BTreeSet::new();
    let journal_options = journal::Options {
        identity,
        segment_bytes: options.journal_segment_bytes,
        must_exist: superblock.facts().journal_made,
        ..journal::Options::default()
    };
    let (mut journal, report) = Journal::open(disk.clone(), journal_options, &mut |found| {
        if let Found::Record { group, .. } | Found::PayloadLost { group, .. } = &found
            && !recovering.contains_key(&GroupId(*group))
        {
            strangers.insert(*group);
        }
        if let Err(error) = replay(&mut recovering, found) {
            unreadable = Some(error);
        }
    })?;
    if let Some(error) = unreadable {
        return Err(StartError::Record(error));
    }
    // Nobody would ever let go of its part of the journal. To drop that here would be worse: should the group come back,
    // this replica would have forgotten what it promised and voted for.
    if !strangers.is_empty() {
        return Err(StartError::Config(format!(
            "the journal in {} holds records of groups {strangers:?}, which the configuration does not place on this \
             node: put them back",
            options.data_dir.display()
        )));
    }
    for damage in &report.damage {
        warn!("{damage}");
    }
    if let Some(torn) = &report.torn_tail {
        info!(
            file = torn.file,
            offset = torn.offset,
            "discarded an unfinished write at the end of the journal"
        );
    }
    if !superblock.facts().journal_made {
        superblock.journal_made()?;
    }
    if superblock.facts().returned {
        forget(&mut superblock, &mut recovering)?;
    }

    let loaded = load_snapshots(&disk, identity)?;
    let surviving =
        if superblock.facts().survivor { recovering.keys().copied().collect() } else { BTreeSet::new() };
    let now = clock::now();
    let mut starts = Vec::new();
    let mut handles = BTreeMap::new();
    for (id, mut found) in recovering {
        let mut snapshot = None;
        // The newest one that is whole; a damaged one has been reported.
        if let Some(slot) = loaded.get(&id).and_then(|slots| slots.last()).copied() {
            let file = journal::SnapshotId { group: id.0, slot: slot.0 };
            match group::load(&disk, identity, file) {
                Ok((config, state)) => {
                    found.durable.snapshot(slot, config);
                    snapshot = Some((slot, state));
                }
                Err(error) => match error.downcast::<journal::Error>() {
                    Ok(error) if error.is_retryable() => return Err((*error).into()),
                    Ok(error) => warn!(group = id.0, slot = slot.0, %error, "a snapshot cannot be used"),
                    Err(error) => warn!(group = id.0, slot = slot.0, %error, "a snapshot cannot be used"),
                },
            }
        }
        same_voters(&options, id, &found.durable)?;
        if let Some(floor) = found.positions.floor() {
            journal.set_floor(id.0, floor);
        }
        if surviving.contains(&id) {
            warn!(
                group = id.0,
                "declared to hold what there is: this node leads once every voter has answered"
            );
            found.durable.survive();
        }
        entries::check_durable(&found.durable)
            .map_err(|error| StartError::Entry { group: id.0, why: error.to_string() })?;
        let seed = random.hash_one((options.id.0, id.0, incarnation));
        let engine_options = Options { timing: options.timing, ..Options::new(id, options.id, seed) };
        let handle = Arc::new(GroupHandle::new(id, voters_of(&options, id)));
        handles.insert(id, Arc::clone(&handle));
        let start =
            Start { options: engine_options, durable: found.durable, snapshot, positions: found.positions };
        starts.push((handle, start));
    }

    let peers: Peers = options
        .nodes
        .iter()
        .filter(|(id, _)| *id != options.id)
        .map(|(id, address)| (*id, Arc::new(Peer::new(*id, address.clone()))))
        .collect();
    let peers = Arc::new(peers);
    let groups = Arc::new(handles);
    let metrics = Metrics::new(options.id, &options.name, &options.region, &options.zone);
    metrics.insecure.set(i64::from(options.insecure));
    let mut liveness = Liveness::new(options.id, peers.keys().copied(), incarnation, options.timing, now);
    liveness.remember(former_support, now);
    let limits = admission::Limits::new(options.descriptors, peers.len(), groups.len());
    let writer = spawn_writer(journal, Arc::clone(&groups), Arc::clone(&peers), metrics.clone())?;
    let shared = Shared {
        id: options.id,
        name: options.name,
        started: Instant::now(),
        gateways: Gateways::default(),
        gauges: Gauges::new(metrics.registry()),
        rates: Mutex::new(Rates::new()),
        data_dir: options.data_dir,
        cluster: options.cluster,
        timing: options.timing,
        identity,
        seat: Seat::new(superblock),
        disk,
        journal: writer,
        liveness: RwLock::new(Arc::new(liveness)),
        peers,
        shard_map: options.shard_map,
        region: options.region,
        zone: options.zone,
        discovery: options.discovery,
        regions: options.regions,
        leader_regions: options
            .leader_regions
            .into_iter()
            .map(|(group, regions)| (group, regions.into_iter().map(Bytes::from).collect()))
            .collect(),
        snapshot_least_bytes: options.snapshot_least_bytes,
        snapshot_slice_bytes: options.snapshot_slice_bytes,
        limits: Limits { quota_bytes: options.quota_bytes, ..Limits::default() },
        door: Arc::new(Door::new(limits, metrics.clone())),
        tls: options.tls,
        metrics,
        stopping: CancellationToken::new(),
        stopped: CancellationToken::new(),
        groups,
        nonce: random.hash_one("process") | 1,
        distrusts: Distrusts::default(),
        surviving: Mutex::new(surviving),
        groups_digest: digest(&options.groups),
        liveness_out: Mutex::new(LivenessOutput::default()),
        random,
    };
    Ok(Recovered { shared: Arc::new(shared), starts })
}

/// Opens the data directory; waits for a while if it is in use. Blocking.
fn open_disk(dir: &Path) -> Result<RealDisk, journal::Error> {
    let begun = Instant::now();
    let mut told = false;
    loop {
        match RealDisk::open(dir) {
            Err(journal::Error::Locked { .. }) if begun.elapsed() < LOCK_TIMEOUT => {
                if !std::mem::replace(&mut told, true) {
                    warn!(dir = %dir.display(), "the data directory is in use: waiting up to {LOCK_TIMEOUT:?} for its process to end");
                }
                std::thread::sleep(LOCK_PAUSE);
            }
            opened => return opened,
        }
    }
}

/// The voters of a group are those it began with, as long as there is no way to change them. A node that began alone, say,
/// is its own quorum, whatever its configuration says now.
fn same_voters(options: &NodeOptions, id: GroupId, durable: &Durable) -> Result<(), StartError> {
    let configured = voters_of(options, id);
    match durable.config() {
        Some(config) if config.voters != configured => Err(StartError::Config(format!(
            "group {} began with the voters {} on this node, the configuration says {configured}: put it back as it was, or \
             {}",
            id.0,
            config.voters,
            journal::EMPTY_IT
        ))),
        Some(_) | None => Ok(()),
    }
}

/// The voters of a group, as configured.
fn voters_of(options: &NodeOptions, id: GroupId) -> NodeSet {
    let configured = options.groups.iter().find(|(group, _)| *group == id);
    configured.into_iter().flat_map(|(_, voters)| voters.iter().copied()).collect()
}

/// A returned node whose process ended before the journal held what was lost of every group.
fn forget(
    superblock: &mut Superblock<RealDisk>,
    recovering: &mut BTreeMap<GroupId, Recovering>,
) -> Result<(), journal::Error> {
    let mut unwritten = recovering.values_mut().filter(|group| group.durable.is_newborn()).peekable();
    if unwritten.peek().is_none() {
        return superblock.settle();
    }
    unwritten.for_each(|group| group.durable.lost_all());
    Ok(())
}

struct Recovering {
    durable: Durable,
    positions: LogPositions,
    /// The highest slot seen so far in the journal.
    highest: Slot,
}

fn open_superblock(
    disk: &RealDisk,
    options: &NodeOptions,
    random: &RandomState,
) -> Result<Superblock<RealDisk>, StartError> {
    let superblock = match Superblock::open(disk.clone())? {
        Some(superblock) => superblock,
        None => {
            let identity = Identity {
                cluster: options.cluster,
                node: u64::from(options.id.0),
                salt: random.hash_one("salt"),
            };
            Superblock::create(disk.clone(), identity, random.hash_one("mark"))?
        }
    };
    let identity = superblock.facts().identity;
    if identity.cluster != options.cluster || identity.node != u64::from(options.id.0) {
        return Err(StartError::Config(format!(
            "the data directory {} belongs to {identity}, the configuration says node {} of cluster {:016x}",
            options.data_dir.display(),
            options.id.0,
            options.cluster
        )));
    }
    Ok(superblock)
}

fn replay(
    recovering: &mut BTreeMap<GroupId, Recovering>,
    found: Found,
) -> Result<(), consensus_core::DecodeError> {
    match found {
        Found::Record { group, lsn, label, payload } => {
            let Some(group) = recovering.get_mut(&GroupId(group)) else { return Ok(()) };
            let record = Record::decode(&label, payload)?;
            if let Record::Vote { slot, .. }
            | Record::Revote { slot, .. }
            | Record::Chosen { slot, .. }
            | Record::Base { slot, .. } = &record
            {
                group.highest = group.highest.max(*slot);
            }
            group.positions.recovered(lsn, &record);
            group.durable.replay(record);
        }
        Found::PayloadLost { group, label, lsn, .. } => {
            let Some(group) = recovering.get_mut(&GroupId(group)) else { return Ok(()) };
            let label = Record::decode_label(&label)?;
            group.positions.recovered_label(lsn, &label);
            group.durable.damaged(&label);
        }
        // Which groups had records there is not known, nor which slots: a vote may be lost for any slot that is not
        // known to be committed, an earlier vote may have been replaced.
        Found::Gap { .. } => {
            for group in recovering.values_mut() {
                group.durable.lost_all();
            }
        }
    }
    Ok(())
}

fn load_snapshots(disk: &RealDisk, identity: Identity) -> Result<BTreeMap<GroupId, Vec<Slot>>, StartError> {
    let mut found: BTreeMap<GroupId, Vec<Slot>> = BTreeMap::new();
    for id in journal::Snapshot::list(disk)? {
        match journal::SnapshotReader::open(disk, identity, id) {
            Ok(_) => found.entry(GroupId(id.group)).or_default().push(Slot(id.slot)),
            Err(error) if error.is_retryable() => return Err(error.into()),
            Err(error) => warn!(group = id.group, slot = id.slot, %error, "a snapshot cannot be used"),
        }
    }
    Ok(found)
}

fn spawn_writer(
    journal: Journal<RealDisk>,
    groups: Arc<BTreeMap<GroupId, Arc<GroupHandle>>>,
    peers: Arc<Peers>,
    metrics: Metrics,
) -> Result<Writer<RealDisk>, StartError> {
    let abort = abort_on_panic::Thread("the journal");
    let writer = Writer::spawn(journal, move |event| {
        // The thread owns the callback, and drops it when it ends.
        let _ = &abort;
        on_journal_event(&groups, &peers, &metrics, event);
    })?;
    Ok(writer)
}

fn on_journal_event(
    groups: &BTreeMap<GroupId, Arc<GroupHandle>>,
    peers: &Peers,
    metrics: &Metrics,
    event: journal::Event,
) {
    match event {
        journal::Event::Completed { group, ticket, lsn } => {
            if let Some(group) = groups.get(&GroupId(group)) {
                group.handle_durable(peers, PersistSeq(ticket.0), lsn);
            }
        }
        journal::Event::Synced { records, bytes, write, sync } => {
            metrics.journal_synced(records, bytes, write, sync)
        }
        journal::Event::Full(full) => {
            let room = if full { Room::None } else { Room::Some };
            for peer in peers.values() {
                peer.send_disk(room);
            }
            if full {
                warn!("the disk is full: writes are refused until there is room again");
            } else {
                info!("the disk has room again");
            }
        }
        journal::Event::DescriptorsShort(short) => {
            if short {
                warn!(
                    "no file can be opened for the journal, since descriptors have run out: what is written waits for one"
                );
            } else {
                info!("files can be opened for the journal again");
            }
        }
        journal::Event::Fenced(error) => {
            error!(%error, "the journal has failed: this node takes no part until it is restarted");
            for group in groups.values() {
                group.tell(Event::PersistFailed);
            }
        }
    }
}

/// Heartbeats and their lapses; and the question who holds old journal segments back.
async fn keep_liveness(shared: Arc<Shared>) {
    let mut disk = DiskWatch::default();
    loop {
        let now = clock::now();
        let deadline = shared.liveness.read().next_deadline();
        tokio::select! {
            () = tokio::time::sleep_until(clock::instant(now, deadline)) => {}
            () = shared.stopped.cancelled() => return,
        }
        let stats = shared.journal.stats();
        shared.tick(disk.look(&stats));
        if shared.journal.is_full() {
            for peer in shared.peers.values() {
                peer.send_disk(Room::None);
            }
        }
        for (group, floor) in stats.pinned {
            if let Some(group) = shared.group(GroupId(group)) {
                group.tell(Event::SnapshotWanted { floor });
            }
        }
    }
}

/// Notes that a longer support of incarnations before is over, once it is.
async fn forget_support(shared: Arc<Shared>) {
    loop {
        let now = clock::now();
        let over = shared.liveness.read().quarantine_until();
        if now >= over {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep_until(clock::instant(now, over)) => {}
            () = shared.stopped.cancelled() => return,
        }
    }
    shared.seat.lower_support(shared.timing.support).await;
}

/// Looks at the counters once a second.
async fn keep_rates(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(SAMPLE_EVERY);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shared.stopped.cancelled() => return,
        }
        let journal = shared.journal.stats();
        let metrics = &shared.metrics;
        let counters = [metrics.commands.get(), metrics.queries.get(), journal.syncs, journal.bytes];
        shared.rates.lock().sample(shared.started.elapsed(), counters);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::testing::{PATIENCE, options};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_node_waits_for_the_one_before_to_let_go_of_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let before = RealDisk::open(dir.path()).unwrap();
        let starting = tokio::spawn(Node::start(options(NodeId(1), &[], dir.path())));
        // It looks at once, and would have failed by then.
        timeout(LOCK_PAUSE * 4, async {
            while !starting.is_finished() {
                tokio::task::yield_now().await
            }
        })
        .await
        .expect_err("it waits");
        drop(before);
        let node = timeout(PATIENCE, starting).await.expect("it starts").unwrap().unwrap();
        node.stop().await;
    }
}
