//! What links count.

use prometheus::IntCounter;

use crate::metrics::{Histogram, Unit};

/// Of all links together.
#[derive(Clone, Debug)]
pub(crate) struct LinkMetrics {
    pub(crate) losses: IntCounter,
    pub(crate) sent_bytes: IntCounter,
    pub(crate) received_bytes: IntCounter,
    pub(crate) frame_requests: Histogram,
    pub(crate) frame_wait: Histogram,
}

impl Default for LinkMetrics {
    fn default() -> LinkMetrics {
        let counter = |name: &str, help: &str| IntCounter::new(name, help).expect("the name is well formed");
        LinkMetrics {
            losses: counter(
                "gaios_gateway_link_losses_total",
                "Connections to nodes that ended, also those by a relay.",
            ),
            sent_bytes: counter("gaios_gateway_link_sent_bytes_total", "Bytes sent to nodes."),
            received_bytes: counter("gaios_gateway_link_received_bytes_total", "Bytes received from nodes."),
            frame_requests: Histogram::new(Unit::Count),
            frame_wait: Histogram::new(Unit::Seconds),
        }
    }
}
