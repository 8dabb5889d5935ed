//! A queue from which priorities, users and connections are served in turn.

use std::collections::{BTreeMap, VecDeque};

use crate::turns::Turns;

/// What an item costs beside its bytes, when it is served.
const ITEM_COST: u64 = 512;

/// Which go first where not all can: the first of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// What somebody loses who waits too long: leases, and what is held by them.
    Liveness,
    /// What concerns a few keys.
    #[default]
    Small,
    /// What may concern many.
    Large,
}

impl Priority {
    /// All of them, the most urgent one first.
    pub const ALL: [Priority; 3] = [Priority::Liveness, Priority::Small, Priority::Large];

    /// What a unit of cost counts. Where all three have more to do than can be done, their shares are as one to these: 72, 18
    /// and 9 of a hundred. One that uses less than its share waits for no other.
    const fn dearness(self) -> u64 {
        match self {
            Priority::Liveness => 1,
            Priority::Small => 4,
            Priority::Large => 8,
        }
    }
}

/// Who asks, by numbers that say nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    /// Whose connection it is; 0 if that is not known.
    pub user: u64,
    /// The connection it came by; 0 for what nobody asked for.
    pub connection: u64,
}

/// What is served in the order in which it came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// How urgent it is.
    pub priority: Priority,
    /// Whose it is.
    pub source: Source,
}

/// An item's place in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    flow: Flow,
    number: u64,
}

impl Ticket {
    /// Whose it is, and how urgent.
    #[must_use]
    pub const fn flow(self) -> Flow {
        self.flow
    }
}

/// How many bytes may wait. One more item is taken by whoever has less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of one priority.
    pub priority_bytes: usize,
    /// Of one flow.
    pub flow_bytes: usize,
}

/// Too much waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// See the crate. Items of one flow stay in order.
#[derive(Debug)]
pub struct FairQueue<T> {
    limits: Limits,
    /// By priority.
    lanes: [Lane<T>; Priority::ALL.len()],
    /// The mark of the priority that was served last, as in [`Turns`].
    now: u128,
    next_number: u64,
}

/// Items of one priority.
#[derive(Debug)]
struct Lane<T> {
    mark: u128,
    turns: Turns<Source, Held<T>>,
    /// How many connections of each user have something that waits.
    users: BTreeMap<u64, u64>,
    items: usize,
    bytes: usize,
}

/// What waits of a flow.
#[derive(Debug)]
struct Held<T> {
    /// In the order of their numbers. What was taken back leaves a gap, which is neither the first nor among more gaps than there
    /// are items.
    items: VecDeque<(u64, Option<Item<T>>)>,
    gaps: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Item<T> {
    bytes: usize,
    value: T,
}

impl<T> Held<T> {
    fn new() -> Held<T> {
        Held { items: VecDeque::new(), gaps: 0, bytes: 0 }
    }

    fn insert(&mut self, number: u64, item: Item<T>) {
        self.bytes += item.bytes;
        let after = match self.items.back() {
            Some((last, _)) if *last >= number => self.items.partition_point(|(other, _)| *other < number),
            _ => self.items.len(),
        };
        match self.items.get_mut(after) {
            Some((other, gap)) if *other == number => {
                assert!(gap.is_none(), "each item has a number of its own");
                *gap = Some(item);
                self.gaps -= 1;
            }
            _ => self.items.insert(after, (number, Some(item))),
        }
    }

    fn pop(&mut self) -> Option<(u64, Item<T>)> {
        let (number, item) = self.items.pop_front()?;
        let item = item.expect("the first is no gap");
        self.bytes -= item.bytes;
        self.close_gaps();
        Some((number, item))
    }

    fn remove(&mut self, number: u64) -> Option<Item<T>> {
        let at = self.items.binary_search_by_key(&number, |(other, _)| *other).ok()?;
        let item = self.items[at].1.take()?;
        self.bytes -= item.bytes;
        self.gaps += 1;
        self.close_gaps();
        Some(item)
    }

    fn close_gaps(&mut self) {
        while self.items.front().is_some_and(|(_, item)| item.is_none()) {
            self.items.pop_front();
            self.gaps -= 1;
        }
        if self.gaps > self.items.len() / 2 {
            self.items.retain(|(_, item)| item.is_some());
            self.gaps = 0;
        }
        assert!(!self.items.is_empty() || self.bytes == 0, "what is counted waits");
    }
}

impl<T> Lane<T> {
    fn new() -> Lane<T> {
        Lane { mark: 0, turns: Turns::default(), users: BTreeMap::new(), items: 0, bytes: 0 }
    }

    fn is_empty(&self) -> bool {
        self.items == 0
    }

    fn insert(&mut self, source: Source, number: u64, item: Item<T>) {
        let held = self.turns.enter(source, Held::new);
        if held.items.is_empty() {
            *self.users.entry(source.user).or_default() += 1;
        }
        self.items += 1;
        self.bytes += item.bytes;
        held.insert(number, item);
    }

    fn remove(&mut self, source: Source, number: u64) -> Option<Item<T>> {
        let held = self.turns.get_mut(source)?;
        let item = held.remove(number)?;
        let was_last = held.items.is_empty();
        self.has_lost(source, &item, was_last);
        Some(item)
    }

    /// The first item of whoever is next, whom it is charged to.
    fn next(&mut self) -> Option<(Source, u64, Item<T>)> {
        let (source, _) = self.turns.waiting().next()?;
        let held = self.turns.get_mut(source)?;
        let (number, item) = held.pop().expect("who waits has an item");
        let was_last = held.items.is_empty();
        let cost = self.cost_of(source, cost(&item));
        self.has_lost(source, &item, was_last);
        self.turns.serve(source, cost);
        Some((source, number, item))
    }

    /// An item is out, the last one of its flow perhaps.
    fn has_lost(&mut self, source: Source, item: &Item<T>, was_last: bool) {
        self.items -= 1;
        self.bytes -= item.bytes;
        assert!(self.items > 0 || self.bytes == 0, "nothing waits, and nothing is counted");
        if was_last {
            self.turns.leave(source);
            let connections = self.users.get_mut(&source.user).expect("who waits is counted");
            *connections -= 1;
            if *connections == 0 {
                self.users.remove(&source.user);
            }
        }
    }

    /// What something costs a connection: its user has many turns with many of them.
    fn cost_of(&self, source: Source, cost: u64) -> u64 {
        let connections = self.users.get(&source.user).copied().unwrap_or(1);
        cost.saturating_mul(connections)
    }
}

/// What an item costs when it is served.
fn cost<T>(item: &Item<T>) -> u64 {
    item.bytes as u64 + ITEM_COST
}

impl<T> FairQueue<T> {
    /// An empty one.
    #[must_use]
    pub fn new(limits: Limits) -> FairQueue<T> {
        FairQueue { limits, lanes: Priority::ALL.map(|_| Lane::new()), now: 0, next_number: 0 }
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lanes.iter().all(|lane| lane.is_empty())
    }

    /// Bytes of all that waits.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.lanes.iter().map(|lane| lane.bytes).sum()
    }

    /// Takes in an item of so many bytes.
    ///
    /// # Errors
    /// Too much waits of its flow, or of its priority.
    pub fn push(&mut self, flow: Flow, bytes: usize, value: T) -> Result<Ticket, Full> {
        let Limits { priority_bytes, flow_bytes } = self.limits;
        let lane = self.lane(flow.priority);
        let of_flow = lane.turns.get_mut(flow.source).map_or(0, |held| held.bytes);
        if lane.bytes > priority_bytes || of_flow > flow_bytes {
            return Err(Full);
        }
        Ok(self.push_always(flow, bytes, value))
    }

    /// The same of an item that must not be lost, however much waits.
    pub fn push_always(&mut self, flow: Flow, bytes: usize, value: T) -> Ticket {
        self.next_number += 1;
        let ticket = Ticket { flow, number: self.next_number };
        self.put_back(ticket, bytes, value);
        ticket
    }

    /// Takes in again what was taken out, where it was: before all that came later of its flow.
    pub fn put_back(&mut self, ticket: Ticket, bytes: usize, value: T) {
        let now = self.now;
        let lane = self.lane(ticket.flow.priority);
        if lane.is_empty() {
            // Who was away has saved up nothing.
            lane.mark = lane.mark.max(now);
        }
        lane.insert(ticket.flow.source, ticket.number, Item { bytes, value });
    }

    /// Takes out an item that is not to be served.
    pub fn remove(&mut self, ticket: Ticket) -> Option<T> {
        let Ticket { flow, number } = ticket;
        self.lane(flow.priority).remove(flow.source, number).map(|item| item.value)
    }

    /// Whether [`FairQueue::next`] has one.
    #[must_use]
    pub fn has_next(&self, may: impl Fn(Priority) -> bool) -> bool {
        Priority::ALL.into_iter().any(|of| !self.lanes[of as usize].is_empty() && may(of))
    }

    /// The next item, of those priorities that may be served now. It is charged its bytes, and a little for being one.
    pub fn next(&mut self, may: impl Fn(Priority) -> bool) -> Option<(Ticket, T)> {
        let waits = |of: &Priority| !self.lanes[*of as usize].is_empty() && may(*of);
        // Of equal ones the first, which is the most urgent.
        let priority =
            Priority::ALL.into_iter().filter(waits).min_by_key(|of| self.lanes[*of as usize].mark)?;
        let lane = &mut self.lanes[priority as usize];
        let (source, number, item) = lane.next().expect("who has an item waits");
        // One that could not be served when it was next has saved up nothing.
        self.now = self.now.max(lane.mark);
        lane.mark = self.now + u128::from(cost(&item) * priority.dearness());
        Some((Ticket { flow: Flow { priority, source }, number }, item.value))
    }

    /// What was served of this flow has cost so much more than it was charged.
    pub fn charge(&mut self, flow: Flow, cost: u64) {
        let lane = self.lane(flow.priority);
        let of_source = lane.cost_of(flow.source, cost);
        lane.turns.charge(flow.source, of_source);
        lane.mark += u128::from(cost) * u128::from(flow.priority.dearness());
    }

    fn lane(&mut self, priority: Priority) -> &mut Lane<T> {
        &mut self.lanes[priority as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { priority_bytes: 1000, flow_bytes: 100 };

    fn flow(priority: Priority, user: u64, connection: u64) -> Flow {
        Flow { priority, source: Source { user, connection } }
    }

    fn small(user: u64, connection: u64) -> Flow {
        flow(Priority::Small, user, connection)
    }

    fn queue() -> FairQueue<u64> {
        FairQueue::new(Limits { priority_bytes: 1 << 30, flow_bytes: 1 << 30 })
    }

    fn next(queue: &mut FairQueue<u64>) -> Option<u64> {
        queue.next(|_| true).map(|(_, item)| item)
    }

    fn all(queue: &mut FairQueue<u64>) -> Vec<u64> {
        std::iter::from_fn(|| next(queue)).collect()
    }

    #[test]
    fn who_comes_last_with_one_is_second_at_the_latest() {
        let mut queue = queue();
        for number in 0..300 {
            queue.push(small(1, 1), 100, number).unwrap();
        }
        for number in 0..5 {
            assert_eq!(next(&mut queue), Some(number), "one source is served in order");
        }
        queue.push(small(2, 2), 100, 1000).unwrap();
        let two = [next(&mut queue), next(&mut queue)];
        assert!(two.contains(&Some(1000)), "{two:?}");
    }

    #[test]
    fn what_turns_out_to_be_dear_is_charged() {
        let mut queue = queue();
        for number in 0..10 {
            queue.push(small(1, 1), 0, number).unwrap();
            queue.push(small(2, 2), 0, 100 + number).unwrap();
        }
        assert_eq!(next(&mut queue), Some(0));
        queue.charge(small(1, 1), 4 * ITEM_COST);
        let order: Vec<u64> = (0..6).filter_map(|_| next(&mut queue)).collect();
        assert_eq!(order, [100, 101, 102, 103, 104, 1]);
    }

    #[test]
    fn many_connections_of_one_user_have_together_what_one_of_another_has() {
        let mut queue = queue();
        for connection in 0..10 {
            for number in 0..10 {
                queue.push(small(1, connection), 0, number).unwrap();
            }
        }
        for number in 0..10 {
            queue.push(small(2, 100), 0, 1000 + number).unwrap();
        }
        let of_other = (0..20).filter(|_| next(&mut queue).is_some_and(|item| item >= 1000)).count();
        assert!((5..=10).contains(&of_other), "{of_other} of 20");
    }

    #[test]
    fn the_urgent_go_first_and_the_large_have_their_share() {
        let mut queue = queue();
        for number in 0..100 {
            queue.push(flow(Priority::Large, 1, 1), 0, number).unwrap();
            queue.push(small(1, 2), 0, 1000 + number).unwrap();
        }
        queue.push(flow(Priority::Liveness, 1, 3), 0, 9999).unwrap();
        assert_eq!(next(&mut queue), Some(9999));
        let large = (0..90).filter(|_| next(&mut queue).is_some_and(|item| item < 1000)).count();
        assert_eq!(large, 30, "a third");
    }

    #[test]
    fn a_priority_that_may_not_be_served_holds_up_no_other() {
        let mut queue = queue();
        queue.push(flow(Priority::Large, 1, 1), 0, 1).unwrap();
        let no_large = |of| of != Priority::Large;
        assert!(!queue.has_next(no_large) && queue.has_next(|_| true));
        assert_eq!(queue.next(no_large), None);
        queue.push(small(1, 1), 0, 2).unwrap();
        assert_eq!(queue.next(no_large).map(|(_, item)| item), Some(2));
        assert_eq!(next(&mut queue), Some(1));
    }

    #[test]
    fn what_is_put_back_is_next_of_its_flow() {
        let mut queue = queue();
        for number in 0..3 {
            queue.push(small(1, 1), 0, number).unwrap();
        }
        let (ticket, item) = queue.next(|_| true).unwrap();
        queue.put_back(ticket, 7, item);
        assert_eq!(queue.bytes(), 7);
        assert_eq!(all(&mut queue), [0, 1, 2]);
    }

    #[test]
    fn what_is_taken_back_is_gone_and_leaves_nothing() {
        let mut queue = queue();
        let tickets: Vec<Ticket> =
            (0..1000).map(|number| queue.push(small(1, number % 7), 10, number).unwrap()).collect();
        for ticket in tickets.iter().rev().filter(|ticket| ticket.number != 500) {
            assert!(queue.remove(*ticket).is_some() && queue.remove(*ticket).is_none());
        }
        assert_eq!((queue.bytes(), all(&mut queue)), (10, vec![499]));
        assert!(queue.is_empty() && queue.lanes[1].users.is_empty());
    }

    #[test]
    fn what_is_taken_back_in_the_middle_takes_no_room() {
        let mut queue = queue();
        queue.push(small(1, 1), 0, 0).unwrap();
        for number in 1..1000 {
            let ticket = queue.push(small(1, 1), 0, number).unwrap();
            queue.push(small(1, 1), 0, 1000 + number).unwrap();
            assert_eq!(queue.remove(ticket), Some(number));
            if number % 2 == 0 {
                queue.put_back(ticket, 0, number);
                assert_eq!(queue.remove(ticket), Some(number));
            }
            let held = queue.lanes[1].turns.get_mut(small(1, 1).source).unwrap();
            assert!(held.gaps <= held.items.len() / 2 && held.items.len() - held.gaps == number as usize + 1);
        }
        assert_eq!(all(&mut queue), std::iter::once(0).chain(1001..2000).collect::<Vec<_>>());
    }

    #[test]
    fn what_waits_is_bounded_for_each() {
        let mut queue = FairQueue::new(LIMITS);
        let mut fill = |flow| (0..).take_while(|number| queue.push(flow, 60, *number).is_ok()).count();
        assert_eq!(fill(small(1, 1)), 2);
        assert_eq!(fill(small(1, 2)), 2);
        assert_eq!((3..100).map(|connection| fill(small(1, connection))).sum::<usize>(), 13);
        assert_eq!(fill(flow(Priority::Large, 1, 1)), 2, "others have their own room");
        queue.push_always(small(1, 1), 60, 0);
    }
}
