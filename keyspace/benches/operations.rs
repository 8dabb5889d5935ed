//! What the operations of the state machine cost: `cargo bench -p keyspace`. Prints CPU time per operation where the
//! system tells it (Linux), else wall-clock time, which wants an idle core.
//!
//! The budget: a put in a batch at most 1.6 µs, decoding included; a read of one key about 0.5 µs.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use keyspace::*;

const KEYS: u64 = 200_000;
const VALUE_LEN: usize = 256;

fn main() {
    let keys_arg = std::env::args().skip(1).find_map(|arg| arg.parse().ok());
    let keys: u64 = keys_arg.unwrap_or(KEYS);
    println!("{keys} keys of 24 bytes, values of {VALUE_LEN} bytes");

    let mut bench = Bench::new(keys);
    bench.puts("put of a new key");
    bench.puts("put over an existing key, no compaction");
    bench.gets();
    bench.ranges();
    bench.txns();
    bench.history();
    bench.snapshot();
    bench.compact();
    bench.puts("put over an existing key, sweeping");
    bench.removals();
}

struct Bench {
    state: Keyspace,
    session: SessionId,
    slot: u64,
    seq: u64,
    keys: u64,
    random: u64,
}

impl Bench {
    fn new(keys: u64) -> Bench {
        let limits = Limits { quota_bytes: u64::MAX, ..Limits::default() };
        let mut state = Keyspace::new(Options { limits, ..Options::default() });
        let mut effects = Effects::new();
        state.apply(1, 0, Command::OpenSession { nonce: 1 }, &mut effects);
        let Ok(Reply::SessionOpened { session, .. }) = effects.replies[0].outcome else {
            unreachable!("a session opens")
        };
        Bench { state, session, slot: 1, seq: 0, keys, random: 1 }
    }

    fn random_key(&mut self) -> Bytes {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        key((self.random >> 33) % self.keys)
    }

    /// Operations in encoded batches, as the log brings them.
    fn batches(&mut self, ops: impl Iterator<Item = Op>) -> Vec<Vec<Bytes>> {
        let mut batches = vec![Vec::new()];
        for op in ops {
            self.seq += 1;
            let seq = self.seq;
            let mut bytes = BytesMut::new();
            let command = Command::write(self.session, seq, seq.saturating_sub(64), Route::FIRST, op);
            command.encode(&mut bytes);
            match batches.last_mut() {
                Some(batch) if batch.len() < 64 => batch.push(bytes.freeze()),
                Some(_) | None => batches.push(vec![bytes.freeze()]),
            }
        }
        batches
    }

    fn apply(&mut self, what: &str, batches: Vec<Vec<Bytes>>) {
        let count: usize = batches.iter().map(Vec::len).sum();
        let mut effects = Effects::new();
        let start = Clock::start();
        for batch in batches {
            self.slot += 1;
            for (index, bytes) in batch.into_iter().enumerate() {
                let command = Command::decode(bytes).expect("it was encoded here");
                self.state.apply(self.slot, index as u32, command, &mut effects);
            }
            assert!(effects.replies.iter().all(|reply| reply.outcome.is_ok()), "all are granted");
            black_box(&effects);
            effects.clear();
        }
        report(what, start, count);
    }

    fn puts(&mut self, what: &str) {
        let value = Bytes::from(vec![b'v'; VALUE_LEN]);
        // Every key once, in no order of keys.
        let keys = self.keys;
        let ops = (0..keys).map(|i| Op::Put(Put::new(key(i.wrapping_mul(7_919) % keys), value.clone())));
        let ops: Vec<_> = ops.collect();
        let batches = self.batches(ops.into_iter());
        self.apply(what, batches);
    }

    fn gets(&mut self) {
        let queries: Vec<_> = (0..200_000)
            .map(|_| Query::Range(RangeRequest::new(KeyRange::single(self.random_key()))))
            .collect();
        let start = Clock::start();
        for query in &queries {
            black_box(self.state.query(query)).expect("it is granted");
        }
        report("get of one key", start, queries.len());
    }

    fn ranges(&mut self) {
        let all = RangeRequest::new(KeyRange::all());
        let start = Clock::start();
        black_box(self.state.query(&Query::Range(all.clone()))).expect("it is granted");
        report("range, per key", start, self.keys as usize);
        let start = Clock::start();
        let count = RangeRequest { count_only: true, ..all.clone() };
        black_box(self.state.query(&Query::Range(count))).expect("it is granted");
        report("count, per key", start, self.keys as usize);
        let pages = 20;
        let start = Clock::start();
        for _ in 0..pages {
            let page = RangeRequest { limit: 500, ..all.clone() };
            black_box(self.state.query(&Query::Range(page))).expect("it is granted");
        }
        report("page of 500 with the count of all, per page", start, pages);
    }

    fn txns(&mut self) {
        let count = self.keys.min(100_000);
        let ops: Vec<_> = (0..count)
            .map(|_| {
                let key = self.random_key();
                let compare = Compare {
                    range: KeyRange::single(key.clone()),
                    result: CompareResult::Greater,
                    target: CompareTarget::Mod(0),
                };
                Op::Txn(Txn {
                    compare: vec![compare],
                    success: vec![TxnOp::Put(Put::new(key.clone(), vec![b'w'; VALUE_LEN]))],
                    failure: vec![TxnOp::Range(RangeRequest::new(KeyRange::single(key)))],
                })
            })
            .collect();
        let batches = self.batches(ops.into_iter());
        self.apply("compare-and-put", batches);
    }

    fn history(&mut self) {
        let limits = PageLimits { bytes: 1 << 20, events: 1000, looked_at: 20_000 };
        let (mut next, mut events) = (FeedPlace::from(Revision::FIRST), 0);
        let start = Clock::start();
        while next.revision <= self.state.resolved().revision() {
            let page =
                self.state.history(&KeyRange::all(), true, next, limits).expect("nothing is compacted");
            events += page.revisions.iter().map(|revision| revision.events.len()).sum::<usize>();
            next = page.next;
        }
        report("watch feed from the beginning, per event", start, events);
        let nobody = KeyRange::prefix("nobody/");
        let (mut next, mut pages) = (FeedPlace::from(Revision::FIRST), 0);
        let start = Clock::start();
        while next.revision <= self.state.resolved().revision() {
            next = self.state.history(&nobody, true, next, limits).expect("nothing is compacted").next;
            pages += 1;
        }
        report("watch feed without a match, per page", start, pages);
    }

    fn snapshot(&mut self) {
        let (mut snapshot, mut bytes, mut slowest) = (self.state.snapshot(), 0, 0.0_f64);
        let mut slices = Vec::new();
        let start = Clock::start();
        loop {
            let slice_start = Clock::start();
            let Some(slice) = snapshot.next_slice(&self.state, 256 * 1024) else { break };
            slowest = slowest.max(slice_start.elapsed().as_secs_f64());
            bytes += slice.len();
            slices.push(slice);
        }
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{:<55} {:8.0} MB/s, slowest of {} slices {:.2} ms",
            "snapshot",
            bytes as f64 / seconds / 1e6,
            slices.len(),
            slowest * 1e3
        );
        let start = Clock::start();
        let mut restore = Restore::new();
        for slice in slices {
            restore.push(slice).expect("the slice is the snapshot's");
        }
        let restored = restore.finish().expect("the snapshot is whole");
        println!("{:<55} {:8.0} MB/s", "restore", bytes as f64 / start.elapsed().as_secs_f64() / 1e6);
        assert_eq!(restored.digest(), self.state.digest(), "the state is restored");
    }

    fn compact(&mut self) {
        let revision = self.state.resolved().revision().0;
        let batches = self.batches([Op::Compact { revision }].into_iter());
        self.apply("compaction, in all", batches);
        let start = Clock::start();
        let mut records = 0;
        while records < self.keys as usize && self.state.sweep(1000) {
            records += 1000;
        }
        report("sweep, per record", start, records);
    }

    /// What is applied in one piece however many keys it concerns.
    fn removals(&mut self) {
        let delete = DeleteRange { range: KeyRange::all(), prev_kv: false };
        let batches = self.batches([Op::DeleteRange(delete)].into_iter());
        self.apply("deletion of all keys, in all", batches);
        let (lease, keys) = (LeaseId(1), self.keys);
        let grant = Op::LeaseGrant { id: lease, ttl: 60 };
        let puts = (0..keys).map(|i| Op::Put(Put { lease, ..Put::new(key(i), vec![b'v'; VALUE_LEN]) }));
        let ops: Vec<_> = puts.collect();
        let batches = self.batches([grant].into_iter());
        self.apply("grant of a lease", batches);
        let batches = self.batches(ops.into_iter());
        self.apply("put of a key under a lease", batches);
        let batches = self.batches([Op::LeaseRevoke { id: lease }].into_iter());
        self.apply("end of a lease with all keys, in all", batches);
    }
}

/// The time that this thread, the only one, has run since the start.
#[derive(Clone, Copy)]
struct Clock {
    wall: Instant,
    cpu: Option<Duration>,
}

impl Clock {
    fn start() -> Clock {
        Clock { wall: Instant::now(), cpu: cpu_time() }
    }

    fn elapsed(self) -> Duration {
        match (self.cpu, cpu_time()) {
            (Some(start), Some(now)) => now.saturating_sub(start),
            (None, _) | (_, None) => self.wall.elapsed(),
        }
    }
}

/// The first number of /proc/thread-self/schedstat: nanoseconds on the processor.
fn cpu_time() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

fn key(i: u64) -> Bytes {
    Bytes::from(format!("/registry/pods/{i:09}"))
}

fn report(what: &str, start: Clock, count: usize) {
    let micros = start.elapsed().as_secs_f64() * 1e6 / count.max(1) as f64;
    println!("{what:<55} {micros:8.3} µs");
}
