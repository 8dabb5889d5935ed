//! Snapshots: the whole state in slices, taken while the state goes on being written.
//!
//! The history of the keys is a scan by key at the snapshot's revision, in steps; the versions it needs are held back
//! from sweeping. The small tables are copied when the snapshot begins: leases, alarms, and sessions with their
//! results, which share their bytes with the state.
//!
//! A snapshot is a sequence of items; slices end between items. First comes the header, then what is the group's, then each
//! shard with the results of writes to it, then the records of each shard; last the digest, which the restored state must
//! have.

use std::{collections::VecDeque, sync::Arc};

use bytes::{Bytes, BytesMut};

use crate::{
    Alarm, AlarmKind, Broken, ClockStart, ClusterVersion, Epoch, EventKind, KeyRange, Keyspace, LastWrite,
    LeaseId, LeaseSerial, Limits, Outcome, Revision, SessionId, ShardId, ShardSpan, WriteBounds,
    alarm::Alarms,
    codec::{self, DecodeError, Reader, Writer},
    lease::{Lease, Leases, are_serials_good},
    mvcc::{Mvcc, Pin, Record, own},
    results::{Results, Window},
    session::{Session, Sessions},
    shard::{Attachments, Shard, Shards},
};

/// The first one knew no shards.
const VERSION_LEAST: u8 = 2;
/// With the cluster version, and numbers of leases' grants. A snapshot is written in the oldest version that can hold it: as long
/// as the first cluster version is in force, in one that all replicas read.
const VERSION: u8 = 3;

const ITEM_HEADER: u8 = 1;
const ITEM_LEASE: u8 = 2;
const ITEM_ALARM: u8 = 3;
const ITEM_SESSION: u8 = 4;
const ITEM_RESULT: u8 = 5;
const ITEM_RECORD: u8 = 6;
const ITEM_END: u8 = 7;
/// After the header, if anybody has said where the group is to be led.
const ITEM_LEADER_REGIONS: u8 = 8;
const ITEM_SHARD: u8 = 9;
/// Of a session in the shard before, or in the group if there is none.
const ITEM_RESULTS: u8 = 10;
/// The records that follow are of this shard.
const ITEM_RECORDS: u8 = 11;
/// After the header: the number of the last grant of a lease. Since version 3.
const ITEM_LAST_SERIAL: u8 = 12;
/// A lease whose grant has a number. Since version 3.
const ITEM_NUMBERED_LEASE: u8 = 13;
/// After the header: the cluster version in force, unless it is the first one. Since version 3.
const ITEM_CLUSTER_VERSION: u8 = 14;
/// After the header: the lease clock that has begun last. Since version 3.
const ITEM_CLOCK: u8 = 15;

/// A snapshot being taken. Holds back the sweeping of garbage until it is dropped.
#[derive(Debug)]
pub struct Snapshot {
    /// Of the encoding.
    version: u8,
    applied: u64,
    digest: u64,
    /// What is to be written before the records, in order.
    tables: VecDeque<Item>,
    stage: Stage,
    shards: Vec<PinnedShard>,
}

/// A shard as it was.
#[derive(Debug)]
struct PinnedShard {
    id: ShardId,
    last_write: LastWrite,
    compact_revision: Revision,
    pin: Arc<Pin>,
}

#[derive(Debug)]
enum Stage {
    Tables,
    Records(RecordsStage),
    Done,
}

/// Where the walk over the records is.
#[derive(Debug, Default)]
struct RecordsStage {
    /// In this shard.
    place: usize,
    /// The shard was named.
    is_named: bool,
    /// Behind this record of it, or before all.
    after: Option<(Bytes, Revision, u32)>,
}

#[derive(Debug)]
enum Item {
    Header(Header),
    LeaderRegions(Vec<Bytes>),
    ClusterVersion(ClusterVersion),
    LastSerial(LeaseSerial),
    Clock(ClockStart),
    Lease(LeaseId, Lease),
    Alarm(Alarm),
    Session {
        id: SessionId,
        nonce: u128,
        low: u64,
        last_use: u64,
    },
    Shard {
        span: ShardSpan,
        last_write: LastWrite,
        compact_revision: Revision,
    },
    /// The results of a session follow.
    Results {
        session: SessionId,
        low: u64,
    },
    Result {
        seq: u64,
        outcome: Outcome,
    },
}

#[derive(Clone, Copy, Debug)]
struct Header {
    applied: u64,
    newest: LastWrite,
    limits: Limits,
    last_session: u64,
    session_uses: u64,
}

impl Snapshot {
    pub(crate) fn begin(state: &mut Keyspace) -> Snapshot {
        let digest = state.digest();
        let (last_session, session_uses) = state.sessions.counters();
        let header = Header {
            applied: state.applied,
            newest: state.newest,
            limits: state.limits,
            last_session,
            session_uses,
        };
        let mut tables = VecDeque::from([Item::Header(header)]);
        tables.extend(state.leader_regions.clone().map(Item::LeaderRegions));
        let in_force = Some(state.version).filter(|version| *version > ClusterVersion::FIRST);
        let last_serial = Some(state.leases.last_serial()).filter(|last| *last != LeaseSerial::NONE);
        let version = if in_force.is_some() { VERSION } else { VERSION_LEAST };
        tables.extend(in_force.map(Item::ClusterVersion));
        tables.extend(last_serial.map(Item::LastSerial));
        tables.extend(Some(state.leases.clock()).filter(|clock| *clock != ClockStart::NONE).map(Item::Clock));
        tables.extend(state.leases.rows().map(|(id, lease)| Item::Lease(id, lease)));
        tables.extend(state.alarms.iter().map(Item::Alarm));
        tables.extend(state.sessions.iter().map(|(id, session)| {
            let Session { nonce, low, last_use } = *session;
            Item::Session { id, nonce, low, last_use }
        }));
        add_results(&mut tables, &state.results);
        let mut shards = Vec::new();
        for shard in state.shards.iter_mut() {
            let (last_write, compact_revision) = (shard.mvcc.last_write(), shard.mvcc.compact_revision());
            tables.push_back(Item::Shard { span: shard.span.clone(), last_write, compact_revision });
            add_results(&mut tables, &shard.results);
            assert!(last_write <= state.newest, "no shard is ahead of the group");
            let (id, pin) = (shard.span.id, shard.mvcc.pin());
            shards.push(PinnedShard { id, last_write, compact_revision, pin });
        }
        Snapshot { version, applied: state.applied, digest, tables, stage: Stage::Tables, shards }
    }

    /// The slot that the snapshot stands at: everything up to it is in the snapshot, nothing after it.
    pub fn slot(&self) -> u64 {
        self.applied
    }

    /// The digest of the state that the snapshot restores.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The next slice: items until `max_bytes` are reached, and one item at least. None after the last.
    ///
    /// `state` is the one that the snapshot was taken of, however much was applied since.
    pub fn next_slice(&mut self, state: &Keyspace, max_bytes: usize) -> Option<Bytes> {
        let mut out = BytesMut::new();
        let mut writer = Writer::new(&mut out, self.version);
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
                    self.stage = Stage::Records(RecordsStage::default());
                }
            }
            Stage::Records(_) => {}
        }
        if let Stage::Records(stage) = &mut self.stage {
            while !is_full && let Some(pinned) = self.shards.get(stage.place) {
                is_full = write_records(&mut writer, state, pinned, stage, max_bytes);
            }
            if !is_full {
                assert!(self.tables.is_empty(), "nothing follows the end");
                assert_eq!(stage.place, self.shards.len(), "the records of every shard are there");
                writer.u8(ITEM_END);
                writer.fixed_u64(self.digest);
                self.stage = Stage::Done;
            }
        }
        assert!(out.len() > 1, "each slice has something, so that there is a last one");
        Some(out.freeze())
    }
}

fn add_results(tables: &mut VecDeque<Item>, results: &Results) {
    for (session, window) in results.iter() {
        tables.push_back(Item::Results { session, low: window.low });
        tables.extend(window.stored().map(|(seq, outcome)| Item::Result { seq, outcome: outcome.clone() }));
    }
}

/// Writes records of a shard from where the walk is. Returns whether the slice is full; if not, the walk is at the next shard.
fn write_records(
    writer: &mut Writer<'_>,
    state: &Keyspace,
    pinned: &PinnedShard,
    stage: &mut RecordsStage,
    max_bytes: usize,
) -> bool {
    let shard = state.shards.get(pinned.id).filter(|shard| shard.mvcc.is_pinned_by(&pinned.pin));
    let shard = shard.expect("a snapshot is read from the state it was taken of");
    if !stage.is_named {
        writer.u8(ITEM_RECORDS);
        writer.u64(pinned.id.0);
        stage.is_named = true;
    }
    assert!(
        shard.mvcc.last_write() >= pinned.last_write,
        "a state goes on from where its snapshot was taken"
    );
    let upto = pinned.last_write.revision();
    let mut last = None;
    for record in shard.mvcc.kept(stage.after.as_ref(), upto, pinned.compact_revision) {
        debug_assert!(record.revision() <= upto, "what was written since is in no snapshot");
        let place = (record.key(), record.position());
        let goes_on = |(key, revision, sub): &(Bytes, Revision, u32)| (key, (*revision, *sub)) < place;
        debug_assert!(stage.after.as_ref().is_none_or(goes_on), "a slice goes on where the one before ended");
        write_record(writer, record);
        if writer.len() >= max_bytes {
            last = Some(record);
            break;
        }
    }
    if let Some(record) = last {
        let (revision, sub) = record.position();
        stage.after = Some((record.key().clone(), revision, sub));
        return true;
    }
    *stage = RecordsStage { place: stage.place + 1, ..RecordsStage::default() };
    false
}

fn write_item(writer: &mut Writer<'_>, item: &Item) {
    match item {
        Item::Header(header) => {
            let Header { applied, newest, limits, last_session, session_uses } = header;
            writer.u8(ITEM_HEADER);
            writer.u64(*applied);
            writer.i64(newest.revision().0);
            writer.u64(limits.quota_bytes);
            writer.u64(u64::from(limits.max_sessions));
            writer.u64(*last_session);
            writer.u64(*session_uses);
        }
        Item::LeaderRegions(regions) => {
            writer.u8(ITEM_LEADER_REGIONS);
            writer.list(regions, |writer, region| writer.bytes(region));
        }
        Item::ClusterVersion(version) => {
            writer.u8(ITEM_CLUSTER_VERSION);
            writer.u8(version.0);
        }
        Item::LastSerial(last) => {
            writer.u8(ITEM_LAST_SERIAL);
            writer.u64(last.0);
        }
        Item::Clock(clock) => {
            writer.u8(ITEM_CLOCK);
            writer.u64(clock.0);
        }
        Item::Lease(id, Lease { serial, granted_ttl_s, checkpoint_s }) => {
            let is_numbered = *serial != LeaseSerial::NONE;
            writer.u8(if is_numbered { ITEM_NUMBERED_LEASE } else { ITEM_LEASE });
            writer.i64(id.0);
            writer.i64(*granted_ttl_s);
            writer.i64(*checkpoint_s);
            if is_numbered {
                writer.u64(serial.0);
            }
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
        Item::Shard { span: ShardSpan { id, since, start, end }, last_write, compact_revision } => {
            writer.u8(ITEM_SHARD);
            writer.u64(id.0);
            writer.u64(since.0);
            writer.bytes(start);
            writer.flags([end.is_some()]);
            if let Some(end) = end {
                writer.bytes(end);
            }
            writer.i64(last_write.revision().0);
            writer.i64(compact_revision.0);
        }
        Item::Results { session, low } => {
            writer.u8(ITEM_RESULTS);
            writer.u64(session.0);
            writer.u64(*low);
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
#[derive(Debug)]
pub struct Restore {
    /// What is newer is refused.
    known: ClusterVersion,
    version: ClusterVersion,
    header: Option<Header>,
    leader_regions: Option<Vec<Bytes>>,
    leases: Leases,
    alarms: Alarms,
    sessions: Vec<(SessionId, Session)>,
    results: Windows,
    shards: Vec<RestoredShard>,
    /// The shard whose records come.
    place: Option<usize>,
    /// The key of the last record, shared by all its versions.
    last_key: Bytes,
    digest: Option<u64>,
}

type Windows = Vec<(SessionId, Window)>;

#[derive(Debug)]
struct RestoredShard {
    span: ShardSpan,
    last_write: LastWrite,
    compact_revision: Revision,
    results: Windows,
    records: Vec<Arc<Record>>,
}

impl RestoredShard {
    fn finish(self, leases: &Leases) -> Result<Shard, &'static str> {
        let RestoredShard { span, last_write, compact_revision, results, records } = self;
        let mvcc = Mvcc::restore(records, last_write, compact_revision)?;
        let mut attachments = Attachments::default();
        for kv in mvcc.live() {
            if !span.covers(&KeyRange::single(kv.key.clone())) {
                return Err("a key outside its shard");
            }
            if !kv.lease.is_none() && !leases.contains(kv.lease) {
                return Err("a key of a lease that does not exist");
            }
            attachments.move_key(&kv.key, LeaseId::NONE, kv.lease);
        }
        Ok(Shard { span, mvcc, results: results_of(results)?, attachments })
    }
}

fn results_of(windows: Windows) -> Result<Results, &'static str> {
    let mut results = Results::default();
    for (session, window) in windows {
        if !results.insert(session, window) {
            return Err("the results of a session stand twice");
        }
    }
    Ok(results)
}

impl Default for Restore {
    fn default() -> Restore {
        Restore::new()
    }
}

impl Restore {
    /// Nothing restored so far.
    pub fn new() -> Restore {
        Restore::upto(ClusterVersion::NEWEST)
    }

    /// The same, for one who knows no newer version than that.
    pub fn upto(known: ClusterVersion) -> Restore {
        Restore {
            known,
            version: ClusterVersion::FIRST,
            header: None,
            leader_regions: None,
            leases: Leases::default(),
            alarms: Alarms::default(),
            sessions: Vec::new(),
            results: Windows::new(),
            shards: Vec::new(),
            place: None,
            last_key: Bytes::new(),
            digest: None,
        }
    }

    /// Takes in the next slice. An error for one that cannot be read, or does not follow the ones before.
    pub fn push(&mut self, slice: Bytes) -> Result<(), RestoreError> {
        let mut reader = Reader::new(slice);
        let known = if self.known > ClusterVersion::FIRST { VERSION } else { VERSION_LEAST };
        let version = reader.version_among(VERSION_LEAST, known)?;
        while !reader.is_empty() {
            if self.digest.is_some() {
                return Err(RestoreError::Inconsistent("items after the end"));
            }
            let tag = reader.u8()?;
            if (tag == ITEM_HEADER) != self.header.is_none() {
                return Err(RestoreError::Inconsistent("the header is not the first item"));
            }
            let is_late =
                matches!(tag, ITEM_CLUSTER_VERSION | ITEM_LAST_SERIAL | ITEM_CLOCK | ITEM_NUMBERED_LEASE);
            if version < VERSION && is_late {
                return Err(RestoreError::Inconsistent("an item of a later version"));
            }
            self.item(tag, &mut reader)?;
        }
        Ok(())
    }

    /// The state, if it is complete and has the digest of the one that was snapshot. Otherwise an error that says
    /// what is wrong with it.
    pub fn finish(self) -> Result<Keyspace, RestoreError> {
        let (Some(header), Some(digest)) = (self.header, self.digest) else {
            return Err(RestoreError::Incomplete);
        };
        let mut sessions = Sessions::default();
        sessions.set_counters(header.last_session, header.session_uses);
        for (id, session) in self.sessions {
            if id.0 > header.last_session || session.last_use > header.session_uses {
                return Err(RestoreError::Inconsistent("a session that was never opened"));
            }
            if !sessions.insert(id, session) {
                return Err(RestoreError::Inconsistent("two sessions are one"));
            }
        }
        let leases = self.leases;
        if !are_serials_good(leases.last_serial(), leases.rows()) {
            return Err(RestoreError::Inconsistent("two leases have one number"));
        }
        if self.version < ClusterVersion::NUMBERED_GRANTS && leases.last_serial() != LeaseSerial::NONE {
            return Err(RestoreError::Inconsistent("a number of a grant before there were any"));
        }
        if self.version < ClusterVersion::STARTED_CLOCKS && leases.clock() != ClockStart::NONE {
            return Err(RestoreError::Inconsistent("a lease clock before there were any"));
        }
        if leases.clock().0 > header.applied {
            return Err(RestoreError::Inconsistent("a lease clock that has not begun"));
        }
        let shards: Result<Vec<_>, _> = self.shards.into_iter().map(|shard| shard.finish(&leases)).collect();
        let shards = shards.map_err(RestoreError::Inconsistent)?;
        if shards.iter().any(|shard| shard.mvcc.last_write() > header.newest) {
            return Err(RestoreError::Inconsistent("a shard is ahead of the group"));
        }
        let shards =
            Shards::new(shards).ok_or(RestoreError::Inconsistent("two shards have a key in common"))?;
        let results = results_of(self.results).map_err(RestoreError::Inconsistent)?;
        let of_sessions = shards.iter().map(|shard| &shard.results).chain([&results]);
        if of_sessions
            .flat_map(Results::iter)
            .any(|(id, window)| sessions.low(id).is_none_or(|low| low < window.low))
        {
            return Err(RestoreError::Inconsistent("results of a session that is not open"));
        }
        let state = Keyspace {
            version: self.version,
            shards,
            newest: header.newest,
            leases,
            sessions,
            results,
            alarms: self.alarms,
            limits: header.limits,
            leader_regions: self.leader_regions,
            applied: header.applied,
            write_bounds: WriteBounds::default(),
            broken: Broken::default(),
        };
        let found = state.digest();
        if found == digest { Ok(state) } else { Err(RestoreError::WrongDigest { expected: digest, found }) }
    }

    fn item(&mut self, tag: u8, reader: &mut Reader) -> Result<(), RestoreError> {
        match tag {
            ITEM_HEADER => self.header = Some(read_header(reader)?),
            ITEM_LEADER_REGIONS => {
                let regions = reader.list(1, |reader| Ok(own(&reader.bytes()?)))?;
                if self.leader_regions.replace(regions).is_some() {
                    return Err(RestoreError::Inconsistent("the regions to lead in stand twice"));
                }
            }
            ITEM_CLUSTER_VERSION => {
                self.version = ClusterVersion(reader.version_among(ClusterVersion::FIRST.0, self.known.0)?);
            }
            ITEM_LAST_SERIAL => self.leases.set_last_serial(LeaseSerial(reader.u64()?)),
            ITEM_CLOCK => self.leases.set_clock(ClockStart(reader.u64()?)),
            ITEM_LEASE | ITEM_NUMBERED_LEASE => {
                let (id, granted_ttl_s, checkpoint_s) =
                    (LeaseId(reader.i64()?), reader.i64()?, reader.i64()?);
                let serial = LeaseSerial(if tag == ITEM_NUMBERED_LEASE { reader.u64()? } else { 0 });
                if self.leases.contains(id) {
                    return Err(RestoreError::Inconsistent("a lease stands twice"));
                }
                if serial > self.leases.last_serial() {
                    return Err(RestoreError::Inconsistent("a lease with a number that was not given"));
                }
                self.leases.insert(id, Lease { serial, granted_ttl_s, checkpoint_s });
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
                self.sessions.push((id, Session { nonce, low, last_use }));
            }
            ITEM_SHARD => self.shards.push(read_shard(reader)?),
            ITEM_RESULTS => {
                let window = (SessionId(reader.u64()?), Window::above(reader.u64()?));
                self.results_open().push(window);
            }
            ITEM_RESULT => {
                let seq = reader.u64()?;
                let outcome = codec::read_outcome(reader)?;
                let Some((_, window)) = self.results_open().last_mut() else {
                    return Err(RestoreError::Inconsistent("a result without a session"));
                };
                // Results come in the order of their numbers.
                if !window.push(seq, outcome) {
                    return Err(RestoreError::Inconsistent("a result outside its window"));
                }
            }
            ITEM_RECORDS => {
                let id = ShardId(reader.u64()?);
                self.place = self.shards.iter().position(|shard| shard.span.id == id);
                if self.place.is_none() {
                    return Err(RestoreError::Inconsistent("records of no shard"));
                }
            }
            ITEM_RECORD => self.record(reader)?,
            ITEM_END => self.digest = Some(reader.fixed_u64()?),
            _ => return Err(RestoreError::Inconsistent("an unknown item")),
        }
        Ok(())
    }

    fn record(&mut self, reader: &mut Reader) -> Result<(), RestoreError> {
        let [is_delete] = reader.flags()?;
        let kind = if is_delete { EventKind::Delete } else { EventKind::Put };
        let sub =
            u32::try_from(reader.u64()?).map_err(|_| RestoreError::Inconsistent("a place out of bounds"))?;
        let mut kv = codec::read_key_value(reader)?;
        if kv.key != self.last_key {
            self.last_key = own(&kv.key);
        }
        kv.key = self.last_key.clone();
        kv.value = own(&kv.value);
        let Some(shard) = self.place.and_then(|place| self.shards.get_mut(place)) else {
            return Err(RestoreError::Inconsistent("a record of no shard"));
        };
        shard.records.push(Arc::new(Record::new(kv, sub, kind)));
        Ok(())
    }

    /// Where results belong that come now: to the last shard that came, or to the group.
    fn results_open(&mut self) -> &mut Windows {
        match self.shards.last_mut() {
            Some(shard) => &mut shard.results,
            None => &mut self.results,
        }
    }
}

fn read_header(reader: &mut Reader) -> Result<Header, RestoreError> {
    Ok(Header {
        applied: reader.u64()?,
        newest: LastWrite::at(Revision(reader.i64()?)),
        limits: Limits {
            quota_bytes: reader.u64()?,
            max_sessions: u32::try_from(reader.u64()?)
                .map_err(|_| RestoreError::Inconsistent("too many sessions"))?,
        },
        last_session: reader.u64()?,
        session_uses: reader.u64()?,
    })
}

/// A shard without its results and records, which follow.
fn read_shard(reader: &mut Reader) -> Result<RestoredShard, RestoreError> {
    let (id, since) = (ShardId(reader.u64()?), Epoch(reader.u64()?));
    let start = own(&reader.bytes()?);
    let [has_end] = reader.flags()?;
    let end = if has_end { Some(own(&reader.bytes()?)) } else { None };
    Ok(RestoredShard {
        span: ShardSpan { id, since, start, end },
        last_write: LastWrite::at(Revision(reader.i64()?)),
        compact_revision: Revision(reader.i64()?),
        results: Vec::new(),
        records: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Command, Effects, Options};

    /// Its id would be given to another one.
    #[test]
    fn a_session_above_the_counters_is_refused() {
        let mut state = Keyspace::new(Options::default());
        state.apply(1, 0, Command::OpenSession { nonce: 7 }, &mut Effects::new());
        for (last_session, session_uses) in [(0, 1), (1, 0)] {
            let mut snapshot = state.snapshot();
            let Some(Item::Header(header)) = snapshot.tables.front_mut() else {
                panic!("the header comes first")
            };
            (header.last_session, header.session_uses) = (last_session, session_uses);
            let mut restore = Restore::new();
            while let Some(slice) = snapshot.next_slice(&state, usize::MAX) {
                restore.push(slice).expect("it can be read");
            }
            let error = RestoreError::Inconsistent("a session that was never opened");
            assert_eq!(restore.finish().err(), Some(error));
        }
    }
}
