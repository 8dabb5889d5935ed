//! Histories told step by step: a story runs requests through the model, so that it starts out right, and a test then
//! bends it.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests, which fail loudly")]

use sim::linear::history::{End, EtcdHistory, Operation, WatchMessage, WatchResponse, WatchStream};
use sim::linear::revisions::{Options, Verdict, ViolationKind, check};
use sim::model::*;

#[derive(Default)]
pub struct Story {
    pub model: Model,
    pub time: u64,
    pub history: EtcdHistory,
}

impl Story {
    pub fn tick(&mut self) -> u64 {
        self.time += 10;
        self.time
    }

    /// A request that is answered before the next one is made. Returns its index.
    pub fn run(&mut self, request: Request) -> usize {
        let answer = self.model.apply(&request);
        self.say(request, answer)
    }

    /// A request that is answered with whatever the test says.
    pub fn say(&mut self, input: Request, output: Answer) -> usize {
        let call = self.tick();
        let at = self.tick();
        self.push(Operation { client: 1, call, input, end: End::Returned { at, output } })
    }

    /// A request that takes effect although nobody learns of it.
    pub fn run_unseen(&mut self, input: Request) -> usize {
        self.model.apply(&input).unwrap();
        self.lose(input)
    }

    /// A request without an answer, and without an effect.
    pub fn lose(&mut self, input: Request) -> usize {
        let call = self.tick();
        self.push(Operation { client: 1, call, input, end: End::Unknown })
    }

    /// The model changes, and no client did it.
    pub fn by_server(&mut self, request: Request) {
        self.model.apply(&request).unwrap();
    }

    fn push(&mut self, operation: Operation<Request, Answer>) -> usize {
        self.history.operations.push(operation);
        self.history.operations.len() - 1
    }

    /// A watch opened before everything, that saw all there is to see. One message per revision.
    pub fn watch(&mut self, request: WatchRequest) -> usize {
        let start = match self.model.watch(&request) {
            WatchStart::From(_) if request.start_revision == 0 => 2,
            WatchStart::From(start) => start,
            other => panic!("{other:?}"),
        };
        let at = self.tick();
        let mut responses = vec![WatchResponse { at, revision: start - 1, message: WatchMessage::Created }];
        for commit in self.model.events(start, &request.watched()) {
            let events: Vec<Event> = commit.events.iter().filter_map(|event| request.filter(event)).collect();
            if !events.is_empty() {
                let message = WatchMessage::Events { events, fragment: false };
                responses.push(WatchResponse { at: self.tick(), revision: commit.revision, message });
            }
        }
        self.history.watches.push(WatchStream { client: 9, call: 0, shared: 0, request, responses });
        self.history.watches.len() - 1
    }

    pub fn watch_all(&mut self) -> usize {
        self.watch(WatchRequest { range: KeyRange::all(), ..Default::default() })
    }

    /// The messages of a watch.
    pub fn messages(&mut self, watch: usize) -> &mut Vec<WatchResponse> {
        &mut self.history.watches[watch].responses
    }

    /// The events of one message.
    pub fn events(&mut self, watch: usize, message: usize) -> &mut Vec<Event> {
        match &mut self.messages(watch)[message].message {
            WatchMessage::Events { events, .. } => events,
            other => panic!("{other:?}"),
        }
    }

    /// The response of an operation.
    pub fn response(&mut self, operation: usize) -> &mut Response {
        match &mut self.history.operations[operation].end {
            End::Returned { output: Ok(response), .. } => response,
            other => panic!("{other:?}"),
        }
    }

    pub fn range(&mut self, operation: usize) -> &mut RangeResponse {
        match self.response(operation) {
            Response::Range(response) => response,
            other => panic!("{other:?}"),
        }
    }

    /// Makes the operation's answer unknown.
    pub fn forget(&mut self, operation: usize) {
        self.history.operations[operation].end = End::Unknown;
    }

    pub fn verdict(&self) -> Verdict {
        check(&self.history, &Options::default())
    }

    #[track_caller]
    pub fn expect_right(&self) {
        let verdict = self.verdict();
        assert!(matches!(verdict, Verdict::Consistent(_)), "{verdict:#?}\n{}", self.history.to_json_lines());
    }

    /// The first violation must have this name.
    #[track_caller]
    pub fn expect_wrong(&self, kind: ViolationKind) {
        match self.verdict() {
            Verdict::Violated(violations) if violations[0].kind == kind => {}
            other => panic!("expected {kind:?}, got {other:#?}\n{}", self.history.to_json_lines()),
        }
    }
}

pub fn put(key: &str, value: &str) -> Request {
    Request::Put(put_request(key, value))
}

pub fn put_request(key: &str, value: &str) -> PutRequest {
    PutRequest { key: key.into(), value: value.into(), ..Default::default() }
}

pub fn put_on_lease(key: &str, value: &str, lease: i64) -> Request {
    Request::Put(PutRequest { lease, ..put_request(key, value) })
}

pub fn get(key: &str) -> Request {
    Request::Range(RangeRequest { range: KeyRange::single(key), ..Default::default() })
}

pub fn list() -> Request {
    Request::Range(RangeRequest { range: KeyRange::all(), ..Default::default() })
}

pub fn list_request() -> RangeRequest {
    RangeRequest { range: KeyRange::all(), ..Default::default() }
}

pub fn delete(key: &str) -> Request {
    Request::DeleteRange(DeleteRangeRequest { range: KeyRange::single(key), prev_kv: false })
}

pub fn delete_op(range: KeyRange) -> RequestOp {
    RequestOp::DeleteRange(DeleteRangeRequest { range, prev_kv: false })
}

pub fn put_op(key: &str, value: &str) -> RequestOp {
    RequestOp::Put(put_request(key, value))
}

pub fn compare_mod(key: &str, revision: i64) -> Compare {
    Compare {
        range: KeyRange::single(key),
        target: CompareTarget::Mod(revision),
        result: CompareResult::Equal,
    }
}

/// Writes if the key is at this revision, reads otherwise.
pub fn put_if(key: &str, mod_revision: i64, value: &str) -> Request {
    Request::Txn(TxnRequest {
        compare: vec![compare_mod(key, mod_revision)],
        success: vec![put_op(key, value)],
        failure: vec![RequestOp::Range(RangeRequest { range: KeyRange::single(key), ..Default::default() })],
    })
}

pub fn txn(ops: Vec<RequestOp>) -> Request {
    Request::Txn(TxnRequest { success: ops, ..Default::default() })
}

pub fn grant(id: i64) -> Request {
    Request::LeaseGrant(LeaseGrantRequest { id, ttl: 10 })
}

pub fn revoke(id: i64) -> Request {
    Request::LeaseRevoke(LeaseRevokeRequest { id })
}

pub fn compact(revision: i64) -> Request {
    Request::Compact(CompactRequest { revision })
}
