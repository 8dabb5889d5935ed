//! A client's socket that is written to once per turn of its connection.
//!
//! The HTTP/2 library makes a system call, and with it a packet, of every frame of 256 bytes or more; and the runtime
//! polls a connection right after each request's task that has something for it, which makes a write of every answer and
//! every event. So what the library writes is gathered here. It leaves when the connection has been polled and whatever
//! else was ready to run has run, for that may be other requests of the same connection. There is no timer.

use std::error::Error;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use parking_lot::Mutex;
use prometheus::IntCounter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// When so much is gathered, it is written before more is taken.
const GATHERED_BYTES_MAX: usize = 64 << 10;
/// A larger buffer is given back when it is empty: most connections are idle, and there are many.
const KEPT_BYTES_MAX: usize = 4 << 10;

/// The socket as the library sees it.
pub(super) struct Socket(Arc<Mutex<State>>);

/// The socket as the task sees it that polls the library.
pub(super) struct Outlet {
    state: Arc<Mutex<State>>,
    /// Others had their chance to add to what is gathered.
    yielded: bool,
}

/// Never contended: both sides belong to one task.
struct State {
    stream: TcpStream,
    gathered: BytesMut,
    received: IntCounter,
    sent: IntCounter,
}

/// Both sides of a client's socket, whose bytes are counted.
pub(super) fn pair(stream: TcpStream, received: IntCounter, sent: IntCounter) -> (Socket, Outlet) {
    let state = Arc::new(Mutex::new(State { stream, gathered: BytesMut::new(), received, sent }));
    (Socket(Arc::clone(&state)), Outlet { state, yielded: false })
}

impl Outlet {
    /// Serves `connection`, which was given the other side, until it ends. May be dropped and called again meanwhile.
    ///
    /// # Errors
    /// The connection's own, or the socket's.
    pub(super) async fn serve<C, E>(
        &mut self,
        mut connection: Pin<&mut C>,
    ) -> Result<(), Box<dyn Error + Send + Sync>>
    where
        C: Future<Output = Result<(), E>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        poll_fn(|cx| match connection.as_mut().poll(cx) {
            Poll::Ready(served) => {
                // Where the library ends without a shutdown, as after a request that is none, its last words are still
                // here. It would not have waited for a socket that does not take them.
                let _ = self.state.lock().poll_write_out(cx);
                Poll::Ready(served.map_err(Into::into))
            }
            Poll::Pending => self.poll_end_of_turn(cx).map(|error| Err(error.into())),
        })
        .await
    }

    /// Ready with the socket's error.
    fn poll_end_of_turn(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let mut state = self.state.lock();
        if state.gathered.is_empty() {
            return Poll::Pending;
        }
        self.yielded = !self.yielded;
        if self.yielded {
            // A task that wakes itself goes to the end of the queue.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        match state.poll_write_out(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(error),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        }
    }
}

impl State {
    /// Writes all there is.
    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.gathered.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.gathered))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent.inc_by(written as u64);
            self.gathered.advance(written);
        }
        if self.gathered.capacity() > KEPT_BYTES_MAX {
            self.gathered = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when at least one more byte may be gathered; with the number of those that may.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.gathered.len() >= GATHERED_BYTES_MAX {
            ready!(self.poll_write_out(cx))?;
        }
        Poll::Ready(Ok(GATHERED_BYTES_MAX - self.gathered.len()))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.0.lock();
        let before = buffer.filled().len();
        let polled = Pin::new(&mut state.stream).poll_read(cx, buffer);
        state.received.inc_by((buffer.filled().len() - before) as u64);
        polled
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.0.lock();
        let room = ready!(state.poll_room(cx))?;
        let offered = pieces.iter().map(|piece| piece.len()).sum::<usize>();
        state.gathered.reserve(offered.min(room));
        let mut taken = 0;
        for piece in pieces {
            let part = &piece[..piece.len().min(room - taken)];
            state.gathered.extend_from_slice(part);
            taken += part.len();
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Nothing to do: what is gathered leaves at the end of the turn.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.lock();
        ready!(state.poll_write_out(cx))?;
        Pin::new(&mut state.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind::WouldBlock;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::task::yield_now;

    use super::*;

    async fn connected() -> (TcpStream, Socket, Outlet) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let counter = || IntCounter::new("bytes", "bytes").unwrap();
        let (socket, outlet) = pair(listener.accept().await.unwrap().0, counter(), counter());
        (client, socket, outlet)
    }

    #[tokio::test]
    async fn what_is_written_leaves_when_others_have_run() {
        let (mut client, mut socket, mut outlet) = connected().await;
        let connection = async {
            socket.write_all(b"one").await?;
            socket.flush().await?;
            assert_eq!(outlet_len(&socket), 3);
            yield_now().await;
            // This turn is one in which something was added, as by another request.
            socket.write_all(b"two").await?;
            socket.flush().await?;
            assert_eq!(outlet_len(&socket), 6, "nothing has left");
            yield_now().await;
            assert_eq!(outlet_len(&socket), 0, "all has left");
            io::Result::Ok(())
        };
        outlet.serve(std::pin::pin!(connection)).await.unwrap();
        let mut bytes = [0; 6];
        assert_eq!(client.read(&mut bytes).await.unwrap(), 6, "in one piece");
        assert_eq!(&bytes, b"onetwo");
    }

    fn outlet_len(socket: &Socket) -> usize {
        socket.0.lock().gathered.len()
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_stops_its_connection_and_loses_nothing() {
        const BYTES: usize = 32 << 20;
        let (client, mut socket, mut outlet) = connected().await;
        let mut written = 0;
        let connection = async {
            while written < BYTES {
                let piece: Vec<u8> = (written..written + 10_007).map(|n| (n % 251) as u8).collect();
                socket.write_all(&piece).await?;
                written += piece.len();
                assert!(outlet_len(&socket) <= GATHERED_BYTES_MAX);
            }
            socket.shutdown().await
        };
        let mut connection = std::pin::pin!(connection);
        let mut received = Vec::new();
        let read = async {
            // The kernel's buffers are full, and so is ours, when the other side makes no progress any more.
            loop {
                client.readable().await.unwrap();
                let mut chunk = vec![0; 1 << 20];
                match client.try_read(&mut chunk) {
                    Ok(0) => break,
                    Ok(read) => received.extend_from_slice(&chunk[..read]),
                    Err(error) => assert_eq!(error.kind(), WouldBlock),
                }
            }
        };
        // Alone the connection does not come to its end.
        for _ in 0..10_000 {
            tokio::select! {
                biased;
                _ = outlet.serve(connection.as_mut()) => panic!("32 MiB are taken by nobody"),
                () = yield_now() => {}
            }
        }
        let (served, ()) = tokio::join!(outlet.serve(connection.as_mut()), read);
        served.unwrap();
        assert!(received.len() >= BYTES);
        assert!(received.iter().enumerate().all(|(n, byte)| *byte == (n % 251) as u8));
    }

    #[tokio::test]
    async fn the_end_takes_the_rest_along() {
        for in_order in [true, false] {
            let (mut client, mut socket, mut outlet) = connected().await;
            let connection = async move {
                socket.write_all(b"farewell").await?;
                if in_order { socket.shutdown().await } else { Err(io::Error::other("no request")) }
            };
            assert_eq!(outlet.serve(Box::pin(connection).as_mut()).await.is_ok(), in_order);
            drop(outlet);
            let mut bytes = Vec::new();
            client.read_to_end(&mut bytes).await.unwrap();
            assert_eq!(bytes, b"farewell");
        }
    }
}
