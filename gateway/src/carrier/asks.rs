//! What the carrier asks of nodes for operators. What it asks for clients is in [`gateway_core::asks`].

use api::gaios::link::v1::{self as wire, request, response::Kind};
use gateway_core::link::{Ask, mismatch};
use gateway_core::{Attempted, GroupId, Numbered};
use keyspace::Revision;

use crate::domain::{DomainStatus, KnownGateway, KnownGateways};
use crate::leading::{Leading, Want};
use crate::status::NodeSaid;

/// How a replica of the group stands.
pub(super) struct Status;

impl Ask for Status {
    type Answer = DomainStatus;

    fn request(&mut self, _: Option<Numbered>) -> (request::Kind, usize) {
        (request::Kind::Status(wire::StatusRequest::default()), 0)
    }

    fn answer(&self, term: u64, answer: Kind) -> Attempted<DomainStatus> {
        let Kind::Status(status) = answer else { return mismatch() };
        Attempted::Answer(DomainStatus {
            term,
            has_leader: status.leader != 0,
            commit_slot: status.commit_slot,
            applied_slot: status.applied_slot,
            revision: Revision(status.revision),
            compact_revision: Revision(status.compact_revision),
            size_bytes: status.size_bytes,
            size_in_use_bytes: status.size_in_use_bytes,
            quota_bytes: status.quota_bytes,
            no_space_alarm: status.no_space_alarm,
            corrupt_alarm: status.corrupt_alarm,
        })
    }
}

/// The gateways that a node knows.
pub(super) struct Gateways;

impl Ask for Gateways {
    type Answer = KnownGateways;

    fn request(&mut self, _: Option<Numbered>) -> (request::Kind, usize) {
        (request::Kind::Gateways(wire::GatewaysRequest {}), 0)
    }

    fn answer(&self, term: u64, answer: Kind) -> Attempted<KnownGateways> {
        let Kind::Gateways(list) = answer else { return mismatch() };
        let gateways = list.gateways.into_iter().map(|gateway| KnownGateway {
            name: gateway.name,
            region: gateway.region,
            zone: gateway.zone,
            client_urls: gateway.client_urls,
            capacity: gateway.capacity,
        });
        Attempted::Answer(KnownGateways { term, gateways: gateways.collect() })
    }

    fn answer_of_older(&self, term: u64) -> Option<KnownGateways> {
        Some(KnownGateways { term, gateways: Vec::new() })
    }
}

/// What an operator wants of a group's leader.
pub(super) struct Control {
    pub(super) group: GroupId,
    pub(super) want: Want,
}

impl Ask for Control {
    type Answer = Leading;

    fn request(&mut self, _: Option<Numbered>) -> (request::Kind, usize) {
        (request::Kind::LeaderControl(self.want.clone().into()), 0)
    }

    fn answer(&self, _term: u64, answer: Kind) -> Attempted<Leading> {
        let Kind::LeaderControlled(told) = answer else { return mismatch() };
        Attempted::Answer(Leading::new(self.group.0, told))
    }
}

/// What a node says of itself.
pub(super) struct NodeStatus;

impl Ask for NodeStatus {
    type Answer = NodeSaid;

    fn request(&mut self, _: Option<Numbered>) -> (request::Kind, usize) {
        (request::Kind::NodeStatus(wire::NodeStatusRequest {}), 0)
    }

    fn answer(&self, _term: u64, answer: Kind) -> Attempted<NodeSaid> {
        let Kind::NodeStatus(said) = answer else { return mismatch() };
        Attempted::Answer(said.into())
    }
}
