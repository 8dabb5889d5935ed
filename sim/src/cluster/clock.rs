//! True time, and the clocks of nodes, which differ from it.

use consensus_core::Mono;

/// Nanoseconds of true time since the simulation began.
pub(crate) type Time = u64;

pub(crate) const MICRO: Time = 1_000;
pub(crate) const MILLI: Time = 1_000_000;
pub(crate) const SECOND: Time = 1_000_000_000;

/// A node's clock: offset and rate. It counts on while the node is paused (CLOCK_BOOTTIME), and starts anew when the
/// machine does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    offset: u64,
    /// Rate error in parts per million, negative for a slow clock.
    rate_ppm: i64,
}

impl Clock {
    pub(crate) fn new(offset: u64, rate_ppm: i64) -> Clock {
        Clock { offset, rate_ppm }
    }

    /// The machine rebooted at `at`: its clock reads `offset` then.
    pub(crate) fn rebooted(self, at: Time, offset: u64) -> Clock {
        let elapsed = Clock { offset: 0, ..self }.local(at).0;
        // A clock cannot show less than zero; what matters is that it goes backwards across reboots.
        Clock { offset: offset.wrapping_sub(elapsed), ..self }
    }

    pub(crate) fn local(self, at: Time) -> Mono {
        Mono(self.offset.wrapping_add(at).wrapping_add_signed(drift(at, self.rate_ppm)))
    }

    /// The first moment at which the clock shows at least `mono`, not before `from`.
    pub(crate) fn when(self, mono: Mono, from: Time) -> Time {
        let now = self.local(from);
        if mono <= now {
            return from;
        }
        let missing = mono.0 - now.0;
        if missing > 1_000 * SECOND {
            return Time::MAX;
        }
        let mut at = from + missing.wrapping_add_signed(-drift(missing, self.rate_ppm));
        // The first guess is off by the square of the rate error. A step back takes less than the clock's excess, so
        // that it never goes too far, whatever the rate.
        loop {
            let shown = self.local(at);
            if shown < mono {
                at += mono.0 - shown.0;
            } else if at == from || self.local(at - 1) < mono {
                return at;
            } else {
                at -= ((self.local(at - 1).0 - mono.0) / 100 * 99).max(1).min(at - from);
            }
        }
    }
}

/// Fits for 10^15 ns, more than a week.
fn drift(elapsed: u64, rate_ppm: i64) -> i64 {
    i64::try_from(elapsed).unwrap_or(i64::MAX).min(1_000_000_000_000_000) * rate_ppm / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::rng::Rng;

    #[test]
    fn a_deadline_is_due_at_the_first_moment_its_clock_shows_it() {
        let mut rng = Rng::new(1);
        for _ in 0..10_000 {
            let rate = rng.range(0, 8_000) as i64 - 4_000;
            let clock = Clock::new(rng.below(1 << 50), rate).rebooted(rng.below(SECOND), rng.below(1 << 40));
            let from = rng.range(SECOND, 60 * SECOND);
            let mono = Mono(clock.local(from).0 + rng.below(10 * SECOND));
            let at = clock.when(mono, from);
            assert!(clock.local(at) >= mono);
            assert!(at == from || clock.local(at - 1) < mono);
        }
    }
}
