//! The leader: proposals become slots, slots travel in a pipeline, and votes become commits.
//!
//! Proposals wait in a queue. Each poll cuts what has gathered into batches while the pipeline has room, so batches
//! grow with load and nothing ever waits for a timer.

use std::collections::VecDeque;

use bytes::Bytes;
use smallvec::SmallVec;

use super::acceptor::Acceptor;
use super::catchup::{CHUNK_BYTES, CHUNK_SLOTS};
use super::election::Recovery;
use super::log::{ACCEPT_WINDOW, Log};
use super::outbox::Outbox;
use super::progress::Progress;
use super::reads::Reads;
use super::{Engine, State};
use crate::message::{Accept, Accepted, Commit, Entries, Handoff};
use crate::mutant::mutant;
use crate::{
    Ballot, Config, Event, Liveness, Mono, NodeId, NodeSet, Options, ReadOutcome, Rejection, Slot, Tag, Value,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Leader {
    pub(super) ballot: Ballot,
    /// The own no-op is at this slot; once it is committed, so is everything before this leadership.
    pub(super) first_own: Slot,
    /// That no-op is committed.
    pub(super) ready: bool,
    /// The next slot to propose at.
    pub(super) next: Slot,
    /// Every other voter, by node.
    pub(super) peers: Vec<Progress>,
    /// Own votes are durable up to here.
    own_durable: Slot,
    pub(super) queue: VecDeque<(Tag, Bytes)>,
    pub(super) queue_bytes: usize,
    inflight_bytes: usize,
    pub(super) reads: Reads,
    transfer: Option<Transfer>,
    /// No-ops are due up to here, so that a lease's floor is reached.
    pub(super) fill_upto: Slot,
    /// When to ask again for leases that were not granted yet.
    pub(super) fortify_at: Option<Mono>,
    /// Members do not know the newest commit index: when to tell it in a message of its own.
    tell_commit_at: Option<Mono>,
    /// That time has come.
    tell_commit: bool,
    /// Commits wait for a lease holder: when to ask whether they still have to.
    lease_poll_at: Option<Mono>,
    /// Since the last quorum was lost: when to step down.
    quorum_lost_at: Option<Mono>,
    /// Every slot up to here was committed before this leadership; those not known here yet are being fetched.
    gap_upto: Slot,
    /// When to give up on that, and let another phase 1 find what can be found.
    gap_at: Option<Mono>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Transfer {
    to: NodeId,
    /// The successor was told to run.
    handed: bool,
    abort_at: Mono,
}

impl Leader {
    pub(super) fn inflight_slots(&self, commit: Slot) -> u64 {
        self.next.0 - 1 - commit.0.min(self.next.0 - 1)
    }

    pub(super) fn enqueue(&mut self, options: &Options, tag: Tag, command: Bytes) -> Result<(), Rejection> {
        if self.queue_bytes + command.len() > options.queue_bytes_max && !self.queue.is_empty() {
            return Err(Rejection::Overloaded);
        }
        self.queue_bytes += command.len();
        self.queue.push_back((tag, command));
        let fits = self.queue_bytes <= options.queue_bytes_max;
        assert!(fits || self.queue.len() == 1, "what waits is bounded, but for one that is larger alone");
        Ok(())
    }

    /// The successor may lead at any moment: the lease has ended, and what is proposed waits. It goes to the successor, or
    /// is proposed here after all.
    pub(super) fn is_handing_over(&self) -> bool {
        self.transfer.is_some_and(|transfer| transfer.handed)
    }

    /// To whom leadership is being handed.
    pub(super) fn successor(&self) -> Option<NodeId> {
        self.transfer.map(|transfer| transfer.to)
    }

    pub(super) fn peer(&mut self, node: NodeId) -> Option<&mut Progress> {
        let index = self.peers.binary_search_by_key(&node, |peer| peer.node).ok()?;
        Some(&mut self.peers[index])
    }

    pub(super) fn deadline(&self) -> Option<Mono> {
        let retries = self.peers.iter().filter_map(|peer| peer.retry_at);
        let own = [
            self.fortify_at,
            self.tell_commit_at,
            self.lease_poll_at,
            self.quorum_lost_at,
            self.gap_at,
            self.transfer.map(|transfer| transfer.abort_at),
            self.reads.deadline(),
        ];
        retries.chain(own.into_iter().flatten()).min()
    }

    /// The next batch, if any may be proposed now.
    fn next_value(&mut self, options: &Options, commit: Slot) -> Option<Value> {
        let room = self.inflight_slots(commit) < options.inflight_slots_max
            && self.inflight_bytes < options.inflight_bytes_max;
        if self.next <= self.fill_upto {
            return Some(Value::Noop);
        }
        if !room || self.queue.is_empty() || self.transfer.is_some() {
            return None;
        }
        let (mut count, mut bytes) = (0, 0);
        for (_, command) in &self.queue {
            if count > 0 && bytes + command.len() > options.batch_bytes_max {
                break;
            }
            count += 1;
            bytes += command.len();
        }
        assert!(count > 0, "a batch is no no-op");
        assert!(count == 1 || bytes <= options.batch_bytes_max, "only one command may exceed a batch");
        assert!(self.queue_bytes >= bytes, "every queued command's bytes are counted");
        self.queue_bytes -= bytes;
        Some(Value::Batch(self.queue.drain(..count).map(|(_, command)| command).collect()))
    }

    /// How far the votes commit (C1 and C2): the highest slot for which q2 voters have voted whose reported lease
    /// holders have voted too. The second result is true when votes suffice for more, and only holders are missing.
    fn quorum_commit(&self, options: &Options, config: &Config, own: &NodeSet, commit: Slot) -> (Slot, bool) {
        let me = self.ballot.node;
        let own_vote = (me, self.own_durable, own);
        let votes: SmallVec<[(NodeId, Slot, &NodeSet); 9]> =
            self.peers.iter().map(|peer| (peer.node, peer.matched, &peer.grants)).chain([own_vote]).collect();
        let needed = usize::from(config.q2) - usize::from(mutant!(options, PhaseTwoQuorumShort));
        let mut ends: SmallVec<[Slot; 9]> =
            votes.iter().map(|(_, upto, _)| *upto).filter(|upto| *upto > commit).collect();
        ends.sort_unstable_by(|a, b| b.cmp(a));
        ends.dedup();
        let mut held_back = false;
        for slot in ends {
            // The leader proposed the slot, so as a holder it knows of it, whether or not its own disk is done.
            let voted = |node: NodeId| {
                node == me || votes.iter().any(|(voter, upto, _)| *voter == node && *upto >= slot)
            };
            let (mut all, mut counted) = (0, 0);
            for (_, _, grants) in votes.iter().filter(|(_, upto, _)| *upto >= slot) {
                all += 1;
                counted += usize::from(mutant!(options, GrantsIgnored) || grants.iter().all(voted));
            }
            if counted >= needed {
                return (slot, held_back);
            }
            held_back |= all >= needed;
        }
        (commit, held_back)
    }

    /// Sends a member what it lacks, as far as its window allows.
    fn replicate(&mut self, index: usize, now: Mono, log: &Log, outbox: &mut Outbox) {
        let (ballot, gap_upto, last) = (self.ballot, self.gap_upto, self.last());
        let peer = &mut self.peers[index];
        while peer.sent < last && peer.has_room() {
            let from = peer.sent.next();
            if from < log.first() {
                peer.snapshot = Some(now);
                outbox.event(Event::SnapshotNeeded { to: peer.node, at_least: Slot(log.first().0 - 1) });
                break;
            }
            let mut entries = Entries::new();
            let mut bytes = 0;
            for slot in (from.0..=last.0).map(Slot) {
                // A new leader may not have all committed values yet.
                let Some(entry) = log.get(slot).filter(|_| slot <= log.commit || slot > gap_upto) else {
                    break;
                };
                let Some(value) = &entry.value else { break };
                if !entries.is_empty() && (bytes + entry.size() > CHUNK_BYTES || entries.len() >= CHUNK_SLOTS)
                {
                    break;
                }
                bytes += entry.size();
                entries.push((slot, value.clone()));
            }
            let Some((end, _)) = entries.last() else { break };
            assert!(
                *end <= last && entries.len() <= CHUNK_SLOTS,
                "a member is sent what was proposed, in pieces"
            );
            peer.on_sent(*end, bytes);
            peer.commit_sent = log.commit;
            outbox.send_now(peer.node, Accept { ballot, commit: log.commit, entries });
        }
    }

    /// The last slot proposed at.
    fn last(&self) -> Slot {
        Slot(self.next.0 - 1)
    }

    /// Asks a member for a fresh acknowledgement.
    fn probe(&self, to: NodeId, log: &Log, outbox: &mut Outbox) {
        outbox.send_now(to, Accept { ballot: self.ballot, commit: log.commit, entries: Entries::new() });
    }

    pub(super) fn check_invariants(&self, log: &Log, config: &Config, acceptor: &Acceptor) {
        assert_eq!(self.ballot, acceptor.promised(), "I1: a leader has promised nothing higher");
        assert_eq!(self.ballot.node, acceptor.promised().node, "I8: a ballot belongs to its node");
        assert!(self.own_durable <= acceptor.upto, "own votes are counted when durable");
        assert!(self.gap_upto < self.first_own, "what was committed before lies below the own no-op");
        assert!(self.first_own <= self.fill_upto, "the own no-op is due, or proposed");
        assert!(self.first_own <= self.next, "what phase 1 found is proposed before anything else");
        assert!(
            !self.ready || log.commit >= self.first_own,
            "who is ready knows all that was committed before"
        );
        assert!(log.known_commit < self.next, "I7: nobody else commits where this node leads");
        assert!(self.inflight_slots(log.commit) <= ACCEPT_WINDOW, "I19: the pipeline is bounded");
        let others = config.voters.iter().filter(|node| *node != self.ballot.node).count();
        assert_eq!(others, self.peers.len(), "peers are the other voters");
        for peer in &self.peers {
            peer.check_invariants(self.next);
        }
        let queued: usize = self.queue.iter().map(|(_, command)| command.len()).sum();
        assert_eq!(queued, self.queue_bytes, "queued bytes are counted");
    }
}

impl Engine {
    /// Phase 1 is complete: proposes again what must be, and a no-op above it.
    pub(super) fn become_leader(&mut self, now: Mono, liveness: &Liveness, recovery: Recovery) {
        assert!(!self.promise_lost(), "I18: who has forgotten a promise does not lead");
        assert_eq!(self.acceptor.promised().node, self.options.node, "I8: a ballot belongs to its node");
        for (slot, value) in recovery.facts {
            self.learn(slot, value, Ballot::default());
        }
        let ballot = self.acceptor.promised();
        if recovery.commit.0 > self.log.commit.0 + ACCEPT_WINDOW {
            // Too far behind to lead: catches up first, while somebody else runs.
            self.become_follower(None);
            self.await_election(now);
            self.note_commit(now, liveness, recovery.source, recovery.commit);
            return;
        }
        let next = recovery.commit.max(self.log.commit).next();
        // Fetched values may have moved the own commit index on while the promises travelled.
        let proposals: Vec<_> = recovery.proposals.into_iter().filter(|(slot, _)| *slot >= next).collect();
        let config = self.config.clone();
        let first_own = Slot(next.0 + proposals.len() as u64);
        let mut leader = Leader {
            ballot,
            first_own,
            ready: false,
            next,
            peers: Vec::new(),
            own_durable: self.log.commit,
            queue: VecDeque::new(),
            queue_bytes: 0,
            inflight_bytes: 0,
            reads: Reads::default(),
            transfer: None,
            fill_upto: first_own,
            fortify_at: None,
            tell_commit_at: None,
            tell_commit: false,
            lease_poll_at: None,
            quorum_lost_at: None,
            gap_upto: Slot(next.0 - 1),
            gap_at: None,
        };
        for node in config.voters.iter().filter(|node| *node != self.options.node) {
            let known = recovery.commits.get(&node).copied();
            leader.peers.push(Progress::new(node, liveness.is_up(now, node), known, first_own));
        }
        assert!(leader.peers.is_sorted_by_key(|peer| peer.node), "peers are found by binary search");
        if self.log.commit < leader.gap_upto {
            leader.gap_at = Some(now.after(self.options.timing.election * 2));
        }
        let last_recovered = Slot(first_own.0 - 1);
        if self.log.known_commit >= first_own {
            // Nobody of a quorum knows of this: it was a lie, or what a newer leader did.
            self.log.forget_claimed_commit();
        }
        self.state = State::Leader(Box::new(leader));
        for (slot, value) in proposals {
            assert_eq!(slot, self.propose_value(value), "phase 1 recovers every slot");
        }
        self.recalled_by_leading(ballot, last_recovered);
        if self.log.known_commit >= first_own {
            // The own journal knows of it.
            self.resign(now);
            return;
        }
        self.note_commit(now, liveness, recovery.source, recovery.commit);
        self.fortify(now, liveness);
        self.check_quorum(now, liveness);
    }

    /// Whether this node leads, and the slot is one of those that it proposed at: not of the gap below.
    pub(super) fn leads_at(&self, slot: Slot) -> bool {
        matches!(&self.state, State::Leader(leader) if slot > leader.gap_upto)
    }

    /// Votes for a value at the next slot, which proposes it.
    fn propose_value(&mut self, value: Value) -> Slot {
        let State::Leader(leader) = &mut self.state else { unreachable!("only a leader proposes") };
        let slot = leader.next;
        assert!(slot > leader.gap_upto, "I4: a slot that is committed is fetched, and not proposed at");
        leader.next = slot.next();
        leader.inflight_bytes += value.size();
        let ballot = leader.ballot;
        self.vote(slot, value, ballot);
        slot
    }

    /// What a leader does once per poll: cut batches, send, tell the commit index, start a round of reads.
    pub(super) fn lead(&mut self) {
        loop {
            let State::Leader(leader) = &mut self.state else { return };
            match leader.next_value(&self.options, self.log.commit) {
                Some(value) => self.propose_value(value),
                None => break,
            };
        }
        let State::Leader(leader) = &mut self.state else { return };
        let (last, commit) = (leader.last(), self.log.commit);
        let delay = self.options.timing.commit_delay;
        let tell_commit = std::mem::take(&mut leader.tell_commit) || delay.is_zero();
        let tell_commit_at = leader.tell_commit_at.take().unwrap_or(self.clock.after(delay));
        for index in 0..leader.peers.len() {
            leader.replicate(index, self.clock, &self.log, &mut self.outbox);
            let ballot = leader.ballot;
            let peer = &mut leader.peers[index];
            if peer.takes_probe() {
                peer.commit_sent = commit;
                let node = peer.node;
                leader.probe(node, &self.log, &mut self.outbox);
            } else if peer.up && peer.commit_sent < commit && peer.sent == last {
                if tell_commit {
                    peer.commit_sent = commit;
                    self.outbox.send_now(peer.node, Commit { ballot, commit });
                } else {
                    leader.tell_commit_at = Some(tell_commit_at);
                }
            }
            let peer = &mut leader.peers[index];
            if peer.up && peer.lacks(last, commit) {
                peer.arm_retry(self.clock, self.options.timing.retransmit);
            }
        }
        leader.hand_over(&self.log, &mut self.outbox);
        self.start_read_round();
    }

    pub(super) fn handle_accepted(
        &mut self,
        now: Mono,
        liveness: &Liveness,
        from: NodeId,
        message: Accepted,
    ) {
        let State::Leader(leader) = &mut self.state else { return };
        if leader.ballot != message.ballot || message.upto >= leader.next {
            return;
        }
        let first = self.log.first();
        let Some(peer) = leader.peer(from) else { return };
        peer.on_accepted(message.upto, message.commit, message.grants);
        if peer.matched.next() >= first {
            peer.snapshot = None;
        }
        self.update_commit(now, liveness);
    }

    /// Counts votes, if this node leads.
    pub(super) fn update_commit(&mut self, now: Mono, liveness: &Liveness) {
        if !matches!(self.state, State::Leader(_)) {
            return;
        }
        self.sample_grants(now, liveness);
        loop {
            let State::Leader(leader) = &mut self.state else { return };
            leader.own_durable = leader.own_durable.max(self.log.commit);
            while leader.own_durable < self.acceptor.upto
                && let Some(entry) = self.log.get(leader.own_durable.next())
                && (self.outbox.is_durable(entry.staged) || mutant!(self.options, OwnVoteUngated))
            {
                leader.own_durable = leader.own_durable.next();
            }
            if self.log.commit < leader.gap_upto {
                return;
            }
            leader.gap_at = None;
            let config = &self.config;
            let (target, held_back) =
                leader.quorum_commit(&self.options, config, self.acceptor.granted(), self.log.commit);
            leader.lease_poll_at = match leader.lease_poll_at {
                _ if !held_back => None,
                Some(at) => Some(at),
                None => Some(now.after(self.options.timing.lease_poll)),
            };
            assert!(leader.own_durable <= self.acceptor.upto, "I3: own votes are counted when they are cast");
            assert!(target >= self.log.commit, "I10: commits are not taken back");
            assert!(target < leader.next, "I7: what this leader has not proposed has no votes");
            if target == self.log.commit {
                break;
            }
            self.commit_proposals(target);
        }
        let State::Leader(leader) = &mut self.state else { return };
        if !leader.ready && self.log.commit >= leader.first_own {
            leader.ready = true;
            self.outbox.event(Event::LeadershipReady);
            self.end_survival();
        }
    }

    /// Commits own proposals up to `target`.
    fn commit_proposals(&mut self, target: Slot) {
        while self.log.commit < target {
            self.commit_next();
            let State::Leader(leader) = &mut self.state else { return };
            assert!(self.log.commit <= target, "one slot after the other");
            let entry = self.log.get(self.log.commit).expect("what was just committed is kept");
            leader.inflight_bytes = leader.inflight_bytes.saturating_sub(entry.size());
        }
    }

    pub(super) fn on_leader_timeout(&mut self, now: Mono, liveness: &Liveness) {
        let due = |at: Option<Mono>| at.is_some_and(|at| now >= at);
        let State::Leader(leader) = &mut self.state else { return };
        if due(leader.tell_commit_at) {
            leader.tell_commit_at = None;
            leader.tell_commit = true;
        }
        for peer in &mut leader.peers {
            if due(peer.retry_at) {
                peer.on_retry();
            }
        }
        if due(leader.gap_at) || due(leader.quorum_lost_at) && !self.has_quorum(now, liveness) {
            self.resign(now);
            return;
        }
        let State::Leader(leader) = &mut self.state else { return };
        if due(leader.quorum_lost_at) {
            leader.quorum_lost_at = None;
        }
        if let Some(transfer) = leader.transfer.filter(|transfer| now >= transfer.abort_at) {
            leader.transfer = None;
            self.outbox.event(Event::TransferAborted { to: transfer.to });
        }
        let (fortify, poll) = (due(leader.fortify_at), due(leader.lease_poll_at));
        if fortify {
            leader.fortify_at = None;
            self.fortify_again();
            self.fortify(now, liveness);
        }
        if poll {
            self.poll_leases(now, liveness);
        }
        self.on_read_timeout(now);
    }

    /// Asks those whose votes name holders that have not voted whether they still support them.
    fn poll_leases(&mut self, now: Mono, liveness: &Liveness) {
        if let State::Leader(leader) = &mut self.state {
            leader.lease_poll_at = None;
        }
        self.update_commit(now, liveness);
        let State::Leader(leader) = &self.state else { return };
        if leader.lease_poll_at.is_some() {
            let own = leader.ballot.node;
            let waiting = |peer: &&Progress| {
                peer.up && peer.matched > self.log.commit && peer.grants.iter().any(|node| node != own)
            };
            for peer in leader.peers.iter().filter(waiting) {
                leader.probe(peer.node, &self.log, &mut self.outbox);
            }
        }
    }

    pub(super) fn handle_peer_as_leader(
        &mut self,
        now: Mono,
        liveness: &Liveness,
        node: NodeId,
        change: PeerChange,
    ) {
        let State::Leader(leader) = &mut self.state else { return };
        if let Some(peer) = leader.peer(node) {
            match change {
                PeerChange::Up => peer.on_up(),
                PeerChange::Down => peer.on_down(),
                PeerChange::Other if liveness.is_up(now, node) && peer.is_given_up() => peer.on_up(),
                PeerChange::Other => {}
            }
        }
        // Whoever wants this one to lead no more need not wait for one who will not.
        if let Some(transfer) = leader
            .transfer
            .take_if(|transfer| transfer.to == node && (!liveness.is_up(now, node) || !liveness.is_fit(node)))
        {
            self.outbox.event(Event::TransferAborted { to: transfer.to });
        }
        self.check_quorum(now, liveness);
        self.fortify(now, liveness);
        self.update_commit(now, liveness);
    }

    /// A leader that cannot commit stops after a while, so that somebody else may.
    fn check_quorum(&mut self, now: Mono, liveness: &Liveness) {
        let has_quorum = self.has_quorum(now, liveness);
        let State::Leader(leader) = &mut self.state else { return };
        leader.quorum_lost_at = match leader.quorum_lost_at {
            _ if has_quorum => None,
            Some(at) => Some(at),
            None => Some(now.after(self.options.timing.election)),
        };
    }

    fn has_quorum(&self, now: Mono, liveness: &Liveness) -> bool {
        let config = &self.config;
        liveness.is_fit(self.options.node) && self.reaches(now, liveness, |reached| config.is_q2(reached))
    }

    pub(super) fn handle_snapshot_ended(&mut self, now: Mono, to: NodeId) {
        let State::Leader(leader) = &mut self.state else { return };
        if let Some(peer) = leader.peer(to) {
            peer.snapshot = None;
            peer.retry_at = None;
            peer.arm_retry(now, self.options.timing.retransmit);
            peer.await_answer();
        }
    }

    pub(super) fn handle_transfer(&mut self, now: Mono, liveness: &Liveness, to: NodeId) {
        let can_lead = self.config.voters.contains(to) && liveness.is_fit(to);
        if let State::Leader(leader) = &mut self.state
            && can_lead
            && leader.transfer.is_none()
            && leader.peer(to).is_some_and(|peer| peer.up)
        {
            let abort_at = now.after(self.options.timing.election * 2);
            leader.transfer = Some(Transfer { to, handed: false, abort_at });
        } else {
            self.outbox.event(Event::TransferAborted { to });
        }
    }

    /// The leader that was is none any more.
    pub(super) fn retire(&mut self, leader: Leader, successor: Option<NodeId>) {
        for tag in leader.reads.tags() {
            self.outbox.read(tag, ReadOutcome::Lost);
        }
        let hint = successor.or(leader.transfer.map(|transfer| transfer.to));
        for (tag, _) in leader.queue {
            self.outbox.reject(tag, Rejection::NotLeader { hint });
        }
    }
}

impl Leader {
    /// Once everything is committed and the successor has it, tells it to run.
    fn hand_over(&mut self, log: &Log, outbox: &mut Outbox) {
        let last = self.last();
        let ballot = self.ballot;
        let Some(transfer) = self.transfer.filter(|transfer| !transfer.handed) else { return };
        if log.commit == last && self.peer(transfer.to).is_some_and(|peer| peer.matched == last) {
            self.transfer = Some(Transfer { handed: true, ..transfer });
            outbox.send_now(transfer.to, Handoff { ballot });
        }
    }
}

/// What became of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PeerChange {
    Up,
    Down,
    Other,
}
