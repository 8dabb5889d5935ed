//! The feeds of a gateway: those that streams share, and what is done upstream for each.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Deref;
use std::rc::Rc;
use std::time::Instant;

use api::gaios::link::v1 as wire;
use api::gaios::link::v1::request::Kind;
use gateway_core::asks::{Open as OpenAsk, Sync as SyncAsk};
use gateway_core::link::{Ask, Lost, sort};
use gateway_core::watch::{Feed, FeedState, Feeds, OPENING, Pace};
use gateway_core::{Attempted, FeedItem, FeedSpec, Frame, Heard, Open, Synced, Upstream, UpstreamStep};
use keyspace::KeyRange;

use super::{Caller, Gateway};
use crate::cluster::coverage::Mark;
use crate::cluster::env::{Env, trace};

/// Every so many looks at the links' health, a shared feed on which nothing happens is asked how far it has come.
const LOOKS_PER_SYNC: u64 = 12;

/// Which watchers of a stream have something to look at.
pub(super) type Inbox = Rc<RefCell<BTreeSet<u64>>>;

/// The feeds of a gateway, as its streams see them.
#[derive(Clone, Default)]
pub(super) struct Hub(Rc<RefCell<Opened>>);

#[derive(Default)]
struct Opened {
    last: usize,
    shared: Vec<SimFeed>,
    /// Those that nobody carries yet.
    new: Vec<(SimFeed, FeedSpec)>,
}

/// A feed. Copies are the same one.
#[derive(Clone)]
pub(super) struct SimFeed(Rc<Shared>);

struct Shared {
    id: usize,
    group: usize,
    range: KeyRange,
    prev_kv: bool,
    state: RefCell<FeedState<Subscriber>>,
}

/// A watcher of a stream.
#[derive(Clone)]
pub(super) struct Subscriber {
    inbox: Inbox,
    watcher: u64,
}

impl Feed for SimFeed {
    type Subscriber = Subscriber;

    fn state(&self) -> impl Deref<Target = FeedState<Subscriber>> {
        self.0.state.borrow()
    }

    fn id(&self) -> usize {
        self.0.id
    }
}

impl SimFeed {
    fn sync(&self, watcher: Subscriber) -> u64 {
        let mut state = self.0.state.borrow_mut();
        if state.end().is_some() {
            watcher.inbox.borrow_mut().insert(watcher.watcher);
        }
        state.sync(watcher)
    }

    fn handle_item(&self, item: FeedItem) {
        let mut marked = Vec::new();
        self.0.state.borrow_mut().handle_item(item, &mut marked);
        for Subscriber { inbox, watcher } in marked {
            inbox.borrow_mut().insert(watcher);
        }
    }
}

/// A watcher's place at a feed; given up when dropped.
pub(super) struct Subscription {
    feed: SimFeed,
    id: u64,
    hub: Hub,
}

impl AsRef<SimFeed> for Subscription {
    fn as_ref(&self) -> &SimFeed {
        &self.feed
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if self.feed.0.state.borrow_mut().unsubscribe(self.id) {
            self.hub.0.borrow_mut().shared.retain(|feed| feed.id() != self.feed.id());
        }
    }
}

/// The feeds as one stream has them.
pub(super) struct StreamFeeds {
    pub(super) group: usize,
    pub(super) hub: Hub,
    pub(super) inbox: Inbox,
}

impl StreamFeeds {
    fn subscriber(&self, watcher: u64) -> Subscriber {
        Subscriber { inbox: Rc::clone(&self.inbox), watcher }
    }

    fn open(&self, range: &KeyRange, prev_kv: bool, start: i64, pace: Pace) -> SimFeed {
        let mut opened = self.hub.0.borrow_mut();
        opened.last += 1;
        let state = RefCell::new(FeedState::new(pace));
        let feed = SimFeed(Rc::new(Shared {
            id: opened.last,
            group: self.group,
            range: range.clone(),
            prev_kv,
            state,
        }));
        let spec = FeedSpec { range: range.clone(), start, prev_kv, credit: pace.credit_bytes() };
        opened.new.push((feed.clone(), spec));
        feed
    }

    fn subscription(&self, feed: SimFeed, watcher: u64) -> Subscription {
        let id = feed.0.state.borrow_mut().subscribe(self.subscriber(watcher));
        Subscription { feed, id, hub: self.hub.clone() }
    }
}

impl Feeds for StreamFeeds {
    type Feed = SimFeed;
    type Subscription = Subscription;

    fn shared(&self, range: &KeyRange, prev_kv: bool, watcher: u64) -> (Subscription, u64) {
        let is_it = |feed: &&SimFeed| {
            let of = &feed.0;
            of.group == self.group
                && of.range == *range
                && of.prev_kv == prev_kv
                && feed.state().end().is_none()
        };
        let known = self.hub.0.borrow().shared.iter().find(is_it).cloned();
        match known {
            Some(feed) => {
                let token = feed.sync(self.subscriber(watcher));
                (self.subscription(feed, watcher), token)
            }
            None => {
                let feed = self.open(range, prev_kv, 0, Pace::Shared);
                self.hub.0.borrow_mut().shared.push(feed.clone());
                (self.subscription(feed, watcher), OPENING)
            }
        }
    }

    fn history(&self, range: &KeyRange, prev_kv: bool, start: i64, watcher: u64) -> Subscription {
        let feed = self.open(range, prev_kv, start, Pace::History);
        // Where nothing happened since, only a sync tells that the end is reached.
        feed.sync(self.subscriber(watcher));
        self.subscription(feed, watcher)
    }

    fn sync(&self, feed: &SimFeed, watcher: u64) -> u64 {
        feed.sync(self.subscriber(watcher))
    }

    fn consumed(&self, feed: &SimFeed, through: i64) {
        feed.0.state.borrow_mut().consumed(through);
    }

    fn take_marked(&self, each: impl FnMut(u64)) {
        self.inbox.take().into_iter().for_each(each);
    }
}

impl Hub {
    pub(super) fn has_news(&self) -> bool {
        !self.0.borrow().new.is_empty()
    }
}

/// What is done upstream for a feed.
pub(super) struct Feeding {
    feed: SimFeed,
    spec: FeedSpec,
    upstream: Upstream,
    watch: Option<Watch>,
    due: Option<Instant>,
    /// Bytes of events that it may be sent.
    allowed: i64,
    /// How often it was opened at a replica.
    opened: u32,
}

/// The feed on one replica.
struct Watch {
    link: u64,
    id: u64,
    ask: OpenAsk,
}

impl Feeding {
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }
}

impl Gateway {
    pub(super) fn carry_feeds(&mut self, env: &mut Env) {
        let new = std::mem::take(&mut self.hub.0.borrow_mut().new);
        for (feed, spec) in new {
            let upstream = Upstream::new(&spec);
            let (id, allowed) = (feed.id() as u64, spec.credit as i64);
            let feeding = Feeding { feed, spec, upstream, watch: None, due: None, allowed, opened: 0 };
            self.feeds.insert(id, feeding);
        }
        let feeds: Vec<u64> = self.feeds.keys().copied().collect();
        for feed in feeds {
            self.carry_feed(env, feed);
        }
    }

    /// Does what can be done for a feed.
    fn carry_feed(&mut self, env: &mut Env, id: u64) {
        loop {
            let Some(mut feeding) = self.feeds.remove(&id) else { return };
            let group = feeding.feed.0.group;
            let due = feeding.feed.0.state.borrow_mut().take_due();
            if due.close {
                self.close_watch(env, &mut feeding);
                return;
            }
            if let Some(token) = due.sync {
                feeding.upstream.sync(token);
            }
            if due.credit > 0 {
                feeding.upstream.credit(due.credit);
                feeding.allowed += due.credit as i64;
                if feeding.allowed > feeding.spec.credit as i64 {
                    let allowed = feeding.allowed;
                    env.fail("watch", format!("gateway {}: {allowed} bytes may be under way", self.index));
                }
                self.tell_watch(env, &feeding, Kind::WatchCredit(wire::WatchCredit { bytes: due.credit }));
            }
            let random = env.rng.next() as u32;
            let now = env.instant();
            let timed_out = feeding.due.is_some_and(|due| due <= now);
            let heard = match self.leader_reached(env, group) {
                _ if timed_out => {
                    feeding.due = None;
                    feeding.upstream.handle_timeout(now, || random)
                }
                Some(leader) => feeding.upstream.handle_leader(now, leader, || random),
                None => Heard::Nothing,
            };
            if !matches!(heard, Heard::Nothing) {
                self.take_in(env, &mut feeding, heard);
                self.feeds.insert(id, feeding);
                continue;
            }
            let leader = self.domains[group].state.route.leader().map(|leader| leader.node);
            let step = feeding.upstream.poll(now, || leader, &self.reach(env, group));
            let goes_on = match step {
                UpstreamStep::Open(open) => {
                    self.open_watch(env, id, &mut feeding, open);
                    true
                }
                UpstreamStep::Sync { token } => {
                    self.ask_for_sync(env, id, &mut feeding, token);
                    true
                }
                UpstreamStep::AwaitNews => {
                    feeding.due = None;
                    false
                }
                UpstreamStep::AwaitFrames { until } => {
                    feeding.due = until;
                    until.is_some_and(|until| until <= now)
                }
                UpstreamStep::Ended => false,
            };
            let is_over = feeding.feed.0.state.borrow().is_over();
            self.feeds.insert(id, feeding);
            if !goes_on && !is_over {
                return;
            }
        }
    }

    fn open_watch(&mut self, env: &mut Env, id: u64, feeding: &mut Feeding, open: Open<u64>) {
        let Open { node: _, link, start, credit, linearizable } = open;
        let group = feeding.feed.0.group as u64;
        let FeedSpec { range, prev_kv, .. } = &feeding.spec;
        let mut ask = OpenAsk { range: range.clone(), start, prev_kv: *prev_kv, credit, linearizable };
        let (kind, bytes) = ask.request(None);
        let opened = self.ends.get_mut(&link).map(|end| end.end.watch(group, kind, bytes, id));
        match opened {
            Some(Ok(watch)) => {
                feeding.opened += 1;
                if feeding.opened > 1 {
                    env.mark(Mark::FeedMoved);
                }
                feeding.watch = Some(Watch { link, id: watch, ask });
                self.flush_soon(env, link);
            }
            Some(Err(unsent)) => {
                let random = env.rng.next() as u32;
                let unsent = Attempted::Unsent(unsent);
                let heard = feeding.upstream.handle_frame(env.instant(), unsent, || random);
                self.take_in(env, feeding, heard);
            }
            None => env.fail("links", format!("connection {link} is not there")),
        }
    }

    fn ask_for_sync(&mut self, env: &mut Env, feed: u64, feeding: &mut Feeding, token: u64) {
        let Some(Watch { link, id: watch, .. }) = feeding.watch else { return };
        let group = feeding.feed.0.group as u64;
        let (kind, bytes) = SyncAsk { watch }.request(None);
        let caller = Caller::Sync { feed, token, watch };
        let sent = self.ends.get_mut(&link).map(|end| end.end.call(group, kind, bytes, caller));
        match sent {
            Some(Ok(_)) => self.flush_soon(env, link),
            Some(Err(unsent)) => {
                let random = env.rng.next() as u32;
                let unsent = Attempted::Unsent(unsent);
                let heard = feeding.upstream.handle_synced(env.instant(), token, unsent, None, || random);
                self.take_in(env, feeding, heard);
            }
            None => env.fail("links", format!("connection {link} is not there")),
        }
    }

    pub(super) fn handle_feed_frame(
        &mut self,
        env: &mut Env,
        id: u64,
        answered: Result<wire::Response, Lost>,
    ) {
        let Some(mut feeding) = self.feeds.remove(&id) else { return };
        if let Some(watch) = &feeding.watch {
            let is_lost = answered.is_err();
            let frame: Attempted<Frame> = sort(&watch.ask, answered);
            self.learn_of_feed(&feeding, &frame);
            if let Attempted::Answer(Frame::Events { bytes, .. }) = &frame {
                feeding.allowed -= *bytes as i64;
            }
            let random = env.rng.next() as u32;
            if is_lost {
                // It went with the link.
                feeding.watch = None;
            }
            let heard = feeding.upstream.handle_frame(env.instant(), frame, || random);
            self.take_in(env, &mut feeding, heard);
        }
        self.feeds.insert(id, feeding);
    }

    pub(super) fn handle_feed_synced(
        &mut self,
        env: &mut Env,
        id: u64,
        token: u64,
        watch: u64,
        answered: Result<wire::Response, Lost>,
    ) {
        let Some(mut feeding) = self.feeds.remove(&id) else { return };
        if feeding.watch.as_ref().is_some_and(|open| open.id == watch) {
            let synced: Attempted<Synced> = sort(&SyncAsk { watch }, answered);
            self.learn_of_feed(&feeding, &synced);
            let leader = self.leader_reached(env, feeding.feed.0.group);
            let random = env.rng.next() as u32;
            let heard = feeding.upstream.handle_synced(env.instant(), token, synced, leader, || random);
            self.take_in(env, &mut feeding, heard);
        }
        self.feeds.insert(id, feeding);
    }

    fn learn_of_feed<T>(&mut self, feeding: &Feeding, attempted: &Attempted<T>) {
        if let Some(node) = feeding.upstream.node() {
            self.learn(feeding.feed.0.group, node, None, attempted);
        }
    }

    fn take_in(&mut self, env: &mut Env, feeding: &mut Feeding, heard: Heard) {
        match heard {
            Heard::Item(item) => feeding.feed.handle_item(item),
            Heard::Left(reason) => {
                trace!(env, "gateway {}: feed {} leaves: {reason}", self.index, feeding.feed.id());
                self.close_watch(env, feeding);
            }
            Heard::Nothing => {}
        }
    }

    fn close_watch(&mut self, env: &mut Env, feeding: &mut Feeding) {
        let Some(Watch { link, id, .. }) = feeding.watch.take() else { return };
        if let Some(end) = self.ends.get_mut(&link) {
            end.end.close_watch(feeding.feed.0.group as u64, id);
            self.flush_soon(env, link);
        }
    }

    fn tell_watch(&mut self, env: &mut Env, feeding: &Feeding, kind: Kind) {
        if let Some(Watch { link, id, .. }) = &feeding.watch
            && let Some(end) = self.ends.get_mut(link)
        {
            end.end.tell(feeding.feed.0.group as u64, *id, kind);
            self.flush_soon(env, *link);
        }
    }

    /// Feeds on which nothing happens are asked how far they have come, now and then.
    pub(super) fn tick_feeds(&mut self, looks: u64) {
        if looks.is_multiple_of(LOOKS_PER_SYNC) {
            for feeding in self.feeds.values() {
                feeding.feed.0.state.borrow_mut().handle_tick();
            }
        }
    }
}
