//! When a link is dialled, which way, and when it is left: directly, or by a relay, which is another node that passes the
//! connection on, where the network parts us from this one only.
//!
//! ```text
//!   Spare ──▶ Dialling ── welcomed ──▶ Up ── lost ──▶ Pausing ──▶ Spare
//!     ▲           │                     │ a direct way was found
//!     └───────────┘ reached elsewhere   └──▶ Up
//! ```
//! Whoever keeps the link asks [`Dialler::poll`] what to do and tells what comes of it. What it has under way and the
//! dialler does not know of any more ([`Dialler::is_dialling`]) is let go.

mod ways;

use std::time::{Duration, Instant};

use backoff::Backoff;

use crate::route::NodeId;

pub use ways::{Relay, Target, Way, Ways};

/// From dialling to the node's welcome.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A second address of a node that is reached by another one is dialled this often.
const SPARE_FOR: Duration = Duration::from_mins(1);
/// A node that has not welcomed us for so long is asked for by a relay, if nothing is known of the ways to it.
const RELAY_AFTER: Duration = Duration::from_millis(500);
/// After a direct link that fell silent, a relay has this start over the direct way.
const START: Duration = Duration::from_secs(1);
/// A node that is reached may be recovering, or stand still, and then a relay comes to the same door. After so many
/// attempts without a welcome something in between may let connections through and nothing else.
const UNWELCOME_MAX: u32 = 2;
/// How long a link by a relay that is there waits for a direct one that is nearly there.
const GRACE: Duration = Duration::from_millis(100);
/// Before a lost link is dialled again, at most: a node that ends every link is not asked without end.
const PAUSE_MAX: Duration = Duration::from_millis(20);
/// How long a relay is kept at least before a direct way is looked for. Doubled each time that a direct link falls
/// silent before it has lasted, up to the maximum.
const RELAY_MIN: Duration = Duration::from_secs(1);
const RELAY_MIN_MAX: Duration = Duration::from_mins(10);
const LASTING: Duration = Duration::from_mins(1);
/// Between attempts, at first and in the end: direct, by a relay, and direct while a relay serves.
const DIRECT_PAUSE: Backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
const RELAY_PAUSE: Backoff = Backoff::new(RELAY_AFTER, Duration::from_secs(5));
const BETTER_PAUSE: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));

const _: () = assert!(
    RELAY_AFTER.as_millis() < CONNECT_TIMEOUT.as_millis() && START.as_millis() < CONNECT_TIMEOUT.as_millis(),
    "the other way is tried before the first is given up"
);
const _: () = assert!(
    GRACE.as_millis() < RELAY_AFTER.as_millis(),
    "a relay that is up waits less than one that is not"
);

/// See the module.
#[derive(Debug)]
pub struct Dialler {
    target: Target,
    order: Order,
    /// How long the next relay is kept at least.
    relay_min: Duration,
    state: State,
}

/// Which way is tried first, by how the last link ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Order {
    direct_after: Duration,
    relay_after: Duration,
}

impl Order {
    /// Nothing speaks against the direct way.
    const DIRECT: Order = Order { direct_after: Duration::ZERO, relay_after: RELAY_AFTER };
    /// The direct way was there and carried nothing.
    const RELAY: Order = Order { direct_after: START, relay_after: Duration::ZERO };
    /// A relay was lost. Another is as good.
    const EITHER: Order = Order { direct_after: Duration::ZERO, relay_after: Duration::ZERO };
}

#[derive(Debug)]
enum State {
    Spare(Spare),
    Dialling(Dialling),
    Up(Up),
    Pausing(Pausing),
}

/// The node may be reached by another address. What is known of who lives there may be out of date, so it is dialled now and
/// then all the same.
#[derive(Debug)]
struct Spare {
    until: Instant,
}

#[derive(Debug)]
struct Dialling {
    since: Instant,
    direct: DirectWay,
    relay: RelayWay,
}

#[derive(Debug)]
struct Up {
    node: NodeId,
    since: Instant,
    /// By a relay: a direct way in its place, for a relay costs a hop and another node's work.
    better: Option<DirectWay>,
}

#[derive(Debug)]
struct Pausing {
    until: Instant,
}

#[derive(Debug)]
struct DirectWay {
    attempt: DirectAttempt,
    backoff: Backoff,
    /// Connections that were not welcomed.
    unwelcome: u32,
}

#[derive(Debug)]
enum DirectAttempt {
    Next {
        at: Instant,
    },
    Connecting {
        until: Instant,
    },
    /// Connected, and not welcomed yet.
    Connected {
        until: Instant,
    },
    Welcomed {
        node: NodeId,
    },
}

#[derive(Debug)]
struct RelayWay {
    attempt: RelayAttempt,
    backoff: Backoff,
}

#[derive(Debug)]
enum RelayAttempt {
    /// The direct way has a start.
    First {
        at: Instant,
    },
    /// Or when another direct link comes up than these: it may lead to this node.
    Next {
        at: Instant,
        direct_ups: u64,
    },
    Connecting {
        until: Instant,
        direct_ups: u64,
    },
    /// It is there, and waits for the direct way.
    Welcomed {
        node: NodeId,
        until: Instant,
        direct_ups: u64,
    },
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DialStep {
    /// Dial the target. Tell [`Dialler::handle_connected`], and then one of the two others.
    DialDirect,
    /// Dial a relay, which passes the connection on.
    DialRelay(Relay),
    /// Give an attempt up: it took too long.
    GiveUp(Way),
    /// Use the connection that was welcomed, in place of another if there is one.
    Use(Way),
    /// End the link, for this reason, and tell [`Dialler::handle_lost`].
    Leave(&'static str),
    /// Wait for what comes, till then at most, and for news of the ways.
    Await {
        /// None: as long as it takes.
        until: Option<Instant>,
    },
    /// Nobody wants the target: it is over.
    End,
}

/// How a link ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The node said nothing any more.
    Silence,
    /// Otherwise.
    Other,
}

impl Dialler {
    /// Dials at once, unless the node is reached elsewhere.
    pub fn new(now: Instant, target: Target) -> Dialler {
        let state = State::Spare(Spare { until: now + SPARE_FOR });
        Dialler { target, order: Order::DIRECT, relay_min: RELAY_MIN, state }
    }

    /// Whether an attempt this way is under way, or was welcomed and waits.
    pub fn is_dialling(&self, way: Way) -> bool {
        let (direct, relay) = match &self.state {
            State::Dialling(dialling) => (Some(&dialling.direct), Some(&dialling.relay)),
            State::Up(up) => (up.better.as_ref(), None),
            State::Spare(_) | State::Pausing(_) => (None, None),
        };
        match way {
            Way::Direct => direct.is_some_and(DirectWay::is_under_way),
            Way::Relay => relay.is_some_and(RelayWay::is_under_way),
        }
    }

    /// What to do next. `random` draws numbers if they are needed.
    pub fn poll(
        &mut self,
        now: Instant,
        ways: &Ways,
        is_wanted: bool,
        mut random: impl FnMut() -> u32,
    ) -> DialStep {
        if let Some(node) = self.direct().and_then(|direct| direct.welcomed()) {
            self.state = State::Up(Up { node, since: now, better: None });
            return DialStep::Use(Way::Direct);
        }
        match &mut self.state {
            State::Up(up) => up.poll(now, ways, &self.target, is_wanted, random),
            State::Spare(_) | State::Dialling(_) | State::Pausing(_) if !is_wanted => DialStep::End,
            State::Pausing(Pausing { until }) if now < *until => DialStep::Await { until: Some(*until) },
            State::Pausing(_) => {
                self.state = State::Spare(Spare { until: now + SPARE_FOR });
                self.poll(now, ways, is_wanted, random)
            }
            State::Spare(Spare { until }) if now < *until && ways.is_spare(&self.target) => {
                DialStep::Await { until: Some(*until) }
            }
            State::Spare(_) => {
                self.state = State::Dialling(Dialling::new(now, self.order, ways, &self.target));
                self.poll(now, ways, is_wanted, random)
            }
            State::Dialling(dialling) => {
                if dialling.since + CONNECT_TIMEOUT <= now && ways.is_spare(&self.target) {
                    self.state = State::Spare(Spare { until: now + SPARE_FOR });
                    return DialStep::Await { until: Some(now + SPARE_FOR) };
                }
                if let Some(node) = dialling.relay.is_due(now, &dialling.direct) {
                    let better = Some(DirectWay::new(now + self.relay_min, BETTER_PAUSE));
                    self.state = State::Up(Up { node, since: now, better });
                    return DialStep::Use(Way::Relay);
                }
                dialling.poll(now, ways, &self.target, &mut random)
            }
        }
    }

    /// The target accepted the connection.
    pub fn handle_connected(&mut self) {
        if let Some(direct) = self.direct()
            && let DirectAttempt::Connecting { until } = direct.attempt
        {
            direct.attempt = DirectAttempt::Connected { until };
        }
    }

    /// The node has welcomed us.
    pub fn handle_welcomed(&mut self, now: Instant, way: Way, node: NodeId) {
        match (way, &mut self.state) {
            (Way::Direct, _) => {
                if let Some(direct) = self.direct() {
                    direct.attempt = DirectAttempt::Welcomed { node };
                }
            }
            (Way::Relay, State::Dialling(Dialling { direct, relay, .. })) => {
                let grace = if direct.is_near() { GRACE } else { Duration::ZERO };
                if let RelayAttempt::Connecting { direct_ups, .. } = relay.attempt {
                    relay.attempt = RelayAttempt::Welcomed { node, until: now + grace, direct_ups };
                }
            }
            (Way::Relay, State::Up(_) | State::Spare(_) | State::Pausing(_)) => {}
        }
    }

    /// An attempt came to nothing.
    pub fn handle_failed(&mut self, now: Instant, way: Way, random: impl FnOnce() -> u32) {
        match (way, &mut self.state) {
            (Way::Direct, _) => {
                if let Some(direct) = self.direct() {
                    direct.handle_failed(now, random());
                }
            }
            (Way::Relay, State::Dialling(dialling)) => dialling.relay.handle_failed(now, random()),
            (Way::Relay, State::Up(_) | State::Spare(_) | State::Pausing(_)) => {}
        }
    }

    /// The link is gone.
    pub fn handle_lost(&mut self, now: Instant, loss: Loss, random: impl FnOnce() -> u32) {
        let State::Up(up) = &self.state else { return };
        let is_direct = up.better.is_none();
        let lasted = now.saturating_duration_since(up.since) >= LASTING;
        if is_direct && lasted {
            self.relay_min = RELAY_MIN;
        }
        assert!((RELAY_MIN..=RELAY_MIN_MAX).contains(&self.relay_min), "a relay is not stayed with for ever");
        self.order = match loss {
            Loss::Silence if is_direct => {
                if !lasted {
                    self.relay_min = (self.relay_min * 2).min(RELAY_MIN_MAX);
                }
                Order::RELAY
            }
            Loss::Silence | Loss::Other if !is_direct => Order::EITHER,
            Loss::Silence | Loss::Other => Order::DIRECT,
        };
        let until = now + Backoff::new(PAUSE_MAX, PAUSE_MAX).next(random());
        self.state = State::Pausing(Pausing { until });
    }

    /// The direct way that is tried.
    fn direct(&mut self) -> Option<&mut DirectWay> {
        match &mut self.state {
            State::Dialling(dialling) => Some(&mut dialling.direct),
            State::Up(up) => up.better.as_mut(),
            State::Spare(_) | State::Pausing(_) => None,
        }
    }
}

impl Dialling {
    fn new(now: Instant, order: Order, ways: &Ways, target: &Target) -> Dialling {
        // Without a relay there is nothing to leave a start to.
        let has_relay = ways.relay(&target.address, 0).is_some();
        let direct_at = if has_relay { now + order.direct_after } else { now };
        Dialling {
            since: now,
            direct: DirectWay::new(direct_at, DIRECT_PAUSE),
            relay: RelayWay {
                attempt: RelayAttempt::First { at: now + order.relay_after },
                backoff: RELAY_PAUSE,
            },
        }
    }

    fn poll(
        &mut self,
        now: Instant,
        ways: &Ways,
        target: &Target,
        random: &mut impl FnMut() -> u32,
    ) -> DialStep {
        if let Some(step) = self.direct.poll(now, &mut *random) {
            return step;
        }
        let is_near = self.direct.is_near();
        if let Some(step) = self.relay.poll(now, ways, target, is_near, &mut *random) {
            return step;
        }
        let spare_at = Some(self.since + CONNECT_TIMEOUT).filter(|at| now < *at);
        let due = [self.direct.due(), Some(self.relay.due()), spare_at];
        debug_assert!(due.iter().flatten().all(|at| *at >= now), "what is due is done");
        DialStep::Await { until: due.into_iter().flatten().min() }
    }
}

impl Up {
    fn poll(
        &mut self,
        now: Instant,
        ways: &Ways,
        target: &Target,
        is_wanted: bool,
        random: impl FnMut() -> u32,
    ) -> DialStep {
        if !is_wanted && ways.is_elsewhere(target, self.node) {
            return DialStep::Leave("no name leads here any more, and the node is reached elsewhere");
        }
        let Some(better) = &mut self.better else { return DialStep::Await { until: None } };
        if ways.is_direct(self.node) {
            return DialStep::Leave("another link reaches the node directly");
        }
        better.poll(now, random).unwrap_or(DialStep::Await { until: better.due() })
    }
}

impl DirectWay {
    fn new(at: Instant, backoff: Backoff) -> DirectWay {
        DirectWay { attempt: DirectAttempt::Next { at }, backoff, unwelcome: 0 }
    }

    fn poll(&mut self, now: Instant, mut random: impl FnMut() -> u32) -> Option<DialStep> {
        match self.attempt {
            DirectAttempt::Next { at } if at <= now => {
                self.attempt = DirectAttempt::Connecting { until: now + CONNECT_TIMEOUT };
                Some(DialStep::DialDirect)
            }
            DirectAttempt::Connecting { until } | DirectAttempt::Connected { until } if until <= now => {
                self.handle_failed(now, random());
                Some(DialStep::GiveUp(Way::Direct))
            }
            DirectAttempt::Next { .. }
            | DirectAttempt::Connecting { .. }
            | DirectAttempt::Connected { .. }
            | DirectAttempt::Welcomed { .. } => None,
        }
    }

    /// The node, if it has welcomed us.
    fn welcomed(&self) -> Option<NodeId> {
        match self.attempt {
            DirectAttempt::Welcomed { node } => Some(node),
            DirectAttempt::Next { .. }
            | DirectAttempt::Connecting { .. }
            | DirectAttempt::Connected { .. } => None,
        }
    }

    fn handle_failed(&mut self, now: Instant, random: u32) {
        debug_assert!(self.welcomed().is_none(), "a way that is in use is lost, and has not failed");
        self.unwelcome += u32::from(matches!(self.attempt, DirectAttempt::Connected { .. }));
        self.attempt = DirectAttempt::Next { at: now + self.backoff.next(random) };
    }

    fn is_near(&self) -> bool {
        matches!(self.attempt, DirectAttempt::Connected { .. }) && self.unwelcome < UNWELCOME_MAX
    }

    fn is_under_way(&self) -> bool {
        !matches!(self.attempt, DirectAttempt::Next { .. })
    }

    /// When it is to be looked at. One that was welcomed is used before that is asked.
    fn due(&self) -> Option<Instant> {
        match self.attempt {
            DirectAttempt::Next { at } => Some(at),
            DirectAttempt::Connecting { until } | DirectAttempt::Connected { until } => Some(until),
            DirectAttempt::Welcomed { .. } => None,
        }
    }
}

impl RelayWay {
    fn poll(
        &mut self,
        now: Instant,
        ways: &Ways,
        target: &Target,
        is_near: bool,
        mut random: impl FnMut() -> u32,
    ) -> Option<DialStep> {
        let ups = ways.direct_ups();
        match self.attempt {
            RelayAttempt::First { at } if at <= now => self.dial(now, ways, target, is_near, random),
            RelayAttempt::Next { direct_ups, .. } if direct_ups != ups => {
                self.backoff.reset();
                self.dial(now, ways, target, is_near, random)
            }
            RelayAttempt::Next { at, .. } if at <= now => self.dial(now, ways, target, is_near, random),
            RelayAttempt::Connecting { until, .. } if until <= now => {
                self.handle_failed(now, random());
                Some(DialStep::GiveUp(Way::Relay))
            }
            RelayAttempt::First { .. }
            | RelayAttempt::Next { .. }
            | RelayAttempt::Connecting { .. }
            | RelayAttempt::Welcomed { .. } => None,
        }
    }

    /// Dials a relay if there is one and the direct way is not nearly there; else looks again later.
    fn dial(
        &mut self,
        now: Instant,
        ways: &Ways,
        target: &Target,
        is_near: bool,
        mut random: impl FnMut() -> u32,
    ) -> Option<DialStep> {
        let direct_ups = ways.direct_ups();
        match ways.relay(&target.address, random()).filter(|_| !is_near) {
            Some(relay) => {
                self.attempt = RelayAttempt::Connecting { until: now + CONNECT_TIMEOUT, direct_ups };
                Some(DialStep::DialRelay(relay))
            }
            None => {
                let at = now + self.backoff.next(random());
                self.attempt = RelayAttempt::Next { at, direct_ups };
                None
            }
        }
    }

    fn handle_failed(&mut self, now: Instant, random: u32) {
        match self.attempt {
            RelayAttempt::Connecting { direct_ups, .. } | RelayAttempt::Welcomed { direct_ups, .. } => {
                let at = now + self.backoff.next(random);
                self.attempt = RelayAttempt::Next { at, direct_ups };
            }
            RelayAttempt::First { .. } | RelayAttempt::Next { .. } => {}
        }
    }

    /// The node that it leads to, if it is there and has waited for the direct way long enough.
    fn is_due(&self, now: Instant, direct: &DirectWay) -> Option<NodeId> {
        match self.attempt {
            RelayAttempt::Welcomed { node, until, .. } if until <= now || !direct.is_near() => Some(node),
            RelayAttempt::First { .. }
            | RelayAttempt::Next { .. }
            | RelayAttempt::Connecting { .. }
            | RelayAttempt::Welcomed { .. } => None,
        }
    }

    fn is_under_way(&self) -> bool {
        match self.attempt {
            RelayAttempt::Connecting { .. } | RelayAttempt::Welcomed { .. } => true,
            RelayAttempt::First { .. } | RelayAttempt::Next { .. } => false,
        }
    }

    fn due(&self) -> Instant {
        match self.attempt {
            RelayAttempt::First { at } | RelayAttempt::Next { at, .. } => at,
            RelayAttempt::Connecting { until, .. } | RelayAttempt::Welcomed { until, .. } => until,
        }
    }
}

#[cfg(test)]
mod tests;
