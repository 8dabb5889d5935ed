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
//! B's view ends before A's for any delay of the messages, since t0 is before the receipt. When support lapses at A,
//! the epoch is over: A refuses to revive it, B moves to the next, and every group asks for its lease again.
//!
//! A restarted grantor has forgotten whom it supported. For [`Timing::quarantine`] it grants nothing, and its votes
//! name everybody who might hold a lease. A holder that learns of the restart starts a new epoch.
//!
//! Beside the leases, heartbeats say which peers a node *reaches* (they answered it lately). With that, a follower
//! judges for each of its groups whether the leader reaches a quorum, without a message of the group.

use std::collections::BTreeMap;

use crate::message::{Heartbeat, HeartbeatAck};
use crate::{Epoch, Input, LivenessMessage, Mono, NodeId, Timing};

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
    heartbeat_at: Mono,
    peers: BTreeMap<NodeId, Peer>,
    sends: Vec<(NodeId, LivenessMessage)>,
    events: Vec<LivenessEvent>,
}

/// What is known of one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Peer {
    /// Its life; 0 until it was heard.
    incarnation: u64,
    /// When it was last heard; `None` also after [`Liveness::disconnected`].
    heard_at: Option<Mono>,
    /// What the groups were told last.
    up: bool,
    /// Whom it says it reaches.
    hears: Vec<NodeId>,
    /// Its disk makes progress.
    disk_ok: bool,
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
    /// The node is heard, for the first time or again, or in a new life.
    PeerUp(NodeId),
    /// The node has been silent for [`Timing::election`], its connection broke, or it restarted.
    PeerDown(NodeId),
    /// Something else that groups judge by: whom it reaches, its disk, whether this node reaches it, or its support for
    /// this node. Also said of this node itself.
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
    /// `incarnation` counts the lives of this node from 1 and is durable before any message leaves. In its first life
    /// a node has granted nothing before, so it starts without quarantine.
    #[must_use]
    pub fn new(
        node: NodeId,
        peers: impl IntoIterator<Item = NodeId>,
        incarnation: u64,
        timing: Timing,
        now: Mono,
    ) -> Liveness {
        let quarantine_until = if incarnation > 1 { now.after(timing.quarantine()) } else { now };
        let mut liveness = Liveness {
            node,
            incarnation,
            timing,
            quarantine_until,
            disk_progress_at: now,
            disk_stalled: false,
            heartbeat_at: now,
            peers: BTreeMap::new(),
            sends: Vec::new(),
            events: Vec::new(),
        };
        for peer in peers {
            liveness.add_peer(peer);
        }
        liveness
    }

    /// Starts to exchange heartbeats with `peer`.
    pub fn add_peer(&mut self, peer: NodeId) {
        if peer != self.node {
            let epoch = Epoch { incarnation: self.incarnation, count: 1 };
            self.peers.entry(peer).or_insert_with(|| Peer { epoch, disk_ok: true, ..Peer::default() });
        }
    }

    /// Forgets `peer`, which no group shares with this node any more. What it was granted must have lapsed.
    pub fn remove_peer(&mut self, peer: NodeId) {
        self.peers.remove(&peer);
    }

    /// A message from a peer. `now` is sampled while the caller has exclusive access, see the contract above.
    pub fn receive(&mut self, now: Mono, from: NodeId, message: LivenessMessage) {
        match message {
            LivenessMessage::Heartbeat(heartbeat) => self.handle_heartbeat(now, from, heartbeat),
            LivenessMessage::HeartbeatAck(ack) => self.handle_ack(now, from, &ack),
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
    }

    /// The journal completed a sync after this time, or had nothing to sync.
    pub fn disk_progress(&mut self, now: Mono) {
        self.disk_progress_at = self.disk_progress_at.max(now);
        self.update_disk(now);
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
            let hears = self.reached();
            for (&node, peer) in &self.peers {
                let heartbeat = peer.heartbeat(now, !self.disk_stalled, hears.clone());
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

    /// Which life of this node this is.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// The life of `peer` that was heard last, 0 for none; of this node itself, its own.
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

    /// Whether the journal of `node` makes progress, as far as it said.
    #[must_use]
    pub fn disk_ok(&self, node: NodeId) -> bool {
        if node == self.node {
            !self.disk_stalled
        } else {
            self.peers.get(&node).is_some_and(|peer| peer.disk_ok)
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

    fn handle_heartbeat(&mut self, now: Mono, from: NodeId, heartbeat: Heartbeat) {
        let quarantined = self.quarantined(now);
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let Epoch { incarnation, .. } = heartbeat.epoch;
        if incarnation < peer.incarnation {
            return;
        }
        Self::note_life(&mut self.events, from, peer, incarnation);
        if peer.hears != heartbeat.hears || peer.disk_ok != heartbeat.wants_support {
            peer.hears = heartbeat.hears;
            peer.disk_ok = heartbeat.wants_support;
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
        let granted = heartbeat.wants_support
            && heartbeat.receiver_incarnation == self.incarnation
            && !quarantined
            && heartbeat.epoch > peer.ended
            && current;
        if granted {
            peer.supported = Some((heartbeat.epoch, now.after(self.timing.support)));
        }
        let required = if peer.ended.incarnation == incarnation {
            Epoch { incarnation, count: peer.ended.count + 1 }
        } else {
            Epoch { incarnation, count: 1 }
        };
        let ack = HeartbeatAck {
            sent_at: heartbeat.sent_at,
            incarnation: self.incarnation,
            epoch: heartbeat.epoch,
            granted,
            required,
        };
        self.sends.push((from, LivenessMessage::HeartbeatAck(ack)));
    }

    fn handle_ack(&mut self, now: Mono, from: NodeId, ack: &HeartbeatAck) {
        let hears = self.reached();
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let stale = ack.epoch.incarnation != self.incarnation || ack.incarnation < peer.incarnation;
        if stale || ack.sent_at > now {
            return;
        }
        Self::note_life(&mut self.events, from, peer, ack.incarnation);
        Self::note_heard(&mut self.events, from, peer, now, &self.timing);
        if lapsed(peer.reached_at, now, &self.timing) {
            peer.reached = false;
        }
        peer.reached_at = peer.reached_at.max(Some(ack.sent_at));
        if !peer.reached && !lapsed(peer.reached_at, now, &self.timing) {
            peer.reached = true;
            self.events.push(LivenessEvent::PeerChanged(from));
        }
        if ack.granted && ack.epoch == peer.epoch {
            let was = peer.support_until;
            peer.support_until = was.max(Some(ack.sent_at.after(self.timing.hold())));
            if was.is_none_or(|until| now >= until) {
                self.events.push(LivenessEvent::PeerChanged(from));
            }
        }
        if ack.required > peer.epoch {
            peer.epoch = ack.required;
            peer.support_until = None;
            let heartbeat = peer.heartbeat(now, !self.disk_stalled, hears);
            self.sends.push((from, heartbeat));
        }
    }

    /// A new life of a peer has forgotten what its former one granted, so support is asked for under a new epoch.
    fn note_life(events: &mut Vec<LivenessEvent>, node: NodeId, peer: &mut Peer, incarnation: u64) {
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

    fn update_disk(&mut self, now: Mono) {
        let stalled = now.since(self.disk_progress_at) >= self.timing.disk_stall;
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
