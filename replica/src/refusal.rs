//! Why connections to a node's port are turned away, and how often that is told: once for each source and reason in a while,
//! so that nobody fills the log by knocking.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::time::Duration;

use consensus_core::{Mono, NodeId};
use tls::{HandshakeError, Why};

use crate::admission::Source;

/// Why a connection was turned away.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// It did not say a good hello in time.
    Slow,
    /// It had not said a good hello yet when another one needed its room.
    Displaced,
    /// It ended in the middle of its hello.
    Gone,
    /// What it said is no hello.
    Malformed(String),
    /// It looks for another cluster or another node.
    Misdirected(String),
    /// It says that it is a node which is not in the configuration.
    Stranger(NodeId),
    /// It says that it is a peer, and at that peer's address nobody knows of it.
    Unconfirmed(NodeId, String),
    /// A peer was called in this node's name, by another process.
    NotOurs(NodeId),
    /// The certificate that it has shown is that of somebody else.
    WrongHolder(String),
    /// The handshake of its certificate came to nothing.
    Tls(HandshakeError),
    /// This node has stepped aside.
    Aside,
    /// The peer that it says it is lives in a later incarnation, or in another process, or this node does.
    OldCopy(String),
    /// There are too many gateways.
    TooManyGateways,
}

impl Refusal {
    /// Of a connection whose first frame could not be read.
    pub(crate) fn of_first_frame(error: io::Error) -> Refusal {
        if error.kind() == io::ErrorKind::InvalidData {
            Refusal::Malformed(error.to_string())
        } else {
            Refusal::Gone
        }
    }

    /// Every reason there is, as metrics have it.
    pub(crate) const LABELS: [&str; 20] = [
        "slow",
        "displaced",
        "gone",
        "malformed",
        "misdirected",
        "stranger",
        "unconfirmed",
        "not_ours",
        "wrong_holder",
        "tls_timeout",
        "tls_closed",
        "plain_text",
        "no_certificate",
        "untrusted",
        "no_identity",
        "tls_refused",
        "tls_protocol",
        "aside",
        "old_copy",
        "too_many_gateways",
    ];

    /// For metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Refusal::Slow => "slow",
            Refusal::Displaced => "displaced",
            Refusal::Gone => "gone",
            Refusal::Malformed(_) => "malformed",
            Refusal::Misdirected(_) => "misdirected",
            Refusal::Stranger(_) => "stranger",
            Refusal::Unconfirmed(..) => "unconfirmed",
            Refusal::NotOurs(_) => "not_ours",
            Refusal::WrongHolder(_) => "wrong_holder",
            Refusal::Tls(error) => match error.why {
                Why::Timeout => "tls_timeout",
                Why::Closed => "tls_closed",
                Why::NotTls => "plain_text",
                Why::NoCertificate => "no_certificate",
                Why::Untrusted => "untrusted",
                Why::NoIdentity => "no_identity",
                Why::RefusedByPeer => "tls_refused",
                Why::Protocol => "tls_protocol",
            },
            Refusal::Aside => "aside",
            Refusal::OldCopy(_) => "old_copy",
            Refusal::TooManyGateways => "too_many_gateways",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Slow => f.write_str("it did not say who it is in time"),
            Refusal::Displaced => f.write_str("it had not said who it is when there was no room for another"),
            Refusal::Gone => f.write_str("it ended before it had said who it is"),
            Refusal::Malformed(what) => write!(f, "what it says is no hello: {what}"),
            Refusal::Misdirected(what) | Refusal::WrongHolder(what) | Refusal::OldCopy(what) => {
                f.write_str(what)
            }
            Refusal::Unconfirmed(node, why) => write!(
                f,
                "it says that it is node {}, which cannot be confirmed at that node's address ({why}): check the addresses in \
                 the configuration, and that the node runs once",
                node.0
            ),
            Refusal::NotOurs(node) => write!(
                f,
                "another process has called node {} in this node's name: it runs twice, or somebody pretends to be it",
                node.0
            ),
            Refusal::Tls(error) => error.fmt(f),
            Refusal::Aside => f.write_str(
                "this node takes no part until it knows that its data directory is not an old copy",
            ),
            Refusal::Stranger(node) => {
                write!(f, "it says that it is node {}, which is not in this node's configuration", node.0)
            }
            Refusal::TooManyGateways => {
                f.write_str("there are as many gateways as this process has descriptors for")
            }
        }
    }
}

/// A source and a reason are told again after so long.
const TELL_AGAIN_AFTER: Duration = Duration::from_secs(600);
/// Beyond so many of them nothing is told; the metrics count on.
const TOLD_MAX: usize = 1000;

/// What was told of late.
#[derive(Debug, Default)]
pub(crate) struct Told(BTreeMap<(Source, &'static str), Mono>);

impl Told {
    /// Whether a word is to be said of it; then it counts as told.
    pub(crate) fn is_news(&mut self, now: Mono, source: Source, reason: &'static str) -> bool {
        let is_recent = |told: &Mono| now.since(*told) < TELL_AGAIN_AFTER;
        if self.0.get(&(source, reason)).is_some_and(is_recent) {
            return false;
        }
        if self.0.len() >= TOLD_MAX {
            self.0.retain(|_, told| is_recent(told));
            if self.0.len() >= TOLD_MAX {
                return false;
            }
        }
        self.0.insert((source, reason), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn at(seconds: u64) -> Mono {
        Mono(seconds * 1_000_000_000)
    }

    #[test]
    fn a_source_and_a_reason_are_told_once_in_a_while() {
        let mut told = Told::default();
        let source = |n| Source::of(Ipv4Addr::from_bits(n).into());
        assert!(told.is_news(at(0), source(1), "slow"));
        assert!(!told.is_news(at(599), source(1), "slow"));
        assert!(told.is_news(at(0), source(1), "gone"));
        assert!(told.is_news(at(0), source(2), "slow"));
        assert!(told.is_news(at(600), source(1), "slow"));
    }

    #[test]
    fn however_many_knock_what_is_told_is_bounded() {
        let mut told = Told::default();
        let source = |n| Source::of(Ipv4Addr::from_bits(n).into());
        let news = (0..10_000).filter(|n| told.is_news(at(1), source(*n), "slow")).count();
        assert_eq!(news, TOLD_MAX);
        assert!(told.is_news(at(700), source(1), "slow"), "room again");
        assert!(told.0.len() <= TOLD_MAX);
    }
}
