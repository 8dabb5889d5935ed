//! Clients: each asks for one thing at a time, and tries again elsewhere until it has an answer or gives up.

use std::collections::BTreeMap;

use keyspace::SessionId;

use crate::linear::history::{End, Operation};
use crate::linear::specs::{RegisterAction, RegisterInput, RegisterOutput};

use super::clock::{MILLI, Time};
use super::commands::{Change, KEYS, Write};
use super::env::Env;
use super::events::{Action, Answer, Event, NodeEvent, Request, Timer};
use super::truth::index;

/// Attempts before a client gives up.
const ATTEMPTS: u32 = 12;

#[derive(Debug, Default)]
pub(crate) struct Clients {
    clients: Vec<Client>,
    next_operation: u64,
    /// Operations not begun yet.
    left: u64,
    /// What clients saw, for each group.
    pub(crate) histories: BTreeMap<usize, Vec<Operation<RegisterInput, RegisterOutput>>>,
    /// Operations that ended with an answer.
    pub(crate) answered: u64,
}

#[derive(Debug)]
struct Client {
    /// For each group.
    sessions: BTreeMap<usize, SessionId>,
    /// The last command, for each group.
    seqs: BTreeMap<usize, u32>,
    hints: BTreeMap<usize, usize>,
    current: Option<Current>,
    /// Set for the client that only looks whether a group works again.
    probe: Option<Probe>,
}

#[derive(Debug)]
struct Current {
    operation: u64,
    attempt: u32,
    group: usize,
    action: Action,
    called: Time,
}

/// What a client would like to do next; before its first write it needs a session.
#[derive(Clone, Copy, Debug)]
enum Wish {
    Read(u8),
    Write(u8),
    Change(Change),
    Scan { serializable: bool, part: u8 },
    KeepAlive,
}

/// The course of the last client: a write to its group, then a read under the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    Write(usize),
    Read(usize),
    Done,
}

impl Wish {
    fn of_others(env: &mut Env, group: usize, key: u8) -> Wish {
        match env.rng.below(16) {
            0..=4 => Wish::Change(Change::Put { key, leased: env.rng.flip() }),
            5..=6 => Wish::Change(Change::Delete { key }),
            7..=8 => Wish::Change(Change::Move { key }),
            9..=10 => Wish::Change(Change::Grant { ttl: env.rng.range(2, 6) as i64 }),
            11 => Wish::Change(Change::Revoke),
            12 => {
                let behind = env.rng.below(40) as i64;
                Wish::Change(Change::Compact { revision: env.truths[group].revision() - behind })
            }
            _ => Wish::KeepAlive,
        }
    }
}

impl Client {
    fn new(probe: Option<Probe>) -> Client {
        let (sessions, seqs, hints) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Client { sessions, seqs, hints, current: None, probe }
    }
}

impl Clients {
    pub(crate) fn new(env: &mut Env) -> Clients {
        let clients = (0..env.profile.clients).map(|_| Client::new(None)).collect();
        for client in 0..env.profile.clients as usize {
            let delay = env.rng.below(2_000 * MILLI);
            env.after(delay, Event::Client { client, operation: 0, attempt: 0, timer: Timer::Ask });
        }
        Clients { clients, left: env.profile.operations, ..Clients::default() }
    }

    /// Adds a client for each group that looks whether it works again.
    pub(crate) fn probe(&mut self, env: &mut Env) {
        for group in 0..env.profile.groups.len() {
            let client = self.clients.len();
            self.clients.push(Client::new(Some(Probe::Write(group))));
            env.after(0, Event::Client { client, operation: 0, attempt: 0, timer: Timer::Ask });
        }
    }

    /// The groups that have not yet taken a write and served a read under the lease since [`Clients::probe`].
    pub(crate) fn unprobed(&self) -> impl Iterator<Item = usize> + '_ {
        self.clients.iter().filter_map(|client| match client.probe {
            Some(Probe::Write(group) | Probe::Read(group)) => Some(group),
            Some(Probe::Done) | None => None,
        })
    }

    /// A client's timer: it begins something, or an attempt has taken too long.
    pub(crate) fn on_timer(
        &mut self,
        env: &mut Env,
        client: usize,
        operation: u64,
        attempt: u32,
        timer: Timer,
    ) {
        match &self.clients[client].current {
            Some(current) if current.operation != operation || current.attempt != attempt => {}
            Some(current) if timer == Timer::Patience => {
                // No answer: whoever was asked may be gone.
                let group = current.group;
                self.clients[client].hints.remove(&group);
                self.try_again(env, client);
            }
            Some(_) => self.ask(env, client),
            None => self.begin(env, client),
        }
    }

    fn begin(&mut self, env: &mut Env, client: usize) {
        let groups = env.profile.groups.len();
        let state = &mut self.clients[client];
        let (group, wish) = match state.probe {
            Some(Probe::Write(group)) => (group, Wish::Write(0)),
            Some(Probe::Read(group)) => (group, Wish::Read(0)),
            Some(Probe::Done) => return,
            None => {
                if self.left == 0 || env.healed {
                    return;
                }
                self.left -= 1;
                let group = env.rng.index(groups);
                let key = env.rng.below(u64::from(KEYS)) as u8;
                let reads = env.rng.chance(env.profile.read_ppm);
                let registers = env.rng.below(3) > 0;
                let wish = match (registers, reads) {
                    (true, true) => Wish::Read(key),
                    (true, false) => Wish::Write(key),
                    (false, true) => Wish::Scan {
                        serializable: env.rng.flip(),
                        part: env.rng.below(u64::from(KEYS)) as u8,
                    },
                    (false, false) => Wish::of_others(env, group, key),
                };
                (group, wish)
            }
        };
        let action = match (wish, state.sessions.get(&group)) {
            (Wish::Read(key), _) => Action::Read(key),
            (Wish::Scan { serializable, part }, _) => Action::Scan { serializable, part },
            (Wish::KeepAlive, _) => Action::KeepAlive,
            (Wish::Write(_) | Wish::Change(_), None) => Action::Open(client as u64 + 1),
            (Wish::Change(change), Some(session)) => {
                let seq = state.seqs.entry(group).or_default();
                *seq += 1;
                Action::Change(*session, *seq, change)
            }
            (Wish::Write(key), Some(session)) => {
                let seq = state.seqs.entry(group).or_default();
                *seq += 1;
                Action::Write(*session, Write { client: client as u32 + 1, seq: *seq, attempt: 0, key })
            }
        };
        self.next_operation += 1;
        state.current =
            Some(Current { operation: self.next_operation, attempt: 0, group, action, called: env.now });
        self.ask(env, client);
    }

    fn ask(&mut self, env: &mut Env, client: usize) {
        let state = &mut self.clients[client];
        let Some(current) = &mut state.current else { return };
        let config = env.truths[current.group].config().clone();
        let node = match state.hints.get(&current.group) {
            Some(node) if env.rng.below(16) > 0 => *node,
            Some(_) | None => {
                let members: Vec<usize> = config.voters.iter().map(index).collect();
                env.rng.pick(&members)
            }
        };
        let action = match current.action {
            Action::Write(session, write) => {
                Action::Write(session, Write { attempt: current.attempt, ..write })
            }
            Action::Open(_)
            | Action::Read(_)
            | Action::Change(..)
            | Action::Scan { .. }
            | Action::KeepAlive => current.action,
        };
        let (operation, attempt, group) = (current.operation, current.attempt, current.group);
        let timeout = env.rng.range(250 * MILLI, 900 * MILLI);
        env.after(timeout, Event::Client { client, operation, attempt, timer: Timer::Patience });
        if !env.healed && env.rng.chance(env.profile.quality.loss_ppm / 4) {
            return;
        }
        let request = Request { client: client as u32, operation, attempt, group, action };
        let delay = env.rng.around(300_000);
        env.after(delay, Event::Node { node, start: None, event: Box::new(NodeEvent::Request(request)) });
    }

    fn try_again(&mut self, env: &mut Env, client: usize) {
        let state = &mut self.clients[client];
        let Some(current) = &mut state.current else { return };
        current.attempt += 1;
        if current.attempt >= ATTEMPTS && state.probe.is_none() {
            self.end(env, client, None);
        } else {
            self.ask(env, client);
        }
    }

    pub(crate) fn on_answer(
        &mut self,
        env: &mut Env,
        client: usize,
        operation: u64,
        attempt: u32,
        node: usize,
        answer: Answer,
    ) {
        let state = &mut self.clients[client];
        let Some(current) = &mut state.current else { return };
        if current.operation != operation {
            return;
        }
        match (answer, current.action) {
            (Answer::Opened(session), Action::Open(_)) => {
                state.hints.insert(current.group, node);
                state.sessions.insert(current.group, session);
                state.current = None;
                env.after(0, Event::Client { client, operation: 0, attempt: 0, timer: Timer::Ask });
            }
            (Answer::Done, Action::Change(..) | Action::Scan { .. } | Action::KeepAlive) => {
                state.hints.insert(current.group, node);
                self.end(env, client, Some(RegisterOutput::Done));
            }
            (Answer::Written(written), Action::Write(_, write)) => {
                let check = env.truths[current.group].answered(node, write.client, write.seq, written);
                env.note(check);
                state.hints.insert(current.group, node);
                self.end(env, client, Some(RegisterOutput::Done));
            }
            (Answer::Value { value, leased }, Action::Read(_)) => {
                state.hints.insert(current.group, node);
                if state.probe.is_some() && !leased {
                    // Only a read under the lease shows that leases work again.
                    current.attempt += 1;
                    let (operation, attempt) = (current.operation, current.attempt);
                    env.after(50 * MILLI, Event::Client { client, operation, attempt, timer: Timer::Ask });
                    return;
                }
                let value = (value != 0).then_some(value);
                self.end(env, client, Some(RegisterOutput::Value(value)));
            }
            (Answer::Refused(hint), _) if attempt == current.attempt => {
                match hint {
                    Some(hint) => state.hints.insert(current.group, hint),
                    None => state.hints.remove(&current.group),
                };
                current.attempt += 1;
                let (operation, attempt) = (current.operation, current.attempt);
                let delay = env.rng.range(5 * MILLI, 60 * MILLI);
                if current.attempt >= ATTEMPTS && state.probe.is_none() {
                    self.end(env, client, None);
                } else {
                    env.after(delay, Event::Client { client, operation, attempt, timer: Timer::Ask });
                }
            }
            (Answer::Misrouted, Action::Write(session, write)) if attempt == current.attempt => {
                let seq = state.seqs.entry(current.group).or_default();
                *seq += 1;
                current.action = Action::Write(session, Write { seq: *seq, ..write });
                self.try_again(env, client);
            }
            // It is not for one shard.
            (Answer::Misrouted, Action::Change(..) | Action::Scan { .. }) if attempt == current.attempt => {
                self.end(env, client, None);
            }
            (Answer::Misrouted | Answer::Refused(_) | Answer::Unknown, _)
            | (Answer::Opened(_) | Answer::Written(_) | Answer::Value { .. } | Answer::Done, _) => {}
        }
    }

    /// The run is over: what is under way has no known outcome.
    pub(crate) fn finish(&mut self, env: &mut Env) {
        for client in 0..self.clients.len() {
            self.end(env, client, None);
        }
    }

    fn end(&mut self, env: &mut Env, client: usize, output: Option<RegisterOutput>) {
        let state = &mut self.clients[client];
        let Some(current) = state.current.take() else { return };
        self.answered += u64::from(output.is_some());
        let input = match current.action {
            Action::Open(_) | Action::Change(..) | Action::Scan { .. } | Action::KeepAlive => None,
            Action::Write(_, write) => Some(RegisterInput {
                key: u64::from(write.key),
                action: RegisterAction::Write(write.value()),
            }),
            Action::Read(key) => Some(RegisterInput { key: u64::from(key), action: RegisterAction::Read }),
        };
        if let Some(input) = input {
            let end = match output {
                Some(output) => End::Returned { at: env.now, output },
                None => End::Unknown,
            };
            let (client, call) = (client as u64, current.called);
            self.histories.entry(current.group).or_default().push(Operation { client, call, input, end });
            state.probe = state.probe.map(|probe| match probe {
                Probe::Write(group) => Probe::Read(group),
                Probe::Read(_) | Probe::Done => Probe::Done,
            });
        }
        let pace = if state.probe.is_some() {
            0
        } else {
            env.profile.heal_at / (env.profile.operations / u64::from(env.profile.clients) + 1)
        };
        let delay = env.rng.around(pace);
        env.after(delay, Event::Client { client, operation: 0, attempt: 0, timer: Timer::Ask });
    }
}
