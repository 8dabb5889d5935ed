//! A link alone, against sockets of the test's own.

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::time::{advance, timeout};

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

/// A frame that is on its way shows that the node lives, however long it takes.
#[tokio::test(start_paused = true)]
async fn every_byte_of_a_slow_frame_is_a_sign_of_life() {
    let link = Arc::new(Link::new(String::new(), Awake::never()));
    let (near, mut far) = tokio::io::duplex(64);
    let (events, _) = mpsc::unbounded_channel();
    let reading = tokio::spawn(Arc::clone(&link).read_frames(near, events));
    // The beginning of a frame of a megabyte, which is not nearly there at the end.
    for bytes in std::iter::once(&[0, 16, 0, 0][..]).chain([&[0][..]; 100]) {
        advance(PROBE_AFTER).await;
        far.write_all(bytes).await.unwrap();
        let mut turns = 0..100;
        while link.silent_for() > Duration::ZERO {
            assert!(turns.next().is_some() && !reading.is_finished(), "what came is heard");
            tokio::task::yield_now().await;
        }
    }
    advance(PROBE_TIMEOUT).await;
    assert_eq!(link.silent_for(), PROBE_TIMEOUT, "silence is still told");
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
            let welcome = wire::Welcome { version: 1, cluster_id: 1, node_id: 1, ..Default::default() };
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
async fn no_request_is_forgotten_when_a_detour_is_left() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let answering = tokio::spawn(answer_all(listener));
    for _ in 0..60 {
        let identity = Identity {
            name: "test".to_owned(),
            cluster: Arc::default(),
            stop: CancellationToken::new(),
            detours: Arc::default(),
            awake: Awake::never(),
        };
        let (events, _listening) = mpsc::unbounded_channel();
        let link = Arc::new(Link::new(address.clone(), Awake::never()));
        let straight = dial::leave_detour(&address, Duration::ZERO, &identity).await;
        let detour = Reached { by: Some(String::new()), ..straight };
        let enough = CancellationToken::new();
        let mut callers = JoinSet::new();
        for _ in 0..300 {
            let (link, enough) = (Arc::clone(&link), enough.clone());
            callers.spawn(async move {
                while !enough.is_cancelled() {
                    let command = Bytes::from_static(&[7; 3000]);
                    let kind = request::Kind::Write(wire::Write { command, ..Default::default() });
                    match link.call(1, kind, 3000) {
                        Ok(call) => drop(call.await),
                        Err(_) => tokio::task::yield_now().await,
                    }
                }
            });
        }
        let serving = tokio::spawn({
            let (link, identity) = (Arc::clone(&link), identity.clone());
            async move {
                let better = link.serve(detour, Duration::from_millis(10), &identity, &events).await.unwrap();
                link.serve(better, Duration::ZERO, &identity, &events).await.unwrap_err()
            }
        });
        timeout(PATIENCE, identity.detours.until_straight(1)).await.unwrap();
        enough.cancel();
        let all = timeout(PATIENCE, callers.join_all()).await;
        assert!(all.is_ok(), "{} calls are not answered", link.owed());
        identity.stop.cancel();
        serving.await.unwrap();
    }
    answering.abort();
}
