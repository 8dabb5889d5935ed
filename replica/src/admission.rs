//! Who may come in: how many connections may be there that have not proved who they are, and which of them goes when there
//! is no room for another.
//!
//! Whoever arrives is *unproven* until a good hello makes a peer or a gateway of it. There is room for so many unproven ones
//! in all, and for fewer from one source. Another one always gets in: for it the oldest goes of the source that has most of
//! them, so a flood displaces itself, and a peer that arrives in the middle of it has time for its hello. Gateways that were
//! let in stay; when there are too many, further ones are refused. Peers are never refused: each has room of its own, in which
//! its newest connections displace its oldest.
//!
//! A connection that was told to go holds its descriptor until its task has ended. While many of them are on their way,
//! nobody is accepted, and the kernel's queue holds who comes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use consensus_core::NodeId;

/// Connections that may be there at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// That have not proved who they are.
    pub(crate) unproven: usize,
    /// The same, from one source.
    pub(crate) unproven_per_source: usize,
    pub(crate) gateways: usize,
    pub(crate) per_peer: usize,
    /// Connections of gateways that may be passed on besides: each takes a second descriptor.
    pub(crate) relays: usize,
}

/// Descriptors for all that is no connection of the node's port: two for each of a handful of journal segments, two copies of
/// the superblock, the admin port, the runtime's own, and some to spare.
const RESERVED: usize = 64;
/// Of each group: a snapshot that is written, one that is read.
const RESERVED_PER_GROUP: usize = 4;
/// Of each peer: connections that this node dials, for its link, for questions and snapshots.
const DIALLED_PER_PEER: usize = 4;
/// Connections told to go that may still hold their descriptors.
const LEAVING_MAX: usize = 16;
/// No more than this is of use, however many descriptors there are: a handshake takes milliseconds.
const UNPROVEN_MAX: usize = 512;
const RELAYS_MAX: usize = 256;
/// With less, a cluster could not be served at all.
const LEAST: usize = 8;

impl Limits {
    /// What a process with so many descriptors can let in and still open every file it needs.
    pub(crate) fn new(descriptors: usize, peers: usize, groups: usize) -> Limits {
        let per_peer = groups + 4;
        let reserved =
            RESERVED + groups * RESERVED_PER_GROUP + peers * (per_peer + DIALLED_PER_PEER) + LEAVING_MAX;
        let left = descriptors.saturating_sub(reserved);
        let unproven = (left / 4).clamp(LEAST, UNPROVEN_MAX);
        let relays = (left / 8).min(RELAYS_MAX);
        Limits {
            unproven,
            unproven_per_source: unproven.div_ceil(2),
            gateways: left.saturating_sub(unproven + relays).max(LEAST),
            per_peer,
            relays,
        }
    }
}

/// A connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ticket(u64);

/// What a connection has proved to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Gateway,
    Peer(NodeId),
}

/// Somebody came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Arrival {
    pub(crate) ticket: Ticket,
    /// Who goes for it.
    pub(crate) evicted: Option<Ticket>,
}

/// There is no room for another gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooMany;

/// How many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    pub(crate) unproven: usize,
    pub(crate) gateways: usize,
    pub(crate) peers: usize,
    /// Told to go, and not gone yet.
    pub(crate) leaving: usize,
}

/// Where connections come from: an address, or a network of IPv6 as one machine commonly has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source(IpAddr);

impl Source {
    /// The source of connections from `address`.
    pub fn of(address: IpAddr) -> Source {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                Source(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into())
            }
            IpAddr::V4(address) => Source(address.into()),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum State {
    Unproven(Source),
    Proven(Role),
    Leaving,
}

/// All connections to the node's port.
#[derive(Debug)]
pub(crate) struct Admission {
    limits: Limits,
    next: u64,
    states: BTreeMap<Ticket, State>,
    unproven: BTreeMap<Source, BTreeSet<Ticket>>,
    peers: BTreeMap<NodeId, BTreeSet<Ticket>>,
    counts: Counts,
}

impl Admission {
    pub(crate) fn new(limits: Limits) -> Admission {
        Admission {
            limits,
            next: 0,
            states: BTreeMap::new(),
            unproven: BTreeMap::new(),
            peers: BTreeMap::new(),
            counts: Counts::default(),
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether nobody is to be accepted until some of those that were told to go have gone.
    pub(crate) fn is_crowded(&self) -> bool {
        self.counts.leaving >= LEAVING_MAX
    }

    /// A connection has come in.
    pub(crate) fn arrive(&mut self, address: IpAddr) -> Arrival {
        let source = Source::of(address);
        let here = self.unproven.get(&source).map_or(0, BTreeSet::len);
        let crowding = if here >= self.limits.unproven_per_source {
            Some(source)
        } else if self.counts.unproven >= self.limits.unproven {
            self.unproven.iter().max_by_key(|(_, tickets)| tickets.len()).map(|(source, _)| *source)
        } else {
            None
        };
        let evicted = crowding.and_then(|source| self.unproven.get(&source)?.first().copied());
        if let Some(evicted) = evicted {
            self.set(evicted, State::Leaving);
        }
        let ticket = Ticket(self.next);
        self.next += 1;
        self.set(ticket, State::Unproven(source));
        Arrival { ticket, evicted }
    }

    /// A connection has said a good hello. Returns who goes for it.
    pub(crate) fn prove(&mut self, ticket: Ticket, role: Role) -> Result<Option<Ticket>, TooMany> {
        let evicted = match role {
            Role::Gateway if self.counts.gateways >= self.limits.gateways => return Err(TooMany),
            Role::Gateway => None,
            Role::Peer(peer) => {
                let tickets = self.peers.get(&peer);
                tickets.filter(|tickets| tickets.len() >= self.limits.per_peer).and_then(BTreeSet::first)
            }
        };
        let evicted = evicted.copied();
        // Who was told to go meanwhile goes.
        if let Some(State::Unproven(_)) = self.states.get(&ticket) {
            self.set(ticket, State::Proven(role));
        }
        if let Some(evicted) = evicted {
            self.set(evicted, State::Leaving);
        }
        Ok(evicted)
    }

    /// A connection has ended.
    pub(crate) fn leave(&mut self, ticket: Ticket) {
        self.take(ticket);
    }

    fn set(&mut self, ticket: Ticket, state: State) {
        self.take(ticket);
        match state {
            State::Unproven(source) => {
                self.unproven.entry(source).or_default().insert(ticket);
                self.counts.unproven += 1;
            }
            State::Proven(Role::Gateway) => self.counts.gateways += 1,
            State::Proven(Role::Peer(peer)) => {
                self.peers.entry(peer).or_default().insert(ticket);
                self.counts.peers += 1;
            }
            State::Leaving => self.counts.leaving += 1,
        }
        self.states.insert(ticket, state);
    }

    fn take(&mut self, ticket: Ticket) {
        match self.states.remove(&ticket) {
            Some(State::Unproven(source)) => {
                take_from(&mut self.unproven, source, ticket);
                self.counts.unproven -= 1;
            }
            Some(State::Proven(Role::Gateway)) => self.counts.gateways -= 1,
            Some(State::Proven(Role::Peer(peer))) => {
                take_from(&mut self.peers, peer, ticket);
                self.counts.peers -= 1;
            }
            Some(State::Leaving) => self.counts.leaving -= 1,
            None => {}
        }
    }
}

/// Keeps no empty sets: sources come and go.
fn take_from<K: Ord>(sets: &mut BTreeMap<K, BTreeSet<Ticket>>, key: K, ticket: Ticket) {
    if let Some(set) = sets.get_mut(&key) {
        set.remove(&ticket);
        if set.is_empty() {
            sets.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { unproven: 4, unproven_per_source: 3, gateways: 2, per_peer: 2, relays: 0 };

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn a_flood_displaces_itself_and_nobody_else() {
        let mut admission = Admission::new(LIMITS);
        let first = admission.arrive(ip(1));
        assert_eq!(first.evicted, None);
        let flood: Vec<_> = (0..3).map(|_| admission.arrive(ip(9)).ticket).collect();
        assert_eq!(admission.counts().unproven, 4);
        for oldest in flood {
            assert_eq!(admission.arrive(ip(9)).evicted, Some(oldest), "by its own bound");
        }
        // There is no room in all: the source with most makes it, for anybody.
        let peer = admission.arrive(ip(2));
        assert!(peer.evicted.is_some_and(|evicted| evicted != first.ticket));
        assert_eq!(admission.prove(peer.ticket, Role::Peer(NodeId(2))), Ok(None));
        assert_eq!(admission.counts(), Counts { unproven: 3, gateways: 0, peers: 1, leaving: 4 });
    }

    #[test]
    fn gateways_that_are_in_stay_and_peers_are_never_refused() {
        let mut admission = Admission::new(LIMITS);
        let mut prove = |role| {
            let ticket = admission.arrive(ip(1)).ticket;
            let proved = admission.prove(ticket, role);
            if proved.is_err() {
                admission.leave(ticket);
            }
            proved.map(|evicted| (ticket, evicted))
        };
        let (gateway, _) = prove(Role::Gateway).unwrap();
        prove(Role::Gateway).unwrap();
        assert_eq!(prove(Role::Gateway), Err(TooMany));
        let (oldest, _) = prove(Role::Peer(NodeId(2))).unwrap();
        prove(Role::Peer(NodeId(2))).unwrap();
        assert_eq!(prove(Role::Peer(NodeId(3))).unwrap().1, None);
        assert_eq!(prove(Role::Peer(NodeId(2))).unwrap().1, Some(oldest));
        admission.leave(oldest);
        admission.leave(gateway);
        assert_eq!(admission.counts(), Counts { unproven: 0, gateways: 1, peers: 3, leaving: 0 });
    }

    #[test]
    fn who_was_told_to_go_counts_until_it_is_gone() {
        let mut admission = Admission::new(LIMITS);
        let mut leaving = Vec::new();
        while !admission.is_crowded() {
            leaving.extend(admission.arrive(ip(1)).evicted);
        }
        assert_eq!(leaving.len(), LEAVING_MAX);
        assert_eq!(admission.prove(leaving[0], Role::Gateway), Ok(None));
        assert_eq!(admission.counts().gateways, 0, "too late");
        admission.leave(leaving[0]);
        assert!(!admission.is_crowded());
    }

    #[test]
    fn a_machine_with_a_network_of_addresses_is_one_source() {
        let of = |text: &str| Source::of(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:0:0:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }

    #[test]
    fn descriptors_are_kept_for_files_and_peers() {
        for (descriptors, peers, groups) in [(256, 2, 1), (1024, 2, 4), (65_536, 4, 1), (1 << 20, 2, 1)] {
            let limits = Limits::new(descriptors, peers, groups);
            let all = limits.unproven
                + limits.gateways
                + limits.relays
                + peers * (limits.per_peer + DIALLED_PER_PEER)
                + LEAVING_MAX;
            assert!(all + RESERVED <= descriptors, "{limits:?}");
            assert!(limits.gateways >= descriptors / 8, "{limits:?}");
        }
        assert_eq!(Limits::new(0, 2, 1).gateways, LEAST, "it tries");
    }
}
