//! What a turn of a group has to say to gateways, gathered per link so that it leaves as one frame each, or a few large
//! ones.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::gaios::link::v1 as wire;
use api::gaios::link::v1::refused::Why;
use api::gaios::link::v1::response::Kind;
use bytes::{Bytes, BytesMut};
use consensus_core::NodeId;
use keyspace::Outcome;

use crate::link::{self, Link};

/// Bytes of answers after which a frame leaves before the turn is over.
const FRAME_BYTES: usize = 1 << 20;

#[derive(Debug, Default)]
pub(crate) struct Replies {
    by_link: BTreeMap<u64, Gathered>,
    /// etcd's raft_term, in every answer.
    pub(super) term: u64,
    /// Who leads, as far as known: the hint in every refusal.
    pub(super) leader: Option<NodeId>,
}

#[derive(Debug)]
struct Gathered {
    link: Arc<Link>,
    responses: Vec<wire::Response>,
    /// Those of them that may be many.
    bytes: usize,
}

impl Replies {
    pub(super) fn add(&mut self, link: &Arc<Link>, id: u64, kind: Kind) {
        let response = wire::Response { id, term: self.term, kind: Some(kind) };
        self.push(link, response, 0);
    }

    pub(super) fn outcome(&mut self, link: &Arc<Link>, id: u64, outcome: &Outcome) {
        let mut encoded = BytesMut::new();
        keyspace::encode_outcome(outcome, &mut encoded);
        self.encoded(link, id, encoded.freeze());
    }

    pub(super) fn encoded(&mut self, link: &Arc<Link>, id: u64, outcome: Bytes) {
        let bytes = outcome.len();
        let response = wire::Response { id, term: self.term, kind: Some(Kind::Reply(outcome)) };
        self.push(link, response, bytes);
    }

    pub(super) fn refuse(&mut self, link: &Arc<Link>, id: u64, why: Why) {
        let response = link::refusal(id, self.term, why, self.leader);
        self.push(link, response, 0);
    }

    /// Sends everything gathered.
    pub(super) fn flush(&mut self) {
        while let Some((_, gathered)) = self.by_link.pop_first() {
            gathered.link.send(gathered.responses);
        }
    }

    fn push(&mut self, link: &Arc<Link>, response: wire::Response, bytes: usize) {
        let empty = || Gathered { link: Arc::clone(link), responses: Vec::new(), bytes: 0 };
        let gathered = self.by_link.entry(link.id).or_insert_with(empty);
        gathered.responses.push(response);
        gathered.bytes += bytes;
        if gathered.bytes > FRAME_BYTES {
            gathered.bytes = 0;
            link.send(std::mem::take(&mut gathered.responses));
        }
    }
}
