//! One upstream and those who watch through it.
//!
//! A feed is *shared* by all watchers of a range: it runs at the pace of the store and keeps a bounded window. Or it
//! serves the *history* of one watcher that is behind the window: it runs at the watcher's pace, held by credit.

use std::collections::BTreeMap;

use keyspace::Revision;

use super::log::FeedLog;
use crate::failure::Failure;
use crate::mutant::mutant;
use crate::upstream::{Cohort, FeedItem};

/// Bytes of events kept for watchers of a range that are a little behind.
pub(super) const WINDOW_BYTES: usize = 1 << 20;

/// How a feed runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// At the store's: what nobody has read in time is forgotten.
    Shared,
    /// At its only watcher's: nothing is forgotten before it was read.
    History,
}

impl Pace {
    /// Bytes of events that may be under way from a node for one feed. There may be as many histories as slow clients,
    /// and each holds so much for a client that does not read.
    pub const fn credit_bytes(self) -> u64 {
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
pub enum FeedEnd {
    /// The revisions it needs are gone.
    Compacted {
        /// The oldest revision that can be read.
        compact_revision: Revision,
    },
    /// It cannot go on.
    Failed(Failure),
}

/// See the module. `S` is a subscriber: a watcher, as it is told that there is something to look at.
#[derive(Debug)]
pub struct FeedState<S> {
    pace: Pace,
    phase: Phase,
    term: u64,
    subscribers: Subscribers<S>,
    next_subscriber: u64,
    /// The latest sync that somebody wants, that is under way, and that was answered. Opening the feed is the first.
    sync_wanted: u64,
    sync_sent: u64,
    synced: u64,
    synced_revision: Revision,
    /// The latest answer, and for whom else it counts.
    heard: Option<(Cohort, Revision)>,
    /// The feeds that it is in step with.
    cohort: Option<Cohort>,
    /// The oldest revision that can be read, as opening it and its syncs told.
    compact_revision: Revision,
    /// Who waits for which token.
    sync_waiters: Vec<(u64, S)>,
    /// Credit to be given back upstream.
    credit_due: u64,
    /// How many watchers have read the newest revision, where it exceeds the window.
    oversized_read: usize,
    /// Its last subscriber has gone.
    is_closed: bool,
}

#[derive(Debug)]
enum Phase {
    Opening,
    Open(FeedLog),
    /// What the window holds is told all the same, if it was ever open.
    Ended {
        end: FeedEnd,
        window: Option<FeedLog>,
    },
}

/// What has to be done upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// Close it.
    pub close: bool,
    /// Ask for a sync with this token.
    pub sync: Option<u64>,
    /// Give so much credit back; 0 for none.
    pub credit: u64,
}

/// The token of the sync that opening a feed amounts to.
pub const OPENING: u64 = 1;

impl<S: Clone> FeedState<S> {
    /// One that is being opened.
    pub fn new(pace: Pace) -> FeedState<S> {
        FeedState {
            pace,
            phase: Phase::Opening,
            term: 0,
            subscribers: Subscribers::default(),
            next_subscriber: 0,
            sync_wanted: OPENING,
            sync_sent: OPENING,
            synced: 0,
            synced_revision: Revision(0),
            heard: None,
            cohort: None,
            compact_revision: Revision(0),
            sync_waiters: Vec::new(),
            credit_due: 0,
            oversized_read: 0,
            is_closed: false,
        }
    }

    /// The window, once the feed was opened.
    pub fn log(&self) -> Option<&FeedLog> {
        match &self.phase {
            Phase::Opening => None,
            Phase::Open(log) => Some(log),
            Phase::Ended { window, .. } => window.as_ref(),
        }
    }

    fn log_mut(&mut self) -> Option<&mut FeedLog> {
        match &mut self.phase {
            Phase::Opening => None,
            Phase::Open(log) => Some(log),
            Phase::Ended { window, .. } => window.as_mut(),
        }
    }

    /// Round of the leadership that it was told under last.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// The feeds that it is in step with, if it is.
    pub fn cohort(&self) -> Option<Cohort> {
        self.cohort
    }

    /// The revision that the latest sync told, and the feeds that are complete up to it, too: those in step where it was
    /// answered.
    pub fn heard(&self) -> Option<(Cohort, Revision)> {
        self.heard
    }

    /// Why nothing more will come, if that is so.
    pub fn end(&self) -> Option<&FeedEnd> {
        match &self.phase {
            Phase::Opening | Phase::Open(_) => None,
            Phase::Ended { end, .. } => Some(end),
        }
    }

    /// Whether it has ended, or nobody watches through it any more: nothing more will come.
    pub fn is_over(&self) -> bool {
        self.is_closed || self.end().is_some()
    }

    /// Adds a watcher that is to be told when there is something to read. Returns what it is unsubscribed by.
    pub fn subscribe(&mut self, subscriber: S) -> u64 {
        let id = self.next_subscriber;
        self.next_subscriber += 1;
        self.subscribers.insert(id, subscriber);
        id
    }

    /// Takes a watcher away. Returns whether it was the last one; then the feed closes.
    pub fn unsubscribe(&mut self, id: u64) -> bool {
        self.subscribers.remove(id);
        self.is_closed = self.subscribers.is_empty();
        self.is_closed
    }

    /// Asks how far the feed has come; `waiter` is told. Returns the token to ask [`FeedState::synced`] with.
    pub fn sync(&mut self, waiter: S) -> u64 {
        if self.sync_wanted == self.sync_sent {
            self.sync_wanted += 1;
        }
        self.sync_waiters.push((self.sync_wanted, waiter));
        debug_assert!(
            self.synced <= self.sync_sent && self.sync_sent <= self.sync_wanted,
            "one after the other"
        );
        self.sync_wanted
    }

    /// A watcher has read so far. A history forgets that, a shared feed what exceeds the window once as many have as there are.
    /// Returns whether that makes room for more.
    pub fn consumed(&mut self, through: Revision) -> bool {
        if self.pace == Pace::Shared {
            self.oversized_read += 1;
            if self.oversized_read >= self.subscribers.len()
                && let Some(log) = self.log_mut()
            {
                log.forget_oversized_through(through);
            }
            return false;
        }
        let cost = self.log_mut().map_or(0, |log| log.forget_through(through));
        self.credit_due += cost;
        cost > 0
    }

    /// The revision of the sync `token`, once it was answered: every event up to it is in the log.
    pub fn synced(&self, token: u64) -> Option<Revision> {
        (self.synced >= token).then_some(self.synced_revision)
    }

    /// The oldest revision that can be read, as of the latest sync. The window may still hold older ones, which nobody
    /// shall be told any more who asks for them now.
    pub fn compact_revision(&self) -> Revision {
        self.compact_revision
    }

    /// Takes in an item; whoever must look is put into `marked`.
    pub fn handle_item(&mut self, item: FeedItem, marked: &mut Vec<S>) {
        match item {
            FeedItem::Opened { revision, start, compact_revision, term } => {
                self.compact_revision = self.compact_revision.max(compact_revision);
                debug_assert!(matches!(self.phase, Phase::Opening), "a feed opens once");
                self.phase = Phase::Open(FeedLog::new(start, revision, WINDOW_BYTES));
                self.term = term;
                self.handle_synced(OPENING, revision, marked);
                marked.extend(self.subscribers.values().cloned());
            }
            FeedItem::Events { revisions, upto, revision, term, bytes } => {
                let Phase::Open(log) = &mut self.phase else { return };
                self.term = term;
                let news = !revisions.is_empty();
                let rest = log.push(revisions, upto, revision, bytes);
                match self.pace {
                    Pace::Shared => {
                        log.evict();
                        if news {
                            self.oversized_read = 0;
                        }
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
                if let Phase::Open(log) = &mut self.phase {
                    log.handle_upto(revision, revision);
                }
                self.heard = self.cohort.map(|cohort| (cohort, revision));
                self.handle_synced(token, revision, marked);
            }
            FeedItem::Cohort(cohort) => {
                self.cohort = cohort;
                marked.extend(self.subscribers.values().cloned());
            }
            FeedItem::Compacted { compact_revision } => {
                self.handle_end(FeedEnd::Compacted { compact_revision }, marked);
            }
            FeedItem::Failed(failure) => self.handle_end(FeedEnd::Failed(failure), marked),
        }
    }

    /// What is to be done upstream; asked for once.
    pub fn take_due(&mut self) -> Due {
        let has_ended = self.end().is_some();
        assert!(self.synced <= self.sync_sent, "no question is answered before it is asked");
        // One sync at a time: all who ask while one is under way share the next.
        let idle = self.synced == self.sync_sent && !has_ended;
        let sync = (idle && self.sync_wanted > self.sync_sent).then_some(self.sync_wanted);
        assert!(sync.is_none_or(|sync| sync > self.synced), "nobody asks for what was answered");
        self.sync_sent = sync.unwrap_or(self.sync_sent);
        let credit =
            if self.credit_due < self.pace.credit_step() { 0 } else { std::mem::take(&mut self.credit_due) };
        let credit = if mutant!(CreditTwice) { credit * 2 } else { credit };
        Due { close: self.is_closed || has_ended, sync, credit }
    }

    fn handle_synced(&mut self, token: u64, revision: Revision, marked: &mut Vec<S>) {
        assert!(token <= self.sync_sent, "what is answered was asked");
        self.synced = self.synced.max(token);
        self.synced_revision = self.synced_revision.max(revision);
        // Those who asked while this sync was under way wait for the next.
        let answered = self.sync_waiters.extract_if(.., |(wanted, _)| *wanted <= token);
        marked.extend(answered.map(|(_, waiter)| waiter));
        if self.sync_waiters.is_empty() {
            // For most feeds nobody asks again.
            self.sync_waiters = Vec::new();
        }
    }

    fn handle_end(&mut self, end: FeedEnd, marked: &mut Vec<S>) {
        let window = match std::mem::replace(&mut self.phase, Phase::Opening) {
            Phase::Open(log) => Some(log),
            Phase::Ended { window, .. } => window,
            Phase::Opening => None,
        };
        self.phase = Phase::Ended { end, window };
        self.cohort = None;
        marked.extend(self.subscribers.values().cloned());
        marked.extend(self.sync_waiters.drain(..).map(|(_, waiter)| waiter));
    }
}

/// By their numbers. The first has its own place: most feeds have one.
#[derive(Debug)]
struct Subscribers<S> {
    first: Option<(u64, S)>,
    more: BTreeMap<u64, S>,
}

impl<S> Default for Subscribers<S> {
    fn default() -> Subscribers<S> {
        Subscribers { first: None, more: BTreeMap::new() }
    }
}

impl<S> Subscribers<S> {
    fn insert(&mut self, id: u64, subscriber: S) {
        assert!(!self.more.contains_key(&id), "a subscriber has a number of its own");
        match &self.first {
            None => self.first = Some((id, subscriber)),
            Some(_) => {
                self.more.insert(id, subscriber);
            }
        }
    }

    fn remove(&mut self, id: u64) {
        if self.first.as_ref().is_some_and(|(first, _)| *first == id) {
            self.first = self.more.pop_first();
        } else {
            self.more.remove(&id);
        }
        assert!(self.first.is_some() || self.more.is_empty(), "the first place is taken first");
    }

    fn values(&self) -> impl Iterator<Item = &S> {
        self.first.iter().map(|(_, subscriber)| subscriber).chain(self.more.values())
    }

    fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.len()
    }

    fn is_empty(&self) -> bool {
        self.first.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::log::tests::revision;

    fn item(feed: &mut FeedState<u64>, item: FeedItem) -> Vec<u64> {
        let mut marked = Vec::new();
        feed.handle_item(item, &mut marked);
        marked.sort_unstable();
        marked.dedup();
        marked
    }

    fn opened(revision: i64) -> FeedItem {
        let revision = Revision(revision);
        FeedItem::Opened { revision, start: revision.next(), compact_revision: Revision(0), term: 2 }
    }

    fn synced(token: u64, revision: i64) -> FeedItem {
        FeedItem::Synced { token, revision: Revision(revision), compact_revision: Revision(0), term: 2 }
    }

    fn events(number: i64, bytes: u64) -> FeedItem {
        let revisions = vec![revision(number, &["a"])];
        FeedItem::Events { revisions, upto: Revision(number), revision: Revision(number), term: 2, bytes }
    }

    #[test]
    fn those_who_ask_during_a_sync_share_the_next_one() {
        let mut feed = FeedState::new(Pace::Shared);
        feed.subscribe(7);
        // The feed is opening, which is the first sync; what is asked for meanwhile is another.
        assert_eq!(feed.sync(7), 2);
        assert_eq!(feed.take_due(), Due::default());
        assert_eq!(item(&mut feed, opened(4)), [7]);
        assert_eq!((feed.synced(1), feed.synced(2)), (Some(Revision(4)), None));
        assert_eq!(feed.take_due().sync, Some(2));
        assert_eq!(feed.take_due().sync, None);
        assert_eq!((feed.sync(8), feed.sync(9)), (3, 3));
        assert_eq!(item(&mut feed, synced(2, 6)), [7]);
        assert_eq!(feed.synced(2), Some(Revision(6)));
        assert_eq!(feed.log().unwrap().upto(), Revision(6));
        assert_eq!(feed.take_due().sync, Some(3));
        assert_eq!(item(&mut feed, synced(3, 7)), [8, 9]);
    }

    #[test]
    fn a_shared_feed_gives_its_credit_back_at_once_and_a_history_when_read() {
        let cost = Pace::Shared.credit_step() + 5;
        for (pace, at_once) in [(Pace::Shared, cost), (Pace::History, 0)] {
            let mut feed = FeedState::new(pace);
            feed.subscribe(1);
            item(&mut feed, opened(1));
            item(&mut feed, events(2, cost));
            assert_eq!(feed.take_due().credit, at_once);
            if pace == Pace::History {
                assert!(feed.consumed(Revision(2)) && !feed.consumed(Revision(2)));
                assert_eq!(feed.take_due().credit, cost);
            }
        }
    }

    #[test]
    fn a_revision_larger_than_the_window_is_forgotten_once_all_have_read_it() {
        let mut feed = FeedState::new(Pace::Shared);
        feed.subscribe(1);
        feed.subscribe(2);
        item(&mut feed, opened(1));
        let mut large = revision(2, &["a"]);
        let mut event = large.events[0].clone();
        event.kv.value = vec![0; WINDOW_BYTES + 1].into();
        large.events = [event].into();
        let (upto, term) = (Revision(2), 2);
        let told = FeedItem::Events { revisions: vec![large], upto, revision: upto, term, bytes: 9 };
        item(&mut feed, told);
        assert!(!feed.consumed(upto));
        assert_eq!(feed.log().unwrap().from(upto).len(), 1, "one has not read it");
        feed.consumed(upto);
        let log = feed.log().unwrap();
        assert_eq!((log.floor(), log.from(upto.next()).len()), (upto, 0));
        // What fits the window stays for those who are a little behind.
        item(&mut feed, events(3, 1));
        feed.consumed(Revision(3));
        feed.consumed(Revision(3));
        assert_eq!(feed.log().unwrap().from(Revision(3)).len(), 1);
    }

    #[test]
    fn the_last_subscriber_closes_the_feed() {
        let mut feed = FeedState::new(Pace::Shared);
        let (first, second) = (feed.subscribe(1), feed.subscribe(2));
        assert!(!feed.unsubscribe(first) && !feed.is_over());
        assert!(feed.unsubscribe(second) && feed.is_over());
        assert!(feed.take_due().close);
    }

    #[test]
    fn what_the_window_holds_outlives_the_feed() {
        let mut feed = FeedState::new(Pace::Shared);
        feed.subscribe(1);
        item(&mut feed, opened(1));
        item(&mut feed, events(2, 1));
        feed.sync(3);
        assert_eq!(item(&mut feed, FeedItem::Compacted { compact_revision: Revision(9) }), [1, 3]);
        assert_eq!(feed.end(), Some(&FeedEnd::Compacted { compact_revision: Revision(9) }));
        assert_eq!(feed.log().unwrap().upto(), Revision(2));
        assert!(feed.take_due().close);
        assert_eq!(item(&mut feed, events(3, 1)), [0; 0], "nothing more comes");
        assert_eq!(feed.log().unwrap().upto(), Revision(2));
    }
}
