//! Processes, their ports, and how one asks them.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command};
use std::time::Duration;

use crate::run::Failure;

/// A process that ends with this.
pub(super) struct Ended(Child);

impl Ended {
    pub(super) fn start(mut command: Command, name: &str) -> Result<Ended, Failure> {
        command.spawn().map(Ended).map_err(|error| Failure::new(format!("start {name}: {error}")))
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An address that was free a moment ago, on an IP address of this process's own: no other program draws its ports there,
/// and no connection begins there.
pub(super) fn free_address() -> Result<SocketAddr, Failure> {
    let ip = Ipv4Addr::from_bits(0x7fc0_0000 | (std::process::id() & 0x3f_ffff));
    let listener = TcpListener::bind((ip, 0)).and_then(|listener| listener.local_addr());
    listener.map_err(|error| Failure::new(format!("a port of {ip}: {error}")))
}

/// One request of HTTP/1.0, whose answer ends with the connection.
pub(super) fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split_whitespace().nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}
