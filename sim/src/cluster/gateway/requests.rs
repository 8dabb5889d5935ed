//! Requests of clients, as they go through a gateway.

use std::time::{Duration, Instant};

use api::gaios::link::v1 as wire;
use bytes::BytesMut;
use gateway_core::asks::{Decided, KeepAlive, KeptAlive, Read, Write};
use gateway_core::link::{Ask, Lost, sort};
use gateway_core::silence::patience;
use gateway_core::{
    Answer, Attempt, Attempted, Batch, Concern, Failure, Learned, NodeId, Number, Numbered, ReadAt, Renewals,
    Request, Step, Verdict,
};
use keyspace::{LeaseId, Route, SessionId};

use super::{Caller, Gateway};
use crate::cluster::clock::{MILLI, Time};
use crate::cluster::coverage::Mark;
use crate::cluster::env::{Env, trace};
use crate::cluster::events::{Call, Event, Granted, What};

/// Requests of one gateway that may wait for a leader.
const WAITING_MAX: usize = 6;

/// A request under way.
pub(super) struct Driven {
    group: usize,
    of: Of,
    ask: Asking,
    request: Request,
    deadline: Time,
    phase: Phase,
    /// Every number it was ever sent under: what the gateway itself does not remember.
    numbers: Vec<(SessionId, u64)>,
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
enum Phase {
    Ready,
    /// For a leader, its link or a session.
    AwaitsNews,
    AwaitsNumber,
    Paused(Instant),
    Sent {
        link: u64,
        id: u64,
        node: NodeId,
        number: Option<Number>,
        since: Time,
        /// What it asks for had taken effect before.
        was_applied: bool,
    },
}

impl Call {
    /// The gateway is gone, and with it what it knew.
    pub(crate) fn lost(self, env: &mut Env, numbers: Vec<(SessionId, u64)>) {
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

/// When there is something to do for renewals that wait.
pub(super) fn renewals_due(env: &Env, renewals: &Renewals<Renewing>) -> Option<Instant> {
    let given_up = renewals.waiting().map(|renewing| renewing.deadline).min();
    let given_up = given_up.map(|deadline| env.origin + Duration::from_nanos(deadline));
    renewals.deadline(env.instant()).into_iter().chain(given_up).min()
}

fn answer(env: &mut Env, call: Call, result: Result<Granted, Failure>, numbers: Vec<(SessionId, u64)>) {
    let Call { caller, operation, .. } = call;
    let delay = env.rng.around(100_000);
    env.after(delay, Event::CallAnswered { caller, operation, result: Some(result), numbers });
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

    pub(super) fn waits_for_news_of(&self, group: usize) -> bool {
        self.group == group && matches!(self.phase, Phase::AwaitsNews)
    }

    pub(super) fn due(&self, env: &Env) -> Instant {
        let deadline = env.origin + Duration::from_nanos(self.deadline);
        match self.phase {
            Phase::Paused(until) => until.min(deadline),
            Phase::Ready | Phase::AwaitsNews | Phase::AwaitsNumber | Phase::Sent { .. } => deadline,
        }
    }
}

impl Asking {
    fn request(&mut self, numbered: Option<Numbered>) -> (wire::request::Kind, usize) {
        match self {
            Asking::Write(write) => write.request(numbered),
            Asking::Read(read) => read.request(numbered),
            Asking::KeepAlive(keep) => keep.request(numbered),
        }
    }

    fn sort(&self, answered: Result<wire::Response, Lost>) -> Attempted<Got> {
        match self {
            Asking::Write(write) => got(sort(write, answered), Got::Answer),
            Asking::Read(read) => got(sort(read, answered), Got::Answer),
            Asking::KeepAlive(keep) => got(sort(keep, answered), Got::Kept),
        }
    }
}

fn got<T>(attempted: Attempted<T>, got: impl FnOnce(T) -> Got) -> Attempted<Got> {
    match attempted {
        Attempted::Answer(answer) => Attempted::Answer(got(answer)),
        Attempted::Lost => Attempted::Lost,
        Attempted::Unsent(unsent) => Attempted::Unsent(unsent),
        Attempted::Refused(refused) => Attempted::Refused(refused),
        Attempted::Denied(error) => Attempted::Denied(error),
        Attempted::Protocol(text) => Attempted::Protocol(text),
    }
}

impl Gateway {
    pub(super) fn begin(&mut self, env: &mut Env, call: Call) {
        let (group, deadline) = (call.group, env.now + call.timeout);
        let (ask, request) = match &call.what {
            What::Write(op) => (Asking::Write(Write::new(op.clone(), Route::FIRST)), Request::write()),
            What::Read { query, serializable } => {
                let mut encoded = BytesMut::new();
                query.encode(&mut encoded);
                let at = if serializable.is_some() { ReadAt::Nearest } else { ReadAt::Leader };
                let read = Read { query: encoded.freeze(), serializable: *serializable };
                (Asking::Read(read), Request::read(at))
            }
            What::KeepAlive(lease) => {
                self.domains[group].renewals.push(LeaseId(*lease), Renewing { call, deadline });
                return;
            }
        };
        self.drive(group, Of::Caller(call), ask, request, deadline);
    }

    /// Sends the renewals of leases that may leave.
    pub(super) fn renew(&mut self, env: &Env) {
        for group in 0..self.domains.len() {
            while let Some(batch) = self.domains[group].renewals.next_batch(env.instant()) {
                let last = batch.waiting().map(|renewing| renewing.deadline).max().unwrap_or(env.now);
                let ask = Asking::KeepAlive(batch.ask());
                self.drive(group, Of::Renewals(batch), ask, Request::read(ReadAt::Leader), last);
            }
        }
    }

    fn drive(&mut self, group: usize, of: Of, ask: Asking, request: Request, deadline: Time) {
        self.last_request += 1;
        let driven = Driven { group, of, ask, request, deadline, phase: Phase::Ready, numbers: Vec::new() };
        self.requests.insert(self.last_request, driven);
        self.ready.push_back(self.last_request);
    }

    /// Does what can be done for a request.
    pub(super) fn advance(&mut self, env: &mut Env, number: u64) {
        let Some(mut driven) = self.requests.remove(&number) else { return };
        match driven.phase {
            Phase::Paused(_) | Phase::Sent { .. } => {
                self.requests.insert(number, driven);
                return;
            }
            Phase::Ready | Phase::AwaitsNews | Phase::AwaitsNumber => {}
        }
        let group = driven.group;
        let Some(topology) = &self.domains[group].topology else {
            driven.phase = Phase::AwaitsNews;
            self.requests.insert(number, driven);
            return;
        };
        let what = match &driven.of {
            Of::Caller(call) => Some(&call.what),
            Of::Renewals(_) => None,
        };
        let concern = || match what {
            Some(What::Write(op)) => Concern::of_op(op),
            Some(What::Read { query, .. }) => Concern::of_query(query),
            Some(What::KeepAlive(_)) | None => Concern::Domain,
        };
        if topology.group_of(concern) != Ok(group as u64) {
            env.fail("maps", format!("{what:?} does not belong to group {group}"));
        }
        let mut state = std::mem::take(&mut self.domains[group].state);
        let step = driven.request.poll(|| &mut state, &self.reach(env, group));
        self.domains[group].state = state;
        match step {
            Step::Send(attempt) => self.send(env, number, driven, attempt),
            Step::AwaitNews { bounded } => {
                self.domains[group].tracker_due = None;
                let waits = |driven: &&Driven| driven.waits_for_news_of(group);
                let waiting = self.requests.values().filter(waits).count();
                let is_new = !matches!(driven.phase, Phase::AwaitsNews);
                driven.phase = Phase::AwaitsNews;
                if bounded && is_new && waiting >= WAITING_MAX {
                    env.mark(Mark::TooManyWait);
                    self.finish(env, driven, Err(Failure::Overloaded));
                } else {
                    self.requests.insert(number, driven);
                }
            }
            Step::AwaitNumber => {
                driven.phase = Phase::AwaitsNumber;
                self.requests.insert(number, driven);
            }
        }
    }

    fn send(&mut self, env: &mut Env, number: u64, mut driven: Driven, attempt: Attempt<u64>) {
        let Attempt { node, link, numbered } = attempt;
        let group = driven.group;
        let mut was_applied = false;
        if let Some(Numbered { number, .. }) = numbered {
            let (session, seq) = (number.session, number.seq);
            was_applied = env.truths[group].effect_of(session, seq).is_some();
            if !driven.numbers.contains(&(session, seq)) {
                driven.numbers.push((session, seq));
            }
        }
        let (kind, bytes) = driven.ask.request(numbered);
        let caller = Caller::Request(number);
        let sent = self.ends.get_mut(&link).map(|end| end.end.call(group as u64, kind, bytes, caller));
        let of = numbered.map(|numbered| numbered.number);
        driven.phase = match sent {
            Some(Ok(id)) => {
                let since = env.now;
                Phase::Sent { link, id, node, number: of, since, was_applied }
            }
            Some(Err(unsent)) => {
                self.attempted(env, number, driven, node, of, Attempted::Unsent(unsent));
                return;
            }
            None => {
                env.fail("links", format!("connection {link} is not there"));
                return;
            }
        };
        trace!(env, "gateway {} sends #{} to n{node}: {:?}", self.index, driven.operation(), driven.phase);
        self.requests.insert(number, driven);
        self.flush_soon(env, link);
    }

    pub(super) fn handle_answered(
        &mut self,
        env: &mut Env,
        number: u64,
        answered: Result<wire::Response, Lost>,
    ) {
        let Some(driven) = self.requests.remove(&number) else { return };
        let Phase::Sent { node, number: of, was_applied, .. } = driven.phase else {
            env.fail("links", format!("request {number} hears what it does not wait for"));
            return;
        };
        let attempted = driven.ask.sort(answered);
        if was_applied && matches!(attempted, Attempted::Answer(_) | Attempted::Denied(_)) {
            env.mark(Mark::AnsweredFromSession);
        }
        self.attempted(env, number, driven, node, of, attempted);
    }

    /// An attempt is over.
    fn attempted(
        &mut self,
        env: &mut Env,
        number: u64,
        mut driven: Driven,
        node: NodeId,
        of: Option<Number>,
        attempted: Attempted<Got>,
    ) {
        if driven.request.leaves_the_silent() {
            self.nodes.borrow_mut().handle_attempted(env.instant(), node, &attempted);
        }
        let group = driven.group;
        let learned = self.learn(group, node, of, &attempted);
        trace!(env, "gateway {} #{}: {attempted:?}", self.index, driven.operation());
        match driven.request.handle(attempted, learned) {
            Verdict::Done(result) => self.finish(env, driven, result),
            Verdict::Retry => {
                driven.phase = Phase::Ready;
                self.requests.insert(number, driven);
                self.ready.push_back(number);
            }
            Verdict::RetryAfter { pause, returned } => {
                if let Some(returned) = returned {
                    self.done(group, returned);
                }
                driven.phase = Phase::Paused(env.instant() + pause.length(env.rng.next() as u32));
                self.requests.insert(number, driven);
            }
        }
    }

    /// Takes in what an attempt says of the group.
    pub(super) fn learn<T>(
        &mut self,
        group: usize,
        node: NodeId,
        number: Option<Number>,
        attempted: &Attempted<T>,
    ) -> Learned {
        if !attempted.teaches() {
            return Learned::default();
        }
        let learned = self.domains[group].state.handle_attempted(node, number, attempted);
        if learned.session_lost {
            self.domains[group].tracker_due = None;
            self.wake_for_numbers(group);
        }
        if learned.route_changed {
            self.announce(group);
        }
        learned
    }

    fn done(&mut self, group: usize, number: Number) {
        if self.domains[group].state.session.done(number) > 0 {
            self.wake_for_numbers(group);
        }
    }

    fn wake_for_numbers(&mut self, group: usize) {
        let waits = |driven: &Driven| driven.group == group && matches!(driven.phase, Phase::AwaitsNumber);
        let waiting = self.requests.iter().filter(|(_, driven)| waits(driven));
        self.ready.extend(waiting.map(|(number, _)| *number));
    }

    fn finish(&mut self, env: &mut Env, mut driven: Driven, result: Result<Got, Failure>) {
        let group = driven.group;
        if let Some(number) = driven.request.take_number() {
            self.done(group, number);
        }
        match (driven.of, result) {
            (Of::Caller(call), Ok(Got::Answer(granted))) => {
                let seen = &mut self.domains[group].seen;
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
        let renewals = &mut self.domains[group].renewals;
        renewals
            .handle_answered(batch, result, |renewing, kept| renewing.answer(env, kept.map(Granted::Kept)));
    }

    /// Requests whose pause or whose time is over.
    pub(super) fn time_out(&mut self, env: &mut Env) {
        let now = env.instant();
        for domain in &mut self.domains {
            for renewing in domain.renewals.give_up(|renewing| renewing.deadline <= env.now) {
                env.mark(Mark::CallTimedOut);
                renewing.answer(env, Err(Failure::TimedOut));
            }
        }
        let due: Vec<u64> =
            self.requests.iter().filter(|(_, it)| it.due(env) <= now).map(|(number, _)| *number).collect();
        for number in due {
            let Some(mut driven) = self.requests.remove(&number) else { continue };
            if driven.deadline > env.now {
                driven.phase = Phase::Ready;
                self.requests.insert(number, driven);
                self.ready.push_back(number);
                continue;
            }
            if let Phase::Sent { link, id, .. } = driven.phase
                && let Some(end) = self.ends.get_mut(&link)
            {
                end.end.give_up(id);
            }
            env.mark(Mark::CallTimedOut);
            let failure = driven.request.timed_out();
            self.finish(env, driven, Err(failure));
        }
    }

    /// Reads that another replica may answer do not wait for a node that is silent.
    pub(super) fn leave_the_silent(&mut self, env: &mut Env) {
        let mut left = Vec::new();
        for (number, driven) in &self.requests {
            let Phase::Sent { link, id, since, .. } = driven.phase else { continue };
            let Some(end) = self.ends.get(&link) else { continue };
            let silent_for = end.silent_for(env.now).min(Duration::from_nanos(env.now - since));
            if driven.request.leaves_the_silent() && silent_for >= patience(end.round_trip) {
                left.push((*number, link, id));
            }
        }
        for (number, link, id) in left {
            if self.ends.get_mut(&link).and_then(|end| end.end.give_up(id)).is_some() {
                self.handle_answered(env, number, Err(Lost));
            }
        }
    }
}
