//! A node: a disk, a clock, and at times a process, which does what a real node's process does. The journal, the
//! superblock, the snapshot files, the liveness and the engines are the real ones.

mod disk;
mod gateways;
mod journaling;
mod liveness;
mod recovery;
mod snapshots;
mod start;
mod stateless;
mod task;
mod written;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use api::gaios::link::v1 as wire;
use api::gaios::link::v1::response::Kind;
use consensus_core::{Liveness, LivenessMessage, LivenessOutput, Mono, Newcomer, PersistSeq};
use group_core::{Event as GroupEvent, Stateless, ToPeer, Turns, entries};
use journal::sim::CrashChoice;
use journal::{Identity, Journal, Lsn, SimDisk, Superblock};
use keyspace::ClusterVersion;

use super::clock::{Clock, MILLI, SECOND, Time};
use super::coverage::Mark;
use super::env::connections::link_of;
use super::env::{After, Env, trace};
use super::events::NodeEvent;
use super::truth::{Fact, id};

use disk::CAPACITY;
use task::{Input, Task};
use written::WrittenLog;

pub(crate) struct Node {
    pub(crate) index: usize,
    pub(crate) clock: Clock,
    pub(crate) disk: SimDisk,
    /// Counts starts of its process, to recognise events for a former one.
    pub(crate) starts: u64,
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
    /// How long it supported others before this incarnation, at most, by its superblock.
    former_support: Duration,
    /// All it has had.
    incarnations: BTreeSet<u64>,
    /// How often it has lost its whole disk.
    emptied: u64,
    log: WrittenLog,
}

/// The process on a node.
pub(crate) struct Process {
    /// Which start of the node's process it is.
    pub(crate) start: u64,
    pub(crate) incarnation: u64,
    /// How long it supports others.
    support: Duration,
    /// The newest cluster version that it knows.
    pub(crate) known: ClusterVersion,
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
    /// Answers that gateways are sent in parts, by connection.
    parted: BTreeMap<u64, Turns>,
}

impl Node {
    pub(crate) fn new(env: &mut Env, index: usize) -> Node {
        let offset = env.rng.below(1 << 50);
        Node {
            index,
            clock: Clock::new(offset, env.profile.rates_ppm[index]),
            disk: SimDisk::new(CAPACITY),
            starts: 0,
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

    pub(crate) fn handle(&mut self, env: &mut Env, start: Option<u64>, event: NodeEvent) {
        if start.is_some_and(|start| start != self.starts) {
            return;
        }
        match (&self.process, &event) {
            // It hears of that when it starts.
            (None, NodeEvent::Map { domain, map }) => drop(env.maps.learn(self.index, *domain, *map)),
            _ => self.with_process(env, |process, node, env| process.handle(node, env, event)),
        }
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
                    env.mark(Mark::MessageFromFormerIncarnation);
                }
                if let Err(unreadable) = entries::check_message(self.known, &message) {
                    let who = node.index + 1;
                    env.fail("versions", format!("node {who} group {group} is sent {unreadable}"));
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
            NodeEvent::Dialled(connection) => env.welcome(connection, self.start),
            NodeEvent::GatewayFrame { connection, frame } => {
                for batch in frame.groups {
                    self.gateway_requests(node, env, connection, batch);
                }
            }
            NodeEvent::NextPart(connection) => self.send_part(node, env, connection),
            NodeEvent::GatewayGone(connection) => {
                self.parted.remove(&connection);
                for group in 0..self.tasks.len() {
                    self.event(node, env, group, GroupEvent::LinkClosed(link_of(connection)));
                }
            }
            NodeEvent::Map { domain, map } => {
                if let Some(shard_map) = env.maps.learn(node.index, domain, map) {
                    let kind = Some(Kind::ShardMap(wire::ShardMapUpdate { shard_map }));
                    env.send_to_gateways_of(node.index, &wire::Response { id: 0, term: 0, kind });
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
                    ToPeer::VersionAsked => GroupEvent::VersionAsked { by },
                    ToPeer::Version(newest) => GroupEvent::VersionTold { by, newest },
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
                env.node_at(at, node.index, self.start, NodeEvent::Resume);
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
            env.node_at(at, node.index, self.start, NodeEvent::Turn(group));
        } else {
            self.turn(node, env, group);
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
}
