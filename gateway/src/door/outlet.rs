//! A client's socket that is written to once per turn of its connection.
//!
//! The HTTP/2 library ends a write with each message whose frame carries 256 bytes or more, and the runtime polls a
//! connection right after each request's task that has something for it, which makes a write of every answer and every
//! event. So what the library writes is gathered here, and leaves when the connection has been polled. Where it pays, it
//! does not leave before what else is ready to run on this thread has run, for that may be other requests of the same
//! connection. There is no timer.

use std::error::Error;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use futures::task::AtomicWaker;
use parking_lot::Mutex;
use prometheus::IntCounter;
use tls::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// When so much is gathered, it is written before more is taken.
const GATHERED_BYTES_MAX: usize = 64 << 10;
/// After so much is read in one turn, others have theirs.
const READ_BYTES_MAX: usize = 64 << 10;
/// As many requests may begin in one turn: each is a task, and whatever others have to do waits behind all of them. The
/// library begins those that it has read the heads of, thousands in 64 KiB; so what is read in a turn is measured by
/// what the turns before began.
const BEGUN_PER_TURN: usize = 32;
/// What is read in a turn at least, and in the first.
const READ_BYTES_LEAST: usize = 512;
const READ_BYTES_FIRST: usize = 4 << 10;
/// More is read in a turn by so much, so that nobody gets far by few requests to begin with, and then many.
const READ_BYTES_STEP: usize = 2 << 10;
/// A larger buffer is given back when it is empty: most connections are idle, and there are many.
const KEPT_BYTES_MAX: usize = 4 << 10;
/// At least one of so many turns lets others run first, to see whether it pays again. Where it does not, as with one
/// request at a time, it may wake another thread for nothing.
const TURNS_PER_TRIAL_MAX: u32 = 16;
/// What a client of HTTP/2 says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The socket as the library sees it.
pub(super) struct Socket(Arc<Mutex<State>>);

/// The socket as the task sees it that polls the library.
pub(super) struct Outlet {
    state: Arc<Mutex<State>>,
    /// What was gathered when others were let run first, if they were in the last turn.
    yielded_at: Option<usize>,
    /// Turns until others are let run first.
    turns_to_trial: u32,
    /// How many these were: one more each time when nothing was added meanwhile.
    turns_per_trial: u32,
    begun: Arc<Begun>,
}

/// The requests of a connection that have begun.
#[derive(Default)]
pub(super) struct Begun {
    in_turn: AtomicUsize,
    /// Those whose tasks have not run yet.
    waiting: AtomicUsize,
    /// The connection's, when it waits for these.
    waker: AtomicWaker,
}

/// A request has begun, and its task has not run yet.
pub(super) struct Beginning(Arc<Begun>);

impl Begun {
    pub(super) fn begin(self: &Arc<Self>) -> Beginning {
        // Relaxed: it is read by the task that calls this.
        self.in_turn.fetch_add(1, Ordering::Relaxed);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Beginning(Arc::clone(self))
    }

    /// Ready unless more must not begin: a connection that begins requests faster than they run fills the queue in which
    /// everybody waits. It is woken when all of its have run once.
    fn poll_more(&self, cx: &Context<'_>) -> Poll<()> {
        if self.waiting.load(Ordering::Acquire) < BEGUN_PER_TURN {
            return Poll::Ready(());
        }
        self.waker.register(cx.waker());
        // The last of them may have run before it could wake anybody.
        if self.waiting.load(Ordering::Acquire) == 0 { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Beginning {
    fn drop(&mut self) {
        if self.0.waiting.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.waker.wake();
        }
    }
}

/// Never contended: both sides belong to one task.
struct State {
    stream: Stream,
    gathered: Vec<u8>,
    /// Bytes of `gathered` that have left.
    written: usize,
    /// How much of [`PREFACE`] was received, while nothing shows yet which protocol the client speaks.
    undecided: Option<usize>,
    /// Bytes that were read in this turn.
    read: usize,
    /// How many may be.
    read_max: usize,
    begun: Arc<Begun>,
    received: IntCounter,
    sent: IntCounter,
}

/// Both sides of a client's socket, whose bytes are counted.
pub(super) fn pair(stream: impl Into<Stream>, received: IntCounter, sent: IntCounter) -> (Socket, Outlet) {
    let undecided = Some(0);
    let begun = Arc::<Begun>::default();
    let state = State {
        stream: stream.into(),
        gathered: Vec::new(),
        written: 0,
        undecided,
        read: 0,
        read_max: READ_BYTES_FIRST,
        begun: Arc::clone(&begun),
        received,
        sent,
    };
    let state = Arc::new(Mutex::new(state));
    let outlet =
        Outlet { state: Arc::clone(&state), yielded_at: None, turns_to_trial: 0, turns_per_trial: 1, begun };
    (Socket(state), outlet)
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
        poll_fn(|cx| match self.poll_turn(connection.as_mut(), cx) {
            Poll::Ready(served) => Poll::Ready(served.map_err(Into::into)),
            Poll::Pending => self.poll_end_of_turn(cx).map(|error| Err(error.into())),
        })
        .await
    }

    /// Serves `connection` until it ends, or until the client has shown which protocol it speaks (`None`): till then the
    /// library has no time limits.
    pub(super) async fn open<C, E>(
        &mut self,
        connection: Pin<&mut C>,
    ) -> Option<Result<(), Box<dyn Error + Send + Sync>>>
    where
        C: Future<Output = Result<(), E>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let state = Arc::clone(&self.state);
        let mut serving = pin!(self.serve(connection));
        poll_fn(|cx| match serving.as_mut().poll(cx) {
            Poll::Ready(served) => Poll::Ready(Some(served)),
            Poll::Pending if state.lock().undecided.is_none() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    /// Writes what is left once the connection is served: the library believes that it has left.
    ///
    /// # Errors
    /// The socket's.
    pub(super) async fn drain(&self) -> io::Result<()> {
        poll_fn(|cx| self.state.lock().poll_write_out(cx)).await
    }

    /// To be told of each request that begins.
    pub(super) fn begun(&self) -> Arc<Begun> {
        Arc::clone(&self.begun)
    }

    fn poll_turn<C: Future>(&mut self, connection: Pin<&mut C>, cx: &mut Context<'_>) -> Poll<C::Output> {
        self.state.lock().read = 0;
        let polled = connection.poll(cx);
        // Relaxed: whoever counts is polled here.
        let begun = self.begun.in_turn.swap(0, Ordering::Relaxed);
        self.state.lock().end_reading(begun);
        polled
    }

    /// Ready with the socket's error.
    fn poll_end_of_turn(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let mut state = self.state.lock();
        let gathered = state.gathered.len();
        if gathered == 0 {
            return Poll::Pending;
        }
        match self.yielded_at.take() {
            Some(before) => {
                let paid = gathered > before;
                self.turns_per_trial =
                    if paid { 1 } else { TURNS_PER_TRIAL_MAX.min(self.turns_per_trial + 1) };
                self.turns_to_trial = self.turns_per_trial - 1;
            }
            None if self.turns_to_trial > 0 => self.turns_to_trial -= 1,
            None => {
                self.yielded_at = Some(gathered);
                // A task that wakes itself goes to the end of the queue.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        match state.poll_write_out(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(error),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        }
    }
}

impl State {
    /// Looks at what was received first.
    fn decide(&mut self, bytes: &[u8]) {
        if let Some(known) = self.undecided {
            let rest = &PREFACE[known..];
            let is_part = bytes.len() < rest.len() && rest.starts_with(bytes);
            self.undecided = is_part.then_some(known + bytes.len());
        }
    }

    /// So many requests began with what was read in this turn.
    fn end_reading(&mut self, begun: usize) {
        if begun > BEGUN_PER_TURN {
            self.read_max = (self.read / begun * BEGUN_PER_TURN).max(READ_BYTES_LEAST).min(self.read_max);
        } else if self.read >= self.read_max && begun < BEGUN_PER_TURN / 2 {
            self.read_max = (self.read_max + READ_BYTES_STEP).min(READ_BYTES_MAX);
        }
    }

    /// Writes all there is.
    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.gathered.len() {
            let rest = &self.gathered[self.written..];
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent.inc_by(written as u64);
            self.written += written;
        }
        self.written = 0;
        if self.gathered.capacity() > KEPT_BYTES_MAX {
            self.gathered = Vec::new();
        } else {
            self.gathered.clear();
        }
        Poll::Ready(Ok(()))
    }

    /// Ready with the number of bytes that may be gathered, which is not 0.
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
        ready!(state.begun.poll_more(cx));
        let room = state.read_max.saturating_sub(state.read).min(buffer.remaining());
        if room == 0 && buffer.remaining() > 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let polled = if room == buffer.remaining() {
            Pin::new(&mut state.stream).poll_read(cx, buffer)
        } else {
            let mut part = ReadBuf::new(buffer.initialize_unfilled_to(room));
            let polled = Pin::new(&mut state.stream).poll_read(cx, &mut part);
            let bytes = part.filled().len();
            buffer.advance(bytes);
            polled
        };
        let bytes = &buffer.filled()[before..];
        state.read += bytes.len();
        state.received.inc_by(bytes.len() as u64);
        state.decide(bytes);
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
    use std::sync::atomic::AtomicBool;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::yield_now;

    use super::*;

    async fn connected() -> (TcpStream, Socket, Outlet) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let counter = || IntCounter::new("bytes", "bytes").unwrap();
        let (socket, outlet) = pair(listener.accept().await.unwrap().0, counter(), counter());
        (client, socket, outlet)
    }

    impl Socket {
        fn gathered(&self) -> usize {
            self.0.lock().gathered.len()
        }

        /// What one turn writes.
        async fn say(&mut self, words: &[u8]) -> io::Result<()> {
            self.write_all(words).await?;
            self.flush().await
        }

        /// Waits for the turn in which all has left.
        async fn silence(&self) {
            while self.gathered() > 0 {
                yield_now().await;
            }
        }
    }

    /// Byte `n` of a long text.
    fn letter(n: usize) -> u8 {
        (n % 251) as u8
    }

    #[tokio::test]
    async fn what_others_add_leaves_in_the_same_piece() {
        let (mut client, mut socket, mut outlet) = connected().await;
        let connection = async {
            socket.say(b"one").await?;
            yield_now().await;
            socket.say(b"two").await?;
            assert_eq!(socket.gathered(), 6, "nothing has left");
            yield_now().await;
            assert_eq!(socket.gathered(), 0, "all has left");
            io::Result::Ok(())
        };
        outlet.serve(std::pin::pin!(connection)).await.unwrap();
        assert_eq!(outlet.turns_per_trial, 1);
        let mut bytes = [0; 10];
        assert_eq!(client.read(&mut bytes).await.unwrap(), 6);
        assert_eq!(&bytes[..6], b"onetwo");
    }

    #[tokio::test]
    async fn where_nobody_adds_anything_most_turns_write_at_once() {
        let (_client, mut socket, mut outlet) = connected().await;
        let mut at_once = 0;
        let connection = async {
            for _ in 0..500 {
                socket.say(b"alone").await?;
                yield_now().await;
                at_once += u32::from(socket.gathered() == 0);
                socket.silence().await;
            }
            io::Result::Ok(())
        };
        outlet.serve(std::pin::pin!(connection)).await.unwrap();
        assert_eq!(outlet.turns_per_trial, TURNS_PER_TRIAL_MAX);
        assert!((450..500).contains(&at_once), "{at_once}");
    }

    #[tokio::test]
    async fn who_sends_much_has_one_turn_after_the_other() {
        let (mut client, mut socket, mut outlet) = connected().await;
        client.write_all(&[7; 300_000]).await.unwrap();
        let (mut read, mut turns) = (0, 0);
        let mut connection = pin!(poll_fn(|cx| {
            turns += 1;
            let mut bytes = [0; 8192];
            loop {
                let mut buffer = ReadBuf::new(&mut bytes);
                ready!(Pin::new(&mut socket).poll_read(cx, &mut buffer))?;
                read += buffer.filled().len();
                if read == 300_000 {
                    return Poll::Ready(io::Result::Ok(()));
                }
            }
        }));
        outlet.serve(connection.as_mut()).await.unwrap();
        assert!(turns >= 300_000 / (READ_BYTES_MAX + 8192), "{turns}");
    }

    #[tokio::test]
    async fn who_begins_many_requests_has_short_turns_until_they_are_few() {
        const HEAD_BYTES: usize = 15;
        let (mut client, mut socket, mut outlet) = connected().await;
        let begun = outlet.begun();
        // As the library does, which reads all it can before the first of them begins.
        let mut turns = Vec::new();
        let mut begins = true;
        let mut bytes = [0; 8192];
        let mut turn = |outlet: &mut Outlet, socket: &mut Socket, begins: bool| {
            let reading = poll_fn(|cx| {
                let mut read = 0;
                loop {
                    let mut buffer = ReadBuf::new(&mut bytes);
                    match Pin::new(&mut *socket).poll_read(cx, &mut buffer) {
                        Poll::Ready(polled) => polled.unwrap(),
                        Poll::Pending => break,
                    }
                    read += buffer.filled().len();
                }
                // Each of them runs at once.
                drop(
                    (0..if begins { read / HEAD_BYTES } else { 0 })
                        .map(|_| begun.begin())
                        .collect::<Vec<_>>(),
                );
                Poll::Ready(read)
            });
            let mut cx = Context::from_waker(std::task::Waker::noop());
            match outlet.poll_turn(pin!(reading), &mut cx) {
                Poll::Ready(read) => read,
                Poll::Pending => unreachable!("it is ready at once"),
            }
        };
        client.write_all(&vec![7; 200_000]).await.unwrap();
        while turns.iter().sum::<usize>() < 200_000 {
            tokio::task::yield_now().await;
            let read = turn(&mut outlet, &mut socket, begins);
            if read > 0 {
                turns.push(read);
            }
            begins = turns.len() < 10;
        }
        assert_eq!(turns[0], READ_BYTES_FIRST);
        assert!(turns[1..10].iter().all(|read| *read / HEAD_BYTES <= BEGUN_PER_TURN + 2), "{turns:?}");
        assert!(turns[11..].windows(2).all(|two| two[1] <= two[0] + READ_BYTES_STEP), "{turns:?}");
        assert!(turns[12..].iter().any(|read| *read > 16 << 10), "{turns:?}");
    }

    #[tokio::test]
    async fn nothing_is_read_while_too_many_requests_have_begun_and_not_run() {
        let (mut client, mut socket, outlet) = connected().await;
        client.write_all(&[7; 100]).await.unwrap();
        let begun = outlet.begun();
        let mut beginning: Vec<_> = (0..BEGUN_PER_TURN).map(|_| begun.begin()).collect();
        let mut bytes = [0; 100];
        let woken = Arc::new(Woken::default());
        let waker = std::task::Waker::from(Arc::clone(&woken));
        let mut read = || {
            let mut buffer = ReadBuf::new(&mut bytes);
            let polled = Pin::new(&mut socket).poll_read(&mut Context::from_waker(&waker), &mut buffer);
            polled.map(|polled| polled.map(|()| buffer.filled().len()).unwrap())
        };
        assert!(read().is_pending());
        let last = beginning.pop();
        drop(beginning);
        assert!(!woken.0.load(Ordering::Relaxed), "one has not run");
        drop(last);
        assert!(woken.0.load(Ordering::Relaxed));
        while read() != Poll::Ready(100) {
            tokio::task::yield_now().await;
        }
    }

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn only_small_buffers_are_kept() {
        let (mut client, mut socket, mut outlet) = connected().await;
        let connection = async {
            for words in [&[1; 100][..], &[2; 20_000]] {
                socket.say(words).await?;
                socket.silence().await;
                let kept = socket.0.lock().gathered.capacity();
                assert_eq!(kept > 0, words.len() == 100, "{kept} after {}", words.len());
            }
            io::Result::Ok(())
        };
        outlet.serve(std::pin::pin!(connection)).await.unwrap();
        client.read_exact(&mut [0; 20_100]).await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_stops_its_connection_and_loses_nothing() {
        const BYTES: usize = 32 << 20;
        for in_order in [true, false] {
            let (mut client, mut socket, mut outlet) = connected().await;
            let connection = async move {
                let mut written = 0;
                while written < BYTES {
                    let piece: Vec<u8> = (written..written + 8192).map(letter).collect();
                    socket.say(&piece).await?;
                    written += piece.len();
                    assert!(socket.gathered() <= GATHERED_BYTES_MAX);
                }
                if in_order { socket.shutdown().await } else { Err(io::Error::other("no farewell")) }
            };
            let mut connection = Box::pin(connection);
            for _ in 0..10_000 {
                tokio::select! {
                    biased;
                    _ = outlet.serve(connection.as_mut()) => panic!("32 MiB are taken by nobody"),
                    () = yield_now() => {}
                }
            }
            let serve = async {
                assert_eq!(outlet.serve(connection.as_mut()).await.is_ok(), in_order);
                outlet.drain().await.unwrap();
                drop((connection, outlet));
            };
            let mut received = Vec::with_capacity(BYTES);
            let ((), read) = tokio::join!(serve, client.read_to_end(&mut received));
            assert_eq!(read.unwrap(), BYTES);
            assert!(received.iter().enumerate().all(|(n, byte)| *byte == letter(n)));
        }
    }
}
