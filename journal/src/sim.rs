//! A disk in memory that loses what a real one may lose. Deterministic: all choices come from the caller.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    rc::Rc,
};

use crate::{Disk, DiskFile};

/// Size of a sector in bytes: what a crash keeps or loses as a whole.
pub const SECTOR: usize = 512;

/// A simulated disk. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct SimDisk {
    inner: Rc<RefCell<State>>,
}

#[derive(Debug, Default)]
struct State {}

/// A file of a [`SimDisk`].
#[derive(Clone, Debug)]
pub struct SimFile {}

impl SimDisk {
    /// An empty disk with room for `capacity` bytes of files.
    #[must_use]
    pub fn new(capacity: u64) -> SimDisk {
        let _ = capacity;
        SimDisk::default()
    }

    /// Changes the room.
    pub fn set_capacity(&self, capacity: u64) {
        let _ = capacity;
    }

    /// Power goes out: every unsynced sector and every unsynced name survives (`choose` returns true) or not,
    /// each asked in a fixed order. Files open before are stale: every use of them fails.
    pub fn crash(&self, choose: &mut dyn FnMut(CrashChoice<'_>) -> bool) {
        let _ = (&self.inner, choose);
    }

    /// The next `count` syncs fail, and lose the writes they should have made durable.
    pub fn fail_syncs(&self, count: u32) {
        let _ = count;
    }

    /// Flips one bit of what is on disk. Returns whether there is such a byte.
    pub fn flip(&self, name: &str, offset: u64, bit: u8) -> bool {
        let _ = (name, offset, bit);
        false
    }

    /// The bytes a reader sees.
    #[must_use]
    pub fn contents(&self, name: &str) -> Option<Vec<u8>> {
        let _ = name;
        None
    }

    /// Puts a file in place, synced.
    pub fn preload(&self, name: &str, bytes: &[u8]) {
        let _ = (name, bytes);
    }
}

/// What a crash asks about.
#[derive(Clone, Copy, Debug)]
pub enum CrashChoice<'a> {
    /// Does this unsynced sector reach the disk?
    KeepSector {
        /// The file.
        name: &'a str,
        /// The sector's offset in bytes.
        offset: u64,
    },
    /// Asked for a sector that reaches the disk: only its first half?
    TearSector {
        /// The file.
        name: &'a str,
        /// The sector's offset in bytes.
        offset: u64,
    },
    /// Does this unsynced creation, rename or removal reach the disk?
    KeepName {
        /// The name created, renamed to, or removed.
        name: &'a str,
    },
}

impl Disk for SimDisk {
    type File = SimFile;
    fn create(&self, _name: &str) -> io::Result<SimFile> {
        Ok(SimFile {})
    }
    fn open(&self, _name: &str) -> io::Result<SimFile> {
        Ok(SimFile {})
    }
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }
    fn rename(&self, _from: &str, _to: &str) -> io::Result<()> {
        Ok(())
    }
    fn remove(&self, _name: &str) -> io::Result<()> {
        Ok(())
    }
    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }
    fn available_bytes(&self) -> io::Result<u64> {
        Ok(0)
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(0)
    }
    fn read_at(&self, _buf: &mut [u8], _offset: u64) -> io::Result<usize> {
        Ok(0)
    }
    fn write_vectored_at(&mut self, _pieces: &[IoSlice<'_>], _offset: u64) -> io::Result<()> {
        Ok(())
    }
    fn sync_data(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn allocate(&mut self, _len: u64) -> io::Result<()> {
        Ok(())
    }
    fn truncate(&mut self, _len: u64) -> io::Result<()> {
        Ok(())
    }
}
