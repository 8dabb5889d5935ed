//! What shows only with many keys, many versions, or large values.

mod common;

use bytes::{Bytes, BytesMut};
use common::*;
use keyspace::*;

/// Applies without checking every invariant each time, which takes long on large states.
fn write(etcd: &mut Etcd, op: Op) -> Outcome {
    etcd.seq += 1;
    etcd.slot += 1;
    etcd.effects.clear();
    let command = Command::write(etcd.session, etcd.seq, etcd.seq - 1, Route::FIRST, op);
    etcd.state.apply(etcd.slot, 0, command, &mut etcd.effects);
    etcd.effects.replies[0].outcome.clone()
}

fn fill(etcd: &mut Etcd, keys: usize) {
    for key in 0..keys {
        write(etcd, Op::Put(put(&format!("{key:06}"), "1"))).expect("the put is granted");
    }
}

/// The events of a range from a revision on, page by page.
fn events(state: &Keyspace, range: &KeyRange, from: Revision) -> Vec<(Revision, usize)> {
    let (mut next, mut found) = (FeedPlace::from(from), Vec::<(Revision, usize)>::new());
    let limits = PageLimits { bytes: 4096, events: 100, looked_at: 1000 };
    while next.revision <= state.resolved().revision() {
        let page = state.history(range, true, next, limits).expect("nothing below is asked for");
        assert!(page.next > next && page.looked_at <= limits.looked_at);
        assert!(page.revisions.iter().map(|revision| revision.events.len()).sum::<usize>() <= limits.events);
        for RevisionEvents { revision, events } in page.revisions {
            match found.last_mut().filter(|(last, _)| *last == revision) {
                Some((_, count)) => *count += events.len(),
                None => found.push((revision, events.len())),
            }
        }
        next = page.next;
    }
    found
}

#[test]
fn a_revision_of_thousands_of_events_is_whole_in_the_feed() {
    let mut etcd = Etcd::new();
    for keys in [1000, 1023, 1024, 1025, 3000] {
        fill(&mut etcd, keys);
        let before = etcd.state.resolved().revision();
        write(&mut etcd, Op::DeleteRange(DeleteRange { range: KeyRange::all(), prev_kv: false })).unwrap();
        let deleted = etcd.state.resolved().revision();
        write(&mut etcd, Op::Put(put("x", "1"))).unwrap();
        let last = etcd.state.resolved().revision();
        assert_eq!(etcd.effects.revisions.len(), 1);
        let all = KeyRange::all();
        let expected = events(&etcd.state, &all, before);
        assert_eq!(expected[1].0, deleted);
        assert!(expected[1].1 >= keys);
        assert_eq!(events(&etcd.state, &all, deleted), expected[1..]);
        assert_eq!(events(&etcd.state, &all, last), [(last, 1)]);
        // From a revision within, each in turn.
        for from in
            [before.0 - 1500, before.0 - 1024, before.0 - 1023].map(Revision).into_iter().filter(|r| r.0 > 1)
        {
            let found = events(&etcd.state, &all, from);
            assert_eq!(found[0].0, from);
            assert_eq!(found.len() as i64, last.0 - from.0 + 1);
        }
        write(&mut etcd, Op::DeleteRange(DeleteRange { range: all, prev_kv: false })).unwrap();
    }
    etcd.state.check_invariants();
}

#[test]
fn a_hot_key_is_compacted_in_steps_and_reads_stay_right() {
    let mut etcd = Etcd::new();
    for i in 2..5_002 {
        write(&mut etcd, Op::Put(put("hot", &i.to_string()))).unwrap();
    }
    for compact in [2, 3, 1000, 1024, 1025, 4000, 5001] {
        write(&mut etcd, Op::Compact { revision: compact }).unwrap();
        while etcd.state.sweep(100) {
            let at = etcd.get_at("hot", compact).unwrap().unwrap();
            assert_eq!(text(&at.value), compact.to_string());
        }
        etcd.state.check_invariants();
        assert_eq!(events(&etcd.state, &one("hot"), Revision(compact)).len() as i64, 5_002 - compact);
        let restored = etcd.restored();
        assert_eq!(restored.digest(), etcd.state.digest());
        assert_eq!(restored.size_bytes(), etcd.state.size_bytes());
    }
    let value = etcd.get("hot").unwrap().value;
    assert_eq!(etcd.state.size_bytes(), PUT_OVERHEAD_BYTES + 3 + value.len() as u64);
}

#[test]
fn a_narrow_watch_in_a_long_history_goes_forward_page_by_page() {
    let mut etcd = Etcd::new();
    fill(&mut etcd, 50_000);
    write(&mut etcd, Op::Put(put("z", "1"))).unwrap();
    let (mut next, mut pages, mut found) = (FeedPlace::from(Revision(2)), 0, 0);
    let limits = PageLimits { looked_at: 20_000, ..PageLimits::NONE };
    while next.revision <= etcd.state.resolved().revision() {
        let page = etcd.state.history(&KeyRange::prefix("z"), false, next, limits).unwrap();
        (next, found, pages) = (page.next, found + page.revisions.len(), pages + 1);
        assert!(page.looked_at <= 20_000);
    }
    assert_eq!((pages, found), (3, 1));
    // One key is looked up, however long the history.
    let page = etcd.state.history(&one("z"), false, Revision(2).into(), PageLimits::NONE).unwrap();
    assert_eq!((page.revisions.len(), page.next, page.looked_at), (1, Revision(50_003).into(), 1));
}

#[test]
fn keys_of_any_length_are_kept_in_order() {
    let mut etcd = Etcd::new();
    let mut expected = Vec::new();
    for len in (1..120).rev() {
        for last in ["\0", "a", "\u{7f}"] {
            let key = format!("{}{last}", "k".repeat(len - 1));
            write(&mut etcd, Op::Put(put(&key, "1"))).unwrap();
            expected.push(key);
        }
    }
    expected.sort_unstable();
    expected.dedup();
    let found = etcd.range(RangeRequest::new(KeyRange::all())).unwrap();
    assert_eq!(keys(&found.kvs), expected);
    let between = KeyRange::between("k".repeat(54), "k".repeat(56));
    let inside: Vec<_> = expected.iter().filter(|key| between.contains(key.as_bytes())).cloned().collect();
    assert_eq!(keys(&etcd.range(RangeRequest::new(between)).unwrap().kvs), inside);
    etcd.state.check_invariants();
    assert_eq!(etcd.restored().digest(), etcd.state.digest());
}

#[test]
fn a_range_of_its_own_does_not_keep_its_message_in_memory() {
    let message = Bytes::from(vec![b'k'; 100_000]);
    for range in
        [KeyRange::single(message.slice(7..9)), KeyRange::between(message.slice(..1), message.slice(..2))]
    {
        let own = range.own();
        assert_eq!(own, range);
        drop((own, range));
    }
    let own = KeyRange::between(message.slice(..1), message.slice(..2)).own();
    assert!(message.is_unique(), "{own:?} is beside it");
}

#[test]
fn a_small_value_does_not_keep_its_batch_in_memory() {
    let mut etcd = Etcd::new();
    let mut batch = BytesMut::new();
    let op = Op::Put(put("a", "small"));
    Command::write(etcd.session, 1, 0, Route::FIRST, op).encode(&mut batch);
    let command = batch.freeze();
    etcd.apply(Command::decode(command.clone()).unwrap()).unwrap();
    etcd.effects.clear();
    assert!(command.is_unique(), "nothing of the state shares the command's bytes");
    // A value that fills its batch is not copied.
    let op = Op::Put(Put::new("b", Bytes::from(vec![0; 100_000])));
    let mut batch = BytesMut::new();
    Command::write(etcd.session, 2, 0, Route::FIRST, op).encode(&mut batch);
    let command = batch.freeze();
    etcd.apply(Command::decode(command.clone()).unwrap()).unwrap();
    assert!(!command.is_unique());
}

#[test]
fn a_small_input_cannot_ask_for_much_memory() {
    // A list of 2^60 items, and the longest list of empty operations.
    let mut long = vec![1, 4];
    long.extend([0xff; 8]);
    long.push(0x0f);
    assert!(Command::decode(long.into()).is_err());
    let ops = |count: usize| {
        let mut bytes = BytesMut::new();
        Op::Txn(then(vec![TxnOp::Empty; count])).encode(&mut bytes);
        bytes.freeze()
    };
    assert!(Op::decode(ops(MAX_TXN_ITEMS)).is_ok());
    assert!(Op::decode(ops(MAX_TXN_ITEMS + 1)).is_err());
}
