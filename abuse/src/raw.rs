//! HTTP/2 and gRPC by hand, for what no client of good manners would do.

use api::etcdserverpb as pb;
use bench::Endpoint;
use bytes::{BufMut, Bytes, BytesMut};
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request};
use prost::Message;
use tokio::task::JoinSet;
use tonic::Code;

use crate::Problem;

pub(crate) const RANGE: &str = "etcdserverpb.KV/Range";
pub(crate) const PUT: &str = "etcdserverpb.KV/Put";
pub(crate) const WATCH: &str = "etcdserverpb.Watch/Watch";

/// A connection. It is closed when this is dropped, whatever is under way on it. A server may send as much as HTTP/2 begins
/// with, 64 KiB, before it is read.
pub(crate) struct Raw {
    requests: SendRequest<Bytes>,
    authority: String,
    _connection: JoinSet<()>,
}

impl Raw {
    pub(crate) async fn open(endpoint: &Endpoint) -> Result<Raw, Problem> {
        let stream = endpoint.connect().await.map_err(|error| format!("connect: {error}"))?;
        let mut builder = Builder::new();
        builder.initial_max_send_streams(100).enable_push(false).max_send_buffer_size(16 << 20);
        let shaken = builder.handshake(stream).await;
        let (requests, connection) = shaken.map_err(|error| format!("connect: {error}"))?;
        let mut task = JoinSet::new();
        // Its end shows in every request.
        task.spawn(async move { drop(connection.await) });
        Ok(Raw { requests, authority: endpoint.authority().to_string(), _connection: task })
    }

    /// Begins a request as soon as the server takes another stream.
    pub(crate) async fn begin(&self, method: &str) -> Result<(ResponseFuture, SendStream<Bytes>), Problem> {
        let requests = self.requests.clone().ready().await;
        let mut requests = requests.map_err(|error| error.to_string())?;
        let request = Request::post(format!("http://{}/{method}", self.authority))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .map_err(|error| error.to_string())?;
        requests.send_request(request, false).map_err(|error| error.to_string())
    }

    /// Sends a whole request.
    pub(crate) async fn ask(&self, method: &str, body: Bytes) -> Result<ResponseFuture, Problem> {
        let (answer, mut stream) = self.begin(method).await?;
        stream.send_data(body, true).map_err(|error| error.to_string())?;
        Ok(answer)
    }
}

/// A message as gRPC frames it.
pub(crate) fn framed(message: &impl Message) -> Bytes {
    let mut frame = BytesMut::new();
    put_framed(&mut frame, message);
    frame.freeze()
}

/// The same, behind others.
pub(crate) fn put_framed(frame: &mut BytesMut, message: &impl Message) {
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.encoded_len()).expect("we send no message of 4 GiB"));
    message.encode(frame).expect("the buffer grows");
}

/// A list of everything under a prefix.
pub(crate) fn list(prefix: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: prefix.to_owned().into(), range_end: end_of(prefix), ..Default::default() }
}

/// The first key behind all that begin with `prefix`.
pub(crate) fn end_of(prefix: &str) -> Bytes {
    let mut end = prefix.as_bytes().to_vec();
    // Our prefixes end with a slash.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}

/// What an answer ends with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) code: Code,
    /// As it is on the wire.
    pub(crate) message: String,
}

impl Ending {
    fn of(headers: &HeaderMap) -> Option<Ending> {
        let code = Code::from_bytes(headers.get("grpc-status")?.as_bytes());
        let message = headers.get("grpc-message").map(|message| message.as_bytes()).unwrap_or_default();
        Some(Ending { code, message: String::from_utf8_lossy(message).into_owned() })
    }

    /// Whether it is how servers say that they have too much to do. etcd says it with the code `Unknown`, so that clients know it by
    /// its text.
    pub(crate) fn is_shed(&self) -> bool {
        self.code == Code::ResourceExhausted || self.message.replace("%20", " ").contains("too many requests")
    }
}

/// Reads an answer to its end, and gives what it ends with.
pub(crate) async fn ending(answer: ResponseFuture) -> Result<Ending, h2::Error> {
    let (head, mut body) = answer.await?.into_parts();
    if let Some(ending) = Ending::of(&head.headers) {
        return Ok(ending);
    }
    while let Some(data) = next(&mut body).await? {
        drop(data);
    }
    let trailers = body.trailers().await?;
    let nothing = || Ending { code: Code::Unknown, message: "no status".to_owned() };
    Ok(trailers.as_ref().and_then(Ending::of).unwrap_or_else(nothing))
}

/// The next piece of a body; what was read may be sent again.
pub(crate) async fn next(body: &mut RecvStream) -> Result<Option<Bytes>, h2::Error> {
    let Some(data) = body.data().await.transpose()? else { return Ok(None) };
    body.flow_control().release_capacity(data.len())?;
    Ok(Some(data))
}

/// Tells how many messages a stream of gRPC frames has, piece by piece.
#[derive(Debug, Default)]
pub(crate) struct Counter {
    /// Bytes of the message under way that are still to come.
    missing: usize,
    head: BytesMut,
    pub(crate) messages: usize,
}

impl Counter {
    pub(crate) fn add(&mut self, mut data: Bytes) {
        const HEAD: usize = 5;
        while !data.is_empty() {
            if self.missing > 0 {
                let taken = self.missing.min(data.len());
                let _ = data.split_to(taken);
                self.missing -= taken;
                self.messages += usize::from(self.missing == 0);
                continue;
            }
            let wanted = (HEAD - self.head.len()).min(data.len());
            self.head.extend_from_slice(&data.split_to(wanted));
            if let [_, a, b, c, d] = self.head[..] {
                self.missing = u32::from_be_bytes([a, b, c, d]) as usize;
                self.messages += usize::from(self.missing == 0);
                self.head.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let mut frames = BytesMut::new();
        for value in [&b""[..], b"v", &[7; 300]] {
            put_framed(
                &mut frames,
                &pb::PutRequest { value: Bytes::copy_from_slice(value), ..Default::default() },
            );
        }
        let frames = frames.freeze();
        for step in [1, 2, 3, 7, 1000] {
            let mut counter = Counter::default();
            (0..frames.len())
                .step_by(step)
                .for_each(|at| counter.add(frames.slice(at..frames.len().min(at + step))));
            assert_eq!((counter.messages, counter.missing), (3, 0), "in pieces of {step}");
        }
    }

    #[test]
    fn what_is_shed_is_told_by_its_text() {
        let ending = |code: &'static str, message: &'static str| {
            let headers = [("grpc-status", code), ("grpc-message", message)];
            let headers = headers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
            Ending::of(&HeaderMap::from_iter(headers)).unwrap()
        };
        assert!(ending("2", "etcdserver:%20too%20many%20requests").is_shed());
        assert!(ending("2", "etcdserver: too many requests").is_shed());
        assert!(ending("8", "").is_shed());
        assert!(!ending("2", "etcdserver:%20request%20timed%20out").is_shed());
    }

    #[test]
    fn a_prefix_ends_where_the_next_begins() {
        assert_eq!(&end_of("hostile/")[..], b"hostile0");
    }
}
