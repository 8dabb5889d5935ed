//! What the headers of one stream say. Every response leaves through [`Headers::stamp`], and nothing else can make a
//! [`Stamp`].
//!
//! A client takes the revision of an answer without events for "this stream has told me everything up to here": Kubernetes
//! serves lists by it. So such a revision is never below anything the stream has said before. And a progress answer is
//! never above what each watcher it speaks of has been sent: before it is given, the stream is put under a *ceiling*, a
//! revision that nothing may exceed until the answer has left. So events of writers who do not rest cannot outrun it.

use keyspace::Revision;

use super::Told;

/// What a client is told, and under which header.
#[derive(Clone, Debug)]
pub struct Frame {
    /// What.
    pub told: Told,
    /// The header.
    pub stamp: Stamp,
}

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    revision: Revision,
    term: u64,
}

impl Stamp {
    /// Its revision.
    pub fn revision(self) -> Revision {
        self.revision
    }

    /// Its term.
    pub fn term(self) -> u64 {
        self.term
    }
}

/// A response that has not left.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub(super) told: Told,
    pub(super) says: Says,
}

/// Which revision a response speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Says {
    /// None. etcd leaves the header's revision at 0 when it cancels for compaction.
    Nothing { term: u64 },
    /// This one, which its events do not exceed.
    Events { revision: Revision, term: u64 },
    /// From behind this one on the watcher hears everything. See [`Headers::now`].
    Created { revision: Revision, term: u64 },
    /// Where the store is, as far as is known.
    Now,
    /// The ceiling, which is lifted.
    Progress { term: u64 },
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Headers {
    /// The newest revision that any header said.
    said: Revision,
    /// The newest revision and term that are known, from wherever.
    known: Revision,
    term: u64,
    ceiling: Option<Revision>,
}

impl Headers {
    /// The store is known to be at `revision`.
    pub(super) fn handle_revision(&mut self, revision: Revision, term: u64) {
        self.known = self.known.max(revision);
        self.term = self.term.max(term);
    }

    /// What "now" is for a watcher whose feed is complete from behind `revision` on: the stream may have told of more.
    pub(super) fn now(&self, revision: Revision) -> Revision {
        self.said.max(revision)
    }

    pub(super) fn ceiling(&self) -> Option<Revision> {
        self.ceiling
    }

    /// Whether a response with this revision may leave.
    pub(super) fn allows(&self, revision: Revision) -> bool {
        self.ceiling.is_none_or(|ceiling| revision <= ceiling)
    }

    /// The revision of a response that may say so much, and speaks of less.
    pub(super) fn under_ceiling(&self, revision: Revision) -> Revision {
        self.ceiling.map_or(revision, |ceiling| revision.min(ceiling))
    }

    /// Nothing above `ceiling` leaves from now on. It is not below what was said.
    pub(super) fn set_ceiling(&mut self, ceiling: Revision) {
        self.ceiling = Some(ceiling.max(self.said));
    }

    pub(super) fn lift_ceiling(&mut self) {
        self.ceiling = None;
    }

    /// Writes the header. The response leaves next.
    pub(super) fn stamp(&mut self, draft: Draft) -> Frame {
        let (revision, term) = match draft.says {
            Says::Nothing { term } => (Revision(0), term),
            Says::Events { revision, term } => (revision, term),
            Says::Created { revision, term } => (self.now(revision), term),
            Says::Now => (self.now(self.under_ceiling(self.known)), self.term),
            Says::Progress { term } => (self.ceiling.take().unwrap_or(self.said), term),
        };
        debug_assert!(self.allows(revision), "{revision} is above the ceiling {:?}", self.ceiling);
        debug_assert!(
            matches!(draft.says, Says::Events { .. } | Says::Nothing { .. }) || revision >= self.said,
            "{revision} is below what was said, {}",
            self.said
        );
        self.said = self.said.max(revision);
        self.handle_revision(revision, term);
        assert!(self.said <= self.known, "nothing is said that is not known");
        Frame { told: draft.told, stamp: Stamp { revision, term } }
    }
}
