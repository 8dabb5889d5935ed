//! What operators are told of a group, and what the node does about it.

use consensus_core::GroupId;
use group_core::Notice;
use tracing::{debug, error, info, warn};

use crate::shared::Shared;

/// Tells it, once.
pub(super) fn tell(shared: &Shared, group: GroupId, notice: Notice) {
    let id = group.0;
    match notice {
        Notice::Role { role, ballot, leader } => {
            info!(group = id, ?role, round = ballot.round, leader = leader.map(|leader| leader.0), "role");
        }
        Notice::HandingOver { to } => info!(group = id, to = to.0, "handing leadership over"),
        Notice::HandingOverFull { to } => {
            info!(group = id, to = to.0, "the disk is full: handing leadership over");
        }
        Notice::HandingOverPlace { to } => {
            info!(group = id, to = to.0, "handing leadership over to a better region");
        }
        Notice::HandingOverAsked { to } => {
            info!(group = id, to = to.0, "handing leadership over: an operator wants it");
        }
        Notice::TransferAborted { to } => info!(group = id, to = to.0, "leadership was not handed over"),
        Notice::DisksFull { nodes } => {
            warn!(group = id, %nodes, "the disks of these nodes are full: writes are refused");
        }
        Notice::DisksHaveRoom => info!(group = id, "enough disks have room again: writes are taken"),
        Notice::Differs { node } => error!(
            group = id,
            node = node.0,
            "this node holds something else than the others, though it has applied the same: writes are refused. Stop it, \
             and {}; then take back the alarm (`etcdctl alarm disarm`)",
            journal::EMPTY_IT
        ),
        Notice::LeasesExpired { count } => debug!(group = id, leases = count, "leases expired"),
        Notice::SnapshotInstalled { slot } => info!(group = id, slot = slot.0, "took over a peer's snapshot"),
        Notice::SnapshotBegun { slot } => debug!(group = id, slot = slot.0, "snapshot begun"),
        Notice::SnapshotDurable { slot } => info!(group = id, slot = slot.0, "snapshot durable"),
        Notice::Fenced => {
            error!(group = id, "fenced: this replica takes no part until the node is restarted");
        }
        Notice::PayloadRepaired { slot } => {
            info!(group = id, slot = slot.0, "a damaged entry was repaired from a peer");
        }
        Notice::Healed => info!(group = id, "everything the disk may have forgotten is made up for"),
        Notice::TooManyForgot { nodes } => error!(
            group = id,
            %nodes,
            "these nodes have all lost their disks or directories: what the group had acknowledged may be lost. If one of \
             them still has its directory, put it back; if not, choose the node that holds most with `gaios ctl recover`; if \
             there is nothing to keep, empty the directories of all nodes"
        ),
        Notice::Blocked { nodes } => error!(
            group = id,
            %nodes,
            "no leader can come to power: all voters have answered, and these nodes have lost what they voted for, so that \
             nobody knows what was acknowledged. If one of them still has its directory, put it back; if not, choose the \
             node that holds most with `gaios ctl recover`"
        ),
        Notice::Survived => {
            info!(group = id, "what this node holds is what there is: the group has a leader");
            shared.group_survived(group);
        }
        Notice::Suspicious { from, suspicion } => {
            shared.distrusts.report(from, Some(group), suspicion.into(), &format_args!("{suspicion:?}"));
        }
        Notice::PromiseDoubtful => error!(
            group = id,
            "this node's disk says that it has promised a round which no election explains, so it cannot follow any leader: \
             {}. If all nodes say so, choose one of them with `gaios ctl recover` first",
            journal::EMPTY_IT
        ),
        Notice::VersionRaised { version } => {
            info!(group = id, %version, "all replicas know this cluster version: it is in force");
        }
        Notice::NoState { at_least } => error!(
            group = id,
            slot = at_least.0,
            "the snapshot that the journal builds on is missing or damaged: waiting for a peer's"
        ),
    }
}
