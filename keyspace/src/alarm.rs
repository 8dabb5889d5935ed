//! Alarms.

use std::collections::BTreeSet;

use crate::digest::{Hasher, SetHash};

/// What an alarm is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AlarmKind {
    /// The quota is used up: puts, transactions with puts and lease grants are refused.
    NoSpace,
    /// Replicas differ: every write but an alarm's is refused.
    Corrupt,
}

/// An alarm that is raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alarm {
    /// The member that it is about. 0 for an alarm that the state machine raised itself: the quota is that of the
    /// group and no member's fault. The gateway shows its own member id for 0.
    pub member: u64,
    /// What it is about.
    pub kind: AlarmKind,
}

/// The alarms that are raised.
#[derive(Clone, Debug, Default)]
pub(crate) struct Alarms {
    raised: BTreeSet<Alarm>,
}

impl Alarms {
    pub(crate) fn raise(&mut self, alarm: Alarm) {
        self.raised.insert(alarm);
    }

    /// Returns whether the alarm was raised.
    pub(crate) fn clear(&mut self, alarm: Alarm) -> bool {
        self.raised.remove(&alarm)
    }

    pub(crate) fn is_raised(&self, kind: AlarmKind) -> bool {
        self.raised.iter().any(|alarm| alarm.kind == kind)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Alarm> {
        self.raised.iter().copied()
    }

    pub(crate) fn digest(&self) -> u64 {
        let mut set = SetHash::default();
        for alarm in self.iter() {
            let kind = match alarm.kind {
                AlarmKind::NoSpace => 1,
                AlarmKind::Corrupt => 2,
            };
            set.add(Hasher::new(2).u64(alarm.member).u64(kind).finish());
        }
        set.value()
    }
}
