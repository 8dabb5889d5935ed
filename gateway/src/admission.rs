//! How many requests of clients are under way, and which are refused before their work begins. What the limits are is
//! decided in [`gateway_core::admission`]; here it is counted.
//!
//! A small request has a place from when its head has come: what is let in is on its way, and would be in front of all that comes
//! later. It loses it when the message takes long, so that who sends half of one takes nobody's place.
//!
//! Nothing here is locked on a request's way: limits are looked at again by whoever has just been answered, one at a time.

mod budget;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use gateway_core::Failure;
use gateway_core::admission::{
    HELD_FOR, HELD_MOST, INTERVAL, Interval, Lane, Limiter, Limits, Load, MODEST, ROOM_LEAST, Seen,
};
use parking_lot::Mutex;
use prometheus::IntCounter;
use replica::Source;
use tokio::sync::Notify;
use tokio::time::timeout_at;

use crate::context::Priority;
use budget::Held;
pub(crate) use budget::{Budget, COUNTED_FROM, Taken, Use};

/// As a limit: there is none.
const NO_LIMIT: usize = usize::MAX;

/// What all clients have under way.
#[derive(Debug)]
pub(crate) struct Admission {
    /// Whatever the others say, no more than this.
    requests_max: AtomicUsize,
    connections_max: usize,
    /// Connections there are.
    connected: AtomicUsize,
    /// Small requests, by [`Lane`].
    small: [Kind; 2],
    large: Kind,
    /// Connections that have any under way.
    connections: AtomicUsize,
    /// Source addresses that have any under way.
    addresses: AtomicUsize,
    /// Those that have a connection.
    known: Mutex<HashMap<Source, Arc<Address>>>,
    began: Instant,
    /// When limits are to be looked at again, in microseconds from `began`.
    look_at: AtomicU64,
    limiter: Mutex<Looked>,
    counters: Refusals,
    budget: Budget,
    /// Connections that answers wait for, or did a moment ago.
    followed: Mutex<Vec<Weak<Client>>>,
}

/// Refused requests, for metrics.
#[derive(Clone, Debug)]
pub(crate) struct Refusals {
    /// For a limit that adapts.
    pub(crate) queue: IntCounter,
    /// For the hard limit.
    pub(crate) full: IntCounter,
    /// For the budget of memory.
    pub(crate) memory: IntCounter,
    /// Connections, as there are too many.
    pub(crate) connections: IntCounter,
    /// Connections that were ended, as nobody took what waited for them.
    pub(crate) stuck: IntCounter,
}

#[derive(Debug)]
struct Looked {
    limiter: Limiter,
    /// The last time, in microseconds from `began`.
    at: u64,
}

/// Requests of a kind. On a cache line of its own: each is written to by every request of its kind.
#[derive(Debug)]
#[repr(align(128))]
struct Kind {
    under_way: AtomicUsize,
    limit: AtomicUsize,
    /// Beyond it, requests are held where there is no limit.
    room: AtomicUsize,
    /// What is beyond the limit is refused at once.
    flood: AtomicBool,
    /// Requests that wait at the door.
    held: AtomicUsize,
    /// They may look again.
    freed: Notify,
    /// Since limits were looked at.
    answers: AtomicU64,
    held_new: AtomicU64,
    refused: AtomicU64,
    /// In microseconds.
    fastest: AtomicU64,
}

/// A source address.
#[derive(Debug, Default)]
struct Address {
    connections: AtomicUsize,
    under_way: AtomicUsize,
}

/// A connection of a client, while there is one.
#[derive(Debug)]
pub(crate) struct Client {
    admission: Arc<Admission>,
    source: Option<Source>,
    address: Arc<Address>,
    under_way: AtomicUsize,
    asked: Asked,
    held: Held,
    is_followed: AtomicBool,
    dismissed: Notify,
}

/// What a connection asked for while there was a limit.
#[derive(Debug, Default)]
struct Asked {
    /// Which interval it is, by when it ends, and how often in it.
    interval: AtomicU64,
    now: AtomicU32,
    /// How often in the one before.
    before: AtomicU32,
}

impl Asked {
    /// Once more, in the interval that ends then. Whether it was little before. Counted as well as is needed: requests of a
    /// connection mostly come one after the other.
    fn again(&self, interval: u64) -> bool {
        let last = self.interval.swap(interval, Ordering::Relaxed);
        if last == interval {
            self.now.fetch_add(1, Ordering::Relaxed);
        } else {
            let now = self.now.swap(1, Ordering::Relaxed);
            let is_long_ago = interval - last.min(interval) > 3 * INTERVAL.as_micros() as u64;
            self.before.store(if is_long_ago { 0 } else { now }, Ordering::Relaxed);
        }
        self.before.load(Ordering::Relaxed) <= MODEST
    }
}

/// What bounds clients, hard.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Most {
    /// Requests under way.
    pub(crate) requests: usize,
    /// Connections; half of them from one address.
    pub(crate) connections: usize,
    /// Bytes of the budget.
    pub(crate) memory: usize,
}

/// A request that was let in. It is under way until this is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    client: Arc<Client>,
    kind: Which,
}

/// Which [`Kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Small(Lane),
    Large,
}

/// What is under way, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UnderWay {
    pub(crate) reads: usize,
    pub(crate) writes: usize,
    pub(crate) large: usize,
}

impl Default for Kind {
    fn default() -> Kind {
        Kind {
            under_way: AtomicUsize::new(0),
            limit: AtomicUsize::new(NO_LIMIT),
            room: AtomicUsize::new(ROOM_LEAST),
            flood: AtomicBool::new(false),
            held: AtomicUsize::new(0),
            freed: Notify::new(),
            held_new: AtomicU64::new(0),
            answers: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            fastest: AtomicU64::new(u64::MAX),
        }
    }
}

impl Kind {
    fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Relaxed)
    }

    /// One fewer is under way.
    fn leave(&self) {
        self.under_way.fetch_sub(1, Ordering::Relaxed);
        if self.held.load(Ordering::Relaxed) > 0 {
            // Who came last: the others are late as it is.
            self.freed.notify_last();
        }
    }

    /// What was seen since the last time.
    fn take_seen(&self) -> Seen {
        let fastest = self.fastest.swap(u64::MAX, Ordering::Relaxed);
        Seen {
            under_way: self.under_way(),
            held: self.held.load(Ordering::Relaxed),
            held_new: self.held_new.swap(0, Ordering::Relaxed),
            answers: self.answers.swap(0, Ordering::Relaxed),
            refused: self.refused.swap(0, Ordering::Relaxed),
            fastest: (fastest != u64::MAX).then(|| Duration::from_micros(fastest)),
        }
    }
}

impl Admission {
    /// At most so much at a time.
    pub(crate) fn new(most: Most, counters: Refusals) -> Arc<Admission> {
        Arc::new(Admission {
            requests_max: AtomicUsize::new(most.requests),
            connections_max: most.connections,
            connected: AtomicUsize::new(0),
            small: Default::default(),
            large: Kind::default(),
            connections: AtomicUsize::new(0),
            addresses: AtomicUsize::new(0),
            known: Mutex::default(),
            began: Instant::now(),
            look_at: AtomicU64::new(0),
            limiter: Mutex::new(Looked { limiter: Limiter::default(), at: 0 }),
            budget: Budget::new(most.memory, counters.memory.clone()),
            followed: Mutex::default(),
            counters,
        })
    }

    /// For requests from here on.
    pub(crate) fn set_requests_max(&self, requests_max: usize) {
        self.requests_max.store(requests_max, Ordering::Relaxed);
    }

    /// A connection has come from there; `None` is one that is nowhere.
    pub(crate) fn connect(self: &Arc<Self>, source: Option<Source>) -> Arc<Client> {
        let address = match source {
            Some(source) => Arc::clone(self.known.lock().entry(source).or_default()),
            None => Arc::default(),
        };
        address.connections.fetch_add(1, Ordering::Relaxed);
        self.connected.fetch_add(1, Ordering::Relaxed);
        Arc::new(Client {
            admission: Arc::clone(self),
            source,
            address,
            under_way: AtomicUsize::new(0),
            asked: Asked::default(),
            held: Held::default(),
            is_followed: AtomicBool::new(false),
            dismissed: Notify::new(),
        })
    }

    /// The memory that clients may take.
    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Ends connections whose clients take nothing of what waits for them, where it is too much or for too long.
    pub(crate) fn dismiss_stuck(&self) {
        self.followed.lock().retain(|client| {
            let Some(client) = client.upgrade() else { return false };
            if self.budget.is_stuck(&client.held) {
                self.counters.stuck.inc();
                client.dismissed.notify_one();
                return false;
            }
            let is_over = client.held.is_free();
            if is_over {
                client.is_followed.store(false, Ordering::Relaxed);
            }
            !is_over
        });
    }

    /// What is under way.
    pub(crate) fn under_way(&self) -> UnderWay {
        let [reads, writes] = &self.small;
        UnderWay { reads: reads.under_way(), writes: writes.under_way(), large: self.large.under_way() }
    }

    /// The limits that adapt, where there are any.
    pub(crate) fn limits(&self) -> Limits {
        let limit = |kind: &Kind| Some(kind.limit()).filter(|limit| *limit != NO_LIMIT);
        let [reads, writes] = &self.small;
        Limits {
            small: [limit(reads), limit(writes)],
            large: limit(&self.large),
            room: [reads, writes].map(|kind| kind.room.load(Ordering::Relaxed)),
            flood: [reads, writes].map(|kind| kind.flood.load(Ordering::Relaxed)),
        }
    }

    fn kind(&self, which: Which) -> &Kind {
        match which {
            Which::Small(lane) => &self.small[lane as usize],
            Which::Large => &self.large,
        }
    }

    /// Looks at the limits if it is time to.
    fn look(&self) {
        let now = self.began.elapsed().as_micros() as u64;
        if now < self.look_at.load(Ordering::Relaxed) {
            return;
        }
        let Some(mut looked) = self.limiter.try_lock() else { return };
        if now < self.look_at.load(Ordering::Relaxed) {
            return;
        }
        self.look_at.store(now + INTERVAL.as_micros() as u64, Ordering::Relaxed);
        let length = Duration::from_micros(now.saturating_sub(std::mem::replace(&mut looked.at, now)).max(1));
        let [reads, writes] = &self.small;
        let interval = Interval {
            length,
            small: [reads.take_seen(), writes.take_seen()],
            large: self.large.take_seen(),
        };
        let limits = looked.limiter.handle_interval(&interval);
        let kinds = self.small.iter().zip(limits.small).chain([(&self.large, limits.large)]);
        for (kind, limit) in kinds {
            kind.limit.store(limit.unwrap_or(NO_LIMIT), Ordering::Relaxed);
        }
        for (lane, kind) in self.small.iter().enumerate() {
            let (room, flood) = (limits.room[lane], limits.flood[lane]);
            let is_news = kind.room.swap(room, Ordering::Relaxed) < room;
            if !kind.flood.swap(flood, Ordering::Relaxed) && flood || is_news {
                kind.freed.notify_waiters();
            }
        }
    }
}

impl Client {
    /// Whether there is room for its connection.
    pub(crate) fn is_welcome(&self) -> bool {
        let most = self.admission.connections_max;
        let is_welcome = self.admission.connected.load(Ordering::Relaxed) <= most
            && self.address.connections.load(Ordering::Relaxed) <= most.div_ceil(2);
        if !is_welcome {
            self.admission.counters.connections.inc();
        }
        is_welcome
    }

    pub(crate) fn budget(&self) -> &Budget {
        &self.admission.budget
    }

    /// What it has of the budget.
    pub(crate) fn held(&self) -> &Held {
        &self.held
    }

    /// Answers begin to wait for it.
    pub(crate) fn follow(self: &Arc<Self>) {
        if !self.is_followed.swap(true, Ordering::Relaxed) {
            self.admission.followed.lock().push(Arc::downgrade(self));
        }
    }

    /// Waits until its connection must end.
    pub(crate) async fn dismissed(&self) {
        self.dismissed.notified().await;
    }

    /// A place for a small request whose head has come; `None` if it has to wait for one.
    ///
    /// # Errors
    /// [`Failure::Overloaded`].
    pub(crate) fn enter(self: &Arc<Self>, lane: Lane) -> Result<Option<Permit>, Failure> {
        self.check_room(Priority::Small)?;
        let kind = &self.admission.small[lane as usize];
        let (limit, under_way) = (kind.limit(), kind.under_way());
        let most = limit.min(kind.room.load(Ordering::Relaxed));
        let modest = limit != NO_LIMIT && self.asked.again(self.admission.look_at.load(Ordering::Relaxed));
        if under_way < most || (Load { modest, ..self.load(false, most, under_way) }).admits() {
            return Ok(Some(self.permit(Which::Small(lane))));
        }
        let is_flood = limit != NO_LIMIT && kind.flood.load(Ordering::Relaxed);
        if is_flood || kind.held.load(Ordering::Relaxed) >= HELD_MOST {
            return Err(self.refuse(kind));
        }
        kind.held_new.fetch_add(1, Ordering::Relaxed);
        Ok(None)
    }

    /// Waits at the door until there is a place, for a moment.
    ///
    /// # Errors
    /// [`Failure::Overloaded`].
    pub(crate) async fn wait_to_enter(self: &Arc<Self>, lane: Lane) -> Result<Permit, Failure> {
        let kind = &self.admission.small[lane as usize];
        let until = tokio::time::Instant::now() + HELD_FOR;
        let _held = Waits::new(kind);
        loop {
            let mut freed = std::pin::pin!(kind.freed.notified());
            freed.as_mut().enable();
            let (limit, under_way) = (kind.limit(), kind.under_way());
            if limit != NO_LIMIT && kind.flood.load(Ordering::Relaxed) {
                return Err(self.refuse(kind));
            }
            if under_way < limit.min(kind.room.load(Ordering::Relaxed)) {
                break;
            }
            if timeout_at(until, freed).await.is_err() {
                if kind.limit() != NO_LIMIT {
                    return Err(self.refuse(kind));
                }
                break;
            }
        }
        self.check_room(Priority::Small)?;
        Ok(self.permit(Which::Small(lane)))
    }

    /// Lets a request in whose message is here, or does not. What is small was let in when its head came, and is not refused for
    /// having sent the rest by now; its place is taken up if it still has it.
    ///
    /// # Errors
    /// [`Failure::Overloaded`].
    pub(crate) fn admit(
        self: &Arc<Self>,
        place: Option<Permit>,
        lane: Lane,
        priority: Priority,
    ) -> Result<Permit, Failure> {
        let which = which(lane, priority);
        if priority == Priority::Large {
            self.check_queue(lane, priority)?;
        }
        match place {
            Some(place) if place.kind == which => Ok(place),
            Some(mut place) => {
                self.admission.kind(place.kind).leave();
                self.admission.kind(which).under_way.fetch_add(1, Ordering::Relaxed);
                place.kind = which;
                Ok(place)
            }
            None => {
                self.check_room(priority)?;
                Ok(self.permit(which))
            }
        }
    }

    fn permit(self: &Arc<Self>, kind: Which) -> Permit {
        let admission = &*self.admission;
        admission.kind(kind).under_way.fetch_add(1, Ordering::Relaxed);
        if self.under_way.fetch_add(1, Ordering::Relaxed) == 0 {
            admission.connections.fetch_add(1, Ordering::Relaxed);
        }
        if self.address.under_way.fetch_add(1, Ordering::Relaxed) == 0 {
            admission.addresses.fetch_add(1, Ordering::Relaxed);
        }
        Permit { client: Arc::clone(self), kind }
    }

    /// Whether a request would be let in whose head has come, of which it does not show yet how large it is.
    ///
    /// # Errors
    /// [`Failure::Overloaded`].
    pub(crate) fn check(&self, lane: Lane, priority: Priority) -> Result<(), Failure> {
        self.check_queue(lane, priority)?;
        self.check_room(priority)
    }

    fn refuse(&self, kind: &Kind) -> Failure {
        kind.refused.fetch_add(1, Ordering::Relaxed);
        self.admission.counters.queue.inc();
        Failure::Overloaded
    }

    /// By the limit that adapts.
    fn check_queue(&self, lane: Lane, priority: Priority) -> Result<(), Failure> {
        let admission = &*self.admission;
        let kind = admission.kind(which(lane, priority));
        let limit = kind.limit();
        let urgent = priority == Priority::Liveness;
        if limit != NO_LIMIT && !self.load(urgent, limit, kind.under_way()).admits() {
            return Err(self.refuse(kind));
        }
        Ok(())
    }

    /// By the hard one.
    fn check_room(&self, priority: Priority) -> Result<(), Failure> {
        let admission = &*self.admission;
        let urgent = priority == Priority::Liveness;
        let UnderWay { reads, writes, large } = admission.under_way();
        let (all, most) = (reads + writes + large, admission.requests_max.load(Ordering::Relaxed));
        // Half of the room is for those who have less than their share of it, and for what is urgent.
        if all >= most || all >= most / 2 && !self.load(urgent, most / 2, all).admits() {
            admission.counters.full.inc();
            return Err(Failure::Overloaded);
        }
        Ok(())
    }

    fn load(&self, urgent: bool, limit: usize, under_way: usize) -> Load {
        let load = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        Load {
            urgent,
            modest: false,
            limit,
            under_way,
            of_connection: load(&self.under_way),
            connections: load(&self.admission.connections),
            of_address: load(&self.address.under_way),
            addresses: load(&self.admission.addresses),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.admission.connected.fetch_sub(1, Ordering::Relaxed);
        let Some(source) = self.source else { return };
        let mut known = self.admission.known.lock();
        // With the lock, so that nobody takes up an address that is being forgotten.
        if self.address.connections.fetch_sub(1, Ordering::Relaxed) == 1 {
            known.remove(&source);
        }
    }
}

impl Permit {
    /// The request was answered, by the first node that was asked in so much time if that is told.
    pub(crate) fn answered(self, took: Option<Duration>) {
        let admission = &*self.client.admission;
        let kind = admission.kind(self.kind);
        kind.answers.fetch_add(1, Ordering::Relaxed);
        if let Some(took) = took {
            let took = took.as_micros() as u64;
            if took < kind.fastest.load(Ordering::Relaxed) {
                kind.fastest.fetch_min(took, Ordering::Relaxed);
            }
        }
        admission.look();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let client = &*self.client;
        let admission = &*client.admission;
        admission.kind(self.kind).leave();
        if client.under_way.fetch_sub(1, Ordering::Relaxed) == 1 {
            admission.connections.fetch_sub(1, Ordering::Relaxed);
        }
        if client.address.under_way.fetch_sub(1, Ordering::Relaxed) == 1 {
            admission.addresses.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Counts a request that waits at the door.
struct Waits<'a>(&'a Kind);

impl<'a> Waits<'a> {
    fn new(kind: &'a Kind) -> Waits<'a> {
        kind.held.fetch_add(1, Ordering::Relaxed);
        Waits(kind)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Relaxed);
    }
}

fn which(lane: Lane, priority: Priority) -> Which {
    match priority {
        Priority::Liveness | Priority::Small => Which::Small(lane),
        Priority::Large => Which::Large,
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    pub(crate) fn admission(most: Most) -> Arc<Admission> {
        let counter = || IntCounter::new("refused", "refused").unwrap();
        let counters = Refusals {
            queue: counter(),
            full: counter(),
            memory: counter(),
            connections: counter(),
            stuck: counter(),
        };
        Admission::new(most, counters)
    }

    /// With a budget of so many bytes.
    pub(crate) fn admission_with(memory: usize) -> Arc<Admission> {
        admission(Most { requests: 100, connections: 100, memory })
    }
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;

    use super::*;

    fn admission(requests: usize) -> Arc<Admission> {
        testing::admission(Most { requests, connections: 8, memory: 0 })
    }

    fn source(last: u8) -> Option<Source> {
        Some(Source::of([10, 0, 0, last].into()))
    }

    #[test]
    fn the_hard_limit_is_one_and_leaves_room_for_who_has_little() {
        let admission = admission(8);
        let (greedy, modest) = (admission.connect(source(1)), admission.connect(source(2)));
        let put = |client: &Arc<Client>| client.admit(None, Lane::Write, Priority::Small);
        let mut permits: Vec<_> = (0..4).map(|_| put(&greedy).unwrap()).collect();
        assert_eq!(put(&greedy).unwrap_err(), Failure::Overloaded);
        permits.push(put(&modest).unwrap());
        permits.push(greedy.admit(None, Lane::Write, Priority::Liveness).unwrap());
        permits.push(put(&modest).unwrap());
        assert_eq!(put(&modest).unwrap_err(), Failure::Overloaded, "that is its share");
        permits.push(greedy.admit(None, Lane::Read, Priority::Liveness).unwrap());
        let others: Vec<_> = (3..9).map(|last| admission.connect(source(last))).collect();
        assert!(others.iter().all(|other| other.admit(None, Lane::Write, Priority::Liveness).is_err()));
        assert_eq!(admission.counters.full.get(), 8);
        drop(permits);
        assert_eq!(admission.under_way(), UnderWay { reads: 0, writes: 0, large: 0 });
        assert_eq!(admission.connections.load(Ordering::Relaxed), 0);
        assert_eq!(admission.addresses.load(Ordering::Relaxed), 0);
        assert!(put(&greedy).is_ok());
    }

    #[test]
    fn a_queue_that_stands_makes_a_limit_that_others_do_not_feel() {
        let admission = admission(10_000);
        let (flood, modest) = (admission.connect(source(1)), admission.connect(source(1)));
        let put = |client: &Arc<Client>| client.admit(None, Lane::Write, Priority::Small);
        put(&modest).unwrap().answered(Some(Duration::from_millis(1)));
        let mut permits: Vec<_> = (0..500).map(|_| put(&flood).unwrap()).collect();
        while admission.limits().small[Lane::Write as usize].is_none() {
            sleep(INTERVAL / 5);
            for permit in permits.drain(..2) {
                permit.answered(Some(Duration::from_millis(300)));
            }
        }
        assert_eq!(flood.check(Lane::Write, Priority::Small), Err(Failure::Overloaded));
        assert!(put(&flood).is_ok(), "it was on its way");
        assert!(flood.check(Lane::Read, Priority::Small).is_ok(), "reads are not slow");
        permits.truncate(100);
        assert!(modest.check(Lane::Write, Priority::Small).is_ok());
        assert_eq!(admission.counters.queue.get(), 1);
    }

    #[test]
    fn what_is_let_in_has_its_place_from_when_its_head_came() {
        let admission = admission(10_000);
        let client = admission.connect(source(1));
        let place = client.enter(Lane::Write).unwrap();
        assert_eq!(admission.under_way(), UnderWay { reads: 0, writes: 1, large: 0 });
        let permit = client.admit(place, Lane::Write, Priority::Small).unwrap();
        assert_eq!(admission.under_way(), UnderWay { reads: 0, writes: 1, large: 0 });
        let permit = client.admit(Some(permit), Lane::Read, Priority::Small).unwrap();
        assert_eq!(admission.under_way(), UnderWay { reads: 1, writes: 0, large: 0 });
        let permit = client.admit(Some(permit), Lane::Read, Priority::Large).unwrap();
        assert_eq!(admission.under_way(), UnderWay { reads: 0, writes: 0, large: 1 });
        drop(permit);
        assert_eq!(admission.under_way(), UnderWay { reads: 0, writes: 0, large: 0 });
        assert_eq!(admission.connections.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_waits_at_the_door_before_it_shows_and_others_pass() {
        let admission = admission(10_000);
        let (flood, modest) = (admission.connect(source(1)), admission.connect(source(1)));
        let enter = |client: &Arc<Client>| client.enter(Lane::Write).unwrap();
        let mut places: Vec<_> = std::iter::from_fn(|| enter(&flood)).take(10_000).collect();
        assert_eq!(places.len(), ROOM_LEAST);
        assert!(enter(&modest).is_some(), "who has less than a share");
        let mut first = Box::pin(flood.wait_to_enter(Lane::Write));
        let mut last = Box::pin(flood.wait_to_enter(Lane::Write));
        assert!(futures::poll!(&mut first).is_pending() && futures::poll!(&mut last).is_pending());
        assert_eq!(admission.kind(Which::Small(Lane::Write)).held.load(Ordering::Relaxed), 2);
        places.pop();
        let place = last.await.unwrap();
        assert!(futures::poll!(&mut first).is_pending());
        drop(place);
        drop(first.await.unwrap());
        let begun = tokio::time::Instant::now();
        places.extend(std::iter::from_fn(|| enter(&flood)).take(10_000));
        assert!(flood.wait_to_enter(Lane::Write).await.is_ok(), "no queue shows");
        assert!(begun.elapsed() >= HELD_FOR);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_that_shows_is_refused_at_the_door() {
        let admission = admission(10_000);
        let flood = admission.connect(source(1));
        let enter = || flood.enter(Lane::Write).unwrap();
        enter().unwrap().answered(Some(Duration::from_millis(1)));
        let mut places: Vec<_> = std::iter::from_fn(enter).take(10_000).collect();
        let mut waits = Box::pin(flood.wait_to_enter(Lane::Write));
        assert!(futures::poll!(&mut waits).is_pending());
        while flood.enter(Lane::Write).is_ok() {
            sleep(INTERVAL / 5);
            places.extend((0..20).filter_map(|_| flood.enter(Lane::Write).ok().flatten()));
            for place in places.drain(..5) {
                place.answered(Some(Duration::from_millis(300)));
            }
        }
        assert_eq!(waits.await.unwrap_err(), Failure::Overloaded);
        assert!(admission.counters.queue.get() > 1);
    }

    #[test]
    fn who_asked_for_little_in_the_interval_before_is_modest() {
        let asked = Asked::default();
        let interval = |number: u64| number * INTERVAL.as_micros() as u64;
        assert!((0..100).all(|_| asked.again(interval(1))), "nothing is known yet");
        assert!(!asked.again(interval(2)), "a hundred is much");
        assert!(asked.again(interval(3)) && asked.again(interval(4)));
        for _ in 0..100 {
            asked.again(interval(4));
        }
        assert!(asked.again(interval(40)), "it is long ago");
    }

    #[test]
    fn an_address_has_half_of_the_connections() {
        let admission = admission(10);
        let mut clients: Vec<_> = (0..4).map(|_| admission.connect(source(1))).collect();
        assert!(clients.iter().all(|client| client.is_welcome()));
        assert!(!admission.connect(source(1)).is_welcome());
        clients.extend((2..6).map(|last| admission.connect(source(last))));
        assert!(clients.iter().all(|client| client.is_welcome()));
        assert!(!admission.connect(source(6)).is_welcome());
        assert_eq!(admission.counters.connections.get(), 2);
        clients.pop();
        assert!(admission.connect(source(6)).is_welcome());
    }

    #[test]
    fn addresses_are_known_while_they_have_a_connection() {
        let admission = admission(10);
        let clients = [admission.connect(source(1)), admission.connect(source(1))];
        assert_eq!(admission.known.lock().len(), 1);
        let permit = clients[0].admit(None, Lane::Read, Priority::Large).unwrap();
        drop(clients);
        assert_eq!(admission.known.lock().len(), 1, "a request is under way");
        drop(permit);
        assert!(admission.known.lock().is_empty());
    }
}
