//! Latencies in buckets that grow with the value.
//!
//! The layout is that of HdrHistogram: 128 buckets for every power of two, so a value is known to within 1/128 of
//! itself, from nanoseconds to hours, in 58 KiB. It is written here and not taken from the `hdrhistogram` crate because
//! the callers record into one shared histogram through `&self`; that crate's recorder does the same with a histogram
//! per thread, a channel and a merge.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

const SUB_BUCKET_BITS: u32 = 7;
const SUB_BUCKETS: usize = 1 << SUB_BUCKET_BITS;
/// Values below `2 * SUB_BUCKETS` have a bucket each; every further power of two up to 2^63 has `SUB_BUCKETS`.
const BUCKETS: usize = (64 - SUB_BUCKET_BITS as usize + 1) * SUB_BUCKETS;

/// A histogram of durations which any number of tasks may fill at once.
pub struct Histogram {
    counts: Box<[AtomicU64]>,
    count: AtomicU64,
    sum_ns: AtomicU64,
    max_ns: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram {
            counts: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
            count: AtomicU64::new(0),
            sum_ns: AtomicU64::new(0),
            max_ns: AtomicU64::new(0),
        }
    }
}

impl Histogram {
    /// Adds one value and returns how many there are.
    pub fn record(&self, value: Duration) -> u64 {
        let ns = u64::try_from(value.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket_of(ns)].fetch_add(1, Relaxed);
        self.sum_ns.fetch_add(ns, Relaxed);
        self.max_ns.fetch_max(ns, Relaxed);
        self.count.fetch_add(1, Relaxed) + 1
    }

    /// How many values were recorded.
    pub fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// The largest value, exactly; zero when there is none.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max_ns.load(Relaxed))
    }

    /// The average, exactly; zero when there is none.
    pub fn mean(&self) -> Duration {
        Duration::from_nanos(self.sum_ns.load(Relaxed) / self.count().max(1))
    }

    /// The smallest value that at least `fraction` (0 to 1) of all values do not exceed, rounded up to the end of its
    /// bucket; zero when there is none.
    pub fn quantile(&self, fraction: f64) -> Duration {
        let total = self.count();
        let rank = ((total as f64 * fraction).ceil() as u64).clamp(1, total.max(1));
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count.load(Relaxed);
            if seen >= rank {
                return Duration::from_nanos(last_value_of(index)).min(self.max());
            }
        }
        self.max()
    }
}

fn bucket_of(ns: u64) -> usize {
    if ns < 2 * SUB_BUCKETS as u64 {
        return ns as usize;
    }
    let shift = 63 - ns.leading_zeros() - SUB_BUCKET_BITS;
    shift as usize * SUB_BUCKETS + (ns >> shift) as usize
}

fn last_value_of(bucket: usize) -> u64 {
    if bucket < 2 * SUB_BUCKETS {
        return bucket as u64;
    }
    let shift = bucket / SUB_BUCKETS - 1;
    let mantissa = (bucket % SUB_BUCKETS + SUB_BUCKETS) as u64;
    (mantissa << shift) + ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(values_ns: impl IntoIterator<Item = u64>) -> Histogram {
        let histogram = Histogram::default();
        for ns in values_ns {
            histogram.record(Duration::from_nanos(ns));
        }
        histogram
    }

    #[test]
    fn buckets_tile_all_values() {
        for bucket in 0..BUCKETS {
            let last = last_value_of(bucket);
            assert_eq!(bucket_of(last), bucket);
            match last.checked_add(1) {
                Some(next) => assert_eq!(bucket_of(next), bucket + 1),
                None => assert_eq!(bucket, BUCKETS - 1),
            }
        }
    }

    #[test]
    fn a_bucket_is_narrow() {
        for ns in [300, 12_345, 8_900_000, 3_000_000_000, u64::MAX / 3] {
            let error = last_value_of(bucket_of(ns)) - ns;
            assert!(error <= ns / SUB_BUCKETS as u64, "{ns} is off by {error}");
        }
    }

    #[test]
    fn small_values_have_exact_quantiles() {
        let histogram = filled(1..=100);
        for (fraction, expected) in [(0.0, 1), (0.5, 50), (0.99, 99), (0.991, 100), (1.0, 100)] {
            assert_eq!(histogram.quantile(fraction), Duration::from_nanos(expected), "{fraction}");
        }
        assert_eq!(histogram.mean(), Duration::from_nanos(50));
    }

    #[test]
    fn a_rare_outlier_is_the_maximum_and_not_the_median() {
        let histogram = filled((0..999).map(|_| 1_000_000).chain([5_000_000_001]));
        let median = histogram.quantile(0.5).as_nanos();
        assert!((1_000_000..1_008_000).contains(&median), "{median}");
        assert!(histogram.quantile(0.999) < Duration::from_millis(2));
        assert_eq!(histogram.quantile(0.9999), Duration::from_nanos(5_000_000_001));
        assert_eq!(histogram.max(), Duration::from_nanos(5_000_000_001));
    }

    #[test]
    fn an_empty_histogram_is_all_zero() {
        let histogram = Histogram::default();
        assert_eq!(
            (histogram.count(), histogram.max(), histogram.mean()),
            (0, Duration::ZERO, Duration::ZERO)
        );
        assert_eq!(histogram.quantile(0.99), Duration::ZERO);
    }
}
