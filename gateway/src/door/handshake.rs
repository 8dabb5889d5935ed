//! How a client's connection becomes a stream: by a handshake where the port speaks TLS, and then by nothing else.

use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use tls::{Server, Status, Stream, Why};
use tokio::net::TcpStream;
use tracing::debug;

/// The stream of a connection, unless the handshake came to nothing.
pub(super) async fn open(socket: TcpStream, tls: Option<&Server>) -> Option<Stream> {
    let Some(tls) = tls else { return Some(Stream::from(socket)) };
    let from = socket.peer_addr().ok();
    match tls.accept(socket).await {
        Ok(stream) => Some(stream),
        Err(error) => {
            // Anybody can make these, so they are counted, and told to who looks for them.
            debug!(?from, %error, "no handshake");
            None
        }
    }
}

/// What is counted of a port that speaks TLS.
#[derive(Debug)]
pub(crate) struct TlsMetrics {
    server: Arc<Server>,
    full: IntCounter,
    resumed: IntCounter,
    failed: Vec<(Why, IntCounter)>,
    pending: IntGauge,
    certificates: CertificateMetrics,
    /// Held while numbers are taken over.
    taking: Mutex<()>,
}

/// How the certificates of a door are.
#[derive(Debug)]
pub(crate) struct CertificateMetrics {
    expiry: IntGaugeVec,
    taken: IntCounter,
    refused: IntCounter,
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
        let metrics = TlsMetrics {
            server,
            full: handshakes.with_label_values(&["full"]),
            resumed: handshakes.with_label_values(&["resumed"]),
            failed: Why::ALL.map(|why| (why, failures.with_label_values(&[why.as_str()]))).to_vec(),
            pending,
            certificates: CertificateMetrics::new(registry, "client"),
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
        self.certificates.refresh(&self.server.status());
    }
}

impl CertificateMetrics {
    /// Of the door with this name, `client` or `link`.
    pub(crate) fn new(registry: &Registry, door: &str) -> CertificateMetrics {
        let expiry = IntGaugeVec::new(
            Opts::new(
                "gaios_tls_certificate_expiry_seconds",
                "Seconds until a certificate expires: the process's own, or the last CA it trusts.",
            )
            .const_label("door", door),
            &["certificate"],
        )
        .expect("the name is well formed");
        let reloads = IntCounterVec::new(
            Opts::new(
                "gaios_tls_reloads_total",
                "Changes of certificate files that were taken over, or refused.",
            )
            .const_label("door", door),
            &["result"],
        )
        .expect("the name is well formed");
        registry.register(Box::new(expiry.clone())).expect("each door is registered once");
        registry.register(Box::new(reloads.clone())).expect("each door is registered once");
        CertificateMetrics {
            expiry,
            taken: reloads.with_label_values(&["taken"]),
            refused: reloads.with_label_values(&["refused"]),
        }
    }

    pub(crate) fn refresh(&self, status: &Status) {
        let now = SystemTime::now();
        let set =
            |certificate, then| self.expiry.with_label_values(&[certificate]).set(seconds_until(then, now));
        set("own", status.certificate_expires);
        if let Some(expire) = status.authorities_expire {
            set("ca", expire);
        }
        catch_up(&self.taken, status.reloads);
        catch_up(&self.refused, status.refusals);
    }
}

fn catch_up(counter: &IntCounter, count: u64) {
    counter.inc_by(count.saturating_sub(counter.get()));
}

/// Negative once it is past.
fn seconds_until(then: SystemTime, now: SystemTime) -> i64 {
    let seconds = |duration: std::time::Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    match then.duration_since(now) {
        Ok(left) => seconds(left),
        Err(error) => -seconds(error.duration()),
    }
}
