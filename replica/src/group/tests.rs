//! A group on a node of its own, stepped by hand: its disk and its clock are real, its links have no sockets.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::node::{self, StartError};
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
