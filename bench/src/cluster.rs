//! An etcd of three members on loopback, as a yardstick.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use tempfile::TempDir;

use crate::endpoint::Endpoint;
use crate::server::{ATTEMPTS, HEALTHY_WITHIN, Server, free_ports, status};
use crate::{BenchError, Target};

const MEMBERS: usize = 3;

/// How the members speak TLS to clients, and how they are spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdTls {
    /// The members' certificate, for 127.0.0.1.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The other side.
    pub client: tls::ClientOptions,
}

/// A running cluster; dropping it stops the members and removes their data.
pub struct EtcdCluster {
    members: Vec<Member>,
    tls: Option<tls::ClientOptions>,
    /// Removed last, when no member writes into it any more.
    _data: TempDir,
}

struct Member {
    server: Server,
    client_url: String,
    client: Endpoint,
}

impl EtcdCluster {
    /// Starts three members of the given binary with default settings, data below `parent`, and waits until each
    /// answers a write and a linearizable read.
    pub async fn start(
        binary: &Path,
        parent: &Path,
        tls: Option<&EtcdTls>,
    ) -> Result<EtcdCluster, BenchError> {
        let mut attempt = 1;
        loop {
            let mut cluster = EtcdCluster::spawn(binary, parent, tls)?;
            match cluster.until_healthy().await {
                Ok(()) => return Ok(cluster),
                Err(error) if attempt == ATTEMPTS => return Err(error),
                Err(_) => attempt += 1,
            }
        }
    }

    /// The members as something to measure, the leader first: a single connection then goes to it, which saves it a
    /// hop.
    pub async fn target(&self) -> Result<Target, BenchError> {
        let (mut endpoints, mut pids) = (Vec::new(), Vec::new());
        for member in &self.members {
            let status =
                status(&member.client).await.map_err(BenchError::prepare("ask a member its status"))?;
            let is_leader = status.header.is_some_and(|header| header.member_id == status.leader);
            let at = if is_leader { 0 } else { endpoints.len() };
            endpoints.insert(at, member.client_url.clone());
            pids.insert(at, member.server.pid());
        }
        Ok(Target { label: "etcd".to_owned(), endpoints, pids, tls: self.tls.clone() })
    }

    /// How one of the members ended, if one has.
    pub fn ended(&mut self) -> Option<BenchError> {
        self.members.iter_mut().find_map(|member| member.server.ended())
    }

    fn spawn(binary: &Path, parent: &Path, tls: Option<&EtcdTls>) -> Result<EtcdCluster, BenchError> {
        let doing = format!("start {}", binary.display());
        let data = TempDir::with_prefix_in("gaios-bench-etcd-", parent).map_err(BenchError::io(doing))?;
        let ports = free_ports(2 * MEMBERS).map_err(BenchError::io("find free ports"))?;
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let scheme = if tls.is_some() { "https" } else { "http" };
        let client = tls.map(|tls| tls::Client::load(&tls.client)).transpose();
        let client = client.map_err(|flaws| BenchError::Flags(vec![flaws.to_string()]))?;
        let (client_ports, peer_ports) = ports.split_at(MEMBERS);
        let peers: Vec<String> =
            peer_ports.iter().enumerate().map(|(index, port)| format!("m{index}={}", url(*port))).collect();
        let mut members = Vec::with_capacity(MEMBERS);
        for (index, (client_port, peer_port)) in client_ports.iter().zip(peer_ports).enumerate() {
            let (client_url, peer_url) = (format!("{scheme}://127.0.0.1:{client_port}"), url(*peer_port));
            let client = Endpoint::parse(&client_url, client.as_ref())
                .map_err(|mistake| BenchError::Flags(vec![mistake]))?;
            let mut command = Command::new(binary);
            if let Some(tls) = tls {
                command.arg("--cert-file").arg(&tls.certificate).arg("--key-file").arg(&tls.key);
            }
            command
                .args(["--name", &format!("m{index}")])
                .arg("--data-dir")
                .arg(data.path().join(format!("m{index}")))
                .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url])
                .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
                .args(["--initial-cluster", &peers.join(","), "--initial-cluster-state", "new"])
                .args(["--log-level", "warn"]);
            let log = data.path().join(format!("m{index}.log"));
            let server = Server::start(command, format!("etcd member {client_url}"), log)?;
            members.push(Member { server, client_url, client });
        }
        Ok(EtcdCluster { members, tls: tls.map(|tls| tls.client.clone()), _data: data })
    }

    async fn until_healthy(&mut self) -> Result<(), BenchError> {
        let deadline = Instant::now() + HEALTHY_WITHIN;
        for member in &mut self.members {
            member.server.until_healthy(&member.client, deadline).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn a_binary_which_ends_at_once_is_told() {
        let parent = tempfile::tempdir().unwrap();
        let Err(error) = EtcdCluster::start(Path::new("/bin/false"), parent.path(), None).await else {
            panic!("started");
        };
        assert!(error.to_string().contains("ended with exit status: 1"), "{error}");
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0, "data was left behind");
    }

    #[tokio::test]
    async fn a_binary_which_is_not_there_is_told() {
        let parent = tempfile::tempdir().unwrap();
        let result = EtcdCluster::start(Path::new("/no/etcd"), parent.path(), None).await;
        assert!(matches!(result, Err(BenchError::Io { .. })));
    }
}
