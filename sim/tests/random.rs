//! Random executions of the model, shuffled into concurrent histories, are always accepted; and whatever is then done to
//! an answer, the two checkers agree about it.

#![allow(clippy::wildcard_enum_match_arm, reason = "lies and answers that do not go together are left alone")]

mod story;

use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use sim::linear::history::{
    End, EtcdHistory, EtcdOperation, Operation, WatchMessage, WatchResponse, WatchStream,
};
use sim::linear::revisions::{Line, Options, Verdict, check};
use sim::linear::specs::{Etcd, RegisterAction, RegisterInput, RegisterOutput, Registers};
use sim::linear::wgl::{self, Budget, Outcome, Spec};
use sim::model::*;
use story::*;

/// What a client does, with revisions relative to the state it is done in.
#[derive(Clone, Debug)]
enum Action {
    Put {
        key: u8,
        lease: bool,
        prev_kv: bool,
    },
    KeepValue {
        key: u8,
    },
    Get {
        key: u8,
        serializable: bool,
        back: i64,
    },
    List {
        limit: i64,
        order: SortOrder,
        target: SortTarget,
        keys_only: bool,
        count_only: bool,
    },
    Delete {
        from: u8,
        to: u8,
        prev_kv: bool,
    },
    /// A swap that succeeds if `lag` is 0.
    Swap {
        key: u8,
        lag: i64,
    },
    Batch {
        put: u8,
        delete: u8,
        then_list: bool,
    },
    Compact {
        back: i64,
    },
    Grant {
        id: i64,
    },
    Revoke {
        id: i64,
    },
}

/// How it goes.
#[derive(Clone, Debug)]
enum Fate {
    Answered,
    /// It takes effect, and nobody learns of it.
    Unseen,
    /// It has no effect, and nobody learns of that.
    Lost,
}

#[derive(Clone, Debug)]
struct Step {
    action: Action,
    fate: Fate,
    /// How long before and after its effect it was called and returned. Steps take effect 10 apart.
    before: u64,
    after: u64,
}

fn key(number: u8) -> String {
    char::from(b'a' + number % 3).to_string()
}

fn plain_action() -> BoxedStrategy<Action> {
    let order = prop_oneof![Just(SortOrder::None), Just(SortOrder::Ascend), Just(SortOrder::Descend)];
    let target = prop_oneof![Just(SortTarget::Key), Just(SortTarget::Mod), Just(SortTarget::Version)];
    prop_oneof![
        4 => (any::<u8>(), any::<bool>()).prop_map(|(key, prev_kv)| Action::Put { key, lease: false, prev_kv }),
        3 => any::<u8>().prop_map(|key| Action::Get { key, serializable: false, back: 0 }),
        2 => (0..3i64, order, target, any::<bool>(), prop::bool::weighted(0.1)).prop_map(
            |(limit, order, target, keys_only, count_only)| Action::List { limit, order, target, keys_only, count_only }
        ),
        2 => (0..4u8, 0..4u8, any::<bool>()).prop_map(|(from, to, prev_kv)| Action::Delete { from, to, prev_kv }),
        3 => (any::<u8>(), 0..2i64).prop_map(|(key, lag)| Action::Swap { key, lag }),
        2 => (any::<u8>(), any::<u8>(), any::<bool>())
            .prop_map(|(put, delete, then_list)| Action::Batch { put, delete, then_list }),
    ]
    .boxed()
}

fn any_action() -> BoxedStrategy<Action> {
    prop_oneof![
        8 => plain_action(),
        1 => any::<u8>().prop_map(|key| Action::Put { key, lease: true, prev_kv: false }),
        1 => any::<u8>().prop_map(|key| Action::KeepValue { key }),
        1 => (any::<u8>(), any::<bool>(), 0..4i64)
            .prop_map(|(key, serializable, back)| Action::Get { key, serializable, back }),
        1 => (-1..3i64).prop_map(|back| Action::Compact { back }),
        1 => (1..3i64).prop_map(|id| Action::Grant { id }),
        1 => (1..3i64).prop_map(|id| Action::Revoke { id }),
    ]
    .boxed()
}

fn steps(action: BoxedStrategy<Action>, most: usize) -> impl Strategy<Value = Vec<Step>> {
    let fate = prop_oneof![6 => Just(Fate::Answered), 1 => Just(Fate::Unseen), 1 => Just(Fate::Lost)];
    let step = (action, fate, 0..30u64, 0..30u64);
    let step = step.prop_map(|(action, fate, before, after)| Step { action, fate, before, after });
    prop::collection::vec(step, 1..most)
}

fn request(action: &Action, model: &Model, number: usize) -> Request {
    let value = format!("v{number}");
    match action {
        Action::Put { key: number, lease, prev_kv } => Request::Put(PutRequest {
            lease: i64::from(*lease),
            prev_kv: *prev_kv,
            ..put_request(&key(*number), &value)
        }),
        Action::KeepValue { key: number } => {
            Request::Put(PutRequest { ignore_value: true, ..put_request(&key(*number), "") })
        }
        Action::Get { key: number, serializable, back } => Request::Range(RangeRequest {
            range: KeyRange::single(key(*number)),
            serializable: *serializable,
            revision: if *back == 0 { 0 } else { (model.revision() + 2 - back).max(0) },
            ..Default::default()
        }),
        Action::List { limit, order, target, keys_only, count_only } => Request::Range(RangeRequest {
            limit: *limit,
            sort_order: *order,
            sort_target: *target,
            keys_only: *keys_only,
            count_only: *count_only,
            ..list_request()
        }),
        Action::Delete { from, to, prev_kv } => Request::DeleteRange(DeleteRangeRequest {
            range: KeyRange::between(key(*from), key(*to)),
            prev_kv: *prev_kv,
        }),
        Action::Swap { key: number, lag } => {
            let current =
                model.get(key(*number).as_bytes(), model.revision()).map_or(0, |kv| kv.mod_revision);
            put_if(&key(*number), (current - lag).max(0), &value)
        }
        Action::Batch { put, delete, then_list } => {
            let mut ops = vec![put_op(&key(*put), &value), delete_op(KeyRange::between(key(*delete), "b"))];
            if *then_list {
                ops.push(RequestOp::Range(list_request()));
            }
            txn(ops)
        }
        Action::Compact { back } => compact(model.revision() - back),
        Action::Grant { id } => grant(*id),
        Action::Revoke { id } => revoke(*id),
    }
}

/// Runs the steps one after the other, and records them as if they had overlapped.
fn tell(steps: &[Step]) -> (EtcdHistory, Model) {
    tell_with(steps, |_, _| {})
}

/// The same, with something done to the model before each step.
fn tell_with(steps: &[Step], between: impl Fn(&mut Model, &Step)) -> (EtcdHistory, Model) {
    let mut model = Model::default();
    let mut operations = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        between(&mut model, step);
        let input = request(&step.action, &model, number);
        let moment = 100 + 10 * number as u64;
        let end = match step.fate {
            Fate::Answered => End::Returned { at: moment + step.after, output: model.apply(&input) },
            Fate::Unseen => {
                // A refusal is as good as no effect.
                let _ = model.apply(&input);
                End::Unknown
            }
            Fate::Lost => End::Unknown,
        };
        operations.push(Operation { client: number as u64 % 4, call: moment - step.before, input, end });
    }
    (EtcdHistory { operations, watches: Vec::new() }, model)
}

#[derive(Clone, Debug)]
struct WatchPlan {
    range: KeyRange,
    start: i64,
    prev_kv: bool,
    no_put: bool,
    no_delete: bool,
    batch: usize,
    progress: bool,
}

fn watch_plan() -> impl Strategy<Value = WatchPlan> {
    let range = prop_oneof![
        3 => Just(KeyRange::all()),
        1 => (0..3u8).prop_map(|number| KeyRange::single(key(number))),
        1 => Just(KeyRange::between("a", "c")),
        1 => Just(KeyRange::default()),
    ];
    let rare = || prop::bool::weighted(0.2);
    (range, 2..6i64, any::<bool>(), rare(), rare(), 1..4usize, any::<bool>()).prop_map(
        |(range, start, prev_kv, no_put, no_delete, batch, progress)| WatchPlan {
            range,
            start,
            prev_kv,
            no_put,
            no_delete,
            batch,
            progress,
        },
    )
}

/// What a watch sees of the model's past, after everything is over.
fn watch(plan: &WatchPlan, model: &Model) -> WatchStream {
    let request = WatchRequest {
        range: plan.range.clone(),
        start_revision: plan.start,
        no_put: plan.no_put,
        no_delete: plan.no_delete,
        prev_kv: plan.prev_kv,
    };
    let response = |message| WatchResponse { at: u64::MAX, revision: model.revision(), message };
    let mut responses = vec![response(WatchMessage::Created)];
    let commits = model.events(plan.start, &request.watched());
    for batch in commits.chunks(plan.batch) {
        let events: Vec<Event> = batch
            .iter()
            .flat_map(|commit| &commit.events)
            .filter_map(|event| request.filter(event))
            .collect();
        if !events.is_empty() {
            responses.push(response(WatchMessage::Events { events, fragment: false }));
        }
    }
    if plan.progress {
        responses.push(response(WatchMessage::Progress));
    }
    WatchStream { client: 9, call: 0, shared: 0, request, responses }
}

/// A way to falsify an answer.
#[derive(Clone, Debug)]
enum Lie {
    Header(i64),
    DropKey,
    OldKey,
    Value,
    Version,
    Count,
    Branch,
    /// The answer that another operation got.
    AnswerOf(prop::sample::Index),
}

fn lie() -> impl Strategy<Value = Lie> {
    prop_oneof![
        (-2..3i64).prop_map(Lie::Header),
        Just(Lie::DropKey),
        Just(Lie::OldKey),
        Just(Lie::Value),
        Just(Lie::Version),
        Just(Lie::Count),
        Just(Lie::Branch),
        any::<prop::sample::Index>().prop_map(Lie::AnswerOf),
    ]
}

fn set_header(response: &mut Response, revision: i64) {
    match response {
        Response::Range(response) => response.revision = revision,
        Response::Put(response) => response.revision = revision,
        Response::DeleteRange(response) => response.revision = revision,
        Response::Txn(response) => response.revision = revision,
        Response::Compact(response) => response.revision = revision,
        Response::LeaseGrant(response) => response.revision = revision,
        Response::LeaseRevoke(response) => response.revision = revision,
        Response::LeaseKeepAlive(response) => response.revision = revision,
        Response::LeaseTimeToLive(response) => response.revision = revision,
        Response::Leases(response) => response.revision = revision,
    }
}

fn same_type(a: &Answer, b: &Answer) -> bool {
    matches!((a, b), (Ok(a), Ok(b)) if std::mem::discriminant(a) == std::mem::discriminant(b))
}

/// Falsifies the answer of one operation; what cannot be falsified so stays as it is.
fn falsify(history: &mut EtcdHistory, victim: &prop::sample::Index, lie: &Lie, model: &Model) {
    let answered: Vec<usize> = (0..history.operations.len())
        .filter(|&index| matches!(history.operations[index].output(), Some(Ok(_))))
        .collect();
    if answered.is_empty() {
        return;
    }
    let victim = answered[victim.index(answered.len())];
    let answers: Vec<Answer> =
        answered.iter().filter_map(|&index| history.operations[index].output().cloned()).collect();
    let End::Returned { output, .. } = &mut history.operations[victim].end else { return };
    if let Lie::AnswerOf(other) = lie {
        let other = &answers[other.index(answers.len())];
        if same_type(output, other) {
            output.clone_from(other);
        }
        return;
    }
    let Ok(response) = output else { return };
    if let Lie::Header(by) = lie {
        set_header(response, (response.revision() + by).max(1));
        return;
    }
    match response {
        Response::Range(response) => falsify_range(response, lie, model),
        Response::DeleteRange(response) if matches!(lie, Lie::Count) => response.deleted += 1,
        Response::Put(response) => {
            if let Some(kv) = &mut response.prev_kv {
                falsify_kv(kv, lie, model);
            }
        }
        Response::Txn(response) => match lie {
            Lie::Branch => response.succeeded = !response.succeeded,
            _ => {
                for response in &mut response.responses {
                    if let ResponseOp::Range(response) = response {
                        falsify_range(response, lie, model);
                    }
                }
            }
        },
        _ => {}
    }
}

fn falsify_range(response: &mut RangeResponse, lie: &Lie, model: &Model) {
    match lie {
        Lie::Count => response.count += 1,
        Lie::DropKey => drop(response.kvs.pop()),
        _ => {
            if let Some(kv) = response.kvs.first_mut() {
                falsify_kv(kv, lie, model);
            }
        }
    }
}

fn falsify_kv(kv: &mut KeyValue, lie: &Lie, model: &Model) {
    match lie {
        Lie::OldKey => {
            if let Some(old) = model.get(&kv.key, kv.mod_revision - 1) {
                kv.clone_from(old);
            }
        }
        Lie::Value => kv.value.push(b'!'),
        Lie::Version => kv.version += 1,
        _ => {}
    }
}

fn accepted(verdict: &Verdict) -> bool {
    match verdict {
        Verdict::Consistent(_) => true,
        Verdict::Violated(_) => false,
        Verdict::Undecided { reason } => panic!("{reason}"),
    }
}

fn linearizable(operations: &[EtcdOperation]) -> bool {
    match wgl::check(&Etcd::default(), operations, Budget::default()) {
        Outcome::Linearizable => true,
        Outcome::Violation { .. } => false,
        Outcome::Unknown { reason } => panic!("{reason:?}"),
    }
}

fn no_expiry() -> Options {
    Options { leases_expire: false, ..Default::default() }
}

fn config(cases: u32) -> ProptestConfig {
    // Nothing may be written beside the sources.
    let failure_persistence: Option<Box<dyn proptest::test_runner::FailurePersistence>> =
        Some(Box::new(FileFailurePersistence::Off));
    ProptestConfig { cases, failure_persistence, ..Default::default() }
}

proptest! {
    #![proptest_config(config(400))]

    #[test]
    fn both_checkers_accept_what_the_model_did(steps in steps(any_action(), 14)) {
        let (history, _) = tell(&steps);
        let verdict = check(&history, &no_expiry());
        prop_assert!(accepted(&verdict), "{verdict:#?}");
        prop_assert!(linearizable(&history.operations));
    }

    #[test]
    fn both_checkers_judge_a_lie_alike(
        steps in steps(plain_action(), 12),
        victim: prop::sample::Index,
        lie in lie(),
    ) {
        let (mut history, model) = tell(&steps);
        falsify(&mut history, &victim, &lie, &model);
        let verdict = check(&history, &no_expiry());
        prop_assert_eq!(accepted(&verdict), linearizable(&history.operations), "{:#?}", verdict);
    }

    /// With leases and compaction in play the revision checker is more lenient, never the other way round.
    #[test]
    fn the_revision_checker_raises_no_false_alarm(
        steps in steps(any_action(), 12),
        victim: prop::sample::Index,
        lie in lie(),
    ) {
        let (mut history, model) = tell(&steps);
        falsify(&mut history, &victim, &lie, &model);
        let verdict = check(&history, &no_expiry());
        prop_assert!(accepted(&verdict) || !linearizable(&history.operations), "{verdict:#?}");
    }
}

proptest! {
    #![proptest_config(config(100))]

    #[test]
    fn long_histories_with_watches_are_accepted(
        steps in steps(any_action(), 150),
        plans in prop::collection::vec(watch_plan(), 0..4),
    ) {
        let (mut history, model) = tell(&steps);
        history.watches = plans.iter().map(|plan| watch(plan, &model)).collect();
        let verdict = check(&history, &Options::default());
        prop_assert!(accepted(&verdict), "{verdict:#?}");
        let again = EtcdHistory::from_json_lines(&history.to_json_lines()).unwrap();
        prop_assert_eq!(again, history);
    }

    #[test]
    fn sparse_lines_are_accepted(
        steps in steps(any_action(), 30),
        plans in prop::collection::vec(watch_plan(), 0..3),
    ) {
        // Every third revision or so is handed out and never used.
        let skip = |model: &mut Model, step: &Step| model.skip_to(model.revision() + (step.before % 3) as i64);
        let (mut history, model) = tell_with(&steps, skip);
        history.watches = plans.iter().map(|plan| watch(plan, &model)).collect();
        let verdict = check(&history, &Options { line: Line::Sparse, ..Default::default() });
        prop_assert!(accepted(&verdict), "{verdict:#?}");
    }

    #[test]
    fn a_damaged_watch_is_found(
        steps in steps(plain_action(), 60),
        plan in watch_plan(),
        place: prop::sample::Index,
        damage in 0..5,
    ) {
        // An unknown write might explain what is missing.
        let answered = |step: &Step| Step { fate: Fate::Answered, ..step.clone() };
        let (mut history, model) = tell(&steps.iter().map(answered).collect::<Vec<_>>());
        // Progress at the end, so that nothing can be dropped unseen.
        let mut stream = watch(&WatchPlan { progress: true, ..plan }, &model);
        if stream.responses.len() < 3 {
            return Ok(());
        }
        let place = 1 + place.index(stream.responses.len() - 2);
        let last = stream.responses.len() - 2;
        match damage {
            0 => drop(stream.responses.remove(place)),
            1 => stream.responses.insert(place, stream.responses[place].clone()),
            2 if place != last => stream.responses.swap(place, last),
            _ => {
                let WatchMessage::Events { events, .. } = &mut stream.responses[place].message else {
                    panic!("messages in between hold events");
                };
                match damage {
                    2 | 3 => drop(events.pop()),
                    _ => events[0].kv.value.push(b'!'),
                }
            }
        }
        history.watches.push(stream);
        let verdict = check(&history, &no_expiry());
        prop_assert!(!accepted(&verdict));
    }
}

/// What to make of one operation's record.
type Garbage = (u8, u8, prop::sample::Index, i64, u8);

fn garbage() -> impl Strategy<Value = Vec<Garbage>> {
    let number = prop_oneof![Just(i64::MIN), Just(-1), 0..20i64, Just(1i64 << 40), Just(i64::MAX)];
    prop::collection::vec((any::<u8>(), any::<u8>(), any::<prop::sample::Index>(), number, any::<u8>()), 20)
}

proptest! {
    #![proptest_config(config(400))]

    /// Whatever a history says, the checkers come to an end with an answer.
    #[test]
    fn garbage_is_judged_and_nothing_breaks(
        steps in steps(any_action(), 20),
        plan in watch_plan(),
        garbage in garbage(),
    ) {
        let (mut history, model) = tell(&steps);
        let mut stream = watch(&plan, &model);
        let answers: Vec<Answer> = history.operations.iter().filter_map(|operation| operation.output().cloned()).collect();
        for (operation, (call, at, other, number, what)) in history.operations.iter_mut().zip(&garbage) {
            operation.call = u64::from(*call);
            if answers.is_empty() || what % 3 == 0 {
                continue;
            }
            let mut output = answers[other.index(answers.len())].clone();
            match (&mut output, what % 8) {
                (Ok(response), 0..3) => set_header(response, *number),
                (Ok(Response::Range(response)), 3..5) => {
                    for kv in &mut response.kvs {
                        (kv.mod_revision, kv.create_revision, kv.version) = (*number, *number, *number);
                    }
                }
                (output, 5) => *output = Err(Error::ALL[other.index(Error::ALL.len())]),
                _ => {}
            }
            operation.end = End::Returned { at: u64::from(*at), output };
        }
        for (response, (at, _, _, number, what)) in stream.responses.iter_mut().zip(&garbage) {
            response.at = u64::from(*at);
            match (&mut response.message, what % 5) {
                (_, 0) => response.revision = *number,
                (WatchMessage::Events { events, .. }, 1) => events[0].kv.mod_revision = *number,
                (WatchMessage::Events { fragment, .. }, 2) => *fragment = true,
                (message, 3) => {
                    *message = WatchMessage::Cancelled { compact_revision: *number, reason: String::new() };
                }
                _ => {}
            }
        }
        history.watches.push(stream);
        for line in [Line::Dense, Line::Sparse] {
            let _ = check(&history, &Options { line, steps_max: 20_000, ..Default::default() });
        }
        let _ = wgl::check(&Etcd::default(), &history.operations, Budget { steps: 2_000, configurations: 100 });
        let again = EtcdHistory::from_json_lines(&history.to_json_lines()).unwrap();
        prop_assert_eq!(again, history);
    }
}

// The general checker by itself.

/// `(client, call, return, key, action, output)`; a return of 0 is an unknown outcome.
type Row = (u64, u64, u64, u64, RegisterAction, RegisterOutput);

fn registers(rows: &[Row]) -> Outcome {
    let operation = |(client, call, returned, key, action, output): &Row| {
        let input = RegisterInput { key: *key, action: action.clone() };
        let end = match returned {
            0 => End::Unknown,
            at => End::Returned { at: *at, output: output.clone() },
        };
        Operation { client: *client, call: *call, input, end }
    };
    wgl::check(&Registers, &rows.iter().map(operation).collect::<Vec<_>>(), Budget::default())
}

use RegisterAction::{CompareAndSet, Read, Write};
use RegisterOutput::{Done, Mismatch, Value};

#[test]
fn registers_that_are_right() {
    assert_eq!(registers(&[]), Outcome::Linearizable);
    // A read beside a write may see either value.
    for value in [None, Some(1)] {
        let rows = [(1, 1, 4, 0, Write(1), Done), (2, 2, 3, 0, Read, Value(value))];
        assert_eq!(registers(&rows), Outcome::Linearizable);
    }
    // A write without an answer shows up late, behind an acknowledged one.
    let rows = [
        (1, 1, 0, 0, Write(1), Done),
        (2, 2, 3, 0, Write(2), Done),
        (2, 4, 5, 0, Read, Value(Some(2))),
        (2, 6, 7, 0, Read, Value(Some(1))),
    ];
    assert_eq!(registers(&rows), Outcome::Linearizable);
    // Of two swaps one wins, in whichever order they were called.
    let swap = |new| CompareAndSet { expected: None, new };
    let rows =
        [(1, 1, 9, 0, swap(1), Mismatch), (2, 2, 8, 0, swap(2), Done), (3, 10, 11, 0, Read, Value(Some(2)))];
    assert_eq!(registers(&rows), Outcome::Linearizable);
}

#[test]
fn registers_that_are_wrong() {
    let wrong = |rows: &[Row], blocked: usize| match registers(rows) {
        Outcome::Violation { witness } => assert_eq!(witness.blocked, blocked, "{witness}"),
        other => panic!("{other:?}"),
    };
    // A stale read.
    wrong(&[(1, 1, 2, 0, Write(1), Done), (2, 3, 4, 0, Read, Value(None))], 1);
    // Two reads in a row see an unknown write come and go.
    let rows =
        [(1, 1, 0, 0, Write(1), Done), (2, 2, 3, 0, Read, Value(Some(1))), (2, 4, 5, 0, Read, Value(None))];
    wrong(&rows, 2);
    // An unknown write shows up twice.
    let rows = [
        (1, 1, 0, 0, Write(1), Done),
        (2, 2, 3, 0, Read, Value(Some(1))),
        (2, 4, 5, 0, Write(2), Done),
        (2, 6, 7, 0, Read, Value(Some(1))),
    ];
    wrong(&rows, 3);
    // Both swaps win.
    let swap = |new| CompareAndSet { expected: None, new };
    wrong(&[(1, 1, 3, 0, swap(1), Done), (2, 2, 4, 0, swap(2), Done)], 0);
    // A value from the future; the other key is right.
    let rows =
        [(1, 1, 2, 7, Read, Value(None)), (1, 1, 2, 8, Read, Value(Some(5))), (1, 3, 4, 8, Write(5), Done)];
    wrong(&rows, 1);
}

#[test]
fn keys_are_checked_one_by_one() {
    // Thirty concurrent writes and reads on each of ten keys would be hopeless as one part.
    let mut rows: Vec<Row> = Vec::new();
    for key in 0..10 {
        for number in 0..10 {
            rows.push((number, 1, 100, key, Write(number), Done));
        }
        rows.push((99, 101, 102, key, Read, Value(Some(3))));
    }
    assert_eq!(registers(&rows), Outcome::Linearizable);
}

#[test]
fn a_search_without_end_stops() {
    // Twenty concurrent writes, then a read of something never written.
    let mut rows: Vec<Row> = (0..24).map(|number| (number, 1, 100, 0, Write(number), Done)).collect();
    rows.push((99, 101, 102, 0, Read, Value(Some(1000))));
    let operations: Vec<Operation<RegisterInput, RegisterOutput>> = rows
        .into_iter()
        .map(|(client, call, at, key, action, output)| Operation {
            client,
            call,
            input: RegisterInput { key, action },
            end: End::Returned { at, output },
        })
        .collect();
    let budget = Budget { steps: 50_000, configurations: 1000 };
    let outcome = wgl::check(&Registers, &operations, budget);
    assert!(matches!(outcome, Outcome::Unknown { reason: wgl::Undecided::Budget }), "{outcome:?}");
}

#[test]
fn a_record_that_makes_no_sense_is_not_judged() {
    let outcome = registers(&[(1, 5, 2, 0, Write(1), Done)]);
    assert!(matches!(outcome, Outcome::Unknown { reason: wgl::Undecided::Malformed { operation: 0 } }));
    // A part with unknown outcomes only has nothing to explain.
    assert_eq!(registers(&[(1, 5, 0, 0, Write(1), Done)]), Outcome::Linearizable);
    assert_eq!(Registers.initial(), None);
}
