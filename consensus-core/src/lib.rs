//! The consensus engine of one group, as a pure state machine: Multi-Paxos with votes per slot, a stable leader,
//! leader leases, read-index reads, log compaction and protocol-aware recovery from damaged disks.
//!
//! It is **not** a server: it knows no clock, socket, disk, thread or random source, nor what a command means.
//! Inputs go in through [`Engine::step`] with the time they were taken up at; effects come out of [`Engine::poll`]
//! as values. Every message in [`Output::sends`] names the [`PersistSeq`] that has to be durable before it may leave.
//!
//! One [`Engine`] per group and node; one [`Liveness`] per node, which says of all groups at once which peers live,
//! which nodes this one supports, and which support it. An idle group sends nothing and has no timer. A node whose data
//! directory is new is a [`Newcomer`] first.

mod api;
mod codec;
mod config;
mod engine;
mod label;
mod liveness;
pub mod message;
mod mutant;
mod newcomer;
mod options;
mod record;
mod types;

pub use api::{
    Event, FollowerStatus, Input, Output, ReadMode, ReadOutcome, Rejection, Role, Send, Status, Suspicion,
};
pub use codec::DecodeError;
pub use config::{Config, ConfigError, NodeSet};
pub use engine::Engine;
pub use label::{RecordKind, RecordLabel};
pub use liveness::{Liveness, LivenessEvent, LivenessOutput};
pub use message::{LivenessMessage, Message};
#[cfg(feature = "mutants")]
pub use mutant::Mutant;
pub use newcomer::{Newcomer, NodeStatus, Place};
pub use options::{Options, Timing};
pub use record::{Durable, Holdings, Record};
pub use types::{Ballot, Epoch, GroupId, Kind, Mono, NodeId, PersistSeq, Slot, Tag, Value, Vote, VoteBallot};
