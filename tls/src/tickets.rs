//! Session tickets: what a client brings along to go on with an earlier session, at whichever gateway of the region.
//!
//! A gateway keeps nothing of a session; all of it is in the ticket, sealed with a key of the ring. The first key of the
//! ring seals, all of them open. Which clients are let in is sealed in, too: of each key of the ring one is derived for
//! the CAs and rules of the day, so that a ticket is worth nothing where its client would not have got it.
//!
//! A ticket is: the name of its key (16 bytes), a nonce (12), and, sealed, the time of its making (8) and the session.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf;
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::server::ProducesTickets;
use thiserror::Error;

use crate::files::Fingerprint;

/// How long a ticket is of use.
pub(crate) const LIFETIME: Duration = Duration::from_hours(12);
/// A key that no file gives is replaced after this time. Its last tickets are of use for a lifetime more.
pub(crate) const ROTATE_AFTER: Duration = Duration::from_hours(12);

/// Keys of a ring, at most: a key a day for two weeks.
const KEYS_MAX: usize = 16;
const KEY_BYTES: usize = 32;
const NAME_BYTES: usize = 16;
/// Longer ones are none of ours: a session is the client's certificates and some hundred bytes.
const TICKET_BYTES_MAX: usize = 32 << 10;

/// The keys of tickets, newest first.
///
/// Their nonces are random, so a key is good for 2^32 tickets (one collision in 2^32 such keys): 50,000 a second for a day.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyRing(Vec<[u8; KEY_BYTES]>);

/// Why a text is no ring of keys.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum KeyRingError {
    /// A line is no key.
    #[error("has no key in line {0}: a key is 64 hexadecimal digits in a line of its own")]
    Line(usize),
    /// There are none.
    #[error("has no key: a key is 64 hexadecimal digits in a line of its own")]
    Empty,
    /// There are too many.
    #[error("has more than {KEYS_MAX} keys")]
    TooMany,
    /// One stands there twice.
    #[error("has the key of line {0} a second time")]
    Repeated(usize),
}

impl KeyRing {
    /// A ring of one new key.
    ///
    /// # Panics
    /// The kernel has no randomness.
    #[must_use]
    pub fn random() -> KeyRing {
        KeyRing(vec![new_key()])
    }

    /// Reads a ring: a key in each line, 64 hexadecimal digits, newest first. Empty lines and those after `#` say nothing.
    ///
    /// # Errors
    /// What is wrong with it, without the keys.
    pub fn parse(text: &str) -> Result<KeyRing, KeyRingError> {
        let mut keys = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = key(line).ok_or(KeyRingError::Line(number))?;
            if keys.contains(&key) {
                return Err(KeyRingError::Repeated(number));
            }
            keys.push(key);
            if keys.len() > KEYS_MAX {
                return Err(KeyRingError::TooMany);
            }
        }
        if keys.is_empty() {
            return Err(KeyRingError::Empty);
        }
        Ok(KeyRing(keys))
    }

    /// The ring with a new key before all others, of which the newest stay: `keep` in all, at least two.
    ///
    /// # Panics
    /// The kernel has no randomness.
    #[must_use]
    pub fn rotated(&self, keep: usize) -> KeyRing {
        let older = keep.clamp(2, KEYS_MAX) - 1;
        KeyRing(std::iter::once(new_key()).chain(self.0.iter().copied().take(older)).collect())
    }

    /// As [`KeyRing::parse`] reads it.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text =
            String::from("# Keys of session tickets, newest first: the first seals, all of them open.\n");
        for key in &self.0 {
            text.extend(key.iter().map(|byte| format!("{byte:02x}")));
            text.push('\n');
        }
        text
    }

    /// How many keys it has.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a ring is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// Never shows the keys.
impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyRing({} keys)", self.0.len())
    }
}

fn new_key() -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    SystemRandom::new().fill(&mut key).expect("the kernel gives randomness once it is up");
    key
}

fn key(digits: &str) -> Option<[u8; KEY_BYTES]> {
    let digits: &[u8; 2 * KEY_BYTES] = digits.as_bytes().try_into().ok()?;
    let mut key = [0; KEY_BYTES];
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()?;
    }
    Some(key)
}

/// Seals and opens tickets for one set of rules.
pub(crate) struct Tickets(Vec<Sealer>);

struct Sealer {
    name: [u8; NAME_BYTES],
    key: LessSafeKey,
}

impl Tickets {
    /// With the keys of `ring`, for clients that were let in by the rules with this fingerprint.
    pub(crate) fn new(ring: &KeyRing, rules: &Fingerprint) -> Tickets {
        Tickets(ring.0.iter().map(|key| Sealer::new(key, rules)).collect())
    }

    fn seal(&self, session: &[u8], now: SystemTime) -> Option<Vec<u8>> {
        let sealer = self.0.first()?;
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).ok()?;
        let mut sealed =
            Vec::with_capacity(NAME_BYTES + NONCE_LEN + 8 + session.len() + AES_256_GCM.tag_len());
        sealed.extend_from_slice(&seconds(now).to_be_bytes());
        sealed.extend_from_slice(session);
        let nonce_value = Nonce::assume_unique_for_key(nonce);
        sealer.key.seal_in_place_append_tag(nonce_value, Aad::from(sealer.name), &mut sealed).ok()?;
        let ticket = [&sealer.name[..], &nonce[..], &sealed[..]].concat();
        (ticket.len() <= TICKET_BYTES_MAX).then_some(ticket)
    }

    fn open(&self, ticket: &[u8], now: SystemTime) -> Option<Vec<u8>> {
        if ticket.len() > TICKET_BYTES_MAX {
            return None;
        }
        let (name, rest) = ticket.split_first_chunk::<NAME_BYTES>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        // Names are no secret.
        let sealer = self.0.iter().find(|sealer| sealer.name == *name)?;
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = sealer.key.open_in_place(nonce, Aad::from(*name), &mut sealed).ok()?;
        let (made, session) = opened.split_first_chunk::<8>()?;
        // A clock that is behind the one that made it is no reason to refuse it.
        let age = seconds(now).saturating_sub(u64::from_be_bytes(*made));
        (age <= LIFETIME.as_secs()).then(|| session.to_vec())
    }
}

impl Sealer {
    fn new(key: &[u8; KEY_BYTES], rules: &Fingerprint) -> Sealer {
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, rules).extract(key);
        let (mut name, mut sealing) = ([0; NAME_BYTES], [0; KEY_BYTES]);
        derive(&secret, b"gaios ticket name", &mut name);
        derive(&secret, b"gaios ticket key", &mut sealing);
        let sealing = UnboundKey::new(&AES_256_GCM, &sealing).expect("AES-256 takes 32 bytes");
        Sealer { name, key: LessSafeKey::new(sealing) }
    }
}

fn derive(secret: &hkdf::Prk, what: &[u8], into: &mut [u8]) {
    struct Length(usize);
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    let info = [what];
    let derived = secret.expand(&info, Length(into.len())).and_then(|derived| derived.fill(into));
    derived.expect("32 bytes are fewer than HKDF can give");
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(LIFETIME.as_secs()).expect("some hours")
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.seal(plain, SystemTime::now())
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.open(cipher, SystemTime::now())
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tickets({} keys)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Fingerprint = [7; 32];

    #[test]
    fn a_ring_is_read_as_it_is_written_and_mistakes_are_told() {
        let ring = KeyRing::random().rotated(3).rotated(3).rotated(3);
        assert_eq!(ring.len(), 3);
        assert_eq!(KeyRing::parse(&ring.to_text()), Ok(ring.clone()));
        assert!(!format!("{ring:?}").contains(&ring.to_text()[80..100]));
        let key = "a1".repeat(32);
        let check =
            |text: &str, expected: KeyRingError| assert_eq!(KeyRing::parse(text), Err(expected), "{text}");
        check("", KeyRingError::Empty);
        check("# nothing\n\n", KeyRingError::Empty);
        check(&format!("# one\n{key}\nsecret"), KeyRingError::Line(3));
        check(&format!("{key}0"), KeyRingError::Line(1));
        check(&"+1".repeat(32), KeyRingError::Line(1));
        check(&"é".repeat(32), KeyRingError::Line(1));
        check(&format!("{key}\n{key}\n"), KeyRingError::Repeated(2));
        let many: String = (0..17).map(|n| format!("{n:064x}\n")).collect();
        check(&many, KeyRingError::TooMany);
    }

    #[test]
    fn a_ticket_is_opened_with_the_same_ring_and_rules_only() {
        let now = SystemTime::now();
        let ring = KeyRing::random();
        let tickets = Tickets::new(&ring, &RULES);
        let ticket = tickets.seal(b"session", now).expect("sealed");
        let opened = |tickets: &Tickets, at| tickets.open(&ticket, at);
        assert_eq!(opened(&Tickets::new(&ring, &RULES), now).as_deref(), Some(&b"session"[..]));
        assert_eq!(opened(&Tickets::new(&KeyRing::random(), &RULES), now), None);
        assert_eq!(opened(&Tickets::new(&ring, &[8; 32]), now), None, "other clients are let in now");

        let rotated = ring.rotated(2);
        assert!(opened(&Tickets::new(&rotated, &RULES), now).is_some());
        assert_eq!(opened(&Tickets::new(&rotated.rotated(2), &RULES), now), None);
        assert_ne!(Tickets::new(&rotated, &RULES).seal(b"session", now).expect("sealed")[..16], ticket[..16]);

        assert!(opened(&tickets, now + LIFETIME).is_some());
        assert_eq!(opened(&tickets, now + LIFETIME + Duration::from_secs(2)), None, "it is too old");
        assert!(opened(&tickets, now - Duration::from_secs(60)).is_some(), "clocks differ");
        for index in 0..ticket.len() {
            let mut forged = ticket.clone();
            forged[index] ^= 1;
            assert_eq!(tickets.open(&forged, now), None, "byte {index}");
            assert_eq!(tickets.open(&ticket[..index], now), None, "the first {index} bytes");
        }
        assert_eq!(tickets.seal(&[0; TICKET_BYTES_MAX], now), None);
    }
}
