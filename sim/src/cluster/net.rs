//! The network between nodes: each direction of each pair is a link of its own.

use smallvec::SmallVec;

use super::clock::Time;
use super::rng::Rng;

/// Most nodes of a simulated cluster; sets of links are bits of a `u64`.
pub(crate) const NODES_MAX: usize = 8;

/// A set of directed links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Links(u64);

impl Links {
    pub(crate) fn add(&mut self, from: usize, to: usize) {
        self.0 |= 1 << (from * NODES_MAX + to);
    }

    pub(crate) fn contains(self, from: usize, to: usize) -> bool {
        self.0 >> (from * NODES_MAX + to) & 1 == 1
    }

    /// Every link from a node in `from` to a node in `to`, as bits of nodes.
    pub(crate) fn between(from: u32, to: u32) -> Links {
        let mut links = Links::default();
        for a in 0..NODES_MAX {
            for b in 0..NODES_MAX {
                if a != b && from >> a & 1 == 1 && to >> b & 1 == 1 {
                    links.add(a, b);
                }
            }
        }
        links
    }

    pub(crate) fn union(self, other: Links) -> Links {
        Links(self.0 | other.0)
    }
}

/// How links behave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quality {
    pub(crate) loss_ppm: u64,
    pub(crate) duplicate_ppm: u64,
    /// Time that every message takes.
    pub(crate) latency: Time,
    /// Mean of the time that comes on top; different for each message, which reorders them.
    pub(crate) jitter: Time,
}

#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) quality: Quality,
    partitions: Vec<(u64, Links)>,
    blocked: Links,
    clogged_until: [Time; NODES_MAX * NODES_MAX],
    next_partition: u64,
}

impl Net {
    pub(crate) fn new(quality: Quality) -> Net {
        Net {
            quality,
            partitions: Vec::new(),
            blocked: Links::default(),
            clogged_until: [0; NODES_MAX * NODES_MAX],
            next_partition: 0,
        }
    }

    /// Cuts links until [`Net::heal`] is called with the number returned.
    pub(crate) fn cut(&mut self, links: Links) -> u64 {
        self.next_partition += 1;
        self.partitions.push((self.next_partition, links));
        self.blocked = self.blocked.union(links);
        self.next_partition
    }

    pub(crate) fn heal(&mut self, partition: u64) {
        self.partitions.retain(|(id, _)| *id != partition);
        self.blocked = self.partitions.iter().fold(Links::default(), |all, (_, links)| all.union(*links));
    }

    pub(crate) fn heal_all(&mut self, quality: Quality) {
        self.partitions.clear();
        self.blocked = Links::default();
        self.clogged_until = [0; NODES_MAX * NODES_MAX];
        self.quality = quality;
    }

    /// Holds back what is sent on a link.
    pub(crate) fn clog(&mut self, from: usize, to: usize, until: Time) {
        self.clogged_until[from * NODES_MAX + to] = until;
    }

    pub(crate) fn is_open(&self, from: usize, to: usize) -> bool {
        !self.blocked.contains(from, to)
    }

    /// When a message sent now arrives: never, once, or twice.
    pub(crate) fn arrivals(&self, rng: &mut Rng, now: Time, from: usize, to: usize) -> SmallVec<[Time; 2]> {
        let mut times = SmallVec::new();
        if self.blocked.contains(from, to) || rng.chance(self.quality.loss_ppm) {
            return times;
        }
        let start = now.max(self.clogged_until[from * NODES_MAX + to]);
        times.push(start + self.quality.latency + rng.around(self.quality.jitter));
        if rng.chance(self.quality.duplicate_ppm) {
            times.push(start + self.quality.latency + rng.around(self.quality.jitter * 4));
        }
        times
    }
}
