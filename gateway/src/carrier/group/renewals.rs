//! Renews leases in batches: what comes in while one request is under way goes with the next.

use gateway_core::Failure;
use gateway_core::asks::KeptAlive;
use keyspace::LeaseId;
use tokio::sync::{mpsc, oneshot};

use super::{Group, Shared};
use crate::context::Priority;
use crate::domain::Kept;

/// Leases renewed by one request.
const RENEWALS_MAX: usize = 10_000;

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
    mut renewals: mpsc::UnboundedReceiver<Renewal>,
) {
    let mut batch = Vec::new();
    while renewals.recv_many(&mut batch, RENEWALS_MAX).await > 0 {
        let leases: Vec<i64> = batch.iter().map(|renewal: &Renewal| renewal.lease.0).collect();
        match group.renew(shared, &shared.context(Priority::Liveness), leases).await {
            Ok(KeptAlive { term, revision, ttls }) => {
                for (renewal, ttl) in batch.drain(..).zip(ttls) {
                    let _ = renewal.answer.send(Ok(Kept { ttl, revision, term }));
                }
            }
            Err(failure) => {
                for renewal in batch.drain(..) {
                    let _ = renewal.answer.send(Err(failure.clone()));
                }
            }
        }
    }
}
