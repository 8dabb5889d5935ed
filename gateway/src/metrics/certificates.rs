//! How the certificates of a door are. Looked at whenever metrics are gathered, so they are as of the scrape.

use std::fmt;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts};
use tls::Status;

/// The certificates of a door, for a registry.
pub struct CertificateMetrics {
    status: Box<dyn Fn() -> Status + Send + Sync>,
    expiry: IntGaugeVec,
    reloads: IntCounterVec,
    refused: IntGauge,
    /// Held while numbers are taken over.
    taking: Mutex<()>,
}

impl CertificateMetrics {
    /// Of the door with this name, `client` or `link`.
    pub fn new(door: &str, status: impl Fn() -> Status + Send + Sync + 'static) -> CertificateMetrics {
        let opts = |name: &str, help: &str| Opts::new(name, help).const_label("door", door);
        let expiry = opts(
            "gaios_tls_certificate_expiry_seconds",
            "Seconds until a certificate expires: the process's own, or the last CA it trusts.",
        );
        let reloads =
            opts("gaios_tls_reloads_total", "Changes of certificate files that were taken over, or refused.");
        let refused = opts(
            "gaios_tls_files_refused",
            "1 while the files that lie there are refused, and the process goes on with those before.",
        );
        CertificateMetrics {
            status: Box::new(status),
            expiry: IntGaugeVec::new(expiry, &["certificate"]).expect("the name is well formed"),
            reloads: IntCounterVec::new(reloads, &["result"]).expect("the name is well formed"),
            refused: IntGauge::with_opts(refused).expect("the name is well formed"),
            taking: Mutex::new(()),
        }
    }

    fn take(&self, status: &Status, now: SystemTime) {
        let _taking = self.taking.lock();
        let set = |certificate, then| {
            self.expiry.with_label_values(&[certificate]).set(seconds_until(then, now));
        };
        set("own", status.certificate_expires);
        if let Some(expire) = status.authorities_expire {
            set("ca", expire);
        }
        catch_up(&self.reloads.with_label_values(&["taken"]), status.reloads);
        catch_up(&self.reloads.with_label_values(&["refused"]), status.refusals);
        self.refused.set(i64::from(status.refused.is_some()));
    }
}

impl Collector for CertificateMetrics {
    fn desc(&self) -> Vec<&Desc> {
        [self.expiry.desc(), self.reloads.desc(), self.refused.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.take(&(self.status)(), SystemTime::now());
        [self.expiry.collect(), self.reloads.collect(), self.refused.collect()].concat()
    }
}

impl fmt::Debug for CertificateMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateMetrics").field("status", &(self.status)()).finish_non_exhaustive()
    }
}

/// Takes over what somebody else has counted.
pub(crate) fn catch_up(counter: &IntCounter, count: u64) {
    counter.inc_by(count.saturating_sub(counter.get()));
}

/// Negative once it is past.
fn seconds_until(then: SystemTime, now: SystemTime) -> i64 {
    let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    match then.duration_since(now) {
        Ok(left) => seconds(left),
        Err(error) => -seconds(error.duration()),
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{Encoder as _, Registry, TextEncoder};
    use tls::Flaws;

    use super::*;

    fn status(days: u64) -> Status {
        Status {
            holder: "gaios://harbour/node/1".to_owned(),
            certificate_expires: SystemTime::now() + Duration::from_secs(days * 86_400),
            authorities_expire: None,
            reloads: 2,
            refusals: 1,
            refused: Some(Flaws(Vec::new())),
            warnings: Vec::new(),
        }
    }

    #[test]
    fn both_doors_of_a_process_share_the_names() {
        let registry = Registry::new();
        for (door, days) in [("client", 20), ("link", 10)] {
            registry.register(Box::new(CertificateMetrics::new(door, move || status(days)))).unwrap();
        }
        let mut text = Vec::new();
        for _ in 0..2 {
            text.clear();
            TextEncoder::new().encode(&registry.gather(), &mut text).unwrap();
        }
        let text = String::from_utf8(text).unwrap();
        let value = |line: &str| {
            let found = text.lines().find_map(|found| found.strip_prefix(line));
            found.unwrap_or_else(|| panic!("no {line} in\n{text}")).trim().parse::<i64>().unwrap()
        };
        let own = "gaios_tls_certificate_expiry_seconds{certificate=\"own\",door=\"link\"}";
        assert!((863_990..=864_000).contains(&value(own)));
        assert_eq!(value("gaios_tls_reloads_total{door=\"client\",result=\"taken\"}"), 2);
        assert_eq!(value("gaios_tls_reloads_total{door=\"link\",result=\"refused\"}"), 1);
        assert_eq!(value("gaios_tls_files_refused{door=\"link\"}"), 1);
        assert_eq!(text.matches("# HELP gaios_tls_reloads_total").count(), 1);
    }

    #[test]
    fn what_has_expired_counts_below_zero() {
        let now = SystemTime::now();
        assert_eq!(seconds_until(now - Duration::from_secs(7), now), -7);
    }
}
