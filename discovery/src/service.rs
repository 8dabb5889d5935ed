//! In which order the targets of a service are tried, by RFC 2782: lower priorities first; among equal ones by chance, in
//! proportion to their weights.

use std::net::SocketAddr;

/// A target of a service, with its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) priority: u16,
    pub(crate) weight: u16,
    pub(crate) address: SocketAddr,
}

/// The addresses in the order in which to try them. `random` gives random numbers.
pub(crate) fn order(mut targets: Vec<Target>, mut random: impl FnMut() -> u32) -> Vec<SocketAddr> {
    // Those without weight first, so that they have their small chance, too.
    targets.sort_by_key(|target| (target.priority, target.weight));
    let mut ordered = Vec::with_capacity(targets.len());
    while let Some(first) = targets.first() {
        let equals = targets.iter().take_while(|target| target.priority == first.priority);
        let total: u64 = equals.clone().map(|target| u64::from(target.weight)).sum();
        let drawn = u64::from(random()) % (total + 1);
        let mut sum = 0;
        let place = equals.take_while(|target| {
            sum += u64::from(target.weight);
            sum < drawn
        });
        let place = place.count();
        ordered.push(targets.remove(place).address);
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(priority: u16, weight: u16, last: u8) -> Target {
        Target { priority, weight, address: SocketAddr::from(([127, 0, 0, last], 1)) }
    }

    #[test]
    fn priorities_come_before_weights() {
        let targets = vec![target(20, 100, 4), target(10, 0, 2), target(10, 7, 3), target(5, 0, 1)];
        for random in 0..50 {
            let ordered = order(targets.clone(), || random);
            assert_eq!(ordered.len(), 4);
            assert_eq!((ordered[0], ordered[3]), (target(0, 0, 1).address, target(0, 0, 4).address));
        }
        assert!(order(Vec::new(), || 7).is_empty());
    }

    #[test]
    fn weights_are_shares() {
        let targets = vec![target(1, 1, 1), target(1, 3, 2), target(1, 0, 3)];
        // Every number that can be drawn, equally often: 0 is the one without weight's, 1 the first's, 2 to 4 the second's.
        let first = |random: u32| order(targets.clone(), || random)[0];
        let mut counts = [0; 4];
        for random in 0..5_000 {
            let SocketAddr::V4(address) = first(random) else { panic!("all are IPv4") };
            counts[usize::from(address.ip().octets()[3])] += 1;
        }
        assert_eq!(counts, [0, 1000, 3000, 1000]);
    }

    #[test]
    fn the_heaviest_weights_do_not_overflow() {
        let targets = vec![target(1, u16::MAX, 1); 1000];
        assert_eq!(order(targets, || u32::MAX).len(), 1000);
    }
}
