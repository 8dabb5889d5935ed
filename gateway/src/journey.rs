//! Where the time of one request goes. The carrier notes it, and the door tells: in metrics, and of slow requests in the
//! log.
//!
//! A request is driven by its caller's own future, so what is noted lives in that future: nothing is shared or locked.

use std::cell::Cell;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gateway_core::NodeId;

use crate::admission::{Client, Permit, Taken};
use crate::context::{RequestContext, RequestId, TraceParent};

tokio::task_local! {
    static NOTED: Noted;
}

/// What belongs to a request while it is driven.
struct Noted {
    client: Arc<Client>,
    journey: Cell<Journey>,
    permit: Cell<Option<Permit>>,
    message: Cell<Option<Taken>>,
    answer: Cell<Option<Taken>>,
}

/// What was noted of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Journey {
    /// For a leader, its link, a session or a number of it, or a node with room.
    pub(crate) waited: Duration,
    /// What of that was for others that were before it: for a number of the session, or a node with room.
    pub(crate) queued: Duration,
    /// From handing it to a link to the answer.
    pub(crate) at_nodes: Duration,
    /// How often it was handed to a link.
    pub(crate) attempts: u32,
    /// How often a node had no room for it.
    pub(crate) overloads: u32,
    /// The node that was asked last.
    pub(crate) node: Option<NodeId>,
    /// Which request it is, and what it is a part of.
    pub(crate) request: Option<RequestId>,
    pub(crate) trace_parent: Option<TraceParent>,
}

impl Journey {
    /// How long it took, and waited for others; `None` if it was lost on its way, or waited for something else.
    fn took(&self) -> Option<Duration> {
        (self.attempts == self.overloads + 1).then_some(self.at_nodes + self.queued)
    }
}

/// Drives a request of a client that may have a place already, and gives what was noted meanwhile, and what the budget
/// has for the answer of the node.
pub(crate) async fn record<T>(
    client: &Arc<Client>,
    place: Option<Permit>,
    request: impl Future<Output = T>,
) -> (T, Journey, Option<Taken>) {
    let driven = async {
        let answer = request.await;
        NOTED.with(|noted| {
            let journey = noted.journey.get();
            if let Some(permit) = noted.permit.take() {
                permit.answered(journey.took());
            }
            (answer, journey, noted.answer.take())
        })
    };
    let noted = Noted {
        client: Arc::clone(client),
        journey: Cell::default(),
        permit: Cell::new(place),
        message: Cell::default(),
        answer: Cell::default(),
    };
    NOTED.scope(noted, driven).await
}

/// The place that the request has, if it still has it.
pub(crate) fn place() -> Option<Permit> {
    NOTED.try_with(|noted| noted.permit.take()).ok().flatten()
}

/// Whose request is driven.
pub(crate) fn client() -> Option<Arc<Client>> {
    NOTED.try_with(|noted| Arc::clone(&noted.client)).ok()
}

/// The memory of a node's answer is held until the client's is made of it.
pub(crate) fn hold_answer(answer: Taken) {
    let _ = NOTED.try_with(|noted| noted.answer.set(Some(answer)));
}

/// The same, for whoever counts the client's answer himself.
pub(crate) fn take_answer() -> Option<Taken> {
    NOTED.try_with(|noted| noted.answer.take()).ok().flatten()
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

/// The same, for others that were before it.
pub(crate) fn queued() -> Stage {
    let note = |journey: &mut Journey, took: Duration| {
        journey.waited += took;
        journey.queued += took;
    };
    Stage { since: Instant::now(), note }
}

/// A node had no room for the request.
pub(crate) fn overloaded() {
    note(|journey| journey.overloads += 1);
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
        let client = crate::admission::testing::admission_with(0).connect(None);
        let (gave_up, journey, _) = record(&client, None, request).await;
        assert!(gave_up);
        assert_eq!((journey.attempts, journey.node), (1, Some(NodeId(7))));
        assert!(journey.at_nodes >= Duration::from_millis(5) && journey.waited < journey.at_nodes);
    }

    #[tokio::test]
    async fn waiting_for_others_counts_as_the_queue_it_is_and_waiting_for_a_leader_does_not() {
        let nap = Duration::from_millis(5);
        let request = async {
            drop(waiting());
            let queue = queued();
            tokio::time::sleep(nap).await;
            drop(queue);
            drop(at_node(NodeId(7)));
            overloaded();
            drop(at_node(NodeId(7)));
        };
        let client = crate::admission::testing::admission_with(0).connect(None);
        let ((), journey, _) = record(&client, None, request).await;
        assert!(journey.queued >= nap && journey.waited >= journey.queued);
        assert!(journey.took().is_some_and(|took| took >= nap));
        let lost = Journey { attempts: 3, ..journey };
        assert_eq!(lost.took(), None, "asked again for another reason");
    }

    #[test]
    fn what_belongs_to_no_request_is_not_noted() {
        drop(waiting());
    }
}
