//! Keeps a group usable: finds its leader, has a session opened there, and notices when the leader may have been replaced.
//!
//! Requests only wait; the tracker alone asks around, so that a thousand waiting requests cost one question to each replica: a
//! *probe*. A leader that owes answers and is silent is suspected: the others are probed, and if they know another leader, the
//! calls to the silent one are taken back and asked again there, under their numbers.
//!
//! ```text
//!              leader missing, or suspected
//!   Watching ───────────────────────────────▶ Probing ──┐ nobody found
//!    ▲  │ ▲                                       │      ▼
//!    │  │ └────────────── found ──────────────────┘    Resting ──▶ Watching
//!    │  └──── session missing ──▶ Opening ── refused ────▲
//!    └────────── opened ─────────────┘
//! ```

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use backoff::Backoff;
use keyspace::SessionId;

use crate::attempt::Attempted;
use crate::group::{GroupState, Learned};
use crate::request::Reach;
use crate::route::NodeId;
use crate::silence::patience;

/// How long a replica may wait for a leader before it answers that it knows none: so a new one is heard of at once, and a
/// gateway asks five times a second at most.
pub const PROBE_WAIT: Duration = Duration::from_millis(200);
/// For the answers to a probe.
const PROBE_TIMEOUT: Duration = Duration::from_millis(250);
/// For the group to open a session.
const OPEN_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a leader is looked at.
const CHECK_EVERY: Duration = Duration::from_millis(250);
/// After a question that led nowhere: the longest first pause, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(20));

const _: () = assert!(PAUSE.0.as_millis() < PAUSE.1.as_millis(), "pauses grow");
const _: () = assert!(PROBE_WAIT.as_millis() < PROBE_TIMEOUT.as_millis(), "who has waited can still answer");

/// What the tracker sees of a group's replicas.
pub trait Replicas: Reach {
    /// All that hold data.
    fn all(&self) -> Vec<NodeId>;

    /// How quiet a node is.
    fn quiet(&self, link: &Self::Link) -> Quiet;
}

/// How quiet a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quiet {
    /// It owes answers.
    pub owes: bool,
    /// It has said nothing for so long.
    pub silent_for: Duration,
    /// How far it is; zero before that was measured.
    pub round_trip: Duration,
}

/// A replica's answer to a probe: who leads it, in which round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Led {
    /// The round.
    pub term: u64,
    /// None: it knows nobody.
    pub leader: Option<NodeId>,
}

/// The leader's answer to the wish for a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionOpened {
    /// The round of its leadership.
    pub term: u64,
    /// Which one is open.
    pub session: SessionId,
}

/// See the module.
#[derive(Debug)]
pub struct LeaderTracker {
    phase: Phase,
    backoff: Backoff,
    /// Those who wait should look again.
    has_news: bool,
}

#[derive(Debug)]
enum Phase {
    Watching(Watching),
    Probing(Probing),
    Opening(Opening),
    Resting(Resting),
}

/// All is there, as far as is known.
#[derive(Debug)]
struct Watching {
    /// When the leader is looked at; none: at once.
    check_at: Option<Instant>,
}

/// Replicas were asked who leads.
#[derive(Debug)]
struct Probing {
    /// The leader that may have been replaced. It is not asked.
    suspect: Option<NodeId>,
    /// Those who have not answered.
    asked: BTreeSet<NodeId>,
    until: Instant,
}

/// The leader was asked for a session.
#[derive(Debug)]
struct Opening {
    node: NodeId,
    until: Instant,
}

/// The last question led nowhere.
#[derive(Debug)]
struct Resting {
    until: Instant,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum TrackerStep<L> {
    /// Ask these who leads, and tell [`LeaderTracker::handle_probed`] each answer. They may wait for [`PROBE_WAIT`] until they
    /// know a round of at least `least_term`.
    Probe {
        /// Whom.
        nodes: Vec<(NodeId, L)>,
        /// See above.
        least_term: u64,
    },
    /// Ask this node for a session, and tell [`LeaderTracker::handle_opened`] the answer.
    OpenSession {
        /// Whom.
        node: NodeId,
        /// How.
        link: L,
    },
    /// Another than this node leads: take back what was asked of it.
    Abandon {
        /// Whom.
        node: NodeId,
        /// How it was asked, if the link is still there.
        link: Option<L>,
    },
    /// Wake those who wait for the leader, its link or the session.
    Announce,
    /// Wait until then for answers, or until somebody wants a leader or a session.
    Await {
        /// Till when.
        until: Instant,
    },
}

impl Default for LeaderTracker {
    fn default() -> LeaderTracker {
        let phase = Phase::Watching(Watching { check_at: None });
        LeaderTracker { phase, backoff: Backoff::new(PAUSE.0, PAUSE.1), has_news: false }
    }
}

impl LeaderTracker {
    /// What to do next. `random` draws a number if one is needed.
    pub fn poll<R: Replicas>(
        &mut self,
        now: Instant,
        group: &GroupState,
        replicas: &R,
        random: impl FnOnce() -> u32,
    ) -> TrackerStep<R::Link> {
        let leader = group.route.leader().map(|leader| leader.node);
        if matches!(self.phase, Phase::Probing(Probing { suspect: None, .. }))
            && leader.is_some_and(|leader| replicas.to(leader).is_some())
        {
            self.succeed();
            self.has_news = true;
        }
        if std::mem::take(&mut self.has_news) {
            return TrackerStep::Announce;
        }
        match &mut self.phase {
            Phase::Resting(Resting { until }) | Phase::Opening(Opening { until, .. }) if now < *until => {
                TrackerStep::Await { until: *until }
            }
            Phase::Resting(_) => {
                self.watch(None);
                self.poll_watching(now, None, group, replicas)
            }
            Phase::Opening(_) => self.rest(now, random),
            Phase::Probing(Probing { suspect: None, asked, until }) => {
                if asked.is_empty() || *until <= now {
                    self.rest(now, random)
                } else {
                    TrackerStep::Await { until: *until }
                }
            }
            Phase::Probing(Probing { suspect: Some(suspect), asked, until }) => {
                let suspect = *suspect;
                debug_assert!(!asked.contains(&suspect), "others are asked about who is suspected");
                let other = leader.filter(|leader| *leader != suspect);
                let is_over = asked.is_empty() || *until <= now;
                match other {
                    // One that cannot be reached yet may come up while the others answer.
                    Some(other) if is_over || replicas.to(other).is_some() => {
                        self.succeed();
                        TrackerStep::Abandon { node: suspect, link: replicas.to(suspect) }
                    }
                    Some(_) | None if is_over => {
                        let check_at = Some(now + CHECK_EVERY);
                        self.watch(check_at);
                        // It may be that there is none any more.
                        self.poll_watching(now, check_at, group, replicas)
                    }
                    Some(_) | None => TrackerStep::Await { until: *until },
                }
            }
            Phase::Watching(Watching { check_at }) => {
                let check_at = *check_at;
                self.poll_watching(now, check_at, group, replicas)
            }
        }
    }

    /// Asks for what is missing, or looks at the leader when that is due.
    fn poll_watching<R: Replicas>(
        &mut self,
        now: Instant,
        check_at: Option<Instant>,
        group: &GroupState,
        replicas: &R,
    ) -> TrackerStep<R::Link> {
        let leader = group.route.leader().map(|leader| leader.node);
        let Some((node, link)) = leader.and_then(|node| Some((node, replicas.to(node)?))) else {
            return self.probe(now, None, group, replicas);
        };
        if !group.session.is_open() {
            self.phase = Phase::Opening(Opening { node, until: now + OPEN_TIMEOUT });
            return TrackerStep::OpenSession { node, link };
        }
        match check_at {
            Some(check_at) if now < check_at => TrackerStep::Await { until: check_at },
            Some(_) if is_suspect(replicas.quiet(&link)) => self.probe(now, Some(node), group, replicas),
            Some(_) | None => {
                self.watch(Some(now + CHECK_EVERY));
                TrackerStep::Await { until: now + CHECK_EVERY }
            }
        }
    }

    fn probe<R: Replicas>(
        &mut self,
        now: Instant,
        suspect: Option<NodeId>,
        group: &GroupState,
        replicas: &R,
    ) -> TrackerStep<R::Link> {
        let leader = group.route.leader().map(|leader| leader.node);
        debug_assert!(suspect.is_none() || suspect == leader, "it is the leader that is suspected");
        let others = replicas.all().into_iter().filter(|node| Some(*node) != suspect);
        let nodes: Vec<_> = others.filter_map(|node| Some((node, replicas.to(node)?))).collect();
        if nodes.is_empty() {
            // A link that comes up is news.
            self.watch(Some(now + PROBE_TIMEOUT));
            return TrackerStep::Await { until: now + PROBE_TIMEOUT };
        }
        let asked = nodes.iter().map(|(node, _)| *node).collect();
        self.phase = Phase::Probing(Probing { suspect, asked, until: now + PROBE_TIMEOUT });
        TrackerStep::Probe { nodes, least_term: group.route.least_term() }
    }

    /// A replica answered a probe, or will not. Returns whether the guess who leads changed.
    pub fn handle_probed(&mut self, group: &mut GroupState, node: NodeId, probed: Attempted<Led>) -> bool {
        if let Phase::Probing(Probing { asked, .. }) = &mut self.phase {
            asked.remove(&node);
        }
        let changed = match probed.answer() {
            Some(Led { term, leader: Some(leader) }) if leader == node => group.route.handle_led(node, term),
            Some(Led { term, leader: Some(leader) }) => group.route.handle_said(term, leader),
            Some(Led { leader: None, .. }) | None => false,
        };
        // Whatever the answer was asked for: somebody may have found no leader in between, and wait for one.
        self.has_news |= changed;
        changed
    }

    /// The node that was asked for a session answered, or will not; `learned` is what its refusal taught.
    pub fn handle_opened(
        &mut self,
        now: Instant,
        group: &mut GroupState,
        opened: Attempted<SessionOpened>,
        learned: Learned,
        random: impl FnOnce() -> u32,
    ) {
        let Phase::Opening(Opening { node, .. }) = self.phase else { return };
        if let Some(SessionOpened { term, session }) = opened.answer() {
            group.route.handle_led(node, term);
            group.session.handle_opened(session);
            assert_eq!(
                group.session.id(),
                Some(session),
                "writes are numbered in the session that was opened"
            );
            self.succeed();
            self.has_news = true;
        } else if learned.leader_found {
            // Somebody else can be asked at once.
            self.succeed();
        } else {
            let until = now + self.backoff.next(random());
            self.phase = Phase::Resting(Resting { until });
        }
    }

    fn watch(&mut self, check_at: Option<Instant>) {
        self.phase = Phase::Watching(Watching { check_at });
    }

    fn succeed(&mut self) {
        self.backoff.reset();
        self.watch(None);
    }

    fn rest<L>(&mut self, now: Instant, random: impl FnOnce() -> u32) -> TrackerStep<L> {
        let until = now + self.backoff.next(random());
        self.phase = Phase::Resting(Resting { until });
        TrackerStep::Await { until }
    }
}

/// Whether a leader may have been replaced: it owes answers, and has been silent for longer than its distance explains.
fn is_suspect(quiet: Quiet) -> bool {
    quiet.owes && quiet.silent_for >= patience(quiet.round_trip)
}

#[cfg(test)]
mod tests;
