//! Requests of clients, as they go through a gateway.

use std::ops::DerefMut;
use std::time::{Duration, Instant};

use api::gaios::link::v1 as wire;
use api::gaios::link::v1::response::Kind;
use bytes::BytesMut;
use gateway_core::asks::{Decided, KeepAlive, KeptAlive, Read, Write};
use gateway_core::link::{Ask, Terms, Unanswered, sort};
use gateway_core::silence::patience;
use gateway_core::{
    Answer, Attempted, Batch, Concern, Deadline, Drive, DriveStep, Failure, Flow, GroupId, GroupState,
    Learned, NodeId, Numbered, Pause, Phase, Priority, ReadAt, Renewals, Request, Routed, Sending, Shell,
    learn,
};
use keyspace::{LeaseId, Revision, Route};

use super::{Caller, Gateway};
use crate::cluster::clock::{MILLI, Time};
use crate::cluster::coverage::Mark;
use crate::cluster::env::{Env, trace};
use crate::cluster::events::{Call, Event, Granted, SentUnder, What};

/// Requests of one gateway that may wait for a leader.
const WAITING_MAX: usize = 6;

/// A request under way.
pub(super) struct Driven {
    /// The one that it is sent to; before that is known, the one whose keys it concerns.
    group: usize,
    of: Of,
    drive: Drive<Asking>,
    /// Where it goes, until it is refused there as misrouted.
    routed: Option<Routed>,
    /// The group that has refused it so first.
    refused_by: Option<usize>,
    /// Till when it waits then.
    pause_until: Option<Instant>,
    /// Where the last attempt went, while it is not over.
    sent: Option<Sent>,
    /// Every number it was ever sent under: what the gateway itself does not remember.
    numbers: Vec<SentUnder>,
}

/// Who is to be answered.
enum Of {
    Caller(Call),
    Renewals(Batch<Renewing>),
}

/// A client that wants a lease renewed.
pub(super) struct Renewing {
    call: Call,
    deadline: Time,
}

enum Asking {
    Write(Write),
    Read(Read),
    KeepAlive(KeepAlive),
}

/// What the group granted.
#[derive(Debug)]
enum Got {
    Answer(Answer),
    Kept(KeptAlive),
}

#[derive(Debug)]
struct Sent {
    link: u64,
    id: u64,
    since: Time,
    /// What it asks for had taken effect before.
    was_applied: bool,
}

impl Call {
    /// The gateway is gone, and with it what it knew.
    pub(crate) fn lost(self, env: &mut Env, numbers: Vec<SentUnder>) {
        let Call { caller, operation, .. } = self;
        env.after(MILLI, Event::CallAnswered { caller, operation, result: None, numbers });
    }
}

impl Renewing {
    pub(super) fn lost(self, env: &mut Env) {
        self.call.lost(env, Vec::new());
    }

    fn answer(self, env: &mut Env, result: Result<Granted, Failure>) {
        answer(env, self.call, result, Vec::new());
    }
}

fn deadline_of(env: &Env, at: Time) -> Deadline {
    Deadline::Gateway(env.origin + Duration::from_nanos(at))
}

/// When there is something to do for renewals that wait.
pub(super) fn renewals_due(env: &Env, renewals: &Renewals<Renewing>) -> Option<Instant> {
    let given_up = renewals.waiting().map(|renewing| renewing.deadline).min();
    let given_up = given_up.map(|deadline| deadline_of(env, deadline).at());
    renewals.deadline(env.instant()).into_iter().chain(given_up).min()
}

fn answer(env: &mut Env, call: Call, result: Result<Granted, Failure>, numbers: Vec<SentUnder>) {
    let Call { caller, operation, .. } = call;
    let delay = env.rng.around(100_000);
    env.after(delay, Event::CallAnswered { caller, operation, result: Some(result), numbers });
}

/// A request for this, not sent yet.
fn begun(what: &What, route: Route, deadline: Deadline) -> Drive<Asking> {
    let (ask, request) = match what {
        What::Write(op) => (Asking::Write(Write::new(op.clone(), route)), Request::write()),
        What::Read { query, serializable } => {
            let mut encoded = BytesMut::new();
            query.encode(&mut encoded);
            let at = if serializable.is_some() { ReadAt::Nearest } else { ReadAt::Leader };
            let read = Read { query: encoded.freeze(), serializable: serializable.map(Revision) };
            (Asking::Read(read), Request::read(at))
        }
        What::KeepAlive(lease) => (
            Asking::KeepAlive(KeepAlive { leases: vec![*lease], waits: false }),
            Request::read(ReadAt::Leader),
        ),
    };
    Drive::new(request, ask, deadline)
}

impl Driven {
    pub(super) fn lost(self, env: &mut Env) {
        match self.of {
            Of::Caller(call) => call.lost(env, self.numbers),
            Of::Renewals(batch) => batch.into_waiting().for_each(|renewing| renewing.lost(env)),
        }
    }

    /// For traces.
    fn operation(&self) -> u64 {
        match &self.of {
            Of::Caller(call) => call.operation,
            Of::Renewals(_) => 0,
        }
    }

    fn waits_for_news_of(&self, group: usize) -> bool {
        self.group == group && self.drive.phase() == Phase::AwaitsNews
    }

    /// News of a group concern it: it waits for some, or for the group's map.
    pub(super) fn hears_news_of(&self, group: usize) -> bool {
        self.waits_for_news_of(group) || self.group == group && self.drive.phase() == Phase::Ready
    }

    pub(super) fn due(&self) -> Instant {
        self.pause_until.map_or(self.drive.due(), |until| until.min(self.drive.due()))
    }
}

impl Ask for Asking {
    type Answer = Got;

    fn request(&mut self, numbered: Option<Numbered>) -> (wire::request::Kind, usize) {
        match self {
            Asking::Write(write) => write.request(numbered),
            Asking::Read(read) => read.request(numbered),
            Asking::KeepAlive(keep) => keep.request(numbered),
        }
    }

    fn answer(&self, term: u64, answer: Kind) -> Attempted<Got> {
        match self {
            Asking::Write(write) => write.answer(term, answer).map(Got::Answer),
            Asking::Read(read) => read.answer(term, answer).map(Got::Answer),
            Asking::KeepAlive(keep) => keep.answer(term, answer).map(Got::Kept),
        }
    }
}

/// A group of a gateway, for what is said of it.
struct OfGroup<'a> {
    gateway: &'a mut Gateway,
    now: Instant,
    group: usize,
}

impl Shell for OfGroup<'_> {
    fn state(&mut self) -> impl DerefMut<Target = GroupState> {
        &mut self.gateway.groups[self.group].state
    }

    fn announce(&mut self) {
        self.gateway.announce(self.group);
    }

    fn handle_session_lost(&mut self) {
        self.gateway.groups[self.group].tracker_due = None;
        self.gateway.wake_for_numbers(self.group);
    }

    fn handle_freed(&mut self, _: u64) {
        self.gateway.wake_for_numbers(self.group);
    }

    /// Nobody wants to know.
    fn count<T>(&mut self, _: &Attempted<T>) {}

    fn judge<T>(&mut self, node: NodeId, attempted: &Attempted<T>) {
        self.gateway.nodes.borrow_mut().handle_attempted(self.now, node, attempted);
    }
}

impl Gateway {
    pub(super) fn begin(&mut self, env: &mut Env, call: Call) {
        let (group, deadline) = (call.group, env.now + call.timeout);
        if let What::KeepAlive(lease) = call.what {
            self.groups[group].renewals.push(LeaseId(lease), Renewing { call, deadline });
            return;
        }
        let drive = begun(&call.what, Route::FIRST, deadline_of(env, deadline));
        self.drive(group, Of::Caller(call), drive);
    }

    /// Sends the renewals of leases that may leave.
    pub(super) fn renew(&mut self, env: &Env) {
        for group in 0..self.groups.len() {
            while let Some(batch) = self.groups[group].renewals.next_batch(env.instant()) {
                let last = batch.waiting().map(|renewing| renewing.deadline).max().unwrap_or(env.now);
                let (ask, last) = (Asking::KeepAlive(batch.ask()), deadline_of(env, last));
                let drive = Drive::new(Request::read(ReadAt::Leader), ask, last);
                self.drive(group, Of::Renewals(batch), drive);
            }
        }
    }

    fn drive(&mut self, group: usize, of: Of, drive: Drive<Asking>) {
        self.last_request += 1;
        let driven = Driven {
            group,
            of,
            drive,
            routed: None,
            refused_by: None,
            pause_until: None,
            sent: None,
            numbers: Vec::new(),
        };
        self.requests.insert(self.last_request, driven);
        self.ready.push_back(self.last_request);
    }

    /// Does what can be done for a request.
    pub(super) fn advance(&mut self, env: &mut Env, number: u64) {
        let Some(mut driven) = self.requests.remove(&number) else { return };
        if driven.pause_until.is_some_and(|until| env.instant() < until) {
            self.requests.insert(number, driven);
            return;
        }
        driven.pause_until = None;
        if driven.routed.is_none() {
            match self.route(env, &mut driven) {
                Some(Ok(())) => {}
                Some(Err(failure)) => {
                    env.mark(Mark::RequestSpansShards);
                    return self.finish(env, driven, Err(failure));
                }
                None => {
                    self.requests.insert(number, driven);
                    return;
                }
            }
        }
        let group = driven.group;
        let mut state = std::mem::take(&mut self.groups[group].state);
        let step = driven.drive.poll(|| env.instant(), || &mut state, &self.reach(env, group));
        self.groups[group].state = state;
        match step {
            DriveStep::Send(sending) => self.send(env, number, driven, sending),
            DriveStep::AwaitNews { bounded } => {
                self.groups[group].tracker_due = None;
                let waits = |driven: &&Driven| driven.waits_for_news_of(group);
                if bounded && self.requests.values().filter(waits).count() >= WAITING_MAX {
                    env.mark(Mark::TooManyWait);
                    self.finish(env, driven, Err(Failure::Overloaded));
                } else {
                    self.requests.insert(number, driven);
                }
            }
            DriveStep::AwaitNumber | DriveStep::Pause { .. } | DriveStep::AwaitAnswer => {
                self.requests.insert(number, driven);
            }
        }
    }

    /// Finds out where a request goes, as the newest map says. None: there is no map.
    fn route(&self, env: &Env, driven: &mut Driven) -> Option<Result<(), Failure>> {
        let topology = self.domain_of(driven.group).topology.as_ref()?;
        let what = match &driven.of {
            Of::Caller(call) => Some(&call.what),
            Of::Renewals(_) => None,
        };
        let concern = || match what {
            Some(What::Write(op)) => Concern::of_op(op),
            Some(What::Read { query, .. }) => Concern::of_query(query),
            Some(What::KeepAlive(_)) | None => Concern::Domain,
        };
        let routed = match topology.route_of(concern) {
            Ok(routed) => routed,
            Err(failure) => return Some(Err(failure)),
        };
        (driven.group, driven.routed) = (routed.group.0 as usize, Some(routed));
        if let Some(what) = what {
            let left = driven.drive.deadline().saturating_duration_since(env.instant());
            let deadline = deadline_of(env, env.now + left.as_nanos() as Time);
            driven.drive = begun(what, routed.route, deadline);
        }
        Some(Ok(()))
    }

    fn send(&mut self, env: &mut Env, number: u64, mut driven: Driven, sending: Sending<u64>) {
        let Sending { node, link, kind, bytes, numbered } = sending;
        let group = driven.group;
        let mut was_applied = false;
        if let Some(Numbered { number, .. }) = numbered {
            let (session, seq) = (number.session, number.seq);
            was_applied = env.truths[group].effect_of(session, seq).is_some();
            let sent = SentUnder { group, session, seq };
            if !driven.numbers.contains(&sent) {
                driven.numbers.push(sent);
            }
        }
        let caller = Caller::Request(number);
        let Some(end) = self.ends.get_mut(&link) else {
            return env.fail("links", format!("connection {link} is not there"));
        };
        let flow = match &driven.of {
            Of::Caller(call) => call.flow,
            Of::Renewals(_) => Flow { priority: Priority::Liveness, ..Flow::default() },
        };
        let worth = driven.drive.deadline().saturating_duration_since(env.instant());
        let terms = Terms { flow, worth: Some(worth) };
        match end.end.call(GroupId(group as u64), kind, bytes, terms, caller) {
            Ok(id) => {
                let sent = Sent { link, id, since: env.now, was_applied };
                trace!(env, "gateway {} sends #{} to n{}: {sent:?}", self.index, driven.operation(), node.0);
                driven.sent = Some(sent);
                self.requests.insert(number, driven);
                self.flush_soon(env, link);
            }
            Err(unsent) => self.attempted(env, number, driven, Attempted::Unsent(unsent)),
        }
    }

    pub(super) fn handle_answered(
        &mut self,
        env: &mut Env,
        number: u64,
        answered: Result<wire::Response, Unanswered>,
    ) {
        let Some(mut driven) = self.requests.remove(&number) else { return };
        let Some(Sent { was_applied, .. }) = driven.sent.take() else {
            env.fail("links", format!("request {number} hears what it does not wait for"));
            return;
        };
        let attempted = sort(driven.drive.ask(), answered);
        if was_applied && matches!(attempted, Attempted::Answer(_) | Attempted::Denied(_)) {
            env.mark(Mark::AnsweredFromSession);
        }
        self.attempted(env, number, driven, attempted);
    }

    /// An attempt is over.
    fn attempted(&mut self, env: &mut Env, number: u64, mut driven: Driven, attempted: Attempted<Got>) {
        trace!(env, "gateway {} #{}: {attempted:?}", self.index, driven.operation());
        let (now, group, random) = (env.instant(), driven.group, env.rng.next() as u32);
        let mut shell = OfGroup { gateway: self, now, group };
        match driven.drive.handle(|| now, attempted, &mut shell, || random) {
            Some(Err(Failure::WrongShard)) => {
                // By the next time there may be a newer map.
                env.mark(Mark::RefusedAsWrongShard);
                driven.drive.end(&mut OfGroup { gateway: self, now, group });
                driven.refused_by = driven.refused_by.or(Some(group));
                driven.routed = None;
                driven.pause_until = Some(now + Pause::Moment.length(random));
                self.requests.insert(number, driven);
            }
            Some(result) => self.finish(env, driven, result),
            None => {
                self.requests.insert(number, driven);
                self.ready.push_back(number);
            }
        }
    }

    /// Takes in what an attempt says of the group.
    pub(super) fn learn<T>(
        &mut self,
        env: &Env,
        group: usize,
        node: NodeId,
        attempted: &Attempted<T>,
    ) -> Learned {
        learn(&mut OfGroup { gateway: self, now: env.instant(), group }, node, None, attempted)
    }

    fn wake_for_numbers(&mut self, group: usize) {
        let waits = |driven: &Driven| driven.group == group && driven.drive.phase() == Phase::AwaitsNumber;
        let waiting = self.requests.iter().filter(|(_, driven)| waits(driven));
        self.ready.extend(waiting.map(|(number, _)| *number));
    }

    fn finish(&mut self, env: &mut Env, mut driven: Driven, result: Result<Got, Failure>) {
        let (now, group) = (env.instant(), driven.group);
        driven.drive.end(&mut OfGroup { gateway: self, now, group });
        if let (Ok(_), Some(refused_by)) = (&result, driven.refused_by) {
            env.mark(Mark::AnsweredByNewerMap);
            if refused_by != group {
                env.mark(Mark::AnsweredByOtherGroup);
            }
        }
        match (driven.of, result) {
            (Of::Caller(call), Ok(Got::Answer(granted))) => {
                if group != call.group {
                    env.fail("shards", format!("group {group} answers {:?}", call.what));
                }
                let seen = &mut self.groups[group].seen;
                *seen = (seen.0.max(granted.reply.revision().0), seen.1.max(granted.term));
                answer(env, call, Ok(Granted::Answer(granted)), driven.numbers);
            }
            (Of::Caller(call), Err(failure)) => answer(env, call, Err(failure), driven.numbers),
            (Of::Renewals(batch), Ok(Got::Kept(kept))) => {
                if kept.leases.contains(&Decided::NotYet) {
                    env.mark(Mark::RenewalUndecided);
                }
                self.renewed(env, group, batch, Ok(kept));
            }
            (Of::Renewals(batch), Err(failure)) => self.renewed(env, group, batch, Err(failure)),
            (Of::Caller(_), Ok(Got::Kept(_))) | (Of::Renewals(_), Ok(Got::Answer(_))) => {
                env.fail("answers", "an answer to another question".to_owned());
            }
        }
    }

    fn renewed(
        &mut self,
        env: &mut Env,
        group: usize,
        batch: Batch<Renewing>,
        result: Result<KeptAlive, Failure>,
    ) {
        let renewals = &mut self.groups[group].renewals;
        renewals
            .handle_answered(batch, result, |renewing, kept| renewing.answer(env, kept.map(Granted::Kept)));
    }

    /// Requests whose pause or whose time is over.
    pub(super) fn time_out(&mut self, env: &mut Env) {
        let now = env.instant();
        for group in &mut self.groups {
            for renewing in group.renewals.give_up(|renewing| renewing.deadline <= env.now) {
                env.mark(Mark::CallTimedOut);
                renewing.answer(env, Err(Failure::TimedOut));
            }
        }
        let due: Vec<u64> =
            self.requests.iter().filter(|(_, it)| it.due() <= now).map(|(number, _)| *number).collect();
        for number in due {
            let Some(mut driven) = self.requests.remove(&number) else { continue };
            if now < driven.drive.deadline() {
                self.requests.insert(number, driven);
                self.ready.push_back(number);
                continue;
            }
            self.take_back(env, &mut driven);
            env.mark(Mark::CallTimedOut);
            let failure = driven.drive.deadline_passed();
            self.finish(env, driven, Err(failure));
        }
    }

    /// A client waits no more.
    pub(super) fn give_up(&mut self, env: &mut Env, caller: usize, operation: u64) {
        let is_it = |call: &Call| call.caller == caller && call.operation == operation;
        for group in &mut self.groups {
            for renewing in group.renewals.give_up(|renewing| is_it(&renewing.call)) {
                renewing.lost(env);
            }
        }
        let is_of_it = |driven: &Driven| matches!(&driven.of, Of::Caller(call) if is_it(call));
        let number = self.requests.iter().find(|(_, driven)| is_of_it(driven)).map(|(number, _)| *number);
        let Some(mut driven) = number.and_then(|number| self.requests.remove(&number)) else { return };
        trace!(env, "gateway {} #{operation} is given up", self.index);
        env.mark(Mark::CallGivenUp);
        self.take_back(env, &mut driven);
        let (now, group) = (env.instant(), driven.group);
        driven.drive.end(&mut OfGroup { gateway: self, now, group });
        driven.lost(env);
    }

    /// Nobody waits for what was sent.
    fn take_back(&mut self, env: &mut Env, driven: &mut Driven) {
        if let Some(Sent { link, id, .. }) = driven.sent.take()
            && let Some(end) = self.ends.get_mut(&link)
        {
            end.end.give_up(id);
            self.flush_soon(env, link);
        }
    }

    /// Reads that another replica may answer do not wait for a node that is silent.
    pub(super) fn leave_the_silent(&mut self, env: &mut Env) {
        let mut left = Vec::new();
        for (number, driven) in &self.requests {
            let Some(Sent { link, id, since, .. }) = driven.sent else { continue };
            let Some(end) = self.ends.get(&link) else { continue };
            let silent_for = end.silent_for(env.now).min(Duration::from_nanos(env.now - since));
            if driven.drive.leaves_the_silent() && silent_for >= patience(end.round_trip) {
                left.push((*number, link, id));
            }
        }
        for (number, link, id) in left {
            if self.ends.get_mut(&link).and_then(|end| end.end.give_up(id)).is_some() {
                self.flush_soon(env, link);
                self.handle_answered(env, number, Err(Unanswered::Lost));
            }
        }
    }
}
