//! Ways to break a gateway on purpose. The simulation must catch each of them; one that it does not catch is a rule that
//! nothing tests.
//!
//! What is broken is set for the thread that a simulated run is on: the rules stand in values that are made in many places,
//! by callers that should not have to pass it on. Without the feature `mutants` there is nothing to set, and nothing to ask.

/// One broken rule; see [`break_rule`].
#[cfg(feature = "mutants")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mutant {
    /// A write whose attempt was lost is tried again under a new number.
    RetryUnderNewNumber,
    /// A lost attempt counts as one that was certainly not applied.
    LostAsNeverApplied,
    /// A leader that lost its leadership meanwhile counts as one that has certainly not applied.
    UnknownAsNeverApplied,
    /// A write that may have been applied is told refused when a disk is full.
    GivenUpThoughPerhapsApplied,
    /// Two writes get the same number.
    NumberGivenTwice,
    /// A late answer is taken for that of whoever asks under the same place of the table.
    LateAnswerTaken,
    /// A serializable read does not say what its client has seen.
    SeenNotTold,
    /// A shard map is believed whatever its epoch.
    OldMapBelieved,
    /// A shard map is not believed where another one is known.
    NewerMapIgnored,
    /// A feed that moves goes on one revision too late.
    FeedSkipsOnMove,
    /// A feed that moves inside a revision goes on with the next one.
    FeedTornOnMove,
    /// A feed shows a part of a revision as if it were all.
    FeedShowsParts,
    /// A feed that moves shows the last revision again.
    FeedRepeatsOnMove,
    /// A feed stays at a replica whose link is lost.
    FeedStaysWhenLost,
    /// A feed begins at any replica, wherever that one is.
    FeedBeginsAnywhere,
    /// A progress answer is that of the feed that has come farthest, and no feed is asked.
    ProgressOfFastest,
    /// A watcher whose place is compacted goes on with what is left.
    CompactionSkipped,
    /// Credit is given back twice.
    CreditTwice,
    /// A watermark counts for a watch that is not in step.
    WatermarkThoughBehind,
    /// The answer to a question counts for a watch that is not in step.
    SyncedThoughBehind,
    /// The pages of a long answer are read at whatever revision is the newest.
    PagesAtNewest,
    /// The chunks of a stream are.
    ChunksAtNewest,
}

#[cfg(feature = "mutants")]
impl Mutant {
    /// All of them.
    pub const ALL: [Mutant; 22] = [
        Mutant::RetryUnderNewNumber,
        Mutant::LostAsNeverApplied,
        Mutant::UnknownAsNeverApplied,
        Mutant::GivenUpThoughPerhapsApplied,
        Mutant::NumberGivenTwice,
        Mutant::LateAnswerTaken,
        Mutant::SeenNotTold,
        Mutant::OldMapBelieved,
        Mutant::NewerMapIgnored,
        Mutant::FeedSkipsOnMove,
        Mutant::FeedTornOnMove,
        Mutant::FeedShowsParts,
        Mutant::FeedRepeatsOnMove,
        Mutant::FeedStaysWhenLost,
        Mutant::FeedBeginsAnywhere,
        Mutant::ProgressOfFastest,
        Mutant::CompactionSkipped,
        Mutant::CreditTwice,
        Mutant::WatermarkThoughBehind,
        Mutant::SyncedThoughBehind,
        Mutant::PagesAtNewest,
        Mutant::ChunksAtNewest,
    ];
}

#[cfg(feature = "mutants")]
thread_local! {
    static BROKEN: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
}

/// Breaks a rule, or none, for all gateways of this thread.
#[cfg(feature = "mutants")]
pub fn break_rule(mutant: Option<Mutant>) {
    BROKEN.set(mutant);
}

#[cfg(feature = "mutants")]
pub(crate) fn is_broken(mutant: Mutant) -> bool {
    BROKEN.get() == Some(mutant)
}

/// Whether this rule is broken; a constant `false` without the feature.
macro_rules! mutant {
    ($name:ident) => {{
        #[cfg(feature = "mutants")]
        let broken = crate::mutant::is_broken(crate::Mutant::$name);
        #[cfg(not(feature = "mutants"))]
        let broken = false;
        broken
    }};
}
pub(crate) use mutant;
