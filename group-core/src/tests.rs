//! The one replica of its group, stepped by hand: its disk is as fast as wanted, and its clock stands still.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use api::gaios::link::v1 as wire;
use api::gaios::link::v1::keep_alive::Wait;
use api::gaios::link::v1::refused::Why;
use api::gaios::link::v1::request::Kind as RequestKind;
use api::gaios::link::v1::response::Kind;
use bytes::{Bytes, BytesMut};
use consensus_core::message::Chosen;
use consensus_core::{
    Config, Durable, GroupId, Liveness, LivenessEvent, LivenessOutput, Message, Mono, NodeId, Options,
    PersistSeq, Record, Rejection, Slot, Tag, Timing, Value,
};
use journal::Lsn;
use keyspace::{
    ClockOwner, ClockStart, ClusterVersion, Command, Envelope, KeyRange, LeaseGrant, LeaseId, LeaseSerial,
    Limits, Proposal, Query, RangeRequest, Revision, RevisionRange, Revisions, Route, SessionId, ShardId,
    ShardSpan, SortOrder, SortTarget, Txn, TxnOp,
};

use crate::clients::{Enrolled, PendingRead, Reading, Subject, Terms, Waiter};
use crate::entries;
use crate::env::{ApplyShare, Disk, Env, LinkId, Links, QueryShare, Settings};
use crate::event::{Event, Progress};
use crate::log_positions::LogPositions;
use crate::mutant::Broken;
use crate::out::{LargeAnswer, Out, ToPeer, ToSnapshots};
use crate::replica::{PROPOSE_AGAIN_AFTER, Replica, Start, encode};
use crate::slices::UNDER_WAY_MAX;
use crate::turn::Turn;
use crate::watches::WATERMARK_EVERY;

/// The smallest step of time.
const MILLISECOND: Duration = Duration::from_millis(1);

const ME: NodeId = NodeId(1);
/// Bytes of events after which a message ends.
const PART: usize = 10_000;
const LINK: LinkId = LinkId(1);
const OTHER: LinkId = LinkId(2);
/// The link of the rig's own session.
const OWN: LinkId = LinkId(99);

/// Links whose gateways take nothing.
#[derive(Debug, Default)]
struct Rooms(BTreeSet<LinkId>);

impl Links for Rooms {
    fn has_room(&self, link: LinkId) -> bool {
        !self.0.contains(&link)
    }

    fn has_room_for_large(&self, link: LinkId) -> bool {
        self.has_room(link)
    }
}

struct Rig {
    replica: Replica,
    now: Mono,
    liveness: Liveness,
    without_room: Rooms,
    /// Answers that have not been looked at.
    answers: BTreeMap<LinkId, Vec<wire::Response>>,
    large: Vec<LargeAnswer>,
    /// For the next turn.
    events: Vec<Event>,
    /// What others were told.
    to_peers: Vec<(NodeId, ToPeer)>,
    /// What the journal holds.
    records: Vec<Record>,
    /// Where the journal ends.
    lsn: u64,
    /// The snapshot being written.
    writing: Slot,
    /// As the journal was told last.
    floor: Lsn,
    works: Works,
}

/// How the disk does.
#[derive(Debug, Clone, Copy)]
enum Works {
    Well,
    Hangs,
    Failed,
}

impl Rig {
    /// The one replica of its group, which leads.
    fn leader() -> Rig {
        Rig::with_shards(vec![ShardSpan::whole()])
    }

    fn with_shards(shards: Vec<ShardSpan>) -> Rig {
        Rig::with(shards, ClusterVersion::NEWEST)
    }

    /// One that knows no newer version than that.
    fn with(shards: Vec<ShardSpan>, known: ClusterVersion) -> Rig {
        let voters = [ME].into_iter().collect();
        let timing = Timing::default();
        let settings = Settings {
            group: GroupId(1),
            node: ME,
            voters,
            timing,
            limits: Limits { quota_bytes: 1 << 30, ..Limits::default() },
            shards,
            shard_map: Bytes::from_static(b"the map"),
            snapshot_least_bytes: 1 << 20,
            snapshot_slice_bytes: 64 << 10,
            large_answer_bytes: 256 << 10,
            watch_part_bytes: PART,
            regions: BTreeMap::new(),
            known,
            leader_regions: Vec::new(),
            queries: QueryShare::default(),
            apply: ApplyShare::default(),
            broken: Broken::default(),
            write_bounds: keyspace::WriteBounds::default(),
            broken_state: keyspace::Broken::default(),
        };
        let now = Mono(1_000_000_000_000);
        let start = Start {
            options: Options { timing, ..Options::new(GroupId(1), ME, 1) },
            durable: Durable::bootstrap(Config::majority([ME])),
            snapshot: None,
            positions: LogPositions::default(),
        };
        let mut rig = Rig {
            replica: Replica::new(settings, start, now),
            now,
            liveness: Liveness::new(ME, [], 1, timing, now),
            without_room: Rooms::default(),
            answers: BTreeMap::new(),
            large: Vec::new(),
            events: Vec::new(),
            to_peers: Vec::new(),
            records: Vec::new(),
            lsn: 0,
            writing: Slot(0),
            floor: Lsn(0),
            works: Works::Well,
        };
        rig.until("it leads", |replica| {
            let is_led = replica.leading && replica.state.limits() == replica.settings.limits;
            is_led && replica.state.version() == replica.settings.known && replica.clock().is_some()
        });
        rig
    }

    /// One turn with these events, and with what was left for it.
    fn turn(&mut self, events: impl IntoIterator<Item = Event>) {
        let mut all = std::mem::take(&mut self.events);
        all.extend(events);
        for event in all {
            self.act(|replica, env| replica.step(env, event));
        }
        let mut turn = Turn::default();
        let mut goes_on = true;
        while goes_on {
            let mut out = Out::default();
            self.act(|replica, env| goes_on = turn.go_on(replica, env, &mut out));
            self.carry_out(out);
        }
    }

    fn carry_out(&mut self, out: Out) {
        assert!(out.sends.is_empty(), "there is nobody else");
        if let Some((upto, _)) = out.records.last() {
            self.lsn += out.records.len() as u64;
            self.events.push(Event::Persisted { upto: *upto, lsn: Lsn(self.lsn) });
        }
        self.records.extend(out.records.into_iter().map(|(_, record)| record));
        self.floor = out.floor.unwrap_or(self.floor);
        self.to_peers.extend(out.to_peers);
        for answer in out.answers {
            self.answers.entry(answer.link).or_default().extend(answer.responses);
        }
        self.without_room.0.extend(out.large.iter().map(|large| large.link));
        self.large.extend(out.large);
        for step in out.snapshots {
            match step {
                ToSnapshots::Begin { slot, .. } => self.writing = slot,
                ToSnapshots::Slice(_) => self.events.push(Event::Snapshot(Progress::Room(self.writing))),
                ToSnapshots::Finish => self.events.push(Event::Snapshot(Progress::Finished(self.writing))),
                ToSnapshots::Abandon | ToSnapshots::Send { .. } => panic!("{step:?}: there is nobody else"),
            }
        }
    }

    /// Turns until it is so; time passes only when there is nothing else to do.
    fn until(&mut self, what: &str, holds: impl Fn(&mut Replica) -> bool) {
        for _ in 0..1000 {
            if holds(&mut self.replica) {
                return;
            }
            if self.events.is_empty() && !self.replica.has_work(&self.without_room) {
                let deadline = self.liveness.next_deadline();
                let at = self.replica.deadline().map_or(deadline, |own| own.min(deadline));
                self.pass_until(at.max(self.now.after(MILLISECOND)));
            }
            self.turn([]);
        }
        panic!("it takes too long until {what}");
    }

    fn pass_until(&mut self, at: Mono) {
        while self.now < at {
            self.now = self.liveness.next_deadline().max(self.now.after(MILLISECOND)).min(at);
            match self.works {
                Works::Well => self.liveness.disk_progress(self.now),
                Works::Hangs => {}
                Works::Failed => self.liveness.disk_failed(self.now),
            }
            self.liveness.tick(self.now);
            let mut out = LivenessOutput::default();
            self.liveness.poll(&mut out);
            self.events.extend(out.events.into_iter().map(Event::Liveness));
        }
    }

    /// Turns until nothing is left that follows from what was asked.
    fn settle(&mut self) {
        self.turn([]);
        while !self.events.is_empty() || self.replica.has_work(&self.without_room) {
            self.turn([]);
        }
    }

    /// What a link was answered since this was asked last.
    fn take(&mut self, link: LinkId) -> Vec<wire::Response> {
        self.answers.remove(&link).unwrap_or_default()
    }

    /// A session of the rig's own, always the same.
    fn session(&mut self) -> SessionId {
        self.turn([request(OWN, 1, open_session())]);
        self.settle();
        let Some(Kind::SessionOpened(opened)) = self.take(OWN).remove(0).kind else { panic!("no session") };
        SessionId(opened.session)
    }

    /// Writes through a session of the rig's own.
    fn write(&mut self, op: keyspace::Op) {
        let session = self.session();
        let seq = self.replica.applied.0;
        self.turn([write(session, seq, op)]);
        self.settle();
        let reply = self.take(OWN).remove(0).kind;
        assert!(matches!(reply, Some(Kind::Reply(_))), "{reply:?}");
    }

    /// The grant of a lease that lives.
    fn grant_of(&self, lease: LeaseId) -> LeaseGrant {
        self.replica.state.lease(lease).unwrap().grant
    }

    /// Why each request of a link was refused that was.
    fn refusals(&mut self, link: LinkId) -> Vec<(u64, Why, u32)> {
        let refused = |response: wire::Response| match response.kind {
            Some(Kind::Refused(refused)) => Some((response.id, refused.why(), refused.leader)),
            _ => None,
        };
        self.take(link).into_iter().filter_map(refused).collect()
    }

    /// Lets a handler act between turns.
    fn act(&mut self, act: impl FnOnce(&mut Replica, &Env<'_>)) {
        let Rig { replica, now, liveness, without_room, .. } = self;
        act(replica, &Env { now: *now, liveness, disk: Disk::default(), links: without_room });
    }
}

/// A request as its gateway would send it.
fn request(link: LinkId, id: u64, kind: RequestKind) -> Event {
    Event::Requests { link, requests: vec![wire::Request { id, kind: Some(kind), ..Default::default() }] }
}

/// A write through the rig's own session.
fn write(session: SessionId, seq: u64, op: keyspace::Op) -> Event {
    let command = encode(&Command::write(session, seq, seq - 1, Route::FIRST, op));
    request(OWN, seq, RequestKind::Write(wire::Write { session: session.0, seq, command }))
}

fn open_session() -> RequestKind {
    RequestKind::OpenSession(wire::OpenSession { nonce: Bytes::from_static(&[7; 16]) })
}

fn put(key: &'static str, value: Vec<u8>) -> keyspace::Op {
    keyspace::Op::Put(keyspace::Put::new(key, value))
}

fn range(key: &'static str, serializable: bool, at_least: i64) -> RequestKind {
    let query = encoded(&Query::Range(RangeRequest::new(KeyRange::single(key))));
    RequestKind::Read(wire::Read { query, serializable, at_least })
}

fn read(query: &Query) -> RequestKind {
    RequestKind::Read(wire::Read { query: encoded(query), serializable: false, at_least: 0 })
}

fn encoded(query: &Query) -> Bytes {
    let mut encoded = BytesMut::new();
    query.encode(&mut encoded);
    encoded.freeze()
}

/// A watch on a key, from the first revision behind the newest, or from `start`.
fn watch(id: u64, key: String, start: i64, credit: u64) -> wire::Request {
    let open = wire::WatchOpen { key: key.into(), start_revision: start, credit, ..Default::default() };
    wire::Request { id, kind: Some(RequestKind::WatchOpen(open)), ..Default::default() }
}

/// A watch on all keys between two.
fn watch_between(id: u64, keys: (&'static str, &'static str), credit: u64) -> wire::Request {
    let (key, range_end) = (keys.0.into(), keys.1.into());
    let open = wire::WatchOpen { key, range_end, credit, prev_kv: true, ..Default::default() };
    wire::Request { id, kind: Some(RequestKind::WatchOpen(open)), ..Default::default() }
}

/// Puts values of so many bytes at `keys` keys, and then deletes all of them with one request.
fn put_and_delete(rig: &mut Rig, keys: usize, bytes: usize) {
    for key in 0..keys {
        rig.write(keyspace::Op::Put(keyspace::Put::new(format!("k{key:04}"), vec![0; bytes])));
    }
    let session = rig.session();
    let range = keyspace::KeyRange::between("k", "l");
    let delete = keyspace::Op::DeleteRange(keyspace::DeleteRange { range, prev_kv: false });
    rig.turn([write(session, rig.replica.applied.0, delete)]);
}

/// The events in an answer.
fn events_in(response: &wire::Response) -> Vec<keyspace::RevisionEvents> {
    match &response.kind {
        Some(Kind::WatchEvents(told)) => {
            keyspace::RevisionEvents::decode_all(told.revisions.clone()).unwrap()
        }
        _ => Vec::new(),
    }
}

/// Bytes of events in all answers since this was asked last, and how many deletions they tell of.
fn take_deletions(rig: &mut Rig, link: LinkId) -> (usize, usize) {
    let answers = rig.take(link);
    let all: Vec<keyspace::Event> =
        answers.iter().flat_map(events_in).flat_map(|revision| revision.events.to_vec()).collect();
    let bytes = all.iter().map(keyspace::Event::size_bytes).sum();
    (bytes, all.iter().filter(|event| event.kind == keyspace::EventKind::Delete).count())
}

/// What a gateway was told of its watches, a word each.
fn told(answers: Vec<wire::Response>) -> Vec<String> {
    let tell = |response: wire::Response| match (response.id, response.kind) {
        (id, Some(Kind::WatchOpened(opened))) => {
            format!("{id} opened at {} from {}", opened.revision, opened.start_revision)
        }
        (id, Some(Kind::WatchEvents(events))) => {
            let revisions = keyspace::RevisionEvents::decode_all(events.revisions).unwrap();
            let revisions: Vec<i64> = revisions.iter().map(|events| events.revision.0).collect();
            let rest = if events.incomplete > 0 { ", and more" } else { "" };
            format!("{id} events {revisions:?}{rest} up to {} of {}", events.upto, events.revision)
        }
        (id, Some(Kind::WatchSynced(synced))) => format!("{id} synced at {}", synced.revision),
        (0, Some(Kind::WatchWatermark(watermark))) => {
            assert_eq!(watermark.group, 1);
            format!("watermark {}", watermark.revision)
        }
        (0, Some(Kind::NotLeading(not))) => format!("group {} is led by {}", not.group, not.leader),
        (id, other) => panic!("{id}: {other:?}"),
    };
    answers.into_iter().map(tell).collect()
}

/// Requests of a client, in one frame.
fn requests_of(connection: u64, requests: impl Iterator<Item = (u64, RequestKind)>) -> Event {
    let request = |(id, kind)| wire::Request { id, kind: Some(kind), connection, ..Default::default() };
    Event::Requests { link: LINK, requests: requests.map(request).collect() }
}

fn cancel(id: u64) -> (u64, RequestKind) {
    (id, RequestKind::Cancel(wire::Cancel {}))
}

fn keep_alive(leases: &[i64]) -> RequestKind {
    keep_alive_waiting(Wait::ForAll, leases)
}

fn keep_alive_waiting(wait: Wait, leases: &[i64]) -> RequestKind {
    RequestKind::KeepAlive(wire::KeepAlive { leases: leases.to_vec(), wait: wait.into() })
}

fn kept(id: i64, ttl: i64) -> wire::KeptLease {
    wire::KeptLease { id, ttl, undecided: false }
}

fn undecided(id: i64) -> wire::KeptLease {
    wire::KeptLease { id, ttl: 0, undecided: true }
}

/// By request, what became of its leases.
fn renewed(answers: Vec<wire::Response>) -> Vec<(u64, Vec<wire::KeptLease>)> {
    let leases = |response: wire::Response| match response.kind {
        Some(Kind::KeptAlive(kept)) => (response.id, kept.leases),
        other => panic!("{other:?}"),
    };
    answers.into_iter().map(leases).collect()
}

#[test]
fn large_answers_wait_until_their_gateway_takes_them_and_hold_up_nobody() {
    let mut rig = Rig::leader();
    rig.write(put("large", vec![0; 5 << 20]));
    rig.write(put("small", vec![0; 5]));
    rig.turn((1..=10).map(|id| request(LINK, id, range("large", id % 2 == 0, 0))));
    rig.turn([request(OTHER, 1, range("small", false, 0))]);
    assert_eq!(rig.take(OTHER).len(), 1);
    for answered in 1..=10 {
        rig.settle();
        assert_eq!(rig.large.len(), answered, "one at a time");
        assert!(!rig.replica.has_work(&rig.without_room), "a link without room holds up nobody");
        rig.without_room.0.clear();
        rig.turn([Event::LinkDrained]);
    }
    assert_eq!(rig.large.iter().map(|large| large.request).collect::<BTreeSet<_>>().len(), 10);
}

/// A read of all keys, by a transaction of so many ranges.
fn read_all(ranges: usize) -> RequestKind {
    let all = RangeRequest {
        sort_order: SortOrder::Descend,
        sort_target: SortTarget::Mod,
        ..RangeRequest::new(KeyRange::all())
    };
    let success = (0..ranges).map(|_| TxnOp::Range(all.clone())).collect();
    read(&Query::Txn(Txn { success, ..Txn::default() }))
}

/// One with so many keys, which looks at ten of them in a step and does one step in a turn.
fn with_short_steps(keys: u8) -> Rig {
    let mut rig = Rig::leader();
    for key in 0..keys {
        rig.write(keyspace::Op::Put(keyspace::Put::new(vec![b'k', key], "")));
    }
    rig.replica.settings.queries = QueryShare { step_keys: 10, turn: Duration::ZERO };
    rig
}

fn outcome(answers: &[wire::Response]) -> keyspace::Reply {
    let Some(Kind::Reply(reply)) = answers[0].kind.clone() else { panic!("{answers:?}") };
    keyspace::decode_outcome(reply).unwrap().unwrap()
}

#[test]
fn a_long_query_leaves_room_for_everything_else() {
    let mut rig = with_short_steps(95);
    let session = rig.session();
    let (before, seq) = (rig.replica.state.resolved().revision(), rig.replica.applied.0);
    rig.turn([request(LINK, 1, read_all(2)), write(session, seq, put("later", Vec::new()))]);
    rig.turn([]);
    assert!(rig.replica.state.resolved().revision() > before, "it is written meanwhile");
    rig.turn([request(OTHER, 1, range("later", false, 0))]);
    rig.turn([]);
    assert_eq!(rig.take(OTHER).len(), 1, "and read");
    assert_eq!(rig.take(LINK).len(), 0, "while the long query goes on");
    let mut turns = 0;
    while !rig.answers.contains_key(&LINK) {
        rig.turn([]);
        turns += 1;
        assert!(turns < 20, "two hundred keys and some work beside them are twenty steps and a few");
    }
    let keyspace::Reply::Txn(reply) = outcome(&rig.take(LINK)) else { panic!("no transaction") };
    assert_eq!(reply.revision, before, "all of it is as of when it began");
    for response in &reply.responses {
        let keyspace::TxnOpReply::Range(range) = response else { panic!("{response:?}") };
        assert_eq!((range.revision, range.kvs.len()), (before, 95));
    }
}

#[test]
fn many_leases_are_listed_in_steps_soonest_end_first() {
    let mut rig = with_short_steps(1);
    for id in 1..=45 {
        rig.write(keyspace::Op::LeaseGrant { id: LeaseId(id), ttl: 1000 - id });
    }
    rig.turn([request(LINK, 1, read(&Query::Leases))]);
    let mut turns = 1;
    while !rig.answers.contains_key(&LINK) {
        rig.turn([]);
        turns += 1;
        assert!(turns < 10, "five steps of ten");
    }
    assert!(turns >= 5, "one step in a turn");
    let keyspace::Reply::Leases { leases, .. } = outcome(&rig.take(LINK)) else { panic!("no list") };
    assert_eq!(leases, (1..=45).rev().map(LeaseId).collect::<Vec<_>>());
}

#[test]
fn long_queries_take_turns_and_few_are_under_way() {
    let mut rig = with_short_steps(50);
    let count = UNDER_WAY_MAX as u64 + 4;
    rig.turn((1..=count).map(|id| request(LINK, id, read_all(100))));
    let under_way = |rig: &Rig| rig.replica.slices.under_way(LINK);
    for _ in 0..2 * count {
        rig.turn([]);
    }
    assert_eq!(under_way(&rig), UNDER_WAY_MAX);
    rig.turn([request(OTHER, 1, range("k", false, 0))]);
    rig.turn([]);
    assert_eq!(rig.take(OTHER).len(), 1, "another link has its turn");
    rig.turn([request(OTHER, 2, read_all(1))]);
    rig.until("a long one of another link is answered", |replica| replica.counters.queries == count + 2);
    rig.settle();
    assert_eq!(rig.take(LINK).len() as u64, count, "and in the end everybody");
    assert_eq!(under_way(&rig), 0);
}

#[test]
fn long_queries_that_wait_for_a_place_are_bounded_fair_and_taken_back() {
    let mut rig = with_short_steps(50);
    let flood = 6000;
    for id in 1..=flood {
        rig.turn([requests_of(1, [(id, read_all(100))].into_iter())]);
    }
    let refused = |answer: &wire::Response| matches!(&answer.kind, Some(Kind::Refused(why)) if why.why() == Why::Overloaded);
    let answers = rig.take(LINK);
    assert!(answers.iter().any(refused), "not all of a client's are kept");
    rig.turn([requests_of(2, [(flood + 1, read_all(1))].into_iter())]);
    let mut turns = 0;
    while !rig.take(LINK).iter().any(|answer| answer.id == flood + 1) {
        rig.turn([]);
        turns += 1;
        assert!(turns < 20_000, "another client's has the next place or so");
    }
    rig.turn([requests_of(1, (1..=flood).map(cancel))]);
    assert!(!rig.replica.has_waiting());
    assert_eq!(rig.replica.slices.under_way(LINK), 0);
}

#[test]
fn long_queries_of_a_link_that_closes_are_dropped() {
    let mut rig = with_short_steps(50);
    rig.turn((1..=20).map(|id| request(LINK, id, read_all(100))));
    for _ in 0..50 {
        rig.turn([]);
    }
    rig.turn([Event::LinkClosed(LINK)]);
    assert!(!rig.replica.has_work(&rig.without_room));
    assert_eq!(rig.replica.slices.under_way(LINK), 0);
    rig.write(keyspace::Op::Compact { revision: rig.replica.state.resolved().revision().0 });
    assert!(!rig.replica.state.is_held_back(), "nothing of theirs is kept");
}

#[test]
fn what_is_taken_back_is_not_answered_wherever_it_waits() {
    let mut rig = Rig::leader();
    rig.write(put("a", Vec::new()));
    rig.without_room.0.insert(LINK);
    let behind = rig.replica.state.resolved().revision().next().0;
    let (at_once, later) = (range("a", false, 0), range("a", true, behind));
    let status = RequestKind::Status(wire::StatusRequest { wait_ms: 900, least_term: u64::MAX });
    let waiting = [(1, at_once), (2, later), (3, status)];
    rig.turn([requests_of(1, waiting.into_iter())]);
    // The leader lease is not there yet, and the point of this one is not applied.
    let read = |request| PendingRead {
        waiter: Waiter { link: LINK, request },
        terms: Terms::default(),
        reading: Reading::WatchSync(9),
    };
    rig.replica.clients.wait_for_apply(Slot(u64::MAX), read(4));
    rig.replica.clients.ask(read(5));
    rig.replica.clients.wait_for_point();
    rig.replica.clients.ask(read(6));
    assert!(rig.replica.has_waiting());
    rig.turn([requests_of(1, (1..=7).map(cancel))]);
    assert!(!rig.replica.has_waiting());
    assert_eq!(rig.replica.counters().cancelled, 6, "the last was never asked for");
    rig.without_room.0.clear();
    rig.pass_until(rig.now.after(Duration::from_secs(2)));
    rig.settle();
    assert_eq!(rig.take(LINK), []);
}

#[test]
fn a_keep_alive_that_is_taken_back_waits_for_no_lease() {
    let mut rig = Rig::leader();
    rig.write(keyspace::Op::LeaseGrant { id: LeaseId(7), ttl: 2 });
    rig.works = Works::Hangs;
    rig.now = rig.now.after(Duration::from_secs(3));
    rig.turn([request(LINK, 1, keep_alive(&[7]))]);
    assert_eq!(rig.replica.parked.len(), 1, "the lease is ending");
    rig.turn([requests_of(1, [cancel(1)].into_iter())]);
    assert!(rig.replica.parked.is_empty());
}

#[test]
fn a_watch_that_is_closed_before_it_is_opened_is_none() {
    let mut rig = Rig::leader();
    let open = wire::WatchOpen { key: Bytes::from_static(b"k"), ..Default::default() };
    let (waiter, terms) = (Waiter { link: LINK, request: 1 }, Terms::default());
    rig.replica.clients.ask(PendingRead { waiter, terms, reading: Reading::WatchOpen(open) });
    rig.turn([request(LINK, 1, RequestKind::WatchClose(wire::WatchClose {}))]);
    rig.settle();
    assert_eq!(rig.replica.watches(), 0);
}

#[test]
fn a_query_whose_time_has_passed_is_not_begun() {
    let mut rig = Rig::leader();
    rig.write(put("a", Vec::new()));
    rig.without_room.0.insert(LINK);
    let worth =
        |id, worth_ms| wire::Request { id, kind: Some(range("a", false, 0)), worth_ms, ..Default::default() };
    let requests = vec![worth(1, 100), worth(2, 0), worth(3, 101)];
    rig.turn([Event::Requests { link: LINK, requests }]);
    rig.pass_until(rig.now.after(Duration::from_millis(100)));
    let before = rig.replica.counters().queries;
    rig.without_room.0.clear();
    rig.turn([Event::LinkDrained]);
    rig.settle();
    assert_eq!(rig.take(LINK).iter().map(|answer| answer.id).collect::<Vec<_>>(), [2, 3]);
    let counters = rig.replica.counters();
    assert_eq!((counters.queries - before, counters.expired), (2, 1));
}

#[test]
fn many_queries_of_one_client_do_not_hold_up_another() {
    let mut rig = Rig::leader();
    rig.write(put("a", Vec::new()));
    rig.without_room.0.insert(LINK);
    rig.turn([requests_of(1, (1..=300).map(|id| (id, range("a", false, 0))))]);
    rig.turn([requests_of(2, [(1000, range("a", false, 0))].into_iter())]);
    rig.turn([requests_of(1, (4..=300).map(cancel))]);
    rig.without_room.0.clear();
    rig.settle();
    let order: Vec<u64> = rig.take(LINK).iter().map(|answer| answer.id).collect();
    assert_eq!(order, [1, 1000, 2, 3]);
    assert_eq!(rig.replica.counters().cancelled, 297);
}

#[test]
fn a_serializable_read_waits_for_what_its_gateway_has_shown() {
    let mut rig = Rig::leader();
    rig.write(put("a", Vec::new()));
    let next = rig.replica.state.resolved().revision().next().0;
    rig.turn([request(LINK, 1, range("a", true, next))]);
    assert!(rig.take(LINK).is_empty());
    rig.write(put("a", Vec::new()));
    let revision = |answers: Vec<wire::Response>| {
        let Some(Kind::Reply(reply)) = answers[0].kind.clone() else { panic!("{answers:?}") };
        keyspace::decode_outcome(reply).unwrap().unwrap().revision().0
    };
    assert_eq!(revision(rig.take(LINK)), next);
    // Not for ever: what is not here may be lost with those who had it.
    rig.turn([request(LINK, 2, range("a", true, i64::MAX))]);
    rig.until("nothing waits", |replica| replica.queries.deadline().is_none());
    rig.settle();
    assert_eq!(revision(rig.take(LINK)), next);
}

#[test]
fn an_idle_group_lets_go_of_the_journal() {
    let mut rig = Rig::leader();
    rig.turn([Event::SnapshotWanted { floor: Lsn(u64::MAX) }]);
    rig.settle();
    assert_eq!(rig.replica.newest_snapshot(), Some(rig.replica.applied()));
    let pinned = rig.floor;
    assert!(rig.replica.positions.is_base_at(Lsn(u64::MAX)), "no base is on its way");

    // Another group writes.
    rig.lsn += 1000;
    let wanted = || Event::SnapshotWanted { floor: pinned };
    rig.turn([wanted(), wanted()]);
    rig.settle();
    assert!(rig.floor > Lsn(pinned.0 + 1000), "its floor has risen past them");

    // What the journal said before it knew changes nothing more.
    let floor = rig.floor;
    rig.turn([wanted()]);
    rig.settle();
    assert_eq!(rig.floor, floor);
}

#[test]
fn a_replica_whose_disk_failed_sends_its_gateways_away() {
    let mut rig = Rig::leader();
    rig.turn([Event::PersistFailed, request(LINK, 1, open_session())]);
    rig.turn([request(LINK, 2, open_session())]);
    assert_eq!(rig.refusals(LINK)[1..], [(2, Why::NotLeader, 0)]);
    // Also when it is the engine that says so.
    let waiter = Waiter { link: LINK, request: 3 };
    let Enrolled::Propose(tag) = rig.replica.clients.enrol(Subject::OpenSession(9), waiter) else {
        unreachable!("it is the first")
    };
    rig.act(|replica, env| replica.on_rejected(env, tag, Rejection::Fenced));
    rig.turn([]);
    assert_eq!(rig.refusals(LINK), [(3, Why::NotLeader, 0)]);
}

#[test]
fn a_leader_whose_disk_hangs_or_fails_steps_down() {
    for works in [Works::Hangs, Works::Failed] {
        let mut rig = Rig::leader();
        rig.works = works;
        rig.until("it steps down", |replica| !replica.elected);
        rig.turn([request(LINK, 1, open_session())]);
        assert_eq!(rig.refusals(LINK), [(1, Why::NotLeader, 0)]);
    }
}

#[test]
fn a_snapshot_whose_file_is_gone_is_taken_again() {
    let mut rig = Rig::leader();
    rig.replica.snapshotting.want();
    rig.settle();
    let slot = rig.replica.newest_snapshot().expect("it was wanted");
    rig.turn([Event::SnapshotLost { slot }]);
    assert_eq!(rig.replica.counters().snapshots_taken, 1);
    rig.settle();
    assert_eq!((rig.replica.newest_snapshot(), rig.replica.counters().snapshots_taken), (Some(slot), 2));
}

#[test]
fn what_is_heard_of_a_snapshot_that_was_given_up_is_not_taken_for_the_next_one() {
    let mut rig = Rig::leader();
    rig.replica.snapshotting.want();
    rig.turn([]);
    assert!(rig.replica.snapshotting.is_taking());
    let old = rig.writing;
    rig.turn([Event::Snapshot(Progress::Failed(old))]);
    assert!(!rig.replica.snapshotting.is_taking());
    rig.write(put("a", Vec::new()));
    rig.replica.snapshotting.want();
    rig.turn([Event::Snapshot(Progress::Finished(old)), Event::Snapshot(Progress::Room(old))]);
    assert_eq!(rig.replica.newest_snapshot(), None);
    rig.settle();
    assert_eq!(rig.replica.newest_snapshot(), Some(rig.replica.applied()));
}

#[test]
fn a_link_that_closes_takes_its_questions_along() {
    let mut rig = Rig::leader();
    let open = wire::WatchOpen { key: Bytes::from_static(b"k"), ..Default::default() };
    let waiter = Waiter { link: LINK, request: 1 };
    // Asked for in the same turn, while there was no lease.
    let terms = Terms::default();
    rig.replica.clients.ask(PendingRead { waiter, terms, reading: Reading::WatchOpen(open) });
    rig.turn([Event::LinkClosed(LINK)]);
    rig.settle();
    assert_eq!(rig.replica.watches(), 0);
}

/// As after a failover: what a watch was not sent meanwhile is compacted when it arrives.
#[test]
fn a_watch_that_was_in_step_elsewhere_goes_on_although_its_place_is_compacted() {
    let mut rig = Rig::leader();
    for key in ["a", "b", "a"] {
        rig.write(put(key, vec![0]));
    }
    rig.write(keyspace::Op::Compact { revision: 4 });
    let watch = |link, linearizable| {
        let open = wire::WatchOpen {
            key: Bytes::from_static(b"a"),
            start_revision: 2,
            credit: 1 << 20,
            linearizable,
            ..Default::default()
        };
        request(link, 1, RequestKind::WatchOpen(open))
    };
    let (moved, new) = (LINK, OTHER);
    rig.turn([watch(moved, false), watch(new, true)]);
    rig.settle();
    let (mut of_moved, mut of_new) = (rig.take(moved), rig.take(new));
    let Some(Kind::WatchEvents(events)) = of_moved.remove(1).kind else { panic!("{of_moved:?}") };
    let revisions = keyspace::RevisionEvents::decode_all(events.revisions).unwrap();
    assert_eq!(revisions.iter().map(|events| events.revision.0).collect::<Vec<_>>(), [2, 4]);
    // A watch that begins in the past is what compaction is there to end.
    let Some(Kind::WatchCanceled(canceled)) = of_new.remove(1).kind else { panic!("{of_new:?}") };
    assert_eq!(canceled.compact_revision, 4);
}

#[test]
fn quiet_watches_cost_no_message_and_no_timer() {
    let mut rig = Rig::leader();
    let requests = (1..=1000).map(|id| watch(id, format!("quiet {id}"), 0, 1 << 20)).collect();
    rig.turn([Event::Requests { link: LINK, requests }]);
    rig.settle();
    assert_eq!(rig.take(LINK).len(), 1000);
    let end = rig.now.after(Duration::from_secs(60));
    while rig.now < end {
        rig.pass_until(rig.now.after(Duration::from_secs(1)));
        rig.settle();
        assert_eq!(rig.replica.watches.watermark_due(&rig.replica.state), None);
    }
    assert_eq!(rig.take(LINK), []);

    // Others write: one watermark a second says so for all of them, and the last one says all.
    let (from, began) = (rig.replica.state.resolved().revision().0, rig.now);
    for number in 1..=40 {
        rig.write(put("busy", vec![number]));
        rig.pass_until(began.after(Duration::from_millis(100) * u32::from(number)));
    }
    rig.until("all is told", |replica| replica.watches.watermark_due(&replica.state).is_none());
    let told = told(rig.take(LINK));
    assert!(rig.now <= began.after(Duration::from_secs(5) + MILLISECOND), "{told:?}");
    assert!((5..=6).contains(&told.len()), "{told:?}");
    assert_eq!(told.last(), Some(&format!("watermark {}", from + 40)));
}

#[test]
fn a_watermark_comes_behind_all_it_speaks_of_and_a_watch_that_falls_behind_says_so() {
    let mut rig = Rig::leader();
    let requests = vec![watch(1, "a".to_owned(), 0, 1 << 20), watch(2, "a".to_owned(), 0, 1)];
    rig.turn([Event::Requests { link: LINK, requests }]);
    rig.turn([Event::Requests { link: OTHER, requests: vec![watch(1, "a".to_owned(), 0, 1)] }]);
    rig.settle();
    assert_eq!(told(rig.take(LINK)), ["1 opened at 1 from 2", "2 opened at 1 from 2"]);
    rig.write(put("a", vec![0]));
    let first = ["1 events [2] up to 2 of 2", "2 events [2] up to 2 of 2", "watermark 2"];
    assert_eq!(told(rig.take(LINK)), first);
    rig.pass_until(rig.now.after(WATERMARK_EVERY));
    rig.write(put("a", vec![1]));
    let second = ["1 events [3] up to 3 of 3", "2 events [] up to 2 of 3", "watermark 3"];
    assert_eq!(told(rig.take(LINK)), second);
    let of_other = told(rig.take(OTHER));
    let expected =
        ["1 opened at 1 from 2", "1 events [2] up to 2 of 2", "watermark 2", "1 events [] up to 2 of 3"];
    assert_eq!(of_other, expected, "no watch of its own is in step");
    // A question is about those in step, and is not held up by the others.
    rig.turn([request(LINK, 9, RequestKind::WatchSync(wire::WatchSync { watch: 0 }))]);
    assert_eq!(told(rig.take(LINK)), ["9 synced at 3"]);
    rig.turn([request(OTHER, 1, RequestKind::WatchCredit(wire::WatchCredit { bytes: 1 << 20 }))]);
    assert_eq!(told(rig.take(OTHER)), ["1 events [3] up to 3 of 3"]);
    rig.turn([request(LINK, 1, RequestKind::WatchClose(wire::WatchClose {})), Event::LinkClosed(OTHER)]);
    rig.pass_until(rig.now.after(WATERMARK_EVERY));
    rig.write(put("a", vec![2]));
    assert_eq!(told(rig.take(LINK)), [""; 0]);
    assert_eq!(told(rig.take(OTHER)), [""; 0]);
}

#[test]
fn a_watch_that_found_nothing_in_the_past_says_that_it_is_in_step() {
    let mut rig = Rig::leader();
    rig.write(put("a", vec![0]));
    rig.turn([Event::Requests { link: LINK, requests: vec![watch(1, "b".to_owned(), 2, 1)] }]);
    rig.settle();
    assert_eq!(told(rig.take(LINK)), ["1 opened at 2 from 2", "1 events [] up to 2 of 2", "watermark 2"]);
}

#[test]
fn a_large_revision_is_sent_in_parts_as_far_as_credit_goes() {
    let mut rig = Rig::leader();
    for key in ["k1", "k2", "k3"] {
        rig.write(put(key, vec![0; 6_000]));
    }
    rig.turn([Event::Requests { link: LINK, requests: vec![watch_between(1, ("k", "l"), 12_000)] }]);
    rig.settle();
    rig.take(LINK);
    // Not as it is applied: there is no credit for the third.
    let range = keyspace::KeyRange::between("k", "l");
    rig.write(keyspace::Op::DeleteRange(keyspace::DeleteRange { range, prev_kv: false }));
    let first = rig.take(LINK);
    assert!(first.iter().flat_map(events_in).all(|part| part.events.len() == 1), "within a message's bound");
    let part = "1 events [5], and more up to 4 of 5";
    assert_eq!(told(first), ["1 events [] up to 4 of 5", part, part], "the last one overdraws it");
    rig.turn([request(LINK, 1, RequestKind::WatchCredit(wire::WatchCredit { bytes: 1_000 }))]);
    rig.settle();
    assert_eq!(told(rig.take(LINK)), ["1 events [5] up to 5 of 5"]);
}

#[test]
fn a_turn_sends_so_much_of_a_large_revision_to_all_watches_together() {
    let mut rig = Rig::leader();
    let watches = 20;
    let requests = (1..=watches).map(|id| watch_between(id, ("k", "l"), 1 << 30)).collect();
    rig.turn([Event::Requests { link: LINK, requests }]);
    rig.settle();
    let (keys, bytes) = (100, 3_000);
    put_and_delete(&mut rig, keys, bytes);
    rig.take(LINK);
    let (mut turns, mut told) = (0, 0);
    while !rig.events.is_empty() || rig.replica.has_work(&rig.without_room) {
        rig.turn([]);
        let (sent, deletions) = take_deletions(&mut rig, LINK);
        assert!(sent <= 8 * PART, "{sent} bytes in a turn");
        (turns, told) = (turns + 1, told + deletions);
    }
    let all = watches as usize * keys;
    assert_eq!(told, all);
    assert!(turns >= all * bytes / (8 * PART), "{turns} turns");
}

/// Whoever watches a key, among those who watch all that one request changes.
#[test]
fn links_take_turns_where_a_large_revision_is_read() {
    let mut rig = Rig::leader();
    let requests = (1..=50).map(|id| watch_between(id, ("k", "l"), 1 << 30)).collect();
    rig.turn([Event::Requests { link: LINK, requests }]);
    rig.turn([Event::Requests { link: OTHER, requests: vec![watch_between(1, ("k", "k0001"), 1 << 30)] }]);
    rig.settle();
    put_and_delete(&mut rig, 100, 3_000);
    rig.take(LINK);
    rig.take(OTHER);
    let mut turns = 0;
    while take_deletions(&mut rig, OTHER).1 == 0 {
        rig.turn([]);
        turns += 1;
    }
    assert!(turns <= 3 && take_deletions(&mut rig, LINK).1 < 50 * 100, "{turns} turns");
}

#[test]
fn a_link_that_takes_nothing_is_sent_no_events_and_holds_up_nobody() {
    let mut rig = Rig::leader();
    for link in [LINK, OTHER] {
        rig.turn([Event::Requests { link, requests: vec![watch_between(1, ("k", "l"), 1 << 30)] }]);
    }
    rig.settle();
    rig.without_room.0.insert(LINK);
    put_and_delete(&mut rig, 20, 3_000);
    rig.settle();
    assert_eq!(take_deletions(&mut rig, OTHER).1, 20);
    assert_eq!(take_deletions(&mut rig, LINK), (0, 0));
    rig.without_room.0.clear();
    rig.turn([Event::LinkDrained]);
    rig.settle();
    assert_eq!(take_deletions(&mut rig, LINK).1, 20);
}

#[test]
fn a_gateway_is_believed_so_much_credit_and_no_more() {
    let mut rig = Rig::leader();
    rig.turn([Event::Requests { link: LINK, requests: vec![watch_between(1, ("k", "l"), u64::MAX)] }]);
    rig.turn([request(LINK, 1, RequestKind::WatchCredit(wire::WatchCredit { bytes: u64::MAX }))]);
    rig.settle();
    put_and_delete(&mut rig, 200, 30_000);
    rig.settle();
    let (sent, _) = take_deletions(&mut rig, LINK);
    assert!(sent < 5 << 20, "{sent} bytes for a gateway that does not read");
}

#[test]
fn a_revision_goes_on_in_what_is_remembered_when_it_is_compacted_meanwhile() {
    let mut rig = Rig::leader();
    rig.turn([Event::Requests { link: LINK, requests: vec![watch_between(1, ("k", "l"), 1)] }]);
    rig.settle();
    put_and_delete(&mut rig, 10, 3_000);
    let credit = |bytes| request(LINK, 1, RequestKind::WatchCredit(wire::WatchCredit { bytes }));
    rig.turn([credit(10 * 3_000 + 10 * 3_000 / 2)]);
    rig.settle();
    rig.take(OWN);
    let (_, before) = take_deletions(&mut rig, LINK);
    assert!((1..9).contains(&before), "{before}");
    rig.write(put("other", Vec::new()));
    rig.write(put("other", Vec::new()));
    let revision = rig.replica.state.resolved().revision().0;
    rig.write(keyspace::Op::Compact { revision });
    rig.turn([credit(1 << 20)]);
    rig.settle();
    assert_eq!(take_deletions(&mut rig, LINK).1, 10 - before);
}

#[test]
fn a_leader_that_steps_down_says_so_where_watches_are() {
    let mut rig = Rig::leader();
    rig.turn([Event::Requests { link: LINK, requests: vec![watch(1, "a".to_owned(), 0, 1)] }]);
    rig.turn([request(OTHER, 1, range("a", true, 0))]);
    rig.settle();
    assert_eq!(rig.take(LINK).len(), 1);
    rig.works = Works::Hangs;
    rig.until("it steps down", |replica| !replica.elected);
    rig.turn([]);
    let of_link = told(rig.take(LINK));
    assert_eq!(of_link.first().map(String::as_str), Some("group 1 is led by 0"), "{of_link:?}");
    assert_eq!(rig.take(OTHER).len(), 1, "the answer, and nothing more");
    // And to whom opens another one there.
    rig.turn([Event::Requests { link: LINK, requests: vec![watch(2, "a".to_owned(), 0, 1)] }]);
    assert_eq!(told(rig.take(LINK)), ["2 opened at 1 from 2", "group 1 is led by 0"]);
    rig.turn([]);
    assert_eq!(rig.take(LINK), []);
}

#[test]
fn a_keep_alive_is_answered_once_the_log_holds_no_shorter_time() {
    let mut rig = Rig::leader();
    let lease = LeaseId(7);
    rig.write(keyspace::Op::LeaseGrant { id: lease, ttl: 1000 });
    let in_log = |rig: &Rig| rig.replica.state.lease(lease).unwrap().remaining_s;
    let grant = rig.grant_of(lease);
    rig.act(|replica, env| {
        let remaining = Command::CheckpointLeases(replica.clock().unwrap(), vec![(grant, 700)]);
        replica.propose_internal(env, &remaining);
    });
    rig.settle();
    assert_eq!(in_log(&rig), 700);
    rig.replica.leases.start(rig.now, Duration::ZERO, rig.replica.state.leases());

    // Also when there is no room for the reset at first.
    rig.turn([request(LINK, 1, keep_alive(&[7]))]);
    assert_eq!(rig.take(LINK), []);
    rig.act(|replica, env| replica.on_rejected(env, Tag(u64::MAX), Rejection::Overloaded));
    rig.settle();
    assert_eq!(in_log(&rig), 1000);
    assert_eq!(renewed(rig.take(LINK)), [(1, vec![kept(7, 1000)])]);

    // From then on nothing needs to be written.
    rig.turn([request(LINK, 2, keep_alive(&[7]))]);
    assert_eq!(rig.take(LINK).len(), 1);
}

#[test]
fn the_end_of_a_lease_is_not_that_of_the_next_with_its_id() {
    let mut rig = Rig::leader();
    let id = LeaseId(7);
    rig.write(keyspace::Op::LeaseGrant { id, ttl: 60 });
    let (session, seq, old) = (rig.session(), rig.replica.applied.0, rig.grant_of(id));
    let again = keyspace::Op::LeaseGrant { id, ttl: 60 };
    rig.turn([write(session, seq, keyspace::Op::LeaseRevoke { id }), write(session, seq + 1, again)]);
    // Nothing commits meanwhile, and the leader sees the old one end.
    let stalled = std::mem::take(&mut rig.events);
    rig.replica.leases.granted(Mono(rig.now.0 - 61_000_000_000), old, 60);
    rig.turn([]);
    assert_eq!(rig.replica.counters.leases_expired, 1);
    rig.events.splice(0..0, stalled);
    rig.settle();
    assert!(rig.grant_of(id).serial > old.serial);
    rig.turn([request(LINK, 1, keep_alive(&[7]))]);
    assert_eq!(renewed(rig.take(LINK)), [(1, vec![kept(7, 60)])]);
}

#[test]
fn a_leader_renews_nothing_before_its_clock_counts() {
    let mut rig = Rig::leader();
    rig.write(keyspace::Op::LeaseGrant { id: LeaseId(7), ttl: 60 });
    // That of an earlier leader is chosen late.
    let late = Command::StartClock(ClockOwner { round: 0, node: 9 });
    rig.act(|replica, env| replica.propose_internal(env, &late));
    rig.until("another clock has begun", |replica| replica.clock().is_none());
    let stalled = std::mem::take(&mut rig.events);
    let waits = [(1, Wait::ForAll, 7), (2, Wait::ForOne, 7), (3, Wait::ForNone, 7), (4, Wait::ForAll, 8)];
    rig.turn(waits.map(|(id, wait, lease)| request(LINK, id, keep_alive_waiting(wait, &[lease]))));
    assert_eq!(renewed(rig.take(LINK)), [(3, vec![undecided(7)]), (4, vec![kept(8, 0)])]);
    // The lease would have ended meanwhile, if nobody had asked.
    rig.pass_until(rig.now.after(Duration::from_secs(59)));
    rig.events.splice(0..0, stalled);
    rig.until("its clock counts", |replica| replica.clock().is_some());
    rig.settle();
    assert_eq!(renewed(rig.take(LINK)), [(1, vec![kept(7, 60)]), (2, vec![kept(7, 60)])]);
}

#[test]
fn a_leases_end_waits_for_the_clock_and_what_was_asked_in_time_is_not_too_late() {
    let mut rig = Rig::leader();
    for id in [7, 8] {
        rig.write(keyspace::Op::LeaseGrant { id: LeaseId(id), ttl: 60 });
    }
    // It leads anew, and there is no room for what it says at first.
    let before = rig.replica.clock();
    rig.act(|replica, env| replica.on_leading(env));
    rig.turn([]);
    let stalled = std::mem::take(&mut rig.events);
    rig.pass_until(rig.now.after(Duration::from_secs(50)));
    rig.turn([request(LINK, 1, keep_alive(&[7]))]);
    rig.pass_until(rig.now.after(Duration::from_secs(50)));
    rig.turn([]);
    assert_eq!((rig.replica.clock(), rig.replica.counters.leases_expired), (None, 0));
    rig.act(|replica, env| replica.on_rejected(env, Tag(u64::MAX), Rejection::Overloaded));
    rig.events.splice(0..0, stalled);
    rig.until("one has ended", |replica| replica.state.lease(LeaseId(8)).is_none());
    rig.settle();
    assert!(rig.replica.clock() > before);
    assert_eq!(renewed(rig.take(LINK)), [(1, vec![kept(7, 60)])]);
}

#[test]
fn who_knows_only_an_older_version_proposes_what_that_has() {
    let mut rig = Rig::with(vec![ShardSpan::whole()], ClusterVersion::FIRST);
    let id = LeaseId(7);
    rig.write(keyspace::Op::LeaseGrant { id, ttl: 60 });
    let grant = rig.grant_of(id);
    assert_eq!((grant.serial, rig.replica.state.version()), (LeaseSerial::NONE, ClusterVersion::FIRST));
    rig.replica.leases.granted(Mono(rig.now.0 - 61_000_000_000), grant, 60);
    rig.settle();
    assert!(rig.replica.state.lease(id).is_none());
    // There is nobody whom it would have to ask for a newer one.
    rig.replica.settings.known = ClusterVersion::NEWEST;
    rig.turn([]);
    rig.settle();
    assert_eq!(rig.replica.state.version(), ClusterVersion::NEWEST);
    assert!(
        rig.replica.clock() == Some(rig.replica.state.clock())
            && rig.replica.clock() != Some(ClockStart::NONE),
        "from then on it says so"
    );
    rig.write(keyspace::Op::LeaseGrant { id, ttl: 60 });
    assert_eq!(rig.grant_of(id).serial, LeaseSerial(1));
}

#[test]
fn the_version_rises_when_all_replicas_know_the_next_one() {
    let mut rig = Rig::with(vec![ShardSpan::whole()], ClusterVersion::FIRST);
    // As if there were two others, of whom one is older.
    let (b, c) = (NodeId(2), NodeId(3));
    let raised = |rig: &mut Rig, told: &[(NodeId, ClusterVersion)]| {
        let told = told.iter().map(|(by, newest)| Event::VersionTold { by: *by, newest: *newest });
        rig.turn(told);
        rig.settle();
        rig.replica.state.version() == ClusterVersion::NEWEST
    };
    rig.replica.settings.voters = [ME, b, c].into_iter().collect();
    rig.replica.settings.known = ClusterVersion::NEWEST;
    assert!(!raised(&mut rig, &[]));
    assert_eq!(rig.to_peers, [(b, ToPeer::VersionAsked), (c, ToPeer::VersionAsked)]);
    assert!(!raised(&mut rig, &[(b, ClusterVersion::NEWEST), (c, ClusterVersion::FIRST)]));
    // It goes, and comes again as a newer one.
    rig.turn([LivenessEvent::PeerDown(c), LivenessEvent::PeerUp(c)].map(Event::Liveness));
    assert_eq!(rig.to_peers.len(), 4, "they are asked again at once");
    assert!(!raised(&mut rig, &[]));
    assert!(raised(&mut rig, &[(c, ClusterVersion::NEWEST)]));
    rig.turn([Event::VersionAsked { by: b }]);
    assert_eq!(rig.to_peers.last(), Some(&(b, ToPeer::Version(ClusterVersion::NEWEST))));
}

#[test]
fn an_entry_of_a_newer_version_is_refused_in_words() {
    let entry = |command: &Command| {
        let entries = [(Slot(9), Value::Batch([encode(command)].into()))].into_iter().collect();
        Message::Chosen(Chosen { commit: Slot(9), entries })
    };
    let raise = entry(&Command::RaiseVersion(ClusterVersion::NEWEST));
    assert_eq!(entries::check_message(ClusterVersion::NEWEST, &raise), Ok(()));
    let error = entries::check_message(ClusterVersion::FIRST, &raise).unwrap_err();
    assert_eq!(error.to_string(), "slot 9: an encoding of version 6, and this Gaios reads version 3");
    let grant = |serial| LeaseGrant { id: LeaseId(7), serial: LeaseSerial(serial) };
    let expire = |serial| entry(&Command::ExpireLeases(ClockStart::NONE, vec![grant(serial)]));
    assert_eq!(entries::check_message(ClusterVersion::FIRST, &expire(0)), Ok(()));
    assert!(entries::check_message(ClusterVersion::FIRST, &expire(1)).is_err());
}

#[test]
fn a_lease_that_has_ended_holds_up_no_other() {
    let mut rig = Rig::leader();
    for id in [7, 8] {
        rig.write(keyspace::Op::LeaseGrant { id: LeaseId(id), ttl: 60 });
    }
    let now = rig.now;
    let ago = |seconds: u64| Mono(now.0 - seconds * 1_000_000_000);
    for (id, granted) in [(7, ago(61)), (8, ago(30))] {
        rig.replica.leases.granted(granted, rig.grant_of(LeaseId(id)), 60);
    }
    // The end of the first is proposed in this turn, and not applied yet.
    let both =
        [(1, Wait::ForAll), (2, Wait::ForNone), (3, Wait::ForOne)].map(|(id, wait)| (id, wait, &[7, 8][..]));
    let ending = [(4, Wait::ForNone), (5, Wait::ForOne)].map(|(id, wait)| (id, wait, &[7][..]));
    let asked = both.into_iter().chain(ending);
    rig.turn(asked.map(|(id, wait, leases)| request(LINK, id, keep_alive_waiting(wait, leases))));
    let of_both = vec![undecided(7), kept(8, 60)];
    assert_eq!(renewed(rig.take(LINK)), [(2, of_both.clone()), (3, of_both), (4, vec![undecided(7)])]);
    assert!(rig.replica.leases.remaining(now, LeaseId(8)) >= Some(60));
    // Had it been refused, it would be proposed again soon.
    rig.act(|replica, env| replica.on_rejected(env, Tag(u64::MAX), Rejection::Overloaded));
    assert!(rig.replica.deadline() <= Some(now.after(PROPOSE_AGAIN_AFTER)));
    rig.settle();
    assert_eq!(renewed(rig.take(LINK)), [(1, vec![kept(7, 0), kept(8, 60)]), (5, vec![kept(7, 0)])]);
}

#[test]
fn what_a_step_commits_is_applied_when_its_messages_have_been_handed_out() {
    let mut rig = Rig::leader();
    rig.turn([request(LINK, 1, open_session())]);
    let persisted = rig.events.remove(0);
    let (before, mut out) = (rig.replica.applied(), Out::default());
    rig.act(|replica, env| {
        replica.step(env, persisted);
        assert!(replica.poll(env, &mut out));
        assert_eq!((replica.applied(), replica.committed().len()), (before, 1));
        while replica.poll(env, &mut out) {}
        assert_eq!((replica.applied(), replica.committed().len()), (before.next(), 0));
    });
    assert!(out.await_durable.is_none_or(|seq| seq > PersistSeq(0)));
}

/// A leader that applies one command in a turn, with its session.
fn with_short_turns() -> (Rig, SessionId) {
    let mut rig = Rig::leader();
    let session = rig.session();
    rig.replica.settings.apply = ApplyShare { turn_cost: 1 };
    (rig, session)
}

#[test]
fn a_turn_applies_no_more_than_its_share() {
    let (mut rig, session) = with_short_turns();
    let (before, first) = (rig.replica.counters().commands, rig.replica.applied());
    rig.turn((1..=5).map(|seq| write(session, seq, put("a", vec![0; 10]))));
    let revision = rig.replica.state.resolved().revision();
    let applied = |rig: &Rig| rig.replica.counters().commands - before;
    assert_eq!(applied(&rig), 0, "the disk is slower");
    // All are committed at once, as one entry. What is asked from then on sees them all.
    rig.turn([request(LINK, 1, range("a", false, 0)), request(LINK, 2, range("a", true, 0))]);
    for turns in 1..=5 {
        assert_eq!(applied(&rig), turns);
        assert_eq!(rig.replica.taken_up(), first.next());
        let is_through = turns == 5;
        assert_eq!(rig.replica.applied() == first.next(), is_through, "a slot is applied as a whole");
        assert_eq!(rig.replica.has_work(&rig.without_room), !is_through, "it wants another turn at once");
        let answered: Vec<u64> = rig.take(OWN).iter().map(|answer| answer.id).collect();
        assert_eq!(answered, [turns], "each is answered when it is applied");
        let read = rig.take(LINK);
        match (turns, is_through) {
            (1, _) => assert!(matches!(outcome(&read), keyspace::Reply::Range(_)), "as it is here"),
            (_, false) => assert_eq!(read, [], "not before its read point is applied"),
            (_, true) => {
                let keyspace::Reply::Range(read) = outcome(&read) else { panic!("no range") };
                assert_eq!(read.revision, Revision(revision.0 + 5));
            }
        }
        rig.turn([]);
    }
}

#[test]
fn commands_that_cost_little_share_a_turn() {
    let mut rig = Rig::leader();
    let session = rig.session();
    let before = rig.replica.counters().commands;
    // Each about as much as twenty-four keys.
    rig.replica.settings.apply = ApplyShare { turn_cost: 60 };
    let reading = |seq| {
        let all = TxnOp::Range(RangeRequest::new(KeyRange::between("a", "z")));
        let txn = Txn { success: vec![TxnOp::Put(keyspace::Put::new("b", "")), all], ..Txn::default() };
        write(session, seq, keyspace::Op::Txn(txn))
    };
    let puts =
        (1..=60).map(|seq| write(session, seq, keyspace::Op::Put(keyspace::Put::new(format!("k{seq}"), ""))));
    rig.turn(puts.chain((61..=62).map(reading)));
    rig.turn([]);
    let mut applied = vec![rig.replica.counters().commands - before];
    while rig.replica.has_work(&rig.without_room) {
        rig.turn([]);
        applied.push(rig.replica.counters().commands - before);
    }
    assert_eq!(applied[..3], [3, 6, 9], "the last one goes beyond");
    assert_eq!(applied[19..], [60, 61, 62], "what reads many keys costs more");
}

#[test]
fn a_snapshot_does_not_wait_for_a_turn_that_happens_to_end_with_a_slot() {
    let mut rig = Rig::leader();
    let session = rig.session();
    // Two puts in a turn; entries of one and then two, so that turns end inside of them.
    rig.replica.settings.apply = ApplyShare { turn_cost: 40 };
    let (mut held, mut seq) = (Vec::new(), 0);
    for puts in [1, 2, 2, 2, 2] {
        let first = seq + 1;
        seq += puts;
        rig.turn((first..=seq).map(|seq| write(session, seq, put("a", Vec::new()))));
        held.append(&mut rig.events);
    }
    let before = rig.replica.applied();
    rig.replica.snapshotting.want();
    rig.turn(held);
    rig.settle();
    assert_eq!(rig.replica.applied(), Slot(before.0 + 5));
    assert_eq!(rig.replica.newest_snapshot(), Some(before.next()), "it was begun behind the first entry");
}

#[test]
fn who_comes_to_lead_serves_when_all_that_was_committed_before_is_applied() {
    let (mut rig, session) = with_short_turns();
    rig.turn((1..=4).map(|seq| {
        let id = LeaseId(i64::try_from(seq).unwrap());
        write(session, seq, keyspace::Op::LeaseGrant { id, ttl: 60 })
    }));
    rig.settle();
    // It is restarted, and leads at once: it is the only one.
    let mut durable = Durable::bootstrap(Config::majority([ME]));
    for record in rig.records.clone() {
        durable.replay(record);
    }
    let start = Start {
        options: Options { timing: rig.replica.settings.timing, ..Options::new(GroupId(1), ME, 1) },
        durable,
        snapshot: None,
        positions: LogPositions::default(),
    };
    rig.replica = Replica::new(rig.replica.settings.clone(), start, rig.now);
    let mut has_waited = false;
    for _ in 0..1000 {
        rig.turn([]);
        let replica = &rig.replica;
        let all = replica.taken_up() == replica.applied();
        has_waited |= replica.elected && replica.engine().status().ready && !all;
        if replica.leading {
            break;
        }
        let at = replica.deadline().map_or(rig.now, |at| at);
        if !replica.has_work(&rig.without_room) {
            rig.pass_until(at.max(rig.now.after(MILLISECOND)));
        }
    }
    assert!(has_waited, "it is ready for the engine before it has applied all");
    assert!(rig.replica.leading);
    let ends = (1..=4).map(|id| rig.replica.leases.remaining(rig.now, LeaseId(id)));
    assert!(ends.into_iter().all(|ends| ends.is_some()), "its clock has every lease that was granted");
}

#[test]
fn a_snapshot_does_not_jump_over_what_is_committed_here() {
    let (mut rig, session) = with_short_turns();
    rig.turn((1..=3).map(|seq| write(session, seq, put("a", Vec::new()))));
    rig.turn([]);
    let slot = rig.replica.taken_up();
    assert!(rig.replica.applied() < slot);
    let config = std::sync::Arc::clone(rig.replica.engine().config());
    let state = Box::new(keyspace::Keyspace::new(keyspace::Options::default()));
    rig.turn([Event::SnapshotReceived { slot, config, state }]);
    rig.settle();
    assert_eq!(rig.take(OWN).len(), 3, "who waits is answered");
    assert_eq!(rig.replica.applied(), slot);
}

#[test]
fn a_gateway_gives_no_revisions() {
    let mut rig = Rig::leader();
    let op = put("a", Vec::new());
    let command = Command::write(SessionId(1), 1, 0, Route::FIRST, op);
    let range = RevisionRange { first: Revision(9), count: 1 };
    let envelope = Envelope { revisions: Revisions::Given(range), ..Envelope::default() };
    let mut encoded = BytesMut::new();
    Proposal { envelope, command }.encode(&mut encoded);
    let write = wire::Write { session: 1, seq: 1, command: encoded.freeze() };
    rig.turn([request(LINK, 1, RequestKind::Write(write))]);
    assert_eq!(rig.refusals(LINK), [(1, Why::Malformed, ME.0)]);
}

#[test]
fn who_asks_for_a_shard_that_is_not_here_is_told_where_it_is() {
    let mut rig = Rig::with_shards(vec![ShardSpan { end: Some("m".into()), ..ShardSpan::whole() }]);
    rig.turn([request(OWN, 1, open_session())]);
    rig.settle();
    let Some(Kind::SessionOpened(opened)) = rig.take(OWN).remove(0).kind else { panic!("no session") };
    let session = SessionId(opened.session);
    let write = |id, route, key| {
        let command = encode(&Command::write(session, id, 0, route, put(key, Vec::new())));
        request(LINK, id, RequestKind::Write(wire::Write { session: session.0, seq: id, command }))
    };
    let elsewhere = Route { shard: ShardId(9), ..Route::FIRST };
    let watch = |key: &'static str| wire::WatchOpen { key: key.into(), credit: 1, ..Default::default() };
    rig.turn([
        write(1, elsewhere, "a"),
        write(2, Route::FIRST, "z"),
        request(LINK, 3, range("z", false, 0)),
        request(LINK, 4, range("z", true, 0)),
        request(LINK, 5, RequestKind::WatchOpen(watch("z"))),
        write(6, Route::FIRST, "a"),
        request(LINK, 7, range("a", false, 0)),
        request(LINK, 8, RequestKind::WatchOpen(watch("a"))),
    ]);
    rig.settle();
    let mut refused = Vec::new();
    for response in rig.take(LINK) {
        match response.kind {
            Some(Kind::Refused(told)) => {
                assert_eq!((told.why(), told.shard_map.as_ref()), (Why::WrongShard, &b"the map"[..]));
                refused.push(response.id);
            }
            Some(Kind::WatchWatermark(_)) => {}
            _ => assert!(response.id >= 6, "{response:?}"),
        }
    }
    refused.sort_unstable();
    assert_eq!(refused, [1, 2, 3, 4, 5]);
}
