//! What a node's silence means: the one place that says after how long others are asked, the node is asked for a sign of
//! life, and given up.

use std::time::{Duration, Instant};

/// A node that says nothing for so long, and for three round trips, is not waited for where another would do.
const SILENT_AFTER: Duration = Duration::from_millis(400);
/// A node that owes an answer and is silent for this long is asked for a sign of life.
const PING_AFTER: Duration = Duration::from_millis(750);
/// The same where nothing is owed but watches are open: silence may mean that nothing happens, or that the node is gone.
const PING_WATCHES_AFTER: Duration = Duration::from_secs(1);
/// The same for an idle connection.
const PING_IDLE_AFTER: Duration = Duration::from_secs(10);
/// A round trip is measured by a ping this often at least, whatever else is said.
const PING_EVERY: Duration = Duration::from_secs(5);
/// A node that did not answer a ping for this long, and said nothing else, is given up.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

const _: () = assert!(
    SILENT_AFTER.as_millis() < PING_AFTER.as_millis() && PING_AFTER.as_millis() < PING_TIMEOUT.as_millis(),
    "others are asked first, then the node, and then it is given up"
);

/// How long a node that far away may say nothing before others are asked.
pub fn patience(round_trip: Duration) -> Duration {
    SILENT_AFTER.max(round_trip * 3)
}

/// What is expected of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// An answer.
    Answer,
    /// Events, if there are any.
    Events,
    /// Nothing.
    Nothing,
}

/// What to do about a node's silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Nothing.
    Wait,
    /// Ask it for a sign of life.
    Ping,
    /// Give it up.
    GiveUp,
}

/// Whether the node at the other end of a connection lives, and how far it is.
#[derive(Debug, Default)]
pub struct Health {
    /// The ping on its way, since when.
    ping: Option<Instant>,
    /// When the last one left.
    measured: Option<Instant>,
}

impl Health {
    /// What to do about a node that has said nothing for so long.
    pub fn check(&mut self, now: Instant, silent_for: Duration, expected: Expected) -> Check {
        debug_assert!(self.ping.is_none() || self.measured.is_some(), "who was asked is measured");
        if let Some(since) = self.ping {
            let is_lost = now.saturating_duration_since(since) > PING_TIMEOUT && silent_for > PING_TIMEOUT;
            return if is_lost { Check::GiveUp } else { Check::Wait };
        }
        let ping_after = match expected {
            Expected::Answer => PING_AFTER,
            Expected::Events => PING_WATCHES_AFTER,
            Expected::Nothing => PING_IDLE_AFTER,
        };
        let is_due = |measured: Instant| now.saturating_duration_since(measured) >= PING_EVERY;
        if silent_for <= ping_after && !self.measured.is_none_or(is_due) {
            return Check::Wait;
        }
        self.ping = Some(now);
        self.measured = Some(now);
        Check::Ping
    }

    /// The ping was answered. How long that took.
    pub fn handle_answered(&mut self, now: Instant) -> Option<Duration> {
        self.ping.take().map(|since| now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::any_instant;

    const TICK: Duration = Duration::from_millis(250);

    /// What is done about a node that was heard at the beginning, and when.
    fn silence(health: &mut Health, expected: Expected) -> Vec<(u128, Check)> {
        let start = any_instant();
        health.ping = None;
        health.measured = Some(start);
        let checks = (0..60).map(|ticks| TICK * ticks);
        let checks = checks.map(|at| (at.as_millis(), health.check(start + at, at, expected)));
        let mut done: Vec<_> = checks.filter(|(_, check)| *check != Check::Wait).collect();
        done.truncate(2);
        done
    }

    #[test]
    fn a_silent_node_is_asked_for_a_sign_of_life_and_given_up() {
        let mut health = Health::default();
        let mut check = |expected, pinged: u128| {
            assert_eq!(
                silence(&mut health, expected),
                [(pinged, Check::Ping), (pinged + 2250, Check::GiveUp)]
            );
        };
        check(Expected::Answer, 1000);
        check(Expected::Events, 1250);
        check(Expected::Nothing, 5000);
    }

    #[test]
    fn a_node_that_says_anything_is_not_given_up_for_the_ping() {
        let mut health = Health::default();
        let now = any_instant();
        assert_eq!(health.check(now, Duration::ZERO, Expected::Nothing), Check::Ping, "the first measures");
        let later = now + PING_TIMEOUT * 2;
        assert_eq!(health.check(later, TICK, Expected::Answer), Check::Wait, "a large frame is on its way");
        assert_eq!(health.handle_answered(later), Some(PING_TIMEOUT * 2));
        assert_eq!(health.handle_answered(later), None, "there was one");
        assert_eq!(health.check(later, TICK, Expected::Answer), Check::Wait);
        assert_eq!(health.check(now + PING_EVERY, TICK, Expected::Answer), Check::Ping);
    }

    #[test]
    fn a_far_node_has_more_patience() {
        assert_eq!(patience(Duration::from_millis(1)), SILENT_AFTER);
        assert_eq!(patience(Duration::from_millis(200)), Duration::from_millis(600));
    }
}
