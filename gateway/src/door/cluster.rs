//! The service Cluster: the members a client sees are gateways.

use std::sync::Arc;

use api::etcdserverpb as pb;
use keyspace::Revision;
use tonic::{Request, Response, Status};

use super::errors::to_status;
use super::{Caller, unsupported};
use crate::context::Priority;
use crate::domain::Domain;
use gateway_core::admission::Lane;

pub(super) struct Cluster<D>(pub(super) Arc<Caller<D>>);

#[tonic::async_trait]
impl<D: Domain> pb::cluster_server::Cluster for Cluster<D> {
    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        let context = self.0.admit(request.metadata(), Lane::Read, Priority::Small).map_err(to_status)?;
        let known = self.0.domain.gateways(&context).await.map_err(to_status)?;
        // etcd leaves the revision of cluster answers at 0.
        let header = self.0.header(Revision(0), known.term);
        let members = self.0.members.list(&known.gateways).into_iter().map(|member| pb::Member {
            id: member.id,
            name: member.name,
            peer_urls: member.peer_urls,
            client_urls: member.client_urls,
            is_learner: false,
        });
        Ok(Response::new(pb::MemberListResponse { header, members: members.collect() }))
    }

    async fn member_add(
        &self,
        _request: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        Err(unsupported("MemberAdd"))
    }

    async fn member_remove(
        &self,
        _request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        Err(unsupported("MemberRemove"))
    }

    async fn member_update(
        &self,
        _request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        Err(unsupported("MemberUpdate"))
    }

    async fn member_promote(
        &self,
        _request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        Err(unsupported("MemberPromote"))
    }
}
