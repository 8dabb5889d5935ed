//! What the servers' processes use while a case runs.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bench::ProcessSample;
use tokio::sync::watch;

use crate::Problem;

const PERIOD: Duration = Duration::from_millis(100);

/// All processes at one moment, in the order of their ids.
pub(crate) type Reading = (Instant, Vec<ProcessSample>);

/// Reads the processes until it is dropped.
pub(crate) struct Meter {
    readings: Arc<Mutex<Vec<Reading>>>,
    stop: Arc<AtomicBool>,
    alarm: watch::Receiver<Option<Problem>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            // It only reads; if it panicked, the readings so far stand.
            let _ = thread.join();
        }
    }
}

impl Meter {
    /// Raises the alarm when the processes have more than `ceiling_bytes` of memory together, or one has ended.
    pub(crate) fn start(pids: Vec<u32>, ceiling_bytes: u64) -> Meter {
        let readings = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (raise, alarm) = watch::channel(None);
        let (its, stopped) = (Arc::clone(&readings), Arc::clone(&stop));
        for pid in &pids {
            // Should memory run out all the same, it is theirs that goes; where this cannot be said, it is not said.
            let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), "1000");
        }
        let thread = std::thread::spawn(move || {
            while !stopped.load(Relaxed) {
                match ProcessSample::read_all(&pids) {
                    Ok(samples) => {
                        let bytes: u64 = samples.iter().map(|sample| sample.rss_bytes).sum();
                        its.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), samples));
                        if bytes > ceiling_bytes {
                            raise.send_replace(Some(format!(
                                "stopped: the servers hold {} MiB together",
                                bytes >> 20
                            )));
                        }
                    }
                    Err(error) => drop(raise.send_replace(Some(error.to_string()))),
                }
                std::thread::sleep(PERIOD);
            }
        });
        Meter { readings, stop, alarm, thread: Some(thread) }
    }

    /// Waits for an alarm, which may never come.
    pub(crate) async fn alarm(&self) -> Problem {
        let mut alarm = self.alarm.clone();
        let raised = alarm.wait_for(Option::is_some).await;
        let raised = raised.map(|problem| problem.clone().unwrap_or_default());
        raised.unwrap_or_else(|_| "the processes are not read any more".to_owned())
    }

    pub(crate) fn readings(&self) -> Vec<Reading> {
        self.readings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
