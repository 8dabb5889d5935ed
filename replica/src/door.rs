//! The connections to the node's port, counted and bounded: [`crate::admission`] decides who has to go, here are the clock
//! and the means to end one.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::admission::{Admission, Arrival, Limits, Role, Source, Ticket, TooMany};
use crate::clock;
use crate::metrics::Metrics;
use crate::refusal::{Refusal, Told};

/// The connections to the node's port.
#[derive(Debug)]
pub(crate) struct Door {
    state: Mutex<State>,
    /// Somebody has gone.
    gone: Notify,
    told: Mutex<Told>,
    metrics: Metrics,
    /// Connections of gateways that may be passed on besides those that are.
    pub(crate) relays: Semaphore,
}

#[derive(Debug)]
struct State {
    admission: Admission,
    /// Ends the connection.
    dismiss: HashMap<Ticket, CancellationToken>,
}

/// A connection, counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Guest {
    door: Arc<Door>,
    pub(crate) from: SocketAddr,
    ticket: Ticket,
    pub(crate) dismissed: CancellationToken,
}

impl Door {
    pub(crate) fn new(limits: Limits, metrics: Metrics) -> Door {
        Door {
            state: Mutex::new(State { admission: Admission::new(limits), dismiss: HashMap::new() }),
            gone: Notify::new(),
            told: Mutex::default(),
            metrics,
            relays: Semaphore::new(limits.relays),
        }
    }

    /// Returns when another connection may be accepted.
    pub(crate) async fn room(&self) {
        while self.state.lock().admission.is_crowded() {
            self.gone.notified().await;
        }
    }

    pub(crate) fn admit(self: Arc<Self>, from: SocketAddr) -> Guest {
        let dismissed = CancellationToken::new();
        let mut state = self.state.lock();
        let Arrival { ticket, evicted } = state.admission.arrive(from.ip());
        state.dismiss.insert(ticket, dismissed.clone());
        self.settle(&state, evicted);
        drop(state);
        Guest { door: self, from, ticket, dismissed }
    }

    fn settle(&self, state: &State, evicted: Option<Ticket>) {
        if let Some(dismiss) = evicted.and_then(|evicted| state.dismiss.get(&evicted)) {
            dismiss.cancel();
        }
        self.metrics.connections(state.admission.counts());
    }
}

impl Guest {
    /// It has said a good hello.
    pub(crate) fn prove(&self, role: Role) -> Result<(), TooMany> {
        let mut state = self.door.state.lock();
        let evicted = state.admission.prove(self.ticket, role)?;
        self.door.settle(&state, evicted);
        Ok(())
    }

    /// Counts that it is turned away, and says so if that is news.
    pub(crate) fn refuse(&self, refusal: &Refusal) {
        let reason = refusal.label();
        self.door.metrics.refused(reason);
        if self.door.told.lock().is_news(clock::now(), Source::of(self.from.ip()), reason) {
            warn!(from = %self.from, reason, "refused a connection: {refusal}");
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut state = self.door.state.lock();
        state.admission.leave(self.ticket);
        state.dismiss.remove(&self.ticket);
        self.door.settle(&state, None);
        drop(state);
        self.door.gone.notify_one();
    }
}
