//! One run: events in the order of true time, trouble until it ends, and what must work then.

use std::fmt;

use consensus_core::{NodeId, Role, Slot};
use keyspace::ClusterVersion;

use super::callers::Callers;
use super::clients::Clients;
use super::clock::{MILLI, SECOND, Time};
use super::coverage::{Coverage, Mark};
use super::env::{After, Env, TraceMode, trace};
use super::events::{Event, NodeEvent};
use super::gateway::Gateways;
use super::listeners::Listeners;
use super::net::{Links, NODES_MAX};
use super::node::{Node, Process};
use super::profile::{Fault, Profile};
use super::reduction::Reduction;
use super::rng::Rng;
use super::truth::{Violation, id, index};
use super::watchers::Watchers;
use crate::linear::specs::Registers;
use crate::linear::wgl::{self, Budget, Outcome};

/// How a seed is run.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    /// What is kept of the trace.
    pub trace: TraceMode,
    /// Nodes, and the incarnations of a node, differ in how long they support others.
    pub mixed_support: bool,
    /// What is taken from what the seed decides.
    pub reduction: Reduction,
    /// Which rule of the engine is broken.
    #[cfg(feature = "mutants")]
    pub mutant: Option<super::Mutant>,
}

impl Default for RunOptions {
    fn default() -> RunOptions {
        RunOptions {
            trace: TraceMode::Off,
            mixed_support: false,
            reduction: Reduction::default(),
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }
}

/// As flags of the command line, but for the trace.
impl fmt::Display for RunOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.reduction)?;
        if self.mixed_support {
            f.write_str(" --mixed-support")?;
        }
        #[cfg(feature = "mutants")]
        if let Some(mutant) = self.mutant {
            write!(f, " --mutant {}", mutant.name())?;
        }
        Ok(())
    }
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct RunReport {
    /// The seed.
    pub seed: u64,
    /// How it was run.
    pub options: RunOptions,
    /// When it ended, in milliseconds of its own time.
    pub ended_ms: u64,
    /// Equal for equal runs, and only for those.
    pub hash: u64,
    /// What happened.
    pub coverage: Coverage,
    /// Events of the heap.
    pub events: u64,
    /// Operations that clients had answered.
    pub answered: u64,
    /// The invariant that did not hold.
    pub violation: Option<Violation>,
    /// The cluster, the load and the faults, for people.
    pub profile: String,
    /// As asked for.
    pub trace: Vec<String>,
}

/// Runs one seed to its end or to the first violation. An assertion of the engine panics; see [`super::run_caught`].
#[must_use]
pub fn run(seed: u64, options: RunOptions) -> RunReport {
    let mut world = World::new(seed, options);
    world.run();
    world.report(seed)
}

/// As [`run`], and leaves in `report` how far it came, for when it panics.
pub(crate) fn run_into(seed: u64, options: RunOptions, world: &mut Option<World>) -> RunReport {
    let world = world.insert(World::new(seed, options));
    world.run();
    world.report(seed)
}

/// After the heal, and the pauses that are still under way then, a cluster has ten times (support + election timeout) to
/// work again (I21).
const PATIENCE: u32 = 10;
/// The longest pause of a process or a group.
const PAUSE_MAX: Time = 10 * SECOND;
/// Histories of so many operations are shown to the independent checker.
const JUDGED_SEEDS: u64 = 8;

pub(crate) struct World {
    env: Env,
    nodes: Vec<Node>,
    clients: Clients,
    watchers: Watchers,
    gateways: Gateways,
    callers: Callers,
    listeners: Listeners,
    options: RunOptions,
    deadline: Time,
    done: bool,
}

impl World {
    fn new(seed: u64, options: RunOptions) -> World {
        let mut rng = Rng::new(seed);
        let profile = Profile::draw(&mut rng);
        let mut env = Env::new(seed, profile, rng, options.trace);
        env.mixed_support = options.mixed_support;
        #[cfg(feature = "mutants")]
        {
            env.mutant = options.mutant;
            gateway_core::break_rule(super::Mutant::of_gateway(options.mutant));
        }
        let nodes: Vec<Node> = (0..env.profile.nodes).map(|index| Node::new(&mut env, index)).collect();
        for node in 0..nodes.len() {
            let at = env.rng.below(300 * MILLI);
            env.at(at, Event::Start { node });
        }
        // Some clusters are founded amid trouble.
        let first_fault = env.rng.pick(&[0, SECOND, SECOND, SECOND]);
        let clients = Clients::new(&mut env);
        let watchers = Watchers::new(&mut env);
        let gateways = Gateways::new(&mut env);
        let callers = Callers::new(&mut env);
        let listeners = Listeners::new(&mut env);
        let heal_at = options.reduction.heals_by(env.profile.heal_at);
        env.at(heal_at, Event::Heal);
        // Sooner or later all have heard of where the shards are.
        for domain in 0..env.maps.domains() {
            if env.maps.groups_of(domain).count() > 1 {
                env.mark(Mark::DomainOfSeveralGroups);
            }
            let within = env.profile.heal_at / 2;
            spread_map(&mut env, domain, within);
        }
        for group in 0..env.profile.groups.len() {
            if env.maps.spans(group).len() > 1 {
                env.mark(Mark::SeveralShards);
            }
        }
        if !env.profile.faults.is_empty() {
            env.at(first_fault, Event::Fault);
            env.at(SECOND, Event::GatewayFault);
        }
        World {
            env,
            nodes,
            clients,
            watchers,
            gateways,
            callers,
            listeners,
            options,
            deadline: Time::MAX,
            done: false,
        }
    }

    fn run(&mut self) {
        while !self.done && self.env.violation.is_none() {
            let Some(event) = self.env.next() else { return };
            self.handle(event);
            while let Some(after) = self.env.after.pop() {
                self.check_after(after);
            }
        }
    }

    pub(crate) fn report(&mut self, seed: u64) -> RunReport {
        let env = &mut self.env;
        RunReport {
            seed,
            options: self.options,
            ended_ms: env.now / MILLI,
            hash: env.trace.hash,
            coverage: env.coverage.clone(),
            events: env.events,
            answered: self.clients.answered + self.callers.answered,
            violation: env.violation.clone(),
            profile: format!("{}{}", env.profile, env.maps),
            trace: env.trace.lines.drain(..).collect(),
        }
    }

    fn handle(&mut self, event: Event) {
        let env = &mut self.env;
        match event {
            Event::Node { node, start, event } => self.nodes[node].handle(env, start, *event),
            Event::Start { node } => self.nodes[node].start(env),
            Event::Ask { node, start } => {
                if self.nodes[node].starts == start {
                    self.ask(node);
                }
            }
            Event::Stop { node, start, power } => {
                if self.nodes[node].starts == start {
                    self.nodes[node].stop(env, power);
                }
            }
            Event::Answer { client, operation, attempt, node, answer } => {
                self.clients.on_answer(env, client, operation, attempt, node, answer);
            }
            Event::Client { client, operation, attempt, timer } => {
                self.clients.on_timer(env, client, operation, attempt, timer);
            }
            Event::Watcher { watcher, attempt } => self.watchers.on_timer(env, watcher, attempt),
            Event::WatchTold { watcher, attempt, kind } => {
                self.watchers.on_told(env, watcher, attempt, *kind);
            }
            Event::GatewayStart { gateway } => self.gateways.start(env, gateway),
            Event::Gateway { gateway, incarnation, event } => {
                self.gateways.handle(env, gateway, incarnation, *event);
            }
            Event::ToGateway { gateway, event } => self.gateways.handle_client(env, gateway, *event),
            Event::Caller { caller } => self.callers.on_timer(env, caller),
            Event::CallAnswered { caller, operation, result, numbers } => {
                self.callers.on_answer(env, caller, operation, result, numbers);
            }
            Event::Listener { listener, connection } => self.listeners.on_timer(env, listener, connection),
            Event::StreamTold { stream, connection, told } => {
                self.listeners.on_told(env, stream, connection, told);
            }
            Event::GatewayFault => {
                if !env.healed {
                    let delay = env.rng.around(env.profile.fault_every * 2);
                    env.after(delay, Event::GatewayFault);
                    self.trouble_gateway();
                }
            }
            Event::Fault => {
                if !env.healed {
                    let delay = env.rng.around(env.profile.fault_every);
                    env.after(delay, Event::Fault);
                    let fault = env.rng.pick(&env.profile.faults.clone());
                    if !self.options.reduction.omits(fault) {
                        self.cause(fault);
                    }
                }
            }
            Event::EndPartition(number) => env.net.heal(number),
            Event::EndFull { node } => self.nodes[node].disk.set_capacity(1 << 30),
            Event::Heal => self.heal(),
            Event::Settled => self.check_settled(),
        }
    }

    /// A newcomer asks everybody who has not answered, and takes its place or asks again later.
    fn ask(&mut self, node: usize) {
        let Some((newcomer, _)) = &self.nodes[node].newcomer else { return };
        let missing: Vec<usize> = newcomer.missing().map(index).collect();
        for other in missing {
            let open = self.env.net.is_open(node, other) && self.env.net.is_open(other, node);
            if let Some(status) = self.nodes[other].node_status(id(node)).filter(|_| open)
                && let Some((newcomer, _)) = &mut self.nodes[node].newcomer
            {
                newcomer.answered(id(other), status);
                if let Some(process) = &mut self.nodes[other].process {
                    process.liveness.begins_anew(id(node));
                }
            }
        }
        let env = &mut self.env;
        if !self.nodes[node].try_take_place(env) {
            env.mark(Mark::NewcomerWaited);
            let again = env.rng.around(50 * MILLI);
            env.after(again, Event::Ask { node, start: self.nodes[node].starts });
        }
    }

    fn check_after(&mut self, after: After) {
        let env = &mut self.env;
        match after {
            After::Committed { group, node, slot } => {
                let voters: Vec<usize> = env.voters_of(group, slot).collect();
                for (index, other) in self.nodes.iter().enumerate() {
                    let Some(process) = &other.process else { continue };
                    if voters.contains(&index) && process.liveness.quarantined(other.now(env)) {
                        env.mark(Mark::QuarantineCommit);
                    }
                    if index != node
                        && let Some(task) = &process.tasks[group]
                    {
                        task.check_lease(&process.liveness, other, env);
                    }
                }
            }
            After::LeaseRead { group, node, ballot } => {
                let others = self.nodes.iter().enumerate().filter(|(index, _)| *index != node);
                let mut tasks = others.filter_map(|(_, other)| other.process.as_ref()?.tasks[group].as_ref());
                if tasks.any(|task| task.replica.engine().status().promised > ballot) {
                    env.mark(Mark::LeaseReadDuringLeaderChange);
                }
            }
            After::Support { holder, grantor } => self.check_support(holder, grantor),
        }
    }

    /// I13: as long as the holder counts on the grantor's support, the grantor gives it.
    fn check_support(&mut self, holder: usize, grantor: usize) {
        if holder == grantor {
            return;
        }
        let (here, there) = (&self.nodes[holder], &self.nodes[grantor]);
        let (Some(held), Some(granted)) = (&here.process, &there.process) else { return };
        let now = here.now(&self.env);
        let Some((epoch, until)) = held.liveness.supported_by(now, id(grantor)) else { return };
        // The last moment at which the holder counts on it.
        let last = here.clock.when(until, self.env.now).saturating_sub(1).max(self.env.now);
        let then = there.clock.local(last);
        if !granted.liveness.quarantined(then) && granted.liveness.supports(then, id(holder)) != Some(epoch) {
            let detail = format!(
                "node {} counts on the support of node {} under {epoch:?} until {} ms, it grants {:?}",
                holder + 1,
                grantor + 1,
                last / MILLI,
                granted.liveness.supports(then, id(holder))
            );
            self.env.fail("I13", detail);
        }
    }

    fn leader_of(&self, group: usize) -> Option<usize> {
        self.nodes.iter().position(|node| {
            let task = node.process.as_ref().and_then(|process| process.tasks[group].as_ref());
            task.is_some_and(|task| task.replica.engine().status().role == Role::Leader)
        })
    }

    fn cause(&mut self, fault: Fault) {
        let env = &mut self.env;
        let count = self.nodes.len();
        let node = env.rng.index(count);
        let group = env.rng.index(env.profile.groups.len());
        trace!(env, "fault {fault:?} n{} g{group}", node + 1);
        match fault {
            Fault::Kill => self.crash(node, false),
            Fault::PowerCut if env.rng.flip() => self.crash(node, true),
            Fault::PowerCut => self.tell(node, NodeEvent::CutAtFlush),
            Fault::AllPowerCut => {
                if env.rng.below(4) == 0 {
                    env.mark(Mark::AllPowerCut);
                    for node in 0..count {
                        self.crash(node, true);
                    }
                }
            }
            Fault::Leader => {
                if let Some(leader) = self.leader_of(group) {
                    let power = self.env.rng.flip();
                    self.crash(leader, power);
                }
            }
            Fault::Depose => {
                let Some(leader) = self.leader_of(group) else { return };
                let env = &mut self.env;
                env.mark(Mark::Deposed);
                let time = env.rng.range(500 * MILLI, 3 * SECOND);
                let others = env.rng.next() as u32 & !(1 << leader);
                let links = Links::between(1 << leader, others).union(Links::between(others, 1 << leader));
                let number = env.net.cut(links);
                let end = time + env.rng.around(SECOND);
                env.after(end, Event::EndPartition(number));
                self.tell(leader, NodeEvent::Pause(time));
            }
            Fault::Amnesia => {
                let Some(leader) = self.leader_of(group) else { return };
                let env = &mut self.env;
                env.mark(Mark::FollowersRestarted);
                let others = !(1 << leader);
                let links = Links::between(1 << leader, others).union(Links::between(others, 1 << leader));
                let number = env.net.cut(links);
                let end = env.rng.around(SECOND);
                env.after(end, Event::EndPartition(number));
                for node in (0..count).filter(|node| *node != leader) {
                    let power = self.env.rng.flip();
                    self.nodes[node].stop(&mut self.env, power);
                    let down = self.env.rng.below(100 * MILLI);
                    self.env.after(down, Event::Start { node });
                }
            }
            Fault::Symmetric => {
                let side = self.side();
                self.partition(
                    Links::between(side, !side).union(Links::between(!side, side)),
                    Mark::PartitionSymmetric,
                );
            }
            Fault::Asymmetric => {
                let side = self.side();
                self.partition(Links::between(side, !side), Mark::PartitionAsymmetric);
            }
            Fault::Bridge => {
                let side = self.side() & !(1 << node);
                let other = !side & !(1 << node);
                self.partition(
                    Links::between(side, other).union(Links::between(other, side)),
                    Mark::PartitionBridge,
                );
            }
            Fault::ReceiveOnly => {
                let node = self.leader_of(group).unwrap_or(node);
                self.partition(Links::between(1 << node, !(1 << node)), Mark::PartitionReceiveOnly);
            }
            Fault::Link => {
                let other = (node + 1 + env.rng.index(count - 1)) % count;
                let mut links = Links::default();
                links.add(node, other);
                links.add(other, node);
                self.partition(links, Mark::PartitionLink);
            }
            Fault::Clog => {
                env.mark(Mark::LinkClogged);
                let until = env.now + env.rng.around(400 * MILLI);
                let all = env.rng.flip();
                let other = env.rng.index(NODES_MAX);
                for to in 0..NODES_MAX {
                    if all || to == other {
                        env.net.clog(node, to, until);
                    }
                }
            }
            Fault::Disconnect => {
                let peer = env.rng.index(count);
                self.tell(node, NodeEvent::Disconnected(peer));
            }
            Fault::Pause => {
                let time = self.pause();
                self.tell(node, NodeEvent::Pause(time));
            }
            Fault::StallBeforeStep | Fault::StallBeforeSend => {
                let before_step = fault == Fault::StallBeforeStep;
                let likely = self.leader_of(group).filter(|_| self.env.rng.flip());
                let node = likely.unwrap_or(node);
                let time = self.pause();
                self.tell(node, NodeEvent::Stall { group, before_step, time });
            }
            Fault::DiskStall => {
                let time = env.rng.range(SECOND, 5 * SECOND);
                self.tell(node, NodeEvent::StallDisk(time));
            }
            Fault::SyncError => {
                if self.nodes[node].is_well() {
                    self.nodes[node].disk.fail_syncs(1);
                }
            }
            Fault::WriteError => {
                if self.nodes[node].is_well() {
                    self.nodes[node].disk.fail_writes(1);
                }
            }
            Fault::DiskFull => {
                self.nodes[node].disk.set_capacity(0);
                let time = env.rng.around(1500 * MILLI);
                env.after(time, Event::EndFull { node });
            }
            Fault::Damage => {
                if env.profile.damageable >> node & 1 == 1 {
                    if env.rng.below(3) == 0 {
                        self.nodes[node].snapshots_lost_due = true;
                    } else {
                        self.nodes[node].damage_due = 1 + env.rng.below(2) as u32;
                    }
                    let power = env.rng.flip();
                    self.crash(node, power);
                }
            }
            Fault::Empty => {
                // Before anybody else has a place nothing has been promised to anybody, and who is emptied founds once more.
                let others = self.nodes.iter().enumerate().filter(|(other, _)| *other != node);
                let has_begun = others.into_iter().any(|(_, other)| other.has_had_a_place());
                if env.profile.damageable >> node & 1 == 1 && has_begun {
                    self.crash(node, true);
                    self.nodes[node].empty(&mut self.env);
                }
            }
            Fault::Transfer => {
                if let Some(leader) = self.leader_of(group) {
                    let members: Vec<NodeId> = self.env.truths[group].config().voters.iter().collect();
                    let to = self.env.rng.pick(&members);
                    self.tell(leader, NodeEvent::Transfer { group, to });
                }
            }
            Fault::Retire => {
                let node = self.leader_of(group).unwrap_or(node);
                let env = &mut self.env;
                env.mark(Mark::Retired);
                let start = self.nodes[node].starts;
                let end = env.rng.around(20 * MILLI);
                self.tell(node, NodeEvent::Retire);
                let env = &mut self.env;
                env.after(end, Event::Stop { node, start, power: false });
                let down = end + env.rng.around(300 * MILLI);
                env.after(down, Event::Start { node });
            }
            Fault::Snapshot => self.tell(node, NodeEvent::SnapshotWanted(group)),
        }
    }

    /// Something happens to a gateway, its links, or what it is told of the shards.
    fn trouble_gateway(&mut self) {
        let env = &mut self.env;
        let gateway = env.rng.index(env.profile.gateways);
        let node = env.rng.index(self.nodes.len());
        match env.rng.below(8) {
            0 => {
                self.gateways.stop(env, gateway);
                let down = env.rng.around(400 * MILLI);
                env.after(down, Event::GatewayStart { gateway });
            }
            1..=2 => {
                if let Some(connection) = env.some_connection() {
                    env.break_connection(connection);
                }
            }
            // Slow, or as good as gone.
            3..=5 => {
                let time = env.rng.pick(&[100 * MILLI, 700 * MILLI, 3 * SECOND]);
                let until = env.now + env.rng.around(time);
                env.cut_gateway(gateway, node, until);
            }
            _ => {
                let domain = env.rng.index(env.maps.domains());
                if env.maps.change(domain, &mut env.rng).is_some() {
                    spread_map(env, domain, 600 * MILLI);
                }
            }
        }
    }

    fn tell(&mut self, node: usize, event: NodeEvent) {
        self.env.after(0, Event::Node { node, start: None, event: Box::new(event) });
    }

    fn crash(&mut self, node: usize, power: bool) {
        let env = &mut self.env;
        self.nodes[node].stop(env, power);
        let down = match env.rng.below(4) {
            0 => env.rng.around(4 * SECOND),
            1 => env.rng.around(20 * MILLI),
            _ => env.rng.around(500 * MILLI),
        };
        env.after(down, Event::Start { node });
        if env.rng.below(3) == 0 {
            for peer in 0..self.nodes.len() {
                self.tell(peer, NodeEvent::Disconnected(node));
            }
        }
    }

    /// Some of the nodes, neither none nor all if that can be avoided.
    fn side(&mut self) -> u32 {
        let all = (1 << self.nodes.len()) - 1;
        for _ in 0..10 {
            let side = self.env.rng.next() as u32 & all;
            if side != 0 && side != all {
                return side;
            }
        }
        1
    }

    fn partition(&mut self, links: Links, mark: Mark) {
        let env = &mut self.env;
        env.mark(mark);
        let number = env.net.cut(links);
        let time = env.rng.around(1500 * MILLI);
        env.after(time, Event::EndPartition(number));
    }

    /// Mostly short; long enough to outlive every lease at times.
    fn pause(&mut self) -> Time {
        match self.env.rng.below(8) {
            0 => self.env.rng.range(0, PAUSE_MAX),
            1..=3 => self.env.rng.range(0, 2 * SECOND),
            _ => self.env.rng.range(0, 300 * MILLI),
        }
    }

    /// Everything works from here on.
    fn heal(&mut self) {
        let env = &mut self.env;
        trace!(env, "all trouble ends");
        env.healed = true;
        let quality = env.profile.calm_quality();
        env.net.heal_all(quality);
        for (index, node) in self.nodes.iter_mut().enumerate() {
            node.disk.set_capacity(1 << 30);
            node.disk.fail_syncs(0);
            node.disk.fail_writes(0);
            (node.damage_due, node.snapshots_lost_due) = (0, false);
            // The operator does as the message says.
            if node.lost {
                node.empty(env);
            }
            // What still sleeps, or waits for a disk, ends here; and whoever is older is replaced.
            let ends = |process: &Process| {
                process.fenced || process.paused || process.known < ClusterVersion::NEWEST
            };
            if node.process.as_deref().is_some_and(ends) {
                node.stop(env, false);
            }
            env.after(MILLI, Event::Start { node: index });
        }
        let patience =
            (env.support_max() + env.profile.timing.election).as_nanos() as Time * Time::from(PATIENCE);
        self.deadline = env.now + PAUSE_MAX + patience;
        env.heal_gateways();
        for domain in 0..env.maps.domains() {
            spread_map(env, domain, 10 * MILLI);
        }
        for gateway in 0..env.profile.gateways {
            env.after(MILLI, Event::GatewayStart { gateway });
        }
        self.clients.probe(env);
        self.callers.probe(env);
        env.after(50 * MILLI, Event::Settled);
    }

    fn check_settled(&mut self) {
        let unsettled = self.unsettled();
        let env = &mut self.env;
        match unsettled {
            None => {
                self.done = true;
                self.judge();
            }
            Some(what) if env.now >= self.deadline => env.fail("I21", what),
            Some(_) => env.after(50 * MILLI, Event::Settled),
        }
    }

    /// What is not as it should be.
    fn unsettled(&mut self) -> Option<String> {
        let lost = self.nodes.iter().filter(|node| node.lost).fold(0, |bits, node| bits | 1 << node.index);
        for group in 0..self.env.truths.len() {
            if let Some(what) = self.unsettled_group(group) {
                // Only once it is clear that it does not settle.
                let (mut applied, mut absent, mut without_values) = (Slot(0), lost, lost);
                for node in &self.nodes {
                    let task = node.process.as_ref().and_then(|process| process.tasks[group].as_ref());
                    let Some(task) = task else { continue };
                    applied = applied.max(task.replica.applied());
                    let status = task.replica.engine().status();
                    let is_faulty = status.faulty_from.is_some();
                    absent |= u32::from(is_faulty) << node.index;
                    without_values |= u32::from(is_faulty && status.lost_payloads > 0) << node.index;
                }
                let truth = &self.env.truths[group];
                // Without damage, only what nobody was told of can be lost.
                let damaged = self.nodes.iter().any(|node| node.damaged);
                if self.env.now >= self.deadline
                    && truth
                        .value_lost(applied, absent, without_values)
                        .is_some_and(|slot| damaged || slot > truth.commit())
                {
                    self.env.mark(Mark::ValueLostEverywhere);
                    continue;
                }
                return Some(format!("group {group}: {what}; {}", self.describe()));
            }
        }
        None
    }

    fn unsettled_group(&self, group: usize) -> Option<String> {
        let truth = &self.env.truths[group];
        let members = truth.config().voters.iter().map(index).filter(|member| !self.nodes[*member].lost);
        let mut leaders = 0;
        for member in members {
            let process = self.nodes[member].process.as_ref();
            let Some(task) = process.and_then(|process| process.tasks[group].as_ref()) else {
                return Some(format!("node {} is down", member + 1));
            };
            let status = task.replica.engine().status();
            if status.promise_lost || status.faulty_from.is_some() {
                return Some(format!("node {} has not made up for what it lost", member + 1));
            }
            let version = task.replica.state().version();
            if version != ClusterVersion::NEWEST {
                return Some(format!("node {} goes by version {version}", member + 1));
            }
            let applied = task.replica.applied();
            if applied != truth.commit() {
                return Some(format!("node {} has applied {applied:?} of {:?}", member + 1, truth.commit()));
            }
            if task.replica.has_waiting() {
                return Some(format!("node {} holds a request that is not answered", member + 1));
            }
            leaders += usize::from(task.replica.engine().status().role == Role::Leader);
        }
        if leaders != 1 {
            return Some(format!("{leaders} leaders"));
        }
        if truth.leases() > 0 {
            return Some(format!("{} leases have not come to their end", truth.leases()));
        }
        if let Some(behind) = self.watchers.behind(&self.env, group) {
            return Some(behind);
        }
        if let Some(behind) = self.listeners.behind(&self.env, group) {
            return Some(behind);
        }
        let mut unprobed = self.clients.unprobed().chain(self.callers.unprobed());
        unprobed
            .any(|unprobed| unprobed == group)
            .then(|| "a write and a read have not been answered".to_owned())
    }

    fn describe(&self) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            match &node.process {
                None => text.push_str(&format!("\n    node {}: down, lost {}", node.index + 1, node.lost)),
                Some(process) => {
                    for (group, task) in process.tasks.iter().enumerate() {
                        if let Some(task) = task {
                            let status = task.replica.engine().status();
                            text.push_str(&format!(
                                "\n    node {} group {group}: {:?} of {:?}, promised {:?}, commit {}, first {}, voted {}, \
                                 ready {}, faulty {:?}, promise lost {}, payloads lost {}, in flight {}, full {}, due {:?}",
                                node.index + 1,
                                status.role,
                                status.leader.map(|node| node.0),
                                (status.promised.round, status.promised.node.0),
                                status.commit.0,
                                status.first_kept.0,
                                status.max_voted.0,
                                status.ready,
                                status.faulty_from,
                                status.promise_lost,
                                status.lost_payloads,
                                status.inflight,
                                process.full,
                                task.replica.engine().next_deadline().map(|at| at.since(node.now(&self.env)))
                            ));
                        }
                    }
                }
            }
        }
        text
    }

    /// The second opinion: what clients saw, without slots, is linearizable.
    fn judge(&mut self) {
        self.clients.finish(&mut self.env);
        self.callers.finish();
        for group in 0..self.env.truths.len() {
            let check = self.env.truths[group].check_all_ended();
            self.env.note(check);
        }
        if !self.env.seed.is_multiple_of(JUDGED_SEEDS) {
            return;
        }
        for (group, history) in self.clients.histories.iter().chain(&self.callers.histories) {
            let budget = Budget { steps: 200_000, configurations: 20_000 };
            if let Outcome::Violation { witness } = wgl::check(&Registers, history, budget) {
                let blocked = &history[witness.blocked];
                self.env.fail("linearizable", format!("group {group}: {blocked:?} has no place"));
                return;
            }
        }
    }
}

/// Each node hears of a domain's newest map, all within this time.
fn spread_map(env: &mut Env, domain: usize, within: Time) {
    for node in 0..env.profile.nodes {
        let delay = env.rng.below(within);
        let event = NodeEvent::Map { domain, map: env.maps.newest(domain) };
        env.after(delay, Event::Node { node, start: None, event: Box::new(event) });
    }
}
