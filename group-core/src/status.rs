//! What is told of a replica, as of the end of each turn.

use api::gaios::link::v1 as wire;
use api::gaios::link::v1::replica_status::Role as ToldRole;
use consensus_core::{Role, Status};

use crate::replica::Replica;

impl Replica {
    /// What is told of this replica; `engine` is its engine's status.
    #[must_use]
    pub fn told(&self, engine: &Status) -> wire::ReplicaStatus {
        let state = self.state.status();
        wire::ReplicaStatus {
            group: self.settings.group.0,
            role: told_role(engine.role).into(),
            leader: engine.leader.map_or(0, |leader| leader.0),
            term: engine.ballot.round,
            commit_slot: engine.commit.0,
            applied_slot: self.applied.0,
            revision: state.revision.0,
            compact_revision: state.compact_revision.0,
            size_bytes: state.size_bytes,
            quota_bytes: state.quota_bytes,
            keys: state.keys,
            leases: state.leases,
            sessions: state.sessions,
            watches: self.watches.len() as u64,
            no_space_alarm: self.state.has_alarm(keyspace::AlarmKind::NoSpace) || !self.disks_full.is_empty(),
            corrupt_alarm: self.state.has_alarm(keyspace::AlarmKind::Corrupt),
            healing: engine.promise_lost || engine.faulty_from.is_some(),
            fenced: engine.fenced,
            commands_queued: engine.queued as u64,
            slots_under_way: engine.inflight,
            cluster_version: u32::from(self.state.version().0),
        }
    }
}

fn told_role(role: Role) -> ToldRole {
    match role {
        Role::Leader => ToldRole::Leader,
        Role::Follower => ToldRole::Follower,
        Role::Candidate => ToldRole::Candidate,
    }
}
