//! The node's links with gateways.

use api::gaios::link::v1 as wire;
use api::gaios::link::v1::refused::Why;
use api::gaios::link::v1::request::Kind as RequestKind;
use api::gaios::link::v1::response::Kind;
use group_core::refusal;

use super::task::Input;
use super::{Node, Process};
use crate::cluster::env::Env;
use crate::cluster::env::connections::link_of;

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
            let refuse = |request: wire::Request| refusal(request.id, 0, Why::NoGroup, None);
            env.send_to_gateway(connection, requests.into_iter().map(refuse).collect());
        }
    }
}
