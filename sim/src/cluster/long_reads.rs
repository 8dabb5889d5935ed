//! Reads of ranges in several questions, as gateways do them for long answers: a list that is measured and read page by page, or
//! a stream of chunks. However they are cut, what comes together is what was there at one revision.

use gateway_core::range_pages::RangePages;
use gateway_core::range_stream::{RangeStream, StreamEnd};
use keyspace::{KeyRange, ListRequest, MeasuredReply, Query, RangeReply, RangeRequest, Reply, Revision};

use super::coverage::Mark;
use super::env::Env;

/// An answer is long when its entries take more than this; an entry takes about thirty.
const WHOLE_BYTES_MAX: u64 = 60;
/// Keys and values of a page.
const PAGE_BYTES: u64 = 30;
/// Keys of a chunk: fewer than the first chunk of a stream may have, since ranges are short here.
const CHUNK_KEYS: u64 = 2;

/// What a client asks for, and how far it has come.
#[derive(Debug)]
pub(super) struct LongRead {
    asked: RangeRequest,
    left: Left,
    /// What has come so far.
    whole: RangeReply,
    questions: u32,
}

#[derive(Debug)]
enum Left {
    /// It is not known how long it is.
    List(ListRequest),
    Pages(RangePages),
    Stream(RangeStream),
}

/// What follows from an answer.
#[derive(Debug)]
pub(super) enum Next {
    /// The next question, of any replica that has come to this revision.
    Ask(Query, i64),
    /// This was asked, and that is the answer.
    Done(RangeRequest, RangeReply),
    /// It does not belong to the question.
    Mismatch,
}

impl LongRead {
    /// Of a range, with some limit.
    pub(super) fn new(env: &mut Env, range: KeyRange) -> LongRead {
        let limit = env.rng.below(5);
        let asked = RangeRequest { limit: limit as i64, ..RangeRequest::new(range.clone()) };
        let left = if env.rng.flip() {
            let bytes = WHOLE_BYTES_MAX;
            Left::List(ListRequest { range, revision: 0, limit, keys_only: false, bytes })
        } else {
            Left::Stream(RangeStream::new(asked.clone(), PAGE_BYTES as usize))
        };
        let whole = RangeReply { revision: Revision(0), kvs: Vec::new(), more: false, count: 0 };
        LongRead { asked, left, whole, questions: 0 }
    }

    /// What is asked first, or next.
    pub(super) fn question(&self) -> Query {
        match &self.left {
            Left::List(request) => Query::List(request.clone()),
            Left::Pages(left) => {
                let mut page = left.page().expect("what is asked for is not all there");
                page.bytes = PAGE_BYTES;
                Query::Page(page)
            }
            Left::Stream(stream) => {
                let mut page = stream.page();
                if page.limit > CHUNK_KEYS {
                    page.limit = CHUNK_KEYS;
                    page.counts_rest = false;
                }
                Query::Page(page)
            }
        }
    }

    /// An answer has come.
    pub(super) fn handle(mut self, env: &mut Env, reply: Reply) -> (Next, Option<LongRead>) {
        self.questions += 1;
        match (&mut self.left, reply) {
            (Left::List(_), Reply::Range(reply)) => {
                self.whole = reply;
                return self.done();
            }
            (Left::List(request), Reply::Measured(measured)) => {
                let MeasuredReply { revision, more, count, .. } = measured;
                let left = RangePages::new(request.clone(), &measured);
                self.whole = RangeReply { revision, kvs: Vec::new(), more, count };
                self.left = Left::Pages(left);
            }
            (Left::Pages(left), Reply::Range(page)) => {
                if left.handle(&page.kvs).is_err() {
                    return (Next::Mismatch, None);
                }
                let is_through = left.page().is_none();
                self.whole.kvs.extend(page.kvs);
                if is_through {
                    env.mark(Mark::ListPaged);
                    return self.done();
                }
            }
            (Left::Stream(stream), Reply::Range(page)) => {
                let end = stream.handle(&page, page.kvs.iter().map(|kv| kv.value.len()).sum());
                if self.whole.kvs.is_empty() {
                    self.whole.revision = page.revision;
                }
                self.whole.kvs.extend(page.kvs);
                if let Some(StreamEnd { revision, more, count }) = end {
                    if self.questions > 1 {
                        env.mark(Mark::RangeStreamed);
                    }
                    self.whole = RangeReply { revision, more, count, kvs: self.whole.kvs };
                    return self.done();
                }
            }
            _ => return (Next::Mismatch, None),
        }
        let revision = self.whole.revision.0;
        (Next::Ask(self.question(), revision), Some(self))
    }

    fn done(self) -> (Next, Option<LongRead>) {
        (Next::Done(self.asked, self.whole), None)
    }
}
