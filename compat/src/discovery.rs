//! `etcdctl --discovery-srv` finds a gateway by the names that docs/discovery.md tells of, in a real DNS server.
//!
//! etcdctl asks the servers in /etc/resolv.conf at port 53, so both must be ours: it runs in a network and with mounts of its own.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use test_dns::{DnsServer, Service};
use tokio::process::Command;

use crate::servers::{self, HOME, succeed};
use crate::{Problem, private};

const DNS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 53);
const TTL_S: u32 = 30;
/// For one command.
const PATIENCE: Duration = Duration::from_secs(30);

/// Commands, and what they print; `None` for those that must fail.
const SCRIPT: &[(&str, Option<&str>)] = &[
    ("--discovery-srv north.test put greeting hello", Some("OK\n")),
    ("--discovery-srv north.test get greeting", Some("greeting\nhello\n")),
    ("--discovery-srv north.test --discovery-srv-name harbour get greeting", Some("greeting\nhello\n")),
    // One of two targets is down.
    ("--discovery-srv half.test get greeting", Some("greeting\nhello\n")),
    ("--discovery-srv south.test get greeting", None),
];

pub(crate) fn run_in_private_network(gaios: &Path, etcdctl: &Path) -> Result<usize, Problem> {
    if !private::is_possible(true) {
        println!("left out: no network and mounts of one's own here, and etcdctl asks {DNS} only");
        return Ok(0);
    }
    let arguments = ["discovery-here", "--gaios"].map(AsRef::as_ref);
    let arguments: Vec<_> =
        arguments.into_iter().chain([gaios.as_os_str(), "--etcdctl".as_ref(), etcdctl.as_os_str()]).collect();
    private::run_ourselves(true, &arguments)
}

/// In a network and with mounts that nobody else sees.
pub(crate) async fn run_here(gaios: &Path, etcdctl: &Path) -> Result<usize, Problem> {
    succeed(std::process::Command::new("ip").args(["link", "set", "lo", "up"]))?;
    let resolv_conf = Path::new(HOME).join("resolv.conf");
    fs::write(&resolv_conf, format!("nameserver {}\n", DNS.ip()))
        .map_err(|error| format!("{}: {error}", resolv_conf.display()))?;
    let mut mount = std::process::Command::new("mount");
    succeed(mount.arg("--bind").arg(&resolv_conf).arg("/etc/resolv.conf"))?;
    let server = servers::start_gaios(gaios, "127.0.0.1:0").await?;
    let port = server.url().rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    let port: u16 = port.ok_or_else(|| format!("{} has no port", server.url()))?;

    let dns = DnsServer::start(DNS).await.map_err(|error| format!("listen on {DNS}: {error}"))?;
    dns.set_addresses("gateway.north.test", TTL_S, &[DNS.ip()]).await;
    let target = |port| Service { priority: 0, weight: 10, port, target: "gateway.north.test" };
    dns.set_services("_etcd-client._tcp.north.test", TTL_S, &[target(port)]).await;
    dns.set_services("_etcd-client-harbour._tcp.north.test", TTL_S, &[target(port)]).await;
    dns.set_services("_etcd-client._tcp.half.test", TTL_S, &[target(1), target(port)]).await;

    let mut failures = 0;
    for (arguments, expected) in SCRIPT {
        let mut command = Command::new(etcdctl);
        command.env("ETCDCTL_API", "3").args(arguments.split(' ')).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, command.output()).await;
        let output = output
            .map_err(|_| format!("etcdctl {arguments}: no end after {PATIENCE:?}"))?
            .map_err(|error| format!("start {}: {error}", etcdctl.display()))?;
        let printed = output.status.success().then(|| String::from_utf8_lossy(&output.stdout));
        if printed.as_deref() != *expected {
            failures += 1;
            println!("etcdctl {arguments}: expected {expected:?}, but {output:?}");
        }
    }
    println!("{} commands, {failures} failures", SCRIPT.len());
    Ok(failures)
}
