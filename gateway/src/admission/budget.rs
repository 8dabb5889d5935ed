//! The memory that clients can make a gateway hold: messages that are still on their way from them, answers on their way to
//! them, and open streams. What is small beside what it costs to be there is not counted: [`COUNTED_FROM`].
//!
//! Streams have a quarter, messages and answers the rest. Of each, the first half is there for everybody; from then on a
//! connection gets something while it holds no more than a sixteenth of what is free (as dynamic thresholds do, Choudhury and
//! Hahne 1998). So twenty that take all they can get, be it one after the other, leave a seventh to others, and fifty a
//! fortieth. What can wait, as the pages of long answers, has the first half alone, however many connections ask for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use gateway_core::Failure;
use prometheus::IntCounter;
use tokio::time::sleep;

use super::Client;

/// Messages and answers below are not counted; their number is bounded by that of the streams.
pub(crate) const COUNTED_FROM: usize = 16 << 10;
/// What an open stream costs, measured: some of the HTTP/2 library's, some of ours.
const STREAM_BYTES: usize = 10 << 10;
/// The part of what is free that a connection may hold of the second half.
const PART: usize = 16;
/// A client that takes nothing of what waits for it for so long loses its connection while more than half of the budget is
/// taken.
const PROGRESS_WITHIN: Duration = Duration::from_secs(10);
/// And always after so long.
const PROGRESS_WITHIN_ALWAYS: Duration = Duration::from_secs(60);

/// Who can wait for room gets it after this long, or not at all: by then those are gone who take nothing.
const ROOM_WITHIN: Duration = Duration::from_secs(15);
/// How often it is looked for.
const ROOM_PAUSE: Duration = Duration::from_millis(50);

/// What memory is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Streams that are open.
    Streams,
    /// Messages of clients, until they are answered.
    Messages,
    /// Answers, until the client has taken them.
    Answers,
}

/// How many uses there are.
pub(crate) const USES: usize = 3;

/// See the module.
#[derive(Debug)]
pub(crate) struct Budget {
    most: usize,
    taken: [AtomicUsize; USES],
    refused: IntCounter,
    began: Instant,
}

/// A part of the budget that is taken until this is dropped.
#[derive(Debug)]
pub(crate) struct Taken {
    client: Arc<Client>,
    what: Use,
    bytes: usize,
}

/// What a connection holds of the budget.
#[derive(Debug, Default)]
pub(crate) struct Held {
    bytes: [AtomicUsize; USES],
    /// When answers were last taken by the client, or began to wait: milliseconds since the budget began.
    progress: AtomicU64,
}

impl Held {
    /// Whether no answer waits for the client.
    pub(crate) fn is_free(&self) -> bool {
        self.bytes[Use::Answers as usize].load(Ordering::Relaxed) == 0
    }
}

impl Budget {
    /// So many bytes.
    pub(crate) fn new(most: usize, refused: IntCounter) -> Budget {
        Budget { most, taken: Default::default(), refused, began: Instant::now() }
    }

    /// All of it.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// What is taken for a use.
    pub(crate) fn taken(&self, what: Use) -> usize {
        self.taken[what as usize].load(Ordering::Relaxed)
    }

    fn admits(&self, held: &Held, what: Use, bytes: usize) -> bool {
        let (with, own, most) = self.with(held, what, bytes);
        with <= most / 2 || own <= most.saturating_sub(with) / PART
    }

    /// Whether there is room for what can wait: it leaves the second half to those who cannot.
    fn admits_patient(&self, held: &Held, what: Use, bytes: usize) -> bool {
        let (with, _, most) = self.with(held, what, bytes);
        with <= most / 2
    }

    /// What would be taken of the part of this use, of that by one connection, and how much there is.
    fn with(&self, held: &Held, what: Use, bytes: usize) -> (usize, usize, usize) {
        let (uses, most): (&[Use], usize) = match what {
            Use::Streams => (&[Use::Streams], self.most / 4),
            Use::Messages | Use::Answers => (&[Use::Messages, Use::Answers], self.most / 4 * 3),
        };
        let taken: usize = uses.iter().map(|what| self.taken(*what)).sum();
        let own: usize = uses.iter().map(|what| held.bytes[*what as usize].load(Ordering::Relaxed)).sum();
        (taken.saturating_add(bytes), own.saturating_add(bytes), most)
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// Whether a client has taken nothing of what waits for it for too long.
    pub(crate) fn is_stuck(&self, held: &Held) -> bool {
        if held.is_free() {
            return false;
        }
        let all: usize =
            [Use::Streams, Use::Messages, Use::Answers].map(|what| self.taken(what)).iter().sum();
        let within = if all > self.most / 2 { PROGRESS_WITHIN } else { PROGRESS_WITHIN_ALWAYS };
        let idle = self.now().saturating_sub(held.progress.load(Ordering::Relaxed));
        idle > within.as_millis() as u64
    }
}

impl Taken {
    /// Takes so many bytes; `None` if too much is taken.
    pub(crate) fn take(client: &Arc<Client>, what: Use, bytes: usize) -> Option<Taken> {
        let mut taken = Taken::nothing(client, what);
        taken.grow(bytes).then_some(taken)
    }

    /// Takes nothing yet.
    pub(crate) fn nothing(client: &Arc<Client>, what: Use) -> Taken {
        Taken { client: Arc::clone(client), what, bytes: 0 }
    }

    /// How much it is.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Of an open stream.
    pub(crate) fn stream(client: &Arc<Client>) -> Option<Taken> {
        Taken::take(client, Use::Streams, STREAM_BYTES)
    }

    /// Takes so many bytes when there is room for them.
    ///
    /// # Errors
    /// [`Failure::Overloaded`]: that took too long.
    pub(crate) async fn take_in_time(
        client: &Arc<Client>,
        what: Use,
        bytes: usize,
    ) -> Result<Taken, Failure> {
        let begun = client.budget().now();
        while !client.budget().admits_patient(client.held(), what, bytes) {
            if client.budget().now() - begun > ROOM_WITHIN.as_millis() as u64 {
                client.budget().refused.inc();
                return Err(Failure::Overloaded);
            }
            sleep(ROOM_PAUSE).await;
        }
        Taken::take(client, what, bytes).ok_or(Failure::Overloaded)
    }

    /// The same, for who cannot be refused: however long that takes.
    pub(crate) async fn take_at_last(client: &Arc<Client>, what: Use, bytes: usize) -> Taken {
        loop {
            match Taken::take_in_time(client, what, bytes).await {
                Ok(taken) => return taken,
                // Others have taken it in between, or are still there.
                Err(_) => sleep(ROOM_PAUSE).await,
            }
        }
    }

    /// It is so much now, whatever else is taken: it is here.
    pub(crate) fn settle(&mut self, bytes: usize) {
        let (budget, held) = (self.client.budget(), self.client.held());
        for taken in [&budget.taken[self.what as usize], &held.bytes[self.what as usize]] {
            taken.fetch_add(bytes, Ordering::Relaxed);
            taken.fetch_sub(self.bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
    }

    /// The client has taken a part of an answer.
    pub(crate) fn note_progress(&self) {
        self.client.held().progress.store(self.client.budget().now(), Ordering::Relaxed);
    }

    /// Takes more; false if too much is taken.
    pub(crate) fn grow(&mut self, bytes: usize) -> bool {
        let has_room = self.try_grow(bytes);
        if !has_room {
            self.client.budget().refused.inc();
        }
        has_room
    }

    /// The same where it is tried again, so that nothing is refused yet.
    pub(crate) fn try_grow(&mut self, bytes: usize) -> bool {
        let (budget, held) = (self.client.budget(), self.client.held());
        if !budget.admits(held, self.what, bytes) {
            return false;
        }
        budget.taken[self.what as usize].fetch_add(bytes, Ordering::Relaxed);
        let before = held.bytes[self.what as usize].fetch_add(bytes, Ordering::Relaxed);
        if before == 0 && self.what == Use::Answers {
            held.progress.store(budget.now(), Ordering::Relaxed);
            self.client.follow();
        }
        self.bytes += bytes;
        true
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let (budget, held) = (self.client.budget(), self.client.held());
        budget.taken[self.what as usize].fetch_sub(self.bytes, Ordering::Relaxed);
        held.bytes[self.what as usize].fetch_sub(self.bytes, Ordering::Relaxed);
        if self.what == Use::Answers {
            held.progress.store(budget.now(), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::super::testing::admission_with;
    use super::*;

    #[test]
    fn one_that_takes_all_it_can_get_leaves_something_to_others() {
        let admission = admission_with(64 << 20);
        let (greedy, modest) = (admission.connect(None), admission.connect(None));
        let take = |client: &Arc<Client>, what, mebibytes: usize| Taken::take(client, what, mebibytes << 20);
        let mut messages = take(&greedy, Use::Messages, 20).unwrap();
        assert!(messages.grow(4 << 20));
        assert!(!messages.grow(1 << 20));
        assert!(take(&greedy, Use::Answers, 1).is_none());
        let answers = take(&modest, Use::Answers, 1).unwrap();
        assert!(take(&modest, Use::Answers, 1).is_none(), "that is its part");
        assert!(Taken::stream(&greedy).is_some(), "of these there are none");
        assert_eq!(admission.budget().taken(Use::Messages), 24 << 20);
        drop((messages, answers));
        assert_eq!(admission.budget().taken(Use::Messages), 0);
        assert_eq!(admission.budget().taken(Use::Answers), 0);
        let streams: Vec<_> = std::iter::from_fn(|| Taken::stream(&greedy)).collect();
        assert_eq!(streams.len(), (8 << 20) / STREAM_BYTES, "half of a quarter");
    }

    #[test]
    fn some_that_take_all_they_can_get_leave_something_to_who_holds_little() {
        for one_after_the_other in [false, true] {
            let admission = admission_with(256 << 20);
            let greedy: Vec<_> = (0..20).map(|_| admission.connect(None)).collect();
            let (mut streams, mut messages) = (Vec::new(), Vec::new());
            let mut take = |client: &Arc<Client>| {
                let before = streams.len() + messages.len();
                streams.extend(Taken::stream(client));
                messages.extend(Taken::take(client, Use::Messages, 64 << 10));
                streams.len() + messages.len() > before
            };
            if one_after_the_other {
                greedy.iter().for_each(|client| while take(client) {});
            } else {
                while greedy.iter().filter(|client| take(client)).count() > 0 {}
            }
            let modest = admission.connect(None);
            let own: Vec<_> = std::iter::from_fn(|| Taken::stream(&modest)).take(10).collect();
            assert_eq!(own.len(), 10);
            assert!(Taken::take(&modest, Use::Messages, 1500 << 10).is_some(), "the longest there is");
        }
    }

    #[test]
    fn who_takes_nothing_is_stuck_only_while_something_waits_for_it() {
        let admission = admission_with(64 << 20);
        let client = admission.connect(None);
        let answer = Taken::take(&client, Use::Answers, 20 << 20).unwrap();
        assert!(!admission.budget().is_stuck(client.held()));
        client.held().progress.store(0, Ordering::Relaxed);
        let mut budget = Budget::new(30 << 20, IntCounter::new("refused", "refused").unwrap());
        thread::sleep(Duration::from_millis(20));
        budget.taken[Use::Answers as usize].store(20 << 20, Ordering::Relaxed);
        budget.began -= PROGRESS_WITHIN;
        assert!(budget.is_stuck(client.held()), "more than half is taken");
        budget.most = 64 << 20;
        assert!(!budget.is_stuck(client.held()));
        budget.began -= PROGRESS_WITHIN_ALWAYS;
        assert!(budget.is_stuck(client.held()));
        drop(answer);
        assert!(!budget.is_stuck(client.held()));
    }
}
