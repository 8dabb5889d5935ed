//! A feed over links: it moves to another replica when it loses its own, and goes on where it was.

use std::sync::Arc;
use std::time::Duration;

use api::gaios::link::v1::{self as wire, refused::Why, response::Kind};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::debug;

use super::Shared;
use crate::backoff::{Backoff, random_u32};
use crate::domain::{Feed, FeedItem, FeedSpec};
use crate::errors::Failure;
use crate::link::{Call, FeedCall, Lost};
use crate::router::NodeId;

/// A replica that does not learn the newest revision for this long is cut off from its leader: another is tried.
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
    /// The replica that failed last.
    avoid: Option<NodeId>,
}

/// The feed on one replica.
#[derive(Debug)]
struct Watch {
    node: NodeId,
    call: FeedCall,
    sync: Option<SyncCall>,
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
            avoid: None,
        }
    }

    /// Opens the watch on some replica.
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
            let replicas = self.shared.replicas(&group);
            let others: Vec<NodeId> =
                replicas.iter().copied().filter(|node| Some(*node) != self.avoid).collect();
            let links = &self.shared.links;
            let Some((node, link)) = links.to_any(&others).or_else(|| links.to_any(&replicas)) else {
                let up = || links.to_any(&replicas).is_some();
                group.wait(up, usize::MAX).await?;
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
                self.watch = Some(Watch { node, call, sync: None });
                return Ok(());
            }
            sleep(self.backoff.next(random_u32())).await;
        }
    }

    /// Leaves the replica; the next item comes from another.
    async fn leave(&mut self, reason: &'static str) {
        let Some(watch) = self.watch.take() else { return };
        debug!(node = watch.node, reason, position = self.position, "feed leaves its replica");
        self.avoid = Some(watch.node);
        drop(watch);
        sleep(self.backoff.next(random_u32())).await;
    }

    fn handle_frame(&mut self, response: wire::Response) -> Result<Option<FeedItem>, &'static str> {
        let term = response.term;
        match response.kind {
            Some(Kind::WatchOpened(opened)) => {
                self.backoff.reset();
                self.avoid = None;
                if self.opened {
                    return Ok(None);
                }
                self.opened = true;
                self.position = opened.start_revision;
                Ok(Some(FeedItem::Opened { revision: opened.revision, start: opened.start_revision, term }))
            }
            Some(Kind::WatchEvents(events)) => {
                let bytes = events.revisions.len();
                self.credit = self.credit.saturating_sub(bytes as i64);
                let mut revisions = keyspace::RevisionEvents::decode_all(events.revisions)
                    .map_err(|_| "events cannot be read")?;
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
            Some(Kind::Refused(_)) => Err("refused"),
            Some(
                Kind::Reply(_)
                | Kind::SessionOpened(_)
                | Kind::KeptAlive(_)
                | Kind::Status(_)
                | Kind::WatchSynced(_)
                | Kind::ShardMap(_),
            )
            | None => Err("an answer to another question"),
        }
    }
}

impl Watch {
    async fn hear(&mut self) -> Heard {
        match &mut self.sync {
            None => Heard::Frame(self.call.next().await),
            Some(sync) => tokio::select! {
                biased;
                frame = self.call.next() => Heard::Frame(frame),
                answer = &mut sync.call => Heard::Synced(sync.token, answer),
                () = sleep_until(sync.until) => Heard::Silence,
            },
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
                Heard::Frame(Err(Lost)) => {
                    self.synced = None;
                    self.leave("link lost").await;
                }
                Heard::Frame(Ok(response)) => match self.handle_frame(response) {
                    Ok(Some(item)) => {
                        self.ended = matches!(item, FeedItem::Compacted { .. } | FeedItem::Failed(_));
                        return item;
                    }
                    Ok(None) => {}
                    Err(reason) => {
                        self.synced = None;
                        self.leave(reason).await;
                    }
                },
                Heard::Synced(
                    token,
                    Ok(wire::Response { term, kind: Some(Kind::WatchSynced(synced)), .. }),
                ) => {
                    if let Some(watch) = &mut self.watch {
                        watch.sync = None;
                    }
                    if self.sync == Some(token) {
                        self.synced = Some((token, synced, term));
                    }
                }
                // The replica cannot tell; another may.
                Heard::Synced(_, _) => self.leave("sync refused").await,
                Heard::Silence => self.leave("sync timed out").await,
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
