//! Why a handshake came to nothing.

use std::io;

use rustls::CertificateError;
use thiserror::Error;

use crate::certificate::NoIdentity;

/// A handshake that came to nothing.
#[derive(Debug, Error)]
#[error("{why}: {what}")]
pub struct HandshakeError {
    /// Its class.
    pub why: Why,
    what: String,
}

/// The classes of failed handshakes: labels of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// It took too long.
    Timeout,
    /// The other side ended the connection.
    Closed,
    /// What came is not TLS: plain text, most likely.
    NotTls,
    /// The other side shows no certificate, and has to.
    NoCertificate,
    /// Its certificate is expired, or no CA of ours has signed it, or not for this use.
    Untrusted,
    /// Its certificate does not say who it is in this cluster.
    NoIdentity,
    /// The other side refused us: our certificate, or all versions and ciphers we know.
    RefusedByPeer,
    /// It broke the protocol, or there is no version or cipher that both know.
    Protocol,
}

impl Why {
    /// All of them.
    pub const ALL: [Why; 8] = [
        Why::Timeout,
        Why::Closed,
        Why::NotTls,
        Why::NoCertificate,
        Why::Untrusted,
        Why::NoIdentity,
        Why::RefusedByPeer,
        Why::Protocol,
    ];

    /// As a label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Why::Timeout => "timeout",
            Why::Closed => "closed",
            Why::NotTls => "not_tls",
            Why::NoCertificate => "no_certificate",
            Why::Untrusted => "untrusted",
            Why::NoIdentity => "no_identity",
            Why::RefusedByPeer => "refused_by_peer",
            Why::Protocol => "protocol",
        }
    }
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl HandshakeError {
    pub(crate) fn new(why: Why, what: impl Into<String>) -> HandshakeError {
        HandshakeError { why, what: what.into() }
    }
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> HandshakeError {
        HandshakeError::new(Why::Closed, error.to_string())
    }
}

impl From<rustls::Error> for HandshakeError {
    fn from(error: rustls::Error) -> HandshakeError {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "what else the library tells is about the protocol"
        )]
        let why = match &error {
            rustls::Error::InvalidCertificate(CertificateError::Other(other)) if is_identity(other) => {
                Why::NoIdentity
            }
            rustls::Error::InvalidCertificate(_) => Why::Untrusted,
            rustls::Error::NoCertificatesPresented => Why::NoCertificate,
            rustls::Error::InvalidMessage(_) => Why::NotTls,
            rustls::Error::AlertReceived(_) => Why::RefusedByPeer,
            _ => Why::Protocol,
        };
        HandshakeError::new(why, error.to_string())
    }
}

fn is_identity(error: &rustls::OtherError) -> bool {
    error.0.downcast_ref::<NoIdentity>().is_some()
}

impl From<HandshakeError> for io::Error {
    fn from(error: HandshakeError) -> io::Error {
        let kind = match error.why {
            Why::Timeout => io::ErrorKind::TimedOut,
            Why::Closed => io::ErrorKind::UnexpectedEof,
            Why::NotTls | Why::Protocol => io::ErrorKind::InvalidData,
            Why::NoCertificate | Why::Untrusted | Why::NoIdentity | Why::RefusedByPeer => {
                io::ErrorKind::PermissionDenied
            }
        };
        io::Error::new(kind, error)
    }
}
