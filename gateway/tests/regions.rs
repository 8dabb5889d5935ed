//! Gateways and nodes that stand somewhere: which node is read at, and which gateways a client is told of.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]
#![allow(unexpected_cfgs, reason = "the feature exists in `compat/cluster` only")]

#[path = "cluster/processes.rs"]
mod processes;
mod support;

use api::etcdserverpb as pb;
use api::etcdserverpb::cluster_client::ClusterClient;
use api::etcdserverpb::kv_client::KvClient;
use api::etcdserverpb::maintenance_client::MaintenanceClient;
use gateway::Place;
use planet::{Region, Relay};
use processes::{Cluster, Setup, wait_for};
use support::{TestCluster, connect};
use tonic::transport::Channel;

/// Of the real distances, so that nobody waits long.
const SCALE: u32 = 4;

const NODES: [u32; 3] = [1, 2, 3];

fn place(region: &str, zone: &str) -> Place {
    Place { region: region.to_owned(), zone: zone.to_owned() }
}

async fn read(client: &mut KvClient<Channel>) {
    let range = pb::RangeRequest { key: b"k".to_vec().into(), serializable: true, ..Default::default() };
    client.range(range).await.unwrap();
}

/// Reads until many reads in a row were made at that node only. It may not have been measured yet, or rest.
async fn until_read_at(cluster: &TestCluster, client: &mut KvClient<Channel>, wanted: u32) {
    let counts = || NODES.map(|node| cluster.seen(&format!("read {node}")));
    let begun = std::time::Instant::now();
    loop {
        let before = counts();
        for _ in 0..30 {
            read(client).await;
        }
        let after = counts();
        let at =
            NODES.into_iter().zip(after.iter().zip(before)).filter(|(_, (after, before))| **after > *before);
        if at.map(|(node, _)| node).eq([wanted]) {
            return;
        }
        assert!(begun.elapsed() < processes::PATIENCE, "not at node {wanted}: {before:?}, {after:?}");
    }
}

#[tokio::test]
async fn reads_are_made_at_the_node_with_the_shortest_way_and_at_the_next_when_it_is_gone() {
    let mut cluster = TestCluster::start(3).await;
    let here = Region::named("eu-central-1").unwrap();
    let regions = ["us-east-1", "ap-northeast-1", "eu-west-1"].map(|name| Region::named(name).unwrap());
    let mut relays = Vec::new();
    for (node, region) in cluster.nodes.iter().zip(regions) {
        relays.push(Relay::start(node.address, here.round_trip(region) / SCALE).await.unwrap());
    }
    // Of each other's real addresses they tell nothing.
    cluster.faults.lock().hidden = true;
    let gateway = cluster
        .gateway_with(|options| {
            options.nodes = relays.iter().map(|relay| relay.address().to_string()).collect();
        })
        .await;
    let mut client = KvClient::new(connect(&gateway).await);
    for node in NODES {
        cluster.wait_until(|cluster| cluster.seen(&format!("direct {node}")) == 1).await;
    }
    // Ireland.
    until_read_at(&cluster, &mut client, 3).await;

    // It stands still: what it was asked is asked elsewhere.
    cluster.faults.lock().silent.push(3);
    for _ in 0..10 {
        read(&mut client).await;
    }
    cluster.stop(3);
    // Virginia.
    until_read_at(&cluster, &mut client, 1).await;
    cluster.faults.lock().silent.clear();
    cluster.restart(3).await;
    cluster.wait_until(|cluster| cluster.seen("direct 3") > 1).await;
    until_read_at(&cluster, &mut client, 3).await;
    cluster.stop(3);
    cluster.stop(1);
    cluster.elect(2);
    // Tokyo.
    until_read_at(&cluster, &mut client, 2).await;
}

#[tokio::test]
async fn reads_are_made_in_ones_own_zone_then_region() {
    let mut cluster = TestCluster::start(3).await;
    let places = [place("north", "b"), place("south", "a"), place("north", "a")];
    cluster.faults.lock().places = NODES.into_iter().zip(places).collect();
    let gateway = cluster.gateway_with(|options| options.place = place("north", "a")).await;
    let mut client = KvClient::new(connect(&gateway).await);
    for node in NODES {
        cluster.wait_until(|cluster| cluster.seen(&format!("direct {node}")) == 1).await;
    }
    // The zone.
    until_read_at(&cluster, &mut client, 3).await;
    cluster.stop(3);
    // The region.
    until_read_at(&cluster, &mut client, 1).await;
    cluster.elect(2);
    cluster.stop(1);
    // Where there is one.
    until_read_at(&cluster, &mut client, 2).await;
}

/// Names and client URLs.
async fn members(cluster: &Cluster, gateway: usize) -> Option<Vec<(String, String)>> {
    let endpoint = cluster.endpoints().remove(gateway);
    let mut client = ClusterClient::connect(endpoint).await.ok()?;
    let list = client.member_list(pb::MemberListRequest { linearizable: true }).await.ok()?.into_inner();
    assert!(
        list.members
            .iter()
            .any(|member| Some(member.id) == list.header.as_ref().map(|header| header.member_id))
    );
    Some(list.members.into_iter().map(|member| (member.name, member.client_urls.concat())).collect())
}

async fn until_members(cluster: &Cluster, gateway: usize, wanted: &[usize]) {
    let endpoints = cluster.endpoints();
    let wanted: Vec<_> =
        wanted.iter().map(|index| (format!("gateway-{}", index + 1), endpoints[*index].clone())).collect();
    let begun = std::time::Instant::now();
    loop {
        let listed = members(cluster, gateway).await;
        if listed.as_ref() == Some(&wanted) {
            return;
        }
        assert!(begun.elapsed() < processes::PATIENCE, "{listed:?}, not {wanted:?}\n{}", cluster.logs());
        tokio::task::yield_now().await;
    }
}

/// Two regions of two gateways each.
#[tokio::test]
async fn a_client_is_told_of_the_living_gateways_of_its_region() {
    let region = |index| if index < 2 { "region: north\n" } else { "region: south\n" };
    let setup = Setup {
        gateway: Some(&|index| region(index).to_owned()),
        replica: Some(&|index| format!("{}zone: z\n", region(index))),
        ..Setup::default()
    };
    let mut cluster = Cluster::plan(3, 4, &setup);
    cluster.start_all();
    for (gateway, wanted) in [(0, [0, 1]), (1, [0, 1]), (2, [2, 3]), (3, [2, 3])] {
        until_members(&cluster, gateway, &wanted).await;
    }
    // One of them is shown as the leader, the same wherever it is asked for.
    let mut leaders = Vec::new();
    for endpoint in cluster.endpoints().into_iter().take(2) {
        let mut client = MaintenanceClient::connect(endpoint).await.unwrap();
        leaders.push(client.status(pb::StatusRequest {}).await.unwrap().into_inner().leader);
    }
    assert!(leaders[0] != 0 && leaders[0] == leaders[1], "{leaders:?}");

    cluster.gateways[1].kill();
    // The region has one left; its clients are told of the others behind it.
    until_members(&cluster, 0, &[0, 2, 3]).await;
    cluster.gateways[0].kill();
    until_members(&cluster, 2, &[2, 3]).await;
    cluster.gateways[1].start();
    cluster.gateways[1].wait_until_ready();
    until_members(&cluster, 1, &[1, 2, 3]).await;

    let info = wait_for("metrics", || cluster.gateways[2].get("/metrics")).1;
    assert!(info.contains(r#"gaios_gateway_info{name="gateway-3",region="south",zone=""} 1"#), "{info}");
    let measured =
        |line: &str| line.starts_with(r#"gaios_gateway_node_round_trip_seconds{node="1",region="north"}"#);
    assert!(info.lines().any(measured), "{info}");
    let info = wait_for("metrics", || cluster.replicas[0].get("/metrics")).1;
    assert!(info.contains(r#"region="north",zone="z"}"#), "{info}");
}
