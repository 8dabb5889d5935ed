//! The service Watch. Served by hand rather than by generated code, so that the events of a response can be encoded
//! once for many watchers, and those of a large one as the client takes them ([`body`]).

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use ::http::{Request, Response};
use api::etcdserverpb as pb;
use futures::Stream;
use futures::stream::{FuturesUnordered, StreamExt as _};
use gateway_core::watch::{Frame, Told, Watchers};
use http_body::Body as HttpBody;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tonic::body::Body;
use tonic::server::{Grpc, StreamingService};
use tonic::{Status, Streaming};

use super::left::spell_out;
use super::sizes::{COMPRESSION, sizes_of_too_large};
use super::{Caller, StreamEnd};
use crate::domain::{Domain, DomainStatus};
use crate::random::random_u32;
use crate::watch::StreamFeeds;

mod body;
mod messages;

use messages::{Encoded, WatchCodec};

/// Serves one watch stream.
pub(super) async fn call<D: Domain, B>(caller: &Arc<Caller<D>>, request: Request<B>) -> Response<Body>
where
    B: HttpBody<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    let mut grpc = Grpc::new(WatchCodec)
        .apply_max_message_size_config(Some(caller.options.message_bytes_max()), Some(usize::MAX))
        .accept_compressed(COMPRESSION);
    spell_out(grpc.streaming(Service(Arc::clone(caller)), request).await)
}

struct Service<D>(Arc<Caller<D>>);

type Requests = Box<Streaming<pb::WatchRequest>>;
/// What the library sees of the responses: none.
type Responses = futures::stream::Empty<Result<Infallible, Status>>;
type Answering = Pin<Box<dyn Future<Output = Result<tonic::Response<Responses>, Status>> + Send>>;

impl<D: Domain> StreamingService<pb::WatchRequest> for Service<D> {
    type Response = Infallible;
    type ResponseStream = Responses;
    type Future = Answering;

    fn call(&mut self, request: tonic::Request<Streaming<pb::WatchRequest>>) -> Answering {
        let end = StreamEnd::new(&self.0, request.metadata());
        let stream = WatchStream::new(Arc::clone(&self.0), request.into_inner(), end);
        Box::pin(std::future::ready(Ok(body::leave(stream, Arc::clone(self.0.client())))))
    }
}

/// A client's stream.
struct WatchStream<D: Domain> {
    door: Arc<Caller<D>>,
    watchers: Watchers<StreamFeeds<D>>,
    /// The rest of a response that was cut: the parts follow each other.
    parts: VecDeque<Encoded>,
    /// What else there is to wait for. Each is looked at only when it has woken the stream, which costs nothing where
    /// all that happens is events.
    others: FuturesUnordered<Pin<Box<dyn Future<Output = Woken> + Send>>>,
    /// The client's requests, while nobody waits for the next one.
    requests: Option<Requests>,
    /// Ticks come as long as a watcher wants to be told of progress.
    ticking: bool,
    /// A replica is asked where it is, for want of a leader.
    asking: bool,
    counted: usize,
    ended: bool,
}

enum Woken {
    /// None: the client has sent its last request; what it asked for goes on.
    Request(Result<Option<pb::WatchRequest>, Status>, Requests),
    End(Status),
    Tick(Interval),
    /// What a replica knows.
    Known(Option<DomainStatus>),
}

impl<D: Domain> WatchStream<D> {
    fn new(
        door: Arc<Caller<D>>,
        requests: Streaming<pb::WatchRequest>,
        mut end: StreamEnd,
    ) -> WatchStream<D> {
        door.metrics.watch_streams.inc();
        let watchers = Watchers::new(StreamFeeds::new(Arc::clone(&door.hub)));
        let mut stream = WatchStream {
            door,
            watchers,
            parts: VecDeque::new(),
            others: FuturesUnordered::new(),
            requests: Some(Box::new(requests)),
            ticking: false,
            asking: false,
            counted: 0,
            ended: false,
        };
        stream.wait_for(async move { Woken::End(end.ended().await) });
        stream
    }

    fn wait_for(&mut self, other: impl Future<Output = Woken> + Send + 'static) {
        self.others.push(Box::pin(other));
    }

    /// Waits for the next request, unless too much is unanswered. Responses that leave change that, nothing else does.
    fn read_on(&mut self) {
        if !self.watchers.is_congested()
            && let Some(mut requests) = self.requests.take()
        {
            self.wait_for(async move { Woken::Request(requests.message().await, requests) });
        }
    }

    /// Takes in what happened beside events. An error ends the stream.
    fn handle(&mut self, woken: Woken) -> Result<(), Status> {
        match woken {
            Woken::Request(Ok(Some(request)), requests) => {
                self.requests = Some(requests);
                let (revision, term) = self.door.seen();
                self.watchers.handle_revision(revision, term);
                messages::take_in(&mut self.watchers, request);
                self.start_ticks();
                self.ask_around();
            }
            Woken::Request(Ok(None), _) => {}
            Woken::Request(Err(status), _) => return Err(in_the_words_of_grpc_go(status)),
            Woken::End(status) => return Err(status),
            Woken::Known(status) => {
                self.asking = false;
                if let Some(status) = status.filter(|_| !*self.door.leader_known.borrow()) {
                    self.watchers.handle_leaderless(status.revision, status.compact_revision, status.term);
                }
            }
            Woken::Tick(ticks) => {
                self.watchers.handle_tick();
                self.ticking = self.watchers.wants_ticks();
                if self.ticking {
                    self.wait_for(next_tick(ticks));
                }
            }
        }
        Ok(())
    }

    /// Without a leader nobody can say from where on a new watch sees everything. etcd's members create it all the same,
    /// from where they are.
    fn ask_around(&mut self) {
        if self.watchers.is_creating() && !self.asking && !*self.door.leader_known.borrow() {
            self.asking = true;
            let door = Arc::clone(&self.door);
            self.wait_for(async move { Woken::Known(door.domain.status(&door.door().context()).await.ok()) });
        }
    }

    /// Starts the ticks when the first watcher wants them; up to a tenth later than the interval, so that streams do
    /// not tick together.
    fn start_ticks(&mut self) {
        if !self.ticking && self.watchers.wants_ticks() {
            let interval = self.door.options.progress_interval;
            let jitter = interval.mul_f64(0.1 * f64::from(random_u32()) / f64::from(u32::MAX));
            let mut ticks = interval_at(Instant::now() + interval + jitter, interval + jitter);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            self.ticking = true;
            self.wait_for(next_tick(ticks));
        }
    }

    /// The first response of a frame; the others, if it is cut, wait in `parts`.
    fn encoded(&mut self, frame: Frame) -> Encoded {
        let Frame { told, stamp } = frame;
        if let Told::Events(events) = &told {
            self.door.metrics.events.inc_by(events.event_count as u64);
        }
        let header = self.door.header(stamp.revision(), stamp.term());
        messages::encode(told, header, self.door.options.message_bytes_max(), &mut self.parts)
    }

    fn count(&mut self) {
        let now = self.watchers.count();
        if now != self.counted {
            self.door.metrics.watchers.add(now as i64 - self.counted as i64);
            self.counted = now;
        }
    }
}

async fn next_tick(mut ticks: Interval) -> Woken {
    ticks.tick().await;
    Woken::Tick(ticks)
}

impl<D: Domain> Stream for WatchStream<D> {
    type Item = Result<Encoded, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let stream = self.get_mut();
        if stream.ended {
            return Poll::Ready(None);
        }
        if let Some(part) = stream.parts.pop_front() {
            return Poll::Ready(Some(Ok(part)));
        }
        loop {
            stream.read_on();
            // Before the events, which may be there whenever one looks.
            if let Poll::Ready(Some(woken)) = stream.others.poll_next_unpin(cx) {
                if let Err(status) = stream.handle(woken) {
                    stream.ended = true;
                    return Poll::Ready(Some(Err(status)));
                }
                continue;
            }
            let frame = stream.watchers.next_frame();
            stream.count();
            if let Some(frame) = frame {
                return Poll::Ready(Some(Ok(stream.encoded(frame))));
            }
            if stream.watchers.feeds().inbox().poll_filled(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl<D: Domain> Drop for WatchStream<D> {
    fn drop(&mut self) {
        self.door.metrics.watch_streams.dec();
        self.door.metrics.watchers.sub(self.counted as i64);
    }
}

fn in_the_words_of_grpc_go(status: Status) -> Status {
    match sizes_of_too_large(status.message()) {
        Some((size, limit)) => {
            Status::resource_exhausted(format!("grpc: received message larger than max ({size} vs. {limit})"))
        }
        None => status,
    }
}
