//! Renewals of leases, in batches to a group's leader. Whatever is asked for while a batch is under way leaves with the next:
//! when that one is answered, or is late. So batches are as large as the leader is slow, and none waits long for another.
//!
//! What becomes of a lease that is ending is known when its end is in the log. A first batch does not wait for that; the
//! undecided go on in batches of their own, which wait at the leader until one of theirs is decided.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use keyspace::{LeaseId, Revision};

use crate::asks::{Decided, KeepAlive, KeptAlive};
use crate::failure::Failure;

/// Leases renewed by one request.
const LEASES_MAX: usize = 10_000;
/// Batches of either kind that may be under way at once.
const BATCHES_MAX: usize = 4;
/// A batch that has been under way for so long holds up the next one no more: well above a round trip inside a data centre, so
/// that batches stay large there, and well below one between regions.
const LATE: Duration = Duration::from_millis(5);

/// A lease after an attempt to renew it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Seconds it will live; 0 for a lease that does not exist or has expired.
    pub ttl: i64,
    /// The store's revision before the renewal.
    pub revision: Revision,
    /// Round of the leadership: etcd's `raft_term`.
    pub term: u64,
}

/// See the module. `W` is who waits for a renewal.
#[derive(Debug)]
pub struct Renewals<W> {
    fresh: Lane<W>,
    undecided: Lane<W>,
}

/// Renewals that go in the same batches.
#[derive(Debug)]
struct Lane<W> {
    waiting: VecDeque<(LeaseId, W)>,
    under_way: usize,
    /// When the last batch left.
    left_at: Option<Instant>,
}

/// Some renewals, to be asked for in one request: see [`Batch::ask`].
#[derive(Debug)]
pub struct Batch<W> {
    kind: Kind,
    renewals: Vec<(LeaseId, W)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Fresh,
    Undecided,
}

impl<W> Default for Renewals<W> {
    fn default() -> Renewals<W> {
        Renewals { fresh: Lane::default(), undecided: Lane::default() }
    }
}

impl<W> Default for Lane<W> {
    fn default() -> Lane<W> {
        Lane { waiting: VecDeque::new(), under_way: 0, left_at: None }
    }
}

impl<W> Renewals<W> {
    /// Somebody wants a lease renewed.
    pub fn push(&mut self, lease: LeaseId, by: W) {
        self.fresh.waiting.push_back((lease, by));
    }

    /// Whether what is wanted now would leave at once.
    pub fn has_room(&self, now: Instant) -> bool {
        self.fresh.may_leave(now)
    }

    /// When there will be room that there is not now, if no answer comes before.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let late = [&self.fresh, &self.undecided].map(Lane::late_at);
        late.into_iter().flatten().filter(|at| *at > now).min()
    }

    /// The next batch that may leave.
    pub fn next_batch(&mut self, now: Instant) -> Option<Batch<W>> {
        let undecided = self.undecided.take(now).map(|renewals| Batch { kind: Kind::Undecided, renewals });
        undecided.or_else(|| self.fresh.take(now).map(|renewals| Batch { kind: Kind::Fresh, renewals }))
    }

    /// A batch is over. Tells those whom the answer concerns; the others wait on.
    pub fn handle_answered(
        &mut self,
        batch: Batch<W>,
        answered: Result<KeptAlive, Failure>,
        mut tell: impl FnMut(W, Result<Kept, Failure>),
    ) {
        let lane = match batch.kind {
            Kind::Fresh => &mut self.fresh,
            Kind::Undecided => &mut self.undecided,
        };
        assert!(lane.under_way > 0, "a batch that is over was under way");
        lane.under_way -= 1;
        match answered {
            Ok(KeptAlive { term, revision, leases }) => {
                assert_eq!(leases.len(), batch.renewals.len(), "each lease has its part of the answer");
                for ((lease, by), decided) in batch.renewals.into_iter().zip(leases) {
                    match decided {
                        Decided::Ttl(ttl) => tell(by, Ok(Kept { ttl, revision, term })),
                        Decided::NotYet => self.undecided.waiting.push_back((lease, by)),
                    }
                }
            }
            Err(failure) => {
                for (_, by) in batch.renewals {
                    tell(by, Err(failure.clone()));
                }
            }
        }
    }

    /// Takes out whoever waits for a batch to leave, and for nothing any more.
    pub fn give_up(&mut self, gives_up: impl Fn(&W) -> bool) -> Vec<W> {
        let mut gone = Vec::new();
        let before = self.waiting().count();
        for lane in [&mut self.fresh, &mut self.undecided] {
            if lane.waiting.iter().any(|(_, by)| gives_up(by)) {
                let (leave, stay): (Vec<_>, Vec<_>) =
                    lane.waiting.drain(..).partition(|(_, by)| gives_up(by));
                lane.waiting.extend(stay);
                gone.extend(leave.into_iter().map(|(_, by)| by));
            }
        }
        assert_eq!(self.waiting().count() + gone.len(), before, "everybody waits on, or is told");
        gone
    }

    /// Those who wait for a batch to leave.
    pub fn waiting(&self) -> impl Iterator<Item = &W> {
        self.fresh.waiting.iter().chain(&self.undecided.waiting).map(|(_, by)| by)
    }
}

impl<W> Lane<W> {
    fn may_leave(&self, now: Instant) -> bool {
        self.under_way == 0 || self.late_at().is_some_and(|at| at <= now)
    }

    /// When the batches under way hold up the next one no more, if others may be.
    fn late_at(&self) -> Option<Instant> {
        let left_at = self.left_at.filter(|_| (1..BATCHES_MAX).contains(&self.under_way))?;
        Some(left_at + LATE)
    }

    fn take(&mut self, now: Instant) -> Option<Vec<(LeaseId, W)>> {
        if self.waiting.is_empty() || !self.may_leave(now) {
            return None;
        }
        self.under_way += 1;
        assert!(self.under_way <= BATCHES_MAX, "a node that is slow is not asked more and more");
        debug_assert!(self.left_at <= Some(now), "batches leave one after the other");
        self.left_at = Some(now);
        let count = self.waiting.len().min(LEASES_MAX);
        Some(self.waiting.drain(..count).collect())
    }
}

impl<W> Batch<W> {
    /// What to ask the leader.
    pub fn ask(&self) -> KeepAlive {
        let leases = self.renewals.iter().map(|(lease, _)| lease.0).collect();
        KeepAlive { leases, waits: self.kind == Kind::Undecided }
    }

    /// Those who wait for it.
    pub fn waiting(&self) -> impl Iterator<Item = &W> {
        self.renewals.iter().map(|(_, by)| by)
    }

    /// The same, as they are.
    pub fn into_waiting(self) -> impl Iterator<Item = W> {
        self.renewals.into_iter().map(|(_, by)| by)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::any_instant;

    const MS: Duration = Duration::from_millis(1);

    fn kept(leases: impl IntoIterator<Item = Decided>) -> Result<KeptAlive, Failure> {
        Ok(KeptAlive { term: 2, revision: Revision(9), leases: leases.into_iter().collect() })
    }

    fn asked(batch: &Batch<char>) -> (Vec<i64>, bool) {
        let KeepAlive { leases, waits } = batch.ask();
        (leases, waits)
    }

    /// What each was told, in the order of telling.
    fn tell(
        renewals: &mut Renewals<char>,
        batch: Batch<char>,
        answer: Result<KeptAlive, Failure>,
    ) -> Vec<(char, Option<i64>)> {
        let mut told = Vec::new();
        renewals.handle_answered(batch, answer, |by, kept| told.push((by, kept.ok().map(|kept| kept.ttl))));
        told
    }

    #[test]
    fn what_comes_while_a_batch_is_under_way_leaves_together_when_it_is_over() {
        let (mut renewals, now) = (Renewals::default(), any_instant());
        assert!(renewals.has_room(now) && renewals.deadline(now).is_none());
        renewals.push(LeaseId(1), 'a');
        let first = renewals.next_batch(now).unwrap();
        assert_eq!(asked(&first), (vec![1], false));
        assert!(!renewals.has_room(now + MS));
        renewals.push(LeaseId(2), 'b');
        renewals.push(LeaseId(1), 'c');
        assert!(renewals.next_batch(now + MS).is_none());
        assert_eq!(tell(&mut renewals, first, kept([Decided::Ttl(60)])), [('a', Some(60))]);
        let second = renewals.next_batch(now + MS).unwrap();
        assert_eq!(asked(&second), (vec![2, 1], false));
        let told = tell(&mut renewals, second, Err(Failure::NoLeader));
        assert_eq!(told, [('b', None), ('c', None)]);
        assert!(renewals.next_batch(now + MS).is_none());
    }

    #[test]
    fn a_batch_that_is_late_holds_up_no_other_and_only_so_many_are_under_way() {
        let (mut renewals, start) = (Renewals::default(), any_instant());
        let mut batches = Vec::new();
        for number in 0..BATCHES_MAX {
            renewals.push(LeaseId(number as i64), 'a');
            let now = start + LATE * number as u32;
            if number > 0 {
                assert_eq!(renewals.deadline(now - MS), Some(now));
                assert!(renewals.next_batch(now - MS).is_none());
            }
            batches.push(renewals.next_batch(now).unwrap());
        }
        renewals.push(LeaseId(9), 'b');
        let later = start + LATE * 100;
        assert!(renewals.deadline(start).is_none() && renewals.next_batch(later).is_none());
        // In whichever order they are answered.
        let last = batches.pop().unwrap();
        assert_eq!(tell(&mut renewals, last, kept([Decided::Ttl(5)])), [('a', Some(5))]);
        assert_eq!(asked(&renewals.next_batch(later).unwrap()), (vec![9], false));
    }

    #[test]
    fn a_lease_that_is_ending_holds_up_no_other() {
        let (mut renewals, now) = (Renewals::default(), any_instant());
        renewals.push(LeaseId(1), 'e');
        renewals.push(LeaseId(2), 'l');
        let first = renewals.next_batch(now).unwrap();
        let told = tell(&mut renewals, first, kept([Decided::NotYet, Decided::Ttl(60)]));
        assert_eq!(told, [('l', Some(60))]);
        let ending = renewals.next_batch(now).unwrap();
        assert_eq!(asked(&ending), (vec![1], true), "it waits there for what becomes of it");
        renewals.push(LeaseId(2), 'l');
        let next = renewals.next_batch(now).unwrap();
        assert_eq!(asked(&next), (vec![2], false), "and nobody here for it");
        assert_eq!(tell(&mut renewals, next, kept([Decided::Ttl(60)])), [('l', Some(60))]);
        assert_eq!(tell(&mut renewals, ending, kept([Decided::Ttl(0)])), [('e', Some(0))]);
        assert!(renewals.next_batch(now).is_none());
    }

    #[test]
    fn who_waits_no_more_is_not_asked_for() {
        let (mut renewals, now) = (Renewals::default(), any_instant());
        for (lease, by) in [(1, 'a'), (2, 'b'), (3, 'a')] {
            renewals.push(LeaseId(lease), by);
        }
        assert_eq!(renewals.give_up(|by| *by == 'a'), ['a', 'a']);
        assert_eq!(renewals.waiting().collect::<Vec<_>>(), [&'b']);
        let batch = renewals.next_batch(now).unwrap();
        assert_eq!(asked(&batch), (vec![2], false));
        assert_eq!(batch.into_waiting().collect::<Vec<_>>(), ['b']);
    }
}
