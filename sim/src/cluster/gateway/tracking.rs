//! Who leads a group, and the session in it: what `LeaderTracker` says is carried out.

use api::gaios::link::v1 as wire;
use gateway_core::asks::{OpenSession, WhoLeads};
use gateway_core::link::{Ask, Terms, Unanswered, sort};
use gateway_core::{Attempted, GroupId, NodeId, TrackerStep};

use super::{Caller, Gateway};
use crate::cluster::coverage::Mark;
use crate::cluster::env::{Env, trace};

impl Gateway {
    /// Does what the tracker of a group says, until it waits.
    pub(super) fn track(&mut self, env: &mut Env, group: usize) {
        let is_due = self.groups[group].tracker_due.is_none_or(|due| due <= env.instant());
        if self.domain_of(group).topology.is_none() || !is_due {
            return;
        }
        loop {
            let random = env.rng.next() as u32;
            let mut tracker = std::mem::take(&mut self.groups[group].tracker);
            let step =
                tracker.poll(env.instant(), &self.groups[group].state, &self.reach(env, group), || random);
            self.groups[group].tracker = tracker;
            match step {
                TrackerStep::Probe { nodes, least_term } => {
                    self.groups[group].asked += 1;
                    let asked = self.groups[group].asked;
                    for (node, link) in nodes {
                        let caller = Caller::Probe { group, asked, node };
                        if !self.ask(env, link, group, &mut WhoLeads { least_term }, caller) {
                            self.handle_probed(group, asked, node, Err(Unanswered::Lost));
                        }
                    }
                }
                TrackerStep::OpenSession { node, link } => {
                    self.groups[group].asked += 1;
                    let asked = self.groups[group].asked;
                    let nonce = self.groups[group].nonce.clone();
                    let caller = Caller::Opening { group, asked, node };
                    if !self.ask(env, link, group, &mut OpenSession { nonce }, caller) {
                        self.handle_opened(env, group, asked, node, Err(Unanswered::Lost));
                    }
                }
                TrackerStep::Abandon { node, link } => {
                    trace!(env, "gateway {} g{group}: another than n{} leads", self.index, node.0);
                    env.mark(Mark::CallsTakenBack);
                    let Some(link) = link else { continue };
                    let end = self.ends.get_mut(&link);
                    let waiters = end.map_or_else(Vec::new, |end| end.end.abandon(GroupId(group as u64)));
                    self.flush_soon(env, link);
                    for waiter in waiters {
                        self.lost(env, waiter);
                    }
                }
                TrackerStep::Announce => self.announce(group),
                TrackerStep::Await { until } => {
                    self.groups[group].tracker_due = Some(until);
                    return;
                }
            }
        }
    }

    /// Puts a question on a link. Returns whether it took it.
    fn ask(&mut self, env: &mut Env, link: u64, group: usize, ask: &mut impl Ask, caller: Caller) -> bool {
        let (kind, bytes) = ask.request(None);
        let sent = self
            .ends
            .get_mut(&link)
            .map(|end| end.end.call(GroupId(group as u64), kind, bytes, Terms::default(), caller));
        self.flush_soon(env, link);
        matches!(sent, Some(Ok(_)))
    }

    pub(super) fn handle_probed(
        &mut self,
        group: usize,
        asked: u64,
        node: NodeId,
        answered: Result<wire::Response, Unanswered>,
    ) {
        let of = &mut self.groups[group];
        if of.asked == asked {
            of.tracker_due = None;
            let probed = sort(&WhoLeads { least_term: 0 }, answered);
            of.tracker.handle_probed(&mut of.state, node, probed);
        }
    }

    pub(super) fn handle_opened(
        &mut self,
        env: &mut Env,
        group: usize,
        asked: u64,
        node: NodeId,
        answered: Result<wire::Response, Unanswered>,
    ) {
        if self.groups[group].asked != asked {
            return;
        }
        let opened = sort(&OpenSession { nonce: self.groups[group].nonce.clone() }, answered);
        if let Attempted::Answer(_) = opened {
            env.mark(Mark::SessionOpened);
        }
        let learned = self.learn(env, group, node, &opened);
        let random = env.rng.next() as u32;
        let now = env.instant();
        let of = &mut self.groups[group];
        of.tracker_due = None;
        of.tracker.handle_opened(now, &mut of.state, opened, learned, || random);
    }
}
