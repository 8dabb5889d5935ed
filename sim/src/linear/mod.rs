//! Linearizability: is there one order of all operations that explains every answer and agrees with real time?
//!
//! - [`history`] is the record of a run: calls, returns, watches, as JSON lines on disk.
//! - [`wgl`] decides the question for any sequential specification, by search; [`specs`] holds two of those.
//! - [`revisions`] decides it for etcd, without search in the usual case, since etcd's answers carry the order: the
//!   header revision. It also checks watches, and names what went wrong.
//!
//! No checker runs without a budget, and each has a third answer for "not found out".

pub mod history;
pub mod revisions;
pub mod specs;
pub mod wgl;
