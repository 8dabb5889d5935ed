//! The order of a turn, for whoever drives a replica: a node's task and the simulation.

use consensus_core::Mono;

use crate::env::Env;
use crate::event::Event;
use crate::out::Out;
use crate::replica::Replica;

/// What follows from the events that a replica was stepped with. Whoever drives it steps the events, and then
///
/// ```text
/// while turn.go_on(replica, a fresh look at the world, out) { carry out what `out` holds }
/// ```
///
/// Between two calls any time may pass, as it does when a thread loses its core. What waits for no record is handed out
/// before the entries of the same step are applied.
#[derive(Debug, Default)]
pub struct Turn {
    stage: Stage,
    /// The journal has taken nothing of what was carried out last.
    journal_failed: bool,
}

#[derive(Debug, Default)]
enum Stage {
    /// What is due comes first.
    #[default]
    Due,
    /// What follows from the events, until nothing does.
    Poll,
    /// Queries, since this time.
    Queries(Mono),
    /// Gateways are answered, and work that can be cut in pieces goes on by one.
    Finish,
    /// The next call begins another turn.
    Done,
}

impl Turn {
    /// Goes on to where something is to be carried out, with `out` empty. False once the turn is over, with nothing in
    /// `out`; the next call begins another one.
    pub fn go_on(&mut self, replica: &mut Replica, env: &Env<'_>, out: &mut Out) -> bool {
        if std::mem::take(&mut self.journal_failed) {
            replica.step(env, Event::PersistFailed);
        }
        match self.stage {
            Stage::Due => {
                replica.tick(env);
                self.poll(replica, env, out);
            }
            Stage::Poll => self.poll(replica, env, out),
            Stage::Queries(since) => {
                let more = replica.answer_next(env, out);
                if !more || env.now.since(since) >= replica.settings.queries.turn {
                    self.stage = Stage::Finish;
                }
            }
            Stage::Finish => {
                replica.finish(env, out);
                self.stage = Stage::Done;
            }
            Stage::Done => {
                self.stage = Stage::Due;
                return false;
            }
        }
        true
    }

    /// The journal takes nothing: the replica hears of it before anything else.
    pub fn journal_failed(&mut self) {
        self.journal_failed = true;
    }

    fn poll(&mut self, replica: &mut Replica, env: &Env<'_>, out: &mut Out) {
        let more = replica.poll(env, out);
        self.stage = if more { Stage::Poll } else { Stage::Queries(env.now) };
    }
}
