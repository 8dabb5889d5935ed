//! The engine's own random numbers. They spread timers and decide nothing else, so quality beyond "two nodes draw
//! differently" is not needed, and a seed replays a run.

use std::time::Duration;

/// SplitMix64 (Steele, Lea and Flood, 2014).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `[low, high)`, in nanoseconds; `low` when the range is empty.
    pub(super) fn between(&mut self, low: Duration, high: Duration) -> Duration {
        let span = u64::try_from(high.saturating_sub(low).as_nanos()).unwrap_or(u64::MAX);
        if span == 0 { low } else { low + Duration::from_nanos(self.next() % span) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_in_range_and_repeats_with_the_seed() {
        let (low, high) = (Duration::from_millis(50), Duration::from_millis(250));
        let draw = |seed| {
            let mut rng = Rng::new(seed);
            (0..1000).map(|_| rng.between(low, high)).collect::<Vec<_>>()
        };
        let first = draw(7);
        assert!(first.iter().all(|delay| (low..high).contains(delay)));
        assert_eq!(first, draw(7));
        assert_ne!(first, draw(8));
        assert_eq!(Rng::new(1).between(high, low), high);
    }
}
