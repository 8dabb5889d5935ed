//! A range in chunks, as etcd's RangeStream sends it: ten keys first, then so many that a chunk is about as long as a request
//! may be. All are of one revision. Only the last one tells the revision, whether there is more, and how many keys there are.

use keyspace::{PageRequest, RangeReply, RangeRequest, Revision};

use crate::mutant::mutant;

/// Keys of the first chunk.
const FIRST_KEYS: u64 = 10;

/// What is left of a range that is streamed.
#[derive(Debug)]
pub struct RangeStream {
    request: RangeRequest,
    /// As many keys are yet to be sent at most.
    wanted: u64,
    /// Keys of the next chunk.
    keys: u64,
    /// How long a chunk is to be, in bytes.
    bytes: usize,
    /// The latest revision when the first chunk was read.
    revision: Option<Revision>,
    sent: u64,
}

/// What the last message of a stream tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamEnd {
    /// The latest revision when the stream began, whichever it reads.
    pub revision: Revision,
    /// The limit left keys out.
    pub more: bool,
    /// How many keys there are, whatever the limit.
    pub count: i64,
}

impl RangeStream {
    /// Of a request without filters, in the order of keys; its chunks are to have about so many bytes.
    pub fn new(request: RangeRequest, bytes: usize) -> RangeStream {
        let wanted = u64::try_from(request.limit).ok().filter(|limit| *limit > 0).unwrap_or(u64::MAX);
        RangeStream { request, wanted, keys: FIRST_KEYS, bytes, revision: None, sent: 0 }
    }

    /// What is to be read next.
    pub fn page(&self) -> PageRequest {
        let limit = self.keys.min(self.wanted);
        assert!(limit > 0, "who wants nothing more does not ask");
        PageRequest {
            range: self.request.range.clone(),
            revision: self.request.revision,
            limit,
            // etcd has no such bound: where long values follow many short ones, its chunk is as long as it happens to be. This
            // one holds the longest first chunk.
            bytes: (self.bytes as u64).saturating_mul(FIRST_KEYS),
            keys_only: self.request.keys_only,
            counts_rest: limit == self.wanted,
        }
    }

    /// Whether the revision is settled: any replica that has come to it may be asked.
    pub fn is_pinned(&self) -> bool {
        self.revision.is_some()
    }

    /// The page was read, and its keys make up the next message, of so many bytes. Returns what that one tells if it is the last.
    pub fn handle(&mut self, page: &RangeReply, message_bytes: usize) -> Option<StreamEnd> {
        let keys = page.kvs.len() as u64;
        assert!(keys <= self.wanted, "a page has no more keys than were asked for");
        let revision = *self.revision.get_or_insert(page.revision);
        let last = page.kvs.last().filter(|_| page.more && keys < self.wanted);
        let Some(last) = last else {
            let count = i64::try_from(self.sent).unwrap_or(i64::MAX).saturating_add(page.count);
            return Some(StreamEnd { revision, more: page.more, count });
        };
        if self.request.revision <= 0 && !mutant!(ChunksAtNewest) {
            self.request.revision = revision.0;
        }
        self.request.range = self.request.range.behind(&last.key);
        self.sent += keys;
        self.wanted -= keys;
        self.keys = keys_after(keys, message_bytes, self.bytes);
        assert!(self.keys > 0 && self.wanted > 0, "a page that follows may have keys");
        None
    }
}

/// How many keys follow in the next chunk after so many that were so long, if they are to be so long.
fn keys_after(keys: u64, message_bytes: usize, wanted_bytes: usize) -> u64 {
    if message_bytes < wanted_bytes / 2 {
        keys.saturating_mul(2)
    } else if message_bytes > wanted_bytes.saturating_mul(2) {
        (keys / 2).max(1)
    } else {
        keys
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use keyspace::{KeyRange, KeyValue};

    use super::*;

    const WANTED: usize = 3 << 19;

    /// The keys of each chunk of a range with values that are so long, and the end.
    fn chunks(values: &[usize], limit: i64) -> (Vec<usize>, StreamEnd) {
        let request = RangeRequest { limit, ..RangeRequest::new(KeyRange::all()) };
        let mut stream = RangeStream::new(request, WANTED);
        let mut lengths = Vec::new();
        loop {
            let asked = stream.page();
            assert_eq!(asked.revision, if lengths.is_empty() { 0 } else { 7 }, "pinned");
            let page = page(values, &asked, 7 + lengths.len() as i64);
            let end = stream.handle(&page, page.kvs.iter().map(|kv| kv.value.len()).sum());
            lengths.push(page.kvs.len());
            if let Some(end) = end {
                return (lengths, end);
            }
        }
    }

    /// As the state machine reads it. Values are not written to, and so cost nothing.
    fn page(values: &[usize], asked: &PageRequest, revision: i64) -> RangeReply {
        let key = |place: usize| Bytes::from(format!("{place:08}"));
        let mut left = (0..values.len()).filter(|place| asked.range.contains(&key(*place)));
        let (mut kvs, mut bytes, mut more) = (Vec::new(), 0, false);
        for place in left.by_ref() {
            if kvs.len() as u64 == asked.limit || bytes > asked.bytes {
                more = true;
                break;
            }
            bytes += values[place] as u64;
            kvs.push(KeyValue {
                key: key(place),
                value: vec![0; values[place]].into(),
                ..KeyValue::default()
            });
        }
        let rest = if more && asked.counts_rest { 1 + left.count() } else { 0 };
        RangeReply { revision: Revision(revision), more, count: (kvs.len() + rest) as i64, kvs }
    }

    /// Etcd's rule, as its documentation has it.
    fn etcd(values: &[usize], limit: usize) -> Vec<usize> {
        let (mut lengths, mut keys, mut at) = (Vec::new(), 10, 0);
        let end = values.len().min(limit);
        loop {
            let chunk = &values[at..end.min(at + keys)];
            lengths.push(chunk.len());
            at += chunk.len();
            if at == end {
                return lengths;
            }
            match chunk.iter().sum::<usize>() {
                bytes if bytes < WANTED / 2 => keys *= 2,
                bytes if bytes > 2 * WANTED => keys = (keys / 2).max(1),
                _ => {}
            }
        }
    }

    #[test]
    fn the_chunks_are_those_of_etcd() {
        let mixed: Vec<usize> = (0..500).map(|place| if place % 50 == 0 { 1 << 20 } else { 9000 }).collect();
        for (values, limit) in [
            (&[][..], 0),
            (&[5], 0),
            (&[5; 10], 0),
            (&[5; 11], 0),
            (&[5; 5000], 0),
            (&[5; 5000], 1),
            (&[5; 5000], 10),
            (&[5; 5000], 77),
            (&[5; 5000], 9000),
            (&[1 << 20; 560], 0),
            (&[WANTED; 9], 0),
            (&[100_000; 300], 250),
            (&mixed, 0),
        ] {
            let (lengths, end) = chunks(values, limit);
            let shown = if limit == 0 { values.len() } else { values.len().min(limit as usize) };
            assert_eq!(lengths, etcd(values, shown), "{} of {limit}", values.len());
            let more = shown < values.len();
            assert_eq!(end, StreamEnd { revision: Revision(7), more, count: values.len() as i64 });
        }
        assert_eq!(chunks(&[1 << 20; 560], 0).0[..5], [10, 5, 2, 2, 2]);
        assert_eq!(chunks(&[5; 200], 0).0, [10, 20, 40, 80, 50]);
    }

    #[test]
    fn a_chunk_is_short_wherever_long_values_begin() {
        let mut values = vec![5; 5000];
        values.extend([1 << 20; 100]);
        let (lengths, end) = chunks(&values, 0);
        assert_eq!((lengths.iter().sum::<usize>(), end.count), (5100, 5100));
        assert!(lengths.iter().all(|keys| *keys <= 2560), "{lengths:?}");
        let mut at = 0;
        for keys in lengths {
            let bytes = values[at..at + keys].iter().sum::<usize>();
            assert!(bytes <= 10 * WANTED + (1 << 20), "{bytes} bytes in one chunk");
            at += keys;
        }
    }

    #[test]
    fn a_revision_that_is_asked_for_is_kept_and_the_latest_is_told() {
        let request = RangeRequest { revision: 3, ..RangeRequest::new(KeyRange::all()) };
        let mut stream = RangeStream::new(request, WANTED);
        assert!(!stream.is_pinned());
        for _ in 0..2 {
            assert_eq!(stream.page().revision, 3);
            assert_eq!(stream.handle(&page(&[1; 100], &stream.page(), 9), 0), None);
            assert!(stream.is_pinned());
        }
        let end = stream.handle(&page(&[1; 31], &stream.page(), 12), 0).unwrap();
        assert_eq!((end.revision, end.count), (Revision(9), 31));
    }

    #[test]
    fn the_rest_is_counted_once() {
        let request = RangeRequest { limit: 25, ..RangeRequest::new(KeyRange::all()) };
        let mut stream = RangeStream::new(request, WANTED);
        let mut counted = Vec::new();
        loop {
            let asked = stream.page();
            counted.push(asked.counts_rest);
            if stream.handle(&page(&[5; 100], &asked, 7), 0).is_some() {
                break;
            }
        }
        assert_eq!(counted, [false, true]);
        assert!(!RangeStream::new(RangeRequest::new(KeyRange::all()), WANTED).page().counts_rest);
    }
}
