//! Which watchers a key concerns.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{KeyRange, RangeEnd};

/// Watchers by the range they watch. Watchers of one range share an entry, so that many clients on few ranges cost
/// little. Finding those that a key concerns takes time in the logarithm of the number of ranges, and in the number
/// found.
///
/// Single keys are in an ordered map; intervals are in a balanced tree by start, each node of which knows the highest
/// end below it.
#[derive(Clone, Debug)]
pub struct WatcherIndex<Id> {
    singles: BTreeMap<Bytes, Vec<Id>>,
    intervals: IntervalTree<Id>,
    len: usize,
}

impl<Id> Default for WatcherIndex<Id> {
    fn default() -> WatcherIndex<Id> {
        WatcherIndex { singles: BTreeMap::new(), intervals: IntervalTree::default(), len: 0 }
    }
}

impl<Id: Copy + Ord> WatcherIndex<Id> {
    /// An index without watchers.
    pub fn new() -> WatcherIndex<Id> {
        WatcherIndex::default()
    }

    /// Adds a watcher. An id may watch several ranges, but each only once.
    pub fn insert(&mut self, range: &KeyRange, id: Id) {
        let ids = match &range.end {
            RangeEnd::Single => self.singles.entry(range.key.clone()).or_default(),
            RangeEnd::From | RangeEnd::At(_) => self.intervals.entry(range),
        };
        if let Err(place) = ids.binary_search(&id) {
            ids.insert(place, id);
            debug_assert!(ids.is_sorted_by(|one, next| one < next), "watchers are found by binary search");
            self.len += 1;
        }
    }

    /// Takes a watcher away. Returns whether it was there.
    pub fn remove(&mut self, range: &KeyRange, id: Id) -> bool {
        let removed = match &range.end {
            RangeEnd::Single => {
                let Some(ids) = self.singles.get_mut(&range.key) else { return false };
                let removed = remove_sorted(ids, id);
                if ids.is_empty() {
                    self.singles.remove(&range.key);
                }
                removed
            }
            RangeEnd::From | RangeEnd::At(_) => self.intervals.remove(range, id),
        };
        assert!(!removed || self.len > 0, "every watcher is counted");
        self.len -= usize::from(removed);
        removed
    }

    /// Appends the watchers whose range holds `key`, in no particular order, once per range.
    pub fn matching(&self, key: &[u8], out: &mut Vec<Id>) {
        let before = out.len();
        if let Some(ids) = self.singles.get(key) {
            out.extend_from_slice(ids);
        }
        self.intervals.matching(key, out);
        assert!(out.len() - before <= self.len, "a watcher is found once for each range that it watches");
    }

    /// How many watchers there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no watchers.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

fn remove_sorted<Id: Ord>(ids: &mut Vec<Id>, id: Id) -> bool {
    match ids.binary_search(&id) {
        Ok(place) => {
            ids.remove(place);
            true
        }
        Err(_) => false,
    }
}

/// An AVL tree by (start, end). Subtrees are owned by their parent, so there is nothing to leak and no index to mix up;
/// the depth is below 1.45 log2 of the number of ranges, which bounds the recursion.
#[derive(Clone, Debug)]
struct IntervalTree<Id> {
    root: Link<Id>,
}

type Link<Id> = Option<Box<Node<Id>>>;

#[derive(Clone, Debug)]
struct Node<Id> {
    range: KeyRange,
    /// The highest end in this subtree.
    max_end: End,
    height: u8,
    ids: Vec<Id>,
    left: Link<Id>,
    right: Link<Id>,
}

/// The end of an interval; open ends come last.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    At(Bytes),
    Open,
}

impl End {
    fn of(range: &KeyRange) -> End {
        match &range.end {
            RangeEnd::At(end) => End::At(end.clone()),
            RangeEnd::From => End::Open,
            // Not kept in the tree; its own key bounds it from below.
            RangeEnd::Single => End::At(range.key.clone()),
        }
    }

    fn is_above(&self, key: &[u8]) -> bool {
        match self {
            End::At(end) => end.as_ref() > key,
            End::Open => true,
        }
    }
}

impl<Id> Default for IntervalTree<Id> {
    fn default() -> IntervalTree<Id> {
        IntervalTree { root: None }
    }
}

impl<Id: Copy + Ord> IntervalTree<Id> {
    /// The ids of a range, which is added if it is not there.
    fn entry(&mut self, range: &KeyRange) -> &mut Vec<Id> {
        if find(&mut self.root, range).is_none() {
            self.root = Some(insert(self.root.take(), range));
        }
        find(&mut self.root, range).expect("the range is in the tree")
    }

    fn remove(&mut self, range: &KeyRange, id: Id) -> bool {
        let Some(ids) = find(&mut self.root, range) else { return false };
        let removed = remove_sorted(ids, id);
        if ids.is_empty() {
            self.root = remove(self.root.take(), range);
        }
        removed
    }

    fn matching(&self, key: &[u8], out: &mut Vec<Id>) {
        fn visit<Id: Copy>(link: &Link<Id>, key: &[u8], out: &mut Vec<Id>) {
            let Some(node) = link else { return };
            if !node.max_end.is_above(key) {
                return;
            }
            visit(&node.left, key, out);
            if node.range.key.as_ref() <= key {
                if node.range.contains(key) {
                    out.extend_from_slice(&node.ids);
                }
                visit(&node.right, key, out);
            }
        }
        visit(&self.root, key, out);
    }
}

fn find<'a, Id>(link: &'a mut Link<Id>, range: &KeyRange) -> Option<&'a mut Vec<Id>> {
    let mut link = link;
    while let Some(node) = link {
        match range.cmp(&node.range) {
            std::cmp::Ordering::Less => link = &mut node.left,
            std::cmp::Ordering::Greater => link = &mut node.right,
            std::cmp::Ordering::Equal => return Some(&mut node.ids),
        }
    }
    None
}

fn insert<Id>(link: Link<Id>, range: &KeyRange) -> Box<Node<Id>> {
    let Some(mut node) = link else {
        return Box::new(Node {
            range: range.clone(),
            max_end: End::of(range),
            height: 1,
            ids: Vec::new(),
            left: None,
            right: None,
        });
    };
    match range.cmp(&node.range) {
        std::cmp::Ordering::Less => node.left = Some(insert(node.left.take(), range)),
        std::cmp::Ordering::Greater => node.right = Some(insert(node.right.take(), range)),
        std::cmp::Ordering::Equal => return node,
    }
    balance(node)
}

fn remove<Id>(link: Link<Id>, range: &KeyRange) -> Link<Id> {
    let mut node = link?;
    match range.cmp(&node.range) {
        std::cmp::Ordering::Less => node.left = remove(node.left.take(), range),
        std::cmp::Ordering::Greater => node.right = remove(node.right.take(), range),
        std::cmp::Ordering::Equal => {
            assert!(node.ids.is_empty(), "a range that is watched stays");
            let Some(right) = node.right.take() else { return node.left.take() };
            let (right, mut successor) = take_first(right);
            successor.left = node.left.take();
            successor.right = right;
            return Some(balance(successor));
        }
    }
    Some(balance(node))
}

/// Takes the first node out of a subtree.
fn take_first<Id>(mut node: Box<Node<Id>>) -> (Link<Id>, Box<Node<Id>>) {
    match node.left.take() {
        None => (node.right.take(), node),
        Some(left) => {
            let (rest, first) = take_first(left);
            node.left = rest;
            (Some(balance(node)), first)
        }
    }
}

fn height<Id>(link: &Link<Id>) -> u8 {
    link.as_ref().map_or(0, |node| node.height)
}

/// Restores balance, height and highest end of a node whose subtrees are in order.
fn balance<Id>(mut node: Box<Node<Id>>) -> Box<Node<Id>> {
    let (left, right) = (height(&node.left), height(&node.right));
    if left > right + 1 {
        let mut child = node.left.take().expect("the taller side is not empty");
        if height(&child.left) < height(&child.right) {
            child = rotate_left(child);
        }
        node.left = Some(child);
        return rotate_right(node);
    }
    if right > left + 1 {
        let mut child = node.right.take().expect("the taller side is not empty");
        if height(&child.right) < height(&child.left) {
            child = rotate_right(child);
        }
        node.right = Some(child);
        return rotate_left(node);
    }
    update(&mut node);
    node
}

fn rotate_right<Id>(mut node: Box<Node<Id>>) -> Box<Node<Id>> {
    let mut top = node.left.take().expect("a rotation has a child to lift");
    node.left = top.right.take();
    update(&mut node);
    top.right = Some(node);
    update(&mut top);
    top
}

fn rotate_left<Id>(mut node: Box<Node<Id>>) -> Box<Node<Id>> {
    let mut top = node.right.take().expect("a rotation has a child to lift");
    node.right = top.left.take();
    update(&mut node);
    top.left = Some(node);
    update(&mut top);
    top
}

fn update<Id>(node: &mut Node<Id>) {
    node.height = height(&node.left).max(height(&node.right)) + 1;
    let mut max_end = End::of(&node.range);
    for child in [&node.left, &node.right].into_iter().flatten() {
        if child.max_end > max_end {
            max_end = child.max_end.clone();
        }
    }
    node.max_end = max_end;
    let before = |child: &Link<Id>| child.as_ref().is_none_or(|child| child.range < node.range);
    let after = |child: &Link<Id>| child.as_ref().is_none_or(|child| child.range > node.range);
    debug_assert!(before(&node.left) && after(&node.right), "ranges are found by their order");
    debug_assert!(height(&node.left).abs_diff(height(&node.right)) <= 2, "one change unbalances by one");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks order, balance and ends; returns the height.
    fn check<Id>(link: &Link<Id>) -> u8 {
        let Some(node) = link else { return 0 };
        let (left, right) = (check(&node.left), check(&node.right));
        assert!(left.abs_diff(right) <= 1, "balanced");
        assert_eq!(node.height, left.max(right) + 1);
        let mut max_end = End::of(&node.range);
        if let Some(child) = &node.left {
            assert!(child.range < node.range);
            max_end = max_end.max(child.max_end.clone());
        }
        if let Some(child) = &node.right {
            assert!(child.range > node.range);
            max_end = max_end.max(child.max_end.clone());
        }
        assert_eq!(node.max_end, max_end);
        node.height
    }

    #[test]
    fn a_tree_of_many_ranges_stays_balanced_and_finds_what_a_list_finds() {
        // A small generator of its own, so that the test is the same every time.
        let mut state = 1_u64;
        let mut next = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let mut index = WatcherIndex::new();
        let mut list = Vec::<(KeyRange, u64)>::new();
        for id in 0..3_000 {
            let (a, b) = (format!("{:03}", next(400)), format!("{:03}", next(400)));
            let range = match next(4) {
                0 => KeyRange::single(a),
                1 => KeyRange::from(a),
                2 | 3 => KeyRange::between(a, b),
                _ => unreachable!("below four"),
            };
            index.insert(&range, id);
            list.push((range, id));
            if next(3) == 0 {
                let (range, id) = list.swap_remove(next(list.len() as u64) as usize);
                assert!(index.remove(&range, id));
                assert!(!index.remove(&range, id));
            }
            if id % 100 == 0 {
                check(&index.intervals.root);
                assert_eq!(index.len(), list.len());
                for key in 0..400 {
                    let key = format!("{key:03}");
                    let mut found = Vec::new();
                    index.matching(key.as_bytes(), &mut found);
                    found.sort_unstable();
                    let mut expected: Vec<_> = list
                        .iter()
                        .filter(|(range, _)| range.contains(key.as_bytes()))
                        .map(|(_, id)| *id)
                        .collect();
                    expected.sort_unstable();
                    assert_eq!(found, expected, "{key}");
                }
            }
        }
        for (range, id) in list.drain(..) {
            assert!(index.remove(&range, id));
            check(&index.intervals.root);
        }
        assert!(index.is_empty() && index.singles.is_empty() && index.intervals.root.is_none());
    }
}
