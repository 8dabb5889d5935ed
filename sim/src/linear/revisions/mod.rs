//! A linearizability checker for etcd that follows the revisions.
//!
//! Every answer of etcd carries the store's revision (`header.revision`), and every request that changes something
//! takes a revision of its own. So a history says itself in which order it claims to have happened, and it is left to
//! check that claim, in about the time of sorting it:
//!
//! 1. **Real time** (`facts`): no two acknowledged writes share a revision; if one operation returned before another
//!    was called, its revision is not higher, and lower if the other one is a write.
//! 2. **Streams** (`streams`): each watch, by itself, is ordered, whole and free of repetition.
//! 3. **Replay** (`replay`): the writes are applied to the [`Model`] in the order of their revisions; every answer must be
//!    the model's at its revision, and each watch must have seen every change to its keys from its first revision to
//!    the last one it was told about.
//!
//! *Unknown outcomes.* A write that never returned may have taken any revision that nobody acknowledged and that is
//! not older than the write. What a revision changed is known from watch events and from the versions that reads
//! returned; a write is recognised by its value, so the values of a test should be unique. Where that leaves a choice
//! (two deletes that look the same, no watch at all), the replay tries one and comes back if it fails. A lease that
//! runs out is such a write as well: a revoke by the server, possible at any time after the grant. **A test with
//! unknown outcomes should record one watch of the whole keyspace, from its first revision on:** it tells what each
//! revision changed, and the check is then linear. Without it some thousand operations are about the limit.
//!
//! *Gaps.* In a dense line of revisions each one changed something, so a revision that nothing explains is an error. In
//! a sparse one (several groups draw from one sequencer, and one may crash with numbers in hand) it is not.
//!
//! *What is not checked here:* keepalives, times to live and lists of leases, whose answers depend on time or on the
//! replica asked; and of refusals over leases and compaction only what real time proves wrong.

mod facts;
mod replay;
mod streams;

use std::fmt;

use super::history::EtcdHistory;
use crate::model::Model;
use facts::Facts;

/// Whether each revision changed something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// It did, as in etcd.
    Dense,
    /// Not necessarily.
    Sparse,
}

/// What the checker needs to know besides the history, and its bounds.
#[derive(Clone, Debug)]
pub struct Options {
    /// The state before the first operation. Its revisions need no explanation.
    pub start: Model,
    /// Whether gaps are errors.
    pub line: Line,
    /// Whether the server may have ended leases on its own. Without it, some more refusals are known to be wrong.
    pub leases_expire: bool,
    /// Most operations and watch events taken on. Bounds the memory: a few hundred bytes for each, besides the history.
    pub size_max: usize,
    /// Most evaluations of the model. Bounds the time, at some 1 to 3 µs each; a history of `n` operations needs about `n`
    /// unless there are choices to make.
    pub steps_max: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            start: Model::default(),
            line: Line::Dense,
            leases_expire: true,
            size_max: 5_000_000,
            steps_max: 5_000_000,
        }
    }
}

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything can be explained.
    Consistent(Summary),
    /// Something cannot. The first violation is the one to look at; at most [`VIOLATIONS_MAX`] are listed.
    Violated(Vec<Violation>),
    /// Not found out, because a bound was reached.
    Undecided {
        /// Which one.
        reason: String,
    },
}

/// Most violations listed.
pub const VIOLATIONS_MAX: usize = 20;

/// How much a check has seen: a run that checked nothing should not pass for a good one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Acknowledged requests that took a revision.
    pub writes: usize,
    /// Answers compared with the model that took none.
    pub reads: usize,
    /// Refusals judged.
    pub refusals: usize,
    /// Writes with an unknown outcome that turned out to have happened.
    pub unknown_applied: usize,
    /// Leases that the server ended.
    pub leases_expired: usize,
    /// Events that watches received.
    pub watch_events: usize,
    /// The last revision.
    pub revision: i64,
}

/// The names of what can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ViolationKind {
    /// The record itself makes no sense: a return before its call, an answer of another type than its request.
    MalformedHistory,
    /// Two writes were acknowledged with one revision: two leaders, or a lost one.
    DuplicateRevision,
    /// A write returned before another was called, and has the higher revision.
    WriteOrder,
    /// A linearizable read misses a write that was acknowledged before the read was called.
    StaleRead,
    /// A linearizable read is older than one that returned before it was called.
    ReadWentBack,
    /// An answer knows of a revision whose write was called only later, or of one above its own header.
    FutureRead,
    /// An answer's header includes a write, and its keys do not show it.
    LostWrite,
    /// An answer shows a part of what one revision changed.
    TornRevision,
    /// An answer shows a version of a key that no write left there.
    PhantomValue,
    /// A transaction took the branch that its compares do not allow.
    FalseCompare,
    /// An answer differs from the model's in another way.
    WrongAnswer,
    /// A request was refused without that reason.
    WrongError,
    /// One write shows up at two revisions.
    AppliedTwice,
    /// Something was written that nobody wrote.
    PhantomWrite,
    /// A revision exists, and nothing can have taken it.
    UnexplainedRevision,
    /// A compaction, or a read below it, contradicts an earlier compaction.
    Compaction,
    /// A watch's events are out of order.
    WatchOrder,
    /// A watch received an event twice.
    WatchDuplicate,
    /// A watch skipped a revision.
    WatchGap,
    /// A watch received a part of what one revision changed, or received it in pieces.
    WatchTorn,
    /// A watch received an event from before its start.
    WatchBeforeStart,
    /// A watch received an event that did not happen, or not like that.
    WatchPhantom,
    /// A watch's header is older than the events under it, or than what came before.
    WatchHeader,
    /// An event arrived after the progress message that said it had been sent.
    WatchProgress,
    /// An event arrived before its write was called.
    WatchFuture,
    /// A watch was cancelled for a compaction that does not explain it, or went on after its end.
    WatchCancel,
}

/// Something wrong with a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its name.
    pub kind: ViolationKind,
    /// Where on the line of revisions; 0 if nowhere.
    pub revision: i64,
    /// The operations that contradict each other, by index.
    pub operations: Vec<usize>,
    /// The watch, by index.
    pub watch: Option<usize>,
    /// In words.
    pub detail: String,
}

impl Violation {
    fn new(kind: ViolationKind, revision: i64, operations: &[usize], detail: impl Into<String>) -> Violation {
        Violation { kind, revision, operations: operations.to_vec(), watch: None, detail: detail.into() }
    }

    fn of_watch(kind: ViolationKind, revision: i64, watch: usize, detail: impl Into<String>) -> Violation {
        Violation { kind, revision, operations: Vec::new(), watch: Some(watch), detail: detail.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at revision {}: {}", self.kind, self.revision, self.detail)?;
        if !self.operations.is_empty() {
            write!(f, "; operations {:?}", self.operations)?;
        }
        if let Some(watch) = self.watch {
            write!(f, "; watch {watch}")?;
        }
        Ok(())
    }
}

/// Checks a history. `check(…)` is deterministic, and takes no longer than [`Options::steps_max`] allows.
pub fn check(history: &EtcdHistory, options: &Options) -> Verdict {
    let events: usize = history.watches.iter().map(|stream| stream.responses.len()).sum();
    let size = history.operations.len().saturating_add(events);
    if size > options.size_max {
        let reason =
            format!("{size} operations and watch messages are more than the {} allowed", options.size_max);
        return Verdict::Undecided { reason };
    }
    let (facts, mut violations) = Facts::of(history, options);
    if violations.iter().any(|violation| violation.kind == ViolationKind::MalformedHistory) {
        violations.retain(|violation| violation.kind == ViolationKind::MalformedHistory);
        return violated(violations);
    }
    let (streams, of_streams) = streams::read_all(&history.watches);
    violations.extend(of_streams);
    if !violations.is_empty() {
        return violated(violations);
    }
    match replay::run(&facts, &streams, options) {
        replay::End::Explained(summary) => Verdict::Consistent(summary),
        replay::End::Contradicted(violations) => violated(violations),
        replay::End::OutOfSteps => {
            Verdict::Undecided { reason: format!("no verdict after {} steps", options.steps_max) }
        }
    }
}

fn violated(mut violations: Vec<Violation>) -> Verdict {
    violations.truncate(VIOLATIONS_MAX);
    Verdict::Violated(violations)
}

/// For details: shorter than `Debug`, and keys are readable.
fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
