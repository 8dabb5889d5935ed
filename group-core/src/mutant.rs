//! Ways to break a replica on purpose. The simulation must catch each of them; one that it does not catch is a rule that
//! nothing tests.

/// One broken rule, chosen by [`crate::Settings::broken`].
#[cfg(feature = "mutants")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mutant {
    /// A read is served without a lease, by whoever is asked.
    ReadUnasked,
    /// What a gateway takes back is answered all the same.
    CancelIgnored,
    /// When leadership is lost, writes under way are refused as if they had certainly not entered the log.
    UnknownAsRefused,
    /// The answers of a batch go to each other's writers.
    AnswersSwapped,
    /// One command of a batch is not applied.
    CommandSkipped,
    /// The floor told to the journal is where the log ends.
    FloorAtEnd,
    /// A lease ends in half its time.
    LeaseHalved,
    /// A keep-alive is answered, and the lease not renewed.
    LeaseNotRenewed,
    /// A new leader does not know that leases run.
    LeasesNotStarted,
    /// A watch begins one revision late.
    WatchBeginsLate,
    /// A watch that falls behind goes on with what comes next.
    WatchSkipsWhenBehind,
    /// A watch counts as in step after one page of history.
    WatchInStepTooSoon,
    /// A watch is told that it has come all the way, though it is behind.
    WatchSyncedTooSoon,
    /// A watch whose place is compacted goes on as if nothing had been there.
    WatchOverCompaction,
    /// A watch is told of a part of a revision as if it were all.
    WatchTorn,
    /// A watch is not told what was there before.
    WatchWithoutPrevKv,
    /// A state that is replaced leaves watches where they are.
    WatchOverSnapshot,
    /// A gateway is not told that a watch fell behind.
    WatchFallsSilently,
    /// A watermark says more than was sent.
    WatermarkTooHigh,
    /// The cluster version rises as soon as the leader knows the next one.
    VersionRaisedAlone,
}

#[cfg(feature = "mutants")]
impl Mutant {
    /// All of them.
    pub const ALL: [Mutant; 20] = [
        Mutant::ReadUnasked,
        Mutant::CancelIgnored,
        Mutant::UnknownAsRefused,
        Mutant::AnswersSwapped,
        Mutant::CommandSkipped,
        Mutant::FloorAtEnd,
        Mutant::LeaseHalved,
        Mutant::LeaseNotRenewed,
        Mutant::LeasesNotStarted,
        Mutant::WatchBeginsLate,
        Mutant::WatchSkipsWhenBehind,
        Mutant::WatchInStepTooSoon,
        Mutant::WatchSyncedTooSoon,
        Mutant::WatchOverCompaction,
        Mutant::WatchTorn,
        Mutant::WatchWithoutPrevKv,
        Mutant::WatchOverSnapshot,
        Mutant::WatchFallsSilently,
        Mutant::WatermarkTooHigh,
        Mutant::VersionRaisedAlone,
    ];
}

/// The rule that is broken, if any; without the feature `mutants` there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Broken {
    /// This one.
    #[cfg(feature = "mutants")]
    pub mutant: Option<Mutant>,
}

/// Whether this rule is broken; a constant `false` without the feature.
macro_rules! mutant {
    ($broken:expr, $name:ident) => {{
        #[cfg(feature = "mutants")]
        let broken = $broken.mutant == Some(crate::Mutant::$name);
        #[cfg(not(feature = "mutants"))]
        let broken = {
            let _ = &$broken;
            false
        };
        broken
    }};
}
pub(crate) use mutant;
