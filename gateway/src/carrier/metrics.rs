//! What the carrier counts: what its links count, and attempts that led nowhere.

use gateway_core::{Attempted, Why};
use prometheus::core::Collector;
use prometheus::{IntCounter, IntCounterVec, Opts};

use crate::link::LinkMetrics;
use crate::metrics::Family;

/// All of it.
#[derive(Clone, Debug, Default)]
pub(super) struct CarrierMetrics {
    pub(super) links: LinkMetrics,
    pub(super) retries: Retries,
    pub(super) dropped: Dropped,
}

impl CarrierMetrics {
    pub(super) fn collectors(&self) -> Vec<Box<dyn Collector>> {
        let links = &self.links;
        vec![
            Box::new(self.retries.all.clone()),
            Box::new(self.dropped.all.clone()),
            Box::new(links.losses.clone()),
            Box::new(links.sent_bytes.clone()),
            Box::new(links.received_bytes.clone()),
            Box::new(Family::single(
                "gaios_gateway_frame_requests",
                "Requests that left to a node in one frame.",
                &links.frame_requests,
            )),
            Box::new(Family::single(
                "gaios_gateway_frame_wait_seconds",
                "Time that the oldest request of a frame waited for the link to be free.",
                &links.frame_wait,
            )),
        ]
    }
}

/// Requests that ended before they were answered.
#[derive(Clone, Debug)]
pub(super) struct Dropped {
    all: IntCounterVec,
    /// Their time has passed.
    pub(super) deadline: IntCounter,
    /// Their client has taken them back, or gone away.
    pub(super) gone: IntCounter,
}

impl Default for Dropped {
    fn default() -> Dropped {
        let help = "Requests that ended before they were answered: their time had passed (`deadline`), or their client took \
                    them back or went away (`gone`).";
        let all = IntCounterVec::new(Opts::new("gaios_gateway_requests_dropped_total", help), &["reason"]);
        let all = all.expect("the name is well formed");
        let of = |reason: &str| all.with_label_values(&[reason]);
        Dropped { deadline: of("deadline"), gone: of("gone"), all }
    }
}

/// Attempts that led nowhere, by cause. What becomes of the request is another matter.
#[derive(Clone, Debug)]
pub(super) struct Retries {
    all: IntCounterVec,
    link_lost: IntCounter,
    session_lost: IntCounter,
    not_leader: IntCounter,
    stopping: IntCounter,
    outcome_unknown: IntCounter,
    overloaded: IntCounter,
    refused: IntCounter,
}

impl Default for Retries {
    fn default() -> Retries {
        let opts = Opts::new("gaios_gateway_retries_total", "Attempts at a node that led nowhere, by cause.");
        let all = IntCounterVec::new(opts, &["cause"]).expect("the name is well formed");
        let of = |cause: &str| all.with_label_values(&[cause]);
        Retries {
            link_lost: of("link_lost"),
            session_lost: of("session_lost"),
            not_leader: of("not_leader"),
            stopping: of("stopping"),
            outcome_unknown: of("outcome_unknown"),
            overloaded: of("overloaded"),
            refused: of("refused"),
            all,
        }
    }
}

impl Retries {
    pub(super) fn count<T>(&self, attempted: &Attempted<T>) {
        match attempted {
            Attempted::Lost => self.link_lost.inc(),
            Attempted::Refused(refused) => self.of(refused.why).inc(),
            Attempted::Denied(keyspace::Error::SessionExpired) => self.session_lost.inc(),
            Attempted::Unsent(_) | Attempted::Denied(_) | Attempted::Protocol(_) | Attempted::Answer(_) => {}
        }
    }

    fn of(&self, why: Why) -> &IntCounter {
        match why {
            Why::NotLeader => &self.not_leader,
            Why::NoGroup | Why::Stopping => &self.stopping,
            Why::OutcomeUnknown => &self.outcome_unknown,
            Why::Overloaded => &self.overloaded,
            Why::Unknown
            | Why::NoDisk
            | Why::Malformed
            | Why::AnswerTooLarge
            | Why::NoRoom
            | Why::WrongShard => &self.refused,
        }
    }
}
