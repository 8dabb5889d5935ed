//! One group's replica on this node: a task round a [`Replica`]. It waits for events, steps the replica, and carries out
//! what comes of it; everything else is decided in `group-core`.

mod notices;
mod snapshots;
#[cfg(test)]
mod tests;
mod timer;

use std::collections::BTreeMap;
use std::sync::Arc;

use api::gaios::link::v1 as wire;
use bytes::{Bytes, BytesMut};
use consensus_core::{Liveness, Mono, NodeId, PersistSeq, Record};
use group_core::{
    Answer, Counters, Disk, Env, Event, LargeAnswer, LinkId, Links, Out, Replica, Settings, Start, Stateless,
    ToPeer, Turn, look,
};
use journal::Ticket;
use tracing::{error, info};

use self::snapshots::Writing;
use self::timer::Timer;
use crate::clock;
use crate::groups::{GroupEvent, GroupHandle};
use crate::link::Link;
use crate::metrics::GroupMetrics;
use crate::shared::Shared;
use crate::start::GroupStart;

/// Runs a group until the node stops. One whose snapshot is lost first gets one from a peer.
pub(crate) async fn run(shared: Arc<Shared>, group: GroupStart) {
    let GroupStart { handle, settings, start } = group;
    let id = handle.id;
    drive(Task::new(Arc::clone(&shared), handle), settings, start).await;
    shared.groups.remove(id);
}

async fn drive(mut task: Task, settings: Settings, start: Start) {
    let (replica, events) = match start.lacks_state() {
        None => (Replica::new(settings, start, clock::now()), Vec::new()),
        Some(base) => {
            let waiting = Stateless::new(settings, start, base, clock::now());
            let Some(begun) = task.wait_for_state(waiting).await else { return };
            begun
        }
    };
    task.run(replica, events).await;
}

/// What a replica needs of the node.
struct Task {
    shared: Arc<Shared>,
    handle: Arc<GroupHandle>,
    links: KnownLinks,
    turn: Turn,
    out: Out,
    writing: Option<Writing>,
    metrics: GroupMetrics,
    /// What the metrics have of the replica's counters.
    counted: Counters,
    timer: Timer,
    /// The replica has been told to stop.
    stopping: bool,
    label: Vec<u8>,
}

impl Task {
    fn new(shared: Arc<Shared>, handle: Arc<GroupHandle>) -> Task {
        let metrics = shared.metrics.of_group(handle.id);
        Task {
            shared,
            handle,
            links: KnownLinks::default(),
            turn: Turn::default(),
            out: Out::default(),
            writing: None,
            metrics,
            counted: Counters::default(),
            timer: Timer::default(),
            stopping: false,
            label: Vec::new(),
        }
    }

    /// The replica, and what happened after it had its state. `None` when the node stops first.
    async fn wait_for_state(&mut self, mut waiting: Stateless) -> Option<(Replica, Vec<GroupEvent>)> {
        let mut events = Vec::new();
        let mut out = Out::default();
        loop {
            waiting.tick(clock::now(), &mut out);
            self.handle.inbox.take(&mut events);
            let mut taken = std::mem::take(&mut events).into_iter();
            while let Some(event) = taken.next() {
                match waiting.step(clock::now(), self.links.take_up(event), &mut out) {
                    Ok(replica) => {
                        self.carry_out(&mut out);
                        return Some((replica, taken.collect()));
                    }
                    Err(still) => waiting = still,
                }
            }
            self.carry_out(&mut out);
            tokio::select! {
                () = self.shared.stopping.cancelled() => return None,
                () = self.timer.wait(Some(waiting.deadline())) => {}
                () = self.handle.inbox.wait() => {}
            }
        }
    }

    async fn run(mut self, mut replica: Replica, mut events: Vec<GroupEvent>) {
        // The engine may have something to say before anything happens: entries to apply, a deadline.
        self.turn(&mut replica, &mut events);
        loop {
            if replica.has_work(&self.links) {
                tokio::task::yield_now().await;
            } else {
                self.wait(&replica).await;
            }
            self.handle.inbox.take(&mut events);
            self.turn(&mut replica, &mut events);
            if replica.is_done(clock::now()) {
                info!(group = self.handle.id.0, "stopped");
                return;
            }
        }
    }

    /// Waits for an event, the nearest deadline, or the node's wish to stop. May return before.
    async fn wait(&mut self, replica: &Replica) {
        let deadline = replica.deadline();
        let stop = async {
            if self.stopping {
                std::future::pending::<()>().await;
            }
            self.shared.stopping.cancelled().await;
        };
        tokio::select! {
            biased;
            () = self.handle.inbox.wait() => {}
            () = self.timer.wait(deadline) => {}
            () = stop => {}
        }
    }

    /// One turn: everything that came in, then what follows from it.
    fn turn(&mut self, replica: &mut Replica, events: &mut Vec<GroupEvent>) {
        // After the events were taken: see `Env`.
        let seen = self.look();
        for event in events.drain(..) {
            let event = self.links.take_up(event);
            replica.step(&seen.env(&self.links), event);
        }
        if !self.stopping && self.shared.stopping.is_cancelled() {
            self.stopping = true;
            replica.step(&seen.env(&self.links), Event::Stop);
        }
        let mut out = std::mem::take(&mut self.out);
        loop {
            let (seen, before) = (self.look(), replica.counters().commands);
            if !self.turn.go_on(replica, &seen.env(&self.links), &mut out) {
                break;
            }
            if replica.counters().commands > before {
                self.metrics.applied(clock::now().since(seen.now));
            }
            self.carry_out(&mut out);
        }
        self.out = out;
        self.publish(replica);
    }

    fn look(&self) -> Seen {
        let (now, liveness) = look(clock::now, || Arc::clone(&self.shared.liveness.read()));
        let journal = &self.shared.journal;
        let disk = Disk { full: journal.is_full(), crowded: journal.is_crowded() };
        Seen { now, liveness, disk }
    }

    /// Carries out what the replica wants done.
    fn carry_out(&mut self, out: &mut Out) {
        let peers = Arc::clone(&self.shared.peers);
        // What waits for no record leaves before the journal's thread is woken, which may take this core: the way over
        // the other replicas' disks is the longer one.
        out.sends.retain(|send| !self.handle.send_ungated(&peers, send));
        if let Some(seq) = out.await_durable.take() {
            self.handle.await_durable(seq);
        }
        self.persist(&mut out.records);
        for send in out.sends.drain(..) {
            self.handle.send_gated(&peers, send);
        }
        if let Some(floor) = out.floor.take() {
            self.shared.journal.set_floor(self.handle.id.0, floor);
        }
        self.tell_peers(&mut out.to_peers);
        self.answer(&mut out.answers, &mut out.large);
        for step in out.snapshots.drain(..) {
            snapshots::carry_out(&self.shared, &self.handle, &mut self.writing, step);
        }
        for notice in out.notices.drain(..) {
            notices::tell(&self.shared, self.handle.id, notice);
        }
    }

    fn persist(&mut self, records: &mut Vec<(PersistSeq, Record)>) {
        let Some((last, _)) = records.last() else { return };
        let ticket = Ticket(last.0);
        let label = &mut self.label;
        let encode = |(_, record): (PersistSeq, Record)| {
            label.clear();
            record.label(label);
            let mut payload = BytesMut::with_capacity(record.payload_len());
            record.payload(|piece| payload.extend_from_slice(piece));
            journal::Record { label: Bytes::copy_from_slice(label), payload: vec![payload.freeze()] }
        };
        let records = records.drain(..).map(encode).collect();
        let batch = journal::Batch { group: self.handle.id.0, ticket, records };
        if let Err(error) = self.shared.journal.append(batch) {
            error!(group = self.handle.id.0, %error, "the journal takes nothing: this node leaves the group until it is restarted");
            self.turn.journal_failed();
        }
    }

    fn tell_peers(&self, to_peers: &mut Vec<(NodeId, ToPeer)>) {
        let group = self.handle.id;
        for (to, what) in to_peers.drain(..) {
            let Some(peer) = self.shared.peers.get(&to) else { continue };
            match what {
                ToPeer::DigestAsked(slot) => peer.send_digest_asked(group, slot),
                ToPeer::Digest(slot, digest) => peer.send_digest(group, slot, digest),
                ToPeer::SnapshotRequest(at_least) => peer.send_snapshot_request(group, at_least),
                ToPeer::VersionAsked => peer.send_version_asked(group),
                ToPeer::Version(newest) => peer.send_version(group, newest),
            }
        }
    }

    fn answer(&self, answers: &mut Vec<Answer>, large: &mut Vec<LargeAnswer>) {
        for answer in answers.drain(..) {
            if let Some(link) = self.links.0.get(&answer.link) {
                link.send(answer.responses);
            }
        }
        for large in large.drain(..) {
            let Some(link) = self.links.0.get(&large.link).cloned() else { continue };
            link.begin_large(large.request);
            tokio::task::spawn_blocking(move || link.send_large(large));
        }
    }

    fn publish(&mut self, replica: &mut Replica) {
        let engine = replica.engine().status();
        self.handle.set_unready(replica.unready(&engine));
        self.metrics.count(replica.counters(), &self.counted);
        self.counted = *replica.counters();
        self.metrics.publish(&engine, replica.applied(), replica.watches(), replica.differing());
        *self.handle.told.lock() = Some(replica.told(&engine));
    }
}

/// What the replica sees of the node at a moment.
struct Seen {
    now: Mono,
    liveness: Arc<Liveness>,
    disk: Disk,
}

impl Seen {
    fn env<'a>(&'a self, links: &'a KnownLinks) -> Env<'a> {
        Env { now: self.now, liveness: &self.liveness, disk: self.disk, links }
    }
}

/// The links that have asked something and are not closed.
#[derive(Default)]
struct KnownLinks(BTreeMap<LinkId, Arc<Link>>);

impl KnownLinks {
    /// Takes note of whose requests these are, and of who is gone.
    fn take_up(&mut self, event: GroupEvent) -> Event {
        match event {
            GroupEvent::Requests { link, requests } => {
                let id = link.id;
                for request in &requests {
                    // The query is over by now where what it made is on its way.
                    if let Some(wire::request::Kind::Cancel(_)) = &request.kind {
                        link.cancel_large(request.id);
                    }
                }
                self.0.entry(id).or_insert(link);
                Event::Requests { link: id, requests }
            }
            GroupEvent::Other(event) => {
                // Nothing is sent there any more.
                if let Event::LinkClosed(link) = &event {
                    self.0.remove(link);
                }
                event
            }
        }
    }
}

impl Links for KnownLinks {
    fn has_room(&self, link: LinkId) -> bool {
        self.0.get(&link).is_some_and(|link| link.has_room())
    }

    fn has_room_for_large(&self, link: LinkId) -> bool {
        self.0.get(&link).is_some_and(|link| link.has_room_for_large())
    }
}
