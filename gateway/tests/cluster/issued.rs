//! Certificates for the links of a cluster of processes, in files.

use std::fs;
use std::path::{Path, PathBuf};

use tls::LinkFiles;
use tls::make::{Authority, Use, Validity};

/// The certificates of the members of a cluster, each in files of its own, and the CAs that all trust.
pub(crate) struct Certificates {
    dir: PathBuf,
}

impl Certificates {
    pub(crate) fn new(dir: &Path) -> Certificates {
        let dir = dir.join("tls");
        fs::create_dir(&dir).unwrap();
        Certificates { dir }
    }

    /// New certificates for all of them.
    pub(crate) fn issue(&self, authority: &Authority, members: &[(String, String)]) {
        for (name, uri) in members {
            let purpose = Use::Member(uri.parse().unwrap());
            let pair = authority.issue(name, &purpose, Validity::days(1)).unwrap();
            self.replace(&format!("{name}.key"), &pair.key);
            self.replace(&format!("{name}.crt"), &pair.certificate);
        }
    }

    pub(crate) fn trust(&self, authorities: &[&Authority]) {
        let bundle: String = authorities.iter().map(|authority| authority.certificate()).collect();
        self.replace("ca.crt", &bundle);
    }

    fn replace(&self, name: &str, text: &str) {
        let making = self.dir.join(format!("making-{name}"));
        fs::write(&making, text).unwrap();
        fs::rename(making, self.dir.join(name)).unwrap();
    }

    pub(crate) fn files(&self, name: &str) -> LinkFiles {
        LinkFiles {
            certificate: self.dir.join(format!("{name}.crt")),
            key: self.dir.join(format!("{name}.key")),
            authorities: self.dir.join("ca.crt"),
        }
    }
}

/// The members of a cluster: the names of their processes, and who they are.
pub(crate) fn members(replicas: usize, gateways: usize) -> Vec<(String, String)> {
    let nodes = (1..=replicas).map(|id| (format!("replica-{id}"), format!("gaios://test/node/{id}")));
    let gateways =
        (1..=gateways).map(|id| (format!("gateway-{id}"), format!("gaios://test/gateway/gateway-{id}")));
    nodes.chain(gateways).collect()
}
