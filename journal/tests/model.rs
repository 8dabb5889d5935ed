//! Random histories against a simple model: a list of what was appended.
//!
//! Without damage: a restart delivers everything durable, and of the rest a beginning in batch order, with payloads
//! missing at most in the last batch. With damage: nothing wrong is ever delivered, and everything durable is delivered,
//! named as lost, or lies in a gap; only the last batch may vanish, for which no later batch can vouch (the last ones, if
//! damaged in several places).
#![allow(clippy::unwrap_used, reason = "a helper of tests may stop the test")]

mod common;

use std::collections::BTreeMap;

use common::*;
use journal::{Disk, Error, Journal, Lsn, Options, Recovered, Report, SimDisk, sim::CrashChoice};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Append {
        group: u64,
        len: usize,
    },
    Flush,
    Sync,
    Maintain,
    RaiseFloor {
        group: u64,
        back: u64,
    },
    /// Power is lost; of what is unsynced this many percent survive.
    PowerLoss {
        percent: u8,
        seed: u64,
    },
    /// The process is killed; the cache survives.
    Kill,
    /// The process dies after so many changes to the disk, in the middle of what it does; then power is lost as well,
    /// or not.
    DieDuring {
        changes: u64,
        appends: u64,
        percent: Option<u8>,
    },
    FailSync,
    Capacity {
        kib: u64,
    },
}

#[derive(Clone, Debug)]
enum Harm {
    Flip {
        segment: usize,
        at: u64,
        bit: u8,
    },
    Zero {
        segment: usize,
        at: u64,
        sectors: u64,
    },
    Unreadable {
        segment: usize,
        at: u64,
    },
    Cut {
        segment: usize,
        at: u64,
    },
    Delete {
        segment: usize,
    },
    Swap {
        one: usize,
        other: usize,
    },
    Duplicate {
        from: usize,
        to: usize,
    },
    /// The file as it was at an earlier restart.
    OldCopy {
        segment: usize,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = prop_oneof![4 => 0usize..200, 2 => 200usize..6000, 1 => 6000usize..40_000];
    let step = prop_oneof![
        20 => (0u64..4, len).prop_map(|(group, len)| Step::Append { group, len }),
        8 => Just(Step::Flush),
        8 => Just(Step::Sync),
        4 => Just(Step::Maintain),
        3 => (0u64..4, 0u64..10).prop_map(|(group, back)| Step::RaiseFloor { group, back }),
        2 => (0u8..=100, any::<u64>()).prop_map(|(percent, seed)| Step::PowerLoss { percent, seed }),
        1 => Just(Step::Kill),
        2 => (0u64..12, 1u64..30, prop::option::of(0u8..=100))
            .prop_map(|(changes, appends, percent)| Step::DieDuring { changes, appends, percent }),
        1 => Just(Step::FailSync),
        1 => (200u64..2000).prop_map(|kib| Step::Capacity { kib }),
    ];
    prop::collection::vec(step, 1..150)
}

fn harms() -> impl Strategy<Value = Vec<Harm>> {
    let segment = 0usize..8;
    // Most of a segment is often unused; the beginning is where it hurts.
    let at = prop_oneof![3 => 0u64..20_000, 1 => 0u64..(64 << 10)];
    let harm = prop_oneof![
        6 => (segment.clone(), at.clone(), 0u8..8).prop_map(|(segment, at, bit)| Harm::Flip { segment, at, bit }),
        4 => (segment.clone(), at.clone(), 1u64..=8).prop_map(|(segment, at, sectors)| Harm::Zero { segment, at, sectors }),
        2 => (segment.clone(), at.clone()).prop_map(|(segment, at)| Harm::Unreadable { segment, at }),
        2 => (segment.clone(), at).prop_map(|(segment, at)| Harm::Cut { segment, at }),
        2 => segment.clone().prop_map(|segment| Harm::Delete { segment }),
        1 => (segment.clone(), segment.clone()).prop_map(|(one, other)| Harm::Swap { one, other }),
        1 => (segment.clone(), segment.clone()).prop_map(|(from, to)| Harm::Duplicate { from, to }),
        1 => segment.prop_map(|segment| Harm::OldCopy { segment }),
    ];
    prop::collection::vec(harm, 1..6)
}

fn rng(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32
    }
}

struct Model {
    disk: SimDisk,
    options: Options,
    journal: Journal<SimDisk>,
    /// What the log should hold, by position. `None`: its payload was lost in a crash, before it was durable.
    records: BTreeMap<Lsn, (Appended, bool)>,
    durable: Lsn,
    /// The first position of every batch.
    batches: Vec<Lsn>,
    seeds: u64,
    old_copies: BTreeMap<String, Vec<u8>>,
}

impl Model {
    fn new() -> Model {
        let disk = SimDisk::new(64 << 20);
        let (journal, ..) = open(disk.clone(), options()).unwrap();
        let options = Options { must_exist: true, ..options() };
        Model {
            disk,
            options,
            journal,
            records: BTreeMap::new(),
            durable: Lsn(0),
            batches: Vec::new(),
            seeds: 0,
            old_copies: BTreeMap::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Append { group, len } => {
                self.seeds += 1;
                let record = append(&mut self.journal, group, self.seeds, len);
                self.records.insert(record.lsn, (record, true));
            }
            Step::Flush => self.flush(),
            Step::Sync => match self.journal.sync() {
                Ok(durable) => self.durable = durable,
                Err(error) => panic!("{error}"),
            },
            Step::Maintain => match self.journal.maintain() {
                Ok(_) | Err(Error::Full { .. }) => {}
                Err(error) => panic!("{error}"),
            },
            Step::RaiseFloor { group, back } => {
                self.journal.set_floor(group, Lsn(self.journal.head().0.saturating_sub(back)));
            }
            Step::DieDuring { changes, appends, percent } => {
                self.disk.stop_after(changes);
                for i in 0..appends {
                    self.step(&Step::Append { group: i % 4, len: i as usize * 300 });
                    // What the disk did before it stopped counts; the answers say what is durable.
                    let staged = self.journal.has_staged();
                    let first = self.journal.written();
                    if self.journal.flush().is_ok() && staged {
                        self.batches.push(Lsn(first.0 + 1));
                    }
                    if let Ok(durable) = self.journal.sync() {
                        self.durable = durable;
                    }
                    if i % 3 == 0 {
                        self.journal.set_floor(i % 4, self.journal.durable());
                    }
                    drop(self.journal.maintain());
                    if self.journal.is_fenced() {
                        break;
                    }
                }
                match percent {
                    None => self.step(&Step::Kill),
                    Some(percent) => self.step(&Step::PowerLoss { percent, seed: changes * 31 + appends }),
                }
            }
            Step::PowerLoss { percent, seed } => {
                let mut random = rng(seed);
                self.disk.crash(&mut |choice| match choice {
                    CrashChoice::WholeSector { .. } => !random().is_multiple_of(10),
                    CrashChoice::KeepName { .. }
                    | CrashChoice::KeepLength { .. }
                    | CrashChoice::KeepSector { .. } => random() % 100 < u64::from(percent),
                });
                self.restart();
            }
            Step::Kill => {
                self.disk.restart_process();
                self.restart();
            }
            Step::FailSync => {
                self.flush();
                self.disk.fail_syncs(1);
                let failed = self.journal.sync();
                self.disk.fail_syncs(0);
                match failed {
                    Ok(durable) => self.durable = durable,
                    Err(Error::Io { .. }) => {
                        assert!(matches!(self.journal.sync(), Err(Error::Fenced)));
                        self.disk.restart_process();
                        self.restart();
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            Step::Capacity { kib } => self.disk.set_capacity(kib << 10),
        }
    }

    fn flush(&mut self) {
        let (staged, first) = (self.journal.has_staged(), self.journal.written());
        match self.journal.flush() {
            Ok(_) if staged => self.batches.push(Lsn(first.0 + 1)),
            Ok(_) | Err(Error::Full { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        self.durable = self.journal.durable();
    }

    /// A restart after a crash, without damage.
    fn restart(&mut self) {
        let (journal, report, recovered) = open(self.disk.clone(), self.options.clone()).unwrap();
        let oldest = journal.stats().oldest;
        let head = journal.head();
        let mut due = oldest;
        for found in &recovered {
            let (lsn, lost) = match found {
                Recovered::Record { lsn, .. } => (*lsn, false),
                Recovered::PayloadLost { lsn, .. } => (*lsn, true),
                Recovered::Gap { .. } => panic!("a crash makes no gap: {report:?}"),
            };
            assert_eq!(lsn, due);
            let (record, had_payload) = &self.records[&lsn];
            assert_found(record, found);
            assert!(!lost || !had_payload || lsn > self.durable, "a durable payload is lost: {report:?}");
            due = Lsn(due.0 + 1);
            if lost {
                self.records.get_mut(&lsn).unwrap().1 = false;
            } else {
                assert!(had_payload);
            }
        }
        assert_eq!(due, head);
        assert!(head > self.durable, "head {head}, durable {}: {report:?}", self.durable);
        self.records.retain(|lsn, _| *lsn < head);
        self.batches.retain(|first| *first < head);
        // What a restart found is durable from then on.
        self.durable = Lsn(head.0 - 1);
        self.journal = journal;
        for name in self.disk.list().unwrap() {
            if name.starts_with("segment") && !self.old_copies.contains_key(&name) {
                self.old_copies.insert(name.clone(), self.disk.contents(&name).unwrap());
            }
        }
    }

    fn harm(&mut self, harm: &Harm, names: &[String]) {
        let name = |index: usize| &names[index % names.len()];
        match *harm {
            Harm::Flip { segment, at, bit } => drop(self.disk.flip(name(segment), at, bit)),
            Harm::Zero { segment, at, sectors } => {
                for sector in 0..sectors {
                    self.disk.zero_sector(name(segment), at + sector * 512);
                }
            }
            Harm::Unreadable { segment, at } => drop(self.disk.make_unreadable(name(segment), at)),
            Harm::Cut { segment, at } => drop(self.disk.cut(name(segment), at)),
            Harm::Delete { segment } => drop(self.disk.delete(name(segment))),
            Harm::Swap { one, other } => {
                let (one, other) = (name(one), name(other));
                if let (Some(first), Some(second)) = (self.disk.contents(one), self.disk.contents(other)) {
                    self.disk.preload(one, &second);
                    self.disk.preload(other, &first);
                }
            }
            Harm::Duplicate { from, to } => {
                if let Some(bytes) = self.disk.contents(name(from)) {
                    self.disk.preload(name(to), &bytes);
                }
            }
            Harm::OldCopy { segment } => {
                // An old copy of the newest file alone looks like a log that ends earlier: nothing in it tells.
                let newest_used = names.len().saturating_sub(2);
                if segment % names.len() < newest_used
                    && let Some(old) = self.old_copies.get(name(segment))
                {
                    self.disk.preload(name(segment), old);
                }
            }
        }
    }

    /// A restart after damage to what had been durable.
    fn judge(&self, harms: usize) {
        let oldest = self.journal.stats().oldest;
        let opened = open(self.disk.clone(), self.options.clone());
        let (journal, report, recovered) = match opened {
            Ok(opened) => opened,
            // Refusing to start is a safe answer; it names a file and a place.
            Err(Error::Corrupt { file, what, .. }) => {
                assert!(file.starts_with("segment-") && !what.is_empty());
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let mut due = Lsn(0);
        let mut accounted = BTreeMap::new();
        for found in &recovered {
            match found {
                Recovered::Record { lsn, .. } | Recovered::PayloadLost { lsn, .. } => {
                    assert!(*lsn >= due, "out of order: {recovered:?}");
                    let (record, had_payload) = &self.records[lsn];
                    assert_found(record, found);
                    let lost = matches!(found, Recovered::PayloadLost { .. });
                    assert!(lost || *had_payload);
                    if lost {
                        assert!(report.lost_anything());
                    }
                    accounted.insert(*lsn, Lsn(lsn.0 + 1));
                    due = Lsn(lsn.0 + 1);
                }
                Recovered::Gap { first, end } => {
                    assert!(due <= *first && first < end);
                    assert!(report.lost_anything());
                    accounted.insert(*first, *end);
                    due = *end;
                }
            }
        }
        assert!(journal.head() >= due);
        // One harm destroys both descriptors of one batch at most. Several may leave no batch to vouch for the last ones.
        let last_batch = self.batches.last().copied().unwrap_or(Lsn(1));
        let vouched = if harms == 1 { last_batch } else { due };
        for lsn in self.records.keys().filter(|lsn| **lsn >= oldest && **lsn < vouched) {
            let covered = accounted.range(..=lsn).next_back().is_some_and(|(_, end)| lsn < end);
            assert!(covered, "position {lsn} vanished: {report:?}");
        }
        for damage in &report.damage {
            assert!(damage.to_string().starts_with(&damage.file));
        }
        let Report { records, .. } = report;
        let delivered = recovered.iter().filter(|found| matches!(found, Recovered::Record { .. })).count();
        assert_eq!(records, delivered as u64);
    }
}

fn assert_found(record: &Appended, found: &Recovered) {
    match found {
        Recovered::Record { .. } => assert_eq!(*found, as_recovered(record)),
        Recovered::PayloadLost { group, lsn, label } => {
            assert_eq!((*group, *lsn, label.as_ref()), (record.group, record.lsn, record.label.as_slice()));
        }
        Recovered::Gap { .. } => unreachable!("gaps hold no record"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn crashes_lose_nothing_durable(steps in steps()) {
        let mut model = Model::new();
        for step in &steps {
            model.step(step);
        }
        model.disk.crash(&mut |_| false);
        model.restart();
    }

    #[test]
    fn damage_is_never_delivered_and_never_silent(steps in steps(), harms in harms()) {
        let mut model = Model::new();
        for step in &steps {
            model.step(step);
        }
        model.disk.set_capacity(64 << 20);
        while model.journal.has_staged() {
            model.flush();
        }
        model.step(&Step::Sync);
        // A start takes a recycling that was decided for done.
        while model.journal.maintain().unwrap() {}
        let names: Vec<String> =
            model.disk.list().unwrap().into_iter().filter(|name| name.starts_with("segment")).collect();
        for harm in &harms {
            model.harm(harm, &names);
        }
        model.judge(harms.len());
    }

    #[test]
    fn arbitrary_bytes_never_panic(files in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9000), 1..4)) {
        let disk = SimDisk::new(1 << 30);
        for (id, bytes) in files.iter().enumerate() {
            disk.preload(&segment(id as u64 + 1), bytes);
        }
        drop(open(disk, options()));
    }
}
