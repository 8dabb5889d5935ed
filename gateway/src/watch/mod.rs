//! Watches: many watchers of clients over few feeds of the domain.
//!
//! ```text
//! client stream ── Watchers ─┬─ watcher ── SharedFeed (range a) ── Domain::feed
//!                            ├─ watcher ──┘
//!                            └─ watcher ── SharedFeed (range b) ── …
//! ```
//! What a watcher is told is decided in [`gateway_core::watch`]; here are the feeds that all streams share. None of them has a
//! task or a timer: whoever carries them brings what there is.

mod feed;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};

use gateway_core::FeedSpec;
use gateway_core::watch::{Feed as _, Feeds, OPENING, Pace};
use keyspace::{KeyRange, Revision};
use parking_lot::Mutex;
use prometheus::IntGauge;

use crate::domain::Domain;

pub(crate) use feed::Inbox;

use feed::{Carried, SharedFeed, Subscriber};

/// What a shared feed is found by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct FeedKey {
    range: KeyRange,
    prev_kv: bool,
}

/// All shared feeds of the gateway.
#[derive(Debug)]
pub(crate) struct Hub<D> {
    domain: Arc<D>,
    shared: Mutex<HashMap<FeedKey, SharedFeed>>,
    upstreams: IntGauge,
    /// Those of them that read history.
    histories: IntGauge,
    /// For the subscriptions, which find their way back.
    own: Weak<Hub<D>>,
}

impl<D: Domain> Hub<D> {
    pub(crate) fn new(domain: Arc<D>, upstreams: IntGauge, histories: IntGauge) -> Arc<Hub<D>> {
        Arc::new_cyclic(|own| Hub {
            domain,
            shared: Mutex::default(),
            upstreams,
            histories,
            own: own.clone(),
        })
    }

    fn open(&self, range: &KeyRange, prev_kv: bool, start: Revision, pace: Pace) -> SharedFeed {
        let feed = SharedFeed::new(range.clone(), prev_kv, pace);
        let spec = FeedSpec { range: range.clone(), start, prev_kv, credit: pace.credit_bytes() };
        let mut counted = vec![Counted::new(&self.upstreams)];
        if pace == Pace::History {
            counted.push(Counted::new(&self.histories));
        }
        feed.carry(Carried { feed: self.domain.feed(spec, feed.reader()), _counted: counted });
        feed
    }

    fn release(&self, feed: &SharedFeed, subscriber: u64) {
        let mut shared = self.shared.lock();
        if feed.unsubscribe(subscriber) {
            let key = FeedKey { range: feed.range().clone(), prev_kv: feed.prev_kv() };
            if shared.get(&key).is_some_and(|known| known.id() == feed.id()) {
                shared.remove(&key);
            }
        }
    }

    fn subscription(&self, feed: SharedFeed, watcher: Subscriber) -> Subscription<D> {
        let id = feed.lock().subscribe(watcher);
        Subscription { feed, id, hub: self.own.clone() }
    }
}

/// A watcher's place at a feed; given up when dropped.
pub(crate) struct Subscription<D: Domain> {
    feed: SharedFeed,
    id: u64,
    hub: Weak<Hub<D>>,
}

impl<D: Domain> AsRef<SharedFeed> for Subscription<D> {
    fn as_ref(&self) -> &SharedFeed {
        &self.feed
    }
}

impl<D: Domain> Drop for Subscription<D> {
    fn drop(&mut self) {
        match self.hub.upgrade() {
            Some(hub) => hub.release(&self.feed, self.id),
            None => {
                self.feed.unsubscribe(self.id);
            }
        }
    }
}

impl<D: Domain> fmt::Debug for Subscription<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Subscription").field(self.feed.range()).finish()
    }
}

/// The feeds as one client's stream has them.
pub(crate) struct StreamFeeds<D: Domain> {
    hub: Arc<Hub<D>>,
    inbox: Arc<Inbox>,
}

impl<D: Domain> StreamFeeds<D> {
    pub(crate) fn new(hub: Arc<Hub<D>>) -> StreamFeeds<D> {
        StreamFeeds { hub, inbox: Arc::default() }
    }

    /// Tells when a watcher has something to look at.
    pub(crate) fn inbox(&self) -> &Inbox {
        &self.inbox
    }

    fn subscriber(&self, watcher: u64) -> Subscriber {
        Subscriber { inbox: Arc::clone(&self.inbox), watcher }
    }
}

impl<D: Domain> Feeds for StreamFeeds<D> {
    type Feed = SharedFeed;
    type Subscription = Subscription<D>;

    fn shared(&self, range: &KeyRange, prev_kv: bool, watcher: u64) -> (Subscription<D>, u64) {
        let hub = &self.hub;
        let watcher = self.subscriber(watcher);
        let mut shared = hub.shared.lock();
        let key = FeedKey { range: range.clone(), prev_kv };
        let known = shared.get(&key).filter(|feed| feed.lock().end().is_none()).cloned();
        match known {
            Some(feed) => {
                let subscription = hub.subscription(feed.clone(), watcher.clone());
                let token = feed.sync(watcher);
                (subscription, token)
            }
            None => {
                let feed = hub.open(range, prev_kv, Revision(0), Pace::Shared);
                shared.insert(key, feed.clone());
                (hub.subscription(feed, watcher), OPENING)
            }
        }
    }

    fn history(&self, range: &KeyRange, prev_kv: bool, start: Revision, watcher: u64) -> Subscription<D> {
        let watcher = self.subscriber(watcher);
        let feed = self.hub.open(range, prev_kv, start, Pace::History);
        // Where nothing happened since, only a sync tells that the end is reached.
        feed.sync(watcher.clone());
        self.hub.subscription(feed, watcher)
    }

    fn sync(&self, feed: &SharedFeed, watcher: u64) -> u64 {
        feed.sync(self.subscriber(watcher))
    }

    fn consumed(&self, feed: &SharedFeed, through: Revision) {
        feed.consumed(through);
    }

    fn take_marked(&self, each: impl FnMut(u64)) {
        self.inbox.take().into_iter().for_each(each);
    }
}

/// One more in a gauge, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Counted(IntGauge);

impl Counted {
    fn new(gauge: &IntGauge) -> Counted {
        gauge.inc();
        Counted(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
