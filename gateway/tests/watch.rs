//! Watches from a client over real sockets: gRPC to the gateway, links to test nodes.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::time::Duration;

use api::etcdserverpb as pb;
use api::etcdserverpb::kv_client::KvClient;
use api::etcdserverpb::watch_client::WatchClient;
use api::etcdserverpb::watch_create_request::FilterType;
use api::etcdserverpb::watch_request::RequestUnion;
use gateway::Gateway;
use support::{Faults, TestCluster, connect};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Streaming};

/// A client's watch stream.
struct Stream {
    requests: mpsc::UnboundedSender<pb::WatchRequest>,
    responses: Streaming<pb::WatchResponse>,
}

impl Stream {
    async fn open(gateway: &Gateway) -> Stream {
        Stream::open_with(gateway, |_| {}).await
    }

    async fn open_with(
        gateway: &Gateway,
        metadata: impl FnOnce(&mut tonic::metadata::MetadataMap),
    ) -> Stream {
        let (requests, receiver) = mpsc::unbounded_channel();
        let mut request = tonic::Request::new(UnboundedReceiverStream::new(receiver));
        metadata(request.metadata_mut());
        let mut client = WatchClient::new(connect(gateway).await).max_decoding_message_size(1 << 30);
        let responses = client.watch(request).await.unwrap().into_inner();
        Stream { requests, responses }
    }

    fn send(&self, request: RequestUnion) {
        self.requests.send(pb::WatchRequest { request_union: Some(request) }).unwrap();
    }

    fn create(&self, create: pb::WatchCreateRequest) {
        self.send(RequestUnion::CreateRequest(create));
    }

    fn progress(&self) {
        self.send(RequestUnion::ProgressRequest(pb::WatchProgressRequest {}));
    }

    async fn next(&mut self) -> pb::WatchResponse {
        self.result().await.expect("the stream goes on")
    }

    async fn result(&mut self) -> Result<pb::WatchResponse, tonic::Status> {
        let next = tokio::time::timeout(Duration::from_secs(20), self.responses.message()).await;
        next.expect("a response comes").map(|response| response.expect("the stream goes on"))
    }

    /// Creates a watch and waits for its confirmation. Returns the revision it tells.
    async fn watch(&mut self, create: pb::WatchCreateRequest) -> i64 {
        self.create(create);
        let created = self.next().await;
        assert!(created.created && !created.canceled, "{created:?}");
        assert!(created.events.is_empty());
        created.header.unwrap().revision
    }

    /// Reads until an event with this revision has come; returns all revisions of events.
    async fn until(&mut self, revision: i64) -> Vec<i64> {
        let mut revisions = Vec::new();
        while revisions.last() != Some(&revision) {
            revisions.extend(mod_revisions(&self.next().await));
        }
        revisions
    }
}

fn on(key: &str) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest { key: key.to_owned().into(), ..Default::default() }
}

fn prefix(key: &str) -> pb::WatchCreateRequest {
    let mut end = key.as_bytes().to_vec();
    *end.last_mut().unwrap() += 1;
    pb::WatchCreateRequest { range_end: end.into(), ..on(key) }
}

fn mod_revisions(response: &pb::WatchResponse) -> Vec<i64> {
    response.events.iter().map(|event| event.kv.as_ref().unwrap().mod_revision).collect()
}

struct Writer(KvClient<tonic::transport::Channel>);

impl Writer {
    async fn new(gateway: &Gateway) -> Writer {
        Writer(KvClient::new(connect(gateway).await))
    }

    async fn put(&mut self, key: &str, value: &str) -> i64 {
        let request = pb::PutRequest {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            ..Default::default()
        };
        self.0.put(request).await.unwrap().into_inner().header.unwrap().revision
    }

    async fn delete_prefix(&mut self, key: &str) -> i64 {
        let watch = prefix(key);
        let request =
            pb::DeleteRangeRequest { key: watch.key, range_end: watch.range_end, ..Default::default() };
        self.0.delete_range(request).await.unwrap().into_inner().header.unwrap().revision
    }

    async fn compact(&mut self, revision: i64) {
        self.0.compact(pb::CompactionRequest { revision, physical: false }).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn present_past_and_future() {
    let cluster = TestCluster::start(3).await;
    let gateway = cluster.gateway().await;
    let mut writer = Writer::new(&gateway).await;
    writer.put("a", "1").await;
    writer.put("a", "2").await;

    let mut now = Stream::open(&gateway).await;
    assert_eq!(now.watch(on("a")).await, 3);
    let mut past = Stream::open(&gateway).await;
    assert_eq!(past.watch(pb::WatchCreateRequest { start_revision: 2, ..on("a") }).await, 3);
    let history = past.next().await;
    assert_eq!((mod_revisions(&history), history.header.unwrap().revision), (vec![2, 3], 3));
    let mut future = Stream::open(&gateway).await;
    assert_eq!(future.watch(pb::WatchCreateRequest { start_revision: 6, ..on("a") }).await, 3);

    for number in 4..=7 {
        writer.put("a", &number.to_string()).await;
    }
    let first = now.next().await;
    assert_eq!((mod_revisions(&first), first.header.unwrap().revision), (vec![4], 4), "live: one by one");
    assert_eq!(now.until(7).await, [5, 6, 7]);
    assert_eq!(past.until(7).await, [4, 5, 6, 7]);
    assert_eq!(future.until(7).await, [6, 7]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_is_never_torn_and_filters_apply() {
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway().await;
    let mut writer = Writer::new(&gateway).await;
    let mut stream = Stream::open(&gateway).await;
    stream.watch(pb::WatchCreateRequest { prev_kv: true, ..prefix("k") }).await;
    let no_put = vec![FilterType::Noput.into()];
    let mut filtered = Stream::open(&gateway).await;
    filtered.watch(pb::WatchCreateRequest { filters: no_put, ..prefix("k") }).await;
    for key in ["k1", "k2", "k3"] {
        writer.put(key, key).await;
    }
    let deleted = writer.delete_prefix("k").await;
    for expected in 2..=4 {
        let put = stream.next().await;
        assert_eq!(mod_revisions(&put), [expected]);
        assert!(put.events[0].prev_kv.is_none(), "there was nothing before");
    }
    let delete = stream.next().await;
    assert_eq!(mod_revisions(&delete), [deleted; 3]);
    assert_eq!(delete.events[1].prev_kv.as_ref().unwrap().value, "k2");
    assert_eq!(delete.events[1].r#type(), api::mvccpb::event::EventType::Delete);
    let delete = filtered.next().await;
    assert_eq!(mod_revisions(&delete), [deleted; 3]);
    assert!(delete.events.iter().all(|event| event.prev_kv.is_none()));
}

/// It comes from the node in many parts, and leaves in as many: the budget of the gateway has no room for all of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_larger_than_any_credit_is_told_in_one_piece_or_in_fragments() {
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway_with(|options| options.door.memory_max = 4 << 20).await;
    let mut writer = Writer::new(&gateway).await;
    let value = "v".repeat(100 << 10);
    for number in 10..60 {
        writer.put(&format!("k{number}"), &value).await;
    }
    let wanted = pb::WatchCreateRequest { prev_kv: true, ..prefix("k") };
    let mut whole = Stream::open(&gateway).await;
    whole.watch(wanted.clone()).await;
    let mut cut = Stream::open(&gateway).await;
    cut.watch(pb::WatchCreateRequest { fragment: true, ..wanted.clone() }).await;
    let deleted = writer.delete_prefix("k").await;
    let mut past = Stream::open(&gateway).await;
    past.watch(pb::WatchCreateRequest { start_revision: deleted, ..wanted }).await;
    for stream in [&mut whole, &mut past] {
        let told = stream.next().await;
        assert_eq!(mod_revisions(&told), [deleted; 50]);
        assert!(told.events.iter().all(|event| event.prev_kv.as_ref().unwrap().value == value));
    }
    let mut fragments = vec![cut.next().await];
    while fragments.last().unwrap().fragment {
        fragments.push(cut.next().await);
    }
    assert!(fragments.len() > 2, "{}", fragments.len());
    assert_eq!(fragments.iter().flat_map(mod_revisions).collect::<Vec<_>>(), [deleted; 50]);
    // And the feeds go on.
    let next = writer.put("k10", "").await;
    assert_eq!(whole.until(next).await, [next]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_and_refusals_are_etcds() {
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway().await;
    let mut writer = Writer::new(&gateway).await;
    writer.put("a", "1").await;
    let mut stream = Stream::open(&gateway).await;
    // Sent at once: answers come in the order of the requests.
    stream.create(pb::WatchCreateRequest { watch_id: 1, ..on("a") });
    stream.create(on("b"));
    stream.create(on("c"));
    stream.create(pb::WatchCreateRequest { watch_id: 1, ..on("d") });
    stream.create(pb::WatchCreateRequest { range_end: "a".into(), ..on("b") });
    stream.create(on("e"));
    for expected in [1, 0, 2] {
        let created = stream.next().await;
        assert_eq!((created.watch_id, created.created, created.canceled), (expected, true, false));
    }
    for reason in ["mvcc: duplicate watch ID provided on the WatchStream", "mvcc: watcher range is empty"] {
        let refused = stream.next().await;
        assert_eq!((refused.watch_id, refused.created, refused.canceled), (-1, true, true));
        assert_eq!(refused.cancel_reason, reason);
        assert_eq!(refused.header.unwrap().revision, 2);
    }
    assert_eq!(stream.next().await.watch_id, 3);

    stream.send(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 99 }));
    stream.send(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 2 }));
    let canceled = stream.next().await;
    assert_eq!((canceled.watch_id, canceled.canceled, canceled.created), (2, true, false));
    assert_eq!((canceled.cancel_reason.as_str(), canceled.compact_revision), ("", 0));
    writer.put("c", "1").await;
    writer.put("b", "1").await;
    let event = stream.next().await;
    assert_eq!((event.watch_id, mod_revisions(&event)), (0, vec![4]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compacted_watches_say_so() {
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway().await;
    let mut writer = Writer::new(&gateway).await;
    for number in 0..5 {
        writer.put("a", &number.to_string()).await;
    }
    writer.compact(4).await;
    let mut stream = Stream::open(&gateway).await;
    stream.watch(pb::WatchCreateRequest { start_revision: 3, ..on("a") }).await;
    let canceled = stream.next().await;
    assert!(canceled.canceled && !canceled.created);
    assert_eq!((canceled.compact_revision, canceled.cancel_reason.as_str()), (4, ""));
    assert_eq!(canceled.header.unwrap().revision, 0);
    stream.watch(pb::WatchCreateRequest { start_revision: 4, ..on("a") }).await;
    assert_eq!(stream.until(6).await, [4, 5, 6]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_watchers_of_a_key_cost_one_upstream() {
    let cluster = TestCluster::start(3).await;
    let gateway = cluster.gateway().await;
    let mut writer = Writer::new(&gateway).await;
    writer.put("a", "0").await;
    let mut streams = Vec::new();
    for _ in 0..10 {
        let mut stream = Stream::open(&gateway).await;
        for _ in 0..100 {
            stream.create(pb::WatchCreateRequest { start_revision: 2, ..on("a") });
        }
        for _ in 0..100 {
            loop {
                let response = stream.next().await;
                if response.created {
                    break;
                }
                assert_eq!(mod_revisions(&response), [2]);
            }
        }
        streams.push(stream);
    }
    cluster.wait_until(|cluster| cluster.watches() == 1).await;
    let revision = writer.put("a", "1").await;
    for stream in &mut streams {
        let mut told = 0;
        while told < 100 {
            told += mod_revisions(&stream.next().await).iter().filter(|told| **told == revision).count();
        }
    }
    drop(streams);
    cluster.wait_until(|cluster| cluster.watches() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_tells_how_far_everything_is() {
    let cluster = TestCluster::start(3).await;
    let gateway = cluster.gateway().await;
    let mut writer = Writer::new(&gateway).await;
    let mut stream = Stream::open(&gateway).await;
    // Without a watcher there is no answer; the next one is to the second request.
    stream.progress();
    stream.watch(on("a")).await;
    stream.watch(on("b")).await;
    let revision = writer.put("other", "1").await;
    stream.progress();
    let progress = stream.next().await;
    assert_eq!((progress.watch_id, progress.events.len(), progress.created), (-1, 0, false));
    assert_eq!(progress.header.unwrap().revision, revision);

    // Never before an event it speaks of.
    for round in 0..50 {
        let revision = writer.put(if round % 2 == 0 { "a" } else { "b" }, "x").await;
        stream.progress();
        let event = stream.next().await;
        assert_eq!(mod_revisions(&event), [revision]);
        let progress = stream.next().await;
        assert_eq!(progress.watch_id, -1);
        assert!(progress.header.unwrap().revision >= revision);
    }

    // A watcher of the future cannot be spoken for.
    stream.watch(pb::WatchCreateRequest { start_revision: 1000, ..on("c") }).await;
    stream.progress();
    let revision = writer.put("a", "y").await;
    assert_eq!(mod_revisions(&stream.next().await), [revision]);
}

/// As a busy kube-apiserver: writers do not rest, and the stream is asked how far it is all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_neither_goes_back_nor_overtakes_under_load() {
    let cluster = TestCluster::start(3).await;
    let gateway = cluster.gateway().await;
    let mut stream = Stream::open(&gateway).await;
    for key in ["k0", "k1", "k2", "quiet"] {
        stream.watch(on(key)).await;
    }
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..16 {
        let mut client = Writer::new(&gateway).await;
        writers.spawn(async move {
            for number in 0..60 {
                client.put(&format!("k{}", (writer + number) % 3), "x").await;
            }
        });
    }
    // The store began at 1.
    let last = 1 + 16 * 60;
    let (mut told, mut promised, mut answers) = (0, 0, 0);
    stream.progress();
    while promised < last {
        let response = stream.next().await;
        let revision = response.header.as_ref().unwrap().revision;
        let events = mod_revisions(&response);
        assert!(events.iter().all(|event| *event > promised), "{events:?} after progress to {promised}");
        if response.watch_id == -1 {
            assert!(revision >= told, "progress to {revision} after {told} was told");
            promised = revision;
            answers += 1;
            stream.progress();
        }
        told = told.max(revision);
    }
    assert!(answers > 10, "{answers} answers");
    while writers.join_next().await.transpose().unwrap().is_some() {}
}

/// etcd's members need no leader to create a watch, only to have something to tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_is_created_without_a_leader() {
    let cluster = TestCluster::start(3).await;
    let gateway = cluster.gateway().await;
    let mut writer = Writer::new(&gateway).await;
    let first = writer.put("a", "1").await;
    cluster.elect(0);
    // The gateway learns it when it asks.
    let write = tokio::spawn(async move { writer.put("a", "2").await });
    let mut client = KvClient::new(connect(&gateway).await);
    loop {
        let range = pb::RangeRequest { key: "a".into(), serializable: true, ..Default::default() };
        let mut request = tonic::Request::new(range);
        request.metadata_mut().insert("hasleader", "true".parse().unwrap());
        if client.range(request).await.is_err() {
            break;
        }
    }
    let mut stream = Stream::open(&gateway).await;
    assert_eq!(stream.watch(on("a")).await, first);
    let past = pb::WatchCreateRequest { start_revision: first, ..on("a") };
    assert_eq!(stream.watch(past).await, first);
    cluster.elect(2);
    let second = write.await.unwrap();
    let mut told = Vec::new();
    while told.len() < 3 {
        let response = stream.next().await;
        told.extend(mod_revisions(&response).into_iter().map(|revision| (response.watch_id, revision)));
    }
    told.sort_unstable();
    assert_eq!(told, [(0, second), (1, first), (1, second)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quiet_watchers_are_told_of_progress_now_and_then() {
    let cluster = TestCluster::start(1).await;
    let gateway =
        cluster.gateway_with(|options| options.door.progress_interval = Duration::from_millis(100)).await;
    let mut writer = Writer::new(&gateway).await;
    let mut stream = Stream::open(&gateway).await;
    stream.watch(pb::WatchCreateRequest { progress_notify: true, ..on("a") }).await;
    let revision = writer.put("other", "1").await;
    let mut told = 0;
    while told < revision {
        let progress = stream.next().await;
        assert_eq!((progress.watch_id, progress.events.len()), (0, 0));
        told = progress.header.unwrap().revision;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_survive_nodes_without_loss_or_repetition() {
    let mut cluster = TestCluster::start(3).await;
    let gateway = cluster.gateway().await;
    let mut writer = Writer::new(&gateway).await;
    let mut stream = Stream::open(&gateway).await;
    stream.watch(prefix("k")).await;
    let mut expected = Vec::new();
    for round in 0..6_u32 {
        for number in 0..20 {
            expected.push(writer.put(&format!("k{number}"), &round.to_string()).await);
            if number == 10 {
                match round {
                    0..3 => cluster.cut_links(round + 1),
                    3 => cluster.stop(2),
                    4 => {
                        cluster.elect(2);
                        cluster.restart(2).await;
                    }
                    _ => {
                        cluster.stop(1);
                        cluster.stop(3);
                    }
                }
            }
        }
    }
    let last = *expected.last().unwrap();
    assert_eq!(stream.until(last).await, expected);
}

/// Only the leader can say from where a watch sees everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_watch_finds_the_leader_wherever_it_is() {
    let cluster = TestCluster::start(3).await;
    for leader in [2, 3, 1] {
        cluster.elect(leader);
        let gateway = cluster.gateway().await;
        let mut stream = Stream::open(&gateway).await;
        stream.watch(on("a")).await;
        let revision = Writer::new(&gateway).await.put("a", &leader.to_string()).await;
        assert_eq!(stream.until(revision).await, [revision]);
    }
}

/// Other gateways may well reach it, so nobody else takes the lead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_cannot_reach_the_leader_goes_by_a_relay() {
    let cluster = TestCluster::start(3).await;
    cluster.faults.lock().parted = vec![1];
    let gateway = cluster.gateway().await;
    let mut writer = Writer::new(&gateway).await;
    let mut stream = Stream::open(&gateway).await;
    stream.watch(on("a")).await;
    assert!(cluster.seen("direct 1") == 0 && cluster.seen("relay 1") > 0);
    let mut expected = vec![writer.put("a", "by a relay").await];

    // It is left for the direct way, and taken again.
    cluster.faults.lock().parted.clear();
    cluster.wait_until(|cluster| cluster.seen("relay 1 over") > 0).await;
    expected.push(writer.put("a", "direct").await);
    assert!(cluster.seen("direct 1") > 0);
    let relays = cluster.seen("relay 1");
    cluster.faults.lock().parted = vec![1];
    cluster.cut_links(1);
    // It may go out on the link that is about to be cut.
    expected.push(writer.put("a", "by a relay").await);
    cluster.wait_until(|cluster| cluster.seen("relay 1") > relays).await;
    assert_eq!(stream.until(expected[2]).await, expected);
}

/// Something between lets connections through, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_direct_way_that_carries_nothing_is_left_for_a_relay() {
    let cluster = TestCluster::start(3).await;
    cluster.faults.lock().muted = vec![1];
    let gateway = cluster.gateway_with(|options| options.request_timeout = Duration::from_secs(20)).await;
    let revision = Writer::new(&gateway).await.put("a", "by a relay").await;
    assert_eq!(revision, 2);
    assert!(cluster.seen("direct 1") > 0 && cluster.seen("relay 1") > 0);
}

/// As after SIGSTOP: the links are up, nothing comes, and nothing is owed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_leave_a_replica_that_is_silent() {
    watches_go_on_elsewhere(|faults| faults.silent = vec![1]).await;
}

/// The old leader answers, but knows of nothing that comes after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_leave_a_replica_that_is_cut_off_from_its_leader() {
    watches_go_on_elsewhere(|faults| faults.cut_off = vec![1]).await;
}

async fn watches_go_on_elsewhere(fail: impl FnOnce(&mut Faults)) {
    let cluster = TestCluster::start(3).await;
    let gateway = cluster.gateway().await;
    let mut stream = Stream::open(&gateway).await;
    let keys = ["a", "b", "c", "d", "e", "f"];
    for key in keys {
        stream.watch(on(key)).await;
    }
    fail(&mut cluster.faults.lock());
    cluster.elect(2);
    // Written through another gateway: nothing but its watches tells this one that the leader has moved.
    let other = cluster.gateway().await;
    let mut writer = Writer::new(&other).await;
    let mut expected = Vec::new();
    for key in keys {
        expected.push(writer.put(key, "1").await);
    }
    let mut told = Vec::new();
    while told.len() < expected.len() {
        told.extend(mod_revisions(&stream.next().await));
    }
    told.sort_unstable();
    assert_eq!(told, expected);
}

/// Nothing was missed, so nothing is wrong, although the last event lies before what is compacted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_watch_outlives_compaction_and_its_replica() {
    let mut cluster = TestCluster::start(3).await;
    let gateway = cluster.gateway().await;
    let mut writer = Writer::new(&gateway).await;
    let mut stream = Stream::open(&gateway).await;
    stream.watch(on("quiet")).await;
    let first = writer.put("quiet", "1").await;
    assert_eq!(stream.until(first).await, [first]);
    let mut last = 0;
    for number in 0..10 {
        last = writer.put("busy", &number.to_string()).await;
    }
    writer.compact(last).await;
    assert_eq!(cluster.seen("watch_sync"), 0, "nobody asks how far a quiet watch is");
    cluster.elect(2);
    cluster.stop(1);
    let revision = writer.put("quiet", "2").await;
    assert_eq!(stream.until(revision).await, [revision]);
}

/// As kube-apiserver does it: watches come and go on a stream that asks for progress all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_watch_holds_up_no_progress() {
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway().await;
    let mut stream = Stream::open(&gateway).await;
    stream.watch(on("stays")).await;
    stream.watch(on("goes")).await;
    // The watch goes before the node has said how far it is.
    cluster.faults.lock().silent = vec![1];
    stream.progress();
    stream.send(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 1 }));
    let cancelled = stream.next().await;
    assert!(cancelled.canceled, "{cancelled:?}");
    cluster.faults.lock().silent.clear();
    let progress = stream.next().await;
    assert_eq!((progress.watch_id, progress.events.len(), progress.canceled), (-1, 0, false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_responses_are_fragmented_if_the_client_allows() {
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway().await;
    let mut writer = Writer::new(&gateway).await;
    let value = "x".repeat(1 << 20);
    for number in 0..4 {
        writer.put(&format!("k{number}"), &value).await;
    }
    let mut whole = Stream::open(&gateway).await;
    whole.watch(pb::WatchCreateRequest { prev_kv: true, ..prefix("k") }).await;
    let mut parts = Stream::open(&gateway).await;
    parts.watch(pb::WatchCreateRequest { prev_kv: true, fragment: true, ..prefix("k") }).await;
    let revision = writer.delete_prefix("k").await;
    let response = whole.next().await;
    assert_eq!((response.events.len(), response.fragment), (4, false));
    let mut events = 0;
    loop {
        let part = parts.next().await;
        assert_eq!(part.header.unwrap().revision, revision);
        events += part.events.len();
        if !part.fragment {
            break;
        }
        assert!(!part.events.is_empty() && part.events.len() < 4);
    }
    assert_eq!(events, 4);
}

/// A client that does not read keeps nothing in the gateway but its position, and delays nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_client_delays_nobody_and_misses_nothing() {
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway().await;
    let mut writer = Writer::new(&gateway).await;
    let mut slow = Stream::open(&gateway).await;
    slow.watch(on("k")).await;
    let mut quick = Stream::open(&gateway).await;
    quick.watch(on("k")).await;
    let value = "x".repeat(100 << 10);
    let mut expected = Vec::new();
    // 10 MiB: more than the window of the feed and the buffers of the connection together.
    for _ in 0..100 {
        let revision = writer.put("k", &value).await;
        expected.push(revision);
        assert_eq!(quick.until(revision).await, [revision]);
    }
    assert_eq!(slow.until(*expected.last().unwrap()).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_ask_for_a_leader_end_without_one() {
    let cluster = TestCluster::start(3).await;
    let gateway =
        cluster.gateway_with(|options| options.door.leaderless_max = Duration::from_millis(200)).await;
    let mut patient = Stream::open(&gateway).await;
    patient.watch(on("a")).await;
    let mut impatient = Stream::open_with(&gateway, |metadata| {
        metadata.insert("hasleader", "true".parse().unwrap());
    })
    .await;
    impatient.watch(on("a")).await;
    cluster.elect(0);
    // The gateway learns it when it asks.
    let mut writer = Writer::new(&gateway).await;
    let write = tokio::spawn(async move { writer.put("a", "1").await });
    let status = impatient.result().await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: no leader"));
    cluster.elect(1);
    let revision = write.await.unwrap();
    assert_eq!(patient.until(revision).await, [revision]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_has_said_all_goes_on_hearing() {
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway().await;
    let mut writer = Writer::new(&gateway).await;
    let mut stream = Stream::open(&gateway).await;
    stream.watch(on("a")).await;
    let Stream { requests, mut responses } = stream;
    drop(requests);
    let revision = writer.put("a", "1").await;
    let response = responses.message().await.unwrap().unwrap();
    assert_eq!(mod_revisions(&response), [revision]);
}

/// Beyond some number of unanswered requests the stream reads no more of them for a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_requests_than_may_wait_are_all_answered() {
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway().await;
    let mut stream = Stream::open(&gateway).await;
    for _ in 0..3000 {
        stream.create(on("a"));
    }
    for id in 0..3000 {
        let created = stream.next().await;
        assert_eq!((created.watch_id, created.created), (id, true));
    }
    stream.send(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 7 }));
    let canceled = stream.next().await;
    assert_eq!((canceled.watch_id, canceled.canceled), (7, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_ends_streams_so_that_clients_resume_elsewhere() {
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway_with(|options| options.drain = Duration::from_secs(2)).await;
    let mut stream = Stream::open(&gateway).await;
    stream.watch(on("a")).await;
    let shutdown = tokio::spawn(gateway.shutdown());
    let status = stream.result().await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: server stopped"));
    drop(stream);
    shutdown.await.unwrap();
}
