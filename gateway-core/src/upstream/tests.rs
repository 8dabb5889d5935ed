//! Feeds as stories: what replicas send, and what the reader gets.

use keyspace::Revision;

use super::*;
use crate::Up;
use crate::any_instant;
use crate::attempt::{Refused, Unsent};

struct Story {
    upstream: Upstream,
    now: Instant,
    up: Up,
    leader: Option<NodeId>,
}

impl Story {
    fn new(start: i64) -> Story {
        let range = KeyRange::single("a");
        let upstream =
            Upstream::new(&FeedSpec { range, start: Revision(start), prev_kv: false, credit: 100 });
        Story { upstream, now: any_instant(), up: Up(&[3, 1, 2]), leader: Some(NodeId(1)) }
    }

    /// Open at node 1, from revision 5 on.
    fn opened() -> Story {
        let mut story = Story::new(0);
        story.poll();
        assert_eq!(story.frame(opened(4, 5)), "opened at 4 from 5");
        story
    }

    fn poll(&mut self) -> UpstreamStep<NodeId> {
        let leader = self.leader;
        self.upstream.poll(self.now, || leader, &self.up)
    }

    /// As `poll`, once the pause after the last replica is over.
    fn poll_after_pause(&mut self) -> UpstreamStep<NodeId> {
        let UpstreamStep::Pause { until } = self.poll() else { panic!("it does not pause") };
        assert!(until - self.now <= PAUSE.1);
        self.now = until;
        self.poll()
    }

    fn frame(&mut self, frame: Attempted<Frame>) -> String {
        told(self.upstream.handle_frame(self.now, frame, || u32::MAX))
    }

    /// What the reader is told once the sync with this token is answered.
    fn synced(&mut self, token: u64, revision: i64) -> String {
        let synced = Synced { revision: Revision(revision), compact_revision: Revision(1), term: 2 };
        self.upstream.handle_synced(token, synced);
        self.take_synced()
    }

    fn take_synced(&mut self) -> String {
        self.upstream.take_synced().map_or_else(String::new, |item| told(Heard::Item(item)))
    }
}

fn opened(revision: i64, start: i64) -> Attempted<Frame> {
    let (revision, start) = (Revision(revision), Revision(start));
    Attempted::Answer(Frame::Opened { revision, start, compact_revision: Revision(0), term: 2 })
}

fn events(revisions: &[i64], upto: i64) -> Attempted<Frame> {
    let events = |number: &i64| RevisionEvents { revision: Revision(*number), events: [].into() };
    let revisions = revisions.iter().map(events).collect();
    Attempted::Answer(Frame::Events {
        revisions,
        upto: Revision(upto),
        is_incomplete: false,
        revision: Revision(upto),
        term: 2,
        bytes: 40,
    })
}

/// No events: there are some behind `upto`, up to `revision`, that will not come at once, if it is lower.
fn place(upto: i64, revision: i64) -> Attempted<Frame> {
    Attempted::Answer(Frame::Events {
        revisions: Vec::new(),
        upto: Revision(upto),
        is_incomplete: false,
        revision: Revision(revision),
        term: 2,
        bytes: 0,
    })
}

/// So many events of each revision; more of the last one follow if it is above `upto`.
fn parts(of: &[(i64, usize)], upto: i64) -> Attempted<Frame> {
    let event = Event { kind: keyspace::EventKind::Put, kv: Default::default(), prev_kv: None };
    let part = |(number, events): &(i64, usize)| RevisionEvents {
        revision: Revision(*number),
        events: vec![event.clone(); *events].into(),
    };
    let revisions: Vec<RevisionEvents> = of.iter().map(part).collect();
    let is_incomplete = of.last().is_some_and(|(last, _)| *last > upto);
    let (upto, revision) = (Revision(upto), Revision(9));
    Attempted::Answer(Frame::Events { revisions, upto, is_incomplete, revision, term: 2, bytes: 40 })
}

fn refused<T>(why: Why) -> Attempted<T> {
    Attempted::Refused(Refused { why, term: 2, leader: None })
}

fn told(heard: Heard) -> String {
    match heard {
        Heard::Item(FeedItem::Opened { revision, start, .. }) => format!("opened at {revision} from {start}"),
        Heard::Item(FeedItem::Events { revisions, upto, .. }) => {
            let revisions: Vec<i64> = revisions.iter().map(|events| events.revision.0).collect();
            format!("events {revisions:?} up to {upto}")
        }
        Heard::Item(FeedItem::Synced { token, revision, .. }) => format!("synced {token} at {revision}"),
        Heard::Item(FeedItem::Cohort(cohort)) => format!("in step: {}", cohort.is_some()),
        Heard::Item(FeedItem::Compacted { compact_revision }) => format!("compacted at {compact_revision}"),
        Heard::Item(FeedItem::Failed(failure)) => format!("failed: {failure:?}"),
        Heard::Left(reason) => format!("left: {reason}"),
        Heard::Nothing => String::new(),
    }
}

fn open(node: u32, start: i64, credit: u64, linearizable: bool) -> UpstreamStep<NodeId> {
    let node = NodeId(node);
    UpstreamStep::Open(Open { node, link: node, start: Revision(start), credit, linearizable })
}

#[test]
fn a_feed_starts_at_the_leader_alone() {
    let mut feed = Story::new(0);
    feed.leader = None;
    assert_eq!(feed.poll(), UpstreamStep::AwaitNews);
    feed.leader = Some(NodeId(1));
    assert_eq!(feed.poll(), open(1, 0, 100, true));
    assert_eq!(feed.poll(), UpstreamStep::AwaitFrames);
    assert_eq!(feed.frame(opened(4, 5)), "opened at 4 from 5");
    assert_eq!(feed.frame(events(&[5, 7], 8)), "events [5, 7] up to 8");
}

#[test]
fn it_goes_on_where_it_was_and_repeats_nothing() {
    let mut feed = Story::opened();
    assert_eq!(feed.frame(events(&[5], 6)), "events [5] up to 6");
    assert_eq!(feed.frame(Attempted::Lost), "left: link lost");
    assert_eq!(feed.upstream.node(), None);
    feed.leader = None;
    assert_eq!(feed.poll_after_pause(), open(3, 7, 60, false), "the nearest, for want of a leader");
    assert_eq!(feed.frame(opened(9, 7)), "", "its reader sees no seam");
    assert_eq!(feed.frame(events(&[6, 8], 9)), "events [8] up to 9");
    let moved = feed.upstream.handle_leader(feed.now, NodeId(2), || 0);
    assert_eq!(told(moved), "left: the leader is elsewhere");
    feed.leader = Some(NodeId(2));
    assert_eq!(feed.poll(), open(2, 10, 20, false));
    assert_eq!(told(feed.upstream.handle_leader(feed.now, NodeId(2), || 0)), "");
}

#[test]
fn a_revision_that_comes_in_parts_is_told_when_it_is_complete() {
    let whole = |heard: Heard| {
        let Heard::Item(FeedItem::Events { revisions, upto, bytes, .. }) = heard else { panic!("{heard:?}") };
        let sizes = revisions.iter().map(|revision| (revision.revision.0, revision.events.len()));
        (sizes.collect::<Vec<_>>(), upto.0, bytes)
    };
    let mut feed = Story::opened();
    let mut hear = |of: &[(i64, usize)], upto| {
        let heard = feed.upstream.handle_frame(feed.now, parts(of, upto), || 0);
        (whole(heard), feed.upstream.part_bytes() > 0)
    };
    // Each is credited when it comes.
    assert_eq!(hear(&[(5, 1), (7, 2)], 6), ((vec![(5, 1)], 6, 40), true));
    assert_eq!(hear(&[(7, 3)], 6), ((vec![], 6, 40), true));
    assert_eq!(hear(&[], 6), ((vec![], 6, 40), true), "it only says where it is");
    assert_eq!(hear(&[(7, 1), (8, 1)], 8), ((vec![(7, 6), (8, 1)], 8, 40), false));
    // What followed did not touch the range.
    assert_eq!(hear(&[(9, 4)], 8), ((vec![], 8, 40), true));
    assert_eq!(hear(&[(12, 1)], 11), ((vec![(9, 4)], 11, 40), true));
    assert_eq!(hear(&[], 14), ((vec![(12, 1)], 14, 40), false));
}

#[test]
fn a_feed_that_moves_inside_a_revision_begins_it_again() {
    let mut feed = Story::opened();
    assert_eq!(feed.frame(parts(&[(7, 2)], 6)), "events [] up to 6");
    feed.upstream.handle_watermark(Revision(9));
    assert_eq!(feed.frame(Attempted::Lost), "left: link lost");
    assert_eq!(feed.upstream.part_bytes(), 0);
    assert_eq!(feed.poll_after_pause(), open(1, 7, 60, false));
    feed.frame(opened(9, 7));
    assert_eq!(feed.frame(parts(&[(7, 1)], 6)), "events [] up to 6");
    let heard = feed.upstream.handle_frame(feed.now, parts(&[(7, 4)], 7), || 0);
    let Heard::Item(FeedItem::Events { revisions, .. }) = heard else { panic!("{heard:?}") };
    assert_eq!(revisions[0].events.len(), 5);
    // One that begins another revision has lost its way.
    feed.frame(parts(&[(8, 1)], 7));
    assert_eq!(feed.frame(parts(&[(9, 1)], 8)), "events [8] up to 8");
    let lost = Attempted::Answer(Frame::Events {
        revisions: vec![RevisionEvents { revision: Revision(11), events: [].into() }],
        upto: Revision(8),
        is_incomplete: true,
        revision: Revision(11),
        term: 2,
        bytes: 40,
    });
    assert_eq!(feed.frame(lost), "left: a revision was begun, and not ended");
    assert_eq!(feed.poll_after_pause(), open(1, 9, 0, false));
}

#[test]
fn a_sync_is_asked_for_once_at_each_replica_until_it_is_answered() {
    let mut feed = Story::new(0);
    feed.upstream.sync(2);
    feed.poll();
    assert_eq!(feed.upstream.ask_for_sync(), None, "opening comes first");
    feed.frame(opened(4, 5));
    assert_eq!((feed.upstream.ask_for_sync(), feed.upstream.ask_for_sync()), (Some(2), None));
    assert_eq!(feed.frame(Attempted::Lost), "left: link lost");
    assert_eq!(feed.upstream.ask_for_sync(), None);
    feed.poll_after_pause();
    assert_eq!(feed.upstream.ask_for_sync(), Some(2));
    feed.frame(opened(5, 5));
    // Another takes its place.
    assert_eq!(feed.frame(place(5, 5)), "events [] up to 5");
    feed.upstream.sync(3);
    assert_eq!(feed.synced(2, 6), "", "too late");
    assert_eq!(feed.upstream.ask_for_sync(), Some(3));
    assert_eq!(feed.synced(2, 6), "", "too late");
    assert_eq!(feed.synced(3, 6), "synced 3 at 6");
    assert_eq!(feed.upstream.ask_for_sync(), None);
    assert_eq!(feed.frame(events(&[6, 7], 7)), "events [7] up to 7", "6 was spoken of");
}

#[test]
fn an_answer_counts_once_the_watch_is_in_step() {
    let mut feed = Story::new(3);
    feed.upstream.sync(2);
    feed.poll();
    feed.frame(opened(9, 3));
    assert_eq!(feed.upstream.ask_for_sync(), Some(2));
    assert_eq!(feed.synced(2, 9), "", "it reads history");
    assert_eq!(feed.frame(place(7, 10)), "events [] up to 7");
    assert_eq!(feed.take_synced(), "");
    assert_eq!(feed.frame(events(&[10], 10)), "events [10] up to 10");
    assert_eq!(feed.take_synced(), "synced 2 at 10");
    // It falls behind.
    feed.upstream.sync(3);
    assert_eq!(feed.upstream.ask_for_sync(), Some(3));
    feed.frame(place(10, 11));
    assert_eq!(feed.synced(3, 12), "");
    feed.upstream.handle_watermark(Revision(12));
    feed.frame(Attempted::Lost);
    assert_eq!(feed.poll_after_pause(), open(1, 11, 60, false));
}

#[test]
fn a_watermark_is_where_a_watch_in_step_goes_on() {
    let mut feed = Story::opened();
    feed.upstream.handle_watermark(Revision(8));
    feed.upstream.handle_watermark(Revision(6));
    feed.frame(Attempted::Lost);
    feed.upstream.handle_watermark(Revision(12));
    assert_eq!(feed.poll_after_pause(), open(1, 9, 100, false));
    feed.upstream.handle_watermark(Revision(12));
    feed.frame(Attempted::Lost);
    assert_eq!(feed.poll_after_pause(), open(1, 9, 100, false), "that replica had not opened it");
}

#[test]
fn it_ends_when_its_revisions_are_gone_or_nobody_can_read_it() {
    let mut feed = Story::opened();
    assert_eq!(
        feed.frame(Attempted::Answer(Frame::Compacted { compact_revision: Revision(9) })),
        "compacted at 9"
    );
    assert_eq!(feed.poll(), UpstreamStep::Ended);
    assert_eq!(feed.frame(events(&[9], 9)), "");
    let mut unread = Story::new(0);
    unread.poll();
    let failed = unread.frame(refused(Why::Malformed));
    assert!(failed.starts_with("failed: Internal"), "{failed}");
}

#[test]
fn whatever_else_ends_a_watch_another_follows() {
    let ends = [
        (Attempted::Answer(Frame::Canceled), "left: canceled"),
        (refused(Why::Stopping), "left: refused"),
        (Attempted::Unsent(Unsent::Full), "left: not sent"),
        (Attempted::Protocol("noise"), "left: noise"),
        (events(&[5], 5), "left: events of a watch that is not open"),
    ];
    for (end, reason) in ends {
        let mut feed = Story::new(0);
        feed.poll();
        assert_eq!(feed.frame(end), reason);
        assert_eq!(feed.poll_after_pause(), open(1, 0, 100, true));
    }
}
