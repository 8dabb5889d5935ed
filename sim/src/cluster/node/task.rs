//! A group's task on a node: it does round the real [`Replica`] what a real node's task does, in the same order, with a
//! simulated disk and network, and looks at what comes of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use api::gaios::link::v1 as wire;
use api::gaios::link::v1::refused::Why;
use api::gaios::link::v1::request::Kind as RequestKind;
use api::gaios::link::v1::response::Kind;
use bytes::{Bytes, BytesMut};
use consensus_core::{Ballot, Liveness, Mono, NodeId, PersistSeq, Role, Slot, Suspicion};
use group_core::{
    Disk, Env as Sight, Event, Gate, LargeAnswer, LinkId, Links, Notice, Out, Progress, Replica, ToSnapshots,
    Turn, look,
};
use journal::{Lsn, SimDisk, SnapshotWriter};
use keyspace::{Error, Gathered, KeyRange, LeaseId, Outcome, RangeReply, RangeRequest, Reply, SessionId};

use super::{Node, Process};
use crate::cluster::clock::{MICRO, MILLI, Time};
use crate::cluster::commands::{Family, Written, command, lease_of, query, single, value_of};
use crate::cluster::coverage::Mark;
use crate::cluster::env::connections::connection_of;
use crate::cluster::env::{After, Env, is_due, trace};
use crate::cluster::events::{Action, Answer, NodeEvent, Request, WatchCall};
use crate::cluster::truth::index;

/// Whoever moves leaders by hand.
const OPERATOR: LinkId = LinkId(u64::MAX);

/// What comes in for a group.
#[derive(Debug)]
pub(crate) enum Input {
    Event(Event),
    Request(Request),
    /// A gateway's batch.
    Gateway {
        link: LinkId,
        requests: Vec<wire::Request>,
    },
    /// A watcher's attempt, which has a link of its own.
    Watch {
        watcher: usize,
        attempt: u32,
        call: WatchCall,
    },
    /// The end of a hand-over.
    SnapshotSent {
        to: NodeId,
        number: u64,
    },
    /// An operator wants it.
    Transfer {
        to: NodeId,
    },
}

pub(crate) struct Task {
    group: usize,
    pub(crate) replica: Replica,
    gate: Gate,
    pub(crate) inbox: VecDeque<Input>,
    pub(crate) turn_at: Option<Time>,
    pub(crate) timer_at: Time,
    turn: Turn,
    /// When the turn began: it did what was due then.
    begun: Mono,
    stall: Stall,
    out: Out,
    /// The snapshot being written.
    pub(crate) taking: Option<(Slot, SnapshotWriter<SimDisk>)>,
    /// When the group hears last of how far that is.
    progress_at: Time,
    /// The hand-overs under way, by their numbers.
    sending: BTreeMap<NodeId, u64>,
    /// Requests of clients that are not answered, by the numbers they have here.
    asked: BTreeMap<u64, Asked>,
    last_request: u64,
    /// Reads and keep-alives of gateways that are not answered.
    asked_by_gateways: BTreeMap<(LinkId, u64), AskedByGateway>,
    /// What gateways have taken back, in this turn and before.
    cancelling: Vec<(LinkId, u64)>,
    cancelled: BTreeSet<(LinkId, u64)>,
    /// What the last turn showed.
    promised: Ballot,
}

/// A request, and the newest revision that was committed when the clock was read for it.
#[derive(Clone, Copy, Debug)]
struct Asked {
    request: Request,
    committed: i64,
    at: Time,
    /// The ballot of the leader whose lease covered it.
    leased: Option<Ballot>,
}

/// The same of a gateway: whether it reads at the leader.
#[derive(Clone, Copy, Debug)]
struct AskedByGateway {
    at_leader: bool,
    committed: i64,
    at: Time,
    leased: Option<Ballot>,
}

/// When the clock was read for an input: what it said, when that was in truth, and the newest revision committed then.
#[derive(Clone, Copy, Debug)]
struct Moment {
    now: Mono,
    at: Time,
    committed: i64,
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
        moment: Moment,
        input: Input,
    },
    /// The replica has said what is to be done; it is carried out later.
    BeforeSend,
}

/// Links of watchers are numbered from here on.
const WATCH_LINKS: u64 = 1 << 40;
/// The number of every watch on its link, and of the question how far it has come.
const WATCH: u64 = 1;
const WATCH_SYNC: u64 = 2;
/// The number of another one on the same link, of a key that nobody writes: it is always in step, whatever the first is, so
/// that the link is told how far those in step have come.
const QUIET_WATCH: u64 = 3;

fn watch_link(watcher: usize, attempt: u32) -> LinkId {
    LinkId(WATCH_LINKS | (watcher as u64) << 32 | u64::from(attempt))
}

fn watcher_of(link: LinkId) -> Option<(usize, u32)> {
    let of_watcher = link != OPERATOR && link.0 & WATCH_LINKS != 0;
    of_watcher.then_some(((link.0 >> 32 & 0xff) as usize, link.0 as u32))
}

fn watch_event(link: LinkId, call: WatchCall) -> Event {
    let request = |id, kind| wire::Request { id, kind: Some(kind), ..Default::default() };
    let requests = match call {
        WatchCall::Gone => return Event::LinkClosed(link),
        WatchCall::Open { watch, quiet } => vec![
            request(WATCH, RequestKind::WatchOpen(*watch)),
            request(QUIET_WATCH, RequestKind::WatchOpen(*quiet)),
        ],
        WatchCall::Credit(bytes) => {
            vec![request(WATCH, RequestKind::WatchCredit(wire::WatchCredit { bytes }))]
        }
        WatchCall::Sync => {
            vec![request(WATCH_SYNC, RequestKind::WatchSync(wire::WatchSync { watch: WATCH }))]
        }
    };
    Event::Requests { link, requests }
}

/// Every client takes what it is sent.
struct AllTake;

impl Links for AllTake {
    fn has_room(&self, _: LinkId) -> bool {
        true
    }

    fn has_room_for_large(&self, _: LinkId) -> bool {
        true
    }
}

fn read(range: KeyRange, serializable: bool) -> RequestKind {
    RequestKind::Read(wire::Read { query: query(range), serializable, at_least: 0 })
}

fn sight<'a>(now: Mono, liveness: &'a Liveness, full: bool) -> Sight<'a> {
    Sight { now, liveness, disk: Disk { full, crowded: false }, links: &AllTake }
}

impl Task {
    pub(crate) fn new(group: usize, replica: Replica) -> Task {
        Task {
            group,
            promised: replica.engine().status().promised,
            replica,
            gate: Gate::default(),
            inbox: VecDeque::new(),
            turn_at: None,
            timer_at: Time::MAX,
            turn: Turn::default(),
            begun: Mono(0),
            stall: Stall::None,
            out: Out::default(),
            taking: None,
            progress_at: 0,
            sending: BTreeMap::new(),
            asked: BTreeMap::new(),
            last_request: 0,
            asked_by_gateways: BTreeMap::new(),
            cancelling: Vec::new(),
            cancelled: BTreeSet::new(),
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

    /// The journal's own thread tells that records are durable: what waited for them leaves. Returns whether the group has
    /// to hear of it at once.
    pub(crate) fn durable(
        &mut self,
        incarnation: u64,
        node: &Node,
        env: &mut Env,
        upto: PersistSeq,
        lsn: Lsn,
    ) -> bool {
        let group = self.group;
        let awaited =
            self.gate.open(upto, |send| env.send(node.index, incarnation, group, send.to, send.message));
        self.inbox.push_back(Input::Event(Event::Persisted { upto, lsn }));
        awaited
    }

    /// Everything that has come in, then what follows from it.
    pub(crate) fn turn(&mut self, process: &mut Process, node: &mut Node, env: &mut Env) {
        let mut stalled_at = None;
        match std::mem::replace(&mut self.stall, Stall::None) {
            Stall::BeforeStep { moment, input } => {
                // What it sets a timer for counts from there.
                stalled_at = Some(moment.now);
                self.take_up(process, node, env, moment, input);
            }
            Stall::BeforeSend => {
                self.carry_out(process, node, env);
                if !self.go_on(process, node, env) {
                    return;
                }
            }
            stall @ (Stall::None | Stall::Armed { .. }) => self.stall = stall,
        }
        while let Some(input) = self.inbox.pop_front() {
            let committed = env.truths[self.group].revision();
            let moment = Moment { now: node.now(env), at: env.now, committed };
            if let Stall::Armed { before_step: true, time } = self.stall {
                env.mark(Mark::StallBeforeStep);
                self.stall = Stall::BeforeStep { moment, input };
                self.stop(process, node, env, time);
                return;
            }
            self.take_up(process, node, env, moment, input);
        }
        self.begun = stalled_at.unwrap_or(node.now(env));
        if self.go_on(process, node, env) {
            self.check(process, node, env);
            self.set_timer(process, node, env);
        }
    }

    /// What follows from the inputs. False if the thread stops before it is through.
    fn go_on(&mut self, process: &mut Process, node: &mut Node, env: &mut Env) -> bool {
        loop {
            let (now, liveness) = look(|| node.now(env), || &process.liveness);
            let sight = sight(now, liveness, process.full);
            if !self.turn.go_on(&mut self.replica, &sight, &mut self.out) {
                break;
            }
            self.replica.engine().check_invariants();
            if let Stall::Armed { before_step: false, time } = self.stall {
                env.mark(Mark::StallBeforeSend);
                self.stall = Stall::BeforeSend;
                self.stop(process, node, env, time);
                return false;
            }
            self.carry_out(process, node, env);
        }
        let (begun, deadline) = (self.begun, self.replica.engine().next_deadline());
        if is_due(deadline, begun) {
            let who = node.index + 1;
            env.fail("timers", format!("node {who} g{}: {deadline:?} is due again at {begun:?}", self.group));
        }
        true
    }

    fn stop(&mut self, process: &Process, node: &Node, env: &mut Env, time: Time) {
        trace!(env, "n{} g{} stops for {} us: {:?}", node.index + 1, self.group, time / 1000, self.stall);
        let at = env.now + time;
        self.turn_at = Some(at);
        env.node_at(at, node.index, process.start, NodeEvent::Turn(self.group));
    }

    fn set_timer(&mut self, process: &Process, node: &Node, env: &mut Env) {
        let deadline = self.replica.deadline().map(|deadline| node.clock.when(deadline, env.now));
        // Work is cut in pieces, and a turn takes some time.
        let work =
            (self.replica.has_work(&AllTake) || !self.inbox.is_empty()).then_some(env.now + 20 * MICRO);
        let Some(at) = deadline.into_iter().chain(work).min() else { return };
        let at = at.max(env.now + MICRO);
        if at < self.timer_at {
            self.timer_at = at;
            env.node_at(at, node.index, process.start, NodeEvent::Timer(self.group));
        }
    }

    fn take_up(
        &mut self,
        process: &mut Process,
        node: &mut Node,
        env: &mut Env,
        moment: Moment,
        input: Input,
    ) {
        let event = match input {
            Input::Event(event) => event,
            Input::Request(request) => self.ask(process, env, moment, request),
            Input::Gateway { link, requests } => {
                self.note_asked(process, moment, link, &requests);
                process.cancel_parts(link, &requests);
                Event::Requests { link, requests }
            }
            Input::Watch { watcher, attempt, call } => watch_event(watch_link(watcher, attempt), call),
            Input::SnapshotSent { to, number } => {
                if self.sending.get(&to) != Some(&number) {
                    return;
                }
                self.sending.remove(&to);
                Event::SnapshotSent { to }
            }
            Input::Transfer { to } => {
                let control = wire::LeaderControl { move_to: to.0, ..Default::default() };
                let request =
                    wire::Request { kind: Some(RequestKind::LeaderControl(control)), ..Default::default() };
                Event::Requests { link: OPERATOR, requests: vec![request] }
            }
        };
        trace!(env, "n{} g{} takes up {event:?}", node.index + 1, self.group);
        if let Event::SnapshotReceived { slot, .. } = &event
            && *slot > self.replica.engine().status().commit
        {
            env.mark(Mark::SnapshotInstalled);
        }
        let cancelled = self.replica.counters().cancelled;
        self.replica.step(&sight(moment.now, &process.liveness, process.full), event);
        if self.replica.counters().cancelled > cancelled {
            env.mark(Mark::RequestCancelled);
        }
        self.replica.engine().check_invariants();
    }

    /// A client's request, as its gateway would send it.
    fn ask(&mut self, process: &Process, env: &mut Env, moment: Moment, request: Request) -> Event {
        self.last_request += 1;
        let id = self.last_request;
        let place = env.maps.place_of(self.group);
        let kind = match request.action {
            Action::Open(nonce) => {
                let nonce = Bytes::copy_from_slice(&u128::from(nonce).to_le_bytes());
                RequestKind::OpenSession(wire::OpenSession { nonce })
            }
            Action::Write(session, write) => {
                let padding = env.profile.padding;
                let padding = env.rng.range(padding as u64 / 2, padding as u64) as usize;
                let op = write.op(place, padding);
                let route = env.maps.route(self.group, &op, write.old_map());
                let command = command(session, write.seq, route, op);
                RequestKind::Write(wire::Write { session: session.0, seq: u64::from(write.seq), command })
            }
            Action::Change(session, seq, change) => {
                let op = change.op(place, request.client + 1, seq);
                let route = env.maps.route(self.group, &op, None);
                let command = command(session, seq, route, op);
                RequestKind::Write(wire::Write { session: session.0, seq: u64::from(seq), command })
            }
            Action::Read(key) => read(single(place, Family::Register, key), false),
            Action::Scan { serializable, part } => {
                let range = env.maps.part_or_whole(self.group, Family::Other.keys(place), part);
                read(range, serializable)
            }
            Action::KeepAlive => {
                let leases = vec![lease_of(request.client + 1).0];
                RequestKind::KeepAlive(wire::KeepAlive { leases, ..Default::default() })
            }
        };
        let engine = self.replica.engine();
        let leased = engine.lease_read(moment.now, &process.liveness).map(|_| engine.status().ballot);
        let Moment { at, committed, .. } = moment;
        self.asked.insert(id, Asked { request, committed, at, leased });
        let link = LinkId(u64::from(request.client) + 1);
        Event::Requests { link, requests: vec![wire::Request { id, kind: Some(kind), ..Default::default() }] }
    }

    /// Does what the replica wants done.
    fn carry_out(&mut self, process: &mut Process, node: &mut Node, env: &mut Env) {
        let group = self.group;
        let mut out = std::mem::take(&mut self.out);
        if let Some(seq) = out.await_durable.take() {
            self.gate.await_durable(seq);
        }
        if !process.hand_in(node, env, group, &mut out.records) {
            out.records.clear();
            self.turn.journal_failed();
        }
        // From here on these are facts, and the messages may tell.
        for (slot, value) in self.replica.committed() {
            match env.truths[group].commit_at(env.now, node.index, *slot, value) {
                Ok(true) => {
                    trace!(env, "n{} g{group} commits {slot:?} first", node.index + 1);
                    if env.waited(group, *slot) > 40 * MILLI {
                        env.mark(Mark::HolderWait);
                    }
                    env.after.push(After::Committed { group, node: node.index, slot: *slot });
                    for _ in 0..env.truths[group].take_repeated() {
                        env.mark(Mark::DuplicateDropped);
                    }
                }
                Ok(false) => {}
                Err(violation) => env.note(Err(violation)),
            }
        }
        for send in out.sends.drain(..) {
            if let Some(send) = self.gate.pass(send) {
                env.send(node.index, process.incarnation, group, send.to, send.message);
            }
        }
        if let Some(floor) = out.floor.take() {
            trace!(env, "n{} g{group} needs nothing before {floor}", node.index + 1);
            process.set_floor(node, group, floor);
        }
        for (to, what) in out.to_peers.drain(..) {
            env.tell_peer(node.index, group, to, what);
        }
        for answer in out.answers.drain(..) {
            if let Some(connection) = connection_of(answer.link) {
                self.check_answers(node, env, answer.link, &answer.responses);
                env.send_to_gateway(connection, answer.responses);
                continue;
            }
            for response in answer.responses {
                if response.id == QUIET_WATCH && watcher_of(answer.link).is_some() {
                    continue;
                }
                match (watcher_of(answer.link), response.kind) {
                    (Some((watcher, attempt)), Some(kind)) => env.tell_watcher(watcher, attempt, kind),
                    (_, kind) => self.answer(node, env, wire::Response { kind, ..response }),
                }
            }
        }
        for large in out.large.drain(..) {
            self.answer_large(process, node, env, large);
        }
        for step in out.snapshots.drain(..) {
            self.on_snapshot(process, node, env, step);
        }
        for notice in out.notices.drain(..) {
            self.on_notice(process, node, env, &notice);
        }
        self.out = out;
    }

    /// What is large, gateways get in parts.
    fn answer_large(&mut self, process: &mut Process, node: &Node, env: &mut Env, large: LargeAnswer) {
        let LargeAnswer { link, request: id, term, gathered } = large;
        let outcome = gathered.finish();
        let mut whole = BytesMut::new();
        keyspace::encode_outcome(&outcome, &mut whole);
        let answer = wire::Response { id, term, kind: Some(Kind::Reply(whole.freeze())) };
        match connection_of(link) {
            Some(connection) => {
                self.check_answers(node, env, link, &[answer]);
                let gathered = Gathered::from(outcome);
                process.send_in_parts(
                    node,
                    env,
                    connection,
                    LargeAnswer { link, request: id, term, gathered },
                );
            }
            None => self.answer(node, env, answer),
        }
    }

    /// What a gateway asks for, to be compared with how it is answered.
    fn note_asked(&mut self, process: &Process, moment: Moment, link: LinkId, requests: &[wire::Request]) {
        let engine = self.replica.engine();
        let leased = engine.lease_read(moment.now, &process.liveness).map(|_| engine.status().ballot);
        let Moment { at, committed, .. } = moment;
        for request in requests {
            let at_leader = match &request.kind {
                Some(RequestKind::Read(read)) => !read.serializable,
                Some(RequestKind::KeepAlive(_)) => true,
                Some(RequestKind::Cancel(_)) => {
                    self.asked_by_gateways.remove(&(link, request.id));
                    self.cancelling.push((link, request.id));
                    continue;
                }
                Some(
                    RequestKind::Write(_)
                    | RequestKind::OpenSession(_)
                    | RequestKind::Status(_)
                    | RequestKind::WatchOpen(_)
                    | RequestKind::WatchCredit(_)
                    | RequestKind::WatchSync(_)
                    | RequestKind::WatchClose(_)
                    | RequestKind::LeaderControl(_)
                    | RequestKind::NodeStatus(_)
                    | RequestKind::Gateways(_)
                    | RequestKind::Ping(_),
                )
                | None => continue,
            };
            let asked = AskedByGateway { at_leader, committed, at, leased };
            self.asked_by_gateways.insert((link, request.id), asked);
        }
    }

    /// How a gateway is answered.
    fn check_answers(&mut self, node: &Node, env: &mut Env, link: LinkId, responses: &[wire::Response]) {
        for response in responses {
            if self.cancelled.contains(&(link, response.id)) {
                let who = node.index + 1;
                env.fail(
                    "cancel",
                    format!("node {who} answers {} on {link:?}, which was taken back", response.id),
                );
            }
            let Some(asked) = self.asked_by_gateways.remove(&(link, response.id)) else { continue };
            let AskedByGateway { at_leader, committed, at, leased } = asked;
            if let Some(Kind::KeptAlive(kept)) = &response.kind {
                for lease in kept.leases.iter().filter(|lease| lease.ttl > 0) {
                    env.truths[self.group].promise(at, LeaseId(lease.id), lease.ttl);
                }
            }
            if let Some(Kind::Reply(outcome)) = &response.kind
                && at_leader
            {
                if let Ok(Ok(reply)) = keyspace::decode_outcome(outcome.clone())
                    && reply.revision().0 < committed
                {
                    let (who, revision) = (node.index + 1, reply.revision());
                    let detail = format!("node {who}: reads at {revision:?}, {committed} was committed");
                    env.fail("I12", detail);
                }
                if let Some(ballot) = leased {
                    env.after.push(After::LeaseRead { group: self.group, node: node.index, ballot });
                }
            }
        }
    }

    fn answer(&mut self, node: &Node, env: &mut Env, response: wire::Response) {
        let Some(asked) = self.asked.remove(&response.id) else { return };
        let request = asked.request;
        let who = format!("node {} group {}", node.index + 1, self.group);
        let answer = match response.kind {
            Some(Kind::SessionOpened(opened)) => Answer::Opened(SessionId(opened.session)),
            Some(Kind::Reply(outcome)) => match keyspace::decode_outcome(outcome) {
                Ok(outcome) => self.replied(node, env, &asked, &outcome),
                Err(error) => {
                    env.fail("codec", format!("{who}: an outcome: {error}"));
                    Answer::Unknown
                }
            },
            Some(Kind::KeptAlive(kept)) => {
                for lease in kept.leases.iter().filter(|lease| lease.ttl > 0) {
                    env.mark(Mark::LeaseKept);
                    env.truths[self.group].promise(asked.at, LeaseId(lease.id), lease.ttl);
                }
                Answer::Done
            }
            Some(Kind::Refused(refused)) => self.refused(node, env, &request, &refused),
            other => {
                env.fail("answers", format!("{who}: {request:?} is answered {other:?}"));
                Answer::Unknown
            }
        };
        env.answer(request.client, request.operation, request.attempt, node.index, answer);
    }

    fn replied(&self, node: &Node, env: &mut Env, asked: &Asked, outcome: &Outcome) -> Answer {
        let Asked { request, committed, leased, .. } = *asked;
        let who = format!("node {} group {}", node.index + 1, self.group);
        if let Err(Error::ResultForgotten) = outcome {
            // The client has asked for something else since.
            return Answer::Unknown;
        }
        match (request.action, outcome) {
            (Action::Write(..), Ok(Reply::Put(put))) => {
                let before = put.prev_kv.as_ref().map_or(0, |before| value_of(&before.value));
                Answer::Written(Written { revision: put.revision.0, before })
            }
            (Action::Change(session, seq, _), outcome) => {
                let check = env.truths[self.group].answered_with(session, u64::from(seq), outcome);
                env.note(check);
                Answer::Done
            }
            (Action::Read(key), Ok(Reply::Range(range))) => {
                let register = single(env.maps.place_of(self.group), Family::Register, key);
                self.check_read(&who, env, committed, &register, range);
                env.mark(if leased.is_some() { Mark::LeaseRead } else { Mark::IndexRead });
                if let Some(ballot) = leased {
                    env.after.push(After::LeaseRead { group: self.group, node: node.index, ballot });
                }
                let value = range.kvs.first().map_or(0, |kv| value_of(&kv.value));
                Answer::Value { value, leased: leased.is_some() }
            }
            (Action::Scan { serializable, part }, Ok(Reply::Range(range))) => {
                // Any replica may have answered, with what it had.
                let committed = if serializable { 0 } else { committed };
                let others = Family::Other.keys(env.maps.place_of(self.group));
                let asked = env.maps.part_or_whole(self.group, others, part);
                self.check_read(&who, env, committed, &asked, range);
                Answer::Done
            }
            (action, outcome) => {
                env.fail("answers", format!("{who}: {action:?} is answered {outcome:?}"));
                Answer::Unknown
            }
        }
    }

    fn check_read(&self, who: &str, env: &mut Env, committed: i64, range: &KeyRange, reply: &RangeReply) {
        let revision = reply.revision.0;
        if revision < committed {
            env.fail("I12", format!("{who}: reads at revision {revision}, {committed} was committed before"));
        }
        let check = env.truths[self.group].check_read(&RangeRequest::new(range.clone()), reply);
        env.note(check);
    }

    fn refused(&self, node: &Node, env: &mut Env, request: &Request, refused: &wire::Refused) -> Answer {
        let hint = (refused.leader != 0).then(|| index(NodeId(refused.leader)));
        let answer = match refused.why() {
            Why::NotLeader => Answer::Refused(hint),
            Why::Overloaded => {
                env.mark(Mark::Overloaded);
                Answer::Refused(Some(node.index))
            }
            Why::NoDisk => {
                env.mark(Mark::RefusedForDisks);
                Answer::Refused(None)
            }
            Why::WrongShard => {
                env.mark(Mark::WrongShard);
                Answer::Misrouted
            }
            Why::OutcomeUnknown => return Answer::Unknown,
            why
            @ (Why::NoGroup | Why::Stopping | Why::AnswerTooLarge | Why::Malformed | Why::Unspecified) => {
                env.fail("answers", format!("node {}: {request:?} is refused: {why:?}", node.index + 1));
                return Answer::Unknown;
            }
        };
        if let Action::Write(_, write) = &request.action {
            let check = env.truths[self.group].rejected(node.index, write);
            env.note(check);
        }
        if let (Answer::Misrouted, Action::Change(session, seq, _)) = (answer, request.action) {
            let outcome = Err(Error::WrongShard);
            let check = env.truths[self.group].answered_with(session, u64::from(seq), &outcome);
            env.note(check);
        }
        answer
    }

    fn on_snapshot(&mut self, process: &mut Process, node: &mut Node, env: &mut Env, step: ToSnapshots) {
        let group = self.group;
        let heard = &mut self.progress_at;
        let mut later = |env: &mut Env, process: &Process, progress| {
            // One thread writes, so this comes in order.
            let at = (env.now + env.rng.around(5 * MILLI)).max(*heard + 1);
            *heard = at;
            env.node_at(at, node.index, process.start, NodeEvent::Snapshot { group, progress });
        };
        match step {
            ToSnapshots::Begin { slot, config } => match process.begin_snapshot(node, group, slot, &config) {
                Ok(writer) => self.taking = Some((slot, writer)),
                Err(error) => {
                    trace!(env, "n{} g{group} snapshot at {slot:?}: {error}", node.index + 1);
                    later(env, process, Progress::Failed(slot));
                }
            },
            ToSnapshots::Slice(slice) => {
                let Some((slot, writer)) = &mut self.taking else { return };
                let slot = *slot;
                match writer.slice(&slice) {
                    Ok(()) => later(env, process, Progress::Room(slot)),
                    Err(error) => {
                        trace!(env, "n{} g{group} snapshot at {slot:?}: {error}", node.index + 1);
                        self.taking = None;
                        later(env, process, Progress::Failed(slot));
                    }
                }
            }
            ToSnapshots::Finish => {
                let Some((slot, _)) = &self.taking else { return };
                let slot = *slot;
                let at = (env.now + env.rng.around(20 * MILLI)).max(self.progress_at + 1);
                self.progress_at = at;
                env.node_at(at, node.index, process.start, NodeEvent::SnapshotWritten { group, slot });
            }
            ToSnapshots::Abandon => self.taking = None,
            ToSnapshots::Send { to, slot } => match process.send_snapshot(node, env, group, to, slot) {
                Some(number) => {
                    self.sending.insert(to, number);
                }
                None => {
                    // Numbers begin at one.
                    self.sending.insert(to, 0);
                    self.inbox.push_back(Input::Event(Event::SnapshotLost { slot }));
                    self.inbox.push_back(Input::SnapshotSent { to, number: 0 });
                }
            },
        }
    }

    fn on_notice(&mut self, process: &Process, node: &Node, env: &mut Env, notice: &Notice) {
        trace!(env, "n{} g{} {notice:?}", node.index + 1, self.group);
        match notice {
            Notice::Role { role: Role::Leader, ballot, .. } => {
                env.mark(Mark::Election);
                if ballot.node == process.liveness.node() {
                    let check = env.truths[self.group].elected(node.index, *ballot);
                    env.note(check);
                }
                if let Some((handed, to)) = env.handoffs.get(&self.group)
                    && ballot.node == *to
                    && ballot > handed
                {
                    env.handoffs.remove(&self.group);
                    env.mark(Mark::TransferDone);
                }
            }
            Notice::TransferAborted { .. } => env.mark(Mark::TransferAborted),
            Notice::PayloadRepaired { .. } => env.mark(Mark::PayloadRepaired),
            Notice::Healed => env.mark(Mark::Healed),
            Notice::DisksFull { .. } => env.mark(Mark::DisksFull),
            Notice::Differs { node } => env.fail("I20", format!("node {node:?} is found to differ")),
            Notice::Suspicious {
                from,
                suspicion: suspicion @ (Suspicion::Round | Suspicion::Contradiction),
            } => {
                env.fail("trust", format!("{from:?} is healthy and was not believed: {suspicion:?}"));
            }
            Notice::PromiseDoubtful => {
                env.fail("trust", "an honest promise is taken for a forged one".to_owned());
            }
            Notice::Survived => env.fail("recovery", "nobody has declared a survivor".to_owned()),
            Notice::TooManyForgot { nodes } => {
                env.fail("recovery", format!("{nodes} have lost more than the seed may take from them"));
            }
            Notice::LeasesExpired { .. } => env.mark(Mark::LeaseExpired),
            Notice::VersionRaised { .. } => {
                let voters = &env.truths[self.group].config().voters;
                if voters.iter().any(|voter| env.begins_older(index(voter))) {
                    env.mark(Mark::Upgraded);
                }
            }
            Notice::NoState { .. } => {
                env.fail("notices", format!("nothing here leads to {notice:?}"));
            }
            // Values that nobody could be asked for, long enough, while links came and went. It is heard of again.
            Notice::Suspicious { suspicion: Suspicion::Commit, .. }
            // The rest is on its way back, or down for now.
            | Notice::Blocked { .. }
            | Notice::Role { role: Role::Follower | Role::Candidate, .. }
            | Notice::HandingOver { .. }
            | Notice::HandingOverFull { .. }
            | Notice::HandingOverPlace { .. }
            | Notice::HandingOverAsked { .. }
            | Notice::DisksHaveRoom
            | Notice::SnapshotInstalled { .. }
            | Notice::SnapshotBegun { .. }
            | Notice::SnapshotDurable { .. }
            | Notice::Fenced => {}
        }
    }

    /// What must hold between turns.
    fn check(&mut self, process: &Process, node: &Node, env: &mut Env) {
        // What was answered before it was taken back has left by now.
        self.cancelled.extend(self.cancelling.drain(..));
        let who = node.index + 1;
        let group = self.group;
        let status = self.replica.engine().status();
        if status.promised < self.promised {
            env.fail(
                "I1",
                format!("node {who} g{group}: promised {:?} after {:?}", status.promised, self.promised),
            );
        }
        self.promised = status.promised;
        let (applied, taken_up) = (self.replica.applied(), self.replica.taken_up());
        if status.commit != taken_up && !status.fenced {
            env.fail(
                "I10",
                format!("node {who} g{group}: commit is {:?}, taken up {taken_up:?}", status.commit),
            );
        }
        if applied < taken_up {
            env.mark(Mark::AppliedLater);
            if !self.replica.has_work(&AllTake) {
                env.fail("I10", format!("node {who} g{group}: {taken_up:?} waits for nothing to be applied"));
            }
        }
        // Inside of an entry the state is that of no slot.
        if self.replica.state().applied() == applied.0 {
            let check = env.truths[group].check_digest(node.index, applied, self.replica.state().digest());
            env.note(check);
        }
        self.check_lease(&process.liveness, node, env);
    }

    /// Whoever could read under the lease now would read everything committed by anybody.
    pub(crate) fn check_lease(&self, liveness: &Liveness, node: &Node, env: &mut Env) {
        let committed = env.truths[self.group].commit();
        if let Some(point) = self.replica.engine().lease_read(node.now(env), liveness)
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
