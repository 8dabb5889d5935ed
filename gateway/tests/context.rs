//! What a request brings with it reaches whoever carries the domain, and what that says reaches the client.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::etcdserverpb as pb;
use api::etcdserverpb::kv_client::KvClient;
use api::etcdserverpb::lease_client::LeaseClient;
use bytes::{BufMut as _, Bytes, BytesMut};
use gateway::context::{Deadline, Permissions, Priority, RequestContext};
use gateway::domain::{
    Answer, Consistency, Domain, DomainStatus, Feed, FeedReader, Kept, KnownGateways, LinkCounts,
    NodeDistance,
};
use gateway::door::DoorOptions;
use gateway::leading::{Leading, Wanted};
use gateway::status::{GatewayStatus, NodeStatus};
use gateway::{Place, Serving};
use gateway_core::{Failure, FeedSpec};
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use keyspace::{LeaseId, Op, Query};
use parking_lot::Mutex;
use prometheus::core::Collector;
use prost::Message;
use support::{TestCluster, connect};
use tls::make::{Authority, Use, Validity};
use tls::{Client, ClientAuth, ClientOptions, MinVersion, Server, ServerFiles, ServerOptions};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Notes what requests bring with them, and grants none.
struct Refusing {
    failure: Failure,
    contexts: Mutex<Vec<RequestContext>>,
    leader_known: watch::Sender<bool>,
    /// Whoever asks waits.
    holding: watch::Sender<bool>,
}

impl Refusing {
    async fn refuse<T>(&self, context: &RequestContext) -> Result<T, Failure> {
        self.contexts.lock().push(context.clone());
        let _ = self.holding.subscribe().wait_for(|holding| !holding).await;
        Err(self.failure.clone())
    }
}

impl Domain for Refusing {
    async fn write(&self, context: &RequestContext, _: Op) -> Result<Answer, Failure> {
        self.refuse(context).await
    }

    async fn read(&self, context: &RequestContext, _: Query, _: Consistency) -> Result<Answer, Failure> {
        self.refuse(context).await
    }

    async fn keep_alive(&self, context: &RequestContext, _: LeaseId) -> Result<Kept, Failure> {
        self.refuse(context).await
    }

    async fn status(&self, context: &RequestContext) -> Result<DomainStatus, Failure> {
        self.refuse(context).await
    }

    async fn gateways(&self, context: &RequestContext) -> Result<KnownGateways, Failure> {
        self.refuse(context).await
    }

    fn feed(&self, _: FeedSpec, _: Arc<dyn FeedReader>) -> Box<dyn Feed> {
        unreachable!("nobody watches here")
    }

    async fn nodes(&self) -> (Vec<NodeStatus>, BTreeMap<u64, Vec<u32>>) {
        Default::default()
    }

    fn tell(&self, _: &GatewayStatus) {}

    fn link_certificates(&self) -> Option<tls::Status> {
        None
    }

    fn distances(&self) -> Vec<NodeDistance> {
        Vec::new()
    }

    async fn lead(&self, context: &RequestContext, _: Wanted) -> Option<Result<Leading, Failure>> {
        Some(self.refuse(context).await)
    }

    fn request_timeout(&self) -> Duration {
        Duration::from_secs(7)
    }

    fn collectors(&self) -> Vec<Box<dyn Collector>> {
        Vec::new()
    }

    fn links(&self) -> LinkCounts {
        LinkCounts::default()
    }

    fn cluster_id(&self) -> u64 {
        1
    }

    fn leader_known(&self) -> watch::Receiver<bool> {
        self.leader_known.subscribe()
    }
}

/// Doors before a domain that refuses everything so, and a client's connection.
async fn refusing(failure: Failure) -> (Arc<Refusing>, Serving, Channel) {
    let (domain, serving) = serve(failure, DoorOptions::default()).await;
    let channel = Channel::from_shared(format!("http://{}", serving.address())).unwrap();
    let channel = channel.connect().await.unwrap();
    (domain, serving, channel)
}

async fn serve(failure: Failure, options: DoorOptions) -> (Arc<Refusing>, Serving) {
    let (leader_known, holding) = (watch::Sender::new(false), watch::Sender::new(false));
    let domain = Arc::new(Refusing { failure, contexts: Mutex::default(), leader_known, holding });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let serving = Serving::start(
        Arc::clone(&domain),
        listener,
        None,
        "test".to_owned(),
        &Place::default(),
        vec!["http://127.0.0.1:1".to_owned()],
        Vec::new(),
        options,
    )
    .unwrap();
    (domain, serving)
}

#[tokio::test]
async fn a_request_tells_who_asks_until_when_and_as_a_part_of_what() {
    let (domain, _serving, channel) = refusing(Failure::NoLeader).await;
    let trace_parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let mut put = tonic::Request::new(pb::PutRequest { key: "k".into(), ..Default::default() });
    put.metadata_mut().insert("traceparent", trace_parent.parse().unwrap());
    put.metadata_mut().insert("grpc-timeout", "2S".parse().unwrap());
    KvClient::new(channel.clone()).put(put).await.unwrap_err();
    let all = pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    KvClient::new(channel.clone()).range(all).await.unwrap_err();
    LeaseClient::new(channel).lease_revoke(pb::LeaseRevokeRequest { id: 7 }).await.unwrap_err();

    let contexts = domain.contexts.lock();
    let [put, range, revoke] = contexts.as_slice() else { panic!("{contexts:?}") };
    assert_eq!(put.trace_parent.unwrap().to_string(), trace_parent);
    assert!(matches!(put.deadline, Deadline::Client(_)));
    assert!(range.trace_parent.is_none() && matches!(range.deadline, Deadline::Gateway(_)));
    let priorities = [put, range, revoke].map(|context| context.priority);
    assert_eq!(priorities, [Priority::Small, Priority::Large, Priority::Liveness]);
    assert_eq!(put.id.connection, range.id.connection);
    assert_ne!(put.id, range.id);
    let caller = put.caller.as_ref().unwrap();
    assert_eq!((caller.common_name.as_ref(), caller.permissions), (None, Permissions::All));
    assert!(caller.address.is_some_and(|address| address.ip().is_loopback()));
}

#[tokio::test]
async fn a_certificate_tells_who_asks() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let authority = Authority::new("all", Validity::days(1)).unwrap();
    let authorities = write("all.crt", authority.certificate());
    let issue = |name: &str, purpose| {
        let pair = authority.issue(name, &purpose, Validity::days(1)).unwrap();
        (write(&format!("{name}.crt"), &pair.certificate), write(&format!("{name}.key"), &pair.key))
    };
    let (certificate, key) = issue("server", Use::Server(vec!["127.0.0.1".to_owned()]));
    let files =
        ServerFiles { certificate, key, client_authorities: Some(authorities.clone()), ticket_keys: None };
    let (client_auth, min_version) = (ClientAuth::Required, MinVersion::Tls12);
    let server = Server::load(ServerOptions { files, client_auth, min_version }).unwrap();
    let options = DoorOptions { tls: Some(Arc::new(server)), ..DoorOptions::default() };
    let (domain, serving) = serve(Failure::NoLeader, options).await;

    let options = ClientOptions { own: Some(issue("alice", Use::Client)), ..ClientOptions::new(authorities) };
    let socket = TcpStream::connect(serving.address()).await.unwrap();
    let stream = Client::load(&options).unwrap().connect("127.0.0.1", socket).await.unwrap();
    call(stream, "etcdserverpb.Lease/LeaseRevoke", pb::LeaseRevokeRequest { id: 7 }, "1S").await;
    let contexts = domain.contexts.lock();
    let caller = contexts[0].caller.as_ref().unwrap();
    assert_eq!(caller.common_name.as_deref(), Some("alice"));
}

#[tokio::test]
async fn a_client_is_told_what_an_etcd_behind_the_domain_says() {
    let details = Bytes::from_static(b"\x08\x09\x12\x00\xff");
    let message = "etcdserver: lease already exists, \u{fc}ber all";
    let failure = Failure::Upstream { code: 9, message: message.to_owned(), details: details.clone() };
    let (_domain, _serving, channel) = refusing(failure).await;
    let grant = pb::LeaseGrantRequest { id: 7, ttl: 60 };
    let status = LeaseClient::new(channel).lease_grant(grant).await.unwrap_err();
    assert_eq!((status.code() as i32, status.message(), status.details()), (9, message, &details[..]));
}

/// Calls a method as a client does that has no clock of its own. Returns what it is refused with.
async fn call<S>(stream: S, method: &str, message: impl Message, timeout: &str) -> Status
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut body = BytesMut::new();
    body.put_u8(0);
    body.put_u32(message.encoded_len() as u32);
    message.encode(&mut body).unwrap();
    let request = http::Request::post(format!("http://test/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", timeout)
        .body(Full::new(body.freeze()))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    tonic::Status::from_header_map(response.headers()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_waits_less_than_the_gateway_has_its_answer_by_then() {
    let cluster = TestCluster::start(1).await;
    let gateway = cluster.gateway_with(|options| options.request_timeout = Duration::from_secs(60)).await;
    let mut client = KvClient::new(connect(&gateway).await);
    client.put(pb::PutRequest { key: "k".into(), ..Default::default() }).await.unwrap();
    cluster.faults.lock().silent = vec![1];
    let begun = Instant::now();
    let put = pb::PutRequest { key: "k".into(), ..Default::default() };
    let connected = async || TcpStream::connect(gateway.address()).await.unwrap();
    let put = call(connected().await, "etcdserverpb.KV/Put", put, "200m").await;
    assert_eq!((put.code(), put.message()), (Code::Unavailable, "etcdserver: request timed out"));
    let get = pb::RangeRequest { key: "k".into(), ..Default::default() };
    let get = call(connected().await, "etcdserverpb.KV/Range", get, "200m").await;
    assert_eq!((get.code(), get.message()), (Code::DeadlineExceeded, "context deadline exceeded"));
    assert!(begun.elapsed() >= Duration::from_millis(400) && begun.elapsed() < Duration::from_secs(30));
    // Nothing waits for the answers any more.
    cluster.faults.lock().silent.clear();
    let gauge = "\ngaios_gateway_requests_under_way 0\n";
    let until = Instant::now() + Duration::from_secs(5);
    while !support::http(gateway.address(), "GET", "/metrics").await.1.contains(gauge) {
        assert!(Instant::now() < until, "requests are under way that nobody waits for");
    }
}

#[tokio::test]
async fn too_many_requests_are_refused_at_once_and_those_of_others_are_not() {
    let options = DoorOptions { requests_max: 8, ..DoorOptions::default() };
    let (domain, serving) = serve(Failure::TooLarge, options).await;
    domain.holding.send_replace(true);
    let connect = || async {
        let channel = Channel::from_shared(format!("http://{}", serving.address())).unwrap();
        channel.connect().await.unwrap()
    };
    let (greedy, modest) = (connect().await, connect().await);
    let put = |channel: &Channel| {
        let mut kv = KvClient::new(channel.clone());
        tokio::spawn(async move { kv.put(pb::PutRequest { key: "k".into(), ..Default::default() }).await })
    };
    let under_way = async |count: usize| {
        while domain.contexts.lock().len() < count {
            tokio::task::yield_now().await;
        }
    };
    let mut held: Vec<_> = (0..4).map(|_| put(&greedy)).collect();
    under_way(4).await;
    let refused = put(&greedy).await.unwrap().unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::Unknown, "etcdserver: too many requests"));
    held.push(put(&modest));
    under_way(5).await;
    let mut lease = LeaseClient::new(greedy.clone());
    let grant =
        tokio::spawn(async move { lease.lease_grant(pb::LeaseGrantRequest { ttl: 60, id: 0 }).await });
    under_way(6).await;
    domain.holding.send_replace(false);
    for answered in held {
        assert_eq!(answered.await.unwrap().unwrap_err().message(), "etcdserver: request is too large");
    }
    grant.await.unwrap().unwrap_err();
    assert_eq!(put(&greedy).await.unwrap().unwrap_err().code(), Code::InvalidArgument, "there is room again");
}
