//! How many requests may be under way, so that those let in are answered in good time.
//!
//! A queue that stands is seen by its *fastest* answer: when even that one took long, for a whole interval, then every request
//! waits behind others, and one more makes all of them later and none of them more. (CoDel, Nichols and Jacobson 2012, says
//! it of packets.) Bursts, slow disks for a moment and single long requests do not show, for something is fast beside
//! them. What the fastest answer of the last minute took is the way and the work; what the fastest of an interval took
//! beyond that is the queue. While none stands there is no limit but the hard one.
//!
//! Till then it is not known how many are too many, and a flood is thousands of requests before anything shows. So only so many
//! are let in as went well of late, [`ROOM_LEAST`] at least, and what comes beyond waits at the door for a moment. When no queue
//! shows, there is room for twice as many; so those who come all at once, and wait for their answers, are all served. When one
//! does, and still more come, it was a flood, and who waited at the door is refused.
//!
//! Once it costs [`STANDING`], so many requests are let in as leave a queue of [`TOLERATED`] at the rate of that interval; then
//! fewer while it is longer, more while it is not. When nobody was refused for [`QUIET`], the limit is lifted.
//!
//! Reads and writes have limits of their own: they wait for different things. Requests that may be of many keys are the first
//! to be held back, whoever is slow; those that keep something alive are the last. Who has less than its share under way is let in
//! while others have more, see [`Load::admits`].

use std::time::Duration;

/// How long requests are observed before limits are looked at again.
pub const INTERVAL: Duration = Duration::from_millis(50);
/// A queue that costs as much, and as much as the way and the work, is worked off. Many callers that each wait for their answer make queues, too, and go on faster
/// with them, for what waits leaves together; so this is long.
const STANDING: Duration = Duration::from_millis(50);
/// As much of a queue is left: with less, disks and cores would be idle between two batches.
const TOLERATED: Duration = Duration::from_millis(20);
/// Intervals in a row with a standing queue before anybody is refused.
const STANDING_INTERVALS: u32 = 2;
/// An interval with fewer answers says nothing.
const ANSWERS_MIN: u64 = 3;
/// As many small requests of a kind are always let in, and as many large ones.
pub const SMALL_MIN: usize = 64;
/// See [`SMALL_MIN`].
pub const LARGE_MIN: usize = 4;
/// As many small requests of a kind are let in before anything is known.
pub const ROOM_LEAST: usize = 256;
/// After so long without a refusal a limit is lifted.
const QUIET: Duration = Duration::from_secs(3);
/// With more under way than what makes so many times the queue that is tolerated, a limit does not grow, however fast nodes are:
/// then requests wait for something else, as for being read.
const GROWN_MOST: f64 = 4.0;
/// When more came than there was room for, by this part of what was answered, they do not stop coming.
const FLOOD_PART: u64 = 2;
/// So many may wait at the door.
pub const HELD_MOST: usize = 4096;
/// Who has waited at the door for so long is refused if there is a limit, and let in if there is none.
pub const HELD_FOR: Duration = Duration::from_secs(1);
/// For so long the fastest answer is remembered, and half of it at least.
const MEMORY: Duration = Duration::from_secs(60);
/// When so few are under way and even the fastest was slow for so long, then it is not for the number of requests.
const RELEARN: Duration = Duration::from_secs(2);

const _: () = assert!(
    TOLERATED.as_millis() < STANDING.as_millis() && INTERVAL.as_millis() <= STANDING.as_millis(),
    "a limit in force is met by less than what brings it into force, and an interval sees what it is about"
);

/// What requests wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// The state.
    Read,
    /// The log.
    Write,
}

/// How many lanes there are.
pub const LANES: usize = 2;

/// What was seen of requests of a kind in an interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// At its end, from the head of their message on.
    pub under_way: usize,
    /// At its end, those who wait at the door.
    pub held: usize,
    /// How many were answered.
    pub answers: u64,
    /// How many were refused.
    pub refused: u64,
    /// How many began to wait at the door.
    pub held_new: u64,
    /// How long the fastest answer took.
    pub fastest: Option<Duration>,
}

/// What was seen in an interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// How long it was.
    pub length: Duration,
    /// Of small requests, by [`Lane`].
    pub small: [Seen; LANES],
    /// Of large ones. How long they take says nothing.
    pub large: Seen,
}

/// How many requests may be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Small ones, by [`Lane`]. `None`: as many as there is room for.
    pub small: [Option<usize>; LANES],
    /// Large ones, of both lanes together.
    pub large: Option<usize>,
    /// Small ones beyond this wait at the door, by [`Lane`], where there is no limit.
    pub room: [usize; LANES],
    /// What is beyond the limit is refused at once; else it waits at the door, too.
    pub flood: [bool; LANES],
}

impl Limits {
    /// No queue stands.
    pub const NONE: Limits =
        Limits { small: [None; LANES], large: None, room: [ROOM_LEAST; LANES], flood: [false; LANES] };
}

/// See the module.
#[derive(Debug, Default)]
pub struct Limiter {
    lanes: [LaneLimit; LANES],
    large: Option<Narrow>,
}

#[derive(Debug, Default)]
struct LaneLimit {
    fastest: Fastest,
    /// Intervals in a row with a standing queue.
    standing: u32,
    narrow: Option<Narrow>,
    /// For so long it has been slow although next to nothing is let in.
    slow_for: Duration,
    room: Room,
    flood: bool,
}

/// How many went well of late.
#[derive(Debug)]
struct Room {
    now: usize,
    /// For so long some have waited at the door.
    full_for: Duration,
    /// The most that were under way since it was looked at whether so much is needed.
    used: usize,
    age: Duration,
}

impl Default for Room {
    fn default() -> Room {
        Room { now: ROOM_LEAST, full_for: Duration::ZERO, used: 0, age: Duration::ZERO }
    }
}

impl Room {
    /// No queue stands with so many under way.
    fn handle_quiet(&mut self, seen: &Seen, fastest: Duration, length: Duration) {
        self.used = self.used.max(seen.under_way);
        self.age += length;
        self.full_for = if seen.held > 0 { self.full_for + length } else { Duration::ZERO };
        // By then the fastest answer is of a time when it was full.
        if self.full_for > fastest + 2 * INTERVAL {
            self.now = self.now.saturating_mul(2);
            self.full_for = Duration::ZERO;
        } else if self.age > MEMORY / 2 {
            self.now = self.now.min(self.used.max(ROOM_LEAST));
            (self.used, self.age) = (0, Duration::ZERO);
        }
        debug_assert!(self.now >= ROOM_LEAST, "some are always let in");
    }
}

/// A limit in force.
#[derive(Debug)]
struct Narrow {
    limit: usize,
    /// What has been changed does not show for so long.
    settling: Duration,
    /// For so long nobody has been refused.
    quiet_for: Duration,
}

/// The fastest answer of late: of this half of [`MEMORY`], and of the one before.
#[derive(Debug, Default)]
struct Fastest {
    now: Option<Duration>,
    before: Option<Duration>,
    age: Duration,
}

impl Limiter {
    /// Takes in what was seen; what may be under way from here on.
    pub fn handle_interval(&mut self, interval: &Interval) -> Limits {
        debug_assert!(!interval.length.is_zero(), "rates are looked at");
        let mut slow = [false; LANES];
        for ((lane, seen), slow) in self.lanes.iter_mut().zip(&interval.small).zip(&mut slow) {
            *slow = lane.is_slow(seen);
        }
        let any_slow = slow.contains(&true);
        // The lower class first: small requests are held back when that has not helped.
        if any_slow && self.narrow_large(interval.large.under_way) {
            return self.limits();
        }
        self.widen_large(interval, any_slow);
        for ((lane, seen), slow) in self.lanes.iter_mut().zip(&interval.small).zip(slow) {
            lane.handle_interval(seen, interval.length, slow);
        }
        self.limits()
    }

    /// What may be under way.
    pub fn limits(&self) -> Limits {
        let [read, write] = &self.lanes;
        let limit = |narrow: &Option<Narrow>| narrow.as_ref().map(|narrow| narrow.limit);
        debug_assert!(limit(&self.large).is_none_or(|limit| limit >= LARGE_MIN), "some are always let in");
        for lane in &self.lanes {
            debug_assert!(
                limit(&lane.narrow).is_none_or(|limit| limit >= SMALL_MIN),
                "some are always let in"
            );
        }
        Limits {
            small: [limit(&read.narrow), limit(&write.narrow)],
            large: limit(&self.large),
            room: [read.room.now, write.room.now],
            flood: [read.flood, write.flood],
        }
    }

    /// Returns whether there was anything to hold back.
    fn narrow_large(&mut self, under_way: usize) -> bool {
        let now = self.large.as_ref().map_or(under_way, |narrow| narrow.limit.min(under_way));
        if now <= LARGE_MIN {
            return false;
        }
        self.large = Some(Narrow {
            limit: (now / 2).max(LARGE_MIN),
            settling: Duration::ZERO,
            quiet_for: Duration::ZERO,
        });
        true
    }

    fn widen_large(&mut self, interval: &Interval, any_slow: bool) {
        let Some(large) = &mut self.large else { return };
        let is_narrow = self.lanes.iter().any(|lane| lane.narrow.is_some());
        if any_slow || is_narrow {
            large.quiet_for = Duration::ZERO;
        } else if large.rest(interval.large.refused, interval.length) {
            self.large = None;
        } else if interval.large.refused > 0 {
            large.limit += 1;
        }
    }
}

impl LaneLimit {
    /// Takes in an answer's time; whether a queue has stood for long enough.
    fn is_slow(&mut self, seen: &Seen) -> bool {
        let Some(fastest) = seen.fastest.filter(|_| seen.answers >= ANSWERS_MIN) else { return false };
        // The first ones there are have nobody before them.
        if self.fastest.is_unknown() {
            self.fastest.learn(fastest, Duration::ZERO);
        }
        let bound = match self.narrow {
            None => self.standing(),
            Some(_) => self.tolerated() + TOLERATED / 2,
        };
        self.standing = if fastest > bound { self.standing + 1 } else { 0 };
        self.standing >= STANDING_INTERVALS
    }

    fn handle_interval(&mut self, seen: &Seen, length: Duration, slow: bool) {
        let tolerated = self.tolerated();
        let too_many = seen.refused + seen.held_new;
        let flood = too_many > seen.answers / FLOOD_PART;
        self.flood = flood && self.narrow.is_some();
        let Some(narrow) = &mut self.narrow else {
            if slow && seen.under_way > SMALL_MIN {
                // Little's law: what is under way is the rate times the time that each takes.
                let limit = seen.answers as f64 * tolerated.as_secs_f64() / length.as_secs_f64();
                let limit = (limit as usize).clamp(SMALL_MIN, seen.under_way);
                self.narrow = Some(Narrow { limit, settling: Duration::ZERO, quiet_for: Duration::ZERO });
                self.standing = 0;
                self.room = Room::default();
                self.flood = flood;
                return;
            }
            let Some(fastest) = seen.fastest else { return };
            if self.standing == 0 {
                self.room.handle_quiet(seen, fastest, length);
            } else {
                self.room.full_for = Duration::ZERO;
            }
            if self.standing == 0 || seen.under_way <= SMALL_MIN {
                self.fastest.learn(fastest, length);
            }
            return;
        };
        if narrow.rest(too_many, length) {
            self.narrow = None;
            self.slow_for = Duration::ZERO;
            return;
        }
        let Some(fastest) = seen.fastest else { return };
        narrow.settling = narrow.settling.saturating_sub(length);
        let is_least = narrow.limit == SMALL_MIN;
        let rate = seen.answers as f64 / length.as_secs_f64();
        let most = (rate * tolerated.as_secs_f64() * GROWN_MOST) as usize;
        let before = narrow.limit;
        // What was let in before is slow until it is gone.
        if !narrow.settling.is_zero() {
            // Too early to tell.
        } else if slow && seen.under_way <= narrow.limit * 2 {
            narrow.limit = (narrow.limit * 4 / 5).max(SMALL_MIN);
            self.standing = 0;
        } else if fastest <= tolerated && too_many > 0 && narrow.limit < most {
            narrow.limit += 1 + narrow.limit / 16;
        }
        if narrow.limit != before {
            narrow.settling = fastest;
        }
        self.slow_for = if is_least && fastest > tolerated { self.slow_for + length } else { Duration::ZERO };
        if self.slow_for >= RELEARN {
            self.fastest = Fastest { now: Some(fastest), ..Fastest::default() };
            self.slow_for = Duration::ZERO;
        }
    }

    /// When the fastest answer takes longer, a queue is worked off.
    fn standing(&self) -> Duration {
        self.fastest.get() + STANDING.max(self.fastest.get())
    }

    /// How long the fastest answer takes then.
    fn tolerated(&self) -> Duration {
        self.fastest.get() + TOLERATED + self.fastest.get() / 2
    }
}

impl Narrow {
    /// Whether it has not been needed for long enough.
    fn rest(&mut self, refused: u64, length: Duration) -> bool {
        self.quiet_for = if refused == 0 { self.quiet_for + length } else { Duration::ZERO };
        self.quiet_for >= QUIET
    }
}

impl Fastest {
    fn learn(&mut self, fastest: Duration, length: Duration) {
        self.age += length;
        if self.age > MEMORY / 2 {
            (self.before, self.now, self.age) = (self.now, None, Duration::ZERO);
        }
        self.now = Some(self.now.map_or(fastest, |now| now.min(fastest)));
        debug_assert!(self.get() <= fastest, "it is the fastest");
    }

    fn is_unknown(&self) -> bool {
        self.now.is_none() && self.before.is_none()
    }

    /// Nothing, before there was one.
    fn get(&self) -> Duration {
        [self.now, self.before].into_iter().flatten().min().unwrap_or_default()
    }
}

/// How many times the limit may be under way for another request that keeps something alive, or of a client that asks for little.
const URGENT: usize = 2;
/// Who asks for no more in an interval asks for little.
pub const MODEST: u32 = 16;

/// How many times the limit may be under way if no connection has more than one.
const LONELY: usize = 4;

/// What is under way when another request comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// It keeps something alive.
    pub urgent: bool,
    /// Its connection asked for little in the interval before, let in or not.
    pub modest: bool,
    /// Requests of its kind that may be.
    pub limit: usize,
    /// Requests of its kind.
    pub under_way: usize,
    /// Requests of its connection.
    pub of_connection: usize,
    /// Connections that have any.
    pub connections: usize,
    /// Requests of its source address.
    pub of_address: usize,
    /// Source addresses that have any.
    pub addresses: usize,
}

impl Load {
    /// Whether it is let in: while there is room, of which those who ask for little find more than others, so that it is not they
    /// who have to try again; and also where there is none, if its connection has less than its share of
    /// the limit, for then it is others who have too much. So who takes most is refused first, and who has nothing under way
    /// nearly never. Of its address no more is asked than that it does not get round this by many connections.
    pub fn admits(&self) -> bool {
        let times = |times: usize| self.limit.saturating_mul(times);
        if self.under_way < times(if self.urgent || self.modest { URGENT } else { 1 }) {
            return true;
        }
        let share = |limit: usize, parts: usize| (limit / parts.max(1)).max(1);
        self.connections <= times(LONELY)
            && self.of_connection < share(self.limit, self.connections)
            && (self.addresses <= 1 || self.of_address < share(times(LONELY), self.addresses))
    }
}

#[cfg(test)]
mod tests;
