//! What a node tells operators about itself, on its admin port and to gateways that ask. It is told from what the tasks
//! leave behind, without asking them: a node that is stuck still says so.

use api::gaios::link::v1 as wire;

use crate::node::Health;

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
            gateways: shared.gateways.linked(),
            journal: Some(wire::JournalStatus {
                disk_bytes: journal.disk_bytes,
                segments: journal.segments,
                full: journal.full,
            }),
            rates: shared
                .rates
                .lock()
                .per_second()
                .map(|[commands, queries, syncs, bytes]| wire::NodeRates { commands, queries, syncs, bytes }),
        }
    }
}
