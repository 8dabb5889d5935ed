//! TLS on every door of Gaios: the one place that knows certificates, keys and rustls.
//!
//! [`Server`] is the door for clients, [`Mutual`] both ends of links. Both follow their files: what changes there is taken
//! over for new handshakes if it loads whole, and refused in one sentence otherwise. A [`Stream`] is what a door serves,
//! whether it speaks TLS or not. [`make`] makes certificates, for people without a PKI and for tests.
//!
//! It is **not** a policy of who may do what: it says who is at the other end ([`Identity`]), and the doors decide. Neither
//! does it count for a metrics registry or listen for signals: numbers are plain values, and reloading is a function.

mod certificate;
mod client;
mod error;
mod files;
mod follow;
mod identity;
pub mod make;
mod mutual;
mod server;
mod stream;
mod tickets;

pub use certificate::{Certificate, NoIdentity};
pub use client::{Client, ClientOptions};
pub use error::{HandshakeError, Why};
pub use files::{FileKind, Flaw, Flaws};
pub use follow::Status;
pub use identity::{Identity, IdentityError, Role};
pub use mutual::{Holder, LinkFiles, Mutual};
pub use server::{ClientAuth, MinVersion, Server, ServerFiles, ServerOptions};
pub use stream::{ReadHalf, Stream, WriteHalf};
pub use tickets::{KeyRing, KeyRingError};
