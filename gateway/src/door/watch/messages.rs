//! A watch stream's messages: from etcd's to the watchers' words and back. The events of a response are encoded once for
//! many watchers; those of a large one as the client takes them, and what is long in them is not copied: it is there once,
//! however many are told of it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;
use std::vec::IntoIter;

use api::etcdserverpb as pb;
use api::etcdserverpb::watch_create_request::FilterType;
use api::etcdserverpb::watch_request::RequestUnion;
use api::mvccpb;
use bytes::{BufMut as _, Bytes, BytesMut};
use gateway_core::watch::{
    Canceled, Create, Entry, Events, Feeds, Filters, NotCreated, Part, Told, Watchers,
};
use keyspace::{Event, EventKind, KeyRange, Revision, wire_len};
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
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
/// The events of a revision are kept in encoded form, too, if they are no longer: those who watch the same then share it.
const KEPT_BYTES_MAX: usize = 256 << 10;
/// What is as long is not copied.
const SHARED_BYTES_LEAST: usize = 16 << 10;
/// Longest piece that is handed on at once.
const PIECE_BYTES_MAX: usize = 256 << 10;
/// `Event.type`, `.kv` and `.prev_kv`.
const EVENT_TYPE: u32 = 1;
const EVENT_KV: u32 = 2;
const EVENT_PREV_KV: u32 = 3;
/// `KeyValue.value`.
const VALUE: u32 = 5;

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
    Encoded { head, spans: Vec::new() }
}

fn encode_events(
    events: Events,
    head: pb::WatchResponse,
    fragment_bytes: usize,
    parts: &mut VecDeque<Encoded>,
) -> Encoded {
    let head = pb::WatchResponse { watch_id: events.id, ..head };
    let spans: Vec<Span> = events.parts.into_iter().map(Span::whole).collect();
    let size = || spans.iter().map(Span::len).sum::<usize>();
    if !events.fragment || events.event_count < 2 || size() < fragment_bytes {
        return Encoded { head, spans };
    }
    let mut fragments: VecDeque<Encoded> = VecDeque::new();
    let mut room = 0;
    for span in &spans {
        for index in span.events.clone() {
            let event = &span.part.entry.events[index];
            if !span.part.filters.passes(event) {
                continue;
            }
            let size = element_len(event);
            if size > room || fragments.is_empty() {
                let head = pb::WatchResponse { fragment: true, ..head.clone() };
                fragments.push_back(Encoded { head, spans: Vec::new() });
                room = fragment_bytes;
            }
            room = room.saturating_sub(size);
            let Some(fragment) = fragments.back_mut() else { continue };
            match fragment.spans.last_mut().filter(|last| last.is_of(span)) {
                Some(last) => last.events.end = index + 1,
                None => fragment.spans.push(Span { part: span.part.clone(), events: index..index + 1 }),
            }
        }
    }
    if let Some(last) = fragments.back_mut() {
        last.head.fragment = false;
    }
    let first = fragments.pop_front().unwrap_or(Encoded { head, spans });
    parts.extend(fragments);
    first
}

/// A response, whose events are encoded as it leaves.
pub(in crate::door) struct Encoded {
    head: pb::WatchResponse,
    spans: Vec<Span>,
}

/// Some of the events of a revision, those that follow each other.
struct Span {
    part: Part,
    events: Range<usize>,
}

impl Span {
    fn whole(part: Part) -> Span {
        let events = 0..part.entry.events.len();
        Span { part, events }
    }

    fn is_of(&self, other: &Span) -> bool {
        Arc::ptr_eq(&self.part.entry, &other.part.entry)
    }

    /// All of them in one piece, made once for all watchers, where that is not much.
    fn shared(&self) -> Option<&Bytes> {
        let entry = &self.part.entry;
        let is_whole = self.events.len() == entry.events.len() && self.part.filters == Filters::default();
        (is_whole && entry.bytes() <= KEPT_BYTES_MAX).then(|| entry.encoded(encode_entry))
    }

    /// Their bytes in the message.
    fn len(&self) -> usize {
        if let Some(shared) = self.shared() {
            return shared.len();
        }
        let events = &self.part.entry.events[self.events.clone()];
        let wanted = events.iter().filter(|event| self.part.filters.passes(event));
        wanted.map(element_len).sum()
    }
}

/// A response on its way, piece by piece.
pub(super) struct Leaving {
    spans: IntoIter<Span>,
    /// The rest of these is encoded next.
    span: Option<Span>,
}

impl Leaving {
    /// Begins a message of gRPC.
    ///
    /// # Errors
    /// It is longer than such a message may be.
    pub(super) fn begin(encoded: Encoded, pieces: &mut Pieces) -> Result<Leaving, Status> {
        let Encoded { head, spans } = encoded;
        let length = head.encoded_len() + spans.iter().map(Span::len).sum::<usize>();
        let length = u32::try_from(length)
            .map_err(|_| Status::resource_exhausted("grpc: trying to send message larger than max"))?;
        // It is not compressed.
        pieces.made.put_u8(0);
        pieces.made.put_u32(length);
        head.encode(&mut pieces.made).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Leaving { spans: spans.into_iter(), span: None })
    }

    /// Encodes on until there is enough for a frame. Returns whether that was the end. The events are the last field of the
    /// message, so they simply follow the rest.
    pub(super) fn go_on(&mut self, pieces: &mut Pieces) -> bool {
        while !pieces.is_enough() {
            let Some(mut span) = self.span.take().or_else(|| self.spans.next()) else { return true };
            if let Some(shared) = span.shared() {
                pieces.put(shared.clone());
                continue;
            }
            while !pieces.is_enough()
                && let Some(index) = span.events.next()
            {
                let event = &span.part.entry.events[index];
                if span.part.filters.passes(event) {
                    encode_element(event, pieces);
                }
            }
            if !span.events.is_empty() {
                // Of what is begun the rest is encoded event by event, also where all of it is little.
                self.span = Some(span);
            }
        }
        false
    }
}

/// What is encoded and has not left: what is short in one buffer, what is long as it is.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    ready: VecDeque<Bytes>,
    made: BytesMut,
}

impl Pieces {
    /// Whether a frame can leave that is as long as frames shall be.
    pub(super) fn is_enough(&self) -> bool {
        !self.ready.is_empty() || self.made.len() >= YIELD_BYTES
    }

    /// What leaves next.
    pub(super) fn take(&mut self) -> Option<Bytes> {
        let mut first = match self.ready.pop_front() {
            Some(first) => first,
            None if self.made.is_empty() => return None,
            None => self.made.split().freeze(),
        };
        if first.len() > PIECE_BYTES_MAX {
            self.ready.push_front(first.split_off(PIECE_BYTES_MAX));
        }
        Some(first)
    }

    fn put(&mut self, bytes: Bytes) {
        if bytes.len() < SHARED_BYTES_LEAST {
            self.made.put(bytes);
            return;
        }
        if !self.made.is_empty() {
            self.ready.push_back(self.made.split().freeze());
        }
        self.ready.push_back(bytes);
    }
}

fn encode_entry(entry: &Entry) -> Bytes {
    let mut pieces = BytesMut::with_capacity(entry.bytes() + 16 * entry.events.len());
    for event in entry.events.iter() {
        let event = convert::event(event);
        encode_key(EVENTS_FIELD, WireType::LengthDelimited, &mut pieces);
        encode_varint(event.encoded_len() as u64, &mut pieces);
        event.encode_raw(&mut pieces);
    }
    pieces.freeze()
}

/// The bytes of an event without its tag and length: what kind it is, unless it is a put, and its entries, whose tags are as
/// long as those of a range's.
fn event_len(event: &Event) -> usize {
    let kind = match event.kind {
        EventKind::Put => 0,
        EventKind::Delete => 2,
    };
    let entries = std::iter::once(&event.kv).chain(&event.prev_kv);
    kind + entries.map(|kv| wire_len(kv, false)).sum::<usize>()
}

/// The bytes of an element of `WatchResponse.events`.
fn element_len(event: &Event) -> usize {
    let length = event_len(event);
    1 + encoded_len_varint(length as u64) + length
}

/// Appends one event as an element of `WatchResponse.events`. Long values are not copied.
fn encode_element(event: &Event, pieces: &mut Pieces) {
    let length = event_len(event);
    let mvccpb::Event { r#type, kv, prev_kv } = convert::event(event);
    encode_key(EVENTS_FIELD, WireType::LengthDelimited, &mut pieces.made);
    encode_varint(length as u64, &mut pieces.made);
    if r#type != 0 {
        prost::encoding::int32::encode(EVENT_TYPE, &r#type, &mut pieces.made);
    }
    for (field, kv) in [(EVENT_KV, kv), (EVENT_PREV_KV, prev_kv)] {
        let Some(mut kv) = kv else { continue };
        encode_key(field, WireType::LengthDelimited, &mut pieces.made);
        encode_varint(kv.encoded_len() as u64, &mut pieces.made);
        let value = std::mem::take(&mut kv.value);
        kv.encode_raw(&mut pieces.made);
        if !value.is_empty() {
            encode_key(VALUE, WireType::LengthDelimited, &mut pieces.made);
            encode_varint(value.len() as u64, &mut pieces.made);
            pieces.put(value);
        }
    }
}

/// Reads the requests of a stream; what the client is told leaves without the library.
pub(super) struct WatchCodec;

impl Codec for WatchCodec {
    type Encode = Infallible;
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
    type Item = Infallible;
    type Error = Status;

    fn encode(&mut self, item: Infallible, _: &mut EncodeBuf<'_>) -> Result<(), Status> {
        match item {}
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
    use keyspace::{KeyValue, RevisionEvents};

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
            let mut bytes = leave(encoded).concat();
            let message = bytes.split_off(5);
            assert_eq!(bytes[1..], (message.len() as u32).to_be_bytes(), "the length is told ahead");
            pb::WatchResponse::decode(Bytes::from(message)).unwrap()
        };
        std::iter::once(first).chain(rest).map(decoded).collect()
    }

    fn leave(encoded: Encoded) -> Vec<Bytes> {
        let mut pieces = Pieces::default();
        let mut leaving = Leaving::begin(encoded, &mut pieces).unwrap();
        let mut left = Vec::new();
        loop {
            let is_end = leaving.go_on(&mut pieces);
            match pieces.take() {
                Some(piece) => left.push(piece),
                None if is_end => return left,
                None => {}
            }
        }
    }

    #[test]
    fn a_large_revision_leaves_in_pieces_and_its_values_are_not_copied() {
        let lengths = [0, 1, 127, 128, 16_383, 16_384, 300_000, 70_000].into_iter().cycle().take(400);
        let event = |(number, length): (usize, usize)| {
            let kv = |value: Bytes, version| KeyValue {
                key: format!("k{number}").into(),
                value,
                create_revision: Revision(300),
                mod_revision: Revision(70_000 + number as i64),
                version,
                lease: keyspace::LeaseId(number as i64 % 3 - 1),
            };
            let value = Bytes::from(vec![number as u8; length]);
            match number % 3 {
                0 => Event { kind: EventKind::Put, kv: kv(value, 1), prev_kv: None },
                1 => {
                    Event { kind: EventKind::Put, kv: kv(value.clone(), 200), prev_kv: Some(kv(value, 199)) }
                }
                _ => {
                    let key =
                        KeyValue { key: "gone".into(), mod_revision: Revision(9), ..KeyValue::default() };
                    Event { kind: EventKind::Delete, kv: key, prev_kv: Some(kv(value, 7)) }
                }
            }
        };
        let events: Arc<[Event]> = lengths.enumerate().map(event).collect();
        let told_of = |filters| {
            let revision = RevisionEvents { revision: Revision(9), events: Arc::clone(&events) };
            let part = Part { entry: Arc::new(Entry::new(revision, 0)), filters };
            Told::Events(Events { id: 7, parts: vec![part], event_count: events.len(), fragment: false })
        };
        for filters in [Filters::default(), Filters { no_put: true, no_delete: false }] {
            let left = leave(encode(told_of(filters), None, 0, &mut VecDeque::new()));
            assert!(left.iter().all(|piece| piece.len() <= PIECE_BYTES_MAX));
            let values = || events.iter().flat_map(|event| event.prev_kv.iter().chain([&event.kv]));
            let is_shared =
                |piece: &&Bytes| values().any(|kv| kv.value.as_ptr() == piece.as_ptr() && !piece.is_empty());
            assert!(left.iter().filter(is_shared).count() >= 50, "the long ones");
            let told = pb::WatchResponse::decode(Bytes::from(left.concat()[5..].to_vec())).unwrap();
            let wanted = events.iter().filter(|event| filters.passes(event)).map(convert::event);
            assert!(told.events.into_iter().eq(wanted));
        }
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
