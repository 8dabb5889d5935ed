use std::io;

use tonic::Status;

/// Why a measurement could not be made. Single failed requests are no such reason; they are counted in the report.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// What was asked for makes no sense; every mistake found is listed.
    #[error("{}", .0.join("\n"))]
    Flags(Vec<String>),
    /// A server cannot be reached.
    #[error("connect to {endpoint}")]
    Connect {
        /// URL of the server.
        endpoint: String,
        /// What the system said.
        source: io::Error,
    },
    /// A request which prepares the measurement failed.
    #[error("{doing}: {status}")]
    Prepare {
        /// What was being prepared.
        doing: &'static str,
        /// The server's answer.
        status: Box<Status>,
    },
    /// The server broke the protocol, or stopped making progress.
    #[error("{0}")]
    Server(String),
    /// A process to be measured cannot be read.
    #[error("process {pid}: {what}")]
    Process {
        /// Process id.
        pid: u32,
        /// What went wrong.
        what: String,
    },
    /// A server process could not be started, or a result not be written.
    #[error("{doing}")]
    Io {
        /// What was being done.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
}

impl BenchError {
    pub(crate) fn prepare(doing: &'static str) -> impl FnOnce(Status) -> BenchError {
        move |status| BenchError::Prepare { doing, status: Box::new(status) }
    }

    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> BenchError {
        move |source| BenchError::Io { doing: doing.into(), source }
    }
}
