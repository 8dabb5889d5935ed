//! One end of the comparison: carries out steps and tells the answers as text.

use std::collections::BTreeMap;

use api::etcdserverpb as pb;
use api::grpc::health::v1 as health;
use api::mvccpb::event::EventType;
use bytes::Bytes;
use prost::Message as _;

use crate::call::{Call, Front, Reply, Unreachable};
use crate::render::Names;
use crate::step::{
    CompareStep, DeleteStep, LeaseId, LeaseRef, Op, Operand, PutStep, RangeStep, Rev, Step, TxnStep,
    WatchStep,
};
use crate::watching::{Stream, VIOLATION};

/// Watch streams a sequence may use.
pub(crate) const STREAMS: usize = 3;

/// Written when a sequence begins and when it settles; above every key of the generator's.
const MARK_KEY: &[u8] = b"\xff\xff/mark";

/// No sequence begins below this revision.
const LOWEST_BASE: i64 = 64;

/// An end, and the sequence it is at.
pub(crate) struct Side {
    front: Front,
    names: Names,
    /// Highest revision in any header.
    now: i64,
    /// Highest revision compacted.
    compacted: i64,
    /// Ids by the number of the grant.
    leases: BTreeMap<usize, i64>,
    /// Watches everything.
    reference: Option<Stream>,
    streams: Vec<Option<Stream>>,
}

/// What came of a step: the text to compare, and one word for the table of what a run covered.
pub(crate) struct Outcome {
    pub(crate) text: String,
    pub(crate) verdict: String,
}

impl Side {
    pub(crate) async fn connect(url: &str) -> Result<Self, Unreachable> {
        Ok(Self {
            front: Front::connect(url).await?,
            names: Names::default(),
            now: 0,
            compacted: 0,
            leases: BTreeMap::new(),
            reference: None,
            streams: Vec::new(),
        })
    }

    /// The end's revision.
    pub(crate) async fn revision(&self) -> Result<i64, Unreachable> {
        let range = RangeStep { serializable: false, ..RangeStep::of(b"\0", b"") };
        match self.front.send(Call::Range(self.range(&range))).await? {
            Ok(Reply::Range(response)) => Ok(response.header.map_or(0, |header| header.revision)),
            other => Err(unexpected("a range", &other)),
        }
    }

    /// Brings the end to where every sequence begins: no keys, no leases, everything compacted. `fresh` is for an end that
    /// was never written to, and leaves it so.
    pub(crate) async fn begin(&mut self, fresh: bool) -> Result<(), Unreachable> {
        self.streams = (0..STREAMS).map(|_| None).collect();
        self.reference = None;
        self.leases.clear();
        self.names.leases.clear();
        self.compacted = 0;
        if !fresh {
            self.clean().await?;
        }
        self.now = self.revision().await?;
        self.names.base = self.now;
        let mut reference = Stream::open(&self.front).await?;
        let all = self.watch(&WatchStep { prev_kv: true, ..WatchStep::of(b"\0", b"\0", Rev::Exactly(0)) });
        let told = reference.create(all, self.compacted, &self.names).await?;
        if told.contains(VIOLATION) {
            return Err(Unreachable(format!("the reference watch: {told}")));
        }
        self.reference = Some(reference);
        Ok(())
    }

    async fn clean(&mut self) -> Result<(), Unreachable> {
        let leases = match self.front.send(Call::Leases).await? {
            Ok(Reply::Leases(response)) => response.leases,
            other => return Err(unexpected("a list of leases", &other)),
        };
        for lease in leases {
            // It may expire in the meantime.
            let _ = self.front.send(Call::Revoke(pb::LeaseRevokeRequest { id: lease.id })).await?;
        }
        let mark = PutStep { key: Bytes::from_static(MARK_KEY), ..PutStep::of(b"", b"") };
        let _ = self.front.send(Call::Put(self.put(&mark))).await?;
        // Then no revision that a step names is below 1, where numbers mean something else.
        while self.revision().await? < LOWEST_BASE {
            let _ = self.front.send(Call::Put(self.put(&mark))).await?;
        }
        let all = DeleteStep::of(b"\0", b"\0");
        let revision = match self.front.send(Call::Delete(delete(&all))).await? {
            Ok(Reply::Delete(response)) => response.header.map_or(0, |header| header.revision),
            other => return Err(unexpected("a delete", &other)),
        };
        match self.front.send(Call::Compact(pb::CompactionRequest { revision, physical: false })).await? {
            Ok(_) => self.compacted = revision,
            other => return Err(unexpected("a compaction", &other)),
        }
        Ok(())
    }

    /// Carries out `step`.
    pub(crate) async fn run(&mut self, step: &Step) -> Result<Outcome, Unreachable> {
        match step {
            Step::Range(range) => self.call(step, Call::Range(self.range(range))).await,
            Step::Put(put) => self.call(step, Call::Put(self.put(put))).await,
            Step::Delete(step_delete) => self.call(step, Call::Delete(delete(step_delete))).await,
            Step::Txn(txn) => self.call(step, Call::Txn(self.txn(txn))).await,
            Step::Compact { revision, physical } => {
                // A watch that was behind would be cancelled or not, by chance.
                let mut outcome = self.settle().await?;
                self.streams.iter_mut().flatten().for_each(Stream::before_compaction);
                let request = pb::CompactionRequest { revision: self.rev(*revision), physical: *physical };
                let compacted = self.call(step, Call::Compact(request)).await?;
                if compacted.verdict == OK {
                    self.compacted = self.compacted.max(request.revision);
                }
                outcome.text.push_str(&compacted.text);
                outcome.verdict = compacted.verdict;
                Ok(outcome)
            }
            Step::Grant { number, id, ttl } => self.grant(step, *number, *id, *ttl).await,
            Step::GrantAndRevoke { ttl } => self.grant_and_revoke(step, *ttl).await,
            Step::Revoke(lease) => {
                let request = pb::LeaseRevokeRequest { id: self.lease(*lease) };
                self.call(step, Call::Revoke(request)).await
            }
            Step::KeepAlive(leases) => {
                let requests =
                    leases.iter().map(|lease| pb::LeaseKeepAliveRequest { id: self.lease(*lease) }).collect();
                self.call(step, Call::KeepAlive(requests)).await
            }
            Step::TimeToLive { lease, keys } => {
                let request = pb::LeaseTimeToLiveRequest { id: self.lease(*lease), keys: *keys };
                self.call(step, Call::TimeToLive(request)).await
            }
            Step::Leases => self.call(step, Call::Leases).await,
            Step::Expire { key } => self.expire(step, key).await,
            Step::Watch(watch) => self.open_watch(watch).await,
            Step::CancelWatch { stream, nth } => {
                let mut outcome = self.settle().await?;
                if let Some(stream) = &mut self.streams[*stream] {
                    outcome.text.push_str(&stream.cancel(*nth, &self.names).await);
                }
                Ok(outcome)
            }
            Step::Progress { stream } => {
                let mut outcome = self.settle().await?;
                if let Some(stream) = &mut self.streams[*stream] {
                    outcome.text.push_str(&stream.progress(self.now, &self.names).await);
                }
                Ok(outcome)
            }
            Step::Settle => self.settle().await,
            Step::MemberList { linearizable } => {
                self.call(step, Call::MemberList(pb::MemberListRequest { linearizable: *linearizable })).await
            }
            Step::Status => self.call(step, Call::Status).await,
            Step::AlarmList => self.call(step, Call::Alarm(pb::AlarmRequest::default())).await,
            Step::Health { service } => {
                let request = health::HealthCheckRequest { service: (*service).to_owned() };
                self.call(step, Call::Health(request)).await
            }
        }
    }

    async fn call(&mut self, step: &Step, call: Call) -> Result<Outcome, Unreachable> {
        let answer = self.front.send(call).await?;
        Ok(match answer {
            Ok(reply) => {
                self.now = self.now.max(header_revision(&reply));
                Outcome { text: self.names.reply(step, &reply), verdict: OK.to_owned() }
            }
            Err(status) => {
                let text = Names::status(&status);
                Outcome { verdict: text.clone(), text: text + "\n" }
            }
        })
    }

    async fn grant(
        &mut self,
        step: &Step,
        number: usize,
        id: LeaseId,
        ttl: i64,
    ) -> Result<Outcome, Unreachable> {
        let id = match id {
            LeaseId::Any => 0,
            LeaseId::Chosen(id) => id,
        };
        let answer = self.front.send(Call::Grant(pb::LeaseGrantRequest { ttl, id })).await?;
        Ok(match answer {
            Ok(reply) => {
                if let Reply::Grant(response) = &reply {
                    self.leases.insert(number, response.id);
                    self.names.leases.insert(response.id, number);
                }
                Outcome { text: self.names.reply(step, &reply), verdict: OK.to_owned() }
            }
            Err(status) => {
                let text = Names::status(&status);
                Outcome { verdict: text.clone(), text: text + "\n" }
            }
        })
    }

    async fn grant_and_revoke(&mut self, step: &Step, ttl: i64) -> Result<Outcome, Unreachable> {
        const NUMBER: usize = 900;
        let granted = self.grant(step, NUMBER, LeaseId::Any, ttl).await?;
        let id = self.lease(LeaseRef::Granted(NUMBER));
        let revoked = self.call(step, Call::Revoke(pb::LeaseRevokeRequest { id })).await?;
        self.leases.remove(&NUMBER);
        Ok(Outcome { text: granted.text + &revoked.text, verdict: granted.verdict })
    }

    async fn expire(&mut self, step: &Step, key: &Bytes) -> Result<Outcome, Unreachable> {
        const NUMBER: usize = 901;
        let granted = self.grant(step, NUMBER, LeaseId::Any, 1).await?;
        let put = PutStep {
            key: key.clone(),
            lease: LeaseRef::Granted(NUMBER),
            ..PutStep::of(b"", b"short-lived")
        };
        let put = self.call(step, Call::Put(self.put(&put))).await?;
        let mut text = granted.text + &put.text;
        if put.verdict != OK {
            // Nothing was written, so nothing goes.
            return Ok(Outcome { text, verdict: put.verdict });
        }
        let written = self.now;
        if let Some(reference) = &mut self.reference {
            let gone = |event: &api::mvccpb::Event| {
                event.r#type() == EventType::Delete
                    && event.kv.as_ref().is_some_and(|kv| kv.key == key && kv.mod_revision > written)
            };
            let told = reference.read_until(&self.names, |events| events.iter().any(gone)).await;
            let revision =
                reference.events().iter().find(|event| gone(event)).and_then(|event| event.kv.as_ref());
            if let Some(kv) = revision {
                self.now = self.now.max(kv.mod_revision);
                text.push_str(&format!("gone at {}\n", self.names.rev(kv.mod_revision)));
            }
            text.push_str(&told);
        }
        Ok(Outcome { text, verdict: OK.to_owned() })
    }

    async fn open_watch(&mut self, watch: &WatchStep) -> Result<Outcome, Unreachable> {
        let request = self.watch(watch);
        let stream = match &mut self.streams[watch.stream] {
            Some(stream) => stream,
            none => none.insert(Stream::open(&self.front).await?),
        };
        let text = stream.create(request, self.compacted, &self.names).await?;
        Ok(Outcome {
            verdict: if text.contains("refused") { "refused".to_owned() } else { OK.to_owned() },
            text,
        })
    }

    /// Waits until every watch has told everything. A write that only the reference watch must see marks the end.
    async fn settle(&mut self) -> Result<Outcome, Unreachable> {
        let mark = PutStep { key: Bytes::from_static(MARK_KEY), ..PutStep::of(b"", b"") };
        let marked = match self.front.send(Call::Put(self.put(&mark))).await? {
            Ok(reply) => header_revision(&reply),
            Err(status) => {
                let text = format!("{VIOLATION} the mark: {}\n", Names::status(&status));
                return Ok(Outcome { text, verdict: "failed".to_owned() });
            }
        };
        self.now = self.now.max(marked);
        let mut text = String::new();
        let Some(reference) = &mut self.reference else {
            return Ok(Outcome { text, verdict: OK.to_owned() });
        };
        let is_mark =
            |event: &api::mvccpb::Event| event.kv.as_ref().is_some_and(|kv| kv.mod_revision >= marked);
        text.push_str(&reference.read_until(&self.names, |events| events.last().is_some_and(is_mark)).await);
        let all = reference.events().to_vec();
        text.push_str(&reference.settle(&all, &self.names).await);
        for (index, stream) in self.streams.iter_mut().enumerate() {
            if let Some(stream) = stream {
                text.push_str(&format!("stream {index}:\n{}", stream.settle(&all, &self.names).await));
            }
        }
        Ok(Outcome { text, verdict: OK.to_owned() })
    }

    fn rev(&self, revision: Rev) -> i64 {
        match revision {
            Rev::Exactly(revision) => revision,
            Rev::Base(offset) => self.names.base + offset,
            Rev::Now(offset) => self.now + offset,
        }
    }

    fn lease(&self, lease: LeaseRef) -> i64 {
        // Ids that no grant of ours has.
        const UNKNOWN: i64 = 0x0BAD_1EA5_E000;
        match lease {
            LeaseRef::None => 0,
            LeaseRef::Granted(number) => {
                let missing = UNKNOWN + 1 + i64::try_from(number).unwrap_or_default();
                self.leases.get(&number).copied().unwrap_or(missing)
            }
            LeaseRef::Unknown => UNKNOWN,
        }
    }

    fn range(&self, range: &RangeStep) -> pb::RangeRequest {
        pb::RangeRequest {
            key: range.key.clone(),
            range_end: range.end.clone(),
            limit: range.limit,
            revision: self.rev(range.revision),
            sort_order: range.order,
            sort_target: range.target,
            serializable: range.serializable,
            keys_only: range.keys_only,
            count_only: range.count_only,
            min_mod_revision: self.rev(range.min_mod),
            max_mod_revision: self.rev(range.max_mod),
            min_create_revision: self.rev(range.min_create),
            max_create_revision: self.rev(range.max_create),
        }
    }

    fn put(&self, put: &PutStep) -> pb::PutRequest {
        pb::PutRequest {
            key: put.key.clone(),
            value: put.value.to_bytes(),
            lease: self.lease(put.lease),
            prev_kv: put.prev_kv,
            ignore_value: put.ignore_value,
            ignore_lease: put.ignore_lease,
        }
    }

    fn txn(&self, txn: &TxnStep) -> pb::TxnRequest {
        pb::TxnRequest {
            compare: txn.compares.iter().map(|compare| self.compare(compare)).collect(),
            success: txn.success.iter().map(|op| self.op(op)).collect(),
            failure: txn.failure.iter().map(|op| self.op(op)).collect(),
        }
    }

    fn op(&self, op: &Op) -> pb::RequestOp {
        use pb::request_op::Request;
        let request = match op {
            Op::Range(range) => Some(Request::RequestRange(self.range(range))),
            Op::Put(put) => Some(Request::RequestPut(self.put(put))),
            Op::Delete(step) => Some(Request::RequestDeleteRange(delete(step))),
            Op::Txn(txn) => Some(Request::RequestTxn(self.txn(txn).encode_to_vec().into())),
            Op::Empty => None,
        };
        pb::RequestOp { request }
    }

    fn compare(&self, compare: &CompareStep) -> pb::Compare {
        use pb::compare::TargetUnion;
        let target_union = match &compare.operand {
            Operand::Unset => None,
            Operand::Version(version) => Some(TargetUnion::Version(*version)),
            Operand::Create(revision) => Some(TargetUnion::CreateRevision(self.rev(*revision))),
            Operand::Mod(revision) => Some(TargetUnion::ModRevision(self.rev(*revision))),
            Operand::Value(value) => Some(TargetUnion::Value(value.clone())),
            Operand::Lease(lease) => Some(TargetUnion::Lease(self.lease(*lease))),
        };
        pb::Compare {
            result: compare.result,
            target: compare.target,
            key: compare.key.clone(),
            range_end: compare.end.clone(),
            target_union,
        }
    }

    fn watch(&self, watch: &WatchStep) -> pb::WatchCreateRequest {
        pb::WatchCreateRequest {
            key: watch.key.clone(),
            range_end: watch.end.clone(),
            start_revision: self.rev(watch.start),
            progress_notify: watch.progress_notify,
            filters: watch.filters.clone(),
            prev_kv: watch.prev_kv,
            watch_id: watch.id,
            fragment: watch.fragment,
        }
    }
}

const OK: &str = "ok";

fn delete(step: &DeleteStep) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: step.key.clone(), range_end: step.end.clone(), prev_kv: step.prev_kv }
}

fn header_revision(reply: &Reply) -> i64 {
    let header = match reply {
        Reply::Range(response) => response.header.as_ref(),
        Reply::Put(response) => response.header.as_ref(),
        Reply::Delete(response) => response.header.as_ref(),
        Reply::Txn(response) => response.header.as_ref(),
        Reply::Compact(response) => response.header.as_ref(),
        Reply::Grant(response) => response.header.as_ref(),
        Reply::Revoke(response) => response.header.as_ref(),
        Reply::KeepAlive(responses) => responses.last().and_then(|response| response.header.as_ref()),
        Reply::TimeToLive(response) => response.header.as_ref(),
        Reply::Leases(response) => response.header.as_ref(),
        Reply::MemberList(response) => response.header.as_ref(),
        Reply::Status(response) => response.header.as_ref(),
        Reply::Alarm(response) => response.header.as_ref(),
        Reply::Health(_) => None,
    };
    header.map_or(0, |header| header.revision)
}

fn unexpected(what: &str, answer: &Result<Reply, tonic::Status>) -> Unreachable {
    Unreachable(format!("{what} between sequences was answered with {answer:?}"))
}
