//! Keeps a group usable: finds its leader, opens our session there, and renews leases in batches.
//!
//! Requests only wait; the keeper alone asks around, so that a thousand waiting requests cost one question.

use std::sync::Arc;
use std::time::Duration;

use api::gaios::link::v1::{self as wire, request, response::Kind};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::{debug, info};

use super::Shared;
use super::group::{Group, Judged, Renewal};
use crate::backoff::{Backoff, random, random_u32};
use crate::domain::Kept;
use crate::errors::Failure;
use crate::link::{Link, Lost};
use crate::retry::{self, Attempts, Next};
use crate::router::NodeId;

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
    let question = wire::StatusRequest {
        wait_ms: u32::try_from(SCOUT_WAIT.as_millis()).unwrap_or(u32::MAX),
        least_term: group.state().route.least_term(),
        figures: None,
    };
    let mut news = group.news();
    let mut asked: FuturesUnordered<_> = shared
        .replicas(group)
        .into_iter()
        .filter(|node| Some(*node) != suspect)
        .filter_map(|node| {
            let link = shared.links.to(node)?;
            let call = link.call(group.id(), request::Kind::Status(question.clone()), 0).ok()?;
            Some(async move { (node, call.await) })
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
        if let Some((node, Ok(response))) = answer
            && let Some(Kind::Status(status)) = response.kind
        {
            let changed = {
                let mut state = group.state();
                if status.leader == node {
                    state.route.handle_led(node, response.term)
                } else {
                    state.route.handle_said(response.term, status.leader)
                }
            };
            if changed {
                debug!(group = group.id(), leader = status.leader, term = response.term, "leader found");
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

async fn open_session(group: &Group, node: NodeId, link: &Arc<Link>, nonce: Bytes) -> bool {
    let kind = request::Kind::OpenSession(wire::OpenSession { nonce });
    let Ok(call) = link.call(group.id(), kind, 16) else { return false };
    let Ok(Ok(response)) = timeout(OPEN_TIMEOUT, call).await else { return false };
    match response.kind {
        Some(Kind::SessionOpened(opened)) => {
            let mut state = group.state();
            state.route.handle_led(node, response.term);
            state.session.handle_opened(keyspace::SessionId(opened.session));
            debug!(group = group.id(), session = opened.session, "session opened");
            true
        }
        Some(Kind::Refused(refused)) => {
            let mut attempts = Attempts::new(retry::Kind::Write);
            group.handle_refused(node, response.term, &refused, &mut attempts) == Next::Again
        }
        Some(
            Kind::Reply(_)
            | Kind::KeptAlive(_)
            | Kind::Status(_)
            | Kind::WatchOpened(_)
            | Kind::WatchEvents(_)
            | Kind::WatchCanceled(_)
            | Kind::WatchSynced(_)
            | Kind::ShardMap(_)
            | Kind::NodeStatus(_)
            | Kind::Gateways(_)
            | Kind::LeaderControlled(_),
        )
        | None => false,
    }
}

/// Renews leases: what comes in while one request is under way goes with the next.
async fn keep_leases(shared: &Shared, group: &Group, mut renewals: mpsc::UnboundedReceiver<Renewal>) {
    let mut batch = Vec::new();
    while renewals.recv_many(&mut batch, RENEWALS_MAX).await > 0 {
        let leases: Vec<i64> = batch.iter().map(|renewal| renewal.lease.0).collect();
        let deadline = shared.deadline();
        let mut attempts = Attempts::new(retry::Kind::Read);
        let renewed = timeout_at(deadline, renew(shared, group, leases, &mut attempts)).await;
        let renewed = renewed.unwrap_or_else(|_| Err(attempts.timed_out()));
        match renewed {
            Ok((term, kept)) => {
                for (renewal, lease) in batch.drain(..).zip(&kept.leases) {
                    let kept = Kept { ttl: lease.ttl, revision: kept.revision, term };
                    let _ = renewal.answer.send(Ok(kept));
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

async fn renew(
    shared: &Shared,
    group: &Group,
    leases: Vec<i64>,
    attempts: &mut Attempts,
) -> Result<(u64, wire::KeptAlive), Failure> {
    let waiting_max = shared.waiting_max();
    loop {
        let Some((node, link)) = group.leader_link(shared) else {
            group.wait(|| group.leader_link(shared).is_some(), waiting_max).await?;
            continue;
        };
        let bytes = leases.len() * 9;
        let kind = request::Kind::KeepAlive(wire::KeepAlive { leases: leases.clone() });
        let answered = match link.call(group.id(), kind, bytes) {
            Ok(call) => call.await,
            Err(_) => Err(Lost),
        };
        let next = match answered {
            Ok(wire::Response { term, kind: Some(Kind::KeptAlive(kept)), .. })
                if kept.leases.len() == leases.len() =>
            {
                return Ok((term, kept));
            }
            other => match group.judge(node, other, attempts) {
                Judged::Next(next) => next,
                Judged::Refused(error) => return Err(Failure::Refused(error)),
                Judged::Answer(_) => Next::Give(Failure::Internal("gaios: an answer to another question")),
            },
        };
        match next {
            Next::Give(failure) => return Err(failure),
            Next::Again => {}
            Next::Ease => shared.ease(attempts, bytes).await?,
            Next::Wait | Next::Pause | Next::Renumber => {
                tokio::time::sleep(Duration::from_millis(u64::from(random_u32() % 20) + 1)).await;
            }
        }
    }
}
