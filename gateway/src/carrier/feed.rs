//! A feed over links. It is served by the group's leader, which alone can tell that it has told everything; it moves when
//! the leader does, and goes on where it was. Without a leader, any replica serves what it has.

use std::sync::Arc;
use std::time::Duration;

use api::gaios::link::v1::{self as wire, refused::Why, response::Kind};
use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::debug;

use super::Shared;
use super::group::Group;
use crate::backoff::{Backoff, random_u32};
use crate::domain::{Feed, FeedItem, FeedSpec};
use crate::errors::Failure;
use crate::link::{Call, FeedCall, Lost};
use crate::retry::{self, Attempts};
use crate::router::NodeId;

/// A replica that may send and does not say how far it has come for this long is left.
const SYNC_TIMEOUT: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub struct LinkFeed {
    shared: Arc<Shared>,
    spec: FeedSpec,
    /// First revision that was not yielded; 0 until the feed was opened, when `spec.start` is 0.
    position: i64,
    opened: bool,
    ended: bool,
    /// Bytes of events that may still come.
    credit: i64,
    watch: Option<Watch>,
    /// The token of a sync that is not answered.
    sync: Option<u64>,
    /// The answer to it; yielded when every event before it was.
    synced: Option<(u64, wire::WatchSynced, u64)>,
    backoff: Backoff,
}

/// The feed on one replica.
#[derive(Debug)]
struct Watch {
    group: Arc<Group>,
    node: NodeId,
    call: FeedCall,
    sync: Option<SyncCall>,
    /// A sync was refused, and is asked for again then.
    sync_again: Option<Instant>,
    /// Something about the group's leader may have changed.
    news: watch::Receiver<u64>,
}

#[derive(Debug)]
struct SyncCall {
    token: u64,
    call: Call,
    until: Instant,
}

enum Heard {
    Frame(Result<wire::Response, Lost>),
    Synced(u64, Result<wire::Response, Lost>),
    Silence,
    SyncDue,
    News,
}

impl LinkFeed {
    pub(super) fn new(shared: Arc<Shared>, spec: FeedSpec) -> LinkFeed {
        LinkFeed {
            shared,
            position: spec.start,
            opened: false,
            ended: false,
            credit: i64::try_from(spec.credit).unwrap_or(i64::MAX),
            spec,
            watch: None,
            sync: None,
            synced: None,
            backoff: Backoff::new(Duration::from_millis(10), Duration::from_millis(500)),
        }
    }

    /// Opens the watch on the leader; one that was open before, on any replica if there is no leader.
    async fn open(&mut self) -> Result<(), Failure> {
        let range = || vec![self.spec.range.clone()];
        let group = loop {
            // A feed waits as long as it takes.
            match self.shared.group(self.shared.deadline(), range).await {
                Err(Failure::TimedOut) => {}
                Err(Failure::Overloaded) => sleep(self.backoff.next(random_u32())).await,
                found => break found?,
            }
        };
        loop {
            let news = group.news();
            let target = || {
                group.leader_link(&self.shared).or_else(|| {
                    let replicas = if self.opened { self.shared.replicas(&group) } else { Vec::new() };
                    self.shared.links.to_nearest(&replicas)
                })
            };
            let Some((node, link)) = target() else {
                group.wait(|| target().is_some(), usize::MAX).await?;
                continue;
            };
            let open = wire::WatchOpen {
                key: self.spec.range.key.clone(),
                range_end: self.spec.range.wire_end(),
                start_revision: self.position,
                prev_kv: self.spec.prev_kv,
                credit: self.credit.max(0) as u64,
                linearizable: !self.opened,
            };
            if let Ok(call) = link.open_feed(group.id(), open) {
                self.watch = Some(Watch { group, node, call, sync: None, sync_again: None, news });
                return Ok(());
            }
            sleep(self.backoff.next(random_u32())).await;
        }
    }

    /// Leaves the replica; the next item comes from another, or from a new attempt.
    async fn leave(&mut self, reason: &'static str) {
        let Some(watch) = self.watch.take() else { return };
        debug!(node = watch.node, reason, position = self.position, "feed leaves its replica");
        self.synced = None;
        drop(watch);
        sleep(self.backoff.next(random_u32())).await;
    }

    /// Whether a leader can be reached that is not the replica which serves this feed.
    fn leader_is_elsewhere(&self) -> bool {
        let elsewhere = |watch: &Watch| {
            watch.group.leader_link(&self.shared).is_some_and(|(leader, _)| leader != watch.node)
        };
        self.watch.as_ref().is_some_and(elsewhere)
    }

    /// Learns from a refusal who leads.
    fn handle_refused(&self, term: u64, refused: &wire::Refused) {
        if let Some(watch) = &self.watch {
            let _ =
                watch.group.handle_refused(watch.node, term, refused, &mut Attempts::new(retry::Kind::Read));
        }
    }

    fn handle_frame(&mut self, response: wire::Response) -> Result<Option<FeedItem>, &'static str> {
        let term = response.term;
        match response.kind {
            Some(Kind::WatchOpened(opened)) => {
                self.backoff.reset();
                if self.opened {
                    return Ok(None);
                }
                self.opened = true;
                self.position = opened.start_revision;
                Ok(Some(FeedItem::Opened {
                    revision: opened.revision,
                    start: opened.start_revision,
                    compact_revision: opened.compact_revision,
                    term,
                }))
            }
            Some(Kind::WatchEvents(events)) => {
                let bytes = events.revisions.len();
                self.credit = self.credit.saturating_sub(bytes as i64);
                // Keys and values are parts of what they are decoded from. They may be kept for long, and the link's frame,
                // with answers to anybody, may not.
                let own = Bytes::copy_from_slice(&events.revisions);
                let mut revisions =
                    keyspace::RevisionEvents::decode_all(own).map_err(|_| "events cannot be read")?;
                revisions.retain(|events| events.revision.0 >= self.position);
                self.position = self.position.max(events.upto.saturating_add(1));
                Ok(Some(FeedItem::Events {
                    revisions,
                    upto: self.position - 1,
                    revision: events.revision,
                    term,
                    bytes: bytes as u64,
                }))
            }
            Some(Kind::WatchCanceled(canceled)) => match (canceled.compact_revision, canceled.refused) {
                (0, Some(refused)) if refused.why() == Why::Malformed => {
                    Ok(Some(FeedItem::Failed(Failure::Internal("gaios: a node could not read the watch"))))
                }
                (0, _) => Err("canceled"),
                (compact_revision, _) => Ok(Some(FeedItem::Compacted { compact_revision })),
            },
            Some(Kind::Refused(refused)) if refused.why() == Why::Malformed => {
                Ok(Some(FeedItem::Failed(Failure::Internal("gaios: a node could not read the watch"))))
            }
            Some(Kind::Refused(refused)) => {
                self.handle_refused(term, &refused);
                Err("refused")
            }
            Some(
                Kind::Reply(_)
                | Kind::SessionOpened(_)
                | Kind::KeptAlive(_)
                | Kind::Status(_)
                | Kind::WatchSynced(_)
                | Kind::ShardMap(_)
                | Kind::NodeStatus(_)
                | Kind::Gateways(_)
                | Kind::LeaderControlled(_),
            )
            | None => Err("an answer to another question"),
        }
    }
}

impl Watch {
    async fn hear(&mut self) -> Heard {
        let sync_again = self.sync_again;
        let due = async {
            match sync_again {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let synced = async {
            match &mut self.sync {
                Some(sync) => tokio::select! {
                    biased;
                    answer = &mut sync.call => Heard::Synced(sync.token, answer),
                    () = sleep_until(sync.until) => Heard::Silence,
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            // Events come before the answer that speaks of them.
            frame = self.call.next() => Heard::Frame(frame),
            heard = synced => heard,
            _ = self.news.changed() => Heard::News,
            () = due => Heard::SyncDue,
        }
    }
}

impl Feed for LinkFeed {
    async fn next(&mut self) -> FeedItem {
        if self.ended {
            return std::future::pending().await;
        }
        loop {
            let Some(watch) = &mut self.watch else {
                if let Err(failure) = self.open().await {
                    self.ended = true;
                    return FeedItem::Failed(failure);
                }
                continue;
            };
            // A sync that was asked for, or whose replica was lost, goes out again.
            if let Some(token) = self.sync
                && self.opened
                && self.synced.is_none()
                && watch.sync_again.is_none()
                && watch.sync.as_ref().is_none_or(|sync| sync.token != token)
            {
                match watch.call.sync() {
                    Ok(call) => {
                        watch.sync = Some(SyncCall { token, call, until: Instant::now() + SYNC_TIMEOUT });
                    }
                    // The link is full or gone; in the latter case the next frame says so.
                    Err(_) => {
                        self.leave("sync not sent").await;
                        continue;
                    }
                }
            }
            let heard = match self.synced {
                None => watch.hear().await,
                // Events that came before the answer may still lie in the channel.
                Some((token, ref synced, term)) => match watch.call.try_next() {
                    Some(frame) => Heard::Frame(frame),
                    None => {
                        let wire::WatchSynced { revision, compact_revision, .. } = *synced;
                        self.synced = None;
                        self.sync = None;
                        self.position = self.position.max(revision.saturating_add(1));
                        return FeedItem::Synced { token, revision, compact_revision, term };
                    }
                },
            };
            match heard {
                Heard::Frame(Err(Lost)) => self.leave("link lost").await,
                Heard::Frame(Ok(response)) => {
                    if let Some(sync) = self.watch.as_mut().and_then(|watch| watch.sync.as_mut()) {
                        sync.until = Instant::now() + SYNC_TIMEOUT;
                    }
                    match self.handle_frame(response) {
                        Ok(Some(item)) => {
                            self.ended = matches!(item, FeedItem::Compacted { .. } | FeedItem::Failed(_));
                            return item;
                        }
                        Ok(None) => {}
                        Err(reason) => self.leave(reason).await,
                    }
                }
                Heard::Synced(token, Ok(wire::Response { term, kind, .. })) => match kind {
                    Some(Kind::WatchSynced(synced)) => {
                        if let Some(watch) = &mut self.watch {
                            watch.sync = None;
                        }
                        if self.sync == Some(token) {
                            self.synced = Some((token, synced, term));
                        }
                    }
                    // It knows of no such watch: the request for it was lost on the way.
                    Some(Kind::Refused(refused)) if refused.why() == Why::Malformed => {
                        self.leave("it has no such watch").await;
                    }
                    Some(Kind::Refused(refused)) => {
                        self.handle_refused(term, &refused);
                        let again = Instant::now() + self.backoff.next(random_u32());
                        if let Some(watch) = &mut self.watch {
                            watch.sync = None;
                            watch.sync_again = Some(again);
                        }
                        if self.leader_is_elsewhere() {
                            self.leave("it does not lead").await;
                        }
                    }
                    Some(
                        Kind::Reply(_)
                        | Kind::SessionOpened(_)
                        | Kind::KeptAlive(_)
                        | Kind::Status(_)
                        | Kind::WatchOpened(_)
                        | Kind::WatchEvents(_)
                        | Kind::WatchCanceled(_)
                        | Kind::ShardMap(_)
                        | Kind::NodeStatus(_)
                        | Kind::Gateways(_)
                        | Kind::LeaderControlled(_),
                    )
                    | None => self.leave("an answer to another question").await,
                },
                Heard::Synced(_, Err(Lost)) => self.leave("sync lost").await,
                Heard::Silence if self.credit <= 0 => {
                    // It waits for us, not we for it.
                    if let Some(sync) = self.watch.as_mut().and_then(|watch| watch.sync.as_mut()) {
                        sync.until = Instant::now() + SYNC_TIMEOUT;
                    }
                }
                Heard::Silence => self.leave("sync timed out").await,
                Heard::SyncDue => {
                    if let Some(watch) = &mut self.watch {
                        watch.sync_again = None;
                    }
                }
                Heard::News => {
                    if self.leader_is_elsewhere() {
                        self.leave("the leader is elsewhere").await;
                    }
                }
            }
        }
    }

    fn credit(&mut self, bytes: u64) {
        self.credit = self.credit.saturating_add_unsigned(bytes);
        if let Some(watch) = &self.watch {
            watch.call.credit(bytes);
        }
    }

    fn sync(&mut self, token: u64) {
        self.sync = Some(token);
        self.synced = None;
    }
}
