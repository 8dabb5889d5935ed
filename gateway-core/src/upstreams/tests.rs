//! Many feeds as stories: what comes over connections, and what is done.

use std::collections::BTreeSet;

use bytes::Bytes;
use keyspace::{Event, EventKind, KeyValue, Revision, RevisionEvents};

use super::*;
use crate::any_instant;
use crate::attempt::Refused;

const GROUP: GroupId = GroupId(7);

/// Nodes whose links are up, and who leads. A link is its node; so is its connection.
#[derive(Debug)]
struct World {
    up: BTreeSet<NodeId>,
    leader: Option<NodeId>,
    is_mapped: bool,
    /// Which owns everything.
    owner: GroupId,
}

impl Groups for World {
    type Link = NodeId;

    fn owner(&self, _: &KeyRange) -> Option<Result<GroupId, Failure>> {
        self.is_mapped.then_some(Ok(self.owner))
    }

    fn leader(&self, group: GroupId) -> Option<NodeId> {
        assert_eq!(group, self.owner);
        self.leader
    }

    fn to(&self, node: NodeId) -> Option<NodeId> {
        self.up.contains(&node).then_some(node)
    }

    fn nearest(&self, _: GroupId) -> Option<(NodeId, NodeId)> {
        self.up.last().map(|node| (*node, *node))
    }
}

struct Story {
    upstreams: Upstreams<NodeId>,
    world: World,
    now: Instant,
    /// The watch of each feed.
    watches: BTreeMap<FeedId, Watch>,
    next_watch: u64,
    /// The connection where each feed was said to be in step; 0 for none.
    cohorts: BTreeMap<FeedId, u64>,
}

impl Story {
    fn new() -> Story {
        let world = World {
            up: BTreeSet::from([1, 2, 3].map(NodeId)),
            leader: Some(NodeId(1)),
            is_mapped: true,
            owner: GROUP,
        };
        let upstreams = Upstreams::default();
        Story {
            upstreams,
            world,
            now: any_instant(),
            watches: BTreeMap::new(),
            next_watch: 1,
            cohorts: BTreeMap::new(),
        }
    }

    /// Feeds 1 to `count`, open at the leader and in step with revision 4.
    fn opened(count: u64) -> Story {
        let mut story = Story::new();
        for id in 1..=count {
            story.open(id, 0);
        }
        assert_eq!(story.run().len(), count as usize);
        for id in 1..=count {
            story.frame(id, opened(4, 5));
        }
        assert_eq!(story.run().len(), count as usize);
        story
    }

    fn open(&mut self, id: u64, start: i64) {
        let range = KeyRange::single(id.to_string());
        self.upstreams
            .open(FeedId(id), FeedSpec { range, start: Revision(start), prev_kv: false, credit: 100 });
    }

    /// Does what is to be done, and tells it.
    fn run(&mut self) -> Vec<String> {
        let mut done = Vec::new();
        while let Some(act) = self.upstreams.poll(self.now, &self.world, || u32::MAX) {
            if let Act::Item { feed, item: FeedItem::Cohort(cohort) } = &act {
                self.cohorts.insert(*feed, cohort.map_or(0, |cohort| cohort.link.0));
                continue;
            }
            done.push(match act {
                Act::Open { feed, group, link, ask } => {
                    assert_eq!(group, self.world.owner);
                    let asks::Open { start, linearizable, .. } = ask;
                    let watch = Watch { link: LinkId(u64::from(link.0)), id: self.next_watch };
                    self.next_watch += 1;
                    self.watches.insert(feed, watch);
                    self.upstreams.handle_sent(self.now, feed, link, Ok(watch), || u32::MAX);
                    let how = if linearizable { ", all written" } else { "" };
                    format!("open {} at {} from {start}{how}", feed.0, link.0)
                }
                Act::Credit { watch, link, bytes, .. } => {
                    format!("credit {} at {}: {bytes}", watch.id, link.0)
                }
                Act::Close { watch, link, reason, .. } => {
                    format!("close {} at {}: {reason}", watch.id, link.0)
                }
                Act::Ask { link, connection, group, question, ask: asks::Sync { watch } } => {
                    assert_eq!((group, connection), (GROUP, LinkId(u64::from(link.0))));
                    format!("ask {question} at {} about {watch}", link.0)
                }
                Act::Item { feed, item: FeedItem::Opened { .. } } => format!("{} is open", feed.0),
                Act::Item { feed, item: FeedItem::Events { revisions, upto, .. } } => {
                    format!("{} hears of {} up to {upto}", feed.0, revisions.len())
                }
                Act::Item { feed, item: FeedItem::Synced { token, revision, .. } } => {
                    format!("{} knows {token}: {revision}", feed.0)
                }
                Act::Item { item: FeedItem::Cohort(_), .. } => unreachable!("seen above"),
                Act::Item { feed, item: FeedItem::Compacted { .. } } => format!("{} is compacted", feed.0),
                Act::Item { feed, item: FeedItem::Failed(_) } => format!("{} has failed", feed.0),
                Act::Seek { .. } => "seek".to_owned(),
            });
        }
        done
    }

    /// The same, once all pauses that have begun are over.
    fn run_after_pause(&mut self) -> Vec<String> {
        let mut done = self.run();
        self.now += PAUSE.1;
        done.extend(self.run());
        done
    }

    fn frame(&mut self, id: u64, frame: Attempted<Frame>) {
        let watch = self.watches[&FeedId(id)];
        self.upstreams.handle_frame(self.now, FeedId(id), watch, frame, || u32::MAX);
    }

    fn synced(&mut self, node: u64, question: u64, synced: Attempted<Synced>) {
        let connection = LinkId(node);
        self.upstreams.handle_synced(self.now, connection, GROUP, question, synced, || u32::MAX);
    }

    fn news(&mut self) {
        self.upstreams.handle_news();
    }
}

fn opened(revision: i64, start: i64) -> Attempted<Frame> {
    let (revision, start) = (Revision(revision), Revision(start));
    Attempted::Answer(Frame::Opened { revision, start, compact_revision: Revision(0), term: 2 })
}

fn events(revisions: &[i64], upto: i64, revision: i64) -> Attempted<Frame> {
    let events = |number: &i64| RevisionEvents { revision: Revision(*number), events: [].into() };
    let revisions = revisions.iter().map(events).collect();
    let (upto, revision) = (Revision(upto), Revision(revision));
    Attempted::Answer(Frame::Events { revisions, upto, is_incomplete: false, revision, term: 2, bytes: 40 })
}

/// A part of revision 5, of so many MiB, which are under one megabyte of credit.
fn part(mebibytes: usize, is_last: bool) -> Attempted<Frame> {
    let value = Bytes::from(vec![0; mebibytes << 20]);
    let kv = KeyValue { key: "a".into(), value, mod_revision: Revision(5), ..KeyValue::default() };
    let event = Event { kind: EventKind::Put, kv, prev_kv: None };
    let revisions = vec![RevisionEvents { revision: Revision(5), events: [event].into() }];
    let (upto, revision) = (Revision(if is_last { 5 } else { 4 }), Revision(9));
    let (is_incomplete, term, bytes) = (!is_last, 2, 1 << 20);
    Attempted::Answer(Frame::Events { revisions, upto, is_incomplete, revision, term, bytes })
}

fn at(revision: i64) -> Attempted<Synced> {
    let (revision, compact_revision) = (Revision(revision), Revision(1));
    Attempted::Answer(Synced { revision, compact_revision, term: 2 })
}

fn refused<T>(why: Why) -> Attempted<T> {
    Attempted::Refused(Refused { why, term: 2, leader: None })
}

#[test]
fn a_quiet_feed_has_nothing_done_for_it_and_no_timer() {
    let mut story = Story::opened(1000);
    for seconds in 0..60 {
        story.now += Duration::from_secs(1);
        story.upstreams.handle_watermark(LinkId(1), GROUP, Revision(5 + seconds));
        assert_eq!((story.run(), story.upstreams.deadline()), (Vec::new(), None));
    }
    // And yet each of them knows where it is when it has to go.
    story.upstreams.handle_lost(story.now, LinkId(1), || u32::MAX);
    story.world.up.remove(&NodeId(1));
    story.world.leader = Some(NodeId(2));
    let moved = story.run_after_pause();
    assert_eq!(moved.len(), 1000);
    assert_eq!(moved[0], "open 1 at 2 from 65");
}

#[test]
fn all_who_are_curious_at_a_moment_share_a_question() {
    let mut story = Story::opened(100);
    for id in 1..=99 {
        story.upstreams.sync(FeedId(id), 2);
    }
    assert_eq!(story.run(), ["ask 0 at 1 about 0"]);
    // Whoever comes later has not been asked for: it must hear of what was written meanwhile.
    story.upstreams.sync(FeedId(100), 2);
    assert_eq!(story.run(), ["ask 1 at 1 about 0"]);
    story.synced(1, 0, at(6));
    let told = story.run();
    assert_eq!((told.len(), told[0].as_str(), told[98].as_str()), (99, "1 knows 2: 6", "99 knows 2: 6"));
    story.synced(1, 1, at(7));
    story.synced(1, 1, at(8));
    assert_eq!(story.run(), ["100 knows 2: 7"]);
}

#[test]
fn readers_are_told_with_whom_their_feeds_are_in_step() {
    let mut story = Story::opened(3);
    let cohorts = |story: &mut Story| -> Vec<u64> {
        story.run();
        story.cohorts.values().copied().collect()
    };
    assert_eq!(cohorts(&mut story), [1, 1, 1]);
    story.frame(1, events(&[], 4, 6));
    story.frame(2, Attempted::Answer(Frame::Canceled));
    assert_eq!(cohorts(&mut story), [0, 0, 1]);
    story.frame(1, events(&[6], 6, 6));
    assert_eq!(cohorts(&mut story), [1, 0, 1]);
    story.frame(1, part(1, false));
    assert_eq!(cohorts(&mut story), [0, 0, 1], "it is sent a large revision");
    story.world.leader = Some(NodeId(2));
    story.news();
    story.run_after_pause();
    assert_eq!(cohorts(&mut story), [0, 0, 0]);
    for id in 1..=3 {
        story.frame(id, opened(9, 10));
    }
    assert_eq!(cohorts(&mut story), [2, 2, 2]);
}

#[test]
fn the_answer_to_one_feed_is_where_all_in_step_go_on() {
    let mut story = Story::opened(3);
    story.frame(3, events(&[], 4, 6));
    story.upstreams.sync(FeedId(1), 2);
    story.run();
    story.synced(1, 0, at(9));
    story.run();
    story.upstreams.handle_lost(story.now, LinkId(1), || u32::MAX);
    let moved = ["open 1 at 1 from 10", "open 2 at 1 from 10", "open 3 at 1 from 5"];
    assert_eq!(story.run_after_pause(), moved);
}

#[test]
fn so_many_questions_may_be_under_way() {
    let mut story = Story::opened(30);
    for id in 1..=20 {
        story.upstreams.sync(FeedId(id), 2);
        assert_eq!(story.run().len(), usize::from(id <= 16), "{id}");
    }
    story.synced(1, 3, at(6));
    assert_eq!(story.run(), ["4 knows 2: 6", "ask 16 at 1 about 0"]);
    story.synced(1, 16, at(7));
    assert_eq!(story.run(), ["17 knows 2: 7", "18 knows 2: 7", "19 knows 2: 7", "20 knows 2: 7"]);
}

#[test]
fn an_answer_is_not_for_who_is_behind_or_has_left() {
    let mut story = Story::opened(3);
    for id in 1..=3 {
        story.upstreams.sync(FeedId(id), 2);
    }
    assert_eq!(story.run(), ["ask 0 at 1 about 0"]);
    story.frame(1, events(&[], 4, 6));
    story.frame(2, Attempted::Answer(Frame::Canceled));
    story.upstreams.close(FeedId(3));
    story.synced(1, 0, at(6));
    assert_eq!(
        story.run_after_pause(),
        [
            "1 hears of 0 up to 4",
            "close 2 at 1: canceled",
            "close 3 at 1: nobody reads it",
            "open 2 at 1 from 5",
            "ask 1 at 1 about 0"
        ]
    );
    story.frame(1, events(&[5], 5, 7));
    story.frame(1, events(&[7], 7, 7));
    assert_eq!(story.run(), ["1 hears of 1 up to 5", "1 hears of 1 up to 7", "1 knows 2: 7"]);
    story.synced(1, 1, at(8));
    assert_eq!(story.run(), [""; 0], "it is not open there");
    story.frame(2, opened(8, 5));
    story.frame(2, events(&[], 8, 8));
    assert_eq!(story.run(), ["2 hears of 0 up to 8", "2 knows 2: 8"]);
}

#[test]
fn a_question_that_is_refused_is_asked_again_here_or_at_the_leader() {
    let mut story = Story::opened(2);
    story.upstreams.sync(FeedId(1), 2);
    story.run();
    story.synced(1, 0, refused(Why::NotLeader));
    story.upstreams.sync(FeedId(2), 2);
    assert_eq!(story.run(), [""; 0]);
    story.now = story.upstreams.deadline().unwrap();
    assert_eq!(story.run(), ["ask 1 at 1 about 0"]);
    story.synced(1, 1, refused(Why::NotLeader));
    story.world.leader = Some(NodeId(3));
    story.news();
    let moved = [
        "close 1 at 1: the leader is elsewhere",
        "close 2 at 1: the leader is elsewhere",
        "open 1 at 3 from 5",
        "open 2 at 3 from 5",
        "ask 2 at 3 about 0",
    ];
    assert_eq!(story.run_after_pause(), moved);
}

#[test]
fn a_question_that_got_lost_is_asked_again() {
    let mut story = Story::opened(1);
    story.upstreams.sync(FeedId(1), 2);
    assert_eq!(story.run(), ["ask 0 at 1 about 0"]);
    story.now += OVERDUE_AFTER;
    assert_eq!(story.run(), ["ask 1 at 1 about 0"]);
    // It was only late.
    story.synced(1, 0, at(6));
    assert_eq!(story.run(), ["1 knows 2: 6"]);
    story.synced(1, 1, at(7));
    assert_eq!((story.run(), story.upstreams.deadline()), (Vec::new(), None));
}

/// An older node refuses what it does not know.
#[test]
fn a_node_that_knows_no_shared_questions_is_asked_about_each_feed() {
    let mut story = Story::opened(2);
    for id in 1..=2 {
        story.upstreams.sync(FeedId(id), 2);
    }
    story.run();
    story.synced(1, 0, refused(Why::Malformed));
    assert_eq!(story.run(), ["ask 1 at 1 about 2", "ask 2 at 1 about 1"]);
    // It says nothing of being behind, but answers when it is not.
    story.frame(1, events(&[], 4, 6));
    story.synced(1, 2, at(6));
    assert_eq!(story.run(), ["1 hears of 0 up to 4", "1 knows 2: 6"]);
    story.synced(1, 1, refused(Why::Malformed));
    assert_eq!(
        story.run_after_pause(),
        ["close 2 at 1: it has no such watch", "open 2 at 1 from 5", "ask 3 at 1 about 3"]
    );
}

#[test]
fn large_revisions_that_come_in_parts_wait_for_each_other() {
    let mut story = Story::opened(3);
    let credited = |done: Vec<String>| -> Vec<String> {
        done.into_iter().filter(|act| act.starts_with("credit")).collect()
    };
    // The reader gives credit back for whatever came.
    for id in 1..=3 {
        story.frame(id, part(100, false));
        story.upstreams.credit(FeedId(id), 7);
    }
    assert_eq!(credited(story.run()), ["credit 1 at 1: 7", "credit 2 at 1: 7"], "300 MiB are too much");
    story.frame(1, part(100, false));
    story.upstreams.credit(FeedId(2), 8);
    story.upstreams.credit(FeedId(1), 8);
    assert_eq!(credited(story.run()), ["credit 1 at 1: 8"], "the first one always goes on");
    // It comes to its end, or its reader goes away.
    story.frame(1, part(1, true));
    assert_eq!(credited(story.run()), ["credit 2 at 1: 8", "credit 3 at 1: 7"]);
    story.frame(2, part(100, false));
    story.upstreams.credit(FeedId(3), 9);
    assert_eq!(credited(story.run()), [""; 0]);
    story.upstreams.close(FeedId(2));
    assert_eq!(credited(story.run()), ["credit 3 at 1: 9"]);
    // Also one that moves.
    story.frame(1, events(&[6], 6, 6));
    story.frame(3, part(200, false));
    story.upstreams.handle_lost(story.now, LinkId(1), || u32::MAX);
    assert_eq!((story.upstreams.parts.bytes, story.upstreams.parts.feeds.len()), (0, 0));
}

#[test]
fn a_revision_that_no_gateway_can_hold_ends_its_feed() {
    let mut story = Story::opened(1);
    let heard = (0..11).flat_map(|_| {
        story.frame(1, part(100, false));
        story.run()
    });
    let heard: Vec<String> = heard.collect();
    assert_eq!(heard[10..], ["1 has failed", "close 1 at 1: it is over"]);
}

#[test]
fn feeds_wait_for_the_map_and_for_leaders() {
    let mut story = Story::new();
    (story.world.is_mapped, story.world.leader) = (false, None);
    story.open(1, 0);
    assert_eq!(story.run(), [""; 0]);
    story.world.is_mapped = true;
    story.news();
    assert_eq!(story.run(), ["seek"]);
    story.news();
    assert_eq!(story.run(), ["seek"]);
    story.world.leader = Some(NodeId(2));
    story.news();
    assert_eq!(story.run(), ["open 1 at 2 from 0, all written"]);
    story.frame(1, opened(4, 5));
    assert_eq!(story.run(), ["1 is open"]);
    // The leader is gone, and no other is known: the nearest does.
    story.world.leader = None;
    story.world.up.remove(&NodeId(2));
    story.upstreams.handle_lost(story.now, LinkId(2), || u32::MAX);
    assert_eq!(story.run_after_pause(), ["open 1 at 3 from 5"]);
    story.upstreams.credit(FeedId(1), 9);
    assert_eq!(story.run(), ["credit 2 at 3: 9"]);
    story.upstreams.close(FeedId(1));
    assert_eq!(story.run(), ["close 2 at 3: nobody reads it"]);
    assert!(story.upstreams.is_empty() && story.upstreams.connections.is_empty());
}

#[test]
fn frames_of_a_watch_that_was_left_say_nothing() {
    let mut story = Story::opened(1);
    let old = story.watches[&FeedId(1)];
    story.world.leader = Some(NodeId(2));
    story.news();
    story.run_after_pause();
    story.upstreams.handle_frame(story.now, FeedId(1), old, events(&[5], 5, 5), || u32::MAX);
    story.upstreams.handle_watermark(LinkId(1), GROUP, Revision(9));
    assert_eq!(story.run(), [""; 0]);
    story.frame(1, opened(5, 5));
    story.frame(1, Attempted::Answer(Frame::Compacted { compact_revision: Revision(9) }));
    assert_eq!(story.run(), ["1 is compacted", "close 2 at 2: it is over"]);
}

#[test]
fn a_feed_whose_keys_its_group_does_not_hold_goes_where_the_next_map_says() {
    let mut story = Story::opened(2);
    story.frame(1, refused(Why::WrongShard));
    assert_eq!(story.run(), ["close 1 at 1: its keys are elsewhere"]);
    story.news();
    assert!(story.run().is_empty(), "who leads says nothing of whose the keys are");
    story.world.owner = GroupId(8);
    story.upstreams.handle_map();
    let moved = ["close 2 at 1: its keys are of another group", "open 1 at 1 from 5"];
    assert_eq!(story.run(), moved, "at once");
    story.frame(1, refused(Why::WrongShard));
    assert_eq!(story.run(), ["close 3 at 1: its keys are elsewhere"]);
    assert_eq!(story.run_after_pause(), ["open 1 at 1 from 5", "open 2 at 1 from 5"], "no map may come");
    story.frame(1, refused(Why::WrongShard));
    story.upstreams.handle_map();
    let opened = |done: Vec<String>| done.iter().filter(|act| act.starts_with("open 1")).count();
    assert_eq!(opened(story.run()), 1);
    story.frame(1, refused(Why::WrongShard));
    assert_eq!(opened(story.run()), 0, "once for each map");
}
