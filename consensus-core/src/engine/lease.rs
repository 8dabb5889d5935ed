//! The leader lease, a quorum lease (Moraru et al., 2014) that the leader holds.
//!
//! A voter that *fortified* the leader names it in its votes for as long as its node supports the leader's node. A
//! write commits only when everybody named by the counted votes has voted too. So nothing commits behind the back of
//! a leader whose lease is good, and there is no rule that anybody must refuse to vote: a new leader may be elected
//! and replicate at once, and waits with its commits only while the old one, unreachable, may still be reading.
//!
//! The floor binds the leader too: a grant that is given *after* a newer leader's commit tells of that commit by the
//! grantor's highest vote, and reads must wait until that slot is applied.

use super::leader::Leader;
use super::log::ACCEPT_WINDOW;
use super::{Engine, State};
use crate::message::{Fortified, Fortify};
use crate::mutant::mutant;
use crate::{Config, Liveness, Mono, NodeId, Options, Slot};

impl Leader {
    /// The floor of the lease, if it is valid at `now`.
    fn lease_floor(
        &self,
        options: &Options,
        config: &Config,
        now: Mono,
        liveness: &Liveness,
    ) -> Option<Slot> {
        let mut granted = 1;
        let mut floor = Slot(0);
        for peer in &self.peers {
            let Some((epoch, max_voted)) = peer.fortified else { continue };
            let supported =
                liveness.supported_by(now, peer.node).is_some_and(|(current, _)| current == epoch);
            if supported || mutant!(options, LeaseUnbounded) {
                granted += 1;
                floor = floor.max(max_voted);
            }
        }
        assert!(granted <= config.voters.len(), "a voter grants once");
        let needed = config.grants_needed() - usize::from(mutant!(options, GrantMissing));
        (granted >= needed).then_some(floor)
    }

    /// Where to read at `now` without asking anybody.
    pub(super) fn lease_read(
        &self,
        options: &Options,
        config: &Config,
        commit: Slot,
        now: Mono,
        liveness: &Liveness,
    ) -> Option<Slot> {
        let ready = self.ready || mutant!(options, ReadBeforeReady);
        if !ready || self.is_handing_over() || !config.lease_eligible.contains(self.ballot.node) {
            return None;
        }
        let floor = self.lease_floor(options, config, now, liveness)?;
        let ignored = mutant!(options, LeaderIgnoresFloor | FloorSkipped);
        Some(if ignored { commit } else { commit.max(floor) })
    }
}

impl Engine {
    /// Asks every voter that supports this node, and was not asked under this epoch of support, for the lease.
    pub(super) fn fortify(&mut self, now: Mono, liveness: &Liveness) {
        let config = &self.config;
        let State::Leader(leader) = &mut self.state else { return };
        if !config.lease_eligible.contains(leader.ballot.node) {
            return;
        }
        assert_eq!(
            leader.ballot,
            self.acceptor.promised(),
            "I1: who has promised to another asks for no lease"
        );
        let mut waiting = false;
        for peer in leader.peers.iter_mut().filter(|peer| peer.up) {
            let Some((epoch, _)) = liveness.supported_by(now, peer.node) else { continue };
            if peer.fortified.is_some_and(|(granted, _)| granted == epoch) {
                continue;
            }
            waiting = true;
            if peer.fortify_sent != Some(epoch) {
                peer.fortify_sent = Some(epoch);
                let ask = Fortify { ballot: Some(leader.ballot), config_epoch: config.epoch, epoch };
                self.outbox.send_now(peer.node, ask);
            }
        }
        leader.fortify_at = match leader.fortify_at {
            _ if !waiting => None,
            Some(at) => Some(at),
            None => Some(now.after(self.options.timing.retransmit)),
        };
    }

    /// Whoever has not answered is asked again.
    pub(super) fn fortify_again(&mut self) {
        let State::Leader(leader) = &mut self.state else { return };
        for peer in &mut leader.peers {
            peer.fortify_sent = None;
        }
    }

    pub(super) fn handle_fortify(&mut self, now: Mono, liveness: &Liveness, from: NodeId, message: &Fortify) {
        let config = &self.config;
        let unchecked = mutant!(self.options, FloorSkipped | LeaderIgnoresFloor);
        if let Some(ballot) = message.ballot
            && ballot < self.acceptor.promised()
            && !unchecked
        {
            self.nack(from, ballot);
            return;
        }
        // One who may have forgotten votes cannot tell a floor.
        if config.epoch != message.config_epoch
            || !config.lease_eligible.contains(from)
            || self.recall.is_some()
            || liveness.supports(now, from) != Some(message.epoch)
        {
            return;
        }
        self.acceptor.grant(from, message.epoch);
        assert!(self.log.max_voted >= self.acceptor.upto, "I19: the floor covers every vote");
        let max_voted = if mutant!(self.options, FloorSkipped) { Slot(0) } else { self.log.max_voted };
        let Fortify { ballot, config_epoch, epoch } = message.clone();
        self.outbox.send_now(from, Fortified { ballot, config_epoch, epoch, max_voted });
    }

    pub(super) fn handle_fortified(&mut self, now: Mono, from: NodeId, message: &Fortified) {
        let config_epoch = self.config.epoch;
        let State::Leader(leader) = &mut self.state else { return };
        let fits = message.ballot == Some(leader.ballot) && message.config_epoch == config_epoch;
        let bounded = message.max_voted.0 <= self.log.known_commit.0 + 2 * ACCEPT_WINDOW;
        let fill_upto = leader.fill_upto.max(message.max_voted);
        let Some(peer) = leader.peer(from) else { return };
        if !fits || !bounded || peer.fortify_sent.is_none_or(|sent| sent != message.epoch) {
            return;
        }
        peer.fortified = Some((message.epoch, message.max_voted));
        // A vote that no leader ever took up may lie above everything proposed. Reads wait for its slot, so the slot
        // is filled.
        leader.fill_upto = fill_upto;
        let fortified = |peer: &super::progress::Progress| {
            !peer.up || peer.fortified.map(|(epoch, _)| epoch) == peer.fortify_sent
        };
        if leader.peers.iter().all(fortified) {
            leader.fortify_at = None;
        } else if leader.fortify_at.is_none() {
            leader.fortify_at = Some(now.after(self.options.timing.retransmit));
        }
    }
}
