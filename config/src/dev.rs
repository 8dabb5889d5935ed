//! What `gaios dev` runs: the configuration of the production roles, for one process on one machine.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::schema::{Cluster, Gateway, Node, Replica};
use crate::value::{ClientUrl, HostPort, Name, NodeAddress, Role};

/// The flags of `gaios dev`, with their defaults; everything else is the default of the production roles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dev {
    /// Where all data goes; each node has a folder in it.
    pub data_dir: PathBuf,
    /// The front door.
    pub listen: SocketAddr,
    /// Nodes.
    pub replicas: u32,
    /// Groups. One, until a domain can span several.
    pub groups: u32,
}

impl Default for Dev {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("default.gaios"),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 2379)),
            replicas: 3,
            groups: 1,
        }
    }
}

impl Dev {
    /// The cluster of nodes 1, 2, … that listen at `addresses`.
    #[must_use]
    pub fn cluster(addresses: &[SocketAddr]) -> Cluster {
        let nodes = (1..)
            .zip(addresses)
            .map(|(id, address)| Node { id, address: NodeAddress::from(*address), region: None, zone: None })
            .collect();
        Cluster { name: name("dev"), nodes, seeds: Vec::new(), groups: None }
    }

    /// Node `node` of `cluster`, listening at `listen` and with its metrics at `admin_listen`.
    #[must_use]
    pub fn replica(
        &self,
        node: u32,
        listen: SocketAddr,
        admin_listen: SocketAddr,
        cluster: &Cluster,
    ) -> Replica {
        Replica {
            role: Role::Replica,
            node,
            name: None,
            data_dir: self.node_dir(node),
            listen,
            admin_listen,
            cluster: cluster.clone(),
            ..replica_defaults()
        }
    }

    /// The gateway in front of `cluster`. `listen` is the address bound, with its real port.
    #[must_use]
    pub fn gateway(listen: SocketAddr, admin_listen: SocketAddr, cluster: &Cluster) -> Gateway {
        Gateway {
            role: Role::Gateway,
            name: name("dev"),
            listen,
            admin_listen,
            advertise_client_urls: vec![ClientUrl::http(HostPort::from(listen))],
            cluster: cluster.clone(),
            ..gateway_defaults()
        }
    }

    /// The folder of its certificates.
    #[must_use]
    pub fn tls_dir(&self) -> PathBuf {
        self.data_dir.join("tls")
    }

    /// The folder of node `node`.
    #[must_use]
    pub fn node_dir(&self, node: u32) -> PathBuf {
        Path::new(&self.data_dir).join(format!("node-{node}"))
    }
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a name by its letters")
}

// The files hold the required fields and nothing else, so all the rest is what the tables say.

fn replica_defaults() -> Replica {
    let text = "{role: replica, node: 1, data_dir: x, cluster: {name: x, nodes: [{id: 1, address: 'x:1'}]}}";
    Replica::parse("defaults", text).expect("the required fields are all there, as a test checks")
}

fn gateway_defaults() -> Gateway {
    let text = "{role: gateway, name: x, advertise_client_urls: ['http://x:1'], \
                cluster: {name: x, nodes: [{id: 1, address: 'x:1'}]}}";
    Gateway::parse("defaults", text).expect("the required fields are all there, as a test checks")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dev_uses_the_defaults_of_the_roles() {
        let addresses = [1, 2, 3].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let cluster = Dev::cluster(&addresses);
        let replica = Dev::default().replica(2, addresses[1], addresses[2], &cluster);
        assert_eq!(replica.timing, replica_defaults().timing);
        assert_eq!(replica.data_dir, Path::new("default.gaios/node-2"));
        assert_eq!(replica.address().to_string(), "127.0.0.1:2");
        assert_eq!(cluster.groups_or_default()[0].voters, [1, 2, 3]);
        let gateway = Dev::gateway(addresses[0], addresses[1], &cluster);
        assert_eq!(gateway.limits, gateway_defaults().limits);
        assert_eq!(gateway.advertise_client_urls[0].to_string(), "http://127.0.0.1:1");
    }
}
