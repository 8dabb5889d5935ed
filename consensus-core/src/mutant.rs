//! Ways to break the protocol on purpose. Simulation and models must catch each of them; one that they do not catch is
//! a rule that nothing tests.

/// One broken rule, chosen by [`crate::Options::mutant`].
#[cfg(feature = "mutants")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mutant {
    /// A promise leaves before it is durable.
    PromiseUngated,
    /// A vote is acknowledged before it is durable.
    AcceptedUngated,
    /// The leader counts its own vote before it is durable.
    OwnVoteUngated,
    /// A candidate asks before its own promise is durable, and after a restart may use the ballot again.
    BallotReused,
    /// One promise fewer than q1 is enough.
    PhaseOneQuorumShort,
    /// One vote fewer than q2 is enough.
    PhaseTwoQuorumShort,
    /// An acceptor fortifies deposed leaders and reports no floor; a leader believes it.
    FloorSkipped,
    /// An acceptor fortifies deposed leaders; they ignore the floor it reports.
    LeaderIgnoresFloor,
    /// A restarted node does as if it had granted no lease in its former incarnation.
    QuarantineSkipped,
    /// Commits do not wait for lease holders.
    GrantsIgnored,
    /// A lease is valid with one grant too few.
    GrantMissing,
    /// A lease outlives the support it hangs on.
    LeaseUnbounded,
    /// `upto` covers votes of older ballots.
    OldBallotCounted,
    /// A follower takes its own vote of an older ballot for the committed value (C3).
    CommitOldBallot,
    /// A new leader adopts the vote of the lowest ballot.
    SelectLowest,
    /// A new leader adopts nothing: every slot gets a no-op.
    SelectFree,
    /// An acceptor votes for ballots below its promise.
    PromiseUnchecked,
    /// `upto` skips slots without a vote.
    UptoSkipsHoles,
    /// A slot whose vote may be forgotten is reported as never voted.
    FaultyAsNoVote,
    /// A vote whose value is lost is reported as no vote.
    LostPayloadAsNoVote,
    /// Phase 1 asks for one slot too few.
    PhaseOneFromTooHigh,
    /// A leader reads before its first entry is committed.
    ReadBeforeReady,
    /// A read-index round is answered by the leader alone.
    ReadIndexUnconfirmed,
    /// A node that may have forgotten a promise votes all the same.
    PromiseLostVotes,
    /// A damaged node counts as whole after any Accepted, without hearing how far the leader had proposed.
    HealedTooSoon,
    /// A newcomer takes its place when a quorum, itself counted, has answered.
    NewcomerAsksQuorum,
    /// A newcomer founds a cluster, whatever others say.
    NewcomerAlwaysFounds,
}

#[cfg(feature = "mutants")]
impl Mutant {
    /// All of them.
    pub const ALL: [Mutant; 27] = [
        Mutant::PromiseUngated,
        Mutant::AcceptedUngated,
        Mutant::OwnVoteUngated,
        Mutant::BallotReused,
        Mutant::PhaseOneQuorumShort,
        Mutant::PhaseTwoQuorumShort,
        Mutant::FloorSkipped,
        Mutant::LeaderIgnoresFloor,
        Mutant::QuarantineSkipped,
        Mutant::GrantsIgnored,
        Mutant::GrantMissing,
        Mutant::LeaseUnbounded,
        Mutant::OldBallotCounted,
        Mutant::CommitOldBallot,
        Mutant::SelectLowest,
        Mutant::SelectFree,
        Mutant::PromiseUnchecked,
        Mutant::UptoSkipsHoles,
        Mutant::FaultyAsNoVote,
        Mutant::LostPayloadAsNoVote,
        Mutant::PhaseOneFromTooHigh,
        Mutant::ReadBeforeReady,
        Mutant::ReadIndexUnconfirmed,
        Mutant::PromiseLostVotes,
        Mutant::HealedTooSoon,
        Mutant::NewcomerAsksQuorum,
        Mutant::NewcomerAlwaysFounds,
    ];
}

/// Whether these options ask for this mutant, or one of these; a constant `false` without the feature.
macro_rules! mutant {
    ($options:expr, $($name:ident)|+) => {{
        #[cfg(feature = "mutants")]
        let broken = matches!($options.mutant, Some($(crate::Mutant::$name)|+));
        #[cfg(not(feature = "mutants"))]
        let broken = {
            let _ = &$options;
            false
        };
        broken
    }};
}
pub(crate) use mutant;
