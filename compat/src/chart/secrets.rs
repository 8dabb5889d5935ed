//! Where the Secrets of a release come from, and how its certificates are replaced: what people do by hand, what cert-manager
//! does, and what the chart's own Job does.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use test_kubernetes::Files;
use tls::make::{Authority, Use, Validity};
use tokio::process::Command;

use super::manifest::{Certificate, Release};
use crate::Problem;

/// The two files of a CA, and the one by which it is trusted.
const CA_CERTIFICATE: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
/// How long a CA is valid.
const CA_DAYS: u32 = 100;
/// Clocks of machines differ: what is made now is valid a moment ago.
const BACKDATED: Duration = Duration::from_hours(1);

/// Who makes the certificates of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// People, with `gaios ctl certs make`, as the notes of the release tell them.
    People,
    /// cert-manager.
    CertManager,
    /// The Job before each install and upgrade.
    Hook,
}

impl Origin {
    pub(crate) fn of(release: &Release) -> Origin {
        if !release.hooks().is_empty() {
            Origin::Hook
        } else if release.certificates().is_empty() {
            Origin::People
        } else {
            Origin::CertManager
        }
    }
}

/// A step of replacing what a cluster is trusted by, each on all processes before the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The old CA and the new one are trusted.
    TrustBoth,
    /// Certificates are the new CA's.
    SignAnew,
    /// The new one alone is trusted.
    TrustNew,
}

/// What people keep, and cert-manager's issuers: the same for all regions.
pub(crate) struct Keys {
    home: PathBuf,
    gaios: PathBuf,
    issuers: BTreeMap<String, Authority>,
}

impl Keys {
    /// In a folder that is theirs alone.
    pub(crate) fn new(home: PathBuf, gaios: &Path) -> Result<Keys, Problem> {
        let gaios = std::path::absolute(gaios).map_err(|error| format!("{}: {error}", gaios.display()))?;
        create(&home)?;
        Ok(Keys { home, gaios, issuers: BTreeMap::new() })
    }

    /// What the notes of a release tell people to do, done to the letter: the files of its Secret. The CA of the first release
    /// is that of all.
    pub(crate) async fn make(&self, release: &Release) -> Result<Files, Problem> {
        let folder = self.home.join(&release.title);
        let made = folder.join("tls");
        create(&made)?;
        for name in [CA_CERTIFICATE, CA_KEY] {
            if self.home.join(name).exists() {
                copy(&self.home.join(name), &made.join(name))?;
            }
        }
        let told = release.notes.lines().map(str::trim).find(|line| line.starts_with("gaios ctl certs "));
        let told =
            told.ok_or_else(|| format!("{}: its notes tell nobody how to make certificates", release.title))?;
        self.run(&folder, told).await?;
        for name in [CA_CERTIFICATE, CA_KEY] {
            copy(&made.join(name), &self.home.join(name))?;
        }
        fs::remove_file(made.join(CA_KEY)).map_err(|error| format!("{}: {error}", made.display()))?;
        read(&made)
    }

    /// A ring for session tickets.
    pub(crate) async fn tickets(&self) -> Result<Files, Problem> {
        let folder = self.home.join("tickets");
        create(&folder)?;
        self.run(&folder, "gaios ctl certs --dir tls tickets 2> /dev/null").await?;
        read(&folder.join("tls"))
    }

    /// Another CA, to be the one that signs.
    pub(crate) fn replace_authority(&self, new: &Authority) -> Result<(), Problem> {
        for (name, text) in [(CA_CERTIFICATE, new.certificate()), (CA_KEY, &new.key())] {
            let path = self.home.join(name);
            fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        Ok(())
    }

    /// What cert-manager makes of a Certificate. What it asks for must be what one of ours says, and nothing else.
    pub(crate) fn sign(&mut self, asked: &Certificate) -> Result<Files, Problem> {
        let failed = |what: String| format!("Certificate {}: {what}", asked.name);
        let authority = match self.issuers.remove(&asked.issuer) {
            Some(known) => known,
            None => new_authority(&asked.issuer)?,
        };
        let purpose = purpose(asked).map_err(failed)?;
        let now = SystemTime::now();
        let length = Duration::from_secs(asked.duration_hours * 3600);
        let validity = Validity { not_before: now - BACKDATED, not_after: now + length };
        let pair = authority
            .issue(&asked.common_name, &purpose, validity)
            .map_err(|error| failed(error.to_string()))?;
        let said =
            tls::Certificate::parse_pem(&pair.certificate).map_err(|error| failed(error.to_string()))?;
        if said.uris != asked.uris || said.names != asked.dns_names {
            return Err(failed(format!(
                "asks for {:?} and {:?}, and {said:?} was made",
                asked.uris, asked.dns_names
            )));
        }
        let files = [
            ("tls.crt", pair.certificate),
            ("tls.key", pair.key),
            (CA_CERTIFICATE, authority.certificate().to_owned()),
        ];
        self.issuers.insert(asked.issuer.clone(), authority);
        Ok(files.into_iter().map(|(name, text)| (name.to_owned(), text.into_bytes())).collect())
    }

    /// A line of a shell, in a folder, with `gaios` in the path. Callers go on meanwhile.
    async fn run(&self, folder: &Path, line: &str) -> Result<(), Problem> {
        let beside = self.gaios.parent().unwrap_or(Path::new("/")).to_path_buf();
        let others = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(std::iter::once(beside).chain(std::env::split_paths(&others)));
        let mut shell = Command::new("sh");
        shell.args(["-c", line]).current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null());
        shell.env("PATH", path.map_err(|error| error.to_string())?);
        match shell.status().await {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("{line}: {status}")),
            Err(error) => Err(format!("{line}: {error}")),
        }
    }
}

/// What one of our certificates would be for that says what is asked for.
fn purpose(asked: &Certificate) -> Result<Use, String> {
    let usages: Vec<_> = asked.usages.iter().map(String::as_str).collect();
    match (asked.uris.as_slice(), asked.dns_names.as_slice(), usages.as_slice()) {
        ([uri], [], ["digital signature", "server auth", "client auth"]) => {
            Ok(Use::Member(uri.parse().map_err(|error| format!("{uri}: {error}"))?))
        }
        ([], names, ["digital signature", "server auth"]) if !names.is_empty() => {
            Ok(Use::Server(names.to_vec()))
        }
        ([], [], ["digital signature", "client auth"]) => Ok(Use::Client),
        other => Err(format!("is for nobody: {other:?}")),
    }
}

pub(crate) fn new_authority(name: &str) -> Result<Authority, Problem> {
    Authority::new(name, Validity::days(CA_DAYS)).map_err(|error| format!("make a CA: {error}"))
}

/// A CA as the files of a Secret.
pub(crate) fn authority_files(authority: &Authority) -> Files {
    let files = [(CA_CERTIFICATE, authority.certificate().to_owned()), (CA_KEY, authority.key())];
    files.into_iter().map(|(name, text)| (name.to_owned(), text.into_bytes())).collect()
}

/// The same files, with other CAs to trust.
pub(crate) fn trusting(mut files: Files, authorities: &[&[u8]]) -> Files {
    files.insert(CA_CERTIFICATE.to_owned(), authorities.concat());
    files
}

/// Those that these files trust.
pub(crate) fn trusted(files: &Files) -> Vec<u8> {
    files.get(CA_CERTIFICATE).cloned().unwrap_or_default()
}

fn create(folder: &Path) -> Result<(), Problem> {
    fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))
}

fn copy(from: &Path, to: &Path) -> Result<(), Problem> {
    fs::copy(from, to)
        .map(drop)
        .map_err(|error| format!("copy {} to {}: {error}", from.display(), to.display()))
}

fn read(folder: &Path) -> Result<Files, Problem> {
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    let mut files = Files::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        files.insert(name, fs::read(entry.path()).map_err(failed)?);
    }
    Ok(files)
}
