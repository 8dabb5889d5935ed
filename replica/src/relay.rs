//! Relays: a gateway that cannot reach a node asks another to pass its connection on. Where the network parts a gateway
//! and the leader only, its clients are served all the same. The bytes are not looked at: both ends are as on a link of
//! their own.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use api::gaios::link::v1 as wire;
use consensus_core::NodeId;
use discovery::Discovery;
use parking_lot::Mutex;
use prost::Message as _;
use tls::Stream;
use tokio::io::{AsyncRead, AsyncWrite, BufReader, copy_buf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::io::InspectReader;
use tracing::debug;

use crate::frames;
use crate::shared::Shared;

const BUFFER_BYTES: usize = 64 << 10;
/// When nothing came from either side, or none of it could be handed on, for so long, one of them is gone. A gateway that
/// hears nothing for ten seconds asks for a sign of life, and its node answers.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Connects a gateway with the node it means, until either ends it.
///
/// With certificates the gateway makes a session of its own with the node it means, inside the one with this node, which
/// copies what it can neither read nor forge. A welcome that tells nothing says that the way is open.
pub(crate) async fn pass_on(shared: &Shared, mut gateway: Stream, hello: wire::Hello, from: SocketAddr) {
    let name = hello.name.clone();
    let to = NodeId(hello.to);
    let Ok(_counted) = shared.door.relays.try_acquire() else {
        return refuse(&mut gateway, "too many connections are passed on already".to_owned()).await;
    };
    let Some(peer) = shared.peers.get(&to) else {
        return refuse(&mut gateway, format!("there is no node {} in the configuration", to.0)).await;
    };
    let mut first = [0];
    let node = tokio::select! {
        opened = open(&shared.discovery, &peer.address, hello, gateway.is_tls()) => opened,
        // It says nothing before it is welcomed, so it has given up.
        _ = gateway.socket().peek(&mut first) => return,
        () = shared.stopped.cancelled() => return,
    };
    let node = match node {
        Ok(node) => node,
        Err(error) => {
            return refuse(&mut gateway, format!("cannot reach node {}: {error}", to.0)).await;
        }
    };
    if gateway.is_tls() {
        let open = wire::Welcome::default().encode_to_vec();
        let told = timeout(frames::HANDSHAKE_TIMEOUT, frames::write_frame(&mut gateway, &open)).await;
        if !matches!(told, Ok(Ok(()))) {
            return;
        }
    }
    debug!(%from, gateway = name, to = to.0, "passing a gateway's connection on to a node");
    shared.metrics.relayed_links.inc();
    let ended = tokio::select! {
        ended = carry(gateway.into_split(), node.into_split()) => ended,
        () = shared.stopped.cancelled() => Ok(()),
    };
    shared.metrics.relayed_links.dec();
    let reason = ended.map_or_else(|error| error.to_string(), |()| "closed".to_owned());
    debug!(gateway = name, to = to.0, reason, "a connection passed on has ended");
}

/// Copies both ways. Neither end closes one direction alone: with the first, both are over.
async fn carry(
    (from_gateway, mut to_gateway): (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    (from_node, mut to_node): (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
) -> io::Result<()> {
    // What is read was handed on before, but for a buffer.
    let progress = Mutex::new(Instant::now());
    let note = |_: &[u8]| *progress.lock() = Instant::now();
    let mut from_gateway = BufReader::with_capacity(BUFFER_BYTES, InspectReader::new(from_gateway, note));
    let mut from_node = BufReader::with_capacity(BUFFER_BYTES, InspectReader::new(from_node, note));
    let silence = async {
        loop {
            let end = *progress.lock() + SILENCE_MAX;
            if end <= Instant::now() {
                return;
            }
            sleep_until(end).await;
        }
    };
    tokio::select! {
        copied = copy_buf(&mut from_gateway, &mut to_node) => copied.map(drop),
        copied = copy_buf(&mut from_node, &mut to_gateway) => copied.map(drop),
        () = silence => Err(io::Error::new(io::ErrorKind::TimedOut, format!("nothing went through for {SILENCE_MAX:?}"))),
    }
}

/// Goes no further than to the node that is meant: what answers there answers for itself.
async fn open(
    discovery: &Discovery,
    address: &str,
    hello: wire::Hello,
    in_a_session: bool,
) -> io::Result<TcpStream> {
    let mut stream = frames::connect(discovery, address).await?;
    // In a session of its own, the gateway says that itself.
    if !in_a_session {
        frames::write_frame(&mut stream, &wire::Hello { to: 0, ..hello }.encode_to_vec()).await?;
    }
    Ok(stream)
}

async fn refuse(gateway: &mut Stream, refused: String) {
    debug!(refused, "a connection is not passed on");
    let welcome = wire::Welcome { refused, ..wire::Welcome::default() };
    // If it is gone, it needs no answer.
    let _ = frames::write_frame(gateway, &welcome.encode_to_vec()).await;
}

#[cfg(test)]
mod tests {
    use api::gaios::link::VERSION;
    use std::net::TcpListener;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::timeout;

    use super::*;
    use crate::node::Node;
    use crate::start::NodeOptions;
    use crate::testing::{CLUSTER, PATIENCE, links, one_of, options, take_place};
    use tls::Holder;
    use tls::make::{Authority, Validity};

    /// As a gateway.
    async fn say_hello(address: &str, to: u32) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let hello = wire::Hello {
            version: VERSION,
            cluster_id: CLUSTER,
            name: "test".to_owned(),
            to,
            ..Default::default()
        };
        frames::write_frame(&mut stream, &hello.encode_to_vec()).await.unwrap();
        stream
    }

    /// The connection and the welcome.
    async fn link(address: &str, to: u32) -> (TcpStream, wire::Welcome) {
        let mut stream = say_hello(address, to).await;
        let welcome = timeout(PATIENCE, frames::read_frame(&mut stream, 4096)).await.unwrap().unwrap();
        (stream, wire::Welcome::decode(welcome).unwrap())
    }

    #[tokio::test]
    async fn a_connection_is_passed_on_to_the_node_that_is_meant() {
        // Connections begin at 127.0.0.1: none takes the port of the node that is stopped.
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.2:0").unwrap());
        let nodes: Vec<_> = (1..)
            .map(NodeId)
            .zip(listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()))
            .collect();
        let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let mut started = Vec::new();
        for ((id, listener), dir) in (1..).map(NodeId).zip(listeners).zip(&dirs) {
            take_place(id, dir.path());
            started.push(Node::start(one_of(nodes.clone(), id, listener, dir.path())).await.unwrap());
        }
        let second = nodes[1].1.as_str();

        for (to, answers) in [(0, 2), (2, 2), (1, 1)] {
            let (_, welcome) = link(second, to).await;
            assert_eq!((welcome.node_id, welcome.refused.as_str()), (answers, ""), "to {to}");
        }
        let (_, welcome) = link(second, 7).await;
        assert_eq!(welcome.refused, "there is no node 7 in the configuration");

        // Requests and answers go through.
        let (mut stream, _) = link(second, 1).await;
        assert!(started[1].shared.metrics.relayed_links.get() > 0);
        let kind = Some(wire::request::Kind::Status(wire::StatusRequest::default()));
        let requests = vec![wire::Request { id: 5, kind, ..Default::default() }];
        let frame = wire::GatewayFrame { groups: vec![wire::GroupRequests { group: 1, requests }] };
        frames::write_frame(&mut stream, &frame.encode_to_vec()).await.unwrap();
        let answer = timeout(PATIENCE, frames::read_frame(&mut stream, 4096)).await.unwrap().unwrap();
        let answer = wire::NodeFrame::decode(answer).unwrap().responses.remove(0);
        assert!(answer.id == 5 && matches!(answer.kind, Some(wire::response::Kind::Status(_))), "{answer:?}");
        let requests = vec![wire::Request {
            id: 6,
            kind: Some(wire::request::Kind::Ping(wire::Ping::default())),
            ..Default::default()
        }];
        let frame = wire::GatewayFrame { groups: vec![wire::GroupRequests { group: 99, requests }] };
        frames::write_frame(&mut stream, &frame.encode_to_vec()).await.unwrap();
        let answer = timeout(PATIENCE, frames::read_frame(&mut stream, 4096)).await.unwrap().unwrap();
        let answer = wire::NodeFrame::decode(answer).unwrap().responses.remove(0);
        let pong = Some(wire::response::Kind::Pong(wire::Pong {}));
        assert_eq!((answer.id, answer.kind), (6, pong), "the node answers, whatever groups it has");

        // The end of a node is the end of what was passed on to it.
        started.remove(0).stop().await;
        timeout(PATIENCE, frames::read_frame(&mut stream, 4096)).await.unwrap().unwrap_err();
        let (_, welcome) = link(second, 1).await;
        assert!(welcome.refused.starts_with("cannot reach node 1: "), "{}", welcome.refused);
        started.remove(0).stop().await;
    }

    /// The node that passes it on sees a session between the two others.
    #[tokio::test]
    async fn with_certificates_the_gateway_speaks_with_the_node_that_is_meant_and_nobody_else() {
        let authority = Authority::new("ours", Validity::days(2)).unwrap();
        let of = |uri: &str, holder| links(uri, holder, &authority, Validity::days(1), &[&authority]);
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.2:0").unwrap());
        let nodes: Vec<_> = (1..)
            .map(NodeId)
            .zip(listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()))
            .collect();
        let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let mut started = Vec::new();
        for ((id, listener), dir) in (1..).map(NodeId).zip(listeners).zip(&dirs) {
            take_place(id, dir.path());
            let tls = Some(of(&format!("gaios://harbour/node/{}", id.0), Holder::Node(id.0)));
            let options = NodeOptions { tls, ..one_of(nodes.clone(), id, listener, dir.path()) };
            started.push(Node::start(options).await.unwrap());
        }
        let gateway = of("gaios://harbour/gateway/g", Holder::Gateway);
        let greet = async |stream: &mut Stream, to| {
            let hello = wire::Hello {
                version: VERSION,
                cluster_id: CLUSTER,
                name: "test".to_owned(),
                to,
                ..Default::default()
            };
            frames::write_frame(stream, &hello.encode_to_vec()).await.unwrap();
            let welcome = timeout(PATIENCE, frames::read_frame(stream, 4096)).await.unwrap().unwrap();
            wire::Welcome::decode(welcome).unwrap()
        };
        let (mut outer, holder) =
            gateway.connect(TcpStream::connect(&nodes[1].1).await.unwrap()).await.unwrap();
        assert_eq!(holder.role, tls::Role::Node(2));
        assert_eq!(greet(&mut outer, 1).await, wire::Welcome::default(), "the way is open");
        let (mut inner, holder) = gateway.connect(outer).await.unwrap();
        assert_eq!(holder.role, tls::Role::Node(1));
        let welcome = greet(&mut inner, 0).await;
        assert_eq!((welcome.node_id, welcome.refused.as_str()), (1, ""));

        let (mut outer, _) = gateway.connect(TcpStream::connect(&nodes[1].1).await.unwrap()).await.unwrap();
        assert_eq!(greet(&mut outer, 7).await.refused, "there is no node 7 in the configuration");
        for node in started {
            node.stop().await;
        }
    }

    /// As when its process stands still: gateways try, and give up.
    #[tokio::test]
    async fn a_node_that_says_nothing_is_not_waited_for_when_the_gateway_is_gone() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        take_place(NodeId(1), dir.path());
        let others = [(NodeId(2), silent.local_addr().unwrap().to_string())];
        let node = Node::start(options(NodeId(1), &others, dir.path())).await.unwrap();
        let gateway = say_hello(&node.address().to_string(), 2).await;
        let (mut passed_on, _) = timeout(PATIENCE, silent.accept()).await.unwrap().unwrap();
        timeout(PATIENCE, frames::read_frame(&mut passed_on, 4096)).await.unwrap().unwrap();
        let all = node.shared.door.relays.available_permits() + 1;
        drop(gateway);
        timeout(PATIENCE, frames::read_frame(&mut passed_on, 4096)).await.unwrap().unwrap_err();
        let held =
            timeout(PATIENCE, node.shared.door.relays.acquire_many(all as u32)).await.unwrap().unwrap();
        let (_, welcome) = link(&node.address().to_string(), 2).await;
        assert_eq!(welcome.refused, "too many connections are passed on already");
        drop(held);
        node.stop().await;
    }

    /// The near and the far end of a connection.
    fn connection() -> (tokio::io::DuplexStream, tokio::io::DuplexStream) {
        tokio::io::duplex(1024)
    }

    #[tokio::test(start_paused = true)]
    async fn what_goes_one_way_keeps_both_up_and_silence_ends_them() {
        let ((mut gateway, near), (far, mut node)) = (connection(), connection());
        let begun = Instant::now();
        let carried = tokio::spawn(carry(tokio::io::split(near), tokio::io::split(far)));
        for _ in 0..100 {
            tokio::time::sleep(SILENCE_MAX / 2).await;
            node.write_all(b"event").await.unwrap();
            gateway.read_exact(&mut [0; 5]).await.unwrap();
        }
        assert_eq!(carried.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed().as_secs(), (SILENCE_MAX / 2 * 100 + SILENCE_MAX).as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_takes_nothing_is_left() {
        let ((mut gateway, near), (far, _node)) = (connection(), connection());
        let carried = tokio::spawn(carry(tokio::io::split(near), tokio::io::split(far)));
        let sent = tokio::io::copy(&mut tokio::io::repeat(1), &mut gateway).await;
        assert_eq!(sent.unwrap_err().kind(), io::ErrorKind::BrokenPipe, "nobody reads any more");
        assert_eq!(carried.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
