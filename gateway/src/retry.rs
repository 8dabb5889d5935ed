//! What to do after an attempt of a request failed: a pure decision per request.
//!
//! A write may be tried again only under its number, or when no earlier attempt can have been applied. Reads may
//! always be tried again. Whatever happens, the caller's deadline ends it.

use std::time::Duration;

use api::gaios::link::v1::refused::Why;

use crate::errors::Failure;

/// Redirects that are followed at once before a pause: more of them mean that replicas disagree.
const REDIRECTS_MAX: u32 = 3;

/// The longest first pause before a node that is overloaded is asked again; doubles up to the second time.
const EASE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

/// Whether a request changes anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It may be sent any number of times.
    Read,
    /// It is applied once per number.
    Write,
}

/// The life of one request across its attempts.
#[derive(Clone, Copy, Debug)]
pub struct Attempts {
    kind: Kind,
    /// Some attempt may have been applied.
    maybe_applied: bool,
    redirects: u32,
    /// How often a node was overloaded.
    overloads: u32,
    /// An attempt is under way: what becomes of it is not known.
    sent: bool,
    cause: Cause,
}

/// Why the last attempt failed, for the text of a timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Slow,
    NoLeader,
    LinkLost,
    Overloaded,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// Try the best guess at once.
    Again,
    /// Wait until a leader, its link, and the session are there (at once, if they are), then try again.
    Wait,
    /// Pause for some milliseconds, then as `Wait`.
    Pause,
    /// Pause for [`Attempts::ease`], then as `Wait`.
    Ease,
    /// Take a new number of a new session, then as `Wait`.
    Renumber,
    /// Tell the caller.
    Give(Failure),
}

impl Attempts {
    /// Nothing tried yet.
    pub fn new(kind: Kind) -> Attempts {
        Attempts { kind, maybe_applied: false, redirects: 0, overloads: 0, sent: false, cause: Cause::Slow }
    }

    /// An attempt has been handed to a link.
    pub fn handle_sent(&mut self) {
        self.sent = true;
    }

    /// The node refused.
    pub fn handle_refused(&mut self, why: Why, guess_changed: bool) -> Next {
        self.sent = false;
        match why {
            Why::NotLeader | Why::NoGroup | Why::Stopping => self.elsewhere(guess_changed),
            Why::OutcomeUnknown => {
                self.maybe_applied = true;
                self.elsewhere(guess_changed)
            }
            Why::Overloaded => {
                self.overloads += 1;
                self.cause = Cause::Overloaded;
                Next::Ease
            }
            Why::NoDisk => self.give(Failure::NoDisk),
            Why::AnswerTooLarge => self.give(Failure::AnswerTooLarge),
            Why::Malformed | Why::Unspecified => {
                self.give(Failure::Internal("a node could not read the request"))
            }
        }
    }

    /// The link broke before an answer came.
    pub fn handle_lost(&mut self) -> Next {
        self.sent = false;
        self.maybe_applied = true;
        self.cause = Cause::LinkLost;
        Next::Wait
    }

    /// The link was down before the request was handed to it.
    pub fn handle_unsent(&mut self) -> Next {
        self.cause = Cause::LinkLost;
        Next::Wait
    }

    /// The session of this attempt is gone, so the attempt itself was not applied.
    pub fn handle_session_expired(&mut self) -> Next {
        self.sent = false;
        if self.maybe_applied { Next::Give(self.timed_out()) } else { Next::Renumber }
    }

    /// The deadline passed.
    pub fn timed_out(&self) -> Failure {
        match self.cause {
            Cause::Slow => Failure::TimedOut,
            Cause::NoLeader => Failure::TimedOutLeaderFailed,
            Cause::LinkLost => Failure::TimedOutConnectionLost,
            Cause::Overloaded if self.maybe_applied() => Failure::TimedOut,
            Cause::Overloaded => Failure::Overloaded,
        }
    }

    /// How long an overloaded node is left alone, by a random number: longer each time.
    pub fn ease(&self, random: u32) -> Duration {
        let ceiling =
            EASE.0.saturating_mul(1_u32.checked_shl(self.overloads - 1).unwrap_or(u32::MAX)).min(EASE.1);
        ceiling.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }

    /// Whether some attempt may have been applied: then no refusal is certain.
    pub fn maybe_applied(&self) -> bool {
        self.maybe_applied || self.sent
    }

    /// A definite refusal is only definite if nothing was applied by an earlier attempt.
    fn give(&self, failure: Failure) -> Next {
        match self.kind {
            Kind::Write if self.maybe_applied => Next::Pause,
            Kind::Write | Kind::Read => Next::Give(failure),
        }
    }

    fn elsewhere(&mut self, guess_changed: bool) -> Next {
        self.cause = Cause::NoLeader;
        self.redirects += 1;
        if self.redirects.is_multiple_of(REDIRECTS_MAX) {
            Next::Pause
        } else if guess_changed {
            Next::Again
        } else {
            Next::Wait
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_may_be_applied_is_never_renumbered_or_refused() {
        let mut attempts = Attempts::new(Kind::Write);
        assert_eq!(attempts.handle_refused(Why::OutcomeUnknown, false), Next::Wait);
        assert_eq!(attempts.handle_refused(Why::NoDisk, false), Next::Pause);
        assert_eq!(attempts.handle_session_expired(), Next::Give(Failure::TimedOutLeaderFailed));
        assert_eq!(attempts.handle_refused(Why::Overloaded, false), Next::Ease);
        assert_eq!(attempts.timed_out(), Failure::TimedOut);
    }

    #[test]
    fn a_write_that_was_certainly_not_applied_takes_a_new_number() {
        let mut attempts = Attempts::new(Kind::Write);
        assert_eq!(attempts.handle_refused(Why::NotLeader, true), Next::Again);
        assert_eq!(attempts.handle_session_expired(), Next::Renumber);
        assert_eq!(attempts.handle_refused(Why::NoDisk, false), Next::Give(Failure::NoDisk));
    }

    #[test]
    fn an_overloaded_node_is_asked_again_ever_more_rarely_until_the_deadline() {
        let mut attempts = Attempts::new(Kind::Write);
        let mut pauses = Vec::new();
        for _ in 0..40 {
            assert_eq!(attempts.handle_refused(Why::Overloaded, false), Next::Ease);
            assert_eq!(attempts.ease(0), Duration::ZERO);
            pauses.push(attempts.ease(u32::MAX).as_millis());
        }
        assert_eq!(pauses[..8], [5, 10, 20, 40, 80, 160, 320, 500]);
        assert!(pauses[8..].iter().all(|pause| *pause == 500));
        assert_eq!(attempts.timed_out(), Failure::Overloaded);
        // The deadline may come while the next attempt waits for its answer.
        attempts.handle_sent();
        assert_eq!(attempts.timed_out(), Failure::TimedOut);
        attempts.handle_refused(Why::Overloaded, false);
        assert_eq!(attempts.timed_out(), Failure::Overloaded);
    }

    #[test]
    fn a_lost_link_leaves_the_outcome_open() {
        let mut attempts = Attempts::new(Kind::Write);
        assert_eq!(attempts.handle_lost(), Next::Wait);
        assert_eq!(attempts.handle_session_expired(), Next::Give(Failure::TimedOutConnectionLost));
        let mut unsent = Attempts::new(Kind::Write);
        assert_eq!(unsent.handle_unsent(), Next::Wait);
        assert_eq!(unsent.handle_session_expired(), Next::Renumber);
    }

    #[test]
    fn replicas_that_point_at_each_other_earn_a_pause() {
        let mut attempts = Attempts::new(Kind::Read);
        let mut pauses = 0;
        for _ in 0..9 {
            if attempts.handle_refused(Why::NotLeader, true) == Next::Pause {
                pauses += 1;
            }
        }
        assert_eq!(pauses, 3);
    }

    #[test]
    fn the_text_of_a_timeout_tells_the_cause() {
        let mut attempts = Attempts::new(Kind::Read);
        assert_eq!(attempts.timed_out(), Failure::TimedOut);
        attempts.handle_refused(Why::NotLeader, false);
        assert_eq!(attempts.timed_out(), Failure::TimedOutLeaderFailed);
        attempts.handle_lost();
        assert_eq!(attempts.timed_out(), Failure::TimedOutConnectionLost);
    }
}
