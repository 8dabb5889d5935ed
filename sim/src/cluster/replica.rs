//! One group's replica on a node: what a real node's group task does with its engine and its state machine, in the
//! same order. (There, messages that wait for no record leave before the turn's records are handed in; here a turn takes
//! no time, and nobody can tell.)

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use consensus_core::{
    Config, Engine, Event, Input, Liveness, LivenessEvent, Mono, NodeId, Output, PersistSeq, ReadMode,
    ReadOutcome, Record, Rejection, Role, Slot, Suspicion, Tag, Value,
};
use consensus_core::{Lead, Message};
use journal::{Lsn, SimDisk, SnapshotWriter};

use super::clients::{Action, Answer, Request};
use super::clock::{MILLI, Time};
use super::coverage::Mark;
use super::env::{After, Env, is_due, trace};
use super::machine::{Effect, Machine, Write};
use super::node::{Node, NodeEvent, Process};
use super::positions::Positions;
use super::truth::index;

/// What happens to a group.
#[derive(Debug)]
pub(crate) enum GroupInput {
    Peer { from: NodeId, message: Message },
    Request(Request),
    Persisted { upto: PersistSeq, lsn: Lsn },
    PersistFailed,
    Liveness(LivenessEvent),
    SnapshotFinished { slot: Slot },
    SnapshotReceived { slot: Slot, config: Arc<Config>, machine: Machine },
    SnapshotSent { to: NodeId, number: u64, arrived: bool },
    SnapshotWanted,
    Transfer { to: NodeId },
}

pub(crate) struct Replica {
    group: usize,
    pub(crate) engine: Engine,
    pub(crate) machine: Machine,
    held: VecDeque<(PersistSeq, NodeId, Message)>,
    durable: PersistSeq,
    /// The group has something to do once this one is durable.
    awaited: PersistSeq,
    /// Batches that are durable, and that the group has not heard of yet.
    unheard: VecDeque<(PersistSeq, Lsn)>,
    positions: Positions,
    pub(crate) inbox: VecDeque<GroupInput>,
    pub(crate) turn_at: Option<Time>,
    pub(crate) timer_at: Time,
    stall: Stall,
    out: Output,
    // Snapshots.
    newest: Option<Slot>,
    logged: usize,
    wanted: bool,
    pub(crate) taking: Option<(Slot, SnapshotWriter<SimDisk>)>,
    waiting: BTreeSet<NodeId>,
    sending: BTreeMap<NodeId, u64>,
    // Clients.
    writes: BTreeMap<(u32, u32), Vec<Request>>,
    proposals: BTreeMap<Tag, Write>,
    asked: BTreeMap<Tag, Read>,
    readable: Vec<(Slot, Read)>,
    next_tag: u64,
    // What the last turn showed.
    promised: Lead,
    commit: Slot,
}

/// A read, and how far the log was committed when the clock was read for it.
#[derive(Clone, Copy, Debug)]
struct Read {
    request: Request,
    key: u8,
    committed: Slot,
    leased: bool,
}

/// The thread stops somewhere.
#[derive(Debug)]
enum Stall {
    None,
    /// At the next input.
    Armed {
        before_step: bool,
        time: Time,
    },
    /// The clock has been read for this input; the step comes later.
    BeforeStep {
        now: Mono,
        committed: Slot,
        input: GroupInput,
    },
    /// The engine has said this; it is carried out later.
    BeforeSend(Output),
}

impl Replica {
    pub(crate) fn new(
        group: usize,
        engine: Engine,
        machine: Machine,
        newest: Option<Slot>,
        positions: Positions,
    ) -> Replica {
        let status = engine.status();
        Replica {
            group,
            promised: status.promised,
            commit: machine.applied,
            engine,
            machine,
            held: VecDeque::new(),
            durable: PersistSeq(0),
            awaited: PersistSeq(0),
            unheard: VecDeque::new(),
            positions,
            inbox: VecDeque::new(),
            turn_at: None,
            timer_at: Time::MAX,
            stall: Stall::None,
            out: Output::default(),
            newest,
            logged: 0,
            wanted: false,
            taking: None,
            waiting: BTreeSet::new(),
            sending: BTreeMap::new(),
            writes: BTreeMap::new(),
            proposals: BTreeMap::new(),
            asked: BTreeMap::new(),
            readable: Vec::new(),
            next_tag: 0,
        }
    }

    /// Whether inputs have to wait for a turn that will come.
    pub(crate) fn is_blocked(&self) -> bool {
        self.turn_at.is_some()
    }

    pub(crate) fn arm(&mut self, before_step: bool, time: Time) {
        if matches!(self.stall, Stall::None) {
            self.stall = Stall::Armed { before_step, time };
        }
    }

    /// Everything that has come in, then what follows from it.
    pub(crate) fn turn(&mut self, process: &mut Process, node: &mut Node, env: &mut Env) {
        match std::mem::replace(&mut self.stall, Stall::None) {
            Stall::BeforeStep { now, committed, input } => {
                self.on_input(process, node, env, now, committed, input)
            }
            Stall::BeforeSend(out) => self.carry_out(process, node, env, out),
            stall @ (Stall::None | Stall::Armed { .. }) => self.stall = stall,
        }
        while let Some(input) = self.inbox.pop_front() {
            let now = node.now(env);
            let committed = env.truths[self.group].commit();
            if let Stall::Armed { before_step: true, time } = self.stall {
                env.mark(Mark::StallBeforeStep);
                self.stall = Stall::BeforeStep { now, committed, input };
                self.stop(process, node, env, time);
                return;
            }
            self.on_input(process, node, env, now, committed, input);
        }
        let now = node.now(env);
        if is_due(self.engine.next_deadline(), now) {
            self.hear(process, node, env, now);
            self.step(process, env, now, Input::Timeout);
            if is_due(self.engine.next_deadline(), now) {
                let deadline = self.engine.next_deadline();
                env.fail(
                    "timers",
                    format!("node {} g{}: {deadline:?} is due again at {now:?}", node.index + 1, self.group),
                );
            }
        }
        loop {
            let mut out = std::mem::take(&mut self.out);
            out.clear();
            self.engine.poll(&mut out);
            if out.is_empty() {
                self.out = out;
                break;
            }
            if let Stall::Armed { before_step: false, time } = self.stall {
                env.mark(Mark::StallBeforeSend);
                self.stall = Stall::BeforeSend(out);
                self.stop(process, node, env, time);
                return;
            }
            self.carry_out(process, node, env, out);
        }
        self.continue_snapshot(process, node, env);
        self.check(process, node, env);
        self.set_timer(process, node, env);
    }

    fn stop(&mut self, process: &Process, node: &Node, env: &mut Env, time: Time) {
        trace!(env, "n{} g{} stops for {} us: {:?}", node.index + 1, self.group, time / 1000, self.stall);
        let at = env.now + time;
        self.turn_at = Some(at);
        env.node_at(at, node.index, process.life, NodeEvent::Turn(self.group));
    }

    fn set_timer(&mut self, process: &Process, node: &Node, env: &mut Env) {
        if let Some(deadline) = self.engine.next_deadline() {
            let at = node.clock.when(deadline, env.now);
            if at < self.timer_at {
                self.timer_at = at;
                env.node_at(at, node.index, process.life, NodeEvent::Timer(self.group));
            }
        }
    }

    fn step(&mut self, process: &Process, env: &mut Env, now: Mono, input: Input) {
        trace!(env, "n{} g{} step {input:?}", process.liveness.node().0, self.group);
        self.engine.step(now, &process.liveness, input);
        self.engine.check_invariants();
    }

    fn on_input(
        &mut self,
        process: &mut Process,
        node: &mut Node,
        env: &mut Env,
        now: Mono,
        committed: Slot,
        input: GroupInput,
    ) {
        if !matches!(input, GroupInput::Persisted { .. }) {
            self.hear(process, node, env, now);
        }
        match input {
            GroupInput::Peer { from, message } => {
                self.step(process, env, now, Input::Message { from, message })
            }
            GroupInput::Request(request) => match request.action {
                Action::Write(write) => self.on_write(process, node, env, now, request, write),
                Action::Read(key, mode) => {
                    let read = Read { request, key, committed, leased: false };
                    self.on_read(process, node, env, now, read, mode);
                }
            },
            GroupInput::Persisted { upto, lsn } => {
                let awaited = self.durable < self.awaited;
                self.durable = upto;
                self.unheard.push_back((upto, lsn));
                if awaited {
                    self.hear(process, node, env, now);
                }
                while let Some((_, to, message)) = self.held.pop_front_if(|(gate, ..)| *gate <= upto) {
                    env.send(node.index, process.incarnation, self.group, to, message);
                }
            }
            GroupInput::PersistFailed => self.step(process, env, now, Input::PersistFailed),
            GroupInput::Liveness(event) => self.step(process, env, now, Input::from(event)),
            GroupInput::SnapshotFinished { slot } => {
                // A peer's snapshot may have overtaken it.
                self.newest = self.newest.max(Some(slot));
                self.step(process, env, now, Input::SnapshotDurable { slot });
                for to in std::mem::take(&mut self.waiting) {
                    self.send_snapshot(process, node, env, to, slot);
                }
            }
            GroupInput::SnapshotReceived { slot, config, machine } => {
                if slot > self.machine.applied {
                    env.mark(Mark::SnapshotInstalled);
                    let check = env.truths[self.group].check_digest(node.index, &machine);
                    env.note(check);
                    self.machine = machine;
                    self.newest = self.newest.max(Some(slot));
                    self.taking = None;
                    self.logged = 0;
                    self.commit = self.commit.max(slot);
                    self.step(process, env, now, Input::SnapshotInstalled { slot, config });
                    self.serve_readable(process, node, env);
                }
            }
            GroupInput::SnapshotSent { to, number, arrived } => {
                // Arrived or not: the log may have moved on meanwhile, or the peer had no use for it.
                trace!(env, "n{} g{} snapshot to n{} arrived: {arrived}", node.index + 1, self.group, to.0);
                if self.sending.get(&to) == Some(&number) {
                    self.sending.remove(&to);
                    self.step(process, env, now, Input::SnapshotEnded { to });
                }
            }
            GroupInput::SnapshotWanted => self.wanted = true,
            GroupInput::Transfer { to } => self.step(process, env, now, Input::Transfer { to }),
        }
    }

    /// Takes note of what has become durable.
    fn hear(&mut self, process: &mut Process, node: &mut Node, env: &mut Env, now: Mono) {
        while let Some((upto, lsn)) = self.unheard.pop_front() {
            self.step(process, env, now, Input::Persisted(upto));
            if let Some(floor) = self.positions.persisted(upto, lsn) {
                process.set_floor(node, self.group, floor);
            }
        }
    }

    fn on_write(
        &mut self,
        process: &mut Process,
        node: &Node,
        env: &mut Env,
        now: Mono,
        request: Request,
        write: Write,
    ) {
        if let Some(written) = self.machine.lookup(write.client, write.seq) {
            self.answer(node, env, &request, Answer::Written(written));
            return;
        }
        if process.full {
            let check = env.truths[self.group].rejected(node.index, &write);
            env.note(check);
            self.answer(node, env, &request, Answer::Refused(None));
            return;
        }
        let waiting = self.writes.entry((write.client, write.seq)).or_default();
        waiting.push(request);
        if waiting.len() == 1 {
            let tag = self.tag();
            self.proposals.insert(tag, write);
            let padding = env.profile.padding;
            let padding = env.rng.range(padding as u64 / 2, padding as u64) as usize;
            self.step(process, env, now, Input::Propose { tag, command: write.encode(padding) });
        }
    }

    fn on_read(
        &mut self,
        process: &mut Process,
        node: &Node,
        env: &mut Env,
        now: Mono,
        mut read: Read,
        mode: ReadMode,
    ) {
        if mode == ReadMode::Lease
            && let Some(point) = self.engine.lease_read(now, &process.liveness)
        {
            read.leased = true;
            let lead = self.engine.status().lead;
            env.after.push(After::LeaseRead { group: self.group, node: node.index, lead });
            self.read_at(node, env, point, read);
            return;
        }
        let tag = self.tag();
        self.asked.insert(tag, read);
        self.step(process, env, now, Input::Read { tag, mode });
    }

    fn read_at(&mut self, node: &Node, env: &mut Env, point: Slot, read: Read) {
        if point < read.committed {
            env.fail(
                "I12",
                format!(
                    "node {} group {}: reads at {point:?}, {:?} was committed before (under the lease: {})",
                    node.index + 1,
                    self.group,
                    read.committed,
                    read.leased
                ),
            );
        }
        if point <= self.machine.applied {
            self.serve(node, env, read);
        } else {
            self.readable.push((point, read));
        }
    }

    fn serve(&self, node: &Node, env: &mut Env, read: Read) {
        env.mark(if read.leased { Mark::LeaseRead } else { Mark::IndexRead });
        let value = self.machine.read(read.key);
        self.answer(node, env, &read.request, Answer::Value { value, leased: read.leased });
    }

    fn serve_readable(&mut self, _process: &Process, node: &Node, env: &mut Env) {
        let applied = self.machine.applied;
        let ready: Vec<Read> =
            self.readable.iter().filter(|(point, _)| *point <= applied).map(|(_, read)| *read).collect();
        self.readable.retain(|(point, _)| *point > applied);
        for read in ready {
            self.serve(node, env, read);
        }
    }

    fn tag(&mut self) -> Tag {
        self.next_tag += 1;
        Tag(self.next_tag)
    }

    fn answer(&self, node: &Node, env: &mut Env, request: &Request, answer: Answer) {
        env.answer(request.client, request.operation, request.attempt, node.index, answer);
    }

    /// Does what the engine wants done.
    fn carry_out(&mut self, process: &mut Process, node: &mut Node, env: &mut Env, mut out: Output) {
        let group = self.group;
        if let Some((last, _)) = out.records.last() {
            let has_base = out.records.iter().any(|(_, record)| matches!(record, Record::Base { .. }));
            if has_base || self.engine.awaits_persisted() {
                self.awaited = *last;
            }
        }
        if !process.hand_in(node, env, group, &mut out.records, &mut self.logged, &mut self.positions) {
            out.records.clear();
            let now = node.now(env);
            self.step(process, env, now, Input::PersistFailed);
        }
        // From here on these are facts, and the messages may tell.
        for (slot, value) in &out.committed {
            self.committed(node, env, *slot, value);
        }
        for send in out.sends.drain(..) {
            if send.gate <= self.durable {
                env.send(node.index, process.incarnation, group, send.to, send.message);
            } else {
                self.held.push_back((send.gate, send.to, send.message));
            }
        }
        for (slot, value) in out.committed.drain(..) {
            self.apply(node, env, slot, &value);
        }
        self.serve_readable(process, node, env);
        for (tag, rejection) in out.rejected.drain(..) {
            self.on_rejected(node, env, tag, rejection);
        }
        for (tag, outcome) in out.reads.drain(..) {
            let Some(read) = self.asked.remove(&tag) else {
                env.fail("reads", format!("node {} g{group}: {tag:?} was not asked", node.index + 1));
                continue;
            };
            match outcome {
                ReadOutcome::At(point) => self.read_at(node, env, point, read),
                ReadOutcome::NotLeader { hint } => {
                    self.answer(node, env, &read.request, Answer::Refused(hint.map(index)));
                }
                ReadOutcome::Lost => self.answer(node, env, &read.request, Answer::Refused(None)),
            }
        }
        for event in out.events.drain(..) {
            self.on_engine_event(process, node, env, event);
        }
        self.out = out;
    }

    fn committed(&mut self, node: &Node, env: &mut Env, slot: Slot, value: &Value) {
        let group = self.group;
        match env.truths[group].commit_at(node.index, slot, value) {
            Ok(true) => {
                trace!(env, "n{} g{group} commits {slot:?} first", node.index + 1);
                if env.waited(group, slot) > 40 * MILLI {
                    env.mark(Mark::HolderWait);
                }
                env.after.push(After::Committed { group, node: node.index, slot });
            }
            Ok(false) => {}
            Err(violation) => env.note(Err(violation)),
        }
        self.commit = self.commit.max(slot);
    }

    fn apply(&mut self, node: &Node, env: &mut Env, slot: Slot, value: &Value) {
        let group = self.group;
        if slot <= self.machine.applied {
            // In the snapshot already.
            return;
        }
        if slot != self.machine.applied.next() {
            let applied = self.machine.applied;
            env.fail("I10", format!("node {} g{group}: commits {slot:?} after {applied:?}", node.index + 1));
            return;
        }
        let mut fates = Vec::new();
        self.machine.apply(slot, value, |write, effect| fates.push((write, effect)));
        let check = env.truths[group].check_digest(node.index, &self.machine);
        env.note(check);
        for (write, effect) in fates {
            let answer = match effect {
                Effect::Done(written) => Answer::Written(written),
                Effect::Repeated(written) => {
                    env.mark(Mark::DuplicateDropped);
                    Answer::Written(written)
                }
                Effect::Stale => Answer::Unknown,
            };
            for request in self.writes.remove(&(write.client, write.seq)).unwrap_or_default() {
                self.answer(node, env, &request, answer);
            }
        }
    }

    fn on_rejected(&mut self, node: &Node, env: &mut Env, tag: Tag, rejection: Rejection) {
        let Some(write) = self.proposals.remove(&tag) else {
            env.fail(
                "rejected means never",
                format!("node {} g{}: {tag:?} twice", node.index + 1, self.group),
            );
            return;
        };
        let check = env.truths[self.group].rejected(node.index, &write);
        env.note(check);
        let hint = match rejection {
            Rejection::NotLeader { hint } => hint.map(index),
            Rejection::Overloaded => {
                env.mark(Mark::Overloaded);
                Some(node.index)
            }
            Rejection::Fenced => None,
        };
        for request in self.writes.remove(&(write.client, write.seq)).unwrap_or_default() {
            self.answer(node, env, &request, Answer::Refused(hint));
        }
    }

    fn on_engine_event(&mut self, process: &mut Process, node: &mut Node, env: &mut Env, event: Event) {
        trace!(env, "n{} g{} {event:?}", node.index + 1, self.group);
        match event {
            Event::RoleChanged { role: Role::Leader, lead, .. } => {
                env.mark(Mark::Election);
                if lead.node == process.liveness.node() {
                    let check = env.truths[self.group].elected(node.index, lead);
                    env.note(check);
                }
                if let Some((handed, to)) = env.handoffs.get(&self.group)
                    && lead.node == *to
                    && lead > *handed
                {
                    env.handoffs.remove(&self.group);
                    env.mark(Mark::TransferDone);
                }
            }
            Event::RoleChanged { role: Role::Follower | Role::Candidate, .. } => {
                for request in std::mem::take(&mut self.writes).into_values().flatten() {
                    self.answer(node, env, &request, Answer::Unknown);
                }
            }
            Event::LeadershipReady | Event::Fenced => {}
            Event::SnapshotNeeded { to, at_least } => self.send_snapshot(process, node, env, to, at_least),
            Event::TransferAborted { .. } => env.mark(Mark::TransferAborted),
            Event::PayloadRepaired { .. } => env.mark(Mark::PayloadRepaired),
            Event::Healed => env.mark(Mark::Healed),
            // Values that nobody could be asked for, long enough, while links came and went. It is heard of again.
            Event::Suspicious { suspicion: Suspicion::Commit, .. } => {}
            Event::Suspicious {
                from,
                suspicion: suspicion @ (Suspicion::Round | Suspicion::Contradiction),
            } => {
                env.fail("trust", format!("{from:?} is healthy and was not believed: {suspicion:?}"));
            }
            Event::PromiseDoubtful => {
                env.fail("trust", "an honest promise is taken for a forged one".to_owned());
            }
            Event::Survived => env.fail("recovery", "nobody has declared a survivor".to_owned()),
            // The rest is on its way back, or down for now.
            Event::Blocked { .. } => {}
            Event::TooManyForgot { nodes } => {
                env.fail("recovery", format!("{nodes} have lost more than the seed may take from them"));
            }
        }
    }

    fn send_snapshot(
        &mut self,
        process: &mut Process,
        node: &Node,
        env: &mut Env,
        to: NodeId,
        at_least: Slot,
    ) {
        match self.newest {
            Some(slot) if slot >= at_least => {
                if !self.sending.contains_key(&to) {
                    match process.send_snapshot(node, env, self.group, to, slot) {
                        Some(number) => {
                            self.sending.insert(to, number);
                        }
                        None => {
                            self.newest = None;
                            self.waiting.insert(to);
                            self.wanted = true;
                        }
                    }
                }
            }
            Some(_) | None => {
                self.waiting.insert(to);
                self.wanted = true;
            }
        }
    }

    fn continue_snapshot(&mut self, process: &mut Process, node: &mut Node, env: &mut Env) {
        let due = self.wanted || self.logged > env.profile.snapshot_bytes;
        let slot = self.machine.applied;
        if self.taking.is_some() || !due || slot == Slot(0) || Some(slot) <= self.newest {
            return;
        }
        self.logged = 0;
        self.wanted = false;
        match process.begin_snapshot(node, self.group, slot, self.engine.config(), &self.machine.encode()) {
            Ok(writer) => {
                self.taking = Some((slot, writer));
                let at = env.now + env.rng.around(20 * MILLI);
                env.node_at(
                    at,
                    node.index,
                    process.life,
                    NodeEvent::SnapshotWritten { group: self.group, slot },
                );
            }
            Err(error) => trace!(env, "n{} g{} snapshot at {slot:?}: {error}", node.index + 1, self.group),
        }
    }

    /// What must hold between turns.
    fn check(&mut self, process: &Process, node: &Node, env: &mut Env) {
        let who = node.index + 1;
        let group = self.group;
        let status = self.engine.status();
        if status.promised < self.promised {
            env.fail(
                "I1",
                format!("node {who} g{group}: promised {:?} after {:?}", status.promised, self.promised),
            );
        }
        self.promised = status.promised;
        if status.commit != self.commit && !status.fenced {
            env.fail(
                "I10",
                format!(
                    "node {who} g{group}: commit is {:?}, handed out up to {:?}",
                    status.commit, self.commit
                ),
            );
        }
        self.check_lease(&process.liveness, node, env);
    }

    /// Whoever could read under the lease now would read everything committed by anybody.
    pub(crate) fn check_lease(&self, liveness: &Liveness, node: &Node, env: &mut Env) {
        let committed = env.truths[self.group].commit();
        if let Some(point) = self.engine.lease_read(node.now(env), liveness)
            && point < committed
        {
            env.fail(
                "I12",
                format!(
                    "node {} group {}: its lease allows a read at {point:?}, {committed:?} is committed",
                    node.index + 1,
                    self.group
                ),
            );
        }
    }
}
