//! What a certificate says.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use thiserror::Error;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::time::ASN1Time;
use x509_parser::x509::AttributeTypeAndValue;

use crate::identity::{Identity, IdentityError, SCHEME};

/// What a certificate says, as far as anybody here asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Whom it names, as one line.
    pub subject: String,
    /// The first common name of that.
    pub common_name: Option<String>,
    /// DNS names and addresses it is valid for.
    pub names: Vec<String>,
    /// URIs it is valid for.
    pub uris: Vec<String>,
    /// Valid from here …
    pub not_before: SystemTime,
    /// … to here.
    pub not_after: SystemTime,
    /// Whether it may sign others.
    pub is_ca: bool,
}

/// Why a certificate does not say who its holder is in a cluster.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NoIdentity {
    /// It cannot be read.
    #[error("the certificate cannot be read")]
    Unreadable,
    /// There is none.
    #[error("the certificate names no gaios:// URI")]
    Missing,
    /// A holder is one thing.
    #[error("the certificate names more than one gaios:// URI")]
    Several,
    /// It is not one.
    #[error(transparent)]
    Malformed(#[from] IdentityError),
    /// It is one of another cluster.
    #[error("the certificate is of cluster `{0}`")]
    OtherCluster(String),
}

impl Certificate {
    /// Reads it.
    ///
    /// # Errors
    /// It is no certificate.
    pub fn parse(der: &[u8]) -> Result<Certificate, NoIdentity> {
        let (_, parsed) = X509Certificate::from_der(der).map_err(|_| NoIdentity::Unreadable)?;
        let (mut names, mut uris) = (Vec::new(), Vec::new());
        let alternatives = parsed.subject_alternative_name().map_err(|_| NoIdentity::Unreadable)?;
        for name in alternatives.iter().flat_map(|extension| &extension.value.general_names) {
            if let GeneralName::DNSName(name) = name {
                names.push((*name).to_owned());
            } else if let GeneralName::IPAddress(bytes) = name {
                names.extend(address(bytes));
            } else if let GeneralName::URI(uri) = name {
                uris.push((*uri).to_owned());
            }
        }
        Ok(Certificate {
            subject: parsed.subject().to_string(),
            common_name: parsed.subject().iter_common_name().next().and_then(common_name),
            names,
            uris,
            not_before: time(parsed.validity().not_before),
            not_after: time(parsed.validity().not_after),
            is_ca: parsed.is_ca(),
        })
    }

    /// Reads the first one of a text in PEM.
    ///
    /// # Errors
    /// There is none.
    pub fn parse_pem(pem: &str) -> Result<Certificate, NoIdentity> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| NoIdentity::Unreadable)?;
        Certificate::parse(&der)
    }

    /// Whom it names, in the words that its verifiers go by: its one `gaios://` URI, else its DNS names and addresses, else its
    /// subject.
    #[must_use]
    pub fn holder(&self) -> String {
        match self.identity() {
            Ok(identity) => identity.to_string(),
            Err(_) if !self.names.is_empty() => self.names.join(", "),
            Err(_) => self.subject.clone(),
        }
    }

    /// Who its holder is: what the one `gaios://` URI says.
    ///
    /// # Errors
    /// There is not exactly one.
    pub fn identity(&self) -> Result<Identity, NoIdentity> {
        let mut ours = self.uris.iter().filter(|uri| uri.starts_with(SCHEME));
        let uri = ours.next().ok_or(NoIdentity::Missing)?;
        if ours.next().is_some() {
            return Err(NoIdentity::Several);
        }
        Ok(uri.parse()?)
    }
}

/// Who the holder of a certificate is in `cluster`.
pub(crate) fn member(der: &[u8], cluster: &str) -> Result<Identity, NoIdentity> {
    let identity = Certificate::parse(der)?.identity()?;
    if identity.cluster != cluster {
        return Err(NoIdentity::OtherCluster(identity.cluster));
    }
    Ok(identity)
}

fn common_name(attribute: &AttributeTypeAndValue<'_>) -> Option<String> {
    attribute.as_str().ok().map(str::to_owned)
}

fn address(bytes: &[u8]) -> Option<String> {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(bytes).to_string());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|bytes| Ipv6Addr::from(bytes).to_string())
}

/// What lies before 1970 is long past either way.
fn time(asn1: ASN1Time) -> SystemTime {
    let seconds = u64::try_from(asn1.timestamp()).unwrap_or(0);
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::make::{Authority, Use, Validity};

    #[test]
    fn a_common_name_is_read() {
        let authority = Authority::new("clients", Validity::days(1)).unwrap();
        let pair = authority.issue("alice", &Use::Client, Validity::days(1)).unwrap();
        let read = Certificate::parse_pem(&pair.certificate).unwrap();
        assert_eq!(read.common_name.as_deref(), Some("alice"));
    }
}
