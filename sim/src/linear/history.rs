//! Histories: who asked what, when, and what came back.
//!
//! Times are numbers that grow: any clock will do that the recording tasks share. [`Recorder`] counts calls and returns
//! itself, which orders them exactly as one process saw them; a simulation or several processes on one machine put
//! their own times into [`Operation`]. Where a return and a call carry the same time, the operations count as
//! concurrent.
//!
//! On disk a history is JSON lines: one operation or one watch per line, so that a failing run can be kept, read by
//! eye, cut down by deleting lines, and checked again.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::model::{Answer, Event, Request, WatchRequest};

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End<O> {
    /// With an answer.
    Returned {
        /// When the caller had the answer.
        at: u64,
        /// The answer.
        output: O,
    },
    /// Without one: timed out, the connection broke, the caller died. It may have taken effect, may do so at any later
    /// time, or never.
    Unknown,
}

/// One operation of a client.
///
/// An operation that provably had no effect (it was refused before it was proposed) is left out of a history; if it
/// shows up all the same, the checker finds an effect that nobody caused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation<I, O> {
    /// Who called. For the reader only: a client may have several operations in flight.
    pub client: u64,
    /// When it was called, before anything was sent.
    pub call: u64,
    /// What was asked.
    pub input: I,
    /// How it ended.
    pub end: End<O>,
}

impl<I, O> Operation<I, O> {
    /// When it returned.
    pub fn returned_at(&self) -> Option<u64> {
        match &self.end {
            End::Returned { at, .. } => Some(*at),
            End::Unknown => None,
        }
    }

    /// What it returned.
    pub fn output(&self) -> Option<&O> {
        match &self.end {
            End::Returned { output, .. } => Some(output),
            End::Unknown => None,
        }
    }
}

/// Names an operation between its call and its return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperationId(usize);

/// Records operations from any number of tasks. Calls and returns are numbered under one lock, so the numbers are their
/// order in real time.
#[derive(Debug)]
pub struct Recorder<I, O> {
    tape: Mutex<Tape<I, O>>,
}

#[derive(Debug)]
struct Tape<I, O> {
    time: u64,
    /// `None`: the operation was refused and is no part of the history.
    operations: Vec<Option<Operation<I, O>>>,
}

impl<I, O> Default for Recorder<I, O> {
    fn default() -> Recorder<I, O> {
        Recorder { tape: Mutex::new(Tape { time: 0, operations: Vec::new() }) }
    }
}

impl<I, O> Recorder<I, O> {
    /// To be called before the request is sent.
    pub fn call(&self, client: u64, input: I) -> OperationId {
        let mut tape = self.tape();
        let call = tape.tick();
        tape.operations.push(Some(Operation { client, call, input, end: End::Unknown }));
        OperationId(tape.operations.len() - 1)
    }

    /// To be called after the answer has come. An operation never returned has an unknown outcome.
    pub fn returned(&self, id: OperationId, output: O) {
        let mut tape = self.tape();
        let at = tape.tick();
        if let Some(Some(operation)) = tape.operations.get_mut(id.0) {
            operation.end = End::Returned { at, output };
        }
    }

    /// To be called if the operation provably had no effect and never will have one.
    pub fn refused(&self, id: OperationId) {
        if let Some(operation) = self.tape().operations.get_mut(id.0) {
            *operation = None;
        }
    }

    /// The time of something else that happens now, such as the arrival of a watch's message.
    pub fn tick(&self) -> u64 {
        self.tape().tick()
    }

    /// The operations recorded, in the order of their calls.
    pub fn into_operations(self) -> Vec<Operation<I, O>> {
        let tape = self.tape.into_inner().unwrap_or_else(PoisonError::into_inner);
        tape.operations.into_iter().flatten().collect()
    }

    /// A task that panicked left the tape whole: each entry is written in one step.
    fn tape(&self) -> MutexGuard<'_, Tape<I, O>> {
        self.tape.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<I, O> Tape<I, O> {
    fn tick(&mut self) -> u64 {
        self.time += 1;
        self.time
    }
}

/// An operation on etcd.
pub type EtcdOperation = Operation<Request, Answer>;

/// What one message of a watch stream said about one watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WatchMessage {
    /// `created`
    Created,
    /// Events, in the order they came.
    Events {
        /// The events.
        events: Vec<Event>,
        /// Whether the rest of a split message follows.
        #[serde(default)]
        fragment: bool,
    },
    /// No events: everything up to the header's revision has been sent. A progress answer for the whole stream
    /// (watch id -1) is recorded with each watch of the stream.
    Progress,
    /// `canceled`
    Cancelled {
        /// Not 0 if the watch was overtaken by compaction.
        compact_revision: i64,
        /// `cancel_reason`
        reason: String,
    },
}

impl WatchMessage {
    /// The events of the message, if it is one of those.
    pub fn events(&self) -> &[Event] {
        match self {
            WatchMessage::Events { events, .. } => events,
            WatchMessage::Created | WatchMessage::Progress | WatchMessage::Cancelled { .. } => &[],
        }
    }
}

/// A message with its header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchResponse {
    /// When it arrived.
    pub at: u64,
    /// `header.revision`
    pub revision: i64,
    /// The rest.
    pub message: WatchMessage,
}

/// Everything one watch received, from its creation on. A watch resumed on a new connection with a start revision of
/// its own is another stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchStream {
    /// Who watched.
    pub client: u64,
    /// When the request was sent.
    pub call: u64,
    /// Watches with the same number, not 0, shared one stream of the protocol.
    #[serde(default)]
    pub shared: u64,
    /// What was asked.
    pub request: WatchRequest,
    /// What came, in order.
    pub responses: Vec<WatchResponse>,
}

/// Names a watch while it is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchId(usize);

/// A recorded run against etcd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EtcdHistory {
    /// The operations.
    pub operations: Vec<EtcdOperation>,
    /// The watches.
    pub watches: Vec<WatchStream>,
}

/// Records operations and watches on etcd from any number of tasks.
#[derive(Debug, Default)]
pub struct EtcdRecorder {
    operations: Recorder<Request, Answer>,
    watches: Mutex<Vec<WatchStream>>,
}

impl EtcdRecorder {
    /// To be called before the request is sent.
    pub fn call(&self, client: u64, request: Request) -> OperationId {
        self.operations.call(client, request)
    }

    /// To be called after the answer has come: a response, or one of the model's errors. Any other error means
    /// [`EtcdRecorder::refused`] if it proves that nothing happened, and nothing at all otherwise.
    pub fn returned(&self, id: OperationId, answer: Answer) {
        self.operations.returned(id, answer);
    }

    /// To be called if the operation provably had no effect and never will have one.
    pub fn refused(&self, id: OperationId) {
        self.operations.refused(id);
    }

    /// To be called before a watch is opened on a stream of its own.
    pub fn watch(&self, client: u64, request: WatchRequest) -> WatchId {
        let call = self.operations.tick();
        self.add(WatchStream { client, call, shared: 0, request, responses: Vec::new() })
    }

    /// To be called before watches are opened that share a stream.
    pub fn watches_on_one_stream(&self, client: u64, requests: &[WatchRequest]) -> Vec<WatchId> {
        let shared = self.operations.tick();
        let stream = |request: &WatchRequest| WatchStream {
            client,
            call: shared,
            shared,
            request: request.clone(),
            responses: Vec::new(),
        };
        requests.iter().map(|request| self.add(stream(request))).collect()
    }

    fn add(&self, stream: WatchStream) -> WatchId {
        let mut watches = self.watches();
        watches.push(stream);
        WatchId(watches.len() - 1)
    }

    /// To be called for each message of the watch, in the order they came.
    pub fn watched(&self, id: WatchId, revision: i64, message: WatchMessage) {
        let at = self.operations.tick();
        if let Some(stream) = self.watches().get_mut(id.0) {
            stream.responses.push(WatchResponse { at, revision, message });
        }
    }

    /// What was recorded.
    pub fn into_history(self) -> EtcdHistory {
        let watches = self.watches.into_inner().unwrap_or_else(PoisonError::into_inner);
        EtcdHistory { operations: self.operations.into_operations(), watches }
    }

    fn watches(&self) -> MutexGuard<'_, Vec<WatchStream>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A line of a saved history.
#[derive(Serialize, Deserialize)]
enum Line {
    Operation(EtcdOperation),
    Watch(WatchStream),
}

/// Why a saved history cannot be read.
#[derive(Debug)]
pub struct BadLine {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub cause: serde_json::Error,
}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.cause)
    }
}

impl std::error::Error for BadLine {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}

impl EtcdHistory {
    /// One JSON object per line: `{"Operation":{…}}` or `{"Watch":{…}}`.
    pub fn to_json_lines(&self) -> String {
        let operations = self.operations.iter().cloned().map(Line::Operation);
        let watches = self.watches.iter().cloned().map(Line::Watch);
        let mut text = String::new();
        for line in operations.chain(watches) {
            let json = serde_json::to_string(&line)
                .expect("all map keys are strings and no value refuses to be written");
            text.push_str(&json);
            text.push('\n');
        }
        text
    }

    /// Reads what [`EtcdHistory::to_json_lines`] wrote. Empty lines are skipped.
    pub fn from_json_lines(text: &str) -> Result<EtcdHistory, BadLine> {
        let mut history = EtcdHistory::default();
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            match serde_json::from_str(line).map_err(|cause| BadLine { line: index + 1, cause })? {
                Line::Operation(operation) => history.operations.push(operation),
                Line::Watch(stream) => history.watches.push(stream),
            }
        }
        Ok(history)
    }
}
