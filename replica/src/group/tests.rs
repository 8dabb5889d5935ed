//! A group on a node of its own, stepped by hand: its disk and its clock are real, its links have no sockets.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::os::unix::process::ExitStatusExt as _;
use std::panic::AssertUnwindSafe;
use std::process::Command as Process;

use futures::FutureExt as _;
use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::node::{self, Node, StartError};
use crate::testing::{PATIENCE, options};

struct Rig {
    group: Group,
    _dir: TempDir,
}

impl Rig {
    /// The one replica of its group, which leads.
    async fn leader() -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let (shared, mut starts) = node::recover(options(NodeId(1), &[], dir.path())).unwrap();
        let (handle, start) = starts.remove(0);
        let mut rig = Rig { group: Group::new(shared, handle, start), _dir: dir };
        rig.until("it leads", |group| group.leading && group.state.limits() == group.shared.limits).await;
        rig
    }

    /// One turn with these events.
    fn turn(&mut self, events: impl IntoIterator<Item = GroupEvent>) {
        self.group.turn(&mut events.into_iter().collect());
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

#[test]
fn who_does_not_lead_names_no_other_reason() {
    let (leads, full, crowded) = (true, true, true);
    assert_eq!(unwritable(!leads, false, full, crowded), Some(Why::NotLeader));
    assert_eq!(unwritable(leads, false, full, crowded), Some(Why::NoDisk));
    assert_eq!(unwritable(leads, false, !full, crowded), Some(Why::Overloaded));
    assert_eq!(unwritable(leads, false, !full, !crowded), None);
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
    let Rig { group, _dir: dir } = rig;
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

/// Set for the process that is to end.
const CHILD: &str = "GAIOS_TEST_A_GROUP_PANICS";

#[tokio::test]
async fn a_node_ends_with_its_group() {
    if std::env::var_os(CHILD).is_some() {
        return start_with_an_unreadable_entry().await;
    }
    let child = Process::new(std::env::current_exe().unwrap())
        .args(["--exact", "group::tests::a_node_ends_with_its_group"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert_eq!(child.status.signal(), Some(6), "SIGABRT: {child:?}");
}

/// An entry of a newer version: by design, the group panics.
async fn start_with_an_unreadable_entry() {
    let mut rig = Rig::leader().await;
    rig.group.step(Input::Propose { tag: Tag(u64::MAX), command: Bytes::from_static(b"unreadable") });
    let committed = AssertUnwindSafe(rig.until("it is applied", |_| false)).catch_unwind().await;
    assert!(committed.is_err(), "the rig panics, as it holds no guard");
    let Rig { group, _dir: dir } = rig;
    drop(group);
    let node = Node::start(options(NodeId(1), &[], dir.path())).await.unwrap();
    timeout(PATIENCE, std::future::pending::<()>()).await.expect_err("nothing else happens");
    node.stop().await;
}
