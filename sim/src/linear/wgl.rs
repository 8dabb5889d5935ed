//! A general linearizability checker: Wing and Gong's search ("Testing and verifying concurrent objects", 1993) with
//! Lowe's memory of visited configurations ("Testing for linearizability", 2017, §4).
//!
//! The calls and returns of a history stand in one list, ordered by time. The search takes a call whose operation the
//! specification allows next, removes the operation's entries, and starts over at the head of the list; when it meets a
//! return, that operation had to be taken earlier, so it undoes its last choice and goes on behind it. A configuration
//! is the set of operations taken and the state reached; one that was visited before cannot lead anywhere new.
//!
//! An operation with an unknown outcome has a call and no return: it may be taken at any later point, or be left over.
//!
//! Histories without such operations are usually decided in linear time; the worst case is exponential, so every check
//! has a budget.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::history::{End, Operation};

/// A sequential specification: what each operation may answer in each state.
pub trait Spec {
    /// The state. Its order has no meaning; it is for the memory of visited configurations.
    type State: Clone + Ord;
    /// What is asked.
    type Input;
    /// What is answered.
    type Output;
    /// Names an independent part of the state.
    type Part: Ord;

    /// The state before the first operation of a part.
    fn initial(&self) -> Self::State;

    /// The state after `input` was answered with `output` in `state`; none if that answer is wrong there.
    fn step(&self, state: &Self::State, input: &Self::Input, output: &Self::Output) -> Option<Self::State>;

    /// The state after `input` took effect in `state` and nobody saw the answer; none if it has no effect there.
    fn step_unseen(&self, state: &Self::State, input: &Self::Input) -> Option<Self::State>;

    /// The part of the state that the operation is confined to. Linearizability is local: if every operation names its
    /// part, the parts are checked one by one, which is far cheaper. One operation without a part joins all.
    fn part(&self, input: &Self::Input) -> Option<Self::Part>;
}

/// Bounds of a check.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Most evaluations of the specification, over all parts. This bounds the time.
    pub steps: u64,
    /// Most configurations remembered at a time. This bounds the memory; a search that has run out of it goes on
    /// without learning.
    pub configurations: usize,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget { steps: 5_000_000, configurations: 500_000 }
    }
}

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There is an order that explains every answer.
    Linearizable,
    /// There is none.
    Violation {
        /// How far the search came.
        witness: Witness,
    },
    /// Not found out.
    Unknown {
        /// Why.
        reason: Undecided,
    },
}

/// Why a check has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undecided {
    /// The budget ran out.
    Budget,
    /// The operation at this index returned before it was called.
    Malformed {
        /// Its index.
        operation: usize,
    },
}

/// Why a history is not linearizable. Operations are given by their index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Witness {
    /// The longest order that explains the operations in it.
    pub order: Vec<usize>,
    /// The operation that returned although it cannot follow that order.
    pub blocked: usize,
}

impl fmt::Display for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "operation {} cannot follow {:?}", self.blocked, self.order)
    }
}

/// Checks whether `operations` are linearizable by `spec`.
pub fn check<S: Spec>(spec: &S, operations: &[Operation<S::Input, S::Output>], budget: Budget) -> Outcome {
    let backwards =
        |operation: &Operation<_, _>| operation.returned_at().is_some_and(|at| at < operation.call);
    if let Some(operation) = operations.iter().position(backwards) {
        return Outcome::Unknown { reason: Undecided::Malformed { operation } };
    }
    let mut steps = budget.steps;
    let mut undecided = None;
    for part in parts(spec, operations) {
        match Search::new(spec, operations, &part, budget.configurations).run(&mut steps) {
            Outcome::Linearizable => {}
            violation @ Outcome::Violation { .. } => return violation,
            Outcome::Unknown { reason } => undecided = Some(reason),
        }
    }
    undecided.map_or(Outcome::Linearizable, |reason| Outcome::Unknown { reason })
}

/// The indices of the operations of each part.
fn parts<S: Spec>(spec: &S, operations: &[Operation<S::Input, S::Output>]) -> Vec<Vec<usize>> {
    let mut parts: BTreeMap<S::Part, Vec<usize>> = BTreeMap::new();
    for (index, operation) in operations.iter().enumerate() {
        match spec.part(&operation.input) {
            Some(part) => parts.entry(part).or_default().push(index),
            None => return vec![(0..operations.len()).collect()],
        }
    }
    parts.into_values().collect()
}

/// The list's ends. Every other index is an entry.
const HEAD: usize = 0;

/// A call or a return in the doubly linked list.
struct Entry {
    /// Index into the part's operations.
    operation: usize,
    kind: EntryKind,
    previous: usize,
    /// [`HEAD`] behind the last entry.
    next: usize,
}

#[derive(Clone, Copy)]
enum EntryKind {
    /// With the index of the return's entry, if the operation returned.
    Call {
        returned: Option<usize>,
    },
    Return,
}

/// A set of operations, as bits.
type Taken = Vec<u64>;

struct Search<'a, S: Spec> {
    spec: &'a S,
    operations: &'a [Operation<S::Input, S::Output>],
    part: &'a [usize],
    entries: Vec<Entry>,
    /// Operations that returned and are not taken.
    left: usize,
    state: S::State,
    taken: Taken,
    visited: BTreeSet<(Taken, S::State)>,
    visited_max: usize,
    /// The choices made: the call's entry and the state before.
    path: Vec<(usize, S::State)>,
    witness: Witness,
}

impl<'a, S: Spec> Search<'a, S> {
    fn new(
        spec: &'a S,
        operations: &'a [Operation<S::Input, S::Output>],
        part: &'a [usize],
        visited_max: usize,
    ) -> Search<'a, S> {
        // At equal times calls come first: such operations are concurrent.
        let mut times: Vec<(u64, bool, usize)> = Vec::with_capacity(part.len() * 2);
        for (index, operation) in part.iter().filter_map(|&index| operations.get(index)).enumerate() {
            times.push((operation.call, false, index));
            times.extend(operation.returned_at().map(|at| (at, true, index)));
        }
        times.sort_unstable();
        let mut entries = vec![Entry { operation: 0, kind: EntryKind::Return, previous: HEAD, next: HEAD }];
        let mut calls = vec![HEAD; part.len()];
        for (position, &(_, is_return, operation)) in times.iter().enumerate() {
            let index = position + 1;
            let kind = if is_return {
                entries[calls[operation]].kind = EntryKind::Call { returned: Some(index) };
                EntryKind::Return
            } else {
                calls[operation] = index;
                EntryKind::Call { returned: None }
            };
            entries.push(Entry { operation, kind, previous: position, next: index + 1 });
        }
        let last = entries.len() - 1;
        entries[last].next = HEAD;
        entries[HEAD].next = if last == HEAD { HEAD } else { 1 };
        entries[HEAD].previous = last;
        Search {
            spec,
            operations,
            part,
            entries,
            left: times.iter().filter(|(_, is_return, _)| *is_return).count(),
            state: spec.initial(),
            taken: vec![0; part.len().div_ceil(64)],
            visited: BTreeSet::new(),
            visited_max,
            path: Vec::new(),
            witness: Witness::default(),
        }
    }

    fn run(mut self, steps: &mut u64) -> Outcome {
        let mut position = self.entries[HEAD].next;
        while self.left > 0 {
            let entry = &self.entries[position];
            match entry.kind {
                EntryKind::Call { returned } => {
                    let Some(rest) = steps.checked_sub(1) else {
                        return Outcome::Unknown { reason: Undecided::Budget };
                    };
                    *steps = rest;
                    let next = entry.next;
                    position = if self.take(position, returned) { self.entries[HEAD].next } else { next };
                }
                EntryKind::Return => {
                    self.note_witness(entry.operation);
                    let Some((call, state)) = self.path.pop() else {
                        return Outcome::Violation { witness: self.witness };
                    };
                    self.state = state;
                    position = self.put_back(call);
                }
            }
        }
        Outcome::Linearizable
    }

    /// Takes the operation called at `call`, if the specification allows it and the configuration is new.
    fn take(&mut self, call: usize, returned: Option<usize>) -> bool {
        let index = self.entries[call].operation;
        let operation = &self.operations[self.part[index]];
        let state = match &operation.end {
            End::Returned { output, .. } => self.spec.step(&self.state, &operation.input, output),
            End::Unknown => self.spec.step_unseen(&self.state, &operation.input),
        };
        let Some(state) = state else { return false };
        flip(&mut self.taken, index);
        let configuration = (self.taken.clone(), state.clone());
        if self.visited.contains(&configuration) {
            flip(&mut self.taken, index);
            return false;
        }
        if self.visited.len() < self.visited_max {
            self.visited.insert(configuration);
        }
        self.path.push((call, std::mem::replace(&mut self.state, state)));
        self.unlink(call);
        if let Some(returned) = returned {
            self.unlink(returned);
            self.left -= 1;
        }
        true
    }

    /// Undoes [`Search::take`]; returns the entry behind the call.
    fn put_back(&mut self, call: usize) -> usize {
        flip(&mut self.taken, self.entries[call].operation);
        if let EntryKind::Call { returned: Some(returned) } = self.entries[call].kind {
            // In the reverse order of unlinking, so that the neighbours are the ones remembered.
            self.relink(returned);
            self.left += 1;
        }
        self.relink(call);
        self.entries[call].next
    }

    fn unlink(&mut self, index: usize) {
        let Entry { previous, next, .. } = self.entries[index];
        self.entries[previous].next = next;
        self.entries[next].previous = previous;
    }

    fn relink(&mut self, index: usize) {
        let Entry { previous, next, .. } = self.entries[index];
        self.entries[previous].next = index;
        self.entries[next].previous = index;
    }

    fn note_witness(&mut self, blocked: usize) {
        if self.path.len() >= self.witness.order.len() {
            let operation = |&(call, _): &(usize, S::State)| self.part[self.entries[call].operation];
            self.witness =
                Witness { order: self.path.iter().map(operation).collect(), blocked: self.part[blocked] };
        }
    }
}

fn flip(taken: &mut Taken, index: usize) {
    taken[index / 64] ^= 1 << (index % 64);
}
