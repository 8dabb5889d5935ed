//! Who is next where many share something: start-time fair queueing, weighted by cost.
//!
//! [`Turns`] is that alone: whoever has had least is next. [`FairQueue`] is a queue of such turns: three [`Priority`]s, of which the
//! more urgent go first as long as they leave the others their share; in each, the connections of clients, each with a queue
//! of its own; all connections of one user together have what one connection of another user has.
//!
//! All operations take a time that grows with the logarithm of what waits.

mod queue;
mod turns;

pub use queue::{FairQueue, Flow, Full, Limits, Priority, Source, Ticket};
pub use turns::Turns;
