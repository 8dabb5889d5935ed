//! `gaios replica`: one node.

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use config::{Given, Name, Replica};
use consensus_core::{GroupId, NodeId, Timing};
use discovery::Discovery;
use gateway::{CertificateMetrics, DnsMetrics};
use replica::{Node, NodeOptions};
use tls::Holder;
use tokio::time::timeout;

use super::reload::{self, Source};
use super::{
    Failure, admin, bind, descriptors, follow, link_tls, memory, reload_link_tls, runtime, start_log,
    stop_signal,
};

/// Groups hand over within a second, and the journal finishes what it has. Less than the half minute that supervisors give.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// As the setting's: half of it takes two of the longest requests that can be configured.
const MEMORY_LEAST: usize = 64 << 20;

pub(crate) fn run(file: &Path, given: &Given) -> Result<(), Failure> {
    let config = Replica::load_with(file, given)?;
    let log = start_log(&config.log);
    for advice in config.cluster.advice() {
        tracing::warn!("{advice}");
    }
    let descriptors = descriptors::raise();
    let tls = link_tls(config.link_tls.as_ref(), &config.cluster, Holder::Node(config.node))?;
    let listener = bind(config.listen, "`listen`")?;
    let admin_listener = bind(config.admin_listen, "`admin_listen`")?;
    runtime(config.threads)?.block_on(async {
        follow(tls.as_ref());
        let options = NodeOptions { tls: tls.clone(), ..options(&config, listener, descriptors)? };
        let names = DnsMetrics::new(options.discovery.clone());
        let node = Node::start(options).await?;
        node.health().metrics().register(Box::new(names))?;
        if let Some(tls) = tls.clone() {
            let certificates = CertificateMetrics::new("link", move || tls.status());
            node.health().metrics().register(Box::new(certificates))?;
        }
        let admin = admin::serve(admin_listener, node.health())?;
        let source = Source { file: file.to_owned(), given: given.clone() };
        tokio::select! {
            signal = stop_signal() => signal?,
            failed = reload::follow(source, config, |config| {
                log.set_level(config.log.level);
                reload_link_tls(tls.as_deref());
            }) => failed?,
        }
        if timeout(STOP_TIMEOUT, node.stop()).await.is_err() {
            tracing::warn!("the node has not stopped after {STOP_TIMEOUT:?}: ending it as a crash would");
        }
        admin.abort();
        Ok(())
    })
}

/// What the node of this configuration is started with.
pub(crate) fn options(
    config: &Replica,
    listener: TcpListener,
    descriptors: usize,
) -> Result<NodeOptions, Failure> {
    let cluster = &config.cluster;
    let ids = |ids: &[u32]| ids.iter().map(|id| NodeId(*id)).collect::<Vec<_>>();
    Ok(NodeOptions {
        id: NodeId(config.node),
        name: config.display_name(),
        cluster: cluster.id(),
        nodes: cluster.nodes.iter().map(|node| (NodeId(node.id), node.address.to_string())).collect(),
        groups: cluster
            .groups_or_default()
            .iter()
            .map(|group| (GroupId(group.id), ids(&group.voters)))
            .collect(),
        regions: cluster
            .nodes
            .iter()
            .filter_map(|node| Some((NodeId(node.id), node.region.as_ref()?.to_string())))
            .collect(),
        leader_regions: cluster
            .groups_or_default()
            .iter()
            .map(|group| {
                (GroupId(group.id), group.leader_regions.iter().flatten().map(Name::to_string).collect())
            })
            .collect(),
        listener,
        data_dir: config.data_dir.clone(),
        timing: Timing {
            heartbeat: config.timing.heartbeat,
            support: config.timing.support,
            election: config.timing.election,
            ..Timing::default()
        },
        journal_segment_bytes: config.journal.segment_bytes.bytes(),
        snapshot_least_bytes: config.snapshot.min_journal_bytes.bytes(),
        snapshot_slice_bytes: usize::try_from(config.snapshot.chunk_bytes.bytes())?,
        quota_bytes: config.quota_bytes.bytes(),
        shard_map: super::shard_map(cluster)?,
        region: config.region().map(ToString::to_string).unwrap_or_default(),
        zone: config.zone().map(ToString::to_string).unwrap_or_default(),
        discovery: Discovery::new(config.dns_server),
        memory_max: config.memory_budget.map_or_else(
            || memory::part(8).max(MEMORY_LEAST),
            |budget| usize::try_from(budget.bytes()).unwrap_or(usize::MAX),
        ),
        descriptors,
        tls: None,
        insecure: config.is_exposed(),
    })
}
