//! The simulated disk loses what it says, and nothing else.
#![allow(clippy::unwrap_used, reason = "a helper of tests may stop the test")]

use journal::{
    Disk, DiskFile, SimDisk,
    sim::{CrashChoice, SECTOR},
};

fn disk_with_file(len: usize) -> (SimDisk, <SimDisk as Disk>::File) {
    let disk = SimDisk::new(1 << 20);
    let mut file = disk.create("f").unwrap();
    file.write_at(&vec![1; len], 0).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir().unwrap();
    (disk, file)
}

#[test]
fn each_unsynced_sector_is_kept_or_lost_on_its_own() {
    let (disk, mut file) = disk_with_file(4 * SECTOR);
    // Ends in the middle of sector 3; sector 0 stays.
    file.write_at(&vec![2; 2 * SECTOR + 100], SECTOR as u64).unwrap();
    assert_eq!(disk.unsynced_sectors(), 3);
    let mut asked = Vec::new();
    disk.crash(&mut |choice| {
        asked.push(format!("{choice:?}"));
        !matches!(choice, CrashChoice::KeepSector { offset, .. } if offset == 2 * SECTOR as u64)
    });
    assert_eq!(asked.len(), 5, "three sectors, two of them kept: {asked:?}");
    let bytes = disk.contents("f").unwrap();
    let expected =
        [vec![1; SECTOR], vec![2; SECTOR], vec![1; SECTOR], vec![2; 100], vec![1; SECTOR - 100]].concat();
    assert_eq!(bytes, expected);
    assert_eq!(disk.unsynced_sectors(), 0);
    assert!(file.len().is_err(), "files from before a crash are stale");
}

#[test]
fn a_torn_sector_is_half_new() {
    let (disk, mut file) = disk_with_file(SECTOR);
    file.write_at(&[2; SECTOR], 0).unwrap();
    disk.crash(&mut |choice| !matches!(choice, CrashChoice::WholeSector { .. }));
    let half = SECTOR / 2;
    assert_eq!(disk.contents("f").unwrap(), [vec![2; half], vec![1; half]].concat());
}

#[test]
fn names_and_lengths_are_lost_too() {
    let (disk, mut file) = disk_with_file(SECTOR);
    file.write_at(&[2; 10], 2000).unwrap();
    disk.create("g").unwrap();
    disk.rename("f", "h").unwrap();
    let kept_nothing = disk.fork();
    kept_nothing.crash(&mut |_| false);
    assert_eq!(kept_nothing.list().unwrap(), ["f"]);
    assert_eq!(kept_nothing.contents("f").unwrap(), [1; SECTOR]);
    let kept_length = disk.fork();
    kept_length.crash(&mut |choice| matches!(choice, CrashChoice::KeepLength { .. }));
    let expected = [vec![1; SECTOR], vec![0; 2010 - SECTOR]].concat();
    assert_eq!(kept_length.contents("f").unwrap(), expected);
    disk.crash(&mut |choice| !matches!(choice, CrashChoice::KeepName { name: "g" }));
    assert_eq!(disk.list().unwrap(), ["h"]);
    assert_eq!(disk.contents("h").unwrap().len(), 2010);
}

#[test]
fn a_lost_truncation_brings_the_bytes_back() {
    let (disk, mut file) = disk_with_file(3 * SECTOR);
    file.truncate(SECTOR as u64 + 7).unwrap();
    assert_eq!(disk.contents("f").unwrap().len(), SECTOR + 7);
    disk.crash(&mut |_| false);
    assert_eq!(disk.contents("f").unwrap(), [1; 3 * SECTOR]);
}

#[test]
fn a_failed_sync_loses_its_writes_for_good() {
    let (disk, mut file) = disk_with_file(2 * SECTOR);
    file.write_at(&[2; 2 * SECTOR], 0).unwrap();
    disk.fail_syncs(1);
    file.sync_data().unwrap_err();
    file.sync_data().unwrap();
    assert_eq!(disk.contents("f").unwrap(), [2; 2 * SECTOR], "the cache still shows them");
    // What is written again and synced is on the disk.
    file.write_at(&[3; SECTOR], 0).unwrap();
    file.sync_data().unwrap();
    let dropped = disk.fork();
    dropped.open("f").unwrap().drop_cache().unwrap();
    disk.crash(&mut |_| true);
    for disk in [disk, dropped] {
        assert_eq!(disk.contents("f").unwrap(), [vec![3; SECTOR], vec![1; SECTOR]].concat());
    }
}

#[test]
fn capacity_is_shared_and_given_back() {
    let disk = SimDisk::new(1000);
    let mut file = disk.create("a").unwrap();
    file.allocate(600).unwrap();
    assert_eq!(disk.available_bytes().unwrap(), 400);
    let full = disk.create("b").unwrap().allocate(401).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    file.write_at(&[1; 600], 0).unwrap();
    assert_eq!(file.write_at(&[1; 500], 600).unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    disk.remove("a").unwrap();
    assert_eq!(disk.available_bytes().unwrap(), 1000);
}

#[test]
fn harm_is_done_where_it_is_asked_for() {
    let (disk, file) = disk_with_file(3 * SECTOR);
    assert!(disk.flip("f", 5, 0));
    assert!(!disk.flip("f", 3 * SECTOR as u64, 0));
    assert!(!disk.flip("g", 0, 0));
    assert!(disk.zero_sector("f", SECTOR as u64 + 5));
    assert!(disk.make_unreadable("f", 2 * SECTOR as u64));
    let mut buf = vec![9; 2 * SECTOR];
    assert_eq!(file.read_at(&mut buf, 0).unwrap(), 2 * SECTOR);
    assert_eq!((buf[4], buf[5], buf[SECTOR]), (1, 0, 0));
    assert!(file.read_at(&mut buf, SECTOR as u64 + 1).is_err());
    disk.open("f").unwrap().write_at(&[7; 1], 2 * SECTOR as u64).unwrap();
    assert!(file.read_at(&mut buf, SECTOR as u64 + 1).is_ok(), "a written sector can be read again");
}

#[test]
fn a_failed_write_leaves_half() {
    let (disk, mut file) = disk_with_file(SECTOR);
    disk.fail_writes(1);
    file.write_at(&[5; 100], 0).unwrap_err();
    assert_eq!(disk.contents("f").unwrap()[49..51], [5, 1]);
    file.write_at(&[6; 100], 0).unwrap();
}
