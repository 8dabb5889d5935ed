//! Progress answers: to whoever asks, and now and then to watchers that wish it.
//!
//! An answer is made in three steps. First every feed concerned says how far it has come, at or after the request. Then
//! the stream gets a ceiling ([`super::headers`]): the highest revision up to which all of them are complete. If the
//! stream has told of a newer one already, the ceiling is that, and the feeds that are behind it are asked once more. And
//! when every watcher has been sent everything up to the ceiling, that is the answer.

use std::collections::BTreeSet;

use keyspace::Revision;

use super::headers::{Draft, Says};
use super::{Creating, Feeds, State, Told, Watcher, Watchers};
use crate::mutant::mutant;
use crate::watch::Feed;

/// Progress requests that may wait for their answer. More are dropped, as etcd drops those it cannot answer at once.
const PROGRESS_MAX: usize = 32;

/// A progress answer that is owed.
#[derive(Debug)]
pub(super) struct Progress<D> {
    scope: Scope,
    /// Feeds that have not said yet how far they have come, with the token to ask them by.
    asked: Vec<(D, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// To a `WatchProgressRequest`, for the watchers that were created before it: those with a key below.
    All { before: u64 },
    /// The periodic one of a watcher.
    One(u64),
}

/// How far the watchers have come that an answer speaks of.
enum Position {
    /// All of them are live, and their feeds complete up to here.
    Upto { revision: Revision, term: u64 },
    /// One of them reads history, or has a feed that is being opened.
    Behind,
    /// There are none.
    Nobody,
}

impl<F: Feeds> Watchers<F> {
    /// The client wants to know.
    pub fn request_progress(&mut self) {
        let is_request = |progress: &&Progress<F::Feed>| matches!(progress.scope, Scope::All { .. });
        if self.progress.iter().filter(is_request).count() < PROGRESS_MAX {
            self.owe_progress(Scope::All { before: self.next_key });
        }
        assert!(
            self.progress.len() <= PROGRESS_MAX + self.watchers.len(),
            "answers that are owed are bounded"
        );
    }

    /// A watcher shall be told, unless that is under way.
    pub(super) fn notify_progress(&mut self, key: u64) {
        debug_assert!(self.watchers.contains_key(&key), "only watchers are notified");
        if self.progress.iter().all(|progress| progress.scope != Scope::One(key)) {
            self.owe_progress(Scope::One(key));
        }
    }

    fn owe_progress(&mut self, scope: Scope) {
        // Also those of watchers that are being opened: the answer waits for them.
        let is_meant = |key: u64, _: &Watcher<F::Subscription>| {
            matches!(scope, Scope::All { .. }) || scope == Scope::One(key)
        };
        let asked = self.ask_feeds(is_meant, Revision(i64::MAX));
        if !asked.is_empty() {
            self.progress.push_back(Progress { scope, asked });
        }
    }

    /// Asks the feeds of some watchers that are not known to be complete up to `revision`.
    fn ask_feeds(
        &self,
        is_meant: impl Fn(u64, &Watcher<F::Subscription>) -> bool,
        revision: Revision,
    ) -> Vec<(F::Feed, u64)> {
        let mut seen = BTreeSet::new();
        let mut asked = Vec::new();
        for (key, watcher) in &self.watchers {
            let feed = watcher.shared.as_ref();
            let is_complete = || feed.state().log().is_some_and(|log| log.upto() >= revision);
            if is_meant(*key, watcher) && seen.insert(feed.id()) && !is_complete() {
                asked.push((feed.clone(), self.feeds.sync(feed, *key)));
            }
        }
        asked
    }

    /// Prepares the oldest answer if that may have become possible. To be called whatever else there is to send:
    /// otherwise a busy stream would never come to answer.
    pub(super) fn look_at_progress(&mut self) {
        if self.progress.front().is_some_and(|progress| !progress.asked.is_empty()) {
            self.prepare_progress();
        }
    }

    /// Puts the stream under the ceiling of the oldest answer that is owed, as soon as its feeds have spoken.
    fn prepare_progress(&mut self) {
        while self.headers.ceiling().is_none() && self.feeds_have_spoken() {
            let Some(scope) = self.progress.front().map(|progress| progress.scope) else { return };
            debug_assert!(self.held.is_empty(), "nobody is held up below no ceiling");
            let opening = self.creating.front();
            if let (Scope::All { before }, Some(Creating::Watcher(first))) = (scope, opening)
                && *first < before
            {
                return;
            }
            match self.position(scope) {
                Position::Behind => return,
                Position::Nobody => {
                    self.progress.pop_front();
                }
                Position::Upto { revision, .. } => {
                    self.headers.set_ceiling(revision);
                    let ceiling = self.headers.ceiling().unwrap_or(revision);
                    let asked = self.ask_feeds(|key, watcher| scope.concerns(key, watcher), ceiling);
                    if let Some(progress) = self.progress.front_mut() {
                        progress.asked = asked;
                    }
                }
            }
        }
    }

    /// Answers the oldest progress request when every watcher it concerns has been sent everything up to the ceiling.
    pub(super) fn poll_progress(&mut self) -> Option<Draft> {
        loop {
            self.prepare_progress();
            let ceiling = self.headers.ceiling()?;
            if !self.feeds_have_spoken() {
                // Either it waits, or a feed ended and the answer with it.
                if self.headers.ceiling().is_some() {
                    return None;
                }
                continue;
            }
            let scope = self.progress.front()?.scope;
            let term = match self.position(scope) {
                Position::Upto { revision, term } if revision >= ceiling => term,
                // It fell behind, or has another feed. etcd answers nothing when a watcher is behind; neither is the
                // stream held up for it.
                Position::Upto { .. } | Position::Behind | Position::Nobody => {
                    self.give_up_progress();
                    continue;
                }
            };
            let concerned = self.watchers.iter().filter(|(key, watcher)| scope.concerns(**key, watcher));
            let mut is_future = false;
            let mut unread = None;
            for (key, watcher) in concerned {
                is_future |= watcher.start > ceiling;
                if Self::has_unread(watcher, ceiling) {
                    unread = Some(*key);
                }
            }
            if is_future {
                self.give_up_progress();
                continue;
            }
            if let Some(key) = unread {
                self.queue(key);
                return None;
            }
            let id = match scope {
                Scope::All { .. } => None,
                Scope::One(key) => self.watchers.get(&key).map(|watcher| watcher.id),
            };
            let answered = self.progress.pop_front();
            assert!(answered.is_some_and(|answered| answered.asked.is_empty()), "every feed has spoken");
            self.release_held();
            return Some(Draft { told: Told::Progress { id }, says: Says::Progress { term } });
        }
    }

    /// Whether the feeds that the oldest answer waits for have all said how far they are. Gives the answer up if one
    /// has ended.
    fn feeds_have_spoken(&mut self) -> bool {
        let Some(progress) = self.progress.front_mut() else { return false };
        if mutant!(ProgressOfFastest) {
            progress.asked.clear();
        }
        while let Some((feed, token)) = progress.asked.last() {
            let feed = feed.state();
            let ended = feed.end().is_some();
            // Those who watched through a feed that is over are gone.
            let spoken = feed.synced(*token).is_some() || feed.is_over();
            drop(feed);
            if ended {
                self.give_up_progress();
                return false;
            }
            if !spoken {
                return false;
            }
            progress.asked.pop();
        }
        true
    }

    fn position(&self, scope: Scope) -> Position {
        let mut position = Position::Nobody;
        for watcher in self.watchers.iter().filter(|(key, watcher)| scope.concerns(**key, watcher)) {
            let watcher = watcher.1;
            if !matches!(watcher.state, State::Live { .. }) {
                return Position::Behind;
            }
            let feed = watcher.shared.as_ref().state();
            let Some(log) = feed.log() else { return Position::Behind };
            let (upto, of_feed) = (log.upto(), feed.term());
            position = match position {
                Position::Upto { revision, term } if mutant!(ProgressOfFastest) => {
                    Position::Upto { revision: revision.max(upto), term }
                }
                Position::Upto { revision, term } => {
                    Position::Upto { revision: revision.min(upto), term: term.max(of_feed) }
                }
                Position::Behind | Position::Nobody => Position::Upto { revision: upto, term: of_feed },
            };
        }
        position
    }

    /// Whether a watcher has not been sent everything up to `revision`, of what its feed knows.
    fn has_unread(watcher: &Watcher<F::Subscription>, revision: Revision) -> bool {
        let State::Live { next } = watcher.state else { return true };
        let feed = watcher.shared.as_ref().state();
        feed.log().is_none_or(|log| {
            next <= log.floor() || log.from(next).next().is_some_and(|entry| entry.revision <= revision)
        })
    }

    /// Drops the oldest answer that is owed.
    fn give_up_progress(&mut self) {
        self.progress.pop_front();
        self.headers.lift_ceiling();
        self.release_held();
    }

    /// The ceiling is lifted, or about to be: what it held back goes on.
    fn release_held(&mut self) {
        for key in std::mem::take(&mut self.held) {
            self.queue(key);
        }
    }
}

impl Scope {
    /// Whether an answer of this scope speaks of a watcher. One that the client has not been told of is not meant, even
    /// by an answer for all.
    fn concerns<S>(self, key: u64, watcher: &Watcher<S>) -> bool {
        match self {
            Scope::All { .. } => !matches!(watcher.state, State::Opening { .. }),
            Scope::One(one) => one == key,
        }
    }
}
