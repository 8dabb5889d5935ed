//! Random faults on the small cluster: a first net, finer in time than it is wide. The simulation proper is `sim/`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Cluster, Damage};
use consensus_core::{Config, Input, NodeId, ReadMode, ReadOutcome, Slot, Tag};

const MS: Duration = Duration::from_millis(1);

/// Splitmix64, so that a seed names a run.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What must hold of reads: they see everything that was externalised before they were asked.
struct Oracle {
    asked: BTreeMap<(NodeId, Tag), Slot>,
}

impl Oracle {
    fn externalised(cluster: &Cluster) -> Slot {
        cluster.committed.keys().last().copied().unwrap_or_default()
    }

    fn check(&mut self, cluster: &mut Cluster, seed: u64) {
        let newest = Self::externalised(cluster);
        for id in cluster.nodes.keys().copied().collect::<Vec<_>>() {
            if !cluster.nodes[&id].paused
                && cluster.nodes[&id].engine.is_some()
                && let Some(slot) = cluster.lease_read(id)
            {
                assert!(slot >= newest, "I12: seed {seed}: lease read at {} behind {}", slot.0, newest.0);
            }
            let reads = std::mem::take(&mut cluster.node(id).reads);
            for (tag, outcome) in reads {
                let asked = self.asked.remove(&(id, tag)).expect("only what was asked is answered");
                if let ReadOutcome::At(slot) = outcome {
                    assert!(slot >= asked, "seed {seed}: index read at {} behind {}", slot.0, asked.0);
                }
            }
        }
    }
}

/// One run. Panics with the name of the invariant that broke.
pub fn run(seed: u64, prepare: impl FnOnce(&mut Cluster)) {
    let mut rng = Rng(seed);
    let n = [1, 2, 3, 3, 3, 4, 5, 5][rng.below(8) as usize];
    let mut config = Config::majority((1..=n).map(NodeId));
    if n == 4 && rng.chance(50) {
        config = config.with_quorums(3, 2, None);
    }
    if n == 5 && rng.chance(30) {
        config = config.with_quorums(4, 2, None);
    }
    let mut cluster = Cluster::with(config, |options| {
        options.retain_slots = 20;
        options.inflight_slots_max = 8;
    });
    prepare(&mut cluster);
    cluster.trace_messages = std::env::var_os("CHAOS_TRACE").is_some();
    let mut oracle = Oracle { asked: BTreeMap::new() };
    let loss = [0, 0, 2, 20][rng.below(4) as usize];
    let reorder = rng.chance(50);
    // With fewer than three voters nobody could make up for it.
    let damage = n > 2 && rng.chance(40);
    let mut damaged = None;
    let mut tag = 0;
    for _ in 0..400 {
        let id = NodeId(1 + rng.below(u64::from(n)) as u32);
        let other = NodeId(1 + rng.below(u64::from(n)) as u32);
        let alive = cluster.nodes[&id].engine.is_some() && !cluster.nodes[&id].paused;
        match rng.below(100) {
            0..=39 if alive => {
                for _ in 0..=rng.below(5) {
                    tag += 1;
                    cluster.propose(id, tag, &format!("c{tag}"));
                }
            }
            40..=44 if alive => {
                tag += 1;
                oracle.asked.insert((id, Tag(tag)), Oracle::externalised(&cluster));
                cluster.read(id, tag, if rng.chance(50) { ReadMode::Index } else { ReadMode::Lease });
            }
            45..=47 => cluster.crash(id),
            48..=59 if cluster.nodes[&id].engine.is_none() => {
                if damage && damaged.is_none_or(|node| node == id) && rng.chance(50) {
                    damaged = Some(id);
                    let slot = Slot(1 + rng.below(Oracle::externalised(&cluster).0 + 3));
                    let kind = match rng.below(3) {
                        0 => Damage::Payload(slot),
                        1 => Damage::Lost(slot),
                        _ => Damage::Tail(1 + rng.below(6) as usize),
                    };
                    cluster.node(id).damage.push(kind);
                }
                cluster.start(id);
            }
            60..=62 => cluster.isolate(id),
            63..=65 => {
                cluster.cut.insert((id, other));
            }
            66..=69 => cluster.heal(),
            70..=71 => cluster.pause(id),
            72..=79 if cluster.nodes[&id].paused => cluster.resume(id),
            80..=82 => cluster.node(id).disk_stalled = true,
            83..=88 if cluster.nodes[&id].disk_stalled => {
                if rng.chance(50) {
                    let count = rng.below(4) as usize;
                    cluster.persist_some(id, count);
                } else {
                    cluster.node(id).disk_stalled = false;
                    cluster.persist_some(id, usize::MAX);
                }
            }
            89..=90 if alive => cluster.snapshot(id),
            91..=92 if alive => cluster.step(id, Input::Transfer { to: other }),
            93 if alive && other != id => cluster.disconnect(id, other),
            _ => {
                for flight in std::mem::take(&mut cluster.network) {
                    if rng.chance(loss) {
                        continue;
                    }
                    if rng.chance(loss) {
                        cluster.network.push_back(flight.clone());
                    }
                    if reorder && rng.chance(20) {
                        let mut late = flight.clone();
                        late.arrives = late.arrives.after(MS * rng.below(300) as u32);
                        cluster.network.push_back(late);
                    } else {
                        cluster.network.push_back(flight);
                    }
                }
            }
        }
        cluster.serve_snapshots();
        let long = rng.chance(10);
        cluster.run(Duration::from_micros(rng.below(if long { 900_000 } else { 30_000 })));
        oracle.check(&mut cluster, seed);
    }
    // I21: once the faults stop, somebody leads, everybody catches up, and writes and reads work.
    cluster.heal();
    for id in cluster.nodes.keys().copied().collect::<Vec<_>>() {
        if cluster.nodes[&id].engine.is_none() {
            cluster.start(id);
        }
        if cluster.nodes[&id].paused {
            cluster.resume(id);
        }
        cluster.node(id).disk_stalled = false;
        cluster.persist_some(id, usize::MAX);
    }
    cluster.trace_messages = true;
    for _ in 0..100 {
        cluster.run(MS * 100);
        cluster.serve_snapshots();
    }
    oracle.check(&mut cluster, seed);
    let leader = cluster.leader().unwrap_or_else(|| {
        let states: Vec<_> = cluster.nodes.values().map(|node| cluster.engine(node.id).status()).collect();
        let last = &cluster.lines[cluster.lines.len().saturating_sub(60)..];
        panic!("I21: seed {seed}: nobody leads: {last:#?} {states:?}")
    });
    cluster.propose(leader, u64::MAX, "last");
    cluster.run(MS * 500);
    assert!(cluster.is_committed("last"), "I21: seed {seed}");
    let last = cluster.nodes[&leader].applied_upto;
    assert!(cluster.lease_read(leader) >= Some(last), "I21: seed {seed}: no lease");
    for node in cluster.nodes.values() {
        let lines = &cluster.lines[cluster.lines.len().saturating_sub(60)..];
        assert_eq!(node.applied_upto, last, "I21: seed {seed}: node {} is behind {lines:#?}", node.id.0);
        assert_eq!(cluster.engine(node.id).status().faulty_from, None, "seed {seed}: node {}", node.id.0);
    }
}
