//! How a link comes to its node: straight, or by a detour over another node, where the network parts us from this one
//! only.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use api::gaios::link::v1 as wire;
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::{Identity, encode_frame};
use crate::backoff::{Backoff, random_u32};
use crate::domain::LinkCounts;
use crate::router::NodeId;

/// Version of the protocol in `link.proto`.
const VERSION: u32 = 1;
/// From dialling to the node's welcome.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The largest welcome.
const WELCOME_BYTES_MAX: usize = 64 << 10;
/// A node that cannot be reached for so long is looked for by a detour. A restart of its process takes less.
const DETOUR_AFTER: Duration = Duration::from_millis(500);

/// A connection whose other end has welcomed us.
#[derive(Debug)]
pub(super) struct Reached {
    pub(super) stream: TcpStream,
    pub(super) welcome: wire::Welcome,
    /// The address of the node that passes the connection on.
    pub(super) by: Option<String>,
}

/// Who lives where, and who is reached straight: what a detour is made of.
#[derive(Debug, Default)]
pub(crate) struct Detours(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The node at an address, as it said itself, or as the shard map says.
    residents: BTreeMap<String, NodeId>,
    /// Address and node of every straight link that is up.
    straight: Vec<(String, NodeId)>,
    /// Links by a detour that are up.
    detours: usize,
}

impl Detours {
    pub(crate) fn learn(&self, address: &str, node: NodeId) {
        self.0.lock().residents.insert(address.to_owned(), node);
    }

    /// A link is up: straight, or by a detour.
    pub(super) fn link_up(&self, address: &str, node: NodeId, straight: bool) {
        let mut state = self.0.lock();
        if straight {
            state.residents.insert(address.to_owned(), node);
            state.straight.push((address.to_owned(), node));
        } else {
            state.detours += 1;
        }
    }

    pub(super) fn link_down(&self, address: &str, straight: bool) {
        let mut state = self.0.lock();
        if !straight {
            state.detours -= 1;
        } else if let Some(index) = state.straight.iter().position(|(up, _)| up == address) {
            state.straight.swap_remove(index);
        }
    }

    pub(crate) fn count(&self) -> LinkCounts {
        let state = self.0.lock();
        LinkCounts { straight: state.straight.len(), by_detour: state.detours }
    }

    /// The node at `address`, and the address of another one which may pass a connection on to it, by a random number.
    fn to(&self, address: &str, random: u32) -> Option<(NodeId, String)> {
        let state = self.0.lock();
        let node = *state.residents.get(address)?;
        let others: Vec<_> = state.straight.iter().filter(|(_, other)| *other != node).collect();
        let (by, _) = others.get(random as usize % others.len().max(1))?;
        Some((node, by.clone()))
    }
}

/// Why a node was not reached.
#[derive(Debug)]
enum Unreached {
    Io(io::Error),
    /// By the node, or by the one that was to pass the connection on.
    Refused(String),
}

impl From<io::Error> for Unreached {
    fn from(error: io::Error) -> Unreached {
        Unreached::Io(error)
    }
}

/// By whichever way it can be reached first.
pub(super) async fn reach(address: &str, identity: &Identity) -> Reached {
    tokio::select! {
        reached = reach_straight(address, identity, Backoff::new(Duration::from_millis(20), Duration::from_secs(1))) => {
            reached
        }
        reached = reach_by_detour(address, identity) => reached,
    }
}

/// A straight way in place of a detour, which costs a hop and another node's work.
pub(super) async fn leave_detour(address: &str, after: Duration, identity: &Identity) -> Reached {
    sleep(after).await;
    reach_straight(address, identity, Backoff::new(Duration::from_secs(1), Duration::from_secs(30))).await
}

async fn reach_straight(address: &str, identity: &Identity, mut backoff: Backoff) -> Reached {
    loop {
        match within_timeout(connect(address, identity, None)).await {
            Ok((stream, welcome)) => return Reached { stream, welcome, by: None },
            Err(Unreached::Io(error)) => debug!(address, %error, "no link to the node"),
            Err(Unreached::Refused(reason)) => warn!(address, reason, "a node refused the link"),
        }
        sleep(backoff.next(random_u32())).await;
    }
}

async fn reach_by_detour(address: &str, identity: &Identity) -> Reached {
    let mut backoff = Backoff::new(DETOUR_AFTER, Duration::from_secs(5));
    sleep(DETOUR_AFTER).await;
    loop {
        if let Some((node, by)) = identity.detours.to(address, random_u32()) {
            match within_timeout(connect(&by, identity, Some(node))).await {
                Ok((stream, welcome)) => return Reached { stream, welcome, by: Some(by) },
                Err(error) => debug!(address, node, by, ?error, "no detour to the node"),
            }
        }
        sleep(backoff.next(random_u32())).await;
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
) -> Result<(TcpStream, wire::Welcome), Unreached> {
    let invalid = |what| Unreached::Io(io::Error::new(io::ErrorKind::InvalidData, what));
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let hello = wire::Hello {
        version: VERSION,
        cluster_id: identity.cluster.load(Ordering::Relaxed),
        name: identity.name.clone(),
        to: to.unwrap_or(0),
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
        return Err(Unreached::Refused(welcome.refused));
    }
    if welcome.node_id == 0 {
        return Err(invalid("a node without an id"));
    }
    if to.is_some_and(|to| to != welcome.node_id) {
        return Err(invalid("another node answered than the one that is meant"));
    }
    Ok((stream, welcome))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detour_leads_over_another_node_that_is_reached_straight() {
        let detours = Detours::default();
        detours.learn("a:1", 1);
        detours.link_up("b:1", 2, true);
        let by = |address| (0..9).map(|random| detours.to(address, random)).collect::<Vec<_>>();
        assert!(by("a:1").iter().all(|detour| *detour == Some((1, "b:1".to_owned()))), "{:?}", by("a:1"));
        assert!(by("b:1").iter().all(Option::is_none), "no node passes a connection on to itself");
        assert!(by("c:1").iter().all(Option::is_none), "nobody knows who lives there");
        detours.link_up("c:1", 3, true);
        detours.link_up("d:1", 1, true);
        for other in ["b:1", "c:1"] {
            assert!(by("a:1").contains(&Some((1, other.to_owned()))), "{:?}", by("a:1"));
        }
        assert!(by("a:1").iter().flatten().all(|(_, by)| by != "d:1"), "the same node, by another address");
        detours.link_up("e:1", 5, false);
        assert!(by("a:1").iter().flatten().all(|(_, by)| by != "e:1"), "a detour leads over no other");
        assert_eq!(detours.count(), LinkCounts { straight: 3, by_detour: 1 });
        detours.link_down("b:1", true);
        detours.link_down("c:1", true);
        detours.link_down("e:1", false);
        assert_eq!(detours.count(), LinkCounts { straight: 1, by_detour: 0 });
        assert!(by("a:1").iter().all(Option::is_none), "{:?}", by("a:1"));
    }
}
