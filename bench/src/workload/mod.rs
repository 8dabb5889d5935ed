//! The workloads.

mod closed_loop;
mod idle;
mod kv;
mod lease;
mod watch;

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use crate::connection::Connection;
use crate::endpoint::Endpoint;
use crate::recorder::Recorder;
use crate::{BenchError, Plan, Report, Target, Workload};

/// Runs one measurement from opening the connections to closing them.
pub async fn run(plan: &Plan, target: &Target) -> Result<Report, BenchError> {
    let recorder = Arc::new(Recorder::new(plan.limit));
    let (window, unanswered) = match plan.workload {
        Workload::Put => kv::puts(plan, target, &recorder).await?,
        Workload::Get | Workload::SerializableGet => kv::gets(plan, target, &recorder).await?,
        Workload::CompareAndPut => kv::compare_and_puts(plan, target, &recorder).await?,
        Workload::ConnectPutClose => kv::connect_put_closes(plan, target, &recorder).await?,
        Workload::Watch => watch::run(plan, target, &recorder).await?,
        Workload::IdleWatches => watch::idle(plan, target, &recorder).await?,
        Workload::Lease => lease::grants(plan, target, &recorder).await?,
        Workload::LeaseKeepAlive => lease::keep_alives(plan, target, &recorder).await?,
        Workload::IdleConnections => idle::run(plan, target, &recorder).await?,
    };
    Ok(Report::new(plan, target, &recorder, window, unanswered))
}

/// Opens `count` connections, spread over the endpoints.
async fn connect(target: &Target, count: usize) -> Result<Vec<Connection>, BenchError> {
    let mut connections = Vec::with_capacity(count);
    let endpoints = Endpoint::all_of(target)?;
    for (endpoint, url) in endpoints.iter().zip(&target.endpoints).cycle().take(count) {
        let connection = Connection::open(endpoint).await;
        connections.push(connection.map_err(|source| BenchError::Connect { endpoint: url.clone(), source })?);
    }
    Ok(connections)
}

/// `count` keys of equal length in one allocation.
fn keys(count: usize) -> Arc<[Bytes]> {
    const LENGTH: usize = "gaios-bench/00000000".len();
    let mut buffer = BytesMut::with_capacity(count * LENGTH);
    for index in 0..count {
        buffer.put_slice(format!("gaios-bench/{index:08}").as_bytes());
    }
    let buffer = buffer.freeze();
    (0..count).map(|index| buffer.slice(index * LENGTH..(index + 1) * LENGTH)).collect()
}

/// A value no compression can shrink.
fn value(size: usize) -> Bytes {
    let mut random = Random::new(0);
    (0..size).map(|_| random.next() as u8).collect()
}

/// xorshift64*: repeatable, and a few instructions per number.
struct Random(u64);

impl Random {
    fn new(seed: usize) -> Random {
        // The state must not be zero; multiplying by an odd number spreads neighbouring seeds.
        Random((seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    }

    fn pick<'a>(&mut self, from: &'a [Bytes]) -> &'a Bytes {
        &from[(self.next() % from.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_different_and_of_one_length() {
        let keys = keys(1000);
        assert_eq!(
            (&keys[0][..], &keys[999][..]),
            (&b"gaios-bench/00000000"[..], &b"gaios-bench/00000999"[..])
        );
        assert!(keys.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn random_keys_cover_the_key_space() {
        let keys = keys(16);
        let mut random = Random::new(7);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..1000 {
            seen.insert(random.pick(&keys).clone());
        }
        assert_eq!(seen.len(), 16);
    }

    #[test]
    fn values_have_their_size() {
        assert_eq!((value(0).len(), value(256).len()), (0, 256));
    }
}
