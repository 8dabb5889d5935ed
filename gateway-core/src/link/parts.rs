//! Answers that come in parts, until they are whole.

use std::collections::BTreeMap;

use api::gaios::link::v1::ReplyPart;
use api::gaios::link::{PARTED_BYTES_MAX, PARTED_REPLIES_MAX, REPLY_BYTES_MAX};
use bytes::{Bytes, BytesMut};

/// The node broke a rule about parts, for this reason: nothing that it says can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BrokenParts(pub &'static str);

/// What has come of answers that are not whole, by the ids of their requests.
#[derive(Debug, Default)]
pub(super) struct Parts(BTreeMap<u64, Gathered>);

#[derive(Debug)]
struct Gathered {
    bytes: BytesMut,
    /// Of the whole.
    length: usize,
}

impl Parts {
    /// The next part for a request that is waited for. Returns the answer when it is whole.
    pub(super) fn add(&mut self, id: u64, part: &ReplyPart) -> Result<Option<Bytes>, BrokenParts> {
        if part.reply_bytes > 0 {
            self.begin(id, part.reply_bytes)?;
        }
        let gathered = self.0.get_mut(&id).ok_or(BrokenParts("a part of an answer that was not begun"))?;
        if part.bytes.is_empty() || part.bytes.len() > gathered.length - gathered.bytes.len() {
            return Err(BrokenParts("the parts of an answer are not as long as the whole"));
        }
        gathered.bytes.extend_from_slice(&part.bytes);
        assert!(gathered.bytes.len() <= gathered.length, "no more is kept than was announced");
        if gathered.bytes.len() < gathered.length {
            return Ok(None);
        }
        Ok(self.0.remove(&id).map(|whole| whole.bytes.freeze()))
    }

    fn begin(&mut self, id: u64, length: u64) -> Result<(), BrokenParts> {
        let length = usize::try_from(length).ok().filter(|length| *length <= REPLY_BYTES_MAX);
        let length = length.ok_or(BrokenParts("an answer is too long"))?;
        if self.0.contains_key(&id) {
            return Err(BrokenParts("an answer begins twice"));
        }
        let lengths = || self.0.values().map(|gathered| gathered.length).chain([length]);
        if lengths().count() > PARTED_REPLIES_MAX
            || lengths().sum::<usize>() - lengths().max().unwrap_or(0) > PARTED_BYTES_MAX
        {
            return Err(BrokenParts("too many answers come in parts"));
        }
        // All of it, so that nothing is copied when more comes. The system gives memory as it is written to.
        self.0.insert(id, Gathered { bytes: BytesMut::with_capacity(length), length });
        assert!(self.0.len() <= PARTED_REPLIES_MAX, "what is gathered is bounded");
        Ok(())
    }

    /// Nobody waits for these any more.
    pub(super) fn forget(&mut self, is_waited_for: impl Fn(u64) -> bool) {
        self.0.retain(|id, _| is_waited_for(*id));
    }

    /// Nobody waits for this one any more.
    pub(super) fn forget_one(&mut self, id: u64) {
        self.0.remove(&id);
    }

    /// The bytes that are kept.
    pub(super) fn bytes(&self) -> usize {
        self.0.values().map(|gathered| gathered.bytes.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(reply_bytes: usize, bytes: usize) -> ReplyPart {
        ReplyPart { reply_bytes: reply_bytes as u64, bytes: vec![bytes as u8; bytes].into() }
    }

    #[test]
    fn answers_are_gathered_beside_each_other() {
        let mut parts = Parts::default();
        assert_eq!(parts.add(1, &part(6, 3)), Ok(None));
        assert_eq!(parts.add(2, &part(5, 4)), Ok(None));
        assert_eq!(parts.bytes(), 7);
        assert_eq!(parts.add(1, &part(0, 2)), Ok(None));
        assert_eq!(parts.add(2, &part(0, 1)), Ok(Some(Bytes::from_static(&[4, 4, 4, 4, 1]))));
        assert_eq!(parts.add(1, &part(0, 1)), Ok(Some(Bytes::from_static(&[3, 3, 3, 2, 2, 1]))));
        assert_eq!(parts.add(3, &part(2, 2)), Ok(Some(Bytes::from_static(&[2, 2]))), "one part");
        assert_eq!(parts.bytes(), 0);
    }

    #[test]
    fn a_node_that_breaks_the_rules_is_noticed() {
        let mut parts = Parts::default();
        assert!(parts.add(1, &part(0, 3)).is_err(), "not begun");
        assert!(parts.add(1, &part(2, 3)).is_err(), "longer than the whole");
        assert!(parts.add(2, &part(REPLY_BYTES_MAX + 1, 3)).is_err(), "too long");
        assert!(parts.add(3, &part(2, 0)).is_err(), "empty");
        let mut parts = Parts::default();
        parts.add(1, &part(REPLY_BYTES_MAX, 3)).unwrap();
        assert!(parts.add(1, &part(4, 1)).is_err(), "twice");
        parts.add(2, &part(PARTED_BYTES_MAX, 3)).unwrap();
        assert!(parts.add(3, &part(4, 1)).is_err(), "too many bytes");
        parts.forget(|id| id == 1);
        for id in 3..PARTED_REPLIES_MAX as u64 + 2 {
            parts.add(id, &part(4, 1)).unwrap();
        }
        assert!(parts.add(99, &part(4, 1)).is_err(), "too many");
        parts.forget_one(5);
        parts.add(99, &part(4, 1)).unwrap();
    }
}
