//! The open batch of a link: requests gather while the link is busy with the frame before, and leave together.
//!
//! There is no timer. At low load the link is idle and a request leaves at once; under load the batch grows for as long
//! as the write before it takes. What a frame takes is chosen when it leaves: the urgent first, and clients in turn, so that
//! nobody's requests, however many and large, keep others waiting for more than a frame.

use api::gaios::link::v1::{GatewayFrame, GroupRequests, Request};
use fair_queue::{FairQueue, Flow, Full, Limits, Ticket};
use shard_map::GroupId;

/// Bytes after which a frame is closed, so that one frame does not hold up the answers to others.
const FRAME_BYTES: usize = 1 << 20;
/// Bytes of each priority that may wait, and those of one client. A client's request is at most 2 MiB.
const LIMITS: Limits = Limits { priority_bytes: 32 << 20, flow_bytes: 16 << 20 };
/// What a request costs beside its bytes: ids, numbers, tags and lengths on the wire, rounded up.
const REQUEST_OVERHEAD_BYTES: usize = 64;

/// Requests that wait for the link.
#[derive(Debug)]
pub(super) struct OpenBatch(FairQueue<Waiting>);

#[derive(Debug)]
struct Waiting {
    group: GroupId,
    request: Request,
    bytes: usize,
}

impl Default for OpenBatch {
    fn default() -> OpenBatch {
        OpenBatch(FairQueue::new(LIMITS))
    }
}

impl OpenBatch {
    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a request whose variable part has `bytes` bytes.
    pub(super) fn push(
        &mut self,
        flow: Flow,
        group: GroupId,
        request: Request,
        bytes: usize,
    ) -> Result<Ticket, Full> {
        let bytes = bytes + REQUEST_OVERHEAD_BYTES;
        self.0.push(flow, bytes, Waiting { group, request, bytes })
    }

    /// Adds a small request that must not be lost, and of which there are few.
    pub(super) fn push_always(&mut self, flow: Flow, group: GroupId, request: Request) {
        let bytes = REQUEST_OVERHEAD_BYTES;
        self.0.push_always(flow, bytes, Waiting { group, request, bytes });
        assert!(!self.is_empty(), "what must not be lost waits");
    }

    /// Takes a request out. Returns whether it had not left.
    pub(super) fn remove(&mut self, ticket: Ticket) -> bool {
        let was_there = self.0.remove(ticket).is_some();
        assert!(!self.is_empty() || self.0.bytes() == 0, "nothing waits, and nothing is counted");
        was_there
    }

    /// Takes the next frame.
    pub(super) fn take(&mut self) -> Option<GatewayFrame> {
        let mut groups: Vec<GroupRequests> = Vec::new();
        let mut frame_bytes = 0;
        while frame_bytes < FRAME_BYTES
            && let Some((_, Waiting { group, request, bytes })) = self.0.next(|_| true)
        {
            frame_bytes += bytes;
            match groups.iter_mut().find(|batch| batch.group == group.0) {
                Some(batch) => batch.requests.push(request),
                None => groups.push(GroupRequests { group: group.0, requests: vec![request] }),
            }
        }
        debug_assert!(frame_bytes >= FRAME_BYTES || self.is_empty(), "a frame takes what it can");
        debug_assert!(groups.iter().all(|batch| !batch.requests.is_empty()), "a batch is begun by a request");
        (!groups.is_empty()).then_some(GatewayFrame { groups })
    }
}

#[cfg(test)]
mod tests {
    use fair_queue::{Priority, Source};

    use super::*;

    fn request(id: u64) -> Request {
        Request { id, ..Request::default() }
    }

    fn flow(priority: Priority, connection: u64) -> Flow {
        Flow { priority, source: Source { user: connection, connection } }
    }

    /// The ids of the next frame, as they leave.
    fn take(batch: &mut OpenBatch) -> Vec<u64> {
        let groups = batch.take().map_or_else(Vec::new, |frame| frame.groups);
        groups.into_iter().flat_map(|group| group.requests).map(|request| request.id).collect()
    }

    #[test]
    fn requests_of_a_group_share_a_batch_in_order() {
        let mut batch = OpenBatch::default();
        for (id, group) in [(1, 5), (2, 6), (3, 5)] {
            batch.push(Flow::default(), GroupId(group), request(id), 100).unwrap();
        }
        let frame = batch.take().unwrap();
        let ids = |group: &GroupRequests| group.requests.iter().map(|request| request.id).collect::<Vec<_>>();
        assert_eq!(frame.groups.iter().map(|group| group.group).collect::<Vec<_>>(), [5, 6]);
        assert_eq!(ids(&frame.groups[0]), [1, 3]);
        assert!(batch.is_empty() && batch.take().is_none());
    }

    #[test]
    fn a_full_frame_closes_and_the_bytes_of_a_client_are_bounded() {
        let mut batch = OpenBatch::default();
        let large = 2 << 20;
        let mut taken = 0;
        while batch.push(Flow::default(), GroupId(1), request(taken), large).is_ok() {
            taken += 1;
        }
        assert_eq!(taken, 8);
        batch.push_always(Flow::default(), GroupId(1), request(taken));
        for id in 0..=taken {
            assert_eq!(take(&mut batch), [id], "each is larger than a frame should be");
        }
        assert!(batch.is_empty());
    }

    #[test]
    fn what_a_client_sends_keeps_no_other_waiting_for_more_than_a_frame() {
        let mut batch = OpenBatch::default();
        for id in 0..20 {
            batch.push(flow(Priority::Small, 1), GroupId(1), request(id), 800_000).unwrap();
            batch.push(flow(Priority::Large, 1), GroupId(1), request(100 + id), 800_000).unwrap();
        }
        batch.push(flow(Priority::Small, 2), GroupId(1), request(1000), 10).unwrap();
        batch.push(flow(Priority::Liveness, 3), GroupId(1), request(1001), 10).unwrap();
        let first = take(&mut batch);
        assert!(first.contains(&1001) && (first.contains(&1000) || take(&mut batch).contains(&1000)));
    }

    #[test]
    fn what_is_taken_out_does_not_leave() {
        let mut batch = OpenBatch::default();
        let push =
            |batch: &mut OpenBatch, id| batch.push(Flow::default(), GroupId(1), request(id), 0).unwrap();
        let tickets: Vec<Ticket> = (0..3000).map(|id| push(&mut batch, id)).collect();
        for ticket in &tickets[1..] {
            assert!(batch.remove(*ticket) && !batch.remove(*ticket));
        }
        assert_eq!(take(&mut batch), [0]);
        assert!(!batch.remove(tickets[0]), "it has left");
    }
}
