//! Queries that may be answered, until their turn comes, and large answers to writes, until their link has room.
//!
//! Answers may be large and many, and a group's task is one. So queries get a share of each turn, and a link gets
//! answers only while it has room for them: a gateway that asks for more than it takes waits, with nothing made for it.
//! Links are served in turn, and on each of them the clients, by what their queries cost ([`FairQueue`]).
//! A serializable query waits a moment, too, when its gateway has already shown a newer revision than this replica has.
//!
//! A query that nobody waits for any more is dropped: when its gateway takes it back, or when its time has passed.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use consensus_core::Mono;
use fair_queue::{FairQueue, Flow, Limits, Priority, Ticket, Turns};
use keyspace::{Gathered, Query, Resolved, Revision};

use crate::clients::{Terms, Waiter};
use crate::env::{LinkId, Links};
use crate::slices::{About, Place, Slow};

/// How long a serializable query waits for a revision that was seen elsewhere. A follower hears of a commit with the next
/// entry, or after two milliseconds; one that is further behind answers with what it has.
const BEHIND_MAX: Duration = Duration::from_millis(100);

/// What may wait for all links together for a revision: the queries' bytes, and [`QUERY_BYTES`] for each. Beyond, queries are
/// refused: a gateway that takes no answers could otherwise fill the memory with questions.
const BEHIND_BYTES_MAX: usize = 16 << 20;
/// The same for one link's room: half of the above for each priority, of which one client has a half at most.
const LINK_LIMITS: Limits = Limits { priority_bytes: BEHIND_BYTES_MAX / 2, flow_bytes: BEHIND_BYTES_MAX / 4 };
/// What a query takes beside its own bytes.
const QUERY_BYTES: usize = 512;

/// A query that may be answered.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) request: u64,
    pub(crate) terms: Terms,
    pub(crate) asked: Asked,
}

#[derive(Debug)]
pub(crate) enum Asked {
    Query(Query, About),
    /// It takes more than one step.
    Slow(Slow),
    /// Carried out already; the answer is large. With the place that it was gathered in, if it was.
    Answered(Gathered, Option<Place>),
}

/// The query was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooMany;

/// A query whose turn it is.
#[derive(Debug)]
pub(crate) struct Next {
    pub(crate) link: LinkId,
    pub(crate) query: Admitted,
    /// Names its client, which is charged when it is known what it cost.
    pub(crate) ticket: Ticket,
}

impl Admitted {
    fn waiting_bytes(&self) -> usize {
        match &self.asked {
            Asked::Query(_, about) | Asked::Slow(Slow { about, .. }) => about.bytes + QUERY_BYTES,
            // Whoever asked waits for it, and sends nothing else under that number; or it holds a place.
            Asked::Answered(..) => 0,
        }
    }
}

/// What waits for a link's room.
#[derive(Debug)]
struct OfLink {
    queue: FairQueue<Admitted>,
    /// By request.
    tickets: BTreeMap<u64, Ticket>,
}

impl OfLink {
    fn new() -> OfLink {
        OfLink { queue: FairQueue::new(LINK_LIMITS), tickets: BTreeMap::new() }
    }

    fn remove(&mut self, request: u64) -> Option<Admitted> {
        self.queue.remove(self.tickets.remove(&request)?)
    }
}

/// For what a link has room.
#[derive(Debug, Clone, Copy)]
struct Room {
    small: bool,
    large: bool,
}

impl Room {
    fn of(links: &dyn Links, link: LinkId) -> Room {
        let small = links.has_room(link);
        Room { small, large: small && links.has_room_for_large(link) }
    }

    fn is_for(self, priority: Priority) -> bool {
        match priority {
            Priority::Liveness | Priority::Small => self.small,
            Priority::Large => self.large,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Queries {
    admitted: Turns<LinkId, OfLink>,
    /// Those that wait for a revision, under it and a number of their own.
    behind: BTreeMap<(Revision, u64), (LinkId, Admitted)>,
    /// Where each of them is.
    behind_of: BTreeMap<Waiter, (Revision, u64)>,
    /// When they stop waiting, in order; some may have stopped before.
    patience: VecDeque<(Mono, (Revision, u64))>,
    next_behind: u64,
    behind_bytes: usize,
}

impl Queries {
    /// Does not take the query when too many wait for this link.
    pub(crate) fn admit(&mut self, link: LinkId, query: Admitted) -> Result<(), TooMany> {
        let of_link = self.admitted.enter(link, OfLink::new);
        let (request, flow, bytes) = (query.request, query.terms.flow, query.waiting_bytes());
        let pushed = match &query.asked {
            Asked::Query(..) => of_link.queue.push(flow, bytes, query),
            Asked::Slow(_) | Asked::Answered(..) => {
                let flow = Flow { priority: Priority::Large, ..flow };
                Ok(of_link.queue.push_always(flow, bytes, query))
            }
        };
        if let Ok(ticket) = pushed
            && let Some(other) = of_link.tickets.insert(request, ticket)
        {
            // A gateway numbers its requests; what has the number of another one takes its place.
            of_link.queue.remove(other);
        }
        if of_link.queue.is_empty() {
            self.admitted.leave(link);
        }
        pushed.map(|_| ()).map_err(|_| TooMany)
    }

    /// As [`Queries::admit`], but not before the state is resolved to `revision`, or some time has passed.
    pub(crate) fn admit_at(
        &mut self,
        now: Mono,
        revision: Revision,
        link: LinkId,
        query: Admitted,
    ) -> Result<(), TooMany> {
        if self.behind_bytes > BEHIND_BYTES_MAX {
            return Err(TooMany);
        }
        let waiter = Waiter { link, request: query.request };
        self.remove_behind(waiter);
        self.behind_bytes += query.waiting_bytes();
        let key = (revision, self.next_behind);
        self.next_behind += 1;
        self.behind.insert(key, (link, query));
        self.behind_of.insert(waiter, key);
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
            self.behind_of.remove(&Waiter { link, request });
            if self.admit(link, query).is_err() {
                refused(link, request);
            }
        }
        assert!(!self.behind.is_empty() || self.behind_bytes == 0, "nobody waits, and nothing is counted");
        assert!(self.behind.len() <= self.patience.len(), "nobody waits for ever");
        assert_eq!(self.behind.len(), self.behind_of.len(), "each has a place");
    }

    /// When [`Queries::handle_resolved`] has something to do at the latest.
    pub(crate) fn deadline(&self) -> Option<Mono> {
        self.patience.front().map(|(until, _)| *until)
    }

    /// Whether [`Queries::next`] may have one.
    pub(crate) fn has_next(&self, links: &dyn Links) -> bool {
        self.first(links).is_some()
    }

    /// The next one for whose answer its link has room, and whose time has not passed; the others are dropped, and counted. It
    /// is charged for its bytes.
    pub(crate) fn next(&mut self, now: Mono, links: &dyn Links, expired: &mut u64) -> Option<Next> {
        loop {
            let (link, room) = self.first(links)?;
            let of_link = self.admitted.get_mut(link)?;
            let (ticket, query) = of_link.queue.next(|priority| room.is_for(priority))?;
            of_link.tickets.remove(&query.request);
            if of_link.queue.is_empty() {
                self.admitted.leave(link);
            }
            self.admitted.serve(link, (query.waiting_bytes() + QUERY_BYTES) as u64);
            if !query.terms.is_past(now) {
                assert!(links.has_room(link), "an answer has room on its link");
                return Some(Next { link, query, ticket });
            }
            *expired += 1;
        }
    }

    /// The link that is next, and for what it has room.
    fn first(&self, links: &dyn Links) -> Option<(LinkId, Room)> {
        let of_link = |(link, of_link): (LinkId, &OfLink)| {
            let room = Room::of(links, link);
            of_link.queue.has_next(|priority| room.is_for(priority)).then_some((link, room))
        };
        self.admitted.waiting().find_map(of_link)
    }

    /// Takes in again what is not answered yet: it is the next one of its client. One that turned out to be of another priority
    /// goes behind those.
    pub(crate) fn put_back(&mut self, next: Next, priority: Priority) {
        let Next { link, query, ticket } = next;
        let of_link = self.admitted.enter(link, OfLink::new);
        let (request, bytes, mut flow) = (query.request, query.waiting_bytes(), ticket.flow());
        let ticket = if flow.priority == priority {
            of_link.queue.put_back(ticket, bytes, query);
            ticket
        } else {
            flow.priority = priority;
            of_link.queue.push_always(flow, bytes, query)
        };
        let other = of_link.tickets.insert(request, ticket);
        assert!(other.is_none(), "a query that is being answered does not wait");
    }

    /// A query of this client has cost so much, in bytes and what is worth as much.
    pub(crate) fn charge(&mut self, link: LinkId, flow: Flow, cost: u64) {
        if let Some(of_link) = self.admitted.get_mut(link) {
            of_link.queue.charge(flow, cost);
        }
        self.admitted.charge(link, cost);
    }

    /// Takes back a query, wherever it waits. Returns whether it was there.
    pub(crate) fn cancel(&mut self, waiter: Waiter) -> bool {
        if let Some(of_link) = self.admitted.get_mut(waiter.link)
            && of_link.remove(waiter.request).is_some()
        {
            if of_link.queue.is_empty() {
                self.admitted.leave(waiter.link);
            }
            return true;
        }
        self.remove_behind(waiter)
    }

    fn remove_behind(&mut self, waiter: Waiter) -> bool {
        let Some(key) = self.behind_of.remove(&waiter) else { return false };
        let (_, query) = self.behind.remove(&key).expect("a query waits where it is noted");
        self.behind_bytes = less(self.behind_bytes, &query);
        true
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.behind.is_empty() && self.admitted.waiting().next().is_none()
    }

    pub(crate) fn close_link(&mut self, id: LinkId) {
        self.admitted.remove(id);
        let of_link = Waiter { link: id, request: 0 }..=Waiter { link: id, request: u64::MAX };
        for (_, key) in self.behind_of.extract_if(of_link, |_, _| true) {
            let (_, query) = self.behind.remove(&key).expect("a query waits where it is noted");
            self.behind_bytes = less(self.behind_bytes, &query);
        }
    }
}

/// What is counted without this one.
fn less(bytes: usize, query: &Admitted) -> usize {
    bytes.checked_sub(query.waiting_bytes()).expect("a query that waits is counted")
}

#[cfg(test)]
mod tests {
    use fair_queue::Source;
    use keyspace::{KeyRange, LastWrite, RangeRequest};

    use super::*;

    const NOW: Mono = Mono(1000);
    const LINK: LinkId = LinkId(1);

    /// Links without room, and those without room for large answers.
    #[derive(Default)]
    struct NoRoom {
        at_all: Option<LinkId>,
        for_large: Option<LinkId>,
    }

    impl Links for NoRoom {
        fn has_room(&self, link: LinkId) -> bool {
            self.at_all != Some(link)
        }

        fn has_room_for_large(&self, link: LinkId) -> bool {
            self.has_room(link) && self.for_large != Some(link)
        }
    }

    fn of(priority: Priority, connection: u64) -> Terms {
        let source = Source { user: connection, connection };
        Terms { flow: Flow { priority, source }, until: None }
    }

    fn asked(request: u64, bytes: usize, terms: Terms) -> Admitted {
        let query = Query::Range(RangeRequest::new(KeyRange::single("a")));
        Admitted { request, terms, asked: Asked::Query(query, About { bytes, linearizable: false }) }
    }

    fn query(request: u64) -> Admitted {
        asked(request, 1 << 20, Terms::default())
    }

    fn resolved(revision: i64) -> Resolved {
        Resolved::by_own_log(LastWrite::at(Revision(revision)))
    }

    fn next(queries: &mut Queries) -> Option<u64> {
        queries.next(NOW, &NoRoom::default(), &mut 0).map(|next| next.query.request)
    }

    fn nobody(_: LinkId, request: u64) {
        panic!("{request} was refused");
    }

    fn waiter(request: u64) -> Waiter {
        Waiter { link: LINK, request }
    }

    #[test]
    fn what_waits_for_a_link_is_bounded_but_for_answers_to_writes() {
        let mut queries = Queries::default();
        let mut request = 0;
        while queries.admit(LINK, query(request)).is_ok() {
            request += 1;
        }
        assert_eq!(request, 4, "of one client");
        let done: keyspace::Outcome = Ok(keyspace::Reply::Done { revision: Revision(1) });
        let done = Admitted { request, terms: Terms::default(), asked: Asked::Answered(done.into(), None) };
        queries.admit(LINK, done).unwrap();
        for connection in 1..=4 {
            queries.admit(LINK, asked(100 + connection, 1 << 20, of(Priority::Small, connection))).unwrap();
        }
        let too_many = queries.admit(LINK, asked(200, 0, of(Priority::Small, 9)));
        assert_eq!(too_many, Err(TooMany), "of all together");
        queries.admit(LINK, asked(201, 0, of(Priority::Large, 9))).unwrap();
        queries.admit_at(NOW, Revision(2), LINK, query(20)).unwrap();
        let mut refused = Vec::new();
        queries.handle_resolved(NOW, resolved(2), |_, request| refused.push(request));
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
        assert!(!queries.has_next(&NoRoom::default()) && queries.is_empty());
    }

    #[test]
    fn a_link_without_room_holds_up_nobody() {
        let mut queries = Queries::default();
        let links = [LinkId(1), LinkId(2)];
        let full = NoRoom { at_all: Some(links[0]), ..NoRoom::default() };
        queries.admit(links[0], query(1)).unwrap();
        queries.admit(links[1], query(11)).unwrap();
        let next_with_room =
            |queries: &mut Queries| queries.next(NOW, &full, &mut 0).map(|next| next.query.request);
        assert_eq!(next_with_room(&mut queries), Some(11));
        assert_eq!((queries.has_next(&full), next_with_room(&mut queries)), (false, None));
        assert_eq!(next(&mut queries), Some(1));
        queries.admit(links[0], query(2)).unwrap();
        queries.close_link(links[0]);
        assert_eq!(next(&mut queries), None);
    }

    #[test]
    fn without_room_for_large_answers_small_ones_are_served() {
        let mut queries = Queries::default();
        let no_large = NoRoom { for_large: Some(LINK), ..NoRoom::default() };
        queries.admit(LINK, asked(1, 0, of(Priority::Large, 1))).unwrap();
        assert!(!queries.has_next(&no_large));
        queries.admit(LINK, asked(2, 0, of(Priority::Small, 1))).unwrap();
        assert_eq!(queries.next(NOW, &no_large, &mut 0).map(|next| next.query.request), Some(2));
        assert!(queries.next(NOW, &no_large, &mut 0).is_none());
        assert_eq!(next(&mut queries), Some(1));
    }

    #[test]
    fn one_query_of_another_client_is_second_at_the_latest() {
        let mut queries = Queries::default();
        for request in 0..300 {
            queries.admit(LINK, asked(request, 100, of(Priority::Large, 1))).unwrap();
        }
        assert_eq!(next(&mut queries), Some(0));
        queries.admit(LINK, asked(1000, 100, of(Priority::Large, 2))).unwrap();
        let two = [next(&mut queries), next(&mut queries)];
        assert!(two.contains(&Some(1000)), "{two:?}");
    }

    #[test]
    fn what_is_suspended_goes_on_first_of_its_client_and_is_charged() {
        let mut queries = Queries::default();
        for request in 0..4 {
            queries.admit(LINK, asked(request, 100, of(Priority::Large, request % 2))).unwrap();
        }
        let begun = queries.next(NOW, &NoRoom::default(), &mut 0).unwrap();
        assert_eq!(begun.query.request, 0);
        let flow = begun.ticket.flow();
        queries.put_back(begun, flow.priority);
        queries.charge(LINK, flow, 1 << 20);
        let order: Vec<_> = std::iter::from_fn(|| next(&mut queries)).collect();
        assert_eq!(order, [1, 3, 0, 2]);
    }

    #[test]
    fn what_turns_out_to_be_large_waits_for_room_for_that() {
        let mut queries = Queries::default();
        let no_large = NoRoom { for_large: Some(LINK), ..NoRoom::default() };
        queries.admit(LINK, asked(1, 0, of(Priority::Small, 1))).unwrap();
        let begun = queries.next(NOW, &no_large, &mut 0).unwrap();
        queries.put_back(begun, Priority::Large);
        assert!(!queries.has_next(&no_large));
        let again = queries.next(NOW, &NoRoom::default(), &mut 0).unwrap();
        assert_eq!((again.query.request, again.ticket.flow().priority), (1, Priority::Large));
        queries.put_back(again, Priority::Large);
        assert!(queries.cancel(waiter(1)) && queries.is_empty());
    }

    #[test]
    fn what_is_taken_back_costs_no_step() {
        let mut queries = Queries::default();
        for request in 0..3000 {
            queries.admit(LINK, asked(request, 0, of(Priority::Large, 1))).unwrap();
        }
        queries.admit(LINK, asked(3000, 0, of(Priority::Large, 1))).unwrap();
        queries.admit_at(NOW, Revision(2), LINK, query(3001)).unwrap();
        for request in 0..3000 {
            assert!(queries.cancel(waiter(request)) && !queries.cancel(waiter(request)));
        }
        assert!(queries.cancel(waiter(3001)) && !queries.cancel(waiter(3001)));
        assert_eq!((next(&mut queries), next(&mut queries)), (Some(3000), None));
        queries.handle_resolved(NOW, resolved(2), nobody);
        assert!(queries.is_empty() && queries.behind_bytes == 0);
    }

    #[test]
    fn what_has_come_to_its_time_is_not_begun() {
        let mut queries = Queries::default();
        let until = |until| Terms { until: Some(until), ..Terms::default() };
        for (request, at) in [(1, NOW), (2, Mono(NOW.0 - 1)), (3, Mono(NOW.0 + 1)), (4, NOW)] {
            queries.admit(LINK, asked(request, 0, until(at))).unwrap();
        }
        let mut expired = 0;
        let first = queries.next(NOW, &NoRoom::default(), &mut expired);
        assert_eq!(first.map(|next| next.query.request), Some(3));
        assert!(queries.next(NOW, &NoRoom::default(), &mut expired).is_none());
        assert_eq!(expired, 3);
    }

    #[test]
    fn a_query_waits_for_its_revision_but_not_for_long() {
        let mut queries = Queries::default();
        let link = LinkId(1);
        for (request, revision) in [(1, 7), (2, 5), (3, 9)] {
            queries.admit_at(NOW, Revision(revision), link, query(request)).unwrap();
        }
        queries.handle_resolved(NOW, resolved(4), nobody);
        assert_eq!(next(&mut queries), None);
        queries.handle_resolved(NOW, resolved(7), nobody);
        assert_eq!((next(&mut queries), next(&mut queries), next(&mut queries)), (Some(2), Some(1), None));
        let end = queries.deadline().unwrap();
        assert_eq!(end, NOW.after(BEHIND_MAX));
        queries.handle_resolved(end, resolved(8), nobody);
        assert_eq!(queries.behind_bytes, 0);
        assert_eq!((next(&mut queries), queries.deadline()), (Some(3), None));
    }
}
