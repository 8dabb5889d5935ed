//! The node's links with gateways.

use api::gaios::link::v1 as wire;
use api::gaios::link::v1::refused::Why;
use api::gaios::link::v1::request::Kind as RequestKind;
use api::gaios::link::v1::response::Kind;
use bytes::BytesMut;
use group_core::{LargeAnswer, LargeReply, LinkId, Part, refusal};

use super::task::Input;
use super::{Node, Process};
use crate::cluster::clock::{MICRO, Time};
use crate::cluster::coverage::Mark;
use crate::cluster::env::Env;
use crate::cluster::env::connections::{connection_of, link_of};
use crate::cluster::events::NodeEvent;

/// Bytes in one part of an answer.
const PART_BYTES: usize = 20;
/// The longest that a link is busy with one part.
const PART_TIME_MAX: Time = 300 * MICRO;

impl Process {
    /// Requests of a gateway for one group.
    pub(super) fn gateway_requests(
        &mut self,
        node: &mut Node,
        env: &mut Env,
        connection: u64,
        batch: wire::GroupRequests,
    ) {
        let link = link_of(connection);
        let group = batch.group as usize;
        let (pings, requests): (Vec<_>, Vec<_>) = batch
            .requests
            .into_iter()
            .partition(|request| matches!(request.kind, Some(RequestKind::Ping(_))));
        if !pings.is_empty() {
            let kind = Some(Kind::Pong(wire::Pong {}));
            let pong = |ping: wire::Request| wire::Response { id: ping.id, term: 0, kind: kind.clone() };
            env.send_to_gateway(connection, pings.into_iter().map(pong).collect());
        }
        if requests.is_empty() {
            return;
        }
        if self.tasks.get(group).is_some_and(Option::is_some) || self.stateless.contains_key(&group) {
            self.input(node, env, group, Input::Gateway { link, requests });
        } else {
            let asked =
                requests.iter().filter(|request| !matches!(request.kind, Some(RequestKind::Cancel(_))));
            let refusals = asked.map(|request| refusal(request.id, 0, Why::NoGroup, None));
            env.send_to_gateway(connection, refusals.collect());
        }
    }

    /// Of what is taken back, no further part is sent.
    pub(super) fn cancel_parts(&mut self, link: LinkId, requests: &[wire::Request]) {
        let Some(turns) = connection_of(link).and_then(|connection| self.parted.get_mut(&connection)) else {
            return;
        };
        for request in requests {
            if let Some(RequestKind::Cancel(_)) = &request.kind {
                turns.cancel(request.id);
            }
        }
    }

    /// Sends an answer in parts, between which others leave.
    pub(super) fn send_in_parts(&mut self, node: &Node, env: &mut Env, connection: u64, answer: LargeAnswer) {
        let request = answer.request;
        let Some(reply) = LargeReply::new(answer) else {
            return env.fail("answers", "no answer here is too long".to_owned());
        };
        let turns = self.parted.entry(connection).or_default();
        let was_idle = turns.is_idle();
        turns.announce(request);
        turns.push(reply);
        if was_idle {
            self.await_part(node, env, connection);
        }
    }

    fn await_part(&self, node: &Node, env: &mut Env, connection: u64) {
        let at = env.now + MICRO + env.rng.below(PART_TIME_MAX);
        env.node_at(at, node.index, self.start, NodeEvent::NextPart(connection));
    }

    /// The link takes another part.
    pub(super) fn send_part(&mut self, node: &Node, env: &mut Env, connection: u64) {
        let Some(turns) = self.parted.get_mut(&connection) else { return };
        let Some(mut reply) = turns.take_next() else { return };
        let Part { request: id, term, reply_bytes, pieces } = reply.next_part(PART_BYTES);
        turns.give_back(reply);
        if turns.is_idle() {
            self.parted.remove(&connection);
        } else {
            env.mark(Mark::AnsweredInParts);
            self.await_part(node, env, connection);
        }
        let bytes = pieces.into_iter().flatten().collect::<BytesMut>().freeze();
        let kind = Some(Kind::ReplyPart(wire::ReplyPart { bytes, reply_bytes }));
        env.send_to_gateway(connection, vec![wire::Response { id, term, kind }]);
    }
}
