//! Why this gateway is not linked with what answers at a node's address: that is not the node, or does not want it. Told once
//! for each address and reason until there is a link; the metrics count on.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use gateway_core::NodeId;
use parking_lot::Mutex;
use tls::{HandshakeError, Identity, Why};
use tracing::warn;

/// Why there is no link.
#[derive(Debug)]
pub(super) enum Refusal {
    /// By the node, or by the one that was to pass the connection on, in its words.
    ByNode(String),
    /// The node speaks this version of the link protocol at most, which is too old.
    TooOld(u32),
    /// The handshake came to nothing.
    Handshake(HandshakeError),
    /// What answers has the certificate of something else than a node.
    NotANode(Identity),
    /// What answers is another node than the one that is meant, or says so of itself.
    WrongNode { meant: NodeId, answers: NodeId },
}

impl Refusal {
    /// For metrics.
    fn label(&self) -> &'static str {
        match self {
            Refusal::ByNode(_) => "refused",
            Refusal::TooOld(_) => "too_old",
            Refusal::Handshake(error) => match error.why {
                Why::Timeout => "tls_timeout",
                Why::Closed => "tls_closed",
                Why::NotTls => "plain_text",
                Why::NoCertificate => "no_certificate",
                Why::Untrusted => "untrusted",
                Why::NoIdentity => "no_identity",
                Why::RefusedByPeer => "tls_refused",
                Why::Protocol => "tls_protocol",
            },
            Refusal::NotANode(_) => "not_a_node",
            Refusal::WrongNode { .. } => "wrong_node",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::ByNode(reason) => f.write_str(reason),
            Refusal::TooOld(version) => write!(f, "it speaks version {version} of the link protocol at most"),
            Refusal::Handshake(error) => error.fmt(f),
            Refusal::NotANode(holder) => write!(f, "its certificate is that of {holder}, which is no node"),
            Refusal::WrongNode { meant, answers } => {
                write!(f, "node {} answers, and node {} is meant", answers.0, meant.0)
            }
        }
    }
}

/// Addresses and reasons that are remembered as told.
const TOLD_MAX: usize = 1000;

/// What was refused so far.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    counts: BTreeMap<&'static str, u64>,
    told: BTreeSet<(String, &'static str)>,
}

impl Refusals {
    pub(super) fn note(&self, address: &str, refusal: &Refusal) {
        let reason = refusal.label();
        let mut state = self.0.lock();
        *state.counts.entry(reason).or_default() += 1;
        let news = state.told.len() < TOLD_MAX && state.told.insert((address.to_owned(), reason));
        drop(state);
        if news {
            warn!(address, reason, "no link with what answers at a node's address: {refusal}");
        }
    }

    /// There is a link: what is refused from now on is news.
    pub(super) fn settled(&self, address: &str) {
        self.0.lock().told.retain(|(told, _)| told != address);
    }

    pub(crate) fn counts(&self) -> Vec<(&'static str, u64)> {
        self.0.lock().counts.iter().map(|(reason, count)| (*reason, *count)).collect()
    }
}
