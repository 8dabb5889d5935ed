//! The links that are up: which one leads to a node.

use crate::link::LinkId;
use crate::route::NodeId;

/// See the module. Small, and read far more often than changed.
#[derive(Clone, Debug)]
pub struct Links<L>(Vec<Up<L>>);

#[derive(Clone, Debug)]
struct Up<L> {
    id: LinkId,
    node: NodeId,
    link: L,
}

impl<L> Default for Links<L> {
    fn default() -> Links<L> {
        Links(Vec::new())
    }
}

impl<L> Links<L> {
    /// A link came up, and leads to `node`.
    pub fn handle_up(&mut self, id: LinkId, node: NodeId, link: L) {
        debug_assert!(self.0.iter().all(|up| up.id != id), "a link comes up once");
        self.0.push(Up { id, node, link });
    }

    /// A link is gone. Returns the node that it led to, if it was up.
    pub fn handle_down(&mut self, id: LinkId) -> Option<NodeId> {
        let place = self.0.iter().position(|up| up.id == id)?;
        let down = self.0.remove(place);
        debug_assert!(self.0.iter().all(|up| up.id != id), "a link comes up once");
        Some(down.node)
    }

    /// A link to the node; several share the work, by `turn`. What is_up does not hold for went down since it was heard of.
    pub fn to(&self, node: NodeId, turn: impl FnOnce() -> usize, is_up: impl Fn(&L) -> bool) -> Option<&L> {
        let mut links = self.0.iter().filter(|up| up.node == node && is_up(&up.link)).map(|up| &up.link);
        let first = links.next()?;
        match links.clone().count() {
            0 => Some(first),
            others => match turn() % (others + 1) {
                0 => Some(first),
                turn => links.nth(turn - 1),
            },
        }
    }

    /// All of them, and where they lead.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &L)> {
        self.0.iter().map(|up| (up.node, &up.link))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_links_to_a_node_share_the_work() {
        let mut links = Links::default();
        for (id, node, link) in [(1, 7, 'a'), (2, 8, 'b'), (3, 7, 'c'), (4, 7, 'd')] {
            links.handle_up(LinkId(id), NodeId(node), link);
        }
        let to = |links: &Links<char>, node, down: &str| -> String {
            (0..4).filter_map(|turn| links.to(NodeId(node), || turn, |link| !down.contains(*link))).collect()
        };
        assert_eq!(to(&links, 7, ""), "acda");
        assert_eq!(to(&links, 7, "c"), "adad");
        assert_eq!(to(&links, 8, ""), "bbbb");
        assert_eq!(to(&links, 9, ""), "");
        assert_eq!(links.handle_down(LinkId(1)), Some(NodeId(7)));
        assert_eq!(links.handle_down(LinkId(1)), None);
        assert_eq!(to(&links, 7, ""), "cdcd");
        assert_eq!(links.iter().count(), 3);
    }
}
