//! A node's seat in the cluster: what the superblock says of its place, and what is said of it to others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use consensus_core::{NodeId, NodeStatus};
use journal::{RealDisk, Superblock};
use parking_lot::Mutex;
use tokio::sync::{SetOnce, watch};
use tracing::{error, warn};

use crate::suspicion::Accuser;

/// What the superblock says of this node's place in the cluster, and what is said of it to newcomers.
#[derive(Debug)]
pub(crate) struct Seat {
    superblock: Arc<Mutex<Superblock<RealDisk>>>,
    mark: u64,
    /// The marks of those that were newcomers with it; set once the place is taken, durably.
    roll: SetOnce<Vec<(u64, u64)>>,
    revoked: AtomicBool,
    /// Set while the node has stepped aside: who has said that there is another of it.
    aside: watch::Sender<Option<Accuser>>,
}

impl Seat {
    pub(crate) fn new(superblock: Superblock<RealDisk>) -> Seat {
        let facts = superblock.facts();
        let roll = facts.placed.then(|| facts.roll.clone());
        Seat {
            mark: facts.mark,
            roll: SetOnce::new_with(roll),
            revoked: AtomicBool::new(false),
            aside: watch::Sender::new(facts.doubt.and_then(Accuser::from_fact)),
            superblock: Arc::new(Mutex::new(superblock)),
        }
    }

    pub(crate) fn is_taken(&self) -> bool {
        self.roll.initialized()
    }

    /// Returns once the place is taken.
    pub(crate) async fn taken(&self) {
        self.roll.wait().await;
    }

    /// From now on it is said to be taken: it is durable, and the node knows its incarnation.
    pub(crate) fn take(&self, roll: Vec<(u64, u64)>) {
        // Nobody else sets it.
        let _ = self.roll.set(roll);
    }

    /// What this node says of itself to `other`, of which it heard this incarnation last.
    pub(crate) fn node_status(&self, other: NodeId, incarnation_heard: u64) -> NodeStatus {
        match self.roll.get() {
            None => NodeStatus::Newcomer { mark: self.mark },
            Some(roll) => {
                let known = roll.iter().find(|(node, _)| *node == u64::from(other.0));
                NodeStatus::Placed { known_as: known.map(|(_, mark)| *mark), incarnation_heard }
            }
        }
    }

    /// Whether it is not noted yet that the journal holds what was lost of all groups.
    pub(crate) fn is_unsettled(&self) -> bool {
        self.superblock.lock().facts().returned
    }

    /// Others say that there is another of this node: it takes no part until that is known. Returns whether that is news.
    pub(crate) fn step_aside(&self, accuser: Accuser) -> bool {
        self.aside.send_if_modified(|aside| {
            let news = aside.is_none();
            aside.get_or_insert(accuser);
            news
        })
    }

    pub(crate) fn is_aside(&self) -> bool {
        self.aside.borrow().is_some()
    }

    /// Returns once the node has stepped aside, with who made it.
    pub(crate) async fn stepped_aside(&self) -> Accuser {
        let mut aside = self.aside.subscribe();
        loop {
            if let Some(accuser) = *aside.borrow_and_update() {
                return accuser;
            }
            // Its other end is here.
            let _ = aside.changed().await;
        }
    }

    /// Returns once the node has not stepped aside.
    pub(crate) async fn back(&self) {
        // Its other end is here.
        let _ = self.aside.subscribe().wait_for(Option::is_none).await;
    }

    /// Makes durable that the node has stepped aside, so that it does after a restart.
    pub(crate) async fn note_doubt(&self, accuser: Accuser) {
        if let Err(error) = self.write(move |superblock| superblock.doubt(Some(accuser.to_fact()))).await {
            warn!(%error, "cannot write down that this node has stepped aside: after a restart it would learn that again");
        }
    }

    /// How long this incarnation, or one before it, has given support.
    pub(crate) fn support(&self) -> Duration {
        self.superblock.lock().facts().support
    }

    /// Support that incarnations before this one gave is over, and this one gives it for so long.
    pub(crate) async fn lower_support(&self, support: Duration) {
        // A fraction of a millisecond more is noted than is given.
        if self.support() < support + Duration::from_millis(1) {
            return;
        }
        if let Err(error) = self.write(move |superblock| superblock.lower_support(support)).await {
            warn!(%error, "cannot write down that a longer `timing.support` is over: the next start waits for it again");
        }
    }

    /// There is nothing in it. Returns whether the node takes part again.
    pub(crate) async fn come_back(&self) -> bool {
        match self.write(|superblock| superblock.doubt(None)).await {
            Ok(()) => {
                self.aside.send_replace(None);
                true
            }
            Err(error) => {
                warn!(%error, "cannot write down that this node takes part again");
                false
            }
        }
    }

    async fn write(
        &self,
        change: impl FnOnce(&mut Superblock<RealDisk>) -> Result<(), journal::Error> + Send + 'static,
    ) -> Result<(), journal::Error> {
        let superblock = Arc::clone(&self.superblock);
        let written = tokio::task::spawn_blocking(move || change(&mut superblock.lock()));
        // The runtime ends.
        written.await.unwrap_or(Err(journal::Error::Closed))
    }

    pub(crate) fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Relaxed)
    }

    /// The directory is an old copy, for ever. Returns whether that is news.
    pub(crate) fn revoke(&self) -> bool {
        let news = !self.revoked.swap(true, Ordering::Relaxed);
        if news {
            let superblock = Arc::clone(&self.superblock);
            // Until it is written, the node takes no part all the same; after a restart it would learn it again.
            tokio::task::spawn_blocking(move || {
                if let Err(error) = superblock.lock().revoke() {
                    error!(%error, "cannot write down that this data directory is an old copy: do not start with it again");
                }
            });
        }
        news
    }

    /// No group needs this node to stand in for others any more.
    pub(crate) fn survived(&self) {
        let superblock = Arc::clone(&self.superblock);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = superblock.lock().declare_survivor(false) {
                warn!(%error, "cannot write down that no group needs this node to stand in for others: the next start will say");
            }
        });
    }

    /// By which others know its directory.
    pub(crate) fn mark(&self) -> u64 {
        self.mark
    }

    /// Makes its place durable, with the marks of those that were newcomers with it, and the incarnation of one that has
    /// returned. Gives the incarnation that it is in now. Blocking.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn take_place(
        &self,
        roll: Vec<(u64, u64)>,
        returned_as: Option<u64>,
    ) -> Result<u64, journal::Error> {
        let mut superblock = self.superblock.lock();
        superblock.take_place(roll, returned_as)?;
        Ok(superblock.facts().incarnation)
    }

    /// What was lost of the groups stands in the journal. Blocking.
    pub(crate) fn settle(&self) {
        if let Err(error) = self.superblock.lock().settle() {
            warn!(%error, "cannot write down that the journal holds what was lost: the next start tries again");
        }
    }
}
