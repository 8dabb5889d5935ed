//! When a link is dialled, which way, and when it is left: straight, or by a detour over another node where the network
//! parts us from this one only.
//!
//! ```text
//!   Spare ──▶ Dialling ── welcomed ──▶ Up ── lost ──▶ Pausing ──▶ Spare
//!     ▲           │                     │ a straight way was found
//!     └───────────┘ reached elsewhere   └──▶ Up
//! ```
//! Whoever keeps the link asks [`Dialler::poll`] what to do and tells what comes of it. What it has under way and the
//! dialler does not know of any more ([`Dialler::is_dialling`]) is let go.

mod ways;

use std::time::{Duration, Instant};

use backoff::Backoff;

use crate::leader_tracker::NodeId;

pub use ways::{Detour, Target, Way, Ways};

/// From dialling to the node's welcome.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A second address of a node that is reached by another one is dialled this often.
const SPARE_FOR: Duration = Duration::from_mins(1);
/// A node that has not welcomed us for so long is looked for by a detour, if nothing is known of the ways to it.
const DETOUR_AFTER: Duration = Duration::from_millis(500);
/// After a straight link that fell silent a detour has this start over the straight way.
const START: Duration = Duration::from_secs(1);
/// A node that is reached may be recovering, or stand still, and then a detour ends at the same door. After so many
/// attempts without a welcome something in between may let connections through and nothing else.
const UNWELCOME_MAX: u32 = 2;
/// How long a detour that is there waits for a straight way that is nearly there.
const GRACE: Duration = Duration::from_millis(100);
/// Before a lost link is dialled again, at most: a node that ends every link is not asked without end.
const PAUSE_MAX: Duration = Duration::from_millis(20);
/// How long a detour is kept at least before a straight way is looked for. Doubled each time that a straight link falls
/// silent before it has lasted, up to the maximum.
const DETOUR_MIN: Duration = Duration::from_secs(1);
const DETOUR_MIN_MAX: Duration = Duration::from_mins(10);
const LASTING: Duration = Duration::from_mins(1);
/// Between attempts, at first and in the end: straight, by a detour, and straight while there is a detour.
const STRAIGHT_PAUSE: Backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
const DETOUR_PAUSE: Backoff = Backoff::new(DETOUR_AFTER, Duration::from_secs(5));
const BETTER_PAUSE: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));

/// See the module.
#[derive(Debug)]
pub struct Dialler {
    target: Target,
    order: Order,
    /// How long the next detour is kept at least.
    detour_min: Duration,
    state: State,
}

/// Which way is tried first, by how the last link ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Order {
    straight_after: Duration,
    detour_after: Duration,
}

impl Order {
    /// Nothing speaks against the straight way.
    const STRAIGHT: Order = Order { straight_after: Duration::ZERO, detour_after: DETOUR_AFTER };
    /// The straight way was there and carried nothing.
    const DETOUR: Order = Order { straight_after: START, detour_after: Duration::ZERO };
    /// A detour was lost. Another is as good.
    const EITHER: Order = Order { straight_after: Duration::ZERO, detour_after: Duration::ZERO };
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
    straight: StraightWay,
    detour: DetourWay,
}

#[derive(Debug)]
struct Up {
    node: NodeId,
    since: Instant,
    /// On a detour: a straight way in its place, for a detour costs a hop and another node's work.
    better: Option<StraightWay>,
}

#[derive(Debug)]
struct Pausing {
    until: Instant,
}

#[derive(Debug)]
struct StraightWay {
    attempt: StraightAttempt,
    backoff: Backoff,
    /// Connections that were not welcomed.
    unwelcome: u32,
}

#[derive(Debug)]
enum StraightAttempt {
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
struct DetourWay {
    attempt: DetourAttempt,
    backoff: Backoff,
}

#[derive(Debug)]
enum DetourAttempt {
    /// The straight way has a start.
    First {
        at: Instant,
    },
    /// Or when another straight link comes up than these: it may lead to this node.
    Next {
        at: Instant,
        straight_ups: u64,
    },
    Connecting {
        until: Instant,
        straight_ups: u64,
    },
    /// It is there, and waits for the straight way.
    Welcomed {
        node: NodeId,
        until: Instant,
    },
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DialStep {
    /// Dial the target. Tell [`Dialler::handle_connected`], and then one of the two others.
    DialStraight,
    /// Dial another node, which passes the connection on.
    DialDetour(Detour),
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
        Dialler { target, order: Order::STRAIGHT, detour_min: DETOUR_MIN, state }
    }

    /// Whether an attempt this way is under way, or was welcomed and waits.
    pub fn is_dialling(&self, way: Way) -> bool {
        let (straight, detour) = match &self.state {
            State::Dialling(dialling) => (Some(&dialling.straight), Some(&dialling.detour)),
            State::Up(up) => (up.better.as_ref(), None),
            State::Spare(_) | State::Pausing(_) => (None, None),
        };
        match way {
            Way::Straight => straight.is_some_and(StraightWay::is_under_way),
            Way::Detour => detour.is_some_and(DetourWay::is_under_way),
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
        if let Some(node) = self.straight().and_then(|straight| straight.welcomed()) {
            self.state = State::Up(Up { node, since: now, better: None });
            return DialStep::Use(Way::Straight);
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
                if let Some(node) = dialling.detour.is_due(now, &dialling.straight) {
                    let better = Some(StraightWay::new(now + self.detour_min, BETTER_PAUSE));
                    self.state = State::Up(Up { node, since: now, better });
                    return DialStep::Use(Way::Detour);
                }
                dialling.poll(now, ways, &self.target, &mut random)
            }
        }
    }

    /// The target accepted the connection.
    pub fn handle_connected(&mut self) {
        if let Some(straight) = self.straight()
            && let StraightAttempt::Connecting { until } = straight.attempt
        {
            straight.attempt = StraightAttempt::Connected { until };
        }
    }

    /// The node has welcomed us.
    pub fn handle_welcomed(&mut self, now: Instant, way: Way, node: NodeId) {
        match (way, &mut self.state) {
            (Way::Straight, _) => {
                if let Some(straight) = self.straight() {
                    straight.attempt = StraightAttempt::Welcomed { node };
                }
            }
            (Way::Detour, State::Dialling(Dialling { straight, detour, .. })) => {
                let grace = if straight.is_near() { GRACE } else { Duration::ZERO };
                detour.attempt = DetourAttempt::Welcomed { node, until: now + grace };
            }
            (Way::Detour, State::Up(_) | State::Spare(_) | State::Pausing(_)) => {}
        }
    }

    /// An attempt came to nothing.
    pub fn handle_failed(&mut self, now: Instant, way: Way, random: impl FnOnce() -> u32) {
        match (way, &mut self.state) {
            (Way::Straight, _) => {
                if let Some(straight) = self.straight() {
                    straight.handle_failed(now, random());
                }
            }
            (Way::Detour, State::Dialling(dialling)) => dialling.detour.handle_failed(now, random()),
            (Way::Detour, State::Up(_) | State::Spare(_) | State::Pausing(_)) => {}
        }
    }

    /// The link is gone.
    pub fn handle_lost(&mut self, now: Instant, loss: Loss, random: impl FnOnce() -> u32) {
        let State::Up(up) = &self.state else { return };
        let is_straight = up.better.is_none();
        let lasted = now.saturating_duration_since(up.since) >= LASTING;
        if is_straight && lasted {
            self.detour_min = DETOUR_MIN;
        }
        self.order = match loss {
            Loss::Silence if is_straight => {
                if !lasted {
                    self.detour_min = (self.detour_min * 2).min(DETOUR_MIN_MAX);
                }
                Order::DETOUR
            }
            Loss::Silence | Loss::Other if !is_straight => Order::EITHER,
            Loss::Silence | Loss::Other => Order::STRAIGHT,
        };
        let until = now + Backoff::new(PAUSE_MAX, PAUSE_MAX).next(random());
        self.state = State::Pausing(Pausing { until });
    }

    /// The straight way that is tried.
    fn straight(&mut self) -> Option<&mut StraightWay> {
        match &mut self.state {
            State::Dialling(dialling) => Some(&mut dialling.straight),
            State::Up(up) => up.better.as_mut(),
            State::Spare(_) | State::Pausing(_) => None,
        }
    }
}

impl Dialling {
    fn new(now: Instant, order: Order, ways: &Ways, target: &Target) -> Dialling {
        // Without a detour there is nothing to leave a start to.
        let has_detour = ways.detour(&target.address, 0).is_some();
        let straight_at = if has_detour { now + order.straight_after } else { now };
        Dialling {
            since: now,
            straight: StraightWay::new(straight_at, STRAIGHT_PAUSE),
            detour: DetourWay {
                attempt: DetourAttempt::First { at: now + order.detour_after },
                backoff: DETOUR_PAUSE,
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
        if let Some(step) = self.straight.poll(now, &mut *random) {
            return step;
        }
        let is_near = self.straight.is_near();
        if let Some(step) = self.detour.poll(now, ways, target, is_near, &mut *random) {
            return step;
        }
        let spare_at = Some(self.since + CONNECT_TIMEOUT).filter(|at| now < *at);
        let due = [self.straight.due(), Some(self.detour.due()), spare_at];
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
        if ways.is_straight(self.node) {
            return DialStep::Leave("another link reaches the node straight");
        }
        better.poll(now, random).unwrap_or(DialStep::Await { until: better.due() })
    }
}

impl StraightWay {
    fn new(at: Instant, backoff: Backoff) -> StraightWay {
        StraightWay { attempt: StraightAttempt::Next { at }, backoff, unwelcome: 0 }
    }

    fn poll(&mut self, now: Instant, mut random: impl FnMut() -> u32) -> Option<DialStep> {
        match self.attempt {
            StraightAttempt::Next { at } if at <= now => {
                self.attempt = StraightAttempt::Connecting { until: now + CONNECT_TIMEOUT };
                Some(DialStep::DialStraight)
            }
            StraightAttempt::Connecting { until } | StraightAttempt::Connected { until } if until <= now => {
                self.handle_failed(now, random());
                Some(DialStep::GiveUp(Way::Straight))
            }
            StraightAttempt::Next { .. }
            | StraightAttempt::Connecting { .. }
            | StraightAttempt::Connected { .. }
            | StraightAttempt::Welcomed { .. } => None,
        }
    }

    /// The node, if it has welcomed us.
    fn welcomed(&self) -> Option<NodeId> {
        match self.attempt {
            StraightAttempt::Welcomed { node } => Some(node),
            StraightAttempt::Next { .. }
            | StraightAttempt::Connecting { .. }
            | StraightAttempt::Connected { .. } => None,
        }
    }

    fn handle_failed(&mut self, now: Instant, random: u32) {
        self.unwelcome += u32::from(matches!(self.attempt, StraightAttempt::Connected { .. }));
        self.attempt = StraightAttempt::Next { at: now + self.backoff.next(random) };
    }

    fn is_near(&self) -> bool {
        matches!(self.attempt, StraightAttempt::Connected { .. }) && self.unwelcome < UNWELCOME_MAX
    }

    fn is_under_way(&self) -> bool {
        !matches!(self.attempt, StraightAttempt::Next { .. })
    }

    /// When it is to be looked at. One that was welcomed is used before that is asked.
    fn due(&self) -> Option<Instant> {
        match self.attempt {
            StraightAttempt::Next { at } => Some(at),
            StraightAttempt::Connecting { until } | StraightAttempt::Connected { until } => Some(until),
            StraightAttempt::Welcomed { .. } => None,
        }
    }
}

impl DetourWay {
    fn poll(
        &mut self,
        now: Instant,
        ways: &Ways,
        target: &Target,
        is_near: bool,
        mut random: impl FnMut() -> u32,
    ) -> Option<DialStep> {
        let ups = ways.straight_ups();
        match self.attempt {
            DetourAttempt::First { at } if at <= now => self.dial(now, ways, target, is_near, random),
            DetourAttempt::Next { straight_ups, .. } if straight_ups != ups => {
                self.backoff.reset();
                self.dial(now, ways, target, is_near, random)
            }
            DetourAttempt::Next { at, .. } if at <= now => self.dial(now, ways, target, is_near, random),
            DetourAttempt::Connecting { until, .. } if until <= now => {
                self.handle_failed(now, random());
                Some(DialStep::GiveUp(Way::Detour))
            }
            DetourAttempt::First { .. }
            | DetourAttempt::Next { .. }
            | DetourAttempt::Connecting { .. }
            | DetourAttempt::Welcomed { .. } => None,
        }
    }

    /// Dials a detour if there is one and the straight way is not nearly there; else looks again later.
    fn dial(
        &mut self,
        now: Instant,
        ways: &Ways,
        target: &Target,
        is_near: bool,
        mut random: impl FnMut() -> u32,
    ) -> Option<DialStep> {
        let straight_ups = ways.straight_ups();
        match ways.detour(&target.address, random()).filter(|_| !is_near) {
            Some(detour) => {
                self.attempt = DetourAttempt::Connecting { until: now + CONNECT_TIMEOUT, straight_ups };
                Some(DialStep::DialDetour(detour))
            }
            None => {
                let at = now + self.backoff.next(random());
                self.attempt = DetourAttempt::Next { at, straight_ups };
                None
            }
        }
    }

    fn handle_failed(&mut self, now: Instant, random: u32) {
        if let DetourAttempt::Connecting { straight_ups, .. } = self.attempt {
            let at = now + self.backoff.next(random);
            self.attempt = DetourAttempt::Next { at, straight_ups };
        }
    }

    /// The node that it leads to, if it is there and has waited for the straight way long enough.
    fn is_due(&self, now: Instant, straight: &StraightWay) -> Option<NodeId> {
        match self.attempt {
            DetourAttempt::Welcomed { node, until } if until <= now || !straight.is_near() => Some(node),
            DetourAttempt::First { .. }
            | DetourAttempt::Next { .. }
            | DetourAttempt::Connecting { .. }
            | DetourAttempt::Welcomed { .. } => None,
        }
    }

    fn is_under_way(&self) -> bool {
        match self.attempt {
            DetourAttempt::Connecting { .. } | DetourAttempt::Welcomed { .. } => true,
            DetourAttempt::First { .. } | DetourAttempt::Next { .. } => false,
        }
    }

    fn due(&self) -> Instant {
        match self.attempt {
            DetourAttempt::First { at } | DetourAttempt::Next { at, .. } => at,
            DetourAttempt::Connecting { until, .. } | DetourAttempt::Welcomed { until, .. } => until,
        }
    }
}

#[cfg(test)]
mod tests;
