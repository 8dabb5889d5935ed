//! Where in the journal the records lie that a group still needs: those of slots above its base, and its last
//! [`Record::Base`]. Kept per batch handed to the journal, not per record.

use std::collections::VecDeque;

use consensus_core::{Record, RecordKind, RecordLabel, Slot};
use journal::{Lsn, Ticket};

/// See the module.
#[derive(Debug, Default)]
pub struct LogPositions {
    /// Batches with records of slots, in the order of the journal. Durable ones know where they lie.
    batches: VecDeque<Batch>,
    /// Batches handed in and not yet durable, with the base each holds.
    pending: VecDeque<Pending>,
    /// The end of the last durable batch.
    last: Lsn,
    /// The newest durable base and a position at or before it.
    base: (Slot, Lsn),
    /// The highest floor so far.
    floor: Lsn,
}

#[derive(Debug)]
struct Batch {
    ticket: Ticket,
    /// The highest slot any of its records is about.
    max_slot: Slot,
    /// At or before its first record, once durable.
    from: Lsn,
}

#[derive(Debug)]
struct Pending {
    ticket: Ticket,
    records: u64,
    base: Option<Slot>,
}

impl LogPositions {
    /// A record found at restart, in the order of the journal.
    pub fn recovered(&mut self, lsn: Lsn, record: &Record) {
        if let Some(slot) = slot_of(record) {
            self.batches.push_back(Batch { ticket: Ticket(0), max_slot: slot, from: lsn });
        }
        if let Record::Base { slot, .. } = record {
            self.base = (*slot, lsn);
        }
        self.last = lsn;
    }

    /// What is left of a record found at restart. It stays until what it says is written again, or is below the base.
    pub fn recovered_label(&mut self, lsn: Lsn, label: &RecordLabel) {
        match label.kind {
            RecordKind::Vote | RecordKind::Revote | RecordKind::Chosen => {
                self.batches.push_back(Batch { ticket: Ticket(0), max_slot: label.slot, from: lsn });
            }
            RecordKind::Promised
            | RecordKind::Base
            | RecordKind::Faulty
            | RecordKind::Healed
            | RecordKind::Survived => {}
        }
        self.last = lsn;
    }

    /// A record goes to the journal, in the batch of this ticket.
    pub(crate) fn appended(&mut self, ticket: Ticket, record: &Record) {
        assert!(self.pending.back().is_none_or(|pending| pending.ticket <= ticket), "tickets ascend");
        if self.pending.back().is_none_or(|pending| pending.ticket != ticket) {
            self.pending.push_back(Pending { ticket, records: 0, base: None });
        }
        if let Some(pending) = self.pending.back_mut() {
            pending.records += 1;
            if let Record::Base { slot, .. } = record {
                pending.base = Some(*slot);
            }
        }
        let Some(slot) = slot_of(record) else { return };
        match self.batches.back_mut() {
            Some(batch) if batch.ticket == ticket => batch.max_slot = batch.max_slot.max(slot),
            Some(_) | None => {
                // Where it will lie is not known yet, but that is not below the end of what is durable.
                self.batches.push_back(Batch { ticket, max_slot: slot, from: Lsn(self.last.0 + 1) });
            }
        }
    }

    /// The batch of this ticket is durable and ends at `lsn`; batches become so in the order in which they were handed
    /// in. Returns the group's new floor when it may have risen.
    pub(crate) fn persisted(&mut self, ticket: Ticket, lsn: Lsn) -> Option<Lsn> {
        let pending = self.pending.pop_front_if(|pending| pending.ticket == ticket)?;
        assert!(pending.records > 0, "a batch holds a record");
        assert!(lsn >= self.last, "batches become durable in the order of the journal");
        // The journal keeps a batch together. Between this group's batches lie those of all others, so where the last
        // one ended says nothing: for a group that was idle that may be far back.
        let from = Lsn((lsn.0 + 1).saturating_sub(pending.records));
        let later = self.pending.front().is_none_or(|next| next.ticket > ticket);
        assert!(later, "batches become durable in the order in which they were handed in");
        self.last = lsn;
        let at = self.batches.partition_point(|batch| batch.ticket < ticket);
        if let Some(batch) = self.batches.get_mut(at).filter(|batch| batch.ticket == ticket) {
            batch.from = from;
        }
        self.base = (pending.base?, from);
        self.floor()
    }

    /// Whether only the position of the group's base keeps the journal from `floor` on, and no newer one is on its way.
    pub(crate) fn is_base_at(&self, floor: Lsn) -> bool {
        self.base.1 <= floor && self.pending.iter().all(|pending| pending.base.is_none())
    }

    /// The lowest position still needed; `None` before the group's first base.
    pub fn floor(&mut self) -> Option<Lsn> {
        let (base, base_lsn) = self.base;
        if base_lsn == Lsn(0) {
            return None;
        }
        while self.batches.front().is_some_and(|batch| batch.max_slot <= base) {
            self.batches.pop_front();
        }
        let floor = self.batches.front().map_or(base_lsn, |batch| batch.from.min(base_lsn));
        // Where a batch lies that is not durable yet is only guessed; what was not needed before is not needed now.
        self.floor = self.floor.max(floor);
        debug_assert!(
            self.batches.iter().is_sorted_by_key(|batch| batch.ticket),
            "batches are found by their tickets"
        );
        assert!(self.floor > Lsn(0), "a group with a base has a place in the journal");
        Some(self.floor)
    }
}

fn slot_of(record: &Record) -> Option<Slot> {
    match record {
        Record::Vote { slot, .. } | Record::Revote { slot, .. } | Record::Chosen { slot, .. } => Some(*slot),
        Record::Promised { .. }
        | Record::Base { .. }
        | Record::Faulty { .. }
        | Record::Healed { .. }
        | Record::Survived { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use consensus_core::{Ballot, Config, NodeId, Value};
    use std::sync::Arc;

    fn vote(slot: u64) -> Record {
        Record::Vote {
            slot: Slot(slot),
            vote_ballot: Default::default(),
            commit: Slot(0),
            value: Some(Value::Noop),
        }
    }

    fn base(slot: u64) -> Record {
        Record::Base {
            slot: Slot(slot),
            promised: Ballot::default(),
            faulty_from: None,
            promise_lost: false,
            config: Arc::new(Config::majority([NodeId(1)])),
        }
    }

    #[test]
    fn what_is_left_of_a_vote_is_needed_until_the_base_has_passed_it() {
        let mut positions = LogPositions::default();
        positions.recovered(Lsn(3), &base(1));
        let mut label = Vec::new();
        vote(2).label(&mut label);
        positions.recovered_label(Lsn(1), &Record::decode_label(&label).unwrap());
        assert_eq!(positions.floor(), Some(Lsn(1)));
        positions.recovered(Lsn(4), &base(2));
        assert_eq!(positions.floor(), Some(Lsn(4)));
    }

    #[test]
    fn the_floor_rises_to_the_oldest_needed_record_once_the_base_is_durable() {
        let mut positions = LogPositions::default();
        positions.recovered(Lsn(3), &base(0));
        positions.recovered(Lsn(4), &vote(1));
        positions.recovered(Lsn(9), &vote(2));
        assert_eq!(positions.floor(), Some(Lsn(3)));
        positions.appended(Ticket(1), &vote(3));
        positions.appended(Ticket(1), &vote(4));
        assert_eq!(positions.persisted(Ticket(1), Lsn(20)), None);
        positions.appended(Ticket(2), &base(2));
        positions.appended(Ticket(3), &vote(5));
        assert_eq!(positions.persisted(Ticket(2), Lsn(21)), Some(Lsn(19)));
        assert_eq!(positions.persisted(Ticket(3), Lsn(25)), None);
        positions.appended(Ticket(4), &base(4));
        assert_eq!(positions.persisted(Ticket(4), Lsn(30)), Some(Lsn(25)));
        positions.appended(Ticket(5), &base(5));
        assert_eq!(positions.persisted(Ticket(5), Lsn(40)), Some(Lsn(40)));
    }

    #[test]
    fn the_floor_never_falls() {
        let mut positions = LogPositions::default();
        positions.recovered(Lsn(1), &base(0));
        // All of it is handed in before anything is heard of.
        positions.appended(Ticket(1), &vote(1));
        positions.appended(Ticket(2), &vote(2));
        positions.appended(Ticket(3), &base(1));
        positions.appended(Ticket(4), &base(2));
        positions.appended(Ticket(5), &vote(3));
        assert_eq!(positions.persisted(Ticket(1), Lsn(10)), None);
        assert_eq!(positions.persisted(Ticket(2), Lsn(20)), None);
        assert_eq!(positions.persisted(Ticket(3), Lsn(21)), Some(Lsn(20)));
        assert_eq!(
            positions.persisted(Ticket(4), Lsn(22)),
            Some(Lsn(20)),
            "where the last vote lies is not known"
        );
        assert_eq!(positions.persisted(Ticket(5), Lsn(30)), None);
        assert_eq!(positions.floor(), Some(Lsn(22)));
    }

    #[test]
    fn the_base_of_a_group_that_was_idle_lies_where_it_was_written() {
        let mut positions = LogPositions::default();
        positions.recovered(Lsn(3), &base(0));
        assert!(positions.is_base_at(Lsn(3)) && !positions.is_base_at(Lsn(2)));
        positions.appended(Ticket(1), &base(0));
        assert!(!positions.is_base_at(Lsn(3)), "another one is on its way");
        assert_eq!(positions.persisted(Ticket(1), Lsn(1_000_000)), Some(Lsn(1_000_000)));
        assert!(!positions.is_base_at(Lsn(3)));
    }
}
