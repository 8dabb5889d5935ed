//! Names against a real DNS server.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use discovery::{Address, Discovery, Found, Trust};
use test_dns::{DnsServer, Service};
use tokio::net::{TcpListener, UdpSocket};

const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn ip(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, last))
}

fn address(text: &str) -> Address {
    Address::parse(text).unwrap()
}

fn sorted(found: &Found) -> Vec<SocketAddr> {
    let mut addresses = found.addresses.to_vec();
    addresses.sort();
    addresses
}

/// Looks until the answer is as wanted; pauses as the answers say.
async fn until(discovery: &Discovery, name: &Address, trust: Trust, wanted: &[SocketAddr]) -> Found {
    let begun = Instant::now();
    loop {
        let found = discovery.lookup(name, trust).await;
        if sorted(&found) == wanted {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{found:?}");
        tokio::time::sleep_until(found.until.unwrap().into()).await;
    }
}

/// Looks until so many questions have failed.
async fn until_failed(discovery: &Discovery, name: &Address, failures: u64) -> Found {
    loop {
        let found = discovery.lookup(name, Trust::Trusted).await;
        if discovery.failures() == failures {
            return found;
        }
        tokio::time::sleep_until(found.until.unwrap().into()).await;
    }
}

#[tokio::test]
async fn a_literal_asks_nobody() {
    let discovery = Discovery::new(None);
    let found = discovery.lookup(&address("127.0.0.1:7"), Trust::Doubted).await;
    assert_eq!((sorted(&found), found.until), (vec![SocketAddr::new(ip(1), 7)], None));
    assert_eq!(discovery.questions(), 0);
}

#[tokio::test]
async fn a_host_has_all_its_addresses_until_its_time_is_over() {
    let server = DnsServer::start(ANY_PORT).await.unwrap();
    server.set_addresses("node.test", 1, &[ip(2), ip(3), "::1".parse().unwrap()]).await;
    let discovery = Discovery::new(Some(server.address()));
    let name = address("node.test:7");
    let at = |ip| SocketAddr::new(ip, 7);
    let all = [at(ip(2)), at(ip(3)), at("::1".parse().unwrap())];
    until(&discovery, &name, Trust::Trusted, &all).await;
    discovery.lookup(&name, Trust::Trusted).await;
    assert_eq!(discovery.questions(), 1, "it holds for a second");

    server.set_addresses("node.test", 100, &[ip(4)]).await;
    let found = until(&discovery, &name, Trust::Trusted, &[at(ip(4))]).await;
    assert!(found.until.unwrap() > Instant::now() + Duration::from_secs(50), "its time to live counts");

    // Long before its time, for who reaches nobody there.
    server.set_addresses("node.test", 100, &[ip(5)]).await;
    until(&discovery, &name, Trust::Doubted, &[at(ip(5))]).await;
}

#[tokio::test]
async fn a_service_leads_to_its_targets_by_priority() {
    let server = DnsServer::start(ANY_PORT).await.unwrap();
    server.set_addresses("a.test", 100, &[ip(2)]).await;
    server.set_addresses("b.test", 100, &[ip(3)]).await;
    let target = |priority, port, target| Service { priority, weight: 1, port, target };
    let services = [target(20, 7, "a.test"), target(10, 8, "b.test"), target(5, 9, "missing.test")];
    server.set_services("_gaios-replica._tcp.test", 100, &services).await;
    let discovery = Discovery::new(Some(server.address()));
    let name = address("_gaios-replica._tcp.test");
    let found = discovery.lookup(&name, Trust::Trusted).await;
    assert_eq!(*found.addresses, [SocketAddr::new(ip(3), 8), SocketAddr::new(ip(2), 7)]);
}

#[tokio::test]
async fn what_was_known_is_used_while_nobody_answers() {
    let server = DnsServer::start(ANY_PORT).await.unwrap();
    let dns = server.address();
    server.set_addresses("node.test", 1, &[ip(2)]).await;
    let discovery = Discovery::new(Some(dns));
    let name = address("node.test:7");
    let first = until(&discovery, &name, Trust::Trusted, &[SocketAddr::new(ip(2), 7)]).await;
    server.stop().await;
    tokio::time::sleep_until(first.until.unwrap().into()).await;
    let stale = until_failed(&discovery, &name, 1).await;
    assert_eq!(sorted(&stale), sorted(&first));
    assert_eq!(discovery.lookup(&name, Trust::Doubted).await.addresses, first.addresses);
    assert_eq!(discovery.failures(), 1, "not asked again at once");
    assert_eq!(discovery.changes(), 0);
    assert!(discovery.stale().is_some_and(|age| age >= Duration::from_secs(1)), "its time to live is over");

    // It knows nothing of the name: no better than silence.
    let server = DnsServer::start(dns).await.unwrap();
    tokio::time::sleep_until(stale.until.unwrap().into()).await;
    assert_eq!(sorted(&until_failed(&discovery, &name, 2).await), sorted(&first));
    server.set_addresses("node.test", 1, &[ip(3)]).await;
    until(&discovery, &name, Trust::Trusted, &[SocketAddr::new(ip(3), 7)]).await;
    assert_eq!((discovery.changes(), discovery.stale()), (1, None));

    let nothing = discovery.lookup(&address("nobody.test:7"), Trust::Trusted).await;
    assert!(nothing.addresses.is_empty() && nothing.until.is_some());
    assert_eq!(discovery.stale(), None, "there is no old answer that is used");
}

/// Packets to it get lost: no refusal tells.
#[tokio::test]
async fn an_old_answer_does_not_wait_for_a_server_that_is_silent() {
    let server = DnsServer::start(ANY_PORT).await.unwrap();
    let dns = server.address();
    server.set_addresses("node.test", 1, &[ip(2)]).await;
    let discovery = Discovery::new(Some(dns));
    let name = address("node.test:7");
    let first = until(&discovery, &name, Trust::Trusted, &[SocketAddr::new(ip(2), 7)]).await;
    server.stop().await;
    let _silent = (UdpSocket::bind(dns).await.unwrap(), TcpListener::bind(dns).await.unwrap());
    tokio::time::sleep_until(first.until.unwrap().into()).await;
    let stale = discovery.lookup(&name, Trust::Trusted).await;
    assert_eq!(stale.addresses, first.addresses);
    assert_eq!((discovery.questions(), discovery.failures()), (2, 0), "the question is still open");
}

#[tokio::test]
async fn a_connection_is_made_with_whichever_address_answers() {
    let server = DnsServer::start(ANY_PORT).await.unwrap();
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    server.set_addresses("node.test", 100, &[ip(3), ip(2)]).await;
    let discovery = Discovery::new(Some(server.address()));
    let name = format!("node.test:{port}");
    discovery.connect(&name).await.unwrap();

    // It moves.
    drop(listener);
    assert_eq!(discovery.connect(&name).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    let _moved = TcpListener::bind(("127.0.0.4", port)).await.unwrap();
    server.set_addresses("node.test", 100, &[ip(4)]).await;
    let begun = Instant::now();
    while discovery.connect(&name).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(20));
        let next = discovery.lookup(&address(&name), Trust::Doubted).await.until.unwrap();
        tokio::time::sleep_until(next.into()).await;
    }

    let error = discovery.connect("nobody.test:7").await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    assert!(discovery.connect("nonsense").await.is_err());
}
