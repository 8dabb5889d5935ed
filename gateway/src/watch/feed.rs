//! A feed that several threads look at: [`FeedState`] behind a lock, and whoever carries it; and who is told of it.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use gateway_core::FeedItem;
use gateway_core::watch::{Feed, FeedState, Pace};
use keyspace::{KeyRange, Revision};
use parking_lot::{Mutex, MutexGuard};

use super::Counted;
use crate::domain::{self, FeedReader};

/// See the module. A handle; copies are the same feed.
#[derive(Clone, Debug)]
pub(crate) struct SharedFeed(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    range: KeyRange,
    prev_kv: bool,
    state: Mutex<FeedState<Subscriber>>,
    /// None before it is carried, and once it is over. Locked before `state`, if both are.
    carried: Mutex<Option<Carried>>,
}

/// What carries a feed.
#[derive(Debug)]
pub(super) struct Carried {
    pub(super) feed: Box<dyn domain::Feed>,
    pub(super) _counted: Vec<Counted>,
}

/// A watcher of a client's stream.
#[derive(Clone, Debug)]
pub(crate) struct Subscriber {
    pub(super) inbox: Arc<Inbox>,
    pub(super) watcher: u64,
}

impl SharedFeed {
    pub(super) fn new(range: KeyRange, prev_kv: bool, pace: Pace) -> SharedFeed {
        let state = Mutex::new(FeedState::new(pace));
        SharedFeed(Arc::new(Shared { range, prev_kv, state, carried: Mutex::new(None) }))
    }

    pub(super) fn range(&self) -> &KeyRange {
        &self.0.range
    }

    pub(super) fn prev_kv(&self) -> bool {
        self.0.prev_kv
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, FeedState<Subscriber>> {
        self.0.state.lock()
    }

    /// Who reads what is carried.
    pub(super) fn reader(&self) -> Arc<dyn FeedReader> {
        Arc::<Shared>::clone(&self.0)
    }

    /// It is carried from now on.
    pub(super) fn carry(&self, carried: Carried) {
        *self.0.carried.lock() = Some(carried);
        self.0.act();
    }

    /// Takes a watcher away. Returns whether it was the last one; then the feed closes.
    pub(super) fn unsubscribe(&self, id: u64) -> bool {
        let is_closed = self.lock().unsubscribe(id);
        if is_closed {
            self.0.act();
        }
        is_closed
    }

    /// Asks how far the feed has come; `watcher` is told. Returns the token to ask [`FeedState::synced`] with.
    pub(super) fn sync(&self, watcher: Subscriber) -> u64 {
        let mut state = self.lock();
        let token = state.sync(watcher.clone());
        let has_ended = state.end().is_some();
        drop(state);
        if has_ended {
            watcher.inbox.mark(watcher.watcher);
        }
        self.0.act();
        token
    }

    /// Forgets what a history's watcher has read, which makes room for more.
    pub(super) fn consumed(&self, through: Revision) {
        let makes_room = self.lock().consumed(through);
        if makes_room {
            self.0.act();
        }
    }
}

impl Shared {
    /// Does what is due upstream.
    fn act(&self) {
        let mut slot = self.carried.lock();
        let Some(carried) = slot.as_ref() else { return };
        let due = self.state.lock().take_due();
        if due.close {
            carried.feed.close();
            *slot = None;
            return;
        }
        if let Some(token) = due.sync {
            carried.feed.sync(token);
        }
        if due.credit > 0 {
            carried.feed.credit(due.credit);
        }
    }
}

impl FeedReader for Shared {
    fn take(&self, item: FeedItem) {
        let mut marked = Vec::new();
        self.state.lock().handle_item(item, &mut marked);
        for Subscriber { inbox, watcher } in marked {
            inbox.mark(watcher);
        }
        self.act();
    }
}

impl Feed for SharedFeed {
    type Subscriber = Subscriber;

    fn state(&self) -> impl Deref<Target = FeedState<Subscriber>> {
        self.lock()
    }

    fn id(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
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
}
