//! What clients send that the HTTP/2 library would refuse as it comes: see `third_party/h2.patch`.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

#[path = "support/http2.rs"]
mod http2;
mod support;

use api::etcdserverpb as pb;
use api::etcdserverpb::watch_request::RequestUnion;
use support::TestCluster;

const RANGE: &str = "/etcdserverpb.KV/Range";
const WATCH: &str = "/etcdserverpb.Watch/Watch";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";

/// What clients of etcd dial is not always the name of a host, and etcd does not look at it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_authority_is_taken() {
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway().await;
    let (mut sender, mut receiver) = http2::connect(gateway.address()).await;
    let authorities = [
        None,
        Some("127.0.0.1:2379"),
        Some(""),
        // clientv3 3.5.0.
        Some("#initially=[http://127.0.0.1:2379;127.0.0.1:22379]"),
        // clientv3 3.4 where it dials one endpoint.
        Some("http://127.0.0.1:2379"),
        // gRPC C-core with `ipv4:` and several addresses, and with a socket's path.
        Some("127.0.0.1:2379,127.0.0.1:22379"),
        Some("unix%3A%2Ftmp%2Fsocket"),
        Some("etcd-endpoints://0xc000/127.0.0.1:2379"),
        Some("a@b@c:d:e"),
    ];
    for (index, authority) in authorities.into_iter().enumerate() {
        let stream = u32::try_from(2 * index + 1).unwrap();
        sender.call(stream, RANGE, authority);
        sender.message(stream, &pb::RangeRequest { key: "a".into(), ..Default::default() });
        sender.end(stream);
        sender.send().await;
        let answers: Vec<pb::RangeResponse> = receiver.messages(1).await;
        assert_eq!(answers[0].header.as_ref().unwrap().revision, 1, "{authority:?}");
    }
}

/// As clientv3 does it every third of the time to live, all at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_keep_alives_at_once_are_answered_in_their_order() {
    const COUNT: i64 = 20_000;
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway().await;
    let (mut sender, mut receiver) = http2::connect(gateway.address()).await;
    sender.call(1, KEEP_ALIVE, None);
    for id in 1..=COUNT {
        sender.message(1, &pb::LeaseKeepAliveRequest { id });
    }
    sender.end(1);
    let sending = tokio::spawn(async move {
        sender.send().await;
        sender
    });
    let answers: Vec<pb::LeaseKeepAliveResponse> = receiver.messages(COUNT as usize).await;
    assert!(answers.iter().zip(1..).all(|(answer, id)| (answer.id, answer.ttl) == (id, 0)));
    let requests = cluster.seen("keep_alive");
    assert!(requests < 1000, "{requests} requests for {COUNT} renewals");
    drop(sending.await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_watches_at_once_on_a_stream_are_created() {
    const COUNT: i64 = 20_000;
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway().await;
    let (mut sender, mut receiver) = http2::connect(gateway.address()).await;
    sender.call(1, WATCH, None);
    for _ in 0..COUNT {
        sender.message(1, &create("a"));
    }
    let sending = tokio::spawn(async move {
        sender.send().await;
        sender
    });
    let answers: Vec<pb::WatchResponse> = receiver.messages(COUNT as usize).await;
    assert!(answers.iter().zip(0..).all(|(answer, id)| answer.created && answer.watch_id == id));
    drop(sending.await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_watch_streams_at_once_on_a_connection_are_served() {
    const COUNT: u32 = 5_000;
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway().await;
    let (mut sender, mut receiver) = http2::connect(gateway.address()).await;
    for stream in (1..).step_by(2).take(COUNT as usize) {
        sender.call(stream, WATCH, None);
        sender.message(stream, &create("a"));
    }
    let sending = tokio::spawn(async move {
        sender.send().await;
        sender
    });
    let answers: Vec<pb::WatchResponse> = receiver.messages(COUNT as usize).await;
    assert!(answers.iter().all(|answer| answer.created && answer.watch_id == 0));
    drop(sending.await.unwrap());
}

/// What a gateway is for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_of_clients_cost_no_links() {
    let cluster = TestCluster::start(3).await;
    let gateway = cluster.gateway().await;
    let links = |cluster: &TestCluster| -> Vec<u64> {
        (1..=3).map(|node| cluster.seen(&format!("direct {node}"))).collect()
    };
    cluster.wait_until(|cluster| links(cluster).iter().all(|links| *links > 0)).await;
    let before = links(&cluster);
    let mut connections = Vec::new();
    for _ in 0..300 {
        let (mut sender, mut receiver) = http2::connect(gateway.address()).await;
        sender.call(1, RANGE, None);
        sender.message(1, &pb::RangeRequest { key: "a".into(), ..Default::default() });
        sender.end(1);
        sender.send().await;
        let _: Vec<pb::RangeResponse> = receiver.messages(1).await;
        connections.push((sender, receiver));
    }
    assert_eq!(links(&cluster), before, "with {} connections open", connections.len());
}

fn create(key: &str) -> pb::WatchRequest {
    let create = pb::WatchCreateRequest { key: key.to_owned().into(), ..Default::default() };
    pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}
