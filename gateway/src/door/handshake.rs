//! How a client's connection becomes a stream: by a handshake where the port speaks TLS, and then by nothing else.

use tls::{Server, Stream};
use tokio::net::TcpStream;
use tracing::debug;

/// The stream of a connection, unless the handshake came to nothing.
pub(super) async fn open(socket: TcpStream, tls: Option<&Server>) -> Option<Stream> {
    let Some(tls) = tls else { return Some(Stream::from(socket)) };
    let from = socket.peer_addr().ok();
    match tls.accept(socket).await {
        Ok(stream) => Some(stream),
        Err(error) => {
            // Anybody can make these, so they are counted, and told to who looks for them.
            debug!(?from, %error, "no handshake");
            None
        }
    }
}
