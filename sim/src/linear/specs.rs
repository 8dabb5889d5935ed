//! Specifications for the general checker.

use serde::{Deserialize, Serialize};

use super::wgl::Spec;
use crate::model::{Answer, Model, Request};

/// etcd as a whole, revisions included. Revisions tie all keys together, so this is for short histories; long ones
/// go to the revision-ordered checker.
#[derive(Clone, Debug, Default)]
pub struct Etcd {
    /// The state before the first operation.
    pub start: Model,
}

impl Spec for Etcd {
    type State = Model;
    type Input = Request;
    type Output = Answer;
    type Part = ();

    fn initial(&self) -> Model {
        self.start.clone()
    }

    fn step(&self, model: &Model, request: &Request, answer: &Answer) -> Option<Model> {
        if let (true, Ok(response)) = (request.is_serializable(), answer) {
            // Any replica may have answered, from what it had applied.
            let applied = response.revision();
            let expected = model.as_of(applied).apply_like(request, answer);
            return (applied <= model.revision() && expected == *answer).then(|| model.clone());
        }
        let mut model = model.clone();
        (model.apply_like(request, answer) == *answer).then_some(model)
    }

    fn step_unseen(&self, model: &Model, request: &Request) -> Option<Model> {
        let mut after = model.clone();
        after.apply(request).ok()?;
        (after != *model).then_some(after)
    }

    fn part(&self, _: &Request) -> Option<()> {
        None
    }
}

/// Independent registers: one value per key, no revisions. For anything that promises linearizable single keys.
#[derive(Clone, Copy, Debug, Default)]
pub struct Registers;

/// An operation on one register.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterInput {
    /// Which register.
    pub key: u64,
    /// What to do with it.
    pub action: RegisterAction,
}

/// What an operation does to its register.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegisterAction {
    /// Reads it.
    Read,
    /// Writes it.
    Write(u64),
    /// Writes `new` if it holds `expected`.
    CompareAndSet {
        /// The value it must hold; none: never written.
        expected: Option<u64>,
        /// The value to write.
        new: u64,
    },
}

/// What an operation on a register answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegisterOutput {
    /// The value read; none: never written.
    Value(Option<u64>),
    /// Written.
    Done,
    /// The compare did not hold, and nothing was written.
    Mismatch,
}

impl Spec for Registers {
    type State = Option<u64>;
    type Input = RegisterInput;
    type Output = RegisterOutput;
    type Part = u64;

    fn initial(&self) -> Option<u64> {
        None
    }

    fn step(
        &self,
        state: &Option<u64>,
        input: &RegisterInput,
        output: &RegisterOutput,
    ) -> Option<Option<u64>> {
        match (&input.action, output) {
            (RegisterAction::Read, RegisterOutput::Value(value)) => (value == state).then_some(*state),
            (RegisterAction::Write(value), RegisterOutput::Done) => Some(Some(*value)),
            (RegisterAction::CompareAndSet { expected, new }, RegisterOutput::Done) => {
                (expected == state).then_some(Some(*new))
            }
            (RegisterAction::CompareAndSet { expected, .. }, RegisterOutput::Mismatch) => {
                (expected != state).then_some(*state)
            }
            (RegisterAction::Read, RegisterOutput::Done | RegisterOutput::Mismatch)
            | (RegisterAction::Write(_), RegisterOutput::Value(_) | RegisterOutput::Mismatch)
            | (RegisterAction::CompareAndSet { .. }, RegisterOutput::Value(_)) => None,
        }
    }

    fn step_unseen(&self, state: &Option<u64>, input: &RegisterInput) -> Option<Option<u64>> {
        match &input.action {
            RegisterAction::Read => None,
            RegisterAction::Write(value) => Some(Some(*value)),
            RegisterAction::CompareAndSet { expected, new } => (expected == state).then_some(Some(*new)),
        }
    }

    fn part(&self, input: &RegisterInput) -> Option<u64> {
        Some(input.key)
    }
}
