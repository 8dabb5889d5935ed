//! What a seed simulates: the cluster, the load and the faults. Every fault class is on or off by the toss of a coin
//! (swarm testing: Groce et al., ISSTA 2012), so that some runs concentrate on few kinds of trouble; one run in eight
//! has none at all.

use std::fmt;
use std::time::Duration;

use consensus_core::{Config, NodeId, Timing};
use group_core::{ApplyShare, QueryShare};
use keyspace::WriteBounds;

use super::clock::{MICRO, MILLI, SECOND, Time};
use super::net::Quality;
use super::rng::Rng;

/// A kind of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    Kill,
    PowerCut,
    AllPowerCut,
    Leader,
    /// The leader is stopped for longer than its leases, and cut off from some of the others for longer still.
    Depose,
    /// The leader is cut off while all others restart, and forget whom they granted leases.
    Amnesia,
    Symmetric,
    Asymmetric,
    Bridge,
    ReceiveOnly,
    Link,
    Clog,
    Disconnect,
    Pause,
    StallBeforeStep,
    StallBeforeSend,
    DiskStall,
    SyncError,
    WriteError,
    DiskFull,
    Damage,
    /// A node loses its whole disk.
    Empty,
    Transfer,
    /// A leader's node stops in order: it gives its leases back and hands over, and ends soon after.
    Retire,
    Snapshot,
}

impl Fault {
    pub(crate) const ALL: [Fault; 25] = [
        Fault::Kill,
        Fault::PowerCut,
        Fault::AllPowerCut,
        Fault::Leader,
        Fault::Depose,
        Fault::Amnesia,
        Fault::Symmetric,
        Fault::Asymmetric,
        Fault::Bridge,
        Fault::ReceiveOnly,
        Fault::Link,
        Fault::Clog,
        Fault::Disconnect,
        Fault::Pause,
        Fault::StallBeforeStep,
        Fault::StallBeforeSend,
        Fault::DiskStall,
        Fault::SyncError,
        Fault::WriteError,
        Fault::DiskFull,
        Fault::Damage,
        Fault::Empty,
        Fault::Transfer,
        Fault::Retire,
        Fault::Snapshot,
    ];
}

/// Everything a seed decides before the run begins.
#[derive(Clone, Debug)]
pub(crate) struct Profile {
    pub(crate) nodes: usize,
    /// The configuration of each group.
    pub(crate) groups: Vec<Config>,
    pub(crate) timing: Timing,
    pub(crate) rates_ppm: Vec<i64>,
    pub(crate) faults: Vec<Fault>,
    /// Mean time between two faults.
    pub(crate) fault_every: Time,
    /// When the faults stop.
    pub(crate) heal_at: Time,
    pub(crate) quality: Quality,
    pub(crate) clients: u32,
    pub(crate) operations: u64,
    pub(crate) read_ppm: u64,
    pub(crate) padding: usize,
    /// Mean time from flush to sync.
    pub(crate) sync_latency: Time,
    pub(crate) segment_bytes: u64,
    pub(crate) spare_segments: usize,
    pub(crate) snapshot_bytes: usize,
    pub(crate) retain_slots: u64,
    pub(crate) inflight_slots: u64,
    pub(crate) queue_bytes: usize,
    /// How often a group lets inputs gather before it takes them up together.
    pub(crate) gather_ppm: u64,
    /// Often such that a transaction over a few keys passes them.
    pub(crate) write_bounds: WriteBounds,
    /// How queries share a group's task; often so that ranges of a few keys take several turns.
    pub(crate) queries: QueryShare,
    /// How much a group applies in a turn; often less than one command costs.
    pub(crate) apply: ApplyShare,
    pub(crate) gateways: usize,
    /// Clients of gateways, what they ask for in all, and those that watch.
    pub(crate) callers: u32,
    pub(crate) calls: u64,
    pub(crate) listeners: u64,
    /// Bytes of events after which a message for a watch ends.
    pub(crate) watch_part_bytes: usize,
    /// Nodes whose disk may lose what was synced, as bits: so few that every quorum's overlap survives.
    pub(crate) damageable: u32,
}

impl Profile {
    pub(crate) fn draw(rng: &mut Rng) -> Profile {
        let nodes = rng.pick(&[1, 3, 3, 3, 4, 5, 5, 7]);
        let groups: Vec<Config> =
            (0..rng.pick(&[1, 1, 1, 2, 2, 3, 4, 8])).map(|_| Profile::draw_group(rng, nodes)).collect();
        let calm = rng.chance(125_000);
        let faults: Vec<Fault> = Fault::ALL
            .into_iter()
            .filter(|fault| !calm && rng.flip() && (nodes > 1 || !needs_peers(*fault)))
            .collect();
        let lossy = !calm && rng.flip();
        let wide = rng.chance(150_000);
        let quality = Quality {
            loss_ppm: if lossy { rng.pick(&[0, 10_000, 50_000, 150_000, 300_000]) } else { 0 },
            duplicate_ppm: if lossy { rng.pick(&[0, 10_000, 100_000, 200_000]) } else { 0 },
            latency: if wide { rng.range(5 * MILLI, 40 * MILLI) } else { rng.range(50 * MICRO, 2 * MILLI) },
            jitter: if calm {
                100 * MICRO
            } else {
                rng.pick(&[20 * MICRO, 200 * MICRO, 2 * MILLI, 20 * MILLI])
            },
        };
        // A group survives the loss of n - max(q1, q2) members, and damage must not exceed what it survives.
        let survivable =
            groups.iter().map(|config| config.voters.len() - usize::from(config.q1.max(config.q2))).min();
        let mut damageable = 0;
        for _ in 0..survivable.unwrap_or(0) {
            damageable |= 1 << rng.index(nodes);
        }
        let slow_disk = rng.chance(300_000);
        let mut profile = Profile {
            nodes,
            groups,
            timing: Timing {
                disk_stall: Duration::from_millis(rng.pick(&[500, 1000])),
                // With and without entries that carry the commit index.
                commit_delay: if slow_disk { Duration::ZERO } else { Timing::default().commit_delay },
                ..Timing::default()
            },
            rates_ppm: (0..nodes).map(|_| rng.range(0, 8_000) as i64 - 4_000).collect(),
            faults,
            fault_every: rng.pick(&[150 * MILLI, 400 * MILLI, 800 * MILLI, 2 * SECOND]),
            heal_at: rng.range(12, 48) * SECOND,
            quality,
            clients: rng.range(2, 12) as u32,
            operations: rng.range(300, 2_000),
            read_ppm: rng.pick(&[100_000, 400_000, 700_000]),
            padding: rng.pick(&[0, 40, 200, 900, 3_000]),
            sync_latency: if slow_disk {
                rng.range(5 * MILLI, 25 * MILLI)
            } else {
                rng.range(50 * MICRO, 2 * MILLI)
            },
            segment_bytes: rng.pick(&[16 << 10, 64 << 10, 256 << 10]),
            spare_segments: rng.index(4),
            snapshot_bytes: rng.pick(&[4 << 10, 16 << 10, 64 << 10, 1 << 20]),
            retain_slots: rng.pick(&[0, 5, 50, 500]),
            inflight_slots: rng.pick(&[1, 4, 64]),
            queue_bytes: rng.pick(&[600, 16 << 20]),
            gather_ppm: rng.pick(&[0, 50_000, 300_000]),
            write_bounds: rng.pick(&[
                WriteBounds::default(),
                WriteBounds { answer_bytes: 300, visits: 10, kept_bytes: 5_000 },
                WriteBounds { answer_bytes: 400, visits: 24, kept_bytes: 0 },
            ]),
            queries: rng.pick(&[
                QueryShare::default(),
                QueryShare { step_keys: 1, turn: Duration::ZERO },
                QueryShare { step_keys: 3, turn: Duration::ZERO },
            ]),
            apply: rng.pick(&[
                ApplyShare::default(),
                ApplyShare { turn_cost: 1 },
                ApplyShare { turn_cost: 60 },
            ]),
            gateways: rng.pick(&[1, 2, 2, 3]),
            callers: rng.range(2, 10) as u32,
            calls: rng.range(200, 1_000),
            listeners: rng.below(5),
            watch_part_bytes: rng.pick(&[1, 100, 600, 256 << 10]),
            damageable,
        };
        if nodes == 3 && rng.chance(30_000) {
            profile.make_large();
        }
        profile
    }

    /// Commands so large, and so many of them under way when a leader ends, that promises travel in parts.
    fn make_large(&mut self) {
        self.faults = vec![Fault::Leader, Fault::Symmetric, Fault::Snapshot];
        self.fault_every = 400 * MILLI;
        self.heal_at = 8 * SECOND;
        self.quality = Quality { loss_ppm: 0, duplicate_ppm: 0, latency: 40 * MILLI, jitter: 200 * MICRO };
        self.sync_latency = 25 * MILLI;
        self.clients = 16;
        self.operations = 400;
        (self.callers, self.calls, self.listeners) = (2, 50, 1);
        self.read_ppm = 0;
        self.padding = 250_000;
        self.inflight_slots = 64;
        self.queue_bytes = 16 << 20;
        self.snapshot_bytes = 1 << 20;
        self.retain_slots = 5;
    }

    fn draw_group(rng: &mut Rng, nodes: usize) -> Config {
        let mut all: Vec<NodeId> = (1..=nodes as u32).map(NodeId).collect();
        if nodes >= 4 && rng.chance(250_000) {
            // Some three of the nodes.
            while all.len() > 3 {
                all.remove(rng.index(all.len()));
            }
        }
        let (q1, q2) = match (all.len(), rng.flip()) {
            (4, true) => (3, 2),
            (5, true) => (4, 2),
            (7, true) => (5, 3),
            (n, _) => (n as u8 / 2 + 1, n as u8 / 2 + 1),
        };
        let config = Config::majority(all).with_quorums(q1, q2, None);
        assert_eq!(config.check(), Ok(()), "the profile draws configurations that work");
        config
    }

    /// The network and the disks after the faults have stopped.
    pub(crate) fn calm_quality(&self) -> Quality {
        Quality {
            loss_ppm: 0,
            duplicate_ppm: 0,
            latency: self.quality.latency.min(5 * MILLI),
            jitter: 200 * MICRO,
        }
    }
}

fn needs_peers(fault: Fault) -> bool {
    match fault {
        Fault::Depose
        | Fault::Amnesia
        | Fault::Symmetric
        | Fault::Asymmetric
        | Fault::Bridge
        | Fault::ReceiveOnly
        | Fault::Link
        | Fault::Clog
        | Fault::Disconnect
        | Fault::Transfer
        | Fault::Retire => true,
        Fault::Kill
        | Fault::PowerCut
        | Fault::AllPowerCut
        | Fault::Leader
        | Fault::Pause
        | Fault::StallBeforeStep
        | Fault::StallBeforeSend
        | Fault::DiskStall
        | Fault::SyncError
        | Fault::WriteError
        | Fault::DiskFull
        | Fault::Damage
        | Fault::Empty
        | Fault::Snapshot => false,
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  {} nodes, {} groups, {} clients, {} operations; {} gateways, {} callers, {} calls, {} listeners",
            self.nodes,
            self.groups.len(),
            self.clients,
            self.operations,
            self.gateways,
            self.callers,
            self.calls,
            self.listeners
        )?;
        for (index, config) in self.groups.iter().enumerate() {
            writeln!(f, "    group {index}: voters {} q1 {} q2 {}", config.voters, config.q1, config.q2)?;
        }
        writeln!(
            f,
            "  faults every {} ms until {} ms: {:?}",
            self.fault_every / MILLI,
            self.heal_at / MILLI,
            self.faults
        )?;
        writeln!(f, "  network {:?}; sync latency {} us", self.quality, self.sync_latency / MICRO)?;
        write!(
            f,
            "  segments of {} bytes, snapshots after {} bytes, retain {} slots, {} in flight, queue {} bytes, padding {}, \
             watches in parts of {} bytes, {:?}, {:?}, \
             clock rates {:?} ppm, damage on nodes {:#b}",
            self.segment_bytes,
            self.snapshot_bytes,
            self.retain_slots,
            self.inflight_slots,
            self.queue_bytes,
            self.padding,
            self.watch_part_bytes,
            self.queries,
            self.write_bounds,
            self.rates_ppm,
            self.damageable
        )
    }
}
