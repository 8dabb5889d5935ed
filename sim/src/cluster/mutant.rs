//! What can be broken on purpose.

/// One broken rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Of the consensus engine.
    Engine(consensus_core::Mutant),
    /// Of the group core.
    Group(group_core::Mutant),
}

impl Mutant {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Mutant> {
        let engine = consensus_core::Mutant::ALL.into_iter().map(Mutant::Engine);
        engine.chain(group_core::Mutant::ALL.into_iter().map(Mutant::Group))
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Mutant::Engine(mutant) => format!("{mutant:?}"),
            Mutant::Group(mutant) => format!("{mutant:?}"),
        }
    }

    pub(crate) fn of_engine(mutant: Option<Mutant>) -> Option<consensus_core::Mutant> {
        match mutant? {
            Mutant::Engine(mutant) => Some(mutant),
            Mutant::Group(_) => None,
        }
    }

    pub(crate) fn of_group(mutant: Option<Mutant>) -> Option<group_core::Mutant> {
        match mutant? {
            Mutant::Group(mutant) => Some(mutant),
            Mutant::Engine(_) => None,
        }
    }
}
