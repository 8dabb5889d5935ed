//! The watchers of one client stream: etcd's watch protocol as a plain struct. Requests go in, what the client is told
//! comes out; what the feeds bring is looked at when that is asked for. How it is put in messages is the door's business.
//!
//! Order on the stream: a watcher's `created` comes first, in the order of the requests; then its events, by revision;
//! a progress answer never before an event it speaks of, and never below what the stream has told ([`headers`]).

mod compacted;
mod headers;
mod progress;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use compacted::CompactedIds;
use headers::{Draft, Headers, Says};
use keyspace::{Event, EventKind, KeyRange, Revision};
use progress::{Progress, Standing};

use super::feed_state::{FeedEnd, WINDOW_BYTES};
use super::log::Entry;
use super::{Feed, Feeds};
use crate::failure::Failure;
use crate::mutant::mutant;
use crate::upstream::Cohort;

pub use headers::{Frame, Stamp};

/// Most revisions of history in one response, as in etcd.
const HISTORY_REVISIONS: usize = 1000;
/// Bytes of events after which a response of history ends.
const HISTORY_BYTES: usize = 1 << 20;
/// A watcher that is further behind than this gets its events bundled. etcd's buffer of responses is as long.
const LIVE_BEHIND_MAX: usize = 128;
/// Responses and creations that may wait before the stream reads no more requests.
const WAITING_MAX: usize = 1024;

/// A watch that a client wants.
#[derive(Clone, Debug)]
pub struct Create {
    /// None: whichever is free.
    pub id: Option<i64>,
    /// The keys.
    pub range: KeyRange,
    /// First revision wanted; 0 for "from now on".
    pub start: Revision,
    /// Whether events tell what was there before.
    pub prev_kv: bool,
    /// Events that it does not want.
    pub filters: Filters,
    /// Large responses may come in parts.
    pub fragment: bool,
    /// It wishes to be told now and then how far it has come.
    pub progress_notify: bool,
}

impl Create {
    /// From now on, and nothing special.
    pub fn new(range: KeyRange) -> Create {
        Create {
            id: None,
            range,
            start: Revision(0),
            prev_kv: false,
            filters: Filters::default(),
            fragment: false,
            progress_notify: false,
        }
    }
}

/// What a client is told.
#[derive(Clone, Debug)]
pub enum Told {
    /// The watch is there; its events follow.
    Created {
        /// Which one.
        id: i64,
    },
    /// There is no such watch.
    NotCreated(NotCreated),
    /// Events of a watch.
    Events(Events),
    /// This watch was told everything up to the revision of the header; without an id, all that the client knows of were.
    Progress {
        /// Which one.
        id: Option<i64>,
    },
    /// The watch is over.
    Canceled {
        /// Which one.
        id: i64,
        /// The reason.
        why: Canceled,
    },
}

/// Why there is no watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotCreated {
    /// It would have no keys.
    EmptyRange,
    /// Another has the id.
    IdTaken,
    /// Its feed cannot be had.
    Failed(Failure),
}

/// Why a watch is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Canceled {
    /// The client wanted it.
    ByClient,
    /// The revisions that it needs are gone.
    Compacted {
        /// The oldest revision that can be read.
        compact_revision: Revision,
    },
    /// Its feed cannot go on.
    Failed(Failure),
}

/// Events of whole revisions, in ascending order.
#[derive(Clone, Debug)]
pub struct Events {
    /// Of which watch.
    pub id: i64,
    /// Revision by revision.
    pub parts: Vec<Part>,
    /// How many events those are.
    pub event_count: usize,
    /// The client takes them in several messages, too.
    pub fragment: bool,
}

/// The events of one revision, as far as a watcher wants them.
#[derive(Clone, Debug)]
pub struct Part {
    /// The revision.
    pub entry: Arc<Entry>,
    /// What is left out of it.
    pub filters: Filters,
}

impl Part {
    /// Its events.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.entry.events.iter().filter(|event| self.filters.passes(event))
    }
}

/// See the module.
pub struct Watchers<F: Feeds> {
    feeds: F,
    /// Boxed, since the nodes of a map are half empty.
    watchers: BTreeMap<u64, Box<Watcher<F::Subscription>>>,
    by_id: BTreeMap<i64, u64>,
    /// Ids whose watch a compaction cancelled.
    compacted_ids: CompactedIds,
    next_key: u64,
    next_id: i64,
    /// Creations without an answer, in the order of the requests.
    creating: VecDeque<Creating>,
    /// Responses that are made.
    out: VecDeque<Draft>,
    /// Watchers to look at.
    ready: VecDeque<u64>,
    progress: VecDeque<Progress<F::Feed>>,
    /// How many of these answers are to requests.
    requested: usize,
    standing: Standing,
    headers: Headers,
    /// Watchers that have something to say, and may not before the ceiling is lifted.
    held: Vec<u64>,
    /// Watchers that wish to be told of progress.
    notified: BTreeSet<u64>,
}

#[derive(Debug)]
enum Creating {
    Watcher(u64),
    Refused(Draft),
}

#[derive(Debug)]
struct Watcher<S> {
    id: i64,
    range: KeyRange,
    prev_kv: bool,
    filters: Filters,
    fragment: bool,
    progress_notify: bool,
    /// As asked for; 0 for "from now on".
    start: Revision,
    shared: S,
    state: State<S>,
    queued: bool,
    /// Events were sent since the last tick.
    active: bool,
    /// The client cancelled it before it was created.
    cancelled: bool,
    /// The one that it was in, when it was last looked at.
    cohort: Option<Cohort>,
    /// It is to be told of progress.
    is_owed_progress: bool,
}

#[derive(Debug)]
enum State<S> {
    /// Not announced: waits for the sync that tells where "now" is, unless it is known otherwise.
    Opening { token: u64, known: Option<Known> },
    /// In step with the shared feed, or at most its window behind.
    Live {
        /// First revision not sent.
        next: Revision,
    },
    /// Further behind: reads history, beyond `beyond` and then until the window has the rest.
    CatchingUp { next: Revision, beyond: Revision, history: S },
}

/// Where a store is.
#[derive(Clone, Copy, Debug)]
struct Known {
    revision: Revision,
    compact_revision: Revision,
    term: u64,
}

/// Events that a watcher does not want.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    /// Puts.
    pub no_put: bool,
    /// Deletions.
    pub no_delete: bool,
}

/// What looking at a watcher led to.
enum Step {
    Draft(Draft),
    /// There is nothing more for now.
    LastDraft(Draft),
    /// Look again at once.
    Again,
    Nothing,
    /// There is something, above the ceiling.
    Held,
    /// The watcher is at its end, which this response tells.
    End(Draft),
}

impl<F: Feeds> Watchers<F> {
    /// None yet.
    pub fn new(feeds: F) -> Watchers<F> {
        Watchers {
            feeds,
            watchers: BTreeMap::new(),
            by_id: BTreeMap::new(),
            compacted_ids: CompactedIds::default(),
            next_key: 0,
            next_id: 0,
            creating: VecDeque::new(),
            out: VecDeque::new(),
            ready: VecDeque::new(),
            progress: VecDeque::new(),
            requested: 0,
            standing: Standing::default(),
            headers: Headers::default(),
            held: Vec::new(),
            notified: BTreeSet::new(),
        }
    }

    /// Where its feeds come from.
    pub fn feeds(&self) -> &F {
        &self.feeds
    }

    /// How many watchers there are.
    pub fn count(&self) -> usize {
        self.watchers.len()
    }

    /// Whether the client should be left waiting with further requests.
    pub fn is_congested(&self) -> bool {
        self.out.len() + self.creating.len() >= WAITING_MAX
    }

    /// Whether watches wait to be created.
    pub fn is_creating(&self) -> bool {
        !self.creating.is_empty()
    }

    /// There is no leader, and a replica is where it says here: watches that wait to be created begin behind that.
    pub fn handle_leaderless(&mut self, revision: Revision, compact_revision: Revision, term: u64) {
        for creating in &self.creating {
            if let Creating::Watcher(key) = creating
                && let Some(watcher) = self.watchers.get_mut(key)
                && let State::Opening { known, .. } = &mut watcher.state
            {
                *known = Some(Known { revision, compact_revision, term });
            }
        }
        self.announce_created();
    }

    /// Whether [`Watchers::handle_tick`] has something to do.
    pub fn wants_ticks(&self) -> bool {
        !self.notified.is_empty()
    }

    /// The store is known to be at `revision` by other means: for the headers of answers that no feed stands behind.
    pub fn handle_revision(&mut self, revision: Revision, term: u64) {
        self.headers.handle_revision(revision, term);
    }

    /// A progress interval has passed: watchers that asked for it and were sent nothing are told where they are.
    pub fn handle_tick(&mut self) {
        let mut quiet = Vec::new();
        for key in &self.notified {
            let watcher = self.watchers.get_mut(key);
            if watcher.is_some_and(|watcher| !std::mem::take(&mut watcher.active)) {
                quiet.push(*key);
            }
        }
        for key in quiet {
            self.notify_progress(key);
        }
    }

    /// The next response, if there is one.
    pub fn next_frame(&mut self) -> Option<Frame> {
        let draft = self.next_draft()?;
        Some(self.headers.stamp(draft))
    }

    fn next_draft(&mut self) -> Option<Draft> {
        loop {
            if let Some(draft) = self.out.pop_front() {
                return Some(draft);
            }
            self.take_marked();
            self.look_at_progress();
            let Some(key) = self.ready.pop_front() else {
                match self.poll_progress() {
                    Some(draft) => return Some(draft),
                    None if self.ready.is_empty() => return None,
                    None => continue,
                }
            };
            if let Some(draft) = self.look_at(key) {
                return Some(draft);
            }
        }
    }

    fn take_marked(&mut self) {
        let Watchers { feeds, watchers, ready, .. } = self;
        feeds.take_marked(|key| queue(watchers, ready, key));
    }

    /// The client wants a watch.
    pub fn create(&mut self, create: Create) {
        let Create { id, range, start, prev_kv, filters, fragment, progress_notify } = create;
        let refused = if range.is_empty() {
            Some(NotCreated::EmptyRange)
        } else if id.is_some_and(|id| self.is_taken(id)) {
            Some(NotCreated::IdTaken)
        } else {
            None
        };
        if let Some(why) = refused {
            self.creating.push_back(Creating::Refused(refusal(why)));
            self.announce_created();
            return;
        }
        let id = id.unwrap_or_else(|| self.free_id());
        let key = self.next_key;
        self.next_key += 1;
        // The message that it came in is forgotten.
        let range = range.own();
        let (shared, token) = self.feeds.shared(&range, prev_kv, key);
        let other = self.by_id.insert(id, key);
        assert!(other.is_none(), "an id names one watcher");
        if progress_notify {
            self.notified.insert(key);
        }
        let state = State::Opening { token, known: None };
        let watcher = Watcher {
            id,
            range,
            prev_kv,
            filters,
            fragment,
            progress_notify,
            start,
            shared,
            state,
            queued: false,
            active: false,
            cancelled: false,
            cohort: None,
            is_owed_progress: false,
        };
        let other = self.watchers.insert(key, Box::new(watcher));
        assert!(other.is_none(), "a key names one watcher");
        assert_eq!(self.watchers.len(), self.by_id.len(), "each watcher has an id");
        assert!(self.notified.len() <= self.watchers.len(), "only watchers are notified");
        self.creating.push_back(Creating::Watcher(key));
        self.announce_created();
    }

    fn free_id(&mut self) -> i64 {
        while self.is_taken(self.next_id) {
            self.next_id += 1;
        }
        debug_assert!(!self.is_taken(self.next_id), "an id names one watcher");
        self.next_id += 1;
        self.next_id - 1
    }

    fn is_taken(&self, id: i64) -> bool {
        self.by_id.contains_key(&id) || self.compacted_ids.contains(id)
    }

    /// The client wants a watch no more.
    pub fn cancel(&mut self, id: i64) {
        if self.compacted_ids.remove(id) {
            self.out.push_back(cancelled(id));
            return;
        }
        let Some(&key) = self.by_id.get(&id) else { return };
        let Some(watcher) = self.watchers.get_mut(&key) else { return };
        if let State::Opening { .. } = watcher.state {
            watcher.cancelled = true;
            return;
        }
        self.remove(key);
        self.out.push_back(cancelled(id));
    }

    fn remove(&mut self, key: u64) {
        if let Some(watcher) = self.watchers.remove(&key) {
            let was_notified = self.notified.remove(&key);
            assert_eq!(was_notified, watcher.progress_notify, "who wants to be told is known");
            assert_eq!(self.by_id.remove(&watcher.id), Some(key), "an id names its watcher");
            self.unsettle(key, &watcher);
        }
    }

    /// Lets the first creation that is not answered go on.
    fn announce_created(&mut self) {
        while let Some(Creating::Refused(_)) = self.creating.front() {
            let Some(Creating::Refused(draft)) = self.creating.pop_front() else { return };
            self.out.push_back(draft);
        }
        if let Some(Creating::Watcher(key)) = self.creating.front() {
            self.queue(*key);
        }
    }

    fn queue(&mut self, key: u64) {
        queue(&mut self.watchers, &mut self.ready, key);
    }

    /// Looks at a watcher until it has a response or nothing to say.
    fn look_at(&mut self, key: u64) -> Option<Draft> {
        loop {
            let watcher = self.watchers.get_mut(&key)?;
            watcher.queued = false;
            let step = match watcher.state {
                State::Opening { token, known } => {
                    let is_first =
                        matches!(self.creating.front(), Some(Creating::Watcher(first)) if *first == key);
                    if !is_first {
                        return None;
                    }
                    if self.headers.ceiling().is_some() {
                        self.held.push(key);
                        return None;
                    }
                    return self.look_at_opening(key, token, known);
                }
                State::Live { next } => self.look_at_live(key, next),
                State::CatchingUp { next, .. } => self.look_at_history(key, next),
            };
            match step {
                Step::Draft(draft) => {
                    // There may be more; others have their turn first.
                    self.queue(key);
                    return Some(draft);
                }
                Step::LastDraft(draft) => return Some(draft),
                Step::Again => {}
                Step::Nothing => return None,
                Step::Held => {
                    self.held.push(key);
                    return None;
                }
                Step::End(draft) => {
                    self.remove(key);
                    if let Told::Canceled { id, why: Canceled::Compacted { .. } } = draft.told {
                        self.compacted_ids.insert(id);
                    }
                    return Some(draft);
                }
            }
        }
    }

    fn look_at_opening(&mut self, key: u64, token: u64, known: Option<Known>) -> Option<Draft> {
        assert!(self.headers.ceiling().is_none(), "whoever is created is told the newest revision");
        let watcher = self.watchers.get_mut(&key)?;
        let (end, synced, compact_revision, term) = {
            let feed = watcher.shared.as_ref().state();
            let (synced, compact_revision) = (feed.synced(token), feed.compact_revision());
            match known {
                Some(known) if synced.is_none() && feed.end().is_none() => {
                    let compact_revision = compact_revision.max(known.compact_revision);
                    (None, Some(known.revision), compact_revision, known.term)
                }
                Some(_) | None => (feed.end().cloned(), synced, compact_revision, feed.term()),
            }
        };
        let draft = match (synced, end) {
            (Some(revision), _) => {
                let revision = self.headers.now(revision);
                // As etcd does it up to 3.6.5, a start below zero is older than any compaction, and tells nothing of the past.
                let next = if watcher.start <= Revision(0) { revision.next() } else { watcher.start };
                watcher.state = State::Live { next };
                self.standing.announce(key, watcher.start, revision);
                let (id, is_cancelled) = (watcher.id, watcher.cancelled);
                let is_past = watcher.start != Revision(0);
                let is_compacted =
                    compact_revision > Revision(0) && is_past && watcher.start < compact_revision;
                // The value before its first event is compacted, but may still lie in the window.
                let needs_history = watcher.prev_kv && is_past && watcher.start == compact_revision;
                if is_cancelled {
                    self.remove(key);
                    self.out.push_back(cancelled(id));
                } else if is_compacted {
                    self.remove(key);
                    self.compacted_ids.insert(id);
                    self.out.push_back(compacted(id, compact_revision, term));
                } else {
                    if needs_history {
                        self.read_history(key, next, compact_revision);
                    }
                    self.queue(key);
                }
                Draft { told: Told::Created { id }, says: Says::Created { revision, term } }
            }
            (None, Some(FeedEnd::Compacted { .. })) => {
                // The feed that was joined had lost its place; another begins from now.
                let (shared, token) = self.feeds.shared(&watcher.range, watcher.prev_kv, key);
                watcher.shared = shared;
                watcher.state = State::Opening { token, known: None };
                return None;
            }
            (None, Some(FeedEnd::Failed(failure))) => {
                self.remove(key);
                refusal(NotCreated::Failed(failure))
            }
            (None, None) => return None,
        };
        let created = self.creating.pop_front();
        assert!(
            matches!(created, Some(Creating::Watcher(first)) if first == key),
            "they are told of in order"
        );
        // What the next one gives rise to comes behind this response and what is already made.
        let made = std::mem::take(&mut self.out);
        self.announce_created();
        let after = std::mem::replace(&mut self.out, made);
        self.out.extend(after);
        Some(draft)
    }

    /// Lets a watcher go on with what the group remembers from `next` on.
    fn read_history(&mut self, key: u64, next: Revision, beyond: Revision) {
        if let Some(watcher) = self.watchers.get_mut(&key) {
            let history = self.feeds.history(&watcher.range, watcher.prev_kv, next, key);
            watcher.state = State::CatchingUp { next, beyond, history };
            self.settle(key);
        }
    }

    fn look_at_live(&mut self, key: u64, next: Revision) -> Step {
        let Some(watcher) = self.watchers.get_mut(&key) else { return Step::Nothing };
        debug_assert!(!watcher.cancelled, "who is cancelled is told of nothing more");
        let feed = watcher.shared.as_ref().state();
        if feed.cohort() != watcher.cohort {
            drop(feed);
            self.settle(key);
            return Step::Again;
        }
        // What the window holds is told first, whatever became of the feed.
        let in_window = feed.log().filter(|log| next > log.floor());
        let told = in_window.filter(|log| log.from(next).len() == 0).map(|log| log.upto());
        match feed.end() {
            Some(FeedEnd::Compacted { compact_revision }) if in_window.is_none() || told.is_some() => {
                let next = told.map_or(next, |upto| next.max(upto.next()));
                if next < *compact_revision {
                    return Step::End(compacted(watcher.id, *compact_revision, feed.term()));
                }
                drop(feed);
                let (shared, _) = self.feeds.shared(&watcher.range, watcher.prev_kv, key);
                watcher.shared = shared;
                watcher.state = State::Live { next };
                return Step::Nothing;
            }
            Some(FeedEnd::Failed(failure)) => {
                return Step::End(failed(watcher.id, failure.clone()));
            }
            Some(FeedEnd::Compacted { .. }) | None => {}
        }
        let Some(log) = feed.log() else { return Step::Nothing };
        if next <= log.floor() {
            drop(feed);
            self.read_history(key, next, Revision(0));
            return Step::Again;
        }
        let entries = log.from(next);
        let is_behind = entries.len() > LIVE_BEHIND_MAX;
        let is_last = entries.len() == 1 && feed.end().is_none();
        let mut allowed = entries.take_while(|entry| self.headers.allows(entry.revision)).peekable();
        let Some(&entry) = allowed.peek() else {
            return if log.from(next).len() > 0 { Step::Held } else { Step::Nothing };
        };
        let is_oversized = entry.bytes() > WINDOW_BYTES;
        let (step, after) = if is_behind {
            let revision = self.headers.under_ceiling(log.revision());
            watcher.bundle(allowed, revision, feed.term())
        } else {
            drop(allowed);
            watcher.bundle(std::iter::once(entry), entry.revision, feed.term())
        };
        assert!(after > next, "nothing is told twice, and there is an end");
        watcher.state = State::Live { next: after };
        drop(feed);
        if is_oversized {
            let feed = watcher.shared.as_ref().clone();
            self.feeds.consumed(&feed, after.previous());
        }
        let Step::Draft(draft) = step else { return step };
        watcher.active = true;
        // What comes later marks it.
        if is_last { Step::LastDraft(draft) } else { Step::Draft(draft) }
    }

    fn look_at_history(&mut self, key: u64, next: Revision) -> Step {
        let Some(watcher) = self.watchers.get_mut(&key) else { return Step::Nothing };
        let State::CatchingUp { next: position, beyond, history } = &mut watcher.state else {
            return Step::Again;
        };
        let source = history.as_ref().clone();
        let feed = source.state();
        if let Some(log) = feed.log()
            && log.from(next).len() > 0
        {
            let allowed = log.from(next).take_while(|entry| self.headers.allows(entry.revision));
            let entries: Vec<Arc<Entry>> = allowed.take(HISTORY_REVISIONS).cloned().collect();
            if entries.is_empty() {
                return Step::Held;
            }
            let (revision, term) = (self.headers.under_ceiling(log.revision()), feed.term());
            drop(feed);
            let (step, after) = watcher.bundle(entries.iter(), revision, term);
            assert!(after > next, "nothing is told twice, and there is an end");
            if let State::CatchingUp { next: position, .. } = &mut watcher.state {
                *position = after;
            }
            watcher.active |= matches!(step, Step::Draft(_));
            self.feeds.consumed(&source, after.previous());
            return step;
        }
        match feed.end() {
            Some(FeedEnd::Compacted { compact_revision }) if mutant!(CompactionSkipped) => {
                let next = *compact_revision;
                drop(feed);
                watcher.state = State::Live { next };
                return Step::Again;
            }
            Some(FeedEnd::Compacted { compact_revision }) => {
                return Step::End(compacted(watcher.id, *compact_revision, feed.term()));
            }
            Some(FeedEnd::Failed(failure)) => {
                return Step::End(failed(watcher.id, failure.clone()));
            }
            None => {}
        }
        let next = feed.log().map_or(next, |log| next.max(log.upto().next()));
        *position = next;
        drop(feed);
        let caught_up = next > *beyond && {
            let shared = watcher.shared.as_ref().state();
            shared.end().is_some() || shared.log().is_some_and(|log| log.floor() < next)
        };
        if !caught_up {
            return Step::Nothing;
        }
        watcher.state = State::Live { next };
        Step::Again
    }
}

/// Has a watcher looked at, if it is there, once.
fn queue<S>(watchers: &mut BTreeMap<u64, Box<Watcher<S>>>, ready: &mut VecDeque<u64>, key: u64) {
    if let Some(watcher) = watchers.get_mut(&key)
        && !std::mem::replace(&mut watcher.queued, true)
    {
        ready.push_back(key);
    }
}

impl<S> Watcher<S> {
    /// One response of entries, and the revision after them. `Again` when the filters left nothing.
    fn bundle<'a>(
        &self,
        entries: impl Iterator<Item = &'a Arc<Entry>>,
        revision: Revision,
        term: u64,
    ) -> (Step, Revision) {
        let mut parts = Vec::new();
        let (mut event_count, mut bytes, mut next) = (0, 0, Revision(0));
        for entry in entries.take(HISTORY_REVISIONS) {
            next = entry.revision.next();
            let part = Part { entry: Arc::clone(entry), filters: self.filters };
            let (count, size) = part.size();
            if count == 0 {
                continue;
            }
            event_count += count;
            bytes += size;
            parts.push(part);
            if bytes >= HISTORY_BYTES {
                break;
            }
        }
        if event_count == 0 {
            return (Step::Again, next);
        }
        assert!(event_count >= parts.len(), "a part has an event");
        assert!(parts.len() <= HISTORY_REVISIONS, "a message is bounded");
        let events = Events { id: self.id, parts, event_count, fragment: self.fragment };
        let draft = Draft { told: Told::Events(events), says: Says::Events { revision, term } };
        (Step::Draft(draft), next)
    }
}

impl Part {
    /// How many events it has, and how many bytes those are, about.
    fn size(&self) -> (usize, usize) {
        if self.filters == Filters::default() {
            return (self.entry.events.len(), self.entry.bytes());
        }
        self.events().fold((0, 0), |(count, bytes), event| (count + 1, bytes + event.size_bytes()))
    }
}

impl Filters {
    /// Whether the watcher wants it.
    pub fn passes(self, event: &Event) -> bool {
        match event.kind {
            EventKind::Put => !self.no_put,
            EventKind::Delete => !self.no_delete,
        }
    }
}

fn refusal(why: NotCreated) -> Draft {
    Draft { told: Told::NotCreated(why), says: Says::Now }
}

fn cancelled(id: i64) -> Draft {
    Draft { told: Told::Canceled { id, why: Canceled::ByClient }, says: Says::Now }
}

fn compacted(id: i64, compact_revision: Revision, term: u64) -> Draft {
    let why = Canceled::Compacted { compact_revision };
    Draft { told: Told::Canceled { id, why }, says: Says::Nothing { term } }
}

fn failed(id: i64, failure: Failure) -> Draft {
    Draft { told: Told::Canceled { id, why: Canceled::Failed(failure) }, says: Says::Now }
}

#[cfg(test)]
mod tests;
