//! One group as the gateway sees it: its leader, our session in it, and the requests under way.

mod renewals;
mod tracking;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use gateway_core::asks::{KeepAlive, KeptAlive, Read, Write};
use gateway_core::link::{Ask, sort};
use gateway_core::{
    Attempt, Attempted, Failure, GroupState, Learned, NodeId, Number, Reach, ReadAt, Request, Step, Verdict,
};
use keyspace::LeaseId;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::timeout_at;

use super::asks;
use super::metrics::Retries;
use super::{Counted, Shared};
use crate::context::RequestContext;
use crate::domain::{Answer, Consistency, DomainStatus, Kept, KnownGateways};
use crate::feed_event::FeedEvent;
use crate::journey;
use crate::leading::{Leading, Want};
use crate::link::Link;

use renewals::{Renewal, renew_leases};
use tracking::track_leader;

#[derive(Debug)]
pub(crate) struct Group {
    id: u64,
    state: Mutex<GroupState>,
    /// Bumped whenever a waiting request may have become able to go.
    news: watch::Sender<u64>,
    /// Who carries feeds, and hears of the same.
    feeds: mpsc::UnboundedSender<FeedEvent>,
    /// Wakes who keeps the group usable.
    pub(super) work: Notify,
    /// A number of the session became free while none was.
    room: Notify,
    /// Callers that wait for one.
    full: AtomicU64,
    waiting: AtomicUsize,
    /// As of late: the leader is known and can be reached.
    led: AtomicBool,
    renewals: mpsc::UnboundedSender<Renewal>,
    retries: Retries,
    /// For the one who carries them out, who takes it when it starts.
    renewals_end: Mutex<Option<mpsc::UnboundedReceiver<Renewal>>>,
}

impl Group {
    pub(super) fn new(id: u64, retries: Retries, feeds: mpsc::UnboundedSender<FeedEvent>) -> Group {
        let (renewals, renewals_end) = mpsc::unbounded_channel();
        Group {
            id,
            state: Mutex::default(),
            news: watch::Sender::new(0),
            feeds,
            work: Notify::new(),
            room: Notify::new(),
            full: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            led: AtomicBool::new(false),
            renewals,
            retries,
            renewals_end: Mutex::new(Some(renewals_end)),
        }
    }

    /// Keeps the group usable until the carrier stops: its leader known, a session open, leases renewed.
    pub(super) async fn run(&self, shared: &Shared) {
        let renewals = self.renewals_end.lock().take().expect("it is run once");
        tokio::select! {
            () = shared.stop.cancelled() => {}
            () = track_leader(shared, self) => {}
            () = renew_leases(shared, self, renewals) => {}
        }
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn state(&self) -> parking_lot::MutexGuard<'_, GroupState> {
        self.state.lock()
    }

    /// Wakes those who wait for a leader, its link or the session, and who looks for what is missing.
    pub(super) fn announce(&self) {
        self.news.send_modify(|news| *news += 1);
        let _ = self.feeds.send(FeedEvent::News);
        self.work.notify_one();
    }

    pub(super) fn is_led(&self) -> bool {
        self.led.load(Ordering::Relaxed)
    }

    pub(super) fn set_led(&self, led: bool) {
        self.led.store(led, Ordering::Relaxed);
    }

    /// The leader's node, as far as is known.
    pub(super) fn leader(&self) -> Option<NodeId> {
        self.state().route.leader().map(|leader| leader.node)
    }

    /// The leader's node, and a link to it.
    pub(super) fn leader_link(&self, shared: &Shared) -> Option<(NodeId, Arc<Link>)> {
        let leader = self.leader()?;
        shared.links.to(leader).map(|link| (leader, link))
    }

    /// Carries out a write once.
    pub(super) async fn write(
        &self,
        shared: &Shared,
        context: &RequestContext,
        write: &mut Write,
    ) -> Result<Answer, Failure> {
        self.drive(shared, context, Request::write(), write).await
    }

    /// Answers an encoded query.
    pub(super) async fn read(
        &self,
        shared: &Shared,
        context: &RequestContext,
        query: Bytes,
        consistency: Consistency,
    ) -> Result<Answer, Failure> {
        let (read_at, serializable) = match consistency {
            Consistency::Linearizable => (ReadAt::Leader, None),
            Consistency::Serializable { seen } => (ReadAt::Nearest, Some(seen)),
        };
        self.drive(shared, context, Request::read(read_at), Read { query, serializable }).await
    }

    /// What a node knows of the group.
    pub(super) async fn status(
        &self,
        shared: &Shared,
        context: &RequestContext,
    ) -> Result<DomainStatus, Failure> {
        self.drive(shared, context, Request::inquiry(), asks::Status).await
    }

    /// The gateways that a node knows.
    pub(super) async fn gateways(
        &self,
        shared: &Shared,
        context: &RequestContext,
    ) -> Result<KnownGateways, Failure> {
        self.drive(shared, context, Request::inquiry(), asks::Gateways).await
    }

    /// Asks the leader for what an operator wants.
    pub(super) async fn lead(
        &self,
        shared: &Shared,
        context: &RequestContext,
        want: Want,
    ) -> Result<Leading, Failure> {
        let ask = asks::Control { group: self.id, want };
        self.drive(shared, context, Request::read(ReadAt::Leader), ask).await
    }

    /// Renews leases at the leader.
    pub(super) async fn renew(
        &self,
        shared: &Shared,
        context: &RequestContext,
        asked: KeepAlive,
    ) -> Result<KeptAlive, Failure> {
        self.drive(shared, context, Request::read(ReadAt::Leader), asked).await
    }

    /// Drives a request of whatever kind until it is answered, refused for good, or out of time.
    async fn drive<A: Ask>(
        &self,
        shared: &Shared,
        context: &RequestContext,
        request: Request,
        ask: A,
    ) -> Result<A::Answer, Failure> {
        let deadline = context.deadline;
        let mut driven = Driven { group: self, request };
        let answer = timeout_at(deadline.at(), self.drive_attempts(shared, &mut driven.request, ask)).await;
        answer.unwrap_or_else(|_| Err(deadline.passed(&driven.request)))
    }

    async fn drive_attempts<A: Ask>(
        &self,
        shared: &Shared,
        request: &mut Request,
        mut ask: A,
    ) -> Result<A::Answer, Failure> {
        let reach = Reached::new(shared, self, request);
        loop {
            let Attempt { node, link, numbered } = self.next_attempt(shared, request, &reach).await?;
            let (kind, bytes) = ask.request(numbered);
            let attempted = match link.call(self.id, kind, bytes) {
                Ok(call) => {
                    let _stage = journey::at_node(node);
                    tokio::select! {
                        biased;
                        answered = call => sort(&ask, answered),
                        // Others are not waited for by silence: only the leader can answer.
                        () = link.until_silent(), if reach.has_others() => Attempted::Lost,
                    }
                }
                Err(unsent) => Attempted::Unsent(unsent),
            };
            reach.handle_attempted(node, &attempted);
            let learned = self.learn(node, numbered.map(|numbered| numbered.number), &attempted);
            match request.handle(attempted, learned) {
                Verdict::Done(result) => return result,
                Verdict::Retry => {}
                Verdict::RetryAfter { pause, returned } => {
                    if let Some(number) = returned {
                        self.done(number);
                    }
                    shared.pause(pause, bytes).await?;
                }
            }
        }
    }

    /// Waits until there is somebody to ask.
    async fn next_attempt(
        &self,
        shared: &Shared,
        request: &mut Request,
        reach: &Reached<'_>,
    ) -> Result<Attempt<Arc<Link>>, Failure> {
        loop {
            // What may have changed since is seen by asking again once that is listened for.
            match request.poll(|| self.state(), reach) {
                Step::Send(attempt) => return Ok(attempt),
                Step::AwaitNews { bounded } => {
                    let waiting_max = if bounded { shared.waiting_max() } else { usize::MAX };
                    let mut waiting = self.wait_for_news(waiting_max)?;
                    loop {
                        match request.poll(|| self.state(), reach) {
                            Step::Send(attempt) => return Ok(attempt),
                            Step::AwaitNews { .. } => waiting.news().await?,
                            Step::AwaitNumber => break,
                        }
                    }
                }
                Step::AwaitNumber => {
                    let mut room = pin!(self.room.notified());
                    room.as_mut().enable();
                    let _counted = Full::new(self);
                    let _stage = journey::waiting();
                    match request.poll(|| self.state(), reach) {
                        Step::Send(attempt) => return Ok(attempt),
                        Step::AwaitNews { .. } => {}
                        Step::AwaitNumber => room.await,
                    }
                }
            }
        }
    }

    /// Takes in what an attempt says of the group, and wakes whom it concerns.
    pub(super) fn learn<T>(&self, node: NodeId, number: Option<Number>, attempted: &Attempted<T>) -> Learned {
        self.retries.count(attempted);
        if !attempted.teaches() {
            return Learned::default();
        }
        let learned = self.state().handle_attempted(node, number, attempted);
        if learned.session_lost {
            // Those who wait for room in it have nothing to wait for.
            self.room.notify_waiters();
            self.work.notify_one();
        }
        if learned.route_changed {
            self.announce();
        }
        learned
    }

    /// The caller of `number` was answered, or waits without it, or went away.
    fn done(&self, number: Number) {
        let freed = self.state().session.done(number);
        let wake = freed.min(self.full.load(Ordering::Relaxed));
        for _ in 0..wake {
            self.room.notify_one();
        }
    }

    /// Renews a lease, together with whatever else is to be renewed.
    pub(super) async fn keep_alive(&self, context: &RequestContext, lease: LeaseId) -> Result<Kept, Failure> {
        let (answer, kept) = oneshot::channel();
        if self.renewals.send(Renewal { lease, answer }).is_err() {
            return Err(Failure::Stopping);
        }
        match timeout_at(context.deadline.at(), kept).await {
            Ok(Ok(kept)) => kept,
            Ok(Err(_)) => Err(Failure::Stopping),
            // As etcd says it of renewals, whoever set the deadline.
            Err(_) => Err(Failure::TimedOut),
        }
    }

    /// Begins to wait for news of the leader, the links or the session. Bounded in number here, in time by the caller's
    /// deadline.
    ///
    /// # Errors
    /// Too many wait.
    pub(super) fn wait_for_news(&self, waiting_max: usize) -> Result<Waiting<'_>, Failure> {
        let counted = Counted::new(&self.waiting, 1, waiting_max)?;
        Ok(Waiting {
            group: self,
            news: self.news.subscribe(),
            _counted: counted,
            _stage: journey::waiting(),
        })
    }
}

/// A request that waits for news.
pub(super) struct Waiting<'a> {
    group: &'a Group,
    news: watch::Receiver<u64>,
    _counted: Counted<'a>,
    _stage: journey::Stage,
}

impl Waiting<'_> {
    /// Until there are some since the last time.
    ///
    /// # Errors
    /// The gateway is stopping.
    pub(super) async fn news(&mut self) -> Result<(), Failure> {
        self.group.work.notify_one();
        self.news.changed().await.map_err(|_| Failure::Stopping)
    }
}

/// A request, whose number is done when this is dropped: whether the caller was answered or went away.
struct Driven<'a> {
    group: &'a Group,
    request: Request,
}

impl Drop for Driven<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.request.take_number() {
            self.group.done(number);
        }
    }
}

/// A caller that waits for a number.
struct Full<'a>(&'a Group);

impl<'a> Full<'a> {
    fn new(group: &'a Group) -> Full<'a> {
        group.full.fetch_add(1, Ordering::Relaxed);
        Full(group)
    }
}

impl Drop for Full<'_> {
    fn drop(&mut self) {
        self.0.full.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The links, as a request sees them.
struct Reached<'a> {
    shared: &'a Shared,
    /// The replicas that may answer beside the leader.
    replicas: Vec<NodeId>,
    /// How a replica answers says whether it is fit.
    judges: bool,
}

impl<'a> Reached<'a> {
    fn new(shared: &'a Shared, group: &Group, request: &Request) -> Reached<'a> {
        let replicas = if request.asks_any() { shared.replicas(group) } else { Vec::new() };
        Reached { shared, replicas, judges: request.leaves_the_silent() }
    }

    /// Whether another replica may do as well.
    fn has_others(&self) -> bool {
        self.judges && self.replicas.len() > 1
    }

    fn handle_attempted<T>(&self, node: NodeId, attempted: &Attempted<T>) {
        if self.judges {
            self.shared.links.handle_attempted(node, attempted);
        }
    }
}

impl Reach for Reached<'_> {
    type Link = Arc<Link>;

    fn to(&self, node: NodeId) -> Option<Arc<Link>> {
        self.shared.links.to(node)
    }

    fn nearest(&self) -> Option<(NodeId, Arc<Link>)> {
        self.shared.links.to_nearest(&self.replicas)
    }
}
