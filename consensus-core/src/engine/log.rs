//! The slots of a group that are kept in memory: votes above the commit index, committed values up to it.
//!
//! ```text
//!        first                 delivered     commit            last
//!          |  committed values     |  to apply  |  votes, holes  |
//! ─────────▼───────────────────────▼────────────▼────────────────▼
//!  dropped; in the snapshot at `base`, which may lie above `first`
//! ```
//!
//! A slot up to `commit` holds the committed value, whatever ballot this node voted in. Facts that others tell are
//! taken up only in order, so "committed" needs no mark of its own: it is `slot <= commit`.

use std::collections::VecDeque;

use super::outbox::Staged;
use crate::record::Durable;
use crate::{Ballot, Kind, NodeId, Slot, Value, VoteBallot};

/// How far above the commit index an acceptor votes, in slots. A leader proposes at most its pipeline ahead; this
/// bounds what a peer can make a node allocate (64 bytes a slot, so 1 MiB).
pub(super) const ACCEPT_WINDOW: u64 = 16_384;

/// How many slots in a row may be missing from a recovered journal. More is not a log, but nonsense.
const RECOVERED_GAP_MAX: u64 = 1 << 22;

/// One slot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Entry {
    /// What the vote was cast at; zero for none. Not maintained for slots up to the commit index.
    pub(super) vote_ballot: VoteBallot,
    /// `None` with one above zero: the vote is known, its value lost.
    pub(super) value: Option<Value>,
    /// The write that made it durable.
    pub(super) staged: Staged,
    /// False when a later write for this slot may have been lost, or when the slot was known to be committed before
    /// the vote: this is a vote, but if the slot turns out to be committed, that has to be written down for itself.
    pub(super) trusted: bool,
}

impl Entry {
    const EMPTY: Entry =
        Entry { vote_ballot: NO_VOTE, value: None, staged: Staged::RECOVERED, trusted: true };

    /// What was written now.
    pub(super) fn new(vote_ballot: VoteBallot, value: Value, staged: Staged, trusted: bool) -> Entry {
        Entry { vote_ballot, value: Some(value), staged, trusted }
    }

    pub(super) fn is_vote(&self) -> bool {
        self.vote_ballot > NO_VOTE
    }

    pub(super) fn size(&self) -> usize {
        self.value.as_ref().map_or(0, Value::size)
    }
}

/// The same as [`VoteBallot::default`], which stands for "no vote" in [`Durable`].
const NO_VOTE: VoteBallot = VoteBallot { ballot: Ballot { round: 0, node: NodeId(0) }, kind: Kind::Classic };

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Log {
    first: Slot,
    entries: VecDeque<Entry>,
    bytes: usize,
    /// The last slot of the durable snapshot.
    pub(super) base: Slot,
    /// Every slot up to here is committed and its value known (or in the snapshot).
    pub(super) commit: Slot,
    /// Every slot up to here was handed to the shell.
    pub(super) delivered: Slot,
    /// Every slot up to here is committed, as somebody said; above `commit` the value is not known here.
    pub(super) known_commit: Slot,
    /// As `known_commit`, on the own journal's word.
    journal_commit: Slot,
    /// The highest slot with a vote or a committed value.
    pub(super) max_voted: Slot,
}

impl Log {
    /// What recovery brought back. Returns the log and, if so, the first slot of which the node knew something that
    /// it knows no more, beyond what [`Durable::faulty_from`] says.
    pub(super) fn recover(durable: &Durable) -> (Log, Option<Slot>) {
        let mut log = Log {
            first: durable.base.next(),
            entries: VecDeque::new(),
            bytes: 0,
            base: durable.base,
            commit: durable.base,
            delivered: durable.base,
            known_commit: durable.base.max(durable.commit),
            journal_commit: durable.base.max(durable.commit),
            max_voted: durable.base,
        };
        let mut lost = None;
        for (&slot, found) in durable.entries.range(durable.base.next()..) {
            if slot.0 - log.last().0 > RECOVERED_GAP_MAX {
                return (log, Some(slot));
            }
            let vote = Entry {
                vote_ballot: found.vote_ballot,
                value: found.value.clone(),
                staged: Staged::RECOVERED,
                trusted: found.trusted,
            };
            let voted = found.value.as_ref().filter(|_| found.trusted && slot <= durable.commit);
            if log.commit.next() == slot
                && let Some(value) = found.chosen.as_ref().or(voted)
            {
                log.put(slot, Entry { value: Some(value.clone()), trusted: true, ..vote });
                log.commit = slot;
                continue;
            }
            if vote.is_vote() {
                // Whether the vote was for the committed value is not known, if that was learned.
                log.put(slot, Entry { trusted: vote.trusted && !found.learned, ..vote });
            }
            if found.learned && slot <= durable.relied_upto {
                // It cannot be placed in the prefix, so it cannot stand in for a forgotten vote any more.
                lost = lost.or(Some(slot));
            }
        }
        (log, lost)
    }

    pub(super) fn first(&self) -> Slot {
        self.first
    }

    /// The highest slot with an entry, or the one before the first.
    pub(super) fn last(&self) -> Slot {
        Slot(self.first.0 - 1 + self.entries.len() as u64)
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&Entry> {
        let index = usize::try_from(slot.0.checked_sub(self.first.0)?).ok()?;
        self.entries.get(index)
    }

    /// The value of a slot, if there is one.
    pub(super) fn value(&self, slot: Slot) -> Option<&Value> {
        self.get(slot)?.value.as_ref()
    }

    /// Puts an entry at a slot in `first..=commit + ACCEPT_WINDOW`.
    pub(super) fn put(&mut self, slot: Slot, entry: Entry) {
        assert!(slot >= self.first, "slots below the first are gone for good");
        assert!(slot > self.commit || entry.value.is_some(), "I10: a committed slot has its value");
        let size = entry.size();
        let place = self.slot_mut(slot);
        let old = std::mem::replace(place, entry).size();
        assert!(self.bytes >= old, "every entry's bytes are counted");
        self.bytes = self.bytes - old + size;
    }

    fn slot_mut(&mut self, slot: Slot) -> &mut Entry {
        let index =
            usize::try_from(slot.0 - self.first.0).expect("windows bound the distance from the first slot");
        if index >= self.entries.len() {
            self.entries.resize(index + 1, Entry::EMPTY);
        }
        self.max_voted = self.max_voted.max(slot);
        &mut self.entries[index]
    }

    /// Whether a vote for this slot can be taken.
    pub(super) fn in_window(&self, slot: Slot) -> bool {
        slot > self.commit && slot.0 <= self.commit.0 + ACCEPT_WINDOW
    }

    /// Moves the commit index over one slot whose value is here. Returns whether that has to be written down.
    pub(super) fn commit_next(&mut self) -> bool {
        let slot = self.commit.next();
        let entry = self.get(slot).filter(|entry| entry.value.is_some());
        let trusted = entry.expect("I10: committed in order, and with a value").trusted;
        assert!(slot > self.base, "I10: what is in the snapshot is committed");
        self.commit = slot;
        self.known_commit = self.known_commit.max(slot);
        !trusted
    }

    /// What others said of the commit index is not believed any more. Returns whether that makes a difference.
    pub(super) fn forget_claimed_commit(&mut self) -> bool {
        let certain = self.commit.max(self.journal_commit);
        std::mem::replace(&mut self.known_commit, certain) > certain
    }

    /// The next committed slot that the shell has not seen.
    pub(super) fn deliver_next(&mut self) -> Option<(Slot, Value)> {
        let slot = self.delivered.next();
        if slot > self.commit {
            return None;
        }
        assert!(slot > self.base, "I10: what is in the snapshot is not applied again");
        let value = self.value(slot).expect("a committed slot above the snapshot keeps its value").clone();
        self.delivered = slot;
        Some((slot, value))
    }

    /// A snapshot at `slot` is durable: drops entries up to it, but for as many as laggards may need.
    pub(super) fn compact(&mut self, slot: Slot, retain_slots: u64, retain_bytes: usize) {
        assert!(slot <= self.delivered, "I10: a snapshot holds applied slots only");
        self.base = self.base.max(slot);
        while self.first <= slot
            && (self.first.0.saturating_add(retain_slots) <= slot.0 || self.bytes > retain_bytes)
        {
            self.drop_first();
        }
        assert!(self.first <= self.base.next(), "what is not in the snapshot is kept");
    }

    /// The state up to `slot`, beyond the commit index, came in a snapshot.
    pub(super) fn install(&mut self, slot: Slot) {
        assert!(slot > self.commit, "a snapshot of what is known to be committed brings nothing");
        while self.first <= slot && !self.entries.is_empty() {
            self.drop_first();
        }
        self.first = self.first.max(slot.next());
        self.base = self.base.max(slot);
        self.commit = self.commit.max(slot);
        self.delivered = self.delivered.max(slot);
        self.known_commit = self.known_commit.max(slot);
        self.max_voted = self.max_voted.max(slot);
        assert_eq!(self.first, slot.next(), "nothing below such a snapshot can be sent to others");
        assert_eq!(self.delivered, self.commit, "the shell has the state of the snapshot");
        assert!(self.last() >= self.commit, "slots above the snapshot keep their places");
    }

    fn drop_first(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            assert!(self.bytes >= entry.size(), "every entry's bytes are counted");
            self.bytes -= entry.size();
        }
        assert!(!self.entries.is_empty() || self.bytes == 0, "and nothing else is");
        self.first = self.first.next();
    }

    /// The journal will say that votes from here on may have been forgotten, see [`Durable`].
    pub(super) fn distrust(&mut self, from: Slot) {
        let above = from.max(self.commit.next()).0.saturating_sub(self.first.0);
        let above = usize::try_from(above).unwrap_or(usize::MAX);
        for entry in self.entries.iter_mut().skip(above) {
            entry.trusted = false;
        }
    }

    /// Slots above the snapshot whose value the disk has lost.
    pub(super) fn lost_payloads(&self) -> impl Iterator<Item = (Slot, VoteBallot)> + '_ {
        // The committed part may be long, and this is asked for often.
        let from = self.first.max(self.commit.next());
        let skipped = usize::try_from(from.0 - self.first.0).unwrap_or(usize::MAX).min(self.entries.len());
        (from.0..).map(Slot).zip(self.entries.range(skipped..)).filter_map(|(slot, entry)| {
            (entry.is_vote() && entry.value.is_none()).then_some((slot, entry.vote_ballot))
        })
    }

    pub(super) fn check_invariants(&self) {
        assert!(self.base <= self.delivered, "I10: a snapshot holds applied slots only");
        assert!(self.delivered <= self.commit, "I10: applied <= commit");
        assert!(self.commit <= self.known_commit, "I10: commit <= known to be chosen");
        assert!(self.first <= self.base.next(), "what is not in the snapshot is kept");
        assert!(self.last() >= self.commit, "a committed slot is in the snapshot, or has an entry");
        assert!(
            self.max_voted >= self.commit && self.max_voted >= self.last(),
            "I19: max_voted covers every vote"
        );
        // The whole log only while it is short, so that a simulation can afford this after every step.
        let recent = self.first.0.max(self.commit.0.saturating_sub(16))..=self.commit.0;
        assert!(
            recent.map(Slot).all(|slot| self.value(slot).is_some()),
            "I10: a committed slot has its value"
        );
        if self.entries.len() <= 32 {
            assert_eq!(self.bytes, self.entries.iter().map(Entry::size).sum::<usize>(), "bytes are counted");
        }
    }
}
