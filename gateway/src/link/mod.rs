//! A link: one persistent TCP connection to a node, kept up for as long as the gateway lives.
//!
//! Requests of all clients share it. [`Link::call`] adds a request to the open batch and gives a future of its answer;
//! a pair of tasks moves frames. Losing the connection loses every answer that was awaited on it: whoever waited
//! decides what that means ([`gateway_core::Request`]).

mod dial;
mod metrics;
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
use gateway_core::asks::unasked;
use gateway_core::link::{
    Ask, BrokenParts, Gathered, Heard, LinkEnd, LinkId, Terms, Unanswered, Waiter, node, sort,
};
use gateway_core::nearest::Place;
use gateway_core::silence::{Check, patience};
use gateway_core::{Attempted, FeedId, GroupId, NodeId, Numbered, Quiet, Unsent, Watch};
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

use crate::admission::{COUNTED_FROM, Client, Taken, Use};
use crate::feed_event::FeedEvent;
use crate::journey;

use dial::Reached;

pub(crate) use metrics::LinkMetrics;
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
    /// Where everything goes that concerns feeds, in the order in which it comes.
    feeds: mpsc::UnboundedSender<FeedEvent>,
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

/// Callers wait for one response, feeds for many.
type End = LinkEnd<Caller, FeedId>;

#[derive(Debug)]
enum Caller {
    One {
        answer: oneshot::Sender<Answer>,
        /// For whom, if that is a client.
        client: Option<Arc<Client>>,
        /// What the budget has for the answer.
        taken: Option<Taken>,
    },
    /// Whoever carries the feeds asked how far watches of a group are.
    Feeds { group: GroupId, question: u64 },
}

/// What a caller is given.
#[derive(Debug)]
struct Answer {
    response: Result<wire::Response, Unanswered>,
    taken: Option<Taken>,
}

impl Caller {
    /// Takes room for an answer of so many bytes, if there is any.
    fn take_room(&mut self, bytes: usize) -> bool {
        match self {
            Caller::One { client: Some(client), taken, .. } if bytes >= COUNTED_FROM => {
                *taken = Taken::take(client, Use::Answers, bytes);
                taken.is_some()
            }
            Caller::One { .. } | Caller::Feeds { .. } => true,
        }
    }
}

#[derive(Debug)]
struct State {
    end: End,
    /// Of the connection that is up, or was last.
    id: LinkId,
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
    /// Who carries the feeds.
    pub(crate) feeds: mpsc::UnboundedSender<FeedEvent>,
}

impl Link {
    /// A link to `target` that connects, and connects again, until stopped; or, once nobody wants the target, until it is lost
    /// or not needed. Must be called within a runtime.
    pub(crate) fn start(
        target: Arc<Target>,
        identity: Identity,
        events: mpsc::UnboundedSender<LinkEvent>,
    ) -> Arc<Link> {
        let link = Arc::new(Link::new(target, &identity));
        let kept = Arc::clone(&link);
        tokio::spawn(async move { dial::keep(&kept, &identity, &events).await });
        link
    }

    fn new(target: Arc<Target>, identity: &Identity) -> Link {
        Link {
            target,
            metrics: identity.metrics.clone(),
            figures: Arc::clone(&identity.figures),
            feeds: identity.feeds.clone(),
            up: AtomicU32::new(0),
            state: Mutex::new(State { end: LinkEnd::default(), id: LinkId(0), open_since: None }),
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
        node(self.up.load(Ordering::Relaxed))
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
        group: GroupId,
        kind: request::Kind,
        bytes: usize,
        terms: Terms,
    ) -> Result<Call, Unsent> {
        let (answer, receiver) = oneshot::channel();
        let caller = Caller::One { answer, client: journey::client(), taken: None };
        let (_, id) = self.submit(|end| end.call(group, kind, bytes, terms, caller))?;
        Ok(Call { link: Arc::clone(self), id, receiver, done: false })
    }

    /// Opens a watch for a feed; its frames go where everything about feeds goes.
    pub(crate) fn open_watch(
        &self,
        group: GroupId,
        ask: &mut impl Ask,
        feed: FeedId,
    ) -> Result<Watch, Unsent> {
        let (open, bytes) = ask.request(None);
        let (link, id) = self.submit(|end| end.watch(group, open, bytes, feed))?;
        Ok(Watch { link, id })
    }

    /// Asks about watches; the answer goes where everything about feeds goes.
    pub(crate) fn ask_for_feeds(
        &self,
        group: GroupId,
        ask: &mut impl Ask,
        question: u64,
    ) -> Result<(), Unsent> {
        let (kind, bytes) = ask.request(None);
        // In order with what is said about watches.
        let (terms, caller) = (Terms::default(), Caller::Feeds { group, question });
        self.submit(|end| end.call(group, kind, bytes, terms, caller)).map(|_| ())
    }

    /// Allows a watch more bytes of events.
    pub(crate) fn credit_watch(&self, group: GroupId, watch: Watch, bytes: u64) {
        self.tell(group, watch.id, request::Kind::WatchCredit(wire::WatchCredit { bytes }));
    }

    /// Ends a watch.
    pub(crate) fn close_watch(&self, group: GroupId, watch: Watch) {
        self.take_back(|end| end.close_watch(group, watch.id));
    }

    /// Takes back all calls to a group: its leader is elsewhere, and their outcome must be asked for there.
    pub(crate) fn abandon(&self, group: GroupId) {
        let (node, gone) = self.take_back(|end| (end.node(), end.abandon(group)));
        let link = self.state.lock().id;
        for waiter in gone {
            if let (Waiter::Call { by: Caller::Feeds { group, question }, .. }, Some(node)) = (waiter, node) {
                let answer = Err(Unanswered::Lost);
                let _ = self.feeds.send(FeedEvent::Answer { link, node, group, question, answer });
            }
        }
    }

    /// Takes something back; if the node has to be told, that leaves.
    fn take_back<T>(&self, take: impl FnOnce(&mut End) -> T) -> T {
        let mut state = self.state.lock();
        let was_idle = state.end.is_idle();
        let taken = take(&mut state.end);
        let is_begun = was_idle && !state.end.is_idle();
        if is_begun {
            state.open_since = Some(Instant::now());
        }
        drop(state);
        if is_begun {
            self.filled.notify_one();
        }
        taken
    }

    /// Returns the connection that takes it, and its number there.
    fn submit(&self, add: impl FnOnce(&mut End) -> Result<u64, Unsent>) -> Result<(LinkId, u64), Unsent> {
        let mut state = self.state.lock();
        let was_idle = state.end.is_idle();
        let id = add(&mut state.end)?;
        let link = state.id;
        if was_idle {
            state.open_since = Some(Instant::now());
        }
        drop(state);
        if was_idle {
            self.filled.notify_one();
        }
        Ok((link, id))
    }

    /// Sends a message about a live watch. Lost if the connection is: then the watch is, too.
    fn tell(&self, group: GroupId, id: u64, kind: request::Kind) {
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
        let node = NodeId(welcome.node_id);
        let address = self.address();
        if !identity.ways.handle_up(&self.target, node, way) {
            debug!(address, node = node.0, "the node is reached by another address");
            return io::ErrorKind::AlreadyExists.into();
        }
        match &by {
            Some(by) => {
                warn!(address, node = node.0, by, "linked by a relay: the node is not reached directly")
            }
            None => info!(address, node = node.0, "linked"),
        }
        identity.refusals.settled(address);
        self.heard();
        let id = LinkId(identity.connections.fetch_add(1, Ordering::Relaxed));
        {
            let mut state = self.state.lock();
            state.id = id;
            state.end.handle_up(node);
        }
        self.up.store(node.0, Ordering::Relaxed);
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
        info!(address, node = node.0, %error, lost = lost.len(), "link lost");
        // The owner hears of the loss before those who waited, so that they do not try the same link again.
        let _ = events.send(LinkEvent::Down { id });
        let _ = self.feeds.send(FeedEvent::Lost { link: id });
        drop(lost);
        error
    }

    /// The next frame of what waits.
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
            if let Err(BrokenParts(reason)) = self.hand_out(frame, &mut answered, &events) {
                return io::Error::other(reason);
            }
        }
        io::ErrorKind::UnexpectedEof.into()
    }

    fn hand_out(
        &self,
        frame: wire::NodeFrame,
        answered: &mut Vec<(oneshot::Sender<Answer>, Answer)>,
        events: &mpsc::UnboundedSender<LinkEvent>,
    ) -> Result<(), BrokenParts> {
        {
            let mut state = self.state.lock();
            let was_idle = state.end.is_idle();
            for response in frame.responses {
                let response = match state.end.gather(response, Caller::take_room)? {
                    Gathered::Whole(response) => response,
                    Gathered::Nothing => continue,
                    Gathered::NoRoom { id, term } => {
                        if let Heard::Answer(Caller::One { answer, .. }) =
                            state.end.handle_response(|| Instant::now().into_std(), id)
                        {
                            let response = Err(Unanswered::NoRoom { term });
                            answered.push((answer, Answer { response, taken: None }));
                        }
                        continue;
                    }
                };
                let (link, node) = (state.id, state.end.node().unwrap_or_default());
                if let Some(response::Kind::ShardMap(update)) = response.kind {
                    let _ = events.send(LinkEvent::ShardMap(update.shard_map));
                    continue;
                }
                if let Some(response::Kind::Refused(refused)) = &response.kind
                    && !refused.shard_map.is_empty()
                {
                    let _ = events.send(LinkEvent::ShardMap(refused.shard_map.clone()));
                }
                if let Some(told) = unasked(&response) {
                    let _ = self.feeds.send(FeedEvent::Unasked { link, node, told });
                    continue;
                }
                match state.end.handle_response(|| Instant::now().into_std(), response.id) {
                    Heard::Answer(Caller::One { answer, taken, .. }) => {
                        answered.push((answer, Answer { response: Ok(response), taken }));
                    }
                    Heard::Answer(Caller::Feeds { group, question }) => {
                        let answer = Ok(response);
                        let _ = self.feeds.send(FeedEvent::Answer { link, node, group, question, answer });
                    }
                    // A watch is bounded by its credit.
                    Heard::Watch(&feed) => {
                        let _ = self.feeds.send(FeedEvent::Frame { link, node, feed, response });
                    }
                    Heard::Ping(sample) => {
                        if let Some(sample) = sample {
                            self.round_trip_us.store(sample.as_micros() as u64, Ordering::Relaxed);
                            let _ = events.send(LinkEvent::RoundTrip { node, sample });
                        }
                    }
                    Heard::Nobody => {}
                }
            }
            if was_idle && !state.end.is_idle() {
                self.filled.notify_one();
            }
        }
        for (answer, response) in answered.drain(..) {
            let _ = answer.send(response);
        }
        Ok(())
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
    receiver: oneshot::Receiver<Answer>,
    done: bool,
}

impl Future for Call {
    type Output = Result<wire::Response, Unanswered>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let polled = Pin::new(&mut self.receiver).poll(cx);
        self.done = polled.is_ready();
        polled.map(|answer| {
            let Answer { response, taken } = answer.map_err(|_| Unanswered::Lost)?;
            if let Some(taken) = taken {
                journey::hold_answer(taken);
            }
            response
        })
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.done {
            drop(self.link.take_back(|end| end.give_up(self.id)));
        }
    }
}

/// Asks once.
pub(crate) async fn attempt<A: Ask>(
    link: &Arc<Link>,
    group: GroupId,
    ask: &mut A,
    numbered: Option<Numbered>,
) -> Attempted<A::Answer> {
    let (request, bytes) = ask.request(numbered);
    match link.call(group, request, bytes, Terms::default()) {
        Ok(call) => sort(ask, call.await),
        Err(unsent) => Attempted::Unsent(unsent),
    }
}

#[cfg(test)]
mod tests;
