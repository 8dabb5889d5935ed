//! A gateway's attempts to reach its nodes.

use std::time::Instant;

use bytes::Bytes;
use gateway_core::link::{LinkEnd, LinkId};
use gateway_core::nearest::Place;
use gateway_core::{DialStep, Dialler, Loss, NodeId, Target, Way, Ways};

use super::{End, Gateway};
use crate::cluster::coverage::Mark;
use crate::cluster::env::{Env, trace};
use crate::cluster::maps::address;
use crate::cluster::truth::index;

/// One node, and how it is reached.
pub(super) struct Dial {
    dialler: Dialler,
    target: Target,
    node: NodeId,
    direct: Option<Try>,
    relay: Option<Try>,
    /// The connection in use, and the way it goes.
    up: Option<(u64, Way)>,
    due: Option<Instant>,
}

/// An attempt.
struct Try {
    connection: u64,
    /// What the node sent with its welcome.
    welcomed: Option<Vec<Bytes>>,
}

impl Dial {
    pub(super) fn new(now: Instant, ways: &mut Ways, node: NodeId) -> Dial {
        let target = ways.target(address(node.0));
        Dial {
            dialler: Dialler::new(now, target.clone()),
            target,
            node,
            direct: None,
            relay: None,
            up: None,
            due: None,
        }
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    fn attempt(&mut self, way: Way) -> &mut Option<Try> {
        match way {
            Way::Direct => &mut self.direct,
            Way::Relay => &mut self.relay,
        }
    }

    /// The way of the attempt that a connection is.
    fn way_of(&self, connection: u64) -> Option<Way> {
        let is_it = |attempt: &Option<Try>| attempt.as_ref().is_some_and(|it| it.connection == connection);
        match (is_it(&self.direct), is_it(&self.relay)) {
            (true, _) => Some(Way::Direct),
            (false, true) => Some(Way::Relay),
            (false, false) => None,
        }
    }
}

impl Gateway {
    /// Which attempt a connection is.
    fn dial_of(&self, connection: u64) -> Option<(usize, Way)> {
        let ways = self.dials.iter().map(|dial| dial.way_of(connection));
        ways.enumerate().find_map(|(dial, way)| Some((dial, way?)))
    }

    pub(super) fn handle_connected(&mut self, connection: u64) {
        self.has_news_of_ways = true;
        if let Some((dial, Way::Direct)) = self.dial_of(connection) {
            self.dials[dial].dialler.handle_connected();
        }
    }

    pub(super) fn handle_welcomed(&mut self, env: &mut Env, connection: u64, maps: Vec<Bytes>) {
        self.has_news_of_ways = true;
        let Some((dial, way)) = self.dial_of(connection) else { return env.close(connection) };
        let dial = &mut self.dials[dial];
        let node = dial.node;
        if let Some(attempt) = dial.attempt(way) {
            attempt.welcomed = Some(maps);
        }
        dial.dialler.handle_welcomed(env.instant(), way, node);
    }

    pub(super) fn handle_refused(&mut self, env: &mut Env, connection: u64) {
        self.has_news_of_ways = true;
        env.close(connection);
        if let Some((dial, way)) = self.dial_of(connection) {
            let random = env.rng.next() as u32;
            *self.dials[dial].attempt(way) = None;
            self.dials[dial].dialler.handle_failed(env.instant(), way, || random);
        }
    }

    pub(super) fn keep_dials(&mut self, env: &mut Env) {
        let now = env.instant();
        let mut is_due = self.dials.iter().any(|dial| dial.due.is_some_and(|due| due <= now));
        while std::mem::take(&mut self.has_news_of_ways) || std::mem::take(&mut is_due) {
            for dial in 0..self.dials.len() {
                self.keep_dial(env, dial);
            }
        }
    }

    fn keep_dial(&mut self, env: &mut Env, number: usize) {
        loop {
            let dial = &mut self.dials[number];
            let rng = &mut env.rng;
            let now = env.origin + std::time::Duration::from_nanos(env.now);
            let step = dial.dialler.poll(now, &self.ways, true, || rng.next() as u32);
            let node = index(consensus_core::NodeId(dial.node.0));
            if !matches!(step, DialStep::Await { .. }) {
                trace!(env, "gateway {} and n{}: {step:?}", self.index, node + 1);
            }
            match step {
                DialStep::DialDirect => {
                    let connection = env.dial(self.index, self.incarnation, node, None);
                    dial.direct = Some(Try { connection, welcomed: None });
                }
                DialStep::DialRelay(relay) => {
                    let by = self.dials.iter().find(|dial| dial.target.address == relay.address);
                    let by = by.map(|by| index(consensus_core::NodeId(by.node.0)));
                    env.mark(Mark::RelayDialled);
                    let connection = env.dial(self.index, self.incarnation, node, by);
                    self.dials[number].relay = Some(Try { connection, welcomed: None });
                }
                DialStep::GiveUp(way) => self.let_go(env, number, way),
                DialStep::Use(way) => self.use_connection(env, number, way),
                DialStep::Leave(_) => {
                    if let Some((connection, _)) = dial.up {
                        self.handle_gone(env, connection, Loss::Other);
                        env.close(connection);
                    }
                }
                DialStep::Await { until } => {
                    dial.due = until;
                    for way in [Way::Direct, Way::Relay] {
                        if !self.dials[number].dialler.is_dialling(way) {
                            self.let_go(env, number, way);
                        }
                    }
                    return;
                }
                DialStep::End => return env.fail("links", "nobody wants the target".to_owned()),
            }
        }
    }

    fn let_go(&mut self, env: &mut Env, dial: usize, way: Way) {
        if let Some(attempt) = self.dials[dial].attempt(way).take() {
            env.close(attempt.connection);
        }
    }

    fn use_connection(&mut self, env: &mut Env, number: usize, way: Way) {
        self.has_news_of_ways = true;
        let Some(Try { connection, welcomed: Some(maps) }) = self.dials[number].attempt(way).take() else {
            return env.fail("links", "what was welcomed waits to be used".to_owned());
        };
        for way in [Way::Direct, Way::Relay] {
            self.let_go(env, number, way);
        }
        if let Some((before, way)) = self.dials[number].up.take() {
            // Lost to those who wait; the dialler knows that it was replaced.
            self.ways.handle_down(&self.dials[number].target, self.dials[number].node, way);
            self.replace(env, before);
        }
        let dial = &mut self.dials[number];
        if !self.ways.handle_up(&dial.target, dial.node, way, true) {
            return env.fail("links", "a node has one address here".to_owned());
        }
        env.mark(if way == Way::Relay { Mark::RelayUsed } else { Mark::GatewayLinked });
        dial.up = Some((connection, way));
        let node = dial.node;
        let mut end = LinkEnd::default();
        end.handle_up(node);
        let place = index(consensus_core::NodeId(node.0));
        let end =
            End { end, node: place, heard_at: env.now, round_trip: Default::default(), flushing: false };
        self.ends.insert(connection, end);
        self.nodes.borrow_mut().handle_place(node, Place::default());
        self.links.handle_up(LinkId(connection), node, connection);
        for map in maps {
            self.learn_map(env, map);
        }
        self.announce_links();
    }

    /// A better connection takes the place of this one.
    fn replace(&mut self, env: &mut Env, connection: u64) {
        let Some(mut end) = self.ends.remove(&connection) else { return };
        self.links.handle_down(LinkId(connection));
        env.close(connection);
        for waiter in end.end.handle_down() {
            self.lost(env, waiter);
        }
        self.handle_feeds_lost(env, connection);
    }

    /// The connection in use is gone.
    pub(super) fn release_dial(&mut self, env: &mut Env, connection: u64, node: usize, loss: Loss) {
        self.has_news_of_ways = true;
        let dial = &mut self.dials[node];
        if let Some((_, way)) = dial.up.take_if(|(up, _)| *up == connection) {
            self.ways.handle_down(&dial.target, dial.node, way);
            let random = env.rng.next() as u32;
            dial.dialler.handle_lost(env.instant(), loss, || random);
        }
    }
}
