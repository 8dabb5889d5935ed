//! What a node's admin port serves.

use std::net::SocketAddr;

use gateway::admin::{Answer, Asked, admit, json, not_found, page, text};
use gateway::status::{NodeStatus, Status};
use http::{Request, StatusCode, Uri};
use hyper::body::Incoming;
use prometheus::{Encoder as _, TextEncoder};
use replica::Health;

/// Answers any request.
pub(super) async fn answer(health: &Health, from: SocketAddr, request: Request<Incoming>) -> Answer {
    match admit(Some(from), request).await {
        Ok(Asked::Get(uri)) => get(health, &uri),
        Ok(Asked::Post(..)) => not_found(),
        Err(refused) => refused,
    }
}

fn get(health: &Health, uri: &Uri) -> Answer {
    match uri.path() {
        "/" => page(),
        "/metrics" => metrics(health),
        "/livez" => text(StatusCode::OK, "ok\n"),
        "/readyz" => match health.check() {
            Ok(()) => text(StatusCode::OK, "ok\n"),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
        },
        "/debug/status" => json(&Status::Node(NodeStatus::from(health.status()))),
        _ => not_found(),
    }
}

fn metrics(health: &Health) -> Answer {
    // The default registry holds the process's own metrics.
    let mut families = prometheus::gather();
    families.extend(health.metrics().gather());
    let mut body = Vec::new();
    match TextEncoder::new().encode(&families, &mut body) {
        Ok(()) => text(StatusCode::OK, body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}
