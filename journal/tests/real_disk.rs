//! The data directory as the operating system sees it: who else may read it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use journal::{Disk, Error, Identity, RealDisk, SimDisk, Superblock};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn nobody_but_the_owner_may_read_what_a_node_keeps() {
    let around = tempfile::tempdir().unwrap();
    let (outer, dir) = (around.path().join("cluster"), around.path().join("cluster/node"));
    let disk = RealDisk::open(&dir).unwrap();
    assert!(disk.exposed().is_empty(), "{:?}", disk.exposed());
    disk.create("segment").unwrap();
    for (path, expected) in [(&outer, 0o700), (&dir, 0o700), (&dir.join("segment"), 0o600)] {
        assert_eq!(mode(path), expected, "{}", path.display());
    }
    assert_eq!(mode(&dir.join("lock")), 0o600);
}

#[test]
fn what_was_open_to_others_is_closed_at_the_next_start() {
    let around = tempfile::tempdir().unwrap();
    let dir = around.path().join("node");
    RealDisk::open(&dir).unwrap().create("segment").unwrap();
    // As a volume whose files belong to a group.
    chmod(&dir, 0o2775);
    chmod(&dir.join("segment"), 0o644);
    let disk = RealDisk::open(&dir).unwrap();
    let shown = |path: &Path| path.display().to_string();
    assert_eq!(disk.exposed(), [shown(&dir), shown(&dir.join("segment"))]);
    assert_eq!(mode(&dir), 0o2700);
    assert_eq!(mode(&dir.join("segment")), 0o600);
    drop(disk);
    assert!(RealDisk::open(&dir).unwrap().exposed().is_empty());
}

#[test]
fn a_superblock_that_cannot_be_opened_for_want_of_a_descriptor_is_not_damaged() {
    let disk = SimDisk::new(1 << 20);
    drop(Superblock::create(disk.clone(), Identity::default(), 5).unwrap());
    disk.fail_opens(u32::MAX);
    assert!(matches!(Superblock::open(disk.clone()), Err(Error::NoDescriptors { .. })));
    disk.fail_opens(0);
    let superblock = Superblock::open(disk).unwrap().unwrap();
    assert_eq!((superblock.facts().mark, superblock.repaired()), (5, None));
}
