//! What goes over a connection arrives, in order, however the socket takes it.

use std::io::ErrorKind;

use tls::{Holder, Stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::yield_now;

use crate::support::{authority, gateway_uri, mutual, node_uri, sockets};

const BYTES: usize = 16 << 20;

fn letters(from: usize, count: usize) -> Vec<u8> {
    (from..from + count).map(|n| (n % 251) as u8).collect()
}

async fn plain() -> (Stream, Stream) {
    let (near, far) = sockets().await;
    (near.into(), far.into())
}

async fn encrypted() -> (Stream, Stream) {
    let ca = authority("the CA");
    let (gateway, node) =
        (mutual(&gateway_uri(), Holder::Gateway, &ca), mutual(&node_uri(1), Holder::Node(1), &ca));
    let (near, far) = sockets().await;
    let (near, far) = tokio::join!(gateway.connect(near), node.accept(far));
    (near.unwrap().0, far.unwrap().0)
}

/// Writes in pieces of odd sizes what the socket takes at once, to one who reads late; ends with the dropping of the half.
async fn write_as_the_socket_takes(near: Stream, mut far: Stream) {
    let (_read, write) = near.into_split();
    let writing = async move {
        let (mut written, mut blocked) = (0, 0);
        while written < BYTES {
            let piece = letters(written, (BYTES - written).min(1 + written % 200_000));
            let mut rest = &piece[..];
            while !rest.is_empty() {
                match write.try_write(rest) {
                    Ok(taken) => rest = &rest[taken..],
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        blocked += 1;
                        write.writable().await.unwrap();
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            written += piece.len();
        }
        assert!(blocked > 0, "the socket was never full");
    };
    let reading = async {
        for _ in 0..100 {
            yield_now().await;
        }
        let mut received = Vec::new();
        far.read_to_end(&mut received).await.unwrap();
        received
    };
    let ((), received) = tokio::join!(writing, reading);
    assert!(received == letters(0, BYTES));
}

#[tokio::test]
async fn what_a_write_has_taken_has_left() {
    let (near, far) = plain().await;
    write_as_the_socket_takes(near, far).await;
    let (near, far) = encrypted().await;
    write_as_the_socket_takes(near, far).await;
}

/// Both directions at once, and no flush anywhere.
async fn both_ways(near: Stream, far: Stream) {
    let (mut near_read, mut near_write) = near.into_split();
    let (mut far_read, mut far_write) = far.into_split();
    let back = tokio::spawn(async move {
        tokio::io::copy(&mut far_read, &mut far_write).await.unwrap();
    });
    let writing = tokio::spawn(async move {
        near_write.write_all(&letters(0, BYTES)).await.unwrap();
        near_write.shutdown().await.unwrap();
        near_write
    });
    let mut received = Vec::new();
    near_read.read_to_end(&mut received).await.unwrap();
    assert!(received == letters(0, BYTES));
    writing.await.unwrap();
    back.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_directions_go_at_once() {
    let (near, far) = plain().await;
    both_ways(near, far).await;
    let (near, far) = encrypted().await;
    both_ways(near, far).await;
}

#[tokio::test]
async fn the_end_is_seen_with_and_without_a_goodbye() {
    for goodbye in [true, false] {
        let (mut near, mut far) = encrypted().await;
        near.write_all(b"last words").await.unwrap();
        if goodbye {
            near.shutdown().await.unwrap();
        }
        drop(near);
        let mut heard = Vec::new();
        far.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"last words");
    }
}

#[tokio::test]
async fn forged_bytes_break_the_connection() {
    let ca = authority("the CA");
    let (gateway, node) =
        (mutual(&gateway_uri(), Holder::Gateway, &ca), mutual(&node_uri(1), Holder::Node(1), &ca));
    let (near, mut passing_near) = sockets().await;
    let (mut passing_far, far) = sockets().await;
    let passing = tokio::spawn(async move {
        let mut shaken = false;
        let (mut bytes, mut back) = ([0; 16384], [0; 16384]);
        loop {
            tokio::select! {
                read = passing_near.read(&mut bytes) => {
                    let length = read.unwrap();
                    if length == 0 {
                        return;
                    }
                    // Application data of a certain length only.
                    if shaken && length > 1000 {
                        bytes[500] ^= 1;
                    }
                    passing_far.write_all(&bytes[..length]).await.unwrap();
                    shaken = true;
                }
                read = passing_far.read(&mut back) => {
                    let length = read.unwrap_or(0);
                    if length == 0 {
                        return;
                    }
                    passing_near.write_all(&back[..length]).await.unwrap();
                }
            }
        }
    });
    let (near, far) = tokio::join!(gateway.connect(near), node.accept(far));
    let (mut near, mut far) = (near.unwrap().0, far.unwrap().0);
    near.write_all(b"fine").await.unwrap();
    let mut heard = [0; 4];
    far.read_exact(&mut heard).await.unwrap();
    near.write_all(&[7; 5000]).await.unwrap();
    let error = far.read_exact(&mut [0; 5000]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
    drop((near, far));
    passing.await.unwrap();
}
