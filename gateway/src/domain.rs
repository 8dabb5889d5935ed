//! The narrow interface through which the doors reach whatever carries a domain: our own groups
//! ([`crate::carrier::Carrier`]), and one day an existing etcd cluster.
//!
//! A domain speaks the types of the crate `keyspace`; it knows no protobuf and no status codes.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use gateway_core::nearest::Place;
use gateway_core::{Failure, FeedItem, FeedSpec, NodeId};
use keyspace::{LeaseId, Op, Query, Revision};
use prometheus::core::Collector;
use tokio::sync::watch;

use crate::context::RequestContext;
use crate::leading::{Leading, Wanted};
use crate::status::{GatewayStatus, NodeStatus};

pub use gateway_core::{Answer, Kept};

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// It sees every write that was acknowledged before it began.
    Linearizable,
    /// Any replica may answer, perhaps with old data, also without a leader; but one that is behind revision `seen`, which
    /// has been shown to clients, waits a moment to catch up.
    Serializable {
        /// 0 if none has been.
        seen: Revision,
    },
}

/// What is known of a domain, for Status, health and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DomainStatus {
    /// As in [`Answer::term`].
    pub term: u64,
    /// Whether there is a leader.
    pub has_leader: bool,
    /// Last slot known to be chosen: etcd's `raftIndex`.
    pub commit_slot: u64,
    /// Last slot applied: etcd's `raftAppliedIndex`.
    pub applied_slot: u64,
    /// The current revision.
    pub revision: Revision,
    /// The compact revision; −1 before the first compaction.
    pub compact_revision: Revision,
    /// Bytes held.
    pub size_bytes: u64,
    /// Bytes held without what is free for reuse: etcd's `dbSizeInUse`.
    pub size_in_use_bytes: u64,
    /// The quota on `size_bytes`.
    pub quota_bytes: u64,
    /// Whether the alarm `NOSPACE` is raised.
    pub no_space_alarm: bool,
    /// Whether the alarm `CORRUPT` is raised.
    pub corrupt_alarm: bool,
}

/// A node that is reached, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeDistance {
    /// Which.
    pub node: NodeId,
    /// Where it is.
    pub place: Place,
    /// The smoothed round trip; none before it was measured.
    pub round_trip: Option<Duration>,
}

/// The gateways that serve a domain, as far as it knows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownGateways {
    /// As in [`Answer::term`].
    pub term: u64,
    /// Those that are there.
    pub gateways: Vec<KnownGateway>,
}

/// A gateway, as it says itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownGateway {
    /// Unique in its region.
    pub name: String,
    /// Where it stands; empty if that was not said.
    pub region: String,
    /// The zone of the region; empty if that was not said.
    pub zone: String,
    /// How clients reach it.
    pub client_urls: Vec<String>,
    /// How much it can carry, in a measure of its operator's.
    pub capacity: u32,
}

/// Connections to nodes that are up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkCounts {
    /// With the node itself.
    pub direct: usize,
    /// By a relay, since the node is not reached otherwise.
    pub relayed: usize,
    /// So many times there was none, by reason: what answers is not the node, or does not want this gateway.
    pub refused: Vec<(&'static str, u64)>,
    /// Requests that wait for an answer on them.
    pub owed: usize,
}

/// Who reads a feed.
pub trait FeedReader: fmt::Debug + Send + Sync {
    /// Takes the next item. Whoever brings it brings those of others, too: this does not wait.
    fn take(&self, item: FeedItem);
}

/// A feed of one range's events that is carried: its reader gets items until it is closed.
pub trait Feed: fmt::Debug + Send + Sync {
    /// Allows this many more bytes of events.
    fn credit(&self, bytes: u64);

    /// Asks for a [`FeedItem::Synced`] with this token. A later call replaces one that is not answered yet; tokens
    /// must ascend.
    fn sync(&self, token: u64);

    /// Nobody reads it any more.
    fn close(&self);
}

/// Whatever carries a keyspace with one revision line.
pub trait Domain: Send + Sync + 'static {
    /// Applies a write once, or says truthfully why not. `op` has passed [`keyspace::check`].
    fn write(&self, context: &RequestContext, op: Op)
    -> impl Future<Output = Result<Answer, Failure>> + Send;

    /// Answers a query.
    fn read(
        &self,
        context: &RequestContext,
        query: Query,
        consistency: Consistency,
    ) -> impl Future<Output = Result<Answer, Failure>> + Send;

    /// Renews a lease.
    fn keep_alive(
        &self,
        context: &RequestContext,
        lease: LeaseId,
    ) -> impl Future<Output = Result<Kept, Failure>> + Send;

    /// What is known of the domain; also without a leader, as long as any replica answers.
    fn status(&self, context: &RequestContext) -> impl Future<Output = Result<DomainStatus, Failure>> + Send;

    /// The gateways that serve the domain.
    fn gateways(
        &self,
        context: &RequestContext,
    ) -> impl Future<Output = Result<KnownGateways, Failure>> + Send;

    /// Opens a feed, which may serve the watches of many callers. Does not wait; the feed reports.
    fn feed(&self, spec: FeedSpec, reader: Arc<dyn FeedReader>) -> Box<dyn Feed>;

    /// What the nodes say of themselves, and which of them hold replicas of which group.
    fn nodes(&self) -> impl Future<Output = (Vec<NodeStatus>, BTreeMap<u64, Vec<u32>>)> + Send;

    /// What this gateway does, for others to see.
    fn tell(&self, own: &GatewayStatus);

    /// How the certificates of its links are; `None` where they have none.
    fn link_certificates(&self) -> Option<tls::Status>;

    /// The nodes that are reached, and how far they are.
    fn distances(&self) -> Vec<NodeDistance>;

    /// Asks a group's leader for what an operator wants; `None` if there is no such group.
    fn lead(
        &self,
        context: &RequestContext,
        wanted: Wanted,
    ) -> impl Future<Output = Option<Result<Leading, Failure>>> + Send;

    /// The longest that a request may take.
    fn request_timeout(&self) -> Duration;

    /// What it counts, to be registered with the gateway's metrics.
    fn collectors(&self) -> Vec<Box<dyn Collector>>;

    /// Connections to nodes.
    fn links(&self) -> LinkCounts;

    /// The cluster's id; 0 while it is not known.
    fn cluster_id(&self) -> u64;

    /// Whether a leader is known, and news of it.
    fn leader_known(&self) -> watch::Receiver<bool>;
}
