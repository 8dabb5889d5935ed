//! The service Maintenance, as far as it makes sense for a domain rather than a server.

use std::sync::Arc;

use api::etcdserverpb as pb;
use keyspace::{Alarm, AlarmKind, Op, Query, Reply};
use tokio_stream::Empty;
use tonic::{Request, Response, Status};

use super::errors::{NO_LEADER, to_status};
use super::kv::MISMATCH;
use super::{Caller, Door, unsupported};
use crate::context::{Priority, RequestContext};
use crate::domain::{Consistency, Domain};
use crate::versions::{ADVERTISED_STORAGE_VERSION, ADVERTISED_VERSION};
use gateway_core::admission::Lane;

/// What the state machine calls the alarms that it raises itself, see [`Alarm::member`].
const RAISED_BY_THE_GROUP: u64 = 0;
/// What it is told where clients say 0. Nobody has this id.
const MEMBER_ZERO: u64 = u64::MAX;

pub(super) struct Maintenance<D>(pub(super) Arc<Caller<D>>);

impl<D: Domain> Door<D> {
    /// An alarm as clients see it, see [`alarm_member_named`].
    fn alarm_member(&self, alarm: Alarm, leader: u64) -> pb::AlarmMember {
        let kind = match alarm.kind {
            AlarmKind::NoSpace => pb::AlarmType::Nospace,
            AlarmKind::Corrupt => pb::AlarmType::Corrupt,
        };
        let member_id = match alarm.member {
            RAISED_BY_THE_GROUP => leader,
            MEMBER_ZERO => 0,
            member => member,
        };
        pb::AlarmMember { member_id, alarm: kind.into() }
    }

    /// The alarms that are raised, as etcd says them in a status; none while there is no leader to ask.
    async fn alarm_texts(&self, context: &RequestContext, leader: u64) -> Vec<String> {
        let answer = self.domain.read(context, Query::Alarms, Consistency::Linearizable).await;
        let Ok(Reply::Alarms { alarms, .. }) = answer.map(|answer| answer.reply) else { return Vec::new() };
        let text = |alarm| {
            let pb::AlarmMember { member_id, alarm } = self.alarm_member(alarm, leader);
            let name = pb::AlarmType::try_from(alarm).unwrap_or_default().as_str_name();
            format!("memberID:{member_id} alarm:{name} ")
        };
        alarms.into_iter().map(text).collect()
    }
}

/// Whose alarm a client means. Those of the state machine itself are shown as one member's, the same at every gateway of
/// the region, and taken back under that name. A client may also name member 0, which is another one.
fn alarm_member_named(member: u64, leader: u64) -> u64 {
    if member == leader {
        RAISED_BY_THE_GROUP
    } else if member == 0 {
        MEMBER_ZERO
    } else {
        member
    }
}

#[tonic::async_trait]
impl<D: Domain> pb::maintenance_server::Maintenance for Maintenance<D> {
    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        use pb::alarm_request::AlarmAction;
        let context = self.0.admit(request.metadata(), Lane::Write, Priority::Small).map_err(to_status)?;
        let request = request.into_inner();
        let asked = match pb::AlarmType::try_from(request.alarm) {
            Ok(pb::AlarmType::Nospace) => Some(AlarmKind::NoSpace),
            Ok(pb::AlarmType::Corrupt) => Some(AlarmKind::Corrupt),
            Ok(pb::AlarmType::None) | Err(_) => None,
        };
        let leader = self.0.leader_member(&context).await.map_err(to_status)?;
        let member = alarm_member_named(request.member_id, leader);
        let query = || self.0.domain.read(&context, Query::Alarms, Consistency::Linearizable);
        let answer = match (AlarmAction::try_from(request.action), asked) {
            (Ok(AlarmAction::Activate), Some(alarm)) => {
                let activate = Op::AlarmActivate { member, alarm };
                self.0.domain.write(&context, activate).await.map_err(to_status)?
            }
            (Ok(AlarmAction::Deactivate), Some(alarm)) => {
                let deactivate = Op::AlarmDeactivate { member, alarm };
                self.0.domain.write(&context, deactivate).await.map_err(to_status)?
            }
            (Ok(AlarmAction::Get), _) => query().await.map_err(to_status)?,
            // etcd answers an unknown action, or one without an alarm to act on, with nothing.
            (Ok(AlarmAction::Activate | AlarmAction::Deactivate) | Err(_), _) => {
                let answer = query().await.map_err(to_status)?;
                let header = self.0.header(answer.reply.revision(), answer.term);
                return Ok(Response::new(pb::AlarmResponse { header, alarms: Vec::new() }));
            }
        };
        let Reply::Alarms { revision, alarms } = answer.reply else { return Err(to_status(MISMATCH)) };
        let header = self.0.header(revision, answer.term);
        let is_get = request.action == i32::from(AlarmAction::Get);
        let alarms = alarms
            .into_iter()
            .filter(|alarm| !is_get || asked.is_none_or(|kind| kind == alarm.kind))
            .map(|alarm| self.0.alarm_member(alarm, leader))
            .collect();
        Ok(Response::new(pb::AlarmResponse { header, alarms }))
    }

    async fn status(
        &self,
        request: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        let context = self.0.admit(request.metadata(), Lane::Read, Priority::Small).map_err(to_status)?;
        let (status, leader) =
            tokio::try_join!(self.0.domain.status(&context), self.0.leader_member(&context))
                .map_err(to_status)?;
        let mut errors = Vec::new();
        if !status.has_leader {
            errors.push(NO_LEADER.1.to_owned());
        }
        if status.no_space_alarm || status.corrupt_alarm {
            errors.extend(self.0.alarm_texts(&context, leader).await);
        }
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        Ok(Response::new(pb::StatusResponse {
            header: self.0.header(status.revision, status.term),
            version: ADVERTISED_VERSION.to_owned(),
            db_size: signed(status.size_bytes),
            // Every gateway of the region names the same member, so that clients see one leader.
            leader: if status.has_leader { leader } else { 0 },
            raft_index: status.commit_slot,
            raft_term: status.term,
            raft_applied_index: status.applied_slot,
            errors,
            db_size_in_use: signed(status.size_in_use_bytes),
            is_learner: false,
            storage_version: ADVERTISED_STORAGE_VERSION.to_owned(),
            db_size_quota: signed(status.quota_bytes),
            downgrade_info: Some(pb::DowngradeInfo::default()),
        }))
    }

    async fn hash_kv(
        &self,
        request: Request<pb::HashKvRequest>,
    ) -> Result<Response<pb::HashKvResponse>, Status> {
        let context = self.0.admit(request.metadata(), Lane::Read, Priority::Large).map_err(to_status)?;
        let revision = request.into_inner().revision;
        let consistency = self.0.consistency_of_a_member();
        let query = Query::HashKv { revision };
        let answer = self.0.domain.read(&context, query, consistency).await.map_err(to_status)?;
        let Reply::HashKv(reply) = answer.reply else { return Err(to_status(MISMATCH)) };
        Ok(Response::new(pb::HashKvResponse {
            header: self.0.header(reply.revision, answer.term),
            hash: reply.hash,
            compact_revision: reply.compact_revision.0,
            hash_revision: reply.hash_revision.0,
        }))
    }

    async fn defragment(
        &self,
        _request: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        Err(unsupported("Defragment"))
    }

    async fn hash(&self, _request: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        Err(unsupported("Hash"))
    }

    type SnapshotStream = Empty<Result<pb::SnapshotResponse, Status>>;

    async fn snapshot(
        &self,
        _request: Request<pb::SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(unsupported("Snapshot"))
    }

    async fn move_leader(
        &self,
        _request: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        Err(unsupported("MoveLeader"))
    }

    async fn downgrade(
        &self,
        _request: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        Err(unsupported("Downgrade"))
    }
}
