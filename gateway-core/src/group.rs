//! What a gateway knows of one group: who leads it, and the session in it.

use keyspace::Error;

use crate::attempt::{Attempted, Refused, Why};
use crate::route::{NodeId, Route};
use crate::session::{Number, Session};

/// See the module.
#[derive(Debug, Default)]
pub struct GroupState {
    /// Who leads.
    pub route: Route,
    /// The numbers for writes.
    pub session: Session,
}

/// What an attempt taught.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Learned {
    /// The guess who leads is another one, or none: whoever waits should look again.
    pub route_changed: bool,
    /// It changed, and there is one.
    pub leader_found: bool,
    /// The session is gone: another has to be opened, and nobody need wait for a number of this one.
    pub session_lost: bool,
}

impl GroupState {
    /// Takes in what an attempt at `node`, under `number` if it was a write, came to.
    pub fn handle_attempted<T>(
        &mut self,
        node: NodeId,
        number: Option<Number>,
        attempted: &Attempted<T>,
    ) -> Learned {
        match (attempted, number) {
            (Attempted::Refused(refused), _) => self.handle_refused(node, refused),
            (Attempted::Denied(Error::SessionExpired), Some(number)) => {
                let session_lost = self.session.handle_expired(number.session);
                assert!(
                    !self.session.is_current(number),
                    "nothing more is sent under a session that is gone"
                );
                Learned { session_lost, ..Learned::default() }
            }
            (
                Attempted::Lost
                | Attempted::Unsent(_)
                | Attempted::Denied(_)
                | Attempted::Protocol(_)
                | Attempted::Answer(_),
                _,
            ) => Learned::default(),
        }
    }

    fn handle_refused(&mut self, node: NodeId, refused: &Refused) -> Learned {
        let route_changed = match refused.why {
            Why::NotLeader | Why::OutcomeUnknown => {
                self.route.handle_denied(node, refused.term, refused.leader)
            }
            Why::Stopping | Why::NoGroup => self.route.handle_gone(node),
            Why::Overloaded
            | Why::NoDisk
            | Why::Malformed
            | Why::AnswerTooLarge
            | Why::NoRoom
            | Why::WrongShard
            | Why::Unknown => false,
        };
        let leader_found = route_changed && self.route.leader().is_some();
        let leads = self.route.leader().is_some_and(|leader| leader.node == node);
        assert!(!(leader_found && leads), "who refuses is not asked again at once");
        Learned { route_changed, leader_found, session_lost: false }
    }
}

#[cfg(test)]
mod tests {
    use keyspace::SessionId;

    use super::*;

    fn refused(why: Why, leader: Option<NodeId>) -> Attempted<()> {
        Attempted::Refused(Refused { why, term: 4, leader })
    }

    #[test]
    fn a_refusal_teaches_who_leads() {
        let mut group = GroupState::default();
        group.route.handle_led(NodeId(1), 3);
        assert_eq!(
            group.handle_attempted(NodeId(1), None, &refused(Why::Overloaded, None)),
            Learned::default()
        );
        let learned = group.handle_attempted(NodeId(1), None, &refused(Why::NotLeader, Some(NodeId(2))));
        assert!(learned.route_changed && learned.leader_found);
        assert_eq!(group.route.leader().map(|leader| leader.node), Some(NodeId(2)));
        let learned = group.handle_attempted(NodeId(2), None, &refused(Why::Stopping, None));
        assert!(learned.route_changed && !learned.leader_found);
        assert_eq!(group.route.leader(), None);
    }

    #[test]
    fn a_session_is_lost_once() {
        let mut group = GroupState::default();
        group.session.handle_opened(SessionId(7));
        let number = group.session.take().unwrap();
        let expired = Attempted::<()>::Denied(Error::SessionExpired);
        assert!(group.handle_attempted(NodeId(1), Some(number), &expired).session_lost);
        group.session.handle_opened(SessionId(8));
        let late = group.handle_attempted(NodeId(1), Some(number), &expired);
        assert!(!late.session_lost && group.session.is_open(), "that was of the session before");
    }
}
