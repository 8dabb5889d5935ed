//! The hostile suite: clients that attack a running server through real sockets, while a small well-behaved client on a
//! connection of its own measures whether it is hurt. The server is Gaios, three nodes and a gateway, or an etcd of three
//! members that stands beside it as a yardstick.
//!
//! - [`CASES`]: the attacks, with what each holds the server to;
//! - `probe`: the small client; `meter`: what the servers' processes use meanwhile;
//! - `stage`: what an attacker has: a server, a cluster filled for it, and when its attack begins;
//! - `raw`, `link`: clients without manners, for HTTP/2 and for the links of nodes;
//! - `run`, `report`, `page`: the order of a case, what came of it, and the page that tells it.
//!
//! Everything runs on one machine. The attackers' threads have a low priority, as if they were somewhere else: what is
//! judged is the server, and not who gets the processor. It knows nothing of how Gaios works, but for the first frames of
//! the link protocol.

mod cases;
mod link;
mod meter;
mod page;
mod probe;
mod raw;
mod report;
mod run;
mod stage;

pub use cases::{CASES, Case, Demand};
pub use page::page;
pub use report::{Latencies, Process, Report};
pub use run::{Suite, System};

/// Why a case could not be carried out, or what an attacker saw that must not be.
pub type Problem = String;
