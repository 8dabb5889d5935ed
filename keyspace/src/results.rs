//! What was answered to the writes of sessions: of one shard, or of what concerns the group as a whole. A write that comes
//! again is answered from here. How far the results of a session may be forgotten its session knows
//! ([`crate::session`]); here that is noticed when the session writes again.

use std::collections::{BTreeMap, VecDeque};

use crate::{
    Error, Outcome, Reply, SESSION_WINDOW, SessionId,
    digest::{Hasher, SetHash},
};

/// What holds no more is always kept.
const SMALL_BYTES: usize = 4 << 10;

/// The results by session.
#[derive(Debug, Default)]
pub(crate) struct Results {
    windows: BTreeMap<SessionId, Window>,
    hash: SetHash,
}

/// Those of one session.
#[derive(Clone, Debug, Default)]
pub(crate) struct Window {
    /// Everything at or below is settled.
    pub(crate) low: u64,
    /// `results[i]` is that of number `low + 1 + i`, if it was applied. The last one is never `None`.
    pub(crate) results: VecDeque<Option<Outcome>>,
    /// What these hold, in memory.
    bytes: usize,
}

impl Results {
    /// Forgets results up to `low`; then, the one of `seq`, if there is one.
    pub(crate) fn settle(&mut self, id: SessionId, low: u64, seq: u64) -> Option<&Outcome> {
        let window = self.windows.get_mut(&id)?;
        while window.low < low {
            let Some(result) = window.results.pop_front() else {
                window.low = low;
                break;
            };
            window.low += 1;
            if let Some(outcome) = result {
                self.hash.remove(result_hash(id, window.low, &outcome));
                let bytes = bytes_of(&outcome);
                assert!(window.bytes >= bytes, "what is held is counted");
                window.bytes -= bytes;
            }
        }
        assert!(window.low >= low, "a result that may be forgotten is");
        assert!(window.results.len() <= SESSION_WINDOW as usize, "results are within the window");
        window.get(seq)
    }

    /// The result of a number that is not settled.
    pub(crate) fn get(&self, id: SessionId, seq: u64) -> Option<&Outcome> {
        self.windows.get(&id)?.get(seq)
    }

    /// Stores the result of a number that [`Results::settle`] did not know, above the same `low`. Of an answer with which the
    /// window would hold more than `bytes_max` is kept only that there was one: who asks again is told as much.
    pub(crate) fn store(&mut self, id: SessionId, low: u64, seq: u64, outcome: &Outcome, bytes_max: usize) {
        let window = self.windows.entry(id).or_insert_with(|| Window::above(low));
        debug_assert_eq!(window.low, low, "what may be forgotten is");
        assert!(seq > window.low, "a number that is settled was not admitted");
        let index = (seq - window.low - 1) as usize;
        assert!(index < SESSION_WINDOW as usize, "number {seq} is within the window");
        if window.results.len() <= index {
            window.results.resize_with(index + 1, || None);
        }
        let bytes = bytes_of(outcome);
        let fits = bytes <= SMALL_BYTES || window.bytes.saturating_add(bytes) <= bytes_max;
        let outcome = if fits { outcome.clone() } else { Err(Error::ResultForgotten) };
        window.bytes += if fits { bytes } else { 0 };
        assert!(fits || bytes > SMALL_BYTES, "what is small is kept");
        self.hash.add(result_hash(id, seq, &outcome));
        let old = window.results[index].replace(outcome);
        debug_assert!(old.is_none(), "number {seq} of {id:?} is applied twice");
    }

    /// Forgets a session.
    pub(crate) fn forget(&mut self, id: SessionId) {
        let Some(window) = self.windows.remove(&id) else { return };
        for (seq, outcome) in window.stored() {
            self.hash.remove(result_hash(id, seq, outcome));
        }
    }

    /// Puts results in place, for a restore. Returns whether they fit: a session may stand once.
    pub(crate) fn insert(&mut self, id: SessionId, window: Window) -> bool {
        for (seq, outcome) in window.stored() {
            self.hash.add(result_hash(id, seq, outcome));
        }
        self.windows.insert(id, window).is_none()
    }

    /// The sessions with results.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (SessionId, &Window)> {
        self.windows.iter().map(|(id, window)| (*id, window))
    }

    pub(crate) fn digest(&self) -> u64 {
        self.hash.value()
    }

    pub(crate) fn check_invariants(&self, is_open: impl Fn(SessionId) -> bool) {
        let mut hash = SetHash::default();
        for (id, window) in self.iter() {
            assert!(is_open(id), "{id:?} has results and is not open");
            assert!(window.results.len() <= SESSION_WINDOW as usize, "results are within the window");
            assert!(window.results.back().is_none_or(Option::is_some), "no empty place ends the window");
            let mut bytes = 0;
            for (seq, outcome) in window.stored() {
                hash.add(result_hash(id, seq, outcome));
                bytes += bytes_of(outcome);
            }
            assert_eq!(bytes, window.bytes, "what is held is counted");
        }
        assert_eq!(hash, self.hash, "the hash is that of the results");
    }
}

impl Window {
    /// An empty one.
    pub(crate) fn above(low: u64) -> Window {
        Window { low, ..Window::default() }
    }

    /// Adds a result behind the others, for a restore. Returns whether it fits.
    pub(crate) fn push(&mut self, seq: u64, outcome: Outcome) -> bool {
        let next = self.low.saturating_add(self.results.len() as u64);
        match seq.checked_sub(self.low) {
            Some(offset) if seq > next && offset <= SESSION_WINDOW => {
                self.results.resize_with(offset as usize - 1, || None);
                self.bytes += bytes_of(&outcome);
                self.results.push_back(Some(outcome));
                true
            }
            Some(_) | None => false,
        }
    }

    /// The results stored, with their numbers.
    pub(crate) fn stored(&self) -> impl Iterator<Item = (u64, &Outcome)> {
        // Numbers go up to the highest there is, so the one after the last result may not exist.
        self.results
            .iter()
            .zip(0..)
            .filter_map(|(result, index)| Some((self.low + 1 + index, result.as_ref()?)))
    }

    fn get(&self, seq: u64) -> Option<&Outcome> {
        let index = seq.checked_sub(self.low)?.checked_sub(1)?;
        self.results.get(usize::try_from(index).ok()?)?.as_ref()
    }
}

fn bytes_of(outcome: &Outcome) -> usize {
    outcome.as_ref().map_or(0, Reply::held_bytes)
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
