//! The compact encoding of commands, queries, answers and events, as they travel over the links and lie in the log.
//!
//! Each encoding begins with a version byte. Numbers are variable-length (LEB128, signed ones zigzagged), bytes are
//! preceded by their length. Decoding shares the input's memory, accepts one encoding of each value up to the length
//! of numbers, and reads input from anywhere: it never panics, its recursion is bounded by [`MAX_TXN_DEPTH`] and its
//! memory by a small multiple of the input's length and [`MAX_TXN_ITEMS`].

mod pieces;
mod reply;
mod request;
mod wire;

use bytes::{Buf, BufMut, Bytes, BytesMut};

pub(crate) use pieces::LateRange;
pub use pieces::{Pieces, outcome_len};
pub(crate) use reply::{
    error_tag, key_value_len, read_key_value, read_outcome, reply_tag, write_key_value, write_outcome,
};
pub(crate) use wire::{Reader, Writer};

use crate::{ClusterVersion, Command, Envelope, Op, Outcome, Proposal, Query, RevisionEvents};

/// How deep transactions may be nested, the outermost included. etcd has no such limit of its own; its budget of
/// operations (128 by default, and one at least is used per level) gives the same.
pub const MAX_TXN_DEPTH: usize = 128;

/// How many comparisons and operations, nested ones included, one request may have. Bounds what a short input can make
/// of memory; a request that etcd's default allows has far fewer.
pub const MAX_TXN_ITEMS: usize = 1 << 16;

const VERSION: u8 = 1;

/// The input is no encoding that this version reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// It is no valid encoding, for this reason.
    Malformed(&'static str),
    /// It is of another version: somebody newer wrote it, if the version is higher.
    UnknownVersion {
        /// Its version.
        found: u8,
        /// The one that is read here.
        known: u8,
    },
}

impl std::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DecodeError::Malformed(reason) => write!(f, "malformed encoding: {reason}"),
            DecodeError::UnknownVersion { found, known } => {
                write!(f, "an encoding of version {found}, and this Gaios reads version {known}")
            }
        }
    }
}

impl std::error::Error for DecodeError {}

impl Proposal {
    /// Appends the encoding, in the oldest version that can say it.
    pub fn encode(&self, out: &mut BytesMut) {
        let version = self.command.version();
        request::write_proposal(&mut Writer::new(out, version.0), version, &self.envelope, &self.command);
    }

    /// Reads an encoding to its end. An error for bytes that are none, or of a version that is not known.
    ///
    /// # Errors
    /// It is none, or one of another version.
    pub fn decode(bytes: Bytes) -> Result<Proposal, DecodeError> {
        Proposal::decode_upto(ClusterVersion::NEWEST, bytes)
    }

    /// The same, as one does who knows no newer version than that.
    ///
    /// # Errors
    /// As there.
    pub fn decode_upto(known: ClusterVersion, bytes: Bytes) -> Result<Proposal, DecodeError> {
        let mut reader = Reader::new(bytes);
        let version = ClusterVersion(reader.version_among(ClusterVersion::FIRST.0, known.0)?);
        let proposal = request::read_proposal(&mut reader, version)?;
        if !reader.is_empty() {
            return Err(DecodeError::Malformed("bytes after the end"));
        }
        if proposal.command.version() != version {
            return Err(DecodeError::Malformed("a later version than it takes to say this"));
        }
        Ok(proposal)
    }
}

impl Command {
    /// Appends the encoding, in an envelope that leaves everything to the log.
    pub fn encode(&self, out: &mut BytesMut) {
        let version = self.version();
        request::write_proposal(&mut Writer::new(out, version.0), version, &Envelope::default(), self);
    }

    /// Reads an encoding to its end: one whose envelope leaves everything to the log, as those must that come from outside
    /// the group.
    ///
    /// # Errors
    /// It is none, or one of another version, or its envelope decides something.
    pub fn decode(bytes: Bytes) -> Result<Command, DecodeError> {
        let Proposal { envelope, command } = Proposal::decode(bytes)?;
        if envelope == Envelope::default() {
            Ok(command)
        } else {
            Err(DecodeError::Malformed("an envelope that is not for the sender to fill"))
        }
    }
}

impl Op {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut BytesMut) {
        request::write_op(&mut Writer::new(out, VERSION), self);
    }

    /// Reads an encoding to its end. An error for bytes that are none, or of a version that is not known.
    pub fn decode(bytes: Bytes) -> Result<Op, DecodeError> {
        Reader::whole(bytes, VERSION, request::read_op)
    }
}

impl Query {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut BytesMut) {
        request::write_query(&mut Writer::new(out, VERSION), self);
    }

    /// Reads an encoding to its end. An error for bytes that are none, or of a version that is not known.
    pub fn decode(bytes: Bytes) -> Result<Query, DecodeError> {
        Reader::whole(bytes, VERSION, request::read_query)
    }
}

/// Appends the encoding of an answer.
pub fn encode_outcome(outcome: &Outcome, out: &mut BytesMut) {
    let at = out.len();
    write_outcome(&mut Writer::new(out, VERSION), outcome);
    debug_assert_eq!(decode_outcome(copy(&out[at..])).as_ref(), Ok(outcome), "an answer can be read");
}

/// Reads the encoding of an answer to its end. An error for bytes that are none, or of a version that is not known.
pub fn decode_outcome(bytes: Bytes) -> Result<Outcome, DecodeError> {
    Reader::whole(bytes, VERSION, read_outcome)
}

impl RevisionEvents {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut BytesMut) {
        let at = out.len();
        reply::write_revision_events(&mut Writer::new(out, VERSION), self);
        debug_assert_eq!(RevisionEvents::decode(copy(&out[at..])).as_ref(), Ok(self), "events can be read");
    }

    /// Reads an encoding to its end. An error for bytes that are none, or of a version that is not known.
    pub fn decode(bytes: Bytes) -> Result<RevisionEvents, DecodeError> {
        Reader::whole(bytes, VERSION, reply::read_revision_events)
    }

    /// Appends the encoding of several revisions, each behind its length.
    pub fn encode_all(revisions: &[RevisionEvents], out: &mut BytesMut) {
        for revision in revisions {
            let at = out.len();
            out.put_u32_le(0);
            revision.encode(out);
            let length = u32::try_from(out.len() - at - 4).expect("a revision is far below 4 GiB");
            out[at..at + 4].copy_from_slice(&length.to_le_bytes());
        }
    }

    /// Reads what [`RevisionEvents::encode_all`] wrote, to its end. An error for anything else.
    pub fn decode_all(mut bytes: Bytes) -> Result<Vec<RevisionEvents>, DecodeError> {
        let mut revisions = Vec::new();
        while !bytes.is_empty() {
            let length = bytes.try_get_u32_le().map_err(|_| DecodeError::Malformed("cut short"))? as usize;
            if length > bytes.len() {
                return Err(DecodeError::Malformed("cut short"));
            }
            revisions.push(RevisionEvents::decode(bytes.split_to(length))?);
        }
        Ok(revisions)
    }
}

/// What was just written, to be read back.
fn copy(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}
