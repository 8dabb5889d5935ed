//! A large answer, encoded piece by piece as somebody takes it. What is encoded is let go, and what is long is not copied, so
//! that it is never in memory twice.

use std::collections::VecDeque;
use std::fmt;
use std::vec::IntoIter;

use bytes::{Bytes, BytesMut};

use super::{
    VERSION, Writer,
    reply::{
        reply_tag, txn_op_tag, write_delete_range_head, write_key_value, write_outcome, write_put_reply,
        write_range_head, write_txn_head,
    },
    wire::{Length, Sink},
};
use crate::{DeleteRangeReply, KeyValue, Outcome, RangeReply, Reply, Revision, TxnOpReply, TxnReply};

/// What is as long is shared. To copy it costs about as much as to write it by itself.
const SHARED_BYTES_LEAST: usize = 16 << 10;

/// See the module.
pub struct Pieces {
    made: Made,
    /// What is left, the innermost last.
    rest: Vec<Rest>,
}

enum Rest {
    KeyValues(IntoIter<KeyValue>),
    Responses(IntoIter<TxnOpReply>),
    /// Of a transaction that only reads.
    Ranges(IntoIter<LateRange>),
    Entries(Entries),
}

type Entries = Box<dyn Iterator<Item = KeyValue> + Send>;

/// A range's answer whose entries are made one after the other, when they are encoded.
pub(crate) struct LateRange {
    /// Without the entries.
    head: RangeReply,
    entries: Entries,
    count: usize,
    /// Of all entries, encoded.
    bytes: usize,
}

impl LateRange {
    /// So many entries, of so many bytes as [`super::key_value_len`] counts them.
    pub(crate) fn new(
        head: RangeReply,
        entries: impl Iterator<Item = KeyValue> + Send + 'static,
        count: usize,
        bytes: usize,
    ) -> LateRange {
        assert!(head.kvs.is_empty(), "no entry is there yet");
        assert!(count <= bytes, "each entry takes some bytes");
        LateRange { head, entries: Box::new(entries), count, bytes }
    }

    fn write_head<S: Sink>(&self, writer: &mut Writer<'_, S>) {
        write_range_head(writer, &self.head, self.count);
    }
}

/// How many bytes [`super::encode_outcome`] makes of an answer.
pub fn outcome_len(outcome: &Outcome) -> usize {
    let mut length = Length::default();
    write_outcome(&mut Writer::new(&mut length, VERSION), outcome);
    assert!(length.0 > 1, "there is something behind the version");
    length.0
}

impl Pieces {
    /// Nothing is encoded yet but the beginning.
    pub fn new(outcome: Outcome) -> Pieces {
        let mut pieces = Pieces { made: Made::default(), rest: Vec::new() };
        let mut writer = Writer::new(&mut pieces.made, VERSION);
        let tag = outcome.as_ref().map(reply_tag).ok();
        match (outcome, tag) {
            (Ok(Reply::Range(reply)), Some(tag)) => {
                writer.u8(tag);
                pieces.begin_range(reply);
            }
            (Ok(Reply::DeleteRange(reply)), Some(tag)) => {
                writer.u8(tag);
                pieces.begin_delete_range(reply);
            }
            (Ok(Reply::Txn(reply)), Some(tag)) => {
                writer.u8(tag);
                pieces.begin_txn(reply);
            }
            (outcome, _) => write_outcome(&mut writer, &outcome),
        }
        pieces
    }

    /// The same of what was found for a transaction that only reads, or for a range, if that is all; and how long it is. The
    /// entries are not copied out before they are encoded: a reference takes a tenth of the memory.
    pub(crate) fn of_ranges(
        revision: Revision,
        succeeded: Option<bool>,
        mut ranges: Vec<LateRange>,
    ) -> (usize, Pieces) {
        let mut pieces = Pieces { made: Made::default(), rest: Vec::new() };
        let Some(succeeded) = succeeded else {
            let range = ranges.pop().expect("a range has one answer");
            let mut writer = Writer::new(&mut pieces.made, VERSION);
            writer.u8(reply_tag(&Reply::Range(range.head.clone())));
            range.write_head(&mut writer);
            let length = pieces.made.bytes + range.bytes;
            pieces.rest.push(Rest::Entries(range.entries));
            return (length, pieces);
        };
        let head = TxnReply { revision, succeeded, responses: Vec::new() };
        let mut writer = Writer::new(&mut pieces.made, VERSION);
        writer.u8(reply_tag(&Reply::Txn(head.clone())));
        write_txn_head(&mut writer, &head, ranges.len());
        let mut length = Length(pieces.made.bytes);
        for range in &ranges {
            let mut writer = Writer::within(&mut length);
            writer.u8(txn_op_tag(&TxnOpReply::Range(range.head.clone())));
            range.write_head(&mut writer);
            length.0 += range.bytes;
        }
        pieces.rest.push(Rest::Ranges(ranges.into_iter()));
        (length.0, pieces)
    }

    /// The next piece of the encoding, in pieces that follow each other: so many bytes, or all that is left. Nothing when that
    /// was all.
    pub fn take(&mut self, bytes: usize) -> Vec<Bytes> {
        while self.made.bytes < bytes && self.step() {}
        assert!(
            self.made.bytes >= bytes || self.rest.is_empty(),
            "less than is asked for is all that is left"
        );
        self.made.take(bytes)
    }

    /// Encodes the next item; false if there is none.
    fn step(&mut self) -> bool {
        let Some(rest) = self.rest.last_mut() else { return false };
        match rest {
            Rest::KeyValues(kvs) => match kvs.next() {
                Some(kv) => write_key_value(&mut Writer::within(&mut self.made), &kv),
                None => drop(self.rest.pop()),
            },
            Rest::Responses(responses) => match responses.next() {
                Some(response) => self.begin_response(response),
                None => drop(self.rest.pop()),
            },
            Rest::Ranges(ranges) => match ranges.next() {
                Some(range) => {
                    let mut writer = Writer::within(&mut self.made);
                    writer.u8(txn_op_tag(&TxnOpReply::Range(range.head.clone())));
                    range.write_head(&mut writer);
                    self.rest.push(Rest::Entries(range.entries));
                }
                None => drop(self.rest.pop()),
            },
            Rest::Entries(entries) => match entries.next() {
                Some(kv) => write_key_value(&mut Writer::within(&mut self.made), &kv),
                None => drop(self.rest.pop()),
            },
        }
        true
    }

    fn begin_response(&mut self, response: TxnOpReply) {
        let mut writer = Writer::within(&mut self.made);
        writer.u8(txn_op_tag(&response));
        match response {
            TxnOpReply::Range(reply) => self.begin_range(reply),
            TxnOpReply::Put(reply) => write_put_reply(&mut writer, &reply),
            TxnOpReply::DeleteRange(reply) => self.begin_delete_range(reply),
            TxnOpReply::Txn(reply) => self.begin_txn(reply),
        }
    }

    fn begin_range(&mut self, reply: RangeReply) {
        write_range_head(&mut Writer::within(&mut self.made), &reply, reply.kvs.len());
        self.rest.push(Rest::KeyValues(reply.kvs.into_iter()));
    }

    fn begin_delete_range(&mut self, reply: DeleteRangeReply) {
        write_delete_range_head(&mut Writer::within(&mut self.made), &reply);
        self.rest.push(Rest::KeyValues(reply.prev_kvs.into_iter()));
    }

    fn begin_txn(&mut self, reply: TxnReply) {
        write_txn_head(&mut Writer::within(&mut self.made), &reply, reply.responses.len());
        self.rest.push(Rest::Responses(reply.responses.into_iter()));
    }
}

impl fmt::Debug for Pieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pieces").field("made", &self.made.bytes).finish_non_exhaustive()
    }
}

/// What is encoded and not taken yet.
#[derive(Default)]
struct Made {
    whole: VecDeque<Bytes>,
    /// What follows, copied together.
    copied: BytesMut,
    /// Of both.
    bytes: usize,
}

impl Made {
    fn take(&mut self, bytes: usize) -> Vec<Bytes> {
        self.end_copied();
        let mut taken = Vec::new();
        let mut wanted = bytes.min(self.bytes);
        self.bytes -= wanted;
        while wanted > 0
            && let Some(piece) = self.whole.front_mut()
        {
            let part = piece.split_to(wanted.min(piece.len()));
            if piece.is_empty() {
                self.whole.pop_front();
            }
            assert!(!part.is_empty(), "there are no empty pieces");
            wanted -= part.len();
            taken.push(part);
        }
        assert_eq!(wanted, 0, "what is counted is there");
        assert!(self.bytes > 0 || self.whole.is_empty(), "what is there is counted");
        taken
    }

    fn end_copied(&mut self) {
        if !self.copied.is_empty() {
            self.whole.push_back(self.copied.split().freeze());
        }
    }
}

impl Sink for Made {
    fn put(&mut self, bytes: &[u8]) {
        self.copied.extend_from_slice(bytes);
        self.bytes += bytes.len();
    }

    fn put_shared(&mut self, bytes: &Bytes) {
        if bytes.len() < SHARED_BYTES_LEAST {
            return self.put(bytes);
        }
        self.end_copied();
        debug_assert!(self.copied.is_empty(), "what is copied stands before what is shared");
        self.whole.push_back(bytes.clone());
        self.bytes += bytes.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PutReply, encode_outcome};

    fn key_value(value: Vec<u8>) -> KeyValue {
        KeyValue { key: Bytes::from_static(b"key"), value: value.into(), ..KeyValue::default() }
    }

    fn range(lengths: &[usize]) -> RangeReply {
        let kvs = lengths.iter().map(|length| key_value(vec![*length as u8; *length])).collect();
        RangeReply { revision: Revision(300), kvs, more: true, count: 9 }
    }

    fn outcomes() -> Vec<Outcome> {
        let delete = |lengths: &[usize]| {
            let prev_kvs = range(lengths).kvs;
            DeleteRangeReply { revision: Revision(2), deleted: prev_kvs.len() as i64, prev_kvs }
        };
        let put = PutReply { revision: Revision(2), prev_kv: Some(key_value(vec![8; 40_000])) };
        let nested = TxnReply {
            revision: Revision(0),
            succeeded: false,
            responses: vec![TxnOpReply::Range(range(&[])), TxnOpReply::DeleteRange(delete(&[50_000, 2]))],
        };
        let txn = TxnReply {
            revision: Revision(7),
            succeeded: true,
            responses: vec![
                TxnOpReply::Put(put.clone()),
                TxnOpReply::Txn(nested),
                TxnOpReply::Range(range(&[3, 70_000])),
            ],
        };
        vec![
            Ok(Reply::Range(range(&[]))),
            Ok(Reply::Range(range(&[0, 1, 16_383, 16_384, 100_000, 5]))),
            Ok(Reply::DeleteRange(delete(&[1, 2, 3]))),
            Ok(Reply::Put(put)),
            Ok(Reply::Txn(txn)),
            Ok(Reply::Done { revision: Revision(1) }),
            Err(crate::Error::Compacted),
        ]
    }

    #[test]
    fn the_pieces_are_the_encoding() {
        for outcome in outcomes() {
            let mut whole = BytesMut::new();
            encode_outcome(&outcome, &mut whole);
            assert_eq!(outcome_len(&outcome), whole.len());
            for length in [1, 100, 4096, 1 << 20] {
                let mut pieces = Pieces::new(outcome.clone());
                let mut together = BytesMut::new();
                loop {
                    let before = together.len();
                    together.extend(pieces.take(length).into_iter().flatten());
                    let taken = together.len() - before;
                    assert_eq!(taken, length.min(whole.len() - before), "as much as was asked for");
                    if taken == 0 {
                        break;
                    }
                }
                assert_eq!(together, whole);
            }
        }
    }

    #[test]
    fn what_is_long_is_shared_and_little_is_made_ahead() {
        let reply = range(&[1 << 20; 40]);
        let values: Vec<_> = reply.kvs.iter().map(|kv| kv.value.clone()).collect();
        let mut pieces = Pieces::new(Ok(Reply::Range(reply)));
        let mut at = values.iter();
        let mut value = at.next().unwrap();
        loop {
            let taken = pieces.take(256 << 10);
            assert!(pieces.made.bytes <= 1 << 20, "no more than one value");
            if taken.is_empty() {
                break;
            }
            for piece in taken.iter().filter(|piece| piece.len() >= SHARED_BYTES_LEAST) {
                while !value.as_ptr_range().contains(&piece.as_ptr()) {
                    value = at.next().expect("it is part of one of them");
                }
            }
        }
        assert!(at.next().is_none());
    }
}
