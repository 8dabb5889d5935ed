//! Parts of large answers as frames.

use api::gaios::link::{PART_BYTES_MAX, v1 as wire};
use bytes::{BufMut, Bytes, BytesMut};
use group_core::{LargeReply, Part};
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

/// `NodeFrame.responses`.
const RESPONSES: u32 = 1;
/// `Response.reply_part`.
const REPLY_PART: u32 = 19;
/// `ReplyPart.bytes`.
const PART_BYTES: u32 = 1;

/// Appends the head of the next part's frame, its length before it. Returns what follows, as it is: values are not copied.
pub(crate) fn begin_part(reply: &mut LargeReply, head: &mut BytesMut) -> Vec<Bytes> {
    let Part { request: id, term, reply_bytes, pieces } = reply.next_part(PART_BYTES_MAX);
    let bytes = pieces.iter().map(Bytes::len).sum::<usize>();
    // The longest field of each message is its last one, and so everything of a frame but these bytes stands before them.
    let part = wire::ReplyPart { bytes: Bytes::new(), reply_bytes };
    let part_len = part.encoded_len() + key_len(PART_BYTES) + prefixed_len(bytes);
    let response = wire::Response { id, term, kind: None };
    let response_len = response.encoded_len() + key_len(REPLY_PART) + prefixed_len(part_len);
    let frame_len = key_len(RESPONSES) + prefixed_len(response_len);
    head.put_u32(u32::try_from(frame_len).expect("a part is short"));
    begin_field(RESPONSES, response_len, head);
    response.encode(head).expect("a BytesMut grows as needed");
    begin_field(REPLY_PART, part_len, head);
    part.encode(head).expect("a BytesMut grows as needed");
    begin_field(PART_BYTES, bytes, head);
    pieces
}

/// Of so many bytes, and their length before them.
fn prefixed_len(bytes: usize) -> usize {
    encoded_len_varint(bytes as u64) + bytes
}

fn begin_field(field: u32, len: usize, out: &mut BytesMut) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(len as u64, out);
}

#[cfg(test)]
mod tests {
    use group_core::{LargeAnswer, LinkId};
    use keyspace::{KeyValue, Outcome, RangeReply, Reply, Revision};

    use super::*;

    const TERM: u64 = 1 << 40;

    fn outcome(value_bytes: usize) -> Outcome {
        let key = Bytes::from_static(b"k");
        let kv = KeyValue { key, value: vec![7; value_bytes].into(), ..KeyValue::default() };
        Ok(Reply::Range(RangeReply { revision: Revision(3), kvs: vec![kv], more: false, count: 1 }))
    }

    #[test]
    fn the_parts_are_frames_and_make_up_the_answer() {
        for value_bytes in [0, 100, PART_BYTES_MAX - 60, PART_BYTES_MAX, 3 * PART_BYTES_MAX + 1] {
            let (request, outcome) = (1 << 33, outcome(value_bytes));
            let whole = keyspace::outcome_len(&outcome);
            let gathered = outcome.clone().into();
            let answer = LargeAnswer { link: LinkId(1), request, term: TERM, gathered };
            let mut reply = LargeReply::new(answer).unwrap();
            let mut gathered = BytesMut::new();
            while gathered.len() < whole {
                let mut frame = BytesMut::new();
                let pieces = begin_part(&mut reply, &mut frame);
                frame.extend(pieces.into_iter().flatten());
                let length = u32::from_be_bytes(frame.split_to(4).as_ref().try_into().unwrap());
                assert_eq!(length as usize, frame.len());
                assert!(frame.len() <= PART_BYTES_MAX + 64, "a head is short");
                let response = wire::NodeFrame::decode(frame.freeze()).unwrap().responses.remove(0);
                assert_eq!((response.id, response.term), (request, TERM));
                let Some(wire::response::Kind::ReplyPart(part)) = response.kind else { panic!("no part") };
                assert_eq!(part.reply_bytes, if gathered.is_empty() { whole as u64 } else { 0 });
                assert_eq!(part.bytes.len(), PART_BYTES_MAX.min(whole - gathered.len()));
                gathered.extend_from_slice(&part.bytes);
            }
            assert_eq!(keyspace::decode_outcome(gathered.freeze()), Ok(outcome));
        }
    }
}
