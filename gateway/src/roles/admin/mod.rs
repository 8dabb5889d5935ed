//! A node's admin port: metrics, whether the process lives and takes part, and what operators ask. What is served is in
//! `routes`; a gateway's admin port is served by its doors.

mod routes;

use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use replica::Health;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::Failure;

/// Connections at a time. Scrapers and operators are few; the rest waits.
const CONNECTIONS_MAX: usize = 256;
/// A client that does not finish the head of a request loses its connection, also between two.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// After an error of `accept`, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until the task is aborted.
pub(crate) fn serve(listener: TcpListener, health: Health) -> Result<JoinHandle<()>, Failure> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    Ok(tokio::spawn(async move {
        loop {
            let Ok(counted) = Arc::clone(&room).acquire_owned().await else { return };
            let Ok((stream, from)) = listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let health = health.clone();
            tokio::spawn(async move {
                let _counted = counted;
                let service = service_fn(|request| {
                    let answering = routes::answer(&health, from, request);
                    async { Ok::<_, Infallible>(answering.await) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_TIMEOUT)
                    .serve_connection(TokioIo::new(stream), service);
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "admin connection");
                }
            });
        }
    }))
}
