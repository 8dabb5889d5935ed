//! A node: one data directory, one journal, one port, one link per peer, and the groups that live here.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use consensus_core::{GroupId, Liveness};
use group_core::Event;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::abort_on_panic;
use crate::aside;
use crate::clock;
use crate::dial::dial;
use crate::disk_watch::DiskWatch;
use crate::group;
use crate::health::Health;
use crate::listener;
use crate::newcomer::{settle, take_place};
use crate::rates::SAMPLE_EVERY;
use crate::shared::Shared;
use crate::start::{GroupStart, NodeOptions, Recovered, StartError, recover};
use crate::wire::Room;

/// A running node.
#[derive(Debug)]
pub struct Node {
    pub(crate) shared: Arc<Shared>,
    address: SocketAddr,
    groups: TaskTracker,
    others: TaskTracker,
    accepting: JoinHandle<()>,
}

impl Node {
    /// Recovers what the data directory holds and begins to take part. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// See [`StartError`]; nothing has been sent to anybody then.
    pub async fn start(options: NodeOptions) -> Result<Node, StartError> {
        let listener = listen(&options)?;
        let address = listener
            .local_addr()
            .map_err(|source| StartError::Io { action: "read the listening address", source })?;
        let name = options.name.clone();
        if options.insecure {
            warn!(
                node = options.id.0,
                %address,
                "this node is insecure: whoever reaches its port can read and change everything, and take part as a node"
            );
        }
        let recovered = tokio::task::spawn_blocking(move || recover(options))
            .await
            .map_err(|error| StartError::Io { action: "recover", source: io::Error::other(error) })??;
        let shared = Arc::clone(&recovered.shared);
        let groups = TaskTracker::new();
        let others = TaskTracker::new();
        let open = listener::open(Arc::clone(&shared), listener, others.clone());
        let accepting = tokio::spawn(abort_on_panic::task("the listener", open));
        if shared.seat.is_taken() {
            take_part(&shared, recovered.starts, &groups, &others);
            if shared.seat.is_unsettled() {
                others.spawn(settle(Arc::clone(&shared)));
            }
        } else {
            let newcomer = come_new(recovered, groups.clone(), others.clone());
            groups.spawn(abort_on_panic::task("the newcomer", newcomer));
        }
        groups.close();
        info!(node = shared.id.0, name, %address, groups = shared.groups.all().len(), "node up");
        Ok(Node { shared, address, groups, others, accepting })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the node tells about itself while it runs.
    #[must_use]
    pub fn health(&self) -> Health {
        Health::of(Arc::clone(&self.shared))
    }

    /// Stops in order: leases are given back, leaders hand over, the journal finishes, connections end.
    pub async fn stop(self) {
        // Before the groups hear of it, so that it is said before any of them hands over.
        self.shared.liveness.step(|liveness, now| liveness.retire(now));
        self.shared.stopping.cancel();
        self.groups.wait().await;
        self.shared.stopped.cancel();
        self.accepting.abort();
        // The port is free once the task is gone.
        let _ = self.accepting.await;
        self.others.close();
        self.others.wait().await;
        info!(node = self.shared.id.0, "node stopped");
    }
}

/// A newcomer takes its place, and then takes part.
async fn come_new(recovered: Recovered, groups: TaskTracker, others: TaskTracker) {
    let Recovered { shared, mut starts } = recovered;
    let Some(taken) = take_place(&shared).await else { return };
    if let Some(incarnation) = taken.returned_as {
        let peers = shared.peers.keys().copied();
        let liveness = Liveness::new(shared.id, peers, incarnation, shared.timing, clock::now());
        shared.liveness.replace(liveness);
        for group in &mut starts {
            group.start.durable.lost_all();
        }
        others.spawn(settle(Arc::clone(&shared)));
    }
    shared.seat.take(taken.roll);
    take_part(&shared, starts, &groups, &others);
}

fn take_part(shared: &Arc<Shared>, starts: Vec<GroupStart>, groups: &TaskTracker, others: &TaskTracker) {
    for group in starts {
        groups.spawn(abort_on_panic::task("a group", group::run(Arc::clone(shared), group)));
    }
    others.spawn(abort_on_panic::task("the heartbeats", keep_liveness(Arc::clone(shared))));
    others.spawn(abort_on_panic::task("doubts of this node", aside::keep(Arc::clone(shared))));
    others.spawn(keep_rates(Arc::clone(shared)));
    others.spawn(forget_support(Arc::clone(shared)));
    for peer in shared.peers.values().filter(|peer| peer.id < shared.id) {
        let dialling = dial(Arc::clone(shared), Arc::clone(peer));
        others.spawn(abort_on_panic::task("the link to a peer", dialling));
    }
}

fn listen(options: &NodeOptions) -> Result<TcpListener, StartError> {
    let io = |source| StartError::Io { action: "listen", source };
    let listener = options.listener.try_clone().map_err(io)?;
    listener.set_nonblocking(true).map_err(io)?;
    TcpListener::from_std(listener).map_err(io)
}

/// Heartbeats and their lapses; and the question who holds old journal segments back.
async fn keep_liveness(shared: Arc<Shared>) {
    let mut disk = DiskWatch::default();
    loop {
        let now = clock::now();
        let deadline = shared.liveness.read().next_deadline();
        tokio::select! {
            () = tokio::time::sleep_until(clock::instant(now, deadline)) => {}
            () = shared.stopped.cancelled() => return,
        }
        let stats = shared.journal.stats();
        shared.liveness.tick(disk.look(&stats));
        if shared.journal.is_full() {
            for peer in shared.peers.values() {
                peer.send_disk(Room::None);
            }
        }
        for (group, floor) in stats.pinned {
            if let Some(group) = shared.groups.get(GroupId(group)) {
                group.tell(Event::SnapshotWanted { floor });
            }
        }
    }
}

/// Notes that a longer support of incarnations before is over, once it is.
async fn forget_support(shared: Arc<Shared>) {
    loop {
        let now = clock::now();
        let over = shared.liveness.read().quarantine_until();
        if now >= over {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep_until(clock::instant(now, over)) => {}
            () = shared.stopped.cancelled() => return,
        }
    }
    shared.seat.lower_support(shared.timing.support).await;
}

/// Looks at the counters once a second.
async fn keep_rates(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(SAMPLE_EVERY);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shared.stopped.cancelled() => return,
        }
        let journal = shared.journal.stats();
        let metrics = &shared.metrics;
        let counters = [metrics.commands.get(), metrics.queries.get(), journal.syncs, journal.bytes];
        shared.rates.lock().sample(shared.started.elapsed(), counters);
    }
}
