//! The tracker in stories: what replicas say, and what it asks.

use super::*;
use crate::any_instant;
use crate::attempt::{Refused, Why};

/// Three replicas; a link is its node.
struct Cluster {
    up: Vec<NodeId>,
    quiet: Quiet,
}

impl Reach for Cluster {
    type Link = NodeId;

    fn to(&self, node: NodeId) -> Option<NodeId> {
        self.up.contains(&node).then_some(node)
    }

    fn nearest(&self) -> Option<(NodeId, NodeId)> {
        None
    }
}

impl Replicas for Cluster {
    fn all(&self) -> Vec<NodeId> {
        [1, 2, 3].map(NodeId).to_vec()
    }

    fn quiet(&self, _link: &NodeId) -> Quiet {
        self.quiet
    }
}

struct Story {
    tracker: LeaderTracker,
    group: GroupState,
    cluster: Cluster,
    now: Instant,
}

type Step = TrackerStep<NodeId>;

impl Story {
    fn new(up: &[u32]) -> Story {
        let quiet = Quiet { owes: false, silent_for: Duration::ZERO, round_trip: Duration::ZERO };
        let cluster = Cluster { up: nodes(up), quiet };
        let (tracker, group) = (LeaderTracker::default(), GroupState::default());
        Story { tracker, group, cluster, now: any_instant() }
    }

    /// Node 1 leads in round 3, and a session is open.
    fn usable() -> Story {
        let mut story = Story::new(&[1, 2, 3]);
        story.poll();
        story.probed(1, 3, Some(1));
        assert_eq!(story.poll(), Step::Announce);
        assert_eq!(story.poll(), Step::OpenSession { node: NodeId(1), link: NodeId(1) });
        story.opened(Attempted::Answer(SessionOpened { term: 3, session: SessionId(7) }));
        assert_eq!(story.poll(), Step::Announce);
        story.waits();
        story
    }

    fn poll(&mut self) -> Step {
        self.tracker.poll(self.now, &self.group, &self.cluster, || u32::MAX)
    }

    /// Until when it waits, from now.
    fn waits(&mut self) -> Duration {
        match self.poll() {
            Step::Await { until } => until - self.now,
            step
            @ (Step::Probe { .. } | Step::OpenSession { .. } | Step::Abandon { .. } | Step::Announce) => {
                panic!("it does not wait: {step:?}")
            }
        }
    }

    /// What it does once it has waited.
    fn poll_later(&mut self) -> Step {
        let wait = self.waits();
        self.now += wait;
        self.poll()
    }

    fn probed(&mut self, node: u32, term: u64, leader: Option<u32>) -> bool {
        self.tracker.handle_probed(&mut self.group, NodeId(node), Attempted::Answer(led(term, leader)))
    }

    fn opened(&mut self, opened: Attempted<SessionOpened>) {
        let learned = self.group.handle_attempted(NodeId(1), None, &opened);
        self.tracker.handle_opened(self.now, &mut self.group, opened, learned, || u32::MAX);
    }

    fn leader(&self) -> Option<NodeId> {
        self.group.route.leader().map(|leader| leader.node)
    }
}

fn nodes(ids: &[u32]) -> Vec<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

fn led(term: u64, leader: Option<u32>) -> Led {
    Led { term, leader: leader.map(NodeId) }
}

fn probe(asked: &[u32], least_term: u64) -> Step {
    Step::Probe { nodes: nodes(asked).into_iter().map(|node| (node, node)).collect(), least_term }
}

#[test]
fn a_group_becomes_usable() {
    let mut story = Story::new(&[]);
    assert_eq!(story.waits(), PROBE_TIMEOUT, "nobody can be asked");
    story.cluster.up = nodes(&[2, 3]);
    assert_eq!(story.poll(), probe(&[2, 3], 0));
    assert!(story.probed(2, 3, Some(1)));
    assert_eq!(story.poll(), Step::Announce);
    assert_eq!(story.waits(), PROBE_TIMEOUT, "the leader is known, and cannot be reached");
    story.cluster.up.push(NodeId(1));
    assert_eq!(story.poll(), Step::Announce);
    assert_eq!(story.poll(), Step::OpenSession { node: NodeId(1), link: NodeId(1) });
    story.opened(Attempted::Answer(SessionOpened { term: 3, session: SessionId(7) }));
    assert_eq!(story.poll(), Step::Announce);
    assert_eq!(story.waits(), CHECK_EVERY);
    assert!(story.group.session.is_open());
}

#[test]
fn replicas_that_know_nobody_are_asked_again_after_a_pause() {
    let mut story = Story::new(&[1, 2, 3]);
    let mut pauses = Vec::new();
    for _ in 0..4 {
        assert_eq!(story.poll(), probe(&[1, 2, 3], 0));
        for node in 1..=3 {
            assert!(!story.probed(node, 3, None));
        }
        let pause = story.waits();
        pauses.push(pause.as_millis());
        story.now += pause;
    }
    assert_eq!(pauses, [5, 10, 20, 20]);
    // One does not answer at all.
    assert_eq!(story.poll(), probe(&[1, 2, 3], 0));
    story.tracker.handle_probed(&mut story.group, NodeId(2), Attempted::Lost);
    assert_eq!(story.waits(), PROBE_TIMEOUT);
    story.now += PROBE_TIMEOUT;
    assert_eq!(story.waits(), PAUSE.1);
}

#[test]
fn a_session_is_asked_for_until_there_is_one() {
    let mut story = Story::usable();
    story.group.session.handle_expired(SessionId(7));
    assert_eq!(story.poll(), Step::OpenSession { node: NodeId(1), link: NodeId(1) });
    story.opened(Attempted::Refused(Refused { why: Why::Overloaded, term: 3, leader: None }));
    assert_eq!(story.poll_later(), Step::OpenSession { node: NodeId(1), link: NodeId(1) });
    assert_eq!(story.waits(), OPEN_TIMEOUT);
    story.now += OPEN_TIMEOUT;
    assert_eq!(
        story.poll_later(),
        Step::OpenSession { node: NodeId(1), link: NodeId(1) },
        "it has not answered"
    );
    story.opened(Attempted::Refused(Refused { why: Why::NotLeader, term: 4, leader: Some(NodeId(2)) }));
    assert_eq!(story.poll(), Step::OpenSession { node: NodeId(2), link: NodeId(2) }, "at once");
    // It answers when another is asked already.
    story.now += OPEN_TIMEOUT;
    story.waits();
    story.opened(Attempted::Answer(SessionOpened { term: 3, session: SessionId(8) }));
    assert!(!story.group.session.is_open());
}

#[test]
fn a_silent_leader_is_left_when_another_leads() {
    let mut story = Story::usable();
    story.cluster.quiet =
        Quiet { owes: true, silent_for: patience(Duration::ZERO), round_trip: Duration::ZERO };
    assert_eq!(story.poll_later(), probe(&[2, 3], 4), "it is not asked itself");
    assert!(!story.probed(3, 3, Some(1)), "one has not heard yet");
    story.waits();
    assert!(story.probed(2, 4, Some(2)));
    assert_eq!(story.poll(), Step::Announce);
    assert_eq!(story.poll(), Step::Abandon { node: NodeId(1), link: Some(NodeId(1)) });
    assert_eq!(story.leader(), Some(NodeId(2)));
    story.waits();
}

#[test]
fn a_silent_leader_is_kept_when_nobody_knows_another() {
    let mut story = Story::usable();
    story.cluster.quiet =
        Quiet { owes: true, silent_for: patience(Duration::ZERO), round_trip: Duration::ZERO };
    assert_eq!(story.poll_later(), probe(&[2, 3], 4));
    story.probed(2, 3, Some(1));
    story.probed(3, 3, None);
    assert_eq!(story.waits(), CHECK_EVERY);
    assert_eq!(story.leader(), Some(NodeId(1)));
    // It may be known before it can be reached.
    assert_eq!(story.poll_later(), probe(&[2, 3], 4));
    story.cluster.up = nodes(&[1, 3]);
    assert!(story.probed(3, 4, Some(2)));
    assert_eq!(story.poll(), Step::Announce);
    assert_eq!(story.waits(), PROBE_TIMEOUT, "node 2 may come up");
    story.now += PROBE_TIMEOUT;
    assert_eq!(story.poll(), Step::Abandon { node: NodeId(1), link: Some(NodeId(1)) });
}

#[test]
fn silence_that_is_no_sign_is_let_be() {
    let mut story = Story::usable();
    let silent_for = patience(Duration::ZERO);
    story.cluster.quiet = Quiet { owes: false, silent_for, round_trip: Duration::ZERO };
    assert_eq!(story.poll_later(), Step::Await { until: story.now + CHECK_EVERY }, "it owes nothing");
    story.cluster.quiet = Quiet { owes: true, silent_for, round_trip: silent_for };
    assert_eq!(story.poll_later(), Step::Await { until: story.now + CHECK_EVERY }, "it is far away");
}

#[test]
fn what_is_missing_is_looked_for_as_soon_as_somebody_wants_it() {
    let mut story = Story::usable();
    assert!(story.waits() > Duration::ZERO);
    story.group.route.handle_gone(NodeId(1));
    assert_eq!(story.poll(), probe(&[1, 2, 3], 3));
}

/// Who waits for a leader looks again only when told to. Seed 101887 of the simulation: a watch was never opened.
#[test]
fn a_leader_that_was_lost_and_leads_again_is_announced() {
    let mut story = Story::usable();
    story.cluster.quiet =
        Quiet { owes: true, silent_for: patience(Duration::ZERO), round_trip: Duration::ZERO };
    assert_eq!(story.poll_later(), probe(&[2, 3], 4));
    // It says itself that it does not lead, and somebody begins to wait; then it is elected again.
    assert!(story.group.route.handle_denied(NodeId(1), 3, None));
    story.waits();
    assert!(story.probed(2, 4, Some(1)));
    assert_eq!(story.poll(), Step::Announce);
    story.probed(3, 3, None);
    assert_eq!(story.waits(), CHECK_EVERY);
}

#[test]
fn a_leader_that_a_late_answer_names_is_announced() {
    let mut story = Story::usable();
    story.group.route.handle_gone(NodeId(1));
    assert_eq!(story.poll(), probe(&[1, 2, 3], 3));
    story.waits();
    story.now += PROBE_TIMEOUT;
    story.waits();
    assert!(story.probed(2, 4, Some(3)), "when it rests already");
    assert_eq!(story.poll(), Step::Announce);
}

#[test]
fn a_leader_that_vanished_while_it_was_suspected_is_looked_for_at_once() {
    let mut story = Story::usable();
    story.cluster.quiet =
        Quiet { owes: true, silent_for: patience(Duration::ZERO), round_trip: Duration::ZERO };
    assert_eq!(story.poll_later(), probe(&[2, 3], 4));
    story.probed(2, 3, None);
    story.group.route.handle_gone(NodeId(1));
    story.probed(3, 3, None);
    assert_eq!(story.poll(), probe(&[1, 2, 3], 3));
}
