//! The upstreams of all feeds of a gateway, and what concerns many of them at once: connections to replicas, leaders, and how
//! far replicas have come.
//!
//! A feed on which nothing happens costs nothing. Which watches of a connection are in step is known of each, and one watermark
//! of the replica says how far those are; it counts for a feed when that leaves. Whoever wants to know exactly has the
//! replica asked: one question for all feeds of a group on a connection that are curious at that moment. And nobody has to be
//! asked whether it still leads: a replica that does not says so, and one that says nothing at all is noticed by its connection
//! ([`crate::silence`]) and by who looks for the leader ([`crate::LeaderTracker`]).
//!
//! A revision that comes in parts is kept until it is complete, for which credit must go on. Together they take so much memory that
//! feeds have to wait for each other: what they would be credited is withheld, but from the first.
//!
//! Whoever carries this out tells what came over connections, in the order in which it came, and what is known of leaders, and
//! then does what [`Upstreams::poll`] says until that is nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use backoff::Backoff;
use keyspace::{KeyRange, Revision};
use shard_map::GroupId;

use crate::asks;
use crate::attempt::{Attempted, Unsent, Why};
use crate::failure::Failure;
use crate::link::LinkId;
use crate::request::Reach;
use crate::route::NodeId;
use crate::upstream::{Cohort, FeedItem, FeedSpec, Frame, Heard, Open, Synced, Upstream, UpstreamStep};

/// Questions about one group that may be under way on a connection; whoever comes later shares the next.
const QUESTIONS_MAX: usize = 16;
/// A question without an answer for so long is asked once more: it may have got lost in its node.
const OVERDUE_AFTER: Duration = Duration::from_secs(3);
/// After a question that was refused: the longest first pause, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));
/// Bytes of incomplete revisions, of all feeds, from which on only the feed that has had one for longest is sent more of it.
const PARTS_BYTES_MAX: u64 = 256 << 20;
/// The name of all watches in step, in a question.
pub const ALL_WATCHES: u64 = 0;

/// A feed, by a number that no other of the gateway has had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FeedId(pub u64);

/// What is known of the groups.
pub trait Groups {
    /// A link to a node.
    type Link: Clone;

    /// The group that owns a range. None: that is not known yet.
    fn owner(&self, range: &KeyRange) -> Option<Result<GroupId, Failure>>;

    /// The node that leads a group, as far as is known.
    fn leader(&self, group: GroupId) -> Option<NodeId>;

    /// A link to this node.
    fn to(&self, node: NodeId) -> Option<Self::Link>;

    /// The nearest replica of a group that is fit, and a link to it.
    fn nearest(&self, group: GroupId) -> Option<(NodeId, Self::Link)>;
}

/// A watch that was handed to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Which connection.
    pub link: LinkId,
    /// Its number there.
    pub id: u64,
}

/// What is to be done.
#[derive(Debug)]
pub enum Act<L> {
    /// Open a watch, and tell [`Upstreams::handle_sent`] before anything else.
    Open {
        /// For this feed.
        feed: FeedId,
        /// At the replica of this group.
        group: GroupId,
        /// Over this link.
        link: L,
        /// What.
        ask: asks::Open,
    },
    /// Allow a watch more bytes of events.
    Credit {
        /// Which.
        watch: Watch,
        /// Its group.
        group: GroupId,
        /// Over this link.
        link: L,
        /// So many more.
        bytes: u64,
    },
    /// End a watch.
    Close {
        /// Which.
        watch: Watch,
        /// Its group.
        group: GroupId,
        /// Over this link.
        link: L,
        /// For whoever wonders.
        reason: &'static str,
    },
    /// Ask how far watches have come, and tell [`Upstreams::handle_synced`] the answer.
    Ask {
        /// Over this link.
        link: L,
        /// Whose connection is this one.
        connection: LinkId,
        /// Of this group.
        group: GroupId,
        /// To be told with the answer.
        question: u64,
        /// What.
        ask: asks::Sync,
    },
    /// A feed's reader gets this.
    Item {
        /// Whose.
        feed: FeedId,
        /// What.
        item: FeedItem,
    },
    /// Somebody waits for the leader of this group.
    Seek {
        /// Which.
        group: GroupId,
    },
}

/// See the module.
#[derive(Debug)]
pub struct Upstreams<L> {
    /// Boxed, since the nodes of a map are half empty.
    feeds: BTreeMap<FeedId, Box<Feed>>,
    connections: BTreeMap<LinkId, Connection<L>>,
    /// Feeds to be looked at.
    ready: VecDeque<FeedId>,
    /// Feeds that nobody serves, until there are news.
    homeless: BTreeSet<FeedId>,
    /// Where there are feeds that want to know how far they are.
    curious: BTreeSet<(LinkId, GroupId)>,
    due: BTreeSet<(Instant, Due)>,
    acts: VecDeque<Act<L>>,
    next_question: u64,
    parts: Parts,
    news: News,
}

/// The revisions that are not complete.
#[derive(Debug, Default)]
struct Parts {
    /// The feeds that have one, by when it began.
    feeds: BTreeMap<u64, FeedId>,
    next: u64,
    /// What all of them take.
    bytes: u64,
}

/// That of a feed.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// Its place among all of them.
    place: u64,
    bytes: u64,
}

/// What has not been looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum News {
    Nothing,
    /// Something about a leader or the links.
    Leaders,
    /// Another shard map, and perhaps the same.
    Map,
}

/// What a pause is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Feed(FeedId),
    Question(LinkId, GroupId),
    /// The answer to this one.
    Answer(LinkId, GroupId, u64),
}

#[derive(Debug)]
struct Feed {
    range: KeyRange,
    prev_kv: bool,
    upstream: Upstream,
    /// The group that owns the range; looked for anew for each watch.
    group: GroupId,
    watch: Option<Watch>,
    is_ready: bool,
    /// As its reader was told.
    cohort: Option<Cohort>,
    part: Option<Part>,
    /// Credit that waits until there is room for the rest of its incomplete revision.
    withheld: u64,
}

#[derive(Debug)]
struct Connection<L> {
    link: L,
    node: NodeId,
    groups: BTreeMap<GroupId, OfGroup>,
}

/// The feeds of one group on one connection.
#[derive(Debug)]
struct OfGroup {
    feeds: BTreeSet<FeedId>,
    /// Watches in step have been sent everything up to here.
    watermark: Revision,
    /// Feeds that want to know how far they are, each with its token, and have not been asked about.
    waiting: Vec<(FeedId, u64)>,
    questions: BTreeMap<u64, Question>,
    backoff: Backoff,
    /// No other question leaves before.
    pause_until: Option<Instant>,
    /// Its node knows no questions about all watches at once.
    is_older: bool,
}

/// One under way.
#[derive(Debug)]
struct Question {
    /// On behalf of these.
    askers: Vec<(FeedId, u64)>,
    /// It is about the one watch of the only asker.
    is_own: bool,
    overdue_at: Instant,
}

impl<L> Default for Upstreams<L> {
    fn default() -> Upstreams<L> {
        Upstreams {
            feeds: BTreeMap::new(),
            connections: BTreeMap::new(),
            ready: VecDeque::new(),
            homeless: BTreeSet::new(),
            curious: BTreeSet::new(),
            due: BTreeSet::new(),
            acts: VecDeque::new(),
            next_question: 0,
            parts: Parts::default(),
            news: News::Nothing,
        }
    }
}

impl<L: Clone> Upstreams<L> {
    /// Opens a feed; its reader gets items.
    pub fn open(&mut self, id: FeedId, spec: FeedSpec) {
        let upstream = Upstream::new(&spec);
        let FeedSpec { range, prev_kv, .. } = spec;
        let feed = Feed {
            range,
            prev_kv,
            upstream,
            group: GroupId::default(),
            watch: None,
            is_ready: false,
            cohort: None,
            part: None,
            withheld: 0,
        };
        let before = self.feeds.insert(id, Box::new(feed));
        debug_assert!(before.is_none(), "{id:?} is there already");
        self.queue(id);
    }

    /// Nobody reads it any more.
    pub fn close(&mut self, id: FeedId) {
        if let Some(feed) = self.feeds.remove(&id) {
            let is_homeless = self.homeless.remove(&id);
            assert!(!(is_homeless && feed.watch.is_some()), "a feed that is somewhere looks for nothing");
            self.detach(id, feed.group, feed.watch, "nobody reads it");
            if let Some(part) = feed.part {
                self.parts.remove(part);
                self.release_withheld();
            }
        }
    }

    /// Allows a feed this many more bytes of events.
    pub fn credit(&mut self, id: FeedId, bytes: u64) {
        let Some(feed) = self.feeds.get_mut(&id) else { return };
        if feed.part.is_some_and(|part| !self.parts.may_grow(part.place, bytes)) {
            feed.withheld = feed.withheld.saturating_add(bytes);
            return;
        }
        feed.upstream.credit(bytes);
        if let Some(watch) = feed.watch
            && let Some(connection) = self.connections.get(&watch.link)
        {
            let link = connection.link.clone();
            self.acts.push_back(Act::Credit { watch, group: feed.group, link, bytes });
        }
    }

    /// Takes note of what is kept of a feed's incomplete revision.
    fn note_part(&mut self, id: FeedId) {
        let Some(feed) = self.feeds.get_mut(&id) else { return };
        assert!(feed.part.is_some() || feed.withheld == 0, "nothing is withheld from who is sent no part");
        let bytes = feed.upstream.part_bytes();
        if bytes == feed.part.map_or(0, |part| part.bytes) {
            return;
        }
        let place = feed.part.take().map(|part| self.parts.remove(part));
        if bytes > 0 {
            feed.part = Some(self.parts.insert(place, bytes, id));
        } else {
            let withheld = std::mem::take(&mut feed.withheld);
            self.credit_if_any(id, withheld);
            self.release_withheld();
        }
    }

    /// Lets feeds go on for which there is room by now.
    fn release_withheld(&mut self) {
        let mut granted = 0;
        for (place, id) in self.parts.feeds.clone() {
            let Some(feed) = self.feeds.get_mut(&id) else { continue };
            if !self.parts.may_grow(place, granted + feed.withheld) {
                return;
            }
            let withheld = std::mem::take(&mut feed.withheld);
            granted += withheld;
            self.credit_if_any(id, withheld);
        }
    }

    fn credit_if_any(&mut self, id: FeedId, bytes: u64) {
        if bytes > 0 {
            self.credit(id, bytes);
        }
    }

    /// Asks for a [`FeedItem::Synced`] with this token, in place of one that is not answered; tokens ascend.
    pub fn sync(&mut self, id: FeedId, token: u64) {
        if let Some(feed) = self.feeds.get_mut(&id) {
            feed.upstream.sync(token);
            self.queue(id);
        }
    }

    /// The group at whose replica a feed is, or was last.
    pub fn group(&self, id: FeedId) -> Option<GroupId> {
        self.feeds.get(&id).map(|feed| feed.group)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.feeds.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.feeds.is_empty()
    }

    /// When there is something to do although nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Something about a leader or the links may have changed: feeds go to the leaders that can be reached.
    pub fn handle_news(&mut self) {
        self.news = self.news.max(News::Leaders);
    }

    /// There is another shard map: feeds whose range has another owner go there.
    pub fn handle_map(&mut self) {
        self.news = News::Map;
    }

    /// What to do next; none until something happens. `random` draws numbers if they are needed.
    pub fn poll<G: Groups<Link = L>>(
        &mut self,
        now: Instant,
        groups: &G,
        mut random: impl FnMut() -> u32,
    ) -> Option<Act<L>> {
        match std::mem::replace(&mut self.news, News::Nothing) {
            News::Nothing => {}
            News::Leaders => self.follow_leaders(now, groups, &mut random),
            News::Map => self.follow_map(now, groups, &mut random),
        }
        while let Some((at, due)) = self.due.pop_first() {
            if now < at {
                self.due.insert((at, due));
                break;
            }
            match due {
                Due::Feed(id) => self.queue(id),
                Due::Question(connection, group) => {
                    self.curious.insert((connection, group));
                }
                Due::Answer(connection, group, question) => self.ask_again(connection, group, question),
            }
        }
        loop {
            if let Some(act) = self.acts.pop_front() {
                return Some(act);
            }
            let Some(id) = self.ready.pop_front() else { return self.ask(now) };
            self.look_at(now, id, groups);
        }
    }

    fn queue(&mut self, id: FeedId) {
        if let Some(feed) = self.feeds.get_mut(&id)
            && !std::mem::replace(&mut feed.is_ready, true)
        {
            self.ready.push_back(id);
        }
    }

    fn look_at<G: Groups<Link = L>>(&mut self, now: Instant, id: FeedId, groups: &G) {
        let Some(feed) = self.feeds.get_mut(&id) else { return };
        feed.is_ready = false;
        if feed.watch.is_none() {
            match groups.owner(&feed.range) {
                Some(Ok(group)) => feed.group = group,
                Some(Err(failure)) => {
                    let heard = feed.upstream.fail(failure);
                    self.take_in(id, heard);
                    return;
                }
                None => {
                    self.homeless.insert(id);
                    return;
                }
            }
        }
        let group = feed.group;
        let reach = OfOne { groups, group };
        match feed.upstream.poll(now, || groups.leader(group), &reach) {
            UpstreamStep::Open(open) => {
                let Open { node: _, link, start, credit, linearizable } = open;
                let (range, prev_kv) = (feed.range.clone(), feed.prev_kv);
                let ask = asks::Open { range, start, prev_kv, credit, linearizable };
                self.acts.push_back(Act::Open { feed: id, group, link, ask });
            }
            UpstreamStep::AwaitNews => {
                self.homeless.insert(id);
                self.acts.push_back(Act::Seek { group });
            }
            UpstreamStep::Pause { until } => {
                self.due.insert((until, Due::Feed(id)));
            }
            UpstreamStep::AwaitFrames => self.look_at_sync(id),
            UpstreamStep::Ended => {}
        }
    }

    /// Lets the replica be asked how far the feed is, if that is wanted.
    fn look_at_sync(&mut self, id: FeedId) {
        let Some(feed) = self.feeds.get_mut(&id) else { return };
        let Some(watch) = feed.watch else { return };
        let Some(of_group) = of_group(&mut self.connections, watch.link, feed.group) else { return };
        if let Some(token) = feed.upstream.ask_for_sync() {
            of_group.waiting.push((id, token));
            if of_group.pause_until.is_none() {
                self.curious.insert((watch.link, feed.group));
            }
        }
    }

    /// The next question that is to be asked, on behalf of all who are curious.
    fn ask(&mut self, now: Instant) -> Option<Act<L>> {
        while let Some((connection, group)) = self.curious.pop_first() {
            let Some(Connection { link, groups, .. }) = self.connections.get_mut(&connection) else {
                continue;
            };
            let Some(of_group) = groups.get_mut(&group) else { continue };
            of_group.pause_until = of_group.pause_until.filter(|until| now < *until);
            let may_ask = of_group.pause_until.is_none() && of_group.questions.len() < QUESTIONS_MAX;
            if !may_ask || of_group.waiting.is_empty() {
                continue;
            }
            let (askers, is_own) = if of_group.is_older {
                (of_group.waiting.split_off(of_group.waiting.len() - 1), true)
            } else {
                (std::mem::take(&mut of_group.waiting), false)
            };
            let watch = if is_own {
                let watch = self.feeds.get(&askers[0].0).and_then(|feed| feed.watch);
                let Some(watch) = watch.filter(|watch| watch.link == connection) else {
                    self.curious.insert((connection, group));
                    continue;
                };
                watch.id
            } else {
                ALL_WATCHES
            };
            assert!(!askers.is_empty(), "a question is asked for somebody");
            let question = self.next_question;
            self.next_question += 1;
            let overdue_at = now + OVERDUE_AFTER;
            let other = of_group.questions.insert(question, Question { askers, is_own, overdue_at });
            assert!(
                other.is_none() && of_group.questions.len() <= QUESTIONS_MAX,
                "questions are numbered, and few"
            );
            self.due.insert((overdue_at, Due::Answer(connection, group, question)));
            let link = link.clone();
            if !of_group.waiting.is_empty() {
                self.curious.insert((connection, group));
            }
            return Some(Act::Ask { link, connection, group, question, ask: asks::Sync { watch } });
        }
        None
    }

    /// A question is overdue. Its answer counts all the same, should it come, unless too many are.
    fn ask_again(&mut self, connection: LinkId, group: GroupId, question: u64) {
        let Some(of_group) = of_group(&mut self.connections, connection, group) else { return };
        let Some(asked) = of_group.questions.get(&question) else { return };
        assert!(!asked.askers.is_empty(), "a question is asked for somebody");
        of_group.waiting.extend(asked.askers.iter().copied());
        if of_group.questions.len() >= QUESTIONS_MAX {
            of_group.questions.remove(&question);
        }
        self.curious.insert((connection, group));
    }

    /// A watch was handed to a connection with `node`, or not.
    pub fn handle_sent(
        &mut self,
        now: Instant,
        id: FeedId,
        link: L,
        sent: Result<Watch, Unsent>,
        random: impl FnOnce() -> u32,
    ) {
        let Some(feed) = self.feeds.get_mut(&id) else { return };
        match (sent, feed.upstream.node()) {
            (Ok(watch), Some(node)) => {
                let new = || Connection { link, node, groups: BTreeMap::new() };
                let connection = self.connections.entry(watch.link).or_insert_with(new);
                assert_eq!(connection.node, node, "a link leads to one node");
                assert!(feed.watch.is_none(), "a feed has one watch at a time");
                let is_new = connection.groups.entry(feed.group).or_default().feeds.insert(id);
                assert!(is_new, "a link has a feed once");
                feed.watch = Some(watch);
                self.queue(id);
            }
            (Ok(_), None) => debug_assert!(false, "it was to be opened"),
            (Err(unsent), _) => {
                let heard = feed.upstream.handle_frame(now, Attempted::Unsent(unsent), random);
                self.take_in(id, heard);
            }
        }
    }

    /// A frame came for a watch.
    pub fn handle_frame(
        &mut self,
        now: Instant,
        id: FeedId,
        watch: Watch,
        frame: Attempted<Frame>,
        random: impl FnOnce() -> u32,
    ) {
        let feed = self.feeds.get_mut(&id).filter(|feed| feed.watch == Some(watch));
        // One that was left, or has no reader any more.
        let Some(feed) = feed else { return };
        if frame_may_be_last(&frame) {
            note_watermark(&self.connections, feed);
        }
        let heard = feed.upstream.handle_frame(now, frame, random);
        self.take_in(id, heard);
        self.take_synced(id);
        self.debug_check(id);
    }

    /// What holds of a feed between two calls.
    fn debug_check(&self, id: FeedId) {
        let Some(feed) = self.feeds.get(&id) else { return };
        debug_assert_eq!(
            feed.watch.is_some(),
            feed.upstream.node().is_some(),
            "a feed has a watch where it is"
        );
        let Some(watch) = feed.watch else { return };
        debug_assert!(!self.homeless.contains(&id), "a feed that is somewhere looks for nothing");
        let connection = self.connections.get(&watch.link);
        debug_assert_eq!(
            connection.map(|connection| connection.node),
            feed.upstream.node(),
            "it is where it says"
        );
        let of_group = connection.and_then(|connection| connection.groups.get(&feed.group));
        debug_assert!(
            of_group.is_some_and(|of_group| of_group.feeds.contains(&id)),
            "and its link knows of it"
        );
    }

    /// A replica said how far the watches in step are.
    pub fn handle_watermark(&mut self, connection: LinkId, group: GroupId, revision: Revision) {
        if let Some(of_group) = of_group(&mut self.connections, connection, group) {
            of_group.watermark = of_group.watermark.max(revision);
        }
    }

    /// A question was answered, or will not be. What came before it on the connection has been handled.
    pub fn handle_synced(
        &mut self,
        now: Instant,
        connection: LinkId,
        group: GroupId,
        question: u64,
        synced: Attempted<Synced>,
        mut random: impl FnMut() -> u32,
    ) {
        let Some(of_group) = of_group(&mut self.connections, connection, group) else { return };
        let Some(Question { askers, is_own, overdue_at }) = of_group.questions.remove(&question) else {
            return;
        };
        self.due.remove(&(overdue_at, Due::Answer(connection, group, question)));
        match synced {
            Attempted::Answer(synced) => {
                of_group.backoff.reset();
                if !is_own {
                    // It is said of all that are in step, whoever asked.
                    of_group.watermark = of_group.watermark.max(synced.revision);
                }
                for (id, token) in askers {
                    self.hand_synced(connection, id, token, synced, is_own);
                }
            }
            Attempted::Refused(refused) if refused.why == Why::Malformed && is_own => {
                // The request for the watch was lost on the way.
                for (id, _) in askers {
                    self.leave(now, connection, id, "it has no such watch", &mut random);
                }
            }
            Attempted::Refused(refused) if refused.why == Why::Malformed => {
                of_group.is_older = true;
                of_group.waiting.extend(askers);
            }
            Attempted::Refused(_)
            | Attempted::Denied(_)
            | Attempted::Unsent(_)
            | Attempted::Lost
            | Attempted::Protocol(_) => {
                of_group.waiting.extend(askers);
                let until = now + of_group.backoff.next(random());
                of_group.pause_until = Some(until);
                self.due.insert((until, Due::Question(connection, group)));
                return;
            }
        }
        self.curious.insert((connection, group));
    }

    fn hand_synced(&mut self, connection: LinkId, id: FeedId, token: u64, synced: Synced, is_own: bool) {
        let Some(feed) = self.feeds.get_mut(&id) else { return };
        // It has moved meanwhile, and asks again where it is.
        if feed.watch.is_none_or(|watch| watch.link != connection) {
            return;
        }
        if is_own {
            feed.upstream.handle_own_synced(token, synced);
        } else {
            feed.upstream.handle_synced(token, synced);
        }
        self.tell_cohort(id);
        self.take_synced(id);
    }

    /// A connection is gone, and all watches on it.
    pub fn handle_lost(&mut self, now: Instant, connection: LinkId, mut random: impl FnMut() -> u32) {
        let Some(Connection { groups, .. }) = self.connections.remove(&connection) else { return };
        for OfGroup { feeds, watermark, .. } in groups.into_values() {
            for id in feeds {
                let Some(feed) = self.feeds.get_mut(&id) else { continue };
                assert!(
                    feed.watch.is_some_and(|watch| watch.link == connection),
                    "a link has the feeds that are there"
                );
                feed.watch = None;
                feed.upstream.handle_watermark(watermark);
                let heard = feed.upstream.handle_frame(now, Attempted::Lost, &mut random);
                self.take_in(id, heard);
            }
        }
    }

    fn follow_leaders<G: Groups<Link = L>>(
        &mut self,
        now: Instant,
        groups: &G,
        mut random: impl FnMut() -> u32,
    ) {
        for id in std::mem::take(&mut self.homeless) {
            self.queue(id);
        }
        let mut moving = Vec::new();
        for connection in self.connections.values() {
            for (group, of_group) in &connection.groups {
                let leader = groups.leader(*group).filter(|leader| groups.to(*leader).is_some());
                if let Some(leader) = leader.filter(|leader| *leader != connection.node) {
                    moving.extend(of_group.feeds.iter().map(|id| (*id, leader)));
                }
            }
        }
        for (id, leader) in moving {
            let Some(feed) = self.feeds.get_mut(&id) else { continue };
            assert!(feed.watch.is_some(), "a link has the feeds that are there");
            note_watermark(&self.connections, feed);
            let heard = feed.upstream.handle_leader(now, leader, &mut random);
            self.take_in(id, heard);
        }
    }

    fn follow_map<G: Groups<Link = L>>(&mut self, now: Instant, groups: &G, mut random: impl FnMut() -> u32) {
        let moved = self.feeds.iter().filter_map(|(id, feed)| {
            let watch = feed.watch?;
            (groups.owner(&feed.range) != Some(Ok(feed.group))).then_some((watch.link, *id))
        });
        for (connection, id) in moved.collect::<Vec<_>>() {
            self.leave(now, connection, id, "its keys are of another group", &mut random);
        }
        let misplaced =
            self.feeds.iter_mut().filter_map(|(id, feed)| feed.upstream.handle_map().then_some(*id));
        for id in misplaced.collect::<Vec<_>>() {
            self.queue(id);
        }
        self.follow_leaders(now, groups, random);
    }

    /// Leaves a replica, if the feed is still there.
    fn leave(
        &mut self,
        now: Instant,
        connection: LinkId,
        id: FeedId,
        reason: &'static str,
        random: impl FnOnce() -> u32,
    ) {
        let feed = self.feeds.get_mut(&id);
        let feed = feed.filter(|feed| feed.watch.is_some_and(|watch| watch.link == connection));
        let Some(feed) = feed else { return };
        note_watermark(&self.connections, feed);
        let heard = feed.upstream.leave(now, reason, random);
        self.take_in(id, heard);
    }

    fn take_in(&mut self, id: FeedId, heard: Heard) {
        self.act_on(id, heard);
        self.note_part(id);
        self.tell_cohort(id);
    }

    /// Tells a feed's reader whether it is in step, if that has changed.
    fn tell_cohort(&mut self, id: FeedId) {
        let Some(feed) = self.feeds.get_mut(&id).filter(|feed| !feed.upstream.is_over()) else { return };
        let in_step = feed.watch.filter(|_| feed.upstream.is_in_step());
        let cohort = in_step.map(|watch| Cohort { link: watch.link, group: feed.group });
        if std::mem::replace(&mut feed.cohort, cohort) != cohort {
            self.acts.push_back(Act::Item { feed: id, item: FeedItem::Cohort(cohort) });
        }
    }

    fn act_on(&mut self, id: FeedId, heard: Heard) {
        let reason = match heard {
            Heard::Nothing => return,
            Heard::Item(item) => {
                let is_last = matches!(item, FeedItem::Compacted { .. } | FeedItem::Failed(_));
                self.acts.push_back(Act::Item { feed: id, item });
                if !is_last {
                    return;
                }
                "it is over"
            }
            Heard::Left(reason) => {
                self.queue(id);
                reason
            }
        };
        if let Some(feed) = self.feeds.get_mut(&id) {
            let (group, watch) = (feed.group, feed.watch.take());
            self.detach(id, group, watch, reason);
        }
    }

    fn take_synced(&mut self, id: FeedId) {
        if let Some(feed) = self.feeds.get_mut(&id)
            && let Some(item) = feed.upstream.take_synced()
        {
            self.acts.push_back(Act::Item { feed: id, item });
        }
    }

    /// A feed has no watch any more.
    fn detach(&mut self, id: FeedId, group: GroupId, watch: Option<Watch>, reason: &'static str) {
        let Some(watch) = watch else { return };
        let Some(connection) = self.connections.get_mut(&watch.link) else { return };
        let link = connection.link.clone();
        if let Some(of_group) = connection.groups.get_mut(&group) {
            let was_there = of_group.feeds.remove(&id);
            assert!(was_there, "a feed with a watch is on its link");
            if of_group.feeds.is_empty() {
                connection.groups.remove(&group);
            }
        }
        if connection.groups.is_empty() {
            self.connections.remove(&watch.link);
        }
        self.acts.push_back(Act::Close { watch, group, link, reason });
    }
}

impl Parts {
    /// Adds one, in the place that it has, if it has one. Returns it.
    fn insert(&mut self, place: Option<u64>, bytes: u64, id: FeedId) -> Part {
        let place = place.unwrap_or(self.next);
        self.next = self.next.max(place + 1);
        let other = self.feeds.insert(place, id);
        assert!(other.is_none(), "places are not shared");
        self.bytes += bytes;
        Part { place, bytes }
    }

    /// Takes one away, and returns its place.
    fn remove(&mut self, part: Part) -> u64 {
        let feed = self.feeds.remove(&part.place);
        assert!(feed.is_some() && self.bytes >= part.bytes, "each of them is counted");
        self.bytes -= part.bytes;
        part.place
    }

    /// Whether the one in this place may be credited so much: the first one always may, so that all come to an end.
    fn may_grow(&self, place: u64, by: u64) -> bool {
        assert_eq!(self.feeds.is_empty(), self.bytes == 0, "what is counted is somebody's");
        let is_first = self.feeds.first_key_value().is_some_and(|(first, _)| *first == place);
        is_first || self.bytes.saturating_add(by) <= PARTS_BYTES_MAX
    }
}

impl Default for OfGroup {
    fn default() -> OfGroup {
        OfGroup {
            feeds: BTreeSet::new(),
            watermark: Revision(0),
            waiting: Vec::new(),
            questions: BTreeMap::new(),
            backoff: Backoff::new(PAUSE.0, PAUSE.1),
            pause_until: None,
            is_older: false,
        }
    }
}

fn of_group<L>(
    connections: &mut BTreeMap<LinkId, Connection<L>>,
    connection: LinkId,
    group: GroupId,
) -> Option<&mut OfGroup> {
    connections.get_mut(&connection)?.groups.get_mut(&group)
}

/// What the watermark says of a feed that may leave.
fn note_watermark<L>(connections: &BTreeMap<LinkId, Connection<L>>, feed: &mut Feed) {
    if let Some(watch) = feed.watch
        && let Some(connection) = connections.get(&watch.link)
        && let Some(of_group) = connection.groups.get(&feed.group)
    {
        feed.upstream.handle_watermark(of_group.watermark);
    }
}

fn frame_may_be_last(frame: &Attempted<Frame>) -> bool {
    !matches!(frame, Attempted::Answer(Frame::Opened { .. } | Frame::Events { .. }))
}

/// The links to one group's replicas.
struct OfOne<'a, G> {
    groups: &'a G,
    group: GroupId,
}

impl<G: Groups> Reach for OfOne<'_, G> {
    type Link = G::Link;

    fn to(&self, node: NodeId) -> Option<G::Link> {
        self.groups.to(node)
    }

    fn nearest(&self) -> Option<(NodeId, G::Link)> {
        self.groups.nearest(self.group)
    }
}

#[cfg(test)]
mod tests;
