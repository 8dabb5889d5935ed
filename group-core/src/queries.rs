//! Queries that may be answered, until their turn comes, and large answers to writes, until their link has room.
//!
//! Answers may be large and many, and a group's task is one. So queries get a share of each turn, and a link gets
//! answers only while it has room for them: a gateway that asks for more than it takes waits, with nothing made for it.
//! A serializable query waits a moment, too, when its gateway has already shown a newer revision than this replica has.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::time::Duration;

use consensus_core::Mono;
use keyspace::{Outcome, Query, Resolved, Revision};

use crate::env::{LinkId, Links};

/// How long a serializable query waits for a revision that was seen elsewhere. A follower hears of a commit with the next
/// entry, or after two milliseconds; one that is further behind answers with what it has.
const BEHIND_MAX: Duration = Duration::from_millis(100);

/// What may wait for one link's room, and for all links together for a revision: the queries' bytes, and [`QUERY_BYTES`] for
/// each. Beyond, queries are refused: a gateway that takes no answers could otherwise fill the memory with questions.
const LINK_BYTES_MAX: usize = 16 << 20;
/// What a query takes beside its own bytes.
const QUERY_BYTES: usize = 512;

/// A query that may be answered.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) request: u64,
    pub(crate) asked: Asked,
}

#[derive(Debug)]
pub(crate) enum Asked {
    Query {
        query: Query,
        /// Its size as it was sent.
        bytes: usize,
        /// It was admitted by the leader, and may ask what only that one knows.
        linearizable: bool,
    },
    /// Carried out already; the answer is large.
    Outcome(Outcome),
}

/// The query was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooMany;

impl Admitted {
    fn cost_bytes(&self) -> usize {
        match &self.asked {
            Asked::Query { bytes, .. } => bytes + QUERY_BYTES,
            // Its writer waits for it, and sends nothing else under that number.
            Asked::Outcome(_) => 0,
        }
    }
}

#[derive(Debug)]
struct Waiting {
    queries: VecDeque<Admitted>,
    bytes: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Queries {
    /// By link, in the order of their admission.
    admitted: BTreeMap<LinkId, Waiting>,
    /// The link that was served last.
    served_last: LinkId,
    /// Those that wait for a revision, under it and a number of their own.
    behind: BTreeMap<(Revision, u64), (LinkId, Admitted)>,
    /// When they stop waiting, in order; some may have stopped before.
    patience: VecDeque<(Mono, (Revision, u64))>,
    next_behind: u64,
    behind_bytes: usize,
}

impl Queries {
    /// Does not take the query when too many wait for this link.
    pub(crate) fn admit(&mut self, link: LinkId, query: Admitted) -> Result<(), TooMany> {
        let empty = || Waiting { queries: VecDeque::new(), bytes: 0 };
        let waiting = self.admitted.entry(link).or_insert_with(empty);
        let cost = query.cost_bytes();
        if cost > 0 && waiting.bytes > LINK_BYTES_MAX {
            return Err(TooMany);
        }
        waiting.bytes += cost;
        waiting.queries.push_back(query);
        Ok(())
    }

    /// As [`Queries::admit`], but not before the state is resolved to `revision`, or some time has passed.
    pub(crate) fn admit_at(
        &mut self,
        now: Mono,
        revision: Revision,
        link: LinkId,
        query: Admitted,
    ) -> Result<(), TooMany> {
        if self.behind_bytes > LINK_BYTES_MAX {
            return Err(TooMany);
        }
        self.behind_bytes += query.cost_bytes();
        let key = (revision, self.next_behind);
        self.next_behind += 1;
        self.behind.insert(key, (link, query));
        self.patience.push_back((now.after(BEHIND_MAX), key));
        Ok(())
    }

    /// The state is resolved so far. Those whose link has too many waiting by now go to `refused`.
    pub(crate) fn handle_resolved(
        &mut self,
        now: Mono,
        resolved: Resolved,
        mut refused: impl FnMut(LinkId, u64),
    ) {
        let mut caught_up = Vec::new();
        while let Some(first) = self.behind.first_entry()
            && resolved.covers(first.key().0)
        {
            caught_up.push(first.remove());
        }
        while let Some((until, key)) = self.patience.front()
            && (*until <= now || !self.behind.contains_key(key))
        {
            caught_up.extend(self.behind.remove(key));
            self.patience.pop_front();
        }
        for (link, query) in caught_up {
            self.behind_bytes = less(self.behind_bytes, &query);
            let request = query.request;
            if self.admit(link, query).is_err() {
                refused(link, request);
            }
        }
        assert!(!self.behind.is_empty() || self.behind_bytes == 0, "nobody waits, and nothing is counted");
        assert!(self.behind.len() <= self.patience.len(), "nobody waits for ever");
    }

    /// When [`Queries::handle_resolved`] has something to do at the latest.
    pub(crate) fn deadline(&self) -> Option<Mono> {
        self.patience.front().map(|(until, _)| *until)
    }

    /// Whether [`Queries::next`] has one.
    pub(crate) fn has_next(&self, links: &dyn Links) -> bool {
        self.admitted.keys().any(|link| links.has_room(*link))
    }

    /// The next one whose link has room for its answer; links take turns.
    pub(crate) fn next(&mut self, links: &dyn Links) -> Option<(LinkId, Admitted)> {
        let later = (Bound::Excluded(self.served_last), Bound::Unbounded);
        let with_room = |(link, _): &(&LinkId, &Waiting)| links.has_room(**link);
        let link = *self.admitted.range(later).chain(&self.admitted).find(with_room)?.0;
        let waiting = self.admitted.get_mut(&link)?;
        let next = waiting.queries.pop_front()?;
        waiting.bytes = less(waiting.bytes, &next);
        if waiting.queries.is_empty() {
            assert_eq!(waiting.bytes, 0, "what is counted waits");
            self.admitted.remove(&link);
        }
        assert!(links.has_room(link), "an answer has room on its link");
        self.served_last = link;
        Some((link, next))
    }

    pub(crate) fn close_link(&mut self, id: LinkId) {
        self.admitted.remove(&id);
        self.behind.retain(|_, (link, query)| {
            let stays = *link != id;
            if !stays {
                self.behind_bytes = less(self.behind_bytes, query);
            }
            stays
        });
    }
}

/// What is counted without this one.
fn less(bytes: usize, query: &Admitted) -> usize {
    bytes.checked_sub(query.cost_bytes()).expect("a query that waits is counted")
}

#[cfg(test)]
mod tests {
    use keyspace::{KeyRange, LastWrite, RangeRequest};

    use super::*;

    /// Every link has room but this one.
    struct NoRoom(Option<LinkId>);

    impl Links for NoRoom {
        fn has_room(&self, link: LinkId) -> bool {
            self.0 != Some(link)
        }

        fn has_room_for_large(&self, link: LinkId) -> bool {
            self.has_room(link)
        }
    }

    fn query(request: u64) -> Admitted {
        let query = Query::Range(RangeRequest::new(KeyRange::single("a")));
        Admitted { request, asked: Asked::Query { query, bytes: 1 << 20, linearizable: false } }
    }

    fn resolved(revision: i64) -> Resolved {
        Resolved::by_own_log(LastWrite::at(Revision(revision)))
    }

    fn next(queries: &mut Queries) -> Option<u64> {
        queries.next(&NoRoom(None)).map(|(_, query)| query.request)
    }

    fn nobody(_: LinkId, request: u64) {
        panic!("{request} was refused");
    }

    #[test]
    fn what_waits_for_a_link_is_bounded_but_for_answers_to_writes() {
        let mut queries = Queries::default();
        let link = LinkId(1);
        let mut request = 0;
        while queries.admit(link, query(request)).is_ok() {
            request += 1;
        }
        assert_eq!(request, 16);
        let done = Ok(keyspace::Reply::Done { revision: Revision(1) });
        queries.admit(link, Admitted { request, asked: Asked::Outcome(done) }).unwrap();
        assert_eq!(next(&mut queries), Some(0));
        queries.admit(link, query(18)).unwrap();
        assert!(queries.admit(link, query(19)).is_err());
        let refused = queries.admit_at(Mono(1), Revision(2), link, query(20));
        refused.unwrap();
        let mut refused = Vec::new();
        queries.handle_resolved(Mono(1), resolved(2), |_, request| refused.push(request));
        assert_eq!(refused, [20]);
    }

    #[test]
    fn links_take_turns_and_keep_their_order() {
        let mut queries = Queries::default();
        for (link, request) in [(1, 1), (1, 2), (1, 3), (2, 11), (2, 12)] {
            queries.admit(LinkId(link), query(request)).unwrap();
        }
        let order: Vec<_> = std::iter::from_fn(|| next(&mut queries)).collect();
        assert_eq!(order, [1, 11, 2, 12, 3]);
        assert!(!queries.has_next(&NoRoom(None)));
    }

    #[test]
    fn a_link_without_room_holds_up_nobody() {
        let mut queries = Queries::default();
        let links = [LinkId(1), LinkId(2)];
        let full = NoRoom(Some(links[0]));
        queries.admit(links[0], query(1)).unwrap();
        queries.admit(links[1], query(11)).unwrap();
        let next_with_room = |queries: &mut Queries| queries.next(&full).map(|(_, query)| query.request);
        assert_eq!(next_with_room(&mut queries), Some(11));
        assert_eq!((queries.has_next(&full), next_with_room(&mut queries)), (false, None));
        assert_eq!(next(&mut queries), Some(1));
        queries.admit(links[0], query(2)).unwrap();
        queries.close_link(links[0]);
        assert_eq!(next(&mut queries), None);
    }

    #[test]
    fn a_query_waits_for_its_revision_but_not_for_long() {
        let mut queries = Queries::default();
        let link = LinkId(1);
        let start = Mono(1000);
        for (request, revision) in [(1, 7), (2, 5), (3, 9)] {
            queries.admit_at(start, Revision(revision), link, query(request)).unwrap();
        }
        queries.handle_resolved(start, resolved(4), nobody);
        assert_eq!(next(&mut queries), None);
        queries.handle_resolved(start, resolved(7), nobody);
        assert_eq!((next(&mut queries), next(&mut queries), next(&mut queries)), (Some(2), Some(1), None));
        let end = queries.deadline().unwrap();
        assert_eq!(end, start.after(BEHIND_MAX));
        queries.handle_resolved(end, resolved(8), nobody);
        assert_eq!(queries.behind_bytes, 0);
        assert_eq!((next(&mut queries), queries.deadline()), (Some(3), None));
    }
}
