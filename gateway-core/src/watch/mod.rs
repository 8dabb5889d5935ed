//! Watches: the watchers of a client's stream, and the feeds that they read.
//!
//! A watcher is a position in a shared window of events. It writes nothing and holds nothing: a client that does not
//! read keeps a number. One that falls behind the window, or starts in the past, reads history through a feed of its
//! own until it has caught up with the window.

mod feed_state;
mod log;
mod watchers;

use std::ops::Deref;

use keyspace::{KeyRange, Revision};

pub use feed_state::{Due, FeedEnd, FeedState, OPENING, Pace};
pub use log::{Entry, FeedLog};
pub use watchers::{Canceled, Create, Events, Filters, Frame, NotCreated, Part, Stamp, Told, Watchers};

/// A feed, as a watcher sees it. Copies are the same feed.
pub trait Feed: Clone {
    /// Who is told that there is something to look at.
    type Subscriber: Clone;

    /// What is known of the feed, to be looked at for a moment.
    fn state(&self) -> impl Deref<Target = FeedState<Self::Subscriber>>;

    /// Tells it from the other feeds that are there.
    fn id(&self) -> usize;
}

/// Where the feeds of a stream come from.
pub trait Feeds {
    /// One of them.
    type Feed: Feed;
    /// A watcher's place at a feed; given up when dropped.
    type Subscription: AsRef<Self::Feed>;

    /// Joins the feed of a range, and asks how far it has come: the token is for [`FeedState::synced`].
    fn shared(&self, range: &KeyRange, prev_kv: bool, watcher: u64) -> (Self::Subscription, u64);

    /// Opens a feed for one watcher, from a revision of the past.
    fn history(&self, range: &KeyRange, prev_kv: bool, start: Revision, watcher: u64) -> Self::Subscription;

    /// Asks how far a feed has come; `watcher` is told. The token is for [`FeedState::synced`].
    fn sync(&self, feed: &Self::Feed, watcher: u64) -> u64;

    /// A watcher has read so far: of a history, or a revision larger than the window.
    fn consumed(&self, feed: &Self::Feed, through: Revision);

    /// Gives the watchers that have something to look at, since the last call, to `each`.
    fn take_marked(&self, each: impl FnMut(u64));
}
