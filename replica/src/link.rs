//! A gateway's persistent link, as the node serves it: requests go to the inboxes of their groups, answers come back
//! in any order through one outbox.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use api::gaios::link::v1::refused::Why;
use api::gaios::link::v1::response::Kind;
use api::gaios::link::{GATEWAY_FRAME_BYTES_MAX, NODE_FRAME_BYTES_MAX, VERSION, VERSION_LEAST, v1 as wire};
use bytes::{BufMut, BytesMut};
use futures::StreamExt;
use group_core::{Event, LinkId, refusal};
use keyspace::Outcome;
use prost::Message as _;
use tls::Stream;
use tokio::io::AsyncRead;
use tokio::time::timeout;
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};
use tracing::{debug, info, warn};

use crate::admission::TooMany;
use crate::gateways::Shown;
use crate::group::GroupEvent;
use crate::node::{Health, Shared};
use crate::outbox::Outbox;
use crate::patience::Patient;
use crate::peer::{self, HANDSHAKE_TIMEOUT};
use crate::relay;
use consensus_core::{GroupId, NodeId};

/// Bytes of answers that may wait for a gateway before its link is cut. Queries are answered and large answers made while
/// there is room, watches are bounded by credit, and what else there is to say is small.
const OUTBOX_BYTES: usize = 1 << 30;
/// No further query is answered while more than this waits: as much as a gateway takes in some milliseconds.
const ROOM_BYTES: usize = 8 << 20;
/// The largest answer, in a frame of its own.
const ANSWER_BYTES_MAX: usize = NODE_FRAME_BYTES_MAX - 1024;

/// A gateway that says nothing for so long is gone: it probes every few seconds, whatever else it says.
const SILENCE_MAX: Duration = Duration::from_secs(60);

static NEXT_LINK: AtomicU64 = AtomicU64::new(1);

/// A connected gateway.
#[derive(Debug)]
pub(crate) struct Link {
    /// Unique in this process.
    pub(crate) id: LinkId,
    outbox: Outbox,
    /// Large answers being encoded.
    large: AtomicUsize,
}

impl Link {
    fn new() -> Link {
        Link {
            id: LinkId(NEXT_LINK.fetch_add(1, Ordering::Relaxed)),
            outbox: Outbox::new(OUTBOX_BYTES, ROOM_BYTES),
            large: AtomicUsize::new(0),
        }
    }

    /// Whether another query should be answered now.
    pub(crate) fn has_room(&self) -> bool {
        self.large.load(Ordering::Acquire) == 0 && self.outbox.has_room()
    }

    /// A large answer is being made: there is no room until [`Link::end_large`].
    pub(crate) fn begin_large(&self) {
        self.large.fetch_add(1, Ordering::Relaxed);
    }

    /// See [`Link::begin_large`].
    pub(crate) fn end_large(&self) {
        if self.large.fetch_sub(1, Ordering::Release) == 1 {
            // Other groups may have waited for this, too.
            self.outbox.tell_drained();
        }
    }

    /// Encodes and sends a large answer to request `id`; takes its time. One that no gateway would accept is refused.
    pub(crate) fn send_large(&self, id: u64, term: u64, outcome: &Outcome) {
        let mut encoded = BytesMut::new();
        keyspace::encode_outcome(outcome, &mut encoded);
        let response = if encoded.len() > ANSWER_BYTES_MAX {
            refusal(id, term, Why::AnswerTooLarge, None)
        } else {
            wire::Response { id, term, kind: Some(Kind::Reply(encoded.freeze())) }
        };
        let frame = wire::NodeFrame { responses: vec![response] };
        let length = frame.encoded_len();
        let mut bytes = BytesMut::with_capacity(4 + length);
        bytes.put_u32(u32::try_from(length).expect("answers are bounded"));
        frame.encode(&mut bytes).expect("a BytesMut grows as needed");
        if self.outbox.push_large(bytes.freeze()).is_err() {
            self.outbox.close();
        }
    }

    /// Sends answers as one frame. A gateway that is gone, or does not read, loses its link; it asks again elsewhere.
    pub(crate) fn send(&self, responses: Vec<wire::Response>) {
        if responses.is_empty() {
            return;
        }
        let frame = wire::NodeFrame { responses };
        let sent = self.outbox.push(|out| {
            frame.encode(out).expect("a BytesMut grows as needed");
        });
        if sent.is_err() {
            self.outbox.close();
        }
    }

    /// A link without a socket.
    #[cfg(test)]
    pub(crate) fn unconnected() -> Arc<Link> {
        Arc::new(Link::new())
    }

    /// What waits for the socket.
    #[cfg(test)]
    pub(crate) fn take_sent(&self) -> Vec<wire::Response> {
        let frames = self.outbox.take();
        frames
            .into_iter()
            .flat_map(|frame| wire::NodeFrame::decode(frame).expect("what was encoded here").responses)
            .collect()
    }
}

/// Serves a gateway's connection until either side ends it. Without room for it, it is told so.
pub(crate) async fn serve(
    shared: &Arc<Shared>,
    mut stream: Stream,
    hello: wire::Hello,
    room: Result<(), TooMany>,
    from: SocketAddr,
) {
    if room.is_ok() && hello.to != 0 && NodeId(hello.to) != shared.id {
        relay::pass_on(shared, stream, hello, from).await;
        return;
    }
    let welcome = welcome(shared, &hello, room);
    let encoded = welcome.encode_to_vec();
    let answered = timeout(HANDSHAKE_TIMEOUT, peer::write_frame(&mut stream, &encoded)).await;
    if !matches!(answered, Ok(Ok(()))) {
        return;
    }
    if !welcome.refused.is_empty() {
        warn!(%from, gateway = hello.name, refused = welcome.refused, "refused a gateway");
        return;
    }
    let link = Arc::new(Link::new());
    let shown = shared.gateways.come(&hello);
    info!(%from, gateway = hello.name, region = hello.region, link = link.id.0, "gateway linked");
    let (read, write) = stream.into_split();
    let read = Patient::new(read, SILENCE_MAX);
    let tell_room = async {
        loop {
            link.outbox.drained().await;
            for group in shared.groups() {
                group.tell(Event::LinkDrained);
            }
        }
    };
    let reason = tokio::select! {
        reason = tell_room => reason,
        result = link.outbox.run(write) => match result {
            Ok(()) => "it does not read its answers".to_owned(),
            Err(error) => error.to_string(),
        },
        result = read_frames(shared, &link, shown.as_ref(), read) => match result {
            Ok(()) => "closed by the gateway".to_owned(),
            Err(error) => error.to_string(),
        },
        _ = shared.seat.stepped_aside() => "this node has stepped aside".to_owned(),
        () = shared.stopped.cancelled() => "stopping".to_owned(),
    };
    link.outbox.close();
    for group in shared.groups() {
        group.tell(Event::LinkClosed(link.id));
    }
    info!(gateway = hello.name, link = link.id.0, reason, "gateway gone");
}

/// A refusal tells no more than why.
fn welcome(shared: &Shared, hello: &wire::Hello, room: Result<(), TooMany>) -> wire::Welcome {
    let version = hello.version.min(VERSION);
    let refused = if hello.cluster_id != shared.cluster {
        "this is another cluster".to_owned()
    } else if version < VERSION_LEAST {
        format!("it speaks version {version} of the link protocol, and this node needs {VERSION_LEAST}")
    } else if room.is_err() {
        "there are too many gateways".to_owned()
    } else {
        return wire::Welcome {
            version,
            cluster_id: shared.cluster,
            node_id: shared.id.0,
            refused: String::new(),
            shard_map: shared.shard_map.clone(),
            region: shared.region.clone(),
            zone: shared.zone.clone(),
        };
    };
    wire::Welcome { version, refused, ..wire::Welcome::default() }
}

async fn read_frames(
    shared: &Arc<Shared>,
    link: &Arc<Link>,
    shown: Option<&Shown>,
    read: impl AsyncRead + Unpin,
) -> io::Result<()> {
    let codec = LengthDelimitedCodec::builder().max_frame_length(GATEWAY_FRAME_BYTES_MAX).new_codec();
    let mut frames = FramedRead::with_capacity(read, codec, 64 << 10);
    while let Some(frame) = frames.next().await {
        let frame = frame?.freeze();
        let frame_bytes = frame.len();
        let frame = wire::GatewayFrame::decode(frame).map_err(io::Error::other)?;
        for mut batch in frame.groups {
            let group = GroupId(batch.group);
            batch.requests.retain_mut(|request| {
                take_figures(shown, request);
                !answer_for_node(shared, link, group, request)
            });
            hand_in(shared, link, batch, frame_bytes);
        }
    }
    Ok(())
}

/// Takes in what a gateway says of itself.
fn take_figures(shown: Option<&Shown>, request: &mut wire::Request) {
    if let Some(wire::request::Kind::Status(probe)) = &mut request.kind
        && let (Some(shown), Some(figures)) = (shown, probe.figures.take())
    {
        shown.tell(figures);
    }
}

/// Answers what is asked of the node rather than of a group. Returns whether that was it.
fn answer_for_node(shared: &Arc<Shared>, link: &Arc<Link>, group: GroupId, request: &wire::Request) -> bool {
    let kind = if let Some(wire::request::Kind::NodeStatus(_)) = &request.kind {
        Kind::NodeStatus(Health { shared: Arc::clone(shared) }.status())
    } else if let Some(wire::request::Kind::Gateways(_)) = &request.kind {
        Kind::Gateways(shared.gateways.list())
    } else {
        return false;
    };
    // Clients are told it with every answer.
    let told = shared.group(group).and_then(|group| *group.told.lock());
    let term = told.map_or(0, |told| told.term);
    link.send(vec![wire::Response { id: request.id, term, kind: Some(kind) }]);
    true
}

fn hand_in(shared: &Shared, link: &Arc<Link>, batch: wire::GroupRequests, frame_bytes: usize) {
    let Some(group) = shared.group(GroupId(batch.group)) else {
        let refusals = batch.requests.iter().filter(|request| wants_answer(request));
        link.send(refusals.map(|request| refusal(request.id, 0, Why::NoGroup, None)).collect());
        return;
    };
    let event = GroupEvent::Requests { link: Arc::clone(link), requests: batch.requests };
    let Err(event) = group.inbox.push(event, frame_bytes) else { return };
    let GroupEvent::Requests { requests, .. } = event else { return };
    debug!(group = batch.group, link = link.id.0, "overloaded");
    let (answerable, rest): (Vec<_>, Vec<_>) = requests.into_iter().partition(wants_answer);
    link.send(answerable.iter().map(|request| refusal(request.id, 0, Why::Overloaded, None)).collect());
    // What nobody is told the loss of must not be lost; it is small, and each is bounded by an earlier watch.
    if !rest.is_empty() {
        group.inbox.push_always(GroupEvent::Requests { link: Arc::clone(link), requests: rest });
    }
}

fn wants_answer(request: &wire::Request) -> bool {
    use wire::request::Kind;
    match &request.kind {
        Some(Kind::WatchCredit(_) | Kind::WatchClose(_)) => false,
        Some(
            Kind::Write(_)
            | Kind::Read(_)
            | Kind::OpenSession(_)
            | Kind::KeepAlive(_)
            | Kind::Status(_)
            | Kind::Gateways(_)
            | Kind::LeaderControl(_)
            | Kind::WatchOpen(_)
            | Kind::WatchSync(_)
            | Kind::NodeStatus(_),
        )
        | None => true,
    }
}
