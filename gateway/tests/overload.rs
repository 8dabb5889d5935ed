//! More than can be served: who is refused is told so in etcd's words, and loses nothing else.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

#[path = "support/http2.rs"]
mod http2;
mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use api::etcdserverpb as pb;
use api::etcdserverpb::kv_client::KvClient;
use support::{TestCluster, connect};
use tokio::task::JoinSet;
use tonic::Code;

const PUT: &str = "/etcdserverpb.KV/Put";

fn put(value_bytes: usize) -> pb::PutRequest {
    pb::PutRequest { key: "k".into(), value: vec![7; value_bytes].into(), ..Default::default() }
}

/// The library soon forgets a stream that it has reset, and once took what came for such streams for an attack.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_come_after_the_refusal_cost_no_connection() {
    const COUNT: u32 = 3000;
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway_with(|options| options.door.requests_max = 0).await;
    let (mut sender, mut receiver) = http2::connect(gateway.address()).await;
    let streams = || (1..).step_by(2).take(COUNT as usize);
    for stream in streams() {
        sender.call(stream, PUT, None);
    }
    sender.send().await;
    for _ in streams() {
        assert_eq!(receiver.next().await.kind, http2::RESET, "what it refuses it does not want to have");
    }
    for stream in streams() {
        sender.message(stream, &put(100));
        sender.end(stream);
    }
    let last = 2 * COUNT + 1;
    sender.call(last, PUT, None);
    sender.send().await;
    let frame = receiver.next().await;
    assert_eq!((frame.kind, frame.stream), (http2::RESET, last), "{:?}", frame.payload);
}

/// As many at a time as clients will, on one connection, for as long as it takes to be refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_is_answered_too_many_requests_and_nothing_else() {
    const AT_ONCE: usize = 200;
    const AT_LEAST_FOR: Duration = Duration::from_millis(500);
    const AT_MOST_FOR: Duration = Duration::from_secs(20);
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway().await;
    let mut client = KvClient::new(connect(&gateway).await);
    client.put(put(1)).await.unwrap();
    // Answers take their time, each as long as many others would.
    cluster.faults.lock().slow = Some(Duration::from_micros(500));
    let mut puts = JoinSet::new();
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    let begun = Instant::now();
    let is_refused = |outcomes: &BTreeMap<String, usize>| outcomes.keys().any(|outcome| outcome != "ok");
    while begun.elapsed() < AT_LEAST_FOR || !is_refused(&outcomes) {
        assert!(begun.elapsed() < AT_MOST_FOR, "nothing is refused: {outcomes:?}");
        for _ in 0..AT_ONCE {
            let mut client = client.clone();
            puts.spawn(async move { client.put(put(2000)).await });
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        while let Some(answered) = puts.try_join_next() {
            *outcomes.entry(told(answered.unwrap())).or_default() += 1;
        }
    }
    while let Some(answered) = puts.join_next().await {
        *outcomes.entry(told(answered.unwrap())).or_default() += 1;
    }
    let refused = format!("{:?}: etcdserver: too many requests", Code::Unknown);
    assert_eq!(outcomes.keys().map(String::as_str).collect::<Vec<_>>(), [&refused, "ok"], "{outcomes:?}");
    assert!(outcomes["ok"] > 100, "{outcomes:?}");
}

fn told<T>(answered: Result<T, tonic::Status>) -> String {
    match answered {
        Ok(_) => "ok".to_owned(),
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    }
}
