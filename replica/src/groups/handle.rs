//! The way to a group's task: what can happen to it, and where its messages wait for its records.

use std::sync::Arc;

use api::gaios::link::v1 as wire;
use consensus_core::{GroupId, NodeSet, PersistSeq, Send};
use group_core::{Event, Gate, Unready};
use journal::Lsn;
use parking_lot::Mutex;

use crate::budget::Budget;
use crate::inbox::Inbox;
use crate::link::Link;
use crate::peer::Peers;

/// Bytes of requests and peers' messages that may wait for a group.
const INBOX_BYTES: usize = 64 << 20;

/// Everything that can happen to a group's task.
#[derive(Debug)]
pub(crate) enum GroupEvent {
    /// A gateway sent requests.
    Requests { link: Arc<Link>, requests: Vec<wire::Request> },
    /// Something else, and nothing that the task has to know of.
    Other(Event),
}

/// The way to a group's task.
#[derive(Debug)]
pub(crate) struct GroupHandle {
    pub(crate) id: GroupId,
    /// As configured, and for good.
    pub(crate) voters: NodeSet,
    pub(crate) inbox: Inbox<GroupEvent>,
    /// As of the end of the last turn; none before the first. To be told without asking the task, which may be busy.
    pub(crate) told: Mutex<Option<wire::ReplicaStatus>>,
    gate: Mutex<Gate>,
    /// Why the replica is not to be relied on, as it said last.
    unready: Mutex<Option<Unready>>,
}

impl GroupHandle {
    pub(crate) fn new(id: GroupId, voters: NodeSet) -> Self {
        GroupHandle {
            id,
            voters,
            inbox: Inbox::new(INBOX_BYTES),
            told: Mutex::default(),
            gate: Mutex::default(),
            unready: Mutex::new(Some(Unready::NoState)),
        }
    }

    /// What waits for it is taken from this budget.
    pub(crate) fn within(mut self, budget: &Arc<Budget>) -> Self {
        self.inbox = Inbox::new(INBOX_BYTES).within(budget);
        self
    }

    /// Why the replica is not to be relied on, if it is not.
    pub(crate) fn unready(&self) -> Option<Unready> {
        *self.unready.lock()
    }

    pub(crate) fn set_unready(&self, unready: Option<Unready>) {
        *self.unready.lock() = unready;
    }

    /// Whether some record of this incarnation is durable.
    pub(crate) fn has_written(&self) -> bool {
        self.gate.lock().durable() > PersistSeq(0)
    }

    /// Sends a message that waits for no record; false if it does.
    pub(crate) fn send_ungated(&self, peers: &Peers, send: &Send) -> bool {
        let ungated = send.gate == PersistSeq(0);
        if ungated && let Some(peer) = peers.get(&send.to) {
            peer.send_group(self.id, &send.message);
        }
        ungated
    }

    /// Sends a message once its records are durable.
    pub(crate) fn send_gated(&self, peers: &Peers, send: Send) {
        let passed = self.gate.lock().pass(send);
        if let Some(send) = passed
            && let Some(peer) = peers.get(&send.to)
        {
            peer.send_group(self.id, &send.message);
        }
    }

    /// The group wants to hear at once when the record that will be written under this number is durable. Of others it
    /// hears with the next event.
    pub(crate) fn await_durable(&self, seq: PersistSeq) {
        self.gate.lock().await_durable(seq);
    }

    /// Tells the group what must not be lost; there is little of it.
    pub(crate) fn tell(&self, event: Event) {
        self.inbox.push_always(GroupEvent::Other(event));
    }

    /// Tells the group something that holds so many bytes and may get lost, as on the way.
    pub(crate) fn tell_if_room(&self, event: Event, bytes: usize) {
        let _ = self.inbox.push(GroupEvent::Other(event), bytes);
    }

    /// Records up to `upto` are durable, the last one at `lsn`. What waited for them leaves at once, from the journal's
    /// own thread; the group's task hears of it after that.
    pub(crate) fn handle_durable(&self, peers: &Peers, upto: PersistSeq, lsn: Lsn) {
        let awaited = self.gate.lock().open(upto, |send| {
            if let Some(peer) = peers.get(&send.to) {
                peer.send_group(self.id, &send.message);
            }
        });
        let persisted = GroupEvent::Other(Event::Persisted { upto, lsn });
        if awaited {
            self.inbox.push_always(persisted);
        } else {
            self.inbox.push_quietly(persisted);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::poll;

    use super::*;

    #[tokio::test]
    async fn a_group_hears_at_once_only_of_what_it_waits_for() {
        let (handle, peers) = (GroupHandle::new(GroupId(1), NodeSet::new()), Peers::new());
        let mut woken = Box::pin(handle.inbox.wait());
        handle.handle_durable(&peers, PersistSeq(1), Lsn(1));
        assert!(poll!(&mut woken).is_pending());
        handle.await_durable(PersistSeq(3));
        handle.handle_durable(&peers, PersistSeq(3), Lsn(3));
        woken.await;
        handle.handle_durable(&peers, PersistSeq(4), Lsn(4));
        assert!(poll!(&mut Box::pin(handle.inbox.wait())).is_pending());
        let mut events = Vec::new();
        handle.inbox.take(&mut events);
        assert_eq!(events.len(), 3, "the quiet ones wait for the next turn");
    }
}
