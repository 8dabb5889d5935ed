//! Where the time of one request goes. The carrier notes it, and the door tells: in metrics, and of slow requests in the
//! log.
//!
//! A request is driven by its caller's own future, so what is noted lives in that future: nothing is shared or locked.

use std::cell::Cell;
use std::future::Future;
use std::time::{Duration, Instant};

use gateway_core::NodeId;

use crate::admission::{Permit, Taken};
use crate::context::{RequestContext, RequestId, TraceParent};

tokio::task_local! {
    static NOTED: Noted;
}

/// What belongs to a request while it is driven.
#[derive(Default)]
struct Noted {
    journey: Cell<Journey>,
    permit: Cell<Option<Permit>>,
    message: Cell<Option<Taken>>,
}

/// What was noted of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Journey {
    /// For a leader, its link, a session or a number of it, or a node with room.
    pub(crate) waited: Duration,
    /// From handing it to a link to the answer.
    pub(crate) at_nodes: Duration,
    /// How often it was handed to a link.
    pub(crate) attempts: u32,
    /// The node that was asked last.
    pub(crate) node: Option<NodeId>,
    /// Which request it is, and what it is a part of.
    pub(crate) request: Option<RequestId>,
    pub(crate) trace_parent: Option<TraceParent>,
}

/// Drives a request, and gives what was noted meanwhile.
pub(crate) async fn record<T>(request: impl Future<Output = T>) -> (T, Journey) {
    let driven = async {
        let answer = request.await;
        NOTED.with(|noted| {
            let journey = noted.journey.get();
            if let Some(permit) = noted.permit.take() {
                // What is asked again was lost, or waited for something else than others that are under way.
                permit.answered((journey.attempts == 1).then_some(journey.at_nodes));
            }
            (answer, journey)
        })
    };
    NOTED.scope(Noted::default(), driven).await
}

/// The memory of its message is held as long as the request is under way.
pub(crate) fn hold(message: Taken) {
    let _ = NOTED.try_with(|noted| noted.message.set(Some(message)));
}

/// The request has been let in, and counts until it is answered or given up.
pub(crate) fn admitted(permit: Permit) {
    let _ = NOTED.try_with(|noted| noted.permit.set(Some(permit)));
}

/// The request has been read.
pub(crate) fn begun(context: &RequestContext) {
    note(|journey| {
        journey.request = Some(context.id);
        journey.trace_parent = context.trace_parent;
    });
}

/// The request waits until this is dropped, whether by an end of the waiting or of the caller's patience.
pub(crate) fn waiting() -> Stage {
    Stage { since: Instant::now(), note: |journey, took| journey.waited += took }
}

/// The request is at a node, or on its way, until this is dropped.
pub(crate) fn at_node(node: NodeId) -> Stage {
    note(|journey| {
        journey.attempts += 1;
        journey.node = Some(node);
    });
    Stage { since: Instant::now(), note: |journey, took| journey.at_nodes += took }
}

/// A part of a journey.
#[derive(Debug)]
pub(crate) struct Stage {
    since: Instant,
    note: fn(&mut Journey, Duration),
}

impl Drop for Stage {
    fn drop(&mut self) {
        let took = self.since.elapsed();
        note(|journey| (self.note)(journey, took));
    }
}

/// Nothing is noted of what the gateway asks of its own accord.
fn note(change: impl FnOnce(&mut Journey)) {
    let _ = NOTED.try_with(|noted| {
        let mut journey = noted.journey.get();
        change(&mut journey);
        noted.journey.set(journey);
    });
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn what_was_begun_counts_also_when_it_was_given_up() {
        let request = async {
            drop(waiting());
            let asked = async {
                let _stage = at_node(NodeId(7));
                std::future::pending::<()>().await;
            };
            timeout(Duration::from_millis(5), asked).await.is_err()
        };
        let (gave_up, journey) = record(request).await;
        assert!(gave_up);
        assert_eq!((journey.attempts, journey.node), (1, Some(NodeId(7))));
        assert!(journey.at_nodes >= Duration::from_millis(5) && journey.waited < journey.at_nodes);
    }

    #[test]
    fn what_belongs_to_no_request_is_not_noted() {
        drop(waiting());
    }
}
