//! Watches: many watchers of clients over few feeds of the domain.
//!
//! ```text
//! client stream ── Watchers ─┬─ watcher ── SharedFeed (range a) ── task ── Domain::feed
//!                            ├─ watcher ──┘
//!                            └─ watcher ── SharedFeed (range b) ── task ── …
//! ```
//! A watcher is a position in a shared window of events. It writes nothing and holds nothing: a client that does not
//! read keeps a number. One that falls behind the window, or starts in the past, reads history through a feed of its
//! own until it has caught up with the window.

mod feed;
mod log;
mod watchers;

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use gateway_core::FeedSpec;
use keyspace::KeyRange;
use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::domain::{Domain, Feed};

pub(crate) use feed::Inbox;
pub(crate) use log::Entry;
#[cfg(test)]
pub(crate) use log::tests::revision as revision_of_test;
pub(crate) use watchers::{
    Canceled, Create, Events, Feeds, Filters, Frame, NotCreated, Part, Subscription, Told, Watchers,
};

use feed::{Pace, SharedFeed};

/// How often a shared feed on which nothing happens is asked how far it has come. So it notices when its replica has been
/// cut off, and its place does not fall behind what is compacted.
const QUIET_SYNC_INTERVAL: Duration = Duration::from_secs(3);

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
    shared: Mutex<HashMap<FeedKey, Arc<SharedFeed>>>,
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

    fn open(&self, range: &KeyRange, prev_kv: bool, start: i64, pace: Pace) -> Arc<SharedFeed> {
        let feed = Arc::new(SharedFeed::new(range.clone(), prev_kv, pace));
        let spec = FeedSpec { range: range.clone(), start, prev_kv, credit: pace.credit_bytes() };
        let mut counted = vec![Counted::new(&self.upstreams)];
        if pace == Pace::History {
            counted.push(Counted::new(&self.histories));
        }
        tokio::spawn(carry(Arc::clone(&feed), self.domain.feed(spec), counted));
        feed
    }

    fn release(&self, feed: &Arc<SharedFeed>, subscriber: u64) {
        let mut shared = self.shared.lock();
        if feed.unsubscribe(subscriber) {
            let key = FeedKey { range: feed.range.clone(), prev_kv: feed.prev_kv };
            if shared.get(&key).is_some_and(|known| Arc::ptr_eq(known, feed)) {
                shared.remove(&key);
            }
        }
    }

    fn subscription(&self, feed: Arc<SharedFeed>, inbox: &Arc<Inbox>, watcher: u64) -> Subscription {
        let subscriber = feed.subscribe(inbox, watcher);
        let hub = self.own.clone();
        Subscription::new(feed, move |feed| match hub.upgrade() {
            Some(hub) => hub.release(feed, subscriber),
            None => {
                feed.unsubscribe(subscriber);
            }
        })
    }
}

impl<D: Domain> Feeds for Arc<Hub<D>> {
    fn shared(
        &self,
        range: &KeyRange,
        prev_kv: bool,
        inbox: &Arc<Inbox>,
        watcher: u64,
    ) -> (Subscription, u64) {
        let mut shared = self.shared.lock();
        let key = FeedKey { range: range.clone(), prev_kv };
        let known = shared.get(&key).filter(|feed| feed.state().end().is_none()).cloned();
        match known {
            Some(feed) => {
                let subscription = self.subscription(Arc::clone(&feed), inbox, watcher);
                let token = feed.sync(inbox, watcher);
                (subscription, token)
            }
            None => {
                let feed = self.open(range, prev_kv, 0, Pace::Shared);
                shared.insert(key, Arc::clone(&feed));
                (self.subscription(feed, inbox, watcher), SharedFeed::OPENING)
            }
        }
    }

    fn history(
        &self,
        range: &KeyRange,
        prev_kv: bool,
        start: i64,
        inbox: &Arc<Inbox>,
        watcher: u64,
    ) -> Subscription {
        let feed = self.open(range, prev_kv, start, Pace::History);
        // Where nothing happened since, only a sync tells that the end is reached.
        feed.sync(inbox, watcher);
        self.subscription(feed, inbox, watcher)
    }
}

/// The task behind a feed.
async fn carry(feed: Arc<SharedFeed>, mut upstream: impl Feed, _counted: Vec<Counted>) {
    let mut quiet = interval_at(Instant::now() + QUIET_SYNC_INTERVAL, QUIET_SYNC_INTERVAL);
    quiet.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let wanted = feed.state().take_upstream();
        if wanted.close {
            break;
        }
        if let Some(token) = wanted.sync {
            upstream.sync(token);
        }
        if wanted.credit > 0 {
            upstream.credit(wanted.credit);
        }
        tokio::select! {
            item = upstream.next() => feed.handle_item(item),
            () = feed.work.notified() => {}
            _ = quiet.tick() => feed.state().handle_tick(),
        }
    }
}

/// One more in a gauge, for as long as it lives.
struct Counted(IntGauge);

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
