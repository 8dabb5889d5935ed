//! What a batch costs on this machine: `cargo bench -p journal [-- directory]`. The directory decides which disk is
//! measured; without one it is a temporary directory below the target folder.

use std::{
    env, fs,
    path::PathBuf,
    sync::mpsc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use journal::{Batch, Event, Identity, Journal, Lsn, Options, RealDisk, Record, Ticket, Writer};
use rustix::time::{ClockId, clock_gettime};

const LABEL: [u8; 40] = [7; 40];
const ROUNDS: usize = 2000;

fn main() {
    let base =
        env::args().skip(1).find(|arg| !arg.starts_with("--")).map_or_else(default_base, PathBuf::from);
    fs::create_dir_all(&base).expect("the directory can be made");
    let dir = tempfile::tempdir_in(&base).expect("the directory takes files");
    println!("{}", dir.path().display());

    println!("\none batch at a time, one record in each: {ROUNDS} batches");
    println!(
        "{:>12} {:>12} {:>9} {:>9} {:>9} {:>9} {:>12}",
        "payload B", "batches/s", "write50", "sync50", "sync99", "sync99.9", "CPU us/batch"
    );
    for len in [256, 4 << 10, 64 << 10] {
        one_at_a_time(&dir.path().join(format!("one-{len}")), len);
    }

    println!("\ngroup commit through the writer: 64 groups, each with one batch under way");
    println!(
        "{:>12} {:>12} {:>12} {:>12} {:>14}",
        "payload B", "records/s", "MB/s", "per sync", "CPU us/append"
    );
    for len in [256, 4 << 10, 64 << 10] {
        grouped(&dir.path().join(format!("grouped-{len}")), len);
    }

    println!("\nrestart");
    restart(&dir.path().join("restart"));
}

fn default_base() -> PathBuf {
    PathBuf::from(env::var_os("CARGO_TARGET_TMPDIR").unwrap_or_else(|| env::temp_dir().into_os_string()))
}

fn options() -> Options {
    Options { identity: Identity { cluster: 1, node: 1, salt: 1 }, ..Options::default() }
}

fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn open(dir: &PathBuf) -> Journal<RealDisk> {
    let disk = RealDisk::open(dir).expect("the directory can be opened");
    let (mut journal, _) = Journal::open(disk, options(), &mut |_| {}).expect("a new journal opens");
    // The zeros of the first segments are the price of a first start, not of a batch.
    while journal.maintain().expect("there is room") {}
    journal
}

fn percentile(sorted: &[Duration], per_mille: usize) -> String {
    let at = (sorted.len() * per_mille / 1000).min(sorted.len() - 1);
    format!("{} us", sorted[at].as_micros())
}

fn one_at_a_time(dir: &PathBuf, len: usize) {
    let mut journal = open(dir);
    let payload = Bytes::from(vec![0xA5; len]);
    let (mut writes, mut syncs) = (Vec::with_capacity(ROUNDS), Vec::with_capacity(ROUNDS));
    let (started, cpu_before) = (Instant::now(), cpu());
    for round in 0..ROUNDS {
        journal.append(1, &LABEL, std::slice::from_ref(&payload)).expect("the record is short");
        let begun = Instant::now();
        journal.flush().expect("the disk works");
        let written = Instant::now();
        journal.sync().expect("the disk works");
        writes.push(written - begun);
        syncs.push(written.elapsed());
        journal.set_floor(1, Lsn(round as u64));
        journal.maintain().expect("there is room");
    }
    let (elapsed, used) = (started.elapsed(), cpu() - cpu_before);
    writes.sort_unstable();
    syncs.sort_unstable();
    println!(
        "{len:>12} {:>12.0} {:>9} {:>9} {:>9} {:>9} {:>12.1}",
        ROUNDS as f64 / elapsed.as_secs_f64(),
        percentile(&writes, 500),
        percentile(&syncs, 500),
        percentile(&syncs, 990),
        percentile(&syncs, 999),
        used.as_secs_f64() * 1e6 / ROUNDS as f64,
    );
}

fn grouped(dir: &PathBuf, len: usize) {
    const GROUPS: u64 = 64;
    let total: u64 = if len > 16 << 10 { 8_000 } else { 40_000 };
    let (sender, events) = mpsc::channel();
    let writer = Writer::spawn(open(dir), move |event| drop(sender.send(event))).expect("a thread starts");
    let payload = Bytes::from(vec![0xA5; len]);
    let batch = |group: u64, ticket: u64| Batch {
        group,
        ticket: Ticket(ticket),
        records: vec![Record { label: Bytes::from_static(&LABEL), payload: vec![payload.clone()] }],
    };
    let (started, cpu_before) = (Instant::now(), cpu());
    for group in 0..GROUPS {
        writer.append(batch(group, group)).expect("the writer runs");
    }
    let (mut handed_in, mut completed) = (GROUPS, 0);
    while completed < total {
        match events.recv().expect("the writer runs") {
            Event::Completed { group, lsn, .. } => {
                completed += 1;
                writer.set_floor(group, lsn);
                if handed_in < total {
                    writer.append(batch(group, handed_in)).expect("the writer runs");
                    handed_in += 1;
                }
            }
            Event::Synced { .. } => {}
            Event::Full(_) | Event::DescriptorsShort(_) => panic!("the disk is full"),
            Event::Fenced(error) => panic!("{error}"),
        }
    }
    let (elapsed, used) = (started.elapsed(), cpu() - cpu_before);
    let syncs = writer.stats().syncs.max(1);
    drop(writer.close().expect("nothing is left to write"));
    println!(
        "{len:>12} {:>12.0} {:>12.1} {:>12.1} {:>14.2}",
        total as f64 / elapsed.as_secs_f64(),
        (total * len as u64) as f64 / 1e6 / elapsed.as_secs_f64(),
        total as f64 / syncs as f64,
        used.as_secs_f64() * 1e6 / total as f64,
    );
}

fn restart(dir: &PathBuf) {
    let mut journal = open(dir);
    let payload = Bytes::from(vec![0xA5; 256]);
    for _ in 0..500 {
        for group in 0..1000 {
            journal.append(group, &LABEL, std::slice::from_ref(&payload)).expect("the record is short");
        }
        while journal.has_staged() {
            journal.flush().expect("the disk works");
        }
    }
    journal.sync().expect("the disk works");
    drop(journal);
    let started = Instant::now();
    let disk = RealDisk::open(dir).expect("the directory can be opened");
    let mut records = 0u64;
    let (_, report) = Journal::open(disk, options(), &mut |_| records += 1).expect("the journal opens");
    let elapsed = started.elapsed();
    println!(
        "{records} records of 256 B in {} segments: {:.0} ms, {:.0} MB/s",
        report.segments,
        elapsed.as_secs_f64() * 1e3,
        report.bytes_read as f64 / 1e6 / elapsed.as_secs_f64(),
    );
}
