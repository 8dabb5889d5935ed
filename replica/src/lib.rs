//! A node: the shell round the consensus engine, the state machine and the journal.
//!
//! It owns a data directory, one port for peers and gateways, one link per peer, and a task per group. It is **not** a
//! client's business: it speaks the link protocol to gateways and knows nothing of gRPC, users or etcd's texts. What it
//! decides itself is little: when a lease's time is over, when a snapshot is due, which watch is sent history.

mod abort_on_panic;
mod admission;
mod aside;
mod clock;
mod disk_watch;
mod distrust;
mod door;
mod gateways;
mod gauges;
mod group;
mod hello;
mod inbox;
mod link;
mod metrics;
mod newcomer;
mod node;
mod outbox;
mod patience;
mod peer;
pub mod rates;
mod recover;
mod refusal;
mod relay;
mod snapshot;
mod status;
mod suspicion;
#[cfg(test)]
mod testing;
mod wire;

pub use node::{Health, Node, NodeOptions, StartError};
pub use recover::{Held, RecoverError, Survey, declare_survivor, survey};
