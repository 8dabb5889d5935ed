//! Makes certificates: a CA and what it signs. Keys are ECDSA on P-256, which every client knows and ring signs fastest.

use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use thiserror::Error;

use crate::identity::Identity;

/// Clocks of machines differ: what is made now is valid a moment ago.
const BACKDATED: Duration = Duration::from_hours(1);

/// Why nothing was made.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum MakeError {
    /// A name is neither a DNS name nor an address.
    #[error("`{0}` is no DNS name or IP address")]
    Name(String),
    /// What should be a CA is none, or its key is not its own.
    #[error("no CA that can sign: {0}")]
    Authority(String),
    /// The library's.
    #[error("cannot make a certificate: {0}")]
    Other(String),
}

/// A certificate with its key, both in PEM.
#[derive(Clone)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The key.
    pub key: String,
}

/// Never shows the key.
impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// What a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Use {
    /// A member of the cluster, for both ends of links.
    Member(Identity),
    /// A door for clients, valid for these DNS names and addresses.
    Server(Vec<String>),
    /// A client.
    Client,
}

/// When a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// From here …
    pub not_before: SystemTime,
    /// … to here.
    pub not_after: SystemTime,
}

impl Validity {
    /// From now on, for so many days.
    #[must_use]
    pub fn days(days: u32) -> Validity {
        let now = SystemTime::now();
        let length = Duration::from_secs(u64::from(days) * 86_400);
        Validity { not_before: now - BACKDATED, not_after: now + length }
    }
}

/// A CA that signs.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new one, named for people.
    ///
    /// # Errors
    /// The name or the dates cannot be written into a certificate.
    pub fn new(name: &str, validity: Validity) -> Result<Authority, MakeError> {
        let key = KeyPair::generate().map_err(other)?;
        let mut params = params(name, validity);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(other)?.pem();
        Ok(Authority { certificate, issuer: Issuer::new(params, key) })
    }

    /// One that was made before, by whomever: its certificate and its key, in PEM.
    ///
    /// # Errors
    /// It is none, or the key is not its own.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Authority, MakeError> {
        let wrong = |what: String| MakeError::Authority(what);
        let (_, pem) = x509_parser::pem::parse_x509_pem(certificate.as_bytes())
            .map_err(|_| wrong("its file holds no certificate".to_owned()))?;
        let parsed = pem.parse_x509().map_err(|_| wrong("its certificate cannot be read".to_owned()))?;
        if !parsed.is_ca() {
            return Err(wrong(format!("the certificate of `{}` is no CA", parsed.subject())));
        }
        let key =
            KeyPair::from_pem(key).map_err(|error| wrong(format!("its key cannot be read: {error}")))?;
        if parsed.public_key().subject_public_key.data != key.public_key_raw() {
            return Err(wrong("the key is not the key of its certificate".to_owned()));
        }
        let issuer = Issuer::from_ca_cert_pem(certificate, key).map_err(|error| wrong(error.to_string()))?;
        Ok(Authority { certificate: certificate.to_owned(), issuer })
    }

    /// Its certificate, in PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Its key, in PEM.
    #[must_use]
    pub fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Whether a certificate, in PEM, carries its signature.
    #[must_use]
    pub fn has_signed(&self, certificate: &str) -> bool {
        let own = x509_parser::pem::parse_x509_pem(self.certificate.as_bytes());
        let other = x509_parser::pem::parse_x509_pem(certificate.as_bytes());
        let (Ok((_, own)), Ok((_, other))) = (own, other) else { return false };
        let (Ok(own), Ok(other)) = (own.parse_x509(), other.parse_x509()) else { return false };
        other.verify_signature(Some(own.public_key())).is_ok()
    }

    /// A certificate with a new key. `name` is for people.
    ///
    /// # Errors
    /// A name or the dates cannot be written into a certificate.
    pub fn issue(&self, name: &str, purpose: &Use, validity: Validity) -> Result<Pair, MakeError> {
        let mut params = params(name, validity);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let (server, client) = (ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth);
        match purpose {
            Use::Member(identity) => {
                params.extended_key_usages = vec![server, client];
                params.subject_alt_names = vec![SanType::URI(text(&identity.to_string())?)];
            }
            Use::Server(names) => {
                params.extended_key_usages = vec![server];
                params.subject_alt_names =
                    names.iter().map(|name| alternative(name)).collect::<Result<_, _>>()?;
            }
            Use::Client => params.extended_key_usages = vec![client],
        }
        let key = KeyPair::generate().map_err(other)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(other)?.pem();
        Ok(Pair { certificate, key: key.serialize_pem() })
    }
}

/// Never shows the key.
impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

fn params(name: &str, validity: Validity) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = validity.not_before.into();
    params.not_after = validity.not_after.into();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn alternative(name: &str) -> Result<SanType, MakeError> {
    if let Ok(address) = name.parse() {
        return Ok(SanType::IpAddress(address));
    }
    // Labels as of RFC 1123; the first may stand for any.
    let label = |part: &str| {
        (1..=63).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let labels = name.strip_prefix("*.").unwrap_or(name);
    if labels.len() > 253 || !labels.split('.').all(label) {
        return Err(MakeError::Name(name.to_owned()));
    }
    Ok(SanType::DnsName(text(name)?))
}

fn text(name: &str) -> Result<Ia5String, MakeError> {
    name.try_into().map_err(|_| MakeError::Name(name.to_owned()))
}

fn other(error: rcgen::Error) -> MakeError {
    MakeError::Other(error.to_string())
}
