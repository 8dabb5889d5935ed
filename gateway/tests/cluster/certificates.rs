//! Links with certificates: what they are made of changes under traffic, and nobody notices.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use api::gaios::link::{VERSION, v1 as wire};
use gateway::status::Status;
use prost::Message as _;
use rustix::process::Signal;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};
use sim::model;
use tls::make::{Authority, Use, Validity};
use tls::{Holder, Mutual};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::client::Client;
use crate::processes::issued::members;
use crate::processes::{Cluster, Process, Setup, wait_for};
use crate::stranger::cluster_id;

/// Whether a node welcomes who has these certificates.
async fn is_welcome(cluster: &Cluster, tls: &Mutual) -> bool {
    let socket = TcpStream::connect(cluster.replicas[0].listen).await.unwrap();
    let Ok((mut stream, _)) = tls.connect(socket).await else { return false };
    let cluster_id = cluster_id("test");
    let hello = wire::Hello { version: VERSION, cluster_id, name: "guest".to_owned(), ..Default::default() }
        .encode_to_vec();
    let frame = [&(hello.len() as u32).to_be_bytes()[..], &hello].concat();
    if stream.write_all(&frame).await.is_err() {
        return false;
    }
    let Ok(length) = stream.read_u32().await else { return false };
    let mut welcome = vec![0; length as usize];
    stream.read_exact(&mut welcome).await.unwrap();
    wire::Welcome::decode(&welcome[..]).unwrap().refused.is_empty()
}

/// The value of a metric of a process.
fn metric(process: &Process, line: &str) -> f64 {
    wait_for(line, || {
        let (_, text) = process.get("/metrics")?;
        let value = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '))?;
        Some(value.parse().unwrap())
    })
}

fn metric_is(process: &Process, line: &str, expected: f64) {
    wait_for(&format!("{line} {expected}"), || (metric(process, line) == expected).then_some(()));
}

/// Until every process has taken over so many changes of its files.
fn wait_for_reloads(cluster: &Cluster, reloads: usize) {
    for process in cluster.replicas.iter().chain(&cluster.gateways) {
        wait_for("new certificates", || {
            (process.log().matches("took over new certificates").count() >= reloads).then_some(())
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_and_cas_change_under_traffic_and_no_link_is_lost() {
    let old = Authority::new("old", Validity::days(2)).unwrap();
    let new = Authority::new("new", Validity::days(2)).unwrap();
    let members = members(3, 2);
    let setup = Setup { links: Some(&old), ..Setup::default() };
    let mut cluster = Cluster::start_as(3, 2, &setup);
    let certificates = cluster.certificates.take().expect("its links have some");
    // As one who was let in by the old CA.
    certificates.issue(&old, &[("guest".to_owned(), "gaios://test/gateway/guest".to_owned())]);
    let guest = Mutual::load(certificates.files("guest"), "test", Holder::Gateway).unwrap();
    assert!(is_welcome(&cluster, &guest).await, "{}", cluster.logs());

    let (stop, puts) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut client = Client::connect(&cluster.endpoints()).await.unwrap();
    let putting = tokio::spawn({
        let (stop, puts) = (Arc::clone(&stop), Arc::clone(&puts));
        async move {
            while !stop.load(Ordering::Relaxed) {
                let put =
                    model::PutRequest { key: b"k".to_vec(), value: vec![b'v'; 100], ..Default::default() };
                client.put(put).await.expect("nothing fails while certificates change");
                puts.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    // The way of an operator: first all trust the new CA, then all have certificates of it, then nobody trusts the old one.
    certificates.trust(&[&old, &new]);
    wait_for_reloads(&cluster, 1);
    certificates.issue(&new, &members);
    wait_for_reloads(&cluster, 2);
    certificates.trust(&[&new]);
    wait_for_reloads(&cluster, 3);
    let before = puts.load(Ordering::Relaxed);
    wait_for("a put after the last change", || (puts.load(Ordering::Relaxed) > before + 1).then_some(()));
    stop.store(true, Ordering::Relaxed);
    putting.await.unwrap();
    for process in cluster.replicas.iter().chain(&cluster.gateways) {
        let log = process.log();
        assert!(!log.contains("link down") && !log.contains("link lost"), "{log}");
    }

    for process in cluster.replicas.iter().chain(&cluster.gateways) {
        assert_eq!(metric(process, "gaios_tls_reloads_total{door=\"link\",result=\"taken\"}"), 3.0);
        let expiry =
            |of: &str| format!("gaios_tls_certificate_expiry_seconds{{certificate=\"{of}\",door=\"link\"}}");
        let days = |of: &str| metric(process, &expiry(of)) / 86_400.0;
        assert!((0.9..=1.0).contains(&days("own")) && (1.9..=2.0).contains(&days("ca")));
    }

    // New links use the new ones, and nobody is let in by the old CA any more.
    assert!(!is_welcome(&cluster, &guest).await);
    let leader = cluster.leader();
    cluster.replicas[leader].kill();
    cluster.replicas[leader].start();
    cluster.wait_until_ready();
}

/// Both doors of a gateway, and a node's. Looks at the files, which come every five seconds, would take longer by far.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_taken_over_at_once_on_sighup() {
    const ROUNDS: u32 = 10;
    let authority = Authority::new("ours", Validity::days(2)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let server = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let issue_server = || {
        let purpose = Use::Server(vec!["127.0.0.1".to_owned()]);
        let pair = authority.issue("server", &purpose, Validity::days(1)).unwrap();
        server("server.crt", &pair.certificate);
        server("server.key", &pair.key);
    };
    issue_server();
    let client_tls = |_| {
        let file = |name: &str| folder.path().join(name).display().to_string();
        let fields = format!("{{cert_file: {}, key_file: {}}}", file("server.crt"), file("server.key"));
        format!("client_tls: {fields}\nregion: eu\nzone: a\n")
    };
    let setup = Setup { links: Some(&authority), gateway: Some(&client_tls), ..Setup::default() };
    let mut cluster = Cluster::plan(1, 1, &setup);
    cluster.gateways[0].edit(|text| text.replace("\"http://", "\"https://"));
    cluster.start_all();
    let certificates = cluster.certificates.take().expect("its links have some");
    let taken = |door: &str| format!("gaios_tls_reloads_total{{door=\"{door}\",result=\"taken\"}}");
    let begun = Instant::now();
    for round in 1..=ROUNDS {
        issue_server();
        certificates.issue(&authority, &members(1, 1));
        let [node, gateway] = [&cluster.replicas[0], &cluster.gateways[0]];
        node.signal(Signal::HUP);
        gateway.signal(Signal::HUP);
        // A look in the middle of the change takes over a whole pair, or nothing.
        for (process, door) in [(node, "link"), (gateway, "link"), (gateway, "client")] {
            wait_for("a reload", || (metric(process, &taken(door)) >= f64::from(round)).then_some(()));
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());

    // What is no good is told at once, too, and the other door goes on.
    let gateway = &cluster.gateways[0];
    let refused = |door: &str| format!("gaios_tls_files_refused{{door=\"{door}\"}}");
    server("server.crt", "-----BEGIN CERTIFICATE-----\n");
    gateway.signal(Signal::HUP);
    metric_is(gateway, &refused("client"), 1.0);
    assert_eq!(metric(gateway, &refused("link")), 0.0);
    let Status::Cluster(status) = serde_json::from_str(&gateway.get("/debug/status").unwrap().1).unwrap()
    else {
        panic!("a gateway tells of the cluster")
    };
    let told = &status.gateways[0];
    let certificates: Vec<_> =
        told.certificates.iter().map(|one| (one.door.name(), one.kind.name())).collect();
    assert_eq!(certificates, [("client", "own"), ("link", "own"), ("link", "ca")]);
    let [client, link, _] = &told.certificates[..] else { unreachable!("there are three") };
    assert_eq!(client.holder.as_deref(), Some("127.0.0.1"));
    assert!(client.refused.as_ref().is_some_and(|why| why.contains("server.crt")), "{client:?}");
    assert_eq!((link.holder.as_deref(), &link.refused), (Some("gaios://test/gateway/gateway-1"), &None));
    assert_eq!((told.region.as_deref(), told.zone.as_deref()), (Some("eu"), Some("a")));
    let node = status.nodes[0].said.as_ref().expect("it is up");
    assert_eq!(node.certificates[0].holder.as_deref(), Some("gaios://test/node/1"));
    assert_eq!(node.gateways[0].zone.as_deref(), Some("a"));
    let findings: Vec<_> = status.findings.iter().map(|finding| finding.text.as_str()).collect();
    assert!(
        findings.iter().any(|text| text.starts_with("node 1: a certificate")),
        "they last a day: {findings:?}"
    );
    issue_server();
    gateway.signal(Signal::HUP);
    metric_is(gateway, &refused("client"), 0.0);
}

/// The hello of a node that wants a link, as `replica` writes it.
fn hello_of_node(from: u32, to: u32) -> Vec<u8> {
    let mut hello = b"\0gaios-peer\x02\0".to_vec();
    hello.extend([0; 8]);
    hello.extend(cluster_id("test").to_le_bytes());
    hello.extend(from.to_le_bytes());
    hello.extend(to.to_le_bytes());
    // Life and process, and the one that it has heard; not a newcomer, with no mark; and what else it knows.
    for number in [1_u64, 7, 0] {
        hello.extend(number.to_le_bytes());
    }
    hello.extend([0, 1, 0]);
    hello.extend([0; 24]);
    hello
}

/// Takes whatever certificate is shown.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Shakes hands with a node and shows no certificate, until the node ends that.
async fn shake_without_certificate(socket: TcpStream) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
        .with_no_client_auth();
    let socket = socket.into_std().unwrap();
    socket.set_nonblocking(false).unwrap();
    let shaking = move || {
        let mut socket = socket;
        let name = ServerName::try_from("node.invalid").unwrap();
        let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut stream = rustls::Stream::new(&mut connection, &mut socket);
        // The refusal comes after the client believes to be in.
        let _ = stream.write_all(b"hello");
        assert!(stream.read_to_end(&mut Vec::new()).is_err(), "it is refused");
    };
    tokio::task::spawn_blocking(shaking).await.unwrap();
}

/// Who calls a node, and how it is refused.
enum Caller<'a> {
    /// Speaks no TLS.
    InTheClear,
    /// Speaks TLS, and shows nothing.
    WithoutCertificate,
    /// Shows this certificate, and says that it is node 2.
    As(&'a Mutual),
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_refused_is_counted_and_told_of() {
    let authority = Authority::new("ours", Validity::days(2)).unwrap();
    let mut cluster = Cluster::start_as(3, 1, &Setup { links: Some(&authority), ..Setup::default() });
    let certificates = cluster.certificates.take().expect("its links have some");
    let stranger = Authority::new("theirs", Validity::days(2)).unwrap();
    let issue = |authority: &Authority, name: &str, uri: &str, holder| {
        certificates.issue(authority, &[(name.to_owned(), uri.to_owned())]);
        Mutual::load(certificates.files(name), "test", holder)
    };
    let gateway = issue(&authority, "guest", "gaios://test/gateway/guest", Holder::Gateway).unwrap();
    let node_3 = issue(&authority, "three", "gaios://test/node/3", Holder::Node(3)).unwrap();
    certificates.trust(&[&authority, &stranger]);
    let foreign = issue(&stranger, "foreign", "gaios://test/node/2", Holder::Node(2)).unwrap();
    certificates.trust(&[&authority]);

    let node = &cluster.replicas[0];
    let wrong = |who: &str| format!("{who} says that it is node 2");
    let cases = [
        (Caller::InTheClear, "plain_text", "not_tls".to_owned()),
        (Caller::WithoutCertificate, "no_certificate", "no_certificate".to_owned()),
        (Caller::As(&foreign), "untrusted", "untrusted".to_owned()),
        (Caller::As(&gateway), "wrong_holder", wrong("gaios://test/gateway/guest")),
        (Caller::As(&node_3), "wrong_holder", wrong("gaios://test/node/3")),
    ];
    for (number, (caller, reason, words)) in (1..).zip(cases) {
        let counter = format!("gaios_replica_connections_refused_total{{reason=\"{reason}\"}}");
        let before = metric(node, &counter);
        // From an address of its own: a source is told of once in a while for each reason.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 99, 0, number], 0))).unwrap();
        let mut socket = socket.connect(node.listen).await.unwrap();
        let hello = hello_of_node(2, 1);
        let frame = [&(hello.len() as u32).to_be_bytes()[..], &hello].concat();
        match caller {
            Caller::InTheClear => {
                socket.write_all(&frame).await.unwrap();
                let _ = socket.read_to_end(&mut Vec::new()).await;
            }
            Caller::WithoutCertificate => shake_without_certificate(socket).await,
            Caller::As(certificate) => {
                let (mut stream, _) = certificate.connect(socket).await.unwrap();
                // What comes back is an end, or an alert.
                let _ = stream.write_all(&frame).await;
                let mut said = Vec::new();
                let _ = stream.read_to_end(&mut said).await;
                assert!(said.is_empty(), "{reason}: {said:?}");
            }
        }
        metric_is(node, &counter, before + 1.0);
        let from = format!("127.99.0.{number}:");
        wait_for("a line in the log", || {
            let log = node.log();
            let told =
                log.lines().find(|line| line.contains("refused a connection") && line.contains(&from))?;
            assert!(told.contains("WARN") && told.contains(&words), "{told}");
            Some(())
        });
    }
}
