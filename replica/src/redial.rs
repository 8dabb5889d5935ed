//! What a dialler knows of a peer that it has no link with: when to try again, and what was told of it.

use std::io;
use std::mem;
use std::time::Duration;

use backoff::Backoff;
use thiserror::Error;
use tracing::{debug, warn};

use crate::peer::Peer;

pub(crate) const BACKOFF_FIRST: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Why an attempt to link made no link.
#[derive(Debug, Error)]
pub(crate) enum NoLink {
    #[error("cannot reach it: {0}")]
    Unreachable(io::Error),
    /// Reached, and what is there does not want us, or we do not want it.
    #[error("{0}")]
    Refused(String),
    /// Ended before it had proved good: whoever does not know us does that, and whoever was about to stop.
    #[error("{0}")]
    Brief(String),
    /// It has no place in the cluster yet, and may be waiting for this very node.
    #[error("it has no place in the cluster yet")]
    Newcomer,
}

impl NoLink {
    /// The error may vary while a peer cannot be reached; a refusal is told by its reason.
    fn is_same(&self, other: &NoLink) -> bool {
        match (self, other) {
            (NoLink::Unreachable(_), NoLink::Unreachable(_)) | (NoLink::Newcomer, NoLink::Newcomer) => true,
            (NoLink::Refused(one), NoLink::Refused(other)) => one == other,
            (NoLink::Brief(one), NoLink::Brief(other)) => one == other,
            (NoLink::Unreachable(_) | NoLink::Refused(_) | NoLink::Brief(_) | NoLink::Newcomer, _) => false,
        }
    }
}

/// What the dialler knows from its attempts since the last good link.
pub(crate) struct Redial {
    backoff: Backoff,
    /// What was told of the outage.
    told: Option<NoLink>,
    /// A link was brief.
    brief_before: bool,
}

impl Redial {
    pub(crate) fn new() -> Redial {
        Redial { backoff: Backoff::new(BACKOFF_FIRST, BACKOFF_MAX), told: None, brief_before: false }
    }

    /// A link has proved good. Returns whether this ends an outage that was told.
    pub(crate) fn settled(&mut self) -> bool {
        self.backoff.reset();
        self.brief_before = false;
        self.told.take().is_some()
    }

    /// Whether `why` is to be told; then it counts as told.
    pub(crate) fn is_news(&mut self, why: NoLink) -> bool {
        // One is what an ordinary restart of the peer looks like.
        if matches!(why, NoLink::Brief(_)) && !mem::replace(&mut self.brief_before, true) {
            return false;
        }
        let news = !self.told.as_ref().is_some_and(|told| told.is_same(&why));
        self.told = Some(why);
        news
    }

    /// Once per outage, and again when its reason changes.
    pub(crate) fn tell(&mut self, peer: &Peer, why: NoLink) {
        let (what, error) = match &why {
            NoLink::Unreachable(error) => (
                "cannot reach a peer: if it is up, check the addresses in the configuration",
                error.to_string(),
            ),
            NoLink::Refused(reason) | NoLink::Brief(reason) => {
                ("no link with what answers at a peer's address", reason.clone())
            }
            NoLink::Newcomer => {
                debug!(peer = peer.id.0, address = peer.address, "the peer has no place in the cluster yet");
                return;
            }
        };
        if self.is_news(why) {
            warn!(peer = peer.id.0, address = peer.address, error, "{what}");
        } else {
            debug!(peer = peer.id.0, address = peer.address, error, "{what}");
        }
    }

    /// Whether an outage was told that has not ended.
    pub(crate) fn is_outage(&self) -> bool {
        self.told.is_some()
    }

    /// The pause before the next attempt, by a random number.
    pub(crate) fn next_pause(&mut self, random: u32) -> Duration {
        self.backoff.next(random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_told_once_and_again_when_its_reason_changes() {
        let unreachable = |kind: io::ErrorKind| NoLink::Unreachable(kind.into());
        let refused = |reason: &str| NoLink::Refused(reason.to_owned());
        let brief = || NoLink::Brief("closed by the peer".to_owned());
        let mut redial = Redial::new();
        assert!(!redial.settled(), "the first link ends no outage");
        let attempts = [
            (unreachable(io::ErrorKind::ConnectionRefused), true),
            (unreachable(io::ErrorKind::ConnectionRefused), false),
            (unreachable(io::ErrorKind::TimedOut), false),
            (refused("another cluster"), true),
            (refused("another cluster"), false),
            (refused("another node"), true),
            (unreachable(io::ErrorKind::TimedOut), true),
            // As when the peer stops and starts.
            (brief(), false),
            (unreachable(io::ErrorKind::TimedOut), false),
            (brief(), true),
            (brief(), false),
        ];
        for (why, news) in attempts {
            let shown = format!("{why:?}");
            assert_eq!(redial.is_news(why), news, "{shown}");
            redial.next_pause(u32::MAX);
        }
        assert_eq!(redial.next_pause(u32::MAX), BACKOFF_MAX);
        assert!(redial.settled());
        assert!(!redial.settled());
        assert!(!redial.is_news(brief()), "the peer may be stopping");
        assert!(!redial.settled(), "nothing was told");
        assert_eq!(redial.next_pause(u32::MAX), BACKOFF_FIRST);
        assert!(redial.is_news(unreachable(io::ErrorKind::TimedOut)), "the next outage is told again");
    }
}
