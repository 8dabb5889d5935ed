//! A restart over arbitrary bytes: never a panic, never more memory than the files have bytes, never a wrong record.
//!
//! The first byte chooses between two ways. Even: the rest are segment files as they are, with the checksums of whatever
//! looks like a header or a descriptor made right, so that the search gets past them. Odd: a journal is written by
//! the instructions in the rest and then damaged by them; what a restart delivers must be what was appended.

#![no_main]

use std::collections::BTreeMap;

use bytes::Bytes;
use journal::{Identity, Journal, Lsn, Options, Recovered, SimDisk, sim::CrashChoice};
use libfuzzer_sys::fuzz_target;

const IDENTITY: Identity = Identity { cluster: 1, node: 2, salt: 3 };

fn options() -> Options {
    Options { identity: IDENTITY, segment_bytes: 32 << 10, batch_bytes_max: 8 << 10, ..Options::default() }
}

fn segment(id: u64) -> String {
    format!("segment-{id:016x}")
}

fuzz_target!(|data: &[u8]| {
    let Some((way, rest)) = data.split_first() else { return };
    if way % 2 == 0 { arbitrary_files(rest) } else { damaged_journal(rest) }
});

fn arbitrary_files(data: &[u8]) {
    let disk = SimDisk::new(1 << 30);
    let Some((cut, data)) = data.split_first() else { return };
    let middle = data.len() * usize::from(*cut) / 255;
    for (id, part) in [(1, &data[..middle]), (2, &data[middle..])] {
        // Spread over the places where a restart looks: the header, then sectors from 4096 on.
        let mut bytes = part[..part.len().min(64)].to_vec();
        if part.len() > 64 {
            bytes.resize(4096, 0);
            bytes.extend_from_slice(&part[64..]);
        }
        make_checksums_right(&mut bytes, id);
        disk.preload(&segment(id), &bytes);
    }
    check(&disk, None);
}

fn make_checksums_right(bytes: &mut [u8], id: u64) {
    let owner = [IDENTITY.cluster, IDENTITY.node, IDENTITY.salt].map(u64::to_le_bytes).concat();
    let seed = crc32c::crc32c(&owner);
    if bytes.len() >= 64 {
        let crc = crc32c::crc32c(&bytes[12..64]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
    }
    for at in (4096..bytes.len()).step_by(512) {
        let descriptor = &mut bytes[at..];
        if descriptor.len() < 96 || descriptor[..4] != *b"GAIO" {
            continue;
        }
        descriptor[..8].copy_from_slice(b"GAIOSBAT");
        descriptor[16..24].copy_from_slice(&id.to_le_bytes());
        descriptor[92..96].copy_from_slice(&1u32.to_le_bytes());
        let len =
            u32::from_le_bytes([descriptor[12], descriptor[13], descriptor[14], descriptor[15]]) as usize;
        if (96..=descriptor.len()).contains(&len) {
            let crc = crc32c::crc32c_append(seed, &descriptor[12..len]);
            descriptor[8..12].copy_from_slice(&crc.to_le_bytes());
        }
    }
}

type Appended = BTreeMap<Lsn, (u64, Vec<u8>, Vec<u8>)>;

fn damaged_journal(data: &[u8]) {
    let disk = SimDisk::new(1 << 22);
    let mut appended = Appended::new();
    let Ok((mut journal, _)) = Journal::open(disk.clone(), options(), &mut |_| {}) else { return };
    let mut instructions = data.chunks_exact(4);
    // Appends and crashes, until the instruction that ends them.
    for instruction in instructions.by_ref() {
        let [what, a, b, c] = [instruction[0], instruction[1], instruction[2], instruction[3]];
        let number = u64::from(b) | u64::from(c) << 8;
        match what % 8 {
            0..=2 => {
                let label = vec![a; usize::from(a % 65)];
                let payload = vec![b; (number as usize) % 10_000];
                let lsn = journal
                    .append(u64::from(a % 4), &label, &[Bytes::from(payload.clone())])
                    .expect("the journal is not fenced and the record is short");
                appended.insert(lsn, (u64::from(a % 4), label, payload));
            }
            3 => drop(journal.flush().expect("the disk has room")),
            4 => drop(journal.sync().expect("the disk works")),
            5 => journal.set_floor(u64::from(a % 4), Lsn(number)),
            6 => {
                let mut state = number | 1;
                disk.crash(&mut |choice| {
                    state =
                        state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let keep = (state >> 33) as u8 >= a;
                    keep || matches!(choice, CrashChoice::WholeSector { .. } if b % 2 == 0)
                });
                journal = check(&disk, Some(&appended)).expect("a crash never keeps a journal from opening");
                appended.retain(|lsn, _| *lsn < journal.head());
            }
            _ => break,
        }
        if journal.stats().disk_bytes > 1 << 20 {
            break;
        }
    }
    drop(journal);
    disk.restart_process();
    for harm in instructions {
        let [what, a, b, c] = [harm[0], harm[1], harm[2], harm[3]];
        let name = segment(1 + u64::from(a % 8));
        let at = (u64::from(b) << 8 | u64::from(c)) & 0x7FFF;
        match what % 6 {
            0 | 1 => drop(disk.flip(&name, at, what >> 5)),
            2 => drop(disk.zero_sector(&name, at)),
            3 => drop(disk.make_unreadable(&name, at)),
            4 => drop(disk.cut(&name, at)),
            _ => drop(disk.delete(&name)),
        }
    }
    check(&disk, Some(&appended));
}

/// Opens twice: what is there is delivered in order, right, and the same again.
fn check(disk: &SimDisk, appended: Option<&Appended>) -> Option<Journal<SimDisk>> {
    let bytes: usize = journal::Disk::list(disk)
        .expect("the simulated disk lists its files")
        .iter()
        .filter_map(|name| disk.contents(name))
        .map(|contents| contents.len())
        .sum();
    let mut first = Vec::new();
    let opened = Journal::open(disk.clone(), options(), &mut |found| first.push(found));
    let mut due = Lsn(0);
    let mut delivered = 0;
    for found in &first {
        match found {
            Recovered::Record { group, lsn, label, payload } => {
                assert!(*lsn >= due);
                due = Lsn(lsn.0 + 1);
                delivered += payload.len();
                if let Some(appended) = appended {
                    let (its_group, its_label, its_payload) = &appended[lsn];
                    assert!(group == its_group && label == its_label && payload == its_payload);
                }
            }
            Recovered::PayloadLost { group, lsn, label } => {
                assert!(*lsn >= due);
                due = Lsn(lsn.0 + 1);
                if let Some(appended) = appended {
                    let (its_group, its_label, _) = &appended[lsn];
                    assert!(group == its_group && label == its_label);
                }
            }
            Recovered::Gap { first, end } => {
                assert!(due <= *first && first < end);
                due = *end;
            }
        }
    }
    assert!(delivered <= bytes);
    let (journal, report) = opened.ok()?;
    for damage in &report.damage {
        assert!(!damage.to_string().is_empty());
    }
    drop(journal);
    disk.restart_process();
    let mut second = Vec::new();
    let (journal, _) = Journal::open(disk.clone(), options(), &mut |found| second.push(found))
        .expect("what opened once opens again");
    assert_eq!(first, second);
    Some(journal)
}
