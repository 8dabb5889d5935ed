//! A node whose data directory is new asks all others who it is, and takes no part before: see
//! [`consensus_core::Newcomer`]. While it asks, it answers others who ask, and nobody else.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use consensus_core::{GroupId, Newcomer, NodeId, NodeStatus, Place};
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use journal::{RealDisk, Superblock};
use parking_lot::Mutex;
use tokio::sync::{SetOnce, watch};
use tokio::time::interval;
use tracing::{debug, error, info, warn};

use crate::clock;
use crate::node::Shared;
use crate::peer::{Peer, Redial, ask_once};
use crate::suspicion::Accuser;

/// Others that are started together with this one answer within milliseconds; of those that take longer a word is said.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// Until all are asked again, at most, when one who had answered did not do so a second time.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(200);
/// Until the disk is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What the superblock says of this node's place in the cluster, and what is said of it to newcomers.
#[derive(Debug)]
pub(crate) struct Seat {
    superblock: Arc<Mutex<Superblock<RealDisk>>>,
    mark: u64,
    /// The marks of those that were newcomers with it; set once the place is taken, durably.
    roll: SetOnce<Vec<(u64, u64)>>,
    revoked: AtomicBool,
    /// Set while the node has stepped aside: who has said that there is another of it.
    aside: watch::Sender<Option<Accuser>>,
}

impl Seat {
    pub(crate) fn new(superblock: Superblock<RealDisk>) -> Seat {
        let facts = superblock.facts();
        let roll = facts.placed.then(|| facts.roll.clone());
        Seat {
            mark: facts.mark,
            roll: SetOnce::new_with(roll),
            revoked: AtomicBool::new(false),
            aside: watch::Sender::new(facts.doubt.and_then(Accuser::from_fact)),
            superblock: Arc::new(Mutex::new(superblock)),
        }
    }

    pub(crate) fn is_taken(&self) -> bool {
        self.roll.initialized()
    }

    /// Returns once the place is taken.
    pub(crate) async fn taken(&self) {
        self.roll.wait().await;
    }

    /// From now on it is said to be taken: it is durable, and the node knows its incarnation.
    pub(crate) fn take(&self, roll: Vec<(u64, u64)>) {
        // Nobody else sets it.
        let _ = self.roll.set(roll);
    }

    /// What this node says of itself to `other`, of which it heard this incarnation last.
    pub(crate) fn node_status(&self, other: NodeId, incarnation_heard: u64) -> NodeStatus {
        match self.roll.get() {
            None => NodeStatus::Newcomer { mark: self.mark },
            Some(roll) => {
                let known = roll.iter().find(|(node, _)| *node == u64::from(other.0));
                NodeStatus::Placed { known_as: known.map(|(_, mark)| *mark), incarnation_heard }
            }
        }
    }

    /// Whether it is not noted yet that the journal holds what was lost of all groups.
    pub(crate) fn is_unsettled(&self) -> bool {
        self.superblock.lock().facts().returned
    }

    /// Others say that there is another of this node: it takes no part until that is known. Returns whether that is news.
    pub(crate) fn step_aside(&self, accuser: Accuser) -> bool {
        self.aside.send_if_modified(|aside| {
            let news = aside.is_none();
            aside.get_or_insert(accuser);
            news
        })
    }

    pub(crate) fn is_aside(&self) -> bool {
        self.aside.borrow().is_some()
    }

    /// Returns once the node has stepped aside, with who made it.
    pub(crate) async fn stepped_aside(&self) -> Accuser {
        let mut aside = self.aside.subscribe();
        loop {
            if let Some(accuser) = *aside.borrow_and_update() {
                return accuser;
            }
            // Its other end is here.
            let _ = aside.changed().await;
        }
    }

    /// Returns once the node has not stepped aside.
    pub(crate) async fn back(&self) {
        // Its other end is here.
        let _ = self.aside.subscribe().wait_for(Option::is_none).await;
    }

    /// Makes durable that the node has stepped aside, so that it does after a restart.
    pub(crate) async fn note_doubt(&self, accuser: Accuser) {
        if let Err(error) = self.write(move |superblock| superblock.doubt(Some(accuser.to_fact()))).await {
            warn!(%error, "cannot write down that this node has stepped aside: after a restart it would learn that again");
        }
    }

    /// How long this incarnation, or one before it, has given support.
    pub(crate) fn support(&self) -> Duration {
        self.superblock.lock().facts().support
    }

    /// Support that incarnations before this one gave is over, and this one gives it for so long.
    pub(crate) async fn lower_support(&self, support: Duration) {
        // A fraction of a millisecond more is noted than is given.
        if self.support() < support + Duration::from_millis(1) {
            return;
        }
        if let Err(error) = self.write(move |superblock| superblock.lower_support(support)).await {
            warn!(%error, "cannot write down that a longer `timing.support` is over: the next start waits for it again");
        }
    }

    /// There is nothing in it. Returns whether the node takes part again.
    pub(crate) async fn come_back(&self) -> bool {
        match self.write(|superblock| superblock.doubt(None)).await {
            Ok(()) => {
                self.aside.send_replace(None);
                true
            }
            Err(error) => {
                warn!(%error, "cannot write down that this node takes part again");
                false
            }
        }
    }

    async fn write(
        &self,
        change: impl FnOnce(&mut Superblock<RealDisk>) -> Result<(), journal::Error> + Send + 'static,
    ) -> Result<(), journal::Error> {
        let superblock = Arc::clone(&self.superblock);
        let written = tokio::task::spawn_blocking(move || change(&mut superblock.lock()));
        // The runtime ends.
        written.await.unwrap_or(Err(journal::Error::Closed))
    }

    pub(crate) fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Relaxed)
    }

    /// The directory is an old copy, for ever. Returns whether that is news.
    pub(crate) fn revoke(&self) -> bool {
        let news = !self.revoked.swap(true, Ordering::Relaxed);
        if news {
            let superblock = Arc::clone(&self.superblock);
            // Until it is written, the node takes no part all the same; after a restart it would learn it again.
            tokio::task::spawn_blocking(move || {
                if let Err(error) = superblock.lock().revoke() {
                    error!(%error, "cannot write down that this data directory is an old copy: do not start with it again");
                }
            });
        }
        news
    }

    /// No group needs this node to stand in for others any more.
    pub(crate) fn survived(&self) {
        let superblock = Arc::clone(&self.superblock);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = superblock.lock().declare_survivor(false) {
                warn!(%error, "cannot write down that no group needs this node to stand in for others: the next start will say");
            }
        });
    }

    /// What was lost of the groups stands in the journal. Blocking.
    fn settle(&self) {
        if let Err(error) = self.superblock.lock().settle() {
            warn!(%error, "cannot write down that the journal holds what was lost: the next start tries again");
        }
    }
}

/// The place that a newcomer has taken.
pub(crate) struct Taken {
    /// Its incarnation, of one that has returned.
    pub(crate) returned_as: Option<u64>,
    pub(crate) roll: Vec<(u64, u64)>,
}

/// A number for the groups of a cluster and their first voters, by which nodes see that they agree on them (FNV-1a).
pub(crate) fn digest(groups: &[(GroupId, Vec<NodeId>)]) -> u64 {
    let mut sorted: Vec<(GroupId, BTreeSet<NodeId>)> =
        groups.iter().map(|(group, voters)| (*group, voters.iter().copied().collect())).collect();
    sorted.sort();
    let numbers = sorted.iter().flat_map(|(group, voters)| {
        [group.0, voters.len() as u64].into_iter().chain(voters.iter().map(|voter| u64::from(voter.0)))
    });
    config::fnv1a(numbers.flat_map(u64::to_le_bytes))
}

/// Makes the place durable that the answers of all others give this node. `None` when the node stops first.
pub(crate) async fn take_place(shared: &Arc<Shared>) -> Option<Taken> {
    let mut newcomer = Newcomer::new(shared.seat.mark, shared.peers.keys().copied());
    let place = tokio::select! {
        place = ask_all(shared, &mut newcomer) => place,
        () = shared.stopping.cancelled() => return None,
    };
    let returned_as = match place {
        Place::Founder => {
            info!(node = shared.id.0, "all nodes of the cluster have met: it begins");
            None
        }
        Place::Returned { incarnation } => {
            warn!(
                node = shared.id.0,
                "the data directory is new, the cluster is not: this node learns from the others what it may have promised \
                 and voted for, and votes again when it holds what they have"
            );
            Some(incarnation)
        }
    };
    let roll: Vec<(u64, u64)> = newcomer.roll().map(|(node, mark)| (u64::from(node.0), mark)).collect();
    let mut told = false;
    loop {
        let (superblock, entries) = (Arc::clone(&shared.seat.superblock), roll.clone());
        let stored = tokio::task::spawn_blocking(move || {
            let mut superblock = superblock.lock();
            superblock.take_place(entries, returned_as)?;
            Ok::<_, journal::Error>(superblock.facts().incarnation)
        });
        match stored.await {
            Ok(Ok(incarnation)) => {
                return Some(Taken { returned_as: returned_as.map(|_| incarnation), roll });
            }
            Ok(Err(error)) if told => debug!(node = shared.id.0, %error, "cannot write down its place"),
            Ok(Err(error)) => {
                told = true;
                error!(node = shared.id.0, %error, "cannot write down its place: this node takes no part until it can");
            }
            // The runtime ends.
            Err(_) => return None,
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY_AFTER) => {}
            () = shared.stopping.cancelled() => return None,
        }
    }
}

/// Notes that a returned node's journal holds what was lost of all its groups, once it does.
pub(crate) async fn settle(shared: Arc<Shared>) {
    while !shared.groups().all(|group| group.has_written()) {
        tokio::select! {
            () = tokio::time::sleep(RETRY_AFTER) => {}
            () = shared.stopping.cancelled() => return,
        }
    }
    let settling = Arc::clone(&shared);
    let _ = tokio::task::spawn_blocking(move || settling.seat.settle()).await;
}

/// Asks until all have answered, and then all once more: a volume may have been mounted since, or a process of this node's
/// name have linked.
async fn ask_all(shared: &Arc<Shared>, newcomer: &mut Newcomer) -> Place {
    let empty = newcomer.clone();
    loop {
        newcomer.clone_from(&empty);
        ask_each(shared, newcomer).await;
        newcomer.clone_from(&empty);
        let asked_again = join_all(shared.peers.values().map(|peer| ask_once(shared, peer))).await;
        for (peer, answer) in shared.peers.keys().zip(asked_again) {
            if let Ok(status) = answer {
                newcomer.answered(*peer, status);
            }
        }
        if let Some(place) = newcomer.place(clock::calendar()) {
            return place;
        }
        tokio::time::sleep(shared.up_to(ASK_AGAIN_AFTER)).await;
    }
}

async fn ask_each(shared: &Arc<Shared>, newcomer: &mut Newcomer) {
    let mut asking: FuturesUnordered<_> = shared.peers.values().map(|peer| ask(shared, peer)).collect();
    let mut say = interval(SAY_EVERY);
    say.tick().await;
    while newcomer.missing().next().is_some() {
        tokio::select! {
            Some((node, status)) = asking.next() => newcomer.answered(node, status),
            _ = say.tick() => {
                let missing: Vec<u32> = newcomer.missing().map(|node| node.0).collect();
                warn!(
                    node = shared.id.0,
                    ?missing,
                    "the data directory is new: before this node takes part, every other node must have answered it"
                );
            }
        }
    }
}

/// Asks until there is an answer.
async fn ask(shared: &Shared, peer: &Peer) -> (NodeId, NodeStatus) {
    let mut redial = Redial::new();
    loop {
        match ask_once(shared, peer).await {
            Ok(status) => return (peer.id, status),
            Err(why) => redial.tell(peer, why),
        }
        tokio::time::sleep(redial.next_pause(shared.random_u32())).await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use tempfile::TempDir;
    use tokio::time::timeout;

    use super::*;
    use crate::node::{Node, StartError};
    use crate::testing::{PATIENCE, one_of};

    /// Long enough for newcomers to ask each other many times.
    const MANY_QUESTIONS: Duration = Duration::from_millis(300);

    /// Three nodes, which may run or not.
    struct Scene {
        dirs: [TempDir; 3],
        addresses: Vec<(NodeId, String)>,
        /// Keep the ports until their nodes start.
        listeners: Vec<Option<TcpListener>>,
    }

    impl Scene {
        fn new() -> Scene {
            // Connections of tests begin at 127.0.0.1: none takes the port of a node that is stopped for a while.
            let listeners: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.2:0").unwrap()).collect();
            let addresses = listeners.iter().map(|listener| listener.local_addr().unwrap().to_string());
            Scene {
                dirs: [(); 3].map(|()| tempfile::tempdir().unwrap()),
                addresses: (1..).map(NodeId).zip(addresses).collect(),
                listeners: listeners.into_iter().map(Some).collect(),
            }
        }

        async fn start(&mut self, index: usize) -> Node {
            let (id, address) = self.addresses[index].clone();
            let listener = self.listeners[index].take();
            let listener = listener.unwrap_or_else(|| TcpListener::bind(address).unwrap());
            let dir = self.dirs[index].path();
            Node::start(one_of(self.addresses.clone(), id, listener, dir)).await.unwrap()
        }

        fn empty(&mut self, index: usize) {
            self.dirs[index] = tempfile::tempdir().unwrap();
        }

        fn facts(&self, index: usize) -> journal::Facts {
            let superblock = Superblock::open(RealDisk::open(self.dirs[index].path()).unwrap()).unwrap();
            superblock.expect("it has started before").facts().clone()
        }
    }

    async fn is_placed(node: &Node) {
        timeout(PATIENCE, node.shared.seat.taken()).await.expect("it takes its place");
    }

    async fn is_not_placed(node: &Node) {
        timeout(MANY_QUESTIONS, node.shared.seat.taken())
            .await
            .expect_err("nobody but all can give it a place");
        node.health().check().unwrap_err();
    }

    #[tokio::test]
    async fn a_cluster_begins_when_all_its_nodes_have_met() {
        let mut scene = Scene::new();
        let mut nodes = vec![scene.start(0).await, scene.start(1).await];
        is_not_placed(&nodes[0]).await;
        nodes.push(scene.start(2).await);
        for node in &nodes {
            is_placed(node).await;
        }
        for node in nodes {
            node.stop().await;
        }
        for index in 0..3 {
            let facts = scene.facts(index);
            assert!(facts.placed && !facts.returned && facts.incarnation == 1, "{facts:?}");
        }
    }

    #[tokio::test]
    async fn an_emptied_node_waits_for_all_and_begins_as_one_that_has_forgotten_everything() {
        let mut scene = Scene::new();
        let nodes = [scene.start(0).await, scene.start(1).await, scene.start(2).await];
        for node in &nodes {
            is_placed(node).await;
        }
        for node in nodes {
            node.stop().await;
        }
        scene.empty(1);
        let (two, three) = (scene.start(1).await, scene.start(2).await);
        is_placed(&three).await;
        is_not_placed(&two).await;
        // It waits as it began, also after a restart.
        two.stop().await;
        let two = scene.start(1).await;
        is_not_placed(&two).await;
        let one = scene.start(0).await;
        is_placed(&two).await;
        for node in [one, two, three] {
            node.stop().await;
        }
        let facts = scene.facts(1);
        assert!(facts.placed && facts.incarnation > 1_000, "{facts:?}");
        // What it lost stands in its journal by now.
        scene.start(1).await.stop().await;
        let facts = scene.facts(1);
        assert!(facts.placed && !facts.returned, "{facts:?}");
    }

    #[tokio::test]
    async fn nodes_that_name_other_voters_found_nothing_together() {
        let mut scene = Scene::new();
        let (one, two) = (scene.start(0).await, scene.start(1).await);
        let [(_, address), ..] = &scene.addresses[2..] else { unreachable!("there are three") };
        let listener = scene.listeners[2].take().unwrap();
        assert_eq!(listener.local_addr().unwrap().to_string(), *address);
        let mut odd = one_of(scene.addresses.clone(), NodeId(3), listener, scene.dirs[2].path());
        odd.groups[0].1.pop();
        let three = Node::start(odd).await.unwrap();
        for node in [&one, &three] {
            is_not_placed(node).await;
        }
        for node in [one, two, three] {
            node.stop().await;
        }
    }

    #[tokio::test]
    async fn a_node_that_began_alone_does_not_join_others_later() {
        let mut scene = Scene::new();
        let (id, address) = scene.addresses[1].clone();
        let listener = scene.listeners[1].take().unwrap();
        let alone = one_of(vec![(id, address)], id, listener, scene.dirs[1].path());
        let node = Node::start(alone).await.unwrap();
        is_placed(&node).await;
        let wrote = async {
            while !node.shared.groups().all(|group| group.has_written()) {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, wrote).await.expect("its first record");
        node.stop().await;
        let (id, address) = scene.addresses[1].clone();
        let listener = TcpListener::bind(address).unwrap();
        let others = Node::start(one_of(scene.addresses.clone(), id, listener, scene.dirs[1].path())).await;
        assert!(
            matches!(&others, Err(StartError::Config(why)) if why.contains("began with the voters {2}")),
            "{others:?}"
        );
    }

    #[test]
    fn the_order_of_groups_and_voters_is_nothing_to_agree_on() {
        let group =
            |id, voters: &[u32]| (GroupId(id), voters.iter().copied().map(NodeId).collect::<Vec<_>>());
        let all = digest(&[group(1, &[1, 2]), group(2, &[3])]);
        assert_eq!(all, digest(&[group(2, &[3]), group(1, &[2, 1])]));
        assert_ne!(all, digest(&[group(1, &[1, 2, 3]), group(2, &[3])]));
        assert_ne!(all, digest(&[group(1, &[1]), group(2, &[2, 3])]));
        assert_ne!(all, digest(&[group(1, &[1, 2])]));
        assert_eq!(
            digest(&[group(1, &[1])]),
            10_028_924_121_191_548_612,
            "part of the protocol between nodes"
        );
    }

    #[tokio::test]
    async fn a_newcomer_stops_when_asked_to() {
        let mut scene = Scene::new();
        let node = scene.start(0).await;
        timeout(PATIENCE, node.stop()).await.expect("it waits for nobody");
    }
}
