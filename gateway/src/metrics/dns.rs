//! What is asked of DNS, and what comes of it. Looked at whenever metrics are gathered.

use std::fmt;

use discovery::Discovery;
use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntGauge};

use super::catch_up;

/// The names that a process follows, for a registry.
pub struct DnsMetrics {
    discovery: Discovery,
    lookups: IntCounter,
    failures: IntCounter,
    changes: IntCounter,
    stale: IntGauge,
    /// Held while numbers are taken over.
    taking: Mutex<()>,
}

impl DnsMetrics {
    /// Of the names that are resolved there.
    pub fn new(discovery: Discovery) -> DnsMetrics {
        let counter = |name: &str, help: &str| IntCounter::new(name, help).expect("the name is well formed");
        DnsMetrics {
            discovery,
            lookups: counter("gaios_dns_lookups_total", "Names of nodes that DNS was asked for."),
            failures: counter(
                "gaios_dns_lookup_failures_total",
                "Names of nodes that DNS did not answer, or with nothing.",
            ),
            changes: counter(
                "gaios_dns_address_changes_total",
                "Answers of DNS with other addresses than the name had before.",
            ),
            stale: IntGauge::new(
                "gaios_dns_stale_answer_seconds",
                "Age of the oldest answer of DNS that is used although a newer question failed; 0 if there is none.",
            )
            .expect("the name is well formed"),
            taking: Mutex::new(()),
        }
    }
}

impl Collector for DnsMetrics {
    fn desc(&self) -> Vec<&Desc> {
        [self.lookups.desc(), self.failures.desc(), self.changes.desc(), self.stale.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let _taking = self.taking.lock();
        catch_up(&self.lookups, self.discovery.questions());
        catch_up(&self.failures, self.discovery.failures());
        catch_up(&self.changes, self.discovery.changes());
        let stale = self.discovery.stale().map_or(0, |age| i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
        self.stale.set(stale);
        [self.lookups.collect(), self.failures.collect(), self.changes.collect(), self.stale.collect()]
            .concat()
    }
}

impl fmt::Debug for DnsMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DnsMetrics").field("discovery", &self.discovery).finish_non_exhaustive()
    }
}
