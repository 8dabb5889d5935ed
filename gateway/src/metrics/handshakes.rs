//! Handshakes with clients.

use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use tls::{Server, Why};

use super::certificates::{CertificateMetrics, catch_up};

/// What is counted of a port that speaks TLS.
#[derive(Debug)]
pub(crate) struct TlsMetrics {
    server: Arc<Server>,
    full: IntCounter,
    resumed: IntCounter,
    failed: Vec<(Why, IntCounter)>,
    pending: IntGauge,
    /// Held while numbers are taken over.
    taking: Mutex<()>,
}

impl TlsMetrics {
    pub(crate) fn new(registry: &Registry, server: Arc<Server>) -> TlsMetrics {
        let handshakes = IntCounterVec::new(
            Opts::new(
                "gaios_gateway_tls_handshakes_total",
                "Handshakes with clients: full, or resumed by a ticket.",
            ),
            &["kind"],
        )
        .expect("the name is well formed");
        let failures = IntCounterVec::new(
            Opts::new(
                "gaios_gateway_tls_handshake_failures_total",
                "Handshakes with clients that came to nothing, by reason.",
            ),
            &["reason"],
        )
        .expect("the name is well formed");
        let pending =
            IntGauge::new("gaios_gateway_tls_handshakes_pending", "Handshakes with clients under way.")
                .expect("the name is well formed");
        registry.register(Box::new(handshakes.clone())).expect("each name is registered once");
        registry.register(Box::new(failures.clone())).expect("each name is registered once");
        registry.register(Box::new(pending.clone())).expect("each name is registered once");
        let asked = Arc::clone(&server);
        let certificates = CertificateMetrics::new("client", move || asked.status());
        registry.register(Box::new(certificates)).expect("each door is registered once");
        let metrics = TlsMetrics {
            server,
            full: handshakes.with_label_values(&["full"]),
            resumed: handshakes.with_label_values(&["resumed"]),
            failed: Why::ALL.map(|why| (why, failures.with_label_values(&[why.as_str()]))).to_vec(),
            pending,
            taking: Mutex::new(()),
        };
        metrics.refresh();
        metrics
    }

    /// Takes over what the door has counted.
    pub(crate) fn refresh(&self) {
        let _taking = self.taking.lock();
        catch_up(&self.full, self.server.full_handshakes());
        catch_up(&self.resumed, self.server.resumed_handshakes());
        for (why, failed) in &self.failed {
            catch_up(failed, self.server.failed_handshakes(*why));
        }
        self.pending.set(i64::try_from(self.server.pending_handshakes()).unwrap_or(i64::MAX));
    }
}
