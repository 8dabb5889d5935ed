//! The ids of watches that compaction canceled. As in etcd, such an id stays taken until the client cancels it too, which is
//! then answered.

use std::collections::BTreeMap;

/// So many are remembered on a stream. A client that lets more pile up is not told of the oldest.
const IDS_MAX: usize = 1024;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct CompactedIds {
    by_id: BTreeMap<i64, u64>,
    by_age: BTreeMap<u64, i64>,
    next: u64,
}

impl CompactedIds {
    pub(super) fn contains(&self, id: i64) -> bool {
        self.by_id.contains_key(&id)
    }

    pub(super) fn insert(&mut self, id: i64) {
        self.remove(id);
        self.by_id.insert(id, self.next);
        self.by_age.insert(self.next, id);
        self.next += 1;
        if self.by_age.len() > IDS_MAX
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.by_id.remove(&oldest);
        }
        assert!(self.by_id.len() <= IDS_MAX, "a stream cannot fill the memory with ids");
        assert_eq!(self.by_id.len(), self.by_age.len(), "each id has an age");
    }

    /// Returns whether it was there.
    pub(super) fn remove(&mut self, id: i64) -> bool {
        let age = self.by_id.remove(&id);
        age.is_some_and(|age| self.by_age.remove(&age).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_remembered() {
        let mut ids = CompactedIds::default();
        let newest = IDS_MAX as i64 + 3;
        (0..=newest).for_each(|id| ids.insert(id));
        assert!(!ids.contains(3) && ids.contains(4) && ids.contains(newest));
        assert!(ids.remove(4) && !ids.remove(4) && !ids.contains(4));
        ids.insert(5);
        ids.insert(1);
        assert!(ids.contains(5) && ids.contains(6), "it was told of again, and there is room");
    }
}
