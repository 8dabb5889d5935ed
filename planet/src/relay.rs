//! A TCP relay which makes a way longer.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

/// Read at a time.
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks that are on their way in one direction of a connection at most: 64 MiB of full ones.
const CHUNKS_MAX: usize = 1024;

/// A port of loopback whose connections lead to another address, far away. They end when this is dropped.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    running: JoinHandle<()>,
}

impl Relay {
    /// A relay to `target`, a round trip away. Must be called within a runtime.
    ///
    /// # Errors
    /// No port can be opened.
    pub async fn start(target: SocketAddr, round_trip: Duration) -> io::Result<Relay> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let running = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => match accepted {
                        Ok((near, _)) => drop(connections.spawn(carry(near, target, round_trip))),
                        // Out of descriptors, most likely.
                        Err(_) => sleep(Duration::from_millis(100)).await,
                    },
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(Relay { address, running })
    }

    /// Where the way begins.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.running.abort();
    }
}

async fn carry(near: TcpStream, target: SocketAddr, round_trip: Duration) {
    // For TCP's own handshake, which was over at once on the near side.
    sleep(round_trip).await;
    let Ok(far) = TcpStream::connect(target).await else { return };
    if near.set_nodelay(true).is_err() || far.set_nodelay(true).is_err() {
        return;
    }
    let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
    let one_way = round_trip / 2;
    tokio::join!(delay(near_read, far_write, one_way), delay(far_read, near_write, one_way));
}

/// One direction. Ends with its source, as late as what came from it.
async fn delay(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, by: Duration) {
    let (sender, mut under_way) = mpsc::channel::<(Instant, Bytes)>(CHUNKS_MAX);
    let reading = async move {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(CHUNK_BYTES);
            match from.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) if sender.send((Instant::now() + by, buffer.split().freeze())).await.is_err() => return,
                Ok(_) => {}
            }
        }
    };
    let writing = async {
        while let Some((due, chunk)) = under_way.recv().await {
            sleep_until(due).await;
            if to.write_all(&chunk).await.is_err() {
                // Nobody reads any more: what comes is not taken either.
                under_way.close();
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(reading, writing);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In the time of the test, which goes on by itself where everybody waits.
    #[tokio::test(start_paused = true)]
    async fn what_goes_through_takes_its_time_and_keeps_its_order() {
        let by = Duration::from_millis(70);
        let (mut near, from) = tokio::io::duplex(1 << 20);
        let (to, mut far) = tokio::io::duplex(1 << 20);
        let carrying = tokio::spawn(delay(from, to, by));
        let begun = Instant::now();
        for number in 0..10_u8 {
            near.write_u8(number).await.unwrap();
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(begun.elapsed(), Duration::from_millis(100));
        drop(near);
        let ended = Instant::now();
        let mut came = Vec::new();
        far.read_to_end(&mut came).await.unwrap();
        assert_eq!(came, (0..10).collect::<Vec<u8>>());
        // The last byte left 10 ms before the end, and arrived 70 ms later.
        assert_eq!(ended.elapsed(), by - Duration::from_millis(10));
        carrying.await.unwrap();
    }

    #[tokio::test]
    async fn a_relay_leads_to_its_target_and_ends_with_either_side() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let round_trip = Duration::from_millis(20);
        let relay = Relay::start(listener.local_addr().unwrap(), round_trip).await.unwrap();
        let begun = Instant::now();
        let mut client = TcpStream::connect(relay.address()).await.unwrap();
        client.write_all(b"ping").await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let mut asked = [0; 4];
        server.read_exact(&mut asked).await.unwrap();
        server.write_all(b"pong").await.unwrap();
        let mut answered = [0; 4];
        client.read_exact(&mut answered).await.unwrap();
        assert_eq!((&asked, &answered), (b"ping", b"pong"));
        assert!(begun.elapsed() >= round_trip * 2, "the handshake, and the question");
        drop(server);
        assert_eq!(client.read(&mut answered).await.unwrap(), 0);
    }
}
