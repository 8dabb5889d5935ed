//! `gaios dev`: nodes and a gateway in one process, over real links on loopback and with a real journal each.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use config::{ClientAuth, ClientTls, Dev, LinkTls, TlsVersion};
use gateway::Gateway;
use replica::{Node, NodeOptions};
use tls::Holder;

use super::pki::{self, Folder, Plan};
use super::{
    Failure, bind, descriptors, follow, gateway as gateway_role, link_tls, replica as replica_role, runtime,
    start_log, stop_signal,
};

/// How long the cluster may take to elect its leader before a hint is printed.
const READY_WITHIN: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder for everything that is kept.
    #[arg(long, value_name = "DIR", default_value_os_t = Dev::default().data_dir)]
    data_dir: PathBuf,
    /// Where clients connect.
    #[arg(long, value_name = "ADDR", default_value_t = Dev::default().listen)]
    listen: SocketAddr,
    /// Nodes, each with a replica of every group: 1, 3 or 5 are of use.
    #[arg(long, value_name = "N", default_value_t = Dev::default().replicas, value_parser = clap::value_parser!(u32).range(1..=15))]
    replicas: u32,
    /// Consensus groups.
    #[arg(long, value_name = "N", default_value_t = Dev::default().groups, value_parser = clap::value_parser!(u32).range(1..))]
    groups: u32,
    /// Speak TLS, with clients and between all parts, with certificates made for this machine; they lie in the folder `tls` of DIR.
    #[arg(long)]
    auto_tls: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    if args.groups > 1 {
        return Err(format!(
            "--groups {}: the keyspace can be carried by one group only, so far; leave the flag out",
            args.groups
        )
        .into());
    }
    let dev = Dev {
        data_dir: args.data_dir.clone(),
        listen: args.listen,
        replicas: args.replicas,
        groups: args.groups,
    };
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listeners =
        (0..dev.replicas).map(|_| bind(loopback, "a port of this machine")).collect::<Result<Vec<_>, _>>()?;
    let addresses = listeners.iter().map(std::net::TcpListener::local_addr).collect::<Result<Vec<_>, _>>()?;
    let cluster = Dev::cluster(&addresses);
    let mut gateway = Dev::gateway(dev.listen, loopback, &cluster);
    let certificates =
        if args.auto_tls { Some(make_certificates(&dev, &cluster, &mut gateway)?) } else { None };
    start_log(&config::Log { level: config::LogLevel::Warn, ..gateway.log.clone() });
    // One half is the gateway's.
    let descriptors = descriptors::raise() / 2 / listeners.len().max(1);
    runtime(None)?.block_on(async {
        let mut nodes = Vec::new();
        for ((id, listener), address) in (1..).zip(listeners).zip(&addresses) {
            let replica = dev.replica(id, *address, loopback, &cluster);
            let files = certificates.as_ref().map(|folder| member_files(folder, &pki::node(id)));
            let tls = link_tls(files.as_ref(), &cluster, Holder::Node(id))?;
            follow(tls.as_ref());
            let options = replica_role::options(&replica, listener, descriptors)?;
            nodes.push(Node::start(NodeOptions { tls, ..options }).await?);
        }
        // The port may have been left to the kernel, so the gateway itself tells where it is.
        let files =
            certificates.as_ref().map(|folder| member_files(folder, &pki::gateway(gateway.name.as_str())));
        let link_tls = link_tls(files.as_ref(), &cluster, Holder::Gateway)?;
        follow(link_tls.as_ref());
        let options =
            gateway::GatewayOptions { client_urls: Vec::new(), link_tls, ..gateway_role::options(&gateway)? };
        let gateway = Gateway::start(options).await.map_err(|error| {
            format!("cannot listen on {}: {error}; choose another address with --listen", dev.listen)
        })?;
        say(&dev, &gateway, nodes.len(), certificates.as_ref())?;
        tokio::select! {
            ready = gateway.ready(READY_WITHIN) => {
                if ready {
                    println!("ready");
                } else {
                    tracing::warn!("no leader after {READY_WITHIN:?}: is the disk very slow?");
                }
                stop_signal().await?;
            }
            signal = stop_signal() => signal?,
        }
        gateway.shutdown().await;
        for node in nodes {
            node.stop().await;
        }
        Ok(())
    })
}

/// The files of a member's certificate.
fn member_files(folder: &Folder, name: &str) -> LinkTls {
    LinkTls {
        cert_file: folder.certificate(name),
        key_file: folder.key(name),
        ca_file: folder.certificate(pki::AUTHORITY),
    }
}

/// Makes what is not there yet, and has the gateway use it.
fn make_certificates(
    dev: &Dev,
    cluster: &config::Cluster,
    gateway: &mut config::Gateway,
) -> Result<Folder, Failure> {
    let folder = Folder::open(&dev.tls_dir())?;
    let mut server_names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
    let ip = dev.listen.ip();
    if !ip.is_unspecified() && !ip.is_loopback() {
        server_names.push(ip.to_string());
    }
    folder.make(&Plan {
        cluster: cluster.name.to_string(),
        nodes: cluster.nodes.iter().map(|node| node.id).collect(),
        gateways: vec![gateway.name.to_string()],
        server_names,
        authority_days: 3650,
        days: 365,
    })?;
    gateway.client_tls = Some(ClientTls {
        cert_file: folder.certificate(pki::SERVER),
        key_file: folder.key(pki::SERVER),
        client_ca_file: Some(folder.certificate(pki::AUTHORITY)),
        client_auth: ClientAuth::Optional,
        ticket_keys_file: Some(folder.path(pki::TICKETS)),
        min_version: TlsVersion::Tls12,
    });
    Ok(folder)
}

fn say(dev: &Dev, gateway: &Gateway, nodes: usize, certificates: Option<&Folder>) -> Result<(), Failure> {
    let address = gateway.address();
    let scheme = if certificates.is_some() { "https" } else { "http" };
    let mut out = std::io::stdout().lock();
    writeln!(out, "gaios dev: {nodes} replicas, data in {}", dev.data_dir.display())?;
    writeln!(out, "listening on {scheme}://{address}")?;
    if let Some(admin) = gateway.admin_address() {
        writeln!(out, "status page on http://{admin}/")?;
    }
    let flags = certificates.map(|folder| {
        let file = |path: std::path::PathBuf| path.display().to_string();
        format!(
            " --cacert={} --cert={} --key={}",
            file(folder.certificate(pki::AUTHORITY)),
            file(folder.certificate(pki::CLIENT)),
            file(folder.key(pki::CLIENT)),
        )
    });
    let flags = flags.unwrap_or_default();
    writeln!(out, "try: etcdctl --endpoints={scheme}://{address}{flags} put greeting hello")?;
    out.flush()?;
    Ok(())
}
