//! What of a client's memory passes through here: bodies of requests, which are counted and have to arrive in time, and
//! bodies of answers, which count until the client has taken them.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use gateway_core::Failure;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};
use tonic::body::Body;

use super::errors::to_status;
use crate::admission::{COUNTED_FROM, Client, Taken, Use};
use crate::journey;
use crate::methods::Flow;

/// A message that has not come after so long is not waited for: the largest one takes as long at half a megabit a second.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// A message for which there is no room is read no further for so long, and then refused.
const ROOM_WITHIN: Duration = Duration::from_secs(5);
/// How soon room is looked for again; twice as late each time, up to the longest.
const ROOM_PAUSE: Duration = Duration::from_millis(20);
const ROOM_PAUSE_MAX: Duration = Duration::from_millis(320);
/// As much of a request's body the HTTP/2 library holds before it is read.
pub(super) const WINDOW_BYTES: usize = 256 << 10;
/// So many times as long as a message that is packed is what is in it, at most: gzip writes a run of 258 bytes in two bits.
const PACKED_TIMES: usize = 1032;
/// What gRPC puts before a message: whether it is compressed, and its length.
const HEAD_BYTES: usize = 5;
/// After so long a message that has not come has no place among those under way, but finds one when it comes.
const PLACE_TIMEOUT: Duration = Duration::from_millis(200);

/// A request's body.
pub(super) struct Received<B> {
    body: B,
    /// Its bytes, for the access log.
    counted: Option<Arc<AtomicU64>>,
    /// Of a request with one message.
    message: Option<Message>,
}

/// A message while it arrives.
///
/// All of it is counted when its head has come, for the decoder makes room for all of it then. Until there is room, no more of
/// it is read than the HTTP/2 library holds, which is a window, and is counted.
struct Message {
    client: Arc<Client>,
    /// The largest there may be; the decoder refuses what is larger by its head.
    limit: usize,
    head: [u8; HEAD_BYTES],
    bytes: usize,
    taken: Option<Taken>,
    /// A piece that has come and for which there is no room yet.
    waiting: Option<Waiting>,
    /// Set when it first has to be waited for.
    timeout: Option<Pin<Box<Sleep>>>,
    has_place: bool,
}

struct Waiting {
    piece: Frame<Bytes>,
    /// What it takes.
    bytes: usize,
    until: Instant,
    pause: Duration,
    looks: Pin<Box<Sleep>>,
}

type BoxError = Box<dyn Error + Send + Sync>;

impl<B> Received<B> {
    pub(super) fn new(
        body: B,
        flow: Flow,
        client: &Arc<Client>,
        limit: usize,
        counted: Option<Arc<AtomicU64>>,
    ) -> Received<B> {
        let message = match flow {
            Flow::Unary | Flow::ServerStream => Some(Message {
                client: Arc::clone(client),
                limit,
                head: [0; HEAD_BYTES],
                bytes: 0,
                taken: None,
                waiting: None,
                timeout: None,
                has_place: true,
            }),
            Flow::BidiStream => None,
        };
        Received { body, counted, message }
    }

    /// Pending, or refused if the message takes too long.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let is_late = self.message.as_mut().is_some_and(|message| message.is_late(cx));
        if is_late { refuse(Failure::TimedOut) } else { Poll::Pending }
    }
}

fn refuse(failure: Failure) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
    Poll::Ready(Some(Err(to_status(failure).into())))
}

impl Message {
    /// Takes in a piece of it; `None` if it has to wait for room.
    fn handle(&mut self, piece: Frame<Bytes>) -> Result<Option<Frame<Bytes>>, Failure> {
        let Some(data) = piece.data_ref() else { return Ok(Some(piece)) };
        for (place, byte) in self.head.iter_mut().skip(self.bytes).zip(data) {
            *place = *byte;
        }
        self.bytes += data.len();
        let announced = self.announced();
        let whole = announced.max(self.bytes);
        if whole < COUNTED_FROM {
            return Ok(Some(piece));
        }
        let taken = self.taken.get_or_insert_with(|| Taken::nothing(&self.client, Use::Messages));
        let more = whole.saturating_sub(taken.bytes());
        // Who sends more than was announced holds what others wait for, and does not wait as well.
        if self.bytes > announced {
            return if taken.grow(more) { Ok(Some(piece)) } else { Err(Failure::Overloaded) };
        }
        if taken.try_grow(more) {
            return Ok(Some(piece));
        }
        let window = more.min(WINDOW_BYTES);
        if !taken.grow(window) {
            return Err(Failure::Overloaded);
        }
        self.waiting = Some(Waiting {
            piece,
            bytes: more - window,
            until: Instant::now() + ROOM_WITHIN,
            pause: ROOM_PAUSE,
            looks: Box::pin(sleep(ROOM_PAUSE)),
        });
        Ok(None)
    }

    /// What its head says that it takes, as far as that is known and will be read: with what it is when it is unpacked.
    fn announced(&self) -> usize {
        let [packed, length @ ..] = self.head;
        let length = u32::from_be_bytes(length) as usize;
        if self.bytes < HEAD_BYTES || length > self.limit {
            return 0;
        }
        HEAD_BYTES
            + length
            + if packed == 1 { self.limit.min(length.saturating_mul(PACKED_TIMES)) } else { 0 }
    }

    /// The piece that waits, when there is room for it.
    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let (Some(mut waiting), Some(taken)) = (self.waiting.take(), &mut self.taken) else {
            return Poll::Ready(None);
        };
        while waiting.looks.as_mut().poll(cx).is_ready() {
            if taken.try_grow(waiting.bytes) {
                return Poll::Ready(Some(Ok(waiting.piece)));
            }
            let now = Instant::now();
            if now >= waiting.until {
                // Tells that it is refused.
                let has_room = taken.grow(waiting.bytes);
                return Poll::Ready(Some(if has_room {
                    Ok(waiting.piece)
                } else {
                    Err(Failure::Overloaded)
                }));
            }
            waiting.pause = (waiting.pause * 2).min(ROOM_PAUSE_MAX);
            waiting.looks.as_mut().reset(now + waiting.pause);
        }
        self.waiting = Some(waiting);
        Poll::Pending
    }

    /// Whether it has been waited for for too long.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        let timeout = self.timeout.get_or_insert_with(|| Box::pin(sleep(PLACE_TIMEOUT)));
        if timeout.as_mut().poll(cx).is_pending() {
            return false;
        }
        if !std::mem::replace(&mut self.has_place, false) {
            return true;
        }
        drop(journey::place());
        timeout.as_mut().reset(Instant::now() + MESSAGE_TIMEOUT);
        timeout.as_mut().poll(cx).is_ready()
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        if let Some(taken) = self.taken.take() {
            journey::hold(taken);
        }
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Received<B>
where
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let received = self.get_mut();
        if let Some(message) = &mut received.message {
            match message.poll_waiting(cx) {
                Poll::Ready(Some(Ok(frame))) => return Poll::Ready(Some(Ok(frame))),
                Poll::Ready(Some(Err(failure))) => return refuse(failure),
                Poll::Ready(None) => {}
                Poll::Pending => return received.poll_late(cx),
            }
        }
        let frame = match Pin::new(&mut received.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => return received.poll_late(cx),
        };
        if let Some(counted) = &received.counted {
            counted.fetch_add(frame.data_ref().map_or(0, Bytes::len) as u64, Ordering::Relaxed);
        }
        let Some(message) = &mut received.message else { return Poll::Ready(Some(Ok(frame))) };
        match message.handle(frame) {
            Ok(Some(frame)) => Poll::Ready(Some(Ok(frame))),
            // Whoever waits has to be woken.
            Ok(None) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Err(failure) => refuse(failure),
        }
    }

    fn is_end_stream(&self) -> bool {
        let is_waiting = self.message.as_ref().is_some_and(|message| message.waiting.is_some());
        !is_waiting && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body, whose pieces count until the client has taken them.
pub(super) struct Answered {
    body: Body,
    client: Arc<Client>,
    /// Of its stream, which is open.
    _stream: Taken,
    /// Of the node's answer, until this one is made of it.
    made_of: Option<Taken>,
    /// Whether its pieces count already.
    is_counted: bool,
    ended: bool,
}

impl Answered {
    pub(super) fn new(
        body: Body,
        client: &Arc<Client>,
        stream: Taken,
        made_of: Option<Taken>,
        is_counted: bool,
    ) -> Answered {
        Answered { body, client: Arc::clone(client), _stream: stream, made_of, is_counted, ended: false }
    }
}

/// A piece of an answer. The library drops it when the last of it has left.
struct Piece {
    bytes: Bytes,
    _taken: Taken,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A piece of an answer for which the budget has something until the client has taken it.
pub(super) fn held(bytes: Bytes, taken: Taken) -> Bytes {
    Bytes::from_owner(Piece { bytes, _taken: taken })
}

impl HttpBody for Answered {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let answered = self.get_mut();
        if answered.ended {
            return Poll::Ready(None);
        }
        let frame = match Pin::new(&mut answered.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => frame,
            other @ (Poll::Ready(Some(Err(_)) | None) | Poll::Pending) => return other,
        };
        // The library has made all of the answer at once.
        answered.made_of = None;
        let frame = match frame.into_data() {
            Ok(bytes) if bytes.len() >= COUNTED_FROM && !answered.is_counted => {
                match Taken::take(&answered.client, Use::Answers, bytes.len()) {
                    Some(taken) => Frame::data(held(bytes, taken)),
                    None => {
                        answered.ended = true;
                        answered.body = Body::empty();
                        let mut trailers = ::http::HeaderMap::new();
                        to_status(Failure::Overloaded).add_header(&mut trailers)?;
                        Frame::trailers(trailers)
                    }
                }
            }
            Ok(bytes) => Frame::data(bytes),
            Err(frame) => frame,
        };
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Full, StreamBody};
    use tonic::Status;

    use super::*;
    use crate::admission::testing::admission_with;
    use crate::context::Priority;
    use gateway_core::admission::Lane;

    type Frames = Pin<Box<dyn HttpBody<Data = Bytes, Error = BoxError> + Send>>;

    const LIMIT: usize = 2 << 20;

    /// A body of so many bytes, in pieces; what comes of it.
    async fn receive(client: &Arc<Client>, pieces: usize, piece: usize) -> Result<usize, Status> {
        let frames = (0..pieces).map(move |_| Ok::<_, BoxError>(Frame::data(Bytes::from(vec![7; piece]))));
        let body: Frames = Box::pin(StreamBody::new(futures::stream::iter(frames)));
        let received = Received::new(body, Flow::Unary, client, LIMIT, None);
        match received.collect().await {
            Ok(collected) => Ok(collected.to_bytes().len()),
            Err(error) => Err(Status::from_error(error)),
        }
    }

    #[tokio::test]
    async fn messages_beyond_the_budget_are_refused_while_they_arrive() {
        let admission = admission_with(8 << 20);
        let client = admission.connect(None);
        let (received, ..) = journey::record(&client, None, async {
            let received = receive(&client, 100, 20 << 10).await;
            assert_eq!(admission.budget().taken(Use::Messages), 2000 << 10, "while it is carried out");
            received
        })
        .await;
        assert_eq!(received.unwrap(), 2000 << 10);
        assert_eq!(admission.budget().taken(Use::Messages), 0);
        let refused = receive(&client, 300, 20 << 10).await.unwrap_err();
        assert_eq!(refused.message(), "etcdserver: too many requests");
        let _others = Taken::take(&admission.connect(None), Use::Messages, 3 << 20).unwrap();
        assert!(receive(&client, 100, 20 << 10).await.is_err());
        assert!(receive(&client, 1, COUNTED_FROM - 1).await.is_ok(), "what is small is not counted");
    }

    /// The head of a message of so many bytes, and a few of these.
    fn begin(packed: u8, bytes: u32) -> Frames {
        let mut piece = vec![packed];
        piece.extend(bytes.to_be_bytes());
        // A head may come in pieces.
        let rest = piece.split_off(3);
        let frames = [piece, rest, vec![7; 100]].map(|piece| Ok::<_, BoxError>(Frame::data(piece.into())));
        let never = futures::stream::pending();
        Box::pin(StreamBody::new(futures::StreamExt::chain(futures::stream::iter(frames), never)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_counts_from_its_head_on_and_waits_for_room() {
        let admission = admission_with(64 << 20);
        let (client, other) = (admission.connect(None), admission.connect(None));
        let others = Taken::take(&other, Use::Messages, 20 << 20).unwrap();
        let more = Taken::take(&admission.connect(None), Use::Messages, 4 << 20).unwrap();
        let taken = || admission.budget().taken(Use::Messages);
        let mut body = Received::new(begin(0, 1_900_000), Flow::Unary, &client, LIMIT, None);
        assert!(body.frame().await.unwrap().is_ok(), "nothing is known of it");
        let waited = tokio::time::timeout(Duration::from_secs(1), body.frame()).await;
        assert!(waited.is_err(), "it waits");
        assert_eq!(taken(), (24 << 20) + WINDOW_BYTES, "with what the library may hold");
        drop(others);
        let waited = tokio::time::timeout(Duration::from_secs(1), body.frame()).await;
        assert!(waited.unwrap().unwrap().is_ok());
        assert_eq!(
            taken(),
            (4 << 20) + HEAD_BYTES + 1_900_000,
            "all of it, of which hardly anything is here"
        );
        drop((body, more));
        assert_eq!(taken(), 0);
        for (length, unpacked) in [(100_000, LIMIT), (100, 100 * PACKED_TIMES)] {
            let mut packed = Received::new(begin(1, length), Flow::Unary, &client, LIMIT, None);
            assert!(packed.frame().await.unwrap().is_ok() && packed.frame().await.unwrap().is_ok());
            assert_eq!(taken(), HEAD_BYTES + length as usize + unpacked, "as it may be when it is unpacked");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_finds_no_room_in_time_is_refused() {
        let admission = admission_with(64 << 20);
        let _others = Taken::take(&admission.connect(None), Use::Messages, 20 << 20).unwrap();
        let _more = Taken::take(&admission.connect(None), Use::Messages, 4 << 20).unwrap();
        let begun = Instant::now();
        let body = Received::new(begin(0, 1_900_000), Flow::Unary, &admission.connect(None), LIMIT, None);
        let refused = Status::from_error(body.collect().await.unwrap_err());
        assert_eq!(refused.message(), "etcdserver: too many requests");
        assert!(begun.elapsed() >= ROOM_WITHIN && begun.elapsed() < ROOM_WITHIN * 2);
        assert_eq!(admission.budget().taken(Use::Messages), 24 << 20);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_does_not_come_is_not_waited_for() {
        let admission = admission_with(8 << 20);
        let client = admission.connect(None);
        let never: Frames = Box::pin(StreamBody::new(futures::stream::pending()));
        let late = Received::new(never, Flow::Unary, &client, LIMIT, None).collect().await.unwrap_err();
        assert_eq!(Status::from_error(late).message(), "etcdserver: request timed out");
        let never: Frames = Box::pin(StreamBody::new(futures::stream::pending()));
        let stream = Received::new(never, Flow::BidiStream, &client, LIMIT, None);
        let waited = tokio::time::timeout(MESSAGE_TIMEOUT * 2, stream.collect()).await;
        assert!(waited.is_err(), "a stream has all the time there is");
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_half_of_a_message_takes_nobodys_place() {
        let admission = admission_with(8 << 20);
        let client = admission.connect(None);
        let place = client.enter(Lane::Write).unwrap();
        let begun = Instant::now();
        let (half, rest): (Frames, _) = {
            let (sender, receiver) = futures::channel::mpsc::unbounded();
            (Box::pin(StreamBody::new(receiver)), sender)
        };
        let arriving = journey::record(&client, place, async {
            Received::new(half, Flow::Unary, &client, LIMIT, None).collect().await.unwrap();
            client.admit(journey::place(), Lane::Write, Priority::Small).unwrap()
        });
        let mut arriving = Box::pin(arriving);
        let mut has_place_at = async |at: Duration| {
            let waited = tokio::time::timeout_at(begun + at, &mut arriving).await;
            assert!(waited.is_err(), "the rest has not come");
            admission.under_way().writes == 1
        };
        assert!(has_place_at(PLACE_TIMEOUT / 2).await);
        assert!(!has_place_at(PLACE_TIMEOUT * 2).await);
        rest.unbounded_send(Ok(Frame::data(Bytes::from_static(b"rest")))).unwrap();
        drop(rest);
        let (_place, ..) = arriving.await;
        assert_eq!(admission.under_way().writes, 1, "it finds a place when it has come");
    }

    #[tokio::test]
    async fn answers_count_until_their_last_byte_is_taken() {
        let admission = admission_with(8 << 20);
        let client = admission.connect(None);
        let answer = |bytes: usize| {
            let body = Body::new(Full::new(Bytes::from(vec![7; bytes])).map_err(|never| match never {}));
            Answered::new(body, &client, Taken::stream(&client).unwrap(), None, false)
        };
        let mut frame = answer(2 << 20).frame().await.unwrap().unwrap().into_data().unwrap();
        let rest = frame.split_off(1 << 20);
        drop(frame);
        assert_eq!(admission.budget().taken(Use::Answers), 2 << 20);
        let refused = answer(2 << 20).frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(Status::from_header_map(&refused).unwrap().message(), "etcdserver: too many requests");
        let small = answer(100).frame().await.unwrap().unwrap();
        assert!(small.is_data());
        drop(rest);
        assert_eq!(admission.budget().taken(Use::Answers), 0);
    }
}
