//! A replica whose snapshot is missing or damaged: it can begin only with a peer's, and asks for one.

use std::time::Duration;

use api::gaios::link::v1::refused::Why;
use api::gaios::link::v1::request::Kind;
use consensus_core::{Mono, NodeId, Slot};

use crate::env::Settings;
use crate::event::Event;
use crate::out::{Answer, Notice, Out, ToPeer};
use crate::replica::{Replica, Start};
use crate::replies::refusal;

/// How often it asks its peers.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// See the module. Until it has its state, a replica answers nobody: to peers it is down, gateways ask elsewhere.
#[derive(Debug)]
pub struct Stateless {
    begins_with: Box<(Settings, Start)>,
    at_least: Slot,
    ask_at: Mono,
    told: bool,
}

impl Stateless {
    /// Begins with what was recovered, which lacks the state at `at_least` ([`Start::lacks_state`]).
    #[must_use]
    pub fn new(settings: Settings, start: Start, at_least: Slot, now: Mono) -> Stateless {
        Stateless { begins_with: Box::new((settings, start)), at_least, ask_at: now, told: false }
    }

    /// Takes up an event. Returns the replica once it has a state.
    ///
    /// # Errors
    /// It has none yet.
    pub fn step(self, now: Mono, event: Event, out: &mut Out) -> Result<Replica, Stateless> {
        match event {
            Event::SnapshotReceived { slot, config, state } if slot >= self.at_least => {
                out.notices.push(Notice::SnapshotInstalled { slot });
                let (settings, mut start) = *self.begins_with;
                start.durable.snapshot(slot, config);
                start.snapshot = Some((slot, *state));
                return Ok(Replica::new(settings, start, now));
            }
            Event::Requests { link, requests } => {
                // Nobody waits for what is taken back.
                let asked = requests.iter().filter(|request| !matches!(request.kind, Some(Kind::Cancel(_))));
                let responses = asked.map(|request| refusal(request.id, 0, Why::NoGroup, None)).collect();
                out.answers.push(Answer { link, responses });
            }
            Event::SnapshotReceived { .. }
            | Event::Peer { .. }
            | Event::LinkClosed(_)
            | Event::LinkDrained
            | Event::Persisted { .. }
            | Event::PersistFailed
            | Event::Liveness(_)
            | Event::PeerDisk { .. }
            | Event::Snapshot(_)
            | Event::SnapshotRequested { .. }
            | Event::SnapshotLost { .. }
            | Event::SnapshotSent { .. }
            | Event::SnapshotWanted { .. }
            | Event::DigestAsked { .. }
            | Event::DigestTold { .. }
            | Event::VersionAsked { .. }
            | Event::VersionTold { .. }
            | Event::Stop => {}
        }
        Err(self)
    }

    /// Asks for a snapshot, if it is time.
    pub fn tick(&mut self, now: Mono, out: &mut Out) {
        if !std::mem::replace(&mut self.told, true) {
            out.notices.push(Notice::NoState { at_least: self.at_least });
        }
        if now < self.ask_at {
            return;
        }
        self.ask_at = now.after(ASK_EVERY);
        let settings = &self.begins_with.0;
        let peers = settings.voters.iter().filter(|peer: &NodeId| *peer != settings.node);
        out.to_peers.extend(peers.map(|peer| (peer, ToPeer::SnapshotRequest(self.at_least))));
    }

    /// When it has something to do although nothing happens.
    #[must_use]
    pub fn deadline(&self) -> Mono {
        self.ask_at
    }
}
