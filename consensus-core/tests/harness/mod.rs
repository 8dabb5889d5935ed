//! A small cluster for tests: engines, a network whose every message is in sight, and disks that keep what is durable.
//!
//! Time moves only when a test says so. Each message takes [`LATENCY`]; heartbeats travel like other messages but are
//! not reported. A disk is done with a write at once, unless it is stalled.

#![allow(dead_code, unreachable_pub, reason = "each test uses its own part of the harness")]

pub mod chaos;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use consensus_core::{
    Ballot, Config, Durable, Engine, Event, GroupId, Input, Liveness, LivenessMessage, LivenessOutput,
    Message, Mono, NodeId, Options, Output, PersistSeq, ReadMode, ReadOutcome, Record, Role, Send, Slot, Tag,
    Timing, Value, VoteBallot,
};

/// From one node to another.
pub const LATENCY: Duration = Duration::from_millis(1);

/// With this, node 1 is the first to run for leader in a new cluster.
const SEED: u64 = 45;

/// One replica and its surroundings.
pub struct Node {
    pub id: NodeId,
    pub engine: Option<Engine>,
    pub liveness: Liveness,
    pub incarnation: u64,
    /// Everything durable, in order.
    pub disk: Vec<Cell>,
    /// What will be found broken at the next start.
    pub damage: Vec<Damage>,
    /// The operator declares at the next start that what this node holds is what there is.
    pub survives: bool,
    staged: VecDeque<(PersistSeq, Record)>,
    held: Vec<Send>,
    pub disk_stalled: bool,
    pub paused: bool,
    inbox: Vec<(NodeId, Parcel)>,
    /// The state machine: every command applied, by slot.
    pub applied: BTreeMap<Slot, Value>,
    pub applied_upto: Slot,
    pub snapshot: Option<(Slot, Arc<Config>, BTreeMap<Slot, Value>)>,
    pub reads: BTreeMap<Tag, ReadOutcome>,
    pub rejected: BTreeSet<Tag>,
    pub ready: bool,
}

/// One place of the disk. Damage stays where it is: each recovery finds it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    Whole(Record),
    /// Only the label can be read.
    PayloadLost(Record),
    /// Something was here, of slots from here on.
    Lost(Slot),
}

impl Cell {
    fn slot(&self) -> Option<Slot> {
        match self {
            Cell::Whole(
                Record::Vote { slot, .. } | Record::Revote { slot, .. } | Record::Chosen { slot, .. },
            ) => Some(*slot),
            Cell::Whole(_) | Cell::PayloadLost(_) | Cell::Lost(_) => None,
        }
    }
}

/// What breaks on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// The value of the newest vote for this slot is unreadable.
    Payload(Slot),
    /// The records of this slot and all later ones of the group are unreadable.
    Lost(Slot),
    /// The records of this slot alone are unreadable.
    Only(Slot),
    /// The newest records, of whatever kind, are unreadable.
    Tail(usize),
}

impl Damage {
    fn strike(self, disk: &mut Vec<Cell>) {
        match self {
            Damage::Payload(slot) => {
                for cell in disk.iter_mut().rev().filter(|cell| cell.slot() == Some(slot)) {
                    if let Cell::Whole(record) = cell
                        && record.payload_len() > 0
                    {
                        *cell = Cell::PayloadLost(record.clone());
                        return;
                    }
                }
            }
            Damage::Lost(from) => {
                for cell in disk.iter_mut() {
                    if let Some(slot) = cell.slot().filter(|slot| *slot >= from) {
                        *cell = Cell::Lost(slot);
                    }
                }
            }
            Damage::Only(lost) => {
                for cell in disk.iter_mut().filter(|cell| cell.slot() == Some(lost)) {
                    *cell = Cell::Lost(lost);
                }
            }
            Damage::Tail(count) => {
                // Recovery knows no record after the last good one; where votes would have gone on is its guess.
                let kept = disk.len() - count.min(disk.len().saturating_sub(1));
                disk.truncate(kept);
                let last = disk.iter().rev().find_map(Cell::slot);
                disk.push(Cell::Lost(last.map_or(Slot(1), Slot::next)));
            }
        }
    }
}

/// What travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parcel {
    Group(Message),
    Liveness(LivenessMessage),
}

/// A message on its way.
#[derive(Clone, Debug)]
pub struct Flight {
    pub from: NodeId,
    pub to: NodeId,
    pub arrives: Mono,
    pub parcel: Parcel,
}

pub struct Cluster {
    pub now: Mono,
    pub nodes: BTreeMap<NodeId, Node>,
    pub network: VecDeque<Flight>,
    /// Links that carry nothing, by direction.
    pub cut: BTreeSet<(NodeId, NodeId)>,
    pub config: Config,
    pub timing: Timing,
    pub options: fn(&mut Options),
    /// Lines for the reader of a transcript.
    pub lines: Vec<String>,
    /// Whether messages are among them.
    pub trace_messages: bool,
    /// Snapshot hand-overs that leaders asked for: from, to, at least.
    pub snapshots_wanted: Vec<(NodeId, NodeId, Slot)>,
    output: Output,
    liveness_output: LivenessOutput,
    /// Every committed value seen anywhere: agreement is checked on the way.
    pub committed: BTreeMap<Slot, Value>,
    #[cfg(feature = "mutants")]
    pub mutant: Option<consensus_core::Mutant>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell();
        }
    }
}

impl Cluster {
    pub fn new(config: Config) -> Cluster {
        Cluster::with(config, |_| {})
    }

    /// `options` may change what engines are made with.
    pub fn with(config: Config, options: fn(&mut Options)) -> Cluster {
        let mut cluster = Cluster {
            now: Mono(0),
            nodes: BTreeMap::new(),
            network: VecDeque::new(),
            cut: BTreeSet::new(),
            config: config.clone(),
            // So that each commit is seen to be told.
            timing: Timing { commit_delay: Duration::ZERO, ..Timing::default() },
            options,
            lines: Vec::new(),
            trace_messages: false,
            snapshots_wanted: Vec::new(),
            output: Output::default(),
            liveness_output: LivenessOutput::default(),
            committed: BTreeMap::new(),
            #[cfg(feature = "mutants")]
            mutant: None,
        };
        for id in config.voters.iter() {
            cluster.add_node(id);
        }
        cluster
    }

    /// Breaks a rule on every node, those started later included. Nothing may have happened yet.
    #[cfg(feature = "mutants")]
    pub fn mutate(&mut self, mutant: Option<consensus_core::Mutant>) {
        self.mutant = mutant;
        self.network.clear();
        for id in self.config.clone().voters.iter() {
            self.add_node(id);
        }
    }

    fn add_node(&mut self, id: NodeId) {
        let liveness = Liveness::new(id, self.config.voters.iter(), 1, self.timing, self.now);
        let node = Node {
            id,
            engine: None,
            liveness,
            incarnation: 0,
            disk: Vec::new(),
            damage: Vec::new(),
            survives: false,
            staged: VecDeque::new(),
            held: Vec::new(),
            disk_stalled: false,
            paused: false,
            inbox: Vec::new(),
            applied: BTreeMap::new(),
            applied_upto: Slot(0),
            snapshot: None,
            reads: BTreeMap::new(),
            rejected: BTreeSet::new(),
            ready: false,
        };
        self.nodes.insert(id, node);
        self.start(id);
    }

    pub fn node(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).expect("a node of this cluster")
    }

    pub fn engine(&self, id: NodeId) -> &Engine {
        self.nodes[&id].engine.as_ref().expect("a node that runs")
    }

    /// Starts a node from its disk.
    pub fn start(&mut self, id: NodeId) {
        let (now, timing, config, make) = (self.now, self.timing, self.config.clone(), self.options);
        #[cfg(feature = "mutants")]
        let mutant = self.mutant;
        let line = format!("{} starts, damage {:?} {:?}", id.0, self.nodes[&id].damage, self.nodes[&id].disk);
        self.note(line);
        let node = self.node(id);
        node.incarnation += 1;
        let mut durable = Durable::bootstrap(config.clone());
        for damage in std::mem::take(&mut node.damage) {
            damage.strike(&mut node.disk);
        }
        for cell in &node.disk {
            match cell {
                Cell::Whole(record) => durable.replay(through_codec(record)),
                Cell::PayloadLost(record) => {
                    let mut label = Vec::new();
                    record.label(&mut label);
                    durable.damaged(&Record::decode_label(&label).expect("labels are whole"));
                }
                Cell::Lost(from) => durable.lost(*from),
            }
        }
        match &node.snapshot {
            Some((slot, config, applied)) => {
                durable.snapshot(*slot, config.clone());
                node.applied = applied.clone();
                node.applied_upto = *slot;
            }
            None => {
                node.applied.clear();
                node.applied_upto = Slot(0);
            }
        }
        if std::mem::take(&mut node.survives) {
            durable.survive();
        }
        let mut options = Options::new(GroupId(1), id, SEED + node.incarnation * 100);
        options.timing = timing;
        make(&mut options);
        #[cfg(feature = "mutants")]
        {
            options.mutant = mutant;
        }
        node.liveness = Liveness::new(id, config.voters.iter(), node.incarnation, timing, now);
        node.engine = Some(Engine::new(options, durable, now));
        node.ready = false;
        self.work(id);
    }

    /// Somebody empties the directory of a node that is down; it will return without its memory.
    pub fn empty(&mut self, id: NodeId) {
        let node = self.node(id);
        node.disk = vec![Cell::Lost(Slot(1))];
        node.snapshot = None;
        node.incarnation += 1000;
    }

    /// The process dies: what was not durable is gone.
    pub fn crash(&mut self, id: NodeId) {
        self.note(format!("{} crashes", id.0));
        let node = self.node(id);
        node.engine = None;
        node.staged.clear();
        node.held.clear();
        node.inbox.clear();
        node.disk_stalled = false;
        node.paused = false;
    }

    /// The node is about to stop.
    pub fn retire(&mut self, id: NodeId) {
        let now = self.now;
        self.node(id).liveness.retire(now);
        self.work(id);
    }

    pub fn step(&mut self, id: NodeId, input: Input) {
        let now = self.now;
        let node = self.node(id);
        if let Some(engine) = &mut node.engine {
            engine.step(now, &node.liveness, input);
            engine.check_invariants();
            self.work(id);
        }
    }

    /// Carries out what the engine and the liveness of a node ask for, until they ask for nothing more.
    pub fn work(&mut self, id: NodeId) {
        for turn in 0.. {
            assert!(turn < 10_000, "node {} never rests: {:?}", id.0, self.lines.last());
            let now = self.now;
            let mut output = std::mem::take(&mut self.output);
            let mut liveness_output = std::mem::take(&mut self.liveness_output);
            output.clear();
            liveness_output.sends.clear();
            liveness_output.events.clear();
            let node = self.nodes.get_mut(&id).expect("a node of this cluster");
            let Some(engine) = &mut node.engine else { return };
            node.liveness.poll(&mut liveness_output);
            for event in liveness_output.events.drain(..) {
                engine.step(now, &node.liveness, event.into());
                engine.check_invariants();
            }
            engine.poll(&mut output);
            engine.check_invariants();
            for (to, message) in liveness_output.sends.drain(..) {
                let parcel = Parcel::Liveness(liveness_through_codec(&message));
                self.network.push_back(Flight { from: id, to, arrives: now.after(LATENCY), parcel });
            }
            let idle = output.is_empty();
            self.carry_out(id, &mut output);
            self.output = output;
            self.liveness_output = liveness_output;
            let persisted = self.persist(id);
            if idle && !persisted {
                return;
            }
        }
    }

    /// The story so far, on standard error, when `CHAOS_TRACE` asks for it.
    fn tell(&self) {
        if std::env::var_os("CHAOS_TRACE").is_some() {
            for line in &self.lines {
                eprintln!("{line}");
            }
        }
    }

    fn carry_out(&mut self, id: NodeId, output: &mut Output) {
        let node = self.nodes.get_mut(&id).expect("a node of this cluster");
        node.staged.extend(output.records.drain(..));
        node.held.append(&mut output.sends);
        for (slot, value) in output.committed.drain(..) {
            self.lines.push(format!("{}: committed {} {}", id.0, slot.0, show_value(&value)));
            assert_eq!(slot, node.applied_upto.next(), "committed in order and without gaps");
            node.applied_upto = slot;
            if let Some(known) = self.committed.insert(slot, value.clone()) {
                assert_eq!(known, value, "I5: agreement at slot {}", slot.0);
            }
            node.applied.insert(slot, value);
        }
        for (tag, outcome) in output.reads.drain(..) {
            self.lines.push(format!("{}: read {} {}", id.0, tag.0, show_outcome(outcome)));
            node.reads.insert(tag, outcome);
        }
        for (tag, rejection) in output.rejected.drain(..) {
            self.lines.push(format!("{}: rejected {} {rejection:?}", id.0, tag.0));
            node.rejected.insert(tag);
        }
        for event in output.events.drain(..) {
            match &event {
                Event::RoleChanged { role, ballot, leader } => {
                    node.ready = false;
                    let leader = leader.map_or("nobody".into(), |leader| leader.0.to_string());
                    let role = format!("{role:?}").to_lowercase();
                    self.lines.push(format!("{}: {role} at {}, led by {leader}", id.0, show_ballot(*ballot)));
                }
                Event::LeadershipReady => {
                    node.ready = true;
                    self.lines.push(format!("{}: ready to serve", id.0));
                }
                Event::SnapshotNeeded { to, at_least } => {
                    self.lines
                        .push(format!("{}: snapshot at {} or later needed by {}", id.0, at_least.0, to.0));
                    self.snapshots_wanted.push((id, *to, *at_least));
                }
                Event::Fenced => {
                    self.lines.push(format!("{}: {event:?}", id.0));
                    node.liveness.disk_failed(self.now);
                }
                Event::TransferAborted { .. }
                | Event::PayloadRepaired { .. }
                | Event::Healed
                | Event::Suspicious { .. }
                | Event::PromiseDoubtful
                | Event::Blocked { .. }
                | Event::Survived
                | Event::TooManyForgot { .. } => self.lines.push(format!("{}: {event:?}", id.0)),
            }
        }
    }

    /// Makes staged records durable, unless the disk is stalled, and lets go what waited for them.
    fn persist(&mut self, id: NodeId) -> bool {
        let stalled = self.nodes[&id].disk_stalled;
        let count = if stalled { 0 } else { self.nodes[&id].staged.len() };
        self.persist_some(id, count)
    }

    /// Makes the oldest `count` staged records durable.
    pub fn persist_some(&mut self, id: NodeId, count: usize) -> bool {
        let now = self.now;
        let node = self.nodes.get_mut(&id).expect("a node of this cluster");
        let done: Vec<_> = node.staged.drain(..count.min(node.staged.len())).collect();
        let last = done.last().map(|(seq, _)| *seq);
        node.disk.extend(done.into_iter().map(|(_, record)| Cell::Whole(record)));
        if !node.disk_stalled {
            node.liveness.disk_progress(now);
        }
        if let Some(engine) = &mut node.engine
            && let Some(last) = last
        {
            engine.step(now, &node.liveness, Input::Persisted(last));
            engine.check_invariants();
        }
        let pending = node.staged.front().map(|(seq, _)| *seq);
        let free = |send: &Send| pending.is_none_or(|pending| send.gate < pending);
        let (leaving, held): (Vec<Send>, Vec<Send>) = node.held.drain(..).partition(free);
        node.held = held;
        for send in leaving {
            let message = message_through_codec(&send.message);
            if self.trace_messages {
                self.lines.push(format!("{} -> {} {}", id.0, send.to.0, show_message(&message)));
            }
            let arrives = now.after(LATENCY);
            self.network.push_back(Flight { from: id, to: send.to, arrives, parcel: Parcel::Group(message) });
        }
        last.is_some()
    }

    /// The number of records that are not durable yet.
    pub fn staged(&self, id: NodeId) -> usize {
        self.nodes[&id].staged.len()
    }

    /// Hands over a message, if the link carries it and the receiver lives.
    pub fn deliver(&mut self, flight: Flight) {
        let Flight { from, to, parcel, .. } = flight;
        let now = self.now;
        if self.cut.contains(&(from, to)) {
            return;
        }
        let Some(node) = self.nodes.get_mut(&to) else { return };
        if node.engine.is_none() {
            return;
        }
        if node.paused {
            node.inbox.push((from, parcel));
            return;
        }
        match parcel {
            Parcel::Group(message) => self.step(to, Input::Message { from, message }),
            Parcel::Liveness(message) => {
                node.liveness.receive(now, from, Some(self.timing.support), message);
                self.work(to);
            }
        }
    }

    /// Lets time pass, with everything that happens in it.
    pub fn run(&mut self, duration: Duration) {
        self.run_until(self.now.after(duration), |_| false);
    }

    /// The same, until something holds. Says whether it did.
    pub fn run_until(&mut self, end: Mono, done: impl Fn(&Cluster) -> bool) -> bool {
        for turn in 0.. {
            assert!(turn < 1_000_000, "time hardly passes at {:?}: {:?}", self.now, self.spinning());
            if done(self) {
                return true;
            }
            let arrival = self.network.iter().map(|flight| flight.arrives).min();
            let deadline = self
                .nodes
                .values()
                .filter(|node| node.engine.is_some() && !node.paused)
                .flat_map(|node| {
                    let engine = node.engine.as_ref().and_then(Engine::next_deadline);
                    [engine, Some(node.liveness.next_deadline())]
                })
                .flatten()
                .min();
            let Some(next) = arrival.into_iter().chain(deadline).min().filter(|next| *next <= end) else {
                self.now = end;
                return false;
            };
            self.now = self.now.max(next);
            let due = self.network.iter().position(|flight| flight.arrives <= self.now);
            if let Some(flight) = due.and_then(|index| self.network.remove(index)) {
                self.deliver(flight);
            } else {
                self.fire_timers();
            }
        }
        unreachable!("the loop ends by returning")
    }

    /// What keeps time from passing.
    fn spinning(&self) -> Vec<String> {
        let deadlines = self.nodes.values().map(|node| {
            let engine = node.engine.as_ref().and_then(Engine::next_deadline);
            format!("{}: {engine:?} {:?}", node.id.0, node.liveness.next_deadline())
        });
        let flights = self.network.iter().take(10).map(|flight| format!("{flight:?}"));
        deadlines.chain(flights).collect()
    }

    fn fire_timers(&mut self) {
        let now = self.now;
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for id in ids {
            let node = self.node(id);
            let Some(engine) = &mut node.engine else { continue };
            if node.paused {
                continue;
            }
            if !node.disk_stalled {
                node.liveness.disk_progress(now);
            }
            if node.liveness.next_deadline() <= now {
                node.liveness.tick(now);
            }
            if engine.next_deadline().is_some_and(|at| at <= now) {
                engine.step(now, &node.liveness, Input::Timeout);
                engine.check_invariants();
                assert!(
                    engine.next_deadline().is_none_or(|at| at > now),
                    "a timer that fired is set anew or gone"
                );
            }
            self.work(id);
        }
    }

    /// The next timer of a node is due now: its clock jumps there, and everybody's with it.
    pub fn timeout(&mut self, id: NodeId) {
        let engine = self.nodes[&id].engine.as_ref();
        if let Some(at) = engine.and_then(Engine::next_deadline) {
            self.now = self.now.max(at);
            self.step(id, Input::Timeout);
        }
    }

    /// The process stops for a while: messages pile up, timers do not run.
    pub fn pause(&mut self, id: NodeId) {
        self.node(id).paused = true;
    }

    /// Goes on. What had piled up is handled first, as sockets are read before a late timer is noticed.
    pub fn resume(&mut self, id: NodeId) {
        let node = self.node(id);
        node.paused = false;
        for (from, parcel) in std::mem::take(&mut node.inbox) {
            let arrives = self.now;
            self.deliver(Flight { from, to: id, arrives, parcel });
        }
    }

    /// Cuts or mends the links between `a` and everybody else, both ways.
    pub fn isolate(&mut self, a: NodeId) {
        for b in self.config.voters.iter().filter(|b| *b != a).collect::<Vec<_>>() {
            self.cut.insert((a, b));
            self.cut.insert((b, a));
        }
    }

    pub fn heal(&mut self) {
        self.cut.clear();
    }

    pub fn propose(&mut self, id: NodeId, tag: u64, text: &str) {
        let command = Bytes::copy_from_slice(text.as_bytes());
        self.step(id, Input::Propose { tag: Tag(tag), command });
    }

    pub fn read(&mut self, id: NodeId, tag: u64, mode: ReadMode) {
        self.step(id, Input::Read { tag: Tag(tag), mode });
    }

    pub fn lease_read(&self, id: NodeId) -> Option<Slot> {
        let node = &self.nodes[&id];
        node.engine.as_ref()?.lease_read(self.now, &node.liveness)
    }

    /// Takes a snapshot of the state machine at what is applied, and makes it durable.
    pub fn snapshot(&mut self, id: NodeId) {
        let node = self.node(id);
        let slot = node.applied_upto;
        if node.snapshot.as_ref().is_some_and(|(taken, ..)| *taken >= slot) {
            return;
        }
        let engine = node.engine.as_ref().expect("a node that runs");
        let config = engine.config().clone();
        node.snapshot = Some((slot, config, node.applied.clone()));
        self.step(id, Input::SnapshotDurable { slot });
    }

    /// Brings the snapshot of one node to another.
    pub fn hand_over_snapshot(&mut self, from: NodeId, to: NodeId) {
        let snapshot = self.nodes[&from].snapshot.clone().expect("a snapshot was taken");
        let (slot, config, applied) = snapshot.clone();
        let node = self.node(to);
        if node.applied_upto >= slot {
            return;
        }
        node.snapshot = Some(snapshot);
        node.applied = applied;
        node.applied_upto = slot;
        self.step(to, Input::SnapshotInstalled { slot, config });
    }

    /// Both ends of a connection see it break.
    pub fn disconnect(&mut self, a: NodeId, b: NodeId) {
        for (node, peer) in [(a, b), (b, a)] {
            self.node(node).liveness.disconnected(peer);
            self.work(node);
        }
    }

    /// Hands over the snapshots that were asked for, as far as the links and nodes are up to it.
    pub fn serve_snapshots(&mut self) {
        for (from, to, at_least) in std::mem::take(&mut self.snapshots_wanted) {
            let works = |id| self.nodes[&id].engine.is_some() && !self.nodes[&id].paused;
            let linked = !self.cut.contains(&(from, to)) && !self.cut.contains(&(to, from));
            let taken = self.nodes[&from].snapshot.as_ref().is_some_and(|(slot, ..)| *slot >= at_least);
            if works(from) && works(to) && linked && taken {
                self.hand_over_snapshot(from, to);
            } else {
                self.step(from, Input::SnapshotEnded { to });
            }
        }
    }

    /// The node that leads and is ready, if there is exactly one that lives.
    pub fn leader(&self) -> Option<NodeId> {
        let mut leaders = self.nodes.values().filter(|node| {
            node.engine.as_ref().is_some_and(|engine| {
                let status = engine.status();
                status.role == Role::Leader && status.ready
            })
        });
        let leader = leaders.next()?;
        leaders.next().is_none().then_some(leader.id)
    }

    /// Adds to the transcript what a fault did.
    pub fn note(&mut self, line: String) {
        self.lines.push(format!("[{:?}] {line}", Duration::from_nanos(self.now.0)));
    }

    /// Runs until somebody leads.
    pub fn elect(&mut self) -> NodeId {
        let end = self.now.after(Duration::from_secs(20));
        assert!(self.run_until(end, |cluster| cluster.leader().is_some()), "somebody leads in the end");
        self.leader().expect("just seen")
    }

    /// Whether the commands were committed anywhere.
    pub fn is_committed(&self, text: &str) -> bool {
        self.committed.values().any(|value| commands(value).any(|command| command == text))
    }
}

pub fn commands(value: &Value) -> impl Iterator<Item = &str> {
    let batch: &[Bytes] = match value {
        Value::Batch(commands) => commands,
        Value::Noop => &[],
    };
    batch.iter().map(|command| std::str::from_utf8(command).expect("tests propose text"))
}

fn through_codec(record: &Record) -> Record {
    let (mut label, mut payload) = (Vec::new(), Vec::new());
    record.label(&mut label);
    assert!(label.len() <= Record::LABEL_MAX);
    record.payload(|piece| payload.extend_from_slice(piece));
    let decoded = Record::decode(&label, Bytes::from(payload)).expect("what was encoded decodes");
    assert_eq!(&decoded, record);
    decoded
}

fn message_through_codec(message: &Message) -> Message {
    let mut bytes = BytesMut::new();
    message.encode(&mut bytes);
    let decoded = Message::decode(&mut bytes.freeze()).expect("what was encoded decodes");
    assert_eq!(&decoded, message);
    decoded
}

fn liveness_through_codec(message: &LivenessMessage) -> LivenessMessage {
    let mut bytes = BytesMut::new();
    message.encode(&mut bytes);
    let decoded = LivenessMessage::decode(&mut bytes.freeze()).expect("what was encoded decodes");
    assert_eq!(&decoded, message);
    decoded
}

pub fn show_ballot(ballot: Ballot) -> String {
    format!("{}.{}", ballot.round, ballot.node.0)
}

fn show_vote_ballot(vote_ballot: VoteBallot) -> String {
    show_ballot(vote_ballot.ballot)
}

pub fn show_value(value: &Value) -> String {
    match value {
        Value::Noop => "noop".into(),
        Value::Batch(_) => commands(value).collect::<Vec<_>>().join("+"),
    }
}

pub fn show_outcome(outcome: ReadOutcome) -> String {
    match outcome {
        ReadOutcome::At(slot) => format!("at {}", slot.0),
        ReadOutcome::NotLeader { hint: Some(hint) } => format!("refused, ask {}", hint.0),
        ReadOutcome::NotLeader { hint: None } => "refused".into(),
        ReadOutcome::Lost => "lost".into(),
    }
}

fn show_entries(entries: &[(Slot, Value)]) -> String {
    let entries: Vec<String> =
        entries.iter().map(|(slot, value)| format!("{}={}", slot.0, show_value(value))).collect();
    format!("[{}]", entries.join(" "))
}

/// A message on one line.
pub fn show_message(message: &Message) -> String {
    let mut line = String::new();
    match message {
        Message::PreVote(m) => write!(line, "PreVote {} commit={}", show_ballot(m.ballot), m.commit.0),
        Message::PreVoteReply(m) => {
            let answer = if m.granted { "granted" } else { "denied" };
            let leader = m.leader.map_or(String::new(), |ballot| format!(" leader={}", show_ballot(ballot)));
            write!(line, "PreVoteReply {} {answer}{leader}", show_ballot(m.ballot))
        }
        Message::Prepare(m) => write!(line, "Prepare {} from={}", show_ballot(m.ballot), m.from.0),
        Message::Promise(m) => {
            let votes: Vec<String> = m
                .votes
                .iter()
                .map(|(slot, vote)| {
                    let value = vote.value.as_ref().map_or("?".into(), show_value);
                    format!("{}={value}@{}", slot.0, show_vote_ballot(vote.vote_ballot))
                })
                .collect();
            let faulty = m.faulty_from.map_or(String::new(), |slot| format!(" faulty-from={}", slot.0));
            write!(
                line,
                "Promise {} [{}] commit={}{faulty}",
                show_ballot(m.ballot),
                votes.join(" "),
                m.commit.0
            )
        }
        Message::Nack(m) => {
            write!(line, "Nack {} promised={}", show_ballot(m.ballot), show_ballot(m.promised))
        }
        Message::Accept(m) => {
            write!(
                line,
                "Accept {} {} commit={}",
                show_ballot(m.ballot),
                show_entries(&m.entries),
                m.commit.0
            )
        }
        Message::Accepted(m) => {
            let grants = if m.grants.is_empty() { String::new() } else { format!(" grants={}", m.grants) };
            write!(line, "Accepted {} upto={}{grants}", show_ballot(m.ballot), m.upto.0)
        }
        Message::Commit(m) => write!(line, "Commit {} commit={}", show_ballot(m.ballot), m.commit.0),
        Message::Fortify(m) => write!(line, "Fortify {}", m.ballot.map_or("-".into(), show_ballot)),
        Message::Fortified(m) => {
            write!(line, "Fortified {} floor={}", m.ballot.map_or("-".into(), show_ballot), m.max_voted.0)
        }
        Message::ReadIndex(m) => write!(line, "ReadIndex {} round={}", show_ballot(m.ballot), m.round),
        Message::ReadIndexReply(m) => {
            write!(line, "ReadIndexReply {} round={}", show_ballot(m.ballot), m.round)
        }
        Message::Fetch(m) => write!(line, "Fetch {}..{}", m.from.0, m.upto.0),
        Message::Chosen(m) => write!(line, "Chosen {} commit={}", show_entries(&m.entries), m.commit.0),
        Message::Handoff(m) => write!(line, "Handoff {}", show_ballot(m.ballot)),
        Message::Resigned(m) => write!(line, "Resigned {}", show_ballot(m.ballot)),
        Message::Recall(_) => write!(line, "Recall"),
        Message::Vouched(_) => write!(line, "Vouched"),
        Message::Recalled(m) => {
            let proposed = m.proposed.map_or(String::new(), |slot| format!(" proposed={}", slot.0));
            write!(
                line,
                "Recalled promised={}{proposed}",
                m.promised.map_or("unknown".to_owned(), show_ballot)
            )
        }
    }
    .expect("writing to a string works");
    line
}

/// The name of a message's kind, as transcripts select by it.
pub fn kind_of(message: &Message) -> String {
    show_message(message).split(' ').next().unwrap_or_default().to_owned()
}
