//! How long to wait before something that failed is tried again.
//!
//! A crate of its own, since what gateways decide (`gateway-core`), what they dial and what nodes dial must not know each other,
//! and should wait alike. Pure: the random number comes in, and nobody sleeps here.

use std::time::Duration;

/// A pause drawn evenly from zero to a ceiling that doubles with each failure (full jitter, as in Brooker,
/// "Exponential Backoff and Jitter").
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    ceiling: Duration,
    first: Duration,
    most: Duration,
}

impl Backoff {
    /// Pauses of at most `first` at first, and of at most `most` in the end.
    #[must_use]
    pub const fn new(first: Duration, most: Duration) -> Backoff {
        assert!(first.as_nanos() <= most.as_nanos(), "pauses grow");
        Backoff { ceiling: first, first, most }
    }

    /// The pause before the next attempt, by a random number: with the highest, the whole ceiling.
    pub fn next(&mut self, random: u32) -> Duration {
        let pause = self.ceiling.mul_f64(f64::from(random) / f64::from(u32::MAX));
        self.ceiling = (self.ceiling * 2).min(self.most);
        pause
    }

    /// After a success.
    pub fn reset(&mut self) {
        self.ceiling = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_doubles_up_to_its_bound() {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(70));
        let pauses: Vec<u128> = (0..5).map(|_| backoff.next(u32::MAX).as_millis()).collect();
        assert_eq!(pauses, [10, 20, 40, 70, 70]);
        assert_eq!(backoff.next(0), Duration::ZERO);
        backoff.reset();
        assert_eq!(backoff.next(u32::MAX).as_millis(), 10);
    }
}
