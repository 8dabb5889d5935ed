//! Nodes behind names, in a real DNS server whose records change while traffic flows.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]
#![allow(unexpected_cfgs, reason = "the feature exists in `compat/cluster` only")]

#[path = "cluster/processes.rs"]
mod processes;
mod support;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use api::etcdserverpb as pb;
use api::etcdserverpb::kv_client::KvClient;
use gateway::Gateway;
use processes::{Setup, unused_ip, wait_for};
use support::{TestCluster, connect};
use test_dns::{DnsServer, Service};
use tonic::transport::Channel;

const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Far longer than any test.
const LONG_TTL_S: u32 = 3600;

async fn put(client: &mut KvClient<Channel>) -> Result<(), tonic::Status> {
    let request = pb::PutRequest { key: b"k".to_vec().into(), ..Default::default() };
    client.put(request).await.map(drop)
}

/// A gateway that knows the cluster by this address only.
async fn gateway(cluster: &TestCluster, dns: &DnsServer, address: String) -> Gateway {
    let options = |options: &mut gateway::GatewayOptions| {
        options.nodes = vec![address];
        options.dns_server = Some(dns.address());
    };
    cluster.gateway_with(options).await
}

/// The node stands behind a name, and its shard map names nobody whom the gateway could reach.
async fn node_behind_a_name(ttl_s: u32) -> (TestCluster, DnsServer, Gateway) {
    let dns = DnsServer::start(ANY_PORT).await.unwrap();
    let cluster = TestCluster::start(1).await;
    cluster.faults.lock().alone = Some(1);
    let address = cluster.nodes[0].address;
    dns.set_addresses("node.test", ttl_s, &[address.ip()]).await;
    let gateway = gateway(&cluster, &dns, format!("node.test:{}", address.port())).await;
    (cluster, dns, gateway)
}

#[tokio::test]
async fn a_node_that_ended_is_found_where_its_name_leads_now() {
    let (mut cluster, dns, gateway) = node_behind_a_name(LONG_TTL_S).await;
    let mut client = KvClient::new(connect(&gateway).await);
    put(&mut client).await.unwrap();
    cluster.stop(1);
    let moved = unused_ip().into();
    cluster.serve_at(1, moved).await;
    dns.set_addresses("node.test", LONG_TTL_S, &[moved]).await;
    // The lost link is reason enough to ask again; a request is given up after seven seconds.
    put(&mut client).await.unwrap();
    assert_eq!(cluster.seen("direct 1"), 2);
}

#[tokio::test]
async fn a_node_that_is_still_there_is_left_for_where_its_name_leads_now() {
    let (mut cluster, dns, gateway) = node_behind_a_name(1).await;
    let mut client = KvClient::new(connect(&gateway).await);
    put(&mut client).await.unwrap();
    let moved = unused_ip().into();
    cluster.serve_at(1, moved).await;
    put(&mut client).await.unwrap();
    assert_eq!(cluster.seen("direct 1"), 1, "nothing is looked for without need");
    dns.set_addresses("node.test", 1, &[moved]).await;
    while cluster.seen("direct 1 over") == 0 {
        put(&mut client).await.unwrap();
    }
    put(&mut client).await.unwrap();
    assert_eq!((cluster.seen("direct 1"), cluster.seen("direct 1 over")), (2, 1));
}

#[tokio::test]
async fn what_a_name_led_to_stays_in_use_while_dns_is_down() {
    let (cluster, dns, gateway) = node_behind_a_name(1).await;
    let mut client = KvClient::new(connect(&gateway).await);
    dns.stop().await;
    for _ in 0..3 {
        put(&mut client).await.unwrap();
        let links = cluster.seen("direct 1");
        cluster.cut_links(1);
        cluster.wait_until(|cluster| cluster.seen("direct 1") > links).await;
    }
    put(&mut client).await.unwrap();
}

#[tokio::test]
async fn a_service_leads_to_all_its_nodes() {
    let dns = DnsServer::start(ANY_PORT).await.unwrap();
    let cluster = TestCluster::start(3).await;
    dns.set_addresses("nodes.test", LONG_TTL_S, &[cluster.nodes[0].address.ip()]).await;
    let target = |port| Service { priority: 1, weight: 1, port, target: "nodes.test" };
    let targets: Vec<_> = cluster.nodes.iter().map(|node| target(node.address.port())).collect();
    dns.set_services("_gaios-replica._tcp.test", LONG_TTL_S, &targets).await;
    let _gateway = gateway(&cluster, &dns, "_gaios-replica._tcp.test".to_owned()).await;
    let linked = |node| move |cluster: &TestCluster| cluster.seen(&format!("direct {node}")) == 1;
    for node in 1..=3 {
        cluster.wait_until(linked(node)).await;
    }
}

/// One seed is enough; the shard map names the others.
#[tokio::test]
async fn the_shard_map_adds_what_dns_does_not_know() {
    let dns = DnsServer::start(ANY_PORT).await.unwrap();
    let cluster = TestCluster::start(3).await;
    let seed = cluster.nodes[1].address;
    dns.set_addresses("seed.test", LONG_TTL_S, &[seed.ip()]).await;
    let gateway = gateway(&cluster, &dns, format!("seed.test:{}", seed.port())).await;
    put(&mut KvClient::new(connect(&gateway).await)).await.unwrap();
    for node in 1..=3 {
        cluster.wait_until(|cluster| cluster.seen(&format!("direct {node}")) == 1).await;
    }
}

/// Processes: a node moves, and its peers and the gateway find it, none of them restarted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_moves_is_found_by_peers_and_gateways() {
    let dns = DnsServer::start(ANY_PORT).await.unwrap();
    let server = format!("dns_server: {}\n", dns.address());
    let name = |index: usize| format!("node-{}.test", index + 1);
    let setup = Setup {
        address: Some(&|index, listen| format!("{}:{}", name(index), listen.port())),
        replica: Some(&|_| server.clone()),
        gateway: Some(&|_| server.clone()),
        ..Setup::default()
    };
    let mut cluster = processes::Cluster::plan(3, 1, &setup);
    for (index, replica) in cluster.replicas.iter().enumerate() {
        dns.set_addresses(&name(index), LONG_TTL_S, &[replica.listen.ip()]).await;
    }
    cluster.start_all();
    let mut client = KvClient::connect(cluster.endpoints().remove(0)).await.unwrap();
    put(&mut client).await.unwrap();

    let moved = unused_ip();
    assert!(cluster.replicas[0].terminate());
    cluster.replicas[0].move_to(moved);
    dns.set_addresses(&name(0), LONG_TTL_S, &[moved.into()]).await;
    cluster.replicas[0].start();
    cluster.wait_until_ready();
    wait_for("links to all nodes", || {
        let (_, metrics) = cluster.gateways[0].get("/metrics")?;
        metrics.lines().any(|line| line == "gaios_gateway_links 3").then_some(())
    });
    // A quorum needs it.
    cluster.replicas[1].kill();
    let mut attempts = 0..10;
    while let Err(error) = put(&mut client).await {
        assert!(attempts.next().is_some(), "{error}\n{}", cluster.logs());
    }
}

/// Whoever replaces nodes one after the other waits for each to be ready; the next one may then be missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_moved_is_ready_when_all_others_have_found_it() {
    // Each node asks a server of its own.
    let mut servers = Vec::new();
    for _ in 0..3 {
        servers.push(DnsServer::start(ANY_PORT).await.unwrap());
    }
    let name = |index: usize| format!("node-{}.test", index + 1);
    let setup = Setup {
        address: Some(&|index, listen| format!("{}:{}", name(index), listen.port())),
        replica: Some(&|index| format!("dns_server: {}\n", servers[index].address())),
        gateway: Some(&|_| format!("dns_server: {}\n", servers[0].address())),
        ..Setup::default()
    };
    let mut cluster = processes::Cluster::plan(3, 1, &setup);
    for (index, replica) in cluster.replicas.iter().enumerate() {
        for dns in &servers {
            dns.set_addresses(&name(index), LONG_TTL_S, &[replica.listen.ip()]).await;
        }
    }
    cluster.start_all();

    let moved = unused_ip();
    assert!(cluster.replicas[0].terminate());
    cluster.replicas[0].move_to(moved);
    // Without the leader it would not catch up either.
    let leader = cluster.leader();
    let late = if leader == 1 { 2 } else { 1 };
    servers[leader].set_addresses(&name(0), LONG_TTL_S, &[moved.into()]).await;
    cluster.replicas[0].start();
    let missing = format!("node {} is not linked with this one yet", late + 1);
    wait_for("word of the one that is missing", || {
        let (status, said) = cluster.replicas[0].get("/readyz")?;
        assert_ne!(status, 200, "node {} cannot count on it: {}", late + 1, cluster.logs());
        said.contains(&missing).then_some(())
    });
    servers[late].set_addresses(&name(0), LONG_TTL_S, &[moved.into()]).await;
    cluster.replicas[0].wait_until_ready();
    let (_, told) = cluster.replicas[0].get("/debug/status").unwrap();
    assert!(!told.contains("\"linked\":false"), "{told}");
}
