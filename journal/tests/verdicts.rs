//! The verdict table, row by row, and every damage a segment file can suffer.
#![allow(clippy::unwrap_used, reason = "a helper of tests may stop the test")]

mod common;

use bytes::Bytes;
use common::*;
use journal::{
    Cause, Damage, DamageKind, Disk, Error, Journal, LostRecord, Lsn, Options, Recovered, Report, SimDisk,
    sim::{CrashChoice, SECTOR},
};

/// Every batch of these tests takes one page; its first descriptor is at the page's start, its payload right behind,
/// its second descriptor in the second sector.
const PAGE: u64 = 4096;

fn disk_with(batches: u64) -> (SimDisk, Vec<Appended>) {
    let disk = SimDisk::new(1 << 30);
    let (mut journal, ..) = open(disk.clone(), options()).unwrap();
    let records = (0..batches)
        .map(|seed| {
            let record = append(&mut journal, 1 + seed % 3, seed, 100);
            commit(&mut journal).unwrap();
            record
        })
        .collect();
    (disk, records)
}

fn keep_all(_: CrashChoice<'_>) -> bool {
    true
}

fn lost(record: &Appended) -> Recovered {
    Recovered::PayloadLost {
        group: record.group,
        lsn: record.lsn,
        label: Bytes::copy_from_slice(&record.label),
    }
}

fn only(report: &Report) -> &Damage {
    assert_eq!(report.damage.len(), 1, "{report:?}");
    &report.damage[0]
}

/// Two starts after each other see the same: damage stays visible until its segment is recycled.
fn open_twice(disk: &SimDisk) -> (Journal<SimDisk>, Report, Vec<Recovered>) {
    let first = open(disk.clone(), options()).unwrap();
    disk.crash(&mut keep_all);
    let second = open(disk.clone(), options()).unwrap();
    assert_eq!(first.1.damage, second.1.damage);
    assert_eq!(first.2, second.2);
    assert_eq!(first.0.head(), second.0.head());
    second
}

#[test]
fn an_unsynced_batch_that_left_nothing_is_no_damage() {
    let (disk, records) = disk_with(3);
    let (mut journal, ..) = open(disk.clone(), options()).unwrap();
    append(&mut journal, 1, 9, 100);
    journal.flush().unwrap();
    disk.crash(&mut |_| false);
    let (journal, report, recovered) = open_twice(&disk);
    assert_eq!(recovered, all_recovered(&records));
    assert_eq!(journal.head(), Lsn(4));
    assert!(report.damage.is_empty() && report.torn_tail.is_none());
}

#[test]
fn an_unsynced_batch_that_is_whole_counts() {
    let (disk, mut records) = disk_with(3);
    let (mut journal, ..) = open(disk.clone(), options()).unwrap();
    records.push(append(&mut journal, 1, 9, 100));
    journal.flush().unwrap();
    disk.crash(&mut keep_all);
    let (_, report, recovered) = open_twice(&disk);
    assert_eq!(recovered, all_recovered(&records));
    assert!(report.damage.is_empty() && report.torn_tail.is_none());
}

/// Row "bad, missing, no": torn, discarded, and the wreck is wiped.
#[test]
fn a_torn_descriptor_is_discarded_and_wiped() {
    let (disk, records) = disk_with(3);
    let (mut journal, ..) = open(disk.clone(), options()).unwrap();
    // The record table does not fit into one sector, and the second descriptor lies in another page.
    for seed in 0..20 {
        append(&mut journal, 1, seed, 400);
    }
    journal.flush().unwrap();
    // Of both descriptors only the first sector survives.
    let page = disk.contents(&segment(1)).unwrap()[4 * PAGE as usize..].to_vec();
    let begins = |offset: u64| page[(offset - 4 * PAGE) as usize..].starts_with(b"GAIOSBAT");
    disk.crash(&mut |choice| match choice {
        CrashChoice::KeepSector { offset, .. } => begins(offset),
        CrashChoice::KeepName { .. } | CrashChoice::KeepLength { .. } | CrashChoice::WholeSector { .. } => {
            true
        }
    });
    let (mut journal, report, recovered) = open(disk.clone(), options()).unwrap();
    assert_eq!(recovered, all_recovered(&records));
    assert!(report.damage.is_empty());
    let torn = report.torn_tail.unwrap();
    assert_eq!((torn.file.as_str(), torn.offset), (segment(1).as_str(), 4 * PAGE));
    assert!(torn.to_string().contains("segment-0000000000000001 at offset 16384"));
    // The positions are given out again, and nobody is told twice.
    let mut records = records;
    records.push(append(&mut journal, 2, 77, 10));
    assert_eq!(records[3].lsn, Lsn(4));
    commit(&mut journal).unwrap();
    disk.crash(&mut keep_all);
    let (_, report, recovered) = open(disk, options()).unwrap();
    assert_eq!(recovered, all_recovered(&records));
    assert!(report.damage.is_empty() && report.torn_tail.is_none());
}

/// Row "bad, ok, no": suspect. The verdict stays when the log goes on.
#[test]
fn a_torn_payload_in_the_last_batch_is_suspect_and_stays_so() {
    let (disk, records) = disk_with(2);
    let (mut journal, ..) = open(disk.clone(), options()).unwrap();
    let good = append(&mut journal, 1, 8, 10);
    let torn = append(&mut journal, 2, 9, 3000);
    journal.flush().unwrap();
    disk.crash(&mut |choice| match choice {
        CrashChoice::KeepSector { offset, .. } => offset != 3 * PAGE + 3 * SECTOR as u64,
        CrashChoice::KeepName { .. } | CrashChoice::KeepLength { .. } | CrashChoice::WholeSector { .. } => {
            true
        }
    });
    let mut expected = all_recovered(&records);
    expected.extend([as_recovered(&good), lost(&torn)]);
    let (mut journal, report, recovered) = open_twice(&disk);
    assert_eq!(recovered, expected);
    let damage = only(&report);
    assert!(report.lost_anything() && report.torn_tail.is_none());
    assert_eq!((damage.file.as_str(), damage.segment), (segment(1).as_str(), 1));
    assert!(damage.offset > 3 * PAGE && damage.len == 3010);
    let label = Bytes::copy_from_slice(&torn.label);
    let records = vec![LostRecord { group: 2, lsn: torn.lsn, label }];
    assert_eq!(damage.kind, DamageKind::PayloadLost { cause: Cause::Suspect, records: records.clone() });

    let later = append(&mut journal, 1, 10, 10);
    commit(&mut journal).unwrap();
    append(&mut journal, 1, 11, 10);
    commit(&mut journal).unwrap();
    expected.push(as_recovered(&later));
    let (_, report, recovered) = open_twice(&disk);
    assert_eq!(recovered[..5], expected);
    assert_eq!(only(&report).kind, DamageKind::PayloadLost { cause: Cause::Suspect, records });
}

/// Row "bad, any, yes" with a descriptor: the label says what was lost.
#[test]
fn a_flipped_payload_bit_in_an_acknowledged_batch_is_located() {
    let (disk, records) = disk_with(4);
    assert!(disk.flip(&segment(1), 2 * PAGE + 150, 3));
    let (_, report, recovered) = open_twice(&disk);
    let mut expected = all_recovered(&records);
    expected[1] = lost(&records[1]);
    assert_eq!(recovered, expected);
    let damage = only(&report);
    assert!((2 * PAGE..2 * PAGE + 150).contains(&damage.offset));
    assert!(
        matches!(&damage.kind, DamageKind::PayloadLost { cause: Cause::Corrupt, records } if records.len() == 1)
    );
    let sentence = damage.to_string();
    assert!(
        sentence.contains("positions 2 to 2") && sentence.contains("had been acknowledged"),
        "{sentence}"
    );
}

/// Row "bad, any, yes" without a descriptor: a gap between known positions.
#[test]
fn a_lost_descriptor_in_an_acknowledged_batch_is_a_gap() {
    let (disk, records) = disk_with(5);
    disk.zero_sector(&segment(1), 3 * PAGE);
    disk.zero_sector(&segment(1), 3 * PAGE + SECTOR as u64);
    let (_, report, recovered) = open_twice(&disk);
    let mut expected = all_recovered(&records);
    expected[2] = Recovered::Gap { first: Lsn(3), end: Lsn(4) };
    assert_eq!(recovered, expected);
    let damage = only(&report);
    assert_eq!((damage.offset, damage.len), (3 * PAGE, PAGE));
    let groups = vec![(1, Lsn(1)), (2, Lsn(2))];
    assert_eq!(damage.kind, DamageKind::DescriptorLost { first: Lsn(3), end: Lsn(4), groups });
    assert!(damage.to_string().contains("records from position 3 up to 4 are lost"));
}

/// No single lost sector ever hides a record, wherever it is; at most it takes the payload.
#[test]
fn any_single_lost_sector_is_survived_or_located() {
    let (disk, records) = disk_with(6);
    for sector in 0..7 * PAGE / SECTOR as u64 {
        for unreadable in [false, true] {
            let disk = disk.fork();
            let offset = sector * SECTOR as u64;
            if unreadable {
                disk.make_unreadable(&segment(1), offset);
            } else {
                disk.zero_sector(&segment(1), offset);
            }
            let (_, report, recovered) = open(disk, options()).unwrap();
            assert_eq!(recovered.len(), records.len(), "sector {sector}");
            for (found, record) in recovered.iter().zip(&records) {
                assert!(*found == as_recovered(record) || *found == lost(record), "sector {sector}");
            }
            let lost_some = recovered.iter().any(|found| matches!(found, Recovered::PayloadLost { .. }));
            assert_eq!(report.lost_anything(), lost_some);
            let refused = report.damage.iter().filter(|damage| damage.kind == DamageKind::Unreadable);
            assert_eq!(refused.count(), usize::from(unreadable));
        }
    }
}

/// The same for every flipped bit.
#[test]
fn any_single_flipped_bit_is_survived_or_located() {
    let (disk, records) = disk_with(3);
    for offset in 0..4 * PAGE {
        let disk = disk.fork();
        disk.flip(&segment(1), offset, (offset % 8) as u8);
        let (_, report, recovered) = open(disk, options()).unwrap();
        assert_eq!(recovered.len(), records.len(), "byte {offset}");
        for (found, record) in recovered.iter().zip(&records) {
            let is_lost = *found == lost(record);
            assert!(is_lost || *found == as_recovered(record), "byte {offset}");
            assert!(!is_lost || report.lost_anything());
        }
        if offset < 64 {
            assert_eq!(only(&report).kind, DamageKind::HeaderDamaged);
        }
    }
}

#[test]
fn one_damaged_descriptor_is_served_by_its_copy() {
    let (disk, records) = disk_with(3);
    for offset in [2 * PAGE + 20, 2 * PAGE + SECTOR as u64 + 20] {
        let disk = disk.fork();
        disk.flip(&segment(1), offset, 0);
        let (_, report, recovered) = open_twice(&disk);
        assert_eq!(recovered, all_recovered(&records));
        let damage = only(&report);
        assert_eq!((damage.offset, &damage.kind), (2 * PAGE, &DamageKind::DescriptorRepaired { batch: 2 }));
        assert!(!report.lost_anything());
    }
}

/// A log of several segments, three records in each of the first, and the segment of each record.
fn long_log() -> (SimDisk, Vec<Appended>, Vec<u64>) {
    let disk = SimDisk::new(1 << 30);
    let (mut journal, ..) = open(disk.clone(), options()).unwrap();
    let (mut records, mut segments) = (Vec::new(), Vec::new());
    for seed in 0..14 {
        records.push(append(&mut journal, seed % 2, seed, 15_000));
        commit(&mut journal).unwrap();
        segments.push(journal.stats().segments);
    }
    assert!(segments[13] >= 4);
    (disk, records, segments)
}

fn gap_of(records: &[Appended], segments: &[u64], gone: &[u64]) -> Vec<Recovered> {
    let mut expected = Vec::new();
    let mut gap: Option<(Lsn, Lsn)> = None;
    for (record, segment) in records.iter().zip(segments) {
        if gone.contains(segment) {
            gap = Some((gap.map_or(record.lsn, |(first, _)| first), Lsn(record.lsn.0 + 1)));
        } else {
            expected.extend(gap.take().map(|(first, end)| Recovered::Gap { first, end }));
            expected.push(as_recovered(record));
        }
    }
    expected
}

#[test]
fn a_missing_segment_is_noticed_at_the_beginning_and_in_the_middle() {
    for gone in [vec![1], vec![2], vec![1, 2], vec![2, 3]] {
        let (disk, records, segments) = long_log();
        for id in &gone {
            assert!(disk.delete(&segment(*id)));
        }
        let (_, report, recovered) = open_twice(&disk);
        assert_eq!(recovered, gap_of(&records, &segments, &gone));
        let damage = only(&report);
        assert_eq!((damage.file.clone(), damage.segment), (segment(gone[0]), gone[0]));
        let DamageKind::SegmentMissing { last_segment, .. } = &damage.kind else { panic!("{damage:?}") };
        assert_eq!(*last_segment, gone[gone.len() - 1]);
        assert!(damage.to_string().contains("missing"));
    }
}

#[test]
fn a_missing_newest_segment_is_noticed_and_its_positions_are_not_reused() {
    let (disk, records, segments) = long_log();
    let newest = segments[13];
    assert!(disk.delete(&segment(newest)));
    let survivors = segments.iter().filter(|segment| **segment < newest).count();
    let (mut journal, report, recovered) = open(disk.clone(), options()).unwrap();
    assert_eq!(recovered[..survivors], all_recovered(&records[..survivors]));
    let end = Lsn(survivors as u64 + 1 + journal::recovery::LEAP);
    assert_eq!(recovered[survivors..], [Recovered::Gap { first: Lsn(survivors as u64 + 1), end }]);
    assert!(matches!(only(&report).kind, DamageKind::SegmentMissing { .. }));
    let first = survivors + 1;
    let told = only(&report).to_string();
    assert!(told.contains(&format!("records from position {first} on may be lost")), "{told}");
    assert!(told.contains(&format!("new ones begin at {end}")), "{told}");
    assert_eq!(journal.head(), end);
    // The loss stays visible after the log went on.
    let after = append(&mut journal, 5, 5, 5);
    commit(&mut journal).unwrap();
    let (_, report, again) = open_twice(&disk);
    assert_eq!(again[..=survivors], recovered);
    assert_eq!(again[survivors + 1..], [as_recovered(&after)]);
    assert!(report.lost_anything());
}

/// What is said of the header agrees with what is said of the records, wherever the segment stood.
#[test]
fn an_emptied_segment_is_told_without_comfort() {
    let (_, _, segments) = long_log();
    for id in [1, 2, segments[13]] {
        let (disk, ..) = long_log();
        assert!(disk.cut(&segment(id), 0));
        let (_, report, _) = open(disk, options()).unwrap();
        let told: Vec<String> = report.damage.iter().map(ToString::to_string).collect();
        let told = told.join("\n");
        assert!(report.lost_anything() && told.contains("the segment's header is damaged"), "{told}");
        assert!(!told.contains("nothing is lost"), "{told}");
        let lost = if id == segments[13] { "on may be lost" } else { "are lost" };
        assert!(told.contains(lost), "{told}");
        assert_eq!(told.contains("had been acknowledged are unreadable"), id != segments[13], "{told}");
    }
}

#[test]
fn a_cut_segment_is_noticed() {
    let (_, _, segments) = long_log();
    for id in 1..=segments[13] {
        for len in [0, 100, PAGE, PAGE + 700, 6 * PAGE, 15 * PAGE] {
            let (disk, records, _) = long_log();
            assert!(disk.cut(&segment(id), len));
            let (_, report, recovered) = open_twice(&disk);
            assert!(
                report.damage.iter().any(|damage| matches!(damage.kind, DamageKind::SegmentCut { .. })
                    && damage.segment == id
                    && damage.offset == len),
                "segment {id} cut to {len}: {report:?}"
            );
            assert_all_accounted(&records, &recovered);
        }
    }
}

/// Every record is delivered as it was, or named as lost, or lies in a gap.
fn assert_all_accounted(records: &[Appended], recovered: &[Recovered]) {
    for record in records {
        assert!(
            recovered.iter().any(|found| match found {
                Recovered::Record { lsn, .. } if *lsn == record.lsn => *found == as_recovered(record),
                Recovered::PayloadLost { lsn, .. } if *lsn == record.lsn => *found == lost(record),
                Recovered::Record { .. } | Recovered::PayloadLost { .. } => false,
                Recovered::Gap { first, end } => *first <= record.lsn && record.lsn < *end,
            }),
            "position {} is not accounted for",
            record.lsn
        );
    }
}

#[test]
fn swapped_and_copied_segments_are_refused() {
    let (disk, ..) = long_log();
    let (one, two) = (disk.contents(&segment(1)).unwrap(), disk.contents(&segment(2)).unwrap());
    disk.preload(&segment(2), &one);
    let error = open(disk.clone(), options()).unwrap_err();
    let Error::Corrupt { file, offset: 0, what } = &error else { panic!("{error}") };
    assert_eq!(*file, segment(2));
    assert!(what.contains("holds segment 1"));
    disk.preload(&segment(1), &two);
    assert!(matches!(open(disk.clone(), options()), Err(Error::Corrupt { .. })));
    disk.preload(&segment(1), &one);
    disk.preload(&segment(2), &two);
    assert!(open(disk, options()).is_ok());
}

#[test]
fn an_old_copy_of_a_segment_is_noticed() {
    let disk = SimDisk::new(1 << 30);
    let (mut journal, ..) = open(disk.clone(), options()).unwrap();
    let mut records = vec![append(&mut journal, 1, 0, 9000)];
    commit(&mut journal).unwrap();
    let old = disk.contents(&segment(1)).unwrap();
    for seed in 1..12 {
        records.push(append(&mut journal, 1, seed, 9000));
        commit(&mut journal).unwrap();
    }
    disk.preload(&segment(1), &old);
    let (_, report, recovered) = open_twice(&disk);
    assert_all_accounted(&records, &recovered);
    assert!(report.lost_anything());
    assert!(matches!(only(&report).kind, DamageKind::DescriptorLost { first: Lsn(2), .. }));
}

/// A batch that was torn and discarded comes back from an old copy, in the place of the one written there later.
#[test]
fn a_batch_of_another_past_breaks_the_chain() {
    let (disk, _) = disk_with(2);
    let (mut journal, ..) = open(disk.clone(), options()).unwrap();
    append(&mut journal, 1, 8, 10);
    journal.flush().unwrap();
    let past = disk.contents(&segment(1)).unwrap();
    disk.crash(&mut |_| false);
    let (mut journal, ..) = open(disk.clone(), options()).unwrap();
    for seed in 9..11 {
        append(&mut journal, 1, seed, 10);
        commit(&mut journal).unwrap();
    }
    let mut mixed = disk.contents(&segment(1)).unwrap();
    let third = 3 * PAGE as usize..4 * PAGE as usize;
    mixed[third.clone()].copy_from_slice(&past[third]);
    disk.preload(&segment(1), &mixed);
    let error = open(disk, options()).unwrap_err();
    assert!(matches!(&error, Error::Corrupt { offset, .. } if *offset == 4 * PAGE), "{error}");
    assert!(error.to_string().contains("files of different times are mixed"));
}

#[test]
fn another_version_is_refused() {
    let (disk, _) = disk_with(2);
    let mut bytes = disk.contents(&segment(1)).unwrap();
    bytes[12] = 9;
    let crc = crc32c::crc32c(&bytes[12..64]);
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
    disk.preload(&segment(1), &bytes);
    let error = open(disk, options()).unwrap_err();
    assert!(matches!(&error, Error::Version { found: 9, supported: 1, offset: 0, .. }), "{error}");
    assert!(error.to_string().contains("segment-0000000000000001 at offset 0"));
}

#[test]
fn a_journal_without_one_readable_batch_is_refused() {
    let (disk, ..) = long_log();
    for name in disk.list().unwrap() {
        let len = disk.contents(&name).unwrap().len();
        disk.preload(&name, &vec![0; len]);
    }
    assert!(matches!(open(disk, options()), Err(Error::Corrupt { .. })));
    // The same when there was but one, which may have held acknowledged records.
    let (disk, _) = disk_with(1);
    disk.cut(&segment(1), 0);
    for _ in 0..2 {
        let error = open(disk.clone(), options()).unwrap_err();
        assert!(
            matches!(&error, Error::Corrupt { .. }) && error.to_string().contains("empty its data directory")
        );
    }
}

/// Without segments, a spare tells that there was a journal; its bytes must not come back under a new segment's id.
#[test]
fn a_spare_without_segments_is_no_new_journal() {
    let (disk, _) = disk_with(3);
    let old = disk.contents(&segment(1)).unwrap();
    disk.preload("spare-0000000000000001", &old);
    disk.delete(&segment(1));
    assert!(matches!(open(disk, options()), Err(Error::Corrupt { .. })));
}

#[test]
fn bytes_chosen_by_a_client_never_pass_as_a_batch() {
    let (disk, records) = disk_with(3);
    // A payload that holds what the journal's own next batch would look like, for a journal with another salt.
    let other = SimDisk::new(1 << 30);
    let mut options_of_other = options();
    options_of_other.identity.salt += 1;
    let (mut journal, ..) = open(other.clone(), options_of_other).unwrap();
    for seed in 0..6 {
        append(&mut journal, 66, seed, 100);
        commit(&mut journal).unwrap();
    }
    let forged = other.contents(&segment(1)).unwrap();
    let (mut journal, ..) = open(disk.clone(), options()).unwrap();
    // Descriptor (96 + 17) bytes, then the payload: shifted so that the forged pages lie on page boundaries.
    let shift = (PAGE - 96 - 17) as usize;
    let mut payload = vec![0; shift];
    payload.extend_from_slice(&forged[5 * PAGE as usize..7 * PAGE as usize]);
    journal.append(1, b"", &[Bytes::from(payload)]).unwrap();
    commit(&mut journal).unwrap();
    drop(journal);
    let whole = disk.contents(&segment(1)).unwrap();
    assert_eq!(whole[5 * PAGE as usize..6 * PAGE as usize], forged[5 * PAGE as usize..6 * PAGE as usize]);
    // Both descriptors of the carrier are destroyed, so that recovery searches its payload.
    for sector in (4 * PAGE..whole.len() as u64).step_by(SECTOR) {
        if whole[sector as usize..].starts_with(b"GAIOSBAT") && !(5 * PAGE..7 * PAGE).contains(&sector) {
            disk.zero_sector(&segment(1), sector);
        }
    }
    let (_, _, recovered) = open(disk, options()).unwrap();
    assert_eq!(recovered, all_recovered(&records));
}

#[test]
fn a_failed_sync_fences_and_a_restart_reads_what_the_disk_holds() {
    let (disk, records) = disk_with(2);
    let (mut journal, ..) = open(disk.clone(), options()).unwrap();
    append(&mut journal, 1, 9, 100);
    journal.flush().unwrap();
    disk.fail_syncs(1);
    assert!(matches!(journal.sync(), Err(Error::Io { .. })));
    assert!(journal.is_fenced());
    assert!(matches!(journal.sync(), Err(Error::Fenced)));
    assert!(matches!(journal.flush(), Err(Error::Fenced)));
    assert!(matches!(journal.append(1, b"", &[]), Err(Error::Fenced)));
    assert!(matches!(journal.maintain(), Err(Error::Fenced)));
    // The process restarts, the machine does not: the cache still shows the batch.
    disk.restart_process();
    let (_, report, recovered) = open(disk, options()).unwrap();
    assert_eq!(recovered, all_recovered(&records));
    assert!(report.damage.is_empty());
}

#[test]
fn a_failed_write_fences() {
    let (disk, records) = disk_with(2);
    let (mut journal, ..) = open(disk.clone(), options()).unwrap();
    append(&mut journal, 1, 9, 100);
    disk.fail_writes(1);
    assert!(matches!(journal.flush(), Err(Error::Io { .. })));
    assert!(matches!(journal.flush(), Err(Error::Fenced)));
    disk.crash(&mut |_| false);
    let (_, _, recovered) = open(disk, options()).unwrap();
    assert_eq!(recovered, all_recovered(&records));
}

#[test]
fn a_full_disk_is_found_early_and_appends_go_on_when_space_returns() {
    let disk = SimDisk::new(130 << 10);
    let (mut journal, ..) = open(disk.clone(), options()).unwrap();
    let mut records = Vec::new();
    // Two segments fit; the third does not, which is known while the second still has room.
    while !journal.stats().full {
        assert!(records.len() < 100, "two segments hold fewer");
        records.push(append(&mut journal, 1, records.len() as u64, 3000));
        commit(&mut journal).unwrap();
        match journal.maintain() {
            Ok(_) => {}
            Err(error @ Error::Full { .. }) => assert_eq!(
                error.to_string(),
                "the disk is full: 65536 bytes are needed for segment-0000000000000003, 2048 are available"
            ),
            Err(error) => panic!("{error}"),
        }
    }
    let known = records.len();
    let error = loop {
        assert!(records.len() < 100, "two segments hold fewer");
        records.push(append(&mut journal, 1, records.len() as u64, 3000));
        match commit(&mut journal) {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Full { .. }) && error.is_retryable(), "{error}");
    assert!(records.len() > known + 5);
    let durable = records.len() - 1;
    assert_eq!(journal.durable(), records[durable - 1].lsn);
    // A crash in this state loses what was not written, and nothing else; the restart needs no space.
    {
        let disk = disk.fork();
        disk.crash(&mut |_| false);
        let (_, report, recovered) = open(disk, options()).unwrap();
        assert_eq!(recovered, all_recovered(&records[..durable]));
        assert!(report.damage.is_empty());
    }
    records.push(append(&mut journal, 1, 1000, 3000));
    assert!(matches!(journal.flush(), Err(Error::Full { .. })));
    disk.set_capacity(1 << 20);
    commit(&mut journal).unwrap();
    assert!(!journal.stats().full);
    disk.crash(&mut |_| false);
    let (_, report, recovered) = open(disk, options()).unwrap();
    assert_eq!(recovered, all_recovered(&records));
    assert!(report.damage.is_empty());
}

#[test]
fn a_full_disk_is_relieved_by_recycling() {
    let disk = SimDisk::new(130 << 10);
    let (mut journal, ..) = open(disk.clone(), options()).unwrap();
    for seed in 0..200 {
        append(&mut journal, 1, seed, 3000);
        commit(&mut journal).unwrap();
        journal.set_floor(1, journal.head());
        // Full again and again, and again relieved: the floor of each batch becomes durable with the next.
        loop {
            match journal.maintain() {
                Ok(true) => {}
                Ok(false) | Err(Error::Full { .. }) => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert_eq!(journal.durable(), Lsn(200));
}

/// The disk and the active segment are full, and only then the groups take their snapshots.
#[test]
fn a_full_disk_is_relieved_by_floors_that_rise_late() {
    let disk = SimDisk::new(130 << 10);
    let (mut journal, ..) = open(disk.clone(), options()).unwrap();
    let mut last = append(&mut journal, 1, 0, 3000);
    while commit(&mut journal).is_ok() {
        assert!(last.lsn < Lsn(100), "two segments hold fewer");
        last = append(&mut journal, 1, last.lsn.0, 3000);
    }
    assert!(matches!(journal.flush(), Err(Error::Full { .. })));
    journal.set_floor(1, last.lsn);
    commit(&mut journal).unwrap();
    disk.crash(&mut |_| false);
    let (journal, report, recovered) = open(disk, options()).unwrap();
    assert_eq!(recovered.last(), Some(&as_recovered(&last)));
    assert!(report.damage.is_empty());
    assert!(journal.stats().oldest > Lsn(1));
}

#[test]
fn inspecting_changes_nothing() {
    let (disk, _) = disk_with(4);
    disk.flip(&segment(1), 2 * PAGE + 150, 3);
    let before = (disk.counters(), disk.contents(&segment(1)));
    let report = Journal::read(&disk, options(), &mut |_| {}).unwrap();
    assert!(report.lost_anything());
    assert_eq!((disk.counters(), disk.contents(&segment(1))), before);
}

#[test]
fn strange_files_are_left_alone() {
    let (disk, records) = disk_with(2);
    let strange = ["segment-1", "segment-00000000000000FF", "segment-0000000000000000", "notes.txt"];
    for name in strange {
        disk.preload(name, b"hello");
    }
    disk.preload("making-segment-0000000000000009", b"left by a crash");
    disk.preload("spare-0000000000000009", b"of another size");
    let (_, report, recovered) = open_twice(&disk);
    assert_eq!(recovered, all_recovered(&records));
    assert!(report.damage.is_empty());
    let names = disk.list().unwrap();
    assert!(strange.iter().all(|name| names.iter().any(|found| found == name)));
    assert!(!names.iter().any(|name| name.starts_with("making") || name.starts_with("spare")));
}

#[test]
fn options_are_brought_into_range() {
    let disk = SimDisk::new(1 << 30);
    let options = Options { segment_bytes: 1, batch_bytes_max: 0, ..options() };
    let (mut journal, ..) = open(disk.clone(), options.clone()).unwrap();
    let records: Vec<Appended> = (0..9).map(|seed| append(&mut journal, 1, seed, 5000)).collect();
    commit(&mut journal).unwrap();
    assert_eq!(journal.options().segment_bytes, 16 << 10);
    let (_, _, recovered) = open(disk, options).unwrap();
    assert_eq!(recovered, all_recovered(&records));
}
