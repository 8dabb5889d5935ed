//! What the carrier asks of replicas.

use api::gaios::link::v1::{self as wire, request, response::Kind};
use bytes::{Bytes, BytesMut};
use gateway_core::{Attempted, Frame, Led, Numbered, SessionOpened, Synced, Why};
use keyspace::{Command, KeyRange, Op, SessionId};

use crate::domain::{Answer, DomainStatus, KnownGateway, KnownGateways};
use crate::leading::{Leading, Want};
use crate::link::{Ask, mismatch, refused};
use crate::status::NodeSaid;

/// Room for a common command; a larger one grows it.
const COMMAND_BYTES: usize = 512;

/// A write.
pub(super) struct Write(Command);

impl Write {
    pub(super) fn new(op: Op) -> Write {
        Write(Command::Write { session: SessionId::NONE, seq: 0, ack_upto: 0, op })
    }
}

impl Ask for Write {
    type Answer = Answer;

    fn request(&mut self, numbered: Option<Numbered>) -> (request::Kind, usize) {
        if let (Command::Write { session, seq, ack_upto, op: _ }, Some(numbered)) = (&mut self.0, numbered) {
            *session = numbered.number.session;
            *seq = numbered.number.seq;
            *ack_upto = numbered.ack_upto;
        }
        let mut encoded = BytesMut::with_capacity(COMMAND_BYTES);
        self.0.encode(&mut encoded);
        let command = encoded.freeze();
        let bytes = command.len();
        let (session, seq) =
            numbered.map_or((0, 0), |numbered| (numbered.number.session.0, numbered.number.seq));
        (request::Kind::Write(wire::Write { session, seq, command }), bytes)
    }

    fn answer(&self, term: u64, answer: Kind) -> Attempted<Answer> {
        of_the_state_machine(term, answer)
    }
}

/// An encoded query.
pub(super) struct Read {
    pub(super) query: Bytes,
    /// Any replica may answer that has come to this revision.
    pub(super) serializable: Option<i64>,
}

impl Ask for Read {
    type Answer = Answer;

    fn request(&mut self, _: Option<Numbered>) -> (request::Kind, usize) {
        let read = wire::Read {
            query: self.query.clone(),
            serializable: self.serializable.is_some(),
            at_least: self.serializable.unwrap_or(0),
        };
        (request::Kind::Read(read), self.query.len())
    }

    fn answer(&self, term: u64, answer: Kind) -> Attempted<Answer> {
        of_the_state_machine(term, answer)
    }
}

fn of_the_state_machine(term: u64, answer: Kind) -> Attempted<Answer> {
    let Kind::Reply(reply) = answer else { return mismatch() };
    match keyspace::decode_outcome(reply) {
        Ok(Ok(reply)) => Attempted::Answer(Answer { reply, term }),
        Ok(Err(error)) => Attempted::Denied(error),
        Err(_) => Attempted::Protocol("gaios: an answer cannot be read"),
    }
}

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
            revision: status.revision,
            compact_revision: status.compact_revision,
            size_bytes: status.size_bytes,
            size_in_use_bytes: status.size_in_use_bytes,
            quota_bytes: status.quota_bytes,
            no_space_alarm: status.no_space_alarm,
            corrupt_alarm: status.corrupt_alarm,
        })
    }
}

/// Who leads. A replica answers when it knows of a round that is news, or after a while.
pub(super) struct WhoLeads {
    pub(super) least_term: u64,
    pub(super) wait_ms: u32,
}

impl Ask for WhoLeads {
    type Answer = Led;

    fn request(&mut self, _: Option<Numbered>) -> (request::Kind, usize) {
        let WhoLeads { least_term, wait_ms } = *self;
        (request::Kind::Status(wire::StatusRequest { wait_ms, least_term, figures: None }), 0)
    }

    fn answer(&self, term: u64, answer: Kind) -> Attempted<Led> {
        let Kind::Status(status) = answer else { return mismatch() };
        Attempted::Answer(Led { term, leader: Some(status.leader).filter(|leader| *leader != 0) })
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
    pub(super) group: u64,
    pub(super) want: Want,
}

impl Ask for Control {
    type Answer = Leading;

    fn request(&mut self, _: Option<Numbered>) -> (request::Kind, usize) {
        (request::Kind::LeaderControl(self.want.clone().into()), 0)
    }

    fn answer(&self, _term: u64, answer: Kind) -> Attempted<Leading> {
        let Kind::LeaderControlled(told) = answer else { return mismatch() };
        Attempted::Answer(Leading::new(self.group, told))
    }
}

/// The session of this gateway, by a number that only it has.
pub(super) struct OpenSession {
    pub(super) nonce: Bytes,
}

impl Ask for OpenSession {
    type Answer = SessionOpened;

    fn request(&mut self, _: Option<Numbered>) -> (request::Kind, usize) {
        let nonce = self.nonce.clone();
        let bytes = nonce.len();
        (request::Kind::OpenSession(wire::OpenSession { nonce }), bytes)
    }

    fn answer(&self, term: u64, answer: Kind) -> Attempted<SessionOpened> {
        let Kind::SessionOpened(opened) = answer else { return mismatch() };
        Attempted::Answer(SessionOpened { term, session: SessionId(opened.session) })
    }
}

/// Leases to be renewed.
pub(super) struct KeepAlive {
    pub(super) leases: Vec<i64>,
}

/// Leases after an attempt to renew them, in the order of the question.
pub(super) struct KeptAlive {
    pub(super) term: u64,
    pub(super) revision: i64,
    pub(super) ttls: Vec<i64>,
}

impl Ask for KeepAlive {
    type Answer = KeptAlive;

    fn request(&mut self, _: Option<Numbered>) -> (request::Kind, usize) {
        let leases = self.leases.clone();
        // A tag and eight bytes each, at most.
        let bytes = leases.len() * 9;
        (request::Kind::KeepAlive(wire::KeepAlive { leases }), bytes)
    }

    fn answer(&self, term: u64, answer: Kind) -> Attempted<KeptAlive> {
        let Kind::KeptAlive(kept) = answer else { return mismatch() };
        if kept.leases.len() != self.leases.len() {
            return mismatch();
        }
        let ttls = kept.leases.into_iter().map(|lease| lease.ttl).collect();
        Attempted::Answer(KeptAlive { term, revision: kept.revision, ttls })
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

/// A watch; many frames answer it.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) range: KeyRange,
    /// 0 for the first revision behind the newest.
    pub(super) start: i64,
    pub(super) prev_kv: bool,
    /// Bytes of events that may come before more is allowed.
    pub(super) credit: u64,
    /// The replica catches up with the leader first.
    pub(super) linearizable: bool,
}

impl Ask for Open {
    type Answer = Frame;

    fn request(&mut self, _: Option<Numbered>) -> (request::Kind, usize) {
        let open = wire::WatchOpen {
            key: self.range.key.clone(),
            range_end: self.range.wire_end(),
            start_revision: self.start,
            prev_kv: self.prev_kv,
            credit: self.credit,
            linearizable: self.linearizable,
        };
        let bytes = open.key.len() + open.range_end.len();
        (request::Kind::WatchOpen(open), bytes)
    }

    fn answer(&self, term: u64, answer: Kind) -> Attempted<Frame> {
        if let Kind::WatchEvents(events) = answer {
            return events_of(term, &events);
        }
        Attempted::Answer(if let Kind::WatchOpened(opened) = answer {
            let wire::WatchOpened { revision, start_revision: start, compact_revision } = opened;
            Frame::Opened { revision, start, compact_revision, term }
        } else if let Kind::WatchCanceled(canceled) = answer {
            let refused = canceled.refused.map(|why| refused(term, &why));
            match (canceled.compact_revision, refused) {
                (0, Some(refused)) if refused.why == Why::Malformed => return Attempted::Refused(refused),
                (0, _) => Frame::Canceled,
                (compact_revision, _) => Frame::Compacted { compact_revision },
            }
        } else {
            return mismatch();
        })
    }
}

fn events_of(term: u64, events: &wire::WatchEvents) -> Attempted<Frame> {
    let wire::WatchEvents { revisions, upto, revision } = events;
    let bytes = revisions.len() as u64;
    // Keys and values are parts of what they are decoded from. They may be kept for long, and the link's frame, with answers to
    // anybody, may not.
    match keyspace::RevisionEvents::decode_all(Bytes::copy_from_slice(revisions)) {
        Ok(revisions) => {
            Attempted::Answer(Frame::Events { revisions, upto: *upto, revision: *revision, term, bytes })
        }
        Err(_) => Attempted::Protocol("events cannot be read"),
    }
}

/// How far a watch has come.
#[derive(Debug)]
pub(super) struct Sync {
    /// The id of its request.
    pub(super) watch: u64,
}

impl Ask for Sync {
    type Answer = Synced;

    fn request(&mut self, _: Option<Numbered>) -> (request::Kind, usize) {
        (request::Kind::WatchSync(wire::WatchSync { watch: self.watch }), 0)
    }

    fn answer(&self, term: u64, answer: Kind) -> Attempted<Synced> {
        let Kind::WatchSynced(synced) = answer else { return mismatch() };
        let wire::WatchSynced { revision, compact_revision } = synced;
        Attempted::Answer(Synced { revision, compact_revision, term })
    }
}
