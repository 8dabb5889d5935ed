//! The accept loop: one port for HTTP/1.1 and HTTP/2, and its orderly end.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ::http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use prometheus::{IntCounter, IntGauge};
use tls::Stream;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::measured::WINDOW_BYTES;
use super::outlet::{Beginning, Begun};
use super::{Door, Front, Place, Stagger, handshake, outlet};
use crate::context::Identity;
use crate::domain::Domain;

/// etcd's server pings a connection that is idle for so long, and closes it when no answer comes.
const PING_AFTER: Duration = Duration::from_secs(2 * 60 * 60);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests that a client may take back before we have looked at them. The library's default of 20 closes the connection
/// of a client that gives up some dozens of requests at once, as one does whose context ends; etcd bears it.
const RESETS_MAX: usize = 4096;
/// Metadata of a request. The library refuses more than 16 KiB by default, and etcd 16 MiB; this bounds what a request may
/// cost before anything looks at it, and long tokens fit.
const METADATA_BYTES_MAX: u32 = 1 << 20;
/// What a client may send of all its requests before we have looked at it: of one, no more than [`WINDOW_BYTES`]. A request
/// that waits for something must not keep others of its connection from being read.
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// A client that has not taken the rest of its last answer after this long does not get it.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// A client that does not finish the head of an HTTP/1.1 request, or the preface of HTTP/2, loses its connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// After an error of `accept` that is not the client's, for example too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A port that is being served.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    connections: TaskTracker,
    accepting: CancellationToken,
    /// When clients are told to go elsewhere, the idle ones too.
    goaway: Stagger,
    closing: CancellationToken,
}

/// Serves `listener`, over TLS if there is any.
pub(crate) fn serve<D: Domain>(
    listener: TcpListener,
    front: Front<D>,
    door: Arc<Door<D>>,
    tls: Option<Arc<tls::Server>>,
) -> io::Result<Server> {
    let server = Server {
        address: listener.local_addr()?,
        connections: TaskTracker::new(),
        accepting: CancellationToken::new(),
        goaway: Stagger::default(),
        closing: CancellationToken::new(),
    };
    let connections = server.connections.clone();
    let accepting = server.accepting.clone();
    let (goaway, closing) = (server.goaway.clone(), server.closing.clone());
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW_BYTES as u32)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(door.options.concurrent_streams_max)
        .max_header_list_size(METADATA_BYTES_MAX)
        .max_pending_accept_reset_streams(RESETS_MAX)
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_TIMEOUT);
    let builder = Arc::new(builder);
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                () = accepting.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let (stream, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (builder, front, door, tls) =
                (Arc::clone(&builder), front.clone(), Arc::clone(&door), tls.clone());
            let (goaway, closing) = (goaway.clone(), closing.clone());
            connections.spawn(async move {
                if let Err(error) = stream.set_nodelay(true) {
                    debug!(%error, "cannot set TCP_NODELAY");
                }
                let opened = tokio::select! {
                    opened = handshake::open(stream, tls.as_deref()) => opened,
                    () = goaway.begun() => None,
                };
                if let Some(stream) = opened {
                    let front = front.of(Identity::of(from, &stream));
                    serve_connection(builder, stream, front, door, goaway, closing).await;
                }
            });
        }
    });
    Ok(server)
}

/// What is counted of a connection.
struct Counts {
    connections: IntGauge,
    accepted: IntCounter,
    received: IntCounter,
    sent: IntCounter,
}

impl Counts {
    fn of_clients<D: Domain>(door: &Door<D>) -> Counts {
        let metrics = &door.metrics;
        Counts {
            connections: metrics.connections.clone(),
            accepted: metrics.connections_accepted.clone(),
            received: metrics.received_bytes.clone(),
            sent: metrics.sent_bytes.clone(),
        }
    }

    /// Scrapers and operators are no clients: what they do goes into numbers that nobody is told.
    fn of_operators() -> Counts {
        let counter = || IntCounter::new("operators", "Not exported.").expect("the name is well formed");
        let connections = IntGauge::new("operators", "Not exported.").expect("the name is well formed");
        Counts { connections, accepted: counter(), received: counter(), sent: counter() }
    }
}

/// Tells of the requests that begin.
struct Counting<D: Domain> {
    front: Front<D>,
    begun: Arc<Begun>,
}

/// A request's answer, from before its task runs for the first time.
struct Begins<F> {
    beginning: Option<Beginning>,
    answering: F,
}

impl<F: Future + Unpin> Future for Begins<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.beginning = None;
        Pin::new(&mut self.answering).poll(cx)
    }
}

impl<D: Domain> hyper::service::Service<Request<Incoming>> for Counting<D> {
    type Response = <Front<D> as hyper::service::Service<Request<Incoming>>>::Response;
    type Error = <Front<D> as hyper::service::Service<Request<Incoming>>>::Error;
    type Future = Begins<<Front<D> as hyper::service::Service<Request<Incoming>>>::Future>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        Begins { beginning: Some(self.begun.begin()), answering: self.front.call(request) }
    }
}

async fn serve_connection<D: Domain>(
    builder: Arc<auto::Builder<TokioExecutor>>,
    stream: Stream,
    front: Front<D>,
    door: Arc<Door<D>>,
    goaway: Stagger,
    closing: CancellationToken,
) {
    let client = Arc::clone(front.client());
    if front.is_for_clients() && !client.is_welcome() {
        return;
    }
    let counts = if front.is_for_clients() { Counts::of_clients(&door) } else { Counts::of_operators() };
    counts.connections.inc();
    counts.accepted.inc();
    let (socket, mut outlet) = outlet::pair(stream, counts.received, counts.sent);
    let service = Counting { front, begun: outlet.begun() };
    let mut connection = Box::pin(builder.serve_connection(TokioIo::new(socket), service));
    let unopened = tokio::select! {
        served = outlet.open(connection.as_mut()) => served,
        () = goaway.begun() => None,
        () = tokio::time::sleep(HEAD_TIMEOUT) => Some(Err("the client did not say which protocol it speaks".into())),
    };
    let served = match unopened {
        Some(served) => served,
        None => tokio::select! {
            served = outlet.serve(connection.as_mut()) => served,
            () = client.dismissed() => Err("it takes nothing of what waits for it".into()),
            () = goaway.turn(Place::draw()) => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    served = outlet.serve(connection.as_mut()) => served,
                    () = client.dismissed() => Err("it takes nothing of what waits for it".into()),
                    () = closing.cancelled() => Ok(()),
                }
            }
        },
    };
    // With all that waits for it.
    drop(connection);
    // The library has ended, and may have left something behind.
    tokio::select! {
        biased;
        _ = outlet.drain() => {}
        () = closing.cancelled() => {}
        () = tokio::time::sleep(DRAIN_TIMEOUT) => {}
    }
    counts.connections.dec();
    if let Err(error) = served {
        debug!(%error, "connection ended");
    }
}

impl Server {
    /// Takes no new connections; tells clients to go elsewhere, one after the other over so much time.
    pub(crate) fn drain(&self, spread: Duration) {
        self.accepting.cancel();
        self.goaway.begin(spread);
    }

    /// Waits until every connection is gone.
    pub(crate) async fn drained(&self) {
        self.connections.close();
        self.connections.wait().await;
    }

    /// Closes what is left.
    pub(crate) fn close(&self) {
        self.drain(Duration::ZERO);
        self.closing.cancel();
    }
}
