//! A link in stories: what the network does, and which way is dialled.

use super::*;
use crate::any_instant;

/// A link to node 1, and node 2, which is reached directly and may pass connections on.
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

    /// A relay is known.
    fn with_relay() -> Story {
        let mut story = Story::new();
        story.ways.learn("a:1", NodeId(1));
        story.ways.handle_up(&story.helper, NodeId(2), Way::Direct, true);
        story
    }

    /// Linked this way.
    fn up(way: Way) -> Story {
        let mut story = Story::with_relay();
        while story.step() != DialStep::DialDirect {}
        if way == Way::Relay {
            while !matches!(story.step(), DialStep::DialRelay(_)) {}
        }
        story.welcomed(way);
        assert_eq!(story.step(), DialStep::Use(way));
        assert!(story.ways.handle_up(&story.target, NodeId(1), way, true));
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
                step @ (DialStep::DialDirect
                | DialStep::DialRelay(_)
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
        self.dialler.handle_welcomed(self.now, way, NodeId(1));
    }

    fn failed(&mut self, way: Way) {
        self.dialler.handle_failed(self.now, way, || u32::MAX);
    }

    fn lost(&mut self, way: Way, loss: Loss) {
        self.ways.handle_down(&self.target, NodeId(1), way);
        self.dialler.handle_lost(self.now, loss, || u32::MAX);
    }
}

fn relay() -> DialStep {
    DialStep::DialRelay(Relay { to: NodeId(1), address: "b:1".to_owned() })
}

#[test]
fn without_a_relay_the_direct_way_is_tried_ever_more_rarely() {
    let mut story = Story::new();
    let mut pauses = Vec::new();
    for _ in 0..8 {
        let (pause, step) = story.step_after();
        assert_eq!(step, DialStep::DialDirect);
        pauses.push(pause);
        story.failed(Way::Direct);
    }
    assert_eq!(pauses, [0, 20, 40, 80, 160, 320, 640, 1000]);
    assert_eq!(story.step(), DialStep::DialDirect);
    assert_eq!(story.step_after(), (3000, DialStep::GiveUp(Way::Direct)), "nobody answers");
    assert!(!story.dialler.is_dialling(Way::Direct));
    assert_eq!(story.step(), DialStep::DialDirect);
    story.welcomed(Way::Direct);
    assert_eq!(story.poll(), DialStep::Use(Way::Direct));
    assert_eq!(story.poll(), DialStep::Await { until: None });
}

#[test]
fn a_node_that_does_not_answer_is_reached_by_a_relay() {
    let mut story = Story::with_relay();
    assert_eq!(story.step_after(), (0, DialStep::DialDirect));
    assert_eq!(story.step_after(), (500, relay()));
    assert!(story.dialler.is_dialling(Way::Direct) && story.dialler.is_dialling(Way::Relay));
    story.welcomed(Way::Relay);
    assert_eq!(story.step_after(), (0, DialStep::Use(Way::Relay)));
    assert!(!story.dialler.is_dialling(Way::Direct), "that attempt is let go");
}

#[test]
fn a_relay_is_looked_for_as_soon_as_another_node_is_reached() {
    let mut story = Story::new();
    story.ways.learn("a:1", NodeId(1));
    assert_eq!(story.step(), DialStep::DialDirect);
    story.now += RELAY_AFTER;
    assert!(matches!(story.poll(), DialStep::Await { .. }), "there is none");
    story.ways.handle_up(&story.helper, NodeId(2), Way::Direct, true);
    assert_eq!(story.poll(), relay());
    story.failed(Way::Relay);
    assert_eq!(story.step_after(), (500, relay()), "after the first pause");
    story.failed(Way::Relay);
    assert_eq!(story.step_after(), (1000, relay()));
}

/// Seeds 103298 and 106887 of the simulation: the node ended just then.
#[test]
fn a_relay_that_is_lost_while_it_waits_for_the_direct_way_is_not_used() {
    let mut story = Story::with_relay();
    story.step();
    assert_eq!(story.step(), relay());
    story.dialler.handle_connected();
    story.welcomed(Way::Relay);
    story.failed(Way::Relay);
    assert!(!story.dialler.is_dialling(Way::Relay));
    story.failed(Way::Direct);
    assert_eq!(story.step(), DialStep::DialDirect);
}

#[test]
fn a_direct_way_that_is_nearly_there_is_waited_for() {
    let mut story = Story::with_relay();
    story.step();
    assert_eq!(story.step(), relay());
    story.dialler.handle_connected();
    story.welcomed(Way::Relay);
    assert!(matches!(story.poll(), DialStep::Await { .. }));
    story.now += GRACE / 2;
    story.welcomed(Way::Direct);
    assert_eq!(story.poll(), DialStep::Use(Way::Direct));
    // But not for long.
    let mut slow = Story::with_relay();
    slow.step();
    slow.step();
    slow.dialler.handle_connected();
    slow.welcomed(Way::Relay);
    assert_eq!(slow.step_after(), (100, DialStep::Use(Way::Relay)));
}

#[test]
fn a_way_that_lets_connections_through_and_nothing_else_is_not_near() {
    let mut story = Story::with_relay();
    for _ in 0..UNWELCOME_MAX {
        assert_eq!(story.step(), DialStep::DialDirect);
        story.dialler.handle_connected();
        assert_eq!(story.step(), DialStep::GiveUp(Way::Direct), "no relay while it may be recovering");
    }
    assert_eq!(story.step(), DialStep::DialDirect);
    story.dialler.handle_connected();
    assert_eq!(story.step(), relay());
}

#[test]
fn a_relay_is_left_for_the_direct_way() {
    let mut story = Story::up(Way::Relay);
    assert_eq!(story.step_after(), (1000, DialStep::DialDirect));
    story.failed(Way::Direct);
    assert_eq!(story.step_after(), (1000, DialStep::DialDirect));
    story.failed(Way::Direct);
    assert_eq!(story.step_after(), (2000, DialStep::DialDirect));
    story.welcomed(Way::Direct);
    assert_eq!(story.poll(), DialStep::Use(Way::Direct));
    // Another link of ours may be first.
    let mut other = Story::up(Way::Relay);
    other.ways.handle_up(&other.target, NodeId(1), Way::Direct, true);
    assert_eq!(other.poll(), DialStep::Leave("another link reaches the node directly"));
}

#[test]
fn after_silence_a_relay_has_a_start_and_is_kept_longer() {
    let mut story = Story::up(Way::Direct);
    for kept in [2000, 4000, 8000] {
        story.lost(Way::Direct, Loss::Silence);
        assert_eq!(story.step_after(), (20, relay()), "after the pause");
        story.welcomed(Way::Relay);
        assert_eq!(story.step(), DialStep::Use(Way::Relay));
        assert_eq!(story.step_after(), (kept, DialStep::DialDirect));
        story.welcomed(Way::Direct);
        assert_eq!(story.step(), DialStep::Use(Way::Direct));
    }
    // One that lasted is trusted again.
    story.now += LASTING;
    story.lost(Way::Direct, Loss::Silence);
    story.step();
    story.welcomed(Way::Relay);
    story.step();
    assert_eq!(story.step_after(), (1000, DialStep::DialDirect));
}

#[test]
fn how_a_link_ended_says_which_way_is_tried_first() {
    let mut direct = Story::up(Way::Direct);
    direct.lost(Way::Direct, Loss::Other);
    assert_eq!(direct.step_after(), (20, DialStep::DialDirect));
    assert_eq!(direct.step_after(), (500, relay()));
    let mut relayed = Story::up(Way::Relay);
    relayed.lost(Way::Relay, Loss::Silence);
    assert_eq!(relayed.step_after(), (20, DialStep::DialDirect));
    assert_eq!(relayed.step_after(), (0, relay()), "both at once");
}

#[test]
fn a_second_address_is_dialled_now_and_then() {
    let mut story = Story::new();
    let first = story.ways.target("a:2");
    story.ways.learn("a:1", NodeId(1));
    story.ways.handle_up(&first, NodeId(1), Way::Direct, true);
    assert_eq!(story.step_after(), (60_000, DialStep::DialDirect));
    assert_eq!(story.step_after(), (63_000, DialStep::DialDirect), "it may have moved, but has not");
    let mut spare = Story::new();
    spare.ways.learn("a:1", NodeId(1));
    assert_eq!(spare.step(), DialStep::DialDirect);
    spare.ways.handle_up(&first, NodeId(1), Way::Direct, true);
    spare.now += CONNECT_TIMEOUT;
    assert_eq!(spare.poll(), DialStep::Await { until: Some(spare.now + SPARE_FOR) });
    assert!(!spare.dialler.is_dialling(Way::Direct), "that attempt is let go");
    spare.ways.handle_down(&first, NodeId(1), Way::Direct);
    assert_eq!(spare.poll(), DialStep::DialDirect, "it is needed");
}

#[test]
fn an_unwanted_target_is_left_when_its_node_is_reached_elsewhere() {
    let mut story = Story::up(Way::Direct);
    story.is_wanted = false;
    story.ways.handle_unwanted(&story.target);
    assert_eq!(story.poll(), DialStep::Await { until: None }, "there is no other yet");
    let other = story.ways.target("a:2");
    assert!(story.ways.handle_up(&other, NodeId(1), Way::Direct, true));
    assert!(matches!(story.poll(), DialStep::Leave(_)));
    story.lost(Way::Direct, Loss::Other);
    assert_eq!(story.poll(), DialStep::End);
}
