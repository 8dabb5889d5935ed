//! Three nodes and a gateway, each a process, with clients that use them. All end when they are dropped.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::prometheus::get;
use super::write;
use crate::run::Failure;

const NODES: usize = 3;
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Longer than anything that is looked at.
const LOAD_SECONDS: &str = "180";

/// A process that ends with this.
pub(super) struct Ended(Child);

impl Ended {
    pub(super) fn start(mut command: Command, name: &str) -> Result<Ended, Failure> {
        command.spawn().map(Ended).map_err(|error| Failure::new(format!("start {name}: {error}")))
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Admin ports.
pub(super) struct Targets {
    pub(super) gateways: Vec<SocketAddr>,
    pub(super) replicas: Vec<SocketAddr>,
}

pub(super) struct Cluster {
    /// Where clients connect.
    listen: SocketAddr,
    pub(super) gateway_admin: SocketAddr,
    pub(super) replica_admins: Vec<SocketAddr>,
    _processes: Vec<Ended>,
}

impl Cluster {
    /// Starts it, and waits until all of it is ready.
    pub(super) fn start(dir: &Path) -> Result<Cluster, Failure> {
        let listens = (0..NODES).map(|_| free_address()).collect::<Result<Vec<_>, _>>()?;
        let replica_admins = (0..NODES).map(|_| free_address()).collect::<Result<Vec<_>, _>>()?;
        let nodes: String =
            (1..).zip(&listens).map(|(id, at)| format!("  - {{id: {id}, address: '{at}'}}\n")).collect();
        let cluster = format!("cluster:\n  name: observed\n  nodes:\n{nodes}");
        let mut processes = Vec::new();
        for ((id, listen), admin) in (1..).zip(&listens).zip(&replica_admins) {
            let data = dir.join(format!("data-{id}"));
            let text = format!(
                "role: replica\nnode: {id}\ndata_dir: '{}'\nlisten: '{listen}'\nadmin_listen: '{admin}'\n\
                 journal: {{segment_bytes: 1MiB}}\nsnapshot: {{min_journal_bytes: 1MiB}}\n\
                 log: {{level: warn}}\n{cluster}",
                data.display()
            );
            processes.push(role("replica", &dir.join(format!("replica-{id}.yaml")), &text)?);
        }
        let (listen, gateway_admin) = (free_address()?, free_address()?);
        let text = format!(
            "role: gateway\nname: harbour\nregion: eu-west\nlisten: '{listen}'\nadmin_listen: '{gateway_admin}'\n\
             advertise_client_urls: ['http://{listen}']\nlog: {{level: warn}}\n{cluster}"
        );
        processes.push(role("gateway", &dir.join("gateway.yaml"), &text)?);
        let begun = Instant::now();
        for admin in replica_admins.iter().chain([&gateway_admin]) {
            while get(*admin, "/readyz").is_none_or(|(status, _)| status != 200) {
                if begun.elapsed() > READY_WITHIN {
                    return Err(Failure::new(format!(
                        "the process with the admin port {admin} is not ready"
                    )));
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(Cluster { listen, gateway_admin, replica_admins, _processes: processes })
    }

    pub(super) fn targets(&self) -> Targets {
        Targets { gateways: vec![self.gateway_admin], replicas: self.replica_admins.clone() }
    }

    /// Clients that write, read, watch and hold leases, few enough that a small machine has time for the rest.
    pub(super) fn load(&self) -> Result<Vec<Ended>, Failure> {
        let client = |workload: &str, more: &[&str]| {
            let mut command = Command::new(binary("gaios-bench"));
            command
                .args(["run", workload, "--endpoints", &format!("http://{}", self.listen)])
                .args(["--seconds", LOAD_SECONDS, "--callers", "2"])
                .args(more)
                .stdout(Stdio::null());
            Ended::start(command, "the load")
        };
        Ok(vec![
            client("put", &["--keys", "1000"])?,
            client("get", &["--keys", "1000"])?,
            client("watch", &["--watchers", "20"])?,
            client("lease-keep-alive", &[])?,
        ])
    }
}

fn role(role: &str, config: &Path, text: &str) -> Result<Ended, Failure> {
    write(config, text)?;
    let mut command = Command::new(binary("gaios"));
    command.arg(role).arg("--config").arg(config);
    Ended::start(command, role)
}

fn binary(name: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    target.join("debug").join(name)
}

/// An address that was free a moment ago, on an IP address of this process's own: no other program draws its ports there,
/// and no connection begins there.
pub(super) fn free_address() -> Result<SocketAddr, Failure> {
    let ip = Ipv4Addr::from_bits(0x7fc0_0000 | (std::process::id() & 0x3f_ffff));
    let listener = TcpListener::bind((ip, 0)).and_then(|listener| listener.local_addr());
    listener.map_err(|error| Failure::new(format!("a port of {ip}: {error}")))
}
