//! What is known of a name: where it led when it was asked for last, how long that holds, and when it is worth asking again.
//!
//! Pure: the time comes in. The rules are few.
//! - An answer holds for its time to live.
//! - Whoever could reach nobody at the addresses doubts the answer, and may have it asked for before its time: at once, and
//!   with pauses that double as long as nothing new comes of it.
//! - No answer is worse than an old one: after a failure what was known stays, and the next question waits for a pause that
//!   doubles as well.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two questions that are asked before their time, at first and at most. Also the least that an answer holds.
pub(crate) const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// Whether what is known has proved right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Nothing speaks against it.
    Trusted,
    /// Nobody was reached there.
    Doubted,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// None before the first answer. In the order in which to try them.
    addresses: Option<Arc<[SocketAddr]>>,
    /// How the last question ended, and when.
    last: Option<Last>,
    /// When they were told last.
    answered: Option<Instant>,
    pause: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    asked: Instant,
    /// Until when the answer holds; none if there was none.
    expires: Option<Instant>,
}

/// What an answer changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// Other addresses than before.
    pub(crate) moved: bool,
    /// The name could not be resolved before, and that was told.
    pub(crate) recovered: bool,
}

impl Known {
    /// Where it leads, as far as is known.
    pub(crate) fn addresses(&self) -> Arc<[SocketAddr]> {
        self.addresses.clone().unwrap_or_default()
    }

    /// When to ask next; `None` for at once.
    pub(crate) fn due(&self, trust: Trust) -> Option<Instant> {
        let last = self.last?;
        let early = last.asked + self.pause;
        match (last.expires, trust) {
            (None, _) => Some(early),
            (Some(expires), Trust::Trusted) => Some(expires),
            (Some(expires), Trust::Doubted) => Some(expires.min(early)),
        }
    }

    /// Whether to ask at `now`.
    pub(crate) fn is_due(&self, now: Instant, trust: Trust) -> bool {
        self.due(trust).is_none_or(|due| due <= now)
    }

    /// A question was answered. `addresses` is not empty.
    pub(crate) fn handle_answer(
        &mut self,
        now: Instant,
        addresses: Vec<SocketAddr>,
        ttl: Duration,
    ) -> Change {
        let recovered = self.is_failing();
        let moved = self.addresses.as_ref().is_none_or(|known| !same(known, &addresses));
        let early = self.last.and_then(|last| last.expires).is_some_and(|expires| now < expires);
        self.pause = if early && !moved { self.next_pause() } else { PAUSE_MIN };
        self.addresses = Some(addresses.into());
        self.answered = Some(now);
        self.last = Some(Last { asked: now, expires: Some(now + ttl.max(PAUSE_MIN)) });
        Change { moved, recovered }
    }

    /// A question was not answered, or by nothing. Returns whether to tell: once for a row of failures.
    pub(crate) fn handle_failure(&mut self, now: Instant) -> bool {
        let first = !self.is_failing();
        self.pause = if first { PAUSE_MIN } else { self.next_pause() };
        self.last = Some(Last { asked: now, expires: None });
        first
    }

    /// How old the addresses are that are used since a question for newer ones has failed.
    pub(crate) fn stale(&self, now: Instant) -> Option<Duration> {
        let answered = self.answered.filter(|_| self.is_failing())?;
        Some(now.saturating_duration_since(answered))
    }

    fn is_failing(&self) -> bool {
        self.last.is_some_and(|last| last.expires.is_none())
    }

    fn next_pause(&self) -> Duration {
        (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX)
    }
}

/// Whatever their order: servers turn it, and ours for services is drawn.
fn same(one: &[SocketAddr], other: &[SocketAddr]) -> bool {
    one.iter().all(|address| other.contains(address)) && other.iter().all(|address| one.contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, last], 1))
    }

    #[test]
    fn an_answer_holds_for_its_time() {
        let (mut known, start) = (Known::default(), Instant::now());
        assert!(known.is_due(start, Trust::Trusted));
        let change = known.handle_answer(start, vec![address(1)], MINUTE);
        assert_eq!(change, Change { moved: true, recovered: false });
        assert_eq!(known.due(Trust::Trusted), Some(start + MINUTE));
        assert!(
            !known.is_due(start + MINUTE / 2, Trust::Trusted) && known.is_due(start + MINUTE, Trust::Trusted)
        );

        let later = start + MINUTE;
        let change = known.handle_answer(later, vec![address(2), address(1)], MINUTE);
        assert!(change.moved);
        let change = known.handle_answer(later + MINUTE, vec![address(1), address(2)], Duration::ZERO);
        assert!(!change.moved, "the same in another order");
        let due = known.due(Trust::Trusted).unwrap();
        assert_eq!(due, later + MINUTE + PAUSE_MIN, "a time to live of nothing is no loop");
    }

    #[test]
    fn a_doubted_answer_is_asked_for_early_and_ever_more_rarely_while_it_stays_the_same() {
        let (mut known, start) = (Known::default(), Instant::now());
        known.handle_answer(start, vec![address(1)], MINUTE);
        let mut now = start;
        for seconds in [1, 2, 4, 8, 15, 15] {
            let due = known.due(Trust::Doubted).unwrap();
            assert_eq!(due, now + Duration::from_secs(seconds));
            now = due;
            known.handle_answer(now, vec![address(1)], MINUTE);
        }
        known.handle_answer(now, vec![address(2)], MINUTE);
        assert_eq!(known.due(Trust::Doubted), Some(now + PAUSE_MIN), "news is followed closely");
        let short = Duration::from_secs(3);
        for _ in 0..5 {
            now = known.due(Trust::Doubted).unwrap();
            known.handle_answer(now, vec![address(2)], short);
        }
        assert_eq!(known.due(Trust::Doubted), Some(now + short), "never later than it is due anyway");
    }

    #[test]
    fn what_was_known_outlives_failures_which_are_told_once() {
        let (mut known, start) = (Known::default(), Instant::now());
        assert!(known.handle_failure(start));
        assert!(known.addresses().is_empty());
        let mut now = start;
        for seconds in [1, 2, 4, 8, 15, 15] {
            for trust in [Trust::Trusted, Trust::Doubted] {
                assert_eq!(known.due(trust), Some(now + Duration::from_secs(seconds)));
            }
            now = known.due(Trust::Trusted).unwrap();
            assert!(!known.handle_failure(now), "told already");
        }
        assert_eq!(known.stale(now), None, "nothing old is used");
        let change = known.handle_answer(now, vec![address(1)], MINUTE);
        assert_eq!(change, Change { moved: true, recovered: true });
        assert_eq!(known.stale(now + MINUTE), None);
        assert!(known.handle_failure(now + MINUTE), "the next outage is told again");
        assert_eq!(known.stale(now + MINUTE * 2), Some(MINUTE * 2));
        assert_eq!(known.addresses().as_ref(), [address(1)]);
        let change = known.handle_answer(now + MINUTE * 2, vec![address(1)], MINUTE);
        assert_eq!(change, Change { moved: false, recovered: true });
    }
}
