//! Folders of certificates, and connected sockets.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tls::make::{Authority, Pair, Use, Validity};
use tls::{Holder, Identity, LinkFiles, Mutual};
use tokio::net::{TcpListener, TcpStream};

pub(crate) const CLUSTER: &str = "harbour";

/// A folder of certificates.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn write_pair(&self, name: &str, pair: &Pair) {
        self.write(&format!("{name}.crt"), &pair.certificate);
        self.write(&format!("{name}.key"), &pair.key);
    }

    /// The certificate of a member, with its CA beside it.
    pub(crate) fn write_member(&self, name: &str, uri: &str, authority: &Authority) {
        self.write_pair(name, &member(uri, authority));
        self.write("ca.crt", authority.certificate());
    }

    pub(crate) fn link_files(&self, name: &str) -> LinkFiles {
        LinkFiles {
            certificate: self.path(&format!("{name}.crt")),
            key: self.path(&format!("{name}.key")),
            authorities: self.path("ca.crt"),
        }
    }
}

pub(crate) fn authority(name: &str) -> Authority {
    Authority::new(name, Validity::days(10)).unwrap()
}

pub(crate) fn member(uri: &str, authority: &Authority) -> Pair {
    authority.issue(uri, &Use::Member(uri.parse().unwrap()), Validity::days(10)).unwrap()
}

/// Valid until so long ago.
pub(crate) fn expired(ago: Duration) -> Validity {
    let now = SystemTime::now();
    Validity { not_before: now - ago - Duration::from_hours(48), not_after: now - ago }
}

pub(crate) fn gateway_uri() -> String {
    format!("gaios://{CLUSTER}/gateway/g")
}

pub(crate) fn node_uri(id: u32) -> String {
    format!("gaios://{CLUSTER}/node/{id}")
}

pub(crate) fn identity(uri: &str) -> Identity {
    uri.parse().unwrap()
}

/// The links of a member whose certificate `authority` has signed.
pub(crate) fn mutual(uri: &str, holder: Holder, authority: &Authority) -> Mutual {
    let folder = Folder::new();
    folder.write_member("link", uri, authority);
    Mutual::load(folder.link_files("link"), CLUSTER, holder).unwrap()
}

/// Both ends of a connection: who connected, and who accepted.
pub(crate) async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (near, listener.accept().await.unwrap().0)
}
