//! What was given to the journal, to compare with what comes back.

use std::collections::BTreeMap;

use journal::{Lsn, Recovered};

use super::Node;
use crate::cluster::env::Env;
use crate::cluster::rng::digest;

/// What was given to the journal, to compare with what comes back.
#[derive(Default)]
pub(super) struct WrittenLog {
    pub(super) records: BTreeMap<Lsn, Written>,
    pub(super) floors: BTreeMap<u64, Lsn>,
    pub(super) durable: Lsn,
    /// The first record of the last durable batch.
    pub(super) last_batch: Lsn,
}

#[derive(Clone, Copy)]
pub(super) struct Written {
    pub(super) group: u64,
    pub(super) digest: u64,
}

impl WrittenLog {
    fn oldest(&self) -> Lsn {
        self.records.first_key_value().map_or(Lsn(0), |(lsn, _)| *lsn)
    }
}

impl Node {
    /// What was synced and is still needed comes back byte for byte, or is reported as lost; nothing else comes back.
    pub(super) fn check_recovered(&mut self, env: &mut Env, found: &[Recovered], head: Lsn) {
        let node = self.index + 1;
        let mut whole = BTreeMap::new();
        let mut gaps = Vec::new();
        let mut lost = Vec::new();
        for recovered in found {
            match recovered {
                Recovered::Record { group, lsn, label, payload } => {
                    let digest = digest(digest(*group, label), payload);
                    match self.log.records.get(lsn) {
                        Some(written) if written.group == *group && written.digest == digest => {}
                        Some(_) => env.fail("journal", format!("node {node}: {lsn} is not what was written")),
                        None if *lsn < self.log.oldest() => {}
                        None => env.fail("journal", format!("node {node}: {lsn} was never written")),
                    }
                    whole.insert(*lsn, Written { group: *group, digest });
                }
                Recovered::PayloadLost { lsn, .. } => lost.push(*lsn),
                Recovered::Gap { first, end } => gaps.push(*first..*end),
            }
        }
        for (lsn, written) in self.log.records.range(..=self.log.durable) {
            let floor = self.log.floors.get(&written.group).copied().unwrap_or_default();
            if *lsn < floor || whole.contains_key(lsn) {
                continue;
            }
            let told = lost.contains(lsn) || gaps.iter().any(|gap| gap.contains(lsn));
            if !told || !self.damaged {
                env.fail(
                    "journal",
                    format!(
                        "node {node}: {lsn} of group {}, synced, {}",
                        written.group,
                        if told {
                            "is reported as lost on an undamaged disk"
                        } else {
                            "is gone without a word"
                        }
                    ),
                );
                break;
            }
        }
        self.log.records = whole;
        let durable = Lsn(head.0.saturating_sub(1));
        if durable > self.log.durable {
            // A batch that nobody was told of survived.
            self.log.last_batch = Lsn(self.log.durable.0 + 1);
        }
        self.log.durable = durable;
        self.log.floors.clear();
    }
}
