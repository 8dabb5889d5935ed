//! How often things happen, from counters that are looked at once a second. Pure: the time comes in.

use std::collections::VecDeque;
use std::time::Duration;

/// A rate is that of so many seconds: short enough to follow what one looks at, long enough not to flicker.
const SAMPLES: usize = 10;
/// Time between two samples.
pub const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// The newest values of `N` counters.
#[derive(Debug)]
pub struct Rates<const N: usize> {
    samples: VecDeque<(Duration, [u64; N])>,
}

impl<const N: usize> Default for Rates<N> {
    fn default() -> Self {
        Rates::new()
    }
}

impl<const N: usize> Rates<N> {
    /// Nothing looked at yet.
    #[must_use]
    pub fn new() -> Self {
        Rates { samples: VecDeque::with_capacity(SAMPLES + 1) }
    }

    /// The counters at a time that does not run backwards.
    pub fn sample(&mut self, at: Duration, counters: [u64; N]) {
        self.samples.push_back((at, counters));
        if self.samples.len() > SAMPLES + 1 {
            self.samples.pop_front();
        }
    }

    /// Per second; none before the second sample.
    #[must_use]
    pub fn per_second(&self) -> Option<[f64; N]> {
        let (first, last) = (self.samples.front()?, self.samples.back()?);
        let seconds = last.0.saturating_sub(first.0).as_secs_f64();
        let rate = |index: usize| last.1[index].saturating_sub(first.1[index]) as f64 / seconds;
        (seconds > 0.0).then(|| std::array::from_fn(rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_newest_samples() {
        let mut rates = Rates::new();
        assert_eq!(rates.per_second(), None);
        for second in 0..20_u64 {
            // Slow for ten seconds, then fast.
            let count = second + 10 * second.saturating_sub(9);
            rates.sample(Duration::from_secs(second), [count]);
        }
        assert_eq!(rates.per_second(), Some([11.0]));
    }

    #[test]
    fn one_sample_is_no_rate() {
        let mut rates = Rates::new();
        rates.sample(Duration::ZERO, [7, 8]);
        assert_eq!(rates.per_second(), None);
    }
}
