//! What is committed and not applied yet. A group's task looks at consensus again after a bounded amount of work, so a turn applies
//! what its share allows, command by command, and leaves the rest to the next turns. Where that cuts is each replica's own
//! business: the state is written in the same order everywhere.

use std::collections::VecDeque;

use bytes::Bytes;
use consensus_core::{Slot, Value};

/// Bytes of commands beyond which a leader takes no more of them: consensus is faster than the state machine where commands are
/// dear, and nothing else would bound what waits. As much may wait in the engine to be proposed.
const BYTES_MAX: usize = 16 << 20;

/// Entries in the order of the log.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    entries: VecDeque<(Slot, Value)>,
    /// Commands of the first entry that are taken already.
    taken: usize,
    /// Of all entries, those included that are taken already.
    bytes: usize,
}

/// The next thing to apply.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) slot: Slot,
    /// With its place in the entry; none if the entry has no commands.
    pub(crate) command: Option<(u32, Bytes)>,
    /// With it the slot is applied.
    pub(crate) is_last: bool,
}

impl Backlog {
    pub(crate) fn push(&mut self, slot: Slot, value: Value) {
        assert!(
            self.last().is_none_or(|last| last.next() == slot),
            "entries come in slot order without gaps"
        );
        self.bytes += value.size();
        self.entries.push_back((slot, value));
    }

    pub(crate) fn take_next(&mut self) -> Option<Piece> {
        let (slot, value) = self.entries.front()?;
        let slot = *slot;
        let commands = match value {
            Value::Noop => &[][..],
            Value::Batch(commands) => &commands[..],
        };
        let index = u32::try_from(self.taken).expect("an entry holds fewer than 2^32 commands");
        let command = commands.get(self.taken).map(|command| (index, command.clone()));
        self.taken += 1;
        let is_last = self.taken >= commands.len();
        if is_last {
            self.bytes -= value.size();
            self.taken = 0;
            self.entries.pop_front();
        }
        Some(Piece { slot, command, is_last })
    }

    /// A newer state has come.
    pub(crate) fn clear(&mut self) {
        *self = Backlog::default();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether a part of an entry is applied: the state is that of no slot.
    pub(crate) fn is_inside_entry(&self) -> bool {
        self.taken > 0
    }

    /// The newest slot that waits.
    pub(crate) fn last(&self) -> Option<Slot> {
        self.entries.back().map(|(slot, _)| *slot)
    }

    /// Whether so much waits that nothing should be added.
    pub(crate) fn is_long(&self) -> bool {
        self.bytes > BYTES_MAX
    }
}

/// What commands have cost in a turn.
#[derive(Debug, Default)]
pub(crate) struct Spent {
    cost: usize,
    /// That of the last command, which is not known before.
    last: usize,
    is_over: bool,
}

impl Spent {
    pub(crate) fn add(&mut self, cost: usize, share: usize) {
        assert!(!self.is_over, "a turn applies no more than its share");
        self.cost += cost;
        self.last = cost;
        self.is_over = self.cost >= share;
    }

    /// The next command has to wait for the next turn.
    pub(crate) fn end(&mut self) {
        self.is_over = true;
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// At most the last command went beyond the share.
    pub(crate) fn is_within(&self, share: usize) -> bool {
        self.cost == 0 || self.cost - self.last < share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(commands: &[&'static str]) -> Value {
        Value::Batch(commands.iter().map(|command| Bytes::from_static(command.as_bytes())).collect())
    }

    #[test]
    fn entries_are_taken_command_by_command() {
        let mut backlog = Backlog::default();
        backlog.push(Slot(4), batch(&["a", "b"]));
        backlog.push(Slot(5), Value::Noop);
        backlog.push(Slot(6), batch(&["c"]));
        let mut taken = Vec::new();
        while let Some(Piece { slot, command, is_last }) = backlog.take_next() {
            taken.push((slot.0, command.map(|(index, _)| index), is_last, backlog.is_inside_entry()));
        }
        let expected = [
            (4, Some(0), false, true),
            (4, Some(1), true, false),
            (5, None, true, false),
            (6, Some(0), true, false),
        ];
        assert_eq!(taken, expected);
        assert_eq!((backlog.bytes, backlog.last()), (0, None));
    }
}
