//! The watches that gateways hold at this replica. A watch in step with the state gets each revision as it is applied;
//! one that is behind reads history until it is in step again. Bytes sent are bounded by the gateway's credit, and by what its
//! link takes: without either a watch falls behind, keeping nothing but its position. No revision is skipped or repeated. A
//! watch that was in step, here or elsewhere, goes on although its place was compacted since, as far as that is remembered.
//!
//! What one request changed may be more than a group has time for, or a gateway memory. So a large revision is not sent as it is
//! applied: whoever watches it falls behind. History is read in pages, which may end inside a revision; each turn so many of
//! them for all watches together, links taking turns. A gateway is told which revision is not complete. Only an event is never
//! cut.
//!
//! A gateway knows of each watch whether it is in step, and one *watermark* per link says how far all of those are: a watch on
//! which nothing happens costs nothing. Nor is anybody asked whether this replica still leads: when it does not, it says so on
//! every link with watches.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use api::gaios::link::v1 as wire;
use api::gaios::link::v1::refused::Why;
use api::gaios::link::v1::response::Kind;
use bytes::{Bytes, BytesMut};
use consensus_core::{GroupId, Mono};
use keyspace::{
    Event, FeedPlace, HistoryPage, KeyRange, Keyspace, NoHistory, PageLimits, Resolved, Revision,
    RevisionEvents, WatcherIndex,
};

use crate::env::{LinkId, Links};
use crate::mutant::{Broken, mutant};
use crate::recent::Recent;
use crate::replies::{Replies, UNASKED};

/// In a question how far watches are: all of the link that are in step.
const ALL: u64 = 0;
/// Most credit that is believed: more than any gateway of ours gives.
const CREDIT_MAX: i64 = 4 << 20;
/// Most pages of history that are read before the group turns to other work.
const PAGES_PER_TURN: usize = 64;
/// Most events in them: each is looked up and encoded, which takes about a microsecond.
const EVENTS_PER_TURN: usize = 1000;
/// Most changes that are looked at for them.
const LOOKED_AT_PER_TURN: usize = 8000;
/// Most events that are sent in a turn as they are applied, counted once for each watch.
const LIVE_EVENTS_PER_TURN: usize = 8000;
/// Bytes of history read in a turn, in parts.
const PARTS_PER_TURN: usize = 4;
/// Bytes that are sent in a turn as they are applied, in parts.
const LIVE_PARTS_PER_TURN: usize = 8;

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
    /// Links with watches that are behind and have credit.
    behind: BTreeSet<LinkId>,
    /// Where the round over them goes on.
    served_last: Option<LinkId>,
    /// What may still be sent in this turn as it is applied.
    live: Room,
    /// Bytes of events after which a message ends.
    part_bytes: usize,
    recent: Recent,
    broken: Broken,
}

#[derive(Debug, Default)]
struct OfLink {
    watches: usize,
    in_step: usize,
    /// Watches behind that have credit, in the order in which they are served.
    behind: BTreeSet<u64>,
    /// Where the round over them goes on.
    served_last: Option<u64>,
}

/// How much a turn still has room for.
#[derive(Clone, Copy, Debug)]
struct Room {
    bytes: usize,
    events: usize,
}

/// What a watch in step is to be sent of what was just applied.
#[derive(Debug, Default)]
struct Touched {
    /// The revisions that touch it, each with its matching events in their order.
    revisions: Vec<(Revision, Vec<Event>)>,
    bytes: usize,
    falls_behind: bool,
}

#[derive(Debug)]
struct Watch {
    link: LinkId,
    range: KeyRange,
    prev_kv: bool,
    /// What is before it was sent, or does not touch the range. In step, it is the beginning of a revision.
    next: FeedPlace,
    /// Bytes that may still be sent. One event may overdraw it.
    credit: i64,
    in_step: bool,
    /// It has been in step, here or at another replica: compaction does not end it.
    is_settled: bool,
    /// Requests waiting for the watch to be in step.
    syncs: Vec<u64>,
}

impl Watches {
    /// For a state that is resolved so far.
    pub(crate) fn new(group: GroupId, resolved: Resolved, part_bytes: usize, broken: Broken) -> Watches {
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
            live: Room::live(part_bytes),
            part_bytes,
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
        // There may be many, each from a large frame.
        let range = KeyRange::from_watch_wire(request.key, request.range_end).own();
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
            next: next.into(),
            credit: i64::try_from(request.credit).unwrap_or(i64::MAX).min(CREDIT_MAX),
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
        }
        assert!(of_link.in_step <= of_link.watches, "watches in step are watches");
        self.unled.insert(link);
        self.watches.insert(watch_id, watch);
        self.serve_if_it_may(watch_id);
    }

    pub(crate) fn close(&mut self, link: LinkId, id: u64) {
        let Some(watch) = self.watches.remove(&(link, id)) else { return };
        let was_in_step = self.in_step.remove(&watch.range, (link, id));
        assert_eq!(was_in_step, watch.in_step, "the index holds the watches in step");
        let was_behind = self.serve_no_more((link, id));
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
            let credit = watch.credit.saturating_add(i64::try_from(bytes).unwrap_or(i64::MAX));
            watch.credit = credit.min(CREDIT_MAX);
            self.serve_if_it_may((link, id));
        }
    }

    /// Has history read for a watch that is behind, as long as it has credit.
    fn serve_if_it_may(&mut self, id: WatchId) {
        if self.watches.get(&id).is_some_and(|watch| !watch.in_step && watch.credit > 0) {
            self.links.get_mut(&id.0).expect("a link with a watch").behind.insert(id.1);
            self.behind.insert(id.0);
        }
    }

    /// Returns whether history was read for the watch until now.
    fn serve_no_more(&mut self, id: WatchId) -> bool {
        let Some(of_link) = self.links.get_mut(&id.0) else { return false };
        let was_behind = of_link.behind.remove(&id.1);
        if of_link.behind.is_empty() {
            self.behind.remove(&id.0);
        }
        was_behind
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
    pub(crate) fn has_work(&self, links: &dyn Links) -> bool {
        self.behind.iter().any(|link| links.has_room(*link))
    }

    /// Sends revisions just applied to the watches in step that they concern, as far as there is room for that in this turn.
    pub(crate) fn on_revisions(
        &mut self,
        revisions: &[RevisionEvents],
        state: &Keyspace,
        links: &dyn Links,
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
        let mut touched: BTreeMap<WatchId, Touched> = BTreeMap::new();
        let mut matching = Vec::new();
        for revision in revisions {
            let is_large = !Room::live(self.part_bytes).holds(&revision.events);
            for event in revision.events.iter() {
                matching.clear();
                self.in_step.matching(&event.kv.key, &mut matching);
                for &id in &matching {
                    let watch = self.watches.get(&id).expect("the index holds watches");
                    if watch.next.revision > revision.revision {
                        continue;
                    }
                    let of_watch = touched.entry(id).or_default();
                    let has_credit = watch.credit > i64::try_from(of_watch.bytes).unwrap_or(i64::MAX);
                    if is_large || !has_credit || self.live.is_empty() || !links.has_room(id.0) {
                        of_watch.fall_behind(revision.revision);
                        self.leave_step(id, revision.revision);
                        continue;
                    }
                    let mut event = event.view(watch.prev_kv);
                    if mutant!(self.broken, WatchWithoutPrevKv) {
                        event.prev_kv = None;
                    }
                    self.live.take(1, event.size_bytes());
                    of_watch.push(revision.revision, event);
                }
            }
        }
        for (id, touched) in touched {
            self.send_live(id, touched, resolved, replies);
        }
    }

    fn send_live(&mut self, id: WatchId, touched: Touched, resolved: Resolved, replies: &mut Replies) {
        let watch = self.watches.get_mut(&id).expect("it was touched");
        assert_eq!(
            watch.in_step, !touched.falls_behind,
            "only a watch in step is sent what was just applied"
        );
        // One that falls behind reads history from here on, from the first revision that it was not sent.
        let upto = if watch.in_step { resolved.revision() } else { watch.next.revision.previous() };
        if touched.falls_behind && mutant!(self.broken, WatchSkipsWhenBehind) {
            watch.next.revision.0 += 1;
        }
        if !touched.revisions.is_empty() {
            let whole = |(revision, events): (Revision, Vec<Event>)| RevisionEvents {
                revision,
                events: events.into(),
            };
            let revisions: Vec<_> = touched.revisions.into_iter().map(whole).collect();
            watch.send(id.1, &revisions, None, upto, resolved, replies);
        } else if !mutant!(self.broken, WatchFallsSilently) {
            watch.tell_place(id.1, resolved, replies);
        }
        if watch.in_step {
            watch.next = upto.next().into();
        }
        self.serve_if_it_may(id);
    }

    /// Sends history to some of the watches that are behind, as much as a turn has room for. Ends the turn.
    pub(crate) fn serve_behind(&mut self, state: &Keyspace, links: &dyn Links, replies: &mut Replies) {
        self.live = Room::live(self.part_bytes);
        let mut room =
            Room { bytes: self.part_bytes.saturating_mul(PARTS_PER_TURN), events: EVENTS_PER_TURN };
        let mut looked_at = 0;
        for _ in 0..PAGES_PER_TURN {
            if room.is_empty() || looked_at >= LOOKED_AT_PER_TURN {
                return;
            }
            let Some(id) = self.next_behind(links) else { return };
            let watch = self.watches.get(&id).expect("`behind` names only watches that exist");
            let credit = usize::try_from(watch.credit).unwrap_or(0);
            let limits = PageLimits {
                bytes: room.bytes.min(self.part_bytes).min(credit),
                events: room.events,
                looked_at: LOOKED_AT_PER_TURN - looked_at,
            };
            let page = self.read_history(watch, state, limits);
            if let Ok(page) = &page {
                let events = page.revisions.iter().flat_map(|revision| revision.events.iter());
                events.for_each(|event| room.take(1, event.size_bytes()));
                looked_at += page.looked_at;
            }
            self.serve_history(id, page, state, replies);
        }
    }

    /// Whose turn it is: links take turns, and the watches of each.
    fn next_behind(&mut self, links: &dyn Links) -> Option<WatchId> {
        let after = self.served_last.map_or(Bound::Unbounded, Bound::Excluded);
        let later = self.behind.range((after, Bound::Unbounded));
        let link = *later.chain(&self.behind).find(|link| links.has_room(**link))?;
        self.served_last = Some(link);
        let of_link = self.links.get_mut(&link).expect("a link with a watch");
        let after = of_link.served_last.map_or(Bound::Unbounded, Bound::Excluded);
        let later = of_link.behind.range((after, Bound::Unbounded)).next();
        let id = *later.or(of_link.behind.first()).expect("`behind` names links with watches that are");
        of_link.served_last = Some(id);
        Some((link, id))
    }

    fn read_history(
        &self,
        watch: &Watch,
        state: &Keyspace,
        limits: PageLimits,
    ) -> Result<HistoryPage, NoHistory> {
        let Watch { range, prev_kv, next, .. } = watch;
        state.history(range, *prev_kv, *next, limits).or_else(|compacted| {
            let recent = || self.recent.history(range, *prev_kv, *next, state.resolved(), limits);
            watch.is_settled.then(recent).flatten().ok_or(compacted)
        })
    }

    /// The state, which was resolved to `old`, is replaced by a snapshot's, resolved to `new`: revisions are skipped here, so
    /// every watch reads history from there.
    pub(crate) fn on_state_replaced(&mut self, old: Resolved, new: Resolved, replies: &mut Replies) {
        self.recent = Recent::new(new.revision());
        let mut left = Vec::new();
        for (&id, watch) in self.watches.iter_mut().filter(|(_, watch)| watch.in_step) {
            watch.next = watch.next.max(old.revision().next().into());
            if new.covers(watch.next.revision) {
                watch.tell_place(id.1, new, replies);
                left.push((id, watch.next.revision));
            }
        }
        for (id, next) in left {
            self.leave_step(id, next);
            self.serve_if_it_may(id);
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

    /// From here on it reads history, from `next` on.
    fn leave_step(&mut self, id: WatchId, next: Revision) {
        let watch = self.watches.get_mut(&id).expect("a watch in step");
        assert!(watch.in_step, "a watch that is behind cannot fall behind");
        watch.in_step = false;
        watch.next = next.into();
        let was_in_step = self.in_step.remove(&watch.range, id);
        assert!(was_in_step, "the index holds the watches in step");
        self.links.get_mut(&id.0).expect("a link with a watch").in_step -= 1;
    }

    /// Sends a page of history, or that there is none.
    fn serve_history(
        &mut self,
        id: WatchId,
        page: Result<HistoryPage, NoHistory>,
        state: &Keyspace,
        replies: &mut Replies,
    ) {
        let watch = self.watches.get_mut(&id).expect("`behind` names only watches that exist");
        let resolved = state.resolved();
        assert!(!watch.in_step, "a watch in step reads no history");
        match page {
            Ok(page) => {
                let is_told = !page.revisions.is_empty();
                let is_new = page.next > watch.next || !resolved.covers(watch.next.revision);
                assert!(is_new, "each page goes on, so that a watch is in step in the end");
                if is_told {
                    let mut incomplete = page.incomplete();
                    let mut upto = page.next.revision.previous();
                    if mutant!(self.broken, WatchTorn) {
                        (incomplete, upto) = (None, incomplete.unwrap_or(upto));
                    }
                    watch.send(id.1, &page.revisions, incomplete, upto, resolved, replies);
                }
                watch.next = page.next.max(watch.next);
                if !resolved.covers(watch.next.revision) || mutant!(self.broken, WatchInStepTooSoon) {
                    watch.next = watch.next.revision.into();
                    watch.in_step = true;
                    watch.is_settled = true;
                    if !is_told {
                        watch.tell_place(id.1, resolved, replies);
                    }
                    self.in_step.insert(&watch.range, id);
                    self.links.get_mut(&id.0).expect("a link with a watch").in_step += 1;
                    for sync in watch.syncs.drain(..) {
                        replies.add(watch.link, sync, Kind::WatchSynced(synced(state)));
                    }
                    self.serve_no_more(id);
                } else if watch.credit <= 0 {
                    self.serve_no_more(id);
                }
            }
            Err(NoHistory::Compacted(compacted)) if mutant!(self.broken, WatchOverCompaction) => {
                watch.next = compacted.into();
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

impl Room {
    /// What may be sent in a turn as it is applied.
    fn live(part_bytes: usize) -> Room {
        Room { bytes: part_bytes.saturating_mul(LIVE_PARTS_PER_TURN), events: LIVE_EVENTS_PER_TURN }
    }

    fn is_empty(&self) -> bool {
        self.bytes == 0 || self.events == 0
    }

    /// Whether there is room for all of them. One always has.
    fn holds(&self, events: &[Event]) -> bool {
        let bytes = || events.iter().map(Event::size_bytes).sum::<usize>();
        events.len() <= 1 || events.len() <= self.events && bytes() <= self.bytes
    }

    fn take(&mut self, events: usize, bytes: usize) {
        self.events = self.events.saturating_sub(events);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

impl Touched {
    fn push(&mut self, revision: Revision, event: Event) {
        self.bytes += event.size_bytes();
        match self.revisions.last_mut() {
            Some((last, events)) if *last == revision => events.push(event),
            Some(_) | None => self.revisions.push((revision, vec![event])),
        }
    }

    /// What it has of this revision it will read again.
    fn fall_behind(&mut self, revision: Revision) {
        self.falls_behind = true;
        self.revisions.pop_if(|(last, _)| *last == revision);
    }
}

impl Watch {
    /// Tells how far it is, without events: whether it is in step has changed.
    fn tell_place(&self, id: u64, resolved: Resolved, replies: &mut Replies) {
        let (upto, revision) = (self.next.revision.previous().0, resolved.revision().0);
        let place = wire::WatchEvents { revisions: Bytes::new(), upto, revision, incomplete: 0 };
        replies.add(self.link, id, Kind::WatchEvents(place));
    }

    /// Sends revisions, of which the last may be incomplete, and all of them up to `upto` are told.
    fn send(
        &mut self,
        id: u64,
        revisions: &[RevisionEvents],
        incomplete: Option<Revision>,
        upto: Revision,
        resolved: Resolved,
        replies: &mut Replies,
    ) {
        let mut encoded = BytesMut::new();
        RevisionEvents::encode_all(revisions, &mut encoded);
        assert!(upto.next() >= self.next.revision, "nothing is sent again");
        assert!(resolved.covers(upto), "nothing is streamed before it is resolved");
        let last = revisions.last().map(|last| last.revision);
        match incomplete {
            Some(incomplete) => assert!(
                Some(incomplete) == last && incomplete == upto.next(),
                "what is not complete comes last, behind all that is told"
            ),
            None => assert!(last <= Some(upto), "events come no later than that they are all"),
        }
        self.credit -= i64::try_from(encoded.len()).unwrap_or(i64::MAX);
        let events = wire::WatchEvents {
            revisions: encoded.freeze(),
            upto: upto.0,
            revision: resolved.revision().0,
            incomplete: incomplete.map_or(0, |revision| revision.0),
        };
        replies.events(self.link, id, events);
    }
}

/// The answer to a sync of a watch that is in step with the state.
fn synced(state: &Keyspace) -> wire::WatchSynced {
    let (resolved, compact_revision) = (state.resolved().revision(), state.compact_revision());
    wire::WatchSynced { revision: resolved.0, compact_revision: compact_revision.0 }
}
