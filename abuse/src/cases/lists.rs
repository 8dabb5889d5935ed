//! Lists that nobody waits for any more, and too many that somebody waits for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{HOSTILE, Outcome, megabytes};
use crate::Problem;
use crate::raw::{RANGE, Raw, framed, list};
use crate::stage::{Fill, Stage, for_a_while};

const MB: usize = 30;

/// Asks for `count` lists, 30 on a connection, and takes them back. The connections stay.
pub(super) async fn reset(stage: Arc<Stage>, count: usize) -> Outcome {
    const ON_ONE: usize = 30;
    stage.fill(megabytes(MB)).await?;
    let request = framed(&list(HOSTILE));
    stage.begin().await;
    let mut reset = 0;
    let mut connections = Vec::new();
    for _ in 0..stage.sized(count).div_ceil(ON_ONE) {
        let raw = Raw::open(&stage.endpoint).await?;
        let mut answers = Vec::new();
        for _ in 0..ON_ONE {
            // Sent away, if this fails.
            answers.extend(raw.ask(RANGE, request.clone()).await);
        }
        reset += answers.len();
        // Long enough for the server to begin with them.
        sleep(Duration::from_millis(20)).await;
        drop(answers);
        connections.push(raw);
    }
    // They are said to stay behind, so the attack is not over with the last.
    sleep(Duration::from_secs(3)).await;
    Ok(format!("{reset} lists taken back"))
}

/// As clients with a deadline do.
pub(super) async fn abandoned(stage: Arc<Stage>) -> Outcome {
    const PATIENCE: Duration = Duration::from_millis(50);
    stage.fill(megabytes(MB)).await?;
    let abandoned = Arc::new(AtomicUsize::new(0));
    let mut callers = Vec::new();
    for _ in 0..stage.sized(30) {
        let mut client = stage.kv().await?;
        let abandoned = Arc::clone(&abandoned);
        callers.push(async move {
            loop {
                let mut request = tonic::Request::new(list(HOSTILE));
                request.set_timeout(PATIENCE);
                drop(timeout(PATIENCE, client.range(request)).await);
                abandoned.fetch_add(1, Relaxed);
            }
        });
    }
    stage.begin().await;
    for_a_while(Duration::from_secs(3), callers).await?;
    Ok(format!("{} lists abandoned", abandoned.load(Relaxed)))
}

/// As clients that crash do.
pub(super) async fn lost_connections(stage: Arc<Stage>) -> Outcome {
    stage.fill(megabytes(MB)).await?;
    let request = framed(&list(HOSTILE));
    stage.begin().await;
    let mut lost = 0;
    for _ in 0..stage.sized(200) {
        // A server may turn connections away.
        let Ok(raw) = Raw::open(&stage.endpoint).await else { continue };
        let mut answers = Vec::new();
        for _ in 0..15 {
            answers.extend(raw.ask(RANGE, request.clone()).await);
        }
        lost += answers.len();
        // Long enough for the server to begin with them.
        sleep(Duration::from_millis(10)).await;
        // Before the answers, or they would be taken back.
        drop(raw);
        drop(answers);
    }
    Ok(format!("{lost} lists lost their connections"))
}

/// Nothing is wrong with any of these.
pub(super) async fn honest(stage: Arc<Stage>) -> Outcome {
    let fill = Fill { prefix: HOSTILE, keys: stage.sized(15_000), value_bytes: 4000, lease: 0 };
    stage.fill(fill).await?;
    let listed = Arc::new(AtomicUsize::new(0));
    let mut callers = Vec::new();
    for _ in 0..20 {
        let mut client = stage.kv().await?;
        let listed = Arc::clone(&listed);
        callers.push(async move {
            loop {
                match client.range(list(HOSTILE)).await {
                    Ok(answer) if answer.get_ref().kvs.len() == fill.keys => {
                        listed.fetch_add(1, Relaxed);
                    }
                    Ok(answer) => {
                        return Err::<(), Problem>(format!("a list of {} keys", answer.get_ref().kvs.len()));
                    }
                    // Told to come back later.
                    Err(_) => sleep(Duration::from_millis(100)).await,
                }
            }
        });
    }
    stage.begin().await;
    for_a_while(Duration::from_secs(3), callers).await?;
    match listed.load(Relaxed) {
        0 => Err("not one list was answered".to_owned()),
        listed => Ok(format!("{listed} lists answered")),
    }
}
