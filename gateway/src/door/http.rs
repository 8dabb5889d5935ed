//! The HTTP endpoints: `/version`, `/health`, `/livez`, `/readyz`, `/metrics`, as etcd 3.6 has them
//! (server/etcdserver/api/etcdhttp).

use ::http::header::{ALLOW, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use ::http::{HeaderValue, Method, Response, StatusCode, Uri};
use bytes::Bytes;
use http_body_util::Full;
use keyspace::{KeyRange, Query, RangeRequest, Revision};
use tonic::body::Body;

use super::Door;
use super::errors::code_and_text;
use crate::domain::{Consistency, Domain};
use crate::versions::{ADVERTISED_CLUSTER_VERSION, ADVERTISED_STORAGE_VERSION, ADVERTISED_VERSION};
use gateway_core::Failure;

/// The content type of Prometheus' text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
const TEXT_TYPE: &str = "text/plain; charset=utf-8";

/// Something that `/livez` or `/readyz` looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
    /// Ours: a gateway that drains is not ready, and nothing else is wrong with it.
    NotDraining,
}

const LIVEZ: &[Check] = &[Check::SerializableRead];
const READYZ: &[Check] = &[
    Check::DataCorruption,
    Check::SerializableRead,
    Check::LinearizableRead,
    Check::NonLearner,
    Check::NotDraining,
];

impl Check {
    fn name(self) -> &'static str {
        match self {
            Check::DataCorruption => "data_corruption",
            Check::SerializableRead => "serializable_read",
            Check::LinearizableRead => "linearizable_read",
            Check::NonLearner => "non_learner",
            Check::NotDraining => "not_draining",
        }
    }

    async fn run<D: Domain>(self, door: &Door<D>) -> Result<(), String> {
        match self {
            Check::DataCorruption => {
                let status = door.domain.status(&door.context()).await.map_err(|failure| text(&failure))?;
                if status.corrupt_alarm { Err("alarm activated: CORRUPT".to_owned()) } else { Ok(()) }
            }
            Check::SerializableRead => read(door, true).await,
            Check::LinearizableRead => read(door, false).await,
            // A gateway asks voters and learners alike; it is neither.
            Check::NonLearner => Ok(()),
            Check::NotDraining if door.draining.is_cancelled() => Err("the gateway is stopping".to_owned()),
            Check::NotDraining => Ok(()),
        }
    }
}

/// Answers a request that is not gRPC.
pub(crate) async fn answer<D: Domain>(door: &Door<D>, method: &Method, uri: &Uri) -> Response<Body> {
    let path = uri.path();
    let query = Parameters(uri.query().unwrap_or(""));
    if path == "/metrics" {
        return metrics(door).await;
    }
    let checks = checks_of(path, &query);
    if !matches!(path, "/version" | "/health") && checks.is_none() {
        return plain(StatusCode::NOT_FOUND, "404 page not found\n".to_owned());
    }
    if *method != Method::GET {
        return method_not_allowed();
    }
    match checks {
        Some(checks) => run_checks(door, checks, &query).await,
        None if path == "/version" => version(),
        None => health(door, &query).await,
    }
}

fn version() -> Response<Body> {
    let body = format!(
        r#"{{"etcdserver":"{ADVERTISED_VERSION}","etcdcluster":"{ADVERTISED_CLUSTER_VERSION}","storage":"{ADVERTISED_STORAGE_VERSION}"}}"#
    );
    respond(StatusCode::OK, "application/json", body)
}

async fn metrics<D: Domain>(door: &Door<D>) -> Response<Body> {
    if let Ok(status) = door.domain.status(&door.context()).await {
        door.metrics.set_status(&status);
    }
    door.metrics.set_admission(door.admission.under_way(), door.admission.limits(), door.admission.budget());
    door.metrics.set_links(door.domain.links());
    door.metrics.set_distances(&door.domain.distances());
    door.metrics.has_leader.set(i64::from(*door.leader_known.borrow()));
    respond(StatusCode::OK, METRICS_TYPE, door.metrics.text())
}

/// `/health`, in the shape etcdctl's older versions read.
async fn health<D: Domain>(door: &Door<D>, query: &Parameters<'_>) -> Response<Body> {
    let reason = unhealthy(door, query).await;
    let healthy = reason.is_none();
    let counter = if healthy { &door.metrics.health_success } else { &door.metrics.health_failures };
    counter.inc();
    let body = serde_json::json!({
        "health": if healthy { "true" } else { "false" },
        "reason": reason.unwrap_or_default(),
    });
    if healthy {
        respond(StatusCode::OK, TEXT_TYPE, body.to_string())
    } else {
        plain(StatusCode::SERVICE_UNAVAILABLE, format!("{body}\n"))
    }
}

async fn unhealthy<D: Domain>(door: &Door<D>, query: &Parameters<'_>) -> Option<String> {
    let serializable = query.first("serializable") == Some("true");
    match door.domain.status(&door.context()).await {
        Ok(status) => {
            let alarms = [(status.no_space_alarm, "NOSPACE"), (status.corrupt_alarm, "CORRUPT")];
            for (_, alarm) in alarms.iter().filter(|(raised, _)| *raised) {
                if !query.all("exclude").any(|excluded| excluded == *alarm) {
                    return Some(format!("ALARM {alarm}"));
                }
            }
        }
        Err(failure) => return Some(format!("RANGE ERROR:{}", text(&failure))),
    }
    if !serializable && !*door.leader_known.borrow() {
        return Some("RAFT NO LEADER".to_owned());
    }
    read(door, serializable).await.err().map(|error| format!("RANGE ERROR:{error}"))
}

/// The checks that a path names, without those that the query excludes.
fn checks_of(path: &str, query: &Parameters<'_>) -> Option<Vec<Check>> {
    let (all, rest) = match path.strip_prefix("/livez") {
        Some(rest) => (LIVEZ, rest),
        None => (READYZ, path.strip_prefix("/readyz")?),
    };
    match rest.strip_prefix('/') {
        None if rest.is_empty() => {
            let excluded = |check: &Check| query.all("exclude").any(|excluded| excluded == check.name());
            Some(all.iter().copied().filter(|check| !excluded(check)).collect())
        }
        None => None,
        Some(name) => all.iter().find(|check| check.name() == name).map(|check| vec![*check]),
    }
}

async fn run_checks<D: Domain>(door: &Door<D>, checks: Vec<Check>, query: &Parameters<'_>) -> Response<Body> {
    let mut report = String::new();
    let mut failed = false;
    for check in checks {
        match check.run(door).await {
            Ok(()) => report.push_str(&format!("[+]{} ok\n", check.name())),
            Err(error) => {
                failed = true;
                report.push_str(&format!("[-]{} failed: {error}\n", check.name()));
            }
        }
    }
    if failed {
        // etcd adds a line feed to the report.
        return plain(StatusCode::SERVICE_UNAVAILABLE, format!("{report}\n"));
    }
    let report = if query.first("verbose").is_some() { report } else { String::new() };
    plain(StatusCode::OK, format!("{report}ok\n"))
}

async fn read<D: Domain>(door: &Door<D>, serializable: bool) -> Result<(), String> {
    let mut request = RangeRequest::new(KeyRange::single("health"));
    request.keys_only = true;
    request.limit = 1;
    request.serializable = serializable;
    let consistency = if serializable {
        Consistency::Serializable { seen: Revision(0) }
    } else {
        Consistency::Linearizable
    };
    let answered = door.domain.read(&door.context(), Query::Range(request), consistency).await;
    answered.map(|_| ()).map_err(|failure| text(&failure))
}

fn text(failure: &Failure) -> String {
    code_and_text(failure).1.to_owned()
}

fn method_not_allowed() -> Response<Body> {
    let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n".to_owned());
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
    response
}

fn plain(status: StatusCode, body: String) -> Response<Body> {
    let mut response = respond(status, TEXT_TYPE, body);
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn respond(status: StatusCode, content_type: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(Bytes::from(body))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// The parameters of a query string. Names and values of ours have no characters that need decoding.
struct Parameters<'a>(&'a str);

impl<'a> Parameters<'a> {
    fn all(&self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let pairs = self.0.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.filter(move |(key, _)| *key == name).map(|(_, value)| value)
    }

    fn first(&self, name: &'a str) -> Option<&'a str> {
        self.all(name).next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(path: &str, query: &str) -> Option<Vec<&'static str>> {
        let checks = checks_of(path, &Parameters(query))?;
        Some(checks.into_iter().map(Check::name).collect())
    }

    #[test]
    fn paths_and_exclusions_choose_the_checks() {
        assert_eq!(names("/livez", "").unwrap(), ["serializable_read"]);
        assert_eq!(names("/readyz/linearizable_read", "").unwrap(), ["linearizable_read"]);
        let rest = names("/readyz", "exclude=linearizable_read&verbose&exclude=data_corruption").unwrap();
        assert_eq!(rest, ["serializable_read", "non_learner", "not_draining"]);
        assert_eq!(names("/livez/non_learner", ""), None);
        assert_eq!(names("/livezz", ""), None);
        assert_eq!(names("/other", ""), None);
    }
}
