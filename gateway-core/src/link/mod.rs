//! The gateway's end of a link, as a plain struct: requests that wait for the link, callers that wait for answers, and what
//! the node's silence means. Whoever has the connection moves the frames, and says when it came up and when it is gone.

mod ask;
mod batch;
mod parts;
mod slots;

use std::time::{Duration, Instant};

use api::gaios::link::v1::{
    GatewayFigures, GatewayFrame, Ping, Request, Response, WatchClose, request, response,
};

use shard_map::GroupId;

use crate::attempt::Unsent;
use crate::route::NodeId;
use crate::silence::{Check, Expected, Health};

use batch::{Full, OpenBatch};
use parts::Parts;
use slots::Slots;

pub use ask::{Ask, Lost, mismatch, node, refused, sort};
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
    waiting: Slots<Waiter<C, F>>,
    /// Of answers to those that wait.
    parts: Parts,
    /// Watches among the waiting; they owe nothing.
    watches: usize,
    health: Health,
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
        let waiters = self.waiting.remove_where(|_| true);
        assert_eq!(self.waiting.len(), 0, "nobody waits for a link that is down");
        waiters
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
    pub fn call(&mut self, group: GroupId, kind: request::Kind, bytes: usize, by: C) -> Result<u64, Unsent> {
        self.submit(group, kind, bytes, Waiter::Call { group, by })
    }

    /// Opens a watch, as [`LinkEnd::call`] does a call. Its id names the watch.
    ///
    /// # Errors
    /// As there.
    pub fn watch(&mut self, group: GroupId, kind: request::Kind, bytes: usize, by: F) -> Result<u64, Unsent> {
        let id = self.submit(group, kind, bytes, Waiter::Watch { by })?;
        self.watches += 1;
        assert!(self.watches <= self.waiting.len(), "watches wait, too");
        Ok(id)
    }

    fn submit(
        &mut self,
        group: GroupId,
        kind: request::Kind,
        bytes: usize,
        waiter: Waiter<C, F>,
    ) -> Result<u64, Unsent> {
        if self.node.is_none() {
            return Err(Unsent::Down);
        }
        // Watches owe nothing: there are as many as clients want.
        if self.owed() >= CALLS_MAX {
            return Err(Unsent::Full);
        }
        let id = self.waiting.insert(waiter);
        match self.batch.push(group, Request { id, kind: Some(kind) }, bytes) {
            Ok(()) => Ok(id),
            Err(Full) => {
                self.waiting.remove(id);
                Err(Unsent::Full)
            }
        }
    }

    /// Adds a message about a live watch. Returns whether it leaves: if the connection is down, the watch is gone, too.
    pub fn tell(&mut self, group: GroupId, id: u64, kind: request::Kind) -> bool {
        // A step of credit that is lost is lost for good, so these go also when too much waits.
        if self.node.is_some() {
            self.batch.push_always(group, Request { id, kind: Some(kind) }, 0);
        }
        self.node.is_some()
    }

    /// The caller waits no more.
    pub fn give_up(&mut self, id: u64) -> Option<Waiter<C, F>> {
        self.parts.forget_one(id);
        let waiter = self.waiting.remove(id);
        debug_assert!(
            !matches!(waiter, Some(Waiter::Watch { .. })),
            "a watch is closed, so that the node hears of it"
        );
        waiter
    }

    /// Ends a watch. Returns its reader, unless it had ended before; whether there is something to send is told by
    /// [`LinkEnd::is_idle`].
    pub fn close_watch(&mut self, group: GroupId, id: u64) -> Option<Waiter<C, F>> {
        let waiter = self.waiting.remove(id)?;
        debug_assert!(matches!(waiter, Waiter::Watch { .. }), "a call is not closed, but given up");
        assert!(self.watches > 0, "every watch is counted");
        self.watches -= 1;
        self.tell(group, id, request::Kind::WatchClose(WatchClose {}));
        Some(waiter)
    }

    /// Takes back all calls to a group: its leader is elsewhere, and their outcome must be asked for there.
    pub fn abandon(&mut self, abandoned: GroupId) -> Vec<Waiter<C, F>> {
        let gone = self.waiting.remove_where(|waiter| match waiter {
            Waiter::Call { group, .. } => *group == abandoned,
            Waiter::Watch { .. } | Waiter::Ping => false,
        });
        self.parts.forget(|id| self.waiting.get(id).is_some());
        gone
    }

    /// The oldest frame that waits.
    pub fn take_frame(&mut self) -> Option<GatewayFrame> {
        debug_assert!(self.node.is_some() || self.is_idle(), "nothing is said to nobody");
        self.batch.take()
    }

    /// Keeps a part of an answer until the answer is whole. Returns what is whole, for [`LinkEnd::handle_response`].
    ///
    /// # Errors
    /// The node breaks the rules: the connection is to be left.
    pub fn gather(&mut self, response: Response) -> Result<Option<Response>, BrokenParts> {
        let Some(response::Kind::ReplyPart(part)) = &response.kind else { return Ok(Some(response)) };
        if self.waiting.get(response.id).is_none() {
            // Whoever asked has given up.
            return Ok(None);
        }
        let whole = self.parts.add(response.id, part)?;
        Ok(whole.map(|reply| Response { kind: Some(response::Kind::Reply(reply)), ..response }))
    }

    /// Bytes of answers that are not whole.
    pub fn gathered(&self) -> usize {
        self.parts.bytes()
    }

    /// A response with this id has come. The time is asked for only if it matters.
    pub fn handle_response(&mut self, now: impl FnOnce() -> Instant, id: u64) -> Heard<'_, C, F> {
        if matches!(self.waiting.get(id), Some(Waiter::Watch { .. })) {
            return match self.waiting.get(id) {
                Some(Waiter::Watch { by }) => Heard::Watch(by),
                Some(Waiter::Call { .. } | Waiter::Ping) | None => Heard::Nobody,
            };
        }
        match self.waiting.remove(id) {
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
            let id = self.waiting.insert(Waiter::Ping);
            let kind = request::Kind::Ping(Ping { figures: figures() });
            self.batch.push_always(OF_THE_NODE, Request { id, kind: Some(kind) }, 0);
            assert!(self.owed() > 0, "a ping is waited for");
        }
        check
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

    fn up() -> LinkEnd<char, char> {
        let mut link = LinkEnd::default();
        assert_eq!(link.call(GROUP, status(), 0, 'x'), Err(Unsent::Down));
        link.handle_up(NodeId(7));
        link
    }

    #[test]
    fn an_answer_is_given_once_and_a_watch_goes_on() {
        let mut link = up();
        let call = link.call(GROUP, status(), 0, 'c').unwrap();
        let watch = link.watch(GROUP, status(), 0, 'w').unwrap();
        assert_eq!(link.owed(), 1);
        let now = any_instant();
        assert_eq!(link.handle_response(|| now, call), Heard::Answer('c'));
        assert_eq!(link.handle_response(|| now, call), Heard::Nobody);
        assert_eq!(link.handle_response(|| now, watch), Heard::Watch(&'w'));
        assert_eq!(link.handle_response(|| now, watch), Heard::Watch(&'w'));
        assert_eq!(link.owed(), 0);
        assert!(link.close_watch(GROUP, watch).is_some() && link.close_watch(GROUP, watch).is_none());
        assert_eq!(link.handle_response(|| now, watch), Heard::Nobody);
        let requests = link.take_frame().unwrap().groups.remove(0).requests;
        assert_eq!(requests.iter().map(|request| request.id).collect::<Vec<_>>(), [call, watch, watch]);
    }

    #[test]
    fn parts_are_kept_while_somebody_waits() {
        let part = |id, reply_bytes| Response {
            id,
            term: 7,
            kind: Some(response::Kind::ReplyPart(ReplyPart { reply_bytes, bytes: "half".into() })),
        };
        let mut link = up();
        let calls: Vec<u64> =
            (1..=4).map(|group| link.call(GroupId(group), status(), 0, 'c').unwrap()).collect();
        for id in &calls {
            assert_eq!(link.gather(part(*id, 8)), Ok(None));
        }
        assert_eq!(link.gathered(), 16);
        let reply = Some(response::Kind::Reply("halfhalf".into()));
        assert_eq!(link.gather(part(calls[0], 0)), Ok(Some(Response { id: calls[0], term: 7, kind: reply })));
        link.give_up(calls[1]);
        link.abandon(GroupId(3));
        assert_eq!(link.gathered(), 4);
        assert_eq!(link.gather(part(calls[1], 0)), Ok(None), "what nobody waits for is dropped");
        assert_eq!(link.gather(part(calls[2], 0)), Ok(None));
        link.handle_down();
        assert_eq!(link.gathered(), 0);
        link.handle_up(NodeId(7));
        let call = link.call(GROUP, status(), 0, 'c').unwrap();
        assert!(link.gather(part(call, 0)).is_err());
    }

    #[test]
    fn calls_are_bounded_in_number_and_watches_are_not() {
        let mut link = up();
        let mut watches = (0..=CALLS_MAX).map(|_| link.watch(GROUP, status(), 0, 'w'));
        assert!(watches.all(|watch| watch.is_ok()));
        let mut calls = (0..CALLS_MAX).map(|_| link.call(GROUP, status(), 0, 'c'));
        assert!(calls.all(|call| call.is_ok()));
        assert_eq!(link.call(GROUP, status(), 0, 'c'), Err(Unsent::Full));
    }

    #[test]
    fn a_group_that_is_abandoned_gets_its_calls_back_and_nothing_else() {
        let mut link = up();
        for (group, by) in [(1, 'a'), (2, 'b'), (1, 'c')] {
            link.call(GroupId(group), status(), 0, by).unwrap();
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
