//! One group as the gateway sees it: its leader, our session in it, and the requests under way.

mod renewals;
mod tracking;

use std::ops::DerefMut;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use gateway_core::asks::{KeepAlive, KeptAlive, Read, Write};
use gateway_core::link::{Ask, Terms, sort};
use gateway_core::{
    Attempted, Drive, DriveStep, Failure, GroupId, GroupState, Learned, NodeId, Reach, ReadAt, Refused,
    Request, Sending, Shell, Why,
};
use keyspace::LeaseId;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::timeout_at;

use super::asks;
use super::links::Links;
use super::metrics::{CarrierMetrics, Dropped, Retries};
use super::{Counted, Shared, now};
use crate::context::RequestContext;
use crate::domain::{Answer, Consistency, DomainStatus, Kept, KnownGateways};
use crate::feed_event::FeedEvent;
use crate::journey;
use crate::leading::{Leading, Want};
use crate::link::Link;
use crate::random::random_u32;

use renewals::{Renewal, renew_leases};
use tracking::track_leader;

#[derive(Debug)]
pub(crate) struct Group {
    id: GroupId,
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
    dropped: Dropped,
    /// For the one who carries them out, who takes it when it starts.
    renewals_end: Mutex<Option<mpsc::UnboundedReceiver<Renewal>>>,
}

impl Group {
    pub(super) fn new(
        id: GroupId,
        metrics: &CarrierMetrics,
        feeds: mpsc::UnboundedSender<FeedEvent>,
    ) -> Group {
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
            retries: metrics.retries.clone(),
            dropped: metrics.dropped.clone(),
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

    pub(super) fn id(&self) -> GroupId {
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
        let reach = Reached::new(shared, self, &request);
        let drive = Drive::new(request, ask, context.deadline);
        let mut driven = Driven { group: self, drive, is_over: false };
        let answer = timeout_at(
            context.deadline.at().into(),
            self.drive_on(shared, context, &mut driven.drive, reach),
        )
        .await;
        driven.is_over = true;
        answer.unwrap_or_else(|_| {
            self.dropped.deadline.inc();
            Err(driven.drive.deadline_passed())
        })
    }

    /// Does what the drive says, one thing after the other.
    async fn drive_on<A: Ask>(
        &self,
        shared: &Shared,
        context: &RequestContext,
        drive: &mut Drive<A>,
        reach: Reached<'_>,
    ) -> Result<A::Answer, Failure> {
        let mut shell = OfGroup { group: self, links: Some(&shared.links) };
        let mut waiting: Option<Waiting<'_>> = None;
        loop {
            match drive.poll(now, || self.state(), &reach) {
                DriveStep::Send(Sending { node, link, kind, bytes, .. }) => {
                    waiting = None;
                    let worth = context.deadline.at().saturating_duration_since(now());
                    let terms = Terms { flow: context.flow(), worth: Some(worth) };
                    let attempted = match link.call(self.id, kind, bytes, terms) {
                        Ok(call) => {
                            let _stage = journey::at_node(node);
                            tokio::select! {
                                biased;
                                answered = call => sort(drive.ask(), answered),
                                // Others are not waited for by silence: only the leader can answer.
                                () = link.until_silent(), if reach.has_others => Attempted::Lost,
                            }
                        }
                        Err(unsent) => Attempted::Unsent(unsent),
                    };
                    if let Attempted::Refused(Refused { why: Why::Overloaded, .. }) = attempted {
                        journey::overloaded();
                    }
                    if let Some(result) = drive.handle(now, attempted, &mut shell, random_u32) {
                        return result;
                    }
                }
                DriveStep::AwaitNews { bounded } => match &mut waiting {
                    Some(waiting) => waiting.news().await?,
                    // What may have changed since is seen by asking again once that is listened for.
                    None => {
                        let waiting_max = if bounded { shared.waiting_max() } else { usize::MAX };
                        waiting = Some(self.wait_for_news(waiting_max)?);
                    }
                },
                DriveStep::AwaitNumber => {
                    waiting = None;
                    let mut room = pin!(self.room.notified());
                    room.as_mut().enable();
                    let _counted = Full::new(self);
                    let _stage = journey::queued();
                    let is_full = self.state().session.is_full();
                    if is_full {
                        room.await;
                    }
                }
                DriveStep::Pause { until, pause, bytes } => shared.pause(until, pause, bytes).await?,
                DriveStep::AwaitAnswer => {
                    return Err(Failure::Internal("gaios: nobody waits for the answer"));
                }
            }
        }
    }

    /// Takes in what an attempt says of the group, and wakes whom it concerns.
    pub(super) fn learn<T>(&self, node: NodeId, attempted: &Attempted<T>) -> Learned {
        gateway_core::learn(&mut OfGroup { group: self, links: None }, node, None, attempted)
    }

    /// Renews a lease, together with whatever else is to be renewed.
    pub(super) async fn keep_alive(&self, context: &RequestContext, lease: LeaseId) -> Result<Kept, Failure> {
        let (answer, kept) = oneshot::channel();
        if self.renewals.send(Renewal { lease, answer }).is_err() {
            return Err(Failure::Stopping);
        }
        match timeout_at(context.deadline.at().into(), kept).await {
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
struct Driven<'a, A: Ask> {
    group: &'a Group,
    drive: Drive<A>,
    /// It was answered, or its time has passed.
    is_over: bool,
}

impl<A: Ask> Drop for Driven<'_, A> {
    fn drop(&mut self) {
        if !self.is_over {
            self.group.dropped.gone.inc();
        }
        self.drive.end(&mut OfGroup { group: self.group, links: None });
    }
}

/// A group, for what attempts say of it.
struct OfGroup<'a> {
    group: &'a Group,
    /// Where it is noted how fit replicas are, if anybody chooses among them.
    links: Option<&'a Links>,
}

impl Shell for OfGroup<'_> {
    fn state(&mut self) -> impl DerefMut<Target = GroupState> {
        self.group.state()
    }

    fn announce(&mut self) {
        self.group.announce();
    }

    fn handle_session_lost(&mut self) {
        // Those who wait for room in it have nothing to wait for.
        self.group.room.notify_waiters();
        self.group.work.notify_one();
    }

    fn handle_freed(&mut self, numbers: u64) {
        let wake = numbers.min(self.group.full.load(Ordering::Relaxed));
        for _ in 0..wake {
            self.group.room.notify_one();
        }
    }

    fn count<T>(&mut self, attempted: &Attempted<T>) {
        self.group.retries.count(attempted);
    }

    fn judge<T>(&mut self, node: NodeId, attempted: &Attempted<T>) {
        if let Some(links) = self.links {
            links.handle_attempted(node, attempted);
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
    /// Another one than was asked may do as well.
    has_others: bool,
}

impl<'a> Reached<'a> {
    fn new(shared: &'a Shared, group: &Group, request: &Request) -> Reached<'a> {
        let replicas = if request.asks_any() { shared.replicas(group) } else { Vec::new() };
        let has_others = request.leaves_the_silent() && replicas.len() > 1;
        Reached { shared, replicas, has_others }
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
