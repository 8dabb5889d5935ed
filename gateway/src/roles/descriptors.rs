//! File descriptors: a process takes as many as the system lets it have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit to the hard one, says so, and returns it. The soft one is low for the sake of programs that use
/// `select`.
pub(crate) fn raise() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::warn!(%error, "cannot raise the limit of open files to the hard one");
            current
        }
    };
    tracing::info!(was = shown(current), descriptors = shown(raised), "limit of open files");
    usize::try_from(raised.unwrap_or(u64::MAX)).unwrap_or(usize::MAX)
}

fn shown(limit: Option<u64>) -> String {
    limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string())
}
