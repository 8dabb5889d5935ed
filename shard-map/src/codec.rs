//! The encoding of a map on a link: a version byte, then numbers of variable length (LEB128) and bytes preceded by
//! their length. Decoding accepts valid maps only, and takes memory in proportion to its input.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{Epoch, Group, GroupId, Invalid, NodeId, Role, Shard, ShardId, ShardMap};

const VERSION: u8 = 2;

/// The input is no encoding of a valid map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// It cannot be read.
    Malformed(&'static str),
    /// It is of this version, which is not read here.
    UnknownVersion(u8),
    /// It is an encoding, but of no valid map.
    Invalid(Invalid),
}

impl std::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DecodeError::Malformed(reason) => write!(f, "malformed shard map: {reason}"),
            DecodeError::UnknownVersion(version) => {
                write!(f, "a shard map of version {version}, and this Gaios reads version {VERSION}")
            }
            DecodeError::Invalid(invalid) => write!(f, "invalid shard map: {invalid}"),
        }
    }
}

impl std::error::Error for DecodeError {}

impl ShardMap {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut BytesMut) {
        let begin = out.len();
        out.put_u8(VERSION);
        write_number(out, self.epoch.0);
        write_number(out, self.last_shard.0);
        write_number(out, self.shards.len() as u64);
        for shard in &self.shards {
            write_number(out, shard.id.0);
            write_bytes(out, &shard.start);
            write_number(out, shard.group.0);
        }
        write_number(out, self.groups.len() as u64);
        for (id, group) in &self.groups {
            write_number(out, id.0);
            write_number(out, group.replicas.len() as u64);
            for (node, role) in &group.replicas {
                write_number(out, node.0.into());
                out.put_u8(match role {
                    Role::Voter => 0,
                    Role::Learner => 1,
                    Role::Witness => 2,
                });
            }
        }
        write_number(out, self.nodes.len() as u64);
        for (id, address) in &self.nodes {
            write_number(out, id.0.into());
            write_bytes(out, address.as_bytes());
        }
        let written = Bytes::copy_from_slice(&out[begin..]);
        debug_assert_eq!(ShardMap::decode(written).as_ref(), Ok(self), "every map that exists can be read");
    }

    /// Reads an encoding to its end. An error for bytes that are none, of a version that is not known, or of a map that
    /// breaks a rule.
    pub fn decode(mut bytes: Bytes) -> Result<ShardMap, DecodeError> {
        let input = &mut bytes;
        let version = read_byte(input)?;
        if version != VERSION {
            return Err(DecodeError::UnknownVersion(version));
        }
        let epoch = Epoch(read_number(input)?);
        let last_shard = ShardId(read_number(input)?);
        let shards: Vec<_> = read_list(input, 3, |input| {
            let id = ShardId(read_number(input)?);
            Ok(Shard { id, start: own(&read_bytes(input)?), group: GroupId(read_number(input)?) })
        })?;
        let groups = read_list(input, 2, |input| {
            let id = GroupId(read_number(input)?);
            let replicas = read_list(input, 2, |input| {
                let node = read_node(input)?;
                let role = match read_byte(input)? {
                    0 => Role::Voter,
                    1 => Role::Learner,
                    2 => Role::Witness,
                    _ => return Err(DecodeError::Malformed("unknown role")),
                };
                Ok((node, role))
            })?;
            Ok((id, Group { replicas: read_map(replicas)? }))
        })?;
        let nodes = read_list(input, 2, |input| {
            let id = read_node(input)?;
            let address = String::from_utf8(read_bytes(input)?.to_vec())
                .or(Err(DecodeError::Malformed("an address that is no text")))?;
            Ok((id, address))
        })?;
        if !input.is_empty() {
            return Err(DecodeError::Malformed("bytes after the end"));
        }
        let map = ShardMap { epoch, shards, last_shard, groups: read_map(groups)?, nodes: read_map(nodes)? };
        map.validate().map_err(DecodeError::Invalid)?;
        Ok(map)
    }
}

fn write_number(out: &mut BytesMut, mut number: u64) {
    while number >= 0x80 {
        out.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    out.put_u8(number as u8);
}

fn write_bytes(out: &mut BytesMut, bytes: &[u8]) {
    write_number(out, bytes.len() as u64);
    out.put_slice(bytes);
}

fn read_byte(input: &mut Bytes) -> Result<u8, DecodeError> {
    input.try_get_u8().or(Err(DecodeError::Malformed("it is cut off")))
}

fn read_node(input: &mut Bytes) -> Result<NodeId, DecodeError> {
    let number = read_number(input)?;
    u32::try_from(number).map(NodeId).or(Err(DecodeError::Malformed("a node's id is too large")))
}

fn read_number(input: &mut Bytes) -> Result<u64, DecodeError> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = read_byte(input)?;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            break;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(DecodeError::Malformed("a number is too long"))
}

fn read_bytes(input: &mut Bytes) -> Result<Bytes, DecodeError> {
    match usize::try_from(read_number(input)?) {
        Ok(len) if len <= input.len() => Ok(input.split_to(len)),
        Ok(_) | Err(_) => Err(DecodeError::Malformed("it is cut off")),
    }
}

fn read_list<T>(
    input: &mut Bytes,
    item_len_min: usize,
    mut read: impl FnMut(&mut Bytes) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let len = read_number(input)?;
    if len > (input.len() / item_len_min) as u64 {
        return Err(DecodeError::Malformed("it is cut off"));
    }
    (0..len).map(|_| read(input)).collect()
}

/// Each key may stand once.
fn read_map<K: Ord, V>(items: Vec<(K, V)>) -> Result<BTreeMap<K, V>, DecodeError> {
    let len = items.len();
    let map: BTreeMap<K, V> = items.into_iter().collect();
    if map.len() == len { Ok(map) } else { Err(DecodeError::Malformed("an id stands twice")) }
}

/// A map outlives the frame it came in, and should not keep it in memory.
fn own(bytes: &Bytes) -> Bytes {
    Bytes::copy_from_slice(bytes)
}
