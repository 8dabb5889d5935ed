//! Certificates and keys as they lie on a disk, and what may be wrong with them.
//!
//! All files of a door are read at once; what is made of them is a function of what was read and the time.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use ring::digest;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use thiserror::Error;

use crate::certificate::Certificate;

/// Larger files are refused: bundles of all public CAs are below it.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Others than the owner and the group can read the file.
const READABLE_BY_OTHERS: u32 = 0o004;

/// What a file of a door is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// The door's own certificate, and what links it with its CA.
    Certificate,
    /// The key of that certificate.
    Key,
    /// The CAs whose certificates the other side may show.
    Authorities,
    /// The keys of session tickets.
    TicketKeys,
}

/// Something wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// What the file is for.
    pub file: FileKind,
    /// Where it lies.
    pub path: PathBuf,
    /// What is wrong with it.
    pub what: String,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.path.display(), self.what)
    }
}

/// Everything that is wrong with the files of a door; never empty.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct Flaws(pub Vec<Flaw>);

/// Which files a door has.
#[derive(Clone, Debug)]
pub(crate) struct Source(pub(crate) Vec<(FileKind, PathBuf)>);

/// What was read of them.
#[derive(Debug)]
pub(crate) struct Snapshot(Vec<Entry>);

#[derive(Debug)]
struct Entry {
    file: FileKind,
    path: PathBuf,
    bytes: Result<Vec<u8>, String>,
    readable_by_others: bool,
}

/// What tells one state of the files from another.
pub(crate) type Fingerprint = [u8; 32];

/// A door's own certificate, with its key.
#[derive(Debug)]
pub(crate) struct Own {
    pub(crate) certified: Arc<CertifiedKey>,
    /// What the certificate itself says.
    pub(crate) leaf: Certificate,
    /// When the first of it and those that link it with its CA expires.
    pub(crate) expires: SystemTime,
}

/// CAs that are trusted.
#[derive(Debug)]
pub(crate) struct Authorities {
    pub(crate) roots: Arc<RootCertStore>,
    /// When the last of them expires: an old one beside its successor is no reason to worry.
    pub(crate) expire: SystemTime,
    /// What tells this set from another.
    pub(crate) digest: Fingerprint,
}

impl Source {
    /// Reads all files.
    pub(crate) fn read(&self) -> Snapshot {
        Snapshot(self.0.iter().map(|(file, path)| Entry::read(*file, path)).collect())
    }
}

impl Entry {
    fn read(file: FileKind, path: &Path) -> Entry {
        let (bytes, readable_by_others) = match read(path) {
            Ok((bytes, mode)) => (Ok(bytes), mode & READABLE_BY_OTHERS != 0),
            Err(what) => (Err(what), false),
        };
        Entry { file, path: path.to_owned(), bytes, readable_by_others }
    }
}

fn read(path: &Path) -> Result<(Vec<u8>, u32), String> {
    let cannot = |error| format!("cannot be read: {error}");
    // Opening a pipe would wait for whoever writes to it.
    if !std::fs::metadata(path).map_err(cannot)?.is_file() {
        return Err("is not a file".to_owned());
    }
    let file = File::open(path).map_err(cannot)?;
    let mode = file.metadata().map_err(cannot)?.permissions().mode();
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("is larger than {FILE_BYTES_MAX} bytes"));
    }
    Ok((bytes, mode))
}

impl Snapshot {
    /// Of all there is.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        let mut context = digest::Context::new(&digest::SHA256);
        for entry in &self.0 {
            let (tag, bytes) = match &entry.bytes {
                Ok(bytes) => (0, bytes.as_slice()),
                Err(what) => (1, what.as_bytes()),
            };
            context.update(&[tag]);
            context.update(&(bytes.len() as u64).to_be_bytes());
            context.update(bytes);
        }
        fingerprint(context)
    }

    /// Whether the door has such a file.
    pub(crate) fn has(&self, file: FileKind) -> bool {
        self.0.iter().any(|entry| entry.file == file)
    }

    /// A flaw of a file.
    pub(crate) fn flaw(&self, file: FileKind, what: impl Into<String>) -> Flaw {
        Flaw { file, path: self.entry(file).path.clone(), what: what.into() }
    }

    /// What a file holds.
    pub(crate) fn bytes(&self, file: FileKind) -> Result<&[u8], Flaw> {
        match &self.entry(file).bytes {
            Ok(bytes) => Ok(bytes),
            Err(what) => Err(self.flaw(file, what)),
        }
    }

    fn entry(&self, file: FileKind) -> &Entry {
        let entry = self.0.iter().find(|entry| entry.file == file);
        entry.expect("doors ask for files that they have")
    }

    /// Files that are fine, and should not be readable by everybody.
    pub(crate) fn open_secrets(&self) -> Vec<Flaw> {
        let secret = |entry: &&Entry| match entry.file {
            FileKind::Key | FileKind::TicketKeys => entry.readable_by_others,
            FileKind::Certificate | FileKind::Authorities => false,
        };
        let what =
            "is a secret that everybody on this machine can read: take the right from others (chmod o-r)";
        self.0.iter().filter(secret).map(|entry| self.flaw(entry.file, what)).collect()
    }

    fn certificates(&self, file: FileKind) -> Result<Vec<(CertificateDer<'static>, Certificate)>, Flaw> {
        let bytes = self.bytes(file)?;
        let mut certificates = Vec::new();
        for der in CertificateDer::pem_slice_iter(bytes) {
            let number = certificates.len() + 1;
            let der = der.map_err(|error| self.flaw(file, format!("is not PEM: {error}")))?;
            let said = Certificate::parse(&der).map_err(|_| {
                self.flaw(file, format!("has a certificate, number {number}, that cannot be read"))
            })?;
            certificates.push((der, said));
        }
        if certificates.is_empty() {
            return Err(self.flaw(file, "has no certificate (`-----BEGIN CERTIFICATE-----`)"));
        }
        Ok(certificates)
    }

    /// The door's own certificate, which is valid at `now`, and its key, or all that is wrong with them.
    pub(crate) fn own(&self, provider: &CryptoProvider, now: SystemTime) -> Result<Own, Vec<Flaw>> {
        let chain = self.certificates(FileKind::Certificate);
        let key = self.bytes(FileKind::Key).and_then(|bytes| {
            PrivateKeyDer::from_pem_slice(bytes)
                .map_err(|_| self.flaw(FileKind::Key, "has no private key (`-----BEGIN PRIVATE KEY-----`)"))
        });
        let (chain, key) = match (chain, key) {
            (Ok(chain), Ok(key)) => (chain, key),
            (chain, key) => return Err(chain.err().into_iter().chain(key.err()).collect()),
        };
        let leaf = chain[0].1.clone();
        let mut flaws = Vec::new();
        if let Err(what) = valid(&leaf, now) {
            flaws.push(self.flaw(FileKind::Certificate, what));
        }
        let expires = chain.iter().map(|(_, said)| said.not_after).min().unwrap_or(leaf.not_after);
        let ders = chain.into_iter().map(|(der, _)| der).collect();
        let certified = CertifiedKey::from_der(ders, key, provider).map_err(|error| {
            let what = if let rustls::Error::InconsistentKeys(_) = error {
                let certificate = self.entry(FileKind::Certificate).path.display();
                format!("is not the key of the certificate in {certificate}")
            } else {
                format!("has a key that cannot be used: {error}")
            };
            self.flaw(FileKind::Key, what)
        });
        match certified {
            Ok(certified) if flaws.is_empty() => Ok(Own { certified: Arc::new(certified), leaf, expires }),
            Ok(_) => Err(flaws),
            Err(flaw) => {
                flaws.push(flaw);
                Err(flaws)
            }
        }
    }

    /// The CAs that are trusted, at least one of them valid at `now`.
    pub(crate) fn authorities(&self, now: SystemTime) -> Result<Authorities, Flaw> {
        let file = FileKind::Authorities;
        let mut roots = RootCertStore::empty();
        let mut context = digest::Context::new(&digest::SHA256);
        let mut expire = SystemTime::UNIX_EPOCH;
        for (der, said) in self.certificates(file)? {
            if !said.is_ca {
                let what =
                    format!("has the certificate of `{}`, which is no CA and can sign nothing", said.subject);
                return Err(self.flaw(file, what));
            }
            context.update(&(der.len() as u64).to_be_bytes());
            context.update(&der);
            expire = expire.max(said.not_after);
            roots.add(der).map_err(|error| {
                self.flaw(file, format!("has the CA `{}`, which cannot be used: {error}", said.subject))
            })?;
        }
        if expire < now {
            return Err(self.flaw(file, format!("has no CA that is still valid: {}", ago(expire, now))));
        }
        Ok(Authorities { roots: Arc::new(roots), expire, digest: fingerprint(context) })
    }
}

fn fingerprint(context: digest::Context) -> Fingerprint {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    bytes
}

fn valid(certificate: &Certificate, now: SystemTime) -> Result<(), String> {
    if certificate.not_after < now {
        return Err(format!("has expired: {}", ago(certificate.not_after, now)));
    }
    if let Ok(ahead) = certificate.not_before.duration_since(now)
        && !ahead.is_zero()
    {
        return Err(format!(
            "is not valid yet: it will be in {}; is the clock of this machine right?",
            duration(ahead.as_secs())
        ));
    }
    Ok(())
}

fn ago(then: SystemTime, now: SystemTime) -> String {
    let seconds = now.duration_since(then).unwrap_or_default().as_secs();
    format!("it was valid until {} ago", duration(seconds))
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} seconds"),
        120..7200 => format!("{} minutes", seconds / 60),
        7200..172_800 => format!("{} hours", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}
