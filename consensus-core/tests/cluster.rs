//! Whole clusters of engines, without faults finer than a transcript shows.

mod harness;

use std::time::Duration;

use bytes::Bytes;
use consensus_core::message::Chosen;
use consensus_core::{Config, Input, Message, NodeId, ReadMode, Role, Slot, Value};
use harness::Cluster;

const MS: Duration = Duration::from_millis(1);

fn nodes(n: u32) -> impl Iterator<Item = NodeId> {
    (1..=n).map(NodeId)
}

#[test]
fn every_size_elects_commits_and_reads() {
    for n in [1, 2, 3, 4, 5, 7] {
        let mut cluster = Cluster::new(Config::majority(nodes(n)));
        let leader = cluster.elect();
        for tag in 0..100 {
            cluster.propose(leader, tag, &format!("c{tag}"));
        }
        cluster.run(MS * 400);
        for tag in 0..100 {
            assert!(cluster.is_committed(&format!("c{tag}")), "n={n} c{tag}");
        }
        let last = cluster.nodes[&leader].applied_upto;
        for id in nodes(n) {
            assert_eq!(cluster.nodes[&id].applied_upto, last, "n={n}: node {} is caught up", id.0);
        }
        assert_eq!(cluster.lease_read(leader), Some(last), "n={n}");
        cluster.read(leader, 1000, ReadMode::Index);
        cluster.run(MS * 10);
        assert!(cluster.nodes[&leader].reads.contains_key(&consensus_core::Tag(1000)), "n={n}");
    }
}

#[test]
fn an_idle_group_has_no_timer_and_sends_nothing() {
    let mut cluster = Cluster::new(Config::majority(nodes(3)));
    let leader = cluster.elect();
    cluster.propose(leader, 1, "x");
    cluster.run(Duration::from_secs(2));
    cluster.trace_messages = true;
    cluster.lines.clear();
    for id in nodes(3) {
        assert_eq!(cluster.engine(id).next_deadline(), None, "node {}", id.0);
    }
    cluster.run(Duration::from_secs(10));
    assert!(cluster.lines.is_empty(), "{:?}", cluster.lines);
    assert_eq!(cluster.leader(), Some(leader));
    assert!(cluster.lease_read(leader) >= Some(Slot(2)));
}

/// The default settings: a new leader serves within about a second of the old one's sudden end.
#[test]
fn failover_takes_about_a_second() {
    let mut times = Vec::new();
    for start in 0..40u32 {
        let mut cluster = Cluster::new(Config::majority(nodes(3)));
        let leader = cluster.elect();
        cluster.run(MS * (1000 + start * 7));
        cluster.crash(leader);
        let died = cluster.now;
        cluster.elect();
        times.push(cluster.now.since(died));
    }
    times.sort();
    println!("failover: median {:?}, worst {:?}", times[20], times[39]);
    assert!(times[20] < MS * 1000 && times[39] < MS * 1600, "median {:?}, worst {:?}", times[20], times[39]);
}

/// A leader that hears of a committed value which only it could commit, or of another than it proposed, is deposed. Would it
/// go on, its followers would take their votes for its own value as committed.
#[test]
fn a_leader_stops_when_somebody_else_commits_at_its_slots() {
    for (value, proposed) in [("other", 1), ("mine", 1), ("mine", 3)] {
        let mut cluster = Cluster::new(Config::majority(nodes(3)));
        let leader = cluster.elect();
        cluster.run(MS * 400);
        cluster.isolate(leader);
        for tag in 0..proposed {
            cluster.propose(leader, tag, "mine");
        }
        let slot = cluster.nodes[&leader].applied_upto.next();
        assert_eq!(cluster.engine(leader).status().role, Role::Leader);
        let value = Value::Batch([Bytes::copy_from_slice(value.as_bytes())].into_iter().collect());
        let from = nodes(3).find(|node| *node != leader).unwrap();
        let message =
            Message::Chosen(Chosen { commit: slot, entries: [(slot, value)].into_iter().collect() });
        cluster.step(leader, Input::Message { from, message });
        let status = cluster.engine(leader).status();
        assert_eq!((status.role, status.commit), (Role::Follower, slot));
    }
}
