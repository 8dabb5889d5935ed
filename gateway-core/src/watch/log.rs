//! The recent events of one range, as a feed brought them: a window that many watchers read at their own pace.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use keyspace::{Event, Revision, RevisionEvents};

/// The events of one revision.
#[derive(Debug)]
pub struct Entry {
    /// Which one.
    pub revision: Revision,
    /// All of them that touch the range.
    pub events: Arc<[Event]>,
    /// About what the entry takes in memory.
    bytes: usize,
    /// Its share of the feed's credit.
    cost: u64,
    encoded: OnceLock<Bytes>,
}

impl Entry {
    /// `cost` is its share of the feed's credit.
    pub fn new(revision: RevisionEvents, cost: u64) -> Entry {
        let bytes = revision.events.iter().map(Event::size_bytes).sum();
        let RevisionEvents { revision, events } = revision;
        Entry { revision, events, bytes, cost, encoded: OnceLock::new() }
    }

    /// About what it takes in memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All events in the form that clients get, by `encode`: made once for all watchers.
    pub fn encoded(&self, encode: impl FnOnce(&Entry) -> Bytes) -> &Bytes {
        self.encoded.get_or_init(|| encode(self))
    }
}

/// See the module. Invariant: every event of the range with a revision in `(floor, upto]` is in `entries`.
#[derive(Debug)]
pub struct FeedLog {
    entries: VecDeque<Arc<Entry>>,
    floor: Revision,
    upto: Revision,
    /// The newest revision of the store that is known; at least `upto` once the feed is in step.
    revision: Revision,
    bytes: usize,
    bytes_max: usize,
}

impl FeedLog {
    /// A log that carries revisions from `start` on.
    pub fn new(start: Revision, revision: Revision, bytes_max: usize) -> FeedLog {
        FeedLog {
            entries: VecDeque::new(),
            floor: start.previous(),
            upto: start.previous(),
            revision,
            bytes: 0,
            bytes_max,
        }
    }

    /// Revisions up to this one are gone.
    pub fn floor(&self) -> Revision {
        self.floor
    }

    /// Every event up to this revision has come.
    pub fn upto(&self) -> Revision {
        self.upto
    }

    /// The newest revision of the store that is known.
    pub fn revision(&self) -> Revision {
        self.revision.max(self.upto)
    }

    /// Takes in what the feed brought; `cost` is what the whole took of the credit. Returns the part of it that no
    /// entry carries.
    pub fn push(
        &mut self,
        revisions: Vec<RevisionEvents>,
        upto: Revision,
        revision: Revision,
        cost: u64,
    ) -> u64 {
        let mut rest = cost;
        let last = revisions.len().saturating_sub(1);
        for (index, revision) in revisions.into_iter().enumerate() {
            debug_assert!(revision.revision > self.upto, "a feed repeats nothing");
            let cost = if index == last { std::mem::take(&mut rest) } else { 0 };
            let entry = Entry::new(revision, cost);
            self.bytes += entry.bytes;
            self.upto = entry.revision;
            self.entries.push_back(Arc::new(entry));
        }
        self.handle_upto(upto, revision);
        debug_assert!(
            self.entries.front().is_none_or(|first| first.revision > self.floor),
            "what is forgotten is gone"
        );
        rest
    }

    /// Every event up to `upto` has come.
    pub fn handle_upto(&mut self, upto: Revision, revision: Revision) {
        self.upto = self.upto.max(upto);
        self.revision = self.revision.max(revision);
    }

    /// Forgets the oldest entries until the log is within its bound. The newest entry stays, whatever its size.
    pub fn evict(&mut self) {
        while self.bytes > self.bytes_max && self.entries.len() > 1 {
            self.forget_first();
        }
        assert!(
            self.bytes <= self.bytes_max || self.entries.len() <= 1,
            "only one revision may exceed the window"
        );
    }

    /// Forgets an entry up to a revision that exceeds the bound alone.
    pub fn forget_oversized_through(&mut self, revision: Revision) {
        if self.bytes > self.bytes_max && self.entries.len() == 1 {
            self.forget_through(revision);
        }
    }

    /// Forgets entries up to a revision. Returns their cost.
    pub fn forget_through(&mut self, revision: Revision) -> u64 {
        let mut cost = 0;
        while self.entries.front().is_some_and(|entry| entry.revision <= revision) {
            cost += self.forget_first();
        }
        cost
    }

    /// The entries from revision `next` on. Only meaningful for `next` above the floor.
    pub fn from(&self, next: Revision) -> impl ExactSizeIterator<Item = &Arc<Entry>> {
        debug_assert!(next > self.floor, "what is forgotten cannot be read");
        // Nearly every watcher is at the end of the log.
        let first = match self.entries.back() {
            Some(last) if last.revision >= next => {
                self.entries.partition_point(|entry| entry.revision < next)
            }
            Some(_) | None => self.entries.len(),
        };
        self.entries.range(first..)
    }

    fn forget_first(&mut self) -> u64 {
        let Some(entry) = self.entries.pop_front() else { return 0 };
        assert!(self.bytes >= entry.bytes, "the bytes of every entry are counted");
        self.bytes -= entry.bytes;
        self.floor = self.floor.max(entry.revision);
        assert!(self.floor <= self.upto, "what is forgotten was there");
        assert!(!self.entries.is_empty() || self.bytes == 0, "nothing is kept, and nothing is counted");
        entry.cost
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use bytes::Bytes;
    use keyspace::{EventKind, KeyValue};

    use super::*;

    pub(crate) fn event(key: &str, revision: i64) -> Event {
        let kv = KeyValue {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::from(revision.to_string()),
            create_revision: Revision(revision),
            mod_revision: Revision(revision),
            version: 1,
            ..KeyValue::default()
        };
        Event { kind: EventKind::Put, kv, prev_kv: None }
    }

    pub(crate) fn revision(revision: i64, keys: &[&str]) -> RevisionEvents {
        let events = keys.iter().map(|key| event(key, revision)).collect();
        RevisionEvents { revision: Revision(revision), events }
    }

    fn revisions(log: &FeedLog, next: i64) -> Vec<i64> {
        log.from(Revision(next)).map(|entry| entry.revision.0).collect()
    }

    #[test]
    fn watchers_read_from_their_own_place() {
        let mut log = FeedLog::new(Revision(5), Revision(4), 1 << 20);
        assert_eq!((log.floor(), log.upto()), (Revision(4), Revision(4)));
        assert_eq!(
            log.push(vec![revision(5, &["a"]), revision(8, &["a", "b"])], Revision(9), Revision(9), 70),
            0
        );
        assert_eq!(revisions(&log, 5), [5, 8]);
        assert_eq!(revisions(&log, 6), [8]);
        assert_eq!(revisions(&log, 9), [] as [i64; 0]);
        assert_eq!((log.floor(), log.upto(), log.revision()), (Revision(4), Revision(9), Revision(9)));
    }

    #[test]
    fn what_is_evicted_raises_the_floor() {
        let mut log = FeedLog::new(Revision(2), Revision(1), 100);
        for number in 2..10 {
            log.push(vec![revision(number, &["key"])], Revision(number), Revision(number), 10);
            log.evict();
        }
        assert!(log.bytes <= 100);
        assert_eq!(revisions(&log, log.floor().0 + 1).len() as i64, 9 - log.floor().0);
    }

    #[test]
    fn the_credit_comes_back_with_the_last_entry_of_a_frame() {
        let mut log = FeedLog::new(Revision(2), Revision(1), 1 << 20);
        assert_eq!(log.push(vec![revision(2, &["a"]), revision(3, &["a"])], Revision(3), Revision(3), 70), 0);
        assert_eq!(log.push(vec![], Revision(5), Revision(5), 9), 9, "nothing carries it");
        assert_eq!(log.forget_through(Revision(2)), 0);
        assert_eq!(log.forget_through(Revision(3)), 70);
        assert_eq!(log.floor(), Revision(3));
    }
}
