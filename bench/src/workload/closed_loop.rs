//! Callers that send their next request when the last one is answered.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tonic::Status;

use crate::recorder::{Recorder, Window};
use crate::{BenchError, Plan, Target};

/// One caller: all it needs to send its requests.
pub(super) trait Caller: Send + 'static {
    /// Carries out one operation.
    fn call(&mut self) -> impl Future<Output = Result<(), Status>> + Send;
}

/// A failing server is asked again after 1 ms, 2 ms, … up to this, so that errors do not crowd out the work.
const BACKOFF_MAX: Duration = Duration::from_millis(128);

/// Runs the callers through warm-up and window; returns also how many were left without an answer.
pub(super) async fn run<C: Caller>(
    plan: &Plan,
    target: &Target,
    recorder: &Arc<Recorder>,
    callers: Vec<C>,
) -> Result<(Window, usize), BenchError> {
    let mut tasks = JoinSet::new();
    for caller in callers {
        tasks.spawn(repeat(caller, Arc::clone(recorder)));
    }
    let window = recorder.window(plan, &target.pids).await?;
    let all_done = async { while tasks.join_next().await.is_some() {} };
    // What is left after that is aborted when the set is dropped.
    let _ = tokio::time::timeout(plan.patience, all_done).await;
    Ok((window, tasks.len()))
}

async fn repeat<C: Caller>(mut caller: C, recorder: Arc<Recorder>) {
    let mut backoff = Duration::ZERO;
    while recorder.is_running() {
        let started = Instant::now();
        match caller.call().await {
            Ok(()) => {
                recorder.completed(started.elapsed());
                backoff = Duration::ZERO;
            }
            Err(status) => {
                recorder.failed(&status);
                backoff = (backoff * 2).clamp(Duration::from_millis(1), BACKOFF_MAX);
                tokio::time::sleep(backoff).await;
            }
        }
    }
}
