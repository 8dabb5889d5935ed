//! TLS on every door of Gaios: the one place that knows certificates, keys and rustls.
//!
//! It is **not** a policy of who may do what: it says who is at the other end ([`Identity`]), and the doors decide.

mod identity;

pub use identity::{Identity, IdentityError, Role};
