//! Queries in steps: a walk over a large range would hold up everything else that its replica has to do.
//!
//! A query that is not through when its step's [`Budget`] is spent is suspended ([`Step::Suspended`]): it keeps what it has
//! gathered, shared with the state, and where it is. Meanwhile the state goes on. The query stays at its revision: nothing is
//! swept that was kept when it began ([`crate::mvcc::Pin`]). When too much would be held back for it, or the state is
//! replaced, it begins again; then it sees a newer revision, and one that asked for an old revision may find it compacted.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    ANSWER_BYTES_MAX, Budget, Error, Gathered, KeyRange, Keyspace, LeaseId, LeaseTimeToLiveReply,
    ListRequest, Outcome, PageRequest, Query, RangeRequest, Reply, Revision, ShardId, Txn, TxnOp, codec,
    mutant::mutant,
    mvcc::{Mvcc, Pin},
    ranges::{Listed, OP_BYTES, Part, Size, View, Walk, gathered, get},
};

/// The most leases that are listed: with the time that each ends, they take as much memory as the largest answer.
pub const LEASES_MAX: usize = ANSWER_BYTES_MAX / (2 * size_of::<u64>());

/// How far a query has come.
#[derive(Debug)]
pub enum Step {
    /// This is what there is.
    Done(Gathered),
    /// [`Keyspace::go_on`] carries it on.
    Suspended(SuspendedQuery),
}

/// A query that was begun and is not through.
#[derive(Debug)]
pub struct SuspendedQuery(Box<Begun>);

impl SuspendedQuery {
    /// What was asked.
    pub fn query(&self) -> &Query {
        &self.0.query
    }

    /// The same: it may be begun again.
    pub fn into_query(self) -> Query {
        self.0.query
    }
}

/// A query between its steps.
#[derive(Debug)]
struct Begun {
    query: Query,
    view: View,
    stage: Stage,
    /// In whichever shards it reads; none before it is suspended.
    pins: Vec<(ShardId, Arc<Pin>)>,
}

#[derive(Debug)]
enum Stage {
    /// Of a range, or of a transaction.
    Ranges { shard: ShardId, ranges: Ranges },
    /// The keys of a lease.
    Keys(Keys),
    /// The list of leases so far, in the order of ids. It needs no pin: those are in it that lived all the while, and none that
    /// did at no time meanwhile.
    Leases(Vec<LeaseId>),
}

/// How far a transaction, or a range as the only one of it, has come.
#[derive(Debug)]
struct Ranges {
    branch: Branch,
    parts: Vec<Part>,
    size: Size,
    /// Of the comparison or the range that is next.
    walk: Walk,
}

#[derive(Clone, Copy, Debug)]
enum Branch {
    /// This comparison is next.
    Comparing(usize),
    /// They all hold, or one does not.
    Taken(bool),
}

impl Ranges {
    fn new() -> Ranges {
        Ranges { branch: Branch::Comparing(0), parts: Vec::new(), size: Size::new(), walk: Walk::default() }
    }

    fn go_on_range(
        &mut self,
        mvcc: &Mvcc,
        view: View,
        request: &RangeRequest,
        budget: &mut Budget,
    ) -> Result<Option<Gathered>, Error> {
        let at = view.range(request.revision)?;
        let part = self.walk.go_on(mvcc, view.current, at, request, &mut self.size, budget)?;
        Ok(part.map(|part| gathered(view.current, None, vec![part], self.size.bytes)))
    }

    fn go_on_page(
        &mut self,
        mvcc: &Mvcc,
        view: View,
        request: &PageRequest,
        budget: &mut Budget,
    ) -> Result<Option<Gathered>, Error> {
        let at = view.range(request.revision)?;
        let part = self.walk.go_on_page(mvcc, view.current, at, request, &mut self.size, budget)?;
        Ok(part.map(|part| gathered(view.current, None, vec![part], self.size.bytes)))
    }

    fn go_on_list(
        &mut self,
        mvcc: &Mvcc,
        view: View,
        request: &ListRequest,
        budget: &mut Budget,
    ) -> Result<Option<Gathered>, Error> {
        let at = view.range(request.revision)?;
        let listed = self.walk.go_on_list(mvcc, view.current, at, request, &mut self.size, budget)?;
        Ok(listed.map(|listed| match listed {
            Listed::Whole(part) => gathered(view.current, None, vec![part], self.size.bytes),
            Listed::Measured(measured) => Gathered::from(Ok(Reply::Measured(measured))),
        }))
    }

    fn go_on_txn(
        &mut self,
        mvcc: &Mvcc,
        view: View,
        txn: &Txn,
        budget: &mut Budget,
    ) -> Result<Option<Gathered>, Error> {
        assert!(self.parts.len() <= txn.success.len().max(txn.failure.len()), "an operation has one answer");
        let succeeded = loop {
            match self.branch {
                Branch::Taken(succeeded) => break succeeded,
                Branch::Comparing(next) => {
                    let Some(compare) = txn.compare.get(next) else {
                        self.take(true, txn, view)?;
                        continue;
                    };
                    match self.walk.compare(mvcc, view.current, compare, budget) {
                        Some(true) => self.branch = Branch::Comparing(next + 1),
                        Some(false) => self.take(false, txn, view)?,
                        None => return Ok(None),
                    }
                }
            }
        };
        let ops = if succeeded { &txn.success } else { &txn.failure };
        for op in ops.iter().skip(self.parts.len()) {
            let TxnOp::Range(request) = op else { return Err(Error::NotReadOnly) };
            let at = view.range(request.revision)?;
            let part = if request.range.is_single() {
                budget.spend(1);
                let reply = get(mvcc, view.current, at, request);
                for kv in &reply.kvs {
                    self.size.add(codec::key_value_len(kv))?;
                }
                Part::Ready(reply)
            } else {
                let part = self.walk.go_on(mvcc, view.current, at, request, &mut self.size, budget)?;
                let Some(part) = part else { return Ok(None) };
                part
            };
            self.size.add(OP_BYTES)?;
            self.parts.push(part);
        }
        let parts = std::mem::take(&mut self.parts);
        assert_eq!(parts.len(), ops.len(), "every operation of the branch has its answer");
        Ok(Some(gathered(view.current, Some(succeeded), parts, self.size.bytes)))
    }

    /// The comparisons are decided.
    fn take(&mut self, succeeded: bool, txn: &Txn, view: View) -> Result<(), Error> {
        self.branch = Branch::Taken(succeeded);
        for op in if succeeded { &txn.success } else { &txn.failure } {
            let TxnOp::Range(request) = op else { return Err(Error::NotReadOnly) };
            view.check_in_txn(request.revision)?;
        }
        Ok(())
    }
}

/// The keys that hang on a lease. Which those were at a revision only the keys themselves tell; so if there are too many for
/// one step, all keys are walked over.
#[derive(Debug)]
struct Keys {
    reply: LeaseTimeToLiveReply,
    size: Size,
    /// In this shard.
    place: usize,
    walk: Walk,
}

impl Keyspace {
    /// Begins to answer a query, at what is resolved or at the older revision that it asks for, and goes as far as the budget
    /// lets it.
    pub fn begin(&mut self, query: &Query, budget: &mut Budget) -> Step {
        match self.start(query, budget) {
            Started::Done(gathered) => Step::Done(gathered),
            Started::Suspended(begun) => self.suspend(begun),
        }
    }

    /// Carries a query on. It may begin again when it was suspended for long, or when this is not the state any more that it
    /// began with.
    pub fn go_on(&mut self, suspended: SuspendedQuery, budget: &mut Budget) -> Step {
        let mut begun = suspended.0;
        if !self.is_pinned(&begun) {
            return self.begin(&begun.query, budget);
        }
        if mutant!(self.broken, QueryGoesOnAtNewest) {
            begun.view = self.view();
        }
        match self.carry_on(&mut begun, budget) {
            Some(gathered) => Step::Done(gathered),
            None => Step::Suspended(SuspendedQuery(begun)),
        }
    }

    /// Answers a query at once, however long that takes.
    pub fn query(&self, query: &Query) -> Outcome {
        match self.start(query, &mut Budget::unlimited()) {
            Started::Done(gathered) => gathered.finish(),
            Started::Suspended(mut begun) => {
                let gathered = self.carry_on(&mut begun, &mut Budget::unlimited());
                gathered.expect("there is nothing to wait for").finish()
            }
        }
    }

    fn view(&self) -> View {
        View { current: self.resolved().revision(), compact: self.compact_revision() }
    }

    fn start(&self, query: &Query, budget: &mut Budget) -> Started {
        let view = self.view();
        let current = view.current;
        let stage = match query {
            Query::Range(request) => {
                let shard = match self.shards.covering(&request.range) {
                    Err(_) if mutant!(self.broken, ForeignReadAnswered) => self.shards.iter().next(),
                    found => found.ok(),
                };
                let Some(shard) = shard else { return done(Err(Error::WrongShard)) };
                if request.range.is_single() {
                    let at = view.range(request.revision);
                    return done(at.map(|at| Reply::Range(get(&shard.mvcc, current, at, request))));
                }
                Stage::Ranges { shard: shard.span.id, ranges: Ranges::new() }
            }
            Query::Page(PageRequest { range, .. }) | Query::List(ListRequest { range, .. }) => {
                match self.shards.covering(range) {
                    Ok(shard) => Stage::Ranges { shard: shard.span.id, ranges: Ranges::new() },
                    Err(error) => return done(Err(error)),
                }
            }
            Query::Txn(request) => match self.shards.covering_txn(request) {
                Ok(shard) => Stage::Ranges { shard: shard.span.id, ranges: Ranges::new() },
                Err(error) => return done(Err(error)),
            },
            Query::LeaseTimeToLive { id, keys } => {
                let state = self.leases.state(*id);
                let mut reply = LeaseTimeToLiveReply {
                    revision: current,
                    id: *id,
                    ttl: state.map_or(-1, |lease| lease.remaining_s),
                    granted_ttl: state.map_or(0, |lease| lease.granted_ttl_s),
                    keys: Vec::new(),
                };
                if !*keys {
                    return done(Ok(Reply::LeaseTimeToLive(reply)));
                }
                for key in self.attached(*id) {
                    if budget.is_spent() {
                        break;
                    }
                    budget.spend(1);
                    reply.keys.push(key.clone());
                }
                if !budget.is_spent() {
                    return done(Ok(Reply::LeaseTimeToLive(reply)));
                }
                reply.keys = Vec::new();
                Stage::Keys(Keys { reply, size: Size::new(), place: 0, walk: Walk::default() })
            }
            Query::Leases => Stage::Leases(Vec::new()),
            Query::HashKv { revision } => {
                return done(self.hash_kv(Revision(*revision)).map(Reply::HashKv));
            }
            Query::Status => return done(Ok(Reply::Status(self.status()))),
            Query::Alarms => {
                return done(Ok(Reply::Alarms { revision: current, alarms: self.alarms.iter().collect() }));
            }
        };
        let mut begun = Begun { query: query.clone(), view, stage, pins: Vec::new() };
        match self.carry_on(&mut begun, budget) {
            Some(gathered) => Started::Done(gathered),
            None => Started::Suspended(Box::new(begun)),
        }
    }

    fn suspend(&mut self, mut begun: Box<Begun>) -> Step {
        let only = match &begun.stage {
            Stage::Ranges { shard, .. } => Some(*shard),
            Stage::Keys(_) => None,
            Stage::Leases(_) => return Step::Suspended(SuspendedQuery(begun)),
        };
        let read = self.shards.iter_mut().filter(|shard| only.is_none_or(|only| only == shard.span.id));
        assert!(begun.pins.is_empty(), "what is pinned stays pinned");
        begun.pins = read.map(|shard| (shard.span.id, shard.mvcc.pin_yielding())).collect();
        assert!(!begun.pins.is_empty(), "a query that is suspended reads in a shard");
        Step::Suspended(SuspendedQuery(begun))
    }

    fn is_pinned(&self, begun: &Begun) -> bool {
        begun
            .pins
            .iter()
            .all(|(id, pin)| self.shards.get(*id).is_some_and(|shard| shard.mvcc.is_pinned_by(pin)))
    }

    fn carry_on(&self, begun: &mut Begun, budget: &mut Budget) -> Option<Gathered> {
        let Begun { query, view, stage, .. } = begun;
        assert!(view.compact <= view.current, "what is current can be read");
        let gathered = match (query, stage) {
            (Query::Range(request), Stage::Ranges { shard, ranges }) => {
                ranges.go_on_range(self.mvcc(*shard), *view, request, budget)
            }
            (Query::Page(request), Stage::Ranges { shard, ranges }) => {
                ranges.go_on_page(self.mvcc(*shard), *view, request, budget)
            }
            (Query::List(request), Stage::Ranges { shard, ranges }) => {
                ranges.go_on_list(self.mvcc(*shard), *view, request, budget)
            }
            (Query::Txn(request), Stage::Ranges { shard, ranges }) => {
                ranges.go_on_txn(self.mvcc(*shard), *view, request, budget)
            }
            (_, Stage::Keys(keys)) => self.walk_keys(keys, budget),
            (_, Stage::Leases(leases)) => self.list_leases(view.current, leases, budget),
            (_, Stage::Ranges { .. }) => unreachable!("only these have ranges"),
        };
        match gathered {
            Ok(gathered) => gathered,
            Err(error) => Some(Gathered::from(Err(error))),
        }
    }

    fn list_leases(
        &self,
        revision: Revision,
        leases: &mut Vec<LeaseId>,
        budget: &mut Budget,
    ) -> Result<Option<Gathered>, Error> {
        for lease in self.leases.after(leases.last().copied()) {
            if budget.is_spent() {
                return Ok(None);
            }
            budget.spend(1);
            if leases.len() >= LEASES_MAX {
                return Err(Error::AnswerTooLarge);
            }
            leases.push(lease);
        }
        assert!(leases.len() <= LEASES_MAX, "a longer list is refused");
        let leases = std::mem::take(leases);
        Ok(Some(Gathered::from(Ok(Reply::Leases { revision, leases }))))
    }

    fn mvcc(&self, shard: ShardId) -> &Mvcc {
        &self.shards.get(shard).expect("a query is carried on where its shard is").mvcc
    }

    fn walk_keys(&self, keys: &mut Keys, budget: &mut Budget) -> Result<Option<Gathered>, Error> {
        let all = KeyRange::from(Bytes::new());
        for shard in self.shards.iter().skip(keys.place) {
            let mut last = None;
            for visited in shard.mvcc.walk(&all, keys.walk.after.as_ref(), keys.reply.revision) {
                if budget.is_spent() {
                    keys.walk.stop_behind(last);
                    return Ok(None);
                }
                budget.spend(1);
                last = Some(visited);
                if visited.record().is_some_and(|record| record.kv().lease == keys.reply.id) {
                    keys.size.add(visited.key().len() + 1)?;
                    keys.reply.keys.push(visited.key().clone());
                }
            }
            keys.place += 1;
            keys.walk.after = None;
        }
        let keys_found = std::mem::take(&mut keys.reply.keys);
        let reply = LeaseTimeToLiveReply { keys: keys_found, ..keys.reply };
        Ok(Some(Gathered::from(Ok(Reply::LeaseTimeToLive(reply)))))
    }
}

/// How a query began.
enum Started {
    Done(Gathered),
    Suspended(Box<Begun>),
}

fn done(outcome: Outcome) -> Started {
    Started::Done(Gathered::from(outcome))
}
