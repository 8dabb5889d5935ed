//! Deterministic simulation, and the means to judge a run.
//!
//! - [`model`]: what etcd's state machine does, as a value simple enough to be believed: the specification.
//! - [`linear`]: histories of what clients saw, and the checkers that decide whether the specification allows it.
//! - [`cluster`]: clusters of the real consensus engine over the real journal, with faults, in virtual time.
//!
//! This crate is for tests and tools. Nothing that serves a client depends on it, and it knows no sockets, no clocks and
//! no threads (but for running independent seeds side by side): whoever runs real processes records a history and
//! hands it over.

pub mod cluster;
pub mod linear;
pub mod model;
