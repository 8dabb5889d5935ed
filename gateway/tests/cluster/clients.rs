//! Clients that write, read and watch through the gateways, and record what they see.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sim::linear::history::{EtcdHistory, EtcdRecorder, WatchMessage};
use sim::model;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::client::Client;

/// Keys that the clients fight over.
const KEYS: u64 = 6;
/// All keys begin so.
const PREFIX: &str = "k/";
/// A request without an answer after this long has an unknown outcome.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Clients at work.
pub(crate) struct Clients {
    recorder: Arc<EtcdRecorder>,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Vec<AtomicU64>>,
    progress: watch::Receiver<()>,
    tasks: Vec<JoinHandle<()>>,
    watchers: Vec<JoinHandle<()>>,
    last_revision: watch::Sender<i64>,
    endpoints: Vec<String>,
}

impl Clients {
    pub(crate) fn start(endpoints: &[String], writers: u64, watchers: u64) -> Clients {
        let recorder = Arc::new(EtcdRecorder::default());
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged: Arc<Vec<_>> = Arc::new((0..writers).map(|_| AtomicU64::new(0)).collect());
        let (progressed, progress) = watch::channel(());
        let progressed = Arc::new(progressed);
        let (last_revision, last) = watch::channel(i64::MAX);
        let tasks = (0..writers)
            .map(|id| {
                let writer = Writer {
                    id,
                    number: 0,
                    endpoints: endpoints.to_vec(),
                    recorder: Arc::clone(&recorder),
                    random: 0x9e37_79b9_7f4a_7c15 ^ (id + 1),
                };
                let stop = Arc::clone(&stop);
                let acknowledged = Arc::clone(&acknowledged);
                tokio::spawn(writer.run(stop, acknowledged, Arc::clone(&progressed)))
            })
            .collect();
        let watchers = (0..watchers)
            .map(|id| {
                tokio::spawn(watch_all(writers + id, endpoints.to_vec(), Arc::clone(&recorder), last.clone()))
            })
            .collect();
        Clients {
            recorder,
            stop,
            acknowledged,
            progress,
            tasks,
            watchers,
            last_revision,
            endpoints: endpoints.to_vec(),
        }
    }

    /// Returns once every writer has had `count` more answers.
    pub(crate) async fn each_acknowledged(&mut self, count: u64) {
        let goals: Vec<_> = self.acknowledged.iter().map(|n| n.load(Ordering::Acquire) + count).collect();
        let all = async {
            while self
                .acknowledged
                .iter()
                .zip(&goals)
                .any(|(number, goal)| number.load(Ordering::Acquire) < *goal)
            {
                self.progress.changed().await.unwrap();
            }
        };
        timeout(crate::processes::PATIENCE, all).await.expect("the writers get answers");
    }

    /// Ends the writers, lets the watchers see everything, and returns what was recorded.
    pub(crate) async fn finish(self) -> EtcdHistory {
        self.stop.store(true, Ordering::Release);
        for task in self.tasks {
            task.await.unwrap();
        }
        let mut client = Client::connect(&self.endpoints).await.unwrap();
        let all = client.range(model::RangeRequest { range: prefix(), ..Default::default() }).await.unwrap();
        self.last_revision.send(all.revision).unwrap();
        for watcher in self.watchers {
            timeout(crate::processes::PATIENCE, watcher)
                .await
                .expect("the watches see the last write")
                .unwrap();
        }
        Arc::into_inner(self.recorder).expect("all tasks have ended").into_history()
    }
}

struct Writer {
    id: u64,
    number: u64,
    endpoints: Vec<String>,
    recorder: Arc<EtcdRecorder>,
    random: u64,
}

impl Writer {
    async fn run(
        mut self,
        stop: Arc<AtomicBool>,
        acknowledged: Arc<Vec<AtomicU64>>,
        progressed: Arc<watch::Sender<()>>,
    ) {
        let mut client = Client::connect(&self.endpoints).await.unwrap();
        // A refused connection answers at once; without a pace that would be a busy loop.
        let mut pace = interval(Duration::from_millis(3));
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !stop.load(Ordering::Acquire) {
            pace.tick().await;
            if let Ok(true) = timeout(REQUEST_TIMEOUT, self.one(&mut client)).await {
                acknowledged[usize::try_from(self.id).unwrap()].fetch_add(1, Ordering::AcqRel);
                progressed.send_replace(());
            }
        }
    }

    /// One operation. Whether it was answered.
    async fn one(&mut self, client: &mut Client) -> bool {
        self.number += 1;
        let key = format!("{PREFIX}{}", self.draw(KEYS));
        match self.draw(10) {
            0..=3 => self.put(client, key).await,
            4..=5 => self.read(client, model::KeyRange::single(key)).await,
            6 => self.read(client, prefix()).await,
            7 => self.delete(client, key).await,
            _ => self.swap(client, key).await,
        }
    }

    /// Unique, so that the checker knows each write when it sees it.
    fn value(&self) -> String {
        format!("{}-{}", self.id, self.number)
    }

    async fn put(&self, client: &mut Client, key: String) -> bool {
        let request = put_request(&key, &self.value());
        let id = self.recorder.call(self.id, model::Request::Put(request.clone()));
        let Some(answer) = client.put(request).await else { return false };
        self.recorder.returned(id, Ok(model::Response::Put(answer)));
        true
    }

    async fn read(&self, client: &mut Client, range: model::KeyRange) -> bool {
        let request = model::RangeRequest { range, ..Default::default() };
        let id = self.recorder.call(self.id, model::Request::Range(request.clone()));
        let Some(answer) = client.range(request).await else { return false };
        self.recorder.returned(id, Ok(model::Response::Range(answer)));
        true
    }

    async fn delete(&self, client: &mut Client, key: String) -> bool {
        let request = model::DeleteRangeRequest { range: model::KeyRange::single(key), prev_kv: false };
        let id = self.recorder.call(self.id, model::Request::DeleteRange(request.clone()));
        let Some(answer) = client.delete(request).await else { return false };
        self.recorder.returned(id, Ok(model::Response::DeleteRange(answer)));
        true
    }

    /// Reads a key and writes it only if nobody else has meanwhile; if somebody has, reads it.
    async fn swap(&self, client: &mut Client, key: String) -> bool {
        let range = model::KeyRange::single(key.clone());
        let read = model::RangeRequest { range: range.clone(), ..Default::default() };
        let Some(seen) = client.range(read.clone()).await else { return false };
        let revision = seen.kvs.first().map_or(0, |kv| kv.mod_revision);
        let request = model::TxnRequest {
            compare: vec![model::Compare {
                range,
                target: model::CompareTarget::Mod(revision),
                result: model::CompareResult::Equal,
            }],
            success: vec![model::RequestOp::Put(put_request(&key, &self.value()))],
            failure: vec![model::RequestOp::Range(read)],
        };
        let id = self.recorder.call(self.id, model::Request::Txn(request.clone()));
        let Some(answer) = client.txn(request).await else { return false };
        self.recorder.returned(id, Ok(model::Response::Txn(answer)));
        true
    }

    /// xorshift64: which operation comes next need not be unpredictable, only varied.
    fn draw(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }
}

/// Watches everything from the first revision on, over as many connections as it takes, up to the last revision. Some
/// keys are watched once more on the same stream, and the stream is asked for its progress all the time, as Kubernetes
/// does it.
async fn watch_all(
    id: u64,
    endpoints: Vec<String>,
    recorder: Arc<EtcdRecorder>,
    mut last: watch::Receiver<i64>,
) {
    // The first revision of an empty keyspace is 1, so the first write is 2.
    let mut next = [2, 2];
    let mut pace = interval(Duration::from_millis(20));
    let mut curious = interval(Duration::from_millis(5));
    while next[0] <= *last.borrow() {
        pace.tick().await;
        let Some(mut client) = Client::connect(&endpoints).await else { continue };
        let ranges = [prefix(), model::KeyRange::between(PREFIX, "k/2")];
        let requests: Vec<_> = ranges
            .into_iter()
            .zip(next)
            .map(|(range, start_revision)| model::WatchRequest {
                range,
                start_revision,
                ..Default::default()
            })
            .collect();
        let streams = recorder.watches_on_one_stream(id, &requests);
        let Ok(Some(mut watch)) = timeout(REQUEST_TIMEOUT, client.watch(&requests)).await else { continue };
        loop {
            let message = tokio::select! {
                message = watch.next() => message,
                _ = curious.tick() => match watch.request_progress().await {
                    Some(()) => continue,
                    None => break,
                },
                changed = last.changed() => {
                    changed.unwrap();
                    if next[0] > *last.borrow() {
                        return;
                    }
                    continue;
                }
            };
            let Some((of, revision, messages)) = message else { break };
            let mut cancelled = false;
            for message in messages {
                cancelled |= matches!(message, WatchMessage::Cancelled { .. });
                let of = usize::try_from(of).ok();
                if let (Some(of), WatchMessage::Events { events, .. }) = (of, &message) {
                    next[of] = events.last().expect("not empty").kv.mod_revision + 1;
                }
                for (number, stream) in streams.iter().enumerate() {
                    // What is of no watch, -1, is for all.
                    if of.is_none_or(|of| of == number) {
                        recorder.watched(*stream, revision, message.clone());
                    }
                }
            }
            if next[0] > *last.borrow() {
                return;
            }
            if cancelled {
                break;
            }
        }
    }
}

fn prefix() -> model::KeyRange {
    model::KeyRange::between(PREFIX, "k0")
}

fn put_request(key: &str, value: &str) -> model::PutRequest {
    model::PutRequest { key: key.into(), value: value.into(), ..Default::default() }
}
