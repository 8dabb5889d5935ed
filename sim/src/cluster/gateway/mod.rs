//! A gateway's process: the types of `gateway_core`, put together over the simulated network and clock as the crate
//! `gateway` puts them together over sockets and tasks. It loses everything when it ends.

mod dials;
mod feeds;
mod requests;
mod streams;
mod tracking;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use api::gaios::link::v1 as wire;
use api::gaios::link::v1::response::Kind;
use bytes::Bytes;
use gateway_core::link::{BrokenParts, Gathered, Heard, LinkEnd, LinkId, Waiter};
use gateway_core::nearest::{Nodes, Place};
use gateway_core::silence::Check;
use gateway_core::{
    GroupId, GroupState, LeaderTracker, Links, Loss, NodeId, Quiet, Reach, Renewals, Replicas, Topology,
    Upstreams, Ways,
};

use super::clock::{MICRO, MILLI, Time};
use super::coverage::Mark;
use super::env::{Env, trace};
use super::events::{Event, GatewayEvent, ToStream, Told};
use super::truth::id;

use dials::Dial;
use feeds::{Carried, Hub};
use requests::{Driven, Renewing};
use streams::ClientStream;

/// How often the health of links is looked at.
const HEALTH_EVERY: Time = 250 * MILLI;
/// Every so many looks, watchers are told how far they have come.
const LOOKS_PER_PROGRESS: u64 = 8;
/// What is put on a link gathers for so long while the link is busy.
const LINK_BUSY: Time = 30 * MICRO;

/// The gateways, and how they start and end.
pub(crate) struct Gateways(Vec<Host>);

/// Where a gateway's process runs, if it does.
struct Host {
    incarnation: u64,
    process: Option<Box<Gateway>>,
}

/// See the module.
pub(crate) struct Gateway {
    index: usize,
    incarnation: u64,
    ways: Ways,
    dials: Vec<Dial>,
    /// Something about the ways to the nodes has changed.
    has_news_of_ways: bool,
    /// The links that are up.
    links: Links<u64>,
    ends: BTreeMap<u64, End>,
    nodes: RefCell<Nodes>,
    domains: Vec<Domain>,
    groups: Vec<Group>,
    requests: BTreeMap<u64, Driven>,
    last_request: u64,
    /// Requests that may be able to go on.
    ready: VecDeque<u64>,
    hub: Hub,
    feeds: BTreeMap<u64, Carried>,
    streams: BTreeMap<usize, ClientStream>,
    wake_at: Time,
    looks: u64,
}

/// A domain as a gateway sees it.
#[derive(Default)]
struct Domain {
    /// None before the first node has welcomed us: then its groups are not known.
    topology: Option<Topology>,
    upstreams: Upstreams<u64>,
}

/// A group as a gateway sees it.
struct Group {
    domain: usize,
    state: GroupState,
    tracker: LeaderTracker,
    /// When the tracker has something to do.
    tracker_due: Option<Instant>,
    nonce: Bytes,
    /// Numbers the questions of the tracker: answers to older ones are nobody's.
    asked: u64,
    /// The newest revision and term that were heard.
    seen: (i64, u64),
    renewals: Renewals<Renewing>,
}

/// The gateway's end of a connection that is up.
struct End {
    end: LinkEnd<Caller, u64>,
    node: usize,
    heard_at: Time,
    round_trip: Duration,
    /// A frame leaves soon.
    flushing: bool,
}

/// Who waits for an answer.
#[derive(Clone, Debug)]
enum Caller {
    Request(u64),
    Probe { group: usize, asked: u64, node: NodeId },
    Opening { group: usize, asked: u64, node: NodeId },
    Feeds { group: GroupId, link: LinkId, question: u64 },
}

/// The links, as requests, trackers and feeds see them.
struct Reached<'a> {
    now: Instant,
    links: &'a Links<u64>,
    ends: &'a BTreeMap<u64, End>,
    nodes: &'a RefCell<Nodes>,
    replicas: Vec<NodeId>,
    time: Time,
}

impl Reach for Reached<'_> {
    type Link = u64;

    fn to(&self, node: NodeId) -> Option<u64> {
        self.links.to(node, || 0, |link| self.ends.contains_key(link)).copied()
    }

    fn nearest(&self) -> Option<(NodeId, u64)> {
        let reached: Vec<NodeId> =
            self.replicas.iter().copied().filter(|node| self.to(*node).is_some()).collect();
        let node = self.nodes.borrow_mut().choose(self.now, &reached)?;
        self.to(node).map(|link| (node, link))
    }
}

impl Replicas for Reached<'_> {
    fn all(&self) -> Vec<NodeId> {
        self.replicas.clone()
    }

    fn quiet(&self, link: &u64) -> Quiet {
        let Some(end) = self.ends.get(link) else {
            return Quiet { owes: false, silent_for: Duration::ZERO, round_trip: Duration::ZERO };
        };
        Quiet { owes: end.end.owed() > 0, silent_for: end.silent_for(self.time), round_trip: end.round_trip }
    }
}

impl End {
    fn silent_for(&self, now: Time) -> Duration {
        Duration::from_nanos(now - self.heard_at)
    }
}

impl Gateways {
    pub(crate) fn new(env: &mut Env) -> Gateways {
        let gateways = env.profile.gateways;
        for gateway in 0..gateways {
            let at = env.rng.below(500 * MILLI);
            env.after(at, Event::GatewayStart { gateway });
        }
        Gateways((0..gateways).map(|_| Host { incarnation: 0, process: None }).collect())
    }

    pub(crate) fn start(&mut self, env: &mut Env, index: usize) {
        let place = &mut self.0[index];
        if place.process.is_some() {
            return;
        }
        place.incarnation += 1;
        trace!(env, "gateway {index} starts");
        let mut gateway = Box::new(Gateway::new(env, index, place.incarnation));
        gateway.settle(env);
        place.process = Some(gateway);
        env.at(
            env.now + HEALTH_EVERY,
            Event::Gateway {
                gateway: index,
                incarnation: place.incarnation,
                event: Box::new(GatewayEvent::Health),
            },
        );
    }

    /// The process is killed. Whoever is connected with it hears of that.
    pub(crate) fn stop(&mut self, env: &mut Env, index: usize) {
        let Some(gateway) = self.0[index].process.take() else { return };
        trace!(env, "gateway {index} ends");
        env.mark(Mark::GatewayKilled);
        gateway.end(env);
        env.gateway_ended(index);
    }

    pub(crate) fn handle(&mut self, env: &mut Env, index: usize, incarnation: u64, event: GatewayEvent) {
        let place = &mut self.0[index];
        if let Some(gateway) = place.process.as_mut().filter(|_| place.incarnation == incarnation) {
            gateway.handle(env, event);
        }
    }

    /// What a client asks of whatever process runs there now. Nobody hears of it otherwise.
    pub(crate) fn handle_client(&mut self, env: &mut Env, index: usize, event: GatewayEvent) {
        match &mut self.0[index].process {
            Some(gateway) => gateway.handle(env, event),
            None => refuse_connection(env, event),
        }
    }
}

/// A node's id, as gateways know it.
fn node_id(index: usize) -> NodeId {
    NodeId(id(index).0)
}

/// Nobody listens.
fn refuse_connection(env: &mut Env, event: GatewayEvent) {
    if let GatewayEvent::Call(call) = event {
        call.lost(env, Vec::new());
    } else if let GatewayEvent::Stream(ToStream { stream, connection, .. }) = event {
        env.after(MILLI, Event::StreamTold { stream, connection, told: Told::Broken });
    }
}

impl Gateway {
    fn new(env: &mut Env, index: usize, incarnation: u64) -> Gateway {
        let now = env.instant();
        let mut ways = Ways::default();
        let nodes = 0..env.profile.nodes;
        let dials = nodes.map(|node| Dial::new(now, &mut ways, node_id(node))).collect();
        let group = |group| Group {
            domain: env.maps.domain_of(group),
            state: GroupState::default(),
            tracker: LeaderTracker::default(),
            tracker_due: None,
            nonce: Bytes::copy_from_slice(
                &(u128::from(incarnation) << 64 | (index as u128 + 1) << 32 | 0xffff).to_le_bytes(),
            ),
            asked: 0,
            seen: (0, 0),
            renewals: Renewals::default(),
        };
        Gateway {
            index,
            incarnation,
            ways,
            dials,
            has_news_of_ways: true,
            links: Links::default(),
            ends: BTreeMap::new(),
            nodes: RefCell::new(Nodes::new(Place::default())),
            domains: (0..env.maps.domains()).map(|_| Domain::default()).collect(),
            groups: (0..env.profile.groups.len()).map(group).collect(),
            requests: BTreeMap::new(),
            last_request: 0,
            ready: VecDeque::new(),
            hub: Hub::default(),
            feeds: BTreeMap::new(),
            streams: BTreeMap::new(),
            wake_at: Time::MAX,
            looks: 0,
        }
    }

    fn handle(&mut self, env: &mut Env, event: GatewayEvent) {
        match event {
            GatewayEvent::Connected(connection) => self.handle_connected(connection),
            GatewayEvent::Welcomed { connection, maps } => self.handle_welcomed(env, connection, maps),
            GatewayEvent::Refused(connection) => self.handle_refused(env, connection),
            GatewayEvent::Frame { connection, responses } => self.handle_frame(env, connection, responses),
            GatewayEvent::Down(connection) => self.handle_gone(env, connection, Loss::Other),
            GatewayEvent::Flush(connection) => self.flush(env, connection),
            GatewayEvent::Wake => self.wake_at = Time::MAX,
            GatewayEvent::Health => self.look_at_health(env),
            GatewayEvent::Call(call) => self.begin(env, call),
            GatewayEvent::GiveUp { caller, operation } => self.give_up(env, caller, operation),
            GatewayEvent::Stream(to) => self.handle_stream(env, to),
        }
        self.settle(env);
    }

    /// Everybody who is connected hears that the process has ended.
    fn end(mut self: Box<Self>, env: &mut Env) {
        for (_, driven) in std::mem::take(&mut self.requests) {
            driven.lost(env);
        }
        for group in &mut self.groups {
            for renewing in group.renewals.give_up(|_| true) {
                renewing.lost(env);
            }
        }
        for (stream, client) in std::mem::take(&mut self.streams) {
            let connection = client.connection();
            env.after(MILLI, Event::StreamTold { stream, connection, told: Told::Broken });
        }
    }

    /// Does all that can be done now, and sees that it is woken for the rest.
    fn settle(&mut self, env: &mut Env) {
        loop {
            self.time_out(env);
            self.renew(env);
            while let Some(request) = self.ready.pop_front() {
                self.advance(env, request);
            }
            for group in 0..self.groups.len() {
                self.track(env, group);
            }
            self.keep_dials(env);
            self.carry_feeds(env);
            self.serve_streams(env);
            if self.ready.is_empty() && !self.hub.has_news() {
                break;
            }
        }
        let now = env.instant();
        let trackers = self.groups.iter().filter_map(|group| group.tracker_due);
        let dials = self.dials.iter().filter_map(Dial::due);
        let feeds = self.domains.iter().filter_map(|domain| domain.upstreams.deadline());
        let requests = self.requests.values().map(Driven::due);
        let renewals = self.groups.iter().filter_map(|group| requests::renewals_due(env, &group.renewals));
        let due = trackers.chain(dials).chain(feeds).chain(requests).chain(renewals).min();
        let Some(due) = due else { return };
        let at = (env.now + due.saturating_duration_since(now).as_nanos() as Time).max(env.now + MICRO);
        if at < self.wake_at {
            self.wake_at = at;
            self.tell_self(env, at, GatewayEvent::Wake);
        }
    }

    fn tell_self(&self, env: &mut Env, at: Time, event: GatewayEvent) {
        env.at(
            at,
            Event::Gateway { gateway: self.index, incarnation: self.incarnation, event: Box::new(event) },
        );
    }

    fn reach(&self, env: &Env, group: usize) -> Reached<'_> {
        let topology = self.domain_of(group).topology.as_ref();
        Reached {
            now: env.instant(),
            links: &self.links,
            ends: &self.ends,
            nodes: &self.nodes,
            replicas: topology.map_or_else(Vec::new, |topology| topology.replicas(GroupId(group as u64))),
            time: env.now,
        }
    }

    /// The domain that a group carries.
    fn domain_of(&self, group: usize) -> &Domain {
        &self.domains[self.groups[group].domain]
    }

    /// Those who wait for a leader, its link or a session look again.
    fn announce(&mut self, group: usize) {
        let waiting = self.requests.iter().filter(|(_, driven)| driven.hears_news_of(group));
        self.ready.extend(waiting.map(|(request, _)| *request));
        let Group { domain, tracker_due, .. } = &mut self.groups[group];
        *tracker_due = None;
        self.domains[*domain].upstreams.handle_news();
    }

    fn announce_links(&mut self) {
        for group in 0..self.groups.len() {
            self.announce(group);
        }
    }

    /// What was put on a link leaves soon, with whatever else is put there meanwhile.
    fn flush_soon(&mut self, env: &mut Env, link: u64) {
        let Some(end) = self.ends.get_mut(&link) else { return };
        if !end.flushing && !end.end.is_idle() {
            end.flushing = true;
            let at = env.now + LINK_BUSY;
            self.tell_self(env, at, GatewayEvent::Flush(link));
        }
    }

    fn flush(&mut self, env: &mut Env, link: u64) {
        let Some(end) = self.ends.get_mut(&link) else { return };
        end.flushing = false;
        while let Some(frame) = end.end.take_frame() {
            env.send_to_node(link, frame);
        }
    }

    fn handle_frame(&mut self, env: &mut Env, link: u64, responses: Vec<wire::Response>) {
        for response in responses {
            let Some(end) = self.ends.get_mut(&link) else { return };
            end.heard_at = env.now;
            if let Some(Kind::ShardMap(update)) = response.kind {
                self.learn_map(env, update.shard_map);
                continue;
            }
            if let Some(Kind::Refused(refused)) = &response.kind
                && !refused.shard_map.is_empty()
            {
                self.learn_map(env, refused.shard_map.clone());
            }
            let Some(end) = self.ends.get_mut(&link) else { return };
            let node = end.node;
            if self.handle_unasked(env, link, &response) {
                continue;
            }
            let Some(end) = self.ends.get_mut(&link) else { return };
            let response = match end.end.gather(response, |_, _| true) {
                Ok(Gathered::Whole(response)) => response,
                Ok(Gathered::Nothing | Gathered::NoRoom { .. }) => continue,
                Err(BrokenParts(reason)) => {
                    return env.fail("parts", format!("gateway {}: {reason}", self.index));
                }
            };
            match end.end.handle_response(|| env.instant(), response.id) {
                Heard::Answer(caller) => self.answered(env, caller, Ok(response)),
                Heard::Watch(feed) => {
                    let feed = *feed;
                    self.handle_feed_frame(env, link, feed, response);
                }
                Heard::Ping(Some(sample)) => {
                    end.round_trip = sample;
                    self.nodes.borrow_mut().handle_round_trip(node_id(node), sample);
                }
                Heard::Ping(None) | Heard::Nobody => {}
            }
        }
    }

    /// A node sent a shard map.
    fn learn_map(&mut self, env: &mut Env, map: Bytes) {
        let Some(number) = env.maps.domain_of_map(&map) else {
            return env.fail("maps", format!("gateway {}: a map cannot be read", self.index));
        };
        let domain = &mut self.domains[number];
        match Topology::newer(map, domain.topology.as_ref()) {
            Ok(Some(topology)) => {
                let before = domain.topology.as_ref().map_or(0, Topology::epoch);
                if topology.epoch() < before {
                    let epoch = topology.epoch();
                    env.fail("maps", format!("gateway {}: epoch {epoch} after {before}", self.index));
                }
                for (node, address) in topology.nodes() {
                    self.ways.learn(address, node);
                }
                if before > 0 {
                    env.mark(Mark::MapChanged);
                }
                domain.topology = Some(topology);
                domain.upstreams.handle_map();
                for group in env.maps.groups_of(number) {
                    self.announce(group);
                }
            }
            Ok(None) => {}
            Err(error) => env.fail("maps", format!("gateway {}: {error}", self.index)),
        }
    }

    /// A connection that was in use is gone; everybody who waited for something on it is told.
    fn handle_gone(&mut self, env: &mut Env, connection: u64, loss: Loss) {
        if let Some(mut end) = self.ends.remove(&connection) {
            self.links.handle_down(LinkId(connection));
            let lost = end.end.handle_down();
            self.release_dial(env, connection, end.node, loss);
            self.announce_links();
            for waiter in lost {
                self.lost(env, waiter);
            }
            self.handle_feeds_lost(env, connection);
        } else {
            self.handle_refused(env, connection);
        }
    }

    fn lost(&mut self, env: &mut Env, waiter: Waiter<Caller, u64>) {
        match waiter {
            Waiter::Call { by, .. } => self.answered(env, by, Err(gateway_core::link::Unanswered::Lost)),
            // They hear of it all at once.
            Waiter::Watch { .. } | Waiter::Ping => {}
        }
    }

    fn answered(
        &mut self,
        env: &mut Env,
        caller: Caller,
        answered: Result<wire::Response, gateway_core::link::Unanswered>,
    ) {
        match caller {
            Caller::Request(request) => self.handle_answered(env, request, answered),
            Caller::Probe { group, asked, node } => self.handle_probed(group, asked, node, answered),
            Caller::Opening { group, asked, node } => self.handle_opened(env, group, asked, node, answered),
            Caller::Feeds { group, link, question } => {
                self.handle_feeds_synced(env, group, link, question, answered)
            }
        }
    }

    fn look_at_health(&mut self, env: &mut Env) {
        let at = env.now + HEALTH_EVERY;
        self.tell_self(env, at, GatewayEvent::Health);
        let links: Vec<u64> = self.ends.keys().copied().collect();
        for link in links {
            let Some(end) = self.ends.get_mut(&link) else { continue };
            let silent_for = end.silent_for(env.now);
            match end.end.check(env.instant(), silent_for, || None) {
                Check::Wait => {}
                Check::Ping => self.flush_soon(env, link),
                Check::GiveUp => {
                    env.mark(Mark::NodeSilent);
                    self.handle_gone(env, link, Loss::Silence);
                    env.close(link);
                }
            }
        }
        self.leave_the_silent(env);
        self.looks += 1;
        if self.looks.is_multiple_of(LOOKS_PER_PROGRESS) {
            self.tick_streams();
        }
    }
}
