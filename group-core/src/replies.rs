//! What a turn has to say to gateways, gathered per link so that it leaves as one frame each, or a few large ones.

use std::collections::BTreeMap;

use api::gaios::link::v1 as wire;
use api::gaios::link::v1::refused::Why;
use api::gaios::link::v1::response::Kind;
use bytes::{Bytes, BytesMut};
use consensus_core::{GroupId, NodeId};
use keyspace::Outcome;

use crate::env::LinkId;
use crate::out::Answer;

/// Bytes of answers after which a frame leaves before the turn is over.
const FRAME_BYTES: usize = 1 << 20;
/// The id of what nobody has asked for.
pub(crate) const UNASKED: u64 = 0;

#[derive(Debug, Default)]
pub(crate) struct Replies {
    by_link: BTreeMap<LinkId, Gathered>,
    /// Frames that are large enough.
    full: Vec<Answer>,
    /// etcd's raft_term, in every answer.
    pub(crate) term: u64,
    /// Who leads, as far as known: the hint in every refusal.
    pub(crate) leader: Option<NodeId>,
    /// The node's shard map, for those who go by another one.
    shard_map: Bytes,
}

#[derive(Debug, Default)]
struct Gathered {
    responses: Vec<wire::Response>,
    /// Those of them that may be many.
    bytes: usize,
}

impl Replies {
    /// For those of a node with this map.
    pub(crate) fn new(shard_map: Bytes) -> Replies {
        Replies { shard_map, ..Replies::default() }
    }

    pub(crate) fn add(&mut self, link: LinkId, id: u64, kind: Kind) {
        let response = wire::Response { id, term: self.term, kind: Some(kind) };
        self.push(link, response, 0);
    }

    pub(crate) fn outcome(&mut self, link: LinkId, id: u64, outcome: &Outcome) {
        let mut encoded = BytesMut::new();
        keyspace::encode_outcome(outcome, &mut encoded);
        let bytes = encoded.len();
        let response = wire::Response { id, term: self.term, kind: Some(Kind::Reply(encoded.freeze())) };
        self.push(link, response, bytes);
    }

    pub(crate) fn events(&mut self, link: LinkId, id: u64, events: wire::WatchEvents) {
        let bytes = events.revisions.len();
        let response = wire::Response { id, term: self.term, kind: Some(Kind::WatchEvents(events)) };
        self.push(link, response, bytes);
    }

    pub(crate) fn refuse(&mut self, link: LinkId, id: u64, why: Why) {
        let response = refusal(id, self.term, why, self.leader);
        self.push(link, response, 0);
    }

    /// Refuses what the group's shards do not hold, with the map that says who does.
    pub(crate) fn refuse_wrong_shard(&mut self, link: LinkId, id: u64) {
        let (leader, shard_map) = (self.leader.map_or(0, |leader| leader.0), self.shard_map.clone());
        let refused = wire::Refused { why: Why::WrongShard.into(), leader, shard_map };
        self.add(link, id, Kind::Refused(refused));
    }

    /// Tells a gateway that this replica does not lead.
    pub(crate) fn not_leading(&mut self, link: LinkId, group: GroupId) {
        let leader = self.leader.map_or(0, |leader| leader.0);
        self.add(link, UNASKED, Kind::NotLeading(wire::NotLeading { group: group.0, leader }));
    }

    /// Whether there is a frame that is large enough.
    pub(crate) fn has_full(&self) -> bool {
        !self.full.is_empty()
    }

    /// Moves the frames that are large enough to `out`.
    pub(crate) fn take_full(&mut self, out: &mut Vec<Answer>) {
        out.append(&mut self.full);
    }

    /// Moves everything gathered to `out`.
    pub(crate) fn take_all(&mut self, out: &mut Vec<Answer>) {
        self.take_full(out);
        while let Some((link, gathered)) = self.by_link.pop_first() {
            if !gathered.responses.is_empty() {
                out.push(Answer { link, responses: gathered.responses });
            }
        }
    }

    fn push(&mut self, link: LinkId, response: wire::Response, bytes: usize) {
        let gathered = self.by_link.entry(link).or_default();
        gathered.responses.push(response);
        gathered.bytes += bytes;
        if gathered.bytes > FRAME_BYTES {
            gathered.bytes = 0;
            self.full.push(Answer { link, responses: std::mem::take(&mut gathered.responses) });
        }
        assert!(gathered.bytes <= FRAME_BYTES, "what is gathered is cut into frames");
    }
}

/// `Refused`, as an answer to request `id`.
#[must_use]
pub fn refusal(id: u64, term: u64, why: Why, leader: Option<NodeId>) -> wire::Response {
    let refused = wire::Refused {
        why: why.into(),
        leader: leader.map_or(0, |leader| leader.0),
        shard_map: Bytes::new(),
    };
    wire::Response { id, term, kind: Some(Kind::Refused(refused)) }
}
