//! Progress answers: to whoever asks, and now and then to watchers that wish it.
//!
//! An answer is made in three steps. First every feed concerned says how far it has come, at or after the request. Then
//! the stream gets a ceiling ([`super::headers`]): the highest revision up to which all of them are complete. If the
//! stream has told of a newer one already, the ceiling is that, and the feeds that are behind it are asked once more. And
//! when every watcher has been sent everything up to the ceiling, that is the answer.
//!
//! No step looks at all watchers: there may be as many as a client wants. One feed of each cohort ([`Cohort`]) speaks for all
//! that are in it, an answer to all waits while any watcher is in none, and a watcher that has something unread is marked.

use std::collections::{BTreeMap, BTreeSet};

use keyspace::Revision;

use super::headers::{Draft, Says};
use super::{Creating, Feeds, State, Told, Watcher, Watchers};
use crate::mutant::mutant;
use crate::upstream::Cohort;
use crate::watch::Feed;

/// Progress requests that may wait for their answer. More are dropped, as etcd drops those it cannot answer at once.
const PROGRESS_MAX: usize = 32;

/// A progress answer that is owed.
#[derive(Debug)]
pub(super) struct Progress<D> {
    scope: Scope,
    /// Feeds that have not said yet how far they have come, with the token to ask them by.
    asked: Vec<Asked<D>>,
    /// How far cohorts have come, as one of each has said.
    heard: BTreeMap<Cohort, Heard>,
}

#[derive(Debug)]
struct Asked<D> {
    feed: D,
    token: u64,
    /// The cohort that it speaks for. None: for itself.
    cohort: Option<Cohort>,
}

#[derive(Clone, Copy, Debug)]
struct Heard {
    revision: Revision,
    term: u64,
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
    Upto(Heard),
    /// Some have not said.
    Unheard,
    /// One of them reads history, or has a feed that is not in step.
    Behind,
    /// There are none.
    Nobody,
}

/// The watchers that the client was told of, by how far is known of them.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// Those that read a feed that is in step, by its cohort.
    cohorts: BTreeMap<Cohort, BTreeSet<u64>>,
    /// How many those are.
    in_step: usize,
    /// How many there are in all.
    announced: usize,
    /// Those that began in the future, by where.
    futures: BTreeSet<(Revision, u64)>,
}

impl Standing {
    /// The client was told of a watcher that begins at `next`, behind `revision`.
    pub(super) fn announce(&mut self, key: u64, next: Revision, revision: Revision) {
        self.announced += 1;
        if next > revision.next() {
            self.futures.insert((next, key));
        }
    }

    /// A watcher that the client was told of is gone.
    pub(super) fn forget(&mut self, key: u64, start: Revision) {
        assert!(self.announced > 0, "who is announced is counted");
        self.announced -= 1;
        self.futures.remove(&(start, key));
    }

    /// A watcher has come from one cohort to another.
    pub(super) fn change(&mut self, key: u64, from: Option<Cohort>, to: Option<Cohort>) {
        if let Some(from) = from {
            let left = self.cohorts.get_mut(&from).expect("a cohort that a watcher is in");
            assert!(left.remove(&key) && self.in_step > 0, "who is in a cohort is counted");
            self.in_step -= 1;
            if left.is_empty() {
                self.cohorts.remove(&from);
            }
        }
        if let Some(to) = to {
            self.cohorts.entry(to).or_default().insert(key);
            self.in_step += 1;
        }
        assert!(self.in_step <= self.announced, "those in step are some of all");
    }

    fn are_all_in_step(&self) -> bool {
        self.in_step == self.announced
    }

    /// Whether one of them begins behind `revision`.
    fn is_any_behind(&self, revision: Revision) -> bool {
        self.futures.last().is_some_and(|(start, _)| *start > revision)
    }
}

impl<F: Feeds> Watchers<F> {
    /// The client wants to know.
    pub fn request_progress(&mut self) {
        if self.requested < PROGRESS_MAX && !self.watchers.is_empty() {
            self.requested += 1;
            let scope = Scope::All { before: self.next_key };
            let mut progress = Progress { scope, asked: Vec::new(), heard: BTreeMap::new() };
            self.ask_cohorts(&mut progress, Revision(i64::MIN));
            self.progress.push_back(progress);
        }
        assert!(
            self.progress.len() <= PROGRESS_MAX + self.watchers.len(),
            "answers that are owed are bounded"
        );
    }

    /// A watcher shall be told, unless that is under way.
    pub(super) fn notify_progress(&mut self, key: u64) {
        let Some(watcher) = self.watchers.get_mut(&key) else { return };
        if std::mem::replace(&mut watcher.is_owed_progress, true) {
            return;
        }
        let feed = watcher.shared.as_ref().clone();
        let token = self.feeds.sync(&feed, key);
        let asked = vec![Asked { feed, token, cohort: None }];
        self.progress.push_back(Progress { scope: Scope::One(key), asked, heard: BTreeMap::new() });
    }

    /// Asks one feed of each cohort that is not known to be complete up to `revision`.
    fn ask_cohorts(&self, progress: &mut Progress<F::Feed>, revision: Revision) {
        for (cohort, keys) in &self.standing.cohorts {
            let is_heard = progress.heard.get(cohort).is_some_and(|heard| heard.revision >= revision);
            let is_asked = || progress.asked.iter().any(|asked| asked.cohort == Some(*cohort));
            if is_heard || is_asked() {
                continue;
            }
            let key = *keys.first().expect("a cohort has a watcher");
            let watcher = self.watchers.get(&key).expect("a cohort has watchers that are there");
            let feed = watcher.shared.as_ref().clone();
            let token = self.feeds.sync(&feed, key);
            progress.heard.remove(cohort);
            progress.asked.push(Asked { feed, token, cohort: Some(*cohort) });
        }
    }

    /// Prepares the oldest answer if that may have become possible. To be called whatever else there is to send:
    /// otherwise a busy stream would never come to answer.
    pub(super) fn look_at_progress(&mut self) {
        if self.headers.ceiling().is_none() && !self.progress.is_empty() {
            self.prepare_progress();
        }
    }

    /// Puts the stream under the ceiling of the oldest answer that is owed, as soon as its feeds have spoken.
    fn prepare_progress(&mut self) {
        while self.headers.ceiling().is_none() {
            let Some(scope) = self.progress.front().map(|progress| progress.scope) else { return };
            debug_assert!(self.held.is_empty(), "nobody is held up below no ceiling");
            let opening = self.creating.front();
            if let (Scope::All { before }, Some(Creating::Watcher(first))) = (scope, opening)
                && *first < before
            {
                return;
            }
            match self.position(scope, Revision(i64::MIN)) {
                Position::Unheard | Position::Behind => return,
                Position::Nobody => {
                    self.end_progress();
                }
                Position::Upto(Heard { revision, .. }) => self.headers.set_ceiling(revision),
            }
        }
    }

    /// Answers the oldest progress request when every watcher it concerns has been sent everything up to the ceiling. To be
    /// called when nobody is left to be looked at.
    pub(super) fn poll_progress(&mut self) -> Option<Draft> {
        loop {
            self.prepare_progress();
            let ceiling = self.headers.ceiling()?;
            let scope = self.progress.front()?.scope;
            let position = self.position(scope, ceiling);
            // What came before they spoke is marked by now, and what is marked may be unread.
            self.take_marked();
            if !self.ready.is_empty() {
                return None;
            }
            let (term, is_future) = match (position, scope) {
                (Position::Unheard, _) => return None,
                (Position::Upto(heard), Scope::All { .. }) => {
                    (heard.term, self.standing.is_any_behind(ceiling))
                }
                (Position::Upto(heard), Scope::One(key)) => {
                    (heard.term, self.watchers.get(&key).is_none_or(|watcher| watcher.start > ceiling))
                }
                // It fell behind, or has another feed. etcd answers nothing when a watcher is behind; neither is the
                // stream held up for it.
                (Position::Behind | Position::Nobody, _) => (0, true),
            };
            if is_future {
                self.give_up_progress();
                continue;
            }
            let id = match scope {
                Scope::All { .. } => None,
                Scope::One(key) => self.watchers.get(&key).map(|watcher| watcher.id),
            };
            self.end_progress();
            self.release_held();
            return Some(Draft { told: Told::Progress { id }, says: Says::Progress { term } });
        }
    }

    /// How far those have come that the oldest answer speaks of. Whoever is not known to be complete up to `revision` is asked.
    fn position(&mut self, scope: Scope, revision: Revision) -> Position {
        self.hear();
        match scope {
            Scope::All { .. } => self.position_of_all(revision),
            Scope::One(key) => self.position_of(key, revision),
        }
    }

    fn position_of_all(&mut self, revision: Revision) -> Position {
        if mutant!(ProgressOfFastest) {
            return self.position_of_fastest();
        }
        if self.standing.announced == 0 {
            return Position::Nobody;
        }
        if !self.standing.are_all_in_step() {
            return Position::Behind;
        }
        if self.lowest(revision).is_none() {
            return Position::Unheard;
        }
        // Those that wait to be looked at may have come to another cohort, which matters only once all have spoken.
        for key in self.ready.clone() {
            self.settle(key);
        }
        if !self.standing.are_all_in_step() {
            return Position::Behind;
        }
        self.lowest(revision).map_or(Position::Unheard, Position::Upto)
    }

    /// How far the cohort has come that is least far, if all have said. Those are asked that are not known to be complete up to
    /// `revision`.
    fn lowest(&mut self, revision: Revision) -> Option<Heard> {
        assert!(self.standing.in_step > 0, "somebody is spoken of");
        let mut progress = self.progress.pop_front()?;
        self.ask_cohorts(&mut progress, revision);
        let heard = self.standing.cohorts.keys().map(|cohort| progress.heard.get(cohort).copied());
        let lower = |one: Heard, other: Heard| Heard {
            revision: one.revision.min(other.revision),
            term: one.term.max(other.term),
        };
        let lowest = heard.reduce(|one, other| one.zip(other).map(|(one, other)| lower(one, other)));
        self.progress.push_front(progress);
        lowest.flatten()
    }

    fn position_of(&mut self, key: u64, revision: Revision) -> Position {
        let Some(watcher) = self.watchers.get(&key) else { return Position::Nobody };
        let feed = watcher.shared.as_ref();
        let state = feed.state();
        let upto = state.log().filter(|_| state.end().is_none()).map(|log| log.upto());
        let Some(upto) = upto.filter(|_| matches!(watcher.state, State::Live { .. })) else {
            return Position::Behind;
        };
        let term = state.term();
        drop(state);
        let Some(progress) = self.progress.front_mut() else { return Position::Nobody };
        if !progress.asked.is_empty() {
            return Position::Unheard;
        }
        if upto < revision {
            let token = self.feeds.sync(feed, key);
            progress.asked.push(Asked { feed: feed.clone(), token, cohort: None });
            return Position::Unheard;
        }
        Position::Upto(Heard { revision: upto, term })
    }

    fn position_of_fastest(&self) -> Position {
        let uptos = self.watchers.values().filter(|watcher| matches!(watcher.state, State::Live { .. }));
        let uptos = uptos.filter_map(|watcher| {
            let feed = watcher.shared.as_ref().state();
            feed.log().map(|log| Heard { revision: log.upto(), term: feed.term() })
        });
        uptos.max_by_key(|heard| heard.revision).map_or(Position::Nobody, Position::Upto)
    }

    /// Takes in what the feeds have said that the oldest answer waits for. One that is over says nothing more.
    fn hear(&mut self) {
        let Some(progress) = self.progress.front_mut() else { return };
        let heard = &mut progress.heard;
        progress.asked.retain(|Asked { feed, token, .. }| {
            let feed = feed.state();
            let has_said = feed.synced(*token).is_some();
            // It may have been answered elsewhere than it was asked.
            if let Some((cohort, revision)) = feed.heard().filter(|_| has_said) {
                heard.insert(cohort, Heard { revision, term: feed.term() });
            }
            !has_said && !feed.is_over()
        });
    }

    /// Drops the oldest answer that is owed.
    fn give_up_progress(&mut self) {
        self.end_progress();
        self.headers.lift_ceiling();
        self.release_held();
    }

    fn end_progress(&mut self) {
        match self.progress.pop_front().map(|progress| progress.scope) {
            Some(Scope::All { .. }) => {
                assert!(self.requested > 0, "requests are counted");
                self.requested -= 1;
            }
            Some(Scope::One(key)) => {
                if let Some(watcher) = self.watchers.get_mut(&key) {
                    watcher.is_owed_progress = false;
                }
            }
            None => {}
        }
    }

    /// The ceiling is lifted, or about to be: what it held back goes on.
    fn release_held(&mut self) {
        for key in std::mem::take(&mut self.held) {
            self.queue(key);
        }
    }

    /// Takes note of the cohort that a watcher's feed is in by now. Only those count that the client was told of and that read
    /// nothing else.
    pub(super) fn settle(&mut self, key: u64) {
        let Some(watcher) = self.watchers.get_mut(&key) else { return };
        let cohort = match watcher.state {
            State::Live { .. } => watcher.shared.as_ref().state().cohort(),
            State::Opening { .. } | State::CatchingUp { .. } => None,
        };
        let before = std::mem::replace(&mut watcher.cohort, cohort);
        assert!(
            cohort.is_none() || matches!(watcher.state, State::Live { .. }),
            "only a live one is in step"
        );
        if before != cohort {
            self.standing.change(key, before, cohort);
        }
    }

    /// A watcher is being removed.
    pub(super) fn unsettle(&mut self, key: u64, watcher: &Watcher<F::Subscription>) {
        if !matches!(watcher.state, State::Opening { .. }) {
            self.standing.change(key, watcher.cohort, None);
            self.standing.forget(key, watcher.start);
        }
    }
}
