//! A disk in memory that loses what a real one may lose. Deterministic: every choice comes from the caller.
//!
//! The model, from worst to kind:
//! - A write reaches the disk sector by sector ([`SECTOR`] bytes), in any order, or not at all, until
//!   [`DiskFile::sync_data`] returns. [`SimDisk::crash`] asks about each unsynced sector on its own.
//! - A sector may tear: its first half is new, its second half old.
//! - A name (create, rename, remove) reaches the disk on its own too, in any order, until [`Disk::sync_dir`].
//! - A failed sync loses what it should have made durable, while readers go on seeing it until the cache is dropped
//!   ([`DiskFile::drop_cache`]) or power goes out, and a second sync succeeds. This is what Linux does with dirty pages
//!   after a write error.
//! - Synced data changes only on request: [`SimDisk::flip`], [`SimDisk::zero_sector`], [`SimDisk::make_unreadable`],
//!   [`SimDisk::preload`], [`SimDisk::cut`].

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, IoSlice},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::io::Errno;

use crate::disk::{Disk, DiskFile};

/// Size of a sector in bytes: what a crash keeps or loses as a whole.
pub const SECTOR: usize = 512;

type Sector = [u8; SECTOR];

/// A simulated disk. Clones share it; [`SimDisk::fork`] makes an independent one.
#[derive(Clone, Debug)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Clone, Debug)]
struct State {
    capacity: u64,
    /// Grows with every crash: files opened before are stale.
    epoch: u64,
    next_inode: u64,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    unsynced_names: Vec<NameChange>,
    inodes: BTreeMap<u64, Inode>,
    failing_syncs: u32,
    failing_writes: u32,
    /// Files that cannot be opened or made, for want of a descriptor.
    failing_opens: u32,
    /// Changes to the disk that still succeed.
    changes_left: Option<u64>,
    counters: Counters,
}

/// What the disk was asked to do, since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Vectored writes.
    pub writes: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Syncs of files.
    pub syncs: u64,
    /// Syncs of the directory.
    pub dir_syncs: u64,
}

#[derive(Clone, Debug)]
enum NameChange {
    Create { name: String, inode: u64 },
    Rename { from: String, to: String },
    Remove { name: String },
}

#[derive(Clone, Debug, Default)]
struct Inode {
    /// What readers see.
    live: Vec<u8>,
    /// For every sector with unsynced writes: what the disk holds.
    unsynced: BTreeMap<u64, Sector>,
    /// As `unsynced`, after a failed sync: no later sync writes it.
    lost: BTreeMap<u64, Sector>,
    durable_len: u64,
    unreadable: BTreeSet<u64>,
}

/// What a crash asks about. Answering `true` to all keeps everything; `false` to all loses everything unsynced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashChoice<'a> {
    /// Does this unsynced creation, rename or removal reach the disk?
    KeepName {
        /// The name created, renamed to, or removed.
        name: &'a str,
    },
    /// Does the file's unsynced length reach the disk?
    KeepLength {
        /// The file.
        name: &'a str,
    },
    /// Does this unsynced sector reach the disk?
    KeepSector {
        /// The file.
        name: &'a str,
        /// The sector's offset in bytes.
        offset: u64,
    },
    /// Asked for a sector that reaches the disk: all of it? Otherwise its second half stays old.
    WholeSector {
        /// The file.
        name: &'a str,
        /// The sector's offset in bytes.
        offset: u64,
    },
}

impl SimDisk {
    /// An empty disk with room for `capacity` bytes of files.
    #[must_use]
    pub fn new(capacity: u64) -> SimDisk {
        let state = State {
            capacity,
            epoch: 0,
            next_inode: 1,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            unsynced_names: Vec::new(),
            inodes: BTreeMap::new(),
            failing_syncs: 0,
            failing_writes: 0,
            failing_opens: 0,
            changes_left: None,
            counters: Counters::default(),
        };
        SimDisk { state: Arc::new(Mutex::new(state)) }
    }

    /// An independent copy of the disk as it is, unsynced writes included.
    #[must_use]
    pub fn fork(&self) -> SimDisk {
        SimDisk { state: Arc::new(Mutex::new(self.lock().clone())) }
    }

    /// Changes the room. Files that are there stay.
    pub fn set_capacity(&self, capacity: u64) {
        self.lock().capacity = capacity;
    }

    /// Power goes out and comes back: `choose` decides, in a fixed order, what of the unsynced survives. Files open
    /// before are stale: every use of them fails.
    pub fn crash(&self, choose: &mut dyn FnMut(CrashChoice<'_>) -> bool) {
        let mut state = self.lock();
        let state = &mut *state;
        state.epoch += 1;
        state.failing_syncs = 0;
        state.failing_writes = 0;
        state.failing_opens = 0;
        state.changes_left = None;
        let mut names = std::mem::take(&mut state.durable_names);
        for change in std::mem::take(&mut state.unsynced_names) {
            if choose(CrashChoice::KeepName { name: change.name() }) {
                change.apply(&mut names);
            }
        }
        state.names.clone_from(&names);
        state.durable_names = names;
        for (name, inode) in &state.durable_names {
            if let Some(inode) = state.inodes.get_mut(inode) {
                inode.crash(name, choose);
            }
        }
        state.forget_unlinked();
    }

    /// The process ends and starts again; the disk and its cache live on. Files open before are stale.
    pub fn restart_process(&self) {
        let mut state = self.lock();
        state.epoch += 1;
        state.changes_left = None;
    }

    /// The process dies in the middle of things: after `changes` further writes, syncs and changes of names, all of
    /// them fail and change nothing, until [`SimDisk::crash`] or [`SimDisk::restart_process`].
    pub fn stop_after(&self, changes: u64) {
        self.lock().changes_left = Some(changes);
    }

    /// The next `count` syncs of files fail, and lose the writes they should have made durable.
    pub fn fail_syncs(&self, count: u32) {
        self.lock().failing_syncs = count;
    }

    /// The next `count` writes fail half-way.
    pub fn fail_writes(&self, count: u32) {
        self.lock().failing_writes = count;
    }

    /// The next `count` files cannot be opened or made: the process has no descriptor left.
    pub fn fail_opens(&self, count: u32) {
        self.lock().failing_opens = count;
    }

    /// Flips one bit (0 to 7) of a byte. Returns whether the file has that byte.
    pub fn flip(&self, name: &str, offset: u64, bit: u8) -> bool {
        self.with(name, |inode| match inode.live.get_mut(offset as usize) {
            Some(byte) => {
                *byte ^= 1 << (bit & 7);
                true
            }
            None => false,
        })
        .unwrap_or(false)
    }

    /// Loses a sector: it reads as zeros. `offset` is any byte in it. Returns whether the file reaches there.
    pub fn zero_sector(&self, name: &str, offset: u64) -> bool {
        self.with(name, |inode| {
            let there = offset < inode.live.len() as u64;
            inode.set_sector(offset / SECTOR as u64, &[0; SECTOR]);
            there
        })
        .unwrap_or(false)
    }

    /// The sector can no longer be read, until it is written. Returns whether the file reaches there.
    pub fn make_unreadable(&self, name: &str, offset: u64) -> bool {
        self.with(name, |inode| {
            inode.unreadable.insert(offset / SECTOR as u64);
            offset < inode.live.len() as u64
        })
        .unwrap_or(false)
    }

    /// Cuts a file, durably. Returns whether it exists.
    pub fn cut(&self, name: &str, len: u64) -> bool {
        self.with(name, |inode| {
            inode.live.truncate(len as usize);
            inode.unsynced.clear();
            inode.durable_len = inode.live.len() as u64;
        })
        .is_some()
    }

    /// Deletes a file, durably. Returns whether it existed.
    pub fn delete(&self, name: &str) -> bool {
        let mut state = self.lock();
        let existed = state.names.remove(name).is_some();
        state.durable_names.remove(name);
        existed
    }

    /// The bytes a reader sees.
    #[must_use]
    pub fn contents(&self, name: &str) -> Option<Vec<u8>> {
        self.with(name, |inode| inode.live.clone())
    }

    /// Puts a file in place, synced, replacing one that is there.
    pub fn preload(&self, name: &str, bytes: &[u8]) {
        let mut state = self.lock();
        let inode = state.next_inode;
        state.next_inode += 1;
        let durable_len = bytes.len() as u64;
        state.inodes.insert(inode, Inode { live: bytes.to_vec(), durable_len, ..Inode::default() });
        state.names.insert(name.to_owned(), inode);
        state.durable_names.insert(name.to_owned(), inode);
        state.forget_unlinked();
    }

    /// What the disk was asked to do so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.lock().counters
    }

    /// Number of unsynced sectors of all files.
    #[must_use]
    pub fn unsynced_sectors(&self) -> usize {
        self.lock().inodes.values().map(|inode| inode.unsynced.len()).sum()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<R>(&self, name: &str, f: impl FnOnce(&mut Inode) -> R) -> Option<R> {
        let mut state = self.lock();
        let inode = *state.names.get(name)?;
        state.inodes.get_mut(&inode).map(f)
    }
}

impl NameChange {
    fn name(&self) -> &str {
        match self {
            NameChange::Create { name, .. } | NameChange::Remove { name } => name,
            NameChange::Rename { to, .. } => to,
        }
    }

    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            NameChange::Create { name, inode } => {
                names.insert(name.clone(), *inode);
            }
            // The source may be missing when its own creation was lost.
            NameChange::Rename { from, to } => {
                if let Some(inode) = names.remove(from) {
                    names.insert(to.clone(), inode);
                }
            }
            NameChange::Remove { name } => {
                names.remove(name);
            }
        }
    }
}

impl State {
    fn used(&self) -> u64 {
        self.names
            .values()
            .filter_map(|inode| self.inodes.get(inode))
            .map(|inode| inode.live.len() as u64)
            .sum()
    }

    fn take_descriptor(&mut self) -> io::Result<()> {
        match self.failing_opens.checked_sub(1) {
            Some(left) => {
                self.failing_opens = left;
                Err(Errno::MFILE.into())
            }
            None => Ok(()),
        }
    }

    /// Counts a change to the disk; fails when the process is dead.
    fn begin_change(&mut self) -> io::Result<()> {
        match &mut self.changes_left {
            None => Ok(()),
            Some(0) => Err(io::Error::other("the process has stopped")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    fn change_name(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.unsynced_names.push(change);
    }

    fn forget_unlinked(&mut self) {
        let mut linked: BTreeSet<u64> =
            self.names.values().chain(self.durable_names.values()).copied().collect();
        for change in &self.unsynced_names {
            if let NameChange::Create { inode, .. } = change {
                linked.insert(*inode);
            }
        }
        self.inodes.retain(|inode, _| linked.contains(inode));
    }
}

impl Inode {
    fn sector(&self, sector: u64) -> Sector {
        let mut out = [0; SECTOR];
        let start = (sector as usize * SECTOR).min(self.live.len());
        let end = (start + SECTOR).min(self.live.len());
        out[..end - start].copy_from_slice(&self.live[start..end]);
        out
    }

    fn set_sector(&mut self, sector: u64, bytes: &Sector) {
        let start = (sector as usize * SECTOR).min(self.live.len());
        let end = (start + SECTOR).min(self.live.len());
        self.live[start..end].copy_from_slice(&bytes[..end - start]);
    }

    /// Keeps what the disk holds of the sectors of a range that is about to change.
    fn shadow(&mut self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        for sector in offset / SECTOR as u64..=(offset + len - 1) / SECTOR as u64 {
            if !self.unsynced.contains_key(&sector) {
                let on_disk = self.lost.remove(&sector).unwrap_or_else(|| self.sector(sector));
                self.unsynced.insert(sector, on_disk);
            }
            self.unreadable.remove(&sector);
        }
    }

    fn crash(&mut self, name: &str, choose: &mut dyn FnMut(CrashChoice<'_>) -> bool) {
        let live_len = self.live.len() as u64;
        let keep_length = live_len == self.durable_len || choose(CrashChoice::KeepLength { name });
        let len = if keep_length { live_len } else { self.durable_len };
        self.live.resize(live_len.max(self.durable_len) as usize, 0);
        for (sector, old) in std::mem::take(&mut self.unsynced) {
            let offset = sector * SECTOR as u64;
            if !choose(CrashChoice::KeepSector { name, offset }) {
                self.set_sector(sector, &old);
            } else if !choose(CrashChoice::WholeSector { name, offset }) {
                let mut torn = self.sector(sector);
                torn[SECTOR / 2..].copy_from_slice(&old[SECTOR / 2..]);
                self.set_sector(sector, &torn);
            }
        }
        self.drop_cache();
        self.live.resize(len as usize, 0);
        self.durable_len = len;
    }

    fn drop_cache(&mut self) {
        for (sector, on_disk) in std::mem::take(&mut self.lost) {
            self.set_sector(sector, &on_disk);
        }
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn create(&self, name: &str) -> io::Result<SimFile> {
        let mut state = self.lock();
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.take_descriptor()?;
        state.begin_change()?;
        let inode = state.next_inode;
        state.next_inode += 1;
        state.inodes.insert(inode, Inode::default());
        state.change_name(NameChange::Create { name: name.to_owned(), inode });
        Ok(SimFile { disk: self.clone(), inode, epoch: state.epoch })
    }

    fn open(&self, name: &str) -> io::Result<SimFile> {
        let mut state = self.lock();
        let inode = *state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        state.take_descriptor()?;
        Ok(SimFile { disk: self.clone(), inode, epoch: state.epoch })
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().names.keys().cloned().collect())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.lock();
        if !state.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.begin_change()?;
        state.change_name(NameChange::Rename { from: from.to_owned(), to: to.to_owned() });
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.lock();
        if !state.names.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.begin_change()?;
        state.change_name(NameChange::Remove { name: name.to_owned() });
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.begin_change()?;
        state.counters.dir_syncs += 1;
        state.unsynced_names.clear();
        state.durable_names = state.names.clone();
        state.forget_unlinked();
        Ok(())
    }

    fn available_bytes(&self) -> io::Result<u64> {
        let state = self.lock();
        Ok(state.capacity.saturating_sub(state.used()))
    }
}

/// A file of a [`SimDisk`].
#[derive(Clone, Debug)]
pub struct SimFile {
    disk: SimDisk,
    inode: u64,
    epoch: u64,
}

impl SimFile {
    fn with<R>(&self, f: impl FnOnce(&mut State, u64) -> io::Result<R>) -> io::Result<R> {
        let mut state = self.disk.lock();
        if state.epoch != self.epoch || !state.inodes.contains_key(&self.inode) {
            return Err(io::Error::other("the file was opened before a crash, or is gone"));
        }
        f(&mut state, self.inode)
    }

    fn on_inode<R>(&self, f: impl FnOnce(&mut Inode) -> io::Result<R>) -> io::Result<R> {
        self.with(|state, inode| f(state.inode(inode)))
    }
}

impl State {
    fn inode(&mut self, inode: u64) -> &mut Inode {
        self.inodes.entry(inode).or_default()
    }

    fn extend(&mut self, inode: u64, len: u64) -> io::Result<()> {
        let more = len.saturating_sub(self.inode(inode).live.len() as u64);
        if more > self.capacity.saturating_sub(self.used()) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if more > 0 {
            self.inode(inode).live.resize(len as usize, 0);
        }
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.on_inode(|inode| Ok(inode.live.len() as u64))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.on_inode(|inode| {
            let start = (offset.min(inode.live.len() as u64)) as usize;
            let n = buf.len().min(inode.live.len() - start);
            if n > 0 {
                let sectors = (start / SECTOR) as u64..=((start + n - 1) / SECTOR) as u64;
                if inode.unreadable.range(sectors).next().is_some() {
                    return Err(io::Error::other("unreadable sector"));
                }
            }
            buf[..n].copy_from_slice(&inode.live[start..start + n]);
            Ok(n)
        })
    }

    fn write_vectored_at(&mut self, pieces: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.with(|state, id| {
            state.begin_change()?;
            let mut len: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
            let fails = state.failing_writes > 0;
            if fails {
                state.failing_writes -= 1;
                len /= 2;
            }
            state.extend(id, offset + len)?;
            state.counters.writes += 1;
            state.counters.bytes_written += len;
            let inode = state.inode(id);
            inode.shadow(offset, len);
            let (mut at, mut left) = (offset as usize, len as usize);
            for piece in pieces {
                let n = piece.len().min(left);
                inode.live[at..at + n].copy_from_slice(&piece[..n]);
                at += n;
                left -= n;
            }
            if fails { Err(io::Error::other("injected write error")) } else { Ok(()) }
        })
    }

    fn sync_data(&mut self) -> io::Result<()> {
        self.with(|state, id| {
            state.begin_change()?;
            state.counters.syncs += 1;
            let fails = state.failing_syncs > 0;
            state.failing_syncs = state.failing_syncs.saturating_sub(1);
            let inode = state.inode(id);
            if fails {
                let unsynced = std::mem::take(&mut inode.unsynced);
                inode.lost.extend(unsynced);
                return Err(io::Error::other("injected sync error"));
            }
            inode.unsynced.clear();
            inode.durable_len = inode.live.len() as u64;
            Ok(())
        })
    }

    fn allocate(&mut self, len: u64) -> io::Result<()> {
        self.with(|state, id| {
            state.begin_change()?;
            state.extend(id, len)
        })
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.with(|state, id| {
            state.begin_change()?;
            let live_len = state.inode(id).live.len() as u64;
            if len >= live_len {
                return state.extend(id, len);
            }
            let inode = state.inode(id);
            inode.shadow(len, live_len - len);
            inode.live.truncate(len as usize);
            Ok(())
        })
    }

    fn drop_cache(&self) -> io::Result<()> {
        self.on_inode(|inode| {
            inode.drop_cache();
            Ok(())
        })
    }
}
