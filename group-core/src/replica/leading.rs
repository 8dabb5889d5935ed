//! What operators ask of a leader: that another one leads, and in which regions the group is to be led.

use api::gaios::link::v1 as wire;
use api::gaios::link::v1::refused::Why;
use api::gaios::link::v1::response::Kind;
use bytes::Bytes;
use consensus_core::{Input, NodeId, Role};
use keyspace::Command;

use crate::clients::{Enrolled, Subject, Waiter};
use crate::env::{Env, LinkId};
use crate::out::Notice;
use crate::placement::{Placement, Voter, rank};
use crate::replica::{Replica, encode};

/// Regions that an operator may name for a group, and bytes of one of their names, as in the configuration.
const REGIONS_MAX: usize = 16;
const REGION_BYTES_MAX: usize = 63;

/// An operator waits until another one leads.
#[derive(Debug)]
pub(crate) struct Move {
    waiter: Waiter,
    to: NodeId,
}

impl Move {
    /// Whether the operator's question came over this link.
    pub(crate) fn is_of(&self, link: LinkId) -> bool {
        self.waiter.link == link
    }
}

impl Replica {
    pub(crate) fn on_leader_control(
        &mut self,
        env: &Env<'_>,
        link: LinkId,
        id: u64,
        control: wire::LeaderControl,
    ) {
        if !self.leading {
            self.replies.refuse(link, id, Why::NotLeader);
            return;
        }
        let waiter = Waiter { link, request: id };
        if let Some(wire::LeaderRegions { regions }) = control.prefer {
            self.prefer(env, waiter, regions);
        } else if control.move_to != 0 {
            self.move_to(env, waiter, NodeId(control.move_to));
        } else {
            self.tell_leading(env, waiter, String::new());
        }
    }

    fn prefer(&mut self, env: &Env<'_>, waiter: Waiter, regions: Vec<String>) {
        let fits = |region: &String| (1..=REGION_BYTES_MAX).contains(&region.len());
        if regions.len() > REGIONS_MAX || !regions.iter().all(fits) {
            let why = format!("at most {REGIONS_MAX} regions of 1 to {REGION_BYTES_MAX} bytes");
            self.tell_leading(env, waiter, why);
            return;
        }
        let command = Command::SetLeaderRegions(regions.into_iter().map(Bytes::from).collect());
        if let Enrolled::Propose(tag) = self.clients.enrol(Subject::LeaderRegions, waiter) {
            self.step_engine(env, Input::Propose { tag, command: encode(&command) });
        }
    }

    fn move_to(&mut self, env: &Env<'_>, waiter: Waiter, to: NodeId) {
        let status = self.engine.status();
        let why = if to == self.settings.node {
            // It leads already.
            Some(String::new())
        } else if !status.config.voters.contains(to) {
            Some(format!("node {} is no voter of this group", to.0))
        } else if status.successor.is_some() || self.moving.is_some() {
            Some("leadership is being handed over already".to_owned())
        } else {
            None
        };
        match why {
            Some(why) => self.tell_leading(env, waiter, why),
            None => {
                self.out.notices.push(Notice::HandingOverAsked { to });
                self.moving = Some(Move { waiter, to });
                self.step_engine(env, Input::Transfer { to });
            }
        }
    }

    /// Another one leads now, or leads still.
    pub(crate) fn end_move(&mut self, env: &Env<'_>, leader: NodeId) {
        if let Some(Move { waiter, to }) = self.moving.take() {
            let why = if leader == to {
                String::new()
            } else {
                format!("node {} has not taken over: it is down, stops, or its disk does not keep up", to.0)
            };
            self.tell_leading(env, waiter, why);
        }
    }

    pub(crate) fn tell_leading(&mut self, env: &Env<'_>, waiter: Waiter, refused: String) {
        let status = self.engine.status();
        let voters = self.voters(env).into_iter().map(|voter| wire::LeaderVoter {
            node: voter.node.0,
            region: self.settings.regions.get(&voter.node).cloned().unwrap_or_default(),
            able: voter.able,
            behind: voter.behind,
        });
        let controlled = wire::LeaderControlled {
            leader: status.leader.map_or(0, |leader| leader.0),
            regions: Some(wire::LeaderRegions {
                regions: self
                    .leader_regions()
                    .iter()
                    .map(|name| String::from_utf8_lossy(name).into())
                    .collect(),
            }),
            configured: self.state.leader_regions().is_none(),
            voters: voters.collect(),
            refused,
        };
        self.replies.add(waiter.link, waiter.request, Kind::LeaderControlled(controlled));
    }

    /// Where the group is to be led: what operators have said, or else the configuration.
    fn leader_regions(&self) -> &[Bytes] {
        self.state.leader_regions().unwrap_or(&self.settings.leader_regions)
    }

    fn rank_of(&self, node: NodeId) -> usize {
        rank(self.leader_regions(), self.settings.regions.get(&node).map(String::as_str))
    }

    /// The other voters. Nothing is known of them where this replica does not lead.
    fn voters(&self, env: &Env<'_>) -> Vec<Voter> {
        let Env { now, liveness, .. } = *env;
        let last = self.engine.status().max_voted;
        let voter = |follower: consensus_core::FollowerStatus| Voter {
            node: follower.node,
            rank: self.rank_of(follower.node),
            able: follower.up && liveness.is_up(now, follower.node) && liveness.is_fit(follower.node),
            behind: last.0.saturating_sub(follower.matched.0),
        };
        self.engine.followers().map(voter).collect()
    }

    /// Whether the leader has to look for a better place, from now on.
    pub(crate) fn reconsider_place(&mut self) {
        let best = self.engine.status().config.voters.iter().map(|voter| self.rank_of(voter)).min();
        let elsewhere = self.leading && best.is_some_and(|best| best < self.rank_of(self.settings.node));
        self.placement = elsewhere.then(Placement::default);
    }

    /// Hands over to a voter in a better region, if it is time.
    pub(crate) fn seek_better_place(&mut self, env: &Env<'_>) {
        let now = env.now;
        let Some(placement) = self.placement.as_mut().filter(|placement| placement.is_due(now)) else {
            return;
        };
        placement.put_off(now);
        let status = self.engine.status();
        if self.stopping.is_some() || status.role != Role::Leader || status.successor.is_some() {
            return;
        }
        let (own, voters) = (self.rank_of(self.settings.node), self.voters(env));
        let Some(placement) = &mut self.placement else { return };
        if let Some(to) = placement.look(now, own, &voters) {
            self.out.notices.push(Notice::HandingOverPlace { to });
            self.step_engine(env, Input::Transfer { to });
        }
    }
}
