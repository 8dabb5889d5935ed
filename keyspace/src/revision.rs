//! Revisions, and what one may stand for.
//!
//! A number alone does not say what may be done with it. The last write of a shard is where the next one has to be above;
//! what readers and watchers may see ends at what is *resolved*, where nothing new will appear any more. While one group
//! carries a domain the two are the same number, and [`Resolved::by_own_log`] is the one place that makes one of the other.

/// A revision: the number of the mutating request that a state follows. The first state is revision 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub i64);

impl Revision {
    /// That of an empty keyspace.
    pub const FIRST: Revision = Revision(1);

    /// The compact revision before the first compaction.
    pub const NEVER_COMPACTED: Revision = Revision(-1);

    /// The revision after this one.
    #[must_use]
    pub fn next(self) -> Revision {
        Revision(self.0.saturating_add(1))
    }

    /// The revision before this one.
    #[must_use]
    pub fn previous(self) -> Revision {
        Revision(self.0.saturating_sub(1))
    }
}

impl std::fmt::Display for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The revision of the last write; [`Revision::FIRST`] before any. Others may be under way below and above it: it says
/// nothing about what may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LastWrite(Revision);

impl LastWrite {
    /// Before any write.
    pub(crate) const NONE: LastWrite = LastWrite(Revision::FIRST);

    /// A write was given this number, and was carried out.
    #[must_use]
    pub fn at(revision: Revision) -> LastWrite {
        LastWrite(revision)
    }

    /// The number.
    #[must_use]
    pub fn revision(self) -> Revision {
        self.0
    }
}

/// The revision up to which nothing more will appear: what is served and streamed ends here, and so does what may be
/// compacted. It only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resolved(Revision);

impl Resolved {
    /// Where the group carries its domain alone: the order of its log is that of revisions, so that whatever will be applied
    /// after `newest` will be above it.
    #[must_use]
    pub fn by_own_log(newest: LastWrite) -> Resolved {
        Resolved(newest.0)
    }

    /// The number.
    #[must_use]
    pub fn revision(self) -> Revision {
        self.0
    }

    /// Whether what happened at `revision` may be seen.
    #[must_use]
    pub fn covers(self, revision: Revision) -> bool {
        revision <= self.0
    }
}
