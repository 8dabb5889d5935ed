//! A stranger at the nodes' ports, who says whatever comes to mind: bytes by chance, hellos cut and changed, forged ones, and
//! frames after them. Clients are served meanwhile and after.
//!
//! Runs for three seconds, or for as many as `GAIOS_STRANGER_SECONDS` says.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use api::gaios::link::v1 as wire;
use prost::Message as _;
use sim::model;
use tls::make::{Authority, Validity};

use crate::client::Client;
use crate::processes::{Cluster, PATIENCE, Setup};

const SECONDS: u64 = 3;

/// A generator of numbers by chance, good enough for a stranger (splitmix64).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most)).map(|_| self.next() as u8).collect()
    }

    /// A number as attackers like them.
    fn number(&mut self) -> u64 {
        [0, 1, 2, 3, 1 << 40, u64::MAX, u64::MAX / 2, self.next()][self.below(8)]
    }
}

fn frame(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_be_bytes()[..], body].concat()
}

/// The hello of a node, with what it says by chance.
fn peer_hello(chance: &mut Chance, cluster: u64) -> Vec<u8> {
    let mut hello = b"\0gaios-peer\x02".to_vec();
    hello.push(chance.below(5) as u8);
    hello.extend(chance.number().to_le_bytes());
    hello.extend(cluster.to_le_bytes());
    hello.extend((chance.below(5) as u32).to_le_bytes());
    hello.extend((chance.below(5) as u32).to_le_bytes());
    for _ in 0..3 {
        hello.extend(chance.number().to_le_bytes());
    }
    hello.extend([chance.below(2) as u8, chance.below(2) as u8, chance.below(2) as u8]);
    for _ in 0..3 {
        hello.extend(chance.number().to_le_bytes());
    }
    hello
}

/// What the stranger says on one connection.
fn words(chance: &mut Chance, cluster: u64) -> Vec<u8> {
    let mut words = match chance.below(4) {
        0 => chance.bytes(200),
        1 => frame(&chance.bytes(5000)),
        2 => frame(&peer_hello(chance, cluster)),
        _ => {
            let hello = wire::Hello {
                version: chance.below(3) as u32,
                cluster_id: if chance.below(2) == 0 { cluster } else { chance.number() },
                name: String::from_utf8_lossy(&chance.bytes(300)).into_owned(),
                to: chance.below(6) as u32,
                ..Default::default()
            };
            frame(&hello.encode_to_vec())
        }
    };
    // Frames as of a peer: a kind, and something.
    for _ in 0..chance.below(3) {
        let mut body = vec![chance.below(9) as u8];
        body.extend(chance.number().to_le_bytes());
        body.extend(chance.bytes(100));
        words.extend(frame(&body));
    }
    match chance.below(4) {
        0 => words.truncate(chance.below(words.len() + 1)),
        1 if !words.is_empty() => {
            let at = chance.below(words.len());
            words[at] ^= 1 << chance.below(8);
        }
        _ => {}
    }
    words
}

fn bother(node: SocketAddr, cluster: u64, seed: u64, stop: &AtomicBool, said: &AtomicU64) {
    let mut chance = Chance(seed);
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut stream) = TcpStream::connect_timeout(&node, Duration::from_secs(1)) else { continue };
        stream.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        // It may be ended at any time.
        let _ = stream.write_all(&words(&mut chance, cluster));
        let _ = stream.read(&mut [0; 4096]);
        said.fetch_add(1, Ordering::Relaxed);
    }
}

/// FNV-1a of the cluster's name: anybody can know it.
pub(crate) fn cluster_id(name: &str) -> u64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

async fn cluster_is_served(setup: &Setup<'_>, seconds: u64) {
    let mut cluster = Cluster::start_as(3, 1, setup);
    let mut client = Client::connect(&cluster.endpoints()).await.unwrap();
    let (stop, said) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let strangers: Vec<_> = (1..)
        .zip(cluster.replicas.iter().map(|replica| replica.listen))
        .map(|(seed, node)| {
            let (stop, said) = (Arc::clone(&stop), Arc::clone(&said));
            std::thread::spawn(move || bother(node, cluster_id("test"), seed, &stop, &said))
        })
        .collect();
    let begun = Instant::now();
    let (mut puts, mut longest) = (0, Duration::ZERO);
    while begun.elapsed() < Duration::from_secs(seconds) {
        let put = model::PutRequest { key: b"k".to_vec(), value: b"v".to_vec(), ..Default::default() };
        let asked = Instant::now();
        let served = async { while client.put(put.clone()).await.is_none() {} };
        tokio::time::timeout(PATIENCE, served).await.unwrap_or_else(|_| panic!("{}", cluster.logs()));
        longest = longest.max(asked.elapsed());
        puts += 1;
    }
    stop.store(true, Ordering::Relaxed);
    for stranger in strangers {
        stranger.join().unwrap();
    }
    println!(
        "{puts} puts beside {} connections of a stranger; the longest took {longest:?}",
        said.load(Ordering::Relaxed)
    );
    cluster.wait_until_ready();

    // What was said has left nothing behind: they start again as they were.
    for replica in &mut cluster.replicas {
        replica.kill();
        replica.start();
    }
    cluster.wait_until_ready();
    assert!(!cluster.logs().contains("old copy"), "{}", cluster.logs());
}

fn seconds() -> u64 {
    std::env::var("GAIOS_STRANGER_SECONDS").map_or(SECONDS, |text| text.parse().expect("a number of seconds"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_at_the_nodes_ports_keeps_nobody_from_being_served() {
    cluster_is_served(&Setup::default(), seconds()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_at_ports_with_certificates_neither() {
    let authority = Authority::new("ours", Validity::days(2)).unwrap();
    cluster_is_served(&Setup { links: Some(&authority), ..Setup::default() }, seconds()).await;
}
