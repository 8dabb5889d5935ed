//! What other nodes say that no healthy node of this version would: it is not taken in, counted, and told once.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::sync::Arc;

use consensus_core::{GroupId, NodeId, Suspicion};
use parking_lot::Mutex;
use tracing::error;

use crate::groups::Groups;
use crate::metrics::Metrics;

/// What is wrong with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Distrust {
    /// It brings an entry that this version cannot apply.
    Entry,
    /// See [`Suspicion::Round`].
    Round,
    /// See [`Suspicion::Contradiction`].
    Contradiction,
    /// See [`Suspicion::Commit`].
    Commit,
    /// It speaks of another incarnation of its node than the one that has linked.
    Incarnation,
}

impl From<Suspicion> for Distrust {
    fn from(suspicion: Suspicion) -> Distrust {
        match suspicion {
            Suspicion::Round => Distrust::Round,
            Suspicion::Contradiction => Distrust::Contradiction,
            Suspicion::Commit => Distrust::Commit,
        }
    }
}

impl Distrust {
    fn label(self) -> &'static str {
        match self {
            Distrust::Entry => "entry",
            Distrust::Round => "round",
            Distrust::Contradiction => "contradiction",
            Distrust::Commit => "commit",
            Distrust::Incarnation => "incarnation",
        }
    }

    fn sentence(self) -> &'static str {
        match self {
            Distrust::Entry => {
                "a node sent an entry that this version cannot read, which was not taken in: if that node runs a newer \
                 version, update this one; if not, it is at fault, or somebody speaks in its name"
            }
            Distrust::Round => {
                "a node speaks of a round that no election explains, which was not believed: somebody speaks, or spoke, in \
                 its name, or its disk holds nonsense. If its own log says so too, empty its data directory"
            }
            Distrust::Contradiction => {
                "a leader's message contradicts what it proposed before, and was not taken in: the leader is at fault, or \
                 somebody speaks in its name"
            }
            Distrust::Commit => {
                "a node says that more is committed than anybody could be found to have, which is not believed any more: \
                 it is at fault, or somebody speaks in its name"
            }
            Distrust::Incarnation => {
                "a node speaks of another incarnation than the one it has linked in, which was not believed: it is at fault, or \
                 somebody speaks in its name"
            }
        }
    }
}

/// What was told already. Bounded by the nodes that may link.
#[derive(Debug)]
pub(crate) struct Distrusts {
    told: Mutex<BTreeSet<(NodeId, Option<GroupId>, Distrust)>>,
    groups: Arc<Groups>,
    metrics: Metrics,
}

impl Distrusts {
    pub(crate) fn new(groups: Arc<Groups>, metrics: Metrics) -> Distrusts {
        Distrusts { told: Mutex::default(), groups, metrics }
    }

    /// A message of `from` was not taken in; of one group, or of the pair of nodes.
    pub(crate) fn report(
        &self,
        from: NodeId,
        group: Option<GroupId>,
        distrust: Distrust,
        detail: &dyn Display,
    ) {
        self.metrics.distrusted.with_label_values(&[distrust.label()]).inc();
        let known = group.is_none_or(|group| self.groups.get(group).is_some());
        if known && self.told.lock().insert((from, group, distrust)) {
            let group = group.map(|group| group.0);
            error!(peer = from.0, group, %detail, "{}", distrust.sentence());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bytes::{Bytes, BytesMut};
    use consensus_core::message::{Accept, Chosen, Heartbeat, Prepare};
    use consensus_core::{Ballot, Epoch, LivenessMessage, Message, Mono, NodeStatus, Record, Slot, Value};
    use journal::{Identity, Journal, RealDisk};
    use tokio::net::TcpStream;
    use tokio::time::timeout;

    use super::*;
    use crate::frames::{connect, read_frame, write_frame};
    use crate::node::Node;
    use crate::start::StartError;
    use crate::testing::{CLUSTER, PATIENCE, options, take_place};
    use crate::wire::{self, PeerHello, Purpose};

    const FORGER: NodeId = NodeId(2);

    /// Node 1, which believes to be linked with node 2.
    async fn victim(dir: &Path) -> (Node, TcpStream) {
        let node = loop {
            let nobody = (FORGER, "127.0.0.1:1".to_owned());
            match Node::start(options(NodeId(1), &[nobody], dir)).await {
                Err(StartError::Journal(journal::Error::Locked { .. })) => tokio::task::yield_now().await,
                node => break node.unwrap(),
            }
        };
        // It has proved to be node 2 before.
        node.shared.peers[&FORGER].linked_with(1, 7, None);
        let mut stream = connect(&node.shared.discovery, &node.address().to_string()).await.unwrap();
        let hello = PeerHello {
            purpose: Purpose::Link,
            cluster: CLUSTER,
            from: FORGER,
            to: NodeId(1),
            incarnation: 1,
            nonce: 7,
            nonce_heard: 0,
            taken: false,
            status: NodeStatus::Placed { known_as: None, incarnation_heard: 0 },
            groups: node.shared.groups_digest,
            knows: wire::Frames::ALL,
            support: None,
        };
        let mut body = BytesMut::new();
        hello.encode(&mut body);
        write_frame(&mut stream, &body).await.unwrap();
        PeerHello::decode(&read_frame(&mut stream, 1024).await.unwrap()).unwrap();
        (node, stream)
    }

    async fn say(stream: &mut TcpStream, message: impl Into<Message>) {
        let mut body = BytesMut::new();
        wire::encode_group(GroupId(1), &message.into(), &mut body);
        write_frame(stream, &body).await.unwrap();
    }

    async fn is_distrusted(node: &Node, distrust: Distrust, times: u64) {
        let counted = async {
            while node.shared.metrics.distrusted.with_label_values(&[distrust.label()]).get() < times {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, counted).await.expect("it is counted");
    }

    fn unreadable() -> Value {
        Value::Batch([Bytes::from_static(b"forged")].into_iter().collect())
    }

    #[tokio::test]
    async fn an_entry_that_cannot_be_read_is_not_taken_in_and_does_no_lasting_harm() {
        let dir = tempfile::tempdir().unwrap();
        take_place(NodeId(1), dir.path());
        let (node, mut stream) = victim(dir.path()).await;
        let ballot = Ballot { round: 1, node: FORGER };
        let entries = || [(Slot(1), unreadable())].into_iter().collect();
        say(&mut stream, Message::Chosen(Chosen { commit: Slot(1), entries: entries() })).await;
        say(&mut stream, Message::Accept(Accept { ballot, commit: Slot(1), entries: entries() })).await;
        is_distrusted(&node, Distrust::Entry, 2).await;
        node.stop().await;
        let (node, _stream) = victim(dir.path()).await;
        node.stop().await;
    }

    #[tokio::test]
    async fn a_journal_with_an_entry_that_cannot_be_read_says_so_at_the_start_and_names_a_way_out() {
        let dir = tempfile::tempdir().unwrap();
        take_place(NodeId(1), dir.path());
        let identity = Identity { cluster: CLUSTER, node: 1, salt: 1 };
        let journal_options = journal::Options { identity, ..journal::Options::default() };
        let disk = RealDisk::open(dir.path()).unwrap();
        let (mut journal, _) = Journal::open(disk, journal_options, &mut |_| {}).unwrap();
        let record = Record::Chosen { slot: Slot(1), commit: Slot(1), value: unreadable() };
        let (mut label, mut payload) = (Vec::new(), BytesMut::new());
        record.label(&mut label);
        record.payload(|piece| payload.extend_from_slice(piece));
        journal.append(1, &label, &[payload.freeze()]).unwrap();
        journal.flush().unwrap();
        journal.sync().unwrap();
        drop(journal);
        for _start in 0..2 {
            let error = Node::start(options(NodeId(1), &[], dir.path())).await.unwrap_err().to_string();
            for part in ["group 1", "slot 1", "newer version", "empty its data directory"] {
                assert!(error.contains(part), "{error}");
            }
        }
    }

    #[tokio::test]
    async fn numbers_that_no_healthy_node_speaks_of_are_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        take_place(NodeId(1), dir.path());
        let (node, mut stream) = victim(dir.path()).await;
        let ballot = Ballot { round: (1 << 62) - 1, node: FORGER };
        say(&mut stream, Message::Prepare(Prepare { ballot, from: Slot(1), config_epoch: 1 })).await;
        is_distrusted(&node, Distrust::Round, 1).await;
        let heartbeat = LivenessMessage::Heartbeat(Heartbeat {
            epoch: Epoch { incarnation: 1 << 40, count: 1 },
            sent_at: Mono(0),
            receiver_incarnation: 1,
            wants_support: true,
            hears: vec![NodeId(1)],
        });
        let mut body = BytesMut::new();
        wire::encode_liveness(&heartbeat, &mut body);
        write_frame(&mut stream, &body).await.unwrap();
        is_distrusted(&node, Distrust::Incarnation, 1).await;
        assert_eq!(node.shared.liveness.incarnation_heard(FORGER), 1);
        node.stop().await;
    }
}
