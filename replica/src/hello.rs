//! How two nodes come to believe that they speak with each other, and what they make of what they hear then.
//!
//! With certificates, each is who its certificate says. Without them, the dialler trusts the address in its configuration; and
//! who was dialled calls back: it asks at the address of the node that the caller says it is whether the caller's number is
//! that of the process there ([`Purpose::Confirm`]). The number is random, and nodes tell it to each other only, so a
//! stranger would have to answer at that node's address. Before that, a caller is told nothing.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use consensus_core::{NodeId, NodeStatus};
use tls::Stream;
use tokio::io::AsyncWrite;
use tokio::time::timeout;

use crate::frames::{HANDSHAKE_TIMEOUT, connect, read_frame, write_frame};
use crate::peer::Peer;
use crate::redial::NoLink;
use crate::refusal::Refusal;
use crate::shared::Shared;
use crate::suspicion::Accuser;
use crate::wire::{Frames, HELLO_BYTES_MAX, PeerHello, Purpose};

/// For the call back: the caller waits meanwhile.
const CALL_BACK_TIMEOUT: Duration = Duration::from_secs(2);

/// The dialler's half: connects, says who we are, and checks who answers.
pub(crate) async fn call(
    shared: &Shared,
    peer: &Peer,
    purpose: Purpose,
) -> Result<(Stream, PeerHello), NoLink> {
    let stream = connect(&shared.discovery, &peer.address).await.map_err(NoLink::Unreachable)?;
    let called = async {
        let mut stream = secure(shared, peer, stream.into()).await?;
        write_hello(&mut stream, &hello(shared, purpose, peer.id)).await?;
        let answer = read_hello(&mut stream).await?;
        Ok((stream, answer))
    };
    let called =
        timeout(HANDSHAKE_TIMEOUT, called).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let (stream, answer) = called.map_err(|error: io::Error| NoLink::Refused(error.to_string()))?;
    match check_answer(shared, peer.id, purpose, &answer) {
        Ok(()) => Ok((stream, answer)),
        Err(why) => Err(NoLink::Refused(why)),
    }
}

/// The session of a link, where links have certificates: with that peer and nobody else. What answers is refused for the
/// same reasons as who calls, and counted beside.
async fn secure(shared: &Shared, peer: &Peer, stream: Stream) -> io::Result<Stream> {
    let Some(tls) = &shared.tls else { return Ok(stream) };
    let refused = |refusal: Refusal| {
        shared.metrics.answer_refused(refusal.label());
        io::Error::other(refusal.to_string())
    };
    let (stream, holder) = tls.connect(stream).await.map_err(|error| refused(Refusal::Tls(error)))?;
    if holder.role != tls::Role::Node(peer.id.0) {
        return Err(refused(Refusal::WrongHolder(format!(
            "its certificate is that of {holder}, not of node {}: check the addresses in the configuration",
            peer.id.0
        ))));
    }
    Ok(stream)
}

fn check_answer(shared: &Shared, to: NodeId, purpose: Purpose, answer: &PeerHello) -> Result<(), String> {
    if answer.cluster != shared.cluster || answer.from != to {
        return Err(format!(
            "asked for node {} of cluster {:x}, reached node {} of cluster {:x}: check the addresses in the configuration",
            to.0, shared.cluster, answer.from.0, answer.cluster
        ));
    }
    if purpose == Purpose::Ask && answer.groups != shared.groups_digest {
        return Err(format!(
            "node {} has other groups in its configuration, or other voters for them: make `cluster` the same on all nodes",
            to.0
        ));
    }
    if purpose != Purpose::Ask {
        check_lives(shared, answer)?;
    }
    Ok(())
}

/// The answering half: checks the hello that opened the connection, and says who we are. `holder` is whose certificate the
/// caller has. `None` when the answer was all it wanted.
pub(crate) async fn answer(
    shared: &Arc<Shared>,
    stream: &mut Stream,
    first: &[u8],
    holder: Option<&tls::Identity>,
) -> Result<Option<(Arc<Peer>, Purpose)>, Refusal> {
    let asked = PeerHello::decode(first).map_err(|error| Refusal::Malformed(error.to_string()))?;
    if let Some(holder) = holder
        && holder.role != tls::Role::Node(asked.from.0)
    {
        return Err(Refusal::WrongHolder(format!("{holder} says that it is node {}", asked.from.0)));
    }
    let Some(peer) = shared.peers.get(&asked.from) else { return Err(Refusal::Stranger(asked.from)) };
    if asked.cluster != shared.cluster || asked.to != shared.id {
        return Err(Refusal::Misdirected(format!(
            "node {} of cluster {:x} looks for node {}: check the addresses in its configuration",
            asked.from.0, asked.cluster, asked.to.0
        )));
    }
    if asked.purpose == Purpose::Confirm {
        return confirm(shared, stream, &asked).await.map(|()| None);
    }
    if holder.is_none() && !peer.was_linked_with(asked.incarnation, asked.nonce) {
        call_back(shared, peer, asked.nonce).await?;
    }
    if shared.seat.is_aside() && asked.purpose != Purpose::Ask {
        return Err(Refusal::Aside);
    }
    let answer = hello(shared, asked.purpose, asked.from);
    // One that is told that its place is taken takes nothing from this answer.
    if matches!(asked.status, NodeStatus::Newcomer { .. }) && !answer.taken {
        shared.liveness.begins_anew(asked.from);
    }
    write_hello(stream, &answer).await.map_err(|_| Refusal::Gone)?;
    // Of a newcomer both know why there is no link.
    let newcomer =
        [answer.status, asked.status].iter().any(|status| matches!(status, NodeStatus::Newcomer { .. }));
    if newcomer || asked.purpose == Purpose::Ask {
        return Ok(None);
    }
    check_lives(shared, &asked).map_err(Refusal::OldCopy)?;
    if asked.purpose == Purpose::Link {
        peer.linked_with(asked.incarnation, asked.nonce, asked.support);
        peer.knows(asked.knows);
        shared.compare_support(peer, asked.support);
    }
    Ok(Some((Arc::clone(peer), asked.purpose)))
}

/// Whether the number that a peer was told is that of this process.
async fn confirm(shared: &Shared, stream: &mut Stream, asked: &PeerHello) -> Result<(), Refusal> {
    if asked.nonce_heard != shared.nonce {
        return Err(Refusal::NotOurs(asked.from));
    }
    let answer = PeerHello { nonce: shared.nonce, ..bare(shared, Purpose::Confirm, asked.from) };
    write_hello(stream, &answer).await.map_err(|_| Refusal::Gone)
}

/// Asks at the peer's address whether the caller is the process there.
async fn call_back(shared: &Shared, peer: &Peer, nonce: u64) -> Result<(), Refusal> {
    let unconfirmed = |what: String| Refusal::Unconfirmed(peer.id, what);
    let asking = async {
        // One after the other: forged hellos must not become a flood towards the peer.
        let _turn = peer.call_back.lock().await;
        let mut stream = Stream::from(connect(&shared.discovery, &peer.address).await?);
        let question = PeerHello { nonce_heard: nonce, ..bare(shared, Purpose::Confirm, peer.id) };
        write_hello(&mut stream, &question).await?;
        read_hello(&mut stream).await
    };
    let answered =
        timeout(CALL_BACK_TIMEOUT, asking).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let answer = answered.map_err(|error| unconfirmed(error.to_string()))?;
    let expected = (Purpose::Confirm, shared.cluster, peer.id, nonce);
    if (answer.purpose, answer.cluster, answer.from, answer.nonce) != expected {
        return Err(unconfirmed("it says something else".to_owned()));
    }
    Ok(())
}

/// A hello that tells nothing.
fn bare(shared: &Shared, purpose: Purpose, to: NodeId) -> PeerHello {
    PeerHello {
        purpose,
        cluster: shared.cluster,
        from: shared.id,
        to,
        incarnation: 0,
        nonce: 0,
        nonce_heard: 0,
        taken: false,
        status: NodeStatus::Placed { known_as: None, incarnation_heard: 0 },
        groups: 0,
        knows: Frames::ALL,
        support: None,
    }
}

fn hello(shared: &Shared, purpose: Purpose, to: NodeId) -> PeerHello {
    // First, since a place comes with an incarnation of its own.
    let status = shared.node_status(to);
    let peer = shared.peers.get(&to);
    PeerHello {
        incarnation: shared.liveness.incarnation(),
        nonce: shared.nonce,
        nonce_heard: peer.map_or(0, |peer| peer.process_in(shared.liveness.incarnation_heard(to))),
        taken: purpose == Purpose::Ask && peer.is_some_and(|peer| peer.is_linked()),
        status,
        groups: shared.groups_digest,
        support: Some(shared.timing.support),
        ..bare(shared, purpose, to)
    }
}

/// Whether the other one has heard a later incarnation of this node, or another process in this one.
pub(crate) fn has_heard_another(shared: &Shared, other: &PeerHello) -> bool {
    // A newcomer has heard nothing.
    let NodeStatus::Placed { incarnation_heard, .. } = other.status else { return false };
    let own = shared.liveness.incarnation();
    incarnation_heard > own || incarnation_heard == own && is_other_process(other.nonce_heard, shared.nonce)
}

fn is_other_process(heard: u64, own: u64) -> bool {
    heard != 0 && heard != own
}

/// That neither of the two is in an earlier incarnation than one which was heard: what it promised and voted for since would
/// not be in its directory. If this node is said to be, it steps aside.
fn check_lives(shared: &Shared, other: &PeerHello) -> Result<(), String> {
    // A newcomer's incarnation gets its number with its place.
    let NodeStatus::Placed { .. } = other.status else { return Ok(()) };
    if !shared.seat.is_taken() {
        return Ok(());
    }
    if has_heard_another(shared, other) {
        shared.accused(Accuser { node: other.from, process: other.nonce });
        return Err("this node was started with an old copy of its data directory, or runs twice".to_owned());
    }
    let heard = shared.liveness.incarnation_heard(other.from);
    let known = shared.peers.get(&other.from).map_or(0, |peer| peer.process_in(other.incarnation));
    if heard > other.incarnation || is_other_process(known, other.nonce) {
        return Err(format!(
            "node {} is in incarnation {}, and another process in incarnation {} of it has been heard: it was started with an old copy of \
             its data directory, or runs twice",
            other.from.0,
            other.incarnation,
            heard.max(other.incarnation)
        ));
    }
    Ok(())
}

pub(crate) async fn write_hello(stream: &mut (impl AsyncWrite + Unpin), hello: &PeerHello) -> io::Result<()> {
    let mut body = BytesMut::new();
    hello.encode(&mut body);
    write_frame(stream, &body).await
}

async fn read_hello(stream: &mut Stream) -> io::Result<PeerHello> {
    let frame = read_frame(stream, HELLO_BYTES_MAX).await.map_err(|error| {
        if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) {
            io::Error::other("it ends the connection without a word: its log says why")
        } else {
            error
        }
    })?;
    PeerHello::decode(&frame).map_err(io::Error::other)
}

#[cfg(test)]
mod tests;
