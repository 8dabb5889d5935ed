//! What a node's disk loses.

use journal::{Journal, Recovered, SimDisk, Snapshot, Superblock};

use super::Node;
use super::recovery::journal_options;
use super::written::WrittenLog;
use crate::cluster::env::{Env, trace};

/// Room of a disk that is not full.
pub(super) const CAPACITY: u64 = 1 << 30;
/// Batches begin at multiples of this.
const PAGE: usize = 4096;

impl Node {
    /// The disk is replaced by an empty one.
    pub(crate) fn empty(&mut self, env: &mut Env) {
        self.disk = SimDisk::new(CAPACITY);
        self.log = WrittenLog::default();
        (self.damaged, self.lost) = (true, false);
        self.emptied += 1;
        for truth in &mut env.truths {
            truth.emptied(self.index);
        }
    }

    /// The disk loses something that it had synced. The last batch is never erased whole: without a descriptor and
    /// without a later batch, nothing tells it from one that was never synced.
    pub(super) fn damage(&mut self, env: &mut Env) {
        let Ok(names) = journal::Disk::list(&self.disk) else { return };
        let segments: Vec<&String> = names.iter().filter(|name| name.starts_with("segment-")).collect();
        for _ in 0..30 {
            if segments.is_empty() {
                return;
            }
            // What matters most lies near the end.
            let recent = segments.len().saturating_sub(1 + env.rng.index(3));
            let name = if env.rng.below(4) == 0 { env.rng.pick(&segments) } else { segments[recent] };
            let Some(contents) = self.disk.contents(name) else { continue };
            let Some(used) = contents.iter().rposition(|byte| *byte != 0) else { continue };
            let from = if env.rng.flip() { used.saturating_sub(6 * PAGE) } else { 0 };
            let offset = env.rng.range(from as u64, used as u64);
            let pages = if env.rng.flip() { 0 } else { 1 + env.rng.below(3) };
            let disk = self.disk.fork();
            match (pages, env.rng.below(3)) {
                (0, 0) => {
                    disk.flip(name, offset, (offset % 8) as u8);
                }
                (0, 1) => {
                    disk.zero_sector(name, offset);
                }
                (0, _) => {
                    disk.make_unreadable(name, offset);
                }
                (pages, _) => {
                    let start = offset / PAGE as u64 * PAGE as u64;
                    for sector in 0..pages * PAGE as u64 / 512 {
                        disk.zero_sector(name, start + sector * 512);
                    }
                }
            }
            if self.shows_last_batch(env, &disk) {
                trace!(env, "n{} disk damaged in {name} at {offset}, pages {pages}", self.index + 1);
                self.disk = disk;
                self.damaged = true;
                return;
            }
        }
    }

    /// The snapshot files of some group are gone.
    pub(super) fn lose_snapshots(&mut self, env: &mut Env) {
        let group = env.rng.index(env.profile.groups.len()) as u64;
        let Ok(snapshots) = Snapshot::list(&self.disk) else { return };
        for snapshot in snapshots.into_iter().filter(|snapshot| snapshot.group == group) {
            trace!(env, "n{} loses {snapshot:?}", self.index + 1);
            let name = format!("snapshot-{:016x}-{:016x}", snapshot.group, snapshot.slot);
            if journal::Disk::remove(&self.disk, &name).is_err()
                || journal::Disk::sync_dir(&self.disk).is_err()
            {
                env.fail("recovery", format!("{name} is not there"));
            }
            self.snapshots_lost = true;
        }
    }

    /// Whether recovery from `disk` knows that there were records in the last durable batch.
    fn shows_last_batch(&self, env: &Env, disk: &SimDisk) -> bool {
        let disk = disk.fork();
        let Ok(Some(superblock)) = Superblock::open(disk.clone()) else { return false };
        let options = journal_options(env, superblock.facts().identity, true);
        let mut shown = false;
        let opened = Journal::open(disk, options, &mut |found| {
            shown |= match found {
                Recovered::Record { lsn, .. } | Recovered::PayloadLost { lsn, .. } => {
                    lsn >= self.log.last_batch
                }
                Recovered::Gap { end, .. } => end > self.log.last_batch,
            };
        });
        opened.is_ok() && shown
    }
}
