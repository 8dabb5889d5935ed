//! What a turn of a group has to say to gateways, gathered per link so that it leaves as one frame each.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::gaios::link::v1 as wire;
use api::gaios::link::v1::refused::Why;
use api::gaios::link::v1::response::Kind;
use bytes::{Bytes, BytesMut};
use consensus_core::NodeId;
use keyspace::Outcome;

use crate::link::{self, Link};

#[derive(Debug, Default)]
pub(crate) struct Replies {
    by_link: BTreeMap<u64, (Arc<Link>, Vec<wire::Response>)>,
    /// etcd's raft_term, in every answer.
    pub(super) term: u64,
    /// Who leads, as far as known: the hint in every refusal.
    pub(super) leader: Option<NodeId>,
}

impl Replies {
    pub(super) fn add(&mut self, link: &Arc<Link>, id: u64, kind: Kind) {
        let response = wire::Response { id, term: self.term, kind: Some(kind) };
        self.push(link, response);
    }

    pub(super) fn outcome(&mut self, link: &Arc<Link>, id: u64, outcome: &Outcome) {
        let mut encoded = BytesMut::new();
        keyspace::encode_outcome(outcome, &mut encoded);
        self.encoded(link, id, encoded.freeze());
    }

    pub(super) fn encoded(&mut self, link: &Arc<Link>, id: u64, outcome: Bytes) {
        self.add(link, id, Kind::Reply(outcome));
    }

    pub(super) fn refuse(&mut self, link: &Arc<Link>, id: u64, why: Why) {
        let response = link::refusal(id, self.term, why, self.leader);
        self.push(link, response);
    }

    /// Sends everything gathered.
    pub(super) fn flush(&mut self) {
        while let Some((_, (link, responses))) = self.by_link.pop_first() {
            link.send(responses);
        }
    }

    fn push(&mut self, link: &Arc<Link>, response: wire::Response) {
        let entry = self.by_link.entry(link.id).or_insert_with(|| (Arc::clone(link), Vec::new()));
        entry.1.push(response);
    }
}
