//! Questions to replicas, and how their answers are read: the one place that sorts what comes over a link.

use api::gaios::link::v1::{self as wire, request, response::Kind};

use crate::attempt::{Attempted, Refused, Why};
use crate::request::Numbered;
use crate::route::NodeId;

/// A question, and which answer it has.
pub trait Ask {
    /// What answers it.
    type Answer;

    /// As it goes over the link, and how many bytes its variable part has. A write goes under a number.
    fn request(&mut self, numbered: Option<Numbered>) -> (request::Kind, usize);

    /// Reads the answer of a replica in round `term`.
    fn answer(&self, term: u64, answer: Kind) -> Attempted<Self::Answer>;

    /// What a replica says with it that does not know the question, if that is an answer, too.
    fn answer_of_older(&self, _term: u64) -> Option<Self::Answer> {
        None
    }
}

impl<A: Ask> Ask for &mut A {
    type Answer = A::Answer;

    fn request(&mut self, numbered: Option<Numbered>) -> (request::Kind, usize) {
        A::request(self, numbered)
    }

    fn answer(&self, term: u64, answer: Kind) -> Attempted<Self::Answer> {
        A::answer(self, term, answer)
    }

    fn answer_of_older(&self, term: u64) -> Option<Self::Answer> {
        A::answer_of_older(self, term)
    }
}

/// What came is no answer to what was asked.
pub const fn mismatch<T>() -> Attempted<T> {
    Attempted::Protocol("gaios: an answer to another question")
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unanswered {
    /// The connection was lost before it came.
    Lost,
    /// It came, and there was no room for it ([`super::Gathered::NoRoom`]).
    NoRoom {
        /// As the node says it.
        term: u64,
    },
}

/// Sorts what came back.
pub fn sort<A: Ask>(ask: &A, answered: Result<wire::Response, Unanswered>) -> Attempted<A::Answer> {
    let wire::Response { term, kind, .. } = match answered {
        Ok(response) => response,
        Err(Unanswered::Lost) => return Attempted::Lost,
        Err(Unanswered::NoRoom { term }) => {
            return Attempted::Refused(Refused { why: Why::NoRoom, term, leader: None });
        }
    };
    match kind {
        Some(Kind::Refused(refused)) => {
            let refused = self::refused(term, &refused);
            match ask.answer_of_older(term) {
                Some(answer) if refused.why == Why::Malformed => Attempted::Answer(answer),
                Some(_) | None => Attempted::Refused(refused),
            }
        }
        Some(answer) => ask.answer(term, answer),
        None => mismatch(),
    }
}

/// A refusal in our own words.
pub fn refused(term: u64, refused: &wire::Refused) -> Refused {
    use wire::refused::Why as Wire;
    let why = match refused.why() {
        Wire::NotLeader => Why::NotLeader,
        Wire::NoGroup => Why::NoGroup,
        Wire::Overloaded => Why::Overloaded,
        Wire::OutcomeUnknown => Why::OutcomeUnknown,
        Wire::NoDisk => Why::NoDisk,
        Wire::Malformed => Why::Malformed,
        Wire::Stopping => Why::Stopping,
        Wire::AnswerTooLarge => Why::AnswerTooLarge,
        Wire::WrongShard => Why::WrongShard,
        Wire::Unspecified => Why::Unknown,
    };
    Refused { why, term, leader: node(refused.leader) }
}

/// A node, as the link protocol names one or nobody.
pub fn node(id: u32) -> Option<NodeId> {
    Some(id).filter(|id| *id != 0).map(NodeId)
}
