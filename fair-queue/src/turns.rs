//! Turns of some who share something.

use std::collections::{BTreeMap, BTreeSet};

/// Those with nothing to do are remembered for what they owe, but not more of them than this, when it is looked at who may be
/// forgotten.
const DEBTORS_MAX: usize = 1024;
/// With fewer than these it is not looked at.
const KNOWN_MIN: usize = 64;

/// Who is next. Each has a mark: how much it has had, and those begin at the mark of who was served last that come, or come
/// again. So who was away has saved up nothing, and who has had much waits until the others have had as much.
///
/// `V` is what belongs to each; it is forgotten, some time, with whoever has nothing to do and owes nothing.
#[derive(Debug)]
pub struct Turns<K, V> {
    /// The mark of who was served last, before that.
    now: u128,
    all: BTreeMap<K, Place<V>>,
    /// By their marks.
    waiting: BTreeSet<(u128, K)>,
    /// When so many are known, it is looked at who may be forgotten: at each time half of them, or nobody for as long as it took
    /// to get to know as many again.
    look_at: usize,
}

#[derive(Debug)]
struct Place<V> {
    mark: u128,
    waits: bool,
    value: V,
}

impl<K, V> Default for Turns<K, V> {
    fn default() -> Turns<K, V> {
        Turns { now: 0, all: BTreeMap::new(), waiting: BTreeSet::new(), look_at: KNOWN_MIN }
    }
}

impl<K: Copy + Ord, V> Turns<K, V> {
    /// Has something to do from now on. Returns what belongs to it.
    pub fn enter(&mut self, who: K, new: impl FnOnce() -> V) -> &mut V {
        if self.all.len() >= self.look_at {
            self.forget();
        }
        let now = self.now;
        let place = self.all.entry(who).or_insert_with(|| Place { mark: now, waits: false, value: new() });
        if !place.waits {
            // Who owes nothing any more is as one who was forgotten.
            place.mark = place.mark.max(now);
            place.waits = true;
            self.waiting.insert((place.mark, who));
        }
        &mut place.value
    }

    /// Has nothing to do any more. Where its last turn is over, call this before [`Turns::serve`]: it costs less.
    pub fn leave(&mut self, who: K) {
        let Some(place) = self.all.get_mut(&who).filter(|place| place.waits) else { return };
        place.waits = false;
        let waited = self.waiting.remove(&(place.mark, who));
        assert!(waited, "who waits has a turn");
    }

    /// Is gone, with what it owes.
    pub fn remove(&mut self, who: K) -> Option<V> {
        let place = self.all.remove(&who)?;
        let waited = self.waiting.remove(&(place.mark, who));
        assert_eq!(place.waits, waited, "who waits has a turn, and nobody else");
        Some(place.value)
    }

    /// What belongs to it, if it is known.
    pub fn get_mut(&mut self, who: K) -> Option<&mut V> {
        self.all.get_mut(&who).map(|place| &mut place.value)
    }

    /// Those who have something to do, the next one first.
    pub fn waiting(&self) -> impl Iterator<Item = (K, &V)> {
        self.waiting.iter().filter_map(|(_, who)| Some((*who, &self.all.get(who)?.value)))
    }

    /// It is served, at this cost. It need not be the next one, if that one cannot be.
    pub fn serve(&mut self, who: K, cost: u64) {
        let Some(place) = self.all.get_mut(&who) else { return };
        // One that could not be served when it was next has saved up nothing.
        self.now = self.now.max(place.mark);
        let mark = self.now + u128::from(cost);
        place.move_to(who, mark, &mut self.waiting);
    }

    /// What it was served has cost so much more.
    pub fn charge(&mut self, who: K, cost: u64) {
        if let Some(place) = self.all.get_mut(&who) {
            // Who was forgotten in all but name begins where the others are.
            let since = if place.waits { place.mark } else { place.mark.max(self.now) };
            place.move_to(who, since + u128::from(cost), &mut self.waiting);
        }
    }

    /// Forgets those who owe nothing more, and those who owe least where there are too many.
    fn forget(&mut self) {
        let now = self.now;
        self.all.retain(|_, place| place.waits || place.mark > now);
        let too_many = (self.all.len() - self.waiting.len()).saturating_sub(DEBTORS_MAX);
        if too_many > 0 {
            let mut debtors: Vec<(u128, K)> = self
                .all
                .iter()
                .filter(|(_, place)| !place.waits)
                .map(|(who, place)| (place.mark, *who))
                .collect();
            debtors.select_nth_unstable(too_many - 1);
            for (_, who) in &debtors[..too_many] {
                self.all.remove(who);
            }
        }
        self.look_at = (2 * self.all.len()).max(KNOWN_MIN);
    }
}

impl<V> Place<V> {
    fn move_to<K: Copy + Ord>(&mut self, who: K, mark: u128, waiting: &mut BTreeSet<(u128, K)>) {
        assert!(self.mark <= mark, "nobody is given back what it has had");
        if self.waits {
            let waited = waiting.remove(&(self.mark, who));
            assert!(waited, "who waits has a turn");
            waiting.insert((mark, who));
        }
        self.mark = mark;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(turns: &Turns<char, ()>) -> Option<char> {
        turns.waiting().next().map(|(who, ())| who)
    }

    /// Who is served, one after the other, when each turn costs what `cost` says.
    fn order(turns: &mut Turns<char, ()>, count: usize, cost: impl Fn(char) -> u64) -> String {
        let serve = |_| {
            let who = next(turns)?;
            turns.serve(who, cost(who));
            Some(who)
        };
        (0..count).map_while(serve).collect()
    }

    fn with(all: &str) -> Turns<char, ()> {
        let mut turns = Turns::default();
        for who in all.chars() {
            turns.enter(who, || ());
        }
        turns
    }

    #[test]
    fn whose_turns_cost_more_has_fewer() {
        assert_eq!(order(&mut with("ab"), 6, |_| 1), "ababab");
        assert_eq!(order(&mut with("ab"), 8, |who| if who == 'a' { 3 } else { 1 }), "abbbabbb");
    }

    #[test]
    fn who_comes_has_saved_up_nothing_and_waits_for_nobody() {
        let mut turns = with("a");
        assert_eq!(order(&mut turns, 100, |_| 1).len(), 100);
        turns.enter('b', || ());
        assert_eq!(order(&mut turns, 5, |_| 1), "babab");
    }

    #[test]
    fn what_is_owed_is_remembered() {
        let mut turns = with("ab");
        assert_eq!(order(&mut turns, 1, |_| 1), "a");
        turns.charge('a', 2);
        turns.leave('a');
        turns.charge('a', 1);
        turns.enter('a', || ());
        assert_eq!(order(&mut turns, 6, |_| 1), "bbbbab");
    }

    #[test]
    fn who_owes_nothing_is_forgotten_and_of_many_who_do_the_least() {
        let mut turns = with("ab");
        assert_eq!(order(&mut turns, 1, |_| 3), "a");
        turns.leave('a');
        turns.forget();
        assert_eq!(turns.all.len(), 2);
        assert_eq!(order(&mut turns, 4, |_| 1), "bbbb");
        turns.forget();
        assert_eq!(turns.all.len(), 1);
        let mut many: Turns<usize, ()> = Turns::default();
        let last = 16 * DEBTORS_MAX;
        for who in 0..=last {
            many.enter(who, || ());
            many.charge(who, who as u64 + 1);
            many.leave(who);
            assert!(many.all.len() <= 2 * DEBTORS_MAX, "they are looked at by themselves");
        }
        many.forget();
        assert_eq!(many.all.len(), DEBTORS_MAX);
        assert!(many.all.contains_key(&last));
    }

    #[test]
    fn one_that_could_not_be_served_for_long_has_saved_up_nothing() {
        let mut turns = with("ab");
        for _ in 0..10 {
            turns.serve('b', 1);
        }
        assert_eq!(order(&mut turns, 6, |_| 1), "aababa");
        assert_eq!(turns.remove('a'), Some(()));
        assert_eq!(order(&mut turns, 2, |_| 1), "bb");
    }
}
