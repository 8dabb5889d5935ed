//! Who lives where, and who is reached directly: who can be a relay, and by what a second address of a node that is
//! reached is told.

use std::collections::BTreeMap;

use crate::route::NodeId;

/// Something that is dialled. One that is dialled anew is another, also at the same address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Which one.
    pub id: u64,
    /// Where.
    pub address: String,
}

/// How a node is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// At its own address.
    Direct,
    /// By another node, which passes the connection on.
    Relay,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Ways {
    /// The node at an address, as it said itself, or as the shard map says.
    residents: BTreeMap<String, NodeId>,
    /// Every direct link that is up.
    direct: Vec<Direct>,
    /// Links by a relay that are up.
    relayed: usize,
    /// Direct links that ever came up.
    direct_ups: u64,
    targets: u64,
}

#[derive(Debug)]
struct Direct {
    target: Target,
    node: NodeId,
    /// Some name leads there.
    is_wanted: bool,
}

/// A node that passes a connection on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relay {
    /// To this node.
    pub to: NodeId,
    /// Where the relay is reached.
    pub address: String,
}

impl Ways {
    /// Another target.
    pub fn target(&mut self, address: impl Into<String>) -> Target {
        self.targets += 1;
        Target { id: self.targets, address: address.into() }
    }

    /// `node` lives at this address, as the shard map says.
    pub fn learn(&mut self, address: &str, node: NodeId) {
        self.residents.insert(address.to_owned(), node);
    }

    /// No name leads to the target any more.
    pub fn handle_unwanted(&mut self, target: &Target) {
        self.residents.remove(&target.address);
        for up in self.direct.iter_mut().filter(|up| up.target == *target) {
            up.is_wanted = false;
        }
    }

    /// A link is up. Returns whether it is of use: a node that is reached directly by another address needs no second one, as
    /// long as that address is wanted.
    pub fn handle_up(&mut self, target: &Target, node: NodeId, way: Way, is_wanted: bool) -> bool {
        match way {
            Way::Direct => {
                self.residents.insert(target.address.clone(), node);
                if self.is_elsewhere(target, node) {
                    return false;
                }
                self.direct.push(Direct { target: target.clone(), node, is_wanted });
                self.direct_ups += 1;
                assert!(self.direct_ups >= self.direct.len() as u64, "whoever is up has come up");
            }
            Way::Relay => self.relayed += 1,
        }
        true
    }

    /// A link that was of use is gone.
    pub fn handle_down(&mut self, target: &Target, node: NodeId, way: Way) {
        match way {
            Way::Direct => {
                let gone = self.direct.iter().position(|up| up.target == *target && up.node == node);
                if let Some(index) = gone {
                    self.direct.swap_remove(index);
                }
            }
            Way::Relay => {
                debug_assert!(self.relayed > 0, "it was up");
                self.relayed -= 1;
            }
        }
    }

    /// Whether a direct link to the target is up, or its node is reached directly by another address.
    pub fn is_reached(&self, target: &Target) -> bool {
        self.direct.iter().any(|up| up.target == *target) || self.is_spare(target)
    }

    /// Whether a node is reached directly, by whatever address.
    pub fn is_direct(&self, node: NodeId) -> bool {
        self.direct.iter().any(|up| up.node == node)
    }

    /// Whether `node` is reached directly by another target than this one, which will stay.
    pub fn is_elsewhere(&self, target: &Target, node: NodeId) -> bool {
        self.direct.iter().any(|up| up.node == node && up.target != *target && up.is_wanted)
    }

    /// Whether the target need not be dialled: its node is reached by another address, as far as is known.
    pub fn is_spare(&self, target: &Target) -> bool {
        self.residents.get(&target.address).is_some_and(|node| self.is_elsewhere(target, *node))
    }

    /// A relay to the node at `address`, by a random number, if it is not reached directly and another is.
    pub fn relay(&self, address: &str, random: u32) -> Option<Relay> {
        let node = *self.residents.get(address)?;
        if self.is_direct(node) {
            return None;
        }
        let relay = self.direct.get(random as usize % self.direct.len().max(1))?;
        assert_ne!(relay.node, node, "nobody is reached by way of itself");
        Some(Relay { to: node, address: relay.target.address.clone() })
    }

    /// How many direct links ever came up: each may lead to somebody.
    pub fn direct_ups(&self) -> u64 {
        self.direct_ups
    }

    /// Links that are up, direct and by a relay.
    pub fn count(&self) -> (usize, usize) {
        (self.direct.len(), self.relayed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_is_another_node_for_one_that_is_not_reached_directly() {
        let mut ways = Ways::default();
        let [a1, a2, b, c, e] = ["a:1", "a:2", "b:1", "c:1", "e:1"].map(|address| ways.target(address));
        ways.learn("a:1", NodeId(1));
        ways.learn("a:2", NodeId(1));
        assert!(ways.handle_up(&b, NodeId(2), Way::Direct, true));
        let by = |ways: &Ways, address: &str| -> Vec<_> {
            (0..9).filter_map(|random| ways.relay(address, random)).map(|relay| relay.address).collect()
        };
        assert_eq!(by(&ways, "a:1"), ["b:1"; 9]);
        assert!(by(&ways, "b:1").is_empty(), "it is there already");
        assert!(by(&ways, "c:1").is_empty(), "nobody knows who lives there");
        ways.handle_up(&c, NodeId(3), Way::Direct, true);
        for other in ["b:1", "c:1"] {
            assert!(by(&ways, "a:1").iter().any(|by| by == other));
        }
        ways.handle_up(&e, NodeId(5), Way::Relay, true);
        assert!(by(&ways, "a:1").iter().all(|by| by != "e:1"), "a relay is reached directly");
        assert_eq!(ways.count(), (2, 1));

        // By another address.
        assert!(ways.handle_up(&a2, NodeId(1), Way::Direct, true) && ways.is_direct(NodeId(1)));
        assert!(by(&ways, "a:1").is_empty());
        ways.handle_down(&a2, NodeId(7), Way::Direct);
        assert!(by(&ways, "a:1").is_empty(), "that was another link");
        ways.handle_down(&a2, NodeId(1), Way::Direct);
        assert_eq!(by(&ways, "a:1").len(), 9);
        ways.handle_down(&b, NodeId(2), Way::Direct);
        ways.handle_down(&c, NodeId(3), Way::Direct);
        ways.handle_down(&e, NodeId(5), Way::Relay);
        assert!(by(&ways, "a:1").is_empty());
        assert_eq!(ways.count(), (0, 0));
        assert!(!ways.is_reached(&a1));
    }

    #[test]
    fn of_two_addresses_of_a_node_one_is_spare() {
        let mut ways = Ways::default();
        let (one, other) = (ways.target("a:1"), ways.target("a:2"));
        assert!(!ways.is_spare(&other), "nobody knows who lives there");
        assert!(ways.handle_up(&one, NodeId(1), Way::Direct, true));
        assert!(ways.handle_up(&one, NodeId(1), Way::Direct, true), "links of one address share the work");
        assert!(!ways.handle_up(&other, NodeId(1), Way::Direct, true));
        assert!(ways.is_reached(&other) && ways.is_spare(&other), "by the other address");
        ways.handle_down(&one, NodeId(1), Way::Direct);
        assert!(ways.is_spare(&other));
        ways.handle_down(&one, NodeId(1), Way::Direct);
        assert!(!ways.is_spare(&other));
        assert!(ways.handle_up(&other, NodeId(1), Way::Direct, true));
        assert!(!ways.handle_up(&one, NodeId(1), Way::Direct, true));
        // Its node is another one today.
        ways.learn("a:1", NodeId(2));
        assert!(!ways.is_spare(&one));
        assert!(ways.handle_up(&one, NodeId(2), Way::Direct, true));
    }

    #[test]
    fn an_address_that_no_name_leads_to_is_no_reason_not_to_use_another() {
        let mut ways = Ways::default();
        let (old, new, newer) = (ways.target("a:1"), ways.target("a:2"), ways.target("a:1"));
        assert!(ways.handle_up(&old, NodeId(1), Way::Direct, true));
        ways.handle_unwanted(&old);
        assert!(!ways.is_elsewhere(&old, NodeId(1)), "there is no other yet");
        assert!(ways.handle_up(&new, NodeId(1), Way::Direct, true));
        assert!(ways.is_elsewhere(&old, NodeId(1)));
        assert!(
            !ways.handle_up(&newer, NodeId(1), Way::Direct, true),
            "the same address, and another target"
        );
    }
}
