//! What a command of the log comes in: what is decided about it before it is applied, and not by the state.

use crate::{Broken, Command, Revision, mutant::mutant};

/// A command of the log in its envelope. A log entry holds a batch of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// What was decided about it.
    pub envelope: Envelope,
    /// What to do.
    pub command: Command,
}

impl From<Command> for Proposal {
    /// A command about which nothing is decided.
    fn from(command: Command) -> Proposal {
        Proposal { envelope: Envelope::default(), command }
    }
}

/// What is decided about a command before it is applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    /// The revisions that it may make.
    pub revisions: Revisions,
    /// When it was proposed, in milliseconds since 1970 by the proposer's clock. None if it did not say.
    pub proposed_ms: Option<u64>,
}

/// The revisions that a command may make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Revisions {
    /// Those that come next in the group's log: where the group carries its domain alone.
    #[default]
    Next,
    /// Those of a range that was handed out from outside. What is not used of it is never used.
    Given(RevisionRange),
}

/// Some revisions in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RevisionRange {
    /// The first.
    pub first: Revision,
    /// How many; not none.
    pub count: u32,
}

/// The revisions that a command may still make.
#[derive(Debug)]
pub(crate) struct Allotment {
    next: Revision,
    left: u64,
}

/// The revisions given to a command are not all above what was written before it: they were handed out before others that
/// have come first. None of them may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RevisionPassed;

impl Allotment {
    /// For a command that is applied when `newest` is the newest revision.
    pub(crate) fn new(
        revisions: Revisions,
        newest: Revision,
        broken: Broken,
    ) -> Result<Allotment, RevisionPassed> {
        let is_ignored = mutant!(broken, GivenRevisionIgnored);
        match revisions {
            Revisions::Given(_) if is_ignored => Ok(Allotment { next: newest.next(), left: u64::MAX }),
            Revisions::Given(range) if mutant!(broken, PassedRevisionUsed) => {
                let next = range.first.max(newest.next());
                Ok(Allotment { next, left: u64::from(range.count) })
            }
            Revisions::Next => Ok(Allotment { next: newest.next(), left: u64::MAX }),
            Revisions::Given(range) if range.first > newest => {
                Ok(Allotment { next: range.first, left: u64::from(range.count) })
            }
            Revisions::Given(_) => Err(RevisionPassed),
        }
    }

    /// The revision that the next change takes.
    pub(crate) fn peek(&self) -> Option<Revision> {
        (self.left > 0).then_some(self.next)
    }

    /// What an answer shows that is not that of a change: everything before the next one.
    pub(crate) fn before(&self) -> Revision {
        self.next.previous()
    }

    /// The change was made.
    pub(crate) fn take(&mut self) {
        assert!(self.left > 0, "no revision is used that was not handed out");
        self.next = self.next.next();
        self.left -= 1;
    }
}
