//! RangeStream from a client over real sockets: in chunks, at one revision, as fast as the client reads.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::time::Duration;

use api::etcdserverpb as pb;
use api::etcdserverpb::kv_client::KvClient;
use api::etcdserverpb::range_request::{SortOrder, SortTarget};
use bytes::Bytes;
use gateway::Gateway;
use prost::Message as _;
use support::{TestCluster, connect};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// What a chunk is to be as long as.
const CHUNK_BYTES: usize = 15 << 10;
/// About two thirds of it.
const VALUE_BYTES: usize = 10 << 10;
/// As many as a Kubernetes cluster had that never came up.
const KEYS: usize = 560;

fn key(number: usize) -> String {
    format!("k{number:03}")
}

/// With values that two fill a chunk.
async fn filled(keys: usize) -> (TestCluster, Gateway, KvClient<Channel>) {
    let cluster = TestCluster::start(3).await;
    let gateway = cluster.gateway_with(|options| options.door.request_bytes_max = CHUNK_BYTES).await;
    let mut client = KvClient::new(connect(&gateway).await);
    for number in 0..keys {
        put(&mut client, &key(number), vec![number as u8; VALUE_BYTES]).await;
    }
    (cluster, gateway, client)
}

async fn put(client: &mut KvClient<Channel>, key: &str, value: impl Into<Bytes>) {
    let put = pb::PutRequest { key: key.to_owned().into(), value: value.into(), ..Default::default() };
    client.put(put).await.unwrap();
}

fn all() -> pb::RangeRequest {
    pb::RangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() }
}

/// All messages, and how the stream ends.
async fn stream(
    client: &mut KvClient<Channel>,
    request: pb::RangeRequest,
) -> Result<Vec<pb::RangeResponse>, Status> {
    let mut stream = client.range_stream(request).await?.into_inner();
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await? {
        messages.push(message.range_response.unwrap());
    }
    Ok(messages)
}

fn keys(messages: &[pb::RangeResponse]) -> Vec<String> {
    let kvs = messages.iter().flat_map(|message| &message.kvs);
    kvs.map(|kv| String::from_utf8(kv.key.to_vec()).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_range_comes_in_many_short_chunks() {
    let (cluster, _gateway, mut client) = filled(KEYS).await;
    for serializable in [false, true] {
        let messages = stream(&mut client, pb::RangeRequest { serializable, ..all() }).await.unwrap();
        let lengths: Vec<usize> = messages.iter().map(|message| message.kvs.len()).collect();
        assert_eq!(lengths[..4], [10, 5, 2, 2]);
        assert_eq!(messages.len(), 2 + (KEYS - 15).div_ceil(2));
        assert_eq!(keys(&messages), (0..KEYS).map(key).collect::<Vec<_>>());
        assert!(messages[2..].iter().all(|message| message.encoded_len() < 2 * CHUNK_BYTES));
        let (last, others) = messages.split_last().unwrap();
        assert!(others.iter().all(|message| message.header.is_none() && message.count == 0 && !message.more));
        assert_eq!(last.header.as_ref().unwrap().revision, cluster.revision());
        assert_eq!((last.count, last.more), (KEYS as i64, false));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_counts_over_chunks_and_the_last_one_tells_what_it_left_out() {
    let (_cluster, _gateway, mut client) = filled(40).await;
    for limit in [1, 10, 12, 17, 39, 40, 41] {
        let messages = stream(&mut client, pb::RangeRequest { limit, ..all() }).await.unwrap();
        let shown = limit.min(40);
        assert_eq!(keys(&messages), (0..shown as usize).map(key).collect::<Vec<_>>());
        let last = messages.last().unwrap();
        assert_eq!((last.count, last.more), (40, limit < 40), "limit {limit}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_short_is_one_message() {
    let (cluster, _gateway, mut client) = filled(3).await;
    let revision = cluster.revision();
    let none = pb::RangeRequest { key: "x".into(), range_end: "y".into(), ..Default::default() };
    let one = pb::RangeRequest { key: "k001".into(), ..Default::default() };
    let count = pb::RangeRequest { count_only: true, ..all() };
    let old = pb::RangeRequest { revision: 2, ..all() };
    for (request, shown, counted) in [(none, 0, 0), (one, 1, 1), (count, 0, 3), (old, 1, 1), (all(), 3, 3)] {
        let messages = stream(&mut client, request.clone()).await.unwrap();
        assert_eq!(messages.len(), 1, "{request:?}");
        assert_eq!((messages[0].kvs.len(), messages[0].count), (shown, counted), "{request:?}");
        // The latest one, also where an older one was asked for.
        assert_eq!(messages[0].header.as_ref().unwrap().revision, revision);
    }
    let keys_only = stream(&mut client, pb::RangeRequest { keys_only: true, ..all() }).await.unwrap();
    assert!(keys_only[0].kvs.iter().all(|kv| kv.value.is_empty() && kv.mod_revision > 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_streamed_is_refused_before_anything_is_read() {
    let (_cluster, _gateway, mut client) = filled(1).await;
    let sorted = |order: SortOrder, target: SortTarget| pb::RangeRequest {
        sort_order: order.into(),
        sort_target: target.into(),
        ..all()
    };
    let orders = "RangeStream does not support custom sort orders";
    let filters = "RangeStream does not support revision filters";
    for (request, code, text) in [
        (pb::RangeRequest::default(), Code::InvalidArgument, "etcdserver: key is not provided"),
        (sorted(SortOrder::Descend, SortTarget::Key), Code::Unimplemented, orders),
        (sorted(SortOrder::Ascend, SortTarget::Mod), Code::Unimplemented, orders),
        (pb::RangeRequest { min_mod_revision: 1, ..all() }, Code::Unimplemented, filters),
        (pb::RangeRequest { max_create_revision: 1, ..all() }, Code::Unimplemented, filters),
        (
            pb::RangeRequest { revision: 99, ..all() },
            Code::OutOfRange,
            "etcdserver: mvcc: required revision is a future revision",
        ),
    ] {
        let status = stream(&mut client, request).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (code, text));
    }
    // Without an order the target is of no meaning.
    for (order, target) in [(SortOrder::None, SortTarget::Mod), (SortOrder::Ascend, SortTarget::Key)] {
        assert_eq!(stream(&mut client, sorted(order, target)).await.unwrap().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_stays_at_its_revision_and_ends_where_that_is_compacted() {
    let (cluster, _gateway, mut client) = filled(KEYS).await;
    let revision = cluster.revision();
    let mut pinned = client.range_stream(all()).await.unwrap().into_inner();
    let mut doomed = client.range_stream(all()).await.unwrap().into_inner();
    let first = |message: Option<pb::RangeStreamResponse>| message.unwrap().range_response.unwrap().kvs.len();
    assert_eq!(first(pinned.message().await.unwrap()), 10);
    assert_eq!(first(doomed.message().await.unwrap()), 10);
    put(&mut client, "k000a", "new").await;
    put(&mut client, "k559", "changed").await;
    let (mut shown, mut last) = (10, None);
    while let Some(message) = pinned.message().await.unwrap() {
        let message = message.range_response.unwrap();
        assert!(message.kvs.iter().all(|kv| kv.mod_revision <= revision && kv.value.len() == VALUE_BYTES));
        shown += message.kvs.len();
        last = Some(message);
    }
    assert_eq!(shown, KEYS);
    assert_eq!(last.unwrap().header.unwrap().revision, revision);

    client.compact(pb::CompactionRequest { revision: revision + 2, physical: false }).await.unwrap();
    let mut shown = 0;
    let status = loop {
        match doomed.message().await {
            Ok(message) => shown += first(message),
            Err(status) => break status,
        }
    };
    assert!((1..KEYS - 10).contains(&shown), "{shown} keys were on their way");
    let text = "etcdserver: mvcc: required revision has been compacted";
    assert_eq!((status.code(), status.message()), (Code::OutOfRange, text));
}

/// Pages that nodes were asked for.
fn pages(cluster: &TestCluster) -> u64 {
    (1..=3).map(|node| cluster.seen(&format!("read {node}"))).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_holds_little_and_one_that_is_gone_nothing() {
    let (cluster, gateway, _) = filled(KEYS).await;
    let endpoint = Channel::from_shared(format!("http://{}", gateway.address())).unwrap();
    let narrow = endpoint.initial_stream_window_size(1 << 16).initial_connection_window_size(1 << 16);
    let mut client = KvClient::new(narrow.connect().await.unwrap());
    let before = pages(&cluster);
    let mut stream = client.range_stream(all()).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    // The first chunk, what the client's windows let through, and one more.
    let settled = settled(&cluster).await;
    assert!((2..=8).contains(&(settled - before)), "{} pages", settled - before);
    let mut last = None;
    while let Some(message) = stream.message().await.unwrap() {
        last = message.range_response;
    }
    assert_eq!(last.unwrap().count, KEYS as i64);

    let before = pages(&cluster);
    let mut stream = client.range_stream(all()).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    drop(stream);
    assert!(self::settled(&cluster).await - before <= 8);
}

/// The pages once no more are asked for.
async fn settled(cluster: &TestCluster) -> u64 {
    let mut seen = pages(cluster);
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = pages(cluster);
        if now == seen {
            return now;
        }
        seen = now;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_on_at_another_leader() {
    let (cluster, _gateway, mut client) = filled(KEYS).await;
    let mut stream = client.range_stream(all()).await.unwrap().into_inner();
    let mut shown = 0;
    while let Some(message) = stream.message().await.unwrap() {
        if shown == 10 {
            cluster.elect(2);
        }
        shown += message.range_response.unwrap().kvs.len();
    }
    assert_eq!(shown, KEYS);
}
