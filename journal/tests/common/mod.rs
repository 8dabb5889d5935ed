//! Helpers shared by the tests.
#![allow(dead_code, unreachable_pub)]

use std::{
    io::{self, IoSlice},
    sync::{Arc, Condvar, Mutex},
};

use bytes::Bytes;
use journal::{Disk, DiskFile, Error, Identity, Journal, Lsn, Options, Recovered, Report, SimDisk};

pub const IDENTITY: Identity = Identity { cluster: 0xC1, node: 7, salt: 0x5A17 };

pub fn options() -> Options {
    Options { identity: IDENTITY, segment_bytes: 64 << 10, batch_bytes_max: 16 << 10, ..Options::default() }
}

/// A record as appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    pub group: u64,
    pub lsn: Lsn,
    pub label: Vec<u8>,
    pub payload: Vec<u8>,
}

/// A payload that differs for every (seed, len).
pub fn payload(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

pub fn append<D: Disk>(journal: &mut Journal<D>, group: u64, seed: u64, len: usize) -> Appended {
    let label = format!("g{group} s{seed}").into_bytes();
    let payload = payload(seed, len);
    let middle = payload.len() / 3;
    let pieces = [Bytes::copy_from_slice(&payload[..middle]), Bytes::copy_from_slice(&payload[middle..])];
    let lsn = journal.append(group, &label, &pieces).expect("a journal that is not fenced takes records");
    Appended { group, lsn, label, payload }
}

/// Writes and syncs everything staged.
pub fn commit<D: Disk>(journal: &mut Journal<D>) -> Result<Lsn, Error> {
    let mut durable = journal.sync()?;
    while journal.has_staged() {
        journal.flush()?;
        durable = journal.sync()?;
    }
    Ok(durable)
}

/// Everything a restart hands out.
pub fn open<D: Disk>(disk: D, options: Options) -> Result<(Journal<D>, Report, Vec<Recovered>), Error> {
    let mut recovered = Vec::new();
    let (journal, report) = Journal::open(disk, options, &mut |item| recovered.push(item))?;
    Ok((journal, report, recovered))
}

pub fn as_recovered(record: &Appended) -> Recovered {
    Recovered::Record {
        group: record.group,
        lsn: record.lsn,
        label: Bytes::copy_from_slice(&record.label),
        payload: Bytes::copy_from_slice(&record.payload),
    }
}

pub fn all_recovered(records: &[Appended]) -> Vec<Recovered> {
    records.iter().map(as_recovered).collect()
}

pub fn segment(id: u64) -> String {
    format!("segment-{id:016x}")
}

/// A disk whose syncs of files hang while it is told so.
#[derive(Clone)]
pub struct HangingDisk {
    inner: SimDisk,
    hangs: Arc<(Mutex<bool>, Condvar)>,
}

pub struct HangingFile<F> {
    inner: F,
    hangs: Arc<(Mutex<bool>, Condvar)>,
}

impl HangingDisk {
    pub fn new(inner: SimDisk) -> HangingDisk {
        HangingDisk { inner, hangs: Arc::default() }
    }

    pub fn hang(&self, hang: bool) {
        *self.hangs.0.lock().unwrap() = hang;
        self.hangs.1.notify_all();
    }

    fn file<F>(&self, inner: F) -> HangingFile<F> {
        HangingFile { inner, hangs: Arc::clone(&self.hangs) }
    }
}

impl Disk for HangingDisk {
    type File = HangingFile<<SimDisk as Disk>::File>;

    fn create(&self, name: &str) -> io::Result<Self::File> {
        Ok(self.file(self.inner.create(name)?))
    }
    fn open(&self, name: &str) -> io::Result<Self::File> {
        Ok(self.file(self.inner.open(name)?))
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.inner.sync_dir()
    }
    fn available_bytes(&self) -> io::Result<u64> {
        self.inner.available_bytes()
    }
}

impl<F: DiskFile> DiskFile for HangingFile<F> {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.inner.read_at(buf, offset)
    }
    fn write_vectored_at(&mut self, pieces: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.inner.write_vectored_at(pieces, offset)
    }
    fn sync_data(&mut self) -> io::Result<()> {
        let (hangs, told) = &*self.hangs;
        drop(told.wait_while(hangs.lock().unwrap(), |hangs| *hangs).unwrap());
        self.inner.sync_data()
    }
    fn allocate(&mut self, len: u64) -> io::Result<()> {
        self.inner.allocate(len)
    }
    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.inner.truncate(len)
    }
}
