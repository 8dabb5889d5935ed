//! The way to a connected gateway: answers leave through one outbox, in any order.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use api::gaios::link::v1 as wire;
use api::gaios::link::v1::refused::Why;
use group_core::{LargeAnswer, LargeReply, LinkId, refusal};
use prost::Message as _;

use crate::budget::Budget;
use crate::outbox::Outbox;

/// Bytes of answers that may wait for a gateway before its link is cut. Queries are answered while there is room, large
/// answers are made as they leave, watches are bounded by credit, and what else there is to say is small.
const OUTBOX_BYTES: usize = 1 << 30;
/// No further query is answered while more than this waits: as much as a gateway takes in some milliseconds.
const ROOM_BYTES: usize = 8 << 20;

static NEXT_LINK: AtomicU64 = AtomicU64::new(1);

/// A connected gateway.
#[derive(Debug)]
pub(crate) struct Link {
    /// Unique in this process.
    pub(crate) id: LinkId,
    pub(crate) outbox: Outbox,
}

impl Link {
    /// What waits for it is taken from this budget.
    pub(crate) fn new(budget: &Arc<Budget>) -> Link {
        Link::with(Outbox::new(OUTBOX_BYTES, ROOM_BYTES).within(budget))
    }

    fn with(outbox: Outbox) -> Link {
        Link { id: LinkId(NEXT_LINK.fetch_add(1, Ordering::Relaxed)), outbox }
    }

    /// Whether a query should be answered now whose answer is small: whatever large ones are under way, it overtakes them.
    pub(crate) fn has_room(&self) -> bool {
        self.outbox.has_room()
    }

    /// The same of one whose answer may be large.
    pub(crate) fn has_room_for_large(&self) -> bool {
        self.has_room() && self.outbox.has_room_for_large()
    }

    /// A large answer to this request is to be sent with [`Link::send_large`], and takes up room from now on.
    pub(crate) fn begin_large(&self, request: u64) {
        self.outbox.announce_large(request);
    }

    /// Measures a large answer, which takes its time, and sends it in parts. One that no gateway would accept is refused.
    pub(crate) fn send_large(&self, answer: LargeAnswer) {
        let (request, term) = (answer.request, answer.term);
        match LargeReply::new(answer) {
            Some(reply) => self.outbox.push_large(reply),
            None => {
                self.cancel_large(request);
                self.send(vec![refusal(request, term, Why::AnswerTooLarge, None)]);
            }
        }
    }

    /// Nobody waits for the answer to this request any more: what is left of it is not sent.
    pub(crate) fn cancel_large(&self, request: u64) {
        self.outbox.cancel_large(request);
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
    pub(crate) fn unconnected() -> Arc<Link> {
        Arc::new(Link::with(Outbox::new(OUTBOX_BYTES, ROOM_BYTES)))
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
