//! Ways to break the state machine on purpose. Its tests or the simulation must catch each of them; one that neither catches
//! is a rule that nothing tests.

/// One broken rule, chosen by [`crate::Keyspace::set_broken`].
#[cfg(feature = "mutants")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mutant {
    /// A result is stored under the next number.
    ResultUnderNextNumber,
    /// A command is carried out although it was routed by a map that is older than its shard.
    StaleEpochApplied,
    /// A command is carried out in the shard that it names, wherever its keys are.
    ForeignKeysApplied,
    /// A query is answered in the first shard that is here, wherever its keys are.
    ForeignReadAnswered,
    /// The results of writes are stored in the first shard that is here.
    ResultInFirstShard,
    /// That a write was turned away is not kept under its number.
    WrongShardForgotten,
    /// Revisions that were given are not used: the next ones are.
    GivenRevisionIgnored,
    /// Revisions that were given are used although others have passed them.
    PassedRevisionUsed,
    /// The next revision counts as resolved.
    ReadAboveResolved,
    /// What has been written in a shard last counts as resolved in the group.
    ResolvedByShard,
    /// A lease that ends leaves its keys in all shards but the first.
    LeaseEndsInOneShard,
    /// A session that closes leaves its results in the shards.
    ResultsOutliveSession,
    /// A write that was acknowledged elsewhere is carried out when it comes late.
    AcknowledgedElsewhereApplied,
    /// The end of a lease's grant is that of a later grant of its id, too.
    LaterGrantExpired,
    /// What an earlier lease clock found counts after a later one has begun.
    EarlierClockCounts,
    /// A query that was suspended goes on at the newest revision.
    QueryGoesOnAtNewest,
    /// What a write reads and answers is not bounded, nor what is kept of it.
    WritesUnbounded,
    /// Writes are bounded although an older version is in force.
    BoundsBeforeVersion,
    /// What a write looks at counts although it is compacted.
    GarbageCounted,
}

#[cfg(feature = "mutants")]
impl Mutant {
    /// All of them.
    pub const ALL: [Mutant; 19] = [
        Mutant::ResultUnderNextNumber,
        Mutant::StaleEpochApplied,
        Mutant::ForeignKeysApplied,
        Mutant::ForeignReadAnswered,
        Mutant::ResultInFirstShard,
        Mutant::WrongShardForgotten,
        Mutant::GivenRevisionIgnored,
        Mutant::PassedRevisionUsed,
        Mutant::ReadAboveResolved,
        Mutant::ResolvedByShard,
        Mutant::LeaseEndsInOneShard,
        Mutant::ResultsOutliveSession,
        Mutant::AcknowledgedElsewhereApplied,
        Mutant::LaterGrantExpired,
        Mutant::EarlierClockCounts,
        Mutant::QueryGoesOnAtNewest,
        Mutant::WritesUnbounded,
        Mutant::BoundsBeforeVersion,
        Mutant::GarbageCounted,
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
