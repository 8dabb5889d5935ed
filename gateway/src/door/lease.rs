//! The service Lease.

use std::pin::Pin;
use std::sync::Arc;

use api::etcdserverpb as pb;
use futures::Stream;
use keyspace::{LeaseId, Op, Query, Reply, check};
use tonic::{Request, Response, Status, Streaming};

use super::kv::MISMATCH;
use super::{Door, StreamEnd};
use crate::backoff::random;
use crate::domain::{Consistency, Domain};
use crate::errors::Failure;

pub(super) struct Lease<D>(pub(super) Arc<Door<D>>);

#[tonic::async_trait]
impl<D: Domain> pb::lease_server::Lease for Lease<D> {
    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        let request = request.into_inner();
        check::lease_ttl(request.ttl).map_err(Failure::from)?;
        let ttl = request.ttl.max(self.0.options.lease_ttl_min_s);
        let id = match request.id {
            0 => random_lease(),
            id => id,
        };
        let answer = self.0.domain.write(Op::LeaseGrant { id: LeaseId(id), ttl }).await?;
        let Reply::LeaseGranted { revision, id, ttl } = answer.reply else { return Err(MISMATCH.into()) };
        let header = self.0.header(revision.0, answer.term);
        Ok(Response::new(pb::LeaseGrantResponse { header, id: id.0, ttl, error: String::new() }))
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        let id = LeaseId(request.into_inner().id);
        let answer = self.0.domain.write(Op::LeaseRevoke { id }).await?;
        let Reply::LeaseRevoked { revision } = answer.reply else { return Err(MISMATCH.into()) };
        let header = self.0.header(revision.0, answer.term);
        Ok(Response::new(pb::LeaseRevokeResponse { header }))
    }

    type LeaseKeepAliveStream =
        Pin<Box<dyn Stream<Item = Result<pb::LeaseKeepAliveResponse, Status>> + Send + 'static>>;

    /// One answer per request, in order: the next request is read when the answer before it is there.
    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let end = StreamEnd::new(&self.0, request.metadata());
        let keeping = Keeping { door: Arc::clone(&self.0), requests: request.into_inner(), end };
        let answers = futures::stream::try_unfold(keeping, |mut keeping| async move {
            let next = tokio::select! {
                biased;
                status = keeping.end.ended() => return Err(status),
                next = keeping.requests.message() => next?,
            };
            let Some(request) = next else { return Ok(None) };
            let kept = keeping.door.domain.keep_alive(LeaseId(request.id)).await?;
            let header = keeping.door.header(kept.revision, kept.term);
            let response = pb::LeaseKeepAliveResponse { header, id: request.id, ttl: kept.ttl };
            Ok(Some((response, keeping)))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        let request = request.into_inner();
        let query = Query::LeaseTimeToLive { id: LeaseId(request.id), keys: request.keys };
        let answer = self.0.domain.read(query, Consistency::Linearizable).await?;
        let Reply::LeaseTimeToLive(reply) = answer.reply else { return Err(MISMATCH.into()) };
        let header = self.0.header(reply.revision.0, answer.term);
        Ok(Response::new(pb::LeaseTimeToLiveResponse {
            header,
            id: reply.id.0,
            ttl: reply.ttl,
            granted_ttl: reply.granted_ttl,
            keys: reply.keys,
        }))
    }

    async fn lease_leases(
        &self,
        _request: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        let consistency = self.0.consistency_of_a_member();
        let answer = self.0.domain.read(Query::Leases, consistency).await?;
        let Reply::Leases { revision, leases } = answer.reply else { return Err(MISMATCH.into()) };
        let header = self.0.header(revision.0, answer.term);
        let leases = leases.into_iter().map(|lease| pb::LeaseStatus { id: lease.0 }).collect();
        Ok(Response::new(pb::LeaseLeasesResponse { header, leases }))
    }
}

struct Keeping<D> {
    door: Arc<Door<D>>,
    requests: Streaming<pb::LeaseKeepAliveRequest>,
    end: StreamEnd,
}

/// A positive id that no lease has, but for a chance of one in 2^63.
fn random_lease() -> i64 {
    (i64::from_le_bytes(random()) & i64::MAX).max(1)
}
