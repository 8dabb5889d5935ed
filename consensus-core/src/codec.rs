//! The wire and journal form of everything: fixed little-endian fields, a version byte first, lengths checked against
//! what is there before anything is allocated. What arrives from a peer or a disk may be anything; decoding it ends
//! in a value or a [`DecodeError`].

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::label::{LABEL_BYTES_MAX, RecordKind, RecordLabel};
use crate::message::{
    Accept, Accepted, Chosen, Commit, Entries, Fetch, Fortified, Fortify, Handoff, Heartbeat, HeartbeatAck,
    Nack, PreVote, PreVoteReply, Prepare, Promise, ReadIndex, ReadIndexReply, Recall, Recalled, Resigned,
    Vouched,
};
use crate::{
    Ballot, Config, Epoch, Kind, LivenessMessage, Message, Mono, NodeId, NodeSet, Slot, Value, Vote,
    VoteBallot,
};

/// First byte of every message, label and value.
const VERSION: u8 = 1;

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The bytes end before the value does.
    Truncated,
    /// Written by a version this build does not know.
    Version(u8),
    /// A number that names no message, record or variant.
    Unknown(u8),
    /// Bytes are left over.
    TrailingBytes,
    /// A field holds what no sender writes.
    Invalid(&'static str),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::Truncated => f.write_str("truncated"),
            DecodeError::Version(version) => write!(f, "unknown version {version}"),
            DecodeError::Unknown(number) => write!(f, "unknown kind {number}"),
            DecodeError::TrailingBytes => f.write_str("trailing bytes"),
            DecodeError::Invalid(what) => write!(f, "invalid: {what}"),
        }
    }
}

impl std::error::Error for DecodeError {}

type Result<T> = std::result::Result<T, DecodeError>;

/// A type with one byte form.
trait Wire: Sized {
    fn put(&self, out: &mut impl BufMut);
    fn take(bytes: &mut Bytes) -> Result<Self>;
}

impl Wire for u8 {
    fn put(&self, out: &mut impl BufMut) {
        out.put_u8(*self);
    }
    fn take(bytes: &mut Bytes) -> Result<u8> {
        bytes.try_get_u8().map_err(|_| DecodeError::Truncated)
    }
}

impl Wire for u32 {
    fn put(&self, out: &mut impl BufMut) {
        out.put_u32_le(*self);
    }
    fn take(bytes: &mut Bytes) -> Result<u32> {
        bytes.try_get_u32_le().map_err(|_| DecodeError::Truncated)
    }
}

impl Wire for u64 {
    fn put(&self, out: &mut impl BufMut) {
        out.put_u64_le(*self);
    }
    fn take(bytes: &mut Bytes) -> Result<u64> {
        bytes.try_get_u64_le().map_err(|_| DecodeError::Truncated)
    }
}

impl Wire for bool {
    fn put(&self, out: &mut impl BufMut) {
        out.put_u8(u8::from(*self));
    }
    fn take(bytes: &mut Bytes) -> Result<bool> {
        match u8::take(bytes)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Invalid("boolean")),
        }
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, out: &mut impl BufMut) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }
    fn take(bytes: &mut Bytes) -> Result<Option<T>> {
        Ok(if bool::take(bytes)? { Some(T::take(bytes)?) } else { None })
    }
}

/// A struct is its fields, in this order.
macro_rules! wire_struct {
    ($($name:ident { $($field:ident),* $(,)? })*) => {$(
        impl Wire for $name {
            fn put(&self, out: &mut impl BufMut) {
                $(self.$field.put(out);)*
            }
            fn take(bytes: &mut Bytes) -> Result<$name> {
                $(let $field = Wire::take(bytes)?;)*
                Ok($name { $($field),* })
            }
        }
    )*};
}

/// A newtype is what it holds.
macro_rules! wire_newtype {
    ($($name:ident)*) => {$(
        impl Wire for $name {
            fn put(&self, out: &mut impl BufMut) {
                self.0.put(out);
            }
            fn take(bytes: &mut Bytes) -> Result<$name> {
                Ok($name(Wire::take(bytes)?))
            }
        }
    )*};
}

/// An enum of messages is a number and the message.
macro_rules! wire_enum {
    ($name:ident { $($number:literal = $variant:ident),* $(,)? }) => {
        impl $name {
            /// Appends the wire form to `out`.
            pub fn encode(&self, out: &mut BytesMut) {
                out.put_u8(VERSION);
                match self {
                    $($name::$variant(message) => {
                        out.put_u8($number);
                        message.put(out);
                    })*
                }
            }

            /// Takes one message, which must be all there is. Commands share the memory of `bytes`. An error for bytes that are
            /// no such message, or one of a version that is not known.
            pub fn decode(bytes: &mut Bytes) -> std::result::Result<$name, DecodeError> {
                take_version(bytes)?;
                let message = match u8::take(bytes)? {
                    $($number => $name::$variant(Wire::take(bytes)?),)*
                    number => return Err(DecodeError::Unknown(number)),
                };
                if bytes.has_remaining() { Err(DecodeError::TrailingBytes) } else { Ok(message) }
            }
        }
    };
}

wire_newtype! { NodeId Slot Mono }

wire_struct! {
    Ballot { round, node }
    Epoch { incarnation, count }
    VoteBallot { ballot, kind }
    Vote { vote_ballot, value }
    PreVote { ballot, commit, config_epoch }
    PreVoteReply { ballot, granted, promised, commit, leader }
    Prepare { ballot, from, config_epoch }
    Promise { ballot, votes, commit, max_voted, faulty_from, part, parts }
    Nack { ballot, promised, config_epoch, leader }
    Accept { ballot, commit, entries }
    Accepted { ballot, upto, commit, max_voted, grants }
    Commit { ballot, commit }
    Fortify { ballot, config_epoch, epoch }
    Fortified { ballot, config_epoch, epoch, max_voted }
    ReadIndex { ballot, round }
    ReadIndexReply { ballot, round }
    Fetch { from, upto }
    Chosen { commit, entries }
    Handoff { ballot }
    Resigned { ballot }
    Recall { incarnation, question }
    Recalled { incarnation, question, promised, proposed }
    Vouched { incarnation }
    Heartbeat { epoch, sent_at, receiver_incarnation, wants_support, hears }
    HeartbeatAck { sent_at, incarnation, epoch, granted, required }
}

wire_enum! {
    Message {
        1 = PreVote,
        2 = PreVoteReply,
        3 = Prepare,
        4 = Promise,
        5 = Nack,
        6 = Accept,
        7 = Accepted,
        8 = Commit,
        9 = Fortify,
        10 = Fortified,
        11 = ReadIndex,
        12 = ReadIndexReply,
        13 = Fetch,
        14 = Chosen,
        15 = Handoff,
        16 = Resigned,
        17 = Recall,
        18 = Recalled,
        19 = Vouched,
    }
}

wire_enum! {
    LivenessMessage {
        1 = Heartbeat,
        2 = HeartbeatAck,
    }
}

impl Config {
    /// Appends the byte form to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u8(VERSION);
        self.put(out);
    }

    /// Takes a configuration, which must be all there is, and checks it. An error for bytes that are none, or one that
    /// cannot be used.
    pub fn decode(bytes: &mut Bytes) -> std::result::Result<Config, DecodeError> {
        take_version(bytes)?;
        let config = Config::take(bytes)?;
        if bytes.has_remaining() { Err(DecodeError::TrailingBytes) } else { Ok(config) }
    }
}

impl Wire for Kind {
    fn put(&self, out: &mut impl BufMut) {
        out.put_u8(match self {
            Kind::Fast => 0,
            Kind::Classic => 1,
        });
    }
    fn take(bytes: &mut Bytes) -> Result<Kind> {
        match u8::take(bytes)? {
            0 => Ok(Kind::Fast),
            1 => Ok(Kind::Classic),
            _ => Err(DecodeError::Invalid("kind of ballot")),
        }
    }
}

impl Wire for NodeSet {
    fn put(&self, out: &mut impl BufMut) {
        put_len(self.len(), out);
        for node in self.iter() {
            node.put(out);
        }
    }
    fn take(bytes: &mut Bytes) -> Result<NodeSet> {
        let len = take_len(bytes, 4)?;
        let mut nodes = NodeSet::new();
        let mut last = None;
        for _ in 0..len {
            let node = NodeId::take(bytes)?;
            if last >= Some(node) {
                return Err(DecodeError::Invalid("unsorted set of nodes"));
            }
            last = Some(node);
            nodes.push_last(node);
        }
        Ok(nodes)
    }
}

impl Wire for Config {
    fn put(&self, out: &mut impl BufMut) {
        assert_eq!(self.check(), Ok(()), "a configuration that cannot be used is not read back");
        self.epoch.put(out);
        self.voters.put(out);
        // Nodes without a vote, which no configuration has.
        NodeSet::new().put(out);
        self.q1.put(out);
        self.q2.put(out);
        self.qf.put(out);
        self.lease_eligible.put(out);
    }
    fn take(bytes: &mut Bytes) -> Result<Config> {
        let epoch = Wire::take(bytes)?;
        let voters = Wire::take(bytes)?;
        if !NodeSet::take(bytes)?.is_empty() {
            return Err(DecodeError::Invalid("configuration with nodes that do not vote"));
        }
        let config = Config {
            epoch,
            voters,
            q1: Wire::take(bytes)?,
            q2: Wire::take(bytes)?,
            qf: Wire::take(bytes)?,
            lease_eligible: Wire::take(bytes)?,
        };
        config.check().map_err(|_| DecodeError::Invalid("configuration"))?;
        Ok(config)
    }
}

impl Wire for Value {
    fn put(&self, out: &mut impl BufMut) {
        write_value(self, |piece| out.put_slice(piece));
    }
    fn take(bytes: &mut Bytes) -> Result<Value> {
        decode_value(bytes)
    }
}

impl Wire for Vec<NodeId> {
    fn put(&self, out: &mut impl BufMut) {
        put_len(self.len(), out);
        for node in self {
            node.put(out);
        }
    }
    fn take(bytes: &mut Bytes) -> Result<Vec<NodeId>> {
        let len = take_len(bytes, 4)?;
        (0..len).map(|_| NodeId::take(bytes)).collect()
    }
}

impl Wire for Vec<(Slot, Vote)> {
    fn put(&self, out: &mut impl BufMut) {
        debug_assert!(self.is_sorted_by(|(one, _), (next, _)| one < next), "others are refused");
        put_len(self.len(), out);
        for (slot, vote) in self {
            slot.put(out);
            vote.put(out);
        }
    }
    fn take(bytes: &mut Bytes) -> Result<Vec<(Slot, Vote)>> {
        // Slot, ballot and the flag of an absent value.
        let len = take_len(bytes, 22)?;
        let mut votes = Vec::new();
        for _ in 0..len {
            let slot = Slot::take(bytes)?;
            ascending(votes.last().map(|(last, _)| *last), slot)?;
            votes.push((slot, Vote::take(bytes)?));
        }
        Ok(votes)
    }
}

impl Wire for Entries {
    fn put(&self, out: &mut impl BufMut) {
        debug_assert!(self.is_sorted_by(|(one, _), (next, _)| one < next), "others are refused");
        put_len(self.len(), out);
        for (slot, value) in self {
            slot.put(out);
            value.put(out);
        }
    }
    fn take(bytes: &mut Bytes) -> Result<Entries> {
        // Slot and the tag of a value.
        let len = take_len(bytes, 9)?;
        let mut entries = Entries::new();
        for _ in 0..len {
            let slot = Slot::take(bytes)?;
            ascending(entries.last().map(|(last, _)| *last), slot)?;
            entries.push((slot, Value::take(bytes)?));
        }
        Ok(entries)
    }
}

fn ascending(last: Option<Slot>, slot: Slot) -> Result<()> {
    if last >= Some(slot) { Err(DecodeError::Invalid("slots out of order")) } else { Ok(()) }
}

fn take_version(bytes: &mut Bytes) -> Result<()> {
    match u8::take(bytes)? {
        VERSION => Ok(()),
        version => Err(DecodeError::Version(version)),
    }
}

fn put_len(len: usize, out: &mut impl BufMut) {
    out.put_u32_le(u32::try_from(len).expect("far fewer than 2^32 elements fit in what a group may queue"));
}

/// A count of elements of at least `element` bytes each, all of which must still be there.
fn take_len(bytes: &mut Bytes, element: usize) -> Result<usize> {
    let len = u32::take(bytes)? as usize;
    match len.checked_mul(element) {
        Some(needed) if needed <= bytes.remaining() => Ok(len),
        Some(_) | None => Err(DecodeError::Truncated),
    }
}

const VALUE_NOOP: u8 = 0;
const VALUE_BATCH: u8 = 1;
/// Stands before the configuration that a base carries.
const BASE_CONFIG: u8 = 2;

/// Hands the byte form of `value` to `write`, commands as they lie in memory.
pub(crate) fn write_value(value: &Value, mut write: impl FnMut(&[u8])) {
    match value {
        Value::Noop => write(&[VALUE_NOOP]),
        Value::Batch(commands) => {
            let count = u32::try_from(commands.len()).expect("a batch is bounded in bytes");
            let mut head = [VALUE_BATCH; 5];
            head[1..].copy_from_slice(&count.to_le_bytes());
            write(&head);
            for command in commands.iter() {
                let len = u32::try_from(command.len()).expect("a command is bounded in bytes");
                write(&len.to_le_bytes());
                write(command);
            }
        }
    }
}

/// Hands the byte form of what a base carries beside its label to `write`.
pub(crate) fn write_base(config: &Config, mut write: impl FnMut(&[u8])) {
    let mut bytes = vec![BASE_CONFIG];
    config.put(&mut bytes);
    write(&bytes);
}

/// Takes what [`write_base`] wrote off the front of `bytes`.
pub(crate) fn decode_base(bytes: &mut Bytes) -> Result<Config> {
    match u8::take(bytes)? {
        BASE_CONFIG => Config::take(bytes),
        _ => Err(DecodeError::Invalid("base without configuration")),
    }
}

/// Takes a value off the front of `bytes`. Commands share its memory.
pub(crate) fn decode_value(bytes: &mut Bytes) -> Result<Value> {
    match u8::take(bytes)? {
        VALUE_NOOP => Ok(Value::Noop),
        VALUE_BATCH => {
            let count = take_len(bytes, 4)?;
            let mut commands = Vec::with_capacity(count);
            for _ in 0..count {
                let len = take_len(bytes, 1)?;
                commands.push(bytes.split_to(len));
            }
            Ok(Value::Batch(commands.into()))
        }
        tag => Err(DecodeError::Unknown(tag)),
    }
}

/// Version 1, kind 1, flag 1, faulty 1 + 8, slot 8, ballot 13, commit 8: 41 bytes of at most 48.
pub(crate) fn encode_label(label: &RecordLabel, out: &mut Vec<u8>) {
    let start = out.len();
    out.put_u8(VERSION);
    out.put_u8(match label.kind {
        RecordKind::Promised => 1,
        RecordKind::Vote => 2,
        RecordKind::Chosen => 3,
        RecordKind::Base => 4,
        RecordKind::Faulty => 5,
        RecordKind::Healed => 6,
        RecordKind::Revote => 7,
        RecordKind::Survived => 8,
    });
    label.flag.put(out);
    label.faulty_from.put(out);
    label.slot.put(out);
    label.vote_ballot.put(out);
    label.commit.put(out);
    assert!(out.len() - start <= LABEL_BYTES_MAX, "the journal has room for no more");
    debug_assert_eq!(decode_label(&out[start..]), Ok(*label), "what is written can be read back");
}

pub(crate) fn decode_label(label: &[u8]) -> Result<RecordLabel> {
    if label.len() > LABEL_BYTES_MAX {
        return Err(DecodeError::TrailingBytes);
    }
    let mut bytes = Bytes::copy_from_slice(label);
    take_version(&mut bytes)?;
    let kind = match u8::take(&mut bytes)? {
        1 => RecordKind::Promised,
        2 => RecordKind::Vote,
        3 => RecordKind::Chosen,
        4 => RecordKind::Base,
        5 => RecordKind::Faulty,
        6 => RecordKind::Healed,
        7 => RecordKind::Revote,
        8 => RecordKind::Survived,
        number => return Err(DecodeError::Unknown(number)),
    };
    let label = RecordLabel {
        kind,
        flag: Wire::take(&mut bytes)?,
        faulty_from: Wire::take(&mut bytes)?,
        slot: Wire::take(&mut bytes)?,
        vote_ballot: Wire::take(&mut bytes)?,
        commit: Wire::take(&mut bytes)?,
    };
    if bytes.has_remaining() { Err(DecodeError::TrailingBytes) } else { Ok(label) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::Record;

    fn node() -> impl Strategy<Value = NodeId> {
        any::<u32>().prop_map(NodeId)
    }

    fn slot() -> impl Strategy<Value = Slot> {
        prop_oneof![1u64..100, any::<u64>()].prop_map(Slot)
    }

    fn ballot() -> impl Strategy<Value = Ballot> {
        (any::<u64>(), node()).prop_map(|(round, node)| Ballot { round, node })
    }

    fn vote_ballot() -> impl Strategy<Value = VoteBallot> {
        (ballot(), any::<bool>()).prop_map(|(ballot, fast)| VoteBallot {
            ballot,
            kind: if fast { Kind::Fast } else { Kind::Classic },
        })
    }

    fn epoch() -> impl Strategy<Value = Epoch> {
        (any::<u64>(), any::<u64>()).prop_map(|(incarnation, count)| Epoch { incarnation, count })
    }

    fn bytes() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from)
    }

    fn config() -> impl Strategy<Value = Arc<Config>> {
        (1u32..=9, any::<u64>(), any::<bool>()).prop_map(|(n, epoch, fast)| {
            let config = Config::majority((1..=n).map(NodeId));
            let qf = (fast && n >= 4).then_some((n - n / 4) as u8);
            Arc::new(Config { epoch, qf, ..config })
        })
    }

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Noop),
            prop::collection::vec(bytes(), 0..5).prop_map(|commands| Value::Batch(commands.into())),
        ]
    }

    fn entries() -> impl Strategy<Value = Entries> {
        prop::collection::btree_map(any::<u64>().prop_map(Slot), value(), 0..4)
            .prop_map(|entries| entries.into_iter().collect())
    }

    fn votes() -> impl Strategy<Value = Vec<(Slot, Vote)>> {
        let vote = (vote_ballot(), prop::option::of(value()))
            .prop_map(|(vote_ballot, value)| Vote { vote_ballot, value });
        prop::collection::btree_map(any::<u64>().prop_map(Slot), vote, 0..4)
            .prop_map(|votes| votes.into_iter().collect())
    }

    fn nodes() -> impl Strategy<Value = NodeSet> {
        prop::collection::vec(node(), 0..12).prop_map(|nodes| nodes.into_iter().collect())
    }

    fn message() -> impl Strategy<Value = Message> {
        let leader = || prop::option::of(ballot());
        prop_oneof![
            (ballot(), slot(), any::<u64>()).prop_map(|(ballot, commit, config_epoch)| Message::PreVote(
                PreVote { ballot, commit, config_epoch }
            )),
            (ballot(), any::<bool>(), ballot(), slot(), leader()).prop_map(
                |(ballot, granted, promised, commit, leader)| {
                    Message::PreVoteReply(PreVoteReply { ballot, granted, promised, commit, leader })
                }
            ),
            (ballot(), slot(), any::<u64>()).prop_map(|(ballot, from, config_epoch)| Message::Prepare(
                Prepare { ballot, from, config_epoch }
            )),
            (ballot(), votes(), slot(), slot(), prop::option::of(slot()), any::<u32>(), any::<u32>())
                .prop_map(|(ballot, votes, commit, max_voted, faulty_from, part, parts)| {
                    Message::Promise(Promise { ballot, votes, commit, max_voted, faulty_from, part, parts })
                }),
            (ballot(), ballot(), any::<u64>(), leader()).prop_map(
                |(ballot, promised, config_epoch, leader)| {
                    Message::Nack(Nack { ballot, promised, config_epoch, leader })
                }
            ),
            (ballot(), slot(), entries()).prop_map(|(ballot, commit, entries)| Message::Accept(Accept {
                ballot,
                commit,
                entries
            })),
            (ballot(), slot(), slot(), slot(), nodes()).prop_map(
                |(ballot, upto, commit, max_voted, grants)| {
                    Message::Accepted(Accepted { ballot, upto, commit, max_voted, grants })
                }
            ),
            (ballot(), slot()).prop_map(|(ballot, commit)| Message::Commit(Commit { ballot, commit })),
            (leader(), any::<u64>(), epoch()).prop_map(|(ballot, config_epoch, epoch)| Message::Fortify(
                Fortify { ballot, config_epoch, epoch }
            )),
            (leader(), any::<u64>(), epoch(), slot()).prop_map(|(ballot, config_epoch, epoch, max_voted)| {
                Message::Fortified(Fortified { ballot, config_epoch, epoch, max_voted })
            }),
            (ballot(), any::<u64>())
                .prop_map(|(ballot, round)| Message::ReadIndex(ReadIndex { ballot, round })),
            (ballot(), any::<u64>())
                .prop_map(|(ballot, round)| Message::ReadIndexReply(ReadIndexReply { ballot, round })),
            (slot(), slot()).prop_map(|(from, upto)| Message::Fetch(Fetch { from, upto })),
            (slot(), entries()).prop_map(|(commit, entries)| Message::Chosen(Chosen { commit, entries })),
            ballot().prop_map(|ballot| Message::Handoff(Handoff { ballot })),
            ballot().prop_map(|ballot| Message::Resigned(Resigned { ballot })),
            any::<[u64; 2]>()
                .prop_map(|[incarnation, question]| Message::Recall(Recall { incarnation, question })),
            (any::<[u64; 2]>(), prop::option::of(ballot()), prop::option::of(slot())).prop_map(
                |([incarnation, question], promised, proposed)| {
                    Message::Recalled(Recalled { incarnation, question, promised, proposed })
                }
            ),
            any::<u64>().prop_map(|incarnation| Message::Vouched(Vouched { incarnation })),
        ]
    }

    fn liveness_message() -> impl Strategy<Value = LivenessMessage> {
        prop_oneof![
            (epoch(), any::<u64>(), any::<u64>(), any::<bool>(), prop::collection::vec(node(), 0..5))
                .prop_map(|(epoch, sent_at, receiver_incarnation, wants_support, hears)| {
                    let sent_at = Mono(sent_at);
                    let heartbeat = Heartbeat { epoch, sent_at, receiver_incarnation, wants_support, hears };
                    LivenessMessage::Heartbeat(heartbeat)
                }),
            (any::<u64>(), any::<u64>(), epoch(), any::<bool>(), epoch()).prop_map(
                |(sent_at, incarnation, epoch, granted, required)| {
                    let sent_at = Mono(sent_at);
                    LivenessMessage::HeartbeatAck(HeartbeatAck {
                        sent_at,
                        incarnation,
                        epoch,
                        granted,
                        required,
                    })
                }
            ),
        ]
    }

    fn record() -> impl Strategy<Value = Record> {
        prop_oneof![
            ballot().prop_map(|ballot| Record::Promised { ballot }),
            (slot(), vote_ballot(), slot(), prop::option::of(value())).prop_map(
                |(slot, vote_ballot, commit, value)| Record::Vote { slot, vote_ballot, commit, value }
            ),
            (slot(), vote_ballot(), slot()).prop_map(|(slot, vote_ballot, commit)| Record::Revote {
                slot,
                vote_ballot,
                commit
            }),
            (slot(), slot(), value()).prop_map(|(slot, commit, value)| Record::Chosen {
                slot,
                commit,
                value
            }),
            (slot(), ballot(), prop::option::of(slot()), any::<bool>(), config()).prop_map(
                |(slot, promised, faulty_from, promise_lost, config)| {
                    Record::Base { slot, promised, faulty_from, promise_lost, config }
                }
            ),
            (slot(), any::<bool>()).prop_map(|(from, promise_lost)| Record::Faulty { from, promise_lost }),
            (ballot(), prop::option::of(slot()))
                .prop_map(|(promised, relied_upto)| Record::Healed { promised, relied_upto }),
        ]
    }

    fn wire(message: &Message) -> Vec<u8> {
        let mut out = BytesMut::new();
        message.encode(&mut out);
        out.to_vec()
    }

    proptest! {
        #[test]
        fn messages_come_back(message in message()) {
            let bytes = wire(&message);
            prop_assert_eq!(Message::decode(&mut Bytes::from(bytes.clone())), Ok(message));
            for len in 0..bytes.len() {
                let cut = Message::decode(&mut Bytes::copy_from_slice(&bytes[..len]));
                prop_assert!(cut.is_err(), "{} of {} bytes are not a message", len, bytes.len());
            }
            let longer = [&bytes[..], &[0]].concat();
            prop_assert!(Message::decode(&mut Bytes::from(longer)).is_err());
        }

        #[test]
        fn liveness_messages_come_back(message in liveness_message()) {
            let mut out = BytesMut::new();
            message.encode(&mut out);
            prop_assert_eq!(LivenessMessage::decode(&mut out.freeze()), Ok(message));
        }

        #[test]
        fn configurations_come_back(config in config()) {
            let mut out = BytesMut::new();
            config.encode(&mut out);
            prop_assert_eq!(Config::decode(&mut out.freeze()), Ok((*config).clone()));
        }

        #[test]
        fn records_come_back(record in record()) {
            let (mut label, mut payload) = (Vec::new(), Vec::new());
            record.label(&mut label);
            record.payload(|piece| payload.extend_from_slice(piece));
            prop_assert!(label.len() <= Record::LABEL_MAX);
            prop_assert_eq!(payload.len(), record.payload_len());
            prop_assert_eq!(Record::decode(&label, Bytes::from(payload)), Ok(record));
        }

        #[test]
        fn garbage_is_refused_and_nothing_worse(garbage in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::decode(&mut Bytes::from(garbage.clone()));
            let _ = LivenessMessage::decode(&mut Bytes::from(garbage.clone()));
            let _ = Config::decode(&mut Bytes::from(garbage.clone()));
            let _ = Record::decode_label(&garbage);
            let (label, payload) = garbage.split_at(garbage.len().min(41));
            let _ = Record::decode(label, Bytes::copy_from_slice(payload));
        }

        /// A damaged message is refused, or is some other message that the engine can judge.
        #[test]
        fn damage_is_refused_or_harmless(message in message(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut bytes = wire(&message);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            if let Ok(other) = Message::decode(&mut Bytes::from(bytes)) {
                prop_assert!(other != message);
                let _ = other.is_plausible();
            }
        }
    }

    /// What journals hold is read, and a change of membership, for which there is no rule, is not.
    #[test]
    fn the_form_of_a_base_is_fixed_and_is_no_value() {
        let config = Arc::new(Config::majority([NodeId(1)]));
        let base = Record::Base {
            slot: Slot(5),
            promised: Ballot::default(),
            faulty_from: None,
            promise_lost: false,
            config,
        };
        let one_node = [&1u32.to_le_bytes()[..], &1u32.to_le_bytes()].concat();
        let none = 0u32.to_le_bytes();
        let payload = [&[2][..], &1u64.to_le_bytes(), &one_node, &none, &[1, 1, 0], &one_node].concat();
        let mut written = Vec::new();
        base.payload(|piece| written.extend_from_slice(piece));
        assert_eq!(written, payload);
        assert_eq!(decode_value(&mut Bytes::from(payload)), Err(DecodeError::Unknown(2)));
        let without_vote =
            [&[2][..], &1u64.to_le_bytes(), &one_node, &one_node, &[1, 1, 0], &one_node].concat();
        let refused = Err(DecodeError::Invalid("configuration with nodes that do not vote"));
        assert_eq!(decode_base(&mut Bytes::from(without_vote)), refused);
    }

    /// The form on the wire is fixed: a change needs a new version.
    #[test]
    fn the_form_on_the_wire_is_fixed() {
        let ballot = Ballot { round: 7, node: NodeId(2) };
        let value = Value::Batch(vec![Bytes::from_static(b"ab"), Bytes::from_static(b"c")].into());
        let accept = Accept { ballot, commit: Slot(3), entries: [(Slot(4), value)].into_iter().collect() };
        let expected = [
            &[1u8, 6][..],
            &7u64.to_le_bytes(),
            &2u32.to_le_bytes(),
            &3u64.to_le_bytes(),
            &1u32.to_le_bytes(),
            &4u64.to_le_bytes(),
            &[1],
            &2u32.to_le_bytes(),
            &2u32.to_le_bytes(),
            b"ab",
            &1u32.to_le_bytes(),
            b"c",
        ];
        assert_eq!(wire(&Message::Accept(accept)), expected.concat());
    }
}
