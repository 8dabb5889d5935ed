//! What the shell chooses: times and sizes.

use std::time::Duration;

use crate::{GroupId, NodeId};

/// The times of the protocol. All nodes of a cluster use the same `clock_drift_ppm`; `support` may differ, since who is
/// given it goes by the word of who gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timing {
    /// Between heartbeats to a peer. Default: 100 ms.
    pub heartbeat: Duration,
    /// How long a heartbeat is worth as support for a lease, on the clock of who gives it (D). Writes wait this long
    /// for a lease holder that died. Default: 350 ms.
    pub support: Duration,
    /// Silence after which a node counts as down, and the scale of all election timers (T_el). Default: 500 ms.
    pub election: Duration,
    /// Bound on the rate error of a node's clock (ρ), in parts per million. Default: 5000.
    pub clock_drift_ppm: u32,
    /// Taken off every lease besides (ε). Default: 5 ms.
    pub margin: Duration,
    /// Least time without an answer before something is sent again; doubles up to ten times this. Default: 100 ms.
    pub retransmit: Duration,
    /// How long a leader waits for the next entry to carry the commit index, before it tells it in a message of its own.
    /// Its own callers do not wait for this. Default: 2 ms.
    pub commit_delay: Duration,
    /// How often a leader whose commits wait for a dead lease holder asks whether they still have to.
    /// Default: 20 ms.
    pub lease_poll: Duration,
    /// A node whose journal has made no progress for this long holds no leases and does not lead. Default: 1 s.
    pub disk_stall: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            heartbeat: Duration::from_millis(100),
            support: Duration::from_millis(350),
            election: Duration::from_millis(500),
            clock_drift_ppm: 5_000,
            margin: Duration::from_millis(5),
            retransmit: Duration::from_millis(100),
            commit_delay: Duration::from_millis(2),
            lease_poll: Duration::from_millis(20),
            disk_stall: Duration::from_secs(1),
        }
    }
}

impl Timing {
    /// How long a holder may count on the support of one who gives it for `support`, from when it sent the heartbeat, by its
    /// own clock: H = D (1 − ρ) / (1 + ρ) − ε. The heartbeat left before the grantor received it and started to count D, so
    /// the holder stops first however slow its clock and fast the grantor's.
    #[must_use]
    pub fn hold(&self, support: Duration) -> Duration {
        let (slow, fast) = self.drift();
        let hold = (support * slow / fast).saturating_sub(self.margin);
        assert!(hold <= support, "who holds a lease stops before who gave it");
        hold
    }

    /// How long a restarted node that gave `support` does as if every lease it may have granted before were alive:
    /// D (1 + ρ) / (1 − ρ).
    #[must_use]
    pub fn quarantine(&self, support: Duration) -> Duration {
        let (slow, fast) = self.drift();
        let quarantine = support * fast / slow;
        assert!(quarantine >= support, "what was granted has lapsed by any clock when quarantine ends");
        quarantine
    }

    /// (1 − ρ, 1 + ρ) in thousandths, ρ rounded up.
    fn drift(&self) -> (u32, u32) {
        let drift = self.clock_drift_ppm.min(900_000).div_ceil(1000);
        assert!(drift < 1000, "a clock that stands still measures nothing");
        (1000 - drift, 1000 + drift)
    }
}

/// What one engine is made with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Options {
    /// Which group.
    pub group: GroupId,
    /// Which node this is.
    pub node: NodeId,
    /// The times of the protocol.
    pub timing: Timing,
    /// Start of the engine's own random numbers, which only spread timers.
    pub seed: u64,
    /// Slots proposed and not yet committed; beyond, proposals wait and form larger batches. Default: 64.
    pub inflight_slots_max: u64,
    /// Bytes proposed and not yet committed. Default: 4 MiB.
    pub inflight_bytes_max: usize,
    /// A batch is cut at this size. One larger command is a batch of its own. Default: 256 KiB.
    pub batch_bytes_max: usize,
    /// Bytes of proposals that may wait; beyond, they are refused as [`crate::Rejection::Overloaded`].
    /// Default: 16 MiB.
    pub queue_bytes_max: usize,
    /// Slots kept below the own snapshot for peers that lag. Default: 10,000.
    pub retain_slots: u64,
    /// Bytes kept below the own snapshot for peers that lag. Default: 32 MiB.
    pub retain_bytes: usize,
    /// Which rule of the protocol to break.
    #[cfg(feature = "mutants")]
    pub mutant: Option<crate::Mutant>,
}

impl Options {
    /// The defaults, for this replica.
    #[must_use]
    pub fn new(group: GroupId, node: NodeId, seed: u64) -> Options {
        Options {
            group,
            node,
            timing: Timing::default(),
            seed,
            inflight_slots_max: 64,
            inflight_bytes_max: 4 << 20,
            batch_bytes_max: 256 << 10,
            queue_bytes_max: 16 << 20,
            retain_slots: 10_000,
            retain_bytes: 32 << 20,
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }
}
