//! Queries that may be answered, until their turn comes.
//!
//! Answers may be large and many, and a group's task is one. So queries get a share of each turn, and a link gets
//! answers only while it has room for them: a gateway that asks for more than it takes waits, with nothing made for it.
//! A serializable query waits a moment, too, when its gateway has already shown a newer revision than this replica has.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use consensus_core::Mono;
use keyspace::{Query, Revision};

use crate::link::Link;

/// How long a serializable query waits for a revision that was seen elsewhere. A follower hears of a commit with the next
/// entry, or after two milliseconds; one that is further behind answers with what it has.
const BEHIND_MAX: Duration = Duration::from_millis(100);

/// A query that may be answered.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) request: u64,
    pub(super) query: Query,
    /// It was admitted by the leader, and may ask what only that one knows.
    pub(super) linearizable: bool,
}

#[derive(Debug, Default)]
pub(super) struct Queries {
    /// By link, in the order of their admission.
    admitted: BTreeMap<u64, (Arc<Link>, VecDeque<Admitted>)>,
    /// The link that was served last.
    served_last: u64,
    /// Those that wait for a revision, under it and a number of their own.
    behind: BTreeMap<(Revision, u64), (Arc<Link>, Admitted)>,
    /// When they stop waiting, in order; some may have stopped before.
    patience: VecDeque<(Mono, (Revision, u64))>,
    next_behind: u64,
}

impl Queries {
    pub(super) fn admit(&mut self, link: &Arc<Link>, query: Admitted) {
        let waiting = self.admitted.entry(link.id).or_insert_with(|| (Arc::clone(link), VecDeque::new()));
        waiting.1.push_back(query);
    }

    /// As [`Queries::admit`], but not before the state is at `revision`, or some time has passed.
    pub(super) fn admit_at(&mut self, now: Mono, revision: Revision, link: &Arc<Link>, query: Admitted) {
        let key = (revision, self.next_behind);
        self.next_behind += 1;
        self.behind.insert(key, (Arc::clone(link), query));
        self.patience.push_back((now.after(BEHIND_MAX), key));
    }

    /// The state is at `revision`.
    pub(super) fn handle_revision(&mut self, now: Mono, revision: Revision) {
        while let Some(first) = self.behind.first_entry()
            && first.key().0 <= revision
        {
            let (link, query) = first.remove();
            self.admit(&link, query);
        }
        while let Some((until, key)) = self.patience.front()
            && (*until <= now || !self.behind.contains_key(key))
        {
            if let Some((link, query)) = self.behind.remove(key) {
                self.admit(&link, query);
            }
            self.patience.pop_front();
        }
    }

    /// When [`Queries::handle_revision`] has something to do at the latest.
    pub(super) fn deadline(&self) -> Option<Mono> {
        self.patience.front().map(|(until, _)| *until)
    }

    /// Whether [`Queries::next`] has one.
    pub(super) fn has_next(&self) -> bool {
        self.admitted.values().any(|(link, _)| link.has_room())
    }

    /// The next one whose link has room for its answer; links take turns.
    pub(super) fn next(&mut self) -> Option<(Arc<Link>, Admitted)> {
        let later = (Bound::Excluded(self.served_last), Bound::Unbounded);
        let with_room = |(_, (link, _)): &(&u64, &(Arc<Link>, VecDeque<Admitted>))| link.has_room();
        let id = *self.admitted.range(later).chain(&self.admitted).find(with_room)?.0;
        let (link, queries) = self.admitted.get_mut(&id)?;
        let link = Arc::clone(link);
        let next = queries.pop_front();
        if queries.is_empty() {
            self.admitted.remove(&id);
        }
        self.served_last = id;
        next.map(|query| (link, query))
    }

    pub(super) fn close_link(&mut self, id: u64) {
        self.admitted.remove(&id);
        self.behind.retain(|_, (link, _)| link.id != id);
    }
}

#[cfg(test)]
mod tests {
    use keyspace::{KeyRange, RangeRequest};

    use super::*;

    fn query(request: u64) -> Admitted {
        let query = Query::Range(RangeRequest::new(KeyRange::single("a")));
        Admitted { request, query, linearizable: false }
    }

    fn next(queries: &mut Queries) -> Option<u64> {
        queries.next().map(|(_, query)| query.request)
    }

    #[test]
    fn links_take_turns_and_keep_their_order() {
        let mut queries = Queries::default();
        let links = [Link::unconnected(), Link::unconnected()];
        for (link, request) in [(0, 1), (0, 2), (0, 3), (1, 11), (1, 12)] {
            queries.admit(&links[link], query(request));
        }
        let order: Vec<_> = std::iter::from_fn(|| next(&mut queries)).collect();
        assert_eq!(order, [1, 11, 2, 12, 3]);
        assert!(!queries.has_next());
    }

    #[test]
    fn a_link_without_room_holds_up_nobody() {
        let mut queries = Queries::default();
        let links = [Link::unconnected(), Link::unconnected()];
        links[0].begin_large();
        queries.admit(&links[0], query(1));
        queries.admit(&links[1], query(11));
        assert_eq!(next(&mut queries), Some(11));
        assert_eq!((queries.has_next(), next(&mut queries)), (false, None));
        links[0].end_large();
        assert_eq!(next(&mut queries), Some(1));
        queries.admit(&links[0], query(2));
        queries.close_link(links[0].id);
        assert_eq!(next(&mut queries), None);
    }

    #[test]
    fn a_query_waits_for_its_revision_but_not_for_long() {
        let mut queries = Queries::default();
        let link = Link::unconnected();
        let start = Mono(1000);
        for (request, revision) in [(1, 7), (2, 5), (3, 9)] {
            queries.admit_at(start, Revision(revision), &link, query(request));
        }
        queries.handle_revision(start, Revision(4));
        assert_eq!(next(&mut queries), None);
        queries.handle_revision(start, Revision(7));
        assert_eq!((next(&mut queries), next(&mut queries), next(&mut queries)), (Some(2), Some(1), None));
        let end = queries.deadline().unwrap();
        assert_eq!(end, start.after(BEHIND_MAX));
        queries.handle_revision(end, Revision(8));
        assert_eq!((next(&mut queries), queries.deadline()), (Some(3), None));
    }
}
