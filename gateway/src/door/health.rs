//! `grpc.health.v1.Health`: the service "" serves until the gateway drains.

use std::pin::Pin;
use std::sync::Arc;

use api::grpc::health::v1 as pb;
use api::grpc::health::v1::health_check_response::ServingStatus;
use futures::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use super::{Door, Place, Stagger};
use crate::domain::Domain;

pub(super) struct Health<D>(pub(super) Arc<Door<D>>);

impl<D: Domain> Health<D> {
    fn now(&self) -> pb::HealthCheckResponse {
        answer(if self.0.draining.is_cancelled() {
            ServingStatus::NotServing
        } else {
            ServingStatus::Serving
        })
    }
}

async fn ended(ending: Stagger) {
    ending.turn(Place::draw()).await;
}

fn answer(status: ServingStatus) -> pb::HealthCheckResponse {
    pb::HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl<D: Domain> pb::health_server::Health for Health<D> {
    async fn check(
        &self,
        request: Request<pb::HealthCheckRequest>,
    ) -> Result<Response<pb::HealthCheckResponse>, Status> {
        if !request.get_ref().service.is_empty() {
            return Err(Status::not_found("unknown service"));
        }
        Ok(Response::new(self.now()))
    }

    async fn list(
        &self,
        _request: Request<pb::HealthListRequest>,
    ) -> Result<Response<pb::HealthListResponse>, Status> {
        let statuses = [(String::new(), self.now())].into();
        Ok(Response::new(pb::HealthListResponse { statuses }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<pb::HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<pb::HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let ending = self.0.ending.clone();
        if !request.get_ref().service.is_empty() {
            // An unknown service may appear later, says the protocol; ours never does.
            let first = futures::stream::iter([Ok(answer(ServingStatus::ServiceUnknown))]);
            let forever = first.chain(futures::stream::pending());
            return Ok(Response::new(Box::pin(forever.take_until(ended(ending)))));
        }
        let first = futures::stream::iter([Ok(self.now())]);
        let draining = self.0.draining.clone();
        let was_draining = draining.is_cancelled();
        let change = futures::stream::once(async move {
            if was_draining {
                std::future::pending::<()>().await;
            }
            draining.cancelled().await;
            Ok(answer(ServingStatus::NotServing))
        });
        let forever = first.chain(change).chain(futures::stream::pending());
        Ok(Response::new(Box::pin(forever.take_until(ended(ending)))))
    }
}
