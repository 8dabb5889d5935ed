//! `gaios gateway`: one gateway.

use std::path::Path;
use std::sync::Arc;

use config::{ClientUrl, Gateway as Config, Given, Name};
use gateway::Place;
use gateway::door::{AccessLog, DoorOptions, Member, member_id};
use gateway::{Gateway, GatewayOptions, Limits};
use tls::Holder;

use super::reload::{self, Source};
use super::{
    Failure, cannot_listen, certificates, descriptors, follow, link_tls, memory, reload_link_tls, runtime,
    start_log, stop_signal,
};

pub(crate) fn run(file: &Path, given: &Given) -> Result<(), Failure> {
    let config = Config::load_with(file, given)?;
    let log = start_log(&config.log);
    descriptors::raise();
    for advice in config.cluster.advice() {
        tracing::warn!("{advice}");
    }
    let link_tls = link_tls(config.link_tls.as_ref(), &config.cluster, Holder::Gateway)?;
    let options = GatewayOptions { link_tls: link_tls.clone(), ..options(&config)? };
    runtime(config.threads)?.block_on(async {
        follow(options.link_tls.as_ref());
        let gateway = Gateway::start(options).await.map_err(|error| {
            let field = if error.address == config.listen { "`listen`" } else { "`admin_listen`" };
            cannot_listen(error.address, field, &error.source)
        })?;
        let source = Source { file: file.to_owned(), given: given.clone() };
        tokio::select! {
            signal = stop_signal() => signal?,
            failed = reload::follow(source, config, |config| {
                log.set_level(config.log.level);
                gateway.set_limits(limits(config));
                gateway.reload_certificates();
                reload_link_tls(link_tls.as_deref());
            }) => failed?,
        }
        gateway.shutdown().await;
        Ok(())
    })
}

fn place(region: Option<&Name>, zone: Option<&Name>) -> Place {
    let text = |name: Option<&Name>| name.map(ToString::to_string).unwrap_or_default();
    Place { region: text(region), zone: text(zone) }
}

/// What may change while the gateway runs.
fn limits(config: &Config) -> Limits {
    let limits = &config.limits;
    Limits {
        request_timeout: limits.request_timeout,
        requests_max: limits.max_requests_in_flight as usize,
        txn_ops_max: limits.max_txn_ops as usize,
        drain: config.drain_grace_period,
    }
}

/// What the gateway of this configuration is started with.
pub(crate) fn options(config: &Config) -> Result<GatewayOptions, Failure> {
    let cluster = &config.cluster;
    let listed = cluster.nodes.iter().map(|node| &node.address);
    let nodes = listed.chain(&cluster.seeds).map(ToString::to_string).collect();
    let urls = |urls: &[ClientUrl]| urls.iter().map(ToString::to_string).collect::<Vec<_>>();
    let limits = &config.limits;
    Ok(GatewayOptions {
        place: place(config.region.as_ref(), config.zone.as_ref()),
        client_urls: urls(&config.advertise_client_urls),
        capacity: config.capacity,
        dns_server: config.dns_server,
        admin_listen: Some(config.admin_listen),
        cluster_id: Some(config.cluster.id()),
        members: config
            .members
            .iter()
            .flatten()
            .map(|member| Member {
                id: member_id("", member.name.as_str()),
                name: member.name.to_string(),
                client_urls: urls(&member.client_urls),
                peer_urls: urls(&member.client_urls),
            })
            .collect(),
        links_per_node: config.links_per_node as usize,
        request_timeout: limits.request_timeout,
        drain: config.drain_grace_period,
        door: DoorOptions {
            request_bytes_max: usize::try_from(limits.max_request_bytes.bytes()).unwrap_or(usize::MAX),
            txn_ops_max: limits.max_txn_ops as usize,
            progress_interval: config.watch_progress_notify_interval,
            tls: certificates::client_door(config)?.map(Arc::new),
            requests_max: limits.max_requests_in_flight as usize,
            connections_max: limits.max_connections as usize,
            concurrent_streams_max: limits.max_streams_per_connection,
            memory_max: limits.memory_budget.map_or_else(
                || memory::part(2),
                |budget| usize::try_from(budget.bytes()).unwrap_or(usize::MAX),
            ),
            slow_request: config.slow_request_threshold,
            access_log: match config.access_log {
                config::AccessLog::Off => AccessLog::Off,
                config::AccessLog::Failures => AccessLog::Failures,
                config::AccessLog::All => AccessLog::All,
            },
            ..DoorOptions::default()
        },
        ..GatewayOptions::new(config.name.to_string(), config.listen, nodes)
    })
}
