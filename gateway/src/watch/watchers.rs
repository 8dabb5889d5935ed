//! The watchers of one client stream: etcd's watch protocol as a plain struct. Requests go in, frames come out; what
//! the feeds bring is looked at when a frame is asked for.
//!
//! Order on the stream: a watcher's `created` comes first, in the order of the requests; then its events, by revision;
//! a progress answer never before an event it speaks of.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use api::etcdserverpb as pb;
use api::etcdserverpb::watch_create_request::FilterType;
use api::etcdserverpb::watch_request::RequestUnion;
use bytes::{Bytes, BytesMut};
use keyspace::{Event, EventKind, KeyRange};

use super::feed::{FeedEnd, Inbox, SharedFeed};
use super::log::{Entry, encode_event};
use crate::door::convert;
use crate::errors::{WATCH_COMPACTED, code_and_text};

/// Most revisions of history in one response, as in etcd.
const HISTORY_REVISIONS: usize = 1000;
/// Bytes of events after which a response of history ends.
const HISTORY_BYTES: usize = 1 << 20;
/// A watcher that is further behind than this gets its events bundled. etcd's buffer of responses is as long.
const LIVE_BEHIND_MAX: usize = 128;
/// Progress requests that may wait for their answer. More are dropped, as etcd drops those it cannot answer at once.
const PROGRESS_MAX: usize = 32;
/// Responses and creations that may wait before the stream reads no more requests.
const WAITING_MAX: usize = 1024;
/// Ids of compacted watches that are remembered on a stream. A client that lets more pile up is not told of the oldest.
const COMPACTED_IDS_MAX: usize = 1024;
/// `watch_id` of answers that concern no watcher.
const NO_WATCH: i64 = -1;

/// Where feeds come from.
pub(crate) trait Feeds {
    /// Joins the feed of a range, and asks how far it has come: the token is for [`FeedState::synced`].
    ///
    /// [`FeedState::synced`]: super::feed::FeedState::synced
    fn shared(
        &self,
        range: &KeyRange,
        prev_kv: bool,
        inbox: &Arc<Inbox>,
        watcher: u64,
    ) -> (Subscription, u64);

    /// Opens a feed for one watcher, from a revision of the past.
    fn history(
        &self,
        range: &KeyRange,
        prev_kv: bool,
        start: i64,
        inbox: &Arc<Inbox>,
        watcher: u64,
    ) -> Subscription;
}

/// A watcher's place at a feed; given up when dropped.
pub(crate) struct Subscription {
    feed: Arc<SharedFeed>,
    release: Option<Release>,
}

type Release = Box<dyn FnOnce(&Arc<SharedFeed>) + Send>;

impl Subscription {
    pub(crate) fn new(
        feed: Arc<SharedFeed>,
        release: impl FnOnce(&Arc<SharedFeed>) + Send + 'static,
    ) -> Subscription {
        Subscription { feed, release: Some(Box::new(release)) }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(release) = self.release.take() {
            release(&self.feed);
        }
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Subscription").field(&self.feed.range).finish()
    }
}

/// What a stream is configured with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WatchOptions {
    /// A response of a watcher that allows fragments is cut at this size.
    pub(crate) fragment_bytes: usize,
}

/// A response whose events are encoded already, perhaps for many watchers together.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Frame {
    /// Everything but header and events.
    pub(crate) head: pb::WatchResponse,
    /// For the header.
    pub(crate) revision: i64,
    /// For the header.
    pub(crate) term: u64,
    /// Elements of the field `events`, with tags and lengths.
    pub(crate) events: Vec<Bytes>,
    /// How many events those are.
    pub(crate) event_count: usize,
}

/// See the module.
pub(crate) struct Watchers<F> {
    feeds: F,
    options: WatchOptions,
    inbox: Arc<Inbox>,
    watchers: BTreeMap<u64, Watcher>,
    by_id: BTreeMap<i64, u64>,
    /// Ids whose watch a compaction cancelled, oldest first. As in etcd, such an id stays taken until the client cancels
    /// it too, which is then answered.
    compacted_ids: VecDeque<i64>,
    next_key: u64,
    next_id: i64,
    /// Creations without an answer, in the order of the requests.
    creating: VecDeque<Creating>,
    /// Responses that are made.
    out: VecDeque<Frame>,
    /// Watchers to look at.
    ready: VecDeque<u64>,
    progress: VecDeque<Progress>,
    /// The newest revision and term seen on this stream.
    revision: i64,
    term: u64,
}

#[derive(Debug)]
enum Creating {
    Watcher(u64),
    Refused(Frame),
}

#[derive(Debug)]
struct Watcher {
    id: i64,
    range: KeyRange,
    prev_kv: bool,
    filters: Filters,
    fragment: bool,
    progress_notify: bool,
    /// As asked for; 0 for "from now on".
    start: i64,
    shared: Subscription,
    state: State,
    queued: bool,
    /// Events were sent since the last tick.
    active: bool,
    /// The client cancelled it before it was created.
    cancelled: bool,
}

#[derive(Debug)]
enum State {
    /// Not announced: waits for the sync that tells where "now" is.
    Opening { token: u64 },
    /// In step with the shared feed, or at most its window behind.
    Live {
        /// First revision not sent.
        next: i64,
    },
    /// Further behind: reads history, beyond `beyond` and then until the window has the rest.
    CatchingUp { next: i64, beyond: i64, history: Subscription },
}

#[derive(Clone, Copy, Debug, Default)]
struct Filters {
    no_put: bool,
    no_delete: bool,
}

/// A progress answer that is owed.
struct Progress {
    scope: Scope,
    feeds: Vec<(Arc<SharedFeed>, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// To a `WatchProgressRequest`.
    All,
    /// The periodic one of a watcher.
    One(u64),
}

/// What looking at a watcher led to.
enum Step {
    Frame(Frame),
    /// Look again at once.
    Again,
    Nothing,
    /// The watcher is at its end, which this frame tells.
    End(Frame),
}

impl<F: Feeds> Watchers<F> {
    pub(crate) fn new(feeds: F, options: WatchOptions) -> Watchers<F> {
        Watchers {
            feeds,
            options,
            inbox: Arc::default(),
            watchers: BTreeMap::new(),
            by_id: BTreeMap::new(),
            compacted_ids: VecDeque::new(),
            next_key: 0,
            next_id: 0,
            creating: VecDeque::new(),
            out: VecDeque::new(),
            ready: VecDeque::new(),
            progress: VecDeque::new(),
            revision: 0,
            term: 0,
        }
    }

    /// Tells when [`Watchers::next_frame`] may have one.
    pub(crate) fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    /// How many watchers there are.
    pub(crate) fn len(&self) -> usize {
        self.watchers.len()
    }

    /// Whether the client should be left waiting with further requests.
    pub(crate) fn is_congested(&self) -> bool {
        self.out.len() + self.creating.len() >= WAITING_MAX
    }

    /// Whether [`Watchers::handle_tick`] has something to do.
    pub(crate) fn wants_ticks(&self) -> bool {
        self.watchers.values().any(|watcher| watcher.progress_notify)
    }

    /// The store is known to be at `revision` by other means: for the headers of answers that no feed stands behind.
    pub(crate) fn handle_revision(&mut self, revision: i64, term: u64) {
        self.revision = self.revision.max(revision);
        self.term = self.term.max(term);
    }

    /// Takes in a request. Empty ones are ignored, as in etcd.
    pub(crate) fn handle_request(&mut self, request: pb::WatchRequest) {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(create),
            Some(RequestUnion::CancelRequest(cancel)) => self.cancel(cancel.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => self.request_progress(Scope::All),
            None => {}
        }
    }

    /// A progress interval has passed: watchers that asked for it and were sent nothing are told where they are.
    pub(crate) fn handle_tick(&mut self) {
        let mut quiet = Vec::new();
        for (key, watcher) in &mut self.watchers {
            let active = std::mem::take(&mut watcher.active);
            if watcher.progress_notify && !active {
                quiet.push(*key);
            }
        }
        for key in quiet {
            if self.progress.iter().all(|progress| progress.scope != Scope::One(key)) {
                self.request_progress(Scope::One(key));
            }
        }
    }

    /// The next response, if there is one.
    pub(crate) fn next_frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.out.pop_front() {
                return Some(frame);
            }
            for key in self.inbox.take().into_iter() {
                self.queue(key);
            }
            let Some(key) = self.ready.pop_front() else {
                match self.poll_progress() {
                    Some(frame) => return Some(frame),
                    None if self.ready.is_empty() => return None,
                    None => continue,
                }
            };
            if let Some(frame) = self.look_at(key) {
                return Some(frame);
            }
        }
    }

    fn create(&mut self, create: pb::WatchCreateRequest) {
        let range = KeyRange::from_watch_wire(create.key, create.range_end);
        let reason = if range.is_empty() {
            Some("mvcc: watcher range is empty")
        } else if create.start_revision < 0 {
            Some(WATCH_COMPACTED)
        } else if create.watch_id != 0 && self.is_taken(create.watch_id) {
            Some("mvcc: duplicate watch ID provided on the WatchStream")
        } else {
            None
        };
        if let Some(reason) = reason {
            self.creating.push_back(Creating::Refused(refused(reason)));
            self.announce_created();
            return;
        }
        let id = if create.watch_id == 0 { self.free_id() } else { create.watch_id };
        let key = self.next_key;
        self.next_key += 1;
        let (shared, token) = self.feeds.shared(&range, create.prev_kv, &self.inbox, key);
        let mut filters = Filters::default();
        for filter in &create.filters {
            match FilterType::try_from(*filter) {
                Ok(FilterType::Noput) => filters.no_put = true,
                Ok(FilterType::Nodelete) => filters.no_delete = true,
                Err(_) => {}
            }
        }
        self.by_id.insert(id, key);
        self.watchers.insert(
            key,
            Watcher {
                id,
                range,
                prev_kv: create.prev_kv,
                filters,
                fragment: create.fragment,
                progress_notify: create.progress_notify,
                start: create.start_revision,
                shared,
                state: State::Opening { token },
                queued: false,
                active: false,
                cancelled: false,
            },
        );
        self.creating.push_back(Creating::Watcher(key));
        self.announce_created();
    }

    fn free_id(&mut self) -> i64 {
        while self.is_taken(self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    fn is_taken(&self, id: i64) -> bool {
        self.by_id.contains_key(&id) || self.compacted_ids.contains(&id)
    }

    fn cancel(&mut self, id: i64) {
        if let Some(at) = self.compacted_ids.iter().position(|compacted| *compacted == id) {
            self.compacted_ids.remove(at);
            let frame = self.cancelled(id);
            self.out.push_back(frame);
            return;
        }
        let Some(&key) = self.by_id.get(&id) else { return };
        let Some(watcher) = self.watchers.get_mut(&key) else { return };
        if let State::Opening { .. } = watcher.state {
            watcher.cancelled = true;
            return;
        }
        self.remove(key);
        let frame = self.cancelled(id);
        self.out.push_back(frame);
    }

    fn cancelled(&self, id: i64) -> Frame {
        let head = pb::WatchResponse { watch_id: id, canceled: true, ..Default::default() };
        Frame { head, revision: self.revision, term: self.term, ..Frame::default() }
    }

    fn remove(&mut self, key: u64) {
        if let Some(watcher) = self.watchers.remove(&key) {
            self.by_id.remove(&watcher.id);
        }
    }

    /// Lets the first creation that is not answered go on.
    fn announce_created(&mut self) {
        while let Some(Creating::Refused(_)) = self.creating.front() {
            let Some(Creating::Refused(mut frame)) = self.creating.pop_front() else { return };
            frame.revision = self.revision;
            frame.term = self.term;
            self.out.push_back(frame);
        }
        if let Some(Creating::Watcher(key)) = self.creating.front() {
            self.queue(*key);
        }
    }

    fn queue(&mut self, key: u64) {
        if let Some(watcher) = self.watchers.get_mut(&key)
            && !std::mem::replace(&mut watcher.queued, true)
        {
            self.ready.push_back(key);
        }
    }

    /// Looks at a watcher until it has a frame or nothing to say.
    fn look_at(&mut self, key: u64) -> Option<Frame> {
        loop {
            let watcher = self.watchers.get_mut(&key)?;
            watcher.queued = false;
            let step = match watcher.state {
                State::Opening { token } => {
                    if !matches!(self.creating.front(), Some(Creating::Watcher(first)) if *first == key) {
                        return None;
                    }
                    return self.look_at_opening(key, token);
                }
                State::Live { next } => self.look_at_live(key, next),
                State::CatchingUp { next, .. } => self.look_at_history(key, next),
            };
            match step {
                Step::Frame(frame) => {
                    if let Some(watcher) = self.watchers.get_mut(&key) {
                        watcher.active = true;
                    }
                    self.handle_revision(frame.revision, frame.term);
                    // There may be more; others have their turn first.
                    self.queue(key);
                    return Some(self.cut(key, frame));
                }
                Step::Again => {}
                Step::Nothing => return None,
                Step::End(frame) => {
                    self.remove(key);
                    if frame.head.compact_revision != 0 {
                        self.remember_compacted(frame.head.watch_id);
                    }
                    return Some(frame);
                }
            }
        }
    }

    fn remember_compacted(&mut self, id: i64) {
        self.compacted_ids.push_back(id);
        if self.compacted_ids.len() > COMPACTED_IDS_MAX {
            self.compacted_ids.pop_front();
        }
    }

    fn look_at_opening(&mut self, key: u64, token: u64) -> Option<Frame> {
        let watcher = self.watchers.get_mut(&key)?;
        let (end, synced, compact_revision, term) = {
            let feed = watcher.shared.feed.state();
            (feed.end().cloned(), feed.synced(token), feed.compact_revision(), feed.term())
        };
        let frame = match (synced, end) {
            (Some(revision), _) => {
                let next = if watcher.start == 0 { revision + 1 } else { watcher.start };
                watcher.state = State::Live { next };
                let head = pb::WatchResponse { watch_id: watcher.id, created: true, ..Default::default() };
                let (id, cancelled) = (watcher.id, watcher.cancelled);
                let is_compacted = watcher.start != 0 && watcher.start < compact_revision;
                // The value before its first event is compacted, but may still lie in the window.
                let needs_history =
                    watcher.prev_kv && watcher.start != 0 && watcher.start == compact_revision;
                self.handle_revision(revision, term);
                if cancelled {
                    self.remove(key);
                    let frame = self.cancelled(id);
                    self.out.push_back(frame);
                } else if is_compacted {
                    self.remove(key);
                    self.remember_compacted(id);
                    self.out.push_back(compacted(id, compact_revision, term));
                } else {
                    if needs_history {
                        self.read_history(key, next, compact_revision);
                    }
                    self.queue(key);
                }
                Frame { head, revision, term, ..Frame::default() }
            }
            (None, Some(FeedEnd::Compacted { .. })) => {
                // The feed that was joined had lost its place; another begins from now.
                let (shared, token) = self.feeds.shared(&watcher.range, watcher.prev_kv, &self.inbox, key);
                watcher.shared = shared;
                watcher.state = State::Opening { token };
                return None;
            }
            (None, Some(FeedEnd::Failed(failure))) => {
                self.remove(key);
                let mut frame = refused(code_and_text(&failure).1);
                frame.revision = self.revision;
                frame.term = self.term;
                frame
            }
            (None, None) => return None,
        };
        self.creating.pop_front();
        // What the next one gives rise to comes behind this frame and what is already made.
        let made = std::mem::take(&mut self.out);
        self.announce_created();
        let after = std::mem::replace(&mut self.out, made);
        self.out.extend(after);
        Some(frame)
    }

    /// Lets a watcher go on with what the group remembers from `next` on.
    fn read_history(&mut self, key: u64, next: i64, beyond: i64) {
        if let Some(watcher) = self.watchers.get_mut(&key) {
            let history = self.feeds.history(&watcher.range, watcher.prev_kv, next, &self.inbox, key);
            watcher.state = State::CatchingUp { next, beyond, history };
        }
    }

    fn look_at_live(&mut self, key: u64, next: i64) -> Step {
        let Some(watcher) = self.watchers.get_mut(&key) else { return Step::Nothing };
        let feed = watcher.shared.feed.state();
        // What the window holds is told first, whatever became of the feed.
        let in_window = feed.log().filter(|log| next > log.floor());
        let told = in_window.filter(|log| log.from(next).len() == 0).map(|log| log.upto());
        match feed.end() {
            Some(FeedEnd::Compacted { compact_revision }) if in_window.is_none() || told.is_some() => {
                let next = told.map_or(next, |upto| next.max(upto + 1));
                if next < *compact_revision {
                    return Step::End(compacted(watcher.id, *compact_revision, feed.term()));
                }
                drop(feed);
                let (shared, _) = self.feeds.shared(&watcher.range, watcher.prev_kv, &self.inbox, key);
                watcher.shared = shared;
                watcher.state = State::Live { next };
                return Step::Nothing;
            }
            Some(FeedEnd::Failed(failure)) => {
                return Step::End(failed(watcher.id, code_and_text(failure).1, self.revision, feed.term()));
            }
            Some(FeedEnd::Compacted { .. }) | None => {}
        }
        let Some(log) = feed.log() else { return Step::Nothing };
        if next <= log.floor() {
            drop(feed);
            self.read_history(key, next, 0);
            return Step::Again;
        }
        let mut entries = log.from(next);
        if entries.len() > LIVE_BEHIND_MAX {
            let (frame, next) = watcher.bundle(entries, log.revision(), feed.term());
            watcher.state = State::Live { next };
            return frame;
        }
        let Some(entry) = entries.next() else { return Step::Nothing };
        let (frame, next) = watcher.bundle(std::iter::once(entry), entry.revision, feed.term());
        watcher.state = State::Live { next };
        frame
    }

    fn look_at_history(&mut self, key: u64, next: i64) -> Step {
        let Some(watcher) = self.watchers.get_mut(&key) else { return Step::Nothing };
        let State::CatchingUp { next: position, beyond, history } = &mut watcher.state else {
            return Step::Again;
        };
        let source = Arc::clone(&history.feed);
        let feed = source.state();
        let bundled = feed.log().and_then(|log| {
            let entries = log.from(next);
            (entries.len() > 0).then(|| {
                let entries: Vec<Arc<Entry>> = entries.take(HISTORY_REVISIONS).cloned().collect();
                (entries, log.revision(), feed.term())
            })
        });
        if let Some((entries, revision, term)) = bundled {
            drop(feed);
            let (frame, next) = watcher.bundle(entries.iter(), revision, term);
            if let State::CatchingUp { next: position, .. } = &mut watcher.state {
                *position = next;
            }
            source.consumed(next - 1);
            return frame;
        }
        match feed.end() {
            Some(FeedEnd::Compacted { compact_revision }) => {
                return Step::End(compacted(watcher.id, *compact_revision, feed.term()));
            }
            Some(FeedEnd::Failed(failure)) => {
                return Step::End(failed(watcher.id, code_and_text(failure).1, self.revision, feed.term()));
            }
            None => {}
        }
        let next = feed.log().map_or(next, |log| next.max(log.upto() + 1));
        *position = next;
        drop(feed);
        let caught_up = next > *beyond && {
            let shared = watcher.shared.feed.state();
            shared.end().is_some() || shared.log().is_some_and(|log| log.floor() < next)
        };
        if !caught_up {
            return Step::Nothing;
        }
        watcher.state = State::Live { next };
        Step::Again
    }

    /// Cuts a frame that is too large, if the watcher allows it. The rest waits in `out`.
    fn cut(&mut self, key: u64, frame: Frame) -> Frame {
        let limit = self.options.fragment_bytes;
        let bytes: usize = frame.events.iter().map(Bytes::len).sum();
        let fragment = self.watchers.get(&key).is_some_and(|watcher| watcher.fragment);
        if !fragment || frame.event_count < 2 || bytes < limit {
            return frame;
        }
        let mut fragments: Vec<Frame> = Vec::new();
        let mut room = 0;
        for event in frame.events.iter().flat_map(each_event) {
            if event.len() > room || fragments.is_empty() {
                let head = pb::WatchResponse { fragment: true, ..frame.head.clone() };
                fragments.push(Frame {
                    head,
                    revision: frame.revision,
                    term: frame.term,
                    ..Frame::default()
                });
                room = limit;
            }
            room = room.saturating_sub(event.len());
            if let Some(last) = fragments.last_mut() {
                last.events.push(event);
                last.event_count += 1;
            }
        }
        if let Some(last) = fragments.last_mut() {
            last.head.fragment = false;
        }
        let mut fragments = fragments.into_iter();
        let first = fragments.next().unwrap_or(frame);
        // Before whatever else is made: the parts of a response follow each other.
        for fragment in fragments.rev() {
            self.out.push_front(fragment);
        }
        first
    }

    fn request_progress(&mut self, scope: Scope) {
        let all = scope == Scope::All;
        if all && self.progress.iter().filter(|progress| progress.scope == Scope::All).count() >= PROGRESS_MAX
        {
            return;
        }
        let mut feeds: Vec<(Arc<SharedFeed>, u64)> = Vec::new();
        for (key, watcher) in &self.watchers {
            let feed = &watcher.shared.feed;
            let in_scope = all || scope == Scope::One(*key);
            if in_scope && !feeds.iter().any(|(known, _)| Arc::ptr_eq(known, feed)) {
                feeds.push((Arc::clone(feed), feed.sync(&self.inbox, *key)));
            }
        }
        if !feeds.is_empty() {
            self.progress.push_back(Progress { scope, feeds });
        }
    }

    /// Answers the oldest progress request when every watcher it concerns has been sent everything up to one revision.
    fn poll_progress(&mut self) -> Option<Frame> {
        while let Some(progress) = self.progress.front() {
            let scope = progress.scope;
            match self.progress_of(progress) {
                Progressed::Wait => return None,
                Progressed::Unread(key) => {
                    self.queue(key);
                    return None;
                }
                Progressed::Drop => {
                    self.progress.pop_front();
                }
                Progressed::At { revision, term } => {
                    self.progress.pop_front();
                    let watch_id = match scope {
                        Scope::All => NO_WATCH,
                        Scope::One(key) => self.watchers.get(&key).map_or(NO_WATCH, |watcher| watcher.id),
                    };
                    self.handle_revision(revision, term);
                    let head = pb::WatchResponse { watch_id, ..Default::default() };
                    return Some(Frame { head, revision, term, ..Frame::default() });
                }
            }
        }
        None
    }

    fn progress_of(&self, progress: &Progress) -> Progressed {
        let mut at = i64::MAX;
        let mut term = 0;
        for (feed, token) in &progress.feeds {
            let feed = feed.state();
            match feed.synced(*token) {
                Some(revision) => at = at.min(revision),
                None if feed.end().is_some() => return Progressed::Drop,
                // Those who watched through it are gone.
                None if feed.is_over() => continue,
                None => return Progressed::Wait,
            }
            term = feed.term().max(term);
        }
        let mut any = false;
        for (key, watcher) in &self.watchers {
            if progress.scope != Scope::All && progress.scope != Scope::One(*key) {
                continue;
            }
            any = true;
            let next = match watcher.state {
                State::Opening { .. } | State::CatchingUp { .. } => return Progressed::Wait,
                State::Live { next } => next,
            };
            if watcher.start > at {
                return Progressed::Drop;
            }
            let feed = watcher.shared.feed.state();
            let Some(log) = feed.log() else { return Progressed::Wait };
            if next <= log.floor() || log.from(next).next().is_some_and(|entry| entry.revision <= at) {
                return Progressed::Unread(*key);
            }
        }
        if any && at < i64::MAX { Progressed::At { revision: at, term } } else { Progressed::Drop }
    }
}

enum Progressed {
    Wait,
    /// This watcher has something to be sent first.
    Unread(u64),
    /// Cannot be answered, as in etcd.
    Drop,
    At {
        revision: i64,
        term: u64,
    },
}

impl Watcher {
    /// One response of entries, and the revision after them. `Again` when the filters left nothing.
    fn bundle<'a>(
        &self,
        entries: impl Iterator<Item = &'a Arc<Entry>>,
        revision: i64,
        term: u64,
    ) -> (Step, i64) {
        let mut frame = Frame { revision, term, ..Frame::default() };
        frame.head.watch_id = self.id;
        let mut bytes = 0;
        let mut next = 0;
        for entry in entries.take(HISTORY_REVISIONS) {
            next = entry.revision + 1;
            let (encoded, count) = self.filters.apply(entry);
            if count == 0 {
                continue;
            }
            bytes += encoded.len();
            frame.events.push(encoded);
            frame.event_count += count;
            if bytes >= HISTORY_BYTES {
                break;
            }
        }
        if frame.event_count == 0 {
            return (Step::Again, next);
        }
        (Step::Frame(frame), next)
    }
}

impl Filters {
    /// The events that pass, encoded, and how many they are.
    fn apply(self, entry: &Entry) -> (Bytes, usize) {
        if !self.no_put && !self.no_delete {
            return (entry.encoded().clone(), entry.events.len());
        }
        let passes = |event: &&Event| match event.kind {
            EventKind::Put => !self.no_put,
            EventKind::Delete => !self.no_delete,
        };
        let mut encoded = BytesMut::new();
        let mut count = 0;
        for event in entry.events.iter().filter(passes) {
            encode_event(&convert::event(event), &mut encoded);
            count += 1;
        }
        (encoded.freeze(), count)
    }
}

/// The elements of an encoded field of events.
fn each_event(encoded: &Bytes) -> Vec<Bytes> {
    let mut rest = encoded.clone();
    let mut events = Vec::new();
    while !rest.is_empty() {
        let mut read = rest.clone();
        // Our own encoding: a tag of one byte, a length, the event.
        let before = read.len();
        let tag = prost::encoding::decode_varint(&mut read);
        let length = prost::encoding::decode_varint(&mut read);
        let (Ok(_), Ok(length)) = (tag, length) else { break };
        let head = before - read.len();
        let whole = head.saturating_add(usize::try_from(length).unwrap_or(usize::MAX)).min(rest.len());
        events.push(rest.split_to(whole));
    }
    events
}

fn refused(reason: &str) -> Frame {
    let head = pb::WatchResponse {
        watch_id: NO_WATCH,
        created: true,
        canceled: true,
        cancel_reason: reason.to_owned(),
        ..Default::default()
    };
    Frame { head, ..Frame::default() }
}

/// etcd leaves the header's revision at 0 here.
fn compacted(id: i64, compact_revision: i64, term: u64) -> Frame {
    let head = pb::WatchResponse { watch_id: id, canceled: true, compact_revision, ..Default::default() };
    Frame { head, term, ..Frame::default() }
}

fn failed(id: i64, reason: &str, revision: i64, term: u64) -> Frame {
    let head = pb::WatchResponse {
        watch_id: id,
        canceled: true,
        cancel_reason: reason.to_owned(),
        ..Default::default()
    };
    Frame { head, revision, term, ..Frame::default() }
}

#[cfg(test)]
mod tests;
