//! Which nodes live, and which support which: heartbeats between pairs of nodes carry the leases of all their groups
//! (after Cockroach's store liveness).
//!
//! ```text
//! holder B                                     grantor A
//!   t0 ── Heartbeat{epoch, sent_at: t0} ──────▶ supports (B, epoch) until its own clock passes receipt + D
//!      ◀───────────── HeartbeatAck{granted} ──
//!   counts on it until t0 + H                   H = D (1 − ρ) / (1 + ρ) − ε
//! ```
//!
//! A gives support only to a B that says it hears A's answers; to one who can send and not receive it would be no
//! use, and it would hold up commits.
//!
//! B's view ends before A's for any delay of the messages, since t0 is before the receipt. When support lapses at A,
//! the epoch is over: A refuses to revive it, B moves to the next, and every group asks for its lease again.
//!
//! D is the grantor's: A says it when the two meet, and B counts by that and not by its own, so nodes may differ in it. Of a
//! node that does not say it nobody knows how long its support lasts, nor for how long it counts on that of others. So a
//! pair one of whom is silent gives each other none; its groups go on, and its leaders ask before they answer reads.
//!
//! A restarted grantor has forgotten whom it supported. For [`Timing::quarantine`] it grants nothing, and its votes
//! name everybody who might hold a lease. That is by the longest D of its incarnations ([`Liveness::remember`]), which its
//! shell keeps; of one whose disk was emptied nobody knows it, so whoever hears that forgets its support first
//! ([`Liveness::begins_anew`]). A holder that learns of a restart starts a new epoch.
//!
//! A holder that is about to stop need not let others wait for its leases to lapse: [`Liveness::retire`] gives all
//! support back. It first stops to count on what it was given, and then says so by an epoch above, which ends the old one
//! at the grantor. So the holder's view ends before the grantor's here, too, for any delay, loss or order of messages: a
//! heartbeat or an answer of the old epoch that comes late is refused by the epoch. What is lost is made up for by the next
//! heartbeat, or by the lapse.
//!
//! Beside the leases, heartbeats say which peers a node *reaches* (they answered it lately). With that, a follower
//! judges for each of its groups whether the leader reaches a quorum, without a message of the group.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::message::{Heartbeat, HeartbeatAck};
use crate::newcomer::INCARNATION_MAX;
use crate::{Epoch, Input, LivenessMessage, Mono, NodeId, Timing};

/// Lapses of support in one incarnation that one peer need not have heard of: at one in half a second these take 68 years.
const LAPSES_UNHEARD_MAX: u64 = 1 << 32;
/// No incarnation has more epochs.
const EPOCHS_MAX: u64 = 1 << 62;
/// A peer's configuration may have been extended before the own one.
const HEARS_SPARE_MAX: usize = 64;

/// The liveness of the peers of one node. Every group's [`crate::Engine::step`] reads it.
///
/// # Contract
/// When tasks on several threads share it, guard it with a lock, and sample `now` for [`Liveness::receive`] **after**
/// the lock is taken. Otherwise a group could find support lapsed, and leave the holder out of a vote, while a
/// heartbeat with an older time revives that support.
///
/// Engines live as long as their node's `Liveness`: a group must not be restarted without the process, since its
/// leases would be forgotten while the support they hang on goes on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Liveness {
    node: NodeId,
    incarnation: u64,
    timing: Timing,
    quarantine_until: Mono,
    disk_progress_at: Mono,
    disk_stalled: bool,
    disk_failed: bool,
    /// This node is about to stop.
    retiring: bool,
    heartbeat_at: Mono,
    peers: BTreeMap<NodeId, Peer>,
    sends: Vec<(NodeId, LivenessMessage)>,
    events: Vec<LivenessEvent>,
}

/// What is known of one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Peer {
    /// Its incarnation; 0 until it was heard.
    incarnation: u64,
    /// When it was last heard; `None` also after [`Liveness::disconnected`].
    heard_at: Option<Mono>,
    /// What the groups were told last.
    up: bool,
    /// Whom it says it reaches.
    hears: Vec<NodeId>,
    /// It wants support: its disk makes progress, and it is not about to stop.
    fit: bool,
    /// When the last heartbeat that it answered was sent.
    reached_at: Option<Mono>,
    /// What the groups were told last.
    reached: bool,
    /// The epoch this node supports it under, and until when.
    supported: Option<(Epoch, Mono)>,
    /// The last of its epochs that is over.
    ended: Epoch,
    /// The epoch this node asks its support under.
    epoch: Epoch,
    /// Until when it supports this node under `epoch`.
    support_until: Option<Mono>,
}

/// What changed. The shell hands each to every group whose members it concerns: [`Input::from`] converts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LivenessEvent {
    /// The node is heard, for the first time or again, or in a new incarnation.
    PeerUp(NodeId),
    /// The node has been silent for [`Timing::election`], its connection broke, or it restarted.
    PeerDown(NodeId),
    /// Something else that groups judge by: whom it reaches, whether it is fit to lead, whether this node reaches it, or its
    /// support for this node. Also said of this node itself.
    PeerChanged(NodeId),
}

impl From<LivenessEvent> for Input {
    fn from(event: LivenessEvent) -> Input {
        match event {
            LivenessEvent::PeerUp(node) => Input::PeerUp(node),
            LivenessEvent::PeerDown(node) => Input::PeerDown(node),
            LivenessEvent::PeerChanged(node) => Input::PeerChanged(node),
        }
    }
}

/// What [`Liveness::poll`] fills.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LivenessOutput {
    /// To send at once.
    pub sends: Vec<(NodeId, LivenessMessage)>,
    /// To hand to the groups.
    pub events: Vec<LivenessEvent>,
}

impl Liveness {
    /// `incarnation` counts the incarnations of this node from 1 and is durable before any message leaves. In its first
    /// incarnation a node has granted nothing before, so it starts without quarantine.
    #[must_use]
    pub fn new(
        node: NodeId,
        peers: impl IntoIterator<Item = NodeId>,
        incarnation: u64,
        timing: Timing,
        now: Mono,
    ) -> Liveness {
        assert!(incarnation > 0, "0 stands for a peer that was never heard");
        let quarantine_until =
            if incarnation > 1 { now.after(timing.quarantine(timing.support)) } else { now };
        let epoch = Epoch { incarnation, count: 1 };
        let peers = peers.into_iter().filter(|peer| *peer != node);
        Liveness {
            node,
            incarnation,
            timing,
            quarantine_until,
            disk_progress_at: now,
            disk_stalled: false,
            disk_failed: false,
            retiring: false,
            heartbeat_at: now,
            peers: peers.map(|peer| (peer, Peer { epoch, fit: true, ..Peer::default() })).collect(),
            sends: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Former incarnations of this node may have supported others for as long as this.
    pub fn remember(&mut self, support: Duration, now: Mono) {
        if self.incarnation > 1 {
            self.quarantine_until = self.quarantine_until.max(now.after(self.timing.quarantine(support)));
        }
    }

    /// A message from a peer, which gives support for as long as `support`, or does not say so. `now` is sampled while the
    /// caller has exclusive access, see the contract above.
    pub fn receive(&mut self, now: Mono, from: NodeId, support: Option<Duration>, message: LivenessMessage) {
        match message {
            LivenessMessage::Heartbeat(heartbeat) => {
                self.handle_heartbeat(now, from, support.is_some(), heartbeat);
            }
            LivenessMessage::HeartbeatAck(ack) => self.handle_ack(now, from, support, &ack),
        }
        self.debug_check(from);
    }

    /// `peer` has lost its memory, and will grant what it grants in an incarnation that has not begun: what it granted before
    /// is counted on no more.
    pub fn begins_anew(&mut self, peer: NodeId) {
        if let Some(state) = self.peers.get_mut(&peer) {
            // An answer of the incarnation before may still be on its way, also the first.
            state.epoch.count += 1;
            if state.support_until.take().is_some() {
                self.events.push(LivenessEvent::PeerChanged(peer));
            }
        }
    }

    /// The connection to `peer` broke, which says sooner than silence that its process is gone. Leases are not
    /// shortened by this.
    pub fn disconnected(&mut self, peer: NodeId) {
        if let Some(state) = self.peers.get_mut(&peer) {
            state.heard_at = None;
            state.reached_at = None;
            state.reached = false;
            if state.up {
                state.up = false;
                self.events.push(LivenessEvent::PeerDown(peer));
            }
        }
        self.debug_check(peer);
    }

    /// The journal completed a sync after this time, or had nothing to sync.
    pub fn disk_progress(&mut self, now: Mono) {
        self.disk_progress_at = self.disk_progress_at.max(now);
        self.update_disk(now);
    }

    /// A write or sync of the journal failed: this node holds no leases and leads nothing until it restarts. The groups
    /// are told by [`Input::PersistFailed`].
    pub fn disk_failed(&mut self, now: Mono) {
        self.disk_failed = true;
        self.update_disk(now);
    }

    /// This node is about to stop: it gives back the support that it has, asks for none any more, and leads nothing. There
    /// is no way back. Say it before leaderships are handed over, so that no successor waits for a lease of this node.
    pub fn retire(&mut self, now: Mono) {
        if std::mem::replace(&mut self.retiring, true) {
            return;
        }
        self.events.push(LivenessEvent::PeerChanged(self.node));
        let hears = self.reached();
        for (&node, peer) in &mut self.peers {
            // Before anybody hears of it: from here on this node holds nothing.
            peer.epoch.count += 1;
            peer.support_until = None;
            self.sends.push((node, peer.heartbeat(now, false, hears.clone())));
        }
    }

    /// At [`Liveness::next_deadline`]: sends heartbeats, notices who fell silent.
    pub fn tick(&mut self, now: Mono) {
        self.update_disk(now);
        for (&node, peer) in &mut self.peers {
            if peer.up && lapsed(peer.heard_at, now, &self.timing) {
                peer.up = false;
                self.events.push(LivenessEvent::PeerDown(node));
            }
            if peer.reached && lapsed(peer.reached_at, now, &self.timing) {
                peer.reached = false;
                self.events.push(LivenessEvent::PeerChanged(node));
            }
        }
        if now >= self.heartbeat_at {
            self.heartbeat_at = now.after(self.timing.heartbeat);
            let (fit, hears) = (self.is_fit(self.node), self.reached());
            for (&node, peer) in &self.peers {
                let heartbeat = peer.heartbeat(now, fit, hears.clone());
                self.sends.push((node, heartbeat));
            }
        }
    }

    /// Moves everything pending into `out`, which the caller has cleared.
    pub fn poll(&mut self, out: &mut LivenessOutput) {
        out.sends.append(&mut self.sends);
        out.events.append(&mut self.events);
    }

    /// When to call [`Liveness::tick`].
    #[must_use]
    pub fn next_deadline(&self) -> Mono {
        let heard = self.peers.values().filter(|peer| peer.up).filter_map(|peer| peer.heard_at);
        let reached = self.peers.values().filter(|peer| peer.reached).filter_map(|peer| peer.reached_at);
        let lapse = heard.chain(reached).min().map(|at| at.after(self.timing.election));
        lapse.map_or(self.heartbeat_at, |lapse| lapse.min(self.heartbeat_at))
    }

    /// Which node this is.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Which incarnation of this node this is.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// The incarnation of `peer` that was heard last, 0 for none; of this node itself, its own.
    #[must_use]
    pub fn incarnation_of(&self, peer: NodeId) -> u64 {
        if peer == self.node {
            self.incarnation
        } else {
            self.peers.get(&peer).map_or(0, |peer| peer.incarnation)
        }
    }

    /// Whether `peer` was heard within [`Timing::election`]. A node always hears itself.
    #[must_use]
    pub fn is_up(&self, now: Mono, peer: NodeId) -> bool {
        peer == self.node
            || self.peers.get(&peer).is_some_and(|peer| peer.up && !lapsed(peer.heard_at, now, &self.timing))
    }

    /// Whether `peer` answered a heartbeat of this node that is younger than [`Timing::election`].
    #[must_use]
    pub fn reaches(&self, now: Mono, peer: NodeId) -> bool {
        peer == self.node
            || self
                .peers
                .get(&peer)
                .is_some_and(|peer| peer.reached && !lapsed(peer.reached_at, now, &self.timing))
    }

    /// Which nodes `peer` said it reaches, itself not counted.
    #[must_use]
    pub fn hears(&self, peer: NodeId) -> &[NodeId] {
        self.peers.get(&peer).map_or(&[], |peer| &peer.hears)
    }

    /// Whether `node` may lead, as far as it said: its journal makes progress, and it is not about to stop.
    #[must_use]
    pub fn is_fit(&self, node: NodeId) -> bool {
        if node == self.node {
            !self.disk_stalled && !self.retiring
        } else {
            self.peers.get(&node).is_some_and(|peer| peer.fit)
        }
    }

    /// The epoch under which this node supports `holder` at `now`, if it does.
    #[must_use]
    pub fn supports(&self, now: Mono, holder: NodeId) -> Option<Epoch> {
        let (epoch, until) = self.peers.get(&holder)?.supported?;
        (now < until).then_some(epoch)
    }

    /// The epoch under which `grantor` certainly supports this node at `now`, and until when.
    #[must_use]
    pub fn supported_by(&self, now: Mono, grantor: NodeId) -> Option<(Epoch, Mono)> {
        let peer = self.peers.get(&grantor)?;
        let until = peer.support_until?;
        (now < until).then_some((peer.epoch, until))
    }

    /// Whether this node may have granted leases before its restart that are still alive.
    #[must_use]
    pub fn quarantined(&self, now: Mono) -> bool {
        now < self.quarantine_until
    }

    /// Until when it is.
    #[must_use]
    pub fn quarantine_until(&self) -> Mono {
        self.quarantine_until
    }

    fn handle_heartbeat(&mut self, now: Mono, from: NodeId, counts_as_we_say: bool, heartbeat: Heartbeat) {
        let quarantined = self.quarantined(now);
        let hears_max = self.peers.len() + HEARS_SPARE_MAX;
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let Epoch { incarnation, .. } = heartbeat.epoch;
        if incarnation < peer.incarnation
            || !peer.believes(heartbeat.epoch)
            || heartbeat.hears.len() > hears_max
        {
            return;
        }
        Self::note_life(&mut self.events, from, peer, incarnation);
        if peer.hears != heartbeat.hears || peer.fit != heartbeat.wants_support {
            peer.hears = heartbeat.hears;
            peer.fit = heartbeat.wants_support;
            self.events.push(LivenessEvent::PeerChanged(from));
        }
        Self::note_heard(&mut self.events, from, peer, now, &self.timing);

        // An epoch that has lapsed is over, even if nobody has asked since.
        if let Some((epoch, until)) = peer.supported
            && (now >= until || heartbeat.epoch > epoch)
        {
            peer.supported = None;
            peer.ended = peer.ended.max(epoch);
        }
        let current = peer.supported.is_none_or(|(epoch, _)| epoch == heartbeat.epoch);
        // One who does not hear the answers cannot use the support, but would hold up commits with it.
        let answers_arrive = peer.hears.contains(&self.node);
        let granted = heartbeat.wants_support
            && counts_as_we_say
            && answers_arrive
            && heartbeat.receiver_incarnation == self.incarnation
            && !quarantined
            && heartbeat.epoch > peer.ended
            && current;
        if granted {
            let until = now.after(self.timing.support);
            // By the contract, time that was sampled later is not earlier.
            debug_assert!(
                peer.supported.is_none_or(|(_, before)| before <= until),
                "support is not shortened"
            );
            peer.supported = Some((heartbeat.epoch, until));
        }
        let required = if peer.ended.incarnation == incarnation {
            Epoch { incarnation, count: peer.ended.count + 1 }
        } else {
            Epoch { incarnation, count: 1 }
        };
        assert!(
            required > peer.ended || incarnation > peer.ended.incarnation,
            "what is over cannot be asked for"
        );
        assert!(!granted || required <= heartbeat.epoch, "what is granted need not be asked for otherwise");
        let ack = HeartbeatAck {
            sent_at: heartbeat.sent_at,
            incarnation: self.incarnation,
            epoch: heartbeat.epoch,
            granted,
            required,
        };
        self.sends.push((from, LivenessMessage::HeartbeatAck(ack)));
    }

    fn handle_ack(&mut self, now: Mono, from: NodeId, support: Option<Duration>, ack: &HeartbeatAck) {
        let (fit, mut hears) = (self.is_fit(self.node), self.reached());
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let stale = ack.epoch.incarnation != self.incarnation || ack.incarnation < peer.incarnation;
        // What it requires is the epoch after one that this node has had, or believes to have had.
        let believed = ack.incarnation <= INCARNATION_MAX
            && ack.required.incarnation == self.incarnation
            && ack.required.count <= EPOCHS_MAX;
        if stale || ack.sent_at > now || !believed {
            return;
        }
        Self::note_life(&mut self.events, from, peer, ack.incarnation);
        Self::note_heard(&mut self.events, from, peer, now, &self.timing);
        if lapsed(peer.reached_at, now, &self.timing) {
            peer.reached = false;
            hears.retain(|node| *node != from);
        }
        peer.reached_at = peer.reached_at.max(Some(ack.sent_at));
        if !peer.reached && !lapsed(peer.reached_at, now, &self.timing) {
            peer.reached = true;
            self.events.push(LivenessEvent::PeerChanged(from));
            // Support is given to those who say that answers reach them, so this is said at once.
            hears.push(from);
            hears.sort_unstable();
            let heartbeat = peer.heartbeat(now, fit, hears.clone());
            self.sends.push((from, heartbeat));
        }
        if let Some(support) = support
            && ack.granted
            && ack.epoch == peer.epoch
        {
            let was = peer.support_until;
            peer.support_until = was.max(Some(ack.sent_at.after(self.timing.hold(support))));
            if was.is_none_or(|until| now >= until) {
                self.events.push(LivenessEvent::PeerChanged(from));
            }
        }
        if ack.required > peer.epoch {
            assert_eq!(ack.required.incarnation, self.incarnation, "an epoch belongs to who is supported");
            peer.epoch = ack.required;
            peer.support_until = None;
            let heartbeat = peer.heartbeat(now, fit, hears);
            self.sends.push((from, heartbeat));
        }
    }

    /// A new incarnation of a peer has forgotten what its former one granted, so support is asked for under a new epoch.
    fn note_life(events: &mut Vec<LivenessEvent>, node: NodeId, peer: &mut Peer, incarnation: u64) {
        assert!(incarnation <= INCARNATION_MAX, "the caller has not believed it");
        if incarnation <= peer.incarnation {
            return;
        }
        if peer.incarnation > 0 {
            peer.epoch.count += 1;
            peer.support_until = None;
            peer.reached_at = None;
            peer.reached = false;
            peer.hears.clear();
            if peer.up {
                peer.up = false;
                events.push(LivenessEvent::PeerDown(node));
            }
        }
        assert!(peer.support_until.is_none(), "what an incarnation granted ends with it");
        peer.incarnation = incarnation;
    }

    fn note_heard(
        events: &mut Vec<LivenessEvent>,
        node: NodeId,
        peer: &mut Peer,
        now: Mono,
        timing: &Timing,
    ) {
        // A group may have seen the silence before the tick that would have told of it.
        if peer.up && lapsed(peer.heard_at, now, timing) {
            peer.up = false;
            events.push(LivenessEvent::PeerDown(node));
        }
        peer.heard_at = peer.heard_at.max(Some(now));
        if !peer.up {
            peer.up = true;
            events.push(LivenessEvent::PeerUp(node));
        }
    }

    /// What holds for every peer between two calls.
    fn debug_check(&self, node: NodeId) {
        let Some(peer) = self.peers.get(&node) else { return };
        debug_assert_ne!(node, self.node, "a node is no peer of its own");
        debug_assert!(!peer.up || peer.heard_at.is_some(), "who is up was heard");
        debug_assert!(!peer.up || peer.incarnation > 0, "and in some incarnation");
        debug_assert!(!peer.reached || peer.reached_at.is_some(), "who is reached has answered");
        debug_assert!(peer.incarnation <= INCARNATION_MAX, "later incarnations are not believed");
        debug_assert_eq!(peer.epoch.incarnation, self.incarnation, "an epoch belongs to who is supported");
        if let Some((epoch, _)) = peer.supported {
            debug_assert!(epoch > peer.ended, "an epoch that is over is not supported");
            debug_assert!(epoch.incarnation <= peer.incarnation, "and none that has not begun");
        }
    }

    fn update_disk(&mut self, now: Mono) {
        let stalled = self.disk_failed || now.since(self.disk_progress_at) >= self.timing.disk_stall;
        if stalled != self.disk_stalled {
            self.disk_stalled = stalled;
            self.events.push(LivenessEvent::PeerChanged(self.node));
        }
    }

    fn reached(&self) -> Vec<NodeId> {
        self.peers.iter().filter(|(_, peer)| peer.reached).map(|(&node, _)| node).collect()
    }
}

impl Peer {
    /// Whether an epoch that it asks support for may be true. It goes on with each lapse.
    fn believes(&self, epoch: Epoch) -> bool {
        let last = self.ended.max(self.supported.map_or(Epoch::default(), |(epoch, _)| epoch));
        let known = if last.incarnation == epoch.incarnation { last.count } else { 0 };
        epoch.incarnation <= INCARNATION_MAX && epoch.count <= EPOCHS_MAX.min(known + LAPSES_UNHEARD_MAX)
    }

    fn heartbeat(&self, now: Mono, wants_support: bool, hears: Vec<NodeId>) -> LivenessMessage {
        LivenessMessage::Heartbeat(Heartbeat {
            epoch: self.epoch,
            sent_at: now,
            receiver_incarnation: self.incarnation,
            wants_support,
            hears,
        })
    }
}

/// Whether what last happened `at` is too long ago.
fn lapsed(at: Option<Mono>, now: Mono, timing: &Timing) -> bool {
    at.is_none_or(|at| now.since(at) >= timing.election)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    /// Timing's default.
    const SAID: Option<Duration> = Some(Duration::from_millis(350));

    /// Delivers everything that `from` wants to send to `to`; times are the receivers'.
    fn exchange(from: &mut Liveness, to: &mut Liveness, now: Mono) -> Vec<LivenessEvent> {
        let mut events = Vec::new();
        for _ in 0..4 {
            let mut out = LivenessOutput::default();
            from.poll(&mut out);
            events.extend(out.events);
            for (_, message) in out.sends {
                to.receive(now, from.node(), Some(from.timing.support), message);
            }
            let mut back = LivenessOutput::default();
            to.poll(&mut back);
            for (_, message) in back.sends {
                from.receive(now, to.node(), Some(to.timing.support), message);
            }
        }
        events
    }

    fn pair(incarnation: u64) -> (Liveness, Liveness) {
        let timing = Timing::default();
        (
            Liveness::new(A, [B], incarnation, timing, Mono(0)),
            Liveness::new(B, [A], incarnation, timing, Mono(0)),
        )
    }

    fn ms(ms: u64) -> Mono {
        Mono(ms * 1_000_000)
    }

    /// Runs both until `end`, with their disks at work.
    fn run(a: &mut Liveness, b: &mut Liveness, from: u64, end: u64) {
        for at in from..=end {
            for node in [&mut *a, &mut *b] {
                node.disk_progress(ms(at));
                if node.next_deadline() <= ms(at) {
                    node.tick(ms(at));
                }
            }
            exchange(a, b, ms(at));
            exchange(b, a, ms(at));
        }
    }

    #[test]
    fn a_pair_supports_each_other_and_an_epoch_ends_with_a_lapse() {
        let (mut a, mut b) = pair(1);
        run(&mut a, &mut b, 0, 250);
        let first = a.supports(ms(250), B).expect("supported");
        assert_eq!(b.supported_by(ms(250), A).map(|(epoch, _)| epoch), Some(first));
        assert!(a.is_up(ms(250), B) && a.reaches(ms(250), B) && b.hears(A) == [B]);

        // Silence: first the holder stops, then the grantor.
        assert!(b.supported_by(ms(540), A).is_some() || a.supports(ms(540), B).is_some());
        assert_eq!(b.supported_by(ms(950), A), None);
        assert_eq!(a.supports(ms(950), B), None);
        a.tick(ms(950));
        assert!(!a.is_up(ms(950), B));

        // Back again, under another epoch: what was granted under the first is void.
        run(&mut a, &mut b, 951, 1300);
        let second = a.supports(ms(1300), B).expect("supported again");
        assert!(second > first);
        assert_eq!(b.supported_by(ms(1300), A).map(|(epoch, _)| epoch), Some(second));
    }

    #[test]
    fn a_restarted_grantor_is_in_quarantine_and_its_holders_begin_anew() {
        let (mut a, mut b) = pair(1);
        run(&mut a, &mut b, 0, 300);
        let first = b.supported_by(ms(300), A).expect("supported").0;
        let mut a = Liveness::new(A, [B], 2, Timing::default(), ms(301));
        assert!(a.quarantined(ms(301)));
        run(&mut a, &mut b, 301, 600);
        assert_eq!(a.supports(ms(600), B), None);
        assert_eq!(b.incarnation_of(A), 2);
        run(&mut a, &mut b, 601, 1300);
        assert!(!a.quarantined(ms(1300)));
        assert!(b.supported_by(ms(1300), A).expect("supported").0 > first);
    }

    #[test]
    fn a_stalled_or_failed_disk_holds_no_leases() {
        let (mut a, mut b) = pair(1);
        run(&mut a, &mut b, 0, 300);
        b.disk_failed(ms(301));
        run(&mut a, &mut b, 301, 1200);
        assert_eq!(a.supports(ms(1200), B), None);
        assert!(!a.is_fit(B) && !b.is_fit(B) && a.is_up(ms(1200), B));
    }

    #[test]
    fn support_is_given_back_at_once_and_never_taken_up_again() {
        let (mut a, mut b) = pair(1);
        run(&mut a, &mut b, 0, 300);
        let old = b.supported_by(ms(300), A).expect("supported").0;
        // A heartbeat of the old epoch is still on its way, and so is the answer to one before.
        b.tick(ms(400));
        let mut late = LivenessOutput::default();
        b.poll(&mut late);
        let (_, heartbeat) = late.sends.remove(0);
        a.receive(ms(401), B, SAID, heartbeat.clone());
        let mut answers = LivenessOutput::default();
        a.poll(&mut answers);

        b.retire(ms(402));
        assert_eq!(b.supported_by(ms(402), A), None, "the holder stops first");
        assert_eq!(a.supports(ms(402), B), Some(old));
        assert!(!b.is_fit(B));
        exchange(&mut b, &mut a, ms(403));
        assert_eq!(a.supports(ms(403), B), None, "nobody waits for the lapse");
        assert!(a.is_up(ms(403), B) && !a.is_fit(B));

        a.receive(ms(404), B, SAID, heartbeat);
        for (_, answer) in answers.sends {
            b.receive(ms(404), A, SAID, answer);
        }
        exchange(&mut a, &mut b, ms(405));
        assert_eq!(
            (a.supports(ms(405), B), b.supported_by(ms(405), A)),
            (None, None),
            "late news changes nothing"
        );
        run(&mut a, &mut b, 406, 2000);
        assert_eq!((a.supports(ms(2000), B), b.supported_by(ms(2000), A)), (None, None));
        assert!(
            a.is_up(ms(2000), B) && a.supported_by(ms(2000), B).is_some(),
            "it still grants, and is heard"
        );

        // Its next incarnation begins as any other.
        let mut b = Liveness::new(B, [A], 2, Timing::default(), ms(2001));
        run(&mut a, &mut b, 2001, 2400);
        assert!(a.supports(ms(2400), B).is_some() && a.is_fit(B));
    }

    #[test]
    fn who_does_not_hear_the_answers_is_not_supported() {
        let (mut a, mut b) = pair(1);
        for at in 0..1000 {
            b.disk_progress(ms(at));
            if b.next_deadline() <= ms(at) {
                b.tick(ms(at));
            }
            let mut out = LivenessOutput::default();
            b.poll(&mut out);
            for (_, message) in out.sends {
                a.receive(ms(at), B, SAID, message);
            }
            a.poll(&mut LivenessOutput::default());
        }
        assert!(a.is_up(ms(999), B));
        assert_eq!(a.supports(ms(999), B), None);
    }

    #[test]
    fn who_does_not_say_how_long_it_supports_gives_and_gets_nothing() {
        let (mut a, mut b) = pair(1);
        for at in 0..1000 {
            for node in [&mut a, &mut b] {
                node.disk_progress(ms(at));
                if node.next_deadline() <= ms(at) {
                    node.tick(ms(at));
                }
            }
            for _ in 0..4 {
                let (mut from_a, mut from_b) = (LivenessOutput::default(), LivenessOutput::default());
                a.poll(&mut from_a);
                b.poll(&mut from_b);
                for (_, message) in from_a.sends {
                    // B is of a version before: it counts on whatever it is granted.
                    b.receive(ms(at), A, SAID, message);
                }
                for (_, message) in from_b.sends {
                    a.receive(ms(at), B, None, message);
                }
            }
        }
        assert!(a.is_up(ms(999), B) && a.reaches(ms(999), B) && b.reaches(ms(999), A));
        assert_eq!((a.supports(ms(999), B), b.supported_by(ms(999), A)), (None, None));
        assert!(b.supports(ms(999), A).is_some(), "it knows no better");
        assert_eq!(a.supported_by(ms(999), B), None);
    }

    #[test]
    fn support_lasts_as_long_as_who_gives_it_says() {
        let timing = |support| Timing { support: Duration::from_millis(support), ..Timing::default() };
        let mut a = Liveness::new(A, [B], 1, timing(400), Mono(0));
        let mut b = Liveness::new(B, [A], 1, timing(3000), Mono(0));
        run(&mut a, &mut b, 0, 300);
        let until = |node: &Liveness, by| node.supported_by(ms(300), by).expect("supported").1;
        assert!(until(&b, A) < ms(300 + 400) && until(&a, B) > ms(300 + 2700));
    }

    #[test]
    fn a_shorter_support_does_not_shorten_the_quarantine_of_the_longer_one() {
        let mut a = Liveness::new(A, [B], 2, Timing::default(), ms(0));
        assert!(a.quarantined(ms(350)) && !a.quarantined(ms(360)));
        a.remember(Duration::from_secs(2), ms(0));
        assert!(a.quarantined(ms(2000)) && !a.quarantined(ms(2030)));
        a.remember(Duration::from_millis(50), ms(0));
        assert!(a.quarantined(ms(2000)));
        let mut first = Liveness::new(A, [B], 1, Timing::default(), ms(0));
        first.remember(Duration::from_secs(2), ms(0));
        assert!(!first.quarantined(ms(0)), "it has had no incarnation before");
    }

    #[test]
    fn the_support_of_one_that_has_lost_its_memory_is_counted_on_no_more() {
        let (mut a, mut b) = pair(1);
        run(&mut a, &mut b, 0, 300);
        // An answer is on its way when the disk of A is emptied.
        b.tick(ms(400));
        let mut asked = LivenessOutput::default();
        b.poll(&mut asked);
        a.receive(ms(401), B, SAID, asked.sends.remove(0).1);
        let mut answer = LivenessOutput::default();
        a.poll(&mut answer);
        assert!(b.supported_by(ms(402), A).is_some());
        b.begins_anew(A);
        assert_eq!(b.supported_by(ms(402), A), None);
        b.receive(ms(403), A, SAID, answer.sends.remove(0).1);
        assert_eq!(b.supported_by(ms(403), A), None);
    }

    #[test]
    fn nor_is_an_answer_that_comes_only_after_that() {
        let (mut a, mut b) = pair(1);
        for node in [&mut a, &mut b] {
            node.disk_progress(ms(0));
            node.tick(ms(0));
        }
        // Both have met; the first support of A is on its way.
        let mut granted = None;
        for at in 1..20 {
            let mut of_b = LivenessOutput::default();
            b.poll(&mut of_b);
            of_b.sends.into_iter().for_each(|(_, message)| a.receive(ms(at), B, SAID, message));
            let mut of_a = LivenessOutput::default();
            a.poll(&mut of_a);
            for (_, message) in of_a.sends {
                match message {
                    LivenessMessage::HeartbeatAck(ack) if ack.granted => granted = Some(ack),
                    message @ (LivenessMessage::HeartbeatAck(_) | LivenessMessage::Heartbeat(_)) => {
                        b.receive(ms(at), A, SAID, message);
                    }
                }
            }
        }
        assert_eq!(b.supported_by(ms(20), A), None);
        b.begins_anew(A);
        b.receive(ms(20), A, SAID, LivenessMessage::HeartbeatAck(granted.expect("it was asked for support")));
        assert_eq!(b.supported_by(ms(20), A), None);
    }

    #[test]
    fn a_broken_connection_is_down_at_once() {
        let (mut a, mut b) = pair(1);
        run(&mut a, &mut b, 0, 300);
        a.disconnected(B);
        let mut out = LivenessOutput::default();
        a.poll(&mut out);
        assert_eq!(out.events, [LivenessEvent::PeerDown(B)]);
        assert!(!a.is_up(ms(300), B));
        assert!(a.supports(ms(300), B).is_some(), "support is not taken back");
    }

    proptest! {
        /// I13: in true time, the holder's view of support lies inside the grantor's, for clocks of any rate within
        /// the bound and messages of any delay.
        #[test]
        fn the_holder_stops_before_the_grantor(
            rate_a in 995_000u64..=1_005_000,
            rate_b in 995_000u64..=1_005_000,
            offset_a in 0u64..10_000_000_000,
            offset_b in 0u64..10_000_000_000,
            retires_at in prop::option::of(0u64..3000),
            support_a in 300u64..1500,
            support_b in 300u64..1500,
            delays in prop::collection::vec((0u64..900, 0u64..900, any::<bool>(), any::<bool>()), 1..60),
        ) {
            let timing = |support| Timing { support: Duration::from_millis(support), ..Timing::default() };
            let clock_a = |true_us: u64| Mono(offset_a + true_us * rate_a / 1000);
            let clock_b = |true_us: u64| Mono(offset_b + true_us * rate_b / 1000);
            let mut a = Liveness::new(A, [B], 1, timing(support_a), clock_a(0));
            let mut b = Liveness::new(B, [A], 1, timing(support_b), clock_b(0));
            // Messages on their way: arrival in true time, to A or to B.
            let mut flights: Vec<(u64, NodeId, LivenessMessage)> = Vec::new();
            let mut delays = delays.into_iter().cycle();
            for step in 0..3000u64 {
                let at = step * 1000;
                a.disk_progress(clock_a(at));
                b.disk_progress(clock_b(at));
                if a.next_deadline() <= clock_a(at) { a.tick(clock_a(at)); }
                if b.next_deadline() <= clock_b(at) { b.tick(clock_b(at)); }
                if retires_at == Some(step) { b.retire(clock_b(at)); }
                let (due, rest): (Vec<_>, Vec<_>) = flights.into_iter().partition(|(when, _, _)| *when <= at);
                flights = rest;
                for (_, to, message) in due {
                    let (said_a, said_b) = (Some(a.timing.support), Some(b.timing.support));
                    if to == A {
                        a.receive(clock_a(at), B, said_b, message);
                    } else {
                        b.receive(clock_b(at), A, said_a, message);
                    }
                }
                for (node, to) in [(&mut a, B), (&mut b, A)] {
                    let mut out = LivenessOutput::default();
                    node.poll(&mut out);
                    for (_, message) in out.sends {
                        let (short, long, slow, lost) = delays.next().expect("a cycle");
                        if !lost {
                            flights.push((at + 1000 * if slow { long } else { short / 10 }, to, message));
                        }
                    }
                }
                if let Some((epoch, _)) = b.supported_by(clock_b(at), A) {
                    prop_assert_eq!(a.supports(clock_a(at), B), Some(epoch), "at {} us", at);
                }
            }
        }
    }

    #[test]
    fn the_times_fit_together() {
        let timing = Timing::default();
        let support = timing.support;
        assert!(
            timing.heartbeat * 2 < timing.hold(support)
                && timing.hold(support) < support
                && support < timing.quarantine(support)
        );
        // 350 ms * 995 / 1005 - 5 ms.
        assert_eq!(timing.hold(support).as_micros(), 341_517);
    }
}
