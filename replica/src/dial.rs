//! Keeps the link to a peer that this node dials: the one with the higher id of a pair does.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use consensus_core::NodeStatus;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::hello;
use crate::peer::Peer;
use crate::peer_link;
use crate::redial::{NoLink, Redial};
use crate::shared::Shared;
use crate::wire::Purpose;

/// A link that lives so long is a good one. A peer that does not know this node ends it at once.
const SETTLED_AFTER: Duration = Duration::from_secs(1);

/// Keeps the link to a peer that this node dials, until the node stops.
pub(crate) async fn dial(shared: Arc<Shared>, peer: Arc<Peer>) {
    let mut redial = Redial::new();
    while !shared.stopped.is_cancelled() {
        let link = async {
            shared.seat.back().await;
            dial_once(&shared, &peer, &mut redial).await
        };
        let linked = tokio::select! {
            () = shared.stopped.cancelled() => return,
            linked = link => linked,
        };
        if shared.stopped.is_cancelled() {
            return;
        }
        if let Err(why) = linked {
            // A newcomer's former process is as gone as one whose port refuses.
            let gone = match &why {
                NoLink::Unreachable(error) => error.kind() == io::ErrorKind::ConnectionRefused,
                NoLink::Newcomer => true,
                NoLink::Refused(_) | NoLink::Brief(_) => false,
            };
            if gone {
                shared.liveness.peer_process_gone(peer.id);
            }
            redial.tell(&peer, why);
        }
        let pause = redial.next_pause(shared.random_u32());
        tokio::select! {
            () = shared.stopped.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Links, and serves the link until it ends; an error if there was none, or none that lasted.
async fn dial_once(shared: &Arc<Shared>, peer: &Arc<Peer>, redial: &mut Redial) -> Result<(), NoLink> {
    let (stream, answer) = hello::call(shared, peer, Purpose::Link).await?;
    if matches!(answer.status, NodeStatus::Newcomer { .. }) {
        return Err(NoLink::Newcomer);
    }
    peer.linked_with(answer.incarnation, answer.nonce, answer.support);
    peer.knows(answer.knows);
    shared.compare_support(peer, answer.support);
    // In an outage, links that come and go would fill the log.
    if !redial.is_outage() {
        info!(peer = peer.id.0, "link up");
    }
    let kept = CancellationToken::new();
    let mut link = pin!(peer_link::run(shared, peer, stream, &kept));
    tokio::select! {
        reason = link.as_mut() => {
            return Err(NoLink::Brief(format!(
                "links end at once ({reason}): check that this node is in the peer's configuration"
            )));
        }
        () = tokio::time::sleep(SETTLED_AFTER) => {}
    }
    if redial.settled() {
        info!(peer = peer.id.0, address = peer.address, "linked again");
    }
    let reason = link.await;
    info!(peer = peer.id.0, reason, "link down");
    Ok(())
}

#[cfg(test)]
mod tests {
    use consensus_core::{LivenessMessage, NodeId};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    use super::*;
    use crate::frames::read_frame;
    use crate::hello::write_hello;
    use crate::node::Node;
    use crate::peer_link::take_heartbeat;
    use crate::redial::BACKOFF_FIRST;
    use crate::testing::{CLUSTER, PATIENCE, options, take_place};
    use crate::wire::PeerHello;

    /// The other end of a link: takes the hello, and answers it.
    async fn answer(listener: &TcpListener, answer: impl FnOnce(PeerHello) -> PeerHello) -> TcpStream {
        let (mut stream, _) = listener.accept().await.unwrap();
        let hello = PeerHello::decode(&read_frame(&mut stream, 1024).await.unwrap()).unwrap();
        let answer = PeerHello { from: hello.to, to: hello.from, ..answer(hello) };
        write_hello(&mut stream, &answer).await.unwrap();
        stream
    }

    /// Says no more after its hello.
    async fn answer_and_fall_silent(listener: &TcpListener) -> TcpStream {
        answer(listener, |hello| {
            assert_eq!((hello.cluster, hello.from, hello.to), (CLUSTER, NodeId(2), NodeId(1)));
            let status = NodeStatus::Placed { known_as: None, incarnation_heard: 0 };
            PeerHello { incarnation: 1, nonce: 1, status, ..hello }
        })
        .await
    }

    #[tokio::test]
    async fn a_link_to_a_silent_peer_is_cut_and_dialled_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let dir = tempfile::tempdir().unwrap();
        take_place(NodeId(2), dir.path());
        let node = Node::start(options(NodeId(2), &[(NodeId(1), address)], dir.path())).await.unwrap();
        let silent = answer_and_fall_silent(&listener).await;
        let again = timeout(PATIENCE, answer_and_fall_silent(&listener)).await.expect("it dials again");
        drop((silent, again));
        node.stop().await;
    }

    #[tokio::test]
    async fn a_peer_that_hangs_up_at_once_has_refused_and_is_not_dialled_faster_for_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let dir = tempfile::tempdir().unwrap();
        take_place(NodeId(1), dir.path());
        let node =
            Node::start(options(NodeId(1), &[(NodeId(2), address.clone())], dir.path())).await.unwrap();
        let shared = Arc::clone(&node.shared);
        // The node with the higher id dials; this one does so here only.
        let peer = Arc::new(Peer::new(NodeId(2), address));
        let hang_up = async || drop(answer(&listener, |hello| hello).await);
        let mut redial = Redial::new();
        for attempt in 0..3 {
            let (ended, ()) = tokio::join!(dial_once(&shared, &peer, &mut redial), hang_up());
            let why = ended.unwrap_err();
            assert!(
                matches!(&why, NoLink::Brief(reason) if reason.contains("closed by the peer")),
                "{why:?}"
            );
            assert_eq!(redial.is_news(why), attempt == 1, "told once, if it was not the only one");
            assert_eq!(redial.next_pause(u32::MAX), BACKOFF_FIRST * 2_u32.pow(attempt));
        }
        node.stop().await;
    }

    #[tokio::test]
    async fn no_link_is_made_with_an_old_copy_of_a_node() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let dir = tempfile::tempdir().unwrap();
        take_place(NodeId(1), dir.path());
        let node =
            Node::start(options(NodeId(1), &[(NodeId(2), address.clone())], dir.path())).await.unwrap();
        let shared = Arc::clone(&node.shared);
        let peer = Arc::new(Peer::new(NodeId(2), address));
        let answer = async |incarnation, nonce, incarnation_heard, nonce_heard| {
            let status = NodeStatus::Placed { known_as: None, incarnation_heard };
            let as_it_is = |hello| PeerHello { incarnation, nonce, nonce_heard, status, ..hello };
            drop(answer(&listener, as_it_is).await);
        };
        let mut redial = Redial::new();
        let old = |why: &NoLink, who: &str| match why {
            NoLink::Refused(reason) => reason.contains("old copy") && reason.contains(who),
            NoLink::Unreachable(_) | NoLink::Brief(_) | NoLink::Newcomer => false,
        };
        let heartbeat = LivenessMessage::Heartbeat(consensus_core::message::Heartbeat {
            epoch: consensus_core::Epoch { incarnation: 6, count: 1 },
            sent_at: consensus_core::Mono(0),
            receiver_incarnation: 1,
            wants_support: true,
            hears: Vec::new(),
        });
        take_heartbeat(&shared, NodeId(2), 6, None, heartbeat);
        let (ended, ()) = tokio::join!(dial_once(&shared, &peer, &mut redial), answer(5, 7, 1, 0));
        let why = ended.unwrap_err();
        assert!(old(&why, "node 2 is in incarnation 5, and another process in incarnation 6"), "{why:?}");

        // In the same incarnation, but another process.
        let known = shared.peers.get(&NodeId(2)).unwrap();
        known.linked_with(6, 7, None);
        let (ended, ()) = tokio::join!(dial_once(&shared, &peer, &mut redial), answer(6, 8, 1, 0));
        let why = ended.unwrap_err();
        assert!(old(&why, "node 2 is in incarnation 6, and another process in incarnation 6"), "{why:?}");
        assert!(!shared.seat.is_revoked());

        // An incarnation that has linked, and has not been heard yet, may not be given out again.
        known.linked_with(9, 7, None);
        let heard = NodeStatus::Placed { known_as: None, incarnation_heard: 9 };
        assert_eq!(shared.node_status(NodeId(2)), heard);
        known.linked_with(6, 7, None);

        // It is this node which is in incarnation 1 twice.
        let (ended, ()) = tokio::join!(dial_once(&shared, &peer, &mut redial), answer(6, 7, 1, 8));
        let why = ended.unwrap_err();
        assert!(old(&why, "this node"), "{why:?}");
        assert!(node.health().check().unwrap_err().contains("takes no part"));
        assert!(!shared.seat.is_revoked(), "on one word");
        node.stop().await;
    }
}
