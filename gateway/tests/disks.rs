//! Clusters of processes whose disks are lost, or full, on more nodes than a cluster survives: that it is said, and the way
//! back.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]
#![allow(unexpected_cfgs, reason = "the feature exists in `compat/cluster` only")]

#[path = "cluster/processes.rs"]
mod processes;

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use api::etcdserverpb as pb;
use api::etcdserverpb::kv_client::KvClient;
use api::etcdserverpb::maintenance_client::MaintenanceClient;
use processes::{Cluster, PATIENCE, Process, gaios, wait_for};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

async fn channel(cluster: &Cluster) -> Channel {
    Endpoint::from_shared(cluster.endpoints()[0].clone()).unwrap().connect().await.unwrap()
}

fn put(key: &str, bytes: usize) -> pb::PutRequest {
    pb::PutRequest { key: key.to_owned().into(), value: vec![7; bytes].into(), ..Default::default() }
}

/// Writes until it succeeds.
async fn write(client: &mut KvClient<Channel>, key: &str) {
    let begun = Instant::now();
    while let Err(status) = client.put(put(key, 100)).await {
        assert!(begun.elapsed() < PATIENCE, "{status:?}");
    }
}

async fn count(client: &mut KvClient<Channel>) -> i64 {
    let all =
        pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), count_only: true, ..Default::default() };
    client.range(all).await.unwrap().into_inner().count
}

fn recover(node: &Process, flags: &[&str]) -> Output {
    let dir = node.data_dir().to_str().unwrap();
    Command::new(gaios()).args(["ctl", "recover", "--data-dir", dir]).args(flags).output().unwrap()
}

fn readyz_says(cluster: &Cluster, node: usize, words: &str) {
    wait_for(words, || {
        let (status, body) = cluster.replicas[node].get("/readyz")?;
        (status == 503 && body.contains(words)).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_two_of_three_directories_lost_the_third_serves_again_once_that_is_decided() {
    let mut cluster = Cluster::start(3, 1);
    let mut client = KvClient::new(channel(&cluster).await);
    for key in ["a", "b", "c"] {
        write(&mut client, key).await;
    }
    let running = recover(&cluster.replicas[2], &[]);
    assert!(!running.status.success(), "its directory is in use: {running:?}");
    for node in &mut cluster.replicas {
        assert!(node.terminate());
    }
    cluster.replicas[0].empty();
    cluster.replicas[1].empty();
    for node in &mut cluster.replicas {
        node.start();
    }
    for node in [0, 1] {
        wait_for("it says what is wrong", || {
            cluster.replicas[node].log().contains("gaios ctl recover").then_some(())
        });
    }

    assert!(cluster.replicas[2].terminate());
    // A look changes nothing, and says what may be lost.
    let look = recover(&cluster.replicas[2], &[]);
    let text = String::from_utf8(look.stdout).unwrap();
    assert!(look.status.success() && text.contains("WHOLE UP TO"), "{text}");
    assert!(text.contains("is lost") && text.contains("Nothing was changed"), "{text}");
    let json = recover(&cluster.replicas[2], &["-o", "json", "--dry-run"]).stdout;
    let found: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!((&found["node"], &found["declared"]), (&3.into(), &false.into()));
    assert!(found["groups"][0]["whole_upto"].as_u64().unwrap() >= 4, "{found}");
    // There is nothing to be had from one that lost everything.
    assert!(cluster.replicas[0].terminate());
    let empty = recover(&cluster.replicas[0], &["-o", "json"]);
    let empty: serde_json::Value = serde_json::from_slice(&empty.stdout).unwrap();
    assert_eq!(empty["groups"][0]["whole_upto"].as_u64().unwrap_or(0), 0, "{empty}");
    cluster.replicas[0].start();

    let declared = recover(&cluster.replicas[2], &["--accept-loss"]);
    assert!(declared.status.success(), "{declared:?}");
    cluster.replicas[2].start();
    cluster.wait_until_ready();
    assert_eq!(count(&mut client).await, 3, "{}", cluster.logs());
    write(&mut client, "d").await;

    // The declaration is used up, and the others hold everything now.
    assert!(cluster.replicas[2].terminate());
    let found = recover(&cluster.replicas[2], &["-o", "json"]).stdout;
    let found: serde_json::Value = serde_json::from_slice(&found).unwrap();
    assert_eq!(found["declared"], serde_json::Value::Bool(false), "{found}");
    write(&mut client, "e").await;
    assert_eq!(count(&mut client).await, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_one_of_two_directories_lost_the_other_serves_again_once_that_is_decided() {
    let mut cluster = Cluster::start(2, 1);
    let mut client = KvClient::new(channel(&cluster).await);
    write(&mut client, "a").await;
    for node in &mut cluster.replicas {
        assert!(node.terminate());
    }
    cluster.replicas[0].empty();
    for node in &mut cluster.replicas {
        node.start();
    }
    readyz_says(&cluster, 1, "gaios ctl recover");
    let told = cluster.replicas[1].log().matches("no leader can come to power").count();
    assert_eq!(told, 1, "{}", cluster.logs());
    assert!(cluster.replicas[1].terminate());
    assert!(recover(&cluster.replicas[1], &["--accept-loss"]).status.success());
    cluster.replicas[1].start();
    cluster.wait_until_ready();
    write(&mut client, "b").await;
    assert_eq!(count(&mut client).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_majority_of_disks_full_writes_fail_at_once_until_there_is_room() {
    let cluster = Cluster::start(3, 1);
    let mut client = KvClient::new(channel(&cluster).await);
    let mut maintenance = MaintenanceClient::new(channel(&cluster).await);
    write(&mut client, "a").await;
    let leader = cluster.leader();
    let followers: Vec<usize> = (0..3).filter(|node| *node != leader).collect();
    let limit = |bytes| followers.iter().for_each(|node| cluster.replicas[*node].limit_files(bytes));
    limit(Some(256 << 10));

    let is_refused = |status: &tonic::Status| {
        status.code() == Code::ResourceExhausted
            && status.message() == "etcdserver: mvcc: database space exceeded"
    };
    let begun = Instant::now();
    // What is under way when the disks run full waits for its time; nobody knows what becomes of it.
    while !client.put(put("b", 64 << 10)).await.is_err_and(|status| is_refused(&status)) {
        assert!(begun.elapsed() < PATIENCE, "{}", cluster.logs());
    }
    let logged = || -> usize { cluster.replicas.iter().map(|node| node.log().lines().count()).sum() };
    let before = logged();
    let begun = Instant::now();
    for _ in 0..20 {
        let status = client.put(put("b", 64 << 10)).await.unwrap_err();
        assert!(is_refused(&status), "{status:?}");
    }
    assert!(begun.elapsed() < Duration::from_secs(4), "at once: {:?}", begun.elapsed());
    let (status, body) = cluster.gateways[0].get_client("/health").unwrap();
    assert!(status == 503 && body.contains("ALARM NOSPACE"), "{status} {body}");
    let alarms = maintenance.alarm(pb::AlarmRequest::default()).await.unwrap().into_inner().alarms;
    let mut members: Vec<u64> = alarms.iter().map(|alarm| alarm.member_id).collect();
    members.sort_unstable();
    let full: Vec<u64> = followers.iter().map(|node| *node as u64 + 1).collect();
    assert_eq!(members, full);
    let status = maintenance.status(pb::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.errors.len(), 2, "{:?}", status.errors);
    assert_eq!(count(&mut client).await.signum(), 1, "reads go on");
    assert!(logged() - before < 10, "{}", cluster.logs());

    limit(None);
    write(&mut client, "c").await;
    wait_for("it is healthy again", || {
        cluster.gateways[0].get_client("/health").filter(|(status, _)| *status == 200)
    });
    let alarms = maintenance.alarm(pb::AlarmRequest::default()).await.unwrap().into_inner().alarms;
    assert_eq!(alarms, []);
}
