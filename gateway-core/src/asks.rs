//! What is asked of replicas for clients, and to find out who leads.

use api::gaios::link::v1::{self as wire, keep_alive::Wait, request, response::Kind};
use bytes::{Bytes, BytesMut};
use keyspace::{Command, KeyRange, Op, Reply, Revision, Route, SessionId};
use shard_map::GroupId;

use crate::attempt::{Attempted, Refused, Why};
use crate::concern::Concern;
use crate::leader_tracker::{Led, PROBE_WAIT, SessionOpened};
use crate::link::{Ask, mismatch, node, refused};
use crate::mutant::mutant;
use crate::request::Numbered;
use crate::upstream::{Frame, Synced};

/// Room for a common command; a larger one grows it.
const COMMAND_BYTES: usize = 512;

const _: () = assert!(PROBE_WAIT.as_millis() <= u32::MAX as u128, "it is said in milliseconds");

/// A granted request.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// What the state machine said.
    pub reply: Reply,
    /// Round of the leadership it was said under: etcd's `raft_term`.
    pub term: u64,
}

/// A write.
#[derive(Debug)]
pub struct Write(Command);

impl Write {
    /// Of this operation, to this shard if it concerns one; its number comes with each attempt.
    pub fn new(op: Op, route: Route) -> Write {
        Write(Command::write(SessionId::NONE, 0, 0, route, op))
    }

    /// What it concerns.
    pub fn concern(&self) -> Concern {
        if let Command::Write { op, .. } = &self.0 { Concern::of_op(op) } else { Concern::Domain }
    }

    /// Sends it elsewhere, if it concerns a shard.
    pub fn set_route(&mut self, to: Route) {
        if let Command::Write { route: Some(route), .. } = &mut self.0 {
            *route = to;
        }
    }
}

impl Ask for Write {
    type Answer = Answer;

    fn request(&mut self, numbered: Option<Numbered>) -> (request::Kind, usize) {
        assert!(matches!(self.0, Command::Write { .. }), "nothing else is made into a write");
        assert!(
            numbered.is_none_or(|numbered| numbered.ack_upto < numbered.number.seq),
            "an answer that is waited for is not given up"
        );
        if let (Command::Write { session, seq, ack_upto, .. }, Some(numbered)) = (&mut self.0, numbered) {
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

/// A query.
#[derive(Debug)]
pub struct Read {
    /// Encoded.
    pub query: Bytes,
    /// Any replica may answer that has come to this revision.
    pub serializable: Option<Revision>,
}

impl Ask for Read {
    type Answer = Answer;

    fn request(&mut self, _: Option<Numbered>) -> (request::Kind, usize) {
        let read = wire::Read {
            query: self.query.clone(),
            serializable: self.serializable.is_some(),
            at_least: self.serializable.filter(|_| !mutant!(SeenNotTold)).map_or(0, |revision| revision.0),
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

/// Who leads. A replica answers when it knows of a round that is news, or after [`PROBE_WAIT`].
#[derive(Debug)]
pub struct WhoLeads {
    /// The lowest round that is news.
    pub least_term: u64,
}

impl Ask for WhoLeads {
    type Answer = Led;

    fn request(&mut self, _: Option<Numbered>) -> (request::Kind, usize) {
        let wait_ms = PROBE_WAIT.as_millis() as u32;
        let WhoLeads { least_term } = *self;
        (request::Kind::Status(wire::StatusRequest { wait_ms, least_term }), 0)
    }

    fn answer(&self, term: u64, answer: Kind) -> Attempted<Led> {
        let Kind::Status(status) = answer else { return mismatch() };
        Attempted::Answer(Led { term, leader: node(status.leader) })
    }
}

/// The session of this gateway, by a number that only it has.
#[derive(Debug)]
pub struct OpenSession {
    /// 16 bytes.
    pub nonce: Bytes,
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
#[derive(Debug)]
pub struct KeepAlive {
    /// Their ids.
    pub leases: Vec<i64>,
    /// The answer waits until it is decided what becomes of one of them at least.
    pub waits: bool,
}

/// Leases after an attempt to renew them, in the order of the question.
#[derive(Debug, PartialEq, Eq)]
pub struct KeptAlive {
    /// As in [`Answer::term`].
    pub term: u64,
    /// The store's revision before the renewal.
    pub revision: Revision,
    /// What became of each.
    pub leases: Vec<Decided>,
}

/// What became of a lease that was to be renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decided {
    /// The seconds that it will live; 0 for one that does not exist or has expired.
    Ttl(i64),
    /// Only the log will tell, and has not yet: ask again.
    NotYet,
}

impl Ask for KeepAlive {
    type Answer = KeptAlive;

    fn request(&mut self, _: Option<Numbered>) -> (request::Kind, usize) {
        let leases = self.leases.clone();
        // A tag and eight bytes each, at most.
        let bytes = leases.len() * 9;
        let wait = if self.waits { Wait::ForOne } else { Wait::ForNone };
        (request::Kind::KeepAlive(wire::KeepAlive { leases, wait: wait.into() }), bytes)
    }

    fn answer(&self, term: u64, answer: Kind) -> Attempted<KeptAlive> {
        let Kind::KeptAlive(kept) = answer else { return mismatch() };
        if kept.leases.len() != self.leases.len() {
            return mismatch();
        }
        let decided = |lease: &wire::KeptLease| match lease.undecided {
            true => Decided::NotYet,
            false => Decided::Ttl(lease.ttl),
        };
        let leases: Vec<Decided> = kept.leases.iter().map(decided).collect();
        if self.waits && leases.iter().all(|lease| *lease == Decided::NotYet) {
            // It would be asked again and again.
            return Attempted::Protocol("gaios: an answer that decides nothing");
        }
        Attempted::Answer(KeptAlive { term, revision: Revision(kept.revision), leases })
    }
}

/// A watch; many frames answer it.
#[derive(Debug)]
pub struct Open {
    /// The keys.
    pub range: KeyRange,
    /// 0 for the first revision behind the newest.
    pub start: Revision,
    /// Whether events tell what was there before.
    pub prev_kv: bool,
    /// Bytes of events that may come before more is allowed.
    pub credit: u64,
    /// The replica catches up with the leader first.
    pub linearizable: bool,
}

impl Ask for Open {
    type Answer = Frame;

    fn request(&mut self, _: Option<Numbered>) -> (request::Kind, usize) {
        debug_assert!(!self.range.is_empty(), "whoever watches nothing is told so at once");
        let open = wire::WatchOpen {
            key: self.range.key.clone(),
            range_end: self.range.wire_end(),
            start_revision: self.start.0,
            prev_kv: self.prev_kv,
            credit: self.credit,
            linearizable: self.linearizable,
        };
        let bytes = open.key.len() + open.range_end.len();
        (request::Kind::WatchOpen(open), bytes)
    }

    fn answer(&self, term: u64, answer: Kind) -> Attempted<Frame> {
        frame_of(term, answer)
    }
}

/// Reads what came for a watch, at any time.
pub fn frame(response: wire::Response) -> Attempted<Frame> {
    let wire::Response { term, kind, .. } = response;
    match kind {
        Some(Kind::Refused(why)) => Attempted::Refused(refused(term, &why)),
        Some(answer) => frame_of(term, answer),
        None => mismatch(),
    }
}

fn frame_of(term: u64, answer: Kind) -> Attempted<Frame> {
    if let Kind::WatchEvents(events) = answer {
        return events_of(term, &events);
    }
    Attempted::Answer(if let Kind::WatchOpened(opened) = answer {
        let wire::WatchOpened { revision, start_revision, compact_revision } = opened;
        let (revision, start) = (Revision(revision), Revision(start_revision));
        Frame::Opened { revision, start, compact_revision: Revision(compact_revision), term }
    } else if let Kind::WatchCanceled(canceled) = answer {
        let refused = canceled.refused.map(|why| refused(term, &why));
        match (canceled.compact_revision, refused) {
            (0, Some(refused)) => return Attempted::Refused(refused),
            (0, _) => Frame::Canceled,
            (compact_revision, _) => Frame::Compacted { compact_revision: Revision(compact_revision) },
        }
    } else {
        return mismatch();
    })
}

fn events_of(term: u64, events: &wire::WatchEvents) -> Attempted<Frame> {
    let wire::WatchEvents { revisions, upto, revision, incomplete } = events;
    let bytes = revisions.len() as u64;
    // Keys and values are parts of what they are decoded from. They may be kept for long, and the link's frame, with answers to
    // anybody, may not.
    match keyspace::RevisionEvents::decode_all(Bytes::copy_from_slice(revisions)) {
        Ok(revisions) => {
            let (upto, revision, incomplete) = (Revision(*upto), Revision(*revision), Revision(*incomplete));
            let last = revisions.last().map(|last| last.revision);
            let is_incomplete = incomplete != Revision(0);
            let is_where_it_says = match is_incomplete {
                true => last == Some(incomplete) && upto < incomplete && upto.next() == incomplete,
                false => last <= Some(upto),
            };
            if !is_where_it_says || !revisions.is_sorted_by(|one, next| one.revision < next.revision) {
                return Attempted::Protocol("revisions that are not in order");
            }
            Attempted::Answer(Frame::Events { revisions, upto, is_incomplete, revision, term, bytes })
        }
        Err(_) => Attempted::Protocol("events cannot be read"),
    }
}

/// What a replica tells unasked of the watches of a group on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unasked {
    /// Those in step have been sent everything up to this revision.
    Watermark {
        /// Of this group.
        group: GroupId,
        /// See above.
        revision: Revision,
    },
    /// It does not lead.
    NotLeading {
        /// This group.
        group: GroupId,
        /// As if it had refused something.
        refused: Refused,
    },
}

/// Reads what came unasked, if that is it.
pub fn unasked(response: &wire::Response) -> Option<Unasked> {
    if let Some(Kind::WatchWatermark(told)) = &response.kind {
        Some(Unasked::Watermark { group: GroupId(told.group), revision: Revision(told.revision) })
    } else if let Some(Kind::NotLeading(told)) = &response.kind {
        let refused = Refused { why: Why::NotLeader, term: response.term, leader: node(told.leader) };
        Some(Unasked::NotLeading { group: GroupId(told.group), refused })
    } else {
        None
    }
}

/// How far watches have come.
#[derive(Debug)]
pub struct Sync {
    /// The id of the request for one, or [`crate::ALL_WATCHES`].
    pub watch: u64,
}

impl Ask for Sync {
    type Answer = Synced;

    fn request(&mut self, _: Option<Numbered>) -> (request::Kind, usize) {
        (request::Kind::WatchSync(wire::WatchSync { watch: self.watch }), 0)
    }

    fn answer(&self, term: u64, answer: Kind) -> Attempted<Synced> {
        let Kind::WatchSynced(synced) = answer else { return mismatch() };
        let (revision, compact_revision) = (Revision(synced.revision), Revision(synced.compact_revision));
        Attempted::Answer(Synced { revision, compact_revision, term })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_until_something_is_decided_is_told_something() {
        let undecided = wire::KeptLease { id: 7, ttl: 0, undecided: true };
        let answered = |waits, leases: &[wire::KeptLease]| {
            let kept = wire::KeptAlive { leases: leases.to_vec(), revision: 3 };
            KeepAlive { leases: vec![7; leases.len()], waits }.answer(2, Kind::KeptAlive(kept))
        };
        let at_once = KeptAlive { term: 2, revision: Revision(3), leases: vec![Decided::NotYet] };
        assert_eq!(answered(false, &[undecided]), Attempted::Answer(at_once));
        assert!(matches!(answered(true, &[undecided]), Attempted::Protocol(_)));
        let decided = wire::KeptLease { id: 7, ttl: 0, undecided: false };
        let some =
            KeptAlive { term: 2, revision: Revision(3), leases: vec![Decided::NotYet, Decided::Ttl(0)] };
        assert_eq!(answered(true, &[undecided, decided]), Attempted::Answer(some));
    }
}
