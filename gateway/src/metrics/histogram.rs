//! A histogram that costs two relaxed additions per observation, for what happens with every request. The library's own
//! takes four and a loop. A scrape may find an observation in the sum and not in its bucket yet; the next one has both.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto;

/// Bounds double from bucket to bucket. With 20 of them, times reach from 32 µs to 17 s, and counts to half a million.
const BUCKETS: usize = 20;

/// Of times, or of counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Seconds,
    Count,
}

impl Unit {
    /// The bound of the first bucket: in nanoseconds, or the number itself.
    fn first(self) -> u64 {
        match self {
            Unit::Seconds => 32_000,
            Unit::Count => 1,
        }
    }

    /// What one is worth in the exported unit.
    fn scale(self) -> f64 {
        match self {
            Unit::Seconds => 1e-9,
            Unit::Count => 1.0,
        }
    }
}

/// Cheap to clone: all clones count together.
#[derive(Clone, Debug)]
pub(crate) struct Histogram(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    unit: Unit,
    /// The last one is for everything above the bounds.
    buckets: [AtomicU64; BUCKETS + 1],
    sum: AtomicU64,
}

impl Histogram {
    pub(crate) fn new(unit: Unit) -> Histogram {
        Histogram(Arc::new(Counts { unit, buckets: Default::default(), sum: AtomicU64::new(0) }))
    }

    pub(crate) fn observe_time(&self, took: Duration) {
        self.observe(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Counts `value`, or so many nanoseconds.
    pub(crate) fn observe(&self, value: u64) {
        let counts = &self.0;
        counts.buckets[bucket(value, counts.unit.first())].fetch_add(1, Ordering::Relaxed);
        counts.sum.fetch_add(value, Ordering::Relaxed);
    }

    fn collect(&self) -> proto::Histogram {
        let counts = &self.0;
        let scale = counts.unit.scale();
        let mut seen = 0;
        let mut buckets = Vec::with_capacity(BUCKETS);
        for (index, count) in counts.buckets.iter().enumerate() {
            seen += count.load(Ordering::Relaxed);
            if index < BUCKETS {
                let mut bucket = proto::Bucket::default();
                bucket.set_cumulative_count(seen);
                bucket.set_upper_bound((counts.unit.first() << index) as f64 * scale);
                buckets.push(bucket);
            }
        }
        let mut collected = proto::Histogram::default();
        collected.set_bucket(buckets);
        collected.set_sample_count(seen);
        collected.set_sample_sum(counts.sum.load(Ordering::Relaxed) as f64 * scale);
        collected
    }
}

/// The bucket of a value: the first whose bound it does not exceed.
fn bucket(value: u64, first: u64) -> usize {
    let doublings = (value.saturating_sub(1) / first).checked_ilog2().map_or(0, |log| log as usize + 1);
    doublings.min(BUCKETS)
}

/// Histograms of one name, told apart by labels.
#[derive(Clone, Debug)]
pub(crate) struct Family {
    desc: Desc,
    members: Vec<(Vec<(&'static str, &'static str)>, Histogram)>,
}

impl Family {
    /// `members` have the same labels in the same order.
    pub(crate) fn new(
        name: &str,
        help: &str,
        members: Vec<(Vec<(&'static str, &'static str)>, Histogram)>,
    ) -> Family {
        let labels = members.first().map_or_else(Vec::new, |(labels, _)| labels.clone());
        let labels = labels.into_iter().map(|(label, _)| label.to_owned()).collect();
        let desc = Desc::new(name.to_owned(), help.to_owned(), labels, HashMap::new());
        Family { desc: desc.expect("the name is well formed"), members }
    }

    /// One histogram without labels.
    pub(crate) fn single(name: &str, help: &str, histogram: &Histogram) -> Family {
        Family::new(name, help, vec![(Vec::new(), histogram.clone())])
    }
}

impl Collector for Family {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    /// Those that have counted something: most methods are never called.
    fn collect(&self) -> Vec<proto::MetricFamily> {
        let mut metrics = Vec::new();
        for (labels, histogram) in &self.members {
            let collected = histogram.collect();
            if collected.get_sample_count() == 0 && !labels.is_empty() {
                continue;
            }
            let pair = |(name, value): &(&str, &str)| {
                let mut pair = proto::LabelPair::default();
                pair.set_name((*name).to_owned());
                pair.set_value((*value).to_owned());
                pair
            };
            let mut metric = proto::Metric::from_label(labels.iter().map(pair).collect());
            metric.set_histogram(collected);
            metrics.push(metric);
        }
        let mut family = proto::MetricFamily::default();
        family.set_name(self.desc.fq_name.clone());
        family.set_help(self.desc.help.clone());
        family.set_field_type(proto::MetricType::HISTOGRAM);
        family.set_metric(metrics);
        vec![family]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_in_the_first_bucket_that_holds_it() {
        let of = |value| bucket(value, 1);
        assert_eq!([0, 1, 2, 3, 4, 5, 8, 9].map(of), [0, 0, 1, 2, 2, 3, 3, 4]);
        assert_eq!([32_000, 32_001, 64_000, 64_001].map(|value| bucket(value, 32_000)), [0, 1, 1, 2]);
        assert_eq!(bucket(u64::MAX, 32_000), BUCKETS);
    }

    #[test]
    fn what_is_exported_is_cumulative_and_in_seconds() {
        let histogram = Histogram::new(Unit::Seconds);
        for took in [10, 50, 1000, 60_000_000] {
            histogram.observe_time(Duration::from_micros(took));
        }
        let collected = histogram.collect();
        let counts: Vec<_> = collected.get_bucket().iter().map(|bucket| bucket.cumulative_count()).collect();
        assert_eq!(counts[..6], [1, 2, 2, 2, 2, 3]);
        assert_eq!((counts[BUCKETS - 1], collected.get_sample_count()), (3, 4));
        assert!((collected.get_bucket()[5].upper_bound() - 0.001_024).abs() < 1e-12);
        assert!((collected.get_sample_sum() - 60.001_06).abs() < 1e-9);
    }

    #[test]
    fn a_method_that_was_never_called_takes_no_room() {
        let (used, unused) = (Histogram::new(Unit::Count), Histogram::new(Unit::Count));
        used.observe(3);
        let members = vec![(vec![("method", "used")], used), (vec![("method", "unused")], unused)];
        let family = Family::new("a_requests", "Some.", members).collect();
        assert_eq!(family[0].get_metric().len(), 1);
    }
}
