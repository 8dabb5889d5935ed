//! The watch feed: history as events, revision by revision.

use bytes::Bytes;

use crate::{
    Event, KeyRange, Resolved, Revision, RevisionEvents,
    mvcc::{Mvcc, Record},
};

/// A piece of history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryPage {
    /// The revisions found, ascending. May be empty although history goes on: look at `next`.
    pub revisions: Vec<RevisionEvents>,
    /// Where to go on. Everything below was looked at; when it is above what is resolved, all was.
    pub next: Revision,
}

/// The history asked for is not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoHistory {
    /// It is gone; the lowest revision that can be asked for.
    Compacted(Revision),
    /// No shard of the group holds the whole range.
    WrongShard,
}

/// How much of the log one call looks at, so that a narrow range in a long history does not hold up everybody else.
const SCAN_MAX: usize = 20_000;

/// Reads whole revisions from `from` on up to what is resolved, at least one if there is one within reach.
pub(crate) fn history(
    mvcc: &Mvcc,
    resolved: Resolved,
    range: &KeyRange,
    from: Revision,
    max_bytes: usize,
    max_revisions: usize,
) -> Result<HistoryPage, NoHistory> {
    if from < mvcc.compact_revision() {
        return Err(NoHistory::Compacted(mvcc.compact_revision()));
    }
    let mut page = Page { revisions: Vec::new(), bytes: 0, max_bytes, max_revisions: max_revisions.max(1) };
    let end = resolved.revision().next();
    if from >= end || range.is_empty() {
        return Ok(HistoryPage { revisions: Vec::new(), next: from.max(end) });
    }
    let visible = |record: &&Record| resolved.covers(record.revision());
    let next = if range.is_single() {
        let records = mvcc.key_log(&range.key, from).take_while(visible);
        scan(mvcc, records, |_: &Bytes| true, usize::MAX, &mut page)
    } else {
        let records = mvcc.log_from(from).take_while(visible);
        scan(mvcc, records, |key: &Bytes| range.contains(key), SCAN_MAX, &mut page)
    };
    let next = next.unwrap_or(end);
    assert!(from < next && next <= end, "each page goes on, and no further than what is resolved");
    assert!(page.revisions.len() <= page.max_revisions, "a page is bounded");
    let last = page.revisions.last().map(|events| events.revision);
    assert!(last < Some(next), "the next page begins after this one");
    let first = page.revisions.first().map(|events| events.revision);
    assert!(first.is_none_or(|first| first >= from), "what was asked for begins at `from`");
    Ok(HistoryPage { revisions: page.revisions, next })
}

struct Page {
    revisions: Vec<RevisionEvents>,
    bytes: usize,
    max_bytes: usize,
    max_revisions: usize,
}

impl Page {
    fn is_full(&self) -> bool {
        self.revisions.len() >= self.max_revisions
            || self.bytes >= self.max_bytes && !self.revisions.is_empty()
    }

    fn push(&mut self, revision: Revision, events: &mut Vec<Event>) {
        if !events.is_empty() {
            let last = self.revisions.last().map(|events| events.revision);
            assert!(last < Some(revision), "a revision is in one piece, and after the one before");
            self.bytes += events.iter().map(Event::size_bytes).sum::<usize>();
            self.revisions.push(RevisionEvents { revision, events: events.drain(..).collect() });
        }
    }
}

/// Fills the page from records in log order. Returns the revision at which it stopped early.
fn scan<'a>(
    mvcc: &Mvcc,
    records: impl Iterator<Item = &'a Record>,
    matches: impl Fn(&Bytes) -> bool,
    scan_max: usize,
    page: &mut Page,
) -> Option<Revision> {
    let mut current = None;
    let mut events = Vec::new();
    for (scanned, record) in records.enumerate() {
        let revision = record.revision();
        if let Some(open) = current
            && open != revision
        {
            assert!(open < revision, "the log ascends");
            page.push(open, &mut events);
            if page.is_full() || scanned >= scan_max {
                return Some(revision);
            }
        }
        current = Some(revision);
        if matches(record.key()) && mvcc.is_kept(record) {
            events.push(record.event(mvcc.value_before(record.key(), revision)));
        }
    }
    if let Some(open) = current {
        page.push(open, &mut events);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LastWrite, LeaseId};

    #[test]
    fn what_is_written_and_not_resolved_is_not_told() {
        let mut mvcc = Mvcc::new();
        for revision in 2..=4 {
            let mut writer = mvcc.write(Revision(revision));
            writer.put(&Bytes::from_static(b"a"), Bytes::new(), LeaseId::NONE);
            writer.finish();
        }
        let resolved = Resolved::by_own_log(LastWrite::at(Revision(3)));
        for range in [KeyRange::single("a"), KeyRange::from("")] {
            let page = history(&mvcc, resolved, &range, Revision(2), usize::MAX, usize::MAX).unwrap();
            let told: Vec<i64> = page.revisions.iter().map(|events| events.revision.0).collect();
            assert_eq!((told, page.next), (vec![2, 3], Revision(4)), "{range:?}");
        }
    }
}
