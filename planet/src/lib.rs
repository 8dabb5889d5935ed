//! A planet on one machine, for tests and trials: relays on loopback that hold back what goes through them for as long as it
//! would be on its way between two regions, by a table of round trips that were measured.
//!
//! Only distance is emulated: nothing is lost, and there is no limit to the bandwidth.

mod relay;
mod table;

pub use relay::Relay;
pub use table::Region;
