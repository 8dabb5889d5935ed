//! A feed over links: waits for what [`Upstream`] waits for, and carries out what it says.

use std::sync::Arc;
use std::time::Duration;

use backoff::Backoff;
use gateway_core::asks::{self, Sync};
use gateway_core::link::sort;
use gateway_core::{
    Attempted, Concern, Failure, FeedItem, FeedSpec, Frame, Heard, NodeId, Open, Reach, Synced, Upstream,
    UpstreamStep,
};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::debug;

use super::Shared;
use super::group::Group;
use crate::domain::Feed;
use crate::link::{Call, FeedCall, Link};
use crate::random::random_u32;

/// See the module.
#[derive(Debug)]
pub struct LinkFeed {
    shared: Arc<Shared>,
    spec: FeedSpec,
    upstream: Upstream,
    /// The group that owns the range; looked for anew for each watch.
    owner: Option<Owner>,
    watch: Option<Watch>,
}

#[derive(Debug)]
struct Owner {
    group: Arc<Group>,
    /// Something about its leader may have changed.
    news: watch::Receiver<u64>,
}

/// The feed on one replica.
#[derive(Debug)]
struct Watch {
    call: FeedCall,
    ask: asks::Open,
    sync: Option<SyncCall>,
    /// The answer to a sync, until every frame that came before it was handled.
    synced: Option<(u64, Attempted<Synced>)>,
}

#[derive(Debug)]
struct SyncCall {
    token: u64,
    ask: Sync,
    call: Call,
}

enum Woken {
    Frame(Attempted<Frame>),
    Synced(u64, Attempted<Synced>),
    News,
    Timeout,
}

impl LinkFeed {
    pub(super) fn new(shared: Arc<Shared>, spec: FeedSpec) -> LinkFeed {
        LinkFeed { shared, upstream: Upstream::new(&spec), spec, owner: None, watch: None }
    }

    /// Finds the group. A feed waits as long as it takes.
    async fn find_owner(&mut self) -> Result<(), Failure> {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(500));
        while self.owner.is_none() {
            match self
                .shared
                .group(self.shared.deadline(), || Concern::Keys(vec![self.spec.range.clone()]))
                .await
            {
                Ok(group) => self.owner = Some(Owner { news: group.news(), group }),
                Err(Failure::TimedOut) => {}
                Err(Failure::Overloaded) => sleep(backoff.next(random_u32())).await,
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    /// Does one step; what the reader gets, if that brought something.
    async fn step(&mut self) -> Option<FeedItem> {
        if let Err(failure) = self.find_owner().await {
            let heard = self.upstream.fail(failure);
            return self.take_in(heard);
        }
        let (shared, owner) = (&self.shared, self.owner.as_mut().expect("found above"));
        let group = Arc::clone(&owner.group);
        let reach = Replicas { shared, group: &group };
        let leader = || group.leader();
        let step = self.upstream.poll(now(), leader, &reach);
        let woken = match step {
            UpstreamStep::Open(open) => return self.open(&group, open),
            UpstreamStep::Sync { token } => return self.ask_for_sync(token),
            UpstreamStep::Ended => return std::future::pending().await,
            UpstreamStep::AwaitNews => {
                group.work.notify_one();
                let _ = owner.news.changed().await;
                Woken::News
            }
            UpstreamStep::AwaitFrames { until } => {
                let timeout = async {
                    match until {
                        Some(until) => sleep_until(until.into()).await,
                        None => std::future::pending().await,
                    }
                };
                let watched = async {
                    match &mut self.watch {
                        Some(watch) => watch.next().await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    woken = watched => woken,
                    _ = owner.news.changed() => Woken::News,
                    () = timeout => Woken::Timeout,
                }
            }
        };
        self.handle(&group, woken)
    }

    fn handle(&mut self, group: &Group, woken: Woken) -> Option<FeedItem> {
        let heard = match woken {
            Woken::Frame(frame) => {
                self.learn(group, &frame);
                self.upstream.handle_frame(now(), frame, random_u32)
            }
            Woken::Synced(token, synced) => {
                self.learn(group, &synced);
                let leader = group.leader_link(&self.shared).map(|(leader, _)| leader);
                self.upstream.handle_synced(now(), token, synced, leader, random_u32)
            }
            Woken::News => match group.leader_link(&self.shared) {
                Some((leader, _)) => self.upstream.handle_leader(now(), leader, random_u32),
                None => Heard::Nothing,
            },
            Woken::Timeout => self.upstream.handle_timeout(now(), random_u32),
        };
        self.take_in(heard)
    }

    /// Learns from a refusal who leads.
    fn learn<T>(&self, group: &Group, attempted: &Attempted<T>) {
        if let Some(node) = self.upstream.node().filter(|_| attempted.teaches()) {
            group.learn(node, None, attempted);
        }
    }

    fn open(&mut self, group: &Group, open: Open<Arc<Link>>) -> Option<FeedItem> {
        let Open { node: _, link, start, credit, linearizable } = open;
        let FeedSpec { range, prev_kv, .. } = &self.spec;
        let mut ask = asks::Open { range: range.clone(), start, prev_kv: *prev_kv, credit, linearizable };
        match link.open_feed(group.id(), &mut ask) {
            Ok(call) => {
                self.watch = Some(Watch { call, ask, sync: None, synced: None });
                None
            }
            Err(unsent) => {
                let heard = self.upstream.handle_frame(now(), Attempted::Unsent(unsent), random_u32);
                self.take_in(heard)
            }
        }
    }

    fn ask_for_sync(&mut self, token: u64) -> Option<FeedItem> {
        let watch = self.watch.as_mut()?;
        let mut ask = Sync { watch: watch.call.id() };
        match watch.call.call(&mut ask) {
            Ok(call) => {
                watch.sync = Some(SyncCall { token, ask, call });
                None
            }
            Err(unsent) => {
                let unsent = Attempted::Unsent(unsent);
                let heard = self.upstream.handle_synced(now(), token, unsent, None, random_u32);
                self.take_in(heard)
            }
        }
    }

    fn take_in(&mut self, heard: Heard) -> Option<FeedItem> {
        match heard {
            Heard::Item(item) => Some(item),
            Heard::Left(reason) => {
                debug!(reason, range = ?self.spec.range, "feed leaves its replica");
                self.watch = None;
                self.owner = None;
                None
            }
            Heard::Nothing => None,
        }
    }
}

impl Watch {
    /// What comes next. The answer to a sync comes behind all frames that were sent before it.
    async fn next(&mut self) -> Woken {
        if self.synced.is_none() {
            let synced = async {
                match &mut self.sync {
                    Some(SyncCall { token, ask, call }) => {
                        let answered = call.await;
                        (*token, sort(ask, answered))
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                frame = self.call.next() => return Woken::Frame(sort(&self.ask, frame)),
                synced = synced => self.synced = Some(synced),
            }
            self.sync = None;
        }
        // Frames that came before the answer may still lie in the channel.
        if let Some(frame) = self.call.try_next() {
            return Woken::Frame(sort(&self.ask, frame));
        }
        let (token, synced) = self.synced.take().expect("answered above, or before");
        Woken::Synced(token, synced)
    }
}

impl Feed for LinkFeed {
    async fn next(&mut self) -> FeedItem {
        loop {
            if let Some(item) = self.step().await {
                return item;
            }
        }
    }

    fn credit(&mut self, bytes: u64) {
        self.upstream.credit(bytes);
        if let Some(watch) = &self.watch {
            watch.call.credit(bytes);
        }
    }

    fn sync(&mut self, token: u64) {
        self.upstream.sync(token);
    }
}

/// The links to a group's replicas.
struct Replicas<'a> {
    shared: &'a Shared,
    group: &'a Group,
}

impl Reach for Replicas<'_> {
    type Link = Arc<Link>;

    fn to(&self, node: NodeId) -> Option<Arc<Link>> {
        self.shared.links.to(node)
    }

    fn nearest(&self) -> Option<(NodeId, Arc<Link>)> {
        self.shared.links.to_nearest(&self.shared.replicas(self.group))
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}
