//! A watch stream's messages: from etcd's to the watchers' words and back. The events of a response are encoded once for
//! many watchers.

use std::collections::VecDeque;

use api::etcdserverpb as pb;
use api::etcdserverpb::watch_create_request::FilterType;
use api::etcdserverpb::watch_request::RequestUnion;
use api::mvccpb;
use bytes::{BufMut as _, Bytes, BytesMut};
use gateway_core::watch::{
    Canceled, Create, Entry, Events, Feeds, Filters, NotCreated, Part, Told, Watchers,
};
use keyspace::{KeyRange, Revision};
use prost::Message as _;
use prost::encoding::{WireType, decode_varint, encode_key, encode_varint};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use crate::door::convert;
use crate::door::errors::code_and_text;

/// `watch_id` of answers that concern no watch.
const NO_WATCH: i64 = -1;
/// Number of the field `events` in etcd's `WatchResponse`.
const EVENTS_FIELD: u32 = 11;
/// Room for the encoder and the decoder of a stream. Most streams are idle, and there are many.
const BUFFER_BYTES: usize = 512;
/// Bytes of responses that are gathered before they are handed on.
const YIELD_BYTES: usize = 32 << 10;

/// Takes in a request. Empty ones are ignored, as in etcd.
pub(super) fn take_in(watchers: &mut Watchers<impl Feeds>, request: pb::WatchRequest) {
    match request.request_union {
        Some(RequestUnion::CreateRequest(create)) => watchers.create(wanted(create)),
        Some(RequestUnion::CancelRequest(cancel)) => watchers.cancel(cancel.watch_id),
        Some(RequestUnion::ProgressRequest(_)) => watchers.request_progress(),
        None => {}
    }
}

fn wanted(create: pb::WatchCreateRequest) -> Create {
    let mut filters = Filters::default();
    for filter in &create.filters {
        match FilterType::try_from(*filter) {
            Ok(FilterType::Noput) => filters.no_put = true,
            Ok(FilterType::Nodelete) => filters.no_delete = true,
            Err(_) => {}
        }
    }
    Create {
        id: Some(create.watch_id).filter(|id| *id != 0),
        start: Revision(create.start_revision),
        prev_kv: create.prev_kv,
        filters,
        fragment: create.fragment,
        progress_notify: create.progress_notify,
        ..Create::new(KeyRange::from_watch_wire(create.key, create.range_end))
    }
}

/// Puts what a client is told into a response. One that may be cut and has `fragment_bytes` or more is: the rest goes to
/// `parts`.
pub(super) fn encode(
    told: Told,
    header: Option<pb::ResponseHeader>,
    fragment_bytes: usize,
    parts: &mut VecDeque<Encoded>,
) -> Encoded {
    let head = pb::WatchResponse { header, ..Default::default() };
    let head = match told {
        Told::Events(events) => return encode_events(events, head, fragment_bytes, parts),
        Told::Created { id } => pb::WatchResponse { watch_id: id, created: true, ..head },
        Told::NotCreated(why) => pb::WatchResponse {
            watch_id: NO_WATCH,
            created: true,
            canceled: true,
            cancel_reason: match why {
                NotCreated::EmptyRange => "mvcc: watcher range is empty".to_owned(),
                NotCreated::IdTaken => "mvcc: duplicate watch ID provided on the WatchStream".to_owned(),
                NotCreated::Failed(failure) => code_and_text(&failure).1.to_owned(),
            },
            ..head
        },
        Told::Progress { id } => pb::WatchResponse { watch_id: id.unwrap_or(NO_WATCH), ..head },
        Told::Canceled { id, why } => {
            let head = pb::WatchResponse { watch_id: id, canceled: true, ..head };
            match why {
                Canceled::ByClient => head,
                Canceled::Compacted { compact_revision } => {
                    pb::WatchResponse { compact_revision: compact_revision.0, ..head }
                }
                Canceled::Failed(failure) => {
                    pb::WatchResponse { cancel_reason: code_and_text(&failure).1.to_owned(), ..head }
                }
            }
        }
    };
    Encoded { head, events: Payload::Revisions(Vec::new()) }
}

fn encode_events(
    events: Events,
    head: pb::WatchResponse,
    fragment_bytes: usize,
    parts: &mut VecDeque<Encoded>,
) -> Encoded {
    let head = pb::WatchResponse { watch_id: events.id, ..head };
    let size = || events.parts.iter().map(|part| encode_part(part).len()).sum::<usize>();
    if !events.fragment || events.event_count < 2 || size() < fragment_bytes {
        return Encoded { head, events: Payload::Revisions(events.parts) };
    }
    let mut fragments: Vec<(pb::WatchResponse, Vec<Bytes>)> = Vec::new();
    let mut room = 0;
    for event in events.parts.iter().map(encode_part).flat_map(|encoded| each_event(&encoded)) {
        let size = event.len();
        match fragments.last_mut().filter(|_| size <= room) {
            Some((_, events)) => events.push(event),
            None => {
                fragments.push((pb::WatchResponse { fragment: true, ..head.clone() }, vec![event]));
                room = fragment_bytes;
            }
        }
        room = room.saturating_sub(size);
    }
    if let Some((last, _)) = fragments.last_mut() {
        last.fragment = false;
    }
    let mut fragments =
        fragments.into_iter().map(|(head, events)| Encoded { head, events: Payload::Events(events) });
    let first = fragments.next().unwrap_or(Encoded { head, events: Payload::Revisions(events.parts) });
    parts.extend(fragments);
    first
}

/// The events of a revision as elements of the field `events`, with tags and lengths.
fn encode_part(part: &Part) -> Bytes {
    if part.filters == Filters::default() {
        return part.entry.encoded(encode_entry).clone();
    }
    let mut out = BytesMut::new();
    for event in part.events() {
        encode_event(&convert::event(event), &mut out);
    }
    out.freeze()
}

fn encode_entry(entry: &Entry) -> Bytes {
    let mut out = BytesMut::with_capacity(entry.bytes() + 16 * entry.events.len());
    for event in entry.events.iter() {
        encode_event(&convert::event(event), &mut out);
    }
    out.freeze()
}

/// Appends one event as an element of `WatchResponse.events`.
fn encode_event(event: &mvccpb::Event, out: &mut BytesMut) {
    let length = event.encoded_len();
    out.reserve(length + 12);
    encode_key(EVENTS_FIELD, WireType::LengthDelimited, out);
    encode_varint(length as u64, out);
    event.encode_raw(out);
}

/// The elements of an encoded field of events.
fn each_event(encoded: &Bytes) -> Vec<Bytes> {
    let mut rest = encoded.clone();
    let mut events = Vec::new();
    while !rest.is_empty() {
        let mut read = rest.clone();
        // Our own encoding: a tag of one byte, a length, the event.
        let before = read.len();
        let tag = decode_varint(&mut read);
        let length = decode_varint(&mut read);
        let (Ok(_), Ok(length)) = (tag, length) else { break };
        let head = before - read.len();
        let whole = head.saturating_add(usize::try_from(length).unwrap_or(usize::MAX)).min(rest.len());
        events.push(rest.split_to(whole));
    }
    events
}

/// A response whose events are bytes already.
pub(in crate::door) struct Encoded {
    head: pb::WatchResponse,
    events: Payload,
}

/// The events of a response.
enum Payload {
    /// All of these revisions; encoded when they leave, if that was not done for another watcher.
    Revisions(Vec<Part>),
    /// Some, encoded one by one.
    Events(Vec<Bytes>),
}

pub(super) struct WatchCodec;

impl Codec for WatchCodec {
    type Encode = Encoded;
    type Decode = pb::WatchRequest;
    type Encoder = WatchEncoder;
    type Decoder = WatchDecoder;

    fn encoder(&mut self) -> WatchEncoder {
        WatchEncoder
    }

    fn decoder(&mut self) -> WatchDecoder {
        WatchDecoder
    }
}

pub(super) struct WatchEncoder;

impl Encoder for WatchEncoder {
    type Item = Encoded;
    type Error = Status;

    /// The events are the last field of the message, so they may simply follow the rest.
    fn encode(&mut self, item: Encoded, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.head.encode(out).map_err(|error| Status::internal(error.to_string()))?;
        let append = |events: Bytes| {
            out.reserve(events.len());
            out.put(events);
        };
        match item.events {
            Payload::Revisions(parts) => parts.iter().map(encode_part).for_each(append),
            Payload::Events(events) => events.into_iter().for_each(append),
        }
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
    }
}

pub(super) struct WatchDecoder;

impl Decoder for WatchDecoder {
    type Item = pb::WatchRequest;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<pb::WatchRequest>, Status> {
        let request = pb::WatchRequest::decode(bytes);
        request.map(Some).map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use keyspace::{Event, EventKind, KeyValue, RevisionEvents};

    use super::*;

    /// A put of each key.
    fn puts(keys: &[&str]) -> RevisionEvents {
        let revision = Revision(5);
        let put = |key: &&str| {
            let (key, value) = (Bytes::copy_from_slice(key.as_bytes()), Bytes::from_static(b"5"));
            let (create_revision, mod_revision) = (revision, revision);
            let kv =
                KeyValue { key, value, create_revision, mod_revision, version: 1, ..KeyValue::default() };
            Event { kind: EventKind::Put, kv, prev_kv: None }
        };
        RevisionEvents { revision, events: keys.iter().map(put).collect() }
    }

    /// The responses that tell of one revision with these keys, decoded.
    fn responses(
        keys: &[&str],
        filters: Filters,
        fragment: bool,
        fragment_bytes: usize,
    ) -> Vec<pb::WatchResponse> {
        let entry = Arc::new(Entry::new(puts(keys), 0));
        let parts = vec![Part { entry, filters }];
        let told = Told::Events(Events { id: 7, parts, event_count: keys.len(), fragment });
        let mut rest = VecDeque::new();
        let first = encode(told, None, fragment_bytes, &mut rest);
        let decoded = |encoded: Encoded| {
            let mut bytes = encoded.head.encode_to_vec();
            match encoded.events {
                Payload::Revisions(parts) => {
                    parts.iter().for_each(|part| bytes.extend_from_slice(&encode_part(part)))
                }
                Payload::Events(events) => events.iter().for_each(|event| bytes.extend_from_slice(event)),
            }
            pb::WatchResponse::decode(Bytes::from(bytes)).unwrap()
        };
        std::iter::once(first).chain(rest).map(decoded).collect()
    }

    fn keys(response: &pb::WatchResponse) -> Vec<Bytes> {
        response.events.iter().map(|event| event.kv.as_ref().unwrap().key.clone()).collect()
    }

    #[test]
    fn events_are_encoded_as_the_field_of_the_response() {
        let whole = responses(&["a", "b"], Filters::default(), false, 0);
        assert_eq!(whole.len(), 1);
        assert_eq!((whole[0].watch_id, keys(&whole[0])), (7, vec!["a".into(), "b".into()]));
        let none = Filters { no_put: true, no_delete: false };
        assert!(responses(&["a"], none, false, 0)[0].events.is_empty());
        let puts = Filters { no_put: false, no_delete: true };
        assert_eq!(keys(&responses(&["a"], puts, false, 0)[0]), ["a"]);
    }

    #[test]
    fn large_responses_are_cut_between_events() {
        let all = ["a", "b", "c", "d", "e"];
        let cut = responses(&all, Filters::default(), true, 50);
        let told: Vec<_> = cut.iter().map(|part| (part.fragment, part.events.len())).collect();
        assert_eq!(told, [(true, 3), (false, 2)]);
        assert_eq!(cut.iter().flat_map(keys).collect::<Vec<_>>(), all);
        assert_eq!(responses(&all, Filters::default(), true, 1 << 20).len(), 1, "small enough");
        assert_eq!(responses(&all, Filters::default(), false, 50).len(), 1, "not wanted");
        let each = responses(&all, Filters::default(), true, 1);
        assert_eq!(each.len(), 5, "an event is never cut");
    }

    #[test]
    fn who_is_told_of_no_watch_of_its_own_is_told_of_none() {
        let mut rest = VecDeque::new();
        let mut head = |told| encode(told, None, 0, &mut rest).head;
        assert_eq!(head(Told::Progress { id: None }).watch_id, NO_WATCH);
        assert_eq!(head(Told::Progress { id: Some(3) }).watch_id, 3);
        let refused = head(Told::NotCreated(NotCreated::IdTaken));
        assert!(refused.created && refused.canceled && refused.watch_id == NO_WATCH);
        let compacted =
            head(Told::Canceled { id: 3, why: Canceled::Compacted { compact_revision: Revision(9) } });
        assert!(compacted.canceled && compacted.compact_revision == 9 && compacted.cancel_reason.is_empty());
    }
}
