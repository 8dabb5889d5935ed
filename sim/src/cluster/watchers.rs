//! Watchers: each follows a range from some revision on, moves between nodes as feeds of gateways do, and is shown every
//! change once, whole, in order and nothing from the future.

use api::gaios::link::v1 as wire;
use api::gaios::link::v1::response::Kind;
use bytes::Bytes;
use keyspace::{Event as KeyEvent, KeyRange, RevisionEvents};

use super::clock::{MILLI, SECOND, Time};
use super::commands::{Family, single};
use super::coverage::Mark;
use super::env::{Env, trace};
use super::events::{Event, NodeEvent, WatchCall};
use super::truth::index;

/// Watchers of each group, at most.
const WATCHERS_MAX: u64 = 3;
/// What a revision takes in a message beside its events, at most.
const FRAMING_BYTES: i64 = 64;

#[derive(Debug)]
pub(crate) struct Watchers(Vec<Watcher>);

#[derive(Debug)]
struct Watcher {
    group: usize,
    range: KeyRange,
    prev_kv: bool,
    /// The first revision that it has not been shown; 0 before it knows where it begins.
    next: i64,
    /// It was in step at some node.
    settled: bool,
    open: Option<Open>,
    /// Numbers what it opens.
    attempt: u32,
}

#[derive(Debug)]
struct Open {
    node: usize,
    told_at: Time,
    /// The node has said that there is nothing that it has not sent.
    in_step: bool,
    /// Bytes of events that it may be sent, but for one event.
    allowed: i64,
    /// What it was shown of the revision that it is at.
    part: Option<RevisionEvents>,
}

impl Watchers {
    pub(crate) fn new(env: &mut Env) -> Watchers {
        let mut watchers = Vec::new();
        for group in 0..env.profile.groups.len() {
            for _ in 0..env.rng.below(WATCHERS_MAX + 1) {
                let place = env.maps.place_of(group);
                let range = match env.rng.below(3) {
                    0 => single(place, Family::Register, env.rng.below(4) as u8),
                    1 => Family::Other.keys(place),
                    _ => KeyRange::all(),
                };
                let parts = env.maps.parts(group, &range);
                let range = parts[env.rng.index(parts.len())].clone();
                let (prev_kv, next) = (env.rng.flip(), env.rng.pick(&[0, 1, 2, 60]));
                watchers.push(Watcher {
                    group,
                    range,
                    prev_kv,
                    next,
                    settled: false,
                    open: None,
                    attempt: 0,
                });
                let watcher = watchers.len() - 1;
                let delay = env.rng.below(8 * SECOND);
                env.after(delay, Event::Watcher { watcher, attempt: 0 });
            }
        }
        Watchers(watchers)
    }

    /// It opens its watch; or it has been open for a while, and is looked after.
    pub(crate) fn on_timer(&mut self, env: &mut Env, watcher: usize, attempt: u32) {
        let state = &mut self.0[watcher];
        if state.attempt != attempt {
            return;
        }
        let Some(open) = &state.open else { return state.open(env, watcher) };
        let silent = env.now - open.told_at;
        let again = env.rng.range(300 * MILLI, 2 * SECOND);
        if silent > 2 * SECOND || !env.healed && env.rng.below(6) == 0 {
            env.mark(Mark::WatchMoved);
            state.call(env, watcher, open.node, WatchCall::Gone);
            state.open = None;
            state.open(env, watcher);
        } else {
            state.call(env, watcher, open.node, WatchCall::Sync);
            env.after(again, Event::Watcher { watcher, attempt });
        }
    }

    /// A node tells something.
    pub(crate) fn on_told(&mut self, env: &mut Env, watcher: usize, attempt: u32, kind: Kind) {
        let state = &mut self.0[watcher];
        let now = env.now;
        let Some(open) = state.open.as_mut().filter(|_| state.attempt == attempt) else { return };
        open.told_at = now;
        trace!(env, "watcher {watcher} g{} at {} is told {kind:?}", state.group, state.next);
        match kind {
            Kind::WatchOpened(opened) => {
                if state.next == 0 {
                    state.next = opened.start_revision;
                }
                if state.next != opened.start_revision {
                    let (next, start) = (state.next, opened.start_revision);
                    env.fail("watch", format!("it asked for {next}, and begins at {start}"));
                }
                open.in_step = opened.start_revision > opened.revision;
            }
            Kind::WatchEvents(events) => {
                let is_in_step = events.upto >= events.revision;
                if std::mem::replace(&mut open.in_step, is_in_step) && !is_in_step {
                    env.mark(Mark::WatchStarved);
                }
                state.on_events(env, watcher, events);
            }
            Kind::WatchWatermark(told) if open.in_step => {
                let missed = env.truths[state.group].events(&state.range, state.next, told.revision);
                if !missed.is_empty() || told.revision > env.truths[state.group].revision() {
                    env.fail("watch", format!("a watermark at {} comes without {missed:?}", told.revision));
                }
                env.mark(Mark::WatchWatermark);
                state.next = state.next.max(told.revision + 1);
            }
            // Any replica will do here.
            Kind::WatchWatermark(_) | Kind::NotLeading(_) => {}
            Kind::WatchSynced(synced) => {
                state.settled = true;
                let missed = env.truths[state.group].events(&state.range, state.next, synced.revision);
                if !missed.is_empty() {
                    env.fail("watch", format!("it is told to be at {}, without {missed:?}", synced.revision));
                }
            }
            Kind::WatchCanceled(canceled) => {
                let compacted = env.truths[state.group].compacted();
                if state.next >= canceled.compact_revision || canceled.compact_revision > compacted {
                    env.fail(
                        "watch",
                        format!("at {} it ends, {canceled:?}, compacted is {compacted}", state.next),
                    );
                }
                env.mark(Mark::WatchCompacted);
                (state.next, state.settled) = (canceled.compact_revision, false);
                state.open = None;
                state.open(env, watcher);
            }
            Kind::Refused(_) => {
                state.open = None;
                let delay = env.rng.around(100 * MILLI);
                env.after(delay, Event::Watcher { watcher, attempt });
            }
            other @ (Kind::Reply(_)
            | Kind::ReplyPart(_)
            | Kind::SessionOpened(_)
            | Kind::KeptAlive(_)
            | Kind::Status(_)
            | Kind::ShardMap(_)
            | Kind::LeaderControlled(_)
            | Kind::NodeStatus(_)
            | Kind::Gateways(_)
            | Kind::Pong(_)) => env.fail("watch", format!("a watch is told {other:?}")),
        }
    }

    /// The group of one that has not been shown everything.
    pub(crate) fn behind(&self, env: &Env, group: usize) -> Option<String> {
        let all = i64::MAX;
        let of_group = self.0.iter().enumerate().filter(|(_, watcher)| watcher.group == group);
        let behind = of_group.filter(|(_, watcher)| {
            watcher.next > 0 && !env.truths[group].events(&watcher.range, watcher.next, all).is_empty()
        });
        behind.map(|(index, watcher)| format!("watcher {index} is at {}", watcher.next)).next()
    }
}

impl Watcher {
    fn open(&mut self, env: &mut Env, watcher: usize) {
        self.attempt += 1;
        let members: Vec<usize> = env.truths[self.group].config().voters.iter().map(index).collect();
        let node = env.rng.pick(&members);
        let credit = env.rng.range(1, 4_000);
        let allowed = credit as i64;
        self.open = Some(Open { node, told_at: env.now, in_step: false, allowed, part: None });
        let open = wire::WatchOpen {
            key: self.range.key.clone(),
            range_end: self.range.wire_end(),
            start_revision: self.next,
            prev_kv: self.prev_kv,
            credit,
            // It goes on with one that it had.
            linearizable: !self.settled,
        };
        let quiet = wire::WatchOpen { key: quiet_key(&self.range), credit: 1, ..wire::WatchOpen::default() };
        self.call(env, watcher, node, WatchCall::Open { watch: Box::new(open), quiet: Box::new(quiet) });
        env.after(SECOND, Event::Watcher { watcher, attempt: self.attempt });
    }

    /// In order, as over a connection.
    fn call(&self, env: &mut Env, watcher: usize, node: usize, call: WatchCall) {
        let (group, attempt) = (self.group, self.attempt);
        let event = Box::new(NodeEvent::Watch { watcher, attempt, group, call });
        env.after(300_000, Event::Node { node, start: None, event });
    }

    fn on_events(&mut self, env: &mut Env, watcher: usize, told: wire::WatchEvents) {
        let bytes = told.revisions.len() as u64;
        let Ok(mut revisions) = RevisionEvents::decode_all(told.revisions) else {
            env.fail("codec", "events of a watch".to_owned());
            return;
        };
        if let Err(violation) = self
            .check_size(&revisions, env.profile.watch_part_bytes, bytes as i64)
            .and_then(|()| self.join_parts(env, &mut revisions, told.upto, told.incomplete))
        {
            return env.fail("watch", violation);
        }
        let truth = &env.truths[self.group];
        let due = truth.events(&self.range, self.next, told.upto);
        // Without events it says only whether it is in step.
        let least = if revisions.is_empty() { self.next - 1 } else { self.next };
        if told.upto < least
            || told.upto > truth.revision()
            || !is_as(&revisions, &due, self.prev_kv, truth.compacted())
        {
            let (next, upto) = (self.next, told.upto);
            env.fail("watch", format!("from {next} up to {upto} it is shown {revisions:?}, due is {due:?}"));
            return;
        }
        env.mark(Mark::WatchTold);
        self.next = told.upto + 1;
        if let Some(open) = &self.open {
            // Slowly at times, until the end.
            let delay = if !env.healed && env.rng.below(4) == 0 { env.rng.below(SECOND) } else { 0 };
            let (group, attempt) = (self.group, self.attempt);
            let event =
                Box::new(NodeEvent::Watch { watcher, attempt, group, call: WatchCall::Credit(bytes) });
            env.after(300_000 + delay, Event::Node { node: open.node, start: None, event });
        }
        if let Some(open) = &mut self.open {
            open.allowed += bytes as i64;
        }
        // Parts follow each other so fast that few would move between two of them.
        let inside = self.open.as_ref().filter(|open| open.part.is_some()).map(|open| open.node);
        if let Some(node) = inside.filter(|_| !env.healed && env.rng.below(6) == 0) {
            env.mark(Mark::WatchMovedInside);
            self.call(env, watcher, node, WatchCall::Gone);
            self.open(env, watcher);
        }
    }

    /// A message is within the bound of messages and within the credit, but for one event.
    fn check_size(&mut self, told: &[RevisionEvents], part: usize, bytes: i64) -> Result<(), String> {
        let Some(open) = self.open.as_mut().filter(|_| !told.is_empty()) else { return Ok(()) };
        let sizes = || told.iter().flat_map(|all| all.events.iter()).map(KeyEvent::size_bytes);
        let (sum, largest) = (sizes().sum::<usize>(), sizes().max().unwrap_or(0));
        // What is sent as it is applied may be larger.
        if sum - largest > 8 * part {
            return Err(format!("a message has {sum} bytes of events"));
        }
        if open.allowed <= 0 || open.allowed < bytes - largest as i64 - FRAMING_BYTES * told.len() as i64 {
            return Err(format!("{bytes} bytes of events come for a credit of {}", open.allowed));
        }
        open.allowed -= bytes;
        Ok(())
    }

    /// Puts a revision that came in parts together, and keeps what is not complete, which must be what was due first.
    fn join_parts(
        &mut self,
        env: &mut Env,
        told: &mut Vec<RevisionEvents>,
        upto: i64,
        incomplete: i64,
    ) -> Result<(), String> {
        let Some(open) = &mut self.open else { return Ok(()) };
        if let Some(mut part) = open.part.take() {
            if told.first().is_some_and(|first| first.revision == part.revision) {
                let rest = told.remove(0);
                part.events = part.events.iter().chain(rest.events.iter()).cloned().collect();
            }
            if part.revision.0 > upto && incomplete == 0 {
                // It said only where it is.
                open.part = Some(part);
                return Ok(());
            }
            told.insert(0, part);
        }
        if incomplete == 0 {
            return Ok(());
        }
        env.mark(Mark::WatchInParts);
        let Some(part) = told.pop().filter(|last| last.revision.0 == incomplete && incomplete == upto + 1)
        else {
            return Err(format!("{incomplete} is said to be incomplete, up to {upto} all is told"));
        };
        let truth = &env.truths[self.group];
        let mut due = truth.events(&self.range, incomplete, incomplete);
        for all in &mut due {
            all.events = all.events.iter().take(part.events.len()).cloned().collect();
        }
        if !is_as(std::slice::from_ref(&part), &due, self.prev_kv, truth.compacted()) {
            return Err(format!("it is shown {part:?} as a part of {due:?}"));
        }
        open.part = Some(part);
        Ok(())
    }
}

/// A key beside those of a range that nobody writes.
fn quiet_key(range: &KeyRange) -> Bytes {
    let mut key = range.key.to_vec();
    // Before the next key that is written, and the next at which a shard may begin.
    key.extend([0, 0]);
    key.into()
}

/// Whether what was told is what was due. `prev_kv`: with what was there before, unless that is compacted: before the events
/// up to that revision.
pub(crate) fn is_as(told: &[RevisionEvents], due: &[RevisionEvents], prev_kv: bool, compacted: i64) -> bool {
    let same = |(told, due): (&RevisionEvents, &RevisionEvents)| {
        told.revision == due.revision
            && told.events.len() == due.events.len()
            && told.events.iter().zip(due.events.iter()).all(|(told, due)| {
                let before = if prev_kv { &due.prev_kv } else { &None };
                let gone = told.kv.mod_revision.0 <= compacted && told.prev_kv.is_none();
                (told.kind, &told.kv) == (due.kind, &due.kv) && (told.prev_kv == *before || gone)
            })
    };
    told.len() == due.len() && told.iter().zip(due).all(same)
}
