//! A gateway's admin port: what operators ask, and the HTTP endpoints that clients have, too. Nothing of the former is
//! served where clients connect.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::http::{Method, Request, Response, StatusCode};
use bytes::Bytes;
use http_body::Body as HttpBody;
use tokio::time::Instant;
use tonic::body::Body;

use super::errors::code_and_text;
use super::{Door, http};
use crate::admin::{Answer, Asked, admit, failure, json, not_found, page, parse};
use crate::domain::Domain;
use crate::leading::Wanted;
use crate::status::{
    CertificateDoor, CertificateStatus, ClusterStatus, GatewayRates, GatewayStatus, Status, told,
};

/// However many ask, the nodes are asked no more often than this.
const STATUS_EVERY: Duration = Duration::from_millis(500);

/// Answers any request to the admin port.
pub(super) async fn answer<D: Domain, B>(
    door: &Door<D>,
    from: Option<SocketAddr>,
    request: Request<B>,
) -> Response<Body>
where
    B: HttpBody<Data = Bytes> + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match admit(from, request).await {
        Ok(Asked::Get(uri)) => match uri.path() {
            "/" => whole(page()),
            "/debug/status" => whole(json(&Status::Cluster((*door.status().await).clone()))),
            _ => http::answer(door, &Method::GET, &uri).await,
        },
        Ok(Asked::Post(uri, body)) => match uri.path() {
            "/ctl/leader" => whole(lead(door, &body).await),
            _ => whole(not_found()),
        },
        Err(refused) => whole(refused),
    }
}

async fn lead<D: Domain>(door: &Door<D>, body: &[u8]) -> Answer {
    let wanted = match parse::<Wanted>(body) {
        Ok(wanted) => wanted,
        Err(error) => return failure(StatusCode::BAD_REQUEST, &error),
    };
    match door.domain.lead(&door.context(), wanted).await {
        Some(Ok(leading)) => json(&leading),
        Some(Err(refused)) => failure(StatusCode::SERVICE_UNAVAILABLE, code_and_text(&refused).1),
        None => failure(StatusCode::NOT_FOUND, "there is no such group, or no node has answered yet"),
    }
}

fn whole(answer: Answer) -> Response<Body> {
    answer.map(Body::new)
}

/// What was told last, and when.
pub(crate) type StatusTold = tokio::sync::Mutex<Option<(Instant, Arc<ClusterStatus>)>>;

impl<D: Domain> Door<D> {
    /// The cluster, as this gateway sees it. Callers who come together share one answer.
    async fn status(&self) -> Arc<ClusterStatus> {
        let mut told = self.status_told.lock().await;
        if let Some((at, status)) = told.as_ref()
            && at.elapsed() < STATUS_EVERY
        {
            return Arc::clone(status);
        }
        let (nodes, replicas) = self.domain.nodes().await;
        let own = self.own_status();
        let status =
            Arc::new(ClusterStatus::new(self.domain.cluster_id(), own, SystemTime::now(), nodes, &replicas));
        *told = Some((Instant::now(), Arc::clone(&status)));
        status
    }

    /// What this gateway knows of itself.
    pub(crate) fn own_status(&self) -> GatewayStatus {
        let count = |gauge: &prometheus::IntGauge| u64::try_from(gauge.get()).ok();
        GatewayStatus {
            name: self.name.clone(),
            region: told(&self.place.region),
            zone: told(&self.place.zone),
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            uptime_seconds: Some(self.started.elapsed().as_secs_f64()),
            connections: count(&self.metrics.connections),
            watchers: count(&self.metrics.watchers),
            linked_nodes: Vec::new(),
            certificates: {
                let now = SystemTime::now();
                let client = self.options.tls.as_ref().map(|tls| (CertificateDoor::Client, tls.status()));
                let link = self.domain.link_certificates().map(|status| (CertificateDoor::Link, status));
                let doors = client.into_iter().chain(link);
                doors.flat_map(|(door, status)| CertificateStatus::of(door, &status, now)).collect()
            },
            rates: self.rates.lock().per_second().map(|[requests, events, received_bytes, sent_bytes]| {
                GatewayRates {
                    requests_per_second: requests,
                    events_per_second: events,
                    received_bytes_per_second: received_bytes,
                    sent_bytes_per_second: sent_bytes,
                }
            }),
        }
    }
}
