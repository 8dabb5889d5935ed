//! `gaios dev`: nodes and a gateway in one process, over real links on loopback and with a real journal each.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use config::Dev;
use gateway::Gateway;
use replica::Node;

use super::{
    Failure, awake, bind, descriptors, gateway as gateway_role, replica as replica_role, runtime, start_log,
    stop_signal,
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
    /// See `core_wake_latency_max` in docs/configuration.md, such as 0us.
    #[arg(long, value_name = "TIME", value_parser = config::core_wake_latency_max)]
    core_wake_latency_max: Option<Duration>,
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
    let gateway = Dev::gateway(dev.listen, loopback, &cluster);
    start_log(&config::Log { level: config::LogLevel::Warn, ..gateway.log.clone() });
    let awake = awake(args.core_wake_latency_max)?;
    // One half is the gateway's.
    let descriptors = descriptors::raise() / 2 / listeners.len().max(1);
    runtime(None)?.block_on(async {
        let mut nodes = Vec::new();
        for ((id, listener), address) in (1..).zip(listeners).zip(&addresses) {
            let replica = dev.replica(id, *address, loopback, &cluster);
            nodes.push(
                Node::start(replica_role::options(&replica, listener, awake.clone(), descriptors)?).await?,
            );
        }
        // The port may have been left to the kernel, so the gateway itself tells where it is.
        let options =
            gateway::GatewayOptions { client_urls: Vec::new(), awake, ..gateway_role::options(&gateway) };
        let gateway = Gateway::start(options).await.map_err(|error| {
            format!("cannot listen on {}: {error}; choose another address with --listen", dev.listen)
        })?;
        say(&dev, &gateway, nodes.len())?;
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

fn say(dev: &Dev, gateway: &Gateway, nodes: usize) -> Result<(), Failure> {
    let address = gateway.address();
    let mut out = std::io::stdout().lock();
    writeln!(out, "gaios dev: {nodes} replicas, data in {}", dev.data_dir.display())?;
    writeln!(out, "listening on http://{address}")?;
    if let Some(admin) = gateway.admin_address() {
        writeln!(out, "status page on http://{admin}/")?;
    }
    writeln!(out, "try: etcdctl --endpoints=http://{address} put greeting hello")?;
    out.flush()?;
    Ok(())
}
