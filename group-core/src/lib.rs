//! One group's replica on one node, as a plain state machine: the consensus engine, the state machine that it feeds, and
//! everything that is decided between them and the gateways.
//!
//! ```text
//! Event ──▶ Replica::step ──▶ Replica::poll ──▶ Out: messages, records, answers, snapshots to write, notices
//!             engine  ──commits──▶  keyspace
//!             clients, queries, watches, lease clock, placement, hand-over, snapshots, log positions
//! ```
//!
//! It knows no clock, no socket, no disk and no task. [`Env`] is what it sees of the world at a moment, [`Event`] what
//! happens, [`Out`] what is to be done; a link is a number. A node's task and the simulation run this very type: they wait,
//! step, and carry out.
//!
//! [`Turn`] has the order in which that is done.

mod backlog;
mod clients;
mod digests;
pub mod entries;
mod env;
mod event;
mod gate;
mod lease_clock;
mod log_positions;
mod mutant;
mod out;
mod parts;
mod placement;
mod queries;
mod readiness;
mod recent;
mod replica;
mod replies;
mod seekers;
mod slices;
mod stateless;
mod status;
#[cfg(test)]
mod tests;
mod turn;
mod versions;
mod watches;

pub use env::{ApplyShare, Disk, Env, LinkId, Links, QueryShare, Settings, look};
pub use event::{Event, Progress};
pub use gate::Gate;
pub use log_positions::LogPositions;
pub use mutant::Broken;
#[cfg(feature = "mutants")]
pub use mutant::Mutant;
pub use out::{Answer, Counters, LargeAnswer, Notice, Out, ToPeer, ToSnapshots};
pub use parts::{LargeReply, Part, Turns};
pub use readiness::Unready;
pub use replica::{Replica, Start, decode_meta, encode_meta};
pub use replies::refusal;
pub use stateless::Stateless;
pub use turn::Turn;
