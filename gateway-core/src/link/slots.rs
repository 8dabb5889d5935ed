//! Who waits for which request on a connection: a table with ids that are never given twice.

use crate::mutant::mutant;

/// A table of `T` under ids. An id holds the place in the table and how often that place was used, so a late answer to
/// an id that is free again finds nobody.
#[derive(Debug)]
pub(super) struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot<T> {
    /// From 1, so that no id is 0.
    uses: u32,
    content: Option<T>,
}

impl<T> Slots<T> {
    pub(super) fn new() -> Slots<T> {
        Slots { slots: Vec::new(), free: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, content: T) -> u64 {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                assert!(self.slots.len() < u32::MAX as usize, "fewer wait than half an id can tell apart");
                self.slots.push(Slot { uses: 0, content: None });
                self.slots.len() as u32 - 1
            }
        };
        let slot = &mut self.slots[index as usize];
        assert!(slot.content.is_none(), "a place that is free is empty");
        slot.uses = if mutant!(LateAnswerTaken) { 1 } else { slot.uses.wrapping_add(1).max(1) };
        slot.content = Some(content);
        u64::from(slot.uses) << 32 | u64::from(index)
    }

    pub(super) fn get(&self, id: u64) -> Option<&T> {
        let slot = self.slots.get(id as u32 as usize)?;
        if u64::from(slot.uses) == id >> 32 { slot.content.as_ref() } else { None }
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        let slot = self.slots.get_mut(id as u32 as usize)?;
        if u64::from(slot.uses) == id >> 32 { slot.content.as_mut() } else { None }
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<T> {
        let index = id as u32;
        let slot = self.slots.get_mut(index as usize)?;
        if u64::from(slot.uses) != id >> 32 {
            return None;
        }
        let content = slot.content.take()?;
        self.free.push(index);
        assert!(self.free.len() <= self.slots.len(), "a place is freed once");
        Some(content)
    }

    /// Takes out all for which `leaves` holds, with their ids.
    pub(super) fn remove_where(&mut self, leaves: impl Fn(&T) -> bool) -> Vec<(u64, T)> {
        let mut gone = Vec::new();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if slot.content.as_ref().is_some_and(&leaves) {
                let id = u64::from(slot.uses) << 32 | index as u64;
                gone.extend(slot.content.take().map(|content| (id, content)));
                self.free.push(index as u32);
            }
        }
        assert!(self.free.len() <= self.slots.len(), "a place is freed once");
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_never_given_twice() {
        let mut slots = Slots::new();
        let first = slots.insert('a');
        let second = slots.insert('b');
        assert_eq!(slots.remove(first), Some('a'));
        let third = slots.insert('c');
        assert_ne!(first, third);
        assert_eq!(slots.get(first), None, "a late answer");
        assert_eq!(slots.remove(first), None);
        assert_eq!((slots.get(second), slots.get(third)), (Some(&'b'), Some(&'c')));
        assert_eq!(slots.len(), 2);
        assert_eq!(slots.remove(0), None);
        assert_eq!(slots.remove(u64::MAX), None);
    }

    #[test]
    fn many_leave_at_once() {
        let mut slots = Slots::new();
        let ids: Vec<u64> = (0..10).map(|number| slots.insert(number)).collect();
        let gone = slots.remove_where(|number| number % 2 == 0);
        assert!(gone.iter().map(|(_, number)| *number).eq([0, 2, 4, 6, 8]));
        assert!(gone.iter().all(|(id, number)| *id == ids[*number as usize]));
        assert_eq!(slots.len(), 5);
        assert_eq!(slots.get(ids[3]), Some(&3));
        assert_eq!(slots.get(ids[4]), None);
    }
}
