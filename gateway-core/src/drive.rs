//! A request on its way, from one attempt to the next. [`Request`] decides; this keeps the order of the steps, and who is to
//! be told of what. Whoever drives it has the links, the clock, and those who wait.
//!
//! ```text
//!   Ready ── poll: Send ──▶ Sent ── answered, lost, not sent ──▶ over
//!     ▲  ╲                    └──▶ Paused ──┐         or Ready
//!     │   ╲─ poll: AwaitNews, AwaitNumber   │
//!     └── news, a number, the pause is over ┘
//! ```
//! Whoever drives asks [`Drive::poll`] what to do and does it; until [`Drive::handle`] gives the result, or the deadline has
//! passed.

use std::ops::DerefMut;
use std::time::Instant;

use api::gaios::link::v1::request;

use crate::attempt::Attempted;
use crate::failure::Failure;
use crate::group::{GroupState, Learned};
use crate::link::Ask;
use crate::request::{Attempt, Numbered, Pause, Reach, Request, Step, Verdict};
use crate::route::NodeId;
use crate::session::Number;

/// When a request has to be answered, and by whose wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// Its client's.
    Client(Instant),
    /// The gateway's own limit.
    Gateway(Instant),
}

impl Deadline {
    /// When it is.
    pub fn at(self) -> Instant {
        match self {
            Deadline::Client(at) | Deadline::Gateway(at) => at,
        }
    }

    /// What the caller of a request is told when it has passed.
    pub fn passed(self, request: &Request) -> Failure {
        match self {
            Deadline::Client(_) => request.deadline_exceeded(),
            Deadline::Gateway(_) => request.timed_out(),
        }
    }
}

/// A group, as whoever sends it requests has it: what is known, and who waits.
pub trait Shell {
    /// What is known.
    fn state(&mut self) -> impl DerefMut<Target = GroupState>;

    /// The guess who leads is another one: whoever waits for news looks again.
    fn announce(&mut self);

    /// The session is gone: another has to be opened, and whoever waits for a number looks again.
    fn handle_session_lost(&mut self);

    /// So many numbers can be had that could not before.
    fn handle_freed(&mut self, numbers: u64);

    /// Something came of an attempt.
    fn count<T>(&mut self, attempted: &Attempted<T>);

    /// How a replica answered that was asked for being the nearest: it says whether it is fit.
    fn judge<T>(&mut self, node: NodeId, attempted: &Attempted<T>);
}

/// Takes in what an attempt at `node`, under `number` if it was a write, says of the group, and tells whom it concerns.
pub fn learn<T>(
    shell: &mut impl Shell,
    node: NodeId,
    number: Option<Number>,
    attempted: &Attempted<T>,
) -> Learned {
    shell.count(attempted);
    if !attempted.teaches() {
        return Learned::default();
    }
    let learned = shell.state().handle_attempted(node, number, attempted);
    if learned.session_lost {
        shell.handle_session_lost();
    }
    assert!(learned.route_changed || !learned.leader_found, "a leader that is found is news");
    if learned.route_changed {
        shell.announce();
    }
    learned
}

/// The caller of `number` was answered, or waits without it, or went away.
fn done(shell: &mut impl Shell, number: Number) {
    let freed = shell.state().session.done(number);
    if freed > 0 {
        shell.handle_freed(freed);
    }
}

/// See the module.
#[derive(Debug)]
pub struct Drive<A> {
    request: Request,
    ask: A,
    deadline: Deadline,
    phase: Phase,
}

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Somebody has to look at it.
    Ready,
    /// For a leader, its link or a session.
    AwaitsNews,
    /// For a number of the session.
    AwaitsNumber,
    /// At a node, or on its way.
    Sent {
        /// Which.
        node: NodeId,
        /// Under which number, if it is a write.
        number: Option<Number>,
        /// How large it is.
        bytes: usize,
    },
    /// Until it is tried again.
    Paused {
        /// Till when.
        until: Instant,
        /// Why.
        pause: Pause,
        /// How large it is.
        bytes: usize,
    },
}

/// What to do next.
#[derive(Debug)]
pub enum DriveStep<L> {
    /// Send this, and tell [`Drive::handle`] what came of it.
    Send(Sending<L>),
    /// Wait until something about the leader, the links or the session has changed.
    AwaitNews {
        /// It begins to: only so many may, and it may be refused instead.
        bounded: bool,
    },
    /// Wait until a number of the session becomes free.
    AwaitNumber,
    /// Wait until then.
    Pause {
        /// Till when.
        until: Instant,
        /// Why. Of one that is bounded, only so much may wait, and it may be refused instead.
        pause: Pause,
        /// So much waits.
        bytes: usize,
    },
    /// Wait for the answer.
    AwaitAnswer,
}

/// What is to be sent.
#[derive(Debug)]
pub struct Sending<L> {
    /// To this node.
    pub node: NodeId,
    /// Over this link.
    pub link: L,
    /// What.
    pub kind: request::Kind,
    /// How many bytes its variable part has.
    pub bytes: usize,
    /// Under this number, if it is a write.
    pub numbered: Option<Numbered>,
}

impl<A: Ask> Drive<A> {
    /// Not sent yet.
    pub fn new(request: Request, ask: A, deadline: Deadline) -> Drive<A> {
        Drive { request, ask, deadline, phase: Phase::Ready }
    }

    /// What is asked.
    pub fn ask(&self) -> &A {
        &self.ask
    }

    /// Where it is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// When it has to be looked at, whatever happens.
    pub fn due(&self) -> Instant {
        let deadline = self.deadline.at();
        match self.phase {
            Phase::Paused { until, .. } => until.min(deadline),
            Phase::Ready | Phase::AwaitsNews | Phase::AwaitsNumber | Phase::Sent { .. } => deadline,
        }
    }

    /// What to do next. The time and the state of the group are asked for only if they matter.
    pub fn poll<R: Reach, G: DerefMut<Target = GroupState>>(
        &mut self,
        now: impl FnOnce() -> Instant,
        group: impl FnOnce() -> G,
        reach: &R,
    ) -> DriveStep<R::Link> {
        match self.phase {
            Phase::Sent { .. } => return DriveStep::AwaitAnswer,
            Phase::Paused { until, pause, bytes } if now() < until => {
                return DriveStep::Pause { until, pause, bytes };
            }
            Phase::Ready | Phase::AwaitsNews | Phase::AwaitsNumber | Phase::Paused { .. } => {}
        }
        match self.request.poll(group, reach) {
            Step::Send(Attempt { node, link, numbered }) => {
                let (kind, bytes) = self.ask.request(numbered);
                let number = numbered.map(|numbered| numbered.number);
                self.phase = Phase::Sent { node, number, bytes };
                DriveStep::Send(Sending { node, link, kind, bytes, numbered })
            }
            Step::AwaitNews { bounded } => {
                let begins = self.phase != Phase::AwaitsNews;
                self.phase = Phase::AwaitsNews;
                DriveStep::AwaitNews { bounded: bounded && begins }
            }
            Step::AwaitNumber => {
                self.phase = Phase::AwaitsNumber;
                DriveStep::AwaitNumber
            }
        }
    }

    /// This came of what was sent. Returns what the caller is told, unless it is to be tried again. The time and a random
    /// number are asked for only if they matter.
    pub fn handle(
        &mut self,
        now: impl FnOnce() -> Instant,
        attempted: Attempted<A::Answer>,
        shell: &mut impl Shell,
        random: impl FnOnce() -> u32,
    ) -> Option<Result<A::Answer, Failure>> {
        let Phase::Sent { node, number, bytes } = self.phase else {
            debug_assert!(false, "an answer to what was not asked: {:?}", self.phase);
            return None;
        };
        if self.leaves_the_silent() {
            shell.judge(node, &attempted);
        }
        let learned = learn(shell, node, number, &attempted);
        self.phase = match self.request.handle(attempted, learned) {
            Verdict::Done(result) => return Some(result),
            Verdict::Retry => Phase::Ready,
            Verdict::RetryAfter { pause, returned } => {
                if let Some(returned) = returned {
                    assert_eq!(number, Some(returned), "what was not taken gives its own number back");
                    done(shell, returned);
                }
                Phase::Paused { until: now() + pause.length(random()), pause, bytes }
            }
        };
        None
    }

    /// When the request has to be answered.
    pub fn deadline(&self) -> Instant {
        self.deadline.at()
    }

    /// What the caller is told when that has passed.
    pub fn deadline_passed(&self) -> Failure {
        self.deadline.passed(&self.request)
    }

    /// A node that falls silent need not be waited for, where another may answer.
    pub fn leaves_the_silent(&self) -> bool {
        self.request.leaves_the_silent()
    }

    /// It is over, or its caller has gone away.
    pub fn end(&mut self, shell: &mut impl Shell) {
        if let Some(number) = self.request.take_number() {
            done(shell, number);
        }
    }
}

#[cfg(test)]
mod tests;
