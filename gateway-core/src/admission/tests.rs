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

/// Offers `rate` requests a second to `server` behind a limiter, or behind none, for so many seconds. Nothing is noted of the
/// first four: a flood is on its way before anything shows.
fn offer(server: Server, rate: f64, seconds: u64, mut limiter: Option<&mut Limiter>) -> Outcome {
    const NOTED_FROM: Us = 4_000_000;
    let end = seconds * 1_000_000 + NOTED_FROM;
    let mut arrivals = Arrivals { state: 42, mean: 1e6 / rate };
    let mut outcome = Outcome { seconds: seconds as f64, ..Outcome::default() };
    let mut queue: VecDeque<Us> = VecDeque::new();
    let mut batch: Vec<Us> = Vec::new();
    let mut on_its_way: VecDeque<(Us, Us)> = VecDeque::new();
    let (mut next_arrival, mut batch_done, mut next_look) = (arrivals.next_gap(), Us::MAX, 50_000);
    let mut seen = Seen::default();
    let mut limit = usize::MAX;
    loop {
        let next_answer = on_its_way.front().map_or(Us::MAX, |(at, _)| *at);
        let now = next_arrival.min(batch_done).min(next_look).min(next_answer);
        if now >= end {
            return outcome;
        }
        let under_way = queue.len() + batch.len() + on_its_way.len();
        if now == next_look {
            next_look += INTERVAL.as_micros() as Us;
            seen.under_way = under_way;
            if let Some(limiter) = limiter.as_deref_mut() {
                let interval =
                    Interval { length: INTERVAL, small: [Seen::default(), seen], large: Seen::default() };
                limit = limiter.handle_interval(&interval).small[Lane::Write as usize].unwrap_or(usize::MAX);
            }
            seen = Seen::default();
        } else if now == batch_done {
            batch_done = Us::MAX;
            on_its_way.extend(batch.drain(..).map(|began| (now + server.distance, began)));
        } else if now == next_answer {
            let (_, began) = on_its_way.pop_front().unwrap();
            let took = now - began;
            seen.answers += 1;
            let fastest = Duration::from_micros(took);
            seen.fastest = Some(seen.fastest.map_or(fastest, |least| least.min(fastest)));
            if now >= NOTED_FROM && took <= TIMEOUT {
                outcome.answered_in_time += 1;
                outcome.took.push(took);
            }
        } else {
            next_arrival += arrivals.next_gap();
            if under_way < limit {
                queue.push_back(now);
            } else {
                seen.refused += 1;
                outcome.refused += u64::from(now >= NOTED_FROM);
            }
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
            let is_lifted = limiter.limits() == Limits::NONE;
            assert!(is_lifted, "{times}: {:?} after the flood", limiter.limits());
        }
    }
}

#[test]
fn what_begins_as_an_overload_is_one_all_the_same() {
    let overload = offer(PUTS, PUTS.capacity() * 3.0, 20, Some(&mut Limiter::default()));
    assert!(overload.goodput() >= PUTS.capacity() * 0.9, "{}", overload.goodput());
    assert!(overload.percentile(0.99) <= 42_000, "{}", overload.percentile(0.99));
}

fn seen(under_way: usize, fastest_ms: u64) -> Seen {
    Seen { under_way, answers: 100, refused: 0, fastest: Some(Duration::from_millis(fastest_ms)) }
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
    assert!(!Load { urgent: true, under_way: 128, ..busy }.admits());
    assert!(Load { connections: 256, addresses: 256, ..full }.admits());
    assert!(!Load { connections: 257, addresses: 256, ..full }.admits());
}
