//! An address as an operator writes it.

use std::fmt;
use std::net::SocketAddr;

/// Where something is reached, before anybody has been asked what that means today.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Address {
    /// An IP address and port: nobody is asked.
    Literal(SocketAddr),
    /// A host, with any number of A and AAAA records, and a port.
    Host {
        /// The name.
        name: String,
        /// The port, the same at all its addresses.
        port: u16,
    },
    /// A service, such as `_gaios-replica._tcp.example`: SRV records name hosts and ports.
    Service(String),
}

/// The text is no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoAddress(String);

impl fmt::Display for NoAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is neither a host with a port nor the name of a service", self.0.escape_debug())
    }
}

impl std::error::Error for NoAddress {}

impl Address {
    /// Reads `IP:port`, `name:port` or `_service._tcp.name`.
    ///
    /// # Errors
    /// It is none of them.
    pub fn parse(text: &str) -> Result<Address, NoAddress> {
        if let Ok(literal) = text.parse() {
            return Ok(Address::Literal(literal));
        }
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (text, None),
        };
        let wrong = || NoAddress(text.to_owned());
        if name.is_empty() || name.contains(|c: char| c == ':' || c.is_whitespace() || c.is_control()) {
            return Err(wrong());
        }
        match port {
            Some(port) => {
                let port = port.parse().map_err(|_| wrong())?;
                Ok(Address::Host { name: name.to_owned(), port })
            }
            None if is_service(name) => Ok(Address::Service(name.to_owned())),
            None => Err(wrong()),
        }
    }
}

/// As RFC 2782 writes them: the first two labels begin with an underscore.
fn is_service(name: &str) -> bool {
    let mut labels = name.split('.');
    let underscored =
        |label: Option<&str>| label.is_some_and(|label| label.len() > 1 && label.starts_with('_'));
    underscored(labels.next()) && underscored(labels.next()) && labels.next().is_some()
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Literal(address) => address.fmt(f),
            Address::Host { name, port } => write!(f, "{name}:{port}"),
            Address::Service(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_kinds_are_told_apart() {
        let literal = |text: &str| Address::Literal(text.parse().unwrap());
        let host = |name: &str, port| Address::Host { name: name.to_owned(), port };
        for (text, address) in [
            ("127.0.0.1:1", literal("127.0.0.1:1")),
            ("[::1]:2380", literal("[::1]:2380")),
            ("node-1.example:2380", host("node-1.example", 2380)),
            ("_odd:1", host("_odd", 1)),
            ("_gaios-replica._tcp.x", Address::Service("_gaios-replica._tcp.x".to_owned())),
        ] {
            assert_eq!(Address::parse(text).as_ref(), Ok(&address));
            assert_eq!(address.to_string(), text);
        }
        for text in ["", ":1", "a", "a:", "a:65536", "a b:1", "::1:1x", "_a._tcp", "_._tcp.x", "a._tcp.x"] {
            assert!(Address::parse(text).is_err(), "{text}");
        }
    }
}
