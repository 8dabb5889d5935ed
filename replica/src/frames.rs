//! Frames before a link has begun, on any connection of the node's protocols, and how a peer is reached.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use discovery::Discovery;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// For connecting and for the first frame of the other side.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);

pub(crate) async fn connect(discovery: &Discovery, address: &str) -> io::Result<TcpStream> {
    let stream = timeout(HANDSHAKE_TIMEOUT, discovery.connect(address)).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

pub(crate) async fn write_frame(stream: &mut (impl AsyncWrite + Unpin), body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    let mut frame = Vec::with_capacity(body.len() + 4);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(body);
    stream.write_all(&frame).await
}

/// Reads one frame and not a byte more, for handshakes.
pub(crate) async fn read_frame(stream: &mut (impl AsyncRead + Unpin), max: usize) -> io::Result<Bytes> {
    use tokio::io::AsyncReadExt;
    let length = stream.read_u32().await? as usize;
    if length > max {
        // The beginning of a TLS record: a handshake, or an alert.
        let what = if matches!(length >> 16, 0x1603 | 0x1503) {
            "it speaks TLS, and this node has no `link_tls`".to_owned()
        } else {
            format!("a first frame of {length} bytes: not our protocol")
        };
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(body.into())
}
