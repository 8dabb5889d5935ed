//! Processes that stop, in order and otherwise, under callers who wait for their answers: how long the longest of them
//! waits, and that nobody is told of a failure. The times are printed, not judged: they are the machine's, too.
//!
//! With `GAIOS_STOPS=20` there are as many rounds, for a median worth writing down.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sim::model;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::client::Client;
use crate::processes::{Cluster, PATIENCE};

/// A request of a retrying caller that has failed for so long is lost.
const RETRIES_MAX: Duration = Duration::from_secs(30);

/// Callers that put without a pause, each a key of its own.
pub(crate) struct Callers {
    state: Arc<State>,
    tasks: JoinSet<()>,
}

struct State {
    begun: Instant,
    stop: AtomicBool,
    /// Whether a failed request is made again.
    retry: bool,
    answered: Vec<AtomicU64>,
    /// Told of each.
    answer: Notify,
    /// The longest time between two answers of one caller, in microseconds, since it was asked for last.
    longest_us: AtomicU64,
    failed: AtomicU64,
    lost: AtomicU64,
}

impl Callers {
    pub(crate) async fn start(endpoints: &[String], count: usize, retry: bool) -> Callers {
        let state = Arc::new(State {
            begun: Instant::now(),
            stop: AtomicBool::new(false),
            retry,
            answered: (0..count).map(|_| AtomicU64::new(0)).collect(),
            answer: Notify::new(),
            longest_us: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        });
        let mut tasks = JoinSet::new();
        // Some connections, each with several callers.
        let mut clients = Vec::new();
        for _ in 0..count.div_ceil(8) {
            clients.push(Client::connect(endpoints).await.expect("the gateways serve"));
        }
        for caller in 0..count {
            tasks.spawn(Arc::clone(&state).call(caller, clients[caller % clients.len()].clone()));
        }
        let callers = Callers { state, tasks };
        callers.each_answered().await;
        callers.longest_wait();
        callers
    }

    /// Waits until every caller has had an answer to a request that was made after this was called.
    pub(crate) async fn each_answered(&self) {
        let goals: Vec<u64> =
            self.state.answered.iter().map(|count| count.load(Ordering::Relaxed) + 2).collect();
        let all = async {
            loop {
                // Before the look, so that no answer after it is missed.
                let answer = self.state.answer.notified();
                let mut counts = goals.iter().zip(&self.state.answered);
                if counts.all(|(goal, count)| count.load(Ordering::Relaxed) >= *goal) {
                    return;
                }
                answer.await;
            }
        };
        timeout(PATIENCE, all).await.unwrap_or_else(|_| panic!("no answers for {PATIENCE:?}"));
    }

    /// The longest that a caller has waited since this was called last.
    fn longest_wait(&self) -> Duration {
        Duration::from_micros(self.state.longest_us.swap(0, Ordering::Relaxed))
    }

    fn failed(&self) -> u64 {
        self.state.failed.load(Ordering::Relaxed)
    }

    pub(crate) fn lost(&self) -> u64 {
        self.state.lost.load(Ordering::Relaxed)
    }

    pub(crate) async fn finish(mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
    }
}

impl State {
    async fn call(self: Arc<Self>, caller: usize, mut client: Client) {
        let request = model::PutRequest {
            key: format!("stops/{caller}").into_bytes(),
            value: b"value".to_vec(),
            ..Default::default()
        };
        let mut last = self.begun.elapsed();
        while !self.stop.load(Ordering::Relaxed) {
            let made = Instant::now();
            while client.put(request.clone()).await.is_none() {
                self.failed.fetch_add(1, Ordering::Relaxed);
                if !self.retry || made.elapsed() > RETRIES_MAX {
                    self.lost.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                // A client's back-off.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let now = self.begun.elapsed();
            let waited = u64::try_from((now - last).as_micros()).unwrap_or(u64::MAX);
            self.longest_us.fetch_max(waited, Ordering::Relaxed);
            self.answered[caller].fetch_add(1, Ordering::Relaxed);
            self.answer.notify_waiters();
            last = now;
        }
    }
}

fn rounds() -> usize {
    std::env::var("GAIOS_STOPS").map_or(2, |rounds| rounds.parse().expect("GAIOS_STOPS is a number"))
}

fn told(what: &str, mut waits: Vec<Duration>) {
    waits.sort_unstable();
    let (median, longest) = (waits[waits.len() / 2], waits[waits.len() - 1]);
    println!(
        "{what}: the longest wait of a caller, {} times: median {median:.1?}, most {longest:.1?}",
        waits.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_told_of_a_leader_that_stops_or_dies() {
    let mut cluster = Cluster::start(3, 1);
    let callers = Callers::start(&cluster.endpoints(), 16, false).await;
    let (mut stopped, mut killed) = (Vec::new(), Vec::new());
    for round in 0..2 * rounds() {
        let leader = cluster.leader();
        callers.longest_wait();
        if round % 2 == 0 {
            assert!(cluster.replicas[leader].terminate(), "{}", cluster.logs());
        } else {
            cluster.replicas[leader].kill();
        }
        callers.each_answered().await;
        let waits = if round % 2 == 0 { &mut stopped } else { &mut killed };
        waits.push(callers.longest_wait());
        cluster.replicas[leader].start();
        cluster.replicas[leader].wait_until_ready();
        callers.each_answered().await;
        assert_eq!(callers.failed(), 0, "round {round}: {}", cluster.logs());
    }
    callers.finish().await;
    told("graceful stop of the leader", stopped);
    told("kill -9 of the leader", killed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_replacement_loses_no_request_of_a_retrying_client() {
    let mut cluster = Cluster::start(3, 2);
    let callers = Callers::start(&cluster.endpoints(), 64, true).await;
    let mut waits = Vec::new();
    for index in 0..3 {
        assert!(cluster.replicas[index].terminate(), "{}", cluster.logs());
        cluster.replicas[index].start();
        cluster.replicas[index].wait_until_ready();
        callers.each_answered().await;
        waits.push(callers.longest_wait());
    }
    println!("longest waits while nodes were replaced: {waits:.1?}");
    waits.clear();
    for index in 0..2 {
        assert!(cluster.gateways[index].terminate(), "{}", cluster.logs());
        cluster.gateways[index].start();
        cluster.gateways[index].wait_until_ready();
        callers.each_answered().await;
        waits.push(callers.longest_wait());
    }
    println!(
        "longest waits while gateways were replaced: {waits:.1?}, {} requests made again",
        callers.failed()
    );
    assert_eq!(callers.lost(), 0, "{}", cluster.logs());
    callers.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_change_while_running_is_taken_up_and_the_rest_refused_by_name() {
    let cluster = Cluster::start(1, 1);
    let gateway = &cluster.gateways[0];
    gateway.edit(|text| format!("{text}limits: {{max_txn_ops: 7}}\nlinks_per_node: 2\n"));
    gateway.signal(Signal::HUP);
    gateway.wait_for_log("`links_per_node` cannot change while running: restart");
    gateway.wait_for_log("limits.max_txn_ops");
    let replica = &cluster.replicas[0];
    replica.edit(|text| format!("{text}log: {{level: debug}}\n"));
    // Without a signal: it looks at the file by itself.
    replica.wait_for_log("log.level");
    replica.edit(|_| "role: replica\n".to_owned());
    replica.signal(Signal::HUP);
    replica.wait_for_log("the configuration is not taken up");
    assert_eq!(replica.get("/readyz").unwrap().0, 200);
}

/// Somebody else writes to the same disk all the time. `GAIOS_BUSY_S` says for how long, so that elections can be counted
/// which nothing but that has caused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_disk_fails_no_request() {
    let time =
        std::env::var("GAIOS_BUSY_S").map_or(3, |time| time.parse().expect("GAIOS_BUSY_S is a number"));
    let cluster = Cluster::start(3, 1);
    let elected = || cluster.replicas.iter().map(|replica| replica.log_lines("Leader")).sum::<usize>();
    let before = elected();
    let callers = Callers::start(&cluster.endpoints(), 64, false).await;
    let stop = Arc::new(AtomicBool::new(false));
    let hog = {
        let (stop, dir) = (Arc::clone(&stop), tempfile::tempdir().unwrap());
        std::thread::spawn(move || {
            let block = vec![7; 8 << 20];
            while !stop.load(Ordering::Relaxed) {
                let mut file = std::fs::File::create(dir.path().join("hog")).unwrap();
                file.write_all(&block).unwrap();
                file.sync_data().unwrap();
            }
        })
    };
    let end = Instant::now() + Duration::from_secs(time);
    while Instant::now() < end {
        callers.each_answered().await;
    }
    stop.store(true, Ordering::Relaxed);
    hog.join().unwrap();
    println!(
        "{time} s beside a busy disk: {} elections, {:.1?} the longest wait",
        elected() - before,
        callers.longest_wait()
    );
    assert_eq!(callers.failed(), 0, "{}", cluster.logs());
    callers.finish().await;
}
