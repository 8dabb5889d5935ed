//! Doors and links over real sockets, with certificates made for the test.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod files;
mod links;
mod server;
mod streams;
mod support;
