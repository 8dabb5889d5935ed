//! Asks DNS servers, by hickory-resolver. What they say is remembered elsewhere, by rules of our own: its cache is kept empty.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use futures::future::join_all;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, RecordType};
use parking_lot::Mutex;
use tokio::time::timeout;

use crate::address::Address;
use crate::service::{Target, order};

/// For one server to answer.
const SERVER_TIMEOUT: Duration = Duration::from_secs(2);
/// For a question, with all that it takes: two questions for a service.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(8);
/// Addresses of a name that are looked at, and targets of a service.
const ADDRESSES_MAX: usize = 64;

/// Addresses, and how long they hold.
type Answer = (Vec<SocketAddr>, Duration);

pub(crate) struct Asker {
    dns_server: Option<SocketAddr>,
    /// Made when it is first needed: where there are no names there may be no resolv.conf either.
    resolver: Mutex<Option<TokioResolver>>,
}

impl std::fmt::Debug for Asker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asker").field("dns_server", &self.dns_server).finish_non_exhaustive()
    }
}

impl Asker {
    pub(crate) fn new(dns_server: Option<SocketAddr>) -> Asker {
        Asker { dns_server, resolver: Mutex::new(None) }
    }

    /// Where the address leads, by those who know; at least one.
    pub(crate) async fn ask(&self, address: &Address) -> Result<Answer, String> {
        let resolver = self.resolver()?;
        resolver.clear_cache();
        let asking = async {
            match address {
                Address::Literal(address) => Ok((vec![*address], Duration::MAX)),
                Address::Host { name, port } => host(&resolver, name, *port).await,
                Address::Service(name) => service(&resolver, name).await,
            }
        };
        match timeout(QUESTION_TIMEOUT, asking).await {
            Ok(Ok((addresses, _))) if addresses.is_empty() => Err("there is no such record".to_owned()),
            Ok(answered) => answered,
            Err(_) => Err(format!("no answer within {QUESTION_TIMEOUT:?}")),
        }
    }

    fn resolver(&self) -> Result<TokioResolver, String> {
        let mut resolver = self.resolver.lock();
        if let Some(resolver) = resolver.as_ref() {
            return Ok(resolver.clone());
        }
        let made = make(self.dns_server)?;
        *resolver = Some(made.clone());
        Ok(made)
    }
}

fn make(dns_server: Option<SocketAddr>) -> Result<TokioResolver, String> {
    let mut builder = match dns_server {
        Some(server) => {
            let on_port = |mut connection: ConnectionConfig| {
                connection.port = server.port();
                connection
            };
            let connections = vec![on_port(ConnectionConfig::udp()), on_port(ConnectionConfig::tcp())];
            let server = NameServerConfig::new(server.ip(), true, connections);
            let config = ResolverConfig::from_name_servers(vec![server]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
        None => {
            TokioResolver::builder_tokio().map_err(|error| format!("cannot use /etc/resolv.conf: {error}"))?
        }
    };
    let options: &mut ResolverOpts = builder.options_mut();
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.timeout = options.timeout.min(SERVER_TIMEOUT);
    options.try_tcp_on_error = true;
    options.cache_size = 0;
    builder.build().map_err(|error| error.to_string())
}

async fn host(resolver: &TokioResolver, name: &str, port: u16) -> Result<Answer, String> {
    let found = resolver.lookup_ip(name).await.map_err(|error| error.to_string())?;
    let ttl = found.valid_until().saturating_duration_since(Instant::now());
    let addresses = found.iter().take(ADDRESSES_MAX).map(|ip: IpAddr| SocketAddr::new(ip, port));
    Ok((addresses.collect(), ttl))
}

async fn service(resolver: &TokioResolver, name: &str) -> Result<Answer, String> {
    let found = resolver.lookup(name, RecordType::SRV).await.map_err(|error| error.to_string())?;
    let mut ttl = found.valid_until().saturating_duration_since(Instant::now());
    let records = found.answers().iter().filter_map(|record| {
        let RData::SRV(service) = &record.data else { return None };
        // The root stands for "there is no such service here".
        (!service.target.is_root()).then_some(service)
    });
    let hosts =
        join_all(records.take(ADDRESSES_MAX).map(|record| async move {
            (record, host(resolver, &record.target.to_utf8(), record.port).await)
        }));
    let mut targets = Vec::new();
    let mut failed = None;
    for (record, host) in hosts.await {
        match host {
            Ok((addresses, host_ttl)) => {
                ttl = ttl.min(host_ttl);
                let (priority, weight) = (record.priority, record.weight);
                targets.extend(addresses.into_iter().map(|address| Target { priority, weight, address }));
            }
            // The others are of use without it.
            Err(error) => failed = Some(format!("{}: {error}", record.target)),
        }
    }
    match failed {
        Some(error) if targets.is_empty() => Err(error),
        Some(_) | None => Ok((order(targets, random), ttl)),
    }
}

fn random() -> u32 {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).expect("Linux has getrandom since 3.17");
    u32::from_le_bytes(bytes)
}
