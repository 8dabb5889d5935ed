//! Whether the disk makes progress: what the liveness is told, and through it the peers and every group.

use journal::WriterStats;

/// Compares the journal's counters from one look to the next.
#[derive(Debug, Default)]
pub(crate) struct DiskWatch {
    /// Syncs done at the last look.
    syncs: u64,
}

/// What the disk has done since the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DiskNews {
    /// It finished something, or has nothing to do.
    Progress,
    /// Something waits for it, and nothing was finished: it is slow, hangs, or is full.
    Nothing,
    /// The journal is fenced.
    Failed,
}

impl DiskWatch {
    /// The counters must say what is outstanding now. What was so at the last sync would not do: then nothing ever is.
    pub(crate) fn look(&mut self, stats: &WriterStats) -> DiskNews {
        let synced = std::mem::replace(&mut self.syncs, stats.syncs) != stats.syncs;
        if stats.fenced {
            DiskNews::Failed
        } else if synced || stats.outstanding == 0 {
            DiskNews::Progress
        } else {
            DiskNews::Nothing
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(syncs: u64, outstanding: u64) -> WriterStats {
        WriterStats { syncs, outstanding, ..WriterStats::default() }
    }

    #[test]
    fn a_disk_that_has_work_and_finishes_nothing_makes_no_progress() {
        let mut watch = DiskWatch::default();
        assert_eq!(watch.look(&stats(0, 0)), DiskNews::Progress, "idle");
        assert_eq!(watch.look(&stats(1, 5)), DiskNews::Progress, "busy");
        assert_eq!(watch.look(&stats(1, 9)), DiskNews::Nothing, "hangs");
        assert_eq!(watch.look(&stats(1, 9)), DiskNews::Nothing, "hangs");
        assert_eq!(watch.look(&stats(2, 0)), DiskNews::Progress, "back");
        let fenced = WriterStats { fenced: true, ..stats(3, 0) };
        assert_eq!(watch.look(&fenced), DiskNews::Failed);
    }
}
