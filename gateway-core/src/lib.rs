//! What a gateway decides about requests to replicas: whom to ask, under which number, and what to do when it fails.
//!
//! Plain state machines. Nothing here knows sockets, tasks, locks, metrics or etcd's messages; those of the link protocol are
//! known to [`asks`] and [`link`] alone. The time and random numbers come in as arguments. The crate `gateway` waits and
//! carries out.
//!
//! - [`Request`]: one request across its attempts. Whether it may be tried again is decided there and nowhere else.
//! - [`Drive`]: the same, step by step, for whoever has links and a clock.
//! - [`Renewals`]: leases to be renewed, in batches.
//! - [`Session`]: the numbers under which writes are applied once.
//! - [`LeaderTracker`]: finds a group's leader, and notices when it may have been replaced; [`Route`] is what it knows.
//! - [`silence`]: what a node's silence means.
//! - [`Upstream`]: a feed's replica, and how the feed moves on to another; [`Upstreams`]: all of them, and what many share.
//! - [`Dialler`]: when a link is dialled, which way, and when it is left.
//! - [`watch`]: etcd's watch protocol over feeds that many watchers share.
//! - [`admission`]: how many requests may be under way.
//! - [`asks`]: what is asked of replicas, and how their answers are read.
//! - [`link`]: the gateway's end of a connection: what waits for it, and who waits for what; [`Links`]: which ones are up.
//! - [`Topology`]: which shard of which group has which keys, and where its replicas are.
//! - [`nearest`]: which replica to ask where several would do.

pub mod admission;
pub mod asks;
mod attempt;
mod concern;
mod dialling;
mod drive;
mod failure;
mod group;
mod leader_tracker;
pub mod link;
mod links;
mod mutant;
pub mod nearest;
pub mod range_pages;
pub mod range_stream;
mod renewals;
mod request;
mod route;
mod session;
pub mod silence;
mod topology;
mod upstream;
mod upstreams;
pub mod watch;

pub use asks::Answer;
pub use attempt::{Attempted, Refused, Unsent, Why};
pub use concern::Concern;
pub use dialling::{DialStep, Dialler, Loss, Relay, Target, Way, Ways};
pub use drive::{Deadline, Drive, DriveStep, Phase, Sending, Shell, learn};
pub use failure::Failure;
pub use fair_queue::{Flow, Priority, Source};
pub use group::{GroupState, Learned};
pub use leader_tracker::{LeaderTracker, Led, PROBE_WAIT, Quiet, Replicas, SessionOpened, TrackerStep};
pub use links::Links;
#[cfg(feature = "mutants")]
pub use mutant::{Mutant, break_rule};
pub use renewals::{Batch, Kept, Renewals};
pub use request::{Numbered, Pause, Reach, ReadAt, Request};
pub use route::{Leader, NodeId, Route};
pub use session::{NoNumber, Number, Session};
pub use shard_map::GroupId;
pub use topology::{Routed, Topology, Unbelieved};
pub use upstream::{Cohort, FeedItem, FeedSpec, Frame, Heard, Open, Synced, Upstream, UpstreamStep};
pub use upstreams::{ALL_WATCHES, Act, FeedId, Groups, Upstreams, Watch};

/// Where the time of a test begins: anywhere, for only differences count.
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "there is no other way to have an instant")]
fn any_instant() -> std::time::Instant {
    std::time::Instant::now()
}

/// Nodes whose links are up, for tests; a link is its node. The first is the nearest.
#[cfg(test)]
struct Up(&'static [u32]);

#[cfg(test)]
impl Reach for Up {
    type Link = NodeId;

    fn to(&self, node: NodeId) -> Option<NodeId> {
        self.0.contains(&node.0).then_some(node)
    }

    fn nearest(&self) -> Option<(NodeId, NodeId)> {
        self.0.first().map(|node| (NodeId(*node), NodeId(*node)))
    }
}
