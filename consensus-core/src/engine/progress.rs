//! What a leader knows of one member: how far it has acknowledged, what is on its way, and when to send again.
//!
//! ```text
//!   slots:   ... matched | sent ... next
//!                 acked  | on the way |  to be sent when the window allows
//! ```
//! Invariant: `matched <= sent < next`.

use std::collections::VecDeque;
use std::time::Duration;

use crate::{Epoch, Mono, NodeId, NodeSet, Slot};

/// On the way to one member, beyond which a leader waits for acknowledgements.
const UNACKED_BYTES_MAX: usize = 4 << 20;
/// The same in messages.
const UNACKED_MESSAGES_MAX: usize = 256;
/// How often the delay before sending again doubles: from 100 ms to 800 ms by default.
const BACKOFF_DOUBLINGS_MAX: u32 = 3;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Progress {
    pub(super) node: NodeId,
    /// It lives, as far as is known. Nothing is sent to the dead.
    pub(super) up: bool,
    /// It acknowledged every slot up to here.
    pub(super) matched: Slot,
    /// Whom it named as lease holders with that.
    pub(super) grants: NodeSet,
    /// Every slot up to here was sent, and not known to be lost.
    pub(super) sent: Slot,
    /// It knows the commit index up to here.
    pub(super) commit_known: Slot,
    /// It was told the commit index up to here.
    pub(super) commit_sent: Slot,
    /// It needs slots that are no longer kept; since when a snapshot is asked for.
    pub(super) snapshot: Option<Mono>,
    /// The lease it granted: epoch and floor.
    pub(super) fortified: Option<(Epoch, Slot)>,
    /// The epoch it was last asked to fortify.
    pub(super) fortify_sent: Option<Epoch>,
    /// Send one thing and wait for the answer: what was on its way may be lost.
    probing: bool,
    probe_due: bool,
    unacked: VecDeque<(Slot, usize)>,
    unacked_bytes: usize,
    pub(super) retry_at: Option<Mono>,
    backoff: u32,
}

impl Progress {
    /// `matched` is what it said with its promise. Without that it is asked before anything is sent: `sent` starts
    /// at the last slot, and its first answer puts it right.
    pub(super) fn new(node: NodeId, up: bool, matched: Option<Slot>, next: Slot) -> Progress {
        let last = Slot(next.0 - 1);
        assert!(
            matched.is_none_or(|matched| matched <= last),
            "phase 1 heard of what each voter has committed"
        );
        Progress {
            node,
            up,
            matched: matched.unwrap_or_default(),
            grants: NodeSet::new(),
            sent: matched.unwrap_or(last),
            commit_known: Slot(0),
            commit_sent: Slot(0),
            snapshot: None,
            fortified: None,
            fortify_sent: None,
            probing: matched.is_none(),
            probe_due: true,
            unacked: VecDeque::new(),
            unacked_bytes: 0,
            retry_at: None,
            backoff: 0,
        }
    }

    /// Whether entries may be sent now.
    pub(super) fn has_room(&self) -> bool {
        self.up
            && self.snapshot.is_none()
            && (!self.probing || self.probe_due)
            && self.unacked_bytes < UNACKED_BYTES_MAX
            && self.unacked.len() < UNACKED_MESSAGES_MAX
    }

    /// Whether a message is due even if there is nothing to put into it.
    pub(super) fn takes_probe(&mut self) -> bool {
        self.up && std::mem::take(&mut self.probe_due)
    }

    /// Entries up to `last` leave for this member.
    pub(super) fn on_sent(&mut self, last: Slot, bytes: usize) {
        assert!(last > self.sent, "what is on its way is not sent again before it is taken for lost");
        assert!(self.has_room(), "who is down, or waits for a snapshot, is sent nothing");
        self.sent = last;
        self.probe_due = false;
        self.unacked.push_back((last, bytes));
        self.unacked_bytes += bytes;
    }

    /// It acknowledged every slot up to `upto` and knows that those up to `commit` are committed.
    pub(super) fn on_accepted(&mut self, upto: Slot, commit: Slot, grants: NodeSet) {
        if upto >= self.matched {
            self.grants = grants;
        }
        if upto > self.matched || commit > self.commit_known {
            self.backoff = 0;
            // Set again by the leader if anything is still missing.
            self.retry_at = None;
        }
        self.matched = self.matched.max(upto);
        self.sent = if self.probing { self.matched } else { self.sent.max(self.matched) };
        self.probing = false;
        self.commit_known = self.commit_known.max(commit);
        while let Some(&(last, bytes)) = self.unacked.front()
            && last <= self.matched
        {
            self.unacked.pop_front();
            assert!(self.unacked_bytes >= bytes, "the bytes of every message on its way are counted");
            self.unacked_bytes -= bytes;
        }
        assert!(!self.unacked.is_empty() || self.unacked_bytes == 0, "nothing on its way fills no window");
    }

    /// Whether it lacks anything up to `last` or does not know `commit`.
    pub(super) fn lacks(&self, last: Slot, commit: Slot) -> bool {
        self.matched < last || self.commit_known < commit
    }

    /// Starts the timer after which what lacks is sent again.
    pub(super) fn arm_retry(&mut self, now: Mono, retransmit: Duration) {
        assert!(self.backoff <= BACKOFF_DOUBLINGS_MAX, "the delay stops growing");
        if self.retry_at.is_none() {
            self.retry_at = Some(now.after(retransmit * 2u32.pow(self.backoff)));
        }
    }

    /// No answer for too long: takes what is on its way for lost, and tries with one message.
    pub(super) fn on_retry(&mut self) {
        self.retry_at = None;
        self.backoff = (self.backoff + 1).min(BACKOFF_DOUBLINGS_MAX);
        self.restart();
    }

    /// It came back.
    pub(super) fn on_up(&mut self) {
        self.up = true;
        self.backoff = 0;
        self.retry_at = None;
        self.commit_known = Slot(0);
        self.restart();
    }

    /// Whether it is asked rarely or not at all, since it did not answer.
    pub(super) fn is_given_up(&self) -> bool {
        !self.up || self.backoff > 0
    }

    pub(super) fn on_down(&mut self) {
        self.up = false;
        self.snapshot = None;
        self.retry_at = None;
    }

    /// Sends nothing before the next retry.
    pub(super) fn await_answer(&mut self) {
        self.probing = true;
        self.probe_due = false;
    }

    fn restart(&mut self) {
        self.sent = self.matched;
        self.unacked.clear();
        self.unacked_bytes = 0;
        self.probing = true;
        self.probe_due = true;
    }

    pub(super) fn check_invariants(&self, next: Slot) {
        assert!(self.matched <= self.sent && self.sent < next, "matched <= sent < next");
        assert!(self.unacked.len() <= UNACKED_MESSAGES_MAX, "the window is bounded");
        assert_eq!(self.unacked_bytes, self.unacked.iter().map(|(_, bytes)| bytes).sum::<usize>());
    }
}
