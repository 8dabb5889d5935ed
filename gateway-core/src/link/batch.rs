//! The open batch of a link: requests gather while the link is busy with the batch before, and leave together.
//!
//! There is no timer. At low load the link is idle and a request leaves at once; under load the batch grows for as long
//! as the write before it takes.

use api::gaios::link::v1::{GatewayFrame, GroupRequests, Request};
use shard_map::GroupId;

/// Bytes after which a frame is closed and the next begins, so that one frame does not hold up the answers to others.
const FRAME_BYTES: usize = 1 << 20;
/// Bytes that may wait. A client's request is at most 2 MiB, so this is room for 32 of the largest.
const WAITING_BYTES_MAX: usize = 64 << 20;
/// What a request costs beside its bytes: ids, tags and lengths on the wire, rounded up.
const REQUEST_OVERHEAD_BYTES: usize = 48;

/// Requests that wait for the link.
#[derive(Debug, Default)]
pub(super) struct OpenBatch {
    frames: std::collections::VecDeque<Frame>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Frame {
    groups: Vec<GroupRequests>,
    bytes: usize,
}

/// Too much is waiting.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl OpenBatch {
    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Adds a request whose variable part has `bytes` bytes.
    pub(super) fn push(&mut self, group: GroupId, request: Request, bytes: usize) -> Result<(), Full> {
        if self.bytes + bytes + REQUEST_OVERHEAD_BYTES > WAITING_BYTES_MAX {
            return Err(Full);
        }
        self.push_always(group, request, bytes);
        assert!(self.bytes <= WAITING_BYTES_MAX, "what waits is bounded");
        Ok(())
    }

    /// Adds a small request that must not be lost, and of which there are few.
    pub(super) fn push_always(&mut self, group: GroupId, request: Request, bytes: usize) {
        let bytes = bytes + REQUEST_OVERHEAD_BYTES;
        self.bytes += bytes;
        if self.frames.back().is_none_or(|frame| frame.bytes + bytes > FRAME_BYTES) {
            self.frames.push_back(Frame::default());
        }
        let frame = self.frames.back_mut().expect("pushed above if there was none");
        frame.bytes += bytes;
        match frame.groups.iter_mut().find(|batch| batch.group == group.0) {
            Some(batch) => batch.requests.push(request),
            None => frame.groups.push(GroupRequests { group: group.0, requests: vec![request] }),
        }
        let is_alone = matches!(frame.groups.as_slice(), [only] if only.requests.len() == 1);
        assert!(frame.bytes <= FRAME_BYTES || is_alone, "only one request may exceed a frame");
    }

    /// Takes the oldest frame.
    pub(super) fn take(&mut self) -> Option<GatewayFrame> {
        let frame = self.frames.pop_front()?;
        assert!(self.bytes >= frame.bytes, "the bytes of every frame are counted");
        assert!(!frame.groups.is_empty(), "a frame is begun by a request");
        self.bytes -= frame.bytes;
        assert!(!self.frames.is_empty() || self.bytes == 0, "nothing waits, and nothing is counted");
        Some(GatewayFrame { groups: frame.groups })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(id: u64) -> Request {
        Request { id, kind: None }
    }

    #[test]
    fn requests_of_a_group_share_a_batch_in_order() {
        let mut batch = OpenBatch::default();
        for (id, group) in [(1, 5), (2, 6), (3, 5)] {
            batch.push(GroupId(group), request(id), 100).unwrap();
        }
        let frame = batch.take().unwrap();
        let ids = |group: &GroupRequests| group.requests.iter().map(|request| request.id).collect::<Vec<_>>();
        assert_eq!(frame.groups.iter().map(|group| group.group).collect::<Vec<_>>(), [5, 6]);
        assert_eq!(ids(&frame.groups[0]), [1, 3]);
        assert!(batch.is_empty() && batch.take().is_none());
    }

    #[test]
    fn a_full_frame_closes_and_waiting_bytes_are_bounded() {
        let mut batch = OpenBatch::default();
        let large = 2 << 20;
        let mut taken = 0;
        while batch.push(GroupId(1), request(taken), large).is_ok() {
            taken += 1;
        }
        assert_eq!(taken, 31);
        batch.push_always(GroupId(1), request(taken), 0);
        let mut frames = 0;
        while batch.take().is_some() {
            frames += 1;
        }
        assert_eq!(frames, taken + 1, "each is larger than a frame should be");
        assert_eq!(batch.bytes, 0);
    }
}
