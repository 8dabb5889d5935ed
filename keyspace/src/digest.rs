//! Hashes of the state: of one item, and of a set of items that can be added and taken away one by one.
//!
//! The digest finds replicas that diverged by a fault of ours or of the machine. It is not a defence against somebody
//! who chooses keys to make two states collide.

/// Hashes one item. Equal input gives equal output on every machine and in every version: the digest is compared
/// between replicas and stored in snapshots.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hasher(u64);

// Odd, with bits spread evenly: the fractional parts of the golden ratio and of the square root of 3.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
const MIX: u64 = 0xbb67_ae85_84ca_a73b;

impl Hasher {
    /// `domain` keeps items of different tables apart.
    pub(crate) fn new(domain: u64) -> Hasher {
        Hasher(fold(domain ^ MIX, MULTIPLIER))
    }

    pub(crate) fn u64(self, value: u64) -> Hasher {
        Hasher(fold(self.0 ^ value, MULTIPLIER))
    }

    pub(crate) fn i64(self, value: i64) -> Hasher {
        self.u64(value.cast_unsigned())
    }

    /// Takes in bytes and their number, so that neighbouring fields cannot run into each other.
    pub(crate) fn bytes(self, bytes: &[u8]) -> Hasher {
        let mut state = self.0 ^ fold(bytes.len() as u64 ^ MIX, MULTIPLIER);
        let mut words = bytes.chunks_exact(16);
        for pair in &mut words {
            let (low, high) = pair.split_at(8);
            state = fold(state ^ word(low), MULTIPLIER ^ word(high));
        }
        let rest = words.remainder();
        let (low, high) = rest.split_at(rest.len().min(8));
        Hasher(fold(state ^ word(low), MIX ^ word(high)))
    }

    pub(crate) fn finish(self) -> u64 {
        fold(self.0 ^ MIX, MULTIPLIER)
    }
}

/// The hash of a set, as the sum of its items' hashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SetHash(u64);

impl SetHash {
    pub(crate) fn add(&mut self, item: u64) {
        self.0 = self.0.wrapping_add(item);
    }

    pub(crate) fn remove(&mut self, item: u64) {
        self.0 = self.0.wrapping_sub(item);
    }

    pub(crate) fn value(self) -> u64 {
        self.0
    }
}

/// The two halves of the 128-bit product, folded together.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

/// Up to eight bytes as a number, little end first.
fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_same_on_every_machine() {
        assert_eq!(
            Hasher::new(1).bytes(b"key").i64(-1).finish(),
            Hasher::new(1).bytes(b"key").i64(-1).finish()
        );
        assert_eq!(Hasher::new(7).bytes(b"a key longer than sixteen bytes").u64(5).finish(), GOLDEN);
    }

    // Written down once; a change of it means that old snapshots are refused.
    const GOLDEN: u64 = 9_087_625_661_227_631_132;

    #[test]
    fn neighbours_differ() {
        let hashes = [
            Hasher::new(1).bytes(b"").bytes(b"a").finish(),
            Hasher::new(1).bytes(b"a").bytes(b"").finish(),
            Hasher::new(1).bytes(b"a\0").bytes(b"").finish(),
            Hasher::new(1).bytes(b"").bytes(b"").finish(),
            Hasher::new(2).bytes(b"").bytes(b"a").finish(),
            Hasher::new(1).bytes(&[0; 16]).finish(),
            Hasher::new(1).bytes(&[0; 17]).finish(),
            Hasher::new(1).bytes(&[0; 32]).finish(),
        ];
        for (i, a) in hashes.iter().enumerate() {
            for b in &hashes[i + 1..] {
                assert_ne!(a, b);
            }
        }
    }

    #[test]
    fn a_set_forgets_what_is_taken_away() {
        let mut set = SetHash::default();
        let before = set.value();
        set.add(5);
        set.add(7);
        set.remove(5);
        set.remove(7);
        assert_eq!(set.value(), before);
    }
}
