use std::collections::VecDeque;

use super::*;

/// Microseconds of virtual time.
type Us = u64;

/// The client gives up.
const TIMEOUT: Us = 2_000_000;

/// One request after the other, each with the same chance at any time, from a seed.
struct Arrivals {
    state: u64,
    mean: f64,
}

impl Arrivals {
    fn next_gap(&mut self) -> Us {
        self.state =
            self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let uniform = ((self.state >> 11) as f64 + 1.0) / (1u64 << 53) as f64;
        (-uniform.ln() * self.mean).ceil() as Us
    }
}

/// A group that takes all that waits as one batch, up to a bound: so much for each batch (the disks), and for each request in
/// it. What it has done is on its way back for a while.
#[derive(Clone, Copy)]
struct Server {
    per_batch: Us,
    per_request: Us,
    batch_max: usize,
    /// The way back.
    distance: Us,
}

impl Server {
    /// Requests per second, with full batches.
    fn capacity(&self) -> f64 {
        let batch = self.per_batch + self.per_request * self.batch_max as u64;
        self.batch_max as f64 * 1e6 / batch as f64
    }
}

/// As measured for puts of 20 kB: some 3,000 a second.
const PUTS: Server = Server { per_batch: 2_000, per_request: 300, batch_max: 64, distance: 100 };

#[derive(Debug, Default)]
struct Outcome {
    answered_in_time: u64,
    refused: u64,
    /// Of what was answered in time.
    took: Vec<Us>,
    /// Virtual time that was observed.
    seconds: f64,
}

impl Outcome {
    fn goodput(&self) -> f64 {
        self.answered_in_time as f64 / self.seconds
    }

    fn percentile(&self, share: f64) -> Us {
        let mut took = self.took.clone();
        took.sort_unstable();
        took[((took.len() - 1) as f64 * share) as usize]
    }
}

/// Nothing is noted of the first seconds: a flood is on its way before anything shows.
const SETTLED: Us = 4_000_000;

/// Requests by callers who do not wait.
#[derive(Clone, Copy)]
struct Offer {
    /// So many at once, to begin with.
    burst: usize,
    /// And so many a second.
    rate: f64,
    /// Till when.
    end: Us,
    noted_from: Us,
}

/// Offers `rate` requests a second to `server` behind a limiter, or behind none, for so many seconds after it has [`SETTLED`].
fn offer(server: Server, rate: f64, seconds: u64, limiter: Option<&mut Limiter>) -> Outcome {
    let end = seconds * 1_000_000 + SETTLED;
    serve(server, Offer { burst: 0, rate, end, noted_from: SETTLED }, limiter)
}

/// A gateway's door, with what comes of what is offered.
struct Door {
    limits: Limits,
    /// Since when they wait at the door.
    held: Vec<Us>,
    seen: Seen,
    outcome: Outcome,
    noted_from: Us,
}

impl Door {
    fn refuse(&mut self, now: Us) {
        self.seen.refused += 1;
        self.outcome.refused += u64::from(now >= self.noted_from);
    }

    fn room(&self) -> usize {
        self.limits.small[Lane::Write as usize].unwrap_or(self.limits.room[Lane::Write as usize])
    }

    fn answer(&mut self, now: Us, came: Us, entered: Us) {
        self.seen.answers += 1;
        let (took, fastest) = (now - came, Duration::from_micros(now - entered));
        self.seen.fastest = Some(self.seen.fastest.map_or(fastest, |least| least.min(fastest)));
        if now >= self.noted_from && took <= TIMEOUT {
            self.outcome.answered_in_time += 1;
            self.outcome.took.push(took);
        }
    }

    fn look(&mut self, now: Us, under_way: usize, limiter: &mut Limiter) {
        self.seen.under_way = under_way;
        self.seen.held = self.held.len();
        let seen = std::mem::take(&mut self.seen);
        let interval = Interval { length: INTERVAL, small: [Seen::default(), seen], large: Seen::default() };
        self.limits = limiter.handle_interval(&interval);
        let flood = self.limits.flood[Lane::Write as usize];
        let is_over = |came: &Us| flood || now - came > HELD_FOR.as_micros() as Us;
        for _ in self.held.extract_if(.., |came| is_over(came)).collect::<Vec<_>>() {
            self.refuse(now);
        }
    }
}

fn serve(server: Server, offer: Offer, mut limiter: Option<&mut Limiter>) -> Outcome {
    let mut arrivals = Arrivals { state: 42, mean: 1e6 / offer.rate };
    let no_limits = Limits { room: [usize::MAX; LANES], ..Limits::NONE };
    let outcome = Outcome { seconds: (offer.end - offer.noted_from) as f64 / 1e6, ..Outcome::default() };
    let limits = limiter.as_ref().map_or(no_limits, |limiter| limiter.limits());
    let mut door =
        Door { limits, held: Vec::new(), seen: Seen::default(), outcome, noted_from: offer.noted_from };
    // When they came to the door, and when they were let in.
    let mut queue: VecDeque<(Us, Us)> = VecDeque::new();
    let mut batch: Vec<(Us, Us)> = Vec::new();
    let mut on_its_way: VecDeque<(Us, (Us, Us))> = VecDeque::new();
    let mut burst = offer.burst;
    let (mut next_arrival, mut batch_done, mut next_look) = (arrivals.next_gap(), Us::MAX, 50_000);
    loop {
        let next_answer = on_its_way.front().map_or(Us::MAX, |(at, _)| *at);
        let soonest = if burst > 0 { 0 } else { next_arrival };
        let now = soonest.min(batch_done).min(next_look).min(next_answer);
        if now >= offer.end {
            return door.outcome;
        }
        let mut under_way = queue.len() + batch.len() + on_its_way.len();
        if now == next_look {
            next_look += INTERVAL.as_micros() as Us;
            if let Some(limiter) = limiter.as_deref_mut() {
                door.look(now, under_way, limiter);
            }
        } else if now == batch_done {
            batch_done = Us::MAX;
            on_its_way.extend(batch.drain(..).map(|times| (now + server.distance, times)));
        } else if now == next_answer {
            let (_, (came, entered)) = on_its_way.pop_front().unwrap();
            under_way -= 1;
            door.answer(now, came, entered);
        } else {
            match burst.checked_sub(1) {
                Some(rest) => burst = rest,
                None => next_arrival += arrivals.next_gap(),
            }
            if under_way < door.room() {
                queue.push_back((now, now));
                under_way += 1;
            } else if door.limits.flood[Lane::Write as usize] {
                door.refuse(now);
            } else {
                door.seen.held_new += 1;
                door.held.push(now);
            }
        }
        // The youngest first.
        while under_way < door.room()
            && let Some(came) = door.held.pop()
        {
            queue.push_back((came, now));
            under_way += 1;
        }
        if batch_done == Us::MAX && !queue.is_empty() {
            batch.extend(queue.drain(..queue.len().min(server.batch_max)));
            batch_done = now + server.per_batch + server.per_request * batch.len() as u64;
        }
    }
}

#[test]
fn without_a_limiter_nearly_all_that_is_done_comes_too_late() {
    let overload = offer(PUTS, PUTS.capacity() * 2.0, 20, None);
    assert!(overload.goodput() < PUTS.capacity() * 0.2, "{}", overload.goodput());
}

#[test]
fn an_open_loop_of_any_rate_gets_what_can_be_done_in_good_time() {
    let far = Server { distance: 150_000, ..PUTS };
    let fast = Server { per_batch: 500, per_request: 20, batch_max: 512, distance: 50 };
    for server in [PUTS, far, fast] {
        let capacity = server.capacity();
        let normal = offer(server, capacity * 0.7, 20, Some(&mut Limiter::default()));
        assert_eq!(normal.refused, 0);
        // As much of a queue is tolerated on any machine.
        let normal_p99 = normal.percentile(0.99).max(TOLERATED.as_micros() as Us * 2 / 3);
        for times in [2.0, 5.0, 10.0] {
            let mut limiter = Limiter::default();
            // It has seen better days.
            offer(server, capacity * 0.5, 2, Some(&mut limiter));
            let overload = offer(server, capacity * times, 20, Some(&mut limiter));
            let p99 = overload.percentile(0.99);
            assert!(overload.goodput() >= capacity * 0.9, "{times}: {} of {capacity}", overload.goodput());
            assert!(p99 <= normal_p99 * 3, "{times}: {p99} µs, and {normal_p99} µs normally");
            let after = offer(server, capacity * 0.7, 20, Some(&mut limiter));
            assert!(after.refused < 50, "{times}: {} refused after the flood", after.refused);
            let limits = limiter.limits();
            let is_lifted = limits.small == [None; LANES] && limits.large.is_none();
            assert!(is_lifted, "{times}: {limits:?} after the flood");
        }
    }
}

#[test]
fn what_begins_as_an_overload_is_one_all_the_same() {
    let overload = offer(PUTS, PUTS.capacity() * 3.0, 20, Some(&mut Limiter::default()));
    assert!(overload.goodput() >= PUTS.capacity() * 0.9, "{}", overload.goodput());
    assert!(overload.percentile(0.99) <= 42_000, "{}", overload.percentile(0.99));
}

#[test]
fn a_flood_does_no_harm_before_it_shows_either() {
    let slow_disk = Server { per_batch: 6_000, per_request: 200, ..PUTS };
    let far = Server { distance: 150_000, ..PUTS };
    // Far away it takes longer until anything shows.
    for (server, least) in [(PUTS, 0.95), (slow_disk, 0.95), (far, 0.85)] {
        let capacity = server.capacity();
        let normal = offer(server, capacity * 0.7, 4, Some(&mut Limiter::default())).percentile(0.99);
        for times in [2.0, 5.0, 10.0] {
            let mut limiter = Limiter::default();
            offer(server, capacity * 0.5, 2, Some(&mut limiter));
            let flood = Offer { burst: 0, rate: capacity * times, end: 4_000_000, noted_from: 0 };
            let overload = serve(server, flood, Some(&mut limiter));
            let share = overload.goodput() / capacity;
            assert!(share >= least, "{times}: {share}");
            let p99 = overload.percentile(0.99);
            assert!(p99 <= (normal * 3).max(100_000), "{times}: {p99} µs, and {normal} µs normally");
        }
    }
}

#[test]
fn who_comes_all_at_once_and_waits_for_the_answers_is_served() {
    for (rate, burst) in [(0.001, 2_500), (PUTS.capacity() * 0.2, 2_000), (PUTS.capacity() * 0.3, 1_000)] {
        let mut limiter = Limiter::default();
        offer(PUTS, 50.0, 2, Some(&mut limiter));
        let burst = Offer { burst, rate, end: 4_000_000, noted_from: 0 };
        let outcome = serve(PUTS, burst, Some(&mut limiter));
        assert_eq!(outcome.refused, 0, "of {} and {rate} a second", burst.burst);
    }
}

fn seen(under_way: usize, fastest_ms: u64) -> Seen {
    Seen { under_way, answers: 100, fastest: Some(Duration::from_millis(fastest_ms)), ..Seen::default() }
}

fn interval(reads: Seen, writes: Seen, large: usize) -> Interval {
    let large = Seen { under_way: large, ..Seen::default() };
    Interval { length: INTERVAL, small: [reads, writes], large }
}

#[test]
fn many_callers_that_wait_are_no_overload_and_neither_is_a_moment() {
    let mut limiter = Limiter::default();
    for _ in 0..100 {
        assert_eq!(limiter.handle_interval(&interval(seen(0, 1), seen(512, 20), 0)), Limits::NONE);
    }
    // A disk that stood still.
    assert_eq!(limiter.handle_interval(&interval(seen(0, 1), seen(512, 400), 0)), Limits::NONE);
    assert_eq!(limiter.handle_interval(&interval(seen(0, 1), seen(512, 5), 0)), Limits::NONE);
}

#[test]
fn large_requests_are_held_back_first_and_only_the_lane_that_is_slow() {
    let mut limiter = Limiter::default();
    let slow = interval(seen(400, 90), seen(400, 2), 40);
    limiter.handle_interval(&interval(seen(1, 1), seen(1, 2), 40));
    assert_eq!(limiter.handle_interval(&slow), Limits::NONE);
    assert_eq!(limiter.handle_interval(&slow), Limits { large: Some(20), ..Limits::NONE });
    assert_eq!(limiter.handle_interval(&slow).large, Some(10));
    assert_eq!(limiter.handle_interval(&slow).large, Some(5));
    assert_eq!(limiter.handle_interval(&slow).large, Some(LARGE_MIN));
    let limits = limiter.handle_interval(&slow);
    assert_eq!(limits.small[Lane::Write as usize], None);
    assert!(limits.small[Lane::Read as usize].is_some_and(|limit| limit < 100), "{limits:?}");
}

#[test]
fn few_requests_are_never_held_back_however_slow_they_are() {
    let mut limiter = Limiter::default();
    limiter.handle_interval(&interval(seen(1, 1), seen(1, 2), 1));
    for _ in 0..1000 {
        let limits = limiter.handle_interval(&interval(seen(SMALL_MIN, 900), seen(1, 3000), LARGE_MIN));
        assert_eq!(limits, Limits::NONE);
    }
}

#[test]
fn who_has_little_under_way_is_let_in_where_others_have_more() {
    let full = Load {
        urgent: false,
        modest: false,
        limit: 64,
        under_way: 64,
        of_connection: 0,
        connections: 4,
        of_address: 0,
        addresses: 2,
    };
    assert!(full.admits());
    assert!(Load { under_way: 63, of_connection: 63, ..full }.admits());
    assert!(Load { of_connection: 15, ..full }.admits());
    assert!(!Load { of_connection: 16, ..full }.admits());
    assert!(!Load { of_address: 128, ..full }.admits());
    assert!(Load { of_address: 128, addresses: 1, ..full }.admits());
    assert!(Load { under_way: 5000, ..full }.admits(), "of others");
    let busy = Load { of_connection: 64, under_way: 127, ..full };
    assert!(!busy.admits() && Load { urgent: true, ..busy }.admits());
    assert!(Load { modest: true, ..busy }.admits(), "who asks for little need not try again");
    assert!(!Load { urgent: true, modest: true, under_way: 128, ..busy }.admits());
    assert!(Load { connections: 256, addresses: 256, ..full }.admits());
    assert!(!Load { connections: 257, addresses: 256, ..full }.admits());
}
