//! What the DNS of a Kubernetes cluster says of its Services, and ExternalDNS of those that it is to tell everybody: a function
//! of Services and pods, and a real server that answers so.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use test_dns::{DnsServer, Service as Target};

use super::manifest::{Kind, Labels, Service};

/// CoreDNS's own, for what Kubernetes tells it.
const TTL_S: u32 = 5;
/// The annotation by which ExternalDNS is told of a Service.
const EXTERNAL_NAME: &str = "external-dns.alpha.kubernetes.io/hostname";

/// What a Service sees of a pod.
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) ip: Ipv4Addr,
    pub(crate) labels: Labels,
    pub(crate) ready: bool,
    /// The Service by which the pod has a name of its own.
    pub(crate) named_by: Option<String>,
    /// Numbers of its ports, by name.
    pub(crate) ports: BTreeMap<String, u16>,
}

/// What is known of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    Addresses(Vec<Ipv4Addr>),
    /// Ports and hosts.
    Services(Vec<(u16, String)>),
}

/// By name.
pub(crate) type Records = BTreeMap<String, Record>;

/// What a cluster's own DNS says of a Service in `domain`: `NAMESPACE.svc.cluster.local`. `address` is the Service's own.
pub(crate) fn inside(service: &Service, domain: &str, address: Ipv4Addr, pods: &[Member]) -> Records {
    let name = format!("{}.{domain}", service.name);
    let mut records = Records::new();
    let mut services: BTreeMap<String, Vec<(u16, String)>> = BTreeMap::new();
    match service.kind {
        Kind::ClusterIp | Kind::LoadBalancer => {
            for port in &service.ports {
                services.entry(port.name.clone()).or_default().push((port.number, name.clone()));
            }
            records.insert(name.clone(), Record::Addresses(vec![address]));
        }
        Kind::Headless { all } => {
            let members: Vec<_> = behind(service, pods).filter(|pod| all || pod.ready).collect();
            for pod in &members {
                let own = if pod.named_by.as_ref() == Some(&service.name) {
                    pod.name.clone()
                } else {
                    pod.ip.to_string().replace('.', "-")
                };
                let own = format!("{own}.{name}");
                records.insert(own.clone(), Record::Addresses(vec![pod.ip]));
                for port in &service.ports {
                    let number = pod.ports.get(&port.target).copied().unwrap_or(port.number);
                    services.entry(port.name.clone()).or_default().push((number, own.clone()));
                }
            }
            records.insert(name.clone(), Record::Addresses(members.iter().map(|pod| pod.ip).collect()));
        }
    }
    for (port, targets) in services {
        records.insert(format!("_{port}._tcp.{name}"), Record::Services(targets));
    }
    records
}

/// What everybody is told of a Service, if its annotation asks for it.
pub(crate) fn outside(service: &Service, address: Ipv4Addr, pods: &[Member]) -> Records {
    let mut records = Records::new();
    let Some(name) = service.annotations.get(EXTERNAL_NAME) else { return records };
    match service.kind {
        Kind::ClusterIp => {}
        Kind::LoadBalancer => {
            records.insert(name.clone(), Record::Addresses(vec![address]));
        }
        Kind::Headless { all } => {
            let members: Vec<_> = behind(service, pods).filter(|pod| all || pod.ready).collect();
            for pod in members.iter().filter(|pod| pod.named_by.is_some()) {
                records.insert(format!("{}.{name}", pod.name), Record::Addresses(vec![pod.ip]));
            }
            records.insert(name.clone(), Record::Addresses(members.iter().map(|pod| pod.ip).collect()));
        }
    }
    records
}

fn behind<'a>(service: &Service, pods: &'a [Member]) -> impl Iterator<Item = &'a Member> {
    pods.iter().filter(|pod| service.selects(&pod.labels))
}

/// A server, and what it says.
pub(crate) struct Dns {
    server: DnsServer,
    published: Records,
}

impl Dns {
    pub(crate) async fn start(ip: Ipv4Addr) -> io::Result<Dns> {
        let server = DnsServer::start(SocketAddr::new(ip.into(), 53)).await?;
        Ok(Dns { server, published: Records::new() })
    }

    /// From here on it says this and nothing else. What has not changed is not touched.
    pub(crate) async fn publish(&mut self, records: Records) {
        for name in self.published.keys().filter(|name| !records.contains_key(*name)) {
            self.server.remove(name).await;
        }
        for (name, record) in
            records.iter().filter(|(name, record)| self.published.get(*name) != Some(record))
        {
            match record {
                Record::Addresses(ips) => {
                    let ips: Vec<_> = ips.iter().copied().map(IpAddr::V4).collect();
                    self.server.set_addresses(name, TTL_S, &ips).await;
                }
                Record::Services(targets) => {
                    let targets: Vec<_> = targets
                        .iter()
                        .map(|(port, target)| Target { priority: 0, weight: 100, port: *port, target })
                        .collect();
                    self.server.set_services(name, TTL_S, &targets).await;
                }
            }
        }
        self.published = records;
    }
}

#[cfg(test)]
mod tests {
    use super::super::manifest::Port;
    use super::*;

    fn labels(component: &str) -> Labels {
        Labels::from([("component".to_owned(), component.to_owned())])
    }

    fn member(name: &str, last: u8, component: &str, ready: bool) -> Member {
        Member {
            name: name.to_owned(),
            ip: Ipv4Addr::new(10, 10, 0, last),
            labels: labels(component),
            ready,
            named_by: (component == "node").then(|| "nodes".to_owned()),
            ports: BTreeMap::from([("links".to_owned(), 2380)]),
        }
    }

    fn service(name: &str, kind: Kind, component: &str) -> Service {
        let port = Port { name: "gaios-replica".to_owned(), number: 7, target: "links".to_owned() };
        Service {
            name: name.to_owned(),
            kind,
            labels: Labels::new(),
            selector: labels(component),
            annotations: Labels::from([(EXTERNAL_NAME.to_owned(), format!("{name}.example"))]),
            ports: vec![port],
        }
    }

    fn check(records: &Records, expected: &[&str]) {
        let said: Vec<_> = records.iter().map(|(name, record)| format!("{name} {record:?}")).collect();
        assert_eq!(said, expected);
    }

    #[test]
    fn names_lead_where_kubernetes_lets_them_lead() {
        let pods = [
            member("node-1", 1, "node", true),
            member("node-2", 2, "node", false),
            member("gateway-0", 3, "gateway", true),
            member("gateway-1", 4, "gateway", false),
        ];
        let address = Ipv4Addr::new(10, 96, 0, 1);
        let nodes = service("nodes", Kind::Headless { all: true }, "node");
        check(
            &inside(&nodes, "ns.svc", address, &pods),
            &[
                "_gaios-replica._tcp.nodes.ns.svc Services([(2380, \"node-1.nodes.ns.svc\"), (2380, \"node-2.nodes.ns.svc\")])",
                "node-1.nodes.ns.svc Addresses([10.10.0.1])",
                "node-2.nodes.ns.svc Addresses([10.10.0.2])",
                "nodes.ns.svc Addresses([10.10.0.1, 10.10.0.2])",
            ],
        );
        check(
            &outside(&nodes, address, &pods),
            &[
                "node-1.nodes.example Addresses([10.10.0.1])",
                "node-2.nodes.example Addresses([10.10.0.2])",
                "nodes.example Addresses([10.10.0.1, 10.10.0.2])",
            ],
        );
        // Pods without a name of their own are named by their address, and those that are not ready are not.
        check(
            &inside(&service("each", Kind::Headless { all: false }, "gateway"), "ns.svc", address, &pods),
            &[
                "10-10-0-3.each.ns.svc Addresses([10.10.0.3])",
                "_gaios-replica._tcp.each.ns.svc Services([(2380, \"10-10-0-3.each.ns.svc\")])",
                "each.ns.svc Addresses([10.10.0.3])",
            ],
        );
        let one = service("one", Kind::ClusterIp, "gateway");
        check(
            &inside(&one, "ns.svc", address, &pods),
            &[
                "_gaios-replica._tcp.one.ns.svc Services([(7, \"one.ns.svc\")])",
                "one.ns.svc Addresses([10.96.0.1])",
            ],
        );
        check(&outside(&one, address, &pods), &[]);
    }
}
