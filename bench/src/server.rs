//! A server's process, and asking whether it serves.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use api::etcdserverpb as pb;
use pb::kv_client::KvClient;
use pb::maintenance_client::MaintenanceClient;
use tokio::time::timeout;
use tonic::Status;

use crate::BenchError;
use crate::connection::Connection;
use crate::endpoint::Endpoint;

/// From start to the first answered write.
pub(crate) const HEALTHY_WITHIN: Duration = Duration::from_secs(30);
/// Another program may take a port between its choice and its use; then everything is tried again.
pub(crate) const ATTEMPTS: usize = 3;

/// A process that ends when it is dropped.
pub(crate) struct Server {
    process: Child,
    name: String,
    log: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if the process has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    /// Starts it; what it writes goes to the file `log`.
    pub(crate) fn start(mut command: Command, name: String, log: PathBuf) -> Result<Server, BenchError> {
        let doing = || format!("start {}", command.get_program().display());
        let file = File::create(&log).map_err(BenchError::io(doing()))?;
        let errors = file.try_clone().map_err(BenchError::io(doing()))?;
        let doing = doing();
        command.stdin(Stdio::null()).stdout(file).stderr(errors);
        let process = command.spawn().map_err(BenchError::io(doing))?;
        Ok(Server { process, name, log })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits until a write and a linearizable read are answered at `client`, which this process has part in.
    pub(crate) async fn until_healthy(
        &mut self,
        client: &Endpoint,
        deadline: Instant,
    ) -> Result<(), BenchError> {
        loop {
            if let Some(ended) = self.ended() {
                return Err(ended);
            }
            match answers(client).await {
                Ok(()) => return Ok(()),
                Err(status) if Instant::now() > deadline => return Err(self.failed(status.message())),
                // There is nothing to be told by when a foreign process is ready.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// How the process ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<BenchError> {
        let exit = self.process.try_wait().ok().flatten()?;
        Some(self.failed(&format!("ended with {exit}")))
    }

    fn failed(&self, what: &str) -> BenchError {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let last = log.lines().last().unwrap_or("nothing");
        BenchError::Server(format!("{}: {what}; its log ends with: {last}", self.name))
    }
}

/// Asks the kernel for ports, all at once so that they differ.
pub(crate) fn free_ports(count: usize) -> std::io::Result<Vec<u16>> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listeners = (0..count).map(|_| TcpListener::bind(any)).collect::<Result<Vec<_>, _>>()?;
    listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

async fn connect(endpoint: &Endpoint) -> Result<Connection, Status> {
    Connection::open(endpoint).await.map_err(|error| Status::unavailable(error.to_string()))
}

async fn in_time<T>(asking: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    match timeout(Duration::from_secs(5), asking).await {
        Ok(answer) => answer,
        Err(_) => Err(Status::deadline_exceeded("no answer within 5 s")),
    }
}

async fn answers(endpoint: &Endpoint) -> Result<(), Status> {
    in_time(async {
        let mut client = KvClient::new(connect(endpoint).await?);
        client.put(pb::PutRequest { key: "gaios-bench".into(), ..Default::default() }).await?;
        client.range(pb::RangeRequest { key: "gaios-bench".into(), ..Default::default() }).await?;
        Ok(())
    })
    .await
}

/// What a server says of itself.
pub(crate) async fn status(endpoint: &Endpoint) -> Result<pb::StatusResponse, Status> {
    in_time(async {
        let mut client = MaintenanceClient::new(connect(endpoint).await?);
        client.status(pb::StatusRequest {}).await.map(tonic::Response::into_inner)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_ports_differ() {
        let mut ports = free_ports(20).unwrap();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 20);
    }
}
