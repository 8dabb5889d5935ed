//! A node: a disk, a clock, and at times a process, which does what a real node's process does. The journal, the
//! superblock, the snapshot files, the liveness and the engines are the real ones.

mod task;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use api::gaios::link::v1 as wire;
use api::gaios::link::v1::refused::Why;
use api::gaios::link::v1::response::Kind;
use bytes::{Bytes, BytesMut};
use consensus_core::{
    Config, Durable, GroupId, Liveness, LivenessEvent, LivenessMessage, LivenessOutput, Mono, Newcomer,
    NodeId, NodeStatus, Options, PersistSeq, Place, Record, Slot, Timing,
};
use group_core::{
    Broken, Event as GroupEvent, LogPositions, Out, Progress, Replica, Settings, Start, Stateless, ToPeer,
    decode_meta, encode_meta, refusal,
};
use journal::sim::CrashChoice;
use journal::{
    DamageKind, Identity, Journal, Lsn, Recovered, SimDisk, Snapshot, SnapshotId, SnapshotReader,
    SnapshotWriter, Superblock,
};
use keyspace::{Keyspace, Limits, Restore, RestoreError, ShardSpan};

use super::clock::{Clock, MICRO, MILLI, SECOND, Time};
use super::coverage::Mark;
use super::env::connections::{connection_of, link_of};
use super::env::{After, Env, trace};
use super::events::{Event, HandOver, NodeEvent};
use super::rng::digest;
use super::truth::{Fact, id};

use task::{Input, Task};

/// By group: the newest snapshot, the slot it was taken at, and the configuration above it.
type Snapshots = BTreeMap<u64, (Slot, Arc<Config>, Keyspace)>;

/// Room of a disk that is not full.
const CAPACITY: u64 = 1 << 30;
/// Batches begin at multiples of this.
const PAGE: usize = 4096;
/// Small, so that a snapshot has several.
const SLICE_BYTES: usize = 400;
/// The cluster that all nodes belong to.
const CLUSTER: u64 = 0x0067_a105;

pub(crate) struct Node {
    pub(crate) index: usize,
    pub(crate) clock: Clock,
    pub(crate) disk: SimDisk,
    /// Counts starts, to recognise events for a former process.
    pub(crate) life: u64,
    pub(crate) process: Option<Box<Process>>,
    /// In place of the process, while it has no place in the cluster.
    pub(crate) newcomer: Option<(Newcomer, Superblock<SimDisk>)>,
    /// Places of the disk to damage before the next start.
    pub(crate) damage_due: u32,
    pub(crate) damaged: bool,
    /// It loses the snapshots of a group before the next start.
    pub(crate) snapshots_lost_due: bool,
    /// It has lost snapshots.
    snapshots_lost: bool,
    /// It cannot start from what its disk holds.
    pub(crate) lost: bool,
    /// How long it supported others before this life, at most, by its superblock.
    former_support: Duration,
    /// Of all its lives.
    incarnations: BTreeSet<u64>,
    /// How often it has lost its whole disk.
    emptied: u64,
    log: WrittenLog,
}

/// What was given to the journal, to compare with what comes back.
#[derive(Default)]
struct WrittenLog {
    records: BTreeMap<Lsn, Written>,
    floors: BTreeMap<u64, Lsn>,
    durable: Lsn,
    /// The first record of the last durable batch.
    last_batch: Lsn,
}

#[derive(Clone, Copy)]
struct Written {
    group: u64,
    digest: u64,
}

/// The process on a node.
pub(crate) struct Process {
    pub(crate) life: u64,
    pub(crate) incarnation: u64,
    /// How long it supports others.
    support: Duration,
    pub(crate) liveness: Liveness,
    liveness_out: LivenessOutput,
    journal: Journal<SimDisk>,
    identity: Identity,
    /// The newcomers it met as one of them, and their marks.
    roll: Vec<(u64, u64)>,
    pub(crate) tasks: Vec<Option<Box<Task>>>,
    /// Groups whose snapshot is lost: they wait for a peer's.
    stateless: BTreeMap<usize, Stateless>,
    /// Handed to the journal and not yet durable.
    handed: VecDeque<(usize, PersistSeq, Lsn)>,
    facts: VecDeque<(Lsn, usize, Fact)>,
    /// A written batch waits for its sync.
    busy: bool,
    pub(crate) full: bool,
    /// The disk is full and will be looked at again.
    retrying: bool,
    pub(crate) fenced: bool,
    syncs: u64,
    syncs_seen: u64,
    stall_disk: Time,
    cut_at_flush: bool,
    tick_at: Time,
    pub(crate) paused: bool,
    backlog: VecDeque<NodeEvent>,
    hand_overs: u64,
}

impl Node {
    pub(crate) fn new(env: &mut Env, index: usize) -> Node {
        let offset = env.rng.below(1 << 50);
        Node {
            index,
            clock: Clock::new(offset, env.profile.rates_ppm[index]),
            disk: SimDisk::new(CAPACITY),
            life: 0,
            process: None,
            newcomer: None,
            damage_due: 0,
            damaged: false,
            snapshots_lost_due: false,
            snapshots_lost: false,
            lost: false,
            incarnations: BTreeSet::new(),
            emptied: 0,
            former_support: Duration::ZERO,
            log: WrittenLog::default(),
        }
    }

    pub(crate) fn now(&self, env: &Env) -> Mono {
        self.clock.local(env.now)
    }

    /// Whether the process runs, is not stopped, and its journal works.
    pub(crate) fn is_well(&self) -> bool {
        self.process.as_ref().is_some_and(|process| !process.fenced)
    }

    /// Power goes out, or only the process ends.
    pub(crate) fn stop(&mut self, env: &mut Env, power: bool) {
        if self.process.take().is_none() & self.newcomer.take().is_none() {
            return;
        }
        trace!(env, "n{} stops, power {power}", self.index + 1);
        env.running &= !(1 << self.index);
        env.node_ended(self.index, power);
        self.disk.fail_syncs(0);
        self.disk.fail_writes(0);
        if power {
            env.mark(Mark::PowerCut);
            let keep = env.rng.pick(&[0, 100_000, 500_000, 900_000, 1_000_000]);
            let tear = env.rng.pick(&[0, 100_000]);
            let rng = &mut env.rng;
            self.disk.crash(&mut |choice| match choice {
                CrashChoice::WholeSector { .. } => !rng.chance(tear),
                CrashChoice::KeepName { .. }
                | CrashChoice::KeepLength { .. }
                | CrashChoice::KeepSector { .. } => rng.chance(keep),
            });
            let uptime = env.rng.below(SECOND);
            self.clock = self.clock.rebooted(env.now, uptime);
        } else {
            env.mark(Mark::ProcessKilled);
            self.disk.restart_process();
        }
    }

    /// Whether it ever took part.
    pub(crate) fn has_had_a_place(&self) -> bool {
        !self.incarnations.is_empty()
    }

    /// The disk is replaced by an empty one.
    pub(crate) fn empty(&mut self, env: &mut Env) {
        self.disk = SimDisk::new(CAPACITY);
        self.log = WrittenLog::default();
        (self.damaged, self.lost) = (true, false);
        self.emptied += 1;
        for truth in &mut env.truths {
            truth.emptied(self.index);
        }
    }

    /// The process starts: recovery through the real code.
    pub(crate) fn start(&mut self, env: &mut Env) {
        if self.process.is_some() || self.newcomer.is_some() || self.lost {
            return;
        }
        self.life += 1;
        for _ in 0..std::mem::take(&mut self.damage_due) {
            self.damage(env);
        }
        if std::mem::take(&mut self.snapshots_lost_due) {
            self.lose_snapshots(env);
        }
        let superblock = match self.open_superblock(env) {
            Ok(superblock) => superblock,
            Err(error) => return self.cannot_start(env, &error),
        };
        if superblock.facts().placed {
            return self.begin(env, superblock);
        }
        let others = (0..env.profile.nodes).filter(|other| *other != self.index).map(id);
        #[cfg_attr(not(feature = "mutants"), expect(unused_mut, reason = "a mutant is set here"))]
        let mut newcomer = Newcomer::new(superblock.facts().mark, others);
        #[cfg(feature = "mutants")]
        {
            newcomer.mutant = super::Mutant::of_engine(env.mutant);
        }
        self.newcomer = Some((newcomer, superblock));
        env.after(0, Event::Ask { node: self.index, life: self.life });
    }

    fn open_superblock(&mut self, env: &mut Env) -> Result<Superblock<SimDisk>, journal::Error> {
        let mut superblock = match Superblock::open(self.disk.clone())? {
            Some(superblock) => superblock,
            None => {
                let salt = env.seed_for(self.index, 0xffff, 0);
                let identity = Identity { cluster: CLUSTER, node: u64::from(id(self.index).0), salt };
                let mark = env.seed_for(self.index, 0xfffe, self.emptied);
                Superblock::create(self.disk.clone(), identity, mark)?
            }
        };
        self.former_support = superblock.facts().support;
        superblock.begin_incarnation(env.support_of(self.index, self.life))?;
        Ok(superblock)
    }

    /// What it says to a newcomer; `None` while it says nothing.
    pub(crate) fn node_status(&self, asking: NodeId) -> Option<NodeStatus> {
        if let Some((newcomer, _)) = &self.newcomer {
            return Some(NodeStatus::Newcomer { mark: newcomer.mark() });
        }
        let process = self.process.as_ref().filter(|process| !process.paused)?;
        let known = process.roll.iter().find(|(node, _)| *node == u64::from(asking.0));
        Some(NodeStatus::Placed {
            known_as: known.map(|(_, mark)| *mark),
            incarnation_heard: process.liveness.incarnation_of(asking),
        })
    }

    /// The newcomer has some answers. Returns whether it has a place now.
    pub(crate) fn try_take_place(&mut self, env: &mut Env) -> bool {
        // Here nodes start again within milliseconds.
        let calendar = 1_000_000 + env.now / (10 * MICRO);
        let Some(place) = self.newcomer.as_ref().and_then(|(newcomer, _)| newcomer.place(calendar)) else {
            return false;
        };
        let Some((newcomer, mut superblock)) = self.newcomer.take() else { return false };
        trace!(env, "n{} takes its place: {place:?}", self.index + 1);
        let roll = newcomer.roll().map(|(node, mark)| (u64::from(node.0), mark)).collect();
        let returned_as = match place {
            Place::Founder => {
                env.mark(Mark::Founded);
                None
            }
            Place::Returned { incarnation } => {
                env.mark(Mark::Returned);
                Some(incarnation)
            }
        };
        match superblock.take_place(roll, returned_as) {
            Ok(()) => self.begin(env, superblock),
            Err(error) => self.cannot_start(env, &error),
        }
        true
    }

    fn begin(&mut self, env: &mut Env, superblock: Superblock<SimDisk>) {
        match self.recover(env, superblock) {
            Ok(process) => {
                self.process = Some(Box::new(process));
                env.running |= 1 << self.index;
                for peer in 0..env.profile.nodes {
                    env.after.push(After::Support { holder: peer, grantor: self.index });
                }
                self.with_process(env, |process, node, env| {
                    process.wake_liveness(node, env);
                    for group in 0..process.tasks.len() {
                        process.turn(node, env, group);
                        process.tick_without_state(node, env, group);
                    }
                });
            }
            Err(error) => self.cannot_start(env, &error),
        }
    }

    fn cannot_start(&mut self, env: &mut Env, error: &journal::Error) {
        if matches!(error, journal::Error::Full { .. }) {
            let node = self.index;
            env.after(200 * MILLI, Event::Start { node });
        } else if self.damaged {
            trace!(env, "n{} cannot start: {error}", self.index + 1);
            self.lost = true;
        } else {
            env.fail("recovery", format!("node {} cannot start: {error}", self.index + 1));
        }
    }

    /// The disk loses something that it had synced. The last batch is never erased whole: without a descriptor and
    /// without a later batch, nothing tells it from one that was never synced.
    fn damage(&mut self, env: &mut Env) {
        let Ok(names) = journal::Disk::list(&self.disk) else { return };
        let segments: Vec<&String> = names.iter().filter(|name| name.starts_with("segment-")).collect();
        for _ in 0..30 {
            if segments.is_empty() {
                return;
            }
            // What matters most lies near the end.
            let recent = segments.len().saturating_sub(1 + env.rng.index(3));
            let name = if env.rng.below(4) == 0 { env.rng.pick(&segments) } else { segments[recent] };
            let Some(contents) = self.disk.contents(name) else { continue };
            let Some(used) = contents.iter().rposition(|byte| *byte != 0) else { continue };
            let from = if env.rng.flip() { used.saturating_sub(6 * PAGE) } else { 0 };
            let offset = env.rng.range(from as u64, used as u64);
            let pages = if env.rng.flip() { 0 } else { 1 + env.rng.below(3) };
            let disk = self.disk.fork();
            match (pages, env.rng.below(3)) {
                (0, 0) => {
                    disk.flip(name, offset, (offset % 8) as u8);
                }
                (0, 1) => {
                    disk.zero_sector(name, offset);
                }
                (0, _) => {
                    disk.make_unreadable(name, offset);
                }
                (pages, _) => {
                    let start = offset / PAGE as u64 * PAGE as u64;
                    for sector in 0..pages * PAGE as u64 / 512 {
                        disk.zero_sector(name, start + sector * 512);
                    }
                }
            }
            if self.shows_last_batch(env, &disk) {
                trace!(env, "n{} disk damaged in {name} at {offset}, pages {pages}", self.index + 1);
                self.disk = disk;
                self.damaged = true;
                return;
            }
        }
    }

    /// The snapshot files of some group are gone.
    fn lose_snapshots(&mut self, env: &mut Env) {
        let group = env.rng.index(env.profile.groups.len()) as u64;
        let Ok(snapshots) = Snapshot::list(&self.disk) else { return };
        for snapshot in snapshots.into_iter().filter(|snapshot| snapshot.group == group) {
            trace!(env, "n{} loses {snapshot:?}", self.index + 1);
            let name = format!("snapshot-{:016x}-{:016x}", snapshot.group, snapshot.slot);
            if journal::Disk::remove(&self.disk, &name).is_err()
                || journal::Disk::sync_dir(&self.disk).is_err()
            {
                env.fail("recovery", format!("{name} is not there"));
            }
            self.snapshots_lost = true;
        }
    }

    /// Whether recovery from `disk` knows that there were records in the last durable batch.
    fn shows_last_batch(&self, env: &Env, disk: &SimDisk) -> bool {
        let disk = disk.fork();
        let Ok(Some(superblock)) = Superblock::open(disk.clone()) else { return false };
        let options = journal_options(env, superblock.facts().identity, true);
        let mut shown = false;
        let opened = Journal::open(disk, options, &mut |found| {
            shown |= match found {
                Recovered::Record { lsn, .. } | Recovered::PayloadLost { lsn, .. } => {
                    lsn >= self.log.last_batch
                }
                Recovered::Gap { end, .. } => end > self.log.last_batch,
            };
        });
        opened.is_ok() && shown
    }

    fn recover(
        &mut self,
        env: &mut Env,
        mut superblock: Superblock<SimDisk>,
    ) -> Result<Process, journal::Error> {
        let index = self.index;
        let incarnation = superblock.facts().incarnation;
        if !self.incarnations.insert(incarnation) {
            env.fail("I8", format!("node {}: a second life has number {incarnation}", index + 1));
        }
        let identity = superblock.facts().identity;

        let options = journal_options(env, identity, superblock.facts().journal_made);
        let mut found = Vec::new();
        let (mut journal, report) =
            Journal::open(self.disk.clone(), options, &mut |recovered| found.push(recovered))?;
        if !superblock.facts().journal_made {
            superblock.journal_made()?;
        }
        self.mark_report(env, &report);
        self.check_recovered(env, &found, journal.head());

        let mut recovering = BTreeMap::new();
        for (group, config) in env.profile.groups.iter().enumerate() {
            if config.voters.contains(id(index)) {
                recovering
                    .insert(group as u64, (Durable::bootstrap(config.clone()), LogPositions::default()));
            }
        }
        for group in 0..env.truths.len() {
            env.truths[group].restarted(index);
        }
        for recovered in found {
            self.replay(env, &mut recovering, recovered);
        }
        if superblock.facts().returned {
            let groups = recovering.values_mut().map(|(durable, _)| durable);
            groups.filter(|durable| durable.is_newborn()).for_each(Durable::lost_all);
        }

        let now = self.now(env);
        let peers = (0..env.profile.nodes).filter(|peer| *peer != index).map(id);
        let support = env.support_of(index, self.life);
        let timing = Timing { support, ..env.profile.timing };
        let mut liveness = Liveness::new(id(index), peers, incarnation, timing, now);
        liveness.remember(self.former_support, now);
        let mut snapshots = self.load_snapshots(env, identity)?;
        let mut stateless = BTreeMap::new();
        let mut tasks: Vec<Option<Box<Task>>> = (0..env.profile.groups.len()).map(|_| None).collect();
        for (group, (mut durable, mut positions)) in recovering {
            let mut newest = None;
            if let Some((slot, config, state)) = snapshots.remove(&group) {
                durable.snapshot(slot, config);
                env.truths[group as usize].snapshot_durable(index, slot);
                newest = Some((slot, state));
            }
            if let Some(floor) = positions.floor() {
                journal.set_floor(group, floor);
                self.log.floors.insert(group, floor);
            }
            let options = Options {
                timing: env.profile.timing,
                retain_slots: env.profile.retain_slots,
                inflight_slots_max: env.profile.inflight_slots,
                queue_bytes_max: env.profile.queue_bytes,
                #[cfg(feature = "mutants")]
                mutant: super::Mutant::of_engine(env.mutant),
                ..Options::new(GroupId(group), id(index), env.seed_for(index, group as usize, incarnation))
            };
            let settings = Settings {
                group: GroupId(group),
                node: id(index),
                voters: env.truths[group as usize].config().voters.clone(),
                timing: env.profile.timing,
                limits: Limits::default(),
                shards: vec![ShardSpan::whole()],
                shard_map: Bytes::new(),
                snapshot_least_bytes: env.profile.snapshot_bytes as u64,
                snapshot_slice_bytes: SLICE_BYTES,
                regions: BTreeMap::new(),
                leader_regions: Vec::new(),
                broken: broken(env),
                broken_state: broken_state(env),
            };
            let start = Start { options, durable, snapshot: newest, positions };
            let group = group as usize;
            if let Some(base) = start.lacks_state() {
                if !self.snapshots_lost {
                    let detail = format!("node {} group {group}: no snapshot for {base:?}", index + 1);
                    env.fail("recovery", detail);
                }
                stateless.insert(group, Stateless::new(settings, start, base, now));
                continue;
            }
            tasks[group] = Some(begin_task(env, index, group, Replica::new(settings, start, now)));
        }
        Ok(Process {
            life: self.life,
            incarnation,
            support,
            liveness,
            liveness_out: LivenessOutput::default(),
            journal,
            identity,
            roll: superblock.facts().roll.clone(),
            tasks,
            stateless,
            handed: VecDeque::new(),
            facts: VecDeque::new(),
            busy: false,
            full: false,
            retrying: false,
            fenced: false,
            syncs: 0,
            syncs_seen: 0,
            stall_disk: 0,
            cut_at_flush: false,
            tick_at: Time::MAX,
            paused: false,
            backlog: VecDeque::new(),
            hand_overs: 0,
        })
    }

    fn mark_report(&self, env: &mut Env, report: &journal::Report) {
        if report.torn_tail.is_some() {
            env.mark(Mark::TornTail);
        }
        for damage in &report.damage {
            trace!(env, "n{} journal: {damage}", self.index + 1);
            match damage.kind {
                DamageKind::PayloadLost { .. } => env.mark(Mark::PayloadLost),
                DamageKind::DescriptorLost { .. } | DamageKind::SegmentMissing { .. } => {
                    env.mark(Mark::DescriptorLost)
                }
                DamageKind::DescriptorRepaired { .. } => env.mark(Mark::DescriptorRepaired),
                DamageKind::HeaderDamaged | DamageKind::SegmentCut { .. } | DamageKind::Unreadable => {}
            }
        }
    }

    /// What was synced and is still needed comes back byte for byte, or is reported as lost; nothing else comes back.
    fn check_recovered(&mut self, env: &mut Env, found: &[Recovered], head: Lsn) {
        let node = self.index + 1;
        let mut whole = BTreeMap::new();
        let mut gaps = Vec::new();
        let mut lost = Vec::new();
        for recovered in found {
            match recovered {
                Recovered::Record { group, lsn, label, payload } => {
                    let digest = digest(digest(*group, label), payload);
                    match self.log.records.get(lsn) {
                        Some(written) if written.group == *group && written.digest == digest => {}
                        Some(_) => env.fail("journal", format!("node {node}: {lsn} is not what was written")),
                        None if *lsn < self.log.oldest() => {}
                        None => env.fail("journal", format!("node {node}: {lsn} was never written")),
                    }
                    whole.insert(*lsn, Written { group: *group, digest });
                }
                Recovered::PayloadLost { lsn, .. } => lost.push(*lsn),
                Recovered::Gap { first, end } => gaps.push(*first..*end),
            }
        }
        for (lsn, written) in self.log.records.range(..=self.log.durable) {
            let floor = self.log.floors.get(&written.group).copied().unwrap_or_default();
            if *lsn < floor || whole.contains_key(lsn) {
                continue;
            }
            let told = lost.contains(lsn) || gaps.iter().any(|gap| gap.contains(lsn));
            if !told || !self.damaged {
                env.fail(
                    "journal",
                    format!(
                        "node {node}: {lsn} of group {}, synced, {}",
                        written.group,
                        if told {
                            "is reported as lost on an undamaged disk"
                        } else {
                            "is gone without a word"
                        }
                    ),
                );
                break;
            }
        }
        self.log.records = whole;
        let durable = Lsn(head.0.saturating_sub(1));
        if durable > self.log.durable {
            // A batch that nobody was told of survived.
            self.log.last_batch = Lsn(self.log.durable.0 + 1);
        }
        self.log.durable = durable;
        self.log.floors.clear();
    }

    fn replay(
        &self,
        env: &mut Env,
        recovering: &mut BTreeMap<u64, (Durable, LogPositions)>,
        found: Recovered,
    ) {
        let index = self.index;
        match found {
            Recovered::Record { group, lsn, label, payload } => {
                let Some((durable, positions)) = recovering.get_mut(&group) else { return };
                match Record::decode(&label, payload) {
                    Ok(record) => {
                        let fact = Fact::of(&record);
                        positions.recovered(lsn, &record);
                        durable.replay(record);
                        let check = env.truths[group as usize].durable(index, fact);
                        env.note(check);
                    }
                    Err(error) => env.fail("codec", format!("node {}: record {lsn}: {error}", index + 1)),
                }
            }
            Recovered::PayloadLost { group, lsn, label } => {
                let Some((durable, positions)) = recovering.get_mut(&group) else { return };
                match Record::decode_label(&label) {
                    Ok(label) => {
                        positions.recovered_label(lsn, &label);
                        durable.damaged(&label);
                        let check = env.truths[group as usize].durable(index, Fact::of_label(&label));
                        env.note(check);
                    }
                    Err(error) => env.fail("codec", format!("node {}: label of {lsn}: {error}", index + 1)),
                }
            }
            Recovered::Gap { .. } => {
                for (durable, _) in recovering.values_mut() {
                    durable.lost_all();
                }
            }
        }
    }

    /// The newest whole snapshot of each group.
    fn load_snapshots(&self, env: &mut Env, identity: Identity) -> Result<Snapshots, journal::Error> {
        let mut newest = BTreeMap::new();
        for snapshot in Snapshot::list(&self.disk)? {
            let reader = SnapshotReader::open(&self.disk, identity, snapshot)?;
            let mut slices = Vec::new();
            for index in 0..reader.slices() {
                slices.extend(reader.slice(index)?);
            }
            let (Ok(config), Ok(state)) = (decode_meta(reader.meta()), restore(slices)) else {
                env.fail("recovery", format!("node {}: {snapshot:?} cannot be decoded", self.index + 1));
                continue;
            };
            let slot = Slot(snapshot.slot);
            let check = env.truths[snapshot.group as usize].check_digest(self.index, slot, state.digest());
            env.note(check);
            newest.insert(snapshot.group, (slot, Arc::new(config), state));
        }
        Ok(newest)
    }

    /// Lets the process do something, if there is one.
    pub(crate) fn with_process(
        &mut self,
        env: &mut Env,
        act: impl FnOnce(&mut Process, &mut Node, &mut Env),
    ) {
        if let Some(mut process) = self.process.take() {
            act(&mut process, self, env);
            self.process = Some(process);
        }
    }

    pub(crate) fn handle(&mut self, env: &mut Env, life: Option<u64>, event: NodeEvent) {
        if life.is_some_and(|life| life != self.life) {
            return;
        }
        self.with_process(env, |process, node, env| process.handle(node, env, event));
    }
}

impl WrittenLog {
    fn oldest(&self) -> Lsn {
        self.records.first_key_value().map_or(Lsn(0), |(lsn, _)| *lsn)
    }
}

impl Process {
    fn handle(&mut self, node: &mut Node, env: &mut Env, event: NodeEvent) {
        if self.paused {
            #[expect(clippy::wildcard_enum_match_arm, reason = "whatever else comes waits")]
            match event {
                NodeEvent::Resume => {
                    trace!(env, "n{} resumes", node.index + 1);
                    self.paused = false;
                    while let Some(event) = self.backlog.pop_front() {
                        self.handle(node, env, event);
                        if self.paused {
                            return;
                        }
                    }
                }
                event => self.backlog.push_back(event),
            }
            return;
        }
        match event {
            NodeEvent::Message { from, incarnation, group, message } => {
                env.arrived(from, node.index, group, &message);
                if self.liveness.incarnation_of(id(from)) > incarnation {
                    env.mark(Mark::MessageFromFormerLife);
                }
                self.event(node, env, group, GroupEvent::Peer { from: id(from), message });
            }
            NodeEvent::Liveness { from, support, message } => {
                let holder = match message {
                    LivenessMessage::Heartbeat(_) => After::Support { holder: from, grantor: node.index },
                    LivenessMessage::HeartbeatAck(_) => After::Support { holder: node.index, grantor: from },
                };
                env.after.push(holder);
                self.with_liveness(node, env, |liveness, now| {
                    liveness.receive(now, id(from), Some(support), message);
                });
            }
            NodeEvent::Watch { watcher, attempt, group, call } => {
                self.input(node, env, group, Input::Watch { watcher, attempt, call });
            }
            NodeEvent::Request(request) => self.input(node, env, request.group, Input::Request(request)),
            NodeEvent::Dialled(connection) => env.welcome(connection, self.life),
            NodeEvent::GatewayFrame { connection, frame } => {
                for batch in frame.groups {
                    self.gateway_requests(node, env, connection, batch);
                }
            }
            NodeEvent::GatewayGone(connection) => {
                for group in 0..self.tasks.len() {
                    self.event(node, env, group, GroupEvent::LinkClosed(link_of(connection)));
                }
            }
            NodeEvent::Map { group, map } => {
                if let Some(shard_map) = env.maps.learn(node.index, group, map) {
                    let kind = Some(Kind::ShardMap(wire::ShardMapUpdate { shard_map }));
                    let response = wire::Response { id: group as u64, term: 0, kind };
                    env.send_to_gateways_of(node.index, &response);
                }
            }
            NodeEvent::Disconnected(peer) => {
                self.with_liveness(node, env, |liveness, _| liveness.disconnected(id(peer)));
            }
            NodeEvent::Tick => {
                self.tick_at = Time::MAX;
                self.tick(node, env);
            }
            NodeEvent::Timer(group) => {
                self.tick_without_state(node, env, group);
                if let Some(task) = &mut self.tasks[group] {
                    task.timer_at = Time::MAX;
                    if !task.is_blocked() {
                        self.turn(node, env, group);
                    }
                }
            }
            NodeEvent::Turn(group) => {
                if let Some(task) = &mut self.tasks[group] {
                    task.turn_at = None;
                }
                self.turn(node, env, group);
            }
            NodeEvent::Synced => self.synced(node, env),
            NodeEvent::RetryFlush => {
                self.retrying = false;
                self.flush(node, env);
                self.maintain(node, env);
            }
            NodeEvent::Fenced => {
                for group in 0..self.tasks.len() {
                    self.event(node, env, group, GroupEvent::PersistFailed);
                }
            }
            NodeEvent::SnapshotWritten { group, slot } => self.finish_snapshot(node, env, group, slot),
            NodeEvent::SnapshotArrived(hand_over) => self.receive_snapshot(node, env, *hand_over),
            NodeEvent::SnapshotSent { group, to, number } => {
                self.input(node, env, group, Input::SnapshotSent { to: id(to), number });
            }
            NodeEvent::Snapshot { group, progress } => {
                self.event(node, env, group, GroupEvent::Snapshot(progress));
            }
            NodeEvent::PeerDisk { from, full } => {
                for group in 0..self.tasks.len() {
                    self.event(node, env, group, GroupEvent::PeerDisk { node: id(from), full });
                }
            }
            NodeEvent::FromPeer { from, group, what } => {
                let by = id(from);
                let event = match what {
                    ToPeer::DigestAsked(slot) => GroupEvent::DigestAsked { by, slot },
                    ToPeer::Digest(slot, digest) => GroupEvent::DigestTold { by, slot, digest },
                    ToPeer::SnapshotRequest(at_least) => GroupEvent::SnapshotRequested { by, at_least },
                };
                self.event(node, env, group, event);
            }
            NodeEvent::Transfer { group, to } => self.input(node, env, group, Input::Transfer { to }),
            NodeEvent::Retire => {
                self.with_liveness(node, env, |liveness, now| liveness.retire(now));
                for group in 0..self.tasks.len() {
                    self.event(node, env, group, GroupEvent::Stop);
                }
            }
            NodeEvent::SnapshotWanted(group) => {
                self.event(node, env, group, GroupEvent::SnapshotWanted { floor: Lsn(0) });
            }
            NodeEvent::Pause(time) => {
                trace!(env, "n{} paused for {} ms", node.index + 1, time / MILLI);
                env.mark(Mark::ProcessPaused);
                self.paused = true;
                let at = env.now + time;
                env.node_at(at, node.index, self.life, NodeEvent::Resume);
            }
            NodeEvent::Resume => {}
            NodeEvent::Stall { group, before_step, time } => {
                if let Some(task) = &mut self.tasks[group] {
                    task.arm(before_step, time);
                }
            }
            NodeEvent::CutAtFlush => self.cut_at_flush = true,
            NodeEvent::StallDisk(time) => self.stall_disk = time,
        }
    }

    /// Requests of a gateway for one group.
    fn gateway_requests(
        &mut self,
        node: &mut Node,
        env: &mut Env,
        connection: u64,
        batch: wire::GroupRequests,
    ) {
        let link = link_of(connection);
        let group = batch.group as usize;
        if self.tasks.get(group).is_some_and(Option::is_some) || self.stateless.contains_key(&group) {
            self.input(node, env, group, Input::Gateway { link, requests: batch.requests });
        } else {
            let refuse = |request: wire::Request| refusal(request.id, 0, Why::NoGroup, None);
            env.send_to_gateway(connection, batch.requests.into_iter().map(refuse).collect());
        }
    }

    /// Something comes in for a group.
    fn input(&mut self, node: &mut Node, env: &mut Env, group: usize, input: Input) {
        let Some(task) = &mut self.tasks[group] else {
            return self.input_without_state(node, env, group, input);
        };
        task.inbox.push_back(input);
        if task.is_blocked() {
            return;
        }
        if env.rng.chance(env.profile.gather_ppm) {
            let at = env.now + env.rng.below(2 * MILLI);
            task.turn_at = Some(at);
            env.node_at(at, node.index, self.life, NodeEvent::Turn(group));
        } else {
            self.turn(node, env, group);
        }
    }

    /// Something comes in for a group that waits for a peer's snapshot.
    fn input_without_state(&mut self, node: &mut Node, env: &mut Env, group: usize, input: Input) {
        let Some(waiting) = self.stateless.remove(&group) else { return };
        let event = match input {
            Input::Event(event) => event,
            Input::Gateway { link, requests } => GroupEvent::Requests { link, requests },
            // Clients of nodes ask elsewhere after a while.
            Input::Request(_) | Input::Watch { .. } | Input::SnapshotSent { .. } | Input::Transfer { .. } => {
                self.stateless.insert(group, waiting);
                return;
            }
        };
        let mut out = Out::default();
        match waiting.step(node.now(env), event, &mut out) {
            Ok(replica) => {
                env.mark(Mark::BegunWithAPeersSnapshot);
                self.tasks[group] = Some(begin_task(env, node.index, group, replica));
                self.turn(node, env, group);
            }
            Err(waiting) => drop(self.stateless.insert(group, waiting)),
        }
        self.carry_out_without_state(node, env, group, out);
    }

    /// A group that waits for a peer's snapshot asks for it.
    fn tick_without_state(&mut self, node: &Node, env: &mut Env, group: usize) {
        let Some(waiting) = self.stateless.get_mut(&group) else { return };
        let mut out = Out::default();
        waiting.tick(node.now(env), &mut out);
        let at = node.clock.when(waiting.deadline(), env.now).max(env.now + MICRO);
        env.node_at(at, node.index, self.life, NodeEvent::Timer(group));
        self.carry_out_without_state(node, env, group, out);
    }

    fn carry_out_without_state(&self, node: &Node, env: &mut Env, group: usize, out: Out) {
        for (to, what) in out.to_peers {
            env.tell_peer(node.index, group, to, what);
        }
        for answer in out.answers {
            if let Some(connection) = connection_of(answer.link) {
                env.send_to_gateway(connection, answer.responses);
            }
        }
    }

    fn event(&mut self, node: &mut Node, env: &mut Env, group: usize, event: GroupEvent) {
        self.input(node, env, group, Input::Event(event));
    }

    pub(crate) fn turn(&mut self, node: &mut Node, env: &mut Env, group: usize) {
        if let Some(mut task) = self.tasks[group].take() {
            task.turn(self, node, env);
            self.tasks[group] = Some(task);
        }
    }

    fn with_liveness(&mut self, node: &mut Node, env: &mut Env, step: impl FnOnce(&mut Liveness, Mono)) {
        step(&mut self.liveness, node.now(env));
        let mut out = std::mem::take(&mut self.liveness_out);
        self.liveness.poll(&mut out);
        for (to, message) in out.sends.drain(..) {
            env.send_liveness(node.index, self.support, to, message);
        }
        for event in out.events.drain(..) {
            self.tell_groups(node, env, event);
        }
        self.liveness_out = out;
        self.wake_liveness(node, env);
    }

    fn tell_groups(&mut self, node: &mut Node, env: &mut Env, event: LivenessEvent) {
        trace!(env, "n{} {event:?}", node.index + 1);
        for group in 0..self.tasks.len() {
            self.event(node, env, group, GroupEvent::Liveness(event));
        }
    }

    pub(crate) fn wake_liveness(&mut self, node: &Node, env: &mut Env) {
        let at = node.clock.when(self.liveness.next_deadline(), env.now);
        if at < self.tick_at {
            self.tick_at = at;
            env.node_at(at, node.index, self.life, NodeEvent::Tick);
        }
    }

    fn tick(&mut self, node: &mut Node, env: &mut Env) {
        if self.liveness.next_deadline() > node.now(env) {
            self.wake_liveness(node, env);
            return;
        }
        let stats = self.journal.stats();
        let idle = stats.durable.0 + 1 >= stats.head.0 && stats.staged_bytes == 0;
        let progressed = !self.fenced && (idle || self.syncs > self.syncs_seen);
        self.syncs_seen = self.syncs;
        self.with_liveness(node, env, |liveness, now| {
            if progressed {
                liveness.disk_progress(now);
            }
            liveness.tick(now);
        });
        for (group, floor) in self.journal.pinned() {
            self.event(node, env, group as usize, GroupEvent::SnapshotWanted { floor });
        }
        if self.full {
            env.tell_disk(node.index, true);
        }
    }

    /// A group's records go to the journal. False when it takes none.
    pub(crate) fn hand_in(
        &mut self,
        node: &mut Node,
        env: &mut Env,
        group: usize,
        records: &mut Vec<(PersistSeq, Record)>,
    ) -> bool {
        let Some((last, _)) = records.last() else { return true };
        let ticket = *last;
        let mut label = Vec::new();
        let mut end = Lsn(0);
        for (_, record) in records.drain(..) {
            label.clear();
            record.label(&mut label);
            let mut payload = BytesMut::with_capacity(record.payload_len());
            record.payload(|piece| payload.extend_from_slice(piece));
            let payload = payload.freeze();
            let digest = digest(digest(group as u64, &label), &payload);
            match self.journal.append(group as u64, &label, &[payload]) {
                Ok(lsn) => end = lsn,
                Err(journal::Error::Fenced) => return false,
                Err(error) => {
                    env.fail("journal", format!("node {}: append: {error}", node.index + 1));
                    return false;
                }
            }
            let fact = Fact::of(&record);
            trace!(env, "n{} g{group} writes {end} {fact:?}", node.index + 1);
            let check = env.truths[group].staged(node.index, fact);
            env.note(check);
            self.facts.push_back((end, group, fact));
            node.log.records.insert(end, Written { group: group as u64, digest });
        }
        self.handed.push_back((group, ticket, end));
        self.flush(node, env);
        true
    }

    fn flush(&mut self, node: &mut Node, env: &mut Env) {
        if self.busy || self.fenced || !self.journal.has_staged() {
            return;
        }
        match self.journal.flush() {
            Ok(_) => {
                self.busy = true;
                let stall = std::mem::take(&mut self.stall_disk);
                if stall > 0 && !env.healed {
                    env.mark(Mark::DiskStalled);
                }
                let latency =
                    if env.healed { MILLI } else { env.rng.around(env.profile.sync_latency) + stall };
                let at = env.now + latency;
                env.node_at(at, node.index, self.life, NodeEvent::Synced);
                if std::mem::take(&mut self.cut_at_flush) && !env.healed {
                    env.mark(Mark::PowerCutDuringSync);
                    let at = env.now + env.rng.below(latency);
                    let (index, life) = (node.index, self.life);
                    env.at(at, Event::Stop { node: index, life, power: true });
                    let down = env.rng.around(400 * MILLI);
                    env.at(at + down, Event::Start { node: index });
                }
            }
            Err(error) => self.on_journal_error(node, env, &error),
        }
    }

    fn on_journal_error(&mut self, node: &mut Node, env: &mut Env, error: &journal::Error) {
        trace!(env, "n{} journal: {error}", node.index + 1);
        if error.is_retryable() {
            self.look_for_room(node, env);
            return;
        }
        if self.fenced {
            return;
        }
        env.mark(Mark::Fenced);
        self.fenced = true;
        let at = env.now;
        env.node_at(at, node.index, self.life, NodeEvent::Fenced);
        // Somebody looks after it and starts it again.
        let at = env.now + env.rng.around(800 * MILLI);
        let power = env.rng.flip();
        env.at(at, Event::Stop { node: node.index, life: self.life, power });
        let node = node.index;
        env.at(at + 100 * MILLI, Event::Start { node });
    }

    fn synced(&mut self, node: &mut Node, env: &mut Env) {
        self.busy = false;
        match self.journal.sync() {
            Ok(durable) => {
                self.syncs += 1;
                if durable > node.log.durable {
                    node.log.last_batch = Lsn(node.log.durable.0 + 1);
                }
                node.log.durable = durable;
                while let Some((_, group, fact)) = self.facts.pop_front_if(|(lsn, ..)| *lsn <= durable) {
                    let check = env.truths[group].durable(node.index, fact);
                    env.note(check);
                }
                let mut done: Vec<(usize, PersistSeq, Lsn)> = Vec::new();
                while let Some(handed) = self.handed.pop_front_if(|(.., lsn)| *lsn <= durable) {
                    done.push(handed);
                }
                self.flush(node, env);
                for (group, upto, lsn) in done {
                    if let Some(task) = &mut self.tasks[group]
                        && task.durable(self.incarnation, node, env, upto, lsn)
                        && !task.is_blocked()
                    {
                        self.turn(node, env, group);
                    }
                }
                self.maintain(node, env);
            }
            Err(error) => self.on_journal_error(node, env, &error),
        }
    }

    /// The work that a writer does when it has time.
    fn maintain(&mut self, node: &mut Node, env: &mut Env) {
        for _ in 0..2 {
            let spares = self.journal.stats().spares;
            let more = self.journal.maintain();
            if self.journal.stats().spares > spares {
                env.mark(Mark::SegmentRecycled);
            }
            match more {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    self.on_journal_error(node, env, &error);
                    break;
                }
            }
        }
        self.look_for_room(node, env);
    }

    /// While the disk is full, it is looked at again and again.
    fn look_for_room(&mut self, node: &Node, env: &mut Env) {
        let full = self.journal.stats().full && !self.fenced;
        if full != self.full {
            env.tell_disk(node.index, full);
        }
        if full && !self.full {
            trace!(env, "n{} disk full", node.index + 1);
            env.mark(Mark::DiskFull);
        }
        self.full = full;
        if full && !self.retrying {
            self.retrying = true;
            let at = env.now + 100 * MILLI;
            env.node_at(at, node.index, self.life, NodeEvent::RetryFlush);
        }
    }

    pub(crate) fn set_floor(&mut self, node: &mut Node, group: usize, floor: Lsn) {
        self.journal.set_floor(group as u64, floor);
        node.log.floors.insert(group as u64, floor);
    }

    /// Begins the file of a snapshot.
    pub(crate) fn begin_snapshot(
        &mut self,
        node: &Node,
        group: usize,
        slot: Slot,
        config: &Config,
    ) -> Result<SnapshotWriter<SimDisk>, journal::Error> {
        let snapshot = SnapshotId { group: group as u64, slot: slot.0 };
        SnapshotWriter::create(node.disk.clone(), self.identity, snapshot, &encode_meta(config))
    }

    fn finish_snapshot(&mut self, node: &mut Node, env: &mut Env, group: usize, slot: Slot) {
        let Some(task) = &mut self.tasks[group] else { return };
        let Some((_, writer)) = task.taking.take_if(|(taken, _)| *taken == slot) else { return };
        let snapshot = SnapshotId { group: group as u64, slot: slot.0 };
        match writer.finish().and_then(|()| Snapshot::remove_older(&node.disk, snapshot)) {
            Ok(()) => {
                env.mark(Mark::SnapshotTaken);
                env.truths[group].snapshot_durable(node.index, slot);
                self.event(node, env, group, GroupEvent::Snapshot(Progress::Finished(slot)));
            }
            Err(error) => {
                trace!(env, "n{} g{group} snapshot at {slot:?}: {error}", node.index + 1);
                self.event(node, env, group, GroupEvent::Snapshot(Progress::Failed(slot)));
            }
        }
    }

    /// Sends the file of a snapshot to a peer; returns the number of the hand-over, or nothing if the disk has lost it.
    pub(crate) fn send_snapshot(
        &mut self,
        node: &Node,
        env: &mut Env,
        group: usize,
        to: NodeId,
        slot: Slot,
    ) -> Option<u64> {
        self.hand_overs += 1;
        let (number, life, from, to) = (self.hand_overs, self.life, node.index, super::truth::index(to));
        let took = env.rng.around(30 * MILLI);
        let open = env.net.is_open(from, to) && env.net.is_open(to, from);
        let broken = !env.healed && (!open || env.rng.chance(env.profile.quality.loss_ppm));
        let (meta, slices) = self.read_snapshot(node, env, group, slot)?;
        if broken {
            env.mark(Mark::SnapshotBroken);
            let event = NodeEvent::SnapshotSent { group, to, number };
            env.node_at(env.now + took, from, life, event);
        } else {
            let hand_over = HandOver { from, life, number, group, slot, meta, slices };
            let event = Box::new(NodeEvent::SnapshotArrived(Box::new(hand_over)));
            env.after(took, Event::Node { node: to, life: None, event });
            // If nothing is heard, the connection breaks.
            let event = NodeEvent::SnapshotSent { group, to, number };
            env.node_at(env.now + 2 * SECOND, from, life, event);
        }
        Some(number)
    }

    fn read_snapshot(
        &self,
        node: &Node,
        env: &mut Env,
        group: usize,
        slot: Slot,
    ) -> Option<(Bytes, Vec<Bytes>)> {
        let snapshot = SnapshotId { group: group as u64, slot: slot.0 };
        let read = || {
            let reader = SnapshotReader::open(&node.disk, self.identity, snapshot)?;
            let mut slices = Vec::new();
            for index in 0..reader.slices() {
                slices.extend(reader.slice(index)?);
            }
            Ok::<_, journal::Error>((reader.meta().clone(), slices))
        };
        match read() {
            Ok(found) => Some(found),
            Err(error) => {
                trace!(env, "n{} g{group} snapshot {slot:?} cannot be read: {error}", node.index + 1);
                None
            }
        }
    }

    fn receive_snapshot(&mut self, node: &mut Node, env: &mut Env, hand_over: HandOver) {
        let HandOver { from, life, number, group, slot, meta, slices } = hand_over;
        let snapshot = SnapshotId { group: group as u64, slot: slot.0 };
        let write = || {
            let mut writer = SnapshotWriter::create(node.disk.clone(), self.identity, snapshot, &meta)?;
            for slice in &slices {
                writer.slice(slice)?;
            }
            writer.finish()?;
            Snapshot::remove_older(&node.disk, snapshot)
        };
        let written: Result<(), journal::Error> = write();
        let config = decode_meta(&meta);
        match (written, config, restore(slices)) {
            (Ok(()), Ok(config), Ok(state)) => {
                env.truths[group].snapshot_durable(node.index, slot);
                let (config, state) = (Arc::new(config), Box::new(state));
                self.event(node, env, group, GroupEvent::SnapshotReceived { slot, config, state });
            }
            (Err(error), ..) => {
                trace!(env, "n{} g{group} snapshot {slot:?} cannot be kept: {error}", node.index + 1);
            }
            (Ok(()), ..) => {
                env.fail("codec", format!("node {}: a snapshot cannot be decoded", node.index + 1));
            }
        }
        if env.net.is_open(node.index, from) {
            let event = NodeEvent::SnapshotSent { group, to: node.index, number };
            env.node_at(env.now + MILLI, from, life, event);
        }
    }
}

/// A replica begins.
fn begin_task(env: &mut Env, node: usize, group: usize, replica: Replica) -> Box<Task> {
    let status = replica.engine().status();
    if status.promise_lost {
        env.mark(Mark::PromiseLost);
    }
    let check = env.truths[group].check_promise(node, status.promised, status.promise_lost);
    env.note(check);
    let newest = replica.newest_snapshot();
    trace!(env, "n{} g{group} starts: {status:?}, snapshot {newest:?}", node + 1);
    Box::new(Task::new(group, replica))
}

fn journal_options(env: &Env, identity: Identity, must_exist: bool) -> journal::Options {
    journal::Options {
        identity,
        segment_bytes: env.profile.segment_bytes,
        spare_segments_max: env.profile.spare_segments,
        must_exist,
        ..journal::Options::default()
    }
}

/// The state that these slices hold.
fn restore(slices: Vec<Bytes>) -> Result<Keyspace, RestoreError> {
    let mut restore = Restore::new();
    for slice in slices {
        restore.push(slice)?;
    }
    restore.finish()
}

/// The rule of the state machine that is broken in this run.
fn broken_state(env: &Env) -> keyspace::Broken {
    #[cfg(feature = "mutants")]
    let broken = keyspace::Broken { mutant: super::Mutant::of_state(env.mutant) };
    #[cfg(not(feature = "mutants"))]
    let broken = {
        let _ = env;
        keyspace::Broken::default()
    };
    broken
}

/// The rule of the group core that is broken in this run.
fn broken(env: &Env) -> Broken {
    #[cfg(feature = "mutants")]
    let broken = Broken { mutant: super::Mutant::of_group(env.mutant) };
    #[cfg(not(feature = "mutants"))]
    let broken = {
        let _ = env;
        Broken::default()
    };
    broken
}
