//! What a node knows after a replay, without a cluster around it; most replays met damage.

use std::sync::Arc;

use bytes::Bytes;
use consensus_core::message::{Accept, Accepted, Chosen, Commit, Recalled};
use consensus_core::{
    Ballot, Config, Durable, Engine, Event, GroupId, Input, Liveness, Message, Mono, NodeId, Options, Output,
    Record, Slot, Status, Timing, Value, VoteBallot,
};

const ME: NodeId = NodeId(1);

/// What recovery met at one place of the journal.
enum Met {
    Whole(Record),
    /// Only the label can be read.
    PayloadLost(Record),
    Gap,
}

use Met::{Gap, PayloadLost, Whole};

fn config() -> Config {
    Config::majority([1, 2, 3].map(NodeId))
}

fn ballot(round: u64) -> Ballot {
    Ballot { round, node: NodeId(2) }
}

fn batch(text: &str) -> Value {
    Value::Batch([Bytes::copy_from_slice(text.as_bytes())].into_iter().collect())
}

fn vote(slot: u64, round: u64, commit: u64, text: &str) -> Record {
    let vote_ballot = VoteBallot::classic(ballot(round));
    Record::Vote { slot: Slot(slot), vote_ballot, commit: Slot(commit), value: Some(batch(text)) }
}

fn chosen(slot: u64, text: &str) -> Record {
    Record::Chosen { slot: Slot(slot), commit: Slot(slot), value: batch(text) }
}

fn base(slot: u64) -> Record {
    let config = Arc::new(config());
    Record::Base { slot: Slot(slot), promised: ballot(1), faulty_from: None, promise_lost: false, config }
}

fn healed(upto: u64) -> Record {
    Record::Healed { promised: ballot(1), relied_upto: Some(Slot(upto)) }
}

/// The engine after this replay, with what it says at once.
fn recover(met: impl IntoIterator<Item = Met>, snapshot: u64) -> (Engine, Output) {
    recover_in(config(), met, snapshot)
}

fn recover_in(config: Config, met: impl IntoIterator<Item = Met>, snapshot: u64) -> (Engine, Output) {
    let mut durable = Durable::bootstrap(config.clone());
    for met in met {
        match met {
            Whole(record) => durable.replay(record),
            PayloadLost(record) => {
                let mut label = Vec::new();
                record.label(&mut label);
                durable.damaged(&Record::decode_label(&label).expect("labels are whole"));
            }
            Gap => durable.lost_all(),
        }
    }
    if snapshot > 0 {
        durable.snapshot(Slot(snapshot), Arc::new(config));
    }
    let mut engine = Engine::new(Options::new(GroupId(1), ME, 0), durable, Mono(0));
    engine.check_invariants();
    let mut out = Output::default();
    engine.poll(&mut out);
    (engine, out)
}

fn status(met: impl IntoIterator<Item = Met>, snapshot: u64) -> Status {
    recover(met, snapshot).0.status()
}

#[test]
fn a_committed_value_without_damage_before_it_stands_in_for_no_vote() {
    let status = status([Whole(base(0)), Whole(chosen(1, "a")), PayloadLost(chosen(2, "b"))], 0);
    assert_eq!((status.commit, status.faulty_from), (Slot(1), None));
}

#[test]
fn a_committed_value_that_stands_in_for_a_forgotten_vote_may_not_be_lost() {
    let journal = |second: fn(Record) -> Met| {
        [
            Whole(base(0)),
            Whole(chosen(1, "a")),
            second(chosen(2, "b")),
            Whole(chosen(3, "c")),
            Whole(healed(3)),
        ]
    };
    assert_eq!(status(journal(Whole), 0).faulty_from, None);
    assert_eq!(status(journal(Whole), 0).commit, Slot(3));
    let status = status(journal(PayloadLost), 0);
    assert_eq!((status.commit, status.faulty_from), (Slot(1), Some(Slot(2))));
}

#[test]
fn values_above_what_healing_relied_on_may_be_lost() {
    let journal = [Whole(base(0)), Whole(chosen(1, "a")), Whole(healed(1)), PayloadLost(chosen(2, "b"))];
    assert_eq!(status(journal, 0).faulty_from, None);
}

/// The journal up to the base is dropped, all but the records of slots above it.
#[test]
fn what_healing_relied_on_is_known_beyond_a_base() {
    let before = [Whole(base(0)), Whole(chosen(1, "a")), Whole(chosen(2, "b")), Whole(healed(2))];
    let (mut engine, _) = recover(before, 0);
    let liveness = Liveness::new(ME, [1, 2, 3].map(NodeId), 2, Timing::default(), Mono(0));
    engine.step(Mono(0), &liveness, Input::SnapshotDurable { slot: Slot(1) });
    let mut out = Output::default();
    engine.poll(&mut out);
    let written: Vec<Record> = out.records.into_iter().map(|(_, record)| record).collect();
    assert!(
        matches!(&written[..], [Record::Base { slot: Slot(1), .. }, Record::Healed { .. }]),
        "{written:?}"
    );

    let kept = [PayloadLost(chosen(2, "b"))].into_iter();
    assert_eq!(status(kept.chain(written.into_iter().map(Whole)), 1).faulty_from, Some(Slot(2)));
}

/// Slot 2 is known to be committed, but not for what: then an old leader's proposal comes in late.
#[test]
fn a_vote_after_the_slot_was_known_to_be_committed_is_not_taken_for_what_was_chosen() {
    let journal = [
        Whole(base(0)),
        Whole(chosen(1, "a")),
        PayloadLost(chosen(2, "b")),
        Whole(vote(2, 5, 1, "late")),
        Whole(vote(3, 5, 1, "later")),
    ];
    let (engine, out) = recover(journal, 0);
    assert_eq!((engine.status().commit, engine.status().max_voted), (Slot(1), Slot(3)));
    assert_eq!(out.committed, [(Slot(1), batch("a"))]);
}

#[test]
fn a_gap_after_a_vote_leaves_the_vote_but_no_commit_index_speaks_of_it() {
    let journal = [Whole(base(0)), Whole(vote(1, 1, 0, "a")), Gap, Whole(vote(2, 1, 1, "b"))];
    let status = status(journal, 0);
    assert_eq!((status.commit, status.max_voted, status.faulty_from), (Slot(0), Slot(2), Some(Slot(1))));
}

/// A single replica has answered for slots 1 and 2, restarts and leads again. Wherever a crash cuts off what it writes
/// then, and whichever payload it tears, both values stay known.
#[test]
fn leading_again_cannot_lose_what_was_accepted_before() {
    let alone = || Durable::bootstrap(Config::majority([ME]));
    let before = || {
        let config = Arc::new(Config::majority([ME]));
        let promised = Ballot { round: 1, node: ME };
        let base = Record::Base { slot: Slot(0), promised, faulty_from: None, promise_lost: false, config };
        let vote = |slot, text| Record::Vote {
            slot: Slot(slot),
            vote_ballot: VoteBallot::classic(promised),
            commit: Slot(0),
            value: Some(batch(text)),
        };
        [base, vote(1, "a"), vote(2, "b")]
    };
    let mut durable = alone();
    before().into_iter().for_each(|record| durable.replay(record));
    let mut engine = Engine::new(Options::new(GroupId(1), ME, 0), durable, Mono(0));
    let mut liveness = Liveness::new(ME, [ME], 2, Timing::default(), Mono(0));
    let mut now = Mono(0);
    let mut written = Vec::new();
    let mut committed = Vec::new();
    for _ in 0..20 {
        liveness.disk_progress(now);
        let mut out = Output::default();
        engine.poll(&mut out);
        committed.append(&mut out.committed);
        if let Some((last, _)) = out.records.last() {
            let last = *last;
            written.extend(out.records.into_iter().map(|(_, record)| record));
            engine.step(now, &liveness, Input::Persisted(last));
        } else if let Some(deadline) = engine.next_deadline() {
            now = now.max(deadline);
            engine.step(now, &liveness, Input::Timeout);
        }
        engine.check_invariants();
    }
    let values: Vec<Value> = committed.into_iter().map(|(_, value)| value).collect();
    assert_eq!(values[..2], [batch("a"), batch("b")], "it leads: {:?}", engine.status());

    for cut in 0..written.len() {
        for torn in 0..=cut {
            let mut durable = alone();
            before().into_iter().for_each(|record| durable.replay(record));
            for (place, record) in written[..cut].iter().enumerate() {
                if place >= torn && record.payload_len() > 0 {
                    let mut label = Vec::new();
                    record.label(&mut label);
                    durable.damaged(&Record::decode_label(&label).expect("labels are whole"));
                } else {
                    durable.replay(record.clone());
                }
            }
            let mut engine = Engine::new(Options::new(GroupId(1), ME, 0), durable, Mono(0));
            engine.poll(&mut Output::default());
            let status = engine.status();
            let lost = status.lost_payloads;
            // The no-op above is nobody's: it may be lost.
            let own = u64::from(status.max_voted > Slot(2) && torn < cut);
            assert!(lost <= own, "cut at {cut}, torn from {torn}: {lost} lost of {:?}", &written[..cut]);
        }
    }
}

/// A base whose payload is gone still says which snapshot the journal builds on.
#[test]
fn a_damaged_base_still_asks_for_its_snapshot() {
    let config = Arc::new(Config::majority([1, 2, 3].map(NodeId)));
    let mut durable = Durable::bootstrap((*config).clone());
    let base = Record::Base {
        slot: Slot(9),
        promised: Ballot::default(),
        faulty_from: None,
        promise_lost: false,
        config: Arc::clone(&config),
    };
    let mut label = Vec::new();
    base.label(&mut label);
    durable.damaged(&Record::decode_label(&label).unwrap());
    assert_eq!(durable.base(), Slot(9));
    durable.snapshot(Slot(9), config);
    assert_eq!(durable.base(), Slot(9));
}

/// A leader that has proposed as much as it may waits for exactly these votes. Simulation, seed 3049 of its time: with the
/// two followers restarted one after the other, it waited for ever.
#[test]
fn votes_that_a_restart_found_are_acknowledged_again() {
    let journal = [Whole(base(0)), Whole(vote(1, 5, 0, "a")), Whole(vote(2, 5, 0, "b"))];
    let (mut engine, _) = recover(journal, 0);
    let mut liveness = Liveness::new(ME, [1, 2, 3].map(NodeId), 2, Timing::default(), Mono(0));
    liveness.tick(Mono(0));
    let again = Accept {
        ballot: ballot(5),
        commit: Slot(0),
        entries: [(Slot(1), batch("a")), (Slot(2), batch("b"))].into_iter().collect(),
    };
    let mut out = Output::default();
    engine.step(Mono(0), &liveness, Input::Message { from: NodeId(2), message: Message::Accept(again) });
    engine.poll(&mut out);
    assert!(out.records.is_empty(), "nothing is voted twice: {:?}", out.records);
    assert_eq!(accepted(&out).map(|accepted| accepted.upto), Some(Slot(2)));
}

fn accepted(out: &Output) -> Option<&Accepted> {
    out.sends
        .iter()
        .rev()
        .find_map(|send| if let Message::Accepted(accepted) = &send.message { Some(accepted) } else { None })
}

/// A vote speaks for whoever may hold a lease from this node (C2), also when no proposal has come since the start.
#[test]
fn an_acknowledgement_after_a_restart_names_all_who_may_hold_a_lease() {
    let (mut engine, _) = recover([Whole(base(0)), Whole(vote(2, 5, 0, "b"))], 0);
    let liveness = Liveness::new(ME, [1, 2, 3].map(NodeId), 2, Timing::default(), Mono(0));
    assert!(liveness.quarantined(Mono(0)));
    let mut out = Output::default();
    let mut hear = |message| {
        engine.step(Mono(0), &liveness, Input::Message { from: NodeId(2), message });
        engine.poll(&mut out);
    };
    hear(Message::Commit(Commit { ballot: ballot(5), commit: Slot(1) }));
    hear(Message::Chosen(Chosen { commit: Slot(1), entries: [(Slot(1), batch("a"))].into_iter().collect() }));
    let accepted = accepted(&out).expect("it has news for its leader");
    assert_eq!(accepted.upto, Slot(2));
    assert_eq!(accepted.grants, [1, 2, 3].into_iter().map(NodeId).collect());
}

/// Whether a node of a cluster of `voters` that has lost everything knows what it may promise, once the others have
/// answered: these have lost it too.
fn restores(voters: u32, forgetful: &[u32]) -> (bool, bool) {
    let nodes = || (1..=voters).map(NodeId);
    let (mut engine, _) = recover_in(Config::majority(nodes()), [Gap], 0);
    let mut liveness = Liveness::new(ME, nodes(), 7, Timing::default(), Mono(0));
    liveness.tick(Mono(0));
    let mut out = Output::default();
    // It asks, under the number of its life.
    engine.step(Mono(0), &liveness, Input::Timeout);
    // Who has forgotten answers first; whatever the others say is asked for anew after that.
    let all: Vec<NodeId> = nodes().skip(1).collect();
    for question in 0..=forgetful.len() as u64 {
        for node in &all {
            let promised = (!forgetful.contains(&node.0)).then(|| ballot(5));
            let recalled = Recalled { incarnation: 7, question, promised, proposed: None };
            let message = Message::Recalled(recalled);
            engine.step(Mono(0), &liveness, Input::Message { from: *node, message });
        }
        assert!(question == forgetful.len() as u64 || engine.status().promise_lost, "it asks once more");
    }
    engine.poll(&mut out);
    let told = out.events.iter().any(|event| matches!(event, Event::TooManyForgot { .. }));
    (!engine.status().promise_lost, told)
}

#[test]
fn a_promise_is_restored_unless_a_quorum_may_have_forgotten_it() {
    assert_eq!(restores(3, &[]), (true, false));
    assert_eq!(restores(3, &[2]), (false, true));
    assert_eq!(restores(5, &[3]), (true, false));
    assert_eq!(restores(5, &[3, 4]), (false, true));
    assert_eq!(restores(2, &[]), (true, false));
}
