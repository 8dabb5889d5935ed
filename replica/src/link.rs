//! The way to a connected gateway: answers leave through one outbox, in any order.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use api::gaios::link::v1::refused::Why;
use api::gaios::link::v1::response::Kind;
use api::gaios::link::{NODE_FRAME_BYTES_MAX, v1 as wire};
use bytes::{BufMut, BytesMut};
use group_core::{LinkId, refusal};
use keyspace::Outcome;
use prost::Message as _;

use crate::outbox::Outbox;

/// Bytes of answers that may wait for a gateway before its link is cut. Queries are answered and large answers made while
/// there is room, watches are bounded by credit, and what else there is to say is small.
const OUTBOX_BYTES: usize = 1 << 30;
/// No further query is answered while more than this waits: as much as a gateway takes in some milliseconds.
const ROOM_BYTES: usize = 8 << 20;
/// The largest answer, in a frame of its own.
const ANSWER_BYTES_MAX: usize = NODE_FRAME_BYTES_MAX - 1024;

static NEXT_LINK: AtomicU64 = AtomicU64::new(1);

/// A connected gateway.
#[derive(Debug)]
pub(crate) struct Link {
    /// Unique in this process.
    pub(crate) id: LinkId,
    pub(crate) outbox: Outbox,
    /// Large answers being encoded.
    large: AtomicUsize,
}

impl Link {
    pub(crate) fn new() -> Link {
        Link {
            id: LinkId(NEXT_LINK.fetch_add(1, Ordering::Relaxed)),
            outbox: Outbox::new(OUTBOX_BYTES, ROOM_BYTES),
            large: AtomicUsize::new(0),
        }
    }

    /// Whether another query should be answered now.
    pub(crate) fn has_room(&self) -> bool {
        self.large.load(Ordering::Acquire) == 0 && self.outbox.has_room()
    }

    /// The same for one whose answer may be large.
    pub(crate) fn has_room_for_large(&self) -> bool {
        self.has_room()
    }

    /// A large answer is being made: there is no room until [`Link::end_large`].
    pub(crate) fn begin_large(&self) {
        self.large.fetch_add(1, Ordering::Relaxed);
    }

    /// See [`Link::begin_large`].
    pub(crate) fn end_large(&self) {
        if self.large.fetch_sub(1, Ordering::Release) == 1 {
            // Other groups may have waited for this, too.
            self.outbox.tell_drained();
        }
    }

    /// Encodes and sends a large answer to request `id`; takes its time. One that no gateway would accept is refused.
    pub(crate) fn send_large(&self, id: u64, term: u64, outcome: &Outcome) {
        let mut encoded = BytesMut::new();
        keyspace::encode_outcome(outcome, &mut encoded);
        let response = if encoded.len() > ANSWER_BYTES_MAX {
            refusal(id, term, Why::AnswerTooLarge, None)
        } else {
            wire::Response { id, term, kind: Some(Kind::Reply(encoded.freeze())) }
        };
        let frame = wire::NodeFrame { responses: vec![response] };
        let length = frame.encoded_len();
        let mut bytes = BytesMut::with_capacity(4 + length);
        bytes.put_u32(u32::try_from(length).expect("answers are bounded"));
        frame.encode(&mut bytes).expect("a BytesMut grows as needed");
        if self.outbox.push_large(bytes.freeze()).is_err() {
            self.outbox.close();
        }
    }

    /// Sends answers as one frame. A gateway that is gone, or does not read, loses its link; it asks again elsewhere.
    pub(crate) fn send(&self, responses: Vec<wire::Response>) {
        if responses.is_empty() {
            return;
        }
        let frame = wire::NodeFrame { responses };
        let sent = self.outbox.push(|out| {
            frame.encode(out).expect("a BytesMut grows as needed");
        });
        if sent.is_err() {
            self.outbox.close();
        }
    }

    /// A link without a socket.
    #[cfg(test)]
    pub(crate) fn unconnected() -> std::sync::Arc<Link> {
        std::sync::Arc::new(Link::new())
    }

    /// What waits for the socket.
    #[cfg(test)]
    pub(crate) fn take_sent(&self) -> Vec<wire::Response> {
        let frames = self.outbox.take();
        frames
            .into_iter()
            .flat_map(|frame| wire::NodeFrame::decode(frame).expect("what was encoded here").responses)
            .collect()
    }
}
