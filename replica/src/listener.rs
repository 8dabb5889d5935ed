//! The node's port: who is let in, until it has said who it is. Then the connection is its link's, or its snapshot's.

use std::sync::Arc;
use std::time::Duration;

use api::gaios::link::{HELLO_BYTES_MAX, v1 as wire};
use prost::Message as _;
use tls::Stream;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::admission::Role;
use crate::door::Guest;
use crate::frames::{self, HANDSHAKE_TIMEOUT};
use crate::gateway_link;
use crate::hello;
use crate::peer::Peer;
use crate::peer_link;
use crate::refusal::Refusal;
use crate::shared::Shared;
use crate::wire::{Purpose, is_peer_hello};

/// The longest name of a gateway.
const NAME_BYTES_MAX: usize = 256;
/// Between two attempts to accept, when the system refuses.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Accepts connections until the node stops.
pub(crate) async fn open(shared: Arc<Shared>, listener: TcpListener, connections: TaskTracker) {
    let mut failing = false;
    let accept = async || {
        shared.door.room().await;
        listener.accept().await
    };
    loop {
        let accepted = tokio::select! {
            accepted = accept() => accepted,
            () = shared.stopped.cancelled() => return,
        };
        match accepted {
            Ok((stream, from)) => {
                failing = false;
                // Counted before its task has run for the first time.
                let guest = Arc::clone(&shared.door).admit(from);
                let shared = Arc::clone(&shared);
                connections.spawn(async move { serve(&shared, stream, &guest).await });
            }
            Err(error) => {
                // Out of descriptors, most likely; accepting again at once would spin.
                if !failing {
                    warn!(%error, "cannot accept a connection");
                }
                failing = true;
                tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
            }
        }
    }
}

/// What a connection is after a good hello.
enum Greeted {
    Peer(Arc<Peer>, Purpose),
    Gateway(wire::Hello),
    /// It got the answer that it wanted.
    Answered,
}

async fn serve(shared: &Arc<Shared>, stream: TcpStream, guest: &Guest) {
    let greeted = tokio::select! {
        greeted = timeout(HANDSHAKE_TIMEOUT, greet(shared, stream)) => greeted.unwrap_or(Err(Refusal::Slow)),
        () = guest.dismissed.cancelled() => Err(Refusal::Displaced),
        () = shared.stopped.cancelled() => return,
    };
    match greeted {
        Ok((stream, Greeted::Peer(peer, purpose))) => {
            // Peers are never too many.
            let _ = guest.prove(Role::Peer(peer.id));
            peer_link::serve(shared, peer, purpose, stream, &guest.dismissed).await;
        }
        Ok((stream, Greeted::Gateway(hello))) => {
            let room = guest.prove(Role::Gateway);
            if room.is_err() {
                guest.refuse(&Refusal::TooManyGateways);
            }
            gateway_link::serve(shared, stream, hello, room, guest.from).await;
        }
        Ok((_, Greeted::Answered)) => {}
        Err(refusal) => guest.refuse(&refusal),
    }
}

/// The handshake, all of it: until it is over, the connection is an unproven one.
async fn greet(shared: &Arc<Shared>, socket: TcpStream) -> Result<(Stream, Greeted), Refusal> {
    socket.set_nodelay(true).map_err(|_| Refusal::Gone)?;
    let (mut stream, holder) = match &shared.tls {
        None => (Stream::from(socket), None),
        Some(tls) => {
            let (stream, holder) = tls.accept(socket).await.map_err(Refusal::Tls)?;
            (stream, Some(holder))
        }
    };
    let first = frames::read_frame(&mut stream, HELLO_BYTES_MAX).await.map_err(Refusal::of_first_frame)?;
    if is_peer_hello(&first) {
        let asked = hello::answer(shared, &mut stream, &first, holder.as_ref()).await?;
        let greeted = asked.map_or(Greeted::Answered, |(peer, purpose)| Greeted::Peer(peer, purpose));
        return Ok((stream, greeted));
    }
    if let Some(holder) = holder
        && !matches!(holder.role, tls::Role::Gateway(_))
    {
        return Err(Refusal::WrongHolder(format!("{holder} speaks as a gateway")));
    }
    let hello = wire::Hello::decode(first)
        .map_err(|_| Refusal::Malformed("neither a gateway's nor a node's".to_owned()))?;
    if hello.name.len() > NAME_BYTES_MAX {
        return Err(Refusal::Malformed(format!("a name of {} bytes", hello.name.len())));
    }
    shared.seat.taken().await;
    if shared.seat.is_aside() {
        return Err(Refusal::Aside);
    }
    Ok((stream, Greeted::Gateway(hello)))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use api::gaios::link::{GATEWAY_FRAME_BYTES_MAX, VERSION, VERSION_LEAST};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinSet;

    use super::*;
    use crate::budget::Use;
    use crate::node::Node;
    use crate::testing::{CLUSTER, PATIENCE, links, metric, options, take_place};
    use crate::wire::PeerHello;
    use consensus_core::{NodeId, NodeStatus};
    use tls::Holder;
    use tls::make::{Authority, Validity};

    async fn start(dir: &std::path::Path, descriptors: usize) -> Node {
        take_place(NodeId(1), dir);
        Node::start(crate::start::NodeOptions { descriptors, ..options(NodeId(1), &[], dir) }).await.unwrap()
    }

    /// As a gateway; the welcome.
    async fn link(node: &Node) -> (TcpStream, wire::Welcome) {
        let mut stream = TcpStream::connect(node.address()).await.unwrap();
        let hello = wire::Hello {
            version: VERSION,
            cluster_id: CLUSTER,
            name: "test".to_owned(),
            ..Default::default()
        };
        frames::write_frame(&mut stream, &hello.encode_to_vec()).await.unwrap();
        let welcome = timeout(PATIENCE, frames::read_frame(&mut stream, 4096)).await.unwrap().unwrap();
        (stream, wire::Welcome::decode(welcome).unwrap())
    }

    #[tokio::test]
    async fn a_gateway_that_is_too_old_is_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let node = start(dir.path(), 128).await;
        let mut stream = TcpStream::connect(node.address()).await.unwrap();
        let hello = wire::Hello { version: 1, cluster_id: CLUSTER, ..Default::default() };
        frames::write_frame(&mut stream, &hello.encode_to_vec()).await.unwrap();
        let welcome = timeout(PATIENCE, frames::read_frame(&mut stream, 4096)).await.unwrap().unwrap();
        let refused = wire::Welcome::decode(welcome).unwrap().refused;
        let expected =
            format!("it speaks version 1 of the link protocol, and this node needs {VERSION_LEAST}");
        assert_eq!(refused, expected);
        node.stop().await;
    }

    /// As the flood has a thousand connections, and the node eight for those that say nothing.
    #[tokio::test]
    async fn a_flood_of_half_open_connections_keeps_nobody_out() {
        let dir = tempfile::tempdir().unwrap();
        let node = start(dir.path(), 128).await;
        let (mut before, _) = link(&node).await;
        let mut flood = Vec::new();
        for n in 0..1000 {
            let mut stream = TcpStream::connect(node.address()).await.unwrap();
            // Nothing, half a length, or a length and no more. It may be displaced already.
            let _ = stream.write_all(&[0, 0, 0, 9][..n % 5]).await;
            flood.push(stream);
            if n % 100 == 0 {
                let (_, welcome) = link(&node).await;
                assert_eq!((welcome.refused.as_str(), welcome.node_id), ("", 1));
            }
        }
        let unproven = metric(&node, "gaios_replica_connections{kind=\"unproven\"}");
        assert!((1.0..=8.0).contains(&unproven), "{unproven}");
        let displaced = metric(&node, "gaios_replica_connections_refused_total{reason=\"displaced\"}");
        assert!(displaced > 900.0, "{displaced}");
        // Those that are left have their time, and no more.
        let begun = Instant::now();
        for stream in &mut flood {
            let _ = timeout(PATIENCE, stream.read(&mut [0])).await.expect("each of them is ended");
        }
        assert!(begun.elapsed() < HANDSHAKE_TIMEOUT * 2, "{:?}", begun.elapsed());
        assert!(metric(&node, "gaios_replica_connections_refused_total{reason=\"slow\"}") >= 1.0);
        // The link that was there has noticed nothing.
        frames::write_frame(&mut before, &wire::GatewayFrame::default().encode_to_vec()).await.unwrap();
        assert!(timeout(Duration::from_millis(50), before.read_u8()).await.is_err(), "it is not ended");
        node.stop().await;
    }

    #[tokio::test]
    async fn halves_of_frames_hold_little_and_keep_nobody_from_sending_whole_ones() {
        const HELD_MAX: f64 = (128 << 20) as f64;
        let dir = tempfile::tempdir().unwrap();
        let node = start(dir.path(), 1024).await;
        let mut sending = JoinSet::new();
        for _ in 0..20 {
            let (mut stream, _) = link(&node).await;
            sending.spawn(async move {
                let _ = stream.write_u32(GATEWAY_FRAME_BYTES_MAX as u32).await;
                // It may be ended before all of it is sent.
                let _ = stream.write_all(&vec![0; GATEWAY_FRAME_BYTES_MAX / 2]).await;
                stream
            });
        }
        let held = || metric(&node, "gaios_replica_memory_taken_bytes{use=\"frames\"}");
        let _halves = sending.join_all().await;
        assert!((1.0..=HELD_MAX).contains(&held()), "{}", held());
        let (mut whole, _) = link(&node).await;
        let figures = wire::GatewayFigures { version: "v".repeat(20 << 20), ..Default::default() };
        let ping = wire::request::Kind::Ping(wire::Ping { figures: Some(figures) });
        let requests = vec![wire::Request { id: 7, kind: Some(ping), ..Default::default() }];
        let frame = wire::GatewayFrame { groups: vec![wire::GroupRequests { group: 1, requests }] };
        let frame = frame.encode_to_vec();
        for _ in 0..3 {
            timeout(PATIENCE, frames::write_frame(&mut whole, &frame)).await.unwrap().unwrap();
            let answer = timeout(PATIENCE, frames::read_frame(&mut whole, 4096)).await.unwrap().unwrap();
            assert_eq!(wire::NodeFrame::decode(answer).unwrap().responses[0].id, 7);
            assert!(held() <= HELD_MAX, "{}", held());
        }
        assert!(metric(&node, "gaios_replica_links_ended_total") >= 16.0);
        let given_back = async {
            while held() > 0.0 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(PATIENCE, given_back).await.expect("a half that stands still has its time, and no more");
        node.stop().await;
    }

    #[tokio::test]
    async fn while_the_budget_is_used_up_what_gateways_ask_is_refused_before_it_is_begun() {
        use wire::{refused, request, response};
        let dir = tempfile::tempdir().unwrap();
        let node = start(dir.path(), 1024).await;
        let (mut stream, _) = link(&node).await;
        let mut ask = async |kind: request::Kind| {
            let requests = vec![wire::Request { id: 7, kind: Some(kind), ..Default::default() }];
            let frame = wire::GatewayFrame { groups: vec![wire::GroupRequests { group: 1, requests }] };
            frames::write_frame(&mut stream, &frame.encode_to_vec()).await.unwrap();
            let answer = timeout(PATIENCE, frames::read_frame(&mut stream, 4096)).await.unwrap().unwrap();
            wire::NodeFrame::decode(answer).unwrap().responses.remove(0).kind.unwrap()
        };
        let overloaded = |answer: &response::Kind| matches!(answer, response::Kind::Refused(refused) if refused.why() == refused::Why::Overloaded);
        let status = || request::Kind::Status(wire::StatusRequest::default());
        let budget = &node.shared.budget;
        budget.take(Use::Answers, budget.bytes_max());
        assert!(overloaded(&ask(status()).await));
        let pong = ask(request::Kind::Ping(wire::Ping::default())).await;
        assert!(matches!(pong, response::Kind::Pong(_)), "the node itself answers: {pong:?}");
        budget.give_back(Use::Answers, budget.bytes_max());
        let answer = ask(status()).await;
        assert!(!overloaded(&answer), "{answer:?}");
        node.stop().await;
    }

    #[tokio::test]
    async fn there_are_no_more_gateways_than_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let node = start(dir.path(), 0).await;
        let mut linked = Vec::new();
        for _ in 0..8 {
            let (stream, welcome) = link(&node).await;
            assert_eq!(welcome.refused, "");
            linked.push(stream);
        }
        let (_, welcome) = link(&node).await;
        assert_eq!(
            welcome,
            wire::Welcome { version: VERSION, refused: welcome.refused.clone(), ..Default::default() }
        );
        assert_eq!(welcome.refused, "there are too many gateways");
        linked.pop();
        let again = async { while !link(&node).await.1.refused.is_empty() {} };
        timeout(PATIENCE, again).await.expect("there is room again");
        node.stop().await;
    }

    /// What is not the beginning of a hello costs nothing but a word.
    #[tokio::test]
    async fn what_is_no_hello_is_turned_away() {
        let dir = tempfile::tempdir().unwrap();
        let node = start(dir.path(), 1024).await;
        let long_name = wire::Hello { name: "x".repeat(300), ..Default::default() }.encode_to_vec();
        let long_name: Vec<u8> = [&(long_name.len() as u32).to_be_bytes()[..], &long_name].concat();
        let firsts: [&[u8]; 5] = [
            b"\xff\xff\xff\xff",
            b"GET / HTTP/1.1\r\n\r\n",
            b"\0\0\0\x0d\0gaios-peer\x09\x00",
            b"\0\0\0\x04\xff\xff\xff\xff",
            &long_name,
        ];
        for (index, first) in firsts.into_iter().enumerate() {
            let mut stream = TcpStream::connect(node.address()).await.unwrap();
            stream.write_all(first).await.unwrap();
            let mut said = Vec::new();
            let _ = timeout(PATIENCE, stream.read_to_end(&mut said)).await.expect("it is ended");
            assert!(said.is_empty(), "{said:?}");
            let malformed = metric(&node, "gaios_replica_connections_refused_total{reason=\"malformed\"}");
            assert_eq!(malformed, index as f64 + 1.0);
        }
        node.stop().await;
    }

    /// What a caller is told who says this first, in the clear or with a certificate.
    async fn told(node: &Node, tls: Option<&tls::Mutual>, first: &[u8]) -> Vec<u8> {
        let mut stream = Stream::from(TcpStream::connect(node.address()).await.unwrap());
        if let Some(tls) = tls {
            match tls.connect(stream).await {
                Ok((secured, _)) => stream = secured,
                Err(_) => return Vec::new(),
            }
        }
        let mut said = Vec::new();
        if frames::write_frame(&mut stream, first).await.is_ok()
            && let Ok(Ok(answer)) = timeout(PATIENCE, frames::read_frame(&mut stream, 4096)).await
        {
            said.extend_from_slice(&answer);
        }
        said
    }

    #[tokio::test]
    async fn a_certificate_says_who_may_speak_as_what() {
        let (ours, theirs) = (
            Authority::new("ours", Validity::days(2)).unwrap(),
            Authority::new("theirs", Validity::days(2)).unwrap(),
        );
        let days = Validity::days(1);
        let of = |uri: &str, holder| links(uri, holder, &ours, days, &[&ours]);
        let dir = tempfile::tempdir().unwrap();
        take_place(NodeId(1), dir.path());
        let others = [2, 3].map(|id| (NodeId(id), "127.0.0.1:1".to_owned()));
        let tls = Some(of("gaios://harbour/node/1", Holder::Node(1)));
        let node = crate::start::NodeOptions { tls, ..options(NodeId(1), &others, dir.path()) };
        let node = Node::start(node).await.unwrap();

        let as_gateway = wire::Hello {
            version: VERSION,
            cluster_id: CLUSTER,
            name: "test".to_owned(),
            ..Default::default()
        };
        let as_gateway = as_gateway.encode_to_vec();
        let hello = PeerHello {
            purpose: Purpose::Ask,
            cluster: CLUSTER,
            from: NodeId(2),
            to: NodeId(1),
            incarnation: 1,
            nonce: 7,
            nonce_heard: 0,
            taken: false,
            status: NodeStatus::Placed { known_as: None, incarnation_heard: 0 },
            groups: 0,
            knows: crate::wire::Frames::ALL,
            support: None,
        };
        let mut as_node_2 = bytes::BytesMut::new();
        hello.encode(&mut as_node_2);

        let gateway = of("gaios://harbour/gateway/g", Holder::Gateway);
        let node_2 = of("gaios://harbour/node/2", Holder::Node(2));
        let node_3 = of("gaios://harbour/node/3", Holder::Node(3));
        let stranger = links("gaios://harbour/gateway/g", Holder::Gateway, &theirs, days, &[&ours, &theirs]);
        let soon = std::time::SystemTime::now() + Duration::from_secs(2);
        let brief = Validity { not_after: soon, ..days };
        let expired = links("gaios://harbour/gateway/g", Holder::Gateway, &ours, brief, &[&ours]);

        assert!(!told(&node, Some(&gateway), &as_gateway).await.is_empty());
        assert!(!told(&node, Some(&node_2), &as_node_2).await.is_empty());
        while std::time::SystemTime::now() < soon + Duration::from_secs(1) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let cases: [(Option<&tls::Mutual>, &[u8], &str); 6] = [
            (Some(&gateway), &as_node_2, "wrong_holder"),
            (Some(&node_3), &as_node_2, "wrong_holder"),
            (Some(&node_2), &as_gateway, "wrong_holder"),
            (Some(&stranger), &as_gateway, "untrusted"),
            (Some(&expired), &as_gateway, "untrusted"),
            (None, &as_gateway, "plain_text"),
        ];
        for (index, (tls, first, reason)) in cases.into_iter().enumerate() {
            let line = format!("gaios_replica_connections_refused_total{{reason=\"{reason}\"}}");
            let before = metric(&node, &line);
            assert!(told(&node, tls, first).await.is_empty(), "case {index}");
            let counted = async {
                while metric(&node, &line) == before {
                    tokio::task::yield_now().await;
                }
            };
            timeout(PATIENCE, counted).await.unwrap_or_else(|_| panic!("case {index} counts as {reason}"));
        }
        node.stop().await;
    }
}
