//! What each subcommand runs. A role is composed here and nowhere else.

pub(crate) mod admin;
pub(crate) mod certificates;
pub(crate) mod ctl;
pub(crate) mod descriptors;
pub(crate) mod dev;
pub(crate) mod gateway;
pub(crate) mod memory;
pub(crate) mod pki;
pub(crate) mod reload;
pub(crate) mod replica;

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::gateway::door as gateway_door;
use bytes::Bytes;
use config::{Config, Given, LinkTls, Log, LogFormat, LogLevel};
use shard_map::{Epoch, Group, GroupId, NodeId, Role, Shard, ShardId, ShardMap};
use tls::{Holder, LinkFiles, Mutual};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// A failure to start or run, in words for the operator.
pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// The configuration of a process, and what is given beside it.
#[derive(clap::Args)]
pub(crate) struct ConfigArgs {
    /// Configuration file; see docs/configuration.md.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// In place of the file's `name`, for processes that share a file.
    #[arg(long, value_name = "NAME", env = "GAIOS_NAME")]
    name: Option<String>,
    /// In place of the file's `zone`, for processes that share a file.
    #[arg(long, value_name = "NAME", env = "GAIOS_ZONE")]
    zone: Option<String>,
}

impl ConfigArgs {
    pub(crate) fn given(&self) -> Given {
        Given { name: self.name.clone(), zone: self.zone.clone(), ..Given::default() }
    }
}

/// The same where the process may be a node.
#[derive(clap::Args)]
pub(crate) struct NodeConfigArgs {
    #[command(flatten)]
    pub(crate) file: ConfigArgs,
    /// In place of the file's `node`, for nodes that share a file.
    #[arg(long, value_name = "ID", env = "GAIOS_NODE")]
    node: Option<String>,
}

impl NodeConfigArgs {
    pub(crate) fn given(&self) -> Given {
        Given { node: self.node.clone(), ..self.file.given() }
    }
}

/// `gaios check`.
pub(crate) fn check(file: &Path, given: &Given) -> Result<(), Failure> {
    let config = Config::load_and_look(file, given, certificates::problems)?;
    let (role, cluster) = match &config {
        Config::Replica(replica) => ("replica", &replica.cluster),
        Config::Gateway(gateway) => ("gateway", &gateway.cluster),
    };
    for advice in cluster.advice() {
        eprintln!("{}: {advice}", file.display());
    }
    println!("{}: a valid {role} configuration", file.display());
    Ok(())
}

/// The static map of a configuration: all keys belong to the group with the lowest id.
fn shard_map(cluster: &config::Cluster) -> Result<ShardMap, Failure> {
    let groups = cluster.groups_or_default();
    let carrier = groups.iter().min_by_key(|group| group.id).ok_or("the cluster has no group")?;
    let replicas = carrier.voters.iter().map(|voter| (NodeId(*voter), Role::Voter)).collect();
    let nodes = cluster.nodes.iter().map(|node| (NodeId(node.id), node.address.to_string())).collect();
    let shards = vec![Shard { id: ShardId(1), start: Bytes::new(), group: GroupId(carrier.id) }];
    let groups = BTreeMap::from([(GroupId(carrier.id), Group { replicas })]);
    Ok(ShardMap::new(Epoch(1), shards, groups, nodes)?)
}

/// The certificates of links, where the configuration has them.
fn link_tls(
    files: Option<&LinkTls>,
    cluster: &config::Cluster,
    holder: Holder,
) -> Result<Option<Arc<Mutual>>, Failure> {
    let Some(LinkTls { cert_file, key_file, ca_file }) = files.cloned() else { return Ok(None) };
    let files = LinkFiles { certificate: cert_file, key: key_file, authorities: ca_file };
    let loaded = Mutual::load(files, cluster.name.as_str(), holder);
    Ok(Some(Arc::new(loaded.map_err(|flaws| format!("`link_tls`: {flaws}"))?)))
}

/// Takes over what changes in the files, for as long as the process runs.
fn follow(tls: Option<&Arc<Mutual>>) {
    if let Some(tls) = tls.cloned() {
        tokio::spawn(async move { tls.follow().await });
    }
}

/// Takes over what has changed in the files, at once.
fn reload_link_tls(tls: Option<&Mutual>) {
    if let Some(Err(flaws)) = tls.map(Mutual::reload) {
        tracing::error!("`link_tls`: what is there is not taken up, the process goes on as it was: {flaws}");
    }
}

/// A runtime with so many threads, or one for every two cores of this process. On all cores, threads that are idle half of
/// the time take work and memory from each other: on two cores a read by way of a gateway costs a third more.
fn runtime(threads: Option<u32>) -> Result<Runtime, Failure> {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = threads.map_or(cores.div_ceil(2), |threads| threads as usize);
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?)
}

/// The log that runs.
struct RunningLog {
    set: Box<dyn Fn(EnvFilter) + Send>,
}

impl RunningLog {
    fn set_level(&self, level: LogLevel) {
        (self.set)(filter(level));
    }
}

/// What the environment asks for, else the level.
fn filter(level: LogLevel) -> EnvFilter {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level.as_str()));
    // Whoever turned the access log on wants its lines, whatever else is to be quiet.
    let access = format!("{}=info", gateway_door::ACCESS_TARGET).parse().expect("a constant directive");
    filter.add_directive(access)
}

fn start_log(log: &Log) -> RunningLog {
    let lines = tracing_subscriber::fmt().with_env_filter(filter(log.level)).with_writer(io::stderr);
    let set: Box<dyn Fn(EnvFilter) + Send> = match log.format {
        LogFormat::Text => {
            let lines = lines.with_filter_reloading();
            let handle = lines.reload_handle();
            lines.init();
            // Fails only when there is no log any more.
            Box::new(move |filter| drop(handle.reload(filter)))
        }
        LogFormat::Json => {
            let lines = lines.json().with_filter_reloading();
            let handle = lines.reload_handle();
            lines.init();
            Box::new(move |filter| drop(handle.reload(filter)))
        }
    };
    RunningLog { set }
}

fn bind(address: SocketAddr, field: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).map_err(|error| cannot_listen(address, field, &error))
}

/// In words for the operator: which address, which field, and what to do.
fn cannot_listen(address: SocketAddr, field: &str, error: &io::Error) -> Failure {
    let hint = if error.kind() == io::ErrorKind::AddrInUse {
        format!("; something else listens there: choose another {field}")
    } else if error.kind() == io::ErrorKind::AddrNotAvailable {
        format!("; {field} must be an address of this machine")
    } else {
        String::new()
    };
    format!("cannot listen on {address} ({field}): {error}{hint}").into()
}

/// Returns at the first SIGINT or SIGTERM. A second one ends the process at once.
async fn stop_signal() -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping; a second signal ends the process at once");
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(1);
    });
    Ok(())
}
