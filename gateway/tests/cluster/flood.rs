//! More connections to the nodes' ports than the nodes may have files open.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sim::model;

use crate::client::Client;
use crate::processes::{Cluster, PATIENCE, Setup};

/// What a node may have open in this test, and what is opened towards it.
const DESCRIPTORS: u32 = 200;
const CONNECTIONS: usize = 600;

/// Half-open connections to every node, and new ones for those that are ended, until told to stop.
fn flood(nodes: Vec<SocketAddr>, stop: &AtomicBool) {
    let mut held: Vec<Vec<TcpStream>> = nodes.iter().map(|_| Vec::new()).collect();
    while !stop.load(Ordering::Relaxed) {
        for (node, held) in nodes.iter().zip(&mut held) {
            if held.len() >= CONNECTIONS {
                held.drain(..CONNECTIONS / 2);
            }
            held.extend(TcpStream::connect_timeout(node, Duration::from_millis(100)));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_connections_takes_no_node_down() {
    // For this process.
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let mut cluster = Cluster::start_as(3, 1, &Setup { descriptors: Some(DESCRIPTORS), ..Setup::default() });
    let mut client = Client::connect(&cluster.endpoints()).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let nodes = cluster.replicas.iter().map(|replica| replica.listen).collect();
    let flooding = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || flood(nodes, &stop)
    });

    // Each is a quarter of a journal's segment, so that files are made all the time.
    for n in 0..40 {
        let key = format!("in-a-flood-{}", n % 4).into_bytes();
        let put = model::PutRequest { key, value: vec![b'x'; 256 << 10], ..Default::default() };
        let put = async { while client.put(put.clone()).await.is_none() {} };
        tokio::time::timeout(PATIENCE, put).await.unwrap_or_else(|_| panic!("{}", cluster.logs()));
    }
    let displaced: f64 = cluster
        .replicas
        .iter()
        .filter_map(|replica| {
            let (_, text) = replica.get("/metrics")?;
            let line = "gaios_replica_connections_refused_total{reason=\"displaced\"} ";
            text.lines().find_map(|found| found.strip_prefix(line)?.parse::<f64>().ok())
        })
        .sum();
    assert!(displaced > 100.0, "{displaced} connections were displaced\n{}", cluster.logs());
    stop.store(true, Ordering::Relaxed);
    flooding.join().unwrap();

    // It may have gone on with two; all three are well.
    cluster.wait_until_ready();
    assert!(!cluster.logs().contains("the journal has failed"), "{}", cluster.logs());
}
