//! Every decoder that bytes from a peer, a gateway or a node's journal reach: no panic, no memory beyond a small multiple
//! of the input, and what decodes encodes to something that decodes to the same.

#![no_main]

use api::gaios::link::v1 as link;
use bytes::{Bytes, BytesMut};
use consensus_core::{Config, LivenessMessage, Message, Record};
use keyspace::{Op, Proposal, Query, RevisionEvents};
use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use shard_map::ShardMap;

fuzz_target!(|data: &[u8]| {
    let Some((decoder, data)) = data.split_first() else { return };
    let bytes = Bytes::copy_from_slice(data);
    match decoder % 12 {
        0 => {
            if let Ok(message) = Message::decode(&mut bytes.clone()) {
                let mut again = BytesMut::new();
                message.encode(&mut again);
                assert_eq!(Message::decode(&mut again.freeze()), Ok(message));
            }
        }
        1 => {
            if let Ok(message) = LivenessMessage::decode(&mut bytes.clone()) {
                let mut again = BytesMut::new();
                message.encode(&mut again);
                assert_eq!(LivenessMessage::decode(&mut again.freeze()), Ok(message));
            }
        }
        2 => {
            let label = data.len().min(Record::LABEL_MAX);
            if let Ok(record) = Record::decode(&data[..label], bytes.slice(label..)) {
                let (mut label, mut payload) = (Vec::new(), Vec::new());
                record.label(&mut label);
                record.payload(|piece| payload.extend_from_slice(piece));
                assert_eq!(Record::decode(&label, payload.into()), Ok(record));
            }
        }
        3 => drop(Config::decode(&mut bytes.clone())),
        4 => {
            if let Ok(proposal) = Proposal::decode(bytes) {
                let mut again = BytesMut::new();
                proposal.encode(&mut again);
                assert_eq!(Proposal::decode(again.freeze()), Ok(proposal));
            }
        }
        5 => {
            if let Ok(query) = Query::decode(bytes) {
                let mut again = BytesMut::new();
                query.encode(&mut again);
                assert_eq!(Query::decode(again.freeze()), Ok(query));
            }
        }
        6 => drop(Op::decode(bytes)),
        7 => {
            if let Ok(outcome) = keyspace::decode_outcome(bytes) {
                let mut again = BytesMut::new();
                keyspace::encode_outcome(&outcome, &mut again);
                assert_eq!(keyspace::decode_outcome(again.freeze()), Ok(outcome));
            }
        }
        8 => {
            if let Ok(revisions) = RevisionEvents::decode_all(bytes) {
                let mut again = BytesMut::new();
                RevisionEvents::encode_all(&revisions, &mut again);
                assert_eq!(RevisionEvents::decode_all(again.freeze()), Ok(revisions));
            }
        }
        9 => {
            if let Ok(map) = ShardMap::decode(bytes) {
                map.validate().expect("only valid maps decode");
            }
        }
        10 => drop(link::GatewayFrame::decode(bytes)),
        _ => drop(link::NodeFrame::decode(bytes)),
    }
});
