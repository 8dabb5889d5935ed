//! What a group writes to the journal, and the state that replaying it gives back.
//!
//! What must be durable before what leaves the node:
//!
//! | leaves | durable first |
//! | --- | --- |
//! | [`Prepare`](crate::message::Prepare) | [`Record::Promised`] of the same ballot, so that none is used twice |
//! | [`Promise`](crate::message::Promise) | [`Record::Promised`], and every vote it reports |
//! | [`Accept`](crate::message::Accept) | nothing: the leader sends while its own disk writes; its own vote counts when durable |
//! | [`Accepted`](crate::message::Accepted) | every [`Record::Vote`], [`Record::Revote`] and [`Record::Chosen`] up to `upto` |
//! | everything else | nothing |
//! | dropping the log below a snapshot | the snapshot |
//!
//! The table is held by types: `engine/outbox.rs` has one way to send the first two kinds of message, which takes the
//! [`PersistSeq`](crate::PersistSeq) of the record, and one for the others, which does not accept them.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::codec::{self, DecodeError};
use crate::label::{LABEL_BYTES_MAX, RecordKind, RecordLabel};
use crate::message::ROUND_MAX;
use crate::{Ballot, Config, Slot, Value, VoteBallot};

/// One write to the journal. Recovery replays them in the order in which they were written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Record {
    /// Never again to act for a lower ballot.
    Promised {
        /// The ballot promised.
        ballot: Ballot,
    },
    /// A vote, and with it the promise of its ballot.
    Vote {
        /// Where.
        slot: Slot,
        /// At which ballot.
        vote_ballot: VoteBallot,
        /// How far the log was known to be committed at the time; no sync of its own is spent on that.
        commit: Slot,
        /// For what; `None` once the disk has lost it.
        value: Option<Value>,
    },
    /// A vote, and with it the promise of its ballot, for the value of the slot's previous vote, which the journal
    /// keeps for as long as this. A new leader makes its voters vote again for what they hold; were the value written
    /// again, a crash that tears it would hide the older copy, and the last of them may be the only one of a value that
    /// was acknowledged.
    Revote {
        /// Where.
        slot: Slot,
        /// At which ballot.
        vote_ballot: VoteBallot,
        /// How far the log was known to be committed at the time.
        commit: Slot,
    },
    /// A committed value that this node has learned without having voted for it.
    Chosen {
        /// Where.
        slot: Slot,
        /// How far the log was known to be committed at the time.
        commit: Slot,
        /// What was chosen.
        value: Value,
    },
    /// The state up to `slot` is in a durable snapshot. Repeats what would otherwise be lost with older records:
    /// with this record and the votes above `slot`, everything before it may be dropped from the journal.
    Base {
        /// The snapshot's slot; 0 for the birth of the group.
        slot: Slot,
        /// The promise at the time.
        promised: Ballot,
        /// The faulty range at the time, see [`Durable::lost`].
        faulty_from: Option<Slot>,
        /// Whether the promise might have been forgotten, see [`Durable::lost`].
        promise_lost: bool,
        /// The configuration of the group.
        config: Arc<Config>,
    },
    /// Damage was found. Written so that it stays known when the damaged part of the journal is gone.
    Faulty {
        /// Votes from here on may have been forgotten.
        from: Slot,
        /// So may a promise.
        promise_lost: bool,
    },
    /// The operator has declared that what this node holds is what there is ([`Durable::survive`]).
    Survived {
        /// The promise from here on, also if it is lower than before.
        promised: Ballot,
    },
    /// All that may have been forgotten is made up for, up to `promised`. Repeated after a [`Record::Base`] below
    /// `relied_upto`.
    Healed {
        /// The promise that is certain from here on.
        promised: Ballot,
        /// Votes are certain too: committed values up to here stand in for those that were forgotten. `None` when only
        /// the promise is certain.
        relied_upto: Option<Slot>,
    },
}

impl Record {
    /// Bytes of the longest label.
    pub const LABEL_MAX: usize = LABEL_BYTES_MAX;

    /// The label: at most [`Record::LABEL_MAX`] bytes appended to `out`.
    pub fn label(&self, out: &mut Vec<u8>) {
        codec::encode_label(&self.to_label(), out);
    }

    /// Hands the payload to `write` piece by piece, without copying it. May be nothing at all.
    pub fn payload(&self, mut write: impl FnMut(&[u8])) {
        match self {
            Record::Vote { value: Some(value), .. } | Record::Chosen { value, .. } => {
                codec::write_value(value, &mut write);
            }
            Record::Base { config, .. } => codec::write_base(config, &mut write),
            Record::Vote { value: None, .. }
            | Record::Revote { .. }
            | Record::Promised { .. }
            | Record::Faulty { .. }
            | Record::Healed { .. }
            | Record::Survived { .. } => {}
        }
    }

    /// How many bytes [`Record::payload`] writes.
    #[must_use]
    pub fn payload_len(&self) -> usize {
        let mut len = 0;
        self.payload(|piece| len += piece.len());
        len
    }

    /// The record with this label and payload. Commands share the memory of `payload`. An error if they are not what
    /// [`Record::label`] and [`Record::payload`] write.
    pub fn decode(label: &[u8], payload: Bytes) -> Result<Record, DecodeError> {
        let label = Record::decode_label(label)?;
        let mut payload = payload;
        let record = match label.kind {
            RecordKind::Promised => Record::Promised { ballot: label.vote_ballot.ballot },
            RecordKind::Vote => Record::Vote {
                slot: label.slot,
                vote_ballot: label.vote_ballot,
                commit: label.commit,
                value: if label.flag { Some(codec::decode_value(&mut payload)?) } else { None },
            },
            RecordKind::Revote => {
                Record::Revote { slot: label.slot, vote_ballot: label.vote_ballot, commit: label.commit }
            }
            RecordKind::Chosen => Record::Chosen {
                slot: label.slot,
                commit: label.commit,
                value: codec::decode_value(&mut payload)?,
            },
            RecordKind::Base => Record::Base {
                slot: label.slot,
                promised: label.vote_ballot.ballot,
                faulty_from: label.faulty_from,
                promise_lost: label.flag,
                config: Arc::new(codec::decode_base(&mut payload)?),
            },
            RecordKind::Faulty => match label.faulty_from {
                Some(from) => Record::Faulty { from, promise_lost: label.flag },
                None => return Err(DecodeError::Invalid("faulty without a slot")),
            },
            RecordKind::Healed => Record::Healed {
                promised: label.vote_ballot.ballot,
                relied_upto: label.flag.then_some(label.slot),
            },
            RecordKind::Survived => Record::Survived { promised: label.vote_ballot.ballot },
        };
        if !payload.is_empty() {
            return Err(DecodeError::TrailingBytes);
        }
        Ok(record)
    }

    /// What a label alone says. An error for bytes that are no label.
    pub fn decode_label(label: &[u8]) -> Result<RecordLabel, DecodeError> {
        codec::decode_label(label)
    }

    fn to_label(&self) -> RecordLabel {
        let empty = RecordLabel {
            kind: RecordKind::Promised,
            slot: Slot(0),
            vote_ballot: VoteBallot::default(),
            commit: Slot(0),
            faulty_from: None,
            flag: false,
        };
        match self {
            Record::Promised { ballot } => RecordLabel { vote_ballot: VoteBallot::classic(*ballot), ..empty },
            Record::Vote { slot, vote_ballot, commit, value } => RecordLabel {
                kind: RecordKind::Vote,
                slot: *slot,
                vote_ballot: *vote_ballot,
                commit: *commit,
                flag: value.is_some(),
                ..empty
            },
            Record::Revote { slot, vote_ballot, commit } => RecordLabel {
                kind: RecordKind::Revote,
                slot: *slot,
                vote_ballot: *vote_ballot,
                commit: *commit,
                ..empty
            },
            Record::Chosen { slot, commit, value: _ } => {
                RecordLabel { kind: RecordKind::Chosen, slot: *slot, commit: *commit, ..empty }
            }
            Record::Base { slot, promised, faulty_from, promise_lost, config: _ } => RecordLabel {
                kind: RecordKind::Base,
                slot: *slot,
                vote_ballot: VoteBallot::classic(*promised),
                faulty_from: *faulty_from,
                flag: *promise_lost,
                ..empty
            },
            Record::Faulty { from, promise_lost } => RecordLabel {
                kind: RecordKind::Faulty,
                faulty_from: Some(*from),
                flag: *promise_lost,
                ..empty
            },
            Record::Healed { promised, relied_upto } => RecordLabel {
                kind: RecordKind::Healed,
                slot: relied_upto.unwrap_or_default(),
                vote_ballot: VoteBallot::classic(*promised),
                flag: relied_upto.is_some(),
                ..empty
            },
            Record::Survived { promised } => RecordLabel {
                kind: RecordKind::Survived,
                vote_ballot: VoteBallot::classic(*promised),
                ..empty
            },
        }
    }
}

/// No election explains such a promise.
pub(crate) const ROUND_DOUBTFUL: u64 = ROUND_MAX / 2;

/// What one node holds of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holdings {
    /// Every slot up to here is committed, as far as this node has noted.
    pub committed: Slot,
    /// Every slot up to here is in its snapshot, or has a value.
    pub whole_upto: Slot,
    /// The last slot with a vote or a committed value.
    pub last: Slot,
    /// The highest ballot it has voted at above its snapshot.
    pub ballot: Ballot,
    /// The highest ballot it has promised.
    pub promised: Ballot,
    /// Slots whose value the disk has lost.
    pub lost_values: u64,
    /// Votes from here on may have been forgotten.
    pub faulty_from: Option<Slot>,
    /// So may a promise.
    pub promise_lost: bool,
}

/// A slot as the journal remembers it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct DurableEntry {
    /// What the vote was cast at; zero for none.
    pub(crate) vote_ballot: VoteBallot,
    /// What the vote is for; `None` without a vote, or when the disk has lost it.
    pub(crate) value: Option<Value>,
    /// What was learned as committed, whatever the vote says.
    pub(crate) chosen: Option<Value>,
    /// Something was learned as committed, though the disk may have lost what.
    pub(crate) learned: bool,
    /// No later vote for this slot can have been lost, and nobody had said before that the slot is committed. So a
    /// commit index speaks of the vote's value.
    pub(crate) trusted: bool,
}

/// The durable state of one group on one node. Filled in journal order, then given to [`crate::Engine::new`].
///
/// The calls tell what recovery met, **in journal order**: [`Durable::replay`] for a whole record,
/// [`Durable::damaged`] for one whose payload is gone, [`Durable::lost`] where records may be missing altogether. Order
/// matters: a whole record after the gap shows that the promises before it cannot have been higher than its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Durable {
    pub(crate) promised: Ballot,
    pub(crate) entries: BTreeMap<Slot, DurableEntry>,
    pub(crate) commit: Slot,
    pub(crate) base: Slot,
    /// A base of which only the label is left.
    pub(crate) presupposed: Slot,
    pub(crate) config: Option<Arc<Config>>,
    pub(crate) faulty_from: Option<Slot>,
    pub(crate) promise_lost: bool,
    /// This replay found records missing, and a vote from here on may have been among them. Nothing that follows the
    /// gap makes up for it: whoever wrote that did not know of the gap, and relied on what is missing now.
    pub(crate) lost_from: Option<Slot>,
    /// Committed values up to here stand in for votes that were forgotten and made up for. To lose one of them is to
    /// forget such a vote again.
    pub(crate) relied_upto: Slot,
    /// The newest thing known about damage is not in the journal yet.
    pub(crate) damage_found: bool,
    /// See [`Durable::survive`]; of this start alone.
    pub(crate) survivor: bool,
    /// Nothing was ever written.
    pub(crate) newborn: bool,
}

impl Durable {
    /// An empty group whose first configuration is given. Also the start of a replay: the configuration stands until
    /// a record or snapshot brings another.
    #[must_use]
    pub fn bootstrap(config: Config) -> Durable {
        Durable { config: Some(Arc::new(config)), newborn: true, ..Durable::default() }
    }

    /// A record that was read back whole.
    pub fn replay(&mut self, record: Record) {
        self.newborn = false;
        match record {
            Record::Promised { ballot } => self.promise(ballot),
            Record::Vote { slot, vote_ballot, commit, value } => {
                if value.is_some() {
                    self.promise(vote_ballot.ballot);
                } else {
                    // What is left of an old vote, written again: it bounds no promise before it.
                    self.promised = self.promised.max(vote_ballot.ballot);
                }
                self.commit = self.commit.max(commit);
                if slot > self.base {
                    let entry = self.entries.entry(slot).or_default();
                    // A slot known to be committed is voted on again only after damage, perhaps for a leader who is
                    // behind, and whose value is not the committed one.
                    entry.trusted = value.is_some() && slot > self.commit;
                    (entry.vote_ballot, entry.value) = (vote_ballot, value);
                }
            }
            Record::Revote { slot, vote_ballot, commit } => self.revote(slot, vote_ballot, commit),
            Record::Chosen { slot, commit, value } => {
                self.commit = self.commit.max(commit);
                if slot > self.base {
                    let entry = self.entries.entry(slot).or_default();
                    (entry.chosen, entry.learned) = (Some(value), true);
                }
            }
            Record::Base { slot, promised, faulty_from, promise_lost, config } => {
                self.promise(promised);
                self.snapshot(slot, config);
                self.faulty_from = earlier(faulty_from, self.lost_from);
                self.promise_lost = promise_lost;
                self.damage_found = self.lost_from.is_some();
            }
            Record::Faulty { from, promise_lost } => {
                self.mark_faulty(from);
                self.promise_lost |= promise_lost;
                self.damage_found = self.lost_from.is_some();
            }
            Record::Healed { promised, relied_upto } => {
                self.promise(promised);
                if let Some(upto) = relied_upto {
                    self.relied_upto = self.relied_upto.max(upto);
                    self.faulty_from = self.lost_from;
                }
                self.damage_found = self.lost_from.is_some();
            }
            Record::Survived { promised } => self.promised = promised,
        }
        self.debug_check();
    }

    /// A record whose label is whole and whose payload is not.
    pub fn damaged(&mut self, label: &RecordLabel) {
        self.newborn = false;
        match label.kind {
            RecordKind::Vote | RecordKind::Chosen => {
                self.commit = self.commit.max(label.commit);
                self.payload_lost(label.slot, label.vote_ballot);
            }
            RecordKind::Revote => self.revote(label.slot, label.vote_ballot, label.commit),
            RecordKind::Base => {
                // The configuration is also in the snapshot itself, which must be there: what the journal held of the
                // slots below may be gone.
                self.presupposed = self.presupposed.max(label.slot);
                self.promise(label.vote_ballot.ballot);
                self.faulty_from = earlier(label.faulty_from, self.lost_from);
                self.promise_lost = label.flag;
            }
            RecordKind::Promised | RecordKind::Healed => self.promise(label.vote_ballot.ballot),
            RecordKind::Survived => self.promised = label.vote_ballot.ballot,
            RecordKind::Faulty => {
                if let Some(from) = label.faulty_from {
                    self.mark_faulty(from);
                }
                self.promise_lost |= label.flag;
            }
        }
        self.debug_check();
    }

    /// What the previous vote was for is certain only if no later one can have been lost.
    fn revote(&mut self, slot: Slot, vote_ballot: VoteBallot, commit: Slot) {
        self.promise(vote_ballot.ballot);
        self.commit = self.commit.max(commit);
        if slot > self.base {
            let entry = self.entries.entry(slot).or_default();
            entry.vote_ballot = vote_ballot;
            if !entry.trusted {
                entry.value = None;
            }
            entry.trusted &= slot > self.commit;
        }
    }

    /// A vote whose value the disk has lost. It still counts as a vote; the value has to come from elsewhere.
    /// The zero ballot stands for a [`Record::Chosen`].
    pub fn payload_lost(&mut self, slot: Slot, vote_ballot: VoteBallot) {
        self.newborn = false;
        if vote_ballot == VoteBallot::default() {
            // That the slot is committed is no use without the value; an earlier vote stays a vote, but is not
            // known to be for the committed value.
            if slot > self.base {
                let entry = self.entries.entry(slot).or_default();
                entry.learned = true;
                entry.trusted = false;
            }
            return;
        }
        self.promise(vote_ballot.ballot);
        if slot > self.base {
            let entry = self.entries.entry(slot).or_default();
            *entry = DurableEntry { vote_ballot, value: None, trusted: false, ..std::mem::take(entry) };
        }
    }

    /// Records of this group may be missing at this place of the journal: any vote at `from` or above may have been
    /// forgotten, or at any slot not yet known to be committed at this place, since a new leader makes its voters vote
    /// there again; and any promise up to the next whole record. Until that is made up for, this node never reports
    /// "no vote" for such slots, and if a promise may be missing, neither votes nor promises at all.
    pub fn lost(&mut self, from: Slot) {
        self.newborn = false;
        let from = from.min(self.base.max(self.commit).next());
        self.mark_faulty(from);
        self.lost_from = earlier(self.lost_from, Some(from));
        self.promise_lost = true;
        self.damage_found = true;
        self.debug_check();
    }

    /// Nothing the journal says of this group can be trusted: any vote and any promise may have been forgotten.
    pub fn lost_all(&mut self) {
        self.lost(self.base.next());
    }

    /// The shell has loaded its snapshot of the state up to `slot`; `config` governs the slots above. Whichever of
    /// this and the journal is further wins.
    pub fn snapshot(&mut self, slot: Slot, config: Arc<Config>) {
        if slot >= self.base {
            self.base = slot;
            self.config = Some(config);
            self.commit = self.commit.max(slot);
            self.entries = self.entries.split_off(&slot.next());
        }
        self.debug_check();
    }

    /// The operator declares that what this node holds is what there is of the group: so many others have lost what they
    /// voted for that no phase 1 could ever succeed. This node may lead once **every** voter has answered, those that have
    /// forgotten included: their votes, as far as they still have any, count as all there ever were, and a value that
    /// nobody has any more is given up. With every voter's promise, no ballot that is still voted for somewhere can lie
    /// above that of this node, so that nothing which comes back later contradicts what is chosen now.
    ///
    /// What this node itself may have forgotten it makes up for as any other: by that leadership, or by another's that
    /// came about without it. Until then it does not count for anybody else.
    ///
    /// A promise that leaves no room for elections is taken back; the votes that are left have lower ones.
    pub fn survive(&mut self) {
        self.survivor = true;
        if self.promised.round >= ROUND_DOUBTFUL {
            self.promised =
                self.entries.values().map(|entry| entry.vote_ballot.ballot).max().unwrap_or_default();
        }
    }

    /// What a node holds of the group, for the operator who compares them.
    #[must_use]
    pub fn holdings(&self) -> Holdings {
        let mut whole_upto = self.base;
        while self
            .entries
            .get(&whole_upto.next())
            .is_some_and(|entry| entry.value.is_some() || entry.chosen.is_some())
        {
            whole_upto = whole_upto.next();
        }
        let last = self.entries.last_key_value().map_or(self.base, |(slot, _)| *slot);
        assert!(whole_upto <= last, "a slot that has a value has an entry");
        let lost =
            self.entries.values().filter(|entry| entry.value.is_none() && entry.chosen.is_none()).count();
        Holdings {
            committed: self.commit.max(self.base),
            whole_upto,
            last,
            ballot: self.entries.values().map(|entry| entry.vote_ballot.ballot).max().unwrap_or_default(),
            promised: self.promised,
            lost_values: lost as u64,
            faulty_from: self.faulty_from,
            promise_lost: self.promise_lost,
        }
    }

    /// The slot whose state the journal presupposes: a snapshot at or above it must have been loaded.
    #[must_use]
    pub fn base(&self) -> Slot {
        self.base.max(self.presupposed)
    }

    /// The configuration that governs the slots above the base.
    #[must_use]
    pub fn config(&self) -> Option<&Config> {
        self.config.as_deref()
    }

    /// Every value above the base that the engine may propose, promise or deliver.
    pub fn values(&self) -> impl Iterator<Item = (Slot, &Value)> {
        let above = self.entries.range(self.base.next()..);
        above.flat_map(|(slot, entry)| entry.value.iter().chain(&entry.chosen).map(|value| (*slot, value)))
    }

    /// Whether the journal holds nothing of the group.
    #[must_use]
    pub fn is_newborn(&self) -> bool {
        self.newborn
    }

    /// Promises only grow, so a promise that is known bounds every one before it.
    fn promise(&mut self, ballot: Ballot) {
        self.promised = self.promised.max(ballot);
        self.promise_lost = false;
    }

    /// What holds whatever the journal says.
    fn debug_check(&self) {
        let first = self.entries.first_key_value().map(|(slot, _)| *slot);
        debug_assert!(
            first.is_none_or(|first| first > self.base),
            "what is in the snapshot is not kept twice"
        );
        debug_assert!(self.commit >= self.base, "I10: a snapshot holds committed slots only");
        let declared = self.lost_from.is_none_or(|lost| self.faulty_from.is_some_and(|from| from <= lost));
        debug_assert!(declared, "I18: what this replay found missing is not made up for by what follows");
        let last = self.entries.last_key_value().map(|(_, entry)| entry);
        debug_assert!(
            last.is_none_or(|last| !last.trusted || last.value.is_some()),
            "only a value can be trusted"
        );
        debug_assert!(
            last.is_none_or(|last| last.chosen.is_none() || last.learned),
            "what was chosen was learned"
        );
    }

    fn mark_faulty(&mut self, from: Slot) {
        self.faulty_from = earlier(self.faulty_from, Some(from));
        for entry in self.entries.range_mut(from..).map(|(_, entry)| entry) {
            entry.trusted = false;
        }
    }
}

/// The lower of two slots that may be none.
fn earlier(one: Option<Slot>, other: Option<Slot>) -> Option<Slot> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
