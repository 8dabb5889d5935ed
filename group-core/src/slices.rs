//! Queries that are not answered in one step. They go back into the queue between their steps; what is here bounds how many of a
//! link's are under way, since each holds what it has gathered, and keeps garbage from being swept. The others wait for a place,
//! with nothing gathered: clients in turn, and bounded like all that waits.

use std::collections::BTreeMap;
use std::sync::Arc;

use fair_queue::{FairQueue, Flow, Full, Limits, Priority, Ticket};
use keyspace::{Query, SuspendedQuery};

use crate::clients::{Terms, Waiter};
use crate::env::LinkId;
use crate::lease_clock::LeaseList;

/// Queries of one link that may be under way.
pub(crate) const UNDER_WAY_MAX: usize = 8;
/// Bytes of queries of one link that may wait for a place, and of one client.
const WAITING: Limits = Limits { priority_bytes: 8 << 20, flow_bytes: 4 << 20 };
/// What a query takes beside its own bytes.
const QUERY_BYTES: usize = 512;

/// A query that takes more than one step.
#[derive(Debug)]
pub(crate) struct Slow {
    pub(crate) work: Work,
    pub(crate) about: About,
    /// Given back when it is dropped.
    pub(crate) place: Place,
}

#[derive(Debug)]
pub(crate) enum Work {
    /// It is begun, or begun anew.
    Begin(Query),
    GoOn(SuspendedQuery),
    /// Of a leader: [`Query::Leases`].
    List(LeaseList),
}

impl Work {
    /// What was asked: it may be begun again.
    fn into_query(self) -> Query {
        match self {
            Work::Begin(query) => query,
            Work::GoOn(suspended) => suspended.into_query(),
            Work::List(_) => Query::Leases,
        }
    }
}

/// What is known of a query besides itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct About {
    /// Its size as it was sent.
    pub(crate) bytes: usize,
    /// It was admitted by the leader, and may ask what only that one knows.
    pub(crate) linearizable: bool,
}

/// One of the places of a link.
#[derive(Debug)]
pub(crate) struct Place {
    _taken: Arc<()>,
}

#[derive(Debug)]
struct Waiting {
    request: u64,
    terms: Terms,
    query: Query,
    about: About,
}

#[derive(Debug)]
struct OfLink {
    /// Shared with each place that is taken.
    places: Arc<()>,
    waiting: FairQueue<Waiting>,
    /// By request.
    tickets: BTreeMap<u64, Ticket>,
}

impl OfLink {
    fn new() -> OfLink {
        OfLink { places: Arc::default(), waiting: FairQueue::new(WAITING), tickets: BTreeMap::new() }
    }

    fn take_place(&self) -> Option<Place> {
        let taken = Arc::strong_count(&self.places) - 1;
        assert!(taken <= UNDER_WAY_MAX, "no place is taken twice");
        (taken < UNDER_WAY_MAX).then(|| Place { _taken: Arc::clone(&self.places) })
    }
}

#[derive(Debug, Default)]
pub(crate) struct Slices {
    by_link: BTreeMap<LinkId, OfLink>,
}

impl Slices {
    /// A query has not come to its end in its first step. None if all places of its link are taken: it is begun again when one
    /// is free.
    ///
    /// # Errors
    /// Too many wait already.
    pub(crate) fn suspend(
        &mut self,
        waiter: Waiter,
        terms: Terms,
        work: Work,
        about: About,
    ) -> Result<Option<Slow>, Full> {
        let Waiter { link, request } = waiter;
        let of_link = self.by_link.entry(link).or_insert_with(OfLink::new);
        if let Some(place) = of_link.take_place() {
            return Ok(Some(Slow { work, about, place }));
        }
        assert!(Arc::strong_count(&of_link.places) > 1, "who waits, waits for somebody");
        let flow = Flow { priority: Priority::Large, ..terms.flow };
        let waiting = Waiting { request, terms, query: work.into_query(), about };
        let ticket = of_link.waiting.push(flow, about.bytes + QUERY_BYTES, waiting)?;
        let other = of_link.tickets.insert(request, ticket);
        if let Some(other) = other {
            // A gateway numbers its requests; what has the number of another one takes its place.
            of_link.waiting.remove(other);
        }
        Ok(None)
    }

    /// One that has waited for a place that is free.
    pub(crate) fn next_ready(&mut self) -> Option<(Waiter, Terms, Slow)> {
        // Who has nobody under way and nobody waiting is forgotten.
        self.by_link
            .retain(|_, of_link| Arc::strong_count(&of_link.places) > 1 || !of_link.waiting.is_empty());
        self.by_link.iter_mut().find_map(|(link, of_link)| {
            if of_link.waiting.is_empty() {
                return None;
            }
            let place = of_link.take_place()?;
            assert!(Arc::strong_count(&of_link.places) > 1, "a place that is taken is counted");
            let (_, Waiting { request, terms, query, about }) = of_link.waiting.next(|_| true)?;
            of_link.tickets.remove(&request);
            let waiter = Waiter { link: *link, request };
            Some((waiter, terms, Slow { work: Work::Begin(query), about, place }))
        })
    }

    /// Whether [`Slices::next_ready`] has one.
    pub(crate) fn has_ready(&self) -> bool {
        self.by_link.values().any(|of_link| !of_link.waiting.is_empty() && of_link.take_place().is_some())
    }

    /// Whether any waits for a place.
    pub(crate) fn has_waiting(&self) -> bool {
        self.by_link.values().any(|of_link| !of_link.waiting.is_empty())
    }

    /// Takes back one that waits. Returns whether it was there.
    pub(crate) fn cancel(&mut self, waiter: Waiter) -> bool {
        let Some(of_link) = self.by_link.get_mut(&waiter.link) else { return false };
        let ticket = of_link.tickets.remove(&waiter.request);
        ticket.is_some_and(|ticket| of_link.waiting.remove(ticket).is_some())
    }

    /// Places that are taken.
    #[cfg(test)]
    pub(crate) fn under_way(&self, link: LinkId) -> usize {
        self.by_link.get(&link).map_or(0, |of_link| Arc::strong_count(&of_link.places) - 1)
    }

    pub(crate) fn close_link(&mut self, link: LinkId) {
        self.by_link.remove(&link);
    }
}
