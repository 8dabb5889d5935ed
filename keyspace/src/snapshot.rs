//! Snapshots: the whole state in slices, taken while the state goes on being written.
//!
//! The history of the keys is a scan by key at the snapshot's revision, in steps; the versions it needs are held back
//! from sweeping. The small tables are copied when the snapshot begins: leases, alarms, and sessions with their
//! results, which share their bytes with the state.
//!
//! A snapshot is a sequence of items; slices end between items. First comes the header, last the digest, which the
//! restored state must have.

use std::{collections::VecDeque, sync::Arc};

use bytes::{Bytes, BytesMut};

use crate::{
    Alarm, AlarmKind, EventKind, Keyspace, LastWrite, LeaseId, Limits, Outcome, Revision, SESSION_WINDOW,
    SessionId,
    codec::{self, DecodeError, Reader, Writer},
    lease::Leases,
    mvcc::{Mvcc, Pin, Record, own},
    quota::Alarms,
    session::{Session, Sessions},
};

const VERSION: u8 = 1;

const ITEM_HEADER: u8 = 1;
const ITEM_LEASE: u8 = 2;
const ITEM_ALARM: u8 = 3;
const ITEM_SESSION: u8 = 4;
const ITEM_RESULT: u8 = 5;
const ITEM_RECORD: u8 = 6;
const ITEM_END: u8 = 7;
/// After the header, if anybody has said where the group is to be led.
const ITEM_LEADER_REGIONS: u8 = 8;

/// A snapshot being taken. Holds back the sweeping of garbage until it is dropped.
#[derive(Debug)]
pub struct Snapshot {
    applied: u64,
    last_write: LastWrite,
    compact_revision: Revision,
    digest: u64,
    /// What is to be written before the records, in order.
    tables: VecDeque<Item>,
    stage: Stage,
    pin: Arc<Pin>,
}

#[derive(Debug)]
enum Stage {
    Tables,
    /// The records after this one, or all.
    Records(Option<(Bytes, Revision, u32)>),
    Done,
}

#[derive(Debug)]
enum Item {
    Header(Header),
    LeaderRegions(Vec<Bytes>),
    Lease {
        id: LeaseId,
        granted_ttl_s: i64,
        checkpoint_s: i64,
    },
    Alarm(Alarm),
    /// A session; its results follow.
    Session {
        id: SessionId,
        nonce: u128,
        low: u64,
        last_use: u64,
    },
    /// A result of the session before.
    Result {
        seq: u64,
        outcome: Outcome,
    },
}

#[derive(Clone, Copy, Debug)]
struct Header {
    applied: u64,
    last_write: LastWrite,
    compact_revision: Revision,
    limits: Limits,
    last_session: u64,
    session_uses: u64,
}

impl Snapshot {
    pub(crate) fn begin(state: &mut Keyspace) -> Snapshot {
        let (last_session, session_uses) = state.sessions.counters();
        let header = Header {
            applied: state.applied,
            last_write: state.last_write(),
            compact_revision: state.compact_revision(),
            limits: state.limits,
            last_session,
            session_uses,
        };
        let mut tables = VecDeque::from([Item::Header(header)]);
        tables.extend(state.leader_regions.clone().map(Item::LeaderRegions));
        tables.extend(state.leases.rows().map(|(id, granted_ttl_s, checkpoint_s)| Item::Lease {
            id,
            granted_ttl_s,
            checkpoint_s,
        }));
        tables.extend(state.alarms.iter().map(Item::Alarm));
        for (id, session) in state.sessions.iter() {
            let Session { nonce, low, last_use, results: _ } = session;
            tables.push_back(Item::Session { id, nonce: *nonce, low: *low, last_use: *last_use });
            tables.extend(
                session.stored().map(|(seq, outcome)| Item::Result { seq, outcome: outcome.clone() }),
            );
        }
        Snapshot {
            applied: state.applied,
            last_write: state.last_write(),
            compact_revision: state.compact_revision(),
            digest: state.digest(),
            tables,
            stage: Stage::Tables,
            pin: state.mvcc.pin(),
        }
    }

    /// The slot that the snapshot stands at: everything up to it is in the snapshot, nothing after it.
    pub fn slot(&self) -> u64 {
        self.applied
    }

    /// The last write that is in it.
    pub fn last_write(&self) -> LastWrite {
        self.last_write
    }

    /// The digest of the state that the snapshot restores.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The next slice: items until `max_bytes` are reached, and one item at least. None after the last.
    ///
    /// `state` is the one that the snapshot was taken of, however much was applied since.
    pub fn next_slice(&mut self, state: &Keyspace, max_bytes: usize) -> Option<Bytes> {
        assert!(state.mvcc.is_pinned_by(&self.pin), "a snapshot is read from the state it was taken of");
        let mut out = BytesMut::new();
        let mut writer = Writer::new(&mut out, VERSION);
        let mut is_full = false;
        match &mut self.stage {
            Stage::Done => return None,
            Stage::Tables => {
                while !is_full && let Some(item) = self.tables.pop_front() {
                    write_item(&mut writer, &item);
                    is_full = writer.len() >= max_bytes;
                }
                if self.tables.is_empty() {
                    self.tables = VecDeque::new();
                    self.stage = Stage::Records(None);
                }
            }
            Stage::Records(_) => {}
        }
        if let Stage::Records(after) = &mut self.stage
            && !is_full
        {
            let mut last = None;
            let upto = self.last_write.revision();
            for record in state.mvcc.kept(after.as_ref(), upto, self.compact_revision) {
                write_record(&mut writer, record);
                if writer.len() >= max_bytes {
                    last = Some(record);
                    break;
                }
            }
            match last {
                Some(record) => {
                    let (revision, sub) = record.position();
                    *after = Some((record.key().clone(), revision, sub));
                }
                None => {
                    writer.u8(ITEM_END);
                    writer.fixed_u64(self.digest);
                    self.stage = Stage::Done;
                }
            }
        }
        Some(out.freeze())
    }
}

fn write_item(writer: &mut Writer<'_>, item: &Item) {
    match item {
        Item::Header(header) => {
            let Header { applied, last_write, compact_revision, limits, last_session, session_uses } = header;
            writer.u8(ITEM_HEADER);
            writer.u64(*applied);
            writer.i64(last_write.revision().0);
            writer.i64(compact_revision.0);
            writer.u64(limits.quota_bytes);
            writer.u64(u64::from(limits.max_sessions));
            writer.u64(*last_session);
            writer.u64(*session_uses);
        }
        Item::LeaderRegions(regions) => {
            writer.u8(ITEM_LEADER_REGIONS);
            writer.list(regions, |writer, region| writer.bytes(region));
        }
        Item::Lease { id, granted_ttl_s, checkpoint_s } => {
            writer.u8(ITEM_LEASE);
            writer.i64(id.0);
            writer.i64(*granted_ttl_s);
            writer.i64(*checkpoint_s);
        }
        Item::Alarm(Alarm { member, kind }) => {
            writer.u8(ITEM_ALARM);
            writer.u64(*member);
            writer.flags([*kind == AlarmKind::Corrupt]);
        }
        Item::Session { id, nonce, low, last_use } => {
            writer.u8(ITEM_SESSION);
            writer.u64(id.0);
            writer.u128(*nonce);
            writer.u64(*low);
            writer.u64(*last_use);
        }
        Item::Result { seq, outcome } => {
            writer.u8(ITEM_RESULT);
            writer.u64(*seq);
            codec::write_outcome(writer, outcome);
        }
    }
}

fn write_record(writer: &mut Writer<'_>, record: &Record) {
    let (_, sub) = record.position();
    writer.u8(ITEM_RECORD);
    writer.flags([record.kind() == EventKind::Delete]);
    writer.u64(u64::from(sub));
    codec::write_key_value(writer, record.kv());
}

/// Why slices make no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreError {
    /// A slice is malformed.
    Malformed(DecodeError),
    /// The items contradict each other.
    Inconsistent(&'static str),
    /// The slices end before the snapshot does.
    Incomplete,
    /// The restored state has another digest than the one that was snapshot.
    WrongDigest {
        /// The snapshot's.
        expected: u64,
        /// That of the state.
        found: u64,
    },
}

impl std::fmt::Display for RestoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RestoreError::Malformed(error) => error.fmt(f),
            RestoreError::Inconsistent(reason) => write!(f, "inconsistent snapshot: {reason}"),
            RestoreError::Incomplete => f.write_str("incomplete snapshot"),
            RestoreError::WrongDigest { expected, found } => {
                write!(f, "restored digest {found:016x}, but the snapshot's is {expected:016x}")
            }
        }
    }
}

impl std::error::Error for RestoreError {}

impl From<DecodeError> for RestoreError {
    fn from(error: DecodeError) -> RestoreError {
        RestoreError::Malformed(error)
    }
}

/// A state being built from a snapshot's slices.
#[derive(Debug, Default)]
pub struct Restore {
    header: Option<Header>,
    leader_regions: Option<Vec<Bytes>>,
    leases: Leases,
    alarms: Alarms,
    sessions: Vec<(SessionId, Session)>,
    records: Vec<Arc<Record>>,
    /// The key of the last record, shared by all its versions.
    last_key: Bytes,
    digest: Option<u64>,
}

impl Restore {
    /// Nothing restored so far.
    pub fn new() -> Restore {
        Restore::default()
    }

    /// Takes in the next slice.
    pub fn push(&mut self, slice: Bytes) -> Result<(), RestoreError> {
        let mut reader = Reader::new(slice);
        reader.version(VERSION)?;
        while !reader.is_empty() {
            if self.digest.is_some() {
                return Err(RestoreError::Inconsistent("items after the end"));
            }
            let tag = reader.u8()?;
            if (tag == ITEM_HEADER) != self.header.is_none() {
                return Err(RestoreError::Inconsistent("the header is not the first item"));
            }
            self.item(tag, &mut reader)?;
        }
        Ok(())
    }

    /// The state, if it is complete and has the digest of the one that was snapshot.
    pub fn finish(self) -> Result<Keyspace, RestoreError> {
        let (Some(header), Some(digest)) = (self.header, self.digest) else {
            return Err(RestoreError::Incomplete);
        };
        let mvcc = Mvcc::restore(self.records, header.last_write, header.compact_revision)
            .map_err(RestoreError::Inconsistent)?;
        let mut leases = self.leases;
        for kv in mvcc.live() {
            if !kv.lease.is_none() && !leases.contains(kv.lease) {
                return Err(RestoreError::Inconsistent("a key of a lease that does not exist"));
            }
            leases.move_key(&kv.key, LeaseId::NONE, kv.lease);
        }
        let mut sessions = Sessions::default();
        sessions.set_counters(header.last_session, header.session_uses);
        for (id, mut session) in self.sessions {
            session.results.truncate(SESSION_WINDOW as usize);
            if !sessions.insert(id, session) {
                return Err(RestoreError::Inconsistent("two sessions are one"));
            }
        }
        let state = Keyspace {
            mvcc,
            leases,
            sessions,
            alarms: self.alarms,
            limits: header.limits,
            leader_regions: self.leader_regions,
            applied: header.applied,
        };
        let found = state.digest();
        if found == digest { Ok(state) } else { Err(RestoreError::WrongDigest { expected: digest, found }) }
    }

    fn item(&mut self, tag: u8, reader: &mut Reader) -> Result<(), RestoreError> {
        match tag {
            ITEM_HEADER => {
                self.header = Some(Header {
                    applied: reader.u64()?,
                    last_write: LastWrite::at(Revision(reader.i64()?)),
                    compact_revision: Revision(reader.i64()?),
                    limits: Limits {
                        quota_bytes: reader.u64()?,
                        max_sessions: u32::try_from(reader.u64()?)
                            .map_err(|_| RestoreError::Inconsistent("too many sessions"))?,
                    },
                    last_session: reader.u64()?,
                    session_uses: reader.u64()?,
                });
            }
            ITEM_LEADER_REGIONS => {
                let regions = reader.list(1, |reader| Ok(own(&reader.bytes()?)))?;
                if self.leader_regions.replace(regions).is_some() {
                    return Err(RestoreError::Inconsistent("the regions to lead in stand twice"));
                }
            }
            ITEM_LEASE => {
                let (id, granted_ttl_s, checkpoint_s) =
                    (LeaseId(reader.i64()?), reader.i64()?, reader.i64()?);
                if self.leases.contains(id) {
                    return Err(RestoreError::Inconsistent("a lease stands twice"));
                }
                self.leases.insert(id, granted_ttl_s, checkpoint_s);
            }
            ITEM_ALARM => {
                let member = reader.u64()?;
                let [is_corrupt] = reader.flags()?;
                let kind = if is_corrupt { AlarmKind::Corrupt } else { AlarmKind::NoSpace };
                self.alarms.raise(Alarm { member, kind });
            }
            ITEM_SESSION => {
                let id = SessionId(reader.u64()?);
                let (nonce, low, last_use) = (reader.u128()?, reader.u64()?, reader.u64()?);
                self.sessions.push((id, Session { nonce, low, last_use, results: VecDeque::new() }));
            }
            ITEM_RESULT => {
                let seq = reader.u64()?;
                let outcome = codec::read_outcome(reader)?;
                let Some((_, session)) = self.sessions.last_mut() else {
                    return Err(RestoreError::Inconsistent("a result without a session"));
                };
                // Results come in the order of their numbers.
                let next = session.low.saturating_add(session.results.len() as u64);
                match seq.checked_sub(session.low) {
                    Some(offset) if seq > next && offset <= SESSION_WINDOW => {
                        session.results.resize_with(offset as usize - 1, || None);
                        session.results.push_back(Some(outcome));
                    }
                    Some(_) | None => return Err(RestoreError::Inconsistent("a result outside its window")),
                }
            }
            ITEM_RECORD => {
                let [is_delete] = reader.flags()?;
                let kind = if is_delete { EventKind::Delete } else { EventKind::Put };
                let sub = u32::try_from(reader.u64()?)
                    .map_err(|_| RestoreError::Inconsistent("a place out of bounds"))?;
                let mut kv = codec::read_key_value(reader)?;
                if kv.key != self.last_key {
                    self.last_key = own(&kv.key);
                }
                kv.key = self.last_key.clone();
                kv.value = own(&kv.value);
                self.records.push(Arc::new(Record::new(kv, sub, kind)));
            }
            ITEM_END => self.digest = Some(reader.fixed_u64()?),
            _ => return Err(RestoreError::Inconsistent("an unknown item")),
        }
        Ok(())
    }
}
