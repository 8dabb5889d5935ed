//! The state machine that the simulated groups replicate: a digest of everything applied, a few registers, and
//! sessions that recognise a command which comes twice.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use consensus_core::{Slot, Value};

use super::rng::{digest, mix};

/// Registers of each group.
pub(crate) const KEYS: u8 = 4;

/// One attempt to write a register. The attempts of one write share `client` and `seq`, and differ in `attempt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Write {
    pub(crate) client: u32,
    pub(crate) seq: u32,
    pub(crate) attempt: u32,
    pub(crate) key: u8,
}

impl Write {
    /// The value it writes: no other write writes the same.
    pub(crate) fn value(&self) -> u64 {
        u64::from(self.client) << 32 | u64::from(self.seq)
    }

    pub(crate) fn encode(&self, padding: usize) -> Bytes {
        let mut bytes = BytesMut::with_capacity(13 + padding);
        bytes.put_u32_le(self.client);
        bytes.put_u32_le(self.seq);
        bytes.put_u32_le(self.attempt);
        bytes.put_u8(self.key);
        // Not zeros: a sector lost to zeros must not look the same.
        bytes.put_bytes((self.seq as u8) | 1, padding);
        bytes.freeze()
    }

    pub(crate) fn decode(mut bytes: &[u8]) -> Option<Write> {
        if bytes.len() < 13 {
            return None;
        }
        Some(Write {
            client: bytes.get_u32_le(),
            seq: bytes.get_u32_le(),
            attempt: bytes.get_u32_le(),
            key: bytes.get_u8(),
        })
    }
}

/// The answer to a write: where in the log it took effect, and what the register held before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) slot: u64,
    pub(crate) before: u64,
}

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It took effect.
    Done(Written),
    /// It had taken effect before; the stored answer.
    Repeated(Written),
    /// A later command of the session has taken effect, so nobody waits for this one.
    Stale,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Machine {
    pub(crate) applied: Slot,
    pub(crate) digest: u64,
    registers: [u64; KEYS as usize],
    /// The newest command of each client and its answer.
    sessions: BTreeMap<u32, (u32, Written)>,
}

impl Machine {
    pub(crate) fn read(&self, key: u8) -> u64 {
        self.registers[usize::from(key % KEYS)]
    }

    /// The stored answer, when the write has been applied.
    pub(crate) fn lookup(&self, client: u32, seq: u32) -> Option<Written> {
        self.sessions.get(&client).filter(|(newest, _)| *newest == seq).map(|(_, written)| *written)
    }

    /// Applies the next slot; tells the fate of each command.
    pub(crate) fn apply(&mut self, slot: Slot, value: &Value, mut told: impl FnMut(Write, Effect)) {
        self.applied = slot;
        self.digest = mix(self.digest ^ slot.0.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        match value {
            Value::Noop => {}
            Value::Batch(commands) => {
                for command in commands.iter() {
                    self.digest = digest(self.digest, command);
                    if let Some(write) = Write::decode(command) {
                        told(write, self.execute(slot, write));
                    }
                }
            }
        }
    }

    fn execute(&mut self, slot: Slot, write: Write) -> Effect {
        match self.sessions.get(&write.client) {
            Some((newest, written)) if *newest == write.seq => return Effect::Repeated(*written),
            Some((newest, _)) if *newest > write.seq => return Effect::Stale,
            Some(_) | None => {}
        }
        let register = &mut self.registers[usize::from(write.key % KEYS)];
        let written = Written { slot: slot.0, before: *register };
        *register = write.value();
        self.sessions.insert(write.client, (write.seq, written));
        self.digest = mix(self.digest ^ written.before);
        Effect::Done(written)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.sessions.len() * 24);
        out.put_u64_le(self.applied.0);
        out.put_u64_le(self.digest);
        for register in self.registers {
            out.put_u64_le(register);
        }
        for (client, (seq, written)) in &self.sessions {
            out.put_u32_le(*client);
            out.put_u32_le(*seq);
            out.put_u64_le(written.slot);
            out.put_u64_le(written.before);
        }
        out
    }

    pub(crate) fn decode(mut bytes: &[u8]) -> Option<Machine> {
        let fixed = 16 + 8 * usize::from(KEYS);
        if bytes.len() < fixed || !(bytes.len() - fixed).is_multiple_of(24) {
            return None;
        }
        let mut machine =
            Machine { applied: Slot(bytes.get_u64_le()), digest: bytes.get_u64_le(), ..Machine::default() };
        for register in &mut machine.registers {
            *register = bytes.get_u64_le();
        }
        while bytes.has_remaining() {
            let (client, seq) = (bytes.get_u32_le(), bytes.get_u32_le());
            let written = Written { slot: bytes.get_u64_le(), before: bytes.get_u64_le() };
            machine.sessions.insert(client, (seq, written));
        }
        Some(machine)
    }
}

/// Stands for a value where only equality matters.
pub(crate) fn value_digest(value: &Value) -> u64 {
    match value {
        Value::Noop => 1,
        Value::Batch(commands) => commands.iter().fold(2, |state, command| digest(state, command)),
    }
}
