//! What is done with a request, step by step.

use std::time::Duration;

use api::gaios::link::v1 as wire;
use api::gaios::link::v1::response::Kind;
use bytes::{Bytes, BytesMut};
use keyspace::{Error, Op, Reply, Revision, Route, SessionId};

use super::*;
use crate::Up;
use crate::any_instant;
use crate::asks::{Read, Write};
use crate::attempt::{Unsent, Why};
use crate::link::{Unanswered, sort};
use crate::request::ReadAt;

/// Led by node 1 in round 3, with session 7; and what it was told.
struct Group {
    state: GroupState,
    told: Vec<String>,
}

impl Group {
    fn new() -> Group {
        let mut state = GroupState::default();
        state.route.handle_led(NodeId(1), 3);
        state.session.handle_opened(SessionId(7));
        Group { state, told: Vec::new() }
    }

    fn take_told(&mut self) -> Vec<String> {
        std::mem::take(&mut self.told)
    }
}

impl Shell for Group {
    fn state(&mut self) -> impl DerefMut<Target = GroupState> {
        &mut self.state
    }

    fn announce(&mut self) {
        self.told.push("another leads".to_owned());
    }

    fn handle_session_lost(&mut self) {
        self.told.push("the session is lost".to_owned());
    }

    fn handle_freed(&mut self, numbers: u64) {
        self.told.push(format!("{numbers} freed"));
    }

    fn count<T>(&mut self, attempted: &Attempted<T>) {
        if matches!(attempted, Attempted::Lost) {
            self.told.push("lost".to_owned());
        }
    }

    fn judge<T>(&mut self, node: NodeId, _: &Attempted<T>) {
        self.told.push(format!("how {} answered", node.0));
    }
}

fn write(deadline: Deadline) -> Drive<Write> {
    Drive::new(Request::write(), Write::new(Op::Compact { revision: 1 }, Route::FIRST), deadline)
}

fn response(kind: Kind) -> Result<wire::Response, Unanswered> {
    Ok(wire::Response { id: 1, term: 4, kind: Some(kind) })
}

fn refused(why: wire::refused::Why, leader: u32) -> Result<wire::Response, Unanswered> {
    response(Kind::Refused(wire::Refused { why: why.into(), leader, ..Default::default() }))
}

fn outcome(outcome: &keyspace::Outcome) -> Result<wire::Response, Unanswered> {
    let mut encoded = BytesMut::new();
    keyspace::encode_outcome(outcome, &mut encoded);
    response(Kind::Reply(encoded.freeze()))
}

/// It is sent to this node, and answered so.
fn attempt<A: Ask>(
    drive: &mut Drive<A>,
    group: &mut Group,
    up: &Up,
    to: u32,
    answered: Result<wire::Response, Unanswered>,
) -> Option<Result<A::Answer, Failure>> {
    let now = any_instant();
    let DriveStep::Send(sending) = drive.poll(|| now, || &mut group.state, up) else {
        panic!("it goes nowhere: {:?}", drive.phase())
    };
    assert_eq!(sending.node.0, to);
    assert!(matches!(drive.poll(|| now, || &mut group.state, up), DriveStep::AwaitAnswer));
    let attempted = sort(drive.ask(), answered);
    drive.handle(|| now, attempted, group, || u32::MAX)
}

#[test]
fn a_write_goes_on_until_it_is_answered_and_gives_its_number_back() {
    let now = any_instant();
    let up = Up(&[1, 2]);
    let mut group = Group::new();
    let mut drive = write(Deadline::Gateway(now + Duration::from_secs(7)));
    let redirect = refused(wire::refused::Why::NotLeader, 2);
    assert!(attempt(&mut drive, &mut group, &up, 1, redirect).is_none());
    assert_eq!(group.take_told(), ["another leads"]);
    assert!(attempt(&mut drive, &mut group, &up, 2, Err(Unanswered::Lost)).is_none());
    assert_eq!(group.take_told(), ["lost"]);
    let applied = outcome(&Ok(Reply::Compacted { revision: Revision(9) }));
    let answer = attempt(&mut drive, &mut group, &up, 2, applied).unwrap().unwrap();
    assert_eq!((answer.term, answer.reply.revision()), (4, Revision(9)));
    drive.end(&mut group);
    drive.end(&mut group);
    assert_eq!(group.take_told(), ["1 freed"], "once");
}

#[test]
fn a_session_that_is_lost_is_told_of_and_a_number_of_the_next_is_waited_for() {
    let now = any_instant();
    let mut group = Group::new();
    let mut drive = write(Deadline::Gateway(now));
    let expired = outcome(&Err(Error::SessionExpired));
    assert!(attempt(&mut drive, &mut group, &Up(&[1]), 1, expired).is_none());
    assert_eq!(group.take_told(), ["the session is lost"]);
    let mut poll = |group: &mut Group| drive.poll(|| now, || &mut group.state, &Up(&[1]));
    assert!(matches!(poll(&mut group), DriveStep::AwaitNews { bounded: true }));
    assert!(matches!(poll(&mut group), DriveStep::AwaitNews { bounded: false }), "it waits already");
    group.state.session.handle_opened(SessionId(8));
    while group.state.session.take().is_ok() {}
    assert!(group.state.session.is_full());
    assert!(matches!(poll(&mut group), DriveStep::AwaitNumber));
    group.state.session.handle_expired(SessionId(8));
    assert!(matches!(poll(&mut group), DriveStep::AwaitNews { bounded: true }), "it begins anew");
    assert_eq!(drive.due(), now);
}

#[test]
fn an_overloaded_node_is_left_alone_for_a_while_and_the_number_for_others() {
    let start = any_instant();
    let mut group = Group::new();
    let mut drive = write(Deadline::Gateway(start + Duration::from_secs(7)));
    let step = drive.poll(|| start, || &mut group.state, &Up(&[1]));
    let DriveStep::Send(Sending { bytes, .. }) = step else { panic!("it goes nowhere") };
    let overloaded = refused(wire::refused::Why::Overloaded, 0);
    let overloaded = sort(drive.ask(), overloaded);
    assert!(drive.handle(|| start, overloaded, &mut group, || u32::MAX).is_none());
    assert_eq!(group.take_told(), ["1 freed"]);
    let due = start + Duration::from_millis(5);
    assert_eq!(drive.due(), due);
    let step = drive.poll(|| start, || &mut group.state, &Up(&[1]));
    let DriveStep::Pause { until, pause: Pause::Ease { bounded: true, .. }, bytes: waits } = step else {
        panic!("{step:?}")
    };
    assert_eq!((until, waits), (due, bytes));
    assert!(matches!(drive.poll(|| due, || &mut group.state, &Up(&[1])), DriveStep::Send(_)));
    assert!(drive.handle(|| due, Attempted::Unsent(Unsent::Down), &mut group, || 0).is_none());
    assert_eq!(drive.phase(), Phase::Ready);
}

#[test]
fn a_read_of_the_nearest_says_how_that_answered_and_whose_deadline_has_passed() {
    let now = any_instant();
    let mut group = Group::new();
    let read = || Read { query: Bytes::new(), serializable: Some(Revision(0)) };
    let new = |deadline| Drive::new(Request::read(ReadAt::Nearest), read(), deadline);
    let mut drive = new(Deadline::Client(now));
    assert!(attempt(&mut drive, &mut group, &Up(&[2, 1]), 2, Err(Unanswered::Lost)).is_none());
    assert_eq!(group.take_told(), ["how 2 answered", "lost"]);
    assert_eq!((drive.deadline(), drive.deadline_passed()), (now, Failure::DeadlineExceeded));
    assert_eq!(new(Deadline::Gateway(now)).deadline_passed(), Failure::TimedOut);
    assert!(drive.leaves_the_silent());
    drop(drive);
    let why = Why::NotLeader;
    let refusal = Attempted::<()>::Refused(crate::attempt::Refused { why, term: 4, leader: Some(NodeId(2)) });
    assert!(learn(&mut group, NodeId(1), None, &refusal).leader_found);
}
