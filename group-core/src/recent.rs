//! The newest events of a group, whatever is compacted.
//!
//! A watch that was in step must not end because of a compaction: etcd's members send each revision as they apply it, and
//! compaction comes after it in their logs. Here a watch moves between replicas, with the leader or because a link broke,
//! and what it was not sent meanwhile may be compacted when it arrives. So each replica remembers what it applied last, up
//! to a number of bytes. Watches go on from here if compaction has taken their place from them; a watch that is created
//! with a revision of the past does not, since compaction is there to end that.

use std::collections::VecDeque;

use keyspace::{Event, HistoryPage, KeyRange, Resolved, Revision, RevisionEvents};

/// Bytes of events that are remembered. Keys and values are shared with the state until they are compacted. A watch on a
/// quiet range may be a second behind the last watermark, and a failover may take some more: so much holds what is written
/// in four seconds at 4,000 writes of 1 KiB per second.
const BYTES_MAX: usize = 32 << 20;
/// What an event takes beside its keys and values, and a revision beside its events.
const OVERHEAD_BYTES: usize = 200;

/// See the module. Invariant: every event of a revision above `floor`, up to the state's, is in `revisions`.
#[derive(Debug)]
pub(crate) struct Recent {
    revisions: VecDeque<RevisionEvents>,
    floor: Revision,
    bytes: usize,
}

impl Recent {
    /// Nothing is remembered of what a state at `revision` came through.
    pub(crate) fn new(revision: Revision) -> Recent {
        Recent { revisions: VecDeque::new(), floor: revision, bytes: 0 }
    }

    /// Takes in what was just applied.
    pub(crate) fn extend(&mut self, revisions: &[RevisionEvents]) {
        for revision in revisions {
            let last = self.revisions.back().map_or(self.floor, |last| last.revision);
            assert!(revision.revision > last, "revisions ascend: {} after {last}", revision.revision);
            self.bytes += bytes_of(revision);
            self.revisions.push_back(revision.clone());
        }
        while self.bytes > BYTES_MAX
            && let Some(oldest) = self.revisions.pop_front()
        {
            self.bytes -= bytes_of(&oldest);
            assert!(oldest.revision > self.floor, "what was forgotten stays so");
            self.floor = oldest.revision;
        }
        assert!(!self.revisions.is_empty() || self.bytes == 0, "what is counted is kept");
    }

    /// As [`keyspace::Keyspace::history`], for a state that is resolved so far. None if revisions from `from` on are forgotten.
    pub(crate) fn history(
        &self,
        range: &KeyRange,
        from: Revision,
        resolved: Resolved,
        max_bytes: usize,
        max_revisions: usize,
    ) -> Option<HistoryPage> {
        if from <= self.floor {
            return None;
        }
        let oldest = self.revisions.front().map(|oldest| oldest.revision);
        assert!(oldest.is_none_or(|oldest| oldest > self.floor), "what is forgotten is not remembered");
        let mut page = HistoryPage { revisions: Vec::new(), next: resolved.revision().next().max(from) };
        let mut bytes = 0;
        let first = self.revisions.partition_point(|known| known.revision < from);
        for known in self.revisions.range(first..) {
            if bytes >= max_bytes || page.revisions.len() >= max_revisions {
                page.next = known.revision;
                break;
            }
            let matching = known.events.iter().filter(|event| range.contains(&event.kv.key));
            let events: Vec<Event> = matching.cloned().collect();
            if !events.is_empty() {
                bytes += events.iter().map(Event::size_bytes).sum::<usize>();
                page.revisions.push(RevisionEvents { revision: known.revision, events: events.into() });
            }
        }
        let last = page.revisions.last().map(|events| events.revision);
        assert!(last < Some(page.next), "the next page begins after this one");
        assert!(page.next >= from, "and not before it");
        Some(page)
    }
}

fn bytes_of(revision: &RevisionEvents) -> usize {
    OVERHEAD_BYTES + revision.events.iter().map(|event| event.size_bytes() + OVERHEAD_BYTES).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use keyspace::{EventKind, KeyValue, LastWrite};

    use super::*;

    fn revision(number: i64, key: &str, bytes: usize) -> RevisionEvents {
        let kv = KeyValue {
            key: key.to_owned().into(),
            value: vec![0; bytes].into(),
            mod_revision: Revision(number),
            ..KeyValue::default()
        };
        let event = Event { kind: EventKind::Put, kv, prev_kv: None };
        RevisionEvents { revision: Revision(number), events: [event].into() }
    }

    fn numbers(recent: &Recent, key: &str, from: i64, now: i64, max: usize) -> Option<(Vec<i64>, i64)> {
        let range = KeyRange::single(key.to_owned());
        let resolved = Resolved::by_own_log(LastWrite::at(Revision(now)));
        let page = recent.history(&range, Revision(from), resolved, 1 << 20, max)?;
        Some((page.revisions.iter().map(|known| known.revision.0).collect(), page.next.0))
    }

    #[test]
    fn what_was_applied_is_found_by_range_and_in_pages() {
        let mut recent = Recent::new(Revision(4));
        recent.extend(&[revision(5, "a", 1), revision(6, "b", 1), revision(7, "a", 1), revision(9, "a", 1)]);
        assert_eq!(numbers(&recent, "a", 5, 9, 10), Some((vec![5, 7, 9], 10)));
        assert_eq!(numbers(&recent, "a", 5, 9, 2), Some((vec![5, 7], 9)));
        assert_eq!(numbers(&recent, "b", 7, 9, 10), Some((vec![], 10)));
        assert_eq!(numbers(&recent, "a", 20, 9, 10), Some((vec![], 20)), "of the future");
        assert_eq!(numbers(&recent, "a", 4, 9, 10), None, "it may have been there before");
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let mut recent = Recent::new(Revision(1));
        for number in 2..102 {
            recent.extend(&[revision(number, "a", 1 << 20)]);
            assert!(recent.bytes <= BYTES_MAX);
        }
        assert_eq!(numbers(&recent, "a", recent.floor.0, 101, 1), None);
        let (found, _) = numbers(&recent, "a", recent.floor.0 + 1, 101, 1).unwrap();
        assert_eq!(found, [recent.floor.0 + 1]);
        assert_eq!(recent.revisions.len() as i64, 101 - recent.floor.0);
    }
}
