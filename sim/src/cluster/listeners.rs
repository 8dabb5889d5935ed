//! Clients that watch through gateways: each has a stream with a few watches of one group, goes on where it was at another
//! gateway, and is shown every change once, whole, in order, and nothing from the future.

use gateway_core::Failure;
use gateway_core::watch::{Canceled, Create, Events, Filters, Frame, NotCreated, Told as Says};
use keyspace::{Event as KeyEvent, EventKind, KeyRange, Revision, RevisionEvents};

use super::clock::{MILLI, SECOND};
use super::commands::{Family, single};
use super::coverage::Mark;
use super::env::{Env, trace};
use super::events::{Event, GatewayEvent, ToStream, ToWatchers, Told};
use super::watchers::is_as;

/// Watches of a stream, at most.
const WATCHES_MAX: u64 = 3;

#[derive(Debug)]
pub(crate) struct Listeners(Vec<Listener>);

#[derive(Debug)]
struct Listener {
    group: usize,
    gateway: usize,
    /// Numbers the streams that it opens.
    connection: u64,
    is_open: bool,
    watches: Vec<Watch>,
    /// The id of the next watch on this stream.
    next_id: i64,
    /// The newest revision that this stream has told.
    said: i64,
    /// It reads slowly.
    is_slow: bool,
}

#[derive(Debug)]
struct Watch {
    range: KeyRange,
    prev_kv: bool,
    filters: Filters,
    progress_notify: bool,
    /// The first revision that it has not been shown; 0 before it knows where it begins.
    next: i64,
    /// On the present stream.
    id: Option<i64>,
    is_created: bool,
    /// The newest revision that was committed when it was asked for.
    committed: i64,
}

impl Listeners {
    pub(crate) fn new(env: &mut Env) -> Listeners {
        let mut listeners = Vec::new();
        for number in 0..env.profile.listeners {
            let group = env.rng.index(env.profile.groups.len());
            let watches = (0..env.rng.range(1, WATCHES_MAX)).map(|_| Watch::new(env, group)).collect();
            let gateway = env.rng.index(env.profile.gateways);
            let is_slow = env.rng.below(4) == 0;
            listeners.push(Listener {
                group,
                gateway,
                connection: 0,
                is_open: false,
                watches,
                next_id: 0,
                said: 0,
                is_slow,
            });
            let delay = env.rng.below(8 * SECOND);
            env.after(delay, Event::Listener { listener: number as usize, connection: 0 });
        }
        Listeners(listeners)
    }

    /// It opens its stream, or looks after it.
    pub(crate) fn on_timer(&mut self, env: &mut Env, number: usize, connection: u64) {
        let listener = &mut self.0[number];
        if listener.connection != connection {
            return;
        }
        if !listener.is_open {
            listener.open(env, number);
            return;
        }
        for watch in 0..listener.watches.len() {
            if listener.watches[watch].id.is_none() {
                listener.create(env, number, watch);
            }
        }
        match env.rng.below(12) {
            0 if !env.healed => {
                env.mark(Mark::ListenerMoved);
                listener.tell(env, number, ToWatchers::Close);
                listener.gateway = env.rng.index(env.profile.gateways);
                listener.open(env, number);
                return;
            }
            1 if !env.healed => {
                let watch = env.rng.index(listener.watches.len());
                if let Some(id) = listener.watches[watch].id.filter(|_| listener.watches[watch].is_created) {
                    listener.watches[watch].id = None;
                    listener.tell(env, number, ToWatchers::Cancel(id));
                    listener.create(env, number, watch);
                }
            }
            2..=6 => listener.tell(env, number, ToWatchers::Progress),
            _ => {}
        }
        let again = env.rng.range(200 * MILLI, 2 * SECOND);
        env.after(again, Event::Listener { listener: number, connection });
    }

    pub(crate) fn on_told(&mut self, env: &mut Env, number: usize, connection: u64, told: Told) {
        let listener = &mut self.0[number];
        if listener.connection != connection || !listener.is_open {
            return;
        }
        match told {
            Told::Broken => {
                trace!(env, "listener {number}: its stream is broken");
                listener.is_open = false;
                listener.gateway = env.rng.index(env.profile.gateways);
                let delay = env.rng.around(100 * MILLI);
                env.after(delay, Event::Listener { listener: number, connection });
            }
            Told::Frame(frame) => {
                listener.on_frame(env, number, *frame);
                let listener = &self.0[number];
                let delay = match env.rng.below(4) {
                    0 if listener.is_slow && !env.healed => env.rng.below(2 * SECOND),
                    _ => env.rng.around(200_000),
                };
                let to = ToStream { stream: number, connection, what: ToWatchers::Read(1) };
                let event = Box::new(GatewayEvent::Stream(to));
                env.after(delay, Event::ToGateway { gateway: listener.gateway, event });
            }
        }
    }

    /// One of a group that has not been shown everything.
    pub(crate) fn behind(&self, env: &Env, group: usize) -> Option<String> {
        let of_group = self.0.iter().enumerate().filter(|(_, listener)| listener.group == group);
        let mut watches =
            of_group.flat_map(|(number, listener)| listener.watches.iter().map(move |watch| (number, watch)));
        let behind = watches.find(|(_, watch)| {
            let due = env.truths[group].events(&watch.range, watch.next, i64::MAX);
            env.maps.shards_of(group, &watch.range) == 1 && watch.next > 0 && !watch.wanted(due).is_empty()
        });
        behind.map(|(number, watch)| format!("listener {number} is at {} of {watch:?}", watch.next))
    }
}

impl Watch {
    fn new(env: &mut Env, group: usize) -> Watch {
        let place = env.maps.place_of(group);
        let range = match env.rng.below(5) {
            0 => single(place, Family::Register, env.rng.below(4) as u8),
            1 => Family::Other.keys(place),
            2 => Family::CallersOther.keys(place),
            3 => Family::CallersRegister.keys(place),
            _ => KeyRange::all(),
        };
        let parts = env.maps.parts(group, &range);
        // One of several shards is refused.
        let spans = env.rng.below(12) == 0 && env.maps.shards_of(group, &range) > 1;
        let range = if spans { range } else { parts[env.rng.index(parts.len())].clone() };
        let filters = Filters { no_put: env.rng.below(8) == 0, no_delete: env.rng.below(8) == 0 };
        Watch {
            range,
            prev_kv: env.rng.flip(),
            filters,
            progress_notify: env.rng.flip(),
            next: env.rng.pick(&[0, 0, 1, 2, 60]),
            id: None,
            is_created: false,
            committed: 0,
        }
    }

    /// What it is shown of what happened.
    fn wanted(&self, due: Vec<RevisionEvents>) -> Vec<RevisionEvents> {
        let passes = |event: &&KeyEvent| match event.kind {
            EventKind::Put => !self.filters.no_put,
            EventKind::Delete => !self.filters.no_delete,
        };
        let wanted = due.into_iter().map(|all| {
            let events: Vec<KeyEvent> = all.events.iter().filter(passes).cloned().collect();
            RevisionEvents { revision: all.revision, events: events.into() }
        });
        wanted.filter(|wanted| !wanted.events.is_empty()).collect()
    }
}

impl Listener {
    fn tell(&self, env: &mut Env, number: usize, what: ToWatchers) {
        let to = ToStream { stream: number, connection: self.connection, what };
        let event = Box::new(GatewayEvent::Stream(to));
        // In order, as over a connection.
        env.after(200_000, Event::ToGateway { gateway: self.gateway, event });
    }

    fn open(&mut self, env: &mut Env, number: usize) {
        self.connection += 1;
        (self.is_open, self.next_id, self.said) = (true, 0, 0);
        self.tell(env, number, ToWatchers::Open { group: self.group });
        for watch in 0..self.watches.len() {
            self.create(env, number, watch);
        }
        let delay = env.rng.range(200 * MILLI, 2 * SECOND);
        env.after(delay, Event::Listener { listener: number, connection: self.connection });
    }

    fn create(&mut self, env: &mut Env, number: usize, watch: usize) {
        let id = self.next_id;
        self.next_id += 1;
        let watch = &mut self.watches[watch];
        (watch.id, watch.is_created) = (Some(id), false);
        watch.committed = env.truths[self.group].revision();
        let create = Create {
            id: Some(id),
            range: watch.range.clone(),
            start: Revision(watch.next),
            prev_kv: watch.prev_kv,
            filters: watch.filters,
            fragment: false,
            progress_notify: watch.progress_notify,
        };
        self.tell(env, number, ToWatchers::Create(Box::new(create)));
    }

    fn on_frame(&mut self, env: &mut Env, number: usize, frame: Frame) {
        let revision = frame.stamp.revision().0;
        trace!(env, "listener {number} is told at {revision}: {:?}", frame.told);
        let newest = env.truths[self.group].revision();
        if revision > newest {
            env.fail("watch", format!("listener {number} is told of {revision}, the newest is {newest}"));
        }
        match frame.told {
            Says::Created { id } => {
                let Some(watch) = self.watch_of(id) else { return };
                watch.is_created = true;
                if revision < watch.committed {
                    let committed = watch.committed;
                    env.fail("watch", format!("created at {revision}, {committed} was committed before"));
                }
                if watch.next == 0 {
                    watch.next = revision + 1;
                }
            }
            Says::Events(events) => self.on_events(env, number, revision, &events),
            Says::Progress { id } => self.on_progress(env, number, revision, id),
            Says::NotCreated(NotCreated::Failed(Failure::SpansShards)) => {
                env.mark(Mark::WatchSpansShards);
                // They are created in the order in which that was asked for.
                let waiting = self.watches.iter_mut().filter(|watch| !watch.is_created && watch.id.is_some());
                if let Some(watch) = waiting.min_by_key(|watch| watch.id) {
                    watch.id = None;
                }
            }
            Says::NotCreated(why) => {
                env.fail("watch", format!("listener {number}: no watch is created: {why:?}"));
            }
            Says::Canceled { id, why } => self.on_canceled(env, number, id, why),
        }
        self.said = self.said.max(revision);
    }

    fn watch_of(&mut self, id: i64) -> Option<&mut Watch> {
        self.watches.iter_mut().find(|watch| watch.id == Some(id))
    }

    fn on_events(&mut self, env: &mut Env, number: usize, revision: i64, told: &Events) {
        let group = self.group;
        let Some(watch) = self.watch_of(told.id) else { return };
        let shown: Vec<RevisionEvents> = told
            .parts
            .iter()
            .map(|part| RevisionEvents {
                revision: part.entry.revision,
                events: part.events().cloned().collect(),
            })
            .collect();
        let last = shown.last().map_or(0, |last| last.revision.0);
        let truth = &env.truths[group];
        let due = watch.wanted(truth.events(&watch.range, watch.next, last));
        if !watch.is_created || last > revision || !is_as(&shown, &due, watch.prev_kv, truth.compacted()) {
            let next = watch.next;
            env.fail(
                "watch",
                format!("listener {number} from {next}, at {revision}, is shown {shown:?}, due is {due:?}"),
            );
            return;
        }
        watch.next = last + 1;
        env.mark(Mark::ListenerTold);
    }

    /// It was told everything up to `revision`, of one watch or of all.
    fn on_progress(&mut self, env: &mut Env, number: usize, revision: i64, id: Option<i64>) {
        env.mark(if id.is_some() { Mark::ProgressNotified } else { Mark::ProgressAnswered });
        if revision < self.said {
            env.fail(
                "watch",
                format!("listener {number}: progress at {revision}, it was told of {}", self.said),
            );
        }
        let group = self.group;
        for watch in self.watches.iter_mut().filter(|watch| watch.is_created) {
            if id.is_some_and(|id| watch.id != Some(id)) || watch.id.is_none() {
                continue;
            }
            let missed = watch.wanted(env.truths[group].events(&watch.range, watch.next, revision));
            if !missed.is_empty() {
                env.fail("watch", format!("listener {number}: progress at {revision} without {missed:?}"));
                return;
            }
            watch.next = watch.next.max(revision + 1);
        }
    }

    fn on_canceled(&mut self, env: &mut Env, number: usize, id: i64, why: Canceled) {
        let group = self.group;
        let Some(place) = self.watches.iter().position(|watch| watch.id == Some(id)) else { return };
        match why {
            Canceled::Compacted { compact_revision: Revision(compact_revision) } => {
                let compacted = env.truths[group].compacted();
                let watch = &mut self.watches[place];
                if watch.next >= compact_revision || compact_revision > compacted {
                    let next = watch.next;
                    env.fail(
                        "watch",
                        format!(
                            "listener {number} at {next} ends at {compact_revision}, compacted is {compacted}"
                        ),
                    );
                }
                env.mark(Mark::ListenerCompacted);
                watch.next = compact_revision;
                self.create(env, number, place);
            }
            // So says the gateway's map; a newer one may say otherwise.
            Canceled::Failed(Failure::SpansShards) => {
                env.mark(Mark::WatchSpansShards);
                self.watches[place].id = None;
            }
            Canceled::ByClient | Canceled::Failed(_) => {
                env.fail("watch", format!("listener {number}: watch {id} ends: {why:?}"));
            }
        }
    }
}
