//! The feeds of a gateway: those that streams share, and what is done upstream for each.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Deref;
use std::rc::Rc;

use api::gaios::link::v1 as wire;
use api::gaios::link::v1::request::Kind;
use gateway_core::asks::{self, Sync as SyncAsk, Unasked};
use gateway_core::link::{Ask, LinkId, Terms, Unanswered, sort};
use gateway_core::watch::{Feed, FeedState, Feeds, OPENING, Pace};
use gateway_core::{
    Act, Attempted, Concern, Failure, FeedId, FeedItem, FeedSpec, Frame, GroupId, Groups, NodeId, Reach,
    Refused, Upstreams, Watch, Why,
};
use keyspace::{KeyRange, Revision};

use super::{Caller, Gateway, node_id};
use crate::cluster::coverage::Mark;
use crate::cluster::env::{Env, trace};

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
    domain: usize,
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
    pub(super) domain: usize,
    pub(super) hub: Hub,
    pub(super) inbox: Inbox,
}

impl StreamFeeds {
    fn subscriber(&self, watcher: u64) -> Subscriber {
        Subscriber { inbox: Rc::clone(&self.inbox), watcher }
    }

    fn open(&self, range: &KeyRange, prev_kv: bool, start: Revision, pace: Pace) -> SimFeed {
        let mut opened = self.hub.0.borrow_mut();
        opened.last += 1;
        let state = RefCell::new(FeedState::new(pace));
        let feed = SimFeed(Rc::new(Shared {
            id: opened.last,
            domain: self.domain,
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
            of.domain == self.domain
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
                let feed = self.open(range, prev_kv, Revision(0), Pace::Shared);
                self.hub.0.borrow_mut().shared.push(feed.clone());
                (self.subscription(feed, watcher), OPENING)
            }
        }
    }

    fn history(&self, range: &KeyRange, prev_kv: bool, start: Revision, watcher: u64) -> Subscription {
        let feed = self.open(range, prev_kv, start, Pace::History);
        // Where nothing happened since, only a sync tells that the end is reached.
        feed.sync(self.subscriber(watcher));
        self.subscription(feed, watcher)
    }

    fn sync(&self, feed: &SimFeed, watcher: u64) -> u64 {
        feed.sync(self.subscriber(watcher))
    }

    fn consumed(&self, feed: &SimFeed, through: Revision) {
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

/// A feed that is carried.
pub(super) struct Carried {
    feed: SimFeed,
    /// Bytes of events that may be under way.
    credit: i64,
    /// Bytes of events that it may be sent.
    allowed: i64,
    /// How often it was opened at a replica.
    opened: u32,
    /// It was last asked for where its keys are not.
    was_misrouted: bool,
}

/// What a gateway knows of the groups of a domain.
struct Known<'a> {
    gateway: &'a Gateway,
    domain: usize,
    env: &'a Env,
}

impl Groups for Known<'_> {
    type Link = u64;

    fn owner(&self, range: &KeyRange) -> Option<Result<GroupId, Failure>> {
        let topology = self.gateway.domains[self.domain].topology.as_ref()?;
        Some(topology.group_of(|| Concern::Keys(vec![range.clone()])))
    }

    fn leader(&self, group: GroupId) -> Option<NodeId> {
        self.gateway.groups[group.0 as usize].state.route.leader().map(|leader| leader.node)
    }

    fn to(&self, node: NodeId) -> Option<u64> {
        self.gateway.links.to(node, || 0, |link| self.gateway.ends.contains_key(link)).copied()
    }

    fn nearest(&self, group: GroupId) -> Option<(NodeId, u64)> {
        self.gateway.reach(self.env, group.0 as usize).nearest()
    }
}

impl Gateway {
    /// Does what can be done for feeds.
    pub(super) fn carry_feeds(&mut self, env: &mut Env) {
        let new = std::mem::take(&mut self.hub.0.borrow_mut().new);
        for (feed, mut spec) in new {
            // At times as little as still goes round: credit comes back in steps of a quarter.
            if env.rng.flip() {
                spec.credit = spec.credit / 4 + 1;
            }
            let (id, credit) = (feed.id() as u64, spec.credit as i64);
            self.domains[feed.0.domain].upstreams.open(FeedId(id), spec);
            self.feeds.insert(id, Carried { feed, credit, allowed: credit, opened: 0, was_misrouted: false });
        }
        loop {
            self.hand_on(env);
            let acted = (0..self.domains.len()).filter(|domain| self.act(env, *domain)).count();
            if acted == 0 {
                return;
            }
        }
    }

    /// Hands on what readers of feeds want.
    fn hand_on(&mut self, env: &mut Env) {
        let mut closed = Vec::new();
        for (&number, carried) in &mut self.feeds {
            let id = FeedId(number);
            let due = carried.feed.0.state.borrow_mut().take_due();
            let upstreams = &mut self.domains[carried.feed.0.domain].upstreams;
            if due.close {
                upstreams.close(id);
                closed.push(number);
                continue;
            }
            if let Some(token) = due.sync {
                upstreams.sync(id, token);
            }
            if due.credit > 0 {
                upstreams.credit(id, due.credit);
                carried.allowed += due.credit as i64;
                if carried.allowed > carried.credit {
                    let allowed = carried.allowed;
                    env.fail("watch", format!("gateway {}: {allowed} bytes may be under way", self.index));
                }
            }
        }
        for number in closed {
            self.feeds.remove(&number);
        }
    }

    /// Does what is to be done for the feeds of a domain. Returns whether there was anything.
    fn act(&mut self, env: &mut Env, number: usize) -> bool {
        let domain = &mut self.domains[number];
        let mut upstreams = std::mem::take(&mut domain.upstreams);
        let now = env.instant();
        let mut acts = false;
        loop {
            let mut rng = env.rng.clone();
            let known = Known { gateway: self, domain: number, env };
            let act = upstreams.poll(now, &known, || rng.next() as u32);
            env.rng = rng;
            let Some(act) = act else { break };
            acts = true;
            self.carry_out(env, &mut upstreams, act);
        }
        self.domains[number].upstreams = upstreams;
        acts
    }

    fn carry_out(&mut self, env: &mut Env, upstreams: &mut Upstreams<u64>, act: Act<u64>) {
        let now = env.instant();
        match act {
            Act::Open { feed, group: of, link, mut ask } => {
                let (kind, bytes) = ask.request(None);
                let Some(end) = self.ends.get_mut(&link) else {
                    return env.fail("links", format!("connection {link} is not there"));
                };
                let sent = end.end.watch(of, kind, bytes, feed.0);
                if let (Ok(_), Some(carried)) = (&sent, self.feeds.get_mut(&feed.0)) {
                    carried.opened += 1;
                    if carried.opened > 1 {
                        env.mark(Mark::FeedMoved);
                    }
                }
                let sent = sent.map(|id| Watch { link: LinkId(link), id });
                upstreams.handle_sent(now, feed, link, sent, || env.rng.next() as u32);
                self.flush_soon(env, link);
            }
            Act::Credit { watch, group: of, link, bytes } => {
                if let Some(end) = self.ends.get_mut(&link) {
                    end.end.tell(of, watch.id, Kind::WatchCredit(wire::WatchCredit { bytes }));
                    self.flush_soon(env, link);
                }
            }
            Act::Close { watch, group: of, link, reason } => {
                trace!(env, "gateway {}: watch {} on {link} ends: {reason}", self.index, watch.id);
                if let Some(end) = self.ends.get_mut(&link) {
                    end.end.close_watch(of, watch.id);
                    self.flush_soon(env, link);
                }
            }
            Act::Ask { link, connection, group: of, question, mut ask } => {
                let caller = Caller::Feeds { group: of, link: connection, question };
                let (kind, bytes) = ask.request(None);
                let Some(end) = self.ends.get_mut(&link) else {
                    return env.fail("links", format!("connection {link} is not there"));
                };
                if let Err(unsent) = end.end.call(of, kind, bytes, Terms::default(), caller) {
                    let random = || env.rng.next() as u32;
                    upstreams.handle_synced(now, connection, of, question, Attempted::Unsent(unsent), random);
                }
                self.flush_soon(env, link);
            }
            Act::Item { feed, item } => {
                if let Some(carried) = self.feeds.get(&feed.0) {
                    carried.feed.handle_item(item);
                }
            }
            Act::Seek { group } => self.groups[group.0 as usize].tracker_due = None,
        }
    }

    pub(super) fn handle_feed_frame(&mut self, env: &mut Env, link: u64, id: u64, response: wire::Response) {
        let Some(carried) = self.feeds.get_mut(&id) else { return };
        let upstreams = &self.domains[carried.feed.0.domain].upstreams;
        let domain = carried.feed.0.domain;
        let group = upstreams.group(FeedId(id)).unwrap_or_default();
        let watch = Watch { link: LinkId(link), id: response.id };
        let frame = asks::frame(response);
        let mut is_left_inside = false;
        if let Attempted::Refused(Refused { why: Why::WrongShard, .. }) = &frame {
            env.mark(Mark::FeedRefusedAsWrongShard);
            carried.was_misrouted = true;
        }
        if let Attempted::Answer(Frame::Opened { .. }) = &frame
            && std::mem::take(&mut carried.was_misrouted)
        {
            env.mark(Mark::FeedOpenedByNewerMap);
        }
        if let Attempted::Answer(Frame::Events { bytes, is_incomplete, .. }) = &frame {
            carried.allowed -= *bytes as i64;
            if *is_incomplete {
                env.mark(Mark::FeedInParts);
                // Parts follow each other so fast that few would move between two of them.
                is_left_inside = !env.healed && env.rng.below(6) == 0;
            }
        }
        self.learn_of_feeds(env, link, group, &frame);
        let (now, random) = (env.instant(), || env.rng.next() as u32);
        let upstreams = &mut self.domains[domain].upstreams;
        upstreams.handle_frame(now, FeedId(id), watch, frame, random);
        if is_left_inside {
            env.mark(Mark::FeedMovedInside);
            let random = || env.rng.next() as u32;
            upstreams.handle_frame(now, FeedId(id), watch, Attempted::Answer(Frame::Canceled), random);
        }
    }

    pub(super) fn handle_feeds_synced(
        &mut self,
        env: &mut Env,
        group: GroupId,
        link: LinkId,
        question: u64,
        answered: Result<wire::Response, Unanswered>,
    ) {
        let synced = sort(&SyncAsk { watch: 0 }, answered);
        self.learn_of_feeds(env, link.0, group, &synced);
        let (now, random) = (env.instant(), || env.rng.next() as u32);
        let domain = self.groups[group.0 as usize].domain;
        self.domains[domain].upstreams.handle_synced(now, link, group, question, synced, random);
    }

    /// A replica tells of itself. Returns whether that was it.
    pub(super) fn handle_unasked(&mut self, env: &mut Env, link: u64, response: &wire::Response) -> bool {
        match asks::unasked(response) {
            Some(Unasked::Watermark { group, revision }) => {
                env.mark(Mark::WatchWatermark);
                let domain = self.groups[group.0 as usize].domain;
                self.domains[domain].upstreams.handle_watermark(LinkId(link), group, revision);
                true
            }
            Some(Unasked::NotLeading { group, refused }) => {
                self.learn_of_feeds::<()>(env, link, group, &Attempted::Refused(refused));
                true
            }
            None => false,
        }
    }

    /// A link is gone, and all watches on it.
    pub(super) fn handle_feeds_lost(&mut self, env: &mut Env, link: u64) {
        let now = env.instant();
        for domain in &mut self.domains {
            domain.upstreams.handle_lost(now, LinkId(link), || env.rng.next() as u32);
        }
    }

    fn learn_of_feeds<T>(&mut self, env: &Env, link: u64, group: GroupId, attempted: &Attempted<T>) {
        if let Some(node) = self.ends.get(&link).map(|end| node_id(end.node)) {
            self.learn(env, group.0 as usize, node, attempted);
        }
    }
}
