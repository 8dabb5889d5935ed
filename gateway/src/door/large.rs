//! Large answers of Range, encoded as the client's connection takes them. The gRPC library would make one buffer of
//! each, beside what it is made of; here long values leave as they came over the link, and the rest in pieces of a
//! frame.
//!
//! The longest ones are not here at all: they were measured, and are read page by page, each when the one before has
//! left. What of an answer is here counts in the budget until the client has taken it.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::vec::IntoIter;

use ::http::{HeaderMap, HeaderName, HeaderValue};
use api::etcdserverpb as pb;
use bytes::{BufMut, Bytes, BytesMut};
use gateway_core::Failure;
use http_body::Frame;
use keyspace::{KeyValue, MeasuredReply, RangeReply};
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint};
use tonic::body::Body;

use super::convert;
use super::errors::to_status;
use super::left::left;
use crate::admission::Taken;

/// Bytes of one frame; those of long values are as long as the values.
const FRAME_BYTES: usize = 64 << 10;
/// What is as long is not copied.
const SHARED_BYTES_LEAST: usize = 16 << 10;

/// `RangeResponse.kvs`.
const KVS: u32 = 2;
/// `KeyValue.value`.
const VALUE: u32 = 5;

/// Reads on, when it is polled first: the next page, if there is one.
pub(super) type Reading = Pin<Box<dyn Future<Output = Result<Option<Page>, Failure>> + Send>>;

/// A part of an answer.
pub(super) struct Page {
    pub(super) kvs: Vec<KeyValue>,
    /// What the budget has for it.
    pub(super) taken: Taken,
    pub(super) rest: Reading,
}

/// What so many entries hold, in bytes.
pub(super) fn held_bytes(kvs: &[KeyValue]) -> usize {
    kvs.iter().map(|kv| size_of::<KeyValue>() + kv.key.len() + kv.value.len()).sum()
}

/// An answer that is here.
pub(super) fn whole(
    header: Option<pb::ResponseHeader>,
    reply: RangeReply,
    taken: Taken,
) -> tonic::Response<pb::RangeResponse> {
    let RangeReply { kvs, more, count, .. } = reply;
    let head = pb::RangeResponse { header, kvs: Vec::new(), more, count };
    let length = convert::key_values_len(&kvs) as u64;
    LargeBody::new(&head, length, Some((kvs, taken)), None).left()
}

/// An answer that was measured, and is read so.
pub(super) fn paged(
    header: Option<pb::ResponseHeader>,
    measured: &MeasuredReply,
    pages: Reading,
) -> tonic::Response<pb::RangeResponse> {
    let MeasuredReply { more, count, bytes, .. } = *measured;
    let head = pb::RangeResponse { header, kvs: Vec::new(), more, count };
    LargeBody::new(&head, bytes, None, Some(pages)).left()
}

/// The body of an answer: one message, and that all went well.
struct LargeBody {
    kvs: IntoIter<KeyValue>,
    /// What the budget has for these, and for what is made of them.
    taken: Option<Arc<Taken>>,
    /// What leaves next.
    made: BytesMut,
    /// A value that follows it.
    value: Option<Bytes>,
    /// What follows the entries.
    rest: Option<Reading>,
    trailers: Option<HeaderMap>,
}

/// A piece of it. The library drops it when the last of it has left.
struct Piece {
    bytes: Bytes,
    taken: Arc<Taken>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.taken.note_progress();
    }
}

impl LargeBody {
    /// Its entries, all together, are so long.
    fn new(
        head: &pb::RangeResponse,
        entries_length: u64,
        here: Option<(Vec<KeyValue>, Taken)>,
        rest: Option<Reading>,
    ) -> LargeBody {
        let length = head.encoded_len() as u64 + entries_length;
        let mut made = BytesMut::new();
        // It is not compressed.
        made.put_u8(0);
        made.put_u32(u32::try_from(length).expect("an answer of a node is far shorter than four gigabytes"));
        head.encode(&mut made).expect("a BytesMut grows as needed");
        let trailers =
            HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
        let (kvs, taken) = here.unzip();
        LargeBody {
            kvs: kvs.unwrap_or_default().into_iter(),
            taken: taken.map(Arc::new),
            made,
            value: None,
            rest,
            trailers: Some(trailers),
        }
    }

    fn left(self) -> tonic::Response<pb::RangeResponse> {
        left(Body::new(self), pb::RangeResponse::default())
    }

    /// Encodes on until a frame is full, or a long value follows.
    fn fill(&mut self) {
        while self.made.len() < FRAME_BYTES
            && self.value.is_none()
            && let Some(kv) = self.kvs.next()
        {
            let mut message = convert::key_value(kv);
            let length = message.encoded_len();
            encode_key(KVS, WireType::LengthDelimited, &mut self.made);
            encode_varint(length as u64, &mut self.made);
            if message.value.len() >= SHARED_BYTES_LEAST {
                let value = std::mem::take(&mut message.value);
                message.encode(&mut self.made).expect("a BytesMut grows as needed");
                encode_key(VALUE, WireType::LengthDelimited, &mut self.made);
                encode_varint(value.len() as u64, &mut self.made);
                self.value = Some(value);
            } else {
                message.encode(&mut self.made).expect("a BytesMut grows as needed");
            }
        }
    }

    /// What leaves next of what is here.
    fn piece(&mut self) -> Option<Bytes> {
        self.fill();
        let bytes = if self.made.is_empty() { self.value.take()? } else { self.made.split().freeze() };
        Some(match &self.taken {
            Some(taken) => Bytes::from_owner(Piece { bytes, taken: Arc::clone(taken) }),
            None => bytes,
        })
    }
}

impl http_body::Body for LargeBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let body = self.get_mut();
        loop {
            if let Some(piece) = body.piece() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            body.taken = None;
            let Some(rest) = &mut body.rest else {
                return Poll::Ready(body.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
            };
            let read = ready!(rest.as_mut().poll(cx));
            body.rest = None;
            match read {
                Ok(Some(Page { kvs, taken, rest })) => {
                    body.kvs = kvs.into_iter();
                    body.taken = Some(Arc::new(taken));
                    body.rest = Some(rest);
                }
                Ok(None) => {}
                Err(failure) => {
                    let mut trailers = HeaderMap::new();
                    to_status(failure).add_header(&mut trailers).expect("a status of ours is well formed");
                    body.trailers = Some(trailers);
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.trailers.is_none()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use keyspace::{LeaseId, Revision};

    use super::super::left::{Counted, spell_out};
    use super::*;
    use crate::admission::Use;
    use crate::admission::testing::admission_with;

    /// As [`spell_out`] finds it behind the services.
    fn body(left: tonic::Response<pb::RangeResponse>) -> Body {
        let (_, _, extensions) = left.into_parts();
        let mut response = ::http::Response::new(Body::empty());
        *response.extensions_mut() = extensions;
        let spelled_out = spell_out(response);
        assert!(spelled_out.extensions().get::<Counted>().is_some());
        spelled_out.into_body()
    }

    fn key_value(number: usize, value: Bytes) -> KeyValue {
        KeyValue {
            key: format!("key-{number}").into(),
            value,
            create_revision: Revision(7),
            mod_revision: Revision(300 + number as i64),
            version: 1,
            lease: LeaseId(number as i64 % 3),
        }
    }

    #[tokio::test]
    async fn a_large_answer_is_the_message_and_long_values_are_not_copied() {
        let lengths = [0, 1, 100, 16_383, 16_384, 1 << 20, 2000, 3 << 20].into_iter().cycle().take(2000);
        let values: Vec<Bytes> =
            lengths.map(|length| Bytes::from(vec![length as u8; length.min(200_000)])).collect();
        let kvs =
            values.iter().cloned().enumerate().map(|(number, value)| key_value(number, value)).collect();
        let reply = RangeReply { revision: Revision(9), kvs, more: true, count: 12_345 };
        let header = Some(pb::ResponseHeader { revision: 9, cluster_id: 1, member_id: 2, raft_term: 3 });
        let expected = convert::range_reply(reply.clone(), header);

        let admission = admission_with(1 << 30);
        let taken = Taken::take(&admission.connect(None), Use::Answers, held_bytes(&reply.kvs)).unwrap();
        let mut body = body(whole(header, reply, taken));
        let (mut all, mut trailers, mut shared) = (BytesMut::new(), None, 0);
        while let Some(frame) = body.frame().await {
            match frame.unwrap().into_data() {
                Ok(data) => {
                    assert!(admission.budget().taken(Use::Answers) > 0);
                    let is_shared = values.iter().any(|value| value.as_ptr() == data.as_ptr());
                    assert!(is_shared || data.len() < FRAME_BYTES + 2 * SHARED_BYTES_LEAST);
                    shared += usize::from(is_shared);
                    all.extend_from_slice(&data);
                }
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        assert_eq!(shared, values.iter().filter(|value| value.len() >= SHARED_BYTES_LEAST).count());
        assert_eq!(trailers.unwrap()["grpc-status"], "0");
        let head = all.split_to(5);
        assert_eq!((head[0], &head[1..]), (0, &(all.len() as u32).to_be_bytes()[..]));
        assert_eq!(pb::RangeResponse::decode(all.freeze()).unwrap(), expected);
    }

    #[tokio::test]
    async fn pages_are_read_one_after_the_other_and_count_until_they_are_taken() {
        let admission = admission_with(64 << 20);
        let client = admission.connect(None);
        let taken = || admission.budget().taken(Use::Answers);
        fn pages(client: Arc<crate::admission::Client>, left: usize) -> Reading {
            Box::pin(async move {
                let kvs = vec![key_value(left, Bytes::from(vec![7; 1 << 20]))];
                match left {
                    0 => return Err(Failure::TimedOut),
                    1 => return Ok(None),
                    _ => {}
                }
                let taken = Taken::take(&client, Use::Answers, held_bytes(&kvs)).unwrap();
                Ok(Some(Page { kvs, taken, rest: pages(client, left - 1) }))
            })
        }
        let measured =
            MeasuredReply { revision: Revision(9), shown: 2, bytes: 2 << 20, more: false, count: 2 };
        for (count, code) in [(3, "0"), (0, "14")] {
            let mut body = body(paged(None, &measured, pages(Arc::clone(&client), count)));
            assert_eq!(taken(), 0);
            let (mut pieces, mut trailers) = (Vec::new(), None);
            while let Some(frame) = body.frame().await {
                match frame.unwrap().into_data() {
                    Ok(data) => pieces.push(data),
                    Err(frame) => trailers = frame.into_trailers().ok(),
                }
                // The head, and of each page a key and its value: the next one is not read before it is wanted.
                assert_eq!(taken() >> 20, (pieces.len() / 2).min(2));
            }
            assert_eq!(trailers.unwrap()["grpc-status"], code);
            drop((body, pieces));
            assert_eq!(taken(), 0);
        }
    }

    #[test]
    fn entries_are_as_long_as_was_measured() {
        for (number, length) in [(0, 0), (1, 1), (7, 127), (8, 128), (300, 16_384), (1 << 40, 70_000)] {
            for keys_only in [false, true] {
                let mut kv = key_value(number, Bytes::from(vec![7; length]));
                kv.lease = LeaseId(number as i64);
                kv.version = number as i64;
                let measured = keyspace::wire_len(&kv, keys_only);
                if keys_only {
                    kv.value = Bytes::new();
                }
                assert_eq!(convert::key_values_len(&[kv]), measured);
            }
        }
        assert_eq!(
            convert::key_values_len(&[KeyValue::default()]),
            keyspace::wire_len(&KeyValue::default(), false)
        );
    }
}
