//! Where in the journal the records lie that a group still needs, by the same rules as a real node: the records of
//! slots above the base, and the last base. A record's position is known when its batch is durable.

use std::collections::VecDeque;

use consensus_core::{PersistSeq, Record, Slot};
use journal::Lsn;

#[derive(Debug, Default)]
pub(crate) struct Positions {
    /// Batches with records of slots, in journal order.
    batches: VecDeque<Batch>,
    /// Batches not yet durable, and the base that each carries.
    pending: VecDeque<(PersistSeq, Option<Slot>)>,
    /// The end of the last durable batch.
    last: Lsn,
    /// The newest durable base, and a position not after it.
    base: Option<(Slot, Lsn)>,
}

#[derive(Debug)]
struct Batch {
    seq: PersistSeq,
    max_slot: Slot,
    /// Not after its first record.
    from: Lsn,
}

impl Positions {
    /// A record, or what is left of one, found at a restart.
    pub(crate) fn recovered(&mut self, lsn: Lsn, slot: Option<Slot>, base: Option<Slot>) {
        if let Some(slot) = slot {
            self.batches.push_back(Batch { seq: PersistSeq(0), max_slot: slot, from: lsn });
        }
        if let Some(base) = base {
            self.base = Some((base, lsn));
        }
        self.last = lsn;
    }

    /// A record goes to the journal in the batch that ends with `seq`.
    pub(crate) fn appended(&mut self, seq: PersistSeq, record: &Record) {
        if self.pending.back().is_none_or(|(last, _)| *last != seq) {
            self.pending.push_back((seq, None));
        }
        if let (Record::Base { slot, .. }, Some((_, base))) = (record, self.pending.back_mut()) {
            *base = Some(*slot);
        }
        let Some(slot) = slot_of(record) else { return };
        match self.batches.back_mut() {
            Some(batch) if batch.seq == seq => batch.max_slot = batch.max_slot.max(slot),
            Some(_) | None => {
                // Where it will lie is not known, but not before the end of what is durable.
                self.batches.push_back(Batch { seq, max_slot: slot, from: Lsn(self.last.0 + 1) });
            }
        }
    }

    /// Everything up to `seq` is durable and ends at `lsn`. Returns a floor if there is a new base.
    pub(crate) fn persisted(&mut self, seq: PersistSeq, lsn: Lsn) -> Option<Lsn> {
        let from = Lsn(self.last.0 + 1);
        self.last = lsn;
        let mut newest = None;
        while let Some((_, base)) = self.pending.pop_front_if(|(pending, _)| *pending <= seq) {
            newest = base.or(newest);
        }
        self.base = Some((newest?, from));
        self.floor()
    }

    /// The lowest position still needed; `None` before the first base.
    pub(crate) fn floor(&mut self) -> Option<Lsn> {
        let (base, at) = self.base?;
        while self.batches.pop_front_if(|batch| batch.max_slot <= base).is_some() {}
        Some(self.batches.front().map_or(at, |batch| batch.from.min(at)))
    }
}

/// The slot that a record is about.
pub(crate) fn slot_of(record: &Record) -> Option<Slot> {
    match record {
        Record::Vote { slot, .. } | Record::Revote { slot, .. } | Record::Chosen { slot, .. } => Some(*slot),
        Record::Promised { .. }
        | Record::Base { .. }
        | Record::Faulty { .. }
        | Record::Healed { .. }
        | Record::Survived { .. } => None,
    }
}
