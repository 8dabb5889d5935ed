//! A link: one persistent TCP connection to a node, kept up for as long as the gateway lives.
//!
//! Requests of all clients share it. [`Link::call`] adds a request to the open batch and gives a future of its answer;
//! a pair of tasks moves frames. Losing the connection loses every answer that was awaited on it: whoever waited
//! decides what that means ([`gateway_core::Request`]).

mod dial;
mod refusals;
mod ways;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use api::gaios::link::NODE_FRAME_BYTES_MAX;
use api::gaios::link::v1::{self as wire, request, response};
use arc_swap::ArcSwapOption;
use bytes::{BufMut, Bytes, BytesMut};
use gateway_core::link::{Ask, Heard, LinkEnd, LinkId, Lost, sort};
use gateway_core::nearest::Place;
use gateway_core::silence::{Check, patience};
use gateway_core::{Attempted, NodeId, Numbered, Quiet, Unsent};
use parking_lot::Mutex;
use prost::Message as _;
use tls::{Mutual, WriteHalf};
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::StreamExt as _;
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};
use tokio_util::io::InspectReader;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::carrier::LinkMetrics;

use dial::Reached;

pub(crate) use refusals::Refusals;
pub(crate) use ways::{SharedWays, Target};

/// What the gateway does, as of late; none before that is known.
pub(crate) type Figures = Arc<ArcSwapOption<wire::GatewayFigures>>;

/// Room for reads from the socket.
const READ_BYTES: usize = 64 << 10;
/// A write buffer that grew beyond this is given back.
const WRITE_BYTES_KEPT: usize = 1 << 20;
/// How often the health of a connection is looked at.
const HEALTH_TICK: Duration = Duration::from_millis(250);

/// What a link tells its owner.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// The connection is up.
    Up { id: LinkId, link: Arc<Link>, node: NodeId, cluster: u64, shard_map: Bytes, place: Place },
    /// A ping was answered after so long.
    RoundTrip { node: NodeId, sample: Duration },
    /// The connection is gone.
    Down { id: LinkId },
    /// The node sent a newer shard map.
    ShardMap(Bytes),
}

/// The gateway's end of a link.
#[derive(Debug)]
pub(crate) struct Link {
    target: Arc<Target>,
    metrics: LinkMetrics,
    figures: Figures,
    /// The node at the other end while the connection is up, else 0. A copy of what `State::end` says, to be read without
    /// the lock.
    up: AtomicU32,
    state: Mutex<State>,
    /// Something waits for the writer.
    filled: Notify,
    /// When the node was last heard, in milliseconds since `born`.
    heard_ms: AtomicU64,
    /// Of the last ping, in microseconds.
    round_trip_us: AtomicU64,
    born: Instant,
}

/// Callers wait for one response, readers of watches for many.
type End = LinkEnd<oneshot::Sender<wire::Response>, mpsc::UnboundedSender<wire::Response>>;

#[derive(Debug)]
struct State {
    end: End,
    /// When the oldest frame that waits was begun.
    open_since: Option<Instant>,
}

/// Who the gateway is, for `Hello`, and how it is stopped.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) metrics: LinkMetrics,
    pub(crate) name: String,
    pub(crate) place: Place,
    /// What clients are told of it, by other gateways, too.
    pub(crate) client_urls: Vec<String>,
    pub(crate) capacity: u32,
    /// 0 while it is not known.
    pub(crate) cluster: Arc<AtomicU64>,
    /// How many connections ever came up: the next one's id.
    pub(crate) connections: Arc<AtomicU64>,
    pub(crate) stop: CancellationToken,
    pub(crate) ways: Arc<SharedWays>,
    /// The certificates of links; without them, links are plain.
    pub(crate) tls: Option<Arc<Mutual>>,
    pub(crate) refusals: Arc<Refusals>,
    /// What the gateway does, for nodes to tell.
    pub(crate) figures: Figures,
}

impl Link {
    /// A link to `target` that connects, and connects again, until stopped; or, once nobody wants the target, until it is lost
    /// or not needed. Must be called within a runtime.
    pub(crate) fn start(
        target: Arc<Target>,
        identity: Identity,
        events: mpsc::UnboundedSender<LinkEvent>,
    ) -> Arc<Link> {
        let link = Arc::new(Link::new(target, identity.metrics.clone(), identity.figures.clone()));
        let kept = Arc::clone(&link);
        tokio::spawn(async move { dial::keep(&kept, &identity, &events).await });
        link
    }

    fn new(target: Arc<Target>, metrics: LinkMetrics, figures: Figures) -> Link {
        Link {
            target,
            metrics,
            figures,
            up: AtomicU32::new(0),
            state: Mutex::new(State { end: LinkEnd::default(), open_since: None }),
            filled: Notify::new(),
            heard_ms: AtomicU64::new(0),
            round_trip_us: AtomicU64::new(0),
            born: Instant::now(),
        }
    }

    pub(crate) fn address(&self) -> &str {
        self.target.address()
    }

    /// The node at the other end, while the connection is up. May be late by a moment; [`Link::call`] is not.
    pub(crate) fn node(&self) -> Option<NodeId> {
        Some(self.up.load(Ordering::Relaxed)).filter(|node| *node != 0)
    }

    /// Requests without an answer.
    pub(crate) fn owed(&self) -> usize {
        self.state.lock().end.owed()
    }

    /// How quiet the node is.
    pub(crate) fn quiet(&self) -> Quiet {
        Quiet { owes: self.owed() > 0, silent_for: self.silent_for(), round_trip: self.round_trip() }
    }

    /// How long nothing was heard.
    fn silent_for(&self) -> Duration {
        let heard = Duration::from_millis(self.heard_ms.load(Ordering::Relaxed));
        self.born.elapsed().saturating_sub(heard)
    }

    /// Returns when nothing was heard for so long that the node may be gone, far as it may be: whoever can ask another one
    /// should.
    pub(crate) async fn until_silent(&self) {
        let asked = Instant::now();
        loop {
            let patience = patience(self.round_trip());
            let silent = self.silent_for().min(asked.elapsed());
            if silent >= patience {
                return;
            }
            tokio::time::sleep(patience - silent).await;
        }
    }

    /// As the last ping found it.
    fn round_trip(&self) -> Duration {
        Duration::from_micros(self.round_trip_us.load(Ordering::Relaxed))
    }

    /// Sends a request whose variable part has `bytes` bytes.
    pub(crate) fn call(
        self: &Arc<Self>,
        group: u64,
        kind: request::Kind,
        bytes: usize,
    ) -> Result<Call, Unsent> {
        let (answer, receiver) = oneshot::channel();
        let id = self.submit(|end| end.call(group, kind, bytes, answer))?;
        Ok(Call { link: Arc::clone(self), id, receiver, done: false })
    }

    /// Opens a watch; its frames come in order.
    pub(crate) fn open_feed(self: &Arc<Self>, group: u64, ask: &mut impl Ask) -> Result<FeedCall, Unsent> {
        let (items, receiver) = mpsc::unbounded_channel();
        let (open, bytes) = ask.request(None);
        let id = self.submit(|end| end.watch(group, open, bytes, items))?;
        Ok(FeedCall { link: Arc::clone(self), group, id, receiver })
    }

    /// Takes back all calls to a group: its leader is elsewhere, and their outcome must be asked for there.
    pub(crate) fn abandon(&self, group: u64) {
        let gone = self.state.lock().end.abandon(group);
        drop(gone);
    }

    fn submit(&self, add: impl FnOnce(&mut End) -> Result<u64, Unsent>) -> Result<u64, Unsent> {
        let mut state = self.state.lock();
        let was_idle = state.end.is_idle();
        let id = add(&mut state.end)?;
        if was_idle {
            state.open_since = Some(Instant::now());
        }
        drop(state);
        if was_idle {
            self.filled.notify_one();
        }
        Ok(id)
    }

    /// Sends a message about a live watch. Lost if the connection is: then the watch is, too.
    fn tell(&self, group: u64, id: u64, kind: request::Kind) {
        if self.state.lock().end.tell(group, id, kind) {
            self.filled.notify_one();
        }
    }

    /// Moves frames until the connection breaks, or is to be left. Why it ended.
    async fn serve(
        self: &Arc<Self>,
        reached: Reached,
        mut left: oneshot::Receiver<&'static str>,
        identity: &Identity,
        events: &mpsc::UnboundedSender<LinkEvent>,
    ) -> io::Error {
        let way = reached.way();
        let Reached { stream, welcome, by } = reached;
        let node = welcome.node_id;
        let address = self.address();
        if !identity.ways.handle_up(&self.target, node, way) {
            debug!(address, node, "the node is reached by another address");
            return io::ErrorKind::AlreadyExists.into();
        }
        match &by {
            Some(by) => {
                warn!(address, node, by, "linked by a detour: the node cannot be reached straight")
            }
            None => info!(address, node, "linked"),
        }
        identity.refusals.settled(address);
        self.heard();
        self.state.lock().end.handle_up(node);
        self.up.store(node, Ordering::Relaxed);
        let id = LinkId(identity.connections.fetch_add(1, Ordering::Relaxed));
        let _ = events.send(LinkEvent::Up {
            id,
            link: Arc::clone(self),
            node,
            cluster: welcome.cluster_id,
            shard_map: welcome.shard_map,
            place: Place { region: welcome.region, zone: welcome.zone },
        });
        let (read, write) = stream.into_split();
        let mut moving = JoinSet::new();
        moving.spawn(Arc::clone(self).read_frames(read, events.clone()));
        moving.spawn(Arc::clone(self).write_frames(write));
        let error = tokio::select! {
            Some(joined) = moving.join_next() => joined.unwrap_or_else(io::Error::other),
            error = self.watch_health() => error,
            Ok(reason) = &mut left => io::Error::other(reason),
            () = identity.stop.cancelled() => io::ErrorKind::Interrupted.into(),
        };
        // Until they have ended they might take what is meant for the next connection.
        moving.shutdown().await;
        identity.ways.handle_down(&self.target, node, way);
        self.up.store(0, Ordering::Relaxed);
        self.metrics.losses.inc();
        let lost = self.state.lock().end.handle_down();
        info!(address, node, %error, lost = lost.len(), "link lost");
        // The owner hears of the loss before those who waited, so that they do not try the same link again.
        let _ = events.send(LinkEvent::Down { id });
        drop(lost);
        error
    }

    /// The oldest frame that waits.
    fn take_frame(&self) -> Option<wire::GatewayFrame> {
        let mut state = self.state.lock();
        let frame = state.end.take_frame()?;
        let since = state.open_since.take();
        if !state.end.is_idle() {
            state.open_since = Some(Instant::now());
        }
        drop(state);
        if let Some(since) = since {
            self.metrics.frame_wait.observe_time(since.elapsed());
        }
        let requests = frame.groups.iter().map(|batch| batch.requests.len()).sum::<usize>();
        self.metrics.frame_requests.observe(requests as u64);
        Some(frame)
    }

    async fn write_frames(self: Arc<Self>, mut socket: WriteHalf) -> io::Error {
        let mut buffer = BytesMut::with_capacity(READ_BYTES);
        loop {
            let Some(frame) = self.take_frame() else {
                self.filled.notified().await;
                // Whoever is ready to add a request does so now. Not worth it where a single caller waits.
                if self.owed() > 1 {
                    tokio::task::yield_now().await;
                }
                continue;
            };
            encode_frame(&frame, &mut buffer);
            self.metrics.sent_bytes.inc_by(buffer.len() as u64);
            if let Err(error) = socket.write_all(&buffer).await {
                return error;
            }
            buffer.clear();
            if buffer.capacity() > WRITE_BYTES_KEPT {
                buffer = BytesMut::with_capacity(READ_BYTES);
            }
        }
    }

    async fn read_frames(
        self: Arc<Self>,
        socket: impl AsyncRead + Unpin + Send + 'static,
        events: mpsc::UnboundedSender<LinkEvent>,
    ) -> io::Error {
        let codec = LengthDelimitedCodec::builder().max_frame_length(NODE_FRAME_BYTES_MAX).new_codec();
        // Every byte is a sign of life: a large frame may take long on a slow line.
        let listening = Arc::clone(&self);
        let socket = InspectReader::new(socket, move |bytes: &[u8]| {
            listening.metrics.received_bytes.inc_by(bytes.len() as u64);
            listening.heard();
        });
        let mut frames = FramedRead::with_capacity(socket, codec, READ_BYTES);
        let mut answered = Vec::new();
        while let Some(frame) = frames.next().await {
            let frame = match frame {
                Ok(frame) => frame.freeze(),
                Err(error) => return error,
            };
            let frame = match wire::NodeFrame::decode(frame) {
                Ok(frame) => frame,
                Err(error) => return io::Error::other(error),
            };
            self.hand_out(frame, &mut answered, &events);
        }
        io::ErrorKind::UnexpectedEof.into()
    }

    fn hand_out(
        &self,
        frame: wire::NodeFrame,
        answered: &mut Vec<(oneshot::Sender<wire::Response>, wire::Response)>,
        events: &mpsc::UnboundedSender<LinkEvent>,
    ) {
        {
            let mut state = self.state.lock();
            for response in frame.responses {
                if let Some(response::Kind::ShardMap(update)) = response.kind {
                    let _ = events.send(LinkEvent::ShardMap(update.shard_map));
                    continue;
                }
                if let Some(response::Kind::Refused(refused)) = &response.kind
                    && !refused.shard_map.is_empty()
                {
                    let _ = events.send(LinkEvent::ShardMap(refused.shard_map.clone()));
                }
                let node = state.end.node();
                match state.end.handle_response(|| Instant::now().into_std(), response.id) {
                    Heard::Answer(answer) => answered.push((answer, response)),
                    // The reader of a watch is bounded by its credit.
                    Heard::Watch(items) => drop(items.send(response)),
                    Heard::Ping(sample) => {
                        if let (Some(sample), Some(node)) = (sample, node) {
                            self.round_trip_us.store(sample.as_micros() as u64, Ordering::Relaxed);
                            let _ = events.send(LinkEvent::RoundTrip { node, sample });
                        }
                    }
                    Heard::Nobody => {}
                }
            }
        }
        for (answer, response) in answered.drain(..) {
            let _ = answer.send(response);
        }
    }

    /// Returns when the node is given up.
    async fn watch_health(&self) -> io::Error {
        let mut ticks = tokio::time::interval(HEALTH_TICK);
        loop {
            ticks.tick().await;
            let silent_for = self.silent_for();
            let mut state = self.state.lock();
            let figures = || self.figures.load_full().map(Arc::unwrap_or_clone);
            match state.end.check(Instant::now().into_std(), silent_for, figures) {
                Check::Wait => {}
                Check::GiveUp => return io::Error::new(io::ErrorKind::TimedOut, "the node is silent"),
                Check::Ping => {
                    drop(state);
                    self.filled.notify_one();
                }
            }
        }
    }

    fn heard(&self) {
        self.heard_ms.store(self.born.elapsed().as_millis() as u64, Ordering::Relaxed);
    }
}

/// Appends one frame: a 4-byte big-endian length and the message.
fn encode_frame(message: &impl prost::Message, buffer: &mut BytesMut) {
    let length = message.encoded_len();
    buffer.reserve(4 + length);
    buffer.put_u32(u32::try_from(length).expect("frames are cut at 1 MiB, and requests are limited"));
    message.encode(buffer).expect("the buffer grows as needed");
}

/// A request on its way; resolves to its answer. Dropping it gives the answer up.
#[derive(Debug)]
pub(crate) struct Call {
    link: Arc<Link>,
    id: u64,
    receiver: oneshot::Receiver<wire::Response>,
    done: bool,
}

impl Future for Call {
    type Output = Result<wire::Response, Lost>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let polled = Pin::new(&mut self.receiver).poll(cx).map_err(|_| Lost);
        self.done = polled.is_ready();
        polled
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.done {
            let waiter = self.link.state.lock().end.give_up(self.id);
            drop(waiter);
        }
    }
}

/// A watch on a link. Dropping it closes the watch.
#[derive(Debug)]
pub(crate) struct FeedCall {
    link: Arc<Link>,
    group: u64,
    id: u64,
    receiver: mpsc::UnboundedReceiver<wire::Response>,
}

impl FeedCall {
    /// The next frame.
    pub(crate) async fn next(&mut self) -> Result<wire::Response, Lost> {
        self.receiver.recv().await.ok_or(Lost)
    }

    /// The next frame, if it is there.
    pub(crate) fn try_next(&mut self) -> Option<Result<wire::Response, Lost>> {
        match self.receiver.try_recv() {
            Ok(frame) => Some(Ok(frame)),
            Err(mpsc::error::TryRecvError::Empty) => None,
            Err(mpsc::error::TryRecvError::Disconnected) => Some(Err(Lost)),
        }
    }

    pub(crate) fn credit(&self, bytes: u64) {
        self.link.tell(self.group, self.id, request::Kind::WatchCredit(wire::WatchCredit { bytes }));
    }

    /// The id of the request that opened it, by which its node knows it.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Asks something about it.
    pub(crate) fn call(&self, ask: &mut impl Ask) -> Result<Call, Unsent> {
        let (request, bytes) = ask.request(None);
        self.link.call(self.group, request, bytes)
    }
}

impl Drop for FeedCall {
    fn drop(&mut self) {
        let reader = self.link.state.lock().end.close_watch(self.group, self.id);
        if reader.is_some() {
            self.link.filled.notify_one();
        }
    }
}

/// Asks once.
pub(crate) async fn attempt<A: Ask>(
    link: &Arc<Link>,
    group: u64,
    ask: &mut A,
    numbered: Option<Numbered>,
) -> Attempted<A::Answer> {
    let (request, bytes) = ask.request(numbered);
    match link.call(group, request, bytes) {
        Ok(call) => sort(ask, call.await),
        Err(unsent) => Attempted::Unsent(unsent),
    }
}

#[cfg(test)]
mod tests;
