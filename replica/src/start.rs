//! How a node starts: its options, and what is found in its data directory and made of it.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::gaios::link::PART_BYTES_MAX;
use bytes::{Bytes, BytesMut};
use consensus_core::{
    Config, Durable, GroupId, Liveness, NodeId, NodeSet, Options, PersistSeq, Record, Slot, Timing,
};
use discovery::Discovery;
use group_core::{ApplyShare, Broken, Event, LogPositions, QueryShare, Settings, Start, entries};
use journal::Recovered as Found;
use journal::{Identity, Journal, RealDisk, Superblock, Writer};
use keyspace::{ClusterVersion, Keyspace, Limits, ShardSpan};
use parking_lot::Mutex;
use shard_map::ShardMap;
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::abort_on_panic;
use crate::admission;
use crate::clock;
use crate::distrust::Distrusts;
use crate::door::Door;
use crate::gateways::Gateways;
use crate::gauges::Gauges;
use crate::groups::{GroupHandle, Groups};
use crate::liveness::NodeLiveness;
use crate::metrics::Metrics;
use crate::newcomer::digest;
use crate::peer::{Peer, Peers};
use crate::rates::Rates;
use crate::seat::Seat;
use crate::shared::Shared;
use crate::snapshot_file;
use crate::wire::Room;

/// restarts processes does so at once.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two looks at a directory that is in use.
const LOCK_PAUSE: Duration = Duration::from_millis(50);

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
    /// The shard map that gateways are given, and that groups begin with.
    pub shard_map: ShardMap,
    /// The region this node stands in; empty if that was not said.
    pub region: String,
    /// The zone of the region; empty if that was not said.
    pub zone: String,
    /// Resolves the addresses of peers.
    pub discovery: Discovery,
    /// Memory in bytes that gateways can make the node hold, beside the state.
    pub memory_max: usize,
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

/// A group that is to start.
pub(crate) struct GroupStart {
    pub(crate) handle: Arc<GroupHandle>,
    pub(crate) settings: Settings,
    pub(crate) start: Start,
}

/// What was found in the data directory, and what was made of it.
pub(crate) struct Recovered {
    pub(crate) shared: Arc<Shared>,
    pub(crate) starts: Vec<GroupStart>,
}

/// Reads the data directory. Blocking.
pub(crate) fn recover(options: NodeOptions) -> Result<Recovered, StartError> {
    let random = RandomState::new();
    let (disk, mut superblock) = open_directory(&options, &random)?;
    let former_support = superblock.facts().support;
    let incarnation = superblock.begin_incarnation(options.timing.support)?;
    let identity = superblock.facts().identity;

    let mut recovering = bootstrap(&options)?;
    let mut journal = read_journal(&options, &disk, &mut superblock, &mut recovering)?;
    let loaded = load_snapshots(&disk, identity)?;
    let surviving =
        if superblock.facts().survivor { recovering.keys().copied().collect() } else { BTreeSet::new() };
    let metrics = Metrics::new(options.id, &options.name, &options.region, &options.zone);
    let budget = Arc::new(metrics.budget(options.memory_max));
    let groups = Arc::new(Groups::default());
    let mut starts = Vec::new();
    for (id, mut found) in recovering {
        // The newest one that is whole; a damaged one has been reported.
        let newest = loaded.get(&id).and_then(|slots| slots.last()).copied();
        let snapshot = match newest {
            Some(slot) => load_snapshot(&disk, identity, id, slot)?,
            None => None,
        };
        let snapshot = snapshot.map(|(slot, config, state)| {
            found.durable.snapshot(slot, config);
            (slot, state)
        });
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
        entries::check_durable(ClusterVersion::NEWEST, &found.durable)
            .map_err(|error| StartError::Entry { group: id.0, why: error.to_string() })?;
        let seed = random.hash_one((options.id.0, id.0, incarnation));
        let engine_options = Options { timing: options.timing, ..Options::new(id, options.id, seed) };
        let handle = Arc::new(GroupHandle::new(id, voters_of(&options, id)).within(&budget));
        groups.insert(&handle);
        let settings = settings_of(&options, &handle);
        let start =
            Start { options: engine_options, durable: found.durable, snapshot, positions: found.positions };
        starts.push(GroupStart { handle, settings, start });
    }

    let peers: Peers = options
        .nodes
        .iter()
        .filter(|(id, _)| *id != options.id)
        .map(|(id, address)| (*id, Arc::new(Peer::new(*id, address.clone()))))
        .collect();
    let peers = Arc::new(peers);
    metrics.insecure.set(i64::from(options.insecure));
    let now = clock::now();
    let mut liveness = Liveness::new(options.id, peers.keys().copied(), incarnation, options.timing, now);
    liveness.remember(former_support, now);
    let limits = admission::Limits::new(options.descriptors, peers.len(), starts.len());
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
        seat: Arc::new(Seat::new(superblock)),
        disk,
        journal: writer,
        liveness: NodeLiveness::new(liveness, Arc::clone(&peers), Arc::clone(&groups)),
        peers,
        shard_map: encoded(&options.shard_map),
        region: options.region,
        zone: options.zone,
        discovery: options.discovery,
        door: Arc::new(Door::new(limits, metrics.clone())),
        budget,
        tls: options.tls,
        stopping: CancellationToken::new(),
        stopped: CancellationToken::new(),
        nonce: random.hash_one("process") | 1,
        distrusts: Distrusts::new(Arc::clone(&groups), metrics.clone()),
        groups,
        metrics,
        surviving: Mutex::new(surviving),
        groups_digest: digest(&options.groups),
        random,
    };
    Ok(Recovered { shared: Arc::new(shared), starts })
}

/// The data directory and what its superblock says, which must be what the configuration says.
fn open_directory(
    options: &NodeOptions,
    random: &RandomState,
) -> Result<(RealDisk, Superblock<RealDisk>), StartError> {
    let disk = open_disk(&options.data_dir)?;
    if let Some(first) = disk.exposed().first() {
        warn!(
            count = disk.exposed().len(),
            first, "others than this process could read the data; they no longer can"
        );
    }
    // A process that was killed while it took or received a snapshot left a part of it, which may be large.
    journal::Snapshot::remove_unfinished(&disk)?;
    let superblock = open_superblock(&disk, options, random)?;
    if superblock.facts().revoked {
        return Err(StartError::Config(format!(
            "the data directory {} is an old copy of this node's, or the node ran twice: others have heard a later incarnation of it; {}",
            options.data_dir.display(),
            journal::EMPTY_IT
        )));
    }
    Ok((disk, superblock))
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

/// Bytes of events in a message for a watch: some hundred microseconds of a group's task, and of a link.
const WATCH_PART_BYTES: usize = 256 << 10;

fn settings_of(options: &NodeOptions, handle: &GroupHandle) -> Settings {
    let leader_regions = options.leader_regions.get(&handle.id).cloned().unwrap_or_default();
    Settings {
        group: handle.id,
        node: options.id,
        voters: handle.voters.clone(),
        timing: options.timing,
        limits: Limits { quota_bytes: options.quota_bytes, ..Limits::default() },
        shards: shards_of(&options.shard_map, handle.id),
        shard_map: encoded(&options.shard_map),
        snapshot_least_bytes: options.snapshot_least_bytes,
        snapshot_slice_bytes: options.snapshot_slice_bytes,
        // What is shorter would fill no part.
        large_answer_bytes: PART_BYTES_MAX,
        watch_part_bytes: WATCH_PART_BYTES,
        regions: options.regions.clone(),
        known: ClusterVersion::NEWEST,
        leader_regions: leader_regions.into_iter().map(Bytes::from).collect(),
        queries: QueryShare::default(),
        apply: ApplyShare::default(),
        broken: Broken::default(),
        write_bounds: keyspace::WriteBounds::default(),
        broken_state: keyspace::Broken::default(),
    }
}

fn encoded(map: &ShardMap) -> Bytes {
    let mut encoded = BytesMut::new();
    map.encode(&mut encoded);
    encoded.freeze()
}

/// The shards that a group has by the map.
fn shards_of(map: &ShardMap, group: GroupId) -> Vec<ShardSpan> {
    let owned = map.shards().iter().enumerate().filter(|(_, shard)| shard.group.0 == group.0);
    let spans = owned.map(|(place, shard)| {
        let end = map.span(place).and_then(|span| span.end).map(Bytes::copy_from_slice);
        ShardSpan { id: shard.id, since: map.epoch(), start: shard.start.clone(), end }
    });
    spans.collect()
}

/// The voters of a group, as configured.
fn voters_of(options: &NodeOptions, id: GroupId) -> NodeSet {
    let configured = options.groups.iter().find(|(group, _)| *group == id);
    configured.into_iter().flat_map(|(_, voters)| voters.iter().copied()).collect()
}

/// The groups of this node, as they are before anything of them is read.
fn bootstrap(options: &NodeOptions) -> Result<BTreeMap<GroupId, Recovering>, StartError> {
    let mut recovering = BTreeMap::new();
    for (id, voters) in options.groups.iter().filter(|(_, voters)| voters.contains(&options.id)) {
        let config = Config::majority(voters.iter().copied());
        config.check().map_err(|error| {
            StartError::Config(format!("group {}: its voters make no configuration: {error}", id.0))
        })?;
        let durable = Durable::bootstrap(config);
        recovering.insert(*id, Recovering { durable, positions: LogPositions::default(), highest: Slot(0) });
    }
    Ok(recovering)
}

/// Opens the journal, and gives the groups what it holds.
fn read_journal(
    options: &NodeOptions,
    disk: &RealDisk,
    superblock: &mut Superblock<RealDisk>,
    recovering: &mut BTreeMap<GroupId, Recovering>,
) -> Result<Journal<RealDisk>, StartError> {
    let mut unreadable = None;
    let mut strangers = BTreeSet::new();
    let journal_options = journal::Options {
        identity: superblock.facts().identity,
        segment_bytes: options.journal_segment_bytes,
        must_exist: superblock.facts().journal_made,
        ..journal::Options::default()
    };
    let (journal, report) = Journal::open(disk.clone(), journal_options, &mut |found| {
        if let Found::Record { group, .. } | Found::PayloadLost { group, .. } = &found
            && !recovering.contains_key(&GroupId(*group))
        {
            strangers.insert(*group);
        }
        if let Err(error) = replay(recovering, found) {
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
        forget(superblock, recovering)?;
    }
    Ok(journal)
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

/// A snapshot of a group: what governs the slots above it, and the state. `None` if it cannot be used.
fn load_snapshot(
    disk: &RealDisk,
    identity: Identity,
    group: GroupId,
    slot: Slot,
) -> Result<Option<(Slot, Arc<Config>, Keyspace)>, StartError> {
    let error =
        match snapshot_file::load(disk, identity, journal::SnapshotId { group: group.0, slot: slot.0 }) {
            Ok((config, state)) => return Ok(Some((slot, config, state))),
            Err(error) => match error.downcast::<journal::Error>() {
                Ok(error) if error.is_retryable() => return Err((*error).into()),
                Ok(error) => error,
                Err(error) => error,
            },
        };
    warn!(group = group.0, slot = slot.0, %error, "a snapshot cannot be used");
    Ok(None)
}

fn spawn_writer(
    journal: Journal<RealDisk>,
    groups: Arc<Groups>,
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

fn on_journal_event(groups: &Groups, peers: &Peers, metrics: &Metrics, event: journal::Event) {
    match event {
        journal::Event::Completed { group, ticket, lsn } => {
            if let Some(group) = groups.get(GroupId(group)) {
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
            for group in groups.all().values() {
                group.tell(Event::PersistFailed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::node::Node;
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
