//! Requests of gateways that wait: writes for their entry to be applied, reads for their read point.
//!
//! A read that nobody waits for is taken back. A write is not: it is proposed as soon as it is taken up, and from then on only
//! the log knows what becomes of it.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use api::gaios::link::v1::{self as wire, refused::Why};
use consensus_core::{Mono, Slot, Tag};
use fair_queue::{Flow, Priority, Source};
use keyspace::{Query, SessionId};

use crate::env::LinkId;
use crate::replies::Replies;

/// Whom to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Waiter {
    pub(crate) link: LinkId,
    pub(crate) request: u64,
}

/// What a gateway says of a request, whatever it asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Terms {
    /// Whose it is, and how urgent.
    pub(crate) flow: Flow,
    /// By then it must have been begun, or nobody wants the answer.
    pub(crate) until: Option<Mono>,
}

impl Terms {
    pub(crate) fn of(request: &wire::Request, now: Mono) -> Terms {
        let priority = match request.priority() {
            wire::Priority::Liveness => Priority::Liveness,
            wire::Priority::Small => Priority::Small,
            wire::Priority::Large => Priority::Large,
        };
        let source = Source { user: request.user, connection: request.connection };
        let worth = Duration::from_millis(request.worth_ms.into());
        let until = (!worth.is_zero()).then(|| now.after(worth));
        Terms { flow: Flow { priority, source }, until }
    }

    /// Nobody waits any more.
    pub(crate) fn is_past(&self, now: Mono) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

/// What a proposal of this node is about; names it until it is applied or rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    Write(SessionId, u64),
    OpenSession(u128),
    /// Where the group is to be led.
    LeaderRegions,
    /// Proposed by the group itself: nobody waits.
    Internal,
}

/// What a waiting read will do once it may.
#[derive(Debug)]
pub(crate) enum Reading {
    Query {
        query: Query,
        /// Its size as it was sent.
        bytes: usize,
    },
    KeepAlive(wire::KeepAlive),
    WatchOpen(wire::WatchOpen),
    /// How far this watch has come.
    WatchSync(u64),
}

#[derive(Debug)]
pub(crate) struct PendingRead {
    pub(crate) waiter: Waiter,
    pub(crate) terms: Terms,
    pub(crate) reading: Reading,
}

/// What a read waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Awaited {
    /// That the engine is asked for its read point, at the end of the turn.
    Question,
    /// The read point, which the engine is finding out.
    Point(Tag),
    /// The read point is known, and not applied yet.
    Apply(Slot),
}

/// A read's place: what it waits for, and in which order it came.
type Place = (Awaited, u64);

#[derive(Debug, Default)]
pub(crate) struct Clients {
    next_tag: u64,
    /// Proposals handed to the engine and not yet applied or rejected.
    proposals: BTreeMap<Tag, Subject>,
    writes: BTreeMap<Subject, Waiting>,
    reads: BTreeMap<Place, PendingRead>,
    /// Where each waits.
    places: BTreeMap<Waiter, Place>,
    next_read: u64,
}

#[derive(Debug)]
struct Waiting {
    tag: Tag,
    waiters: Vec<Waiter>,
}

/// Whether a write has to be proposed, or is under way already.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Enrolled {
    Propose(Tag),
    UnderWay,
}

impl Clients {
    /// Notes who waits for `subject`. A retry that overtakes the answer joins the proposal under way.
    pub(crate) fn enrol(&mut self, subject: Subject, waiter: Waiter) -> Enrolled {
        if let Some(waiting) = self.writes.get_mut(&subject) {
            // A gateway asks again only when it gave the first request up, so one waiter a link is enough.
            waiting.waiters.retain(|other| other.link != waiter.link);
            waiting.waiters.push(waiter);
            assert_eq!(self.proposals.get(&waiting.tag), Some(&subject), "who waits has proposed");
            return Enrolled::UnderWay;
        }
        let tag = self.tag();
        let other = self.proposals.insert(tag, subject);
        assert_eq!(other, None, "a tag names one proposal");
        self.writes.insert(subject, Waiting { tag, waiters: vec![waiter] });
        assert_eq!(self.writes.len(), self.proposals.len(), "each proposal is of one subject");
        Enrolled::Propose(tag)
    }

    /// A tag for a proposal that nobody waits for.
    pub(crate) fn internal(&mut self) -> Tag {
        self.tag()
    }

    /// Who waited for `subject`, which is applied.
    pub(crate) fn applied(&mut self, subject: Subject) -> Vec<Waiter> {
        match self.writes.remove(&subject) {
            Some(waiting) => {
                let proposed = self.proposals.remove(&waiting.tag);
                assert_eq!(proposed, Some(subject), "who waits has proposed");
                waiting.waiters
            }
            None => Vec::new(),
        }
    }

    /// Who waited for a proposal that has certainly not entered the log. `None`: the group had made it itself.
    pub(crate) fn rejected(&mut self, tag: Tag) -> Option<Vec<Waiter>> {
        let subject = self.proposals.remove(&tag)?;
        let of_subject = self.writes.get(&subject).map(|waiting| waiting.tag);
        assert_eq!(of_subject, Some(tag), "what is refused is what was waited for");
        Some(self.writes.remove(&subject).map_or_else(Vec::new, |waiting| waiting.waiters))
    }

    /// A read whose read point the engine is to find out.
    pub(crate) fn ask(&mut self, read: PendingRead) {
        self.wait_for(Awaited::Question, read);
    }

    /// Whether there are some.
    pub(crate) fn asks(&self) -> bool {
        self.reads.first_key_value().is_some_and(|((awaited, _), _)| *awaited == Awaited::Question)
    }

    /// One question for all of them.
    pub(crate) fn wait_for_point(&mut self) -> Tag {
        let tag = self.tag();
        for read in self.take_reads(Awaited::Question..=Awaited::Question) {
            self.wait_for(Awaited::Point(tag), read);
        }
        assert!(!self.asks(), "all that was asked is in the question");
        tag
    }

    pub(crate) fn point_found(&mut self, tag: Tag) -> Vec<PendingRead> {
        self.take_reads(Awaited::Point(tag)..=Awaited::Point(tag))
    }

    pub(crate) fn wait_for_apply(&mut self, point: Slot, read: PendingRead) {
        self.wait_for(Awaited::Apply(point), read);
    }

    /// Reads that may be served now that `applied` is.
    pub(crate) fn readable(&mut self, applied: Slot) -> Vec<PendingRead> {
        let first = self.reads.range((Awaited::Apply(Slot(0)), 0)..).next();
        if first.is_none_or(|((point, _), _)| *point > Awaited::Apply(applied)) {
            return Vec::new();
        }
        self.take_reads(Awaited::Apply(Slot(0))..=Awaited::Apply(applied))
    }

    /// Takes back a read. Returns whether it was there.
    pub(crate) fn cancel(&mut self, waiter: Waiter) -> bool {
        let Some(place) = self.places.remove(&waiter) else { return false };
        let read = self.reads.remove(&place);
        assert!(read.is_some_and(|read| read.waiter == waiter), "a read waits where it is noted");
        true
    }

    /// Whether reads wait.
    pub(crate) fn has_reads(&self) -> bool {
        !self.reads.is_empty()
    }

    fn wait_for(&mut self, awaited: Awaited, read: PendingRead) {
        self.next_read += 1;
        let place = (awaited, self.next_read);
        if let Some(other) = self.places.insert(read.waiter, place) {
            // A gateway numbers its requests; what has the number of another one takes its place.
            self.reads.remove(&other);
        }
        self.reads.insert(place, read);
        assert_eq!(self.reads.len(), self.places.len(), "each read has a place");
    }

    /// Those that wait for these, in the order in which they came.
    fn take_reads(&mut self, awaited: RangeInclusive<Awaited>) -> Vec<PendingRead> {
        let (first, last) = awaited.into_inner();
        let taken = self.reads.extract_if((first, 0)..=(last, u64::MAX), |_, _| true);
        let taken: Vec<PendingRead> = taken.map(|(_, read)| read).collect();
        for read in &taken {
            self.places.remove(&read.waiter);
        }
        assert_eq!(self.reads.len(), self.places.len(), "each read has a place");
        taken
    }

    /// Leadership is lost: proposals under way may still be chosen, by the next leader; `why` says so.
    pub(crate) fn leadership_lost(&mut self, why: Why, replies: &mut Replies) {
        self.proposals.clear();
        for waiter in std::mem::take(&mut self.writes).into_values().flat_map(|waiting| waiting.waiters) {
            replies.refuse(waiter.link, waiter.request, why);
        }
        for read in self.take_reads(Awaited::Point(Tag(0))..=Awaited::Point(Tag(u64::MAX))) {
            replies.refuse(read.waiter.link, read.waiter.request, Why::NotLeader);
        }
    }

    pub(crate) fn link_closed(&mut self, link: LinkId) {
        for waiting in self.writes.values_mut() {
            waiting.waiters.retain(|waiter| waiter.link != link);
        }
        let of_link = Waiter { link, request: 0 }..=Waiter { link, request: u64::MAX };
        for (_, place) in self.places.extract_if(of_link, |_, _| true) {
            self.reads.remove(&place);
        }
    }

    fn tag(&mut self) -> Tag {
        self.next_tag += 1;
        Tag(self.next_tag)
    }
}
