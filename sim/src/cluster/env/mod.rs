//! What all nodes share: true time, the events to come, the network, the truth, and the trace.

pub(crate) mod connections;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::gaios::link::v1::response::Kind;
use bytes::BytesMut;
use consensus_core::{Ballot, Config, LivenessMessage, Message, Mono, NodeId, Slot};
use group_core::ToPeer;
use keyspace::ClusterVersion;

use super::clock::Time;
use super::coverage::{Coverage, Mark};
use super::events::{Answer, Event, NodeEvent};
use super::maps::Maps;
use super::net::Net;
use super::profile::Profile;
use super::rng::{Rng, mix};
use super::truth::{Check, GroupTruth, Violation, bits, index};

use connections::Connections;

/// How many times the configured support incarnations give, where they differ in it.
const MIXED_SUPPORT: [u32; 3] = [1, 2, 4];

/// An event to come. The event itself lies elsewhere: a heap moves what it holds about.
struct Scheduled {
    at: Time,
    seq: u64,
    /// Its place in [`Env::events_to_come`].
    place: usize,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Scheduled) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Scheduled) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    // The heap gives out its greatest element first.
    fn cmp(&self, other: &Scheduled) -> Ordering {
        (other.at, other.seq).cmp(&(self.at, self.seq))
    }
}

/// A check that needs to see several nodes, made when the event is over.
#[derive(Clone, Copy, Debug)]
pub(crate) enum After {
    /// `node` was the first to commit `slot`.
    Committed { group: usize, node: usize, slot: Slot },
    /// `node` served a read under its lease.
    LeaseRead { group: usize, node: usize, ballot: Ballot },
    /// What `grantor` grants `holder` may have changed.
    Support { holder: usize, grantor: usize },
}

/// What becomes of the lines of the trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceMode {
    /// Only the hash is kept.
    Off,
    /// The last so many lines are kept.
    Last(usize),
    /// Every line is kept.
    All,
}

pub(crate) struct Trace {
    pub(crate) hash: u64,
    mode: TraceMode,
    pub(crate) lines: VecDeque<String>,
}

impl Trace {
    pub(crate) fn is_on(&self) -> bool {
        self.mode != TraceMode::Off
    }

    pub(crate) fn line(&mut self, now: Time, line: fmt::Arguments<'_>) {
        if let TraceMode::Last(most) = self.mode
            && self.lines.len() >= most
        {
            self.lines.pop_front();
        }
        self.lines.push_back(format!("{:>4}.{:06} ms  {line}", now / 1_000_000, now % 1_000_000));
    }
}

macro_rules! trace {
    ($env:expr, $($line:tt)*) => {
        if $env.trace.is_on() {
            let now = $env.now;
            $env.trace.line(now, format_args!($($line)*));
        }
    };
}
pub(crate) use trace;

/// How far the members have acknowledged the present leader, to tell why a commit waits.
#[derive(Debug, Default)]
struct Acknowledged {
    ballot: Ballot,
    upto: BTreeMap<usize, Slot>,
    quorum: Slot,
    since: BTreeMap<Slot, Time>,
}

pub(crate) struct Env {
    pub(crate) now: Time,
    heap: BinaryHeap<Scheduled>,
    events_to_come: Vec<Option<Event>>,
    free_places: Vec<usize>,
    seq: u64,
    pub(crate) events: u64,
    pub(crate) rng: Rng,
    pub(crate) profile: Profile,
    pub(crate) net: Net,
    pub(crate) connections: Connections,
    pub(crate) maps: Maps,
    /// Nodes whose process runs, as bits.
    pub(crate) running: u32,
    /// The beginning of time for those who count it otherwise.
    pub(crate) origin: Instant,
    pub(crate) truths: Vec<GroupTruth>,
    pub(crate) coverage: Coverage,
    pub(crate) trace: Trace,
    pub(crate) violation: Option<Violation>,
    pub(crate) after: Vec<After>,
    /// The faults are over.
    pub(crate) healed: bool,
    pub(crate) seed: u64,
    pub(crate) mixed_support: bool,
    #[cfg(feature = "mutants")]
    pub(crate) mutant: Option<super::Mutant>,
    acknowledged: Vec<Acknowledged>,
    /// Leaders that handed over, and to whom.
    pub(crate) handoffs: BTreeMap<usize, (Ballot, NodeId)>,
    /// Slots that a leader has sent, to recognise what it sends again.
    sent: BTreeMap<(usize, usize, usize), (Ballot, Slot)>,
    /// (group, slot) of values that were adopted, to count each once.
    adopted: BTreeSet<(usize, Slot)>,
}

impl Env {
    pub(crate) fn new(seed: u64, profile: Profile, mut rng: Rng, mode: TraceMode) -> Env {
        let maps = Maps::draw(&mut rng, profile.nodes, &profile.groups);
        let truth = |(group, config): (usize, &Config)| {
            GroupTruth::new(group, Arc::new(config.clone()), maps.spans(group).to_vec(), profile.write_bounds)
        };
        let truths: Vec<GroupTruth> = profile.groups.iter().enumerate().map(truth).collect();
        Env {
            now: 0,
            heap: BinaryHeap::new(),
            events_to_come: Vec::new(),
            free_places: Vec::new(),
            seq: 0,
            events: 0,
            rng,
            net: Net::new(profile.quality),
            connections: Connections::default(),
            maps,
            running: 0,
            // Only differences count.
            origin: Instant::now(),
            acknowledged: truths.iter().map(|_| Acknowledged::default()).collect(),
            profile,
            truths,
            coverage: Coverage::default(),
            trace: Trace { hash: seed, mode, lines: VecDeque::new() },
            violation: None,
            after: Vec::new(),
            healed: false,
            seed,
            mixed_support: false,
            #[cfg(feature = "mutants")]
            mutant: None,
            handoffs: BTreeMap::new(),
            sent: BTreeMap::new(),
            adopted: BTreeSet::new(),
        }
    }

    /// True time, as gateways count it.
    pub(crate) fn instant(&self) -> Instant {
        self.origin + Duration::from_nanos(self.now)
    }

    pub(crate) fn at(&mut self, at: Time, event: Event) {
        self.seq += 1;
        let place = self.free_places.pop().unwrap_or_else(|| {
            self.events_to_come.push(None);
            self.events_to_come.len() - 1
        });
        let before = self.events_to_come[place].replace(event);
        debug_assert!(before.is_none(), "a free place holds no event");
        self.heap.push(Scheduled { at: at.max(self.now), seq: self.seq, place });
    }

    pub(crate) fn after(&mut self, delay: Time, event: Event) {
        self.at(self.now + delay, event);
    }

    /// An event for one start of a node's process.
    pub(crate) fn node_at(&mut self, at: Time, node: usize, start: u64, event: NodeEvent) {
        self.at(at, Event::Node { node, start: Some(start), event: Box::new(event) });
    }

    /// Moves to the next event.
    pub(crate) fn next(&mut self) -> Option<Event> {
        let Scheduled { at, seq, place } = self.heap.pop()?;
        let event = self.events_to_come[place].take();
        self.free_places.push(place);
        self.now = at;
        self.events += 1;
        // Any difference between two runs shows in when and in which order things happen.
        self.trace.hash = mix(self.trace.hash ^ at.rotate_left(24) ^ seq);
        debug_assert!(event.is_some(), "what is scheduled has its event");
        event
    }

    pub(crate) fn mark(&mut self, mark: Mark) {
        self.coverage.mark(mark);
    }

    pub(crate) fn note(&mut self, check: Check) {
        if let Err(violation) = check
            && self.violation.is_none()
        {
            trace!(self, "VIOLATION {}: {}", violation.invariant, violation.detail);
            self.violation = Some(violation);
        }
    }

    pub(crate) fn fail(&mut self, invariant: &str, detail: String) {
        self.note(super::truth::fail(invariant, detail));
    }

    /// Puts a message of a group on the wire. What it claims must be durable on its sender's disk by now.
    pub(crate) fn send(&mut self, from: usize, incarnation: u64, group: usize, to: NodeId, message: Message) {
        trace!(self, "n{} g{group} -> n{} {message:?}", from + 1, to.0);
        self.check_sent(from, incarnation, group, to, &message);
        let message = if self.rng.below(8) == 0 { self.through_codec(message) } else { message };
        let to = index(to);
        let times = self.net.arrivals(&mut self.rng, self.now, from, to);
        if times.len() > 1 {
            self.mark(Mark::MessageDuplicated);
        }
        for at in times {
            let event = NodeEvent::Message { from, incarnation, group, message: message.clone() };
            self.at(at, Event::Node { node: to, start: None, event: Box::new(event) });
        }
    }

    pub(crate) fn send_liveness(
        &mut self,
        from: usize,
        support: Duration,
        to: NodeId,
        message: LivenessMessage,
    ) {
        let to = index(to);
        for at in self.net.arrivals(&mut self.rng, self.now, from, to) {
            let event = NodeEvent::Liveness { from, support, message: message.clone() };
            self.at(at, Event::Node { node: to, start: None, event: Box::new(event) });
        }
    }

    /// What is no message of an engine's, to a peer's replica.
    pub(crate) fn tell_peer(&mut self, from: usize, group: usize, to: NodeId, what: ToPeer) {
        let to = index(to);
        for at in self.net.arrivals(&mut self.rng, self.now, from, to) {
            let event = Box::new(NodeEvent::FromPeer { from, group, what });
            self.at(at, Event::Node { node: to, start: None, event });
        }
    }

    /// Tells all others whether a node's disk is full.
    pub(crate) fn tell_disk(&mut self, from: usize, full: bool) {
        for to in (0..self.profile.nodes).filter(|to| *to != from) {
            for at in self.net.arrivals(&mut self.rng, self.now, from, to) {
                let event = Box::new(NodeEvent::PeerDisk { from, full });
                self.at(at, Event::Node { node: to, start: None, event });
            }
        }
    }

    /// Tells a watcher something; in order, as over a connection.
    pub(crate) fn tell_watcher(&mut self, watcher: usize, attempt: u32, kind: Kind) {
        self.after(300_000, Event::WatchTold { watcher, attempt, kind: Box::new(kind) });
    }

    /// What the receiver decodes must be what the sender meant.
    fn through_codec(&mut self, message: Message) -> Message {
        let mut bytes = BytesMut::new();
        message.encode(&mut bytes);
        let mut bytes = bytes.freeze();
        match Message::decode(&mut bytes) {
            Ok(decoded) if decoded == message && bytes.is_empty() => decoded,
            Ok(_) | Err(_) => {
                self.fail("codec", format!("not the same after encoding and decoding: {message:?}"));
                message
            }
        }
    }

    fn check_sent(&mut self, from: usize, incarnation: u64, group: usize, to: NodeId, message: &Message) {
        let truth = &mut self.truths[group];
        let check = match message {
            Message::Prepare(prepare) => truth.prepare_sent(from, incarnation, prepare),
            Message::Promise(promise) => {
                if promise.parts > 1 {
                    self.coverage.mark(Mark::PromiseInParts);
                }
                truth.promise_sent(from, promise)
            }
            Message::Accepted(accepted) => truth.accepted_sent(from, accepted),
            Message::Accept(accept) => {
                let sent = self.sent.entry((group, from, index(to))).or_default();
                if let (Some((first, _)), Some((last, _))) = (accept.entries.first(), accept.entries.last()) {
                    if sent.0 == accept.ballot && *first <= sent.1 {
                        self.coverage.mark(Mark::Retransmission);
                    }
                    let before = if sent.0 == accept.ballot { sent.1 } else { Slot(0) };
                    *sent = (accept.ballot, before.max(*last));
                }
                for (slot, value) in accept.entries.iter().filter(|(slot, _)| *slot > accept.commit) {
                    if !self.adopted.contains(&(group, *slot))
                        && truth.is_adopted(*slot, accept.ballot, value)
                    {
                        self.adopted.insert((group, *slot));
                        self.coverage.mark(Mark::ValueAdopted);
                    }
                }
                truth.accept_sent(from, accept)
            }
            Message::Commit(commit) => truth.commit_claimed(from, commit.commit),
            Message::Chosen(chosen) => truth.chosen_sent(from, chosen),
            Message::Handoff(handoff) => {
                self.handoffs.insert(group, (handoff.ballot, to));
                Ok(())
            }
            Message::Resigned(_) => {
                self.coverage.mark(Mark::Resigned);
                Ok(())
            }
            Message::PreVote(_)
            | Message::PreVoteReply(_)
            | Message::Nack(_)
            | Message::Fortify(_)
            | Message::Fortified(_)
            | Message::ReadIndex(_)
            | Message::ReadIndexReply(_)
            | Message::Fetch(_)
            | Message::Recall(_)
            | Message::Recalled(_)
            | Message::Vouched(_) => Ok(()),
        };
        self.note(check);
    }

    /// A message reaches a running process.
    pub(crate) fn arrived(&mut self, from: usize, to: usize, group: usize, message: &Message) {
        trace!(self, "n{} g{group} <- n{} {message:?}", to + 1, from + 1);
        match message {
            Message::Promise(promise) => self.truths[group].promise_arrived(from, promise),
            Message::PreVoteReply(reply) if !reply.granted => self.mark(Mark::PreVoteDenied),
            Message::Nack(_) => self.mark(Mark::Nacked),
            Message::ReadIndexReply(_) => self.mark(Mark::ReadIndexRound),
            Message::Chosen(chosen) if !chosen.entries.is_empty() => self.mark(Mark::CaughtUpByFetch),
            Message::Accepted(accepted) => {
                let config = self.truths[group].config();
                let (q2, voters) = (usize::from(config.q2), config.voters.clone());
                let acknowledged = &mut self.acknowledged[group];
                if accepted.ballot > acknowledged.ballot {
                    *acknowledged = Acknowledged { ballot: accepted.ballot, ..Acknowledged::default() };
                }
                if accepted.ballot < acknowledged.ballot || !voters.contains(super::truth::id(from)) {
                    return;
                }
                let upto = acknowledged.upto.entry(from).or_default();
                *upto = accepted.upto.max(*upto);
                let mut others: Vec<Slot> = acknowledged.upto.values().copied().collect();
                others.sort_unstable_by(|a, b| b.cmp(a));
                // The leader's own vote makes the last one.
                let quorum = others.get(q2.saturating_sub(2)).copied().unwrap_or_default();
                for slot in (acknowledged.quorum.0 + 1..=quorum.0).map(Slot) {
                    acknowledged.since.insert(slot, self.now);
                }
                acknowledged.quorum = acknowledged.quorum.max(quorum);
            }
            Message::PreVote(_)
            | Message::PreVoteReply(_)
            | Message::Prepare(_)
            | Message::Accept(_)
            | Message::Commit(_)
            | Message::Fortify(_)
            | Message::Fortified(_)
            | Message::ReadIndex(_)
            | Message::Fetch(_)
            | Message::Chosen(_)
            | Message::Handoff(_)
            | Message::Resigned(_)
            | Message::Recall(_)
            | Message::Recalled(_)
            | Message::Vouched(_) => {}
        }
    }

    /// How long ago enough members had acknowledged a slot, when it is committed.
    pub(crate) fn waited(&mut self, group: usize, slot: Slot) -> Time {
        let acknowledged = &mut self.acknowledged[group];
        let since = acknowledged.since.remove(&slot);
        acknowledged.since = acknowledged.since.split_off(&slot);
        since.map_or(0, |since| self.now - since)
    }

    /// The nodes that voted for a slot at its highest ballot.
    pub(crate) fn voters_of(&self, group: usize, slot: Slot) -> impl Iterator<Item = usize> + use<> {
        bits(self.truths[group].voters_of(slot))
    }

    /// A seed for something of a node, the same in every run.
    pub(crate) fn seed_for(&self, node: usize, group: usize, nonce: u64) -> u64 {
        mix(self.seed ^ mix(node as u64 ^ (group as u64) << 16 ^ nonce << 32))
    }

    /// How long a node supports others after this start.
    pub(crate) fn support_of(&self, node: usize, start: u64) -> Duration {
        let support = self.profile.timing.support;
        if !self.mixed_support {
            return support;
        }
        support * MIXED_SUPPORT[(self.seed_for(node, 0xfffd, start) % MIXED_SUPPORT.len() as u64) as usize]
    }

    /// Whether a node begins as one that is older than the others may be.
    pub(crate) fn begins_older(&self, node: usize) -> bool {
        self.seed_for(0, 0xfffb, 0).is_multiple_of(3) && self.seed_for(node, 0xfffb, 1).is_multiple_of(2)
    }

    /// The newest cluster version that a node knows which starts now for this time: an older one is replaced when it starts again.
    pub(crate) fn known_to(&self, node: usize, start: u64) -> ClusterVersion {
        let is_older = start <= 1 && !self.healed && self.begins_older(node);
        match (is_older, self.seed_for(0, 0xfff9, 0).is_multiple_of(2)) {
            (false, _) => ClusterVersion::NEWEST,
            (true, false) => ClusterVersion::FIRST,
            (true, true) => ClusterVersion::NUMBERED_GRANTS,
        }
    }

    /// The longest that any node supports others.
    pub(crate) fn support_max(&self) -> Duration {
        let most = if self.mixed_support { MIXED_SUPPORT.into_iter().max() } else { None };
        self.profile.timing.support * most.unwrap_or(1)
    }

    pub(crate) fn answer(&mut self, client: u32, operation: u64, attempt: u32, node: usize, answer: Answer) {
        trace!(self, "n{} answers c{client} #{operation}.{attempt}: {answer:?}", node + 1);
        if self.rng.chance(self.profile.quality.loss_ppm / 4) && !self.healed {
            return;
        }
        let delay = self.rng.around(300_000);
        self.after(delay, Event::Answer { client: client as usize, operation, attempt, node, answer });
    }
}

/// Nothing a node does may spin: see [`super::node::Node`].
pub(crate) fn is_due(deadline: Option<Mono>, now: Mono) -> bool {
    deadline.is_some_and(|deadline| deadline <= now)
}
