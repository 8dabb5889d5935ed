//! Who is let in on a link, and what each side learns of the other.

use tls::make::{Use, Validity};
use tls::{HandshakeError, Holder, Identity, Mutual, Stream, Why};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{CLUSTER, Folder, authority, gateway_uri, identity, member, mutual, node_uri, sockets};

type Shaken = Result<(Stream, Identity), HandshakeError>;

/// What the one who connects and the one who accepts come to.
async fn shake(near: &Mutual, far: &Mutual) -> (Shaken, Shaken) {
    let (connected, accepted) = sockets().await;
    tokio::join!(near.connect(connected), far.accept(accepted))
}

fn why(shaken: Shaken) -> Why {
    shaken.unwrap_err().why
}

#[tokio::test]
async fn each_side_learns_who_the_other_is() {
    let ca = authority("the CA");
    let gateway = mutual(&gateway_uri(), Holder::Gateway, &ca);
    let node = mutual(&node_uri(2), Holder::Node(2), &ca);
    let (near, far) = shake(&gateway, &node).await;
    let ((mut near, at_far_end), (mut far, at_near_end)) = (near.unwrap(), far.unwrap());
    assert_eq!((at_far_end, at_near_end), (identity(&node_uri(2)), identity(&gateway_uri())));
    assert!(near.is_tls() && !near.is_resumed() && !far.is_resumed());
    near.write_all(b"hello").await.unwrap();
    let mut heard = [0; 5];
    far.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"hello");
    // No ticket was given, so no second link is resumed.
    let (near, far) = shake(&gateway, &node).await;
    assert!(!near.unwrap().0.is_resumed() && !far.unwrap().0.is_resumed());
}

#[tokio::test]
async fn strangers_are_refused_by_both_sides() {
    let ca = authority("the CA");
    let node = mutual(&node_uri(1), Holder::Node(1), &ca);
    let stranger = mutual(&node_uri(2), Holder::Node(2), &authority("the CA"));
    let (near, _) = shake(&node, &stranger).await;
    assert_eq!(why(near), Why::Untrusted);
    let (_, far) = shake(&stranger, &node).await;
    assert!(matches!(why(far), Why::RefusedByPeer | Why::Closed), "it does not show its certificate to us");

    // The same CA, and another cluster.
    let folder = Folder::new();
    folder.write_member("link", "gaios://other/node/2", &ca);
    let other = Mutual::load(folder.link_files("link"), "other", Holder::Node(2)).unwrap();
    let (near, _) = shake(&node, &other).await;
    let error = near.unwrap_err();
    assert_eq!(error.why, Why::NoIdentity);
    assert!(error.to_string().contains("other"), "{error}");
}

/// Connects as somebody whose certificate says what it likes.
async fn accept_from(node: &Mutual, certificate: Option<tls::make::Pair>) -> Result<Identity, Why> {
    let (connected, accepted) = sockets().await;
    let client = crate::server::client(None, certificate.as_ref(), rustls::ALL_VERSIONS, &[]);
    let connecting = crate::server::connect(client, connected);
    // The connection ends when this is known.
    let accepting = async { Ok(node.accept(accepted).await.map_err(|error| error.why)?.1) };
    tokio::join!(connecting, accepting).1
}

#[tokio::test]
async fn a_certificate_says_exactly_one_thing_about_its_holder() {
    let ca = authority("the CA");
    let node = mutual(&node_uri(1), Holder::Node(1), &ca);
    assert_eq!(accept_from(&node, None).await, Err(Why::NoCertificate));
    let nobody = ca.issue("nobody", &Use::Client, Validity::days(1)).unwrap();
    assert_eq!(accept_from(&node, Some(nobody)).await, Err(Why::NoIdentity));
    let other = member("gaios://other/node/1", &ca);
    assert_eq!(accept_from(&node, Some(other)).await, Err(Why::NoIdentity));
    let server = ca.issue("server", &Use::Server(vec!["localhost".to_owned()]), Validity::days(1)).unwrap();
    assert_eq!(accept_from(&node, Some(server)).await, Err(Why::Untrusted), "it is not for clients");
    let by_another = member(&node_uri(3), &authority("the CA"));
    assert_eq!(accept_from(&node, Some(by_another)).await, Err(Why::Untrusted));
    let good = accept_from(&node, Some(member(&node_uri(3), &ca))).await;
    assert_eq!(good, Ok(identity(&node_uri(3))));
}

#[tokio::test]
async fn what_is_not_tls_is_closed() {
    let node = mutual(&node_uri(1), Holder::Node(1), &authority("the CA"));
    let (mut connected, accepted) = sockets().await;
    connected.write_all(b"\0\0\0\x05hello").await.unwrap();
    assert_eq!(why(node.accept(accepted).await), Why::NotTls);
    let (connected, accepted) = sockets().await;
    drop(connected);
    assert_eq!(why(node.accept(accepted).await), Why::Closed);
}

#[tokio::test(start_paused = true)]
async fn whoever_says_nothing_is_not_waited_for() {
    let node = mutual(&node_uri(1), Holder::Node(1), &authority("the CA"));
    let (_connected, accepted) = sockets().await;
    assert_eq!(why(node.accept(accepted).await), Why::Timeout);
    let (connected, _accepted) = sockets().await;
    assert_eq!(why(node.connect(connected).await), Why::Timeout);
}

#[tokio::test]
async fn a_session_within_another_is_for_the_one_at_its_end() {
    let ca = authority("the CA");
    let gateway = mutual(&gateway_uri(), Holder::Gateway, &ca);
    let passing = mutual(&node_uri(1), Holder::Node(1), &ca);
    let meant = mutual(&node_uri(2), Holder::Node(2), &ca);
    let (near, far) = shake(&gateway, &passing).await;
    let (mut through, mut passed) = (near.unwrap().0, far.unwrap().0);
    let (mut onward, accepted) = sockets().await;
    let pass_on = async {
        let mut seen = Vec::new();
        let (mut read, mut write) = tokio::io::split(&mut passed);
        let (mut onward_read, mut onward_write) = onward.split();
        let forth = async {
            let mut piece = [0; 1000];
            loop {
                let length = read.read(&mut piece).await.unwrap();
                if length == 0 {
                    return;
                }
                seen.extend_from_slice(&piece[..length]);
                onward_write.write_all(&piece[..length]).await.unwrap();
            }
        };
        let back = async {
            let _ = tokio::io::copy(&mut onward_read, &mut write).await;
        };
        tokio::select! {
            () = forth => {}
            () = back => {}
        }
        seen
    };
    through.write_all(b"").await.unwrap();
    let near = async {
        let (mut stream, who) = gateway.connect(through).await.unwrap();
        assert_eq!(who, identity(&node_uri(2)));
        let text = b"a secret ".repeat(100_000);
        stream.write_all(&text).await.unwrap();
        let mut answer = vec![0; text.len()];
        stream.read_exact(&mut answer).await.unwrap();
        assert!(answer == text, "the echo is the same");
        stream.shutdown().await.unwrap();
    };
    let far = async {
        let (stream, who) = meant.accept(accepted).await.unwrap();
        assert_eq!(who, identity(&gateway_uri()));
        let (mut read, mut write) = stream.into_split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
    };
    let (seen, (), ()) = tokio::join!(pass_on, near, far);
    assert!(seen.len() > 900_000);
    assert!(!seen.windows(8).any(|bytes| bytes == b"a secret"), "the passing node read it");
}

#[tokio::test]
async fn new_certificates_and_cas_are_for_new_links() {
    let (old, new) = (authority("old"), authority("new"));
    let folder = Folder::new();
    folder.write_member("node", &node_uri(1), &old);
    let node = Mutual::load(folder.link_files("node"), CLUSTER, Holder::Node(1)).unwrap();
    let (old_gateway, new_gateway) =
        (mutual(&gateway_uri(), Holder::Gateway, &old), mutual(&gateway_uri(), Holder::Gateway, &new));
    let (near, far) = shake(&old_gateway, &node).await;
    let (mut near, mut far) = (near.unwrap().0, far.unwrap().0);
    assert_eq!(why(shake(&new_gateway, &node).await.0), Why::Untrusted);

    folder.write_member("node", &node_uri(1), &new);
    assert_eq!(node.reload(), Ok(true));
    shake(&new_gateway, &node).await.1.unwrap();
    assert_eq!(why(shake(&old_gateway, &node).await.0), Why::Untrusted);
    near.write_all(b"still here").await.unwrap();
    let mut heard = [0; 10];
    far.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"still here");
}
