//! Sorts requests: gRPC to its service, everything else to HTTP. Checks metadata, counts, and gives grpc-go's texts
//! where tonic has its own.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, CONTENT_TYPE,
};
use ::http::{HeaderMap, HeaderValue, Method, Request, Response};
use api::etcdserverpb as pb;
use api::grpc::health::v1::health_server::HealthServer;
use http_body::Body as HttpBody;
use hyper::body::Incoming;
use tonic::body::Body;
use tonic::{Code, Status};
use tower_service::Service as _;

use super::cluster::Cluster;
use super::errors::{INVALID_CLIENT_API_VERSION, status, to_status};
use super::health::Health;
use super::kv::Kv;
use super::lease::Lease;
use super::left::{Counted, spell_out};
use super::maintenance::Maintenance;
use super::measured::{Answered, Received};
use super::sizes::{COMPRESSION, sizes_of_too_large};
use super::told::{Line, tell_at_end};
use super::{Caller, Door, admin, http, watch};
use crate::admission::{Client, Permit, Taken};
use crate::context::{Identity, Permissions, Priority};
use crate::domain::Domain;
use crate::journey::{self, Journey};
use crate::methods;
use gateway_core::Failure;
use gateway_core::admission::Lane;

type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// The service behind a port.
pub(crate) struct Front<D: Domain> {
    services: Arc<Services<D>>,
    port: Port,
    /// The client of the connection that is served.
    from: Option<SocketAddr>,
}

/// What a request has when its head has come.
enum LetIn {
    /// Nothing: it is counted when it has been read.
    Counted,
    /// A place.
    Place(Permit),
    /// It has to wait for one.
    Wait(Lane),
}

/// What is served where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    /// gRPC, and etcd's HTTP endpoints.
    Clients,
    /// The HTTP endpoints, and what only operators ask.
    Admin,
}

struct Services<D: Domain> {
    caller: Arc<Caller<D>>,
    kv: pb::kv_server::KvServer<Kv<D>>,
    lease: pb::lease_server::LeaseServer<Lease<D>>,
    cluster: pb::cluster_server::ClusterServer<Cluster<D>>,
    maintenance: pb::maintenance_server::MaintenanceServer<Maintenance<D>>,
    health: HealthServer<Health<D>>,
}

impl<D: Domain> Clone for Front<D> {
    fn clone(&self) -> Self {
        Front { services: Arc::clone(&self.services), port: self.port, from: self.from }
    }
}

impl<D: Domain> Front<D> {
    pub(crate) fn new(door: Arc<Door<D>>) -> Front<D> {
        let nobody = Identity { address: None, common_name: None, permissions: Permissions::All, user: 0 };
        Front { services: Arc::new(Services::new(door, nobody)), port: Port::Clients, from: None }
    }

    /// What the admin port serves.
    pub(crate) fn admin(&self) -> Front<D> {
        Front { port: Port::Admin, ..self.clone() }
    }

    /// Whether clients connect there.
    pub(super) fn is_for_clients(&self) -> bool {
        self.port == Port::Clients
    }

    /// For a new connection, of this client.
    pub(crate) fn of(&self, client: Identity) -> Front<D> {
        let (door, from) = (Arc::clone(self.services.caller.door()), client.address);
        Front { services: Arc::new(Services::new(door, client)), port: self.port, from }
    }

    /// Answers any request of a client.
    pub(crate) fn answer<B>(&self, request: Request<B>) -> Answering
    where
        B: HttpBody<Data = bytes::Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    {
        let is_grpc = request
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
        if self.port == Port::Admin {
            let (services, from) = (Arc::clone(&self.services), self.from);
            return Box::pin(async move { Ok(admin::answer(services.caller.door(), from, request).await) });
        }
        if !is_grpc {
            let services = Arc::clone(&self.services);
            let (head, _) = request.into_parts();
            return Box::pin(async move {
                let door = services.caller.door();
                let mut response = match head.method {
                    Method::OPTIONS => Response::default(),
                    _ => http::answer(door, &head.method, &head.uri).await,
                };
                allow_any_origin(response.headers_mut());
                Ok(response)
            });
        }
        let Some(method) = methods::find(request.uri().path()) else {
            let status = Status::unimplemented(methods::unknown(request.uri().path()));
            return Box::pin(std::future::ready(Ok(status.into_http())));
        };
        let metrics = self.services.caller.metrics.method(method);
        metrics.started.inc();
        if let Err(status) = self.check_metadata(request.headers(), method) {
            metrics.handled(status.code());
            return Box::pin(std::future::ready(Ok(status.into_http())));
        }
        let (let_in, stream) = match self.let_in(method) {
            Ok(let_in) => let_in,
            Err(failure) => {
                let status = to_status(failure);
                metrics.handled(status.code());
                return Box::pin(std::future::ready(Ok(status.into_http())));
            }
        };
        let requires_leader = requires_leader(request.headers());
        let (services, from) = (Arc::clone(&self.services), self.from);
        Box::pin(async move {
            let line = Line::begin(services.caller.options.access_log, method, from);
            let begun = Instant::now();
            if requires_leader && let Err(status) = services.caller.await_leader().await {
                services.caller.metrics.method(method).handled(status.code());
                return Ok(tell_at_end(status.into_http(), line));
            }
            let flow = methods::METHODS[method].2;
            let client = services.caller.client();
            let place = match let_in {
                LetIn::Counted => None,
                LetIn::Place(place) => Some(place),
                LetIn::Wait(lane) => match client.wait_to_enter(lane).await {
                    Ok(place) => Some(place),
                    Err(failure) => {
                        let status = to_status(failure);
                        services.caller.metrics.method(method).handled(status.code());
                        return Ok(tell_at_end(status.into_http(), line));
                    }
                },
            };
            let counted = line.as_ref().map(Line::received);
            let limit = services.caller.options.message_bytes_max();
            let request = request.map(|body| Received::new(body, flow, client, limit, counted));
            let driven = journey::record(client, place, services.call(method, request));
            let (mut response, journey, made_of) = driven.await;
            let code = refused_code(response.headers());
            if code == Some(Code::OutOfRange) {
                say_it_like_grpc_go(response.headers_mut());
            }
            // A status in the headers is an answer without a message; otherwise the answer was made, whatever becomes
            // of it on its way.
            let code = refused_code(response.headers()).unwrap_or(Code::Ok);
            services.caller.metrics.method(method).handled(code);
            // A stream's time is its client's.
            if flow == methods::Flow::Unary {
                services.caller.tell(method, from, code, begun.elapsed(), &journey);
            }
            let is_counted = response.extensions_mut().remove::<Counted>().is_some();
            let answered = |body| Answered::new(body, services.caller.client(), stream, made_of, is_counted);
            Ok(tell_at_end(response.map(|body| Body::new(answered(body))), line))
        })
    }

    /// Lets a request in before its message is read; whether it is carried out is decided when it has been. With it
    /// comes what the budget has for its stream: one that has begun, and whose message does not come, costs as much as
    /// one that stays open.
    fn let_in(&self, method: usize) -> Result<(LetIn, Taken), Failure> {
        let client = self.services.caller.client();
        let let_in = match (methods::METHODS[method].2, methods::lane(method)) {
            (methods::Flow::Unary, None) => LetIn::Counted,
            (methods::Flow::Unary, Some(lane)) => client.enter(lane)?.map_or(LetIn::Wait(lane), LetIn::Place),
            (methods::Flow::ServerStream | methods::Flow::BidiStream, lane) => {
                if let Some(lane) = lane {
                    client.check(lane, Priority::Small)?;
                }
                LetIn::Counted
            }
        };
        let stream = Taken::stream(client).ok_or(Failure::Overloaded)?;
        Ok((let_in, stream))
    }

    /// The client of the connection.
    pub(super) fn client(&self) -> &Arc<Client> {
        self.services.caller.client()
    }

    /// What etcd's interceptors check.
    fn check_metadata(&self, headers: &HeaderMap, method: usize) -> Result<(), Status> {
        if let Some(version) = headers.get("client-api-version") {
            let version = std::str::from_utf8(version.as_bytes());
            let version = version.map_err(|_| status(INVALID_CLIENT_API_VERSION))?;
            self.services.caller.metrics.client_request(methods::METHODS[method].2, version);
        }
        Ok(())
    }
}

/// Whether the caller will not wait for a leader for longer than a change of leaders takes.
fn requires_leader(headers: &HeaderMap) -> bool {
    headers.get("hasleader").is_some_and(|value| value.as_bytes() == b"true")
}

impl<D: Domain> Door<D> {
    /// Counts a unary request, and tells of it if it was slow.
    fn tell(&self, method: usize, from: Option<SocketAddr>, code: Code, took: Duration, journey: &Journey) {
        self.metrics.took(method, code, took, journey);
        if took > self.options.slow_request {
            self.metrics.slow_requests.inc();
            self.slow_log.tell(method, from, code, took, journey);
        }
    }
}

impl<D: Domain> Services<D> {
    fn new(door: Arc<Door<D>>, client: Identity) -> Services<D> {
        let caller = Arc::new(Caller::new(door, client));
        let limit = caller.options.message_bytes_max();
        Services {
            kv: pb::kv_server::KvServer::new(Kv(Arc::clone(&caller)))
                .max_decoding_message_size(limit)
                .max_encoding_message_size(usize::MAX)
                .accept_compressed(COMPRESSION),
            lease: pb::lease_server::LeaseServer::new(Lease(Arc::clone(&caller)))
                .max_decoding_message_size(limit)
                .accept_compressed(COMPRESSION),
            cluster: pb::cluster_server::ClusterServer::new(Cluster(Arc::clone(&caller)))
                .max_decoding_message_size(limit)
                .accept_compressed(COMPRESSION),
            maintenance: pb::maintenance_server::MaintenanceServer::new(Maintenance(Arc::clone(&caller)))
                .max_decoding_message_size(limit)
                .accept_compressed(COMPRESSION),
            health: HealthServer::new(Health(Arc::clone(caller.door())))
                .max_decoding_message_size(limit)
                .accept_compressed(COMPRESSION),
            caller,
        }
    }

    async fn call<B>(&self, method: usize, request: Request<Received<B>>) -> Response<Body>
    where
        B: HttpBody<Data = bytes::Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    {
        // The generated services want `&mut self`; a clone is a reference count.
        let answered = match methods::METHODS[method] {
            ("etcdserverpb.KV", ..) => self.kv.clone().call(request).await.map(spell_out),
            ("etcdserverpb.Watch", ..) => Ok(watch::call(&self.caller, request).await),
            ("etcdserverpb.Lease", ..) => self.lease.clone().call(request).await,
            ("etcdserverpb.Cluster", ..) => self.cluster.clone().call(request).await,
            ("etcdserverpb.Maintenance", ..) => self.maintenance.clone().call(request).await,
            ("grpc.health.v1.Health", ..) => self.health.clone().call(request).await,
            // Nobody can turn authentication on, so this is etcd's answer; clients with a password go on without.
            ("etcdserverpb.Auth", "Authenticate", _) => {
                Ok(Status::failed_precondition("etcdserver: authentication is not enabled").into_http())
            }
            (_, method, _) => Ok(super::unsupported(method).into_http()),
        };
        match answered {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

impl<D: Domain> hyper::service::Service<Request<Incoming>> for Front<D> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, request: Request<Incoming>) -> Answering {
        self.answer(request)
    }
}

/// What etcd says to browsers by default (`--cors=*`), in answer to anything but gRPC. It takes every OPTIONS for the
/// question of one: load balancers ask so whether a server is well.
fn allow_any_origin(headers: &mut HeaderMap) {
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE"));
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(
        ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("accept, content-type, authorization"),
    );
}

/// The code of an answer that is a status alone.
fn refused_code(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|code| Code::from_bytes(code.as_bytes()))
}

/// tonic's words and code for a message that is too large, turned into grpc-go's.
fn say_it_like_grpc_go(headers: &mut HeaderMap) {
    let Some(message) = headers.get("grpc-message").and_then(|message| message.to_str().ok()) else { return };
    let Some((size, limit)) = sizes_of_too_large(message) else { return };
    let code = i32::from(Code::ResourceExhausted);
    let message = format!("grpc: received message larger than max ({size} vs. {limit})");
    // Percent encoding leaves all of these characters as they are.
    if let Ok(message) = HeaderValue::from_str(&message) {
        headers.insert("grpc-message", message);
        headers.insert("grpc-status", HeaderValue::from(code));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_too_large_is_told_in_the_words_of_grpc_go() {
        let status = Status::out_of_range(
            "Error, decoded message length too large: found 2097166 bytes, the limit is: 2097152 bytes",
        );
        let mut response: Response<Body> = status.into_http();
        say_it_like_grpc_go(response.headers_mut());
        let told = Status::from_header_map(response.headers()).unwrap();
        assert_eq!(told.code(), Code::ResourceExhausted);
        assert_eq!(told.message(), "grpc: received message larger than max (2097166 vs. 2097152)");
    }

    #[test]
    fn etcds_own_out_of_range_is_left_alone() {
        let mut response: Response<Body> =
            Status::out_of_range("etcdserver: too large lease TTL").into_http();
        say_it_like_grpc_go(response.headers_mut());
        let told = Status::from_header_map(response.headers()).unwrap();
        assert_eq!((told.code(), told.message()), (Code::OutOfRange, "etcdserver: too large lease TTL"));
    }
}
