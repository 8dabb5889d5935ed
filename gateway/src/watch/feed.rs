//! One upstream and those who watch through it.
//!
//! A feed is *shared* by all watchers of a range: it runs at the pace of the store and keeps a bounded window. Or it
//! serves the *history* of one watcher that is behind the window: it runs at the watcher's pace, held by credit.
//! All rules are in [`FeedState`], a plain struct; [`SharedFeed`] puts a lock round it, and the hub a task behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use gateway_core::{Failure, FeedItem};
use keyspace::KeyRange;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::log::FeedLog;

/// Bytes of events kept for watchers of a range that are a little behind.
const WINDOW_BYTES: usize = 1 << 20;

/// How a feed runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// At the store's: what nobody has read in time is forgotten.
    Shared,
    /// At its only watcher's: nothing is forgotten before it was read.
    History,
}

impl Pace {
    /// Bytes of events that may be under way from a node for one feed. There may be as many histories as slow clients,
    /// and each holds so much for a client that does not read.
    pub(crate) const fn credit_bytes(self) -> u64 {
        match self {
            Pace::Shared => 1 << 20,
            Pace::History => 128 << 10,
        }
    }

    /// Credit goes back in steps of this size, so that it costs a message per many events.
    const fn credit_step(self) -> u64 {
        self.credit_bytes() / 4
    }
}

/// Why a feed has no more events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FeedEnd {
    /// The revisions it needs are gone.
    Compacted { compact_revision: i64 },
    /// It cannot go on.
    Failed(Failure),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct FeedState {
    pace: Pace,
    /// There once the feed was opened.
    log: Option<FeedLog>,
    term: u64,
    end: Option<FeedEnd>,
    subscribers: BTreeMap<u64, (Arc<Inbox>, u64)>,
    next_subscriber: u64,
    /// The latest sync that somebody wants, that is under way, and that was answered. Opening the feed is the first.
    sync_wanted: u64,
    sync_sent: u64,
    synced: u64,
    synced_revision: i64,
    /// The oldest revision that can be read, as opening it and its syncs told.
    compact_revision: i64,
    /// Who waits for which token.
    sync_waiters: Vec<(u64, Arc<Inbox>, u64)>,
    /// How far the log was at the last tick.
    upto_at_tick: i64,
    /// Credit to be given back upstream.
    credit_due: u64,
    closed: bool,
}

/// What the task behind a feed must do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Upstream {
    pub(crate) close: bool,
    pub(crate) sync: Option<u64>,
    pub(crate) credit: u64,
}

impl FeedState {
    fn new(pace: Pace) -> FeedState {
        FeedState {
            pace,
            log: None,
            term: 0,
            end: None,
            subscribers: BTreeMap::new(),
            next_subscriber: 0,
            sync_wanted: 1,
            sync_sent: 1,
            synced: 0,
            synced_revision: 0,
            compact_revision: 0,
            sync_waiters: Vec::new(),
            upto_at_tick: 0,
            credit_due: 0,
            closed: false,
        }
    }

    pub(crate) fn log(&self) -> Option<&FeedLog> {
        self.log.as_ref()
    }

    pub(crate) fn term(&self) -> u64 {
        self.term
    }

    pub(crate) fn end(&self) -> Option<&FeedEnd> {
        self.end.as_ref()
    }

    /// Whether it has ended, or nobody watches through it any more: nothing more will come.
    pub(crate) fn is_over(&self) -> bool {
        self.closed || self.end.is_some()
    }

    /// Wants a sync if the feed is shared and has not moved since the last call.
    pub(crate) fn handle_tick(&mut self) {
        let Some(log) = self.log.as_ref().filter(|_| self.pace == Pace::Shared) else { return };
        let quiet = log.upto() == self.upto_at_tick;
        self.upto_at_tick = log.upto();
        if quiet && self.sync_wanted == self.sync_sent {
            self.sync_wanted += 1;
        }
    }

    /// The revision of the sync `token`, once it was answered: every event up to it is in the log.
    pub(crate) fn synced(&self, token: u64) -> Option<i64> {
        (self.synced >= token).then_some(self.synced_revision)
    }

    /// The oldest revision that can be read, as of the latest sync. The window may still hold older ones, which nobody
    /// shall be told any more who asks for them now.
    pub(crate) fn compact_revision(&self) -> i64 {
        self.compact_revision
    }

    /// Takes in an item; whoever must look is marked in `marked`.
    pub(crate) fn handle_item(&mut self, item: FeedItem, marked: &mut Vec<(Arc<Inbox>, u64)>) {
        match item {
            FeedItem::Opened { revision, start, compact_revision, term } => {
                self.compact_revision = self.compact_revision.max(compact_revision);
                self.log = Some(FeedLog::new(start, revision, WINDOW_BYTES));
                self.term = term;
                self.handle_synced(1, revision, marked);
                marked.extend(self.subscribers.values().cloned());
            }
            FeedItem::Events { revisions, upto, revision, term, bytes } => {
                let Some(log) = &mut self.log else { return };
                self.term = term;
                let news = !revisions.is_empty();
                let rest = log.push(revisions, upto, revision, bytes);
                match self.pace {
                    Pace::Shared => {
                        log.evict();
                        self.credit_due += bytes;
                    }
                    Pace::History => self.credit_due += rest,
                }
                if news || self.pace == Pace::History {
                    marked.extend(self.subscribers.values().cloned());
                }
            }
            FeedItem::Synced { token, revision, compact_revision, term } => {
                self.term = term;
                self.compact_revision = self.compact_revision.max(compact_revision);
                if let Some(log) = &mut self.log {
                    log.handle_upto(revision, revision);
                }
                self.handle_synced(token, revision, marked);
            }
            FeedItem::Compacted { compact_revision } => {
                self.handle_end(FeedEnd::Compacted { compact_revision }, marked);
            }
            FeedItem::Failed(failure) => self.handle_end(FeedEnd::Failed(failure), marked),
        }
    }

    /// What is to be done upstream; asked for once.
    pub(crate) fn take_upstream(&mut self) -> Upstream {
        // One sync at a time: all who ask while one is under way share the next.
        let idle = self.synced == self.sync_sent && self.end.is_none();
        let sync = (idle && self.sync_wanted > self.sync_sent).then_some(self.sync_wanted);
        self.sync_sent = sync.unwrap_or(self.sync_sent);
        Upstream {
            close: self.closed || self.end.is_some(),
            sync,
            credit: if self.credit_due < self.pace.credit_step() {
                0
            } else {
                std::mem::take(&mut self.credit_due)
            },
        }
    }

    fn handle_synced(&mut self, token: u64, revision: i64, marked: &mut Vec<(Arc<Inbox>, u64)>) {
        self.synced = self.synced.max(token);
        self.synced_revision = self.synced_revision.max(revision);
        // Those who asked while this sync was under way wait for the next.
        let answered = self.sync_waiters.extract_if(.., |(wanted, ..)| *wanted <= token);
        marked.extend(answered.map(|(_, inbox, watcher)| (inbox, watcher)));
    }

    fn handle_end(&mut self, end: FeedEnd, marked: &mut Vec<(Arc<Inbox>, u64)>) {
        self.end = Some(end);
        marked.extend(self.subscribers.values().cloned());
        marked.extend(self.sync_waiters.drain(..).map(|(_, inbox, watcher)| (inbox, watcher)));
    }
}

/// A feed that several threads look at.
#[derive(Debug)]
pub(crate) struct SharedFeed {
    pub(crate) range: KeyRange,
    pub(crate) prev_kv: bool,
    state: Mutex<FeedState>,
    /// Wakes the task behind the feed.
    pub(crate) work: Notify,
}

impl SharedFeed {
    pub(crate) fn new(range: KeyRange, prev_kv: bool, pace: Pace) -> SharedFeed {
        SharedFeed { range, prev_kv, state: Mutex::new(FeedState::new(pace)), work: Notify::new() }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, FeedState> {
        self.state.lock()
    }

    /// Takes in an item and wakes whoever must look.
    pub(crate) fn handle_item(&self, item: FeedItem) {
        let mut marked = Vec::new();
        self.state().handle_item(item, &mut marked);
        for (inbox, watcher) in marked {
            inbox.mark(watcher);
        }
    }

    /// Adds a watcher that is to be told when there is something to read.
    pub(crate) fn subscribe(&self, inbox: &Arc<Inbox>, watcher: u64) -> u64 {
        let mut state = self.state();
        let id = state.next_subscriber;
        state.next_subscriber += 1;
        state.subscribers.insert(id, (Arc::clone(inbox), watcher));
        id
    }

    /// Takes a watcher away. Returns whether it was the last one; then the feed closes.
    pub(crate) fn unsubscribe(&self, id: u64) -> bool {
        let mut state = self.state();
        state.subscribers.remove(&id);
        state.closed = state.subscribers.is_empty();
        let closed = state.closed;
        drop(state);
        if closed {
            self.work.notify_one();
        }
        closed
    }

    /// The token of the sync that opening the feed amounts to.
    pub(crate) const OPENING: u64 = 1;

    /// Asks how far the feed has come; `watcher` is told. Returns the token to ask [`FeedState::synced`] with.
    pub(crate) fn sync(&self, inbox: &Arc<Inbox>, watcher: u64) -> u64 {
        let mut state = self.state();
        if state.sync_wanted == state.sync_sent {
            state.sync_wanted += 1;
        }
        let token = state.sync_wanted;
        state.sync_waiters.push((token, Arc::clone(inbox), watcher));
        let ended = state.end.is_some();
        drop(state);
        if ended {
            inbox.mark(watcher);
        }
        self.work.notify_one();
        token
    }

    /// Forgets what a history's watcher has read, which makes room for more.
    pub(crate) fn consumed(&self, through: i64) {
        let mut state = self.state();
        debug_assert_eq!(state.pace, Pace::History, "a shared feed is read by many");
        let cost = state.log.as_mut().map_or(0, |log| log.forget_through(through));
        state.credit_due += cost;
        drop(state);
        if cost > 0 {
            self.work.notify_one();
        }
    }
}

/// Which watchers of a client's stream have something to look at. Read by that stream alone.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    ready: Mutex<Marked>,
    reader: AtomicWaker,
}

/// Keys of watchers. The first has its own place, so that a stream of one watcher, as most are, needs no memory for each
/// event.
#[derive(Debug, Default)]
pub(crate) struct Marked {
    first: Option<u64>,
    more: BTreeSet<u64>,
}

impl Marked {
    fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    fn insert(&mut self, watcher: u64) {
        match self.first {
            None => self.first = Some(watcher),
            Some(first) if first == watcher => {}
            Some(_) => {
                self.more.insert(watcher);
            }
        }
    }

    pub(crate) fn into_iter(self) -> impl Iterator<Item = u64> {
        self.first.into_iter().chain(self.more)
    }
}

impl Inbox {
    pub(crate) fn mark(&self, watcher: u64) {
        let mut ready = self.ready.lock();
        let was_empty = ready.is_empty();
        ready.insert(watcher);
        drop(ready);
        if was_empty {
            self.reader.wake();
        }
    }

    pub(crate) fn take(&self) -> Marked {
        std::mem::take(&mut self.ready.lock())
    }

    /// Ready when a watcher is marked. Wakes the last one who asked.
    pub(crate) fn poll_filled(&self, cx: &mut Context<'_>) -> Poll<()> {
        // Registered first: a mark that comes in between is either seen below or wakes.
        self.reader.register(cx.waker());
        if self.ready.lock().is_empty() { Poll::Pending } else { Poll::Ready(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use super::*;
    use crate::watch::log::tests::revision;

    fn events(number: i64, bytes: u64) -> FeedItem {
        FeedItem::Events {
            revisions: vec![revision(number, &["a"])],
            upto: number,
            revision: number,
            term: 2,
            bytes,
        }
    }

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Reader(AtomicUsize);

    impl Wake for Reader {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn an_inbox_wakes_its_reader_once_for_all_that_is_marked() {
        let inbox = Inbox::default();
        let reader = Arc::new(Reader::default());
        let waker = Waker::from(Arc::clone(&reader));
        let mut cx = Context::from_waker(&waker);
        assert!(inbox.poll_filled(&mut cx).is_pending());
        for watcher in [5, 7, 5, 6, 7] {
            inbox.mark(watcher);
        }
        assert_eq!(reader.0.load(Ordering::Relaxed), 1);
        assert!(inbox.poll_filled(&mut cx).is_ready());
        assert_eq!(inbox.take().into_iter().collect::<Vec<_>>(), [5, 6, 7]);
        assert!(inbox.poll_filled(&mut cx).is_pending());
        inbox.mark(7);
        assert_eq!(reader.0.load(Ordering::Relaxed), 2);
        assert_eq!(inbox.take().into_iter().collect::<Vec<_>>(), [7]);
    }

    #[test]
    fn those_who_ask_during_a_sync_share_the_next_one() {
        let feed = SharedFeed::new(KeyRange::single("a"), false, Pace::Shared);
        let inbox = Arc::new(Inbox::default());
        feed.subscribe(&inbox, 7);
        // The feed is opening, which is the first sync; what is asked for meanwhile is another.
        assert_eq!(feed.sync(&inbox, 7), 2);
        assert_eq!(feed.state().take_upstream(), Upstream::default());
        feed.handle_item(FeedItem::Opened { revision: 4, start: 5, compact_revision: 0, term: 2 });
        assert_eq!(inbox.take().into_iter().collect::<Vec<_>>(), [7]);
        assert_eq!(feed.state().synced(1), Some(4));
        assert_eq!(feed.state().synced(2), None);
        assert_eq!(feed.state().take_upstream().sync, Some(2));
        assert_eq!(feed.state().take_upstream().sync, None);
        inbox.take();
        assert_eq!((feed.sync(&inbox, 8), feed.sync(&inbox, 9)), (3, 3));
        feed.handle_item(FeedItem::Synced { token: 2, revision: 6, compact_revision: 0, term: 2 });
        assert_eq!(inbox.take().into_iter().collect::<Vec<_>>(), [7]);
        assert_eq!(feed.state().synced(2), Some(6));
        assert_eq!(feed.state().log().unwrap().upto(), 6);
        assert_eq!(feed.state().take_upstream().sync, Some(3));
        feed.handle_item(FeedItem::Synced { token: 3, revision: 7, compact_revision: 0, term: 2 });
        assert_eq!(inbox.take().into_iter().collect::<Vec<_>>(), [8, 9]);
    }

    #[test]
    fn a_shared_feed_gives_its_credit_back_at_once_and_a_history_when_read() {
        let inbox = Arc::new(Inbox::default());
        let cost = Pace::Shared.credit_step() + 5;
        for (pace, at_once) in [(Pace::Shared, cost), (Pace::History, 0)] {
            let feed = SharedFeed::new(KeyRange::single("a"), false, pace);
            feed.subscribe(&inbox, 1);
            feed.handle_item(FeedItem::Opened { revision: 1, start: 2, compact_revision: 0, term: 2 });
            feed.handle_item(events(2, cost));
            assert_eq!(feed.state().take_upstream().credit, at_once);
            if pace == Pace::History {
                feed.consumed(2);
                assert_eq!(feed.state().take_upstream().credit, cost);
            }
        }
    }

    #[test]
    fn the_last_subscriber_closes_the_feed() {
        let feed = SharedFeed::new(KeyRange::single("a"), false, Pace::Shared);
        let inbox = Arc::new(Inbox::default());
        let (first, second) = (feed.subscribe(&inbox, 1), feed.subscribe(&inbox, 2));
        assert!(!feed.unsubscribe(first));
        assert!(feed.unsubscribe(second));
        assert!(feed.state().take_upstream().close);
    }
}
