//! A gateway's persistent link, as the node serves it: requests go to the inboxes of their groups, answers come back
//! in any order through one outbox.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use api::gaios::link::v1 as wire;
use api::gaios::link::v1::refused::Why;
use api::gaios::link::v1::response::Kind;
use bytes::Bytes;
use futures::StreamExt;
use prost::Message as _;
use tokio::io::AsyncRead;
use tokio::net::TcpStream;
use tokio_util::codec::FramedRead;
use tracing::{debug, info, warn};

use crate::group::GroupEvent;
use crate::node::Shared;
use crate::outbox::Outbox;
use crate::peer;
use consensus_core::{GroupId, NodeId};

/// Version of the protocol in `link.proto`.
const VERSION: u32 = 1;

/// Bytes of answers that may wait for a gateway before its link is cut. Gateways bound what they ask for, watches by
/// credit; one that lets this much pile up does not read.
const OUTBOX_BYTES: usize = 64 << 20;

static NEXT_LINK: AtomicU64 = AtomicU64::new(1);

/// A connected gateway.
#[derive(Debug)]
pub(crate) struct Link {
    /// Unique in this process.
    pub(crate) id: u64,
    outbox: Outbox,
}

impl Link {
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
        let id = NEXT_LINK.fetch_add(1, Ordering::Relaxed);
        Arc::new(Link { id, outbox: Outbox::new(OUTBOX_BYTES) })
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

/// `Refused`, as an answer to request `id`.
pub(crate) fn refusal(id: u64, term: u64, why: Why, leader: Option<NodeId>) -> wire::Response {
    let refused = wire::Refused { why: why.into(), leader: leader.map_or(0, |leader| leader.0) };
    wire::Response { id, term, kind: Some(Kind::Refused(refused)) }
}

/// Serves a gateway's connection, whose first frame was `first`, until either side ends it.
pub(crate) async fn accept(shared: Arc<Shared>, mut stream: TcpStream, first: Bytes, from: SocketAddr) {
    let Ok(hello) = wire::Hello::decode(first) else {
        warn!(%from, "refused a connection: its first frame is neither a gateway's nor a node's hello");
        return;
    };
    let refused = if hello.cluster_id != 0 && hello.cluster_id != shared.cluster {
        format!("this is cluster {:x}, not {:x}", shared.cluster, hello.cluster_id)
    } else {
        String::new()
    };
    let welcome = wire::Welcome {
        version: hello.version.min(VERSION),
        cluster_id: shared.cluster,
        node_id: shared.id.0,
        refused: refused.clone(),
        shard_map: shared.shard_map.clone(),
    };
    if peer::write_frame(&mut stream, &welcome.encode_to_vec()).await.is_err() {
        return;
    }
    if !refused.is_empty() {
        warn!(%from, gateway = hello.name, refused, "refused a gateway");
        return;
    }
    let link =
        Arc::new(Link { id: NEXT_LINK.fetch_add(1, Ordering::Relaxed), outbox: Outbox::new(OUTBOX_BYTES) });
    info!(%from, gateway = hello.name, link = link.id, "gateway linked");
    let (read, write) = stream.into_split();
    let reason = tokio::select! {
        result = link.outbox.run(write) => match result {
            Ok(()) => "it does not read its answers".to_owned(),
            Err(error) => error.to_string(),
        },
        result = read_frames(&shared, &link, read) => match result {
            Ok(()) => "closed by the gateway".to_owned(),
            Err(error) => error.to_string(),
        },
        () = shared.stopped.cancelled() => "stopping".to_owned(),
    };
    link.outbox.close();
    for group in shared.groups() {
        group.inbox.push_always(GroupEvent::LinkClosed(link.id));
    }
    info!(gateway = hello.name, link = link.id, reason, "gateway gone");
}

async fn read_frames(shared: &Shared, link: &Arc<Link>, read: impl AsyncRead + Unpin) -> io::Result<()> {
    let mut frames = FramedRead::with_capacity(read, peer::codec(), 64 << 10);
    while let Some(frame) = frames.next().await {
        let frame = frame?.freeze();
        let frame_bytes = frame.len();
        let frame = wire::GatewayFrame::decode(frame).map_err(io::Error::other)?;
        for batch in frame.groups {
            hand_in(shared, link, batch, frame_bytes);
        }
    }
    Ok(())
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
    debug!(group = batch.group, link = link.id, "overloaded");
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
            | Kind::WatchOpen(_)
            | Kind::WatchSync(_),
        )
        | None => true,
    }
}
