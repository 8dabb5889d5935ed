//! A client's connection, as the services see it: the door, and what was shown through this connection.
//!
//! Whoever holds on to a connection does not see time run backwards on it, even by serializable reads, as at one member of
//! etcd. What other clients of the gateway have seen holds up no read of this one.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use api::etcdserverpb as pb;
use keyspace::Revision;
use tonic::metadata::MetadataMap;

use super::Door;
use crate::admission::Client;
use crate::context::{Identity, Priority, RequestContext, Requests};
use crate::domain::{Consistency, Domain};
use crate::journey;
use gateway_core::Failure;
use gateway_core::admission::Lane;
use replica::Source;

/// See the module.
pub(crate) struct Caller<D> {
    door: Arc<Door<D>>,
    /// The newest revision that an answer on this connection told.
    seen: AtomicI64,
    requests: Requests,
    client: Arc<Client>,
}

impl<D: Domain> Caller<D> {
    pub(crate) fn new(door: Arc<Door<D>>, identity: Identity) -> Caller<D> {
        let source = identity.address.map(|address| Source::of(address.ip()));
        let client = door.admission.connect(source);
        Caller { door, seen: AtomicI64::new(0), requests: Requests::new(identity), client }
    }

    /// Its connection.
    pub(super) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// Lets a request of this caller in: what it brings with it. Called once for each.
    ///
    /// # Errors
    /// Too much is under way.
    pub(super) fn admit(
        &self,
        metadata: &MetadataMap,
        lane: Lane,
        priority: Priority,
    ) -> Result<RequestContext, Failure> {
        journey::admitted(self.client.admit(journey::place(), lane, priority)?);
        Ok(self.context(metadata, priority))
    }

    /// What a request of this caller brings with it.
    pub(super) fn context(&self, metadata: &MetadataMap, priority: Priority) -> RequestContext {
        let context = self.requests.next(metadata.as_ref(), self.domain.request_timeout(), priority);
        journey::begun(&context);
        context
    }

    /// What a request in a stream of this caller brings with it.
    pub(super) fn context_in(&self, stream: &RequestContext) -> RequestContext {
        self.requests.next_in(stream, self.domain.request_timeout())
    }

    pub(crate) fn door(&self) -> &Arc<Door<D>> {
        &self.door
    }

    /// The header of an answer to this caller.
    pub(crate) fn header(&self, revision: Revision, term: u64) -> Option<pb::ResponseHeader> {
        // Relaxed: whatever was answered before this request came was stored before it was sent.
        if self.seen.load(Ordering::Relaxed) < revision.0 {
            self.seen.fetch_max(revision.0, Ordering::Relaxed);
        }
        self.door.header(revision, term)
    }

    /// How fresh a read must be: a caller reads what it wrote, serializable or not. One that asks for a revision has seen
    /// it, too, perhaps elsewhere.
    pub(super) fn consistency(&self, serializable: bool, revision: Revision) -> Consistency {
        if serializable {
            let seen = Revision(self.seen.load(Ordering::Relaxed));
            Consistency::Serializable { seen: seen.max(revision) }
        } else {
            Consistency::Linearizable
        }
    }

    /// For what a member of etcd answers from its own state, and so without a leader, too.
    pub(super) fn consistency_of_a_member(&self) -> Consistency {
        self.consistency(!*self.door.leader_known.borrow(), Revision(0))
    }
}

impl<D> Deref for Caller<D> {
    type Target = Door<D>;

    fn deref(&self) -> &Door<D> {
        &self.door
    }
}
