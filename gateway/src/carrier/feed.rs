//! Carries all feeds over links. One task takes what the links bring and what readers want, has [`Upstreams`] decide, and does
//! what it says: a feed has no task of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use gateway_core::asks::{self, Sync, Unasked};
use gateway_core::link::sort;
use gateway_core::{
    Act, Attempted, Concern, Failure, FeedId, FeedSpec, GroupId, Groups, NodeId, Upstreams, Watch,
};
use keyspace::KeyRange;
use tokio::sync::mpsc;
use tokio::time::sleep_until;
use tracing::debug;

use super::group::Group;
use super::{Shared, now};
use crate::domain::{Feed, FeedReader};
use crate::feed_event::FeedEvent;
use crate::link::Link;
use crate::random::random_u32;

/// Events that are handled before what follows from them is done.
const EVENTS_AT_ONCE: usize = 256;

/// A reader's end of a feed.
#[derive(Debug)]
pub(super) struct LinkFeed {
    id: FeedId,
    events: mpsc::UnboundedSender<FeedEvent>,
}

impl LinkFeed {
    pub(super) fn open(
        id: FeedId,
        spec: FeedSpec,
        reader: Arc<dyn FeedReader>,
        events: mpsc::UnboundedSender<FeedEvent>,
    ) -> LinkFeed {
        let feed = LinkFeed { id, events };
        feed.tell(FeedEvent::Opened(id, spec, reader));
        feed
    }

    /// After the carrier has stopped nobody hears it.
    fn tell(&self, event: FeedEvent) {
        let _ = self.events.send(event);
    }
}

impl Feed for LinkFeed {
    fn credit(&self, bytes: u64) {
        self.tell(FeedEvent::Credit(self.id, bytes));
    }

    fn sync(&self, token: u64) {
        self.tell(FeedEvent::Sync(self.id, token));
    }

    fn close(&self) {
        self.tell(FeedEvent::Closed(self.id));
    }
}

/// Carries feeds until the carrier stops.
pub(super) async fn carry_feeds(shared: Arc<Shared>, mut events: mpsc::UnboundedReceiver<FeedEvent>) {
    let mut feeds =
        Feeds { shared: Arc::clone(&shared), upstreams: Upstreams::default(), readers: BTreeMap::new() };
    let mut taken = Vec::new();
    loop {
        let due = feeds.upstreams.deadline();
        let timeout = async {
            match due {
                Some(due) => sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shared.stop.cancelled() => return,
            _ = events.recv_many(&mut taken, EVENTS_AT_ONCE) => {}
            () = timeout => {}
        }
        for event in taken.drain(..) {
            feeds.handle(event);
        }
        feeds.act();
    }
}

struct Feeds {
    shared: Arc<Shared>,
    upstreams: Upstreams<Arc<Link>>,
    readers: BTreeMap<FeedId, Arc<dyn FeedReader>>,
}

impl Feeds {
    fn handle(&mut self, event: FeedEvent) {
        let upstreams = &mut self.upstreams;
        match event {
            FeedEvent::Opened(id, spec, reader) => {
                self.readers.insert(id, reader);
                upstreams.open(id, spec);
            }
            FeedEvent::Credit(id, bytes) => upstreams.credit(id, bytes),
            FeedEvent::Sync(id, token) => upstreams.sync(id, token),
            FeedEvent::Closed(id) => {
                self.readers.remove(&id);
                upstreams.close(id);
            }
            FeedEvent::Frame { link, node, feed, response } => {
                let watch = Watch { link, id: response.id };
                let frame = asks::frame(response);
                if frame.teaches()
                    && let Some(group) = upstreams.group(feed)
                {
                    self.learn(group, node, &frame);
                }
                self.upstreams.handle_frame(now(), feed, watch, frame, random_u32);
            }
            FeedEvent::Answer { link, node, group, question, answer } => {
                let synced = sort(&Sync { watch: 0 }, answer);
                self.learn(group, node, &synced);
                self.upstreams.handle_synced(now(), link, group, question, synced, random_u32);
            }
            FeedEvent::Unasked { link, told: Unasked::Watermark { group, revision }, .. } => {
                upstreams.handle_watermark(link, group, revision);
            }
            FeedEvent::Unasked { node, told: Unasked::NotLeading { group, refused }, .. } => {
                self.learn::<()>(group, node, &Attempted::Refused(refused));
            }
            FeedEvent::Lost { link } => upstreams.handle_lost(now(), link, random_u32),
            FeedEvent::News => upstreams.handle_news(),
            FeedEvent::Map => upstreams.handle_map(),
        }
    }

    /// Learns from a refusal who leads.
    fn learn<T>(&self, group: GroupId, node: NodeId, attempted: &Attempted<T>) {
        if attempted.teaches()
            && let Some(group) = self.shared.group_by_id(group)
        {
            group.learn(node, attempted);
        }
    }

    /// Does what there is to do.
    fn act(&mut self) {
        let known = Known(Arc::clone(&self.shared));
        while let Some(act) = self.upstreams.poll(now(), &known, random_u32) {
            match act {
                Act::Open { feed, group, link, mut ask } => {
                    let sent = link.open_watch(group, &mut ask, feed);
                    self.upstreams.handle_sent(now(), feed, link, sent, random_u32);
                }
                Act::Credit { watch, group, link, bytes } => link.credit_watch(group, watch, bytes),
                Act::Close { watch, group, link, reason } => {
                    debug!(
                        group = group.0,
                        node = link.node().map(|node| node.0),
                        reason,
                        "a feed leaves its replica"
                    );
                    link.close_watch(group, watch);
                }
                Act::Ask { link, connection, group, question, mut ask } => {
                    if let Err(unsent) = link.ask_for_feeds(group, &mut ask, question) {
                        let unsent = Attempted::Unsent(unsent);
                        self.upstreams.handle_synced(now(), connection, group, question, unsent, random_u32);
                    }
                }
                Act::Item { feed, item } => {
                    if let Some(reader) = self.readers.get(&feed) {
                        reader.take(item);
                    }
                }
                Act::Seek { group } => {
                    if let Some(group) = self.shared.group_by_id(group) {
                        group.work.notify_one();
                    }
                }
            }
        }
    }
}

/// What the carrier knows of the groups.
struct Known(Arc<Shared>);

impl Known {
    fn group(&self, id: GroupId) -> Option<Arc<Group>> {
        self.0.group_by_id(id)
    }
}

impl Groups for Known {
    type Link = Arc<Link>;

    fn owner(&self, range: &KeyRange) -> Option<Result<GroupId, Failure>> {
        let routed = self.0.route_now(|| Concern::Keys(vec![range.clone()]))?;
        Some(routed.map(|(group, _)| group.id()))
    }

    fn leader(&self, group: GroupId) -> Option<NodeId> {
        self.group(group)?.leader()
    }

    fn to(&self, node: NodeId) -> Option<Arc<Link>> {
        self.0.links.to(node)
    }

    fn nearest(&self, group: GroupId) -> Option<(NodeId, Arc<Link>)> {
        let group = self.group(group)?;
        self.0.links.to_nearest(&self.0.replicas(&group))
    }
}
