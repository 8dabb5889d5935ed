//! One suite for every disk: the real one in a temporary directory, and the simulated one.
#![allow(clippy::unwrap_used, reason = "a helper of tests may stop the test")]

mod common;

use std::time::Duration;

use std::io::{self, IoSlice};

use common::*;
use journal::{
    Disk, DiskFile, Error, Facts, Identity, Journal, Lsn, RealDisk, SimDisk, Snapshot, SnapshotId,
    SnapshotReader, SnapshotWriter, Superblock,
};

/// Runs a check on both disks.
fn on_both(check: impl Fn(&dyn Fn() -> AnyDisk)) {
    let dir = tempfile::tempdir().unwrap();
    let real = RealDisk::open(dir.path()).unwrap();
    check(&|| AnyDisk::Real(real.clone()));
    let sim = SimDisk::new(1 << 30);
    check(&|| AnyDisk::Sim(sim.clone()));
}

/// Either disk behind one type; it doubles as proof that the trait can be implemented outside the crate.
#[derive(Clone, Debug)]
enum AnyDisk {
    Real(RealDisk),
    Sim(SimDisk),
}

#[derive(Debug)]
enum AnyFile {
    Real(<RealDisk as Disk>::File),
    Sim(<SimDisk as Disk>::File),
}

impl Disk for AnyDisk {
    type File = AnyFile;
    fn create(&self, name: &str) -> io::Result<AnyFile> {
        match self {
            AnyDisk::Real(disk) => disk.create(name).map(AnyFile::Real),
            AnyDisk::Sim(disk) => disk.create(name).map(AnyFile::Sim),
        }
    }
    fn open(&self, name: &str) -> io::Result<AnyFile> {
        match self {
            AnyDisk::Real(disk) => disk.open(name).map(AnyFile::Real),
            AnyDisk::Sim(disk) => disk.open(name).map(AnyFile::Sim),
        }
    }
    fn list(&self) -> io::Result<Vec<String>> {
        match self {
            AnyDisk::Real(disk) => disk.list(),
            AnyDisk::Sim(disk) => disk.list(),
        }
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        match self {
            AnyDisk::Real(disk) => disk.rename(from, to),
            AnyDisk::Sim(disk) => disk.rename(from, to),
        }
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        match self {
            AnyDisk::Real(disk) => disk.remove(name),
            AnyDisk::Sim(disk) => disk.remove(name),
        }
    }
    fn sync_dir(&self) -> io::Result<()> {
        match self {
            AnyDisk::Real(disk) => disk.sync_dir(),
            AnyDisk::Sim(disk) => disk.sync_dir(),
        }
    }
    fn available_bytes(&self) -> io::Result<u64> {
        match self {
            AnyDisk::Real(disk) => disk.available_bytes(),
            AnyDisk::Sim(disk) => disk.available_bytes(),
        }
    }
}

impl DiskFile for AnyFile {
    fn len(&self) -> io::Result<u64> {
        match self {
            AnyFile::Real(file) => file.len(),
            AnyFile::Sim(file) => file.len(),
        }
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        match self {
            AnyFile::Real(file) => file.read_at(buf, offset),
            AnyFile::Sim(file) => file.read_at(buf, offset),
        }
    }
    fn write_vectored_at(&mut self, pieces: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        match self {
            AnyFile::Real(file) => file.write_vectored_at(pieces, offset),
            AnyFile::Sim(file) => file.write_vectored_at(pieces, offset),
        }
    }
    fn sync_data(&mut self) -> io::Result<()> {
        match self {
            AnyFile::Real(file) => file.sync_data(),
            AnyFile::Sim(file) => file.sync_data(),
        }
    }
    fn allocate(&mut self, len: u64) -> io::Result<()> {
        match self {
            AnyFile::Real(file) => file.allocate(len),
            AnyFile::Sim(file) => file.allocate(len),
        }
    }
    fn truncate(&mut self, len: u64) -> io::Result<()> {
        match self {
            AnyFile::Real(file) => file.truncate(len),
            AnyFile::Sim(file) => file.truncate(len),
        }
    }
    fn drop_cache(&self) -> io::Result<()> {
        match self {
            AnyFile::Real(file) => file.drop_cache(),
            AnyFile::Sim(file) => file.drop_cache(),
        }
    }
}

#[test]
fn files_hold_what_was_written() {
    on_both(|disk| {
        let disk = disk();
        let mut file = disk.create("a").unwrap();
        assert_eq!(disk.create("a").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(file.is_empty().unwrap());
        file.allocate(10_000).unwrap();
        assert_eq!(file.len().unwrap(), 10_000);
        // More pieces than one system call takes, empty ones among them.
        let pieces: Vec<Vec<u8>> = (0..3000u32).map(|i| vec![i as u8; (i % 4) as usize]).collect();
        let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        file.write_vectored_at(&slices, 700).unwrap();
        file.sync_data().unwrap();
        let all: Vec<u8> = pieces.concat();
        let mut read = vec![0xFF; all.len() + 1];
        assert_eq!(file.read_at(&mut read, 700).unwrap(), read.len());
        assert_eq!(read[..all.len()], all[..]);
        assert_eq!(read[all.len()], 0, "new bytes read as zero");
        assert_eq!(file.read_at(&mut read, 9_999).unwrap(), 1, "reads end with the file");
        assert_eq!(file.read_at(&mut read, 20_000).unwrap(), 0);
        file.write_at(b"longer", 10_000).unwrap();
        assert_eq!(file.len().unwrap(), 10_006);
        file.truncate(5).unwrap();
        file.allocate(3).unwrap();
        assert_eq!(file.len().unwrap(), 5, "allocating never shortens");
        file.drop_cache().unwrap();
        disk.create("b").unwrap();
        disk.rename("a", "b").unwrap();
        disk.sync_dir().unwrap();
        assert_eq!(disk.list().unwrap(), ["b"]);
        assert_eq!(disk.open("b").unwrap().len().unwrap(), 5);
        assert_eq!(disk.open("a").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(disk.rename("a", "c").unwrap_err().kind(), io::ErrorKind::NotFound);
        disk.remove("b").unwrap();
        assert_eq!(disk.remove("b").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(disk.available_bytes().unwrap() > 0);
    });
}

#[test]
fn records_come_back_in_order_over_many_segments_and_restarts() {
    on_both(|disk| {
        let mut appended = Vec::new();
        for life in 0..4u64 {
            let (mut journal, report, recovered) = open(disk(), options()).unwrap();
            assert_eq!(recovered, all_recovered(&appended));
            assert!(report.damage.is_empty() && report.torn_tail.is_none(), "{report:?}");
            for i in 0..60u64 {
                let seed = life * 1000 + i;
                let len = [0, 1, 300, 4096, 4097, 9000][(i % 6) as usize];
                appended.push(append(&mut journal, i % 5, seed, len));
                if i % 7 == 6 {
                    commit(&mut journal).unwrap();
                }
                if i % 11 == 0 {
                    while journal.maintain().unwrap() {}
                }
            }
            let durable = commit(&mut journal).unwrap();
            assert_eq!(durable, appended.last().unwrap().lsn);
            assert_eq!(journal.stats().durable, durable);
        }
        assert!(disk().list().unwrap().len() > 8, "the test covers many segments");
    });
}

#[test]
fn a_record_longer_than_a_segment_gets_a_longer_one() {
    on_both(|disk| {
        let (mut journal, ..) = open(disk(), options()).unwrap();
        let mut appended = vec![append(&mut journal, 1, 1, 10)];
        commit(&mut journal).unwrap();
        appended.push(append(&mut journal, 1, 2, 300_000));
        appended.push(append(&mut journal, 1, 3, 10));
        commit(&mut journal).unwrap();
        drop(journal);
        let (mut journal, report, recovered) = open(disk(), options()).unwrap();
        assert_eq!(recovered, all_recovered(&appended));
        assert!(report.damage.is_empty());
        // Longer files are not kept as spares.
        for i in 0..20 {
            append(&mut journal, 2, i, 9000);
            commit(&mut journal).unwrap();
        }
        let head = journal.head();
        journal.set_floor(1, head);
        journal.set_floor(2, head);
        append(&mut journal, 2, 99, 1);
        commit(&mut journal).unwrap();
        while journal.maintain().unwrap() {}
        assert!(journal.stats().oldest > Lsn(3));
        for name in disk().list().unwrap() {
            assert_eq!(disk().open(&name).unwrap().len().unwrap(), 64 << 10, "{name}");
        }
    });
}

#[test]
fn segments_below_every_floor_are_recycled_and_reused() {
    on_both(|disk| {
        let (mut journal, ..) = open(disk(), options()).unwrap();
        let mut kept = Vec::new();
        for i in 0..200u64 {
            kept.push(append(&mut journal, 1 + i % 2, i, 5000));
            commit(&mut journal).unwrap();
            while journal.maintain().unwrap() {}
            let floor = Lsn(journal.head().0.saturating_sub(20));
            journal.set_floor(1, floor);
            journal.set_floor(2, floor);
        }
        let stats = journal.stats();
        assert!(stats.disk_bytes <= 12 * (64 << 10), "{stats:?}");
        assert!(stats.oldest > Lsn(100), "{stats:?}");
        drop(journal);
        let (journal, report, recovered) = open(disk(), options()).unwrap();
        assert!(report.damage.is_empty(), "{report:?}");
        let first = stats.oldest.0 as usize - 1;
        assert_eq!(recovered, all_recovered(&kept[first..]));
        assert_eq!(journal.stats().oldest, stats.oldest);
    });
}

#[test]
fn an_idle_group_holds_nothing_back_and_a_lagging_one_is_named() {
    on_both(|disk| {
        let (mut journal, ..) = open(disk(), options()).unwrap();
        append(&mut journal, 7, 0, 10);
        append(&mut journal, 8, 0, 10);
        commit(&mut journal).unwrap();
        let after = journal.head();
        for i in 0..100u64 {
            append(&mut journal, 1, i, 5000);
            commit(&mut journal).unwrap();
        }
        journal.set_floor(1, journal.head());
        assert_eq!(journal.pinned(), [(7, Lsn(1)), (8, Lsn(2))]);
        journal.set_floor(7, after);
        journal.remove_group(8);
        assert!(journal.pinned().is_empty());
        append(&mut journal, 1, 200, 1);
        commit(&mut journal).unwrap();
        while journal.maintain().unwrap() {}
        assert_eq!(journal.stats().segments, 1);
        // Floors never fall, and unknown groups have none.
        journal.set_floor(1, Lsn(1));
        journal.set_floor(99, Lsn(1));
        assert!(journal.pinned().is_empty());
    });
}

#[test]
fn sizes_are_checked() {
    on_both(|disk| {
        let (mut journal, ..) = open(disk(), options()).unwrap();
        assert!(matches!(journal.append(1, &[0; 65], &[]), Err(Error::TooLarge { len: 65, max: 64, .. })));
        let big = bytes::Bytes::from(vec![0; journal::PAYLOAD_BYTES_MAX / 2 + 1]);
        assert!(matches!(journal.append(1, &[], &[big.clone(), big]), Err(Error::TooLarge { .. })));
        assert_eq!(journal.append(1, &[1; 64], &[]).unwrap(), Lsn(1));
        commit(&mut journal).unwrap();
        drop(journal);
        let (_, _, recovered) = open(disk(), options()).unwrap();
        assert_eq!(recovered.len(), 1);
    });
}

#[test]
fn files_of_others_are_refused() {
    on_both(|disk| {
        let (mut journal, ..) = open(disk(), options()).unwrap();
        append(&mut journal, 1, 1, 10);
        commit(&mut journal).unwrap();
        drop(journal);
        for identity in [
            Identity { cluster: 1, ..IDENTITY },
            Identity { node: 1, ..IDENTITY },
            Identity { salt: 1, ..IDENTITY },
        ] {
            let options = journal::Options { identity, ..options() };
            let error = open(disk(), options.clone()).unwrap_err();
            assert!(
                matches!(&error, Error::Foreign { file, offset: 0, .. } if *file == segment(1)),
                "{error}"
            );
            assert!(matches!(Journal::read(&disk(), options, &mut |_| {}), Err(Error::Foreign { .. })));
        }
    });
}

#[test]
fn a_journal_that_must_exist_is_not_made_anew() {
    on_both(|disk| {
        let options = journal::Options { must_exist: true, ..options() };
        assert!(matches!(open(disk(), options), Err(Error::Corrupt { .. })));
        assert!(disk().list().unwrap().is_empty());
    });
}

#[test]
fn the_superblock_survives_one_damaged_copy() {
    on_both(|disk| {
        assert!(Superblock::open(disk()).unwrap().is_none());
        let mut superblock = Superblock::create(disk(), IDENTITY, 77).unwrap();
        assert_eq!(superblock.begin_incarnation(Duration::from_millis(350)).unwrap(), 1);
        superblock.journal_made().unwrap();
        assert!(matches!(Superblock::create(disk(), IDENTITY, 78), Err(Error::Corrupt { .. })));
        let begun = Facts {
            identity: IDENTITY,
            incarnation: 1,
            journal_made: true,
            mark: 77,
            support: Duration::from_millis(350),
            ..Facts::default()
        };
        assert_eq!(*Superblock::open(disk()).unwrap().unwrap().facts(), begun);
        let roll = vec![(2, u64::MAX), (3, 7)];
        superblock.take_place(roll.clone(), Some(1000)).unwrap();
        let facts = Facts { incarnation: 1000, placed: true, returned: true, roll, ..begun };
        for copy in ["superblock-a", "superblock-b"] {
            disk().open(copy).unwrap().write_at(b"x", 50).unwrap();
            let superblock = Superblock::open(disk()).unwrap().unwrap();
            assert_eq!(*superblock.facts(), facts);
            assert_eq!(superblock.repaired(), Some(copy));
            assert_eq!(Superblock::open(disk()).unwrap().unwrap().repaired(), None, "it was written anew");
            disk().remove(copy).unwrap();
            assert_eq!(*Superblock::open(disk()).unwrap().unwrap().facts(), facts);
        }
        superblock = Superblock::open(disk()).unwrap().unwrap();
        superblock.settle().unwrap();
        let settled = Facts { returned: false, ..facts };
        assert_eq!(*Superblock::open(disk()).unwrap().unwrap().facts(), settled);
        for copy in ["superblock-a", "superblock-b"] {
            disk().open(copy).unwrap().write_at(b"x", 50).unwrap();
        }
        assert!(matches!(Superblock::open(disk()), Err(Error::Corrupt { .. })));
        disk().remove("superblock-a").unwrap();
        disk().remove("superblock-b").unwrap();
        let _ = open(disk(), options()).unwrap();
        assert!(
            matches!(Superblock::open(disk()), Err(Error::Corrupt { .. })),
            "a journal without a superblock"
        );
    });
}

#[test]
fn the_longest_support_is_kept_until_it_is_said_to_be_over() {
    on_both(|disk| {
        let micros = Duration::from_micros;
        let kept = || Superblock::open(disk()).unwrap().unwrap().facts().support;
        let mut superblock = Superblock::create(disk(), IDENTITY, 77).unwrap();
        assert_eq!(kept(), Duration::ZERO, "no life has given any");
        for (support, expected) in [(350_000, 350_000), (2_000_500, 2_001_000), (50_000, 2_001_000)] {
            superblock.begin_incarnation(micros(support)).unwrap();
            assert_eq!(kept(), micros(expected), "never less than was given");
        }
        superblock.lower_support(micros(50_000)).unwrap();
        assert_eq!(kept(), micros(50_000));
        assert_eq!(superblock.facts().incarnation, 3);
    });
}

#[test]
fn snapshots_are_whole_or_refused() {
    on_both(|disk| {
        let id = SnapshotId { group: 3, slot: 99 };
        let slices: Vec<Vec<u8>> = (0..20).map(|i| payload(i, (i * 777) as usize)).collect();
        let mut writer = SnapshotWriter::create(disk(), IDENTITY, id, b"meta").unwrap();
        for slice in &slices {
            writer.slice(slice).unwrap();
        }
        assert!(Snapshot::list(&disk()).unwrap().is_empty(), "it has no name before it is finished");
        writer.finish().unwrap();
        assert_eq!(Snapshot::list(&disk()).unwrap(), [id]);
        let reader = SnapshotReader::<AnyDisk>::open(&disk(), IDENTITY, id).unwrap();
        assert_eq!(reader.meta(), "meta");
        assert_eq!(reader.slices(), 20);
        assert_eq!(reader.total_bytes(), slices.iter().map(|slice| slice.len() as u64).sum::<u64>());
        for (i, slice) in slices.iter().enumerate() {
            assert_eq!(reader.slice(i as u64).unwrap().unwrap(), slice);
        }
        assert_eq!(reader.slice(20).unwrap(), None);

        let name = id.file_name();
        let len = disk().open(&name).unwrap().len().unwrap();
        let mut whole = vec![0; len as usize];
        disk().open(&name).unwrap().read_at(&mut whole, 0).unwrap();
        // Any damaged byte is noticed.
        for at in (0..len).step_by(61).chain([len - 1, len - 20, len - 30, 0, 9, 13, 49]) {
            let mut file = disk().open(&name).unwrap();
            file.write_at(&[whole[at as usize] ^ 0x10], at).unwrap();
            let refused = SnapshotReader::<AnyDisk>::open(&disk(), IDENTITY, id);
            assert!(matches!(refused, Err(Error::Corrupt { .. })), "byte {at}: {refused:?}");
            file.write_at(&[whole[at as usize]], at).unwrap();
        }
        // So is every cut, and every byte too many.
        for at in (0..len).step_by(997) {
            let mut file = disk().open(&name).unwrap();
            file.truncate(at).unwrap();
            assert!(SnapshotReader::<AnyDisk>::open(&disk(), IDENTITY, id).is_err(), "cut at {at}");
            file.write_at(&whole, 0).unwrap();
        }
        disk().open(&name).unwrap().write_at(b"x", len).unwrap();
        assert!(SnapshotReader::<AnyDisk>::open(&disk(), IDENTITY, id).is_err());
        disk().open(&name).unwrap().truncate(len).unwrap();

        let other = Identity { cluster: 1, ..IDENTITY };
        assert!(matches!(SnapshotReader::<AnyDisk>::open(&disk(), other, id), Err(Error::Foreign { .. })));
        let moved = SnapshotId { group: 4, slot: 99 };
        disk().rename(&name, &moved.file_name()).unwrap();
        assert!(matches!(
            SnapshotReader::<AnyDisk>::open(&disk(), IDENTITY, moved),
            Err(Error::Corrupt { .. })
        ));
        disk().rename(&moved.file_name(), &name).unwrap();

        for slot in [100, 101] {
            SnapshotWriter::create(disk(), IDENTITY, SnapshotId { group: 3, slot }, b"")
                .unwrap()
                .finish()
                .unwrap();
        }
        SnapshotWriter::create(disk(), IDENTITY, SnapshotId { group: 4, slot: 1 }, b"")
            .unwrap()
            .finish()
            .unwrap();
        Snapshot::remove_older(&disk(), SnapshotId { group: 3, slot: 101 }).unwrap();
        let left = [SnapshotId { group: 3, slot: 101 }, SnapshotId { group: 4, slot: 1 }];
        assert_eq!(Snapshot::list(&disk()).unwrap(), left);
        Snapshot::remove(&disk(), left[1]).unwrap();
        drop(SnapshotWriter::create(disk(), IDENTITY, left[1], b"").unwrap());

        // Two at a time: the one that is given up takes nothing from the other.
        let write = |meta: &[u8]| SnapshotWriter::create(disk(), IDENTITY, left[1], meta).unwrap();
        let (mut first, second, third) = (write(b"first"), write(b"second"), write(b"third"));
        first.slice(b"slice").unwrap();
        drop(third);
        first.finish().unwrap();
        let meta = || SnapshotReader::<AnyDisk>::open(&disk(), IDENTITY, left[1]).unwrap().meta().clone();
        assert_eq!(meta(), "first");
        second.finish().unwrap();
        assert_eq!(meta(), "second");
        Snapshot::remove(&disk(), left[1]).unwrap();

        disk().create("making-snapshot-left").unwrap();
        Snapshot::remove_unfinished(&disk()).unwrap();
        assert_eq!(disk().list().unwrap(), [left[0].file_name()]);
    });
}

#[test]
fn a_disk_too_full_for_a_snapshot_names_the_snapshot() {
    let id = SnapshotId { group: 3, slot: 1 };
    let mut writer = SnapshotWriter::create(SimDisk::new(64 << 10), IDENTITY, id, b"").unwrap();
    let error = writer.slice(&[7; 100 << 10]).unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("for making-snapshot-"), "{error}");
}

#[test]
fn a_lock_that_cannot_be_opened_is_told_with_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let lock = dir.path().join("lock");
    std::fs::create_dir(&lock).unwrap();
    let error = RealDisk::open(dir.path()).unwrap_err();
    assert!(error.to_string().contains(&lock.display().to_string()), "{error}");
}

#[test]
fn a_data_directory_has_one_owner() {
    let dir = tempfile::tempdir().unwrap();
    let first = RealDisk::open(dir.path()).unwrap();
    let clone = first.clone();
    assert!(matches!(RealDisk::open(dir.path()), Err(Error::Locked { .. })));
    drop(first);
    assert!(matches!(RealDisk::open(dir.path()), Err(Error::Locked { .. })));
    drop(clone);
    RealDisk::open(dir.path()).unwrap();
    let flat = RealDisk::open(dir.path()).unwrap().create("../x").unwrap_err();
    assert_eq!(flat.kind(), io::ErrorKind::InvalidInput);
}

/// Whole pages take another way to the disk than parts of pages; both are read the same.
#[test]
fn whole_pages_and_parts_of_them_mix() {
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::open(dir.path()).unwrap();
    let mut file = disk.create("mixed").unwrap();
    file.allocate(64 << 10).unwrap();
    let mut expected = vec![0; 64 << 10];
    let mut write = |file: &mut <RealDisk as Disk>::File, offset: usize, lens: &[usize]| {
        let bytes: Vec<Vec<u8>> = lens.iter().map(|len| payload((offset + len) as u64, *len)).collect();
        let pieces: Vec<IoSlice<'_>> = bytes.iter().map(|piece| IoSlice::new(piece)).collect();
        file.write_vectored_at(&pieces, offset as u64).unwrap();
        let bytes = bytes.concat();
        expected[offset..offset + bytes.len()].copy_from_slice(&bytes);
        let mut read = vec![1; expected.len()];
        file.read_at(&mut read, 0).unwrap();
        assert!(read == expected, "after {lens:?} at {offset}");
    };
    write(&mut file, 4096, &[1, 4000, 95, 0, 4096]);
    write(&mut file, 5000, &[10]);
    write(&mut file, 4096, &[4096]);
    write(&mut file, 100, &[8000]);
    write(&mut file, 0, &[32 << 10, 16 << 10]);
    file.sync_data().unwrap();
    drop(file);
    let mut read = vec![1; expected.len()];
    disk.open("mixed").unwrap().read_at(&mut read, 0).unwrap();
    assert!(read == expected);
}
