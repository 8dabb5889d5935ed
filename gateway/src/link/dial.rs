//! How a link comes to its node: straight, or by a detour over another node, where the network parts us from this one
//! only.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use api::gaios::link::{VERSION, WELCOME_BYTES_MAX, v1 as wire};
use backoff::Backoff;
use bytes::{Bytes, BytesMut};
use gateway_core::NodeId;
use parking_lot::Mutex;
use prost::Message as _;
use tls::{Mutual, Role, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::refusals::Refusal;
use super::{Identity, encode_frame};
use crate::domain::LinkCounts;
use crate::random::random_u32;

/// From dialling to the node's welcome.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A second address of a node that is reached by another one is dialled this often.
const SPARE_FOR: Duration = Duration::from_mins(1);
/// A node that has not welcomed us for so long is looked for by a detour, if nothing is known of the ways to it.
const DETOUR_AFTER: Duration = Duration::from_millis(500);
/// After a straight link that fell silent a detour has this start over the straight way.
const START: Duration = Duration::from_secs(1);
/// A node that is reached may be recovering, or stand still, and then a detour ends at the same door. After so many
/// attempts without a welcome something in between may let connections through and nothing else.
const UNWELCOME_MAX: u32 = 2;
/// How long a detour that is there waits for a straight way that is nearly there.
const GRACE: Duration = Duration::from_millis(100);

/// A connection whose other end has welcomed us.
#[derive(Debug)]
pub(super) struct Reached {
    pub(super) stream: Stream,
    pub(super) welcome: wire::Welcome,
    /// The address of the node that passes the connection on.
    pub(super) by: Option<String>,
}

/// What a link dials, for as long as somebody wants it.
#[derive(Debug)]
pub(crate) struct Target {
    /// `IP:port`.
    pub(crate) address: String,
    /// No name leads there any more. A link that is up stays as long as its node is reached nowhere else.
    pub(crate) unwanted: CancellationToken,
}

impl Target {
    pub(crate) fn new(address: impl Into<String>) -> Arc<Target> {
        Arc::new(Target { address: address.into(), unwanted: CancellationToken::new() })
    }
}

/// Who lives where, and who is reached straight: what a detour is made of, and by what a second address of a node that is
/// reached is told.
#[derive(Debug, Default)]
pub(crate) struct Detours {
    state: Mutex<State>,
    /// Told of every straight link that comes up.
    news: watch::Sender<()>,
    /// Told of all else that changes, too.
    changes: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    /// The node at an address, as it said itself, or as the shard map says.
    residents: BTreeMap<String, NodeId>,
    /// Target and node of every straight link that is up.
    straight: Vec<(Arc<Target>, NodeId)>,
    /// Links by a detour that are up.
    detours: usize,
}

impl Detours {
    pub(crate) fn learn(&self, address: &str, node: NodeId) {
        self.state.lock().residents.insert(address.to_owned(), node);
    }

    /// Nobody dials the address any more.
    pub(crate) fn forget(&self, address: &str) {
        self.state.lock().residents.remove(address);
    }

    /// A link is up: straight, or by a detour. Returns whether it is of use: a node that is reached straight by another address
    /// needs no second one, as long as that address is wanted.
    pub(super) fn link_up(&self, target: &Arc<Target>, node: NodeId, straight: bool) -> bool {
        let mut state = self.state.lock();
        if straight {
            state.residents.insert(target.address.clone(), node);
            if state.is_elsewhere(target, node) {
                return false;
            }
            state.straight.push((Arc::clone(target), node));
            drop(state);
            self.news.send_replace(());
        } else {
            state.detours += 1;
            drop(state);
        }
        self.changes.send_replace(());
        true
    }

    pub(super) fn link_down(&self, target: &Arc<Target>, node: NodeId, straight: bool) {
        let mut state = self.state.lock();
        if !straight {
            state.detours -= 1;
        } else if let Some(index) =
            state.straight.iter().position(|(up, resident)| Arc::ptr_eq(up, target) && *resident == node)
        {
            state.straight.swap_remove(index);
        }
        drop(state);
        self.changes.send_replace(());
    }

    /// Told whenever something comes up or goes down.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Whether a straight link to the target is up, or its node is reached straight by another address.
    pub(crate) fn is_reached(&self, target: &Arc<Target>) -> bool {
        let state = self.state.lock();
        state.straight.iter().any(|(up, _)| Arc::ptr_eq(up, target)) || state.is_spare(target)
    }

    /// Returns when the target has to be dialled: its node is reached by no other address, as far as is known.
    async fn until_needed(&self, target: &Arc<Target>) {
        self.until(|state| !state.is_spare(target)).await;
    }

    async fn until_spare(&self, target: &Arc<Target>) {
        self.until(|state| state.is_spare(target)).await;
    }

    /// Returns when the link to an unwanted target is not needed any more.
    pub(super) async fn until_left(&self, target: &Arc<Target>, node: NodeId) {
        target.unwanted.cancelled().await;
        self.until(|state| state.is_elsewhere(target, node)).await;
    }

    async fn until(&self, holds: impl Fn(&State) -> bool) {
        let mut changes = self.changes.subscribe();
        while !holds(&self.state.lock()) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Whether a node is reached straight, by whatever address.
    pub(crate) fn is_straight(&self, node: NodeId) -> bool {
        self.state.lock().is_straight(node)
    }

    pub(crate) fn count(&self) -> LinkCounts {
        let state = self.state.lock();
        LinkCounts { straight: state.straight.len(), by_detour: state.detours, refused: Vec::new(), owed: 0 }
    }

    /// Returns when a node is reached straight, by whatever address.
    pub(super) async fn until_straight(&self, node: NodeId) {
        let mut news = self.news.subscribe();
        while !self.state.lock().is_straight(node) {
            if news.changed().await.is_err() {
                return;
            }
        }
    }

    /// The node at `address`, if it is reached nowhere straight, and the address of another one which may pass a connection
    /// on to it, by a random number.
    fn to(&self, address: &str, random: u32) -> Option<(NodeId, String)> {
        let state = self.state.lock();
        let node = *state.residents.get(address)?;
        if state.is_straight(node) {
            return None;
        }
        let (by, _) = state.straight.get(random as usize % state.straight.len().max(1))?;
        Some((node, by.address.clone()))
    }
}

impl State {
    fn is_straight(&self, node: NodeId) -> bool {
        self.straight.iter().any(|(_, reached)| *reached == node)
    }

    /// Whether `node` is reached straight by another target than this one, which will stay.
    fn is_elsewhere(&self, target: &Arc<Target>, node: NodeId) -> bool {
        self.straight
            .iter()
            .any(|(up, reached)| *reached == node && !Arc::ptr_eq(up, target) && !up.unwanted.is_cancelled())
    }

    fn is_spare(&self, target: &Arc<Target>) -> bool {
        self.residents.get(&target.address).is_some_and(|node| self.is_elsewhere(target, *node))
    }
}

/// Which way is tried first, by how the last link ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Order {
    straight_after: Duration,
    detour_after: Duration,
}

impl Order {
    /// Nothing speaks against the straight way.
    pub(super) const STRAIGHT: Order = Order { straight_after: Duration::ZERO, detour_after: DETOUR_AFTER };
    /// The straight way was there and carried nothing.
    pub(super) const DETOUR: Order = Order { straight_after: START, detour_after: Duration::ZERO };
    /// A detour was lost. Another is as good.
    pub(super) const EITHER: Order = Order { straight_after: Duration::ZERO, detour_after: Duration::ZERO };
}

/// How the straight way goes, for the detour beside it.
#[derive(Debug, Default)]
struct Straight {
    /// Connected, and not welcomed yet.
    connected: AtomicBool,
    /// Connections that were not welcomed.
    unwelcome: AtomicU32,
}

impl Straight {
    fn is_near(&self) -> bool {
        self.connected.load(Ordering::Relaxed) && self.unwelcome.load(Ordering::Relaxed) < UNWELCOME_MAX
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

/// As soon as the target's node is reached by no other address. What is known of who lives there may be out of date, so it is
/// looked at now and then all the same.
pub(super) async fn reach_if_needed(target: &Arc<Target>, identity: &Identity, order: Order) -> Reached {
    loop {
        // Either is as good a reason to dial.
        let _ = timeout(SPARE_FOR, identity.detours.until_needed(target)).await;
        let spare = async {
            sleep(CONNECT_TIMEOUT).await;
            identity.detours.until_spare(target).await;
        };
        tokio::select! {
            reached = reach(&target.address, identity, order) => return reached,
            () = spare => {}
        }
    }
}

/// By whichever way it can be reached first.
pub(super) async fn reach(address: &str, identity: &Identity, order: Order) -> Reached {
    let straight = Straight::default();
    let may_detour = identity.detours.to(address, 0).is_some();
    let straight_way = async {
        if may_detour {
            sleep(order.straight_after).await;
        }
        let backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
        reach_straight(address, identity, backoff, &straight).await
    };
    let detour = async {
        sleep(order.detour_after).await;
        reach_by_detour(address, identity, &straight).await
    };
    tokio::select! {
        reached = straight_way => reached,
        reached = detour => reached,
    }
}

/// A straight way in place of a detour, which costs a hop and another node's work.
pub(super) async fn leave_detour(address: &str, after: Duration, identity: &Identity) -> Reached {
    sleep(after).await;
    let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
    reach_straight(address, identity, backoff, &Straight::default()).await
}

async fn reach_straight(
    address: &str,
    identity: &Identity,
    mut backoff: Backoff,
    straight: &Straight,
) -> Reached {
    loop {
        match within_timeout(connect(address, identity, None, Some(&straight.connected))).await {
            Ok((stream, welcome)) => return Reached { stream, welcome, by: None },
            Err(Unreached::Io(error)) => debug!(address, %error, "no link to the node"),
            Err(Unreached::Refused(refusal)) => identity.refusals.note(address, &refusal),
        }
        if straight.connected.swap(false, Ordering::Relaxed) {
            straight.unwelcome.fetch_add(1, Ordering::Relaxed);
        }
        sleep(backoff.next(random_u32())).await;
    }
}

async fn reach_by_detour(address: &str, identity: &Identity, straight: &Straight) -> Reached {
    let mut news = identity.detours.news.subscribe();
    let mut backoff = Backoff::new(DETOUR_AFTER, Duration::from_secs(5));
    loop {
        let detour = identity.detours.to(address, random_u32()).filter(|_| !straight.is_near());
        if let Some((node, by)) = detour {
            match within_timeout(connect(&by, identity, Some(node), None)).await {
                Ok((stream, welcome)) => {
                    if straight.is_near() {
                        sleep(GRACE).await;
                    }
                    return Reached { stream, welcome, by: Some(by) };
                }
                Err(Unreached::Io(error)) => debug!(address, node, by, %error, "no detour to the node"),
                // That the other one cannot reach it either is what is to be expected.
                Err(Unreached::Refused(Refusal::ByNode(reason))) => {
                    debug!(address, node, by, reason, "no detour to the node");
                }
                Err(Unreached::Refused(refusal)) => identity.refusals.note(&by, &refusal),
            }
        }
        tokio::select! {
            () = sleep(backoff.next(random_u32())) => {}
            // It may lead to this one.
            _ = news.changed() => backoff.reset(),
        }
    }
}

async fn within_timeout<T>(connecting: impl Future<Output = Result<T, Unreached>>) -> Result<T, Unreached> {
    match timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(result) => result,
        Err(_) => Err(Unreached::Io(io::ErrorKind::TimedOut.into())),
    }
}

/// Connects with the node at `address`, or with `to` by its help.
async fn connect(
    address: &str,
    identity: &Identity,
    to: Option<NodeId>,
    connected: Option<&AtomicBool>,
) -> Result<(Stream, wire::Welcome), Unreached> {
    let socket = TcpStream::connect(address).await?;
    if let Some(connected) = connected {
        connected.store(true, Ordering::Relaxed);
    }
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

/// As a detour does; the node that has welcomed us, or why none has.
#[cfg(test)]
pub(super) async fn connect_by(by: &str, identity: &Identity, to: NodeId) -> Result<NodeId, String> {
    let connected = within_timeout(connect(by, identity, Some(to), None)).await;
    connected.map(|(_, welcome)| welcome.node_id).map_err(|why| format!("{why:?}"))
}

/// A session with a node, and which one that is.
async fn secure(tls: &Mutual, stream: Stream) -> Result<(Stream, NodeId), Unreached> {
    let shaken = tls.connect(stream).await;
    let (stream, holder) = shaken.map_err(|error| Unreached::Refused(Refusal::Handshake(error)))?;
    match holder.role {
        Role::Node(node) => Ok((stream, node)),
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
        to: to.unwrap_or(0),
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
        Some(meant) if meant != welcome.node_id => {
            Err(Unreached::Refused(Refusal::WrongNode { meant, answers: welcome.node_id }))
        }
        Some(_) | None => Ok(welcome),
    }
}

fn invalid(what: &'static str) -> Unreached {
    Unreached::Io(io::Error::new(io::ErrorKind::InvalidData, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_detour_leads_over_another_node_to_one_that_is_not_reached_straight() {
        let detours = Detours::default();
        let [a1, a2, b, c, e] = ["a:1", "a:2", "b:1", "c:1", "e:1"].map(Target::new);
        detours.learn("a:1", 1);
        detours.learn("a:2", 1);
        assert!(detours.link_up(&b, 2, true));
        let by = |address| (0..9).map(|random| detours.to(address, random)).collect::<Vec<_>>();
        assert!(by("a:1").iter().all(|detour| *detour == Some((1, "b:1".to_owned()))), "{:?}", by("a:1"));
        assert!(by("b:1").iter().all(Option::is_none), "it is there already");
        assert!(by("c:1").iter().all(Option::is_none), "nobody knows who lives there");
        detours.link_up(&c, 3, true);
        for other in ["b:1", "c:1"] {
            assert!(by("a:1").contains(&Some((1, other.to_owned()))), "{:?}", by("a:1"));
        }
        detours.link_up(&e, 5, false);
        assert!(by("a:1").iter().flatten().all(|(_, by)| by != "e:1"), "a detour leads over no other");
        assert_eq!(detours.count(), LinkCounts { straight: 2, by_detour: 1, refused: Vec::new(), owed: 0 });

        // By another address.
        let mut straight = Box::pin(detours.until_straight(1));
        assert!(poll_once(&mut straight).is_none());
        assert!(detours.link_up(&a2, 1, true));
        assert!(poll_once(&mut straight).is_some());
        assert!(by("a:1").iter().all(Option::is_none), "{:?}", by("a:1"));
        detours.link_down(&a2, 7, true);
        assert!(by("a:1").iter().all(Option::is_none), "that was another link");
        detours.link_down(&a2, 1, true);
        assert!(by("a:1").iter().all(Option::is_some));
        detours.link_down(&b, 2, true);
        detours.link_down(&c, 3, true);
        detours.link_down(&e, 5, false);
        assert!(by("a:1").iter().all(Option::is_none), "{:?}", by("a:1"));
        assert_eq!(detours.count(), LinkCounts::default());
        assert!(!detours.is_reached(&a1));
    }

    #[tokio::test]
    async fn of_two_addresses_of_a_node_one_is_spare() {
        let detours = Detours::default();
        let (one, other) = (Target::new("a:1"), Target::new("a:2"));
        assert!(
            poll_once(&mut Box::pin(detours.until_needed(&other))).is_some(),
            "nobody knows who lives there"
        );
        assert!(detours.link_up(&one, 1, true));
        assert!(detours.link_up(&one, 1, true), "links of one address share the work");
        assert!(!detours.link_up(&other, 1, true));
        assert!(detours.is_reached(&other), "by the other address");
        let mut needed = Box::pin(detours.until_needed(&other));
        assert!(poll_once(&mut needed).is_none());
        detours.link_down(&one, 1, true);
        assert!(poll_once(&mut needed).is_none());
        detours.link_down(&one, 1, true);
        assert!(poll_once(&mut needed).is_some());
        assert!(detours.link_up(&other, 1, true));
        assert!(!detours.link_up(&one, 1, true));
        drop(needed);
        // Its node is another one today.
        detours.learn("a:1", 2);
        assert!(poll_once(&mut Box::pin(detours.until_needed(&one))).is_some());
        assert!(detours.link_up(&one, 2, true));
    }

    #[tokio::test]
    async fn a_link_that_no_name_leads_to_is_left_once_its_node_is_reached_elsewhere() {
        let detours = Detours::default();
        let (old, new, newer) = (Target::new("a:1"), Target::new("a:2"), Target::new("a:3"));
        assert!(detours.link_up(&old, 1, true));
        let mut left = Box::pin(detours.until_left(&old, 1));
        assert!(poll_once(&mut left).is_none());
        old.unwanted.cancel();
        assert!(poll_once(&mut left).is_none(), "there is no other yet");
        assert!(detours.link_up(&new, 1, true), "an unwanted one is no reason not to");
        assert!(poll_once(&mut left).is_some());
        assert!(!detours.link_up(&newer, 1, true));
    }

    fn poll_once<T>(future: &mut (impl Future<Output = T> + Unpin)) -> Option<T> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::Pin::new(future).poll(&mut context) {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        }
    }
}
