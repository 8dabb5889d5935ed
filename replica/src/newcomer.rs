//! A node whose data directory is new asks all others who it is, and takes no part before: see
//! [`consensus_core::Newcomer`]. While it asks, it answers others who ask, and nobody else.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use consensus_core::{GroupId, Newcomer, NodeId, NodeStatus, Place};
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use tokio::time::interval;
use tracing::{debug, error, info, warn};

use crate::clock;
use crate::hello;
use crate::peer::Peer;
use crate::redial::{NoLink, Redial};
use crate::shared::Shared;
use crate::wire::Purpose;

/// Others that are started together with this one answer within milliseconds; of those that take longer a word is said.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// Until all are asked again, at most, when one who had answered did not do so a second time.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(200);
/// Until the disk is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

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
    let mut newcomer = Newcomer::new(shared.seat.mark(), shared.peers.keys().copied());
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
        let (seat, entries) = (Arc::clone(&shared.seat), roll.clone());
        let stored = tokio::task::spawn_blocking(move || seat.take_place(entries, returned_as));
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
    while !shared.groups.all().values().all(|group| group.has_written()) {
        tokio::select! {
            () = tokio::time::sleep(RETRY_AFTER) => {}
            () = shared.stopping.cancelled() => return,
        }
    }
    let seat = Arc::clone(&shared.seat);
    let _ = tokio::task::spawn_blocking(move || seat.settle()).await;
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

/// A newcomer asks who it is.
async fn ask_once(shared: &Shared, peer: &Peer) -> Result<NodeStatus, NoLink> {
    let (_, answer) = hello::call(shared, peer, Purpose::Ask).await?;
    if answer.taken {
        let taken =
            "it is linked with another process of this node: stop that one, or give this one another id";
        return Err(NoLink::Refused(taken.to_owned()));
    }
    Ok(answer.status)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use journal::{RealDisk, Superblock};
    use tempfile::TempDir;
    use tokio::time::timeout;

    use super::*;
    use crate::node::Node;
    use crate::start::StartError;
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
            while !node.shared.groups.all().values().all(|group| group.has_written()) {
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
