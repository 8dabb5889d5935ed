//! Three nodes and two gateways, each a process, with clients that use one of them; the other one speaks TLS. Links have
//! certificates. All end when they are dropped.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::process::{Ended, free_address, get};
use super::write;
use crate::run::Failure;

const NAME: &str = "observed";
const NODES: usize = 3;
const GATEWAY: &str = "harbour";
const TLS_GATEWAY: &str = "haven";
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Longer than anything that is looked at.
const LOAD_SECONDS: &str = "180";

/// Admin ports.
pub(super) struct Targets {
    pub(super) gateways: Vec<SocketAddr>,
    pub(super) replicas: Vec<SocketAddr>,
}

pub(super) struct Cluster {
    /// Where clients connect.
    listen: SocketAddr,
    /// Of the gateway that has clients.
    pub(super) gateway_admin: SocketAddr,
    /// Of the one that speaks TLS with them.
    pub(super) tls_gateway_admin: SocketAddr,
    pub(super) replica_admins: Vec<SocketAddr>,
    _processes: Vec<Ended>,
}

impl Cluster {
    /// Starts it, and waits until all of it is ready.
    pub(super) fn start(dir: &Path) -> Result<Cluster, Failure> {
        let tls = dir.join("tls");
        make_certificates(&tls)?;
        let listens = (0..NODES).map(|_| free_address()).collect::<Result<Vec<_>, _>>()?;
        let replica_admins = (0..NODES).map(|_| free_address()).collect::<Result<Vec<_>, _>>()?;
        let nodes: String = (1..)
            .zip(&listens)
            .map(|(id, at)| {
                format!(
                    "  - {{id: {id}, address: '{at}', region: eu-west, zone: {}}}\n",
                    ["a", "b", "c"][id - 1]
                )
            })
            .collect();
        let cluster = format!("log: {{level: warn}}\ncluster:\n  name: {NAME}\n  nodes:\n{nodes}");
        let mut processes = Vec::new();
        for ((id, listen), admin) in (1..).zip(&listens).zip(&replica_admins) {
            let data = dir.join(format!("data-{id}"));
            let text = format!(
                "role: replica\nnode: {id}\ndata_dir: '{}'\nlisten: '{listen}'\nadmin_listen: '{admin}'\n\
                 journal: {{segment_bytes: 1MiB}}\nsnapshot: {{min_journal_bytes: 1MiB}}\n{}{cluster}",
                data.display(),
                link_tls(&tls, &format!("node-{id}"))
            );
            processes.push(role("replica", &dir.join(format!("replica-{id}.yaml")), &text)?);
        }
        let mut gateway = |name: &str, scheme: &str, client_tls: &str| {
            let (listen, admin) = (free_address()?, free_address()?);
            let text = format!(
                "role: gateway\nname: {name}\nregion: eu-west\nzone: a\nlisten: '{listen}'\nadmin_listen: '{admin}'\n\
                 advertise_client_urls: ['{scheme}://{listen}']\n{client_tls}{}{cluster}",
                link_tls(&tls, &format!("gateway-{name}"))
            );
            processes.push(role("gateway", &dir.join(format!("{name}.yaml")), &text)?);
            Ok::<_, Failure>((listen, admin))
        };
        let (listen, gateway_admin) = gateway(GATEWAY, "http", "")?;
        let client_tls = format!(
            "client_tls: {{cert_file: '{}', key_file: '{}'}}\n",
            tls.join("server.crt").display(),
            tls.join("server.key").display()
        );
        let (_, tls_gateway_admin) = gateway(TLS_GATEWAY, "https", &client_tls)?;
        let begun = Instant::now();
        for admin in replica_admins.iter().chain([&gateway_admin, &tls_gateway_admin]) {
            while get(*admin, "/readyz").is_none_or(|(status, _)| status != 200) {
                if begun.elapsed() > READY_WITHIN {
                    return Err(Failure::new(format!(
                        "the process with the admin port {admin} is not ready"
                    )));
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(Cluster { listen, gateway_admin, tls_gateway_admin, replica_admins, _processes: processes })
    }

    pub(super) fn targets(&self) -> Targets {
        let gateways = vec![self.gateway_admin, self.tls_gateway_admin];
        Targets { gateways, replicas: self.replica_admins.clone() }
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

/// As an operator makes them who has no PKI.
fn make_certificates(dir: &Path) -> Result<(), Failure> {
    let output = Command::new(binary("gaios"))
        .args(["ctl", "certs", "--dir"])
        .arg(dir)
        .args(["make", "--cluster", NAME, "--nodes", "1,2,3", "--names", "127.0.0.1"])
        .args(["--gateways", &format!("{GATEWAY},{TLS_GATEWAY}")])
        .output()
        .map_err(|error| Failure::new(format!("start gaios: {error}")))?;
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::new(format!("gaios ctl certs: {}: {told}", output.status)));
    }
    Ok(())
}

fn link_tls(dir: &Path, member: &str) -> String {
    let file = |name: String| dir.join(name).display().to_string();
    format!(
        "link_tls: {{cert_file: '{}', key_file: '{}', ca_file: '{}'}}\n",
        file(format!("{member}.crt")),
        file(format!("{member}.key")),
        file("ca.crt".to_owned())
    )
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
