//! What is told of requests: the access log, if it is on, and a line for each that was slow.

use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ::http::HeaderMap;
use bytes::{Buf as _, Bytes};
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use tonic::Code;
use tonic::body::Body;

use crate::journey::Journey;
use crate::methods::METHODS;

/// Which requests have a line in the access log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessLog {
    /// None.
    #[default]
    Off,
    /// Those that were answered with another code than OK.
    Failures,
    /// All.
    All,
}

/// The name that lines of the access log have as their target.
pub const ACCESS_TARGET: &str = "access";

/// A line of the access log. It is written when the request is over: when this is dropped.
pub(super) struct Line {
    which: AccessLog,
    method: usize,
    from: Option<SocketAddr>,
    begun: Instant,
    received: Arc<AtomicU64>,
    sent: u64,
    /// None until the answer is complete: a client may go away before.
    code: Option<Code>,
}

impl Line {
    pub(super) fn begin(which: AccessLog, method: usize, from: Option<SocketAddr>) -> Option<Line> {
        (which != AccessLog::Off).then(|| Line {
            which,
            method,
            from,
            begun: Instant::now(),
            received: Arc::default(),
            sent: 0,
            code: None,
        })
    }

    /// Where the bytes of the request's body are counted.
    pub(super) fn received(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.received)
    }

    fn look_at(&mut self, headers: &HeaderMap) {
        if let Some(code) = headers.get("grpc-status") {
            self.code = Some(Code::from_bytes(code.as_bytes()));
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.which == AccessLog::Failures && matches!(self.code, None | Some(Code::Ok)) {
            return;
        }
        let (service, method, _) = METHODS[self.method];
        tracing::info!(
            target: ACCESS_TARGET,
            method = format_args!("/{service}/{method}"),
            from = self.from.map(tracing::field::display),
            code = self.code.map_or("gone", code_name),
            received = self.received.load(Ordering::Relaxed),
            sent = self.sent,
            took_ms = Milliseconds(self.begun.elapsed()).to_string(),
            "request"
        );
    }
}

/// Makes the end of an answer's body the end of its line.
pub(super) fn tell_at_end(response: ::http::Response<Body>, line: Option<Line>) -> ::http::Response<Body> {
    let Some(mut line) = line else { return response };
    line.look_at(response.headers());
    response.map(|body| Body::new(Sent { body, line }))
}

struct Sent {
    body: Body,
    line: Line,
}

impl HttpBody for Sent {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let sent = self.get_mut();
        let polled = Pin::new(&mut sent.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            sent.line.sent += frame.data_ref().map_or(0, |data| data.remaining() as u64);
            if let Some(trailers) = frame.trailers_ref() {
                sent.line.look_at(trailers);
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Lines about slow requests that are written in one second. When everything is slow, more say nothing more.
const SLOW_LINES_PER_SECOND: u32 = 5;

/// The slow-request log.
#[derive(Debug, Default)]
pub(crate) struct SlowLog(Mutex<SlowLines>);

#[derive(Debug, Default)]
struct SlowLines {
    second: Option<Instant>,
    written: u32,
    unwritten: u64,
}

impl SlowLines {
    /// Whether a line may be written at `now`; if so, how many were not since the last one.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.second.is_none_or(|second| now.saturating_duration_since(second) >= Duration::from_secs(1)) {
            self.second = Some(now);
            self.written = 0;
        }
        if self.written < SLOW_LINES_PER_SECOND {
            self.written += 1;
            Some(std::mem::take(&mut self.unwritten))
        } else {
            self.unwritten += 1;
            None
        }
    }
}

impl SlowLog {
    /// Tells of a request that took so long.
    pub(super) fn tell(
        &self,
        method: usize,
        from: Option<SocketAddr>,
        code: Code,
        took: Duration,
        journey: &Journey,
    ) {
        let Some(unwritten) = self.0.lock().admit(Instant::now()) else { return };
        let (service, method, _) = METHODS[method];
        tracing::warn!(
            method = format_args!("/{service}/{method}"),
            from = from.map(tracing::field::display),
            code = code_name(code),
            took_ms = %Milliseconds(took),
            waited_ms = %Milliseconds(journey.waited),
            at_nodes_ms = %Milliseconds(journey.at_nodes),
            attempts = journey.attempts,
            node = journey.node.map(|node| node.0),
            request = journey.request.map(tracing::field::display),
            trace_parent = journey.trace_parent.map(tracing::field::display),
            unwritten = (unwritten > 0).then_some(unwritten),
            "slow request"
        );
    }
}

struct Milliseconds(Duration);

impl fmt::Display for Milliseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1}", self.0.as_secs_f64() * 1e3)
    }
}

/// As grpc-go's metrics name it.
fn code_name(code: Code) -> &'static str {
    let number = usize::try_from(i32::from(code)).unwrap_or_default();
    crate::metrics::CODES.get(number).copied().unwrap_or("Unknown")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_lines_are_few_and_tell_how_many_more_there_were() {
        let mut lines = SlowLines::default();
        let now = Instant::now();
        let admitted: Vec<_> = (0..8).map(|_| lines.admit(now)).collect();
        let some = Some(0);
        assert_eq!(admitted, [some, some, some, some, some, None, None, None]);
        assert_eq!(lines.admit(now + Duration::from_secs(1)), Some(3));
    }
}
