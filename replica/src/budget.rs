//! The memory that gateways can make a node hold beside the state: frames that are coming in, requests that wait for a group, and
//! answers and events that wait for a socket. While all of it is taken, what gateways ask is refused before anything is done for
//! it, and a link whose gateway does not read what waits for it is ended.
//!
//! The state is not part of it: it is in memory on purpose, and has its quota. Nor is what has its own bound and is there
//! whoever asks: the log, and what a group has begun.
//!
//! **Frames** have a part of the budget. A frame up to [`UNCOUNTED_BYTES`] long is not counted: how many of those there are is bounded by the number of links.
//! What is longer takes what its buffer holds. When the part is used up, a link of a gateway is ended: of the source
//! that holds most, the frame that has cost most, as bytes times the time that they are held. So who sends halves of
//! frames displaces itself, and a frame that comes in quickly is the last to go. Peers are never ended for it, and what they
//! send has room whatever gateways hold: consensus must not wait for clients.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use consensus_core::Mono;
use parking_lot::Mutex;
use prometheus::IntCounter;
use tokio_util::sync::CancellationToken;

use crate::admission::Source;
use crate::clock;

/// Frames up to this long are not counted: every link has a buffer of that size.
pub(crate) const UNCOUNTED_BYTES: usize = 64 << 10;
/// All frames under way: two of the longest, or eight of the longest request that can be configured.
const FRAMES_BYTES_MAX: usize = 128 << 20;

/// Who sends a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    Peer,
    Gateway(Source),
}

/// What memory is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Frames under way to this node.
    Frames,
    /// Requests, and messages of peers, that wait for their group.
    Requests,
    /// Answers and events that wait for the socket of a gateway.
    Answers,
}

impl Use {
    pub(crate) const ALL: [Use; 3] = [Use::Frames, Use::Requests, Use::Answers];

    /// For metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Use::Frames => "frames",
            Use::Requests => "requests",
            Use::Answers => "answers",
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes_max: usize,
    taken: [AtomicUsize; Use::ALL.len()],
    frames: Mutex<Frames<CancellationToken>>,
    ended: IntCounter,
}

/// A frame under way; what it takes is given back when this is dropped.
#[derive(Debug)]
pub(crate) struct UnderWay {
    budget: Arc<Budget>,
    key: u64,
    /// There is no more room for this frame.
    pub(crate) displaced: CancellationToken,
}

impl Budget {
    /// So many bytes. `ended` counts links that were ended since frames had none left.
    pub(crate) fn new(bytes_max: usize, ended: IntCounter) -> Budget {
        let frames = Frames::new(FRAMES_BYTES_MAX.min(bytes_max / 2));
        Budget { bytes_max, taken: Default::default(), frames: Mutex::new(frames), ended }
    }

    /// All of it.
    pub(crate) fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// What is taken for a use.
    pub(crate) fn taken(&self, what: Use) -> usize {
        self.taken[what as usize].load(Ordering::Relaxed)
    }

    fn all_taken(&self) -> usize {
        Use::ALL.map(|what| self.taken(what)).iter().sum()
    }

    /// Whether nothing is left.
    pub(crate) fn is_used_up(&self) -> bool {
        self.all_taken() >= self.bytes_max
    }

    /// Whether half of it is taken.
    pub(crate) fn is_short(&self) -> bool {
        self.all_taken() >= self.bytes_max / 2
    }

    /// Takes so many bytes, to be given back.
    pub(crate) fn take(&self, what: Use, bytes: usize) {
        self.taken[what as usize].fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives back what was taken.
    pub(crate) fn give_back(&self, what: Use, bytes: usize) {
        self.taken[what as usize].fetch_sub(bytes, Ordering::Relaxed);
    }

    /// A long frame has begun.
    pub(crate) fn begin(self: &Arc<Self>, whose: Whose) -> UnderWay {
        let displaced = CancellationToken::new();
        let key = self.frames.lock().begin(whose, clock::now(), displaced.clone());
        UnderWay { budget: Arc::clone(self), key, displaced }
    }

    fn change(&self, change: impl FnOnce(&mut Frames<CancellationToken>) -> Vec<CancellationToken>) {
        let mut frames = self.frames.lock();
        for displaced in change(&mut frames) {
            displaced.cancel();
            self.ended.inc();
        }
        self.taken[Use::Frames as usize].store(frames.bytes, Ordering::Relaxed);
    }
}

impl UnderWay {
    /// Its buffer holds so many bytes, if it was not displaced for it.
    pub(crate) fn holds(&self, bytes: usize) {
        self.budget.change(|frames| frames.holds(self.key, bytes, clock::now()));
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.budget.change(|frames| {
            frames.end(self.key);
            Vec::new()
        });
    }
}

/// The frames under way; `T` is what ends one.
#[derive(Debug)]
struct Frames<T> {
    bytes_max: usize,
    next: u64,
    under_way: BTreeMap<u64, Frame<T>>,
    /// Of all of them. Those that were displaced are not there any more, though their links may need a moment to end.
    bytes: usize,
}

#[derive(Debug)]
struct Frame<T> {
    whose: Whose,
    since: Mono,
    bytes: usize,
    displaced: T,
}

impl<T> Frames<T> {
    fn new(bytes_max: usize) -> Self {
        Frames { bytes_max, next: 0, under_way: BTreeMap::new(), bytes: 0 }
    }

    fn begin(&mut self, whose: Whose, now: Mono, displaced: T) -> u64 {
        let key = self.next;
        self.next += 1;
        self.under_way.insert(key, Frame { whose, since: now, bytes: 0, displaced });
        key
    }

    /// A frame takes so many bytes from now on. Returns those that go for it, which may be itself.
    fn holds(&mut self, key: u64, bytes: usize, now: Mono) -> Vec<T> {
        if let Some(frame) = self.under_way.get_mut(&key) {
            self.bytes = self.bytes - frame.bytes + bytes;
            frame.bytes = bytes;
        }
        let mut displaced = Vec::new();
        while self.bytes > self.bytes_max
            && let Some(dearest) = self.dearest(now)
        {
            displaced.extend(self.end(dearest));
        }
        displaced
    }

    /// Whose link is to end.
    fn dearest(&self, now: Mono) -> Option<u64> {
        let mut sources: BTreeMap<Source, usize> = BTreeMap::new();
        for frame in self.under_way.values() {
            if let Whose::Gateway(source) = frame.whose {
                *sources.entry(source).or_default() += frame.bytes;
            }
        }
        let (greediest, _) = sources.into_iter().max_by_key(|(_, bytes)| *bytes)?;
        let its = self.under_way.iter().filter(|(_, frame)| frame.whose == Whose::Gateway(greediest));
        // A frame that has only just begun costs something, too.
        let cost = |frame: &Frame<T>| frame.bytes as u128 * (now.since(frame.since).as_micros() + 1);
        its.max_by_key(|(_, frame)| cost(frame)).map(|(key, _)| *key)
    }

    fn end(&mut self, key: u64) -> Option<T> {
        let frame = self.under_way.remove(&key)?;
        self.bytes -= frame.bytes;
        Some(frame.displaced)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn from(n: u32) -> Whose {
        Whose::Gateway(Source::of(Ipv4Addr::from_bits(n).into()))
    }

    fn at(seconds: u64) -> Mono {
        Mono(seconds * 1_000_000_000)
    }

    #[test]
    fn of_who_holds_most_the_frame_goes_that_has_cost_most() {
        let mut frames = Frames::new(100);
        let elsewhere = frames.begin(from(2), at(0), "elsewhere");
        assert!(frames.holds(elsewhere, 30, at(0)).is_empty());
        let stuck = frames.begin(from(1), at(0), "stuck");
        assert!(frames.holds(stuck, 20, at(0)).is_empty());
        let quick = frames.begin(from(1), at(9), "quick");
        assert!(frames.holds(quick, 40, at(9)).is_empty());
        assert_eq!(frames.holds(quick, 60, at(10)), ["stuck"], "20 for 10 s are more than 60 for 1 s");
        assert_eq!(frames.bytes, 90);
        assert!(frames.holds(stuck, 70, at(10)).is_empty(), "who was displaced takes nothing more");
        assert_eq!(frames.holds(quick, 80, at(11)), ["quick"], "its own source holds most");
        frames.end(elsewhere);
        assert_eq!((frames.bytes, frames.under_way.len()), (0, 0));
    }

    #[test]
    fn peers_have_room_whatever_gateways_hold() {
        let mut frames = Frames::new(100);
        for n in 0..10 {
            let gateway = frames.begin(from(n), at(0), "gateway");
            assert!(frames.holds(gateway, 10, at(1)).is_empty());
        }
        let peer = frames.begin(Whose::Peer, at(0), "peer");
        assert_eq!(frames.holds(peer, 64, at(2)), ["gateway"; 7]);
        assert_eq!(frames.holds(peer, 128, at(2)), ["gateway"; 3]);
        assert_eq!(frames.bytes, 128, "and beyond, since nodes are few");
        let gateway = frames.begin(from(1), at(3), "late");
        assert_eq!(frames.holds(gateway, 1, at(3)), ["late"]);
    }
}
