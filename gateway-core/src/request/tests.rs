//! Requests as stories: what a group says, and what becomes of them.

use keyspace::{SESSION_WINDOW, SessionId};

use super::*;
use crate::Up;

const ALL: Up = Up(&[3, 1, 2]);

/// Led by node 1 in round 3, with session 7.
fn group() -> GroupState {
    let mut group = GroupState::default();
    group.route.handle_led(NodeId(1), 3);
    group.session.handle_opened(SessionId(7));
    group
}

struct Story {
    group: GroupState,
    request: Request,
}

impl Story {
    fn new(request: Request) -> Story {
        Story { group: group(), request }
    }

    fn poll(&mut self) -> Step<NodeId> {
        self.poll_with(&ALL)
    }

    fn poll_with(&mut self, up: &Up) -> Step<NodeId> {
        let Story { group, request } = self;
        request.poll(|| group, up)
    }

    /// It is sent, and this comes of it.
    fn attempt(&mut self, attempted: Attempted<()>) -> Verdict<()> {
        let Step::Send(send) = self.poll() else { panic!("it goes nowhere: {self:?}") };
        let number = send.numbered.map(|numbered| numbered.number);
        let learned = self.group.handle_attempted(send.node, number, &attempted);
        self.request.handle(attempted, learned)
    }

    fn refused(&mut self, why: Why, leader: Option<u32>) -> Verdict<()> {
        self.attempt(Attempted::Refused(Refused { why, term: 4, leader: leader.map(NodeId) }))
    }

    /// Where it goes next, and under which number.
    fn goes_to(&mut self) -> (u32, Option<(SessionId, u64)>) {
        let mut copy = self.request;
        match copy.poll(|| &mut self.group, &ALL) {
            Step::Send(Attempt { node, numbered, .. }) => {
                self.request.number = copy.number;
                (node.0, numbered.map(|numbered| (numbered.number.session, numbered.number.seq)))
            }
            Step::AwaitNews { .. } | Step::AwaitNumber => panic!("it goes nowhere"),
        }
    }
}

impl std::fmt::Debug for Story {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} of {:?}", self.request, self.group)
    }
}

fn moment() -> Verdict<()> {
    Verdict::RetryAfter { pause: Pause::Moment, returned: None }
}

fn failed(failure: Failure) -> Verdict<()> {
    Verdict::Done(Err(failure))
}

#[test]
fn a_write_follows_the_leader_under_its_number() {
    let mut write = Story::new(Request::write());
    assert_eq!(write.goes_to(), (1, Some((SessionId(7), 1))));
    assert_eq!(write.refused(Why::NotLeader, Some(2)), Verdict::Retry);
    assert_eq!(write.goes_to(), (2, Some((SessionId(7), 1))));
    assert_eq!(write.attempt(Attempted::Lost), Verdict::Retry);
    assert_eq!(write.poll_with(&Up(&[1, 3])), Step::AwaitNews { bounded: false }, "it may have been applied");
    assert_eq!(write.goes_to(), (2, Some((SessionId(7), 1))));
    assert_eq!(write.attempt(Attempted::Answer(())), Verdict::Done(Ok(())));
    assert_eq!(write.request.take_number().map(|number| number.seq), Some(1));
}

#[test]
fn a_write_that_may_be_applied_is_never_renumbered_or_refused() {
    let mut write = Story::new(Request::write());
    assert_eq!(write.refused(Why::OutcomeUnknown, Some(2)), Verdict::Retry);
    assert_eq!(write.refused(Why::NoDisk, None), moment());
    let eased = write.refused(Why::Overloaded, None);
    assert!(
        matches!(eased, Verdict::RetryAfter { pause: Pause::Ease { bounded: false, .. }, returned: None }),
        "{eased:?}"
    );
    assert_eq!(write.request.timed_out(), Failure::TimedOut);
    assert_eq!(write.attempt(Attempted::Denied(Error::SessionExpired)), failed(Failure::TimedOut));
    assert!(!write.group.session.is_open());
}

#[test]
fn a_write_that_was_certainly_not_applied_takes_a_new_number() {
    let mut write = Story::new(Request::write());
    assert_eq!(write.refused(Why::NotLeader, Some(2)), Verdict::Retry);
    assert_eq!(write.attempt(Attempted::Unsent(Unsent::Down)), Verdict::Retry);
    assert_eq!(write.attempt(Attempted::Denied(Error::SessionExpired)), Verdict::Retry);
    assert_eq!(write.poll(), Step::AwaitNews { bounded: true }, "there is no session");
    write.group.session.handle_opened(SessionId(8));
    assert_eq!(write.goes_to(), (2, Some((SessionId(8), 1))));
    assert_eq!(write.refused(Why::NoDisk, None), failed(Failure::NoDisk));
}

#[test]
fn a_lost_link_leaves_the_outcome_open() {
    let mut write = Story::new(Request::write());
    assert_eq!(write.attempt(Attempted::Lost), Verdict::Retry);
    let expired = write.attempt(Attempted::Denied(Error::SessionExpired));
    assert_eq!(expired, failed(Failure::TimedOutConnectionLost));
    let mut forgotten = Story::new(Request::write());
    assert_eq!(forgotten.attempt(Attempted::Denied(Error::ResultForgotten)), failed(Failure::TimedOut));
}

#[test]
fn what_the_state_machine_says_is_final() {
    let mut write = Story::new(Request::write());
    assert_eq!(write.attempt(Attempted::Lost), Verdict::Retry);
    let compacted = write.attempt(Attempted::Denied(Error::Compacted));
    assert_eq!(compacted, failed(Failure::Refused(Error::Compacted)));
    let mut early = Story::new(Request::write());
    assert_eq!(early.attempt(Attempted::Denied(Error::SessionWindowExceeded)), moment());
}

#[test]
fn an_overloaded_node_is_asked_again_ever_more_rarely_until_the_deadline() {
    let mut write = Story::new(Request::write());
    let mut pauses = Vec::new();
    for seq in 1..=40 {
        let verdict = write.refused(Why::Overloaded, None);
        let Verdict::RetryAfter { pause, returned: Some(number) } = verdict else { panic!("{verdict:?}") };
        assert_eq!(number.seq, seq, "others need not wait for it");
        assert_eq!(pause.length(0), Duration::ZERO);
        pauses.push(pause.length(u32::MAX).as_millis());
    }
    assert_eq!(pauses[..8], [5, 10, 20, 40, 80, 160, 320, 500]);
    assert!(pauses[8..].iter().all(|pause| *pause == 500));
    assert_eq!(write.request.timed_out(), Failure::Overloaded);
    assert_eq!(write.request.deadline_exceeded(), Failure::Overloaded, "as etcd says it of writes");
    // The deadline may come while the next attempt waits for its answer.
    write.poll();
    assert_eq!(write.request.timed_out(), Failure::TimedOut);
}

#[test]
fn a_full_window_is_waited_for() {
    let mut write = Story::new(Request::write());
    let first = write.group.session.take().unwrap();
    for _ in 1..SESSION_WINDOW {
        write.group.session.take().unwrap();
    }
    assert_eq!(write.poll(), Step::AwaitNumber);
    write.group.session.done(first);
    assert_eq!(write.goes_to(), (1, Some((SessionId(7), SESSION_WINDOW + 1))));
}

#[test]
fn replicas_that_point_at_each_other_earn_a_pause() {
    let mut read = Story::new(Request::read(ReadAt::Leader));
    let verdicts: Vec<_> = (0..6).map(|n| read.refused(Why::NotLeader, Some(2 - n % 2))).collect();
    assert_eq!(verdicts.iter().filter(|verdict| **verdict == moment()).count(), 2, "{verdicts:?}");
}

#[test]
fn a_read_that_any_replica_may_answer_goes_to_the_nearest_and_waits_for_no_leader() {
    let mut read = Story::new(Request::read(ReadAt::Nearest));
    read.group = GroupState::default();
    assert_eq!(read.goes_to(), (3, None));
    assert_eq!(read.attempt(Attempted::Lost), moment(), "another replica may do");
    assert_eq!(read.poll_with(&Up(&[])), Step::AwaitNews { bounded: true });
    assert!(read.request.leaves_the_silent() && read.request.asks_any());
}

#[test]
fn an_inquiry_goes_on_whatever_it_hears() {
    let mut inquiry = Story::new(Request::inquiry());
    assert_eq!(inquiry.goes_to(), (1, None), "the leader at best");
    assert_eq!(inquiry.refused(Why::NoDisk, None), moment());
    assert_eq!(inquiry.attempt(Attempted::Protocol("?")), moment());
    inquiry.group.route.handle_gone(NodeId(1));
    assert_eq!(inquiry.goes_to(), (3, None));
    assert_eq!(inquiry.request.timed_out(), Failure::TimedOut);
}

#[test]
fn the_text_of_a_timeout_tells_the_cause() {
    let mut read = Story::new(Request::read(ReadAt::Leader));
    assert_eq!(read.request.timed_out(), Failure::TimedOut);
    assert_eq!(read.request.deadline_exceeded(), Failure::DeadlineExceeded);
    read.refused(Why::NotLeader, Some(2));
    assert_eq!(read.request.timed_out(), Failure::TimedOutLeaderFailed);
    read.attempt(Attempted::Lost);
    assert_eq!(read.request.timed_out(), Failure::TimedOutConnectionLost);
}
