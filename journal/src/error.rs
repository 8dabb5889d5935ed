//! What can go wrong, and whether a retry makes sense.

use std::{io, path::PathBuf};

use rustix::io::Errno;

use crate::identity::Identity;

/// Why the journal could not do what was asked. Only [`Error::Full`] and [`Error::NoDescriptors`] may be retried.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused an operation.
    #[error("cannot {action} {file}: {source}")]
    Io {
        /// What was attempted, as a verb phrase: "read segment".
        action: &'static str,
        /// The file, by its name in the data directory.
        file: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The disk is full. Nothing of the batch counts; it stays staged, and a later flush writes it once space returns.
    #[error("the disk is full: {needed_bytes} bytes are needed for {file}, {available_bytes} are available")]
    Full {
        /// What did not fit: a file, by its name in the data directory.
        file: String,
        /// What was asked for: all of a segment, or as much of another file as was being written.
        needed_bytes: u64,
        /// What the file system said it has left.
        available_bytes: u64,
    },
    /// The process or the system has no file descriptor left. That says nothing about the disk: the file was not touched,
    /// and the same operation succeeds once others have closed some.
    #[error("cannot {action} {file} yet: {source}")]
    NoDescriptors {
        /// What was attempted, as a verb phrase.
        action: &'static str,
        /// The file, by its name in the data directory.
        file: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A write or a sync failed earlier: what the disk holds is unknown until the process restarts and reads it.
    #[error(
        "the journal is fenced after a failed write or sync: restart the node to read back what the disk holds"
    )]
    Fenced,
    /// Another process holds the data directory.
    #[error("data directory {} is in use by another process", dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// Others than the owner may read the data, and that cannot be changed.
    #[error(
        "{} is open to others (mode {mode:03o}), and this process cannot change that: {source}; give it to the user that \
         runs this process, with mode {wanted:03o}, or name a new folder in it as the data directory",
        path.display()
    )]
    Exposed {
        /// The data directory, or a file in it.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// The mode that it should have.
        wanted: u32,
        /// The system's answer.
        source: io::Error,
    },
    /// The files contradict each other in a way that no crash or damaged sector explains; starting would be guessing.
    #[error("{file} at offset {offset}: {what}")]
    Corrupt {
        /// The file, by its name in the data directory.
        file: String,
        /// Where in the file.
        offset: u64,
        /// What contradicts what, and what an operator can do.
        what: String,
    },
    /// Written by a version of the format that this program does not read.
    #[error(
        "{file} at offset {offset}: written in format version {found}, this program reads version {supported}"
    )]
    Version {
        /// The file, by its name in the data directory.
        file: String,
        /// Where in the file.
        offset: u64,
        /// The version found.
        found: u32,
        /// The version this program reads and writes.
        supported: u32,
    },
    /// The file belongs to another node or another cluster.
    #[error("{file} at offset {offset}: belongs to {found}, this is {expected}")]
    Foreign {
        /// The file, by its name in the data directory.
        file: String,
        /// Where in the file.
        offset: u64,
        /// Whose file it is.
        found: Identity,
        /// Who opened it.
        expected: Identity,
    },
    /// A label, payload or slice is longer than the format allows.
    #[error("{what} has {len} bytes, at most {max} are allowed")]
    TooLarge {
        /// What was too long.
        what: &'static str,
        /// Its length in bytes.
        len: u64,
        /// The bound in bytes.
        max: u64,
    },
    /// The writer was closed.
    #[error("the journal's writer is closed")]
    Closed,
}

impl Error {
    pub(crate) fn io(action: &'static str, file: &str, source: io::Error) -> Error {
        let file = file.to_owned();
        if is_out_of_descriptors(&source) {
            Error::NoDescriptors { action, file, source }
        } else {
            Error::Io { action, file, source }
        }
    }

    /// Whether the same operation may succeed later without a restart.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Error::Full { .. } | Error::NoDescriptors { .. })
    }
}

/// Of this process, or of the whole system.
pub(crate) fn is_out_of_descriptors(error: &io::Error) -> bool {
    [Errno::MFILE, Errno::NFILE].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
