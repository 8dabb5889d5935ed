//! Whether a replica could be relied on: whoever stops nodes one after the other stops the next one when this one has
//! caught up, so that the group never waits for it to do so.

use std::fmt;

use consensus_core::{Role, Slot, Status};

/// A replica that has caught up once may be behind by so many entries: they take some tens of milliseconds, and as many may
/// be under way at any time. A voter that is further behind is not elected either.
const BEHIND_MAX: u64 = 1_000;

/// Why a replica is not to be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unready {
    /// It has no state yet: it waits for a snapshot of a peer.
    NoState,
    /// No leader is known, or this replica leads and does not know yet what was committed before.
    NoLeader,
    /// No leader can come to power.
    Blocked,
    /// The disk may have forgotten votes or promises.
    Healing,
    /// It has not applied what the leader has committed.
    Behind {
        /// What it has applied.
        applied: Slot,
        /// What the leader has committed.
        committed: Slot,
    },
}

impl fmt::Display for Unready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unready::NoState => f.write_str("waits for a snapshot from a peer"),
            Unready::NoLeader => f.write_str("knows no leader"),
            Unready::Blocked => f.write_str(
                "cannot elect a leader, since too many nodes have lost what they voted for: see `gaios ctl recover`",
            ),
            Unready::Healing => f.write_str("makes up for what the disk has lost"),
            Unready::Behind { applied, committed } => {
                write!(f, "has applied {} of {} committed entries", applied.0, committed.0)
            }
        }
    }
}

/// Follows one replica from its start.
#[derive(Debug, Default)]
pub(crate) struct Readiness {
    /// What the leader had committed when one was first heard.
    target: Option<Slot>,
    caught_up: bool,
}

impl Readiness {
    /// What is missing, if anything.
    pub(crate) fn judge(&mut self, status: &Status, applied: Slot) -> Option<Unready> {
        if status.blocked.is_some() {
            return Some(Unready::Blocked);
        }
        if status.promise_lost || status.faulty_from.is_some() {
            return Some(Unready::Healing);
        }
        if status.leader.is_none() || status.role == Role::Leader && !status.ready {
            return Some(Unready::NoLeader);
        }
        let committed = status.known_commit;
        // What was claimed and has lapsed since, as nobody had it, is no target.
        let target = *self.target.insert(self.target.map_or(committed, |target| target.min(committed)));
        self.caught_up |= applied >= target;
        let due = if self.caught_up { Slot(committed.0.saturating_sub(BEHIND_MAX)) } else { target };
        (applied < due).then_some(Unready::Behind { applied, committed })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use consensus_core::{Ballot, Config, NodeId};

    use super::*;

    fn follower(leader: Option<u32>, known_commit: u64) -> Status {
        Status {
            role: Role::Follower,
            leader: leader.map(NodeId),
            ballot: Ballot::default(),
            promised: Ballot::default(),
            ready: false,
            successor: None,
            commit: Slot(0),
            known_commit: Slot(known_commit),
            first_kept: Slot(1),
            max_voted: Slot(0),
            config: Arc::new(Config::majority([NodeId(1), NodeId(2), NodeId(3)])),
            faulty_from: None,
            promise_lost: false,
            blocked: None,
            lost_payloads: 0,
            fenced: false,
            queued: 0,
            inflight: 0,
        }
    }

    #[test]
    fn a_replica_is_ready_when_it_has_what_was_committed_when_it_first_heard_a_leader() {
        let mut readiness = Readiness::default();
        assert_eq!(readiness.judge(&follower(None, 0), Slot(0)), Some(Unready::NoLeader));
        let behind =
            |applied, committed| Some(Unready::Behind { applied: Slot(applied), committed: Slot(committed) });
        assert_eq!(readiness.judge(&follower(Some(1), 500_000), Slot(7)), behind(7, 500_000));
        // The leader goes on meanwhile.
        assert_eq!(readiness.judge(&follower(Some(1), 500_900), Slot(499_999)), behind(499_999, 500_900));
        assert_eq!(readiness.judge(&follower(Some(1), 500_950), Slot(500_000)), None);
        assert_eq!(readiness.judge(&follower(Some(1), 501_000), Slot(500_000)), None);
        // It falls behind again.
        assert_eq!(readiness.judge(&follower(Some(1), 501_001), Slot(500_000)), behind(500_000, 501_001));
        assert_eq!(readiness.judge(&follower(None, 501_001), Slot(501_001)), Some(Unready::NoLeader));
        assert_eq!(readiness.judge(&follower(Some(2), 501_001), Slot(501_001)), None);
    }

    #[test]
    fn a_commit_that_was_claimed_and_has_lapsed_keeps_nobody_unready() {
        let mut readiness = Readiness::default();
        let forged = readiness.judge(&follower(Some(1), 1 << 40), Slot(7));
        assert_eq!(forged, Some(Unready::Behind { applied: Slot(7), committed: Slot(1 << 40) }));
        let behind = Unready::Behind { applied: Slot(7), committed: Slot(9) };
        assert_eq!(readiness.judge(&follower(Some(1), 9), Slot(7)), Some(behind));
        assert_eq!(readiness.judge(&follower(Some(1), 20), Slot(9)), None);
    }

    #[test]
    fn a_new_leader_and_a_damaged_disk_are_not_relied_on() {
        let mut readiness = Readiness::default();
        let leader = Status { role: Role::Leader, ..follower(Some(1), 5) };
        assert_eq!(readiness.judge(&leader, Slot(5)), Some(Unready::NoLeader));
        assert_eq!(readiness.judge(&Status { ready: true, ..leader }, Slot(5)), None);
        let damaged = Status { faulty_from: Some(Slot(3)), ..follower(Some(1), 5) };
        assert_eq!(readiness.judge(&damaged, Slot(5)), Some(Unready::Healing));
    }

    #[test]
    fn the_reason_is_told_with_numbers() {
        let behind = Unready::Behind { applied: Slot(7), committed: Slot(500_000) };
        assert_eq!(behind.to_string(), "has applied 7 of 500000 committed entries");
    }
}
