//! The real engine under a model checker: every order of a few events in a group of three.
//!
//! Time is abstracted to two moments, before and after every lease has lapsed; elections start when the model says so
//! (a leader's hand-over is what starts one without timers). Messages are delivered in any order or never, disks finish
//! when the model says so, and a process may be lost once, with all that was not durable. What is asked of every state:
//! agreement, no broken assertion of the engine, and no lease read that misses something committed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use consensus_core::message::Handoff;
use consensus_core::{
    Config, Durable, Engine, GroupId, Input, Liveness, LivenessOutput, Message, Mono, NodeId, NodeSet,
    Options, Output, PersistSeq, Record, Role, Send, Slot, Tag, Timing, Value,
};
use stateright::{Checker, Model, Property};
#[cfg(feature = "mutants")]
use stateright::{HasDiscoveries, UniformChooser};

/// What the model may do, and how often.
#[derive(Clone, Debug)]
struct Bounds {
    leases: bool,
    /// Records become durable by an action of their own; otherwise at once.
    disks: bool,
    proposals: u8,
    crashes: u8,
    /// Time may pass beyond every lease.
    lapse: bool,
    #[cfg(feature = "mutants")]
    mutant: Option<consensus_core::Mutant>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Node {
    engine: Engine,
    liveness: Liveness,
    incarnation: u64,
    disk: Vec<Record>,
    staged: VecDeque<(PersistSeq, Record)>,
    held: Vec<Send>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    /// Shared with the state before, as far as it is the same.
    nodes: BTreeMap<NodeId, Arc<Node>>,
    /// From, to, and the message on the wire. A set: a second copy adds nothing.
    network: BTreeSet<(NodeId, NodeId, Bytes)>,
    committed: BTreeMap<Slot, Value>,
    lapsed: bool,
    renewed: bool,
    leader_starts: u8,
    proposals: u8,
    crashes: u8,
    broken: Option<&'static str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Action {
    Deliver(NodeId, NodeId, Bytes),
    Persist(NodeId),
    Lead(NodeId),
    Propose(NodeId),
    CrashAndRestart(NodeId),
    /// All leases run out; nobody hears anybody in the meantime.
    Lapse,
    /// Heartbeats go round again, after a lapse.
    Renew,
}

const START: Mono = Mono(0);
/// Beyond support (700 ms) and quarantine (707 ms).
const LATER: Mono = Mono(800_000_000);

impl Bounds {
    fn config(&self) -> Config {
        let config = Config::majority([1, 2, 3].map(NodeId));
        if self.leases { config } else { Config { lease_eligible: NodeSet::new(), ..config } }
    }

    fn engine(&self, id: NodeId, durable: Durable, now: Mono) -> Engine {
        let mut options = Options::new(GroupId(1), id, 0);
        // No timer is random: equal situations are equal states.
        options.timing.election = Duration::ZERO;
        #[cfg(feature = "mutants")]
        {
            options.mutant = self.mutant;
        }
        Engine::new(options, durable, now)
    }

    fn node(&self, id: NodeId, incarnation: u64, disk: Vec<Record>, now: Mono) -> Node {
        let mut durable = Durable::bootstrap(self.config());
        for record in &disk {
            durable.replay(record.clone());
        }
        let liveness = Liveness::new(id, [1, 2, 3].map(NodeId), incarnation, Timing::default(), now);
        let engine = self.engine(id, durable, now);
        Node { engine, liveness, incarnation, disk, staged: VecDeque::new(), held: Vec::new() }
    }
}

impl State {
    fn now(&self) -> Mono {
        if self.lapsed { LATER } else { START }
    }

    fn node(&mut self, id: NodeId) -> &mut Node {
        Arc::make_mut(self.nodes.get_mut(&id).expect("three nodes"))
    }

    /// Heartbeats and their answers, until everybody has said everything.
    fn heartbeats(&mut self, bounds: &Bounds) {
        let now = self.now();
        for _ in 0..3 {
            for id in [1, 2, 3].map(NodeId) {
                let node = self.node(id);
                node.liveness.disk_progress(now);
                node.liveness.tick(now);
            }
            for _ in 0..3 {
                for id in [1, 2, 3].map(NodeId) {
                    let mut out = LivenessOutput::default();
                    self.node(id).liveness.poll(&mut out);
                    for (to, message) in out.sends {
                        self.node(to).liveness.receive(now, id, Some(Timing::default().support), message);
                    }
                    for event in out.events {
                        self.input(bounds, id, event.into());
                    }
                }
            }
        }
    }

    fn input(&mut self, bounds: &Bounds, id: NodeId, input: Input) {
        let now = self.now();
        let node = self.node(id);
        node.engine.step(now, &node.liveness, input);
        node.engine.check_invariants();
        self.settle(bounds, id);
    }

    fn settle(&mut self, bounds: &Bounds, id: NodeId) {
        loop {
            let now = self.now();
            let node = Arc::make_mut(self.nodes.get_mut(&id).expect("three nodes"));
            let mut out = Output::default();
            node.engine.poll(&mut out);
            node.engine.check_invariants();
            let idle = out.is_empty();
            node.staged.extend(out.records);
            node.held.extend(out.sends);
            for (slot, value) in out.committed {
                if self.committed.insert(slot, value.clone()).is_some_and(|known| known != value) {
                    self.broken = Some("agreement");
                }
            }
            if !bounds.disks {
                node.persist(now);
            }
            let pending = node.staged.front().map(|(seq, _)| *seq);
            let free = |send: &Send| pending.is_none_or(|pending| send.gate < pending);
            let (leaving, held): (Vec<Send>, Vec<Send>) = node.held.drain(..).partition(free);
            node.held = held;
            for send in leaving {
                // These only save time; losing them always is one of the orders to be looked at.
                let spared = matches!(
                    send.message,
                    Message::Commit(_) | Message::Nack(_) | Message::Resigned(_) | Message::Fetch(_)
                );
                if !spared {
                    let mut bytes = BytesMut::new();
                    send.message.encode(&mut bytes);
                    self.network.insert((id, send.to, bytes.freeze()));
                }
            }
            if idle {
                return;
            }
        }
    }
}

impl Node {
    fn persist(&mut self, now: Mono) {
        let Some((last, _)) = self.staged.back() else { return };
        let last = *last;
        self.disk.extend(self.staged.drain(..).map(|(_, record)| record));
        self.engine.step(now, &self.liveness, Input::Persisted(last));
        self.engine.check_invariants();
    }
}

impl Model for Bounds {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let nodes = [1, 2, 3].map(NodeId).map(|id| (id, Arc::new(self.node(id, 1, Vec::new(), START))));
        let mut state = State {
            nodes: nodes.into(),
            network: BTreeSet::new(),
            committed: BTreeMap::new(),
            lapsed: false,
            renewed: false,
            leader_starts: 0,
            proposals: 0,
            crashes: 0,
            broken: None,
        };
        for id in [1, 2, 3].map(NodeId) {
            let node = state.node(id);
            let mut out = Output::default();
            node.engine.poll(&mut out);
            node.staged.extend(out.records);
            node.persist(START);
        }
        state.heartbeats(self);
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.broken.is_some() {
            return;
        }
        actions
            .extend(state.network.iter().cloned().map(|(from, to, bytes)| Action::Deliver(from, to, bytes)));
        for (&id, node) in &state.nodes {
            let status = node.engine.status();
            if self.disks && !node.staged.is_empty() {
                actions.push(Action::Persist(id));
            }
            // The first to lead is node 1, the second node 2: the names of nodes mean nothing.
            let next = NodeId(u32::from(state.leader_starts) + 1);
            if state.leader_starts < 2 && id == next && status.role == Role::Follower {
                actions.push(Action::Lead(id));
            }
            if state.proposals < self.proposals && status.role == Role::Leader {
                actions.push(Action::Propose(id));
            }
            if state.crashes < self.crashes {
                actions.push(Action::CrashAndRestart(id));
            }
        }
        if self.lapse && !state.lapsed {
            actions.push(Action::Lapse);
        }
        if state.lapsed && !state.renewed && self.leases {
            actions.push(Action::Renew);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let act = || {
            match action {
                Action::Deliver(from, to, bytes) => {
                    state.network.remove(&(from, to, bytes.clone()));
                    let message = Message::decode(&mut bytes.clone()).expect("what was encoded decodes");
                    state.input(self, to, Input::Message { from, message });
                }
                Action::Persist(id) => {
                    let now = state.now();
                    state.node(id).persist(now);
                    state.settle(self, id);
                }
                Action::Lead(id) => {
                    state.leader_starts += 1;
                    let ballot = state.nodes[&id].engine.status().promised;
                    let message = Message::Handoff(Handoff { ballot });
                    state.input(self, id, Input::Message { from: ballot.node, message });
                }
                Action::Propose(id) => {
                    state.proposals += 1;
                    let command = Bytes::from(vec![state.proposals]);
                    state.input(self, id, Input::Propose { tag: Tag(0), command });
                }
                Action::CrashAndRestart(id) => {
                    state.crashes += 1;
                    let old = &state.nodes[&id];
                    let node = self.node(id, old.incarnation + 1, old.disk.clone(), state.now());
                    state.nodes.insert(id, Arc::new(node));
                    state.settle(self, id);
                }
                Action::Lapse => {
                    state.lapsed = true;
                    for id in [1, 2, 3].map(NodeId) {
                        state.input(self, id, Input::Timeout);
                    }
                }
                Action::Renew => {
                    state.renewed = true;
                    state.heartbeats(self);
                }
            }
            state
        };
        match std::panic::catch_unwind(AssertUnwindSafe(act)) {
            Ok(state) => (state != *last).then_some(state),
            Err(_) => Some(State { broken: Some("an assertion"), ..last.clone() }),
        }
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("agreement and assertions", |_, state: &State| state.broken.is_none()),
            Property::always("lease reads are fresh", |_, state: &State| {
                let newest = state.committed.keys().last().copied().unwrap_or_default();
                let stale = |node: &Arc<Node>| {
                    node.engine.lease_read(state.now(), &node.liveness).is_some_and(|point| point < newest)
                };
                !state.nodes.values().any(stale)
            }),
            Property::sometimes("two leaders in turn commit", |_, state: &State| {
                state.leader_starts == 2
                    && state.committed.len() >= 2
                    && state
                        .nodes
                        .values()
                        .any(|node| node.engine.status().ready && node.engine.status().ballot.round == 2)
            }),
            Property::sometimes("a proposal is committed", |_, state: &State| {
                state.committed.values().any(|value| matches!(value, Value::Batch(_)))
            }),
        ]
    }
}

fn bounds() -> Bounds {
    Bounds {
        leases: false,
        disks: false,
        proposals: 1,
        crashes: 0,
        lapse: false,
        #[cfg(feature = "mutants")]
        mutant: None,
    }
}

/// States that one search looks at. A state with its three engines takes some 10 kB, most of it while it waits for its
/// turn.
const STATES: usize = 600_000;

/// States that random walks may pass through until they meet the consequence of a broken rule.
#[cfg(feature = "mutants")]
const STATES_WALKED: usize = 2_000_000;

/// Searches breadth first, and asks that nothing bad was found and the good things were.
fn check(name: &str, bounds: Bounds) {
    let expected = if bounds.proposals > 0 { 2 } else { 1 };
    let checker = bounds.checker().threads(2).target_state_count(STATES).spawn_bfs().join();
    println!("{name}: {} states, depth {}", checker.unique_state_count(), checker.max_depth());
    for property in ["agreement and assertions", "lease reads are fresh"] {
        checker.assert_no_discovery(property);
    }
    let seen = ["two leaders in turn commit", "a proposal is committed"];
    let seen = seen.iter().filter(|property| checker.discovery(property).is_some()).count();
    assert!(seen >= expected, "{name}: the search got somewhere");
}

/// One after another: each may take a gigabyte.
#[test]
fn every_order_of_a_few_events() {
    check("agreement", bounds());
    check("disks and a crash", Bounds { disks: true, crashes: 1, ..bounds() });
    let leases = Bounds { leases: true, lapse: true, ..bounds() };
    check("leases", leases.clone());
    check("leases and a crash", Bounds { crashes: 1, proposals: 0, ..leases });
}

/// Broken rules that no process has to be lost for. Random walks, since what these lead to lies deeper than a search of
/// all orders comes; the walks are the same each time.
#[cfg(feature = "mutants")]
#[test]
fn mutants_are_found() {
    use consensus_core::Mutant;
    let leases = Bounds { leases: true, lapse: true, ..bounds() };
    let cases = [
        (Mutant::PhaseOneQuorumShort, bounds()),
        (Mutant::PhaseTwoQuorumShort, bounds()),
        (Mutant::SelectFree, bounds()),
        (Mutant::GrantsIgnored, leases.clone()),
        (Mutant::GrantMissing, leases.clone()),
        (Mutant::LeaseUnbounded, leases.clone()),
        (Mutant::FloorSkipped, leases.clone()),
        (Mutant::LeaderIgnoresFloor, leases),
    ];
    std::panic::set_hook(Box::new(|_| {}));
    let mut alive = Vec::new();
    for (mutant, bounds) in cases {
        let bounds = Bounds { mutant: Some(mutant), ..bounds };
        let found = bounds
            .checker()
            .threads(1)
            .target_state_count(STATES_WALKED)
            .finish_when(HasDiscoveries::AnyFailures)
            .spawn_simulation(1, UniformChooser)
            .join();
        let bad = ["agreement and assertions", "lease reads are fresh"];
        match bad.iter().find(|property| found.discovery(property).is_some()) {
            Some(property) => println!("{mutant:?}: {property} ({} states)", found.state_count()),
            None => alive.push(mutant),
        }
    }
    let _ = std::panic::take_hook();
    assert!(alive.is_empty(), "not found: {alive:?}");
}
