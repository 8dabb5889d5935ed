//! The gateway's end of a link, as a plain struct: requests that wait for the link, callers that wait for answers, and what
//! the node's silence means. Whoever has the connection moves the frames, and says when it came up and when it is gone.

mod ask;
mod batch;
mod parts;
mod slots;

use std::time::{Duration, Instant};

use api::gaios::link::v1::{
    self as wire, GatewayFigures, GatewayFrame, Ping, Request, Response, WatchClose, request, response,
};
use fair_queue::{Flow, Full, Priority, Source, Ticket};
use shard_map::GroupId;

use crate::attempt::Unsent;
use crate::route::NodeId;
use crate::silence::{Check, Expected, Health};

use batch::OpenBatch;
use parts::Parts;
use slots::Slots;

pub use ask::{Ask, Unanswered, mismatch, node, refused, sort};
pub use parts::BrokenParts;

/// Where a frame holds what is asked of the node: the number of the group says nothing there.
pub const OF_THE_NODE: GroupId = GroupId(0);
/// Requests that may wait for answers on one link.
const CALLS_MAX: usize = 100_000;

/// A connection, by a number that no other connection of the gateway has had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// See the module. `C` is who waits for the answer to a call, `F` who reads a watch.
#[derive(Debug)]
pub struct LinkEnd<C, F> {
    /// The node at the other end while the connection is up.
    node: Option<NodeId>,
    batch: OpenBatch,
    waiting: Slots<Waiting<C, F>>,
    /// Of answers to those that wait.
    parts: Parts,
    /// Watches among the waiting; they owe nothing.
    watches: usize,
    health: Health,
}

/// What a node is told of a request, whatever it asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Whose it is, and how urgent.
    pub flow: Flow,
    /// For so long an answer is worth something; if there is no limit, `None`.
    pub worth: Option<Duration>,
}

/// What the gateway itself has to say about watches: all in one flow, since it stays in order.
const OWN: Flow = Flow { priority: Priority::Small, source: Source { user: 0, connection: 0 } };
/// What should not wait for anything.
const URGENT: Flow = Flow { priority: Priority::Liveness, ..OWN };

#[derive(Debug)]
struct Waiting<C, F> {
    waiter: Waiter<C, F>,
    /// Its place in the batch. It may have left.
    ticket: Option<Ticket>,
    /// A node that has it is told when nobody waits for it.
    is_cancelled: bool,
}

/// Who waits for what comes under a request's id.
#[derive(Debug)]
pub enum Waiter<C, F> {
    /// For one answer.
    Call {
        /// Which group was asked.
        group: GroupId,
        /// Who.
        by: C,
    },
    /// For all that a watch brings.
    Watch {
        /// Who.
        by: F,
    },
    /// The link itself, for a sign of life.
    Ping,
}

/// Whom a response is for.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard<'a, C, F> {
    /// A caller, who hears no more.
    Answer(C),
    /// The reader of a watch, who hears on.
    Watch(&'a F),
    /// The ping was answered after so long.
    Ping(Option<Duration>),
    /// Its caller gave up, or it is a copy.
    Nobody,
}

/// What there is after a response has come.
#[derive(Debug, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are whole, and a box for each would cost an allocation"
)]
pub enum Gathered {
    /// An answer, or what else the node says.
    Whole(Response),
    /// Whoever waits for this has no room for the answer, for which nobody waits any more once
    /// [`LinkEnd::handle_response`] was told.
    NoRoom {
        /// Of the request.
        id: u64,
        /// As the node says it.
        term: u64,
    },
    /// A part.
    Nothing,
}

impl<C, F> Default for LinkEnd<C, F> {
    fn default() -> LinkEnd<C, F> {
        LinkEnd {
            node: None,
            batch: OpenBatch::default(),
            waiting: Slots::new(),
            parts: Parts::default(),
            watches: 0,
            health: Health::default(),
        }
    }
}

impl<C, F> LinkEnd<C, F> {
    /// The connection is up, and leads to this node.
    pub fn handle_up(&mut self, node: NodeId) {
        debug_assert!(
            self.node.is_none() && self.is_idle(),
            "what belonged to the connection before went with it"
        );
        self.node = Some(node);
    }

    /// The connection is gone. Everybody who waited is given back.
    pub fn handle_down(&mut self) -> Vec<Waiter<C, F>> {
        self.node = None;
        self.batch = OpenBatch::default();
        self.parts = Parts::default();
        self.watches = 0;
        self.health = Health::default();
        let waiting = self.waiting.remove_where(|_| true);
        assert_eq!(self.waiting.len(), 0, "nobody waits for a link that is down");
        waiting.into_iter().map(|(_, waiting)| waiting.waiter).collect()
    }

    /// The node at the other end while the connection is up.
    pub fn node(&self) -> Option<NodeId> {
        self.node
    }

    /// Requests without an answer.
    pub fn owed(&self) -> usize {
        debug_assert!(self.watches <= self.waiting.len(), "watches wait, too");
        self.waiting.len() - self.watches
    }

    /// Whether nothing waits for the link.
    pub fn is_idle(&self) -> bool {
        self.batch.is_empty()
    }

    /// Adds a request whose variable part has `bytes` bytes. Returns its id.
    ///
    /// # Errors
    /// The connection is down, or too much waits.
    pub fn call(
        &mut self,
        group: GroupId,
        kind: request::Kind,
        bytes: usize,
        terms: Terms,
        by: C,
    ) -> Result<u64, Unsent> {
        self.submit(group, kind, bytes, terms, Waiter::Call { group, by })
    }

    /// Opens a watch, as [`LinkEnd::call`] does a call. Its id names the watch.
    ///
    /// # Errors
    /// As there.
    pub fn watch(&mut self, group: GroupId, kind: request::Kind, bytes: usize, by: F) -> Result<u64, Unsent> {
        let terms = Terms { flow: OWN, worth: None };
        let id = self.submit(group, kind, bytes, terms, Waiter::Watch { by })?;
        self.watches += 1;
        assert!(self.watches <= self.waiting.len(), "watches wait, too");
        Ok(id)
    }

    fn submit(
        &mut self,
        group: GroupId,
        kind: request::Kind,
        bytes: usize,
        terms: Terms,
        waiter: Waiter<C, F>,
    ) -> Result<u64, Unsent> {
        if self.node.is_none() {
            return Err(Unsent::Down);
        }
        // Watches owe nothing: there are as many as clients want.
        if self.owed() >= CALLS_MAX {
            return Err(Unsent::Full);
        }
        let is_cancelled = can_be_taken_back(&kind);
        let id = self.waiting.insert(Waiting { waiter, ticket: None, is_cancelled });
        match self.batch.push(terms.flow, group, request(id, kind, terms), bytes) {
            Ok(ticket) => {
                let waiting = self.waiting.get_mut(id).expect("it was inserted above");
                waiting.ticket = Some(ticket);
                assert_eq!(ticket.flow(), terms.flow, "it waits among its own");
                Ok(id)
            }
            Err(Full) => {
                self.waiting.remove(id);
                Err(Unsent::Full)
            }
        }
    }

    /// Adds a message about a live watch. Returns whether it leaves: if the connection is down, the watch is gone, too.
    pub fn tell(&mut self, group: GroupId, id: u64, kind: request::Kind) -> bool {
        debug_assert!(id != 0, "a watch has an id");
        // A step of credit that is lost is lost for good, so these go also when too much waits.
        if self.node.is_some() {
            self.batch.push_always(OWN, group, Request { id, kind: Some(kind), ..Request::default() });
        }
        self.node.is_some()
    }

    /// The caller waits no more. What has not left does not leave; of what has, the node is told if it can still drop it.
    /// Whether there is something to send is told by [`LinkEnd::is_idle`].
    pub fn give_up(&mut self, id: u64) -> Option<Waiter<C, F>> {
        self.parts.forget_one(id);
        let waiting = self.waiting.remove(id)?;
        debug_assert!(
            !matches!(waiting.waiter, Waiter::Watch { .. }),
            "a watch is closed, so that the node hears of it"
        );
        let waiter = self.take_back(id, waiting);
        debug_assert!(self.waiting.get(id).is_none(), "nobody waits for what is given up");
        Some(waiter)
    }

    /// Nobody waits any more for what was asked under this id.
    fn take_back(&mut self, id: u64, waiting: Waiting<C, F>) -> Waiter<C, F> {
        debug_assert!(self.node.is_some(), "what belonged to a connection went with it");
        let Waiting { waiter, ticket, is_cancelled } = waiting;
        let has_left = ticket.is_none_or(|ticket| !self.batch.remove(ticket));
        if let Waiter::Call { group, .. } = &waiter
            && has_left
            && is_cancelled
        {
            let kind = Some(request::Kind::Cancel(wire::Cancel {}));
            // It cannot overtake what has left. One that is lost would have the node work for nobody, so it goes always; there
            // are no more than calls.
            self.batch.push_always(URGENT, *group, Request { id, kind, ..Request::default() });
        }
        waiter
    }

    /// Ends a watch. Returns its reader, unless it had ended before; whether there is something to send is told by
    /// [`LinkEnd::is_idle`].
    pub fn close_watch(&mut self, group: GroupId, id: u64) -> Option<Waiter<C, F>> {
        let Waiting { waiter, ticket, .. } = self.waiting.remove(id)?;
        debug_assert!(matches!(waiter, Waiter::Watch { .. }), "a call is not closed, but given up");
        assert!(self.watches > 0, "every watch is counted");
        self.watches -= 1;
        debug_assert!(self.waiting.get(id).is_none(), "nobody hears of a watch that is closed");
        if ticket.is_none_or(|ticket| !self.batch.remove(ticket)) {
            self.tell(group, id, request::Kind::WatchClose(WatchClose {}));
        }
        Some(waiter)
    }

    /// Takes back all calls to a group, as [`LinkEnd::give_up`] does one: its leader is elsewhere, and their outcome must be
    /// asked for there.
    pub fn abandon(&mut self, abandoned: GroupId) -> Vec<Waiter<C, F>> {
        let gone = self.waiting.remove_where(|waiting| match &waiting.waiter {
            Waiter::Call { group, .. } => *group == abandoned,
            Waiter::Watch { .. } | Waiter::Ping => false,
        });
        self.parts.forget(|id| self.waiting.get(id).is_some());
        assert!(gone.iter().all(|(_, waiting)| !waiting.is_watch()), "watches stay where they are");
        gone.into_iter().map(|(id, waiting)| self.take_back(id, waiting)).collect()
    }

    /// The next frame of what waits.
    pub fn take_frame(&mut self) -> Option<GatewayFrame> {
        debug_assert!(self.node.is_some() || self.is_idle(), "nothing is said to nobody");
        self.batch.take()
    }

    /// Keeps a part of an answer until the answer is whole; what is whole is for [`LinkEnd::handle_response`].
    ///
    /// Whoever waits is asked for room for an answer before anything of it is kept. Without it, what the node has still to send is
    /// taken back, as by [`LinkEnd::give_up`].
    ///
    /// # Errors
    /// The node breaks the rules: the connection is to be left.
    pub fn gather(
        &mut self,
        response: Response,
        has_room: impl FnOnce(&mut C, usize) -> bool,
    ) -> Result<Gathered, BrokenParts> {
        let (part, announced) = match &response.kind {
            Some(response::Kind::ReplyPart(part)) => {
                (Some(part), usize::try_from(part.reply_bytes).unwrap_or(usize::MAX))
            }
            Some(response::Kind::Reply(reply)) => (None, reply.len()),
            Some(_) | None => return Ok(Gathered::Whole(response)),
        };
        let id = response.id;
        let Some(waiting) = self.waiting.get_mut(id) else {
            // Whoever asked has given up.
            return Ok(if part.is_some() { Gathered::Nothing } else { Gathered::Whole(response) });
        };
        if let Waiter::Call { group, by } = &mut waiting.waiter
            && announced > 0
            && !has_room(by, announced)
        {
            if part.is_some() && waiting.is_cancelled {
                let kind = Some(request::Kind::Cancel(wire::Cancel {}));
                self.batch.push_always(URGENT, *group, Request { id, kind, ..Request::default() });
            }
            return Ok(Gathered::NoRoom { id, term: response.term });
        }
        let Some(part) = part else { return Ok(Gathered::Whole(response)) };
        let whole = self.parts.add(id, part)?;
        Ok(whole.map_or(Gathered::Nothing, |reply| {
            Gathered::Whole(Response { kind: Some(response::Kind::Reply(reply)), ..response })
        }))
    }

    /// Bytes of answers that are not whole.
    pub fn gathered(&self) -> usize {
        self.parts.bytes()
    }

    /// A response with this id has come. The time is asked for only if it matters.
    pub fn handle_response(&mut self, now: impl FnOnce() -> Instant, id: u64) -> Heard<'_, C, F> {
        if self.waiting.get(id).is_some_and(Waiting::is_watch) {
            return match self.waiting.get(id).map(|waiting| &waiting.waiter) {
                Some(Waiter::Watch { by }) => Heard::Watch(by),
                Some(Waiter::Call { .. } | Waiter::Ping) | None => Heard::Nobody,
            };
        }
        match self.waiting.remove(id).map(|waiting| waiting.waiter) {
            Some(Waiter::Call { by, .. }) => Heard::Answer(by),
            Some(Waiter::Ping) => Heard::Ping(self.health.handle_answered(now())),
            Some(Waiter::Watch { .. }) | None => Heard::Nobody,
        }
    }

    /// What to do about a node that has said nothing for so long. A ping is added here; it tells the node `figures`.
    pub fn check(
        &mut self,
        now: Instant,
        silent_for: Duration,
        figures: impl FnOnce() -> Option<GatewayFigures>,
    ) -> Check {
        let expected = match (self.owed() > 0, self.watches > 0) {
            (true, _) => Expected::Answer,
            (false, true) => Expected::Events,
            (false, false) => Expected::Nothing,
        };
        let check = self.health.check(now, silent_for, expected);
        if check == Check::Ping {
            let id = self.waiting.insert(Waiting { waiter: Waiter::Ping, ticket: None, is_cancelled: false });
            let kind = Some(request::Kind::Ping(Ping { figures: figures() }));
            self.batch.push_always(URGENT, OF_THE_NODE, Request { id, kind, ..Request::default() });
            assert!(self.owed() > 0, "a ping is waited for");
        }
        check
    }
}

impl<C, F> Waiting<C, F> {
    fn is_watch(&self) -> bool {
        matches!(self.waiter, Waiter::Watch { .. })
    }
}

fn request(id: u64, kind: request::Kind, terms: Terms) -> Request {
    let Terms { flow: Flow { priority, source: Source { user, connection } }, worth } = terms;
    let priority = match priority {
        Priority::Liveness => wire::Priority::Liveness,
        Priority::Small => wire::Priority::Small,
        Priority::Large => wire::Priority::Large,
    };
    // Rounded up, and never none: the gateway gives up before the node does.
    let worth_ms = worth.map_or(0, |worth| u32::try_from(worth.as_millis() + 1).unwrap_or(u32::MAX));
    debug_assert!(
        worth.is_none() || worth_ms > 0,
        "what is worth nothing any more is not worth something for ever"
    );
    Request { id, connection, user, priority: priority.into(), worth_ms, kind: Some(kind) }
}

/// Whether a node that has this is told when nobody waits for its answer. Not of a write, which is proposed as soon as it is
/// taken up: its outcome belongs to the session, and is asked for under its number.
fn can_be_taken_back(kind: &request::Kind) -> bool {
    use request::Kind;
    match kind {
        Kind::Read(_) | Kind::KeepAlive(_) | Kind::Status(_) | Kind::WatchSync(_) => true,
        Kind::Write(_)
        | Kind::OpenSession(_)
        | Kind::LeaderControl(_)
        // Closed rather than taken back.
        | Kind::WatchOpen(_)
        // Answered at once, or not at all.
        | Kind::NodeStatus(_)
        | Kind::Gateways(_)
        | Kind::Ping(_)
        | Kind::WatchCredit(_)
        | Kind::WatchClose(_)
        | Kind::Cancel(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use api::gaios::link::v1::ReplyPart;

    use super::*;
    use crate::any_instant;

    const GROUP: GroupId = GroupId(1);

    fn status() -> request::Kind {
        request::Kind::Status(Default::default())
    }

    fn read() -> request::Kind {
        request::Kind::Read(Default::default())
    }

    fn room(_: &mut char, _: usize) -> bool {
        true
    }

    /// What the next frame holds for the group.
    fn ids(link: &mut LinkEnd<char, char>) -> Vec<u64> {
        let requests = link.take_frame().unwrap().groups.remove(0).requests;
        requests.iter().map(|request| request.id).collect()
    }

    fn up() -> LinkEnd<char, char> {
        let mut link = LinkEnd::default();
        assert_eq!(link.call(GROUP, status(), 0, Terms::default(), 'x'), Err(Unsent::Down));
        link.handle_up(NodeId(7));
        link
    }

    #[test]
    fn an_answer_is_given_once_and_a_watch_goes_on() {
        let mut link = up();
        let call = link.call(GROUP, status(), 0, Terms::default(), 'c').unwrap();
        let watch = link.watch(GROUP, status(), 0, 'w').unwrap();
        assert_eq!(link.owed(), 1);
        let now = any_instant();
        assert_eq!(link.handle_response(|| now, call), Heard::Answer('c'));
        assert_eq!(link.handle_response(|| now, call), Heard::Nobody);
        assert_eq!(link.handle_response(|| now, watch), Heard::Watch(&'w'));
        assert_eq!(link.handle_response(|| now, watch), Heard::Watch(&'w'));
        assert_eq!(link.owed(), 0);
        assert_eq!(ids(&mut link), [call, watch]);
        assert!(link.close_watch(GROUP, watch).is_some() && link.close_watch(GROUP, watch).is_none());
        assert_eq!(link.handle_response(|| now, watch), Heard::Nobody);
        assert_eq!(ids(&mut link), [watch]);
    }

    #[test]
    fn what_is_given_up_does_not_leave_and_the_node_drops_what_has_left() {
        let mut link = up();
        let calls: Vec<u64> =
            (0..3000).map(|_| link.call(GROUP, read(), 0, Terms::default(), 'r').unwrap()).collect();
        let unopened = link.watch(GROUP, status(), 0, 'w').unwrap();
        for id in &calls[1..] {
            assert!(link.give_up(*id).is_some() && link.give_up(*id).is_none());
        }
        assert!(link.close_watch(GROUP, unopened).is_some());
        let write = request::Kind::Write(Default::default());
        let write = link.call(GROUP, write, 0, Terms::default(), 'w').unwrap();
        assert_eq!(ids(&mut link), [calls[0], write]);
        for id in [calls[0], write] {
            assert!(link.give_up(id).is_some());
        }
        let mut groups = link.take_frame().unwrap().groups;
        let [cancel] = groups.remove(0).requests.try_into().unwrap();
        assert_eq!((cancel.id, cancel.kind), (calls[0], Some(request::Kind::Cancel(wire::Cancel {}))));
        assert!(link.is_idle() && link.owed() == 0);
    }

    #[test]
    fn a_node_is_told_whose_a_request_is_and_for_how_long_it_is_worth_an_answer() {
        let mut link = up();
        let source = Source { user: 7, connection: 8 };
        let flow = Flow { priority: Priority::Large, source };
        let worth = Duration::from_micros(1500);
        link.call(GROUP, read(), 0, Terms { flow, worth: Some(worth) }, 'r').unwrap();
        link.call(GROUP, read(), 0, Terms { flow, worth: Some(Duration::ZERO) }, 'r').unwrap();
        let requests = link.take_frame().unwrap().groups.remove(0).requests;
        let Request { user, connection, worth_ms, .. } = requests[0];
        assert_eq!((user, connection, requests[0].priority()), (7, 8, wire::Priority::Large));
        assert_eq!((worth_ms, requests[1].worth_ms), (2, 1), "none would be for ever");
    }

    #[test]
    fn parts_are_kept_while_somebody_waits() {
        let part = |id, reply_bytes| Response {
            id,
            term: 7,
            kind: Some(response::Kind::ReplyPart(ReplyPart { reply_bytes, bytes: "half".into() })),
        };
        let mut link = up();
        let calls: Vec<u64> = (1..=4)
            .map(|group| link.call(GroupId(group), status(), 0, Terms::default(), 'c').unwrap())
            .collect();
        for id in &calls {
            assert_eq!(link.gather(part(*id, 8), room), Ok(Gathered::Nothing));
        }
        assert_eq!(link.gathered(), 16);
        let reply = Some(response::Kind::Reply("halfhalf".into()));
        assert_eq!(
            link.gather(part(calls[0], 0), room),
            Ok(Gathered::Whole(Response { id: calls[0], term: 7, kind: reply }))
        );
        link.give_up(calls[1]);
        link.abandon(GroupId(3));
        assert_eq!(link.gathered(), 4);
        assert_eq!(
            link.gather(part(calls[1], 0), room),
            Ok(Gathered::Nothing),
            "what nobody waits for is dropped"
        );
        assert_eq!(link.gather(part(calls[2], 0), room), Ok(Gathered::Nothing));
        link.handle_down();
        assert_eq!(link.gathered(), 0);
        link.handle_up(NodeId(7));
        let call = link.call(GROUP, status(), 0, Terms::default(), 'c').unwrap();
        assert!(link.gather(part(call, 0), room).is_err());
    }

    #[test]
    fn an_answer_without_room_is_refused_and_the_node_need_not_go_on() {
        let reply = |id| Response { id, term: 7, kind: Some(response::Kind::Reply("whole".into())) };
        let mut link = up();
        let now = any_instant();
        let [whole, parted, small] =
            [(); 3].map(|()| link.call(GROUP, read(), 0, Terms::default(), 'r').unwrap());
        assert_eq!(ids(&mut link), [whole, parted, small]);
        let refused = |id| Ok(Gathered::NoRoom { id, term: 7 });
        assert_eq!(link.gather(reply(whole), |_, bytes| bytes < 5), refused(whole));
        assert_eq!(link.handle_response(|| now, whole), Heard::Answer('r'));
        assert!(link.is_idle(), "it has all been sent");
        let part = |reply_bytes| {
            let part = ReplyPart { reply_bytes, bytes: "half".into() };
            Response { id: parted, term: 7, kind: Some(response::Kind::ReplyPart(part)) }
        };
        assert_eq!(link.gather(part(8), |_, bytes| bytes < 8), refused(parted));
        assert_eq!(link.handle_response(|| now, parted), Heard::Answer('r'));
        assert_eq!(ids(&mut link), [parted], "a Cancel");
        assert_eq!(link.gather(part(0), |_, _| false), Ok(Gathered::Nothing), "what was on its way");
        assert_eq!(link.gathered(), 0);
        assert_eq!(link.gather(reply(small), |_, bytes| bytes == 5), Ok(Gathered::Whole(reply(small))));
    }

    #[test]
    fn calls_are_bounded_in_number_and_watches_are_not() {
        let mut link = up();
        let mut watches = (0..=CALLS_MAX).map(|_| link.watch(GROUP, status(), 0, 'w'));
        assert!(watches.all(|watch| watch.is_ok()));
        let mut calls = (0..CALLS_MAX).map(|_| link.call(GROUP, status(), 0, Terms::default(), 'c'));
        assert!(calls.all(|call| call.is_ok()));
        assert_eq!(link.call(GROUP, status(), 0, Terms::default(), 'c'), Err(Unsent::Full));
    }

    #[test]
    fn a_group_that_is_abandoned_gets_its_calls_back_and_nothing_else() {
        let mut link = up();
        for (group, by) in [(1, 'a'), (2, 'b'), (1, 'c')] {
            link.call(GroupId(group), status(), 0, Terms::default(), by).unwrap();
        }
        link.watch(GROUP, status(), 0, 'w').unwrap();
        let names = |waiters: Vec<Waiter<char, char>>| -> String {
            let name = |waiter| match waiter {
                Waiter::Call { by, .. } | Waiter::Watch { by } => by,
                Waiter::Ping => '!',
            };
            waiters.into_iter().map(name).collect()
        };
        assert_eq!(names(link.abandon(GROUP)), "ac");
        assert_eq!(names(link.handle_down()), "bw");
        assert!(link.is_idle() && link.node().is_none() && link.owed() == 0);
        assert!(!link.tell(GROUP, 1, status()));
    }

    #[test]
    fn a_ping_is_owed_until_it_is_answered() {
        let mut link = up();
        let now = any_instant();
        assert_eq!(link.check(now, Duration::ZERO, || None), Check::Ping, "the first one measures");
        let request = link.take_frame().unwrap().groups.remove(0).requests.remove(0);
        assert!(matches!(request.kind, Some(request::Kind::Ping(_))), "whatever groups the node has");
        let id = request.id;
        assert_eq!(link.owed(), 1);
        let later = now + Duration::from_millis(3);
        assert_eq!(link.handle_response(|| later, id), Heard::Ping(Some(Duration::from_millis(3))));
    }
}
