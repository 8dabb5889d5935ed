//! Where gateways and nodes stand.

/// A region, and a zone of it. Empty where that was not said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The region.
    pub region: String,
    /// The zone.
    pub zone: String,
}
