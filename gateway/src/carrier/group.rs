//! One group as the gateway sees it: its leader, our session in it, and the requests under way.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use api::gaios::link::v1::{self as wire, refused::Why, request, response::Kind};
use bytes::{Bytes, BytesMut};
use keyspace::{Command, LeaseId, Op, SessionId};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};

use super::metrics::Retries;
use super::{Counted, Shared};
use crate::backoff::random_u32;
use crate::domain::{Answer, Consistency, DomainStatus, Kept, KnownGateway, KnownGateways};
use crate::errors::Failure;
use crate::journey;
use crate::leading::{Leading, Want};
use crate::link::{Call, Link, Lost, NotSent};
use crate::retry::{self, Attempts, Next};
use crate::router::{NodeId, Route};
use crate::session::{NoNumber, Number, Session};

/// The longest pause between redirects that lead nowhere.
const PAUSE_MS_MAX: u32 = 40;

/// Room for a common command; a larger one grows it.
const COMMAND_BYTES: usize = 512;

#[derive(Debug)]
pub(crate) struct Group {
    id: u64,
    state: Mutex<State>,
    /// Bumped whenever a waiting request may have become able to go.
    news: watch::Sender<u64>,
    /// Wakes the keeper.
    pub(super) work: Notify,
    /// A number of the session became free while none was.
    room: Notify,
    waiting: AtomicUsize,
    /// As the keeper last saw it: the leader is known and can be reached.
    led: AtomicBool,
    renewals: mpsc::UnboundedSender<Renewal>,
    retries: Retries,
    /// The keeper takes it when it starts.
    pub(super) renewals_end: Mutex<Option<mpsc::UnboundedReceiver<Renewal>>>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) route: Route,
    pub(super) session: Session,
    /// Callers that wait for a number.
    full: u64,
}

/// A lease to renew, and who asks.
#[derive(Debug)]
pub(super) struct Renewal {
    pub(super) lease: LeaseId,
    pub(super) answer: oneshot::Sender<Result<Kept, Failure>>,
}

impl Group {
    pub(super) fn new(id: u64, retries: Retries) -> Group {
        let (renewals, renewals_end) = mpsc::unbounded_channel();
        Group {
            id,
            state: Mutex::default(),
            news: watch::Sender::new(0),
            work: Notify::new(),
            room: Notify::new(),
            waiting: AtomicUsize::new(0),
            led: AtomicBool::new(false),
            renewals,
            retries,
            renewals_end: Mutex::new(Some(renewals_end)),
        }
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn state(&self) -> parking_lot::MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Wakes those who wait for a leader, its link or the session, and the keeper.
    pub(super) fn announce(&self) {
        self.news.send_modify(|news| *news += 1);
        self.work.notify_one();
    }

    pub(super) fn is_led(&self) -> bool {
        self.led.load(Ordering::Relaxed)
    }

    pub(super) fn set_led(&self, led: bool) {
        self.led.store(led, Ordering::Relaxed);
    }

    /// Changes whenever something about the leader or the links may have.
    pub(super) fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    pub(super) fn handle_links_changed(&self) {
        self.announce();
    }

    pub(super) fn handle_link_down(&self, _node: NodeId) {
        self.announce();
    }

    /// The leader's node, and a link to it.
    pub(super) fn leader_link(&self, shared: &Shared) -> Option<(NodeId, Arc<Link>)> {
        let leader = self.state().route.leader()?;
        shared.links.to(leader.node).map(|link| (leader.node, link))
    }

    /// Carries out a write once.
    pub(super) async fn write(&self, shared: &Shared, op: Op, deadline: Instant) -> Result<Answer, Failure> {
        let mut attempts = Attempts::new(retry::Kind::Write);
        let driven = timeout_at(deadline, self.drive_write(shared, op, &mut attempts)).await;
        driven.unwrap_or_else(|_| Err(attempts.timed_out()))
    }

    async fn drive_write(&self, shared: &Shared, op: Op, attempts: &mut Attempts) -> Result<Answer, Failure> {
        let mut held: Option<Held<'_>> = None;
        let mut command = Command::Write { session: SessionId::NONE, seq: 0, ack_upto: 0, op };
        loop {
            let ready = self.ready_to_write(shared, &mut held).await;
            let Ready { node, link, number, ack_upto } = match ready {
                Some(ready) => ready,
                None => {
                    self.wait_to_write(shared, attempts).await?;
                    continue;
                }
            };
            renumber(&mut command, number, ack_upto);
            let encoded = encode(&command);
            let bytes = encoded.len();
            let kind = request::Kind::Write(wire::Write {
                session: number.session.0,
                seq: number.seq,
                command: encoded,
            });
            let called = link.call(self.id, kind, bytes).inspect(|_| attempts.handle_sent());
            let next = match called {
                Ok(call) => match self.judge(node, at_node(node, call).await, attempts) {
                    Judged::Answer(answer) => return Ok(answer),
                    Judged::Refused(keyspace::Error::SessionExpired) => {
                        self.retries.session_lost.inc();
                        if self.state().session.handle_expired(number.session) {
                            // Those who wait for room in it have nothing to wait for.
                            self.room.notify_waiters();
                            self.work.notify_one();
                        }
                        attempts.handle_session_expired()
                    }
                    // The number was given up: by this caller alone, so it was an older attempt's result.
                    Judged::Refused(keyspace::Error::ResultForgotten) => Next::Give(attempts.timed_out()),
                    Judged::Refused(keyspace::Error::SessionWindowExceeded) => Next::Pause,
                    Judged::Refused(error) => return Err(Failure::Refused(error)),
                    Judged::Next(next) => next,
                },
                Err(NotSent::Down) => attempts.handle_unsent(),
                Err(NotSent::Full) => attempts.handle_refused(Why::Overloaded, false),
            };
            match next {
                Next::Again => {}
                Next::Wait => self.wait_to_write(shared, attempts).await?,
                Next::Pause => pause().await,
                Next::Ease => {
                    if !attempts.maybe_applied() {
                        // Others need not wait for its number meanwhile.
                        held = None;
                    }
                    shared.ease(attempts, bytes).await?;
                }
                Next::Renumber => held = None,
                Next::Give(failure) => return Err(failure),
            }
        }
    }

    /// Waits for a leader and a session. A write that may have been applied always finds room to wait.
    async fn wait_to_write(&self, shared: &Shared, attempts: &Attempts) -> Result<(), Failure> {
        let max = if attempts.maybe_applied() { usize::MAX } else { shared.waiting_max() };
        self.wait(|| self.can_write(shared), max).await
    }

    /// The leader's link and a number, if both can be had. Waits while the session's window is full.
    async fn ready_to_write<'a>(&'a self, shared: &Shared, held: &mut Option<Held<'a>>) -> Option<Ready> {
        loop {
            match self.try_ready_to_write(shared, held) {
                Ok(ready) => return Some(ready),
                Err(NoNumber::Closed) => return None,
                Err(NoNumber::Full) => {}
            }
            let mut room = pin!(self.room.notified());
            room.as_mut().enable();
            let _counted = Full::new(self);
            let _stage = journey::waiting();
            match self.try_ready_to_write(shared, held) {
                Ok(ready) => return Some(ready),
                Err(NoNumber::Closed) => return None,
                Err(NoNumber::Full) => room.await,
            }
        }
    }

    fn try_ready_to_write<'a>(
        &'a self,
        shared: &Shared,
        held: &mut Option<Held<'a>>,
    ) -> Result<Ready, NoNumber> {
        let mut state = self.state();
        let leader = state.route.leader().ok_or(NoNumber::Closed)?;
        let link = shared.links.to(leader.node).ok_or(NoNumber::Closed)?;
        // A number is kept through all attempts, also when its session is gone: only the group can say so.
        let number = match held {
            Some(held) => held.number,
            None => state.session.take()?,
        };
        let ack_upto = state.session.ack_upto(number);
        drop(state);
        if held.is_none() {
            *held = Some(Held { group: self, number });
        }
        Ok(Ready { node: leader.node, link, number, ack_upto })
    }

    fn can_write(&self, shared: &Shared) -> bool {
        let state = self.state();
        state.session.is_open()
            && state.route.leader().is_some_and(|leader| shared.links.to(leader.node).is_some())
    }

    /// Answers an encoded query.
    pub(super) async fn read(
        &self,
        shared: &Shared,
        query: Bytes,
        consistency: Consistency,
        deadline: Instant,
    ) -> Result<Answer, Failure> {
        let mut attempts = Attempts::new(retry::Kind::Read);
        let driven = timeout_at(deadline, self.drive_read(shared, query, consistency, &mut attempts)).await;
        driven.unwrap_or_else(|_| Err(attempts.timed_out()))
    }

    async fn drive_read(
        &self,
        shared: &Shared,
        query: Bytes,
        consistency: Consistency,
        attempts: &mut Attempts,
    ) -> Result<Answer, Failure> {
        let waiting_max = shared.waiting_max();
        let replicas = match consistency {
            Consistency::Linearizable => Vec::new(),
            Consistency::Serializable { .. } => shared.replicas(self),
        };
        let target = || match consistency {
            Consistency::Linearizable => self.leader_link(shared),
            Consistency::Serializable { .. } => shared.links.to_nearest(&replicas),
        };
        let (serializable, at_least) = match consistency {
            Consistency::Linearizable => (false, 0),
            Consistency::Serializable { seen } => (true, seen),
        };
        loop {
            let Some((node, link)) = target() else {
                self.wait(|| target().is_some(), waiting_max).await?;
                continue;
            };
            let kind = request::Kind::Read(wire::Read { query: query.clone(), serializable, at_least });
            let next = match link.call(self.id, kind, query.len()) {
                Ok(call) => {
                    let answered = tokio::select! {
                        answered = at_node(node, call) => answered,
                        // Others are not waited for by silence: only the leader can answer.
                        () = link.until_silent(), if serializable && replicas.len() > 1 => Err(Lost),
                    };
                    match self.judge(node, answered, attempts) {
                        Judged::Answer(answer) => {
                            if serializable {
                                shared.links.handle_answered(node);
                            }
                            return Ok(answer);
                        }
                        Judged::Refused(error) => return Err(Failure::Refused(error)),
                        Judged::Next(next) => next,
                    }
                }
                Err(NotSent::Down) => attempts.handle_unsent(),
                Err(NotSent::Full) => attempts.handle_refused(Why::Overloaded, false),
            };
            if serializable {
                // It is gone, or silent, or behind what the client has seen.
                shared.links.handle_failed(node);
            }
            match next {
                Next::Again => {}
                // Another replica may do for a serializable read.
                Next::Wait if serializable => pause().await,
                Next::Wait => self.wait(|| target().is_some(), waiting_max).await?,
                Next::Pause | Next::Renumber => pause().await,
                Next::Ease => shared.ease(attempts, query.len()).await?,
                Next::Give(failure) => return Err(failure),
            }
        }
    }

    /// What a node knows of the group.
    pub(super) async fn status(&self, shared: &Shared, deadline: Instant) -> Result<DomainStatus, Failure> {
        let ask = request::Kind::Status(wire::StatusRequest::default());
        let understand = |response: wire::Response| {
            let Some(Kind::Status(status)) = response.kind else { return None };
            Some(domain_status(response.term, &status))
        };
        self.ask(shared, deadline, ask, understand).await
    }

    /// The gateways that a node knows.
    pub(super) async fn gateways(
        &self,
        shared: &Shared,
        deadline: Instant,
    ) -> Result<KnownGateways, Failure> {
        let ask = request::Kind::Gateways(wire::GatewaysRequest {});
        let understand = |response: wire::Response| {
            let term = response.term;
            if let Some(Kind::Refused(refused)) = &response.kind
                && refused.why() == Why::Malformed
            {
                // It does not know the question: it is older than this gateway.
                return Some(KnownGateways { term, gateways: Vec::new() });
            }
            let Some(Kind::Gateways(list)) = response.kind else { return None };
            Some(known_gateways(term, list))
        };
        self.ask(shared, deadline, ask, understand).await
    }

    /// Asks the leader if there is one, else any replica, until an answer is understood.
    async fn ask<T>(
        &self,
        shared: &Shared,
        deadline: Instant,
        ask: request::Kind,
        understand: impl Fn(wire::Response) -> Option<T>,
    ) -> Result<T, Failure> {
        let replicas = shared.replicas(self);
        let mut attempts = Attempts::new(retry::Kind::Read);
        let driven = timeout_at(deadline, async {
            loop {
                let target = || self.leader_link(shared).or_else(|| shared.links.to_nearest(&replicas));
                let Some((_, link)) = target() else {
                    self.wait(|| target().is_some(), shared.waiting_max()).await?;
                    continue;
                };
                let answered = match link.call(self.id, ask.clone(), 0) {
                    Ok(call) => call.await,
                    Err(NotSent::Down | NotSent::Full) => Err(Lost),
                };
                if let Some(understood) = answered.ok().and_then(&understand) {
                    return Ok(understood);
                }
                attempts.handle_lost();
                pause().await;
            }
        });
        driven.await.unwrap_or(Err(Failure::TimedOut))
    }

    /// Asks the leader for what an operator wants.
    pub(super) async fn lead(
        &self,
        shared: &Shared,
        want: Want,
        deadline: Instant,
    ) -> Result<Leading, Failure> {
        let control = wire::LeaderControl::from(want);
        let mut attempts = Attempts::new(retry::Kind::Read);
        let driven = timeout_at(deadline, async {
            loop {
                let Some((node, link)) = self.leader_link(shared) else {
                    self.wait(|| self.leader_link(shared).is_some(), shared.waiting_max()).await?;
                    continue;
                };
                let answered = match link.call(self.id, request::Kind::LeaderControl(control.clone()), 0) {
                    Ok(call) => call.await,
                    Err(NotSent::Down | NotSent::Full) => Err(Lost),
                };
                match answered {
                    Ok(wire::Response { kind: Some(Kind::LeaderControlled(told)), .. }) => {
                        return Ok(Leading::new(self.id, told));
                    }
                    other => match self.judge(node, other, &mut attempts) {
                        Judged::Next(Next::Give(failure)) => return Err(failure),
                        Judged::Next(_) | Judged::Answer(_) | Judged::Refused(_) => pause().await,
                    },
                }
            }
        });
        driven.await.unwrap_or(Err(Failure::TimedOut))
    }

    /// Renews a lease, together with whatever else is to be renewed.
    pub(super) async fn keep_alive(&self, lease: LeaseId, deadline: Instant) -> Result<Kept, Failure> {
        let (answer, kept) = oneshot::channel();
        if self.renewals.send(Renewal { lease, answer }).is_err() {
            return Err(Failure::Stopping);
        }
        match timeout_at(deadline, kept).await {
            Ok(Ok(kept)) => kept,
            Ok(Err(_)) => Err(Failure::Stopping),
            Err(_) => Err(Failure::TimedOut),
        }
    }

    /// Sorts an answer, and learns from it who leads.
    pub(super) fn judge(
        &self,
        node: NodeId,
        answered: Result<wire::Response, Lost>,
        attempts: &mut Attempts,
    ) -> Judged {
        let Ok(response) = answered else {
            self.retries.link_lost.inc();
            return Judged::Next(attempts.handle_lost());
        };
        let term = response.term;
        match response.kind {
            Some(Kind::Reply(reply)) => match keyspace::decode_outcome(reply) {
                Ok(Ok(reply)) => Judged::Answer(Answer { reply, term }),
                Ok(Err(error)) => Judged::Refused(error),
                Err(_) => Judged::Next(Next::Give(Failure::Internal("gaios: an answer cannot be read"))),
            },
            Some(Kind::Refused(refused)) => Judged::Next(self.handle_refused(node, term, &refused, attempts)),
            Some(
                Kind::SessionOpened(_)
                | Kind::KeptAlive(_)
                | Kind::Status(_)
                | Kind::WatchOpened(_)
                | Kind::WatchEvents(_)
                | Kind::WatchCanceled(_)
                | Kind::WatchSynced(_)
                | Kind::ShardMap(_)
                | Kind::NodeStatus(_)
                | Kind::Gateways(_)
                | Kind::LeaderControlled(_),
            )
            | None => Judged::Next(Next::Give(Failure::Internal("gaios: an answer to another question"))),
        }
    }

    pub(super) fn handle_refused(
        &self,
        node: NodeId,
        term: u64,
        refused: &wire::Refused,
        attempts: &mut Attempts,
    ) -> Next {
        self.retries.refused(refused.why());
        let changed = match refused.why() {
            Why::NotLeader | Why::OutcomeUnknown => {
                let changed = self.state().route.handle_denied(node, term, refused.leader);
                if changed {
                    self.announce();
                }
                changed
            }
            Why::Stopping | Why::NoGroup => {
                let changed = self.state().route.handle_gone(node);
                if changed {
                    self.announce();
                }
                changed
            }
            Why::Unspecified | Why::Overloaded | Why::NoDisk | Why::Malformed | Why::AnswerTooLarge => false,
        };
        let leader_named = self.state().route.leader().is_some();
        attempts.handle_refused(refused.why(), changed && leader_named)
    }

    /// Waits until `ready` holds. Bounded in number here, in time by the caller's deadline.
    pub(super) async fn wait(&self, ready: impl Fn() -> bool, waiting_max: usize) -> Result<(), Failure> {
        let _counted = Counted::new(&self.waiting, 1, waiting_max)?;
        let _stage = journey::waiting();
        let mut news = self.news.subscribe();
        while !ready() {
            self.work.notify_one();
            if news.changed().await.is_err() {
                return Err(Failure::Stopping);
            }
        }
        Ok(())
    }
}

/// What an answer means.
pub(super) enum Judged {
    Answer(Answer),
    Refused(keyspace::Error),
    Next(Next),
}

struct Ready {
    node: NodeId,
    link: Arc<Link>,
    number: Number,
    ack_upto: u64,
}

/// A number that its caller holds; done when dropped, whether the caller was answered or went away.
struct Held<'a> {
    group: &'a Group,
    number: Number,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut state = self.group.state();
        let freed = state.session.done(self.number);
        let wake = freed.min(state.full);
        drop(state);
        for _ in 0..wake {
            self.group.room.notify_one();
        }
    }
}

struct Full<'a>(&'a Group);

impl<'a> Full<'a> {
    fn new(group: &'a Group) -> Full<'a> {
        group.state().full += 1;
        Full(group)
    }
}

impl Drop for Full<'_> {
    fn drop(&mut self) {
        self.0.state().full -= 1;
    }
}

/// The answer to a call to a node.
async fn at_node(node: NodeId, call: Call) -> Result<wire::Response, Lost> {
    let _stage = journey::at_node(node);
    call.await
}

async fn pause() {
    let _stage = journey::waiting();
    let pause = u64::from(random_u32() % PAUSE_MS_MAX) + 1;
    tokio::time::sleep(Duration::from_millis(pause)).await;
}

fn renumber(command: &mut Command, number: Number, ack: u64) {
    if let Command::Write { session, seq, ack_upto, op: _ } = command {
        *session = number.session;
        *seq = number.seq;
        *ack_upto = ack;
    }
}

fn encode(command: &Command) -> Bytes {
    let mut encoded = BytesMut::with_capacity(COMMAND_BYTES);
    command.encode(&mut encoded);
    encoded.freeze()
}

fn known_gateways(term: u64, list: wire::GatewayList) -> KnownGateways {
    let gateways = list.gateways.into_iter().map(|gateway| KnownGateway {
        name: gateway.name,
        region: gateway.region,
        zone: gateway.zone,
        client_urls: gateway.client_urls,
        capacity: gateway.capacity,
    });
    KnownGateways { term, gateways: gateways.collect() }
}

fn domain_status(term: u64, status: &wire::StatusReply) -> DomainStatus {
    DomainStatus {
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
    }
}
