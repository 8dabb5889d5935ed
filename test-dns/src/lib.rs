//! A real DNS server on loopback, for tests: it answers with the records that a test gives it, and a test may change them
//! while they are in use.
//!
//! It is authoritative for every name there is, so nothing that a test asks goes anywhere else.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use hickory_server::Server;
use hickory_server::proto::rr::rdata::{A, AAAA, SOA, SRV};
use hickory_server::proto::rr::{LowerName, Name, RData, Record, RecordSet, RecordType, RrKey};
use hickory_server::store::in_memory::InMemoryZoneHandler;
use hickory_server::zone_handler::{AxfrPolicy, Catalog, ZoneType};
use tokio::net::{TcpListener, UdpSocket};

/// Seconds that the absence of a record may be remembered.
const NEGATIVE_TTL_S: u32 = 1;
/// Ports tried until one is free for UDP and TCP.
const BIND_ATTEMPTS: usize = 100;

/// One target of a service.
#[derive(Clone, Copy, Debug)]
pub struct Service<'a> {
    /// Lower ones are tried first.
    pub priority: u16,
    /// Share among those of equal priority.
    pub weight: u16,
    /// Where it listens.
    pub port: u16,
    /// The host's name.
    pub target: &'a str,
}

/// The server. It ends when it is dropped.
pub struct DnsServer {
    address: SocketAddr,
    zone: Arc<InMemoryZoneHandler>,
    server: Server<Catalog>,
}

impl DnsServer {
    /// Answers at `address`, over UDP and TCP. Port 0 is one that is free. It knows no names at first.
    ///
    /// # Errors
    /// The port cannot be opened.
    pub async fn start(address: SocketAddr) -> io::Result<DnsServer> {
        let root = Name::root();
        let soa = SOA::new(root.clone(), root.clone(), 1, 60, 60, 60, NEGATIVE_TTL_S);
        let mut records = RecordSet::new(root.clone(), RecordType::SOA, 1);
        records.insert(Record::from_rdata(root.clone(), NEGATIVE_TTL_S, RData::SOA(soa)), 1);
        let records = BTreeMap::from([(RrKey::new(root.clone().into(), RecordType::SOA), records)]);
        let zone = InMemoryZoneHandler::new(root.clone(), records, ZoneType::Primary, AxfrPolicy::Deny)
            .map_err(io::Error::other)?;
        let zone = Arc::new(zone);
        let mut catalog = Catalog::new();
        catalog.upsert(LowerName::new(&root), vec![Arc::clone(&zone) as _]);
        let (udp, tcp) = bind(address).await?;
        let address = udp.local_addr()?;
        let mut server = Server::new(catalog);
        server.register_socket(udp);
        server.register_listener(tcp, Duration::from_secs(5), 16);
        Ok(DnsServer { address, zone, server })
    }

    /// Where it answers.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `name` has these addresses from here on, and no others, and answers may be kept for so many seconds.
    ///
    /// # Panics
    /// `name` is no name.
    pub async fn set_addresses(&self, name: &str, ttl_s: u32, addresses: &[IpAddr]) {
        let data = addresses.iter().map(|address| match address {
            IpAddr::V4(ip) => RData::A(A(*ip)),
            IpAddr::V6(ip) => RData::AAAA(AAAA(*ip)),
        });
        self.set(name, ttl_s, data.collect()).await;
    }

    /// The service `name` has these targets from here on, and no others.
    ///
    /// # Panics
    /// `name` or a target is no name.
    pub async fn set_services(&self, name: &str, ttl_s: u32, services: &[Service<'_>]) {
        let data = services.iter().map(|service| {
            let Service { priority, weight, port, target } = *service;
            RData::SRV(SRV::new(priority, weight, port, parse(target)))
        });
        self.set(name, ttl_s, data.collect()).await;
    }

    /// Nothing is known of `name` from here on.
    ///
    /// # Panics
    /// `name` is no name.
    pub async fn remove(&self, name: &str) {
        self.set(name, 0, Vec::new()).await;
    }

    /// Ends it, and waits until its port is free.
    pub async fn stop(mut self) {
        // What a connection ended with is of no interest.
        let _ = self.server.shutdown_gracefully().await;
    }

    /// At one moment: who asks meanwhile is told of what was or of what is.
    async fn set(&self, name: &str, ttl_s: u32, data: Vec<RData>) {
        let name = parse(name);
        let key = |kind| RrKey::new(LowerName::new(&name), kind);
        let mut sets: BTreeMap<RrKey, RecordSet> = BTreeMap::new();
        for data in data {
            let record = Record::from_rdata(name.clone(), ttl_s, data);
            let kind = record.record_type();
            sets.entry(key(kind)).or_insert_with(|| RecordSet::new(name.clone(), kind, 1)).insert(record, 1);
        }
        let mut records = self.zone.records_mut().await;
        for kind in [RecordType::A, RecordType::AAAA, RecordType::SRV] {
            records.remove(&key(kind));
        }
        records.extend(sets.into_iter().map(|(key, set)| (key, Arc::new(set))));
    }
}

fn parse(name: &str) -> Name {
    let mut name = Name::from_str(name).unwrap_or_else(|error| panic!("{name} is no name: {error}"));
    name.set_fqdn(true);
    name
}

/// The same port for both.
async fn bind(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let mut attempt = 0;
    loop {
        let udp = UdpSocket::bind(address).await?;
        match TcpListener::bind(udp.local_addr()?).await {
            Ok(tcp) => return Ok((udp, tcp)),
            Err(error) if address.port() != 0 || attempt == BIND_ATTEMPTS => return Err(error),
            Err(_) => attempt += 1,
        }
    }
}
