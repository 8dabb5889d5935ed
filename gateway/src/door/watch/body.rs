//! The body of a watch stream's answer: its responses, encoded as the client's connection takes them, each piece when there
//! is room for it in the budget. A client that does not read holds a piece, and is not told of more: it falls behind, which
//! costs nothing.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use ::http::HeaderMap;
use bytes::Bytes;
use futures::Stream;
use futures::stream::empty;
use http_body::{Body as HttpBody, Frame};
use tonic::body::Body;
use tonic::{Code, Status};

use super::messages::{Encoded, Leaving, Pieces};
use crate::admission::{COUNTED_FROM, Client, Taken, Use};
use crate::door::left::left;
use crate::door::measured::held;

type Responses = Pin<Box<dyn Stream<Item = Result<Encoded, Status>> + Send>>;

/// With an empty answer, as the library wants one.
pub(super) fn leave<T>(
    responses: impl Stream<Item = Result<Encoded, Status>> + Send + 'static,
    client: Arc<Client>,
) -> tonic::Response<futures::stream::Empty<T>> {
    left(Body::new(WatchBody::new(Box::pin(responses), client)), empty())
}

/// See the module.
struct WatchBody {
    responses: Responses,
    client: Arc<Client>,
    pieces: Pieces,
    /// The response that is encoded next.
    leaving: Option<Leaving>,
    /// A piece that waits for room.
    waiting: Option<Waiting>,
    /// How it ends.
    end: Option<Status>,
    ended: bool,
}

type Waiting = Pin<Box<dyn Future<Output = Bytes> + Send>>;

impl WatchBody {
    fn new(responses: Responses, client: Arc<Client>) -> WatchBody {
        let pieces = Pieces::default();
        WatchBody { responses, client, pieces, leaving: None, waiting: None, end: None, ended: false }
    }

    /// Encodes until there is enough for a frame, or nothing more for now.
    fn fill(&mut self, cx: &mut Context<'_>) {
        while !self.pieces.is_enough() {
            if let Some(leaving) = &mut self.leaving {
                if leaving.go_on(&mut self.pieces) {
                    self.leaving = None;
                }
                continue;
            }
            if self.end.is_some() {
                return;
            }
            match self.responses.as_mut().poll_next(cx) {
                Poll::Pending => return,
                Poll::Ready(Some(Ok(encoded))) => match Leaving::begin(encoded, &mut self.pieces) {
                    Ok(leaving) => self.leaving = Some(leaving),
                    Err(status) => self.end = Some(status),
                },
                Poll::Ready(Some(Err(status))) => self.end = Some(status),
                Poll::Ready(None) => self.end = Some(Status::new(Code::Ok, "")),
            }
        }
    }
}

impl HttpBody for WatchBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let body = self.get_mut();
        if body.ended {
            return Poll::Ready(None);
        }
        if body.waiting.is_none() {
            body.fill(cx);
            match body.pieces.take() {
                Some(piece) if piece.len() < COUNTED_FROM => {
                    return Poll::Ready(Some(Ok(Frame::data(piece))));
                }
                Some(piece) => {
                    let client = Arc::clone(&body.client);
                    body.waiting = Some(Box::pin(async move {
                        let taken = Taken::take_at_last(&client, Use::Answers, piece.len()).await;
                        held(piece, taken)
                    }));
                }
                None => {
                    let Some(end) = body.end.take() else { return Poll::Pending };
                    body.ended = true;
                    let mut trailers = HeaderMap::new();
                    end.add_header(&mut trailers).expect("a status of ours is well formed");
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
            }
        }
        let Some(waiting) = &mut body.waiting else { return Poll::Pending };
        let piece = ready!(waiting.as_mut().poll(cx));
        body.waiting = None;
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}
