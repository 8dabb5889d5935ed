//! One request across its attempts: whom to ask, under which number, and what comes after an attempt that failed.
//!
//! A write may be tried again only under its number, or when no earlier attempt can have been applied. Reads may always be
//! tried again. Whatever happens, the caller's deadline ends it.
//!
//! Whoever drives a request asks [`Request::poll`] what to do, does it, and tells [`Request::handle`] what a sent attempt came
//! to, until that says it is done.

use std::ops::DerefMut;
use std::time::Duration;

use keyspace::Error;

use crate::attempt::{Attempted, Refused, Unsent, Why};
use crate::failure::Failure;
use crate::group::{GroupState, Learned};
use crate::mutant::mutant;
use crate::route::NodeId;
use crate::session::{NoNumber, Number};

/// Redirects that are followed at once before a pause: more of them mean that replicas disagree.
const REDIRECTS_MAX: u32 = 3;
/// The longest pause between attempts that lead nowhere.
const MOMENT_MS_MAX: u32 = 40;
/// The longest first pause before a node that is overloaded is asked again; doubles up to the second time.
const EASE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

const _: () = assert!(EASE.0.as_millis() < EASE.1.as_millis(), "pauses grow");

/// Which links are up.
pub trait Reach {
    /// A link to a node.
    type Link;

    /// A link to this node.
    fn to(&self, node: NodeId) -> Option<Self::Link>;

    /// The nearest replica of the group that is fit, and a link to it.
    fn nearest(&self) -> Option<(NodeId, Self::Link)>;
}

/// Who may answer a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadAt {
    /// The leader alone.
    Leader,
    /// Any replica; the nearest that is fit.
    Nearest,
}

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    kind: Kind,
    /// Kept through all attempts, also when its session is gone: only the group can say so.
    number: Option<Number>,
    /// Some attempt that is over may have been applied.
    maybe_applied: bool,
    /// An attempt of a write is under way: what becomes of it is not known.
    is_sent: bool,
    redirects: u32,
    /// How often a node was overloaded.
    overloads: u32,
    cause: Cause,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It is applied once per number.
    Write,
    /// It may be sent any number of times.
    Read(ReadAt),
    /// The same; any replica may answer, the leader at best, and no failure of one says anything about the next.
    Inquiry,
}

/// Why the last attempt failed, for the text of a timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Slow,
    NoLeader,
    LinkLost,
    Overloaded,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<L> {
    /// Send it, and tell [`Request::handle`] what came of it.
    Send(Attempt<L>),
    /// Wait until something about the leader, the links or the session has changed. `bounded`: only so many may.
    AwaitNews {
        /// The request may be refused instead.
        bounded: bool,
    },
    /// Wait until a number of the session becomes free.
    AwaitNumber,
}

/// An attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt<L> {
    /// At this node.
    pub node: NodeId,
    /// Over this link.
    pub link: L,
    /// Under this number, if it is a write.
    pub numbered: Option<Numbered>,
}

/// A write's number, and what it tells the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbered {
    /// The number.
    pub number: Number,
    /// Every number of the session up to this one is done.
    pub ack_upto: u64,
}

/// What an attempt that is over leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict<T> {
    /// Tell the caller.
    Done(Result<T, Failure>),
    /// Go on with [`Request::poll`].
    Retry,
    /// Go on with [`Request::poll`] after a pause.
    RetryAfter {
        /// How long.
        pause: Pause,
        /// Others need not wait for this number meanwhile.
        returned: Option<Number>,
    },
}

/// A pause before another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// Some milliseconds.
    Moment,
    /// A node that is overloaded is left alone. `bounded`: only so much may wait like this.
    Ease {
        /// At most for so long.
        most: Duration,
        /// The request may be refused instead.
        bounded: bool,
    },
}

impl Pause {
    /// How long it is, by a random number.
    pub fn length(self, random: u32) -> Duration {
        match self {
            Pause::Moment => Duration::from_millis(u64::from(random % MOMENT_MS_MAX) + 1),
            Pause::Ease { most, bounded: _ } => most.mul_f64(f64::from(random) / f64::from(u32::MAX)),
        }
    }
}

impl Request {
    /// A write.
    pub fn write() -> Request {
        Request::new(Kind::Write)
    }

    /// What may be sent any number of times.
    pub fn read(at: ReadAt) -> Request {
        Request::new(Kind::Read(at))
    }

    /// What any replica may answer, the leader at best: asked until one does.
    pub fn inquiry() -> Request {
        Request::new(Kind::Inquiry)
    }

    fn new(kind: Kind) -> Request {
        Request {
            kind,
            number: None,
            maybe_applied: false,
            is_sent: false,
            redirects: 0,
            overloads: 0,
            cause: Cause::Slow,
        }
    }

    /// What to do next. The state of the group is asked for only if it matters.
    pub fn poll<R: Reach, G: DerefMut<Target = GroupState>>(
        &mut self,
        group: impl FnOnce() -> G,
        reach: &R,
    ) -> Step<R::Link> {
        let leader = |group: G| {
            let leader = group.route.leader();
            // What holds the group's state is let go before the links are looked at.
            drop(group);
            leader.and_then(|leader| Some((leader.node, reach.to(leader.node)?)))
        };
        let found = match self.kind {
            Kind::Write => return self.poll_write(&mut group(), reach),
            Kind::Read(ReadAt::Leader) => leader(group()),
            Kind::Read(ReadAt::Nearest) => reach.nearest(),
            Kind::Inquiry => leader(group()).or_else(|| reach.nearest()),
        };
        match found {
            Some((node, link)) => Step::Send(Attempt { node, link, numbered: None }),
            None => Step::AwaitNews { bounded: true },
        }
    }

    fn poll_write<R: Reach>(&mut self, group: &mut GroupState, reach: &R) -> Step<R::Link> {
        debug_assert!(!self.is_sent, "one attempt at a time");
        // One that may have been applied always finds room to wait.
        let wait = Step::AwaitNews { bounded: !self.maybe_applied };
        let Some(leader) = group.route.leader() else { return wait };
        let Some(link) = reach.to(leader.node) else { return wait };
        let number = match self.number {
            Some(number) => number,
            None => match group.session.take() {
                Ok(number) => *self.number.insert(number),
                Err(NoNumber::Closed) => return wait,
                Err(NoNumber::Full) => return Step::AwaitNumber,
            },
        };
        self.is_sent = true;
        let ack_upto = group.session.ack_upto(number);
        debug_assert!(ack_upto < number.seq, "a number that is held is not done");
        Step::Send(Attempt { node: leader.node, link, numbered: Some(Numbered { number, ack_upto }) })
    }

    /// The attempt that was sent is over. `learned`: what the group's state learned from it.
    pub fn handle<T>(&mut self, attempted: Attempted<T>, learned: Learned) -> Verdict<T> {
        self.is_sent = false;
        match attempted {
            Attempted::Answer(answer) => Verdict::Done(Ok(answer)),
            _ if self.kind == Kind::Inquiry => self.pause(),
            Attempted::Denied(error) => self.handle_denied(error),
            Attempted::Refused(refused) => self.handle_refused(refused, learned),
            Attempted::Lost => {
                if mutant!(RetryUnderNewNumber) {
                    self.number = None;
                }
                self.maybe_applied |= !mutant!(LostAsNeverApplied);
                self.cause = Cause::LinkLost;
                self.retry()
            }
            Attempted::Unsent(Unsent::Down) => {
                self.cause = Cause::LinkLost;
                self.retry()
            }
            Attempted::Unsent(Unsent::Full) => self.ease(),
            Attempted::Protocol(text) => Verdict::Done(Err(Failure::Internal(text))),
        }
    }

    fn handle_refused<T>(&mut self, refused: Refused, learned: Learned) -> Verdict<T> {
        match refused.why {
            Why::NotLeader | Why::NoGroup | Why::Stopping => self.elsewhere(learned),
            Why::OutcomeUnknown => {
                self.maybe_applied |= !mutant!(UnknownAsNeverApplied);
                self.elsewhere(learned)
            }
            Why::Overloaded => self.ease(),
            Why::NoDisk => self.give_up(Failure::NoDisk),
            Why::AnswerTooLarge => self.give_up(Failure::AnswerTooLarge),
            // That it was refused must not be said of a write.
            Why::NoRoom if self.kind == Kind::Write => self.give_up(Failure::AnswerTooLarge),
            Why::NoRoom => self.give_up(Failure::Overloaded),
            Why::WrongShard => self.give_up(Failure::WrongShard),
            Why::Malformed | Why::Unknown => {
                self.give_up(Failure::Internal("a node could not read the request"))
            }
        }
    }

    /// The state machine's word is final, but for what it says of a write's number.
    fn handle_denied<T>(&mut self, error: Error) -> Verdict<T> {
        debug_assert!(self.kind == Kind::Write || self.number.is_none(), "only writes are numbered");
        let refused = Verdict::Done(Err(Failure::Refused(error)));
        if self.kind != Kind::Write {
            return refused;
        }
        match error {
            // The session of this attempt is gone, so the attempt itself was not applied; an earlier one may have been.
            Error::SessionExpired if self.maybe_applied => Verdict::Done(Err(self.timed_out())),
            Error::SessionExpired => {
                self.number = None;
                Verdict::Retry
            }
            // The number was given up: by this caller alone, so it was an older attempt's result.
            Error::ResultForgotten => {
                self.maybe_applied = true;
                Verdict::Done(Err(self.timed_out()))
            }
            // Nothing is kept of it under its number.
            Error::SessionWindowExceeded | Error::RevisionPassed | Error::WrongShard => self.pause(),
            Error::EmptyKey
            | Error::KeyNotFound
            | Error::ValueProvided
            | Error::LeaseProvided
            | Error::TooManyOps
            | Error::DuplicateKey
            | Error::InvalidSortOption
            | Error::Compacted
            | Error::FutureRevision
            | Error::NoSpace
            | Error::LeaseNotFound
            | Error::LeaseExists
            | Error::LeaseTtlTooLarge
            | Error::Corrupt
            | Error::NotReadOnly
            | Error::AnswerTooLarge => refused,
        }
    }

    /// What the caller is told when its deadline has passed.
    pub fn timed_out(&self) -> Failure {
        match self.cause {
            Cause::Slow => Failure::TimedOut,
            Cause::NoLeader => Failure::TimedOutLeaderFailed,
            Cause::LinkLost => Failure::TimedOutConnectionLost,
            Cause::Overloaded if self.maybe_applied || self.is_sent => Failure::TimedOut,
            Cause::Overloaded => Failure::Overloaded,
        }
    }

    /// What the caller is told when a deadline has passed that it set itself.
    pub fn deadline_exceeded(&self) -> Failure {
        match self.kind {
            // As etcd says it of what it has proposed.
            Kind::Write => self.timed_out(),
            Kind::Read(_) | Kind::Inquiry => Failure::DeadlineExceeded,
        }
    }

    /// The number that is held, to be told done: once the request is over, or its caller has gone away.
    pub fn take_number(&mut self) -> Option<Number> {
        self.number.take()
    }

    /// Whether any replica may answer.
    pub fn asks_any(&self) -> bool {
        match self.kind {
            Kind::Read(ReadAt::Nearest) | Kind::Inquiry => true,
            Kind::Write | Kind::Read(ReadAt::Leader) => false,
        }
    }

    /// A node that falls silent need not be waited for, where another may answer.
    pub fn leaves_the_silent(&self) -> bool {
        self.kind == Kind::Read(ReadAt::Nearest)
    }

    /// A definite refusal is only definite if nothing was applied by an earlier attempt.
    fn give_up<T>(&mut self, failure: Failure) -> Verdict<T> {
        if self.kind == Kind::Write && self.maybe_applied && !mutant!(GivenUpThoughPerhapsApplied) {
            self.pause()
        } else {
            Verdict::Done(Err(failure))
        }
    }

    fn elsewhere<T>(&mut self, learned: Learned) -> Verdict<T> {
        self.cause = Cause::NoLeader;
        self.redirects += 1;
        if self.redirects.is_multiple_of(REDIRECTS_MAX) {
            self.pause()
        } else if learned.leader_found {
            Verdict::Retry
        } else {
            self.retry()
        }
    }

    /// At once, if there is somebody to ask: waiting is for [`Request::poll`] to decide. Where another replica may do, the
    /// next one is asked a little later: there is always one.
    fn retry<T>(&self) -> Verdict<T> {
        match self.kind {
            Kind::Read(ReadAt::Nearest) => self.pause(),
            Kind::Write | Kind::Read(ReadAt::Leader) | Kind::Inquiry => Verdict::Retry,
        }
    }

    fn pause<T>(&self) -> Verdict<T> {
        Verdict::RetryAfter { pause: Pause::Moment, returned: None }
    }

    fn ease<T>(&mut self) -> Verdict<T> {
        let doubled = EASE.0.saturating_mul(1_u32.checked_shl(self.overloads).unwrap_or(u32::MAX));
        self.overloads += 1;
        self.cause = Cause::Overloaded;
        let returned = if self.maybe_applied { None } else { self.number.take() };
        assert!(!(self.maybe_applied && returned.is_some()), "what may have been applied keeps its number");
        let pause = Pause::Ease { most: doubled.min(EASE.1), bounded: !self.maybe_applied };
        Verdict::RetryAfter { pause, returned }
    }
}

#[cfg(test)]
mod tests;
