//! Who leads a group, and where it is to be led, as operators see it and want it. A value for the admin port and for
//! `gaios ctl leader`; [`crate::carrier`] asks the group's leader.

use api::gaios::link::v1 as wire;
use serde::{Deserialize, Serialize};

/// What an operator wants of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Which group.
    pub group: u64,
    /// What of it.
    pub want: Want,
}

/// See [`Wanted`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Want {
    /// To be told.
    Show,
    /// That this node leads.
    Move(u32),
    /// That it is led in these regions, the best first; with none, anywhere.
    Prefer(Vec<String>),
}

/// How things are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leading {
    /// The group.
    pub group: u64,
    /// The node that leads.
    pub leader: u32,
    /// Where the group is to be led, the best first; empty for anywhere.
    pub regions: Vec<String>,
    /// That is what the configuration says: no operator has said anything else.
    pub configured: bool,
    /// The other voters.
    pub voters: Vec<Voter>,
    /// Why what was wanted is not done, if it is not.
    pub refused: Option<String>,
}

/// A voter that does not lead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Voter {
    /// The node.
    pub node: u32,
    /// Where it stands, if that is known.
    pub region: Option<String>,
    /// It lives, and its disk works.
    pub able: bool,
    /// Entries that it has not acknowledged.
    pub behind: u64,
}

impl From<Want> for wire::LeaderControl {
    fn from(want: Want) -> wire::LeaderControl {
        match want {
            Want::Show => wire::LeaderControl::default(),
            Want::Move(to) => wire::LeaderControl { move_to: to, prefer: None },
            Want::Prefer(regions) => {
                wire::LeaderControl { move_to: 0, prefer: Some(wire::LeaderRegions { regions }) }
            }
        }
    }
}

impl Leading {
    pub(crate) fn new(group: u64, told: wire::LeaderControlled) -> Leading {
        let some = |text: String| Some(text).filter(|text| !text.is_empty());
        Leading {
            group,
            leader: told.leader,
            regions: told.regions.unwrap_or_default().regions,
            configured: told.configured,
            voters: told
                .voters
                .into_iter()
                .map(|voter| Voter {
                    node: voter.node,
                    region: some(voter.region),
                    able: voter.able,
                    behind: voter.behind,
                })
                .collect(),
            refused: some(told.refused),
        }
    }
}
