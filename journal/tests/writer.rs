//! The writer's thread, on a real directory and on a simulated disk. No test waits for a time; they wait for events.
#![allow(clippy::unwrap_used, reason = "a helper of tests may stop the test")]

mod common;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, mpsc},
    thread,
};

use bytes::Bytes;
use common::*;
use journal::{
    Batch, Disk, Error, Event, Journal, Lsn, Options, RealDisk, Record, Recovered, SimDisk, Ticket, Writer,
};

fn record(group: u64, ticket: u64, len: usize) -> Record {
    Record {
        label: Bytes::from(format!("{group}/{ticket}")),
        payload: vec![Bytes::from(payload(group * 1_000_000 + ticket, len))],
    }
}

fn batch(group: u64, ticket: u64, lens: &[usize]) -> Batch {
    let records = lens.iter().map(|len| record(group, ticket, *len)).collect();
    Batch { group, ticket: Ticket(ticket), records }
}

/// A writer whose events come out of a channel.
fn spawn<D>(disk: D, options: Options) -> (Writer<D>, mpsc::Receiver<Event>)
where
    D: Disk + Send + 'static,
    D::File: Send,
{
    let (journal, ..) = Journal::open(disk, options, &mut |_| {}).unwrap();
    let (sender, events) = mpsc::channel();
    (Writer::spawn(journal, move |event| drop(sender.send(event))).unwrap(), events)
}

fn next_completed(events: &mpsc::Receiver<Event>) -> (u64, Ticket, Lsn) {
    loop {
        match events.recv().unwrap() {
            Event::Completed { group, ticket, lsn } => return (group, ticket, lsn),
            Event::Synced { .. } | Event::Full(_) | Event::DescriptorsShort(_) => {}
            Event::Fenced(error) => panic!("{error}"),
        }
    }
}

#[test]
fn concurrent_appenders_share_syncs_and_lose_nothing() {
    const THREADS: u64 = 8;
    const PER_THREAD: u64 = 300;
    let dir = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 1 << 20, ..options() };
    let (journal, ..) =
        Journal::open(RealDisk::open(dir.path()).unwrap(), options.clone(), &mut |_| {}).unwrap();
    let completed: Arc<Mutex<Vec<(u64, u64, Lsn)>>> = Arc::default();
    let seen = Arc::clone(&completed);
    let writer = Writer::spawn(journal, move |event| match event {
        Event::Completed { group, ticket, lsn } => seen.lock().unwrap().push((group, ticket.0, lsn)),
        Event::Synced { records, .. } => assert!(records > 0),
        Event::Full(_) | Event::DescriptorsShort(_) => panic!("the disk is not full"),
        Event::Fenced(error) => panic!("{error}"),
    })
    .unwrap();
    thread::scope(|scope| {
        for group in 0..THREADS {
            let writer = &writer;
            scope.spawn(move || {
                for ticket in 0..PER_THREAD {
                    let lens = [ticket as usize * 7 % 900, 10];
                    writer.append(batch(group, ticket, &lens[..1 + (ticket % 2) as usize])).unwrap();
                    if ticket % 50 == 49 {
                        writer.set_floor(group, Lsn(1));
                    }
                }
            });
        }
    });
    let stats_before_end = writer.stats();
    let journal = writer.close().unwrap();
    let stats = journal.stats();
    assert_eq!(stats.durable, Lsn(THREADS * PER_THREAD * 3 / 2));
    assert!(stats_before_end.records <= stats.durable.0);
    drop(journal);

    let completed = completed.lock().unwrap();
    assert_eq!(completed.len() as u64, THREADS * PER_THREAD);
    assert!(completed.windows(2).all(|pair| pair[0].2 < pair[1].2), "completed in the order of the log");
    let mut tickets: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for (group, ticket, _) in completed.iter() {
        tickets.entry(*group).or_default().push(*ticket);
    }
    for group in 0..THREADS {
        assert_eq!(tickets[&group], (0..PER_THREAD).collect::<Vec<_>>());
    }
    let (_, report, recovered) = open(RealDisk::open(dir.path()).unwrap(), options).unwrap();
    assert!(report.damage.is_empty());
    let mut expected: BTreeMap<u64, Vec<Record>> = BTreeMap::new();
    for group in 0..THREADS {
        for ticket in 0..PER_THREAD {
            let lens = [ticket as usize * 7 % 900, 10];
            let records = lens[..1 + (ticket % 2) as usize].iter().map(|len| record(group, ticket, *len));
            expected.entry(group).or_default().extend(records);
        }
    }
    let mut found: BTreeMap<u64, Vec<Record>> = BTreeMap::new();
    for item in recovered {
        let Recovered::Record { group, label, payload, .. } = item else { panic!("{item:?}") };
        found.entry(group).or_default().push(Record { label, payload: vec![payload] });
    }
    assert_eq!(found, expected);
}

#[test]
fn what_is_handed_in_meanwhile_shares_one_sync() {
    let disk = SimDisk::new(1 << 30);
    let (journal, ..) = Journal::open(disk.clone(), options(), &mut |_| {}).unwrap();
    // The callback of the first completion blocks the thread until fifty more are handed in.
    let (go, gate) = mpsc::channel::<()>();
    let (sender, events) = mpsc::channel();
    let writer = Writer::spawn(journal, move |event| {
        let first = matches!(event, Event::Completed { ticket: Ticket(0), .. });
        sender.send(event).unwrap();
        if first {
            gate.recv().unwrap();
        }
    })
    .unwrap();
    writer.append(batch(1, 0, &[10])).unwrap();
    assert_eq!(next_completed(&events), (1, Ticket(0), Lsn(1)));
    for ticket in 1..=50 {
        writer.append(batch(1, ticket, &[10])).unwrap();
    }
    go.send(()).unwrap();
    let next = events.iter().find(|event| matches!(event, Event::Synced { .. }));
    assert!(matches!(next, Some(Event::Synced { records: 50, bytes: 500, .. })), "{next:?}");
    for ticket in 1..=50 {
        assert_eq!(next_completed(&events), (1, Ticket(ticket), Lsn(ticket + 1)));
    }
}

#[test]
fn an_empty_batch_completes_after_what_was_handed_in_before() {
    let (writer, events) = spawn(SimDisk::new(1 << 30), options());
    writer.append(batch(1, 0, &[])).unwrap();
    assert_eq!(next_completed(&events), (1, Ticket(0), Lsn(0)));
    writer.append(batch(1, 1, &[10, 20])).unwrap();
    writer.append(batch(2, 2, &[])).unwrap();
    assert_eq!(next_completed(&events), (1, Ticket(1), Lsn(2)));
    assert_eq!(next_completed(&events), (2, Ticket(2), Lsn(2)));
}

#[test]
fn too_large_a_record_is_refused_at_the_door() {
    let (writer, events) = spawn(SimDisk::new(1 << 30), options());
    let mut long = batch(1, 0, &[10, 10]);
    long.records[1].label = Bytes::from(vec![0; 65]);
    assert!(matches!(writer.append(long), Err(Error::TooLarge { .. })));
    writer.append(batch(1, 1, &[10])).unwrap();
    assert_eq!(next_completed(&events), (1, Ticket(1), Lsn(1)), "nothing of the refused batch was taken");
}

#[test]
fn a_failed_sync_fences_the_writer() {
    let disk = SimDisk::new(1 << 30);
    let (writer, events) = spawn(disk.clone(), options());
    writer.append(batch(1, 0, &[10])).unwrap();
    next_completed(&events);
    // The preparation of the next segment, in the background, may meet the failure first: either fences.
    disk.fail_syncs(u32::MAX);
    drop(writer.append(batch(1, 1, &[10])));
    loop {
        match events.recv().unwrap() {
            Event::Fenced(error) => {
                assert!(matches!(error, Error::Io { .. }), "{error}");
                break;
            }
            Event::Completed { .. } => panic!("nothing completes without a sync"),
            Event::Synced { .. } | Event::Full(_) | Event::DescriptorsShort(_) => {}
        }
    }
    assert!(writer.stats().fenced);
    assert!(matches!(writer.append(batch(1, 2, &[10])), Err(Error::Fenced)));
    assert!(matches!(writer.close(), Err(Error::Fenced)));
}

#[test]
fn a_full_disk_is_told_and_what_waits_completes_when_space_returns() {
    let disk = SimDisk::new(130 << 10);
    let (writer, events) = spawn(disk.clone(), options());
    let mut handed_in = 0;
    // Fills the first two segments.
    while !writer.is_full() {
        assert!(handed_in < 100, "two segments hold fewer");
        writer.append(batch(1, handed_in, &[3000])).unwrap();
        handed_in += 1;
        next_completed(&events);
    }
    for _ in 0..40 {
        writer.append(batch(1, handed_in, &[3000])).unwrap();
        handed_in += 1;
    }
    disk.set_capacity(1 << 30);
    let mut last = None;
    while last != Some(Ticket(handed_in - 1)) {
        let (_, ticket, _) = next_completed(&events);
        assert!(last.is_none_or(|last| ticket == Ticket(last.0 + 1)));
        last = Some(ticket);
    }
    let journal = writer.close().unwrap();
    assert_eq!(journal.durable(), Lsn(handed_in));
    assert!(!journal.stats().full);
}

/// What a flood of connections does to a process. The disk is well.
#[test]
fn without_descriptors_what_is_handed_in_waits_and_nothing_is_fenced() {
    let disk = SimDisk::new(1 << 30);
    let (writer, events) = spawn(disk.clone(), options());
    writer.append(batch(1, 0, &[3000])).unwrap();
    next_completed(&events);
    disk.fail_opens(u32::MAX);
    // More than the segments that are open hold.
    for ticket in 1..200 {
        writer.append(batch(1, ticket, &[3000])).unwrap();
    }
    let mut completed = 0;
    let mut next = || match events.recv().unwrap() {
        Event::Completed { ticket, .. } => {
            completed = ticket.0;
            None
        }
        Event::Synced { .. } => None,
        Event::DescriptorsShort(short) => Some((short, completed)),
        Event::Full(_) => panic!("the disk has room"),
        Event::Fenced(error) => panic!("the disk is not to blame: {error}"),
    };
    let (short, completed_before) = std::iter::from_fn(|| Some(next())).flatten().next().unwrap();
    assert!(short && completed_before < 199, "{completed_before}");
    assert!(!writer.stats().fenced && !writer.is_full());

    disk.fail_opens(0);
    let (short, _) = std::iter::from_fn(|| Some(next())).flatten().next().unwrap();
    assert!(!short);
    assert_eq!(writer.close().unwrap().durable(), Lsn(200));
}

#[test]
fn closing_on_a_full_disk_says_so() {
    let disk = SimDisk::new(70 << 10);
    let (writer, events) = spawn(disk, options());
    writer.append(batch(1, 0, &[3000])).unwrap();
    next_completed(&events);
    for ticket in 1..60 {
        writer.append(batch(1, ticket, &[3000])).unwrap();
    }
    assert!(matches!(writer.close(), Err(Error::Full { .. })));
    assert!(events.iter().any(|event| matches!(event, Event::Full(true))));
}

#[test]
fn dropping_the_handle_finishes_what_was_handed_in() {
    let disk = SimDisk::new(1 << 30);
    let (writer, events) = spawn(disk.clone(), options());
    for ticket in 0..100 {
        writer.append(batch(ticket % 3, ticket, &[100])).unwrap();
    }
    drop(writer);
    let completed = events.iter().filter(|event| matches!(event, Event::Completed { .. })).count();
    assert_eq!(completed, 100);
    disk.crash(&mut |_| false);
    let (_, _, recovered) = open(disk, options()).unwrap();
    assert_eq!(recovered.len(), 100);
}

#[test]
fn floors_given_to_the_writer_recycle_segments() {
    let disk = SimDisk::new(400 << 10);
    let (writer, events) = spawn(disk.clone(), options());
    // Ten times what the disk holds.
    for ticket in 0..1000 {
        writer.append(batch(1, ticket, &[3000])).unwrap();
        let (_, _, lsn) = next_completed(&events);
        writer.set_floor(1, lsn);
    }
    writer.append(batch(2, 0, &[10])).unwrap();
    next_completed(&events);
    writer.remove_group(2);
    let journal = writer.close().unwrap();
    assert!(journal.stats().oldest > Lsn(900));
}

#[test]
fn a_disk_far_behind_is_told_before_anything_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 8 << 20, ..options() };
    let (journal, ..) = Journal::open(RealDisk::open(dir.path()).unwrap(), options, &mut |_| {}).unwrap();
    // A rendezvous: the writer's thread goes on only as far as the test follows its events.
    let (sender, events) = mpsc::sync_channel(0);
    let writer = Writer::spawn(journal, move |event| drop(sender.send(event))).unwrap();
    let payload = Bytes::from(vec![7; 1 << 20]);
    let record = Record { label: Bytes::from_static(b"label"), payload: vec![payload] };
    let append = |ticket| {
        let batch = Batch { group: 1, ticket: Ticket(ticket), records: vec![record.clone()] };
        writer.append(batch).unwrap();
    };
    let mut last = 0;
    while !writer.is_crowded() {
        last += 1;
        append(last);
    }
    assert_eq!(last << 20, journal::BACKLOG_BYTES_CROWDED + (1 << 20));
    while next_completed(&events).1 != Ticket(last) {}
    assert!(!writer.is_crowded());
    drop(events);
    writer.close().unwrap();
}

#[test]
fn a_disk_that_hangs_is_seen_while_it_hangs() {
    let disk = HangingDisk::new(SimDisk::new(1 << 30));
    let (writer, events) = spawn(disk.clone(), options());
    writer.append(batch(1, 0, &[10])).unwrap();
    next_completed(&events);
    disk.hang(true);
    writer.append(batch(1, 1, &[10])).unwrap();
    writer.append(batch(1, 2, &[])).unwrap();
    assert_eq!(writer.stats().outstanding, 2);
    let syncs = writer.stats().syncs;
    disk.hang(false);
    while next_completed(&events).1 != Ticket(2) {}
    assert!(writer.stats().syncs > syncs);
    assert_eq!(writer.stats().outstanding, 0);
}

#[test]
fn a_hanging_disk_takes_all_that_its_groups_hand_in() {
    let disk = HangingDisk::new(SimDisk::new(1 << 30));
    let options = Options { segment_bytes: 8 << 20, batch_bytes_max: 1 << 20, ..options() };
    let (writer, events) = spawn(disk.clone(), options);
    disk.hang(true);
    // Past what is crowded, five times over.
    let payload = Bytes::from(vec![7; 1 << 20]);
    let last = 5 * (journal::BACKLOG_BYTES_CROWDED >> 20);
    for ticket in 1..=last {
        let record = Record { label: Bytes::from_static(b"label"), payload: vec![payload.clone()] };
        writer.append(Batch { group: 1, ticket: Ticket(ticket), records: vec![record] }).unwrap();
    }
    assert!(writer.is_crowded());
    assert_eq!(writer.stats().outstanding, last);
    disk.hang(false);
    while next_completed(&events).1 != Ticket(last) {}
    writer.close().unwrap();
}
