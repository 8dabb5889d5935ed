//! A node: the shell round the consensus engine, the state machine and the journal.
//!
//! It owns a data directory, one port for peers and gateways, one link per peer, and a task per group. It is **not** a
//! client's business: it speaks the link protocol to gateways and knows nothing of gRPC, users or etcd's texts. What it
//! decides itself is little: when a lease's time is over, when a snapshot is due, which watch is sent history.

mod abort_on_panic;
mod admission;
mod aside;
mod budget;
mod clock;
mod dial;
mod disk_watch;
mod distrust;
mod door;
mod frames;
mod gateway_link;
mod gateways;
mod gauges;
mod group;
mod groups;
mod health;
mod hello;
mod inbox;
mod link;
mod listener;
mod liveness;
mod metrics;
mod newcomer;
mod node;
mod outbox;
mod parts;
mod patience;
mod peer;
mod peer_link;
pub mod rates;
mod reader;
mod recover;
mod redial;
mod refusal;
mod relay;
mod seat;
mod shared;
mod snapshot;
mod snapshot_file;
mod start;
mod status;
mod suspicion;
#[cfg(test)]
mod testing;
mod wire;

pub use admission::Source;
pub use health::Health;
pub use node::Node;
pub use recover::{Held, RecoverError, Survey, declare_survivor, survey};
pub use start::{NodeOptions, StartError};
