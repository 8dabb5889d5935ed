//! KV from a client over real sockets: gRPC to the gateway, links to test nodes.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::time::Duration;

use api::etcdserverpb as pb;
use api::etcdserverpb::kv_client::KvClient;
use api::etcdserverpb::lease_client::LeaseClient;
use api::etcdserverpb::maintenance_client::MaintenanceClient;
use api::etcdserverpb::{compare, request_op, response_op};
use gateway::Gateway;
use prost::Message;
use support::{TestCluster, connect};
use tonic::Code;
use tonic::transport::Channel;

fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() }
}

fn get(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.to_owned().into(), ..Default::default() }
}

async fn value(client: &mut KvClient<Channel>, key: &str) -> Option<String> {
    let answer = client.range(get(key)).await.unwrap().into_inner();
    answer.kvs.first().map(|kv| String::from_utf8(kv.value.to_vec()).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn put_range_txn_delete() {
    let cluster = TestCluster::start(3).await;
    let gateway = cluster.gateway().await;
    let mut client = KvClient::new(connect(&gateway).await);

    let answer = client.put(put("a", "1")).await.unwrap().into_inner();
    let header = answer.header.unwrap();
    assert_eq!((header.revision, header.cluster_id), (2, support::CLUSTER));
    assert_eq!(header.member_id, gateway::door::member_id("", "test"));
    assert_eq!(header.raft_term, 2);
    let answer = client.put(pb::PutRequest { prev_kv: true, ..put("a", "2") }).await.unwrap().into_inner();
    assert_eq!(answer.prev_kv.unwrap().value, "1");

    let answer = client.range(get("a")).await.unwrap().into_inner();
    assert_eq!((answer.count, answer.more, answer.header.unwrap().revision), (1, false, 3));
    let kv = &answer.kvs[0];
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (2, 3, 2));
    assert_eq!(kv.value, "2");
    let answer = client.range(pb::RangeRequest { serializable: true, ..get("a") }).await.unwrap();
    assert_eq!(answer.into_inner().count, 1);

    let txn = pb::TxnRequest {
        compare: vec![pb::Compare {
            key: "a".into(),
            target: compare::CompareTarget::Mod.into(),
            target_union: Some(compare::TargetUnion::ModRevision(3)),
            ..Default::default()
        }],
        success: vec![
            pb::RequestOp { request: Some(request_op::Request::RequestPut(put("b", "3"))) },
            pb::RequestOp { request: Some(request_op::Request::RequestRange(get("b"))) },
        ],
        failure: vec![],
    };
    let answer = client.txn(txn).await.unwrap().into_inner();
    assert!(answer.succeeded);
    assert_eq!(answer.header.unwrap().revision, 4);
    let Some(response_op::Response::ResponseRange(inner)) = &answer.responses[1].response else {
        panic!("a range answers a range")
    };
    assert_eq!(inner.kvs[0].value, "3");
    assert_eq!(inner.header.as_ref().unwrap().revision, 4);
    assert_eq!(inner.header.as_ref().unwrap().cluster_id, 0);

    let everything = pb::DeleteRangeRequest { key: "\0".into(), range_end: "\0".into(), prev_kv: true };
    let answer = client.delete_range(everything).await.unwrap().into_inner();
    assert_eq!((answer.deleted, answer.prev_kvs.len()), (2, 2));
    assert_eq!(value(&mut client, "a").await, None);

    let answer = client.compact(pb::CompactionRequest { revision: 5, physical: true }).await.unwrap();
    assert_eq!(answer.into_inner().header.unwrap().revision, 5);
    let old = client.range(pb::RangeRequest { revision: 4, ..get("a") }).await.unwrap_err();
    assert_eq!(old.code(), Code::OutOfRange);
    assert_eq!(old.message(), "etcdserver: mvcc: required revision has been compacted");
    gateway.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_checked_in_etcds_words() {
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway().await;
    let mut client = KvClient::new(connect(&gateway).await);

    let check = |status: tonic::Status, code: Code, text: &str| {
        assert_eq!((status.code(), status.message()), (code, text));
    };
    let status = client.put(put("", "1")).await.unwrap_err();
    check(status, Code::InvalidArgument, "etcdserver: key is not provided");
    let status = client.put(pb::PutRequest { ignore_value: true, ..put("k", "") }).await.unwrap_err();
    check(status, Code::InvalidArgument, "etcdserver: key not found");
    let status = client.put(pb::PutRequest { lease: 77, ..put("k", "") }).await.unwrap_err();
    check(status, Code::NotFound, "etcdserver: requested lease not found");
    client.range(pb::RangeRequest { sort_order: 9, ..get("k") }).await.unwrap();
    let status = client.range(pb::RangeRequest { sort_target: 9, ..get("k") }).await.unwrap_err();
    check(status, Code::InvalidArgument, "etcdserver: invalid sort option");
    let status = client.range(pb::RangeRequest { revision: 9, ..get("k") }).await.unwrap_err();
    check(status, Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision");

    let op = |key: &str| pb::RequestOp { request: Some(request_op::Request::RequestPut(put(key, ""))) };
    let many = (0..129).map(|number| op(&number.to_string())).collect();
    let status = client.txn(pb::TxnRequest { success: many, ..Default::default() }).await.unwrap_err();
    check(status, Code::InvalidArgument, "etcdserver: too many operations in txn request");
    let twice = pb::TxnRequest { success: vec![op("k"), op("k")], ..Default::default() };
    let status = client.txn(twice).await.unwrap_err();
    check(status, Code::InvalidArgument, "etcdserver: duplicate key given in txn request");

    let limit = 3 << 19;
    let status = client.put(put("k", &"x".repeat(limit + 100))).await.unwrap_err();
    check(status, Code::InvalidArgument, "etcdserver: request is too large");
    client.put(put("k", &"x".repeat(limit - 50))).await.unwrap();
    let status = client.put(put("k", &"x".repeat(limit + (512 << 10)))).await.unwrap_err();
    check(status, Code::ResourceExhausted, "grpc: received message larger than max (2097160 vs. 2097152)");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_over_one_link() {
    let cluster = TestCluster::start(3).await;
    let gateway = cluster.gateway().await;
    let channel = connect(&gateway).await;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..64 {
        let mut client = KvClient::new(channel.clone());
        writers.spawn(async move {
            for number in 0..20 {
                let key = format!("{writer}/{number}");
                client.put(put(&key, &key)).await.unwrap();
                assert_eq!(value(&mut client, &key).await, Some(key));
            }
        });
    }
    writers.join_all().await;
    assert_eq!(cluster.revision(), 1 + 64 * 20);
}

/// More than a session's window at once: the rest waits its turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_writes_than_the_session_takes() {
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway().await;
    cluster.faults.lock().silent = vec![1];
    let channel = connect(&gateway).await;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..keyspace::SESSION_WINDOW + 200 {
        let mut client = KvClient::new(channel.clone());
        writers.spawn(async move { client.put(put(&writer.to_string(), "")).await.map(|_| ()) });
    }
    // The node hears none of them; after its links are cut, all are sent again.
    cluster.wait_until(|cluster| cluster.seen("write") == 0).await;
    cluster.faults.lock().silent.clear();
    cluster.cut_links(1);
    for result in writers.join_all().await {
        result.unwrap();
    }
    assert_eq!(cluster.revision(), 1 + keyspace::SESSION_WINDOW as i64 + 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_outcome_is_unknown_is_applied_once() {
    let cluster = TestCluster::start(3).await;
    let gateway = cluster.gateway().await;
    let mut client = KvClient::new(connect(&gateway).await);
    client.put(put("k", "0")).await.unwrap();

    cluster.faults.lock().outcome_unknown = 1;
    let answer = client.put(put("k", "1")).await.unwrap().into_inner();
    assert_eq!(answer.header.unwrap().revision, 3);
    assert_eq!(cluster.revision(), 3);

    cluster.faults.lock().cut_after_apply = 1;
    let answer = client.put(put("k", "2")).await.unwrap().into_inner();
    assert_eq!(answer.header.unwrap().revision, 4);
    assert_eq!(cluster.revision(), 4);
    assert_eq!(cluster.seen("write"), 5, "each of the two was sent twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_come_twice_change_nothing() {
    let cluster = TestCluster::start(1).await;
    cluster.faults.lock().duplicate = true;
    let gateway = cluster.gateway().await;
    let mut client = KvClient::new(connect(&gateway).await);
    for number in 0..50 {
        let text = number.to_string();
        client.put(put("k", &text)).await.unwrap();
        assert_eq!(value(&mut client, "k").await, Some(text));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_moves() {
    let mut cluster = TestCluster::start(3).await;
    let gateway = cluster.gateway().await;
    let mut client = KvClient::new(connect(&gateway).await);
    client.put(put("k", "0")).await.unwrap();

    cluster.elect(2);
    client.put(put("k", "1")).await.unwrap();
    assert_eq!(value(&mut client, "k").await.unwrap(), "1");

    cluster.faults.lock().no_hints = true;
    cluster.elect(3);
    let answer = client.put(put("k", "2")).await.unwrap().into_inner();
    assert_eq!(answer.header.unwrap().raft_term, 4);

    cluster.stop(3);
    cluster.elect(1);
    client.put(put("k", "3")).await.unwrap();
    assert_eq!(value(&mut client, "k").await.unwrap(), "3");

    // Nobody leads for a while: the request waits.
    cluster.elect(0);
    let mut waiting = client.clone();
    let waiting = tokio::spawn(async move { waiting.put(put("k", "4")).await });
    cluster.wait_until(|cluster| cluster.seen("status") > 20).await;
    cluster.elect(2);
    waiting.await.unwrap().unwrap();
    assert_eq!(cluster.revision(), 6, "each was applied once");

    cluster.restart(3).await;
    cluster.elect(3);
    client.put(put("k", "5")).await.unwrap();
    assert_eq!(cluster.revision(), 7);
}

/// As after SIGSTOP: the links are up, nothing comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_leader_is_replaced() {
    let cluster = TestCluster::start(3).await;
    let gateway = cluster.gateway().await;
    let mut client = KvClient::new(connect(&gateway).await);
    client.put(put("k", "0")).await.unwrap();
    cluster.faults.lock().silent = vec![1];
    let mut waiting = client.clone();
    let waiting = tokio::spawn(async move { waiting.put(put("k", "1")).await });
    cluster.wait_until(|cluster| cluster.seen("status") > 0).await;
    cluster.elect(2);
    waiting.await.unwrap().unwrap();
    assert_eq!(cluster.revision(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_session_is_opened_again() {
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway().await;
    let mut client = KvClient::new(connect(&gateway).await);
    client.put(put("k", "0")).await.unwrap();
    cluster.close_sessions();
    client.put(put("k", "1")).await.unwrap();
    assert_eq!(cluster.revision(), 3);

    // With an outcome that is open and a session that is gone nobody can tell: etcd's own error, and no second try.
    cluster.faults.lock().outcome_unknown = 1;
    let before = cluster.revision();
    let mut lost = client.clone();
    cluster.elect(0);
    let lost = tokio::spawn(async move { lost.put(put("k", "2")).await });
    cluster.wait_until(|cluster| cluster.seen("status") > 3).await;
    cluster.elect(1);
    cluster.wait_until(|cluster| cluster.revision() > before).await;
    cluster.close_sessions();
    match lost.await.unwrap() {
        // The second attempt came before the sessions were closed.
        Ok(answer) => assert_eq!(answer.into_inner().header.unwrap().revision, before + 1),
        Err(status) => {
            assert_eq!(status.code(), Code::Unavailable);
            assert!(status.message().starts_with("etcdserver: request timed out"), "{status}");
        }
    }
    assert_eq!(cluster.revision(), before + 1, "applied once");
}

/// Whatever such a node acknowledged would be on its disk alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_configuration_names_only_itself_is_not_used() {
    let mut cluster = TestCluster::start(3).await;
    cluster.stop(3);
    let gateway = cluster.gateway_with(|options| options.request_timeout = Duration::from_millis(500)).await;
    let mut client = KvClient::new(connect(&gateway).await);
    client.put(put("k", "0")).await.unwrap();
    cluster.faults.lock().alone = Some(3);
    cluster.restart(3).await;
    cluster.elect(3);
    let revision = cluster.revision();
    for _ in 0..4 {
        client.put(put("k", "1")).await.unwrap_err();
    }
    assert_eq!(cluster.revision(), revision);
    cluster.elect(2);
    client.put(put("k", "2")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_leader_requests_time_out_as_etcds_do() {
    let cluster = TestCluster::start(3).await;
    let gateway =
        cluster.gateway_with(|options| options.request_timeout = std::time::Duration::from_millis(300)).await;
    let mut client = KvClient::new(connect(&gateway).await);
    // From here on the gateway has a session, so that its next write is sent, and refused.
    client.put(put("k", "0")).await.unwrap();
    cluster.elect(0);
    let status = client.put(put("k", "1")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.message(), "etcdserver: request timed out, possibly due to previous leader failure");
    let answer = client.range(pb::RangeRequest { serializable: true, ..get("k") }).await.unwrap();
    assert_eq!(answer.into_inner().count, 1);
    // What a member of etcd knows by itself.
    let mut leases = LeaseClient::new(connect(&gateway).await);
    assert_eq!(leases.lease_leases(pb::LeaseLeasesRequest {}).await.unwrap().into_inner().leases.len(), 0);
    let mut maintenance = MaintenanceClient::new(connect(&gateway).await);
    let hash = maintenance.hash_kv(pb::HashKvRequest { revision: 0 }).await.unwrap().into_inner();
    assert_eq!(hash.header.unwrap().revision, 2);

    let mut impatient = tonic::Request::new(get("k"));
    impatient.metadata_mut().insert("hasleader", "true".parse().unwrap());
    let status = client.range(impatient).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: no leader"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overloaded_node_is_asked_again_and_told_of_in_etcds_words_if_it_stays_so() {
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway_with(|options| options.request_timeout = Duration::from_secs(1)).await;
    let mut client = KvClient::new(connect(&gateway).await);
    cluster.faults.lock().overloaded = 3;
    client.put(put("k", "0")).await.unwrap();
    cluster.faults.lock().overloaded = u32::MAX;
    let mut status = client.put(put("k", "0")).await.unwrap_err();
    // Time may be up while it is asked: then nobody knows what became of it.
    while status.message() == "etcdserver: request timed out" {
        status = client.put(put("k", "0")).await.unwrap_err();
    }
    assert_eq!((status.code(), status.message()), (Code::Unknown, "etcdserver: too many requests"));
    cluster.faults.lock().overloaded = 0;
    client.put(put("k", "0")).await.unwrap();
}

/// Clients that hang up leave no hole: the low mark goes on, and later writes have room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_go_away_leave_nothing_behind() {
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway().await;
    let mut client = KvClient::new(connect(&gateway).await);
    client.put(put("k", "0")).await.unwrap();
    cluster.faults.lock().silent = vec![1];
    for round in 0..3 {
        let mut gone = tokio::task::JoinSet::new();
        for number in 0..500 {
            let mut client = client.clone();
            gone.spawn(async move { client.put(put(&format!("{round}/{number}"), "")).await });
        }
        tokio::task::yield_now().await;
        gone.shutdown().await;
    }
    cluster.faults.lock().silent.clear();
    cluster.cut_links(1);
    for number in 0..20 {
        client.put(put("k", &number.to_string())).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_supported_says_so() {
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway().await;
    let channel = connect(&gateway).await;
    let mut auth = pb::auth_client::AuthClient::new(channel.clone());
    let status = auth.auth_enable(pb::AuthEnableRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    let status = auth.authenticate(pb::AuthenticateRequest::default()).await.unwrap_err();
    assert_eq!(status.message(), "etcdserver: authentication is not enabled");
    let mut cluster_client = pb::cluster_client::ClusterClient::new(channel);
    let status = cluster_client.member_add(pb::MemberAddRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_a_leader_waits_for_the_first_one_and_for_a_new_one() {
    let cluster = TestCluster::start(3).await;
    cluster.elect(0);
    let mut options = cluster.gateway_options();
    options.door.leaderless_max = Duration::from_secs(20);
    let gateway = Gateway::start(options).await.unwrap();
    let client = KvClient::new(connect(&gateway).await);
    let ask = || {
        let mut client = client.clone();
        let mut request = tonic::Request::new(get("k"));
        request.metadata_mut().insert("hasleader", "true".parse().unwrap());
        tokio::spawn(async move { client.range(request).await.map(|answer| answer.into_inner().count) })
    };
    let waiting = ask();
    assert!(!gateway.ready(Duration::from_millis(300)).await, "there is none yet");
    assert!(!waiting.is_finished());
    cluster.elect(1);
    assert_eq!(waiting.await.unwrap().unwrap(), 0);
    cluster.elect(0);
    let waiting = ask();
    let mut client = client.clone();
    let write = tokio::spawn(async move { client.put(put("k", "1")).await });
    assert!(!waiting.is_finished());
    cluster.elect(2);
    write.await.unwrap().unwrap();
    waiting.await.unwrap().unwrap();
}

/// A put in the innermost of so many transactions.
fn nested(depth: usize, key: &str) -> pb::TxnRequest {
    let mut op = request_op::Request::RequestPut(put(key, "deep"));
    for level in 1..=depth {
        let txn = pb::TxnRequest { success: vec![pb::RequestOp { request: Some(op) }], ..Default::default() };
        if level == depth {
            return txn;
        }
        op = request_op::Request::RequestTxn(txn.encode_to_vec().into());
    }
    unreachable!("there is an outermost one")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_may_be_nested_as_deep_as_in_etcd() {
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway().await;
    let mut client = KvClient::new(connect(&gateway).await);
    assert!(client.txn(nested(45, "45")).await.unwrap().into_inner().succeeded);
    for depth in [50, 100, 127, 128] {
        let key = depth.to_string();
        // This client cannot read an answer that is nested so deep; others can.
        let _ = client.txn(nested(depth, &key)).await;
        assert_eq!(value(&mut client, &key).await.as_deref(), Some("deep"), "{depth} deep");
    }
    for depth in [129, 1000, 5000] {
        let refused = client.txn(nested(depth, "never")).await.unwrap_err();
        let expected = (Code::InvalidArgument, "etcdserver: too many operations in txn request");
        assert_eq!((refused.code(), refused.message()), expected, "{depth} deep");
    }
    let request = Some(request_op::Request::RequestTxn("\u{7f}no message".into()));
    let broken = pb::TxnRequest { success: vec![pb::RequestOp { request }], ..Default::default() };
    let refused = client.txn(broken).await.unwrap_err();
    assert!(refused.code() == Code::Internal && refused.message().len() < 300, "{refused:?}");
}
