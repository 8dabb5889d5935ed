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
struct Message {
    client: Arc<Client>,
    bytes: usize,
    taken: Option<Taken>,
    /// Set when it first has to be waited for.
    timeout: Option<Pin<Box<Sleep>>>,
    has_place: bool,
}

type BoxError = Box<dyn Error + Send + Sync>;

impl<B> Received<B> {
    pub(super) fn new(
        body: B,
        flow: Flow,
        client: &Arc<Client>,
        counted: Option<Arc<AtomicU64>>,
    ) -> Received<B> {
        let message = match flow {
            Flow::Unary | Flow::ServerStream => Some(Message {
                client: Arc::clone(client),
                bytes: 0,
                taken: None,
                timeout: None,
                has_place: true,
            }),
            Flow::BidiStream => None,
        };
        Received { body, counted, message }
    }
}

impl Message {
    /// Takes in a piece of it.
    fn handle(&mut self, bytes: usize) -> Result<(), Failure> {
        self.bytes += bytes;
        let has_room = match &mut self.taken {
            Some(taken) => taken.grow(bytes),
            None if self.bytes < COUNTED_FROM => true,
            None => {
                self.taken = Taken::take(&self.client, Use::Messages, self.bytes);
                self.taken.is_some()
            }
        };
        if has_room { Ok(()) } else { Err(Failure::Overloaded) }
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
        let refuse = |failure: Failure| Poll::Ready(Some(Err(to_status(failure).into())));
        let frame = match Pin::new(&mut received.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => {
                let is_late = received.message.as_mut().is_some_and(|message| message.is_late(cx));
                return if is_late { refuse(Failure::TimedOut) } else { Poll::Pending };
            }
        };
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        if let Some(counted) = &received.counted {
            counted.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        if let Some(message) = &mut received.message
            && let Err(failure) = message.handle(bytes)
        {
            return refuse(failure);
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
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

    /// A body of so many bytes, in pieces; what comes of it.
    async fn receive(client: &Arc<Client>, pieces: usize, piece: usize) -> Result<usize, Status> {
        let frames = (0..pieces).map(move |_| Ok::<_, BoxError>(Frame::data(Bytes::from(vec![7; piece]))));
        let body: Frames = Box::pin(StreamBody::new(futures::stream::iter(frames)));
        let received = Received::new(body, Flow::Unary, client, None);
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

    #[tokio::test(start_paused = true)]
    async fn a_message_that_does_not_come_is_not_waited_for() {
        let admission = admission_with(8 << 20);
        let client = admission.connect(None);
        let never: Frames = Box::pin(StreamBody::new(futures::stream::pending()));
        let late = Received::new(never, Flow::Unary, &client, None).collect().await.unwrap_err();
        assert_eq!(Status::from_error(late).message(), "etcdserver: request timed out");
        let never: Frames = Box::pin(StreamBody::new(futures::stream::pending()));
        let stream = Received::new(never, Flow::BidiStream, &client, None);
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
            Received::new(half, Flow::Unary, &client, None).collect().await.unwrap();
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
