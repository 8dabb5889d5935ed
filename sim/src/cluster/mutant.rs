//! What can be broken on purpose.

/// One broken rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Of the consensus engine.
    Engine(consensus_core::Mutant),
    /// Of the group core.
    Group(group_core::Mutant),
    /// Of the gateway core.
    Gateway(gateway_core::Mutant),
    /// Of the state machine.
    State(keyspace::Mutant),
}

/// Those of the state machine that show here; its own tests catch them all.
const OF_STATE: [keyspace::Mutant; 11] = [
    keyspace::Mutant::ResultUnderNextNumber,
    keyspace::Mutant::StaleEpochApplied,
    keyspace::Mutant::ForeignKeysApplied,
    keyspace::Mutant::ForeignReadAnswered,
    keyspace::Mutant::ResultInFirstShard,
    keyspace::Mutant::WrongShardForgotten,
    keyspace::Mutant::ReadAboveResolved,
    keyspace::Mutant::ResolvedByShard,
    keyspace::Mutant::LeaseEndsInOneShard,
    keyspace::Mutant::WritesUnbounded,
    keyspace::Mutant::BoundsBeforeVersion,
];

impl Mutant {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Mutant> {
        let engine = consensus_core::Mutant::ALL.into_iter().map(Mutant::Engine);
        let group = group_core::Mutant::ALL.into_iter().map(Mutant::Group);
        let gateway = gateway_core::Mutant::ALL.into_iter().map(Mutant::Gateway);
        engine.chain(group).chain(gateway).chain(OF_STATE.into_iter().map(Mutant::State))
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Mutant::Engine(mutant) => format!("{mutant:?}"),
            Mutant::Group(mutant) => format!("{mutant:?}"),
            Mutant::Gateway(mutant) => format!("{mutant:?}"),
            Mutant::State(mutant) => format!("{mutant:?}"),
        }
    }

    pub(crate) fn of_engine(mutant: Option<Mutant>) -> Option<consensus_core::Mutant> {
        match mutant? {
            Mutant::Engine(mutant) => Some(mutant),
            Mutant::Group(_) | Mutant::Gateway(_) | Mutant::State(_) => None,
        }
    }

    pub(crate) fn of_group(mutant: Option<Mutant>) -> Option<group_core::Mutant> {
        match mutant? {
            Mutant::Group(mutant) => Some(mutant),
            Mutant::Engine(_) | Mutant::Gateway(_) | Mutant::State(_) => None,
        }
    }

    pub(crate) fn of_gateway(mutant: Option<Mutant>) -> Option<gateway_core::Mutant> {
        match mutant? {
            Mutant::Gateway(mutant) => Some(mutant),
            Mutant::Engine(_) | Mutant::Group(_) | Mutant::State(_) => None,
        }
    }

    pub(crate) fn of_state(mutant: Option<Mutant>) -> Option<keyspace::Mutant> {
        match mutant? {
            Mutant::State(mutant) => Some(mutant),
            Mutant::Engine(_) | Mutant::Group(_) | Mutant::Gateway(_) => None,
        }
    }
}
