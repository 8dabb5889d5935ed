//! When a group wakes although nothing has come in.

use std::pin::Pin;

use consensus_core::Mono;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::clock;

/// Wakes the group at its deadline, or before. Setting a timer earlier costs a system call, and deadlines come and go with
/// every entry, so it is left alone as long as it is not late.
#[derive(Default)]
pub(super) struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    /// When it ends, on the runtime's clock, which stands still while the machine sleeps; none while it has nothing to
    /// wait for.
    at: Option<Instant>,
}

impl Timer {
    /// Returns at `deadline` or before.
    pub(super) async fn wait(&mut self, deadline: Option<Mono>) {
        let due = deadline.map(|deadline| clock::instant(clock::now(), deadline));
        if let Some(due) = due.filter(|due| self.at.is_none_or(|at| *due < at)) {
            match &mut self.sleep {
                Some(sleep) => sleep.as_mut().reset(due),
                None => self.sleep = Some(Box::pin(sleep_until(due))),
            }
            self.at = Some(due);
        }
        match &mut self.sleep {
            Some(sleep) if self.at.is_some() => sleep.await,
            Some(_) | None => std::future::pending().await,
        }
        self.at = None;
    }
}
