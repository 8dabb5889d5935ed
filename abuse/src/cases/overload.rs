//! More than can be served, by callers who do not wait for each other.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use api::etcdserverpb as pb;
use bench::Endpoint;
use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout_at};
use tonic::Code;

use super::{Outcome, small};
use crate::Problem;
use crate::raw::{Ending, PUT, Raw, ending, framed};
use crate::stage::Stage;

const VALUE_BYTES: usize = 20_000;
const KEYS: usize = 1000;
const CONNECTIONS: usize = 16;
/// Callers in a closed loop: more than enough for all that can be served.
const PEAK_CALLERS: usize = 64;
/// Left out, for a server that just began.
const WARM_FOR: Duration = Duration::from_secs(1);
const PEAK_FOR: Duration = Duration::from_secs(2);
const ATTACK_FOR: Duration = Duration::from_secs(4);
/// Of a put.
const PATIENCE: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(5);
const BEHIND_MAX: Duration = Duration::from_millis(100);
/// Of the peak.
const GOODPUT_LEAST: f64 = 0.9;
/// Of the 99th percentile at the peak.
const P99_MOST: f64 = 3.0;

/// What became of puts.
#[derive(Default)]
struct Tally {
    good: Mutex<Vec<Duration>>,
    shed: AtomicUsize,
    late: AtomicUsize,
    failed: Mutex<BTreeMap<String, usize>>,
    sent: AtomicUsize,
    /// How late the attackers were for each of their turns: what they lack themselves.
    lags: Mutex<Vec<Duration>>,
}

struct Putters {
    endpoint: Endpoint,
    connections: Vec<Mutex<Arc<Raw>>>,
    bodies: Vec<Bytes>,
}

impl Putters {
    /// Asks on one of the connections, and opens another in its place if that is over.
    async fn ask(&self, number: usize) -> Result<Ending, Problem> {
        let place = &self.connections[number % self.connections.len()];
        let body = self.bodies[number % self.bodies.len()].clone();
        let raw = Arc::clone(&place.lock().unwrap_or_else(PoisonError::into_inner));
        let answer = match raw.ask(PUT, body.clone()).await {
            Ok(answer) => answer,
            Err(_) => {
                let opened = Arc::new(Raw::open(&self.endpoint).await?);
                let current = {
                    let mut current = place.lock().unwrap_or_else(PoisonError::into_inner);
                    // Unless somebody else was faster.
                    if Arc::ptr_eq(&current, &raw) {
                        *current = opened;
                    }
                    Arc::clone(&current)
                };
                current.ask(PUT, body).await?
            }
        };
        ending(answer).await.map_err(|error| error.to_string())
    }

    async fn put(&self, number: usize, due: Instant, tally: &Tally) {
        let put = self.ask(number);
        match timeout_at((due + PATIENCE).into(), put).await {
            // The timer may be late where the attackers are.
            Ok(Ok(Ending { code: Code::Ok, .. })) if due.elapsed() > PATIENCE => {
                tally.late.fetch_add(1, Relaxed);
            }
            Ok(Ok(Ending { code: Code::Ok, .. })) => {
                tally.good.lock().unwrap_or_else(PoisonError::into_inner).push(due.elapsed());
            }
            Ok(Ok(ending)) if ending.is_shed() => drop(tally.shed.fetch_add(1, Relaxed)),
            Ok(Ok(Ending { code, message })) => tally.fail(format!("{code:?}: {message}")),
            Ok(Err(problem)) => tally.fail(problem),
            Err(_) => drop(tally.late.fetch_add(1, Relaxed)),
        }
    }
}

impl Tally {
    fn fail(&self, why: String) {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner).entry(why).or_default() += 1;
    }

    /// How many were good, and the 99th percentile of their latency in milliseconds.
    fn good(&self) -> (usize, f64) {
        percentile_99(&self.good)
    }
}

/// How many there are, and the 99th percentile of them in milliseconds.
fn percentile_99(times: &Mutex<Vec<Duration>>) -> (usize, f64) {
    let mut times = times.lock().unwrap_or_else(PoisonError::into_inner).clone();
    times.sort_unstable();
    let p99 = times.get((times.len() * 99).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default();
    (times.len(), p99.as_secs_f64() * 1000.0)
}

/// Finds what is served at most, and then asks for `times` that.
pub(super) async fn overload(stage: Arc<Stage>, times: f64) -> Outcome {
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(Mutex::new(Arc::new(Raw::open(&stage.endpoint).await?)));
    }
    let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
    let put = |key| pb::PutRequest { key, value: value.clone(), ..Default::default() };
    let bodies = (0..KEYS).map(|index| framed(&put(small(0).key(index)))).collect();
    let putters = Arc::new(Putters { endpoint: stage.endpoint.clone(), connections, bodies });

    closed_loop(&putters, WARM_FOR).await;
    let (peak, normal_ms) = closed_loop(&putters, PEAK_FOR).await.good();
    let peak = peak as f64 / PEAK_FOR.as_secs_f64();
    if peak == 0.0 {
        return Err("not one put was answered".to_owned());
    }
    stage.begin().await;
    let tally = open_loop(&putters, peak * times).await;
    let (good, p99_ms) = tally.good();
    stage.wrote(good * VALUE_BYTES);
    let seconds = ATTACK_FOR.as_secs_f64();
    let share = good as f64 / seconds / peak;
    let told = format!(
        "peak {peak:.0}/s with p99 {normal_ms:.0} ms; {:.1} times that sent: goodput {:.0} % with p99 {p99_ms:.0} ms, {} shed, \
         {} late, failed: {:?}; the attackers themselves were late by {:.0} ms (p99)",
        tally.sent.load(Relaxed) as f64 / seconds / peak,
        share * 100.0,
        tally.shed.load(Relaxed),
        tally.late.load(Relaxed),
        tally.failed.lock().unwrap_or_else(PoisonError::into_inner),
        percentile_99(&tally.lags).1,
    );
    if share < GOODPUT_LEAST || p99_ms > P99_MOST * normal_ms { Err(told) } else { Ok(told) }
}

async fn closed_loop(putters: &Arc<Putters>, time: Duration) -> Arc<Tally> {
    let tally = Arc::new(Tally::default());
    let mut callers = JoinSet::new();
    for caller in 0..PEAK_CALLERS {
        let (putters, tally) = (Arc::clone(putters), Arc::clone(&tally));
        callers.spawn(async move {
            for turn in 0.. {
                putters.put(caller + turn * PEAK_CALLERS, Instant::now(), &tally).await;
            }
        });
    }
    sleep(time).await;
    tally
}

/// Sends no more than the attackers have time for: what they are behind by is left out.
async fn open_loop(putters: &Arc<Putters>, per_second: f64) -> Arc<Tally> {
    let tally = Arc::new(Tally::default());
    let mut puts = JoinSet::new();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let most = (per_second * BEHIND_MAX.as_secs_f64()) as usize + 1;
    let (begun, mut number) = (Instant::now(), 0);
    while begun.elapsed() < ATTACK_FOR {
        let at = ticks.tick().await.into_std();
        let due = Instant::now();
        tally.lags.lock().unwrap_or_else(PoisonError::into_inner).push(due.saturating_duration_since(at));
        let wanted = ((due - begun).as_secs_f64() * per_second) as usize;
        number = number.max(wanted.saturating_sub(most));
        while number < wanted {
            let (putters, its) = (Arc::clone(putters), Arc::clone(&tally));
            puts.spawn(async move { putters.put(number, due, &its).await });
            tally.sent.fetch_add(1, Relaxed);
            number += 1;
        }
        while puts.try_join_next().is_some() {}
    }
    tally
}
