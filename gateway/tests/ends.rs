//! Requests have an end: when their client takes them back, or goes away, nobody works for them any more.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

#[path = "support/http2.rs"]
mod http2;
mod support;

use std::time::Duration;

use api::etcdserverpb as pb;
use gateway::Gateway;
use support::TestCluster;

const COUNT: usize = 300;
const RANGE: &str = "/etcdserverpb.KV/Range";
const PUT: &str = "/etcdserverpb.KV/Put";
/// Longer than the longest pause before a node that is overloaded is asked again.
const PAUSE: Duration = Duration::from_millis(700);

/// The numbers of a client's streams.
fn streams() -> impl Iterator<Item = u32> {
    (1..).step_by(2).take(COUNT)
}

/// Asks for everything on each stream.
fn ask(sender: &mut http2::Sender) {
    for stream in streams() {
        sender.call(stream, RANGE, None);
        let all = pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
        sender.message(stream, &all);
        sender.end(stream);
    }
}

/// A client whose ranges all wait at the node.
async fn with_ranges_held(cluster: &TestCluster, gateway: &Gateway) -> (http2::Sender, http2::Receiver) {
    cluster.faults.lock().reads_held = true;
    let (mut sender, receiver) = http2::connect(gateway.address()).await;
    ask(&mut sender);
    sender.send().await;
    cluster.wait_until(|cluster| cluster.held() == COUNT).await;
    (sender, receiver)
}

/// How many requests have ended before they were answered.
async fn dropped(gateway: &Gateway, reason: &str) -> u64 {
    let (_, metrics) = support::http(gateway.address(), "GET", "/metrics").await;
    let line = format!("gaios_gateway_requests_dropped_total{{reason=\"{reason}\"}} ");
    let value = metrics.lines().find_map(|found| found.strip_prefix(&line)).unwrap();
    value.trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_reset_leave_nothing_at_the_node() {
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway().await;
    let (mut sender, receiver) = with_ranges_held(&cluster, &gateway).await;
    for stream in streams() {
        sender.reset(stream);
    }
    sender.send().await;
    cluster.wait_until(|cluster| cluster.held() == 0).await;
    assert_eq!(cluster.seen("cancel"), COUNT as u64);
    assert_eq!(dropped(&gateway, "gone").await, COUNT as u64);
    drop((sender, receiver));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_gone_takes_its_requests_along() {
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway().await;
    drop(with_ranges_held(&cluster, &gateway).await);
    cluster.wait_until(|cluster| cluster.held() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_is_taken_back_is_not_tried_again() {
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway().await;
    cluster.faults.lock().overloaded = u32::MAX;
    let (mut sender, receiver) = http2::connect(gateway.address()).await;
    sender.call(1, PUT, None);
    sender.message(1, &pb::PutRequest { key: "a".into(), ..Default::default() });
    sender.end(1);
    sender.send().await;
    cluster.wait_until(|cluster| cluster.seen("write") > 2).await;
    sender.reset(1);
    sender.send().await;
    while dropped(&gateway, "gone").await == 0 {}
    let tried = cluster.seen("write");
    tokio::time::sleep(PAUSE).await;
    assert_eq!((cluster.seen("write"), cluster.seen("cancel")), (tried, 0));
    drop(receiver);
}
