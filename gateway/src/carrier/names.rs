//! Follows where addresses lead: those of the configuration, and those that the shard map knows of nodes. Each is resolved
//! when its time to live is over, and before, while a node that should be there is not reached.

use std::collections::BTreeMap;
use std::sync::Arc;

use discovery::{Address, Trust};
use gateway_core::NodeId;
use parking_lot::Mutex;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::Shared;

/// The addresses that are followed.
#[derive(Debug, Default)]
pub(super) struct Names(Mutex<BTreeMap<Address, Followed>>);

#[derive(Debug)]
struct Followed {
    /// Written in the configuration, so it stays.
    configured: bool,
    /// Who lives there, by the shard map.
    node: Option<NodeId>,
    left: CancellationToken,
}

impl Shared {
    /// Follows an address of the configuration.
    pub(super) fn follow_configured(self: &Arc<Self>, address: &str) {
        match Address::parse(address) {
            Ok(address) => self.follow_address(address, true, None),
            Err(error) => error!(%error, "an address of the configuration is not used"),
        }
    }

    /// Follows the addresses of the shard map, and those of an older one no more.
    pub(super) fn follow_map<'a>(self: &Arc<Self>, nodes: impl Iterator<Item = (NodeId, &'a str)>) {
        let mut mapped = BTreeMap::new();
        for (node, address) in nodes {
            match Address::parse(address) {
                Ok(address) => drop(mapped.insert(address, node)),
                Err(error) => error!(node = node.0, %error, "an address of the shard map is not used"),
            }
        }
        self.names.0.lock().retain(|address, followed| {
            let stays = followed.configured || mapped.contains_key(address);
            if !stays {
                followed.left.cancel();
            }
            stays
        });
        for (address, node) in mapped {
            self.follow_address(address, false, Some(node));
        }
    }

    fn follow_address(self: &Arc<Self>, address: Address, configured: bool, node: Option<NodeId>) {
        let left = {
            let mut names = self.names.0.lock();
            if let Some(followed) = names.get_mut(&address) {
                followed.configured |= configured;
                followed.node = node.or(followed.node);
                None
            } else {
                let left = CancellationToken::new();
                names.insert(address.clone(), Followed { configured, node, left: left.clone() });
                Some(left)
            }
        };
        if let Address::Literal(literal) = &address {
            self.links.set(&address, &[*literal], node);
        }
        if let Some(left) = left {
            tokio::spawn(follow(Arc::clone(self), address, left));
        }
    }

    /// Unless it is followed anew by now.
    fn let_go(&self, address: &Address) {
        let names = self.names.0.lock();
        if !names.contains_key(address) {
            self.links.set(address, &[], None);
        }
    }

    fn resident(&self, address: &Address) -> Option<NodeId> {
        self.names.0.lock().get(address).and_then(|followed| followed.node)
    }
}

/// Until the carrier stops, or nobody wants the address any more.
async fn follow(shared: Arc<Shared>, address: Address, left: CancellationToken) {
    let following = async {
        let mut changes = shared.links.changes();
        loop {
            changes.mark_unchanged();
            let trust = trust(&shared, &address);
            let found = shared.discovery.lookup(&address, trust).await;
            // What is known does not get less by a failure, so there is nothing only before the first answer.
            if !found.addresses.is_empty() {
                shared.links.set(&address, &found.addresses, shared.resident(&address));
            }
            if self::trust(&shared, &address) != trust {
                continue;
            }
            let due = async {
                match found.until {
                    Some(until) => sleep_until(until.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                // Ends with the links, and they with the carrier.
                _ = changes.changed() => {}
            }
        }
    };
    tokio::select! {
        () = shared.stop.cancelled() => {}
        () = left.cancelled() => shared.let_go(&address),
        () = following => {}
    }
}

fn trust(shared: &Shared, address: &Address) -> Trust {
    if shared.links.are_reached(address) { Trust::Trusted } else { Trust::Doubted }
}
