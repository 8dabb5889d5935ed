//! A link in stories: what the network does, and which way is dialled.

use super::*;
use crate::any_instant;

/// A link to node 1, and node 2, which is reached straight and may pass connections on.
struct Story {
    dialler: Dialler,
    ways: Ways,
    target: Target,
    helper: Target,
    now: Instant,
    is_wanted: bool,
}

impl Story {
    fn new() -> Story {
        let mut ways = Ways::default();
        let (target, helper) = (ways.target("a:1"), ways.target("b:1"));
        let now = any_instant();
        Story { dialler: Dialler::new(now, target.clone()), ways, target, helper, now, is_wanted: true }
    }

    /// A detour is known.
    fn with_detour() -> Story {
        let mut story = Story::new();
        story.ways.learn("a:1", 1);
        story.ways.handle_up(&story.helper, 2, Way::Straight, true);
        story
    }

    /// Linked this way.
    fn up(way: Way) -> Story {
        let mut story = Story::with_detour();
        while story.step() != DialStep::DialStraight {}
        if way == Way::Detour {
            while !matches!(story.step(), DialStep::DialDetour(_)) {}
        }
        story.welcomed(way);
        assert_eq!(story.step(), DialStep::Use(way));
        assert!(story.ways.handle_up(&story.target, 1, way, true));
        story
    }

    fn poll(&mut self) -> DialStep {
        self.dialler.poll(self.now, &self.ways, self.is_wanted, || u32::MAX)
    }

    /// The next step that is more than to wait, whenever that is due.
    fn step(&mut self) -> DialStep {
        for _ in 0..100 {
            match self.poll() {
                DialStep::Await { until: Some(until) } => {
                    assert!(until > self.now, "it does not turn in circles");
                    self.now = until;
                }
                step @ (DialStep::DialStraight
                | DialStep::DialDetour(_)
                | DialStep::GiveUp(_)
                | DialStep::Use(_)
                | DialStep::Leave(_)
                | DialStep::Await { until: None }
                | DialStep::End) => return step,
            }
        }
        panic!("it only waits");
    }

    /// The next step, and after how many milliseconds.
    fn step_after(&mut self) -> (u128, DialStep) {
        let before = self.now;
        let step = self.step();
        ((self.now - before).as_millis(), step)
    }

    fn welcomed(&mut self, way: Way) {
        self.dialler.handle_welcomed(self.now, way, 1);
    }

    fn failed(&mut self, way: Way) {
        self.dialler.handle_failed(self.now, way, || u32::MAX);
    }

    fn lost(&mut self, way: Way, loss: Loss) {
        self.ways.handle_down(&self.target, 1, way);
        self.dialler.handle_lost(self.now, loss, || u32::MAX);
    }
}

fn detour() -> DialStep {
    DialStep::DialDetour(Detour { node: 1, by: "b:1".to_owned() })
}

#[test]
fn without_a_detour_the_straight_way_is_tried_ever_more_rarely() {
    let mut story = Story::new();
    let mut pauses = Vec::new();
    for _ in 0..8 {
        let (pause, step) = story.step_after();
        assert_eq!(step, DialStep::DialStraight);
        pauses.push(pause);
        story.failed(Way::Straight);
    }
    assert_eq!(pauses, [0, 20, 40, 80, 160, 320, 640, 1000]);
    assert_eq!(story.step(), DialStep::DialStraight);
    assert_eq!(story.step_after(), (3000, DialStep::GiveUp(Way::Straight)), "nobody answers");
    assert!(!story.dialler.is_dialling(Way::Straight));
    assert_eq!(story.step(), DialStep::DialStraight);
    story.welcomed(Way::Straight);
    assert_eq!(story.poll(), DialStep::Use(Way::Straight));
    assert_eq!(story.poll(), DialStep::Await { until: None });
}

#[test]
fn a_node_that_does_not_answer_is_reached_by_a_detour() {
    let mut story = Story::with_detour();
    assert_eq!(story.step_after(), (0, DialStep::DialStraight));
    assert_eq!(story.step_after(), (500, detour()));
    assert!(story.dialler.is_dialling(Way::Straight) && story.dialler.is_dialling(Way::Detour));
    story.welcomed(Way::Detour);
    assert_eq!(story.step_after(), (0, DialStep::Use(Way::Detour)));
    assert!(!story.dialler.is_dialling(Way::Straight), "that attempt is let go");
}

#[test]
fn a_detour_is_looked_for_as_soon_as_another_node_is_reached() {
    let mut story = Story::new();
    story.ways.learn("a:1", 1);
    assert_eq!(story.step(), DialStep::DialStraight);
    story.now += DETOUR_AFTER;
    assert!(matches!(story.poll(), DialStep::Await { .. }), "there is none");
    story.ways.handle_up(&story.helper, 2, Way::Straight, true);
    assert_eq!(story.poll(), detour());
    story.failed(Way::Detour);
    assert_eq!(story.step_after(), (500, detour()), "after the first pause");
    story.failed(Way::Detour);
    assert_eq!(story.step_after(), (1000, detour()));
}

#[test]
fn a_straight_way_that_is_nearly_there_is_waited_for() {
    let mut story = Story::with_detour();
    story.step();
    assert_eq!(story.step(), detour());
    story.dialler.handle_connected();
    story.welcomed(Way::Detour);
    assert!(matches!(story.poll(), DialStep::Await { .. }));
    story.now += GRACE / 2;
    story.welcomed(Way::Straight);
    assert_eq!(story.poll(), DialStep::Use(Way::Straight));
    // But not for long.
    let mut slow = Story::with_detour();
    slow.step();
    slow.step();
    slow.dialler.handle_connected();
    slow.welcomed(Way::Detour);
    assert_eq!(slow.step_after(), (100, DialStep::Use(Way::Detour)));
}

#[test]
fn a_way_that_lets_connections_through_and_nothing_else_is_not_near() {
    let mut story = Story::with_detour();
    for _ in 0..UNWELCOME_MAX {
        assert_eq!(story.step(), DialStep::DialStraight);
        story.dialler.handle_connected();
        assert_eq!(story.step(), DialStep::GiveUp(Way::Straight), "no detour while it may be recovering");
    }
    assert_eq!(story.step(), DialStep::DialStraight);
    story.dialler.handle_connected();
    assert_eq!(story.step(), detour());
}

#[test]
fn a_detour_is_left_for_the_straight_way() {
    let mut story = Story::up(Way::Detour);
    assert_eq!(story.step_after(), (1000, DialStep::DialStraight));
    story.failed(Way::Straight);
    assert_eq!(story.step_after(), (1000, DialStep::DialStraight));
    story.failed(Way::Straight);
    assert_eq!(story.step_after(), (2000, DialStep::DialStraight));
    story.welcomed(Way::Straight);
    assert_eq!(story.poll(), DialStep::Use(Way::Straight));
    // Another link of ours may be first.
    let mut other = Story::up(Way::Detour);
    other.ways.handle_up(&other.target, 1, Way::Straight, true);
    assert_eq!(other.poll(), DialStep::Leave("another link reaches the node straight"));
}

#[test]
fn after_silence_a_detour_has_a_start_and_is_kept_longer() {
    let mut story = Story::up(Way::Straight);
    for kept in [2000, 4000, 8000] {
        story.lost(Way::Straight, Loss::Silence);
        assert_eq!(story.step_after(), (20, detour()), "after the pause");
        story.welcomed(Way::Detour);
        assert_eq!(story.step(), DialStep::Use(Way::Detour));
        assert_eq!(story.step_after(), (kept, DialStep::DialStraight));
        story.welcomed(Way::Straight);
        assert_eq!(story.step(), DialStep::Use(Way::Straight));
    }
    // One that lasted is trusted again.
    story.now += LASTING;
    story.lost(Way::Straight, Loss::Silence);
    story.step();
    story.welcomed(Way::Detour);
    story.step();
    assert_eq!(story.step_after(), (1000, DialStep::DialStraight));
}

#[test]
fn how_a_link_ended_says_which_way_is_tried_first() {
    let mut straight = Story::up(Way::Straight);
    straight.lost(Way::Straight, Loss::Other);
    assert_eq!(straight.step_after(), (20, DialStep::DialStraight));
    assert_eq!(straight.step_after(), (500, detour()));
    let mut by_detour = Story::up(Way::Detour);
    by_detour.lost(Way::Detour, Loss::Silence);
    assert_eq!(by_detour.step_after(), (20, DialStep::DialStraight));
    assert_eq!(by_detour.step_after(), (0, detour()), "both at once");
}

#[test]
fn a_second_address_is_dialled_now_and_then() {
    let mut story = Story::new();
    let first = story.ways.target("a:2");
    story.ways.learn("a:1", 1);
    story.ways.handle_up(&first, 1, Way::Straight, true);
    assert_eq!(story.step_after(), (60_000, DialStep::DialStraight));
    assert_eq!(story.step_after(), (63_000, DialStep::DialStraight), "it may have moved, but has not");
    let mut spare = Story::new();
    spare.ways.learn("a:1", 1);
    assert_eq!(spare.step(), DialStep::DialStraight);
    spare.ways.handle_up(&first, 1, Way::Straight, true);
    spare.now += CONNECT_TIMEOUT;
    assert_eq!(spare.poll(), DialStep::Await { until: Some(spare.now + SPARE_FOR) });
    assert!(!spare.dialler.is_dialling(Way::Straight), "that attempt is let go");
    spare.ways.handle_down(&first, 1, Way::Straight);
    assert_eq!(spare.poll(), DialStep::DialStraight, "it is needed");
}

#[test]
fn an_unwanted_target_is_left_when_its_node_is_reached_elsewhere() {
    let mut story = Story::up(Way::Straight);
    story.is_wanted = false;
    story.ways.handle_unwanted(&story.target);
    assert_eq!(story.poll(), DialStep::Await { until: None }, "there is no other yet");
    let other = story.ways.target("a:2");
    assert!(story.ways.handle_up(&other, 1, Way::Straight, true));
    assert!(matches!(story.poll(), DialStep::Leave(_)));
    story.lost(Way::Straight, Loss::Other);
    assert_eq!(story.poll(), DialStep::End);
}
