//! The writes in the order of their revisions, applied to the model, with every answer held against it.
//!
//! The usual case is a straight line: each revision was acknowledged to somebody. Where one was not, a *suspect* must
//! have taken it: a write with an unknown outcome, or the end of a lease. If several fit what is known of the revision,
//! the first is taken and the place is remembered; a contradiction later on leads back to it. What can be undone is on
//! a trail, as in a solver.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::{Authors, Facts, Role, Trace, granted_lease, mentioned_leases, visit_versions};
use super::streams::{self, Stream};
use super::{Line, Options, Summary, Violation, ViolationKind, json};
use crate::model::{
    Answer, Checkpoint, Commit, Error, EventKind, KeyRange, KeyValue, LeaseRevokeRequest, Model, PutRequest,
    Request, RequestOp, Response, ResponseOp, TxnRequest, TxnResponse,
};

/// How the replay ended.
pub(super) enum End {
    Explained(Summary),
    Contradicted(Vec<Violation>),
    OutOfSteps,
}

/// Replays the history.
pub(super) fn run(facts: &Facts<'_>, streams: &[Stream<'_>], options: &Options) -> End {
    Replay::new(facts, streams, options).search()
}

/// A write that may have happened, once.
struct Suspect {
    request: Request,
    /// It takes a revision above this one: the highest that had returned when it was called.
    floor: i64,
    /// None: the server ends a lease.
    operation: Option<usize>,
}

/// An explanation of a revision; whatever lies between the last one and this one is left empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Choice {
    revision: i64,
    taken_by: TakenBy,
}

/// What may have taken a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TakenBy {
    /// A suspect, by index.
    Suspect(usize),
    /// An acknowledged revoke whose answer carries this revision, by operation.
    Revoke(usize),
    /// It was handed out and never used.
    Nobody,
}

/// A place where there was a choice.
struct Fork {
    checkpoint: Checkpoint,
    /// How long the trail was.
    trail: usize,
    /// The revision to be explained.
    revision: i64,
    /// Not yet tried, the likeliest last.
    left: Vec<Choice>,
}

/// Something done that going back undoes.
enum Step {
    UsedSuspect(usize),
    UsedRevoke(usize),
    Justified(usize),
    Wrote(i64),
}

/// Whether unseen grants and revokes may make an answer right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Help {
    None,
    Suspects,
}

/// Why the replay cannot go on.
enum Stop {
    Contradiction(Vec<Violation>),
    OutOfSteps,
}

impl From<Violation> for Stop {
    fn from(violation: Violation) -> Stop {
        Stop::Contradiction(vec![violation])
    }
}

/// Where to look for the suspects behind a trace.
#[derive(Default)]
struct Index<'a> {
    /// By what they put.
    by_value: BTreeMap<(&'a [u8], &'a [u8]), Vec<usize>>,
    /// Those that put a key and keep its value.
    keepers: Vec<usize>,
    /// Those that delete ranges.
    deleters: Vec<usize>,
    /// Revokes.
    revokes: BTreeMap<i64, Vec<usize>>,
    /// Grants.
    grants: BTreeMap<i64, Vec<usize>>,
    /// The revision at which a suspect's value was seen: if it happened, it happened there.
    pinned: BTreeMap<usize, i64>,
}

struct Replay<'a> {
    facts: &'a Facts<'a>,
    streams: &'a [Stream<'a>],
    options: &'a Options,
    model: Model,
    suspects: Vec<Suspect>,
    used: Vec<bool>,
    index: Index<'a>,
    authors: Authors,
    used_revokes: BTreeSet<usize>,
    /// Refusals that depend on the keys, by the first revision they may have seen.
    refusals: BTreeMap<i64, Vec<usize>>,
    /// Their requests, without leases: whether a lease was there at the moment is not known exactly, and the refusal
    /// says that it was not the reason.
    refused: BTreeMap<usize, Request>,
    /// Those not yet found in the right.
    unjustified: BTreeSet<usize>,
    /// Those of them whose first revision has come.
    waiting: BTreeSet<usize>,
    trail: Vec<Step>,
    forks: Vec<Fork>,
    steps_left: u64,
}

impl<'a> Replay<'a> {
    fn new(facts: &'a Facts<'a>, streams: &'a [Stream<'a>], options: &'a Options) -> Replay<'a> {
        let mut refusals: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
        for (index, role) in facts.roles.iter().enumerate() {
            let depends_on_keys = [Error::KeyNotFound, Error::FutureRevision, Error::LeaseTtlTooLarge];
            if matches!(role, Role::Refused(error) if depends_on_keys.contains(error)) {
                refusals.entry(facts.floors[index]).or_default().push(index);
            }
        }
        let request = |&operation: &usize| (operation, without_leases(&facts.operations[operation].input));
        let refused = refusals.values().flatten().map(request).collect();
        let suspects = suspects(facts, options);
        Replay {
            refused,
            facts,
            streams,
            options,
            model: options.start.clone().without_compaction(),
            used: vec![false; suspects.len()],
            index: Index::of(&suspects, facts),
            suspects,
            authors: BTreeMap::new(),
            used_revokes: BTreeSet::new(),
            unjustified: refusals.values().flatten().copied().collect(),
            refusals,
            waiting: BTreeSet::new(),
            trail: Vec::new(),
            forks: Vec::new(),
            steps_left: options.steps_max,
        }
    }

    fn search(mut self) -> End {
        // The contradiction of the attempt that came furthest says most.
        let mut furthest: (i64, Vec<Violation>) = (i64::MIN, Vec::new());
        let mut outcome = self.observe(self.model.revision()).and_then(|()| self.advance());
        loop {
            match outcome {
                Ok(()) => return End::Explained(self.summary()),
                Err(Stop::OutOfSteps) => return End::OutOfSteps,
                Err(Stop::Contradiction(violations)) => {
                    if furthest.0 < self.model.revision() && !violations.is_empty() {
                        furthest = (self.model.revision(), violations);
                    }
                }
            }
            match self.forks.pop() {
                Some(fork) => outcome = self.retry(fork),
                None => return End::Contradicted(furthest.1),
            }
        }
    }

    /// Goes back to a fork and on from there by another way.
    fn retry(&mut self, fork: Fork) -> Result<(), Stop> {
        self.undo(&fork.checkpoint, fork.trail);
        let begun = self.refusals.range(..=self.model.revision()).flat_map(|(_, operations)| operations);
        self.waiting = begun.copied().filter(|operation| self.unjustified.contains(operation)).collect();
        if !self.choose(fork.revision, fork.left)? {
            // The attempt that came here first has said what is wrong.
            return Err(Stop::Contradiction(Vec::new()));
        }
        self.advance()
    }

    fn undo(&mut self, checkpoint: &Checkpoint, trail: usize) {
        self.model.rewind(checkpoint);
        for step in self.trail.drain(trail..).rev() {
            match step {
                Step::UsedSuspect(suspect) => self.used[suspect] = false,
                Step::UsedRevoke(operation) => {
                    self.used_revokes.remove(&operation);
                }
                Step::Justified(operation) => {
                    self.unjustified.insert(operation);
                }
                Step::Wrote(revision) => {
                    self.authors.remove(&revision);
                }
            }
        }
    }

    /// Explains one revision after the other, until the last one known.
    fn advance(&mut self) -> Result<(), Stop> {
        while let Some(revision) = self.next_revision() {
            match self.facts.writes.get(&revision) {
                Some(&operation) if self.model.revision() + 1 == revision => {
                    self.write(revision, operation)?;
                    self.observe(revision)?;
                }
                _ => {
                    let choices = self.choices(revision)?;
                    if !self.choose(revision, choices)? {
                        return Err(self.unexplained(self.model.revision() + 1).into());
                    }
                }
            }
        }
        // A refusal carries no revision: suspects may have gone on behind the last one known, and justify it.
        while let Some(&operation) = self.unjustified.first() {
            let next = self.model.revision() + 1;
            let mut choices = self.suspect_choices(next, None)?;
            choices.reverse();
            if !self.choose(next, choices)? {
                return Err(self.wrong_error(operation).into());
            }
        }
        let violations = streams::compare_all(self.streams, self.facts, &self.model, &self.authors);
        if violations.is_empty() { Ok(()) } else { Err(Stop::Contradiction(violations)) }
    }

    /// The next revision that must be explained. In a sparse line those that nobody ever mentioned need not be.
    fn next_revision(&self) -> Option<i64> {
        let next = self.model.revision().saturating_add(1);
        match self.options.line {
            Line::Dense => (next <= self.facts.last_revision()?).then_some(next),
            Line::Sparse => {
                let firsts = [
                    self.facts.writes.range(next..).next().map(|(&revision, _)| revision),
                    self.facts.observers.range(next..).next().map(|(&revision, _)| revision),
                    self.facts.traces.range(next..).next().map(|(&revision, _)| revision),
                    self.facts.mentioned.range(next..).next().copied(),
                ];
                firsts.into_iter().flatten().min()
            }
        }
    }

    fn spend(&mut self) -> Result<(), Stop> {
        self.steps_left = self.steps_left.checked_sub(1).ok_or(Stop::OutOfSteps)?;
        Ok(())
    }

    /// Replays an acknowledged write.
    fn write(&mut self, revision: i64, operation: usize) -> Result<(), Stop> {
        let recorded = &self.facts.operations[operation];
        let Some(answer) = recorded.output() else { return Ok(()) };
        let before = self.model.checkpoint();
        let expected = self.apply(&recorded.input, Some(answer))?;
        if self.model.revision() != revision || expected != *answer {
            let violation = self.disagreement(operation, &expected, answer);
            // Judged with the write in place, reported from the state before it.
            self.model.rewind(&before);
            return Err(violation.into());
        }
        self.wrote(revision, Some(operation));
        Ok(())
    }

    fn wrote(&mut self, revision: i64, author: Option<usize>) {
        self.authors.insert(revision, author);
        self.trail.push(Step::Wrote(revision));
    }

    /// Applies a request. If it fails for a lease that nobody saw come or go, and a suspect explains that, the suspect
    /// goes first: neither a grant nor the end of a lease without keys takes a revision.
    fn apply(&mut self, request: &Request, seen: Option<&Answer>) -> Result<Answer, Stop> {
        self.spend()?;
        let apply = |model: &mut Model| match seen {
            Some(seen) => model.apply_like(request, seen),
            None => model.apply(request),
        };
        let answer = apply(&mut self.model);
        let missing = match (&answer, request) {
            (Err(Error::LeaseNotFound), request) => {
                let leases = mentioned_leases(request);
                leases.into_iter().filter(|&id| !self.model.has_lease(id)).collect()
            }
            (Err(Error::LeaseExists), Request::LeaseGrant(grant)) => vec![grant.id],
            (_, _) => return Ok(answer),
        };
        let mut repaired = false;
        for id in missing {
            repaired |= self.repair_lease(id)?;
        }
        if !repaired {
            return Ok(answer);
        }
        self.spend()?;
        Ok(apply(&mut self.model))
    }

    /// Lets a suspect make the lease if it is missing, or end it if it is there and no key hangs on it.
    fn repair_lease(&mut self, id: i64) -> Result<bool, Stop> {
        let there = self.model.has_lease(id);
        if there && !self.model.lease_keys(id).is_empty() {
            return Ok(false);
        }
        let suspects = if there { self.index.revokes.get(&id) } else { self.index.grants.get(&id) };
        let fits =
            |&suspect: &usize| !self.used[suspect] && self.suspects[suspect].floor <= self.model.revision();
        let Some(suspect) = suspects.and_then(|suspects| suspects.iter().copied().find(fits)) else {
            return Ok(false);
        };
        self.spend()?;
        let repaired = self.model.apply(&self.suspects[suspect].request).is_ok();
        self.use_suspect(suspect);
        Ok(repaired)
    }

    fn use_suspect(&mut self, suspect: usize) {
        self.used[suspect] = true;
        self.trail.push(Step::UsedSuspect(suspect));
    }

    /// All ways to get on to `revision`, the next that must be explained; the likeliest last.
    fn choices(&mut self, revision: i64) -> Result<Vec<Choice>, Stop> {
        let next = self.model.revision() + 1;
        let traces = self.facts.traces.get(&revision);
        let acknowledged = self.facts.writes.contains_key(&revision);
        let mut choices = Vec::new();
        if !acknowledged && (traces.is_none() || next == revision) {
            let observers = self.facts.observers.get(&revision).map(Vec::as_slice).unwrap_or_default();
            for &operation in observers {
                let is_revoke = matches!(self.facts.operations[operation].input, Request::LeaseRevoke(_));
                if is_revoke && !self.used_revokes.contains(&operation) {
                    choices.push(Choice { revision, taken_by: TakenBy::Revoke(operation) });
                }
            }
        }
        match self.options.line {
            Line::Dense => choices.extend(self.suspect_choices(revision, traces)?),
            Line::Sparse if next == revision && traces.is_some() => {
                choices.extend(self.suspect_choices(revision, traces)?);
            }
            Line::Sparse => {
                // Revisions below this one went unmentioned, and it may be known by no more than a header: nothing
                // need have happened. If something did, it is enough to try it first and last of them.
                let explained = acknowledged || traces.is_some();
                let last_empty = if explained { revision - 1 } else { revision };
                choices.push(Choice { revision: last_empty, taken_by: TakenBy::Nobody });
                choices.extend(self.suspect_choices(last_empty, None)?);
                if next < last_empty {
                    choices.extend(self.suspect_choices(next, None)?);
                }
            }
        }
        choices.reverse();
        Ok(choices)
    }

    /// The suspects that may have taken the revision and left the traces. The last called comes first: most writes happen
    /// soon after they were called, or never.
    fn suspect_choices(
        &mut self,
        revision: i64,
        traces: Option<&BTreeSet<Trace>>,
    ) -> Result<Vec<Choice>, Stop> {
        let with_keys: BTreeSet<i64> = match traces {
            Some(_) => BTreeSet::new(),
            None => self.model.leases_with_keys().into_iter().collect(),
        };
        let mut choices = Vec::new();
        let mut requests: BTreeSet<&Request> = BTreeSet::new();
        let candidates = self.candidates(traces);
        for &suspect in &candidates {
            let Suspect { request, floor, .. } = &self.suspects[suspect];
            let elsewhere = self.index.pinned.get(&suspect).is_some_and(|&pinned| pinned != revision);
            let possible = !self.used[suspect]
                && !elsewhere
                && *floor < revision
                && self.may_explain(request, traces, &with_keys);
            // Of equal requests the first called is as good as any: it can be wherever another one can.
            if possible && requests.insert(request) {
                choices.push(Choice { revision, taken_by: TakenBy::Suspect(suspect) });
            }
        }
        choices.reverse();
        self.steps_left = self.steps_left.checked_sub(candidates.len() as u64).ok_or(Stop::OutOfSteps)?;
        Ok(choices)
    }

    /// The suspects that can have left the traces, judged by one trace that tells most. Ascending, so the first called
    /// comes first.
    fn candidates(&self, traces: Option<&BTreeSet<Trace>>) -> Vec<usize> {
        let Some(traces) = traces else { return (0..self.suspects.len()).collect() };
        let mut puts = traces.iter().filter(|trace| trace.kind == EventKind::Put);
        let mut candidates: Vec<usize> = Vec::new();
        if let Some(value) = puts.find_map(|trace| Some((trace.key.as_slice(), trace.value.as_deref()?))) {
            candidates.extend(self.index.by_value.get(&value).into_iter().flatten());
            candidates.extend(&self.index.keepers);
        } else if traces.iter().any(|trace| trace.kind == EventKind::Put) {
            candidates.extend(0..self.suspects.len());
        } else {
            candidates.extend(&self.index.deleters);
            let lease = |trace: &Trace| self.model.get(&trace.key, self.model.revision()).map(|kv| kv.lease);
            if let Some(lease) = traces.first().and_then(lease) {
                candidates.extend(self.index.revokes.get(&lease).into_iter().flatten());
            }
        }
        candidates.sort_unstable();
        candidates.dedup();
        candidates
    }

    /// A quick look at whether a request can have left the traces.
    fn may_explain(
        &self,
        request: &Request,
        traces: Option<&BTreeSet<Trace>>,
        with_keys: &BTreeSet<i64>,
    ) -> bool {
        let all = |test: &dyn Fn(&Trace) -> bool| traces.is_none_or(|traces| traces.iter().all(test));
        match request {
            Request::Put(put) => all(&|trace| trace.kind == EventKind::Put && trace.key == put.key),
            Request::DeleteRange(delete) => {
                all(&|trace| trace.kind == EventKind::Delete && delete.range.contains(&trace.key))
            }
            Request::LeaseRevoke(revoke) => match traces {
                Some(traces) => traces.iter().all(|trace| trace.kind == EventKind::Delete),
                None => with_keys.contains(&revoke.id),
            },
            Request::Txn(_) => true,
            Request::Range(_)
            | Request::Compact(_)
            | Request::LeaseGrant(_)
            | Request::LeaseKeepAlive(_)
            | Request::LeaseTimeToLive(_)
            | Request::Leases => false,
        }
    }

    /// Takes the likeliest choice that fits, if there is one, and remembers the others.
    fn choose(&mut self, revision: i64, mut left: Vec<Choice>) -> Result<bool, Stop> {
        let checkpoint = self.model.checkpoint();
        let trail = self.trail.len();
        while let Some(choice) = left.pop() {
            if self.take(choice)? {
                if !left.is_empty() {
                    self.forks.push(Fork { checkpoint, trail, revision, left });
                }
                self.observe(self.model.revision())?;
                return Ok(true);
            }
            self.undo(&checkpoint, trail);
        }
        Ok(false)
    }

    /// Tries one explanation. What it did has to be undone if it does not fit.
    fn take(&mut self, choice: Choice) -> Result<bool, Stop> {
        let revision = choice.revision;
        let (request, author) = match choice.taken_by {
            TakenBy::Nobody => {
                self.model.skip_to(revision);
                return Ok(true);
            }
            TakenBy::Suspect(suspect) => {
                self.use_suspect(suspect);
                (self.suspects[suspect].request.clone(), self.suspects[suspect].operation)
            }
            TakenBy::Revoke(operation) => {
                self.used_revokes.insert(operation);
                self.trail.push(Step::UsedRevoke(operation));
                (self.facts.operations[operation].input.clone(), Some(operation))
            }
        };
        self.model.skip_to(revision - 1);
        let done = self.apply(&request, None)?.is_ok() && self.model.revision() == revision;
        if !done || !self.model.commit(revision).is_some_and(|commit| self.fits(commit)) {
            return Ok(false);
        }
        self.wrote(revision, author);
        Ok(true)
    }

    /// Whether the commit agrees with everything known of its revision.
    fn fits(&self, commit: &Commit) -> bool {
        let left = |trace: &Trace| {
            commit.events.iter().any(|event| {
                let same_value = trace.value.as_ref().is_none_or(|value| *value == event.kv.value);
                event.kind == trace.kind && event.kv.key == trace.key && same_value
            })
        };
        let traces = self.facts.traces.get(&commit.revision);
        traces.is_none_or(|traces| traces.iter().all(left))
            && self.streams.iter().all(|stream| stream.allows(commit))
    }

    /// Compares the answers that were given at the model's revision.
    fn observe(&mut self, revision: i64) -> Result<(), Stop> {
        let facts = self.facts;
        let observers = facts.observers.get(&revision).map(Vec::as_slice).unwrap_or_default();
        let (leases, others): (Vec<usize>, Vec<usize>) = observers.iter().copied().partition(|&operation| {
            matches!(facts.operations[operation].input, Request::LeaseGrant(_) | Request::LeaseRevoke(_))
        });
        self.observe_leases(leases)?;
        let mut violations = Vec::new();
        for operation in others {
            violations.extend(self.compare(operation, Help::Suspects)?);
        }
        if !violations.is_empty() {
            return Err(Stop::Contradiction(violations));
        }
        self.justify(revision)
    }

    /// Grants and revokes at one revision came in an order that the revision does not tell: takes what fits until
    /// nothing does, and only then lets a suspect help.
    fn observe_leases(&mut self, mut left: Vec<usize>) -> Result<(), Stop> {
        left.retain(|operation| !self.used_revokes.contains(operation));
        left.sort_by_key(|&operation| self.facts.operations[operation].call);
        let mut help = Help::None;
        while !left.is_empty() {
            let before = left.len();
            let mut violation = None;
            let mut deferred = Vec::new();
            for operation in left {
                match self.compare(operation, help)? {
                    Some(found) => {
                        deferred.push(operation);
                        violation = Some(found);
                    }
                    // Once one was helped, the others may get on without.
                    None => help = Help::None,
                }
            }
            left = deferred;
            match (violation, help) {
                (Some(violation), Help::Suspects) => return Err(violation.into()),
                (Some(_), Help::None) if left.len() == before => help = Help::Suspects,
                (_, Help::None | Help::Suspects) => {}
            }
        }
        Ok(())
    }

    /// Compares one answer that took no revision.
    fn compare(&mut self, operation: usize, help: Help) -> Result<Option<Violation>, Stop> {
        let recorded = &self.facts.operations[operation];
        let (Some(answer), false) = (recorded.output(), matches!(recorded.input, Request::Compact(_))) else {
            // What is known of compactions was judged by real time.
            return Ok(None);
        };
        let before = self.model.checkpoint();
        let expected = match help {
            Help::Suspects => self.apply(&recorded.input, Some(answer))?,
            Help::None => {
                self.spend()?;
                self.model.apply_like(&recorded.input, answer)
            }
        };
        if self.model.commits().len() == before.commits() && expected == *answer {
            return Ok(None);
        }
        let violation = self.disagreement(operation, &expected, answer);
        self.model.rewind(&before);
        Ok(Some(violation))
    }

    /// Looks whether this state explains refusals.
    fn justify(&mut self, revision: i64) -> Result<(), Stop> {
        let begun = self.refusals.get(&revision).map(Vec::as_slice).unwrap_or_default();
        self.waiting.extend(begun.iter().filter(|operation| self.unjustified.contains(operation)));
        let mut done = Vec::new();
        for &operation in &self.waiting {
            let Role::Refused(error) = self.facts.roles[operation] else { continue };
            let Some(request) = self.refused.get(&operation) else { continue };
            if self.model.may_refuse(request, error) {
                done.push(operation);
            } else if self.facts.ceilings[operation] <= revision {
                return Err(self.wrong_error(operation).into());
            }
        }
        self.steps_left = self.steps_left.checked_sub(self.waiting.len() as u64).ok_or(Stop::OutOfSteps)?;
        for operation in done {
            self.waiting.remove(&operation);
            self.unjustified.remove(&operation);
            self.trail.push(Step::Justified(operation));
        }
        Ok(())
    }

    fn wrong_error(&self, operation: usize) -> Violation {
        let (from, to) =
            (self.facts.floors[operation], self.facts.ceilings[operation].min(self.model.revision()));
        let detail = format!("refused, and no state from revision {from} to {to} gives that reason");
        Violation::new(ViolationKind::WrongError, to, &[operation], detail)
    }

    /// Names the difference between the model's answer and the one recorded.
    fn disagreement(&self, operation: usize, expected: &Answer, answer: &Answer) -> Violation {
        let request = &self.facts.operations[operation].input;
        let revision = answer.as_ref().map_or(0, Response::revision);
        let kind = match (expected, answer) {
            (Ok(expected), Ok(answer)) => self.difference(request, expected, answer),
            (Err(_), _) | (_, Err(_)) => ViolationKind::WrongAnswer,
        };
        let detail = format!("expected {}, answered {}", json(expected), json(answer));
        Violation::new(kind, revision, &[operation], detail)
    }

    fn difference(&self, request: &Request, expected: &Response, answer: &Response) -> ViolationKind {
        if let (Response::Txn(expected), Response::Txn(answer)) = (expected, answer)
            && !same_branches(expected, answer)
        {
            return ViolationKind::FalseCompare;
        }
        let versions = |response: &Response| {
            let mut versions: BTreeSet<(KeyValue, bool)> = BTreeSet::new();
            visit_versions(request, response, &mut |kv, has_value| {
                versions.insert((kv.clone(), has_value));
            });
            versions
        };
        let (expected, got) = (versions(expected), versions(answer));
        let mut missed: BTreeSet<i64> = BTreeSet::new();
        for (kv, has_value) in got.difference(&expected) {
            let known = self.model.get(&kv.key, kv.mod_revision).is_some_and(|known| {
                let same_value = !has_value || known.value == kv.value;
                let same_lease = known.lease == kv.lease || !has_value;
                let same_age = (known.create_revision, known.version) == (kv.create_revision, kv.version);
                known.mod_revision == kv.mod_revision && same_value && same_lease && same_age
            });
            if !known {
                return ViolationKind::PhantomValue;
            }
            missed.extend(self.model.next_change(&kv.key, kv.mod_revision));
        }
        for (kv, _) in expected.difference(&got) {
            if !got.iter().any(|(other, _)| other.key == kv.key) {
                missed.extend([kv.create_revision, kv.mod_revision]);
            }
        }
        if got.iter().any(|(kv, _)| missed.contains(&kv.mod_revision)) {
            ViolationKind::TornRevision
        } else if missed.is_empty() {
            ViolationKind::WrongAnswer
        } else {
            ViolationKind::LostWrite
        }
    }

    /// Says why nothing explains the revision.
    fn unexplained(&self, revision: i64) -> Violation {
        let Some(traces) = self.facts.traces.get(&revision) else {
            let seen_by =
                self.facts.observers.range(revision..).next().map(|(_, operations)| operations.as_slice());
            let seen_by = seen_by.and_then(|operations| operations.first()).copied();
            let operations: Vec<usize> = seen_by.into_iter().collect();
            let detail = "the revision exists, and nobody wrote it";
            return Violation::new(ViolationKind::UnexplainedRevision, revision, &operations, detail);
        };
        let mut operations = Vec::new();
        let mut applied = false;
        let mut early = false;
        for (index, operation) in self.facts.operations.iter().enumerate() {
            if !traces.iter().any(|trace| may_leave(&operation.input, trace)) {
                continue;
            }
            match self.facts.roles[index] {
                Role::Write(_) => applied = true,
                Role::Suspect => {
                    let used = |(suspect, used): (&Suspect, &bool)| suspect.operation == Some(index) && *used;
                    applied |= self.suspects.iter().zip(&self.used).any(used);
                    early |= self.facts.floors[index] >= revision;
                }
                Role::Observer { .. } | Role::Refused(_) | Role::Ignored => continue,
            }
            operations.push(index);
        }
        let (kind, what) = match (applied, early) {
            (_, true) => (ViolationKind::FutureRead, "a write shows before it was called"),
            (true, false) => (ViolationKind::AppliedTwice, "a write shows at a second revision"),
            (false, false) => (ViolationKind::PhantomWrite, "something was written that nobody wrote"),
        };
        Violation::new(kind, revision, &operations, format!("{what}: {}", json(traces)))
    }

    fn summary(&self) -> Summary {
        let count = |test: &dyn Fn(&Role) -> bool| self.facts.roles.iter().filter(|role| test(role)).count();
        let used = |test: &dyn Fn(&Suspect) -> bool| {
            self.suspects.iter().zip(&self.used).filter(|(suspect, used)| **used && test(suspect)).count()
        };
        Summary {
            writes: count(&|role| matches!(role, Role::Write(_))),
            reads: count(&|role| matches!(role, Role::Observer { .. })),
            refusals: count(&|role| matches!(role, Role::Refused(_))),
            unknown_applied: used(&|suspect| suspect.operation.is_some()),
            leases_expired: used(&|suspect| suspect.operation.is_none()),
            watch_events: self.streams.iter().map(Stream::events).sum(),
            revision: self.model.revision(),
        }
    }
}

impl<'a> Index<'a> {
    fn of(suspects: &[Suspect], facts: &'a Facts<'a>) -> Index<'a> {
        let mut index = Index::default();
        for (number, suspect) in suspects.iter().enumerate() {
            match &suspect.request {
                Request::LeaseGrant(grant) => index.grants.entry(grant.id).or_default().push(number),
                Request::LeaseRevoke(revoke) => index.revokes.entry(revoke.id).or_default().push(number),
                Request::Put(_) | Request::DeleteRange(_) | Request::Txn(_) => {}
                Request::Range(_)
                | Request::Compact(_)
                | Request::LeaseKeepAlive(_)
                | Request::LeaseTimeToLive(_)
                | Request::Leases => {}
            }
            let operation = suspect.operation.and_then(|operation| facts.operations.get(operation));
            for write in operation.map(|operation| writes_of(&operation.input)).unwrap_or_default() {
                match write {
                    Write::Put(put) if put.ignore_value => index.keepers.push(number),
                    Write::Put(put) => index.by_value.entry((&put.key, &put.value)).or_default().push(number),
                    Write::Delete(_) => index.deleters.push(number),
                }
            }
        }
        // A put that keeps the value may have shown it at another revision.
        let unambiguous = facts.traces.iter().filter(|_| index.keepers.is_empty());
        for (&revision, traces) in unambiguous {
            for trace in traces.iter().filter(|trace| trace.kind == EventKind::Put) {
                let Some(value) = &trace.value else { continue };
                // A value that several wrote tells nothing.
                if let Some([suspect]) = index.by_value.get(&(&trace.key, value)).map(Vec::as_slice) {
                    index.pinned.entry(*suspect).or_insert(revision);
                }
            }
        }
        index
    }
}

/// All suspects, the first called first.
fn suspects(facts: &Facts<'_>, options: &Options) -> Vec<Suspect> {
    let mut suspects = Vec::new();
    for (index, operation) in facts.operations.iter().enumerate() {
        if facts.roles[index] == Role::Suspect {
            let request = operation.input.clone();
            suspects.push((
                operation.call,
                Suspect { request, floor: facts.floors[index], operation: Some(index) },
            ));
        }
        if let Some(id) = granted_lease(operation).filter(|_| options.leases_expire) {
            let request = Request::LeaseRevoke(LeaseRevokeRequest { id });
            suspects.push((operation.call, Suspect { request, floor: facts.floors[index], operation: None }));
        }
    }
    for id in options.start.leases().filter(|_| options.leases_expire) {
        let request = Request::LeaseRevoke(LeaseRevokeRequest { id });
        suspects.push((0, Suspect { request, floor: options.start.revision(), operation: None }));
    }
    suspects.sort_by_key(|(call, _)| *call);
    suspects.into_iter().map(|(_, suspect)| suspect).collect()
}

/// One of the writes in a request.
enum Write<'a> {
    Put(&'a PutRequest),
    Delete(&'a KeyRange),
}

/// All writes of a request, of both branches if it is a transaction.
fn writes_of(request: &Request) -> Vec<Write<'_>> {
    fn of_txn<'a>(txn: &'a TxnRequest, writes: &mut Vec<Write<'a>>) {
        for op in txn.success.iter().chain(&txn.failure) {
            match op {
                RequestOp::Put(put) => writes.push(Write::Put(put)),
                RequestOp::DeleteRange(delete) => writes.push(Write::Delete(&delete.range)),
                RequestOp::Txn(txn) => of_txn(txn, writes),
                RequestOp::Range(_) | RequestOp::Empty => {}
            }
        }
    }
    let mut writes = Vec::new();
    match request {
        Request::Put(put) => writes.push(Write::Put(put)),
        Request::DeleteRange(delete) => writes.push(Write::Delete(&delete.range)),
        Request::Txn(txn) => of_txn(txn, &mut writes),
        Request::Range(_)
        | Request::Compact(_)
        | Request::LeaseGrant(_)
        | Request::LeaseRevoke(_)
        | Request::LeaseKeepAlive(_)
        | Request::LeaseTimeToLive(_)
        | Request::Leases => {}
    }
    writes
}

/// The request with no puts on leases.
fn without_leases(request: &Request) -> Request {
    fn op_without(op: &RequestOp) -> RequestOp {
        match op {
            RequestOp::Put(put) => RequestOp::Put(PutRequest { lease: 0, ..put.clone() }),
            RequestOp::Txn(txn) => RequestOp::Txn(txn_without(txn)),
            RequestOp::Range(_) | RequestOp::DeleteRange(_) | RequestOp::Empty => op.clone(),
        }
    }
    fn txn_without(txn: &TxnRequest) -> TxnRequest {
        TxnRequest {
            compare: txn.compare.clone(),
            success: txn.success.iter().map(op_without).collect(),
            failure: txn.failure.iter().map(op_without).collect(),
        }
    }
    match request {
        Request::Put(put) => Request::Put(PutRequest { lease: 0, ..put.clone() }),
        Request::Txn(txn) => Request::Txn(txn_without(txn)),
        Request::Range(_)
        | Request::DeleteRange(_)
        | Request::Compact(_)
        | Request::LeaseGrant(_)
        | Request::LeaseRevoke(_)
        | Request::LeaseKeepAlive(_)
        | Request::LeaseTimeToLive(_)
        | Request::Leases => request.clone(),
    }
}

/// Whether a request, in whatever state, may leave the trace.
fn may_leave(request: &Request, trace: &Trace) -> bool {
    writes_of(request).into_iter().any(|write| match (write, trace.kind) {
        (Write::Put(put), EventKind::Put) => {
            let same_value = trace.value.as_ref().is_none_or(|value| put.ignore_value || *value == put.value);
            put.key == trace.key && same_value
        }
        (Write::Delete(range), EventKind::Delete) => range.contains(&trace.key),
        (Write::Put(_), EventKind::Delete) | (Write::Delete(_), EventKind::Put) => false,
    })
}

/// Whether both answers are of the same branches.
fn same_branches(a: &TxnResponse, b: &TxnResponse) -> bool {
    let same = |(a, b): (&ResponseOp, &ResponseOp)| match (a, b) {
        (ResponseOp::Txn(a), ResponseOp::Txn(b)) => same_branches(a, b),
        (_, _) => true,
    };
    a.succeeded == b.succeeded && a.responses.iter().zip(&b.responses).all(same)
}
