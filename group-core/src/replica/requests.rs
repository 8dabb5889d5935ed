//! What gateways ask of a group: whether it may be done here, what it waits for, and how it is answered.

use api::gaios::link::v1 as wire;
use api::gaios::link::v1::keep_alive::Wait;
use api::gaios::link::v1::refused::Why;
use api::gaios::link::v1::request::Kind as RequestKind;
use api::gaios::link::v1::response::Kind;
use bytes::Bytes;
use consensus_core::{Input, NodeId, NodeSet, ReadMode};
use fair_queue::{Full, Priority};
use keyspace::{
    Alarm, AlarmKind, Budget, Command, Error, Gathered, LEASES_MAX, LeaseId, Outcome, Query, Reply, Revision,
    SessionId, SessionLookup, Step, SuspendedQuery,
};

use crate::clients::{Enrolled, PendingRead, Reading, Subject, Terms, Waiter};
use crate::env::{Env, LinkId};
use crate::lease_clock::{LeaseList, Renewal};
use crate::mutant::mutant;
use crate::out::{LargeAnswer, Notice, Out};
use crate::queries::{Admitted, Asked, Next};
use crate::replica::{Replica, encode};
use crate::slices::{About, Slow, Work};

/// What came of a step of a query.
enum Stepped {
    /// It is answered, or refused.
    Answered,
    /// It is not through.
    Suspended(Work),
    /// It is through, and its link has no room for the answer.
    HasNoRoom(Gathered),
}

impl Replica {
    pub(crate) fn on_request(&mut self, env: &Env<'_>, link: LinkId, request: wire::Request) {
        let id = request.id;
        let waiter = Waiter { link, request: id };
        let terms = Terms::of(&request, env.now);
        let read = |reading| PendingRead { waiter, terms, reading };
        match request.kind {
            Some(RequestKind::Write(write)) => self.on_write(env, link, id, write),
            Some(RequestKind::OpenSession(open)) => self.on_open_session(env, link, id, &open.nonce),
            Some(RequestKind::Read(asked)) => self.on_query(env, waiter, terms, asked),
            Some(RequestKind::KeepAlive(keep)) => self.on_read(env, read(Reading::KeepAlive(keep))),
            Some(RequestKind::Status(asked)) => self.on_status(env, link, id, &asked),
            Some(RequestKind::WatchOpen(open)) if open.linearizable => {
                self.on_read(env, read(Reading::WatchOpen(open)));
            }
            Some(RequestKind::WatchOpen(open)) => {
                self.watches.open(link, id, open, &self.state, &mut self.replies);
            }
            Some(RequestKind::WatchCredit(credit)) => self.watches.add_credit(link, id, credit.bytes),
            Some(RequestKind::WatchSync(sync)) => self.on_read(env, read(Reading::WatchSync(sync.watch))),
            // It may not have been opened yet.
            Some(RequestKind::WatchClose(_)) if self.clients.cancel(waiter) => {}
            Some(RequestKind::WatchClose(_)) => self.watches.close(link, id),
            Some(RequestKind::Cancel(_)) => self.cancel(waiter),
            Some(RequestKind::LeaderControl(control)) => self.on_leader_control(env, link, id, control),
            // The node answers them.
            Some(RequestKind::NodeStatus(_) | RequestKind::Gateways(_) | RequestKind::Ping(_)) | None => {
                self.replies.refuse(link, id, Why::Malformed)
            }
        }
    }

    /// Nobody waits for an answer any more. A write goes on: it is proposed.
    fn cancel(&mut self, waiter: Waiter) {
        if mutant!(self.settings.broken, CancelIgnored) {
            return;
        }
        let was_there = self.queries.cancel(waiter)
            || self.slices.cancel(waiter)
            || self.clients.cancel(waiter)
            || self.seekers.cancel(waiter)
            || self.parked.remove(&waiter).is_some();
        self.counters.cancelled += u64::from(was_there);
    }

    fn on_query(&mut self, env: &Env<'_>, waiter: Waiter, terms: Terms, read: wire::Read) {
        let Waiter { link, request: id } = waiter;
        let bytes = read.query.len();
        let Ok(query) = Query::decode(read.query) else {
            self.replies.refuse(link, id, Why::Malformed);
            return;
        };
        if !read.serializable {
            self.on_read(env, PendingRead { waiter, terms, reading: Reading::Query { query, bytes } });
            return;
        }
        let asked = Asked::Query(query, About { bytes, linearizable: false });
        let query = Admitted { request: id, terms, asked };
        let at_least = Revision(read.at_least);
        let admitted = if self.state.resolved().covers(at_least) {
            self.queries.admit(link, query)
        } else {
            self.queries.admit_at(env.now, at_least, link, query)
        };
        if admitted.is_err() {
            self.replies.refuse(link, id, Why::Overloaded);
        }
    }

    fn on_write(&mut self, env: &Env<'_>, link: LinkId, id: u64, write: wire::Write) {
        let (session, seq) = (SessionId(write.session), write.seq);
        // Nothing enters the log that a replica could not read back.
        let route = match Command::decode(write.command.clone()) {
            Ok(Command::Write { session: of, seq: number, route, .. }) if of == session && number == seq => {
                route
            }
            Ok(
                Command::Write { .. }
                | Command::OpenSession { .. }
                | Command::CloseSession(_)
                | Command::ExpireLeases(..)
                | Command::CheckpointLeases(..)
                | Command::StartClock(_)
                | Command::SetLimits(_)
                | Command::SetLeaderRegions(_)
                | Command::RaiseAlarm(_)
                | Command::RaiseVersion(_),
            )
            | Err(_) => {
                self.replies.refuse(link, id, Why::Malformed);
                return;
            }
        };
        match self.state.has_result(session, seq, route) {
            SessionLookup::Applied(outcome) => {
                let outcome = outcome.clone();
                self.answer(env, link, id, &outcome);
                return;
            }
            // The rest is decided at apply, in log order, the same on every replica.
            SessionLookup::Expired
            | SessionLookup::Forgotten
            | SessionLookup::New
            | SessionLookup::BeyondWindow => {}
        }
        if !self.may_write(env, link, id) {
            return;
        }
        self.propose(env, Subject::Write(session, seq), Waiter { link, request: id }, write.command);
    }

    fn on_open_session(&mut self, env: &Env<'_>, link: LinkId, id: u64, nonce: &[u8]) {
        let Ok(nonce) = <[u8; 16]>::try_from(nonce) else {
            self.replies.refuse(link, id, Why::Malformed);
            return;
        };
        if !self.may_write(env, link, id) {
            return;
        }
        let nonce = u128::from_le_bytes(nonce);
        let command = encode(&Command::OpenSession { nonce });
        let waiter = Waiter { link, request: id };
        self.propose(env, Subject::OpenSession(nonce), waiter, command);
    }

    /// Refuses what could not be written here, before it costs a proposal.
    fn may_write(&mut self, env: &Env<'_>, link: LinkId, id: u64) -> bool {
        let full = env.disk.full || !self.full_voters(env).is_empty();
        let why = unwritable(self.elected, full, env.disk.crowded || self.backlog.is_long());
        if let Some(why) = why {
            self.replies.refuse(link, id, why);
        }
        why.is_none()
    }

    fn propose(&mut self, env: &Env<'_>, subject: Subject, waiter: Waiter, command: Bytes) {
        match self.clients.enrol(subject, waiter) {
            Enrolled::Propose(tag) => self.step_engine(env, Input::Propose { tag, command }),
            Enrolled::UnderWay => {}
        }
    }

    pub(crate) fn propose_internal(&mut self, env: &Env<'_>, command: &Command) {
        let in_force = self.state.version();
        let raises = matches!(command, Command::RaiseVersion(_));
        assert!(raises || command.version() <= in_force, "nothing is proposed that not all replicas know");
        let tag = self.clients.internal();
        self.step_engine(env, Input::Propose { tag, command: encode(command) });
    }

    pub(crate) fn on_read(&mut self, env: &Env<'_>, read: PendingRead) {
        match self.engine.lease_read(env.now, env.liveness) {
            Some(point) if point <= self.applied => self.serve(env, read),
            Some(point) => self.clients.wait_for_apply(point, read),
            None if mutant!(self.settings.broken, ReadUnasked) => self.serve(env, read),
            None => self.clients.ask(read),
        }
    }

    /// One question for all reads of the turn that the leader lease does not cover.
    pub(crate) fn ask_for_read_point(&mut self, env: &Env<'_>) {
        if self.clients.asks() {
            let tag = self.clients.wait_for_point();
            self.step_engine(env, Input::Read { tag, mode: ReadMode::Lease });
        }
    }

    pub(crate) fn serve(&mut self, env: &Env<'_>, read: PendingRead) {
        let PendingRead { waiter, terms, reading } = read;
        if terms.is_past(env.now) {
            self.counters.expired += 1;
            return;
        }
        match reading {
            Reading::Query { query, bytes } => {
                let asked = Asked::Query(query, About { bytes, linearizable: true });
                let query = Admitted { request: waiter.request, terms, asked };
                if self.queries.admit(waiter.link, query).is_err() {
                    self.replies.refuse(waiter.link, waiter.request, Why::Overloaded);
                }
            }
            Reading::KeepAlive(asked) => self.keep_alive(env, waiter, terms, asked),
            Reading::WatchOpen(open) => {
                self.watches.open(waiter.link, waiter.request, open, &self.state, &mut self.replies);
            }
            Reading::WatchSync(watch) => {
                self.watches.sync(waiter.link, waiter.request, watch, &self.state, &mut self.replies);
            }
        }
    }

    /// What the state has caught up with may be asked, and what has waited long enough.
    pub(crate) fn admit_caught_up(&mut self, env: &Env<'_>) {
        let replies = &mut self.replies;
        self.queries.handle_resolved(env.now, self.state.resolved(), |link, request| {
            replies.refuse(link, request, Why::Overloaded);
        });
    }

    /// Does a step of the next query whose link has room; false if there is none. A node gives queries a bounded share of a
    /// turn.
    pub fn answer_next(&mut self, env: &Env<'_>, out: &mut Out) -> bool {
        while let Some((Waiter { link, request }, terms, slow)) = self.slices.next_ready() {
            let admitted = self.queries.admit(link, Admitted { request, terms, asked: Asked::Slow(slow) });
            assert!(admitted.is_ok(), "a query that was begun is always admitted");
        }
        let next = self.queries.next(env.now, env.links, &mut self.counters.expired);
        let Some(Next { link, query: Admitted { request, terms, asked }, ticket }) = next else {
            return false;
        };
        let waiter = Waiter { link, request };
        let large_before = self.out.large.len();
        let left = match asked {
            Asked::Query(query, about) => {
                self.counters.queries += 1;
                match self.begin_query(env, waiter, &query, about) {
                    Stepped::Answered => None,
                    Stepped::Suspended(work) => match self.slices.suspend(waiter, terms, work, about) {
                        Ok(slow) => slow.map(Asked::Slow),
                        Err(Full) => {
                            self.replies.refuse(link, request, Why::Overloaded);
                            None
                        }
                    },
                    // It is carried out again: what an answer holds would add up.
                    Stepped::HasNoRoom(_) => Some(Asked::Query(query, about)),
                }
            }
            Asked::Slow(Slow { work, about, place }) => {
                let stepped = match work {
                    Work::Begin(query) => self.begin_query(env, waiter, &query, about),
                    Work::GoOn(suspended) => self.go_on_query(env, waiter, suspended, about),
                    Work::List(list) if self.leading => self.list_leases(env, waiter, list),
                    Work::List(_) => self.begin_query(env, waiter, &Query::Leases, about),
                };
                match stepped {
                    Stepped::Answered => None,
                    Stepped::Suspended(work) => Some(Asked::Slow(Slow { work, about, place })),
                    Stepped::HasNoRoom(gathered) => Some(Asked::Answered(gathered, Some(place))),
                }
            }
            Asked::Answered(gathered, place) => {
                let left = self.answer_gathered(env, waiter, gathered);
                left.map(|gathered| Asked::Answered(gathered, place))
            }
        };
        if left.is_some() || self.out.large.len() > large_before {
            self.queries.charge(link, ticket.flow(), self.settings.large_answer_bytes as u64);
        }
        if let Some(asked) = left {
            let query = Admitted { request, terms, asked };
            self.queries.put_back(Next { link, query, ticket }, Priority::Large);
        }
        // Whoever takes a large answer has room for no other; the rest leaves at the end of the turn.
        if !self.out.large.is_empty() || self.replies.has_full() {
            self.hand_out(out);
        }
        true
    }

    /// Does the first step of a query.
    fn begin_query(&mut self, env: &Env<'_>, waiter: Waiter, query: &Query, about: About) -> Stepped {
        if !self.may_answer(env, waiter, query, about) {
            return Stepped::Answered;
        }
        if self.leading && *query == Query::Leases {
            return self.list_leases(env, waiter, LeaseList::new());
        }
        let mut budget = Budget::of_keys(self.settings.queries.step_keys);
        let step = self.state.begin(query, &mut budget);
        self.take_step(env, waiter, step)
    }

    /// Does another step of a query.
    fn go_on_query(
        &mut self,
        env: &Env<'_>,
        waiter: Waiter,
        suspended: SuspendedQuery,
        about: About,
    ) -> Stepped {
        if !self.may_answer(env, waiter, suspended.query(), about) {
            return Stepped::Answered;
        }
        let mut budget = Budget::of_keys(self.settings.queries.step_keys);
        let step = self.state.go_on(suspended, &mut budget);
        self.take_step(env, waiter, step)
    }

    /// Goes on with the list of leases, by the time that they end, which the state does not know.
    fn list_leases(&mut self, env: &Env<'_>, waiter: Waiter, mut list: LeaseList) -> Stepped {
        let is_whole = self.leases.list(&mut list, self.settings.queries.step_keys);
        let gathered = if list.len() > LEASES_MAX {
            Gathered::from(Err(Error::AnswerTooLarge))
        } else if is_whole {
            Gathered::leases(self.state.resolved().revision(), list)
        } else {
            return Stepped::Suspended(Work::List(list));
        };
        self.answer_gathered(env, waiter, gathered).map_or(Stepped::Answered, Stepped::HasNoRoom)
    }

    /// Refuses what only a leader may answer, where this is none.
    fn may_answer(&mut self, env: &Env<'_>, waiter: Waiter, query: &Query, about: About) -> bool {
        let about_leases = matches!(query, Query::LeaseTimeToLive { .. } | Query::Leases);
        if about_leases && about.linearizable && !self.leading {
            self.replies.refuse(waiter.link, waiter.request, Why::NotLeader);
            return false;
        }
        if let Query::Alarms = query {
            self.watch_disks(env);
        }
        true
    }

    fn take_step(&mut self, env: &Env<'_>, waiter: Waiter, step: Step) -> Stepped {
        let mut gathered = match step {
            Step::Done(gathered) => gathered,
            Step::Suspended(suspended) => return Stepped::Suspended(Work::GoOn(suspended)),
        };
        // The state machine has no clock; what remains of a lease only its leader knows.
        if self.leading
            && let Some(outcome) = gathered.ready()
        {
            match outcome {
                Ok(Reply::LeaseTimeToLive(reply)) => {
                    if let Some(remaining) = self.leases.remaining(env.now, reply.id) {
                        reply.ttl = remaining;
                    }
                }
                // While disks are full the log cannot tell.
                Ok(Reply::Alarms { alarms, .. }) => alarms.extend(self.alarms_of_disks()),
                Ok(_) | Err(_) => {}
            }
        }
        self.answer_gathered(env, waiter, gathered).map_or(Stepped::Answered, Stepped::HasNoRoom)
    }

    /// Answers a write.
    pub(crate) fn answer(&mut self, env: &Env<'_>, link: LinkId, id: u64, outcome: &Outcome) {
        if !outcome.as_ref().is_ok_and(|reply| reply.holds_more_than(self.settings.large_answer_bytes)) {
            self.answer_small(link, id, outcome);
            return;
        }
        let gathered = Gathered::from(outcome.clone());
        if let Some(gathered) = self.answer_large(env, Waiter { link, request: id }, gathered) {
            let asked = Asked::Answered(gathered, None);
            let admitted = self.queries.admit(link, Admitted { request: id, terms: Terms::default(), asked });
            assert!(admitted.is_ok(), "answers are always admitted");
        }
    }

    /// Answers a query, unless there is no room for its answer.
    fn answer_gathered(&mut self, env: &Env<'_>, waiter: Waiter, mut gathered: Gathered) -> Option<Gathered> {
        let is_large = gathered.is_large(self.settings.large_answer_bytes);
        match gathered.ready() {
            Some(outcome) if !is_large => {
                self.answer_small(waiter.link, waiter.request, outcome);
                None
            }
            Some(_) | None => self.answer_large(env, waiter, gathered),
        }
    }

    fn answer_small(&mut self, link: LinkId, id: u64, outcome: &Outcome) {
        if let Err(Error::WrongShard) = outcome {
            self.replies.refuse_wrong_shard(link, id);
        } else {
            self.replies.outcome(link, id, outcome);
        }
    }

    /// What is large is put together and encoded elsewhere, as it leaves, since it would stop the group, and on a small machine
    /// the node; one in each turn for each link. Gives it back if there is no room for it.
    fn answer_large(&mut self, env: &Env<'_>, waiter: Waiter, gathered: Gathered) -> Option<Gathered> {
        let Waiter { link, request } = waiter;
        if !self.has_room_for_large(env, link) {
            return Some(gathered);
        }
        self.out.large.push(LargeAnswer { link, request, term: self.replies.term, gathered });
        None
    }

    /// Whether a large answer may leave now.
    fn has_room_for_large(&self, env: &Env<'_>, link: LinkId) -> bool {
        env.links.has_room_for_large(link) && self.out.large.iter().all(|answer| answer.link != link)
    }

    fn keep_alive(&mut self, env: &Env<'_>, waiter: Waiter, terms: Terms, asked: wire::KeepAlive) {
        if !self.leading {
            self.replies.refuse(waiter.link, waiter.request, Why::NotLeader);
            return;
        }
        let now = env.now;
        let revision = self.state.resolved().revision().0;
        let clock = self.clock();
        let mut kept = Vec::with_capacity(asked.leases.len());
        let mut reset = Vec::new();
        let mut undecided = 0;
        for &lease in &asked.leases {
            let id = LeaseId(lease);
            let renewal = if clock.is_none() {
                self.leases.hold(now, id)
            } else if mutant!(self.settings.broken, LeaseNotRenewed) {
                self.leases
                    .remaining(now, id)
                    .map_or(Renewal::Missing, |ttl| Renewal::Renewed { ttl_seconds: ttl + 5 })
            } else {
                self.leases.renew(now, id)
            };
            let ttl = match renewal {
                Renewal::Renewed { ttl_seconds } => Some(ttl_seconds),
                Renewal::Missing => Some(0),
                Renewal::Resetting { propose } => {
                    reset.extend(propose.map(|grant| (grant, 0)));
                    None
                }
                // The others are renewed meanwhile.
                Renewal::Ending | Renewal::Held => None,
            };
            undecided += usize::from(ttl.is_none());
            kept.push(wire::KeptLease { id: lease, ttl: ttl.unwrap_or(0), undecided: ttl.is_none() });
        }
        if let Some(clock) = clock.filter(|_| !reset.is_empty()) {
            self.propose_internal(env, &Command::CheckpointLeases(clock, reset));
        }
        let must_wait = match asked.wait() {
            Wait::ForAll => undecided > 0,
            Wait::ForOne => undecided > 0 && undecided == kept.len(),
            Wait::ForNone => false,
        };
        if must_wait {
            // By then the time of the others has run on, so all are renewed once more.
            self.parked.insert(waiter, (terms, asked));
            return;
        }
        let kept = wire::KeptAlive { leases: kept, revision };
        self.replies.add(waiter.link, waiter.request, Kind::KeptAlive(kept));
    }

    fn on_status(&mut self, env: &Env<'_>, link: LinkId, id: u64, asked: &wire::StatusRequest) {
        let waiter = Waiter { link, request: id };
        if let Some(waiter) = self.seekers.admit(env.now, self.led(), waiter, asked) {
            self.answer_status(env, waiter);
        }
    }

    /// Tells those who look for a leader.
    pub(crate) fn answer_seekers(&mut self, env: &Env<'_>) {
        if self.seekers.is_empty() {
            return;
        }
        for waiter in self.seekers.take_due(env.now, self.led()) {
            self.answer_status(env, waiter);
        }
    }

    fn answer_status(&mut self, env: &Env<'_>, waiter: Waiter) {
        self.watch_disks(env);
        let status = self.status_reply();
        self.replies.add(waiter.link, waiter.request, Kind::Status(status));
    }

    /// The round of the leader, if one is known.
    fn led(&self) -> Option<u64> {
        let status = self.engine.status();
        status.leader.map(|_| status.ballot.round)
    }

    /// The voters whose disks are full, if that is why nothing can be made durable: those that are up would be enough, and
    /// those of them which have room are not.
    pub(crate) fn full_voters(&self, env: &Env<'_>) -> NodeSet {
        let full: NodeSet =
            self.settings.voters.iter().filter(|voter| self.is_disk_full(env, *voter)).collect();
        if full.is_empty() {
            return full;
        }
        let config = self.engine.status().config;
        let up: NodeSet = config.voters.iter().filter(|node| env.liveness.is_up(env.now, *node)).collect();
        let with_room: NodeSet = up.iter().filter(|node| !full.contains(*node)).collect();
        if config.is_q2(&up) && !config.is_q2(&with_room) { full } else { NodeSet::new() }
    }

    /// Whether a node's disk is full, as far as it said; what it said holds for `timing.election`.
    pub(crate) fn is_disk_full(&self, env: &Env<'_>, node: NodeId) -> bool {
        if node == self.settings.node {
            return env.disk.full;
        }
        let said = self.full_at.get(&node);
        said.is_some_and(|at| env.now.since(*at) < self.settings.timing.election)
    }

    /// Tells once that writes are refused for want of disks with room, and once that they are not any more.
    pub(crate) fn watch_disks(&mut self, env: &Env<'_>) {
        let full = if self.leading { self.full_voters(env) } else { NodeSet::new() };
        if full.is_empty() == self.disks_full.is_empty() {
            return;
        }
        let notice =
            if full.is_empty() { Notice::DisksHaveRoom } else { Notice::DisksFull { nodes: full.clone() } };
        self.out.notices.push(notice);
        self.disks_full = full;
    }

    /// The alarms of disks that are full. They end by themselves, when there is room.
    fn alarms_of_disks(&self) -> impl Iterator<Item = Alarm> {
        let alarm = |node: NodeId| Alarm { member: u64::from(node.0), kind: AlarmKind::NoSpace };
        let raised: Vec<Alarm> = self.state.alarms().collect();
        self.disks_full.iter().map(alarm).filter(move |alarm| !raised.contains(alarm))
    }

    pub(crate) fn status_reply(&self) -> wire::StatusReply {
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
