//! Gateway sessions: who writes, and up to which of its numbers everything is settled.
//!
//! A gateway numbers its writes. A write that arrives a second time is not applied again but answered from what is
//! stored. Numbers may arrive out of order: a session knows a low mark, at or below which everything is settled, and
//! results are kept for a window above it ([`crate::results`]), in the shard where the write took effect.

use std::collections::BTreeMap;

use crate::{
    Error, Outcome, SessionId,
    digest::{Hasher, SetHash},
};

/// How far above its low mark a session accepts numbers. A gateway keeps at most so many unsettled writes per group.
pub const SESSION_WINDOW: u64 = 1024;

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
}

/// Why a session accepts no write under a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotAdmitted {
    /// It is not open.
    Expired,
    /// The number is settled.
    Forgotten,
    /// The number is too far above the low mark.
    BeyondWindow,
}

impl From<NotAdmitted> for Error {
    fn from(why: NotAdmitted) -> Error {
        match why {
            NotAdmitted::Expired => Error::SessionExpired,
            NotAdmitted::Forgotten => Error::ResultForgotten,
            NotAdmitted::BeyondWindow => Error::SessionWindowExceeded,
        }
    }
}

impl From<NotAdmitted> for SessionLookup<'_> {
    fn from(why: NotAdmitted) -> Self {
        match why {
            NotAdmitted::Expired => SessionLookup::Expired,
            NotAdmitted::Forgotten => SessionLookup::Forgotten,
            NotAdmitted::BeyondWindow => SessionLookup::BeyondWindow,
        }
    }
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
    /// Opens a session, or finds the one with this nonce. May evict others down to `max`; they go to `closed`.
    pub(crate) fn open(&mut self, nonce: u128, max: u32, closed: &mut Vec<SessionId>) -> SessionId {
        if let Some(id) = self.by_nonce.get(&nonce) {
            let id = *id;
            self.touch(id);
            return id;
        }
        self.evict_to(u64::from(max.max(1)) - 1, closed);
        self.last_id += 1;
        let id = SessionId(self.last_id);
        self.uses += 1;
        let fits = self.insert(id, Session { nonce, low: 0, last_use: self.uses });
        assert!(fits, "ids and uses are counted up, and no open session has the nonce");
        assert!(self.sessions.len() <= max.max(1) as usize, "there was made room");
        id
    }

    /// Closes sessions, the one used longest ago first, until at most `max` are open. They go to `closed`.
    pub(crate) fn evict_to(&mut self, max: u64, closed: &mut Vec<SessionId>) {
        while self.sessions.len() as u64 > max
            && let Some((_, id)) = self.by_last_use.first_key_value()
        {
            let id = *id;
            self.close(id);
            closed.push(id);
        }
        assert!(self.sessions.len() as u64 <= max, "every session has a last use, so one can be evicted");
    }

    pub(crate) fn close(&mut self, id: SessionId) {
        let Some(session) = self.sessions.remove(&id) else { return };
        assert_eq!(self.by_nonce.remove(&session.nonce), Some(id), "the nonce names its session");
        assert_eq!(self.by_last_use.remove(&session.last_use), Some(id), "the last use names its session");
        self.hash.remove(session.hash(id));
    }

    /// A write under `seq` has come, whose gateway needs nothing up to `ack_upto` any more. Marks the session used. Returns up
    /// to where everything is settled.
    pub(crate) fn admit(&mut self, id: SessionId, seq: u64, ack_upto: u64) -> Result<u64, NotAdmitted> {
        self.touch(id);
        if let Some(session) = self.sessions.get_mut(&id)
            && ack_upto > session.low
        {
            self.hash.remove(session.hash(id));
            session.low = ack_upto;
            self.hash.add(session.hash(id));
        }
        self.low_for(id, seq)
    }

    /// Up to where everything is settled, if `seq` is above that and not by too far.
    pub(crate) fn low_for(&self, id: SessionId, seq: u64) -> Result<u64, NotAdmitted> {
        let session = self.sessions.get(&id).ok_or(NotAdmitted::Expired)?;
        match seq.checked_sub(session.low) {
            None | Some(0) => Err(NotAdmitted::Forgotten),
            Some(1..=SESSION_WINDOW) => Ok(session.low),
            Some(_) => Err(NotAdmitted::BeyondWindow),
        }
    }

    /// Up to where everything is settled; none if the session is not open.
    pub(crate) fn low(&self, id: SessionId) -> Option<u64> {
        self.sessions.get(&id).map(|session| session.low)
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
        assert!(self.sessions.is_empty(), "a number that was given is not given again");
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
        assert_eq!(self.by_last_use.remove(&session.last_use), Some(id), "the last use names its session");
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
            hash.add(session.hash(*id));
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
}
