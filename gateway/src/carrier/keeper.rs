//! Keeps a group usable: finds its leader, opens our session there, and renews leases in batches.
//!
//! Requests only wait; the keeper alone asks around, so that a thousand waiting requests cost one question.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use gateway_core::{Attempted, Backoff, NodeId};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info};

use super::group::{Group, Renewal};
use super::{Shared, asks};
use crate::domain::Kept;
use crate::link::{Link, attempt};
use crate::random::{random, random_u32};

/// How long a replica may wait for a leader before it answers that it knows none: so a new one is heard of at once, and a
/// gateway asks five times a second at most.
const SCOUT_WAIT: Duration = Duration::from_millis(200);
/// For an answer of every replica to "who leads".
const SCOUT_TIMEOUT: Duration = Duration::from_millis(250);
/// For the group to open a session.
const OPEN_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a leader that owes answers is looked at.
const SUSPECT_TICK: Duration = Duration::from_millis(250);
/// A leader that owes answers and says nothing for this long may have been replaced: the others are asked.
const SUSPECT_AFTER: Duration = Duration::from_millis(400);
/// Leases renewed by one request.
const RENEWALS_MAX: usize = 10_000;

/// Runs until the carrier stops.
pub(super) async fn run(shared: Arc<Shared>, group: Arc<Group>) {
    let renewals = group.renewals_end.lock().take().expect("one keeper per group takes it once");
    tokio::select! {
        () = shared.stop.cancelled() => {}
        () = keep_leader(&shared, &group) => {}
        () = keep_leases(&shared, &group, renewals) => {}
    }
}

/// What a group lacks.
enum Lack {
    Leader,
    Session(NodeId, Arc<Link>),
    Nothing(NodeId, Arc<Link>),
}

fn lack(shared: &Shared, group: &Group) -> Lack {
    let Some((node, link)) = group.leader_link(shared) else { return Lack::Leader };
    if group.state().session.is_open() { Lack::Nothing(node, link) } else { Lack::Session(node, link) }
}

async fn keep_leader(shared: &Shared, group: &Group) {
    let nonce = Bytes::copy_from_slice(&random::<16>());
    let mut backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(20));
    loop {
        let lack = lack(shared, group);
        group.set_led(!matches!(lack, Lack::Leader));
        shared.tell_leader_known();
        match lack {
            Lack::Leader => {
                scout(shared, group, None).await;
                if group.leader_link(shared).is_some() {
                    group.announce();
                    backoff.reset();
                } else {
                    tokio::time::sleep(backoff.next(random_u32())).await;
                }
            }
            Lack::Session(node, link) => {
                if open_session(group, node, &link, nonce.clone()).await {
                    group.announce();
                    backoff.reset();
                } else {
                    tokio::time::sleep(backoff.next(random_u32())).await;
                }
            }
            Lack::Nothing(node, link) => {
                if timeout(SUSPECT_TICK, group.work.notified()).await.is_err() {
                    check_silence(shared, group, node, &link).await;
                }
            }
        }
    }
}

/// Asks the replicas who leads. Ends as soon as a leader is known that can be reached and is not `suspect`.
async fn scout(shared: &Shared, group: &Group, suspect: Option<NodeId>) {
    let question = asks::WhoLeads {
        wait_ms: u32::try_from(SCOUT_WAIT.as_millis()).unwrap_or(u32::MAX),
        least_term: group.state().route.least_term(),
    };
    let mut news = group.news();
    let mut asked: FuturesUnordered<_> = shared
        .replicas(group)
        .into_iter()
        .filter(|node| Some(*node) != suspect)
        .filter_map(|node| {
            let link = shared.links.to(node)?;
            let mut question = question;
            let group = group.id();
            Some(async move { (node, attempt(&link, group, &mut question, None).await) })
        })
        .collect();
    let any_asked = !asked.is_empty();
    let deadline = Instant::now() + SCOUT_TIMEOUT;
    loop {
        let answer = tokio::select! {
            answer = asked.next(), if any_asked => match answer {
                Some(answer) => Some(answer),
                // None of them knows a leader that is news.
                None => return,
            },
            // The leader's link may have come up.
            _ = news.changed() => None,
            () = sleep_until(deadline) => return,
        };
        if let Some((node, Attempted::Answer(asks::Led { term, leader: Some(leader) }))) = answer {
            let changed = {
                let route = &mut group.state().route;
                if leader == node { route.handle_led(node, term) } else { route.handle_said(term, leader) }
            };
            if changed {
                debug!(group = group.id(), leader, term, "leader found");
            }
        }
        let found = group.leader_link(shared);
        if found.is_some_and(|(leader, _)| Some(leader) != suspect) {
            return;
        }
    }
}

/// A leader that owes answers and is silent may be paused or cut off, and another elected: then its calls are taken
/// back and asked again there, under their numbers.
async fn check_silence(shared: &Shared, group: &Group, node: NodeId, link: &Arc<Link>) {
    if link.owed() == 0 || link.silent_for() < SUSPECT_AFTER {
        return;
    }
    scout(shared, group, Some(node)).await;
    let leader = group.state().route.leader();
    if leader.is_some_and(|leader| leader.node != node) {
        info!(group = group.id(), silent = node, ?leader, "another leader took over");
        link.abandon(group.id());
        group.announce();
    }
}

/// Returns whether there is one, or somebody else to ask at once.
async fn open_session(group: &Group, node: NodeId, link: &Arc<Link>, nonce: Bytes) -> bool {
    let mut ask = asks::OpenSession { nonce };
    let Ok(attempted) = timeout(OPEN_TIMEOUT, attempt(link, group.id(), &mut ask, None)).await else {
        return false;
    };
    let learned = group.learn(node, None, &attempted);
    let Some(asks::Opened { term, session }) = attempted.answer() else { return learned.leader_found };
    let mut state = group.state();
    state.route.handle_led(node, term);
    state.session.handle_opened(session);
    debug!(group = group.id(), session = session.0, "session opened");
    true
}

/// Renews leases: what comes in while one request is under way goes with the next.
async fn keep_leases(shared: &Shared, group: &Group, mut renewals: mpsc::UnboundedReceiver<Renewal>) {
    let mut batch = Vec::new();
    while renewals.recv_many(&mut batch, RENEWALS_MAX).await > 0 {
        let leases: Vec<i64> = batch.iter().map(|renewal| renewal.lease.0).collect();
        match group.renew(shared, leases, shared.deadline()).await {
            Ok(asks::KeptAlive { term, revision, ttls }) => {
                for (renewal, ttl) in batch.drain(..).zip(ttls) {
                    let _ = renewal.answer.send(Ok(Kept { ttl, revision, term }));
                }
            }
            Err(failure) => {
                for renewal in batch.drain(..) {
                    let _ = renewal.answer.send(Err(failure.clone()));
                }
            }
        }
    }
}
