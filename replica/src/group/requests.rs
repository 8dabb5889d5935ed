//! What gateways ask of a group: whether it may be done here, what it waits for, and how it is answered.

use std::sync::Arc;
use std::time::Duration;

use api::gaios::link::v1 as wire;
use api::gaios::link::v1::refused::Why;
use api::gaios::link::v1::request::Kind as RequestKind;
use api::gaios::link::v1::response::Kind;
use bytes::Bytes;
use consensus_core::{Input, Mono, NodeId, NodeSet, ReadMode};
use keyspace::{
    Alarm, AlarmKind, Command, LeaseId, Outcome, Query, Reply, Revision, SessionId, SessionLookup,
};

use tracing::{info, warn};

use super::clients::{Enrolled, PendingRead, Reading, Subject, Waiter};
use super::queries::{Admitted, Asked};
use super::{Group, GroupEvent, encode};
use crate::clock;
use crate::lease_clock::Renewal;
use crate::link::Link;

/// Queries are answered for this long before the group turns to other work.
const QUERIES_PER_TURN: Duration = Duration::from_millis(2);
/// Keys and values of an answer, in bytes, from which it is encoded elsewhere.
const LARGE_BYTES: usize = 256 << 10;

impl Group {
    pub(super) fn on_request(&mut self, link: &Arc<Link>, request: wire::Request) {
        let id = request.id;
        match request.kind {
            Some(RequestKind::Write(write)) => self.on_write(link, id, write),
            Some(RequestKind::OpenSession(open)) => self.on_open_session(link, id, &open.nonce),
            Some(RequestKind::Read(read)) => self.on_query(link, id, read),
            Some(RequestKind::KeepAlive(keep)) => self.on_read(link, id, Reading::KeepAlive(keep.leases)),
            Some(RequestKind::Status(asked)) => self.on_status(link, id, &asked),
            Some(RequestKind::Gateways(_)) => {
                self.replies.add(link, id, Kind::Gateways(self.shared.gateways.list()));
            }
            Some(RequestKind::WatchOpen(open)) if open.linearizable => {
                self.on_read(link, id, Reading::WatchOpen(open));
            }
            Some(RequestKind::WatchOpen(open)) => {
                self.watches.open(link, id, open, &self.state, &mut self.replies);
            }
            Some(RequestKind::WatchCredit(credit)) => self.watches.add_credit(link.id, id, credit.bytes),
            Some(RequestKind::WatchSync(sync)) => self.on_read(link, id, Reading::WatchSync(sync.watch)),
            Some(RequestKind::WatchClose(_)) => self.watches.close(link.id, id),
            Some(RequestKind::LeaderControl(control)) => self.on_leader_control(link, id, control),
            // The link answers it.
            Some(RequestKind::NodeStatus(_)) | None => self.replies.refuse(link, id, Why::Malformed),
        }
    }

    fn on_query(&mut self, link: &Arc<Link>, id: u64, read: wire::Read) {
        let bytes = read.query.len();
        let Ok(query) = Query::decode(read.query) else {
            self.replies.refuse(link, id, Why::Malformed);
            return;
        };
        if !read.serializable {
            self.on_read(link, id, Reading::Query { query, bytes });
            return;
        }
        let query = Admitted { request: id, asked: Asked::Query { query, bytes, linearizable: false } };
        let at_least = Revision(read.at_least);
        let admitted = if at_least <= self.state.revision() {
            self.queries.admit(link, query)
        } else {
            self.queries.admit_at(clock::now(), at_least, link, query)
        };
        if admitted.is_err() {
            self.replies.refuse(link, id, Why::Overloaded);
        }
    }

    fn on_write(&mut self, link: &Arc<Link>, id: u64, write: wire::Write) {
        let (session, seq) = (SessionId(write.session), write.seq);
        match self.state.has_result(session, seq) {
            SessionLookup::Applied(outcome) => {
                let outcome = outcome.clone();
                self.answer(link, id, &outcome);
                return;
            }
            // The rest is decided at apply, in log order, the same on every replica.
            SessionLookup::Expired
            | SessionLookup::Forgotten
            | SessionLookup::New
            | SessionLookup::BeyondWindow => {}
        }
        if !self.may_write(link, id) {
            return;
        }
        // Nothing enters the log that a replica could not read back.
        match Command::decode(write.command.clone()) {
            Ok(Command::Write { session: of, seq: number, .. }) if of == session && number == seq => {}
            Ok(
                Command::Write { .. }
                | Command::OpenSession { .. }
                | Command::CloseSession(_)
                | Command::ExpireLeases(_)
                | Command::CheckpointLeases(_)
                | Command::SetLimits(_)
                | Command::SetLeaderRegions(_)
                | Command::RaiseAlarm(_),
            )
            | Err(_) => {
                self.replies.refuse(link, id, Why::Malformed);
                return;
            }
        }
        self.propose(
            Subject::Write(session, seq),
            Waiter { link: Arc::clone(link), request: id },
            write.command,
        );
    }

    fn on_open_session(&mut self, link: &Arc<Link>, id: u64, nonce: &[u8]) {
        let Ok(nonce) = <[u8; 16]>::try_from(nonce) else {
            self.replies.refuse(link, id, Why::Malformed);
            return;
        };
        if !self.may_write(link, id) {
            return;
        }
        let nonce = u128::from_le_bytes(nonce);
        let command = encode(&Command::OpenSession { nonce });
        let waiter = Waiter { link: Arc::clone(link), request: id };
        self.propose(Subject::OpenSession(nonce), waiter, command);
    }

    /// Refuses what could not be written here, before it costs a proposal.
    fn may_write(&mut self, link: &Arc<Link>, id: u64) -> bool {
        let journal = &self.shared.journal;
        let full = journal.is_full() || !self.full_voters(clock::now()).is_empty();
        let why = unwritable(self.elected, full, journal.is_crowded());
        if let Some(why) = why {
            self.replies.refuse(link, id, why);
        }
        why.is_none()
    }

    fn propose(&mut self, subject: Subject, waiter: Waiter, command: Bytes) {
        match self.clients.enrol(subject, waiter) {
            Enrolled::Propose(tag) => self.step(Input::Propose { tag, command }),
            Enrolled::UnderWay => {}
        }
    }

    pub(super) fn propose_internal(&mut self, command: &Command) {
        let tag = self.clients.internal();
        self.step(Input::Propose { tag, command: encode(command) });
    }

    pub(super) fn on_read(&mut self, link: &Arc<Link>, id: u64, reading: Reading) {
        let read = PendingRead { waiter: Waiter { link: Arc::clone(link), request: id }, reading };
        let point = {
            let now = clock::now();
            self.engine.lease_read(now, &self.shared.liveness.read())
        };
        match point {
            Some(point) if point <= self.applied => self.serve(read),
            Some(point) => self.clients.wait_for_apply(point, vec![read]),
            None => self.asking.push(read),
        }
    }

    /// One question for all reads of the turn that the leader lease does not cover.
    pub(super) fn ask_for_read_point(&mut self) {
        if !self.asking.is_empty() {
            let reads = std::mem::take(&mut self.asking);
            let tag = self.clients.wait_for_point(reads);
            self.step(Input::Read { tag, mode: ReadMode::Lease });
        }
    }

    pub(super) fn serve(&mut self, read: PendingRead) {
        let PendingRead { waiter, reading } = read;
        match reading {
            Reading::Query { query, bytes } => {
                let asked = Asked::Query { query, bytes, linearizable: true };
                let query = Admitted { request: waiter.request, asked };
                if self.queries.admit(&waiter.link, query).is_err() {
                    self.replies.refuse(&waiter.link, waiter.request, Why::Overloaded);
                }
            }
            Reading::KeepAlive(leases) => self.keep_alive(waiter, leases),
            Reading::WatchOpen(open) => {
                self.watches.open(&waiter.link, waiter.request, open, &self.state, &mut self.replies);
            }
            Reading::WatchSync(watch) => {
                self.watches.sync(&waiter.link, waiter.request, watch, &self.state, &mut self.replies);
            }
        }
    }

    /// Answers queries for a while, as links have room.
    pub(super) fn answer_queries(&mut self) {
        let began = clock::now();
        let replies = &mut self.replies;
        self.queries.handle_revision(began, self.state.revision(), |link, request| {
            replies.refuse(link, request, Why::Overloaded);
        });
        let mut answered = 0;
        while let Some((link, Admitted { request, asked })) = self.queries.next() {
            answered += 1;
            match asked {
                Asked::Query { query, linearizable, .. } => {
                    self.answer_query(&link, request, &query, linearizable);
                }
                Asked::Outcome(outcome) => self.answer(&link, request, &outcome),
            }
            if clock::now().since(began) > QUERIES_PER_TURN {
                break;
            }
        }
        if answered > 0 {
            self.metrics.answered(answered);
        }
    }

    fn answer_query(&mut self, link: &Arc<Link>, id: u64, query: &Query, linearizable: bool) {
        let about_leases = matches!(query, Query::LeaseTimeToLive { .. } | Query::Leases);
        if about_leases && linearizable && !self.leading {
            self.replies.refuse(link, id, Why::NotLeader);
            return;
        }
        if let Query::Alarms = query {
            self.watch_disks(clock::now());
        }
        let mut outcome = self.state.query(query);
        // The state machine has no clock; what remains of a lease only its leader knows.
        if self.leading {
            match &mut outcome {
                Ok(Reply::LeaseTimeToLive(reply)) => {
                    if let Some(remaining) = self.leases.remaining(clock::now(), reply.id) {
                        reply.ttl = remaining;
                    }
                }
                Ok(Reply::Leases { leases, .. }) => *leases = self.leases.by_end(),
                // While disks are full the log cannot tell.
                Ok(Reply::Alarms { alarms, .. }) => alarms.extend(self.alarms_of_disks()),
                Ok(_) | Err(_) => {}
            }
        }
        self.answer(link, id, &outcome);
    }

    /// Answers a request. What is large is encoded elsewhere, since it would stop the group, and on a small machine the
    /// node; one at a time for each link.
    pub(super) fn answer(&mut self, link: &Arc<Link>, id: u64, outcome: &Outcome) {
        if !outcome.as_ref().is_ok_and(|reply| reply.holds_more_than(LARGE_BYTES)) {
            self.replies.outcome(link, id, outcome);
            return;
        }
        if !link.has_room() {
            let asked = Asked::Outcome(outcome.clone());
            let admitted = self.queries.admit(link, Admitted { request: id, asked });
            assert!(admitted.is_ok(), "outcomes are always admitted");
            return;
        }
        link.begin_large();
        let (link, handle, term) = (Arc::clone(link), Arc::clone(&self.handle), self.replies.term);
        // Keys and values are shared, not copied.
        let outcome = outcome.clone();
        tokio::task::spawn_blocking(move || {
            link.send_large(id, term, &outcome);
            link.end_large();
            handle.inbox.push_always(GroupEvent::LinkDrained);
        });
    }

    pub(super) fn keep_alive(&mut self, waiter: Waiter, leases: Vec<i64>) {
        if !self.leading {
            self.replies.refuse(&waiter.link, waiter.request, Why::NotLeader);
            return;
        }
        let now = clock::now();
        let revision = self.state.revision().0;
        let mut kept = Vec::with_capacity(leases.len());
        let mut reset = Vec::new();
        let mut must_wait = false;
        for &lease in &leases {
            let id = LeaseId(lease);
            let ttl = match self.leases.renew(now, id) {
                Renewal::Renewed { ttl_seconds } => ttl_seconds,
                Renewal::Missing => 0,
                Renewal::Resetting { propose } => {
                    if propose {
                        reset.push((id, 0));
                    }
                    must_wait = true;
                    continue;
                }
                // The others are renewed meanwhile.
                Renewal::Ending => {
                    must_wait = true;
                    continue;
                }
            };
            kept.push(wire::KeptLease { id: lease, ttl });
        }
        if !reset.is_empty() {
            self.propose_internal(&Command::CheckpointLeases(reset));
        }
        if must_wait {
            // By then the time of the others has run on, so all are renewed once more.
            self.parked.push((waiter, leases));
            return;
        }
        let kept = wire::KeptAlive { leases: kept, revision };
        self.replies.add(&waiter.link, waiter.request, Kind::KeptAlive(kept));
    }

    fn on_status(&mut self, link: &Arc<Link>, id: u64, asked: &wire::StatusRequest) {
        let waiter = Waiter { link: Arc::clone(link), request: id };
        if let Some(waiter) = self.seekers.admit(clock::now(), self.led(), waiter, asked) {
            self.answer_status(&waiter);
        }
    }

    /// Tells those who look for a leader.
    pub(super) fn answer_seekers(&mut self) {
        if self.seekers.is_empty() {
            return;
        }
        for waiter in self.seekers.take_due(clock::now(), self.led()) {
            self.answer_status(&waiter);
        }
    }

    fn answer_status(&mut self, waiter: &Waiter) {
        self.watch_disks(clock::now());
        let status = self.status_reply();
        self.replies.add(&waiter.link, waiter.request, Kind::Status(status));
    }

    /// The round of the leader, if one is known.
    fn led(&self) -> Option<u64> {
        let status = self.engine.status();
        status.leader.map(|_| status.lead.round)
    }

    /// The voters whose disks are full, if that is why nothing can be made durable: those that are up would be enough, and
    /// those of them which have room are not.
    pub(super) fn full_voters(&self, now: Mono) -> NodeSet {
        let (shared, timing) = (&self.shared, &self.shared.timing);
        let full = |node: &NodeId| {
            if *node == shared.id {
                shared.journal.is_full()
            } else {
                shared.peers.get(node).is_some_and(|peer| peer.is_full(now, timing))
            }
        };
        let full: NodeSet = self.handle.voters.iter().filter(full).collect();
        if full.is_empty() {
            return full;
        }
        let config = self.engine.status().config;
        let liveness = shared.liveness.read();
        let up: NodeSet = config.voters.iter().filter(|node| liveness.is_up(now, *node)).collect();
        let with_room: NodeSet = up.iter().filter(|node| !full.contains(*node)).collect();
        if config.is_q2(&up) && !config.is_q2(&with_room) { full } else { NodeSet::new() }
    }

    /// Tells once that writes are refused for want of disks with room, and once that they are not any more.
    pub(super) fn watch_disks(&mut self, now: Mono) {
        let full = if self.leading { self.full_voters(now) } else { NodeSet::new() };
        if full.is_empty() == self.disks_full.is_empty() {
            return;
        }
        if full.is_empty() {
            info!(group = self.handle.id.0, "enough disks have room again: writes are taken");
        } else {
            warn!(group = self.handle.id.0, nodes = %full, "the disks of these nodes are full: writes are refused");
        }
        self.disks_full = full;
    }

    /// The alarms of disks that are full. They end by themselves, when there is room.
    fn alarms_of_disks(&self) -> impl Iterator<Item = Alarm> {
        let alarm = |node: NodeId| Alarm { member: u64::from(node.0), kind: AlarmKind::NoSpace };
        let raised: Vec<Alarm> = self.state.alarms().collect();
        self.disks_full.iter().map(alarm).filter(move |alarm| !raised.contains(alarm))
    }

    pub(super) fn status_reply(&self) -> wire::StatusReply {
        let engine = self.engine.status();
        let state = self.state.status();
        wire::StatusReply {
            leader: engine.leader.map_or(0, |leader| leader.0),
            commit_slot: engine.commit.0,
            applied_slot: self.applied.0,
            revision: state.revision.0,
            compact_revision: state.compact_revision.0,
            size_bytes: state.size_bytes,
            size_in_use_bytes: state.size_in_use_bytes,
            quota_bytes: state.quota_bytes,
            no_space_alarm: self.state.has_alarm(AlarmKind::NoSpace) || !self.disks_full.is_empty(),
            corrupt_alarm: self.state.has_alarm(AlarmKind::Corrupt),
        }
    }
}

/// Why nothing can be written here. Who does not lead says so first, whatever its disk is like: another one leads, and
/// the gateway must go there.
fn unwritable(leads: bool, full: bool, crowded: bool) -> Option<Why> {
    if !leads {
        Some(Why::NotLeader)
    } else if full {
        Some(Why::NoDisk)
    } else if crowded {
        Some(Why::Overloaded)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_lead_names_no_other_reason() {
        let (leads, full, crowded) = (true, true, true);
        assert_eq!(unwritable(!leads, full, crowded), Some(Why::NotLeader));
        assert_eq!(unwritable(leads, full, crowded), Some(Why::NoDisk));
        assert_eq!(unwritable(leads, !full, crowded), Some(Why::Overloaded));
        assert_eq!(unwritable(leads, !full, !crowded), None);
    }
}
