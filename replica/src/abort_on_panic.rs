//! Tasks and threads that a node cannot do without: when one of them panics, the process ends.
//!
//! A node without one of them would go on with its heartbeats: its peers would follow a leader that answers nobody, and
//! no election would ever begin. Without the process they know at once, and whoever runs it starts it again. That is a
//! matter of the node and not of the build (`panic = "abort"` would hold for one profile only, and would let any
//! connection's task end the process); and aborting cannot hang, as an orderly end could with a part of the node
//! missing. The data directory is left as after a power cut.

use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;
use tracing::error;

/// A task that the node cannot do without. It may be cancelled, but not panic.
pub(crate) async fn task<T>(part: &'static str, future: impl Future<Output = T>) -> T {
    // Nothing looks at what the panic leaves behind.
    match AssertUnwindSafe(future).catch_unwind().await {
        Ok(output) => output,
        Err(_) => end(part),
    }
}

/// Owned by a thread that the node cannot do without. A task must not hold it: tasks are dropped by whichever thread
/// drops their runtime, also when it is that one which panics.
#[derive(Debug)]
pub(crate) struct Thread(pub(crate) &'static str);

impl Drop for Thread {
    fn drop(&mut self) {
        if std::thread::panicking() {
            end(self.0);
        }
    }
}

fn end(part: &'static str) -> ! {
    error!(part, "a part that the node cannot do without panicked: the process ends");
    std::process::abort()
}
