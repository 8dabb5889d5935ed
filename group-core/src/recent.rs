//! The newest events of a group, whatever is compacted.
//!
//! A watch that was in step must not end because of a compaction: etcd's members send each revision as they apply it, and
//! compaction comes after it in their logs. Here a watch moves between replicas, with the leader or because a link broke,
//! and what it was not sent meanwhile may be compacted when it arrives. So each replica remembers what it applied last, up
//! to a number of bytes. Watches go on from here if compaction has taken their place from them; a watch that is created
//! with a revision of the past does not, since compaction is there to end that.

use std::collections::VecDeque;

use keyspace::{Event, FeedPlace, HistoryPage, KeyRange, PageLimits, Resolved, Revision, RevisionEvents};

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

    /// As [`keyspace::Keyspace::history`], for a state that is resolved so far; but so many changes are looked at that a
    /// revision comes to an end, or a page. None if revisions from `from` on are forgotten.
    pub(crate) fn history(
        &self,
        range: &KeyRange,
        prev_kv: bool,
        from: FeedPlace,
        resolved: Resolved,
        limits: PageLimits,
    ) -> Option<HistoryPage> {
        if from.revision <= self.floor {
            return None;
        }
        let oldest = self.revisions.front().map(|oldest| oldest.revision);
        assert!(oldest.is_none_or(|oldest| oldest > self.floor), "what is forgotten is not remembered");
        let end = FeedPlace::from(resolved.revision().next());
        let mut page = HistoryPage { revisions: Vec::new(), next: end.max(from), looked_at: 0 };
        let mut room = limits;
        let first = self.revisions.partition_point(|known| known.revision < from.revision);
        for known in self.revisions.range(first..) {
            if page.looked_at > 0 && page.looked_at >= limits.looked_at {
                page.next = known.revision.into();
                break;
            }
            let passed = if known.revision == from.revision { from.passed } else { 0 };
            page.looked_at += known.events.len();
            let (events, stopped) =
                matching(&known.events, range, passed, &mut room, page.revisions.is_empty());
            if !events.is_empty() {
                let view = |event: &Event| event.view(prev_kv);
                let events = events.into_iter().map(view).collect();
                page.revisions.push(RevisionEvents { revision: known.revision, events });
            }
            if let Some((change, passed)) = stopped {
                page.next = FeedPlace { revision: known.revision, change, passed };
                break;
            }
        }
        let last = page.revisions.last().map(|events| events.revision);
        assert!(last <= Some(page.next.revision), "the next page begins after this one");
        assert!(page.next >= from, "and not before it");
        Some(page)
    }
}

/// The events in a range behind those that were passed, as far as there is room. If it ends before the last, the index of the
/// first that is left, and how many before it are in the range.
fn matching<'a>(
    events: &'a [Event],
    range: &KeyRange,
    passed: u32,
    room: &mut PageLimits,
    mut is_first: bool,
) -> (Vec<&'a Event>, Option<(u32, u32)>) {
    let mut found = Vec::new();
    let in_range = events.iter().enumerate().filter(|(_, event)| range.contains(&event.kv.key));
    for ((index, event), number) in in_range.zip(0_u32..).skip(passed as usize) {
        let size = event.size_bytes();
        if !is_first && (room.events == 0 || room.bytes < size) {
            // The first one in the range may be the first of the revision.
            let change = if number == 0 { 0 } else { u32::try_from(index).unwrap_or(u32::MAX) };
            return (found, Some((change, number)));
        }
        is_first = false;
        room.events = room.events.saturating_sub(1);
        room.bytes = room.bytes.saturating_sub(size);
        found.push(event);
    }
    (found, None)
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
        let limits = PageLimits { events: max, ..PageLimits::NONE };
        let page = recent.history(&range, false, Revision(from).into(), resolved, limits)?;
        assert!(!page.next.is_inside());
        Some((page.revisions.iter().map(|known| known.revision.0).collect(), page.next.revision.0))
    }

    #[test]
    fn a_revision_is_read_in_pieces_of_any_size() {
        let changed = |number: i64, keys: &str| {
            let events = keys.chars().flat_map(|key| revision(number, &key.to_string(), 10).events.to_vec());
            RevisionEvents { revision: Revision(number), events: events.collect() }
        };
        let mut recent = Recent::new(Revision(4));
        let all = [changed(5, "xaabx"), changed(6, "xx"), changed(7, "aaxab")];
        recent.extend(&all);
        let range = KeyRange::between("a", "c");
        let resolved = Resolved::by_own_log(LastWrite::at(Revision(8)));
        let whole = recent.history(&range, true, Revision(5).into(), resolved, PageLimits::NONE).unwrap();
        assert_eq!(whole.next, Revision(9).into());
        for limits in (0..8).flat_map(|events| (0..300).map(move |bytes| (events, bytes, bytes % 11))) {
            let limits = PageLimits { events: limits.0, bytes: limits.1, looked_at: limits.2 };
            let (mut next, mut read) = (FeedPlace::from(Revision(5)), Vec::new());
            while next.revision <= Revision(8) {
                let page = recent.history(&range, true, next, resolved, limits).unwrap();
                assert!(page.next > next);
                let found: Vec<&Event> =
                    page.revisions.iter().flat_map(|known| known.events.iter()).collect();
                let bytes: usize = found.iter().map(|event| event.size_bytes()).sum();
                assert!(found.len() <= limits.events.max(1));
                assert!(bytes <= limits.bytes || found.len() == 1);
                read.extend(found.into_iter().cloned());
                next = page.next;
            }
            let events: Vec<Event> = whole.revisions.iter().flat_map(|known| known.events.to_vec()).collect();
            assert_eq!(read, events, "{limits:?}");
        }
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
