//! Links with certificates: what they are made of changes under traffic, and nobody notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use api::gaios::link::v1 as wire;
use prost::Message as _;
use rustix::process::Signal;
use sim::model;
use tls::make::{Authority, Use, Validity};
use tls::{Holder, Mutual};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::client::Client;
use crate::processes::issued::members;
use crate::processes::{Cluster, Process, Setup, wait_for};
use crate::stranger::cluster_id;

/// Whether a node welcomes who has these certificates.
async fn is_welcome(cluster: &Cluster, tls: &Mutual) -> bool {
    let socket = TcpStream::connect(cluster.replicas[0].listen).await.unwrap();
    let Ok((mut stream, _)) = tls.connect(socket).await else { return false };
    let cluster_id = cluster_id("test");
    let hello = wire::Hello { version: 1, cluster_id, name: "guest".to_owned(), ..Default::default() }
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
        format!("client_tls: {fields}\n")
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
    issue_server();
    gateway.signal(Signal::HUP);
    metric_is(gateway, &refused("client"), 0.0);
}
