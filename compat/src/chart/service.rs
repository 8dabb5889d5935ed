//! What stands behind the address of a Service: a relay that leads each connection to a pod that is ready, as kube-proxy does.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Where clients may connect: what a Service knows of its ready pods.
#[derive(Clone, Default)]
pub(crate) struct Endpoints(Arc<Mutex<Vec<SocketAddr>>>);

impl Endpoints {
    pub(crate) fn set(&self, all: Vec<SocketAddr>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = all;
    }

    pub(crate) fn all(&self) -> Vec<SocketAddr> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn pick(&self, turn: usize) -> Option<SocketAddr> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(turn % all.len().max(1)).copied()
    }
}

/// The address of a Service. It ends when it is dropped; connections that are there stay.
pub(crate) struct Relay {
    pub(crate) endpoints: Endpoints,
    task: JoinHandle<()>,
}

impl Relay {
    pub(crate) async fn start(address: SocketAddr) -> io::Result<Relay> {
        let listener = TcpListener::bind(address).await?;
        let endpoints = Endpoints::default();
        let task = tokio::spawn(relay(listener, endpoints.clone()));
        Ok(Relay { endpoints, task })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(listener: TcpListener, endpoints: Endpoints) {
    let turn = AtomicUsize::new(0);
    while let Ok((mut client, _)) = listener.accept().await {
        let picked = endpoints.pick(turn.fetch_add(1, Ordering::Relaxed));
        tokio::spawn(async move {
            // Without a pod the connection ends, as it would be refused.
            let Some(address) = picked else { return };
            if let Ok(mut pod) = TcpStream::connect(address).await {
                // How it ended, both ends know.
                let _ = tokio::io::copy_bidirectional(&mut client, &mut pod).await;
            }
        });
    }
}
