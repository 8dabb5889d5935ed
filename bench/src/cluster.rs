//! An etcd of three members on loopback, as a yardstick.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use api::etcdserverpb as pb;
use pb::kv_client::KvClient;
use pb::maintenance_client::MaintenanceClient;
use tempfile::TempDir;
use tokio::time::timeout;
use tonic::Status;

use crate::connection::Connection;
use crate::endpoint::Endpoint;
use crate::{BenchError, Target};

const MEMBERS: usize = 3;
/// From start to the first answered write at every member.
const HEALTHY_WITHIN: Duration = Duration::from_secs(30);
/// Another program may take a port between its choice and its use; then everything is tried again.
const ATTEMPTS: usize = 3;

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
    process: Child,
    client_url: String,
    client: Endpoint,
    log: PathBuf,
}

impl Drop for Member {
    fn drop(&mut self) {
        // Both fail only if the process has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
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
        let mut endpoints: Vec<String> = Vec::new();
        for member in &self.members {
            let status =
                status(&member.client).await.map_err(BenchError::prepare("ask a member its status"))?;
            let is_leader = status.header.is_some_and(|header| header.member_id == status.leader);
            endpoints.insert(if is_leader { 0 } else { endpoints.len() }, member.client_url.clone());
        }
        let pids = self.members.iter().map(|member| member.process.id()).collect();
        Ok(Target { label: "etcd".to_owned(), endpoints, pids, tls: self.tls.clone() })
    }

    fn spawn(binary: &Path, parent: &Path, tls: Option<&EtcdTls>) -> Result<EtcdCluster, BenchError> {
        let doing = || format!("start {}", binary.display());
        let data = TempDir::with_prefix_in("gaios-bench-etcd-", parent).map_err(BenchError::io(doing()))?;
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
            let log = data.path().join(format!("m{index}.log"));
            let log_file = File::create(&log).map_err(BenchError::io(doing()))?;
            let errors = log_file.try_clone().map_err(BenchError::io(doing()))?;
            let mut command = Command::new(binary);
            if let Some(tls) = tls {
                command.arg("--cert-file").arg(&tls.certificate).arg("--key-file").arg(&tls.key);
            }
            let process = command
                .args(["--name", &format!("m{index}")])
                .arg("--data-dir")
                .arg(data.path().join(format!("m{index}")))
                .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url])
                .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
                .args(["--initial-cluster", &peers.join(","), "--initial-cluster-state", "new"])
                .args(["--log-level", "warn"])
                .stdin(Stdio::null())
                .stdout(log_file)
                .stderr(errors)
                .spawn()
                .map_err(BenchError::io(doing()))?;
            members.push(Member { process, client_url, client, log });
        }
        Ok(EtcdCluster { members, tls: tls.map(|tls| tls.client.clone()), _data: data })
    }

    async fn until_healthy(&mut self) -> Result<(), BenchError> {
        let deadline = Instant::now() + HEALTHY_WITHIN;
        for member in &mut self.members {
            loop {
                if let Ok(Some(exit)) = member.process.try_wait() {
                    return Err(member.failed(&format!("ended with {exit}")));
                }
                match answers(&member.client).await {
                    Ok(()) => break,
                    Err(status) if Instant::now() > deadline => return Err(member.failed(status.message())),
                    // There is nothing to be told by when a foreign process is ready.
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        }
        Ok(())
    }
}

impl Member {
    fn failed(&self, what: &str) -> BenchError {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let last = log.lines().last().unwrap_or("nothing");
        BenchError::Server(format!("etcd member {}: {what}; its log ends with: {last}", self.client_url))
    }
}

/// Asks the kernel for ports, all at once so that they differ.
fn free_ports(count: usize) -> std::io::Result<Vec<u16>> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listeners = (0..count).map(|_| TcpListener::bind(any)).collect::<Result<Vec<_>, _>>()?;
    listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

async fn connect(endpoint: &Endpoint) -> Result<Connection, Status> {
    Connection::open(endpoint).await.map_err(|error| Status::unavailable(error.to_string()))
}

async fn in_time<T>(asking: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    match timeout(Duration::from_secs(5), asking).await {
        Ok(answer) => answer,
        Err(_) => Err(Status::deadline_exceeded("no answer within 5 s")),
    }
}

async fn answers(endpoint: &Endpoint) -> Result<(), Status> {
    in_time(async {
        let mut client = KvClient::new(connect(endpoint).await?);
        client.put(pb::PutRequest { key: "gaios-bench".into(), ..Default::default() }).await?;
        client.range(pb::RangeRequest { key: "gaios-bench".into(), ..Default::default() }).await?;
        Ok(())
    })
    .await
}

/// What a server says of itself.
pub(crate) async fn status(endpoint: &Endpoint) -> Result<pb::StatusResponse, Status> {
    in_time(async {
        let mut client = MaintenanceClient::new(connect(endpoint).await?);
        client.status(pb::StatusRequest {}).await.map(tonic::Response::into_inner)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_ports_differ() {
        let mut ports = free_ports(20).unwrap();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 20);
    }

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
