//! The disk as the journal sees it: a flat directory of files, and the real one.
//!
//! The trait is small on purpose, so that [`crate::sim::SimDisk`] can implement it with the loss of single sectors.

use std::{
    fs::{DirBuilder, File, Permissions},
    io::{self, IoSlice},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{FallocateFlags, FlockOperation, Mode, OFlags},
    io::Errno,
};

use crate::error::{Error, is_out_of_descriptors};

/// A node's data directory. Names are flat (no `/`). Everything that must survive a crash needs the sync of the
/// file, and [`Disk::sync_dir`] for its name.
pub trait Disk {
    /// An open file.
    type File: DiskFile;
    /// Makes a new empty file, open for reading and writing. Fails with `AlreadyExists` when there is one.
    fn create(&self, name: &str) -> io::Result<Self::File>;
    /// Opens an existing file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Self::File>;
    /// The names of all files, in any order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Renames a file; an existing `to` is replaced in one step.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations, renames and removals durable.
    fn sync_dir(&self) -> io::Result<()>;
    /// Bytes that new files may still take.
    fn available_bytes(&self) -> io::Result<u64>;
}

/// An open file of a [`Disk`].
pub trait DiskFile {
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Reads from `offset` until `buf` is full or the file ends; returns the number of bytes read.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all pieces one after the other from `offset`, extending the file when needed. After an error any
    /// part may have been written.
    fn write_vectored_at(&mut self, pieces: &[IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Makes all writes so far durable, with the length needed to read them back.
    fn sync_data(&mut self) -> io::Result<()>;
    /// Reserves space for the first `len` bytes and makes the file at least that long. Fails with `StorageFull`
    /// when there is no room. New bytes read as zero.
    fn allocate(&mut self, len: u64) -> io::Result<()>;
    /// Cuts the file to `len` bytes.
    fn truncate(&mut self, len: u64) -> io::Result<()>;
    /// Lets later reads come from the disk itself. After a failed sync the system's cache may show bytes that the
    /// disk does not hold.
    fn drop_cache(&self) -> io::Result<()> {
        Ok(())
    }
    /// Writes one piece.
    fn write_at(&mut self, piece: &[u8], offset: u64) -> io::Result<()> {
        self.write_vectored_at(&[IoSlice::new(piece)], offset)
    }
}

/// Name of the lock file of a data directory.
pub const LOCK_FILE: &str = "lock";

/// Keys and values lie in these files, so that nobody but their owner may read them, whatever the umask is.
const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// A directory of the file system. Holds an exclusive lock on it until the last clone is dropped.
#[derive(Clone, Debug)]
pub struct RealDisk {
    inner: Arc<RealDir>,
}

#[derive(Debug)]
struct RealDir {
    path: PathBuf,
    dir: File,
    /// Held for its lock only: the kernel drops an flock when the process ends, however it ends.
    _lock: File,
    /// Names that were open to others.
    exposed: Vec<String>,
}

impl RealDisk {
    /// Opens `path`, making it when it does not exist, and locks it against other processes. What others than the owner
    /// could read is closed to them.
    ///
    /// # Errors
    /// [`Error::Locked`] when another process (or another `RealDisk` of this one) holds it; [`Error::Exposed`] when it is
    /// open to others and stays so; [`Error::Io`] otherwise.
    pub fn open(path: impl AsRef<Path>) -> Result<RealDisk, Error> {
        let path = path.as_ref().to_path_buf();
        let shown = path.display().to_string();
        let made = DirBuilder::new().recursive(true).mode(DIR_MODE).create(&path);
        made.map_err(|e| Error::io("make data directory", &shown, e))?;
        let mut exposed = Vec::new();
        close_to_others(&path, DIR_MODE, &mut exposed)?;
        let dir =
            rustix::fs::open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|e| Error::io("open data directory", &shown, e.into()))?;
        let lock_path = path.join(LOCK_FILE);
        let lock_shown = lock_path.display().to_string();
        let lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .open(&lock_path)
            .map_err(|e| Error::io("open lock file", &lock_shown, e))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(Error::Locked { dir: path }),
            Err(e) => return Err(Error::io("lock", &lock_shown, e.into())),
        }
        let list = |e| Error::io("list", &shown, e);
        for entry in std::fs::read_dir(&path).map_err(list)? {
            let entry = entry.map_err(list)?;
            if entry.file_type().map_err(list)?.is_file() {
                close_to_others(&entry.path(), FILE_MODE, &mut exposed)?;
            }
        }
        Ok(RealDisk { inner: Arc::new(RealDir { path, dir: File::from(dir), _lock: lock, exposed }) })
    }

    /// What others than its owner could read until it was opened: worth a word to the operator.
    #[must_use]
    pub fn exposed(&self) -> &[String] {
        &self.inner.exposed
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    fn path_of(&self, name: &str) -> io::Result<PathBuf> {
        if name.is_empty() || name == "." || name == ".." || name.contains('/') {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "names in a data directory are flat"));
        }
        Ok(self.inner.path.join(name))
    }
}

/// Gives a file or directory the mode that it should have, and notes it if it was open to others.
fn close_to_others(path: &Path, mode: u32, exposed: &mut Vec<String>) -> Result<(), Error> {
    let shown = path.display().to_string();
    let metadata = std::fs::metadata(path).map_err(|e| Error::io("look at", &shown, e))?;
    let found = metadata.permissions().mode() & 0o7777;
    if found & 0o777 == mode {
        return Ok(());
    }
    // What a volume was given besides, such as the group of new files, stays.
    let wanted = found & 0o7000 | mode;
    std::fs::set_permissions(path, Permissions::from_mode(wanted)).map_err(|source| Error::Exposed {
        path: path.to_path_buf(),
        mode: found,
        wanted,
        source,
    })?;
    if found & 0o077 != 0 {
        exposed.push(shown);
    }
    Ok(())
}

impl Disk for RealDisk {
    type File = RealFile;

    fn create(&self, name: &str) -> io::Result<RealFile> {
        let path = self.path_of(name)?;
        let file = File::options().read(true).write(true).create_new(true).mode(FILE_MODE).open(&path)?;
        // A umask may have taken away what the owner needs.
        file.set_permissions(Permissions::from_mode(FILE_MODE))?;
        Ok(RealFile { file, direct: Direct::Untried(path) })
    }

    fn open(&self, name: &str) -> io::Result<RealFile> {
        let path = self.path_of(name)?;
        Ok(RealFile {
            file: File::options().read(true).write(true).open(&path)?,
            direct: Direct::Untried(path),
        })
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.inner.path)? {
            let entry = entry?;
            // A name that is not UTF-8 cannot be one of ours.
            if let (true, Ok(name)) = (entry.file_type()?.is_file(), entry.file_name().into_string())
                && name != LOCK_FILE
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path_of(from)?, self.path_of(to)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path_of(name)?)
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.inner.dir)?)
    }

    fn available_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.inner.dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

/// A file of a [`RealDisk`].
#[derive(Debug)]
pub struct RealFile {
    file: File,
    direct: Direct,
}

/// The way past the kernel's cache, for whole pages: a write and sync of a batch is shorter by some 15 µs, and the cache
/// is left to others. Not every file system has it.
#[derive(Debug)]
enum Direct {
    /// The name under which the file was opened.
    Untried(PathBuf),
    Open {
        file: File,
        buffer: Vec<u8>,
    },
    Unavailable,
}

/// What offsets, lengths and memory of direct writes are multiples of.
const PAGE: usize = 4096;
/// Longer writes go through the cache, which spares the copy.
const DIRECT_BYTES_MAX: usize = 256 << 10;

impl RealFile {
    /// Writes whole pages past the cache; false if that cannot be done.
    fn write_direct(&mut self, pieces: &[IoSlice<'_>], offset: u64) -> io::Result<bool> {
        let bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
        let whole_pages = bytes.is_multiple_of(PAGE) && offset.is_multiple_of(PAGE as u64);
        if !whole_pages || bytes == 0 || bytes > DIRECT_BYTES_MAX {
            return Ok(false);
        }
        if let Direct::Untried(path) = &self.direct {
            let flags = OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC;
            self.direct = match rustix::fs::open(path, flags, Mode::empty()) {
                Ok(file) => Direct::Open { file: file.into(), buffer: Vec::new() },
                // Later, then.
                Err(error) if is_out_of_descriptors(&error.into()) => return Ok(false),
                Err(_) => Direct::Unavailable,
            };
        }
        let Direct::Open { file, buffer } = &mut self.direct else { return Ok(false) };
        buffer.resize(bytes + PAGE, 0);
        let start = buffer.as_ptr().align_offset(PAGE);
        let page = &mut buffer[start..start + bytes];
        let mut at = 0;
        for piece in pieces {
            page[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
        }
        match file.write_all_at(page, offset) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                self.direct = Direct::Unavailable;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

/// The kernel's bound on pieces in one vectored write (`IOV_MAX`).
const PIECES_MAX: usize = 1024;

impl DiskFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn write_vectored_at(&mut self, pieces: &[IoSlice<'_>], mut offset: u64) -> io::Result<()> {
        if self.write_direct(pieces, offset)? {
            return Ok(());
        }
        for group in pieces.chunks(PIECES_MAX) {
            let mut copy: Vec<IoSlice<'_>> = group.to_vec();
            let mut rest: &mut [IoSlice<'_>] = &mut copy;
            // Empty pieces at the front would make a short write look like no progress.
            IoSlice::advance_slices(&mut rest, 0);
            while !rest.is_empty() {
                match rustix::io::pwritev(&self.file, rest, offset) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(n) => {
                        offset += n as u64;
                        IoSlice::advance_slices(&mut rest, n);
                    }
                    Err(Errno::INTR) => {}
                    Err(e) => return Err(e.into()),
                }
            }
        }
        Ok(())
    }

    fn sync_data(&mut self) -> io::Result<()> {
        Ok(rustix::fs::fdatasync(&self.file)?)
    }

    fn allocate(&mut self, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, len) {
            Ok(()) => Ok(()),
            // A file system without fallocate: the zero-fill that follows reserves the space.
            Err(Errno::OPNOTSUPP) if self.file.metadata()?.len() < len => self.file.set_len(len),
            Err(Errno::OPNOTSUPP) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn drop_cache(&self) -> io::Result<()> {
        Ok(rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed)?)
    }
}
