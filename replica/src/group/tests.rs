//! A group on a node of its own, stepped by hand: its disk and its clock are real, its links have no sockets.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Command as Process;

use api::gaios::link::v1::request::Kind as RequestKind;
use consensus_core::GroupId;
use keyspace::{LeaseId, Query, SessionId};
use tempfile::TempDir;
use tokio::time::timeout;

use super::clients::Enrolled;
use super::*;
use crate::disk_watch::DiskNews;
use crate::link::Link;
use crate::node::{self, Node, Recovered, StartError};
use crate::testing::{PATIENCE, one_of, options};

struct Rig {
    group: Group,
    dir: Arc<TempDir>,
}

impl Rig {
    /// The one replica of its group, which leads.
    async fn leader() -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let Recovered { shared, mut starts, .. } =
            node::recover(options(NodeId(1), &[], dir.path())).unwrap();
        let (handle, start) = starts.remove(0);
        let mut rig = Rig { group: Group::new(shared, handle, start), dir: Arc::new(dir) };
        rig.until("it leads", |group| group.leading && group.state.limits() == group.shared.limits).await;
        rig
    }

    /// One turn with these events.
    fn turn(&mut self, events: impl IntoIterator<Item = GroupEvent>) {
        self.group.turn(&mut events.into_iter().collect());
    }

    /// Writes through a session of the rig's own.
    async fn write(&mut self, op: keyspace::Op) {
        let link = Link::unconnected();
        self.turn([request(&link, 1, open_session())]);
        let opened = self.answer(&link).await;
        let Kind::SessionOpened(opened) = opened else { panic!("{opened:?}") };
        let (session, seq) = (SessionId(opened.session), self.group.applied.0);
        let command = encode(&Command::Write { session, seq, ack_upto: seq - 1, op });
        self.turn([request(&link, 2, RequestKind::Write(wire::Write { session: session.0, seq, command }))]);
        let reply = self.answer(&link).await;
        assert!(matches!(reply, Kind::Reply(_)), "{reply:?}");
    }

    /// The next answer on a link.
    async fn answer(&mut self, link: &Link) -> Kind {
        let answers = std::cell::RefCell::new(Vec::new());
        self.until("there is an answer", |_| {
            answers.borrow_mut().extend(link.take_sent());
            !answers.borrow().is_empty()
        })
        .await;
        answers.into_inner().remove(0).kind.unwrap()
    }

    /// Turns until it is so.
    async fn until(&mut self, what: &str, holds: impl Fn(&mut Group) -> bool) {
        let all = async {
            let mut events = Vec::new();
            self.group.turn(&mut events);
            while !holds(&mut self.group) {
                if !self.group.has_work() {
                    self.group.wait().await;
                }
                self.group.handle.inbox.take(&mut events);
                self.group.turn(&mut events);
            }
        };
        assert!(timeout(PATIENCE, all).await.is_ok(), "waited {PATIENCE:?} until {what}");
    }
}

/// A request as its gateway would send it.
fn request(link: &Arc<Link>, id: u64, kind: RequestKind) -> GroupEvent {
    GroupEvent::Requests { link: Arc::clone(link), requests: vec![wire::Request { id, kind: Some(kind) }] }
}

fn open_session() -> RequestKind {
    RequestKind::OpenSession(wire::OpenSession { nonce: Bytes::from_static(&[7; 16]) })
}

/// Why each request was refused that was.
fn refusals(link: &Link) -> Vec<(u64, Why, u32)> {
    let responses = link.take_sent().into_iter();
    responses
        .filter_map(|response| match response.kind {
            Some(Kind::Refused(refused)) => Some((response.id, refused.why(), refused.leader)),
            _ => None,
        })
        .collect()
}

fn put(key: &'static str, value: Vec<u8>) -> keyspace::Op {
    keyspace::Op::Put(keyspace::Put::new(key, value))
}

fn range(key: &'static str, serializable: bool, at_least: i64) -> RequestKind {
    let query = Query::Range(keyspace::RangeRequest::new(keyspace::KeyRange::single(key)));
    let mut encoded = BytesMut::new();
    query.encode(&mut encoded);
    RequestKind::Read(wire::Read { query: encoded.freeze(), serializable, at_least })
}

#[tokio::test]
async fn large_answers_wait_until_their_gateway_takes_them_and_hold_up_nobody() {
    let mut rig = Rig::leader().await;
    rig.write(put("large", vec![0; 5 << 20])).await;
    rig.write(put("small", vec![0; 5])).await;
    let (greedy, modest) = (Link::unconnected(), Link::unconnected());
    rig.turn((1..=10).map(|id| request(&greedy, id, range("large", id % 2 == 0, 0))));
    rig.turn([request(&modest, 1, range("small", false, 0))]);
    assert_eq!(modest.take_sent().len(), 1);
    rig.until("two large answers fill the room", |group| !greedy.has_room() && !group.queries.has_next())
        .await;
    let mut answered = 0;
    while answered < 10 {
        rig.until("there is room or work", |_| !greedy.is_encoding()).await;
        let taken = greedy.take_sent().len();
        assert!(taken <= 2, "{taken} at once");
        answered += taken;
        rig.turn([GroupEvent::LinkDrained]);
    }
}

#[tokio::test]
async fn a_serializable_read_waits_for_what_its_gateway_has_shown() {
    let mut rig = Rig::leader().await;
    rig.write(put("a", Vec::new())).await;
    let link = Link::unconnected();
    let next = rig.group.state.revision().0 + 1;
    rig.turn([request(&link, 1, range("a", true, next))]);
    assert!(link.take_sent().is_empty());
    rig.write(put("a", Vec::new())).await;
    let revision = |answer| {
        let Kind::Reply(reply) = answer else { panic!("{answer:?}") };
        keyspace::decode_outcome(reply).unwrap().unwrap().revision().0
    };
    assert_eq!(revision(rig.answer(&link).await), next);
    // Not for ever: what is not here may be lost with those who had it.
    rig.turn([request(&link, 2, range("a", true, i64::MAX))]);
    assert_eq!(revision(rig.answer(&link).await), next);
}

#[tokio::test]
async fn an_idle_group_lets_go_of_the_journal() {
    let mut rig = Rig::leader().await;
    rig.turn([GroupEvent::SnapshotWanted { floor: Lsn(u64::MAX) }]);
    rig.until("there is a snapshot of everything", |group| {
        group.snapshotting.newest() == Some(group.applied) && group.positions.is_base_at(Lsn(u64::MAX))
    })
    .await;
    let pinned = rig.group.positions.floor().unwrap();

    // Another group writes.
    let record = journal::Record { label: Bytes::from_static(b"theirs"), payload: Vec::new() };
    let batch = journal::Batch { group: 2, ticket: Ticket(1), records: vec![record; 1000] };
    rig.group.shared.journal.append(batch).unwrap();
    let wanted = || GroupEvent::SnapshotWanted { floor: pinned };
    rig.turn([wanted(), wanted()]);
    rig.until("its floor has risen past them", |group| group.positions.floor() > Some(Lsn(pinned.0 + 1000)))
        .await;

    // What the journal said before it knew changes nothing more.
    let floor = rig.group.positions.floor();
    rig.turn([wanted()]);
    assert!(rig.group.positions.is_base_at(floor.unwrap()), "no other base is on its way");
}

#[tokio::test]
async fn a_node_does_not_start_without_a_group_that_its_journal_knows() {
    let rig = Rig::leader().await;
    let Rig { group, dir } = rig;
    drop(group);
    let mut without = options(NodeId(1), &[], dir.path());
    without.groups[0].0 = GroupId(7);
    match node::recover(without) {
        Err(StartError::Config(text)) => assert!(text.contains("groups {1}"), "{text}"),
        other => panic!("{:?}", other.map(|_| "started")),
    }
}

#[tokio::test]
async fn a_replica_whose_disk_failed_sends_its_gateways_away() {
    let mut rig = Rig::leader().await;
    let link = Link::unconnected();
    rig.turn([GroupEvent::PersistFailed, request(&link, 1, open_session())]);
    rig.turn([request(&link, 2, open_session())]);
    assert_eq!(refusals(&link)[1..], [(2, Why::NotLeader, 0)]);
    // Also when it is the engine that says so.
    let tag = match rig
        .group
        .clients
        .enrol(Subject::OpenSession(9), Waiter { link: Arc::clone(&link), request: 3 })
    {
        Enrolled::Propose(tag) => tag,
        Enrolled::UnderWay => unreachable!("it is the first"),
    };
    rig.group.on_rejected(tag, Rejection::Fenced);
    rig.turn([]);
    assert_eq!(refusals(&link), [(3, Why::NotLeader, 0)]);
}

#[tokio::test]
async fn a_leader_whose_disk_hangs_steps_down() {
    for news in [DiskNews::Nothing, DiskNews::Failed] {
        let mut rig = Rig::leader().await;
        let shared = Arc::clone(&rig.group.shared);
        let ticking = tokio::spawn(async move {
            let mut heartbeat = tokio::time::interval(shared.timing.heartbeat);
            loop {
                heartbeat.tick().await;
                shared.tick(news);
            }
        });
        rig.until("it steps down", |group| !group.elected).await;
        ticking.abort();
        let link = Link::unconnected();
        rig.group.on_request(&link, wire::Request { id: 1, kind: Some(open_session()) });
        rig.group.replies.flush();
        assert_eq!(refusals(&link), [(1, Why::NotLeader, 0)]);
    }
}

#[tokio::test]
async fn what_is_left_of_an_interrupted_snapshot_goes_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let left = dir.path().join("making-snapshot-left");
    std::fs::write(&left, b"a part").unwrap();
    let _started = node::recover(options(NodeId(1), &[], dir.path())).unwrap();
    assert!(!left.exists());
}

#[tokio::test]
async fn a_snapshot_whose_file_is_gone_is_taken_again() {
    let mut rig = Rig::leader().await;
    rig.group.snapshotting.want();
    rig.until("there is a snapshot", |group| group.snapshotting.newest().is_some()).await;
    let slot = rig.group.snapshotting.newest().unwrap();
    let dir = Arc::clone(&rig.dir);
    let file = || {
        let files = std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().path());
        files.filter(|path| path.to_string_lossy().contains("snapshot-")).collect::<Vec<_>>()
    };
    let lost = file();
    std::fs::remove_file(&lost[0]).unwrap();
    rig.turn([GroupEvent::SnapshotLost { slot }]);
    rig.until("there is one again", |group| group.snapshotting.newest().is_some()).await;
    assert_eq!(file().len(), lost.len());
}

#[tokio::test]
async fn a_link_that_closes_takes_its_questions_along() {
    let mut rig = Rig::leader().await;
    let link = Link::unconnected();
    let open = wire::WatchOpen { key: Bytes::from_static(b"k"), ..Default::default() };
    let waiter = Waiter { link: Arc::clone(&link), request: 1 };
    // Asked for in the same turn, while there was no lease.
    rig.group.asking.push(PendingRead { waiter, reading: Reading::WatchOpen(open) });
    rig.turn([GroupEvent::LinkClosed(link.id)]);
    rig.turn([]);
    assert_eq!(rig.group.watches.len(), 0);
}

/// As after a failover: what a watch was not sent meanwhile is compacted when it arrives.
#[tokio::test]
async fn a_watch_that_was_in_step_elsewhere_goes_on_although_its_place_is_compacted() {
    let mut rig = Rig::leader().await;
    for key in ["a", "b", "a"] {
        rig.write(put(key, vec![0])).await;
    }
    rig.write(keyspace::Op::Compact { revision: 4 }).await;
    let watch = |link: &Arc<Link>, linearizable| {
        let open = wire::WatchOpen {
            key: Bytes::from_static(b"a"),
            start_revision: 2,
            credit: 1 << 20,
            linearizable,
            ..Default::default()
        };
        request(link, 1, RequestKind::WatchOpen(open))
    };
    let (moved, new) = (Link::unconnected(), Link::unconnected());
    rig.turn([watch(&moved, false), watch(&new, true)]);
    let (mut of_moved, mut of_new) = (Vec::new(), Vec::new());
    while of_moved.len() < 2 || of_new.len() < 2 {
        rig.turn([]);
        of_moved.extend(moved.take_sent());
        of_new.extend(new.take_sent());
        tokio::task::yield_now().await;
    }
    let Some(Kind::WatchEvents(events)) = of_moved.remove(1).kind else { panic!("{of_moved:?}") };
    let revisions = keyspace::RevisionEvents::decode_all(events.revisions).unwrap();
    assert_eq!(revisions.iter().map(|events| events.revision.0).collect::<Vec<_>>(), [2, 4]);
    // A watch that begins in the past is what compaction is there to end.
    let Some(Kind::WatchCanceled(canceled)) = of_new.remove(1).kind else { panic!("{of_new:?}") };
    assert_eq!(canceled.compact_revision, 4);
}

fn keep_alive(leases: &[i64]) -> RequestKind {
    RequestKind::KeepAlive(wire::KeepAlive { leases: leases.to_vec() })
}

#[tokio::test]
async fn a_keep_alive_is_answered_once_the_log_holds_no_shorter_time() {
    let mut rig = Rig::leader().await;
    let lease = LeaseId(7);
    rig.write(keyspace::Op::LeaseGrant { id: lease, ttl: 1000 }).await;
    let in_log = |group: &Group| group.state.lease(lease).unwrap().remaining_s;
    rig.group.propose_internal(&Command::CheckpointLeases(vec![(lease, 700)]));
    rig.until("there is a checkpoint", |group| in_log(group) == 700).await;
    let leases = rig.group.state.leases().map(|lease| (lease.id, lease.granted_ttl_s, lease.remaining_s));
    rig.group.leases.start(clock::now(), Duration::ZERO, leases);

    let link = Link::unconnected();
    // Also when there is no room for the reset at first.
    rig.turn([request(&link, 1, keep_alive(&[7]))]);
    assert_eq!(link.take_sent(), []);
    rig.group.on_rejected(Tag(u64::MAX), Rejection::Overloaded);
    let answer = rig.answer(&link).await;
    assert_eq!(in_log(&rig.group), 1000);
    let Kind::KeptAlive(kept) = answer else { panic!("{answer:?}") };
    assert_eq!(kept.leases, [wire::KeptLease { id: 7, ttl: 1000 }]);

    // From then on nothing needs to be written.
    rig.turn([request(&link, 2, keep_alive(&[7]))]);
    assert_eq!(link.take_sent().len(), 1);
}

#[tokio::test]
async fn a_lease_that_has_ended_holds_up_no_other() {
    let mut rig = Rig::leader().await;
    for id in [7, 8] {
        rig.write(keyspace::Op::LeaseGrant { id: LeaseId(id), ttl: 60 }).await;
    }
    let now = clock::now();
    let ago = |seconds: u64| Mono(now.0.saturating_sub(seconds * 1_000_000_000));
    rig.group.leases.granted(ago(61), LeaseId(7), 60);
    rig.group.leases.granted(ago(30), LeaseId(8), 60);
    let link = Link::unconnected();
    // The end of the first is proposed in this turn, and not applied yet.
    rig.turn([request(&link, 1, keep_alive(&[7, 8]))]);
    assert_eq!(link.take_sent(), []);
    assert!(rig.group.leases.remaining(now, LeaseId(8)) >= Some(60));
    // Had it been refused, it would be proposed again soon.
    rig.group.on_rejected(Tag(u64::MAX), Rejection::Overloaded);
    assert!(rig.group.deadline() <= Some(clock::now().after(PROPOSE_AGAIN_AFTER)));
    let answer = rig.answer(&link).await;
    let Kind::KeptAlive(kept) = answer else { panic!("{answer:?}") };
    let expected = [wire::KeptLease { id: 7, ttl: 0 }, wire::KeptLease { id: 8, ttl: 60 }];
    assert_eq!(kept.leases, expected);
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
    Arc::clone(node.shared.groups().next().expect("there is one"))
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
    let forged = Value::Batch([encode(&Command::OpenSession { nonce: 666 })].into_iter().collect());
    let message = Message::Chosen(consensus_core::message::Chosen {
        commit: slot,
        entries: [(slot, forged)].into_iter().collect(),
    });
    let from = nodes[leader].shared.id;
    group_of(&nodes[victim]).inbox.push_always(GroupEvent::Peer { from, message });
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
    let group = node.shared.groups().next().expect("it has one");
    let (slot, state) = (Slot(1 << 32), Box::new(state));
    group.inbox.push_always(GroupEvent::SnapshotReceived { slot, config, state });
    timeout(PATIENCE, std::future::pending::<()>()).await.expect_err("nothing else happens");
    node.stop().await;
}
