//! Requests of gateways that wait: writes for their entry to be applied, reads for their read point.

use std::collections::BTreeMap;

use api::gaios::link::v1::{self as wire, refused::Why};
use consensus_core::{Slot, Tag};
use keyspace::{Query, SessionId};

use crate::env::LinkId;
use crate::replies::Replies;

/// Whom to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Waiter {
    pub(crate) link: LinkId,
    pub(crate) request: u64,
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
    pub(crate) reading: Reading,
}

#[derive(Debug, Default)]
pub(crate) struct Clients {
    next_tag: u64,
    /// Proposals handed to the engine and not yet applied or rejected.
    proposals: BTreeMap<Tag, Subject>,
    writes: BTreeMap<Subject, Waiting>,
    /// Reads whose read point the engine is finding out.
    reads: BTreeMap<Tag, Vec<PendingRead>>,
    /// Reads whose read point is not applied yet.
    unapplied: BTreeMap<Slot, Vec<PendingRead>>,
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

    pub(crate) fn wait_for_point(&mut self, reads: Vec<PendingRead>) -> Tag {
        let tag = self.tag();
        let others = self.reads.insert(tag, reads);
        assert!(others.is_none(), "a tag names one question");
        tag
    }

    pub(crate) fn point_found(&mut self, tag: Tag) -> Vec<PendingRead> {
        self.reads.remove(&tag).unwrap_or_default()
    }

    pub(crate) fn wait_for_apply(&mut self, point: Slot, reads: Vec<PendingRead>) {
        self.unapplied.entry(point).or_default().extend(reads);
    }

    /// Reads that may be served now that `applied` is.
    pub(crate) fn readable(&mut self, applied: Slot) -> Vec<PendingRead> {
        if self.unapplied.first_key_value().is_none_or(|(point, _)| *point > applied) {
            return Vec::new();
        }
        let later = self.unapplied.split_off(&applied.next());
        assert!(self.unapplied.keys().all(|point| *point <= applied), "no read before its point");
        std::mem::replace(&mut self.unapplied, later).into_values().flatten().collect()
    }

    /// Leadership is lost: proposals under way may still be chosen, by the next leader; `why` says so.
    pub(crate) fn leadership_lost(&mut self, why: Why, replies: &mut Replies) {
        self.proposals.clear();
        for waiter in std::mem::take(&mut self.writes).into_values().flat_map(|waiting| waiting.waiters) {
            replies.refuse(waiter.link, waiter.request, why);
        }
        for read in std::mem::take(&mut self.reads).into_values().flatten() {
            replies.refuse(read.waiter.link, read.waiter.request, Why::NotLeader);
        }
    }

    pub(crate) fn link_closed(&mut self, link: LinkId) {
        for waiting in self.writes.values_mut() {
            waiting.waiters.retain(|waiter| waiter.link != link);
        }
        for reads in self.reads.values_mut().chain(self.unapplied.values_mut()) {
            reads.retain(|read| read.waiter.link != link);
        }
    }

    fn tag(&mut self) -> Tag {
        self.next_tag += 1;
        Tag(self.next_tag)
    }
}
