//! Long answers of Range over real sockets: one message each, read from the nodes as fast as the client takes it.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

#[path = "support/http2.rs"]
mod http2;
mod support;

use std::future::poll_fn;
use std::time::Duration;

use api::etcdserverpb as pb;
use api::etcdserverpb::kv_client::KvClient;
use bytes::Bytes;
use gateway::Gateway;
use http_body_util::{BodyExt as _, Full};
use prost::Message as _;
use support::{TestCluster, connect};
use tonic::Code;
use tonic::body::Body;
use tonic::transport::Channel;
use tower_service::Service as _;

const RANGE: &str = "/etcdserverpb.KV/Range";
const VALUE_BYTES: usize = 40 << 10;
const KEYS: usize = 200;

fn all() -> pb::RangeRequest {
    pb::RangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() }
}

/// With 8 MB, and a gateway that may hold so many bytes.
async fn filled(memory: usize) -> (TestCluster, Gateway, KvClient<Channel>) {
    let cluster = TestCluster::start(3).await;
    let gateway = cluster.gateway_with(|options| options.door.memory_max = memory).await;
    let mut client = KvClient::new(connect(&gateway).await).max_decoding_message_size(usize::MAX);
    for number in 0..KEYS {
        let (key, value) = (format!("k{number:03}"), vec![number as u8; VALUE_BYTES]);
        let put = pb::PutRequest { key: key.into(), value: value.into(), ..Default::default() };
        client.put(put).await.unwrap();
    }
    (cluster, gateway, client)
}

/// Requests for data that nodes were asked.
fn reads(cluster: &TestCluster) -> u64 {
    (1..=3).map(|node| cluster.seen(&format!("read {node}"))).sum()
}

async fn metric(gateway: &Gateway, name: &str) -> f64 {
    let (_, text) = support::http(gateway.address(), "GET", "/metrics").await;
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap()
}

/// What answers hold of the budget.
const TAKEN: &str = "gaios_gateway_memory_taken_bytes{use=\"answers\"}";

/// Waits until answers hold nothing.
async fn until_free(gateway: &Gateway) {
    let free = async {
        while metric(gateway, TAKEN).await > 0.0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), free).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_list_is_one_message_of_many_pages() {
    let (cluster, _gateway, mut client) = filled(64 << 20).await;
    let few = pb::RangeRequest { limit: 90, ..all() };
    let before = reads(&cluster);
    assert_eq!(client.range(few).await.unwrap().into_inner().kvs.len(), 90);
    assert!(reads(&cluster) - before > 3, "what few keys hold is long, too");
    for (limit, keys_only, serializable) in
        [(0, false, false), (0, false, true), (120, false, false), (300, false, false), (0, true, false)]
    {
        let before = reads(&cluster);
        let asked = pb::RangeRequest { limit, keys_only, serializable, ..all() };
        let answer = client.range(asked).await.unwrap().into_inner();
        let shown = if limit == 0 { KEYS } else { KEYS.min(limit as usize) };
        assert_eq!((answer.kvs.len(), answer.count, answer.more), (shown, 200, shown < KEYS));
        assert_eq!(answer.header.unwrap().revision, cluster.revision());
        for (number, kv) in answer.kvs.iter().enumerate() {
            assert_eq!(kv.key, format!("k{number:03}"));
            assert_eq!(kv.value.len(), if keys_only { 0 } else { VALUE_BYTES });
            assert!(kv.value.iter().all(|byte| *byte == number as u8));
        }
        let reads = reads(&cluster) - before;
        assert!(if keys_only { reads == 1 } else { (4..12).contains(&reads) }, "{reads} reads");
    }
    // Those that are not read page by page.
    let sorted = pb::RangeRequest { sort_order: 2, ..all() };
    let filtered = pb::RangeRequest { min_mod_revision: 3, ..all() };
    let counted = pb::RangeRequest { count_only: true, ..all() };
    let missing = pb::RangeRequest { key: "x".into(), range_end: "y".into(), ..all() };
    for (request, shown, count) in
        [(sorted, 200, 200), (filtered, 199, 200), (counted, 0, 200), (missing, 0, 0)]
    {
        let answer = client.range(request).await.unwrap().into_inner();
        assert_eq!((answer.kvs.len(), answer.count), (shown, count));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_that_nobody_takes_are_not_read_and_hold_little() {
    const CONNECTIONS: usize = 20;
    const LISTS: usize = 10;
    const BUDGET: usize = 16 << 20;
    let (cluster, gateway, mut client) = filled(BUDGET).await;
    let received = "gaios_gateway_link_received_bytes_total";
    let (read_before, received_before) = (reads(&cluster), metric(&gateway, received).await);
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS {
        let (mut sender, receiver) = http2::connect_narrow(gateway.address()).await;
        for list in 0..LISTS {
            let stream = u32::try_from(2 * list + 1).unwrap();
            sender.call(stream, RANGE, None);
            sender.message(stream, &all());
            sender.end(stream);
        }
        sender.send().await;
        held.push((sender, receiver));
    }
    let lists = (CONNECTIONS * LISTS) as u64;
    let until_measured = async {
        while reads(&cluster) - read_before < lists {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), until_measured).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    // Each of them may have one page under way, and all of them what the budget has room for.
    let pages = reads(&cluster) - read_before - lists;
    assert!(pages <= lists / 2, "{pages} pages");
    let received = metric(&gateway, received).await - received_before;
    assert!(received < BUDGET as f64, "{received} bytes came from nodes");
    let taken = metric(&gateway, TAKEN).await;
    assert!((1.0..=BUDGET as f64 / 2.0).contains(&taken), "{taken} bytes are taken");
    client.range(pb::RangeRequest { key: "k000".into(), ..Default::default() }).await.unwrap();
    drop(held);
    until_free(&gateway).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_whole_is_refused_where_there_is_no_room_for_it() {
    let (_cluster, gateway, mut client) = filled(8 << 20).await;
    let sorted = |limit| pb::RangeRequest { sort_order: 2, limit, ..all() };
    let txn = |limit| {
        let range = pb::request_op::Request::RequestRange(sorted(limit));
        pb::TxnRequest { success: vec![pb::RequestOp { request: Some(range) }], ..Default::default() }
    };
    for _ in 0..3 {
        let status = client.range(sorted(0)).await.unwrap_err();
        assert_eq!(status.message(), "etcdserver: too many requests");
        let status = client.txn(txn(0)).await.unwrap_err();
        assert_eq!(status.message(), "etcdserver: too many requests");
        // Two megabytes.
        assert_eq!(client.range(sorted(50)).await.unwrap().into_inner().kvs.len(), 50);
        assert_eq!(client.txn(txn(50)).await.unwrap().into_inner().responses.len(), 1);
    }
    // It is done, and must not be said to be refused.
    let delete = pb::DeleteRangeRequest { key: all().key, range_end: all().range_end, prev_kv: true };
    let status = client.delete_range(delete).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert_eq!(client.range(all()).await.unwrap().into_inner().count, 0);
    let refused = "gaios_gateway_requests_refused_total{reason=\"memory\"}";
    assert!(metric(&gateway, refused).await >= 6.0);
    until_free(&gateway).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_stays_at_its_revision_and_fails_where_that_is_compacted() {
    let (cluster, gateway, mut client) = filled(64 << 20).await;
    let revision = cluster.revision();
    let endpoint = Channel::from_shared(format!("http://{}", gateway.address())).unwrap();
    let narrow = endpoint.initial_stream_window_size(1 << 16).initial_connection_window_size(1 << 16);
    let mut begun = begin(&mut narrow.connect().await.unwrap()).await;
    // What the window lets through, of a message that is announced whole.
    let first = begun.frame().await.unwrap().unwrap().into_data().unwrap();
    let length = u32::from_be_bytes(first[1..5].try_into().unwrap()) as usize;
    assert!((KEYS * VALUE_BYTES..KEYS * (VALUE_BYTES + 100)).contains(&length));
    let put = pb::PutRequest { key: "k199".into(), value: "changed".into(), ..Default::default() };
    client.put(put).await.unwrap();
    client.compact(pb::CompactionRequest { revision: revision + 1, physical: true }).await.unwrap();
    let (received, code) = end(begun).await;
    assert!(received < length, "it cannot be read to its end");
    assert_eq!(code, Code::OutOfRange);
    let (received, code) = end(begin(&mut connect(&gateway).await).await).await;
    assert_eq!((received > length - VALUE_BYTES, code), (true, Code::Ok));
}

/// Asks for all of it, and reads nothing.
async fn begin(channel: &mut Channel) -> Body {
    let message = all().encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let framed = Bytes::from([&[0], &length[..], &message].concat());
    let request =
        http::Request::post(RANGE).header("content-type", "application/grpc").header("te", "trailers");
    let request = request.body(Body::new(Full::new(framed))).unwrap();
    poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
    channel.call(request).await.unwrap().into_body()
}

/// The bytes that are left, and the status.
async fn end(mut body: Body) -> (usize, Code) {
    let mut bytes = 0;
    loop {
        match body.frame().await.unwrap().unwrap().into_data() {
            Ok(data) => bytes += data.len(),
            Err(frame) => {
                let trailers = frame.into_trailers().unwrap();
                return (bytes, Code::from_bytes(trailers["grpc-status"].as_bytes()));
            }
        }
    }
}
