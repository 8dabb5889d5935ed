//! What stands in the label of a record, which survives where its payload is damaged.

use crate::{Slot, VoteBallot};

/// No label is longer, in bytes.
pub(crate) const LABEL_BYTES_MAX: usize = 48;

/// What kind of record a label belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the kinds of `Record`")]
pub enum RecordKind {
    Promised,
    Vote,
    Revote,
    Chosen,
    Base,
    Faulty,
    Healed,
    Survived,
}

/// The part of a record that the journal keeps apart from the payload, so that it survives damage to the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordLabel {
    /// Which record.
    pub kind: RecordKind,
    /// The slot of a vote or chosen value or base, `relied_upto` of a `Healed`; 0 for the others.
    pub slot: Slot,
    /// The ballot of a vote, the promise of a `Promised`, `Base` or `Healed`; zero for the others.
    pub vote_ballot: VoteBallot,
    pub(crate) commit: Slot,
    pub(crate) faulty_from: Option<Slot>,
    pub(crate) flag: bool,
}
