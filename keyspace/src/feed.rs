//! The watch feed: history as events, revision by revision. It is read in pages, which are bounded, and so may begin and end
//! inside a revision: one request may change more than anybody should be sent, or look at, in one piece.

use crate::{
    Event, KeyRange, KeyValue, Resolved, Revision, RevisionEvents,
    mvcc::{Mvcc, Record},
};

/// Where a reader of history is. The beginning of a revision is made from the revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FeedPlace {
    /// The first revision that was not looked at to its end.
    pub revision: Revision,
    /// The first of its changes, as its shard counts them, that was not looked at.
    pub change: u32,
    /// How many of those before it are in the range.
    pub passed: u32,
}

impl FeedPlace {
    /// Whether a part of the revision was looked at already.
    pub fn is_inside(&self) -> bool {
        self.change > 0
    }
}

impl From<Revision> for FeedPlace {
    fn from(revision: Revision) -> FeedPlace {
        FeedPlace { revision, change: 0, passed: 0 }
    }
}

/// Where a page of history ends. One event is found, or one change looked at, whatever the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageLimits {
    /// Bytes of events.
    pub bytes: usize,
    /// Events.
    pub events: usize,
    /// Changes that are looked at: of a narrow range in a long history few are in it.
    pub looked_at: usize,
}

impl PageLimits {
    /// Everything.
    pub const NONE: PageLimits = PageLimits { bytes: usize::MAX, events: usize::MAX, looked_at: usize::MAX };
}

/// A piece of history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryPage {
    /// The revisions found, ascending. The first is without the events before the place where the page begins, the last without
    /// those from `next` on. May be empty although history goes on.
    pub revisions: Vec<RevisionEvents>,
    /// Where to go on. Everything before it was looked at; when it is above what is resolved, all was.
    pub next: FeedPlace,
    /// How many changes were looked at.
    pub looked_at: usize,
}

impl HistoryPage {
    /// The last of the revisions, if more of its events may follow.
    pub fn incomplete(&self) -> Option<Revision> {
        let last = self.revisions.last()?.revision;
        (last == self.next.revision).then_some(last)
    }
}

/// The history asked for is not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoHistory {
    /// It is gone; the lowest revision that can be asked for.
    Compacted(Revision),
    /// No shard of the group holds the whole range.
    WrongShard,
}

/// Reads events from `from` on up to what is resolved, within limits.
pub(crate) fn history(
    mvcc: &Mvcc,
    resolved: Resolved,
    range: &KeyRange,
    prev_kv: bool,
    from: FeedPlace,
    limits: PageLimits,
) -> Result<HistoryPage, NoHistory> {
    if from.revision < mvcc.compact_revision() {
        return Err(NoHistory::Compacted(mvcc.compact_revision()));
    }
    assert!(from.is_inside() || from.passed == 0, "at the beginning of a revision nothing of it was passed");
    let end = resolved.revision().next();
    if from.revision >= end || range.is_empty() {
        let next = from.max(FeedPlace::from(end));
        return Ok(HistoryPage { revisions: Vec::new(), next, looked_at: 0 });
    }
    let mut page =
        Page { range, prev_kv, limits, revisions: Vec::new(), open: Vec::new(), found: 0, bytes: 0 };
    let visible = |record: &&Record| resolved.covers(record.revision());
    let (next, looked_at) = if range.is_single() {
        page.fill(mvcc, mvcc.key_log(&range.key, from.revision).take_while(visible), from)
    } else {
        page.fill(mvcc, mvcc.log_from((from.revision, from.change)).take_while(visible), from)
    };
    assert!(looked_at <= limits.looked_at.max(1), "a call looks at so much");
    assert!(page.found <= limits.events.max(1), "and finds so much");
    assert!(page.bytes <= limits.bytes || page.found == 1, "in so many bytes");
    let next = next.unwrap_or(FeedPlace::from(end));
    assert!(
        from < next && next <= FeedPlace::from(end),
        "each page goes on, and no further than what is resolved"
    );
    assert!(
        page.revisions.is_sorted_by(|one, next| one.revision < next.revision),
        "a revision is in one piece"
    );
    let last = page.revisions.last().map(|events| events.revision);
    assert!(last <= Some(next.revision), "the next page begins after this one");
    let first = page.revisions.first().map(|events| events.revision);
    assert!(first.is_none_or(|first| first >= from.revision), "what was asked for begins at `from`");
    Ok(HistoryPage { revisions: page.revisions, next, looked_at })
}

struct Page<'a> {
    range: &'a KeyRange,
    prev_kv: bool,
    limits: PageLimits,
    revisions: Vec<RevisionEvents>,
    /// Events of the revision that is being looked at.
    open: Vec<Event>,
    found: usize,
    bytes: usize,
}

impl Page<'_> {
    /// Takes in records in log order. Returns where it stopped early, and how many it looked at.
    fn fill<'a>(
        &mut self,
        mvcc: &Mvcc,
        records: impl Iterator<Item = &'a Record>,
        from: FeedPlace,
    ) -> (Option<FeedPlace>, usize) {
        let mut place = from;
        let mut looked_at = 0;
        // Those of a single key are found by revision, so the first ones may have been passed.
        for record in records.skip_while(|record| record.position() < (from.revision, from.change)) {
            let revision = record.revision();
            if revision > place.revision {
                self.end(place.revision);
                place = FeedPlace::from(revision);
            }
            assert_eq!(revision, place.revision, "the log ascends");
            let is_in_range = self.range.contains(record.key());
            let found = is_in_range && mvcc.is_kept(record);
            let event = found.then(|| record.event(self.before(mvcc, record)));
            if looked_at > 0 && !self.has_room(looked_at, event.as_ref()) {
                self.end(place.revision);
                return (Some(place), looked_at);
            }
            looked_at += 1;
            place.change = record.position().1 + 1;
            place.passed += u32::from(is_in_range);
            if let Some(event) = event {
                self.bytes += event.size_bytes();
                self.found += 1;
                self.open.push(event);
            }
        }
        self.end(place.revision);
        (None, looked_at)
    }

    fn before<'a>(&self, mvcc: &'a Mvcc, record: &Record) -> Option<&'a KeyValue> {
        self.prev_kv.then(|| mvcc.value_before(record.key(), record.revision())).flatten()
    }

    /// Whether another record may be looked at, and this event of it taken in.
    fn has_room(&self, looked_at: usize, event: Option<&Event>) -> bool {
        let fits = |event: &Event| {
            let is_first = self.found == 0;
            is_first
                || self.found < self.limits.events
                    && self.bytes.saturating_add(event.size_bytes()) <= self.limits.bytes
        };
        looked_at < self.limits.looked_at && event.is_none_or(fits)
    }

    /// Ends a revision, or the part of it that is in this page.
    fn end(&mut self, revision: Revision) {
        if !self.open.is_empty() {
            self.revisions.push(RevisionEvents { revision, events: self.open.drain(..).collect() });
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

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
            let page = history(&mvcc, resolved, &range, false, Revision(2).into(), PageLimits::NONE).unwrap();
            let told: Vec<i64> = page.revisions.iter().map(|events| events.revision.0).collect();
            assert_eq!((told, page.next), (vec![2, 3], Revision(4).into()), "{range:?}");
        }
    }
}
