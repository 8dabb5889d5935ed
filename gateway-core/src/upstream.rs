//! A feed's upstream: the replica that serves it, and how it moves on.
//!
//! It is served by the group's leader, which alone can tell that it has told everything; it moves when the leader does, and
//! goes on where it was. Without a leader, any replica serves what it has, once the feed knows where it is. All upstreams of a
//! gateway are kept by [`crate::Upstreams`], which knows what concerns many of them at once.
//!
//! ```text
//!   Detached ── poll: Open ──▶ Attached ── Compacted, or it cannot be read ──▶ Ended
//!      ▲                          │
//!      └── lost, refused, led by another ──┘
//! ```

use std::time::{Duration, Instant};

use backoff::Backoff;
use keyspace::{Event, KeyRange, Revision, RevisionEvents};
use shard_map::GroupId;

use crate::attempt::{Attempted, Why};
use crate::failure::Failure;
use crate::link::LinkId;
use crate::mutant::mutant;
use crate::request::Reach;
use crate::route::NodeId;

/// Between two replicas: the longest first pause, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

/// Which events a feed carries, and from where on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedSpec {
    /// The keys.
    pub range: KeyRange,
    /// First revision wanted; 0 for the first one after every write that was acknowledged before. May lie in the
    /// future.
    pub start: Revision,
    /// Whether events tell what was there before.
    pub prev_kv: bool,
    /// Bytes of events that may be under way before more credit is given.
    pub credit: u64,
}

/// What a feed yields. A feed goes on through the loss of replicas and leaders; its reader sees no seam.
#[derive(Clone, Debug)]
pub enum FeedItem {
    /// First item, once.
    Opened {
        /// The newest revision when the feed was opened.
        revision: Revision,
        /// First revision that will be carried.
        start: Revision,
        /// The oldest revision that could be read when the feed was opened.
        compact_revision: Revision,
        /// Round of the leadership: etcd's `raft_term`.
        term: u64,
    },
    /// Whole revisions in ascending order, none twice, none left out.
    Events {
        /// The revisions.
        revisions: Vec<RevisionEvents>,
        /// Every event up to this revision has been yielded.
        upto: Revision,
        /// The newest revision of the store.
        revision: Revision,
        /// As above.
        term: u64,
        /// What the events count against the credit.
        bytes: u64,
    },
    /// Every event up to `revision` has been yielded, and `revision` was the newest one when it was asked for, or later.
    Synced {
        /// As asked with.
        token: u64,
        /// See above.
        revision: Revision,
        /// The oldest revision that could be read then.
        compact_revision: Revision,
        /// As above.
        term: u64,
    },
    /// The feed is in step, with these feeds, from now on; with none, it is not in step any more.
    Cohort(Option<Cohort>),
    /// Last item: the revisions wanted are compacted away.
    Compacted {
        /// The oldest revision that can be read.
        compact_revision: Revision,
    },
    /// Last item: the feed cannot go on.
    Failed(Failure),
}

/// The feeds in step at a group's replica, over one connection. What one of them is told by a sync to be complete up to, all are:
/// answers keep their order, and so do the items of all feeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cohort {
    /// Which connection.
    pub link: LinkId,
    /// Which group.
    pub group: GroupId,
}

/// What an event takes in memory beside its keys and values, about.
const EVENT_OVERHEAD_BYTES: u64 = size_of::<Event>() as u64;
/// Bytes of one revision that are taken in before a feed gives up: as much as fits a message of gRPC, and a gateway.
const REVISION_BYTES_MAX: u64 = 1 << 30;

/// What a replica sends for a watch.
#[derive(Clone, Debug)]
pub enum Frame {
    /// First: it is open.
    Opened {
        /// The replica's newest revision.
        revision: Revision,
        /// First revision that will be sent.
        start: Revision,
        /// The oldest revision that it can read.
        compact_revision: Revision,
        /// The round that it is in.
        term: u64,
    },
    /// Revisions in ascending order.
    Events {
        /// The revisions.
        revisions: Vec<RevisionEvents>,
        /// All there are up to this one have been sent.
        upto: Revision,
        /// More events of the last revision, which is the one after `upto`, may follow.
        is_incomplete: bool,
        /// The replica's newest revision.
        revision: Revision,
        /// The round that it is in.
        term: u64,
        /// What they count against the credit.
        bytes: u64,
    },
    /// Last: the revisions wanted are compacted away.
    Compacted {
        /// The oldest revision that can be read.
        compact_revision: Revision,
    },
    /// Last: the replica ended it.
    Canceled,
}

/// A replica's answer to a sync: everything up to `revision` has been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synced {
    /// See above.
    pub revision: Revision,
    /// The oldest revision that can be read.
    pub compact_revision: Revision,
    /// The round that the replica is in.
    pub term: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Upstream {
    position: Position,
    /// Bytes of events that may still come. Below zero where a replica sent a revision larger than what was left.
    credit: i64,
    /// The first part of the revision that the position is at, as the replica sent it: of no use at another one.
    part: Option<RevisionPart>,
    /// The token of a sync that is not answered.
    wanted: Option<u64>,
    backoff: Backoff,
    state: State,
}

/// Events of a revision of which more may follow. The reader gets them together.
#[derive(Debug)]
struct RevisionPart {
    revision: Revision,
    events: Vec<Event>,
    /// What they take in memory, about.
    bytes: u64,
}

/// Where the feed is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    /// No replica has opened it: this is what was asked for.
    Unopened { start: Revision },
    /// First revision that was not yielded.
    At(Revision),
}

#[derive(Debug)]
enum State {
    Detached(Detached),
    Attached(Attached),
    Ended,
}

/// On no replica.
#[derive(Debug)]
struct Detached {
    /// No other is asked before.
    pause_until: Option<Instant>,
    /// The group does not hold its keys. The next shard map may say which one does.
    is_misplaced: bool,
}

/// On a replica.
#[derive(Debug)]
struct Attached {
    node: NodeId,
    progress: Progress,
    /// The sync that the replica is asked for.
    asked: Option<u64>,
    /// Its answer, for when the watch is in step.
    answer: Option<Synced>,
}

/// How far the watch is at the replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// The replica has more than it has sent, or has not said.
    Behind,
    /// Everything up to here has been sent, and each revision that follows will be as soon as it is there.
    InStep { upto: Revision },
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum UpstreamStep<L> {
    /// Open a watch. Tell [`Upstream::handle_frame`] of every frame, or that the opening was not sent.
    Open(Open<L>),
    /// There is nobody to ask: wait for news of the leader or the links.
    AwaitNews,
    /// Wait until then.
    Pause {
        /// Till when.
        until: Instant,
    },
    /// Wait for what comes.
    AwaitFrames,
    /// It is over.
    Ended,
}

/// A watch to be opened.
#[derive(Debug, PartialEq, Eq)]
pub struct Open<L> {
    /// At this node.
    pub node: NodeId,
    /// Over this link.
    pub link: L,
    /// First revision wanted; 0 for the first one behind the newest.
    pub start: Revision,
    /// Bytes of events that may come.
    pub credit: u64,
    /// The replica first catches up with the leader, so that the feed does not start before a write that was acknowledged.
    pub linearizable: bool,
}

/// What came of something that was heard.
#[derive(Debug)]
pub enum Heard {
    /// The feed's reader gets this.
    Item(FeedItem),
    /// The watch is to be closed, for this reason: the next one is opened elsewhere, or anew.
    Left(&'static str),
    /// Nothing.
    Nothing,
}

impl Upstream {
    /// On no replica yet.
    pub fn new(spec: &FeedSpec) -> Upstream {
        Upstream {
            position: Position::Unopened { start: spec.start },
            credit: i64::try_from(spec.credit).unwrap_or(i64::MAX),
            part: None,
            wanted: None,
            backoff: Backoff::new(PAUSE.0, PAUSE.1),
            state: State::Detached(Detached { pause_until: None, is_misplaced: false }),
        }
    }

    /// Allows this many more bytes of events. Replicas must be told, too.
    pub fn credit(&mut self, bytes: u64) {
        self.credit = self.credit.saturating_add_unsigned(bytes);
    }

    /// Asks for a [`FeedItem::Synced`] with this token, in place of one that is not answered.
    pub fn sync(&mut self, token: u64) {
        debug_assert!(self.wanted.is_none_or(|wanted| wanted <= token), "tokens ascend");
        self.wanted = Some(token);
        if let State::Attached(attached) = &mut self.state {
            // An answer to the one before was asked for too early.
            attached.answer = None;
        }
    }

    /// What to do next. `leader`: who leads the group, if that is known; asked for only if it matters.
    pub fn poll<R: Reach>(
        &mut self,
        now: Instant,
        leader: impl FnOnce() -> Option<NodeId>,
        reach: &R,
    ) -> UpstreamStep<R::Link> {
        match &self.state {
            State::Detached(Detached { pause_until: Some(until), .. }) if now < *until => {
                UpstreamStep::Pause { until: *until }
            }
            State::Detached(_) => self.poll_open(leader(), reach),
            State::Attached(_) => UpstreamStep::AwaitFrames,
            State::Ended => UpstreamStep::Ended,
        }
    }

    /// A watch that was never open starts at the leader, which knows of every write; one that goes on may do so anywhere.
    fn poll_open<R: Reach>(&mut self, leader: Option<NodeId>, reach: &R) -> UpstreamStep<R::Link> {
        let at_leader = leader.and_then(|node| Some((node, reach.to(node)?)));
        let elsewhere = || if self.was_opened() { reach.nearest() } else { None };
        let at_leader = if mutant!(FeedBeginsAnywhere) { reach.nearest() } else { at_leader };
        let Some((node, link)) = at_leader.or_else(elsewhere) else { return UpstreamStep::AwaitNews };
        assert!(matches!(self.state, State::Detached(_)), "a feed is at one node at a time");
        self.state =
            State::Attached(Attached { node, progress: Progress::Behind, asked: None, answer: None });
        let (start, linearizable) = match self.position {
            Position::Unopened { start } => (start, !mutant!(FeedBeginsAnywhere)),
            Position::At(position) if mutant!(FeedSkipsOnMove) => (position.next(), false),
            Position::At(position) if mutant!(FeedRepeatsOnMove) => (position.previous(), false),
            Position::At(position) => (position, false),
        };
        UpstreamStep::Open(Open {
            node,
            link,
            start,
            credit: self.credit.max(0).unsigned_abs(),
            linearizable,
        })
    }

    /// The token of a sync that the replica is to be asked for from now on; told once. Tell [`Upstream::handle_synced`] the
    /// answer.
    pub fn ask_for_sync(&mut self) -> Option<u64> {
        let (State::Attached(attached), Position::At(_)) = (&mut self.state, self.position) else {
            return None;
        };
        let token = self.wanted.filter(|wanted| attached.asked != Some(*wanted))?;
        attached.asked = Some(token);
        attached.answer = None;
        Some(token)
    }

    /// Whether it has been open: from then on any replica may serve it.
    pub fn was_opened(&self) -> bool {
        matches!(self.position, Position::At(_))
    }

    /// Whether its replica has sent everything, and sends what follows as soon as it is there.
    pub fn is_in_step(&self) -> bool {
        matches!(&self.state, State::Attached(attached) if attached.progress != Progress::Behind)
    }

    /// Whether nothing more will come.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// The node whose replica serves it.
    pub fn node(&self) -> Option<NodeId> {
        match &self.state {
            State::Attached(attached) => Some(attached.node),
            State::Detached(_) | State::Ended => None,
        }
    }

    /// The replica sent a frame, or will send none any more. `random` draws a number if one is needed.
    pub fn handle_frame(
        &mut self,
        now: Instant,
        frame: Attempted<Frame>,
        random: impl FnOnce() -> u32,
    ) -> Heard {
        let State::Attached(attached) = &mut self.state else { return Heard::Nothing };
        match frame {
            Attempted::Answer(Frame::Opened { revision, start, compact_revision, term }) => {
                self.backoff.reset();
                if start > revision {
                    attached.progress = Progress::InStep { upto: revision };
                }
                if self.was_opened() {
                    return Heard::Nothing;
                }
                self.position = Position::At(start);
                Heard::Item(FeedItem::Opened { revision, start, compact_revision, term })
            }
            Attempted::Answer(Frame::Events {
                mut revisions,
                mut upto,
                mut is_incomplete,
                revision,
                term,
                bytes,
            }) => {
                let Position::At(position) = self.position else {
                    return self.leave(now, "events of a watch that is not open", random);
                };
                if is_incomplete && mutant!(FeedShowsParts) {
                    (is_incomplete, upto) = (false, upto.next());
                }
                attached.progress = if upto < revision || is_incomplete {
                    Progress::Behind
                } else {
                    Progress::InStep { upto }
                };
                self.credit = self.credit.saturating_sub_unsigned(bytes);
                revisions.retain(|events| events.revision >= position || mutant!(FeedRepeatsOnMove));
                debug_assert!(
                    revisions.first().is_none_or(|first| first.revision >= position)
                        || mutant!(FeedRepeatsOnMove),
                    "what was told is not told again"
                );
                self.position = Position::At(position.max(upto.next()));
                if let Err(misbehaved) = self.join_parts(&mut revisions, position, upto, is_incomplete) {
                    return self.leave(now, misbehaved, random);
                }
                let is_next = |part: &RevisionPart| self.position == Position::At(part.revision);
                assert!(
                    self.part.as_ref().is_none_or(is_next),
                    "what is kept is of the revision that it is at"
                );
                if self.part_bytes() > REVISION_BYTES_MAX {
                    return self.fail(Failure::AnswerTooLarge);
                }
                // Also if all of it is kept here: the reader gives the credit back.
                let upto = position.max(upto.next()).previous();
                Heard::Item(FeedItem::Events { revisions, upto, revision, term, bytes })
            }
            Attempted::Answer(Frame::Compacted { compact_revision }) => {
                self.state = State::Ended;
                Heard::Item(FeedItem::Compacted { compact_revision })
            }
            Attempted::Refused(refused) if refused.why == Why::Malformed => {
                self.fail(Failure::Internal("gaios: a node could not read the watch"))
            }
            Attempted::Refused(refused) if refused.why == Why::WrongShard => {
                let heard = self.leave(now, "its keys are elsewhere", random);
                if let State::Detached(detached) = &mut self.state {
                    detached.is_misplaced = true;
                }
                heard
            }
            Attempted::Answer(Frame::Canceled) => self.leave(now, "canceled", random),
            Attempted::Refused(_) | Attempted::Denied(_) => self.leave(now, "refused", random),
            Attempted::Lost if mutant!(FeedStaysWhenLost) => Heard::Nothing,
            Attempted::Lost => self.leave(now, "link lost", random),
            Attempted::Unsent(_) => self.leave(now, "not sent", random),
            Attempted::Protocol(text) => self.leave(now, text, random),
        }
    }

    /// Puts what came of the revision at `position` before together with what came of it now, and keeps what is not complete.
    /// The revisions ascend from there on; only the last may be above `upto`, and is incomplete then.
    fn join_parts(
        &mut self,
        revisions: &mut Vec<RevisionEvents>,
        position: Revision,
        upto: Revision,
        is_incomplete: bool,
    ) -> Result<(), &'static str> {
        if let Some(mut part) = self.part.take().filter(|part| part.revision == position) {
            if revisions.first().is_some_and(|first| first.revision == part.revision) {
                part.push(&revisions.remove(0).events);
            } else if position > upto && !revisions.is_empty() {
                return Err("a revision was begun, and not ended");
            }
            if position > upto {
                self.part = Some(part);
                return Ok(());
            }
            revisions.insert(0, part.whole());
        }
        if is_incomplete && let Some(last) = revisions.pop() {
            let mut part = RevisionPart { revision: last.revision, events: Vec::new(), bytes: 0 };
            part.push(&last.events);
            self.part = Some(part);
        }
        Ok(())
    }

    /// What is kept of a revision that is not complete takes so much memory, about.
    pub fn part_bytes(&self) -> u64 {
        self.part.as_ref().map_or(0, |part| part.bytes)
    }

    /// The replica answered the sync that was asked for: everything up to there was sent, if the watch is in step. Every frame
    /// that it sent before has been handled.
    pub fn handle_synced(&mut self, token: u64, synced: Synced) {
        if let State::Attached(attached) = &mut self.state
            && attached.asked == Some(token)
            && self.wanted == Some(token)
        {
            attached.answer = Some(synced);
        }
    }

    /// The same, where the replica said so of this watch alone, once it was in step.
    pub fn handle_own_synced(&mut self, token: u64, synced: Synced) {
        if let State::Attached(attached) = &mut self.state {
            attached.progress = Progress::InStep { upto: synced.revision };
        }
        self.handle_synced(token, synced);
    }

    /// The sync that is answered, if one is by now.
    pub fn take_synced(&mut self) -> Option<FeedItem> {
        let State::Attached(attached) = &mut self.state else { return None };
        let upto = match attached.progress {
            Progress::InStep { upto } => upto,
            Progress::Behind if mutant!(SyncedThoughBehind) => Revision(0),
            Progress::Behind => return None,
        };
        let Synced { revision, compact_revision, term } = attached.answer.take()?;
        debug_assert_eq!(attached.asked, self.wanted, "an answer to an earlier question is too old");
        // One that came into step after it had asked has come further.
        let revision = revision.max(upto);
        let token = self.wanted.take()?;
        self.handle_watermark(revision);
        Some(FeedItem::Synced { token, revision, compact_revision, term })
    }

    /// The replica has sent everything up to `revision` to all watches in step.
    pub fn handle_watermark(&mut self, revision: Revision) {
        if let (State::Attached(attached), Position::At(position)) = (&self.state, &mut self.position)
            && (attached.progress != Progress::Behind || mutant!(WatermarkThoughBehind))
        {
            *position = (*position).max(revision.next());
        }
    }

    /// `leader` can be reached, and leads the group.
    pub fn handle_leader(&mut self, now: Instant, leader: NodeId, random: impl FnOnce() -> u32) -> Heard {
        match self.node() {
            Some(node) if node != leader => self.leave(now, "the leader is elsewhere", random),
            Some(_) | None => Heard::Nothing,
        }
    }

    /// There is another shard map. Returns whether it need not wait any longer: one pause per map, so that a map which does
    /// not help is no reason to ask without end.
    pub fn handle_map(&mut self) -> bool {
        match &mut self.state {
            State::Detached(detached) if detached.is_misplaced => {
                *detached = Detached { pause_until: None, is_misplaced: false };
                true
            }
            State::Detached(_) | State::Attached(_) | State::Ended => false,
        }
    }

    /// It cannot go on.
    pub fn fail(&mut self, failure: Failure) -> Heard {
        self.part = None;
        self.state = State::Ended;
        Heard::Item(FeedItem::Failed(failure))
    }

    /// The replica is left.
    pub fn leave(&mut self, now: Instant, reason: &'static str, random: impl FnOnce() -> u32) -> Heard {
        assert!(!matches!(self.state, State::Ended), "what is over does not begin again");
        if let Some(part) = self.part.take()
            && mutant!(FeedTornOnMove)
        {
            self.position = Position::At(part.revision.next());
        }
        let pause_until = Some(now + self.backoff.next(random()));
        self.state = State::Detached(Detached { pause_until, is_misplaced: false });
        Heard::Left(reason)
    }
}

impl RevisionPart {
    fn push(&mut self, events: &[Event]) {
        let bytes: usize = events.iter().map(Event::size_bytes).sum();
        self.bytes += bytes as u64 + events.len() as u64 * EVENT_OVERHEAD_BYTES;
        self.events.extend_from_slice(events);
    }

    fn whole(self) -> RevisionEvents {
        RevisionEvents { revision: self.revision, events: self.events.into() }
    }
}

#[cfg(test)]
mod tests;
