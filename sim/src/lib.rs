//! Deterministic simulation, and the means to judge a run.
//!
//! - [`model`]: what etcd's state machine does, as a value simple enough to be believed: the specification.
//! - [`linear`]: histories of what clients saw, and the checkers that decide whether the specification allows it.
//!
//! This crate is for tests and tools. Nothing that serves a client depends on it, and it knows no sockets, no clocks and
//! no threads: whoever runs real processes records a history and hands it over.

pub mod linear;
pub mod model;
