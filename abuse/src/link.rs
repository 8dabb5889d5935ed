//! The link protocol by hand: somebody who reaches a node's port and knows how to begin.

use std::net::SocketAddr;

use api::gaios::link::v1 as wire;
use api::gaios::link::{VERSION, WELCOME_BYTES_MAX};
use bytes::{BufMut, BytesMut};
use prost::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::Problem;

/// A link whose node has said welcome.
pub(crate) struct Link(TcpStream);

impl Link {
    pub(crate) async fn open(node: SocketAddr, cluster_id: u64) -> Result<Link, Problem> {
        let doing = |error: std::io::Error| format!("link with {node}: {error}");
        let mut link = Link(TcpStream::connect(node).await.map_err(doing)?);
        let hello =
            wire::Hello { version: VERSION, cluster_id, name: "stranger".to_owned(), ..Default::default() };
        link.send(&hello).await.map_err(doing)?;
        let length = link.0.read_u32().await.map_err(doing)? as usize;
        if length > WELCOME_BYTES_MAX {
            return Err(format!("link with {node}: a welcome of {length} bytes"));
        }
        let mut welcome = vec![0; length];
        link.0.read_exact(&mut welcome).await.map_err(doing)?;
        let welcome = wire::Welcome::decode(&welcome[..]).map_err(|error| error.to_string())?;
        if welcome.refused.is_empty() { Ok(link) } else { Err(welcome.refused) }
    }

    /// Sends one frame.
    pub(crate) async fn send(&mut self, message: &impl Message) -> std::io::Result<()> {
        let mut frame = BytesMut::new();
        frame.put_u32(u32::try_from(message.encoded_len()).expect("we send no frame of 4 GiB"));
        message.encode(&mut frame).expect("the buffer grows");
        self.0.write_all(&frame).await
    }

    /// Announces a frame of `announced` bytes, and sends the first `sent` of them.
    pub(crate) async fn send_half(&mut self, announced: u32, sent: usize) -> std::io::Result<()> {
        self.0.write_u32(announced).await?;
        self.0.write_all(&vec![0; sent]).await
    }
}
