//! A folder of certificates: a CA and what it has signed for a cluster. Only its owner can read it.
//!
//! What is there and good is kept, so making is also mending: it can be done again whenever something was added.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tls::make::{Authority, Use, Validity};
use tls::{Certificate, Identity, KeyRing, Role};

use super::Failure;

/// A certificate that is valid for less than this is made anew.
const RENEW_WITHIN: Duration = Duration::from_hours(30 * 24);

/// The CA.
pub(crate) const AUTHORITY: &str = "ca";
/// The certificate that gateways show to clients.
pub(crate) const SERVER: &str = "server";
/// A client's.
pub(crate) const CLIENT: &str = "client";
/// The keys of session tickets.
pub(crate) const TICKETS: &str = "tickets.keys";

/// The certificate of a node.
pub(crate) fn node(id: u32) -> String {
    format!("node-{id}")
}

/// The certificate of a gateway for its links.
pub(crate) fn gateway(name: &str) -> String {
    format!("gateway-{name}")
}

/// What a cluster needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) cluster: String,
    pub(crate) nodes: Vec<u32>,
    pub(crate) gateways: Vec<String>,
    /// DNS names and addresses by which clients reach gateways.
    pub(crate) server_names: Vec<String>,
    /// How long the CA is valid.
    pub(crate) authority_days: u32,
    /// How long all others are.
    pub(crate) days: u32,
}

/// One file, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Done {
    pub(crate) file: PathBuf,
    pub(crate) what: &'static str,
    /// Whom it stands for.
    pub(crate) holder: String,
    pub(crate) days_left: Option<u64>,
}

/// The folder.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// Opens the folder, which is made if need be.
    pub(crate) fn open(path: &Path) -> Result<Folder, Failure> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| format!("cannot make the folder {}: {error}", path.display()))?;
        Ok(Folder(path.to_owned()))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn certificate(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.crt"))
    }

    pub(crate) fn key(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.key"))
    }

    /// Makes all that a cluster needs and that is not there.
    pub(crate) fn make(&self, plan: &Plan) -> Result<Vec<Done>, Failure> {
        let (authority, made) = self.authority(plan)?;
        let mut done = vec![made];
        let member = |role| Use::Member(Identity { cluster: plan.cluster.clone(), role });
        let mut wanted: Vec<(String, Use)> = Vec::new();
        for id in &plan.nodes {
            wanted.push((node(*id), member(Role::Node(*id))));
        }
        for name in &plan.gateways {
            wanted.push((gateway(name), member(Role::Gateway(name.clone()))));
        }
        if !plan.server_names.is_empty() {
            wanted.push((SERVER.to_owned(), Use::Server(plan.server_names.clone())));
        }
        wanted.push((CLIENT.to_owned(), Use::Client));
        for (name, purpose) in &wanted {
            done.push(match self.good(name, purpose, &authority)? {
                Some(there) => self.done(name, "kept", &there),
                None => self.issue(&authority, name, purpose, plan.days)?,
            });
        }
        if !self.path(TICKETS).exists() {
            self.write(TICKETS, &KeyRing::random().to_text())?;
        }
        Ok(done)
    }

    /// Makes each certificate of the folder anew that the CA has signed and that is valid for less than `within`: for the same
    /// holder, with a new key.
    pub(crate) fn renew(&self, within: Duration, days: u32) -> Result<Vec<Done>, Failure> {
        let authority =
            self.known_authority()?.ok_or("there is no CA in this folder: `ca.crt` and `ca.key`")?;
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.0).map_err(|error| format!("{}: {error}", self.0.display()))? {
            let path = entry?.path();
            let name = path.file_stem().and_then(|name| name.to_str()).map(str::to_owned);
            names.extend(
                name.filter(|name| path.extension().is_some_and(|e| e == "crt") && name != AUTHORITY),
            );
        }
        names.sort();
        let mut done = Vec::new();
        for name in names {
            let text = self.read(&format!("{name}.crt"))?.unwrap_or_default();
            let certificate = Certificate::parse_pem(&text)
                .map_err(|error| format!("{}: {error}", self.certificate(&name).display()))?;
            done.push(if !authority.has_signed(&text) {
                self.done(&name, "not ours", &certificate)
            } else if is_good(&certificate, within) {
                self.done(&name, "kept", &certificate)
            } else {
                self.issue(&authority, &name, &purpose_of(&certificate), days)?
            });
        }
        Ok(done)
    }

    /// Puts a new key before those of the tickets, of which `keep` stay in all. Returns how many there are.
    pub(crate) fn rotate_tickets(&self, keep: usize) -> Result<usize, Failure> {
        let ring = match self.read(TICKETS)? {
            Some(text) => KeyRing::parse(&text)
                .map_err(|error| format!("{} {error}", self.path(TICKETS).display()))?
                .rotated(keep),
            None => KeyRing::random(),
        };
        self.write(TICKETS, &ring.to_text())?;
        Ok(ring.len())
    }

    /// The CA of the folder, made if there is none.
    fn authority(&self, plan: &Plan) -> Result<(Authority, Done), Failure> {
        let (authority, what) = match self.known_authority()? {
            Some(known) => (known, "kept"),
            None => {
                let name = format!("Gaios CA of {}", plan.cluster);
                let made = Authority::new(&name, Validity::days(plan.authority_days))?;
                // The key first: a certificate without it would be a CA that is not ours.
                self.write(&format!("{AUTHORITY}.key"), &made.key())?;
                self.write(&format!("{AUTHORITY}.crt"), made.certificate())?;
                (made, "made")
            }
        };
        let certificate = Certificate::parse_pem(authority.certificate())?;
        let done = self.done(AUTHORITY, what, &certificate);
        if done.days_left == Some(0) {
            return Err(format!("the CA in {} has expired", done.file.display()).into());
        }
        Ok((authority, done))
    }

    fn known_authority(&self) -> Result<Option<Authority>, Failure> {
        let certificate = self.read(&format!("{AUTHORITY}.crt"))?;
        let key = self.read(&format!("{AUTHORITY}.key"))?;
        let folder = self.0.display();
        match (certificate, key) {
            (Some(certificate), Some(key)) => Ok(Some(
                Authority::from_pem(&certificate, &key).map_err(|error| format!("{folder}: {error}"))?,
            )),
            (Some(_), None) => {
                Err(format!("{folder}: there is a ca.crt, but not its ca.key, so nothing can be signed")
                    .into())
            }
            // It was made, and its certificate not written any more.
            (None, _) => Ok(None),
        }
    }

    /// What is there under this name, if it is as wanted and lasts.
    fn good(&self, name: &str, purpose: &Use, authority: &Authority) -> Result<Option<Certificate>, Failure> {
        let text = self.read(&format!("{name}.crt"))?.unwrap_or_default();
        let has_key = self.key(name).exists();
        let there = Certificate::parse_pem(&text).ok().filter(|there| {
            has_key
                && authority.has_signed(&text)
                && is_good(there, RENEW_WITHIN)
                && covers(&purpose_of(there), purpose)
        });
        Ok(there)
    }

    fn issue(&self, authority: &Authority, name: &str, purpose: &Use, days: u32) -> Result<Done, Failure> {
        let ends = Certificate::parse_pem(authority.certificate())?.not_after;
        let mut validity = Validity::days(days);
        // What its CA does not outlive is of no use.
        validity.not_after = validity.not_after.min(ends);
        let pair = authority.issue(&holder(name, purpose), purpose, validity)?;
        self.write(&format!("{name}.key"), &pair.key)?;
        self.write(&format!("{name}.crt"), &pair.certificate)?;
        Ok(self.done(name, "made", &Certificate::parse_pem(&pair.certificate)?))
    }

    fn done(&self, name: &str, what: &'static str, certificate: &Certificate) -> Done {
        let left = certificate.not_after.duration_since(SystemTime::now()).unwrap_or_default();
        Done {
            file: self.certificate(name),
            what,
            holder: holder(name, &purpose_of(certificate)),
            days_left: Some(left.as_secs() / 86_400),
        }
    }

    /// All certificates, keys and rings of the folder, by name.
    pub(crate) fn files(&self) -> Result<BTreeMap<String, String>, Failure> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(&self.0).map_err(|error| format!("{}: {error}", self.0.display()))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if let Some(text) = self.read(&name)? {
                files.insert(name, text);
            }
        }
        Ok(files)
    }

    /// Puts a file there that was made before. What has another name than the files of such a folder is left out.
    pub(crate) fn put(&self, name: &str, text: &str) -> Result<(), Failure> {
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        let ours = [".crt", ".key", ".keys"].iter().any(|end| name.len() > end.len() && name.ends_with(end));
        if plain && ours { self.write(name, text) } else { Ok(()) }
    }

    fn read(&self, name: &str) -> Result<Option<String>, Failure> {
        match fs::read_to_string(self.path(name)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("{}: {error}", self.path(name).display()).into()),
        }
    }

    /// Replaces a file whole: who reads it finds the old one or the new one.
    fn write(&self, name: &str, text: &str) -> Result<(), Failure> {
        let (path, new) = (self.path(name), self.path(&format!(".{name}.new")));
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&new, &path));
        written.map_err(|error| format!("cannot write {}: {error}", path.display()).into())
    }
}

fn is_good(certificate: &Certificate, within: Duration) -> bool {
    certificate.not_after.duration_since(SystemTime::now()).is_ok_and(|left| left >= within)
}

/// What a certificate of this folder is for.
fn purpose_of(certificate: &Certificate) -> Use {
    match certificate.identity() {
        Ok(identity) => Use::Member(identity),
        Err(_) if certificate.names.is_empty() => Use::Client,
        Err(_) => Use::Server(certificate.names.clone()),
    }
}

fn covers(there: &Use, wanted: &Use) -> bool {
    match (there, wanted) {
        (Use::Server(there), Use::Server(wanted)) => wanted.iter().all(|name| there.contains(name)),
        (Use::Member(_) | Use::Client | Use::Server(_), wanted) => there == wanted,
    }
}

/// For people.
fn holder(name: &str, purpose: &Use) -> String {
    match purpose {
        Use::Member(identity) => identity.to_string(),
        Use::Server(names) => names.join(", "),
        Use::Client => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn plan() -> Plan {
        Plan {
            cluster: "harbour".to_owned(),
            nodes: vec![1, 2],
            gateways: vec!["eu-1".to_owned()],
            server_names: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
            authority_days: 100,
            days: 90,
        }
    }

    fn said(done: &[Done]) -> Vec<String> {
        let file = |done: &Done| done.file.file_name().expect("a file").to_string_lossy().into_owned();
        done.iter().map(|done| format!("{} {}: {}", done.what, file(done), done.holder)).collect()
    }

    #[test]
    fn what_is_good_is_kept_and_what_is_not_is_made() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::open(&root.path().join("a/tls")).unwrap();
        let made = folder.make(&plan()).unwrap();
        assert_eq!(
            said(&made),
            [
                "made ca.crt: ca",
                "made node-1.crt: gaios://harbour/node/1",
                "made node-2.crt: gaios://harbour/node/2",
                "made gateway-eu-1.crt: gaios://harbour/gateway/eu-1",
                "made server.crt: localhost, 127.0.0.1",
                "made client.crt: client",
            ]
        );
        for entry in fs::read_dir(&folder.0).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
        }
        assert_eq!(fs::metadata(&folder.0).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(KeyRing::parse(&folder.read(TICKETS).unwrap().unwrap()).is_ok());
        let all_kept = folder.make(&plan()).unwrap();
        assert!(all_kept.iter().all(|done| done.what == "kept"), "{all_kept:?}");

        fs::remove_file(folder.key("node-1")).unwrap();
        let larger = Plan { nodes: vec![1, 2, 3], server_names: vec!["gaios.example".to_owned()], ..plan() };
        let made: Vec<_> = said(&folder.make(&larger).unwrap());
        let made: Vec<_> = made.iter().filter(|line| line.starts_with("made")).collect();
        assert_eq!(
            made,
            [
                "made node-1.crt: gaios://harbour/node/1",
                "made node-3.crt: gaios://harbour/node/3",
                "made server.crt: gaios.example"
            ]
        );

        fs::remove_file(folder.certificate(AUTHORITY)).unwrap();
        let anew = folder.make(&larger).unwrap();
        assert!(anew.iter().all(|done| done.what == "made"), "another CA signs all: {anew:?}");
        fs::remove_file(folder.key(AUTHORITY)).unwrap();
        let error = folder.make(&larger).unwrap_err().to_string();
        assert!(error.contains("not its ca.key"), "{error}");
    }

    #[test]
    fn certificates_are_renewed_for_the_same_holders() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::open(root.path()).unwrap();
        let made = folder.make(&plan()).unwrap();
        let before = folder.read("server.crt").unwrap();
        let days = |days: u64| Duration::from_hours(24 * days);
        let kept = folder.renew(days(30), 200).unwrap();
        assert!(kept.iter().all(|done| done.what == "kept"), "{kept:?}");
        let stranger = Authority::new("another", Validity::days(1)).unwrap();
        folder.write("stranger.crt", stranger.certificate()).unwrap();
        let renewed = folder.renew(days(91), 200).unwrap();
        let mut expected: Vec<_> = said(&made[1..]);
        expected.push("not ours stranger.crt: stranger".to_owned());
        let mut found = said(&renewed);
        expected.sort();
        found.sort();
        assert_eq!(found, expected);
        assert_ne!(folder.read("server.crt").unwrap(), before);
        let outlived =
            renewed.iter().filter(|done| done.what == "made").all(|done| done.days_left <= Some(100));
        assert!(outlived, "none outlives its CA: {renewed:?}");
    }

    #[test]
    fn keys_of_tickets_are_rotated() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::open(root.path()).unwrap();
        let counts: Vec<_> = (0..5).map(|_| folder.rotate_tickets(3).unwrap()).collect();
        assert_eq!(counts, [1, 2, 3, 3, 3]);
        folder.write(TICKETS, "secret").unwrap();
        let error = folder.rotate_tickets(3).unwrap_err().to_string();
        assert!(error.contains("line 1") && !error.contains("secret"), "{error}");
    }
}
