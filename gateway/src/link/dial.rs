//! Keeps a link: dials, greets and serves as [`Dialler`] says.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use api::gaios::link::{VERSION, VERSION_LEAST, WELCOME_BYTES_MAX, v1 as wire};
use bytes::{Bytes, BytesMut};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use gateway_core::{DialStep, Dialler, Loss, NodeId, Relay, Way};
use prost::Message as _;
use tls::{Mutual, Role, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::refusals::Refusal;
use super::{Identity, Link, LinkEvent, encode_frame};
use crate::random::random_u32;

/// A connection whose other end has welcomed us.
#[derive(Debug)]
pub(super) struct Reached {
    pub(super) stream: Stream,
    pub(super) welcome: wire::Welcome,
    /// The address of the node that passes the connection on.
    pub(super) by: Option<String>,
}

impl Reached {
    pub(super) fn way(&self) -> Way {
        if self.by.is_none() { Way::Direct } else { Way::Relay }
    }
}

/// Why a node was not reached.
#[derive(Debug)]
enum Unreached {
    Io(io::Error),
    /// What answers is not the node, or does not want us.
    Refused(Refusal),
}

impl From<io::Error> for Unreached {
    fn from(error: io::Error) -> Unreached {
        Unreached::Io(error)
    }
}

/// Runs until the gateway stops, or nobody wants the target.
pub(super) async fn keep(link: &Arc<Link>, identity: &Identity, events: &mpsc::UnboundedSender<LinkEvent>) {
    let mut changes = identity.ways.changes();
    let mut dialler = Dialler::new(now(), link.target.dialled.clone());
    let mut under_way = UnderWay { identity, address: link.address(), direct: None, relay: None };
    let mut serving: Option<Serving<'_>> = None;
    loop {
        changes.mark_unchanged();
        let is_wanted = !link.target.unwanted.is_cancelled();
        let step = dialler.poll(now(), &identity.ways.lock(), is_wanted, random_u32);
        match step {
            DialStep::DialDirect => under_way.dial_direct(),
            DialStep::DialRelay(relay) => under_way.dial_relay(relay),
            DialStep::GiveUp(way) => under_way.give_up(way),
            DialStep::Use(way) => {
                let Some(reached) = under_way.take(way) else {
                    debug_assert!(false, "what was welcomed waits to be used");
                    dialler.handle_lost(now(), Loss::Other, random_u32);
                    continue;
                };
                if let Some(serving) = serving.take() {
                    serving.leave("a direct way was found").await;
                }
                serving = Some(Serving::start(link, reached, identity, events));
            }
            DialStep::Leave(reason) => {
                if let Some(serving) = serving.take() {
                    serving.leave(reason).await;
                }
                dialler.handle_lost(now(), Loss::Other, random_u32);
            }
            DialStep::End => return,
            DialStep::Await { until } => {
                under_way.keep_only(&dialler);
                // A connection that is served ends itself when the gateway stops.
                let is_idle = serving.is_none();
                let due = async {
                    match until {
                        Some(until) => sleep_until(until.into()).await,
                        None => std::future::pending().await,
                    }
                };
                let ended = async {
                    match &mut serving {
                        Some(serving) => (&mut serving.running).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    error = ended => {
                        serving = None;
                        let is_silent = error.kind() == io::ErrorKind::TimedOut;
                        let loss = if is_silent { Loss::Silence } else { Loss::Other };
                        dialler.handle_lost(now(), loss, random_u32);
                    }
                    () = identity.stop.cancelled(), if is_idle => return,
                    (way, progress) = under_way.progress() => match progress {
                        Progress::Connected if way == Way::Direct => dialler.handle_connected(),
                        Progress::Connected => {}
                        Progress::Welcomed(node) => dialler.handle_welcomed(now(), way, node),
                        Progress::Failed => dialler.handle_failed(now(), way, random_u32),
                    },
                    () = link.target.unwanted.cancelled(), if is_wanted => {}
                    // The sender lives as long as the gateway.
                    _ = changes.changed() => {}
                    () = due => {}
                }
            }
        }
    }
}

/// A connection that is served.
struct Serving<'a> {
    running: BoxFuture<'a, io::Error>,
    leave: oneshot::Sender<&'static str>,
}

impl<'a> Serving<'a> {
    fn start(
        link: &'a Arc<Link>,
        reached: Reached,
        identity: &'a Identity,
        events: &'a mpsc::UnboundedSender<LinkEvent>,
    ) -> Serving<'a> {
        let (leave, left) = oneshot::channel();
        Serving { running: link.serve(reached, left, identity, events).boxed(), leave }
    }

    /// Ends it; what waits on it is lost.
    async fn leave(self, reason: &'static str) {
        let _ = self.leave.send(reason);
        self.running.await;
    }
}

/// The attempts that are under way, at most one each way.
struct UnderWay<'a> {
    identity: &'a Identity,
    address: &'a str,
    direct: Option<Attempt<'a>>,
    relay: Option<(Relay, Attempt<'a>)>,
}

enum Attempt<'a> {
    Connecting(BoxFuture<'a, io::Result<TcpStream>>),
    Greeting(BoxFuture<'a, Result<Reached, Unreached>>),
    /// Waits to be used.
    Welcomed(Reached),
}

/// What became of an attempt.
enum Progress {
    Connected,
    Welcomed(NodeId),
    /// Whoever is to be told has been.
    Failed,
}

impl<'a> UnderWay<'a> {
    fn dial_direct(&mut self) {
        self.direct = Some(Attempt::Connecting(TcpStream::connect(self.address).boxed()));
    }

    fn dial_relay(&mut self, relay: Relay) {
        let connecting = TcpStream::connect(relay.address.clone()).boxed();
        self.relay = Some((relay, Attempt::Connecting(connecting)));
    }

    fn give_up(&mut self, way: Way) {
        debug!(address = self.address, ?way, "no welcome in time");
        match way {
            Way::Direct => self.direct = None,
            Way::Relay => self.relay = None,
        }
    }

    /// Lets go of what the dialler does not know of any more.
    fn keep_only(&mut self, dialler: &Dialler) {
        self.direct.take_if(|_| !dialler.is_dialling(Way::Direct));
        self.relay.take_if(|_| !dialler.is_dialling(Way::Relay));
    }

    /// The connection that was welcomed; the others are let go.
    fn take(&mut self, way: Way) -> Option<Reached> {
        let (direct, relay) = (self.direct.take(), self.relay.take());
        let attempt = match way {
            Way::Direct => direct,
            Way::Relay => relay.map(|(_, attempt)| attempt),
        };
        match attempt {
            Some(Attempt::Welcomed(reached)) => Some(reached),
            Some(Attempt::Connecting(_) | Attempt::Greeting(_)) | None => None,
        }
    }

    /// Safe to drop and call again.
    async fn progress(&mut self) -> (Way, Progress) {
        let UnderWay { identity, address, direct, relay } = self;
        let direct = async {
            match direct {
                Some(attempt) => attempt.progress(identity, None).await,
                None => std::future::pending().await,
            }
        };
        let relayed = async {
            match relay {
                Some((relay, attempt)) => {
                    attempt.progress(identity, Some(relay)).await.map_err(|why| (relay.clone(), why))
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            progress = direct => (Way::Direct, progress.unwrap_or_else(|why| {
                match why {
                    Unreached::Io(error) => debug!(address, %error, "no link to the node"),
                    Unreached::Refused(refusal) => identity.refusals.note(address, &refusal),
                }
                Progress::Failed
            })),
            progress = relayed => (Way::Relay, progress.unwrap_or_else(|(Relay { to, address: by }, why)| {
                match why {
                    Unreached::Io(error) => debug!(address, to = to.0, by, %error, "the relay does not lead to the node"),
                    // That the other one cannot reach it either is what is to be expected.
                    Unreached::Refused(Refusal::ByNode(reason)) => {
                        debug!(address, to = to.0, by, reason, "the relay does not lead to the node");
                    }
                    Unreached::Refused(refusal) => identity.refusals.note(&by, &refusal),
                }
                Progress::Failed
            })),
        }
    }
}

impl<'a> Attempt<'a> {
    async fn progress(
        &mut self,
        identity: &'a Identity,
        relay: Option<&Relay>,
    ) -> Result<Progress, Unreached> {
        match self {
            Attempt::Connecting(connecting) => {
                let socket = connecting.await?;
                *self = Attempt::Greeting(reach(socket, identity, relay.cloned()).boxed());
                Ok(Progress::Connected)
            }
            Attempt::Greeting(greeting) => {
                let reached = greeting.await?;
                let node = NodeId(reached.welcome.node_id);
                *self = Attempt::Welcomed(reached);
                Ok(Progress::Welcomed(node))
            }
            Attempt::Welcomed(_) => std::future::pending().await,
        }
    }
}

/// Greets the node at the other end, or the one that it passes the connection on to.
async fn reach(socket: TcpStream, identity: &Identity, relay: Option<Relay>) -> Result<Reached, Unreached> {
    let (to, by) = relay.map(|Relay { to, address }| (to, address)).unzip();
    let (stream, welcome) = be_welcomed(socket, identity, to).await?;
    Ok(Reached { stream, welcome, by })
}

/// Has itself welcomed by the node at the other end, or by `to` by its help.
async fn be_welcomed(
    socket: TcpStream,
    identity: &Identity,
    to: Option<NodeId>,
) -> Result<(Stream, wire::Welcome), Unreached> {
    socket.set_nodelay(true)?;
    let Some(tls) = &identity.tls else {
        let mut stream = Stream::from(socket);
        let welcome = greet(&mut stream, identity, to).await?;
        return Ok((stream, welcome_of(welcome, to)?));
    };
    let (mut stream, mut node) = secure(tls, socket.into()).await?;
    if let Some(to) = to {
        greet(&mut stream, identity, Some(to)).await.map_err(refused_by_node)?;
        // Who passes the connection on sees a session that it has no part in.
        (stream, node) = secure(tls, stream).await?;
        if node != to {
            return Err(Unreached::Refused(Refusal::WrongNode { meant: to, answers: node }));
        }
    }
    let welcome = greet(&mut stream, identity, None).await.map_err(refused_by_node)?;
    Ok((stream, welcome_of(welcome, Some(node))?))
}

/// By a relay; the node that has welcomed us, or why none has.
#[cfg(test)]
pub(super) async fn connect_by(by: &str, identity: &Identity, to: NodeId) -> Result<NodeId, String> {
    let socket = TcpStream::connect(by).await.map_err(|error| error.to_string())?;
    let welcomed = be_welcomed(socket, identity, Some(to)).await;
    welcomed.map(|(_, welcome)| NodeId(welcome.node_id)).map_err(|why| format!("{why:?}"))
}

/// A direct connection.
#[cfg(test)]
pub(super) async fn connect(address: &str, identity: &Identity) -> Reached {
    let socket = TcpStream::connect(address).await.expect("the test listens");
    reach(socket, identity, None).await.expect("the test welcomes")
}

/// A session with a node, and which one that is.
async fn secure(tls: &Mutual, stream: Stream) -> Result<(Stream, NodeId), Unreached> {
    let shaken = tls.connect(stream).await;
    let (stream, holder) = shaken.map_err(|error| Unreached::Refused(Refusal::Handshake(error)))?;
    match holder.role {
        Role::Node(node) => Ok((stream, NodeId(node))),
        Role::Gateway(_) => Err(Unreached::Refused(Refusal::NotANode(holder))),
    }
}

/// That our certificate is refused shows when the answer is read.
fn refused_by_node(unreached: Unreached) -> Unreached {
    match unreached {
        Unreached::Io(error) => Unreached::Refused(Refusal::ByNode(format!("instead of a welcome: {error}"))),
        refused @ Unreached::Refused(_) => refused,
    }
}

/// Says hello, and reads the welcome.
async fn greet(
    stream: &mut Stream,
    identity: &Identity,
    to: Option<NodeId>,
) -> Result<wire::Welcome, Unreached> {
    let hello = wire::Hello {
        version: VERSION,
        cluster_id: identity.cluster.load(Ordering::Relaxed),
        name: identity.name.clone(),
        to: to.map_or(0, |to| to.0),
        region: identity.place.region.clone(),
        zone: identity.place.zone.clone(),
        client_urls: identity.client_urls.clone(),
        capacity: identity.capacity,
    };
    let mut buffer = BytesMut::new();
    encode_frame(&hello, &mut buffer);
    stream.write_all(&buffer).await?;
    let length = stream.read_u32().await? as usize;
    if length > WELCOME_BYTES_MAX {
        return Err(invalid("the welcome is too long"));
    }
    let mut welcome = vec![0; length];
    stream.read_exact(&mut welcome).await?;
    let welcome = wire::Welcome::decode(Bytes::from(welcome)).map_err(io::Error::other)?;
    if !welcome.refused.is_empty() {
        return Err(Unreached::Refused(Refusal::ByNode(welcome.refused)));
    }
    Ok(welcome)
}

/// The welcome of a node, of that one if it is known which is meant.
fn welcome_of(welcome: wire::Welcome, meant: Option<NodeId>) -> Result<wire::Welcome, Unreached> {
    match meant {
        _ if welcome.node_id == 0 => Err(invalid("a node without an id")),
        Some(meant) if meant.0 != welcome.node_id => {
            let answers = NodeId(welcome.node_id);
            Err(Unreached::Refused(Refusal::WrongNode { meant, answers }))
        }
        _ if welcome.version < VERSION_LEAST => Err(Unreached::Refused(Refusal::TooOld(welcome.version))),
        Some(_) | None => Ok(welcome),
    }
}

fn invalid(what: &'static str) -> Unreached {
    Unreached::Io(io::Error::new(io::ErrorKind::InvalidData, what))
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}
