//! The service Lease.

use std::pin::Pin;
use std::sync::Arc;

use api::etcdserverpb as pb;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use futures::{FutureExt as _, Stream, StreamExt as _};
use keyspace::{LeaseId, Op, Query, Reply, check};
use tonic::{Request, Response, Status, Streaming};

use super::errors::to_status;
use super::kv::MISMATCH;
use super::{Caller, StreamEnd};
use crate::context::{Priority, RequestContext};
use crate::domain::{Consistency, Domain};
use crate::random::random;
use gateway_core::admission::Lane;

/// Keep-alives of one stream that may wait for their answers. Clients send those of all their leases at once.
const RENEWALS_MAX: usize = 4096;

pub(super) struct Lease<D>(pub(super) Arc<Caller<D>>);

#[tonic::async_trait]
impl<D: Domain> pb::lease_server::Lease for Lease<D> {
    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        let context = self.0.admit(request.metadata(), Lane::Write, Priority::Liveness).map_err(to_status)?;
        let request = request.into_inner();
        check::lease_ttl(request.ttl).map_err(to_status)?;
        let ttl = request.ttl.max(self.0.options.lease_ttl_min_s);
        let id = match request.id {
            0 => random_lease(),
            id => id,
        };
        let grant = Op::LeaseGrant { id: LeaseId(id), ttl };
        let answer = self.0.domain.write(&context, grant).await.map_err(to_status)?;
        let Reply::LeaseGranted { revision, id, ttl } = answer.reply else { return Err(to_status(MISMATCH)) };
        let header = self.0.header(revision, answer.term);
        Ok(Response::new(pb::LeaseGrantResponse { header, id: id.0, ttl, error: String::new() }))
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        let context = self.0.admit(request.metadata(), Lane::Write, Priority::Liveness).map_err(to_status)?;
        let id = LeaseId(request.into_inner().id);
        let answer = self.0.domain.write(&context, Op::LeaseRevoke { id }).await.map_err(to_status)?;
        let Reply::LeaseRevoked { revision } = answer.reply else { return Err(to_status(MISMATCH)) };
        let header = self.0.header(revision, answer.term);
        Ok(Response::new(pb::LeaseRevokeResponse { header }))
    }

    type LeaseKeepAliveStream =
        Pin<Box<dyn Stream<Item = Result<pb::LeaseKeepAliveResponse, Status>> + Send + 'static>>;

    /// One answer per request, in order. Requests are read on meanwhile, so that one batch takes those of all leases.
    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let keeping = Keeping {
            caller: Arc::clone(&self.0),
            context: self.0.context(request.metadata(), Priority::Liveness),
            end: StreamEnd::new(&self.0, request.metadata()),
            requests: Some(request.into_inner()),
            renewals: FuturesOrdered::new(),
        };
        let answers = futures::stream::try_unfold(keeping, |mut keeping| async move {
            let answer = keeping.next().await?;
            Ok(answer.map(|answer| (answer, keeping)))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        let context = self.0.admit(request.metadata(), Lane::Read, Priority::Liveness).map_err(to_status)?;
        let request = request.into_inner();
        let query = Query::LeaseTimeToLive { id: LeaseId(request.id), keys: request.keys };
        let answer =
            self.0.domain.read(&context, query, Consistency::Linearizable).await.map_err(to_status)?;
        let Reply::LeaseTimeToLive(reply) = answer.reply else { return Err(to_status(MISMATCH)) };
        let header = self.0.header(reply.revision, answer.term);
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
        request: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        let context = self.0.admit(request.metadata(), Lane::Read, Priority::Large).map_err(to_status)?;
        let consistency = self.0.consistency_of_a_member();
        let answer = self.0.domain.read(&context, Query::Leases, consistency).await.map_err(to_status)?;
        let Reply::Leases { revision, leases } = answer.reply else { return Err(to_status(MISMATCH)) };
        let header = self.0.header(revision, answer.term);
        let leases = leases.into_iter().map(|lease| pb::LeaseStatus { id: lease.0 }).collect();
        Ok(Response::new(pb::LeaseLeasesResponse { header, leases }))
    }
}

struct Keeping<D> {
    caller: Arc<Caller<D>>,
    /// The stream's.
    context: RequestContext,
    /// None: the client has sent its last request.
    requests: Option<Streaming<pb::LeaseKeepAliveRequest>>,
    renewals: FuturesOrdered<Renewing>,
    end: StreamEnd,
}

type Renewing = BoxFuture<'static, Result<pb::LeaseKeepAliveResponse, Status>>;

impl<D: Domain> Keeping<D> {
    /// The next answer; none when the client has ended its side and everything is answered.
    async fn next(&mut self) -> Result<Option<pb::LeaseKeepAliveResponse>, Status> {
        let Keeping { caller, context, requests, renewals, end } = self;
        while requests.is_some() || !renewals.is_empty() {
            let has_room = renewals.len() < RENEWALS_MAX;
            let request = async {
                match requests {
                    Some(requests) if has_room => requests.message().await,
                    Some(_) | None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                status = end.ended() => return Err(status),
                request = request => match request? {
                    Some(request) => {
                        let context = caller.context_in(context);
                        renewals.push_back(renew(Arc::clone(caller), context, request.id).boxed());
                    }
                    None => *requests = None,
                },
                Some(answer) = renewals.next() => return answer.map(Some),
            }
        }
        Ok(None)
    }
}

async fn renew<D: Domain>(
    caller: Arc<Caller<D>>,
    context: RequestContext,
    id: i64,
) -> Result<pb::LeaseKeepAliveResponse, Status> {
    let kept = caller.domain.keep_alive(&context, LeaseId(id)).await.map_err(to_status)?;
    Ok(pb::LeaseKeepAliveResponse { header: caller.header(kept.revision, kept.term), id, ttl: kept.ttl })
}

/// A positive id that no lease has, but for a chance of one in 2^63.
fn random_lease() -> i64 {
    (i64::from_le_bytes(random()) & i64::MAX).max(1)
}
