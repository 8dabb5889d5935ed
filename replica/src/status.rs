//! What a node tells operators about itself, on its admin port and to gateways that ask. It is told from what the tasks
//! leave behind, without asking them: a node that is stuck still says so.

use std::collections::BTreeMap;

use api::gaios::link::v1 as wire;
use parking_lot::Mutex;

use crate::node::Health;

/// Gateways that a node tells of. A gateway has few links, and a region few gateways.
const GATEWAYS_TOLD_MAX: usize = 1000;

/// The gateways with a link to this node, by name.
#[derive(Debug, Default)]
pub(crate) struct LinkedGateways(Mutex<BTreeMap<String, u32>>);

impl LinkedGateways {
    /// Counts a link for as long as the result lives.
    pub(crate) fn link(&self, name: &str) -> LinkedGateway<'_> {
        *self.0.lock().entry(name.to_owned()).or_default() += 1;
        LinkedGateway { all: self, name: name.to_owned() }
    }

    fn told(&self) -> Vec<wire::LinkedGateway> {
        let all = self.0.lock();
        let told = all.iter().take(GATEWAYS_TOLD_MAX);
        told.map(|(name, links)| wire::LinkedGateway { name: name.clone(), links: *links }).collect()
    }
}

/// See [`LinkedGateways::link`].
#[derive(Debug)]
pub(crate) struct LinkedGateway<'a> {
    all: &'a LinkedGateways,
    name: String,
}

impl Drop for LinkedGateway<'_> {
    fn drop(&mut self) {
        let mut all = self.all.0.lock();
        if let Some(links) = all.get_mut(&self.name) {
            *links -= 1;
            if *links == 0 {
                all.remove(&self.name);
            }
        }
    }
}

impl Health {
    /// What the node knows of itself.
    #[must_use]
    pub fn status(&self) -> wire::NodeStatus {
        let shared = &self.shared;
        let journal = shared.journal.stats().journal;
        wire::NodeStatus {
            node: shared.id.0,
            name: shared.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: u64::try_from(shared.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            not_ready: self.check().err().map(String::from).unwrap_or_default(),
            replicas: shared.groups().filter_map(|group| *group.told.lock()).collect(),
            peers: shared
                .peers
                .values()
                .map(|peer| wire::PeerStatus {
                    node: peer.id.0,
                    address: peer.address.clone(),
                    linked: peer.is_linked(),
                })
                .collect(),
            gateways: shared.gateways.told(),
            journal: Some(wire::JournalStatus {
                disk_bytes: journal.disk_bytes,
                segments: journal.segments,
                full: journal.full,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_is_told_of_while_it_has_a_link() {
        let gateways = LinkedGateways::default();
        let first = gateways.link("a");
        let second = gateways.link("a");
        drop(first);
        assert_eq!(gateways.told(), [wire::LinkedGateway { name: "a".to_owned(), links: 1 }]);
        drop(second);
        assert!(gateways.told().is_empty());
    }
}
