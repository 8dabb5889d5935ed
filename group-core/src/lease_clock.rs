//! When leases end: the part of a lease that is time, kept by the leader alone and rebuilt by its successor. The
//! replicated part (which leases there are, and their keys) is the keyspace's. Pure: time is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use consensus_core::Mono;
use keyspace::{LeaseGrant, LeaseId, LeaseSerial, LeaseState};

/// A lease that ended is proposed for removal again after this long without an answer.
const EXPIRE_RETRY: Duration = Duration::from_secs(3);

/// A lease with a longer time than this has its remaining time written to the log that often, so that a change of
/// leader does not give it its full time again (etcd's lease checkpoints).
const CHECKPOINT_EVERY: Duration = Duration::from_secs(300);

/// The clock of a group's leases.
#[derive(Debug, Default)]
pub(crate) struct LeaseClock {
    leases: BTreeMap<LeaseId, Timer>,
    /// By time: the next thing to do for a lease.
    due: BTreeSet<(Mono, LeaseId)>,
    /// Leases for which something was proposed that somebody waits for: [`State::Ending`] and [`InLog::Resetting`].
    proposed: BTreeSet<LeaseId>,
}

#[derive(Debug, Clone, Copy)]
struct Timer {
    /// Of its grant.
    serial: LeaseSerial,
    granted: Duration,
    /// When the lease ends: no earlier than its owner was told.
    ends: Mono,
    /// When to look at it next: its end, a checkpoint, or the next try to remove it.
    due: Mono,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It runs, and its next leader would go by what the log says of it.
    Live(InLog),
    /// It has ended and its removal was proposed.
    Ending,
}

/// The time that the log gives a lease, once everything proposed for it is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InLog {
    /// The full one.
    Full,
    /// What remained at a checkpoint.
    Short,
    /// The full one, but that is not applied yet.
    Resetting,
}

/// What became of a keep-alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Renewal {
    /// The lease runs for this many seconds from now on.
    Renewed { ttl_seconds: i64 },
    /// The log holds a shorter time, which the next leader would go by: the answer has to wait until the log holds the
    /// full one. That is to be proposed, unless it was.
    Resetting { propose: Option<LeaseGrant> },
    /// It has ended, but its keys are still there: the answer has to wait until they are not.
    Ending,
    /// It runs on, unless an earlier leader has ended it: the answer has to wait until that is known.
    Held,
    /// There is no such lease.
    Missing,
}

/// A list of leases that is made in steps, in the order of ids: with the time that each ends. Those are in it that lived all the
/// while, and none that did at no time meanwhile.
pub(crate) type LeaseList = Vec<(u64, LeaseId)>;

/// What the clock wants proposed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) expired: Vec<LeaseGrant>,
    /// Remaining seconds, to be written to the log.
    pub(crate) checkpoints: Vec<(LeaseGrant, i64)>,
}

impl LeaseClock {
    /// A new leader starts the clock of every lease. Each gets what the log says remains of it, and `grace` on top,
    /// since its owner could not renew it while there was no leader.
    pub(crate) fn start(&mut self, now: Mono, grace: Duration, leases: impl Iterator<Item = LeaseState>) {
        self.stop();
        for LeaseState { grant, granted_ttl_s, remaining_s } in leases {
            let granted = seconds(granted_ttl_s);
            let left = seconds(remaining_s).min(granted);
            let in_log = if left < granted { InLog::Short } else { InLog::Full };
            self.insert(now, grant, granted, now.after(left.saturating_add(grace)), in_log);
        }
    }

    /// Leadership is lost: nothing ends here any more.
    pub(crate) fn stop(&mut self) {
        self.leases.clear();
        self.due.clear();
        self.proposed.clear();
    }

    pub(crate) fn granted(&mut self, now: Mono, grant: LeaseGrant, ttl_seconds: i64) {
        let granted = seconds(ttl_seconds);
        self.insert(now, grant, granted, now.after(granted), InLog::Full);
    }

    pub(crate) fn revoked(&mut self, id: LeaseId) {
        self.proposed.remove(&id);
        if let Some(timer) = self.leases.remove(&id) {
            let was_due = self.due.remove(&(timer.due, id));
            assert!(was_due, "each lease is due at some time");
        }
    }

    /// The caller must be the leader under a valid leader lease at `now`, or a deposed leader would promise time.
    pub(crate) fn renew(&mut self, now: Mono, id: LeaseId) -> Renewal {
        let Some(timer) = self.leases.get(&id).copied() else { return Renewal::Missing };
        match timer.state {
            State::Ending => Renewal::Ending,
            // Its end has come, though nobody has looked yet.
            State::Live(_) if timer.ends <= now => Renewal::Ending,
            State::Live(in_log) => {
                let grant = LeaseGrant { id, serial: timer.serial };
                let (next, renewal) = match in_log {
                    InLog::Full => {
                        (InLog::Full, Renewal::Renewed { ttl_seconds: whole_seconds(timer.granted) })
                    }
                    InLog::Short => (InLog::Resetting, Renewal::Resetting { propose: Some(grant) }),
                    InLog::Resetting => (InLog::Resetting, Renewal::Resetting { propose: None }),
                };
                self.insert(now, grant, timer.granted, now.after(timer.granted), next);
                renewal
            }
        }
    }

    /// As long as the clock does not count: what was asked in time must not come too late for that.
    pub(crate) fn hold(&mut self, now: Mono, id: LeaseId) -> Renewal {
        let Some(timer) = self.leases.get(&id).copied() else { return Renewal::Missing };
        if let State::Live(in_log) = timer.state {
            let grant = LeaseGrant { id, serial: timer.serial };
            let ends = timer.ends.max(now.after(timer.granted));
            self.insert(now, grant, timer.granted, ends, in_log);
        }
        Renewal::Held
    }

    /// The log gives the lease this many seconds, or its full time again (0).
    pub(crate) fn checkpointed(&mut self, id: LeaseId, remaining_seconds: i64) {
        assert!(remaining_seconds >= 0, "no time is less than none");
        let Some(timer) = self.leases.get_mut(&id) else { return };
        let State::Live(in_log) = timer.state else { return };
        let next = match in_log {
            InLog::Full if remaining_seconds > 0 => InLog::Short,
            InLog::Resetting if remaining_seconds == 0 => {
                self.proposed.remove(&id);
                InLog::Full
            }
            // What was proposed later counts.
            InLog::Full | InLog::Short | InLog::Resetting => in_log,
        };
        timer.state = State::Live(next);
    }

    /// Something that was proposed has not entered the log: all of it is due again.
    pub(crate) fn propose_again(&mut self, now: Mono) {
        for id in std::mem::take(&mut self.proposed) {
            let timer = self.leases.get_mut(&id).expect("`proposed` names only leases that exist");
            match timer.state {
                State::Ending => {
                    self.due.remove(&(timer.due, id));
                    timer.due = now;
                    self.due.insert((now, id));
                }
                State::Live(_) => timer.state = State::Live(InLog::Short),
            }
        }
    }

    /// Seconds left, truncated; zero or less once it has ended.
    pub(crate) fn remaining(&self, now: Mono, id: LeaseId) -> Option<i64> {
        let timer = self.leases.get(&id)?;
        if timer.ends >= now {
            Some(whole_seconds(timer.ends.since(now)))
        } else {
            Some(-whole_seconds(now.since(timer.ends)))
        }
    }

    /// Goes on with a list by up to `max` leases. Returns whether it is whole.
    pub(crate) fn list(&self, list: &mut LeaseList, max: usize) -> bool {
        let from = list.last().map_or(Bound::Unbounded, |(_, id)| Bound::Excluded(*id));
        let mut rest = self.leases.range((from, Bound::Unbounded));
        list.extend(rest.by_ref().take(max).map(|(id, timer)| (timer.ends.0, *id)));
        rest.next().is_none()
    }

    pub(crate) fn next_deadline(&self) -> Option<Mono> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Takes up to `max` of what is due at `now`.
    pub(crate) fn take_due(&mut self, now: Mono, max: usize) -> Due {
        let mut due = Due::default();
        while due.expired.len() + due.checkpoints.len() < max {
            let Some(&(at, id)) = self.due.first().filter(|(at, _)| *at <= now) else { break };
            self.due.remove(&(at, id));
            let timer = self.leases.get_mut(&id).expect("`due` names only leases that exist");
            assert_eq!(timer.due, at, "a lease is due once");
            let grant = LeaseGrant { id, serial: timer.serial };
            if timer.ends <= now {
                timer.state = State::Ending;
                timer.due = now.after(EXPIRE_RETRY);
                self.proposed.insert(id);
                due.expired.push(grant);
            } else {
                timer.state = State::Live(InLog::Short);
                self.proposed.remove(&id);
                timer.due = next_look(now, timer.ends);
                due.checkpoints.push((grant, whole_seconds(timer.ends.since(now)).max(1)));
            }
            self.due.insert((timer.due, id));
        }
        due
    }

    fn insert(&mut self, now: Mono, grant: LeaseGrant, granted: Duration, ends: Mono, in_log: InLog) {
        let LeaseGrant { id, serial } = grant;
        let due = next_look(now, ends);
        assert!(due <= ends, "nobody looks at a lease after its end");
        if let Some(old) =
            self.leases.insert(id, Timer { serial, granted, ends, due, state: State::Live(in_log) })
        {
            self.due.remove(&(old.due, id));
        }
        self.due.insert((due, id));
        match in_log {
            InLog::Full | InLog::Short => self.proposed.remove(&id),
            InLog::Resetting => self.proposed.insert(id),
        };
        assert_eq!(self.due.len(), self.leases.len(), "each lease is due at one time");
    }
}

fn next_look(now: Mono, ends: Mono) -> Mono {
    ends.min(now.after(CHECKPOINT_EVERY))
}

fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

fn whole_seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: LeaseId = LeaseId(1);
    const B: LeaseId = LeaseId(2);

    fn first(id: LeaseId) -> LeaseGrant {
        LeaseGrant { id, serial: LeaseSerial(1) }
    }

    fn second(id: LeaseId) -> LeaseGrant {
        LeaseGrant { id, serial: LeaseSerial(2) }
    }

    fn at(seconds: u64) -> Mono {
        Mono(seconds * 1_000_000_000)
    }

    #[test]
    fn a_lease_ends_at_its_time_and_never_before() {
        let mut clock = LeaseClock::default();
        clock.granted(at(0), first(A), 10);
        assert_eq!(clock.take_due(Mono(at(10).0 - 1), 9), Due::default());
        assert_eq!(clock.take_due(at(10), 9).expired, [first(A)]);
        assert_eq!(clock.remaining(at(12), A), Some(-2));
    }

    #[test]
    fn renewal_gives_the_full_time_and_an_ended_lease_waits_for_its_removal() {
        let mut clock = LeaseClock::default();
        clock.granted(at(0), first(A), 10);
        assert_eq!(clock.renew(at(6), A), Renewal::Renewed { ttl_seconds: 10 });
        assert_eq!(clock.remaining(at(7), A), Some(9));
        assert_eq!(clock.renew(at(16), A), Renewal::Ending);
        assert_eq!(clock.take_due(at(16), 9).expired, [first(A)]);
        assert_eq!(clock.renew(at(17), A), Renewal::Ending);
        clock.revoked(A);
        assert_eq!(clock.renew(at(17), A), Renewal::Missing);
        assert_eq!(clock.next_deadline(), None);
    }

    #[test]
    fn a_removal_that_got_lost_is_tried_again() {
        let mut clock = LeaseClock::default();
        clock.granted(at(0), first(A), 2);
        assert_eq!(clock.take_due(at(2), 9).expired, [first(A)]);
        assert_eq!(clock.take_due(at(4), 9), Due::default());
        assert_eq!(clock.take_due(at(5), 9).expired, [first(A)]);
        clock.propose_again(at(6));
        assert_eq!(clock.next_deadline(), Some(at(6)));
        assert_eq!(clock.take_due(at(6), 9).expired, [first(A)]);
    }

    #[test]
    fn a_long_lease_keeps_what_remains_over_a_change_of_leader() {
        let mut old = LeaseClock::default();
        old.granted(at(0), first(A), 1000);
        assert_eq!(old.take_due(at(300), 9).checkpoints, [(first(A), 700)]);
        let mut new = LeaseClock::default();
        let state =
            |id, granted_ttl_s, remaining_s| LeaseState { grant: first(id), granted_ttl_s, remaining_s };
        new.start(at(50), Duration::from_secs(1), [state(A, 1000, 700), state(B, 60, 60)].into_iter());
        assert_eq!(new.remaining(at(50), A), Some(701));
        assert_eq!(new.remaining(at(50), B), Some(61));
        assert_eq!(new.renew(at(51), B), Renewal::Renewed { ttl_seconds: 60 }, "there was no checkpoint");
        assert_eq!(new.renew(at(60), A), Renewal::Resetting { propose: Some(first(A)) });
        assert_eq!(new.renew(at(61), A), Renewal::Resetting { propose: None });
        new.checkpointed(A, 0);
        assert_eq!(new.renew(at(62), A), Renewal::Renewed { ttl_seconds: 1000 });
        assert_eq!(new.remaining(at(62), A), Some(1000));
    }

    #[test]
    fn a_renewal_counts_only_once_the_log_holds_no_shorter_time() {
        let mut clock = LeaseClock::default();
        clock.granted(at(0), first(A), 1000);
        assert_eq!(clock.take_due(at(300), 9).checkpoints, [(first(A), 700)]);
        assert_eq!(clock.renew(at(310), A), Renewal::Resetting { propose: Some(first(A)) });
        // The checkpoint is applied only now; it lies before the reset in the log.
        clock.checkpointed(A, 700);
        assert_eq!(clock.renew(at(311), A), Renewal::Resetting { propose: None });
        // The reset was refused.
        clock.propose_again(at(312));
        assert_eq!(clock.renew(at(312), A), Renewal::Resetting { propose: Some(first(A)) });
        // A reset that is applied after a later checkpoint was proposed does not make up for that.
        assert_eq!(clock.take_due(at(612), 9).checkpoints, [(first(A), 700)]);
        clock.checkpointed(A, 0);
        assert_eq!(clock.renew(at(613), A), Renewal::Resetting { propose: Some(first(A)) });
    }

    #[test]
    fn what_is_proposed_is_about_the_grant_that_the_clock_runs_for() {
        let mut clock = LeaseClock::default();
        clock.granted(at(0), first(A), 10);
        clock.revoked(A);
        clock.granted(at(5), second(A), 10);
        assert_eq!(clock.take_due(at(10), 9), Due::default());
        assert_eq!(clock.take_due(at(15), 9).expired, [second(A)]);
    }

    #[test]
    fn a_list_is_made_in_steps() {
        let mut clock = LeaseClock::default();
        for id in [2, 4, 6, 8] {
            clock.granted(at(0), LeaseGrant { id: LeaseId(id), serial: LeaseSerial(id as u64) }, 20 - id);
        }
        let mut list = LeaseList::new();
        assert!(!clock.list(&mut list, 2));
        clock.revoked(LeaseId(8));
        clock.granted(at(1), LeaseGrant { id: LeaseId(5), serial: LeaseSerial(9) }, 60);
        assert!(!clock.list(&mut list, 1) && clock.list(&mut list, 2));
        let listed: Vec<_> = list.iter().map(|(ends, id)| (Mono(*ends), id.0)).collect();
        assert_eq!(listed, [(at(18), 2), (at(16), 4), (at(61), 5), (at(14), 6)]);
    }

    #[test]
    fn what_is_due_comes_in_portions_and_in_order() {
        let mut clock = LeaseClock::default();
        clock.granted(at(0), first(A), 5);
        clock.granted(at(0), first(B), 4);
        assert_eq!(clock.take_due(at(9), 1).expired, [first(B)]);
        assert_eq!(clock.take_due(at(9), 1).expired, [first(A)]);
    }
}
