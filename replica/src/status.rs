//! What a node tells operators about itself, on its admin port and to gateways that ask. It is told from what the tasks
//! leave behind, without asking them: a node that is stuck still says so.

use std::time::SystemTime;

use api::gaios::link::v1 as wire;
use api::gaios::link::v1::certificate_status::Kind;

use crate::health::Health;

impl Health {
    /// What the node knows of itself.
    #[must_use]
    pub fn status(&self) -> wire::NodeStatus {
        let shared = self.shared();
        let journal = shared.journal.stats().journal;
        wire::NodeStatus {
            node: shared.id.0,
            name: shared.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: u64::try_from(shared.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            not_ready: self.check().err().map(String::from).unwrap_or_default(),
            replicas: shared.groups.all().values().filter_map(|group| *group.told.lock()).collect(),
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
            region: shared.region.clone(),
            zone: shared.zone.clone(),
            certificates: shared.tls.as_ref().map(|tls| certificates(&tls.status())).unwrap_or_default(),
        }
    }
}

fn certificates(status: &tls::Status) -> Vec<wire::CertificateStatus> {
    let of = |kind: Kind, holder: &str, expires: SystemTime| wire::CertificateStatus {
        kind: kind.into(),
        holder: holder.to_owned(),
        expires_unix: expires.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs(),
        refused: status.refused.as_ref().map(ToString::to_string).unwrap_or_default(),
    };
    let own = of(Kind::Own, &status.holder, status.certificate_expires);
    let authority = status.authorities_expire.map(|expires| of(Kind::Authority, "", expires));
    std::iter::once(own).chain(authority).collect()
}
