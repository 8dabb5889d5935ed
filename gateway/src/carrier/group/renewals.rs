//! Renews leases in batches, as `gateway_core::Renewals` says.

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use gateway_core::{Failure, Renewals};
use keyspace::LeaseId;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::{Group, Shared};
use crate::context::Priority;
use crate::domain::Kept;

/// Renewals taken up at once.
const TAKEN_MAX: usize = 10_000;

/// A lease to renew, and who asks.
#[derive(Debug)]
pub(super) struct Renewal {
    pub(super) lease: LeaseId,
    pub(super) answer: oneshot::Sender<Result<Kept, Failure>>,
}

/// Runs until nobody can want a renewal any more.
pub(super) async fn renew_leases(
    shared: &Shared,
    group: &Group,
    mut wanted: mpsc::UnboundedReceiver<Renewal>,
) {
    let mut renewals = Renewals::default();
    let mut under_way = FuturesUnordered::new();
    let mut taken = Vec::new();
    loop {
        let now = Instant::now().into_std();
        drop(renewals.give_up(oneshot::Sender::is_closed));
        while let Some(batch) = renewals.next_batch(now) {
            let context = shared.context(Priority::Liveness);
            under_way.push(async move {
                let answered = group.renew(shared, &context, batch.ask()).await;
                (batch, answered)
            });
        }
        // While nothing may leave, what is wanted gathers in the channel, and wakes nobody.
        let has_room = renewals.has_room(now);
        let late = renewals.deadline(now);
        tokio::select! {
            biased;
            Some((batch, answered)) = under_way.next() => {
                renewals.handle_answered(batch, answered, |answer, kept| {
                    let _ = answer.send(kept);
                });
            }
            count = wanted.recv_many(&mut taken, TAKEN_MAX), if has_room => {
                if count == 0 {
                    return;
                }
                for Renewal { lease, answer } in taken.drain(..) {
                    renewals.push(lease, answer);
                }
            }
            () = sleep_until(late.map_or_else(Instant::now, Instant::from_std)), if late.is_some() => {}
        }
    }
}
