//! A client of HTTP/2 that sends just the frames it is told to.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::net::SocketAddr;

use prost::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

pub(crate) const DATA: u8 = 0;
pub(crate) const RESET: u8 = 3;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;
const CANCEL: u32 = 8;

/// What a client sends.
pub(crate) struct Sender {
    stream: OwnedWriteHalf,
    gathered: Vec<u8>,
}

/// What it receives.
pub(crate) struct Receiver(OwnedReadHalf);

pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// Connects, and returns once the server has opened its windows.
pub(crate) async fn connect(address: SocketAddr) -> (Sender, Receiver) {
    let (mut sender, receiver) = connect_narrow(address).await;
    // SETTINGS_INITIAL_WINDOW_SIZE: all there is. And the same for the connection.
    sender.frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
    sender.frame(WINDOW_UPDATE, 0, 0, &(0x7fff_ffff_u32 - 65_535).to_be_bytes());
    sender.send().await;
    (sender, receiver)
}

/// The same with the windows that HTTP/2 begins with, of 64 KiB.
pub(crate) async fn connect_narrow(address: SocketAddr) -> (Sender, Receiver) {
    let (read, write) = TcpStream::connect(address).await.unwrap().into_split();
    let (mut sender, mut receiver) = (Sender { stream: write, gathered: Vec::new() }, Receiver(read));
    sender.gathered.extend_from_slice(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    sender.frame(SETTINGS, 0, 0, &[]);
    sender.send().await;
    while receiver.any().await.kind != WINDOW_UPDATE {}
    sender.frame(SETTINGS, ACK, 0, &[]);
    (sender, receiver)
}

impl Sender {
    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        self.gathered.extend_from_slice(&length[1..]);
        self.gathered.extend_from_slice(&[kind, flags]);
        self.gathered.extend_from_slice(&stream.to_be_bytes());
        self.gathered.extend_from_slice(payload);
    }

    /// Begins a call of gRPC. Without an authority, the header is left out.
    pub(crate) fn call(&mut self, stream: u32, path: &str, authority: Option<&str>) {
        let mut block = Vec::new();
        let fields = [
            (":method", Some("POST")),
            (":scheme", Some("http")),
            (":path", Some(path)),
            (":authority", authority),
            ("content-type", Some("application/grpc")),
            ("te", Some("trailers")),
        ];
        for (name, value) in fields {
            let Some(value) = value else { continue };
            // A literal, never indexed, nothing encoded; shorter than a length of one byte can tell.
            block.push(0x10);
            for text in [name, value] {
                assert!(text.len() < 127);
                block.push(text.len() as u8);
                block.extend_from_slice(text.as_bytes());
            }
        }
        self.frame(HEADERS, END_HEADERS, stream, &block);
    }

    /// A message of gRPC in a frame of its own.
    pub(crate) fn message(&mut self, stream: u32, message: &impl Message) {
        let mut payload = vec![0];
        payload.extend_from_slice(&u32::try_from(message.encoded_len()).unwrap().to_be_bytes());
        payload.extend_from_slice(&message.encode_to_vec());
        self.frame(DATA, 0, stream, &payload);
    }

    pub(crate) fn end(&mut self, stream: u32) {
        self.frame(DATA, END_STREAM, stream, &[]);
    }

    /// Takes a call back.
    pub(crate) fn reset(&mut self, stream: u32) {
        self.frame(RESET, 0, stream, &CANCEL.to_be_bytes());
    }

    /// Sends what was said.
    pub(crate) async fn send(&mut self) {
        self.stream.write_all(&std::mem::take(&mut self.gathered)).await.unwrap();
    }
}

impl Receiver {
    async fn any(&mut self) -> Frame {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; length as usize];
        self.0.read_exact(&mut payload).await.unwrap();
        Frame { kind: head[3], stream, payload }
    }

    /// The next frame of data, or the next that ends a stream before its time.
    pub(crate) async fn next(&mut self) -> Frame {
        loop {
            let frame = self.any().await;
            match frame.kind {
                DATA | RESET if !(frame.kind == DATA && frame.payload.is_empty()) => return frame,
                GOAWAY => panic!("GOAWAY {}", String::from_utf8_lossy(&frame.payload)),
                _ => {}
            }
        }
    }

    /// Reads messages until there are so many, of whatever streams.
    pub(crate) async fn messages<M: Message + Default>(&mut self, count: usize) -> Vec<M> {
        let mut streams = std::collections::BTreeMap::<u32, Vec<u8>>::new();
        let mut messages = Vec::new();
        while messages.len() < count {
            let frame = self.next().await;
            assert_eq!(frame.kind, DATA, "stream {} is reset: {:?}", frame.stream, frame.payload);
            let bytes = streams.entry(frame.stream).or_default();
            bytes.extend_from_slice(&frame.payload);
            while let Some(length) = bytes.get(1..5) {
                let length = u32::from_be_bytes(length.try_into().unwrap()) as usize;
                if bytes.len() < 5 + length {
                    break;
                }
                messages.push(M::decode(&bytes[5..5 + length]).unwrap());
                bytes.drain(..5 + length);
            }
        }
        messages
    }
}
