//! The groups that have a replica on this node, and the ways to their tasks. They come and go while the node runs.

mod handle;

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use consensus_core::GroupId;

pub(crate) use self::handle::{GroupEvent, GroupHandle};

type ById = BTreeMap<GroupId, Arc<GroupHandle>>;

/// Looked at with every frame and changed hardly ever: replaced as a whole.
#[derive(Debug, Default)]
pub(crate) struct Groups(ArcSwap<ById>);

impl Groups {
    pub(crate) fn get(&self, id: GroupId) -> Option<Arc<GroupHandle>> {
        self.0.load().get(&id).cloned()
    }

    /// As they are now.
    pub(crate) fn all(&self) -> Guard<Arc<ById>> {
        self.0.load()
    }

    /// From now on there is a way to it.
    pub(crate) fn insert(&self, group: &Arc<GroupHandle>) {
        self.change(|groups| {
            let before = groups.insert(group.id, Arc::clone(group));
            assert!(before.is_none(), "group {} has one replica on a node", group.id.0);
        });
    }

    /// It has ended: what is asked of it is refused as certainly not done.
    pub(crate) fn remove(&self, id: GroupId) {
        self.change(|groups| {
            groups.remove(&id);
        });
    }

    fn change(&self, change: impl Fn(&mut ById)) {
        self.0.rcu(|groups| {
            let mut groups = ById::clone(groups);
            change(&mut groups);
            groups
        });
    }
}

#[cfg(test)]
mod tests {
    use consensus_core::NodeSet;

    use super::*;

    #[test]
    fn groups_come_and_go_and_whoever_looks_sees_those_of_a_moment() {
        let groups = Groups::default();
        let handle = |id| Arc::new(GroupHandle::new(GroupId(id), NodeSet::new()));
        groups.insert(&handle(1));
        let seen = groups.all();
        groups.insert(&handle(2));
        groups.remove(GroupId(1));
        assert_eq!(seen.keys().copied().collect::<Vec<_>>(), [GroupId(1)]);
        assert_eq!(groups.all().keys().copied().collect::<Vec<_>>(), [GroupId(2)]);
        assert!(groups.get(GroupId(1)).is_none() && groups.get(GroupId(2)).is_some());
    }
}
