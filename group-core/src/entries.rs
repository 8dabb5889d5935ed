//! What may enter the log of a group: what this version can apply. To the engine a command is bytes; what they mean is
//! known here. So entries are read where they come in, from a peer or from the disk, and what cannot be read neither
//! gets into the journal nor reaches the state machine.
//!
//! Commands of gateways are read where they are proposed.

use std::fmt;

use bytes::Bytes;
use consensus_core::{Durable, Message, Slot, Value};
use keyspace::{ClusterVersion, Proposal};

/// An entry that this version cannot apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreadable {
    /// Where in the log.
    pub(crate) slot: Slot,
    error: keyspace::DecodeError,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {}: {}", self.slot.0, self.error)
    }
}

/// Reads a command that has passed the checks of this module, or was made here.
pub(crate) fn read(command: Bytes) -> Proposal {
    Proposal::decode(command).expect("what enters the log was read before")
}

/// Whether every entry that a peer's message brings can be applied by one who knows no newer version than that.
///
/// # Errors
/// One cannot.
pub fn check_message(known: ClusterVersion, message: &Message) -> Result<(), Unreadable> {
    let check = |slot: Slot, value: &Value| check(known, slot, value);
    match message {
        Message::Accept(accept) => accept.entries.iter().try_for_each(|(slot, value)| check(*slot, value)),
        Message::Chosen(chosen) => chosen.entries.iter().try_for_each(|(slot, value)| check(*slot, value)),
        Message::Promise(promise) => promise
            .votes
            .iter()
            .filter_map(|(slot, vote)| Some((slot, vote.value.as_ref()?)))
            .try_for_each(|(slot, value)| check(*slot, value)),
        Message::PreVote(_)
        | Message::PreVoteReply(_)
        | Message::Prepare(_)
        | Message::Nack(_)
        | Message::Accepted(_)
        | Message::Commit(_)
        | Message::Fortify(_)
        | Message::Fortified(_)
        | Message::ReadIndex(_)
        | Message::ReadIndexReply(_)
        | Message::Fetch(_)
        | Message::Handoff(_)
        | Message::Resigned(_)
        | Message::Recall(_)
        | Message::Recalled(_)
        | Message::Vouched(_) => Ok(()),
    }
}

/// The same of everything that the journal may have the group apply.
///
/// # Errors
/// Something cannot.
pub fn check_durable(known: ClusterVersion, durable: &Durable) -> Result<(), Unreadable> {
    durable.values().try_for_each(|(slot, value)| check(known, slot, value))
}

fn check(known: ClusterVersion, slot: Slot, value: &Value) -> Result<(), Unreadable> {
    match value {
        Value::Noop => Ok(()),
        Value::Batch(commands) => commands.iter().try_for_each(|command| {
            Proposal::decode_upto(known, command.clone())
                .map(drop)
                .map_err(|error| Unreadable { slot, error })
        }),
    }
}
