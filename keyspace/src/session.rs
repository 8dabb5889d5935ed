//! Gateway sessions: which writes were applied, and what was answered.
//!
//! A gateway numbers its writes. A write that arrives a second time is not applied again but answered from what is
//! stored here. Numbers may arrive out of order: a session knows a low mark, at or below which everything is settled,
//! and a window of results above it.

use std::collections::{BTreeMap, VecDeque};

use crate::{
    Outcome,
    digest::{Hasher, SetHash},
};

/// How far above its low mark a session accepts numbers. A gateway keeps at most so many unsettled writes per group.
pub const SESSION_WINDOW: u64 = 1024;

/// How many sessions stay open by default.
pub const DEFAULT_MAX_SESSIONS: u32 = 100_000;

/// A gateway's identity towards a group. Given in the order of the log, from 1, and never twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

impl SessionId {
    /// Stands in [`crate::Answer`] for commands that belong to no session.
    pub const NONE: SessionId = SessionId(0);
}

/// What is known of a numbered write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionLookup<'a> {
    /// The session is not open.
    Expired,
    /// The write was applied and answered so.
    Applied(&'a Outcome),
    /// The number is at or below the low mark: acknowledged, its result forgotten.
    Forgotten,
    /// The number has not been seen and may be proposed.
    New,
    /// The number is too far above the low mark to be applied now.
    BeyondWindow,
}

/// One session's state, as it is stored and carried by snapshots.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) nonce: u128,
    /// Everything at or below is settled.
    pub(crate) low: u64,
    /// The position of the last command under this session in the order of all of them; the lowest is evicted first.
    pub(crate) last_use: u64,
    /// `results[i]` is that of number `low + 1 + i`, if it was applied. The last one is never `None`.
    pub(crate) results: VecDeque<Option<Outcome>>,
}

/// All open sessions.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    sessions: BTreeMap<SessionId, Session>,
    by_nonce: BTreeMap<u128, SessionId>,
    by_last_use: BTreeMap<u64, SessionId>,
    last_id: u64,
    uses: u64,
    hash: SetHash,
}

impl Sessions {
    /// Opens a session, or finds the one with this nonce. May evict others down to `max`.
    pub(crate) fn open(&mut self, nonce: u128, max: u32) -> SessionId {
        if let Some(id) = self.by_nonce.get(&nonce) {
            let id = *id;
            self.touch(id);
            return id;
        }
        self.evict_to(u64::from(max.max(1)) - 1);
        self.last_id += 1;
        let id = SessionId(self.last_id);
        self.uses += 1;
        self.insert(id, Session { nonce, low: 0, last_use: self.uses, results: VecDeque::new() });
        id
    }

    /// Closes sessions, the one used longest ago first, until at most `max` are open.
    pub(crate) fn evict_to(&mut self, max: u64) {
        while self.sessions.len() as u64 > max
            && let Some((_, id)) = self.by_last_use.first_key_value()
        {
            self.close(*id);
        }
    }

    pub(crate) fn close(&mut self, id: SessionId) {
        let Some(session) = self.sessions.remove(&id) else { return };
        self.by_nonce.remove(&session.nonce);
        self.by_last_use.remove(&session.last_use);
        self.hash.remove(session.hash(id));
        for (seq, outcome) in session.stored() {
            self.hash.remove(result_hash(id, seq, outcome));
        }
    }

    /// Forgets results up to `ack_upto` and marks the session used. Call before [`Sessions::lookup`].
    pub(crate) fn acknowledge(&mut self, id: SessionId, ack_upto: u64) {
        self.touch(id);
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if ack_upto <= session.low {
            return;
        }
        self.hash.remove(session.hash(id));
        while session.low < ack_upto {
            let Some(result) = session.results.pop_front() else {
                session.low = ack_upto;
                break;
            };
            session.low += 1;
            if let Some(outcome) = result {
                self.hash.remove(result_hash(id, session.low, &outcome));
            }
        }
        self.hash.add(session.hash(id));
    }

    pub(crate) fn lookup(&self, id: SessionId, seq: u64) -> SessionLookup<'_> {
        let Some(session) = self.sessions.get(&id) else { return SessionLookup::Expired };
        let Some(offset) = seq.checked_sub(session.low).filter(|offset| *offset > 0) else {
            return SessionLookup::Forgotten;
        };
        if offset > SESSION_WINDOW {
            return SessionLookup::BeyondWindow;
        }
        match session.results.get(offset as usize - 1) {
            Some(Some(outcome)) => SessionLookup::Applied(outcome),
            Some(None) | None => SessionLookup::New,
        }
    }

    /// Stores the result of a number for which [`Sessions::lookup`] said that it is new.
    pub(crate) fn store(&mut self, id: SessionId, seq: u64, outcome: Outcome) {
        let session = self.sessions.get_mut(&id).expect("the write was looked up in an open session");
        let index = (seq - session.low - 1) as usize;
        assert!(index < SESSION_WINDOW as usize, "number {seq} is within the window");
        if session.results.len() <= index {
            session.results.resize_with(index + 1, || None);
        }
        self.hash.add(result_hash(id, seq, &outcome));
        let old = session.results[index].replace(outcome);
        debug_assert!(old.is_none(), "number {seq} of {id:?} is applied twice");
    }

    pub(crate) fn len(&self) -> usize {
        self.sessions.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (SessionId, &Session)> {
        self.sessions.iter().map(|(id, session)| (*id, session))
    }

    pub(crate) fn digest(&self) -> u64 {
        Hasher::new(3).u64(self.hash.value()).u64(self.last_id).u64(self.uses).finish()
    }

    /// The two counters, for a snapshot.
    pub(crate) fn counters(&self) -> (u64, u64) {
        (self.last_id, self.uses)
    }

    /// Sets the counters of an empty table, for a restore.
    pub(crate) fn set_counters(&mut self, last_id: u64, uses: u64) {
        (self.last_id, self.uses) = (last_id, uses);
    }

    /// Puts a session in place. Returns whether it fits: no id, nonce or use may stand twice.
    pub(crate) fn insert(&mut self, id: SessionId, session: Session) -> bool {
        let fits = !self.sessions.contains_key(&id)
            && !self.by_nonce.contains_key(&session.nonce)
            && !self.by_last_use.contains_key(&session.last_use);
        if fits {
            self.by_nonce.insert(session.nonce, id);
            self.by_last_use.insert(session.last_use, id);
            self.hash.add(session.hash(id));
            for (seq, outcome) in session.stored() {
                self.hash.add(result_hash(id, seq, outcome));
            }
            self.sessions.insert(id, session);
        }
        fits
    }

    fn touch(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.last_use == self.uses {
            // The session that wrote last writes again: nobody's rank changes.
            return;
        }
        self.uses += 1;
        self.hash.remove(session.hash(id));
        self.by_last_use.remove(&session.last_use);
        session.last_use = self.uses;
        self.by_last_use.insert(session.last_use, id);
        self.hash.add(session.hash(id));
    }

    pub(crate) fn check_invariants(&self) {
        assert_eq!(self.sessions.len(), self.by_nonce.len(), "one nonce per session");
        assert_eq!(self.sessions.len(), self.by_last_use.len(), "one last use per session");
        let mut hash = SetHash::default();
        for (id, session) in &self.sessions {
            assert!(id.0 <= self.last_id && session.last_use <= self.uses, "counters are ahead of {id:?}");
            assert_eq!(self.by_nonce.get(&session.nonce), Some(id), "the nonce names its session");
            assert_eq!(self.by_last_use.get(&session.last_use), Some(id), "the last use names its session");
            assert!(session.results.len() <= SESSION_WINDOW as usize, "results are within the window");
            assert!(session.results.back().is_none_or(Option::is_some), "no empty place ends the window");
            hash.add(session.hash(*id));
            for (seq, outcome) in session.stored() {
                hash.add(result_hash(*id, seq, outcome));
            }
        }
        assert_eq!(hash, self.hash, "the session hash is that of the table");
    }
}

impl Session {
    fn hash(&self, id: SessionId) -> u64 {
        Hasher::new(4)
            .u64(id.0)
            .u64(self.nonce as u64)
            .u64((self.nonce >> 64) as u64)
            .u64(self.low)
            .u64(self.last_use)
            .finish()
    }

    /// The results stored, with their numbers.
    pub(crate) fn stored(&self) -> impl Iterator<Item = (u64, &Outcome)> {
        // Numbers go up to the highest there is, so the one after the last result may not exist.
        self.results
            .iter()
            .zip(0..)
            .filter_map(|(result, index)| Some((self.low + 1 + index, result.as_ref()?)))
    }
}

/// Enough of a result to tell replicas apart that answered differently: whether and why it was refused, or the kind
/// and revision of the answer. What the answer holds follows from the data, which has a hash of its own.
fn result_hash(id: SessionId, seq: u64, outcome: &Outcome) -> u64 {
    let hasher = Hasher::new(5).u64(id.0).u64(seq);
    match outcome {
        Ok(reply) => hasher.u64(u64::from(crate::codec::reply_tag(reply))).i64(reply.revision().0),
        Err(error) => hasher.u64(u64::from(crate::codec::error_tag(*error)) | 1 << 32),
    }
    .finish()
}
