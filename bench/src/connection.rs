//! A client's connection that costs little: a request of one message leaves in one write, as etcd's own client sends
//! it. A general client writes its headers, its message and its end one after the other, and wakes the server for each.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::uri::Scheme;
use http::{Request, Response, Uri};
use http_body::{Body, Frame};
use tonic::codegen::Service;

use crate::endpoint::Endpoint;

/// What a server may send before it is read: 2 MiB a stream, 5 MiB a connection.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 5 << 20;
/// Streams that are opened before the server has said how many it takes.
const STREAMS_UNTIL_TOLD: usize = 100;

/// Dropping the last clone, and the last response, closes it.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    requests: SendRequest<Bytes>,
    endpoint: Endpoint,
}

impl Connection {
    /// Connects, and agrees on HTTP/2.
    pub(crate) async fn open(endpoint: &Endpoint) -> io::Result<Connection> {
        let stream = endpoint.connect().await?;
        let (requests, connection) = Builder::new()
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .initial_max_send_streams(STREAMS_UNTIL_TOLD)
            .enable_push(false)
            .handshake(stream)
            .await
            .map_err(io::Error::other)?;
        // Its end shows in every request.
        tokio::spawn(connection);
        Ok(Connection { requests, endpoint: endpoint.clone() })
    }

    /// Hands in the headers and everything of the body that is there, before the connection's task has its turn.
    fn send(
        &mut self,
        request: Request<tonic::body::Body>,
    ) -> Result<ResponseFuture, Box<dyn std::error::Error + Send + Sync>> {
        let (mut head, body) = request.into_parts();
        let mut uri = std::mem::take(&mut head.uri).into_parts();
        uri.scheme = Some(if self.endpoint.is_tls() { Scheme::HTTPS } else { Scheme::HTTP });
        uri.authority = Some(self.endpoint.authority.clone());
        head.uri = Uri::from_parts(uri)?;
        let (response, stream) = self.requests.send_request(Request::from_parts(head, ()), false)?;
        let mut sending = Sending { stream, body, message: None };
        match Pin::new(&mut sending).poll(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(()) => {}
            Poll::Pending => drop(tokio::spawn(sending)),
        }
        Ok(response)
    }
}

impl Service<Request<tonic::body::Body>> for Connection {
    type Response = Response<Answer>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.requests.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        let response = self.send(request);
        Box::pin(async move { Ok(response?.await?.map(Answer)) })
    }
}

/// The way of a request's body.
struct Sending {
    stream: SendStream<Bytes>,
    body: tonic::body::Body,
    /// Held back until it is known whether it is the last one, which then carries the end.
    message: Option<Bytes>,
}

impl Future for Sending {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        loop {
            let polled = Pin::new(&mut this.body).poll_frame(cx);
            let ended = matches!(polled, Poll::Ready(None));
            // An error means that the stream is reset, which its response tells.
            if let Some(message) = this.message.take()
                && this.stream.send_data(message, ended).is_err()
            {
                return Poll::Ready(());
            }
            match ready!(polled) {
                Some(Ok(frame)) => this.message = frame.into_data().ok(),
                Some(Err(_)) => {
                    this.stream.send_reset(h2::Reason::CANCEL);
                    return Poll::Ready(());
                }
                None => {
                    // Refused if the last message carried it.
                    let _ = this.stream.send_data(Bytes::new(), true);
                    return Poll::Ready(());
                }
            }
        }
    }
}

/// A response's body.
#[derive(Debug)]
pub(crate) struct Answer(RecvStream);

impl Body for Answer {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        match ready!(self.0.poll_data(cx)) {
            Some(Ok(data)) => {
                // Nothing waits here: what is handed on is read at once.
                let _ = self.0.flow_control().release_capacity(data.len());
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => {
                let trailers = ready!(self.0.poll_trailers(cx))?;
                Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}
