//! Connections between gateways and nodes: in order and without loss for as long as they last, as over TCP; cut, slow and
//! broken by faults.

use std::collections::BTreeMap;

use api::gaios::link::v1 as wire;
use group_core::LinkId;

use super::{Env, trace};
use crate::cluster::clock::Time;
use crate::cluster::events::{Event, GatewayEvent, NodeEvent};

/// Links of gateways have numbers from here on, as a node's replicas see them.
const GATEWAY_LINKS: u64 = 1 << 50;

/// The link of a connection.
pub(crate) fn link_of(connection: u64) -> LinkId {
    LinkId(GATEWAY_LINKS | connection)
}

/// The connection of a gateway's link.
pub(crate) fn connection_of(link: LinkId) -> Option<u64> {
    (GATEWAY_LINKS..GATEWAY_LINKS << 1).contains(&link.0).then_some(link.0 & !GATEWAY_LINKS)
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    last: u64,
    open: BTreeMap<u64, Connection>,
    /// Until when nothing passes between a gateway and a node.
    cut_until: BTreeMap<(usize, usize), Time>,
}

#[derive(Debug)]
struct Connection {
    gateway: usize,
    gateway_incarnation: u64,
    node: usize,
    /// Which start of its process has welcomed it.
    node_start: Option<u64>,
    /// Who passes it on.
    by: Option<usize>,
    /// When what was sent last arrives.
    at_node: Time,
    at_gateway: Time,
}

impl Connection {
    /// The node that the gateway's packets go to.
    fn next_hop(&self) -> usize {
        self.by.unwrap_or(self.node)
    }
}

impl Env {
    /// A gateway's process, in this incarnation, dials a node. Returns the number of the connection.
    pub(crate) fn dial(
        &mut self,
        gateway: usize,
        gateway_incarnation: u64,
        node: usize,
        by: Option<usize>,
    ) -> u64 {
        self.connections.last += 1;
        let number = self.connections.last;
        let connection = Connection {
            gateway,
            gateway_incarnation,
            node,
            node_start: None,
            by,
            at_node: 0,
            at_gateway: 0,
        };
        let hop = connection.next_hop();
        self.connections.open.insert(number, connection);
        let is_running = |node: usize| self.running >> node & 1 == 1;
        let is_there = is_running(node) && is_running(hop);
        if is_there {
            let at = self.arrival_at_node(number);
            self.at(at, Event::Node { node, start: None, event: Box::new(NodeEvent::Dialled(number)) });
            self.tell_gateway(number, GatewayEvent::Connected(number));
        } else if self.rng.flip() {
            // Its machine is up, and nobody listens.
            self.tell_gateway(number, GatewayEvent::Refused(number));
        }
        number
    }

    /// A node's process, of this start, welcomes whoever dialled.
    pub(crate) fn welcome(&mut self, number: u64, node_start: u64) {
        let Some(connection) = self.connections.open.get_mut(&number) else { return };
        connection.node_start = Some(node_start);
        let node = connection.node;
        let maps = (0..self.maps.domains()).map(|domain| self.maps.known_to(node, domain)).collect();
        self.tell_gateway(number, GatewayEvent::Welcomed { connection: number, maps });
    }

    /// To the node at the other end.
    pub(crate) fn send_to_node(&mut self, number: u64, frame: wire::GatewayFrame) {
        let Some(connection) = self.connections.open.get(&number) else { return };
        let (node, start) = (connection.node, connection.node_start);
        let at = self.arrival_at_node(number);
        let event = Box::new(NodeEvent::GatewayFrame { connection: number, frame });
        self.at(at, Event::Node { node, start, event });
    }

    /// To the gateway at the other end.
    pub(crate) fn send_to_gateway(&mut self, number: u64, responses: Vec<wire::Response>) {
        self.tell_gateway(number, GatewayEvent::Frame { connection: number, responses });
    }

    /// Sends every gateway that is linked with the node what the node says to all.
    pub(crate) fn send_to_gateways_of(&mut self, node: usize, response: &wire::Response) {
        let open = self.connections.open.iter();
        let of_node = open.filter(|(_, open)| open.node == node && open.node_start.is_some());
        let numbers: Vec<u64> = of_node.map(|(number, _)| *number).collect();
        for number in numbers {
            self.send_to_gateway(number, vec![response.clone()]);
        }
    }

    /// The gateway closes it.
    pub(crate) fn close(&mut self, number: u64) {
        let at =
            if self.connections.open.contains_key(&number) { self.arrival_at_node(number) } else { return };
        let Some(connection) = self.connections.open.remove(&number) else { return };
        self.tell_closed(number, &connection, at);
    }

    /// It breaks, and both ends hear of it.
    pub(crate) fn break_connection(&mut self, number: u64) {
        if !self.connections.open.contains_key(&number) {
            return;
        }
        trace!(self, "connection {number} breaks");
        self.tell_gateway(number, GatewayEvent::Down(number));
        self.close(number);
    }

    /// Some connection that is open.
    pub(crate) fn some_connection(&mut self) -> Option<u64> {
        let numbers: Vec<u64> = self.connections.open.keys().copied().collect();
        (!numbers.is_empty()).then(|| self.rng.pick(&numbers))
    }

    /// A node's process has ended. With its machine, nobody tells the gateways.
    pub(crate) fn node_ended(&mut self, node: usize, power: bool) {
        let open = self.connections.open.iter();
        let of_node = open.filter(|(_, open)| open.node == node || open.by == Some(node));
        let numbers: Vec<u64> = of_node.map(|(number, _)| *number).collect();
        for number in numbers {
            if !power {
                self.tell_gateway(number, GatewayEvent::Down(number));
            }
            self.close(number);
        }
    }

    /// A gateway's process has ended.
    pub(crate) fn gateway_ended(&mut self, gateway: usize) {
        let of_gateway = self.connections.open.iter().filter(|(_, open)| open.gateway == gateway);
        let numbers: Vec<u64> = of_gateway.map(|(number, _)| *number).collect();
        for number in numbers {
            self.close(number);
        }
    }

    /// Nothing passes between a gateway and a node until then. It is not lost.
    pub(crate) fn cut_gateway(&mut self, gateway: usize, node: usize, until: Time) {
        let known = self.connections.cut_until.entry((gateway, node)).or_default();
        *known = until.max(*known);
    }

    /// What is cut is whole again.
    pub(crate) fn heal_gateways(&mut self) {
        self.connections.cut_until.clear();
    }

    fn tell_closed(&mut self, number: u64, connection: &Connection, at: Time) {
        if connection.node_start.is_some() {
            let (node, start) = (connection.node, connection.node_start);
            let event = Box::new(NodeEvent::GatewayGone(number));
            self.at(at, Event::Node { node, start, event });
        }
    }

    fn tell_gateway(&mut self, number: u64, event: GatewayEvent) {
        let passage = self.connections.open.get(&number).map(|open| (open.gateway, open.next_hop()));
        let Some((gateway, hop)) = passage else { return };
        let at = self.passage(gateway, hop);
        let Some(connection) = self.connections.open.get_mut(&number) else { return };
        connection.at_gateway = at.max(connection.at_gateway + 1);
        let (at, incarnation) = (connection.at_gateway, connection.gateway_incarnation);
        self.at(at, Event::Gateway { gateway, incarnation, event: Box::new(event) });
    }

    fn arrival_at_node(&mut self, number: u64) -> Time {
        let passage = self.connections.open.get(&number).map(|open| (open.gateway, open.next_hop()));
        let at = passage.map_or(self.now, |(gateway, hop)| self.passage(gateway, hop));
        match self.connections.open.get_mut(&number) {
            Some(connection) => {
                connection.at_node = at.max(connection.at_node + 1);
                connection.at_node
            }
            None => at,
        }
    }

    /// When what is sent now arrives, either way.
    fn passage(&mut self, gateway: usize, hop: usize) -> Time {
        let quality = self.net.quality;
        let time = self.now + quality.latency / 2 + self.rng.around(quality.jitter / 2 + 50_000);
        let cut_until = self.connections.cut_until.get(&(gateway, hop)).copied().unwrap_or(0);
        // What was held back leaves as soon as it can.
        if cut_until > self.now { time.max(cut_until) } else { time }
    }
}
