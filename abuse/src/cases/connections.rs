//! Connections and streams that take memory, and give nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::etcdserverpb as pb;
use bytes::{BufMut, Bytes, BytesMut};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{HOSTILE, Outcome, megabytes};
use crate::Problem;
use crate::raw::{PUT, RANGE, Raw, framed, list};
use crate::stage::Stage;

/// How long what is open stays so.
const HELD_FOR: Duration = Duration::from_secs(2);

pub(super) async fn unread_lists(stage: Arc<Stage>) -> Outcome {
    const CONNECTIONS: usize = 30;
    stage.fill(megabytes(30)).await?;
    let request = framed(&list(HOSTILE));
    stage.begin().await;
    let mut held = Vec::new();
    for _ in 0..stage.sized(CONNECTIONS) {
        // A server may turn connections away, here and below.
        let Ok(raw) = Raw::open(&stage.endpoint).await else { continue };
        let mut answers = Vec::new();
        for _ in 0..10 {
            answers.extend(raw.ask(RANGE, request.clone()).await);
        }
        held.push((raw, answers));
    }
    sleep(HELD_FOR).await;
    Ok(format!("{} lists not read", held.iter().map(|(_, answers)| answers.len()).sum::<usize>()))
}

pub(super) async fn unfinished_bodies(stage: Arc<Stage>) -> Outcome {
    const BYTES: usize = 1_900_000;
    const CONNECTIONS: usize = 16;
    let mut body = BytesMut::with_capacity(BYTES);
    body.put_u8(0);
    body.put_u32(BYTES as u32);
    body.resize(BYTES - 1, 0);
    let body = body.freeze();
    stage.begin().await;
    let mut sending = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let Ok(raw) = Raw::open(&stage.endpoint).await else { continue };
        let (body, each) = (body.clone(), stage.sized(800) / CONNECTIONS);
        sending.spawn(async move {
            let mut held = Vec::new();
            for _ in 0..each {
                let Ok((answer, mut stream)) = raw.begin(PUT).await else { break };
                if stream.send_data(body.clone(), false).is_ok() {
                    held.push((answer, stream));
                }
            }
            sleep(HELD_FOR).await;
            held.len()
        });
    }
    let held: usize = sending.join_all().await.into_iter().sum();
    Ok(format!("{held} bodies not finished"))
}

pub(super) async fn open_streams(stage: Arc<Stage>) -> Outcome {
    const CONNECTIONS: usize = 20;
    stage.begin().await;
    let mut opening = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let Ok(raw) = Raw::open(&stage.endpoint).await else { continue };
        let each = stage.sized(100_000) / CONNECTIONS;
        opening.spawn(async move {
            let mut held = Vec::new();
            let open = async {
                for _ in 0..each {
                    let Ok(stream) = raw.begin(PUT).await else { break };
                    held.push(stream);
                }
            };
            // A server may take no more of them.
            let _ = timeout(HELD_FOR, open).await;
            sleep(Duration::from_secs(1)).await;
            held.len()
        });
    }
    let held: usize = opening.join_all().await.into_iter().sum();
    Ok(format!("{held} streams opened"))
}

pub(super) async fn stream_burst(stage: Arc<Stage>) -> Outcome {
    let get = framed(&pb::RangeRequest { key: "hostile".into(), ..Default::default() });
    let raw = Raw::open(&stage.endpoint).await?;
    stage.begin().await;
    let mut answers = Vec::new();
    let send = async {
        for _ in 0..stage.sized(220_000) {
            let Ok(answer) = raw.ask(RANGE, get.clone()).await else { break };
            answers.push(answer);
        }
    };
    let _ = timeout(HELD_FOR, send).await;
    sleep(Duration::from_secs(1)).await;
    Ok(format!("{} streams", answers.len()))
}

pub(super) async fn reset_streams(stage: Arc<Stage>) -> Outcome {
    const ATTACK_FOR: Duration = Duration::from_secs(3);
    let get: Bytes = framed(&pb::RangeRequest { key: "hostile".into(), ..Default::default() });
    stage.begin().await;
    let begun = Instant::now();
    let (mut reset, mut connections) = (0, 0);
    while begun.elapsed() < ATTACK_FOR {
        let Ok(raw) = Raw::open(&stage.endpoint).await else {
            sleep(Duration::from_millis(1)).await;
            continue;
        };
        connections += 1;
        let flood = async {
            loop {
                let answer = raw.ask(RANGE, get.clone()).await?;
                // Lets the head leave.
                tokio::task::yield_now().await;
                drop(answer);
                reset += 1;
            }
        };
        // It ends with the time, or when the server has enough of it.
        let _: Result<Result<(), Problem>, _> =
            timeout(ATTACK_FOR.saturating_sub(begun.elapsed()), flood).await;
    }
    Ok(format!("{reset} streams reset, on {connections} connections"))
}
