//! Counts what the callers do, and tells them when to stop.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tonic::Status;

use crate::{BenchError, Histogram, Limit, MachineSample, Plan, ProcessSample, ProcessUse};

/// What is counted of errors: how many of each gRPC code, and the first one's text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Errors {
    pub(crate) by_code: BTreeMap<String, u64>,
    pub(crate) first: Option<String>,
}

/// Shared by all callers of one measurement.
pub(crate) struct Recorder {
    phase: AtomicU8,
    latencies: Histogram,
    conflicts: AtomicU64,
    errors: Mutex<Errors>,
    /// The window ends when this many operations are recorded.
    operations_wanted: u64,
    enough: Notify,
}

const WARMING_UP: u8 = 0;
const MEASURING: u8 = 1;
const OVER: u8 = 2;

impl Recorder {
    pub(crate) fn new(limit: Limit) -> Recorder {
        Recorder {
            phase: AtomicU8::new(WARMING_UP),
            latencies: Histogram::default(),
            conflicts: AtomicU64::new(0),
            errors: Mutex::default(),
            operations_wanted: match limit {
                Limit::Time(_) => u64::MAX,
                Limit::Operations(wanted) => wanted,
            },
            enough: Notify::new(),
        }
    }

    /// Whether callers shall go on.
    pub(crate) fn is_running(&self) -> bool {
        self.phase.load(Relaxed) != OVER
    }

    /// Opens the window for a workload which is measured as a whole.
    pub(crate) fn start(&self) {
        self.phase.store(MEASURING, Relaxed);
    }

    /// An operation ended well. It counts if it ends inside the window; where the window begins and ends, what is
    /// counted too much and too little evens out.
    pub(crate) fn completed(&self, latency: Duration) {
        if self.phase.load(Relaxed) != MEASURING {
            return;
        }
        if self.latencies.record(latency) == self.operations_wanted {
            self.phase.store(OVER, Relaxed);
            self.enough.notify_one();
        }
    }

    /// A transaction found another value than it had hoped for.
    pub(crate) fn conflicted(&self) {
        if self.phase.load(Relaxed) == MEASURING {
            self.conflicts.fetch_add(1, Relaxed);
        }
    }

    /// An operation failed; it has no part in latency and rate.
    pub(crate) fn failed(&self, status: &Status) {
        if !self.is_running() {
            return;
        }
        // Counting cannot panic half-way, so a poisoned lock guards sound data.
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        if errors.first.is_none() {
            errors.first = Some(format!("{:?}: {}", status.code(), status.message()));
        }
        if self.phase.load(Relaxed) == MEASURING {
            *errors.by_code.entry(format!("{:?}", status.code())).or_default() += 1;
        }
    }

    pub(crate) fn latencies(&self) -> &Histogram {
        &self.latencies
    }

    pub(crate) fn conflicts(&self) -> u64 {
        self.conflicts.load(Relaxed)
    }

    pub(crate) fn errors(&self) -> Errors {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets the callers, already at work, warm up; opens the window; waits until it is over.
    pub(crate) async fn window(&self, plan: &Plan, pids: &[u32]) -> Result<Window, BenchError> {
        tokio::time::sleep(plan.warmup).await;
        let opening = Opening::now(pids)?;
        self.start();
        match plan.limit {
            Limit::Time(time) => tokio::time::sleep(time).await,
            // Twice, so that callers who run out of patience can tell why.
            Limit::Operations(_) => self.until_enough(plan.patience * 2).await,
        }
        self.phase.store(OVER, Relaxed);
        opening.close()
    }

    async fn until_enough(&self, patience: Duration) {
        loop {
            let before = self.latencies.count();
            let enough = tokio::time::timeout(patience, self.enough.notified()).await.is_ok();
            if enough || self.latencies.count() == before {
                return;
            }
        }
    }
}

/// The beginning of a window.
pub(crate) struct Opening {
    started: Instant,
    servers: Vec<ProcessSample>,
    generator: Vec<ProcessSample>,
    machine: MachineSample,
}

/// What a window cost.
pub(crate) struct Window {
    pub(crate) elapsed: Duration,
    pub(crate) servers: Vec<ProcessUse>,
    pub(crate) generator: Vec<ProcessUse>,
    /// Share of the machine other programs took; unknown if the server's processes are.
    pub(crate) others: Option<f64>,
}

impl Opening {
    pub(crate) fn now(pids: &[u32]) -> Result<Opening, BenchError> {
        let generator = ProcessSample::read_all(&[std::process::id()])?;
        let servers = ProcessSample::read_all(pids)?;
        Ok(Opening { started: Instant::now(), servers, generator, machine: MachineSample::read()? })
    }

    pub(crate) fn close(self) -> Result<Window, BenchError> {
        let elapsed = self.started.elapsed();
        let machine = MachineSample::read()?;
        let pids: Vec<u32> = self.servers.iter().map(|sample| sample.pid).collect();
        let servers = ProcessUse::between(&self.servers, &ProcessSample::read_all(&pids)?)?;
        let generator =
            ProcessUse::between(&self.generator, &ProcessSample::read_all(&[std::process::id()])?)?;
        let known = servers.iter().chain(&generator).map(|process| process.cpu).sum();
        let others = (!servers.is_empty()).then(|| self.machine.share_of_others(machine, elapsed, known));
        Ok(Window { elapsed, servers, generator, others })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_window_counts() {
        let recorder = Recorder::new(Limit::Operations(2));
        recorder.completed(Duration::from_micros(1));
        recorder.failed(&Status::unavailable("early"));
        recorder.start();
        recorder.completed(Duration::from_micros(2));
        recorder.failed(&Status::aborted("inside"));
        recorder.conflicted();
        assert!(recorder.is_running());
        recorder.completed(Duration::from_micros(3));
        assert!(!recorder.is_running());
        recorder.completed(Duration::from_micros(4));
        recorder.failed(&Status::internal("late"));
        recorder.conflicted();
        assert_eq!((recorder.latencies().count(), recorder.conflicts()), (2, 1));
        assert_eq!(recorder.latencies().max(), Duration::from_micros(3));
        let errors = recorder.errors();
        assert_eq!(errors.by_code, BTreeMap::from([("Aborted".to_owned(), 1)]));
        // What went wrong before the window still explains an empty one.
        assert_eq!(errors.first.as_deref(), Some("Unavailable: early"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_nobody_fills_is_given_up() {
        let recorder = Recorder::new(Limit::Operations(1));
        let started = tokio::time::Instant::now();
        recorder.until_enough(Duration::from_secs(10)).await;
        assert_eq!(started.elapsed(), Duration::from_secs(10));
    }
}
