//! Three replica processes and two gateway processes, and clients whose every answer is recorded, while processes are
//! killed and stopped. The recorded history must be explainable: linearizable, nothing acknowledged lost, nothing
//! applied twice, every revision seen by every watch once and in order.
//!
//! The package `compat/cluster` compiles the same with the clients of the `etcd-client` crate.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(unexpected_cfgs, reason = "the feature exists in `compat/cluster` only")]

#[cfg(not(feature = "etcd-client"))]
mod certificates;
#[cfg_attr(feature = "etcd-client", path = "client_etcd.rs")]
mod client;
mod clients;
mod flood;
#[cfg(not(feature = "etcd-client"))]
mod large;
mod leading;
mod processes;
mod regions;
#[cfg(not(feature = "etcd-client"))]
mod status;
mod stops;
#[cfg(not(feature = "etcd-client"))]
mod stranger;

use std::time::{Duration, Instant};

use client::Client;
use clients::Clients;
use processes::Cluster;
use rustix::process::Signal;
use sim::linear::revisions::{self, Verdict};
use sim::model;

const WRITERS: u64 = 6;
const WATCHERS: u64 = 2;
/// Answers that every writer must get between two faults.
const ROUND: u64 = 30;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clients_see_stays_explainable_while_processes_die() {
    let mut cluster = Cluster::start(3, 2);
    let mut clients = Clients::start(&cluster.endpoints(), WRITERS, WATCHERS);
    let result = std::panic::AssertUnwindSafe(faults(&mut cluster, &mut clients));
    if let Err(panic) = futures::FutureExt::catch_unwind(result).await {
        eprintln!("{}", cluster.logs());
        std::panic::resume_unwind(panic);
    }
    let history = clients.finish().await;
    match revisions::check(&history, &revisions::Options::default()) {
        Verdict::Consistent(summary) => {
            println!("{summary:?}");
            assert!(summary.writes > 100 && summary.reads > 50 && summary.watch_events > 100, "{summary:?}");
        }
        Verdict::Violated(violations) => {
            let path = std::env::temp_dir().join(format!("gaios-history-{}.jsonl", std::process::id()));
            std::fs::write(&path, history.to_json_lines()).unwrap();
            let listed: String = violations.iter().map(|violation| format!("{violation}\n")).collect();
            panic!("{listed}\nhistory: {}\n{}", path.display(), cluster.logs());
        }
        Verdict::Undecided { reason } => panic!("the checker gave up: {reason}"),
    }
}

/// The newest writes are on two disks. One of them is lost, the other is down: the third and the emptied one are a quorum
/// of nodes that know nothing of those writes, and may not take themselves for a cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_node_and_one_that_is_behind_forget_nothing() {
    let mut cluster = Cluster::start(3, 1);
    let mut client = Client::connect(&cluster.endpoints()).await.unwrap();
    let key = b"kept".to_vec();
    let put = model::PutRequest { key: key.clone(), value: b"behind".to_vec(), ..Default::default() };
    client.put(put.clone()).await.expect("all are up");
    cluster.replicas[2].kill();
    let put = model::PutRequest { value: b"newest".to_vec(), ..put };
    while client.put(put.clone()).await.is_none() {}
    cluster.replicas[0].kill();
    cluster.replicas[1].kill();

    cluster.replicas[1].empty();
    cluster.replicas[1].start();
    cluster.replicas[2].start();
    // Ten elections' time. The gateway answers reads for which there is no leader with errors.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        let ready = cluster.replicas[1..].iter().filter_map(|replica| replica.get("/readyz"));
        assert!(ready.into_iter().all(|(status, _)| status != 200), "{}", cluster.logs());
        tokio::task::yield_now().await;
    }
    cluster.replicas[0].start();
    cluster.wait_until_ready();
    let range = model::KeyRange::single(key);
    let read =
        client.range(model::RangeRequest { range, ..Default::default() }).await.expect("all are ready");
    assert_eq!(read.kvs.len(), 1, "{}", cluster.logs());
    assert_eq!(read.kvs[0].value, b"newest", "{}", cluster.logs());

    // All three hold everything again: it is there without the one that had kept it.
    cluster.replicas[0].kill();
    let put = model::PutRequest { value: b"more".to_vec(), ..put };
    while client.put(put.clone()).await.is_none() {}
}

/// More at once than a group takes into its queue: it refuses the rest, and the gateway asks again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_large_writes_at_once_are_all_answered() {
    let cluster = Cluster::start(3, 1);
    let client = Client::connect(&cluster.endpoints()).await.unwrap();
    let mut writes = tokio::task::JoinSet::new();
    for n in 0..64 {
        let mut client = client.clone();
        let key = format!("large-{n}").into_bytes();
        let request = model::PutRequest { key, value: vec![b'x'; 1 << 20], ..Default::default() };
        writes.spawn(async move { client.put(request).await });
    }
    let answers = writes.join_all().await;
    let revisions: std::collections::BTreeSet<_> = answers.iter().flatten().map(|put| put.revision).collect();
    assert_eq!(revisions.len(), 64, "{}", cluster.logs());
}

async fn faults(cluster: &mut Cluster, clients: &mut Clients) {
    clients.each_acknowledged(ROUND).await;

    // kill -9 of the leader.
    let leader = cluster.leader();
    cluster.replicas[leader].kill();
    let killed = Instant::now();
    clients.each_acknowledged(1).await;
    println!("every writer had an answer {:?} after the leader's kill -9", killed.elapsed());
    clients.each_acknowledged(ROUND).await;
    cluster.replicas[leader].start();
    cluster.replicas[leader].wait_until_ready();
    clients.each_acknowledged(ROUND).await;

    // kill -9 of a follower.
    let follower = (cluster.leader() + 1) % cluster.replicas.len();
    cluster.replicas[follower].kill();
    clients.each_acknowledged(ROUND).await;
    cluster.replicas[follower].start();
    cluster.replicas[follower].wait_until_ready();

    // A follower loses its disk.
    let follower = (cluster.leader() + 1) % cluster.replicas.len();
    cluster.replicas[follower].kill();
    clients.each_acknowledged(1).await;
    cluster.replicas[follower].empty();
    cluster.replicas[follower].start();
    cluster.replicas[follower].wait_until_ready();
    clients.each_acknowledged(ROUND).await;

    // kill -9 of a gateway.
    cluster.gateways[0].kill();
    clients.each_acknowledged(1).await;
    cluster.gateways[0].start();
    cluster.gateways[0].wait_until_ready();
    clients.each_acknowledged(ROUND).await;

    // kill -9 of everything at once.
    for process in cluster.replicas.iter_mut().chain(&mut cluster.gateways) {
        process.kill();
    }
    for process in cluster.replicas.iter_mut().chain(&mut cluster.gateways) {
        process.start();
    }
    cluster.wait_until_ready();
    clients.each_acknowledged(ROUND).await;

    // The leader stands still for ten seconds and then goes on where it was.
    let leader = cluster.leader();
    cluster.replicas[leader].signal(Signal::STOP);
    let stopped = Instant::now();
    while stopped.elapsed() < Duration::from_secs(10) {
        clients.each_acknowledged(1).await;
    }
    cluster.replicas[leader].signal(Signal::CONT);
    clients.each_acknowledged(ROUND).await;
    cluster.wait_until_ready();

    // An orderly stop of the leader.
    let leader = cluster.leader();
    assert!(cluster.replicas[leader].terminate(), "the leader ends well");
    clients.each_acknowledged(ROUND).await;
    cluster.replicas[leader].start();
    cluster.wait_until_ready();
    clients.each_acknowledged(ROUND).await;
}
