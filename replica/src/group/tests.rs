//! Groups in their tasks, with real disks. What they decide is tested in `group-core`.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Command as Process;

use api::gaios::link::PARTED_REPLIES_MAX;
use api::gaios::link::v1::request::Kind as RequestKind;
use api::gaios::link::v1::response::Kind;
use consensus_core::{Config, GroupId, Message, NodeId, Slot, Value};
use keyspace::{Alarm, AlarmKind, Command, Keyspace, Query, Reply};
use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::node::Node;
use crate::start::{self, StartError};
use crate::testing::{PATIENCE, one_of, options};

/// A request as its gateway would send it.
fn request(link: &Arc<Link>, id: u64, kind: RequestKind) -> GroupEvent {
    GroupEvent::Requests {
        link: Arc::clone(link),
        requests: vec![wire::Request { id, kind: Some(kind), ..Default::default() }],
    }
}

fn open_session() -> RequestKind {
    RequestKind::OpenSession(wire::OpenSession { nonce: Bytes::from_static(&[7; 16]) })
}

#[test]
fn a_large_answer_that_is_taken_back_takes_up_no_room() {
    let link = Link::unconnected();
    let mut links = KnownLinks::default();
    links.take_up(request(&link, 1, RequestKind::Read(wire::Read::default())));
    for id in 0..PARTED_REPLIES_MAX as u64 {
        link.begin_large(id);
    }
    assert!(links.has_room(link.id) && !links.has_room_for_large(link.id));
    links.take_up(request(&link, 3, RequestKind::Cancel(wire::Cancel {})));
    assert!(links.has_room_for_large(link.id));
}

#[tokio::test]
async fn a_node_does_not_start_without_a_group_that_its_journal_knows() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(options(NodeId(1), &[], dir.path())).await.unwrap();
    told_by(std::slice::from_ref(&node), |told| (told[0].applied_slot > 0).then_some(())).await;
    node.stop().await;
    let mut without = options(NodeId(1), &[], dir.path());
    without.groups[0].0 = GroupId(7);
    match start::recover(without) {
        Err(StartError::Config(text)) => assert!(text.contains("groups {1}"), "{text}"),
        other => panic!("{:?}", other.map(|_| "started")),
    }
}

#[tokio::test]
async fn what_is_left_of_an_interrupted_snapshot_goes_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let left = dir.path().join("making-snapshot-left");
    std::fs::write(&left, b"a part").unwrap();
    let _started = start::recover(options(NodeId(1), &[], dir.path())).unwrap();
    assert!(!left.exists());
}

/// Three nodes that have founded their cluster, and which of them leads.
async fn three_nodes(dirs: &[TempDir; 3]) -> (Vec<Node>, usize) {
    let listeners = [(); 3].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let address = |listener: &std::net::TcpListener| listener.local_addr().unwrap().to_string();
    let addresses: Vec<_> = (1..).map(NodeId).zip(listeners.iter().map(address)).collect();
    let mut nodes = Vec::new();
    for ((listener, dir), (id, _)) in listeners.into_iter().zip(dirs).zip(addresses.clone()) {
        nodes.push(Node::start(one_of(addresses.clone(), id, listener, dir.path())).await.unwrap());
    }
    let leader = told_by(&nodes, |told| {
        let leader = told[0].leader;
        (leader != 0 && told.iter().all(|told| told.leader == leader)).then_some(leader)
    })
    .await;
    (nodes, leader as usize - 1)
}

/// What follows from what the replicas of the group tell, once it does.
async fn told_by<T>(nodes: &[Node], follows: impl Fn(&[wire::ReplicaStatus]) -> Option<T>) -> T {
    let all = async {
        loop {
            let told: Option<Vec<_>> = nodes.iter().map(|node| *group_of(node).told.lock()).collect();
            if let Some(result) = told.and_then(|told| follows(&told)) {
                return result;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, all).await.expect("it comes about")
}

fn group_of(node: &Node) -> Arc<GroupHandle> {
    Arc::clone(node.shared.groups.all().values().next().expect("there is one"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_was_told_something_else_is_named_and_writes_are_refused() {
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let (nodes, leader) = three_nodes(&dirs).await;
    let victim = (leader + 1) % 3;
    // Once all have applied the same, somebody speaks in the name of the leader to one of them.
    let slot = told_by(&nodes, |told| {
        let slot = told[leader].commit_slot;
        (slot >= 2 && told.iter().all(|told| told.applied_slot == slot)).then_some(Slot(slot + 1))
    })
    .await;
    let mut forged = BytesMut::new();
    Command::OpenSession { nonce: 666 }.encode(&mut forged);
    let forged = Value::Batch([forged.freeze()].into_iter().collect());
    let message = Message::Chosen(consensus_core::message::Chosen {
        commit: slot,
        entries: [(slot, forged)].into_iter().collect(),
    });
    let from = nodes[leader].shared.id;
    group_of(&nodes[victim]).inbox.push_always(GroupEvent::Other(Event::Peer { from, message }));
    told_by(&nodes, |told| (told[victim].applied_slot >= slot.0).then_some(())).await;

    let link = Link::unconnected();
    group_of(&nodes[leader]).inbox.push_always(request(&link, 1, open_session()));
    told_by(&nodes, |told| told.iter().all(|told| told.corrupt_alarm).then_some(())).await;
    let alarms = async {
        let asked = {
            let mut encoded = BytesMut::new();
            Query::Alarms.encode(&mut encoded);
            RequestKind::Read(wire::Read { query: encoded.freeze(), serializable: true, at_least: 0 })
        };
        group_of(&nodes[leader]).inbox.push_always(request(&link, 9, asked));
        loop {
            let answers = link.take_sent().into_iter();
            if let Some(Kind::Reply(reply)) = answers.filter(|answer| answer.id == 9).find_map(|a| a.kind) {
                return keyspace::decode_outcome(reply).unwrap().unwrap();
            }
            tokio::task::yield_now().await;
        }
    };
    let Reply::Alarms { alarms, .. } = timeout(PATIENCE, alarms).await.unwrap() else {
        panic!("other alarms")
    };
    let named = Alarm { member: u64::from(nodes[victim].shared.id.0), kind: AlarmKind::Corrupt };
    assert_eq!(alarms, [named]);
    for node in nodes {
        node.stop().await;
    }
}

/// Set for the process that is to end.
const CHILD: &str = "GAIOS_TEST_A_GROUP_PANICS";

#[tokio::test]
async fn a_node_ends_with_its_group() {
    if std::env::var_os(CHILD).is_some() {
        return start_a_group_that_panics().await;
    }
    let child = Process::new(std::env::current_exe().unwrap())
        .args(["--exact", "group::tests::a_node_ends_with_its_group"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert_eq!(child.status.signal(), Some(6), "SIGABRT: {child:?}");
}

/// A state that is ahead of its slot. Snapshots are checked where they come in, so by design the group panics.
async fn start_a_group_that_panics() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(options(NodeId(1), &[], dir.path())).await.unwrap();
    let mut state = Keyspace::new(keyspace::Options::default());
    state.skip(u64::MAX);
    let config = Arc::new(Config::majority([NodeId(1)]));
    let group = group_of(&node);
    let (slot, state) = (Slot(1 << 32), Box::new(state));
    group.inbox.push_always(GroupEvent::Other(Event::SnapshotReceived { slot, config, state }));
    timeout(PATIENCE, std::future::pending::<()>()).await.expect_err("nothing else happens");
    node.stop().await;
}
