//! Clients that speak to gateways. Each asks for one thing at a time, goes on at another gateway when its own is gone, and
//! remembers what it was told, to be compared with what the log says.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use gateway_core::{Failure, Flow, Priority, Source};
use keyspace::{
    Compare, CompareResult, CompareTarget, DeleteRange, Error, KeyRange, LeaseId, Op, Put, Query,
    RangeRequest, Reply, SessionId, SortOrder, SortTarget, Txn, TxnOp,
};

use crate::linear::history::{End, Operation};
use crate::linear::specs::{RegisterAction, RegisterInput, RegisterOutput};

use super::clock::{MILLI, SECOND, Time};
use super::commands::{Family, is_rewritten, key, single, value_of};
use super::coverage::Mark;
use super::env::{Env, trace};
use super::events::{Call, Event, GatewayEvent, Granted, SentUnder, What};
use super::long_reads::{LongRead, Next};
use super::truth::Fate;

/// Registers and other keys of each group that callers write.
const KEYS: u8 = 3;
/// Callers are numbered from here on where clients of nodes are, too.
const FIRST: u64 = 1_000;
/// A replica waits about a tenth of a second for what a client has seen, by its own clock.
const BEHIND_MAX: Time = 98 * MILLI;
/// Linearizable registers of callers, beside those of clients of nodes.
const FIRST_KEY: u64 = 100;

#[derive(Debug, Default)]
pub(crate) struct Callers {
    callers: Vec<Caller>,
    next_operation: u64,
    left: u64,
    /// What callers saw of registers, for each group.
    pub(crate) histories: BTreeMap<usize, Vec<Operation<RegisterInput, RegisterOutput>>>,
    pub(crate) answered: u64,
    /// Operations that ended without an answer: their gateway is gone, or they were given up.
    lost: BTreeSet<u64>,
}

#[derive(Debug)]
struct Caller {
    gateway: usize,
    current: Option<Current>,
    /// The newest revision that it has seen, for each group.
    seen: BTreeMap<usize, i64>,
    /// For one that only looks whether a group works again.
    probe: Option<Probe>,
}

#[derive(Debug)]
struct Current {
    operation: u64,
    group: usize,
    what: What,
    called: Time,
    /// The newest revision that was committed when it was called.
    committed: i64,
    register: Option<RegisterInput>,
    /// It takes several questions.
    long: Option<LongRead>,
}

impl Current {
    fn is_serializable(&self) -> bool {
        matches!(self.what, What::Read { serializable: Some(_), .. })
    }
}

/// The course of a caller that looks whether a group works again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    Write(usize),
    Read(usize),
    Done,
}

fn lease_of(caller: usize) -> LeaseId {
    LeaseId((FIRST + caller as u64) as i64)
}

impl Callers {
    pub(crate) fn new(env: &mut Env) -> Callers {
        let callers = (0..env.profile.callers).map(|_| Caller::new(env, None)).collect::<Vec<_>>();
        for caller in 0..callers.len() {
            let delay = env.rng.below(2_000 * MILLI);
            env.after(delay, Event::Caller { caller });
        }
        Callers { callers, left: env.profile.calls, ..Callers::default() }
    }

    /// Adds a caller for each group that looks whether it works again.
    pub(crate) fn probe(&mut self, env: &mut Env) {
        for group in 0..env.profile.groups.len() {
            let caller = Caller::new(env, Some(Probe::Write(group)));
            self.callers.push(caller);
            env.after(0, Event::Caller { caller: self.callers.len() - 1 });
        }
    }

    /// The groups that have not yet taken a write and served a read since [`Callers::probe`].
    pub(crate) fn unprobed(&self) -> impl Iterator<Item = usize> + '_ {
        self.callers.iter().filter_map(|caller| match caller.probe {
            Some(Probe::Write(group) | Probe::Read(group)) => Some(group),
            Some(Probe::Done) | None => None,
        })
    }

    /// It asks for the next thing.
    pub(crate) fn on_timer(&mut self, env: &mut Env, number: usize) {
        let caller = &mut self.callers[number];
        if caller.current.is_some() {
            return;
        }
        let group = match caller.probe {
            Some(Probe::Write(group) | Probe::Read(group)) => group,
            Some(Probe::Done) => return,
            None if self.left == 0 || env.healed => return,
            None => {
                self.left -= 1;
                env.rng.index(env.profile.groups.len())
            }
        };
        self.next_operation += 1;
        let operation = self.next_operation;
        let (what, register, long) = match caller.long_wish(env, group) {
            Some((what, long)) => (what, None, Some(long)),
            None => {
                let (what, register) = caller.wish(env, number, operation, group);
                (what, register, None)
            }
        };
        let committed = env.truths[group].revision();
        let current = Current { operation, group, what, called: env.now, committed, register, long };
        caller.ask(env, number, current);
    }

    /// The gateway answers, or is gone, or has taken the request back. `numbers`: what a write was sent under.
    pub(crate) fn on_answer(
        &mut self,
        env: &mut Env,
        number: usize,
        operation: u64,
        result: Option<Result<Granted, Failure>>,
        numbers: Vec<SentUnder>,
    ) {
        if self.lost.contains(&operation) {
            env.fail("calls", format!("#{operation} was given up or lost, and is told {result:?}"));
        }
        let caller = &mut self.callers[number];
        let Some(current) = caller.current.take_if(|current| current.operation == operation) else { return };
        let group = current.group;
        trace!(env, "caller {number} #{operation} is told {result:?} under {numbers:?}");
        if result.is_none() {
            self.lost.insert(operation);
        }
        if result.is_none() || env.rng.below(12) == 0 {
            // It goes on elsewhere, where nobody knows what it has seen.
            caller.gateway = env.rng.index(env.profile.gateways);
            caller.seen.clear();
        }
        let fate = match &result {
            None => Fate::Unknown,
            Some(Ok(Granted::Answer(answer))) => Fate::Outcome(Ok(answer.reply.clone())),
            Some(Ok(Granted::Kept(_))) => Fate::Unknown,
            Some(Err(failure)) => fate_of(failure),
        };
        if let Some(Err(Failure::Refused(Error::TooManyOps | Error::AnswerTooLarge))) = result {
            env.mark(Mark::WriteBounded);
        }
        if let What::Write(_) = current.what {
            if numbers.len() > 1 {
                env.mark(Mark::NumberChanged);
            }
            for of in env.maps.groups_of(env.maps.domain_of(group)).collect::<Vec<_>>() {
                let sent = numbers.iter().filter(|sent| sent.group == of);
                let sent: Vec<(SessionId, u64)> = sent.map(|sent| (sent.session, sent.seq)).collect();
                // Whoever has not its keys never carries it out.
                let fate = if of == group { fate.clone() } else { Fate::Never };
                let check = env.truths[of].write_ended(&sent, fate);
                env.note(check);
            }
        }
        let (mut current, mut result) = (current, result);
        if let (Some(long), Some(Ok(Granted::Answer(answer)))) = (current.long.take(), &mut result) {
            let (next, long) = long.handle(env, answer.reply.clone());
            match next {
                Next::Ask(query, revision) => {
                    self.next_operation += 1;
                    let serializable = current.is_serializable().then_some(revision);
                    current.what = What::Read { query, serializable };
                    current.operation = self.next_operation;
                    self.callers[number].ask(env, number, Current { long, ..current });
                    return;
                }
                Next::Done(asked, whole) => {
                    let serializable = current.is_serializable().then_some(0);
                    current.what = What::Read { query: Query::Range(asked), serializable };
                    answer.reply = Reply::Range(whole);
                }
                Next::Mismatch => {
                    env.fail("answers", format!("{:?} is granted {:?}", current.what, answer.reply))
                }
            }
        }
        if let Some(Ok(granted)) = &result {
            self.answered += 1;
            let caller = &mut self.callers[number];
            caller.judge(env, &current, granted);
        }
        self.record(env, number, current, result, fate);
    }

    fn record(
        &mut self,
        env: &mut Env,
        number: usize,
        current: Current,
        result: Option<Result<Granted, Failure>>,
        fate: Fate,
    ) {
        let caller = &mut self.callers[number];
        let mut value = None;
        if let Some(Ok(Granted::Answer(answer))) = &result
            && let Reply::Range(range) = &answer.reply
        {
            value = range.kvs.first().map(|kv| value_of(&kv.value));
        }
        if let Some(input) = current.register {
            let end = match (&result, &input.action) {
                (Some(Ok(_)), RegisterAction::Read) => {
                    Some(End::Returned { at: env.now, output: RegisterOutput::Value(value) })
                }
                (Some(Ok(_)), _) => Some(End::Returned { at: env.now, output: RegisterOutput::Done }),
                // What certainly had no effect is as if it had not been asked for.
                (Some(Err(_)), _) if fate == Fate::Never => None,
                (Some(Err(_)) | None, RegisterAction::Read) => None,
                (Some(Err(_)) | None, _) => Some(End::Unknown),
            };
            if let Some(end) = end {
                let client = FIRST + number as u64;
                let operation = Operation { client, call: current.called, input, end };
                self.histories.entry(current.group).or_default().push(operation);
            }
            if let Some(Ok(_)) = result {
                caller.probe = caller.probe.map(|probe| match probe {
                    Probe::Write(group) => Probe::Read(group),
                    Probe::Read(_) | Probe::Done => Probe::Done,
                });
            }
        }
        let pace = match caller.probe {
            Some(_) => 20 * MILLI,
            None => env.profile.heal_at * u64::from(env.profile.callers) / (env.profile.calls + 1),
        };
        let delay = env.rng.around(pace);
        env.after(delay, Event::Caller { caller: number });
    }

    /// The run is over: what is under way has no known outcome.
    pub(crate) fn finish(&mut self) {
        for (number, caller) in self.callers.iter_mut().enumerate() {
            let Some(Current { group, called, register: Some(input), .. }) = caller.current.take() else {
                continue;
            };
            if input.action != RegisterAction::Read {
                let client = FIRST + number as u64;
                let operation = Operation { client, call: called, input, end: End::Unknown };
                self.histories.entry(group).or_default().push(operation);
            }
        }
    }
}

/// A transaction that reads two ranges, and compares one: in whichever order, up to a limit.
fn read_twice(env: &mut Env, others: KeyRange) -> Query {
    let request = |env: &mut Env, range: KeyRange| {
        TxnOp::Range(RangeRequest {
            limit: env.rng.below(4) as i64,
            sort_order: env.rng.pick(&[SortOrder::None, SortOrder::Ascend, SortOrder::Descend]),
            sort_target: env.rng.pick(&[
                SortTarget::Key,
                SortTarget::Mod,
                SortTarget::Version,
                SortTarget::Value,
            ]),
            ..RangeRequest::new(range)
        })
    };
    Query::Txn(Txn {
        compare: vec![is_rewritten(others.clone())],
        success: vec![request(env, others.clone()), request(env, others.clone())],
        failure: vec![
            request(env, others.clone()),
            TxnOp::Range(RangeRequest { count_only: true, ..RangeRequest::new(others) }),
        ],
    })
}

/// A transaction that writes, and reads all of a range before or after.
fn write_among(others: KeyRange, put: Put) -> Txn {
    let read = TxnOp::Range(RangeRequest::new(others.clone()));
    let sorted = RangeRequest { sort_target: SortTarget::Value, ..RangeRequest::new(others.clone()) };
    let nested = Txn { success: vec![read.clone(), TxnOp::Range(sorted)], ..Txn::default() };
    Txn {
        compare: vec![is_rewritten(others.clone())],
        success: vec![
            TxnOp::DeleteRange(DeleteRange { range: others.clone(), prev_kv: true }),
            read.clone(),
            TxnOp::DeleteRange(DeleteRange { range: others, prev_kv: false }),
        ],
        failure: vec![TxnOp::Txn(nested), TxnOp::Put(put), read],
    }
}

/// Somebody's, and somehow urgent, whatever is asked for.
fn some_flow(env: &mut Env) -> Flow {
    let source = Source { user: env.rng.below(3), connection: env.rng.below(6) };
    Flow { priority: env.rng.pick(&Priority::ALL), source }
}

/// What an error says of a write.
fn fate_of(failure: &Failure) -> Fate {
    match failure {
        Failure::Refused(error) => Fate::Outcome(Err(*error)),
        // Clients take these for an invitation to ask again.
        Failure::TooLarge
        | Failure::Overloaded
        | Failure::NoLeader
        | Failure::NoDisk
        | Failure::Stopping
        | Failure::WrongShard
        | Failure::SpansShards => Fate::Never,
        Failure::AnswerTooLarge
        | Failure::TimedOut
        | Failure::TimedOutLeaderFailed
        | Failure::TimedOutConnectionLost
        | Failure::DeadlineExceeded
        | Failure::Upstream { .. }
        | Failure::Internal(_) => Fate::Unknown,
    }
}

impl Caller {
    fn new(env: &mut Env, probe: Option<Probe>) -> Caller {
        let gateway = env.rng.index(env.profile.gateways);
        Caller { gateway, current: None, seen: BTreeMap::new(), probe }
    }

    fn wish(
        &self,
        env: &mut Env,
        number: usize,
        operation: u64,
        group: usize,
    ) -> (What, Option<RegisterInput>) {
        let value = (FIRST + number as u64) << 32 | operation;
        let encoded = Bytes::copy_from_slice(&value.to_be_bytes());
        let place = env.maps.place_of(group);
        let key_number = env.rng.below(u64::from(KEYS)) as u8;
        let put = |family: Family, number: u8| Put {
            prev_kv: true,
            ..Put::new(key(place, family, number % KEYS), encoded.clone())
        };
        let read = |range: KeyRange, serializable: Option<i64>| What::Read {
            query: Query::Range(RangeRequest::new(range)),
            serializable,
        };
        let write_register = || {
            let input = RegisterInput {
                key: FIRST_KEY + u64::from(key_number),
                action: RegisterAction::Write(value),
            };
            (What::Write(Op::Put(put(Family::CallersRegister, key_number))), Some(input))
        };
        let read_register = || {
            let input =
                RegisterInput { key: FIRST_KEY + u64::from(key_number), action: RegisterAction::Read };
            (read(single(place, Family::CallersRegister, key_number), None), Some(input))
        };
        match self.probe {
            Some(Probe::Write(_)) => return write_register(),
            Some(Probe::Read(_) | Probe::Done) => return read_register(),
            None => {}
        }
        let lease = lease_of(number);
        let seen = self.seen.get(&group).copied().unwrap_or(0);
        // All of them at times, even where they are in several shards.
        let others = env.maps.part_or_whole(group, Family::CallersOther.keys(place), key_number);
        let op = match env.rng.below(25) {
            0..=3 => return write_register(),
            4..=6 => return read_register(),
            7 => return (read(others, None), None),
            8..=9 => return (read(others, Some(seen)), None),
            20..=21 => {
                let query = read_twice(env, others);
                return (What::Read { query, serializable: env.rng.flip().then_some(seen) }, None);
            }
            22..=24 => Op::Txn(write_among(others, put(Family::CallersOther, key_number))),
            10..=11 => return (What::KeepAlive(lease.0), None),
            12..=13 => {
                let lease = if env.rng.flip() { lease } else { LeaseId::NONE };
                Op::Put(Put { lease, ..put(Family::CallersOther, key_number) })
            }
            14 => Op::DeleteRange(DeleteRange {
                range: single(place, Family::CallersOther, key_number),
                prev_kv: true,
            }),
            15..=16 => {
                let range = single(place, Family::CallersOther, key_number);
                let (result, target) = (CompareResult::Greater, CompareTarget::Version(0));
                Op::Txn(Txn {
                    compare: vec![Compare { range: range.clone(), result, target }],
                    success: vec![
                        TxnOp::DeleteRange(DeleteRange { range, prev_kv: true }),
                        TxnOp::Put(put(Family::CallersOther, key_number + 1)),
                    ],
                    failure: vec![TxnOp::Put(put(Family::CallersOther, key_number))],
                })
            }
            17 => Op::LeaseGrant { id: lease, ttl: env.rng.range(2, 6) as i64 },
            18 => Op::LeaseRevoke { id: lease },
            _ => Op::Compact { revision: env.truths[group].revision() - env.rng.below(40) as i64 },
        };
        (What::Write(op), None)
    }

    /// A range that is read in several questions.
    fn long_wish(&self, env: &mut Env, group: usize) -> Option<(What, LongRead)> {
        if self.probe.is_some() || env.rng.below(12) > 0 {
            return None;
        }
        let place = env.maps.place_of(group);
        let key_number = env.rng.below(u64::from(KEYS)) as u8;
        let others = env.maps.part_or_whole(group, Family::CallersOther.keys(place), key_number);
        let seen = self.seen.get(&group).copied().unwrap_or(0);
        let serializable = env.rng.flip().then_some(seen);
        let long = LongRead::new(env, others);
        Some((What::Read { query: long.question(), serializable }, long))
    }

    fn ask(&mut self, env: &mut Env, number: usize, current: Current) {
        let Current { operation, group, .. } = current;
        let what = current.what.clone();
        trace!(env, "caller {number} asks gateway {} g{group} #{operation}: {what:?}", self.gateway);
        let timeout = if self.probe.is_some() { SECOND } else { env.rng.range(SECOND, 7 * SECOND) };
        let flow = some_flow(env);
        let call = Call { caller: number, operation, group, what, flow, timeout };
        self.current = Some(current);
        let (gateway, delay) = (self.gateway, env.rng.around(100_000));
        env.after(delay, Event::ToGateway { gateway, event: Box::new(GatewayEvent::Call(call)) });
        if self.probe.is_none() && env.rng.below(5) == 0 {
            let patience = if env.rng.flip() { 20 * MILLI } else { SECOND };
            let delay = delay + env.rng.below(patience);
            let event = Box::new(GatewayEvent::GiveUp { caller: number, operation });
            env.after(delay, Event::ToGateway { gateway, event });
        }
    }

    /// Compares an answer with what the log says.
    fn judge(&mut self, env: &mut Env, current: &Current, granted: &Granted) {
        let Current { group, committed, called, .. } = *current;
        let (reply, serializable) = match (granted, &current.what) {
            (Granted::Answer(answer), What::Read { serializable, .. }) => (&answer.reply, *serializable),
            (Granted::Answer(answer), What::Write(_)) => {
                self.see(group, answer.reply.revision().0);
                return;
            }
            (Granted::Kept(kept), What::KeepAlive(lease)) => {
                if kept.ttl > 0 {
                    env.mark(Mark::LeaseKept);
                    env.truths[group].promise(called, LeaseId(*lease), kept.ttl);
                }
                return;
            }
            (granted, what) => {
                env.fail("answers", format!("{what:?} is granted {granted:?}"));
                return;
            }
        };
        let check = match (reply, &current.what) {
            (Reply::Range(range), What::Read { query: Query::Range(asked), .. }) => {
                env.truths[group].check_read(asked, range)
            }
            (Reply::Txn(txn), What::Read { query: Query::Txn(asked), .. }) => {
                env.truths[group].check_read_txn(asked, txn)
            }
            _ => {
                env.fail("answers", format!("a read is granted {reply:?}"));
                return;
            }
        };
        // A replica that does not come that far for a while answers with what it has.
        let waited = env.now - called > BEHIND_MAX;
        let least = serializable.map_or(committed, |seen| if waited { 0 } else { seen });
        let revision = reply.revision().0;
        if revision < least {
            env.fail(
                "reads",
                format!("group {group}: read at {revision}, and {least} was there or seen before"),
            );
        }
        env.mark(if serializable.is_some() { Mark::ReadAtNearest } else { Mark::ReadByGateway });
        env.note(check);
        self.see(group, revision);
    }

    fn see(&mut self, group: usize, revision: i64) {
        let seen = self.seen.entry(group).or_default();
        *seen = revision.max(*seen);
    }
}
