//! Which configuration governs which slot: the last one committed at a lower slot.

use std::sync::Arc;

use super::log::Log;
use crate::{Config, Slot, Value};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Configs {
    /// Ascending; the first is the one the snapshot brought. Never empty.
    stack: Vec<(Slot, Arc<Config>)>,
}

impl Configs {
    pub(super) fn new(slot: Slot, config: Arc<Config>) -> Configs {
        Configs { stack: vec![(slot, config)] }
    }

    /// Takes up the configurations among the committed slots of a recovered log.
    pub(super) fn recover(&mut self, log: &Log) {
        for slot in (log.base.0 + 1..=log.commit.0).map(Slot) {
            if let Some(value) = log.value(slot) {
                self.committed(slot, value);
            }
        }
    }

    /// `slot` is committed with this value.
    pub(super) fn committed(&mut self, slot: Slot, value: &Value) {
        match value {
            Value::Config(config) => self.stack.push((slot, config.clone())),
            Value::Noop | Value::Batch(_) => {}
        }
    }

    /// A snapshot at `slot` replaces what came before.
    pub(super) fn install(&mut self, slot: Slot, config: Arc<Config>) {
        self.stack = vec![(slot, config)];
    }

    /// A snapshot at `slot` makes older configurations unnecessary.
    pub(super) fn compact(&mut self, slot: Slot) {
        while self.stack.len() > 1 && self.stack[1].0 <= slot {
            self.stack.remove(0);
        }
    }

    /// The configuration that governs `slot`; `None` below what is kept.
    pub(super) fn governing(&self, slot: Slot) -> Option<&Arc<Config>> {
        self.stack.iter().rev().find(|(at, _)| *at < slot).map(|(_, config)| config)
    }

    /// The configuration of every slot above the commit index that can be proposed at: a configuration entry is a
    /// barrier, so nothing above an uncommitted one exists.
    pub(super) fn active(&self) -> &Arc<Config> {
        &self.stack.last().expect("the first configuration is never removed").1
    }

    pub(super) fn check_invariants(&self) {
        assert!(self.stack.is_sorted_by(|a, b| a.0 < b.0), "I15: one configuration per slot");
    }
}
