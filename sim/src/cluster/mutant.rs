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
}

impl Mutant {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Mutant> {
        let engine = consensus_core::Mutant::ALL.into_iter().map(Mutant::Engine);
        let group = group_core::Mutant::ALL.into_iter().map(Mutant::Group);
        engine.chain(group).chain(gateway_core::Mutant::ALL.into_iter().map(Mutant::Gateway))
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Mutant::Engine(mutant) => format!("{mutant:?}"),
            Mutant::Group(mutant) => format!("{mutant:?}"),
            Mutant::Gateway(mutant) => format!("{mutant:?}"),
        }
    }

    pub(crate) fn of_engine(mutant: Option<Mutant>) -> Option<consensus_core::Mutant> {
        match mutant? {
            Mutant::Engine(mutant) => Some(mutant),
            Mutant::Group(_) | Mutant::Gateway(_) => None,
        }
    }

    pub(crate) fn of_group(mutant: Option<Mutant>) -> Option<group_core::Mutant> {
        match mutant? {
            Mutant::Group(mutant) => Some(mutant),
            Mutant::Engine(_) | Mutant::Gateway(_) => None,
        }
    }

    pub(crate) fn of_gateway(mutant: Option<Mutant>) -> Option<gateway_core::Mutant> {
        match mutant? {
            Mutant::Gateway(mutant) => Some(mutant),
            Mutant::Engine(_) | Mutant::Group(_) => None,
        }
    }
}
