//! What happens to feeds: what links bring, and what readers want.

use std::sync::Arc;

use api::gaios::link::v1 as wire;
use gateway_core::asks::Unasked;
use gateway_core::link::{LinkId, Unanswered};
use gateway_core::{FeedId, FeedSpec, GroupId, NodeId};

use crate::domain::FeedReader;

/// What happens to feeds, in order.
#[derive(Debug)]
pub(crate) enum FeedEvent {
    /// Somebody wants to read one.
    Opened(FeedId, FeedSpec, Arc<dyn FeedReader>),
    /// So many more bytes of events are allowed.
    Credit(FeedId, u64),
    /// Its reader wants to know how far it has come.
    Sync(FeedId, u64),
    /// Nobody reads it any more.
    Closed(FeedId),
    /// A response came for the watch of a feed.
    Frame {
        /// Over this connection.
        link: LinkId,
        /// From there.
        node: NodeId,
        /// Whose.
        feed: FeedId,
        /// What.
        response: wire::Response,
    },
    /// A question about watches was answered.
    Answer {
        /// Over this connection.
        link: LinkId,
        /// From there.
        node: NodeId,
        /// About watches of this group.
        group: GroupId,
        /// Which question.
        question: u64,
        /// What.
        answer: Result<wire::Response, Unanswered>,
    },
    /// A replica tells of itself.
    Unasked {
        /// Over this connection.
        link: LinkId,
        /// From there.
        node: NodeId,
        /// What.
        told: Unasked,
    },
    /// A connection is gone.
    Lost {
        /// Which.
        link: LinkId,
    },
    /// Something about a leader or the links may have changed.
    News,
    /// There is another shard map.
    Map,
}
