//! A Gaios of three nodes and a gateway on loopback, each a process.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use tempfile::TempDir;

use crate::endpoint::Endpoint;
use crate::server::{ATTEMPTS, HEALTHY_WITHIN, Server, free_ports};
use crate::{BenchError, Target};

const NODES: usize = 3;

/// A running cluster; dropping it stops the processes and removes their data.
pub struct GaiosCluster {
    gateway: Server,
    client_url: String,
    client: Endpoint,
    nodes: Vec<(Server, SocketAddr)>,
    /// Removed last, when no process writes into it any more.
    _data: TempDir,
}

impl GaiosCluster {
    /// Starts three nodes and a gateway of the given binary, data below `parent`, and waits until a write and a
    /// linearizable read are answered. Settings are the defaults, but for `of_gateway`: lines of its configuration.
    pub async fn start(binary: &Path, parent: &Path, of_gateway: &str) -> Result<GaiosCluster, BenchError> {
        let mut attempt = 1;
        loop {
            let mut cluster = GaiosCluster::spawn(binary, parent, of_gateway)?;
            let deadline = Instant::now() + HEALTHY_WITHIN;
            match cluster.gateway.until_healthy(&cluster.client, deadline).await {
                Ok(()) => return Ok(cluster),
                Err(error) if attempt == ATTEMPTS => return Err(error),
                Err(_) => attempt += 1,
            }
        }
    }

    /// The gateway as something to measure; its process comes first, then those of the nodes.
    pub fn target(&self) -> Target {
        let pids =
            [&self.gateway].into_iter().chain(self.nodes.iter().map(|(node, _)| node)).map(Server::pid);
        Target {
            label: "gaios".to_owned(),
            endpoints: vec![self.client_url.clone()],
            pids: pids.collect(),
            tls: None,
        }
    }

    /// How one of the processes ended, if one has.
    pub fn ended(&mut self) -> Option<BenchError> {
        [&mut self.gateway]
            .into_iter()
            .chain(self.nodes.iter_mut().map(|(node, _)| node))
            .find_map(Server::ended)
    }

    /// Where the nodes take links.
    pub fn node_addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|(_, address)| *address).collect()
    }

    fn spawn(binary: &Path, parent: &Path, settings: &str) -> Result<GaiosCluster, BenchError> {
        let doing = || format!("start {}", binary.display());
        let data = TempDir::with_prefix_in("gaios-bench-gaios-", parent).map_err(BenchError::io(doing()))?;
        let ports = free_ports(2 * NODES + 2).map_err(BenchError::io("find free ports"))?;
        let addresses: Vec<_> =
            ports.into_iter().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port))).collect();
        let (of_gateway, of_nodes) = addresses.split_at(2);
        let (listens, admins) = of_nodes.split_at(NODES);
        let mut cluster = String::from("log: {level: warn}\ncluster:\n  name: measured\n  nodes:\n");
        for (id, listen) in (1..).zip(listens) {
            // Writing to a string does not fail.
            let _ = writeln!(cluster, "    - {{id: {id}, address: '{listen}'}}");
        }
        let start = |role: &str, name: String, text: String| {
            let config = data.path().join(format!("{name}.yaml"));
            fs::write(&config, text + &cluster).map_err(BenchError::io(doing()))?;
            let mut command = Command::new(binary);
            command.arg(role).arg("--config").arg(config);
            let log = data.path().join(format!("{name}.log"));
            Server::start(command, name, log)
        };
        let mut nodes = Vec::with_capacity(NODES);
        for (id, (listen, admin)) in (1..).zip(listens.iter().zip(admins)) {
            let data_dir = data.path().join(format!("data-{id}"));
            let text = format!(
                "role: replica\nnode: {id}\ndata_dir: '{}'\nlisten: '{listen}'\nadmin_listen: '{admin}'\n",
                data_dir.display()
            );
            nodes.push((start("replica", format!("replica-{id}"), text)?, *listen));
        }
        let (listen, admin) = (of_gateway[0], of_gateway[1]);
        let client_url = format!("http://{listen}");
        let text = format!(
            "role: gateway\nname: gateway\nlisten: '{listen}'\nadmin_listen: '{admin}'\n\
             advertise_client_urls: ['{client_url}']\n{settings}"
        );
        let gateway = start("gateway", "gateway".to_owned(), text)?;
        let client =
            Endpoint::parse(&client_url, None).map_err(|mistake| BenchError::Flags(vec![mistake]))?;
        Ok(GaiosCluster { gateway, client_url, client, nodes, _data: data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_binary_which_ends_at_once_is_told() {
        let parent = tempfile::tempdir().unwrap();
        let Err(error) = GaiosCluster::start(Path::new("/bin/false"), parent.path(), "").await else {
            panic!("started");
        };
        assert!(error.to_string().contains("gateway: ended with exit status: 1"), "{error}");
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0, "data was left behind");
    }
}
