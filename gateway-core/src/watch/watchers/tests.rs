//! Watchers over feeds of which the test says what they bring.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ops::Deref;
use std::rc::Rc;

use super::*;
use shard_map::GroupId;

use crate::link::LinkId;
use crate::upstream::FeedItem;
use crate::watch::log::tests::revision;
use crate::watch::{Due, FeedState, OPENING, Pace};

/// Feeds without anything behind them: the test says what they bring.
#[derive(Clone, Default)]
struct Fake {
    opened: Rc<RefCell<Vec<Opened>>>,
    marked: Rc<RefCell<BTreeSet<u64>>>,
    /// How often a feed was looked at.
    looks: Rc<Cell<usize>>,
}

/// A feed and the start that was asked for.
type Opened = (FakeFeed, Revision);

#[derive(Clone, Debug)]
struct FakeFeed {
    range: KeyRange,
    state: Rc<RefCell<FeedState<u64>>>,
    marked: Rc<RefCell<BTreeSet<u64>>>,
    looks: Rc<Cell<usize>>,
}

impl FakeFeed {
    fn handle_item(&self, item: FeedItem) {
        let mut marked = Vec::new();
        self.state.borrow_mut().handle_item(item, &mut marked);
        self.marked.borrow_mut().extend(marked);
    }

    fn take_due(&self) -> Due {
        self.state.borrow_mut().take_due()
    }

    fn sync(&self, watcher: u64) -> u64 {
        if self.state().end().is_some() {
            self.marked.borrow_mut().insert(watcher);
        }
        self.state.borrow_mut().sync(watcher)
    }
}

impl Feed for FakeFeed {
    type Subscriber = u64;

    fn state(&self) -> impl Deref<Target = FeedState<u64>> {
        self.looks.set(self.looks.get() + 1);
        self.state.borrow()
    }

    fn id(&self) -> usize {
        Rc::as_ptr(&self.state) as usize
    }
}

struct FakeSubscription(FakeFeed, u64);

impl AsRef<FakeFeed> for FakeSubscription {
    fn as_ref(&self) -> &FakeFeed {
        &self.0
    }
}

impl Drop for FakeSubscription {
    fn drop(&mut self) {
        self.0.state.borrow_mut().unsubscribe(self.1);
    }
}

impl Fake {
    fn open(&self, range: &KeyRange, pace: Pace, start: Revision, watcher: u64) -> FakeSubscription {
        let state = Rc::new(RefCell::new(FeedState::new(pace)));
        let feed = FakeFeed {
            range: range.clone(),
            state,
            marked: Rc::clone(&self.marked),
            looks: Rc::clone(&self.looks),
        };
        self.opened.borrow_mut().push((feed.clone(), start));
        subscribe(feed, watcher)
    }

    fn feed(&self, index: usize) -> FakeFeed {
        self.opened.borrow()[index].0.clone()
    }

    fn start(&self, index: usize) -> i64 {
        self.opened.borrow()[index].1.0
    }

    fn count(&self) -> usize {
        self.opened.borrow().len()
    }
}

fn subscribe(feed: FakeFeed, watcher: u64) -> FakeSubscription {
    let id = feed.state.borrow_mut().subscribe(watcher);
    FakeSubscription(feed, id)
}

impl Feeds for Fake {
    type Feed = FakeFeed;
    type Subscription = FakeSubscription;

    fn shared(&self, range: &KeyRange, _prev_kv: bool, watcher: u64) -> (FakeSubscription, u64) {
        let is_known = |feed: &FakeFeed| feed.range == *range && feed.state().end().is_none();
        let known = self.opened.borrow().iter().map(|(feed, _)| feed.clone()).find(is_known);
        match known {
            Some(feed) => {
                let token = feed.sync(watcher);
                (subscribe(feed, watcher), token)
            }
            None => (self.open(range, Pace::Shared, Revision(0), watcher), OPENING),
        }
    }

    fn history(&self, range: &KeyRange, _prev_kv: bool, start: Revision, watcher: u64) -> FakeSubscription {
        self.open(range, Pace::History, start, watcher)
    }

    fn sync(&self, feed: &FakeFeed, watcher: u64) -> u64 {
        feed.sync(watcher)
    }

    fn consumed(&self, feed: &FakeFeed, through: Revision) {
        feed.state.borrow_mut().consumed(through);
    }

    fn take_marked(&self, each: impl FnMut(u64)) {
        self.marked.take().into_iter().for_each(each);
    }
}

fn watchers() -> (Watchers<Fake>, Fake) {
    let feeds = Fake::default();
    (Watchers::new(feeds.clone()), feeds)
}

fn on(key: &str) -> Create {
    Create::new(KeyRange::single(key.to_owned()))
}

fn nothing() -> Create {
    Create::new(KeyRange::between("b", "a"))
}

fn opened(feed: &FakeFeed, revision: i64) {
    opened_after_compaction(feed, revision, 0);
}

fn opened_after_compaction(feed: &FakeFeed, revision: i64, compact_revision: i64) {
    opened_from(feed, revision, revision + 1, compact_revision);
}

fn opened_from(feed: &FakeFeed, revision: i64, start: i64, compact_revision: i64) {
    let (revision, start, compact_revision) =
        (Revision(revision), Revision(start), Revision(compact_revision));
    feed.handle_item(FeedItem::Opened { revision, start, compact_revision, term: 2 });
    if start > revision {
        // Of which it is the only one.
        in_step(feed, feed.id() as u64);
    }
}

/// It is in step, with the others of that connection.
fn in_step(feed: &FakeFeed, link: u64) {
    feed.handle_item(FeedItem::Cohort(Some(Cohort { link: LinkId(link), group: GroupId(1) })));
}

fn events(feed: &FakeFeed, numbers: &[i64], newest: i64) {
    feed.handle_item(FeedItem::Events {
        revisions: numbers.iter().map(|number| revision(*number, &["a"])).collect(),
        upto: Revision(*numbers.last().unwrap()),
        revision: Revision(newest),
        term: 2,
        bytes: 10,
    });
}

fn synced(feed: &FakeFeed, revision: i64) {
    let token = feed.take_due().sync.expect("a sync is wanted");
    let (revision, compact_revision) = (Revision(revision), Revision(3));
    feed.handle_item(FeedItem::Synced { token, revision, compact_revision, term: 2 });
}

/// A watcher whose feed holds the revisions 2, 3 and 4.
fn with_window() -> (Watchers<Fake>, Fake, FakeFeed) {
    let (mut watchers, feeds) = watchers();
    watchers.create(on("a"));
    let feed = feeds.feed(0);
    opened(&feed, 1);
    events(&feed, &[2, 3, 4], 4);
    told(&mut watchers);
    (watchers, feeds, feed)
}

/// What a client would see of all frames there are, one word each.
fn told(watchers: &mut Watchers<Fake>) -> Vec<String> {
    let mut told = Vec::new();
    while let Some(frame) = watchers.next_frame() {
        let what = match frame.told {
            Told::NotCreated(_) => "refused".to_owned(),
            Told::Created { id } => format!("created {id}"),
            Told::Canceled { id, why: Canceled::Compacted { compact_revision } } => {
                format!("canceled {id} compacted {compact_revision}")
            }
            Told::Canceled { id, why: Canceled::ByClient | Canceled::Failed(_) } => format!("canceled {id}"),
            Told::Progress { id: Some(id) } => format!("progress {id}"),
            Told::Progress { id: None } => "progress".to_owned(),
            Told::Events(events) => format!("{} events {}", events.event_count, events.id),
        };
        told.push(format!("{what} @{}", frame.stamp.revision()));
    }
    told
}

#[test]
fn created_comes_first_and_in_order() {
    let (mut watchers, feeds) = watchers();
    watchers.create(on("a"));
    watchers.create(on("b"));
    watchers.create(nothing());
    watchers.create(on("d"));
    // The later feeds open first.
    opened(&feeds.feed(2), 9);
    opened(&feeds.feed(1), 8);
    events(&feeds.feed(1), &[9], 9);
    assert_eq!(told(&mut watchers), [] as [String; 0]);
    opened(&feeds.feed(0), 7);
    assert_eq!(
        told(&mut watchers),
        ["created 0 @7", "created 1 @8", "refused @8", "1 events 1 @9", "created 2 @9"]
    );
}

#[test]
fn a_watcher_that_joins_starts_where_the_store_is() {
    let (mut watchers, feeds) = watchers();
    watchers.create(on("a"));
    let feed = feeds.feed(0);
    opened(&feed, 4);
    told(&mut watchers);
    watchers.create(on("a"));
    watchers.create(Create { start: Revision(6), ..on("a") });
    events(&feed, &[5, 6], 6);
    synced(&feed, 6);
    assert_eq!(
        told(&mut watchers),
        ["created 1 @6", "1 events 0 @5", "created 2 @6", "1 events 0 @6", "1 events 2 @6"],
        "the second starts after 6, the third at 6, which the window still holds"
    );
    assert_eq!(feeds.count(), 1, "one feed for all");
}

#[test]
fn a_start_below_zero_tells_nothing_of_the_past_and_is_compacted_by_anything() {
    let (mut watchers, feeds) = watchers();
    watchers.create(Create { start: Revision(-7), ..on("a") });
    opened(&feeds.feed(0), 5);
    events(&feeds.feed(0), &[6], 6);
    assert_eq!(told(&mut watchers), ["created 0 @5", "1 events 0 @6"]);
    assert_eq!(feeds.count(), 1, "no history");
    watchers.create(Create { start: Revision(-7), ..on("a") });
    synced(&feeds.feed(0), 6);
    assert_eq!(told(&mut watchers), ["created 1 @6", "canceled 1 compacted 3 @0"]);
}

#[test]
fn a_watch_that_opens_its_feed_learns_what_is_compacted() {
    for start_revision in [-7, 2] {
        let (mut watchers, feeds) = watchers();
        watchers.create(Create { start: Revision(start_revision), ..on("a") });
        opened_after_compaction(&feeds.feed(0), 5, 3);
        assert_eq!(told(&mut watchers), ["created 0 @5", "canceled 0 compacted 3 @0"]);
    }
}

#[test]
fn without_a_leader_a_watch_begins_where_a_replica_is() {
    let (mut watchers, feeds) = watchers();
    watchers.create(on("a"));
    watchers.create(Create { start: Revision(2), ..on("b") });
    assert_eq!(told(&mut watchers), [] as [String; 0]);
    watchers.handle_leaderless(Revision(5), Revision(4), 2);
    assert_eq!(told(&mut watchers), ["created 0 @5", "created 1 @5", "canceled 1 compacted 4 @0"]);
    // When there is a leader, nothing since is missed.
    opened(&feeds.feed(0), 8);
    assert_eq!(told(&mut watchers), [] as [String; 0]);
    let history = feeds.feed(2);
    assert_eq!(feeds.start(2), 6);
    history.handle_item(FeedItem::Opened {
        revision: Revision(8),
        start: Revision(6),
        compact_revision: Revision(0),
        term: 3,
    });
    events(&history, &[7, 8], 8);
    events(&feeds.feed(0), &[9], 9);
    assert_eq!(told(&mut watchers), ["2 events 0 @8", "1 events 0 @9"]);
}

#[test]
fn a_start_in_the_past_reads_history_and_then_joins() {
    let (mut watchers, feeds) = watchers();
    watchers.create(Create { start: Revision(2), ..on("a") });
    let shared = feeds.feed(0);
    opened(&shared, 5);
    assert_eq!(told(&mut watchers), ["created 0 @5"]);
    let history = feeds.feed(1);
    assert_eq!(feeds.start(1), 2, "from the revision wanted");
    opened_from(&history, 5, 2, 0);
    events(&history, &[2, 3], 5);
    assert_eq!(told(&mut watchers), ["2 events 0 @5"], "bundled, at the store's revision");
    events(&shared, &[6], 6);
    assert_eq!(told(&mut watchers), [] as [String; 0], "not before its turn");
    events(&history, &[5], 5);
    assert_eq!(told(&mut watchers), ["1 events 0 @5", "1 events 0 @6"]);
    assert!(history.take_due().close, "history is not needed any more");
    assert!(!shared.take_due().close);
}

#[test]
fn history_that_is_gone_cancels() {
    let (mut watchers, feeds) = watchers();
    watchers.create(Create { start: Revision(2), ..on("a") });
    opened(&feeds.feed(0), 5);
    told(&mut watchers);
    feeds.feed(1).handle_item(FeedItem::Compacted { compact_revision: Revision(4) });
    assert_eq!(told(&mut watchers), ["canceled 0 compacted 4 @0"]);
    assert_eq!(watchers.count(), 0);
    assert!(feeds.feed(0).take_due().close, "nobody is left");
}

#[test]
fn the_id_of_a_compacted_watch_is_taken_until_the_client_cancels_it() {
    let (mut watchers, feeds) = watchers();
    watchers.create(Create { start: Revision(2), id: Some(1), ..on("a") });
    opened(&feeds.feed(0), 5);
    told(&mut watchers);
    feeds.feed(1).handle_item(FeedItem::Compacted { compact_revision: Revision(4) });
    assert_eq!(told(&mut watchers), ["canceled 1 compacted 4 @0"]);
    watchers.create(Create { id: Some(1), ..on("b") });
    assert_eq!(told(&mut watchers), ["refused @5"]);
    assert_eq!(watchers.count(), 0);
    assert_eq!((watchers.free_id(), watchers.free_id()), (0, 2));
    watchers.cancel(1);
    assert_eq!(told(&mut watchers), ["canceled 1 @5"]);
    watchers.cancel(1);
    assert_eq!(told(&mut watchers), [] as [String; 0], "nobody has the id");
}

#[test]
fn a_compacted_start_is_cancelled_although_the_window_holds_it() {
    let (mut watchers, _, feed) = with_window();
    for start_revision in [2, 3] {
        watchers.create(Create { start: Revision(start_revision), ..on("a") });
    }
    synced(&feed, 4);
    assert_eq!(
        told(&mut watchers)[..3],
        ["created 1 @4", "canceled 1 compacted 3 @0", "created 2 @4"],
        "3 is the oldest that can be read"
    );
    assert_eq!(watchers.count(), 2);
}

#[test]
fn the_value_before_the_compacted_revision_is_not_told_from_the_window() {
    let (mut watchers, feeds, feed) = with_window();
    for start_revision in [3, 4] {
        watchers.create(Create { start: Revision(start_revision), prev_kv: true, ..on("a") });
    }
    synced(&feed, 4);
    assert_eq!(told(&mut watchers), ["created 1 @4", "created 2 @4", "1 events 2 @4"]);
    let histories: Vec<i64> = (1..feeds.count()).map(|index| feeds.start(index)).collect();
    assert_eq!(histories, [3]);
    let history = feeds.feed(1);
    opened_from(&history, 4, 3, 0);
    assert_eq!(told(&mut watchers), [] as [String; 0], "although the window has both");
    events(&history, &[3], 4);
    assert_eq!(
        told(&mut watchers),
        ["1 events 1 @4", "1 events 1 @4"],
        "3 from the history, 4 from the window"
    );
}

#[test]
fn the_end_of_a_feed_is_told_behind_its_last_event() {
    let (mut watchers, feeds) = watchers();
    watchers.create(on("a"));
    let feed = feeds.feed(0);
    opened(&feed, 1);
    told(&mut watchers);
    events(&feed, &[2], 2);
    feed.handle_item(FeedItem::Compacted { compact_revision: Revision(9) });
    assert_eq!(told(&mut watchers), ["1 events 0 @2", "canceled 0 compacted 9 @0"]);
}

#[test]
fn a_feed_that_lost_its_place_cancels_only_those_who_needed_it() {
    let (mut watchers, feeds) = watchers();
    watchers.create(on("a"));
    watchers.create(Create { start: Revision(50), ..on("a") });
    opened(&feeds.feed(0), 5);
    synced(&feeds.feed(0), 5);
    assert_eq!(told(&mut watchers), ["created 0 @5", "created 1 @5"]);
    feeds.feed(0).handle_item(FeedItem::Compacted { compact_revision: Revision(20) });
    assert_eq!(told(&mut watchers), ["canceled 0 compacted 20 @0"]);
    let next = feeds.feed(1);
    opened(&next, 30);
    events(&next, &[31, 50], 50);
    assert_eq!(told(&mut watchers), ["1 events 1 @50"]);
}

#[test]
fn progress_waits_for_every_watcher_and_every_event() {
    let (mut watchers, feeds) = watchers();
    watchers.create(on("a"));
    watchers.create(on("b"));
    let (a, b) = (feeds.feed(0), feeds.feed(1));
    opened(&a, 4);
    opened(&b, 4);
    told(&mut watchers);
    watchers.request_progress();
    synced(&a, 7);
    assert_eq!(told(&mut watchers), [] as [String; 0], "b is not synced");
    events(&b, &[5], 6);
    synced(&b, 6);
    assert_eq!(told(&mut watchers), ["1 events 1 @5", "progress @6"], "the lower of the two");
    // A watcher of the future cannot be spoken for.
    watchers.create(Create { start: Revision(100), ..on("a") });
    synced(&a, 8);
    assert_eq!(told(&mut watchers), ["created 2 @8"]);
    watchers.request_progress();
    synced(&a, 9);
    synced(&b, 9);
    assert_eq!(told(&mut watchers), [] as [String; 0]);
}

#[test]
fn what_comes_after_the_feeds_have_spoken_waits_for_the_progress_answer() {
    let (mut watchers, feeds) = watchers();
    watchers.create(on("a"));
    let feed = feeds.feed(0);
    opened(&feed, 4);
    told(&mut watchers);
    watchers.request_progress();
    synced(&feed, 5);
    events(&feed, &[6, 7], 7);
    assert_eq!(told(&mut watchers), ["progress @5", "1 events 0 @6", "1 events 0 @7"]);
}

#[test]
fn events_beyond_a_progress_answer_wait_for_it() {
    let (mut watchers, feeds) = watchers();
    watchers.create(on("a"));
    watchers.create(on("b"));
    let (a, b) = (feeds.feed(0), feeds.feed(1));
    opened(&a, 4);
    opened(&b, 4);
    told(&mut watchers);
    watchers.request_progress();
    synced(&a, 5);
    events(&a, &[8], 8);
    assert_eq!(told(&mut watchers), ["1 events 0 @8"]);
    synced(&b, 6);
    events(&a, &[9, 11], 11);
    assert_eq!(
        told(&mut watchers),
        [] as [String; 0],
        "b may have something before 8, and 9 waits for the answer"
    );
    watchers.create(on("a"));
    watchers.cancel(7);
    watchers.handle_revision(Revision(11), 2);
    watchers.create(nothing());
    synced(&a, 11);
    assert_eq!(told(&mut watchers), [] as [String; 0], "nor is a watch announced");
    events(&b, &[7, 10], 10);
    synced(&b, 10);
    assert_eq!(
        told(&mut watchers),
        [
            "1 events 1 @7",
            "progress @8",
            "1 events 0 @9",
            "created 2 @11",
            "refused @11",
            "1 events 1 @10",
            "1 events 0 @11",
        ]
    );
}

#[test]
fn progress_that_a_watcher_falls_behind_is_given_up_and_nothing_waits_for_it() {
    let (mut watchers, feeds) = watchers();
    watchers.create(on("a"));
    watchers.create(on("b"));
    let (a, b) = (feeds.feed(0), feeds.feed(1));
    opened(&a, 4);
    opened(&b, 4);
    told(&mut watchers);
    watchers.request_progress();
    synced(&a, 5);
    events(&a, &[8], 8);
    told(&mut watchers);
    synced(&b, 6);
    events(&a, &[9], 9);
    assert_eq!(told(&mut watchers), [] as [String; 0]);
    b.handle_item(FeedItem::Failed(crate::Failure::Stopping));
    assert_eq!(told(&mut watchers), ["canceled 1 @8"]);
    synced(&a, 9);
    assert_eq!(told(&mut watchers), ["progress @8", "1 events 0 @9"], "the others had been asked again");
    // One that moves may be behind for long.
    watchers.create(on("b"));
    opened(&feeds.feed(2), 9);
    watchers.request_progress();
    assert_eq!(told(&mut watchers), ["created 2 @9"]);
    synced(&a, 9);
    events(&a, &[10], 10);
    events(&feeds.feed(2), &[11], 11);
    assert_eq!(told(&mut watchers), ["1 events 0 @10", "1 events 2 @11"]);
    feeds.feed(2).handle_item(FeedItem::Cohort(None));
    events(&a, &[12], 12);
    assert_eq!(told(&mut watchers), ["1 events 0 @12"]);
    in_step(&feeds.feed(2), 77);
    assert_eq!(told(&mut watchers), [""; 0]);
    synced(&feeds.feed(2), 12);
    assert_eq!(told(&mut watchers), [""; 0]);
    synced(&a, 12);
    assert_eq!(told(&mut watchers), ["progress @12"]);
}

#[test]
fn no_request_looks_at_all_watchers() {
    let (mut watchers, feeds) = watchers();
    let count = 2_000;
    for number in 0..count {
        watchers.create(Create { progress_notify: true, ..on(&number.to_string()) });
    }
    for number in 0..count {
        opened(&feeds.feed(number), 4);
        in_step(&feeds.feed(number), 1);
    }
    assert_eq!(told(&mut watchers).len(), count);
    feeds.looks.set(0);
    for id in 0..count as i64 {
        watchers.cancel(1_000_000 + id);
        assert_eq!(told(&mut watchers), [""; 0]);
    }
    assert_eq!(feeds.looks.get(), 0);
    for revision in 5..105 {
        watchers.request_progress();
        synced(&feeds.feed(0), revision);
        assert_eq!(told(&mut watchers), [format!("progress @{revision}")]);
    }
    assert!(feeds.looks.get() < 100 * 10, "{} looks for 100 answers", feeds.looks.get());
    for number in 0..500 {
        watchers.cancel(number);
    }
    assert_eq!(told(&mut watchers).len(), 500);
    assert!(feeds.looks.get() < 1_000 + 500 * 10, "{} looks", feeds.looks.get());
    // What wishes to be told now and then is so, one by one.
    feeds.looks.set(0);
    watchers.handle_tick();
    for number in 500..count {
        synced(&feeds.feed(number), 200);
    }
    assert_eq!(told(&mut watchers).len(), count - 500);
    assert!(feeds.looks.get() < count * 20, "{} looks", feeds.looks.get());
}

/// A cohort is as complete as the one that speaks for it, and no more is said.
#[test]
fn one_feed_speaks_for_all_that_are_in_step_with_it() {
    let (mut watchers, feeds) = watchers();
    for key in ["a", "b", "c"] {
        watchers.create(on(key));
    }
    for (number, link) in [(0, 1), (1, 1), (2, 2)] {
        opened(&feeds.feed(number), 4);
        in_step(&feeds.feed(number), link);
    }
    told(&mut watchers);
    watchers.request_progress();
    assert_eq!(feeds.feed(1).take_due().sync, None);
    events(&feeds.feed(1), &[6], 6);
    synced(&feeds.feed(0), 8);
    assert_eq!(told(&mut watchers), ["1 events 1 @6"], "the other cohort has not spoken");
    synced(&feeds.feed(2), 7);
    assert_eq!(told(&mut watchers), ["progress @7"]);
    // One that leaves the cohort before it has spoken is not spoken for.
    watchers.request_progress();
    feeds.feed(1).handle_item(FeedItem::Cohort(None));
    synced(&feeds.feed(0), 9);
    synced(&feeds.feed(2), 9);
    assert_eq!(told(&mut watchers), [""; 0]);
    in_step(&feeds.feed(1), 2);
    assert_eq!(told(&mut watchers), ["progress @9"]);
    // Who speaks for the others goes away, or moves.
    watchers.request_progress();
    watchers.cancel(0);
    assert_eq!(told(&mut watchers), ["canceled 0 @9"]);
    in_step(&feeds.feed(1), 3);
    assert_eq!(told(&mut watchers), [""; 0]);
    synced(&feeds.feed(1), 10);
    assert_eq!(told(&mut watchers), [""; 0], "it speaks for where it is, not for where it was asked");
    synced(&feeds.feed(2), 11);
    assert_eq!(told(&mut watchers), ["progress @10"]);
}

/// A busy stream always has something else to send.
#[test]
fn progress_comes_although_events_never_pause() {
    let (mut watchers, feeds) = watchers();
    watchers.create(on("a"));
    let feed = feeds.feed(0);
    opened(&feed, 4);
    told(&mut watchers);
    watchers.request_progress();
    synced(&feed, 4);
    let mut number = 5;
    events(&feed, &[number], number);
    while let Some(frame) = watchers.next_frame() {
        if matches!(frame.told, Told::Progress { .. }) {
            assert_eq!(frame.stamp.revision().0, number - 1);
            return;
        }
        assert!(number < 20, "no answer");
        number += 1;
        events(&feed, &[number], number);
    }
}

#[test]
fn a_watch_begins_behind_what_the_stream_has_told() {
    let (mut watchers, feeds) = watchers();
    watchers.create(on("a"));
    opened(&feeds.feed(0), 4);
    watchers.create(on("b"));
    events(&feeds.feed(0), &[5, 6, 7], 7);
    assert_eq!(told(&mut watchers).len(), 4);
    opened(&feeds.feed(1), 5);
    events(&feeds.feed(1), &[8], 8);
    assert_eq!(told(&mut watchers), ["created 1 @7", "1 events 1 @8"]);
}

#[test]
fn ticks_tell_quiet_watchers_only() {
    let (mut watchers, feeds) = watchers();
    watchers.create(Create { progress_notify: true, ..on("a") });
    watchers.create(on("a"));
    let feed = feeds.feed(0);
    opened(&feed, 4);
    synced(&feed, 4);
    events(&feed, &[5], 5);
    assert_eq!(told(&mut watchers).len(), 4);
    watchers.handle_tick();
    assert!(feed.take_due().sync.is_none(), "it was sent an event");
    watchers.handle_tick();
    synced(&feed, 8);
    assert_eq!(told(&mut watchers), ["progress 0 @8"]);
}

#[test]
fn a_cancel_before_creation_is_answered_after_it() {
    let (mut watchers, feeds) = watchers();
    watchers.create(on("a"));
    watchers.cancel(0);
    assert_eq!(told(&mut watchers), [] as [String; 0]);
    opened(&feeds.feed(0), 4);
    assert_eq!(told(&mut watchers), ["created 0 @4", "canceled 0 @4"]);
    assert_eq!(watchers.count(), 0);
}

#[test]
fn a_watcher_that_falls_out_of_the_window_reads_history() {
    let (mut watchers, feeds) = watchers();
    watchers.create(on("a"));
    let shared = feeds.feed(0);
    opened(&shared, 1);
    told(&mut watchers);
    // 40 revisions of 40 KiB: more than the window.
    for number in 2..42 {
        let mut large = revision(number, &["a"]);
        let mut event = large.events[0].clone();
        event.kv.value = vec![0; 40 << 10].into();
        large.events = [event].into();
        shared.handle_item(FeedItem::Events {
            revisions: vec![large],
            upto: Revision(number),
            revision: Revision(number),
            term: 2,
            bytes: 40 << 10,
        });
    }
    assert_eq!(told(&mut watchers), [] as [String; 0]);
    assert_eq!(feeds.start(1), 2, "history from where it was");
    let floor = shared.state().log().unwrap().floor().0;
    let history = feeds.feed(1);
    opened_from(&history, 41, 2, 0);
    let numbers: Vec<i64> = (2..=floor).collect();
    events(&history, &numbers, 41);
    let told = told(&mut watchers);
    assert_eq!(told[0], format!("{} events 0 @41", floor - 1));
    assert_eq!(told.len() as i64, 1 + 41 - floor, "the rest comes from the window");
}
