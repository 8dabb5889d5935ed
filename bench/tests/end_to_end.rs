//! Every workload against a server in this process which answers constants.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use api::etcdserverpb as pb;
use api::mvccpb;
use bench::{BenchError, Case, Environment, Limit, Plan, Target, Workload, compare, run};
use pb::kv_server::{Kv, KvServer};
use pb::lease_server::{Lease, LeaseServer};
use pb::watch_server::{Watch, WatchServer};
use tls::make::{Authority, Use, Validity};
use tls::{ClientAuth, MinVersion, ServerFiles, ServerOptions};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// How the server fails.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    Nothing,
    /// Every second put is refused.
    HalfOfPuts,
    /// Every put is refused.
    Puts,
    /// Puts are never answered.
    Silence,
    /// Watchers are not told of puts.
    LostEvents,
}

#[derive(Clone)]
struct Constant {
    fault: Fault,
    requests: Arc<AtomicU64>,
    revision: Arc<AtomicI64>,
    leases_alive: Arc<AtomicI64>,
    watch_streams: Arc<tokio::sync::watch::Sender<usize>>,
    puts: broadcast::Sender<()>,
}

impl Constant {
    fn header(&self) -> Option<pb::ResponseHeader> {
        let revision = self.revision.load(Relaxed);
        Some(pb::ResponseHeader { revision, ..Default::default() })
    }
}

fn unimplemented<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not part of the test"))
}

#[tonic::async_trait]
impl Kv for Constant {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        self.requests.fetch_add(1, Relaxed);
        let kv = mvccpb::KeyValue { key: request.into_inner().key, ..Default::default() };
        Ok(Response::new(pb::RangeResponse { header: self.header(), kvs: vec![kv], more: false, count: 1 }))
    }

    type RangeStreamStream = Answers<pb::RangeStreamResponse>;

    async fn range_stream(
        &self,
        _: Request<pb::RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        unimplemented()
    }

    async fn put(&self, _: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        let number = self.requests.fetch_add(1, Relaxed);
        match self.fault {
            Fault::Nothing | Fault::LostEvents => {}
            Fault::HalfOfPuts if number.is_multiple_of(2) => {}
            Fault::HalfOfPuts | Fault::Puts => return Err(Status::unavailable("etcdserver: no leader")),
            Fault::Silence => std::future::pending().await,
        }
        self.revision.fetch_add(1, Relaxed);
        if self.fault != Fault::LostEvents {
            // Fails when nobody watches.
            let _ = self.puts.send(());
        }
        Ok(Response::new(pb::PutResponse { header: self.header(), prev_kv: None }))
    }

    async fn delete_range(
        &self,
        _: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        unimplemented()
    }

    /// Refuses the first comparison of every caller, which expects a key that does not exist.
    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        let request = request.into_inner();
        let succeeded = request.compare[0].target_union != Some(pb::compare::TargetUnion::ModRevision(0));
        let kv = mvccpb::KeyValue { mod_revision: 7, ..Default::default() };
        let response = if succeeded {
            pb::response_op::Response::ResponsePut(pb::PutResponse::default())
        } else {
            pb::response_op::Response::ResponseRange(pb::RangeResponse {
                kvs: vec![kv],
                ..Default::default()
            })
        };
        self.revision.fetch_add(1, Relaxed);
        let responses = vec![pb::ResponseOp { response: Some(response) }];
        Ok(Response::new(pb::TxnResponse { header: self.header(), succeeded, responses }))
    }

    async fn compact(
        &self,
        _: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        unimplemented()
    }
}

#[tonic::async_trait]
impl Watch for Constant {
    type WatchStream = Answers<pb::WatchResponse>;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let mut puts = self.puts.subscribe();
        let mut requests = request.into_inner();
        let (sender, receiver) = tokio::sync::mpsc::channel(16);
        self.watch_streams.send_modify(|open| *open += 1);
        let watch_streams = Arc::clone(&self.watch_streams);
        let stream = async move {
            let mut watches = 0;
            loop {
                let response = tokio::select! {
                    request = requests.next() => match request {
                        Some(Ok(_)) => {
                            watches += 1;
                            pb::WatchResponse { watch_id: watches - 1, created: true, ..Default::default() }
                        }
                        Some(Err(_)) | None => return,
                    },
                    put = puts.recv() => match put {
                        // One response may carry the events of several watches, as far as the count goes.
                        Ok(()) => pb::WatchResponse {
                            events: vec![mvccpb::Event::default(); watches as usize],
                            ..Default::default()
                        },
                        Err(_) => return,
                    },
                };
                if sender.send(Ok(response)).await.is_err() {
                    return;
                }
            }
        };
        tokio::spawn(async move {
            stream.await;
            watch_streams.send_modify(|open| *open -= 1);
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver))))
    }
}

#[tonic::async_trait]
impl Lease for Constant {
    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        let id = self.requests.fetch_add(1, Relaxed) as i64 + 1;
        self.leases_alive.fetch_add(1, Relaxed);
        let ttl = request.into_inner().ttl;
        Ok(Response::new(pb::LeaseGrantResponse { header: self.header(), id, ttl, error: String::new() }))
    }

    async fn lease_revoke(
        &self,
        _: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        self.leases_alive.fetch_sub(1, Relaxed);
        Ok(Response::new(pb::LeaseRevokeResponse { header: self.header() }))
    }

    type LeaseKeepAliveStream = Answers<pb::LeaseKeepAliveResponse>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let answer = |request: Result<pb::LeaseKeepAliveRequest, Status>| {
            request.map(|request| pb::LeaseKeepAliveResponse { header: None, id: request.id, ttl: 60 })
        };
        Ok(Response::new(Box::pin(request.into_inner().map(answer))))
    }

    async fn lease_time_to_live(
        &self,
        _: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        unimplemented()
    }

    async fn lease_leases(
        &self,
        _: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        unimplemented()
    }
}

/// For servers known to be silent.
const IMPATIENT: Duration = Duration::from_millis(500);

/// Starts a server on a port of the kernel's choice; it lives as long as the test's runtime.
async fn serve(fault: Fault) -> (Constant, Target) {
    let constant = Constant {
        fault,
        requests: Arc::default(),
        revision: Arc::default(),
        leases_alive: Arc::default(),
        watch_streams: Arc::default(),
        puts: broadcast::channel(64).0,
    };
    let listener =
        TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("loopback has free ports");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    let server = Server::builder()
        .add_service(KvServer::new(constant.clone()))
        .add_service(WatchServer::new(constant.clone()))
        .add_service(LeaseServer::new(constant.clone()));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let target = Target {
        label: "constant".to_owned(),
        endpoints: vec![url],
        pids: vec![std::process::id()],
        tls: None,
    };
    (constant, target)
}

fn plan(workload: Workload) -> Plan {
    Plan {
        workload,
        callers: 4,
        connections: 2,
        value_size: 64,
        keys: 10,
        watchers: 7,
        watches_per_stream: 3,
        warmup: Duration::ZERO,
        limit: Limit::Operations(200),
        patience: Duration::from_secs(10),
    }
}

#[tokio::test]
async fn every_closed_loop_counts_what_it_was_told_to() {
    for workload in [
        Workload::Put,
        Workload::Get,
        Workload::SerializableGet,
        Workload::CompareAndPut,
        Workload::ConnectPutClose,
        Workload::Lease,
        Workload::LeaseKeepAlive,
    ] {
        let (constant, target) = serve(Fault::Nothing).await;
        let report = run(&plan(workload), &target).await.unwrap();
        assert_eq!((report.ops, report.errors, report.unanswered), (200, 0, 0), "{workload}");
        assert!(report.latency.p50_us > 0.0 && report.latency.p50_us <= report.latency.max_us, "{workload}");
        assert!(report.ops_per_second > 0.0, "{workload}");
        assert_eq!(report.processes.len(), 1, "{workload}");
        assert!(report.cpu_us_per_op.is_some(), "{workload}");
        assert_eq!(constant.leases_alive.load(Relaxed), 0, "{workload} left leases behind");
    }
}

#[tokio::test]
async fn a_lost_comparison_is_a_conflict_and_is_learned_from() {
    let (_, target) = serve(Fault::Nothing).await;
    let mut plan = plan(Workload::CompareAndPut);
    plan.callers = 1;
    let report = run(&plan, &target).await.unwrap();
    assert!(report.conflicts <= 1, "{}", report.conflicts);
    assert_eq!((report.ops, report.errors), (200, 0));
}

#[tokio::test]
async fn watch_counts_events_of_all_watchers() {
    let (constant, target) = serve(Fault::Nothing).await;
    let report = run(&plan(Workload::Watch), &target).await.unwrap();
    assert_eq!((report.ops, report.watchers), (200, Some(7)));
    // A stream left open would make the next measurement dearer.
    let mut open = constant.watch_streams.subscribe();
    let closed = tokio::time::timeout(Duration::from_secs(10), open.wait_for(|open| *open == 0));
    assert!(closed.await.is_ok(), "watch streams were left open");
    // 200 events are 28 rounds and a part of one; more rounds may have gone by before the window.
    assert!(constant.requests.load(Relaxed) > 28);
}

#[tokio::test]
async fn quiet_watches_are_counted_by_the_second() {
    let (constant, target) = serve(Fault::Nothing).await;
    let mut plan = plan(Workload::IdleWatches);
    plan.limit = Limit::Operations(plan.watchers as u64);
    let report = run(&plan, &target).await.unwrap();
    assert_eq!((report.ops, report.watchers), (7, Some(7)));
    assert_eq!(constant.requests.load(Relaxed), 0, "nothing else is asked");
    let mut open = constant.watch_streams.subscribe();
    let closed = tokio::time::timeout(Duration::from_secs(10), open.wait_for(|open| *open == 0));
    assert!(closed.await.is_ok(), "watch streams were left open");
}

#[tokio::test]
async fn idle_connections_are_opened_once_each() {
    let (constant, target) = serve(Fault::Nothing).await;
    let mut plan = plan(Workload::IdleConnections);
    (plan.connections, plan.limit) = (20, Limit::Time(Duration::from_secs(1)));
    let report = run(&plan, &target).await.unwrap();
    // The other two came before the window.
    assert_eq!((report.ops, constant.requests.load(Relaxed)), (20, 22));
    assert!(report.rss_bytes_per_connection.is_some());
}

#[tokio::test]
async fn a_timed_window_ends() {
    let (_, target) = serve(Fault::Nothing).await;
    let mut plan = plan(Workload::Put);
    plan.limit = Limit::Time(Duration::from_millis(100));
    let report = run(&plan, &target).await.unwrap();
    assert!(report.ops > 0 && report.seconds >= 0.1, "{report}");
}

#[tokio::test]
async fn errors_are_counted_apart() {
    let (_, target) = serve(Fault::HalfOfPuts).await;
    let report = run(&plan(Workload::Put), &target).await.unwrap();
    assert_eq!(report.ops, 200);
    assert!(report.errors > 50, "{}", report.errors);
    assert_eq!(report.errors_by_code["Unavailable"], report.errors);
    assert_eq!(report.first_error.as_deref(), Some("Unavailable: etcdserver: no leader"));
}

#[tokio::test]
async fn a_server_that_only_fails_ends_in_a_report_without_operations() {
    let (_, target) = serve(Fault::Puts).await;
    let mut plan = plan(Workload::Put);
    plan.limit = Limit::Time(Duration::from_millis(50));
    let report = run(&plan, &target).await.unwrap();
    assert_eq!((report.ops, report.cpu_us_per_op), (0, None));
    assert!(report.errors > 0);
}

#[tokio::test]
async fn a_silent_server_does_not_hang_the_generator() {
    let (_, target) = serve(Fault::Silence).await;
    let mut plan = plan(Workload::Put);
    (plan.limit, plan.patience) = (Limit::Time(Duration::from_millis(50)), IMPATIENT);
    let report = run(&plan, &target).await.unwrap();
    assert_eq!((report.ops, report.unanswered), (0, 4));
}

#[tokio::test]
async fn lost_events_fail_the_measurement() {
    let (_, target) = serve(Fault::LostEvents).await;
    let mut plan = plan(Workload::Watch);
    plan.patience = IMPATIENT;
    let error = run(&plan, &target).await.unwrap_err();
    assert_eq!(error.to_string(), "7 of 7 events are missing after 500ms");
}

#[tokio::test]
async fn an_endpoint_nobody_listens_at_is_told() {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let target = Target { label: "nobody".to_owned(), endpoints: vec![url], pids: Vec::new(), tls: None };
    let error = run(&plan(Workload::Put), &target).await.unwrap_err();
    assert!(matches!(error, BenchError::Connect { .. }), "{error}");
}

/// A TLS server in front of `target`, and how it is spoken to.
async fn behind_tls(target: &Target, folder: &Path) -> (Arc<tls::Server>, Target) {
    let authority = Authority::new("test", Validity::days(1)).unwrap();
    let purpose = Use::Server(vec!["127.0.0.1".to_owned()]);
    let pair = authority.issue("server", &purpose, Validity::days(1)).unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let files = ServerFiles {
        certificate: write("server.crt", &pair.certificate),
        key: write("server.key", &pair.key),
        client_authorities: None,
        ticket_keys: None,
    };
    let options = ServerOptions { files, client_auth: ClientAuth::Off, min_version: MinVersion::Tls12 };
    let server = Arc::new(tls::Server::load(options).unwrap());
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let inner = target.endpoints[0].trim_start_matches("http://").to_owned();
    let accepting = Arc::clone(&server);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (server, inner) = (Arc::clone(&accepting), inner.clone());
            tokio::spawn(async move {
                let mut outside = server.accept(socket).await.unwrap();
                let mut inside = TcpStream::connect(inner).await.unwrap();
                // It ends when either side does.
                let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
            });
        }
    });
    let tls = Some(tls::ClientOptions::new(write("ca.crt", authority.certificate())));
    (server, Target { endpoints: vec![url], tls, ..target.clone() })
}

#[tokio::test]
async fn over_tls_handshakes_are_full_or_resumed_as_wanted() {
    let (_, target) = serve(Fault::Nothing).await;
    for resume in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (server, mut target) = behind_tls(&target, folder.path()).await;
        target.tls.as_mut().unwrap().resume = resume;
        let report = run(&plan(Workload::ConnectPutClose), &target).await.unwrap();
        assert_eq!((report.ops, report.errors), (200, 0), "{report}");
        let (full, resumed) = (server.full_handshakes(), server.resumed_handshakes());
        assert!(full + resumed >= 200, "{full} full and {resumed} resumed");
        // The first of each caller begins a session.
        let expected = if resume { full == 4 } else { resumed == 0 };
        assert!(expected, "{full} full and {resumed} resumed");
    }
}

#[tokio::test]
async fn a_comparison_is_a_table_with_ratios() {
    let environment = Environment::probe(&std::env::temp_dir()).unwrap();
    let (_, first) = serve(Fault::Nothing).await;
    let (_, mut second) = serve(Fault::LostEvents).await;
    second.label = "other".to_owned();
    let mut put = plan(Workload::Put);
    // Enough work to show in CPU time, which the kernel tells in steps of 10 ms.
    put.limit = Limit::Operations(2000);
    let mut watch = plan(Workload::Watch);
    (watch.limit, watch.patience) = (Limit::Operations(50), Duration::from_secs(2));
    let cases = [Case { name: "puts", plan: put }, Case { name: "watches", plan: watch }];
    let mut seen = 0;
    let comparison = compare(environment, &cases, &[first, second], 2, 1.0, |_| seen += 1).await;
    assert_eq!(seen, 8);
    let shown: Vec<_> =
        comparison.rows.iter().map(|row| (row.case, &*row.system, row.rounds.len())).collect();
    let expected =
        [("puts", "constant", 2), ("puts", "other", 2), ("watches", "constant", 2), ("watches", "other", 0)];
    assert_eq!(shown, expected);

    let table = comparison.to_string();
    let lines: Vec<&str> = table.lines().filter(|line| line.starts_with('|')).collect();
    let columns = |line: &str| line.matches('|').count();
    assert!(lines.iter().all(|line| columns(line) == columns(lines[0])), "{table}");
    assert!(lines[2].contains("| 1.00 |"), "{table}");
    assert!(lines[5].contains("failed: 7 of 7 events are missing"), "{table}");
    let json = serde_json::to_value(&comparison).unwrap();
    assert_eq!(json["rows"][0]["rounds"][0]["workload"], "put");
    assert_eq!(json["rows"][3]["shown"], serde_json::Value::Null);
}
