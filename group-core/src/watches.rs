//! The watches that gateways hold at this replica. A watch in step with the state gets each revision as it is applied;
//! one that is behind reads history until it is in step again. Bytes sent are bounded by the gateway's credit: without
//! credit a watch falls behind, keeping nothing but its position. No revision is skipped, repeated or torn. A watch that
//! was in step, here or elsewhere, goes on although its place was compacted since, as far as that is remembered.
//!
//! A gateway knows of each watch whether it is in step, and one *watermark* per link says how far all of those are: a watch on
//! which nothing happens costs nothing. Nor is anybody asked whether this replica still leads: when it does not, it says so on
//! every link with watches.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use api::gaios::link::v1 as wire;
use api::gaios::link::v1::refused::Why;
use api::gaios::link::v1::response::Kind;
use bytes::{Bytes, BytesMut};
use consensus_core::{GroupId, Mono};
use keyspace::{Event, KeyRange, Keyspace, NoHistory, Resolved, Revision, RevisionEvents, WatcherIndex};

use crate::env::LinkId;
use crate::mutant::{Broken, mutant};
use crate::recent::Recent;
use crate::replies::{Replies, UNASKED};

/// In a question how far watches are: all of the link that are in step.
const ALL: u64 = 0;
/// Most revisions of history read for a watch at a time; etcd's batch.
const HISTORY_REVISIONS: usize = 1000;
/// Most bytes of history read for a watch at a time.
const HISTORY_BYTES: usize = 1 << 20;
/// Most watches that are served history before the group turns to other work.
const BEHIND_PER_TURN: usize = 16;

/// Between two watermarks of a link. Nobody waits for them: whoever wants to know how far a watch is asks.
pub(crate) const WATERMARK_EVERY: Duration = Duration::from_secs(1);

/// A watch: the link's id and the id the gateway chose on it.
type WatchId = (LinkId, u64);

#[derive(Debug)]
pub(crate) struct Watches {
    group: GroupId,
    watches: BTreeMap<WatchId, Watch>,
    /// Links with watches.
    links: BTreeMap<LinkId, OfLink>,
    /// Links to be told that this replica does not lead, if it does not.
    unled: BTreeSet<LinkId>,
    /// What the last watermark said.
    watermark: Resolved,
    /// No other is told before.
    watermark_at: Mono,
    /// Watches in step, by range.
    in_step: WatcherIndex<WatchId>,
    /// Watches behind that have credit, in the order in which they are served.
    behind: BTreeSet<WatchId>,
    /// Where the round over `behind` goes on.
    served_last: Option<WatchId>,
    recent: Recent,
    broken: Broken,
}

#[derive(Debug, Default)]
struct OfLink {
    watches: usize,
    in_step: usize,
}

#[derive(Debug)]
struct Watch {
    link: LinkId,
    range: KeyRange,
    prev_kv: bool,
    /// The first revision not yet sent or known not to touch the range.
    next: Revision,
    /// Bytes that may still be sent. One page may overdraw it.
    credit: i64,
    in_step: bool,
    /// It has been in step, here or at another replica: compaction does not end it.
    is_settled: bool,
    /// Requests waiting for the watch to be in step.
    syncs: Vec<u64>,
}

impl Watches {
    /// For a state that is resolved so far.
    pub(crate) fn new(group: GroupId, resolved: Resolved, broken: Broken) -> Watches {
        Watches {
            group,
            watches: BTreeMap::new(),
            links: BTreeMap::new(),
            unled: BTreeSet::new(),
            watermark: resolved,
            watermark_at: Mono(0),
            in_step: WatcherIndex::default(),
            behind: BTreeSet::new(),
            served_last: None,
            recent: Recent::new(resolved.revision()),
            broken,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.watches.len()
    }

    pub(crate) fn open(
        &mut self,
        link: LinkId,
        id: u64,
        request: wire::WatchOpen,
        state: &Keyspace,
        replies: &mut Replies,
    ) {
        let watch_id = (link, id);
        if self.watches.contains_key(&watch_id) {
            replies.refuse(link, id, Why::Malformed);
            return;
        }
        let range = KeyRange::from_watch_wire(request.key, request.range_end);
        if !state.holds(&range) {
            replies.refuse_wrong_shard(link, id);
            return;
        }
        let resolved = state.resolved();
        let next = match request.start_revision {
            ..=0 => resolved.revision().next(),
            start if mutant!(self.broken, WatchBeginsLate) => Revision(start + 1),
            start => Revision(start),
        };
        let in_step = !resolved.covers(next);
        let watch = Watch {
            link,
            range,
            prev_kv: request.prev_kv,
            next,
            credit: i64::try_from(request.credit).unwrap_or(i64::MAX),
            in_step,
            // A gateway asks for the leader's word when it opens a watch, and not when it goes on with one.
            is_settled: in_step || !request.linearizable,
            syncs: Vec::new(),
        };
        replies.add(
            link,
            id,
            Kind::WatchOpened(wire::WatchOpened {
                revision: resolved.revision().0,
                start_revision: next.0,
                compact_revision: state.compact_revision().0,
            }),
        );
        let of_link = self.links.entry(link).or_default();
        of_link.watches += 1;
        if in_step {
            of_link.in_step += 1;
            self.in_step.insert(&watch.range, watch_id);
        } else if watch.credit > 0 {
            self.behind.insert(watch_id);
        }
        assert!(of_link.in_step <= of_link.watches, "watches in step are watches");
        self.unled.insert(link);
        self.watches.insert(watch_id, watch);
    }

    pub(crate) fn close(&mut self, link: LinkId, id: u64) {
        let Some(watch) = self.watches.remove(&(link, id)) else { return };
        let was_in_step = self.in_step.remove(&watch.range, (link, id));
        assert_eq!(was_in_step, watch.in_step, "the index holds the watches in step");
        let was_behind = self.behind.remove(&(link, id));
        assert!(!(was_in_step && was_behind), "a watch is in step or behind");
        let of_link = self.links.get_mut(&link).expect("a link with a watch");
        assert!(
            of_link.watches > 0 && of_link.in_step <= of_link.watches,
            "every watch of a link is counted"
        );
        of_link.watches -= 1;
        of_link.in_step -= usize::from(watch.in_step);
        if of_link.watches == 0 {
            self.links.remove(&link);
            self.unled.remove(&link);
        }
    }

    pub(crate) fn close_link(&mut self, link: LinkId) {
        let ids: Vec<_> = self.watches.range((link, 0)..=(link, u64::MAX)).map(|(id, _)| id.1).collect();
        for id in ids {
            self.close(link, id);
        }
        assert!(!self.links.contains_key(&link), "nothing is left of a link that is closed");
    }

    pub(crate) fn add_credit(&mut self, link: LinkId, id: u64, bytes: u64) {
        if let Some(watch) = self.watches.get_mut(&(link, id)) {
            watch.credit = watch.credit.saturating_add(i64::try_from(bytes).unwrap_or(i64::MAX));
            if !watch.in_step && watch.credit > 0 {
                self.behind.insert((link, id));
            }
        }
    }

    /// Answers behind all events sent until then, since answers keep their order; about one watch once that is in step.
    pub(crate) fn sync(
        &mut self,
        link: LinkId,
        id: u64,
        watch: u64,
        state: &Keyspace,
        replies: &mut Replies,
    ) {
        match self.watches.get_mut(&(link, watch)) {
            _ if watch == ALL => replies.add(link, id, Kind::WatchSynced(synced(state))),
            None => replies.refuse(link, id, Why::Malformed),
            Some(found) if found.in_step || mutant!(self.broken, WatchSyncedTooSoon) => {
                replies.add(link, id, Kind::WatchSynced(synced(state)));
            }
            Some(found) => found.syncs.push(id),
        }
    }

    /// Whether any watch could be sent history now.
    pub(crate) fn has_work(&self) -> bool {
        !self.behind.is_empty()
    }

    /// Sends revisions just applied to the watches in step that they concern.
    pub(crate) fn on_revisions(
        &mut self,
        revisions: &[RevisionEvents],
        state: &Keyspace,
        replies: &mut Replies,
    ) {
        let resolved = state.resolved();
        assert!(
            revisions.iter().all(|events| resolved.covers(events.revision)),
            "nothing is streamed before it is resolved"
        );
        self.recent.extend(revisions);
        if self.watches.is_empty() {
            return;
        }
        // Per watch the revisions that touch it, each with its matching events in their order.
        let mut touched: BTreeMap<WatchId, Vec<(Revision, Vec<Event>)>> = BTreeMap::new();
        let mut matching = Vec::new();
        for revision in revisions {
            for event in revision.events.iter() {
                matching.clear();
                self.in_step.matching(&event.kv.key, &mut matching);
                for &id in &matching {
                    let Some(watch) = self.watches.get(&id).filter(|watch| watch.next <= revision.revision)
                    else {
                        continue;
                    };
                    let mut event = watch.view(event);
                    if mutant!(self.broken, WatchWithoutPrevKv) {
                        event.prev_kv = None;
                    }
                    let of_watch = touched.entry(id).or_default();
                    match of_watch.last_mut() {
                        Some((last, events)) if *last == revision.revision => events.push(event),
                        Some(_) | None => of_watch.push((revision.revision, vec![event])),
                    }
                }
            }
        }
        for (id, revisions) in touched {
            let watch = self.watches.get_mut(&id).expect("found above");
            assert!(watch.in_step, "only a watch in step is sent what was just applied");
            if watch.credit <= 0 {
                // From here on it reads history, from the first revision that it was not sent.
                watch.next = revisions[0].0;
                if mutant!(self.broken, WatchSkipsWhenBehind) {
                    watch.next.0 += 1;
                }
                if !mutant!(self.broken, WatchFallsSilently) {
                    watch.tell_place(id.1, resolved, replies);
                }
                self.leave_step(id);
                continue;
            }
            let revisions: Vec<_> = revisions
                .into_iter()
                .map(|(revision, events)| RevisionEvents { revision, events: events.into() })
                .collect();
            watch.send(id.1, &revisions, resolved.revision(), resolved, replies);
        }
    }

    /// Sends history to some of the watches that are behind.
    pub(crate) fn serve_behind(&mut self, state: &Keyspace, replies: &mut Replies) {
        for _ in 0..BEHIND_PER_TURN.min(self.behind.len()) {
            let after = self.served_last.and_then(|last| self.behind.range((last.0, last.1 + 1)..).next());
            let Some(&id) = after.or(self.behind.first()) else { return };
            self.served_last = Some(id);
            self.serve_history(id, state, replies);
        }
    }

    /// The state, which was resolved to `old`, is replaced by a snapshot's, resolved to `new`: revisions are skipped here, so
    /// every watch reads history from there.
    pub(crate) fn on_state_replaced(&mut self, old: Resolved, new: Resolved, replies: &mut Replies) {
        self.recent = Recent::new(new.revision());
        let mut left = Vec::new();
        for (&id, watch) in self.watches.iter_mut().filter(|(_, watch)| watch.in_step) {
            watch.next = watch.next.max(old.revision().next());
            if new.covers(watch.next) {
                watch.tell_place(id.1, new, replies);
                left.push(id);
            }
        }
        for id in left {
            self.leave_step(id);
            self.behind.insert(id);
        }
    }

    /// This replica does not lead any more.
    pub(crate) fn on_unled(&mut self) {
        self.unled.extend(self.links.keys());
    }

    /// Tells gateways what concerns all their watches, behind everything that was sent to them.
    pub(crate) fn tell_links(&mut self, now: Mono, leads: bool, state: &Keyspace, replies: &mut Replies) {
        if !self.unled.is_empty() {
            for link in std::mem::take(&mut self.unled) {
                if !leads {
                    replies.not_leading(link, self.group);
                }
            }
        }
        if self.watermark_due(state).is_some_and(|due| due <= now) {
            self.watermark = state.resolved();
            let mut revision = self.watermark.revision();
            if mutant!(self.broken, WatermarkTooHigh) {
                revision.0 += 1;
            }
            self.watermark_at = now.after(WATERMARK_EVERY);
            let watermark = wire::WatchWatermark { group: self.group.0, revision: revision.0 };
            for (link, _) in self.links.iter().filter(|(_, of_link)| of_link.in_step > 0) {
                replies.add(*link, UNASKED, Kind::WatchWatermark(watermark));
            }
        }
    }

    /// When the next watermark is to be told: none while the revision stays, or nobody wants to know.
    pub(crate) fn watermark_due(&self, state: &Keyspace) -> Option<Mono> {
        (!self.in_step.is_empty() && self.watermark < state.resolved()).then_some(self.watermark_at)
    }

    fn leave_step(&mut self, id: WatchId) {
        let watch = self.watches.get_mut(&id).expect("a watch in step");
        assert!(watch.in_step, "a watch that is behind cannot fall behind");
        watch.in_step = false;
        let was_in_step = self.in_step.remove(&watch.range, id);
        assert!(was_in_step, "the index holds the watches in step");
        self.links.get_mut(&id.0).expect("a link with a watch").in_step -= 1;
    }

    fn serve_history(&mut self, id: WatchId, state: &Keyspace, replies: &mut Replies) {
        let watch = self.watches.get_mut(&id).expect("`behind` names only watches that exist");
        let resolved = state.resolved();
        assert!(!watch.in_step, "a watch in step reads no history");
        let budget = usize::try_from(watch.credit).unwrap_or(0).clamp(1, HISTORY_BYTES);
        let page = state.history(&watch.range, watch.next, budget, HISTORY_REVISIONS).or_else(|compacted| {
            let remembered = watch
                .is_settled
                .then(|| self.recent.history(&watch.range, watch.next, resolved, budget, HISTORY_REVISIONS));
            remembered.flatten().ok_or(compacted)
        });
        match page {
            Ok(mut page) => {
                let is_told = !page.revisions.is_empty();
                let is_new = page.next > watch.next || !resolved.covers(watch.next);
                assert!(is_new, "each page goes on, so that a watch is in step in the end");
                if is_told {
                    if !watch.prev_kv {
                        for revision in &mut page.revisions {
                            revision.events = revision.events.iter().map(|event| watch.view(event)).collect();
                        }
                    }
                    let upto = page.next.previous();
                    watch.send(id.1, &page.revisions, upto, resolved, replies);
                }
                watch.next = page.next.max(watch.next);
                if !resolved.covers(watch.next) || mutant!(self.broken, WatchInStepTooSoon) {
                    watch.in_step = true;
                    watch.is_settled = true;
                    if !is_told {
                        watch.tell_place(id.1, resolved, replies);
                    }
                    self.in_step.insert(&watch.range, id);
                    self.links.get_mut(&id.0).expect("a link with a watch").in_step += 1;
                    self.behind.remove(&id);
                    for sync in watch.syncs.drain(..) {
                        replies.add(watch.link, sync, Kind::WatchSynced(synced(state)));
                    }
                } else if watch.credit <= 0 {
                    self.behind.remove(&id);
                }
            }
            Err(NoHistory::Compacted(compacted)) if mutant!(self.broken, WatchOverCompaction) => {
                watch.next = compacted;
            }
            Err(NoHistory::Compacted(compacted)) => {
                let canceled = wire::WatchCanceled { compact_revision: compacted.0, refused: None };
                replies.add(watch.link, id.1, Kind::WatchCanceled(canceled));
                for sync in watch.syncs.drain(..) {
                    replies.refuse(watch.link, sync, Why::Malformed);
                }
                self.close(id.0, id.1);
            }
            Err(NoHistory::WrongShard) => {
                replies.refuse_wrong_shard(watch.link, id.1);
                for sync in watch.syncs.drain(..) {
                    replies.refuse_wrong_shard(watch.link, sync);
                }
                self.close(id.0, id.1);
            }
        }
    }
}

impl Watch {
    /// The event as this watch asked to see it.
    fn view(&self, event: &Event) -> Event {
        let prev_kv = if self.prev_kv { event.prev_kv.clone() } else { None };
        Event { kind: event.kind, kv: event.kv.clone(), prev_kv }
    }

    /// Tells how far it is, without events: whether it is in step has changed.
    fn tell_place(&self, id: u64, resolved: Resolved, replies: &mut Replies) {
        let (upto, revision) = (self.next.previous().0, resolved.revision().0);
        let place = wire::WatchEvents { revisions: Bytes::new(), upto, revision };
        replies.add(self.link, id, Kind::WatchEvents(place));
    }

    fn send(
        &mut self,
        id: u64,
        revisions: &[RevisionEvents],
        upto: Revision,
        resolved: Resolved,
        replies: &mut Replies,
    ) {
        let mut encoded = BytesMut::new();
        RevisionEvents::encode_all(revisions, &mut encoded);
        assert!(upto.next() >= self.next, "nothing is sent again");
        assert!(resolved.covers(upto), "nothing is streamed before it is resolved");
        assert!(
            revisions.last().is_none_or(|last| last.revision <= upto),
            "events come no later than that they are all"
        );
        self.credit -= i64::try_from(encoded.len()).unwrap_or(i64::MAX);
        self.next = upto.next();
        let revision = resolved.revision().0;
        let events = wire::WatchEvents { revisions: encoded.freeze(), upto: upto.0, revision };
        replies.add(self.link, id, Kind::WatchEvents(events));
    }
}

/// The answer to a sync of a watch that is in step with the state.
fn synced(state: &Keyspace) -> wire::WatchSynced {
    let (resolved, compact_revision) = (state.resolved().revision(), state.compact_revision());
    wire::WatchSynced { revision: resolved.0, compact_revision: compact_revision.0 }
}
