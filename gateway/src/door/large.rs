//! Large answers of Range, encoded as the client's connection takes them. The gRPC library would make one buffer of each, beside
//! what it is made of; here long values leave as they came over the link, and the rest in pieces of a frame.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::vec::IntoIter;

use ::http::{HeaderMap, HeaderName, HeaderValue, Response};
use api::etcdserverpb as pb;
use bytes::{BufMut, Bytes, BytesMut};
use http_body::Frame;
use keyspace::{KeyValue, RangeReply};
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint};
use tonic::body::Body;

use super::convert;

/// Keys and values of an answer, in bytes, from which it leaves so.
pub(super) const LARGE_BYTES: usize = 256 << 10;
/// Bytes of one frame; those of long values are as long as the values.
const FRAME_BYTES: usize = 64 << 10;
/// What is as long is not copied.
const SHARED_BYTES_LEAST: usize = 16 << 10;

/// `RangeResponse.kvs`.
const KVS: u32 = 2;
/// `KeyValue.value`.
const VALUE: u32 = 5;

/// An answer that a handler leaves with an empty one, for [`spell_out`].
#[derive(Clone, Debug)]
pub(super) struct LargeRange {
    pub(super) header: Option<pb::ResponseHeader>,
    pub(super) reply: RangeReply,
}

/// Puts a large answer, if that was left, in the place of the empty one.
pub(super) fn spell_out(mut response: Response<Body>) -> Response<Body> {
    match response.extensions_mut().remove::<LargeRange>() {
        Some(large) => response.map(|_| Body::new(LargeBody::new(large))),
        None => response,
    }
}

/// The body of an answer: one message, and that all went well.
struct LargeBody {
    kvs: IntoIter<KeyValue>,
    /// What leaves next.
    made: BytesMut,
    /// A value that follows it.
    value: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

impl LargeBody {
    fn new(large: LargeRange) -> LargeBody {
        let LargeRange { header, reply } = large;
        let RangeReply { kvs, more, count, .. } = reply;
        let head = pb::RangeResponse { header, kvs: Vec::new(), more, count };
        let length = head.encoded_len() + convert::key_values_len(&kvs);
        let mut made = BytesMut::with_capacity(FRAME_BYTES);
        // It is not compressed.
        made.put_u8(0);
        made.put_u32(u32::try_from(length).expect("an answer of a node is far shorter than four gigabytes"));
        head.encode(&mut made).expect("a BytesMut grows as needed");
        let trailers =
            HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
        LargeBody { kvs: kvs.into_iter(), made, value: None, trailers: Some(trailers) }
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
}

impl http_body::Body for LargeBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let body = self.get_mut();
        body.fill();
        let next = if body.made.is_empty() { body.value.take() } else { Some(body.made.split().freeze()) };
        let frame = match next {
            Some(data) => Some(Frame::data(data)),
            None => body.trailers.take().map(Frame::trailers),
        };
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.trailers.is_none()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use keyspace::{LeaseId, Revision};

    use super::*;

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

        let mut response = Response::new(Body::empty());
        response.extensions_mut().insert(LargeRange { header, reply });
        let mut body = spell_out(response).into_body();
        let (mut all, mut trailers, mut shared) = (BytesMut::new(), None, 0);
        while let Some(frame) = body.frame().await {
            match frame.unwrap().into_data() {
                Ok(data) => {
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
}
