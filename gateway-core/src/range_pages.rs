//! The pages of a long answer to a range. It was measured, and its length is told before its first entry; so it is read
//! at the revision at which it was measured, and is as long as was told, or ends as a failure.

use keyspace::{KeyRange, KeyValue, ListRequest, MeasuredReply, PageRequest, wire_len};

use crate::mutant::mutant;

/// Keys and values of the first page, in bytes. Whoever takes none of it holds no more, but for one value.
const FIRST_BYTES: u64 = 256 << 10;
/// And of the longest: each is twice as long as the one before, so that a long answer over a long way does not take a
/// way for every few keys.
const BYTES_MAX: u64 = 2 << 20;

/// What is yet to be read.
#[derive(Debug)]
pub struct RangePages {
    range: KeyRange,
    revision: i64,
    keys_only: bool,
    /// Entries, and what they take.
    shown: u64,
    wire_bytes: u64,
    page_bytes: u64,
}

/// A page is not a part of what was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch;

impl RangePages {
    /// Of an answer to this request, which is so long.
    pub fn new(request: ListRequest, measured: &MeasuredReply) -> RangePages {
        let ListRequest { range, revision, keys_only, .. } = request;
        let revision = if revision > 0 { revision } else { measured.revision.0 };
        let MeasuredReply { shown, bytes: wire_bytes, .. } = *measured;
        RangePages { range, revision, keys_only, shown, wire_bytes, page_bytes: FIRST_BYTES }
    }

    /// What the entries take that are yet to be read.
    pub fn wire_bytes(&self) -> u64 {
        self.wire_bytes
    }

    /// What is to be read next; `None` when that was all.
    pub fn page(&self) -> Option<PageRequest> {
        (self.shown > 0).then(|| PageRequest {
            range: self.range.clone(),
            revision: if mutant!(PagesAtNewest) { 0 } else { self.revision },
            limit: self.shown,
            bytes: self.page_bytes,
            keys_only: self.keys_only,
            counts_rest: false,
        })
    }

    /// The page was read.
    ///
    /// # Errors
    /// It cannot be.
    pub fn handle(&mut self, kvs: &[KeyValue]) -> Result<(), Mismatch> {
        let last = kvs.last().ok_or(Mismatch)?;
        let length: usize = kvs.iter().map(|kv| wire_len(kv, false)).sum();
        self.shown = self.shown.checked_sub(kvs.len() as u64).ok_or(Mismatch)?;
        self.wire_bytes = self.wire_bytes.checked_sub(length as u64).ok_or(Mismatch)?;
        if self.shown == 0 && self.wire_bytes > 0 {
            return Err(Mismatch);
        }
        self.range = self.range.behind(&last.key);
        self.page_bytes = (2 * self.page_bytes).min(BYTES_MAX);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use keyspace::{LeaseId, Revision};

    use super::*;

    fn entry(key: u8) -> KeyValue {
        KeyValue {
            key: vec![key].into(),
            value: vec![key; 100].into(),
            create_revision: Revision(2),
            mod_revision: Revision(300),
            version: 1,
            lease: LeaseId(0),
        }
    }

    fn pages(shown: u64, revision: i64) -> RangePages {
        let request =
            ListRequest { range: KeyRange::all(), revision, limit: 0, keys_only: false, bytes: 100 };
        let bytes = shown * wire_len(&entry(b'a'), false) as u64;
        let measured = MeasuredReply { revision: Revision(9), shown, bytes, more: false, count: 100 };
        RangePages::new(request, &measured)
    }

    #[test]
    fn pages_follow_each_other_at_one_revision_and_grow() {
        let mut left = pages(10, 0);
        let mut asked = Vec::new();
        for key in b'a'..=b'j' {
            let page = left.page().unwrap();
            assert_eq!((page.revision, page.limit), (9, 10 - asked.len() as u64));
            assert!(page.range.contains(&[key][..]) && !page.range.contains(&[key - 1][..]) || key == b'a');
            asked.push(page.bytes >> 10);
            left.handle(&[entry(key)]).unwrap();
        }
        assert_eq!(asked, [256, 512, 1024, 2048, 2048, 2048, 2048, 2048, 2048, 2048]);
        assert_eq!((left.page(), left.wire_bytes()), (None, 0));
        assert_eq!(pages(1, 7).page().unwrap().revision, 7);
    }

    #[test]
    fn what_is_no_part_of_what_was_measured_is_noticed() {
        assert_eq!(pages(2, 0).handle(&[]), Err(Mismatch));
        assert_eq!(pages(1, 0).handle(&[entry(1), entry(2)]), Err(Mismatch));
        let (short, long) = (vec![1; 99].into(), vec![1; 101].into());
        for value in [short, long] {
            assert_eq!(pages(1, 0).handle(&[KeyValue { value, ..entry(1) }]), Err(Mismatch));
        }
    }
}
