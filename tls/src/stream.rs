//! A connection, plain or TLS, as a door serves it.
//!
//! TLS here keeps a promise that plain sockets give and TLS libraries usually do not: what a write has taken has left to
//! the kernel, and there is nothing to flush. So who writes to a socket in pieces as it takes them needs to know nothing
//! of TLS. The price: a write that would block has been encrypted already, and the next one must begin with the same
//! bytes, as it does for everybody who keeps what was not taken.
//!
//! A session lies over a socket or over another session: by a relay it is one in the other.

use std::future::poll_fn;
use std::io::{self, BufRead as _, ErrorKind, IoSlice, Read, Write};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use rustls::{Connection, HandshakeKind};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::error::{HandshakeError, Why};

/// What one write encrypts at most: four records. It bounds what a connection holds whose other end does not read.
const WRITE_BYTES_MAX: usize = 64 << 10;

/// A connection, plain or TLS.
#[derive(Debug)]
pub struct Stream(Layer);

#[derive(Debug)]
enum Layer {
    Plain(TcpStream),
    Tls(Box<Session>),
}

/// One TLS session.
#[derive(Debug)]
struct Session {
    under: Layer,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    connection: Connection,
    /// Bytes that were encrypted for a write which has not been told so.
    owed: usize,
    /// What they are, to find whoever breaks the rule.
    #[cfg(debug_assertions)]
    owed_bytes: Vec<u8>,
    closing: bool,
}

impl From<TcpStream> for Stream {
    fn from(socket: TcpStream) -> Stream {
        Stream(Layer::Plain(socket))
    }
}

impl Stream {
    /// The socket under it, for its addresses and options.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        self.0.socket()
    }

    /// Whether what goes over it is encrypted.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        matches!(self.0, Layer::Tls(_))
    }

    /// Whether its session goes on from an earlier one, which saved signatures and certificates.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.session(|connection| connection.handshake_kind() == Some(HandshakeKind::Resumed))
    }

    /// What the sides agreed to speak over it.
    #[must_use]
    pub fn protocol(&self) -> Option<Vec<u8>> {
        self.session(|connection| connection.alpn_protocol().map(<[u8]>::to_vec))
    }

    /// The certificate that the other side has shown.
    #[must_use]
    pub fn peer_certificate(&self) -> Option<Vec<u8>> {
        self.session(|connection| Some(connection.peer_certificates()?.first()?.to_vec()))
    }

    fn session<T: Default>(&self, look: impl FnOnce(&Connection) -> T) -> T {
        match &self.0 {
            Layer::Plain(_) => T::default(),
            Layer::Tls(session) => look(&session.state.lock().connection),
        }
    }

    /// Both directions, for two tasks.
    #[must_use]
    pub fn into_split(self) -> (ReadHalf, WriteHalf) {
        match self.0 {
            Layer::Plain(socket) => {
                let (read, write) = socket.into_split();
                (ReadHalf(Reading::Plain(read)), WriteHalf(Writing::Plain(write)))
            }
            Layer::Tls(session) => {
                let session = Arc::<Session>::from(session);
                (ReadHalf(Reading::Tls(Arc::clone(&session))), WriteHalf(Writing::Tls(session)))
            }
        }
    }

    /// Shakes hands over `self` as `connection` says.
    pub(crate) async fn handshake(self, connection: Connection) -> Result<Stream, HandshakeError> {
        let session = Session::new(self.0, connection);
        poll_fn(|cx| session.poll_handshake(cx)).await?;
        Ok(Stream(Layer::Tls(Box::new(session))))
    }
}

impl Layer {
    fn socket(&self) -> &TcpStream {
        match self {
            Layer::Plain(socket) => socket,
            Layer::Tls(session) => session.under.socket(),
        }
    }

    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Layer::Plain(socket) => socket.poll_read_ready(cx),
            Layer::Tls(session) => session.poll_read_ready(cx),
        }
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket().poll_write_ready(cx)
    }

    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Layer::Plain(socket) => socket.try_read(buffer),
            Layer::Tls(session) => session.try_read(buffer),
        }
    }

    fn try_write_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Layer::Plain(socket) => socket.try_write_vectored(pieces),
            Layer::Tls(session) => match pieces.iter().find(|piece| !piece.is_empty()) {
                Some(piece) => session.try_write(piece),
                None => Ok(0),
            },
        }
    }
}

/// A layer as the library reads and writes it: without waiting.
struct Now<'a>(&'a Layer);

impl Read for Now<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl Write for Now<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(pieces)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Session {
    fn new(under: Layer, mut connection: Connection) -> Session {
        // Writes are cut here, and nothing is taken before all before it has left.
        connection.set_buffer_limit(None);
        let state = State {
            connection,
            owed: 0,
            #[cfg(debug_assertions)]
            owed_bytes: Vec::new(),
            closing: false,
        };
        Session { under, state: Mutex::new(state) }
    }

    fn poll_handshake(&self, cx: &mut Context<'_>) -> Poll<Result<(), HandshakeError>> {
        loop {
            let mut state = self.state.lock();
            match state.send(&self.under) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    drop(state);
                    ready!(self.under.poll_write_ready(cx))?;
                    continue;
                }
                sent => sent?,
            }
            if !state.connection.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            ready!(self.under.poll_read_ready(cx))?;
            match state.receive(&self.under) {
                Ok(0) => {
                    let what = "the other side ended the connection";
                    return Poll::Ready(Err(HandshakeError::new(Why::Closed, what)));
                }
                Ok(_) => {}
                Err(Unread::Io(error)) if error.kind() == ErrorKind::WouldBlock => {}
                Err(Unread::Io(error)) => return Poll::Ready(Err(error.into())),
                Err(Unread::Tls(error)) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.state.lock().has_something() {
            return Poll::Ready(Ok(()));
        }
        self.under.poll_read_ready(cx)
    }

    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.state.lock();
        loop {
            match state.take(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                taken => return taken,
            }
            state.receive(&self.under)?;
        }
    }

    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.try_read_once(buffer.initialize_unfilled()) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => {
                    buffer.advance(read?);
                    return Poll::Ready(Ok(()));
                }
            }
            // Asked before each piece of the socket, it also lets other tasks have their turn.
            ready!(self.under.poll_read_ready(cx))?;
            match self.state.lock().receive(&self.under) {
                Err(Unread::Io(error)) if error.kind() == ErrorKind::WouldBlock => {}
                received => {
                    received?;
                }
            }
        }
    }

    fn try_read_once(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.state.lock().take(buffer)
    }

    /// Takes what has left to the socket, no less and no more.
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.state.lock();
        if state.owed == 0 && !bytes.is_empty() {
            let piece = &bytes[..bytes.len().min(WRITE_BYTES_MAX)];
            state.owed = state.connection.writer().write(piece)?;
            #[cfg(debug_assertions)]
            {
                state.owed_bytes.clear();
                let owed = state.owed;
                state.owed_bytes.extend_from_slice(&piece[..owed]);
            }
        }
        state.send(&self.under)?;
        let written = state.owed.min(bytes.len());
        #[cfg(debug_assertions)]
        {
            assert_eq!(
                bytes[..written],
                state.owed_bytes[..written],
                "a write is tried again with other bytes"
            );
            state.owed_bytes.drain(..written);
        }
        state.owed -= written;
        Ok(written)
    }

    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.under.poll_write_ready(cx))?;
            match self.try_write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    /// Sends what the library has of its own.
    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.state.lock().send(&self.under) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
            ready!(self.under.poll_write_ready(cx))?;
        }
    }

    fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.state.lock().say_goodbye();
        ready!(self.poll_flush(cx))?;
        Poll::Ready(end_writing(self.under.socket()))
    }

    /// Ends the direction away from here without waiting.
    fn end(&self) {
        let mut state = self.state.lock();
        state.say_goodbye();
        // The socket may be full or gone, and then the other side hears no goodbye, but still the end.
        let _ = state.send(&self.under);
        let _ = end_writing(self.under.socket());
    }
}

/// Ends the direction away from here. A socket that is not connected any more has ended already.
fn end_writing(socket: &TcpStream) -> io::Result<()> {
    match SockRef::from(socket).shutdown(Shutdown::Write) {
        Err(error) if error.kind() == ErrorKind::NotConnected => Ok(()),
        ended => ended,
    }
}

/// Why nothing was read.
enum Unread {
    Io(io::Error),
    Tls(rustls::Error),
}

impl From<Unread> for io::Error {
    fn from(unread: Unread) -> io::Error {
        match unread {
            Unread::Io(error) => error,
            Unread::Tls(error) => io::Error::new(ErrorKind::InvalidData, error),
        }
    }
}

impl State {
    /// Writes all that is encrypted.
    fn send(&mut self, under: &Layer) -> io::Result<()> {
        while self.connection.wants_write() {
            if self.connection.write_tls(&mut Now(under))? == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }

    /// Reads a piece and decrypts it. 0: there is no more.
    fn receive(&mut self, under: &Layer) -> Result<usize, Unread> {
        let read = self.connection.read_tls(&mut Now(under)).map_err(Unread::Io)?;
        if let Err(error) = self.connection.process_new_packets() {
            // The alert tells the other side why, if it can be told.
            let _ = self.send(under);
            return Err(Unread::Tls(error));
        }
        Ok(read)
    }

    /// Takes what is decrypted.
    fn take(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.connection.reader().read(buffer) {
            // The end without a goodbye. Frames and HTTP tell their own ends, and many clients just leave.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(0),
            taken => taken,
        }
    }

    /// Whether [`State::take`] would give something: bytes, the end, or an error.
    fn has_something(&mut self) -> bool {
        !matches!(self.connection.reader().fill_buf(), Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    fn say_goodbye(&mut self) {
        if !self.closing {
            self.closing = true;
            self.connection.send_close_notify();
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Layer::Plain(socket) => Pin::new(socket).poll_read(cx, buffer),
            Layer::Tls(session) => session.poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().0 {
            Layer::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
            Layer::Tls(session) => session.poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Layer::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Layer::Tls(session) => session.poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Layer::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Layer::Tls(session) => session.poll_shutdown(cx),
        }
    }
}

/// The direction from the other side.
#[derive(Debug)]
pub struct ReadHalf(Reading);

#[derive(Debug)]
enum Reading {
    Plain(OwnedReadHalf),
    Tls(Arc<Session>),
}

impl AsyncRead for ReadHalf {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Reading::Plain(socket) => Pin::new(socket).poll_read(cx, buffer),
            Reading::Tls(session) => session.poll_read(cx, buffer),
        }
    }
}

/// The direction to the other side, which ends when this is dropped.
#[derive(Debug)]
pub struct WriteHalf(Writing);

#[derive(Debug)]
enum Writing {
    Plain(OwnedWriteHalf),
    Tls(Arc<Session>),
}

impl WriteHalf {
    /// Writes what the socket takes now. After [`ErrorKind::WouldBlock`], the next write must begin with the same bytes.
    ///
    /// # Errors
    /// The socket's.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match &self.0 {
            Writing::Plain(socket) => socket.try_write(bytes),
            Writing::Tls(session) => session.try_write(bytes),
        }
    }

    /// Waits until the socket may take more.
    ///
    /// # Errors
    /// The socket's.
    pub async fn writable(&self) -> io::Result<()> {
        match &self.0 {
            Writing::Plain(socket) => socket.writable().await,
            Writing::Tls(session) => session.under.socket().writable().await,
        }
    }
}

impl AsyncWrite for WriteHalf {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().0 {
            Writing::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
            Writing::Tls(session) => session.poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Writing::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Writing::Tls(session) => session.poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Writing::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Writing::Tls(session) => session.poll_shutdown(cx),
        }
    }
}

impl Drop for WriteHalf {
    fn drop(&mut self) {
        if let Writing::Tls(session) = &self.0 {
            session.end();
        }
    }
}
