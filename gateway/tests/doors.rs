//! Leases, maintenance, members, health and HTTP from a client over real sockets.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use api::etcdserverpb as pb;
use api::etcdserverpb::cluster_client::ClusterClient;
use api::etcdserverpb::kv_client::KvClient;
use api::etcdserverpb::lease_client::LeaseClient;
use api::etcdserverpb::maintenance_client::MaintenanceClient;
use api::etcdserverpb::watch_client::WatchClient;
use api::grpc::health::v1 as health;
use gateway::Gateway;
use gateway::door::{AccessLog, Member};
use gateway::status::{Reach, Status};
use parking_lot::Mutex;
use support::{TestCluster, connect, http};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_stream::StreamExt as _;
use tonic::Code;
use tonic::codec::CompressionEncoding;

async fn get(gateway: &Gateway, path: &str) -> (u16, String) {
    http(gateway.address(), "GET", path).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases() {
    let cluster = TestCluster::start(3).await;
    let gateway = cluster.gateway().await;
    let channel = connect(&gateway).await;
    let mut client = LeaseClient::new(channel.clone());
    let grant = |id, ttl| pb::LeaseGrantRequest { id, ttl };

    let granted = client.lease_grant(grant(0, 60)).await.unwrap().into_inner();
    assert!(granted.id > 0);
    assert_eq!((granted.ttl, granted.header.unwrap().revision), (60, 1), "no revision is spent");
    let short = client.lease_grant(grant(7, -5)).await.unwrap().into_inner();
    assert_eq!((short.id, short.ttl), (7, 2), "raised to the least");
    let status = client.lease_grant(grant(7, 60)).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::FailedPrecondition, "etcdserver: lease already exists")
    );
    let status = client.lease_grant(grant(8, 9_000_000_001)).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::OutOfRange, "etcdserver: too large lease TTL"));

    let mut kv = KvClient::new(channel);
    let put = pb::PutRequest { key: "k".into(), value: "v".into(), lease: 7, ..Default::default() };
    kv.put(put).await.unwrap();
    let told = client.lease_time_to_live(pb::LeaseTimeToLiveRequest { id: 7, keys: true }).await.unwrap();
    let told = told.into_inner();
    assert_eq!((told.granted_ttl, told.keys), (2, vec!["k".into()]));
    let told = client.lease_time_to_live(pb::LeaseTimeToLiveRequest { id: 99, keys: false }).await.unwrap();
    assert_eq!((told.get_ref().ttl, told.get_ref().granted_ttl), (-1, 0));
    let leases = client.lease_leases(pb::LeaseLeasesRequest {}).await.unwrap().into_inner().leases;
    assert_eq!(leases.len(), 2);

    // One answer per request, in their order, for leases that exist and others.
    let ids = [7, 99, granted.id, 7, 7, 98];
    let requests = tokio_stream::iter(ids.map(|id| pb::LeaseKeepAliveRequest { id }));
    let answers = client.lease_keep_alive(requests).await.unwrap().into_inner();
    let answers: Vec<_> = answers.map(|answer| answer.unwrap()).collect().await;
    let told: Vec<_> = answers.iter().map(|answer| (answer.id, answer.ttl)).collect();
    assert_eq!(told, [(7, 2), (99, 0), (granted.id, 60), (7, 2), (7, 2), (98, 0)]);
    assert_eq!(answers[0].header.as_ref().unwrap().revision, 2);

    client.lease_revoke(pb::LeaseRevokeRequest { id: 7 }).await.unwrap();
    let status = client.lease_revoke(pb::LeaseRevokeRequest { id: 7 }).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "etcdserver: requested lease not found"));
    let gone = kv.range(pb::RangeRequest { key: "k".into(), ..Default::default() }).await.unwrap();
    assert_eq!(gone.into_inner().count, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewals_of_many_clients_share_requests() {
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway().await;
    let channel = connect(&gateway).await;
    let mut client = LeaseClient::new(channel.clone());
    for id in 1..=50 {
        client.lease_grant(pb::LeaseGrantRequest { id, ttl: 60 }).await.unwrap();
    }
    let mut keepers = tokio::task::JoinSet::new();
    for id in 1..=50 {
        let mut client = LeaseClient::new(channel.clone());
        keepers.spawn(async move {
            let requests = tokio_stream::iter((0..20).map(move |_| pb::LeaseKeepAliveRequest { id }));
            let answers = client.lease_keep_alive(requests).await.unwrap().into_inner();
            let answers: Vec<_> = answers.map(|answer| answer.unwrap()).collect().await;
            assert_eq!(answers.len(), 20);
            assert!(answers.iter().all(|answer| (answer.id, answer.ttl) == (id, 60)));
        });
    }
    keepers.join_all().await;
    assert!(cluster.seen("keep_alive") < 1000, "{} requests for 1000 renewals", cluster.seen("keep_alive"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_the_gateways_of_the_region() {
    let cluster = TestCluster::start(1).await;
    let member = |name: &str, id| Member {
        id,
        name: name.to_owned(),
        client_urls: vec![format!("http://{name}:2379")],
        peer_urls: vec![format!("http://{name}:2380")],
    };
    let members = vec![member("west", 9), member("test", 5)];
    let gateway = cluster.gateway_with(|options| options.members = members).await;
    let channel = connect(&gateway).await;
    let mut client = ClusterClient::new(channel.clone());
    let answer = client.member_list(pb::MemberListRequest { linearizable: true }).await.unwrap();
    let answer = answer.into_inner();
    let header = answer.header.unwrap();
    assert_eq!((header.revision, header.member_id, header.cluster_id), (0, 5, support::CLUSTER));
    assert_eq!(answer.members.len(), 2);
    assert_eq!(answer.members[0].client_urls, ["http://west:2379"]);
    let mut client = MaintenanceClient::new(channel);
    let status = client.status(pb::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.leader, 5, "one of the members, the same at every gateway");

    let alone = cluster.gateway().await;
    let mut client = ClusterClient::new(connect(&alone).await);
    let answer = client.member_list(pb::MemberListRequest { linearizable: true }).await.unwrap();
    assert_eq!(answer.into_inner().members[0].client_urls, [format!("http://{}", alone.address())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_alarms_and_hash() {
    let cluster = TestCluster::start(3).await;
    let gateway = cluster.gateway().await;
    let channel = connect(&gateway).await;
    let mut kv = KvClient::new(channel.clone());
    let put = pb::PutRequest { key: "k".into(), value: "v".into(), ..Default::default() };
    kv.put(put.clone()).await.unwrap();
    let mut client = MaintenanceClient::new(channel);
    let status = client.status(pb::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.header.unwrap().revision, status.raft_term), (2, 2));
    assert_eq!(status.version, gateway::versions::ADVERTISED_VERSION);
    assert!(status.leader != 0 && status.db_size > 0 && status.raft_index > 0);
    assert!(status.errors.is_empty() && status.downgrade_info.is_some());
    let hash = client.hash_kv(pb::HashKvRequest { revision: 0 }).await.unwrap().into_inner();
    assert_eq!((hash.hash_revision, hash.compact_revision), (2, -1));
    let status = client.hash_kv(pb::HashKvRequest { revision: 9 }).await.unwrap_err();
    assert_eq!(status.message(), "etcdserver: mvcc: required revision is a future revision");

    let alarm =
        |action, member_id, alarm: pb::AlarmType| pb::AlarmRequest { action, member_id, alarm: alarm.into() };
    let none = client.alarm(alarm(0, 0, pb::AlarmType::None)).await.unwrap().into_inner();
    assert!(none.alarms.is_empty());
    client.alarm(alarm(1, 3, pb::AlarmType::Nospace)).await.unwrap();
    let raised = client.alarm(alarm(0, 0, pb::AlarmType::None)).await.unwrap().into_inner();
    assert_eq!((raised.alarms[0].member_id, raised.alarms[0].alarm()), (3, pb::AlarmType::Nospace));
    let refused = kv.put(put.clone()).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded")
    );
    let status = client.status(pb::StatusRequest {}).await.unwrap().into_inner();
    assert!(status.errors[0].contains("alarm:NOSPACE"), "{:?}", status.errors);
    let (code, body) = get(&gateway, "/health").await;
    assert_eq!((code, body.as_str()), (503, "{\"health\":\"false\",\"reason\":\"ALARM NOSPACE\"}\n"));
    assert_eq!(get(&gateway, "/health?exclude=NOSPACE").await.0, 200);
    client.alarm(alarm(2, 3, pb::AlarmType::Nospace)).await.unwrap();
    kv.put(put).await.unwrap();

    // Member 0 is a member like others, and not the one that is shown as the leader.
    for member in [0, status.leader] {
        client.alarm(alarm(1, member, pb::AlarmType::Corrupt)).await.unwrap();
    }
    let raised = client.alarm(alarm(0, 0, pb::AlarmType::None)).await.unwrap().into_inner();
    let mut members: Vec<u64> = raised.alarms.iter().map(|alarm| alarm.member_id).collect();
    members.sort_unstable();
    assert_eq!(members, [0, status.leader]);
    let gone = client.alarm(alarm(2, 0, pb::AlarmType::Corrupt)).await.unwrap().into_inner();
    assert_eq!((gone.alarms.len(), gone.alarms[0].member_id), (1, 0));
    let raised = client.alarm(alarm(0, 0, pb::AlarmType::None)).await.unwrap().into_inner();
    assert_eq!((raised.alarms.len(), raised.alarms[0].member_id), (1, status.leader));
    let refused = kv.put(pb::PutRequest { key: "k".into(), ..Default::default() }).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::DataLoss, "etcdserver: corrupt cluster"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_health() {
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway_with(|options| options.drain = Duration::from_secs(2)).await;
    let mut client = health::health_client::HealthClient::new(connect(&gateway).await);
    let check = |service: &str| health::HealthCheckRequest { service: service.to_owned() };
    let serving = health::health_check_response::ServingStatus::Serving;
    assert_eq!(client.check(check("")).await.unwrap().into_inner().status(), serving);
    assert_eq!(client.check(check("other")).await.unwrap_err().code(), Code::NotFound);
    let list = client.list(health::HealthListRequest {}).await.unwrap().into_inner();
    assert_eq!(list.statuses[""].status(), serving);
    let mut watch = client.watch(check("")).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), serving);
    let shutdown = tokio::spawn(gateway.shutdown());
    let not_serving = health::health_check_response::ServingStatus::NotServing;
    assert_eq!(watch.message().await.unwrap().unwrap().status(), not_serving);
    drop(watch);
    shutdown.await.unwrap();
}

/// What is logged on this thread from now on.
struct Logged {
    text: Arc<Mutex<String>>,
    news: Arc<Notify>,
    _guard: tracing::subscriber::DefaultGuard,
}

struct LogWriter(Arc<Mutex<String>>, Arc<Notify>);

impl std::io::Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().push_str(&String::from_utf8_lossy(bytes));
        self.1.notify_one();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Logged {
    fn start() -> Logged {
        let (text, news) = (Arc::new(Mutex::new(String::new())), Arc::new(Notify::new()));
        let writer = (Arc::clone(&text), Arc::clone(&news));
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || LogWriter(Arc::clone(&writer.0), Arc::clone(&writer.1)))
            .finish();
        Logged { text, news, _guard: tracing::subscriber::set_default(subscriber) }
    }

    /// Waits for a line that holds all of this, and gives it.
    async fn line(&self, parts: &[&str]) -> String {
        loop {
            let found = {
                let text = self.text.lock();
                text.lines().find(|line| parts.iter().all(|part| line.contains(part))).map(str::to_owned)
            };
            match found {
                Some(line) => return line,
                None => self.news.notified().await,
            }
        }
    }
}

/// On one thread, so that all of it is seen.
#[tokio::test]
async fn requests_are_told_of_in_the_log() {
    let logged = Logged::start();
    let cluster = TestCluster::start(3).await;
    let gateway = cluster
        .gateway_with(|options| {
            options.door.slow_request = Duration::ZERO;
            options.door.access_log = AccessLog::All;
        })
        .await;
    let mut kv = KvClient::new(connect(&gateway).await);
    let put = |key: &str| pb::PutRequest {
        key: key.to_owned().into(),
        value: "value".into(),
        ..Default::default()
    };
    kv.put(put("key")).await.unwrap();
    let slow = logged.line(&["slow request", "KV/Put", "code=\"OK\""]).await;
    for part in ["WARN", "from=127.0.0.1:", "at_nodes_ms=", "waited_ms=", "attempts=1 node=1"] {
        assert!(slow.contains(part), "{part} is in {slow}");
    }
    let access = logged.line(&["INFO access: request", "/etcdserverpb.KV/Put", "code=\"OK\""]).await;
    // A prefix of 5 bytes, key and value with 2 bytes each before them.
    assert!(access.contains("received=17"), "{access}");
    assert!(!access.contains("sent=0"), "{access}");
    kv.put(put("")).await.unwrap_err();
    logged.line(&["access: request", "/etcdserverpb.KV/Put", "code=\"InvalidArgument\""]).await;

    let (_, metrics) = get(&gateway, "/metrics").await;
    for sample in [
        "grpc_server_handling_seconds_count{grpc_type=\"unary\",grpc_service=\"etcdserverpb.KV\",grpc_method=\"Put\"} 2",
        "gaios_gateway_stage_seconds_count{stage=\"node\"} 1",
        "gaios_gateway_slow_requests_total 2",
    ] {
        assert!(metrics.contains(sample), "{sample} is in\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_endpoints() {
    let cluster = TestCluster::start(3).await;
    let gateway = cluster
        .gateway_with(|options| {
            options.admin_listen = Some("127.0.0.1:0".parse().unwrap());
            options.request_timeout = Duration::from_millis(300);
        })
        .await;
    let (code, body) = get(&gateway, "/version").await;
    let version = gateway::versions::ADVERTISED_VERSION;
    let expected = format!(r#"{{"etcdserver":"{version}","etcdcluster":"3.6.0","storage":"3.6.0"}}"#);
    assert_eq!((code, body), (200, expected));
    assert_eq!(http(gateway.address(), "POST", "/version").await.0, 405);
    assert_eq!(get(&gateway, "/nothing").await, (404, "404 page not found\n".to_owned()));
    assert_eq!(get(&gateway, "/health").await, (200, r#"{"health":"true","reason":""}"#.to_owned()));
    assert_eq!(get(&gateway, "/livez").await, (200, "ok\n".to_owned()));
    let (code, body) = get(&gateway, "/readyz?verbose").await;
    assert_eq!(code, 200);
    assert!(body.starts_with("[+]data_corruption ok\n[+]serializable_read ok\n"), "{body}");
    assert!(body.ends_with("ok\n"), "{body}");
    let (_, body) = get(&gateway, "/metrics").await;
    let names = [
        "etcd_server_has_leader 1",
        "grpc_server_handled_total",
        "process_resident_memory_bytes",
        "gaios_gateway_relayed_links 0",
    ];
    for name in names {
        assert!(body.contains(name), "{name} is in\n{body}");
    }
    let admin = gateway.admin_address().unwrap();
    assert_eq!(http(admin, "GET", "/readyz").await.0, 200);
    assert_eq!(http(admin, "POST", "/debug/status").await.0, 403, "without the header");
    assert_eq!(get(&gateway, "/debug/status").await.0, 404, "not where clients connect");
    let (code, body) = http(admin, "GET", "/debug/status").await;
    assert_eq!(code, 200);
    let Status::Cluster(status) = serde_json::from_str(&body).unwrap() else { panic!("{body}") };
    let nodes: Vec<_> = status.nodes.iter().map(|node| (node.id, node.reach, node.said.is_some())).collect();
    let silent = |id| (id, Some(Reach::Direct), false);
    assert_eq!(nodes, [silent(1), silent(2), silent(3)], "they are older than the question");

    cluster.elect(0);
    let (code, body) = get(&gateway, "/readyz").await;
    assert_eq!(code, 503);
    assert!(body.contains("[-]linearizable_read failed: etcdserver: request timed out"), "{body}");
    assert!(body.contains("[+]serializable_read ok"), "{body}");
    assert_eq!(get(&gateway, "/readyz/serializable_read").await.0, 200);
    assert_eq!(get(&gateway, "/readyz?exclude=linearizable_read").await.0, 200);
    let (code, body) = get(&gateway, "/health").await;
    assert_eq!((code, body.contains("RAFT NO LEADER")), (503, true), "{body}");
    assert_eq!(get(&gateway, "/health?serializable=true").await.0, 200);
    assert_eq!(get(&gateway, "/livez").await.0, 200);
}

/// etcd takes 16 MiB; a token of some identity providers alone passes 16 KiB.
/// Load balancers ask so whether a server is well, and browsers whether they may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn options_are_answered_as_etcd_does() {
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway().await;
    for (method, path, code) in
        [("OPTIONS", "/", 200), ("OPTIONS", "/v3/kv/range", 200), ("GET", "/health", 200), ("GET", "/", 404)]
    {
        let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
        let request = format!("{method} {path} HTTP/1.0\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.split(' ').nth(1) == Some(&code.to_string()), "{method} {path}: {answer}");
        for header in [
            "access-control-allow-methods: POST, GET, OPTIONS, PUT, DELETE",
            "access-control-allow-origin: *",
            "access-control-allow-headers: accept, content-type, authorization",
        ] {
            assert!(answer.contains(header), "{method} {path}: {answer}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_metadata_is_taken() {
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway().await;
    let mut client = KvClient::new(connect(&gateway).await);
    let mut request = tonic::Request::new(pb::RangeRequest { key: "k".into(), ..Default::default() });
    request.metadata_mut().insert("token", "x".repeat(100_000).parse().unwrap());
    client.range(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compressed_requests_are_taken_up_to_the_size_of_others() {
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway().await;
    let channel = connect(&gateway).await;
    let mut watch = WatchClient::new(channel.clone()).send_compressed(CompressionEncoding::Gzip);
    let create = pb::WatchCreateRequest { key: "k".into(), ..Default::default() };
    let create = pb::watch_request::RequestUnion::CreateRequest(create);
    let requests = tokio_stream::iter([pb::WatchRequest { request_union: Some(create) }]);
    let requests = requests.chain(tokio_stream::pending());
    let mut events = watch.watch(requests).await.unwrap().into_inner();
    assert!(events.message().await.unwrap().unwrap().created);

    let mut kv = KvClient::new(channel).send_compressed(CompressionEncoding::Gzip);
    let put =
        |bytes| pb::PutRequest { key: "k".into(), value: vec![b'v'; bytes].into(), ..Default::default() };
    kv.put(put(100_000)).await.unwrap();
    let told = events.message().await.unwrap().unwrap();
    assert_eq!(told.events[0].kv.as_ref().unwrap().value.len(), 100_000);
    // 16 KiB on the wire.
    let status = kv.put(put(16 << 20)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
}

/// The clock leaps to whatever is waited for next, so the client waits for no wall time.
#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_open_loses_its_connection() {
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway().await;
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for part in ["", "P", &preface[..23]] {
        let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
        stream.write_all(part.as_bytes()).await.unwrap();
        let closed = tokio::time::timeout(Duration::from_secs(60), stream.read_u8()).await;
        let error = closed.expect("it is closed in time").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof, "closed after {part:?}");
    }
    // The preface and empty settings: the server says its own, and the connection stays.
    let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
    stream.write_all(preface.as_bytes()).await.unwrap();
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    let silent_for = tokio::time::timeout(Duration::from_secs(600), async {
        while stream.read(&mut [0; 100]).await.unwrap() > 0 {}
    });
    assert!(silent_for.await.is_err(), "an open connection stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_another_cluster_are_refused() {
    let cluster = TestCluster::start(1).await;
    let mut options = cluster.gateway_options();
    options.cluster_id = Some(1);
    let stranger = Gateway::start(options).await.unwrap();
    assert!(!stranger.ready(Duration::from_millis(200)).await);
}

/// Reads frames of HTTP/2 until one of this type.
async fn until_frame(stream: &mut TcpStream, wanted: u8) {
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        stream.read_exact(&mut vec![0; length]).await.unwrap();
        if head[3] == wanted {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_drains_is_not_ready_and_sends_idle_connections_away() {
    const SETTINGS: u8 = 4;
    const GOAWAY: u8 = 7;
    let cluster = TestCluster::start(1).await;
    let gateway = cluster
        .gateway_with(|options| {
            options.drain = Duration::from_secs(20);
            options.admin_listen = Some("127.0.0.1:0".parse().unwrap());
        })
        .await;
    let admin = gateway.admin_address().unwrap();
    let mut idle = TcpStream::connect(gateway.address()).await.unwrap();
    let empty_settings = [0, 0, 0, SETTINGS, 0, 0, 0, 0, 0];
    idle.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    idle.write_all(&empty_settings).await.unwrap();
    until_frame(&mut idle, SETTINGS).await;
    assert_eq!(http(admin, "GET", "/readyz").await.0, 200);
    let begun = std::time::Instant::now();
    let shutdown = tokio::spawn(gateway.shutdown());
    until_frame(&mut idle, GOAWAY).await;
    let (code, report) = http(admin, "GET", "/readyz").await;
    assert_eq!(code, 503, "{report}");
    assert!(report.contains("the gateway is stopping"), "{report}");
    // The connection has no use any more, and the gateway ends with it, long before its time is over.
    drop(idle);
    shutdown.await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}
