//! Catching up: committed values that this node knows of and does not have, and snapshots.
//!
//! A leader streams what its followers lack, so fetching is the exception: a new leader that is behind one of those who
//! elected it, a value that the own disk has lost, a node whose leader does not get through to it.

use std::sync::Arc;

use super::{Engine, State};
use crate::message::{Chosen, Entries, Fetch};
use crate::{Ballot, Config, Event, Liveness, Mono, NodeId, Options, Record, Slot, Suspicion};

/// Committed values travel in messages of about this size.
pub(super) const CHUNK_BYTES: usize = 256 << 10;
/// And of at most this many slots.
pub(super) const CHUNK_SLOTS: usize = 512;

/// How long a snapshot hand-over is not asked for again while the receiver still lacks it, in nanoseconds.
fn patience(options: &Options) -> u64 {
    u64::try_from(options.timing.retransmit.as_nanos()).unwrap_or(u64::MAX).saturating_mul(10)
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Catchup {
    /// When to ask for values that did not come by themselves.
    fetch_at: Option<Mono>,
    /// The commit index when `fetch_at` was set.
    seen_commit: Slot,
    /// Who said that more is committed.
    source: Option<NodeId>,
    /// Turns through the members when nobody better is known.
    attempts: u64,
    /// How often was asked since the commit index moved last.
    fruitless: u32,
}

/// So often values are asked for that do not come, before it is no more believed that there are any: 10 s by default. If
/// there are, whoever has them says so again.
const FRUITLESS_MAX: u32 = 100;

impl Catchup {
    pub(super) fn deadline(&self) -> Option<Mono> {
        self.fetch_at
    }
}

impl Engine {
    /// `from` says that every slot up to `commit` is committed.
    pub(super) fn note_commit(&mut self, now: Mono, liveness: &Liveness, from: NodeId, commit: Slot) {
        // Phase 1 found all that was chosen before. From there on only this leader commits, or a newer one, which it has
        // not heard of yet: whoever says so is asked for the values, and with the first of them the leader resigns.
        if matches!(&self.state, State::Leader(leader) if commit > self.log.commit && commit >= leader.first_own)
        {
            if from != self.options.node {
                self.outbox.send_now(from, Fetch { from: self.log.commit.next(), upto: commit });
            }
            return;
        }
        if commit > self.log.known_commit {
            self.log.known_commit = commit;
            self.catchup.source = Some(from);
        }
        assert!(self.log.commit <= self.log.known_commit, "I10: what is committed is known to be");
        if self.log.commit >= self.log.known_commit {
            self.catchup.fetch_at = None;
            self.catchup.fruitless = 0;
        } else if self.catchup.fetch_at.is_none() {
            match &self.state {
                // A leader commits nothing until the gap below is closed.
                State::Leader(_) => self.fetch(now, liveness),
                // The rest is usually on its way.
                State::Follower(_) | State::PreCandidate(_) | State::Candidate(_) => self.await_fetch(now),
            }
        }
    }

    fn await_fetch(&mut self, now: Mono) {
        if self.log.commit > self.catchup.seen_commit {
            self.catchup.fruitless = 0;
        }
        self.catchup.seen_commit = self.log.commit;
        self.catchup.fetch_at = Some(now.after(self.options.timing.retransmit));
    }

    pub(super) fn on_fetch_timeout(&mut self, now: Mono, liveness: &Liveness) {
        if self.catchup.fetch_at.is_none_or(|at| now < at) {
            return;
        }
        if self.log.commit >= self.log.known_commit {
            self.catchup.fetch_at = None;
        } else if self.log.commit > self.catchup.seen_commit {
            self.await_fetch(now);
        } else {
            self.fetch(now, liveness);
        }
    }

    fn fetch(&mut self, now: Mono, liveness: &Liveness) {
        assert!(self.log.commit < self.log.known_commit, "what is here is not asked for");
        let to = self.fetch_source(now, liveness);
        // A question that does not arrive says nothing against whoever spoke of the values.
        self.catchup.fruitless += u32::from(to.is_some_and(|to| liveness.reaches(now, to)));
        if self.catchup.fruitless > FRUITLESS_MAX {
            self.doubt_commit();
            return;
        }
        if let Some(to) = to {
            self.outbox.send_now(to, Fetch { from: self.log.commit.next(), upto: self.log.known_commit });
        }
        self.await_fetch(now);
    }

    /// Goes back to what is certain, which the own journal has told.
    fn doubt_commit(&mut self) {
        self.catchup.fruitless = 0;
        self.catchup.fetch_at = None;
        let source = self.catchup.source.take();
        if self.log.forget_claimed_commit()
            && let Some(from) = source
        {
            self.outbox.event(Event::Suspicious { from, suspicion: Suspicion::Commit });
        }
    }

    /// The leader if it lives, else who spoke of the values, else anybody, in turn.
    fn fetch_source(&mut self, now: Mono, liveness: &Liveness) -> Option<NodeId> {
        self.catchup.attempts += 1;
        let up = |node: &NodeId| *node != self.options.node && liveness.is_up(now, *node);
        let best =
            if self.catchup.attempts.is_multiple_of(2) { self.catchup.source } else { self.leader_hint() };
        if let Some(node) = best.filter(up).or(self.catchup.source.filter(up)) {
            return Some(node);
        }
        let members: Vec<NodeId> = self.config.voters.iter().filter(up).collect();
        let turn = self.catchup.attempts.checked_rem(members.len() as u64)?;
        members.get(usize::try_from(turn).ok()?).copied()
    }

    pub(super) fn handle_fetch(&mut self, from: NodeId, message: &Fetch) {
        if message.from < self.log.first() {
            // Asked for already, and not so long ago that something must have gone wrong.
            let recent = Mono(self.clock.0.saturating_sub(patience(&self.options)));
            let known = match &mut self.state {
                State::Leader(leader) => leader.peer(from).is_some_and(|peer| {
                    let known = peer.snapshot.is_some_and(|at| at > recent);
                    if !known {
                        peer.snapshot = Some(self.clock);
                    }
                    known
                }),
                State::Follower(_) | State::PreCandidate(_) | State::Candidate(_) => false,
            };
            if !known && self.log.base >= message.from && self.config.voters.contains(from) {
                self.outbox.event(Event::SnapshotNeeded { to: from, at_least: Slot(self.log.first().0 - 1) });
            }
            return;
        }
        let mut entries = Entries::new();
        let mut bytes = 0;
        for slot in (message.from.0..=message.upto.min(self.log.commit).0).map(Slot) {
            let Some(value) = self.log.value(slot) else { break };
            bytes += value.size();
            if !entries.is_empty() && (bytes > CHUNK_BYTES || entries.len() == CHUNK_SLOTS) {
                break;
            }
            entries.push((slot, value.clone()));
        }
        assert!(entries.len() <= CHUNK_SLOTS, "an answer is bounded, whatever was asked for");
        let last = entries.last().map(|(slot, _)| *slot);
        assert!(last.is_none_or(|last| last <= self.log.commit), "I10: what is passed on is committed");
        if !entries.is_empty() {
            self.outbox.send_now(from, Chosen { commit: self.log.commit, entries });
        }
    }

    pub(super) fn handle_chosen(&mut self, now: Mono, liveness: &Liveness, from: NodeId, message: Chosen) {
        let before = self.log.commit;
        for (slot, value) in message.entries {
            self.learn(slot, value, Ballot::default());
        }
        self.note_commit(now, liveness, from, message.commit);
        if self.log.commit > before {
            if self.log.commit < self.log.known_commit {
                let fetch = Fetch { from: self.log.commit.next(), upto: self.log.known_commit };
                self.outbox.send_now(from, fetch);
                self.await_fetch(now);
            }
            self.acknowledge_unasked();
            self.update_commit(now, liveness);
            self.try_heal();
        }
    }

    pub(super) fn handle_snapshot_durable(&mut self, slot: Slot) {
        if slot > self.log.delivered || slot < self.log.base {
            return;
        }
        self.log.compact(slot, self.options.retain_slots, self.options.retain_bytes);
        self.record_base(slot);
    }

    pub(super) fn handle_snapshot_installed(
        &mut self,
        now: Mono,
        liveness: &Liveness,
        slot: Slot,
        config: Arc<Config>,
    ) {
        if slot <= self.log.commit {
            return;
        }
        // Whether what it holds is what this leader proposed cannot be seen.
        if self.leads_at(slot) {
            self.resign(now);
        }
        self.log.install(slot);
        assert_eq!(self.log.commit, slot, "I10: the state is that of the snapshot, and no further");
        assert_eq!(config.voters, self.config.voters, "the shell takes no snapshot of other voters");
        self.config = config;
        self.record_base(slot);
        self.installed();
        self.note_commit(now, liveness, self.options.node, slot);
        self.acknowledge_unasked();
        self.update_commit(now, liveness);
        self.try_heal();
    }

    fn record_base(&mut self, slot: Slot) {
        assert_eq!(slot, self.log.base, "the journal may drop what lies below, so a snapshot must hold it");
        assert!(slot <= self.log.delivered, "I10: a snapshot holds applied slots only");
        self.outbox.record(Record::Base {
            slot,
            promised: self.acceptor.promised(),
            faulty_from: self.faulty_from(),
            promise_lost: self.promise_lost(),
            config: self.config.clone(),
        });
        // Otherwise it could go with the part of the journal that this base makes superfluous.
        if self.relied_upto > slot && self.recall.is_none() {
            let promised = self.acceptor.promised();
            self.outbox.record(Record::Healed { promised, relied_upto: Some(self.relied_upto) });
        }
    }
}
