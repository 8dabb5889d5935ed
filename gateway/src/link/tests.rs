//! A link alone, against sockets of the test's own.

use api::gaios::link::VERSION;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::time::{advance, timeout};

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than a node that owes an answer is let be.
const PAUSE_BETWEEN_BYTES: Duration = Duration::from_secs(1);
const SILENCE: Duration = Duration::from_secs(2);

fn identity(tls: Option<Arc<Mutual>>) -> Identity {
    Identity {
        metrics: LinkMetrics::default(),
        name: "test".to_owned(),
        place: Place::default(),
        client_urls: Vec::new(),
        capacity: 1,
        cluster: Arc::default(),
        connections: Arc::default(),
        stop: CancellationToken::new(),
        ways: Arc::default(),
        tls,
        refusals: Arc::default(),
        figures: Figures::default(),
        feeds: mpsc::unbounded_channel().0,
    }
}

/// A frame that is on its way shows that the node lives, however long it takes.
#[tokio::test(start_paused = true)]
async fn every_byte_of_a_slow_frame_is_a_sign_of_life() {
    let identity = identity(None);
    let link = Arc::new(Link::new(identity.ways.target(""), &identity));
    let (near, mut far) = tokio::io::duplex(64);
    let (events, _) = mpsc::unbounded_channel();
    let reading = tokio::spawn(Arc::clone(&link).read_frames(near, events));
    // The beginning of a frame of a megabyte, which is not nearly there at the end.
    for bytes in std::iter::once(&[0, 16, 0, 0][..]).chain([&[0][..]; 100]) {
        advance(PAUSE_BETWEEN_BYTES).await;
        far.write_all(bytes).await.unwrap();
        let mut turns = 0..100;
        while link.silent_for() > Duration::ZERO {
            assert!(turns.next().is_some() && !reading.is_finished(), "what came is heard");
            tokio::task::yield_now().await;
        }
    }
    advance(SILENCE).await;
    assert_eq!(link.silent_for(), SILENCE, "silence is still told");
}

/// A link that is up, what a node says on it, and how its reading ends.
fn read_from_node() -> (Arc<Link>, tokio::io::DuplexStream, tokio::task::JoinHandle<io::Error>) {
    let identity = identity(None);
    let link = Arc::new(Link::new(identity.ways.target(""), &identity));
    link.state.lock().end.handle_up(NodeId(1));
    let (near, far) = tokio::io::duplex(1 << 20);
    let reading = tokio::spawn(Arc::clone(&link).read_frames(near, mpsc::unbounded_channel().0));
    (link, far, reading)
}

async fn say(far: &mut tokio::io::DuplexStream, id: u64, kind: response::Kind) {
    let mut out = BytesMut::new();
    let response = wire::Response { id, term: 1, kind: Some(kind) };
    encode_frame(&wire::NodeFrame { responses: vec![response] }, &mut out);
    far.write_all(&out).await.unwrap();
}

fn part(reply_bytes: usize, bytes: Bytes) -> response::Kind {
    response::Kind::ReplyPart(wire::ReplyPart { reply_bytes: reply_bytes as u64, bytes })
}

#[tokio::test]
async fn an_answer_in_parts_holds_up_no_other() {
    const BYTES: usize = 100 << 20;
    let (link, mut far, _reading) = read_from_node();
    let call = || {
        link.call(GroupId(1), request::Kind::Status(wire::StatusRequest::default()), 0, Terms::default())
            .unwrap()
    };
    let (mut large, given_up, small) = (call(), call(), call());
    let piece = Bytes::from(vec![7; 256 << 10]);
    say(&mut far, large.id, part(BYTES, piece.clone())).await;
    say(&mut far, given_up.id, part(1 << 20, piece.clone())).await;
    say(&mut far, small.id, response::Kind::Reply("small".into())).await;
    assert!(timeout(PATIENCE, small).await.unwrap().is_ok(), "it comes first");
    assert_eq!(link.state.lock().end.gathered(), 2 * piece.len());
    let id = given_up.id;
    drop(given_up);
    assert_eq!(link.state.lock().end.gathered(), piece.len());
    for at in 1..BYTES / piece.len() {
        assert!(futures::poll!(&mut large).is_pending(), "after {at} parts");
        say(&mut far, large.id, part(0, piece.clone())).await;
        say(&mut far, id, part(0, piece.clone())).await;
    }
    let Some(response::Kind::Reply(reply)) = timeout(PATIENCE, large).await.unwrap().unwrap().kind else {
        panic!("no reply")
    };
    assert!(reply.len() == BYTES && reply.iter().all(|byte| *byte == 7));
    assert_eq!(link.state.lock().end.gathered(), 0);
}

#[tokio::test]
async fn a_node_that_breaks_the_rules_about_parts_loses_its_link() {
    let (link, mut far, reading) = read_from_node();
    let call = link
        .call(GroupId(1), request::Kind::Status(wire::StatusRequest::default()), 0, Terms::default())
        .unwrap();
    say(&mut far, call.id, part(0, "the second".into())).await;
    let error = timeout(PATIENCE, reading).await.unwrap().unwrap();
    assert_eq!(error.to_string(), "a part of an answer that was not begun");
}

/// Welcomes links, and answers every request.
async fn answer_all(listener: TcpListener) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        tokio::spawn(async move {
            let length = stream.read_u32().await.unwrap() as usize;
            stream.read_exact(&mut vec![0; length]).await.unwrap();
            let mut out = BytesMut::new();
            let welcome = wire::Welcome { version: VERSION, cluster_id: 1, node_id: 1, ..Default::default() };
            encode_frame(&welcome, &mut out);
            let (read, mut write) = stream.into_split();
            let mut frames = FramedRead::new(read, LengthDelimitedCodec::new());
            while write.write_all(&out.split()).await.is_ok() {
                let Some(Ok(frame)) = frames.next().await else { return };
                let frame = wire::GatewayFrame::decode(frame.freeze()).unwrap();
                let requests = frame.groups.into_iter().flat_map(|group| group.requests);
                let responses =
                    requests.map(|request| wire::Response { id: request.id, ..Default::default() });
                encode_frame(&wire::NodeFrame { responses: responses.collect() }, &mut out);
            }
        });
    }
}

/// What is asked when a connection takes the place of another goes over one of the two: nobody waits for an answer that
/// nobody was asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_forgotten_when_a_relay_is_left() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let answering = tokio::spawn(answer_all(listener));
    for _ in 0..60 {
        let identity = identity(None);
        let (events, _listening) = mpsc::unbounded_channel();
        let target = identity.ways.target(address.clone());
        let link = Arc::new(Link::new(target, &identity));
        let direct = dial::connect(&address, &identity).await;
        let relayed = Reached { by: Some(String::new()), ..dial::connect(&address, &identity).await };
        let enough = CancellationToken::new();
        let mut callers = JoinSet::new();
        for _ in 0..300 {
            let (link, enough) = (Arc::clone(&link), enough.clone());
            callers.spawn(async move {
                while !enough.is_cancelled() {
                    let command = Bytes::from_static(&[7; 3000]);
                    let kind = request::Kind::Write(wire::Write { command, ..Default::default() });
                    match link.call(GroupId(1), kind, 3000, Terms::default()) {
                        Ok(call) => drop(call.await),
                        Err(_) => tokio::task::yield_now().await,
                    }
                }
            });
        }
        let serving = tokio::spawn({
            let (link, identity) = (Arc::clone(&link), identity.clone());
            async move {
                let (leave, left) = oneshot::channel();
                let leaving = async {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    leave.send("a direct way was found").unwrap();
                };
                tokio::join!(link.serve(relayed, left, &identity, &events), leaving);
                let (_leave, left) = oneshot::channel();
                link.serve(direct, left, &identity, &events).await
            }
        });
        let mut changes = identity.ways.changes();
        while !identity.ways.is_direct(NodeId(1)) {
            timeout(PATIENCE, changes.changed()).await.unwrap().unwrap();
        }
        enough.cancel();
        let all = timeout(PATIENCE, callers.join_all()).await;
        assert!(all.is_ok(), "{} calls are not answered", link.owed());
        identity.stop.cancel();
        serving.await.unwrap();
    }
    answering.abort();
}

/// What a node does that is to pass a connection on.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Passing {
    Honest,
    /// Changes a byte on the way.
    Tampers,
    /// Answers itself.
    Pretends,
}

fn links(uri: &str, holder: tls::Holder, authority: &tls::make::Authority) -> Arc<Mutual> {
    use tls::make::{Use, Validity};
    let dir = tempfile::tempdir().unwrap();
    let pair = authority.issue(uri, &Use::Member(uri.parse().unwrap()), Validity::days(1)).unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let files = tls::LinkFiles {
        certificate: write("crt", &pair.certificate),
        key: write("key", &pair.key),
        authorities: write("ca", authority.certificate()),
    };
    Arc::new(Mutual::load(files, "harbour", holder).unwrap())
}

/// Takes a hello and says a welcome.
async fn welcome(stream: &mut tls::Stream, welcome: wire::Welcome) -> wire::Hello {
    let length = stream.read_u32().await.unwrap() as usize;
    let mut hello = vec![0; length];
    stream.read_exact(&mut hello).await.unwrap();
    let mut out = BytesMut::new();
    encode_frame(&welcome, &mut out);
    stream.write_all(&out).await.unwrap();
    wire::Hello::decode(&hello[..]).unwrap()
}

/// Node 1, which everybody but the gateway reaches.
async fn be_node(listener: TcpListener, tls: Arc<Mutual>) {
    loop {
        let socket = listener.accept().await.unwrap().0;
        let Ok((mut stream, _)) = tls.accept(socket).await else { continue };
        welcome(&mut stream, wire::Welcome { version: VERSION, node_id: 1, ..Default::default() }).await;
    }
}

/// Node 2, for one connection.
async fn pass_on(listener: &TcpListener, tls: &Mutual, to: &str, passing: Passing) {
    let socket = listener.accept().await.unwrap().0;
    let (mut outer, _) = tls.accept(socket).await.unwrap();
    let hello = welcome(&mut outer, wire::Welcome::default()).await;
    assert_eq!(hello.to, 1);
    if passing == Passing::Pretends {
        // If the gateway takes its certificate.
        if let Ok((mut inner, _)) = tls.accept(outer).await {
            let mut length = [0; 4];
            assert!(inner.read_exact(&mut length).await.is_err(), "it says no hello to the wrong node");
        }
        return;
    }
    let mut node = tokio::net::TcpStream::connect(to).await.unwrap();
    let mut bytes = [0; 1024];
    let mut copied = 0;
    loop {
        let mut back = [0; 1024];
        tokio::select! {
            read = outer.read(&mut bytes) => match read {
                Ok(read) if read > 0 => node.write_all(&bytes[..read]).await.unwrap(),
                _ => return,
            },
            read = node.read(&mut back) => match read {
                Ok(read) if read > 0 => {
                    copied += read;
                    // In the middle of what it cannot read.
                    if passing == Passing::Tampers && copied > 300 {
                        back[read - 1] ^= 1;
                    }
                    if outer.write_all(&back[..read]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            },
        }
    }
}

#[tokio::test]
async fn a_node_that_passes_a_link_on_can_neither_change_it_nor_answer_itself() {
    let authority = tls::make::Authority::new("ours", tls::make::Validity::days(2)).unwrap();
    let of = |uri: &str, holder| links(uri, holder, &authority);
    let (one, two) =
        (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let to = one.local_addr().unwrap().to_string();
    let by = two.local_addr().unwrap().to_string();
    let serving = tokio::spawn(be_node(one, of("gaios://harbour/node/1", tls::Holder::Node(1))));
    let passing_tls = of("gaios://harbour/node/2", tls::Holder::Node(2));
    let identity = identity(Some(of("gaios://harbour/gateway/g", tls::Holder::Gateway)));
    for (passing, expected) in [
        (Passing::Honest, Ok(NodeId(1))),
        (Passing::Tampers, Err("refused or protocol")),
        (Passing::Pretends, Err("wrong_node")),
    ] {
        let (reached, ()) = tokio::join!(
            timeout(PATIENCE, dial::connect_by(&by, &identity, NodeId(1))),
            pass_on(&two, &passing_tls, &to, passing),
        );
        match (reached.unwrap(), expected) {
            (Ok(node), Ok(expected)) => assert_eq!(node, expected),
            (Err(why), Err("wrong_node")) => assert!(why.contains("WrongNode"), "{why}"),
            (Err(_), Err(_)) => {}
            (reached, expected) => panic!("{passing:?}: {reached:?}, expected {expected:?}"),
        }
    }
    serving.abort();
}
