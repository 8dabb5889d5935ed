//! A gateway's persistent link, as the node serves it: requests go to the inboxes of their groups, answers come back
//! in any order through one outbox.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::gaios::link::v1::refused::Why;
use api::gaios::link::v1::response::Kind;
use api::gaios::link::{GATEWAY_FRAME_BYTES_MAX, VERSION, VERSION_LEAST, v1 as wire};
use consensus_core::{GroupId, NodeId};
use group_core::{Event, refusal};
use prost::Message as _;
use tls::Stream;
use tokio::io::AsyncRead;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::admission::{Source, TooMany};
use crate::budget::Whose;
use crate::frames::{self, HANDSHAKE_TIMEOUT};
use crate::gateways::Shown;
use crate::groups::GroupEvent;
use crate::health::Health;
use crate::link::Link;
use crate::patience::Patient;
use crate::reader::FrameReader;
use crate::relay;
use crate::shared::Shared;

/// A gateway that says nothing for so long is gone: it probes every few seconds, whatever else it says.
const SILENCE_MAX: Duration = Duration::from_secs(60);

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
    let answered = timeout(HANDSHAKE_TIMEOUT, frames::write_frame(&mut stream, &encoded)).await;
    if !matches!(answered, Ok(Ok(()))) {
        return;
    }
    if !welcome.refused.is_empty() {
        warn!(%from, gateway = hello.name, refused = welcome.refused, "refused a gateway");
        return;
    }
    let link = Arc::new(Link::new(&shared.budget));
    let shown = shared.gateways.come(&hello);
    info!(%from, gateway = hello.name, region = hello.region, link = link.id.0, "gateway linked");
    let (read, write) = stream.into_split();
    let whose = Whose::Gateway(Source::of(from.ip()));
    let read = Patient::new(read, SILENCE_MAX);
    let frames = FrameReader::new(read, GATEWAY_FRAME_BYTES_MAX, whose, &shared.budget);
    let tell_room = async {
        loop {
            link.outbox.drained().await;
            for group in shared.groups.all().values() {
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
        result = read_frames(shared, &link, shown.as_ref(), frames) => match result {
            Ok(()) => "closed by the gateway".to_owned(),
            Err(error) => error.to_string(),
        },
        _ = shared.seat.stepped_aside() => "this node has stepped aside".to_owned(),
        () = shared.stopped.cancelled() => "stopping".to_owned(),
    };
    link.outbox.close();
    for group in shared.groups.all().values() {
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
    mut frames: FrameReader<impl AsyncRead + Unpin>,
) -> io::Result<()> {
    while let Some(frame) = frames.next().await? {
        let frame_bytes = frame.len();
        let frame = wire::GatewayFrame::decode(frame).map_err(io::Error::other)?;
        for mut batch in frame.groups {
            let group = GroupId(batch.group);
            batch.requests.retain_mut(|request| !answer_for_node(shared, link, shown, group, request));
            hand_in(shared, link, batch, frame_bytes);
        }
    }
    Ok(())
}

/// Answers what is asked of the node rather than of a group. Returns whether that was it.
fn answer_for_node(
    shared: &Arc<Shared>,
    link: &Arc<Link>,
    shown: Option<&Shown>,
    group: GroupId,
    request: &mut wire::Request,
) -> bool {
    let kind = if let Some(wire::request::Kind::Ping(ping)) = &mut request.kind {
        if let (Some(shown), Some(figures)) = (shown, ping.figures.take()) {
            shown.tell(figures);
        }
        Kind::Pong(wire::Pong {})
    } else if let Some(wire::request::Kind::NodeStatus(_)) = &request.kind {
        Kind::NodeStatus(Health::of(Arc::clone(shared)).status())
    } else if let Some(wire::request::Kind::Gateways(_)) = &request.kind {
        Kind::Gateways(shared.gateways.list())
    } else {
        return false;
    };
    // Clients are told it with every answer.
    let told = shared.groups.get(group).and_then(|group| *group.told.lock());
    let term = told.map_or(0, |told| told.term);
    link.send(vec![wire::Response { id: request.id, term, kind: Some(kind) }]);
    true
}

fn hand_in(shared: &Shared, link: &Arc<Link>, batch: wire::GroupRequests, frame_bytes: usize) {
    let Some(group) = shared.groups.get(GroupId(batch.group)) else {
        let refusals = batch.requests.iter().filter(|request| wants_answer(request));
        link.send(refusals.map(|request| refusal(request.id, 0, Why::NoGroup, None)).collect());
        return;
    };
    let event = GroupEvent::Requests { link: Arc::clone(link), requests: batch.requests };
    let pushed = if shared.budget.is_used_up() { Err(event) } else { group.inbox.push(event, frame_bytes) };
    let Err(GroupEvent::Requests { requests, .. }) = pushed else { return };
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
        Some(Kind::WatchCredit(_) | Kind::WatchClose(_) | Kind::Cancel(_)) => false,
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
            | Kind::NodeStatus(_)
            | Kind::Ping(_),
        )
        | None => true,
    }
}
