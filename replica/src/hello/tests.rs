use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use consensus_core::{Epoch, GroupId, LivenessMessage, Mono, Timing, message};
use journal::{RealDisk, Superblock};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::clock;
use crate::node::Node;
use crate::start::{NodeOptions, StartError};
use crate::testing::{CLUSTER, PATIENCE, metric, one_of, options, take_place};
use crate::wire::{PeerFrame, encode_liveness};

/// The process that lives at a peer's address.
const PROCESS: u64 = 77;

/// What answers at a peer's address. It says that it has heard this incarnation of who asks.
struct Neighbour {
    node: NodeId,
    address: String,
    heard: AtomicU64,
    asked: AtomicU32,
}

impl Neighbour {
    async fn start(node: NodeId) -> Arc<Neighbour> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let neighbour =
            Arc::new(Neighbour { node, address, heard: AtomicU64::new(0), asked: AtomicU32::new(0) });
        let answering = Arc::clone(&neighbour);
        tokio::spawn(async move {
            loop {
                let mut stream = listener.accept().await.unwrap().0;
                let answering = Arc::clone(&answering);
                tokio::spawn(async move {
                    let asked = PeerHello::decode(&read_frame(&mut stream, 1024).await.unwrap()).unwrap();
                    if let Some(answer) = answering.answer(asked) {
                        write_hello(&mut stream, &answer).await.unwrap();
                    }
                });
            }
        });
        neighbour
    }

    fn hello(&self, purpose: Purpose, groups: u64) -> PeerHello {
        let incarnation_heard = self.heard.load(Ordering::Relaxed);
        PeerHello {
            purpose,
            cluster: CLUSTER,
            from: self.node,
            to: NodeId(1),
            incarnation: 5,
            nonce: PROCESS,
            nonce_heard: 0,
            taken: false,
            status: NodeStatus::Placed { known_as: None, incarnation_heard },
            groups,
            knows: crate::wire::Frames::ALL,
            support: Some(Duration::from_millis(350)),
        }
    }

    fn answer(&self, asked: PeerHello) -> Option<PeerHello> {
        if asked.purpose == Purpose::Confirm && asked.nonce_heard != PROCESS {
            return None;
        }
        self.asked.fetch_add(u32::from(asked.purpose == Purpose::Ask), Ordering::Relaxed);
        Some(self.hello(asked.purpose, asked.groups))
    }

    fn has_heard(&self, incarnation: u64) {
        self.heard.store(incarnation, Ordering::Relaxed);
    }
}

async fn start(neighbours: &[Arc<Neighbour>], dir: &Path) -> Result<Node, StartError> {
    let others: Vec<_> =
        neighbours.iter().map(|neighbour| (neighbour.node, neighbour.address.clone())).collect();
    loop {
        match Node::start(options(NodeId(1), &others, dir)).await {
            // The last one's threads let go of it when they end.
            Err(StartError::Journal(journal::Error::Locked { .. })) => tokio::task::yield_now().await,
            started => return started,
        }
    }
}

/// What a caller with this hello is told.
async fn call_with(node: &Node, hello: PeerHello) -> Vec<u8> {
    let mut stream = TcpStream::connect(node.address()).await.unwrap();
    write_hello(&mut stream, &hello).await.unwrap();
    let mut said = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut said)).await.expect("it is ended");
    said
}

fn refused(node: &Node, reason: &str) -> f64 {
    metric(node, &format!("gaios_replica_connections_refused_total{{reason=\"{reason}\"}}"))
}

async fn until(mut happened: impl FnMut() -> bool) {
    let waiting = async {
        while !happened() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, waiting).await.expect("it comes about");
}

#[tokio::test]
async fn a_stranger_in_a_peers_name_learns_nothing_and_changes_nothing() {
    let neighbour = Neighbour::start(NodeId(2)).await;
    let dir = tempfile::tempdir().unwrap();
    take_place(NodeId(1), dir.path());
    let node = start(&[Arc::clone(&neighbour)], dir.path()).await.unwrap();
    let honest = PeerHello { nonce: 78, ..neighbour.hello(Purpose::Link, node.shared.groups_digest) };
    let much = 1 << 40;
    let heard_much = NodeStatus::Placed { known_as: None, incarnation_heard: much };
    let forged = [
        honest,
        PeerHello { status: heard_much, ..honest },
        PeerHello { incarnation: much, ..honest },
        PeerHello { purpose: Purpose::Ask, status: NodeStatus::Newcomer { mark: 1 }, ..honest },
        PeerHello { purpose: Purpose::Snapshot(GroupId(1)), ..honest },
    ];
    for (index, hello) in forged.into_iter().enumerate() {
        assert!(call_with(&node, hello).await.is_empty(), "{hello:?}");
        assert_eq!(refused(&node, "unconfirmed"), index as f64 + 1.0, "{hello:?}");
    }
    // Nor is it told whether it has guessed right.
    let guess = PeerHello { purpose: Purpose::Confirm, nonce_heard: 9, ..honest };
    assert!(call_with(&node, guess).await.is_empty());
    assert_eq!(refused(&node, "not_ours"), 1.0);
    for (hello, reason) in [
        (PeerHello { from: NodeId(9), ..honest }, "stranger"),
        (PeerHello { cluster: 1, ..honest }, "misdirected"),
        (PeerHello { to: NodeId(2), ..honest }, "misdirected"),
    ] {
        assert!(call_with(&node, hello).await.is_empty(), "{hello:?}");
        assert!(refused(&node, reason) >= 1.0, "{reason}");
    }
    assert!(!node.shared.seat.is_aside() && !node.shared.seat.is_revoked());
    assert_eq!(node.shared.liveness.incarnation_heard(NodeId(2)), 0);
    assert_eq!(neighbour.asked.load(Ordering::Relaxed), 0);
    node.stop().await;
    let superblock = Superblock::open(RealDisk::open(dir.path()).unwrap()).unwrap().unwrap();
    assert_eq!((superblock.facts().doubt, superblock.facts().revoked), (None, false));
}

#[tokio::test]
async fn one_peers_word_makes_a_node_step_aside_and_a_majority_revokes_it() {
    let neighbours = [Neighbour::start(NodeId(2)).await, Neighbour::start(NodeId(3)).await];
    let [two, three] = &neighbours;
    let dir = tempfile::tempdir().unwrap();
    take_place(NodeId(1), dir.path());
    let node = start(&neighbours, dir.path()).await.unwrap();
    let groups = node.shared.groups_digest;

    // It was said once, and nobody says so when asked.
    two.has_heard(99);
    let accusation = two.hello(Purpose::Link, groups);
    two.has_heard(0);
    assert!(!call_with(&node, accusation).await.is_empty(), "the call back has told who it is");
    until(|| two.asked.load(Ordering::Relaxed) > 0 && three.asked.load(Ordering::Relaxed) > 0).await;
    timeout(PATIENCE, node.shared.seat.back()).await.expect("it comes back");

    // One peer says so, and goes on saying so.
    two.has_heard(99);
    assert!(!call_with(&node, two.hello(Purpose::Link, groups)).await.is_empty());
    let before = three.asked.load(Ordering::Relaxed);
    until(|| three.asked.load(Ordering::Relaxed) > before + 1).await;
    assert!(node.shared.seat.is_aside() && !node.shared.seat.is_revoked());
    assert!(node.health().check().unwrap_err().contains("takes no part"));
    assert!(call_with(&node, three.hello(Purpose::Link, groups)).await.is_empty(), "no links");
    assert!(refused(&node, "aside") >= 1.0);
    assert!(!call_with(&node, three.hello(Purpose::Ask, groups)).await.is_empty(), "newcomers may need it");
    node.stop().await;

    // A restart is no way out.
    let node = start(&neighbours, dir.path()).await.unwrap();
    assert!(node.shared.seat.is_aside());
    three.has_heard(99);
    until(|| node.shared.seat.is_revoked()).await;
    node.stop().await;
    let again = start(&neighbours, dir.path()).await;
    assert!(matches!(&again, Err(StartError::Config(why)) if why.contains("old copy")), "{again:?}");
}

/// Links as this process of a neighbour, and asks for support. Whether it is given.
async fn is_granted(node: &Node, hello: PeerHello) -> bool {
    let mut stream = TcpStream::connect(node.address()).await.unwrap();
    write_hello(&mut stream, &hello).await.unwrap();
    let welcome = PeerHello::decode(&read_frame(&mut stream, 1024).await.unwrap()).unwrap();
    let heartbeat = LivenessMessage::Heartbeat(message::Heartbeat {
        epoch: Epoch { incarnation: hello.incarnation, count: 1 },
        sent_at: Mono(0),
        receiver_incarnation: welcome.incarnation,
        wants_support: true,
        hears: vec![NodeId(1)],
    });
    let mut body = BytesMut::new();
    encode_liveness(&heartbeat, &mut body);
    write_frame(&mut stream, &body).await.unwrap();
    loop {
        let frame = timeout(PATIENCE, read_frame(&mut stream, 1024)).await.unwrap().unwrap();
        if let PeerFrame::Liveness(LivenessMessage::HeartbeatAck(ack)) = PeerFrame::decode(frame).unwrap() {
            return ack.granted;
        }
    }
}

#[tokio::test]
async fn a_peer_that_does_not_say_how_long_it_supports_is_not_supported() {
    let neighbour = Neighbour::start(NodeId(2)).await;
    let dir = tempfile::tempdir().unwrap();
    take_place(NodeId(1), dir.path());
    let node = start(&[Arc::clone(&neighbour)], dir.path()).await.unwrap();
    let hello = neighbour.hello(Purpose::Link, node.shared.groups_digest);
    let differs = "gaios_replica_peer_support_differs{peer=\"2\"}";
    // As versions before say it.
    assert!(!is_granted(&node, PeerHello { support: None, ..hello }).await);
    assert_eq!(metric(&node, differs), 1.0);
    // The answers of such a peer are taken for what they are worth, too: nothing.
    assert_eq!(node.shared.liveness.read().supported_by(clock::now(), NodeId(2)), None);
    assert!(is_granted(&node, hello).await);
    assert_eq!(metric(&node, differs), 0.0);
    node.stop().await;
}

#[tokio::test]
async fn nodes_that_differ_in_their_support_count_on_what_the_other_gives() {
    let supports = [2000, 350].map(Duration::from_millis);
    let listeners = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let addresses = listeners.each_ref().map(|listener| listener.local_addr().unwrap().to_string());
    let nodes: Vec<_> = [1, 2].map(NodeId).into_iter().zip(addresses).collect();
    let mut started = Vec::new();
    let mut dirs = Vec::new();
    for ((listener, (id, _)), support) in listeners.into_iter().zip(&nodes).zip(supports) {
        let dir = tempfile::tempdir().unwrap();
        take_place(*id, dir.path());
        let options = one_of(nodes.clone(), *id, listener, dir.path());
        let timing = Timing { support, ..options.timing };
        started.push(Node::start(NodeOptions { timing, ..options }).await.unwrap());
        dirs.push(dir);
    }
    // Right after a heartbeat it is nearly all of it.
    let left = |node: &Node, by: u32| {
        let now = clock::now();
        let supported = node.shared.liveness.read().supported_by(now, NodeId(by));
        supported.map_or(Duration::ZERO, |(_, until)| until.since(now))
    };
    let (first, second) = (&started[0], &started[1]);
    until(|| {
        assert!(left(first, 2) < supports[1], "not by its own");
        left(second, 1) > supports[1] * 3 && left(first, 2) > Duration::ZERO
    })
    .await;
    for (node, peer) in [(first, 2), (second, 1)] {
        let differs = format!("gaios_replica_peer_support_differs{{peer=\"{peer}\"}}");
        assert_eq!(metric(node, &differs), 1.0);
    }
    // And the group is led.
    let leads = |node| metric(node, "gaios_group_is_leader{group=\"1\"}") == 1.0;
    until(|| leads(first) || leads(second)).await;
    for node in started {
        node.stop().await;
    }
}

#[tokio::test]
async fn a_node_with_a_shorter_support_waits_for_the_longer_one_of_its_life_before() {
    let dir = tempfile::tempdir().unwrap();
    take_place(NodeId(1), dir.path());
    let start = async |support: Duration| loop {
        let options = options(NodeId(1), &[], dir.path());
        let timing = Timing { support, ..options.timing };
        match Node::start(NodeOptions { timing, ..options }).await {
            // The last one's threads let go of it when they end.
            Err(StartError::Journal(journal::Error::Locked { .. })) => tokio::task::yield_now().await,
            started => return started.unwrap(),
        }
    };
    let (long, short) = (Duration::from_secs(2), Duration::from_millis(350));
    start(long).await.stop().await;
    // The second one ends before it is over, so the third one waits for it, too.
    for _ in 0..2 {
        let begun = clock::now();
        let node = start(short).await;
        assert!(node.shared.liveness.read().quarantine_until() >= begun.after(long));
        node.stop().await;
    }
    let begun = clock::now();
    let node = start(short).await;
    until(|| node.health().check().is_ok()).await;
    assert!(clock::now() >= begun.after(long));
    // It is noted that it is over.
    until(|| node.shared.seat.support() == short).await;
    node.stop().await;
}
